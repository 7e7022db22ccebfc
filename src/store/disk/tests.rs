use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use proptest::prelude::*;

use super::log::segments;
use super::*;
use crate::model::{Millis, RangeSet, TimeRange};
use crate::store::key::UpstreamName;

const SIZE: u64 = 1 << 20;

#[derive(Debug)]
struct Fixed(AtomicI64);

impl Clock for Fixed {
    fn now(&self) -> Millis {
        self.0.load(Ordering::SeqCst)
    }

    fn monotonic(&self) -> Duration {
        Duration::ZERO
    }
}

fn clock() -> Arc<Fixed> {
    Arc::new(Fixed(AtomicI64::new(1_800_000_000_000)))
}

/// Opens `dir`. A process that another test starts has the lock of a disk that was just dropped, too, until
/// its own program runs: it is waited for.
fn open(dir: &Path) -> Disk {
    loop {
        match Disk::open(dir, SIZE, clock()) {
            Err(error) if error.starts_with("another process uses ") => {
                fs::File::open(dir.join(LOCK)).unwrap().lock().unwrap();
            }
            opened => return opened.unwrap(),
        }
    }
}

fn key(lane: u8, slot: i64) -> ValueKey {
    ValueKey {
        lane: [lane; 16],
        slot,
    }
}

fn value(seed: u64, length: usize) -> Vec<u8> {
    let byte = |i: usize| (seed.wrapping_mul(0x9E37_79B9).wrapping_add(i as u64 * 31) >> 3) as u8;
    (0..length).map(byte).collect()
}

fn put(key: ValueKey, bytes: Vec<u8>) -> Put {
    Put {
        key,
        replaces: None,
        bytes,
        ttl: Duration::from_secs(3600),
    }
}

fn bytes_on_disk(dir: &Path) -> u64 {
    let files = fs::read_dir(dir).unwrap().map(|f| f.unwrap());
    let segments = files.filter(|f| f.path().extension().is_some_and(|e| e == "segment"));
    segments.map(|f| f.metadata().unwrap().len()).sum()
}

async fn read(disk: &Disk, key: ValueKey) -> Option<Vec<u8>> {
    disk.read(vec![key]).await.unwrap().remove(0)?.bytes
}

#[tokio::test]
async fn values_are_there_after_a_restart_the_newest_of_each_key() {
    let dir = tempfile::tempdir().unwrap();
    let disk = open(dir.path());
    for i in 0..50u64 {
        let puts = vec![put(key(1, i as i64 % 10), value(i, 100 + i as usize))];
        assert_eq!(disk.write(puts).await, Ok(vec![true]));
    }
    let name = disk.names().upstream(b"store");
    drop(disk);
    for _ in 0..3 {
        let disk = open(dir.path());
        for i in 40..50u64 {
            let found = read(&disk, key(1, i as i64 % 10)).await;
            assert_eq!(found, Some(value(i, 100 + i as usize)));
        }
        assert_eq!(read(&disk, key(2, 0)).await, None);
        assert_eq!(disk.names().upstream(b"store"), name);
    }
}

#[tokio::test]
async fn there_is_never_more_on_disk_than_allowed_and_the_newest_stays() {
    let dir = tempfile::tempdir().unwrap();
    let disk = open(dir.path());
    for i in 0..4000u64 {
        let length = 200 + (i * 7919 % 3000) as usize;
        disk.write(vec![put(key(3, i as i64), value(i, length))])
            .await
            .unwrap();
        if i % 100 == 0 {
            assert!(bytes_on_disk(dir.path()) <= SIZE);
        }
    }
    assert!(bytes_on_disk(dir.path()) > SIZE / 2);
    for i in 3900..4000u64 {
        let length = 200 + (i * 7919 % 3000) as usize;
        assert_eq!(read(&disk, key(3, i as i64)).await, Some(value(i, length)));
    }
    assert_eq!(read(&disk, key(3, 0)).await, None);
    drop(disk);
    let smaller = Disk::open(dir.path(), SIZE / 2, clock()).unwrap();
    assert!(bytes_on_disk(dir.path()) <= SIZE / 2);
    drop(smaller);
}

