//! PromQL, as far as a cache has to understand it. Can the values of a range query be cached one by
//! one, by evaluation time? How new are the samples that a value is computed from? Which spellings
//! mean the same? Pure, and linear in the length of the text: nothing recurses with its nesting,
//! and no regular expression is compiled.
//!
//! - `lexer`, `literal`: tokens, and the values of numbers, durations and strings
//! - `parse`, `selector`: the grammar of Prometheus from 2.42 to 3.x
//! - `tree`, `functions`, `regex`: the syntax tree, and the checks that Prometheus makes
//! - `walk`: what the values depend on
//! - `normal`: the normal form
//!
//! Prometheus evaluates a range query as the same expression at `start`, `start + step`, … up to
//! `end`, each time from the samples at or before that time ("Expression queries", HTTP API of
//! Prometheus; `promql/engine.go`). So a value depends on its evaluation time alone and not on the
//! window, unless the expression says otherwise. Parsing finds the expressions that do.
//!
//! One limit remains: Prometheus does not order the series that an operator or a function produces
//! within the expression, so an aggregation over them may differ between two evaluations in the
//! last digits of a sum, or in which of several equal series `topk` selects.

mod functions;
mod lexer;
mod literal;
mod normal;
mod parse;
mod regex;
mod selector;
mod tree;
mod walk;

use std::borrow::Cow;

use crate::model::{MAX_TIME, Millis};
use tree::Type;

#[cfg(test)]
mod tests;

/// Whether the values of a range query can be cached by evaluation time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Analysis {
    /// The value at time `t` depends only on `t` and on samples at or before `t - lag`. Every
    /// window whose step and phase include `t` has the same value.
    PerInstant {
        /// Milliseconds between `t` and the newest sample that the value at `t` may read: the
        /// smallest offset in the expression. A value of yesterday's data (`offset 1d`) is settled
        /// as soon as yesterday's data is. [`crate::model::MAX_TIME`] if no sample is read.
        lag: Millis,
    },
    /// The whole query is sent to the origin each time.
    PassThrough(Reason),
}

/// The reason why the values of an expression are not cached by evaluation time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The expression cannot be parsed: MetricsQL, newer syntax, or a mistake that the origin
    /// itself can explain best.
    NotUnderstood,
    /// A range vector or a string; the origin refuses both in a range query.
    NotAVector,
    /// `@ 1700000000`. The value is the same at each evaluation time, but it is known only once
    /// that time has passed, which may be long after the evaluation time.
    At,
    /// `@ start()`, `@ end()`, `start()`, `end()`, `range()`, `step()`: the value depends on the
    /// window, or on the step, which may differ between queries that share values.
    Window,
    /// A negative offset: the value at `t` reads samples after `t`, which may not exist yet. Mimir
    /// and Cortex do not cache these either (`results_cache.go`).
    NegativeOffset,
    /// `topk(scalar(x), …)`: versions 2.5x to 3.3 of Prometheus take the parameter of an
    /// aggregation from the first time of the window only (prometheus/prometheus#15971).
    VaryingParameter,
    /// A function of series that may differ in name only. It removes the names, and Prometheus then
    /// refuses a window in which two of them collide, although no single evaluation time has both
    /// (prometheus/prometheus#14695).
    NamesMayCollide,
    /// A function that is not known to depend on the evaluation time alone.
    UnknownFunction,
}

impl Reason {
    /// Returns the reason in a few words for `Cache-Status`: letters, digits and dashes.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotUnderstood => "not-understood",
            Self::NotAVector => "not-a-vector",
            Self::At => "at-modifier",
            Self::Window => "depends-on-window",
            Self::NegativeOffset => "negative-offset",
            Self::VaryingParameter => "varying-parameter",
            Self::NamesMayCollide => "names-may-collide",
            Self::UnknownFunction => "unknown-function",
        }
    }
}

/// The analysis of a text that may be an expression.
#[derive(Clone, Debug, PartialEq)]
pub struct ExpressionFacts {
    /// Whether the values of a range query over it can be cached by evaluation time.
    pub analysis: Analysis,
    /// The newest samples that an instant query reads; `None` if that is unknown.
    pub reads: Option<Reads>,
    /// The reason why values depend on the window of a range query, if one is known; whatever else stands
    /// against caching them.
    pub window: Option<Reason>,
    /// Set if it sorts, or chooses series by their values: an instant query returns them in that order.
    pub ordered: bool,
    /// Set if its value is known to be an instant vector.
    pub vector: bool,
    /// Its normal form, if that differs from the text itself.
    pub normal: Option<String>,
}

