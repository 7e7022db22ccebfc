//! The segments of a level on disk: an index in memory, one writer, and the choice of the segment
//! that is removed when there is no more room.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use foldhash::fast::RandomState;
use tracing::warn;

use super::segment::{self, Record};
use crate::clock::Clock;
use crate::store::key::ValueKey;
use crate::store::{LevelHoldings, Put};
use crate::telemetry::metrics::{self, DiskMetrics};

/// Most bytes of a segment; of a small level a sixteenth.
const SEGMENT: u64 = 64 << 20;

/// Bytes in memory for each record, about: its place in the index.
const INDEX_ENTRY: u64 = 64;

/// The index takes at most this part of the size on disk, or this many bytes.
const INDEX_SHARE: u64 = 32;
const INDEX_LEAST: u64 = 1 << 20;

/// The segments of a level.
pub(super) struct SegmentLog {
    dir: PathBuf,
    size: u64,
    segment: u64,
    clock: Arc<dyn Clock>,
    index: Mutex<DiskIndex>,
    /// Held by the only thread that writes.
    writer: Mutex<DiskWriter>,
    /// The bytes of all segments, as of the last write.
    bytes: AtomicU64,
    metrics: DiskMetrics,
}

#[derive(Default)]
struct DiskIndex {
    /// Keys are secret hashes, so nobody can choose colliding ones.
    places: HashMap<ValueKey, Location, RandomState>,
    files: BTreeMap<u32, SegmentFile>,
}

struct SegmentFile {
    file: Arc<File>,
    /// Bytes of its records that are the newest of their keys.
    live: u64,
}

impl DiskIndex {
    fn file(&self, segment: u32) -> Option<Arc<File>> {
        self.files.get(&segment).map(|s| s.file.clone())
    }

    fn insert(&mut self, key: ValueKey, place: Location) {
        let old = self.places.insert(key, place);
        self.weigh(old, |live, bytes| live.saturating_sub(bytes));
        self.weigh(Some(place), |live, bytes| live + bytes);
    }

    /// Inserts the values of a segment, the newest last; faster than one by one.
    fn insert_all(&mut self, number: u32, records: &[Record]) {
        let mut live = 0;
        for record in records {
            let place = Location::new(number, record);
            live += place.size();
            match self.places.insert(record.key, place) {
                Some(old) if old.segment == number => live -= old.size(),
                old => self.weigh(old, |live, bytes| live.saturating_sub(bytes)),
            }
        }
        if let Some(segment) = self.files.get_mut(&number) {
            segment.live += live;
        }
    }

    /// Removes the value of `key`, if it is at `place`. Returns whether it was.
    fn remove(&mut self, key: &ValueKey, place: &Location) -> bool {
        if self.places.get(key) != Some(place) {
            return false;
        }
        let old = self.places.remove(key);
        self.weigh(old, |live, bytes| live.saturating_sub(bytes));
        true
    }

    fn weigh(&mut self, place: Option<Location>, change: impl Fn(u64, u64) -> u64) {
        let Some(place) = place else { return };
        if let Some(segment) = self.files.get_mut(&place.segment) {
            segment.live = change(segment.live, place.size());
        }
    }
}

/// The place of the newest value of a key.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Location {
    segment: u32,
    offset: u32,
    length: u32,
    expires: u32,
}

struct DiskWriter {
    /// Bytes of each segment, the oldest first; the last is the one that is appended to.
    lengths: BTreeMap<u32, u64>,
    /// The records of the last.
    records: Vec<Record>,
}

impl SegmentLog {
    /// Reads the segments in `dir`, of which there will be at most `size` bytes.
    pub(super) fn open(dir: &Path, size: u64, clock: Arc<dyn Clock>) -> io::Result<Self> {
        let log = Self {
            dir: dir.to_owned(),
            size,
            segment: SEGMENT.min(size / 16),
            clock,
            index: Mutex::default(),
            writer: Mutex::new(DiskWriter {
                lengths: BTreeMap::new(),
                records: Vec::new(),
            }),
            bytes: AtomicU64::new(0),
            metrics: DiskMetrics::default(),
        };
        log.load()?;
        Ok(log)
    }

    /// Returns the number of values.
    pub(super) fn len(&self) -> usize {
        self.index().places.len()
    }

    /// Returns the size of what is there.
    pub(super) fn holdings(&self) -> LevelHoldings {
        LevelHoldings {
            bytes: self.bytes.load(Ordering::Relaxed),
            limit: self.size,
            values: self.len(),
        }
    }

    /// Appends values.
    pub(super) fn write(&self, puts: &[Put]) -> io::Result<()> {
        let mut writer = self.writer();
        for put in puts {
            let ttl = u32::try_from(put.ttl.as_secs()).unwrap_or(u32::MAX);
            let expires = self.seconds().saturating_add(ttl);
            self.append(&mut writer, put.key, expires, &put.bytes)?;
        }
        self.show_bytes(&writer);
        Ok(())
    }

