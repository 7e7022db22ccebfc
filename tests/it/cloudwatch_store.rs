//! A CloudWatch that behaves as AWS' documentation says: it checks signatures, counts periods from
//! `StartTime`, keeps old data at lower resolution, pages, meters its use, and fails as instructed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};

use heliostat::clock::Clock;
use serde_json::{Value, json};

use crate::scripted::{Answer, Scripted, Seen};
use crate::sigv4::verify;
use crate::support::TestClock;

pub(crate) const SECOND: i64 = 1000;
pub(crate) const MINUTE: i64 = 60 * SECOND;
pub(crate) const HOUR: i64 = 60 * MINUTE;
pub(crate) const DAY: i64 = 24 * HOUR;

pub(crate) const KEY: &str = "AKIDOFTHESTORE";
pub(crate) const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
const REGION: &str = "eu-west-1";

/// A metric: its namespace, its name, and its dimensions.
pub(crate) type Metric = (String, String, BTreeMap<String, String>);

/// A sample, and the time from which it is visible.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    pub(crate) time: i64,
    pub(crate) value: f64,
    pub(crate) seen: i64,
}

/// The fault of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// HTTP 400, as AWS reports throttling.
    Throttled,
    /// HTTP 500.
    Failed,
    /// HTTP 403, as for a policy that lacks a permission.
    Denied,
    /// One query fails, the others do not.
    InternalError,
    /// One query is not allowed.
    Forbidden,
    /// The call ends in the middle, without a token.
    Partial,
    /// Time stamps that were not requested.
    OffGrid,
    /// One query is not answered.
    Missing,
    /// The token of the second page has expired.
    BadToken,
}

#[derive(Default)]
struct Inner {
    samples: BTreeMap<Metric, Vec<Sample>>,
    /// Troubles of the next calls of GetMetricData.
    troubles: VecDeque<Option<Trouble>>,
    /// Names of metrics for which every call is refused.
    bad: BTreeSet<String>,
    /// Whether answers of GetMetricData wait to be let through.
    gated: bool,
    /// Points per page.
    page: usize,
    units: u64,
    calls: u64,
    lists: u64,
    /// Mistakes in calls that AWS would refuse.
    faults: Vec<String>,
}

/// The store. It stops when dropped.
pub(crate) struct CloudWatchStore {
    inner: Arc<Mutex<Inner>>,
    pub(crate) peer: Scripted,
}

/// A series of an answer.
struct Series {
    id: String,
    label: String,
    points: Vec<(i64, f64)>,
}

/// Returns the metric of this name, with dimensions from pairs.
pub(crate) fn metric_of(namespace: &str, name: &str, dimensions: &[(&str, &str)]) -> Metric {
    let dimensions = dimensions.iter();
    let dimensions = dimensions.map(|(n, v)| (n.to_string(), v.to_string()));
    (namespace.to_owned(), name.to_owned(), dimensions.collect())
}

impl CloudWatchStore {
    pub(crate) async fn start(clock: Arc<TestClock>) -> Self {
        let inner = Arc::new(Mutex::new(Inner {
            page: 100_800,
            ..Inner::default()
        }));
        let (shared, now) = (inner.clone(), clock.clone());
        let peer = Scripted::start(clock, move |_, seen| {
            shared.lock().unwrap().answer(seen, now.now())
        })
        .await;
        Self { inner, peer }
    }

    /// Returns a section of the configuration for this store, with `more` keys.
    pub(crate) fn section(&self, name: &str, more: &str) -> String {
        format!(
            "[[upstream]]\nname = {name:?}\nkind = \"cloudwatch\"\nurls = [{:?}]\naws = {{ region = \"{REGION}\", access_key = \"{KEY}\", secret_key = \"{SECRET}\" }}\nrate_limit = {{ per_second = 100000, burst = 100000 }}\n{more}\n",
            self.peer.url
        )
    }

    pub(crate) fn put(&self, metric: &Metric, samples: impl IntoIterator<Item = Sample>) {
        let mut inner = self.inner.lock().unwrap();
        let all = inner.samples.entry(metric.clone()).or_default();
        all.extend(samples);
        all.sort_by_key(|s| s.time);
    }

