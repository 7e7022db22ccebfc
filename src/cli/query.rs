//! `heliostat query`.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Args;
use http::StatusCode;
use serde_json::{Map, Value};

use super::client::{Reply, ServerConnection};
use super::expression;
use super::fields;
use super::source::Source;
use super::terminal::Look;
use super::view::{self, Plot, PlotRow};
use super::{complain, say, time};
use crate::clock::{Clock, SystemClock};
use crate::front::mirror::Method;
use crate::model::{
    Condition, Layout, MetricQuery, Millis, Number, Scalar, Selector, Statistic, Step, Test,
    TimeRange,
};
use crate::wire::mirror::points::read_metric;
use crate::wire::mirror::request::{method, method_name, method_names, write_metric};

/// The number of buckets in a chart if no size is given.
const CHART_BUCKETS: i64 = 240;

/// The height of a chart, in lines.
const HEIGHT: usize = 16;

pub(super) const EXAMPLES: &str = "Examples:
  heliostat query name=cpu.usage_percent host=web-1
  heliostat query --last 7d --method MAX --table name=cpu.usage_percent host=web-1
  heliostat query --upstream prom --last 6h __gauge__=node_load1
  heliostat query --upstream prom --last 6h --expr 'sum by (job) (rate(http_requests_total[5m]))'
  heliostat query --from 2026-11-21T00:00 --to 2026-11-22T00:00 --csv name=cpu.usage_percent
  heliostat query --config config.toml --last 1h name=cpu.usage_percent";

/// The series and the range to query.
#[derive(Debug, Args)]
pub(super) struct Asked {
    /// Conditions, such as name=cpu.usage_percent or __gauge__=up; several values of one field,
    /// such as host=web-1,host=web-2, match any of them
    #[arg(value_name = "FIELD=VALUE", required_unless_present = "expr")]
    pub(super) conditions: Vec<String>,

    /// An expression of PromQL instead of conditions, for an upstream that has the Prometheus API
    #[arg(long, value_name = "PROMQL", conflicts_with_all = ["conditions", "raw", "limit"])]
    pub(super) expr: Option<String>,

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

    /// Aggregation of a bucket: MEAN, MAX, PERCENTILE_95, …
    #[arg(long, default_value = "MEAN", value_parser = statistic)]
    method: Statistic,

    /// Size of a bucket, or the step of an expression, such as 60s [default: one that suits the range]
    #[arg(long, value_name = "DURATION", conflicts_with = "raw")]
    bucket: Option<String>,

    /// The points themselves instead of buckets
    #[arg(long)]
    raw: bool,

    /// Most points
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=2_147_483_647))]
    limit: Option<u32>,

    /// The upstream to ask, by name [default: the default upstream]
    #[arg(long, value_name = "NAME")]
    pub(super) upstream: Option<String>,
}

/// One query for metric values.
#[derive(Debug, Args)]
pub(super) struct Query {
    #[command(flatten)]
    asked: Asked,

    #[command(flatten)]
    connection: ServerConnection,

    #[command(flatten)]
    look: Look,

    /// Print the answer unchanged
    #[arg(long, conflicts_with_all = ["table", "csv"])]
    json: bool,

    /// Print a table instead of a chart
    #[arg(long, conflicts_with = "csv")]
    table: bool,

    /// Print comma-separated values, with exact numbers
    #[arg(long)]
    csv: bool,
}

fn statistic(name: &str) -> Result<Statistic, String> {
    method(name).ok_or_else(|| format!("expected one of {}", method_names()))
}

/// Series with their names.
pub(super) type NamedSeries = Vec<(String, Vec<PlotRow>)>;

impl Asked {
    /// Returns the connection details that name the upstream.
    pub(super) fn details(&self) -> Map<String, Value> {
        let name = |name: &String| ("upstream".to_owned(), name.clone().into());
        self.upstream.iter().map(name).collect()
    }

    /// Returns the body of the request for metric values, and the query in it.
    pub(super) fn metric(&self) -> Result<(Vec<u8>, MetricQuery), String> {
        let range = self.range()?;
        let layout = if self.raw {
            Layout::Raw
        } else {
            Layout::Buckets {
                statistic: self.method,
                size: self.step(&range)?,
            }
        };
        let query = MetricQuery {
            selector: selector(&self.conditions)?,
            metric_field: None,
            range,
            limit: self.limit,
            layout,
        };
        Ok((write_metric(&self.details(), &query), query))
    }

    /// Returns the size of a bucket, or the step of an expression, in `range`.
    pub(super) fn step(&self, range: &TimeRange) -> Result<Step, String> {
        match &self.bucket {
            Some(text) => time::duration(text).map_err(|e| format!("--bucket: {e}")),
            None => Ok(suitable(range.millis())),
        }
    }

