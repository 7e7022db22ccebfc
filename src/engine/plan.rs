//! The planner: decides which part of a range is cached and fresh, and which has to be fetched.
//! Pure.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use super::chunk::Segment;
use crate::model::{Freshness, Millis, RangeSet, Step, TimeRange};

/// Gaps between missing ranges that are shorter than this many cells are fetched too: a call costs
/// more than some points.
const JOIN_CELLS: u32 = 32;

/// The same where calls are billed: the points of four statistics that one call of CloudWatch
/// carries.
const METERED_JOIN_CELLS: u32 = 25_200;

/// Where calls are billed, a fetch begins at a multiple of this many cells.
const METERED_BLOCK_CELLS: u32 = 60;

/// Most ranges that one query fetches; beyond it the nearest are joined.
const MAX_RANGES: usize = 8;

/// The settings of the planner.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// The lifetimes of data.
    pub freshness: Freshness,
    /// The time that a fetch of data which is still coming in reaches into the future.
    pub ahead: Duration,
    /// The grid that missing ranges are extended to.
    pub grid: Step,
    /// The distance of neighbouring points.
    pub cell: Step,
    /// Set if calls are billed and points are not: then one call fetches as much as there is use
    /// for.
    pub metered: bool,
}

/// The moment of planning.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// Wall time.
    pub wall: Millis,
    /// Monotonic time.
    pub monotonic: Duration,
}

/// The state of the cache for a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// All of it, fresh.
    Hit,
    /// All of it, but some has to be fetched again.
    Stale,
    /// Some of it.
    Partial,
    /// Nothing.
    Miss,
}

impl Lookup {
    /// Returns its name in metrics, traces, explanations and `Cache-Status`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Stale => "stale",
            Self::Partial => "partial",
            Self::Miss => "miss",
        }
    }
}

impl fmt::Display for Lookup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The work to do for a range.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The state of the cache.
    pub lookup: Lookup,
    /// Ranges to fetch, ascending; they may reach beyond the range.
    pub missing: Vec<TimeRange>,
    /// The time up to which the range can be answered while the upstream fails, from expired data
    /// that is young enough. That is its end or, where the newest data has never been fetched, the
    /// end of a tail that reaches up to it; `None` if there is a hole.
    pub fallback: Option<Millis>,
    /// The age of the oldest part of that.
    pub oldest: Duration,
    /// Time for which the answer stays fresh if nothing is missing.
    pub ttl: Duration,
}

/// Returns the time for which all of `range` stays fresh, if it is, given the known segments in
/// order of time: the same result as [`plan`], with less work.
pub fn fresh<'a>(
    range: &TimeRange,
    coverage: impl Iterator<Item = &'a Segment>,
    policy: &Policy,
    now: &Now,
) -> Option<Duration> {
    let mut known_to = range.start();
    let mut ttl = Duration::MAX;
    for segment in coverage {
        if segment.range.end() <= range.start() {
            continue;
        }
        if known_to >= range.end() || segment.range.start() > known_to {
            break;
        }
        let age = now.monotonic.saturating_sub(segment.fetched);
        let left = lifetime(segment, policy).checked_sub(age);
        ttl = ttl.min(left.filter(|left| !left.is_zero())?);
        known_to = segment.range.end();
    }
    (known_to >= range.end()).then_some(ttl)
}

/// Plans `range`, which lies on the policy's grid, given what is known of it. Data that was
/// `brought` for this very request is fresh, whatever its age.
pub fn plan(
    range: &TimeRange,
    coverage: &[Segment],
    brought: &RangeSet,
    policy: &Policy,
    now: &Now,
) -> Plan {
    let Known {
        fresh,
        usable,
        known,
    } = classify(range, coverage, brought, policy, now);
    let missing = fresh.missing_from(*range);
    let lookup = if missing.is_empty() {
        Lookup::Hit
    } else if known.is_empty() {
        Lookup::Miss
    } else if known.covers(range) {
        Lookup::Stale
    } else {
        Lookup::Partial
    };
    let expired = |s: &&Segment| missing.intersects(&s.range);
    let age = |s: &Segment| now.monotonic.saturating_sub(s.fetched);
    let oldest = coverage.iter().filter(expired).map(age).max();
    let ttl = coverage
        .iter()
        .filter(|s| s.range.intersection(range).is_some())
        .map(|s| lifetime(s, policy).saturating_sub(age(s)))
        .min();
    let fallback = fallback(range, &missing, &usable, coverage);
    let missing = to_fetch(&missing, range, policy, now);
    Plan {
        lookup,
        missing,
        fallback,
        oldest: oldest.unwrap_or_default(),
        ttl: ttl.unwrap_or_default(),
    }
}

