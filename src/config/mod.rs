//! Configuration: a TOML file and overrides from the environment, as values that cannot be wrong.
//!
//! `raw` is what the file may say, word for word; `load` reads it and says where an error is;
//! this module holds what the rest of the program gets.

mod aws;
mod load;
mod raw;
mod values;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use http::HeaderName;
use ipnet::IpNet;
use serde::Deserialize;
use tracing::Level;

pub use aws::{Aws, AwsKeys, AwsRole, is_region};
pub use load::{ConfigError, listens_at, load, parse};
pub use values::Secret;

use crate::model::{Compression, Freshness, Limits, Pattern, Reading, Setting, TargetUrl};

/// The whole configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// How clients are served.
    pub server: Server,
    /// Who may ask.
    pub access: AccessSettings,
    /// Bytes that the cached chunks may weigh.
    pub cache_memory: u64,
    /// Targets that connection details may name though no upstream has their address.
    pub targets: Vec<Pattern>,
    /// Networks that such targets may be in though they are not public.
    pub target_networks: Vec<IpNet>,
    /// A folder for what is kept across restarts.
    pub state_dir: Option<PathBuf>,
    /// Where log lines go and which.
    pub log: Log,
    /// Where spans go, if anywhere.
    pub traces: Option<Traces>,
    /// The upstreams in the order of the file; at least one.
    pub upstreams: Vec<Upstream>,
    /// The upstream that serves `connectionDetails {}`.
    pub default_upstream: String,
    /// What it was read from.
    document: load::Document,
}

impl Config {
    /// The file that it was read from; `None` for the built-in defaults.
    pub fn file(&self) -> Option<&str> {
        self.document.file()
    }

    /// Every key that has a value, with what set it, secrets masked. Takes some milliseconds.
    pub fn settings(&self) -> Vec<Setting> {
        self.document.settings(&self.default_upstream)
    }
}

/// How clients are served.
#[derive(Clone, Debug)]
pub struct Server {
    /// Address to listen on.
    pub listen: SocketAddr,
    /// Sent as `X-MIRROR-API-KEY` on every response.
    pub api_key: Secret,
    /// Most time from a request's head to its answer.
    pub request_timeout: Duration,
    /// Most bytes of a request body.
    pub max_body: usize,
    /// Most requests in hand.
    pub max_in_flight: usize,
    /// Most points or buckets of a response.
    pub max_points: u32,
    /// Which HTTP statuses errors have.
    pub error_status: ErrorStatus,
    /// Which clients are answered compressed.
    pub compression: Compression,
    /// Most time that requests in hand have to finish after a signal to stop.
    pub drain_timeout: Duration,
    /// How it is served with TLS, if it is.
    pub tls: Option<ServerTls>,
}

/// Who may ask.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AccessSettings {
    /// Proxies whose `X-Forwarded-For` is believed.
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

/// Who may ask one face of the service.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ApiAccess {
    /// Where clients may come from; none is anywhere.
    pub networks: Vec<IpNet>,
    /// Hashes of bearer tokens; each is that of a [`TokenHash`](crate::model::TokenHash).
    pub tokens: Vec<Secret>,
    /// Users and the hashes of their passwords, which are those of a
    /// [`PasswordHash`](crate::model::PasswordHash).
    pub users: Vec<(String, Secret)>,
}

impl ApiAccess {
    /// Whether anyone may ask.
    pub fn is_open(&self) -> bool {
        self.networks.is_empty() && !self.has_credentials()
    }

    /// Whether a token or a password is needed.
    pub fn has_credentials(&self) -> bool {
        !(self.tokens.is_empty() && self.users.is_empty())
    }
}

/// Files of a server's certificate; they hold what they should.
#[derive(Clone, Debug)]
pub struct ServerTls {
    /// The chain, the server's own certificate first.
    pub cert: PathBuf,
    /// The key of that.
    pub key: PathBuf,
    /// The authorities that every client needs a certificate of.
    pub client_ca: Option<PathBuf>,
}

/// How connections to an upstream are secured; the files hold what they should.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientTls {
    /// Authorities that are trusted besides the system's.
    pub ca: Option<PathBuf>,
    /// The certificate that we prove ourselves with, and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// Whether whoever answers is believed to be the upstream.
    pub insecure: bool,
}

