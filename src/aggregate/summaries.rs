//! Summaries of samples: of each period four points of one time.

use super::aggregate;
use crate::model::{Points, Statistic, Step, TimeRange};

/// The columns of summaries, of one length.
#[derive(Default)]
struct Columns {
    sums: Points,
    counts: Points,
    smallest: Points,
    largest: Points,
}

/// Takes `summaries` apart: sum, count, smallest and largest value follow one another.
fn columns(summaries: &Points) -> Columns {
    let mut columns = Columns::default();
    let (rows, _) = summaries.values().as_chunks::<4>();
    let times = summaries.times().iter().step_by(4);
    for (&time, &[sum, count, smallest, largest]) in times.zip(rows) {
        columns.sums.push(time, sum);
        columns.counts.push(time, count);
        columns.smallest.push(time, smallest);
        columns.largest.push(time, largest);
    }
    columns
}

/// The buckets of `size` in `range` of the samples that `summaries` are of, which must be all of the
/// range: SUM, COUNT, MIN, MAX, and MEAN as the sums divided by the counts. Nothing for percentiles,
/// which do not follow from them.
pub fn combine(summaries: &Points, statistic: Statistic, size: Step, range: &TimeRange) -> Points {
    let columns = columns(summaries);
    let buckets = |points: &Points, statistic| aggregate(points, statistic, size, range);
    match statistic {
        Statistic::Sum => buckets(&columns.sums, Statistic::Sum),
        Statistic::Count => buckets(&columns.counts, Statistic::Sum),
        Statistic::Min => buckets(&columns.smallest, Statistic::Min),
        Statistic::Max => buckets(&columns.largest, Statistic::Max),
        Statistic::Mean => ratio(
            &buckets(&columns.sums, Statistic::Sum),
            &buckets(&columns.counts, Statistic::Sum),
        ),
        Statistic::P25
        | Statistic::P50
        | Statistic::P75
        | Statistic::P90
        | Statistic::P95
        | Statistic::P98
        | Statistic::P99 => Points::new(),
    }
}

/// The value of each of `summaries`, at its time.
pub fn each(summaries: &Points, statistic: Statistic) -> Points {
    let columns = columns(summaries);
    match statistic {
        Statistic::Sum => columns.sums,
        Statistic::Count => columns.counts,
        Statistic::Min => columns.smallest,
        Statistic::Max => columns.largest,
        _ => ratio(&columns.sums, &columns.counts),
    }
}

/// The quotients of `sums` and `counts`, which have the same times but for sums that overflowed.
fn ratio(sums: &Points, counts: &Points) -> Points {
    let mut points = Points::with_capacity(sums.len());
    let mut counts = counts.iter().peekable();
    for (time, sum) in sums.iter() {
        while counts.next_if(|(t, _)| *t < time).is_some() {}
        // Of several series, each time has as many of the one as of the other.
        if let Some((_, count)) = counts.next_if(|(t, _)| *t == time) {
            points.push(time, sum / count);
        }
    }
    points
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Summaries by `period` of samples in order of time.
    fn summarize(samples: &Points, period: Step) -> Points {
        let of = |s| aggregate(samples, s, period, &TimeRange::ALL);
        let columns = [
            Statistic::Sum,
            Statistic::Count,
            Statistic::Min,
            Statistic::Max,
        ]
        .map(of);
        Points::merged(columns.to_vec())
    }

    proptest! {
        #[test]
        fn buckets_of_summaries_are_those_of_the_samples(
            pairs in prop::collection::vec((0i64..5000, -1000i32..1000), 0..300),
            period in 1i64..40, times in 1i64..9,
        ) {
            let samples = pairs.into_iter().map(|(t, v)| (t, f64::from(v) / 4.0)).collect();
            let samples = Points::from_unsorted(samples);
            let size = Step::new(period * times).unwrap();
            let summaries = summarize(&samples, Step::new(period).unwrap());
            for statistic in Statistic::ALL {
                let made = combine(&summaries, statistic, size, &TimeRange::ALL);
                if statistic.quantile().is_some() {
                    prop_assert!(made.is_empty());
                } else {
                    prop_assert_eq!(made, aggregate(&samples, statistic, size, &TimeRange::ALL));
                }
            }
        }
    }

    #[test]
    fn a_summary_by_itself_has_each_of_its_values() {
        let points = |pairs: &[(i64, f64)]| Points::from_unsorted(pairs.to_vec());
        // Two series at 60, one at 120.
        let summaries = points(&[
            (60, 6.0),
            (60, 3.0),
            (60, 1.0),
            (60, 3.0),
            (60, 10.0),
            (60, 1.0),
            (60, 10.0),
            (60, 10.0),
            (120, 0.5),
            (120, 2.0),
            (120, 0.0),
            (120, 0.5),
        ]);
        assert_eq!(
            each(&summaries, Statistic::Mean),
            points(&[(60, 2.0), (60, 10.0), (120, 0.25)])
        );
        assert_eq!(
            each(&summaries, Statistic::Max),
            points(&[(60, 3.0), (60, 10.0), (120, 0.5)])
        );
        let size = Step::new(60).unwrap();
        let mean = combine(&summaries, Statistic::Mean, size, &TimeRange::ALL);
        assert_eq!(mean, points(&[(60, 4.0), (120, 0.25)]));
    }
}
