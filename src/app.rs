//! The composition root: a configuration goes in, a running service comes out.

mod live;

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use http::HeaderMap;
use tokio::net::TcpListener;
use tracing::{info, warn};

use crate::adapters::Adapter;
use crate::adapters::mirror::Mirror;
use crate::adapters::prometheus::Prometheus;
use crate::clock::Clock;
use crate::config::{self, ClientTls, Config, ErrorStatus, Proxy, UpstreamKind};
use crate::demo::http::DemoServer;
use crate::engine::Engine;
use crate::files::Live;
use crate::front::{Front, Settings, listen};
use crate::model::{MultiSeries, TargetUrl};
use crate::telemetry::metrics::{self, UpstreamMetrics};
use crate::upstream::{
    Access, Forward, Guard, Http, Parts, Registry, Security, Transport, Upstream, watch,
};

/// How often histograms are tidied when nobody reads `/metrics`.
const UPKEEP: std::time::Duration = std::time::Duration::from_secs(5);

/// What could not be set up, in a sentence.
#[derive(Debug)]
pub struct StartError(String);

impl std::fmt::Display for StartError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for StartError {}

/// Everything that answers requests, without a listener.
pub struct App {
    /// Answers requests.
    pub front: Arc<Front>,
    /// Answers queries.
    pub engine: Arc<Engine>,
}

impl App {
    /// Sets up what `config` describes; demonstration sources start to listen.
    pub async fn build(config: &Config, clock: Arc<dyn Clock>) -> Result<Self, StartError> {
        // The registry comes first: handles made before it would count nothing.
        let registry = metrics::registry();
        let maker = Maker {
            clock,
            state_dir: config.state_dir.clone(),
        };
        // A client reads the system's authorities; most upstreams can share one.
        let plain = Http::client(Http::builder(), &Security::default()).map_err(StartError)?;
        let plain: Arc<dyn Transport> = Arc::new(Http::new(Live::fixed(plain)));
        let mut upstreams = Vec::new();
        for upstream in &config.upstreams {
            let urls = match &upstream.kind {
                UpstreamKind::Demo {
                    latency,
                    per_second,
                } => {
                    let server = DemoServer::new(*latency, *per_second, maker.clock.clone());
                    vec![demonstrate(server).await?]
                }
                kind => kind.urls().to_vec(),
            };
            let api_key = match &upstream.kind {
                UpstreamKind::Mirror {
                    api_key: Some(secret),
                    ..
                } => {
                    let name = format!("upstream {} api_key", upstream.name);
                    let text = live::text(name, secret, &maker.clock).map_err(StartError)?;
                    Some(Arc::new(text))
                }
                _ => None,
            };
            let alike = upstream.tls == ClientTls::default() && upstream.proxy == Proxy::default();
            let ways = Ways {
                transport: match alike {
                    true => plain.clone(),
                    false => Arc::new(live::http(upstream, &maker.clock).map_err(StartError)?),
                },
                headers: live::headers(upstream, &maker.clock).map_err(StartError)?,
                api_key,
            };
            upstreams.push(maker.upstream(upstream, urls, ways));
        }
        let guard = Guard {
            named: config.targets.clone(),
            networks: config.target_networks.clone(),
        };
        let guarded: Arc<dyn Transport> = Arc::new(Http::guarded(guard).map_err(StartError)?);
        let clock = maker.clock.clone();
        let make = move |name, url: TargetUrl| {
            let settings = config::Upstream::target(name, url.clone());
            let ways = Ways {
                transport: guarded.clone(),
                headers: Live::fixed(HeaderMap::new()),
                api_key: None,
            };
            maker.upstream(&settings, vec![url], ways)
        };
        let default = config.default_upstream.clone();
        let registry_of_upstreams =
            Registry::new(upstreams, default, config.targets.clone(), Box::new(make));
        let server = &config.server;
        let engine = Engine::new(
            registry_of_upstreams,
            config.cache_memory,
            server.max_points,
            clock.clone(),
        );
        let api_key = live::header("server.api_key".into(), &server.api_key, &clock);
        let settings = Settings {
            api_key: Arc::new(api_key.map_err(StartError)?),
            request_timeout: server.request_timeout,
            max_body: server.max_body,
            max_in_flight: server.max_in_flight,
            compression: server.compression,
            access: Arc::new(live::access(&config.access, &clock).map_err(StartError)?),
            always_500: server.error_status == ErrorStatus::Always500,
        };
        let front = Front::new(engine.clone(), settings, registry, clock);
        if let Some(registry) = registry {
            tokio::spawn(async move {
                loop {
                    tokio::time::sleep(UPKEEP).await;
                    registry.run_upkeep();
                }
            });
        }
        Ok(Self { front, engine })
    }
}