    fn show_bytes(&self, writer: &DiskWriter) {
        self.bytes.store(writer.total(), Ordering::Relaxed);
        self.metrics.bytes.set(writer.total() as f64);
    }

    fn index(&self) -> MutexGuard<'_, DiskIndex> {
        // An entry that is missing is a miss, and one that is wrong is found out when it is read.
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn writer(&self) -> MutexGuard<'_, DiskWriter> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, segment: u32) -> PathBuf {
        self.dir.join(format!("{segment:010}.segment"))
    }

    /// Unix time in seconds.
    fn seconds(&self) -> u32 {
        u32::try_from(self.clock.now() / 1000).unwrap_or(0)
    }

    /// Returns the newest value of `key`; `None` if it is damaged.
    pub(super) fn read(&self, key: &ValueKey) -> io::Result<Option<Vec<u8>>> {
        let (place, file) = {
            let index = self.index();
            let Some(place) = index.places.get(key).copied() else {
                return Ok(None);
            };
            let Some(file) = index.file(place.segment) else {
                return Ok(None);
            };
            (place, file)
        };
        if place.expires <= self.seconds() {
            return Ok(None);
        }
        let bytes = segment::read(&file, &place.record(*key))?;
        if bytes.is_none() {
            metrics::unreadable("disk", "checksum");
            self.index().remove(key, &place);
            return Ok(None);
        }
        Ok(bytes)
    }

    /// Appends a value, after making room for it. A value that is too large is left out.
    fn append(
        &self,
        writer: &mut DiskWriter,
        key: ValueKey,
        expires: u32,
        bytes: &[u8],
    ) -> io::Result<()> {
        let record = Record {
            key,
            offset: 0,
            length: u32::try_from(bytes.len()).unwrap_or(u32::MAX),
            expires,
        };
        if record.size() + segment::list_size(1) as u64 > self.segment {
            return Ok(());
        }
        self.make_room(writer, record.size())?;
        self.append_record(writer, record, bytes)
    }

    /// Appends a record, wherever there is room.
    fn append_record(
        &self,
        writer: &mut DiskWriter,
        mut record: Record,
        bytes: &[u8],
    ) -> io::Result<()> {
        let list = segment::list_size(writer.records.len() + 1) as u64;
        let last = writer.lengths.last_key_value().map(|(_, length)| *length);
        if last.is_none_or(|length| length + record.size() + list > self.segment) {
            self.next_segment(writer)?;
        }
        let Some((&number, &length)) = writer.lengths.last_key_value() else {
            return Ok(());
        };
        let file = self.index().file(number);
        let file = file.ok_or_else(|| io::Error::other("a segment is gone"))?;
        record.offset = u32::try_from(length).unwrap_or(u32::MAX);
        let whole = [&record.head(bytes)[..], bytes].concat();
        if let Err(e) = file.write_all_at(&whole, length) {
            // A half-written record is overwritten or cut off.
            let _ = file.set_len(length);
            return Err(e);
        }
        writer.lengths.insert(number, length + record.size());
        writer.records.push(record);
        let mut index = self.index();
        index.insert(record.key, Location::new(number, &record));
        self.metrics.records.set(index.places.len() as f64);
        Ok(())
    }

    /// Ends the last segment with its list, and begins another.
    fn next_segment(&self, writer: &mut DiskWriter) -> io::Result<()> {
        if let Some((&last, &length)) = writer.lengths.last_key_value() {
            let file = self.index().file(last);
            let list = segment::list(&writer.records);
            // Without its list it is scanned when it is opened.
            if file.is_some_and(|f| f.write_all_at(&list, length).is_ok()) {
                writer.lengths.insert(last, length + list.len() as u64);
            }
        }
        self.begin_segment(writer)
    }

    fn begin_segment(&self, writer: &mut DiskWriter) -> io::Result<()> {
        let next = writer.lengths.last_key_value().map_or(1, |(n, _)| n + 1);
        let file = Arc::new(segment::open(&self.path(next), true)?);
        let segment = SegmentFile { file, live: 0 };
        self.index().files.insert(next, segment);
        writer.lengths.insert(next, 0);
        writer.records.clear();
        Ok(())
    }

    /// Returns the number of values above which segments are removed, as the index may not grow.
    fn most_records(&self) -> u64 {
        (self.size / INDEX_SHARE).max(INDEX_LEAST) / INDEX_ENTRY
    }

    /// Removes segments until `bytes` more fit, beside one segment's worth of records that move.
    fn make_room(&self, writer: &mut DiskWriter, bytes: u64) -> io::Result<()> {
        let most = self.size.saturating_sub(2 * self.segment);
        let most_records = self.most_records();
        let ends = |writer: &DiskWriter| {
            let (oldest, _) = writer.lengths.first_key_value()?;
            let (last, _) = writer.lengths.last_key_value()?;
            (oldest != last).then_some((*oldest, *last))
        };
        while let Some((oldest, last)) = ends(writer) {
            let full = writer.total() + bytes > most;
            let index_full = self.index().places.len() as u64 > most_records;
            if !(full || index_full) {
                break;
            }
            let emptiest = {
                let index = self.index();
                let ended = index.files.iter().filter(|(number, _)| **number != last);
                let emptiest = ended.min_by_key(|(_, segment)| segment.live);
                emptiest.map(|(number, segment)| (*number, segment.live))
            };
            match emptiest {
                // Most of it has been replaced since: the rest moves on.
                Some((number, live))
                    if !index_full
                        && writer
                            .lengths
                            .get(&number)
                            .is_some_and(|all| live <= all / 4 * 3) =>
                {
                    self.remove_segment(writer, number, true)?;
                }
                // All values are current: the oldest segment goes.
                _ => self.remove_segment(writer, oldest, false)?,
            }
        }
        Ok(())
    }

    /// Removes a segment; if it is to be `kept`, after its current values have moved on.
    fn remove_segment(&self, writer: &mut DiskWriter, number: u32, kept: bool) -> io::Result<()> {
        let file = self.index().file(number);
        if let Some(file) = file {
            let records = match segment::listed(&file) {
                Ok(Some(records)) => records,
                // Records that are not listed are found by their place.
                _ => self.records_of(number),
            };
            let now = self.seconds();
            for record in records {
                let place = Location::new(number, &record);
                let live = self.index().places.get(&record.key) == Some(&place);
                if !live {
                    continue;
                }
                if kept
                    && record.expires > now
                    && let Ok(Some(value)) = segment::read(&file, &record)
                {
                    self.append_record(writer, record, &value)?;
                } else {
                    self.index().remove(&record.key, &place);
                }
            }
        }
        self.index().files.remove(&number);
        writer.lengths.remove(&number);
        fs::remove_file(self.path(number))
    }

    /// Returns the newest values that are in `segment`.
    fn records_of(&self, segment: u32) -> Vec<Record> {
        let index = self.index();
        let here = index.places.iter().filter(|(_, p)| p.segment == segment);
        here.map(|(key, place)| place.record(*key)).collect()
    }

    /// Reads what there is, and cuts off what is torn.
    fn load(&self) -> io::Result<()> {
        let mut writer = self.writer();
        let mut numbers = segments(&self.dir)?;
        numbers.sort_unstable();
        let (count, last) = (numbers.len(), numbers.last().copied());
        let mut last_is_full = false;
        for number in numbers {
            let file = segment::open(&self.path(number), false)?;
            let mut length = file.metadata()?.len();
            let mut records = segment::listed(&file)?;
            if records.is_none() {
                let (found, end) = segment::scan(&file)?;
                if end < length {
                    warn!(
                        segment = number,
                        lost = length - end,
                        "truncated a damaged segment of the second level on disk"
                    );
                    file.set_len(end)?;
                    length = end;
                }
                if last == Some(number) {
                    writer.records.clone_from(&found);
                }
                records = Some(found);
            } else if last == Some(number) {
                last_is_full = true;
            }
            let records = records.unwrap_or_default();
            let mut index = self.index();
            if index.places.is_empty() {
                // Segments are alike, and a table that grows is made anew each time.
                let expected = (records.len() * count) as u64;
                let expected = expected.min(self.most_records());
                index.places.reserve(usize::try_from(expected).unwrap_or(0));
            }
            let file = Arc::new(file);
            index.files.insert(number, SegmentFile { file, live: 0 });
            index.insert_all(number, &records);
            writer.lengths.insert(number, length);
        }
        if last_is_full {
            self.begin_segment(&mut writer)?;
        }
        self.make_room(&mut writer, 0)?;
        self.show_bytes(&writer);
        self.metrics.records.set(self.index().places.len() as f64);
        Ok(())
    }
}

impl Location {
    fn new(segment: u32, record: &Record) -> Self {
        Self {
            segment,
            offset: record.offset,
            length: record.length,
            expires: record.expires,
        }
    }

    /// Returns the bytes that it takes in its segment.
    fn size(&self) -> u64 {
        segment::HEAD as u64 + u64::from(self.length)
    }

    fn record(&self, key: ValueKey) -> Record {
        Record {
            key,
            offset: self.offset,
            length: self.length,
            expires: self.expires,
        }
    }
}

impl DiskWriter {
    fn total(&self) -> u64 {
        self.lengths.values().sum()
    }
}

/// Returns the numbers of the segments in `dir`.
pub(super) fn segments(dir: &Path) -> io::Result<Vec<u32>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        let name = name.to_str().and_then(|n| n.strip_suffix(".segment"));
        numbers.extend(name.and_then(|n| n.parse::<u32>().ok()));
    }
    Ok(numbers)
}

/// Removes all segments in `dir`.
pub(super) fn remove_segments(dir: &Path) -> io::Result<()> {
    for number in segments(dir)? {
        fs::remove_file(dir.join(format!("{number:010}.segment")))?;
    }
    Ok(())
}
