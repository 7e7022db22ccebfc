//! Answers of Prometheus' HTTP API, read without a tree in between.

use std::borrow::Cow;
use std::collections::BTreeMap;

use http::StatusCode;
use serde::Deserialize;
use serde::de::{self, Deserializer, IgnoredAny, SeqAccess, Visitor};

use crate::adapters::samples::Samples;
use crate::adapters::{Response, SAID, busy, garbage, quoted};
use crate::model::{Checkpoints, Error, Kind, MAX_TIME, Millis, stop};
use crate::wire::json::FirstStrings;
use crate::wire::number::whole;
use crate::wire::prometheus::most_labels;

/// The labels of a series and their values.
pub(super) type Labels = BTreeMap<String, String>;

/// One series: its labels and its samples in order of time.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct SampleSeries {
    pub(super) labels: Labels,
    pub(super) samples: Samples,
}

/// The series of an answer, in the order of their labels.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct SampleMatrix {
    pub(super) series: Vec<SampleSeries>,
    /// Set if the server had no warnings.
    pub(super) complete: bool,
    /// Samples in the answer.
    pub(super) received: u64,
    /// Native histograms in the answer, which have no single value.
    pub(super) histograms: u64,
    /// Samples from other replicas.
    pub(super) filled: u64,
}

impl SampleMatrix {
    /// Reads the answer to a query.
    pub(super) fn read(response: &Response, most: usize) -> Result<Self, Error> {
        if has_more_series(&response.body, most) {
            let message = format!("the answer has more than {most} series (max_series)");
            return Err(Error::new(Kind::TooManyPoints, message));
        }
        let labels = most_labels(most);
        if has_more_labels(&response.body, labels) {
            let message = format!("the answer has more than {labels} labels (max_series)");
            return Err(Error::new(Kind::TooManyPoints, message));
        }
        let envelope: Envelope<'_, ApiData> = read(response)?;
        let complete = envelope.is_complete();
        let data = envelope
            .data
            .ok_or_else(|| garbage(response, "data is missing"))?;
        let mut matrix = Self {
            complete,
            ..Self::default()
        };
        if !data.kind.is_empty() && data.kind != "matrix" {
            return Err(garbage(response, "not a matrix"));
        }
        for raw in data.result {
            if raw.values.is_none() && raw.histograms.is_none() {
                // Such as an instant vector, which has a `value` instead: not an empty answer.
                return Err(garbage(response, "a series without samples"));
            }
            let mut samples = raw.values.unwrap_or_default().0;
            samples.sort();
            matrix.received += samples.len() as u64;
            matrix.histograms += raw.histograms.map_or(0, |h| h.len() as u64);
            matrix.series.push(SampleSeries {
                labels: raw.metric,
                samples,
            });
        }
        matrix.series.sort_by(|a, b| a.labels.cmp(&b.labels));
        Ok(matrix)
    }

    /// Adds the later samples of `later` to the series with the same labels.
    pub(super) fn append(&mut self, later: &Self) {
        for series in &later.series {
            match self
                .series
                .binary_search_by(|s| s.labels.cmp(&series.labels))
            {
                Ok(at) => {
                    if let Some(mine) = self.series.get_mut(at) {
                        let end = mine.samples.times().last().copied();
                        let new = series.samples.iter();
                        let new = new.filter(|(t, _)| end.is_none_or(|end| *t > end));
                        new.for_each(|(t, value)| mine.samples.push(t, value));
                    }
                }
                Err(at) => self.series.insert(at, series.clone()),
            }
        }
        self.complete &= later.complete;
        self.received += later.received;
        self.histograms += later.histograms;
        self.filled += later.filled;
    }

    /// Takes out the series that has the label `name`.
    pub(super) fn take(&mut self, name: &str) -> Option<SampleSeries> {
        let at = self
            .series
            .iter()
            .position(|s| s.labels.contains_key(name))?;
        let taken = self.series.remove(at);
        self.received -= taken.samples.len() as u64;
        Some(taken)
    }
}

/// Returns whether `body` has more than `most` series, without reading them: a few bytes each may
/// take a hundred times as much memory. A label of the name `metric` counts as well.
fn has_more_series(body: &[u8], most: usize) -> bool {
    const KEY: &[u8] = b"\"metric\"";
    let after = body.windows(KEY.len()).enumerate();
    let keys = after
        .filter(|(_, window)| *window == KEY)
        .filter(|(at, _)| {
            let rest = body.get(at + KEY.len()..).unwrap_or_default();
            rest.iter().find(|b| !b.is_ascii_whitespace()) == Some(&b':')
        });
    keys.take(most.saturating_add(1)).count() > most
}

