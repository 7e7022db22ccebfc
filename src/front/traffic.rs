//! Traffic of the last quarter of an hour: counted as it happens, and kept in steps of five
//! seconds, in memory that depends only on the number of upstreams.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use serde_json::Value;

use crate::engine::Upstream;
use crate::model::Millis;
use crate::telemetry::metrics::UpstreamTotals;

/// The length of a step.
pub const STEP: Duration = Duration::from_secs(5);

/// Steps that are kept: 15 minutes.
const STEPS: usize = 180;

/// The APIs whose requests are counted, by their names in metrics.
const APIS: [&str; 3] = ["mirror", "prometheus", "admin"];

/// Four buckets for each doubling of a time, from 1 µs to about 34 s.
const BUCKETS: usize = 100;

/// Counts requests, and remembers the last steps.
pub(super) struct Traffic {
    live: [Live; APIS.len()],
    kept: Mutex<Kept>,
}

/// The counters of an API since the start.
struct Live {
    errors: AtomicU64,
    times: [AtomicU64; BUCKETS],
}

/// Its counters at a moment.
#[derive(Clone, Copy)]
struct Counted {
    errors: u64,
    times: [u64; BUCKETS],
}

struct Kept {
    /// The report of the last step as JSON, once somebody has asked for it: whoever asks in the same step
    /// is answered the same bytes.
    rendered: Option<Bytes>,
    times: VecDeque<Millis>,
    apis: [(Counted, VecDeque<ApiStep>); APIS.len()],
    upstreams: HashMap<String, (UpstreamTotals, VecDeque<UpstreamStep>)>,
}

/// One step of an API.
#[derive(Clone, Copy, Default)]
struct ApiStep {
    requests: u32,
    errors: u32,
    /// Milliseconds; not a number without requests.
    p50: f32,
    p99: f32,
}

/// One step of an upstream.
#[derive(Clone, Copy, Default)]
struct UpstreamStep {
    hits: u32,
    stale: u32,
    partial: u32,
    misses: u32,
    points_from_cache: u32,
    points_from_upstream: u32,
    calls: u32,
    failed: u32,
    refused: u32,
    running: u32,
    waiting: u32,
}

/// The steps that were kept, the oldest first.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct TrafficReport {
    step_millis: u64,
    /// Ends of the steps, in milliseconds of Unix time.
    times: Vec<Millis>,
    memory: MemoryReport,
    /// The second levels of the cache, as `GET /admin/v1/cache` tells them.
    levels: Vec<Value>,
    apis: Vec<ApiReport>,
    upstreams: Vec<UpstreamTraffic>,
}

/// The cache and its bound.
#[derive(Serialize)]
pub(super) struct MemoryReport {
    pub(super) bytes: u64,
    pub(super) bound: u64,
}

#[derive(Serialize)]
struct ApiReport {
    api: &'static str,
    requests: Vec<u32>,
    errors: Vec<u32>,
    /// Milliseconds; `null` without requests.
    p50: Vec<Option<f32>>,
    p99: Vec<Option<f32>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct UpstreamTraffic {
    upstream: String,
    hit: Vec<u32>,
    stale: Vec<u32>,
    partial: Vec<u32>,
    miss: Vec<u32>,
    points_from_cache: Vec<u32>,
    points_from_upstream: Vec<u32>,
    calls: Vec<u32>,
    failed: Vec<u32>,
    refused: Vec<u32>,
    running: Vec<u32>,
    waiting: Vec<u32>,
    total: TotalReport,
}

/// The counters since the upstream's settings took effect.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct TotalReport {
    hit: u64,
    stale: u64,
    partial: u64,
    miss: u64,
    points_from_cache: u64,
    points_from_upstream: u64,
    calls: u64,
    failed: u64,
    refused: u64,
}

impl Default for Counted {
    fn default() -> Self {
        Self {
            errors: 0,
            times: [0; BUCKETS],
        }
    }
}

impl Default for Live {
    fn default() -> Self {
        Self {
            errors: AtomicU64::new(0),
            times: [const { AtomicU64::new(0) }; BUCKETS],
        }
    }
}

impl Default for Traffic {
    fn default() -> Self {
        let kept = Kept {
            rendered: None,
            times: VecDeque::with_capacity(STEPS),
            apis: Default::default(),
            upstreams: HashMap::new(),
        };
        Self {
            live: Default::default(),
            kept: Mutex::new(kept),
        }
    }
}

/// Returns the bucket of a time in microseconds.
fn bucket(micros: u64) -> usize {
    let micros = micros.clamp(1, 1 << 40);
    let doublings = micros.ilog2();
    let quarter = ((micros << 2) >> doublings) & 3;
    (doublings as usize * 4 + quarter as usize).min(BUCKETS - 1)
}

/// Returns the start of a bucket, in microseconds.
fn begins(bucket: usize) -> f64 {
    let (doublings, quarter) = (bucket / 4, bucket % 4);
    2f64.powi(doublings as i32) * (1.0 + quarter as f64 / 4.0)
}

