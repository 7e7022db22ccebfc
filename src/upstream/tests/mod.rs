//! A call's way as a whole, in paused time and without sockets: exact counts.

mod attempts;
mod batches;
mod leases;
mod overload;
mod targets;
mod trials;

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode};
use tokio::time::Instant;

use super::*;
use crate::adapters::mirror::Mirror;
use crate::adapters::{Exchange, Next, Request, Response};
use crate::clock::SystemClock;
use crate::model::{
    Aggregate, Batching, Error, Evidence, IncompleteBuckets, Kind, Limits, MultiSeries, Step,
    TargetUrl,
};

/// The reaction of a host to a call.
#[derive(Clone)]
enum Does {
    Answer(Duration),
    Refuse,
    Status(u16, &'static [(&'static str, &'static str)]),
    Never,
    /// Status to POST, and to GET.
    Methods(u16, u16),
    /// A body of so many bytes.
    Body(usize),
}

/// Hosts in memory.
#[derive(Default)]
struct Hosts {
    does: Mutex<HashMap<String, Does>>,
    calls: Mutex<Vec<(String, Instant)>>,
    running: AtomicUsize,
    /// Calls that were answered.
    ended: AtomicUsize,
}

impl Hosts {
    fn set(&self, host: &str, does: Does) {
        self.does.lock().unwrap().insert(host.to_owned(), does);
    }

    /// Returns the number of calls that each host has had since the last time.
    fn counts(&self) -> Vec<(String, usize)> {
        let mut counts: HashMap<String, usize> = HashMap::new();
        for (host, _) in std::mem::take(&mut *self.calls.lock().unwrap()) {
            *counts.entry(host).or_default() += 1;
        }
        let mut counts: Vec<_> = counts.into_iter().collect();
        counts.sort();
        counts
    }
}

impl Transport for Hosts {
    fn send(
        &self,
        request: Outgoing,
        _: Arc<AnswerShare>,
    ) -> BoxFuture<'_, Result<Response, Error>> {
        Box::pin(async move {
            let url = request.url.split('?').next().unwrap();
            let url = TargetUrl::parse(url).unwrap();
            let host = url.host().to_owned();
            let does = self.does.lock().unwrap().get(&host).cloned().unwrap();
            self.calls.lock().unwrap().push((host, Instant::now()));
            self.running.fetch_add(1, Ordering::SeqCst);
            struct Running<'a>(&'a AtomicUsize);
            impl Drop for Running<'_> {
                fn drop(&mut self) {
                    self.0.fetch_sub(1, Ordering::SeqCst);
                }
            }
            let _running = Running(&self.running);
            let mut body = Bytes::from_static(b"{\"status\":\"OK\"}");
            let (status, headers): (_, &[(&str, &str)]) = match does {
                Does::Body(length) => {
                    body = vec![b' '; length].into();
                    (200, &[])
                }
                Does::Refuse => return Err(Error::new(Kind::UpstreamUnreachable, "refused")),
                Does::Never => std::future::pending().await,
                Does::Answer(after) => {
                    tokio::time::sleep(after).await;
                    (200, &[])
                }
                Does::Status(status, headers) => (status, headers),
                Does::Methods(_, get) if request.method == Method::GET => (get, &[]),
                Does::Methods(post, _) => (post, &[]),
            };
            let header = |(k, v): &(&'static str, &'static str)| {
                (HeaderName::from_static(k), HeaderValue::from_static(v))
            };
            self.ended.fetch_add(1, Ordering::SeqCst);
            Ok(Response {
                status: StatusCode::from_u16(status).unwrap(),
                headers: headers.iter().map(header).collect::<HeaderMap>(),
                body,
            })
        })
    }
}

const QUICK: Does = Does::Answer(Duration::from_millis(10));

fn upstream<T: Transport + 'static>(
    hosts: &Arc<T>,
    names: &[&str],
    limits: Limits,
) -> Arc<Upstream> {
    upstream_with(hosts, names, limits, |_| {})
}

