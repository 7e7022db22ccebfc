//! Shared fetches. A fetch is a task of its own: whoever needs what it will bring waits for it,
//! and it is dropped when the last of them has left.

use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::model::{Error, Kind, RangeSet, TimeRange};
use crate::telemetry::trace::{Span, Trace};

type FlightOutcome<T> = Option<Result<T, Error>>;

/// One fetch under way, held by each of those who wait for it.
pub struct Flight<T> {
    range: TimeRange,
    outcome: watch::Receiver<FlightOutcome<T>>,
    /// What it is a part of.
    trace: Trace,
    task: AbortHandle,
}

impl<T: Clone> Flight<T> {
    /// What it is to bring.
    pub fn range(&self) -> TimeRange {
        self.range
    }

    /// What it brought.
    pub async fn outcome(&self) -> Result<T, Error> {
        let mut outcome = self.outcome.clone();
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
        // A task that has ended does not mind.
        self.task.abort();
    }
}

type FlightTable<K, T> = HashMap<K, Vec<(u64, TimeRange, Weak<Flight<T>>)>>;

/// The fetches under way, by what they are of.
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

/// The fetches that together bring what was wanted.
pub struct Joined<T> {
    /// The fetches.
    pub flights: Vec<Arc<Flight<T>>>,
    /// How many of them were under way already.
    pub joined: usize,
}

impl<T> Joined<T> {
    /// Shows in `span`, which waits for them, whose fetches they are.
    pub fn show(&self, span: &mut Span) {
        span.flag("heliostat.collapsed", self.joined > 0);
        for flight in self.flights.iter().take(self.joined) {
            span.link(&flight.trace);
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
    /// The fetches of `key` that bring all of `wanted`: those under way that overlap it, and, for
    /// what is left, new ones made by `fetch` as a part of `trace`.
    pub fn join_or_start<F>(
        &self,
        key: &K,
        wanted: &[TimeRange],
        trace: &Trace,
        mut fetch: impl FnMut(TimeRange) -> F,
    ) -> Joined<T>
    where
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let mut table = lock(&self.table);
        let under_way = table.entry(key.clone()).or_default();
        let mut flights: Vec<Arc<Flight<T>>> = under_way
            .iter()
            .filter(|(_, range, _)| wanted.iter().any(|w| w.intersection(range).is_some()))
            .filter_map(|(_, _, flight)| flight.upgrade())
            .collect();
        let joined = flights.len();
        let brought: RangeSet = flights.iter().map(|f| f.range).collect();
        for wanted in wanted {
            for range in brought.missing_from(*wanted).iter() {
                let flight = self.start(key, *range, trace, fetch(*range));
                under_way.push((flight.0, *range, Arc::downgrade(&flight.1)));
                flights.push(flight.1);
            }
        }
        if under_way.is_empty() {
            table.remove(key);
        }
        Joined { flights, joined }
    }

    /// Lets nobody join the fetches under way that `which` picks any more; those who wait for them
    /// do so still.
    pub fn abandon(&self, which: impl Fn(&K) -> bool) {
        lock(&self.table).retain(|key, _| !which(key));
    }

    /// Whether a fetch of `key` is under way.
    pub fn is_under_way(&self, key: &K) -> bool {
        lock(&self.table).contains_key(key)
    }

    /// What the fetches of `key` that are under way bring.
    pub fn under_way(&self, key: &K) -> RangeSet {
        let table = lock(&self.table);
        let flights = table.get(key).into_iter().flatten();
        flights.map(|(_, range, _)| *range).collect()
    }

    fn start<F>(&self, key: &K, range: TimeRange, trace: &Trace, fetch: F) -> (u64, Arc<Flight<T>>)
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
        let task = tokio::spawn(async move {
            let outcome = fetch.await;
            // Off the table first: whoever comes now finds what it brought in the cache.
            drop(entry);
            sender.send_replace(Some(outcome));
        });
        let flight = Flight {
            range,
            outcome,
            trace: trace.clone(),
            task: task.abort_handle(),
        };
        (id, Arc::new(flight))
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
            under_way.retain(|(id, _, _)| *id != self.id);
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
    }

    impl Counted {
        fn new() -> Self {
            Self {
                flights: Flights::default(),
                started: Arc::default(),
                ended: Arc::default(),
            }
        }

        fn join_or_start(&self, wanted: &[TimeRange]) -> Joined<TimeRange> {
            let (started, ended) = (self.started.clone(), self.ended.clone());
            self.flights
                .join_or_start(&"lane", wanted, &Trace::default(), move |range| {
                    let (started, ended) = (started.clone(), ended.clone());
                    async move {
                        started.fetch_add(1, Ordering::SeqCst);
                        tokio::time::sleep(Duration::from_secs(1)).await;
                        ended.fetch_add(1, Ordering::SeqCst);
                        Ok(range)
                    }
                })
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
    async fn a_fetch_is_dropped_with_its_last_waiter_and_not_before() {
        let counted = Counted::new();
        let first = counted.join_or_start(&[range(0, 10)]);
        let second = counted.join_or_start(&[range(0, 10)]);
        tokio::task::yield_now().await;
        drop(first);
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(lock(&counted.flights.table).len(), 1);
        drop(second);
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(counted.counts(), (1, 0));
        assert!(lock(&counted.flights.table).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn an_error_reaches_everyone_and_the_next_request_tries_again() {
        let flights: Flights<u8, u8> = Flights::default();
        let fail = |_| async { Err(Error::new(Kind::UpstreamFailed, "no")) };
        let first = flights.join_or_start(&1, &[range(0, 1)], &Trace::default(), fail);
        let second = flights.join_or_start(&1, &[range(0, 1)], &Trace::default(), fail);
        for joined in [first, second] {
            let error = joined.flights[0].outcome().await.unwrap_err();
            assert_eq!(error.kind, Kind::UpstreamFailed);
        }
        let third =
            flights.join_or_start(&1, &[range(0, 1)], &Trace::default(), |_| async { Ok(7) });
        assert_eq!(third.joined, 0);
        assert_eq!(third.flights[0].outcome().await, Ok(7));
    }
}