/// Returns the time, in milliseconds, that the share `q` of `times` does not exceed, interpolated
/// within a bucket.
fn quantile(times: &[u64; BUCKETS], q: f64) -> f32 {
    let all: u64 = times.iter().sum();
    let wanted = all as f64 * q;
    let mut before = 0.0;
    for (bucket, n) in times.iter().enumerate() {
        let n = *n as f64;
        if n > 0.0 && before + n >= wanted {
            let (low, high) = (begins(bucket), begins(bucket + 1));
            return ((low + (high - low) * (wanted - before) / n) / 1000.0) as f32;
        }
        before += n;
    }
    f32::NAN
}

/// Adds `step` at the end, in the place of the oldest if there is no more room.
fn push<T>(steps: &mut VecDeque<T>, step: T) {
    if steps.len() >= STEPS {
        steps.pop_front();
    }
    steps.push_back(step);
}

/// Returns the increase from `before` to `now`; all of `now` where counting has begun anew.
fn more(now: u64, before: u64) -> u32 {
    let more = now.checked_sub(before).unwrap_or(now);
    u32::try_from(more).unwrap_or(u32::MAX)
}

impl Traffic {
    /// Counts a request to `api`, by its name in metrics, that was answered with `status`.
    pub(super) fn count(&self, api: &str, status: u16, took: Duration) {
        let at = APIS.iter().position(|known| *known == api);
        let Some(live) = at.and_then(|at| self.live.get(at)) else {
            return;
        };
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        if let Some(times) = live.times.get(bucket(micros)) {
            times.fetch_add(1, Ordering::Relaxed);
        }
        if status >= 500 {
            live.errors.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Ends a step at `now`.
    pub(super) fn step(&self, now: Millis, upstreams: &[Arc<Upstream>]) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.rendered = None;
        push(&mut kept.times, now);
        for (live, (before, steps)) in self.live.iter().zip(&mut kept.apis) {
            let counted = live.counted();
            push(steps, counted.since(before));
            *before = counted;
        }
        let names = |name: &String| upstreams.iter().any(|u| u.name() == name);
        kept.upstreams.retain(|name, _| names(name));
        for upstream in upstreams {
            let totals = upstream.metrics.totals();
            let limiter = upstream.client.state(now).limiter;
            let name = upstream.name().to_owned();
            let (before, steps) = kept.upstreams.entry(name).or_default();
            let small = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
            push(
                steps,
                UpstreamStep {
                    hits: more(totals.hits, before.hits),
                    stale: more(totals.stale, before.stale),
                    partial: more(totals.partial, before.partial),
                    misses: more(totals.misses, before.misses),
                    points_from_cache: more(totals.points_from_cache, before.points_from_cache),
                    points_from_upstream: more(
                        totals.points_from_upstream,
                        before.points_from_upstream,
                    ),
                    calls: more(totals.calls, before.calls),
                    failed: more(totals.failed, before.failed),
                    refused: more(totals.refused, before.refused),
                    running: small(limiter.running),
                    waiting: small(limiter.waiting),
                },
            );
            *before = totals;
        }
    }

    /// Returns the traffic as JSON, as it is at the first request of a step, and when the step began, in
    /// milliseconds of Unix time.
    ///
    /// # Errors
    ///
    /// If it cannot be written as JSON.
    pub(super) fn rendered(
        &self,
        memory: MemoryReport,
        levels: impl FnOnce() -> Vec<Value>,
        upstreams: &[Arc<Upstream>],
    ) -> serde_json::Result<(Bytes, Millis)> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let begun = kept.times.back().copied().unwrap_or_default();
        if let Some(rendered) = &kept.rendered {
            return Ok((rendered.clone(), begun));
        }
        let rendered = Bytes::from(serde_json::to_vec(&kept.report(
            memory,
            levels(),
            upstreams,
        ))?);
        kept.rendered = Some(rendered.clone());
        Ok((rendered, begun))
    }
}

impl Kept {
    fn report(
        &self,
        memory: MemoryReport,
        levels: Vec<Value>,
        upstreams: &[Arc<Upstream>],
    ) -> TrafficReport {
        let length = self.times.len();
        let api = |(api, (_, steps)): (&&'static str, &(Counted, VecDeque<ApiStep>))| {
            let time = |time: f32| (!time.is_nan()).then_some(time);
            ApiReport {
                api,
                requests: steps.iter().map(|s| s.requests).collect(),
                errors: steps.iter().map(|s| s.errors).collect(),
                p50: steps.iter().map(|s| time(s.p50)).collect(),
                p99: steps.iter().map(|s| time(s.p99)).collect(),
            }
        };
        let upstream = |upstream: &Arc<Upstream>| {
            let steps = self.upstreams.get(upstream.name()).map(|(_, steps)| steps);
            let known = steps.map_or(0, VecDeque::len);
            // Before it existed, nothing happened.
            let line = |pick: fn(&UpstreamStep) -> u32| -> Vec<u32> {
                let none = std::iter::repeat_n(0, length.saturating_sub(known));
                none.chain(steps.into_iter().flatten().map(pick)).collect()
            };
            let total = upstream.metrics.totals();
            UpstreamTraffic {
                upstream: upstream.name().to_owned(),
                hit: line(|s| s.hits),
                stale: line(|s| s.stale),
                partial: line(|s| s.partial),
                miss: line(|s| s.misses),
                points_from_cache: line(|s| s.points_from_cache),
                points_from_upstream: line(|s| s.points_from_upstream),
                calls: line(|s| s.calls),
                failed: line(|s| s.failed),
                refused: line(|s| s.refused),
                running: line(|s| s.running),
                waiting: line(|s| s.waiting),
                total: TotalReport {
                    hit: total.hits,
                    stale: total.stale,
                    partial: total.partial,
                    miss: total.misses,
                    points_from_cache: total.points_from_cache,
                    points_from_upstream: total.points_from_upstream,
                    calls: total.calls,
                    failed: total.failed,
                    refused: total.refused,
                },
            }
        };
        TrafficReport {
            step_millis: STEP.as_millis() as u64,
            times: self.times.iter().copied().collect(),
            memory,
            levels,
            apis: APIS.iter().zip(&self.apis).map(api).collect(),
            upstreams: upstreams.iter().map(upstream).collect(),
        }
    }
}

