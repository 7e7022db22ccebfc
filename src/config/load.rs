//! Reads the file and the environment, and says where an error is.

mod access;
mod file;
mod secure;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use serde::Deserialize;
use tracing::Level;

use self::file::{File, with_suggestion};
use super::raw::{self, millis};
use super::values::{Secret, SecretSource, Text};
use super::{Config, ErrorStatus, Log, Server, Traces, Upstream, UpstreamKind};
use crate::model::{Compression, MAX_TIME, TargetUrl};

/// The configuration that applies where there is no file; the repository's `config.toml`.
const BUILT_IN: &str = include_str!("../../config.toml");

/// A connection that waits longer is taken for one whose client has gone.
const LONGEST_REQUEST: Duration = Duration::from_secs(300);

/// The start of every variable that overrides a key.
const PREFIX: &str = "HELIOSTAT_";

/// What is wrong with the configuration, and where.
#[derive(Debug)]
pub struct ConfigError {
    /// The file, or the variable of the environment.
    pub source: String,
    /// Line and column from 1, where they are known.
    pub position: Option<(usize, usize)>,
    /// The key at fault, such as `upstream[0].timeout`; empty where it is no single one.
    pub key: String,
    /// What is wrong and what is allowed.
    pub message: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.source)?;
        if let Some((line, column)) = self.position {
            write!(f, ":{line}:{column}")?;
        }
        if !self.key.is_empty() {
            write!(f, ": {}", self.key)?;
        }
        write!(f, ": {}", self.message)
    }
}

impl std::error::Error for ConfigError {}

/// The configuration in the file at `path`, or the built-in one for `None`, with overrides and
/// secrets from `env`.
pub fn load(path: Option<&Path>, env: &BTreeMap<String, String>) -> Result<Config, ConfigError> {
    let Some(path) = path else {
        return parse(BUILT_IN, "built-in configuration", env);
    };
    let source = path.display().to_string();
    match std::fs::read_to_string(path) {
        Ok(text) => parse(&text, &source, env),
        Err(e) => Err(ConfigError {
            source,
            position: None,
            key: String::new(),
            message: format!("cannot be read: {e}"),
        }),
    }
}

/// The configuration in `text`, which errors call `source`.
pub fn parse(
    text: &str,
    source: &str,
    env: &BTreeMap<String, String>,
) -> Result<Config, ConfigError> {
    let file = File { text, source };
    let mut raw: raw::Config = toml::from_str(text).map_err(|e| file.toml_error(&e))?;
    let overrides: Vec<_> = env
        .iter()
        .filter(|(name, _)| name.starts_with(PREFIX) && name.contains("__"))
        .collect();
    if !overrides.is_empty() {
        let mut table: toml::Table = toml::from_str(text).map_err(|e| file.toml_error(&e))?;
        for (name, value) in overrides {
            (table, raw) = overridden(&table, name, value)?;
        }
    }
    Checker { file: &file, env }.config(&raw)
}

/// `table` with the key that the variable `name` means set to `value`: as the TOML value that it
/// spells or, where that does not fit, as a string.
fn overridden(
    table: &toml::Table,
    name: &str,
    value: &str,
) -> Result<(toml::Table, raw::Config), ConfigError> {
    let error = |message: String| ConfigError {
        source: format!("environment variable {name}"),
        position: None,
        key: String::new(),
        message,
    };
    let path: Vec<String> = name
        .trim_start_matches(PREFIX)
        .split("__")
        .map(str::to_ascii_lowercase)
        .collect();
    let spelled = toml::from_str::<toml::Table>(&format!("value = {value}"))
        .ok()
        .and_then(|mut t| t.remove("value"));
    let text = toml::Value::String(value.to_owned());
    let mut first_error = None;
    for candidate in [spelled, Some(text)].into_iter().flatten() {
        let mut changed = table.clone();
        set(&mut changed, &path, candidate).map_err(error)?;
        match raw::Config::deserialize(changed.clone()) {
            Ok(raw) => return Ok((changed, raw)),
            Err(e) => first_error = first_error.or(Some(e)),
        }
    }
    let message = first_error.map_or_else(String::new, |e| with_suggestion(e.message()));
    Err(error(message))
}

