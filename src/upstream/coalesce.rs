//! Shared fetches. A fetch is a task of its own: all requests that need its result wait for it.
//!
//! When the last of them has left, a call that has not been sent is dropped. A call that has been
//! sent comes to its end and is stored: the upstream has done the work, and clients that give up
//! and come again would have it done for nothing again and again.

use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, watch};

use crate::model::{Error, Kind, RangeSet, TimeRange};
use crate::telemetry::trace::{Span, Trace};

type FlightOutcome<T> = Option<Result<T, Error>>;

/// One fetch in flight, for one of the requests that wait for it.
pub struct Flight<T>(Arc<SharedFlight<T>>);

struct SharedFlight<T> {
    id: u64,
    range: TimeRange,
    outcome: watch::Receiver<FlightOutcome<T>>,
    /// The trace that it belongs to.
    trace: Trace,
    waiters: Waiters,
}

impl<T: Clone> Flight<T> {
    /// Returns the range that it fetches.
    pub fn range(&self) -> TimeRange {
        self.0.range
    }

    /// Waits for its outcome.
    pub async fn outcome(&self) -> Result<T, Error> {
        let mut outcome = self.0.outcome.clone();
        match outcome.wait_for(Option::is_some).await {
            Ok(outcome) => outcome
                .clone()
                .unwrap_or_else(|| Err(Error::new(Kind::Internal, "a fetch has no outcome"))),
            Err(_) => Err(Error::new(
                Kind::Internal,
                "a fetch ended without an outcome",
            )),
        }
    }
}

impl<T> Drop for Flight<T> {
    fn drop(&mut self) {
        self.0.waiters.leave();
    }
}

/// The requests that wait for a fetch. The calls that it consists of check this before they are
/// sent: one that nobody waits for is not sent.
///
/// The default is for calls that are made whoever waits.
#[derive(Clone, Debug, Default)]
pub struct Waiters(Option<Arc<CountedWaiters>>);

#[derive(Debug)]
struct CountedWaiters {
    count: Mutex<WaiterCount>,
    left: Notify,
}

#[derive(Debug)]
struct WaiterCount {
    waiting: usize,
    /// Set once the fetch has ended for want of waiters, so that nobody can join it any more.
    given_up: bool,
}

impl Waiters {
    /// Returns a count of one.
    pub(super) fn one() -> Self {
        Self(Some(Arc::new(CountedWaiters {
            count: Mutex::new(WaiterCount {
                waiting: 1,
                given_up: false,
            }),
            left: Notify::new(),
        })))
    }

    /// Adds one that waits, unless the fetch has been given up.
    pub(super) fn join(&self) -> bool {
        let Some(counted) = &self.0 else { return true };
        let mut count = lock(&counted.count);
        if !count.given_up {
            count.waiting += 1;
        }
        !count.given_up
    }

    pub(super) fn leave(&self) {
        if let Some(counted) = &self.0 {
            lock(&counted.count).waiting -= 1;
            counted.left.notify_waiters();
        }
    }

    /// Returns whether nobody waits any more; then the fetch is given up, and nobody can join it.
    pub(super) fn are_gone(&self) -> bool {
        let Some(counted) = &self.0 else { return false };
        let mut count = lock(&counted.count);
        count.given_up |= count.waiting == 0;
        count.given_up
    }

    /// Waits until nobody waits any more.
    pub(super) async fn gone(&self) {
        let Some(counted) = &self.0 else {
            return std::future::pending().await;
        };
        loop {
            let left = counted.left.notified();
            tokio::pin!(left);
            // From here on it is notified of every waiter that leaves.
            left.as_mut().enable();
            if self.are_gone() {
                return;
            }
            left.await;
        }
    }
}

type FlightTable<K, T> = HashMap<K, Vec<Arc<SharedFlight<T>>>>;

/// The fetches in flight, by key.
pub struct Flights<K, T> {
    // A plain mutex: it is held for a look-up and never across an await.
    table: Arc<Mutex<FlightTable<K, T>>>,
    next: Mutex<u64>,
}

impl<K, T> Default for Flights<K, T> {
    fn default() -> Self {
        Self {
            table: Arc::default(),
            next: Mutex::default(),
        }
    }
}

/// The fetches that together bring what was requested.
pub struct Joined<T> {
    /// The fetches.
    pub flights: Vec<Flight<T>>,
    /// Number of these that were in flight already.
    pub joined: usize,
}

