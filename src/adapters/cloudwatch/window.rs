//! Expressions whose values depend on the range that is queried.
//!
//! Source: "Using math expressions with CloudWatch metrics" and "CloudWatch Metrics Insights query components
//! and syntax" in the user guide of CloudWatch.

use super::names::unknown;
use crate::model::Error;

/// Functions that compute with the points before one, or with all points of the range.
const OF_WINDOW: [&str; 7] = [
    "DATAPOINT_COUNT",
    "DIFF",
    "DIFF_TIME",
    "METRIC_COUNT",
    "RATE",
    "RUNNING_SUM",
    "SORT",
];

/// Ways of `FILL` that look at neighbouring points.
const FILLS: [&str; 2] = ["LINEAR", "REPEAT"];

/// Functions that make one series of several, and one number of all points of a single series.
const REDUCING: [&str; 5] = ["AVG", "MAX", "MIN", "STDDEV", "SUM"];

/// A construct that is open within an expression.
#[derive(Default)]
struct Open<'a> {
    /// The reducing function whose argument it is.
    reducing: Option<&'a str>,
    /// Set if it is a list.
    list: bool,
    /// Set if it holds several series.
    several: bool,
}

/// Checks that each value of an expression belongs to its time, as points of one time are shared by queries of
/// different ranges. `bare` is the expression without quoted texts, in capital letters.
pub(super) fn check(bare: &str) -> Result<(), Error> {
    let sql = words(bare).next() == Some("SELECT");
    if let Some(word) = words(bare).find(|word| match sql {
        true => *word == "LIMIT",
        false => OF_WINDOW.contains(word) || FILLS.contains(word),
    }) {
        return Err(depends(word));
    }
    if sql {
        return Ok(());
    }
    let mut open = vec![Open::default()];
    let (mut rest, mut word) = (bare, "");
    while let Some(c) = rest.chars().next() {
        let length = rest.find(|c: char| !is_of_word(c)).unwrap_or(rest.len());
        if length > 0 {
            (word, rest) = rest.split_at(length);
            if let Some(inner) = open.last_mut() {
                inner.several |= word == "SEARCH";
            }
            continue;
        }
        match c {
            '(' | '[' => open.push(Open {
                reducing: REDUCING.into_iter().find(|f| c == '(' && *f == word),
                list: c == '[',
                several: false,
            }),
            ')' | ']' => {
                let Some(inner) = open.pop() else { break };
                match inner.reducing {
                    Some(function) if !inner.several => {
                        return Err(depends(&format!("{function} of a single series")));
                    }
                    reducing => {
                        if let Some(outer) = open.last_mut() {
                            outer.several |= inner.list || (reducing.is_none() && inner.several);
                        }
                    }
                }
            }
            _ => {}
        }
        if !c.is_whitespace() {
            word = "";
        }
        rest = rest.get(c.len_utf8()..).unwrap_or_default();
    }
    Ok(())
}

fn is_of_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Returns the words of an expression.
fn words(bare: &str) -> impl Iterator<Item = &str> {
    let words = bare.split(|c| !is_of_word(c));
    words.filter(|word| !word.is_empty())
}

fn depends(what: &str) -> Error {
    unknown(format!(
        "the values of this expression depend on the range that is queried ({what}), so the same point would have several values: leave it out"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_depends_on_the_range_is_refused() {
        for (text, named) in [
            ("RUNNING_SUM(SEARCH())", "(RUNNING_SUM)"),
            ("RATE (SUM(SEARCH()))", "(RATE)"),
            ("1 + DIFF(SEARCH())", "(DIFF)"),
            ("SORT(SEARCH(), MAX, DESC, 10)", "(SORT)"),
            ("FILL(SEARCH(), REPEAT)", "(REPEAT)"),
            (
                "SELECT MAX(X) FROM Y GROUP BY Z ORDER BY MAX() DESC LIMIT 10",
                "(LIMIT)",
            ),
            ("SELECT\nAVG(X)\nFROM Y\nLIMIT\n5", "(LIMIT)"),
            ("SEARCH() - AVG(SUM(SEARCH()))", "AVG of a single series"),
            (
                "SEARCH() / MAX ( (SUM(SEARCH()) + 1) )",
                "MAX of a single series",
            ),
            ("SUM(LAMBDA())", "SUM of a single series"),
        ] {
            let error = check(text).unwrap_err();
            assert!(error.message.contains(named), "{text}: {error}");
        }
        for text in [
            "",
            "SEARCH()",
            "SUM(SEARCH(, , 300))",
            "MAX(SEARCH() / SUM(SEARCH()))",
            "AVG([SUM(SEARCH()), MAX((SEARCH()))])",
            "IF(SUM(SEARCH()) > 0, 1, 0)",
            "FILL(SEARCH(), 0) * PERIOD(SEARCH())",
            "RATES + OPERATE()",
            "SELECT AVG(X) FROM SCHEMA(, A) GROUP BY A ORDER BY AVG() DESC",
            ")](",
        ] {
            assert_eq!(check(text), Ok(()), "{text}");
        }
    }
}
