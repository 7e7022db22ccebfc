//! Overrides from the environment.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::ConfigError;
use super::file::File;
use super::messages::{self, NameLevel};
use crate::config::raw;

/// The prefix of variables that override keys.
const PREFIX: &str = "HELIOSTAT_";

/// Returns the contents of `file` with the values that `env` has for its keys, as TOML and as the
/// raw configuration. `file` remembers the names of the variables.
pub(super) fn read(
    file: &mut File<'_>,
    env: &BTreeMap<String, String>,
) -> Result<(toml::Table, raw::RawConfig), ConfigError> {
    let (mut table, mut raw) = file.read()?;
    for (name, value) in env {
        let key = name.strip_prefix(PREFIX).filter(|key| key.contains("__"));
        if let Some(key) = key {
            let path;
            (table, raw, path) = overridden(&table, name, key, value)?;
            file.overridden.insert(path, name.clone());
        }
    }
    Ok((table, raw))
}

/// Sets the key in `table` that the variable `name` refers to, and returns its path. `value` is
/// parsed as TOML or, if that fails, used as a string.
fn overridden(
    table: &toml::Table,
    name: &str,
    key: &str,
    value: &str,
) -> Result<(toml::Table, raw::RawConfig, String), ConfigError> {
    let error = |key: String, message: String| ConfigError {
        source: format!("environment variable {name}"),
        position: None,
        key,
        message,
    };
    let keys: Vec<String> = key.split("__").map(str::to_ascii_lowercase).collect();
    let spelled = toml::from_str::<toml::Table>(&format!("value = {value}"))
        .ok()
        .and_then(|mut t| t.remove("value"));
    let text = toml::Value::String(value.to_owned());
    let mut first_error = None;
    let mut path = String::new();
    for candidate in [spelled, Some(text)].into_iter().flatten() {
        let mut changed = table.clone();
        path.clear();
        set(&mut changed, &keys, candidate, &mut path).map_err(|e| error(String::new(), e))?;
        match raw::RawConfig::deserialize(changed.clone()) {
            Ok(raw) => return Ok((changed, raw, path)),
            Err(e) => first_error = first_error.or(Some(e)),
        }
    }
    let message = first_error.map_or_else(String::new, |e| {
        let section = keys
            .first()
            .map(|section| format!("unknown field `{section}`"));
        let unknown = section.is_some_and(|start| e.message().starts_with(&start));
        let level = if unknown {
            NameLevel::Section
        } else {
            NameLevel::Key
        };
        messages::plain(e.message(), level)
    });
    Err(error(path, message))
}

/// Sets the value of `keys`, and writes its `path`. An upstream is referred to by its index or its
/// name.
fn set(
    table: &mut toml::Table,
    keys: &[String],
    value: toml::Value,
    path: &mut String,
) -> Result<(), String> {
    let Some((key, rest)) = keys.split_first().filter(|(key, _)| !key.is_empty()) else {
        return Err("names no key; separate its parts with two underscores".into());
    };
    if !path.is_empty() {
        path.push('.');
    }
    path.push_str(key);
    if rest.is_empty() {
        table.insert(key.clone(), value);
        return Ok(());
    }
    let entry = table
        .entry(key.clone())
        .or_insert_with(|| match key.as_str() {
            "upstream" => toml::Value::Array(Vec::new()),
            _ => toml::Value::Table(toml::Table::new()),
        });
    match entry {
        toml::Value::Table(inner) => set(inner, rest, value, path),
        toml::Value::Array(items) => {
            let Some((which, rest)) = rest.split_first() else {
                return Err("names no key; separate its parts with two underscores".into());
            };
            let names = |item: &toml::Value| {
                let name = item.get("name").and_then(toml::Value::as_str);
                name.is_some_and(|n| n.to_ascii_lowercase().replace('-', "_") == *which)
            };
            let at = match which.parse::<usize>() {
                Ok(at) => Some(at),
                Err(_) => items.iter().position(names),
            };
            let Some((at, toml::Value::Table(inner))) =
                at.and_then(|at| Some((at, items.get_mut(at)?)))
            else {
                return Err(format!(
                    "the file has no {key} {which:?}; refer to it by its name, or by its position from 0"
                ));
            };
            path.push_str(&format!("[{at}]"));
            set(inner, rest, value, path)
        }
        _ => Err(format!("{path} is not a section, and has no keys")),
    }
}