    /// Forgets `metric`.
    pub(crate) fn remove(&self, metric: &Metric) {
        self.inner.lock().unwrap().samples.remove(metric);
    }

    /// Adds samples that are visible at once.
    pub(crate) fn put_now(&self, metric: &Metric, samples: impl IntoIterator<Item = (i64, f64)>) {
        let samples = samples.into_iter();
        self.put(
            metric,
            samples.map(|(time, value)| Sample {
                time,
                value,
                seen: time,
            }),
        );
    }

    /// Sets the troubles of the next calls of GetMetricData.
    pub(crate) fn trouble(&self, troubles: impl IntoIterator<Item = Option<Trouble>>) {
        self.inner.lock().unwrap().troubles.extend(troubles);
    }

    /// Sets whether answers of GetMetricData wait to be let through.
    pub(crate) fn gate(&self, gated: bool) {
        self.inner.lock().unwrap().gated = gated;
    }

    pub(crate) fn page(&self, points: usize) {
        self.inner.lock().unwrap().page = points;
    }

    /// Refuses calls with a metric of this name from now on.
    pub(crate) fn refuse(&self, name: &str) {
        self.inner.lock().unwrap().bad.insert(name.to_owned());
    }

    /// Returns the units and calls of GetMetricData so far, and the calls of ListMetrics.
    pub(crate) fn metered(&self) -> (u64, u64, u64) {
        let inner = self.inner.lock().unwrap();
        assert_eq!(inner.faults, Vec::<String>::new());
        (inner.units, inner.calls, inner.lists)
    }

    /// Returns the samples of `metric` that are visible at `now`.
    pub(crate) fn visible(&self, metric: &Metric, now: i64) -> Vec<(i64, f64)> {
        let inner = self.inner.lock().unwrap();
        let all = inner.samples.get(metric).into_iter().flatten();
        let seen = all.filter(|s| s.seen <= now);
        seen.map(|s| (s.time, s.value)).collect()
    }
}

/// Returns the finest period that is kept of data of this `age`.
pub(crate) fn finest(age: i64) -> Option<i64> {
    match age {
        a if a <= 3 * HOUR => Some(SECOND),
        a if a <= 15 * DAY => Some(MINUTE),
        a if a <= 63 * DAY => Some(5 * MINUTE),
        a if a <= 455 * DAY => Some(HOUR),
        _ => None,
    }
}

/// A statistic of `values`, which are not empty.
pub(crate) fn statistic(name: &str, values: &[f64]) -> f64 {
    match name {
        "Sum" => values.iter().sum(),
        "SampleCount" => values.len() as f64,
        "Average" => values.iter().sum::<f64>() / values.len() as f64,
        "Minimum" => values.iter().copied().fold(f64::INFINITY, f64::min),
        "Maximum" => values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        percentile => {
            let p: f64 = percentile
                .trim_start_matches(['p', 't', 'm'])
                .parse()
                .unwrap();
            let mut sorted = values.to_vec();
            sorted.sort_by(f64::total_cmp);
            let rank = p / 100.0 * (sorted.len() - 1) as f64;
            let (low, high) = (rank.floor() as usize, rank.ceil() as usize);
            sorted[low] * (1.0 - rank.fract()) + sorted[high] * rank.fract()
        }
    }
}

fn error(status: u16, code: &str, message: &str) -> Answer {
    Answer {
        status,
        headers: [("x-amzn-query-error".to_owned(), format!("{code};Sender"))].into(),
        ..Answer::json(
            json!({ "__type": format!("com.amazonaws.cloudwatch#{code}"), "message": message }),
        )
    }
}

