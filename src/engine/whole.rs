//! One cache of whole answers: lists of names and values, and responses of Prometheus' API. Each is
//! fetched once for all clients, cached for a while, and served expired while the upstream fails.

mod cache;
mod identity;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

pub(super) use self::cache::WholeCache;
pub(super) use self::identity::{WholeIdentity, WholeKey, WholeQuery};
use super::encoded::EncodedResponse;
use super::explain::ResponseReport;
use super::fetch::too_late;
use super::invalidate::Generation;
use super::metadata::List;
use super::outcome::{CacheOutcome, Timing};
use super::plan::Lookup;
use super::{Engine, RequestContext, planned};
use crate::model::{Error, Freshness, Millis, Origin, TimeRange, heap_block};
use crate::promql::Reads;
use crate::upstream::Upstream;

/// The time for which an answer may be cached.
#[derive(Clone, Debug)]
pub enum CachePolicy {
    /// Not at all, for this reason; but an error about the query is cached as `Short` is.
    NoStore(&'static str),
    /// As long as data that may still change (`refresh`).
    Short,
    /// As long as lists of names and values (`metadata_ttl`).
    Metadata,
    /// As long as settled data (`history_ttl`): it depends on nothing but the query.
    Settled,
    /// As the value of an expression at `time`: as settled data if all data it depends on had
    /// settled when it was fetched, else as data that may still change.
    AtTime {
        /// The data that the value depends on, if that is known.
        reads: Option<Reads>,
        /// The evaluation time.
        time: Millis,
        /// Set if there is no newer one to ask for at present.
        newest: bool,
    },
}

impl CachePolicy {
    /// Returns the time for which an answer is fresh; `None` if it may not be cached.
    pub(super) fn lifetime(&self, freshness: &Freshness) -> Option<Duration> {
        match self {
            Self::NoStore(_) => None,
            Self::Short | Self::AtTime { .. } => Some(freshness.refresh),
            Self::Metadata => Some(freshness.metadata_ttl),
            Self::Settled => Some(freshness.history_ttl),
        }
    }
}

/// The result of a fetch.
pub(super) enum Content {
    /// A list of which pages are made.
    List(List),
    /// The answer itself.
    Response(EncodedResponse),
    /// An error that the upstream has about the query.
    Error(Error),
    /// The key of the answer.
    Alias(WholeKey),
}

impl Content {
    pub(super) fn heap_bytes(&self) -> usize {
        match self {
            Self::List(list) => list.heap_bytes(),
            Self::Response(response) => response.heap_bytes(),
            Self::Error(error) => {
                let said = error.said.as_ref().map_or(0, |said| said.heap_bytes());
                heap_block(error.message.capacity()) + said
            }
            Self::Alias(_) => 0,
        }
    }

    /// Returns whether it is an error, in whatever form.
    pub(super) fn is_error(&self) -> bool {
        match self {
            Self::List(_) | Self::Alias(_) => false,
            Self::Response(response) => response.is_error(),
            Self::Error(_) => true,
        }
    }
}

/// The result of a fetch.
pub(super) struct WholeFetch {
    pub(super) content: Content,
    pub(super) policy: CachePolicy,
    /// The time at which it was requested, by the monotonic clock: after its wait in the queue.
    pub(super) sent: Duration,
}

/// An answer that was fetched.
pub(super) struct WholeEntry {
    pub(super) content: Content,
    /// The time for which it is fresh. Whether data has settled is decided when it is fetched: an
    /// entry does not become settled with age.
    pub(super) policy: CachePolicy,
    /// The time that its age counts from, by the monotonic clock.
    pub(super) fetched: Duration,
}

impl WholeEntry {
    /// Returns an entry that is never fresh itself.
    pub(super) fn unstored(content: Content) -> Arc<Self> {
        Arc::new(Self {
            content,
            policy: CachePolicy::NoStore("not cached itself"),
            fetched: Duration::ZERO,
        })
    }

