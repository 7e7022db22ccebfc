//! The data of a chunk: points, their text, or series.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::OnceLock;

use super::chunk::Frame;
use super::columns::{Columns, Runs};
use super::render::Rendered;
use crate::adapters::LabeledSeries;
use crate::model::{Layout, Points, RangeSet, TimeRange};
use crate::wire::encoding::Encoding;
use crate::wire::prometheus;

/// The bytes of points besides those of columns and text: the rest of blocks, as the allocator rounds.
const BLOCKS: usize = 190;

/// The data of a chunk.
#[derive(Debug)]
pub(super) enum Content {
    /// Points, and their text once it has been asked for.
    Points {
        /// The points.
        columns: Columns,
        /// Their text.
        rendered: OnceLock<Rendered>,
    },
    /// Buckets that have settled. They are read from their text in the rare case that more than the
    /// text is needed, so nothing has to be packed.
    Text {
        /// Their times, if these are few runs.
        runs: Option<Runs>,
        /// Their text.
        rendered: Rendered,
    },
    /// Series, which are slices of their text from the beginning.
    Matrix(LabeledSeries),
}

impl Default for Content {
    fn default() -> Self {
        Self::Points {
            columns: Columns::default(),
            rendered: OnceLock::new(),
        }
    }
}

impl Content {
    /// Returns the points of `old`, replaced by `points` in the ranges `news`.
    pub(super) fn of_points(
        old: Option<&Self>,
        points: &Points,
        news: &RangeSet,
        frame: &Frame,
        settled: bool,
    ) -> Self {
        let span = &frame.span;
        let old_points = old.map_or(Cow::Owned(Points::new()), Self::points);
        let points = spliced(&old_points, points, news, span);
        let text = if let Some(text) = old.and_then(Self::text) {
            // A lane that was answered from will be answered from again: only what is new is
            // rendered.
            let changed = news.iter().next().map_or(span.end(), TimeRange::start);
            let same = old_points.within(&TimeRange::clamped(span.start(), changed));
            Some(text.followed(same.end, &points, frame.layout))
        } else if frame.layout != Layout::Raw {
            // Buckets are made to be answered: their text is made before they are weighed.
            Some(Rendered::of(&points, frame.layout))
        } else {
            None
        };
        match text {
            Some(rendered) if settled && frame.layout != Layout::Raw => Self::Text {
                runs: Runs::of(points.times()),
                rendered,
            },
            text => Self::Points {
                columns: Columns::of(points, settled),
                rendered: text.map_or_else(OnceLock::new, OnceLock::from),
            },
        }
    }

    /// Returns the samples of `old`, replaced by those of `matrix` in the ranges `news`.
    pub(super) fn of_series(
        old: Option<&Self>,
        matrix: &LabeledSeries,
        news: &RangeSet,
        span: &TimeRange,
    ) -> Self {
        let old = old.and_then(Self::matrix);
        let mut annotations = matrix.annotations.clone();
        if let Some(old) = old {
            annotations.add(&old.annotations);
        }
        let old = old.map_or(&[][..], |m| &m.series);
        Self::Matrix(LabeledSeries {
            series: prometheus::merge(old, &matrix.series, news, span),
            annotations,
        })
    }

    /// Returns the points, read for the caller unless they are there as such; none of a matrix.
    pub(super) fn points(&self) -> Cow<'_, Points> {
        match self {
            Self::Points { columns, .. } => columns.points(),
            Self::Text { rendered, .. } => Cow::Owned(rendered.points()),
            Self::Matrix(_) => Cow::Owned(Points::new()),
        }
    }

    /// Returns the series, if there are any with labels.
    pub(super) fn matrix(&self) -> Option<&LabeledSeries> {
        match self {
            Self::Points { .. } | Self::Text { .. } => None,
            Self::Matrix(matrix) => Some(matrix),
        }
    }

    /// Returns the number of points.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Points { columns, .. } => columns.len(),
            Self::Text { rendered, .. } => rendered.len(),
            Self::Matrix(_) => 0,
        }
    }

    /// Returns the positions of the points that lie in `range`.
    pub(super) fn within(&self, range: &TimeRange) -> Range<usize> {
        match self {
            Self::Points { columns, rendered } => {
                let rendered = || Some(rendered.get()?.within(range));
                let columns = columns.within(range).or_else(rendered);
                columns.unwrap_or_else(|| self.points().within(range))
            }
            Self::Text {
                runs: Some(runs), ..
            } => runs.within(range),
            Self::Text { rendered, .. } => rendered.within(range),
            Self::Matrix(_) => 0..0,
        }
    }

    /// Returns the text of the points, if there is one already.
    fn text(&self) -> Option<&Rendered> {
        match self {
            Self::Points { rendered, .. } => rendered.get(),
            Self::Text { rendered, .. } => Some(rendered),
            Self::Matrix(_) => None,
        }
    }

    /// Returns the points as JSON, rendered on the first request.
    pub(super) fn rendered(&self, layout: Layout) -> Option<&Rendered> {
        match self {
            Self::Points { columns, rendered } => {
                Some(rendered.get_or_init(|| Rendered::of(&columns.points(), layout)))
            }
            Self::Text { rendered, .. } => Some(rendered),
            Self::Matrix(_) => None,
        }
    }

    /// Returns the work left, as [`Chunk::rendering_cost`](super::chunk::Chunk) has it.
    pub(super) fn rendering_cost(
        &self,
        at: &Range<usize>,
        last: bool,
        encoding: Encoding,
    ) -> usize {
        match (self, self.text()) {
            (_, Some(text)) => text.packing_cost(at, last, encoding),
            (Self::Points { columns, .. }, None) => columns.len(),
            (Self::Text { .. } | Self::Matrix(_), None) => 0,
        }
    }

    /// Returns the bytes that it holds on the heap.
    pub(super) fn heap_bytes(&self) -> usize {
        let text = self.text().map_or(0, Rendered::heap_bytes);
        match self {
            Self::Points { columns, .. } => columns.heap_bytes() + text + BLOCKS,
            Self::Text { runs, .. } => runs.as_ref().map_or(0, Runs::heap_bytes) + text + BLOCKS,
            Self::Matrix(matrix) => {
                prometheus::heap_bytes(&matrix.series) + matrix.annotations.heap_bytes()
            }
        }
    }
}

