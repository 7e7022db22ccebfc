//! The configuration in effect, key by key, with the origin of each value and without secrets.
//!
//! The built-in file names every key that has a default, so the configuration in effect is that
//! file overlaid with the loaded one.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use toml::{Table, Value};

use super::file::File;
use super::{BUILT_IN, BUILT_IN_NAME};
use crate::config::raw;
use crate::model::{Setting, SettingOrigin};

/// The sources that a configuration was read from.
#[derive(Clone)]
pub(in crate::config) struct Document {
    /// The text of the file and its name in errors.
    text: String,
    source: String,
    /// Its contents, including values from the environment.
    table: Table,
    /// Keys set by the environment, and the names of the variables.
    overridden: BTreeMap<String, String>,
}

impl fmt::Debug for Document {
    /// Omits the text, which may contain secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Document(…)")
    }
}

/// The text shown instead of a secret.
const MASK: &str = "(secret)";

/// Values that are not secret even where a secret may be given.
const PLAIN_WORDS: [&str; 3] = ["", "none", "forward"];

impl Document {
    pub(super) fn new(file: &File<'_>, table: Table) -> Self {
        Self {
            text: file.text().to_owned(),
            source: file.source().to_owned(),
            table,
            overridden: file.overridden.clone(),
        }
    }

    /// Returns the path of the file; `None` for the built-in defaults.
    pub(in crate::config) fn file(&self) -> Option<&str> {
        (self.source != BUILT_IN_NAME).then_some(&*self.source)
    }

    /// Returns every key that has a value, in the order of the built-in file; `default` is the
    /// upstream for requests that name none.
    pub(in crate::config) fn settings(&self, default: &str) -> Vec<Setting> {
        let file = File::new(&self.text, &self.source);
        let built_in = File::new(BUILT_IN, "");
        let mut leaves = Vec::new();
        for (section, value) in self.effective(default) {
            flatten(&section, &value, &mut leaves);
        }
        let rank = |key: &str| {
            let index = key
                .strip_prefix("upstream[")
                .and_then(|k| k.split(']').next());
            let index: usize = index.and_then(|i| i.parse().ok()).unwrap_or(0);
            let of_first = key.replacen(&format!("upstream[{index}]"), "upstream[0]", 1);
            (index, built_in.locate(&of_first))
        };
        leaves.sort_by_cached_key(|(key, _)| (rank(key), key.clone()));
        let setting = |(key, value): (String, Value)| {
            let (origin, at) = self.origin(&key, &file);
            let value = match origin {
                SettingOrigin::Default => written(&value),
                _ => self.masked(&key, &value),
            };
            Setting {
                key,
                value,
                origin,
                at,
            }
        };
        leaves.into_iter().map(setting).collect()
    }

    /// Returns the loaded values over the defaults.
    fn effective(&self, default: &str) -> Table {
        let mut all = parsed(BUILT_IN);
        let usual = match all.remove("upstream") {
            Some(Value::Array(mut upstreams)) if !upstreams.is_empty() => upstreams.swap_remove(0),
            _ => Value::Table(Table::new()),
        };
        let mut said = self.table.clone();
        let upstreams = match said.remove("upstream") {
            Some(Value::Array(upstreams)) if !upstreams.is_empty() => upstreams,
            _ => vec![usual.clone()],
        };
        merge(&mut all, said);
        let upstream = |said: Value| {
            let (Value::Table(mut all), Value::Table(mut said)) = (usual.clone(), said) else {
                return usual.clone();
            };
            let text = |key| said.get(key).and_then(Value::as_str).map(str::to_owned);
            let kind = text("kind").unwrap_or_else(|| "demo".to_owned());
            let name = text("name").unwrap_or_else(|| kind.clone());
            let marked = Value::Boolean(name == default);
            if kind != "demo" {
                all.remove("demo");
            }
            all.insert("name".into(), name.into());
            // A limit without its own burst allows the calls of one second at once.
            let limit = said.get_mut("rate_limit").and_then(Value::as_table_mut);
            let burst = limit.and_then(|limit| {
                let rate = limit.get("per_second")?;
                let rate = rate.as_float().or(rate.as_integer().map(|n| n as f64))?;
                Some((limit.contains_key("burst"), rate.ceil() as i64))
            });
            if let Some((false, burst)) = burst
                && let Some(Value::Table(limit)) = all.get_mut("rate_limit")
            {
                limit.insert("burst".into(), burst.into());
            }
            all.insert("default".into(), marked);
            merge(&mut all, said);
            Value::Table(all)
        };
        let upstreams = upstreams.into_iter().map(upstream).collect();
        all.insert("upstream".into(), Value::Array(upstreams));
        all
    }

