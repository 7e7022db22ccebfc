//! Queries for metric values that are known: clients poll the same ones again and again, with other times
//! only, so one that was read once is recognised by the bytes around its times.

use std::hash::{BuildHasher, Hasher};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use foldhash::fast::RandomState;

use super::{Engine, PreparedQuery};
use crate::model::{TimeRange, heap_block};
use crate::wire::mirror::timeless::Timeless;

/// The longest body that is kept, in bytes; a usual one has some hundred.
const LONGEST: usize = 1 << 10;

/// The share of the cache for them, one part in so many, and the most bytes. A usual query takes a kilobyte.
const SHARE: u64 = 64;
const MOST: u64 = 16 << 20;

/// The bytes for each place. A power of two of places is at least half full when the bytes are used up.
const BYTES_EACH: u64 = 1 << 10;

/// A table with a place for each hash: the last query of a place is kept.
pub(super) struct KnownQueries {
    hasher: RandomState,
    /// A power of two of them.
    places: Box<[Mutex<Option<KnownQuery>>]>,
    /// The most that the queries may weigh, and what they do, in bytes.
    most: usize,
    held: AtomicUsize,
    /// The place that is emptied next if they weigh more.
    hand: AtomicUsize,
}

struct KnownQuery {
    before: Box<[u8]>,
    after: Box<[u8]>,
    query: Arc<PreparedQuery>,
}

impl KnownQuery {
    /// Returns the bytes that it holds on the heap. The lane's key may be that of cached chunks, which count it
    /// too.
    fn weight(&self) -> usize {
        // An `Arc` has two counters of a word.
        let query = heap_block(size_of::<PreparedQuery>() + 2 * size_of::<usize>());
        let bodies = heap_block(self.before.len()) + heap_block(self.after.len());
        query + bodies + self.query.lane.key.heap_bytes()
    }
}

impl KnownQueries {
    /// Returns an empty table beside a cache of `bytes`.
    pub(super) fn new(bytes: u64) -> Self {
        let most = Self::most(bytes);
        let places = (most / BYTES_EACH).max(1).next_power_of_two();
        let places: Box<[_]> = (0..places).map(|_| Mutex::default()).collect();
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        Self {
            hasher: RandomState::default(),
            most: most.saturating_sub(size_of_val(&*places)),
            places,
            held: AtomicUsize::new(0),
            hand: AtomicUsize::new(0),
        }
    }

    /// Returns the most bytes that a table beside a cache of `bytes` takes, its places included.
    pub(super) fn most(bytes: u64) -> u64 {
        (bytes / SHARE).min(MOST)
    }

    /// Returns the bytes of the queries.
    pub(super) fn weight(&self) -> u64 {
        self.held.load(Ordering::Relaxed) as u64
    }

    fn place(&self, at: usize) -> Option<MutexGuard<'_, Option<KnownQuery>>> {
        // Its contents are replaced whole.
        let place = self.places.get(at & (self.places.len() - 1))?.lock();
        Some(place.unwrap_or_else(PoisonError::into_inner))
    }

    fn place_of(&self, body: &Timeless<'_>) -> Option<MutexGuard<'_, Option<KnownQuery>>> {
        let mut hasher = self.hasher.build_hasher();
        hasher.write(body.before);
        hasher.write(body.after);
        self.place(hasher.finish() as usize)
    }

    fn find(&self, body: &[u8]) -> Option<(Arc<PreparedQuery>, TimeRange)> {
        if body.len() > LONGEST {
            return None;
        }
        let body = Timeless::of(body)?;
        let place = self.place_of(&body)?;
        let known = place.as_ref()?;
        let same = *known.before == *body.before && *known.after == *body.after;
        same.then(|| (known.query.clone(), body.range))
    }

    fn keep(&self, body: &[u8], query: &Arc<PreparedQuery>) {
        let body = Some(body).filter(|body| body.len() <= LONGEST);
        let Some(body) = body.and_then(Timeless::of).filter(Timeless::is_certain) else {
            return;
        };
        let known = KnownQuery {
            before: body.before.into(),
            after: body.after.into(),
            query: query.clone(),
        };
        let weight = known.weight();
        if weight > self.most {
            return;
        }
        self.held.fetch_add(weight, Ordering::Relaxed);
        // What was there is dropped outside of the lock.
        let replaced = self
            .place_of(&body)
            .and_then(|mut place| place.replace(known));
        self.dropped(replaced.as_ref());
        for _ in 0..self.places.len() {
            if self.held.load(Ordering::Relaxed) <= self.most {
                break;
            }
            let at = self.hand.fetch_add(1, Ordering::Relaxed);
            let emptied = self.place(at).and_then(|mut place| place.take());
            self.dropped(emptied.as_ref());
        }
    }

    /// Counts back the bytes of `known`, which is about to be dropped.
    fn dropped(&self, known: Option<&KnownQuery>) {
        let weight = known.map_or(0, KnownQuery::weight);
        self.held.fetch_sub(weight, Ordering::Relaxed);
    }
}

