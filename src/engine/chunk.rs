//! Chunks: a fixed span of a lane, its points, and what is known of which part of it.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::content::{Content, spliced};
use super::plan::of_range;
use super::render::Rendered;
use crate::adapters::{Data, LabeledSeries};
use crate::model::{Layout, Millis, Points, RangeSet, Step, TimeRange};
use crate::wire::encoding::Encoding;
use crate::wire::prometheus;

/// A part of a chunk with one fetch time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The range that is known.
    pub range: TimeRange,
    /// When its fetch began, by the monotonic clock.
    pub fetched: Duration,
    /// Set if the data can no longer change.
    pub settled: bool,
}

impl Segment {
    /// Returns whether this one, and not `other`, counts where both cover the same time: settled
    /// data before data that may still change, then the data that was fetched later. The age of
    /// settled data is only that of its oldest part, so it does not tell which came first.
    fn outranks(&self, other: &Self) -> bool {
        (self.settled, self.fetched) > (other.settled, other.fetched)
    }
}

/// Data of a range, with what is known of it: the result of a fetch or a derivation.
#[derive(Clone, Debug)]
pub struct Piece {
    /// All data that exists in its segments.
    pub data: Data,
    /// Ascending and disjoint.
    pub segments: Vec<Segment>,
}

impl Piece {
    /// Returns a piece that was fetched at `fetched` and is settled up to `settled_before`, which
    /// is rounded down to the grid of `cell`: a bucket is settled when all of it is.
    pub fn fetched(
        data: Data,
        range: TimeRange,
        fetched: Duration,
        settled_before: Millis,
        cell: Step,
    ) -> Self {
        let line = cell.floor(settled_before);
        let segments = [
            (
                TimeRange::clamped(range.start(), range.end().min(line)),
                true,
            ),
            (
                TimeRange::clamped(range.start().max(line), range.end()),
                false,
            ),
        ];
        let segments = segments
            .into_iter()
            .filter(|(range, _)| !range.is_empty())
            .map(|(range, settled)| Segment {
                range,
                fetched,
                settled,
            });
        Self {
            data,
            segments: segments.collect(),
        }
    }

    /// Returns this piece and `other` combined, by the rules of [`Chunk::merged`].
    pub(crate) fn joined(&self, other: &Self, grain: Duration) -> Self {
        let (Some(mine), Some(theirs)) = (self.hull(), other.hull()) else {
            return match self.segments.is_empty() {
                true => other.clone(),
                false => self.clone(),
            };
        };
        let span = mine.hull(&theirs);
        let (segments, news) = combined(&self.segments, &other.segments, &span, grain);
        let data = match (&self.data, &other.data) {
            (Data::Points(old), Data::Points(new)) => Data::Points(spliced(old, new, &news, &span)),
            (Data::Matrix(old), Data::Matrix(new)) => {
                let mut annotations = old.annotations.clone();
                annotations.add(&new.annotations);
                Data::Matrix(LabeledSeries {
                    series: prometheus::merge(&old.series, &new.series, &news, &span),
                    annotations,
                })
            }
            // Pieces of one lane are of one kind.
            (_, new) => new.clone(),
        };
        Self { data, segments }
    }

    /// Returns the part of it that lies in `ranges` and in segments that satisfy `wanted`.
    pub(crate) fn within(&self, ranges: &RangeSet, wanted: impl Fn(&Segment) -> bool) -> Self {
        let mut segments = Vec::new();
        for segment in self.segments.iter().filter(|s| wanted(s)) {
            let parts = ranges.iter().filter_map(|r| r.intersection(&segment.range));
            segments.extend(parts.map(|range| Segment { range, ..*segment }));
        }
        let kept: RangeSet = segments.iter().map(|s| s.range).collect();
        let data = match &self.data {
            Data::Points(points) => {
                let mut some = Points::new();
                for range in kept.iter() {
                    some.extend(points, points.within(range));
                }
                Data::Points(some)
            }
            Data::Matrix(matrix) => {
                let span = self.hull().unwrap_or(TimeRange::clamped(0, 0));
                Data::Matrix(LabeledSeries {
                    series: prometheus::merge(&[], &matrix.series, &kept, &span),
                    annotations: matrix.annotations.clone(),
                })
            }
        };
        Self { data, segments }
    }

    /// Returns the range from the first segment to the last.
    pub(crate) fn hull(&self) -> Option<TimeRange> {
        let first = self.segments.first()?.range;
        Some(first.hull(&self.segments.last()?.range))
    }
}

