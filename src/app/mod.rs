//! The composition root: a configuration goes in, a running service comes out.

#[cfg(feature = "aws")]
mod aws;
mod clock_watch;
pub mod exposure;
pub mod levels;
pub mod machine;
mod reload;
mod reloadables;
mod report;
mod service;
mod stored_as;
#[cfg(feature = "otlp")]
pub mod traces;

use std::path::PathBuf;
use std::sync::Arc;

use http::HeaderMap;
use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

pub use reload::ConfigSource;
pub use service::Service;

use crate::adapters::cloudwatch::CloudWatch;
use crate::adapters::mirror::Mirror;
use crate::adapters::prometheus::{Prometheus, ReplicaLabels};
use crate::adapters::{Adapter, Forwarded};
use crate::clock::Clock;
use crate::config::{self, ClientTls, Config, ErrorStatus, Proxy, UpstreamKind};
use crate::demo::http::DemoServer;
use crate::engine::{Engine, Memory};
use crate::front::listen::{self, Listening};
use crate::front::{Front, FrontSettings};
use crate::model::{Batching, MetricPace, Millis, MultiSeries, Replicas, TargetUrl};
use crate::reloadable::Reloadable;
use crate::store::joint::JointLimits;
use crate::telemetry::metrics::{self, UpstreamMetrics};
use crate::upstream::{
    AnswerMemory, AwsSigner, BudgetPath, ClientConfig, Forward, Guard, Http, Identity, Registry,
    SharedLimits, Transport, Upstream, UpstreamClient, watch,
};
use crate::wire::mirror::request::RequestBounds;

/// A failure to set something up, in a sentence.
#[derive(Debug)]
pub struct StartError(String);

impl std::fmt::Display for StartError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for StartError {}

/// Everything that answers requests under one configuration, without a listener.
pub struct App {
    /// The APIs.
    pub front: Arc<Front>,
    /// The engine behind them.
    pub engine: Arc<Engine>,
    /// The memory that answers of upstreams are read into.
    answers: Arc<AnswerMemory>,
    tls: Option<Reloadable<ServerConfig>>,
    /// The limits that replicas keep together, if they do.
    joint: Option<Arc<JointLimits>>,
    config: Config,
    built: Vec<BuiltUpstream>,
    clock: Arc<dyn Clock>,
    /// When its configuration took effect, in milliseconds of Unix time.
    since: Millis,
}

/// A built upstream and the settings it was built from.
#[derive(Clone)]
struct BuiltUpstream {
    settings: config::Upstream,
    upstream: Arc<Upstream>,
    demo: Option<Arc<RunningDemo>>,
}

impl App {
    /// Sets up what `config` describes; demonstration sources start listening.
    pub async fn build(config: &Config, clock: Arc<dyn Clock>) -> Result<Self, StartError> {
        Self::make(config, clock, None, true).await
    }

    /// The same for a command that ends soon, while a service may run under the same `config`: without the
    /// second levels of the cache, which the service holds; and the usage of budgets is read, but not
    /// written, as the service writes it.
    pub async fn beside(config: &Config, clock: Arc<dyn Clock>) -> Result<Self, StartError> {
        let mut config = config.clone();
        config.cache_disk = None;
        config.cache_shared = None;
        Self::make(&config, clock, None, false).await
    }

    /// Gives up the share of the limits that replicas keep together.
    async fn leave(&self) {
        if let Some(joint) = &self.joint {
            joint.leave().await;
        }
    }

    /// Sets up what `config` describes as the successor of this: unchanged upstreams are kept, and
    /// so is the cache of those with the same data. On failure nothing changes.
    async fn rebuild(&self, config: &Config) -> Result<Self, StartError> {
        Self::make(config, self.clock.clone(), Some(self), true).await
    }

    fn built_as(&self, name: &str) -> Option<&BuiltUpstream> {
        let mut built = self.built.iter();
        built.find(|built| built.settings.name == name)
    }