impl Engine {
    /// Returns the query for metric values in `body` and its range, if it is known.
    pub fn known_query(&self, body: &[u8]) -> Option<(Arc<PreparedQuery>, TimeRange)> {
        self.known.find(body)
    }

    /// Keeps the `query` that was read from `body`, if that is of the usual form.
    pub fn keep_query(&self, body: &[u8], query: &Arc<PreparedQuery>) {
        // Targets that details name by themselves are given up once nobody holds them.
        let upstream = query.lane.upstream.id();
        if self.upstreams().iter().any(|u| u.id() == upstream) {
            self.known.keep(body, query);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::lane::Lane;
    use crate::engine::tests::lane;
    use crate::model::Details;
    use crate::wire::mirror::request::{RequestBounds, read_metric};

    /// Returns a body of about `size` bytes, and what is read from it.
    fn query(n: usize, size: usize, like: &Lane) -> (Vec<u8>, Arc<PreparedQuery>) {
        let value = format!("{n:x>size$}");
        let body = format!(
            r#"{{"connectionDetails":{{}},"query":{{"conditions":[{{"key":"a","value":"{value}"}}],"startTime":5,"endTime":{}}}}}"#,
            6 + n
        );
        let read = read_metric(body.as_bytes(), RequestBounds::default());
        let query = PreparedQuery {
            lane: Lane::of(
                like.upstream.clone(),
                &Details::default(),
                read.unwrap().query,
            ),
            limit: 1,
            units: 1,
            timeout: None,
        };
        (body.into_bytes(), Arc::new(query))
    }

    #[test]
    fn queries_that_differ_in_their_times_are_one() {
        let known = KnownQueries::new(256 << 20);
        let (body, read) = query(7, 20, &lane());
        assert!(known.find(&body).is_none() && known.weight() == 0);
        known.keep(&body, &read);
        let weight = known.weight();
        known.keep(&body, &read);
        assert_eq!(known.weight(), weight);
        let text = String::from_utf8(body).unwrap();
        let later = text.replace(":5,", ":6,").replace(":13}", ":14}");
        assert_ne!(text, later);
        let (found, range) = known.find(later.as_bytes()).unwrap();
        assert!(Arc::ptr_eq(&found, &read));
        assert_eq!((range.start(), range.end()), (6, 14));
        assert!(
            known
                .find(text.replace("\"a\"", "\"b\"").as_bytes())
                .is_none()
        );
        // A longer one is not kept.
        let (body, read) = query(7, LONGEST, &lane());
        known.keep(&body, &read);
        assert!(known.find(&body).is_none());
    }

    #[test]
    fn one_that_takes_the_place_of_another_is_not_taken_for_it() {
        // So small that there are two places.
        let known = KnownQueries::new((2 << 10) * SHARE);
        assert_eq!(known.places.len(), 2);
        let at = lane();
        let queries: Vec<_> = (0..20).map(|n| query(n, 20, &at)).collect();
        for (body, read) in &queries {
            known.keep(body, read);
        }
        let mut found = 0;
        for (body, read) in &queries {
            if let Some((query, _)) = known.find(body) {
                assert!(Arc::ptr_eq(&query, read));
                found += 1;
            }
        }
        assert!((1..=2).contains(&found), "{found}");
    }

    #[test]
    fn one_whose_times_may_be_others_is_not_kept() {
        let known = KnownQueries::new(256 << 20);
        let (body, read) = query(7, 20, &lane());
        let twice = String::from_utf8(body)
            .unwrap()
            .replace("]", "],\"endTime\" :9");
        known.keep(twice.as_bytes(), &read);
        assert!(Timeless::of(twice.as_bytes()).is_some() && known.find(twice.as_bytes()).is_none());
    }

    #[test]
    fn they_weigh_no_more_than_their_share() {
        const CACHE: u64 = 16 << 20;
        let (known, lane) = (KnownQueries::new(CACHE), lane());
        let most = CACHE / SHARE;
        for size in [850, 1, 300] {
            let mut found = 0;
            for n in 0..3_000 {
                let (body, read) = query(n, size, &lane);
                known.keep(&body, &read);
                assert!(known.weight() <= most);
                found += usize::from(known.find(&body).is_some());
            }
            // Some make room for themselves.
            assert!(found > 2_700, "{found} of {size}");
            let held = known.places.iter().filter_map(|place| {
                let place = place.lock().unwrap();
                place.as_ref().map(KnownQuery::weight)
            });
            let (weight, count) = held.fold((0, 0), |(all, n), one| (all + one, n + 1));
            assert_eq!(weight as u64, known.weight());
            assert!(count >= 60, "{count} of {size}");
        }
    }
}
