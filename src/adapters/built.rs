//! The memory that reading an answer takes, known before it is read.

use memchr::memchr_iter;

use crate::model::stop;

/// The bytes for a number of a sample or a point, which is in a column of numbers.
const NUMBER: usize = 8;

/// The bytes for a short string of a list: itself, and its block on the heap.
const STRING: usize = 64;

/// The bytes for a member of an object, such as a label: two strings, and places in a map and in a list.
const MEMBER: usize = 256;

/// The bytes that are looked at without looking whether the result is of use to anyone.
const PIECE: usize = 16 << 10;

/// Returns the bytes of what is built of `body`, an answer in JSON, about: more than a reader makes of it, and
/// not many times as much. The bytes of long strings come on top; those are the body's.
///
/// A comma ends a number, or a string of a list; a colon begins the value of a member.
pub fn built_bytes(body: &[u8]) -> usize {
    // The text before a quote, if that begins a string of a list: `[1700000000,"1"]` is a sample.
    let of_list = |quote: &usize| {
        let before = body.get(..*quote).unwrap_or_default().trim_ascii_end();
        let item = before.strip_suffix(b",");
        item.is_some_and(|item| !item.last().is_some_and(u8::is_ascii_digit))
    };
    let mut bytes = 0;
    for (number, piece) in body.chunks(PIECE).enumerate() {
        if stop::is_due() {
            break;
        }
        let quotes = memchr_iter(b'"', piece).map(|at| number * PIECE + at);
        bytes += memchr_iter(b',', piece).count() * NUMBER
            + memchr_iter(b':', piece).count() * MEMBER
            + quotes.filter(of_list).count() * (STRING - NUMBER);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::fmt::Write;
    use std::rc::Rc;

    use bytes::Bytes;
    use http::{HeaderMap, StatusCode};
    use proptest::prelude::*;

    use super::*;
    use crate::adapters::Response;
    use crate::adapters::prometheus::tests::{read_samples, read_strings};
    use crate::wire::mirror::points::read_metric;
    use crate::wire::mirror::response;
    use crate::wire::prometheus::read_matrix;

    /// Returns `one` as often as there is room for, with commas in between.
    fn list(one: impl Fn(usize) -> String) -> String {
        let mut all = String::new();
        for n in 0.. {
            let _ = write!(all, "{}{}", if n == 0 { "" } else { "," }, one(n));
            if all.len() > 1_000_000 {
                break;
            }
        }
        all
    }

    type Reader = fn(&Response) -> bool;

    /// Charges byte by byte.
    fn slowly(body: &[u8]) -> usize {
        let each = body.iter().enumerate().map(|(at, byte)| {
            let mut after = body[at + 1..].iter().filter(|b| !b.is_ascii_whitespace());
            let number = at > 0 && body[at - 1].is_ascii_digit();
            match byte {
                b':' => MEMBER,
                b',' if after.next() == Some(&b'"') && !number => STRING,
                b',' => NUMBER,
                _ => 0,
            }
        });
        each.sum()
    }

    proptest! {
        #[test]
        fn the_charge_is_that_of_a_look_at_each_byte(
            text in r#"[,:"1a \n\[]{0,200}"#,
            before in prop::sample::select(vec![0, PIECE - 100, 2 * PIECE - 100]),
        ) {
            let body = [vec![b' '; before], text.into_bytes()].concat();
            prop_assert_eq!(built_bytes(&body), slowly(&body));
        }
    }

    /// Returns answers of all kinds, with what reads each, which says whether it could.
    fn answers() -> Vec<(&'static str, Bytes, Reader)> {
        let matrix = |result: String| {
            format!(
                r#"{{"status":"success","data":{{"resultType":"matrix","result":[{result}]}}}}"#
            )
        };
        let samples = |each: usize| {
            matrix(list(|n| {
                let samples: Vec<_> = (0..each)
                    .map(|t| format!(r#"[{},"{}"]"#, 1_600_000_000 + t, n))
                    .collect();
                format!(
                    r#"{{"metric":{{"a":"{n}"}},"values":[{}]}}"#,
                    samples.join(",")
                )
            }))
        };
        let labels = matrix(list(|n| {
            format!(r#"{{"metric":{{"a":"{n}","b":"","c":"","d":"","e":""}},"values":[]}}"#)
        }));
        let names = format!(
            r#"{{"status":"success","data":[{}]}}"#,
            list(|_| r#""""#.to_owned())
        );
        let points = |one: &str, format: &str| {
            format!(
                r#"{{"telemetry":{{"points":[{}],"dataFormat":[{format}],"isPartial":false}},"_type":"MetricsResponse"}}"#,
                list(|_| one.to_owned())
            )
        };
        let values = format!(
            r#"{{"_type":"FieldValues","values":[{}],"isPartial":false}}"#,
            list(|n| format!(r#"{{"value":"{n}"}}"#))
        );
        let fields = format!(
            r#"{{"fields":[{}],"isPartial":false}}"#,
            list(|_| r#"{"fieldName":"a","fieldType":"STRING"}"#.to_owned())
        );
        let face: Reader = |r| read_matrix(&r.body, usize::MAX / 64).is_ok();
        let mirrored: Reader = |r| read_samples(r, usize::MAX / 64);
        let listed: Reader = read_strings;
        let page: Reader = |r| read_metric(&r.body).is_ok();
        let field_values: Reader = |r| response::read_field_values(&r.body).is_ok();
        let field_names: Reader = |r| response::read_field_names(&r.body).is_ok();
        let raw = points("[1,1600000000000]", r#""value","timestamp""#);
        let buckets = points(
            "[1.5,1600000000000,1600000060000]",
            r#""value","startTimestamp","endTimestamp""#,
        );
        let spaced = points("[ 1.5e0, 1600000000000 ]", r#""value","timestamp""#);
        let all = [
            ("samples", samples(300), face),
            ("samples", samples(300), mirrored),
            ("one sample", samples(1), face),
            ("one sample", samples(1), mirrored),
            ("empty series", labels.clone(), face),
            ("empty series", labels, mirrored),
            ("names", names, listed),
            ("points", raw, page),
            ("points of an unusual form", spaced, page),
            ("buckets", buckets, page),
            ("values", values, field_values),
            ("fields", fields, field_names),
        ];
        let all = all.into_iter();
        all.map(|(what, text, reader)| (what, Bytes::from(text), reader))
            .collect()
    }

    fn response(body: Bytes) -> Response {
        Response {
            status: StatusCode::OK,
            headers: HeaderMap::new(),
            body,
        }
    }

    #[test]
    fn reading_of_any_kind_stops_when_it_is_to() {
        for (what, body, reader) in answers() {
            let response = response(body);
            let looks = Rc::new(Cell::new(0));
            let counted = looks.clone();
            let second = move || {
                counted.set(counted.get() + 1);
                counted.get() >= 2
            };
            let read = stop::unless(second, || reader(&response));
            // What has an unusual form is read from its beginning again, and stops there.
            let looks = looks.get();
            assert!(read.is_none() && looks <= 3, "{what}: {looks} looks");
            // It would have been read.
            assert_eq!(
                stop::unless(|| false, || reader(&response)),
                Some(true),
                "{what}"
            );
        }
    }

    #[test]
    fn what_is_built_is_charged_before() {
        for (what, body, reader) in answers() {
            let response = response(body);
            let charged = built_bytes(&response.body);
            let read = || assert!(reader(&response), "{what}");
            let built = allocation_counter::measure(read).bytes_max as usize;
            println!(
                "{what}: {} bytes, {charged} charged, {built} built",
                response.body.len()
            );
            // Vectors have up to twice the capacity that is used.
            assert!(built <= 2 * charged, "{what}: {built} of {charged}");
            assert!(
                charged <= 8 * built + 100_000,
                "{what}: {built} of {charged}"
            );
        }
    }
}
