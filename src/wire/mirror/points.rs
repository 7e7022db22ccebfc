//! Reads the points of another mirror's answer directly into columns.

use memchr::memmem;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, SeqAccess, Visitor};

use super::point_numbers::{Number, SMALL_TENS, TimeReader, short};
use crate::model::{Checkpoints, Error, Kind, Millis, stop};
use crate::wire::json::FirstStrings;
use crate::wire::number::{TENS, leading_digits};

/// Another mirror's answer to `/api/metric`: its points in columns of equal length, in the order
/// received.
#[derive(Clone, Debug, PartialEq)]
pub struct Telemetry {
    /// The times of points, or the starts of buckets.
    pub times: Vec<Millis>,
    /// The ends of buckets, each after its start; `None` for points.
    pub ends: Option<Vec<Millis>>,
    /// Values; NaN where the mirror sent null.
    pub values: Vec<f64>,
    /// Whether the answer is truncated.
    pub partial: bool,
}

/// Reads another mirror's answer to `/api/metric`. Its `dataFormat` gives the positions of times
/// and values; without one, the protocol's order applies.
pub fn read_metric(body: &[u8]) -> Result<Telemetry, Error> {
    let (answer, mut columns) = match usual(body) {
        Some(read) => read,
        None => complete(body)?,
    };
    let Inner {
        points: _,
        data_format,
        is_partial,
        tag,
    } = answer.telemetry;
    let width = columns.len();
    let aggregated = match &data_format {
        Some(names) => names.strings.iter().any(|n| n == "startTimestamp"),
        None => tag.as_deref() == Some("AggregatedMetricTelemetry") || width == 3,
    };
    let usual: &[&str] = if aggregated {
        &["value", "startTimestamp", "endTimestamp"]
    } else {
        &["value", "timestamp"]
    };
    let names: Vec<&str> = match &data_format {
        Some(names) => names.strings.iter().map(String::as_str).collect(),
        None => usual.to_vec(),
    };
    if width != 0 && width != names.len() {
        return Err(bad(format!(
            "telemetry.points: expected {} numbers a point as in dataFormat, found {width}",
            names.len(),
        )));
    }
    let mut column = |name: &str| {
        let at = names.iter().position(|n| *n == name);
        let at = at.ok_or_else(|| bad(format!("telemetry.dataFormat: {name:?} is missing")))?;
        // There are no columns if there are no points.
        Ok(columns.get_mut(at).map(std::mem::take).unwrap_or_default())
    };
    let values = column("value")?.values();
    let (times, ends) = if aggregated {
        let starts = column("startTimestamp")?.times()?;
        let ends = column("endTimestamp")?.times()?;
        if starts.iter().zip(&ends).any(|(start, end)| start >= end) {
            return Err(bad(
                "telemetry.points: a bucket ends before it starts".into()
            ));
        }
        (starts, Some(ends))
    } else {
        (column("timestamp")?.times()?, None)
    };
    Ok(Telemetry {
        times,
        ends,
        values,
        partial: is_partial.unwrap_or(false),
    })
}

fn bad(message: String) -> Error {
    Error::new(Kind::InvalidRequest, message)
}

/// Converts timestamps that were read as numbers.
fn times(numbers: &[f64]) -> Result<Vec<Millis>, Error> {
    let time = |&number: &f64| {
        crate::wire::number::whole(number)
            .ok_or_else(|| bad(format!("telemetry.points: {number} is not a timestamp")))
    };
    numbers.iter().map(time).collect()
}

/// The numbers at one position of all points.
enum Column {
    /// Whole numbers of at most 15 digits, which doubles hold exactly.
    Whole(Vec<Millis>),
    /// Any numbers; NaN stands for null.
    Any(Vec<f64>),
}

impl Default for Column {
    fn default() -> Self {
        Self::Whole(Vec::new())
    }
}

impl Column {
    #[inline(always)]
    fn push(&mut self, number: Number) {
        match (&mut *self, number) {
            (Self::Whole(all), Number::Whole(n)) => all.push(n),
            (Self::Any(all), Number::Whole(n)) => all.push(n as f64),
            (Self::Any(all), Number::Any(n)) => all.push(n),
            (Self::Whole(_), Number::Any(n)) => self.push_first_of_any(n),
        }
    }

