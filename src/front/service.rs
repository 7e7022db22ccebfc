//! The service: the steps that are the same for every request: admission, a deadline, the API key,
//! a log line and metrics.

use std::future::poll_fn;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use http::header::{ACCEPT, CONNECTION, ORIGIN};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use metrics_exporter_prometheus::PrometheusHandle;
use tracing::{Level, debug, info};

use super::admission::{Claim, Full, Shares};
use super::answer::Arrival;
use super::assets::Asset;
use super::auth::{AccessControl, Api};
use super::body::Body;
use super::endpoint;
use super::listen::Connection;
use super::path::normalized;
use super::reloads::Reloads;
use super::report::ConfigReport;
use super::router::Route;
use super::scrape::Scrapes;
use super::status::{add_advice, error_response};
use super::traffic::Traffic;
use super::{pages, prometheus};
use crate::clock::Clock;
use crate::engine::Engine;
use crate::model::{Compression, Error, Kind};
use crate::reloadable::Reloadable;
use crate::telemetry::metrics::{self, RequestMetrics};
use crate::telemetry::trace::{Span, Trace};
use crate::wire::encoding::Encoding;
use crate::wire::mirror::API_KEY_HEADER;
use crate::wire::mirror::request::RequestBounds;

/// Most probes in flight, which have places of their own.
const PROBES: usize = 1024;

/// The longest reason of an error in the log, in characters.
const LONGEST_REASON: usize = 500;

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
    /// Most bytes of requests and responses in flight.
    pub max_in_flight_bytes: usize,
    /// Whether each request is logged at level info.
    pub access_log: bool,
    /// The bounds of what a request may hold.
    pub request_bounds: RequestBounds,
    /// The clients that get compressed answers, of those that accept them.
    pub compression: Compression,
    /// The rules of access.
    pub access: Arc<AccessControl>,
    /// Set if every error has status 500.
    pub always_500: bool,
}

/// Answers requests under one configuration.
pub struct Front {
    pub(super) engine: Arc<Engine>,
    pub(super) settings: FrontSettings,
    pub(super) shared: Arc<Shared>,
}

/// The state that outlives a change of the configuration.
pub(super) struct Shared {
    pub(super) registry: Option<&'static PrometheusHandle>,
    pub(super) clock: Arc<dyn Clock>,
    metrics: Metrics,
    /// The requests in flight, by client.
    pub(super) requests: Arc<Shares>,
    /// The probes in flight, by client, and the refusals of requests for which there is no place.
    probes: Arc<Shares>,
    pub(super) scrapes: Scrapes,
    pub(super) draining: AtomicBool,
    /// The handle for reloads, if the configuration can be read again.
    pub(super) reloads: OnceLock<Reloads>,
    /// The configuration as the admin API shows it.
    pub(super) report: ArcSwap<ConfigReport>,
    pub(super) traffic: Traffic,
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
                requests: Arc::default(),
                probes: Arc::default(),
                scrapes: Scrapes::default(),
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

    /// Ends responses that make no progress, and frees what the cache has dropped. Called every five
    /// seconds.
    pub fn sweep(&self) {
        self.shared.requests.sweep();
        self.shared.probes.sweep();
        self.engine.memory().tidy();
    }