/// Returns the same, with what `change` changes.
fn upstream_with<T: Transport + 'static>(
    hosts: &Arc<T>,
    names: &[&str],
    limits: Limits,
    change: impl FnOnce(&mut ClientConfig),
) -> Arc<Upstream> {
    let metrics = UpstreamMetrics::new("way");
    let url = |name: &&str| TargetUrl::parse(&format!("http://{name}")).unwrap();
    let mut parts = ClientConfig {
        units: None,
        batch: Batching::default(),
        signer: None,
        transport: hosts.clone(),
        urls: names.iter().map(url).collect(),
        headers: crate::reloadable::Reloadable::fixed(http::HeaderMap::new()),
        limits,
        joint: None,
        shared: None,
        method: crate::model::QueryMethod::Auto,
        max_response: 1 << 20,
        answers: AnswerMemory::new(usize::MAX),
        budget_file: None,
        metrics: metrics.clone(),
        clock: Arc::new(SystemClock::default()),
    };
    change(&mut parts);
    let client = UpstreamClient::new(parts);
    let second = Duration::from_secs(1);
    let freshness = Freshness {
        settle: 1000,
        refresh: second,
        recheck: Duration::ZERO,
        max_stale: second,
        stale_while_revalidate: Duration::ZERO,
        history_ttl: second,
        metadata_ttl: second,
    };
    let reading = Reading {
        interval: Step::SECOND,
        aggregate: Aggregate::Auto,
        raw_points_max: 1000,
        multi_series: MultiSeries::Merge,
        incomplete_buckets: IncompleteBuckets::Include,
        max_response: 1 << 20,
        range_limits: crate::model::RangeLimits { series: 1, span: 0 },
        step_alignment: crate::model::StepAlignment::Exact,
        parameters: Vec::new(),
        instant_alignment: crate::model::InstantAlignment::Refresh,
        refresh_ahead: true,
        replicas: crate::model::Replicas::Same,
        replica_labels: Vec::new(),
        method: crate::model::QueryMethod::Auto,
    };
    let mirror = Mirror {
        api_key: None,
        page: 1000,
    };
    Arc::new(Upstream {
        identity: Identity::new(),
        freshness,
        reading,
        adapter: Box::new(mirror),
        stored_as: Some(Arc::from(&b"law"[..])),
        forward: Forward::Nothing,
        client,
        metrics,
    })
}

fn call_context() -> CallContext {
    CallContext::new(
        None,
        Instant::now() + Duration::from_secs(3600),
        crate::telemetry::trace::Trace::default(),
    )
}

/// A call that succeeds with a 200, and reads anything else as a failing upstream.
fn exchange() -> Exchange<()> {
    Exchange {
        request: Request {
            method: Method::POST,
            path: "/".into(),
            headers: Vec::new(),
            body: Bytes::new(),
            units: 0,
        },
        read: Arc::new(|response: &Response| match response.status.as_u16() {
            200 => Ok(Next::Done(())),
            429 => {
                let wait = response.headers.get("retry-after");
                let wait = wait.map(|v| Duration::from_secs(v.to_str().unwrap().parse().unwrap()));
                Err(Error::new(Kind::UpstreamBusy, "busy").retry_after(wait))
            }
            422 => Err(Error::new(Kind::UpstreamFailed, "this query")),
            _ => Err(Error::new(Kind::UpstreamFailed, "broken").shows(Evidence::Address)),
        }),
        bill: None,
    }
}

async fn call(upstream: &Upstream) -> Result<(), Kind> {
    let answered = upstream.client.run(exchange(), &call_context()).await;
    answered.map(|a| a.value).map_err(|e| e.kind)
}

fn times(host: &str, n: usize) -> (String, usize) {
    (host.to_owned(), n)
}

#[tokio::test(start_paused = true)]
async fn a_failed_attempt_is_made_again_elsewhere() {
    let hosts = Arc::new(Hosts::default());
    hosts.set("a", Does::Refuse);
    hosts.set("b", QUICK);
    let limits = Limits {
        retries: 2,
        ..Limits::for_tests()
    };
    let upstream = upstream(&hosts, &["a", "b"], limits);
    call(&upstream).await.unwrap();
    assert_eq!(hosts.counts(), [times("a", 1), times("b", 1)]);
}

#[tokio::test(start_paused = true)]
async fn retries_end_with_their_number_and_their_budget() {
    let hosts = Arc::new(Hosts::default());
    hosts.set("a", Does::Status(500, &[]));
    let limits = Limits {
        retries: 3,
        ..Limits::for_tests()
    };
    let upstream = upstream(&hosts, &["a"], limits);
    assert_eq!(call(&upstream).await, Err(Kind::UpstreamFailed));
    assert_eq!(hosts.counts(), [times("a", 4)]);
    for _ in 0..1000 {
        assert!(call(&upstream).await.is_err());
    }
    let calls = hosts.counts()[0].1;
    assert!((1200..=1210).contains(&calls), "a fifth on top: {calls}");
}

