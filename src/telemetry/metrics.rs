//! The table of all metrics by name, and the handles to them.

use std::sync::OnceLock;

use metrics::{
    Counter, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge,
    histogram,
};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

const REQUESTS: &str = "heliostat_requests_total";
const REQUEST_SECONDS: &str = "heliostat_request_duration_seconds";
const ACCESS_DENIED: &str = "heliostat_access_denied_total";
const GAVE_WAY: &str = "heliostat_gave_way_total";
const LOG_LINES_DROPPED: &str = "heliostat_log_lines_dropped_total";
const NOT_HTTP: &str = "heliostat_unreadable_requests_total";
const IN_FLIGHT_REQUESTS: &str = "heliostat_in_flight_requests";
const IN_FLIGHT_BYTES: &str = "heliostat_in_flight_bytes";
pub(super) const LOOKUPS: &str = "heliostat_cache_lookups_total";
pub(super) const CACHE_BYTES: &str = "heliostat_cache_bytes";
pub(super) const CACHE_CHUNKS: &str = "heliostat_cache_chunks";
const CACHE_LIMIT: &str = "heliostat_cache_limit_bytes";
pub(super) const EVICTIONS: &str = "heliostat_cache_evictions_total";
pub(super) const POINTS_SERVED: &str = "heliostat_points_served_total";
pub(super) const STALE_SERVED: &str = "heliostat_stale_answers_total";
pub(super) const UPSTREAM_REQUESTS: &str = "heliostat_upstream_requests_total";
pub(super) const UPSTREAM_SECONDS: &str = "heliostat_upstream_request_duration_seconds";
pub(super) const UPSTREAM_POINTS: &str = "heliostat_upstream_points_total";
pub(super) const QUEUE_SECONDS: &str = "heliostat_upstream_queue_seconds";
pub(super) const IN_FLIGHT: &str = "heliostat_upstream_in_flight";
pub(super) const REJECTED: &str = "heliostat_upstream_rejected_total";
pub(super) const UNITS: &str = "heliostat_upstream_units_total";
pub(super) const UNITS_REQUESTED: &str = "heliostat_units_requested_total";
pub(super) const COST: &str = "heliostat_upstream_cost_total";
pub(super) const RETRIES: &str = "heliostat_upstream_retries_total";
pub(super) const BREAKER_OPEN: &str = "heliostat_breaker_open";
pub(super) const STATE_UNSAVED: &str = "heliostat_state_unsaved_seconds";
pub(super) const COALESCED: &str = "heliostat_coalesced_requests_total";
pub(super) const DROPPED: &str = "heliostat_points_dropped_total";
pub(super) const LATE_POINTS: &str = "heliostat_late_points_total";
pub(super) const REPLICA_FILLS: &str = "heliostat_replica_fills_total";
pub(super) const FILLED_POINTS: &str = "heliostat_filled_points_total";
pub(super) const REFRESH_AHEAD: &str = "heliostat_refresh_ahead_total";
const FILE_ERRORS: &str = "heliostat_file_errors";
const RELOADS: &str = "heliostat_config_reloads_total";
const RELOAD_OK: &str = "heliostat_config_last_reload_successful";
const RELOAD_TIME: &str = "heliostat_config_last_reload_success_timestamp_seconds";
pub(super) const LEVEL_REQUESTS: &str = "heliostat_second_level_requests_total";
pub(super) const LEVEL_SECONDS: &str = "heliostat_second_level_duration_seconds";
pub(super) const LEVEL_BYTES: &str = "heliostat_second_level_bytes_total";
pub(super) const LEVEL_DROPPED: &str = "heliostat_second_level_dropped_total";
pub(super) const LEVEL_UNREADABLE: &str = "heliostat_second_level_unreadable_total";
pub(super) const LEVEL_QUEUE: &str = "heliostat_second_level_queue_bytes";
pub(super) const LEVEL_BREAKERS: &str = "heliostat_second_level_breakers_open";
pub(super) const DISK_BYTES: &str = "heliostat_second_level_disk_bytes";
pub(super) const DISK_RECORDS: &str = "heliostat_second_level_disk_records";
pub(super) const REPLICAS: &str = "heliostat_replicas";
pub(super) const CLOCK_ERROR: &str = "heliostat_level_clock_error_seconds";
pub(super) const LIMIT_SHARE: &str = "heliostat_limit_share";
pub(super) const LIMIT_CALLS: &str = "heliostat_limit_calls_total";
pub(super) const LEASES: &str = "heliostat_leases_total";
const CERTIFICATE_EXPIRY: &str = "heliostat_certificate_expiry_timestamp_seconds";
const BUILD_INFO: &str = "heliostat_build_info";

