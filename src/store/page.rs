//! Values as bytes: what is known of a span of a lane, since when, and its points.
//!
//! Reading is total: whatever the bytes are, they are a value or a reason why they are not.

use pco::ChunkConfig;
use pco::standalone::{simple_compress, simple_decompress, simple_decompress_into};

use super::key::{LaneName, Slot};
use crate::model::{MAX_TIME, Millis, Points, Step, TimeRange};

/// The formats of values, of which the first byte tells which it is: points in packed columns, or a
/// packed text.
const POINTS: u8 = 1;
const TEXT: u8 = 2;

/// Compression level of zstd for texts: its fastest.
const TEXT_LEVEL: i32 = 1;

/// Most bytes of a text, unpacked.
const MOST_TEXT: usize = 16 << 20;

/// Compression level of pco, of 12; as in the cache's own columns.
const LEVEL: usize = 2;

/// Most points of a value.
const MOST_POINTS: usize = 1 << 18;

/// Most parts of a value with fetch times of their own.
const MOST_PARTS: usize = 4096;

/// Bytes before the parts: format, name, slot, cell, epoch, number, four counts.
const HEAD: usize = 1 + 32 + 8 + 8 + 8 + 8 + 4 * 4;

/// Bytes of a part.
const PART: usize = 8 + 8 + 8 + 1;

/// The invalidations that a value takes into account.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stamp {
    /// Identifies the list of invalidations; a level that has lost its list has another.
    pub epoch: u64,
    /// The number of the last invalidation that the value takes into account.
    pub number: u64,
}

/// A part of a value with one fetch time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownSpan {
    /// The known ranges.
    pub range: TimeRange,
    /// The time at which its fetch began, in milliseconds of the level's time.
    pub fetched: Millis,
    /// Set if the data can no longer change.
    pub settled: bool,
}

/// A value: all data that exists in its parts, and nothing outside of them.
#[derive(Clone, Debug, PartialEq)]
pub struct Block {
    /// The invalidations that it takes into account.
    pub stamp: Stamp,
    /// Ascending and disjoint, none empty.
    pub parts: Vec<KnownSpan>,
    /// The data within the parts.
    pub content: BlockContent,
}

/// The data of a value.
#[derive(Clone, Debug, PartialEq)]
pub enum BlockContent {
    /// Points, all within the parts.
    Points(Points),
    /// A text of at most 16 MiB, whose meaning the level does not know.
    Text(Vec<u8>),
}

/// The origin of a value; it is read only if this is the same.
#[derive(Clone, Copy, Debug)]
pub struct ValueId<'a> {
    /// Its lane.
    pub lane: &'a LaneName,
    /// The place of the value in the lane.
    pub slot: Slot,
    /// The distance of the lane's points.
    pub cell: Step,
}

/// The reason why bytes are not a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreadable {
    /// Another version of the format.
    Version,
    /// Too short, too long, or with counts beyond what is allowed.
    Length,
    /// Of another lane, slot or cell.
    Identity,
    /// Parts that are empty, reversed, overlapping or out of bounds.
    Parts,
    /// Points that cannot be unpacked, are out of order or lie outside the parts.
    Points,
    /// A text that cannot be unpacked, or is not what it should be.
    Text,
    /// Fetched later than now.
    Future,
}

impl Unreadable {
    /// Every reason, once.
    pub const ALL: [Self; 7] = [
        Self::Version,
        Self::Length,
        Self::Identity,
        Self::Parts,
        Self::Points,
        Self::Text,
        Self::Future,
    ];

    /// Returns the reason as a metric's label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Version => "version",
            Self::Length => "length",
            Self::Identity => "identity",
            Self::Parts => "parts",
            Self::Points => "points",
            Self::Text => "text",
            Self::Future => "future",
        }
    }
}