/// Sets the value at `path`. An upstream is named by its position or its name.
fn set(table: &mut toml::Table, path: &[String], value: toml::Value) -> Result<(), String> {
    let Some((key, rest)) = path.split_first() else {
        return Err("names no key".into());
    };
    if rest.is_empty() {
        table.insert(key.clone(), value);
        return Ok(());
    }
    let entry = table
        .entry(key.clone())
        .or_insert_with(|| toml::Value::Table(toml::Table::new()));
    match entry {
        toml::Value::Table(inner) => set(inner, rest, value),
        toml::Value::Array(items) => {
            let Some((which, rest)) = rest.split_first() else {
                return Err("names no key".into());
            };
            let names = |item: &toml::Value| {
                let name = item.get("name").and_then(toml::Value::as_str);
                name.is_some_and(|n| n.to_ascii_lowercase().replace('-', "_") == *which)
            };
            let at = match which.parse::<usize>() {
                Ok(at) => Some(at),
                Err(_) => items.iter().position(names),
            };
            match at.and_then(|at| items.get_mut(at)) {
                Some(toml::Value::Table(inner)) => set(inner, rest, value),
                _ => Err(format!("there is no {key} {which:?}")),
            }
        }
        _ => Err(format!("{key} is not a section")),
    }
}

/// Turns what the file says into what the program gets.
struct Checker<'a> {
    file: &'a File<'a>,
    env: &'a BTreeMap<String, String>,
}

/// Where a key stands: its section and, for upstreams, which one.
#[derive(Clone, Copy)]
struct Place {
    section: &'static str,
    index: Option<usize>,
}

const SERVER: Place = Place {
    section: "server",
    index: None,
};