/// Tails are written again and again; pages, once. They must not push pages out that are of use.
#[tokio::test]
async fn values_that_were_replaced_make_room_before_others() {
    let dir = tempfile::tempdir().unwrap();
    let disk = open(dir.path());
    for page in 0..50u64 {
        let page = put(key(4, page as i64), value(page, 1000));
        disk.write(vec![page]).await.unwrap();
    }
    for i in 0..10_000u64 {
        let tail = put(key(5, i64::MIN), value(i, 500));
        disk.write(vec![tail]).await.unwrap();
    }
    assert!(bytes_on_disk(dir.path()) <= SIZE);
    for page in 0..50u64 {
        let found = read(&disk, key(4, page as i64)).await;
        assert_eq!(found, Some(value(page, 1000)), "page {page}");
    }
}

#[tokio::test]
async fn what_has_expired_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let time = clock();
    let disk = Disk::open(dir.path(), SIZE, time.clone()).unwrap();
    disk.write(vec![put(key(1, 1), value(1, 50))])
        .await
        .unwrap();
    assert!(read(&disk, key(1, 1)).await.is_some());
    time.0.fetch_add(3_600_000, Ordering::SeqCst);
    assert_eq!(read(&disk, key(1, 1)).await, None);
}

#[test]
fn a_second_process_is_kept_out_and_a_folder_that_cannot_be_written_to_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(dir.path());
    let error = Disk::open(dir.path(), SIZE, clock()).err().unwrap();
    assert!(error.starts_with("another process uses "), "{error}");
    drop(first);
    let file = dir.path().join("file");
    fs::write(&file, b"").unwrap();
    let error = Disk::open(&file.join("x"), SIZE, clock()).err().unwrap();
    assert!(error.contains("cannot be made in"), "{error}");
}

#[tokio::test]
async fn invalidations_are_there_after_a_restart_and_a_lost_list_has_another_epoch() {
    let dir = tempfile::tempdir().unwrap();
    let disk = open(dir.path());
    let before = disk.state().unwrap().invalidations.stamp();
    let upstream = UpstreamName([3; 16]);
    let range = TimeRange::new(5, 9).unwrap();
    disk.invalidate(Invalidation { upstream, range })
        .await
        .unwrap();
    disk.write(vec![put(key(1, 1), value(1, 50))])
        .await
        .unwrap();
    drop(disk);
    let disk = open(dir.path());
    let unknown = |disk: &Disk| {
        let state = disk.state().unwrap();
        state.invalidations.unknown(before, upstream)
    };
    assert_eq!(unknown(&disk), Some(RangeSet::from(range)));
    drop(disk);
    let state = dir.path().join(STATE);
    let mut bytes = fs::read(&state).unwrap();
    bytes[20] ^= 1;
    fs::write(&state, bytes).unwrap();
    let disk = open(dir.path());
    assert_eq!(unknown(&disk), None);
    assert_eq!(read(&disk, key(1, 1)).await, None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// The file ends or is damaged anywhere: what is read is what was written, or nothing.
    #[test]
    fn what_is_torn_or_damaged_is_lost_and_nothing_wrong_is_read(
        sizes in prop::collection::vec(1usize..2000, 1..120),
        cut in any::<prop::sample::Index>(),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 0..6),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let disk = open(dir.path());
            for (i, size) in sizes.iter().enumerate() {
                let value = value(i as u64, *size);
                disk.write(vec![put(key(1, i as i64), value)]).await.unwrap();
            }
            drop(disk);
            let mut segments = segments(dir.path()).unwrap();
            segments.sort_unstable();
            let path = |n: u32| dir.path().join(format!("{n:010}.segment"));
            for (which, at) in flips {
                let path = path(*which.get(&segments));
                let mut bytes = fs::read(&path).unwrap();
                let at = at.index(bytes.len());
                bytes[at] ^= 0x10;
                fs::write(&path, bytes).unwrap();
            }
            let last = path(*segments.last().unwrap());
            let bytes = fs::read(&last).unwrap();
            fs::write(&last, &bytes[..cut.index(bytes.len() + 1)]).unwrap();
            for round in 0..2 {
                let disk = open(dir.path());
                for (i, size) in sizes.iter().enumerate() {
                    if let Some(found) = read(&disk, key(1, i as i64)).await {
                        assert_eq!(found, value(i as u64, *size));
                    }
                }
                // It takes new values, and keeps them.
                let new = key(2, round);
                disk.write(vec![put(new, value(9, 300))]).await.unwrap();
                assert_eq!(read(&disk, new).await, Some(value(9, 300)));
            }
        });
    }
}
