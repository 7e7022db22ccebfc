//! Refreshes what is polled at a steady pace a moment before the next poll, so that the poll is a
//! hit (`refresh_ahead`).
//!
//! It makes no calls that would not be made anyway, one per poll; after a poll that did not come it
//! stops.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::Method;
use moka::sync::Cache;

use super::fetch::Source;
use super::lane::{Lane, LaneKey};
use super::passthrough::PassthroughRequest;
use super::whole::{CachePolicy, WholeIdentity, WholeKey, WholeQuery};
use super::{Engine, Evaluation, RequestContext};
use crate::model::{Millis, TimeRange};
use crate::telemetry::trace::Trace;
use crate::upstream::{CallContext, Upstream};

/// Most lanes and instant queries whose pace is known.
const MOST: u64 = 20_000;

/// The shortest time before a poll is due at which its refresh begins.
const LEAD: Duration = Duration::from_millis(200);

/// The interval at which a refresh without a spare call tries again.
const AGAIN: Duration = Duration::from_millis(20);

/// The paces that count: shorter ones are hits anyway, and longer ones are not worth a waiting
/// task.
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(3600);

/// Two intervals that differ by at most one part in this many are a steady pace.
const TOLERANCE: u32 = 5;

/// The request that is polled.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) enum Polled {
    /// A lane.
    Lane(LaneKey),
    /// An instant query, whatever its evaluation time.
    Instant(WholeKey),
}

/// Polls that are remembered: of four clients two each, at phases of their own.
const REMEMBERED: usize = 8;

/// The pace of the polls of something, of one client or of several that poll it at one pace.
#[derive(Default)]
struct Pace {
    /// The last polls, oldest first.
    polls: VecDeque<Duration>,
    /// Set once it has been refreshed for the next poll.
    refreshed: bool,
}

impl Pace {
    /// Takes in a poll at `now`, and returns the interval if it is at least the third at a steady
    /// pace: two polls lie one interval, and two of them, before it. What other clients polled in between
    /// does not matter.
    fn learn(&mut self, now: Duration) -> Option<Duration> {
        let intervals = self.polls.iter().rev().filter_map(|last| {
            let interval = now.checked_sub(*last)?;
            let steady = |first: &&Duration| {
                let before = last.saturating_sub(**first);
                before.abs_diff(interval) <= interval / TOLERANCE
            };
            let first = self.polls.iter().find(steady)?;
            // A poll that is a little early or late does not move the next one by as much.
            Some(now.saturating_sub(*first) / 2)
        });
        let interval = { intervals }.find(|interval| (SHORTEST..=LONGEST).contains(interval));
        // Several at once are one.
        if self.last().is_none_or(|last| now >= last + SHORTEST / 2) {
            if self.polls.len() == REMEMBERED {
                self.polls.pop_front();
            }
            self.polls.push_back(now);
        }
        interval
    }

    fn last(&self) -> Option<Duration> {
        self.polls.back().copied()
    }

    /// Returns whether the poll that was expected at `due` has come.
    fn has_come(&self, due: Duration, interval: Duration) -> bool {
        self.last()
            .is_some_and(|last| last + interval / TOLERANCE >= due)
    }
}

/// The paces at which lanes and instant queries are polled.
pub(super) struct Paces {
    known: Cache<Polled, Arc<Mutex<Pace>>>,
    /// Number of refreshes that were planned.
    planned: AtomicU32,
}

impl Default for Paces {
    fn default() -> Self {
        Self {
            known: Cache::new(MOST),
            planned: AtomicU32::new(0),
        }
    }
}

impl Paces {
    /// Returns how long before a poll its refresh begins, where it takes `lead`: between that and twice
    /// as long, so that what is polled at one moment is not refreshed at one.
    fn begin(&self, lead: Duration) -> Duration {
        let planned = self.planned.fetch_add(1, Ordering::Relaxed);
        // Multiples of the golden ratio fill an interval evenly, however many there are.
        let part = (f64::from(planned) * 0.618_033_988_75).fract();
        lead + lead.mul_f64(part)
    }
}