/// Returns the latest time up to which `range` can be answered, without a hole, with what is `usable`.
fn fallback(
    range: &TimeRange,
    missing: &RangeSet,
    usable: &RangeSet,
    coverage: &[Segment],
) -> Option<Millis> {
    // Data that did not exist yet before the failure may be missing at the end, and only there:
    // what comes before it must be a tail, fetched when it was the newest.
    let is_tail = |edge: Millis| {
        let before = of_range(coverage, &TimeRange::clamped(edge.saturating_sub(1), edge));
        edge >= range.end() || before.iter().any(|s| !s.settled)
    };
    let holes = missing.iter().map(|part| usable.missing_from(*part));
    let hole = holes.flat_map(|holes| holes.ranges().first().map(TimeRange::start));
    let hole = hole.min().unwrap_or(Millis::MAX);
    // A later fetch may have begun where the one before reached ahead of its moment.
    let mut edges = usable.ranges().iter().rev().map(TimeRange::end);
    edges.find(|edge| *edge <= hole && is_tail(*edge))
}

/// Returns the time after its fetch for which a segment is fresh.
pub(super) fn lifetime(segment: &Segment, policy: &Policy) -> Duration {
    if segment.settled {
        policy.freshness.history_ttl
    } else {
        policy.freshness.refresh
    }
}

/// The parts of a range that are known, by their freshness. Each contains the one before it in this
/// order: `fresh`, `usable`, `known`.
pub(super) struct Known {
    /// Young enough to be served without asking the upstream.
    pub(super) fresh: RangeSet,
    /// Young enough to be served expired while the upstream fails.
    pub(super) usable: RangeSet,
    /// Known at all.
    pub(super) known: RangeSet,
}

/// Returns the parts of `range` that are known, by their freshness.
pub(super) fn classify(
    range: &TimeRange,
    coverage: &[Segment],
    brought: &RangeSet,
    policy: &Policy,
    now: &Now,
) -> Known {
    let brought = brought.iter().filter_map(|b| b.intersection(range));
    let mut fresh: RangeSet = brought.collect();
    let (mut known, mut usable) = (fresh.clone(), fresh.clone());
    for segment in coverage {
        let Some(part) = segment.range.intersection(range) else {
            continue;
        };
        let age = now.monotonic.saturating_sub(segment.fetched);
        let lifetime = lifetime(segment, policy);
        known.insert(part);
        if age < lifetime {
            fresh.insert(part);
        }
        // Settled data does not go bad: its time to live only bounds how long it is trusted.
        if segment.settled {
            usable.insert(part);
        } else if age < lifetime.saturating_add(policy.freshness.max_stale) {
            // A fetch reaches into the future, and knows nothing of what came after it.
            let age = Millis::try_from(age.as_millis()).unwrap_or(Millis::MAX);
            let moment = now.wall.saturating_sub(age);
            usable.insert(TimeRange::clamped(
                part.start(),
                part.end().min(moment.max(part.start())),
            ));
        }
    }
    Known {
        fresh,
        usable,
        known,
    }
}

