//! Aggregation: points into buckets. Pure arithmetic.

use crate::model::{Bucket, Points, Statistic, Step, TimeRange};

/// One value for each bucket of `size` that lies in `range` and holds a point of `points`; a
/// bucket's point has the time of the bucket's start. `range` is taken to the bucket grid.
///
/// The value comes from every point of the bucket in `points`, so these must hold all that the
/// range has. Values that overflow a double are left out, as no answer could carry them.
pub fn aggregate(points: &Points, statistic: Statistic, size: Step, range: &TimeRange) -> Points {
    let within = points.within(&range.aligned(size));
    let times = points.times().get(within.clone()).unwrap_or_default();
    let values = points.values().get(within).unwrap_or_default();
    let mut buckets = Points::new();
    let mut scratch = Vec::new();
    let mut at = 0;
    while let Some(&first) = times.get(at) {
        let start = size.floor(first);
        let end = start + size.millis();
        let rest = times.get(at..).unwrap_or_default();
        let len = rest.partition_point(|&t| t < end);
        let bucket = values.get(at..at + len).unwrap_or_default();
        buckets.push(start, reduce(bucket, statistic, &mut scratch));
        at += len;
    }
    buckets
}

/// Larger buckets out of the smaller ones they consist of, where that is exact: `None` for
/// statistics of which no larger value follows from smaller ones, or where a bucket crosses the
/// grid of `size`.
pub fn roll_up(buckets: &[Bucket], statistic: Statistic, size: Step) -> Option<Points> {
    let combine = statistic.of_itself()?;
    let fits = |b: &Bucket| size.floor(b.range.start()) == size.floor(b.range.end() - 1);
    if !buckets.iter().all(fits) {
        return None;
    }
    let pairs = buckets.iter().map(|b| (b.range.start(), b.value)).collect();
    let points = Points::from_unsorted(pairs);
    let first = points.times().first().copied().unwrap_or(0);
    let end = points.times().last().map_or(first, |last| last + 1);
    Some(aggregate(
        &points,
        combine,
        size,
        &TimeRange::clamped(first, end),
    ))
}

/// `values` reduced to one; NaN if there are none. `scratch` is reused from call to call.
fn reduce(values: &[f64], statistic: Statistic, scratch: &mut Vec<f64>) -> f64 {
    match statistic {
        Statistic::Count => values.len() as f64,
        Statistic::Sum => sum(values),
        Statistic::Mean => mean(values),
        Statistic::Min => values.iter().copied().fold(f64::NAN, f64::min),
        Statistic::Max => values.iter().copied().fold(f64::NAN, f64::max),
        Statistic::P25
        | Statistic::P50
        | Statistic::P75
        | Statistic::P90
        | Statistic::P95
        | Statistic::P98
        | Statistic::P99 => {
            scratch.clear();
            scratch.extend_from_slice(values);
            quantile(scratch, statistic.quantile().unwrap_or(0.5))
        }
    }
}

/// Sum with Neumaier's compensation (A. Neumaier, ZAMM 54, 1974), in the order given, so that it
/// is exact to the last bit or nearly so and does not depend on where points were cut.
fn sum(values: &[f64]) -> f64 {
    let (mut sum, mut lost) = (0.0f64, 0.0f64);
    for &value in values {
        let next = sum + value;
        lost += if sum.abs() >= value.abs() {
            (sum - next) + value
        } else {
            (value - next) + sum
        };
        sum = next;
    }
    if sum.is_finite() { sum + lost } else { sum }
}

fn mean(values: &[f64]) -> f64 {
    let count = values.len() as f64;
    let total = sum(values);
    if total.is_finite() {
        total / count
    } else {
        // The sum overflows where the mean does not.
        let parts: Vec<f64> = values.iter().map(|v| v / count).collect();
        sum(&parts)
    }
}