    /// Answers `request`, which came on `connection`.
    ///
    /// The request stays where the caller has it: its head and the future of its answer are too large to be
    /// moved about for each hit.
    pub async fn handle(
        &self,
        request: &mut Request<Incoming>,
        connection: &Connection,
    ) -> Response<Body> {
        let now = self.shared.clock.monotonic();
        let deadline = self.deadline();
        let (route, api, prometheus_path) = {
            let path = normalized(request.uri().path());
            let route = self.route(&path);
            // Names of upstreams are not revealed to clients without access.
            let named = path.starts_with("/prometheus/");
            let api = named.then_some(Api::Prometheus);
            let mirror = matches!(route, Some(Route::Mirror(_)));
            let of_prometheus = !mirror && endpoint::is_of_prometheus(&path);
            let api = api.or_else(|| route.and_then(Route::api));
            (route, api, of_prometheus)
        };
        let client = self
            .settings
            .access
            .client(connection.peer(), request.headers());
        let probe = route.is_some_and(Route::is_probe);
        let claim = self.claim(probe, client, connection);
        let allowed = match &claim {
            // Probes of health are answered all the same.
            Err(Full) if api.is_none() && probe => Ok(()),
            Err(Full) => Err(self.full(probe)),
            // It may wait for the check of a password.
            Ok(claim) => {
                let allowed = pin!(self.allowed(api, route, client, request));
                self.unless_it_gives_way(allowed, Some(claim)).await
            }
        };
        let version = request.version();
        let prometheus = api == Some(Api::Prometheus) || prometheus_path;
        let form = ErrorForm {
            prometheus,
            browser: prometheus && request.headers().contains_key(ORIGIN),
        };
        let (mut span, trace) = start_span(route, request, client);
        let access = self.settings.access_log;
        let logged = access || tracing::enabled!(Level::DEBUG);
        // The request has been taken apart when its answer is logged.
        let head = || (request.method().clone(), request.uri().clone(), trace.id());
        let log = logged.then(|| Box::new(head()));
        let answer = match allowed {
            Err(e) => match route {
                Some(Route::Asset(asset)) => page_that_asks(asset, e, request),
                _ => Err(e),
            },
            Ok(()) => {
                let claim = claim.as_deref().ok();
                let arrival = Arrival {
                    at: now,
                    deadline,
                    trace,
                    client,
                    claim,
                };
                let answer = pin!(self.answer(route, request, arrival));
                self.unless_it_gives_way(answer, claim).await
            }
        };
        let reason = match (&log, &answer) {
            (Some(_), Err(e)) => Some(Box::new(shown(&e.to_string()))),
            _ => None,
        };
        let refused = answer.is_err();
        let mut response = answer.unwrap_or_else(|e| self.refused(&e, form));
        match claim {
            Ok(claim) if !claim.is_evicted() => self.hold(&mut response, claim, form),
            claim => {
                if claim.is_ok() && !refused {
                    // It gave way just now.
                    response = self.refused(&self.gave_way(), form);
                }
                self.hold_beside(&mut response, client, connection);
            }
        }
        let key = self.settings.api_key.copy();
        response.headers_mut().insert(API_KEY_HEADER, key);
        if version < Version::HTTP_2 && self.is_draining() {
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(CONNECTION, close);
        }
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
            let (method, uri, trace_id) = *log;
            let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
            let cache = response.headers().get("cache-status");
            let cache = cache.and_then(|v| v.to_str().ok());
            let reason = reason.as_deref();
            let path = uri.path();
            if access {
                info!(%client, %method, path, status, micros, cache, reason, trace_id, "request");
            } else {
                debug!(%client, %method, path, status, micros, cache, reason, trace_id, "request");
            }
        }
        response
    }

    /// Returns what `answer` becomes, or an error if `claim` gives way to another client before.
    fn unless_it_gives_way<T>(
        &self,
        mut answer: Pin<&mut impl Future<Output = Result<T, Error>>>,
        claim: Option<&Claim>,
    ) -> impl Future<Output = Result<T, Error>> {
        poll_fn(move |context| {
            let polled = answer.as_mut().poll(context);
            match claim {
                Some(claim) if polled.is_pending() => {
                    claim.poll_evicted(context).map(|()| Err(self.gave_way()))
                }
                _ => polled,
            }
        })
    }

    /// Claims a place for `client`: among the probes, or among the requests in flight.
    fn claim(
        &self,
        probe: bool,
        client: IpAddr,
        connection: &Connection,
    ) -> Result<Arc<Claim>, Full> {
        let (shares, most) = match probe {
            true => (&self.shared.probes, PROBES),
            false => (&self.shared.requests, self.settings.max_in_flight),
        };
        shares.claim(Some(client), most, Some(connection.claim().clone()))
    }

    /// Returns the error of a request, or of a scrape, for which there is no place.
    fn full(&self, probe: bool) -> Error {
        metrics::gave_way("request");
        if probe {
            let message = format!(
                "{PROBES} probes are already in flight, and no other client has more of them"
            );
            return Error::new(Kind::Overloaded, message);
        }
        let most = self.settings.max_in_flight;
        let message = format!(
            "{most} requests are already in flight, and no other client has more of them \
             (server.max_in_flight)"
        );
        Error::new(Kind::Overloaded, message)
    }

    /// Makes `response` hold `claim` until it has been sent; or makes an error of it, if there is no room
    /// for its bytes.
    fn hold(&self, response: &mut Response<Body>, claim: Arc<Claim>, form: ErrorForm) {
        let most = self.settings.max_in_flight_bytes;
        if let Err(full) = claim.hold(response.body().weight(), most) {
            metrics::gave_way("bytes");
            *response = self.refused(&full.of_bytes(most), form);
        }
        claim.start_sending();
        response.body_mut().hold(claim);
    }

    /// Makes `response`, which is small and has no claim, hold one among the probes. If there is no place
    /// there either, only its head is sent: that waits for no window of HTTP/2.
    fn hold_beside(&self, response: &mut Response<Body>, client: IpAddr, connection: &Connection) {
        match self.claim(true, client, connection) {
            Ok(claim) => {
                claim.start_sending();
                response.body_mut().hold(claim);
            }
            Err(Full) => *response.body_mut() = Body::default(),
        }
    }

    /// Returns the error of a request that gave way to those of other clients.
    fn gave_way(&self) -> Error {
        metrics::gave_way("request");
        let message = "the service is full, and this client address holds most of it: this request \
                       gave way to another client's";
        Error::new(Kind::Overloaded, message)
    }

    /// Returns the response for `error` in the `form` of the API.
    fn refused(&self, error: &Error, form: ErrorForm) -> Response<Body> {
        if form.prometheus {
            prometheus::refused(error, form.browser)
        } else {
            error_response(error, self.settings.always_500)
        }
    }

    pub(super) fn is_draining(&self) -> bool {
        self.shared.draining.load(Ordering::Relaxed)
    }

    fn route(&self, path: &str) -> Option<Route> {
        // Clients test the URL of their data source with a GET.
        let named = || {
            let rest = path.strip_prefix("/prometheus/")?;
            let name = rest.split('/').next().unwrap_or_default();
            self.engine.prometheus(Some(name)).ok()?;
            let page = match rest.get(name.len()..)? {
                "" => pages::Page::Source,
                below => pages::Page::of_prometheus(below)?,
            };
            Some(Route::Page(page))
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
        // The page's files hold no data, and a page that cannot load cannot ask for a token.
        let part = matches!(route, Some(Route::Asset(asset)) if asset != Asset::PAGE);
        let access = &self.settings.access;
        access
            .check(api, client, request.headers(), preflight || part)
            .await
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

/// Returns `text` in a form for one log line: cut, and without control characters.
fn shown(text: &str) -> String {
    let start = text.chars().take(LONGEST_REASON);
    start
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

/// The form in which errors are answered.
#[derive(Clone, Copy)]
struct ErrorForm {
    /// Set for Prometheus' form, instead of the mirror API's.
    prometheus: bool,
    /// Set if the request had an `Origin`.
    browser: bool,
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
    fn future_bytes<'a, F>(
        _handle: fn(&'a Front, &'a mut Request<Incoming>, &'a Connection) -> F,
    ) -> usize {
        size_of::<F>()
    }

    #[test]
    fn the_state_of_a_request_is_small() {
        let bytes = future_bytes(Front::handle);
        println!("the future of a request takes {bytes} bytes");
        assert!(bytes <= 2048, "{bytes}");
    }
}