impl Live {
    fn counted(&self) -> Counted {
        Counted {
            errors: self.errors.load(Ordering::Relaxed),
            times: self.times.each_ref().map(|n| n.load(Ordering::Relaxed)),
        }
    }
}

impl Counted {
    fn since(&self, before: &Self) -> ApiStep {
        let mut times = self.times;
        for (now, before) in times.iter_mut().zip(before.times) {
            *now = now.saturating_sub(before);
        }
        let requests: u64 = times.iter().sum();
        ApiStep {
            requests: more(requests, 0),
            errors: more(self.errors, before.errors),
            p50: quantile(&times, 0.5),
            p99: quantile(&times, 0.99),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(traffic: &Traffic) -> serde_json::Value {
        let memory = MemoryReport { bytes: 1, bound: 2 };
        serde_json::from_slice(&traffic.rendered(memory, Vec::new, &[]).unwrap().0).unwrap()
    }

    #[test]
    fn all_who_ask_in_one_step_share_the_same_bytes() {
        let traffic = Traffic::default();
        let ask = |bytes| {
            let memory = MemoryReport { bytes, bound: 9 };
            traffic.rendered(memory, Vec::new, &[]).unwrap()
        };
        let (first, begun) = ask(1);
        assert_eq!(begun, 0);
        assert_eq!(ask(2).0.as_ptr(), first.as_ptr());
        traffic.step(5000, &[]);
        let (second, begun) = ask(2);
        assert_eq!(begun, 5000);
        assert_ne!(second, first);
    }

    #[test]
    fn a_quarter_of_an_hour_is_kept_and_no_more() {
        let traffic = Traffic::default();
        for n in 0..STEPS as i64 + 7 {
            traffic.count(
                "mirror",
                if n % 2 == 0 { 200 } else { 502 },
                Duration::from_millis(3),
            );
            traffic.count("nobody", 200, Duration::ZERO);
            traffic.step(n * 5000, &[]);
        }
        let said = said(&traffic);
        assert_eq!(said["stepMillis"], 5000);
        let times = said["times"].as_array().unwrap();
        assert_eq!((times.len(), times[0].as_i64()), (STEPS, Some(7 * 5000)));
        let mirror = &said["apis"][0];
        assert_eq!(mirror["requests"].as_array().unwrap().len(), STEPS);
        assert!(
            mirror["requests"]
                .as_array()
                .unwrap()
                .iter()
                .all(|n| *n == 1)
        );
        assert_eq!(
            (&mirror["errors"][0], &mirror["errors"][1]),
            (&1.into(), &0.into())
        );
        assert!(said["apis"][1]["p50"][0].is_null());
        assert_eq!(said["memory"]["bound"], 2);
    }

    #[test]
    fn quantiles_are_within_a_quarter_of_a_doubling() {
        for micros in [1u64, 2, 3, 7, 50, 333, 1_000, 44_444, 9_999_999] {
            let at = bucket(micros);
            assert!(
                begins(at) <= micros as f64 && micros as f64 <= begins(at + 1),
                "{micros}"
            );
            let mut times = [0; BUCKETS];
            times[at] = 1000;
            for q in [0.5, 0.99] {
                let found = f64::from(quantile(&times, q)) * 1000.0;
                let off = (found / micros as f64 - 1.0).abs();
                assert!(off <= 0.25 || micros < 4, "{micros}: {found}");
            }
        }
        let mut times = [0; BUCKETS];
        times[bucket(100)] = 98;
        times[bucket(1_000_000)] = 2;
        assert!(quantile(&times, 0.5) < 0.2);
        assert!(quantile(&times, 0.99) > 900.0);
        assert!(quantile(&[0; BUCKETS], 0.5).is_nan());
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn counting_that_begins_anew_is_not_taken_for_less() {
        assert_eq!(
            (more(7, 5), more(5, 7), more(u64::MAX, 0)),
            (2, 5, u32::MAX)
        );
    }
}