pub use super::level_metrics::{DiskMetrics, LevelMetrics, limit_share, shared_level, unreadable};
pub use super::unit_metrics::UnitMetrics;
pub use super::upstream_metrics::{
    Count, Failure, UpstreamMetrics, UpstreamTotals, answer_bytes, breakers_open, upstream_gone,
};

/// Bounds of histogram buckets. A hit takes some tens of microseconds, so they start there.
const SECONDS: [f64; 18] = [
    0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0,
    2.5, 5.0, 10.0, 30.0,
];

/// Returns the process-wide registry behind `/metrics`, or `None` if another recorder was
/// installed first.
pub fn registry() -> Option<&'static PrometheusHandle> {
    static HANDLE: OnceLock<Option<PrometheusHandle>> = OnceLock::new();
    let install = || {
        let mut builder = PrometheusBuilder::new();
        for name in [
            REQUEST_SECONDS,
            UPSTREAM_SECONDS,
            QUEUE_SECONDS,
            LEVEL_SECONDS,
        ] {
            // This fails for an empty list of buckets only.
            builder = builder
                .set_buckets_for_metric(Matcher::Full(name.into()), &SECONDS)
                .ok()?;
        }
        let recorder = builder.build_recorder();
        let handle = recorder.handle();
        metrics::set_global_recorder(recorder).ok()?;
        describe();
        // Who packages it may say which commit it is of.
        let commit = option_env!("HELIOSTAT_COMMIT").unwrap_or("unknown");
        gauge!(BUILD_INFO, "version" => env!("CARGO_PKG_VERSION"), "commit" => commit).set(1.0);
        metrics_process::Collector::default().describe();
        Some(handle)
    };
    HANDLE.get_or_init(install).as_ref()
}

