//! Answers: reading an admitted request, and passing it to its API.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::Either;
use http::header::ORIGIN;
use http::request::Parts;
use http::{HeaderMap, Method, Request, Response, Uri};
use hyper::body::Incoming;
use tokio::time::Instant;

use super::admission::{Claim, Full};
use super::assets::Asset;
use super::body::{Body, BodyLimits, read_charged};
use super::headers::{accepted_encoding, max_age, require_json};
use super::path::{allow, normalized};
use super::router::Route;
use super::service::Front;
use super::status::error_response;
use super::{admin, browser, mirror, pages, prometheus};
use crate::engine::{CallContext, RequestContext};
use crate::model::{Error, Kind};
use crate::telemetry::trace::Trace;
use crate::telemetry::{metrics, removed};
use crate::wire::encoding::Encoding;

/// Responses of so many bytes wait until there is room for them.
const LARGE: usize = 64 << 10;

/// Most bytes of all texts of `/metrics` that are being sent.
const SCRAPE_BYTES: usize = 8 << 20;

/// The bytes of memory that a request of Prometheus' API is charged for each byte of a large body.
const PARTS: usize = 4;

/// A request's circumstances.
pub(super) struct Arrival<'a> {
    /// The time of its arrival, by the monotonic clock.
    pub(super) at: Duration,
    /// The time by which it has to be answered.
    pub(super) deadline: Instant,
    pub(super) trace: Trace,
    pub(super) client: IpAddr,
    /// Its place among the requests in flight, or the probes; a probe may be answered without one.
    pub(super) claim: Option<&'a Claim>,
}