    fn age(&self, context: &RequestContext) -> Duration {
        context.arrived.saturating_sub(self.fetched)
    }
}

/// An answer and the part that the cache had in it.
pub(super) struct WholeAnswer {
    pub(super) entry: Arc<WholeEntry>,
    pub(super) cache: CacheOutcome,
    pub(super) timing: Timing,
}

impl Engine {
    /// Returns the answer cached under `key`, if it is fresh: a hit.
    pub(super) fn fresh_whole(
        &self,
        upstream: &Upstream,
        key: &WholeKey,
        context: &RequestContext,
    ) -> Option<WholeAnswer> {
        let entry = self.memory.whole.entries.get(key)?;
        let lifetime = entry
            .policy
            .lifetime(&context.freshness(&upstream.freshness));
        let left = lifetime?.checked_sub(entry.age(context))?;
        (!left.is_zero()).then(|| WholeAnswer {
            cache: CacheOutcome {
                ttl_seconds: seconds(left),
                error: entry.content.is_error(),
                ..CacheOutcome::nothing_asked()
            },
            timing: Timing::default(),
            entry,
        })
    }

    /// Returns the error of the upstream about the query under `key`, if it is less than a refresh
    /// old.
    pub(super) fn remembered(
        &self,
        upstream: &Upstream,
        key: &WholeKey,
        context: &RequestContext,
    ) -> Option<Error> {
        self.fresh_or_error(upstream, key, context)?.err()
    }

    /// Returns the answer cached under `key`, or the error of the upstream about the query, if it is
    /// fresh.
    fn fresh_or_error(
        &self,
        upstream: &Upstream,
        key: &WholeKey,
        context: &RequestContext,
    ) -> Option<Result<WholeAnswer, Error>> {
        let answer = self.fresh_whole(upstream, key, context)?;
        Some(match &answer.entry.content {
            Content::Error(error) => Err(Error {
                remembered: true,
                ..error.clone()
            }),
            Content::List(_) | Content::Response(_) | Content::Alias(_) => Ok(answer),
        })
    }

    /// Remembers `error`, with which a fetch that began at `fetched` ended, if it is about the
    /// query and nothing has been invalidated `since`.
    pub(super) fn remember(
        &self,
        since: Generation,
        fetched: Duration,
        key: &WholeKey,
        error: &Error,
    ) {
        // Expired data is better than an error that may pass.
        let better = |known: Arc<WholeEntry>| {
            !known.content.is_error() && error.kind.origin() != Origin::Client
        };
        if !error.is_about_query() || self.memory.whole.entries.get(key).is_some_and(better) {
            return;
        }
        let entry = Arc::new(WholeEntry {
            content: Content::Error(error.clone()),
            policy: CachePolicy::Short,
            fetched,
        });
        let store = || self.memory.whole.insert(key.clone(), entry);
        self.memory.if_current(since, store);
    }

