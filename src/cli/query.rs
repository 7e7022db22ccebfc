//! `heliostat query`.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::Arc;

use bytes::Bytes;
use clap::Args;
use http::StatusCode;

use super::client::ServerConnection;
use super::view::{self, PlotRow};
use super::{block_on, complain, say, time, wrong};
use crate::app::App;
use crate::clock::{Clock, SystemClock};
use crate::config::{Config, ConfigError};
use crate::front::mirror::Method;
use crate::model::{
    Condition, Layout, MetricQuery, Millis, Number, Scalar, Selector, Statistic, Step, TargetUrl,
    Test, TimeRange,
};
use crate::upstream::Http;
use crate::wire::mirror::points::read_metric;
use crate::wire::mirror::request::{method, method_name, method_names, write_metric};

/// Buckets of a chart if no size is given.
const CHART_BUCKETS: i64 = 240;

/// The size of a chart if that of the terminal is unknown.
const WIDTH: usize = 100;
const HEIGHT: usize = 16;

/// Arguments of `heliostat query`.
#[derive(Debug, Args)]
pub(super) struct Query {
    /// Conditions, such as name=cpu.usage_percent or __gauge__=up; several values of one field, as
    /// in host=web-1,host=web-2, match any of them
    #[arg(value_name = "FIELD=VALUE", required = true)]
    conditions: Vec<String>,

    /// The range as a duration before now, such as 6h or 7d
    #[arg(long, default_value = "1h", value_name = "DURATION", conflicts_with_all = ["from", "to"])]
    last: String,

    /// Start of the range: -6h, 2026-11-21T12:00:00Z, or epoch milliseconds
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    from: Option<String>,

    /// End of the range, in the same forms [default: now]
    #[arg(
        long,
        value_name = "TIME",
        allow_hyphen_values = true,
        requires = "from"
    )]
    to: Option<String>,

    /// The aggregation of a bucket: MEAN, MAX, PERCENTILE_95, …
    #[arg(long, default_value = "MEAN", value_parser = statistic)]
    method: Statistic,

    /// Size of a bucket, such as 60s [default: one that suits the range]
    #[arg(long, value_name = "DURATION", conflicts_with = "raw")]
    bucket: Option<String>,

    /// Raw points instead of buckets
    #[arg(long)]
    raw: bool,

    /// Most points
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=2_147_483_647))]
    limit: Option<u32>,

    /// The name of the upstream to query [default: the default upstream]
    #[arg(long, value_name = "NAME")]
    upstream: Option<String>,

    /// The running server to query; with --config, no server is needed
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:7007")]
    server: String,

    #[command(flatten)]
    connection: ServerConnection,

    /// Print the answer unchanged
    #[arg(long, conflicts_with = "table")]
    json: bool,

    /// Print a table instead of a chart
    #[arg(long)]
    table: bool,
}

fn statistic(name: &str) -> Result<Statistic, String> {
    method(name).ok_or_else(|| format!("expected one of {}", method_names()))
}

/// An answer of a server.
struct QueryReply {
    status: StatusCode,
    cache: String,
    body: Bytes,
}

