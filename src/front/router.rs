//! Which path means what, and what every request gets whatever its path: admission, a deadline,
//! the API key, a log line and metrics.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName, ORIGIN};
use http::{HeaderMap, HeaderValue, Method, Request, Response};
use hyper::body::{Body as _, Incoming};
use metrics_exporter_prometheus::PrometheusHandle;
use tracing::{Level, debug};

use super::auth::{AccessControl, Api};
use super::body::Body;
use super::encoding::chosen;
use super::path::{allow, normalized};
use super::reloads::Reloads;
use super::status::{error_response, read_body};
use super::{admin, mirror, pages, prometheus};
use crate::clock::Clock;
use crate::engine::{CallContext, Engine, RequestContext};
use crate::model::{Compression, Error, Kind};
use crate::reloadable::Reloadable;
use crate::telemetry::metrics::RequestMetrics;
use crate::telemetry::trace::{Span, Trace};
use crate::wire::encoding::Encoding;

/// The header in which a mirror proves itself.
const API_KEY: HeaderName = HeaderName::from_static("x-mirror-api-key");

/// How clients are served.
#[derive(Clone, Debug)]
pub struct FrontSettings {
    /// Sent as `X-MIRROR-API-KEY` on every response.
    pub api_key: Arc<Reloadable<HeaderValue>>,
    /// Most time from a request's head to its answer.
    pub request_timeout: Duration,
    /// Most bytes of a request body.
    pub max_body: usize,
    /// Most requests in hand.
    pub max_in_flight: usize,
    /// Which clients are answered compressed, of those that ask for it.
    pub compression: Compression,
    /// Who may ask.
    pub access: Arc<AccessControl>,
    /// Whether every error has status 500.
    pub always_500: bool,
}

/// Answers requests, under one configuration.
pub struct Front {
    engine: Arc<Engine>,
    settings: FrontSettings,
    shared: Arc<Shared>,
}

/// What stays when the configuration changes.
struct Shared {
    registry: Option<&'static PrometheusHandle>,
    clock: Arc<dyn Clock>,
    metrics: Metrics,
    in_flight: AtomicUsize,
    /// Bytes of bodies that are in hand or announced.
    body_bytes: AtomicUsize,
    draining: AtomicBool,
    /// Where a new configuration is asked for, if it comes from somewhere.
    reloads: OnceLock<Reloads>,
}

/// What a path means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Route {
    Mirror(mirror::Method),
    Prometheus(prometheus::ApiEndpoint),
    Page(pages::Page),
    Admin(admin::Call),
}

/// Paths, normalized, of what Heliostat says of itself.
const PAGES: [(&str, pages::Page); 5] = [
    ("/metrics", pages::Page::Metrics),
    ("/healthz", pages::Page::Health),
    ("/readyz", pages::Page::Ready),
    ("/openapi.json", pages::Page::OpenApi),
    ("", pages::Page::Home),
];

impl Route {
    /// Its API and method in metrics.
    fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Mirror(mirror) => ("mirror", mirror.name()),
            Self::Prometheus(endpoint) => ("prometheus", endpoint.name()),
            Self::Page(page) => ("admin", page.name()),
            Self::Admin(call) => ("admin", call.name()),
        }
    }

    /// The face whose rules it is under; probes and the description are open to all.
    fn api(self) -> Option<Api> {
        match self {
            Self::Mirror(_) | Self::Page(pages::Page::Home) => Some(Api::Mirror),
            Self::Prometheus(_) => Some(Api::Prometheus),
            Self::Page(pages::Page::Metrics) => Some(Api::Metrics),
            Self::Admin(_) => Some(Api::Admin),
            Self::Page(_) => None,
        }
    }
}

/// The metrics of requests, by what their path means.
struct Metrics {
    known: Vec<(Route, RequestMetrics)>,
    unknown: RequestMetrics,
}

