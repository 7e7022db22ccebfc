//! Samples as a backend sent them.

use std::ops::Range;

use super::Dropped;
use crate::model::{Millis, NanInterpretation, Points, TimeRange};

/// Samples of one series, in two columns of one length. Values may be NaN or infinite.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Samples {
    times: Vec<Millis>,
    values: Vec<f64>,
}

impl Samples {
    /// Returns samples of columns of one length.
    pub(super) fn new(times: Vec<Millis>, values: Vec<f64>) -> Self {
        debug_assert_eq!(times.len(), values.len());
        Self { times, values }
    }

    pub(super) fn push(&mut self, t: Millis, value: f64) {
        self.times.push(t);
        self.values.push(value);
    }

    pub(super) fn len(&self) -> usize {
        self.times.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.times.is_empty()
    }

    pub(super) fn times(&self) -> &[Millis] {
        &self.times
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Millis, f64)> + '_ {
        self.times.iter().copied().zip(self.values.iter().copied())
    }

    /// Moves all of them by `by`.
    pub(super) fn shift(&mut self, by: Millis) {
        self.times.iter_mut().for_each(|t| *t += by);
    }

    /// Puts them in order of time. Those of one time keep their order.
    pub(super) fn sort(&mut self) {
        if !self.times.is_sorted() {
            let mut pairs: Vec<_> = self.iter().collect();
            pairs.sort_by_key(|p| p.0);
            (self.times, self.values) = pairs.into_iter().unzip();
        }
    }

    /// Puts the samples of `others` in the runs `taken` among these, both in order of time. One of the
    /// time of another takes its place.
    pub(super) fn put(&mut self, others: &Self, taken: &[Range<usize>]) {
        if taken.is_empty() {
            return;
        }
        let mut mine = self.iter().peekable();
        let mut all = Self::default();
        for at in taken.iter().cloned().flatten() {
            let (Some(t), Some(value)) = (others.times.get(at), others.values.get(at)) else {
                continue;
            };
            while let Some((before, value)) = mine.next_if(|(before, _)| before < t) {
                all.push(before, value);
            }
            mine.next_if(|(same, _)| same == t);
            all.push(*t, *value);
        }
        mine.for_each(|(t, value)| all.push(t, value));
        *self = all;
    }

    /// Returns the positions of those, which are in order of time, that lie in `range`.
    pub(super) fn within(&self, range: &TimeRange) -> Range<usize> {
        let start = self.times.partition_point(|&t| t < range.start());
        let end = self.times.partition_point(|&t| t < range.end());
        start.min(end)..end
    }

    /// Returns what of these, which are in order of time, lies in `range` and has a value to show.
    pub(super) fn points(
        mut self,
        range: &TimeRange,
        nan: NanInterpretation,
        dropped: &mut Dropped,
    ) -> Points {
        let Range { start, end } = self.within(range);
        self.times.truncate(end);
        self.times.drain(..start);
        self.values.truncate(end);
        self.values.drain(..start);
        if self.values.iter().all(|v| v.is_finite()) {
            return Points::from_columns(self.times, self.values);
        }
        let mut points = Points::with_capacity(self.len());
        for (t, value) in self.iter() {
            if let Some(value) = dropped.admit(value, nan) {
                points.push(t, value);
            }
        }
        points
    }
}

impl FromIterator<(Millis, f64)> for Samples {
    fn from_iter<I: IntoIterator<Item = (Millis, f64)>>(pairs: I) -> Self {
        let (times, values) = pairs.into_iter().unzip();
        Self { times, values }
    }
}
