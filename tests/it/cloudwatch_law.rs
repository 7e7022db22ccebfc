//! The law against the scripted CloudWatch: whatever was requested, evicted or failed before, an
//! answer matches the samples; and what it costs.

use std::collections::BTreeMap;
use std::sync::Arc;

use heliostat::clock::Clock;

use crate::cloudwatch::{METHODS, Points, ask, lambda, query, read};
use crate::cloudwatch_store::{
    CloudWatchStore, DAY, HOUR, MINUTE, Metric, SECOND, Sample, Trouble, finest, statistic,
};
use crate::fuzz::number;
use crate::prometheus_api::Dice;
use crate::support::{Server, TestClock};

const NOW: i64 = 1_790_000_000_000;
const SETTLE: i64 = 15 * MINUTE;

/// The largest delay of samples.
const LATE: i64 = 10 * MINUTE;

/// Bucket sizes that are whole periods at every age, and others.
const WHOLE: [i64; 5] = [MINUTE, 5 * MINUTE, 30 * MINUTE, HOUR, DAY];
const ODD: [i64; 4] = [7 * SECOND, 90 * SECOND, 150 * SECOND, 7 * MINUTE];

struct World {
    clock: Arc<TestClock>,
    store: CloudWatchStore,
    metrics: Vec<Metric>,
    /// The time up to which samples exist.
    filled: i64,
}

impl World {
    async fn new(dice: &mut Dice) -> Self {
        let clock = TestClock::at(NOW);
        let store = CloudWatchStore::start(clock.clone()).await;
        let mut world = Self {
            metrics: (0..3).map(|n| lambda(&format!("f{n}"))).collect(),
            filled: NOW - 6 * HOUR,
            clock,
            store,
        };
        for metric in &world.metrics {
            for border in [15 * DAY, 63 * DAY, 455 * DAY] {
                let around = NOW - border - 5 * HOUR;
                let times = (0..400).map(|_| around + dice.roll(10 * HOUR));
                world.store.put_now(
                    metric,
                    times
                        .map(|t| (t, (t % 977) as f64 / 8.0))
                        .collect::<Vec<_>>(),
                );
            }
        }
        world.fill(dice);
        world
    }

    /// Adds what has happened up to now, some of which becomes visible only later.
    fn fill(&mut self, dice: &mut Dice) {
        let now = self.clock.now();
        for metric in &self.metrics {
            let mut samples = Vec::new();
            let mut t = self.filled;
            while t < now {
                t += 1 + dice.roll(70 * SECOND);
                let late = if dice.roll(5) == 0 {
                    dice.roll(LATE)
                } else {
                    0
                };
                samples.push(Sample {
                    time: t,
                    value: (t % 1009) as f64 / 16.0 - 20.0,
                    seen: t + late,
                });
            }
            self.store
                .put(metric, samples.into_iter().filter(|s| s.time < now));
        }
        self.filled = self.filled.max(now);
    }

    /// Returns the buckets of `size` that overlap `range`, of what is visible now.
    fn expected(
        &self,
        metric: &Metric,
        range: (i64, i64),
        size: i64,
        stat: &str,
    ) -> BTreeMap<i64, f64> {
        let (start, end) = (
            range.0.div_euclid(size) * size,
            (range.1 - 1).div_euclid(size) * size + size,
        );
        let mut buckets: BTreeMap<i64, Vec<f64>> = BTreeMap::new();
        for (t, v) in self.store.visible(metric, self.clock.now()) {
            let stamped = if size % MINUTE == 0 {
                t
            } else {
                t - t.rem_euclid(MINUTE)
            };
            if (start..end).contains(&stamped) {
                buckets
                    .entry(stamped - stamped.rem_euclid(size))
                    .or_default()
                    .push(v);
            }
        }
        buckets
            .into_iter()
            .map(|(t, v)| (t, statistic(stat, &v)))
            .collect()
    }
}

