//! Writes answers and errors as Prometheus does.

use std::cmp::Ordering;

use bytes::Bytes;

use super::read::{Extras, Instant};
use super::series::{Series, Track};
use crate::model::{Error, Kind, Millis, TimeRange};
use crate::wire::encoding::{Encoding, Text};

/// Texts of samples shorter than this are copied: a separate part costs more. In an answer that is compressed,
/// a part is a compressed text.
const SHORT: usize = 4 << 10;
const SHORT_ENCODED: usize = 256;

/// The most bytes that room is made for after the first series.
const MOST_RESERVED: usize = 256 << 10;

/// Returns the answer with the samples of `range` of consecutive chunks, each ordered by labels, as
/// parts. Series with the same labels are joined, and the result is in the order of labels; a
/// series without samples in `range` is left out. The bytes are those that Prometheus 2.42 writes
/// for the same samples, metrics and `extras`. The work grows with the number of series and chunks,
/// not of samples.
///
/// A track that is answered whole is compressed with `encoding`, once.
pub fn write_matrix(
    chunks: &[&[Series]],
    range: &TimeRange,
    extras: &Extras,
    encoding: Encoding,
) -> Vec<Text> {
    let mut parts = Parts {
        encoding,
        ..Parts::default()
    };
    parts.write(b"{\"status\":\"success\",\"data\":{\"resultType\":\"matrix\",\"result\":[");
    let mut open: Vec<&[Series]> = chunks.to_vec();
    let (mut same, mut any): (Vec<&Series>, _) = (Vec::with_capacity(open.len()), false);
    loop {
        same.clear();
        for head in open.iter().filter_map(|rest| rest.first()) {
            match same.first().map_or(Ordering::Equal, |s| head.order(s)) {
                Ordering::Less => {
                    same.clear();
                    same.push(head);
                }
                Ordering::Equal => same.push(head),
                Ordering::Greater => {}
            }
        }
        let Some(first) = same.first() else {
            break;
        };
        for rest in &mut open {
            if let Some((head, tail)) = rest.split_first()
                && head.order(first).is_eq()
            {
                *rest = tail;
            }
        }
        let before = parts.glue.len();
        let first = !any;
        any |= parts.series(&same, range, any);
        if first {
            // The others are about as long.
            let more = open.iter().map(|rest| rest.len()).max().unwrap_or(0);
            let length = (parts.glue.len() - before).saturating_mul(more);
            parts.glue.reserve(length.min(MOST_RESERVED));
        }
    }
    parts.write(b"]");
    parts.members(&extras.data);
    parts.write(b"}");
    parts.members(&extras.top);
    parts.write(b"}");
    parts.finish()
}

/// Returns the answer to an instant query at `time` with those of `series`, ordered by labels, that
/// have a sample at that time. The bytes are those that Prometheus writes for the same samples.
pub fn write_vector(series: &[Series], time: Millis) -> Vec<u8> {
    let at = TimeRange::clamped(time, time + 1);
    let mut text =
        b"{\"status\":\"success\",\"data\":{\"resultType\":\"vector\",\"result\":[".to_vec();
    let mut any = false;
    for series in series {
        let samples = [
            (&b",\"value\":"[..], &series.values),
            (b",\"histogram\":", &series.histograms),
        ];
        for (name, track) in samples {
            if let Some(span) = track.span(track.within(&at)) {
                let comma: &[u8] = if any { b"," } else { b"" };
                any = true;
                text.extend_from_slice(comma);
                text.extend_from_slice(b"{\"metric\":");
                text.extend_from_slice(&series.metric.text);
                text.extend_from_slice(name);
                text.extend_from_slice(track.bytes(span));
                text.push(b'}');
            }
        }
    }
    text.extend_from_slice(b"]}}");
    text
}