/// Returns `block` as bytes. `None` if it is too large, or if its points do not survive packing
/// unchanged: no fault of the codec may change data.
pub fn encode(place: ValueId<'_>, block: &Block) -> Option<Vec<u8>> {
    let Block {
        stamp: Stamp { epoch, number },
        parts,
        content,
    } = block;
    if parts.len() > MOST_PARTS {
        return None;
    }
    let (format, length, first, second) = match content {
        BlockContent::Points(points) => {
            let (times, values) = packed(points)?;
            (POINTS, points.len(), times, values)
        }
        BlockContent::Text(text) if text.len() > MOST_TEXT => return None,
        BlockContent::Text(text) => {
            let packed = zstd::bulk::compress(text, TEXT_LEVEL).ok()?;
            (TEXT, text.len(), Vec::new(), packed)
        }
    };
    let capacity = HEAD + PART * parts.len() + first.len() + second.len();
    let mut bytes = Vec::with_capacity(capacity);
    bytes.push(format);
    bytes.extend(place.lane.0);
    bytes.extend(place.slot.number().to_le_bytes());
    bytes.extend(place.cell.millis().to_le_bytes());
    bytes.extend(epoch.to_le_bytes());
    bytes.extend(number.to_le_bytes());
    for count in [parts.len(), length, first.len(), second.len()] {
        bytes.extend(u32::try_from(count).ok()?.to_le_bytes());
    }
    for part in parts {
        let KnownSpan {
            range,
            fetched,
            settled,
        } = part;
        bytes.extend(range.start().to_le_bytes());
        bytes.extend(range.end().to_le_bytes());
        bytes.extend(fetched.to_le_bytes());
        bytes.push(u8::from(*settled));
    }
    bytes.extend(first);
    bytes.extend(second);
    Some(bytes)
}

/// Returns the columns of `points`, packed. `None` if they are too many, or do not survive packing
/// unchanged.
fn packed(points: &Points) -> Option<(Vec<u8>, Vec<u8>)> {
    if points.is_empty() {
        return Some((Vec::new(), Vec::new()));
    }
    if points.len() > MOST_POINTS {
        return None;
    }
    let config = ChunkConfig::default().with_compression_level(LEVEL);
    let times = simple_compress(points.times(), &config).ok()?;
    let values = simple_compress(points.values(), &config).ok()?;
    let bits = |values: &[f64]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    let same = simple_decompress::<Millis>(&times).ok()? == points.times()
        && bits(&simple_decompress::<f64>(&values).ok()?) == bits(points.values());
    same.then_some((times, values))
}

/// Returns the value in `bytes`, which may have been fetched up to `now`, in milliseconds of the
/// level's time.
pub fn decode(place: ValueId<'_>, bytes: &[u8], now: Millis) -> Result<Block, Unreadable> {
    let mut rest = ByteReader(bytes);
    let [format] = rest.array()?;
    if format != POINTS && format != TEXT {
        return Err(Unreadable::Version);
    }
    let same = rest.array()? == place.lane.0
        && rest.i64()? == place.slot.number()
        && rest.i64()? == place.cell.millis();
    let stamp = Stamp {
        epoch: rest.u64()?,
        number: rest.u64()?,
    };
    let (parts, length) = (rest.count()?, rest.count()?);
    let (first, second) = (rest.count()?, rest.count()?);
    if !same {
        return Err(Unreadable::Identity);
    }
    let most = if format == TEXT {
        MOST_TEXT
    } else {
        MOST_POINTS
    };
    if parts > MOST_PARTS || length > most {
        return Err(Unreadable::Length);
    }
    let mut known: Vec<KnownSpan> = Vec::with_capacity(parts);
    for _ in 0..parts {
        let (start, end, fetched) = (rest.i64()?, rest.i64()?, rest.i64()?);
        let [settled] = rest.array()?;
        let range = TimeRange::new(start, end).filter(|r| !r.is_empty());
        let range = range.ok_or(Unreadable::Parts)?;
        let follows = known.last().is_none_or(|p| p.range.end() <= start);
        if !follows || settled > 1 || start < -MAX_TIME || end > MAX_TIME {
            return Err(Unreadable::Parts);
        }
        if fetched > now {
            return Err(Unreadable::Future);
        }
        known.push(KnownSpan {
            range,
            fetched,
            settled: settled == 1,
        });
    }
    if Some(rest.0.len()) != first.checked_add(second) {
        return Err(Unreadable::Length);
    }
    let (first, second) = rest.0.split_at_checked(first).ok_or(Unreadable::Length)?;
    let content = match format {
        TEXT if first.is_empty() => BlockContent::Text(unpacked_text(second, length)?),
        TEXT => return Err(Unreadable::Length),
        _ => BlockContent::Points(unpacked_points(first, second, length, &known)?),
    };
    Ok(Block {
        stamp,
        parts: known,
        content,
    })
}

