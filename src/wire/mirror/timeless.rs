//! Requests for metric values without their times: what stays the same from one poll to the next.

use std::sync::LazyLock;

use memchr::memmem::Finder;

use super::point_numbers::{Number, short};
use crate::model::{MAX_TIME, Millis, TimeRange};

const START: &[u8] = b"\"startTime\"";
const END: &[u8] = b"\"endTime\"";
/// Between the two times.
const BETWEEN: &[u8] = b",\"endTime\":";

/// A request for metric values, split at its times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeless<'a> {
    /// The bytes before the times.
    pub before: &'a [u8],
    /// The times.
    pub range: TimeRange,
    /// The bytes after the times.
    pub after: &'a [u8],
}

impl<'a> Timeless<'a> {
    /// Splits `body` if its times stand side by side as StackState writes them; `None` if not, or if they
    /// are no range.
    pub fn of(body: &'a [u8]) -> Option<Self> {
        static FIRST: LazyLock<Finder<'_>> = LazyLock::new(|| Finder::new(b"\"startTime\":"));
        let start = FIRST.find(body)? + FIRST.needle().len();
        let (before, times) = body.split_at_checked(start)?;
        let (start, rest) = time(times)?;
        let (end, after) = time(rest.strip_prefix(BETWEEN)?)?;
        Some(Self {
            before,
            range: TimeRange::new(start, end)?,
            after,
        })
    }

    /// Returns whether its times are certainly those of the query, and the only ones. Then all valid
    /// requests with the same bytes around their times differ only in their range.
    pub fn is_certain(&self) -> bool {
        // Without escapes a name has one spelling.
        let holds = |text: &[u8], part: &[u8]| memchr::memmem::find(text, part).is_some();
        let others = |text: &[u8]| text.contains(&b'\\') || holds(text, END);
        !others(self.before) && !others(self.after) && !holds(self.after, START)
    }
}

/// Reads the number that `text` begins with, without sign, fraction and exponent; returns it and the rest.
fn time(text: &[u8]) -> Option<(Millis, &[u8])> {
    if let Some((Number::Whole(time @ 0..=MAX_TIME), length)) = short(text) {
        return Some((time, text.get(length..)?));
    }
    let mut time: Millis = 0;
    // A number of 18 digits cannot overflow.
    for (at, byte) in text.iter().enumerate().take(19) {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            let more = matches!(byte, b'.' | b'e' | b'E');
            let leading_zero = at > 1 && text.first() == Some(&b'0');
            let usual = at > 0 && !more && !leading_zero && time <= MAX_TIME;
            return usual.then_some((time, text.get(at..)?));
        }
        time = time.wrapping_mul(10).wrapping_add(Millis::from(digit));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::super::request::{RequestBounds, read_metric};
    use super::*;
    use proptest::prelude::*;

    fn body(times: &str) -> String {
        format!(
            r#"{{"connectionDetails":{{}},"query":{{"conditions":[{{"key":"name","value":{{"value":"up"}}}}],{times},"aggregation":{{"method":"MEAN","bucketSizeMillis":60000}}}}}}"#
        )
    }

    #[test]
    fn a_usual_request_is_split_at_its_times() {
        let body = body(r#""startTime":1700000000000,"endTime":1700003600000"#);
        let split = Timeless::of(body.as_bytes()).unwrap();
        let range = TimeRange::new(1_700_000_000_000, 1_700_003_600_000);
        assert_eq!(Some(split.range), range);
        assert!(split.before.ends_with(b"\"startTime\":"));
        assert!(split.after.starts_with(b",\"aggregation\""));
        assert!(split.is_certain());
    }

    #[test]
    fn what_is_not_usual_is_not_split() {
        for times in [
            r#""startTime":2,"endTime":1"#,
            r#""startTime":01,"endTime":2"#,
            r#""startTime":1.5,"endTime":2"#,
            r#""startTime":1,"endTime":2e3"#,
            r#""startTime":-1,"endTime":2"#,
            r#""startTime":-0,"endTime":2"#,
            r#""startTime":1,"endTime":999999999999999"#,
            r#""startTime":1,"endTime":99999999999999999999"#,
            r#""startTime":"1","endTime":2"#,
            r#""startTime":1, "endTime":2"#,
            r#""endTime":2,"startTime":1"#,
        ] {
            assert_eq!(Timeless::of(body(times).as_bytes()), None, "{times}");
        }
    }

    #[test]
    fn times_that_may_be_others_are_not_certain() {
        for times in [
            r#""startTime":1,"endTime":2,"startTime":3"#,
            r#""startTime":1,"endTime":2,"endTime" :3"#,
            r#""endTime" :5,"startTime":1,"endTime":2"#,
            r#""startTime":1,"endTime":2,"\u0073tartTime":3"#,
            r#""\u0065ndTime":5,"startTime":1,"endTime":2"#,
        ] {
            let body = body(times);
            let split = Timeless::of(body.as_bytes()).unwrap();
            assert!(!split.is_certain(), "{times}");
        }
    }

    proptest! {
        /// Requests are taken apart and put together with other times.
        #[test]
        fn certain_requests_differ_only_in_their_range(
            place in prop::sample::select(vec![
                r#""connectionDetails":{}"#, r#""conditions":["#, r#""key":"name""#, r#""value":"up""#,
                r#""aggregation":{"#, r#""bucketSizeMillis":60000"#,
            ]),
            instead in prop::sample::select(vec![
                r#""connectionDetails":{"startTime":1,"endTime":2}"#, r#""x":"startTime""#, r#""key":"startTime""#,
                r#""startTime":{"#, r#""endTime":["#, r#""value":"\"startTime\":1,\"endTime\":2""#, "\"limit\":5,",
                r#""startTime":3,"#, r#""bucketSizeMillis":60000,"endTime":7"#,
            ]),
            first in (0i64..2_000_000_000_000, 0i64..100_000_000),
            second in (0i64..2_000_000_000_000, 0i64..100_000_000),
        ) {
            let of = |(start, length): (i64, i64)| {
                let times = format!("\"startTime\":{start},\"endTime\":{}", start + length);
                body(&times).replacen(place, instead, 1)
            };
            let read = |body: &str| read_metric(body.as_bytes(), RequestBounds::default());
            let (one, other) = (of(first), of(second));
            let split = Timeless::of(one.as_bytes()).filter(Timeless::is_certain);
            if let (Some(split), Ok(one)) = (split, read(&one)) {
                prop_assert_eq!(split.range, one.query.range);
                let its = Timeless::of(other.as_bytes()).unwrap();
                prop_assert_eq!((split.before, split.after), (its.before, its.after));
                let mut other = read(&other).unwrap();
                prop_assert_eq!(its.range, other.query.range);
                other.query.range = one.query.range;
                prop_assert_eq!(one, other);
            }
        }
    }
}