/// The properties of a lane that a chunk depends on.
#[derive(Clone, Copy, Debug)]
pub struct Frame {
    /// The time that it spans.
    pub span: TimeRange,
    /// The layout of its lane.
    pub layout: Layout,
    /// The largest difference between the ages of settled neighbours that are joined into one
    /// segment.
    pub grain: Duration,
}

/// A part of a lane. It never changes: new data makes a new chunk.
#[derive(Debug, Default)]
pub struct Chunk {
    content: Content,
    /// Ascending and disjoint.
    coverage: Vec<Segment>,
    /// Number of answers made of it.
    answered: AtomicU64,
}

impl Chunk {
    /// Returns its points, unpacked for the caller if they are packed; none of a matrix.
    pub(crate) fn points(&self) -> Cow<'_, Points> {
        self.content.points()
    }

    /// Returns its series, if it holds any with labels.
    pub(crate) fn matrix(&self) -> Option<&LabeledSeries> {
        self.content.matrix()
    }

    /// Returns a copy of its data.
    pub(crate) fn data(&self) -> Data {
        match self.matrix() {
            None => Data::Points(self.points().into_owned()),
            Some(matrix) => Data::Matrix(matrix.clone()),
        }
    }

    /// Returns the number of points.
    pub(crate) fn len(&self) -> usize {
        self.content.len()
    }

    /// Returns the positions of the points that lie in `range`.
    pub(crate) fn within(&self, range: &TimeRange) -> Range<usize> {
        self.content.within(range)
    }

    pub(crate) fn coverage(&self) -> &[Segment] {
        &self.coverage
    }

    /// Returns the points as JSON, rendered on the first request.
    pub fn rendered(&self, layout: Layout) -> Option<&Rendered> {
        self.content.rendered(layout)
    }

    /// Returns the work left before the points at `at` can be the `last` slice of an answer in
    /// `encoding`, or one before it, measured in points that are rendered; 0 if there is none.
    pub(crate) fn rendering_cost(
        &self,
        at: &Range<usize>,
        last: bool,
        encoding: Encoding,
    ) -> usize {
        self.content.rendering_cost(at, last, encoding)
    }

    /// Returns the bytes that it holds.
    pub(crate) fn weight(&self) -> usize {
        let coverage = self.coverage.capacity() * size_of::<Segment>();
        size_of::<Self>() + self.content.heap_bytes() + coverage
    }

    /// Returns whether it covers all that `other`, of the same span, covers, and in the same or a
    /// better state: then it is what both merge to.
    pub(crate) fn supersedes(&self, other: &Self) -> bool {
        let known: RangeSet = self.coverage.iter().map(|s| s.range).collect();
        let worse = |theirs: &Segment| {
            let mut ours = of_range(&self.coverage, &theirs.range).iter();
            ours.any(|o| theirs.outranks(o))
        };
        let mut theirs = other.coverage.iter();
        theirs.all(|s| known.covers(&s.range) && !worse(s))
    }

    /// Merges `old` and `piece` of one span. Where both cover a time, settled data and then the
    /// data that was fetched later counts, so the order in which fetches end does not matter.
    pub fn merged(old: Option<&Self>, piece: &Piece, frame: &Frame) -> Self {
        let span = &frame.span;
        let known = old.map_or(&[][..], |c| &c.coverage);
        let (coverage, news) = combined(known, &piece.segments, span, frame.grain);
        let settled = coverage.iter().all(|s| s.settled);
        let held = old.map(|c| &c.content);
        let content = match &piece.data {
            Data::Points(points) => Content::of_points(held, points, &news, frame, settled),
            Data::Matrix(matrix) => Content::of_series(held, matrix, &news, span),
        };
        Self {
            content,
            coverage,
            answered: AtomicU64::new(old.map_or(0, Self::answered)),
        }
    }

    /// Returns the chunk with `range` cut out; `None` if nothing remains.
    pub(crate) fn without(&self, range: &TimeRange, frame: &Frame) -> Option<Self> {
        let gone: RangeSet = range.intersection(&frame.span).into_iter().collect();
        let mut coverage = Vec::with_capacity(self.coverage.len() + 1);
        for segment in &self.coverage {
            for range in gone.missing_from(segment.range).iter() {
                coverage.push(Segment {
                    range: *range,
                    ..*segment
                });
            }
        }
        let settled = coverage.iter().all(|s| s.settled);
        let (held, nothing) = (Some(&self.content), LabeledSeries::default());
        let content = match self.matrix() {
            None => Content::of_points(held, &Points::new(), &gone, frame, settled),
            Some(_) => Content::of_series(held, &nothing, &gone, &frame.span),
        };
        (!coverage.is_empty()).then(|| Self {
            content,
            coverage,
            answered: AtomicU64::new(self.answered()),
        })
    }

    /// Returns the number of answers made of it and of the chunks that it replaced.
    pub(crate) fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// Counts an answer.
    pub(crate) fn count_answer(&self) {
        self.answered.fetch_add(1, Ordering::Relaxed);
    }
}

