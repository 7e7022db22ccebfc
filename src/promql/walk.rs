//! Determines the inputs that the values of an expression depend on.

use super::functions::Depends;
use super::tree::{At, ExprNode, Id, Length, Matcher, SeriesSelector, Shift, Subquery, Tree};
use super::{Analysis, Reads, Reason};
use crate::model::{MAX_TIME, Millis};

/// The reference for the time at which a part is evaluated.
#[derive(Clone, Copy, Debug)]
enum Base {
    /// This many milliseconds before the evaluation time.
    Evaluation(Millis),
    /// A fixed time (`@`).
    Fixed(Millis),
}

/// The findings of a walk over an expression.
struct Found {
    /// The first reason not to cache the values of a range query.
    reason: Option<Reason>,
    /// The newest samples that are read, unless that is unknown.
    reads: Option<Reads>,
    /// The first reason that is about the window.
    window: Option<Reason>,
    /// Whether a part sorts, or chooses series by their values.
    ordered: bool,
}

/// The result of a walk over an expression.
pub(super) struct Findings {
    pub(super) analysis: Analysis,
    pub(super) reads: Option<Reads>,
    pub(super) window: Option<Reason>,
    pub(super) ordered: bool,
}

/// Returns what a range query over `tree` depends on, and the times that an instant query reads.
pub(super) fn analyze(tree: &Tree<'_>, root: Id) -> Findings {
    let mut found = Found {
        reason: None,
        reads: Some(Reads {
            lag: MAX_TIME,
            fixed: None,
        }),
        window: None,
        ordered: false,
    };
    // `called` says whether the series of a part are an argument of a function rather than of an
    // aggregation.
    let mut open = vec![(root, Base::Evaluation(0), false)];
    while let Some((id, base, called)) = open.pop() {
        match tree.node(id) {
            None | Some(ExprNode::Number(_) | ExprNode::Written(_) | ExprNode::Text(_)) => {}
            Some(ExprNode::Metric(_)) => found.read(base),
            Some(ExprNode::Selector(selector)) => found.select(selector, base, called),
            Some(ExprNode::Subquery(subquery)) => {
                let Subquery {
                    expression,
                    range,
                    step,
                    shift,
                } = &**subquery;
                let base = found.shifted(base, shift);
                found.length(Some(*range));
                found.length(*step);
                open.push((*expression, base, called));
            }
            Some(ExprNode::Paren(inner)) => open.push((*inner, base, called)),
            Some(ExprNode::Sign(_, inner)) => open.push((*inner, base, true)),
            Some(ExprNode::Binary { left, right, .. }) => {
                open.push((*right, base, called));
                open.push((*left, base, called));
            }
            Some(ExprNode::Call {
                function,
                arguments,
            }) => {
                found.ordered |= function.is_some_and(|f| f.name.starts_with("sort"));
                match function.map(|f| f.depends) {
                    Some(Depends::Time) => {}
                    Some(Depends::Window) => found.because(Reason::Window),
                    None => {
                        found.because(Reason::UnknownFunction);
                        found.reads = None;
                    }
                }
                let arguments = arguments.iter().rev();
                open.extend(arguments.map(|argument| (*argument, base, true)));
            }
            Some(ExprNode::Aggregate {
                aggregation,
                parameter,
                expression,
                ..
            }) => {
                found.ordered |= matches!(aggregation.name, "topk" | "bottomk");
                open.push((*expression, base, false));
                if let Some(parameter) = parameter.filter(|p| !tree.is_literal(*p)) {
                    found.because(Reason::VaryingParameter);
                    open.push((parameter, base, false));
                }
            }
        }
    }
    let analysis = match (found.reason, found.reads) {
        (Some(reason), _) => Analysis::PassThrough(reason),
        (None, Some(reads)) => Analysis::PerInstant { lag: reads.lag },
        (None, None) => Analysis::PassThrough(Reason::UnknownFunction),
    };
    Findings {
        analysis,
        reads: found.reads,
        window: found.window,
        ordered: found.ordered,
    }
}

impl Found {
    fn because(&mut self, reason: Reason) {
        self.reason.get_or_insert(reason);
        if matches!(reason, Reason::Window | Reason::VaryingParameter) {
            self.window.get_or_insert(reason);
        }
    }

    fn select(&mut self, selector: &SeriesSelector<'_>, base: Base, called: bool) {
        let base = self.shifted(base, &selector.shift);
        self.length(selector.range);
        self.read(base);
        let named = selector.name.is_some();
        if called && !named && !selector.matchers.iter().any(Matcher::names_metric) {
            self.because(Reason::NamesMayCollide);
        }
    }

    /// Records that samples up to `base` are read.
    fn read(&mut self, base: Base) {
        if let Some(reads) = &mut self.reads {
            match base {
                Base::Evaluation(lag) => reads.lag = reads.lag.min(lag),
                Base::Fixed(time) => {
                    reads.fixed = Some(reads.fixed.map_or(time, |known| known.max(time)));
                }
            }
        }
    }

    /// Returns `base`, moved by `shift`.
    fn shifted(&mut self, base: Base, shift: &Shift<'_>) -> Base {
        let base = match shift.at {
            None => base,
            Some(At::Time(seconds)) => {
                self.because(Reason::At);
                let millis = (seconds * 1000.0)
                    .round()
                    .clamp(-(MAX_TIME as f64), MAX_TIME as f64);
                Base::Fixed(millis as Millis)
            }
            // Both are the evaluation time of an instant query.
            Some(At::Start | At::End) => {
                self.because(Reason::Window);
                Base::Evaluation(0)
            }
        };
        let Some((negative, length)) = shift.offset else {
            return base;
        };
        let Some(millis) = length.millis() else {
            self.because(Reason::Window);
            self.reads = None;
            return base;
        };
        let offset = if negative { -millis } else { millis };
        if offset < 0 {
            self.because(Reason::NegativeOffset);
        }
        let bounded = |millis: Millis| millis.clamp(-MAX_TIME, MAX_TIME);
        match base {
            Base::Evaluation(lag) => Base::Evaluation(bounded(lag.saturating_add(offset))),
            Base::Fixed(time) => Base::Fixed(bounded(time.saturating_sub(offset))),
        }
    }

    /// Records that the value depends on the window if a range or a step does.
    fn length(&mut self, length: Option<Length<'_>>) {
        if length.is_some_and(|length| length.millis().is_none()) {
            self.because(Reason::Window);
        }
    }
}
