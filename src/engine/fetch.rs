//! Makes a range of a lane known: plan, fetch what is missing, store, aggregate.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};

use super::cache::Chunks;
use super::chunk::Piece;
use super::invalidate::Generation;
use super::lane::Lane;
use super::plan::{Lookup, Plan, Policy, fresh, plan};
use super::revalidate::fall_back;
use super::second::once;
use super::{Engine, RequestContext, planned};
use crate::model::{Bucket, Error, Kind, Layout, Millis, Origin, RangeSet, Step, TimeRange};
use crate::telemetry::trace::Span;
use crate::upstream::Flight;

/// Pieces of more points are stored off the threads that serve connections: packing and rendering them
/// takes about a millisecond (`cargo bench --bench cache`).
const STORE_INLINE: usize = if cfg!(test) { 500 } else { 6_000 };

/// The longest wait of a call for its turn that a fetch allows for.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// The result of a fetch.
#[derive(Clone)]
pub(super) struct Fetched {
    /// The chunks that it changed.
    pub(super) chunks: Chunks,
    /// Set if that is all there is; if not, it is not cached.
    pub(super) complete: bool,
    /// Buckets that do not fit the grid asked for.
    pub(super) off_grid: Option<Arc<Vec<Bucket>>>,
}

/// A range of a lane, known.
pub(super) struct View {
    /// The chunks that hold it.
    pub(super) chunks: Chunks,
    /// The state of the cache when the query came.
    pub(super) lookup: Lookup,
    /// The ranges that were fetched for it.
    pub(super) fetched: RangeSet,
    /// Set if what was fetched is in the cache now.
    pub(super) stored: bool,
    /// Set if a fetch of another request was waited for.
    pub(super) collapsed: bool,
    /// Set if the upstream says that this is all there is.
    pub(super) complete: bool,
    /// Buckets that do not fit the grid asked for; then they are the answer.
    pub(super) off_grid: Option<Arc<Vec<Bucket>>>,
    /// Set if expired data is served.
    pub(super) degraded: Option<Degraded>,
    /// Time for which it stays fresh.
    pub(super) ttl: Duration,
    /// The size of its buckets, if it has any.
    pub(super) bucket_size: Option<Step>,
}

/// The facts about expired data that is served.
#[derive(Clone, Debug)]
pub(super) struct Degraded {
    /// The reason for which it is served.
    pub(super) reason: String,
    /// The failure that caused it, if there was one.
    pub(super) error: Option<Error>,
    /// The age of the oldest data that had expired.
    pub(super) age: Duration,
    /// The time up to which the range is answered.
    pub(super) edge: Millis,
}

impl View {
    /// Returns a view of the chunks in the cache, with nothing fetched.
    pub(super) fn cached(lane: &Lane, chunks: Chunks, lookup: Lookup, ttl: Duration) -> Self {
        Self {
            chunks,
            lookup,
            fetched: RangeSet::new(),
            stored: false,
            collapsed: false,
            complete: true,
            off_grid: None,
            degraded: None,
            ttl,
            bucket_size: match lane.layout() {
                Layout::Raw => None,
                Layout::Buckets { size, .. } => Some(size),
            },
        }
    }
}

/// The source of a lane's points.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// They are requested from the upstream.
    Upstream,
    /// They are aggregated from raw points.
    RawPoints,
    /// They are made of summaries.
    Summaries,
}

/// A range that is to be known, and what was known of it when the query came.
pub(super) struct Wanted<'a> {
    pub(super) lane: &'a Lane,
    pub(super) range: TimeRange,
    chunks: &'a Chunks,
}

/// The result of fetching the missing ranges.
#[derive(Default)]
pub(super) struct Round {
    pub(super) fetched: Vec<Fetched>,
    /// Errors, even if expired data was found to serve instead.
    pub(super) errors: Vec<Error>,
    pub(super) collapsed: bool,
    /// The ranges that are known now as well as they can be.
    pub(super) brought: RangeSet,
}

pub(super) fn too_late() -> Error {
    Error::new(Kind::DeadlineExceeded, "the deadline of the request passed")
}