    /// Returns what set `key`, and where.
    fn origin(&self, key: &str, file: &File<'_>) -> (SettingOrigin, Option<String>) {
        let within = |outer: &str| {
            let rest = key.strip_prefix(outer);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        };
        if let Some((_, name)) = self.overridden.iter().find(|(outer, _)| within(outer)) {
            return (SettingOrigin::Environment, Some(name.clone()));
        }
        let table = Value::Table(self.table.clone());
        if self.file().is_none() || at(&table, key).is_none() {
            return (SettingOrigin::Default, None);
        }
        let line = file.locate(key).map(|(line, _)| line);
        let place = line.map(|line| format!("{}:{line}", self.source));
        (SettingOrigin::File, place)
    }

    /// Returns `value` of `key` as text, masked if it is secret.
    fn masked(&self, key: &str, value: &Value) -> String {
        if let Value::Array(elements) = value {
            let element = |(n, value): (usize, &Value)| self.masked(&format!("{key}[{n}]"), value);
            let elements: Vec<String> = elements.iter().enumerate().map(element).collect();
            return format!("[{}]", elements.join(", "));
        }
        let table = Value::Table(self.table.clone());
        let takes = |name: &str| {
            let mut changed = table.clone();
            let pointer = Table::from_iter([(name.to_owned(), Value::from("X"))]);
            if let Some(place) = at_mut(&mut changed, key) {
                *place = Value::Table(pointer);
            }
            raw::RawConfig::deserialize(changed).is_ok()
        };
        // A key whose value may come from a variable or a file is a secret; a key that may be any
        // table may contain some.
        let plain = value.as_str().is_some_and(|v| PLAIN_WORDS.contains(&v));
        let pointer = value.is_table() && !takes("anything");
        match plain || pointer || !takes("env") {
            true => written(value),
            false => MASK.to_owned(),
        }
    }
}

fn parsed(text: &str) -> Table {
    // A test makes sure that the built-in text is valid.
    toml::from_str(text).unwrap_or_default()
}

/// Overlays `table` with `over`, table by table.
fn merge(table: &mut Table, over: Table) {
    for (key, value) in over {
        match (table.get_mut(&key), value) {
            (Some(Value::Table(inner)), Value::Table(value)) if !points(&value) => {
                merge(inner, value);
            }
            (_, value) => {
                table.insert(key, value);
            }
        }
    }
}

/// Returns whether `table` only states where a secret is.
fn points(table: &Table) -> bool {
    let mut entries = table.iter();
    matches!((entries.next(), entries.next()), (Some((key, Value::String(_))), None) if key == "env" || key == "file")
}

/// Collects the values below `value`, which has the key `key`, with their keys.
fn flatten(key: &str, value: &Value, leaves: &mut Vec<(String, Value)>) {
    match value {
        Value::Table(table) if !points(table) && !table.is_empty() => {
            for (name, value) in table {
                flatten(&format!("{key}.{name}"), value, leaves);
            }
        }
        Value::Array(elements)
            if !elements.is_empty()
                && elements
                    .iter()
                    .all(|e| e.as_table().is_some_and(|t| !points(t))) =>
        {
            for (n, value) in elements.iter().enumerate() {
                flatten(&format!("{key}[{n}]"), value, leaves);
            }
        }
        _ => leaves.push((key.to_owned(), value.clone())),
    }
}

/// Returns the value of `key` below `value`.
fn at<'a>(value: &'a Value, key: &str) -> Option<&'a Value> {
    let Some((name, rest)) = first(value, key) else {
        return key.is_empty().then_some(value);
    };
    let inner = match name {
        KeyStep::Key(name) => value.as_table()?.get(name)?,
        KeyStep::Index(n) => value.as_array()?.get(n)?,
    };
    at(inner, rest)
}

