//! PromQL, as far as a cache must understand it: may the values of a range query be kept one by
//! one, by evaluation time? Pure.
//!
//! Prometheus evaluates a range query as the same expression at `start`, `start + step`, … up to
//! `end`, each time from the samples at or before that time ("Expression queries", HTTP API of
//! Prometheus; `promql/engine.go`). So a value belongs to its evaluation time alone, whatever the
//! window, unless the expression says otherwise. Those that do are found here by parsing.
//!
//! What no cache can mend: Prometheus does not order the series that an operator or a function
//! brings forth within the expression, so an aggregation over them may differ in the last digits
//! of a sum, or in which of equals `topk` takes, from one asking to the next.

use std::ops::ControlFlow;
use std::time::Duration;

use promql_parser::label::{METRIC_NAME, MatchOp};
use promql_parser::parser::value::ValueType;
use promql_parser::parser::{self, AtModifier, Expr, Offset, VectorSelector};

use crate::model::{MAX_TIME, Millis};

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
        /// as soon as yesterday's data is. [`MAX_TIME`] where no sample is read.
        lag: Millis,
    },
    /// The whole query goes to the origin each time.
    PassThrough(Reason),
}

/// Why an expression is not kept by evaluation time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The parser does not know it: MetricsQL, something newer than the parser, or a mistake that
    /// the origin had better explain itself.
    NotUnderstood,
    /// More nesting than is looked into.
    TooLong,
    /// A range vector or a string; the origin refuses both in a range query.
    NotAVector,
    /// `@ 1700000000`. The value is the same at each evaluation time, but it is known only once
    /// that time has passed, which may be long after the evaluation time.
    At,
    /// `@ start()`, `@ end()`, `start()`, `end()`, `range()`: the value depends on the window.
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
            Self::TooLong => "too-long",
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

/// Most words and signs of an expression that is parsed. No part of it can nest deeper, so this
/// keeps what recurs (the parser's checks, the walk below, dropping the tree) off the stack's end.
const MOST_TOKENS: usize = 2000;

/// Functions whose value at a time depends on their arguments at that time alone, or on the
/// samples of a range that ends there. All of Prometheus 2.42, and those that came since and are
/// as plain.
///
/// `time`, `timestamp`, `hour` and the like are functions of the evaluation time. A subquery is
/// evaluated at multiples of its step since the epoch, whatever the window ("Subquery", Prometheus
/// documentation), without a step at the origin's own evaluation interval. `sort` and its like
/// order instant queries only; a range query is ordered by labels. `absent` and `scalar` have a
/// value at each time. `label_replace` and `label_join` may make one series of two; Prometheus from
/// 2.5x on refuses a window in which both are, though no evaluation time has both
/// (prometheus/prometheus#15114), and what was cached piece by piece is then answered instead.
/// `info` is left out: it is experimental, and looks series up by the window.
/// `start`, `end`, `range` and `step` are not functions of the arguments.
const PLAIN: &[&str] = &[
    "abs",
    "absent",
    "absent_over_time",
    "acos",
    "acosh",
    "asin",
    "asinh",
    "atan",
    "atanh",
    "avg_over_time",
    "ceil",
    "changes",
    "clamp",
    "clamp_max",
    "clamp_min",
    "cos",
    "cosh",
    "count_over_time",
    "day_of_month",
    "day_of_week",
    "day_of_year",
    "days_in_month",
    "deg",
    "delta",
    "deriv",
    "double_exponential_smoothing",
    "exp",
    "first_over_time",
    "floor",
    "histogram_avg",
    "histogram_count",
    "histogram_fraction",
    "histogram_quantile",
    "histogram_stddev",
    "histogram_stdvar",
    "histogram_sum",
    "hour",
    "idelta",
    "increase",
    "irate",
    "label_join",
    "label_replace",
    "last_over_time",
    "ln",
    "log10",
    "log2",
    "mad_over_time",
    "max_over_time",
    "min_over_time",
    "minute",
    "month",
    "pi",
    "predict_linear",
    "present_over_time",
    "quantile_over_time",
    "rad",
    "rate",
    "resets",
    "round",
    "scalar",
    "sgn",
    "sin",
    "sinh",
    "sort",
    "sort_by_label",
    "sort_by_label_desc",
    "sort_desc",
    "sqrt",
    "stddev_over_time",
    "stdvar_over_time",
    "sum_over_time",
    "tan",
    "tanh",
    "time",
    "timestamp",
    "ts_of_first_over_time",
    "ts_of_last_over_time",
    "ts_of_max_over_time",
    "ts_of_min_over_time",
    "vector",
    "year",
];

/// Whether the values of a range query over `text` may be kept by evaluation time. Never fails:
/// what is not understood passes through.
///
/// It takes from some microseconds to tens of them (regular expressions are compiled), so the
/// answer is worth keeping next to the text.
pub fn classify(text: &str) -> Analysis {
    if tokens(text) > MOST_TOKENS {
        return Analysis::PassThrough(Reason::TooLong);
    }
    // The parser panics at a duration that is too large, such as `offset 18446744073709551616`.
    let Ok(Ok(expr)) = std::panic::catch_unwind(|| parser::parse(text)) else {
        return Analysis::PassThrough(Reason::NotUnderstood);
    };
    if !matches!(expr.value_type(), ValueType::Vector | ValueType::Scalar) {
        return Analysis::PassThrough(Reason::NotAVector);
    }
    let mut walk = Walk { lag: MAX_TIME };
    match walk.visit(&expr, 0, false) {
        ControlFlow::Continue(()) => Analysis::PerInstant { lag: walk.lag },
        ControlFlow::Break(reason) => Analysis::PassThrough(reason),
    }
}