    /// Returns the fresh answer cached under `key`, or the result of `fetch`, or, where that fails,
    /// a cached answer that expired no longer ago than `max_stale`. `bypass` is the reason for
    /// which the cache is not used, if there is one. Answers of expired data are counted. `newest`
    /// is the key of the same query without its evaluation time.
    pub(super) async fn whole<F>(
        self: &Arc<Self>,
        upstream: &Arc<Upstream>,
        key: &WholeKey,
        newest: Option<&WholeKey>,
        bypass: Option<&'static str>,
        context: &RequestContext,
        fetch: impl Fn(RequestContext) -> F,
    ) -> Result<WholeAnswer, Error>
    where
        F: Future<Output = Result<WholeFetch, Error>> + Send + 'static,
    {
        let planning = context.span("plan");
        // Of answers that bypass the cache, only errors are in it.
        let mut remembered = match self.fresh_or_error(upstream, key, context) {
            Some(Ok(hit)) => {
                planned(planning, hit.cache.lookup, 0);
                return Ok(hit);
            }
            Some(Err(error)) => Some(error),
            None => None,
        };
        let freshness = context.freshness(&upstream.freshness);
        // Returns the answer that is known, and the time for which it is fresh.
        let known = || {
            let whole = &self.memory.whole;
            let known = whole.entries.get(key);
            let known = known.filter(|entry| bypass.is_none() && !entry.content.is_error());
            let lifetime = |entry: &WholeEntry| entry.policy.lifetime(&freshness);
            match known {
                Some(entry) => Some((lifetime(&entry).unwrap_or_default(), entry)),
                // What was settled at its time is not what is asked for now.
                None => Some((freshness.refresh, whole.behind(newest?)?)),
            }
        };
        let begun = self.clock.monotonic();
        let (counting, wait) = context.counting();
        let context = &counting;
        let mut known_now = known();
        if remembered.is_none() && bypass.is_none() {
            let any = known_now.is_some();
            let asked = self.ask_second_level_whole(upstream, key, newest, any, context);
            if Box::pin(asked).await {
                match self.fresh_or_error(upstream, key, context) {
                    Some(Ok(mut hit)) => {
                        planned(planning, hit.cache.lookup, 0);
                        wait.show(&mut hit.cache, &mut hit.timing);
                        return Ok(hit);
                    }
                    Some(Err(error)) => remembered = Some(error),
                    None => known_now = known(),
                }
            }
        }
        let known = known_now;
        let mut cache = CacheOutcome {
            lookup: known.as_ref().map_or(Lookup::Miss, |_| Lookup::Stale),
            bypass,
            ..CacheOutcome::nothing_asked()
        };
        planned(planning, cache.lookup, 1);
        let fetched = match remembered {
            Some(error) => Err(error),
            None => {
                let fetched = self.fetch_whole(upstream, key, newest, context, fetch, &mut cache);
                Box::pin(fetched).await
            }
        };
        let mut timing = Timing {
            fetch: self.clock.monotonic().saturating_sub(begun),
            ..Timing::default()
        };
        wait.show(&mut cache, &mut timing);
        let entry = match (fetched, known) {
            (Ok(entry), _) => {
                let lifetime = entry.policy.lifetime(&upstream.freshness);
                cache.stored = lifetime.is_some_and(|ttl| !ttl.is_zero());
                entry
            }
            (Err(error), Some((ttl, entry))) if error.kind.origin() != Origin::Client => {
                let age = entry.age(context);
                if age >= ttl.saturating_add(freshness.max_stale) {
                    return Err(error);
                }
                cache.ttl_seconds = seconds(ttl);
                cache.expired(&error.to_string(), age.saturating_sub(ttl), None);
                upstream.metrics.stale_served.increment(1);
                entry
            }
            (Err(error), _) => return Err(error),
        };
        Ok(WholeAnswer {
            entry,
            cache,
            timing,
        })
    }

    /// Waits for the fetch of `key`: one in flight, or a new one.
    async fn fetch_whole<F>(
        self: &Arc<Self>,
        upstream: &Arc<Upstream>,
        key: &WholeKey,
        newest: Option<&WholeKey>,
        context: &RequestContext,
        fetch: impl Fn(RequestContext) -> F,
        cache: &mut CacheOutcome,
    ) -> Result<Arc<WholeEntry>, Error>
    where
        F: Future<Output = Result<WholeFetch, Error>> + Send + 'static,
    {
        let mut span = context.span("fetch");
        let within = context.within(&span);
        let (flights, trace) = (&self.memory.whole.flights, &within.call.trace);
        let joined = flights.join_or_start(
            key,
            &[TimeRange::ALL],
            &TimeRange::ALL,
            trace,
            |_, waiters| {
                let mut within = within.clone();
                within.call.lane = key.number();
                within.call.waiters = waiters;
                let (upstream, newest) = (upstream.clone(), newest.cloned());
                fetch_and_store(self.clone(), upstream, key.clone(), newest, fetch(within))
            },
        );
        joined.show(&mut span);
        if joined.joined > 0 {
            cache.collapsed = true;
            upstream.metrics.coalesced.increment(1);
        }
        let mut fetched = Err(too_late());
        if let Some(flight) = joined.flights.first() {
            let waited = tokio::time::timeout_at(context.deadline, flight.outcome()).await;
            fetched = waited.unwrap_or_else(|_| Err(too_late()));
        }
        fetched.inspect_err(|error| span.fail(&error.kind))
    }

