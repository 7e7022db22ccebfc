//! The terminal: its width, and whether it shows colours.

use std::collections::BTreeMap;
use std::io::IsTerminal;

use clap::{Args, ValueEnum};

/// The default width.
const WIDTH: usize = 100;

/// The form in which an answer is shown.
#[derive(Debug, Args)]
pub(super) struct Look {
    /// Width in columns [default: COLUMNS, or that of the terminal, or 100]
    #[arg(long, value_name = "COLUMNS")]
    width: Option<usize>,

    /// When to use colours; NO_COLOR, CLICOLOR and CLICOLOR_FORCE are respected
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    color: When,
}

/// When colours are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum When {
    /// On a terminal
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

impl Look {
    /// Returns the width in columns.
    pub(super) fn width(&self, env: &BTreeMap<String, String>) -> usize {
        let said = || env.get("COLUMNS")?.parse().ok();
        let terminal = || terminal_size::terminal_size().map(|(width, _)| usize::from(width.0));
        let found = self.width.or_else(said).or_else(terminal);
        found.filter(|width| *width > 0).unwrap_or(WIDTH)
    }

    /// Returns whether standard output gets colours.
    pub(super) fn coloured(&self, env: &BTreeMap<String, String>) -> bool {
        coloured(self.color, env, std::io::stdout().is_terminal())
    }
}

/// Returns whether a stream, which may be a `terminal`, gets colours, by the rules of
/// <https://no-color.org> and <https://bixense.com/clicolors>.
pub(super) fn coloured(when: When, env: &BTreeMap<String, String>, terminal: bool) -> bool {
    let set = |name: &str| env.get(name).is_some_and(|value| !value.is_empty());
    let zero = |name: &str| env.get(name).is_some_and(|value| value == "0");
    match when {
        When::Always => true,
        When::Never => false,
        When::Auto if set("NO_COLOR") => false,
        When::Auto if set("CLICOLOR_FORCE") && !zero("CLICOLOR_FORCE") => true,
        When::Auto => terminal && !zero("CLICOLOR"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        pairs.iter().map(owned).collect()
    }

    #[test]
    fn colours_follow_the_option_then_the_environment_then_the_terminal() {
        let auto = |pairs: &[(&str, &str)], terminal| coloured(When::Auto, &env(pairs), terminal);
        assert!(auto(&[], true) && !auto(&[], false));
        assert!(!auto(&[("NO_COLOR", "1")], true));
        assert!(auto(&[("NO_COLOR", "")], true), "empty is not set");
        assert!(auto(&[("CLICOLOR_FORCE", "1")], false));
        assert!(!auto(&[("CLICOLOR_FORCE", "0")], false));
        assert!(!auto(&[("CLICOLOR", "0")], true) && auto(&[("CLICOLOR", "1")], true));
        assert!(!auto(&[("NO_COLOR", "1"), ("CLICOLOR_FORCE", "1")], true));
        assert!(coloured(When::Always, &env(&[("NO_COLOR", "1")]), false));
        assert!(!coloured(
            When::Never,
            &env(&[("CLICOLOR_FORCE", "1")]),
            true
        ));
    }

    #[test]
    fn the_width_is_the_option_then_the_environment() {
        let look = |width| Look {
            width,
            color: When::Auto,
        };
        assert_eq!(look(Some(60)).width(&env(&[("COLUMNS", "70")])), 60);
        assert_eq!(look(None).width(&env(&[("COLUMNS", "70")])), 70);
    }
}
