//! Names and values of fields: cached whole for a while, fetched once for all who ask.

use std::sync::Arc;
use std::time::Duration;

use moka::sync::Cache;

use super::answer::CacheOutcome;
use super::explain::{Explanation, ResponseReport};
use super::fetch::too_late;
use super::lane::forwarded;
use super::plan::Lookup;
use super::{Engine, RequestContext, planned};
use crate::adapters::Forwarded;
use crate::model::{
    Details, Error, Field, FieldNamesQuery, FieldValue, FieldValues, FieldValuesQuery, Millis,
    Origin, Scope, Step, TimeRange,
};
use crate::upstream::{Flights, Upstream};

/// What a list is known by. Details may hold secrets, so it cannot be printed.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    upstream: u64,
    details: Forwarded,
    question: MetadataQuery,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum MetadataQuery {
    Names(FieldNamesQuery),
    Values(FieldValuesQuery),
}

/// What an upstream answered.
#[derive(Clone, Debug)]
enum List {
    Names(Vec<Field>, bool),
    Values(FieldValues),
}

#[derive(Debug)]
struct Entry {
    list: List,
    fetched: Duration,
}

/// Lists that were fetched, and fetches under way.
pub(super) struct Metadata {
    lists: Cache<Key, Arc<Entry>>,
    flights: Flights<Key, Arc<Entry>>,
}

/// A list and what the cache had to do with it.
#[derive(Debug)]
pub struct CachedList<T> {
    /// The list.
    pub list: T,
    /// What the cache had to do with it.
    pub cache: CacheOutcome,
}

impl Metadata {
    /// A cache for lists of at most `bytes` in all.
    pub(super) fn new(bytes: u64) -> Self {
        let weigh = |_: &Key, entry: &Arc<Entry>| {
            u32::try_from(entry.list.heap_bytes() + 512).unwrap_or(u32::MAX)
        };
        Self {
            lists: Cache::builder().max_capacity(bytes).weigher(weigh).build(),
            flights: Flights::default(),
        }
    }

    /// Forgets the lists of the upstreams that `which` picks.
    pub(super) fn invalidate(&self, which: impl Fn(u64) -> bool) {
        self.flights.abandon(|key| which(key.upstream));
        for (key, _) in &self.lists {
            if which(key.upstream) {
                self.lists.invalidate(&*key);
            }
        }
    }
}

impl List {
    fn heap_bytes(&self) -> usize {
        match self {
            Self::Names(fields, _) => fields
                .iter()
                .map(|f| size_of::<Field>() + f.name.len())
                .sum(),
            Self::Values(values) => values
                .values
                .iter()
                .map(|v| match v {
                    FieldValue::Complete(v) | FieldValue::Prefix(v) => {
                        size_of::<FieldValue>() + v.len()
                    }
                })
                .sum(),
        }
    }

    fn is_whole(&self) -> bool {
        !match self {
            Self::Names(_, partial) => *partial,
            Self::Values(values) => values.partial,
        }
    }
}

impl Engine {
    /// Answers a query for the names of fields, and whether some are left out.
    pub async fn field_names(
        self: &Arc<Self>,
        details: &Details,
        query: &FieldNamesQuery,
        context: &RequestContext,
    ) -> Result<CachedList<(Vec<Field>, bool)>, Error> {
        let upstream = self.registry.pick(details)?;
        let limit = self.limit(&query.scope);
        let question = self.names(&upstream, query);
        let listed = self.list(&upstream, details, question, context).await?;
        let (mut fields, mut partial) = match listed.list {
            List::Names(fields, partial) => (fields, partial),
            List::Values(_) => (Vec::new(), false),
        };
        if fields.len() > limit {
            fields.truncate(limit);
            partial = true;
        }
        Ok(CachedList {
            list: (fields, partial),
            cache: listed.cache,
        })
    }

