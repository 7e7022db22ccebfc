//! Field descriptors, which occur in both requests and responses.

use serde::Serialize;

use crate::model::{Error, Field, FieldType, Kind};
use crate::wire::json::Node;

/// The descriptor of a field.
#[derive(Serialize)]
pub(super) struct FieldDescriptor<'a> {
    #[serde(rename = "_type")]
    kind: &'static str,
    classified: bool,
    #[serde(rename = "fieldName")]
    name: &'a str,
    #[serde(rename = "fieldType")]
    field_type: &'static str,
}

impl<'a> FieldDescriptor<'a> {
    /// Returns the descriptor of `field`.
    pub(super) fn of(field: &'a Field) -> Self {
        Self {
            kind: "FieldDescriptor",
            classified: field.classified,
            name: &field.name,
            field_type: match field.kind {
                FieldType::String => "STRING",
                FieldType::Number => "NUMBER",
                FieldType::Boolean => "BOOLEAN",
            },
        }
    }
}

/// Returns the type in a descriptor; text if it names none.
pub(super) fn field_type(node: &Node<'_>) -> Result<FieldType, Error> {
    let Some(name) = node.optional_string()? else {
        return Ok(FieldType::String);
    };
    match name.to_ascii_uppercase().as_str() {
        "STRING" => Ok(FieldType::String),
        "NUMBER" | "DOUBLE" => Ok(FieldType::Number),
        "BOOLEAN" => Ok(FieldType::Boolean),
        _ => {
            let message = format!("expected STRING, NUMBER or BOOLEAN, found {name:?}");
            let mut error = Error::new(Kind::UnsupportedFieldType, message).about(name);
            error.field = Some(node.path());
            Err(error)
        }
    }
}