fn lock(pace: &Mutex<Pace>) -> MutexGuard<'_, Pace> {
    // Fields are written one by one, and each is sound by itself.
    pace.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Engine {
    /// Takes in a poll of `range` of `lane`, which is `fresh` or not.
    pub(super) fn lane_polled(
        self: &Arc<Self>,
        lane: &Lane,
        range: TimeRange,
        source: Source,
        fresh: bool,
        context: &RequestContext,
    ) {
        let settle = lane.freshness().settle;
        if range.end() <= context.wall.saturating_sub(settle) {
            return;
        }
        let key = Polled::Lane(lane.key.clone());
        let (lane, grid) = (lane.clone(), lane.grid());
        self.polled(
            key,
            &lane.upstream.clone(),
            fresh,
            context,
            move |engine, due| {
                let later = due.later;
                let range = TimeRange::clamped(range.start(), range.end().saturating_add(later));
                let range = range.aligned(grid);
                let (lane, context) = (lane.clone(), due.context);
                (engine.fresh(&lane, &range, &context).is_none()).then(|| {
                    let engine = engine.clone();
                    let call = async move {
                        let planning = context.span("plan");
                        let view = engine.view(&lane, range, source, &context, planning);
                        view.await.is_ok()
                    };
                    Box::pin(call) as RefreshFuture
                })
            },
        );
    }

    /// Takes in `request`, whose answer is `fresh` or not, if it is an instant query for its newest
    /// evaluation time.
    pub(super) fn instant_polled(
        self: &Arc<Self>,
        upstream: &Arc<Upstream>,
        method: &Method,
        request: &PassthroughRequest,
        policy: &CachePolicy,
        fresh: bool,
        context: &RequestContext,
    ) {
        let CachePolicy::AtTime { reads, .. } = *policy else {
            return;
        };
        let Some(newest) = request.newest(upstream, policy) else {
            return;
        };
        let (of, method, request) = (upstream.clone(), method.clone(), request.clone());
        let key = Polled::Instant(newest);
        self.polled(key, upstream, fresh, context, move |engine, due| {
            let now = Some(due.context.wall);
            let Evaluation { time, newest } = engine.evaluation(&of, now, &due.context)?;
            let request = request.at(time);
            let key = WholeIdentity::new(&of, WholeQuery::Response(request.clone()));
            if engine.fresh_whole(&of, &key, &due.context).is_some() {
                return None;
            }
            let policy = CachePolicy::AtTime {
                reads,
                time,
                newest,
            };
            let (engine, context) = (engine.clone(), due.context);
            // No time is evaluated before it has come.
            let early = time.saturating_sub(engine.clock.now()).max(0);
            let early = Duration::from_millis(u64::try_from(early).unwrap_or(0));
            Some(Box::pin(async move {
                tokio::time::sleep(early).await;
                let answer = engine.fetch_response(&of, method, request, policy, &context);
                answer.await.is_ok()
            }))
        });
    }

    /// Takes in a poll of `key`, and if the pace is steady, has `refresh` make it fresh a moment
    /// before the next one. `refresh` returns nothing if it will be fresh then anyway. Of the polls that one
    /// fetch answers only the first counts: the others, which find it `fresh`, need none of their own.
    pub(super) fn polled(
        self: &Arc<Self>,
        key: Polled,
        upstream: &Arc<Upstream>,
        fresh: bool,
        context: &RequestContext,
        refresh: impl FnOnce(&Arc<Self>, Due) -> Option<RefreshFuture> + Send + 'static,
    ) {
        if !upstream.reading.refresh_ahead || context.max_age.is_some() {
            return;
        }
        let pace = self.memory.paces.known.get_with(key, Arc::default);
        let interval = {
            let mut pace = lock(&pace);
            let refreshed = std::mem::take(&mut pace.refreshed);
            if refreshed {
                upstream.metrics.refreshed_ahead("used");
            } else if fresh {
                return;
            }
            pace.learn(context.arrived)
        };
        let Some(interval) = interval else {
            return;
        };
        let (engine, upstream) = (self.clone(), upstream.clone());
        let due = context.arrived + interval;
        let later = Millis::try_from(interval.as_millis()).unwrap_or(0);
        let wall = context.wall.saturating_add(later);
        tokio::spawn(async move {
            let usual = upstream.client.usual();
            let lead = LEAD.max(usual + usual / 2 + LEAD / 4);
            let lead = engine.memory.paces.begin(lead).min(interval / 2);
            tokio::time::sleep(interval - lead).await;
            let now = engine.clock.monotonic();
            // The poll has come already, or time has not passed as the runtime's clock says.
            if lock(&pace).has_come(due, interval) || now + 2 * lead < due || now > due {
                return;
            }
            let deadline = tokio::time::Instant::now() + interval;
            let context = RequestContext {
                arrived: due,
                wall,
                deadline,
                call: CallContext::new(None, deadline, Trace::default()),
                encoding: crate::wire::encoding::Encoding::Identity,
                max_age: None,
                level_wait: None,
            };
            let Some(call) = refresh(&engine, Due { context, later }) else {
                return;
            };
            // Others that are refreshed at this moment leave room for it soon.
            let mut patience = lead.saturating_sub(usual);
            while !upstream.client.has_spare() {
                if patience.is_zero() {
                    upstream.metrics.refreshed_ahead("skipped");
                    return;
                }
                patience = patience.saturating_sub(AGAIN);
                tokio::time::sleep(AGAIN).await;
                if lock(&pace).has_come(due, interval) {
                    return;
                }
            }
            if !call.await {
                return;
            }
            {
                let mut pace = lock(&pace);
                if pace.has_come(due, interval) {
                    // The poll came while it was refreshed, and shared the call.
                    upstream.metrics.refreshed_ahead("used");
                    return;
                }
                pace.refreshed = true;
            }
            tokio::time::sleep(lead + interval / TOLERANCE).await;
            let mut pace = lock(&pace);
            if !pace.has_come(due, interval) && std::mem::take(&mut pace.refreshed) {
                upstream.metrics.refreshed_ahead("unused");
            }
        });
    }
}

