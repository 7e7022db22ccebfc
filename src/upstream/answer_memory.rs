//! The memory for answers that are being read, bounded for all upstreams together.
//!
//! The size of an answer is known when it has been read, so its share grows with it; at its end what will be
//! built of it comes on top. While a quarter of the memory is used, all grow at once. Beyond it one large
//! answer at a time does, the oldest, until it has been read; the others pause, and their connections with
//! them. So answers wait for each other and cannot block each other: the oldest may grow as if it were alone as
//! long as those that pause have no more than their quarter. An answer that is alone may be larger than all
//! of the memory.
//!
//! If an upstream falls silent in the middle of an answer, the next answer grows, too, as far as there is
//! memory. If those that have been left half read hold so much that the oldest cannot go on, the newest gives
//! way.

mod charge;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

pub use self::charge::Charges;
use crate::model::{Error, Kind};
use crate::telemetry::metrics;

/// Answers up to so many bytes need no share: calls at once are bounded by `max_concurrency`.
const FREE: usize = 64 << 10;

/// Answers up to so many bytes need not wait for larger ones, as long as they have an eighth of the
/// memory at most.
const SMALL: usize = 512 << 10;

/// The least by which a share grows.
const PIECE: usize = 256 << 10;

/// The time after which the next answer may grow, too, if the upstream of the oldest has brought nothing. Only
/// time in which this process got to look counts: a shortage of processors is no sign of a silent upstream.
const STALLED: Duration = Duration::from_secs(1);

/// The interval at which a waiting answer checks whether the oldest has stalled.
const LOOK: Duration = Duration::from_millis(200);

/// The capacity of the buffers that answers beyond [`SMALL`] are read into: untouched, it takes no memory.
/// glibc's `malloc` maps blocks of this size by themselves and gives them back when they are freed. Smaller
/// ones teach it to keep blocks of their size (it raises `M_MMAP_THRESHOLD`, up to 32 MiB).
const MAPPED: usize = 33 << 20;

/// Buffers that are kept for the next long answer, and the longest answer after which one is: fresh memory
/// costs a fault for each page.
const SPARE_BUFFERS: usize = 2;
const SPARE_BYTES: usize = 2 << 20;

/// The memory for answers that are being read.
pub struct AnswerMemory {
    most: AtomicUsize,
    table: Mutex<GrowingAnswers>,
    changed: Notify,
    /// Buffers of answers that have been read.
    spare: Mutex<Vec<Vec<u8>>>,
}

impl fmt::Debug for AnswerMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AnswerMemory({} of {})", self.used(), self.most())
    }
}

#[derive(Default)]
struct GrowingAnswers {
    used: usize,
    next: u64,
    /// The time that has been watched by answers that wait: of each time between two looks no more than
    /// [`LOOK`].
    watched: Duration,
    looked: Option<Instant>,
    /// By age, the oldest first.
    growing: BTreeMap<Place, Growing>,
}

/// The place of an answer in the order of age: that of the first answer to its call, and its own.
type Place = (u64, u64);

struct Growing {
    bytes: usize,
    stage: Stage,
    /// Whether it has to give way.
    gives_way: bool,
}

/// The stage of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Its upstream is to bring more, since this much time had been watched.
    Reads(Duration),
    /// It is being decoded.
    Decodes,
    /// It waits for more.
    Waits,
    /// It has been read, and its share gets smaller only.
    Whole,
    /// So has it, and what was built of it stays until the next answer to its call has been read.
    Stays,
}

/// The decision about an answer that needs more memory.
#[derive(Debug, PartialEq, Eq)]
enum Growth {
    Grow,
    Wait,
    /// It waits, and the newest has been told to give way.
    Displace,
    GiveWay,
}

