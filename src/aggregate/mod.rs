//! Aggregation from points to buckets. Pure arithmetic.

mod reduce;
mod summaries;

pub use summaries::{combine, each};

use crate::model::{Bucket, Millis, Points, Statistic, Step, TimeRange};

/// Returns one value for each bucket of `size` that lies in `range` and holds a point of `points`;
/// a bucket's point has the time of the bucket's start. `range` is extended to the bucket grid.
///
/// The value comes from every point of the bucket in `points`, so these must hold all that the
/// range has. Values that overflow a double are left out, as no answer could carry them.
pub fn aggregate(points: &Points, statistic: Statistic, size: Step, range: &TimeRange) -> Points {
    let within = points.within(&range.aligned(size));
    let times = points.times().get(within.clone()).unwrap_or_default();
    let values = points.values().get(within).unwrap_or_default();
    let mut scratch = Vec::new();
    // A loop of its own for each statistic.
    match statistic {
        Statistic::Count => each_bucket(times, values, size, |bucket| bucket.len() as f64),
        Statistic::Sum => each_bucket(times, values, size, reduce::sum),
        Statistic::Mean => each_bucket(times, values, size, reduce::mean),
        Statistic::Min => each_bucket(times, values, size, reduce::min),
        Statistic::Max => each_bucket(times, values, size, reduce::max),
        Statistic::P25
        | Statistic::P50
        | Statistic::P75
        | Statistic::P90
        | Statistic::P95
        | Statistic::P98
        | Statistic::P99 => {
            let q = statistic.quantile().unwrap_or(0.5);
            each_bucket(times, values, size, |bucket| {
                reduce::quantile(bucket, q, &mut scratch)
            })
        }
    }
}

/// Returns what `reduce` makes of the values of each bucket of `size`.
fn each_bucket(
    mut times: &[Millis],
    mut values: &[f64],
    size: Step,
    mut reduce: impl FnMut(&[f64]) -> f64,
) -> Points {
    let millis = size.millis();
    let (first, last) = (times.first().copied(), times.last().copied());
    let span = TimeRange::clamped(first.unwrap_or(0), last.map_or(0, |t| t + 1));
    let most = usize::try_from(size.cells_in(&span)).unwrap_or(usize::MAX);
    let mut buckets = Points::with_capacity(most.min(times.len()));
    let (mut start, mut len) = (size.floor(span.start()), 1);
    while let Some(&next) = times.first() {
        // The next bucket is as a rule the one beside the last: no division then.
        if next >= start + millis {
            start = size.floor(next);
        }
        len = leading(times, start + millis, len);
        let (Some((bucket, rest)), Some(later)) = (values.split_at_checked(len), times.get(len..))
        else {
            break;
        };
        buckets.push(start, reduce(bucket));
        (times, values, start) = (later, rest, start + millis);
    }
    buckets
}

/// Returns how many of `times`, of which there are some, come before `end`. `likely` is tried
/// first; from there on the cost grows with the logarithm of the number.
fn leading(times: &[Millis], end: Millis, likely: usize) -> usize {
    let before = |at: usize| times.get(at).is_some_and(|&t| t < end);
    if before(likely.wrapping_sub(1)) && !before(likely) {
        return likely;
    }
    let mut bound = 1;
    while before(bound) {
        bound *= 2;
    }
    let from = bound / 2;
    let between = times.get(from..bound.min(times.len())).unwrap_or_default();
    from + between.partition_point(|&t| t < end)
}

/// Returns `range`, taken to the grid of `size`, in at most `parts` parts of about equal length,
/// each a whole number of buckets: what [`aggregate`] makes of each, one after the other, is what
/// it makes of the whole.
pub fn split(range: &TimeRange, size: Step, parts: u32) -> Vec<TimeRange> {
    let aligned = range.aligned(size);
    let buckets = aligned.millis() / size.millis();
    let parts = Millis::from(parts.max(1)).min(buckets);
    let mut start = aligned.start();
    (0..parts)
        .map(|part| {
            let longer = Millis::from(part < buckets % parts);
            let end = start + (buckets / parts + longer) * size.millis();
            let range = TimeRange::clamped(start, end);
            start = end;
            range
        })
        .collect()
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

#[cfg(test)]
mod tests {
    use super::reduce::sum;
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

    /// Follows the definition literally: sort, filter, reduce.
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

        #[test]
        fn the_parts_of_a_range_make_the_buckets_of_the_whole(
            pairs in prop::collection::vec((0i64..500, -1e6f64..1e6), 0..120),
            size in 1i64..90, start in 0i64..500, len in 0i64..500, parts in 0u32..12,
        ) {
            let (p, size) = (points(&pairs), step(size));
            let range = TimeRange::new(start, start + len).unwrap();
            let parts_of = split(&range, size, parts);
            prop_assert!(parts_of.len() <= parts.max(1) as usize);
            let cells: Vec<u64> = parts_of.iter().map(|p| size.cells_in(p)).collect();
            if let (Some(least), Some(most)) = (cells.iter().min(), cells.iter().max()) {
                prop_assert!(*least >= 1 && most - least <= 1);
            }
            prop_assert_eq!(cells.iter().sum::<u64>(), size.cells_in(&range));
            for statistic in Statistic::ALL {
                let whole = aggregate(&p, statistic, size, &range);
                let pieces = parts_of.iter().map(|part| aggregate(&p, statistic, size, part));
                let joined: Vec<_> = pieces.flat_map(|p| p.iter().collect::<Vec<_>>()).collect();
                prop_assert_eq!(joined, whole.iter().collect::<Vec<_>>());
            }
        }

        #[test]
        fn the_end_of_a_bucket_is_found_whatever_was_likely(
            mut times in prop::collection::vec(0i64..50, 1..80), likely in 0usize..100,
        ) {
            times.sort_unstable();
            for end in times[0] + 1..52 {
                prop_assert_eq!(leading(&times, end, likely), times.partition_point(|&t| t < end));
            }
        }
    }
}