/// A service that listens.
pub struct Service {
    app: App,
    listener: TcpListener,
    tls: Option<listen::Tls>,
    drain: std::time::Duration,
}

impl Service {
    /// Sets up what `config` describes and binds its address.
    pub async fn bind(config: &Config, clock: Arc<dyn Clock>) -> Result<Self, StartError> {
        let address = config.server.listen;
        let listener = TcpListener::bind(address)
            .await
            .map_err(|e| StartError(format!("cannot listen on {address} (server.listen): {e}")))?;
        let tls = config.server.tls.as_ref();
        let tls = tls.map(|files| live::server(files, &clock)).transpose();
        let tls = tls.map_err(StartError)?.map(Arc::new);
        Ok(Self {
            app: App::build(config, clock).await?,
            listener,
            tls,
            drain: config.server.drain_timeout,
        })
    }

    /// The address that it listens on.
    pub fn address(&self) -> Option<SocketAddr> {
        self.listener.local_addr().ok()
    }

    /// Serves until `stop` is over, then lets what is in hand finish.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        let front = self.app.front;
        let draining = front.clone();
        let stop = async move {
            stop.await;
            info!("stopping: no new connections, requests in hand finish");
            draining.drain();
        };
        let handler = move |request, peer| front.clone().handle(request, peer);
        listen::serve(self.listener, self.tls, handler, stop, self.drain).await;
    }
}

/// Makes upstreams out of their settings.
struct Maker {
    clock: Arc<dyn Clock>,
    state_dir: Option<PathBuf>,
}

/// The way to an upstream, and what it is proved with.
struct Ways {
    transport: Arc<dyn Transport>,
    /// Sent with each request.
    headers: Live<HeaderMap>,
    /// What a mirror must answer with.
    api_key: Option<Arc<Live<String>>>,
}

impl Maker {
    fn upstream(
        &self,
        settings: &config::Upstream,
        urls: Vec<TargetUrl>,
        ways: Ways,
    ) -> Arc<Upstream> {
        let reading = settings.reading;
        let mirror = || -> Box<dyn Adapter> {
            Box::new(Mirror {
                api_key: ways.api_key.clone(),
                page: reading.raw_points_max,
            })
        };
        let (adapter, forward) = match &settings.kind {
            UpstreamKind::Demo { .. } => (mirror(), Forward::Nothing),
            UpstreamKind::Mirror {
                connection_details, ..
            } => {
                let forward = connection_details
                    .clone()
                    .map_or(Forward::Client, Forward::Fixed);
                (mirror(), forward)
            }
            UpstreamKind::Prometheus { .. } => {
                let single = reading.multi_series == MultiSeries::Error;
                let adapter: Box<dyn Adapter> = Box::new(Prometheus::new(reading.interval, single));
                (adapter, Forward::Nothing)
            }
        };
        let metrics = UpstreamMetrics::new(&settings.name);
        let access = Access::new(Parts {
            transport: ways.transport,
            urls,
            headers: ways.headers,
            limits: settings.limits,
            max_response: reading.max_response,
            budget_file: self
                .state_dir
                .as_ref()
                .map(|dir| dir.join(format!("{}.budget", settings.name))),
            metrics: metrics.clone(),
            clock: self.clock.clone(),
        });
        let upstream = Upstream::new(
            settings.freshness,
            reading,
            adapter,
            forward,
            access,
            metrics,
        );
        tokio::spawn(watch(Arc::downgrade(&upstream)));
        upstream
    }
}

/// Lets `server` listen on a loopback port of its own, and gives its URL.
async fn demonstrate(server: Arc<DemoServer>) -> Result<TargetUrl, StartError> {
    let failed = |e: std::io::Error| StartError(format!("the demonstration cannot listen: {e}"));
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let url = TargetUrl::parse(&format!("http://{address}")).map_err(StartError)?;
    let handler = move |request, _| server.clone().handle(request);
    tokio::spawn(async move {
        let never = std::future::pending();
        listen::serve(listener, None, handler, never, std::time::Duration::ZERO).await;
        warn!("the demonstration source ended");
    });
    Ok(url)
}
