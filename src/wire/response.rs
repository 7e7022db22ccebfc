//! Responses of the mirror API, both ways.

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, SeqAccess, Visitor};
use serde_json::{Value, json};

use super::field::{field_json, field_type};
use super::json::{Node, parse};
use crate::model::{Bucket, Error, Field, FieldValue, FieldValues, Kind, Millis, TimeRange};

/// What stands before the points of an answer.
pub const METRIC_HEAD: &[u8] = br#"{"telemetry":{"points":["#;

/// What stands after the points of an answer.
pub fn metric_tail(aggregated: bool, partial: bool) -> &'static [u8] {
    match (aggregated, partial) {
        (false, false) => br#"],"dataFormat":["value","timestamp"],"isPartial":false,"_type":"RawMetricTelemetry"},"_type":"MetricsResponse"}"#,
        (false, true) => br#"],"dataFormat":["value","timestamp"],"isPartial":true,"_type":"RawMetricTelemetry"},"_type":"MetricsResponse"}"#,
        (true, false) => br#"],"dataFormat":["value","startTimestamp","endTimestamp"],"isPartial":false,"_type":"AggregatedMetricTelemetry"},"_type":"MetricsResponse"}"#,
        (true, true) => br#"],"dataFormat":["value","startTimestamp","endTimestamp"],"isPartial":true,"_type":"AggregatedMetricTelemetry"},"_type":"MetricsResponse"}"#,
    }
}

/// The answer to `/api/connection`: `failure` says what is wrong, if anything is.
pub fn write_connection(failure: Option<&str>) -> Vec<u8> {
    let body = match failure {
        None => json!({ "status": "OK", "_type": "TestConnectionResponse" }),
        Some(details) => json!({
            "status": "FAILURE",
            "error": { "_type": "MetricStoreConnectionError", "details": details },
            "_type": "TestConnectionResponse",
        }),
    };
    body.to_string().into_bytes()
}

/// The answer to `/api/field/name`.
pub fn write_field_names(fields: &[Field], partial: bool) -> Vec<u8> {
    let fields: Vec<_> = fields.iter().map(field_json).collect();
    json!({ "fields": fields, "isPartial": partial, "_type": "FieldNamesResponse" })
        .to_string()
        .into_bytes()
}

/// The answer to `/api/field/value`.
pub fn write_field_values(answer: &FieldValues) -> Vec<u8> {
    let entry = |v: &FieldValue| match v {
        FieldValue::Complete(v) => json!({ "value": v, "_type": "CompleteValue" }),
        FieldValue::Prefix(v) => json!({ "value": format!("{v}*"), "_type": "FieldValuePattern" }),
    };
    let values: Vec<_> = answer.values.iter().map(entry).collect();
    json!({ "values": values, "isPartial": answer.partial, "_type": "FieldValuesResponse" })
        .to_string()
        .into_bytes()
}

/// The body of an error. Its `_type` follows from the kind.
pub fn write_error(error: &Error) -> Vec<u8> {
    let details = error.to_string();
    let body = match error.kind {
        Kind::MetricNotFound => json!({
            "_type": "MetricNotFoundError",
            "metric": error.subject.as_deref().unwrap_or_default(),
            "details": details,
        }),
        Kind::UnsupportedFieldType => json!({
            "_type": "UnsupportedFieldTypeError",
            "mirrorType": error.subject.as_deref().unwrap_or_default(),
            "details": details,
        }),
        Kind::UpstreamUnreachable | Kind::UpstreamFailed | Kind::DeadlineExceeded => json!({
            "_type": "MetricStoreConnectionError",
            "details": details,
        }),
        kind => json!({
            "_type": "RemoteMirrorError",
            "summary": summary(kind),
            "details": details,
        }),
    };
    body.to_string().into_bytes()
}

fn summary(kind: Kind) -> &'static str {
    match kind {
        Kind::InvalidRequest => "The request is not valid",
        Kind::TargetNotAllowed => "The target is not allowed",
        Kind::MetricNotFound => "No such metric",
        Kind::UnsupportedFieldType => "The field's type is not supported",
        Kind::PathNotFound => "No such path",
        Kind::MethodNotAllowed => "The HTTP method is not allowed",
        Kind::BodyTooLarge => "The request body is too large",
        Kind::UnsupportedMediaType => "The content type is not supported",
        Kind::TooManyPoints => "Too many points asked for",
        Kind::RequestTimeout => "The request came in too slowly",
        Kind::Overloaded => "Heliostat is at capacity",
        Kind::UpstreamBudget => "The upstream's budget is spent",
        Kind::UpstreamBusy => "The upstream is at capacity",
        Kind::UpstreamUnreachable => "The upstream cannot be reached",
        Kind::UpstreamFailed => "The upstream failed",
        Kind::DeadlineExceeded => "The deadline passed",
        Kind::Internal => "Heliostat failed",
    }
}

