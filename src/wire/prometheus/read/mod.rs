//! Reads the answer to a range query into slices of its own bytes.

mod labels;

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use serde::Deserialize;
use serde::de::IgnoredAny;

use labels::LabelMap;
pub use labels::most_labels;

use super::series::{Metric, Series, Track};
use crate::model::{Checkpoints, Millis};

/// A successful answer to a range query.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Matrix {
    /// The series, ordered by labels, all of which are different. Their samples share the memory of
    /// the whole answer; [`merge`](super::merge) copies them into their own.
    pub series: Vec<Series>,
    /// Its other members.
    pub extras: Extras,
}

/// A successful answer to an instant query whose value has series.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Instant {
    /// Set for a vector, with one sample per series; otherwise it is a matrix.
    pub vector: bool,
    /// In the order of the answer.
    pub series: Vec<Series>,
    /// Its other members.
    pub extras: Extras,
}

/// The members of an answer besides its series, in order, as JSON.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extras {
    /// Those of `data`, such as `stats`.
    pub data: Vec<(String, Bytes)>,
    /// Those of the answer, such as `warnings`, `infos`, and `isPartial` of VictoriaMetrics.
    pub top: Vec<(String, Bytes)>,
}

impl Extras {
    /// Returns the JSON of a member of the answer or else of `data`.
    pub fn get(&self, name: &str) -> Option<&Bytes> {
        let mut all = self.top.iter().chain(&self.data);
        all.find(|(n, _)| n == name).map(|(_, json)| json)
    }
}

/// The reason why an answer cannot be read. It can still be passed on unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unread {
    /// Not JSON, or not an answer in this format; with the offset of the problem.
    Malformed(usize),
    /// Not a success, or not a matrix.
    NotAMatrix,
    /// More series than the cap.
    TooManySeries,
    /// More labels than [`most_labels`].
    TooManyLabels,
    /// Two series have the same labels, or samples are not in the order of time.
    Disordered,
    /// 4 GiB or more.
    TooLong,
}

impl fmt::Display for Unread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(at) => write!(f, "malformed at byte {at}"),
            Self::NotAMatrix => f.write_str("not a successful matrix"),
            Self::TooManySeries => f.write_str("more series than the cap"),
            Self::TooManyLabels => f.write_str("more labels than the cap"),
            Self::Disordered => f.write_str("series or samples out of order"),
            Self::TooLong => f.write_str("4 GiB or more"),
        }
    }
}

/// Most members of an answer, and of its `data`.
const MOST_MEMBERS: usize = 64;

/// Reads the answer `body`, with at most `max_series` series.
pub fn read_matrix(body: &Bytes, max_series: usize) -> Result<Matrix, Unread> {
    let answer = read_series(body, max_series, &["matrix"])?;
    let (mut series, extras) = (answer.series, answer.extras);
    series.sort_by(Series::order);
    let ordered = |a: &Series, b: &Series| a.order(b).is_lt();
    if !series.is_sorted_by(ordered) {
        return Err(Unread::Disordered);
    }
    Ok(Matrix { series, extras })
}

/// Reads the answer `body` to an instant query, with at most `max_series` series. An answer whose
/// value is a scalar or a string gives [`Unread::NotAMatrix`].
pub fn read_instant(body: &Bytes, max_series: usize) -> Result<Instant, Unread> {
    read_series(body, max_series, &["vector", "matrix"])
}

/// Reads the answer `body` if its type is one of `kinds`.
fn read_series(body: &Bytes, max_series: usize, kinds: &[&str]) -> Result<Instant, Unread> {
    if u32::try_from(body.len()).is_err() {
        return Err(Unread::TooLong);
    }
    let mut reader = Reader {
        body,
        at: 0,
        vectors: kinds.contains(&"vector"),
        labels_left: most_labels(max_series),
        checkpoints: Checkpoints::default(),
    };
    let (mut answer, mut success, mut data) = (Instant::default(), false, false);
    reader.object(|r, name| {
        match name.as_str() {
            "status" => success = r.json::<String>()?.0 == "success",
            "data" => data = r.data(max_series, kinds, &mut answer)?,
            _ => {
                let (_, json) = r.json::<IgnoredAny>()?;
                r.add(&mut answer.extras.top, name, json)?;
            }
        }
        Ok(())
    })?;
    if reader.peek().is_some() {
        return Err(reader.malformed());
    }
    match success && data {
        true => Ok(answer),
        false => Err(Unread::NotAMatrix),
    }
}

