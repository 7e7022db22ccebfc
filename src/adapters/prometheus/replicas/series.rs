//! The answers of replicas, series by series.

use std::cmp::Ordering;
use std::collections::HashSet;
use std::sync::Arc;

use super::{ReplicaLabels, Replicated, Spacing};
use crate::adapters::prometheus::answer::{SampleMatrix, SampleSeries};
use crate::adapters::samples::Samples;
use crate::adapters::{Annotations, Passed};
use crate::model::TimeRange;
use crate::wire::prometheus::{Instant, Metric, Series, read_instant, write_instant};

impl Replicated for SampleMatrix {
    fn unlabelled(mut self, labels: &ReplicaLabels, spacing: &Spacing) -> Self {
        if labels.is_empty() {
            return self;
        }
        for series in &mut self.series {
            series.labels.retain(|name, _| !labels.hold(name));
        }
        let series = std::mem::take(&mut self.series);
        self.series = folded(series, order, |a, b| {
            a.fill(&b, spacing);
        });
        self
    }

    fn has_gap(&self, spacing: &Spacing) -> bool {
        let gap = |s: &SampleSeries| spacing.has_gap(s.samples.times());
        (self.series.is_empty() && spacing.has_gap(&[])) || self.series.iter().any(gap)
    }

    fn fill(&mut self, other: Self, spacing: &Spacing) {
        self.complete &= other.complete;
        self.received += other.received;
        self.histograms = self.histograms.max(other.histograms);
        let mine = std::mem::take(&mut self.series);
        let filled = &mut self.filled;
        let add = |mine: Option<SampleSeries>, theirs: SampleSeries| {
            let mut mine = mine.unwrap_or_else(|| SampleSeries {
                labels: theirs.labels.clone(),
                samples: Samples::default(),
            });
            *filled += mine.fill(&theirs, spacing);
            mine
        };
        self.series = joined(mine, other.series, order, add);
        self.series.retain(|s| !s.samples.is_empty());
    }
}

fn order(a: &SampleSeries, b: &SampleSeries) -> Ordering {
    a.labels.cmp(&b.labels)
}

impl SampleSeries {
    /// Adds what `other` has in gaps of this, and returns how many samples.
    fn fill(&mut self, other: &Self, spacing: &Spacing) -> u64 {
        let taken = spacing.taken(self.samples.times(), other.samples.times());
        self.samples.put(&other.samples, &taken);
        taken.iter().map(|run| run.len() as u64).sum()
    }
}

/// The series of the answer to a range query.
#[derive(Clone)]
pub(in crate::adapters::prometheus) struct TextSeries {
    /// In the order of labels.
    pub(in crate::adapters::prometheus) series: Vec<Series>,
    pub(in crate::adapters::prometheus) annotations: Annotations,
    /// Set if the server had no warnings.
    pub(in crate::adapters::prometheus) complete: bool,
    /// Samples from other replicas.
    pub(in crate::adapters::prometheus) filled: u64,
}

impl Replicated for TextSeries {
    fn unlabelled(mut self, labels: &ReplicaLabels, spacing: &Spacing) -> Self {
        if strip(&mut self.series, labels) {
            let series = std::mem::take(&mut self.series);
            self.series = folded(series, Series::order, |a, b| {
                a.fill(&b, |mine, theirs| spacing.taken(mine, theirs));
            });
        }
        self
    }

    fn has_gap(&self, spacing: &Spacing) -> bool {
        let gap = |s: &Series| spacing.has_gap(&s.times());
        (self.series.is_empty() && spacing.has_gap(&[])) || self.series.iter().any(gap)
    }

    fn fill(&mut self, other: Self, spacing: &Spacing) {
        self.complete &= other.complete;
        self.annotations.add(&other.annotations);
        self.filled += fill(&mut self.series, other.series, spacing);
    }
}

/// The answer to an instant query.
#[derive(Clone)]
pub(in crate::adapters::prometheus) struct InstantSeries {
    pub(in crate::adapters::prometheus) passed: Passed,
    /// Its series, if its value has any.
    pub(in crate::adapters::prometheus) instant: Option<Instant>,
    /// Set if they differ from the replica's text.
    pub(in crate::adapters::prometheus) changed: bool,
}

impl InstantSeries {
    /// Returns `answer` of at most `most` series.
    pub(in crate::adapters::prometheus) fn of(passed: Passed, most: usize) -> Self {
        let success = passed.answer.status.is_success();
        let instant = success.then(|| read_instant(&passed.answer.body, most).ok());
        Self {
            instant: instant.flatten(),
            passed,
            changed: false,
        }
    }

