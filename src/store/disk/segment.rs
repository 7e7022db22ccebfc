//! Segments: files of records, one after the other. A full one ends with a list of its records, so
//! that it need not be read to be opened.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use crate::store::key::ValueKey;

/// The first bytes of a record.
const RECORD: [u8; 4] = *b"HeR1";

/// The last bytes of a full segment.
const SEALED: [u8; 4] = *b"HeL1";

/// Bytes of a record before its value.
pub(super) const HEAD: usize = 48;

/// Bytes of a listed record.
const LISTED: usize = 16 + 8 + 4 + 4 + 4;

/// Bytes behind the list: its checksum, its length, [`SEALED`].
const TRAILER: usize = 12;

/// Most bytes of a value.
const LARGEST: u32 = 16 << 20;

/// A record of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) key: ValueKey,
    /// The time at which it starts.
    pub(super) offset: u32,
    /// Bytes of its value.
    pub(super) length: u32,
    /// In seconds of Unix time.
    pub(super) expires: u32,
}

impl Record {
    /// Returns the bytes that it takes in its file.
    pub(super) fn size(&self) -> u64 {
        HEAD as u64 + u64::from(self.length)
    }

    /// Returns its head, with the checksum of its `value`.
    pub(super) fn head(&self, value: &[u8]) -> [u8; HEAD] {
        let mut head = [0; HEAD];
        let fields = [
            &RECORD[..],
            &[0; 4],
            &self.key.lane,
            &self.key.slot.to_le_bytes(),
            &self.length.to_le_bytes(),
            &self.expires.to_le_bytes(),
            &crc32fast::hash(value).to_le_bytes(),
            &[0; 4],
        ];
        for (to, from) in head.iter_mut().zip(fields.into_iter().flatten()) {
            *to = *from;
        }
        let sum = head_sum(&head).to_le_bytes();
        for (to, from) in head.iter_mut().skip(4).zip(sum) {
            *to = from;
        }
        head
    }
}

/// Returns the checksum of a head, without the place where it is kept.
fn head_sum(head: &[u8; HEAD]) -> u32 {
    crc32fast::hash(head.split_at(8).1)
}

struct RecordReader<'a>(&'a [u8]);

impl RecordReader<'_> {
    fn next<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*field)
    }

    fn number(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.next()?))
    }

    fn key(&mut self) -> Option<ValueKey> {
        Some(ValueKey {
            lane: self.next()?,
            slot: i64::from_le_bytes(self.next()?),
        })
    }
}

/// Returns the record at `offset` whose head is `head`, and the checksum of its value.
fn read_head(head: &[u8; HEAD], offset: u32) -> Option<(Record, u32)> {
    let mut fields = RecordReader(head);
    let good = fields.next()? == RECORD && fields.number()? == head_sum(head);
    let record = Record {
        key: fields.key()?,
        length: fields.number()?,
        expires: fields.number()?,
        offset,
    };
    let sum = fields.number()?;
    (good && record.length <= LARGEST).then_some((record, sum))
}

/// Opens a segment, which only its owner may read; it is created if it is to be `new`.
pub(super) fn open(path: &Path, new: bool) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(new).mode(0o600);
    options.open(path)
}

/// Returns the value of `record`; `None` if it is damaged.
pub(super) fn read(file: &File, record: &Record) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = vec![0; usize::try_from(record.size()).unwrap_or(0)];
    file.read_exact_at(&mut bytes, u64::from(record.offset))?;
    let whole = || {
        let head = bytes.first_chunk()?;
        let (found, sum) = read_head(head, record.offset)?;
        let value = bytes.get(HEAD..)?;
        (found == *record && crc32fast::hash(value) == sum).then_some(())
    };
    if whole().is_none() {
        return Ok(None);
    }
    bytes.drain(..HEAD);
    Ok(Some(bytes))
}

/// Returns the list of `records`, which makes their segment full.
pub(super) fn list(records: &[Record]) -> Vec<u8> {
    let mut list = Vec::with_capacity(list_size(records.len()));
    for record in records {
        list.extend(record.key.lane);
        list.extend(record.key.slot.to_le_bytes());
        list.extend(record.offset.to_le_bytes());
        list.extend(record.length.to_le_bytes());
        list.extend(record.expires.to_le_bytes());
    }
    let sum = crc32fast::hash(&list);
    list.extend(sum.to_le_bytes());
    list.extend(u32::try_from(records.len()).unwrap_or(0).to_le_bytes());
    list.extend(SEALED);
    list
}

/// Returns the bytes of the list of so many records.
pub(super) fn list_size(records: usize) -> usize {
    records * LISTED + TRAILER
}

/// Returns the records of a full segment; `None` if it is not full, or its list is damaged.
pub(super) fn listed(file: &File) -> io::Result<Option<Vec<Record>>> {
    let length = file.metadata()?.len();
    let Some(at) = length.checked_sub(TRAILER as u64) else {
        return Ok(None);
    };
    let mut trailer = [0; TRAILER];
    file.read_exact_at(&mut trailer, at)?;
    let mut fields = RecordReader(&trailer);
    let (Some(sum), Some(count), Some(mark)) =
        (fields.number(), fields.number(), fields.next::<4>())
    else {
        return Ok(None);
    };
    let bytes = u64::from(count) * LISTED as u64;
    let Some(start) = at.checked_sub(bytes).filter(|_| mark == SEALED) else {
        return Ok(None);
    };
    let mut list = vec![0; usize::try_from(bytes).unwrap_or(0)];
    file.read_exact_at(&mut list, start)?;
    if crc32fast::hash(&list) != sum {
        return Ok(None);
    }
    let records = list.chunks_exact(LISTED).map_while(|bytes| {
        let mut fields = RecordReader(bytes);
        Some(Record {
            key: fields.key()?,
            offset: fields.number()?,
            length: fields.number()?,
            expires: fields.number()?,
        })
    });
    let inside = |r: &Record| r.length <= LARGEST && u64::from(r.offset) + r.size() <= start;
    Ok(Some(records.filter(inside).collect()))
}

/// Returns the records of a segment from its start up to the first that is torn or damaged, and the
/// place of that. All of the segment is read.
pub(super) fn scan(file: &File) -> io::Result<(Vec<Record>, u64)> {
    let length = file.metadata()?.len();
    let (mut records, mut at) = (Vec::new(), 0u64);
    let mut head = [0; HEAD];
    while at + HEAD as u64 <= length {
        file.read_exact_at(&mut head, at)?;
        let Ok(offset) = u32::try_from(at) else { break };
        let Some((record, _)) = read_head(&head, offset) else {
            break;
        };
        if at + record.size() > length || read(file, &record)?.is_none() {
            break;
        }
        at += record.size();
        records.push(record);
    }
    Ok((records, at))
}
