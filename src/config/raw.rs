//! What the file may say, word for word. Every key is optional.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use ipnet::IpNet;
use serde::Deserialize;

use super::values::{SecretSource, Size, Text, table, tables};
use super::{Upstream as Settings, UpstreamKind};
use crate::model::{
    Aggregate, Freshness, IncompleteBuckets, Limits, Millis, MultiSeries, Pattern, RangeLimits,
    Reading, Step, StepAlignment, TargetUrl,
};

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Config {
    #[serde(deserialize_with = "table")]
    pub(super) server: Server,
    #[serde(deserialize_with = "table")]
    pub(super) access: RawAccess,
    #[serde(deserialize_with = "table")]
    pub(super) cache: Cache,
    #[serde(deserialize_with = "table")]
    pub(super) targets: Targets,
    #[serde(deserialize_with = "table")]
    pub(super) state: State,
    #[serde(deserialize_with = "table")]
    pub(super) log: Log,
    #[serde(deserialize_with = "table")]
    pub(super) traces: Traces,
    #[serde(deserialize_with = "tables")]
    pub(super) upstream: Vec<Upstream>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Server {
    pub(super) listen: Option<Text<SocketAddr>>,
    pub(super) api_key: Option<SecretSource>,
    pub(super) request_timeout: Option<Text<Duration>>,
    pub(super) max_body: Option<Text<Size>>,
    pub(super) max_in_flight: Option<u32>,
    pub(super) max_points: Option<u32>,
    pub(super) error_status: Option<ErrorStatus>,
    pub(super) compression: Option<Compression>,
    pub(super) drain_timeout: Option<Text<Duration>>,
    #[serde(deserialize_with = "table")]
    pub(super) tls: ServerTls,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawAccess {
    pub(super) trusted_proxies: Vec<Text<IpNet>>,
    #[serde(deserialize_with = "table")]
    pub(super) mirror: RawApiAccess,
    #[serde(deserialize_with = "table")]
    pub(super) prometheus: RawApiAccess,
    #[serde(deserialize_with = "table")]
    pub(super) metrics: RawApiAccess,
    #[serde(deserialize_with = "table")]
    pub(super) admin: RawApiAccess,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawApiAccess {
    pub(super) networks: Vec<Text<IpNet>>,
    pub(super) tokens: Vec<SecretSource>,
    #[serde(deserialize_with = "table")]
    pub(super) users: BTreeMap<String, SecretSource>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ServerTls {
    pub(super) cert: Option<String>,
    pub(super) key: Option<String>,
    pub(super) client_ca: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ClientTls {
    pub(super) ca: Option<String>,
    pub(super) cert: Option<String>,
    pub(super) key: Option<String>,
    pub(super) insecure: bool,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Compression {
    Auto,
    Always,
    Never,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum ErrorStatus {
    Semantic,
    #[serde(rename = "always_500")]
    Always500,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Cache {
    pub(super) memory: Option<Text<Size>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Targets {
    pub(super) allow: Vec<Text<Pattern>>,
    pub(super) networks: Vec<Text<IpNet>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct State {
    pub(super) dir: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Log {
    pub(super) level: Option<Level>,
    pub(super) format: Option<Format>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Traces {
    pub(super) endpoint: Option<String>,
    #[serde(deserialize_with = "table")]
    pub(super) headers: BTreeMap<String, SecretSource>,
    pub(super) sample: Option<f64>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Level {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Format {
    Human,
    Json,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Kind {
    #[default]
    Demo,
    Mirror,
    Prometheus,
}

impl Kind {
    /// As in the file.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Demo => "demo",
            Self::Mirror => "mirror",
            Self::Prometheus => "prometheus",
        }
    }
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Alignment {
    Exact,
    Align,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Upstream {
    pub(super) name: Option<String>,
    pub(super) kind: Option<Kind>,
    pub(super) urls: Vec<Text<TargetUrl>>,
    pub(super) default: bool,
    pub(super) api_key: Option<SecretSource>,
    pub(super) connection_details: Option<ConnectionDetails>,
    #[serde(deserialize_with = "table")]
    pub(super) demo: Demo,
    #[serde(deserialize_with = "table")]
    pub(super) headers: BTreeMap<String, SecretSource>,
    #[serde(deserialize_with = "table")]
    pub(super) tls: ClientTls,
    pub(super) proxy: Option<SecretSource>,
    pub(super) interval: Option<Text<Duration>>,
    pub(super) settle: Option<Text<Duration>>,
    pub(super) refresh: Option<Text<Duration>>,
    pub(super) max_stale: Option<Text<Duration>>,
    pub(super) stale_while_revalidate: Option<Text<Duration>>,
    pub(super) history_ttl: Option<Text<Duration>>,
    pub(super) aggregate: Option<Aggregation>,
    pub(super) raw_points_max: Option<u32>,
    pub(super) multi_series: Option<Series>,
    pub(super) incomplete_buckets: Option<Buckets>,
    pub(super) metadata_ttl: Option<Text<Duration>>,
    pub(super) max_response: Option<Text<Size>>,
    pub(super) max_series: Option<u32>,
    pub(super) max_span: Option<Text<Duration>>,
    pub(super) step_alignment: Option<Alignment>,
    pub(super) timeout: Option<Text<Duration>>,
    pub(super) retries: Option<u32>,
    #[serde(deserialize_with = "table")]
    pub(super) rate_limit: RateLimit,
    pub(super) max_concurrency: Option<u32>,
    pub(super) adaptive_concurrency: Option<bool>,
    pub(super) hedge_after: Option<Text<Duration>>,
    pub(super) queue: Option<u32>,
    #[serde(deserialize_with = "table")]
    pub(super) breaker: Breaker,
}

#[derive(Clone, Deserialize)]
#[serde(
    untagged,
    expecting = "expected \"forward\" or a table of details such as { host = \"prom\", port = 9090 }"
)]
pub(super) enum ConnectionDetails {
    Forward(Forward),
    Fixed(serde_json::Map<String, serde_json::Value>),
}

impl fmt::Debug for ConnectionDetails {
    /// Details may hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ConnectionDetails(…)")
    }
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Forward {
    Forward,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Demo {
    pub(super) latency: Option<Text<Duration>>,
    pub(super) per_second: Option<u32>,
}

impl Demo {
    pub(super) const LATENCY: Duration = Duration::from_millis(400);
    pub(super) const PER_SECOND: u32 = 50;

    /// Whether every key is absent or has its default.
    pub(super) fn is_usual(&self) -> bool {
        self.latency.as_ref().is_none_or(|l| l.0 == Self::LATENCY)
            && self.per_second.is_none_or(|n| n == Self::PER_SECOND)
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RateLimit {
    pub(super) per_second: Option<f64>,
    pub(super) burst: Option<u32>,
    pub(super) per_hour: Option<u32>,
    pub(super) per_day: Option<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Breaker {
    pub(super) failures: Option<u32>,
    pub(super) open: Option<Text<Duration>>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Aggregation {
    Auto,
    Local,
    Upstream,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Series {
    Merge,
    Error,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Buckets {
    Include,
    Omit,
}

/// `value` as whole milliseconds.
pub(super) fn millis(value: Duration) -> Millis {
    Millis::try_from(value.as_millis()).unwrap_or(Millis::MAX)
}

fn seconds(value: Option<&Text<Duration>>, default: u64) -> Duration {
    value.map_or(Duration::from_secs(default), |text| text.0)
}

impl Upstream {
    /// The settings of an upstream `name` of `kind`; every key that is absent has its default.
    pub(super) fn settings(&self, name: String, kind: UpstreamKind) -> Settings {
        let interval = millis(seconds(self.interval.as_ref(), 15));
        let per_second = self.rate_limit.per_second.unwrap_or(50.0);
        Settings {
            name,
            kind,
            headers: Vec::new(),
            tls: super::ClientTls::default(),
            proxy: super::Proxy::default(),
            freshness: Freshness {
                settle: millis(seconds(self.settle.as_ref(), 120)),
                refresh: seconds(self.refresh.as_ref(), 10),
                max_stale: seconds(self.max_stale.as_ref(), 3600),
                stale_while_revalidate: seconds(self.stale_while_revalidate.as_ref(), 0),
                history_ttl: seconds(self.history_ttl.as_ref(), 7 * 86_400),
                metadata_ttl: seconds(self.metadata_ttl.as_ref(), 60),
            },
            reading: Reading {
                interval: Step::new(interval).unwrap_or(Step::SECOND),
                aggregate: match self.aggregate {
                    None | Some(Aggregation::Auto) => Aggregate::Auto,
                    Some(Aggregation::Local) => Aggregate::Local,
                    Some(Aggregation::Upstream) => Aggregate::Upstream,
                },
                raw_points_max: self.raw_points_max.unwrap_or(100_000),
                multi_series: match self.multi_series {
                    None | Some(Series::Merge) => MultiSeries::Merge,
                    Some(Series::Error) => MultiSeries::Error,
                },
                incomplete_buckets: match self.incomplete_buckets {
                    None | Some(Buckets::Include) => IncompleteBuckets::Include,
                    Some(Buckets::Omit) => IncompleteBuckets::Omit,
                },
                max_response: self
                    .max_response
                    .as_ref()
                    .map_or(64 << 20, |s| usize::try_from(s.0.0).unwrap_or(usize::MAX)),
                range_limits: RangeLimits {
                    series: self.max_series.unwrap_or(20_000) as usize,
                    span: millis(seconds(self.max_span.as_ref(), 0)),
                },
                step_alignment: match self.step_alignment {
                    None | Some(Alignment::Exact) => StepAlignment::Exact,
                    Some(Alignment::Align) => StepAlignment::Align,
                },
            },
            limits: Limits {
                timeout: seconds(self.timeout.as_ref(), 10),
                retries: self.retries.unwrap_or(2),
                per_second,
                burst: self.rate_limit.burst.unwrap_or(per_second.ceil() as u32),
                per_hour: self.rate_limit.per_hour,
                per_day: self.rate_limit.per_day,
                max_concurrency: self.max_concurrency.unwrap_or(16) as usize,
                adaptive_concurrency: self.adaptive_concurrency.unwrap_or(false),
                hedge_after: self
                    .hedge_after
                    .as_ref()
                    .map(|t| t.0)
                    .filter(|t| !t.is_zero()),
                queue: self.queue.unwrap_or(1024) as usize,
                breaker_failures: self.breaker.failures.unwrap_or(5),
                breaker_open: seconds(self.breaker.open.as_ref(), 10),
            },
        }
    }
}