    async fn make(
        config: &Config,
        clock: Arc<dyn Clock>,
        before: Option<&Self>,
        writes_budgets: bool,
    ) -> Result<Self, StartError> {
        // The registry comes first: handles created before it would count nothing.
        let registry = metrics::registry();
        let (levels, joint) = match before {
            Some(before) => (Vec::new(), before.joint.clone()),
            None => levels::open(config, &clock).await?,
        };
        // Answers of upstreams have half of the bytes in flight, requests and responses the other half.
        let answer_bytes = config.server.max_in_flight_bytes / 2;
        let answers = match before {
            Some(app) => app.answers.clone(),
            None => AnswerMemory::new(answer_bytes),
        };
        let builder = UpstreamBuilder {
            joint: joint.clone(),
            clock: clock.clone(),
            answers: answers.clone(),
            state_dir: config.state_dir.clone(),
            writes_budgets,
        };
        // A client loads the system's authorities; most upstreams can share one.
        let plain: Arc<dyn Transport> = Arc::new(Http::plain().map_err(StartError)?);
        let same_state = before.is_some_and(|app| app.config.state_dir == config.state_dir);
        let mut built = Vec::new();
        for settings in &config.upstreams {
            let old = before.and_then(|app| app.built_as(&settings.name));
            built.push(match old {
                Some(old) if same_state && old.settings == *settings => old.clone(),
                _ => builder.built(settings, &plain, old).await?,
            });
        }
        let guard = Guard {
            named: config.targets.clone(),
            networks: config.target_networks.clone(),
        };
        let guarded: Arc<dyn Transport> = Arc::new(Http::guarded(guard).map_err(StartError)?);
        let make = move |name, url: TargetUrl, identity, shared: Option<SharedLimits>| {
            let settings = config::Upstream::target(name, url.clone());
            let connection = Connection {
                transport: guarded.clone(),
                headers: Reloadable::fixed(HeaderMap::new()),
                api_key: None,
                signer: None,
            };
            let own = shared.is_none();
            let upstream = builder.upstream(&settings, vec![url], connection, identity, shared);
            if own {
                upstream.client.start(None);
            }
            upstream
        };
        let upstreams = Registry::new(
            built.iter().map(|built| built.upstream.clone()).collect(),
            config.default_upstream.clone(),
            config.targets.clone(),
            Box::new(make),
        );
        let server = &config.server;
        let api_key = reloadables::header("server.api_key".into(), &server.api_key, &clock);
        let settings = FrontSettings {
            api_key: Arc::new(api_key.map_err(StartError)?),
            request_timeout: server.request_timeout,
            max_body: server.max_body,
            max_in_flight: server.max_in_flight,
            max_in_flight_bytes: server.max_in_flight_bytes - answer_bytes,
            access_log: config.log.access,
            request_bounds: RequestBounds {
                details: server.max_details,
                value: server.max_value,
            },
            compression: server.compression,
            access: match before.filter(|app| {
                app.config.access == config.access
                    && exposure::demonstrates(&app.config) == exposure::demonstrates(config)
            }) {
                // It remembers passwords that were correct.
                Some(app) => app.front.access(),
                None => {
                    let demonstrates = exposure::demonstrates(config);
                    let access = reloadables::access(&config.access, demonstrates, &clock);
                    Arc::new(access.map_err(StartError)?)
                }
            },
            always_500: server.error_status == ErrorStatus::Always500,
        };
        let tls = server.tls.as_ref();
        let tls = tls
            .map(|files| reloadables::server(files, &clock))
            .transpose();
        let tls = tls.map_err(StartError)?;
        // Nothing fails from here on.
        answers.resize(answer_bytes);
        for made in &built {
            let old = before.and_then(|app| app.built_as(&made.settings.name));
            let old = old.map(|old| &old.upstream);
            if !old.is_some_and(|old| Arc::ptr_eq(old, &made.upstream)) {
                made.upstream.client.start(old.map(|old| &old.client));
            }
        }
        let upstreams = match before {
            None => upstreams,
            Some(before) => {
                let same = before.config.targets == config.targets
                    && before.config.target_networks == config.target_networks;
                upstreams.succeeding(before.engine.registry(), same)
            }
        };
        let memory = match before {
            Some(before) => before.engine.memory(),
            None if levels.is_empty() => Memory::new(config.cache_memory),
            None => Memory::with_levels(config.cache_memory, levels, &clock),
        };
        let engine = Engine::new(upstreams, memory, server.max_points, clock.clone());
        let front = match before {
            None => Front::new(engine.clone(), settings, registry, clock.clone()),
            Some(before) => before.front.rebuild(engine.clone(), settings),
        };
        Ok(Self {
            front,
            engine,
            answers,
            tls,
            joint,
            config: config.clone(),
            built,
            since: clock.now(),
            clock,
        })
    }
}

