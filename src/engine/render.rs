//! A chunk's points as ready JSON, so that an answer is made of slices.

use std::ops::Range;
use std::sync::OnceLock;

use bytes::Bytes;

use crate::model::{Layout, Millis, Points, TimeRange};
use crate::wire::encoding::{Encoding, PackedText, Text};
use crate::wire::number::{read_point, read_time};
use crate::wire::point_writer::PointWriter;

/// Number of neighbouring points that are packed together. At the ends of an answer up to one block
/// less a point stays plain; smaller blocks pack worse.
pub const BLOCK: usize = 128;

/// The cost of packing a point, relative to rendering it.
const PACKING: usize = 16;

/// The packed blocks of a text, each packed when first asked for; `None` where that makes it no
/// smaller.
type Blocks = Box<[OnceLock<Option<PackedText>>]>;

/// Points as JSON, a comma after each, and where each starts.
#[derive(Debug, Default)]
pub struct Rendered {
    text: Bytes,
    /// The offset of each point, and of one after the last.
    offsets: Vec<u32>,
    gzip: OnceLock<Blocks>,
    zstd: OnceLock<Blocks>,
}

impl Rendered {
    /// Renders `points`. A text of 4 GiB or more, which no chunk comes near, is cut there.
    pub fn of(points: &Points, layout: Layout) -> Self {
        Self::written(&[], &[0], points, layout)
    }

    /// Renders `points`, the first `same` of which are the ones rendered here.
    pub(crate) fn followed(&self, same: usize, points: &Points, layout: Layout) -> Self {
        let same = same.min(self.len()).min(points.len());
        let offsets = self.offsets.get(..=same).unwrap_or(&[0]);
        let end = offsets.last().map_or(0, |end| *end as usize);
        let text = self.text.get(..end).unwrap_or_default();
        let followed = Self::written(text, offsets, points, layout);
        for encoding in [Encoding::Gzip, Encoding::Zstd] {
            if let Some(old) = self.packed(encoding).and_then(OnceLock::get) {
                let new = followed.blocks(encoding);
                for (new, old) in new.iter().zip(old).take(same / BLOCK) {
                    if let Some(packed) = old.get() {
                        let _ = new.set(packed.clone());
                    }
                }
            }
        }
        followed
    }

    /// Continues where `head`, the text of the first points, and its offsets end.
    fn written(head: &[u8], starts: &[u32], points: &Points, layout: Layout) -> Self {
        let done = starts.len().saturating_sub(1);
        let more = points.len().saturating_sub(done);
        let mut offsets = Vec::with_capacity(starts.len() + more);
        offsets.extend_from_slice(starts);
        let mut writer = PointWriter::after(head, more);
        let times = points.times().get(done..).unwrap_or_default();
        for (time, value) in times
            .iter()
            .zip(points.values().get(done..).unwrap_or_default())
        {
            match layout {
                Layout::Raw => writer.point(*time, *value),
                Layout::Buckets { size, .. } => writer.bucket(*time, size, *value),
            }
            match u32::try_from(writer.length()) {
                Ok(offset) => offsets.push(offset),
                Err(_) => break,
            }
        }
        let text = writer.text();
        Self {
            text: Bytes::from(text.into_boxed_slice()),
            offsets,
            ..Self::default()
        }
    }

    /// Returns the place of the blocks of `encoding`; `None` for no encoding.
    fn packed(&self, encoding: Encoding) -> Option<&OnceLock<Blocks>> {
        match encoding {
            Encoding::Identity => None,
            Encoding::Gzip => Some(&self.gzip),
            Encoding::Zstd => Some(&self.zstd),
        }
    }

    fn blocks(&self, encoding: Encoding) -> &[OnceLock<Option<PackedText>>] {
        let blocks = self.len().div_ceil(BLOCK);
        let none = || (0..blocks).map(|_| OnceLock::new()).collect();
        self.packed(encoding)
            .map_or(&[], |kept| kept.get_or_init(none))
    }

    /// Returns the number of points.
    pub(crate) fn len(&self) -> usize {
        self.offsets.len().saturating_sub(1)
    }