/// Returns the points of `span`: those of `new` in the ranges `news`, those of `old` elsewhere.
pub(super) fn spliced(old: &Points, new: &Points, news: &RangeSet, span: &TimeRange) -> Points {
    let mut points = Points::with_capacity(old.len() + new.len());
    let mut at = span.start();
    for range in news.iter() {
        points.extend(old, old.within(&TimeRange::clamped(at, range.start())));
        points.extend(new, new.within(range));
        at = range.end();
    }
    points.extend(old, old.within(&TimeRange::clamped(at, span.end())));
    points.shrink();
    points
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Statistic, Step};
    use proptest::prelude::*;
    use std::time::Duration;

    fn frame(layout: Layout) -> Frame {
        Frame {
            span: TimeRange::clamped(0, 100_000),
            layout,
            grain: Duration::from_secs(1),
        }
    }

    fn buckets() -> Layout {
        Layout::Buckets {
            statistic: Statistic::Mean,
            size: Step::new(10).unwrap(),
        }
    }

    proptest! {
        #[test]
        fn settled_buckets_are_what_they_were_before(
            first in prop::collection::vec((0i64..600, any::<u64>()), 0..200),
            second in prop::collection::vec((0i64..600, any::<u64>()), 0..200),
            line in 0i64..6000,
            start in -10i64..6010,
            length in 0i64..6010,
        ) {
            let points = |pairs: Vec<(i64, u64)>| {
                let mut pairs: Vec<_> = pairs.into_iter().map(|(t, bits)| (t * 10, f64::from_bits(bits))).collect();
                pairs.sort_by_key(|p| p.0);
                pairs.dedup_by_key(|p| p.0);
                Points::from_unsorted(pairs)
            };
            let bits = |p: &Points| -> Vec<_> { p.iter().map(|(t, v)| (t, v.to_bits())).collect() };
            let frame = frame(buckets());
            let all = RangeSet::from(frame.span);
            let news = RangeSet::from(TimeRange::clamped(line, frame.span.end()));
            let (first, second) = (points(first), points(second));
            // Settled or not, the data is the same; and so is that of what both become.
            let [open, text] = [false, true].map(|settled| Content::of_points(None, &first, &all, &frame, settled));
            let is_text = [&open, &text].map(|content| matches!(content, Content::Text { .. }));
            prop_assert_eq!(is_text, [false, true]);
            let [later, followed] = [&open, &text].map(|old| Content::of_points(Some(old), &second, &news, &frame, false));
            let range = TimeRange::clamped(start, start + length);
            for (one, other) in [(&open, &text), (&later, &followed)] {
                prop_assert_eq!(one.len(), other.len());
                prop_assert_eq!(bits(&one.points()), bits(&other.points()));
                prop_assert_eq!(one.within(&range), other.within(&range));
                let [one, other] = [one, other].map(|c| c.rendered(buckets()).unwrap().slice(0..c.len(), true));
                prop_assert_eq!(one, other);
            }
        }
    }

    #[test]
    fn settled_buckets_take_their_text_and_settled_points_are_packed() {
        let pairs = (0..1000).map(|i| (i * 10, i as f64 / 100.0)).collect();
        let points = Points::from_unsorted(pairs);
        let all = RangeSet::from(TimeRange::clamped(0, 100_000));
        let bytes = |layout, settled| {
            let content = Content::of_points(None, &points, &all, &frame(layout), settled);
            content.heap_bytes()
        };
        let text = Rendered::of(&points, buckets()).heap_bytes();
        assert_eq!(bytes(buckets(), false), text + BLOCKS + 16_000);
        assert!(bytes(buckets(), true) <= text + BLOCKS + 100);
        assert!(bytes(Layout::Raw, true) < BLOCKS + 3000);
    }
}