impl Inner {
    fn answer(&mut self, seen: &Seen, now: i64) -> Answer {
        match verify(seen, SECRET, REGION, "monitoring") {
            Ok(id) if id == KEY => {}
            Ok(_) => {
                return error(
                    403,
                    "UnrecognizedClientException",
                    "The security token is invalid.",
                );
            }
            Err(e) => return error(403, "SignatureDoesNotMatch", &e),
        }
        let kind = seen.headers.get("content-type").map(String::as_str);
        if kind != Some("application/x-amz-json-1.0") || seen.method != "POST" || seen.path != "/" {
            return error(400, "UnknownOperationException", "no such operation");
        }
        let body = seen.json();
        match seen.headers.get("x-amz-target").map(String::as_str) {
            Some("GraniteServiceVersion20100801.GetMetricData") => Answer {
                gate: self.gated,
                ..self.data(&body, now)
            },
            Some("GraniteServiceVersion20100801.ListMetrics") => self.list(&body, now),
            _ => error(400, "UnknownOperationException", "no such operation"),
        }
    }

    fn data(&mut self, body: &Value, now: i64) -> Answer {
        self.calls += 1;
        let trouble = self.troubles.pop_front().flatten();
        match trouble {
            Some(Trouble::Throttled) => return error(400, "Throttling", "Rate exceeded"),
            Some(Trouble::Failed) => return error(500, "InternalFailure", "try again"),
            Some(Trouble::Denied) => {
                return error(
                    403,
                    "AccessDenied",
                    "User: u is not authorized to perform: cloudwatch:GetMetricData",
                );
            }
            _ => {}
        }
        let queries = body["MetricDataQueries"].as_array().unwrap();
        if queries.is_empty() || queries.len() > 500 {
            return error(400, "ValidationError", "1 to 500 queries are allowed");
        }
        let seconds = |key: &str| (body[key].as_f64().unwrap() * 1000.0) as i64;
        let (asked, end) = (seconds("StartTime"), seconds("EndTime"));
        if asked >= end {
            return error(400, "ValidationError", "StartTime must be before EndTime");
        }
        let age = now - asked;
        let round = match age {
            a if a < 15 * DAY => MINUTE,
            a if a < 63 * DAY => 5 * MINUTE,
            _ => HOUR,
        };
        let start = match age {
            // In the last hours, the requested one.
            a if a <= 3 * HOUR => asked,
            _ => asked - asked.rem_euclid(round),
        };
        // One unit for up to five statistics of a metric and period.
        let mut billed: BTreeMap<(Metric, i64), BTreeSet<String>> = BTreeMap::new();
        let mut results = Vec::new();
        for query in queries {
            if let Some(text) = query["Expression"].as_str() {
                if queries.len() > 1 {
                    self.faults.push("an expression beside others".into());
                }
                let period = query["Period"].as_i64().unwrap() * SECOND;
                return match self.evaluate(text, period, (start, end), now) {
                    Ok((results, units, messages)) => {
                        self.units += units;
                        self.pages(body, results, &messages, trouble)
                    }
                    Err(message) => error(400, "ValidationError", &message),
                };
            }
            let stat = &query["MetricStat"];
            let period = stat["Period"].as_i64().unwrap() * SECOND;
            if !matches!(period, 1000 | 5000 | 10_000 | 20_000 | 30_000) && period % MINUTE != 0 {
                return error(400, "ValidationError", "Period must be a multiple of 60");
            }
            let metric = &stat["Metric"];
            let dimensions = metric["Dimensions"].as_array().unwrap().iter();
            let dimensions = dimensions.map(|d| {
                let text = |key: &str| d[key].as_str().unwrap().to_owned();
                (text("Name"), text("Value"))
            });
            let key: Metric = (
                metric["Namespace"].as_str().unwrap().to_owned(),
                metric["MetricName"].as_str().unwrap().to_owned(),
                dimensions.collect(),
            );
            if self.bad.contains(&key.1) {
                return error(
                    400,
                    "InvalidParameterValue",
                    "The metric is not one that can be asked for",
                );
            }
            let name = stat["Stat"].as_str().unwrap().to_owned();
            let points = self.points(&key, &name, period, start, end, now);
            billed.entry((key, period)).or_default().insert(name);
            results.push(Series {
                id: query["Id"].as_str().unwrap().to_owned(),
                label: "x".to_owned(),
                points,
            });
        }
        let units: u64 = billed.values().map(|s| s.len().div_ceil(5) as u64).sum();
        self.units += units;
        self.pages(body, results, &json!([]), trouble)
    }

