//! Splits an expression into tokens.

use super::Unreadable;

/// The kind of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TokenKind {
    /// The end of the text.
    End,
    /// A keyword, or the name of a metric, a label or a function.
    Word,
    /// A number or a duration: a word that begins with a digit or a dot.
    Number,
    /// A string with its quotes; its escapes are valid.
    Text,
    LeftParen,
    RightParen,
    LeftBrace,
    RightBrace,
    LeftBracket,
    RightBracket,
    Comma,
    Colon,
    At,
    Assign,
    Equal,
    NotEqual,
    Match,
    NotMatch,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    Add,
    Sub,
    Mul,
    Div,
    Mod,
    Pow,
}

/// A token and its place in the text.
#[derive(Clone, Copy, Debug)]
pub(super) struct Token<'a> {
    pub(super) kind: TokenKind,
    /// The token as it is written.
    pub(super) text: &'a str,
}

/// Reads tokens from the front of a text and looks at each byte once.
pub(super) struct Lexer<'a> {
    text: &'a str,
    at: usize,
    /// Whether a `[` is open. Inside brackets a colon is a token of its own and not part of a word.
    in_brackets: bool,
}

/// U+FFFD, which Prometheus treats as invalid UTF-8 wherever it occurs in a string.
const REPLACEMENT: &[u8] = "\u{fffd}".as_bytes();

impl<'a> Lexer<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self {
            text,
            at: 0,
            in_brackets: false,
        }
    }

    /// Returns the next token.
    pub(super) fn token(&mut self) -> Result<Token<'a>, Unreadable> {
        self.skip_blanks();
        let start = self.at;
        let kind = self.scan()?;
        let text = self.text.get(start..self.at).ok_or(Unreadable)?;
        Ok(Token { kind, text })
    }

    /// Returns whether the next token is a `(`.
    pub(super) fn parenthesis_follows(&self) -> bool {
        let rest = self.text.as_bytes().get(self.at..).unwrap_or_default();
        rest.iter().find(|b| !is_space(**b)) == Some(&b'(')
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    /// Takes the next byte if it satisfies `wanted`.
    fn accept(&mut self, wanted: impl Fn(u8) -> bool) -> bool {
        let taken = self.peek().is_some_and(wanted);
        self.at += usize::from(taken);
        taken
    }

    fn accept_run(&mut self, wanted: impl Fn(u8) -> bool) {
        while self.accept(&wanted) {}
    }

    /// Skips white space and comments.
    fn skip_blanks(&mut self) {
        loop {
            self.accept_run(is_space);
            if !self.accept(|b| b == b'#') {
                return;
            }
            self.accept_run(|b| b != b'\n' && b != b'\r');
        }
    }

    fn scan(&mut self) -> Result<TokenKind, Unreadable> {
        let Some(first) = self.peek() else {
            // The parser reports an unclosed bracket when it expects the closing one.
            return Ok(TokenKind::End);
        };
        self.at += 1;
        Ok(match first {
            b'(' => TokenKind::LeftParen,
            b')' => TokenKind::RightParen,
            b'{' => TokenKind::LeftBrace,
            b'}' => TokenKind::RightBrace,
            b'[' => {
                if std::mem::replace(&mut self.in_brackets, true) {
                    return Err(Unreadable);
                }
                // Comments are not allowed here.
                self.accept_run(is_space);
                if self.peek() == Some(b'#') {
                    return Err(Unreadable);
                }
                TokenKind::LeftBracket
            }
            b']' => {
                if !std::mem::replace(&mut self.in_brackets, false) {
                    return Err(Unreadable);
                }
                TokenKind::RightBracket
            }
            b',' => TokenKind::Comma,
            b'@' => TokenKind::At,
            b'+' => TokenKind::Add,
            b'-' => TokenKind::Sub,
            b'*' => TokenKind::Mul,
            b'/' => TokenKind::Div,
            b'%' => TokenKind::Mod,
            b'^' => TokenKind::Pow,
            b'=' if self.accept(|b| b == b'=') => TokenKind::Equal,
            b'=' if self.accept(|b| b == b'~') => TokenKind::Match,
            b'=' => TokenKind::Assign,
            b'!' if self.accept(|b| b == b'=') => TokenKind::NotEqual,
            b'!' if self.accept(|b| b == b'~') => TokenKind::NotMatch,
            b'<' if self.accept(|b| b == b'=') => TokenKind::LessOrEqual,
            b'<' => TokenKind::Less,
            b'>' if self.accept(|b| b == b'=') => TokenKind::GreaterOrEqual,
            b'>' => TokenKind::Greater,
            b':' if self.in_brackets => TokenKind::Colon,
            b'"' | b'\'' => self.quoted(first)?,
            b'`' => self.raw()?,
            b'0'..=b'9' => self.number()?,
            b'.' if self.peek().is_some_and(|b| b.is_ascii_digit()) => self.number()?,
            _ if is_word(first) || first == b':' => {
                let colons = !self.in_brackets;
                self.accept_run(|b| is_word(b) || b.is_ascii_digit() || colons && b == b':');
                TokenKind::Word
            }
            _ => return Err(Unreadable),
        })
    }

    /// Reads the rest of a number or duration whose first byte has been taken. Neither may be
    /// followed directly by a letter, a digit or a dot.
    fn number(&mut self) -> Result<TokenKind, Unreadable> {
        let start = self.at - 1;
        let is_sign = |b| b == b'+' || b == b'-';
        let mut exponent = false;
        loop {
            let taken = self.text.as_bytes().get(start..self.at).unwrap_or_default();
            if let Some((b'e' | b'E', before)) = taken.split_last() {
                let hexadecimal = matches!(before, [b'0', b'x' | b'X', ..]);
                if hexadecimal && self.peek().is_some_and(is_sign) {
                    // Some versions of Prometheus read `0x1e+5` as a sum, others refuse it.
                    return Err(Unreadable);
                }
                if !hexadecimal && !std::mem::replace(&mut exponent, true) {
                    self.accept(is_sign);
                }
            }
            if !self.accept(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'.') {
                return Ok(TokenKind::Number);
            }
        }
    }

    /// Reads the rest of a string in `quote`, which has been taken.
    fn quoted(&mut self, quote: u8) -> Result<TokenKind, Unreadable> {
        loop {
            match self.peek() {
                None | Some(b'\n') => return Err(Unreadable),
                Some(b'\\') => {
                    let rest = self.text.as_bytes().get(self.at + 1..).unwrap_or_default();
                    let (_, length) = escape(rest, quote).ok_or(Unreadable)?;
                    self.at += 1 + length;
                }
                Some(byte) if byte == quote => {
                    self.at += 1;
                    return Ok(TokenKind::Text);
                }
                Some(_) => self.character()?,
            }
        }
    }

    /// Reads the rest of a string in backticks, the first of which has been taken.
    fn raw(&mut self) -> Result<TokenKind, Unreadable> {
        loop {
            match self.peek() {
                None => return Err(Unreadable),
                Some(b'`') => {
                    self.at += 1;
                    return Ok(TokenKind::Text);
                }
                Some(_) => self.character()?,
            }
        }
    }

    /// Takes one character of a string.
    fn character(&mut self) -> Result<(), Unreadable> {
        let rest = self.text.as_bytes().get(self.at..).unwrap_or_default();
        if rest.starts_with(REPLACEMENT) {
            return Err(Unreadable);
        }
        self.at += 1;
        Ok(())
    }
}

