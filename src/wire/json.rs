//! JSON values that know their path, so that every error can name the field at fault.
//!
//! A document is read into a tree that borrows its text, as far as that has no escapes; a path is
//! put together only for an error.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Number, Value};

use crate::model::Error;

/// Parses `body` as JSON.
pub fn parse(body: &[u8]) -> Result<Json<'_>, Error> {
    let invalid =
        |e: &dyn fmt::Display| Error::invalid("$", format!("the body is not valid JSON: {e}"));
    // Checked once as a whole: cheaper than each string by itself.
    let text = std::str::from_utf8(body).map_err(|e| invalid(&e))?;
    serde_json::from_str(text).map_err(|e| invalid(&e))
}

/// A JSON value that borrows from its text.
#[derive(Clone, Debug, PartialEq)]
pub enum Json<'a> {
    /// `null`
    Null,
    /// `true` or `false`
    Bool(bool),
    /// A number, which a double or a 64-bit integer can hold.
    Number(Number),
    /// A string without its escapes.
    String(Cow<'a, str>),
    /// An array.
    Array(Vec<Json<'a>>),
    /// An object's members in the order of the text; of two of one name the last counts.
    Object(Vec<(Cow<'a, str>, Json<'a>)>),
}

impl Json<'_> {
    /// Returns the member `key` of an object.
    fn member(&self, key: &str) -> Option<&Self> {
        let Self::Object(members) = self else {
            return None;
        };
        let found = members.iter().rev().find(|(name, _)| name == key);
        found.map(|(_, value)| value)
    }

    /// Returns it as a value that borrows nothing.
    pub fn to_value(&self) -> Value {
        match self {
            Self::Null => Value::Null,
            Self::Bool(b) => Value::Bool(*b),
            Self::Number(n) => Value::Number(n.clone()),
            Self::String(s) => Value::String(s.clone().into_owned()),
            Self::Array(elements) => elements.iter().map(Self::to_value).collect(),
            Self::Object(members) => members
                .iter()
                .map(|(name, value)| (name.clone().into_owned(), value.to_value()))
                .collect(),
        }
    }
}

impl<'de> Deserialize<'de> for Json<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Json<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON value")
            }
            fn visit_unit<E>(self) -> Result<Json<'de>, E> {
                Ok(Json::Null)
            }
            fn visit_bool<E>(self, b: bool) -> Result<Json<'de>, E> {
                Ok(Json::Bool(b))
            }
            fn visit_u64<E>(self, n: u64) -> Result<Json<'de>, E> {
                Ok(Json::Number(n.into()))
            }
            fn visit_i64<E>(self, n: i64) -> Result<Json<'de>, E> {
                Ok(Json::Number(n.into()))
            }
            fn visit_f64<E: serde::de::Error>(self, n: f64) -> Result<Json<'de>, E> {
                let number = Number::from_f64(n).map(Json::Number);
                number.ok_or_else(|| E::custom("a number that is not finite"))
            }
            fn visit_borrowed_str<E>(self, s: &'de str) -> Result<Json<'de>, E> {
                Ok(Json::String(Cow::Borrowed(s)))
            }
            fn visit_str<E>(self, s: &str) -> Result<Json<'de>, E> {
                Ok(Json::String(Cow::Owned(s.to_owned())))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Json<'de>, A::Error> {
                let mut elements = Vec::new();
                while let Some(element) = seq.next_element()? {
                    elements.push(element);
                }
                Ok(Json::Array(elements))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json<'de>, A::Error> {
                let mut members = Vec::new();
                while let Some(key) = map.next_key()? {
                    let Json::String(key) = key else {
                        return Err(A::Error::custom("a name that is not a string"));
                    };
                    members.push((key, map.next_value()?));
                }
                Ok(Json::Object(members))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

/// A JSON value and where it stands.
#[derive(Clone, Copy)]
pub struct Node<'a> {
    value: Option<&'a Json<'a>>,
    place: JsonPath<'a>,
}

/// Where a value stands: in which other, and as what.
#[derive(Clone, Copy)]
enum JsonPath<'a> {
    Document,
    Member(&'a Node<'a>, &'a str),
    Element(&'a Node<'a>, usize),
}

impl<'a> Node<'a> {
    /// Returns the whole document.
    pub fn root(value: &'a Json<'a>) -> Self {
        Self {
            value: Some(value),
            place: JsonPath::Document,
        }
    }

    /// Returns its path, such as `query.conditions[0].key`; `$` for the document.
    pub fn path(&self) -> String {
        let mut path = String::new();
        self.write_path(&mut path);
        if path.is_empty() {
            path.push('$');
        }
        path
    }

    fn write_path(&self, path: &mut String) {
        match self.place {
            JsonPath::Document => {}
            JsonPath::Member(parent, key) => {
                parent.write_path(path);
                if !path.is_empty() {
                    path.push('.');
                }
                path.push_str(key);
            }
            JsonPath::Element(parent, index) => {
                parent.write_path(path);
                path.push_str(&format!("[{index}]"));
            }
        }
    }

