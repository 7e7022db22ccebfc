//! Series as slices of the origin's own text.

use std::cmp::Ordering;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use crate::model::{Millis, RangeSet, Step, TimeRange};
use crate::wire::encoding::{Encoding, PackedText, Text};

/// The labels of a series.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metric {
    /// Names and values, by name. Their order is that of `labels.Compare` in Prometheus, by which
    /// it orders the series of a range query: bytes, name by name and value by value.
    pub labels: Vec<(String, String)>,
    /// The JSON object that they were read from.
    pub text: Bytes,
}

/// A series of an answer or of a chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Series {
    /// Its labels.
    pub metric: Arc<Metric>,
    /// Its float samples.
    pub values: Track,
    /// Its native histograms.
    pub histograms: Track,
}

impl Series {
    fn is_empty(&self) -> bool {
        self.values.is_empty() && self.histograms.is_empty()
    }

    fn heap_bytes(&self) -> usize {
        let labels = &self.metric.labels;
        let strings: usize = labels
            .iter()
            .map(|(n, v)| n.capacity() + v.capacity())
            .sum();
        size_of::<Metric>()
            + labels.capacity() * size_of::<(String, String)>()
            + strings
            + self.metric.text.len()
            + self.values.heap_bytes()
            + self.histograms.heap_bytes()
    }

    /// Orders by labels. Most often the texts are the same, which is told faster.
    pub(super) fn order(&self, other: &Self) -> Ordering {
        let (a, b) = (&self.metric, &other.metric);
        if Arc::ptr_eq(a, b) || a.text == b.text {
            return Ordering::Equal;
        }
        a.labels.cmp(&b.labels)
    }
}

/// Samples in ascending order of time, as the JSON texts `[time,value]` that the origin wrote.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Track {
    times: Vec<Millis>,
    /// The first and the last of the times; what most cuts need stands here, so that they do not
    /// fetch the columns into the processor's cache.
    hull: Option<(Millis, Millis)>,
    /// The texts, with a comma between.
    text: Bytes,
    /// Where each text starts, and where one after the last would.
    offsets: Vec<u32>,
    /// The whole text packed, once it has been asked for; nothing where that makes it no smaller.
    gzip: OnceLock<Option<PackedText>>,
    zstd: OnceLock<Option<PackedText>>,
}

/// Shorter texts are not packed.
const WORTH_PACKING: usize = 1024;

impl Track {
    /// Returns a track of texts that fill `text` from `offsets` on, with a comma between; the last
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

    /// Returns how many samples there are.
    pub fn len(&self) -> usize {
        self.times.len()
    }

    /// Returns whether there are none.
    pub fn is_empty(&self) -> bool {
        self.times.is_empty()
    }

    /// Returns where the samples of `range` are.
    pub fn within(&self, range: &TimeRange) -> Range<usize> {
        self.before(range.start())..self.before(range.end())
    }

