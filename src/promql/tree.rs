//! The syntax tree of an expression. Its nodes are in one list, each after its children, so that
//! walking or dropping it does not recurse.

use std::borrow::Cow;
use std::collections::HashSet;

use super::Unreadable;
use super::functions::{Aggregation, Function};
use super::literal::{unquoted, write_string};
use super::regex;

/// The index of a node. 32 bits suffice, since expressions are shorter than 4 GiB, and the less
/// memory a node takes, the faster a long expression is read.
pub(super) type Id = u32;

/// The type of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Type {
    Scalar,
    Vector,
    Matrix,
    String,
    /// The type of an unknown function's result.
    Any,
}

impl Type {
    fn is(self, wanted: Self) -> bool {
        self == wanted || self == Self::Any
    }

    /// Returns whether operators accept this type.
    fn is_operand(self) -> bool {
        matches!(self, Self::Scalar | Self::Vector | Self::Any)
    }
}

/// The kind of an operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    Arithmetic,
    Comparison,
    Set,
}

/// An operator between two expressions.
#[derive(Clone, Copy, Debug)]
pub(super) struct Operator {
    pub(super) text: &'static str,
    pub(super) precedence: u8,
    pub(super) family: Family,
}

/// The precedence of `*`, which unary signs share.
pub(super) const MULTIPLICATION: u8 = 5;
/// The precedence of `^`, the only right-associative operator.
pub(super) const POWER: u8 = 6;

/// The name of a label as it is written: a word, or a string.
#[derive(Clone, Copy, Debug)]
pub(super) struct Label<'a>(pub(super) &'a str);

impl<'a> Label<'a> {
    /// Returns the name itself.
    pub(super) fn name(self) -> Cow<'a, [u8]> {
        match self.0.as_bytes() {
            [b'"' | b'\'' | b'`', ..] => unquoted(self.0),
            word => Cow::Borrowed(word),
        }
    }

    /// Writes the name. A string stays a string, since older servers refuse it.
    pub(super) fn write(self, out: &mut String) {
        match self.0.as_bytes() {
            [b'"' | b'\'' | b'`', ..] => write_string(out, &unquoted(self.0)),
            _ => out.push_str(self.0),
        }
    }
}

/// The length of a range, a step or an offset.
#[derive(Clone, Copy, Debug)]
pub(super) enum Length<'a> {
    /// A duration in milliseconds, in a spelling that all servers read.
    Duration(i64),
    /// A spelling that only newer servers read, such as a number of seconds, and its milliseconds.
    Newer(&'a str, i64),
    /// The milliseconds of a duration expression; `None` if they depend on the window.
    Computed(Option<i64>),
}

impl Length<'_> {
    /// Returns its milliseconds; `None` if they depend on the window.
    pub(super) fn millis(self) -> Option<i64> {
        match self {
            Self::Duration(millis) | Self::Newer(_, millis) => Some(millis),
            Self::Computed(millis) => millis,
        }
    }
}

/// The time that `@` names.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum At {
    /// Seconds.
    Time(f64),
    Start,
    End,
}

/// The shift of the evaluation time of a selector or subquery.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Shift<'a> {
    pub(super) at: Option<At>,
    /// The offset, and whether it is negative.
    pub(super) offset: Option<(bool, Length<'a>)>,
}

impl Shift<'_> {
    pub(super) fn is_none(&self) -> bool {
        self.at.is_none() && self.offset.is_none()
    }
}

/// A test of a label's value.
#[derive(Clone, Copy, Debug)]
pub(super) struct Matcher<'a> {
    pub(super) label: Label<'a>,
    /// The operator, and the string after it; `None` if `label` is the name of a metric.
    pub(super) test: Option<(&'static str, &'a str)>,
}

impl Matcher<'_> {
    /// Returns whether it selects one metric name.
    pub(super) fn names_metric(&self) -> bool {
        match self.test {
            None => true,
            Some((operator, _)) => operator == "=" && *self.label.name() == *b"__name__",
        }
    }
}

/// A selector of series.
#[derive(Debug, Default)]
pub(super) struct SeriesSelector<'a> {
    pub(super) name: Option<&'a str>,
    pub(super) matchers: Vec<Matcher<'a>>,
    pub(super) range: Option<Length<'a>>,
    pub(super) shift: Shift<'a>,
}

/// An expression evaluated at the times of a range.
#[derive(Debug)]
pub(super) struct Subquery<'a> {
    pub(super) expression: Id,
    pub(super) range: Length<'a>,
    pub(super) step: Option<Length<'a>>,
    pub(super) shift: Shift<'a>,
}

/// The labels that an aggregation keeps or drops.
#[derive(Debug)]
pub(super) struct Grouping<'a> {
    pub(super) without: bool,
    pub(super) labels: Vec<Label<'a>>,
}

