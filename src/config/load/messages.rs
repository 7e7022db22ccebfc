//! Translates errors of serde and TOML into the terms of the configuration file.

/// The level of a name in the file.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum NameLevel {
    /// At the top level, where sections are.
    Section,
    /// In a section.
    Key,
}

/// Returns `message` without names of Rust types, and without text from the file, which may be a
/// secret. An error about an unknown name suggests the closest known one.
pub(super) fn plain(message: &str, level: NameLevel) -> String {
    if message.contains("$__toml_private_datetime") {
        return "a date is not allowed here; text has to be in quotes".to_owned();
    }
    for start in ["invalid type: ", "invalid value: "] {
        if let Some(rest) = message.strip_prefix(start)
            && let Some((found, expected)) = rest.split_once(", expected ")
        {
            // A string may contain the separator.
            let expected = match found.starts_with("string ") {
                true => rest.rsplit_once(", expected ").map_or(expected, |p| p.1),
                false => expected,
            };
            return format!("expected {}, found {}", wanted(expected), given(found));
        }
    }
    if let Some(rest) = message.strip_prefix("unknown field ") {
        let (unknown, known) = names(rest);
        let (what, rest) = match level {
            NameLevel::Key => ("key", "the known keys are"),
            NameLevel::Section => ("section", "the sections are"),
        };
        let more = match level {
            NameLevel::Section => "; keys go below the header of their section, such as [server]",
            NameLevel::Key => "",
        };
        return match nearest(unknown, &known) {
            Some(name) => format!("unknown {what}, did you mean `{name}`?"),
            None => format!("unknown {what}; {rest} {}{more}", known.join(", ")),
        };
    }
    if let Some(rest) = message.strip_prefix("unknown variant ") {
        let (unknown, known) = names(rest);
        let suggestion = nearest(unknown, &known)
            .map_or(String::new(), |name| format!("; did you mean {name:?}?"));
        let known: Vec<String> = known.iter().map(|k| format!("{k:?}")).collect();
        let known = known.join(", ");
        return format!("expected one of {known}, found {unknown:?}{suggestion}");
    }
    let syntax = SYNTAX.iter().find(|(start, _)| message.starts_with(start));
    syntax.map_or(message, |(_, words)| words).to_owned()
}

/// Messages of the TOML parser and their replacements.
const SYNTAX: [(&str, &str); 8] = [
    (
        "string values must be quoted",
        "expected a value; text has to be in quotes: \"…\"",
    ),
    (
        "invalid float",
        "not a number; text has to be in quotes: \"…\"",
    ),
    (
        "key with no value",
        "expected key = value or [section], as TOML is written",
    ),
    (
        "invalid key-value pair",
        "expected key = value or [section], as TOML is written",
    ),
    ("invalid basic string", "the text has no closing quote"),
    (
        "unexpected key or value",
        "unexpected text after the value; put it on a line of its own, or start a comment with #",
    ),
    (
        "missing escaped value",
        "a backslash in double quotes starts an escape; double it, or put the text in single quotes",
    ),
    ("duplicate key", "is set twice"),
];

/// Returns the first name in backticks, and the others.
fn names(text: &str) -> (&str, Vec<&str>) {
    let mut names = text.split('`').skip(1).step_by(2);
    let unknown = names.next().unwrap_or_default();
    (unknown, names.collect())
}

fn nearest<'a>(unknown: &str, known: &[&'a str]) -> Option<&'a str> {
    let unknown = unknown.to_ascii_lowercase();
    let edits = |name: &str| strsim::damerau_levenshtein(name, &unknown);
    // A name is suggested only if at most half of it differs.
    let near = |name: &&&str| {
        strsim::jaro(name, &unknown) > 0.7 && edits(name) * 2 <= name.len().max(unknown.len())
    };
    let all = known.iter().filter(near);
    all.min_by_key(|name| edits(name)).copied()
}

fn wanted(expected: &str) -> String {
    match expected {
        "u32" => format!("a whole number from 0 to {}", u32::MAX),
        "f64" => "a number".to_owned(),
        "a boolean" => "true or false".to_owned(),
        "a sequence" => "an array in brackets, [ … ]".to_owned(),
        "a map" => "a table, { … }".to_owned(),
        other => other.to_owned(),
    }
}

fn given(found: &str) -> String {
    let (kind, value) = found.split_once(' ').unwrap_or((found, ""));
    match kind {
        "string" => "a string".to_owned(),
        "map" => "a table".to_owned(),
        "sequence" => "an array".to_owned(),
        "floating" => value.trim_start_matches("point ").replace('`', ""),
        "integer" if value.ends_with("128") => "a number of more than 64 bits".to_owned(),
        "integer" | "boolean" if !value.is_empty() => value.replace('`', ""),
        "integer" | "boolean" => format!("a {kind}").replace("a i", "an i"),
        _ => found.to_owned(),
    }
}
