//! Whole answers of Prometheus' API, passed on as they came: cached for a while where possible, and
//! fetched once for all clients.

use std::sync::Arc;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderName, HeaderValue, Method};
use url::form_urlencoded;

use super::encoded::{CachedResponse, EncodedResponse};
use super::explain::Explanation;
use super::parts::read_for;
use super::range::RangeRequest;
use super::whole::{
    CachePolicy, Content, WholeAnswer, WholeFetch, WholeIdentity, WholeKey, WholeQuery,
};
use super::{Engine, RequestContext};
use crate::adapters::Request;
use crate::model::{Error, Kind, Millis, SharedText, TimeRange, heap_block, heap_headers};
use crate::upstream::{CallContext, Upstream};
use crate::wire::prometheus::write_time;

/// Longer requests take about a millisecond to write, and are written off the threads that serve
/// connections.
pub(super) const LONG: usize = 128 << 10;

/// A request that is passed on. Two clients that send the same request get the same answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PassthroughRequest {
    /// Path below the upstream's URL.
    pub path: String,
    /// Parameters of the URL and of the form. Copies of the request, such as its key, share them.
    pub params: Arc<Vec<(String, SharedText)>>,
    /// The body, if it is not a form.
    pub body: Bytes,
    /// Headers that are passed on: the client's identity and the type of the body.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Set if the answer has to be JSON.
    pub json: bool,
}

impl PassthroughRequest {
    /// Returns the same request for the evaluation time `time`.
    pub(super) fn at(&self, time: Millis) -> Self {
        self.at_text(&write_time(time))
    }

    /// The same of a time in writing.
    pub(super) fn at_text(&self, time: &str) -> Self {
        let mut at = self.clone();
        let params = Arc::make_mut(&mut at.params);
        for (_, value) in params.iter_mut().filter(|(n, _)| n == "time") {
            *value = time.into();
        }
        at
    }

    /// The evaluation time, as it is written.
    pub(super) fn time(&self) -> Option<&str> {
        let (_, time) = self.params.iter().find(|(n, _)| n == "time")?;
        Some(time)
    }

    /// Returns the key of an instant query for its newest evaluation time, whatever that is; `None`
    /// for any other request.
    pub(super) fn newest(&self, upstream: &Upstream, policy: &CachePolicy) -> Option<WholeKey> {
        matches!(policy, CachePolicy::AtTime { newest: true, .. }).then(|| {
            let params = self.params.iter().filter(|(n, _)| n != "time");
            let timeless = Self {
                params: Arc::new(params.cloned().collect()),
                ..self.clone()
            };
            WholeIdentity::new(upstream, WholeQuery::Newest(timeless))
        })
    }

    /// Returns the bytes that it holds on the heap, about.
    pub(super) fn heap_bytes(&self) -> usize {
        let Self {
            path,
            params,
            body,
            headers,
            json: _,
        } = self;
        let pair = |(n, v): &(String, SharedText)| heap_block(n.capacity()) + v.heap_bytes();
        let pairs: usize = params.iter().map(pair).sum();
        heap_block(path.capacity())
            + heap_block(size_of::<[usize; 2]>() + size_of_val(&**params))
            + heap_block(params.capacity() * size_of::<(String, SharedText)>())
            + pairs
            + heap_block(body.len())
            + heap_headers(headers)
    }

    /// Returns the bytes of its parameters' values.
    pub fn length(&self) -> usize {
        self.params.iter().map(|(_, value)| value.len()).sum()
    }

    fn request(&self, method: Method) -> Request {
        let mut path = self.path.clone();
        let mut headers = self.headers.clone();
        let mut body = self.body.clone();
        let length = self.params.iter().map(|(n, v)| encoded(n) + encoded(v) + 2);
        let pairs = String::with_capacity(length.sum());
        let pairs = form_urlencoded::Serializer::new(pairs)
            .extend_pairs(self.params.iter())
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
            units: 0,
        }
    }
}

/// Returns the bytes that `text` takes in a form.
fn encoded(text: &str) -> usize {
    let plain = |b: &u8| b.is_ascii_alphanumeric() || b"*-._ ".contains(b);
    let plain = text.as_bytes().iter().filter(|b| plain(b)).count();
    3 * text.len() - 2 * plain
}

impl CachePolicy {
    /// Returns the time span of the data that is read, if that is known: a store that was away
    /// then is asked last.
    fn span(&self, upstream: &Upstream) -> Option<TimeRange> {
        let Self::AtTime { reads, time, .. } = self else {
            return None;
        };
        let newest = reads.as_ref()?.newest(*time);
        let at = TimeRange::clamped(newest, newest.saturating_add(1));
        Some(read_for(upstream, &at))
    }

    /// Returns the policy for an answer that may be better once another address can be asked.
    fn provisional(self) -> Self {
        match self {
            Self::NoStore(reason) => Self::NoStore(reason),
            _ => Self::Short,
        }
    }

    /// Returns the policy for an answer that was given at `as_of`.
    fn resolved(self, as_of: Millis, settle: Millis) -> Self {
        let Self::AtTime { reads, time, .. } = self else {
            return self;
        };
        let edge = as_of.saturating_sub(settle);
        match reads {
            Some(reads) if reads.newest(time) < edge => Self::Settled,
            _ => Self::Short,
        }
    }
}