    /// Appends a number that is the first which is not whole.
    fn push_first_of_any(&mut self, number: f64) {
        if let Self::Whole(all) = self {
            let mut any = Vec::with_capacity(all.capacity());
            any.extend(all.iter().map(|n| *n as f64));
            any.push(number);
            *self = Self::Any(any);
        }
    }

    fn reserve(&mut self, more: usize) {
        match self {
            Self::Whole(all) => all.reserve_exact(more),
            Self::Any(all) => all.reserve_exact(more),
        }
    }

    fn values(self) -> Vec<f64> {
        match self {
            Self::Whole(all) => all.into_iter().map(|n| n as f64).collect(),
            Self::Any(all) => all,
        }
    }

    fn times(self) -> Result<Vec<Millis>, Error> {
        match self {
            Self::Whole(all) => Ok(all),
            Self::Any(all) => times(&all),
        }
    }
}

/// Reads an answer of any form, and produces the errors.
fn complete(body: &[u8]) -> Result<(MetricAnswer, Vec<Column>), Error> {
    let mut answer: MetricAnswer = serde_json::from_slice(body)
        .map_err(|e| bad(format!("the answer is not metric telemetry: {e}")))?;
    let columns = std::mem::take(&mut answer.telemetry.points.0);
    Ok((answer, columns.into_iter().map(Column::Any).collect()))
}

/// Reads an answer of the usual form: its points are read here, number by number, and the remainder
/// by the complete reader, as if there were no points. Returns `None` if the form is unusual,
/// whether valid or not.
fn usual(body: &[u8]) -> Option<(MetricAnswer, Vec<Column>)> {
    const POINTS: &[u8] = b"\"points\"";
    let before = memmem::find(body, POINTS)?;
    let (head, rest) = body.split_at_checked(before + POINTS.len())?;
    // Within the object `telemetry`, but not in a nested object.
    let mut outside = Scanner { rest: head };
    outside.skip(b'{')?;
    outside.peek()?;
    outside.rest = outside.rest.strip_prefix(b"\"telemetry\"")?;
    outside.skip(b':')?;
    outside.skip(b'{')?;
    if outside.rest.iter().any(|b| matches!(b, b'{' | b'}')) {
        return None;
    }
    let mut scanner = Scanner { rest };
    scanner.skip(b':')?;
    let columns = scanner.points()?;
    let without = [head, b":[]", scanner.rest].concat();
    let answer: MetricAnswer = serde_json::from_slice(&without).ok()?;
    Some((answer, columns))
}

/// The unread rest of an answer. Its readers return `None` if the form is unusual.
struct Scanner<'a> {
    rest: &'a [u8],
}

impl<'a> Scanner<'a> {
    fn peek(&mut self) -> Option<u8> {
        loop {
            match self.rest.split_first()? {
                (b' ' | b'\n' | b'\r' | b'\t', rest) => self.rest = rest,
                (byte, _) => return Some(*byte),
            }
        }
    }

    #[inline(always)]
    fn skip(&mut self, expected: u8) -> Option<()> {
        match self.rest.split_first() {
            Some((byte, rest)) if *byte == expected => {
                self.rest = rest;
                Some(())
            }
            _ => self.skip_behind_blanks(expected),
        }
    }

    fn skip_behind_blanks(&mut self, expected: u8) -> Option<()> {
        if self.peek()? != expected {
            return None;
        }
        self.rest = self.rest.get(1..)?;
        Some(())
    }

