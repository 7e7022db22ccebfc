//! Requests of the admin API.

use tracing::Level;

use super::json::{Node, parse_within};
use super::mirror::request::{reversed, selector};
use crate::model::{Error, MAX_TIME, Selector, TimeRange};

/// The data to invalidate.
#[derive(Clone, Debug, PartialEq)]
pub struct Invalidate {
    /// The upstream.
    pub upstream: String,
    /// Only series whose queries have at least these conditions.
    pub selector: Option<Selector>,
    /// Only series of this PromQL expression.
    pub query: Option<String>,
    /// Only data in this range.
    pub range: Option<TimeRange>,
}

/// The members that a request to invalidate may have.
const INVALIDATE: [&str; 5] = ["upstream", "conditions", "query", "startTime", "endTime"];

/// The names of log levels, as in the configuration.
const LEVELS: [(&str, Level); 5] = [
    ("error", Level::ERROR),
    ("warn", Level::WARN),
    ("info", Level::INFO),
    ("debug", Level::DEBUG),
    ("trace", Level::TRACE),
];

/// Reads the body of a request to invalidate. A misspelled member is an error: ignoring it would
/// invalidate more than was meant.
pub fn read_invalidate(body: &[u8]) -> Result<Invalidate, Error> {
    let value = parse_within(body, None)?;
    let root = Node::root(&value);
    known_members(&root, &INVALIDATE)?;
    let conditions = root.member("conditions").is_present();
    let query = root.member("query").optional_string()?.map(str::to_owned);
    if conditions && query.is_some() {
        let message = "give `conditions` or `query`: no series has both";
        return Err(Error::invalid("query", message));
    }
    let start = root.member("startTime");
    let end = root.member("endTime");
    let range = match start.is_present() || end.is_present() {
        false => None,
        true => {
            let from = start.optional_integer(0, MAX_TIME)?.unwrap_or(0);
            let to = end.optional_integer(0, MAX_TIME)?.unwrap_or(MAX_TIME);
            Some(TimeRange::new(from, to).ok_or_else(|| reversed(&start, from, to))?)
        }
    };
    Ok(Invalidate {
        upstream: root.member("upstream").string()?.to_owned(),
        selector: conditions.then(|| selector(&root)).transpose()?,
        query,
        range,
    })
}

/// Reads the body of a request to set the log level.
pub fn read_level(body: &[u8]) -> Result<Level, Error> {
    let value = parse_within(body, None)?;
    let root = Node::root(&value);
    known_members(&root, &["level"])?;
    let level = root.member("level");
    let name = level.string()?;
    let found = LEVELS.iter().find(|(known, _)| *known == name);
    found.map(|(_, level)| *level).ok_or_else(|| {
        let names = LEVELS.map(|(name, _)| name).join(", ");
        level.expected(format!("one of {names}"))
    })
}

/// Returns the name of `level`.
pub fn level_name(level: Level) -> &'static str {
    let found = LEVELS.iter().find(|(_, known)| *known == level);
    found.map_or("info", |(name, _)| name)
}

fn known_members(root: &Node<'_>, known: &[&str]) -> Result<(), Error> {
    let unknown = root
        .object()?
        .iter()
        .find(|(name, _)| !known.contains(&&**name));
    match unknown {
        None => Ok(()),
        Some((name, _)) => {
            let message = format!("is unknown; the known names are {}", known.join(", "));
            Err(Error::invalid(
                name.chars().take(40).collect::<String>(),
                message,
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalidation_requests_are_read_strictly() {
        let read = |body: &str| read_invalidate(body.as_bytes()).map_err(|e| e.to_string());
        let all = read(r#"{"upstream":"a"}"#).unwrap();
        assert_eq!((all.selector, all.query, all.range), (None, None, None));
        let some = r#"{"upstream":"a","conditions":[{"key":"k","value":"v"}],"startTime":5}"#;
        let some = read(some).unwrap();
        assert_eq!(some.selector.map(|s| s.conditions().len()), Some(1));
        assert_eq!(some.range, TimeRange::new(5, MAX_TIME));
        for (body, expected) in [
            ("{}", "upstream"),
            (
                r#"{"upstream":"a","condition":[]}"#,
                "condition: is unknown",
            ),
            (
                r#"{"upstream":"a","conditions":[],"query":"up"}"#,
                "no series has both",
            ),
            (
                r#"{"upstream":"a","startTime":5,"endTime":4}"#,
                "must not be after",
            ),
            (r#"{"upstream":"a","startTime":"now"}"#, "startTime"),
            ("[]", "object"),
        ] {
            let said = read(body).unwrap_err();
            assert!(said.contains(expected), "{body}: {said}");
        }
    }

    #[test]
    fn levels_have_the_names_of_the_configuration() {
        for (name, level) in LEVELS {
            let body = format!("{{\"level\":\"{name}\"}}");
            assert_eq!(read_level(body.as_bytes()), Ok(level));
            assert_eq!(level_name(level), name);
        }
        let said = read_level(br#"{"level":"loud"}"#).unwrap_err().to_string();
        assert!(said.contains("error, warn, info, debug, trace"), "{said}");
    }
}
