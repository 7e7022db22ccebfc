//! Many points as JSON text, faster than one by one.
//!
//! Most series have values of as many decimals each, such as 12.34, and times that differ in their last
//! digits. Such values are written as whole numbers with a point in them, and the leading digits of
//! times are kept.

use super::number::TENS;
use crate::model::{Millis, Step};

/// Most decimals of the values that are written as whole numbers.
const MOST_PLACES: usize = 6;

/// Whole numbers from here on have more digits than a double holds in any case. Two different decimals
/// of at most 15 digits are never the same double, so such a decimal is the shortest text of its value.
const MOST_WHOLE: i64 = 1_000_000_000_000_000;

/// Smaller values are written with an exponent.
const LEAST: f64 = 1e-5;

/// Eight decimal digits.
const EIGHT: u64 = 100_000_000;

/// The room that the text of one point is written into. A value has at most 24 bytes and a time 20.
const LINE: usize = 128;

/// The bytes by which the room grows.
const ROOM: usize = 1 << 10;

/// The points for which room is made before their length is known, and the bytes of a usual one.
const FIRST: usize = 100;
const USUAL: usize = 40;

/// Writes points or buckets, each with a comma after it, as `serde_json` writes their numbers.
#[derive(Default)]
pub struct PointWriter {
    /// The text, and room behind it.
    text: Vec<u8>,
    length: usize,
    /// The length of the text before the first point, the points since then, and how many are expected.
    head: usize,
    written: usize,
    expected: usize,
    /// The decimals of the last value that had few.
    places: usize,
    times: TimeWriter,
}

impl PointWriter {
    /// Returns a writer of about `points` after those of `head`.
    pub fn after(head: &[u8], points: usize) -> Self {
        let mut text = Vec::with_capacity(head.len() + points.min(FIRST) * USUAL + ROOM);
        text.extend_from_slice(head);
        Self {
            length: text.len(),
            text,
            head: head.len(),
            expected: points,
            ..Self::default()
        }
    }

    /// Returns the length of the text so far.
    #[inline(always)]
    pub fn length(&self) -> usize {
        self.length
    }

    /// Returns the text.
    pub fn text(self) -> Vec<u8> {
        let mut text = self.text;
        text.truncate(self.length);
        text
    }

    /// Appends `[value,time],`; the value is finite.
    #[inline(always)]
    pub fn point(&mut self, time: Millis, value: f64) {
        self.line(|line, places, times| {
            line.put(*b"[", 1);
            number(line, places, value);
            line.put(*b",", 1);
            times.write(line, time);
            line.put(*b"],", 2);
        });
    }

    /// Appends `[value,start,end],`; the value is finite.
    #[inline(always)]
    pub fn bucket(&mut self, start: Millis, size: Step, value: f64) {
        self.line(|line, places, times| {
            line.put(*b"[", 1);
            number(line, places, value);
            line.put(*b",", 1);
            times.write(line, start);
            line.put(*b",", 1);
            times.write(line, start.saturating_add(size.millis()));
            line.put(*b"],", 2);
        });
    }

    /// Makes room for more lines. If more has to be allocated, it is enough for all points, each as long as those so
    /// far: a text for which far too much is allocated leaves holes in the heap when it is cut.
    #[cold]
    fn make_room(&mut self) {
        self.text.truncate(self.length);
        if self.text.capacity() - self.length < ROOM {
            let more = self.expected.saturating_sub(self.written);
            let each = (self.length - self.head).div_ceil(self.written.max(1));
            self.text.reserve_exact(more * each + ROOM);
        }
        self.text.resize(self.length + ROOM, 0);
    }

