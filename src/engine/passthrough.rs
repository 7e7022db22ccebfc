//! ResponseReport answers of Prometheus' API, passed on as they came: cached for a while where they may be,
//! fetched once for all who ask.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderName, HeaderValue, Method};
use moka::sync::Cache;
use url::form_urlencoded;

use super::answer::{CacheOutcome, Timing};
use super::explain::{Explanation, ResponseReport};
use super::fetch::too_late;
use super::plan::Lookup;
use super::{Engine, RequestContext, planned};
use crate::adapters::Request;
use crate::adapters::prometheus::pass;
use crate::model::{Error, Freshness, Kind, Millis, Origin, RawResponse, TimeRange};
use crate::promql::{Analysis, classify};
use crate::upstream::{Flights, Upstream};

/// What an entry takes besides what it holds: what moka and the allocator keep for it.
const ENTRY_OVERHEAD: usize = 600;

/// What is asked. Two clients that ask the same get the same answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PassthroughRequest {
    /// Path below the upstream's URL.
    pub path: String,
    /// Parameters of the URL and of the form.
    pub params: Vec<(String, String)>,
    /// The body, if it is no form.
    pub body: Bytes,
    /// Headers that are passed on: who asks, and what the body is.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Whether the answer has to be JSON.
    pub json: bool,
}

/// For how long an answer may be kept.
#[derive(Clone, Debug)]
pub enum CachePolicy {
    /// Not at all, for this reason.
    NoStore(&'static str),
    /// As long as data that may still change (`refresh`).
    Short,
    /// As long as lists of names and values (`metadata_ttl`).
    Metadata,
    /// As long as settled data (`history_ttl`): it depends on nothing but the question.
    Settled,
    /// It is the value of `query` at `time`: as settled data if all that is read for it had settled
    /// when it was fetched, else as data that may still change.
    AtTime {
        /// An expression of PromQL.
        query: String,
        /// The evaluation time.
        time: Millis,
    },
}

/// An answer and what the cache had to do with it.
#[derive(Debug)]
pub struct CachedResponse {
    /// The answer.
    pub answer: Arc<RawResponse>,
    /// What the cache had to do with it.
    pub cache: CacheOutcome,
    /// Where its time went.
    pub timing: Timing,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Identity {
    upstream: u64,
    question: PassthroughRequest,
}

type Key = Arc<Identity>;

#[derive(Debug)]
struct Entry {
    answer: Arc<RawResponse>,
    /// For how long it is good. What changes with time is settled when it is fetched or never:
    /// it does not become so by growing old here.
    keep: CachePolicy,
    fetched: Duration,
}

/// Answers that were fetched, and fetches under way.
pub(super) struct Answers {
    kept: Cache<Key, Arc<Entry>>,
    flights: Flights<Key, Arc<Entry>>,
}

impl Answers {
    /// A cache for answers of at most `bytes` in all.
    pub(super) fn new(bytes: u64) -> Self {
        let weigh = |key: &Key, entry: &Arc<Entry>| {
            let bytes = key.heap_bytes() + entry.answer.heap_bytes() + ENTRY_OVERHEAD;
            u32::try_from(bytes).unwrap_or(u32::MAX)
        };
        Self {
            kept: Cache::builder().max_capacity(bytes).weigher(weigh).build(),
            flights: Flights::default(),
        }
    }

    /// Forgets the answers of the upstreams that `which` picks.
    pub(super) fn invalidate(&self, which: impl Fn(u64) -> bool) {
        self.flights.abandon(|key| which(key.upstream));
        for (key, _) in &self.kept {
            if which(key.upstream) {
                self.kept.invalidate(&**key);
            }
        }
    }
}

impl Identity {
    fn heap_bytes(&self) -> usize {
        let PassthroughRequest {
            path,
            params,
            body,
            headers,
            json: _,
        } = &self.question;
        let params: usize = params.iter().map(|(n, v)| 48 + n.len() + v.len()).sum();
        let headers: usize = headers.iter().map(|(_, v)| 72 + v.len()).sum();
        size_of::<Self>() + path.len() + params + body.len() + headers
    }
}

impl PassthroughRequest {
    fn request(&self, method: Method) -> Request {
        let mut path = self.path.clone();
        let mut headers = self.headers.clone();
        let mut body = self.body.clone();
        let pairs = form_urlencoded::Serializer::new(String::new())
            .extend_pairs(&self.params)
            .finish();
        if method == Method::POST && body.is_empty() {
            let form = HeaderValue::from_static("application/x-www-form-urlencoded");
            headers.push((CONTENT_TYPE, form));
            body = pairs.into();
        } else if !pairs.is_empty() {
            path.push('?');
            path.push_str(&pairs);
        }
        Request {
            method,
            path,
            headers,
            body,
        }
    }
}

impl CachePolicy {
    /// For how long that is; not at all if `None`.
    fn lifetime(&self, freshness: &Freshness) -> Option<Duration> {
        match self {
            Self::NoStore(_) => None,
            Self::Short | Self::AtTime { .. } => Some(freshness.refresh),
            Self::Metadata => Some(freshness.metadata_ttl),
            Self::Settled => Some(freshness.history_ttl),
        }
    }

