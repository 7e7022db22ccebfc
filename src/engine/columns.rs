//! A chunk's points as they are stored: as they came while they may change, packed once they have
//! settled.

use std::borrow::Cow;
use std::ops::Range;

use pco::ChunkConfig;
use pco::standalone::{simple_compress, simple_decompress};
use tracing::error;

use crate::model::{Millis, Points, TimeRange};

/// Fewer points than these are not worth packing.
const WORTH_PACKING: usize = 64;

/// Compression level of pco, of 12: one level more takes half as long again for a hundredth of the
/// size (`cargo bench --bench cache`).
const LEVEL: usize = 2;

/// Points in ascending order of time.
#[derive(Debug)]
pub enum Columns {
    /// 16 bytes a point.
    Open(Points),
    /// One or two bytes a point where values have few decimals, seven where they are noise.
    Packed(Packed),
}

/// Points that are compressed without loss.
#[derive(Debug)]
pub struct Packed {
    len: usize,
    times: Times,
    /// Compressed by pco.
    values: Box<[u8]>,
}

#[derive(Debug)]
enum Times {
    /// Evenly spaced but for some gaps.
    Runs(Runs),
    /// Compressed by pco.
    Packed(Box<[u8]>),
}

/// Times that are evenly spaced but for some gaps.
#[derive(Debug)]
pub(super) struct Runs {
    /// The number of times.
    len: usize,
    step: Millis,
    runs: Box<[Run]>,
}

/// From point `at` on, up to the next run, times are `first`, `first + step` and so on.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Run {
    at: u32,
    first: Millis,
}

/// With more runs than one in this many points, times are packed.
const POINTS_A_RUN: usize = 16;

impl Default for Columns {
    fn default() -> Self {
        Self::Open(Points::new())
    }
}

impl Columns {
    /// Returns `points`, packed if that is worth it and they are `settled`.
    pub fn of(points: Points, settled: bool) -> Self {
        if settled
            && points.len() >= WORTH_PACKING
            && let Some(packed) = Packed::of(&points)
        {
            return Self::Packed(packed);
        }
        Self::Open(points)
    }

    /// Returns the points, unpacked for the caller if they are packed.
    pub fn points(&self) -> Cow<'_, Points> {
        match self {
            Self::Open(points) => Cow::Borrowed(points),
            Self::Packed(packed) => Cow::Owned(packed.points()),
        }
    }

    /// Returns the number of points.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Open(points) => points.len(),
            Self::Packed(packed) => packed.len,
        }
    }

    /// Returns the positions of the points that lie in `range`; `None` where the times are packed.
    pub(crate) fn within(&self, range: &TimeRange) -> Option<Range<usize>> {
        match self {
            Self::Open(points) => Some(points.within(range)),
            Self::Packed(packed) => packed.within(range),
        }
    }

    /// Returns the bytes that they hold on the heap.
    pub fn heap_bytes(&self) -> usize {
        match self {
            Self::Open(points) => points.heap_bytes(),
            Self::Packed(packed) => {
                let times = match &packed.times {
                    Times::Runs(runs) => runs.heap_bytes(),
                    Times::Packed(bytes) => bytes.len(),
                };
                times + packed.values.len()
            }
        }
    }
}

impl Packed {
    /// Packs `points`; `None` if unpacking does not give the same points: no fault of the codec may
    /// lose data.
    fn of(points: &Points) -> Option<Self> {
        let config = ChunkConfig::default().with_compression_level(LEVEL);
        let times = match Runs::of(points.times()) {
            Some(runs) => Times::Runs(runs),
            None => Times::Packed(simple_compress(points.times(), &config).ok()?.into()),
        };
        let packed = Self {
            len: points.len(),
            times,
            values: simple_compress(points.values(), &config).ok()?.into(),
        };
        (packed.points() == *points).then_some(packed)
    }

    fn times(&self) -> Vec<Millis> {
        match &self.times {
            Times::Runs(runs) => runs.times(),
            Times::Packed(bytes) => unpacked(simple_decompress(bytes)),
        }
    }

    fn points(&self) -> Points {
        let values = unpacked(simple_decompress(&self.values));
        Points::from_columns(self.times(), values)
    }

    fn within(&self, range: &TimeRange) -> Option<Range<usize>> {
        match &self.times {
            Times::Runs(runs) => Some(runs.within(range)),
            Times::Packed(_) => None,
        }
    }
}

impl Runs {
    /// Returns `times`, which ascend, as runs, if they have few.
    pub(super) fn of(times: &[Millis]) -> Option<Self> {
        let gap = |pair: &[Millis]| match pair {
            [before, after] => after - before,
            _ => 0,
        };
        let mut step = Millis::MAX;
        for pair in times.windows(2) {
            step = step.min(gap(pair));
        }
        let first = *times.first().filter(|_| times.len() > 1 && step > 0)?;
        let most = times.len() / POINTS_A_RUN;
        let mut runs = vec![Run { at: 0, first }];
        for (at, pair) in (1..).zip(times.windows(2)) {
            if gap(pair) != step {
                let first = *pair.last()?;
                runs.push(Run { at, first });
                if runs.len() > most {
                    break;
                }
            }
        }
        let runs = runs.into_boxed_slice();
        let len = times.len();
        (runs.len() <= most).then_some(Self { len, step, runs })
    }

