//! The engine answers queries out of the cache and fetches what is missing.
//!
//! - `lane`: the identity under which data is shared
//! - `chunk`, `content`, `columns`, `cache`: cached data, in immutable parts, bounded by weight
//! - `plan`: pure; which part of a range is fresh and which has to be fetched
//! - `fetch`, `parts`: makes a range of a lane known: plan, fetch, store; `derive`: buckets of raw points
//! - `second`: what is asked before an upstream, and outlives the process
//! - `summaries`: points and buckets of summaries, of stores that have nothing finer
//! - `revalidate`: serves data that has just expired, and fetches it in the background
//! - `render`: points as ready JSON
//! - `prepared`, `answer`: queries for metric values and their answers
//! - `range`, `known_steps`, `analyses`: answers to range queries of PromQL; `aligning`: of upstreams that answer for other times
//! - `whole`, `encoded`: answers that are cached whole, and their encoded forms; `metadata`, `passthrough`: names and values of fields, and
//!   responses of Prometheus' API
//! - `ahead`: refreshes what is polled a moment before it is asked for again
//! - `recheck`: a second look at what has just settled
//! - `instant`: instant queries of PromQL
//! - `outcome`: what an answer says of the cache and of where its time went
//! - `invalidate`: drops cached data, so that it is fetched again
//! - `explain`, `cache_stats`: the plan for a query without running it; what is cached of each upstream
//!
//! The benches measure some parts one by one, so those are public; [`Engine`] is all that others use.
//!
//! # Glossary
//!
//! | word | meaning |
//! |---|---|
//! | lane | one series identity in one layout: upstream, selector or expression, raw points or buckets |
//! | chunk | the cached data of a lane in one fixed span of time |
//! | segment | a range inside a chunk with one fetch time, settled or not |
//! | piece | what one fetch brings: data and the segments it covers |
//! | frame | the span, layout and grain that a chunk is built in |
//! | coverage | the segments that are known, in order of time |
//! | settled | old enough, when fetched, that it will not change any more |
//! | refresh | how long data that may still change is served before it is fetched again |
//! | lag | distance from an evaluation time back to the newest sample it may read |
//! | phase | offset of evaluation times from multiples of the step |
//! | cell | one native interval, bucket or step; chunks span a fixed number of cells |
//! | step | distance between two evaluation times, or the size of a bucket |
//! | flight | one fetch in progress that all overlapping requests share (single flight) |

mod ahead;
mod aligning;
mod analyses;
mod answer;
pub mod cache;
mod cache_stats;
pub mod chunk;
pub mod columns;
mod content;
mod derive;
mod encoded;
mod explain;
mod fetch;
mod gathered;
mod instant;
mod invalidate;
mod known_queries;
mod known_steps;
pub mod lane;
mod metadata;
mod outcome;
mod parts;
mod passthrough;
pub mod plan;
mod prepared;
mod range;
mod recheck;
pub mod render;
mod revalidate;
mod second;
mod summaries;
mod whole;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::time::Duration;

pub use answer::Answer;
pub use cache_stats::{CacheStats, LaneDescription, LaneStats};
pub use encoded::CachedResponse;
pub use explain::{
    AnswerSource, Cached, Explanation, Missing, RangeReason, RangeReport, ResponseReport, TimeSpan,
};
pub use instant::Evaluation;
pub use invalidate::{Invalidated, Selection};
pub use outcome::{CacheOutcome, Timing};
pub use passthrough::PassthroughRequest;
pub use plan::Lookup;
pub use prepared::PreparedQuery;
pub use range::RangeRequest;
pub use second::{LevelReport, LevelSetup, LevelWait};
pub use whole::CachePolicy;

use tokio::time::Instant;

use ahead::Paces;
use aligning::Aligning;
use analyses::Analyses;
use cache::ChunkCache;
use fetch::Fetched;
use invalidate::Generation;
use known_queries::KnownQueries;
use known_steps::KnownSteps;
use lane::LaneKey;
use plan::Now;
use recheck::Rechecked;
use whole::WholeCache;

use crate::clock::Clock;
use crate::model::{Details, Error, Freshness, Kind, Millis};
pub use crate::store::{BreakerState, LevelHoldings, Replica};
use crate::telemetry::trace::Span;
pub use crate::upstream::{CallContext, Upstream};
use crate::upstream::{Flights, Registry};
use crate::wire::encoding::Encoding;