    /// The same of an answer that was given at `as_of`.
    fn resolved(self, as_of: Millis, settle: Millis) -> Self {
        let Self::AtTime { query, time } = self else {
            return self;
        };
        match classify(&query) {
            Analysis::PerInstant { lag }
                if time.saturating_sub(lag) < as_of.saturating_sub(settle) =>
            {
                Self::Settled
            }
            _ => Self::Short,
        }
    }
}

impl Engine {
    /// The upstream `name`, or the default one, if it speaks Prometheus' API.
    pub fn prometheus(&self, name: Option<&str>) -> Result<Arc<Upstream>, Error> {
        let found = self.registry.named(name).cloned().ok_or_else(|| {
            let speaks = |u: &&Arc<Upstream>| u.adapter.as_prometheus().is_some();
            let names: Vec<_> = self.upstreams().iter().filter(speaks).collect();
            let names: Vec<_> = names.iter().map(|u| u.name()).collect();
            let message = format!(
                "there is no upstream of this name; of kind prometheus are: {}",
                names.join(", ")
            );
            Error::new(Kind::PathNotFound, message)
        })?;
        if found.adapter.as_prometheus().is_none() {
            let message = format!(
                "the upstream {} is not of kind prometheus; name one that is by /prometheus/NAME",
                found.name()
            );
            return Err(Error::invalid("path", message));
        }
        Ok(found)
    }

    /// What `question` would be answered with.
    pub fn explain_response(
        &self,
        upstream: &Arc<Upstream>,
        question: PassthroughRequest,
        keep: &CachePolicy,
        context: &RequestContext,
    ) -> Explanation {
        let freshness = context.freshness(&upstream.freshness);
        let key = Arc::new(Identity {
            upstream: upstream.id,
            question,
        });
        let kept = match keep {
            CachePolicy::NoStore(_) => None,
            _ => self.memory.answers.kept.get(&key),
        };
        let known = kept.map(|entry| {
            let age = context.arrived.saturating_sub(entry.fetched);
            (age, entry.keep.lifetime(&freshness).unwrap_or_default())
        });
        let under_way = self.memory.answers.flights.is_under_way(&key);
        let whole = ResponseReport::of(known, under_way);
        let mut explained = Explanation::new(upstream, Vec::new(), Some(whole), context);
        if let CachePolicy::NoStore(reason) = keep {
            explained.bypass = Some(reason);
        }
        explained
    }

