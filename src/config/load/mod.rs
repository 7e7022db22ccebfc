//! Reads the file and the environment, and locates errors in them.

mod access;
mod aws;
mod effective;
mod env;
mod file;
mod kinds;
mod messages;
mod reach;
mod secure;
mod shared;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::HeaderValue;
use tracing::Level;

pub(super) use self::effective::Document;
use self::file::File;
pub use self::reach::{certificate_at, listens_at};
use super::raw::{self, millis};
use super::values::{Secret, Size, Text};
use super::{Config, Log, Server, Traces, Upstream, UpstreamKind};
use crate::files;
use crate::model::{MAX_TIME, TargetUrl};

/// The default of `server.listen`.
const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7007);

/// The configuration used without a file: the repository's `config.toml`.
const BUILT_IN: &str = include_str!("../../../config.toml");

/// Its name in errors.
const BUILT_IN_NAME: &str = "built-in configuration";

/// The least default of `server.max_in_flight_bytes`.
const LEAST_IN_FLIGHT: u64 = 64 << 20;

/// The highest `server.request_timeout`: proxies close connections that wait longer.
const LONGEST_REQUEST: Duration = Duration::from_secs(300);

/// The longest wait for the state folder to respond.
const STATE_PATIENCE: Duration = Duration::from_secs(2);

/// An error in the configuration, and its position.
#[derive(Debug)]
pub struct ConfigError {
    /// The file or the environment variable.
    pub source: String,
    /// Line and column from 1, if known.
    pub position: Option<(usize, usize)>,
    /// The invalid key, such as `upstream[0].timeout`; empty if the error concerns no single key.
    pub key: String,
    /// The problem and what is allowed.
    pub message: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.source)?;
        if let Some((line, column)) = self.position {
            write!(f, ":{line}:{column}")?;
        }
        if !self.key.is_empty() {
            // A quoted key may contain anything, but the error stays on one line.
            let plain = |c: char| if c.is_control() { '\u{fffd}' } else { c };
            let key: String = self.key.chars().map(plain).collect();
            write!(f, ": {key}")?;
        }
        write!(f, ": {}", self.message)
    }
}

impl std::error::Error for ConfigError {}

/// Loads the configuration in the file at `path`, or the built-in one for `None`, with overrides
/// and secrets from `env`.
pub fn load(path: Option<&Path>, env: &BTreeMap<String, String>) -> Result<Config, ConfigError> {
    let Some(path) = path else {
        return parse(BUILT_IN, BUILT_IN_NAME, env);
    };
    let source = path.display().to_string();
    let wrong = |position, message| ConfigError {
        source: source.clone(),
        position,
        key: String::new(),
        message,
    };
    let bytes = files::read_any(path).map_err(|e| wrong(None, format!("cannot be read: {e}")))?;
    let text = std::str::from_utf8(&bytes).map_err(|e| {
        let good = bytes.get(..e.valid_up_to()).unwrap_or_default();
        let good = String::from_utf8_lossy(good);
        let position = File::new(&good, &source).position(good.len());
        wrong(Some(position), "is not valid UTF-8 from here on".into())
    })?;
    parse(text, &source, env)
}

/// Parses the configuration in `text`; errors name it `source`.
pub fn parse(
    text: &str,
    source: &str,
    env: &BTreeMap<String, String>,
) -> Result<Config, ConfigError> {
    let mut file = File::new(text, source);
    let (table, raw) = env::read(&mut file, env)?;
    let document = Document::new(&file, table);
    Checker { file: &file, env }.config(&raw, document)
}

/// Turns the raw file into validated settings.
struct Checker<'a> {
    file: &'a File<'a>,
    env: &'a BTreeMap<String, String>,
}

/// The section of a key and, for upstreams, the index.
#[derive(Clone, Copy)]
struct Place {
    section: &'static str,
    index: Option<usize>,
}

const CACHE: Place = Place {
    section: "cache",
    index: None,
};

const SERVER: Place = Place {
    section: "server",
    index: None,
};

