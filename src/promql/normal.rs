//! Writes an expression in its normal form: one spelling for all those that every server reads as
//! the same. Nothing is evaluated, and operands keep their order.

use std::fmt::Write as _;

use super::literal::{unquoted, write_duration, write_number, write_string};
use super::tree::{
    At, ExprNode, Grouping, Id, Label, Length, MULTIPLICATION, Matcher, Matching, POWER,
    SeriesSelector, Shift, Tree,
};

/// The position of a part, which determines whether it needs parentheses.
#[derive(Clone, Copy, Debug)]
enum Position {
    /// A position where any expression may stand.
    Free,
    /// Before or behind an operator of this precedence.
    Left(u8),
    Right(u8),
    /// After a sign.
    Signed,
    /// Before the brackets of a subquery.
    Subquery,
}

/// The parts still to be written, the next one last.
enum Task {
    Part(Id, Position),
    Comma,
    Close,
    /// The text after the parentheses or brackets of a node: its end.
    End(Id),
    /// The text between the operands of a node.
    Between(Id),
}

/// Returns the normal form of `tree`, of a text of `length` bytes.
pub(super) fn write(tree: &Tree<'_>, root: Id, length: usize) -> String {
    // It is about as long, as a rule, and need not move.
    let mut out = String::with_capacity(length + length / 8);
    let mut tasks = vec![Task::Part(root, Position::Free)];
    while let Some(task) = tasks.pop() {
        match task {
            Task::Comma => out.push_str(", "),
            Task::Close => out.push(')'),
            Task::Part(id, place) => begin(tree, id, place, &mut out, &mut tasks),
            Task::Between(id) => {
                if let Some(ExprNode::Binary {
                    operator, matching, ..
                }) = tree.node(id)
                {
                    out.push(' ');
                    out.push_str(operator.text);
                    if let Some(matching) = matching {
                        write_matching(&mut out, matching);
                    }
                    out.push(' ');
                }
            }
            Task::End(id) => {
                if let Some(ExprNode::Subquery(subquery)) = tree.node(id) {
                    out.push('[');
                    write_length(&mut out, subquery.range);
                    out.push(':');
                    if let Some(step) = subquery.step {
                        write_length(&mut out, step);
                    }
                    out.push(']');
                    write_shift(&mut out, &subquery.shift);
                }
            }
        }
    }
    out
}

/// Writes the beginning of the part `id`, and queues the rest.
fn begin(tree: &Tree<'_>, id: Id, place: Position, out: &mut String, tasks: &mut Vec<Task>) {
    let Some(node) = tree.node(id) else { return };
    match node {
        ExprNode::Number(value) => write_number(out, *value),
        ExprNode::Written(text) | ExprNode::Metric(text) => out.push_str(text),
        ExprNode::Text(text) => write_string(out, &unquoted(text)),
        ExprNode::Selector(selector) => write_selector(out, selector),
        ExprNode::Subquery(subquery) => {
            let inside = Task::Part(subquery.expression, Position::Subquery);
            tasks.extend([Task::End(id), inside]);
        }
        ExprNode::Paren(_) => {
            let inside = tree.inside(id);
            if is_redundant(tree, inside, place) {
                tasks.push(Task::Part(inside, place));
            } else {
                out.push('(');
                tasks.extend([Task::Close, Task::Part(inside, Position::Free)]);
            }
        }
        ExprNode::Sign(sign, inner) => {
            out.push_str(sign);
            tasks.push(Task::Part(*inner, Position::Signed));
        }
        ExprNode::Binary {
            left,
            operator,
            right,
            ..
        } => tasks.extend([
            Task::Part(*right, Position::Right(operator.precedence)),
            Task::Between(id),
            Task::Part(*left, Position::Left(operator.precedence)),
        ]),
        ExprNode::Call {
            function,
            arguments,
        } => {
            out.push_str(function.map_or("", |f| f.name));
            out.push('(');
            tasks.push(Task::Close);
            list(arguments.iter().copied(), tasks);
        }
        ExprNode::Aggregate {
            aggregation,
            grouping,
            parameter,
            expression,
        } => {
            out.push_str(aggregation.name);
            write_grouping(out, grouping.as_deref());
            out.push('(');
            tasks.push(Task::Close);
            list(parameter.iter().copied().chain([*expression]), tasks);
        }
    }
}

/// Queues `parts` with commas between them.
fn list(parts: impl DoubleEndedIterator<Item = Id>, tasks: &mut Vec<Task>) {
    let mut parts = parts.rev().peekable();
    while let Some(part) = parts.next() {
        tasks.push(Task::Part(part, Position::Free));
        if parts.peek().is_some() {
            tasks.push(Task::Comma);
        }
    }
}

