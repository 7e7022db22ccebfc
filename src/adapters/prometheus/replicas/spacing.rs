//! The places at which samples are expected, and the samples of another replica that fill the gaps.

use std::ops::Range;

use crate::model::{Millis, Step, TimeRange};

/// The number of samples beyond which their usual distance can be told.
const MANY: usize = 3;

/// The places at which samples are expected, which define what a gap is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::adapters::prometheus) enum Spacing {
    /// At each evaluation time from `first` to `last`.
    Steps {
        first: Millis,
        last: Millis,
        step: Step,
        /// Set if values beside a gap may cover only a part of their time, as buckets do.
        partial: bool,
    },
    /// As they were stored, about `interval` apart, anywhere in `view`.
    Samples { view: TimeRange, interval: Step },
}

impl Spacing {
    /// Returns that of values from `first` to `last`.
    pub(in crate::adapters::prometheus) fn steps(first: Millis, last: Millis, step: Step) -> Self {
        let partial = false;
        Self::Steps {
            first,
            last,
            step,
            partial,
        }
    }

    /// Returns that of buckets from `first` to `last`.
    pub(in crate::adapters::prometheus) fn buckets(
        first: Millis,
        last: Millis,
        step: Step,
    ) -> Self {
        let partial = true;
        Self::Steps {
            first,
            last,
            step,
            partial,
        }
    }

    /// Returns that of the stored samples of `range`, with enough around it that gaps over its edges
    /// are seen whole.
    pub(in crate::adapters::prometheus) fn samples(range: TimeRange, interval: Step) -> Self {
        let around = interval.times(3).millis();
        let view = TimeRange::clamped(
            range.start().saturating_sub(around),
            range.end().saturating_add(around),
        );
        Self::Samples { view, interval }
    }

    /// Returns the same up to `edge`: nothing is lacking that is yet to come.
    pub(super) fn until(self, edge: Millis) -> Self {
        match self {
            Self::Steps {
                first,
                last,
                step,
                partial,
            } => Self::Steps {
                first,
                last: last.min(edge),
                step,
                partial,
            },
            Self::Samples { view, interval } => Self::Samples {
                view: TimeRange::clamped(view.start(), view.end().min(edge)),
                interval,
            },
        }
    }

    /// Returns whether a series with samples at `times`, ascending, has a gap.
    pub(super) fn has_gap(&self, times: &[Millis]) -> bool {
        match *self {
            Self::Steps {
                first, last, step, ..
            } => {
                if last < first {
                    return false;
                }
                let expected = (last - first) / step.millis() + 1;
                let present = times.iter().filter(|t| (first..=last).contains(t)).count();
                Millis::try_from(present).is_ok_and(|present| present < expected)
            }
            Self::Samples { view, interval } => {
                // A few samples that are far apart may have a gap between each two.
                let usual = least_distance(times).filter(|_| times.len() > MANY);
                let usual = usual.map_or(interval.millis(), |usual| rare(usual, interval));
                gaps(times, view).any(|gap| is_gap(gap.length(), usual))
            }
        }
    }

    /// Returns which of `theirs` fill gaps of `mine`; both ascend. One at the time of one of `mine` takes
    /// its place.
    pub(super) fn taken(&self, mine: &[Millis], theirs: &[Millis]) -> Vec<Range<usize>> {
        let mut taken: Vec<Range<usize>> = Vec::new();
        match *self {
            Self::Steps {
                first,
                last,
                step,
                partial,
            } => {
                let step = step.millis();
                let inside = |t: Millis| (first..=last).contains(&t);
                let has = |times: &[Millis], t| times.binary_search(&t).is_ok();
                // Beyond the ends nothing is known to be missing.
                let whole = |times: &[Millis], t: Millis| {
                    let beside = [t.saturating_sub(step), t.saturating_add(step)];
                    beside.iter().all(|t| !inside(*t) || has(times, *t))
                };
                for (at, t) in theirs.iter().enumerate() {
                    let better =
                        !has(mine, *t) || (partial && !whole(mine, *t) && whole(theirs, *t));
                    if better && inside(*t) {
                        match taken.last_mut() {
                            Some(run) if run.end == at => run.end = at + 1,
                            _ => taken.push(at..at + 1),
                        }
                    }
                }
            }
            Self::Samples { view, interval } => {
                let least = [mine, theirs].into_iter().filter_map(least_distance).min();
                // Where each has one sample, none of them shows a gap.
                let usual = least.map(|least| rare(least, interval));
                let gaps = usual.into_iter().flat_map(|usual| {
                    let gaps = gaps(mine, view).filter(move |gap| is_gap(gap.length(), usual));
                    gaps.map(move |gap| gap.without_edges(usual / 2))
                });
                for (low, high) in gaps {
                    let from = theirs.partition_point(|t| *t < low);
                    let to = theirs.partition_point(|t| *t <= high);
                    if from < to {
                        taken.push(from..to);
                    }
                }
            }
        }
        taken
    }
}

/// A stretch without samples, between two samples or the ends of the range.
#[derive(Clone, Copy, Debug)]
struct Gap {
    start: Millis,
    end: Millis,
    /// Set where there is a sample at its start, and at its end.
    bounded: (bool, bool),
}

impl Gap {
    fn length(&self) -> Millis {
        self.end.saturating_sub(self.start)
    }

    /// Returns its first and last millisecond that are `distance` or more from its samples.
    fn without_edges(&self, distance: Millis) -> (Millis, Millis) {
        let (before, after) = self.bounded;
        (
            self.start + if before { distance } else { 0 },
            self.end - if after { distance } else { 1 },
        )
    }
}

/// Returns whether `length` without a sample is a gap where they are usually `usual` apart.
fn is_gap(length: Millis, usual: Millis) -> bool {
    length.saturating_mul(2) > usual.saturating_mul(5)
}

/// Returns the stretches of `view` between the samples at `times`.
fn gaps(times: &[Millis], view: TimeRange) -> impl Iterator<Item = Gap> + '_ {
    let within = move |t: &&Millis| view.holds(**t);
    let starts = [(view.start(), false)].into_iter();
    let starts = starts.chain(times.iter().filter(within).map(|t| (*t, true)));
    let ends = times.iter().filter(within).map(|t| (*t, true));
    let ends = ends.chain([(view.end(), false)]);
    starts.zip(ends).map(|((start, before), (end, after))| Gap {
        start,
        end,
        bounded: (before, after),
    })
}

/// Returns the least distance of neighbours; fewer than two have none.
fn least_distance(times: &[Millis]) -> Option<Millis> {
    let pairs = times.iter().zip(times.iter().skip(1));
    pairs.map(|(a, b)| b - a).min()
}

/// Returns the distance that samples usually have if none are nearer to each other than `least`: the
/// `interval`, unless they are clearly rarer.
fn rare(least: Millis, interval: Step) -> Millis {
    match least.saturating_mul(2) > interval.times(3).millis() {
        true => least,
        false => interval.millis(),
    }
}

#[cfg(test)]
mod tests;