    #[inline(always)]
    fn line(&mut self, write: impl FnOnce(&mut Line<'_>, &mut usize, &mut TimeWriter)) {
        if self.text.len() - self.length < LINE {
            self.make_room();
        }
        self.written += 1;
        let room = self.text.get_mut(self.length..);
        if let Some(bytes) = room.and_then(|room| room.first_chunk_mut()) {
            let mut line = Line { bytes, length: 0 };
            write(&mut line, &mut self.places, &mut self.times);
            self.length += line.length;
        }
    }
}

/// Writes `value`, which has as many decimals as the one before, as a rule: `places`.
#[inline(always)]
fn number(line: &mut Line<'_>, places: &mut usize, value: f64) {
    match whole(value, *places) {
        Some(whole) if whole < EIGHT && (1..8).contains(places) => {
            short_decimal(line, value.is_sign_negative(), whole, *places);
        }
        Some(whole) => decimal(line, value.is_sign_negative(), whole, *places),
        None => any_number(line, places, value),
    }
}

/// Writes a value of other decimals.
fn any_number(line: &mut Line<'_>, places: &mut usize, value: f64) {
    let mut buffer = zmij::Buffer::new();
    let text = buffer.format_finite(value).as_bytes();
    line.put_slice(text);
    let point = text.iter().position(|b| *b == b'.');
    let decimals = point.map_or(0, |point| text.len() - point - 1);
    if (1..=MOST_PLACES).contains(&decimals) {
        *places = decimals;
    }
}

/// Returns the whole number that is `value`, without its sign, times ten to the power of `places`; `None` if
/// there is none, or if it is not the shortest way to write the value.
#[inline(always)]
fn whole(value: f64, places: usize) -> Option<u64> {
    let ten = TENS.get(places)?;
    let magnitude = value.abs();
    let whole = (magnitude * ten + 0.5) as i64;
    // One rounding each: of the quotient here, and of a reader of the text.
    let same = whole < MOST_WHOLE && whole as f64 / ten == magnitude;
    (same && (magnitude >= LEAST || whole == 0)).then_some(whole as u64)
}

/// Writes `whole` of at most eight digits with `places` of them, one at least, behind the point, without zeros
/// at its end.
#[inline(always)]
fn short_decimal(line: &mut Line<'_>, negative: bool, whole: u64, places: usize) {
    let digits = eight(whole);
    let zeros_before = digits.trailing_zeros() as usize / 8;
    let zeros_behind = digits.leading_zeros() as usize / 8;
    let point = 8 - places;
    let start = zeros_before.min(point - 1);
    if negative {
        line.put(*b"-", 1);
    }
    // Of the bytes, the first is the lowest.
    let digits = u64::from_le_bytes(text(digits));
    line.put((digits >> (8 * start)).to_le_bytes(), point - start);
    line.put(*b".", 1);
    let decimals = places - zeros_behind.min(places - 1);
    line.put((digits >> (8 * point)).to_le_bytes(), decimals);
}

/// Writes `whole` with `places` of its digits behind the point, without zeros at its end.
fn decimal(line: &mut Line<'_>, negative: bool, whole: u64, places: usize) {
    // Sixteen digits, and room to read beyond them.
    let mut digits = [0u8; 32];
    let (high, low) = match whole < EIGHT {
        true => (0, eight(whole)),
        false => (eight(whole / EIGHT), eight(whole % EIGHT)),
    };
    if let Some(place) = digits.first_chunk_mut::<8>() {
        *place = text(high);
    }
    if let Some(place) = digits.get_mut(8..).and_then(|d| d.first_chunk_mut::<8>()) {
        *place = text(low);
    }
    // Of the bytes, the first is the lowest.
    let both = u128::from(high) | (u128::from(low) << 64);
    let zeros_before = both.trailing_zeros() as usize / 8;
    let zeros_behind = both.leading_zeros() as usize / 8;
    let point = 16 - places;
    let start = zeros_before.min(point - 1);
    if negative {
        line.put(*b"-", 1);
    }
    if let Some(some) = digits.get(start..).and_then(|d| d.first_chunk::<16>()) {
        line.put(*some, point - start);
    }
    if places == 0 {
        return line.put(*b".0", 2);
    }
    line.put(*b".", 1);
    if let Some(some) = digits.get(point..).and_then(|d| d.first_chunk::<8>()) {
        line.put(*some, places - zeros_behind.min(places - 1));
    }
}

/// Writes times that begin with the same digits, and often one twice: the end of a bucket, and the start of
/// the next one.
#[derive(Default)]
struct TimeWriter {
    /// All but the last eight digits of the last time; 0 if there was none.
    high: u64,
    /// The number of those digits.
    before: usize,
    /// The last time, and its text.
    time: Millis,
    text: [u8; 24],
}

impl TimeWriter {
    #[inline(always)]
    fn write(&mut self, line: &mut Line<'_>, time: Millis) {
        if time != self.time || self.high == 0 {
            let positive = u64::try_from(time).unwrap_or(0);
            let high = positive / EIGHT;
            if high != self.high || high == 0 {
                return self.write_first(line, time, high);
            }
            self.set(time, positive);
        }
        line.put(self.text, self.before + 8);
    }

    /// Writes a time that begins with other digits than the last one, or has at most eight.
    fn write_first(&mut self, line: &mut Line<'_>, time: Millis, high: u64) {
        let mut buffer = itoa::Buffer::new();
        if high == 0 {
            return line.put_slice(buffer.format(time).as_bytes());
        }
        let digits = buffer.format(high).as_bytes();
        for (place, digit) in self.text.iter_mut().zip(digits) {
            *place = *digit;
        }
        (self.high, self.before) = (high, digits.len());
        self.set(time, u64::try_from(time).unwrap_or(0));
        line.put(self.text, self.before + 8);
    }