struct Reader<'a> {
    body: &'a Bytes,
    at: usize,
    /// Whether series may have a single sample.
    vectors: bool,
    /// The number of labels that may still come.
    labels_left: usize,
    checkpoints: Checkpoints,
}

impl Reader<'_> {
    fn malformed(&self) -> Unread {
        Unread::Malformed(self.at)
    }

    /// Ends the reading where it is to stop.
    fn checkpoint(&mut self) -> Result<(), Unread> {
        let stop = self.checkpoints.stop();
        (!stop).then_some(()).ok_or(self.malformed())
    }

    fn rest(&self) -> &[u8] {
        self.body.get(self.at..).unwrap_or_default()
    }

    /// Returns the next byte that is not white space, without consuming it.
    fn peek(&mut self) -> Option<u8> {
        loop {
            let byte = *self.body.get(self.at)?;
            if !b" \t\r\n".contains(&byte) {
                return Some(byte);
            }
            self.at += 1;
        }
    }

    /// Consumes `byte` if it comes next.
    fn take(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, byte: u8) -> Result<(), Unread> {
        self.take(byte).then_some(()).ok_or(self.malformed())
    }

    /// Reads any JSON value and copies its text.
    fn json<T: for<'d> Deserialize<'d>>(&mut self) -> Result<(T, Bytes), Unread> {
        let (value, text) = self.value()?;
        Ok((value, Bytes::copy_from_slice(text)))
    }

    /// Reads any JSON value and its text.
    fn value<T: for<'d> Deserialize<'d>>(&mut self) -> Result<(T, &[u8]), Unread> {
        self.peek();
        let start = self.at;
        let mut values = serde_json::Deserializer::from_slice(self.rest()).into_iter::<T>();
        let (value, len) = (values.next(), values.byte_offset());
        let Some(Ok(value)) = value else {
            self.at += len;
            return Err(self.malformed());
        };
        self.at += len;
        Ok((value, self.body.get(start..self.at).unwrap_or_default()))
    }

    /// Reads an object; `member` reads the value of each name.
    fn object(
        &mut self,
        mut member: impl FnMut(&mut Self, String) -> Result<(), Unread>,
    ) -> Result<(), Unread> {
        self.expect(b'{')?;
        if self.take(b'}') {
            return Ok(());
        }
        loop {
            self.checkpoint()?;
            let (name, _) = self.value::<String>()?;
            self.expect(b':')?;
            member(self, name)?;
            if !self.take(b',') {
                return self.expect(b'}');
            }
        }
    }

    /// Adds a member to `members`.
    fn add(
        &self,
        members: &mut Vec<(String, Bytes)>,
        name: String,
        json: Bytes,
    ) -> Result<(), Unread> {
        if members.len() >= MOST_MEMBERS {
            return Err(self.malformed());
        }
        members.push((name, json));
        Ok(())
    }

    /// Reads the member `data` into `answer`, and returns whether it has series of one of `kinds`.
    fn data(
        &mut self,
        max_series: usize,
        kinds: &[&str],
        answer: &mut Instant,
    ) -> Result<bool, Unread> {
        if self.peek() == Some(b'n') {
            self.value::<()>()?;
            return Ok(false);
        }
        let (mut has_kind, mut has_result) = (false, false);
        self.object(|r, name| {
            match name.as_str() {
                "resultType" => {
                    let kind = r.value::<String>()?.0;
                    has_kind = kinds.contains(&kind.as_str());
                    if !has_kind {
                        return Err(Unread::NotAMatrix);
                    }
                    answer.vector = kind == "vector";
                }
                "result" => {
                    has_result = true;
                    r.result(max_series, &mut answer.series)?;
                }
                _ => {
                    let (_, json) = r.json::<IgnoredAny>()?;
                    r.add(&mut answer.extras.data, name, json)?;
                }
            }
            Ok(())
        })?;
        Ok(has_kind && has_result)
    }

    fn result(&mut self, max_series: usize, found: &mut Vec<Series>) -> Result<(), Unread> {
        if self.peek() == Some(b'n') {
            // Some gateways write `null` for an empty list.
            return self.value::<()>().map(|_| ());
        }
        self.expect(b'[')?;
        if self.take(b']') {
            return Ok(());
        }
        // Series of one answer usually have about the same length.
        let mut about = 0;
        loop {
            if found.len() >= max_series {
                return Err(Unread::TooManySeries);
            }
            let series = self.series(about)?;
            about = series.values.len();
            found.push(series);
            if !self.take(b',') {
                return self.expect(b']');
            }
        }
    }

    fn series(&mut self, about: usize) -> Result<Series, Unread> {
        let (mut metric, mut values, mut histograms) = (None, Track::default(), Track::default());
        self.object(|r, name| {
            match name.as_str() {
                "metric" => {
                    let (LabelMap(labels), text) = r.json::<LabelMap>()?;
                    let left = r.labels_left.checked_sub(labels.len());
                    r.labels_left = left.ok_or(Unread::TooManyLabels)?;
                    let labels = labels.into_iter().collect();
                    metric = Some(Arc::new(Metric { labels, text }));
                }
                "values" => values = r.track(about)?,
                "histograms" => histograms = r.track(0)?,
                "value" if r.vectors => values = r.single()?,
                "histogram" if r.vectors => histograms = r.single()?,
                // The value could not be reproduced.
                _ => return Err(r.malformed()),
            }
            Ok(())
        })?;
        Ok(Series {
            metric: metric.ok_or(self.malformed())?,
            values,
            histograms,
        })
    }

    /// Reads the single sample of a series in a vector.
    fn single(&mut self) -> Result<Track, Unread> {
        self.peek();
        let start = self.at;
        let time = self.sample()?;
        let text = self.body.slice(start..self.at);
        let end = text.len() as u32 + 1;
        Ok(Track::new(vec![time], text, vec![0, end]))
    }

    /// Reads an array of `about` this many samples.
    fn track(&mut self, about: usize) -> Result<Track, Unread> {
        self.expect(b'[')?;
        if self.take(b']') {
            return Ok(Track::default());
        }
        let mut times: Vec<Millis> = Vec::with_capacity(about);
        let mut offsets = Vec::with_capacity(about + 1);
        self.peek();
        let first = self.at;
        // Samples separated by more than a comma are copied.
        let mut copied: Option<Vec<u8>> = None;
        loop {
            self.peek();
            let start = self.at;
            self.checkpoint()?;
            let time = self.sample()?;
            if times.last().is_some_and(|last| *last >= time) {
                return Err(Unread::Disordered);
            }
            times.push(time);
            let text = self.body.get(start..self.at).unwrap_or_default();
            let offset = match &mut copied {
                None => start - first,
                Some(copy) => {
                    copy.extend_from_slice(text);
                    copy.push(b',');
                    copy.len() - text.len() - 1
                }
            };
            // The whole body is shorter than 4 GiB, and no copy is longer than it.
            offsets.push(offset as u32);
            let end = self.at;
            if self.rest().starts_with(b",[") {
                self.at += 1;
                continue;
            }
            let more = self.take(b',');
            if copied.is_none() && more {
                let so_far = self.body.get(first..end).unwrap_or_default();
                let mut copy = so_far.to_vec();
                copy.push(b',');
                copied = Some(copy);
            }
            if !more {
                self.expect(b']')?;
                let text = match copied {
                    None => self.body.slice(first..end),
                    Some(mut copy) => {
                        copy.pop();
                        copy.into()
                    }
                };
                let length = offset + (end - start) + 1;
                offsets.push(length as u32);
                return Ok(Track::new(times, text, offsets));
            }
        }
    }

    /// Reads a sample, and returns its time.
    fn sample(&mut self) -> Result<Millis, Unread> {
        if let Some((time, len)) = usual(self.rest()) {
            self.at += len;
            return Ok(time);
        }
        self.expect(b'[')?;
        let (seconds, _) = self.value::<f64>()?;
        let millis = (seconds * 1000.0).round();
        // Beyond this, floats do not have millisecond precision.
        if millis.abs() > 9e15 {
            return Err(self.malformed());
        }
        self.expect(b',')?;
        self.value::<IgnoredAny>()?;
        self.expect(b']')?;
        Ok(millis as Millis)
    }
}