/// Builds upstreams from their settings.
struct UpstreamBuilder {
    /// The limits that replicas keep together, if they do.
    joint: Option<Arc<JointLimits>>,
    clock: Arc<dyn Clock>,
    answers: Arc<AnswerMemory>,
    state_dir: Option<PathBuf>,
    writes_budgets: bool,
}

/// The connection to an upstream, and its credentials.
struct Connection {
    transport: Arc<dyn Transport>,
    /// Sent with each request.
    headers: Reloadable<HeaderMap>,
    /// The key that a mirror has to answer with.
    api_key: Option<Arc<Reloadable<String>>>,
    /// Signs each request.
    signer: Option<AwsSigner>,
}

impl UpstreamBuilder {
    /// Builds the upstream that `settings` describe, possibly as the successor of `old`, which goes on
    /// until its client is started. Most upstreams use the client `plain`.
    async fn built(
        &self,
        settings: &config::Upstream,
        plain: &Arc<dyn Transport>,
        old: Option<&BuiltUpstream>,
    ) -> Result<BuiltUpstream, StartError> {
        let demo = match (&settings.kind, old) {
            (kind, Some(old)) if *kind == old.settings.kind => old.demo.clone(),
            (
                UpstreamKind::Demo {
                    latency,
                    per_second,
                },
                _,
            ) => {
                let server = DemoServer::new(*latency, *per_second, self.clock.clone());
                Some(Arc::new(RunningDemo::start(server).await?))
            }
            _ => None,
        };
        let urls = match &demo {
            Some(demo) => vec![demo.url.clone()],
            None => settings.kind.urls().to_vec(),
        };
        let api_key = match &settings.kind {
            UpstreamKind::Mirror {
                api_key: Some(secret),
                ..
            } => {
                let name = format!("upstream {} api_key", settings.name);
                let text = reloadables::text(name, secret, &self.clock).map_err(StartError)?;
                Some(Arc::new(text))
            }
            _ => None,
        };
        let alike = settings.tls == ClientTls::default() && settings.proxy == Proxy::default();
        let transport: Arc<dyn Transport> = match alike {
            true => plain.clone(),
            false => Arc::new(reloadables::http(settings, &self.clock).map_err(StartError)?),
        };
        #[cfg(feature = "aws")]
        let signer = aws::signer(settings, &transport, plain, &self.clock).map_err(StartError)?;
        #[cfg(not(feature = "aws"))]
        let signer = None;
        let connection = Connection {
            transport,
            signer,
            headers: reloadables::headers(
                format!("upstream {} headers", settings.name),
                &settings.headers,
                &self.clock,
            )
            .map_err(StartError)?,
            api_key,
        };
        let same = old.filter(|old| old.settings.has_data_of(settings));
        let identity = same.map_or_else(Identity::new, |old| old.upstream.identity.clone());
        Ok(BuiltUpstream {
            settings: settings.clone(),
            upstream: self.upstream(settings, urls, connection, identity, None),
            demo,
        })
    }

