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
pub(super) struct RawConfig {
    #[serde(deserialize_with = "table")]
    pub(super) server: RawServer,
    #[serde(deserialize_with = "table")]
    pub(super) access: RawAccess,
    #[serde(deserialize_with = "table")]
    pub(super) cache: RawCache,
    #[serde(deserialize_with = "table")]
    pub(super) targets: RawTargets,
    #[serde(deserialize_with = "table")]
    pub(super) state: RawState,
    #[serde(deserialize_with = "table")]
    pub(super) log: RawLog,
    #[serde(deserialize_with = "table")]
    pub(super) traces: RawTraces,
    #[serde(deserialize_with = "tables")]
    pub(super) upstream: Vec<RawUpstream>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawServer {
    pub(super) listen: Option<Text<SocketAddr>>,
    pub(super) api_key: Option<SecretSource>,
    pub(super) request_timeout: Option<Text<Duration>>,
    pub(super) max_body: Option<Text<Size>>,
    pub(super) max_in_flight: Option<u32>,
    pub(super) max_points: Option<u32>,
    pub(super) error_status: Option<RawErrorStatus>,
    pub(super) compression: Option<RawCompression>,
    pub(super) drain_timeout: Option<Text<Duration>>,
    #[serde(deserialize_with = "table")]
    pub(super) tls: RawServerTls,
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
pub(super) struct RawServerTls {
    pub(super) cert: Option<String>,
    pub(super) key: Option<String>,
    pub(super) client_ca: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawClientTls {
    pub(super) ca: Option<String>,
    pub(super) cert: Option<String>,
    pub(super) key: Option<String>,
    pub(super) insecure: bool,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum RawCompression {
    Auto,
    Always,
    Never,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum RawErrorStatus {
    Semantic,
    #[serde(rename = "always_500")]
    Always500,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawCache {
    pub(super) memory: Option<Text<Size>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawTargets {
    pub(super) allow: Vec<Text<Pattern>>,
    pub(super) networks: Vec<Text<IpNet>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawState {
    pub(super) dir: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawLog {
    pub(super) level: Option<RawLevel>,
    pub(super) format: Option<RawFormat>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawTraces {
    pub(super) endpoint: Option<String>,
    #[serde(deserialize_with = "table")]
    pub(super) headers: BTreeMap<String, SecretSource>,
    pub(super) sample: Option<f64>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum RawLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum RawFormat {
    Human,
    Json,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum RawKind {
    #[default]
    Demo,
    Mirror,
    Prometheus,
}

impl RawKind {
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
pub(super) enum RawAlignment {
    Exact,
    Align,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawUpstream {
    pub(super) name: Option<String>,
    pub(super) kind: Option<RawKind>,
    pub(super) urls: Vec<Text<TargetUrl>>,
    pub(super) default: bool,
    pub(super) api_key: Option<SecretSource>,
    pub(super) connection_details: Option<RawConnectionDetails>,
    #[serde(deserialize_with = "table")]
    pub(super) demo: RawDemo,
    #[serde(deserialize_with = "table")]
    pub(super) headers: BTreeMap<String, SecretSource>,
    #[serde(deserialize_with = "table")]
    pub(super) tls: RawClientTls,
    pub(super) proxy: Option<SecretSource>,
    pub(super) interval: Option<Text<Duration>>,
    pub(super) settle: Option<Text<Duration>>,
    pub(super) refresh: Option<Text<Duration>>,
    pub(super) max_stale: Option<Text<Duration>>,
    pub(super) stale_while_revalidate: Option<Text<Duration>>,
    pub(super) history_ttl: Option<Text<Duration>>,
    pub(super) aggregate: Option<RawAggregation>,
    pub(super) raw_points_max: Option<u32>,
    pub(super) multi_series: Option<RawMultiSeries>,
    pub(super) incomplete_buckets: Option<RawBuckets>,
    pub(super) metadata_ttl: Option<Text<Duration>>,
    pub(super) max_response: Option<Text<Size>>,
    pub(super) max_series: Option<u32>,
    pub(super) max_span: Option<Text<Duration>>,
    pub(super) step_alignment: Option<RawAlignment>,
    pub(super) timeout: Option<Text<Duration>>,
    pub(super) retries: Option<u32>,
    #[serde(deserialize_with = "table")]
    pub(super) rate_limit: RawRateLimit,
    pub(super) max_concurrency: Option<u32>,
    pub(super) adaptive_concurrency: Option<bool>,
    pub(super) hedge_after: Option<Text<Duration>>,
    pub(super) queue: Option<u32>,
    #[serde(deserialize_with = "table")]
    pub(super) breaker: RawBreaker,
}

#[derive(Clone, Deserialize)]
#[serde(
    untagged,
    expecting = "expected \"forward\" or a table of details such as { host = \"prom\", port = 9090 }"
)]
pub(super) enum RawConnectionDetails {
    Forward(RawForward),
    Fixed(serde_json::Map<String, serde_json::Value>),
}

impl fmt::Debug for RawConnectionDetails {
    /// Details may hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ConnectionDetails(…)")
    }
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum RawForward {
    Forward,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawDemo {
    pub(super) latency: Option<Text<Duration>>,
    pub(super) per_second: Option<u32>,
}

impl RawDemo {
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
pub(super) struct RawRateLimit {
    pub(super) per_second: Option<f64>,
    pub(super) burst: Option<u32>,
    pub(super) per_hour: Option<u32>,
    pub(super) per_day: Option<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawBreaker {
    pub(super) failures: Option<u32>,
    pub(super) open: Option<Text<Duration>>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum RawAggregation {
    Auto,
    Local,
    Upstream,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum RawMultiSeries {
    Merge,
    Error,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum RawBuckets {
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

impl RawUpstream {
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
                    None | Some(RawAggregation::Auto) => Aggregate::Auto,
                    Some(RawAggregation::Local) => Aggregate::Local,
                    Some(RawAggregation::Upstream) => Aggregate::Upstream,
                },
                raw_points_max: self.raw_points_max.unwrap_or(100_000),
                multi_series: match self.multi_series {
                    None | Some(RawMultiSeries::Merge) => MultiSeries::Merge,
                    Some(RawMultiSeries::Error) => MultiSeries::Error,
                },
                incomplete_buckets: match self.incomplete_buckets {
                    None | Some(RawBuckets::Include) => IncompleteBuckets::Include,
                    Some(RawBuckets::Omit) => IncompleteBuckets::Omit,
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
                    None | Some(RawAlignment::Exact) => StepAlignment::Exact,
                    Some(RawAlignment::Align) => StepAlignment::Align,
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