/// Returns the points of packed columns, if they are `count` and lie within `known`.
fn unpacked_points(
    times: &[u8],
    values: &[u8],
    count: usize,
    known: &[KnownSpan],
) -> Result<Points, Unreadable> {
    let points = match count {
        0 if times.is_empty() && values.is_empty() => Points::new(),
        0 => return Err(Unreadable::Length),
        n => Points::from_columns(unpacked(times, n)?, unpacked(values, n)?),
    };
    // Columns that do not hold what points may hold have lost some.
    if points.len() != count || !within(&points, known) {
        return Err(Unreadable::Points);
    }
    Ok(points)
}

/// Returns the text of `length` bytes in `packed`.
fn unpacked_text(packed: &[u8], length: usize) -> Result<Vec<u8>, Unreadable> {
    let text = zstd::bulk::decompress(packed, length).map_err(|_| Unreadable::Text)?;
    match text.len() == length {
        true => Ok(text),
        false => Err(Unreadable::Text),
    }
}

/// `n` numbers, if `bytes` are exactly these.
fn unpacked<T: pco::data_types::Number + Default>(
    bytes: &[u8],
    n: usize,
) -> Result<Vec<T>, Unreadable> {
    // One more place than there may be numbers shows whether there are more.
    let mut numbers = vec![T::default(); n + 1];
    match simple_decompress_into(bytes, &mut numbers) {
        Ok(progress) if progress.n_processed == n && progress.finished => {
            numbers.truncate(n);
            Ok(numbers)
        }
        _ => Err(Unreadable::Points),
    }
}

/// Whether all `points` lie in `parts`.
fn within(points: &Points, parts: &[KnownSpan]) -> bool {
    let inside = parts.iter().map(|p| points.within(&p.range).len());
    inside.sum::<usize>() == points.len()
}

struct ByteReader<'a>(&'a [u8]);