    /// Reads an array of points, one column for each position; no columns if there are no points.
    fn points(&mut self) -> Option<Vec<Column>> {
        let mut columns = Vec::new();
        let mut times = TimeReader::new();
        self.skip(b'[')?;
        if self.skip(b']').is_some() {
            return Some(columns);
        }
        let start = self.rest.len();
        self.skip(b'[')?;
        loop {
            let mut column = Column::default();
            column.push(self.number()?);
            columns.push(column);
            if self.skip(b',').is_none() {
                break;
            }
            if columns.len() == WIDEST {
                return None;
            }
        }
        self.skip(b']')?;
        // Points have about the same length.
        let more = self.rest.len() / (start - self.rest.len()).max(1) + 1;
        columns.iter_mut().for_each(|column| column.reserve(more));
        let mut checkpoints = Checkpoints::default();
        while self.skip(b',').is_some() {
            if checkpoints.stop() {
                return None;
            }
            self.skip(b'[')?;
            for (i, column) in columns.iter_mut().enumerate() {
                if i > 0 {
                    self.skip(b',')?;
                }
                let time = match column {
                    Column::Whole(_) => times.read(&mut self.rest),
                    Column::Any(_) => None,
                };
                let number = match time {
                    Some(time) => Number::Whole(time),
                    None => self.number()?,
                };
                column.push(number);
            }
            self.skip(b']')?;
        }
        self.skip(b']')?;
        Some(columns)
    }

    #[inline(always)]
    fn number(&mut self) -> Option<Number> {
        if let Some((number, length)) = short(self.rest)
            && let Some(rest) = self.rest.get(length..)
        {
            self.rest = rest;
            return Some(number);
        }
        self.any_number()
    }

    /// Reads a number that is not short, or has blanks before it.
    fn any_number(&mut self) -> Option<Number> {
        self.peek()?;
        let text = self.rest;
        let mut negative = false;
        if let Some((b'-', rest)) = self.rest.split_first() {
            (negative, self.rest) = (true, rest);
        }
        let (mut mantissa, mut decimals) = (0i64, 0);
        let first = self.rest.first().copied();
        let whole = self.digits(&mut mantissa);
        if whole == 0 {
            self.rest = text.strip_prefix(b"null")?;
            return Some(Number::Any(f64::NAN));
        }
        if first == Some(b'0') && whole > 1 {
            return None;
        }
        if let Some((b'.', rest)) = self.rest.split_first() {
            self.rest = rest;
            decimals = self.digits(&mut mantissa);
            if decimals == 0 {
                return None;
            }
        }
        let power = matches!(self.rest.first(), Some(b'e' | b'E'));
        if power {
            return self.with_power(text).map(Number::Any);
        }
        if whole + decimals > 15 {
            let length = text.len() - self.rest.len();
            let number = std::str::from_utf8(text.get(..length)?).ok()?;
            return number.parse().ok().map(Number::Any);
        }
        let signed = if negative { -mantissa } else { mantissa };
        match TENS.get(decimals) {
            Some(_) if decimals == 0 && !(negative && mantissa == 0) => Some(Number::Whole(signed)),
            // The sign of a zero would be lost.
            Some(ten) if negative => Some(Number::Any(-(mantissa as f64 / ten))),
            Some(ten) => Some(Number::Any(mantissa as f64 / ten)),
            None => None,
        }
    }

    /// Reads digits, appends them to `number`, and returns how many there are.
    fn digits(&mut self, number: &mut i64) -> usize {
        let mut count = 0;
        loop {
            let (some, value) = leading_digits(self.rest);
            let ten = SMALL_TENS.get(some).copied().unwrap_or_default();
            *number = number.wrapping_mul(ten).wrapping_add(value);
            self.rest = self.rest.get(some..).unwrap_or_default();
            count += some;
            if some < 8 {
                return count;
            }
        }
    }