impl Engine {
    /// Explains how `request` would be answered.
    pub async fn explain_response(
        &self,
        upstream: &Arc<Upstream>,
        request: PassthroughRequest,
        policy: &CachePolicy,
        context: &RequestContext,
    ) -> Explanation {
        let key = WholeIdentity::new(upstream, WholeQuery::Response(request));
        let whole = self.report_whole(upstream, &key, context).await;
        let mut explained = Explanation::new(upstream, Vec::new(), Some(whole), context);
        if let CachePolicy::NoStore(reason) = policy {
            explained.bypass = Some(reason);
        }
        explained
    }

    /// Answers `request` to `upstream`, which is made by `method`, GET or POST, with the upstream's
    /// answer, and caches that as `policy` allows. For an instant query, `lane` is the range query
    /// for its one time, if its answer is the same: if the lanes of range queries have it, the
    /// upstream is not asked.
    pub async fn pass_through(
        self: &Arc<Self>,
        upstream: &Arc<Upstream>,
        method: Method,
        request: PassthroughRequest,
        policy: CachePolicy,
        lane: Option<RangeRequest>,
        context: &RequestContext,
    ) -> Result<CachedResponse, Error> {
        let key = WholeIdentity::new(upstream, WholeQuery::Response(request.clone()));
        let fresh = self.fresh_whole(upstream, &key, context).is_some();
        if let Some(lane) = lane
            && !fresh
            && let Some(answer) = self.out_of_lane(upstream, lane, context)
        {
            return self.cached_response(&key, answer, context).await;
        }
        self.instant_polled(upstream, &method, &request, &policy, fresh, context);
        let answer = self.fetch_response(upstream, method, &key, request, policy, context);
        self.cached_response(&key, answer.await?, context).await
    }

    /// Returns the cached answer to `request`, whose key is `key`, or the upstream's, which is cached as
    /// `policy` allows.
    pub(super) async fn fetch_response(
        self: &Arc<Self>,
        upstream: &Arc<Upstream>,
        method: Method,
        key: &WholeKey,
        request: PassthroughRequest,
        policy: CachePolicy,
        context: &RequestContext,
    ) -> Result<WholeAnswer, Error> {
        let bypass = match policy {
            CachePolicy::NoStore(reason) => Some(reason),
            _ => None,
        };
        let newest = request.newest(upstream, &policy);
        let is_long = request.length() > LONG;
        let fetch = |context: RequestContext| {
            let (upstream, policy) = (upstream.clone(), policy.clone());
            let (method, request) = (method.clone(), request.clone());
            async move {
                let json = request.json;
                let write = move || request.request(method);
                let sent = match is_long {
                    false => write(),
                    true => crate::work::elsewhere(write).await.map_err(|e| {
                        Error::new(Kind::Internal, format!("writing the request failed: {e}"))
                    })?,
                };
                let exchange = upstream.adapter.pass(sent, json);
                let call = CallContext {
                    span: policy.span(&upstream),
                    ..context.call
                };
                let answered = upstream.client.run(exchange?, &call).await?;
                if let Some(wait) = &context.level_wait {
                    wait.fill(answered.value.filled);
                }
                let policy = match answered.value.complete {
                    // Data that another address may know better is fetched again once that can be
                    // reached.
                    true if answered.provisional => policy.provisional(),
                    true => policy.resolved(answered.as_of, upstream.freshness.settle),
                    false if answered.value.answer.is_about_query() => CachePolicy::Short,
                    false => CachePolicy::NoStore("incomplete"),
                };
                let response = EncodedResponse::new(answered.value.answer);
                Ok(WholeFetch {
                    content: Content::Response(response),
                    policy,
                    sent: answered.sent,
                })
            }
        };
        self.whole(upstream, key, newest.as_ref(), bypass, context, fetch)
            .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_settled_when_all_that_it_reads_is() {
        let settled = |query: &str, time| {
            let keep = CachePolicy::AtTime {
                reads: crate::promql::read(query).reads,
                time,
                newest: false,
            };
            matches!(keep.resolved(1_000_000, 120_000), CachePolicy::Settled)
        };
        assert!(settled("up", 879_999));
        assert!(!settled("up", 880_000));
        assert!(settled("up offset 1m", 939_999));
        assert!(!settled("up offset 1m", 940_000));
        assert!(settled("vector(1)", 2_000_000));
        assert!(settled("up[1m]", 879_999));
        assert!(!settled("up[1m]", 880_000));
        assert!(settled("up offset -1m", 819_999));
        assert!(!settled("up offset -1m", 820_000));
        assert!(settled("up @ 5", 0));
        assert!(!settled("up @ 880", 0));
        assert!(settled("up @ 879 + topk(scalar(k), {a=\"b\"})", 0));
        assert!(!settled("new(up)", 0));
    }

    #[test]
    fn a_question_is_asked_as_the_client_asked() {
        let question = PassthroughRequest {
            path: "/api/v1/series".to_owned(),
            params: Arc::new(vec![("match[]".to_owned(), "a b".into())]),
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
