//! The samples of a series as slices of the origin's own text.

use std::ops::Range;
use std::sync::OnceLock;

use bytes::Bytes;

use crate::model::{Millis, RangeSet, TimeRange};
use crate::wire::encoding::{Encoding, PackedText, Text};

/// Samples in ascending order of time, as the JSON texts `[time,value]` that the origin wrote.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Track {
    pub(super) times: Vec<Millis>,
    /// The first and the last time. Most slices need only these, which are stored here so that they
    /// do not load the columns into the processor's cache.
    hull: Option<(Millis, Millis)>,
    /// The texts, separated by commas.
    pub(super) text: Bytes,
    /// The offset of each text, and one past the last.
    offsets: Vec<u32>,
    /// The whole text compressed, once a client has requested it; `None` inside if that makes it no
    /// smaller.
    gzip: OnceLock<Option<PackedText>>,
    zstd: OnceLock<Option<PackedText>>,
}

/// Shorter texts are not compressed.
const WORTH_PACKING: usize = 1024;

impl Track {
    /// Returns a track of texts that fill `text` from `offsets` on, separated by commas; the last
    /// offset is one past the end.
    pub(super) fn new(times: Vec<Millis>, text: Bytes, offsets: Vec<u32>) -> Self {
        debug_assert!(times.is_empty() || offsets.len() == times.len() + 1);
        debug_assert!(times.is_empty() || offsets.last() == Some(&(text.len() as u32 + 1)));
        debug_assert!(times.is_sorted());
        Self {
            hull: times.first().copied().zip(times.last().copied()),
            times,
            text,
            offsets,
            ..Self::default()
        }
    }

    /// Returns the times of the samples, ascending.
    pub fn times(&self) -> &[Millis] {
        &self.times
    }

    /// Returns the number of samples.
    pub fn len(&self) -> usize {
        self.times.len()
    }

    /// Returns whether there are none.
    pub fn is_empty(&self) -> bool {
        self.times.is_empty()
    }

    /// Returns the positions of the samples of `range`.
    pub fn within(&self, range: &TimeRange) -> Range<usize> {
        self.before(range.start())..self.before(range.end())
    }

    /// Returns the number of samples earlier than `end`.
    fn before(&self, end: Millis) -> usize {
        let Some((first, last)) = self.hull.filter(|(first, _)| *first < end) else {
            return 0;
        };
        if last < end {
            return self.len();
        }
        // Most tracks are evenly spaced, so the position is guessed first and searched for only if
        // the guess is wrong.
        let part = (end - first) as f64 / (last - first) as f64;
        let guess = (part * (self.len() - 1) as f64).ceil() as usize;
        let meets = self.times.get(guess).is_some_and(|t| *t >= end)
            && self
                .times
                .get(guess.wrapping_sub(1))
                .is_some_and(|t| *t < end);
        if meets {
            return guess;
        }
        self.times.partition_point(|t| *t < end)
    }

    /// Returns the texts of the samples `at`, separated by commas; shares the memory of the track.
    pub fn slice(&self, at: Range<usize>) -> Bytes {
        self.span(at).map_or_else(Bytes::new, |s| self.shared(s))
    }

    /// Returns the same as [`slice`](Self::slice) for the samples of `range`.
    pub fn cut(&self, range: &TimeRange) -> Bytes {
        self.span_of(range)
            .map_or_else(Bytes::new, |s| self.shared(s))
    }

    /// Returns the byte range of the texts of the samples of `range`.
    pub(super) fn span_of(&self, range: &TimeRange) -> Option<Range<usize>> {
        let (first, last) = self.hull?;
        if range.start() <= first && last < range.end() {
            return Some(0..self.text.len());
        }
        self.span(self.within(range))
    }

    /// Returns the byte range of the texts of the samples `at`, without a trailing comma.
    pub(super) fn span(&self, at: Range<usize>) -> Option<Range<usize>> {
        let start = *self.offsets.get(at.start)? as usize;
        let end = (*self.offsets.get(at.end)? as usize).checked_sub(1)?;
        (at.start < at.end && end <= self.text.len()).then_some(start..end)
    }

    pub(super) fn shared(&self, span: Range<usize>) -> Bytes {
        // Every byte range lies within the text.
        self.text.slice(span)
    }