    /// Answers a query for the values of a field.
    pub async fn field_values(
        self: &Arc<Self>,
        details: &Details,
        query: &FieldValuesQuery,
        context: &RequestContext,
    ) -> Result<CachedList<FieldValues>, Error> {
        let upstream = self.registry.pick(details)?;
        let whole = upstream.adapter.lists_whole();
        let limit = self.limit(&query.scope);
        let question = self.values(&upstream, query);
        let listed = self.list(&upstream, details, question, context).await?;
        let values = match listed.list {
            List::Values(values) => values,
            List::Names(..) => FieldValues::default(),
        };
        let list = if whole {
            let all: Vec<String> = values
                .values
                .into_iter()
                .map(FieldValue::into_text)
                .collect();
            let mut page = FieldValues::page(&all, &query.prefix, query.offset as usize, limit);
            page.partial |= values.partial;
            page
        } else {
            values
        };
        Ok(CachedList {
            list,
            cache: listed.cache,
        })
    }

    /// What the names of fields would be answered with.
    pub fn explain_names(
        &self,
        details: &Details,
        query: &FieldNamesQuery,
        context: &RequestContext,
    ) -> Result<Explanation, Error> {
        let upstream = self.registry.pick(details)?;
        let question = self.names(&upstream, query);
        Ok(self.explain_list(&upstream, details, question, context))
    }

    /// What the values of a field would be answered with.
    pub fn explain_values(
        &self,
        details: &Details,
        query: &FieldValuesQuery,
        context: &RequestContext,
    ) -> Result<Explanation, Error> {
        let upstream = self.registry.pick(details)?;
        let question = self.values(&upstream, query);
        Ok(self.explain_list(&upstream, details, question, context))
    }

    fn explain_list(
        &self,
        upstream: &Arc<Upstream>,
        details: &Details,
        question: MetadataQuery,
        context: &RequestContext,
    ) -> Explanation {
        let key = Key {
            upstream: upstream.id,
            details: forwarded(upstream, details),
            question,
        };
        let lifetime = context.freshness(&upstream.freshness).metadata_ttl;
        let known = self.memory.metadata.lists.get(&key);
        let known = known.map(|e| (context.arrived.saturating_sub(e.fetched), lifetime));
        let under_way = self.memory.metadata.flights.is_under_way(&key);
        Explanation::new(
            upstream,
            Vec::new(),
            Some(ResponseReport::of(known, under_way)),
            context,
        )
    }

    /// What is asked of `upstream` for `query`.
    fn names(&self, upstream: &Upstream, query: &FieldNamesQuery) -> MetadataQuery {
        let mut asked = query.clone();
        self.normalize(&mut asked.scope, upstream, upstream.adapter.lists_whole());
        MetadataQuery::Names(asked)
    }

    /// What is asked of `upstream` for `query`.
    fn values(&self, upstream: &Upstream, query: &FieldValuesQuery) -> MetadataQuery {
        let whole = upstream.adapter.lists_whole();
        let mut asked = query.clone();
        self.normalize(&mut asked.scope, upstream, whole);
        if whole {
            asked.prefix.clear();
            asked.offset = 0;
        }
        MetadataQuery::Values(asked)
    }

    fn limit(&self, scope: &Scope) -> usize {
        scope.limit.unwrap_or(u32::MAX).min(self.max_points) as usize
    }

    /// Makes queries that want the same alike: the time range is widened to whole
    /// `metadata_ttl`s, so that a range that slides along finds what was fetched a moment ago,
    /// and a limit is left out where lists come whole anyway.
    fn normalize(&self, scope: &mut Scope, upstream: &Upstream, whole: bool) {
        let ttl = Millis::try_from(upstream.freshness.metadata_ttl.as_millis());
        let grid = ttl.ok().and_then(Step::new).unwrap_or(Step::SECOND);
        scope.start = scope.start.map(|t| grid.floor(t));
        scope.end = scope.end.map(|t| grid.ceil(t));
        scope.limit = if whole {
            None
        } else {
            scope.limit.or(Some(self.max_points))
        };
    }

