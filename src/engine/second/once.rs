//! One fetch for all replicas: whoever takes the lease of a lane fetches, the others wait for what
//! that brings. Nothing depends on it being right: a holder that dies, hangs or answers late delays
//! the others by less than half of the time they have, and what it writes late loses against what
//! is newer, as every write does.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{Tier, read};
use crate::engine::cache::Chunks;
use crate::engine::fetch::Fetched;
use crate::engine::lane::Lane;
use crate::engine::parts::fetch_one;
use crate::engine::{Engine, RequestContext};
use crate::model::{Error, RangeSet, TimeRange};
use crate::store::Lease;
use crate::store::key::LaneName;

/// The shortest time that another replica is waited for, if half of the deadline allows.
const SHORTEST_WAIT: Duration = Duration::from_millis(100);

/// The time after the first look at what another replica has fetched, and the longest between two.
const LOOKS: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(160));

/// A lease is kept for so long after its data was written, for those who looked just before.
const LINGER: Duration = Duration::from_millis(25);

/// The longest that a lease is kept for data that is being written.
const WRITE: Duration = Duration::from_secs(1);

/// The way in which a fetch is made.
enum FetchTurn {
    /// Another replica has made it.
    Made(Chunks),
    /// This one makes it, while others wait.
    Mine(Holding),
    /// This one makes it, whatever others do.
    Alone,
}

/// A lease, given up when dropped.
struct Holding {
    engine: Arc<Engine>,
    tier: Arc<Tier>,
    lane: LaneName,
}

impl Drop for Holding {
    fn drop(&mut self) {
        let (engine, tier, lane) = (self.engine.clone(), self.tier.clone(), self.lane);
        // Outside of a runtime the process ends, and the lease lapses.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                let _ = tokio::time::timeout(WRITE, engine.flush()).await;
                tokio::time::sleep(LINGER).await;
                tier.level.release(&lane).await;
            });
        }
    }
}

/// Fetches `range` of `lane`, unless another replica does so meanwhile.
pub(in crate::engine) async fn fetch(
    engine: Arc<Engine>,
    lane: Lane,
    range: TimeRange,
    context: RequestContext,
) -> Result<Fetched, Error> {
    let turn = engine.turn(&lane, range, &context).await;
    let holding = match turn {
        FetchTurn::Made(chunks) => {
            return Ok(Fetched {
                chunks,
                complete: true,
                off_grid: None,
            });
        }
        FetchTurn::Mine(holding) => Some(holding),
        FetchTurn::Alone => None,
    };
    let fetched = fetch_one(engine, lane, range, context).await;
    drop(holding);
    fetched
}

impl Engine {
    async fn turn(
        self: &Arc<Self>,
        lane: &Lane,
        range: TimeRange,
        context: &RequestContext,
    ) -> FetchTurn {
        let Some(second) = &self.memory.second else {
            return FetchTurn::Alone;
        };
        let mut leasing = second.tiers.iter().filter(|tier| tier.level.leases());
        // A client that accepts no cached data, and a trial, are for the upstream itself.
        let anew = context.max_age.is_some() || context.call.trial;
        let (Some(tier), false) = (leasing.next(), anew || lane.upstream.stored_as.is_none())
        else {
            return FetchTurn::Alone;
        };
        let Some(named) = tier.named(lane) else {
            return FetchTurn::Alone;
        };
        let count = |outcome| lane.upstream.metrics.leased(outcome);
        let began = Instant::now();
        let patience = (lane.upstream.client.usual() * 2).max(SHORTEST_WAIT);
        let half = context.deadline.saturating_duration_since(began) / 2;
        let until = began + patience.min(half);
        let mut pause = LOOKS.0;
        loop {
            // What the request has waited for reads of the level counts, too.
            let Some(wait) = second.wait(context) else {
                count("alone");
                return FetchTurn::Alone;
            };
            let asked = tier.level.lease(&named.lane, range);
            let lease = tokio::time::timeout_at(wait.until, asked).await;
            wait.end(false);
            match lease.ok().flatten() {
                Some(Lease::Mine) => {
                    count("taken");
                    return FetchTurn::Mine(Holding {
                        engine: self.clone(),
                        tier: tier.clone(),
                        lane: named.lane,
                    });
                }
                Some(Lease::Others(theirs)) if theirs.covers(&range) => {}
                Some(Lease::Others(_)) | None => {
                    count("alone");
                    return FetchTurn::Alone;
                }
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                count("overtaken");
                return FetchTurn::Alone;
            }
            // Replicas that look at the same moment do not look at the same next one.
            let jitter = Duration::from_millis(self.clock.monotonic().subsec_micros() as u64 % 5);
            tokio::time::sleep((pause + jitter).min(left)).await;
            pause = (pause * 2).min(LOOKS.1);
            let found = tokio::time::timeout_at(
                until.max(Instant::now() + LOOKS.0),
                read::read(self.clone(), lane.clone(), range),
            );
            if let Ok(Ok(Some(found))) = found.await {
                let mut chunks = self.memory.cache.look_up(lane, &range);
                chunks.update(lane, &found);
                let plan = self.plan(lane, &range, &chunks, &RangeSet::new(), context);
                if plan.missing.is_empty() {
                    count("waited");
                    return FetchTurn::Made(chunks);
                }
            }
        }
    }
}
