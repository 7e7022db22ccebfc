//! `heliostat explain`: shows where the answer to a query would come from, as a bar above a time
//! axis.

use std::collections::BTreeMap;
use std::process::ExitCode;

use clap::Args;
use serde_json::Value;

use super::client::ServerConnection;
use super::query::{Asked, Failed, ended, failed, typed};
use super::source::Source;
use super::terminal::Look;
use super::time::{TimeAxis, show, span_text};
use super::view::plain_text;
use super::{expression, say};
use crate::model::Millis;

pub(super) const EXAMPLES: &str = "Examples:
  heliostat explain --token-file token --last 6h name=cpu.usage_percent host=web-1
  heliostat explain --token-file token --upstream prom --last 1d --expr 'rate(http_requests_total[5m])'";

/// The plan for a query without running it; takes the arguments of `query`.
#[derive(Debug, Args)]
pub(super) struct Explain {
    #[command(flatten)]
    asked: Asked,

    #[command(flatten)]
    connection: ServerConnection,

    #[command(flatten)]
    look: Look,

    /// Print the answer unchanged
    #[arg(long)]
    json: bool,
}

/// The source of a part of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CoverageKind {
    Settled,
    Second,
    Tail,
    Expired,
    Nothing,
}

impl CoverageKind {
    const ALL: [Self; 5] = [
        Self::Settled,
        Self::Second,
        Self::Tail,
        Self::Expired,
        Self::Nothing,
    ];

    /// Returns its character, its colour (ECMA-48) and its description.
    fn look(self) -> (char, u8, &'static str) {
        match self {
            Self::Settled => ('█', 32, "settled"),
            Self::Second => ('▆', 34, "second level"),
            Self::Tail => ('▓', 36, "may still change, fresh"),
            Self::Expired => ('▒', 31, "expired, fetched again"),
            Self::Nothing => ('░', 33, "not known, fetched"),
        }
    }
}

impl Explain {
    /// Queries the server of `source` and shows its explanation.
    pub(super) fn run(&self, source: &Source, env: &BTreeMap<String, String>) -> ExitCode {
        ended(self.outcome(source, env))
    }

    fn outcome(&self, source: &Source, env: &BTreeMap<String, String>) -> Result<(), Failed> {
        let reply = match &self.asked.expr {
            Some(expr) => {
                let range = self.asked.range().map_err(typed)?;
                let step = self.asked.step(&range).map_err(typed)?;
                let path = expression::path(self.asked.upstream.as_deref(), expr, &range, step);
                source.get(&self.connection, &format!("/admin/v1/explain{path}"))
            }
            None => {
                let (body, _) = self.asked.metric().map_err(typed)?;
                source.post(&self.connection, "/admin/v1/explain/api/metric", body)
            }
        };
        let reply = reply
            .and_then(super::client::Reply::accepted)
            .map_err(failed)?;
        if self.json {
            say(&reply.body);
            say("\n");
            return Ok(());
        }
        let said: Value = serde_json::from_slice(&reply.body)
            .map_err(|e| failed(format!("the answer is not an explanation: {e}")))?;
        say(&shown(&said, self.look.width(env), self.look.coloured(env)));
        Ok(())
    }
}

/// Returns the explanation `said` as text of `width` columns.
fn shown(said: &Value, width: usize, coloured: bool) -> String {
    let text = |key: &str| said.get(key).and_then(Value::as_str).map(plain_text);
    let answer = match text("answer").unwrap_or_default().as_str() {
        "cache" => "from the cache".to_owned(),
        "secondLevel" => "from memory and the second level of the cache".to_owned(),
        "expired" => "expired data at once, refreshed in the background".to_owned(),
        "wait" => "waits for a fetch in flight".to_owned(),
        "fetch" => "fetches what is missing".to_owned(),
        "refused" => format!("refused: {}", text("refused").unwrap_or_default()),
        other => other.to_owned(),
    };
    let mut out = format!("{}: {answer}\n", text("upstream").unwrap_or_default());
    if let Some(reason) = text("bypass") {
        out += &format!("the answer is not cached: {reason}\n");
    }
    for range in list(said, "stretches") {
        out += &range_shown(range, "", width, coloured);
    }
    if let Some(whole) = said.get("whole").filter(|w| !w.is_null()) {
        let held = whole
            .get("held")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let age = whole.get("ageSeconds").and_then(Value::as_f64);
        let age = age.map_or_else(String::new, |s| {
            format!(", {} old", span_text((s * 1000.0) as Millis))
        });
        out += &format!("kept whole: {}{age}\n", plain_text(held));
    }
    out
}

fn list<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value
        .get(key)
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
}

fn span(value: &Value) -> Option<(Millis, Millis)> {
    let time = |key: &str| value.get(key).and_then(Value::as_i64);
    Some((time("startTime")?, time("endTime")?))
}

/// Returns what `range` says about the instant `t`.
fn known(range: &Value, t: Millis) -> CoverageKind {
    let holds = |part: &&Value| span(part).is_some_and(|(start, end)| (start..end).contains(&t));
    for missing in list(range, "missing") {
        if let Some(why) = list(missing, "why").find(holds) {
            return match why.get("reason").and_then(Value::as_str) {
                Some("expired") => CoverageKind::Expired,
                _ => CoverageKind::Nothing,
            };
        }
    }
    let fresh = |part: &Value| part.get("freshSeconds").and_then(Value::as_f64);
    match list(range, "cached").find(holds) {
        None => CoverageKind::Nothing,
        Some(part) if fresh(part).is_some_and(|seconds| seconds < 0.0) => CoverageKind::Expired,
        Some(part) if part.get("secondLevel") == Some(&Value::Bool(true)) => CoverageKind::Second,
        Some(part) if part.get("settled") == Some(&Value::Bool(true)) => CoverageKind::Settled,
        Some(_) => CoverageKind::Tail,
    }
}

