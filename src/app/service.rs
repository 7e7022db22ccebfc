//! A listening service whose configuration can be replaced.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::time::MissedTickBehavior;
use tracing::info;

use super::reload::{ConfigSource, Running, follow};
use super::{App, StartError};
use crate::clock::Clock;
use crate::config::Config;
use crate::front::{self, Reloads, listen};
use crate::telemetry::metrics;

/// How often histograms are maintained when nobody reads `/metrics`.
const UPKEEP: Duration = Duration::from_secs(5);

/// A listening service.
pub struct Service {
    running: Arc<Running>,
    listener: TcpListener,
}

impl Service {
    /// Sets up what `config` describes and binds its address.
    pub async fn bind(config: &Config, clock: Arc<dyn Clock>) -> Result<Self, StartError> {
        let address = config.server.listen;
        let listener = TcpListener::bind(address)
            .await
            .map_err(|e| StartError(format!("cannot listen on {address} (server.listen): {e}")))?;
        let app = App::build(config, clock).await?;
        Ok(Self {
            running: Arc::new(Running::new(app)),
            listener,
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

    /// Serves until `stop` completes, then lets requests in flight finish.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        tokio::spawn(async {
            if let Some(registry) = metrics::registry() {
                loop {
                    tokio::time::sleep(UPKEEP).await;
                    registry.run_upkeep();
                }
            }
        });
        let Self { running, listener } = self;
        tokio::spawn(count(Arc::downgrade(&running)));
        let stop = {
            let running = running.clone();
            async move {
                stop.await;
                info!("stopping: accepting no more connections, finishing requests in flight");
                let app = running.app();
                app.front.drain();
                app.config.server.drain_timeout
            }
        };
        let tls = {
            let running = running.clone();
            move || {
                running
                    .app()
                    .tls
                    .as_ref()
                    .map(crate::reloadable::Reloadable::get)
            }
        };
        let serving = running.clone();
        let handler = move |request, peer| {
            let app = serving.app();
            // It is held until the answer is complete: its demonstration sources end with it.
            async move { app.front.handle(request, peer).await }
        };
        listen::serve(listener, tls, handler, stop).await;
        // The process ends now: freeing a large cache piece by piece would take seconds.
        std::mem::forget(running.app().engine.memory());
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