#[tokio::test(start_paused = true)]
async fn no_retry_is_begun_that_cannot_end_in_time() {
    for (seconds, calls) in [(14, 1), (29, 2)] {
        let hosts = Arc::new(Hosts::default());
        hosts.set("a", Does::Never);
        let limits = Limits {
            retries: 3,
            timeout: Duration::from_secs(10),
            ..Limits::for_tests()
        };
        let upstream = upstream(&hosts, &["a"], limits);
        let call = CallContext {
            deadline: Instant::now() + Duration::from_secs(seconds),
            ..call_context()
        };
        let ended = upstream.client.run(exchange(), &call).await;
        assert_eq!(ended.map(|_| ()).unwrap_err().kind, Kind::DeadlineExceeded);
        assert_eq!(hosts.counts(), [times("a", calls)], "{seconds} s");
    }
}

#[tokio::test(start_paused = true)]
async fn failures_that_would_recur_are_not_retried() {
    let hosts = Arc::new(Hosts::default());
    let limits = Limits {
        retries: 3,
        breaker_failures: 1,
        ..Limits::for_tests()
    };
    let upstream = upstream(&hosts, &["a"], limits);
    hosts.set("a", Does::Status(422, &[]));
    assert_eq!(call(&upstream).await, Err(Kind::UpstreamFailed));
    assert_eq!(hosts.counts(), [times("a", 1)]);
    hosts.set("a", QUICK);
    call(&upstream).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_trial_that_limits_refuse_is_not_asked_for_again_and_again() {
    let hosts = Arc::new(Hosts::default());
    hosts.set("a", Does::Refuse);
    let limits = Limits {
        breaker_failures: 1,
        breaker_open: Duration::from_secs(10),
        per_hour: Some(1),
        ..Limits::for_tests()
    };
    let upstream = upstream(&hosts, &["a"], limits);
    let _watching = tokio::spawn(watch(Arc::downgrade(&upstream)));
    assert_eq!(call(&upstream).await, Err(Kind::UpstreamUnreachable));
    let refused = upstream.client.admitted();
    tokio::time::sleep(Duration::from_secs(70)).await;
    let tries = upstream.client.admitted() - refused;
    assert!((1..=70).contains(&tries), "{tries} turns in a minute");
    assert_eq!(hosts.counts(), [times("a", 1)]);
}

#[tokio::test(start_paused = true)]
async fn a_pause_is_waited_for_where_the_deadline_allows() {
    let hosts = Arc::new(Hosts::default());
    let limits = Limits {
        retries: 1,
        breaker_failures: 1,
        ..Limits::for_tests()
    };
    let upstream = upstream(&hosts, &["a"], limits);
    hosts.set("a", Does::Status(429, &[("retry-after", "5")]));
    let mut soon = call_context();
    soon.deadline = Instant::now() + Duration::from_secs(4);
    let error = upstream
        .client
        .run(exchange(), &soon)
        .await
        .map(|_| ())
        .unwrap_err();
    assert_eq!(error.kind, Kind::UpstreamBusy);
    assert_eq!(hosts.counts(), [times("a", 1)]);
    // Being busy is no reason to leave an address alone, but one to wait.
    let begun = Instant::now();
    assert_eq!(call(&upstream).await, Err(Kind::UpstreamBusy));
    assert_eq!(
        begun.elapsed().as_secs(),
        10,
        "five seconds before each of two attempts"
    );
    hosts.set("a", QUICK);
    call(&upstream).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_attempt_has_a_timeout_and_is_dropped_with_it() {
    let hosts = Arc::new(Hosts::default());
    hosts.set("a", Does::Never);
    let upstream = upstream(&hosts, &["a"], Limits::for_tests());
    let begun = Instant::now();
    assert_eq!(call(&upstream).await, Err(Kind::DeadlineExceeded));
    assert_eq!(begun.elapsed(), Limits::for_tests().timeout);
    assert_eq!(hosts.running.load(Ordering::SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn calls_to_an_address_that_falls_silent_are_made_elsewhere() {
    let hosts = Arc::new(Hosts::default());
    hosts.set("a", QUICK);
    hosts.set("b", QUICK);
    let upstream = upstream(&hosts, &["a", "b"], Limits::for_tests());
    for _ in 0..50 {
        assert_eq!(call(&upstream).await, Ok(()));
    }
    assert_eq!(hosts.counts(), [times("a", 50)]);
    hosts.set("a", Does::Never);
    let began = Instant::now();
    let calls = (0..8).map(|_| call(&upstream));
    let answers = futures_util::future::join_all(calls).await;
    assert_eq!(answers, [Ok(()); 8]);
    let took = began.elapsed();
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert_eq!(hosts.counts(), [times("a", 8), times("b", 8)]);
}

#[tokio::test(start_paused = true)]
async fn one_slow_question_is_not_made_elsewhere() {
    let hosts = Arc::new(Hosts::default());
    hosts.set("a", QUICK);
    hosts.set("b", QUICK);
    let upstream = upstream(&hosts, &["a", "b"], Limits::for_tests());
    for _ in 0..50 {
        assert_eq!(call(&upstream).await, Ok(()));
    }
    hosts.counts();
    hosts.set("a", Does::Answer(Duration::from_secs(4)));
    assert_eq!(call(&upstream).await, Ok(()));
    assert_eq!(hosts.counts(), [times("a", 1)]);
}

#[tokio::test(start_paused = true)]
async fn the_breaker_of_a_failing_address_opens_and_heliostat_sends_the_trials() {
    let hosts = Arc::new(Hosts::default());
    hosts.set("a", Does::Refuse);
    let limits = Limits {
        breaker_failures: 3,
        breaker_open: Duration::from_secs(10),
        ..Limits::for_tests()
    };
    let upstream = upstream(&hosts, &["a"], limits);
    let watching = tokio::spawn(watch(Arc::downgrade(&upstream)));
    for _ in 0..100 {
        assert_eq!(call(&upstream).await, Err(Kind::UpstreamUnreachable));
    }
    assert_eq!(
        hosts.counts(),
        [times("a", 3)],
        "no call reaches it any more"
    );
    // Down for a minute: one trial each ten seconds, none of them a client's call.
    tokio::time::sleep(Duration::from_secs(61)).await;
    assert_eq!(hosts.counts(), [times("a", 6)]);
    hosts.set("a", QUICK);
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(hosts.counts(), [times("a", 1)]);
    call(&upstream).await.unwrap();
    // Who watches goes with the upstream.
    drop(upstream);
    watching.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_large_body_is_read_off_the_threads_of_the_runtime() {
    let hosts = Arc::new(Hosts::default());
    let upstream = upstream(&hosts, &["a"], Limits::for_tests());
    let here = std::thread::current().id();
    let elsewhere = |length| {
        hosts.set("a", Does::Body(length));
        let mut exchange = exchange();
        let seen = Arc::new(Mutex::new(None));
        let sees = seen.clone();
        exchange.read = Arc::new(move |response| {
            let thread = std::thread::current().id();
            *sees.lock().unwrap() = Some((response.body.len(), thread != here));
            Ok(Next::Done(()))
        });
        let client = &upstream.client;
        async move {
            client.run(exchange, &call_context()).await.unwrap();
            let seen = *seen.lock().unwrap();
            seen.unwrap()
        }
    };
    assert_eq!(elsewhere(1000).await, (1000, false));
    assert_eq!(elsewhere(1 << 20).await, (1 << 20, true));
}

#[tokio::test(start_paused = true)]
async fn a_panic_while_a_large_body_is_read_is_an_error() {
    let hosts = Arc::new(Hosts::default());
    hosts.set("a", Does::Body(1 << 20));
    let limits = Limits {
        max_concurrency: 1,
        breaker_failures: 1,
        ..Limits::for_tests()
    };
    let upstream = upstream(&hosts, &["a"], limits);
    let mut broken = exchange();
    broken.read = Arc::new(|_| panic!("it breaks"));
    let ended = upstream.client.run(broken, &call_context()).await;
    assert_eq!(ended.map(|_| ()).unwrap_err().kind, Kind::Internal);
    // Its place is free again, and it is not the upstream's failure.
    call(&upstream).await.unwrap();
    assert_eq!(hosts.counts(), [times("a", 2)]);
}