/// Combines the segments `known` and `segments` of `span`; returns the result, and the ranges in
/// which the latter count.
fn combined(
    known: &[Segment],
    segments: &[Segment],
    span: &TimeRange,
    grain: Duration,
) -> (Vec<Segment>, RangeSet) {
    let mut coverage: Vec<Segment> = Vec::with_capacity(known.len() + 2);
    let mut news = RangeSet::new();
    for segment in segments {
        let Some(range) = segment.range.intersection(span) else {
            continue;
        };
        let later = of_range(known, &range)
            .iter()
            .filter(|k| k.outranks(segment));
        let later: RangeSet = later.map(|k| k.range).collect();
        for range in later.missing_from(range).iter() {
            news.insert(*range);
            coverage.push(Segment {
                range: *range,
                ..*segment
            });
        }
    }
    for segment in known {
        for range in news.missing_from(segment.range).iter() {
            coverage.push(Segment {
                range: *range,
                ..*segment
            });
        }
    }
    (joined(coverage, grain), news)
}

/// Returns `segments` in order, with neighbours of one state and one age joined. Ages of settled
/// neighbours may differ by `grain`: they count as the elder, so that neither is kept too long.
fn joined(mut segments: Vec<Segment>, grain: Duration) -> Vec<Segment> {
    segments.sort_unstable_by_key(|s| s.range.start());
    let mut joined: Vec<Segment> = Vec::with_capacity(segments.len());
    for segment in segments {
        let alike = |last: &Segment| {
            let apart = last.fetched.abs_diff(segment.fetched);
            last.range.end() == segment.range.start()
                && last.settled == segment.settled
                && (apart.is_zero() || (last.settled && apart <= grain))
        };
        match joined.last_mut() {
            Some(last) if alike(last) => {
                last.range = last.range.hull(&segment.range);
                last.fetched = last.fetched.min(segment.fetched);
            }
            _ => joined.push(segment),
        }
    }
    joined.shrink_to_fit();
    joined
}