    /// Returns the page under `key`, if it was made of `list`, whether that is fresh or not.
    pub(super) fn page_made_of(
        &self,
        key: &WholeKey,
        list: &WholeEntry,
    ) -> Option<Arc<WholeEntry>> {
        let page = self.memory.whole.entries.get(key)?;
        (page.fetched == list.fetched).then_some(page)
    }

    /// Stores `page`, which was made of `list`, for as long as that is fresh, unless something has
    /// been invalidated `since`.
    pub(super) fn store_page(
        &self,
        since: Generation,
        key: WholeKey,
        list: &WholeEntry,
        page: Content,
    ) -> Arc<WholeEntry> {
        let entry = Arc::new(WholeEntry {
            content: page,
            policy: list.policy.clone(),
            fetched: list.fetched,
        });
        if !matches!(entry.policy, CachePolicy::NoStore(_)) {
            let store = || self.memory.whole.insert(key, entry.clone());
            self.memory.if_current(since, store);
        }
        entry
    }

    /// Returns the cached state of `key`, without a call to an upstream. The second level is read for
    /// it, and nothing is kept.
    pub(super) async fn report_whole(
        &self,
        upstream: &Arc<Upstream>,
        key: &WholeKey,
        context: &RequestContext,
    ) -> ResponseReport {
        let freshness = context.freshness(&upstream.freshness);
        let mut known = self.memory.whole.entries.get(key).map(|entry| {
            let lifetime = entry.policy.lifetime(&freshness).unwrap_or_default();
            (entry.age(context), lifetime)
        });
        let mut second_level = false;
        if known.is_none_or(|(age, lifetime)| age >= lifetime)
            && let Some((age, lifetime)) = self.peek_whole(upstream, key, context).await
            && known.is_none_or(|(held, _)| age < held)
        {
            (known, second_level) = (Some((age, lifetime)), true);
        }
        let under_way = self.memory.whole.flights.is_under_way(key);
        ResponseReport::of(known, second_level, under_way)
    }
}

fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}

/// Carries out one fetch: asks the upstream, and stores the answer.
async fn fetch_and_store(
    engine: Arc<Engine>,
    upstream: Arc<Upstream>,
    key: WholeKey,
    newest: Option<WholeKey>,
    fetch: impl Future<Output = Result<WholeFetch, Error>>,
) -> Result<Arc<WholeEntry>, Error> {
    let since = engine.memory.generation();
    let fetched = fetch.await.inspect_err(|error| {
        // When the call was sent that found it is not known; it took one answer's time.
        let usual = upstream.client.usual();
        let sent = engine.clock.monotonic().saturating_sub(usual);
        engine.remember(since, sent, &key, error);
    })?;
    let stored = !matches!(fetched.policy, CachePolicy::NoStore(_));
    let entry = Arc::new(WholeEntry {
        content: fetched.content,
        policy: fetched.policy,
        fetched: fetched.sent,
    });
    if stored {
        let store = || {
            let whole = &engine.memory.whole;
            if let Some(second) = &engine.memory.second {
                second.put_whole(&upstream, &key, newest.is_some(), &entry);
            }
            if let Some(newest) = newest.filter(|_| !entry.content.is_error()) {
                let alias = WholeEntry::unstored(Content::Alias(key.clone()));
                whole.insert(newest, alias);
            }
            whole.insert(key, entry.clone());
        };
        engine.memory.if_current(since, store);
    }
    Ok(entry)
}
