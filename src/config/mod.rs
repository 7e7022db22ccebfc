//! Configuration: a TOML file and overrides from the environment, as validated values.
//!
//! `raw` mirrors the file; `load` reads and validates it and locates errors; this module defines
//! the settings that the rest of the program uses.

mod aws;
mod load;
mod raw;
mod raw_aws;
mod usual;
mod values;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use http::HeaderName;
use ipnet::IpNet;
use serde::Deserialize;
use tracing::Level;

pub use aws::{Aws, AwsKeys, AwsRole};
pub use load::{ConfigError, certificate_at, listens_at, load, parse};
pub use values::Secret;

use crate::model::{
    Batching, Compression, Freshness, Limits, NamespaceRule, Pattern, Reading, Setting, TargetUrl,
    Units,
};

/// The whole configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// Settings towards clients.
    pub server: Server,
    /// Access rules.
    pub access: AccessSettings,
    /// Upper bound of the cache in bytes.
    pub cache_memory: u64,
    /// The second level of the cache on disk, which survives restarts, if there is one.
    pub cache_disk: Option<CacheDisk>,
    /// The second level of the cache that replicas share, if there is one.
    pub cache_shared: Option<CacheShared>,
    /// The settings of replicas that share it.
    pub replicas: Replicas,
    /// Targets besides the upstreams that connection details may name.
    pub targets: Vec<Pattern>,
    /// Non-public networks that such targets may be in.
    pub target_networks: Vec<IpNet>,
    /// The folder for data that survives restarts.
    pub state_dir: Option<PathBuf>,
    /// Log settings.
    pub log: Log,
    /// Trace settings, if spans are sent.
    pub traces: Option<Traces>,
    /// The upstreams in the order of the file; at least one.
    pub upstreams: Vec<Upstream>,
    /// The upstream that serves `connectionDetails {}`.
    pub default_upstream: String,
    /// The sources that it was read from.
    document: load::Document,
}

impl Config {
    /// Returns the file that it was read from; `None` for the built-in defaults.
    pub fn file(&self) -> Option<&str> {
        self.document.file()
    }

    /// Returns every key that has a value, with its origin and with secrets masked. Takes some
    /// milliseconds.
    pub fn settings(&self) -> Vec<Setting> {
        self.document.settings(&self.default_upstream)
    }
}

/// A second level of the cache that replicas share: Redis or Valkey.
#[derive(Clone, Debug, PartialEq)]
pub struct CacheShared {
    /// `redis://…` or `rediss://…`; at least one.
    pub urls: Vec<String>,
    /// The kind of server behind the URLs.
    pub mode: SharedMode,
    /// The user of its ACL.
    pub username: Option<String>,
    /// The password of that user, or of the server.
    pub password: Option<Secret>,
    /// The user of the Sentinels' ACL.
    pub sentinel_username: Option<String>,
    /// The password of the Sentinels.
    pub sentinel_password: Option<Secret>,
    /// TLS settings for `rediss://`.
    pub tls: ClientTls,
    /// The prefix of every key.
    pub prefix: String,
    /// The secret with which keys are hashed and values are authenticated.
    pub secret: Secret,
    /// The longest time that a request waits for it.
    pub timeout: Duration,
}

/// The settings of replicas that share a level.
#[derive(Clone, Debug, PartialEq)]
pub struct Replicas {
    /// The name of this replica; by default its host and port.
    pub name: Option<String>,
    /// Whether the limits of upstreams are those of all replicas together.
    pub share_limits: bool,
    /// Whether one replica fetches what several need.
    pub fetch_once: bool,
    /// The time after which the share of a silent replica goes to the others.
    pub forget_after: Duration,
    /// Calls per second to each upstream by a replica that has never reached the shared level.
    pub limits_without_redis: f64,
}

/// The kind of deployment that the URLs of a shared cache belong to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SharedMode {
    /// One server.
    Single,
    /// Nodes of a cluster.
    Cluster,
    /// Sentinels that monitor the master of this name.
    Sentinel(String),
}

/// A second level of the cache on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheDisk {
    /// The folder, used for nothing else.
    pub dir: PathBuf,
    /// Most bytes on disk.
    pub size: u64,
}