    /// Returns it as it is passed on.
    pub(in crate::adapters::prometheus) fn written(self) -> Passed {
        let mut passed = self.passed;
        if let Some(instant) = self.instant.filter(|_| self.changed) {
            let answer = Arc::make_mut(&mut passed.answer);
            answer.body = write_instant(&instant).into();
        }
        passed
    }
}

impl Replicated for InstantSeries {
    fn unlabelled(mut self, labels: &ReplicaLabels, spacing: &Spacing) -> Self {
        if let Some(instant) = &mut self.instant
            && strip(&mut instant.series, labels)
        {
            self.changed = true;
            let series = std::mem::take(&mut instant.series);
            instant.series = match instant.vector {
                true => first_of_each(series),
                false => folded(series, Series::order, |a, b| {
                    a.fill(&b, |mine, theirs| spacing.taken(mine, theirs));
                }),
            };
        }
        self
    }

    /// Returns whether it has a gap. For a vector that means that it is empty; for a range of
    /// samples, a gap between them.
    fn has_gap(&self, spacing: &Spacing) -> bool {
        let Some(instant) = &self.instant else {
            return false;
        };
        let gap = |series: &Series| {
            let times = series.times();
            match (times.first(), times.last(), *spacing) {
                (Some(first), Some(last), Spacing::Samples { interval, .. }) => {
                    let view = TimeRange::clamped(*first, *last);
                    Spacing::Samples { view, interval }.has_gap(&times)
                }
                _ => false,
            }
        };
        instant.series.is_empty() || (!instant.vector && instant.series.iter().any(gap))
    }

    fn fill(&mut self, other: Self, spacing: &Spacing) {
        let (Some(mine), Some(theirs)) = (&mut self.instant, other.instant) else {
            return;
        };
        self.passed.complete &= other.passed.complete;
        if theirs.vector != mine.vector {
            return;
        }
        let filled = match mine.vector {
            true => {
                let before = mine.series.len();
                let mut series = std::mem::take(&mut mine.series);
                series.extend(theirs.series);
                mine.series = first_of_each(series);
                mine.series.len() > before
            }
            false => fill(&mut mine.series, theirs.series, spacing) > 0,
        };
        self.changed |= filled;
        self.passed.filled |= filled;
    }
}

/// Removes `labels` from the series, and returns whether any had one.
fn strip(series: &mut [Series], labels: &ReplicaLabels) -> bool {
    let mut any = false;
    for series in series {
        let all = &series.metric.labels;
        if all.iter().any(|(name, _)| labels.hold(name)) {
            let kept = all.iter().filter(|(name, _)| !labels.hold(name)).cloned();
            series.metric = Arc::new(Metric::of(kept.collect()));
            any = true;
        }
    }
    any
}

/// Adds what `others` have in gaps of `series`, both in the order of labels, and returns how many samples.
fn fill(series: &mut Vec<Series>, others: Vec<Series>, spacing: &Spacing) -> u64 {
    let mut filled = 0;
    let add = |mine: Option<Series>, theirs: Series| {
        let mut mine = mine.unwrap_or_else(|| Series::empty(theirs.metric.clone()));
        filled += mine.fill(&theirs, |mine, theirs| spacing.taken(mine, theirs));
        mine
    };
    let mut all = joined(std::mem::take(series), others, Series::order, add);
    all.retain(|s| !s.is_empty());
    *series = all;
    filled as u64
}

/// Returns the first series of each label set.
fn first_of_each(series: Vec<Series>) -> Vec<Series> {
    let mut seen = HashSet::with_capacity(series.len());
    let mut all = series;
    all.retain(|s| seen.insert(s.metric.labels.clone()));
    all
}

/// Returns `series` in order, those that are equal by it folded into the first of them.
fn folded<S>(
    mut series: Vec<S>,
    order: impl Fn(&S, &S) -> Ordering,
    mut fold: impl FnMut(&mut S, S),
) -> Vec<S> {
    series.sort_by(&order);
    let mut all: Vec<S> = Vec::with_capacity(series.len());
    for one in series {
        match all.last_mut() {
            Some(last) if order(last, &one).is_eq() => fold(last, one),
            _ => all.push(one),
        }
    }
    all
}

/// Returns the series of two lists in order, with `add` for each of `theirs`.
fn joined<S>(
    mine: Vec<S>,
    theirs: Vec<S>,
    order: impl Fn(&S, &S) -> Ordering,
    mut add: impl FnMut(Option<S>, S) -> S,
) -> Vec<S> {
    let mut all = Vec::with_capacity(mine.len().max(theirs.len()));
    let mut mine = mine.into_iter().peekable();
    for their in theirs {
        while let Some(before) = mine.next_if(|m| order(m, &their).is_lt()) {
            all.push(before);
        }
        let same = mine.next_if(|m| order(m, &their).is_eq());
        all.push(add(same, their));
    }
    all.extend(mine);
    all
}
