//! Time: epoch milliseconds, half-open ranges, sets of ranges and grids.

use std::num::NonZeroI64;

/// Milliseconds since the Unix epoch, or a number of milliseconds.
pub type Millis = i64;

/// The first instant past year 9999; no client may name a time after it.
pub const MAX_TIME: Millis = 253_402_300_800_000;

/// Beyond this distance from the epoch no range exists, so that lengths and grid
/// arithmetic cannot overflow. About 73 million years.
const LIMIT: Millis = i64::MAX / 4;

/// A half-open range `[start, end)` of epoch milliseconds; never reversed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TimeRange {
    start: Millis,
    end: Millis,
}

impl TimeRange {
    /// The range that holds every instant a client can name.
    pub const ALL: Self = Self {
        start: 0,
        end: MAX_TIME,
    };

    /// Returns `[start, end)`, or `None` where it would be reversed or out of the representable
    /// span.
    pub fn new(start: Millis, end: Millis) -> Option<Self> {
        (start <= end && start >= -LIMIT && end <= LIMIT).then_some(Self { start, end })
    }

    /// Returns `[start, end)`, or the empty range at `start` where `end` comes before it.
    pub fn clamped(start: Millis, end: Millis) -> Self {
        let start = start.clamp(-LIMIT, LIMIT);
        Self {
            start,
            end: end.clamp(start, LIMIT),
        }
    }

    /// First instant of the range.
    pub fn start(&self) -> Millis {
        self.start
    }

    /// First instant after the range.
    pub fn end(&self) -> Millis {
        self.end
    }

    /// Length in milliseconds.
    pub fn millis(&self) -> Millis {
        self.end - self.start
    }

    /// Returns whether no instant lies in it.
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Returns whether `t` lies in it.
    pub fn holds(&self, t: Millis) -> bool {
        self.start <= t && t < self.end
    }

    /// Returns whether all of `other` lies in it; the empty range lies in every range.
    pub fn covers(&self, other: &Self) -> bool {
        other.is_empty() || (self.start <= other.start && other.end <= self.end)
    }

    /// Returns the instants in both, or `None` where there are none.
    pub fn intersection(&self, other: &Self) -> Option<Self> {
        let start = self.start.max(other.start);
        let end = self.end.min(other.end);
        (start < end).then_some(Self { start, end })
    }

    /// Returns the smallest range that holds both.
    pub fn hull(&self, other: &Self) -> Self {
        Self {
            start: self.start.min(other.start),
            end: self.end.max(other.end),
        }
    }

    /// Returns the smallest range on the grid of `step` that holds it; the empty range stays empty.
    pub fn aligned(&self, step: Step) -> Self {
        if self.is_empty() {
            return Self::clamped(step.floor(self.start), step.floor(self.start));
        }
        Self::clamped(step.floor(self.start), step.ceil(self.end))
    }
}

/// The distance between two lines of a grid that is anchored at the epoch: a bucket size, a
/// sampling interval or a chunk span. At least 1 ms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Step(NonZeroI64);

impl Step {
    /// One millisecond.
    pub const MILLI: Self = match NonZeroI64::new(1) {
        Some(millis) => Self(millis),
        None => Self(NonZeroI64::MAX),
    };

    /// One second.
    pub const SECOND: Self = match NonZeroI64::new(1000) {
        Some(millis) => Self(millis),
        None => Self(NonZeroI64::MAX),
    };

    /// Returns a step of `millis`, or `None` outside `1..=MAX_TIME`.
    pub fn new(millis: Millis) -> Option<Self> {
        (1..=MAX_TIME)
            .contains(&millis)
            .then(|| NonZeroI64::new(millis).map(Self))
            .flatten()
    }

    /// Returns its length in milliseconds.
    pub fn millis(&self) -> Millis {
        self.0.get()
    }

    /// This step taken `n` times, at most [`MAX_TIME`] long.
    pub fn times(&self, n: u32) -> Self {
        let millis = self
            .millis()
            .saturating_mul(i64::from(n.max(1)))
            .min(MAX_TIME);
        Self::new(millis).unwrap_or(*self)
    }

    /// Returns the number of the cell that holds `t`: cell `k` is `[k·step, (k+1)·step)`.
    pub fn index(&self, t: Millis) -> i64 {
        t.div_euclid(self.millis())
    }

    /// Returns the last grid line at or before `t`, or [`Millis::MIN`] if that is before all times.
    pub fn floor(&self, t: Millis) -> Millis {
        t.saturating_sub(t.rem_euclid(self.millis()))
    }

    /// Returns the first grid line at or after `t`.
    pub fn ceil(&self, t: Millis) -> Millis {
        let floor = self.floor(t);
        if floor == t {
            t
        } else {
            floor.saturating_add(self.millis())
        }
    }

    /// Cell `index` as a range.
    pub fn cell(&self, index: i64) -> TimeRange {
        let start = index.saturating_mul(self.millis());
        TimeRange::clamped(start, start.saturating_add(self.millis()))
    }

    /// Returns how many cells intersect `range`.
    pub fn cells_in(&self, range: &TimeRange) -> u64 {
        let aligned = range.aligned(*self);
        (aligned.millis() / self.millis()).unsigned_abs()
    }
}

/// A set of instants as ascending, disjoint, non-touching ranges.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeSet(Vec<TimeRange>);

