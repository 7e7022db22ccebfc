//! A chunk's points as ready JSON, so that an answer is made of slices.

use std::ops::Range;

use bytes::Bytes;

use crate::model::{Layout, Millis, Points, TimeRange};
use crate::wire::number::{read_time, write_bucket, write_point};

/// Points as JSON, a comma after each, and where each starts.
#[derive(Debug)]
pub(crate) struct Rendered {
    text: Bytes,
    /// Where each point starts, and where one after the last would.
    offsets: Vec<u32>,
}

impl Rendered {
    /// Renders `points`. A text of 4 GiB or more, which no chunk comes near, is cut there.
    pub(crate) fn of(points: &Points, layout: Layout) -> Self {
        Self::written(&[], &[0], points, layout)
    }

    /// Renders `points`, the first `same` of which are those rendered here.
    pub(crate) fn followed(&self, same: usize, points: &Points, layout: Layout) -> Self {
        let same = same.min(self.len()).min(points.len());
        let offsets = self.offsets.get(..=same).unwrap_or(&[0]);
        let end = offsets.last().map_or(0, |end| *end as usize);
        let text = self.text.get(..end).unwrap_or_default();
        Self::written(text, offsets, points, layout)
    }

    /// Goes on where `head`, the text of the first points, and its offsets end.
    fn written(head: &[u8], starts: &[u32], points: &Points, layout: Layout) -> Self {
        let done = starts.len().saturating_sub(1);
        let more = points.len().saturating_sub(done);
        // A point is some 20 to 50 bytes.
        let mut text = Vec::with_capacity(head.len() + more * 40);
        let mut offsets = Vec::with_capacity(starts.len() + more);
        text.extend_from_slice(head);
        offsets.extend_from_slice(starts);
        for (time, value) in points.iter().skip(done) {
            match layout {
                Layout::Raw => write_point(&mut text, time, value),
                Layout::Buckets { size, .. } => write_bucket(&mut text, time, size, value),
            }
            text.push(b',');
            match u32::try_from(text.len()) {
                Ok(offset) => offsets.push(offset),
                Err(_) => break,
            }
        }
        Self {
            text: Bytes::from(text.into_boxed_slice()),
            offsets,
        }
    }

    fn len(&self) -> usize {
        self.offsets.len().saturating_sub(1)
    }

    /// The positions of the points that lie in `range`, read off the text: the points themselves
    /// may be packed.
    pub(crate) fn within(&self, range: &TimeRange) -> Range<usize> {
        let before = |t: Millis| {
            self.offsets
                .get(..self.len())
                .unwrap_or_default()
                .partition_point(|&at| {
                    let point = self.text.get(at as usize..).unwrap_or_default();
                    read_time(point).is_some_and(|time| time < t)
                })
        };
        before(range.start())..before(range.end())
    }

    /// The points at `at`, each with a comma after it but for the `last` of an answer; shares the
    /// memory of the chunk's text.
    pub(crate) fn slice(&self, at: Range<usize>, last: bool) -> Bytes {
        let offset = |i: usize| self.offsets.get(i).map(|o| *o as usize);
        match (offset(at.start), offset(at.end)) {
            (Some(start), Some(end)) if start < end => {
                self.text.slice(start..end - usize::from(last))
            }
            _ => Bytes::new(),
        }
    }

    /// Bytes that it holds on the heap.
    pub(crate) fn heap_bytes(&self) -> usize {
        self.text.len() + self.offsets.capacity() * size_of::<u32>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Statistic, Step};
    use proptest::prelude::*;

    fn minutes() -> Layout {
        Layout::Buckets {
            statistic: Statistic::Mean,
            size: Step::new(10).unwrap(),
        }
    }

    #[test]
    fn slices_are_points_with_commas_between() {
        let points = Points::from_unsorted(vec![(10, 1.5), (20, -2.0), (30, 1e300)]);
        let raw = Rendered::of(&points, Layout::Raw);
        assert_eq!(raw.slice(0..3, true), "[1.5,10],[-2.0,20],[1e+300,30]");
        assert_eq!(raw.slice(1..2, false), "[-2.0,20],");
        assert_eq!(raw.slice(1..1, true), "");
        assert_eq!(raw.slice(2..9, true), "");
        let buckets = Rendered::of(&points, minutes());
        assert_eq!(buckets.slice(0..2, true), "[1.5,10,20],[-2.0,20,30]");
    }

    proptest! {
        #[test]
        fn what_was_rendered_before_is_rendered_the_same(
            old in prop::collection::vec((0i64..100, -1e9f64..1e9), 0..20),
            new in prop::collection::vec((100i64..200, -1e9f64..1e9), 0..20),
            same in 0usize..25,
            start in -10i64..210,
            length in 0i64..210,
        ) {
            for layout in [Layout::Raw, minutes()] {
                let old = Points::from_unsorted(old.clone());
                let kept = old.iter().take(same);
                let all = Points::from_unsorted(kept.chain(new.clone()).collect());
                let whole = Rendered::of(&all, layout);
                let followed = Rendered::of(&old, layout).followed(same, &all, layout);
                prop_assert_eq!(&followed.text, &whole.text);
                prop_assert_eq!(&followed.offsets, &whole.offsets);
                let range = TimeRange::new(start, start + length).unwrap();
                prop_assert_eq!(whole.within(&range), all.within(&range));
            }
        }
    }
}
