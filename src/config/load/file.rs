//! The text of the file, used to locate errors in it.

use std::collections::BTreeMap;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::ConfigError;
use super::messages::{self, NameLevel};
use crate::config::raw;

/// A file, its name in errors, and the values that the environment overrides.
pub(super) struct File<'a> {
    text: &'a str,
    source: &'a str,
    /// The part of it that could be parsed.
    table: DeTable<'a>,
    /// Keys overridden by a variable, such as `upstream[0].timeout`, and the name of that variable.
    pub(super) overridden: BTreeMap<String, String>,
}

impl<'a> File<'a> {
    pub(super) fn new(text: &'a str, source: &'a str) -> Self {
        Self {
            text,
            source,
            table: DeTable::parse_recoverable(text).0.into_inner(),
            overridden: BTreeMap::new(),
        }
    }

    /// Returns the text of the file.
    pub(super) fn text(&self) -> &'a str {
        self.text
    }

    /// Returns the name of the file in errors.
    pub(super) fn source(&self) -> &'a str {
        self.source
    }

    /// Parses the file.
    pub(super) fn read(&self) -> Result<(toml::Table, raw::RawConfig), ConfigError> {
        let raw = toml::from_str(self.text);
        let both = raw.and_then(|raw| Ok((toml::from_str(self.text)?, raw)));
        both.map_err(|e| self.toml_error(&e))
    }

    /// Creates an error about `key`, which may be absent from the file.
    pub(super) fn error(&self, key: String, message: String) -> ConfigError {
        let within = |outer: &str| {
            let rest = key.strip_prefix(outer);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        };
        let variable = self.overridden.iter().find(|(outer, _)| within(outer));
        let (source, position) = match variable {
            Some((_, name)) => (format!("environment variable {name}"), None),
            None => (self.source.to_owned(), self.locate(&key)),
        };
        ConfigError {
            source,
            position,
            key,
            message,
        }
    }

    fn toml_error(&self, error: &toml::de::Error) -> ConfigError {
        let at = error.span().map(|span| span.start);
        // If a key is set twice, the table has the first value.
        let twice = error.message().starts_with("duplicate key");
        let key = at.map(|at| {
            let known = key_at(&self.table, at).filter(|_| !twice);
            known.unwrap_or_else(|| self.key_by_line(at))
        });
        let key = key.unwrap_or_default();
        let level = match key.contains('.') {
            true => NameLevel::Key,
            false => NameLevel::Section,
        };
        ConfigError {
            source: self.source.to_owned(),
            position: at.map(|at| self.position(at)),
            message: messages::plain(error.message().trim(), level),
            key,
        }
    }

    /// Returns the key that is set in the line of the byte `at`, or its section. It works line by
    /// line, for text that is not valid TOML.
    fn key_by_line(&self, at: usize) -> String {
        let before = self.text.get(..at).unwrap_or(self.text);
        let number = before.matches('\n').count();
        let head = |line: &'a str| line.trim().strip_prefix('[')?.split(']').next();
        let heads = || self.text.lines().take(number + 1).filter_map(head);
        let section = heads().last().unwrap_or_default();
        let index = heads().filter(|head| *head == section).count();
        let section = match section.strip_prefix('[') {
            Some(name) => format!("{name}[{}]", index.saturating_sub(1)),
            None => section.to_owned(),
        };
        let line = self.text.lines().nth(number);
        let key = line.and_then(|line| line.split_once('='));
        let key = key.map_or("", |(key, _)| key.trim());
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"_-.".contains(&b);
        match (
            section.is_empty(),
            key.is_empty() || !key.bytes().all(plain),
        ) {
            (true, true) => String::new(),
            (true, false) => key.to_owned(),
            (false, true) => section,
            (false, false) => format!("{section}.{key}"),
        }
    }

    /// Returns line and column, from 1, of the byte `at`.
    pub(super) fn position(&self, at: usize) -> (usize, usize) {
        let before = self.text.get(..at).unwrap_or(self.text);
        let line = before.matches('\n').count() + 1;
        let start = before.rfind('\n').map_or(0, |n| n + 1);
        let column = before.get(start..).map_or(0, |s| s.chars().count()) + 1;
        (line, column)
    }

    /// Returns the position of `key`, or of the part of the file that contains it.
    pub(super) fn locate(&self, key: &str) -> Option<(usize, usize)> {
        span(&self.table, key).map(|at| self.position(at))
    }
}

/// Returns the position in `table` of `key`, or else of the innermost table around it.
fn span(table: &DeTable<'_>, key: &str) -> Option<usize> {
    // Header names may contain dots.
    if let Some((found, _)) = table.get_key_value(key) {
        return Some(found.span().start);
    }
    let (first, rest) = match key.split_once('.') {
        Some((first, rest)) => (first, Some(rest)),
        None => (key, None),
    };
    let (name, index) = match first.strip_suffix(']').and_then(|f| f.split_once('[')) {
        Some((name, index)) => (name, index.parse::<usize>().ok()),
        None => (first, None),
    };
    let (found, value) = table.get_key_value(name)?;
    let mut at = found.span().start;
    let mut value: &Spanned<DeValue<'_>> = value;
    if let Some(element) = index.and_then(|i| value.get_ref().as_array()?.get(i)) {
        value = element;
        at = value.span().start;
    }
    let inner = value.get_ref().as_table().zip(rest);
    inner
        .and_then(|(table, rest)| span(table, rest))
        .or(Some(at))
}

/// Returns the innermost key of `table` at the byte `at`, such as `upstream[0].rate_limit.burst`.
fn key_at(table: &DeTable<'_>, at: usize) -> Option<String> {
    let mut found = None;
    for (key, value) in table {
        let name = shown(key.get_ref());
        let holds = |span: std::ops::Range<usize>| span.contains(&at) || span.start == at;
        if let Some(inner) = inside(value, at) {
            return Some(format!("{name}{inner}"));
        }
        if holds(key.span()) || holds(value.span()) {
            found = Some(name);
        }
    }
    found
}

/// Returns the name of a key for errors, cut at a colon or blank: the rest may be a secret.
fn shown(name: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "_-.".contains(c);
    match name.find(|c| !plain(c)) {
        Some(end) => format!("{}…", name.get(..end).unwrap_or_default()),
        None => name.to_owned(),
    }
}

/// Returns the rest of a key's path, for the part of its value at the byte `at`.
fn inside(value: &Spanned<DeValue<'_>>, at: usize) -> Option<String> {
    match value.get_ref() {
        DeValue::Table(table) => key_at(table, at).map(|key| format!(".{key}")),
        DeValue::Array(elements) => (0..).zip(elements.iter()).find_map(|(index, element)| {
            let index: usize = index;
            let inner = inside(element, at);
            let here = || element.span().contains(&at).then(String::new);
            inner.or_else(here).map(|rest| format!("[{index}]{rest}"))
        }),
        _ => None,
    }
}