    /// Returns how many samples are earlier than `end`.
    fn before(&self, end: Millis) -> usize {
        let Some((first, last)) = self.hull.filter(|(first, _)| *first < end) else {
            return 0;
        };
        if last < end {
            return self.len();
        }
        // Most tracks are evenly spaced: a guess finds the place, a search only where it fails.
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

    /// Returns the texts of the samples `at`, with commas between; shares the memory of the track.
    pub fn slice(&self, at: Range<usize>) -> Bytes {
        self.span(at).map_or_else(Bytes::new, |s| self.shared(s))
    }

    /// Returns the same as [`slice`](Self::slice) of the samples of `range`.
    pub fn cut(&self, range: &TimeRange) -> Bytes {
        self.span_of(range)
            .map_or_else(Bytes::new, |s| self.shared(s))
    }

    /// Returns where the texts of the samples of `range` are.
    pub(super) fn span_of(&self, range: &TimeRange) -> Option<Range<usize>> {
        let (first, last) = self.hull?;
        if range.start() <= first && last < range.end() {
            return Some(0..self.text.len());
        }
        self.span(self.within(range))
    }

    /// Returns where the texts of the samples `at` are, without a comma at the end.
    pub(super) fn span(&self, at: Range<usize>) -> Option<Range<usize>> {
        let start = *self.offsets.get(at.start)? as usize;
        let end = (*self.offsets.get(at.end)? as usize).checked_sub(1)?;
        (at.start < at.end && end <= self.text.len()).then_some(start..end)
    }

    pub(super) fn shared(&self, span: Range<usize>) -> Bytes {
        // A span lies within the text.
        self.text.slice(span)
    }

    /// Returns where the whole text in `encoding` is kept; nowhere if it is not to be packed.
    fn kept(&self, encoding: Encoding) -> Option<&OnceLock<Option<PackedText>>> {
        let kept = match encoding {
            Encoding::Identity => return None,
            Encoding::Gzip => &self.gzip,
            Encoding::Zstd => &self.zstd,
        };
        (self.text.len() >= WORTH_PACKING).then_some(kept)
    }

    /// Returns the texts of the samples `span`, packed where they are all there are.
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

    /// Returns the bytes that it holds on the heap. Those of a track that was just read are part of
    /// the whole answer, which stays as long as the track does.
    pub fn heap_bytes(&self) -> usize {
        let packed = [&self.gzip, &self.zstd].into_iter();
        let packed = packed.filter_map(|p| p.get()?.as_ref().map(PackedText::heap_bytes));
        self.text.len()
            + self.times.capacity() * size_of::<Millis>()
            + self.offsets.capacity() * size_of::<u32>()
            + packed.sum::<usize>()
    }

    /// Returns the samples of `span`: those of `new` in the ranges `news`, those of `old`
    /// elsewhere.
    fn spliced(old: &Self, new: &Self, news: &RangeSet, span: &TimeRange) -> Self {
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

    /// Returns the samples of `runs`, one after the other, in memory of their own.
    fn joined(runs: &[(&Self, Range<usize>)]) -> Self {
        let spans = || {
            let spanned = runs
                .iter()
                .map(|(track, at)| (*track, at, track.span(at.clone())));
            spanned.filter_map(|(track, at, span)| Some((track, at, span?)))
        };
        let samples: usize = spans().map(|(_, at, _)| at.len()).sum();
        let size: usize = spans().map(|(_, _, span)| span.len() + 1).sum();
        // 4 GiB and more, which no chunk comes near, could not be addressed.
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

/// Returns the bytes of texts that have yet to be packed before all of `series` can be answered in
/// `encoding`.
pub fn unpacked_bytes(series: &[Series], encoding: Encoding) -> usize {
    let tracks = series.iter().flat_map(|s| [&s.values, &s.histograms]);
    let unpacked = tracks.filter(|t| t.kept(encoding).is_some_and(|kept| kept.get().is_none()));
    unpacked.map(|track| track.text.len()).sum()
}

/// Returns the bytes that `series` hold on the heap.
pub fn heap_bytes(series: &[Series]) -> usize {
    size_of_val(series) + series.iter().map(Series::heap_bytes).sum::<usize>()
}

/// Returns the samples of `span`: those of `new` in the ranges `news`, those of `old` elsewhere, by
/// labels. Both lists are ordered by labels, and so is the result. It holds no series without
/// samples, and shares no samples with either list.
pub fn merge(old: &[Series], new: &[Series], news: &RangeSet, span: &TimeRange) -> Vec<Series> {
    let none = Track::default();
    let mut merged = Vec::with_capacity(old.len().max(new.len()));
    let (mut olds, mut fresh) = (old.iter().peekable(), new.iter().peekable());
    loop {
        let order = match (olds.peek(), fresh.peek()) {
            (None, None) => break,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(o), Some(n)) => o.order(n),
        };
        let o = if order.is_le() { olds.next() } else { None };
        let n = if order.is_ge() { fresh.next() } else { None };
        let Some(metric) = o.or(n).map(|s| &s.metric) else {
            break;
        };
        let spliced = |track: fn(&Series) -> &Track| {
            let (o, n) = (o.map_or(&none, track), n.map_or(&none, track));
            Track::spliced(o, n, news, span)
        };
        let series = Series {
            metric: Arc::clone(metric),
            values: spliced(|s| &s.values),
            histograms: spliced(|s| &s.histograms),
        };
        if !series.is_empty() {
            merged.push(series);
        }
    }
    merged.shrink_to_fit();
    merged
}

/// Returns the samples whose times are `phase` and whole steps away: what a query of that step
/// answers, out of one whose step divides it and whose phase is the same. Series without any are
/// left out.
pub fn thin(series: &[Series], step: Step, phase: Millis) -> Vec<Series> {
    let phase = phase.rem_euclid(step.millis());
    let kept = |track: &Track| {
        let times = track.times.iter().enumerate();
        let met = times.filter(|(_, t)| t.rem_euclid(step.millis()) == phase);
        let runs: Vec<_> = met.map(|(i, _)| (track, i..i + 1)).collect();
        Track::joined(&runs)
    };
    let thinned = series.iter().map(|s| Series {
        metric: Arc::clone(&s.metric),
        values: kept(&s.values),
        histograms: kept(&s.histograms),
    });
    thinned.filter(|s| !s.is_empty()).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// By labels: the samples, by whether they are histograms and by time.
    type Model = BTreeMap<String, BTreeMap<(bool, Millis), u32>>;

    pub(in crate::wire::prometheus) fn series(model: &Model) -> Vec<Series> {
        let track = |samples: &BTreeMap<(bool, Millis), u32>, histograms: bool| {
            let (mut times, mut text, mut offsets) = (Vec::new(), String::new(), vec![0]);
            for ((_, t), v) in samples.iter().filter(|((h, _), _)| *h == histograms) {
                times.push(*t);
                text += &format!("[{t},\"{v}\"],");
                offsets.push(text.len() as u32);
            }
            // As in an answer, where no comma follows the last.
            text.pop();
            Track::new(times, text.into(), offsets)
        };
        let of = |(name, samples): (&String, &BTreeMap<(bool, Millis), u32>)| Series {
            metric: Arc::new(Metric {
                labels: vec![("n".to_owned(), name.clone())],
                text: format!("{{\"n\":\"{name}\"}}").into(),
            }),
            values: track(samples, false),
            histograms: track(samples, true),
        };
        model.iter().map(of).collect()
    }

    /// Returns the texts of every sample, one by one.
    fn texts(series: &[Series]) -> Vec<(String, Vec<Bytes>)> {
        let each = |track: &Track| -> Vec<Bytes> {
            (0..track.len()).map(|i| track.slice(i..i + 1)).collect()
        };
        let of = |s: &Series| {
            let all = [each(&s.values), each(&s.histograms)].concat();
            (s.metric.labels[0].1.clone(), all)
        };
        series.iter().map(of).collect()
    }

    fn chosen(model: &Model, keep: impl Fn(Millis) -> bool) -> Model {
        let mut chosen = Model::new();
        for (name, samples) in model {
            let kept: BTreeMap<_, _> = samples
                .iter()
                .filter(|((_, t), _)| keep(*t))
                .map(|(k, v)| (*k, *v))
                .collect();
            if !kept.is_empty() {
                chosen.insert(name.clone(), kept);
            }
        }
        chosen
    }

    pub(in crate::wire::prometheus) fn models() -> impl Strategy<Value = Model> {
        let samples = prop::collection::btree_map((any::<bool>(), 0i64..50), any::<u32>(), 0..40);
        prop::collection::btree_map("[ab]{1,2}", samples, 0..6)
    }

    fn range(start: i64, end: i64) -> TimeRange {
        TimeRange::clamped(start, end)
    }

    proptest! {
        #[test]
        fn news_count_where_they_are_known(
            old in models(),
            new in models(),
            news in prop::collection::vec((0i64..60, 0i64..20), 0..4),
            span in (0i64..30, 0i64..40),
        ) {
            let news: RangeSet = news.iter().map(|(s, l)| range(*s, s + l)).collect();
            let span = range(span.0, span.0 + span.1);
            let merged = merge(&series(&old), &series(&new), &news, &span);
            let known = |t| news.iter().any(|r| r.holds(t));
            let mut model = chosen(&old, |t| span.holds(t) && !known(t));
            for (name, samples) in chosen(&new, |t| span.holds(t) && known(t)) {
                model.entry(name).or_default().extend(samples);
            }
            prop_assert_eq!(texts(&merged), texts(&series(&model)));
            for track in merged.iter().flat_map(|s| [&s.values, &s.histograms]) {
                prop_assert!(track.times().is_sorted_by(|a, b| a < b));
                let whole = track.slice(0..track.len());
                prop_assert_eq!(track.cut(&TimeRange::ALL), whole.clone());
                let each: Vec<_> = (0..track.len()).map(|i| track.slice(i..i + 1)).collect();
                prop_assert_eq!(whole, each.join(&b","[..]));
            }
        }

        #[test]
        fn each_nth_step_is_kept(model in models(), step in 1i64..9, phase in -20i64..20) {
            let thinned = thin(&series(&model), Step::new(step).unwrap(), phase);
            let expected = chosen(&model, |t| (t - phase) % step == 0);
            prop_assert_eq!(texts(&thinned), texts(&series(&expected)));
        }
    }

    #[test]
    fn a_cut_shares_memory_and_is_half_open() {
        let model = Model::from([(
            "a".to_owned(),
            (1..5).map(|t| ((false, t * 10), 7)).collect(),
        )]);
        let track = &series(&model)[0].values;
        assert_eq!(track.cut(&range(10, 30)), "[10,\"7\"],[20,\"7\"]");
        assert_eq!(track.cut(&range(11, 40)), "[20,\"7\"],[30,\"7\"]");
        assert_eq!(track.cut(&range(41, 99)), "");
        assert_eq!(track.slice(1..9), "");
        let at = |b: &Bytes| b.as_ptr() as usize;
        assert_eq!(at(&track.cut(&range(10, 11))), at(&track.text));
        assert!(heap_bytes(&series(&model)) > 4 * (8 + 4 + 8));
    }

    #[test]
    fn what_is_merged_does_not_hold_the_answer() {
        let model = Model::from([("a".to_owned(), BTreeMap::from([((false, 10), 7)]))]);
        let new = series(&model);
        let merged = merge(&[], &new, &range(0, 20).into(), &range(0, 20));
        assert_ne!(merged[0].values.text.as_ptr(), new[0].values.text.as_ptr());
    }
}