/// Returns `answer` to an instant query as Prometheus writes it.
pub fn write_instant(answer: &Instant) -> Vec<u8> {
    let mut parts = Parts::default();
    let kind = if answer.vector { "vector" } else { "matrix" };
    let head =
        format!("{{\"status\":\"success\",\"data\":{{\"resultType\":\"{kind}\",\"result\":[");
    parts.write(head.as_bytes());
    let names: [&[u8]; 2] = match answer.vector {
        true => [b"value", b"histogram"],
        false => [b"values", b"histograms"],
    };
    let (open, close): (&[u8], &[u8]) = match answer.vector {
        true => (b"", b""),
        false => (b"[", b"]"),
    };
    for (at, series) in answer.series.iter().enumerate() {
        let comma: &[u8] = if at > 0 { b"," } else { b"" };
        parts.write(comma);
        parts.write(b"{\"metric\":");
        parts.write(&series.metric.text);
        for (name, track) in names.iter().zip([&series.values, &series.histograms]) {
            if !track.is_empty() {
                let samples = track.cut(&TimeRange::ALL);
                let texts: [&[u8]; 6] = [b",\"", name, b"\":", open, &samples, close];
                for text in texts {
                    parts.write(text);
                }
            }
        }
        parts.write(b"}");
    }
    parts.write(b"]");
    parts.members(&answer.extras.data);
    parts.write(b"}");
    parts.members(&answer.extras.top);
    parts.write(b"}");
    parts.glue
}

/// An answer under construction: our own text between slices of the origin's.
#[derive(Default)]
struct Parts {
    glue: Vec<u8>,
    /// Each slice, and its offset in the glue.
    slices: Vec<(usize, Text)>,
    encoding: Encoding,
}

impl Parts {
    fn write(&mut self, text: &[u8]) {
        self.glue.extend_from_slice(text);
    }

    /// Adds one series, from all chunks that have it. Returns whether it has samples.
    fn series(&mut self, same: &[&Series], range: &TimeRange, comma: bool) -> bool {
        let (glue, slices) = (self.glue.len(), self.slices.len());
        if comma {
            self.write(b",");
        }
        self.write(b"{\"metric\":");
        if let Some(first) = same.first() {
            self.glue.extend_from_slice(&first.metric.text);
        }
        let values = self.samples(b",\"values\":[", same.iter().map(|s| &s.values), range);
        let histograms = same.iter().map(|s| &s.histograms);
        let histograms = self.samples(b",\"histograms\":[", histograms, range);
        if !values && !histograms {
            self.glue.truncate(glue);
            self.slices.truncate(slices);
            return false;
        }
        self.write(b"}");
        true
    }

    /// Adds the samples of one kind of a series. Returns whether there are any.
    fn samples<'a>(
        &mut self,
        name: &[u8],
        tracks: impl Iterator<Item = &'a Track>,
        range: &TimeRange,
    ) -> bool {
        let short = match self.encoding {
            Encoding::Identity => SHORT,
            Encoding::Gzip | Encoding::Zstd => SHORT_ENCODED,
        };
        let mut any = false;
        for track in tracks {
            let Some(span) = track.span_of(range) else {
                continue;
            };
            self.write(if any { b"," } else { name });
            any = true;
            let text = track.bytes(span.clone());
            if text.len() < short {
                self.write(text);
            } else {
                let slice = track.encoded(span, self.encoding);
                self.slices.push((self.glue.len(), slice));
            }
        }
        if any {
            self.write(b"]");
        }
        any
    }

    fn members(&mut self, members: &[(String, Bytes)]) {
        for (name, json) in members {
            self.write(b",");
            self.glue.extend_from_slice(quoted(name).as_bytes());
            self.write(b":");
            self.write(json);
        }
    }

    fn finish(self) -> Vec<Text> {
        let glue = Bytes::from(self.glue);
        let mut parts = Vec::with_capacity(2 * self.slices.len() + 1);
        let mut at = 0;
        for (to, slice) in self.slices {
            parts.push(Text::Plain(glue.slice(at..to)));
            parts.push(slice);
            at = to;
        }
        parts.push(Text::Plain(glue.slice(at..)));
        parts
    }
}

/// Returns the `errorType` that Prometheus answers for such an error (`respondError` in
/// `web/api/v1/api.go`), or the one of Mimir for errors that Prometheus does not have.
pub fn error_type(kind: Kind) -> &'static str {
    match kind {
        Kind::InvalidRequest
        | Kind::UnsupportedFieldType
        | Kind::Unauthenticated
        | Kind::ClientNotAllowed
        | Kind::TargetNotAllowed
        | Kind::MethodNotAllowed
        | Kind::BodyTooLarge
        | Kind::UnsupportedMediaType => "bad_data",
        Kind::MetricNotFound | Kind::PathNotFound => "not_found",
        Kind::RequestTimeout | Kind::DeadlineExceeded => "timeout",
        Kind::TooManyPoints | Kind::AnswerTooLarge => "execution",
        Kind::UpstreamBudget => "too_many_requests",
        Kind::Overloaded
        | Kind::UpstreamBusy
        | Kind::UpstreamUnreachable
        | Kind::UpstreamFailed
        | Kind::TimesAligned => "unavailable",
        Kind::Internal => "internal",
    }
}