    /// Takes in a time that begins with the same digits as the last one.
    #[inline(always)]
    fn set(&mut self, time: Millis, positive: u64) {
        let place = self.text.get_mut(self.before..);
        if let Some(place) = place.and_then(|rest| rest.first_chunk_mut()) {
            *place = text(eight(positive % EIGHT));
            self.time = time;
        }
    }
}

/// Returns the eight digits of `number`, which is below [`EIGHT`]: one in each byte, the first in the lowest.
#[inline(always)]
fn eight(number: u64) -> u64 {
    // Halves, quarters and eighths, all at once: a product and a shift instead of a quotient. 10,486 / 2^20 is
    // a hundredth, near enough for numbers below 10,000, and 103 / 2^10 a tenth for those below 100.
    let fours = (number / 10_000) | ((number % 10_000) << 32);
    let hundreds = ((fours * 10_486) >> 20) & 0x0000_007f_0000_007f;
    let twos = hundreds | ((fours - hundreds * 100) << 16);
    let tens = ((twos * 103) >> 10) & 0x000f_000f_000f_000f;
    tens | ((twos - tens * 10) << 8)
}

/// Returns digits of [`eight`] as text.
#[inline(always)]
fn text(digits: u64) -> [u8; 8] {
    (digits | 0x3030_3030_3030_3030).to_le_bytes()
}

/// The text of one point, in the room for it.
struct Line<'a> {
    bytes: &'a mut [u8; LINE],
    length: usize,
}

impl Line<'_> {
    /// Appends the first `used` of `bytes`: all are copied, since that is faster than to copy a number of them
    /// that varies.
    #[inline(always)]
    fn put<const N: usize>(&mut self, bytes: [u8; N], used: usize) {
        let place = self.bytes.get_mut(self.length..);
        if let Some(place) = place.and_then(|rest| rest.first_chunk_mut::<N>()) {
            *place = bytes;
            self.length += used;
        }
    }

    fn put_slice(&mut self, bytes: &[u8]) {
        let place = self.bytes.get_mut(self.length..self.length + bytes.len());
        if let Some(place) = place {
            place.copy_from_slice(bytes);
            self.length += bytes.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::number::{write_bucket, write_point};
    use proptest::prelude::*;

    /// Values of series: decimals of some places, whole numbers, and anything.
    fn value() -> impl Strategy<Value = f64> {
        prop_oneof![
            (-9_999_999i64..=9_999_999, 0usize..9).prop_map(|(n, places)| n as f64 / TENS[places]),
            (-MOST_WHOLE * 9..MOST_WHOLE * 9, 0usize..9)
                .prop_map(|(n, places)| n as f64 / TENS[places]),
            any::<u64>()
                .prop_map(f64::from_bits)
                .prop_filter("finite", |v| v.is_finite()),
            prop::sample::select(vec![
                0.0,
                -0.0,
                1e-5,
                1e-6,
                9.9e-6,
                1.5e-5,
                0.1,
                1e15,
                999_999_999_999_999.0,
                1e16,
                0.30000000000000004,
                0.000001,
                123456789.123456,
                f64::MAX,
                f64::MIN_POSITIVE,
                5e-324,
                100.0,
                1200.5,
                99_999_999.0,
            ]),
        ]
    }

    fn time() -> impl Strategy<Value = Millis> {
        prop_oneof![
            1_700_000_000_000i64..1_900_000_000_000,
            any::<i64>(),
            -10i64..10,
            99_999_990i64..100_000_010,
            prop::sample::select(vec![i64::MAX, i64::MIN]),
        ]
    }

    proptest! {
        #[test]
        fn points_are_written_as_they_are_one_by_one(
            points in prop::collection::vec((time(), value()), 0..200),
            size in prop::sample::select(vec![1, 60_000, i64::MAX / 2]),
        ) {
            let size = Step::new(size).unwrap_or(Step::MILLI);
            let (mut raw, mut buckets) = (PointWriter::default(), PointWriter::after(b"head", 3));
            let (mut expected_raw, mut expected_buckets) = (Vec::new(), b"head".to_vec());
            for (time, value) in points {
                raw.point(time, value);
                buckets.bucket(time, size, value);
                write_point(&mut expected_raw, time, value);
                expected_raw.push(b',');
                write_bucket(&mut expected_buckets, time, size, value);
                expected_buckets.push(b',');
            }
            for (writer, expected) in [(raw, expected_raw), (buckets, expected_buckets)] {
                prop_assert_eq!(writer.length(), expected.len());
                prop_assert_eq!(String::from_utf8(writer.text()).unwrap(), String::from_utf8(expected).unwrap());
            }
        }
    }

    #[test]
    fn values_of_few_decimals_take_the_short_way() {
        for (value, places, digits) in [(12.34, 2, 1234), (-5.0, 0, 5), (0.1 + 0.2, 2, 30)] {
            let expected = (value != 0.1 + 0.2).then_some(digits);
            assert_eq!(whole(value, places), expected, "{value}");
        }
        let mut writer = PointWriter::default();
        writer.point(0, 0.125);
        assert_eq!(writer.places, 3);
    }
}
