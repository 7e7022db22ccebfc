//! `heliostat config`: the configuration in effect.

use std::collections::BTreeMap;

use super::terminal::{When, coloured};
use crate::config::Config;
use crate::model::SettingOrigin;

/// Returns every key of `config` that has a value, as TOML with its origin in a comment; secrets
/// are masked. Defaults are faint on a `terminal`.
pub(super) fn shown(config: &Config, env: &BTreeMap<String, String>, terminal: bool) -> String {
    let coloured = coloured(When::Auto, env, terminal);
    let source = config.file().unwrap_or("built-in defaults, no file");
    let mut out = format!("# {source}; secrets are masked\n");
    let mut section = String::new();
    for setting in config.settings() {
        let (of, key) = match setting.key.split_once(']') {
            Some((of, key)) => (format!("{of}]"), key.trim_start_matches('.')),
            None => {
                let (of, key) = setting.key.split_once('.').unwrap_or((&setting.key, ""));
                (of.to_owned(), key)
            }
        };
        if of != section {
            let heading = match of.split_once('[') {
                Some((name, index)) => format!("[[{name}]]  # {}", index.trim_end_matches(']')),
                None => format!("[{of}]"),
            };
            out += &format!("\n{heading}\n");
            section = of;
        }
        let at = setting.at.as_deref().unwrap_or("default");
        let assigned = format!("{key} = {}", setting.value);
        let line = format!("{assigned:<48}  # {at}");
        out += &match setting.origin == SettingOrigin::Default && coloured {
            true => format!("\x1b[2m{line}\x1b[0m\n"),
            false => format!("{line}\n"),
        };
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_has_its_value_and_its_origin() {
        let text = "[server]\napi_key = \"s3cret\"\n[[upstream]]\nkind = \"demo\"\n";
        let env = BTreeMap::from([("HELIOSTAT_LOG__LEVEL".to_owned(), "warn".to_owned())]);
        let config = crate::config::parse(text, "c.toml", &env).unwrap();
        let said = shown(&config, &env, false);
        let line = |start: &str| {
            let found = said.lines().find(|line| line.starts_with(start));
            found
                .unwrap_or_else(|| panic!("{start}: {said}"))
                .to_owned()
        };
        assert!(
            said.starts_with("# c.toml; secrets are masked\n\n[server]\n"),
            "{said}"
        );
        assert!(line("api_key = (secret)").ends_with("# c.toml:2"), "{said}");
        assert!(line("level = \"warn\"").ends_with("# HELIOSTAT_LOG__LEVEL"));
        assert!(line("memory = ").ends_with("# default"));
        assert!(said.contains("\n[[upstream]]  # 0\n"), "{said}");
        assert!(!said.contains("s3cret"));
        let coloured = shown(&config, &BTreeMap::new(), true);
        assert!(coloured.contains("\u{1b}[2mmemory"), "{coloured:?}");
    }
}