impl ByteReader<'_> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Unreadable> {
        let (head, rest) = self.0.split_first_chunk().ok_or(Unreadable::Length)?;
        self.0 = rest;
        Ok(*head)
    }

    fn i64(&mut self) -> Result<i64, Unreadable> {
        Ok(i64::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, Unreadable> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn count(&mut self) -> Result<usize, Unreadable> {
        let count = u32::from_le_bytes(self.array()?);
        usize::try_from(count).map_err(|_| Unreadable::Length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LANE: LaneName = LaneName([7; 32]);
    const NOW: Millis = 1_800_000_000_000;

    fn place(slot: Slot) -> ValueId<'static> {
        ValueId {
            lane: &LANE,
            slot,
            cell: Step::new(15_000).unwrap(),
        }
    }

    fn block(n: i64) -> Block {
        let start = 1_700_000_000_000;
        let part = |from: i64, to: i64, settled| KnownSpan {
            range: TimeRange::new(start + from * 15_000, start + to * 15_000).unwrap(),
            fetched: NOW - 5000,
            settled,
        };
        let known = |i: &i64| *i < 20 || *i >= 30;
        let point = |i: i64| (start + i * 15_000 + i % 3, (i * 7919 % 1000) as f64 / 8.0);
        let mut parts = vec![part(0, 20.min(n), true)];
        if n > 30 {
            parts.extend([part(30, n - 1, true), part(n - 1, n + 4, false)]);
        }
        Block {
            stamp: Stamp {
                epoch: 0x0123_4567_89ab_cdef,
                number: 3,
            },
            parts,
            content: BlockContent::Points(Points::from_unsorted(
                (0..n).filter(known).map(point).collect(),
            )),
        }
    }

    fn text(length: usize) -> Block {
        let text = (0..length).map(|i| (i * i % 7) as u8 + b'0');
        Block {
            content: BlockContent::Text(text.collect()),
            ..block(64)
        }
    }

    #[test]
    fn what_is_written_is_read() {
        for n in [1, 5, 20, 64, 1024] {
            let block = block(n);
            let bytes = encode(place(Slot::Page(3)), &block).unwrap();
            assert_eq!(decode(place(Slot::Page(3)), &bytes, NOW), Ok(block));
        }
        for length in [0, 1, 100_000] {
            let bytes = encode(place(Slot::Whole), &text(length)).unwrap();
            assert_eq!(decode(place(Slot::Whole), &bytes, NOW), Ok(text(length)));
            assert!(bytes.len() < 1000, "texts are packed");
        }
        assert!(encode(place(Slot::Whole), &text(MOST_TEXT + 1)).is_none());
        let empty = Block {
            content: BlockContent::Points(Points::new()),
            ..block(64)
        };
        let bytes = encode(place(Slot::Tail), &empty).unwrap();
        assert_eq!(decode(place(Slot::Tail), &bytes, NOW), Ok(empty));
        assert!(bytes.len() < 160, "known emptiness is small");
    }

    #[test]
    fn each_length_cut_and_every_other_place_is_a_miss() {
        for block in [text(500), block(64)] {
            let bytes = encode(place(Slot::Page(3)), &block).unwrap();
            for length in 0..bytes.len() {
                let read = decode(place(Slot::Page(3)), &bytes[..length], NOW);
                assert!(read.is_err(), "cut at {length}");
            }
        }
        let bytes = encode(place(Slot::Page(3)), &block(64)).unwrap();
        let longer = [&bytes[..], &[0]].concat();
        assert!(decode(place(Slot::Page(3)), &longer, NOW).is_err());
        let read = |place, now| decode(place, &bytes, now).unwrap_err();
        assert_eq!(read(place(Slot::Page(4)), NOW), Unreadable::Identity);
        assert_eq!(read(place(Slot::Tail), NOW), Unreadable::Identity);
        let other = ValueId {
            cell: Step::new(30_000).unwrap(),
            ..place(Slot::Page(3))
        };
        assert_eq!(read(other, NOW), Unreadable::Identity);
        assert_eq!(read(place(Slot::Page(3)), NOW - 5001), Unreadable::Future);
    }

    /// A byte flipped in the head or the parts may be another valid value (a level's checksum or
    /// seal finds it); nothing panics, and what is read keeps its own rules.
    #[test]
    fn every_byte_flipped_is_read_as_a_sound_value_or_not_at_all() {
        let blocks = [block(64), text(500)];
        let whole = blocks.map(|block| encode(place(Slot::Page(3)), &block).unwrap());
        for bytes in whole {
            for (at, flip) in (0..bytes.len()).flat_map(|at| [1, 0x80, 0xff].map(|f| (at, f))) {
                let mut bytes = bytes.clone();
                bytes[at] ^= flip;
                let Ok(block) = decode(place(Slot::Page(3)), &bytes, NOW) else {
                    continue;
                };
                if let BlockContent::Points(points) = &block.content {
                    assert!(points.times().is_sorted());
                    assert!(within(points, &block.parts));
                }
                assert!(at >= 49, "the head says what it is of: {at}");
            }
        }
    }

    #[test]
    fn a_value_of_version_1_is_read_for_ever() {
        let golden = include_bytes!("page/version-1.bin");
        let read = decode(place(Slot::Page(3)), golden, NOW);
        assert_eq!(read, Ok(block(64)));
        let golden_text = include_bytes!("page/text-1.bin");
        let read = decode(place(Slot::Page(3)), golden_text, NOW);
        assert_eq!(read, Ok(text(500)));
        let mut newer = golden.to_vec();
        newer[0] = 3;
        let read = decode(place(Slot::Page(3)), &newer, NOW);
        assert_eq!(read, Err(Unreadable::Version));
    }

    proptest! {
        #[test]
        fn any_points_come_back_to_the_bit(
            pairs in prop::collection::vec((0i64..1_000_000, any::<f64>()), 0..300)
        ) {
            let points = Points::from_unsorted(pairs);
            let block = Block {
                stamp: Stamp::default(),
                parts: vec![KnownSpan {
                    range: TimeRange::new(0, 1_000_000).unwrap(),
                    fetched: 0,
                    settled: true,
                }],
                content: BlockContent::Points(points),
            };
            let bytes = encode(place(Slot::Tail), &block).unwrap();
            let read = decode(place(Slot::Tail), &bytes, NOW).unwrap();
            let bits = |b: &Block| match &b.content {
                BlockContent::Points(points) => {
                    let bits = points.values().iter().map(|v| v.to_bits());
                    (points.times().to_vec(), bits.collect::<Vec<_>>())
                }
                BlockContent::Text(_) => unreachable!(),
            };
            prop_assert_eq!(bits(&read), bits(&block));
        }
    }
}
