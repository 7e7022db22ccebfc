//! Observability: metrics, logs and traces.

pub mod cache_metrics;
mod context;
mod level_metrics;
mod log_writer;
pub mod logs;
pub mod metrics;
#[cfg(feature = "otlp")]
pub mod otlp;
pub mod removed;
pub mod trace;
mod unit_metrics;
mod upstream_metrics;
