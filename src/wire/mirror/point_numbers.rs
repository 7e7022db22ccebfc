//! The numbers of points, in the forms that most have.

use crate::model::Millis;
use crate::wire::number::{TENS, digits_of};

/// A number as it was read.
#[derive(Clone, Copy)]
pub(super) enum Number {
    Whole(i64),
    Any(f64),
}

/// The powers of ten by which up to eight more digits shift a number.
pub(super) const SMALL_TENS: [i64; 9] = [
    1,
    10,
    100,
    1_000,
    10_000,
    100_000,
    1_000_000,
    10_000_000,
    100_000_000,
];

/// The bytes that a short number is looked for in: a sign, two times eight digits, and what is behind them.
const WINDOW: usize = 24;

/// Reads the number that `text` begins with, in as few steps as possible: most are times, or decimals of a
/// few digits, with nothing around them. Returns it with its length; `None` if it is of another form.
#[inline(always)]
pub(super) fn short(text: &[u8]) -> Option<(Number, usize)> {
    let negative = text.first() == Some(&b'-');
    // As long as that, so that few further lengths have to be checked.
    let digits = text.get(usize::from(negative)..)?.first_chunk::<WINDOW>()?;
    let (whole, value) = digits_of(eight_of(digits, 0)?);
    // More than one digit do not begin with 0.
    if whole == 0 || (whole > 1 && digits.first() == Some(&b'0')) {
        return None;
    }
    let signed = |number: i64| if negative { -number } else { number };
    let ends = |at: usize| matches!(digits.get(at), Some(b',' | b']'));
    let (number, length) = if whole == 8 {
        let (more, low) = digits_of(eight_of(digits, 8)?);
        if !ends(8 + more) || more == 8 {
            return None;
        }
        let value = value * SMALL_TENS.get(more)? + low;
        (Number::Whole(signed(value)), 8 + more)
    } else if digits.get(whole) == Some(&b'.') {
        let (places, decimals) = digits_of(eight_of(digits, whole + 1)?);
        let length = whole + 1 + places;
        if !ends(length) || places == 0 || places == 8 {
            return None;
        }
        let mantissa = value * SMALL_TENS.get(places)? + decimals;
        let magnitude = mantissa as f64 / TENS.get(places)?;
        let number = if negative { -magnitude } else { magnitude };
        (Number::Any(number), length)
    } else if ends(whole) && !(negative && value == 0) {
        (Number::Whole(signed(value)), whole)
    } else {
        return None;
    };
    Some((number, usize::from(negative) + length))
}

/// Returns the eight bytes of `text` from `at` on, the first as the lowest.
#[inline(always)]
fn eight_of(text: &[u8; WINDOW], at: usize) -> Option<u64> {
    let eight = text.get(at..)?.first_chunk()?;
    Some(u64::from_le_bytes(*eight))
}

/// Reads times of thirteen digits, which all since 2001 have in milliseconds. Most begin with the same five
/// digits as the one before, and many come twice: the end of a bucket, and the start of the next one.
pub(super) struct TimeReader {
    /// The text of the first five digits of the last time, and what they stand for.
    high_text: u64,
    high: Millis,
    /// The text of its other eight digits, and all of it.
    low_text: u64,
    time: Millis,
}

impl TimeReader {
    /// The bytes of five digits in a word.
    const FIVE: u64 = (1 << 40) - 1;

    /// Returns a reader that knows one time.
    pub(super) fn new() -> Self {
        Self {
            high_text: u64::from_le_bytes(*b"10000\0\0\0"),
            high: 1_000_000_000_000,
            low_text: u64::from_le_bytes(*b"00000000"),
            time: 1_000_000_000_000,
        }
    }

    /// Reads the time that `text` begins with, if it is of this form, and takes it off.
    #[inline(always)]
    pub(super) fn read(&mut self, text: &mut &[u8]) -> Option<Millis> {
        let digits = text.first_chunk::<WINDOW>()?;
        let high_text = eight_of(digits, 0)? & Self::FIVE;
        let low_text = eight_of(digits, 5)?;
        if !matches!(digits.get(13), Some(b',' | b']')) {
            return None;
        }
        let mut high = self.high;
        if high_text != self.high_text {
            let (count, first) = digits_of(high_text);
            if count != 5 || digits.first() == Some(&b'0') {
                return None;
            }
            high = first * 100_000_000;
        }
        if low_text != self.low_text || high != self.high {
            let (count, low) = digits_of(low_text);
            if count != 8 {
                return None;
            }
            *self = Self {
                high_text,
                high,
                low_text,
                time: high + low,
            };
        }
        *text = text.get(13..)?;
        Some(self.time)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn times_are_read_as_they_are_written_whatever_came_before(
            texts in prop::collection::vec(
                prop_oneof![
                    (0i64..4).prop_map(|n| format!("{},", 1_700_000_000_000 + n * 60_000)),
                    "[0-9]{11,15}[,\\]x]",
                    "[01][0-9]{4}[0-9x]{8}[,\\]]",
                    prop::sample::select(vec!["\0".repeat(13) + ",", format!("12345{},", "\0".repeat(8)), "0".repeat(13) + "]"]),
                ],
                0..40,
            ),
        ) {
            let mut times = TimeReader::new();
            for text in texts {
                let digits = text.bytes().take_while(u8::is_ascii_digit).count();
                let ends = matches!(text.as_bytes().get(digits), Some(b',' | b']'));
                let usual = digits == 13 && ends && !text.starts_with('0');
                let expected = usual.then(|| text[..13].parse::<Millis>().unwrap());
                let padded = format!("{text}{}", " ".repeat(WINDOW));
                let mut rest = padded.as_bytes();
                prop_assert_eq!(times.read(&mut rest), expected, "{}", text);
                prop_assert_eq!(padded.len() - rest.len(), if usual { 13 } else { 0 });
            }
        }
    }
}