/// The proxies on the way to an upstream. Their URLs may hold passwords.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proxy {
    /// For `http://` URLs.
    pub http: Option<Secret>,
    /// For `https://` URLs.
    pub https: Option<Secret>,
    /// Hosts and networks that are reached without it, as in `NO_PROXY`.
    pub except: String,
}

/// Which HTTP statuses errors have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorStatus {
    /// The status that fits the error.
    #[default]
    Semantic,
    /// 500 for every error, as old mirrors answer.
    #[serde(rename = "always_500")]
    Always500,
}

/// Which log lines are written, and how.
#[derive(Clone, Copy, Debug)]
pub struct Log {
    /// The least important level that is written.
    pub level: Level,
    /// Text or JSON.
    pub json: bool,
}

/// Where spans go and which.
#[derive(Clone, Debug, PartialEq)]
pub struct Traces {
    /// The URL that they are posted to.
    pub endpoint: TargetUrl,
    /// Headers sent with them.
    pub headers: Vec<(HeaderName, Secret)>,
    /// The share, from 0 to 1, of the traces that begin here which are recorded.
    pub sample: f64,
}

/// One upstream.
#[derive(Clone, Debug, PartialEq)]
pub struct Upstream {
    /// Its name, for connection details and metric labels.
    pub name: String,
    /// What it is.
    pub kind: UpstreamKind,
    /// Headers sent with each request.
    pub headers: Vec<(HeaderName, Secret)>,
    /// How connections to it are secured.
    pub tls: ClientTls,
    /// The proxies on the way to it.
    pub proxy: Proxy,
    /// How requests to it are signed, if they are.
    pub aws: Option<Aws>,
    /// When cached data is fetched again.
    pub freshness: Freshness,
    /// How it is asked.
    pub reading: Reading,
    /// What it may be burdened with.
    pub limits: Limits,
}

/// What an upstream is.
#[derive(Clone, PartialEq)]
pub enum UpstreamKind {
    /// The built-in demonstration source.
    Demo {
        /// How long it takes to answer.
        latency: Duration,
        /// How many calls a second it answers.
        per_second: u32,
    },
    /// Another server of the mirror API.
    Mirror {
        /// Its addresses; at least one.
        urls: Vec<TargetUrl>,
        /// The key that it must answer with.
        api_key: Option<Secret>,
        /// The `connectionDetails` that it is sent; `None` sends on what the client sent.
        connection_details: Option<serde_json::Map<String, serde_json::Value>>,
    },
    /// A server of Prometheus' HTTP API.
    Prometheus {
        /// Its addresses; at least one.
        urls: Vec<TargetUrl>,
    },
}

impl fmt::Debug for UpstreamKind {
    /// Without the details that an upstream is sent, which may hold secrets.
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
    /// The name of the kind, as in the file.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Demo { .. } => "demo",
            Self::Mirror { .. } => "mirror",
            Self::Prometheus { .. } => "prometheus",
        }
    }

    /// Its addresses.
    pub fn urls(&self) -> &[TargetUrl] {
        match self {
            Self::Demo { .. } => &[],
            Self::Mirror { urls, .. } | Self::Prometheus { urls } => urls,
        }
    }
}

impl Upstream {
    /// Whether an upstream with the settings `other` gives the same data and is read in the same
    /// way; only how fresh it has to be, what it is burdened with, and the way to it may differ.
    pub fn has_data_of(&self, other: &Self) -> bool {
        let Self {
            name,
            kind,
            headers,
            tls: _,
            proxy: _,
            aws,
            freshness: _,
            reading,
            limits: _,
        } = self;
        *name == other.name
            && *kind == other.kind
            && *headers == other.headers
            && match (aws, &other.aws) {
                (Some(mine), Some(theirs)) => mine.has_data_of(theirs),
                (None, None) => true,
                _ => false,
            }
            && *reading == other.reading
    }

    /// A Prometheus server at `url` with every setting at its default.
    pub fn target(name: String, url: TargetUrl) -> Self {
        let kind = UpstreamKind::Prometheus { urls: vec![url] };
        raw::RawUpstream::default().settings(name, kind)
    }
}
