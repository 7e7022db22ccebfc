//! Refreshes what is polled at a steady pace a moment before the next poll, so that the poll is a
//! hit (`refresh_ahead`).
//!
//! It makes no calls that would not be made anyway, one per poll; after a poll that did not come it
//! stops. A refresh that was planned under a configuration that has been replaced is made under the
//! current one, if that has the same data. What is due at one moment is refreshed one after the
//! other, by at most half of what the upstream's limits allow: so the more there is, the earlier it
//! begins.

mod pace;
mod planned;
mod starts;

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::Method;
use moka::sync::Cache;

use self::pace::{Pace, counts, tolerance};
use self::planned::Planned;
use self::starts::Starts;
use super::fetch::Source;
use super::lane::{Lane, LaneKey};
use super::passthrough::PassthroughRequest;
use super::whole::{CachePolicy, WholeIdentity, WholeKey, WholeQuery};
use super::{Engine, Evaluation, RequestContext};
use crate::model::{Millis, TimeRange};
use crate::telemetry::trace::Trace;
use crate::upstream::{CallContext, Upstream};

/// The share of the cache for the paces of lanes and instant queries, and for the refreshes that are planned, one
/// part in so many; and the most bytes: about 20,000 usual ones.
const SHARE: u64 = 16;
const MOST: u64 = 32 << 20;

/// The bytes of a pace, and what the table has for it.
const PACE: usize = 256;

/// The shortest time before a poll is due at which its refresh begins.
const LEAD: Duration = Duration::from_millis(200);

/// The interval at which a refresh without a spare call tries again.
const AGAIN: Duration = Duration::from_millis(20);

/// The request that is polled.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) enum Polled {
    /// A lane.
    Lane(LaneKey),
    /// An instant query, whatever its evaluation time.
    Instant(WholeKey),
}

/// A poll.
pub(super) struct Poll {
    /// The lane or query that is polled.
    key: Polled,
    /// Time for which its data is served.
    refresh: Duration,
    /// Time for which what the cache has is fresh, if it is.
    left: Option<Duration>,
}

/// The paces at which lanes and instant queries are polled, and the refreshes that are planned.
pub(super) struct Paces {
    known: Cache<Polled, Arc<Mutex<Pace>>>,
    starts: Starts,
    planned: Arc<Planned>,
}

impl Paces {
    /// Returns a memory of `bytes`, of which a few are used.
    pub(super) fn new(bytes: u64) -> Self {
        let half = (bytes / SHARE).min(MOST) / 2;
        Self {
            known: Cache::builder().max_capacity(half).weigher(weigh).build(),
            starts: Starts::default(),
            planned: Planned::new(half),
        }
    }

    /// Returns the most bytes that it holds.
    pub(super) fn most(&self) -> u64 {
        2 * self.known.policy().max_capacity().unwrap_or(0)
    }

    /// Returns the bytes that it holds.
    pub(super) fn weight(&self) -> u64 {
        self.known.run_pending_tasks();
        self.known.weighted_size() + self.planned.bytes()
    }
}

fn weigh(key: &Polled, _: &Arc<Mutex<Pace>>) -> u32 {
    u32::try_from(size_of::<Polled>() + PACE + key.heap_bytes()).unwrap_or(u32::MAX)
}

impl Polled {
    /// Returns the bytes that it holds on the heap, about.
    fn heap_bytes(&self) -> usize {
        match self {
            Self::Lane(key) => key.heap_bytes(),
            Self::Instant(key) => key.heap_bytes(),
        }
    }
}

