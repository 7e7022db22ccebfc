//! Parses selectors and what may follow them: ranges, `offset` and `@`.

use super::Unreadable;
use super::lexer::TokenKind;
use super::literal::{LONGEST, Quantity, quantity};
use super::parse::Parser;
use super::tree::{
    At, ExprNode, Id, Label, Length, Matcher, SeriesSelector, Shift, Subquery, Type,
};

/// The deepest nesting of duration expressions that is read; parsing them recurses.
const DEEPEST: usize = 20;

impl<'a> Parser<'a> {
    /// Reads a selector whose name, if it has one, has been taken.
    pub(super) fn selector(&mut self, name: Option<&'a str>) -> Result<Id, Unreadable> {
        let mut selector = SeriesSelector {
            name,
            ..SeriesSelector::default()
        };
        let braces = self.accept(TokenKind::LeftBrace)?;
        if !braces && name.is_none() {
            return Err(Unreadable);
        }
        while braces && !self.accept(TokenKind::RightBrace)? {
            selector.matchers.push(self.matcher()?);
            if !self.accept(TokenKind::Comma)? && self.token.kind != TokenKind::RightBrace {
                return Err(Unreadable);
            }
        }
        self.tree.add(match selector.name.filter(|_| !braces) {
            Some(name) => ExprNode::Metric(name),
            None => ExprNode::Selector(Box::new(selector)),
        })
    }