    /// What `upstream` answers to `question`, which is asked by `method`, GET or POST.
    pub async fn pass_through(
        self: &Arc<Self>,
        upstream: &Arc<Upstream>,
        method: Method,
        question: PassthroughRequest,
        keep: CachePolicy,
        context: &RequestContext,
    ) -> Result<CachedResponse, Error> {
        let planning = context.span("plan");
        let freshness = context.freshness(&upstream.freshness);
        let age = |entry: &Entry| context.arrived.saturating_sub(entry.fetched);
        let mut cache = CacheOutcome::nothing_asked();
        let key = Arc::new(Identity {
            upstream: upstream.id,
            question,
        });
        let mut known = None;
        if let CachePolicy::NoStore(reason) = keep {
            cache.bypass = Some(reason);
        } else {
            known = self.memory.answers.kept.get(&key);
            cache.lookup = known.as_ref().map_or(Lookup::Miss, |_| Lookup::Stale);
        }
        let known = known.map(|entry| {
            let ttl = entry.keep.lifetime(&freshness).unwrap_or_default();
            (entry, ttl)
        });
        if let Some((entry, ttl)) = known.as_ref().filter(|(e, ttl)| age(e) < *ttl) {
            cache.lookup = Lookup::Hit;
            planned(planning, cache.lookup, 0);
            cache.ttl_seconds = seconds(ttl.saturating_sub(age(entry)));
            return Ok(CachedResponse {
                answer: entry.answer.clone(),
                cache,
                timing: Timing::default(),
            });
        }
        let begun = self.clock.monotonic();
        let held = known.as_ref().map_or(Lookup::Miss, |_| Lookup::Stale);
        planned(planning, held, 1);
        let mut span = context.span("fetch");
        let within = context.within(&span);
        let (flights, trace) = (&self.memory.answers.flights, &within.call.trace);
        let boarded = flights.join_or_start(&key, &[TimeRange::ALL], trace, |_| {
            fetch(
                self.clone(),
                upstream.clone(),
                method.clone(),
                key.clone(),
                keep.clone(),
                within.clone(),
            )
        });
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
        let timing = Timing {
            fetch: self.clock.monotonic().saturating_sub(begun),
            ..Timing::default()
        };
        let answer = match (landed, known) {
            (Ok(entry), _) => {
                let lifetime = entry.keep.lifetime(&upstream.freshness);
                cache.stored = lifetime.is_some_and(|ttl| !ttl.is_zero());
                entry.answer.clone()
            }
            (Err(error), Some((entry, ttl)))
                if error.kind.origin() != Origin::Client
                    && age(&entry) < ttl.saturating_add(freshness.max_stale) =>
            {
                cache.ttl_seconds = seconds(ttl);
                cache.expired(&error.to_string(), age(&entry).saturating_sub(ttl), None);
                upstream.metrics.stale_served.increment(1);
                entry.answer.clone()
            }
            (Err(error), _) => return Err(error),
        };
        Ok(CachedResponse {
            answer,
            cache,
            timing,
        })
    }
}

fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}

async fn fetch(
    engine: Arc<Engine>,
    upstream: Arc<Upstream>,
    method: Method,
    key: Key,
    keep: CachePolicy,
    context: RequestContext,
) -> Result<Arc<Entry>, Error> {
    let since = engine.memory.generation();
    let fetched = engine.clock.monotonic();
    let exchange = pass(key.question.request(method), key.question.json);
    let answered = upstream.client.run(exchange, &context.call).await?;
    let keep = if answered.value.complete {
        keep.resolved(answered.as_of, upstream.freshness.settle)
    } else {
        CachePolicy::NoStore("incomplete")
    };
    let kept = !matches!(keep, CachePolicy::NoStore(_));
    let entry = Arc::new(Entry {
        answer: answered.value.answer,
        keep,
        fetched,
    });
    if kept {
        let keep = || engine.memory.answers.kept.insert(key, entry.clone());
        engine.memory.if_current(since, keep);
        // What is over the bound goes now; by itself moka evicts some hundred writes later.
        engine.memory.answers.kept.run_pending_tasks();
    }
    Ok(entry)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_settled_when_all_that_it_reads_is() {
        let settled = |query: &str, time| {
            let keep = CachePolicy::AtTime {
                query: query.to_owned(),
                time,
            };
            matches!(keep.resolved(1_000_000, 120_000), CachePolicy::Settled)
        };
        assert!(settled("up", 879_999));
        assert!(!settled("up", 880_000));
        assert!(settled("up offset 1m", 939_999));
        assert!(!settled("up offset 1m", 940_000));
        assert!(settled("vector(1)", 2_000_000));
        assert!(!settled("up offset -1h", 0));
        assert!(!settled("up @ 5", 0));
    }

    #[test]
    fn a_question_is_asked_as_the_client_asked() {
        let question = PassthroughRequest {
            path: "/api/v1/series".to_owned(),
            params: vec![("match[]".to_owned(), "a b".to_owned())],
            body: Bytes::new(),
            headers: Vec::new(),
            json: true,
        };
        let get = question.request(Method::GET);
        assert_eq!(get.path, "/api/v1/series?match%5B%5D=a+b");
        assert!(get.body.is_empty() && get.headers.is_empty());
        let post = question.request(Method::POST);
        assert_eq!(post.path, "/api/v1/series");
        assert_eq!(post.body, "match%5B%5D=a+b");
        assert_eq!(post.headers.len(), 1);
        let packed = PassthroughRequest {
            body: Bytes::from_static(b"\x00"),
            ..question
        };
        let read = packed.request(Method::POST);
        assert_eq!(read.path, "/api/v1/series?match%5B%5D=a+b");
        assert_eq!(read.body, "\x00");
        assert!(read.headers.is_empty());
    }
}