/// The meaning of an escape.
pub(super) enum Escaped {
    Byte(u8),
    Char(char),
}

/// Returns what the escape at the start of `rest`, after its backslash, stands for in a string in
/// `quote`, and its length. The rules are Go's.
pub(super) fn escape(rest: &[u8], quote: u8) -> Option<(Escaped, usize)> {
    let first = *rest.first()?;
    let simple = |byte| Some((Escaped::Byte(byte), 1));
    let (digits, radix) = match first {
        b'a' => return simple(7),
        b'b' => return simple(8),
        b'f' => return simple(12),
        b'n' => return simple(b'\n'),
        b'r' => return simple(b'\r'),
        b't' => return simple(b'\t'),
        b'v' => return simple(11),
        b'\\' => return simple(b'\\'),
        _ if first == quote => return simple(quote),
        b'0'..=b'7' => (rest.get(..3)?, 8),
        b'x' => (rest.get(1..3)?, 16),
        b'u' => (rest.get(1..5)?, 16),
        b'U' => (rest.get(1..9)?, 16),
        _ => return None,
    };
    let mut value = 0u32;
    for digit in digits {
        let digit = char::from(*digit).to_digit(radix)?;
        value = value.checked_mul(radix)?.checked_add(digit)?;
    }
    Some(match first {
        b'u' | b'U' => (Escaped::Char(char::from_u32(value)?), 1 + digits.len()),
        _ => (Escaped::Byte(u8::try_from(value).ok()?), 3),
    })
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

/// Returns whether a word may begin with `byte`.
fn is_word(byte: u8) -> bool {
    byte == b'_' || byte.is_ascii_alphabetic()
}