impl Checker<'_> {
    fn error(&self, place: Place, key: &str, message: impl Into<String>) -> ConfigError {
        let index = place.index.map_or_else(String::new, |i| format!("[{i}]"));
        let key = format!("{}{index}.{key}", place.section);
        self.file.error(key, message.into())
    }

    fn config(&self, raw: &raw::RawConfig, document: Document) -> Result<Config, ConfigError> {
        let demo = [raw::RawUpstream::default()];
        let raw_upstreams = if raw.upstream.is_empty() {
            &demo[..]
        } else {
            &raw.upstream
        };
        let mut upstreams = Vec::new();
        let mut names = BTreeSet::new();
        for (index, upstream) in raw_upstreams.iter().enumerate() {
            let place = Place {
                section: "upstream",
                index: Some(index),
            };
            let checked = self.upstream(place, upstream)?;
            if !names.insert(checked.name.clone()) {
                let message = format!("{:?} is already the name of another upstream", checked.name);
                return Err(self.error(place, "name", message));
            }
            if let Some(same) = upstreams
                .iter()
                .find(|u: &&Upstream| u.identity.is_some() && u.identity == checked.identity)
                && same.headers != checked.headers
            {
                let message = format!(
                    "is that of upstream {:?}, whose headers differ: the two would share cached data",
                    same.name
                );
                return Err(self.error(place, "identity", message));
            }
            upstreams.push(checked);
        }
        let memory = raw.cache.memory.as_ref();
        self.some_bytes(CACHE, "memory", memory)?;
        let cache_memory = memory.map_or(256 << 20, |s| s.0.0);
        let log = Log {
            level: match raw.log.level {
                Some(raw::RawLevel::Error) => Level::ERROR,
                Some(raw::RawLevel::Warn) => Level::WARN,
                None | Some(raw::RawLevel::Info) => Level::INFO,
                Some(raw::RawLevel::Debug) => Level::DEBUG,
                Some(raw::RawLevel::Trace) => Level::TRACE,
            },
            json: raw.log.format == Some(raw::RawFormat::Json),
            access: raw.log.access,
        };
        Ok(Config {
            server: self.server(&raw.server, cache_memory)?,
            access: self.access(&raw.access)?,
            cache_memory,
            cache_disk: self.cache_disk(&raw.cache.disk)?,
            cache_shared: self.cache_shared(&raw.cache.shared)?,
            replicas: self.replicas(&raw.replicas, !raw.cache.shared.urls.is_empty())?,
            targets: raw.targets.allow.iter().map(|p| p.0.clone()).collect(),
            target_networks: raw.targets.networks.iter().map(|n| n.0).collect(),
            state_dir: self.state_dir(raw.state.dir.as_deref())?,
            log,
            traces: self.traces(&raw.traces)?,
            default_upstream: self.default_upstream(raw_upstreams, &upstreams)?,
            upstreams,
            document,
        })
    }

    /// Returns the upstream marked as the default, or the first.
    fn default_upstream(
        &self,
        raw: &[raw::RawUpstream],
        checked: &[Upstream],
    ) -> Result<String, ConfigError> {
        let marked: Vec<usize> = (0..)
            .zip(raw)
            .filter(|(_, u)| u.default)
            .map(|p| p.0)
            .collect();
        if let Some(&second) = marked.get(1) {
            let place = Place {
                section: "upstream",
                index: Some(second),
            };
            let message = "only one upstream can be the default";
            return Err(self.error(place, "default", message));
        }
        let index = marked.first().copied().unwrap_or(0);
        Ok(checked
            .get(index)
            .map(|u| u.name.clone())
            .unwrap_or_default())
    }

    /// Returns the state folder, which has to exist and be writable, unless it does not respond.
    fn state_dir(&self, raw: Option<&str>) -> Result<Option<PathBuf>, ConfigError> {
        let Some(path) = raw.filter(|p| !p.is_empty()).map(PathBuf::from) else {
            return Ok(None);
        };
        let probe = path.join(".heliostat");
        let write = move || {
            let remove = || match std::fs::remove_file(&probe) {
                Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
                _ => Ok(()),
            };
            // A file or link that is already there is not written to; another process may try the same.
            remove()?;
            match std::fs::File::create_new(&probe) {
                Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(e),
                _ => {}
            }
            remove()
        };
        match files::within(STATE_PATIENCE, write) {
            // A folder that does not respond may do so later; until then, writes wait.
            Ok(Ok(())) | Err(_) => Ok(Some(path)),
            Ok(Err(e)) => {
                let place = Place {
                    section: "state",
                    index: None,
                };
                let message = format!("{path:?} is not a writable folder: {e}");
                Err(self.error(place, "dir", message))
            }
        }
    }

    fn traces(&self, raw: &raw::RawTraces) -> Result<Option<Traces>, ConfigError> {
        let place = Place {
            section: "traces",
            index: None,
        };
        let headers = self.headers(place, &raw.headers)?;
        let sample = raw.sample.unwrap_or(1.0);
        if !(0.0..=1.0).contains(&sample) {
            return Err(self.error(place, "sample", "must be from 0 to 1"));
        }
        let Some(endpoint) = raw.endpoint.as_deref().filter(|e| !e.is_empty()) else {
            return Ok(None);
        };
        let endpoint = Text::<TargetUrl>::read(endpoint);
        let endpoint = endpoint.map_err(|e| self.error(place, "endpoint", e))?;
        if cfg!(not(feature = "otlp")) {
            let message =
                "this build has no OTLP; build with: cargo build --release --features otlp";
            return Err(self.error(place, "endpoint", message));
        }
        Ok(Some(Traces {
            endpoint,
            headers,
            sample,
        }))
    }

    fn server(&self, raw: &raw::RawServer, cache_memory: u64) -> Result<Server, ConfigError> {
        let api_key = match &raw.api_key {
            Some(source) => self.secret(SERVER, "api_key", source)?,
            None => Secret::new("api_key"),
        };
        if HeaderValue::from_str(api_key.reveal()).is_err() {
            let message = "contains characters that a header cannot have, such as line breaks";
            return Err(self.error(SERVER, "api_key", message));
        }
        self.some_bytes(SERVER, "max_body", raw.max_body.as_ref())?;
        let max_body = raw.max_body.as_ref().map_or(1 << 20, |s| s.0.0);
        let bytes = |key, value: &Option<Text<Size>>, default| {
            self.some_bytes(SERVER, key, value.as_ref())?;
            let bytes = value.as_ref().map_or(default, |s| s.0.0);
            Ok(usize::try_from(bytes).unwrap_or(usize::MAX))
        };
        let in_flight = (cache_memory / 4).max(LEAST_IN_FLIGHT);
        let request_timeout = raw.request_timeout.as_ref();
        if request_timeout.is_some_and(|t| t.0 > LONGEST_REQUEST) {
            return Err(self.error(SERVER, "request_timeout", "must be at most 5m"));
        }
        self.positive(SERVER, "request_timeout", request_timeout)?;
        let positive = |key, value| self.at_least_one(SERVER, key, value);
        Ok(Server {
            listen: raw.listen.as_ref().map_or(DEFAULT_LISTEN, |a| a.0),
            api_key,
            request_timeout: request_timeout.map_or(Duration::from_secs(14), |t| t.0),
            max_body: usize::try_from(max_body).unwrap_or(usize::MAX),
            max_in_flight: positive("max_in_flight", raw.max_in_flight.unwrap_or(4096))? as usize,
            max_in_flight_bytes: bytes("max_in_flight_bytes", &raw.max_in_flight_bytes, in_flight)?,
            max_details: bytes("max_details", &raw.max_details, 16 << 10)?,
            max_value: bytes("max_value", &raw.max_value, 8 << 10)?,
            max_points: positive("max_points", raw.max_points.unwrap_or(100_000))?,
            error_status: raw.error_status.unwrap_or_default(),
            compression: raw.compression.unwrap_or_default(),
            drain_grace: raw
                .drain_grace
                .as_ref()
                .map_or(Duration::from_secs(5), |t| t.0),
            drain_timeout: raw
                .drain_timeout
                .as_ref()
                .map_or(Duration::from_secs(10), |t| t.0),
            tls: self.server_tls(&raw.tls)?,
        })
    }

    fn upstream(&self, place: Place, raw: &raw::RawUpstream) -> Result<Upstream, ConfigError> {
        let kind = self.kind(place, raw)?;
        let name = raw.name.clone().unwrap_or_else(|| kind.name().to_owned());
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if name.is_empty() || name.len() > 64 || !name.chars().all(plain) {
            let message =
                format!("{name:?} is not a name; use 1 to 64 letters, digits, '-', '_' and '.'");
            return Err(self.error(place, "name", message));
        }
        let mut settings = raw.settings(name, kind);
        let limits = &settings.limits;
        let interval = raw.interval.as_ref();
        if interval.is_some_and(|i| !(1..=MAX_TIME).contains(&millis(i.0))) {
            return Err(self.error(place, "interval", "must be at least 1ms"));
        }
        for (key, value) in [
            ("timeout", &raw.timeout),
            ("breaker.open", &raw.breaker.open),
        ] {
            self.positive(place, key, value.as_ref())?;
        }
        let timeout = limits.timeout;
        if raw.hedge_after.as_ref().is_some_and(|h| h.0 >= timeout) {
            let message = "must be shorter than timeout, when the attempt ends";
            return Err(self.error(place, "hedge_after", message));
        }
        let rate = limits.per_second;
        if !(rate.is_finite() && (0.001..=1_000_000.0).contains(&rate)) {
            let message = "must be from 0.001 to 1000000";
            return Err(self.error(place, "rate_limit.per_second", message));
        }
        for (key, value) in [
            ("rate_limit.burst", raw.rate_limit.burst),
            ("rate_limit.per_hour", raw.rate_limit.per_hour),
            ("rate_limit.per_day", raw.rate_limit.per_day),
            ("max_concurrency", raw.max_concurrency),
            ("queue", raw.queue),
            ("breaker.failures", raw.breaker.failures),
            ("raw_points_max", raw.raw_points_max),
            ("max_series", raw.max_series),
        ] {
            self.at_least_one(place, key, value.unwrap_or(1))?;
        }
        if raw.retries.is_some_and(|r| r > 10) {
            return Err(self.error(place, "retries", "must be at most 10"));
        }
        self.some_bytes(place, "max_response", raw.max_response.as_ref())?;
        let (span, interval) = (
            settings.reading.range_limits.span,
            settings.reading.interval,
        );
        if (1..interval.millis()).contains(&span) {
            let message = "must be at least interval, or \"0s\" for any range";
            return Err(self.error(place, "max_span", message));
        }
        settings.headers = self.headers(place, &raw.headers)?;
        settings.tls = self.client_tls(place, &raw.tls)?;
        if !matches!(settings.kind, UpstreamKind::Demo { .. }) {
            settings.proxy = self.proxy(place, raw.proxy.as_ref())?;
        }
        settings.aws = self.signed(place, raw, &settings)?;
        Ok(settings)
    }

    fn kind(&self, place: Place, raw: &raw::RawUpstream) -> Result<UpstreamKind, ConfigError> {
        self.keys_of_kind(place, raw)?;
        let kind = raw.kind.unwrap_or_default();
        let urls = match kind {
            raw::RawKind::CloudWatch => self.cloudwatch(place, raw)?,
            _ => self.urls(place, kind, &raw.urls)?,
        };
        Ok(match kind {
            raw::RawKind::Demo => UpstreamKind::Demo {
                latency: raw
                    .demo
                    .latency
                    .as_ref()
                    .map_or(raw::RawDemo::LATENCY, |t| t.0),
                per_second: self.at_least_one(
                    place,
                    "demo.per_second",
                    raw.demo.per_second.unwrap_or(raw::RawDemo::PER_SECOND),
                )?,
            },
            raw::RawKind::Mirror => UpstreamKind::Mirror {
                urls,
                api_key: match &raw.api_key {
                    Some(source) => Some(self.secret(place, "api_key", source)?),
                    None => None,
                },
                connection_details: match &raw.connection_details {
                    None | Some(raw::RawConnectionDetails::Forward(_)) => None,
                    Some(raw::RawConnectionDetails::Fixed(details)) => Some(details.clone()),
                },
            },
            raw::RawKind::CloudWatch => UpstreamKind::CloudWatch {
                urls,
                units: self.units(place, &raw.units)?,
                batch: self.batch(place, &raw.batch)?,
                rules: self.rules(place, raw)?,
            },
            raw::RawKind::Prometheus => UpstreamKind::Prometheus { urls },
        })
    }

    fn positive(
        &self,
        place: Place,
        key: &str,
        value: Option<&Text<Duration>>,
    ) -> Result<(), ConfigError> {
        if value.is_some_and(|t| t.0 < Duration::from_millis(1)) {
            return Err(self.error(place, key, "must be at least 1ms"));
        }
        Ok(())
    }

    fn at_least_one(&self, place: Place, key: &str, value: u32) -> Result<u32, ConfigError> {
        if value == 0 {
            return Err(self.error(place, key, "must be at least 1"));
        }
        Ok(value)
    }

    fn some_bytes(
        &self,
        place: Place,
        key: &str,
        value: Option<&Text<Size>>,
    ) -> Result<(), ConfigError> {
        match value {
            Some(Text(Size(0))) => Err(self.error(place, key, "must be at least \"1B\"")),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