/// Returns the time and the length of a sample in the usual form: ten digits of seconds, up to
/// three of milliseconds, and a value in quotes. Nearly all samples have it, and this is several
/// times faster than parsing JSON.
fn usual(text: &[u8]) -> Option<(Millis, usize)> {
    let (b'[', text) = text.split_first()? else {
        return None;
    };
    let (eight, text) = text.split_first_chunk::<8>()?;
    let (two, text) = text.split_first_chunk::<2>()?;
    let digit = |byte: u8| {
        let digit = byte.wrapping_sub(b'0');
        (digit < 10).then_some(Millis::from(digit))
    };
    let seconds = eight_digits(*eight)? * 100 + digit(two[0])? * 10 + digit(two[1])?;
    let (time, head, text) = match text.split_first()? {
        (b',', text) => (seconds * 1000, 12, text),
        (b'.', text) => {
            let ([a, b, c, b','], text) = text.split_first_chunk::<4>()? else {
                return None;
            };
            let millis = digit(*a)? * 100 + digit(*b)? * 10 + digit(*c)?;
            (seconds * 1000 + millis, 16, text)
        }
        _ => return None,
    };
    let (b'"', text) = text.split_first()? else {
        return None;
    };
    let quote = quote_at(text)?;
    let escaped = quote > 0 && text.get(quote - 1) == Some(&b'\\');
    (!escaped && text.get(quote + 1) == Some(&b']')).then_some((time, head + 1 + quote + 2))
}