impl Engine {
    /// Makes `range` of `lane` known; what has to be fetched for it reaches up to the ends of `reach`, which
    /// contains it. Ranges of a bucketed lane lie on the bucket grid.
    pub(super) async fn view(
        self: &Arc<Self>,
        lane: &Lane,
        range: TimeRange,
        reach: TimeRange,
        source: Source,
        context: &RequestContext,
        planning: Span,
    ) -> Result<View, Error> {
        let mut chunks = self.memory.cache.look_up(lane, &range);
        let mut first = self.plan(lane, &reach, &chunks, &RangeSet::new(), context);
        planned(planning, first.lookup, first.missing.len());
        if source == Source::Upstream
            && !first.missing.is_empty()
            && self
                .ask_second_level(lane, &mut chunks, &first.missing, context)
                .await
        {
            first = self.plan(lane, &reach, &chunks, &RangeSet::new(), context);
        }
        let mut view = View::cached(lane, chunks.clone(), first.lookup, first.ttl);
        let is_needed = |missing: &TimeRange| missing.intersection(&range).is_some();
        if !first.missing.iter().any(is_needed) {
            return Ok(view);
        }
        view.fetched = first.missing.iter().copied().collect();
        let wanted = Wanted {
            lane,
            range,
            chunks: &chunks,
        };
        let round = match source {
            Source::Upstream => self.fetch(&wanted, &first.missing, context).await,
            Source::RawPoints => {
                let span = context.span("derive");
                let context = context.within(&span);
                self.derive(&wanted, &first.missing, &context).await
            }
            Source::Summaries => {
                let span = context.span("derive");
                let context = context.within(&span);
                Box::pin(self.from_summaries(&wanted, &first.missing, &context)).await
            }
        };
        for fetched in &round.fetched {
            chunks.update(lane, &fetched.chunks);
            view.complete &= fetched.complete;
            view.stored |= fetched.complete;
            view.off_grid = view.off_grid.take().or_else(|| fetched.off_grid.clone());
        }
        view.collapsed = round.collapsed;
        if view.off_grid.is_some() {
            let whole = matches!(&first.missing[..], [all] if all.covers(&range));
            return off_grid(view, whole);
        }
        let rest = self.plan(lane, &range, &chunks, &round.brought, context);
        if let Some(error) = round.errors.into_iter().next()
            && !rest.missing.is_empty()
        {
            view.degraded = Some(fall_back(error, &rest)?);
        }
        view.ttl = rest.ttl;
        view.chunks = chunks;
        Ok(view)
    }

    /// Returns `range` of `lane`, if all of it is cached and fresh: a hit, with as little work as
    /// possible.
    pub(super) fn fresh(
        &self,
        lane: &Lane,
        range: &TimeRange,
        context: &RequestContext,
    ) -> Option<View> {
        let chunks = self.memory.cache.look_up(lane, range);
        let policy = policy(lane, context);
        let ttl = fresh(range, chunks.segments(), &policy, &context.now())?;
        for (_, chunk) in chunks.iter() {
            chunk.count_answer();
        }
        Some(View::cached(lane, chunks, Lookup::Hit, ttl))
    }

    pub(super) fn plan(
        &self,
        lane: &Lane,
        range: &TimeRange,
        chunks: &Chunks,
        brought: &RangeSet,
        context: &RequestContext,
    ) -> Plan {
        let mut policy = policy(lane, context);
        policy.metered = lane.is_metered();
        // The time to refresh begins when the call is sent. Until then, other requests can join it.
        let wait = lane
            .upstream
            .client
            .wait(context.call.caller, lane.key.number());
        policy.ahead = policy.ahead.saturating_add(wait.min(LONGEST_WAIT));
        plan(range, &chunks.coverage(), brought, &policy, &context.now())
    }

    /// Returns whether the errors of `round` decide the answer: an error of the client is told, and otherwise
    /// there is enough expired data. Then nothing else is waited for.
    pub(super) fn is_decided(
        &self,
        wanted: &Wanted<'_>,
        round: &Round,
        context: &RequestContext,
    ) -> bool {
        let Some(error) = round.errors.first() else {
            return false;
        };
        let mut chunks = wanted.chunks.clone();
        for fetched in &round.fetched {
            chunks.update(wanted.lane, &fetched.chunks);
        }
        let plan = self.plan(wanted.lane, &wanted.range, &chunks, &round.brought, context);
        error.kind.origin() == Origin::Client || plan.fallback.is_some()
    }

