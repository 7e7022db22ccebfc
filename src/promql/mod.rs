//! PromQL, as far as a cache must understand it: may the values of a range query be kept one by
//! one, by evaluation time? How new are the samples that a value comes from? And which spellings mean
//! the same? Pure, and linear in the length of the text: nothing recurses with its nesting, no regular
//! expression is compiled.
//!
//! - `lexer`, `literal`: the words and signs, and what numbers, durations and strings mean
//! - `parse`, `selector`: the grammar of Prometheus from 2.42 to 3.x
//! - `tree`, `functions`, `regex`: what is read, and the checks of Prometheus
//! - `walk`: what the values depend on
//! - `normal`: the one spelling
//!
//! Prometheus evaluates a range query as the same expression at `start`, `start + step`, … up to
//! `end`, each time from the samples at or before that time ("Expression queries", HTTP API of
//! Prometheus; `promql/engine.go`). So a value belongs to its evaluation time alone, whatever the
//! window, unless the expression says otherwise. Those that do are found here by parsing.
//!
//! A limit that no cache can lift: Prometheus does not order the series that an operator or a function
//! brings forth within the expression, so an aggregation over them may differ in the last digits
//! of a sum, or in which of equals `topk` takes, from one asking to the next.

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

use crate::model::Millis;
use tree::Type;

#[cfg(test)]
mod tests;

/// Whether the values of a range query may be kept by evaluation time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Analysis {
    /// The value at time `t` depends on `t` and on samples at or before `t - lag` only. Any
    /// window whose step and phase meet `t` gives the same value.
    PerInstant {
        /// Milliseconds between `t` and the newest sample that the value at `t` may read: the
        /// least offset in the expression. A value of yesterday's data (`offset 1d`) is settled
        /// as soon as yesterday's data is. [`crate::model::MAX_TIME`] where no sample is read.
        lag: Millis,
    },
    /// The whole query goes to the origin each time.
    PassThrough(Reason),
}

/// Why an expression is not kept by evaluation time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// It is not read here: MetricsQL, something newer, or a mistake that the origin had better
    /// explain itself.
    NotUnderstood,
    /// A range vector or a string; the origin refuses both in a range query.
    NotAVector,
    /// `@ 1700000000`. The value is the same at each evaluation time, but it is known only once
    /// that time has passed, which may be long after the evaluation time.
    At,
    /// `@ start()`, `@ end()`, `start()`, `end()`, `range()`, `step()`: the value depends on the
    /// window, or on the step, which is not the same for all who share values.
    Window,
    /// A negative offset: the value at `t` reads samples after `t`, which may not be there yet.
    /// Mimir and Cortex do not cache these either (`results_cache.go`).
    NegativeOffset,
    /// `topk(scalar(x), …)`: from 2.5x to 3.3 Prometheus takes the parameter of an aggregation
    /// from the first time of the window alone (prometheus/prometheus#15971).
    VaryingParameter,
    /// A function of series that may differ in name only. It takes the names off, and Prometheus
    /// then refuses a window in which two of them meet, though no single evaluation time has both
    /// (prometheus/prometheus#14695).
    NamesMayCollide,
    /// A function that is not known to depend on the evaluation time alone.
    UnknownFunction,
}

impl Reason {
    /// A few words for `Cache-Status`: letters, digits and dashes.
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
    /// Whether the values of a range query over it may be kept by evaluation time.
    pub analysis: Analysis,
    /// The newest samples that an instant query reads; none where that cannot be told.
    pub reads: Option<Reads>,
    /// Set if its value is known to be an instant vector.
    pub vector: bool,
    /// The spelling by which it is known, where that is another than its own.
    pub normal: Option<String>,
}

/// The newest samples that the value of an instant query comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reads {
    /// The least offset from the evaluation time; negative where later samples are read.
    lag: Millis,
    /// The latest time that `@` names, less its offset.
    fixed: Option<Millis>,
}

impl Reads {
    /// The time of the newest sample that the value at `time` may come from.
    pub fn newest(&self, time: Millis) -> Millis {
        let newest = time.saturating_sub(self.lag);
        self.fixed.map_or(newest, |fixed| fixed.max(newest))
    }
}

/// The error for a text that is not an expression, or not one that is understood.
#[derive(Clone, Copy, Debug)]
struct Unreadable;

/// The analysis of a text that is not understood.
pub const NOT_UNDERSTOOD: ExpressionFacts = ExpressionFacts {
    analysis: Analysis::PassThrough(Reason::NotUnderstood),
    reads: None,
    vector: false,
    normal: None,
};

/// Reads `text`. Never fails: what is not understood passes through as it is written.
///
/// It takes some microseconds, and time in proportion to the length.
pub fn read(text: &str) -> ExpressionFacts {
    let Ok((tree, root)) = parse::parse(text) else {
        return NOT_UNDERSTOOD;
    };
    let (mut analysis, reads) = walk::analyze(&tree, root);
    if matches!(tree.kind(root), Type::Matrix | Type::String) {
        analysis = Analysis::PassThrough(Reason::NotAVector);
    }
    let normal = (!tree.as_written).then(|| normal::write(&tree, root));
    ExpressionFacts {
        analysis,
        reads,
        vector: tree.kind(root) == Type::Vector,
        normal: normal.filter(|normal| normal != text),
    }
}

/// Whether the values of a range query over `text` may be kept by evaluation time.
pub fn classify(text: &str) -> Analysis {
    read(text).analysis
}

/// The text by which an expression is known in the cache, and by which the upstream is asked: its
/// normal form, or `text` itself where it has none.
///
/// White space and comments, parentheses without effect, the place of `by` and `without`, the order of
/// matchers and of the labels of a list, quotes, trailing commas and the spelling of numbers and
/// durations make no difference. A spelling that only newer servers read, such as `{"a.b"}` or `[300]`,
/// stays, so that an older one refuses it. Positions in what the upstream says of it are those in this
/// text.
pub fn canonical(text: &str) -> Cow<'_, str> {
    match read(text).normal {
        Some(normal) => Cow::Owned(normal),
        None => Cow::Borrowed(text),
    }
}

/// Selectors of series, as in `match[]`, in their normal form and sorted; as they are if one of them is
/// not understood, so that the upstream finds the same mistake first.
pub fn canonical_selectors(written: Vec<String>) -> Vec<String> {
    let normal = |text: &String| {
        let (tree, root) = parse::parse_selector(text).ok()?;
        Some(normal::write(&tree, root))
    };
    let read: Option<Vec<String>> = written.iter().map(normal).collect();
    let Some(mut sorted) = read else {
        return written;
    };
    sorted.sort_unstable();
    sorted
}