/// The newest samples that the value of an instant query is computed from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reads {
    /// The smallest offset from the evaluation time; negative if later samples are read.
    lag: Millis,
    /// The latest time that `@` names, less its offset.
    fixed: Option<Millis>,
}

impl Reads {
    /// The samples of an expression that may read any: none of its values is ever settled.
    pub const ANY: Self = Self {
        lag: 0,
        fixed: Some(MAX_TIME),
    };

    /// Returns the time of the newest sample that the value at `time` may be computed from.
    pub fn newest(&self, time: Millis) -> Millis {
        let newest = time.saturating_sub(self.lag);
        self.fixed.map_or(newest, |fixed| fixed.max(newest))
    }

    /// Returns the time before which all values are settled, given that samples before `samples` are.
    pub fn settled_before(&self, samples: Millis) -> Millis {
        match self.fixed {
            Some(fixed) if fixed >= samples => Millis::MIN,
            _ => samples.saturating_add(self.lag),
        }
    }
}

/// Longer expressions are known by the spelling that they have: another would take as much memory again.
const LONGEST_NORMAL: usize = 512 << 10;

/// The error for a text that cannot be parsed.
#[derive(Clone, Copy, Debug)]
struct Unreadable;

/// The analysis of a text that cannot be parsed.
pub const NOT_UNDERSTOOD: ExpressionFacts = ExpressionFacts {
    analysis: Analysis::PassThrough(Reason::NotUnderstood),
    reads: None,
    window: None,
    ordered: false,
    vector: false,
    normal: None,
};

/// Reads `text`. Never fails: what cannot be parsed is passed on as it is written.
///
/// It takes some microseconds, and time in proportion to the length. An expression of more than 20,000 words
/// and signs is not read.
pub fn read(text: &str) -> ExpressionFacts {
    let Ok((tree, root)) = parse::parse(text) else {
        return NOT_UNDERSTOOD;
    };
    let walk::Findings {
        mut analysis,
        reads,
        window,
        ordered,
    } = walk::analyze(&tree, root);
    if matches!(tree.kind(root), Type::Matrix | Type::String) {
        analysis = Analysis::PassThrough(Reason::NotAVector);
    }
    let normal = (!tree.as_written && text.len() <= LONGEST_NORMAL)
        .then(|| normal::write(&tree, root, text.len()));
    ExpressionFacts {
        analysis,
        reads,
        window,
        ordered,
        vector: tree.kind(root) == Type::Vector,
        normal: normal.filter(|normal| normal != text),
    }
}

/// Returns whether the values of a range query over `text` can be cached by evaluation time.
pub fn classify(text: &str) -> Analysis {
    read(text).analysis
}

/// Returns the text that identifies an expression in the cache and that is sent to the upstream:
/// its normal form, or `text` itself if it has none.
///
/// White space and comments, parentheses without effect, the place of `by` and `without`, the order
/// of matchers and of the labels of a list, quotes, trailing commas and the spelling of numbers and
/// durations make no difference. A spelling that only newer servers read, such as `{"a.b"}` or
/// `[300]`, is kept, so that an older one refuses it. Positions in the upstream's error messages
/// refer to this text.
pub fn canonical(text: &str) -> Cow<'_, str> {
    match read(text).normal {
        Some(normal) => Cow::Owned(normal),
        None => Cow::Borrowed(text),
    }
}

/// Appends `text` as a string in double quotes, which nothing in it can leave.
pub fn write_string(out: &mut String, text: &str) {
    literal::write_string(out, text.as_bytes());
}

/// Selectors of series, as in `match[]`, in their normal form and sorted; `None` if one of them is not
/// understood: they are sent as they are then, so that the upstream finds the same mistake first.
pub fn canonical_selectors(written: &[String]) -> Option<Vec<String>> {
    let normal = |text: &String| {
        let (tree, root) = parse::parse_selector(text).ok()?;
        (text.len() <= LONGEST_NORMAL).then_some(())?;
        Some(normal::write(&tree, root, text.len()))
    };
    let mut sorted = written
        .iter()
        .map(normal)
        .collect::<Option<Vec<String>>>()?;
    sorted.sort_unstable();
    Some(sorted)
}