/// Reads another mirror's answer to `/api/connection`: `Err` holds its failure.
pub fn read_connection(body: &[u8]) -> Result<Result<(), String>, Error> {
    let value = parse(body)?;
    let root = Node::root(&value);
    let status = root.member("status");
    match status.string()? {
        "OK" => Ok(Ok(())),
        "FAILURE" => {
            let error = root.member("error");
            let details = error.member("details");
            let details = details.optional_string()?.unwrap_or("it says no more");
            Ok(Err(details.to_owned()))
        }
        _ => Err(status.expected("OK or FAILURE")),
    }
}

/// Reads another mirror's answer to `/api/field/name`: the fields, and whether some are left out.
pub fn read_field_names(body: &[u8]) -> Result<(Vec<Field>, bool), Error> {
    let value = parse(body)?;
    let root = Node::root(&value);
    let field = |node: Node<'_>| {
        let classified = node.member("classified").optional_bool()?;
        Ok(Field {
            name: node.member("fieldName").string()?.to_owned(),
            kind: field_type(&node.member("fieldType"))?,
            classified: classified.unwrap_or(false),
        })
    };
    let listed = root.member("fields");
    let fields: Result<Vec<_>, Error> = listed.elements()?.map(field).collect();
    let partial = root.member("isPartial").optional_bool()?;
    Ok((fields?, partial.unwrap_or(false)))
}

/// Reads another mirror's answer to `/api/field/value`.
pub fn read_field_values(body: &[u8]) -> Result<FieldValues, Error> {
    let value = parse(body)?;
    let root = Node::root(&value);
    let entry = |node: Node<'_>| {
        let value = node.member("value").string()?;
        Ok(match node.member("_type").optional_string()? {
            Some("FieldValuePattern") => {
                FieldValue::Prefix(value.strip_suffix('*').unwrap_or(value).to_owned())
            }
            _ => FieldValue::Complete(value.to_owned()),
        })
    };
    let listed = root.member("values");
    let values: Result<Vec<_>, Error> = listed.elements()?.map(entry).collect();
    let partial = root.member("isPartial").optional_bool()?;
    Ok(FieldValues {
        values: values?,
        partial: partial.unwrap_or(false),
    })
}

/// Another mirror's answer to `/api/metric`.
#[derive(Clone, Debug, PartialEq)]
pub struct Telemetry {
    /// The points as they came.
    pub rows: Rows,
    /// Whether it was cut short.
    pub partial: bool,
}

/// The points of an answer. Values may be NaN where the mirror sent null.
#[derive(Clone, Debug, PartialEq)]
pub enum Rows {
    /// Raw points.
    Raw(Vec<(Millis, f64)>),
    /// Buckets with the ranges they came with.
    Buckets(Vec<Bucket>),
}

/// Reads another mirror's answer to `/api/metric`. Positions are taken from its `dataFormat`;
/// without one, from the order that the protocol uses.
pub fn read_metric(body: &[u8]) -> Result<Telemetry, Error> {
    let bad = |message: String| Error::new(Kind::InvalidRequest, message);
    let answer: Answer = serde_json::from_slice(body)
        .map_err(|e| bad(format!("the answer is not metric telemetry: {e}")))?;
    let Inner {
        points,
        data_format,
        is_partial,
        tag,
    } = answer.telemetry;
    let aggregated = match &data_format {
        Some(names) => names.iter().any(|n| n == "startTimestamp"),
        None => tag.as_deref() == Some("AggregatedMetricTelemetry") || points.width == 3,
    };
    let names = data_format.unwrap_or_else(|| {
        let names: &[&str] = if aggregated {
            &["value", "startTimestamp", "endTimestamp"]
        } else {
            &["value", "timestamp"]
        };
        names.iter().map(|n| (*n).to_owned()).collect()
    });
    if points.width != 0 && points.width != names.len() {
        return Err(bad(format!(
            "telemetry.points: expected {} numbers a point as in dataFormat, found {}",
            names.len(),
            points.width
        )));
    }
    let position = |name: &str| {
        let found = names.iter().position(|n| n == name);
        found.ok_or_else(|| bad(format!("telemetry.dataFormat: {name:?} is missing")))
    };
    let value = position("value")?;
    let cell = |row: &[f64], at: usize| row.get(at).copied().unwrap_or(f64::NAN);
    let rows = points.cells.chunks_exact(points.width.max(1));
    let rows = if aggregated {
        let (start, end) = (position("startTimestamp")?, position("endTimestamp")?);
        let bucket = |row: &[f64]| {
            let (from, to) = (time(cell(row, start))?, time(cell(row, end))?);
            let range = TimeRange::new(from, to)
                .filter(|r| !r.is_empty())
                .ok_or_else(|| bad("telemetry.points: a bucket ends before it starts".into()))?;
            Ok(Bucket {
                value: cell(row, value),
                range,
            })
        };
        Rows::Buckets(rows.map(bucket).collect::<Result<_, Error>>()?)
    } else {
        let at = position("timestamp")?;
        let point = |row: &[f64]| Ok((time(cell(row, at))?, cell(row, value)));
        Rows::Raw(rows.map(point).collect::<Result<_, Error>>()?)
    };
    Ok(Telemetry {
        rows,
        partial: is_partial.unwrap_or(false),
    })
}