/// Returns the ranges to fetch for what is missing: on the grid, near ones joined, few, and
/// reaching into the future by the time to refresh where they touch data that is still coming in,
/// so that a sliding window does not miss again at each step.
fn to_fetch(missing: &RangeSet, range: &TimeRange, policy: &Policy, now: &Now) -> Vec<TimeRange> {
    let mut ranges: Vec<TimeRange> = missing.iter().map(|m| m.aligned(policy.grid)).collect();
    if let Some(last) = ranges.last_mut()
        && last.end() >= range.end()
        && last.end() > now.wall.saturating_sub(policy.freshness.settle)
    {
        let ahead = Millis::try_from(policy.ahead.as_millis()).unwrap_or(0);
        let ahead = policy.grid.ceil(now.wall.saturating_add(ahead));
        *last = TimeRange::clamped(last.start(), last.end().max(ahead));
    }
    if policy.metered {
        // A request that looks a little further back finds it there.
        let block = policy.cell.times(METERED_BLOCK_CELLS);
        if let Some(first) = ranges.first_mut() {
            *first = TimeRange::clamped(block.floor(first.start()), first.end());
        }
        if let Some(last) = ranges.last_mut()
            && last.end() > now.wall.saturating_sub(policy.freshness.settle)
        {
            *last = last.hull(&tail(policy, now));
        }
    }
    let join = match policy.metered {
        true => METERED_JOIN_CELLS,
        false => JOIN_CELLS,
    };
    let near = policy.cell.times(join).millis();
    let mut joined: Vec<TimeRange> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match joined.last_mut() {
            Some(last) if gap(last, &range) <= near => *last = last.hull(&range),
            _ => joined.push(range),
        }
    }
    fewer(joined, MAX_RANGES)
}

/// Returns those of `segments`, which are ascending and disjoint, that share times with `range`.
pub(super) fn of_range<'a>(segments: &'a [Segment], range: &TimeRange) -> &'a [Segment] {
    let from = segments.partition_point(|s| s.range.end() <= range.start());
    let to = segments.partition_point(|s| s.range.start() < range.end());
    segments.get(from..to).unwrap_or_default()
}

/// Returns `ranges`, ascending, with the nearest ones joined until there are at most `most`.
fn fewer(ranges: Vec<TimeRange>, most: usize) -> Vec<TimeRange> {
    let Some(surplus) = ranges.len().checked_sub(most).filter(|n| *n > 0) else {
        return ranges;
    };
    let gaps = ranges.iter().zip(ranges.iter().skip(1));
    let mut gaps: Vec<(Millis, usize)> =
        gaps.zip(1..).map(|((a, b), at)| (gap(a, b), at)).collect();
    gaps.sort_unstable();
    gaps.truncate(surplus);
    let closed: BTreeSet<usize> = gaps.into_iter().map(|(_, at)| at).collect();
    let mut joined: Vec<TimeRange> = Vec::with_capacity(most);
    for (at, range) in ranges.into_iter().enumerate() {
        match joined.last_mut() {
            Some(last) if closed.contains(&at) => *last = last.hull(&range),
            _ => joined.push(range),
        }
    }
    joined
}

/// Returns the time between `a` and `b`, which comes after it.
fn gap(a: &TimeRange, b: &TimeRange) -> Millis {
    b.start().saturating_sub(a.end())
}

