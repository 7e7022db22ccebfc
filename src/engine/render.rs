//! A chunk's points as ready JSON, so that an answer is made of slices.

use std::ops::Range;

use bytes::Bytes;

use crate::model::{Layout, Points};
use crate::wire::number::{write_bucket, write_point};

/// Points as JSON, separated by commas, and where each starts.
#[derive(Debug)]
pub(crate) struct Rendered {
    bytes: Bytes,
    /// Where each point starts, and where one after the last would.
    offsets: Vec<u32>,
}

impl Rendered {
    /// Renders `points`. A text of 4 GiB or more, which no chunk comes near, is cut there.
    pub(crate) fn of(points: &Points, layout: Layout) -> Self {
        // A point is some 20 to 40 bytes.
        let mut bytes = Vec::with_capacity(points.len() * 32);
        let mut offsets = Vec::with_capacity(points.len() + 1);
        offsets.push(0);
        for (time, value) in points.iter() {
            match layout {
                Layout::Raw => write_point(&mut bytes, time, value),
                Layout::Buckets { size, .. } => write_bucket(&mut bytes, time, size, value),
            }
            bytes.push(b',');
            match u32::try_from(bytes.len()) {
                Ok(offset) => offsets.push(offset),
                Err(_) => break,
            }
        }
        bytes.shrink_to_fit();
        Self {
            bytes: Bytes::from(bytes),
            offsets,
        }
    }

    /// The points at `at`, without a comma at the end; shares the memory of the chunk's text.
    pub(crate) fn slice(&self, at: Range<usize>) -> Bytes {
        let offset = |i: usize| self.offsets.get(i).map(|o| *o as usize);
        match (offset(at.start), offset(at.end)) {
            (Some(start), Some(end)) if start < end => self.bytes.slice(start..end - 1),
            _ => Bytes::new(),
        }
    }

    /// Bytes that it holds on the heap.
    pub(crate) fn heap_bytes(&self) -> usize {
        self.bytes.len() + self.offsets.capacity() * size_of::<u32>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Statistic, Step};

    #[test]
    fn slices_are_points_with_commas_between() {
        let points = Points::from_unsorted(vec![(10, 1.5), (20, -2.0), (30, 1e300)]);
        let raw = Rendered::of(&points, Layout::Raw);
        assert_eq!(raw.slice(0..3), "[1.5,10],[-2.0,20],[1e+300,30]");
        assert_eq!(raw.slice(1..2), "[-2.0,20]");
        assert_eq!(raw.slice(1..1), "");
        assert_eq!(raw.slice(2..9), "");
        let layout = Layout::Buckets {
            statistic: Statistic::Mean,
            size: Step::new(10).unwrap(),
        };
        let buckets = Rendered::of(&points, layout);
        assert_eq!(buckets.slice(0..2), "[1.5,10,20],[-2.0,20,30]");
    }
}
