//! Heliostat's own pages: health, readiness, metrics, the OpenAPI description, and a page for people.

use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, Response, StatusCode};
use metrics_exporter_prometheus::PrometheusHandle;

use super::body::Body;
use super::path::allow;
use crate::engine::Engine;
use crate::model::Error;

const HTML: &str = "text/html; charset=utf-8";
const TEXT: &str = "text/plain; charset=utf-8";
/// The text format of Prometheus.
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";
const JSON: &str = "application/json";

/// The mirror API and these pages as OpenAPI 3.1.
pub(super) const OPENAPI: &str = include_str!("openapi.json");

/// A page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Page {
    /// `/`
    Home,
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
    /// Returns its name in metrics.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Home => "home",
            Self::Health => "healthz",
            Self::Ready => "readyz",
            Self::Metrics => "metrics",
            Self::OpenApi => "openapi",
        }
    }
}

pub(super) fn answer(
    page: Page,
    method: &Method,
    engine: &Engine,
    registry: Option<&PrometheusHandle>,
    draining: bool,
) -> Result<Response<Body>, Error> {
    allow(method, &[Method::GET, Method::HEAD])?;
    let (status, kind, body) = match page {
        Page::Home => (StatusCode::OK, HTML, home(engine)),
        Page::Health => (StatusCode::OK, TEXT, "ok\n".to_owned()),
        Page::Ready if draining => {
            let status = StatusCode::SERVICE_UNAVAILABLE;
            (status, TEXT, "draining\n".to_owned())
        }
        Page::Ready => (StatusCode::OK, TEXT, "ready\n".to_owned()),
        Page::Metrics => {
            engine.observe();
            let text = registry.map(PrometheusHandle::render).unwrap_or_default();
            (StatusCode::OK, METRICS, text)
        }
        Page::OpenApi => (StatusCode::OK, JSON, OPENAPI.to_owned()),
    };
    // HEAD is answered as GET; the connection omits the body.
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    Ok(response)
}

fn home(engine: &Engine) -> String {
    let upstreams: String = engine
        .upstreams()
        .iter()
        // Names are letters, digits and a few signs: nothing to escape.
        .map(|u| format!("<li><code>{}</code></li>", u.name()))
        .collect();
    format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Heliostat</title>\
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:42em;margin:3em auto;padding:0 1em}}\
code{{background:#8882;padding:.1em .3em;border-radius:3px}}</style>\
<h1>Heliostat {version}</h1>\
<p>A caching and aggregating proxy for telemetry. It serves StackState's mirror API in front of \
slower sources and fetches only what is missing.</p>\
<ul><li><code>POST /api/connection</code>, <code>/api/field/name</code>, \
<code>/api/field/value</code>, <code>/api/metric</code>: the mirror API</li>\
<li><code>/prometheus/NAME/api/v1/</code>: Prometheus' HTTP API of an upstream of its kind</li>\
<li><a href=\"/metrics\"><code>/metrics</code></a>: for Prometheus</li>\
<li><a href=\"/openapi.json\"><code>/openapi.json</code></a>: the mirror API as OpenAPI</li>\
<li><a href=\"/healthz\"><code>/healthz</code></a>, <a href=\"/readyz\"><code>/readyz</code></a>: \
for probes</li></ul>\
<p>Upstreams, the choice of <code>connectionDetails</code> <code>{{\"upstream\": \"NAME\"}}</code>:</p>\
<ul>{upstreams}</ul>\
<p>Set this page's address as the URL of a mirror data source in StackState.</p></html>\n",
        version = env!("CARGO_PKG_VERSION"),
    )
}
