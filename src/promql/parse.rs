//! Parses an expression: a precedence parser with its own stack, so that no nesting is too deep.
//! Every token is looked at once.
//!
//! The grammar is that of Prometheus (`promql/parser/generated_parser.y` and `lex.go`), from 2.42 on.

use super::Unreadable;
use super::functions::{Aggregation, aggregation_named, function};
use super::lexer::{Lexer, Token, TokenKind};
use super::literal::{Quantity, quantity};
use super::tree::{
    ExprNode, Family, Grouping, Id, Label, MULTIPLICATION, Matching, Operator, POWER, Tree,
};

/// The most words and signs of an expression that is parsed. In memory each takes up to a hundred bytes, so what a
/// request costs is bounded before it is known what it says; the bytes of a string do not count.
pub(super) const MOST_TOKENS: usize = 20_000;

/// Parses `text`; returns the tree and its root.
pub(super) fn parse(text: &str) -> Result<(Tree<'_>, Id), Unreadable> {
    Parser::new(text)?.expression()
}

/// Parses `text`, a selector of series as in `match[]`; returns the tree that holds it.
pub(super) fn parse_selector(text: &str) -> Result<(Tree<'_>, Id), Unreadable> {
    let mut parser = Parser::new(text)?;
    let name = match parser.token.kind {
        TokenKind::Word if is_metric(parser.token.text) => Some(parser.advance()?.text),
        _ => None,
    };
    let root = parser.selector(name)?;
    parser.expect(TokenKind::End)?;
    Ok((parser.tree, root))
}

/// Operators and brackets that wait for an operand.
enum Pending<'a> {
    Paren,
    /// The function, and the position of its first argument.
    Call(&'a str, Id),
    Aggregate(&'static Aggregation, Option<Box<Grouping<'a>>>, Id),
    Sign(&'static str),
    Binary(Id, &'static Operator, Option<Box<Matching<'a>>>),
}

pub(super) struct Parser<'a> {
    lexer: Lexer<'a>,
    /// The current token.
    pub(super) token: Token<'a>,
    pub(super) tree: Tree<'a>,
    frames: Vec<Pending<'a>>,
    /// The arguments of all pending calls.
    arguments: Vec<Id>,
    tokens_left: usize,
}

impl<'a> Parser<'a> {
    fn new(text: &'a str) -> Result<Self, Unreadable> {
        let mut lexer = Lexer::new(text);
        let token = lexer.token()?;
        Ok(Self {
            lexer,
            token,
            tree: Tree::default(),
            frames: Vec::new(),
            arguments: Vec::new(),
            tokens_left: MOST_TOKENS,
        })
    }