    /// The series of an expression, the metrics that are billed for it, and messages about it:
    /// `SEARCH('{NAMESPACE,DIMENSION…} KEY="VALUE"…', 'STATISTIC'[, SECONDS])`, as it is or in `SUM(…)`.
    fn evaluate(
        &self,
        text: &str,
        period: i64,
        (start, end): (i64, i64),
        now: i64,
    ) -> Result<(Vec<Series>, u64, Value), String> {
        let (text, summed) = match text.strip_prefix("SUM(").and_then(|t| t.strip_suffix(')')) {
            Some(inner) => (inner, true),
            None => (text, false),
        };
        let wrong = || format!("Error in expression: {text}");
        let inner = text
            .strip_prefix("SEARCH('")
            .and_then(|t| t.strip_suffix(')'));
        let (terms, rest) = inner.and_then(|t| t.split_once("',")).ok_or_else(wrong)?;
        let mut rest = rest.split('\'').skip(1);
        let name = rest.next().ok_or_else(wrong)?;
        let own = rest
            .next()
            .unwrap_or_default()
            .trim_start_matches([',', ' ']);
        let period = own
            .parse::<i64>()
            .map_or(period, |seconds| seconds * SECOND);
        let (schema, terms) = terms
            .strip_prefix('{')
            .and_then(|t| t.split_once('}'))
            .ok_or_else(wrong)?;
        let (namespace, dimensions) = schema.split_once(',').unwrap_or((schema, ""));
        let dimensions: BTreeSet<&str> = dimensions.split(',').filter(|d| !d.is_empty()).collect();
        let terms = terms
            .split_whitespace()
            .map(|term| term.split_once('=').ok_or_else(wrong));
        let terms = terms.collect::<Result<Vec<_>, _>>()?;
        let found = self.samples.keys().filter(|(space, metric, own)| {
            let value = |key: &str| match key {
                "MetricName" => Some(metric.as_str()),
                _ => own.get(key).map(String::as_str),
            };
            let fits = |(key, wanted): &(&str, &str)| value(key) == Some(wanted.trim_matches('"'));
            let names: BTreeSet<&str> = own.keys().map(String::as_str).collect();
            space == namespace && names == dimensions && terms.iter().all(fits)
        });
        let found: Vec<_> = found.collect();
        let messages = match found.len() > 500 {
            true => {
                json!([{ "Code": "MaxMetricsExceeded", "Value": "The maximum number of allowed metrics, 500, has been exceeded" }])
            }
            false => json!([]),
        };
        let series = found.iter().take(500).map(|metric| Series {
            id: "q0".to_owned(),
            label: metric.2.values().cloned().collect::<Vec<_>>().join(" "),
            points: self.points(metric, name, period, start, end, now),
        });
        let series: Vec<Series> = series.collect();
        let units = series.len() as u64;
        if !summed {
            return Ok((series, units, messages));
        }
        let mut sums: BTreeMap<i64, f64> = BTreeMap::new();
        for (t, v) in series.iter().flat_map(|s| &s.points) {
            *sums.entry(*t).or_default() += v;
        }
        let sum = Series {
            id: "q0".to_owned(),
            label: "sum".to_owned(),
            points: sums.into_iter().collect(),
        };
        Ok((vec![sum], units, messages))
    }

    /// Returns the points of a query: each period, counted from `start`, of which data this fine is
    /// kept.
    fn points(
        &self,
        metric: &Metric,
        name: &str,
        period: i64,
        start: i64,
        end: i64,
        now: i64,
    ) -> Vec<(i64, f64)> {
        let mut buckets: BTreeMap<i64, Vec<f64>> = BTreeMap::new();
        for sample in self.samples.get(metric).into_iter().flatten() {
            if sample.seen <= now && (start..end).contains(&sample.time) {
                let bucket = sample.time - (sample.time - start).rem_euclid(period);
                buckets.entry(bucket).or_default().push(sample.value);
            }
        }
        let kept = |t: &i64| finest(now - t).is_some_and(|f| period >= f && period % f == 0);
        let buckets = buckets.into_iter().filter(|(t, _)| kept(t));
        buckets
            .map(|(t, values)| (t, statistic(name, &values)))
            .collect()
    }

