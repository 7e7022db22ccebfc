//! A listening service whose configuration can be replaced.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::time::MissedTickBehavior;
use tracing::{info, warn};

use super::clock_watch::ClockWatch;
use super::reload::{ConfigSource, Running, follow};
use super::{App, StartError, machine};
use crate::clock::Clock;
use crate::config::Config;
use crate::front::listen::{self, Connection, Listening};
use crate::front::{self, Reloads};
use crate::reloadable::Reloadable;
use crate::telemetry::metrics;

/// The interval at which responses are checked for progress and histograms are tidied. See
/// `STALLED_SWEEPS`.
const UPKEEP: Duration = Duration::from_secs(5);

/// The interval at which invalidations by other replicas are looked up.
const CATCH_UP: Duration = Duration::from_millis(100);

/// Most time to write what waits for the second level of the cache when the service stops.
const FLUSH: Duration = Duration::from_secs(2);

/// A listening service.
pub struct Service {
    running: Arc<Running>,
    listener: TcpListener,
    connections: usize,
    clock: Arc<dyn Clock>,
}

impl Service {
    /// Sets up what `config` describes and binds its address.
    pub async fn bind(config: &Config, clock: Arc<dyn Clock>) -> Result<Self, StartError> {
        let address = config.server.listen;
        let listener = listen::bind(address)
            .map_err(|e| StartError(format!("cannot listen on {address} (server.listen): {e}")))?;
        let app = App::build(config, clock.clone()).await?;
        Ok(Self {
            running: Arc::new(Running::new(app)),
            listener,
            connections: machine::connections(config),
            clock,
        })
    }

    /// Returns the address that it listens on.
    pub fn address(&self) -> Option<SocketAddr> {
        self.listener.local_addr().ok()
    }

    /// Follows the configuration of `source`: it is reloaded through the returned handle, by an admin
    /// call, and when the file changes.
    pub fn follow(&self, source: ConfigSource) -> Reloads {
        let (reloads, asked) = Reloads::new();
        self.running.app().front.follow(reloads.clone());
        tokio::spawn(follow(self.running.clone(), source, asked));
        reloads
    }

    /// Serves until `stop` completes, which returns whether to go on listening for
    /// `server.drain_grace`; then lets the requests in flight finish.
    pub async fn run(self, stop: impl Future<Output = bool>) {
        let Self {
            running,
            listener,
            connections,
            clock,
        } = self;
        let upkeep = tokio::spawn(upkeep(running.clone(), clock));
        tokio::spawn(count(Arc::downgrade(&running)));
        let stop = {
            let running = running.clone();
            async move {
                let patient = stop.await;
                let app = running.app();
                app.front.drain();
                let server = &app.config.server;
                let grace = server.drain_grace;
                if patient && !grace.is_zero() {
                    info!(
                        "stopping: /readyz answers 503; new connections are accepted for {grace:?}"
                    );
                    tokio::time::sleep(grace).await;
                }
                info!("stopping: no new connections; requests in flight finish");
                server.drain()
            }
        };
        let tls = running.clone();
        let access = running.clone();
        let listening = Listening {
            connections,
            trusted: Box::new(move |peer| access.app().front.access().is_proxy(peer)),
            tls: Box::new(move || tls.app().tls.as_ref().map(Reloadable::get)),
        };
        let catching_up = tokio::spawn(catch_up(Arc::downgrade(&running)));
        let serving = running.clone();
        let handler = move |mut request, connection: Arc<Connection>| {
            let app = serving.app();
            // Held until the answer is complete: its demonstration sources end with it.
            async move { app.front.handle(&mut request, &connection).await }
        };
        listen::serve(listener, listening, handler, stop).await;
        // No call is made any more.
        running.app().leave().await;
        let flushed = tokio::time::timeout(FLUSH, running.app().engine.flush()).await;
        if flushed.is_err() {
            warn!("the second level of the cache took too long to write; the rest is dropped");
        }
        upkeep.abort();
        catching_up.abort();
        // The process ends now: freeing a large cache piece by piece would take seconds.
        std::mem::forget(running.app().engine.memory());
    }
}

/// Applies what other replicas have invalidated, as long as the service runs.
async fn catch_up(running: Weak<Running>) {
    loop {
        tokio::time::sleep(CATCH_UP).await;
        match running.upgrade() {
            Some(running) => running.app().engine.catch_up().await,
            None => return,
        }
    }
}

/// Ends responses that make no progress, tidies histograms that nobody reads, and looks at the clock.
async fn upkeep(running: Arc<Running>, clock: Arc<dyn Clock>) {
    let mut watch = ClockWatch::new(&*clock);
    loop {
        tokio::time::sleep(UPKEEP).await;
        running.app().front.sweep();
        if let Some(registry) = metrics::registry() {
            registry.run_upkeep();
        }
        watch.look(&*clock);
    }
}

/// Ends a step of the traffic every [`STEP`](front::STEP), as long as the service runs.
async fn count(running: Weak<Running>) {
    let mut steps = tokio::time::interval(front::STEP);
    steps.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        steps.tick().await;
        match running.upgrade() {
            Some(running) => running.app().front.step(),
            None => return,
        }
    }
}