fn lock(pace: &Mutex<Pace>) -> MutexGuard<'_, Pace> {
    // Fields are written one by one, and each is sound by itself.
    pace.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Engine {
    /// Takes in a poll of `range` of `lane`, which is fresh for the time `left`, if it is.
    pub(super) fn lane_polled(
        self: &Arc<Self>,
        lane: &Lane,
        range: TimeRange,
        source: Source,
        left: Option<Duration>,
        context: &RequestContext,
    ) {
        let freshness = lane.freshness();
        if range.end() <= context.wall.saturating_sub(freshness.settle) {
            return;
        }
        let poll = Poll {
            key: Polled::Lane(lane.key.clone()),
            refresh: freshness.refresh,
            left,
        };
        let key = lane.key.clone();
        self.polled(
            poll,
            &lane.upstream,
            context,
            move |engine, upstream, due| {
                let lane = Lane::with_key(upstream.clone(), key);
                let range =
                    TimeRange::clamped(range.start(), range.end().saturating_add(due.later));
                let (range, context) = (range.aligned(lane.grid()), due.context);
                (engine.fresh(&lane, &range, &context).is_none()).then(|| {
                    let engine = engine.clone();
                    let call = async move {
                        let planning = context.span("plan");
                        let view = engine.view(&lane, range, range, source, &context, planning);
                        view.await.is_ok()
                    };
                    Refresh {
                        after: Duration::ZERO,
                        call: Box::pin(call),
                    }
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
        let CachePolicy::AtTime { reads, time, .. } = *policy else {
            return;
        };
        let Some(newest) = request.newest(upstream, policy) else {
            return;
        };
        let refresh = upstream.freshness.refresh;
        let age = context.wall.saturating_sub(time);
        let age = Duration::from_millis(u64::try_from(age).unwrap_or(0));
        let poll = Poll {
            key: Polled::Instant(newest),
            refresh,
            left: fresh.then(|| refresh.saturating_sub(age)),
        };
        let (method, request) = (method.clone(), request.clone());
        self.polled(poll, upstream, context, move |engine, upstream, due| {
            let now = Some(due.context.wall);
            let Evaluation { time, newest } = engine.evaluation(upstream, now, &due.context)?;
            let request = request.at(time);
            let key = WholeIdentity::new(upstream, WholeQuery::Response(request.clone()));
            if engine.fresh_whole(upstream, &key, &due.context).is_some() {
                return None;
            }
            let policy = CachePolicy::AtTime {
                reads,
                time,
                newest,
            };
            let (engine, of, context) = (engine.clone(), upstream.clone(), due.context);
            // No time is evaluated before it has come.
            let early = time.saturating_sub(engine.clock.now()).max(0);
            let call = async move {
                let answer = engine.fetch_response(&of, method, &key, request, policy, &context);
                answer.await.is_ok()
            };
            Some(Refresh {
                after: Duration::from_millis(u64::try_from(early).unwrap_or(0)),
                call: Box::pin(call),
            })
        });
    }

    /// Takes in a poll, and if the pace is steady, has `refresh` make its data fresh before the next
    /// one. `refresh` returns nothing if it will be fresh then anyway.
    fn polled(
        self: &Arc<Self>,
        poll: Poll,
        upstream: &Arc<Upstream>,
        context: &RequestContext,
        refresh: impl FnOnce(&Arc<Self>, &Arc<Upstream>, Due) -> Option<Refresh> + Send + 'static,
    ) {
        if !upstream.reading.refresh_ahead || context.max_age.is_some() {
            return;
        }
        let paces = &self.memory.paces;
        let key_bytes = poll.key.heap_bytes();
        let pace = paces.known.get_with(poll.key, Arc::default);
        let interval = {
            let mut pace = lock(&pace);
            let refreshed = std::mem::take(&mut pace.refreshed);
            if refreshed {
                upstream.metrics.refreshed_ahead("used");
            } else if !counts(poll.left, poll.refresh) {
                return;
            }
            pace.learn(context.arrived, poll.refresh)
        };
        let Some(interval) = interval else {
            return;
        };
        let due = context.arrived + interval;
        let usual = upstream.client.usual();
        // What is older would have expired when the poll comes.
        let earliest = (interval / 2).min(poll.refresh.mul_f64(0.75));
        let lead = LEAD.max(usual + usual / 2 + LEAD / 4).min(earliest);
        let within = due.saturating_sub(earliest)..=due.saturating_sub(lead);
        let apart = upstream.client.spare_spacing();
        let id = upstream.id();
        let Some(start) = paces.starts.take(id, within, apart) else {
            upstream.metrics.refreshed_ahead("skipped");
            return;
        };
        let later = Millis::try_from(interval.as_millis()).unwrap_or(0);
        let wall = context.wall.saturating_add(later);
        let late = tolerance(interval, poll.refresh);
        // Neither this engine nor the upstream: both may be replaced meanwhile.
        let (memory, clock) = (self.memory.clone(), self.clock.clone());
        let until_due = due.saturating_sub(clock.monotonic());
        let due_at = tokio::time::Instant::now() + until_due;
        let task = async move {
            let lead = due.saturating_sub(start);
            tokio::time::sleep_until(due_at - lead.min(until_due)).await;
            memory.paces.starts.begun(id, start);
            // Boxed, as most of its life it sleeps.
            let begun = Box::pin(async {
                let now = clock.monotonic();
                if now > due || now + 2 * lead < due {
                    // Time has not passed as the runtime's clock says.
                    return None;
                }
                let engine = memory.engine().upgrade()?;
                let upstream = engine.registry.with_id(id)?;
                let deadline = due_at + interval;
                let context = RequestContext {
                    arrived: due,
                    wall,
                    deadline,
                    call: CallContext::new(None, deadline, Trace::default()),
                    encoding: crate::wire::encoding::Encoding::Identity,
                    max_age: None,
                    level_wait: None,
                };
                let refresh = refresh(&engine, &upstream, Due { context, later })?;
                tokio::time::sleep(refresh.after).await;
                // Others that use what is to spare at this moment leave room for it soon.
                while !upstream.client.has_spare() {
                    if tokio::time::Instant::now() + usual >= due_at {
                        upstream.metrics.refreshed_ahead("skipped");
                        return None;
                    }
                    tokio::time::sleep(AGAIN).await;
                }
                lock(&pace).refreshed = true;
                let made = refresh.call.await;
                lock(&pace).refreshed &= made;
                made.then(|| Arc::downgrade(&upstream))
            });
            let Some(upstream) = begun.await else {
                return;
            };
            tokio::time::sleep_until(due_at + late).await;
            if std::mem::take(&mut lock(&pace).refreshed)
                && let Some(upstream) = upstream.upgrade()
            {
                upstream.metrics.refreshed_ahead("unused");
            }
        };
        let Some(held) = paces.planned.hold(size_of_val(&task) + key_bytes) else {
            paces.starts.begun(id, start);
            upstream.metrics.refreshed_ahead("skipped");
            return;
        };
        tokio::spawn(async move {
            task.await;
            drop(held);
        });
    }
}

/// The poll that is expected next.
struct Due {
    /// The context of the next poll.
    context: RequestContext,
    /// Shift of this poll's range against the last one's, in milliseconds.
    later: Millis,
}

/// A refresh.
struct Refresh {
    /// Time before which it can not be made.
    after: Duration,
    /// Makes something fresh; returns whether it did.
    call: Pin<Box<dyn Future<Output = bool> + Send>>,
}

#[cfg(test)]
mod tests;