    /// Reads the points from their text, to the bit.
    pub(crate) fn points(&self) -> Points {
        let mut points = Points::with_capacity(self.len());
        let starts = self.offsets.get(..self.len()).unwrap_or_default();
        for start in starts {
            let text = self.text.get(*start as usize..).unwrap_or_default();
            if let Some((time, value)) = read_point(text) {
                points.push(time, value);
            }
        }
        points
    }

    /// Returns the positions of the points that lie in `range`, read from the text: the points
    /// themselves may be packed.
    pub(crate) fn within(&self, range: &TimeRange) -> Range<usize> {
        let before = |t: Millis| {
            self.offsets
                .get(..self.len())
                .unwrap_or_default()
                .partition_point(|&at| {
                    let point = self.text.get(at as usize..).unwrap_or_default();
                    read_time(point).is_some_and(|time| time < t)
                })
        };
        before(range.start())..before(range.end())
    }

    /// Returns the points at `at`, each with a comma after it except the `last` of an answer;
    /// shares the memory of the chunk's text.
    pub fn slice(&self, at: Range<usize>, last: bool) -> Bytes {
        let offset = |i: usize| self.offsets.get(i).map(|o| *o as usize);
        match (offset(at.start), offset(at.end)) {
            (Some(start), Some(end)) if start < end => {
                self.text.slice(start..end - usize::from(last))
            }
            _ => Bytes::new(),
        }
    }

    /// Returns the blocks whose points are all at `at` and, for the `last` slice of an answer, have
    /// another point after them: the last point of an answer has no comma, and a packed block ends
    /// with one.
    fn whole_blocks(&self, at: &Range<usize>, last: bool) -> Range<usize> {
        let end = at.end - usize::from(last && at.end > at.start);
        let blocks = if end == self.len() {
            end.div_ceil(BLOCK)
        } else {
            end / BLOCK
        };
        let first = at.start.div_ceil(BLOCK);
        first..blocks.max(first)
    }

    /// Returns the cost of adding the points at `at` to an answer, for the `last` slice or one
    /// before it, measured in points that are rendered.
    pub(crate) fn packing_cost(&self, at: &Range<usize>, last: bool, encoding: Encoding) -> usize {
        if encoding == Encoding::Identity {
            return 0;
        }
        let blocks = self.blocks(encoding);
        let blocks = blocks.get(self.whole_blocks(at, last)).unwrap_or_default();
        let missing = blocks.iter().filter(|b| b.get().is_none());
        missing.count() * BLOCK * PACKING
    }

    /// Adds the points at `at` to `parts`, as [`Rendered::slice`] has them, packed where whole
    /// blocks are.
    pub(crate) fn add_to(
        &self,
        parts: &mut impl Extend<Text>,
        at: Range<usize>,
        last: bool,
        encoding: Encoding,
    ) {
        let whole = self.whole_blocks(&at, last);
        let blocks = self.blocks(encoding).get(whole.clone());
        let mut done = at.start;
        for (index, block) in whole.zip(blocks.unwrap_or_default()) {
            let points = index * BLOCK..((index + 1) * BLOCK).min(self.len());
            let text = || self.slice(points.clone(), false);
            let packed = block.get_or_init(|| encoding.pack(&text()));
            if let Some(packed) = packed {
                if done < points.start {
                    let before = self.slice(done..points.start, false);
                    parts.extend([Text::Plain(before)]);
                }
                parts.extend([Text::Packed(packed.clone())]);
                done = points.end;
            }
        }
        if done < at.end {
            parts.extend([Text::Plain(self.slice(done..at.end, last))]);
        }
    }

    /// Returns the bytes that it holds.
    pub fn heap_bytes(&self) -> usize {
        let packed = [&self.gzip, &self.zstd]
            .into_iter()
            .filter_map(OnceLock::get);
        let packed = packed.map(|blocks| {
            let kept = blocks.iter().filter_map(|b| b.get()?.as_ref());
            size_of_val::<[_]>(blocks) + kept.map(PackedText::heap_bytes).sum::<usize>()
        });
        self.text.len() + self.offsets.capacity() * size_of::<u32>() + packed.sum::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Statistic, Step};
    use proptest::prelude::*;

