//! Series as slices of the origin's own text.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

pub use super::track::Track;
use crate::model::{Millis, RangeSet, Step, TimeRange};
use crate::wire::encoding::Encoding;

/// The labels of a series.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metric {
    /// Names and values, sorted by name. Metrics are ordered as by `labels.Compare` in Prometheus,
    /// by which it sorts the series of a range query: bytewise, name by name and value by value.
    pub labels: Vec<(String, String)>,
    /// The JSON object that they were read from.
    pub text: Bytes,
}

impl Metric {
    /// Returns the metric with `labels`, which are sorted by name, as Prometheus writes it.
    pub fn of(labels: Vec<(String, String)>) -> Self {
        let mut text = String::from("{");
        for (name, value) in &labels {
            if text.len() > 1 {
                text.push(',');
            }
            for (part, after) in [(name, ":"), (value, "")] {
                for c in serde_json::Value::from(part.as_str()).to_string().chars() {
                    match c {
                        // As Go's encoder writes them.
                        '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                            text.push_str(&format!("\\u{:04x}", u32::from(c)));
                        }
                        _ => text.push(c),
                    }
                }
                text.push_str(after);
            }
        }
        text.push('}');
        Self {
            labels,
            text: text.into(),
        }
    }
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
    /// Returns the series of `metric` without samples.
    pub fn empty(metric: Arc<Metric>) -> Self {
        Self {
            metric,
            values: Track::default(),
            histograms: Track::default(),
        }
    }

    /// Returns whether it has no samples.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty() && self.histograms.is_empty()
    }

    /// Returns the times of all its samples, ascending.
    pub fn times(&self) -> Cow<'_, [Millis]> {
        match (self.values.times(), self.histograms.times()) {
            (times, []) | ([], times) => Cow::Borrowed(times),
            (values, histograms) => {
                let mut times = [values, histograms].concat();
                times.sort_unstable();
                times.dedup();
                Cow::Owned(times)
            }
        }
    }

    /// Adds the samples of `other` that `taken` selects by the times of both, and returns their
    /// number. This series must have no sample at any of those times.
    pub fn fill(
        &mut self,
        other: &Self,
        taken: impl Fn(&[Millis], &[Millis]) -> Vec<Range<usize>>,
    ) -> usize {
        let (values, histograms) = {
            let mine = self.times();
            let pick = |track: &Track| taken(&mine, track.times());
            (pick(&other.values), pick(&other.histograms))
        };
        let count = |runs: &[Range<usize>]| runs.iter().map(ExactSizeIterator::len).sum::<usize>();
        let added = count(&values) + count(&histograms);
        if !values.is_empty() {
            self.values = Track::woven(&self.values, &other.values, &values);
        }
        if !histograms.is_empty() {
            self.histograms = Track::woven(&self.histograms, &other.histograms, &histograms);
        }
        added
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

    /// Compares the labels. Their texts are usually equal, which is faster to check.
    pub fn order(&self, other: &Self) -> Ordering {
        let (a, b) = (&self.metric, &other.metric);
        if Arc::ptr_eq(a, b) || a.text == b.text {
            return Ordering::Equal;
        }
        a.labels.cmp(&b.labels)
    }
}

/// Returns the bytes of text that still have to be compressed before all of `series` can be served
/// in `encoding`.
pub fn unpacked_bytes(series: &[Series], encoding: Encoding) -> usize {
    let tracks = series.iter().flat_map(|s| [&s.values, &s.histograms]);
    let unpacked = tracks.filter(|t| t.kept(encoding).is_some_and(|kept| kept.get().is_none()));
    unpacked.map(|track| track.text.len()).sum()
}

/// Returns the number of heap bytes that `series` occupy.
pub fn heap_bytes(series: &[Series]) -> usize {
    size_of_val(series) + series.iter().map(Series::heap_bytes).sum::<usize>()
}

/// Returns the samples of `span`: in the ranges `news` those of `new`, elsewhere those of `old`.
/// Both lists are ordered by labels, and so is the result, which contains no series without samples
/// and shares no samples with either list.
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

/// Returns the samples whose times are `phase` plus a multiple of `step`: the answer to a query
/// with that step, made from one whose step divides it and whose phase is the same. Series without
/// such samples are left out.
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

    /// The samples by their labels, by whether they are histograms, and by time.
    type Model = BTreeMap<String, BTreeMap<(bool, Millis), u32>>;

    pub(in crate::wire::prometheus) fn series(model: &Model) -> Vec<Series> {
        let track = |samples: &BTreeMap<(bool, Millis), u32>, histograms: bool| {
            let (mut times, mut text, mut offsets) = (Vec::new(), String::new(), vec![0]);
            for ((_, t), v) in samples.iter().filter(|((h, _), _)| *h == histograms) {
                times.push(*t);
                text += &format!("[{t},\"{v}\"],");
                offsets.push(text.len() as u32);
            }
            // As in an answer, where no comma follows the last sample.
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

    /// Returns the text of every sample.
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