/// Settings towards clients.
#[derive(Clone, Debug)]
pub struct Server {
    /// Address to listen on.
    pub listen: SocketAddr,
    /// Sent as `X-MIRROR-API-KEY` on every response.
    pub api_key: Secret,
    /// Longest time from the head of a request to its response.
    pub request_timeout: Duration,
    /// Largest request body in bytes.
    pub max_body: usize,
    /// Most requests in flight.
    pub max_in_flight: usize,
    /// Most bytes of requests and responses in flight.
    pub max_in_flight_bytes: usize,
    /// Most bytes of a request's `connectionDetails`.
    pub max_details: usize,
    /// Most bytes of a name, value or prefix in a request.
    pub max_value: usize,
    /// Most points or buckets in a response.
    pub max_points: u32,
    /// The statuses of errors.
    pub error_status: ErrorStatus,
    /// Which clients get compressed answers.
    pub compression: Compression,
    /// Time during which new connections are still accepted after a signal to stop.
    pub drain_grace: Duration,
    /// Time that requests in flight have to finish after that; see [`Server::drain`].
    pub drain_timeout: Duration,
    /// TLS settings, if TLS is served.
    pub tls: Option<ServerTls>,
}

impl Server {
    /// Returns the time that requests in flight have to finish once no more connections are
    /// accepted: that of the last one, and a second to send its answer.
    pub fn drain(&self) -> Duration {
        let last = self.request_timeout.saturating_add(Duration::from_secs(1));
        self.drain_timeout.max(last)
    }
}

/// Access rules for all APIs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AccessSettings {
    /// Proxies whose `X-Forwarded-For` is trusted.
    pub trusted_proxies: Vec<IpNet>,
    /// The mirror API and the page at `/`.
    pub mirror: ApiAccess,
    /// Prometheus' HTTP API.
    pub prometheus: ApiAccess,
    /// `/metrics`.
    pub metrics: ApiAccess,
    /// `/admin/…`; closed without tokens and users.
    pub admin: ApiAccess,
}

/// Access rules of one API.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ApiAccess {
    /// Networks that clients are accepted from; empty accepts all.
    pub networks: Vec<IpNet>,
    /// Hashes of bearer tokens, each a [`TokenHash`](crate::model::TokenHash).
    pub tokens: Vec<Secret>,
    /// Users and the hashes of their passwords, each a
    /// [`PasswordHash`](crate::model::PasswordHash).
    pub users: Vec<(String, Secret)>,
}

impl ApiAccess {
    /// Returns whether there is no restriction.
    pub fn is_open(&self) -> bool {
        self.networks.is_empty() && !self.has_credentials()
    }

    /// Returns whether a token or a password is required.
    pub fn has_credentials(&self) -> bool {
        !(self.tokens.is_empty() && self.users.is_empty())
    }
}

/// Files of a server's certificate, already validated.
#[derive(Clone, Debug)]
pub struct ServerTls {
    /// The chain, the server's own certificate first.
    pub cert: PathBuf,
    /// The private key of that certificate.
    pub key: PathBuf,
    /// Authorities, one of which has to have issued each client's certificate.
    pub client_ca: Option<PathBuf>,
}

/// TLS settings towards an upstream; the files are already validated.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientTls {
    /// Authorities trusted in addition to the system's.
    pub ca: Option<PathBuf>,
    /// The client certificate and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// Whether any certificate is accepted.
    pub insecure: bool,
}

/// Proxies towards an upstream. Their URLs may contain passwords.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proxy {
    /// For `http://` URLs.
    pub http: Option<Secret>,
    /// For `https://` URLs.
    pub https: Option<Secret>,
    /// Hosts and networks reached without a proxy, as in `NO_PROXY`.
    pub except: String,
}

/// The HTTP statuses of errors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorStatus {
    /// The status that matches the error.
    #[default]
    Semantic,
    /// 500 for every error, as old mirrors answer.
    #[serde(rename = "always_500")]
    Always500,
}

/// Log settings.
#[derive(Clone, Copy, Debug)]
pub struct Log {
    /// The lowest level that is written.
    pub level: Level,
    /// Text or JSON.
    pub json: bool,
    /// Whether each request is logged.
    pub access: bool,
}

/// Trace settings.
#[derive(Clone, Debug, PartialEq)]
pub struct Traces {
    /// The URL that they are posted to.
    pub endpoint: TargetUrl,
    /// Headers sent with them.
    pub headers: Vec<(HeaderName, Secret)>,
    /// The share, from 0 to 1, of traces begun here that is recorded.
    pub sample: f64,
}