impl AnswerMemory {
    /// Returns memory of `most` bytes.
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new(Self {
            most: AtomicUsize::new(most),
            table: Mutex::default(),
            changed: Notify::new(),
            spare: Mutex::default(),
        })
    }

    fn spare(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        // Buffers are added and taken whole.
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps `buffer` for another answer, unless there are enough, or it is small or took much memory.
    fn keep(&self, mut buffer: Vec<u8>) {
        if buffer.capacity() < MAPPED || buffer.len() > SPARE_BYTES {
            return;
        }
        buffer.clear();
        let mut spare = self.spare();
        if spare.len() < SPARE_BUFFERS {
            spare.push(buffer);
        }
    }

    /// Changes the bytes that it has. Answers that are being read keep what they have.
    pub fn resize(&self, most: usize) {
        self.most.store(most, Ordering::Relaxed);
        self.changed.notify_waiters();
    }

    /// Returns a share for one answer of at most `max` bytes, which waits for others until `deadline`.
    pub fn share(self: &Arc<Self>, max: usize, deadline: Instant) -> Arc<AnswerShare> {
        self.share_after(&Charges::default(), max, deadline)
    }

    /// Returns a share for a further answer to the call that has `kept` what it has built so far.
    pub(super) fn share_after(
        self: &Arc<Self>,
        kept: &Charges,
        max: usize,
        deadline: Instant,
    ) -> Arc<AnswerShare> {
        Arc::new(AnswerShare {
            memory: self.clone(),
            kept: kept.clone(),
            max,
            deadline,
            place: Mutex::default(),
        })
    }

    /// Returns a share for an answer of at most `max` bytes, a few, that waits for none.
    #[cfg(feature = "aws")]
    pub(super) fn apart(max: usize) -> Arc<AnswerShare> {
        Self::new(usize::MAX).share(max, Instant::now())
    }

    fn most(&self) -> usize {
        self.most.load(Ordering::Relaxed)
    }

    /// Returns the bytes that are used.
    pub fn used(&self) -> usize {
        self.table().used
    }

    fn table(&self) -> MutexGuard<'_, GrowingAnswers> {
        // Numbers are changed without anything that can panic in between.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl GrowingAnswers {
    /// Sets the bytes of the answer `id`.
    fn set(&mut self, id: Place, bytes: usize, stage: Stage) {
        if let Some(mine) = self.growing.get_mut(&id) {
            self.used = self.used - mine.bytes + bytes;
            mine.bytes = bytes;
            mine.stage = stage;
        }
        metrics::answer_bytes(self.used);
    }

    /// Takes in that an answer looks at `now`.
    fn look(&mut self, now: Instant) {
        let since = self.looked.replace(now);
        let since = since.map_or(Duration::ZERO, |looked| {
            now.saturating_duration_since(looked)
        });
        self.watched += since.min(LOOK);
    }

    /// Returns whether an answer keeps those behind it waiting.
    fn takes_turn(&self, answer: &Growing) -> bool {
        match answer.stage {
            Stage::Reads(since) => answer.bytes > SMALL && self.watched < since + STALLED,
            Stage::Decodes => answer.bytes > SMALL,
            Stage::Waits => true,
            Stage::Whole | Stage::Stays => false,
        }
    }

    /// Decides whether the answer `id`, whose call has `kept` what it has built of earlier answers, may have
    /// `bytes` now, of `most` of all.
    fn turn(&mut self, id: Place, kept: &[Place], bytes: usize, most: usize) -> Growth {
        let Some(mine) = self.growing.get(&id).filter(|mine| !mine.gives_way) else {
            return Growth::GiveWay;
        };
        let before = mine.bytes;
        let kept = kept.iter().filter_map(|place| self.growing.get(place));
        let (kept, gives_way) = kept.fold((0, false), |(bytes, gives_way), one| {
            (bytes + one.bytes, gives_way || one.gives_way)
        });
        if gives_way {
            return Growth::GiveWay;
        }
        // Its call would wait for what only it can give back.
        let others = self.used - before - kept;
        let all = self.used - before + bytes;
        if all <= most / 4 || others == 0 {
            return Growth::Grow;
        }
        if bytes <= SMALL && all <= most {
            let small = self.growing.values();
            let small = small.filter(|one| {
                one.bytes <= SMALL && !matches!(one.stage, Stage::Whole | Stage::Stays)
            });
            let small_bytes: usize = small.map(|one| one.bytes).sum();
            if small_bytes - before + bytes <= most / 8 {
                return Growth::Grow;
            }
        }
        let mut older = self.growing.range(..id);
        if older.any(|(_, other)| self.takes_turn(other)) {
            return Growth::Wait;
        }
        if all <= most {
            return Growth::Grow;
        }
        // It is the oldest. Those that have been read give their shares back by themselves.
        let whole = self
            .growing
            .values()
            .filter(|one| one.stage == Stage::Whole);
        let whole: usize = whole.map(|one| one.bytes).sum();
        if whole > 0 {
            return Growth::Wait;
        }
        // The quarter, and the eighth for small ones.
        if others <= most / 4 + most / 8 {
            return Growth::Grow;
        }
        // Some have been left half read. One that still grows will soon wait, too.
        let mut newer = self.growing.range((id.0, id.1 + 1)..);
        if newer.any(|(_, other)| other.stage != Stage::Waits && self.takes_turn(other)) {
            return Growth::Wait;
        }
        let newest = self.growing.iter_mut().rfind(|(_, one)| one.bytes > 0);
        match newest.filter(|(_, one)| !one.gives_way) {
            Some((newest, one)) => {
                one.gives_way = true;
                match newest.0 == id.0 {
                    true => Growth::GiveWay,
                    false => Growth::Displace,
                }
            }
            None => Growth::Wait,
        }
    }
}