/// A timestamp that was read as a number.
fn time(number: f64) -> Result<Millis, Error> {
    if number.abs() < 9.0e15 {
        Ok(number.round() as Millis)
    } else {
        let message = format!("telemetry.points: {number} is not a timestamp");
        Err(Error::new(Kind::InvalidRequest, message))
    }
}

/// What kind of error another mirror's body speaks of, if it is an error of the protocol.
pub fn read_error(body: &[u8]) -> Option<Error> {
    let value: Value = serde_json::from_slice(body).ok()?;
    let text = |key: &str| value.get(key).and_then(Value::as_str);
    let details = || {
        let said = text("details").or_else(|| text("summary"));
        said.unwrap_or("it says no more").to_owned()
    };
    Some(match text("_type")? {
        "MetricStoreConnectionError" => Error::new(Kind::UpstreamFailed, details()),
        "MetricNotFoundError" => {
            Error::new(Kind::MetricNotFound, details()).about(text("metric").unwrap_or_default())
        }
        "UnsupportedFieldTypeError" => {
            let mirror_type = text("mirrorType").unwrap_or_default();
            Error::new(Kind::UnsupportedFieldType, details()).about(mirror_type)
        }
        "RemoteMirrorError" => Error::new(Kind::UpstreamFailed, details()),
        _ => return None,
    })
}

#[derive(Deserialize)]
struct Answer {
    telemetry: Inner,
}

#[derive(Deserialize)]
struct Inner {
    points: Cells,
    #[serde(rename = "dataFormat")]
    data_format: Option<Vec<String>>,
    #[serde(rename = "isPartial", default)]
    is_partial: Option<bool>,
    #[serde(rename = "_type")]
    tag: Option<String>,
}

/// Rows of numbers, one after the other, read without a tree in between.
struct Cells {
    width: usize,
    cells: Vec<f64>,
}

impl<'de> Deserialize<'de> for Cells {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct RowsVisitor;
        impl<'de> Visitor<'de> for RowsVisitor {
            type Value = Cells;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an array of points")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut rows: A) -> Result<Cells, A::Error> {
                let mut all = Cells {
                    width: 0,
                    cells: Vec::new(),
                };
                while let Some(width) = rows.next_element_seed(RowSeed(&mut all.cells))? {
                    if all.width != 0 && all.width != width {
                        return Err(serde::de::Error::custom("points differ in length"));
                    }
                    all.width = width;
                }
                Ok(all)
            }
        }
        deserializer.deserialize_seq(RowsVisitor)
    }
}

struct RowSeed<'a>(&'a mut Vec<f64>);

impl<'de> serde::de::DeserializeSeed<'de> for RowSeed<'_> {
    type Value = usize;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<usize, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for RowSeed<'_> {
    type Value = usize;
    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a point: an array of two or three numbers")
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut row: A) -> Result<usize, A::Error> {
        const WIDEST: usize = 8;
        let mut width = 0;
        while width < WIDEST
            && let Some(cell) = row.next_element::<Option<f64>>()?
        {
            self.0.push(cell.unwrap_or(f64::NAN));
            width += 1;
        }
        if width == 0 || row.next_element::<IgnoredAny>()?.is_some() {
            return Err(serde::de::Error::invalid_length(width, &self));
        }
        Ok(width)
    }
}