fn describe() {
    describe_counter!(
        REQUESTS,
        "Requests answered, by API, method and HTTP status."
    );
    describe_histogram!(
        REQUEST_SECONDS,
        Unit::Seconds,
        "Time from the head of a request to the head of its answer."
    );
    describe_counter!(
        ACCESS_DENIED,
        "Requests denied, by API and reason: the client's address (network), missing or wrong credentials (credentials), an API that is closed (closed), too many passwords to check (busy)."
    );
    describe_counter!(
        GAVE_WAY,
        "Connections and requests that were refused or ended because the service was full and their client held most of it, or because they made no progress, by what was full (connection, request, bytes)."
    );
    describe_counter!(
        LOG_LINES_DROPPED,
        "Log lines dropped because standard error was not read in time."
    );
    describe_counter!(
        NOT_HTTP,
        "Requests that were not HTTP, or whose heads were too large; they are in no other metric."
    );
    describe_gauge!(
        IN_FLIGHT_REQUESTS,
        "Requests in flight, until their responses have been sent."
    );
    describe_gauge!(
        IN_FLIGHT_BYTES,
        Unit::Bytes,
        "Bytes of request and response bodies in flight."
    );
    describe_gauge!(
        super::upstream_metrics::ANSWER_BYTES,
        Unit::Bytes,
        "Bytes of upstream answers that are being read."
    );
    describe_counter!(
        LOOKUPS,
        "Metric queries by what the cache had: everything (hit), everything, some of it expired (stale), a part (partial), nothing (miss)."
    );
    describe_gauge!(
        CACHE_BYTES,
        Unit::Bytes,
        "Bytes that the cache holds: chunks, lists and whole answers, with their keys, and what is remembered of expressions and polls."
    );
    describe_gauge!(CACHE_CHUNKS, "Chunks in the cache.");
    describe_gauge!(
        CACHE_LIMIT,
        Unit::Bytes,
        "Upper bound of what the cache holds (cache.memory)."
    );
    describe_gauge!(
        CERTIFICATE_EXPIRY,
        Unit::Seconds,
        "When the certificate expires, in Unix time; of a chain, the first to expire."
    );
    describe_counter!(
        EVICTIONS,
        "Chunks, lists and whole answers evicted because the cache was full."
    );
    describe_counter!(
        POINTS_SERVED,
        "Points served, by where they came from: the cache, or the upstream for the query."
    );
    describe_counter!(
        STALE_SERVED,
        "Answers made from expired data and marked as such."
    );
    describe_counter!(
        UPSTREAM_REQUESTS,
        "HTTP attempts to the upstream, by outcome."
    );
    describe_histogram!(
        UPSTREAM_SECONDS,
        Unit::Seconds,
        "Duration of an HTTP attempt, body included."
    );
    describe_counter!(
        UPSTREAM_POINTS,
        "Points and samples received from the upstream."
    );
    describe_histogram!(
        QUEUE_SECONDS,
        Unit::Seconds,
        "Time an attempt waited for the upstream's limits."
    );
    describe_gauge!(IN_FLIGHT, "HTTP attempts in flight.");
    describe_counter!(
        REJECTED,
        "Calls not made, by reason: the limits (limits), the budget of the hour or day (budget), a budget of units (units), an open circuit breaker (breaker_open)."
    );
    describe_counter!(
        UNITS,
        "Units asked for, of upstreams that bill them: the metrics of CloudWatch's GetMetricData."
    );
    describe_counter!(
        UNITS_REQUESTED,
        "Units that the answered queries would have asked for without a cache."
    );
    describe_gauge!(
        COST,
        "Price of the units asked for, in the currency of the label; it only grows."
    );
    describe_counter!(RETRIES, "HTTP attempts that were retries.");
    describe_gauge!(
        BREAKER_OPEN,
        "URLs of the upstream whose circuit breaker is open."
    );
    describe_gauge!(
        STATE_UNSAVED,
        Unit::Seconds,
        "Time for which a change of budget usage has waited to be written to [state] dir; 0 if everything is written."
    );
    describe_counter!(
        COALESCED,
        "Requests that waited for another request's fetch."
    );
    describe_counter!(
        DROPPED,
        "Points received and left out, by reason: not a number (nan), infinite (inf), outside the requested range (outside_range), native histograms (histogram)."
    );
    describe_counter!(
        LATE_POINTS,
        "Points that came after their time had settled and were found by a second look (recheck)."
    );
    describe_counter!(
        REPLICA_FILLS,
        "Calls to a further replica because of a gap in an answer (replicas = \"fill\"), by outcome: answered, or unavailable (failed, or not made)."
    );
    describe_counter!(
        FILLED_POINTS,
        "Points and samples of further replicas that filled gaps of a first one."
    );
    describe_counter!(
        REFRESH_AHEAD,
        "Refreshes a moment before a steady poll was due, by outcome: the poll came (used), did not come (unused), or there was no spare call (skipped)."
    );
    describe_gauge!(
        FILE_ERRORS,
        "1 if the last reload of a certificate or secret file failed and the previous contents are still in use, 0 otherwise."
    );
    describe_counter!(
        RELOADS,
        "Reloads of the configuration, by result: success, or failure, which changes nothing."
    );
    describe_gauge!(
        RELOAD_OK,
        "0 if the last reload of the configuration failed and the previous one is still in use, 1 otherwise."
    );
    describe_gauge!(
        RELOAD_TIME,
        Unit::Seconds,
        "When the configuration in use was loaded, in Unix time."
    );
    describe_counter!(
        LEVEL_REQUESTS,
        "Calls to a second level of the cache, by operation and outcome: hit, miss, written, conflict, error, timeout, full, skipped (breaker open or too many at once)."
    );
    describe_histogram!(
        LEVEL_SECONDS,
        Unit::Seconds,
        "Time of a call to a second level of the cache."
    );
    describe_counter!(
        LEVEL_BYTES,
        Unit::Bytes,
        "Bytes of the values read from and written to a second level of the cache."
    );
    describe_counter!(
        LEVEL_DROPPED,
        "Fetched pieces that were not written to a second level of the cache, by reason: the queue was full (queue), too large (size), the level failed or rests (resting), others wrote at the same time again and again (conflict)."
    );
    describe_counter!(
        LEVEL_UNREADABLE,
        "Values of a second level of the cache that were ignored because they could not be read, by reason."
    );
    describe_gauge!(
        LEVEL_QUEUE,
        Unit::Bytes,
        "Bytes that wait to be written to a second level of the cache."
    );
    describe_gauge!(
        LEVEL_BREAKERS,
        "Open circuit breakers of a second level of the cache; reads and writes have one each."
    );
    describe_gauge!(
        DISK_BYTES,
        Unit::Bytes,
        "Bytes on disk of the second level of the cache."
    );
    describe_gauge!(
        DISK_RECORDS,
        "Values on disk of the second level of the cache."
    );
    describe_gauge!(
        REPLICAS,
        "Live replicas that share the second level of the cache, this one included; 0 while it cannot be reached."
    );
    describe_gauge!(
        CLOCK_ERROR,
        Unit::Seconds,
        "Largest error of this replica's estimate of the shared second level's time."
    );
    describe_gauge!(
        LIMIT_SHARE,
        "The part, from 0 to 1, of an upstream's limits that this replica may use by itself while the shared second level is unreachable."
    );
    describe_counter!(
        LIMIT_CALLS,
        "Calls to an upstream whose limits replicas keep together, by what allowed them: the limit of all (shared), or the part of this replica (share)."
    );
    describe_counter!(
        LEASES,
        "Fetches that one replica makes for all, by outcome: made by this one (taken), made by another (waited), by this one because another was too slow (overtaken), by this one without agreement (alone)."
    );
    describe_gauge!(BUILD_INFO, "Always 1; the version is a label.");
}