    fn minutes() -> Layout {
        Layout::Buckets {
            statistic: Statistic::Mean,
            size: Step::new(10).unwrap(),
        }
    }

    #[test]
    fn slices_are_points_with_commas_between() {
        let points = Points::from_unsorted(vec![(10, 1.5), (20, -2.0), (30, 1e300)]);
        let raw = Rendered::of(&points, Layout::Raw);
        assert_eq!(raw.slice(0..3, true), "[1.5,10],[-2.0,20],[1e+300,30]");
        assert_eq!(raw.slice(1..2, false), "[-2.0,20],");
        assert_eq!(raw.slice(1..1, true), "");
        assert_eq!(raw.slice(2..9, true), "");
        let buckets = Rendered::of(&points, minutes());
        assert_eq!(buckets.slice(0..2, true), "[1.5,10,20],[-2.0,20,30]");
    }

    proptest! {
        #[test]
        fn packed_answers_say_what_plain_ones_say(
            count in 0usize..700,
            more in 0usize..300,
            cuts in (0.0f64..1.0, 0.0f64..1.5),
            last in any::<bool>(),
            encoding in prop::sample::select(vec![Encoding::Identity, Encoding::Gzip, Encoding::Zstd]),
        ) {
            let point = |i: usize| (i as i64 * 10, (i * 7919 % 1000) as f64 / 10.0);
            let points = |n: usize| Points::from_unsorted((0..n).map(point).collect());
            let first = Rendered::of(&points(count), minutes());
            first.add_to(&mut Vec::new(), 0..count, false, encoding);
            let text = first.followed(count, &points(count + more), minutes());
            let n = (count + more) as f64;
            let (a, b) = ((cuts.0 * n) as usize, (cuts.1.min(1.0) * n) as usize);
            let at = a.min(b)..a.max(b);
            let mut parts = Vec::new();
            text.add_to(&mut parts, at.clone(), last, encoding);
            if encoding != Encoding::Identity && at.len() > 2 * BLOCK {
                prop_assert!(parts.iter().any(|p| matches!(p, Text::Packed(_))));
                let kept = 0..count / BLOCK * BLOCK;
                prop_assert_eq!(text.packing_cost(&kept, false, encoding), 0);
            }
            // What has been answered costs nothing when it is asked for again.
            prop_assert_eq!(text.packing_cost(&at, last, encoding), 0);
            let body = encoding.join(parts).concat();
            let body = match encoding {
                Encoding::Identity => body,
                Encoding::Gzip => {
                    let mut text = Vec::new();
                    std::io::copy(&mut flate2::read::GzDecoder::new(&body[..]), &mut text).unwrap();
                    text
                }
                Encoding::Zstd => zstd::stream::decode_all(&body[..]).unwrap(),
            };
            prop_assert_eq!(body, text.slice(at, last));
        }

        #[test]
        fn what_was_rendered_before_is_rendered_the_same(
            old in prop::collection::vec((0i64..100, -1e9f64..1e9), 0..20),
            new in prop::collection::vec((100i64..200, -1e9f64..1e9), 0..20),
            same in 0usize..25,
            start in -10i64..210,
            length in 0i64..210,
        ) {
            for layout in [Layout::Raw, minutes()] {
                let old = Points::from_unsorted(old.clone());
                let kept = old.iter().take(same);
                let all = Points::from_unsorted(kept.chain(new.clone()).collect());
                let whole = Rendered::of(&all, layout);
                let followed = Rendered::of(&old, layout).followed(same, &all, layout);
                prop_assert_eq!(&followed.text, &whole.text);
                prop_assert_eq!(&followed.offsets, &whole.offsets);
                let bits = |p: &Points| p.values().iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                let read = whole.points();
                prop_assert_eq!(read.times(), all.times());
                prop_assert_eq!(bits(&read), bits(&all));
                let range = TimeRange::new(start, start + length).unwrap();
                prop_assert_eq!(whole.within(&range), all.within(&range));
            }
        }
    }
}