impl Front {
    /// Answers `request` for `route`. The future is small for hits of the mirror API; that of others is
    /// boxed.
    pub(super) fn answer<'a>(
        &'a self,
        route: Option<Route>,
        request: &'a mut Request<Incoming>,
        arrival: Arrival<'a>,
    ) -> impl Future<Output = Result<Response<Body>, Error>> {
        match route {
            Some(Route::Mirror(method)) => Either::Left(self.mirror(method, request, arrival)),
            route => Either::Right(Box::pin(self.answer_other(route, request, arrival))),
        }
    }

    async fn answer_other(
        &self,
        route: Option<Route>,
        request: &mut Request<Incoming>,
        arrival: Arrival<'_>,
    ) -> Result<Response<Body>, Error> {
        let head = take_head(request);
        let (method, path) = (&head.method, head.uri.path());
        match route {
            // Those of the mirror API do not come here.
            Some(Route::Mirror(_)) | None => {
                let path = normalized(path);
                let message = format!("no such path: {path:.100?}; GET / lists the paths");
                Err(Error::new(Kind::PathNotFound, message))
            }
            Some(Route::Prometheus(endpoint)) => {
                let body = request.body_mut();
                self.prometheus(endpoint, head, body, arrival).await
            }
            Some(Route::Asset(Asset::PAGE)) => {
                let upstreams = self.engine.upstreams().iter().map(|u| u.name());
                Asset::page(method, &head.headers, upstreams)
            }
            Some(Route::Asset(asset)) => {
                let compression = self.settings.compression;
                let encoding = accepted_encoding(compression, &head.headers, Some(arrival.client));
                asset.answer(method, &head.headers, encoding)
            }
            Some(Route::Page(page)) => {
                let metrics = match page {
                    pages::Page::Metrics => self.metrics(method, arrival.claim).await?,
                    _ => Bytes::new(),
                };
                pages::answer(page, method, path, metrics, self.is_draining())
            }
            Some(Route::Admin(call)) => {
                let body = request.body_mut();
                self.admin(call, head, body, arrival).await
            }
        }
    }

    /// Returns the text of `/metrics`, whose bytes are charged to `claim`.
    async fn metrics(&self, method: &Method, claim: Option<&Claim>) -> Result<Bytes, Error> {
        allow(method, &pages::METHODS)?;
        let (shared, engine) = (self.shared.clone(), self.engine.clone());
        let write = move || {
            let (requests, bytes) = shared.requests.totals();
            metrics::in_flight(requests, bytes);
            engine.observe();
            metrics::observe_process();
            shared.registry.map(removed::render).unwrap_or_default()
        };
        let text = self.shared.scrapes.text(write).await;
        let text = text.map_err(|e| Error::new(Kind::Internal, e.to_string()))?;
        if let Some(claim) = claim {
            let held = claim.hold(text.len(), SCRAPE_BYTES);
            held.map_err(|Full| {
                metrics::gave_way("bytes");
                let message = format!(
                    "answers of /metrics of {SCRAPE_BYTES} bytes are being sent already, and no other \
                     client holds more of them"
                );
                Error::new(Kind::Overloaded, message)
            })?;
        }
        Ok(text)
    }

    /// Answers a GET of Prometheus' API that did not come over HTTP.
    pub async fn get(self: Arc<Self>, uri: Uri) -> Response<Body> {
        let (mut head, ()) = Request::new(()).into_parts();
        head.uri = uri;
        let (at, deadline) = (self.shared.clock.monotonic(), self.deadline());
        let mut context = self.context(None, None, at, deadline, Trace::default());
        let answer = async {
            let none = || Error::new(Kind::PathNotFound, "no such path");
            let endpoint = prometheus::ApiEndpoint::of(head.uri.path()).ok_or_else(none)?;
            let (path, engine) = (normalized(head.uri.path()), &self.engine);
            let asked =
                prometheus::asked(engine, endpoint, &head, &path, Bytes::new(), &mut context);
            let (upstream, asked) = asked.await?;
            prometheus::answer(engine, &upstream, asked, context).await
        };
        answer
            .await
            .unwrap_or_else(|e| prometheus::refused(&e, false))
    }

    /// Answers the body of a mirror request that did not come over HTTP.
    pub async fn ask(self: Arc<Self>, method: mirror::Method, body: &[u8]) -> Response<Body> {
        let (at, deadline) = (self.shared.clock.monotonic(), self.deadline());
        let mut context = self.context(None, None, at, deadline, Trace::default());
        let body = Bytes::copy_from_slice(body);
        mirror::answer(&self, method, body, &mut context)
            .await
            .unwrap_or_else(|e| error_response(&e, false))
    }

    /// Answers a request to the mirror API. What needs the head of the request is done at once, so
    /// that it is not kept while the answer is waited for.
    fn mirror<'a>(
        &'a self,
        method: mirror::Method,
        request: &'a mut Request<Incoming>,
        arrival: Arrival<'a>,
    ) -> impl Future<Output = Result<Response<Body>, Error>> {
        let good = allow(request.method(), &mirror::METHODS)
            .and_then(|()| require_json(request.headers()));
        let claim = arrival.claim;
        let mut context = self.context_of(request.headers(), arrival);
        take_head(request);
        async move {
            good?;
            let deadline = context.deadline;
            let body = self.read(request.body_mut(), claim, deadline).await?;
            let again = body.clone();
            let response = mirror::answer(self, method, body, &mut context).await?;
            if self.has_room(&response, claim) {
                return Ok(response);
            }
            let bytes = response.body().weight();
            // What waits holds no memory.
            drop(response);
            let make = || async move { mirror::answer(self, method, again, &mut context).await };
            Box::pin(self.once_there_is_room(bytes, claim, deadline, make)).await
        }
    }

    async fn admin(
        &self,
        call: admin::Call,
        head: Parts,
        body: &mut Incoming,
        arrival: Arrival<'_>,
    ) -> Result<Response<Body>, Error> {
        let changes = call.changes(&head.method);
        browser::check(&head.uri, &head.headers, changes)?;
        call.check(&head.method)?;
        let path = normalized(head.uri.path());
        let claim = arrival.claim;
        let context = self.context_of(&head.headers, arrival);
        let body = self.read(body, claim, context.deadline).await?;
        let known = admin::FrontState {
            reloads: self.shared.reloads.get(),
            report: &self.shared.report.load(),
            traffic: &self.shared.traffic,
            bounds: self.settings.request_bounds,
        };
        admin::answer(&self.engine, &known, call, &path, &head, body, context).await
    }

    async fn prometheus(
        &self,
        endpoint: prometheus::ApiEndpoint,
        head: Parts,
        body: &mut Incoming,
        arrival: Arrival<'_>,
    ) -> Result<Response<Body>, Error> {
        let browser = head.headers.contains_key(ORIGIN);
        let mut response = if head.method == Method::OPTIONS {
            prometheus::options()
        } else {
            let claim = arrival.claim;
            let mut context = self.context_of(&head.headers, arrival);
            let deadline = context.deadline;
            let body = self.read(body, claim, deadline).await?;
            if body.len() > LARGE
                && let Some(claim) = claim
            {
                // What is read of it, and what is sent of it, come on top.
                let most = self.settings.max_in_flight_bytes;
                let held = claim.hold(PARTS * body.len(), most);
                held.map_err(|full| full.of_bytes(most))?;
            }
            let path = normalized(head.uri.path());
            let asked = prometheus::asked(&self.engine, endpoint, &head, &path, body, &mut context);
            let (upstream, asked) = asked.await?;
            let make = || {
                let (asked, context) = (asked.clone(), context.clone());
                prometheus::answer(&self.engine, &upstream, asked, context)
            };
            let response = make().await?;
            if self.has_room(&response, claim) {
                response
            } else {
                let bytes = response.body().weight();
                // What waits holds no memory.
                drop(response);
                Box::pin(self.once_there_is_room(bytes, claim, deadline, make)).await?
            }
        };
        prometheus::finish(&mut response, browser);
        Ok(response)
    }

    /// Returns whether `response` is small or there is room for its bytes, which `claim` holds then.
    fn has_room(&self, response: &Response<Body>, claim: Option<&Claim>) -> bool {
        let bytes = response.body().weight();
        let most = self.settings.max_in_flight_bytes;
        bytes < LARGE || claim.is_none_or(|claim| claim.hold(bytes, most).is_ok())
    }

    /// Waits until there is room for `bytes` of a response, which `make` makes again then, as a rule from
    /// the cache.
    async fn once_there_is_room<F>(
        &self,
        bytes: usize,
        claim: Option<&Claim>,
        deadline: Instant,
        make: impl FnOnce() -> F,
    ) -> Result<Response<Body>, Error>
    where
        F: Future<Output = Result<Response<Body>, Error>>,
    {
        if let Some(claim) = claim {
            let most = self.settings.max_in_flight_bytes;
            let held = claim.hold_by(bytes, most, deadline).await;
            held.map_err(|full| {
                metrics::gave_way("bytes");
                full.of_bytes(most)
            })?;
        }
        make().await
    }

    /// Reads the body of a request, whose bytes are charged to its claim.
    async fn read(
        &self,
        body: &mut Incoming,
        claim: Option<&Claim>,
        deadline: Instant,
    ) -> Result<Bytes, Error> {
        let limits = BodyLimits {
            max: self.settings.max_body,
            deadline,
            in_flight: self.settings.max_in_flight_bytes,
        };
        read_charged(body, limits, claim).await
    }

    fn context_of(&self, headers: &HeaderMap, arrival: Arrival<'_>) -> RequestContext {
        self.context(
            Some(headers),
            Some(arrival.client),
            arrival.at,
            arrival.deadline,
            arrival.trace,
        )
    }

    /// Returns the time by which a request that arrives now has to be answered.
    pub(super) fn deadline(&self) -> Instant {
        Instant::now() + self.settings.request_timeout
    }

    fn context(
        &self,
        headers: Option<&HeaderMap>,
        caller: Option<IpAddr>,
        at: Duration,
        deadline: Instant,
        trace: Trace,
    ) -> RequestContext {
        RequestContext {
            arrived: at,
            wall: self.shared.clock.now(),
            deadline,
            call: CallContext::new(caller, deadline, trace),
            encoding: headers.map_or(Encoding::Identity, |headers| {
                accepted_encoding(self.settings.compression, headers, caller)
            }),
            max_age: headers.and_then(max_age),
            level_wait: None,
        }
    }
}

/// Takes the head out of `request`: what is left has its body only, and holds nothing of the connection's
/// buffer.
fn take_head(request: &mut Request<Incoming>) -> Parts {
    let (mut head, ()) = Request::new(()).into_parts();
    head.version = request.version();
    std::mem::swap(&mut head.method, request.method_mut());
    std::mem::swap(&mut head.uri, request.uri_mut());
    std::mem::swap(&mut head.headers, request.headers_mut());
    std::mem::swap(&mut head.extensions, request.extensions_mut());
    head
}
