//! The invalidations of a level. Nothing is deleted: values say up to which invalidation they take
//! into account, and a reader drops those that later ones pick. So a write that is late, queued or
//! in flight anywhere cannot bring back invalidated data, whatever any clock says.

use std::collections::VecDeque;

use super::key::UpstreamName;
use super::page::Stamp;
use crate::model::{RangeSet, TimeRange};

/// An invalidation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Invalidation {
    /// The upstream.
    pub upstream: UpstreamName,
    /// The times, for all its lanes.
    pub range: TimeRange,
}

impl Invalidation {
    /// Returns the bytes of one entry of [`Invalidations::decode`].
    pub fn encode(&self) -> [u8; 32] {
        let Self { upstream, range } = self;
        let mut bytes = [0; 32];
        let times = [range.start().to_le_bytes(), range.end().to_le_bytes()];
        let fields = upstream.0.iter().chain(times.as_flattened());
        for (to, from) in bytes.iter_mut().zip(fields) {
            *to = *from;
        }
        bytes
    }
}

/// The invalidations of a level, in their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalidations {
    epoch: u64,
    /// The number of the last one that is no longer remembered.
    floor: u64,
    /// Those after it.
    list: VecDeque<Invalidation>,
}

impl Invalidations {
    /// Most invalidations that are remembered one by one; values older than these are unknown.
    pub const MOST: usize = 256;

    /// Returns the empty list of a level that begins with `epoch`.
    pub fn new(epoch: u64) -> Self {
        Self {
            epoch,
            floor: 0,
            list: VecDeque::new(),
        }
    }

    /// Returns the stamp of a value that takes all of them into account.
    pub fn stamp(&self) -> Stamp {
        Stamp {
            epoch: self.epoch,
            number: self.floor + self.list.len() as u64,
        }
    }

    /// Adds an invalidation.
    pub fn add(&mut self, invalidation: Invalidation) {
        self.list.push_back(invalidation);
        if self.list.len() > Self::MOST {
            self.list.pop_front();
            self.floor += 1;
        }
    }

    /// Returns those after the last one that `stamp` takes into account, with their numbers; all of
    /// them, if it is of another list.
    pub fn since(&self, stamp: Option<Stamp>) -> Vec<(u64, Invalidation)> {
        let same = stamp.filter(|stamp| stamp.epoch == self.epoch);
        let after = same.map_or(0, |stamp| stamp.number);
        let numbered = (self.floor + 1..).zip(&self.list);
        let later = numbered.filter(|(number, _)| *number > after);
        later.map(|(number, entry)| (number, *entry)).collect()
    }

    /// Returns the unknown ranges of a value of `upstream` with this stamp; `None` if all of it is.
    pub fn unknown(&self, stamp: Stamp, upstream: UpstreamName) -> Option<RangeSet> {
        let Stamp { epoch, number } = stamp;
        if epoch != self.epoch {
            return None;
        }
        let later = number.checked_sub(self.floor)?;
        let later = self
            .list
            .iter()
            .skip(usize::try_from(later).unwrap_or(usize::MAX));
        let picked = later.filter(|i| i.upstream == upstream);
        Some(picked.map(|i| i.range).collect())
    }

    /// Returns the bytes that [`Invalidations::decode`] reads.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(16 + self.list.len() * 32);
        bytes.extend(self.epoch.to_le_bytes());
        bytes.extend(self.floor.to_le_bytes());
        for invalidation in &self.list {
            bytes.extend(invalidation.encode());
        }
        bytes
    }

    /// Returns the invalidations in `bytes`.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (epoch, rest) = bytes.split_first_chunk()?;
        let (floor, mut rest) = rest.split_first_chunk()?;
        let mut list = VecDeque::new();
        while !rest.is_empty() {
            let (upstream, after) = rest.split_first_chunk()?;
            let (start, after) = after.split_first_chunk()?;
            let (end, after) = after.split_first_chunk()?;
            list.push_back(Invalidation {
                upstream: UpstreamName(*upstream),
                range: TimeRange::new(i64::from_le_bytes(*start), i64::from_le_bytes(*end))?,
            });
            rest = after;
        }
        Some(Self {
            epoch: u64::from_le_bytes(*epoch),
            floor: u64::from_le_bytes(*floor),
            list,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: i64, end: i64) -> TimeRange {
        TimeRange::new(start, end).unwrap()
    }

    #[test]
    fn a_value_loses_what_was_invalidated_after_it_and_nothing_else() {
        let (mine, other) = (UpstreamName([1; 16]), UpstreamName([2; 16]));
        let mut list = Invalidations::new(9);
        let before = list.stamp();
        list.add(Invalidation {
            upstream: mine,
            range: range(10, 20),
        });
        let between = list.stamp();
        list.add(Invalidation {
            upstream: mine,
            range: range(15, 30),
        });
        let after = list.stamp();
        let unknown = |stamp, upstream| {
            let unknown: RangeSet = list.unknown(stamp, upstream)?;
            Some(unknown.ranges().to_vec())
        };
        assert_eq!(unknown(before, mine), Some(vec![range(10, 30)]));
        assert_eq!(unknown(between, mine), Some(vec![range(15, 30)]));
        assert_eq!(unknown(after, mine), Some(vec![]));
        assert_eq!(unknown(before, other), Some(vec![]));
        let lost = Stamp { epoch: 8, ..after };
        assert_eq!(unknown(lost, mine), None, "of a list that is lost");
        // Another replica knows of an invalidation that is not known here yet.
        let ahead = Stamp { number: 5, ..after };
        assert_eq!(unknown(ahead, mine), Some(vec![]));
        assert_eq!(Invalidations::decode(&list.encode()), Some(list.clone()));
        let cut = &list.encode()[..40];
        assert_eq!(Invalidations::decode(cut), None);
    }

    #[test]
    fn values_older_than_all_that_is_remembered_are_unknown() {
        let mut list = Invalidations::new(9);
        let before = list.stamp();
        for _ in 0..Invalidations::MOST {
            list.add(Invalidation {
                upstream: UpstreamName([1; 16]),
                range: range(10, 20),
            });
        }
        let other = UpstreamName([2; 16]);
        assert!(list.unknown(before, other).is_some());
        list.add(Invalidation {
            upstream: UpstreamName([1; 16]),
            range: range(10, 20),
        });
        assert_eq!(list.unknown(before, other), None);
        assert!(list.unknown(list.stamp(), other).is_some());
    }
}