    fn matcher(&mut self) -> Result<Matcher<'a>, Unreadable> {
        let label = self.advance()?;
        let operator = match self.token.kind {
            TokenKind::Assign => "=",
            TokenKind::NotEqual => "!=",
            TokenKind::Match => "=~",
            TokenKind::NotMatch => "!~",
            _ if label.kind == TokenKind::Text && label.text.len() > 2 => {
                return Ok(Matcher {
                    label: Label(label.text),
                    test: None,
                });
            }
            _ => return Err(Unreadable),
        };
        let is_label = match label.kind {
            TokenKind::Word => !label.text.contains(':'),
            TokenKind::Text => label.text.len() > 2,
            _ => false,
        };
        if !is_label {
            return Err(Unreadable);
        }
        self.advance()?;
        let value = self.expect(TokenKind::Text)?;
        Ok(Matcher {
            label: Label(label.text),
            test: Some((operator, value.text)),
        })
    }

    /// Adds the range or subquery at the current token to `operand`.
    pub(super) fn range(&mut self, operand: Id) -> Result<Id, Unreadable> {
        self.expect(TokenKind::LeftBracket)?;
        let range = self.positive_length()?;
        if self.accept(TokenKind::Colon)? {
            let step = match self.token.kind {
                TokenKind::RightBracket => None,
                _ => Some(self.positive_length()?),
            };
            self.expect(TokenKind::RightBracket)?;
            return self.tree.add(ExprNode::Subquery(Box::new(Subquery {
                expression: operand,
                range,
                step,
                shift: Shift::default(),
            })));
        }
        self.expect(TokenKind::RightBracket)?;
        let selector = self.tree.selector_mut(operand).ok_or(Unreadable)?;
        // Prometheus accepts `up @ start() [5m]`.
        let at_time = matches!(selector.shift.at, Some(At::Time(_)));
        if selector.range.is_some() || selector.shift.offset.is_some() || at_time {
            return Err(Unreadable);
        }
        selector.range = Some(range);
        self.tree.becomes(operand, Type::Matrix);
        Ok(operand)
    }

    /// Adds the offset at the current token to `operand`.
    pub(super) fn offset(&mut self, operand: Id) -> Result<(), Unreadable> {
        self.advance()?;
        let negative = self.token.kind == TokenKind::Sub;
        if negative {
            self.advance()?;
        } else if self.accept(TokenKind::Add)? {
            self.tree.as_written = true;
        }
        let plain = self.token.kind == TokenKind::Number;
        let length = match plain {
            true => self.length()?,
            false => self.computed(DEEPEST)?.length(),
        };
        let operates = [
            TokenKind::Add,
            TokenKind::Sub,
            TokenKind::Mul,
            TokenKind::Div,
            TokenKind::Mod,
            TokenKind::Pow,
        ];
        if !plain && operates.contains(&self.token.kind) {
            // The tables of Prometheus' parser decide whether it belongs to the duration or to the
            // series.
            return Err(Unreadable);
        }
        self.tree.as_written |= !plain;
        let shift = self.tree.shift_mut(operand).ok_or(Unreadable)?;
        match shift.offset.replace((negative, length)) {
            None => Ok(()),
            Some(_) => Err(Unreadable),
        }
    }

    /// Adds the `@` at the current token to `operand`.
    pub(super) fn at(&mut self, operand: Id) -> Result<(), Unreadable> {
        self.advance()?;
        let mut at = None;
        for (word, edge) in [("start", At::Start), ("end", At::End)] {
            if at.is_none() && self.accept_word(word)? {
                self.expect(TokenKind::LeftParen)?;
                self.expect(TokenKind::RightParen)?;
                at = Some(edge);
            }
        }
        let at = match at {
            Some(at) => at,
            None => {
                let time = self.signed_number()?;
                if time.is_nan() || time.abs() >= i64::MAX as f64 {
                    return Err(Unreadable);
                }
                At::Time(time)
            }
        };
        let shift = self.tree.shift_mut(operand).ok_or(Unreadable)?;
        match shift.at.replace(at) {
            None => Ok(()),
            Some(_) => Err(Unreadable),
        }
    }

    /// Reads the length of a range or a step.
    fn positive_length(&mut self) -> Result<Length<'a>, Unreadable> {
        let plain = self.token.kind == TokenKind::Number;
        let first = match plain {
            true => Some(self.length()?),
            false => None,
        };
        let length = match (first, self.token.kind) {
            (Some(length), TokenKind::Colon | TokenKind::RightBracket) => length,
            (first, _) => {
                self.tree.as_written = true;
                let first = first.map(Computed::of);
                self.sum(first, DEEPEST)?.length()
            }
        };
        match length.millis() {
            Some(..=0) => Err(Unreadable),
            _ => Ok(length),
        }
    }

    /// Reads a duration, or a number of seconds, which only newer servers accept here.
    fn length(&mut self) -> Result<Length<'a>, Unreadable> {
        let text = self.expect(TokenKind::Number)?.text;
        match quantity(text).ok_or(Unreadable)? {
            Quantity::Duration(0) => Ok(Length::Newer(text, 0)),
            Quantity::Duration(millis) => Ok(Length::Duration(millis)),
            Quantity::Number(seconds) => {
                let millis = Computed(Some(seconds)).length().millis();
                Ok(Length::Newer(text, millis.ok_or(Unreadable)?))
            }
        }
    }

    /// Reads a duration expression, whose first operand may have been taken: sums, products and
    /// powers.
    fn sum(&mut self, first: Option<Computed>, depth: usize) -> Result<Computed, Unreadable> {
        let mut sum = self.product(first, depth)?;
        loop {
            let negative = self.token.kind == TokenKind::Sub;
            if !negative && self.token.kind != TokenKind::Add {
                return Ok(sum);
            }
            self.advance()?;
            let other = self.product(None, depth)?;
            sum = sum.with(other, |a, b| if negative { a - b } else { a + b });
        }
    }

    fn product(&mut self, first: Option<Computed>, depth: usize) -> Result<Computed, Unreadable> {
        let mut product = self.power(first, depth)?;
        loop {
            let kind = self.token.kind;
            if !matches!(kind, TokenKind::Mul | TokenKind::Div | TokenKind::Mod) {
                return Ok(product);
            }
            self.advance()?;
            let other = self.power(None, depth)?;
            product = product.with(other, |a, b| match kind {
                TokenKind::Mul => a * b,
                TokenKind::Div => a / b,
                _ => a % b,
            });
        }
    }

    fn power(&mut self, first: Option<Computed>, depth: usize) -> Result<Computed, Unreadable> {
        let base = match first {
            Some(first) => first,
            None => self.computed(depth)?,
        };
        if !self.accept(TokenKind::Pow)? {
            return Ok(base);
        }
        let depth = depth.checked_sub(1).ok_or(Unreadable)?;
        let exponent = self.power(None, depth)?;
        Ok(base.with(exponent, f64::powf))
    }

    /// Reads one operand of a duration expression.
    fn computed(&mut self, depth: usize) -> Result<Computed, Unreadable> {
        let depth = depth.checked_sub(1).ok_or(Unreadable)?;
        match self.token.kind {
            TokenKind::Number => self.length().map(Computed::of),
            TokenKind::Add | TokenKind::Sub => {
                let negative = self.advance()?.kind == TokenKind::Sub;
                let Computed(value) = self.power(None, depth)?;
                Ok(Computed(value.map(|v| if negative { -v } else { v })))
            }
            TokenKind::LeftParen => {
                self.advance()?;
                let inside = self.sum(None, depth)?;
                self.expect(TokenKind::RightParen)?;
                Ok(inside)
            }
            TokenKind::Word => self.duration_function(depth),
            _ => Err(Unreadable),
        }
    }

    /// Reads `step()`, `range()`, or the minimum or maximum of two durations.
    fn duration_function(&mut self, depth: usize) -> Result<Computed, Unreadable> {
        let is = |parser: &Self, names: &[&str]| names.iter().any(|n| parser.at_word(n));
        let of_window = is(self, &["step", "range"]);
        let least = is(self, &["min", "min_of"]);
        if !of_window && !least && !is(self, &["max", "max_of"]) {
            return Err(Unreadable);
        }
        self.advance()?;
        self.expect(TokenKind::LeftParen)?;
        let value = if of_window {
            Computed(None)
        } else {
            let first = self.sum(None, depth)?;
            self.expect(TokenKind::Comma)?;
            let second = self.sum(None, depth)?;
            first.with(second, if least { f64::min } else { f64::max })
        };
        self.expect(TokenKind::RightParen)?;
        Ok(value)
    }
}

/// The value of a duration expression in seconds; `None` if it depends on the window or is out of
/// range.
#[derive(Clone, Copy)]
struct Computed(Option<f64>);

impl Computed {
    fn of(length: Length<'_>) -> Self {
        Self(length.millis().map(|millis| millis as f64 / 1000.0))
    }

    fn with(self, other: Self, combine: impl Fn(f64, f64) -> f64) -> Self {
        Self(self.0.zip(other.0).map(|(a, b)| combine(a, b)))
    }

    fn length<'a>(self) -> Length<'a> {
        let millis = self.0.map(|seconds| seconds * 1000.0);
        let sound = |millis: &f64| millis.abs() <= LONGEST as f64;
        Length::Computed(millis.filter(sound).map(|millis| millis.floor() as i64))
    }
}