    fn pages(
        &mut self,
        body: &Value,
        results: Vec<Series>,
        messages: &Value,
        trouble: Option<Trouble>,
    ) -> Answer {
        let most = (body["MaxDatapoints"].as_u64().unwrap_or(100_800) as usize).min(self.page);
        let from: usize = match body["NextToken"].as_str() {
            None => 0,
            Some(_) if trouble == Some(Trouble::BadToken) => {
                return error(400, "InvalidNextToken", "The token has expired");
            }
            Some(token) => token.strip_prefix("from-").unwrap().parse().unwrap(),
        };
        let total: usize = results.iter().map(|series| series.points.len()).sum();
        let (mut skip, mut room) = (from, most);
        let mut answered = Vec::new();
        let mut first = true;
        for Series { id, label, points } in results {
            let here: Vec<_> = points.iter().skip(skip).take(room).copied().collect();
            let done = skip + here.len() >= points.len();
            skip = skip.saturating_sub(points.len());
            room -= here.len();
            let special = std::mem::take(&mut first);
            if special && trouble == Some(Trouble::Missing) {
                continue;
            }
            let shift = i64::from(special && trouble == Some(Trouble::OffGrid)) * 7 * SECOND;
            let status = match trouble {
                Some(Trouble::InternalError) if special => "InternalError",
                Some(Trouble::Forbidden) if special => "Forbidden",
                Some(Trouble::Partial) if special => "PartialData",
                _ if done => "Complete",
                _ => "PartialData",
            };
            let failed = matches!(status, "InternalError" | "Forbidden");
            let here = if failed { Vec::new() } else { here };
            answered.push(json!({
                "Id": id, "Label": label, "StatusCode": status,
                "Timestamps": here.iter().map(|p| (p.0 + shift) as f64 / 1000.0).collect::<Vec<_>>(),
                "Values": here.iter().map(|p| p.1).collect::<Vec<_>>(),
            }));
        }
        let mut answer = json!({ "MetricDataResults": answered, "Messages": messages });
        if from + most < total && trouble != Some(Trouble::Partial) {
            answer["NextToken"] = json!(format!("from-{}", from + most));
        }
        Answer::json(answer)
    }

    fn list(&mut self, body: &Value, now: i64) -> Answer {
        self.lists += 1;
        let is = |key: &str, value: &str| body[key].as_str().is_none_or(|wanted| wanted == value);
        let dimensions = body["Dimensions"].as_array().cloned().unwrap_or_default();
        if dimensions.len() > 10 {
            return error(400, "InvalidParameterValue", "at most 10 dimensions");
        }
        let recent = body["RecentlyActive"].as_str() == Some("PT3H");
        let found = self
            .samples
            .iter()
            .filter(|((namespace, name, own), samples)| {
                let has = dimensions.iter().all(|d| {
                    let value = own.get(d["Name"].as_str().unwrap());
                    value.is_some_and(|v| d["Value"].as_str().is_none_or(|wanted| wanted == v))
                });
                let active = samples.iter().any(|s| s.time > now - 3 * HOUR);
                is("Namespace", namespace) && is("MetricName", name) && has && (active || !recent)
            });
        let found: Vec<&Metric> = found.map(|(metric, _)| metric).collect();
        let from: usize = body["NextToken"].as_str().map_or(0, |t| t.parse().unwrap());
        let page = found.iter().skip(from).take(500);
        let page = page.map(|(namespace, name, own)| {
            let own = own.iter().map(|(n, v)| json!({ "Name": n, "Value": v }));
            let own: Vec<Value> = own.collect();
            json!({ "Namespace": namespace, "MetricName": name, "Dimensions": own })
        });
        let page: Vec<Value> = page.collect();
        let mut answer = json!({ "Metrics": page });
        if from + 500 < found.len() {
            answer["NextToken"] = json!((from + 500).to_string());
        }
        Answer::json(answer)
    }
}
