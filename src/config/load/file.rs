//! The file as text: where in it an error is.

use super::ConfigError;

/// A file and what errors call it.
pub(super) struct File<'a> {
    pub(super) text: &'a str,
    pub(super) source: &'a str,
}

impl File<'_> {
    pub(super) fn error(
        &self,
        position: Option<(usize, usize)>,
        key: String,
        message: String,
    ) -> ConfigError {
        ConfigError {
            source: self.source.to_owned(),
            position,
            key,
            message,
        }
    }

    pub(super) fn toml_error(&self, error: &toml::de::Error) -> ConfigError {
        let at = error.span().map(|span| span.start);
        let position = at.map(|at| self.position(at));
        let key = at.map_or_else(String::new, |at| self.key_at(at));
        self.error(position, key, with_suggestion(error.message().trim()))
    }

    /// Line and column, from 1, of the byte `at`.
    fn position(&self, at: usize) -> (usize, usize) {
        let before = self.text.get(..at).unwrap_or(self.text);
        let line = before.matches('\n').count() + 1;
        let start = before.rfind('\n').map_or(0, |n| n + 1);
        let column = before.get(start..).map_or(0, |s| s.chars().count()) + 1;
        (line, column)
    }

    /// The dotted path of the key in whose line the byte `at` lies.
    fn key_at(&self, at: usize) -> String {
        let mut section = String::new();
        let mut upstreams = 0;
        let mut offset = 0;
        for line in self.text.split_inclusive('\n') {
            let content = line.trim();
            if let Some(header) = header(content) {
                section = header.to_owned();
                if content.starts_with("[[") {
                    section = format!("{header}[{upstreams}]");
                    upstreams += 1;
                }
            }
            offset += line.len();
            if at < offset {
                let key = content.split_once('=').map_or("", |(key, _)| key.trim());
                return match (section.is_empty(), key.is_empty()) {
                    (true, _) => key.to_owned(),
                    (false, true) => section,
                    (false, false) => format!("{section}.{key}"),
                };
            }
        }
        section
    }

    /// Where `key` of `section` stands, or where the section does.
    pub(super) fn locate(&self, section: &str, index: usize, key: &str) -> Option<(usize, usize)> {
        let mut seen = 0;
        let mut inside = None;
        for (number, line) in (1..).zip(self.text.lines()) {
            let content = line.trim();
            if let Some(header) = header(content) {
                if inside.is_some() {
                    break;
                }
                if header == section {
                    if seen == index {
                        inside = Some((number, 1));
                    }
                    seen += 1;
                }
            } else if inside.is_some()
                && content
                    .split_once('=')
                    .is_some_and(|(name, _)| name.trim() == key)
            {
                return Some((number, line.find(key).unwrap_or(0) + 1));
            }
        }
        inside
    }
}

/// The name in a section's head, such as `[server]` or `[[upstream]]`.
fn header(line: &str) -> Option<&str> {
    let line = line.split('#').next().unwrap_or(line).trim();
    let inner = line.strip_prefix('[')?.strip_suffix(']')?;
    let inner = inner
        .strip_prefix('[')
        .map_or(Some(inner), |s| s.strip_suffix(']'))?;
    Some(inner.trim())
}

/// `message` with the nearest of the names that it lists, where it is about an unknown one.
pub(super) fn with_suggestion(message: &str) -> String {
    // Text in the wrong place may be a secret.
    if message.starts_with("invalid type: string ")
        && let Some((_, expected)) = message.rsplit_once(", expected ")
    {
        return format!("invalid type: string, expected {expected}");
    }
    let mut names = message.split('`').skip(1).step_by(2);
    let unknown = names.next().unwrap_or_default();
    let is_unknown = message.starts_with("unknown field") || message.starts_with("unknown variant");
    let nearest = names.min_by_key(|name| strsim::damerau_levenshtein(name, unknown));
    match nearest {
        Some(name) if is_unknown && strsim::jaro(name, unknown) > 0.7 => {
            format!("{message}; did you mean `{name}`?")
        }
        _ => message.to_owned(),
    }
}