    /// Reads the number at the beginning of `text`, which has an exponent.
    fn with_power(&mut self, text: &'a [u8]) -> Option<f64> {
        let of_number = |b: &u8| matches!(b, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E');
        let length = text.iter().take_while(|b| of_number(b)).count();
        let (number, rest) = text.split_at_checked(length)?;
        self.rest = rest;
        serde_json::from_slice(number).ok()
    }
}

#[derive(Deserialize)]
struct MetricAnswer {
    telemetry: Inner,
}

#[derive(Deserialize)]
struct Inner {
    points: PointColumns,
    #[serde(rename = "dataFormat")]
    data_format: Option<FirstStrings<WIDEST>>,
    #[serde(rename = "isPartial", default)]
    is_partial: Option<bool>,
    #[serde(rename = "_type")]
    tag: Option<String>,
}

/// One column for each position of a point; NaN stands for null. Empty if there are no points.
struct PointColumns(Vec<Vec<f64>>);

impl<'de> Deserialize<'de> for PointColumns {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Points;
        impl<'de> Visitor<'de> for Points {
            type Value = PointColumns;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an array of points")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut points: A) -> Result<PointColumns, A::Error> {
                let mut columns = Vec::new();
                if points.next_element_seed(First(&mut columns))?.is_some() {
                    let mut checkpoints = Checkpoints::default();
                    while points.next_element_seed(Further(&mut columns))?.is_some() {
                        if checkpoints.stop() {
                            return Err(A::Error::custom(stop::STOPPED));
                        }
                    }
                }
                Ok(PointColumns(columns))
            }
        }
        deserializer.deserialize_seq(Points)
    }
}

/// Most numbers that a point may have.
const WIDEST: usize = 8;

/// The first point, which determines the number of columns.
struct First<'a>(&'a mut Vec<Vec<f64>>);

impl<'de> DeserializeSeed<'de> for First<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for First<'_> {
    type Value = ();
    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a point: an array of two or three numbers")
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut point: A) -> Result<(), A::Error> {
        while self.0.len() < WIDEST
            && let Some(cell) = point.next_element::<Option<f64>>()?
        {
            self.0.push(vec![cell.unwrap_or(f64::NAN)]);
        }
        if self.0.is_empty() || point.next_element::<IgnoredAny>()?.is_some() {
            return Err(A::Error::invalid_length(self.0.len(), &self));
        }
        Ok(())
    }
}

/// A point after the first.
struct Further<'a>(&'a mut [Vec<f64>]);

