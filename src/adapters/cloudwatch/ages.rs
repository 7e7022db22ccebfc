//! The retention of CloudWatch: the older, the coarser.

use crate::model::{Millis, Step, TimeRange};

const SECOND: Millis = 1000;
const MINUTE: Millis = 60 * SECOND;
const HOUR: Millis = 60 * MINUTE;
const DAY: Millis = 24 * HOUR;

/// Retention of summaries by period, each with the next period that is kept longer.
const KEPT: [(Millis, Option<Millis>); 4] = [
    (3 * HOUR, Some(MINUTE)),
    (15 * DAY, Some(5 * MINUTE)),
    (63 * DAY, Some(HOUR)),
    (455 * DAY, None),
];

/// A part of a range, and the finest period that CloudWatch has of it; `None` where it keeps
/// nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Aged {
    pub(super) range: TimeRange,
    pub(super) finest: Option<Step>,
}

/// Cuts `range`, which lies on `grid`, where CloudWatch at `now` keeps its metrics more coarsely,
/// in order of time. The borders are a little early, as CloudWatch's own clock decides, and lie on
/// `grid`. `interval` is that of the metrics.
pub(super) fn aged(range: &TimeRange, grid: Step, interval: Step, now: Millis) -> Vec<Aged> {
    let border = |age: Millis| {
        let (whole, more) = match age {
            a if a < DAY => (MINUTE, 5 * MINUTE),
            _ => (HOUR, HOUR),
        };
        let from = now.saturating_sub(age);
        let up = Step::new(whole).map_or(from, |step| step.ceil(from));
        grid.ceil(up.saturating_add(more))
    };
    let mut parts = Vec::new();
    let mut end = range.end();
    let mut finest = Some(SECOND);
    for (age, next) in KEPT {
        // Metrics of a minute and more are kept unchanged up to the second border.
        let early = age < DAY && interval.millis() >= MINUTE;
        let start = border(age);
        if !early && start < end {
            let part = TimeRange::clamped(range.start().max(start), end);
            if !part.is_empty() {
                parts.push(part_of(part, finest));
            }
            end = start;
        }
        if end <= range.start() {
            break;
        }
        finest = next;
    }
    if end > range.start() {
        parts.push(part_of(TimeRange::clamped(range.start(), end), finest));
    }
    parts.reverse();
    parts
}

fn part_of(range: TimeRange, finest: Option<Millis>) -> Aged {
    Aged {
        range,
        finest: finest.and_then(Step::new),
    }
}

/// Returns the age of `start` at `now`, as the number of retention borders between them.
pub(super) fn age(start: Millis, now: Millis) -> usize {
    let old = now.saturating_sub(start);
    KEPT.iter().filter(|(age, _)| old > *age).count()
}

/// Returns the period of summaries where nothing finer than `finest` is kept: that of the metrics,
/// as whole multiples of the period that is kept.
pub(super) fn period(interval: Step, finest: Step) -> Step {
    let millis = match interval.millis() {
        // Below a minute CloudWatch has only these.
        i if i < MINUTE && finest.millis() <= SECOND => i,
        i => finest.ceil(i),
    };
    Step::new(millis).unwrap_or(finest)
}

/// Returns whether CloudWatch accepts `size` as a period, in milliseconds.
pub(super) fn is_period(size: Step) -> bool {
    let millis = size.millis();
    matches!(millis, 1000 | 5000 | 10_000 | 20_000 | 30_000) || millis % MINUTE == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(millis: Millis) -> Step {
        Step::new(millis).unwrap()
    }

    const NOW: Millis = 1_790_000_000_000;

    fn cut(
        start: Millis,
        end: Millis,
        grid: Millis,
        interval: Millis,
    ) -> Vec<(Millis, Millis, Option<Millis>)> {
        let grid = step(grid);
        let range = TimeRange::clamped(NOW - start, NOW - end).aligned(grid);
        let parts = aged(&range, grid, step(interval), NOW);
        // In whole, in order, and disjoint.
        assert_eq!(parts.first().unwrap().range.start(), range.start());
        assert_eq!(parts.last().unwrap().range.end(), range.end());
        for (a, b) in parts.iter().zip(parts.iter().skip(1)) {
            assert_eq!(a.range.end(), b.range.start());
        }
        let ages = parts.iter().map(|p| {
            (
                NOW - p.range.start(),
                NOW - p.range.end(),
                p.finest.map(|f| f.millis()),
            )
        });
        ages.collect()
    }

    #[test]
    fn ranges_are_cut_where_cloudwatch_keeps_less() {
        assert_eq!(cut(HOUR, 0, SECOND, MINUTE), [(HOUR, 0, Some(MINUTE))]);
        let two = cut(16 * DAY, 14 * DAY, MINUTE, MINUTE);
        assert_eq!(two.len(), 2);
        assert_eq!(two[0].2, Some(5 * MINUTE));
        // Within two hours before the border, never behind it.
        let early = 15 * DAY - two[0].1;
        assert!((HOUR..=2 * HOUR).contains(&early), "{early}");
        let fine: Vec<_> = cut(500 * DAY, 0, SECOND, SECOND)
            .iter()
            .map(|p| p.2)
            .collect();
        assert_eq!(
            fine,
            [
                None,
                Some(HOUR),
                Some(5 * MINUTE),
                Some(MINUTE),
                Some(SECOND)
            ]
        );
        let usual: Vec<_> = cut(500 * DAY, 0, 7 * DAY, MINUTE)
            .iter()
            .map(|p| p.2)
            .collect();
        assert_eq!(usual, [None, Some(HOUR), Some(5 * MINUTE), Some(MINUTE)]);
        // Buckets belong to one part, whatever their size.
        for grid in [7 * SECOND, 90 * SECOND, HOUR, DAY, 7 * DAY] {
            for interval in [SECOND, 30 * SECOND, MINUTE] {
                for part in cut(100 * DAY, 0, grid, interval) {
                    assert_eq!((NOW - part.0).rem_euclid(grid), 0);
                }
            }
        }
    }

    #[test]
    fn periods_are_those_that_are_kept() {
        let of = |interval, finest| period(step(interval), step(finest)).millis();
        assert_eq!(of(10 * SECOND, SECOND), 10 * SECOND);
        assert_eq!(of(10 * SECOND, MINUTE), MINUTE);
        assert_eq!(of(MINUTE, SECOND), MINUTE);
        assert_eq!(of(2 * MINUTE, 5 * MINUTE), 5 * MINUTE);
        assert_eq!(of(7 * MINUTE, 5 * MINUTE), 10 * MINUTE);
        assert_eq!(of(DAY, HOUR), DAY);
        assert!(is_period(step(30 * SECOND)) && is_period(step(420 * SECOND)));
        assert!(!is_period(step(90 * SECOND)) && !is_period(step(2 * SECOND)));
    }
}