impl Metrics {
    fn new() -> Self {
        let mirror = mirror::Method::ALL.map(|(_, method)| Route::Mirror(method));
        let pages = PAGES.map(|(_, page)| Route::Page(page));
        Self {
            known: mirror
                .into_iter()
                .chain(pages)
                .chain(prometheus::ApiEndpoint::ALL.map(Route::Prometheus))
                .chain(admin::Call::ALL.map(Route::Admin))
                .map(|route| {
                    let (api, method) = route.names();
                    (route, RequestMetrics::new(api, method))
                })
                .collect(),
            unknown: RequestMetrics::new("none", "none"),
        }
    }

    fn of(&self, route: Option<Route>) -> &RequestMetrics {
        let found = self.known.iter().find(|(r, _)| Some(*r) == route);
        found.map_or(&self.unknown, |(_, metrics)| metrics)
    }
}

/// So many bodies of the largest size may be in hand; of usual ones, many more.
const LARGE_BODIES: usize = 64;

/// A part of something bounded that is taken, until dropped.
struct Reservation<'a> {
    of: &'a AtomicUsize,
    amount: usize,
}

impl<'a> Reservation<'a> {
    /// Takes `amount`, unless more than `most` would be taken then.
    fn take(of: &'a AtomicUsize, amount: usize, most: usize) -> Option<Self> {
        let before = of.fetch_add(amount, Ordering::Relaxed);
        let taken = Self { of, amount };
        (before.saturating_add(amount) <= most).then_some(taken)
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        self.of.fetch_sub(self.amount, Ordering::Relaxed);
    }
}

impl Front {
    /// A front for `engine`.
    pub fn new(
        engine: Arc<Engine>,
        settings: FrontSettings,
        registry: Option<&'static PrometheusHandle>,
        clock: Arc<dyn Clock>,
    ) -> Arc<Self> {
        Arc::new(Self {
            engine,
            settings,
            shared: Arc::new(Shared {
                registry,
                clock,
                metrics: Metrics::new(),
                in_flight: AtomicUsize::new(0),
                body_bytes: AtomicUsize::new(0),
                draining: AtomicBool::new(false),
                reloads: OnceLock::new(),
            }),
        })
    }

    /// A front in the place of this, which may have requests in hand.
    pub fn rebuild(&self, engine: Arc<Engine>, settings: FrontSettings) -> Arc<Self> {
        Arc::new(Self {
            engine,
            settings,
            shared: self.shared.clone(),
        })
    }

    /// Who may ask.
    pub fn access(&self) -> Arc<AccessControl> {
        self.settings.access.clone()
    }

    /// From now on admin calls can ask for a new configuration. Only the first call counts.
    pub fn follow(&self, reloads: Reloads) {
        let _ = self.shared.reloads.set(reloads);
    }

    /// From now on `/readyz` says that no new work should come here.
    pub fn drain(&self) {
        self.shared.draining.store(true, Ordering::Relaxed);
    }

