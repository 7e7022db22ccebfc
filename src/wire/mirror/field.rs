//! Field descriptors, which both requests and responses hold.

use serde_json::{Value, json};

use crate::model::{Error, Field, FieldType, Kind};
use crate::wire::json::Node;

/// The descriptor of `field`.
pub(super) fn field_json(field: &Field) -> Value {
    let kind = match field.kind {
        FieldType::String => "STRING",
        FieldType::Number => "NUMBER",
        FieldType::Boolean => "BOOLEAN",
    };
    json!({
        "fieldName": field.name,
        "fieldType": kind,
        "classified": field.classified,
        "_type": "FieldDescriptor",
    })
}

/// The type that a descriptor names; text if it names none.
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