    /// Fetches `missing` of what is `wanted` from the upstream, together with all requests that need it.
    async fn fetch(
        self: &Arc<Self>,
        wanted: &Wanted<'_>,
        missing: &[TimeRange],
        context: &RequestContext,
    ) -> Round {
        let (lane, call) = (wanted.lane, &context.call);
        if context.deadline < call.deadline && !self.memory.flights.is_under_way(&lane.key) {
            // The fetch has time to wait for its turn, but this client has no time to wait for the
            // fetch.
            let access = &lane.upstream.client;
            if let Err(error) = access.check(call.caller, context.deadline) {
                return Round {
                    errors: vec![error],
                    ..Round::default()
                };
            }
        }
        let mut span = context.span("fetch");
        let within = context.within(&span);
        let (flights, trace) = (&self.memory.flights, &within.call.trace);
        let boarded = flights.join_or_start(
            &lane.key,
            missing,
            &wanted.range,
            trace,
            |range, waiters| {
                let mut within = within.clone();
                within.call.waiters = waiters;
                // Boxed: its state is moved several times before its task runs.
                Box::pin(once::fetch(self.clone(), lane.clone(), range, within))
            },
        );
        boarded.show(&mut span);
        if boarded.joined > 0 {
            lane.upstream.metrics.coalesced.increment(1);
        }
        let mut round = Round {
            collapsed: boarded.joined > 0,
            ..Round::default()
        };
        let flights = boarded.flights.iter();
        let flights =
            flights.map(|flight| async move { (flight.range(), wait(flight, context).await) });
        let mut flights: FuturesUnordered<_> = flights.collect();
        while let Some((range, fetched)) = flights.next().await {
            match fetched {
                Ok(fetched) => {
                    round.brought.insert(range);
                    round.fetched.push(fetched);
                }
                Err(error) => {
                    span.fail(&error.kind);
                    round.errors.push(error);
                    if self.is_decided(wanted, &round, context) {
                        break;
                    }
                }
            }
        }
        drop(flights);
        round
    }

    /// Puts `piece` into the cache; or beside it if it is incomplete, or if something was
    /// invalidated `since` it was requested.
    pub(super) async fn land(
        self: &Arc<Self>,
        lane: &Lane,
        piece: Piece,
        since: Generation,
        complete: bool,
        off_grid: Option<Vec<Bucket>>,
        source: Source,
    ) -> Result<Fetched, Error> {
        let kept = complete && off_grid.is_none();
        let large = piece.data.len() > STORE_INLINE;
        let (engine, of) = (self.clone(), lane.clone());
        let piece = Arc::new(piece);
        let put = move || {
            let store = || {
                // Derived data can be derived again.
                if let Some(second) = &engine.memory.second
                    && source == Source::Upstream
                {
                    second.put(&of, &piece);
                }
                engine.memory.cache.store(&of, &piece)
            };
            let stored = kept.then(|| engine.memory.if_current(since, store));
            stored
                .flatten()
                .unwrap_or_else(|| Chunks::beside(&of, &piece))
        };
        let chunks = match large {
            true => crate::work::elsewhere(put).await.map_err(|e| {
                let message = format!("what was fetched could not be stored: {e}");
                Error::new(Kind::Internal, message)
            })?,
            false => put(),
        };
        Ok(Fetched {
            chunks,
            complete,
            off_grid: off_grid.map(Arc::new),
        })
    }
}

/// Returns the policy that ranges of `lane` are planned with.
pub(super) fn policy(lane: &Lane, context: &RequestContext) -> Policy {
    Policy {
        freshness: context.freshness(&lane.freshness()),
        ahead: lane.freshness().refresh,
        grid: lane.grid(),
        cell: lane.cell(),
        metered: false,
    }
}

/// Returns the view of buckets that do not fit the grid; they are an answer only if one fetch
/// brought them for the `whole` range.
fn off_grid(mut view: View, whole: bool) -> Result<View, Error> {
    if !whole {
        let message = "the upstream answers with buckets that do not fit the size asked for";
        return Err(Error::new(Kind::UpstreamFailed, message));
    }
    view.stored = false;
    Ok(view)
}

/// Returns the result of the flight, if it ends before the request's deadline.
async fn wait(flight: &Flight<Fetched>, context: &RequestContext) -> Result<Fetched, Error> {
    match tokio::time::timeout_at(context.deadline, flight.outcome()).await {
        Ok(fetched) => fetched,
        Err(_) => Err(too_late()),
    }
}
