//! The file as it is written. Every key is optional.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use ipnet::IpNet;
use serde::Deserialize;

pub(super) use super::raw_aws::{RawAws, RawBatch, RawNamespace, RawUnits};
use super::usual::Usual;
use super::values::{SecretSource, Size, Text, table, tables};
use super::{ErrorStatus, Upstream as Settings, UpstreamKind};
use crate::model::{
    Aggregate, Compression, Freshness, IncompleteBuckets, InstantAlignment, Limits, Millis,
    MultiSeries, Pattern, QueryMethod, RangeLimits, Reading, Replicas, Step, StepAlignment,
    TargetUrl,
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
    pub(super) replicas: RawReplicas,
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
    pub(super) max_in_flight_bytes: Option<Text<Size>>,
    pub(super) max_details: Option<Text<Size>>,
    pub(super) max_value: Option<Text<Size>>,
    pub(super) max_points: Option<u32>,
    pub(super) error_status: Option<ErrorStatus>,
    pub(super) compression: Option<Compression>,
    pub(super) drain_grace: Option<Text<Duration>>,
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

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawCache {
    pub(super) memory: Option<Text<Size>>,
    #[serde(deserialize_with = "table")]
    pub(super) disk: RawCacheDisk,
    #[serde(deserialize_with = "table")]
    pub(super) shared: RawCacheShared,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawCacheShared {
    pub(super) urls: Vec<String>,
    pub(super) mode: Option<RawSharedMode>,
    pub(super) master: Option<String>,
    pub(super) username: Option<String>,
    pub(super) password: Option<SecretSource>,
    pub(super) sentinel_username: Option<String>,
    pub(super) sentinel_password: Option<SecretSource>,
    #[serde(deserialize_with = "table")]
    pub(super) tls: RawClientTls,
    pub(super) prefix: Option<String>,
    pub(super) secret: Option<SecretSource>,
    pub(super) timeout: Option<Text<Duration>>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum RawSharedMode {
    #[default]
    Single,
    Cluster,
    Sentinel,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawReplicas {
    pub(super) name: Option<String>,
    pub(super) share_limits: bool,
    pub(super) fetch_once: Option<bool>,
    pub(super) forget_after: Option<Text<Duration>>,
    pub(super) limits_without_redis: Option<f64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawCacheDisk {
    pub(super) dir: Option<String>,
    pub(super) size: Option<Text<Size>>,
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
    pub(super) access: bool,
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
    #[serde(rename = "cloudwatch")]
    CloudWatch,
}

impl RawKind {
    /// Returns the name of the kind, as in the file.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Demo => "demo",
            Self::Mirror => "mirror",
            Self::Prometheus => "prometheus",
            Self::CloudWatch => "cloudwatch",
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawUpstream {
    pub(super) name: Option<String>,
    pub(super) kind: Option<RawKind>,
    pub(super) urls: Vec<Text<TargetUrl>>,
    pub(super) default: bool,
    pub(super) identity: Option<String>,
    pub(super) second_level: Option<bool>,
    pub(super) api_key: Option<SecretSource>,
    pub(super) connection_details: Option<RawConnectionDetails>,
    #[serde(deserialize_with = "table")]
    pub(super) demo: RawDemo,
    #[serde(deserialize_with = "table")]
    pub(super) headers: BTreeMap<String, SecretSource>,
    #[serde(deserialize_with = "table")]
    pub(super) tls: RawClientTls,
    pub(super) proxy: Option<SecretSource>,
    #[serde(deserialize_with = "table")]
    pub(super) aws: RawAws,
    #[serde(deserialize_with = "table")]
    pub(super) units: RawUnits,
    #[serde(deserialize_with = "table")]
    pub(super) batch: RawBatch,
    #[serde(deserialize_with = "tables")]
    pub(super) namespace: Vec<RawNamespace>,
    pub(super) interval: Option<Text<Duration>>,
    pub(super) settle: Option<Text<Duration>>,
    pub(super) refresh: Option<Text<Duration>>,
    pub(super) max_stale: Option<Text<Duration>>,
    pub(super) stale_while_revalidate: Option<Text<Duration>>,
    pub(super) history_ttl: Option<Text<Duration>>,
    pub(super) recheck: Option<Text<Duration>>,
    pub(super) aggregate: Option<Aggregate>,
    pub(super) raw_points_max: Option<u32>,
    pub(super) multi_series: Option<MultiSeries>,
    pub(super) incomplete_buckets: Option<IncompleteBuckets>,
    pub(super) metadata_ttl: Option<Text<Duration>>,
    pub(super) max_response: Option<Text<Size>>,
    pub(super) max_series: Option<u32>,
    pub(super) max_span: Option<Text<Duration>>,
    pub(super) step_alignment: Option<StepAlignment>,
    pub(super) parameters: Vec<String>,
    pub(super) instant_alignment: Option<InstantAlignment>,
    pub(super) refresh_ahead: Option<bool>,
    pub(super) replicas: Option<Replicas>,
    pub(super) replica_labels: Vec<String>,
    pub(super) method: Option<QueryMethod>,
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
    /// Omits the details, which may contain secrets.
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

    /// Returns whether every key is absent or has its default.
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

/// Returns `value` in whole milliseconds.
pub(super) fn millis(value: Duration) -> Millis {
    Millis::try_from(value.as_millis()).unwrap_or(Millis::MAX)
}

/// Returns the duration of `value`, or `default` if the key is absent.
pub(super) fn duration(value: Option<&Text<Duration>>, default: Duration) -> Duration {
    value.map_or(default, |text| text.0)
}

impl RawUpstream {
    /// Returns whether each of its calls is counted or paid for.
    fn is_metered(&self) -> bool {
        let limit = &self.rate_limit;
        limit.per_hour.is_some() || limit.per_day.is_some() || self.aws.is_set()
    }

    /// Returns the settings of an upstream `name` of `kind`; absent keys have their defaults.
    pub(super) fn settings(&self, name: String, kind: UpstreamKind) -> Settings {
        let usual = Usual::of(&kind);
        Settings {
            name,
            kind,
            identity: self.identity.clone().filter(|i| !i.is_empty()),
            second_level: self.second_level.unwrap_or(true),
            headers: Vec::new(),
            tls: super::ClientTls::default(),
            proxy: super::Proxy::default(),
            aws: None,
            freshness: self.freshness(usual.freshness),
            reading: self.reading(&usual.reading),
            limits: self.limits(usual.limits),
        }
    }

    fn freshness(&self, usual: Freshness) -> Freshness {
        Freshness {
            settle: self.settle.as_ref().map_or(usual.settle, |t| millis(t.0)),
            refresh: duration(self.refresh.as_ref(), usual.refresh),
            recheck: match &self.recheck {
                Some(recheck) => recheck.0,
                None if self.is_metered() => Duration::ZERO,
                None => usual.recheck,
            },
            max_stale: duration(self.max_stale.as_ref(), usual.max_stale),
            stale_while_revalidate: duration(
                self.stale_while_revalidate.as_ref(),
                usual.stale_while_revalidate,
            ),
            history_ttl: duration(self.history_ttl.as_ref(), usual.history_ttl),
            metadata_ttl: duration(self.metadata_ttl.as_ref(), usual.metadata_ttl),
        }
    }

    fn reading(&self, usual: &Reading) -> Reading {
        let interval = self.interval.as_ref();
        let bytes = |size: &Text<Size>| usize::try_from(size.0.0).unwrap_or(usize::MAX);
        let max_span = self.max_span.as_ref();
        Reading {
            interval: interval
                .and_then(|t| Step::new(millis(t.0)))
                .unwrap_or(usual.interval),
            aggregate: self.aggregate.unwrap_or_default(),
            raw_points_max: self.raw_points_max.unwrap_or(usual.raw_points_max),
            multi_series: self.multi_series.unwrap_or_default(),
            incomplete_buckets: self.incomplete_buckets.unwrap_or_default(),
            max_response: self.max_response.as_ref().map_or(usual.max_response, bytes),
            range_limits: RangeLimits {
                series: self
                    .max_series
                    .map_or(usual.range_limits.series, |n| n as usize),
                span: max_span.map_or(usual.range_limits.span, |t| millis(t.0)),
            },
            step_alignment: self.step_alignment.unwrap_or_default(),
            parameters: self.parameters.clone(),
            instant_alignment: self.instant_alignment.unwrap_or_default(),
            // Metered calls are made only on request.
            refresh_ahead: self
                .refresh_ahead
                .unwrap_or(usual.refresh_ahead && !self.is_metered()),
            replicas: self.replicas.unwrap_or_default(),
            replica_labels: self.replica_labels.clone(),
            method: self.method.unwrap_or_default(),
        }
    }

    fn limits(&self, usual: Limits) -> Limits {
        let per_second = self.rate_limit.per_second.unwrap_or(usual.per_second);
        let count = |value: Option<u32>, default| value.map_or(default, |n| n as usize);
        Limits {
            timeout: duration(self.timeout.as_ref(), usual.timeout),
            retries: self.retries.unwrap_or(usual.retries),
            per_second,
            burst: self.rate_limit.burst.unwrap_or(per_second.ceil() as u32),
            per_hour: self.rate_limit.per_hour,
            per_day: self.rate_limit.per_day,
            max_concurrency: count(self.max_concurrency, usual.max_concurrency),
            adaptive_concurrency: self
                .adaptive_concurrency
                .unwrap_or(usual.adaptive_concurrency),
            hedge_after: self
                .hedge_after
                .as_ref()
                .map(|t| t.0)
                .filter(|t| !t.is_zero()),
            queue: count(self.queue, usual.queue),
            breaker_failures: self.breaker.failures.unwrap_or(usual.breaker_failures),
            breaker_open: duration(self.breaker.open.as_ref(), usual.breaker_open),
        }
    }
}