/// The statuses of answers, the most common first.
const STATUSES: [u16; 17] = [
    200, 204, 304, 400, 401, 403, 404, 405, 408, 413, 415, 422, 429, 500, 502, 503, 504,
];

/// Handles to the metrics of requests to one path.
#[derive(Debug)]
pub struct RequestMetrics {
    api: &'static str,
    method: &'static str,
    seconds: Histogram,
    /// One counter per status of [`STATUSES`], created when first needed, so that statuses that never
    /// occurred are not shown.
    answered: [OnceLock<Counter>; STATUSES.len()],
}

impl RequestMetrics {
    /// Creates the handles for `method` of `api`.
    pub fn new(api: &'static str, method: &'static str) -> Self {
        Self {
            api,
            method,
            seconds: histogram!(REQUEST_SECONDS, "api" => api, "method" => method),
            answered: Default::default(),
        }
        .shown()
    }

    /// Shows that nothing was answered yet, so that a first time can be seen.
    fn shown(self) -> Self {
        if let Some(usual) = self.answered.first() {
            usual.get_or_init(|| self.counter(200)).increment(0);
        }
        self
    }

    fn counter(&self, status: u16) -> Counter {
        let (api, method) = (self.api, self.method);
        counter!(REQUESTS, "api" => api, "method" => method, "status" => status.to_string())
    }