/// The text by which a query is known in the cache: without the white space around it. Nothing
/// more is taken away, because the parser's own way to write an expression loses things (a
/// negative zero, `1_000`, the order of matchers), and a dashboard asks in the same words each
/// time.
pub fn canonical(text: &str) -> &str {
    text.trim_matches([' ', '\t', '\n', '\r'])
}

/// At least as many words and signs as the parser will find outside of strings and comments,
/// without the closing ones.
fn tokens(text: &str) -> usize {
    let (mut found, mut in_word, mut escaped) = (0, false, false);
    // What ends the string or comment that we are in.
    let mut until = None;
    for byte in text.bytes() {
        if let Some(end) = until {
            if escaped || (byte == b'\\' && (end == b'"' || end == b'\'')) {
                escaped = !escaped;
            } else if byte == end {
                until = None;
            }
            continue;
        }
        let word = byte.is_ascii_alphanumeric() || b"_:.".contains(&byte) || byte >= 0x80;
        match byte {
            b'"' | b'\'' | b'`' => until = Some(byte),
            b'#' => until = Some(b'\n'),
            b' ' | b'\t' | b'\n' | b'\r' | b')' | b']' | b'}' => {}
            _ if word && in_word => {}
            _ => found += 1,
        }
        in_word = word;
    }
    found
}

/// A look at every part of an expression, from the outside in.
struct Walk {
    /// The least offset seen of what is read.
    lag: Millis,
}

impl Walk {
    /// `offset` is the sum of the offsets around `expr`. `called` says whether a function, rather
    /// than an aggregation, gets its series.
    fn visit(&mut self, expr: &Expr, offset: Millis, called: bool) -> ControlFlow<Reason> {
        match expr {
            Expr::Aggregate(aggregate) => {
                if aggregate.param.as_ref().is_some_and(|p| !is_literal(p)) {
                    return ControlFlow::Break(Reason::VaryingParameter);
                }
                self.visit(&aggregate.expr, offset, false)
            }
            Expr::Unary(unary) => self.visit(&unary.expr, offset, true),
            Expr::Binary(binary) => {
                self.visit(&binary.lhs, offset, called)?;
                self.visit(&binary.rhs, offset, called)
            }
            Expr::Paren(paren) => self.visit(&paren.expr, offset, called),
            Expr::Subquery(subquery) => {
                let offset = shifted(offset, subquery.offset.as_ref(), subquery.at.as_ref())?;
                self.visit(&subquery.expr, offset, called)
            }
            Expr::VectorSelector(selector) => self.select(selector, offset, called),
            Expr::MatrixSelector(selector) => self.select(&selector.vs, offset, called),
            Expr::Call(call) => {
                let name = call.func.name;
                if ["start", "end", "range"].contains(&name) {
                    return ControlFlow::Break(Reason::Window);
                }
                if !PLAIN.contains(&name) {
                    return ControlFlow::Break(Reason::UnknownFunction);
                }
                let mut arguments = call.args.args.iter();
                arguments.try_for_each(|argument| self.visit(argument, offset, true))
            }
            Expr::NumberLiteral(_) | Expr::StringLiteral(_) => ControlFlow::Continue(()),
            Expr::Extension(_) => ControlFlow::Break(Reason::NotUnderstood),
        }
    }

    fn select(
        &mut self,
        selector: &VectorSelector,
        offset: Millis,
        called: bool,
    ) -> ControlFlow<Reason> {
        let offset = shifted(offset, selector.offset.as_ref(), selector.at.as_ref())?;
        self.lag = self.lag.min(offset);
        let mut matchers = selector.matchers.matchers.iter();
        let named = selector.name.is_some()
            || matchers.any(|m| m.name == METRIC_NAME && m.op == MatchOp::Equal);
        if called && !named {
            return ControlFlow::Break(Reason::NamesMayCollide);
        }
        ControlFlow::Continue(())
    }
}

/// `around` with the offset of one part added.
fn shifted(
    around: Millis,
    offset: Option<&Offset>,
    at: Option<&AtModifier>,
) -> ControlFlow<Reason, Millis> {
    match at {
        Some(AtModifier::At(_)) => return ControlFlow::Break(Reason::At),
        Some(AtModifier::Start | AtModifier::End) => return ControlFlow::Break(Reason::Window),
        None => {}
    }
    let more = match offset {
        None => Duration::ZERO,
        Some(Offset::Pos(by)) => *by,
        Some(Offset::Neg(_)) => return ControlFlow::Break(Reason::NegativeOffset),
    };
    let more = Millis::try_from(more.as_millis()).unwrap_or(MAX_TIME);
    ControlFlow::Continue(around.saturating_add(more).min(MAX_TIME))
}

/// Whether `parameter` is written out, and so the same at each time.
fn is_literal(parameter: &Expr) -> bool {
    match parameter {
        Expr::NumberLiteral(_) | Expr::StringLiteral(_) => true,
        Expr::Paren(paren) => is_literal(&paren.expr),
        Expr::Unary(unary) => is_literal(&unary.expr),
        Expr::Binary(binary) => is_literal(&binary.lhs) && is_literal(&binary.rhs),
        _ => false,
    }
}
