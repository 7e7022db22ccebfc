//! Conditions as PromQL. Nothing that a client sends can leave the place it is put in.

use std::fmt::Write;

use crate::model::{Condition, Error, Kind, Scalar, Selector, Test};
use crate::promql::{Reason, read, write_string};

/// Key of the condition that names a gauge.
pub(super) const GAUGE: &str = "__gauge__";
/// Key of the condition that names a counter.
pub(super) const COUNTER: &str = "__counter__";
/// Key of the condition that holds a PromQL expression.
pub(super) const EXPRESSION: &str = "~";

/// A regular expression that no string matches.
const NOTHING: &str = "[^\\x00-\\x{10FFFF}]";

/// The meaning of a selector for a Prometheus server.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Meaning {
    /// The samples of this instant selector.
    Gauge(String),
    /// The rates of this instant selector.
    Counter(String),
    /// The values of this expression.
    Expression(String),
}

impl Meaning {
    /// Returns the meaning of `selector`, or an error that says what is missing.
    pub(super) fn of(selector: &Selector) -> Result<Self, Error> {
        let conditions = selector.conditions();
        let mut chosen = conditions
            .iter()
            .filter(|c| matches!(c.key.as_str(), GAUGE | COUNTER | EXPRESSION));
        let (Some(condition), None) = (chosen.next(), chosen.next()) else {
            return Err(not_one());
        };
        if condition.key == EXPRESSION {
            let Test::Is(Scalar::String(text)) = &condition.test else {
                let message = format!(
                    "the condition {EXPRESSION:?} must hold one PromQL expression as a string"
                );
                return Err(Error::new(Kind::MetricNotFound, message));
            };
            if conditions.len() > 1 {
                let message = format!(
                    "with the condition {EXPRESSION:?} there can be no other; put label matchers into the expression"
                );
                return Err(Error::new(Kind::MetricNotFound, message).about(text));
            }
            return Ok(Self::Expression(text.clone()));
        }
        let matcher = instant_selector(conditions)?;
        Ok(if condition.key == GAUGE {
            Self::Gauge(matcher)
        } else {
            Self::Counter(matcher)
        })
    }
}

/// Checks that each value of the expression `text` belongs to its time: points of one time are shared by
/// queries of different ranges.
pub(super) fn check_window(text: &str) -> Result<(), Error> {
    let Some(reason) = read(text).window else {
        return Ok(());
    };
    let message = match reason {
        Reason::VaryingParameter => {
            "the parameter of an aggregation in this expression varies, and some versions of Prometheus take it from the beginning of the range only: write a number"
        }
        _ => {
            "the values of this expression depend on the range that is queried (start(), end(), range(), step(), or @ with one of them), so the same point would have several values: write times and durations"
        }
    };
    Err(Error::new(Kind::MetricNotFound, message).about(text))
}

fn not_one() -> Error {
    let message = format!(
        "a query needs exactly one of the conditions {GAUGE:?} (a metric name), {COUNTER:?} (a metric name) and {EXPRESSION:?} (a PromQL expression)"
    );
    Error::new(Kind::MetricNotFound, message)
}

/// Returns the instant selector for the conditions on labels and metric names, if there are any.
pub(super) fn matcher_of(selector: &Selector) -> Result<Option<String>, Error> {
    let conditions: Vec<_> = selector
        .conditions()
        .iter()
        .filter(|c| c.key != EXPRESSION)
        .cloned()
        .collect();
    if conditions.is_empty() {
        return Ok(None);
    }
    instant_selector(&conditions).map(Some)
}

/// Returns the conditions as `{name="value",…}`.
fn instant_selector(conditions: &[Condition]) -> Result<String, Error> {
    let mut text = String::from("{");
    for condition in conditions {
        if text.len() > 1 {
            text.push(',');
        }
        match condition.key.as_str() {
            GAUGE | COUNTER => text.push_str("__name__"),
            name if is_plain(name) => text.push_str(name),
            // Prometheus 3 accepts other names in quotes; earlier versions refuse them.
            name => write_string(&mut text, name),
        }
        match &condition.test {
            Test::Is(number @ Scalar::Number(_)) if whole(&number.to_string()) => {
                // A label may hold the number in the spelling of an integer or of a double.
                text.push_str("=~");
                write_string(&mut text, &spellings(number).join("|"));
            }
            Test::Is(value) => {
                text.push('=');
                write_string(&mut text, &value.to_string());
            }
            Test::In(values) => {
                text.push_str("=~");
                let any: Vec<String> = values.iter().flat_map(spellings).collect();
                let pattern = if any.is_empty() {
                    NOTHING.to_owned()
                } else {
                    any.join("|")
                };
                write_string(&mut text, &pattern);
            }
        }
    }
    text.push('}');
    Ok(text)
}