/// The quantile `q` in `0..=1` by linear interpolation between closest ranks: definition R-7 of
/// Hyndman and Fan (1996), which numpy and PromQL's `quantile` use, in PromQL's arithmetic.
/// Reorders `values`.
fn quantile(values: &mut [f64], q: f64) -> f64 {
    let Some(last) = values.len().checked_sub(1) else {
        return f64::NAN;
    };
    let rank = q * last as f64;
    let lower = rank.floor() as usize;
    let weight = rank - rank.floor();
    let (_, low, above) = values.select_nth_unstable_by(lower.min(last), f64::total_cmp);
    let low = *low;
    let high = above.iter().copied().min_by(f64::total_cmp).unwrap_or(low);
    low * (1.0 - weight) + high * weight
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn step(millis: i64) -> Step {
        Step::new(millis).unwrap()
    }

    fn points(pairs: &[(i64, f64)]) -> Points {
        Points::from_unsorted(pairs.to_vec())
    }

    fn all(points: &Points, statistic: Statistic, size: i64) -> Vec<(i64, f64)> {
        aggregate(points, statistic, step(size), &TimeRange::ALL)
            .iter()
            .collect()
    }

    #[test]
    fn buckets_lie_on_the_epoch_grid_and_empty_ones_are_absent() {
        let p = points(&[(5, 1.0), (9, 3.0), (10, 5.0), (35, 7.0)]);
        assert_eq!(
            all(&p, Statistic::Mean, 10),
            [(0, 2.0), (10, 5.0), (30, 7.0)]
        );
        assert_eq!(
            all(&p, Statistic::Count, 10),
            [(0, 2.0), (10, 1.0), (30, 1.0)]
        );
        assert_eq!(all(&p, Statistic::Max, 20), [(0, 5.0), (20, 7.0)]);
    }

    #[test]
    fn percentiles_agree_with_numpy() {
        // numpy.percentile([15, 20, 35, 40, 50], [25, 50, 75, 90, 95, 98, 99])
        let p = points(&[(1, 50.0), (2, 15.0), (3, 40.0), (4, 20.0), (5, 35.0)]);
        let expected = [20.0, 35.0, 40.0, 46.0, 48.0, 49.2, 49.6];
        let percentiles = Statistic::ALL
            .into_iter()
            .filter(|s| s.quantile().is_some());
        for (statistic, expected) in percentiles.zip(expected) {
            let value = all(&p, statistic, 10)[0].1;
            assert!((value - expected).abs() < 1e-12, "{statistic:?}: {value}");
        }
    }

    #[test]
    fn sums_are_compensated_and_means_survive_an_overflow() {
        let p = points(&[(0, 1.0), (1, 1e100), (2, 1.0), (3, -1e100)]);
        assert_eq!(all(&p, Statistic::Sum, 10), [(0, 2.0)]);
        let huge = points(&[(0, 1.5e308), (1, 1.5e308)]);
        assert_eq!(all(&huge, Statistic::Mean, 10), [(0, 1.5e308)]);
        assert_eq!(all(&huge, Statistic::Sum, 10), []);
    }

    #[test]
    fn only_exact_roll_ups_are_made() {
        let bucket = |start, end, value| Bucket {
            value,
            range: TimeRange::new(start, end).unwrap(),
        };
        let small = [bucket(0, 5, 2.0), bucket(5, 10, 3.0), bucket(10, 15, 4.0)];
        let rolled = |s| roll_up(&small, s, step(10)).map(|p| p.iter().collect::<Vec<_>>());
        assert_eq!(rolled(Statistic::Count), Some(vec![(0, 5.0), (10, 4.0)]));
        assert_eq!(rolled(Statistic::Min), Some(vec![(0, 2.0), (10, 4.0)]));
        assert_eq!(rolled(Statistic::Mean), None);
        assert_eq!(rolled(Statistic::P95), None);
        assert_eq!(
            roll_up(&[bucket(5, 15, 1.0)], Statistic::Max, step(10)),
            None
        );
    }

    /// The definition, word for word: sort, filter, reduce.
    fn naive(p: &Points, statistic: Statistic, size: i64) -> Vec<(i64, f64)> {
        let mut starts: Vec<i64> = p
            .times()
            .iter()
            .map(|t| t.div_euclid(size) * size)
            .collect();
        starts.dedup();
        let reduce = |start: i64| {
            let mut values: Vec<f64> = p
                .iter()
                .filter(|(t, _)| (start..start + size).contains(t))
                .map(|(_, v)| v)
                .collect();
            match (statistic, statistic.quantile()) {
                (_, Some(q)) => {
                    values.sort_by(f64::total_cmp);
                    let rank = q * (values.len() - 1) as f64;
                    let low = values[rank.floor() as usize];
                    let high = values[(rank.floor() as usize + 1).min(values.len() - 1)];
                    let weight = rank - rank.floor();
                    low * (1.0 - weight) + high * weight
                }
                (Statistic::Count, _) => values.len() as f64,
                (Statistic::Max, _) => values.iter().copied().fold(f64::MIN, f64::max),
                (Statistic::Min, _) => values.iter().copied().fold(f64::MAX, f64::min),
                (Statistic::Mean, _) => sum(&values) / values.len() as f64,
                _ => sum(&values),
            }
        };
        starts.into_iter().map(|s| (s, reduce(s))).collect()
    }

    proptest! {
        #[test]
        fn every_statistic_equals_the_naive_one_bit_for_bit(
            pairs in prop::collection::vec((0i64..500, -1e6f64..1e6), 0..120),
            size in 1i64..90,
        ) {
            let p = points(&pairs);
            for statistic in Statistic::ALL {
                prop_assert_eq!(all(&p, statistic, size), naive(&p, statistic, size));
            }
        }

        #[test]
        fn a_bucket_does_not_depend_on_the_range_asked_for(
            pairs in prop::collection::vec((0i64..500, -1e6f64..1e6), 1..120),
            size in 1i64..90, start in 0i64..500, len in 0i64..500,
        ) {
            let p = points(&pairs);
            let range = TimeRange::new(start, start + len).unwrap();
            for statistic in Statistic::ALL {
                let whole = all(&p, statistic, size);
                for bucket in aggregate(&p, statistic, step(size), &range).iter() {
                    prop_assert!(whole.contains(&bucket));
                }
            }
        }
    }
}