/// The share of one answer, given back when it is dropped.
#[derive(Debug)]
pub struct AnswerShare {
    memory: Arc<AnswerMemory>,
    /// The charges for data that its call has built of earlier answers.
    kept: Charges,
    max: usize,
    deadline: Instant,
    place: Mutex<SharePlace>,
}

/// The place of an answer in the table, and how long it waited.
#[derive(Debug, Default)]
struct SharePlace {
    id: Option<Place>,
    bytes: usize,
    /// The bytes for what is built of it, once it is whole.
    built: usize,
    waited: Duration,
    waits_since: Option<Instant>,
}

impl AnswerShare {
    /// Returns the most bytes that the answer may have.
    pub(super) fn max(&self) -> usize {
        self.max
    }

    /// Returns how long the answer has waited for others. That time is not the upstream's.
    pub(super) fn waited(&self) -> Duration {
        let place = self.place();
        let since = place.waits_since;
        place.waited + since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Returns the error for an answer that is too late, if it has more than a few of its `bytes` and the
    /// deadline has passed.
    pub(super) fn in_time(&self, bytes: usize) -> Result<(), Error> {
        if bytes <= SMALL || Instant::now() < self.deadline {
            return Ok(());
        }
        let message = "the upstream's answer came too late to be read before the deadline";
        Err(Error::new(Kind::DeadlineExceeded, message))
    }

    /// Waits until the share has room for `bytes`, which the answer's upstream is to bring, unless it is being
    /// decoded.
    ///
    /// # Errors
    ///
    /// [`Kind::Overloaded`] if there is none before the deadline, or the answer had to give way.
    async fn grow(&self, bytes: usize, decodes: bool) -> Result<(), Error> {
        let kept: Vec<Place> = self.kept.places().collect();
        let id = {
            let mut place = self.place();
            if bytes <= place.bytes.max(FREE) {
                return Ok(());
            }
            place.id.unwrap_or_else(|| {
                let mut table = self.memory.table();
                let own = table.next;
                let id = (kept.first().map_or(own, |(age, _)| *age), own);
                table.next += 1;
                let new = Growing {
                    bytes: 0,
                    stage: Stage::Waits,
                    gives_way: false,
                };
                table.growing.insert(id, new);
                place.id = Some(id);
                id
            })
        };
        let bytes = bytes.next_multiple_of(PIECE);
        let waiting = RoomWait(self);
        let mut waits = false;
        loop {
            let changed = self.memory.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let now = Instant::now();
            let turn = {
                let mut table = self.memory.table();
                let most = self.memory.most();
                table.look(now);
                let turn = table.turn(id, &kept, bytes, most);
                let stage = match decodes {
                    true => Stage::Decodes,
                    false => Stage::Reads(table.watched),
                };
                match turn {
                    Growth::Grow => table.set(id, bytes, stage),
                    Growth::Wait | Growth::Displace | Growth::GiveWay => {
                        if let Some(mine) = table.growing.get_mut(&id) {
                            mine.stage = Stage::Waits;
                        }
                    }
                }
                turn
            };
            if turn == Growth::Displace || (turn == Growth::Wait && !waits) {
                // That this one waits may be what another waits for. (It wakes itself, too, once.)
                waits = true;
                self.memory.changed.notify_waiters();
            }
            match turn {
                Growth::Grow => {
                    drop(waiting);
                    self.place().bytes = bytes;
                    return Ok(());
                }
                Growth::Wait | Growth::Displace if now < self.deadline => {
                    self.place().waits_since.get_or_insert(now);
                    let _ = timeout_at(self.deadline.min(now + LOOK), changed).await;
                }
                Growth::Wait | Growth::Displace | Growth::GiveWay => return Err(self.no_room()),
            }
        }
    }

    /// Returns an empty buffer for an answer that is said to have `length` bytes. It takes next to no memory
    /// before these have come.
    pub(super) fn buffer(&self, length: Option<u64>) -> Vec<u8> {
        let length = usize::try_from(length.unwrap_or(0)).unwrap_or(usize::MAX);
        if length <= SMALL {
            return Vec::with_capacity(length.min(FREE));
        }
        let spare = self.memory.spare().pop();
        spare.unwrap_or_else(|| Vec::with_capacity(MAPPED))
    }

    /// Waits until the share has room for `body` and `more` bytes, besides `others` that it is decoded from, and
    /// reserves these.
    ///
    /// # Errors
    ///
    /// As [`grow`](Self::grow).
    pub(super) async fn reserve(
        &self,
        body: &mut Vec<u8>,
        more: usize,
        others: usize,
    ) -> Result<(), Error> {
        let length = body.len() + more;
        self.grow(length + others, others > 0).await?;
        if length > SMALL && body.capacity() < length {
            body.reserve_exact(length.max(MAPPED).max(2 * body.capacity()) - body.len());
        }
        Ok(())
    }

    /// Takes in that nothing is expected of the upstream any more.
    pub(super) fn decodes(&self) {
        let id = self.place().id;
        let mut table = self.memory.table();
        if let Some(mine) = id.and_then(|id| table.growing.get_mut(&id)) {
            mine.stage = Stage::Decodes;
        }
    }

    fn no_room(&self) -> Error {
        let most = self.memory.most();
        let message = format!(
            "the answers of upstreams that are being read take all of the {most} bytes that there are for \
             them (half of server.max_in_flight_bytes)"
        );
        Error::new(Kind::Overloaded, message).retry_after(Some(Duration::from_secs(1)))
    }

    fn place(&self) -> MutexGuard<'_, SharePlace> {
        // Plain values are set.
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A wait that ends when this is dropped.
struct RoomWait<'a>(&'a AnswerShare);

impl Drop for RoomWait<'_> {
    fn drop(&mut self) {
        let mut place = self.0.place();
        if let Some(since) = place.waits_since.take() {
            place.waited += since.elapsed();
        }
    }
}

