//! Content encodings of responses. A text is compressed once and kept; an answer is assembled from
//! compressed and plain texts without compressing anything again.
//!
//! - gzip (RFC 1952): one member. A compressed text is a run of deflate blocks (RFC 1951) that ends
//!   on a byte boundary and refers to nothing before it (zlib calls this a full flush); a plain one
//!   goes into stored blocks; the checksums of the parts are combined.
//! - zstd (RFC 8878): one frame after the other, plain texts in frames of raw blocks.

use bytes::{BufMut, Bytes, BytesMut};
use crc32fast::Hasher;
use flate2::{Compress, Compression, FlushCompress, Status};
use smallvec::SmallVec;

/// The encoding of a response body.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Encoding {
    /// No encoding.
    #[default]
    Identity,
    /// `gzip`
    Gzip,
    /// `zstd`
    Zstd,
}

/// A text compressed in one encoding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackedText {
    bytes: Bytes,
    /// The length and the checksum of the text.
    length: u32,
    crc: u32,
    /// The factor for the checksum of what precedes this text: see [`follow`].
    shift: u32,
}

/// A part of a response's body.
#[derive(Clone, Debug)]
pub enum Text {
    /// Uncompressed.
    Plain(Bytes),
    /// Compressed in the encoding of the response.
    Packed(PackedText),
}

impl Text {
    /// Returns its bytes, compressed if it is.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Plain(bytes) => bytes,
            Self::Packed(packed) => &packed.bytes,
        }
    }

    /// Returns the same, without copying them.
    pub fn into_bytes(self) -> Bytes {
        match self {
            Self::Plain(bytes) => bytes,
            Self::Packed(packed) => packed.bytes,
        }
    }
}

/// The parts of a body, one after the other: as a rule a few.
pub type BodyParts = SmallVec<[Bytes; 4]>;

/// zlib's default level: compressed texts are kept, so speed matters less.
const DEFLATE_LEVEL: u32 = 6;
/// zstd's default level.
const ZSTD_LEVEL: i32 = 3;

/// A gzip header without name and time (RFC 1952, section 2.3).
const GZIP_HEAD: &[u8] = &[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
/// The polynomial of CRC-32, and the polynomial 1, in the order of bits that gzip uses.
const CRC_POLYNOMIAL: u32 = 0xedb8_8320;
const CRC_ONE: u32 = 0x8000_0000;
/// An empty last block of deflate, with the fixed code.
const DEFLATE_END: [u8; 2] = [3, 0];
/// Most bytes of a stored block.
const STORED_MAX: usize = 0xffff;

/// The magic number of a zstd frame, and a descriptor for a single segment with its size in four
/// bytes.
const ZSTD_HEAD: [u8; 5] = [0x28, 0xb5, 0x2f, 0xfd, 0xa0];
/// Most bytes of a block, and so of our frames of one raw block.
const RAW_MAX: usize = 128 * 1024;

impl Encoding {
    /// Returns its name in HTTP; `None` for no encoding.
    pub fn name(self) -> Option<&'static str> {
        match self {
            Self::Identity => None,
            Self::Gzip => Some("gzip"),
            Self::Zstd => Some("zstd"),
        }
    }

    /// Returns `text` compressed, or `None` if that does not make it smaller.
    pub fn pack(self, text: &[u8]) -> Option<PackedText> {
        let bytes = match self {
            Self::Identity => None,
            Self::Gzip => deflated(text),
            Self::Zstd => zstd::bulk::compress(text, ZSTD_LEVEL).ok(),
        };
        let bytes = bytes.filter(|b| b.len() < text.len())?;
        let length = u32::try_from(text.len()).ok()?;
        // The value of 1 followed by a text of this length with the checksum 0.
        let mut one = Hasher::new_with_initial(CRC_ONE);
        one.combine(&Hasher::new_with_initial_len(0, u64::from(length)));
        Some(PackedText {
            bytes: Bytes::from(bytes.into_boxed_slice()),
            length,
            crc: crc32fast::hash(text),
            shift: one.finalize(),
        })
    }

    /// Returns the body assembled from `parts`.
    pub fn join(self, parts: impl IntoIterator<Item = Text>) -> BodyParts {
        let mut body = BodyParts::new();
        match self {
            Self::Identity => body.extend(parts.into_iter().map(Text::into_bytes)),
            Self::Gzip => gzip(parts, &mut body),
            Self::Zstd => {
                for part in parts {
                    match part {
                        Text::Packed(packed) => body.push(packed.bytes),
                        Text::Plain(text) => in_blocks(&text, RAW_MAX, &mut body, raw_frame),
                    }
                }
                if body.is_empty() {
                    body.push(raw_frame(0));
                }
            }
        }
        body
    }
}

impl PackedText {
    /// Returns the number of heap bytes that it occupies.
    pub fn heap_bytes(&self) -> usize {
        self.bytes.len()
    }
}

/// Returns `text` as deflate blocks, none of which is the last.
fn deflated(text: &[u8]) -> Option<Vec<u8>> {
    let mut packer = Compress::new(Compression::new(DEFLATE_LEVEL), false);
    // With enough room one call suffices; deflate never needs more than this.
    let mut packed = Vec::with_capacity(text.len() + 64);
    let status = packer.compress_vec(text, &mut packed, FlushCompress::Full);
    let whole = packer.total_in() == text.len() as u64 && packed.len() < packed.capacity();
    (status.ok()? == Status::Ok && whole).then_some(packed)
}

