//! Invalidations: they are sent to each level, and received from other replicas.

use std::sync::Arc;
use std::time::Duration;

use super::{SecondLevel, Tier};
use crate::engine::{Engine, Selection};
use crate::model::{Millis, TimeRange};
use crate::store::page::Stamp;
use crate::store::{Invalidation, LevelFailure, Replica};
use crate::upstream::Upstream;

/// Most time that an invalidation waits for other replicas.
const WAIT: Duration = Duration::from_secs(2);

impl SecondLevel {
    /// Adds an invalidation to each level, before it is applied to the cache in memory, and returns
    /// its place in the list of each.
    pub(in crate::engine) async fn invalidate(
        &self,
        upstream: &Upstream,
        range: Option<TimeRange>,
    ) -> (Vec<Option<Stamp>>, Result<(), LevelFailure>) {
        let (mut places, mut outcome) = (Vec::new(), Ok(()));
        let stored_as = upstream.stored_as(upstream.id());
        for tier in &self.tiers {
            let Some(stored_as) = &stored_as else {
                places.push(None);
                continue;
            };
            let invalidation = Invalidation {
                upstream: tier.level.names().upstream(stored_as),
                range: range.unwrap_or(TimeRange::clamped(Millis::MIN, Millis::MAX)),
            };
            match tier.level.invalidate(invalidation).await {
                Ok(place) => places.push(Some(place)),
                Err(failure) => {
                    places.push(None);
                    outcome = Err(failure);
                }
            }
        }
        (places, outcome)
    }

    /// Returns whether there is an invalidation that has not been applied to the cache in memory.
    fn is_behind(&self) -> bool {
        self.tiers.iter().any(|tier| {
            let state = tier.level.state();
            state.is_some_and(|state| Some(state.invalidations.stamp()) != tier.applied())
        })
    }

    /// Waits until all replicas have applied what was invalidated at `places`, for 2 s at most, and
    /// returns the number that have, and the number of all; `None` where nothing is shared.
    pub(in crate::engine) async fn applied_by(
        &self,
        places: &[Option<Stamp>],
    ) -> Option<(usize, usize)> {
        let mut shared = self.tiers.iter().zip(places);
        let (tier, place) = shared.find(|(tier, _)| tier.level.is_shared())?;
        let place = (*place)?;
        let deadline = tokio::time::Instant::now() + WAIT;
        loop {
            let state = tier.level.state()?;
            let live = state.replicas.iter().filter(|r| r.live);
            // This one has, though it has not said so yet.
            let has = |r: &&Replica| {
                r.this || (r.applied.epoch == place.epoch && r.applied.number >= place.number)
            };
            let (applied, of) = (live.clone().filter(has).count(), live.count());
            if applied == of || tokio::time::Instant::now() >= deadline {
                return Some((applied, of));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Returns the replicas that share a level with this process.
    fn replicas(&self) -> Option<Arc<[Replica]>> {
        let tier = self.tiers.iter().find(|tier| tier.level.is_shared())?;
        Some(tier.level.state().map(|s| s.replicas).unwrap_or_default())
    }
}

impl Engine {
    /// Applies the invalidations of other replicas to the cache in memory.
    pub async fn catch_up(self: &Arc<Self>) {
        let Some(second) = &self.memory.second else {
            return;
        };
        if second.is_behind() {
            let _one = second.invalidating.lock().await;
            self.apply_invalidations(second, &[]).await;
        }
    }

    /// Applies the invalidations in each level, except those at `done`.
    pub(in crate::engine) async fn apply_invalidations(
        self: &Arc<Self>,
        second: &SecondLevel,
        done: &[Option<Stamp>],
    ) {
        for (at, tier) in second.tiers.iter().enumerate() {
            let Some(state) = tier.level.state() else {
                continue;
            };
            let stamp = state.invalidations.stamp();
            let done = done.get(at).copied().flatten();
            // Levels of this process hold data from before it began, and while it was away.
            let own = second.tiers.iter().filter(|other| !other.level.is_shared());
            let own: Vec<_> = own.filter(|_| tier.level.is_shared()).collect();
            let heard = own.first().and_then(|own| own.level.heard());
            let mut kept = true;
            for (number, entry) in state.invalidations.since(tier.applied().or(heard)) {
                let place = Stamp { number, ..stamp };
                if done != Some(place) {
                    for own in &own {
                        kept &= self.apply_to(own, tier, entry).await;
                    }
                    self.apply_one(tier, entry).await;
                }
            }
            for own in own.into_iter().filter(|_| kept) {
                // If that fails, it is told again at the next start.
                let _ = own.level.hear(stamp).await;
                if let Some(state) = own.level.state() {
                    own.apply(state.invalidations.stamp());
                }
            }
            tier.apply(stamp);
        }
    }

    /// Adds the `entry` of the list of `tier` to the list of the level of `own`. Returns whether that
    /// holds after a restart.
    async fn apply_to(&self, own: &Tier, tier: &Tier, entry: Invalidation) -> bool {
        let mut kept = true;
        for upstream in self.upstreams() {
            let stored_as = upstream.stored_as(upstream.id());
            let stored_as = stored_as.filter(|s| tier.level.names().upstream(s) == entry.upstream);
            if let Some(stored_as) = stored_as {
                let entry = Invalidation {
                    upstream: own.level.names().upstream(&stored_as),
                    ..entry
                };
                kept &= own.level.invalidate(entry).await.is_ok();
            }
        }
        kept
    }

    async fn apply_one(self: &Arc<Self>, tier: &Tier, entry: Invalidation) {
        let names = tier.level.names();
        let same = |upstream: &&Arc<Upstream>| {
            let stored_as = upstream.stored_as(upstream.id());
            stored_as.is_some_and(|s| names.upstream(&s) == entry.upstream)
        };
        for upstream in self.upstreams().iter().filter(same) {
            let everything = entry.range.covers(&TimeRange::ALL);
            let selection = Selection {
                range: (!everything).then_some(entry.range),
                ..Selection::default()
            };
            let (engine, upstream) = (self.clone(), upstream.clone());
            let invalidate = move || engine.invalidate(&upstream, &selection);
            // It fails only if the runtime ends.
            let _ = tokio::task::spawn_blocking(invalidate).await;
        }
    }

    /// Returns the replicas that share a level of the cache with this process; `None` if none is
    /// shared.
    pub fn replicas(&self) -> Option<Arc<[Replica]>> {
        self.memory.second.as_ref()?.replicas()
    }
}
