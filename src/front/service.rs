//! The service: what each request gets whatever its path asks for: admission, a deadline, the API
//! key, a log line and metrics.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use http::header::{ACCEPT, ORIGIN};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::{Body as _, Incoming};
use metrics_exporter_prometheus::PrometheusHandle;
use tracing::{Level, debug};

use super::admission::{Admission, Admitted};
use super::assets::Asset;
use super::auth::{AccessControl, Api};
use super::body::{Body, read_body};
use super::headers::{accepted_encoding, max_age, require_json};
use super::path::{allow, normalized};
use super::reloads::Reloads;
use super::report::ConfigReport;
use super::router::Route;
use super::status::{add_advice, error_response};
use super::traffic::Traffic;
use super::{admin, browser, mirror, pages, prometheus};
use crate::clock::Clock;
use crate::engine::{CallContext, Engine, RequestContext};
use crate::model::{Compression, Error, Kind};
use crate::reloadable::Reloadable;
use crate::telemetry::metrics::RequestMetrics;
use crate::telemetry::trace::{Span, Trace};
use crate::wire::encoding::Encoding;
use crate::wire::mirror::API_KEY_HEADER;

/// The settings of a [`Front`].
#[derive(Clone, Debug)]
pub struct FrontSettings {
    /// Sent as `X-MIRROR-API-KEY` on every response.
    pub api_key: Arc<Reloadable<HeaderValue>>,
    /// Longest time from a request's head to its answer.
    pub request_timeout: Duration,
    /// Largest request body, in bytes.
    pub max_body: usize,
    /// Most requests in flight.
    pub max_in_flight: usize,
    /// Which of the clients that accept compressed answers get them.
    pub compression: Compression,
    /// Who has access.
    pub access: Arc<AccessControl>,
    /// Whether every error has status 500.
    pub always_500: bool,
}

/// Answers requests under one configuration.
pub struct Front {
    engine: Arc<Engine>,
    settings: FrontSettings,
    shared: Arc<Shared>,
}

/// The state that outlives a change of the configuration.
struct Shared {
    registry: Option<&'static PrometheusHandle>,
    clock: Arc<dyn Clock>,
    metrics: Metrics,
    admission: Admission,
    draining: AtomicBool,
    /// Where a reload is requested, if the configuration can be read again.
    reloads: OnceLock<Reloads>,
    /// What the admin API says of the configuration.
    report: ArcSwap<ConfigReport>,
    traffic: Traffic,
}

/// The metrics of requests, by route.
struct Metrics {
    known: Vec<(Route, RequestMetrics)>,
    unknown: RequestMetrics,
}

impl Metrics {
    fn new() -> Self {
        let route = |route: Route| {
            let (api, method) = route.names();
            (route, RequestMetrics::new(api, method))
        };
        Self {
            known: Route::all().map(route).collect(),
            unknown: RequestMetrics::new("none", "none"),
        }
    }

    fn of(&self, route: Option<Route>) -> &RequestMetrics {
        let found = self.known.iter().find(|(r, _)| Some(*r) == route);
        found.map_or(&self.unknown, |(_, metrics)| metrics)
    }
}

