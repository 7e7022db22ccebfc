//! Numbers and points as JSON text.

use crate::model::{Millis, Step};

/// Appends a finite `value` in its shortest form that parses to the same value, as `serde_json`
/// writes it.
pub fn write_f64(out: &mut Vec<u8>, value: f64) {
    out.extend_from_slice(zmij::Buffer::new().format_finite(value).as_bytes());
}

/// Appends a whole number.
pub fn write_i64(out: &mut Vec<u8>, value: i64) {
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

/// Appends `[value,time]`.
pub fn write_point(out: &mut Vec<u8>, time: Millis, value: f64) {
    out.push(b'[');
    write_f64(out, value);
    out.push(b',');
    write_i64(out, time);
    out.push(b']');
}

/// Appends `[value,start,end]`.
pub fn write_bucket(out: &mut Vec<u8>, start: Millis, size: Step, value: f64) {
    write_span(out, start, start.saturating_add(size.millis()), value);
}

/// Appends `[value,start,end]`.
pub fn write_span(out: &mut Vec<u8>, start: Millis, end: Millis, value: f64) {
    out.push(b'[');
    write_f64(out, value);
    out.push(b',');
    write_i64(out, start);
    out.push(b',');
    write_i64(out, end);
    out.push(b']');
}

/// Returns the time, or the start, of the point at the beginning of `text`, as [`write_point`] and
/// [`write_span`] write it.
pub fn read_time(text: &[u8]) -> Option<Millis> {
    // A number is at most 24 bytes long, so few bytes are examined.
    let comma = text.iter().position(|b| *b == b',')?;
    let rest = text.get(comma + 1..)?;
    let (negative, digits) = match rest.split_first()? {
        (b'-', digits) => (true, digits),
        _ => (false, rest),
    };
    let digits = digits.iter().take_while(|b| b.is_ascii_digit());
    let time = digits.fold(0, |n: Millis, b| {
        n.wrapping_mul(10).wrapping_add(Millis::from(b - b'0'))
    });
    Some(if negative { -time } else { time })
}

/// Powers of ten that doubles represent exactly, so that a quotient is rounded only once (W. D.
/// Clinger, "How to read floating point numbers accurately", 1990).
pub(super) const TENS: [f64; 16] = [
    1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15,
];

/// Returns the number of digits that `text` begins with, of the first eight bytes, and their value.
pub(super) fn leading_digits(text: &[u8]) -> (usize, i64) {
    let Some(eight) = text.first_chunk::<8>() else {
        let digits = text.iter().take_while(|b| b.is_ascii_digit());
        return digits.fold((0, 0), |(count, value), digit| {
            (count + 1, value * 10 + i64::from(digit - b'0'))
        });
    };
    digits_of(u64::from_le_bytes(*eight))
}

/// Returns the number of digits that a text of eight bytes begins with, and their value; the first byte is
/// the lowest of `text`.
#[inline(always)]
pub(super) fn digits_of(text: u64) -> (usize, i64) {
    // All eight at once. A byte that is no digit has its highest bit set in `others`; what it carries
    // reaches only bytes behind it.
    let digits = text ^ 0x3030_3030_3030_3030;
    let others = digits.wrapping_add(0x7676_7676_7676_7676) | digits;
    let count = (others & 0x8080_8080_8080_8080).trailing_zeros() / 8;
    // Moved to the end, behind zeros. Pairs of neighbours are joined three times.
    let digits = digits.checked_shl(64 - 8 * count).unwrap_or_default();
    let pairs = (digits.wrapping_mul(10) + (digits >> 8)) & 0x00ff_00ff_00ff_00ff;
    let fours = (pairs * 100 + (pairs >> 16)) & 0x0000_ffff_0000_ffff;
    let value = (fours * 10_000 + (fours >> 32)) & 0xffff_ffff;
    (count as usize, value as i64)
}

/// Returns the time, or the start, and the value of the point at the beginning of `text`, as
/// [`write_point`] and [`write_span`] write it.
pub fn read_point(text: &[u8]) -> Option<(Millis, f64)> {
    let comma = text.iter().position(|b| *b == b',')?;
    let value = std::str::from_utf8(text.get(1..comma)?).ok()?;
    Some((read_time(text)?, value.parse().ok()?))
}

/// Returns the nearest whole number, rounding half away from zero; `None` beyond `±9e15`, where
/// doubles are no longer exact, and for NaN.
pub fn whole(number: f64) -> Option<i64> {
    if number.abs() < 9.0e15 {
        // Without a suitable instruction of the processor, `f64::round` is a function call.
        let whole = number as i64;
        let rest = number - whole as f64;
        Some(whole + i64::from(rest >= 0.5) - i64::from(rest <= -0.5))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(value: f64) -> String {
        let mut out = Vec::new();
        write_f64(&mut out, value);
        String::from_utf8(out).unwrap()
    }

    proptest! {
        #[test]
        fn numbers_are_written_as_serde_json_writes_them_and_read_back_the_same(bits in any::<u64>()) {
            let value = f64::from_bits(bits);
            prop_assume!(value.is_finite());
            prop_assert_eq!(text(value), serde_json::to_string(&value).unwrap());
            let back: f64 = serde_json::from_str(&text(value)).unwrap();
            prop_assert_eq!(back.to_bits(), bits);
        }
    }

    proptest! {
        #[test]
        fn times_are_read_off_points(time in -9_000_000_000_000_000i64..9_000_000_000_000_000, value in -1e9f64..1e9) {
            let mut text = Vec::new();
            write_point(&mut text, time, value);
            prop_assert_eq!(read_time(&text), Some(time));
            prop_assert_eq!(read_point(&text), Some((time, value)));
            text.clear();
            write_span(&mut text, time, time + 1, value);
            prop_assert_eq!(read_time(&text), Some(time));
        }
    }

    #[test]
    fn edge_values_are_written_as_serde_json_writes_them() {
        for value in [
            0.0,
            -0.0,
            1.0,
            1e15,
            1e16,
            1e17,
            1e-5,
            1e-7,
            f64::MAX,
            5e-324,
            0.1 + 0.2,
        ] {
            assert_eq!(text(value), serde_json::to_string(&value).unwrap());
        }
    }

    proptest! {
        #[test]
        fn whole_numbers_are_rounded_as_the_standard_rounds(
            number in prop_oneof![-1e17f64..1e17, -1e4f64..1e4, any::<i32>().prop_map(|n| f64::from(n) / 2.0)]
        ) {
            let expected = (number.abs() < 9.0e15).then(|| number.round() as i64);
            prop_assert_eq!(whole(number), expected);
        }
    }

    #[test]
    fn numbers_beyond_whole_ones_are_none() {
        for number in [f64::NAN, f64::INFINITY, -f64::INFINITY, 9.0e15, -9.0e15] {
            assert_eq!(whole(number), None);
        }
        assert_eq!(whole(0.499_999_999_999_999_94), Some(0));
    }
}