/// The matching of series by an operator.
#[derive(Debug, Default)]
pub(super) struct Matching<'a> {
    pub(super) returns_bool: bool,
    /// `on` or `ignoring`, and its labels.
    pub(super) labels: Option<(&'static str, Vec<Label<'a>>)>,
    /// `group_left` or `group_right`, and its labels.
    pub(super) group: Option<(&'static str, Vec<Label<'a>>)>,
    /// The values for series that are missing on one side, left and right.
    pub(super) fill: [Option<f64>; 2],
}

#[derive(Debug)]
pub(super) enum ExprNode<'a> {
    Number(f64),
    /// A number or a duration that servers read differently, as it is written.
    Written(&'a str),
    /// A string with its quotes.
    Text(&'a str),
    /// A selector that consists only of a metric's name.
    Metric(&'a str),
    Selector(Box<SeriesSelector<'a>>),
    Subquery(Box<Subquery<'a>>),
    Paren(Id),
    Sign(&'static str, Id),
    Binary {
        left: Id,
        operator: &'static Operator,
        /// `None` without modifiers, as in most sums.
        matching: Option<Box<Matching<'a>>>,
        right: Id,
    },
    Call {
        function: Option<&'static Function>,
        arguments: Box<[Id]>,
    },
    Aggregate {
        aggregation: &'static Aggregation,
        grouping: Option<Box<Grouping<'a>>>,
        parameter: Option<Id>,
        expression: Id,
    },
}

/// The properties of a node, computed when it is created.
#[derive(Clone, Copy, Debug)]
struct NodeFacts {
    kind: Type,
    /// Set if it is a literal, and so the same at each time.
    literal: bool,
}

/// A well-typed expression.
#[derive(Debug, Default)]
pub(super) struct Tree<'a> {
    nodes: Vec<ExprNode<'a>>,
    facts: Vec<NodeFacts>,
    /// Set if it contains something that is ambiguous or unknown: it has no normal form.
    pub(super) as_written: bool,
}

impl<'a> Tree<'a> {
    pub(super) fn node(&self, id: Id) -> Option<&ExprNode<'a>> {
        self.nodes.get(id as usize)
    }

    /// Returns the node `id`, to add a range or a shift.
    fn node_mut(&mut self, id: Id) -> Option<&mut ExprNode<'a>> {
        let node = self.nodes.get_mut(id as usize)?;
        if let ExprNode::Metric(name) = node {
            let selector = SeriesSelector {
                name: Some(name),
                ..SeriesSelector::default()
            };
            *node = ExprNode::Selector(Box::new(selector));
        }
        Some(node)
    }

    /// Returns the selector `id`, to modify it.
    pub(super) fn selector_mut(&mut self, id: Id) -> Option<&mut SeriesSelector<'a>> {
        match self.node_mut(id)? {
            ExprNode::Selector(selector) => Some(selector),
            _ => None,
        }
    }

    /// Returns the shift of the selector or subquery `id`.
    pub(super) fn shift_mut(&mut self, id: Id) -> Option<&mut Shift<'a>> {
        match self.node_mut(id)? {
            ExprNode::Selector(selector) => Some(&mut selector.shift),
            ExprNode::Subquery(subquery) => Some(&mut subquery.shift),
            _ => None,
        }
    }

    pub(super) fn kind(&self, id: Id) -> Type {
        self.facts.get(id as usize).map_or(Type::Any, |f| f.kind)
    }

    pub(super) fn is_literal(&self, id: Id) -> bool {
        self.facts.get(id as usize).is_some_and(|f| f.literal)
    }

    /// Returns the node inside the parentheses of `id`, if it has any.
    pub(super) fn inside(&self, mut id: Id) -> Id {
        while let Some(ExprNode::Paren(inner)) = self.node(id) {
            id = *inner;
        }
        id
    }

    /// Sets the type of the selector or subquery `id`.
    pub(super) fn becomes(&mut self, id: Id, kind: Type) {
        if let Some(facts) = self.facts.get_mut(id as usize) {
            facts.kind = kind;
        }
    }

    /// Adds `node` if its children have the types that Prometheus requires (`checkAST` in its
    /// `promql/parser/parse.go`).
    pub(super) fn add(&mut self, node: ExprNode<'a>) -> Result<Id, Unreadable> {
        let facts = self.check(&node).ok_or(Unreadable)?;
        let id = Id::try_from(self.nodes.len()).map_err(|_| Unreadable)?;
        self.nodes.push(node);
        self.facts.push(facts);
        Ok(id)
    }

    fn check(&self, node: &ExprNode<'a>) -> Option<NodeFacts> {
        let (mut kind, mut literal) = (Type::Scalar, false);
        match node {
            ExprNode::Number(_) | ExprNode::Written(_) => literal = true,
            ExprNode::Text(_) => (kind, literal) = (Type::String, true),
            ExprNode::Metric(_) => kind = Type::Vector,
            ExprNode::Selector(selector) => {
                selector.check()?;
                kind = Type::Vector;
            }
            ExprNode::Subquery(subquery) => {
                let kind_of_all = self.kind(subquery.expression);
                kind_of_all.is(Type::Vector).then_some(())?;
                kind = Type::Matrix;
            }
            ExprNode::Paren(inner) => {
                (kind, literal) = (self.kind(*inner), self.is_literal(*inner))
            }
            ExprNode::Sign(_, inner) => {
                (kind, literal) = (self.kind(*inner), self.is_literal(*inner));
                kind.is_operand().then_some(())?;
            }
            ExprNode::Binary {
                left,
                operator,
                matching,
                right,
            } => {
                let types = (self.kind(*left), self.kind(*right));
                match matching {
                    Some(matching) => matching.check(operator, types)?,
                    None => Matching::default().check(operator, types)?,
                }
                literal = self.is_literal(*left) && self.is_literal(*right);
                kind = match types {
                    (Type::Scalar, Type::Scalar) => Type::Scalar,
                    (Type::Vector, _) | (_, Type::Vector) => Type::Vector,
                    _ => Type::Any,
                };
            }
            ExprNode::Call { function: None, .. } => kind = Type::Any,
            ExprNode::Call {
                function: Some(function),
                arguments,
            } => {
                let (least, most) = function.count;
                (least..=most).contains(&arguments.len()).then_some(())?;
                let wanted = function
                    .arguments
                    .iter()
                    .chain(function.arguments.last().into_iter().cycle());
                let mut pairs = arguments.iter().zip(wanted);
                pairs
                    .all(|(id, wanted)| self.kind(*id).is(*wanted))
                    .then_some(())?;
                kind = function.result;
            }
            ExprNode::Aggregate {
                aggregation,
                parameter,
                expression,
                ..
            } => {
                self.kind(*expression).is(Type::Vector).then_some(())?;
                match (aggregation.parameter, parameter) {
                    (None, None) => {}
                    (Some(wanted), Some(id)) => self.kind(*id).is(wanted).then_some(())?,
                    _ => return None,
                }
                kind = Type::Vector;
            }
        }
        Some(NodeFacts { kind, literal })
    }
}