/// Answers queries, under one configuration.
pub struct Engine {
    registry: Registry,
    memory: Arc<Memory>,
    clock: Arc<dyn Clock>,
    max_points: u32,
    known: KnownQueries,
}

/// The state of engines. It outlives them: a new configuration makes a new engine over the same
/// memory.
pub struct Memory {
    /// The largest weight of all cached data.
    bytes: u64,
    cache: ChunkCache,
    flights: Flights<LaneKey, Fetched>,
    known_steps: KnownSteps,
    whole: WholeCache,
    analyses: Analyses,
    aligning: Aligning,
    paces: Paces,
    rechecked: Rechecked,
    /// Lanes that are fetched in the background.
    revalidating: Mutex<HashSet<LaneKey>>,
    generation: RwLock<Generation>,
    /// The engine of the current configuration.
    engine: Mutex<Weak<Engine>>,
    /// The level that outlives the process, if there is one.
    second: Option<second::SecondLevel>,
}

impl Memory {
    /// Returns an empty memory for `bytes` of data.
    pub fn new(bytes: u64) -> Arc<Self> {
        Self::over(bytes, None)
    }

    /// Returns an empty memory for `bytes` of data, backed by `levels` in their order. Within a
    /// runtime.
    pub fn with_levels(bytes: u64, levels: Vec<LevelSetup>, clock: &Arc<dyn Clock>) -> Arc<Self> {
        let second = second::SecondLevel::new(levels, clock);
        Self::over(bytes, Some(second))
    }

    fn over(bytes: u64, second: Option<second::SecondLevel>) -> Arc<Self> {
        // Whole answers are small next to series, yet must not crowd them out.
        let for_whole = bytes / 8;
        let (analyses, paces) = (Analyses::new(bytes), Paces::new(bytes));
        let others = for_whole + analyses.most() + paces.most() + KnownQueries::most(bytes);
        crate::telemetry::metrics::cache_limit(bytes);
        Arc::new(Self {
            bytes,
            cache: ChunkCache::new(bytes.saturating_sub(others)),
            flights: Flights::default(),
            known_steps: KnownSteps::default(),
            whole: WholeCache::new(for_whole),
            analyses,
            aligning: Aligning::default(),
            paces,
            rechecked: Rechecked::default(),
            revalidating: Mutex::default(),
            generation: RwLock::default(),
            engine: Mutex::default(),
            second,
        })
    }

    fn engine(&self) -> MutexGuard<'_, Weak<Engine>> {
        // It is replaced whole, so it is sound even after a panic.
        self.engine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Evicts what is over its bound, and frees what has been evicted. To be called every few seconds:
    /// what other threads hold for a moment stays until then.
    pub fn tidy(&self) {
        self.cache.tidy();
        self.whole.make_room();
    }
}

/// The properties of a request besides its query.
#[derive(Clone, Debug)]
pub struct RequestContext {
    /// The time of its arrival, by the monotonic clock.
    pub arrived: Duration,
    /// The time of its arrival, by the wall clock.
    pub wall: Millis,
    /// The time by which the client must have been answered; no later than the call's deadline.
    pub deadline: Instant,
    /// The caller, the time after which an answer is of no use to anyone, and the trace. Fetches
    /// are shared, so a client's own shorter limit does not apply to them.
    pub call: CallContext,
    /// The encoding that the client takes long answers in.
    pub encoding: Encoding,
    /// The greatest age of data that may still change which the client accepts, if it says so
    /// (`Cache-Control`). It then gets no expired data either.
    pub max_age: Option<Duration>,
    /// The time that it has waited for the second level of the cache, once it is known not to be a
    /// hit.
    pub level_wait: Option<Arc<LevelWait>>,
}

impl RequestContext {
    /// Begins a span for a step of the work for the request.
    fn span(&self, name: &'static str) -> Span {
        self.call.trace.span(name)
    }

    /// Returns a context for work that is a part of that step.
    fn within(&self, span: &Span) -> Self {
        let mut within = self.clone();
        within.call.trace = self.call.trace.within(span);
        within
    }

    /// Returns the time of its arrival, by both clocks.
    fn now(&self) -> Now {
        Now {
            wall: self.wall,
            monotonic: self.arrived,
        }
    }