/// Returns the patterns of the labels that hold `value`.
fn spellings(value: &Scalar) -> Vec<String> {
    let text = value.to_string();
    let mut spellings = vec![literal(&text)];
    if matches!(value, Scalar::Number(_)) && whole(&text) {
        spellings.push(literal(&format!("{text}.0")));
    }
    spellings
}

/// Returns whether `number` is written as an integer.
fn whole(number: &str) -> bool {
    let digits = number.strip_prefix('-').unwrap_or(number);
    !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())
}

/// Returns whether `name` is a label name that needs no quotes.
fn is_plain(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes
        .next()
        .is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
        && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// Returns a regular expression (RE2) that matches just `text`.
fn literal(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if matches!(
            c,
            '\\' | '.' | '+' | '*' | '?' | '(' | ')' | '|' | '[' | ']' | '{' | '}' | '^' | '$'
        ) {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

/// Returns `name` as a segment of a path. Names that need quotes are escaped as Prometheus 3 reads
/// them: `U__`, then each odd character as its code between underscores, and underscores doubled.
pub(super) fn label_in_path(name: &str) -> String {
    if is_plain(name) {
        return name.to_owned();
    }
    let mut out = String::from("U__");
    for c in name.chars() {
        match c {
            '_' => out.push_str("__"),
            c if c.is_ascii_alphanumeric() => out.push(c),
            c => {
                // Writing to a string cannot fail.
                let _ = write!(out, "_{:x}_", u32::from(c));
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Number;

    fn is(key: &str, value: &str) -> Condition {
        Condition {
            key: key.into(),
            test: Test::Is(Scalar::String(value.into())),
        }
    }

    fn any_of(key: &str, values: &[&str]) -> Condition {
        Condition {
            key: key.into(),
            test: Test::In(values.iter().map(|v| Scalar::String((*v).into())).collect()),
        }
    }

    fn gauge(conditions: Vec<Condition>) -> String {
        match Meaning::of(&Selector::new(conditions)) {
            Ok(Meaning::Gauge(text)) => text,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn conditions_become_matchers() {
        let code = Condition {
            key: "code".into(),
            test: Test::Is(Scalar::Number(Number::new(200.0).unwrap())),
        };
        assert_eq!(
            gauge(vec![is("__gauge__", "up"), is("job", "api"), code]),
            r#"{__name__="up",code=~"200|200\\.0",job="api"}"#
        );
        assert_eq!(
            gauge(vec![is("__gauge__", "up"), any_of("host", &["a.b", "c|d"])]),
            r#"{__name__="up",host=~"a\\.b|c\\|d"}"#
        );
        assert_eq!(
            gauge(vec![is("__gauge__", "up"), any_of("host", &[])]),
            r#"{__name__="up",host=~"[^\\x00-\\x{10FFFF}]"}"#
        );
    }

    #[test]
    fn a_value_cannot_leave_its_string() {
        for (value, expected) in [
            (
                r#"x"} or vector(1) #"#,
                r#"{__name__="up",a="x\"} or vector(1) #"}"#,
            ),
            (r"x\", r#"{__name__="up",a="x\\"}"#),
            ("x\ny\0", r#"{__name__="up",a="x\ny\x00"}"#),
            ("\u{fffd}é\t", r#"{__name__="up",a="\ufffdé\t"}"#),
        ] {
            assert_eq!(gauge(vec![is("__gauge__", "up"), is("a", value)]), expected);
        }
        assert_eq!(
            gauge(vec![is("__gauge__", "up"), is("a\"=\"b", "c")]),
            r#"{__name__="up","a\"=\"b"="c"}"#
        );
    }

    #[test]
    fn exactly_one_condition_says_what_is_meant() {
        let kind = |conditions| Meaning::of(&Selector::new(conditions)).map_err(|e| e.kind);
        let missing = Err(Kind::MetricNotFound);
        assert_eq!(kind(vec![]), missing);
        assert_eq!(kind(vec![is("job", "x")]), missing);
        assert_eq!(
            kind(vec![is("__gauge__", "a"), is("__counter__", "a")]),
            missing
        );
        assert_eq!(kind(vec![is("~", "up"), is("job", "x")]), missing);
        assert_eq!(
            kind(vec![is("~", "up")]),
            Ok(Meaning::Expression("up".into()))
        );
    }

    #[test]
    fn labels_in_paths_are_escaped() {
        assert_eq!(label_in_path("job"), "job");
        assert_eq!(label_in_path("a/../b_c"), "U__a_2f__2e__2e__2f_b__c");
    }
}