    /// Advances to the next token and returns the one before.
    pub(super) fn advance(&mut self) -> Result<Token<'a>, Unreadable> {
        self.tokens_left = self.tokens_left.checked_sub(1).ok_or(Unreadable)?;
        let next = self.lexer.token()?;
        Ok(std::mem::replace(&mut self.token, next))
    }

    pub(super) fn accept(&mut self, kind: TokenKind) -> Result<bool, Unreadable> {
        let found = self.token.kind == kind;
        if found {
            self.advance()?;
        }
        Ok(found)
    }

    pub(super) fn expect(&mut self, kind: TokenKind) -> Result<Token<'a>, Unreadable> {
        match self.token.kind == kind {
            true => self.advance(),
            false => Err(Unreadable),
        }
    }

    /// Returns whether the current token is the keyword `word`, in any case.
    pub(super) fn at_word(&self, word: &str) -> bool {
        self.token.kind == TokenKind::Word && self.token.text.eq_ignore_ascii_case(word)
    }

    pub(super) fn accept_word(&mut self, word: &str) -> Result<bool, Unreadable> {
        let found = self.at_word(word);
        if found {
            self.advance()?;
        }
        Ok(found)
    }

    fn expression(mut self) -> Result<(Tree<'a>, Id), Unreadable> {
        loop {
            let Some(mut operand) = self.operand()? else {
                continue;
            };
            loop {
                match self.token.kind {
                    TokenKind::LeftBracket => operand = self.range(operand)?,
                    TokenKind::At => self.at(operand)?,
                    TokenKind::Word if self.at_word("offset") => self.offset(operand)?,
                    TokenKind::RightParen => operand = self.close(operand)?,
                    TokenKind::Comma => {
                        self.argument(operand)?;
                        self.advance()?;
                        break;
                    }
                    TokenKind::End => {
                        let root = self.reduce(operand, 0)?;
                        return match self.frames.is_empty() {
                            true => Ok((self.tree, root)),
                            false => Err(Unreadable),
                        };
                    }
                    _ => {
                        let operator = operator(self.token).ok_or(Unreadable)?;
                        let left = self.reduce(operand, operator.precedence)?;
                        self.advance()?;
                        let matching = self.matching()?;
                        let matching = (!matching.is_empty()).then(|| Box::new(matching));
                        self.frames.push(Pending::Binary(left, operator, matching));
                        break;
                    }
                }
            }
        }
    }

    /// Reads an operand, or returns `None` after a prefix that still needs one.
    fn operand(&mut self) -> Result<Option<Id>, Unreadable> {
        let token = self.token;
        match token.kind {
            TokenKind::Add | TokenKind::Sub => {
                self.advance()?;
                let sign = if token.kind == TokenKind::Add {
                    "+"
                } else {
                    "-"
                };
                self.frames.push(Pending::Sign(sign));
                Ok(None)
            }
            TokenKind::LeftParen => {
                self.advance()?;
                self.frames.push(Pending::Paren);
                Ok(None)
            }
            TokenKind::Number => {
                self.advance()?;
                let number = match quantity(token.text).ok_or(Unreadable)? {
                    Quantity::Number(value) if is_plain(token.text) => ExprNode::Number(value),
                    _ => ExprNode::Written(token.text),
                };
                self.tree.add(number).map(Some)
            }
            TokenKind::Text => {
                self.advance()?;
                self.tree.add(ExprNode::Text(token.text)).map(Some)
            }
            TokenKind::LeftBrace => self.selector(None).map(Some),
            TokenKind::Word => self.word(),
            _ => Err(Unreadable),
        }
    }

    /// Reads an operand that begins with a word.
    fn word(&mut self) -> Result<Option<Id>, Unreadable> {
        let word = self.advance()?.text;
        let called = self.token.kind == TokenKind::LeftParen;
        if let Some(value) = number_word(word) {
            return self.tree.add(ExprNode::Number(value)).map(Some);
        }
        let grouped = self.at_word("by") || self.at_word("without");
        if let Some(aggregation) = aggregation_named(word).filter(|_| called || grouped) {
            let grouping = self.grouping()?;
            self.expect(TokenKind::LeftParen)?;
            let first = self.next_argument()?;
            let frame = Pending::Aggregate(aggregation, grouping, first);
            self.frames.push(frame);
            return Ok(None);
        }
        if !called {
            return match is_metric(word) {
                true => self.selector(Some(word)).map(Some),
                false => Err(Unreadable),
            };
        }
        // `start` and `end` are keywords, and functions of newer servers.
        let known = function(word).is_some();
        if word.contains(':') || is_keyword(word) && !known {
            return Err(Unreadable);
        }
        self.advance()?;
        if self.accept(TokenKind::RightParen)? {
            return self.call(word, Box::default()).map(Some);
        }
        let first = self.next_argument()?;
        self.frames.push(Pending::Call(word, first));
        Ok(None)
    }

    /// Combines `operand` with the pending operators that bind at least as tightly as `precedence`.
    fn reduce(&mut self, mut operand: Id, precedence: u8) -> Result<Id, Unreadable> {
        loop {
            let binds = match self.frames.last() {
                Some(Pending::Sign(_)) => MULTIPLICATION >= precedence,
                Some(Pending::Binary(_, operator, _)) => {
                    operator.precedence > precedence
                        || operator.precedence == precedence && precedence != POWER
                }
                _ => false,
            };
            if !binds {
                return Ok(operand);
            }
            operand = match self.frames.pop() {
                Some(Pending::Sign(sign)) => self.tree.add(ExprNode::Sign(sign, operand))?,
                Some(Pending::Binary(left, operator, matching)) => {
                    self.tree.add(ExprNode::Binary {
                        left,
                        operator,
                        matching,
                        right: operand,
                    })?
                }
                _ => return Err(Unreadable),
            };
        }
    }

    /// Ends an argument with `operand`.
    fn argument(&mut self, operand: Id) -> Result<(), Unreadable> {
        let whole = self.reduce(operand, 0)?;
        match self.frames.last() {
            Some(Pending::Call(..) | Pending::Aggregate(..)) => {
                self.arguments.push(whole);
                Ok(())
            }
            _ => Err(Unreadable),
        }
    }

    /// Reads the closing parenthesis at the current token.
    fn close(&mut self, operand: Id) -> Result<Id, Unreadable> {
        let whole = self.reduce(operand, 0)?;
        self.advance()?;
        match self.frames.pop() {
            Some(Pending::Paren) => self.tree.add(ExprNode::Paren(whole)),
            Some(Pending::Call(name, first)) => {
                self.arguments.push(whole);
                let arguments = self.arguments.drain(first as usize..).collect();
                self.call(name, arguments)
            }
            Some(Pending::Aggregate(aggregation, before, first)) => {
                let grouping = match before {
                    Some(grouping) => Some(grouping),
                    None => self.grouping()?,
                };
                let parameter = match self.arguments.get(first as usize..) {
                    Some([parameter]) => Some(*parameter),
                    Some([]) => None,
                    _ => return Err(Unreadable),
                };
                self.arguments.truncate(first as usize);
                self.tree.add(ExprNode::Aggregate {
                    aggregation,
                    grouping,
                    parameter,
                    expression: whole,
                })
            }
            _ => Err(Unreadable),
        }
    }

    /// Returns the position of the first argument of a new call.
    fn next_argument(&self) -> Result<Id, Unreadable> {
        Id::try_from(self.arguments.len()).map_err(|_| Unreadable)
    }

    fn call(&mut self, name: &'a str, arguments: Box<[Id]>) -> Result<Id, Unreadable> {
        let function = function(name);
        self.tree.as_written |= function.is_none();
        self.tree.add(ExprNode::Call {
            function,
            arguments,
        })
    }

    /// Reads `by (…)` or `without (…)`, if that follows.
    fn grouping(&mut self) -> Result<Option<Box<Grouping<'a>>>, Unreadable> {
        let without = self.at_word("without");
        if !without && !self.at_word("by") {
            return Ok(None);
        }
        self.advance()?;
        let labels = self.labels()?;
        Ok(Some(Box::new(Grouping { without, labels })))
    }

    /// Reads the names of labels in parentheses.
    fn labels(&mut self) -> Result<Vec<Label<'a>>, Unreadable> {
        self.expect(TokenKind::LeftParen)?;
        let mut labels = Vec::new();
        while !self.accept(TokenKind::RightParen)? {
            let token = self.advance()?;
            let is_label = match token.kind {
                TokenKind::Word => {
                    let without = token.text.eq_ignore_ascii_case("without");
                    !without && number_word(token.text).is_none()
                }
                TokenKind::Text => token.text.len() > 2,
                _ => false,
            };
            if !is_label {
                return Err(Unreadable);
            }
            labels.push(Label(token.text));
            if !self.accept(TokenKind::Comma)? && self.token.kind != TokenKind::RightParen {
                return Err(Unreadable);
            }
        }
        Ok(labels)
    }

    /// Reads the modifiers between an operator and its right operand.
    fn matching(&mut self) -> Result<Matching<'a>, Unreadable> {
        let mut matching = Matching {
            returns_bool: self.accept_word("bool")?,
            ..Matching::default()
        };
        for word in ["on", "ignoring"] {
            if matching.labels.is_none() && self.accept_word(word)? {
                matching.labels = Some((word, self.labels()?));
            }
        }
        if matching.labels.is_some() {
            for word in ["group_left", "group_right"] {
                if matching.group.is_none() && self.accept_word(word)? {
                    let labels = match self.token.kind {
                        TokenKind::LeftParen => self.labels()?,
                        _ => Vec::new(),
                    };
                    matching.group = Some((word, labels));
                }
            }
        }
        self.fill(&mut matching)?;
        Ok(matching)
    }

    /// Reads `fill (0)`, `fill_left (0)` and `fill_right (0)`, which are keywords only before a
    /// parenthesis.
    fn fill(&mut self, matching: &mut Matching<'a>) -> Result<(), Unreadable> {
        while self.lexer.parenthesis_follows() {
            let sides = if self.at_word("fill") {
                [true, true]
            } else if self.at_word("fill_left") {
                [true, false]
            } else if self.at_word("fill_right") {
                [false, true]
            } else {
                return Ok(());
            };
            self.advance()?;
            self.expect(TokenKind::LeftParen)?;
            let value = self.signed_number()?;
            self.expect(TokenKind::RightParen)?;
            for (fill, side) in matching.fill.iter_mut().zip(sides) {
                if side && fill.replace(value).is_some() {
                    return Err(Unreadable);
                }
            }
        }
        Ok(())
    }

    /// Reads a number with or without a sign.
    pub(super) fn signed_number(&mut self) -> Result<f64, Unreadable> {
        let negative = self.token.kind == TokenKind::Sub;
        if negative || self.token.kind == TokenKind::Add {
            self.advance()?;
        }
        let token = self.advance()?;
        let value = match token.kind {
            TokenKind::Number => match quantity(token.text) {
                Some(Quantity::Number(value)) => Some(value),
                _ => None,
            },
            TokenKind::Word => number_word(token.text),
            _ => None,
        };
        let value = value.ok_or(Unreadable)?;
        // A spelling that servers read differently must not be normalised.
        self.tree.as_written |= !is_plain(token.text);
        Ok(if negative { -value } else { value })
    }
}