    /// Returns the upstream's `policy` as restricted by the client.
    fn freshness(&self, policy: &Freshness) -> Freshness {
        match self.max_age {
            None => *policy,
            Some(max_age) => Freshness {
                refresh: policy.refresh.min(max_age),
                metadata_ttl: policy.metadata_ttl.min(max_age),
                max_stale: Duration::ZERO,
                stale_while_revalidate: Duration::ZERO,
                ..*policy
            },
        }
    }
}

/// Ends the span of a plan: the state of the cache, and the number of ranges that are `missing`.
fn planned(mut planning: Span, lookup: Lookup, missing: usize) {
    planning.text("heliostat.held", &lookup);
    planning.number("heliostat.missing_ranges", missing);
}

impl Engine {
    /// Returns an engine over `registry` that answers from `memory`; no answer has more than
    /// `max_points` points. It takes the place of an earlier engine over that.
    pub fn new(
        registry: Registry,
        memory: Arc<Memory>,
        max_points: u32,
        clock: Arc<dyn Clock>,
    ) -> Arc<Self> {
        let engine = Arc::new(Self {
            registry,
            known: KnownQueries::new(memory.bytes),
            memory,
            clock,
            max_points,
        });
        *engine.memory.engine() = Arc::downgrade(&engine);
        engine
    }

    /// Returns the upstreams.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Returns the cached state, for an engine that takes its place.
    pub fn memory(&self) -> Arc<Memory> {
        self.memory.clone()
    }

    /// Returns the configured upstreams.
    pub fn upstreams(&self) -> &[Arc<Upstream>] {
        self.registry.upstreams()
    }

    /// Returns the upstream `name`, or the default one, if it speaks Prometheus' API.
    pub fn prometheus(&self, name: Option<&str>) -> Result<Arc<Upstream>, Error> {
        let found = self.registry.named(name).cloned().ok_or_else(|| {
            let speaks = |u: &&Arc<Upstream>| u.adapter.speaks_promql();
            let names: Vec<_> = self.upstreams().iter().filter(speaks).collect();
            let names: Vec<_> = names.iter().map(|u| u.name()).collect();
            let message = format!(
                "there is no upstream of this name; of kind prometheus are: {}",
                names.join(", ")
            );
            Error::new(Kind::PathNotFound, message)
        })?;
        if !found.adapter.speaks_promql() {
            let message = format!(
                "the upstream {} is not of kind prometheus; name one that is by /prometheus/NAME",
                found.name()
            );
            return Err(Error::invalid("path", message));
        }
        Ok(found)
    }

    /// Tests the connection to the upstream that `details` pick.
    pub async fn test(&self, details: &Details, context: &RequestContext) -> Result<(), Error> {
        let upstream = self.registry.pick(details)?;
        let exchange = upstream
            .adapter
            .health(&lane::forwarded(&upstream, details));
        // A trial, which is sent even while the breaker is open.
        let call = CallContext {
            trial: true,
            ..context.call.clone()
        };
        let call = upstream.client.run(exchange, &call);
        match tokio::time::timeout_at(context.deadline, call).await {
            Ok(answered) => answered.map(|_| ()),
            Err(_) => Err(fetch::too_late()),
        }
    }

    /// Asks each address of `upstream` whether it is well, and returns what each said.
    pub async fn test_each(
        &self,
        upstream: &Upstream,
        context: &RequestContext,
    ) -> Vec<(String, Result<(), Error>)> {
        let details = lane::forwarded(upstream, &Details::default());
        let exchange = upstream.adapter.health(&details);
        upstream.client.run_at_each(&exchange, &context.call).await
    }

    /// Returns the weight of what is cached besides chunks, in bytes.
    fn others(&self) -> u64 {
        let memory = &self.memory;
        let shared = memory.whole.weight() + memory.analyses.weight() + memory.paces.weight();
        shared + self.known.weight()
    }

    /// Returns the weight of the cached data and its upper bound, in bytes.
    pub fn weight(&self) -> (u64, u64) {
        let memory = &self.memory;
        (memory.cache.weight() + self.others(), memory.bytes)
    }

    /// Sets the gauges of `/metrics`; called when they are read.
    pub fn observe(&self) {
        self.memory.cache.observe(self.others());
        self.registry.observe();
        if let Some(second) = &self.memory.second {
            second.observe();
        }
    }
}

#[cfg(test)]
mod tests;