/// Returns the range of all data that may still change, and of data fetched a while ago when it
/// could: fetched together, it also expires together.
fn tail(policy: &Policy, now: &Now) -> TimeRange {
    let millis = |d: Duration| Millis::try_from(d.as_millis()).unwrap_or(Millis::MAX / 8);
    let ahead = millis(policy.ahead);
    let behind = policy
        .freshness
        .settle
        .saturating_add(ahead.saturating_mul(2));
    let start = policy.grid.floor(now.wall.saturating_sub(behind));
    let end = policy.grid.ceil(now.wall.saturating_add(ahead));
    TimeRange::clamped(start.max(0), end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SETTLE: Millis = 120_000;

    fn range(start: i64, end: i64) -> TimeRange {
        TimeRange::new(start, end).unwrap()
    }

    fn policy(grid: i64) -> Policy {
        Policy {
            freshness: Freshness {
                settle: SETTLE,
                refresh: Duration::from_secs(10),
                recheck: Duration::ZERO,
                max_stale: Duration::from_secs(3600),
                stale_while_revalidate: Duration::ZERO,
                history_ttl: Duration::from_secs(7 * 86_400),
                metadata_ttl: Duration::from_secs(60),
            },
            ahead: Duration::from_secs(10),
            grid: Step::new(grid).unwrap(),
            cell: Step::new(grid).unwrap(),
            metered: false,
        }
    }

    fn segment(start: i64, end: i64, fetched: u64, settled: bool) -> Segment {
        Segment {
            range: range(start, end),
            fetched: Duration::from_secs(fetched),
            settled,
        }
    }

    /// The plan of a request for which nothing has been brought yet.
    fn plan(range: &TimeRange, coverage: &[Segment], policy: &Policy, now: &Now) -> Plan {
        super::plan(range, coverage, &RangeSet::new(), policy, now)
    }

    fn at(wall: i64, monotonic: u64) -> Now {
        Now {
            wall,
            monotonic: Duration::from_secs(monotonic),
        }
    }

    #[test]
    fn a_full_hit_refreshes_an_expired_tail_and_only_it() {
        let coverage = [
            segment(0, 900_000, 100, true),
            segment(900_000, 1_020_000, 100, false),
        ];
        let window = range(0, 1_020_000);
        let fresh = plan(&window, &coverage, &policy(1000), &at(1_005_000, 105));
        assert_eq!((fresh.lookup, fresh.missing.len()), (Lookup::Hit, 0));
        assert_eq!(fresh.ttl, Duration::from_secs(5));
        let expired = plan(&window, &coverage, &policy(1000), &at(1_010_000, 110));
        assert_eq!(expired.lookup, Lookup::Stale);
        assert_eq!(expired.missing, [range(900_000, 1_020_000)]);
        // It was fetched at 1,000 s and reaches ahead of that.
        assert_eq!(expired.fallback, Some(1_000_000));
        let old = plan(&window, &coverage, &policy(1000), &at(1_010_000, 4000));
        assert_eq!(old.fallback, None);
    }

    #[test]
    fn a_fetch_at_the_edge_reaches_a_refresh_ahead() {
        let edge = plan(&range(0, 1_000_500), &[], &policy(1), &at(1_000_500, 1));
        assert_eq!(edge.missing, [range(0, 1_010_500)]);
        assert_eq!(edge.lookup, Lookup::Miss);
        let past = plan(&range(0, 500_000), &[], &policy(1), &at(1_000_500, 1));
        assert_eq!(past.missing, [range(0, 500_000)]);
    }

    #[test]
    fn known_empty_is_known_and_settled_data_ends_with_its_time_to_live() {
        let coverage = [segment(0, 1000, 0, true)];
        let week = 7 * 86_400;
        let kept = plan(
            &range(0, 1000),
            &coverage,
            &policy(1000),
            &at(10_000_000, week - 1),
        );
        assert_eq!(kept.lookup, Lookup::Hit);
        let ended = plan(
            &range(0, 1000),
            &coverage,
            &policy(1000),
            &at(10_000_000, week),
        );
        assert_eq!(ended.missing, [range(0, 1000)]);
        assert_eq!(ended.fallback, Some(1000));
    }

    #[test]
    fn what_was_brought_for_this_request_is_fresh_even_without_a_refresh_time() {
        let mut policy = policy(1000);
        policy.freshness.refresh = Duration::ZERO;
        let coverage = [segment(0, 1000, 50, false)];
        let window = range(0, 1000);
        let now = at(1000, 50);
        assert_eq!(
            plan(&window, &coverage, &policy, &now).lookup,
            Lookup::Stale
        );
        let brought = RangeSet::from(window);
        let lookup = super::plan(&window, &coverage, &brought, &policy, &now).lookup;
        assert_eq!(lookup, Lookup::Hit);
    }

    #[test]
    fn while_the_upstream_fails_an_answer_may_end_early_but_has_no_hole() {
        let known = [
            segment(0, 1_000_000, 100, true),
            segment(1_000_000, 1_100_000, 100, false),
        ];
        let fallback = |start, end, known: &[Segment]| {
            plan(
                &range(start, end),
                known,
                &policy(1000),
                &at(1_160_000, 200),
            )
            .fallback
        };
        // What is known was fetched at 1,060 s.
        assert_eq!(fallback(0, 1_160_000, &known), Some(1_060_000));
        assert_eq!(fallback(0, 1_050_000, &known), Some(1_050_000));
        assert_eq!(fallback(1_070_000, 1_160_000, &known), None);
        assert_eq!(fallback(1_120_000, 1_160_000, &known), None);
        assert_eq!(
            fallback(0, 1_010_000, &known[..1]),
            None,
            "history with a hole"
        );
        let hole = [known[0], segment(1_050_000, 1_100_000, 100, false)];
        assert_eq!(fallback(0, 1_160_000, &hole), None);
        // What was fetched at 1,150 s begins where the fetch before it ends, not at that one's moment.
        let beyond = segment(1_100_000, 1_200_000, 190, false);
        assert_eq!(
            fallback(0, 1_160_000, &[known[0], known[1], beyond]),
            Some(1_060_000)
        );
    }

    #[test]
    fn near_gaps_are_fetched_along_and_ranges_are_few() {
        let cell = 1000;
        let cut = |starts: &[i64], len: i64| -> Vec<Segment> {
            starts
                .iter()
                .map(|s| segment(*s, s + len, 0, true))
                .collect()
        };
        let near = plan(
            &range(0, 100_000),
            &cut(&[10_000, 30_000], 5000),
            &policy(cell),
            &at(1 << 40, 1),
        );
        assert_eq!(near.missing, [range(0, 100_000)]);
        let far: Vec<i64> = (0..20).map(|i| 50_000 + i * 200_000).collect();
        let many = plan(
            &range(0, 4_000_000),
            &cut(&far, 100_000),
            &policy(cell),
            &at(1 << 40, 1),
        );
        assert_eq!(many.missing.len(), MAX_RANGES);
    }

    proptest! {
        #[test]
        fn what_is_not_fetched_is_known_and_fresh(
            grid in prop::sample::select(vec![1i64, 7, 1000, 60_000]),
            start in 0i64..5_000, cells in 1i64..3_000,
            parts in prop::collection::vec((0i64..8_000, 1i64..2_000, 0u64..400_000, any::<bool>()), 0..20),
            wall in 0i64..500_000_000, monotonic in 0u64..700_000,
        ) {
            let policy = policy(grid);
            let window = range(start * grid, (start + cells) * grid);
            // Disjoint segments, as a chunk has them.
            let mut coverage = Vec::new();
            let mut taken = RangeSet::new();
            for (from, len, fetched, settled) in parts {
                for part in taken.missing_from(range(from * grid, (from + len) * grid)).iter() {
                    coverage.push(Segment { range: *part, fetched: Duration::from_secs(fetched), settled });
                }
                taken.insert(range(from * grid, (from + len) * grid));
            }
            let now = at(wall, monotonic);
            let plan = plan(&window, &coverage, &policy, &now);
            let mut cached = RangeSet::from(window);
            for missing in &plan.missing {
                prop_assert_eq!(missing.aligned(policy.grid), *missing);
                cached.remove(missing);
            }
            prop_assert!(plan.missing.len() <= MAX_RANGES);
            for pair in plan.missing.windows(2) {
                prop_assert!(pair[0].end() < pair[1].start());
            }
            // What is answered from the cache is known, and fresh or settled within its time.
            for cached in cached.iter() {
                for segment in coverage.iter().filter(|s| s.range.intersection(cached).is_some()) {
                    let age = now.monotonic.saturating_sub(segment.fetched).as_secs();
                    let lifetime = if segment.settled { 7 * 86_400 } else { 10 };
                    prop_assert!(age < lifetime);
                }
                prop_assert!(taken.covers(cached));
            }
            prop_assert_eq!(plan.lookup == Lookup::Hit, plan.missing.is_empty());
            // The short way says the same.
            coverage.sort_by_key(|s| s.range.start());
            let ttl = fresh(&window, coverage.iter(), &policy, &now);
            prop_assert_eq!(ttl, plan.missing.is_empty().then_some(plan.ttl));
        }
    }
}