    /// Answers `request`, which came from `peer`.
    pub async fn handle(&self, request: Request<Incoming>, peer: IpAddr) -> Response<Body> {
        let arrived = self.shared.clock.monotonic();
        let (route, api) = {
            let path = normalized(request.uri().path());
            let route = self.route(&path);
            // Which names there are is not told to those who may not ask.
            let named = path.starts_with("/prometheus/");
            let api = named.then_some(Api::Prometheus);
            (route, api.or_else(|| route.and_then(Route::api)))
        };
        let client = self.settings.access.client(peer, request.headers());
        let allowed = self.allowed(api, route, client, &request).await;
        let method = request.method().clone();
        let (mut span, trace) = begun(route, &request, client);
        // The request is gone when its answer is logged.
        let log = tracing::enabled!(Level::DEBUG).then(|| (request.uri().clone(), trace.id()));
        let begun = (arrived, trace);
        let answer = match (allowed, route) {
            (Err(e), _) if api == Some(Api::Prometheus) => {
                let browser = request.headers().contains_key(ORIGIN);
                Ok(prometheus::refused(&e, browser))
            }
            (Err(e), _) => Err(e),
            (_, Some(Route::Mirror(mirror))) => self.mirror(mirror, request, client, begun).await,
            (_, Some(Route::Prometheus(endpoint))) => {
                Ok(self.prometheus(endpoint, request, client, begun).await)
            }
            (_, Some(Route::Page(page))) => {
                let draining = self.shared.draining.load(Ordering::Relaxed);
                pages::answer(page, &method, &self.engine, self.shared.registry, draining)
            }
            (_, Some(Route::Admin(call))) => self.admin(call, request, client, arrived).await,
            (_, None) => {
                let path = normalized(request.uri().path());
                let message = format!("there is nothing at {path:.100?}; see / for what there is");
                Err(Error::new(Kind::PathNotFound, message))
            }
        };
        let mut response = answer.unwrap_or_else(|e| error_response(&e, self.settings.always_500));
        let key = HeaderValue::clone(&self.settings.api_key.get());
        response.headers_mut().insert(API_KEY, key);
        let took = self.shared.clock.monotonic().saturating_sub(arrived);
        let status = response.status().as_u16();
        self.shared
            .metrics
            .of(route)
            .answered(status, took.as_secs_f64());
        span.number("http.response.status_code", status);
        if status >= 500 {
            span.fail(&status);
        }
        if let Some((uri, trace_id)) = log {
            let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
            debug!(%method, path = uri.path(), status, micros, trace_id, "request");
        }
        response
    }

    fn route(&self, path: &str) -> Option<Route> {
        // Clients look at the address of their data source to see whether it is there.
        let named = || {
            let name = path.strip_prefix("/prometheus/")?;
            let known = self.engine.prometheus(Some(name)).is_ok();
            known.then_some(Route::Page(pages::Page::Home))
        };
        route(path).or_else(named)
    }

    /// Whether `request` of `client` may use `api`.
    async fn allowed(
        &self,
        api: Option<Api>,
        route: Option<Route>,
        client: IpAddr,
        request: &Request<Incoming>,
    ) -> Result<(), Error> {
        let Some(api) = api else {
            return Ok(());
        };
        // Of the API only: other paths would tell which names there are.
        let on_api = matches!(route, Some(Route::Prometheus(_)));
        let preflight = on_api && request.method() == Method::OPTIONS;
        let access = &self.settings.access;
        access
            .check(api, client, request.headers(), preflight)
            .await
    }

    /// Answers the body of a mirror request that did not come over HTTP.
    pub async fn ask(self: Arc<Self>, method: mirror::Method, body: &[u8]) -> Response<Body> {
        let begun = (self.shared.clock.monotonic(), Trace::default());
        let context = self.context(None, None, begun);
        mirror::answer(&self.engine, method, body, context)
            .await
            .unwrap_or_else(|e| error_response(&e, false))
    }

    async fn mirror(
        &self,
        mirror: mirror::Method,
        request: Request<Incoming>,
        client: IpAddr,
        begun: (Duration, Trace),
    ) -> Result<Response<Body>, Error> {
        allow(request.method(), &mirror::METHODS)?;
        let _admitted = self.admit(&request)?;
        declared_as_json(&request)?;
        let context = self.context(Some(request.headers()), Some(client), begun);
        let settings = &self.settings;
        let body = read_body(
            request.into_body(),
            settings.max_body,
            settings.request_timeout,
        )
        .await?;
        mirror::answer(&self.engine, mirror, &body, context).await
    }

