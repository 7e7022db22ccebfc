//! Observability: metrics, logs and traces.

mod context;
pub mod logs;
pub mod metrics;
#[cfg(feature = "otlp")]
pub mod otlp;
pub mod removed;
pub mod trace;
mod upstream_metrics;
