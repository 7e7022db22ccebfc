//! Export of traces.

use std::sync::Arc;
use std::time::Duration;

use tracing::warn;

use super::{StartError, reloadables};
use crate::clock::Clock;
use crate::config;
use crate::telemetry::otlp::{Export, OtlpSettings};
use crate::upstream::{Http, Security};

/// Starts tracing for the whole process, as `config` says. Returns `None` if it has started already.
pub fn start(
    config: &config::Traces,
    clock: &Arc<dyn Clock>,
) -> Result<Option<Export>, StartError> {
    let client = Http::client(Http::builder(), &Security::default()).map_err(StartError)?;
    let headers = reloadables::headers("traces.headers".into(), &config.headers, clock);
    let headers = headers.map_err(StartError)?;
    Ok(Export::start(OtlpSettings {
        endpoint: config.endpoint.as_str().to_owned(),
        client,
        headers: Box::new(move || headers.get().as_ref().clone()),
        sample: config.sample,
    }))
}

/// The least time to send the last spans.
const LAST_EXPORT: Duration = Duration::from_secs(1);

/// Sends the last spans, within the time that is `left` to stop.
pub async fn stop(export: Export, left: Duration) {
    let most = left.max(LAST_EXPORT);
    let stopped = tokio::task::spawn_blocking(move || export.stop(most)).await;
    if let Ok(Err(error)) = stopped {
        warn!("exporting the last traces failed: {error}");
    }
}