    /// Returns where the whole text compressed with `encoding` is stored; `None` if it is not to be
    /// compressed.
    pub(super) fn kept(&self, encoding: Encoding) -> Option<&OnceLock<Option<PackedText>>> {
        let kept = match encoding {
            Encoding::Identity => return None,
            Encoding::Gzip => &self.gzip,
            Encoding::Zstd => &self.zstd,
        };
        (self.text.len() >= WORTH_PACKING).then_some(kept)
    }

    /// Returns the texts of the samples in `span`, compressed if these are all samples.
    pub(super) fn encoded(&self, span: Range<usize>, encoding: Encoding) -> Text {
        let whole = span == (0..self.text.len());
        let kept = self.kept(encoding).filter(|_| whole);
        let packed = kept.and_then(|kept| kept.get_or_init(|| encoding.pack(&self.text)).as_ref());
        packed.map_or_else(
            || Text::Plain(self.shared(span)),
            |p| Text::Packed(p.clone()),
        )
    }

    pub(super) fn bytes(&self, span: Range<usize>) -> &[u8] {
        self.text.get(span).unwrap_or_default()
    }

    /// Returns the number of heap bytes that it occupies. A track that was just read is a part of
    /// the whole answer, which stays in memory as long as the track does.
    pub fn heap_bytes(&self) -> usize {
        let packed = [&self.gzip, &self.zstd].into_iter();
        let packed = packed.filter_map(|p| p.get()?.as_ref().map(PackedText::heap_bytes));
        self.text.len()
            + self.times.capacity() * size_of::<Millis>()
            + self.offsets.capacity() * size_of::<u32>()
            + packed.sum::<usize>()
    }

    /// Returns the samples of `span`: in the ranges `news` those of `new`, elsewhere those of
    /// `old`.
    pub(super) fn spliced(old: &Self, new: &Self, news: &RangeSet, span: &TimeRange) -> Self {
        let mut runs: Vec<(&Self, Range<usize>)> = Vec::new();
        let mut at = span.start();
        for range in news.iter() {
            let Some(range) = range.intersection(span) else {
                continue;
            };
            runs.push((old, old.within(&TimeRange::clamped(at, range.start()))));
            runs.push((new, new.within(&range)));
            at = range.end();
        }
        runs.push((old, old.within(&TimeRange::clamped(at, span.end()))));
        Self::joined(&runs)
    }

    /// Returns the samples of `mine` and those of `others` at the positions `taken`, in order of
    /// time.
    pub(super) fn woven(mine: &Self, others: &Self, taken: &[Range<usize>]) -> Self {
        let mut runs: Vec<(&Self, Range<usize>)> = Vec::new();
        let mut next = 0;
        for at in taken.iter().cloned().flatten() {
            let Some(t) = others.times.get(at) else {
                continue;
            };
            let before = mine.before(*t);
            if next < before {
                runs.push((mine, next..before));
                next = before;
            }
            match runs.last_mut() {
                Some((track, run)) if std::ptr::eq(*track, others) && run.end == at => {
                    run.end = at + 1;
                }
                _ => runs.push((others, at..at + 1)),
            }
        }
        runs.push((mine, next..mine.len()));
        Self::joined(&runs)
    }

    /// Returns the samples of `runs`, one run after the other, in newly allocated memory.
    pub(super) fn joined(runs: &[(&Self, Range<usize>)]) -> Self {
        let spans = || {
            let spanned = runs
                .iter()
                .map(|(track, at)| (*track, at, track.span(at.clone())));
            spanned.filter_map(|(track, at, span)| Some((track, at, span?)))
        };
        let samples: usize = spans().map(|(_, at, _)| at.len()).sum();
        let size: usize = spans().map(|(_, _, span)| span.len() + 1).sum();
        // Offsets cannot address 4 GiB or more, which no chunk comes near.
        if samples == 0 || u32::try_from(size).is_err() {
            return Self::default();
        }
        let mut times = Vec::with_capacity(samples);
        let mut offsets = Vec::with_capacity(samples + 1);
        let mut text = Vec::with_capacity(size);
        for (track, at, span) in spans() {
            if !text.is_empty() {
                text.push(b',');
            }
            let (from, to) = (span.start as u32, text.len() as u32);
            times.extend_from_slice(track.times.get(at.clone()).unwrap_or_default());
            let starts = track.offsets.get(at.clone()).unwrap_or_default();
            offsets.extend(starts.iter().map(|o| o - from + to));
            text.extend_from_slice(track.bytes(span));
        }
        offsets.push(size as u32);
        Self::new(times, text.into(), offsets)
    }
}