impl Query {
    /// Queries the running server or, with a configuration, the engine, and shows the answer on a
    /// terminal with `columns` columns.
    pub(super) fn run(
        &self,
        config: Option<Result<Config, ConfigError>>,
        columns: Option<usize>,
    ) -> ExitCode {
        let config = match config.transpose() {
            Ok(config) => config,
            Err(error) => return wrong(&error),
        };
        let now = SystemClock::default().now();
        let query = match self.query(now) {
            Ok(query) => query,
            Err(error) => {
                complain(&error);
                return ExitCode::from(2);
            }
        };
        let body = write_metric(&self.details(), &query);
        let asked = match config {
            Some(config) => block_on(ask_engine(&config, &body)),
            None => block_on(self.ask_server(body)),
        };
        let answer = asked.map_err(|e| e.to_string()).and_then(|a| a);
        match answer.and_then(|answer| self.show(&answer, &query, columns)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                complain(&error);
                ExitCode::FAILURE
            }
        }
    }

    fn details(&self) -> serde_json::Map<String, serde_json::Value> {
        let name = |name: &String| ("upstream".to_owned(), name.clone().into());
        self.upstream.iter().map(name).collect()
    }

    fn query(&self, now: Millis) -> Result<MetricQuery, String> {
        let range = self.range(now)?;
        let layout = if self.raw {
            Layout::Raw
        } else {
            Layout::Buckets {
                statistic: self.method,
                size: match &self.bucket {
                    Some(text) => time::duration(text).map_err(|e| format!("--bucket: {e}"))?,
                    None => suitable(range.millis()),
                },
            }
        };
        Ok(MetricQuery {
            selector: selector(&self.conditions)?,
            metric_field: None,
            range,
            limit: self.limit,
            layout,
        })
    }

    fn range(&self, now: Millis) -> Result<TimeRange, String> {
        let (from, to) = match &self.from {
            Some(from) => {
                let from = time::moment(from, now).map_err(|e| format!("--from: {e}"))?;
                let to = self.to.as_deref().unwrap_or("now");
                (
                    from,
                    time::moment(to, now).map_err(|e| format!("--to: {e}"))?,
                )
            }
            None => {
                let last = time::duration(&self.last).map_err(|e| format!("--last: {e}"))?;
                (now.saturating_sub(last.millis()).max(0), now)
            }
        };
        TimeRange::new(from, to).ok_or_else(|| "--from must not be after --to".to_owned())
    }

    async fn ask_server(&self, body: Vec<u8>) -> Result<QueryReply, String> {
        let server = TargetUrl::parse(&self.server).map_err(|e| format!("--server: {e}"))?;
        let url = server.join("/api/metric");
        let failed = |e: reqwest::Error| {
            format!(
                "cannot query {url}: {e}; is `heliostat serve` running? With --config FILE no server is needed"
            )
        };
        let client = self.connection.client(Http::builder())?;
        let request = client.post(&url).header("content-type", "application/json");
        let request = self.connection.shown(request)?;
        let response = request.body(body).send().await.map_err(failed)?;
        let cache = response.headers().get("cache-status");
        let cache = cache.and_then(|v| v.to_str().ok()).unwrap_or_default();
        Ok(QueryReply {
            status: response.status(),
            cache: cache.to_owned(),
            body: response.bytes().await.map_err(failed)?,
        })
    }

    fn show(
        &self,
        answer: &QueryReply,
        query: &MetricQuery,
        columns: Option<usize>,
    ) -> Result<(), String> {
        if answer.status != StatusCode::OK {
            let text = String::from_utf8_lossy(&answer.body);
            return Err(format!("HTTP {}: {text}", answer.status.as_u16()));
        }
        if self.json {
            say(&answer.body);
            say("\n");
            return Ok(());
        }
        let telemetry = read_metric(&answer.body).map_err(|e| e.to_string())?;
        let ends: Vec<Option<Millis>> = match telemetry.ends {
            Some(ends) => ends.into_iter().map(Some).collect(),
            None => vec![None; telemetry.times.len()],
        };
        let rows = telemetry.times.into_iter().zip(ends).zip(telemetry.values);
        let rows: Vec<PlotRow> = rows
            .map(|((start, end), value)| PlotRow { start, end, value })
            .collect();
        if self.table {
            say(&view::table(&rows));
        } else {
            say(&view::chart(
                &rows,
                &self.title(query),
                columns.unwrap_or(WIDTH),
                HEIGHT,
            ));
        }
        if telemetry.partial {
            say("The answer is truncated (isPartial).\n");
        }
        if std::io::stdout().is_terminal() && !answer.cache.is_empty() {
            say(&format!("Cache-Status: {}\n", answer.cache));
        }
        Ok(())
    }

    fn title(&self, query: &MetricQuery) -> String {
        let what = match query.layout {
            Layout::Raw => "raw".to_owned(),
            Layout::Buckets { statistic, size } => {
                format!(
                    "{} of {} s",
                    method_name(statistic),
                    size.millis() as f64 / 1000.0
                )
            }
        };
        format!("{}, {what}", self.conditions.join(" "))
    }
}

