//! Numbers, durations and strings: their values, and the one way in which Heliostat writes them.

use std::borrow::Cow;
use std::fmt::Write as _;

use super::lexer::{Escaped, escape};

/// The units of durations, longest first, in milliseconds. A year has 365 days.
const UNITS: [(&str, i64); 7] = [
    ("y", 365 * 86_400_000),
    ("w", 7 * 86_400_000),
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1000),
    ("ms", 1),
];

/// The longest duration, in milliseconds: Prometheus counts nanoseconds in 64 bits.
pub(super) const LONGEST: i64 = i64::MAX / 1_000_000;

/// The value of a token that begins like a number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Quantity {
    Number(f64),
    /// Milliseconds.
    Duration(i64),
}

/// Returns the value of `text`, or `None` if it is neither a number nor a duration.
pub(super) fn quantity(text: &str) -> Option<Quantity> {
    match number(text) {
        Some(value) => Some(Quantity::Number(value)),
        None => duration(text).map(Quantity::Duration),
    }
}

/// Returns the value of a number by Go's rules: `0x` begins hexadecimal integers, a zero octal
/// ones; an underscore may separate digits, which only newer servers accept.
fn number(text: &str) -> Option<f64> {
    let digits: Cow<'_, str> = if text.contains('_') {
        Cow::Owned(without_underscores(text)?)
    } else {
        Cow::Borrowed(text)
    };
    if let Some(hexadecimal) = digits.strip_prefix("0x").or(digits.strip_prefix("0X")) {
        return Some(i64::from_str_radix(hexadecimal, 16).ok()? as f64);
    }
    if digits.len() > 1
        && digits.starts_with('0')
        && let Ok(octal) = i64::from_str_radix(&digits, 8)
    {
        return Some(octal as f64);
    }
    let plain = |b: u8| b.is_ascii_digit() || b"+-.eE".contains(&b);
    if !digits.bytes().all(plain) {
        return None;
    }
    digits.parse::<f64>().ok().filter(|value| value.is_finite())
}

/// Returns `text` without the underscores between its digits or after `0x`; `None` if one is
/// elsewhere.
fn without_underscores(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    let hexadecimal = text.starts_with("0x") || text.starts_with("0X");
    let is_digit = |at: usize| match bytes.get(at) {
        Some(byte) if hexadecimal => byte.is_ascii_hexdigit() || at == 1,
        Some(byte) => byte.is_ascii_digit(),
        None => false,
    };
    for (at, byte) in bytes.iter().enumerate() {
        if *byte == b'_' && !(at > 0 && is_digit(at - 1) && is_digit(at + 1)) {
            return None;
        }
    }
    Some(text.replace('_', ""))
}

/// Returns the milliseconds of a duration such as `1h30m`: units from the longest to the shortest,
/// each at most once.
fn duration(text: &str) -> Option<i64> {
    let (mut rest, mut units, mut sum) = (text, UNITS.iter(), 0i64);
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (count, after) = rest.split_at_checked(digits)?;
        let letters = after.bytes().take_while(u8::is_ascii_alphabetic).count();
        let (unit, after) = after.split_at_checked(letters)?;
        let (_, millis) = units.find(|(name, _)| *name == unit)?;
        sum = sum.checked_add(count.parse::<i64>().ok()?.checked_mul(*millis)?)?;
        rest = after;
    }
    (!text.is_empty() && sum <= LONGEST).then_some(sum)
}

/// Writes a duration, in the longest unit that divides it.
pub(super) fn write_duration(out: &mut String, millis: i64) {
    let divides = |(_, unit): &&(&str, i64)| millis % unit == 0;
    if let Some((name, unit)) = UNITS.iter().find(divides) {
        let _ = write!(out, "{}{name}", millis / unit);
    }
}

/// Writes a number that is not negative, in a form that parses to the same number.
pub(super) fn write_number(out: &mut String, value: f64) {
    let _ = if value.is_nan() {
        write!(out, "NaN")
    } else if value.is_infinite() {
        write!(out, "Inf")
    } else if value == 0.0 || (1e-5..1e16).contains(&value) {
        write!(out, "{value}")
    } else {
        write!(out, "{value:e}")
    };
}

/// Returns the bytes of a string; `text` is a token with its quotes. They need not be UTF-8.
pub(super) fn unquoted(text: &str) -> Cow<'_, [u8]> {
    let bytes = text.as_bytes();
    let (Some(quote), Some(inner)) = (bytes.first(), bytes.get(1..bytes.len() - 1)) else {
        return Cow::Borrowed(&[]);
    };
    if *quote == b'`' || !inner.contains(&b'\\') {
        return Cow::Borrowed(inner);
    }
    let (mut out, mut rest) = (Vec::with_capacity(inner.len()), inner);
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first != b'\\' {
            out.push(*first);
            continue;
        }
        // The lexer lets only valid escapes pass.
        let Some((escaped, length)) = escape(after, *quote) else {
            continue;
        };
        match escaped {
            Escaped::Byte(byte) => out.push(byte),
            Escaped::Char(char) => out.extend(char.encode_utf8(&mut [0; 4]).bytes()),
        }
        rest = after.get(length..).unwrap_or_default();
    }
    Cow::Owned(out)
}

/// Writes `value` as a string in double quotes that parses to the same bytes.
pub(super) fn write_string(out: &mut String, value: &[u8]) {
    out.push('"');
    for chunk in value.utf8_chunks() {
        for char in chunk.valid().chars() {
            match char {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                // Prometheus refuses the character itself.
                '\u{fffd}' => out.push_str("\\ufffd"),
                '\0'..='\u{1f}' | '\u{7f}' => {
                    let _ = write!(out, "\\x{:02x}", u32::from(char));
                }
                _ => out.push(char),
            }
        }
        for byte in chunk.invalid() {
            let _ = write!(out, "\\x{byte:02x}");
        }
    }
    out.push('"');
}