    /// Returns the member `key`, which may be absent.
    pub fn member(&'a self, key: &'a str) -> Self {
        Self {
            value: self.value.and_then(|v| v.member(key)),
            place: JsonPath::Member(self, key),
        }
    }

    /// Returns the value, or `None` where it is absent or null.
    pub fn value(&self) -> Option<&'a Json<'a>> {
        self.value.filter(|v| **v != Json::Null)
    }

    /// Returns whether it is neither absent nor null.
    pub fn is_present(&self) -> bool {
        self.value().is_some()
    }

    /// Returns whether it is an object.
    pub fn is_object(&self) -> bool {
        matches!(self.value, Some(Json::Object(_)))
    }

    /// Returns whether it is an array.
    pub fn is_array(&self) -> bool {
        matches!(self.value, Some(Json::Array(_)))
    }

    /// Returns an error about this value: `expected` says what is allowed.
    pub fn expected(&self, expected: impl fmt::Display) -> Error {
        let found = match self.value {
            None => "nothing".to_owned(),
            Some(value) => excerpt(value),
        };
        Error::invalid(self.path(), format!("expected {expected}, found {found}"))
    }

    /// Returns the members of an object.
    pub fn object(&self) -> Result<&'a [(Cow<'a, str>, Json<'a>)], Error> {
        match self.value {
            Some(Json::Object(members)) => Ok(members),
            _ => Err(self.expected("an object")),
        }
    }

    /// Returns the elements of an array.
    pub fn elements(&'a self) -> Result<impl Iterator<Item = Self>, Error> {
        let Some(Json::Array(array)) = self.value else {
            return Err(self.expected("an array"));
        };
        let element = |(i, value)| Self {
            value: Some(value),
            place: JsonPath::Element(self, i),
        };
        Ok(array.iter().enumerate().map(element))
    }

    /// Returns a string.
    pub fn string(&self) -> Result<&'a str, Error> {
        match self.value {
            Some(Json::String(s)) => Ok(s),
            _ => Err(self.expected("a string")),
        }
    }

    /// Returns a string, or `None` where it is absent or null.
    pub fn optional_string(&self) -> Result<Option<&'a str>, Error> {
        self.value().map(|_| self.string()).transpose()
    }

    /// True or false, or `None` where it is absent or null.
    pub fn optional_bool(&self) -> Result<Option<bool>, Error> {
        match self.value() {
            None => Ok(None),
            Some(Json::Bool(b)) => Ok(Some(*b)),
            Some(_) => Err(self.expected("true or false")),
        }
    }

    /// Returns a whole number from `min` to `max`; `1.5e12` is one.
    pub fn integer(&self, min: i64, max: i64) -> Result<i64, Error> {
        let whole = |n: &Number| {
            n.as_i64().or_else(|| {
                n.as_f64()
                    .filter(|f| f.fract() == 0.0 && f.abs() < 9.0e15)
                    .map(|f| f as i64)
            })
        };
        let number = match self.value {
            Some(Json::Number(n)) => whole(n),
            _ => None,
        };
        number
            .filter(|n| (min..=max).contains(n))
            .ok_or_else(|| self.expected(format_args!("a whole number from {min} to {max}")))
    }

    /// Returns a number.
    pub fn number(&self) -> Option<f64> {
        match self.value {
            Some(Json::Number(n)) => n.as_f64(),
            _ => None,
        }
    }

    /// Returns a whole number from `min` to `max`, or `None` where it is absent or null.
    pub fn optional_integer(&self, min: i64, max: i64) -> Result<Option<i64>, Error> {
        self.value().map(|_| self.integer(min, max)).transpose()
    }
}

/// Returns `value` as JSON, cut short where it is long.
fn excerpt(value: &Json<'_>) -> String {
    const LONGEST: usize = 60;
    match value {
        Json::Object(_) => "an object".to_owned(),
        Json::String(s) if s.len() > LONGEST => {
            let start: String = s.chars().take(LONGEST).collect();
            format!("{:?}…", start)
        }
        other => other.to_value().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn document() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            (-1e300f64..1e300).prop_map(Value::from),
            ".{0,8}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 40, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::btree_map(".{0,4}", inner, 0..5)
                    .prop_map(|m| Value::Object(m.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn documents_are_read_as_serde_json_reads_them(document in document()) {
            let text = document.to_string();
            prop_assert_eq!(parse(text.as_bytes()).unwrap().to_value(), document);
        }
    }

    #[test]
    fn the_last_of_two_members_counts_and_paths_name_the_place() {
        let json = parse(br#"{"a":1,"a":[{"b":"\u00e9"}]}"#).unwrap();
        let root = Node::root(&json);
        let a = root.member("a");
        let first = a.elements().unwrap().next().unwrap();
        let b = first.member("b");
        assert_eq!(b.string().unwrap(), "é");
        let error = b.integer(0, 1).unwrap_err();
        assert_eq!(error.field.as_deref(), Some("a[0].b"));
        assert_eq!(root.path(), "$");
        assert!(root.member("c").value().is_none());
    }
}