fn at_mut<'a>(value: &'a mut Value, key: &str) -> Option<&'a mut Value> {
    let Some((name, rest)) = first(value, key) else {
        return key.is_empty().then_some(value);
    };
    let inner = match name {
        KeyStep::Key(name) => value.as_table_mut()?.get_mut(name)?,
        KeyStep::Index(n) => value.as_array_mut()?.get_mut(n)?,
    };
    at_mut(inner, rest)
}

/// One step of the path to a value.
enum KeyStep<'k> {
    Key(&'k str),
    Index(usize),
}

/// Returns the first step of `key` below `value`, and the rest. Names may contain dots, as headers
/// do.
fn first<'k>(value: &Value, key: &'k str) -> Option<(KeyStep<'k>, &'k str)> {
    if let Some(indexed) = key.strip_prefix('[') {
        let (n, rest) = indexed.split_once(']')?;
        return Some((KeyStep::Index(n.parse().ok()?), rest));
    }
    let key = key.strip_prefix('.').unwrap_or(key);
    let table = value.as_table()?;
    let names = table.keys().filter_map(|name| {
        let rest = key.strip_prefix(name.as_str())?;
        (rest.is_empty() || rest.starts_with(['.', '['])).then_some((name.len(), rest))
    });
    let (length, rest) = names.max_by_key(|(length, _)| *length)?;
    Some((KeyStep::Key(key.get(..length)?), rest))
}

/// Returns `value` as TOML.
fn written(value: &Value) -> String {
    match value {
        Value::String(text) => quoted(text),
        Value::Integer(n) => n.to_string(),
        Value::Float(n) => format!("{n:?}"),
        Value::Boolean(b) => b.to_string(),
        Value::Datetime(t) => t.to_string(),
        Value::Array(elements) => {
            let elements: Vec<String> = elements.iter().map(written).collect();
            format!("[{}]", elements.join(", "))
        }
        Value::Table(table) if table.is_empty() => "{}".to_owned(),
        Value::Table(table) => {
            let entry = |(key, value): (&String, &Value)| {
                let bare = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
                let key = match !key.is_empty() && key.chars().all(bare) {
                    true => key.clone(),
                    false => quoted(key),
                };
                format!("{key} = {}", written(value))
            };
            let entries: Vec<String> = table.iter().map(entry).collect();
            format!("{{ {} }}", entries.join(", "))
        }
    }
}

/// Returns `text` as a basic string of TOML.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c.is_control() => out.push_str(&format!("\\u{:04X}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, parse};

    fn config(text: &str, env: &[(&str, &str)]) -> Config {
        let env = env.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned()));
        parse(text, "c.toml", &env.collect()).unwrap()
    }

    fn find(settings: &[Setting], key: &str) -> Option<(String, SettingOrigin, Option<String>)> {
        let found = settings.iter().find(|s| s.key == key)?;
        Some((found.value.clone(), found.origin, found.at.clone()))
    }

    const FULL: &str = r#"