/// Returns the checksum of a text with the checksum `crc` followed by `packed`: polynomials over
/// GF(2) modulo that of CRC-32, the lowest power in the highest bit (M. Adler, `crc32_combine_op`
/// of zlib). Computing the factor, which depends only on the length, takes ten times as long.
fn follow(crc: u32, packed: &PackedText) -> u32 {
    let (mut product, mut power) = (0, crc);
    for bit in (0..u32::BITS).rev() {
        product ^= power & (packed.shift >> bit & 1).wrapping_neg();
        power = power >> 1 ^ CRC_POLYNOMIAL & (power & 1).wrapping_neg();
    }
    product ^ packed.crc
}

fn gzip(parts: impl IntoIterator<Item = Text>, body: &mut BodyParts) {
    let (mut crc, mut length) = (0, 0u32);
    body.push(Bytes::from_static(GZIP_HEAD));
    for part in parts {
        match part {
            Text::Packed(packed) => {
                crc = follow(crc, &packed);
                length = length.wrapping_add(packed.length);
                body.push(packed.bytes);
            }
            Text::Plain(text) => {
                let mut hasher = Hasher::new_with_initial(crc);
                hasher.update(&text);
                crc = hasher.finalize();
                length = length.wrapping_add(text.len() as u32);
                in_blocks(&text, STORED_MAX, body, |length| {
                    let [low, high] = (length as u16).to_le_bytes();
                    Bytes::copy_from_slice(&[0, low, high, !low, !high])
                });
            }
        }
    }
    let mut end = BytesMut::with_capacity(10);
    end.put_slice(&DEFLATE_END);
    end.put_u32_le(crc);
    end.put_u32_le(length);
    body.push(end.freeze());
}

/// Returns the header of a zstd frame of one raw block of `length` bytes.
fn raw_frame(length: u32) -> Bytes {
    let mut head = BytesMut::with_capacity(12);
    head.put_slice(&ZSTD_HEAD);
    head.put_u32_le(length);
    // The last block of its frame (1), raw (0).
    head.put_uint_le(u64::from(length << 3 | 1), 3);
    head.freeze()
}

/// Returns `text` in blocks of at most `most` bytes, with a `head` for the length of each.
fn in_blocks(text: &Bytes, most: usize, body: &mut BodyParts, head: impl Fn(u32) -> Bytes) {
    let mut rest = text.clone();
    while !rest.is_empty() {
        let block = rest.split_to(most.min(rest.len()));
        body.push(head(block.len() as u32));
        body.push(block);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Read;

    fn unpacked(encoding: Encoding, body: &[u8]) -> Vec<u8> {
        let mut text = Vec::new();
        match encoding {
            Encoding::Identity => text.extend_from_slice(body),
            // A single member with nothing after it.
            Encoding::Gzip => {
                let mut reader = flate2::bufread::GzDecoder::new(body);
                reader.read_to_end(&mut text).unwrap();
                assert!(reader.into_inner().is_empty());
            }
            Encoding::Zstd => text = zstd::stream::decode_all(body).unwrap(),
        }
        text
    }

    /// Joins `parts`, of which those marked are compressed, and decompresses the result.
    fn join_and_unpack(parts: &[(bool, String)]) {
        for encoding in [Encoding::Identity, Encoding::Gzip, Encoding::Zstd] {
            let texts = parts.iter().map(|(pack, text)| {
                let packed = encoding.pack(text.as_bytes()).filter(|_| *pack);
                packed.map_or_else(|| Text::Plain(text.clone().into()), Text::Packed)
            });
            let body = encoding.join(texts.collect::<Vec<_>>()).concat();
            let whole: String = parts.iter().map(|(_, text)| text.as_str()).collect();
            assert_eq!(unpacked(encoding, &body), whole.as_bytes());
        }
    }

    proptest! {
        #[test]
        fn joined_parts_unpack_to_the_whole_text(
            parts in prop::collection::vec((any::<bool>(), "[a-f0-9,\\[\\]]{0,200}", 1usize..40), 0..12),
        ) {
            let parts: Vec<_> = parts.iter().map(|(pack, text, times)| (*pack, text.repeat(*times))).collect();
            join_and_unpack(&parts);
        }
    }

    #[test]
    fn no_parts_unpack_to_an_empty_text() {
        join_and_unpack(&[]);
    }

    #[test]
    fn long_plain_texts_are_cut_into_blocks() {
        let text: Vec<u8> = (0..400_000u32).map(|i| (i % 251) as u8).collect();
        for encoding in [Encoding::Gzip, Encoding::Zstd] {
            let body = encoding.join([Text::Plain(text.clone().into())]).concat();
            assert_eq!(unpacked(encoding, &body), text);
        }
    }

    #[test]
    fn what_cannot_be_made_smaller_stays_plain() {
        assert!(Encoding::Gzip.pack(b"[1,2]").is_none());
        assert!(Encoding::Zstd.pack(b"[1,2]").is_none());
        assert!(Encoding::Identity.pack(&[b'a'; 1000]).is_none());
        assert!(Encoding::Gzip.pack(&[b'a'; 1000]).unwrap().heap_bytes() < 50);
    }
}