impl<T> Joined<T> {
    /// Records in `span`, which waits for them, the traces of fetches that others began.
    pub fn show(&self, span: &mut Span) {
        span.flag("heliostat.collapsed", self.joined > 0);
        for flight in self.flights.iter().take(self.joined) {
            span.link(&flight.0.trace);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Entries are added and removed whole, so the table is sound even after a panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<K, T> Flights<K, T>
where
    K: Clone + Eq + Hash + Send + 'static,
    T: Clone + Send + Sync + 'static,
{
    /// Returns the fetches of `key` that together bring all of `wanted` that is `needed`: those in
    /// flight that overlap it, and, for the rest, new ones made by `fetch` as a part of `trace`, for
    /// their waiters. New ones bring what else is wanted of their range, too.
    pub fn join_or_start<F>(
        &self,
        key: &K,
        wanted: &[TimeRange],
        needed: &TimeRange,
        trace: &Trace,
        mut fetch: impl FnMut(TimeRange, Waiters) -> F,
    ) -> Joined<T>
    where
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let mut table = lock(&self.table);
        let under_way = table.entry(key.clone()).or_default();
        let mut flights: Vec<Flight<T>> = under_way
            .iter()
            .filter(|f| {
                let mut parts = wanted.iter().filter_map(|w| w.intersection(needed));
                parts.any(|part| part.intersection(&f.range).is_some())
            })
            .filter(|f| f.waiters.join())
            .map(|f| Flight(f.clone()))
            .collect();
        let joined = flights.len();
        let brought: RangeSet = flights.iter().map(|f| f.0.range).collect();
        for wanted in wanted {
            let rest = brought.missing_from(*wanted);
            for range in rest.iter().filter(|r| r.intersection(needed).is_some()) {
                let waiters = Waiters::one();
                let fetch = fetch(*range, waiters.clone());
                let flight = self.start(key, *range, trace, waiters, fetch);
                under_way.push(flight.clone());
                flights.push(Flight(flight));
            }
        }
        if under_way.is_empty() {
            table.remove(key);
        }
        Joined { flights, joined }
    }

    /// Lets nobody join the fetches in flight that `which` picks any more; requests that wait for
    /// them still do.
    pub fn abandon(&self, which: impl Fn(&K) -> bool) {
        lock(&self.table).retain(|key, _| !which(key));
    }

    /// Returns whether a fetch of `key` is in flight.
    pub fn is_under_way(&self, key: &K) -> bool {
        lock(&self.table).contains_key(key)
    }

    /// Returns the ranges of `key` that are in flight.
    pub fn under_way(&self, key: &K) -> RangeSet {
        let table = lock(&self.table);
        let flights = table.get(key).into_iter().flatten();
        flights.map(|f| f.range).collect()
    }

    fn start<F>(
        &self,
        key: &K,
        range: TimeRange,
        trace: &Trace,
        waiters: Waiters,
        fetch: F,
    ) -> Arc<SharedFlight<T>>
    where
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let id = {
            let mut next = lock(&self.next);
            *next += 1;
            *next
        };
        let (sender, outcome) = watch::channel(None);
        let entry = FlightEntry {
            table: self.table.clone(),
            key: key.clone(),
            id,
        };
        tokio::spawn(async move {
            let outcome = fetch.await;
            // Removed first: a request that comes now finds the result in the cache.
            drop(entry);
            sender.send_replace(Some(outcome));
        });
        Arc::new(SharedFlight {
            id,
            range,
            outcome,
            trace: trace.clone(),
            waiters,
        })
    }
}

/// A fetch's place in the table, which it leaves however it ends.
struct FlightEntry<K: Eq + Hash, T> {
    table: Arc<Mutex<FlightTable<K, T>>>,
    key: K,
    id: u64,
}

impl<K: Eq + Hash, T> Drop for FlightEntry<K, T> {
    fn drop(&mut self) {
        let mut table = lock(&self.table);
        if let Some(under_way) = table.get_mut(&self.key) {
            under_way.retain(|f| f.id != self.id);
            if under_way.is_empty() {
                table.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    fn range(start: i64, end: i64) -> TimeRange {
        TimeRange::new(start, end).unwrap()
    }

    struct Counted {
        flights: Flights<&'static str, TimeRange>,
        started: Arc<AtomicUsize>,
        ended: Arc<AtomicUsize>,
        /// Time for which a fetch waits before it is sent.
        queued: Duration,
    }

    impl Counted {
        fn new() -> Self {
            Self {
                flights: Flights::default(),
                started: Arc::default(),
                ended: Arc::default(),
                queued: Duration::ZERO,
            }
        }

        fn join_or_start(&self, wanted: &[TimeRange]) -> Joined<TimeRange> {
            let (started, ended) = (self.started.clone(), self.ended.clone());
            self.flights.join_or_start(
                &"lane",
                wanted,
                &TimeRange::ALL,
                &Trace::default(),
                move |range, waiters| {
                    let (started, ended) = (started.clone(), ended.clone());
                    let queued = self.queued;
                    async move {
                        tokio::select! {
                            () = tokio::time::sleep(queued) => {}
                            () = waiters.gone() => return Err(Error::new(Kind::Internal, "gone")),
                        }
                        started.fetch_add(1, Ordering::SeqCst);
                        tokio::time::sleep(Duration::from_secs(1)).await;
                        ended.fetch_add(1, Ordering::SeqCst);
                        Ok(range)
                    }
                },
            )
        }

        fn counts(&self) -> (usize, usize) {
            (
                self.started.load(Ordering::SeqCst),
                self.ended.load(Ordering::SeqCst),
            )
        }
    }

    #[tokio::test(start_paused = true)]
    async fn ten_thousand_overlapping_requests_cost_one_fetch_for_each_piece() {
        let counted = Counted::new();
        let joined: Vec<_> = (0..10_000)
            .map(|i| counted.join_or_start(&[range(i % 2 * 5, 10)]))
            .collect();
        for joined in joined {
            for flight in joined.flights {
                flight.outcome().await.unwrap();
            }
        }
        assert_eq!(counted.counts(), (1, 1));
        assert!(lock(&counted.flights.table).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn only_what_no_other_fetch_brings_is_fetched() {
        let counted = Counted::new();
        let first = counted.join_or_start(&[range(10, 20)]);
        let second = counted.join_or_start(&[range(0, 30)]);
        assert_eq!((second.joined, second.flights.len()), (1, 3));
        let mut ranges = Vec::new();
        for flight in &second.flights {
            ranges.push(flight.outcome().await.unwrap());
        }
        assert_eq!(ranges, [range(10, 20), range(0, 10), range(20, 30)]);
        drop(first);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_wanted_and_not_needed_is_neither_fetched_alone_nor_waited_for() {
        let counted = Counted::new();
        let first = counted.join_or_start(&[range(0, 10)]);
        let join = |wanted, needed: TimeRange| {
            let fetch = |range, _| async move { Ok(range) };
            let flights = &counted.flights;
            flights.join_or_start(&"lane", &[wanted], &needed, &Trace::default(), fetch)
        };
        let ranges = |joined: &Joined<TimeRange>| -> Vec<_> {
            joined.flights.iter().map(Flight::range).collect()
        };
        let within = join(range(5, 15), range(5, 10));
        assert_eq!(ranges(&within), [range(0, 10)]);
        let beyond = join(range(5, 15), range(5, 12));
        assert_eq!(ranges(&beyond), [range(0, 10), range(10, 15)]);
        let before = join(range(-5, 15), range(-5, 0));
        assert_eq!(ranges(&before), [range(-5, 15)]);
        drop((first, within));
    }

    #[tokio::test(start_paused = true)]
    async fn what_has_not_been_sent_is_dropped_with_the_last_waiter_and_not_before() {
        let counted = Counted {
            queued: Duration::from_secs(1),
            ..Counted::new()
        };
        let first = counted.join_or_start(&[range(0, 10)]);
        let second = counted.join_or_start(&[range(0, 10)]);
        tokio::task::yield_now().await;
        drop(first);
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(lock(&counted.flights.table).len(), 1);
        drop(second);
        tokio::task::yield_now().await;
        assert!(lock(&counted.flights.table).is_empty());
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(counted.counts(), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn what_has_been_sent_comes_to_its_end_and_can_be_joined_meanwhile() {
        let counted = Counted::new();
        let first = counted.join_or_start(&[range(0, 10)]);
        tokio::time::sleep(Duration::from_millis(500)).await;
        drop(first);
        tokio::time::sleep(Duration::from_millis(100)).await;
        let second = counted.join_or_start(&[range(0, 10)]);
        assert_eq!(second.joined, 1);
        drop(second);
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(counted.counts(), (1, 1));
        assert!(lock(&counted.flights.table).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_joins_a_fetch_that_is_given_up() {
        let flights: Flights<u8, u8> = Flights::default();
        let never = |_, waiters: Waiters| async move {
            waiters.gone().await;
            // The task may end a while after it has given up.
            tokio::time::sleep(Duration::from_secs(1)).await;
            Err(Error::new(Kind::Internal, "given up"))
        };
        let at = [range(0, 1)];
        drop(flights.join_or_start(&1, &at, &at[0], &Trace::default(), never));
        tokio::task::yield_now().await;
        let at_once = |_, _| async { Ok(7) };
        let second = flights.join_or_start(&1, &at, &at[0], &Trace::default(), at_once);
        assert_eq!(second.joined, 0);
        assert_eq!(second.flights[0].outcome().await, Ok(7));
    }

    #[tokio::test(start_paused = true)]
    async fn an_error_reaches_everyone_and_the_next_request_tries_again() {
        let flights: Flights<u8, u8> = Flights::default();
        let at = [range(0, 1)];
        let fail = |_, _| async { Err(Error::new(Kind::UpstreamFailed, "no")) };
        let first = flights.join_or_start(&1, &at, &at[0], &Trace::default(), fail);
        let second = flights.join_or_start(&1, &at, &at[0], &Trace::default(), fail);
        for joined in [first, second] {
            let error = joined.flights[0].outcome().await.unwrap_err();
            assert_eq!(error.kind, Kind::UpstreamFailed);
        }
        let third =
            flights.join_or_start(&1, &at, &at[0], &Trace::default(), |_, _| async { Ok(7) });
        assert_eq!(third.joined, 0);
        assert_eq!(third.flights[0].outcome().await, Ok(7));
    }
}
