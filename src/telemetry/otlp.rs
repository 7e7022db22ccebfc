//! OpenTelemetry spans, and their export by OTLP: protocol buffers over HTTP.
//!
//! The exporter's own requests are in no trace: spans get their parents as arguments, and the
//! exporter gets none.

use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue};
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::{
    Span as _, SpanBuilder, SpanKind, Status, TraceContextExt, Tracer, TracerProvider,
};
use opentelemetry::{Context, Key, KeyValue};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::transform::common::tonic::ResourceAttributesWithSchema;
use opentelemetry_proto::transform::trace::tonic::group_spans_by_resource_and_scope;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{
    BatchSpanProcessor, Sampler, SdkTracer, SdkTracerProvider, SpanData, SpanExporter,
};
use prost::Message;
use tracing::{info, warn};

use super::context::{Below, Trace};

/// Timeout of one export.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(10);

/// The tracer, once tracing has started.
static TRACER: OnceLock<SdkTracer> = OnceLock::new();

/// Which spans are sent, and where to.
pub struct OtlpSettings {
    /// The URL that they are posted to.
    pub endpoint: String,
    /// The client that sends them.
    pub client: reqwest::Client,
    /// Returns the headers to send; called for each export.
    pub headers: Box<dyn Fn() -> HeaderMap + Send + Sync>,
    /// The share, from 0 to 1, of traces begun here that is recorded.
    pub sample: f64,
}

/// The export of spans.
#[derive(Debug)]
pub struct Export(SdkTracerProvider);

impl Export {
    /// Starts tracing for the whole process; a separate thread sends spans in batches. Returns
    /// `None` if tracing has started already. Has to be called within the runtime that sends them.
    pub fn start(settings: OtlpSettings) -> Option<Self> {
        let mut resource = Resource::builder()
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .build();
        let named = resource.get(&Key::new("service.name"));
        // The SDK's default if the environment sets none.
        if named.is_none_or(|name| name.as_str().starts_with("unknown_service")) {
            let attributes = resource
                .iter()
                .map(|(k, v)| KeyValue::new(k.clone(), v.clone()));
            resource = Resource::builder_empty()
                .with_attributes(attributes.collect::<Vec<_>>())
                .with_service_name(env!("CARGO_PKG_NAME"))
                .build();
        }
        let sampler = Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(settings.sample)));
        let exporter = Exporter {
            settings,
            runtime: tokio::runtime::Handle::current(),
            resource: (&resource).into(),
            failing: AtomicBool::new(false),
        };
        let provider = SdkTracerProvider::builder()
            .with_sampler(sampler)
            .with_resource(resource)
            .with_span_processor(BatchSpanProcessor::builder(exporter).build())
            .build();
        let tracer = provider.tracer(env!("CARGO_PKG_NAME"));
        TRACER.set(tracer).ok().map(|()| Self(provider))
    }

    /// Sends all pending spans. Blocks.
    pub fn flush(&self) -> Result<(), String> {
        self.0.force_flush().map_err(|e| e.to_string())
    }

    /// Sends all pending spans, for at most `most`. Blocks.
    pub fn stop(&self, most: Duration) -> Result<(), String> {
        self.0
            .shutdown_with_timeout(most)
            .map_err(|e| e.to_string())
    }
}

/// Posts spans to a collector. Those that cannot be posted are dropped, so that a collector that is
/// down costs neither memory nor time of requests.
struct Exporter {
    settings: OtlpSettings,
    runtime: tokio::runtime::Handle,
    resource: ResourceAttributesWithSchema,
    /// Whether the last export failed.
    failing: AtomicBool,
}

impl fmt::Debug for Exporter {
    /// Omits the headers, which may hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Exporter(…)")
    }
}

impl SpanExporter for Exporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let resource_spans = group_spans_by_resource_and_scope(batch, &self.resource);
        let body = ExportTraceServiceRequest { resource_spans }.encode_to_vec();
        let settings = &self.settings;
        let request = settings
            .client
            .post(&settings.endpoint)
            .headers((settings.headers)())
            .header(CONTENT_TYPE, "application/x-protobuf")
            .timeout(EXPORT_TIMEOUT)
            .body(body);
        // This thread has no runtime.
        let sent = self.runtime.spawn(async {
            let response = request.send().await.map_err(|e| deepest(&e))?;
            match response.status() {
                status if status.is_success() => Ok(()),
                status => Err(format!("the collector answered HTTP {}", status.as_u16())),
            }
        });
        let sent = sent.await.unwrap_or_else(|e| Err(e.to_string()));
        let failed_before = self.failing.swap(sent.is_err(), Ordering::Relaxed);
        match &sent {
            Err(error) if !failed_before => {
                warn!("exporting traces failed, dropping them until it succeeds: {error}");
            }
            Ok(()) if failed_before => info!("exporting traces succeeds again"),
            _ => {}
        }
        sent.map_err(OTelSdkError::InternalFailure)
    }
}