impl SeriesSelector<'_> {
    /// Checks that Prometheus accepts it: its name is set once, its regular expressions are valid
    /// as far as that can be checked, and it does not select every series.
    fn check(&self) -> Option<()> {
        let mut restricts = self.name.is_some();
        for matcher in &self.matchers {
            let Some((operator, text)) = matcher.test else {
                self.name.is_none().then_some(())?;
                restricts = true;
                continue;
            };
            if self.name.is_some() && *matcher.label.name() == *b"__name__" {
                return None;
            }
            let value = unquoted(text);
            restricts |= match operator {
                "=" => !value.is_empty(),
                "!=" => value.is_empty(),
                _ => {
                    let matches_empty = regex::scan(&value)?;
                    matches_empty == Some(operator != "=~")
                }
            };
        }
        restricts.then_some(())
    }
}

impl Matching<'_> {
    /// Returns whether it has no effect.
    pub(super) fn is_empty(&self) -> bool {
        let Self {
            returns_bool,
            labels,
            group,
            fill,
        } = self;
        !returns_bool && labels.is_none() && group.is_none() && *fill == [None; 2]
    }

    /// Checks that `operator` may have this matching between operands of `types`.
    fn check(&self, operator: &Operator, (left, right): (Type, Type)) -> Option<()> {
        let fits = left.is_operand() && right.is_operand();
        let comparison = operator.family == Family::Comparison;
        if !fits || self.returns_bool && !comparison {
            return None;
        }
        let scalars = left == Type::Scalar && right == Type::Scalar;
        if comparison && scalars && !self.returns_bool {
            return None;
        }
        if let (Some(("on", labels)), Some((_, included))) = (&self.labels, &self.group) {
            let labels: HashSet<_> = labels.iter().map(|l| l.name()).collect();
            if included.iter().any(|l| labels.contains(&l.name())) {
                return None;
            }
        }
        let fills = self.fill.iter().any(Option::is_some);
        let labelled = self.labels.as_ref().is_some_and(|(_, l)| !l.is_empty());
        let set = operator.family == Family::Set;
        let one_scalar = left == Type::Scalar || right == Type::Scalar;
        let wrong = match one_scalar {
            true => labelled || fills || set,
            false => set && (self.group.is_some() || fills),
        };
        (!wrong).then_some(())
    }
}
