//! The endpoints of Prometheus' HTTP API: their paths, methods and parameters.

use http::Method;
use percent_encoding::percent_decode_str;

use super::path::allow;
use crate::model::{Error, Kind};
use crate::wire::prometheus::{InstantQuery, RangeQuery};

/// Parameters of VictoriaMetrics and Thanos that are passed on and set answers apart, besides those that
/// the `parameters` of an upstream names. Others that Prometheus does not read, such as the `_` of jQuery,
/// are not passed on.
pub(super) const EXTENSIONS: [&str; 13] = [
    "nocache",
    "trace",
    "extra_label",
    "extra_filters",
    "extra_filters[]",
    "round_digits",
    "latency_offset",
    "max_lookback",
    "dedup",
    "partial_response",
    "max_source_resolution",
    "replicaLabels[]",
    "storeMatch[]",
];

/// An endpoint of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ApiEndpoint {
    QueryRange,
    Query,
    Labels,
    LabelValues,
    Series,
    Metadata,
    FormatQuery,
    ParseQuery,
    QueryExemplars,
    Status,
    Rules,
    Alerts,
    Targets,
    /// Remote read.
    Read,
    /// Endpoints that change the store, and paths that could reach one.
    Refused,
    /// A stream of events, which does not end.
    Stream,
    /// Endpoints that are not known here.
    Other,
}

impl ApiEndpoint {
    /// All endpoints.
    pub(super) const ALL: [Self; 17] = [
        Self::QueryRange,
        Self::Query,
        Self::Labels,
        Self::LabelValues,
        Self::Series,
        Self::Metadata,
        Self::FormatQuery,
        Self::ParseQuery,
        Self::QueryExemplars,
        Self::Status,
        Self::Rules,
        Self::Alerts,
        Self::Targets,
        Self::Read,
        Self::Refused,
        Self::Stream,
        Self::Other,
    ];

    /// Returns its name in metrics.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::QueryRange => "query_range",
            Self::Query => "query",
            Self::Labels => "labels",
            Self::LabelValues => "label_values",
            Self::Series => "series",
            Self::Metadata => "metadata",
            Self::FormatQuery => "format_query",
            Self::ParseQuery => "parse_query",
            Self::QueryExemplars => "query_exemplars",
            Self::Status => "status",
            Self::Rules => "rules",
            Self::Alerts => "alerts",
            Self::Targets => "targets",
            Self::Read => "read",
            Self::Refused => "refused",
            Self::Stream => "stream",
            Self::Other => "other",
        }
    }

    /// Returns the endpoint at `path`, normalized; `None` if it is not of this API.
    pub(super) fn of(path: &str) -> Option<Self> {
        let (_, below) = split(path)?;
        match below {
            // Nearly all requests are for these.
            "/api/v1/query_range" => return Some(Self::QueryRange),
            "/api/v1/query" => return Some(Self::Query),
            _ => {}
        }
        // Decoded, as the upstream reads it: escapes must not hide a path.
        let below = percent_decode_str(below).decode_utf8_lossy();
        let parts: Vec<&str> = below.split(['/', '\\']).filter(|p| !p.is_empty()).collect();
        if parts.iter().any(|p| matches!(*p, "." | "..")) {
            return Some(Self::Refused);
        }
        Some(match parts.get(2..)? {
            ["query_range"] => Self::QueryRange,
            ["query"] => Self::Query,
            ["labels"] => Self::Labels,
            ["label", _, "values"] => Self::LabelValues,
            ["series"] => Self::Series,
            ["metadata"] | ["targets", "metadata"] => Self::Metadata,
            ["format_query"] => Self::FormatQuery,
            ["parse_query"] => Self::ParseQuery,
            ["query_exemplars"] => Self::QueryExemplars,
            ["status", ..] => Self::Status,
            ["rules"] => Self::Rules,
            ["alerts"] => Self::Alerts,
            ["targets"] => Self::Targets,
            ["read"] => Self::Read,
            ["notifications", "live"] => Self::Stream,
            ["admin" | "write" | "push" | "otlp" | "import", ..] => Self::Refused,
            _ => Self::Other,
        })
    }

    /// Returns the parameters that Prometheus reads; `None` where all are passed on.
    pub(super) fn parameters(self) -> Option<&'static [&'static str]> {
        Some(match self {
            Self::QueryRange => RangeQuery::PARAMETERS,
            Self::Query => InstantQuery::PARAMETERS,
            Self::Labels | Self::LabelValues | Self::Series => {
                &["match[]", "start", "end", "limit"]
            }
            Self::Metadata => &["metric", "match_target", "limit", "limit_per_metric"],
            Self::FormatQuery | Self::ParseQuery => &["query"],
            Self::QueryExemplars => &["query", "start", "end"],
            Self::Status => &["limit"],
            Self::Rules => &[
                "type",
                "rule_name[]",
                "rule_group[]",
                "file[]",
                "match[]",
                "exclude_alerts",
                "group_limit",
                "group_next_token",
            ],
            Self::Alerts => &[],
            Self::Targets => &["state", "scrapePool"],
            Self::Read | Self::Refused | Self::Stream | Self::Other => return None,
        })
    }

    /// Returns the HTTP methods it accepts.
    fn methods(self) -> &'static [Method] {
        match self {
            Self::QueryRange
            | Self::Query
            | Self::Labels
            | Self::Series
            | Self::FormatQuery
            | Self::ParseQuery
            | Self::QueryExemplars => &[Method::GET, Method::HEAD, Method::POST, Method::OPTIONS],
            Self::Read => &[Method::POST, Method::OPTIONS],
            _ => &[Method::GET, Method::HEAD, Method::OPTIONS],
        }
    }

    /// Checks that it accepts `method`.
    pub(super) fn check(self, method: &Method) -> Result<(), Error> {
        if self == Self::Refused {
            let message = "endpoints that change the store are not served here";
            return Err(Error::new(Kind::TargetNotAllowed, message));
        }
        if self == Self::Stream {
            let message = "a stream of events is not served here: it does not end, so it can be neither \
                           cached nor shared; ask the store itself";
            return Err(Error::new(Kind::PathNotFound, message));
        }
        allow(method, self.methods())
    }
}