/// Returns a round bucket size for a chart of `range` milliseconds.
fn suitable(range: Millis) -> Step {
    const ROUND: [Millis; 13] = [
        15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 21_600, 43_200, 86_400,
    ];
    let seconds = range / CHART_BUCKETS / 1000;
    let round = ROUND.into_iter().find(|r| *r >= seconds).unwrap_or(86_400);
    Step::SECOND.times(u32::try_from(round).unwrap_or(60))
}

/// Parses the conditions. Values that look like numbers or booleans stay text, because most fields
/// are text; `field:=value` gives the value its own type.
fn selector(conditions: &[String]) -> Result<Selector, String> {
    let mut parsed: Vec<Condition> = Vec::new();
    for text in conditions {
        let (key, value, typed) = match (text.split_once(":="), text.split_once('=')) {
            (Some((key, value)), _) if !key.contains('=') => (key, value, true),
            (_, Some((key, value))) => (key, value, false),
            _ => {
                return Err(format!(
                    "{text:?} is not a condition; write it as FIELD=VALUE"
                ));
            }
        };
        if key.is_empty() {
            return Err(format!("{text:?} names no field; write it as FIELD=VALUE"));
        }
        let value = match (typed, value.parse::<bool>(), value.parse().map(Number::new)) {
            (true, Ok(b), _) => Scalar::Bool(b),
            (true, _, Ok(Some(n))) => Scalar::Number(n),
            _ => Scalar::String(value.to_owned()),
        };
        match parsed.iter_mut().find(|c| c.key == key) {
            Some(condition) => {
                let mut values = condition.test.values().to_vec();
                values.push(value);
                condition.test = Test::In(values);
            }
            None => parsed.push(Condition {
                key: key.to_owned(),
                test: Test::Is(value),
            }),
        }
    }
    Ok(Selector::new(parsed))
}

/// Queries an engine in this process, without a server.
async fn ask_engine(config: &Config, body: &[u8]) -> Result<QueryReply, String> {
    let clock = Arc::new(SystemClock::default());
    let app = App::build(config, clock).await.map_err(|e| e.to_string())?;
    let response = app.front.ask(Method::Metric, body).await;
    Ok(QueryReply {
        status: response.status(),
        cache: String::new(),
        body: response.into_body().into_bytes(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_are_typed_as_field_and_value() {
        let typed = |texts: &[&str]| {
            let texts: Vec<String> = texts.iter().map(|t| (*t).to_owned()).collect();
            selector(&texts).map(|s| format!("{:?}", s.conditions()))
        };
        assert!(typed(&["a=1"]).unwrap().contains("Is(String(\"1\"))"));
        assert!(
            typed(&["a:=1"])
                .unwrap()
                .contains("Is(Number(Number(1.0)))")
        );
        assert!(typed(&["a:=true"]).unwrap().contains("Is(Bool(true))"));
        assert!(typed(&["~=rate(x[5m])"]).unwrap().contains("rate(x[5m])"));
        assert!(typed(&["~=a{b=\"c\"}"]).unwrap().contains("a{b="));
        assert!(
            typed(&["a=1", "a=2"])
                .unwrap()
                .contains("In([String(\"1\"), String(\"2\")])")
        );
        assert!(typed(&["a"]).is_err() && typed(&["=a"]).is_err());
    }

    #[test]
    fn a_chart_has_round_buckets() {
        assert_eq!(suitable(3_600_000).millis(), 15_000);
        assert_eq!(suitable(6 * 3_600_000).millis(), 120_000);
        assert_eq!(suitable(7 * 86_400_000).millis(), 3_600_000);
    }
}