/// One upstream.
#[derive(Clone, Debug, PartialEq)]
pub struct Upstream {
    /// Its name, for connection details and metric labels.
    pub name: String,
    /// Its kind, with what only that kind has.
    pub kind: UpstreamKind,
    /// The identity of its store and tenant in a second level of the cache, independent of its URLs
    /// and headers.
    pub identity: Option<String>,
    /// Whether its data is kept in a second level of the cache.
    pub second_level: bool,
    /// Headers sent with each request.
    pub headers: Vec<(HeaderName, Secret)>,
    /// TLS settings.
    pub tls: ClientTls,
    /// Proxies towards it.
    pub proxy: Proxy,
    /// Settings for signing requests to it, if they are signed.
    pub aws: Option<Aws>,
    /// When cached data is fetched again.
    pub freshness: Freshness,
    /// Settings for querying it.
    pub reading: Reading,
    /// Limits on the load it gets.
    pub limits: Limits,
}

/// The kind of an upstream.
#[derive(Clone, PartialEq)]
pub enum UpstreamKind {
    /// The built-in demonstration source.
    Demo {
        /// The time it takes to answer.
        latency: Duration,
        /// Calls per second that it accepts.
        per_second: u32,
    },
    /// Another server of the mirror API.
    Mirror {
        /// Its addresses; at least one.
        urls: Vec<TargetUrl>,
        /// The key that its responses have to contain.
        api_key: Option<Secret>,
        /// The `connectionDetails` sent to it; `None` forwards those of the client.
        connection_details: Option<serde_json::Map<String, serde_json::Value>>,
    },
    /// A region of Amazon CloudWatch.
    CloudWatch {
        /// Its addresses; at least one.
        urls: Vec<TargetUrl>,
        /// The units that it bills.
        units: Units,
        /// Rules for sharing one call between fetches.
        batch: Batching,
        /// Rules for namespaces; the first that matches applies.
        rules: Vec<NamespaceRule>,
    },
    /// A server of Prometheus' HTTP API.
    Prometheus {
        /// Its addresses; at least one.
        urls: Vec<TargetUrl>,
    },
}

impl fmt::Debug for UpstreamKind {
    /// Omits the connection details, which may contain secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        match self {
            Self::Demo {
                latency,
                per_second,
            } => write!(f, "({latency:?}, {per_second})"),
            _ => write!(f, "({:?})", self.urls()),
        }
    }
}

impl UpstreamKind {
    /// Returns the name of the kind, as in the file.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Demo { .. } => "demo",
            Self::Mirror { .. } => "mirror",
            Self::CloudWatch { .. } => "cloudwatch",
            Self::Prometheus { .. } => "prometheus",
        }
    }

    /// Returns whether an upstream of kind `other` has the same data and is read in the same way,
    /// whatever it bills.
    fn has_data_of(&self, other: &Self) -> bool {
        match (self, other) {
            (
                Self::CloudWatch { urls, rules, .. },
                Self::CloudWatch {
                    urls: its_urls,
                    rules: its_rules,
                    ..
                },
            ) => (urls, rules) == (its_urls, its_rules),
            _ => self == other,
        }
    }

    /// Returns its addresses.
    pub fn urls(&self) -> &[TargetUrl] {
        match self {
            Self::Demo { .. } => &[],
            Self::Mirror { urls, .. }
            | Self::CloudWatch { urls, .. }
            | Self::Prometheus { urls } => urls,
        }
    }
}

impl Upstream {
    /// Returns whether an upstream with the settings `other` has the same data and is read in the
    /// same way; freshness, limits and the connection may differ.
    pub fn has_data_of(&self, other: &Self) -> bool {
        let Self {
            name,
            kind,
            identity: _,
            second_level: _,
            headers,
            tls: _,
            proxy: _,
            aws,
            freshness: _,
            reading,
            limits: _,
        } = self;
        *name == other.name
            && kind.has_data_of(&other.kind)
            && *headers == other.headers
            && match (aws, &other.aws) {
                (Some(mine), Some(theirs)) => mine.has_data_of(theirs),
                (None, None) => true,
                _ => false,
            }
            && *reading == other.reading
    }

    /// Returns the settings of a Prometheus server at `url` with all defaults.
    pub fn target(name: String, url: TargetUrl) -> Self {
        let kind = UpstreamKind::Prometheus { urls: vec![url] };
        raw::RawUpstream::default().settings(name, kind)
    }
}