/// Whether `body` has more than `most` labels, without reading them: strings that are members of an object.
/// Quotes within strings are escaped, so that `":"` is found between strings only.
fn has_more_labels(body: &[u8], most: usize) -> bool {
    let next = |at: usize| {
        let rest = body.get(at + 1..).unwrap_or_default();
        rest.iter().find(|b| !b.is_ascii_whitespace())
    };
    let colons = body.iter().enumerate().filter(|(_, b)| **b == b':');
    let labels = colons.filter(|(at, _)| next(*at) == Some(&b'"'));
    labels.take(most.saturating_add(1)).count() > most
}

/// Checks that the answer is one of success.
pub(super) fn check(response: &Response) -> Result<(), Error> {
    read::<IgnoredAny>(response).map(|_| ())
}

/// Most names or values of a list. In memory a short one takes fifty bytes.
const MOST_LISTED: usize = 500_000;

/// Most of a list of warnings that is read.
const MOST_WARNINGS: usize = 1000;

/// Reads a list of names or values, and whether it is whole.
pub(super) fn strings(response: &Response) -> Result<(Vec<String>, bool), Error> {
    let envelope: Envelope<'_, FirstStrings<MOST_LISTED>> = read(response)?;
    let complete = envelope.is_complete();
    let listed = envelope.data.unwrap_or_default();
    if listed.more {
        let message = format!("the answer has more than {MOST_LISTED} names or values");
        return Err(Error::new(Kind::AnswerTooLarge, message));
    }
    Ok((listed.strings, complete))
}

#[derive(Deserialize)]
struct Envelope<'a, T> {
    #[serde(borrow)]
    status: Cow<'a, str>,
    #[serde(default = "Option::default")]
    data: Option<T>,
    #[serde(borrow, rename = "errorType", default)]
    error_type: Option<Cow<'a, str>>,
    #[serde(default)]
    error: Option<String>,
    #[serde(default)]
    warnings: Option<FirstStrings<MOST_WARNINGS>>,
    // VictoriaMetrics says so when a storage node did not answer.
    #[serde(rename = "isPartial", default)]
    is_partial: Option<bool>,
}

impl<T> Envelope<'_, T> {
    /// Returns whether it has no warnings about its data; remarks on the style of a query do not
    /// count.
    fn is_complete(&self) -> bool {
        let remark = |w: &String| w.starts_with("PromQL info");
        let harmless = |warnings: &FirstStrings<MOST_WARNINGS>| {
            !warnings.more && warnings.strings.iter().all(remark)
        };
        self.is_partial != Some(true) && self.warnings.as_ref().is_none_or(harmless)
    }

    /// Returns the error that it is of.
    fn failure(&self, response: &Response) -> Error {
        let error_type = self.error_type.as_deref().unwrap_or_default();
        failure(
            response,
            error_type,
            self.error.as_deref().unwrap_or_default(),
        )
    }
}