impl Front {
    /// Returns a front for `engine`.
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
                admission: Admission::default(),
                draining: AtomicBool::new(false),
                reloads: OnceLock::new(),
                report: ArcSwap::default(),
                traffic: Traffic::default(),
            }),
        })
    }

    /// Returns a front that takes over from this one, which may have requests in flight.
    pub fn rebuild(&self, engine: Arc<Engine>, settings: FrontSettings) -> Arc<Self> {
        Arc::new(Self {
            engine,
            settings,
            shared: self.shared.clone(),
        })
    }

    /// Returns who has access.
    pub fn access(&self) -> Arc<AccessControl> {
        self.settings.access.clone()
    }

    /// Lets admin calls request a reload of the configuration. Only the first call counts.
    pub fn follow(&self, reloads: Reloads) {
        let _ = self.shared.reloads.set(reloads);
    }

    /// Makes the admin API answer `report` about the configuration.
    pub fn report(&self, report: ConfigReport) {
        self.shared.report.store(Arc::new(report));
    }

    /// Ends a step of the traffic that the admin API reports; to be called every
    /// [`STEP`](super::STEP).
    pub fn step(&self) {
        let now = self.shared.clock.now();
        self.shared.traffic.step(now, self.engine.upstreams());
    }

    /// Makes `/readyz` answer that no new work should be sent here.
    pub fn drain(&self) {
        self.shared.draining.store(true, Ordering::Relaxed);
    }

    /// Answers `request` of the connection from `peer`.
    pub async fn handle(&self, request: Request<Incoming>, peer: IpAddr) -> Response<Body> {
        let now = self.shared.clock.monotonic();
        let (route, api) = {
            let path = normalized(request.uri().path());
            let route = self.route(&path);
            // Names of upstreams are not revealed to clients without access.
            let named = path.starts_with("/prometheus/");
            let api = named.then_some(Api::Prometheus);
            (route, api.or_else(|| route.and_then(Route::api)))
        };
        let client = self.settings.access.client(peer, request.headers());
        let allowed = self.allowed(api, route, client, &request).await;
        let method = request.method().clone();
        let (mut span, trace) = start_span(route, &request, client);
        // The request has been consumed when its answer is logged.
        let log =
            tracing::enabled!(Level::DEBUG).then(|| Box::new((request.uri().clone(), trace.id())));
        let arrival = Arrival { at: now, trace };
        let answer = match (allowed, route) {
            (Err(e), _) if api == Some(Api::Prometheus) => {
                let browser = request.headers().contains_key(ORIGIN);
                Ok(prometheus::refused(&e, browser))
            }
            (Err(e), Some(Route::Asset(asset))) => page_that_asks(asset, e, &request),
            (Err(e), _) => Err(e),
            (_, Some(Route::Asset(asset))) => {
                let compression = self.settings.compression;
                let encoding = accepted_encoding(compression, request.headers(), Some(client));
                asset.answer(&method, request.headers(), encoding)
            }
            (_, Some(Route::Mirror(mirror))) => self.mirror(mirror, request, client, arrival).await,
            // Boxed: a mirror hit should not carry the state of other APIs.
            (_, Some(Route::Prometheus(endpoint))) => {
                Ok(Box::pin(self.prometheus(endpoint, request, client, arrival)).await)
            }
            (_, Some(Route::Page(page))) => {
                let draining = self.shared.draining.load(Ordering::Relaxed);
                let path = request.uri().path();
                pages::answer(
                    page,
                    &method,
                    path,
                    &self.engine,
                    self.shared.registry,
                    draining,
                )
            }
            (_, Some(Route::Admin(call))) => Box::pin(self.admin(call, request, client, now)).await,
            (_, None) => {
                let path = normalized(request.uri().path());
                let message = format!("no such path: {path:.100?}; GET / lists the paths");
                Err(Error::new(Kind::PathNotFound, message))
            }
        };
        let mut response = answer.unwrap_or_else(|e| error_response(&e, self.settings.always_500));
        let key = HeaderValue::clone(&self.settings.api_key.get());
        response.headers_mut().insert(API_KEY_HEADER, key);
        let took = self.shared.clock.monotonic().saturating_sub(now);
        let status = response.status().as_u16();
        self.shared
            .metrics
            .of(route)
            .answered(status, took.as_secs_f64());
        if let Some((api, _)) = route.map(Route::names) {
            self.shared.traffic.count(api, status, took);
        }
        span.number("http.response.status_code", status);
        if status >= 500 {
            span.fail(&status);
        }
        if let Some(log) = log {
            let (uri, trace_id) = *log;
            let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
            debug!(%method, path = uri.path(), status, micros, trace_id, "request");
        }
        response
    }

    fn route(&self, path: &str) -> Option<Route> {
        // Clients test the URL of their data source with a GET.
        let named = || {
            let name = path.strip_prefix("/prometheus/")?;
            let known = self.engine.prometheus(Some(name)).is_ok();
            known.then_some(Route::Page(pages::Page::Source))
        };
        Route::of(path).or_else(named)
    }

    /// Checks that `client`, who sent `request`, may use `api`.
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
        // For the endpoints only: other paths would reveal the names of upstreams.
        let on_api = matches!(route, Some(Route::Prometheus(_)));
        let preflight = on_api && request.method() == Method::OPTIONS;
        // The page's files hold nothing of anybody's, and a page that cannot load cannot ask for a
        // token.
        let part = matches!(route, Some(Route::Asset(asset)) if asset != Asset::PAGE);
        let access = &self.settings.access;
        access
            .check(api, client, request.headers(), preflight || part)
            .await
    }

    /// Answers the body of a mirror request that did not come over HTTP.
    pub async fn ask(self: Arc<Self>, method: mirror::Method, body: &[u8]) -> Response<Body> {
        let arrival = Arrival {
            at: self.shared.clock.monotonic(),
            trace: Trace::default(),
        };
        let mut context = self.context(None, None, arrival);
        mirror::answer(&self.engine, method, body, &mut context)
            .await
            .unwrap_or_else(|e| error_response(&e, false))
    }

    /// Answers a request to the mirror API. What needs the head of the request is done at once, so
    /// that the future does not carry it.
    fn mirror(
        &self,
        mirror: mirror::Method,
        request: Request<Incoming>,
        client: IpAddr,
        arrival: Arrival,
    ) -> impl Future<Output = Result<Response<Body>, Error>> {
        let admitted = allow(request.method(), &mirror::METHODS)
            .and_then(|()| self.admit(&request))
            .and_then(|admitted| require_json(request.headers()).map(|()| admitted));
        let mut context = self.context(Some(request.headers()), Some(client), arrival);
        let body = request.into_body();
        async move {
            let _admitted = admitted?;
            let settings = &self.settings;
            let body = read_body(body, settings.max_body, settings.request_timeout).await?;
            mirror::answer(&self.engine, mirror, &body, &mut context).await
        }
    }

    async fn admin(
        &self,
        call: admin::Call,
        request: Request<Incoming>,
        client: IpAddr,
        now: Duration,
    ) -> Result<Response<Body>, Error> {
        let changes = call.changes(request.method());
        browser::check(request.uri(), request.headers(), changes)?;
        call.check(request.method())?;
        let _admitted = self.admit(&request)?;
        let arrival = Arrival {
            at: now,
            trace: Trace::default(),
        };
        let context = self.context(Some(request.headers()), Some(client), arrival);
        let settings = &self.settings;
        let (head, body) = request.into_parts();
        let path = normalized(head.uri.path());
        let body = read_body(body, settings.max_body, settings.request_timeout).await?;
        let known = admin::Known {
            reloads: self.shared.reloads.get(),
            report: &self.shared.report.load(),
            traffic: &self.shared.traffic,
        };
        admin::answer(&self.engine, &known, call, &path, &head, body, context).await
    }

    async fn prometheus(
        &self,
        endpoint: prometheus::ApiEndpoint,
        request: Request<Incoming>,
        client: IpAddr,
        arrival: Arrival,
    ) -> Response<Body> {
        let browser = request.headers().contains_key(ORIGIN);
        let answer = async {
            if request.method() == Method::OPTIONS {
                return Ok(prometheus::options());
            }
            let _admitted = self.admit(&request)?;
            let context = self.context(Some(request.headers()), Some(client), arrival);
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

    /// Admits a request, or refuses it at once where there is no room for it or its body.
    fn admit(&self, request: &Request<Incoming>) -> Result<Admitted<'_>, Error> {
        let settings = &self.settings;
        let announced = request.body().size_hint().upper();
        (self.shared.admission).admit(settings.max_in_flight, settings.max_body, announced)
    }

    fn context(
        &self,
        headers: Option<&HeaderMap>,
        caller: Option<IpAddr>,
        Arrival { at, trace }: Arrival,
    ) -> RequestContext {
        let deadline = tokio::time::Instant::now() + self.settings.request_timeout;
        RequestContext {
            arrived: at,
            wall: self.shared.clock.now(),
            deadline,
            call: CallContext::new(caller, deadline, trace),
            encoding: headers.map_or(Encoding::Identity, |headers| {
                accepted_encoding(self.settings.compression, headers, caller)
            }),
            max_age: headers.and_then(max_age),
        }
    }
}