    fn upstream(
        &self,
        settings: &config::Upstream,
        urls: Vec<TargetUrl>,
        connection: Connection,
        identity: Identity,
        shared: Option<SharedLimits>,
    ) -> Arc<Upstream> {
        let reading = &settings.reading;
        let mirror = || -> Box<dyn Adapter> {
            Box::new(Mirror {
                api_key: connection.api_key.clone(),
                page: reading.raw_points_max,
            })
        };
        let (adapter, forward) = match &settings.kind {
            UpstreamKind::Demo { .. } => (mirror(), Forward::Nothing),
            UpstreamKind::Mirror {
                connection_details, ..
            } => {
                let forward = connection_details
                    .as_ref()
                    .map_or(Forward::Client, |fixed| {
                        Forward::Fixed(Forwarded::of(fixed))
                    });
                (mirror(), forward)
            }
            UpstreamKind::CloudWatch { units, rules, .. } => {
                let aws = settings.aws.as_ref();
                let adapter: Box<dyn Adapter> = Box::new(CloudWatch {
                    region: aws.map_or_else(String::new, |aws| aws.region.clone()),
                    pace: MetricPace {
                        interval: reading.interval,
                        settle: settings.freshness.settle,
                        refresh: settings.freshness.refresh,
                    },
                    single_series: reading.multi_series == MultiSeries::Error,
                    rules: rules.clone(),
                    statistics: units.statistics,
                    clock: self.clock.clone(),
                });
                (adapter, Forward::Nothing)
            }
            UpstreamKind::Prometheus { .. } => {
                let single = reading.multi_series == MultiSeries::Error;
                let fill = reading.replicas == Replicas::Fill;
                let most = reading.range_limits.series;
                let mut adapter = Prometheus::new(reading.interval, single, most);
                adapter.fill = fill.then(|| ReplicaLabels::new(&reading.replica_labels));
                let adapter: Box<dyn Adapter> = Box::new(adapter);
                (adapter, Forward::Nothing)
            }
        };
        let metrics = UpstreamMetrics::new(&settings.name);
        let (units, batch) = match &settings.kind {
            UpstreamKind::CloudWatch { units, batch, .. } => (Some(units.clone()), *batch),
            _ => (None, Batching::default()),
        };
        let limits = &settings.limits;
        let joint = self.joint.as_ref();
        let joint = joint.map(|j| j.limit(&settings.name, limits.per_second, limits.burst));
        let client = UpstreamClient::new(ClientConfig {
            units,
            batch,
            transport: connection.transport,
            urls,
            headers: connection.headers,
            signer: connection.signer,
            limits: settings.limits,
            joint,
            shared,
            method: reading.method,
            max_response: reading.max_response,
            answers: self.answers.clone(),
            budget_file: self.state_dir.as_ref().map(|dir| BudgetPath {
                path: dir.join(format!("{}.budget", settings.name)),
                written: self.writes_budgets,
            }),
            metrics: metrics.clone(),
            clock: self.clock.clone(),
        });
        let upstream = Arc::new(Upstream {
            identity,
            stored_as: stored_as::stored_as(settings),
            freshness: settings.freshness,
            reading: reading.clone(),
            adapter,
            forward,
            client,
            metrics,
        });
        tokio::spawn(watch(Arc::downgrade(&upstream)));
        upstream
    }
}

/// A demonstration source; it listens on a loopback port of its own until it is dropped.
struct RunningDemo {
    url: TargetUrl,
    _stop: oneshot::Sender<()>,
}

/// The time for requests in flight to finish when a demonstration source ends.
const DEMO_DRAIN: std::time::Duration = std::time::Duration::from_secs(10);

impl RunningDemo {
    async fn start(server: Arc<DemoServer>) -> Result<Self, StartError> {
        let failed =
            |e: std::io::Error| StartError(format!("the demonstration source cannot listen: {e}"));
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let url = TargetUrl::parse(&format!("http://{address}")).map_err(StartError)?;
        let handler = move |request, _| server.clone().handle(request);
        let (_stop, stopped) = oneshot::channel::<()>();
        tokio::spawn(async move {
            let stop = async {
                // The sender is dropped with the demonstration source.
                let _ = stopped.await;
                DEMO_DRAIN
            };
            listen::serve(listener, Listening::default(), handler, stop).await;
        });
        Ok(Self { url, _stop })
    }
}
