//! JSON values that know their path, so that every error can name the field at fault.

use std::fmt;

use serde_json::{Map, Value};

use crate::model::Error;

/// Parses `body` as JSON.
pub fn parse(body: &[u8]) -> Result<Value, Error> {
    serde_json::from_slice(body)
        .map_err(|e| Error::invalid("$", format!("the body is not valid JSON: {e}")))
}

/// A JSON value and where it stands.
#[derive(Clone)]
pub struct Node<'a> {
    value: Option<&'a Value>,
    path: String,
}

impl<'a> Node<'a> {
    /// The whole document.
    pub fn root(value: &'a Value) -> Self {
        Self {
            value: Some(value),
            path: String::new(),
        }
    }

    /// Its path, such as `query.conditions[0].key`; `$` for the document.
    pub fn path(&self) -> &str {
        if self.path.is_empty() {
            "$"
        } else {
            &self.path
        }
    }

    /// The member `key`, which may be absent.
    pub fn member(&self, key: &str) -> Self {
        let path = if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        };
        Self {
            value: self.value.and_then(|v| v.get(key)),
            path,
        }
    }

    /// The value, or `None` where it is absent or null.
    pub fn value(&self) -> Option<&'a Value> {
        self.value.filter(|v| !v.is_null())
    }

    /// Whether it is neither absent nor null.
    pub fn is_present(&self) -> bool {
        self.value().is_some()
    }

    /// An error about this value: `expected` says what is allowed.
    pub fn expected(&self, expected: impl fmt::Display) -> Error {
        let found = match self.value {
            None => "nothing".to_owned(),
            Some(value) => excerpt(value),
        };
        Error::invalid(self.path(), format!("expected {expected}, found {found}"))
    }

    /// An object.
    pub fn object(&self) -> Result<&'a Map<String, Value>, Error> {
        let object = self.value.and_then(Value::as_object);
        object.ok_or_else(|| self.expected("an object"))
    }

    /// The elements of an array.
    pub fn elements(&self) -> Result<Vec<Self>, Error> {
        let array = self.value.and_then(Value::as_array);
        let array = array.ok_or_else(|| self.expected("an array"))?;
        let element = |(i, value)| Self {
            value: Some(value),
            path: format!("{}[{i}]", self.path),
        };
        Ok(array.iter().enumerate().map(element).collect())
    }

    /// A string.
    pub fn string(&self) -> Result<&'a str, Error> {
        let string = self.value.and_then(Value::as_str);
        string.ok_or_else(|| self.expected("a string"))
    }

    /// A string, or `None` where it is absent or null.
    pub fn optional_string(&self) -> Result<Option<&'a str>, Error> {
        self.value().map(|_| self.string()).transpose()
    }

    /// True or false, or `None` where it is absent or null.
    pub fn optional_bool(&self) -> Result<Option<bool>, Error> {
        self.value()
            .map(|v| v.as_bool().ok_or_else(|| self.expected("true or false")))
            .transpose()
    }

    /// A whole number from `min` to `max`; `1.5e12` is one.
    pub fn integer(&self, min: i64, max: i64) -> Result<i64, Error> {
        let whole = |v: &Value| {
            v.as_i64().or_else(|| {
                v.as_f64()
                    .filter(|f| f.fract() == 0.0 && f.abs() < 9.0e15)
                    .map(|f| f as i64)
            })
        };
        self.value
            .and_then(whole)
            .filter(|n| (min..=max).contains(n))
            .ok_or_else(|| self.expected(format_args!("a whole number from {min} to {max}")))
    }

    /// A whole number from `min` to `max`, or `None` where it is absent or null.
    pub fn optional_integer(&self, min: i64, max: i64) -> Result<Option<i64>, Error> {
        self.value().map(|_| self.integer(min, max)).transpose()
    }
}

/// `value` as JSON, cut short where it is long.
fn excerpt(value: &Value) -> String {
    const LONGEST: usize = 60;
    match value {
        Value::Object(_) => "an object".to_owned(),
        Value::Array(_) => "an array".to_owned(),
        Value::String(s) if s.len() > LONGEST => {
            let start: String = s.chars().take(LONGEST).collect();
            format!("{:?}…", start)
        }
        other => other.to_string(),
    }
}