/// Returns one range, and the raw points that it is made from, each with a bar.
fn range_shown(range: &Value, indent: &str, width: usize, coloured: bool) -> String {
    let Some((start, end)) = span(range) else {
        return String::new();
    };
    let cell = range.get("cellMillis").and_then(Value::as_i64).unwrap_or(0);
    let what = match indent.is_empty() {
        true => "every",
        false => "made of raw points, every",
    };
    let mut out = format!(
        "{indent}{} – {} UTC, {what} {}\n",
        show(start),
        show(end),
        span_text(cell)
    );
    let columns = width.saturating_sub(indent.len() + 1).clamp(20, 1000);
    let axis = TimeAxis {
        start,
        end,
        columns,
    };
    let middle = |column: usize| {
        let share = (column as f64 + 0.5) / columns as f64;
        start + ((end - start) as f64 * share) as Millis
    };
    let bar: Vec<CoverageKind> = (0..columns)
        .map(|column| known(range, middle(column)))
        .collect();
    let painted = |part: CoverageKind, text: &str| match coloured {
        true => format!("\x1b[{}m{text}\x1b[0m", part.look().1),
        false => text.to_owned(),
    };
    out += indent;
    for same in bar.chunk_by(|a, b| a == b) {
        if let Some(part) = same.first() {
            let text: String = same.iter().map(|part| part.look().0).collect();
            out += &painted(*part, &text);
        }
    }
    let (rule, labels) = axis.lines();
    out += &format!("\n{indent}{rule}\n");
    out += format!("{indent}{labels}").trim_end();
    out.push('\n');
    let key = CoverageKind::ALL
        .into_iter()
        .filter(|part| bar.contains(part));
    let key = key.map(|part| {
        let (sign, _, words) = part.look();
        format!("{} {words}", painted(part, &sign.to_string()))
    });
    out += &format!("{indent}{}\n", key.collect::<Vec<_>>().join("   "));
    for missing in list(range, "missing") {
        let calls: Vec<String> = list(missing, "calls")
            .filter_map(Value::as_str)
            .map(plain_text)
            .collect();
        if let (Some((from, to)), false) = (span(missing), calls.is_empty()) {
            let units = missing.get("units").and_then(Value::as_u64);
            let units = units.map_or_else(String::new, |n| format!(" ({n} units)"));
            out += &format!(
                "{indent}fetches {} – {}: {}{units}\n",
                show(from),
                show(to),
                calls.join(", ")
            );
        }
    }
    for older in list(range, "older") {
        out += &range_shown(older, "  ", width, coloured);
    }
    if let Some(raw) = range.get("madeOf").filter(|raw| !raw.is_null()) {
        out += &range_shown(raw, "  ", width, coloured);
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NOON: Millis = 1_795_262_400_000;

    fn explanation() -> Value {
        let part = |from: Millis, to: Millis, more: Value| {
            let mut part =
                json!({ "startTime": NOON + from * 60_000, "endTime": NOON + to * 60_000 });
            part.as_object_mut()
                .unwrap()
                .extend(more.as_object().unwrap().clone());
            part
        };
        json!({
            "upstream": "prom", "answer": "fetch",
            "stretches": [part(0, 60, json!({
                "cellMillis": 60_000,
                "cached": [
                    part(15, 45, json!({ "settled": true, "freshSeconds": 9e5 })),
                    part(45, 50, json!({ "settled": false, "freshSeconds": 5 })),
                    part(50, 60, json!({ "settled": false, "freshSeconds": -5 })),
                ],
                "missing": [
                    part(0, 15, json!({ "why": [part(0, 15, json!({ "reason": "unknown" }))], "calls": ["POST /api/v1/query"] })),
                    part(50, 60, json!({ "why": [part(50, 60, json!({ "reason": "expired" }))], "calls": [] })),
                ],
            }))],
        })
    }

    #[test]
    fn a_bar_says_what_is_known() {
        let text = shown(&explanation(), 61, false);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "prom: fetches what is missing");
        assert_eq!(
            lines[1],
            "2026-11-21 12:00:00 – 2026-11-21 13:00:00 UTC, every 1 min"
        );
        assert_eq!(
            lines[2],
            format!(
                "{}{}{}{}",
                "░".repeat(15),
                "█".repeat(30),
                "▓".repeat(5),
                "▒".repeat(10)
            )
        );
        assert!(
            lines[4].contains("12:15") || lines[4].contains("12:30"),
            "{text}"
        );
        assert!(
            lines[5].contains("█ settled") && lines[5].contains("▒ expired"),
            "{text}"
        );
        assert!(lines[6].ends_with("POST /api/v1/query"), "{text}");
        let coloured = shown(&explanation(), 61, true);
        assert!(coloured.contains("\u{1b}[32m█"), "{coloured:?}");
    }

    #[test]
    fn what_is_kept_whole_has_no_bar() {
        let said = json!({ "upstream": "p", "answer": "refused", "refused": "no \u{1b}more", "bypass": "at-modifier",
            "whole": { "held": "stale", "ageSeconds": 90.0 } });
        assert_eq!(
            shown(&said, 80, false),
            "p: refused: no more\nthe answer is not cached: at-modifier\nkept whole: stale, 1 min 30 s old\n"
        );
    }
}