    /// Returns the range to query.
    pub(super) fn range(&self) -> Result<TimeRange, String> {
        let now = SystemClock::default().now();
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
}

/// A failure and the exit status to end with.
pub(super) type Failed = (u8, String);

/// Returns the failure for an invalid argument.
pub(super) fn typed(error: String) -> Failed {
    (2, error)
}

/// Returns the failure for a query that did not succeed.
pub(super) fn failed(error: String) -> Failed {
    (1, error)
}

/// Prints the error, if there is one, and returns the exit status.
pub(super) fn ended(outcome: Result<(), Failed>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err((status, error)) => {
            complain(&error);
            ExitCode::from(status)
        }
    }
}

impl Query {
    /// Queries `source` and shows the answer.
    pub(super) fn run(&self, source: &Source, env: &BTreeMap<String, String>) -> ExitCode {
        ended(self.outcome(source, env))
    }

    fn outcome(&self, source: &Source, env: &BTreeMap<String, String>) -> Result<(), Failed> {
        if let Some(expr) = &self.asked.expr {
            let range = self.asked.range().map_err(typed)?;
            let step = self.asked.step(&range).map_err(typed)?;
            let path = expression::path(self.asked.upstream.as_deref(), expr, &range, step);
            let reply = source.get(&self.connection, &path).map_err(failed)?;
            let reply = reply.accepted().map_err(failed)?;
            if self.json {
                return shown_as_it_came(&reply);
            }
            let series = expression::read(&reply.body).map_err(failed)?;
            let title = format!("{expr}, step {}", time::span_text(step.millis()));
            self.show(&series, title, &range, env);
            said_of_the_cache(&reply);
            return Ok(());
        }
        let (body, query) = self.asked.metric().map_err(typed)?;
        let reply = source.mirror(&self.connection, Method::Metric, body);
        let reply = reply.map_err(failed)?;
        let missing = matches!(
            reply.status,
            StatusCode::NOT_FOUND | StatusCode::BAD_REQUEST
        );
        if missing && let Some(error) = self.unknown_field(source, &query) {
            return Err(failed(error));
        }
        let reply = reply.accepted().map_err(failed)?;
        if self.json {
            return shown_as_it_came(&reply);
        }
        let telemetry = read_metric(&reply.body).map_err(|e| failed(e.to_string()))?;
        let ends: Vec<Option<Millis>> = match telemetry.ends {
            Some(ends) => ends.into_iter().map(Some).collect(),
            None => vec![None; telemetry.times.len()],
        };
        let rows = telemetry.times.into_iter().zip(ends).zip(telemetry.values);
        let rows: Vec<PlotRow> = rows
            .map(|((start, end), value)| PlotRow { start, end, value })
            .collect();
        if rows.is_empty()
            && let Some(error) = self.unknown_field(source, &query)
        {
            return Err(failed(error));
        }
        let series = vec![(self.asked.conditions.join(" "), rows)];
        self.show(&series, self.title(&query), &query.range, env);
        if telemetry.partial {
            say("The answer is truncated (isPartial).\n");
        }
        said_of_the_cache(&reply);
        Ok(())
    }

    fn show(
        &self,
        series: &NamedSeries,
        title: String,
        range: &TimeRange,
        env: &BTreeMap<String, String>,
    ) {
        if self.csv {
            say(&view::csv(series));
        } else if self.table {
            say(&view::table(series));
        } else {
            say(&view::chart(&Plot {
                title,
                series,
                range: Some((range.start(), range.end())),
                width: self.look.width(env),
                height: HEIGHT,
                coloured: self.look.coloured(env),
            }));
        }
    }

    /// Returns which field of the query the upstream does not have, and which ones it has.
    fn unknown_field(&self, source: &Source, query: &MetricQuery) -> Option<String> {
        let known = fields::names(source, &self.connection, &self.asked.details(), &[]);
        let known = known.ok()?;
        let names: Vec<&str> = known
            .fields
            .iter()
            .map(|field| field.name.as_str())
            .collect();
        let mut asked = query.selector.conditions().iter().map(|c| c.key.as_str());
        let unknown = asked.find(|key| !names.contains(key))?;
        // An incomplete list proves nothing.
        (!known.partial).then(|| {
            let unknown = view::plain_text(unknown);
            let names = view::plain_text(&names.join(", "));
            format!("unknown field {unknown:?}; there are: {names}")
        })
    }

    fn title(&self, query: &MetricQuery) -> String {
        let what = match query.layout {
            Layout::Raw => "raw".to_owned(),
            Layout::Buckets { statistic, size } => {
                let size = time::span_text(size.millis());
                format!("{} of {size}", method_name(statistic))
            }
        };
        format!("{}, {what}", self.asked.conditions.join(" "))
    }
}

fn shown_as_it_came(reply: &Reply) -> Result<(), Failed> {
    say(&reply.body);
    say("\n");
    Ok(())
}

fn said_of_the_cache(reply: &Reply) {
    if std::io::stdout().is_terminal() && !reply.cache.is_empty() {
        say(&format!("Cache-Status: {}\n", reply.cache));
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
pub(super) fn selector(conditions: &[String]) -> Result<Selector, String> {
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