/// Returns the innermost cause of `error`, which is the most specific. It does not name the URL.
fn deepest(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// A span, if its trace is recorded.
#[derive(Debug, Default)]
pub(super) struct Recorded(Option<Box<opentelemetry_sdk::trace::Span>>);

pub(super) fn served(sent: Trace, api: &str, method: &str) -> (Recorded, Trace) {
    let Some(tracer) = TRACER.get() else {
        return (Recorded::default(), sent);
    };
    let parent = extracted(&sent);
    let known = parent.span().span_context().clone();
    if known.is_valid() && !known.is_sampled() {
        // No span of ours is recorded: the upstream gets the client's.
        return (Recorded::default(), sent);
    }
    let builder = SpanBuilder::from_name(format!("{api} {method}")).with_kind(SpanKind::Server);
    let span = tracer.build_with_context(builder, &parent);
    let context = span.span_context().clone();
    if !context.is_valid() {
        // Tracing has stopped.
        return (Recorded::default(), sent);
    }
    let recorded = span.is_recording().then(|| Box::new(span));
    (Recorded(recorded), Trace::below_span(context))
}

pub(super) fn step(trace: &Trace, name: &'static str, client: bool) -> Recorded {
    let (Some(tracer), Some(Below::Span(parent))) = (TRACER.get(), trace.below()) else {
        return Recorded::default();
    };
    if !parent.is_sampled() {
        return Recorded::default();
    }
    let kind = if client {
        SpanKind::Client
    } else {
        SpanKind::Internal
    };
    let parent = Context::new().with_remote_span_context(parent.clone());
    let builder = SpanBuilder::from_name(name).with_kind(kind);
    let span = tracer.build_with_context(builder, &parent);
    Recorded(span.is_recording().then(|| Box::new(span)))
}

/// Returns the client's span, if `sent` names one, as the parent of ours.
fn extracted(sent: &Trace) -> Context {
    struct Headers(String, String);
    impl Extractor for Headers {
        fn get(&self, key: &str) -> Option<&str> {
            match key {
                "traceparent" => Some(&self.0),
                "tracestate" => Some(&self.1),
                _ => None,
            }
        }
        fn keys(&self) -> Vec<&str> {
            vec!["traceparent", "tracestate"]
        }
    }
    let Some(Below::Sent(parent, states)) = sent.below() else {
        return Context::new();
    };
    let text = |value: &HeaderValue| value.to_str().unwrap_or_default().to_owned();
    let states: Vec<String> = states.iter().map(text).collect();
    let headers = Headers(text(parent), states.join(","));
    TraceContextPropagator::new().extract_with_context(&Context::new(), &headers)
}

impl Recorded {
    fn set(&mut self, key: &'static str, value: impl FnOnce() -> opentelemetry::Value) {
        if let Some(span) = &mut self.0 {
            span.set_attribute(KeyValue::new(key, value()));
        }
    }

    pub(super) fn text(&mut self, key: &'static str, value: &dyn fmt::Display) {
        self.set(key, || value.to_string().into());
    }

    pub(super) fn number(&mut self, key: &'static str, value: impl TryInto<i64>) {
        self.set(key, || value.try_into().unwrap_or(i64::MAX).into());
    }

    pub(super) fn flag(&mut self, key: &'static str, value: bool) {
        self.set(key, || value.into());
    }

    pub(super) fn fail(&mut self, error: &dyn fmt::Debug) {
        self.set("error.type", || format!("{error:?}").into());
        if let Some(span) = &mut self.0 {
            span.set_status(Status::error(""));
        }
    }

    pub(super) fn link(&mut self, other: &Trace) {
        if let (Some(span), Some(Below::Span(other))) = (&mut self.0, other.below()) {
            span.add_link(other.clone(), Vec::new());
        }
    }

    pub(super) fn trace(&self) -> Option<Trace> {
        let span = self.0.as_ref()?;
        Some(Trace::below_span(span.span_context().clone()))
    }
}