impl<'de> DeserializeSeed<'de> for Further<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Further<'_> {
    type Value = ();
    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a point: an array of numbers")
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut point: A) -> Result<(), A::Error> {
        let differ = || A::Error::custom("points differ in length");
        for column in self.0 {
            let cell: Option<f64> = point.next_element()?.ok_or_else(differ)?;
            column.push(cell.unwrap_or(f64::NAN));
        }
        if point.next_element::<IgnoredAny>()?.is_some() {
            return Err(differ());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(points: &str, rest: &str) -> Result<Telemetry, String> {
        let body = format!(r#"{{"telemetry":{{"points":{points}{rest}}}}}"#);
        read_metric(body.as_bytes()).map_err(|e| e.to_string())
    }

    #[test]
    fn positions_come_from_the_data_format() {
        let format = r#","dataFormat":["timestamp","unit","value"]"#;
        let found = read("[[5, 1, 2.5], [3.6, 1, null]]", format).unwrap();
        assert_eq!((found.times, found.ends), (vec![5, 4], None));
        assert!(found.values[0] == 2.5 && found.values[1].is_nan());
        let found = read("[[1, 10, 20], [2, 20, 30]]", "").unwrap();
        assert_eq!(found.times, [10, 20]);
        assert_eq!(found.ends, Some(vec![20, 30]));
        let found = read("[]", r#","isPartial":true"#).unwrap();
        assert!(found.times.is_empty() && found.values.is_empty() && found.partial);
    }

    /// Texts of values in points: numbers that are valid JSON, and some that are not.
    fn number() -> impl Strategy<Value = String> {
        prop_oneof![
            any::<u64>()
                .prop_map(f64::from_bits)
                .prop_filter("finite", |n| n.is_finite())
                .prop_map(|n| serde_json::to_string(&n).unwrap()),
            "-?[0-9]{1,18}",
            "[01]?[0-2]{13}",
            (0i64..3).prop_map(|n| (1_700_000_000_000 + n * 60_000).to_string()),
            "-?[0-9]{1,12}\\.[0-9]{0,12}",
            "-?[0-9]{1,3}(\\.[0-9]{1,3})?[eE][+-]?[0-9]{1,3}",
            prop::sample::select(vec![
                "null",
                "-0",
                "0",
                "-0.0",
                "00",
                "01",
                ".5",
                "+1",
                "1.",
                "-",
                "",
                "true",
                "\"1\"",
                "[]",
                "nul",
                "9007199254740993",
                "0.1",
                "1e400",
                "123456789012345",
                "1234567890123456",
            ])
            .prop_map(str::to_owned),
        ]
    }

    proptest! {
        #[test]
        fn the_quick_reader_reads_what_the_complete_one_reads(
            rows in prop::collection::vec(prop::collection::vec(number(), 1..4), 0..5),
            even in 0usize..4,
            space in prop::sample::select(vec!["", " ", "\n\t"]),
            cut in prop::option::of(any::<prop::sample::Index>()),
            head in prop::sample::select(vec![
                "", "\"dataFormat\":[\"timestamp\",\"value\"],", "\"x\":{\"points\":[[1,2]]},", "\"points\":[],",
            ]),
        ) {
            let rows = rows.iter().map(|row| {
                let row = row.iter().cycle().take(if even > 0 { even } else { row.len() });
                let row: Vec<_> = row.cloned().collect();
                format!("[{}]", row.join(&format!("{space},")))
            });
            let rows: Vec<_> = rows.collect();
            let mut body = format!(
                r#"{{"telemetry":{{{head}"points":{space}[{}]{space},"isPartial":true}}}}"#,
                rows.join(&format!(",{space}"))
            );
            if let Some(cut) = cut {
                body.truncate(cut.index(body.len()));
            }
            if let Some((answer, columns)) = usual(body.as_bytes()) {
                let (whole, expected) = complete(body.as_bytes()).unwrap();
                prop_assert_eq!(answer.telemetry.data_format, whole.telemetry.data_format);
                let bits = |columns: Vec<Column>| -> Vec<Vec<u64>> {
                    let columns = columns.into_iter().map(Column::values);
                    columns.map(|c| c.iter().map(|n| n.to_bits()).collect()).collect()
                };
                prop_assert_eq!(bits(columns), bits(expected), "{}", body);
            }
        }
    }

    #[test]
    fn usual_answers_are_read_quickly() {
        let buckets = br#"{"telemetry":{"points":[[1.5,60000,120000],[null,120000,180000]],"dataFormat":["value","startTimestamp","endTimestamp"],"isPartial":false,"_type":"AggregatedMetricTelemetry"},"_type":"MetricsResponse"}"#;
        let (_, columns) = usual(buckets).expect("it is usual");
        assert!(matches!(&columns[1], Column::Whole(times) if *times == [60_000, 120_000]));
        assert!(usual(br#"{"telemetry":{"points":[]}}"#).is_some());
        let elsewhere = br#"{"x":{"points":[[1,2]]},"telemetry":{"points":[]}}"#;
        assert!(usual(elsewhere).is_none());
    }

    #[test]
    fn answers_that_are_not_telemetry_are_reported() {
        let aggregated = r#","_type":"AggregatedMetricTelemetry""#;
        for (points, rest, why) in [
            ("[[1, 2], [1]]", "", "points differ in length"),
            ("[[1, 2], [1, 2, 3]]", "", "points differ in length"),
            ("[[1, 2], []]", "", "points differ in length"),
            ("[[]]", "", "invalid length 0"),
            ("[[1,2,3,4,5,6,7,8,9]]", "", "invalid length 8"),
            ("[[1]]", "", "expected 2 numbers a point"),
            ("[[1, 2]]", aggregated, "expected 3 numbers a point"),
            ("[[1, 1e300]]", "", "is not a timestamp"),
            ("[[1, null]]", "", "is not a timestamp"),
            ("[[1, 20, 20]]", "", "ends before it starts"),
            (
                "[[1, 2]]",
                r#","dataFormat":["value","at"]"#,
                "\"timestamp\" is missing",
            ),
            ("[[1, \"2\"]]", "", "not metric telemetry"),
            ("[1, 2]", "", "not metric telemetry"),
        ] {
            let error = read(points, rest).unwrap_err();
            assert!(error.contains(why), "{points} {rest}: {error}");
        }
    }
}