    async fn admin(
        &self,
        call: admin::Call,
        request: Request<Incoming>,
        client: IpAddr,
        arrived: Duration,
    ) -> Result<Response<Body>, Error> {
        if request.headers().contains_key(ORIGIN) {
            // A page that a browser shows must not operate this with what the browser knows.
            let message = "the admin API is not for browsers: leave out the header Origin";
            return Err(Error::new(Kind::TargetNotAllowed, message));
        }
        call.check(request.method())?;
        let _admitted = self.admit(&request)?;
        let begun = (arrived, Trace::default());
        let context = self.context(Some(request.headers()), Some(client), begun);
        let settings = &self.settings;
        let (head, body) = request.into_parts();
        let path = normalized(head.uri.path());
        let body = read_body(body, settings.max_body, settings.request_timeout).await?;
        let reloads = self.shared.reloads.get();
        admin::answer(&self.engine, reloads, call, &path, &head, body, context).await
    }

    async fn prometheus(
        &self,
        endpoint: prometheus::ApiEndpoint,
        request: Request<Incoming>,
        client: IpAddr,
        begun: (Duration, Trace),
    ) -> Response<Body> {
        let browser = request.headers().contains_key(ORIGIN);
        let answer = async {
            if request.method() == Method::OPTIONS {
                return Ok(prometheus::options());
            }
            let _admitted = self.admit(&request)?;
            let context = self.context(Some(request.headers()), Some(client), begun);
            let settings = &self.settings;
            let (head, body) = request.into_parts();
            let body = read_body(body, settings.max_body, settings.request_timeout).await?;
            prometheus::answer(&self.engine, endpoint, &head, body, context).await
        };
        let answer = answer.await;
        match answer {
            Ok(mut response) => {
                prometheus::finish(&mut response, browser);
                response
            }
            Err(e) => prometheus::refused(&e, browser),
        }
    }

    /// Lets a request in if there is room for it and its body; else it is refused at once.
    fn admit(&self, request: &Request<Incoming>) -> Result<[Reservation<'_>; 2], Error> {
        let most = self.settings.max_in_flight;
        let place = Reservation::take(&self.shared.in_flight, 1, most).ok_or_else(|| {
            let message = format!("{most} requests are in hand already (server.max_in_flight)");
            Error::new(Kind::Overloaded, message)
        })?;
        // Without a length it may be as long as is allowed.
        let largest = self.settings.max_body;
        let announced = request.body().size_hint().upper();
        let bytes = announced.map_or(largest, |n| usize::try_from(n).unwrap_or(largest));
        let most = largest.saturating_mul(LARGE_BODIES);
        let body = Reservation::take(&self.shared.body_bytes, bytes.min(largest), most)
            .ok_or_else(|| {
                let message = format!("request bodies of {most} bytes are in hand already");
                Error::new(Kind::Overloaded, message)
            })?;
        Ok([place, body])
    }

    fn context(
        &self,
        headers: Option<&HeaderMap>,
        caller: Option<IpAddr>,
        (arrived, trace): (Duration, Trace),
    ) -> RequestContext {
        let deadline = tokio::time::Instant::now() + self.settings.request_timeout;
        RequestContext {
            arrived,
            wall: self.shared.clock.now(),
            deadline,
            call: CallContext {
                caller,
                lane: 0,
                deadline,
                trace,
            },
            encoding: headers.map_or(Encoding::Identity, |headers| {
                chosen(self.settings.compression, headers, caller)
            }),
            max_age: headers.and_then(max_age),
        }
    }
}

/// The span of `request` and the trace of what is done for it. What only says how we
/// are has none.
fn begun(route: Option<Route>, request: &Request<Incoming>, peer: IpAddr) -> (Span, Trace) {
    let Some(route) = route.filter(|r| matches!(r, Route::Mirror(_) | Route::Prometheus(_))) else {
        return (Span::default(), Trace::default());
    };
    let (api, method) = route.names();
    let (mut span, trace) = Trace::served(request.headers(), api, method);
    span.text("http.request.method", request.method());
    span.text("url.path", &request.uri().path());
    span.text("client.address", &peer);
    (span, trace)
}