/// Returns whether the parentheses around `inside` can be dropped without a change of meaning.
fn is_redundant(tree: &Tree<'_>, inside: Id, place: Position) -> bool {
    let precedence = match (place, tree.node(inside)) {
        (Position::Free, _) => return true,
        // Servers differ in how they read `up offset 5m - 10m`, so it stays as written.
        (_, Some(ExprNode::Selector(selector))) => return selector.shift.is_none(),
        (_, Some(ExprNode::Call { .. } | ExprNode::Aggregate { .. })) => return true,
        (_, Some(ExprNode::Number(_) | ExprNode::Metric(_))) => return true,
        (_, Some(ExprNode::Sign(..))) => MULTIPLICATION,
        (_, Some(ExprNode::Binary { operator, .. })) => operator.precedence,
        _ => return false,
    };
    let sign = matches!(tree.node(inside), Some(ExprNode::Sign(..)));
    match place {
        Position::Free => true,
        Position::Left(outer) => precedence > outer || precedence == outer && outer != POWER,
        // After an operator a sign applies to what follows it.
        Position::Right(_) if sign => true,
        Position::Right(outer) => precedence > outer || precedence == outer && outer == POWER,
        Position::Signed => !sign && precedence > MULTIPLICATION,
        Position::Subquery => false,
    }
}

fn write_selector(out: &mut String, selector: &SeriesSelector<'_>) {
    out.push_str(selector.name.unwrap_or_default());
    let mut matchers: Vec<_> = selector
        .matchers
        .iter()
        .map(|m| (sort_name(m), m))
        .collect();
    // Matchers of one label keep their order: `absent` takes its labels from the first.
    matchers.sort_by(|(a, _), (b, _)| a.cmp(b));
    for (n, (_, matcher)) in matchers.iter().enumerate() {
        out.push(if n == 0 { '{' } else { ',' });
        matcher.label.write(out);
        if let Some((operator, value)) = matcher.test {
            out.push_str(operator);
            write_string(out, &unquoted(value));
        }
    }
    if !matchers.is_empty() {
        out.push('}');
    }
    if let Some(range) = selector.range {
        out.push('[');
        write_length(out, range);
        out.push(']');
    }
    write_shift(out, &selector.shift);
}

/// Returns the sort key of a matcher: its label.
fn sort_name<'a>(matcher: &Matcher<'a>) -> std::borrow::Cow<'a, [u8]> {
    match matcher.test {
        None => std::borrow::Cow::Borrowed(b"__name__"),
        Some(_) => matcher.label.name(),
    }
}

fn write_shift(out: &mut String, shift: &Shift<'_>) {
    match shift.at {
        None => {}
        Some(At::Start) => out.push_str(" @ start()"),
        Some(At::End) => out.push_str(" @ end()"),
        Some(At::Time(seconds)) => {
            out.push_str(" @ ");
            write_signed(out, seconds);
        }
    }
    if let Some((negative, length)) = shift.offset {
        out.push_str(" offset ");
        out.push_str(if negative { "-" } else { "" });
        write_length(out, length);
    }
}

fn write_length(out: &mut String, length: Length<'_>) {
    match length {
        Length::Duration(millis) => write_duration(out, millis),
        Length::Newer(text, _) => out.push_str(text),
        // Such an expression has no normal form.
        Length::Computed(_) => {}
    }
}

fn write_signed(out: &mut String, value: f64) {
    out.push_str(if value.is_sign_negative() { "-" } else { "" });
    write_number(out, value.abs());
}

fn write_grouping(out: &mut String, grouping: Option<&Grouping<'_>>) {
    // An empty `by` is the same as none; an empty `without` is not.
    let Some(grouping) = grouping.filter(|g| g.without || !g.labels.is_empty()) else {
        return;
    };
    out.push_str(if grouping.without { " without" } else { " by" });
    write_labels(out, &grouping.labels);
    out.push(' ');
}

fn write_matching(out: &mut String, matching: &Matching<'_>) {
    out.push_str(if matching.returns_bool { " bool" } else { "" });
    for (word, labels) in [&matching.labels, &matching.group].into_iter().flatten() {
        let _ = write!(out, " {word}");
        write_labels(out, labels);
    }
    let fill = |out: &mut String, word: &str, value: f64| {
        let _ = write!(out, " {word} (");
        write_signed(out, value);
        out.push(')');
    };
    match matching.fill {
        [Some(left), Some(right)] if left.to_bits() == right.to_bits() => fill(out, "fill", left),
        [left, right] => {
            for (word, value) in [("fill_left", left), ("fill_right", right)] {
                if let Some(value) = value {
                    fill(out, word, value);
                }
            }
        }
    }
}

/// Writes ` (a, b)`, sorted.
fn write_labels(out: &mut String, labels: &[Label<'_>]) {
    let mut labels: Vec<_> = labels.iter().map(|l| (l.name(), l)).collect();
    labels.sort_by(|(a, _), (b, _)| a.cmp(b));
    out.push_str(" (");
    for (n, (_, label)) in labels.iter().enumerate() {
        out.push_str(if n == 0 { "" } else { ", " });
        label.write(out);
    }
    out.push(')');
}
