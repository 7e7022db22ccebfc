//! Answers of CloudWatch to `GetMetricData`.

use std::fmt;

use http::StatusCode;
use serde::Deserialize;
use serde::de::{self, Deserializer};

use super::call::StatisticsQuery;
use crate::adapters::aws_error::AwsError;
use crate::adapters::{Data, Dropped, FetchResult, Response, garbage, quoted};
use crate::model::{Error, Evidence, Kind, Millis, NanInterpretation, Points, TimeRange};

/// One page.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Page {
    pub(super) metric_data_results: Vec<Part>,
    pub(super) next_token: Option<String>,
    /// Messages about the call as a whole.
    #[serde(default)]
    pub(super) messages: Vec<Message>,
}

/// The points of one query that a page has.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Part {
    id: String,
    /// The name of the series, where the query is an expression.
    #[serde(default)]
    pub(super) label: String,
    #[serde(default)]
    timestamps: Vec<Time>,
    #[serde(default)]
    values: Vec<Value>,
    #[serde(default)]
    pub(super) status_code: String,
    #[serde(default)]
    messages: Vec<Message>,
}

impl Part {
    /// Returns its points, as they are in the answer.
    pub(super) fn points(&self) -> impl Iterator<Item = (Millis, f64)> {
        let times = self.timestamps.iter().map(|t| t.0);
        times.zip(self.values.iter().map(|v| v.0))
    }

    /// Returns the error in place of its points, if there is one.
    pub(super) fn refused(&self) -> Option<Error> {
        let failed = |what: &str| {
            let said: Vec<String> = self.messages.iter().map(Message::to_string).collect();
            let said: String = said.join("; ").chars().take(300).collect();
            Error::new(Kind::UpstreamFailed, format!("{what} {said}"))
        };
        match &*self.status_code {
            "InternalError" => {
                Some(failed("CloudWatch failed at the metric:").shows(Evidence::Address))
            }
            "Forbidden" => Some(failed("CloudWatch refuses the metric:")),
            _ => None,
        }
    }
}

/// A message of CloudWatch about a query or a call.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Message {
    #[serde(default)]
    code: String,
    #[serde(default)]
    value: String,
}

impl Message {
    /// Returns whether it says that something was left out, as there is too much of it.
    pub(super) fn is_about_limits(&self) -> bool {
        let exceeds = |text: &str| text.to_ascii_lowercase().contains("exceed");
        exceeds(&self.code) || exceeds(&self.value)
    }
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!("{}: {}", self.code, self.value);
        f.write_str(&quoted(&text, 300))
    }
}

/// Seconds of Unix time, or a date.
struct Time(Millis);

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Seconds(f64),
            Date(String),
        }
        let millis = match Written::deserialize(deserializer)? {
            // Up to the year 9999, which a double holds to the millisecond.
            Written::Seconds(s) if (0.0..=253_402_300_799.0).contains(&s) => {
                Some((s * 1000.0).round() as Millis)
            }
            Written::Seconds(_) => None,
            Written::Date(text) => humantime::parse_rfc3339(&text)
                .ok()
                .and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok())
                .and_then(|t| Millis::try_from(t.as_millis()).ok()),
        };
        millis
            .map(Self)
            .ok_or_else(|| de::Error::custom("not a time"))
    }
}

/// A number; one that JSON cannot express is in quotes.
struct Value(f64);

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Number(f64),
            Text(String),
        }
        match Written::deserialize(deserializer)? {
            Written::Number(n) => Ok(Self(n)),
            Written::Text(text) => {
                let number = text
                    .parse()
                    .map_err(|_| de::Error::custom("not a number"))?;
                Ok(Self(number))
            }
        }
    }
}

/// The contents of the pages so far for one query.
#[derive(Clone, Default)]
struct Column {
    points: Vec<(Millis, f64)>,
    seen: bool,
    partial: bool,
    refused: Option<Error>,
}

/// The contents of the pages so far.
#[derive(Clone)]
pub(super) struct Pages {
    columns: Vec<Column>,
    pub(super) count: u32,
    /// Set once they began again, as a token had expired.
    pub(super) restarted: bool,
}

impl Pages {
    /// Returns the pages of a call of so many `queries`.
    pub(super) fn new(queries: usize) -> Self {
        Self {
            columns: vec![Column::default(); queries],
            count: 0,
            restarted: false,
        }
    }

    /// Returns the pages of a call of so many `queries` that begins again.
    pub(super) fn restarted(queries: usize) -> Self {
        Self {
            restarted: true,
            ..Self::new(queries)
        }
    }

    /// Adds `page`.
    pub(super) fn add(&mut self, page: Page) {
        self.count += 1;
        for part in page.metric_data_results {
            let number = part
                .id
                .strip_prefix('q')
                .and_then(|n| n.parse::<usize>().ok());
            let Some(column) = number.and_then(|n| self.columns.get_mut(n)) else {
                continue;
            };
            column.seen = true;
            column.partial = part.status_code == "PartialData";
            column.points.extend(part.points());
            column.refused = part.refused().or(column.refused.take());
        }
    }