/// Returns the body of `error`.
pub fn write_error(error: &Error) -> Bytes {
    let kind = error_type(error.kind);
    let said = quoted(&error.message);
    format!("{{\"status\":\"error\",\"errorType\":\"{kind}\",\"error\":{said}}}").into()
}

/// Returns `text` as a JSON string as Go writes it: safe to embed in HTML.
fn quoted(text: &str) -> String {
    // Serializing a string does not fail.
    let mut quoted = serde_json::to_string(text).unwrap_or_default();
    for (plain, escaped) in [
        ("<", "\\u003c"),
        (">", "\\u003e"),
        ("&", "\\u0026"),
        ("\u{2028}", "\\u2028"),
        ("\u{2029}", "\\u2029"),
    ] {
        if quoted.contains(plain) {
            quoted = quoted.replace(plain, escaped);
        }
    }
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::RangeSet;
    use crate::wire::prometheus::series::tests::{models, series};
    use crate::wire::prometheus::{merge, read_matrix};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn chunks_are_joined_by_labels_in_order(
            model in models(),
            edges in prop::collection::vec(0i64..50, 0..4),
            range in (0i64..50, 0i64..50),
        ) {
            let whole = series(&model);
            let mut edges = edges;
            edges.extend([-1000, 1000]);
            edges.sort_unstable();
            let chunks: Vec<_> = edges
                .windows(2)
                .map(|w| {
                    let span = TimeRange::clamped(w[0], w[1]);
                    merge(&[], &whole, &RangeSet::from(span), &span)
                })
                .collect();
            let chunks: Vec<&[Series]> = chunks.iter().map(|c| &c[..]).collect();
            let range = TimeRange::clamped(range.0, range.0 + range.1);
            let plain = Encoding::Identity;
            let write = |chunks: &[&[Series]]| {
                plain.join(write_matrix(chunks, &range, &Extras::default(), plain)).concat()
            };
            let written = write(&chunks);
            prop_assert_eq!(&written, &write(&[&whole]));
            // The result contains exactly the samples of the range.
            let expected = merge(&[], &whole, &RangeSet::from(range), &range);
            let samples = |list: &[Series]| -> Vec<_> {
                let all = |t: &Track| t.slice(0..t.len());
                let of = |s: &Series| {
                    (s.metric.labels.clone(), all(&s.values), all(&s.histograms))
                };
                list.iter().map(of).collect()
            };
            let read = read_matrix(&written.into(), 100).unwrap();
            prop_assert_eq!(samples(&read.series), samples(&expected));
        }
    }

    #[test]
    fn errors_have_the_shape_of_prometheus() {
        let error = Error::invalid("step", "a \"b\" < c & d");
        assert_eq!(
            write_error(&error),
            "{\"status\":\"error\",\"errorType\":\"bad_data\",\
             \"error\":\"a \\\"b\\\" \\u003c c \\u0026 d\"}"
        );
        assert_eq!(error_type(Kind::DeadlineExceeded), "timeout");
    }

    #[test]
    fn long_texts_are_shared_and_short_ones_copied() {
        let model = |n: i64| {
            let samples = (0..n).map(|t| ((false, t), 7)).collect();
            std::collections::BTreeMap::from([("a".to_owned(), samples)])
        };
        let parts = |n| {
            let list = series(&model(n));
            let range = TimeRange::clamped(0, n);
            let plain = Encoding::Identity;
            let parts = write_matrix(&[&list], &range, &Extras::default(), plain);
            (plain.join(parts), list[0].values.slice(0..n as usize))
        };
        assert_eq!(parts(3).0.len(), 1);
        assert_eq!(parts(300).0.len(), 1);
        let (long, text) = parts(3000);
        assert_eq!(long.len(), 3);
        assert_eq!(long[1].as_ptr(), text.as_ptr());
    }
}
