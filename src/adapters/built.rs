//! The memory that reading an answer takes, known before it is read.

use memchr::memchr2_iter;

/// The bytes for a number of a sample or a point, which is in a column of numbers.
const NUMBER: usize = 8;

/// The bytes for a short string of a list: itself, and its block on the heap.
const STRING: usize = 64;

/// The bytes for a member of an object, such as a label: two strings, and places in a map and in a list.
const MEMBER: usize = 256;

/// Returns the bytes of what is built of `body`, an answer in JSON, about: more than a reader makes of it, and
/// not many times as much. The bytes of long strings come on top; those are the body's.
///
/// A comma ends a number, or a string of a list; a colon begins the value of a member.
pub fn built_bytes(body: &[u8]) -> usize {
    let each = memchr2_iter(b',', b':', body).map(|at| {
        if body.get(at) == Some(&b':') {
            return MEMBER;
        }
        let before = at.checked_sub(1).and_then(|before| body.get(before));
        let after = body.get(at + 1..).unwrap_or_default();
        let next = after.iter().find(|b| !b.is_ascii_whitespace());
        // `[1700000000,"1"]` is a sample.
        let number = before.is_some_and(u8::is_ascii_digit);
        match next {
            Some(b'"') if !number => STRING,
            _ => NUMBER,
        }
    });
    each.sum()
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use bytes::Bytes;
    use http::{HeaderMap, StatusCode};

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

    #[test]
    fn what_is_built_is_charged_before() {
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
        type Reader = fn(&Response);
        let face: Reader = |r| drop(read_matrix(&r.body, usize::MAX / 64).unwrap());
        let mirrored: Reader = |r| read_samples(r, usize::MAX / 64);
        let listed: Reader = read_strings;
        let page: Reader = |r| drop(read_metric(&r.body).unwrap());
        let field_values: Reader = |r| drop(response::read_field_values(&r.body).unwrap());
        let field_names: Reader = |r| drop(response::read_field_names(&r.body).unwrap());
        let raw = points("[1,1600000000000]", r#""value","timestamp""#);
        let buckets = points(
            "[1.5,1600000000000,1600000060000]",
            r#""value","startTimestamp","endTimestamp""#,
        );
        for (what, text, reader) in [
            ("samples", samples(300), face),
            ("samples", samples(300), mirrored),
            ("one sample", samples(1), face),
            ("one sample", samples(1), mirrored),
            ("empty series", labels.clone(), face),
            ("empty series", labels, mirrored),
            ("names", names, listed),
            ("points", raw, page),
            ("buckets", buckets, page),
            ("values", values, field_values),
            ("fields", fields, field_names),
        ] {
            let response = Response {
                status: StatusCode::OK,
                headers: HeaderMap::new(),
                body: Bytes::from(text),
            };
            let charged = built_bytes(&response.body);
            let built = allocation_counter::measure(|| reader(&response)).bytes_max as usize;
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