    fn times(&self) -> Vec<Millis> {
        let mut times = Vec::with_capacity(self.len);
        let ends = self.runs.iter().skip(1).map(|next| next.at as usize);
        for (run, end) in self.runs.iter().zip(ends.chain([self.len])) {
            let count = end.saturating_sub(run.at as usize) as i64;
            times.extend((0..count).map(|i| run.first + i * self.step));
        }
        times
    }

    /// Returns the positions of the times that lie in `range`.
    pub(super) fn within(&self, range: &TimeRange) -> Range<usize> {
        let (step, runs) = (self.step, &self.runs);
        // How many points lie before `t`.
        let before = |t: Millis| {
            let next = runs.partition_point(|run| run.first < t);
            let end = runs.get(next).map_or(self.len, |run| run.at as usize);
            let Some(run) = next.checked_sub(1).and_then(|last| runs.get(last)) else {
                return 0;
            };
            let steps = (t - run.first).saturating_add(step - 1) / step;
            end.min((run.at as usize).saturating_add(usize::try_from(steps).unwrap_or(end)))
        };
        before(range.start())..before(range.end())
    }

    /// Returns the bytes that they hold on the heap.
    pub(super) fn heap_bytes(&self) -> usize {
        size_of_val::<[Run]>(&self.runs)
    }
}

/// Returns the values of `result`. It is no error in practice: the same bytes were unpacked once
/// before, when they were packed.
fn unpacked<T>(result: pco::errors::PcoResult<Vec<T>>) -> Vec<T> {
    result.unwrap_or_else(|e| {
        error!("packed points cannot be unpacked: {e}");
        Vec::new()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn times() -> impl Strategy<Value = Vec<i64>> {
        let even = (0i64..1_000_000, 1i64..5_000, 0usize..300)
            .prop_map(|(first, step, n)| (0..n as i64).map(|i| first + i * step).collect());
        let gaps = (
            0i64..1_000_000,
            1i64..5_000,
            prop::collection::vec(0u8..60, 0..300),
        )
            .prop_map(|(first, step, cells)| {
                let cells = (0..).zip(cells).filter(|(_, c)| *c > 0);
                cells.map(|(i, _)| first + i * step).collect()
            });
        let uneven = prop::collection::vec(0i64..10_000, 0..300).prop_map(|mut gaps| {
            let mut at = 0;
            gaps.iter_mut().for_each(|gap| {
                at += *gap;
                *gap = at;
            });
            gaps
        });
        prop_oneof![even, gaps, uneven]
    }

    proptest! {
        #[test]
        fn what_is_packed_is_what_was_there_to_the_bit(
            times in times(),
            seed in any::<u64>(),
            start in -1000i64..1_500_000,
            length in 0i64..1_500_000,
        ) {
            let value = |i: usize| f64::from_bits(seed.wrapping_mul(i as u64 * 2 + 1)) ;
            let values = (0..).map(value).map(|v| if v.is_finite() { v } else { -0.0 });
            let points = Points::from_unsorted(times.iter().copied().zip(values).collect());
            let open = Columns::of(points.clone(), false);
            let packed = Columns::of(points.clone(), true);
            prop_assert_eq!(matches!(packed, Columns::Packed(_)), points.len() >= WORTH_PACKING);
            prop_assert_eq!(packed.len(), open.len());
            let bits = |p: &Points| p.values().iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            let unpacked = packed.points();
            prop_assert_eq!(unpacked.times(), points.times());
            prop_assert_eq!(bits(&unpacked), bits(&points));
            let range = TimeRange::new(start, start + length).unwrap();
            let even = Runs::of(points.times()).is_some() || points.len() < WORTH_PACKING;
            let expected = even.then(|| points.within(&range));
            prop_assert_eq!(packed.within(&range), expected);
        }
    }

    /// Pseudo-random numbers in `0..1`.
    fn noise(n: usize) -> impl Iterator<Item = f64> {
        let next = |x: &u64| Some(x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
        let states = std::iter::successors(Some(42), next).skip(1).take(n);
        states.map(|x| (x >> 11) as f64 / (1u64 << 53) as f64)
    }

    #[test]
    fn history_takes_few_bytes_a_point() {
        let every_15_s = |values: Vec<f64>| {
            let times = (0..values.len() as i64).map(|i| 1_700_000_000_000 + i * 15_000);
            Points::from_unsorted(times.zip(values).collect())
        };
        let bytes = |points: &Points, settled| {
            Columns::of(points.clone(), settled).heap_bytes() as f64 / points.len() as f64
        };
        let gauge = every_15_s(
            noise(4096)
                .map(|v| (v * 10_000.0).round() / 100.0)
                .collect(),
        );
        assert!(bytes(&gauge, true) < 2.0, "{}", bytes(&gauge, true));
        let full = every_15_s(noise(4096).map(|v| v * 100.0).collect());
        assert!(bytes(&full, true) < 7.5, "{}", bytes(&full, true));
        let mut open = gauge;
        open.shrink();
        assert_eq!(bytes(&open, false), 16.0);
    }
}