/// Returns the segments of the buckets of `size` in `range`, given the segments of the raw points
/// they are made of: a bucket is settled if all its parts are; it is as old as the oldest of the
/// parts that may still change or, if none may, as the oldest of all. A bucket with an unknown part
/// is unknown.
pub(crate) fn derived(raw: &[Segment], size: Step, range: &TimeRange) -> Vec<Segment> {
    let known: RangeSet = raw.iter().map(|s| s.range).collect();
    // Between two of these lines all buckets lie in the same raw segments.
    let mut lines: Vec<Millis> = vec![range.start(), range.end()];
    for segment in raw {
        for line in [segment.range.start(), segment.range.end()] {
            lines.extend([size.floor(line), size.ceil(line)]);
        }
    }
    lines.retain(|line| (range.start()..=range.end()).contains(line));
    lines.sort_unstable();
    lines.dedup();
    let spans = lines.iter().zip(lines.iter().skip(1));
    let segments = spans.filter_map(|(&start, &end)| {
        let span = TimeRange::clamped(start, end);
        if !known.covers(&span) {
            return None;
        }
        let parts = || of_range(raw, &span).iter();
        let open = parts().filter(|s| !s.settled).map(|s| s.fetched).min();
        Some(Segment {
            range: span,
            fetched: open.or_else(|| parts().map(|s| s.fetched).min())?,
            settled: open.is_none(),
        })
    });
    joined(segments.collect(), Duration::ZERO)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(span: TimeRange) -> Frame {
        Frame {
            span,
            layout: Layout::Raw,
            grain: Duration::from_secs(10),
        }
    }

    fn range(start: i64, end: i64) -> TimeRange {
        TimeRange::new(start, end).unwrap()
    }

    fn segment(start: i64, end: i64, fetched: u64, settled: bool) -> Segment {
        Segment {
            range: range(start, end),
            fetched: Duration::from_secs(fetched),
            settled,
        }
    }

    fn piece(pairs: &[(i64, f64)], segments: &[Segment]) -> Piece {
        Piece {
            data: Data::Points(Points::from_unsorted(pairs.to_vec())),
            segments: segments.to_vec(),
        }
    }

    fn points(chunk: &Chunk) -> Vec<(i64, f64)> {
        chunk.points().iter().collect()
    }

    #[test]
    fn what_was_fetched_later_counts_in_either_order() {
        let span = frame(range(0, 100));
        let early = piece(
            &[(5, 1.0), (15, 1.0), (25, 1.0)],
            &[segment(0, 30, 1, false)],
        );
        let late = piece(&[(12, 2.0), (18, 2.0)], &[segment(10, 20, 2, false)]);
        let one = Chunk::merged(Some(&Chunk::merged(None, &early, &span)), &late, &span);
        let other = Chunk::merged(Some(&Chunk::merged(None, &late, &span)), &early, &span);
        assert_eq!(points(&one), [(5, 1.0), (12, 2.0), (18, 2.0), (25, 1.0)]);
        assert_eq!(points(&one), points(&other));
        let coverage = [
            segment(0, 10, 1, false),
            segment(10, 20, 2, false),
            segment(20, 30, 1, false),
        ];
        assert_eq!(one.coverage(), coverage);
        assert_eq!(other.coverage(), coverage);
        let early = Chunk::merged(None, &early, &span);
        let late = Chunk::merged(None, &late, &span);
        assert!(one.supersedes(&early) && one.supersedes(&late) && one.supersedes(&other));
        assert!(!early.supersedes(&late) && !late.supersedes(&early) && !early.supersedes(&one));
    }

    #[test]
    fn settled_data_counts_before_a_tail_however_old_it_looks() {
        let span = frame(range(0, 100));
        let tail = piece(&[(15, 1.0)], &[segment(10, 20, 5, false)]);
        let settled = piece(&[(15, 2.0)], &[segment(0, 20, 1, true)]);
        let one = Chunk::merged(Some(&Chunk::merged(None, &tail, &span)), &settled, &span);
        let other = Chunk::merged(Some(&Chunk::merged(None, &settled, &span)), &tail, &span);
        assert_eq!(points(&one), [(15, 2.0)]);
        assert_eq!(points(&other), [(15, 2.0)]);
        assert_eq!(one.coverage(), [segment(0, 20, 1, true)]);
        assert!(one.supersedes(&Chunk::merged(None, &tail, &span)));
        assert!(!Chunk::merged(None, &tail, &span).supersedes(&one));
    }

    #[test]
    fn settled_neighbours_of_about_one_age_are_one_segment() {
        let span = frame(range(0, 100));
        let whole = |fetched: [u64; 3]| {
            let at = |i: i64, f| piece(&[], &[segment(i * 10, i * 10 + 10, f, true)]);
            let pieces = [at(0, fetched[0]), at(1, fetched[1]), at(2, fetched[2])];
            let add = |chunk: Chunk, p: &Piece| Chunk::merged(Some(&chunk), p, &span);
            pieces
                .iter()
                .fold(Chunk::default(), add)
                .coverage()
                .to_vec()
        };
        assert_eq!(whole([5, 10, 15]), [segment(0, 30, 5, true)]);
        assert_eq!(
            whole([5, 15, 20]),
            [segment(0, 20, 5, true), segment(20, 30, 20, true)]
        );
    }

    #[test]
    fn points_outside_the_span_belong_to_another_chunk() {
        let whole = piece(&[(5, 1.0), (105, 1.0)], &[segment(0, 200, 1, true)]);
        let chunk = Chunk::merged(None, &whole, &frame(range(100, 200)));
        assert_eq!(points(&chunk), [(105, 1.0)]);
        assert_eq!(chunk.coverage(), [segment(100, 200, 1, true)]);
    }

    #[test]
    fn a_fetch_is_settled_up_to_the_line_and_buckets_only_whole() {
        let step = Step::new(10).unwrap();
        let fetched = Duration::from_secs(3);
        let piece = Piece::fetched(Data::default(), range(0, 100), fetched, 57, step);
        assert_eq!(
            piece.segments,
            [segment(0, 50, 3, true), segment(50, 100, 3, false)]
        );
        let old = Piece::fetched(Data::default(), range(0, 100), fetched, 500, step);
        assert_eq!(old.segments, [segment(0, 100, 3, true)]);
        let unsure = Piece::fetched(Data::default(), range(0, 100), fetched, Millis::MIN, step);
        assert_eq!(unsure.segments, [segment(0, 100, 3, false)]);
    }

    #[test]
    fn a_bucket_is_as_fresh_as_the_oldest_part_that_may_change() {
        let raw = [
            segment(0, 25, 1, true),
            segment(25, 47, 5, false),
            segment(50, 60, 7, false),
        ];
        let size = Step::new(10).unwrap();
        assert_eq!(
            derived(&raw, size, &range(0, 70)),
            [
                segment(0, 20, 1, true),
                segment(20, 40, 5, false),
                segment(50, 60, 7, false)
            ]
        );
    }
}