[server]
listen = "127.0.0.1:1"
api_key = "hidden-1"
[access.mirror]
tokens = ["sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"]
users = { "a.b" = { env = "HIDDEN" } }
[[upstream]]
name = "prom"
kind = "prometheus"
urls = ["http://a:1", "http://b:2"]
headers = { X-Scope-OrgID = "hidden-2", "X.Y" = { env = "TOKEN" } }
proxy = "http://u:hidden-3@proxy:1"
rate_limit = { per_second = 2.5 }
[[upstream]]
name = "old"
kind = "mirror"
urls = ["http://c:3"]
default = true
api_key = "hidden-4"
connection_details = { host = "hidden-5", port = 5, inner = { env = "hidden-6" } }
[cache.shared]
password = "hidden-8"
sentinel_password = "hidden-9"
secret = "hidden-10"
"#;

    #[test]
    fn values_say_where_they_come_from_and_secrets_are_masked() {
        let env = [
            ("HELIOSTAT_SERVER__MAX_POINTS", "77"),
            ("HELIOSTAT_UPSTREAM__OLD__REFRESH", "5s"),
            (
                "HIDDEN",
                "$2b$10$abcdefghijklmnopqrstuugFgv7Nt9UUUQFT67LyuDtVIULBi6N56",
            ),
            ("TOKEN", "hidden-7"),
        ];
        let settings = config(FULL, &env).settings();
        let at = |key| find(&settings, key).unwrap_or_else(|| panic!("{key}: {settings:#?}"));
        let file = |value: &str, line: usize| {
            (
                value.to_owned(),
                SettingOrigin::File,
                Some(format!("c.toml:{line}")),
            )
        };
        let default = |value: &str| (value.to_owned(), SettingOrigin::Default, None);
        let env = |value: &str, name: &str| {
            (
                value.to_owned(),
                SettingOrigin::Environment,
                Some(name.to_owned()),
            )
        };
        assert_eq!(at("server.listen"), file("\"127.0.0.1:1\"", 3));
        assert_eq!(at("server.api_key"), file("(secret)", 4));
        assert_eq!(
            at("server.max_points"),
            env("77", "HELIOSTAT_SERVER__MAX_POINTS")
        );
        assert_eq!(at("server.request_timeout"), default("\"14s\""));
        assert_eq!(at("access.mirror.tokens"), file("[(secret)]", 6));
        assert_eq!(at("access.mirror.users.a.b").0, "{ env = \"HIDDEN\" }");
        assert_eq!(
            at("upstream[0].urls"),
            file("[\"http://a:1\", \"http://b:2\"]", 11)
        );
        assert_eq!(at("upstream[0].headers.X-Scope-OrgID").0, "(secret)");
        assert_eq!(at("upstream[0].headers.X.Y").0, "{ env = \"TOKEN\" }");
        assert_eq!(at("upstream[0].proxy").0, "(secret)");
        assert_eq!(at("upstream[0].rate_limit.burst"), default("3"));
        assert_eq!(at("upstream[0].default"), default("false"));
        assert_eq!(at("upstream[1].default").0, "true");
        assert_eq!(
            at("upstream[1].refresh"),
            env("\"5s\"", "HELIOSTAT_UPSTREAM__OLD__REFRESH")
        );
        assert_eq!(at("upstream[1].breaker.failures"), default("5"));
        assert_eq!(find(&settings, "upstream[1].demo.latency"), None);
        let all = format!("{settings:?}");
        assert!(!all.contains("hidden-"), "{all}");
        assert!(!all.contains("9f86d081"), "{all}");
        let order: Vec<&str> = settings.iter().map(|s| s.key.as_str()).collect();
        let place = |key| order.iter().position(|k| *k == key);
        assert!(place("server.listen") < place("access.mirror.tokens"));
        assert!(place("access.mirror.tokens") < place("cache.memory"));
        assert!(place("upstream[0].queue") < place("upstream[1].name"));
    }

    #[test]
    fn settings_said_to_be_in_effect_are() {
        let secrets = [
            (
                "HIDDEN",
                "$2b$10$abcdefghijklmnopqrstuugFgv7Nt9UUUQFT67LyuDtVIULBi6N56",
            ),
            ("TOKEN", "t"),
        ];
        let demo = "[[upstream]]\nkind = \"demo\"\ndemo = { latency = \"1ms\" }\n";
        for text in ["", BUILT_IN, FULL, demo] {
            let one = config(text, &secrets);
            let effective = one.document.effective(&one.default_upstream);
            let mut lines = String::new();
            for (key, value) in effective {
                lines += &format!("{key} = {}\n", written(&value));
            }
            let other = config(&lines, &secrets);
            assert_eq!(format!("{one:?}"), format!("{other:?}"));
        }
    }

    #[test]
    fn without_a_file_all_is_default() {
        let config_of_none = crate::config::load(None, &BTreeMap::new()).unwrap();
        let settings = config_of_none.settings();
        assert!(settings.iter().all(|s| s.origin == SettingOrigin::Default));
        assert!(settings.len() > 40, "{settings:#?}");
        assert_eq!(config_of_none.file(), None);
        assert_eq!(config("", &[]).file(), Some("c.toml"));
    }
}