/// Refuses a request for `asset` with `error`. A person gets the page itself, which asks for a token.
fn page_that_asks(
    asset: Asset,
    error: Error,
    request: &Request<Incoming>,
) -> Result<Response<Body>, Error> {
    let accepts = request.headers().get(ACCEPT).and_then(|v| v.to_str().ok());
    let person = accepts.is_some_and(|accepts| accepts.contains("text/html"));
    if asset != Asset::PAGE || !person || error.kind != Kind::Unauthenticated {
        return Err(error);
    }
    let mut response = asset.answer(&Method::GET, &HeaderMap::new(), Encoding::Identity)?;
    *response.status_mut() = StatusCode::UNAUTHORIZED;
    add_advice(&mut response, &error);
    Ok(response)
}

/// When a request arrived, and the trace that it belongs to.
struct Arrival {
    /// By the monotonic clock.
    at: Duration,
    trace: Trace,
}

/// Returns the span of `request` and the trace of the work done for it; Heliostat's own pages have none.
fn start_span(route: Option<Route>, request: &Request<Incoming>, peer: IpAddr) -> (Span, Trace) {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes of the future of `handle`, which hyper keeps for each connection and moves for each
    /// request.
    fn future_bytes<'a, F>(_handle: fn(&'a Front, Request<Incoming>, IpAddr) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn the_state_of_a_request_is_small() {
        let bytes = future_bytes(Front::handle);
        println!("the future of a request takes {bytes} bytes");
        assert!(bytes <= 2048, "{bytes}");
    }
}