impl Checker<'_> {
    fn error(&self, place: Place, key: &str, message: impl Into<String>) -> ConfigError {
        let position = self
            .file
            .locate(place.section, place.index.unwrap_or(0), key);
        let index = place.index.map_or_else(String::new, |i| format!("[{i}]"));
        let key = format!("{}{index}.{key}", place.section);
        self.file.error(position, key, message.into())
    }

    fn config(&self, raw: &raw::Config) -> Result<Config, ConfigError> {
        let demo = [raw::Upstream::default()];
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
                let message = format!("{:?} names another upstream already", checked.name);
                return Err(self.error(place, "name", message));
            }
            upstreams.push(checked);
        }
        let log = Log {
            level: match raw.log.level {
                Some(raw::Level::Error) => Level::ERROR,
                Some(raw::Level::Warn) => Level::WARN,
                None | Some(raw::Level::Info) => Level::INFO,
                Some(raw::Level::Debug) => Level::DEBUG,
                Some(raw::Level::Trace) => Level::TRACE,
            },
            json: raw.log.format == Some(raw::Format::Json),
        };
        Ok(Config {
            server: self.server(&raw.server)?,
            access: self.access(&raw.access)?,
            cache_memory: raw.cache.memory.as_ref().map_or(256 << 20, |s| s.0.0),
            targets: raw.targets.allow.iter().map(|p| p.0.clone()).collect(),
            target_networks: raw.targets.networks.iter().map(|n| n.0).collect(),
            state_dir: self.state_dir(raw.state.dir.as_deref())?,
            log,
            traces: self.traces(&raw.traces)?,
            default_upstream: self.default_upstream(raw_upstreams, &upstreams)?,
            upstreams,
        })
    }

    /// The upstream that is marked as the default, or the first.
    fn default_upstream(
        &self,
        raw: &[raw::Upstream],
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

    /// The folder for what is kept, which must be there and take files.
    fn state_dir(&self, raw: Option<&str>) -> Result<Option<PathBuf>, ConfigError> {
        let Some(path) = raw.filter(|p| !p.is_empty()).map(PathBuf::from) else {
            return Ok(None);
        };
        let probe = path.join(".heliostat");
        match std::fs::write(&probe, b"").and_then(|()| std::fs::remove_file(&probe)) {
            Ok(()) => Ok(Some(path)),
            Err(e) => {
                let place = Place {
                    section: "state",
                    index: None,
                };
                let message = format!("{path:?} is not a folder that files can be written to: {e}");
                Err(self.error(place, "dir", message))
            }
        }
    }

    fn traces(&self, raw: &raw::Traces) -> Result<Option<Traces>, ConfigError> {
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
                "this build has no OTLP; build one with: cargo build --release --features otlp";
            return Err(self.error(place, "endpoint", message));
        }
        Ok(Some(Traces {
            endpoint,
            headers,
            sample,
        }))
    }

    fn server(&self, raw: &raw::Server) -> Result<Server, ConfigError> {
        let listen = raw.listen.as_deref().unwrap_or("127.0.0.1:7007");
        let listen: SocketAddr = listen.parse().map_err(|_| {
            let message = format!(
                "{listen:?} is not an address; write it as \"127.0.0.1:7007\" or \"[::]:7007\""
            );
            self.error(SERVER, "listen", message)
        })?;
        let api_key = match &raw.api_key {
            Some(source) => self.secret(SERVER, "api_key", source)?,
            None => Secret::new("api_key"),
        };
        if HeaderValue::from_str(api_key.reveal()).is_err() {
            let message = "holds characters that a header cannot carry";
            return Err(self.error(SERVER, "api_key", message));
        }
        let max_body = raw.max_body.as_ref().map_or(1 << 20, |s| s.0.0);
        let request_timeout = raw.request_timeout.as_ref();
        if request_timeout.is_some_and(|t| t.0 > LONGEST_REQUEST) {
            return Err(self.error(SERVER, "request_timeout", "must be at most 5m"));
        }
        let positive = |key, value| self.at_least_one(SERVER, key, value);
        Ok(Server {
            listen,
            api_key,
            request_timeout: self.positive(SERVER, "request_timeout", request_timeout, 14)?,
            max_body: usize::try_from(max_body).unwrap_or(usize::MAX),
            max_in_flight: positive("max_in_flight", raw.max_in_flight.unwrap_or(4096))? as usize,
            max_points: positive("max_points", raw.max_points.unwrap_or(100_000))?,
            error_status: match raw.error_status {
                None | Some(raw::ErrorStatus::Semantic) => ErrorStatus::Semantic,
                Some(raw::ErrorStatus::Always500) => ErrorStatus::Always500,
            },
            compression: match raw.compression {
                None | Some(raw::Compression::Auto) => Compression::Auto,
                Some(raw::Compression::Always) => Compression::Always,
                Some(raw::Compression::Never) => Compression::Never,
            },
            drain_timeout: raw
                .drain_timeout
                .as_ref()
                .map_or(Duration::from_secs(10), |t| t.0),
            tls: self.server_tls(&raw.tls)?,
        })
    }

    fn upstream(&self, place: Place, raw: &raw::Upstream) -> Result<Upstream, ConfigError> {
        let kind = self.kind(place, raw)?;
        let name = raw.name.clone().unwrap_or_else(|| kind.name().to_owned());
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if name.is_empty() || name.len() > 64 || !name.chars().all(plain) {
            let message =
                format!("{name:?} is not a name; use 1 to 64 letters, digits, '-', '_' and '.'");
            return Err(self.error(place, "name", message));
        }
        let interval = raw.interval.as_ref();
        if interval.is_some_and(|i| !(1..=MAX_TIME).contains(&millis(i.0))) {
            return Err(self.error(place, "interval", "must be at least 1ms"));
        }
        self.positive(place, "timeout", raw.timeout.as_ref(), 10)?;
        let rate = raw.rate_limit.per_second.unwrap_or(50.0);
        if !(rate.is_finite() && (0.001..=1_000_000.0).contains(&rate)) {
            let message = "per_second must be from 0.001 to 1000000";
            return Err(self.error(place, "rate_limit", message));
        }
        for (key, value) in [
            ("rate_limit", raw.rate_limit.burst),
            ("rate_limit", raw.rate_limit.per_hour),
            ("rate_limit", raw.rate_limit.per_day),
            ("max_concurrency", raw.max_concurrency),
            ("breaker", raw.breaker.failures),
            ("raw_points_max", raw.raw_points_max),
            ("max_series", raw.max_series),
        ] {
            self.at_least_one(place, key, value.unwrap_or(1))?;
        }
        if raw.retries.is_some_and(|r| r > 10) {
            return Err(self.error(place, "retries", "must be at most 10"));
        }
        let mut settings = raw.settings(name, kind);
        settings.headers = self.headers(place, &raw.headers)?;
        settings.tls = self.client_tls(place, &raw.tls)?;
        if !matches!(settings.kind, UpstreamKind::Demo { .. }) {
            settings.proxy = self.proxy(place, raw.proxy.as_ref())?;
        }
        Ok(settings)
    }

    fn kind(&self, place: Place, raw: &raw::Upstream) -> Result<UpstreamKind, ConfigError> {
        let urls: Vec<TargetUrl> = raw.urls.iter().map(|u| u.0.clone()).collect();
        let kind = raw.kind.unwrap_or_default();
        match (kind, urls.is_empty()) {
            (raw::Kind::Demo, false) => {
                let message = "an upstream of kind \"demo\" has no urls: it is built in";
                return Err(self.error(place, "urls", message));
            }
            (raw::Kind::Mirror | raw::Kind::Prometheus, true) => {
                let message = "must hold at least one URL, such as \"http://127.0.0.1:9090\"";
                return Err(self.error(place, "urls", message));
            }
            _ => {}
        }
        Ok(match kind {
            raw::Kind::Demo => UpstreamKind::Demo {
                latency: raw
                    .demo
                    .latency
                    .as_ref()
                    .map_or(Duration::from_millis(400), |t| t.0),
                per_second: self.at_least_one(place, "demo", raw.demo.per_second.unwrap_or(50))?,
            },
            raw::Kind::Mirror => UpstreamKind::Mirror {
                urls,
                api_key: match &raw.api_key {
                    Some(source) => Some(self.secret(place, "api_key", source)?),
                    None => None,
                },
                connection_details: match &raw.connection_details {
                    None | Some(raw::ConnectionDetails::Forward(_)) => None,
                    Some(raw::ConnectionDetails::Fixed(details)) => Some(details.clone()),
                },
            },
            raw::Kind::Prometheus => UpstreamKind::Prometheus { urls },
        })
    }

    fn headers(
        &self,
        place: Place,
        raw: &BTreeMap<String, SecretSource>,
    ) -> Result<Vec<(HeaderName, Secret)>, ConfigError> {
        let header = |(name, source): (&String, &SecretSource)| {
            let message = format!("{name:?} is not the name of a header");
            let header = HeaderName::from_bytes(name.as_bytes())
                .map_err(|_| self.error(place, "headers", message))?;
            let secret = self.secret(place, "headers", source)?;
            let message =
                format!("the value of {name:?} holds characters that a header cannot carry");
            HeaderValue::from_str(secret.reveal())
                .map_err(|_| self.error(place, "headers", message))?;
            Ok((header, secret))
        };
        raw.iter().map(header).collect()
    }

    fn positive(
        &self,
        place: Place,
        key: &str,
        value: Option<&Text<Duration>>,
        default: u64,
    ) -> Result<Duration, ConfigError> {
        let value = value.map_or(Duration::from_secs(default), |t| t.0);
        if value < Duration::from_millis(1) {
            return Err(self.error(place, key, "must be at least 1ms"));
        }
        Ok(value)
    }

    fn at_least_one(&self, place: Place, key: &str, value: u32) -> Result<u32, ConfigError> {
        if value == 0 {
            return Err(self.error(place, key, "must be at least 1"));
        }
        Ok(value)
    }
}

#[cfg(test)]
mod tests;