/// Returns the envelope of an answer of success, or the error that it speaks of.
fn read<'a, T: Deserialize<'a>>(response: &'a Response) -> Result<Envelope<'a, T>, Error> {
    if response.status == StatusCode::PARTIAL_CONTENT {
        return Err(garbage(response, "a part of an answer"));
    }
    if response.status.is_success() {
        let envelope: Envelope<'a, T> = serde_json::from_slice(&response.body)
            .map_err(|e| garbage(response, &format!("not an answer of Prometheus' API ({e})")))?;
        if envelope.status == "success" {
            return Ok(envelope);
        }
        return Err(match &*envelope.status {
            "error" => envelope.failure(response),
            _ => garbage(response, "its status is neither success nor error"),
        });
    }
    let error = spoken_error(response).or_else(|| busy(response));
    Err(error.unwrap_or_else(|| garbage(response, "not an answer of Prometheus' API")))
}

/// Returns whether `response` has an envelope: `None` if not; else whether it is one of success
/// that has nothing to warn of.
pub(super) fn envelope(response: &Response) -> Option<bool> {
    // Ignored content is not even checked for being text.
    let text = std::str::from_utf8(&response.body).ok()?;
    let envelope: Envelope<'_, IgnoredAny> = serde_json::from_str(text).ok()?;
    Some(envelope.status == "success" && envelope.is_complete())
}

/// Returns the error that `response`, which is none of success, speaks of, if it does so as
/// Prometheus does.
pub(super) fn spoken_error(response: &Response) -> Option<Error> {
    let said: Envelope<'_, IgnoredAny> = serde_json::from_slice(&response.body).ok()?;
    (said.status == "error").then(|| said.failure(response))
}

/// Messages of Prometheus and VictoriaMetrics for queries that are too large.
const TOO_MANY: [&str; 3] = ["too many samples", "too many points", "cannot exceed"];

/// The messages of VictoriaMetrics for queries that it cannot read. It gives them the status 422,
/// as it does for every other failure of a query.
const UNREADABLE: [&str; 8] = [
    "unparsed data",
    "unexpected token",
    "unexpected number of args",
    "unknown func",
    "cannot parse",
    "cannot find the first token",
    "invalid regexp",
    "missing `query` arg",
];

fn unreadable(error: &str) -> Error {
    let said = quoted(error, SAID);
    let message = format!("the upstream cannot read the selector: {said}");
    Error::new(Kind::MetricNotFound, message)
}

/// An error in the store's own form is about the query, unless its status is one of load.
fn failure(response: &Response, error_type: &str, error: &str) -> Error {
    let message = format!(
        "the upstream answered {}: {}",
        quoted(error_type, 50),
        quoted(error, SAID)
    );
    // VictoriaMetrics gives the HTTP status where Prometheus gives a word.
    match error_type {
        "bad_data" | "400" => unreadable(error),
        "execution" | "422" if TOO_MANY.iter().any(|words| error.contains(words)) => {
            Error::new(Kind::TooManyPoints, message)
        }
        "422" if UNREADABLE.iter().any(|words| error.contains(words)) => unreadable(error),
        "execution" | "422" | "timeout" => Error::new(Kind::UpstreamFailed, message),
        _ => match busy(response) {
            Some(mut busy) => {
                busy.message = message;
                busy
            }
            None => Error::new(Kind::UpstreamFailed, message),
        },
    }
}

#[derive(Deserialize)]
struct ApiData {
    #[serde(deserialize_with = "null_as_none")]
    result: Vec<RawSeries>,
    #[serde(rename = "resultType", default)]
    kind: String,
}

/// Reads the series of an answer, for none of which some gateways write `null`.
fn null_as_none<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<RawSeries>, D::Error> {
    let list: Option<SeriesList> = Option::deserialize(deserializer)?;
    Ok(list.map_or_else(Vec::new, |list| list.0))
}

/// The series of an answer.
struct SeriesList(Vec<RawSeries>);

impl<'de> Deserialize<'de> for SeriesList {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct All;
        impl<'de> Visitor<'de> for All {
            type Value = SeriesList;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an array of series")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<SeriesList, A::Error> {
                let mut all = Vec::new();
                while let Some(series) = seq.next_element()? {
                    // A series may have thousands of labels.
                    if stop::is_due() {
                        return Err(de::Error::custom(stop::STOPPED));
                    }
                    all.push(series);
                }
                Ok(SeriesList(all))
            }
        }
        deserializer.deserialize_seq(All)
    }
}

#[derive(Deserialize)]
struct RawSeries {
    #[serde(default)]
    metric: Labels,
    values: Option<Values>,
    histograms: Option<Vec<IgnoredAny>>,
}

/// The samples of a series: `[[seconds, "value"], …]`.
#[derive(Default)]
struct Values(Samples);

impl<'de> Deserialize<'de> for Values {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct All;
        impl<'de> Visitor<'de> for All {
            type Value = Values;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an array of samples")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Values, A::Error> {
                let mut samples = Samples::default();
                let mut checkpoints = Checkpoints::default();
                while let Some((seconds, value)) = seq.next_element::<(f64, Value)>()? {
                    if checkpoints.stop() {
                        return Err(de::Error::custom(stop::STOPPED));
                    }
                    samples.push(millis(seconds).map_err(de::Error::custom)?, value.0);
                }
                Ok(Values(samples))
            }
        }
        deserializer.deserialize_seq(All)
    }
}

fn millis(seconds: f64) -> Result<Millis, String> {
    let millis = whole(seconds * 1000.0).filter(|t| t.abs() <= MAX_TIME);
    millis.ok_or_else(|| format!("{seconds} is not a time in seconds"))
}

/// A sample's value, which is a string that may say `NaN`, `+Inf` or `-Inf`; some gateways write numbers.
struct Value(f64);

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Value;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a number as a string")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Value, E> {
                // Rust reads "NaN", "+Inf" and "-Inf" as Prometheus writes them.
                text.parse()
                    .map(Value)
                    .map_err(|_| E::custom(format!("{text:?} is not a number")))
            }
            fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
                Ok(Value(value))
            }
            #[allow(clippy::cast_precision_loss, reason = "a sample is a double")]
            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Value, E> {
                Ok(Value(value as f64))
            }
            #[allow(clippy::cast_precision_loss, reason = "a sample is a double")]
            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Value, E> {
                Ok(Value(value as f64))
            }
        }
        deserializer.deserialize_any(Text)
    }
}
