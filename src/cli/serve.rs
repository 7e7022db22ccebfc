//! `heliostat serve`.

use std::process::ExitCode;
use std::sync::{Arc, OnceLock};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{info, warn};

use super::{block_on, complain};
use crate::app::{ConfigSource, Service, exposure, machine};
use crate::clock::{Clock, SystemClock};
use crate::config::Config;
use crate::front::Reloads;
use crate::telemetry::logs;

/// Serves `config`, and later configurations of `source`, until a signal to stop. Log lines may be
/// `coloured`.
pub(super) fn run(config: &Config, source: ConfigSource, coloured: bool) -> ExitCode {
    let format = if config.log.json {
        logs::LogFormat::Json
    } else {
        logs::LogFormat::Human
    };
    logs::start(config.log.level, format, coloured);
    machine::raise_descriptor_limit();
    let served = match block_on(serve(config, source)) {
        Ok(served) => served,
        Err(error) => Err(error.into()),
    };
    logs::finish();
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
}

async fn serve(config: &Config, source: ConfigSource) -> Result<(), Box<dyn std::error::Error>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let hangup = signal(SignalKind::hangup())?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
    #[cfg(feature = "otlp")]
    let traces = match &config.traces {
        Some(traces) => crate::app::traces::start(traces, &clock)?,
        None => None,
    };
    let service = Service::bind(config, clock.clone()).await?;
    if let Some(address) = service.address() {
        let upstreams: Vec<String> = config
            .upstreams
            .iter()
            .map(|u| format!("{} ({})", u.name, u.kind.name()))
            .collect();
        let tls = config.server.tls.as_ref();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let from = config.file();
        info!(
            version = env!("CARGO_PKG_VERSION"),
            config = from.unwrap_or("none, the built-in demonstration is served"),
            upstreams = upstreams.join(", "),
            "listening on {scheme}://{address}"
        );
        let exposed = exposure::warnings(config, address).into_iter();
        for warning in exposed.chain(machine::warnings(config)) {
            warn!("{warning}");
        }
    }
    tokio::spawn(reload_on(hangup, service.follow(source)));
    let stopped = OnceLock::new();
    let stop = async {
        // Somebody who presses Ctrl-C does not want to wait; an orchestrator takes a while to stop
        // sending requests.
        let patient = tokio::select! {
            _ = terminate.recv() => true,
            _ = interrupt.recv() => false,
        };
        let _ = stopped.set(clock.monotonic());
        patient
    };
    service.run(stop).await;
    #[cfg(feature = "otlp")]
    if let Some(traces) = traces {
        let drained = clock
            .monotonic()
            .saturating_sub(stopped.get().copied().unwrap_or_default());
        let time = config.server.drain_grace + config.server.drain();
        crate::app::traces::stop(traces, time.saturating_sub(drained)).await;
    }
    info!("stopped");
    Ok(())
}

/// Reloads the configuration at each `hangup`. The log shows the result.
async fn reload_on(mut hangup: Signal, reloads: Reloads) {
    while hangup.recv().await.is_some() {
        let _ = reloads.ask().await;
    }
}