fn route(path: &str) -> Option<Route> {
    let mirror = mirror::Method::of(path).map(Route::Mirror);
    let page = || {
        let found = PAGES.into_iter().find(|(known, _)| *known == path);
        found.map(|(_, page)| Route::Page(page))
    };
    let prometheus = || prometheus::ApiEndpoint::of(path).map(Route::Prometheus);
    let admin = || admin::Call::of(path).map(Route::Admin);
    mirror.or_else(page).or_else(prometheus).or_else(admin)
}

/// The oldest data that a client takes: `no-cache` or `max-age` of `Cache-Control` (RFC 9111).
fn max_age(headers: &HeaderMap) -> Option<Duration> {
    let directives = headers.get_all(CACHE_CONTROL).iter();
    let directives = directives
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','));
    let ages = directives.filter_map(|directive| {
        let directive = directive.trim().to_ascii_lowercase();
        match directive.strip_prefix("max-age=") {
            Some(seconds) => seconds
                .trim_matches('"')
                .parse()
                .ok()
                .map(Duration::from_secs),
            None => (directive == "no-cache").then_some(Duration::ZERO),
        }
    });
    ages.min()
}

/// Refuses a body that is said to be something else than JSON.
fn declared_as_json(request: &Request<Incoming>) -> Result<(), Error> {
    let Some(declared) = request.headers().get(CONTENT_TYPE) else {
        return Ok(());
    };
    let declared = declared.to_str().unwrap_or_default();
    let essence = declared.split(';').next().unwrap_or_default().trim();
    let (kind, form) = essence.split_once('/').unwrap_or_default();
    let suffix = form.rsplit_once('+').map_or(form, |(_, suffix)| suffix);
    if kind.eq_ignore_ascii_case("application") && suffix.eq_ignore_ascii_case("json") {
        return Ok(());
    }
    let message = format!("expected Content-Type application/json, found {declared:.100?}");
    Err(Error::new(Kind::UnsupportedMediaType, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_is_bounded_and_given_back() {
        let counter = AtomicUsize::new(0);
        let first = Reservation::take(&counter, 7, 10);
        assert!(first.is_some());
        assert!(Reservation::take(&counter, 4, 10).is_none());
        let second = Reservation::take(&counter, 3, 10);
        assert!(second.is_some());
        drop((first, second));
        assert_eq!(counter.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn clients_may_say_how_old_data_may_be() {
        let said = |values: &[&'static str]| {
            let value = |v: &&'static str| (CACHE_CONTROL, HeaderValue::from_static(v));
            max_age(&values.iter().map(value).collect())
        };
        assert_eq!(said(&[]), None);
        assert_eq!(said(&["no-store, max-age=nonsense"]), None);
        assert_eq!(said(&["Max-Age=5"]), Some(Duration::from_secs(5)));
        assert_eq!(said(&["max-age=5", "No-Cache"]), Some(Duration::ZERO));
    }

    /// All kinds of errors; a new one does not compile until it is here.
    fn every_kind() -> Vec<Kind> {
        let mut kinds = vec![Kind::InvalidRequest];
        while let Some(last) = kinds.last() {
            kinds.push(match last {
                Kind::InvalidRequest => Kind::Unauthenticated,
                Kind::Unauthenticated => Kind::ClientNotAllowed,
                Kind::ClientNotAllowed => Kind::TargetNotAllowed,
                Kind::TargetNotAllowed => Kind::MetricNotFound,
                Kind::MetricNotFound => Kind::UnsupportedFieldType,
                Kind::UnsupportedFieldType => Kind::PathNotFound,
                Kind::PathNotFound => Kind::MethodNotAllowed,
                Kind::MethodNotAllowed => Kind::BodyTooLarge,
                Kind::BodyTooLarge => Kind::UnsupportedMediaType,
                Kind::UnsupportedMediaType => Kind::TooManyPoints,
                Kind::TooManyPoints => Kind::RequestTimeout,
                Kind::RequestTimeout => Kind::Overloaded,
                Kind::Overloaded => Kind::UpstreamBudget,
                Kind::UpstreamBudget => Kind::UpstreamBusy,
                Kind::UpstreamBusy => Kind::UpstreamUnreachable,
                Kind::UpstreamUnreachable => Kind::UpstreamFailed,
                Kind::UpstreamFailed => Kind::AnswerTooLarge,
                Kind::AnswerTooLarge => Kind::DeadlineExceeded,
                Kind::DeadlineExceeded => Kind::Internal,
                Kind::Internal => return kinds,
            });
        }
        kinds
    }

    #[test]
    fn the_description_has_these_paths_methods_statuses_and_errors() {
        use std::collections::BTreeSet;
        let described: serde_json::Value = serde_json::from_str(pages::OPENAPI).unwrap();
        let paths = described["paths"].as_object().unwrap();
        let errors = every_kind().into_iter();
        let statuses: BTreeSet<_> = errors
            .map(|k| super::super::status::status(k).to_string())
            .collect();
        let statuses: BTreeSet<_> = statuses.iter().map(|s| &s[..3]).chain(["200"]).collect();
        let mut known: BTreeSet<String> = BTreeSet::new();
        let mut methods = |path: &str, expected: &[Method]| {
            let methods: BTreeSet<_> = paths[path].as_object().unwrap().keys().collect();
            let expected = expected.iter().map(|m| m.as_str().to_lowercase());
            let expected: BTreeSet<_> = expected.collect();
            assert!(methods.into_iter().eq(&expected), "{path}");
            assert!(route(path).is_some(), "{path}");
            known.insert(path.to_owned());
        };
        for (path, method) in mirror::Method::ALL {
            methods(path, &[Method::POST]);
            if method != mirror::Method::Connection {
                let answers = paths[path]["post"]["responses"].as_object().unwrap();
                let answers: BTreeSet<_> = answers.keys().map(String::as_str).collect();
                assert_eq!(answers, statuses, "{path}");
                methods(&format!("/admin/v1/explain{path}"), &[Method::POST]);
            }
        }
        // The page for humans is not an API.
        for (path, _) in PAGES.iter().filter(|(path, _)| !path.is_empty()) {
            methods(path, &[Method::GET, Method::HEAD]);
        }
        let explain = admin::Call::Explain;
        for call in admin::Call::ALL.into_iter().filter(|c| *c != explain) {
            methods(&format!("/admin/v1/{}", call.name()), call.methods());
        }
        assert!(paths.keys().eq(&known), "{paths:?}");
        let errors = every_kind().into_iter().map(|kind| {
            let body = crate::wire::mirror::response::write_error(&Error::new(kind, "x"));
            let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
            let tag = body["_type"].as_str().unwrap();
            let members = &described["components"]["schemas"][tag]["properties"];
            let members: Vec<_> = members.as_object().unwrap().keys().collect();
            assert!(body.as_object().unwrap().keys().eq(members), "{tag}");
            format!("#/components/schemas/{tag}")
        });
        let described = described["components"]["schemas"]["Error"]["anyOf"]
            .as_array()
            .unwrap();
        let described = described
            .iter()
            .map(|s| s["$ref"].as_str().unwrap().to_owned());
        assert_eq!(errors.collect::<BTreeSet<_>>(), described.collect());
    }

    #[test]
    fn slashes_at_the_seams_do_not_matter() {
        for path in [
            "/api/metric",
            "//api/metric",
            "/api//metric/",
            "///api/metric//",
        ] {
            assert_eq!(
                route(&normalized(path)),
                Some(Route::Mirror(mirror::Method::Metric)),
                "{path}"
            );
        }
        assert_eq!(
            route(&normalized("//")),
            Some(Route::Page(pages::Page::Home))
        );
        assert_eq!(route(&normalized("/api")), None);
    }
}
