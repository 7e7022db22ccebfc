//! Heliostat's own pages: health, readiness, metrics, and the OpenAPI description.

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, Response, StatusCode};

use super::body::Body;
use super::path::allow;
use crate::model::Error;

const TEXT: &str = "text/plain; charset=utf-8";
/// The text format of Prometheus.
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";
const JSON: &str = "application/json";

/// The mirror API and these pages as OpenAPI 3.1.
pub(super) const OPENAPI: &str = include_str!("openapi.json");

/// A page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Page {
    /// `/prometheus/NAME`, which clients test as the URL of their data source
    Source,
    /// `/healthz`
    Health,
    /// `/readyz`
    Ready,
    /// `/metrics`
    Metrics,
    /// `/openapi.json`
    OpenApi,
}

impl Page {
    /// Returns the page that answers Prometheus' own probe at `path`.
    pub(super) fn of_prometheus(path: &str) -> Option<Self> {
        match path {
            "/-/healthy" => Some(Self::Health),
            "/-/ready" => Some(Self::Ready),
            _ => None,
        }
    }

    /// Returns its name in metrics.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Health => "healthz",
            Self::Ready => "readyz",
            Self::Metrics => "metrics",
            Self::OpenApi => "openapi",
        }
    }
}

/// The HTTP methods of all pages.
pub(super) const METHODS: [Method; 2] = [Method::GET, Method::HEAD];

/// Answers a request for `page` at `path`; `metrics` is the text of `/metrics`.
pub(super) fn answer(
    page: Page,
    method: &Method,
    path: &str,
    metrics: Bytes,
    draining: bool,
) -> Result<Response<Body>, Error> {
    allow(method, &METHODS)?;
    let (status, kind, body) = match page {
        Page::Source => {
            let name = path
                .trim_end_matches('/')
                .rsplit('/')
                .next()
                .unwrap_or_default();
            let text = format!(
                "The Prometheus API of the upstream {name} is at api/v1/ below this URL.\n"
            );
            (StatusCode::OK, TEXT, Body::from(text))
        }
        Page::Health => (StatusCode::OK, TEXT, Body::fixed("ok\n")),
        Page::Ready if draining => {
            let status = StatusCode::SERVICE_UNAVAILABLE;
            (status, TEXT, Body::fixed("draining\n"))
        }
        Page::Ready => (StatusCode::OK, TEXT, Body::fixed("ready\n")),
        Page::Metrics => (StatusCode::OK, METRICS, Body::from(metrics)),
        Page::OpenApi => (StatusCode::OK, JSON, Body::fixed(OPENAPI)),
    };
    // HEAD is answered as GET; the connection omits the body.
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    Ok(response)
}