/// All binary operators.
static OPERATORS: [Operator; 16] = {
    use Family::{Arithmetic, Comparison, Set};
    const fn operator(text: &'static str, precedence: u8, family: Family) -> Operator {
        Operator {
            text,
            precedence,
            family,
        }
    }
    [
        operator("==", 3, Comparison),
        operator("!=", 3, Comparison),
        operator("<", 3, Comparison),
        operator("<=", 3, Comparison),
        operator(">", 3, Comparison),
        operator(">=", 3, Comparison),
        operator("+", 4, Arithmetic),
        operator("-", 4, Arithmetic),
        operator("*", MULTIPLICATION, Arithmetic),
        operator("/", MULTIPLICATION, Arithmetic),
        operator("%", MULTIPLICATION, Arithmetic),
        operator("^", POWER, Arithmetic),
        operator("or", 1, Set),
        operator("and", 2, Set),
        operator("unless", 2, Set),
        operator("atan2", MULTIPLICATION, Arithmetic),
    ]
};

/// Returns the operator that `token` stands for.
fn operator(token: Token<'_>) -> Option<&'static Operator> {
    let mut all = OPERATORS.iter();
    match token.kind {
        TokenKind::Text | TokenKind::Number => None,
        TokenKind::Word => all.find(|o| token.text.eq_ignore_ascii_case(o.text)),
        _ => all.find(|o| token.text == o.text),
    }
}

/// Returns whether every server reads the number `text`, and with the same value: only newer ones
/// read `1_000`, and `010` is eight for Prometheus and ten for others.
fn is_plain(text: &str) -> bool {
    let leading_zero = matches!(text.as_bytes(), [b'0', b'0'..=b'9', ..]);
    !leading_zero && !text.contains('_')
}

/// Returns the number that `word` stands for.
fn number_word(word: &str) -> Option<f64> {
    let is = |number: &str| word.eq_ignore_ascii_case(number);
    if is("inf") {
        Some(f64::INFINITY)
    } else {
        is("nan").then_some(f64::NAN)
    }
}

/// Keywords that may be the name of a metric.
const SOFT: [&str; 8] = [
    "and", "by", "end", "offset", "or", "start", "unless", "without",
];

/// Keywords that may not be the name of a metric.
const HARD: [&str; 6] = [
    "atan2",
    "bool",
    "group_left",
    "group_right",
    "ignoring",
    "on",
];

fn is_metric(word: &str) -> bool {
    let hard = HARD.iter().any(|k| word.eq_ignore_ascii_case(k));
    !hard && number_word(word).is_none()
}

/// Returns whether `word` is a keyword, in any case, and not the name of a function.
fn is_keyword(word: &str) -> bool {
    let mut keywords = SOFT.iter().chain(&HARD);
    keywords.any(|k| word.eq_ignore_ascii_case(k))
}