impl Drop for AnswerShare {
    fn drop(&mut self) {
        let id = self.place().id;
        if let Some(id) = id {
            let mut table = self.memory.table();
            table.set(id, 0, Stage::Whole);
            table.growing.remove(&id);
            drop(table);
            self.memory.changed.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::built_bytes;

    const MIB: usize = 1 << 20;

    fn deadline() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    /// Reads an answer of `bytes` in pieces that take a millisecond each, and holds it for `held`.
    async fn read(
        memory: Arc<AnswerMemory>,
        bytes: usize,
        held: Duration,
    ) -> Result<Duration, Kind> {
        let share = memory.share(usize::MAX, deadline());
        let mut length = 0;
        while length < bytes {
            length = bytes.min(length + 100_000);
            share.grow(length, false).await.map_err(|e| e.kind)?;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let waited = share.waited();
        let body = share.whole(vec![0; bytes]).await.map_err(|e| e.kind)?;
        tokio::time::sleep(held).await;
        drop(body);
        Ok(waited)
    }

    /// Reads so many answers of as many bytes at once, and watches the bytes that are used.
    async fn read_all(
        memory: &Arc<AnswerMemory>,
        count: usize,
        bytes: usize,
    ) -> (Vec<Result<Duration, Kind>>, usize) {
        let answers = (0..count).map(|_| read(memory.clone(), bytes, Duration::from_millis(5)));
        let mut most = 0;
        let watch = async {
            loop {
                most = most.max(memory.used());
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let results = tokio::select! {
            results = futures_util::future::join_all(answers) => results,
            () = watch => unreachable!(),
        };
        assert_eq!(memory.used(), 0);
        assert!(memory.table().growing.is_empty());
        (results, most)
    }

    #[tokio::test(start_paused = true)]
    async fn answers_wait_for_each_other_within_the_bound() {
        let memory = AnswerMemory::new(32 * MIB);
        let (results, most) = read_all(&memory, 16, 19_000_000).await;
        assert!(results.iter().all(Result::is_ok), "{results:?}");
        assert!(most <= 32 * MIB, "{most}");
        // The last one has waited for the others.
        assert!(results.iter().flatten().max() > Some(&Duration::from_secs(1)));
    }

    #[tokio::test(start_paused = true)]
    async fn small_answers_do_not_wait_for_large_ones() {
        let memory = AnswerMemory::new(32 * MIB);
        let large = (0..8).map(|_| read(memory.clone(), 19_000_000, Duration::from_secs(1)));
        let large = futures_util::future::join_all(large);
        let small = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            read(memory.clone(), SMALL, Duration::ZERO).await
        };
        let (large, small) = tokio::join!(large, small);
        assert_eq!(small, Ok(Duration::ZERO));
        assert!(large.iter().all(Result::is_ok), "{large:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_grows_as_if_it_were_alone() {
        let memory = AnswerMemory::new(32 * MIB);
        // One alone may be larger than all there is.
        let (results, most) = read_all(&memory, 1, 50 * MIB).await;
        assert_eq!(results, [Ok(Duration::ZERO)]);
        assert!(most >= 50 * MIB);
        // The others have a quarter meanwhile, and come afterwards.
        let (results, most) = read_all(&memory, 4, 30 * MIB).await;
        assert!(results.iter().all(Result::is_ok), "{results:?}");
        assert!(most <= (30 + 8) * MIB, "{most}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_newest_gives_way_where_others_are_left_half_read() {
        let memory = AnswerMemory::new(32 * MIB);
        let silent = memory.share(usize::MAX, deadline());
        silent.grow(20 * MIB, false).await.unwrap();
        let older = tokio::spawn(read(memory.clone(), 30 * MIB, Duration::ZERO));
        tokio::time::sleep(Duration::from_millis(1)).await;
        let newer = tokio::spawn(read(memory.clone(), 19_000_000, Duration::ZERO));
        // There is room for none of them, and the silent one may go on at any time.
        assert_eq!(newer.await.unwrap(), Err(Kind::Overloaded));
        assert_eq!(older.await.unwrap(), Err(Kind::Overloaded));
        silent.grow(25 * MIB, false).await.unwrap();
        assert!(memory.used() <= 32 * MIB);
    }

    #[tokio::test(start_paused = true)]
    async fn a_machine_short_of_processors_is_no_silent_upstream() {
        const LATE: Duration = Duration::from_secs(2);
        let memory = AnswerMemory::new(32 * MIB);
        // Whatever is to happen happens two seconds later, all at once.
        let starved = tokio::spawn(async {
            loop {
                tokio::time::advance(LATE).await;
                for _ in 0..200 {
                    tokio::task::yield_now().await;
                }
            }
        });
        let reading = (0..16).map(|_| {
            let share = memory.share(usize::MAX, Instant::now() + Duration::from_secs(36_000));
            tokio::spawn(async move {
                for megabyte in 1..=19 {
                    share.grow(megabyte * 1_000_000, false).await?;
                    tokio::time::sleep(LATE / 2).await;
                }
                share.whole(vec![0; 19_000_000]).await.map(|_| ())
            })
        });
        let reading: Vec<_> = reading.collect();
        let mut most = 0;
        for one in reading {
            while !one.is_finished() {
                most = most.max(memory.used());
                tokio::task::yield_now().await;
            }
            assert_eq!(one.await.unwrap().map_err(|e| e.kind), Ok(()));
        }
        starved.abort();
        assert!(most <= (19 + 8) * MIB, "{most}");
        assert_eq!(memory.used(), 0);
    }

    #[tokio::test]
    async fn buffers_of_long_answers_are_used_again() {
        let memory = AnswerMemory::new(64 * MIB);
        let read = async |length: usize| {
            let share = memory.share(usize::MAX, deadline());
            let mut body = share.buffer(Some(length as u64));
            let buffer = (body.as_ptr(), body.capacity());
            share.reserve(&mut body, length, 0).await.unwrap();
            body.resize(length, b' ');
            (share.whole(body).await.unwrap(), buffer)
        };
        let (first, (place, capacity)) = read(MIB).await;
        assert!(capacity >= MAPPED);
        assert!(memory.spare().is_empty());
        drop(first);
        assert_eq!(memory.spare().len(), 1);
        let (again, (same, _)) = read(2 * MIB).await;
        assert_eq!((same, again.len()), (place, 2 * MIB));
        // No more are kept than some, nor any of very long or short answers.
        let (long, _) = read(2 * MIB + 1).await;
        let (short, (_, capacity)) = read(1000).await;
        assert!((1000..=FREE).contains(&capacity));
        drop((again, long, short));
        assert_eq!(memory.spare().len(), 1);
        let mut all = Vec::new();
        for _ in 0..=SPARE_BUFFERS {
            all.push(read(MIB).await);
        }
        drop(all);
        assert_eq!(memory.spare().len(), SPARE_BUFFERS);
        assert_eq!(memory.used(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_built_is_charged_until_it_is_stored() {
        let memory = AnswerMemory::new(32 * MIB);
        let share = memory.share(usize::MAX, deadline());
        share.grow(MIB, false).await.unwrap();
        let list = b"\"a\",".repeat(MIB / 4);
        let body = share.clone().whole(list.clone()).await.unwrap();
        let charge = Charges::default().and(share);
        let built = built_bytes(&list);
        assert!(built > 10 * MIB);
        assert_eq!(memory.used(), MIB + built);
        // A large one waits meanwhile.
        let other = memory.share(usize::MAX, deadline());
        let waits = tokio::spawn(async move { other.grow(20 * MIB, false).await });
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(!waits.is_finished());
        drop(body);
        assert_eq!(memory.used(), built);
        drop(charge);
        waits.await.unwrap().unwrap();
    }

    /// Reads an answer of a mebibyte, and returns the charge for what is built of it.
    async fn built(memory: &Arc<AnswerMemory>) -> Charges {
        let share = memory.share(usize::MAX, deadline());
        share.grow(MIB, false).await.unwrap();
        let list = b"\"a\",".repeat(MIB / 4);
        drop(share.clone().whole(list).await.unwrap());
        Charges::default().and(share)
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_goes_on_is_charged_for_what_it_has_built_and_does_not_wait_for_it() {
        let memory = AnswerMemory::new(32 * MIB);
        let charges = built(&memory).await;
        let before = memory.used();
        assert!(before > 15 * MIB);
        charges.goes_on();
        let next = memory.share_after(&charges, usize::MAX, deadline());
        next.grow(28 * MIB, false).await.unwrap();
        assert_eq!(next.waited(), Duration::ZERO);
        assert_eq!(memory.used(), before + 28 * MIB);
        let all = charges.and(next);
        drop(charges);
        assert_eq!(memory.used(), before + 28 * MIB);
        drop(all);
        assert_eq!(memory.used(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn of_two_calls_that_go_on_the_newer_gives_way() {
        let memory = AnswerMemory::new(40 * MIB);
        let (older, newer) = (built(&memory).await, built(&memory).await);
        older.goes_on();
        newer.goes_on();
        let next = memory.share_after(&older, usize::MAX, deadline());
        let reads = tokio::spawn(async move { next.grow(10 * MIB, false).await });
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert!(!reads.is_finished());
        let next = memory.share_after(&newer, usize::MAX, deadline());
        let refused = next.grow(8 * MIB, false).await.unwrap_err();
        assert_eq!(refused.kind, Kind::Overloaded);
        drop((next, newer));
        reads.await.unwrap().unwrap();
        drop(older);
        assert_eq!(memory.used(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_brings_nothing_keeps_no_other_waiting() {
        let memory = AnswerMemory::new(32 * MIB);
        let stalled = memory.share(usize::MAX, deadline());
        stalled.grow(10 * MIB, false).await.unwrap();
        let waited = read(memory.clone(), 19_000_000, Duration::ZERO).await;
        let waited = waited.unwrap();
        assert!(waited > STALLED / 2 && waited < 2 * STALLED, "{waited:?}");
        drop(stalled);
        assert_eq!(memory.used(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn no_answer_waits_beyond_its_deadline() {
        let memory = AnswerMemory::new(32 * MIB);
        let first = memory.share(usize::MAX, deadline());
        first.grow(31 * MIB, false).await.unwrap();
        let body = first.whole(vec![0; 31 * MIB]).await.unwrap();
        let second = memory.share(usize::MAX, deadline());
        let begun = Instant::now();
        let refused = second.grow(2 * MIB, false).await.unwrap_err();
        assert_eq!(refused.kind, Kind::Overloaded);
        assert_eq!(begun.elapsed(), Duration::from_secs(10));
        // The memory is free as soon as the last slice is.
        let slice = body.slice(5..6);
        drop(body);
        assert_eq!(memory.used(), 31 * MIB);
        drop(slice);
        assert_eq!(memory.used(), 0);
        second.grow(2 * MIB, false).await.unwrap();
    }
}
