//! Invalidation: because an operator knows better, or because nobody can ask for the data any more.

use std::sync::{Arc, PoisonError};

use tokio::runtime::Handle;

use super::lane::{LaneKey, Subject};
use super::{Engine, Memory};
use crate::model::{Selector, TimeRange};
use crate::promql::canonical;
use crate::store::LevelFailure;
use crate::upstream::Upstream;

/// The number of invalidations so far. Data that was requested before the last of them is not
/// stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Generation(u64);

/// The result of an invalidation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Invalidated {
    /// Chunks in memory that changed.
    pub chunks: usize,
    /// Number of replicas that have applied it, and of all replicas, if a level is shared.
    pub replicas: Option<(usize, usize)>,
}

/// The part of an upstream's data to invalidate.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Selection {
    /// Only series requested with these conditions, and perhaps others.
    pub selector: Option<Selector>,
    /// Only series of this expression of PromQL.
    pub query: Option<String>,
    /// Only points, buckets and evaluation times in this range.
    pub range: Option<TimeRange>,
}

impl Selection {
    fn picks(&self, lane: &LaneKey) -> bool {
        match lane.subject() {
            Subject::Metric { selector, .. } | Subject::Summaries { selector, .. } => {
                let has = |wanted: &Selector| {
                    let mut wanted = wanted.conditions().iter();
                    wanted.all(|c| selector.conditions().contains(c))
                };
                self.query.is_none() && self.selector.as_ref().is_none_or(has)
            }
            Subject::Expression(expression) => {
                let same = |wanted: &String| *wanted == *expression.query;
                self.selector.is_none() && self.query.as_ref().is_none_or(same)
            }
        }
    }
}

impl Memory {
    /// Returns the number of invalidations so far.
    pub(super) fn generation(&self) -> Generation {
        *self
            .generation
            .read()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `keep`, unless something has been invalidated `since`.
    pub(super) fn if_current<T>(&self, since: Generation, keep: impl FnOnce() -> T) -> Option<T> {
        // The lock is held while `keep` runs: an invalidation waits for it, and then finds what it
        // stored.
        let now = self
            .generation
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        (*now == since).then(keep)
    }

    /// From now on, data that was requested earlier is not stored.
    fn keep_nothing_older(&self) {
        let mut forgotten = self
            .generation
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        forgotten.0 += 1;
    }
}

impl Engine {
    /// Does what [`Engine::invalidate`] does, after telling the second level. That knows only
    /// upstreams and ranges, so it drops the range of all series of `upstream`, and so do other
    /// replicas. If it cannot be told, the cache in memory is invalidated all the same.
    pub async fn invalidate_everywhere(
        self: &Arc<Self>,
        upstream: &Arc<Upstream>,
        selection: Selection,
    ) -> Result<Invalidated, LevelFailure> {
        let (engine, of) = (self.clone(), upstream.clone());
        let range = selection.range;
        let in_memory = move || engine.invalidate(&of, &selection);
        let in_memory = async {
            let done = tokio::task::spawn_blocking(in_memory).await;
            done.map_err(|e| LevelFailure::Error(e.to_string()))
        };
        let Some(second) = &self.memory.second else {
            let chunks = in_memory.await?;
            return Ok(Invalidated {
                chunks,
                replicas: None,
            });
        };
        let (chunks, places) = {
            // One at a time: what has been applied is a number.
            let _one = second.invalidating.lock().await;
            let (places, told) = second.invalidate(upstream, range).await;
            let chunks = in_memory.await?;
            self.apply_invalidations(second, &places).await;
            told?;
            (chunks, places)
        };
        Ok(Invalidated {
            chunks,
            replicas: second.applied_by(&places).await,
        })
    }

    /// Drops what `selection` picks of `upstream`, and its lists and whole answers, and returns the
    /// number of chunks that changed. Data in flight goes to the requests that wait for it and is
    /// not cached. Takes time in proportion to the cached chunks, unless all of an upstream is
    /// picked: then none of it can be found from this moment on, and its memory is freed in the
    /// background.
    pub fn invalidate(self: &Arc<Self>, upstream: &Arc<Upstream>, selection: &Selection) -> usize {
        if *selection == Selection::default() {
            return self.invalidate_all(upstream);
        }
        let selection = Selection {
            query: selection
                .query
                .as_deref()
                .map(|q| canonical(q).into_owned()),
            ..selection.clone()
        };
        let id = upstream.id();
        let picked = |lane: &LaneKey| lane.upstream() == id && selection.picks(lane);
        self.memory.keep_nothing_older();
        self.memory.flights.abandon(picked);
        self.memory.whole.invalidate(|of| of == id);
        match &selection.range {
            None => self.memory.cache.invalidate(picked),
            Some(range) => self.memory.cache.invalidate_range(upstream, range, picked),
        }
    }

    fn invalidate_all(self: &Arc<Self>, upstream: &Upstream) -> usize {
        let id = upstream.id();
        self.memory.keep_nothing_older();
        upstream.identity.renew();
        let dropped = self.memory.cache.count(|lane| lane.upstream() == id);
        let engine = self.clone();
        let free = move || engine.invalidate_removed();
        match Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(free)),
            Err(_) => free(),
        }
        dropped
    }

    /// Drops what is cached of upstreams that nobody can ask for any more. Takes time in proportion
    /// to the cached chunks.
    pub fn invalidate_removed(&self) {
        let ids = self.registry.ids();
        let gone = |id: u64| !ids.contains(&id);
        self.memory.whole.invalidate(gone);
        self.memory.cache.invalidate(|lane| gone(lane.upstream()));
    }
}
