//! JSON values that know their path, so that every error can name the invalid field.
//!
//! A document is parsed into a tree that borrows from its text, except for strings with escapes. A
//! path is assembled only for an error.

mod bounded;
mod read;

use std::borrow::Cow;
use std::fmt;

use serde_json::{Number, Value};

pub use bounded::FirstStrings;
pub use read::{MemberBounds, parse, parse_answer, parse_within};

use crate::model::Error;

/// A JSON value that borrows from its text.
#[derive(Clone, Debug, PartialEq)]
pub enum Json<'a> {
    /// `null`
    Null,
    /// `true` or `false`
    Bool(bool),
    /// A number that fits into a double or a 64-bit integer.
    Number(Number),
    /// A string, unescaped.
    String(Cow<'a, str>),
    /// An array.
    Array(Vec<Json<'a>>),
    /// The members of an object in the order of the text; if a name occurs twice, the last one
    /// counts.
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

    /// Returns the number of values in it, including itself.
    pub fn count(&self) -> usize {
        match self {
            Self::Array(elements) => elements.iter().map(Self::count).sum::<usize>() + 1,
            Self::Object(members) => members.iter().map(|(_, v)| v.count()).sum::<usize>() + 1,
            _ => 1,
        }
    }

    /// Returns the bytes of the names and strings in it.
    pub fn text_bytes(&self) -> usize {
        match self {
            Self::String(text) => text.len(),
            Self::Array(elements) => elements.iter().map(Self::text_bytes).sum(),
            Self::Object(members) => {
                let each = members
                    .iter()
                    .map(|(name, value)| name.len() + value.text_bytes());
                each.sum()
            }
            _ => 0,
        }
    }

    /// Returns it as an owned value.
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

/// A JSON value and its path.
#[derive(Clone, Copy)]
pub struct Node<'a> {
    value: Option<&'a Json<'a>>,
    place: JsonPath<'a>,
}

/// The position of a value: its parent, and its name or index there.
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

    /// Returns the value, or `None` if it is absent or null.
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

    /// Returns a string, or `None` if it is absent or null.
    pub fn optional_string(&self) -> Result<Option<&'a str>, Error> {
        self.value().map(|_| self.string()).transpose()
    }

    /// Returns a boolean, or `None` if it is absent or null.
    pub fn optional_bool(&self) -> Result<Option<bool>, Error> {
        match self.value() {
            None => Ok(None),
            Some(Json::Bool(b)) => Ok(Some(*b)),
            Some(_) => Err(self.expected("true or false")),
        }
    }

    /// Checks that no name and no string in it is longer than `most` bytes.
    ///
    /// # Errors
    ///
    /// Names the first one that is longer, and `limit`, the setting.
    pub fn check_lengths(&self, most: usize, limit: &str) -> Result<(), Error> {
        // The child nodes borrow this one for less than its lifetime.
        check_lengths(self, most, limit)
    }

    /// Returns a whole number from `min` to `max`. `1.5e12` and a string of digits count as one:
    /// some JSON writers put large numbers in quotes.
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
            Some(Json::String(text)) => digits(text).and_then(|digits| digits.parse().ok()),
            _ => None,
        };
        number
            .filter(|n| (min..=max).contains(n))
            .ok_or_else(|| self.expected(format_args!("a whole number from {min} to {max}")))
    }

    /// Returns a number; a string of digits counts as one.
    pub fn number(&self) -> Option<f64> {
        match self.value {
            Some(Json::Number(n)) => n.as_f64(),
            Some(Json::String(text)) => digits(text).and_then(|digits| digits.parse().ok()),
            _ => None,
        }
    }

    /// Returns a whole number from `min` to `max`, or `None` if it is absent or null.
    pub fn optional_integer(&self, min: i64, max: i64) -> Result<Option<i64>, Error> {
        self.value().map(|_| self.integer(min, max)).transpose()
    }
}