impl RangeSet {
    /// Returns the empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the instants of `range`. Ranges that touch it become one with it.
    pub fn insert(&mut self, range: TimeRange) {
        if range.is_empty() {
            return;
        }
        let from = self.0.partition_point(|r| r.end < range.start);
        let to = self.0.partition_point(|r| r.start <= range.end);
        let touching = self.0.get(from..to).unwrap_or_default();
        let merged = touching.iter().fold(range, |all, r| all.hull(r));
        self.0.splice(from..to, [merged]);
    }

    /// Takes the instants of `range` away.
    pub fn remove(&mut self, range: &TimeRange) {
        let cut = self.places_of(range);
        let first = self.0.get(cut.start).copied();
        let last = cut
            .end
            .checked_sub(1)
            .and_then(|at| self.0.get(at).copied());
        let (Some(first), Some(last), false) = (first, last, cut.is_empty()) else {
            return;
        };
        let rest = [
            TimeRange::clamped(first.start, range.start),
            TimeRange::clamped(range.end, last.end),
        ];
        let rest = rest.into_iter().filter(|r| !r.is_empty());
        self.0.splice(cut, rest);
    }

    /// Returns the instants of `range` that are not in the set.
    pub fn missing_from(&self, range: TimeRange) -> Self {
        let known = self.0.get(self.places_of(&range)).unwrap_or_default();
        let mut missing = Vec::with_capacity(known.len() + 1);
        let mut at = range.start;
        for r in known {
            missing.push(TimeRange::clamped(at, r.start));
            at = r.end;
        }
        missing.push(TimeRange::clamped(at, range.end));
        missing.retain(|r| !r.is_empty());
        Self(missing)
    }

    /// Returns whether every instant of `range` is in the set.
    pub fn covers(&self, range: &TimeRange) -> bool {
        let mut over = self.0.get(self.places_of(range)).into_iter().flatten();
        range.is_empty() || over.next().is_some_and(|r| r.covers(range))
    }

    /// Returns whether some instant of `range` is in the set.
    pub fn intersects(&self, range: &TimeRange) -> bool {
        !self.places_of(range).is_empty()
    }

    /// Returns the places of the ranges that share instants with `range`.
    fn places_of(&self, range: &TimeRange) -> std::ops::Range<usize> {
        if range.is_empty() {
            return 0..0;
        }
        let from = self.0.partition_point(|r| r.end <= range.start);
        let to = self.0.partition_point(|r| r.start < range.end);
        from..to
    }

    /// Returns its ranges, ascending.
    pub fn iter(&self) -> impl Iterator<Item = &TimeRange> {
        self.0.iter()
    }

    /// Returns its ranges, ascending.
    pub fn ranges(&self) -> &[TimeRange] {
        &self.0
    }

    /// Returns whether it holds no instant.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<TimeRange> for RangeSet {
    fn from(range: TimeRange) -> Self {
        let mut set = Self::new();
        set.insert(range);
        set
    }
}

impl FromIterator<TimeRange> for RangeSet {
    fn from_iter<I: IntoIterator<Item = TimeRange>>(ranges: I) -> Self {
        let mut set = Self::new();
        for range in ranges {
            set.insert(range);
        }
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn range(start: Millis, end: Millis) -> TimeRange {
        TimeRange::new(start, end).unwrap()
    }

    #[test]
    fn a_range_cannot_be_reversed() {
        assert_eq!(TimeRange::new(2, 1), None);
        assert_eq!(TimeRange::new(0, i64::MAX), None);
        assert!(TimeRange::new(1, 1).unwrap().is_empty());
    }

    #[test]
    fn grids_are_anchored_at_the_epoch_on_both_sides_of_it() {
        let step = Step::new(60).unwrap();
        assert_eq!(
            (step.floor(119), step.ceil(119), step.index(119)),
            (60, 120, 1)
        );
        assert_eq!((step.floor(120), step.ceil(120)), (120, 120));
        assert_eq!(
            (step.floor(-1), step.ceil(-1), step.index(-1)),
            (-60, 0, -1)
        );
        assert_eq!(step.cells_in(&range(59, 121)), 3);
        assert_eq!(step.cells_in(&range(60, 60)), 0);
        assert_eq!(step.cells_in(&range(65, 65)), 0);
        assert_eq!(step.floor(Millis::MIN), Millis::MIN);
        assert_eq!(step.floor(Millis::MIN + 1), Millis::MIN);
    }

    proptest! {
        #[test]
        fn a_set_holds_what_was_inserted_and_not_removed(
            ops in prop::collection::vec((any::<bool>(), 0i64..60, 0i64..20), 0..25),
            part in (0i64..70, 0i64..30),
        ) {
            let mut set = RangeSet::new();
            let mut model = [false; 100];
            for (insert, start, len) in ops {
                let r = range(start, start + len);
                if insert { set.insert(r) } else { set.remove(&r) }
                for t in start..start + len {
                    model[t as usize] = insert;
                }
            }
            for t in 0..100 {
                prop_assert_eq!(set.iter().any(|r| r.holds(t)), model[t as usize]);
            }
            for pair in set.ranges().windows(2) {
                prop_assert!(pair[0].end() < pair[1].start());
            }
            let (start, end) = (part.0, part.0 + part.1);
            let missing = set.missing_from(range(start, end));
            for t in 0..100 {
                let lacks = (start..end).contains(&t) && !model[t as usize];
                prop_assert_eq!(missing.iter().any(|r| r.holds(t)), lacks);
            }
            let of = &model[start as usize..end as usize];
            prop_assert_eq!(set.covers(&range(start, end)), of.iter().all(|held| *held));
            prop_assert_eq!(set.intersects(&range(start, end)), of.contains(&true));
        }
    }
}
