//! Queries for metric values that are known: clients poll the same ones again and again, with other times
//! only, so one that was read once is recognised by the bytes around its times.

use std::hash::{BuildHasher, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use foldhash::fast::RandomState;

use crate::engine::PreparedQuery;
use crate::model::TimeRange;
use crate::wire::mirror::timeless::Timeless;

/// The longest body that is kept, in bytes; a usual one has some hundred.
const LONGEST: usize = 1 << 10;

/// Bytes of the cache for each query that can be kept, so that these take about a hundredth of it; and most
/// of them.
const BYTES_EACH: u64 = 64 << 10;
const MOST: u64 = 16 << 10;

/// A table with a place for each hash: the last query of a place is kept.
pub(super) struct KnownQueries {
    hasher: RandomState,
    /// A power of two of them.
    places: Box<[Mutex<Option<KnownQuery>>]>,
}

struct KnownQuery {
    before: Box<[u8]>,
    after: Box<[u8]>,
    query: Arc<PreparedQuery>,
}

impl KnownQueries {
    /// Returns an empty table beside a cache of `bytes`.
    pub(super) fn new(bytes: u64) -> Self {
        let places = (bytes / BYTES_EACH).clamp(1, MOST).next_power_of_two();
        Self {
            hasher: RandomState::default(),
            places: (0..places).map(|_| Mutex::default()).collect(),
        }
    }

    fn place(&self, body: &Timeless<'_>) -> Option<MutexGuard<'_, Option<KnownQuery>>> {
        let mut hasher = self.hasher.build_hasher();
        hasher.write(body.before);
        hasher.write(body.after);
        let at = hasher.finish() as usize & (self.places.len() - 1);
        // Its contents are replaced whole.
        let place = self.places.get(at)?.lock();
        Some(place.unwrap_or_else(PoisonError::into_inner))
    }

    /// Returns the query in `body` and its range, if it is known.
    pub(super) fn find(&self, body: &[u8]) -> Option<(Arc<PreparedQuery>, TimeRange)> {
        if body.len() > LONGEST {
            return None;
        }
        let body = Timeless::of(body)?;
        let place = self.place(&body)?;
        let known = place.as_ref()?;
        let same = *known.before == *body.before && *known.after == *body.after;
        same.then(|| (known.query.clone(), body.range))
    }

    /// Keeps the `query` that was read from `body`, if that is of the usual form.
    pub(super) fn keep(&self, body: &[u8], query: &Arc<PreparedQuery>) {
        let body = Some(body).filter(|body| body.len() <= LONGEST);
        let Some(body) = body.and_then(Timeless::of).filter(Timeless::is_certain) else {
            return;
        };
        let known = KnownQuery {
            before: body.before.into(),
            after: body.after.into(),
            query: query.clone(),
        };
        // What was there is dropped outside of the lock.
        let _replaced = self.place(&body).and_then(|mut place| place.replace(known));
    }
}