    async fn list(
        self: &Arc<Self>,
        upstream: &Arc<Upstream>,
        details: &Details,
        question: MetadataQuery,
        context: &RequestContext,
    ) -> Result<CachedList<List>, Error> {
        let key = Key {
            upstream: upstream.id,
            details: forwarded(upstream, details),
            question,
        };
        let planning = context.span("plan");
        let freshness = context.freshness(&upstream.freshness);
        let ttl = freshness.metadata_ttl;
        let known = self.memory.metadata.lists.get(&key);
        let age = |entry: &Entry| context.arrived.saturating_sub(entry.fetched);
        let seconds = |d: Duration| i64::try_from(d.as_secs()).unwrap_or(i64::MAX);
        let mut cache = CacheOutcome {
            lookup: known.as_ref().map_or(Lookup::Miss, |_| Lookup::Stale),
            ttl_seconds: seconds(ttl),
            ..CacheOutcome::nothing_asked()
        };
        if let Some(entry) = known.as_ref().filter(|e| age(e) < ttl) {
            cache.lookup = Lookup::Hit;
            planned(planning, cache.lookup, 0);
            cache.ttl_seconds = seconds(ttl.saturating_sub(age(entry)));
            let list = entry.list.clone();
            return Ok(CachedList { list, cache });
        }
        planned(planning, cache.lookup, 1);
        let mut span = context.span("fetch");
        let within = context.within(&span);
        let fetch = |_| fetch(self.clone(), upstream.clone(), key.clone(), within.clone());
        let (flights, trace) = (&self.memory.metadata.flights, &within.call.trace);
        let boarded = flights.join_or_start(&key, &[TimeRange::ALL], trace, fetch);
        boarded.show(&mut span);
        if boarded.joined > 0 {
            cache.collapsed = true;
            upstream.metrics.coalesced.increment(1);
        }
        let mut landed = Err(too_late());
        if let Some(flight) = boarded.flights.first() {
            let waited = tokio::time::timeout_at(context.deadline, flight.outcome()).await;
            landed = waited.unwrap_or_else(|_| Err(too_late()));
        }
        if let Err(error) = &landed {
            span.fail(&error.kind);
        }
        span.end();
        match (landed, known) {
            (Ok(entry), _) => {
                cache.stored = entry.list.is_whole() || !upstream.adapter.lists_whole();
                let list = entry.list.clone();
                Ok(CachedList { list, cache })
            }
            (Err(error), Some(entry))
                if error.kind.origin() != Origin::Client
                    && age(&entry) < ttl.saturating_add(freshness.max_stale) =>
            {
                cache.expired(&error.to_string(), age(&entry).saturating_sub(ttl), None);
                let list = entry.list.clone();
                Ok(CachedList { list, cache })
            }
            (Err(error), _) => Err(error),
        }
    }
}

async fn fetch(
    engine: Arc<Engine>,
    upstream: Arc<Upstream>,
    key: Key,
    context: RequestContext,
) -> Result<Arc<Entry>, Error> {
    let since = engine.memory.generation();
    let fetched = engine.clock.monotonic();
    let call = &context.call;
    let list = match &key.question {
        MetadataQuery::Names(query) => {
            let exchange = upstream.adapter.field_names(&key.details, query)?;
            let (names, partial) = upstream.client.run(exchange, call).await?.value;
            List::Names(names, partial)
        }
        MetadataQuery::Values(query) => {
            let exchange = upstream.adapter.field_values(&key.details, query)?;
            List::Values(upstream.client.run(exchange, call).await?.value)
        }
    };
    let entry = Arc::new(Entry { list, fetched });
    // A list that lacks something because of its limit is what was asked for; one that should be
    // whole and is not, is not kept.
    if entry.list.is_whole() || !upstream.adapter.lists_whole() {
        let keep = || engine.memory.metadata.lists.insert(key, entry.clone());
        engine.memory.if_current(since, keep);
    }
    Ok(entry)
}
