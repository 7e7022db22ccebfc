//! Responses of the mirror API, written and read.

use std::borrow::Cow;

use serde::{Serialize, Serializer};
use serde_json::json;

use super::field::{FieldDescriptor, field_type};
use crate::model::{Error, Field, FieldNames, FieldValue, FieldValues, Kind};
use crate::wire::json::{Node, parse_answer, parse_within};

/// The text before the points of an answer.
pub const METRIC_HEAD: &[u8] = br#"{"telemetry":{"points":["#;

/// Returns the text after the points of an answer.
pub fn metric_tail(aggregated: bool, partial: bool) -> &'static [u8] {
    match (aggregated, partial) {
        (false, false) => br#"],"dataFormat":["value","timestamp"],"isPartial":false,"_type":"RawMetricTelemetry"},"_type":"MetricsResponse"}"#,
        (false, true) => br#"],"dataFormat":["value","timestamp"],"isPartial":true,"_type":"RawMetricTelemetry"},"_type":"MetricsResponse"}"#,
        (true, false) => br#"],"dataFormat":["value","startTimestamp","endTimestamp"],"isPartial":false,"_type":"AggregatedMetricTelemetry"},"_type":"MetricsResponse"}"#,
        (true, true) => br#"],"dataFormat":["value","startTimestamp","endTimestamp"],"isPartial":true,"_type":"AggregatedMetricTelemetry"},"_type":"MetricsResponse"}"#,
    }
}

/// Returns the answer to `/api/connection`, with the reason of the `failure` if there is one.
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

/// Returns the answer to `/api/field/name`. It may be long, so no tree is built for it.
pub fn write_field_names(fields: &[Field], partial: bool) -> Vec<u8> {
    written(&FieldNamesResponse {
        kind: "FieldNamesResponse",
        fields,
        partial,
    })
}

/// Returns the answer to `/api/field/value`. It may be long, so no tree is built for it.
pub fn write_field_values(answer: &FieldValues) -> Vec<u8> {
    written(&FieldValuesResponse {
        kind: "FieldValuesResponse",
        partial: answer.partial,
        values: &answer.values,
    })
}

#[derive(Serialize)]
struct FieldNamesResponse<'a> {
    #[serde(rename = "_type")]
    kind: &'static str,
    #[serde(serialize_with = "descriptors")]
    fields: &'a [Field],
    #[serde(rename = "isPartial")]
    partial: bool,
}

#[derive(Serialize)]
struct FieldValuesResponse<'a> {
    #[serde(rename = "_type")]
    kind: &'static str,
    #[serde(rename = "isPartial")]
    partial: bool,
    #[serde(serialize_with = "entries")]
    values: &'a [FieldValue],
}

#[derive(Serialize)]
struct Entry<'a> {
    #[serde(rename = "_type")]
    kind: &'static str,
    value: Cow<'a, str>,
}

// serde passes references to the fields.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn descriptors<S: Serializer>(fields: &&[Field], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(fields.iter().map(FieldDescriptor::of))
}

#[allow(clippy::trivially_copy_pass_by_ref)]
fn entries<S: Serializer>(values: &&[FieldValue], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(values.iter().map(Entry::of))
}

impl<'a> Entry<'a> {
    fn of(value: &'a FieldValue) -> Self {
        match value {
            FieldValue::Complete(text) => Self {
                kind: "CompleteValue",
                value: Cow::Borrowed(text),
            },
            FieldValue::Prefix(text) => Self {
                kind: "FieldValuePattern",
                value: Cow::Owned(format!("{text}*")),
            },
        }
    }
}

fn written(body: &impl Serialize) -> Vec<u8> {
    // Only maps whose keys are not strings fail, and there are none.
    serde_json::to_vec(body).unwrap_or_default()
}

/// Returns the body of an error. Its `_type` depends on the kind.
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
        Kind::UpstreamUnreachable
        | Kind::UpstreamFailed
        | Kind::TimesAligned
        | Kind::AnswerTooLarge
        | Kind::DeadlineExceeded => json!({
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
        Kind::Unauthenticated => "A valid token or password is required",
        Kind::ClientNotAllowed => "This client has no access",
        Kind::TargetNotAllowed => "The target is not allowed",
        Kind::MetricNotFound => "No such metric",
        Kind::UnsupportedFieldType => "The field's type is not supported",
        Kind::PathNotFound => "No such path",
        Kind::MethodNotAllowed => "The HTTP method is not allowed",
        Kind::BodyTooLarge => "The request body is too large",
        Kind::UnsupportedMediaType => "The content type is not supported",
        Kind::TooManyPoints => "Too many points requested",
        Kind::RequestTimeout => "The request arrived too slowly",
        Kind::Overloaded => "Heliostat is at capacity",
        Kind::UpstreamBudget => "The upstream's budget is spent",
        Kind::UpstreamBusy => "The upstream is at capacity",
        Kind::UpstreamUnreachable => "The upstream cannot be reached",
        Kind::UpstreamFailed | Kind::TimesAligned => "The upstream failed",
        Kind::AnswerTooLarge => "The upstream's answer is too large",
        Kind::DeadlineExceeded => "The deadline passed",
        Kind::Internal => "Heliostat failed",
    }
}

/// Reads another mirror's answer to `/api/connection`: `Err` contains its failure.
pub fn read_connection(body: &[u8]) -> Result<Result<(), String>, Error> {
    let value = parse_answer(body)?;
    let root = Node::root(&value);
    let status = root.member("status");
    match status.string()? {
        "OK" => Ok(Ok(())),
        "FAILURE" => {
            let error = root.member("error");
            let details = error.member("details");
            let details = details.optional_string()?.unwrap_or("no details given");
            Ok(Err(details.to_owned()))
        }
        _ => Err(status.expected("OK or FAILURE")),
    }
}

/// Reads another mirror's answer to `/api/field/name`: the fields, and whether the list is
/// incomplete.
pub fn read_field_names(body: &[u8]) -> Result<FieldNames, Error> {
    let value = parse_answer(body)?;
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
    Ok(FieldNames {
        fields: fields?,
        partial: partial.unwrap_or(false),
    })
}

/// Reads another mirror's answer to `/api/field/value`.
pub fn read_field_values(body: &[u8]) -> Result<FieldValues, Error> {
    let value = parse_answer(body)?;
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

/// Returns the error in another mirror's body, if it is an error of the protocol.
pub fn read_error(body: &[u8]) -> Option<Error> {
    let value = parse_within(body, None).ok()?;
    let root = Node::root(&value);
    let text = |key: &str| {
        let member = root.member(key);
        member.optional_string().ok().flatten().map(str::to_owned)
    };
    let details = || {
        let said = text("details").or_else(|| text("summary"));
        said.unwrap_or_else(|| "no details given".to_owned())
    };
    Some(match text("_type")?.as_str() {
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