    /// Counts a request answered with `status` after `seconds`.
    pub fn answered(&self, status: u16, seconds: f64) {
        self.seconds.record(seconds);
        let known = STATUSES.iter().position(|s| *s == status);
        match known.and_then(|at| self.answered.get(at)) {
            Some(kept) => kept.get_or_init(|| self.counter(status)).increment(1),
            None => self.counter(status).increment(1),
        }
    }
}

/// The metrics of denied requests to one API.
#[derive(Debug)]
pub struct AccessMetrics {
    api: &'static str,
}

impl AccessMetrics {
    /// Creates the metrics of `api`.
    pub fn new(api: &'static str) -> Self {
        Self { api }
    }

    /// Initialises the counters to 0, so that the first increment can be alerted on.
    pub fn show(&self) {
        for reason in ["network", "credentials", "closed", "busy"] {
            self.denied(reason).absolute(0);
        }
    }

    /// Counts a request denied for `reason`.
    pub fn count(&self, reason: &'static str) {
        self.denied(reason).increment(1);
    }

    fn denied(&self, reason: &'static str) -> Counter {
        counter!(ACCESS_DENIED, "api" => self.api, "reason" => reason)
    }
}

/// Counts a connection or a request that gave way because `what` was full.
pub fn gave_way(what: &'static str) {
    counter!(GAVE_WAY, "what" => what).increment(1);
}

/// Counts a request that could not be read as HTTP.
pub fn not_http() {
    counter!(NOT_HTTP).increment(1);
}

/// Counts a log line that was dropped.
pub fn log_line_dropped() {
    counter!(LOG_LINES_DROPPED).increment(1);
}

/// Sets the gauges of what is in flight.
pub fn in_flight(requests: usize, bytes: usize) {
    for what in ["connection", "request", "bytes"] {
        counter!(GAVE_WAY, "what" => what).increment(0);
    }
    counter!(LOG_LINES_DROPPED).increment(0);
    counter!(NOT_HTTP).increment(0);
    gauge!(IN_FLIGHT_REQUESTS).set(requests as f64);
    gauge!(IN_FLIGHT_BYTES).set(bytes as f64);
}

/// Sets what all that is cached may weigh.
pub fn cache_limit(bytes: u64) {
    gauge!(CACHE_LIMIT).set(bytes as f64);
}

/// Sets when the certificate of `what` expires, in seconds of Unix time.
pub fn certificate_expiry(what: &str, expiry: u64) {
    gauge!(CERTIFICATE_EXPIRY, "what" => what.to_owned()).set(expiry as f64);
}

/// Reads what the operating system knows of this process; called when metrics are read.
pub fn observe_process() {
    metrics_process::Collector::default().collect();
}

/// Records whether the last reload of the files of `what` failed.
pub fn file_error(what: &str, bad: bool) {
    gauge!(FILE_ERRORS, "what" => what.to_owned()).set(if bad { 1.0 } else { 0.0 });
}

/// Records that the first configuration is in use since `now`, in milliseconds of Unix time.
pub fn configured(now: i64) {
    // A server without files has none that are wrong.
    gauge!(FILE_ERRORS, "what" => "server.tls").increment(0.0);
    for result in ["success", "failure"] {
        counter!(RELOADS, "result" => result).absolute(0);
    }
    in_use(now);
}

/// Records the result of a reload of the configuration at `now`, in milliseconds of Unix time.
pub fn reloaded(good: bool, now: i64) {
    counter!(RELOADS, "result" => if good { "success" } else { "failure" }).increment(1);
    match good {
        true => in_use(now),
        false => gauge!(RELOAD_OK).set(0.0),
    }
}

fn in_use(now: i64) {
    gauge!(RELOAD_OK).set(1.0);
    gauge!(RELOAD_TIME).set(now as f64 / 1000.0);
}
