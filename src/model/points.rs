//! Points in columns.

use std::ops::Range;

use super::time::{Millis, TimeRange};

/// Points in ascending order of time, as two columns of one length. Every value is finite.
///
/// In a bucketed layout a point's time is the start of its bucket.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Points {
    times: Vec<Millis>,
    values: Vec<f64>,
}

impl Points {
    /// No points.
    pub fn new() -> Self {
        Self::default()
    }

    /// No points, with room for `n`.
    pub fn with_capacity(n: usize) -> Self {
        Self {
            times: Vec::with_capacity(n),
            values: Vec::with_capacity(n),
        }
    }

    /// Returns the points from pairs in any order. Pairs of one time keep their order; values that
    /// are not finite are left out.
    pub fn from_unsorted(mut pairs: Vec<(Millis, f64)>) -> Self {
        if !pairs.is_sorted_by_key(|p| p.0) {
            pairs.sort_by_key(|p| p.0);
        }
        let mut points = Self::with_capacity(pairs.len());
        for (t, v) in pairs {
            points.push(t, v);
        }
        points
    }

    /// Takes over columns, as many values as times. Points that are earlier than one before them,
    /// or not finite, are left out.
    pub fn from_columns(times: Vec<Millis>, values: Vec<f64>) -> Self {
        let whole = times.len() == values.len()
            && times.is_sorted()
            && values.iter().all(|v| v.is_finite());
        if whole {
            return Self { times, values };
        }
        let mut points = Self::with_capacity(times.len());
        for (t, v) in times.into_iter().zip(values) {
            points.push(t, v);
        }
        points
    }

    /// Returns the points of all of `parts` in order of time, those of one time in the order of the
    /// parts.
    pub fn merged(mut parts: Vec<Self>) -> Self {
        if parts.len() < 2 {
            return parts.pop().unwrap_or_default();
        }
        // A stable sort of what is sorted in parts is a merge.
        Self::from_unsorted(parts.iter().flat_map(Self::iter).collect())
    }

    /// Appends a point. One that is earlier than the last, or not finite, is left out.
    pub fn push(&mut self, t: Millis, v: f64) {
        if v.is_finite() && self.times.last().is_none_or(|&last| last <= t) {
            self.times.push(t);
            self.values.push(v);
        }
    }

    /// Appends the points `at` of `other`, which must not start before these end.
    pub fn extend(&mut self, other: &Self, at: Range<usize>) {
        if let (Some(times), Some(values)) = (other.times.get(at.clone()), other.values.get(at)) {
            debug_assert!(self.times.last() <= times.first() || times.is_empty());
            self.times.extend_from_slice(times);
            self.values.extend_from_slice(values);
        }
    }

    /// Returns how many points there are.
    pub fn len(&self) -> usize {
        self.times.len()
    }

    /// Returns whether there are none.
    pub fn is_empty(&self) -> bool {
        self.times.is_empty()
    }

    /// Epoch milliseconds, ascending.
    pub fn times(&self) -> &[Millis] {
        &self.times
    }

    /// Values, in the order of [`Points::times`].
    pub fn values(&self) -> &[f64] {
        &self.values
    }

    /// Returns the times and values, side by side.
    pub fn iter(&self) -> impl Iterator<Item = (Millis, f64)> + '_ {
        self.times.iter().copied().zip(self.values.iter().copied())
    }

    /// Returns the positions of the points that lie in `range`.
    pub fn within(&self, range: &TimeRange) -> Range<usize> {
        let start = self.times.partition_point(|&t| t < range.start());
        let end = self.times.partition_point(|&t| t < range.end());
        start..end.max(start)
    }

    /// Returns a copy of the points that lie in `range`.
    pub fn clipped(&self, range: &TimeRange) -> Self {
        let mut points = Self::new();
        points.extend(self, self.within(range));
        points
    }

    /// Drops what the columns have allocated beyond their length.
    pub fn shrink(&mut self) {
        self.times.shrink_to_fit();
        self.values.shrink_to_fit();
    }

    /// Returns the bytes that the columns hold on the heap.
    pub fn heap_bytes(&self) -> usize {
        self.times.capacity() * size_of::<Millis>() + self.values.capacity() * size_of::<f64>()
    }
}

/// An aggregated value with the range that it stands for, as its source labelled it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bucket {
    /// The aggregated value; finite.
    pub value: f64,
    /// The range that the value covers.
    pub range: TimeRange,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_taken_over_without_what_points_may_not_hold() {
        for (times, values) in [
            (vec![1, 2, 2], vec![0.5, 1.5, 2.5]),
            (vec![1, 3, 2, 3, 4], vec![0.5, 1.0, 7.0, f64::NAN, 2.0]),
            (vec![1, 2], vec![0.5]),
            (vec![], vec![]),
        ] {
            let mut expected = Points::new();
            for (t, v) in times.iter().zip(&values) {
                expected.push(*t, *v);
            }
            assert_eq!(Points::from_columns(times, values), expected);
        }
    }

    #[test]
    fn parts_are_merged_by_time_and_then_in_their_order() {
        let part = |pairs: &[(Millis, f64)]| Points::from_unsorted(pairs.to_vec());
        let (a, b) = (
            part(&[(1, 5.0), (4, 6.0)]),
            part(&[(1, 1.0), (3, 2.0), (4, 3.0)]),
        );
        let merged = Points::merged(vec![a.clone(), Points::new(), b]);
        let expected = [(1, 5.0), (1, 1.0), (3, 2.0), (4, 6.0), (4, 3.0)];
        assert_eq!(merged.iter().collect::<Vec<_>>(), expected);
        assert_eq!(Points::merged(vec![a.clone()]), a);
        assert_eq!(Points::merged(Vec::new()), Points::new());
    }
}
