//! Serves expired data: at once while it is fetched again in the background, or while the upstream
//! fails.

use std::sync::{Arc, PoisonError};

use tracing::debug;

use super::cache::Chunks;
use super::fetch::{Degraded, Source, View, policy};
use super::lane::{Lane, LaneKey};
use super::plan::{Plan, plan};
use super::{Engine, RequestContext, planned};
use crate::model::{Error, Millis, Origin, RangeSet, TimeRange};
use crate::telemetry::trace::Span;

/// A lane that is fetched in the background, until dropped.
struct Revalidating {
    engine: Arc<Engine>,
    key: LaneKey,
}

impl Drop for Revalidating {
    fn drop(&mut self) {
        self.engine.lanes_revalidated().remove(&self.key);
    }
}

/// The plan for `range` of `lane`, of which `chunks` are known, and the time up to which it is
/// answered, if that is with expired data while it is fetched again.
pub(super) fn while_revalidating(
    lane: &Lane,
    range: &TimeRange,
    chunks: &Chunks,
    context: &RequestContext,
) -> Option<(Plan, Millis)> {
    let mut policy = policy(lane, context);
    policy.freshness.max_stale = policy.freshness.stale_while_revalidate;
    if policy.freshness.max_stale.is_zero() {
        return None;
    }
    let (coverage, none) = (chunks.coverage(), RangeSet::new());
    let plan = plan(range, &coverage, &none, &policy, &context.now());
    let edge = plan.fallback.filter(|_| !plan.missing.is_empty())?;
    Some((plan, edge))
}

impl Engine {
    /// Makes `range` of `lane`, of which not all is fresh, known: served expired while it is
    /// fetched in the background where that is allowed, else fetched.
    pub(super) async fn not_fresh(
        self: &Arc<Self>,
        lane: &Lane,
        range: TimeRange,
        source: Source,
        context: &RequestContext,
        planning: Span,
    ) -> Result<View, Error> {
        match self.while_revalidating(lane, range, source, context) {
            Some(view) => {
                planned(planning, view.lookup, 0);
                Ok(view)
            }
            None => {
                self.view(lane, range, range, source, context, planning)
                    .await
            }
        }
    }

    /// Returns the cached data of `range`, marked as expired, if all of it is known and expired no
    /// longer ago than `stale_while_revalidate`; it is then fetched in the background. `None` if it
    /// is fresh or too old, or if the client accepts nothing expired.
    pub(super) fn while_revalidating(
        self: &Arc<Self>,
        lane: &Lane,
        range: TimeRange,
        source: Source,
        context: &RequestContext,
    ) -> Option<View> {
        let chunks = self.memory.cache.look_up(lane, &range);
        let (plan, edge) = while_revalidating(lane, &range, &chunks, context)?;
        self.revalidate(lane, range, source, context);
        let mut view = View::cached(lane, chunks, plan.lookup, plan.ttl);
        view.degraded = Some(Degraded {
            reason: "revalidating (stale_while_revalidate)".to_owned(),
            error: None,
            age: plan.oldest,
            edge,
        });
        Some(view)
    }

    /// Fetches `range` in the background, unless its lane is being fetched that way already.
    fn revalidate(
        self: &Arc<Self>,
        lane: &Lane,
        range: TimeRange,
        source: Source,
        context: &RequestContext,
    ) {
        if !self.lanes_revalidated().insert(lane.key.clone()) {
            return;
        }
        let guard = Revalidating {
            engine: self.clone(),
            key: lane.key.clone(),
        };
        let (lane, mut context) = (lane.clone(), context.clone());
        context.call.caller = None;
        tokio::spawn(async move {
            let planning = context.span("plan");
            let view = guard
                .engine
                .view(&lane, range, range, source, &context, planning);
            let view = view.await;
            if let Err(error) = view {
                debug!(
                    upstream = lane.upstream.name(),
                    "revalidation failed: {error}"
                );
            }
        });
    }

    fn lanes_revalidated(&self) -> std::sync::MutexGuard<'_, std::collections::HashSet<LaneKey>> {
        // Keys are added and removed whole.
        self.memory
            .revalidating
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns expired data instead of `error`, where there is enough of it and the error is not the
/// client's own.
pub(super) fn fall_back(error: Error, plan: &Plan) -> Result<Degraded, Error> {
    match plan.fallback {
        Some(edge) if error.kind.origin() != Origin::Client => Ok(Degraded {
            reason: error.to_string(),
            error: Some(error),
            age: plan.oldest,
            edge,
        }),
        _ => Err(error),
    }
}