/// Fails unless `points` are the `whole` buckets, except for those that are not kept at that
/// resolution, and those after `exact_to`, which may be somewhat out of date.
fn check(
    what: &str,
    points: &Points,
    whole: &BTreeMap<i64, f64>,
    now: i64,
    size: i64,
    exact_to: i64,
) {
    let there: BTreeMap<i64, f64> = points.iter().copied().collect();
    assert_eq!(there.len(), points.len(), "{what}: a bucket is there twice");
    for (t, v) in &there {
        let near = |e: &f64| (e - v).abs() <= 1e-9 * e.abs().max(1.0);
        let right = whole.get(t).is_some_and(near);
        assert!(
            right || t + size > exact_to,
            "{what}: {v} at {t}, expected {:?}",
            whole.get(t)
        );
    }
    for (t, v) in whole {
        if !there.contains_key(t) && t + size <= exact_to {
            let soon = finest(now - t + 2 * HOUR + size);
            let fine = soon.is_some_and(|f| f <= size && size % f.max(MINUTE) == 0);
            let odd = size % MINUTE != 0 && now - t < 14 * DAY;
            assert!(!fine && !odd, "{what}: {v} at {t} is missing");
        }
    }
}

async fn history(seed: u64, refresh: &str) {
    let mut dice = Dice((seed as i64) << 32);
    let mut world = World::new(&mut dice).await;
    let name = format!("law-{seed}-{refresh}");
    let section = world.store.section(
        &name,
        &format!("refresh = {refresh:?}\nretries = 1\nraw_points_max = 1000000"),
    );
    let config = format!("[server]\nmax_points = 1000000\n[cache]\nmemory = \"400KiB\"\n{section}");
    let server = Server::start_at(&config, world.clock.clone()).await;
    let (mut asked, mut page) = (0, 100_800);
    for step in 0..60 {
        match dice.roll(8) {
            0 => world.clock.pass(dice.roll(20 * MINUTE) as u64),
            1 => world.clock.pass(dice.roll(90 * SECOND) as u64),
            2 => world.clock.step(dice.roll(2 * MINUTE) - MINUTE),
            3 => {
                let troubles = [
                    Trouble::Failed,
                    Trouble::InternalError,
                    Trouble::Partial,
                    Trouble::Denied,
                    Trouble::Missing,
                ];
                let trouble = troubles[dice.roll(5) as usize];
                world.store.trouble([Some(trouble)]);
            }
            4 => {
                page = [7, 100, 100_800][dice.roll(3) as usize];
                world.store.page(page);
            }
            _ => {}
        }
        world.fill(&mut dice);
        let now = world.clock.now();
        let metric = world.metrics[dice.roll(3) as usize].clone();
        let (method, stat) = METHODS[dice.roll(METHODS.len() as i64) as usize];
        let old = [0, 0, 0, 15 * DAY, 63 * DAY, 455 * DAY][dice.roll(6) as usize];
        let percentile = stat.starts_with('p');
        let size = match old == 0 && !percentile && dice.roll(3) == 0 {
            true => ODD[dice.roll(4) as usize],
            false => WHOLE[dice.roll(5) as usize],
        };
        let end = now - old
            + if old > 0 {
                4 * HOUR - dice.roll(4 * HOUR)
            } else {
                -dice.roll(2 * HOUR) * dice.roll(2)
            };
        let range = (end - 1 - dice.roll(5 * HOUR), end);
        let before = world.store.metered().0;
        let reply = ask(&server, &query(&metric, range, Some((method, size)))).await;
        let what = format!("seed {seed}, step {step}: {method} of {size} in {range:?} at {now}");
        if reply.status != 200
            || reply.text.contains("\"isPartial\":true")
            || reply.header("cache-status").contains("detail")
        {
            continue;
        }
        asked += 1;
        let exact_to = if refresh == "0s" {
            i64::MAX
        } else {
            now - SETTLE - 3 * MINUTE
        };
        let whole = world.expected(&metric, range, size, stat);
        check(&what, &read(&reply), &whole, now, size, exact_to);
        // One unit for each age that the range touches, and one more if that was retried; pages are
        // separate calls.
        let units = world.store.metered().0 - before;
        assert!(page < 100_800 || units <= 2 * 3, "{what}: {units} units");
    }
    assert!(asked > 20, "{asked}");
}

/// Each takes some seconds in a debug build.
fn seeds() -> std::ops::Range<u64> {
    1..number("HELIOSTAT_LAW_SEEDS", 4)
}

#[tokio::test]
async fn answers_are_what_the_samples_make_whatever_happened_before() {
    for seed in seeds() {
        history(seed, "0s").await;
        history(seed, "2m").await;
    }
}