fn check_lengths<'n>(node: &'n Node<'n>, most: usize, limit: &str) -> Result<(), Error> {
    let too_long = |length: usize| {
        let message = format!("is {length} bytes long; at most {most} are allowed ({limit})");
        Error::invalid(node.path(), message)
    };
    match node.value {
        Some(Json::String(text)) if text.len() > most => Err(too_long(text.len())),
        Some(Json::Array(array)) => {
            for (i, value) in array.iter().enumerate() {
                let element = Node {
                    value: Some(value),
                    place: JsonPath::Element(node, i),
                };
                check_lengths(&element, most, limit)?;
            }
            Ok(())
        }
        Some(Json::Object(members)) => {
            for (name, value) in members {
                if name.len() > most {
                    return Err(too_long(name.len()));
                }
                let member = Node {
                    value: Some(value),
                    place: JsonPath::Member(node, name),
                };
                check_lengths(&member, most, limit)?;
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Returns `text` if it is a number of at most 19 decimal digits, with or without a minus sign.
fn digits(text: &str) -> Option<&str> {
    let unsigned = text.strip_prefix('-').unwrap_or(text);
    let good = (1..=19).contains(&unsigned.len()) && unsigned.bytes().all(|b| b.is_ascii_digit());
    good.then_some(text)
}

/// Returns `value` as JSON, truncated if it is long; of a container, only what it is.
fn excerpt(value: &Json<'_>) -> String {
    const LONGEST: usize = 60;
    match value {
        Json::Object(_) => "an object".to_owned(),
        Json::Array(_) => "an array".to_owned(),
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
    fn a_tree_takes_memory_in_proportion_to_its_text() {
        let many = |one: &str, times: usize| format!("[{}]", vec![one; times].join(","));
        assert!(parse_within(many("0", 16_000).as_bytes(), None).is_ok());
        for (text, what) in [
            (many("0", 20_000), "values"),
            (many("{\"\":0}", 4_000), "containers"),
            (many("[]", 4_000), "containers"),
        ] {
            let error = parse_within(text.as_bytes(), None).unwrap_err();
            assert_eq!(error.field.as_deref(), Some("$"), "{what}");
            assert!(error.message.contains("more than 16384 values"), "{error}");
        }
        let long = many("\"sixteen bytes and more\"", 40_000);
        assert!(parse_within(long.as_bytes(), None).is_ok());
    }

    #[test]
    fn one_member_of_a_body_has_bounds_of_its_own() {
        let bounds = Some(MemberBounds {
            name: "a",
            values: 3,
            text: 4,
        });
        let read = |text: &str| parse_within(text.as_bytes(), bounds).map(|_| ());
        for good in [
            r#"{"a":[1,2],"b":[1,2,3,4,5]}"#,
            r#"{"a":"xyz","b":"xxxxxxxxx","aaaaaaaaa":1}"#,
            r#"{"b":{"a":[1,2,3,4,5]}}"#,
        ] {
            assert_eq!(read(good), Ok(()), "{good}");
        }
        for bad in [
            r#"{"a":[1,2,3]}"#,
            r#"{"b":1,"a":{"x":{"y":{"z":{}}}},"c":}"#,
            r#"{"a":"wxyz"}"#,
            r#"{"a":{"wxyz":1}}"#,
        ] {
            let error = read(bad).unwrap_err();
            assert_eq!(error.field.as_deref(), Some("a"), "{bad}: {error}");
        }
        assert_eq!(read("{} x").unwrap_err().field.as_deref(), Some("$"));
    }

    #[test]
    fn long_names_and_strings_are_named_with_their_path() {
        let check = |text: &str| {
            let json = parse(text.as_bytes()).unwrap();
            let checked = Node::root(&json).check_lengths(3, "max");
            checked.map_err(|e| e.field.unwrap_or_default())
        };
        assert_eq!(check(r#"{"abc":["abc",{"a":"abc"}]}"#), Ok(()));
        assert_eq!(check(r#"{"a":["b",{"c":"long"}]}"#), Err("a[1].c".into()));
        assert_eq!(check(r#"{"a":{"long":1}}"#), Err("a".into()));
    }

    #[test]
    fn numbers_may_be_strings_of_digits() {
        let read = |text: &str| {
            let json = parse(text.as_bytes()).unwrap();
            Node::root(&json).integer(-10, 2_000_000_000_000).ok()
        };
        assert_eq!(read("\"1795661340000\""), Some(1_795_661_340_000));
        assert_eq!(read("\"-7\""), Some(-7));
        for bad in [
            "\"\"", "\"1.0\"", "\"1e3\"", "\" 1\"", "\"+1\"", "\"0x1\"", "\"٣\"",
        ] {
            assert_eq!(read(bad), None, "{bad}");
        }
        let number = |text: &str| {
            let json = parse(text.as_bytes()).unwrap();
            Node::root(&json).number()
        };
        assert_eq!(number("\"-5\""), Some(-5.0));
        assert_eq!(number("5.5"), Some(5.5));
        for bad in ["\"5.5\"", "\"NaN\"", "\"\"", "true"] {
            assert_eq!(number(bad), None, "{bad}");
        }
    }

    #[test]
    fn an_error_repeats_little_of_what_it_found() {
        let long = "x".repeat(8000);
        for text in [
            format!("[\"{long}\",\"{long}\"]"),
            format!("{{\"{long}\":1}}"),
            format!("\"{long}\""),
            format!("\"{}\"", "\\u0001".repeat(8000)),
        ] {
            let json = parse(text.as_bytes()).unwrap();
            let error = Node::root(&json).integer(0, 1).unwrap_err();
            assert!(error.message.len() < 700, "{error}");
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