/// Returns whether the endpoint at `path`, normalized, reads its parameters from a form, too.
pub(super) fn takes_form(path: &str) -> bool {
    let endpoint = ApiEndpoint::of(path).filter(|endpoint| *endpoint != ApiEndpoint::Read);
    endpoint.is_some_and(|endpoint| endpoint.methods().contains(&Method::POST))
}

/// Returns the name of the upstream in `path`, if it has one, and the rest from `/api/v1/` on.
pub(super) fn split(path: &str) -> Option<(Option<&str>, &str)> {
    if path.starts_with("/api/v1/") {
        return Some((None, path));
    }
    let (name, below) = path.strip_prefix("/prometheus/")?.split_once('/')?;
    below.starts_with("api/v1/").then_some(())?;
    Some((Some(name), path.get(path.len() - below.len() - 1..)?))
}

/// Returns whether `path`, normalized, is one that Prometheus serves besides its API. Errors there have
/// its form.
pub(super) fn is_of_prometheus(path: &str) -> bool {
    let first = path.split('/').nth(1).unwrap_or_default();
    let known = ["-", "federate", "version", "graph", "consoles", "classic"];
    known.contains(&first) || path == "/api/v1" || path.starts_with("/api/v1/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_mean_endpoints() {
        for (path, endpoint) in [
            ("/api/v1/query_range", ApiEndpoint::QueryRange),
            ("/prometheus/prom/api/v1/query", ApiEndpoint::Query),
            ("/api/v1/label/a%2Fb/values", ApiEndpoint::Other),
            ("/api/v1/label/a.b/values", ApiEndpoint::LabelValues),
            ("/api/v1/targets/metadata", ApiEndpoint::Metadata),
            ("/api/v1/status/tsdb", ApiEndpoint::Status),
            ("/api/v1/notifications", ApiEndpoint::Other),
            ("/api/v1/notifications/live", ApiEndpoint::Stream),
            ("/api/v1/new", ApiEndpoint::Other),
            ("/api/v1/admin/tsdb/snapshot", ApiEndpoint::Refused),
            ("/api/v1/%61dmin%2ftsdb", ApiEndpoint::Refused),
            ("/api/v1/%2Fadmin/tsdb", ApiEndpoint::Refused),
            ("/api/v1/x/../admin", ApiEndpoint::Refused),
            ("/api/v1/%2e%2E/%2e./-/reload", ApiEndpoint::Refused),
            ("/api/v1/..\\..\\x", ApiEndpoint::Refused),
            ("/api/v1/write", ApiEndpoint::Refused),
        ] {
            assert_eq!(ApiEndpoint::of(path), Some(endpoint), "{path}");
        }
        for path in [
            "/api/v1",
            "/api/metric",
            "/prometheus/prom/graph",
            "/prometheus",
        ] {
            assert_eq!(ApiEndpoint::of(path), None, "{path}");
        }
        assert_eq!(
            split("/prometheus/a.b/api/v1/query"),
            Some((Some("a.b"), "/api/v1/query"))
        );
    }

    #[test]
    fn every_endpoint_is_counted_by_its_name() {
        let names: std::collections::BTreeSet<_> =
            ApiEndpoint::ALL.iter().map(|e| e.name()).collect();
        assert_eq!(names.len(), ApiEndpoint::ALL.len());
    }
}