/// The poll that is expected next.
pub(super) struct Due {
    /// The context of the next poll.
    pub(super) context: RequestContext,
    /// Shift of this poll's range against the last one's, in milliseconds.
    pub(super) later: Millis,
}

/// Makes something fresh; returns whether it did.
pub(super) type RefreshFuture = std::pin::Pin<Box<dyn Future<Output = bool> + Send>>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refreshes_for_one_moment_begin_apart() {
        let paces = Paces::default();
        let lead = Duration::from_millis(600);
        let mut begun: Vec<_> = (0..12).map(|_| paces.begin(lead).as_millis()).collect();
        begun.sort_unstable();
        assert!(begun.iter().all(|at| (600..1200).contains(at)), "{begun:?}");
        let apart = begun.windows(2).map(|pair| pair[1] - pair[0]);
        assert!(apart.max() < Some(120), "{begun:?}");
    }

    #[test]
    fn three_times_at_nearly_the_same_distance_are_a_pace() {
        let steady = |times: &[u64]| {
            let mut pace = Pace::default();
            let asked = times.iter().map(|s| pace.learn(Duration::from_secs(*s)));
            asked.last().flatten().map(|interval| interval.as_secs())
        };
        assert_eq!(steady(&[100]), None);
        assert_eq!(steady(&[100, 110]), None);
        assert_eq!(steady(&[100, 110, 120]), Some(10));
        assert_eq!(steady(&[100, 110, 122]), Some(11));
        assert_eq!(steady(&[100, 110, 123]), None);
        assert_eq!(steady(&[100, 110, 123, 136]), Some(13));
        assert_eq!(steady(&[100, 100, 100]), None, "three at once");
        assert_eq!(steady(&[100, 103, 110]), None);
        assert_eq!(steady(&[100, 103, 110, 113]), None);
        assert_eq!(
            steady(&[100, 103, 110, 113, 120]),
            Some(10),
            "the first of two"
        );
        assert_eq!(
            steady(&[100, 103, 110, 113, 120, 123]),
            Some(10),
            "the second"
        );
        assert_eq!(steady(&[100, 110, 114, 120]), Some(10), "and a stray one");
        assert_eq!(steady(&[100, 5000, 9900]), None, "longer than an hour");
    }
}
