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

    /// Points from pairs in any order. Pairs of one time keep their order; values that are not
    /// finite are left out.
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

    /// Points out of their columns. What is not in order, not finite, or beyond the shorter
    /// column is left out.
    pub fn from_columns(times: Vec<Millis>, values: Vec<f64>) -> Self {
        let sound = times.len() == values.len()
            && times.is_sorted()
            && values.iter().all(|v| v.is_finite());
        if sound {
            return Self { times, values };
        }
        let mut points = Self::new();
        for (t, v) in times.into_iter().zip(values) {
            points.push(t, v);
        }
        points
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

    /// How many points there are.
    pub fn len(&self) -> usize {
        self.times.len()
    }

    /// Whether there are none.
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

    /// Times and values, side by side.
    pub fn iter(&self) -> impl Iterator<Item = (Millis, f64)> + '_ {
        self.times.iter().copied().zip(self.values.iter().copied())
    }

    /// The positions of the points that lie in `range`.
    pub fn within(&self, range: &TimeRange) -> Range<usize> {
        let start = self.times.partition_point(|&t| t < range.start());
        let end = self.times.partition_point(|&t| t < range.end());
        start..end.max(start)
    }

    /// A copy of the points that lie in `range`.
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

    /// Bytes that the columns hold on the heap.
    pub fn heap_bytes(&self) -> usize {
        self.times.capacity() * size_of::<Millis>() + self.values.capacity() * size_of::<f64>()
    }
}

/// An aggregated value with the range that it stands for, as its source labelled it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bucket {
    /// The aggregated value; finite.
    pub value: f64,
    /// What the value covers.
    pub range: TimeRange,
}