/// Parses eight decimal digits at once: each step combines neighbours, of one, two and then four
/// digits.
fn eight_digits(text: [u8; 8]) -> Option<Millis> {
    let x = u64::from_le_bytes(text);
    let high = 0xf0f0_f0f0_f0f0_f0f0;
    let is_digits = x & high == 0x3030_3030_3030_3030
        && x.wrapping_add(0x0606_0606_0606_0606) & high == 0x3030_3030_3030_3030;
    if !is_digits {
        return None;
    }
    let ones = x & 0x0f0f_0f0f_0f0f_0f0f;
    let twos = (ones.wrapping_mul(10) + (ones >> 8)) & 0x00ff_00ff_00ff_00ff;
    let fours = (twos.wrapping_mul(100) + (twos >> 16)) & 0x0000_ffff_0000_ffff;
    let eight = (fours.wrapping_mul(10_000) + (fours >> 32)) & 0xffff_ffff;
    Some(eight as Millis)
}

/// Returns the position of the first quote, eight bytes at a time: a byte of `x` is zero where the
/// text has a quote, and only a zero borrows into its high bit before any other byte does.
fn quote_at(text: &[u8]) -> Option<usize> {
    const ONES: u64 = 0x0101_0101_0101_0101;
    let mut at = 0;
    while let Some(eight) = text.get(at..).and_then(<[u8]>::first_chunk::<8>) {
        let x = u64::from_le_bytes(*eight) ^ (ONES * b'"' as u64);
        let zero = x.wrapping_sub(ONES) & !x & (ONES << 7);
        if zero != 0 {
            return Some(at + zero.trailing_zeros() as usize / 8);
        }
        at += 8;
    }
    let rest = text.get(at..)?.iter().position(|b| *b == b'"')?;
    Some(at + rest)
}

#[cfg(test)]
mod tests;