    /// Returns the data for `query`, whose statistics of each of its metrics are `columns`, of a call
    /// about `window`: of each metric a column a statistic, as points of one time each.
    pub(super) fn result(
        &self,
        query: &StatisticsQuery,
        columns: &[usize],
        window: &TimeRange,
    ) -> Result<FetchResult, Error> {
        let mut result = FetchResult::default();
        let mut parts = Vec::with_capacity(query.metrics.len());
        for columns in columns.chunks(query.statistics.len().max(1)) {
            let mut read = Vec::with_capacity(columns.len());
            for column in columns.iter().filter_map(|n| self.columns.get(*n)) {
                result.received += column.points.len() as u64;
                result.complete &= !column.partial;
                read.push(column.read(query, window, &mut result.dropped)?);
            }
            let (points, whole) = interleaved(&read, query.nan, &mut result.dropped);
            result.complete &= whole;
            parts.push(points);
        }
        result.data = Data::Points(Points::merged(parts));
        Ok(result)
    }
}

impl Column {
    /// Returns the points that lie in the range of `query`, in order of time, one per period; the
    /// rest of the call's `window` is for other queries.
    fn read(
        &self,
        query: &StatisticsQuery,
        window: &TimeRange,
        dropped: &mut Dropped,
    ) -> Result<Vec<(Millis, f64)>, Error> {
        if let Some(error) = &self.refused {
            return Err(error.clone());
        }
        if !self.seen {
            let message = "CloudWatch's answer lacks one of the requested metrics";
            return Err(Error::new(Kind::UpstreamFailed, message));
        }
        let mut points: Vec<(Millis, f64)> = Vec::with_capacity(self.points.len());
        for &(time, value) in &self.points {
            if query.period.floor(time) != time {
                let message = "CloudWatch answered at times that were not requested";
                return Err(Error::new(Kind::UpstreamFailed, message));
            }
            match query.range.holds(time) {
                true => points.push((time, value)),
                false => dropped.outside_range += u64::from(!window.holds(time)),
            }
        }
        if !points.is_sorted_by_key(|p| p.0) {
            points.sort_by_key(|p| p.0);
        }
        points.dedup_by_key(|p| p.0);
        Ok(points)
    }
}

/// Returns the points of `columns` for each time that all of them have, one column after the other;
/// and whether all have the same times.
fn interleaved(
    columns: &[Vec<(Millis, f64)>],
    nan: NanInterpretation,
    dropped: &mut Dropped,
) -> (Points, bool) {
    let Some((first, others)) = columns.split_first() else {
        return (Points::new(), true);
    };
    let whole = others
        .iter()
        .all(|o| o.len() == first.len() && o.iter().zip(first).all(|(a, b)| a.0 == b.0));
    let mut points = Points::with_capacity(first.len() * columns.len());
    let mut row = Vec::with_capacity(columns.len());
    for &(time, value) in first {
        row.clear();
        row.push(value);
        for other in others {
            let found = other.binary_search_by_key(&time, |p| p.0).ok();
            row.extend(found.and_then(|at| other.get(at)).map(|p| p.1));
        }
        let admitted: Option<Vec<f64>> = row.iter().map(|v| dropped.admit(*v, nan)).collect();
        if let Some(row) = admitted
            && row.len() == columns.len()
        {
            row.into_iter().for_each(|v| points.push(time, v));
        }
    }
    (points, whole)
}

/// Codes of errors that mean "not now", as botocore has them.
const THROTTLED: [&str; 11] = [
    "Throttling",
    "ThrottlingException",
    "ThrottledException",
    "RequestThrottled",
    "RequestThrottledException",
    "RequestLimitExceeded",
    "LimitExceeded",
    "LimitExceededException",
    "BandwidthLimitExceeded",
    "SlowDown",
    "TooManyRequestsException",
];

/// Returns the error in `response`, if it is one.
pub(super) fn failure(response: &Response) -> Option<Error> {
    if response.status == StatusCode::OK {
        return None;
    }
    let status = response.status.as_u16();
    let AwsError { code, message } = AwsError::read(response);
    let said = match code.is_empty() {
        true => format!("HTTP {status}"),
        false => format!("{code}: {message}"),
    };
    if THROTTLED.contains(&&*code) || matches!(status, 429 | 503) {
        let text = format!("CloudWatch asks to slow down ({said})");
        return Some(Error::new(Kind::UpstreamBusy, text));
    }
    if response.status.is_server_error() {
        let text = format!("CloudWatch failed ({said})");
        return Some(Error::new(Kind::UpstreamFailed, text).shows(Evidence::Address));
    }
    if code.is_empty() {
        return Some(garbage(response, "not an answer of CloudWatch"));
    }
    let invalid = ["Invalid", "Missing", "Validation"];
    let kind = match invalid.iter().any(|start| code.starts_with(start)) {
        true => Kind::InvalidRequest,
        false => Kind::UpstreamFailed,
    };
    Some(Error::new(
        kind,
        format!("CloudWatch refuses the call ({said})"),
    ))
}

/// Returns whether `response` says that a token for a page is not one, or not any more.
pub(super) fn is_bad_token(response: &Response) -> bool {
    response.status == StatusCode::BAD_REQUEST
        && AwsError::read(response).code == "InvalidNextToken"
}

/// Returns the page in `response`.
pub(super) fn page(response: &Response) -> Result<Page, Error> {
    if let Some(error) = failure(response) {
        return Err(error);
    }
    serde_json::from_slice(&response.body)
        .map_err(|e| garbage(response, &format!("not an answer of GetMetricData ({e})")))
}
