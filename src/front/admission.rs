//! Admission: what each client holds of the service, and who gives way when it is full.
//!
//! Connections, requests in flight and the bytes of their bodies are bounded for all clients
//! together. When a bound is reached, the newest claim of the client that holds most gives way, so
//! one client cannot keep others out. A claim is held until the response has been sent or dropped.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};

use foldhash::fast::RandomState;
use futures_util::task::AtomicWaker;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

/// Sweeps that a response may take no progress in before it is ended.
const STALLED_SWEEPS: u32 = 4;

/// The bytes of a claim that gave way or has ended: it can hold none any more.
const GONE: usize = usize::MAX;

/// Clients that are kept without a claim until the next sweep: most have the next request soon.
const KEPT: usize = 1024;

/// The claims of all clients on one kind of thing.
#[derive(Debug, Default)]
pub(super) struct Shares {
    table: Mutex<Table>,
    /// Bytes that all claims hold.
    bytes: AtomicUsize,
    /// Told when bytes are given back while responses wait for room, and how many of these wait.
    freed: Notify,
    waiting: AtomicUsize,
}

#[derive(Debug, Default)]
struct Table {
    claims: usize,
    /// The number of the newest claim.
    next: u64,
    /// By client; `None` are trusted proxies, whose connections never give way.
    clients: HashMap<Option<IpAddr>, Holder, RandomState>,
}

/// The claims of one client, from the oldest to the newest.
#[derive(Debug, Default)]
struct Holder {
    /// At least the bytes of its claims: they count here before they are a claim's, and until they are
    /// none's.
    bytes: Arc<AtomicUsize>,
    held: Vec<Held>,
}

#[derive(Debug)]
struct Held {
    number: u64,
    claim: Weak<Claim>,
}

/// The bound is reached, and no other client holds more than the one that claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Full;

/// A client's claim on one connection or one request, and on the bytes it holds; given back when
/// dropped.
#[derive(Debug)]
pub(super) struct Claim {
    shares: Arc<Shares>,
    client: Option<IpAddr>,
    number: u64,
    /// The bytes it holds, or [`GONE`].
    bytes: AtomicUsize,
    /// Those of all claims of its client.
    clients_bytes: Arc<AtomicUsize>,
    /// The connection that a request came on.
    connection: Option<Arc<Claim>>,
    evicted: AtomicBool,
    /// The task that waits for the eviction.
    waiting: AtomicWaker,
    /// Set while the response is being sent.
    sending: AtomicBool,
    /// Bytes of the response that the connection took.
    sent: AtomicU64,
    /// `sent` at the last sweep, and the sweeps without progress.
    swept: AtomicU64,
    stalled: AtomicU32,
}

/// Returns the key of a client's share: an IPv6 host commonly has a whole /64.
pub(super) fn share_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        v4 => v4,
    }
}

impl Shares {
    /// Claims one of at most `most` places for `client`, on `connection` if it is for a request. `None`
    /// is a trusted proxy.
    ///
    /// # Errors
    ///
    /// [`Full`] if all places are taken and no other client holds more than `client` would.
    pub(super) fn claim(
        self: &Arc<Self>,
        client: Option<IpAddr>,
        most: usize,
        connection: Option<Arc<Claim>>,
    ) -> Result<Arc<Claim>, Full> {
        let client = client.map(share_of);
        let mut victim = None;
        let claim = {
            let mut table = self.table();
            if table.claims >= most {
                let others = client.and_then(|_| table.clients.get(&client));
                let own = 1 + others.map_or(0, |h| h.held.len());
                victim = Some(table.evict_newest(own).ok_or(Full)?);
            }
            table.claims += 1;
            table.next += 1;
            let number = table.next;
            let holder = table.clients.entry(client).or_default();
            let claim = Arc::new(Claim {
                shares: self.clone(),
                client,
                number,
                bytes: AtomicUsize::new(0),
                clients_bytes: holder.bytes.clone(),
                connection,
                evicted: AtomicBool::new(false),
                waiting: AtomicWaker::new(),
                sending: AtomicBool::new(false),
                sent: AtomicU64::new(0),
                swept: AtomicU64::new(0),
                stalled: AtomicU32::new(0),
            });
            holder.held.push(Held {
                number: claim.number,
                claim: Arc::downgrade(&claim),
            });
            claim
        };
        // Outside of the lock: dropping the last reference takes it again.
        if let Some(victim) = victim.and_then(|v| v.upgrade()) {
            victim.give_back();
            victim.evict();
        }
        Ok(claim)
    }

    /// Returns the number of claims and the bytes they hold.
    pub(super) fn totals(&self) -> (usize, usize) {
        (self.table().claims, self.bytes.load(Ordering::Relaxed))
    }

    /// Ends responses that made no progress in the last sweeps, and forgets clients without claims.
    /// Called every five seconds.
    pub(super) fn sweep(&self) {
        let claims: Vec<Weak<Claim>> = {
            let mut table = self.table();
            table.clients.retain(|_, holder| !holder.held.is_empty());
            let held = table.clients.values().flat_map(|h| &h.held);
            held.map(|h| h.claim.clone()).collect()
        };
        for claim in claims.iter().filter_map(Weak::upgrade) {
            if claim.is_stalled() {
                claim.evict();
            }
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // Counts are changed without anything that can panic in between.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts `more` bytes of a claim that holds `before`, if all claims together hold at most `most`
    /// then, or the others hold none; next to none are enough for one that holds more than `most`.
    fn reserve(&self, more: usize, before: usize, most: usize) -> bool {
        let fits = |held: usize| {
            let all = held.checked_add(more)?;
            let others = held.saturating_sub(before);
            let alone = others == 0 || (before.saturating_add(more) > most && others <= most / 4);
            (all <= most || alone).then_some(all)
        };
        let order = Ordering::AcqRel;
        let reserved = self.bytes.fetch_update(order, Ordering::Acquire, fits);
        reserved.is_ok()
    }
}

impl Table {
    /// Removes the newest claim of the client that holds most claims, if that is more than `own`.
    fn evict_newest(&mut self, own: usize) -> Option<Weak<Claim>> {
        let clients = self
            .clients
            .iter_mut()
            .filter(|(client, _)| client.is_some());
        let (_, largest) = clients.max_by_key(|(_, h)| h.held.len())?;
        if largest.held.len() <= own {
            return None;
        }
        let newest = largest.held.pop()?;
        self.claims -= 1;
        Some(newest.claim)
    }

    /// Makes room for `missing` bytes of a client that will hold `own` then, by removing the newest
    /// claims of clients that hold more. Removes none if that would not be enough. Returns the claims
    /// that were looked at, to be dropped outside of the lock, and whether each was removed.
    fn make_room(&mut self, missing: usize, own: usize) -> Result<Vec<(Arc<Claim>, bool)>, Full> {
        let bytes = |holder: &Holder| holder.bytes.load(Ordering::Acquire);
        let may_give_way = |(client, _): &(&Option<IpAddr>, &mut Holder)| client.is_some();
        let clients = self.clients.iter().filter(|(client, _)| client.is_some());
        let spare = clients.map(|(_, h)| bytes(h).saturating_sub(own));
        if spare.fold(0, usize::saturating_add) < missing {
            return Err(Full);
        }
        let (mut seen, mut freed) = (Vec::new(), 0usize);
        while freed < missing {
            let clients = self.clients.iter_mut().filter(may_give_way);
            let largest = clients.map(|(_, h)| h).max_by_key(|h| bytes(h));
            let Some(largest) = largest.filter(|h| bytes(h) > own) else {
                // The claims of a client come in pieces: one that was removed was larger than needed.
                break;
            };
            let mut found = None;
            for (at, held) in largest.held.iter().enumerate().rev() {
                let Some(claim) = held.claim.upgrade() else {
                    continue;
                };
                let holds = claim.bytes.load(Ordering::Acquire) > 0;
                let given_back = if holds { claim.give_back() } else { 0 };
                seen.push((claim, given_back > 0));
                if given_back > 0 {
                    found = Some((at, given_back));
                    break;
                }
            }
            let Some((at, given_back)) = found else {
                break;
            };
            largest.held.remove(at);
            self.claims -= 1;
            freed = freed.saturating_add(given_back);
        }
        Ok(seen)
    }
}

impl Claim {
    /// Sets the bytes that it holds to `bytes`, of at most `most` of all clients together. If the others
    /// hold next to none, it may hold more than that: one answer must not be too large for ever.
    ///
    /// # Errors
    ///
    /// [`Full`] if there is no room and no other client holds more, or the claim gave way itself.
    pub(super) fn hold(&self, bytes: usize, most: usize) -> Result<(), Full> {
        let before = self.bytes.load(Ordering::Acquire);
        if before == GONE {
            return Err(Full);
        }
        if before == bytes {
            return Ok(());
        }
        let more = bytes.saturating_sub(before);
        if more > 0 {
            if !self.shares.reserve(more, before, most) {
                self.reserve_of_others(more, most)?;
            }
            self.clients_bytes.fetch_add(more, Ordering::AcqRel);
        }
        let held =
            (self.bytes).compare_exchange(before, bytes, Ordering::AcqRel, Ordering::Acquire);
        // It gave way meanwhile, which gave back what it held before.
        let back = match held {
            Ok(_) => before.saturating_sub(bytes),
            Err(_) => more,
        };
        self.count_back(back);
        held.map(|_| ()).map_err(|_| Full)
    }

    /// Does the same as [`hold`](Self::hold), and waits for room until `deadline`.
    pub(super) async fn hold_by(
        &self,
        bytes: usize,
        most: usize,
        deadline: Instant,
    ) -> Result<(), Full> {
        let _waits = Waits::start(&self.shares.waiting);
        loop {
            let freed = self.shares.freed.notified();
            tokio::pin!(freed);
            // From here on it is told of what is given back.
            freed.as_mut().enable();
            let held = self.hold(bytes, most);
            let waits = held.is_err() && self.bytes.load(Ordering::Acquire) != GONE;
            if !waits || timeout_at(deadline, freed).await.is_err() {
                return held;
            }
        }
    }

    /// Counts `more` bytes for which other clients' claims have to give way.
    fn reserve_of_others(&self, more: usize, most: usize) -> Result<(), Full> {
        let total = &self.shares.bytes;
        let seen = {
            let mut table = self.shares.table();
            // Counted before there is room: nobody else takes the room that is made.
            let all = total.fetch_add(more, Ordering::AcqRel).saturating_add(more);
            let own = self
                .clients_bytes
                .load(Ordering::Acquire)
                .saturating_add(more);
            table.make_room(all.saturating_sub(most), own)
        };
        let seen = seen.inspect_err(|Full| {
            total.fetch_sub(more, Ordering::AcqRel);
        })?;
        for (claim, removed) in seen {
            if removed {
                claim.evict();
            }
        }
        Ok(())
    }

    /// Gives back the bytes that it holds, for good, and returns how many those were.
    fn give_back(&self) -> usize {
        let held = match self.bytes.swap(GONE, Ordering::AcqRel) {
            GONE => 0,
            held => held,
        };
        self.count_back(held);
        held
    }

    fn count_back(&self, bytes: usize) {
        if bytes > 0 {
            self.clients_bytes.fetch_sub(bytes, Ordering::AcqRel);
            self.shares.bytes.fetch_sub(bytes, Ordering::AcqRel);
            if self.shares.waiting.load(Ordering::Acquire) > 0 {
                self.shares.freed.notify_waiters();
            }
        }
    }

    /// Returns the client; `None` is a trusted proxy.
    pub(super) fn client(&self) -> Option<IpAddr> {
        self.client
    }

    /// Returns whether it holds any bytes.
    pub(super) fn holds(&self) -> bool {
        !matches!(self.bytes.load(Ordering::Acquire), 0 | GONE)
    }

    /// Returns whether it gave way to another client.
    pub(super) fn is_evicted(&self) -> bool {
        self.evicted.load(Ordering::Acquire)
    }

    /// Waits until it gives way to another client. One task can wait for it.
    pub(super) fn evicted(&self) -> impl Future<Output = ()> {
        std::future::poll_fn(|context| self.poll_evicted(context))
    }

    /// Does the same for a task that waits for something else, too.
    pub(super) fn poll_evicted(&self, context: &Context<'_>) -> Poll<()> {
        if !self.is_evicted() {
            self.waiting.register(context.waker());
        }
        // It may have given way before the task could be woken.
        match self.is_evicted() {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    }

    /// Marks the response as being sent.
    pub(super) fn start_sending(&self) {
        self.sending.store(true, Ordering::Release);
        if self.is_evicted() {
            self.evict();
        }
    }

    /// Counts `bytes` that the connection took.
    pub(super) fn progress(&self, bytes: usize) {
        self.sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Makes it give way. A response that is being sent can only be ended with its connection.
    fn evict(&self) {
        self.evicted.store(true, Ordering::Release);
        self.waiting.wake();
        if self.sending.load(Ordering::Acquire)
            && let Some(connection) = &self.connection
        {
            connection.evict();
        }
    }

    fn is_stalled(&self) -> bool {
        if !self.sending.load(Ordering::Acquire) {
            return false;
        }
        let sent = self.sent.load(Ordering::Relaxed);
        if self.swept.swap(sent, Ordering::Relaxed) != sent {
            self.stalled.store(0, Ordering::Relaxed);
            return false;
        }
        self.stalled.fetch_add(1, Ordering::Relaxed) >= STALLED_SWEEPS
    }
}

/// One that is counted as waiting until this is dropped.
struct Waits<'a>(&'a AtomicUsize);

impl<'a> Waits<'a> {
    fn start(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::AcqRel);
        Self(count)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.give_back();
        let mut guard = self.shares.table();
        let table = &mut *guard;
        let Some(holder) = table.clients.get_mut(&self.client) else {
            return;
        };
        // One that gave way is not there any more.
        if let Some(at) = holder.held.iter().rposition(|h| h.number == self.number) {
            holder.held.remove(at);
            table.claims -= 1;
        }
        let ended = holder.held.is_empty();
        let soon_again = self.connection.is_some() && table.clients.len() <= KEPT;
        if ended && !soon_again {
            table.clients.remove(&self.client);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    #[test]
    fn the_newest_claim_of_the_largest_holder_gives_way() {
        let shares = Arc::new(Shares::default());
        let greedy: Vec<_> = (0..4)
            .map(|_| shares.claim(Some(address(1)), 4, None).unwrap())
            .collect();
        assert_eq!(shares.claim(Some(address(1)), 4, None).unwrap_err(), Full);
        let modest = shares.claim(Some(address(2)), 4, None).unwrap();
        let gone: Vec<_> = greedy.iter().map(|c| c.is_evicted()).collect();
        assert_eq!(gone, [false, false, false, true]);
        let second = shares.claim(Some(address(2)), 4, None).unwrap();
        // Two each: nobody holds more than the newcomer would.
        assert_eq!(shares.claim(Some(address(2)), 4, None).unwrap_err(), Full);
        assert!(greedy[2].is_evicted() && !greedy[1].is_evicted());
        assert_eq!(shares.totals().0, 4);
        drop((greedy, modest, second));
        assert_eq!(shares.totals(), (0, 0));
        assert!(shares.table().clients.is_empty());
    }

    #[test]
    fn bytes_are_bounded_for_all_together() {
        let shares = Arc::new(Shares::default());
        let claim = |last| shares.claim(Some(address(last)), 100, None).unwrap();
        let greedy: Vec<_> = (0..4).map(|_| claim(1)).collect();
        for one in &greedy {
            one.hold(25, 100).unwrap();
        }
        assert_eq!(claim(1).hold(1, 100), Err(Full));
        let modest = claim(2);
        modest.hold(30, 100).unwrap();
        let gone: Vec<_> = greedy.iter().map(|c| c.is_evicted()).collect();
        assert_eq!(gone, [false, false, true, true]);
        assert_eq!(shares.totals().1, 80);
        // It would hold more than the largest: nobody gives way for it.
        assert_eq!(modest.hold(60, 100), Err(Full));
        assert!(!greedy[1].is_evicted());
        modest.hold(10, 100).unwrap();
        assert_eq!(shares.totals().1, 60);
        // One that gave way holds nothing more.
        assert_eq!(greedy[3].hold(1, 100), Err(Full));
        drop((greedy, modest));
        let alone = claim(3);
        alone.hold(1000, 100).unwrap();
        drop(alone);
        assert_eq!(shares.totals(), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_waits_for_room() {
        let shares = Arc::new(Shares::default());
        let claim = || shares.claim(Some(address(1)), 100, None).unwrap();
        let (first, second) = (claim(), claim());
        first.hold(80, 100).unwrap();
        let deadline = Instant::now() + std::time::Duration::from_secs(10);
        let late = second.hold_by(30, 100, deadline).await;
        assert_eq!((late, Instant::now()), (Err(Full), deadline));
        let deadline = deadline + std::time::Duration::from_secs(10);
        let (held, ()) = tokio::join!(second.hold_by(30, 100, deadline), async {
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
            drop(first);
        });
        held.unwrap();
        // One that is larger than all there is has to wait until the others hold next to nothing.
        let large = claim();
        assert_eq!(large.hold(1000, 100), Err(Full));
        second.hold(25, 100).unwrap();
        large.hold(1000, 100).unwrap();
        assert_eq!(claim().hold(1, 100), Err(Full));
    }

    #[test]
    fn connections_of_trusted_proxies_never_give_way() {
        let shares = Arc::new(Shares::default());
        let proxy: Vec<_> = (0..3)
            .map(|_| shares.claim(None, 4, None).unwrap())
            .collect();
        let client = shares.claim(Some(address(1)), 4, None).unwrap();
        assert_eq!(shares.claim(Some(address(2)), 4, None).unwrap_err(), Full);
        drop(proxy);
        let more: Vec<_> = (0..3)
            .map(|_| shares.claim(Some(address(1)), 4, None).unwrap())
            .collect();
        let proxy = shares.claim(None, 4, None).unwrap();
        assert!(more[2].is_evicted() && !more[1].is_evicted());
        drop((proxy, client, more));
        assert_eq!(shares.totals().0, 0);
    }

    #[test]
    fn one_share_covers_a_network_of_ipv6() {
        let share = |text: &str| share_of(text.parse().unwrap());
        assert_eq!(share("2001:db8::1"), share("2001:db8::2:3"));
        assert_ne!(share("2001:db8::1"), share("2001:db8:0:1::1"));
        assert_eq!(share("::ffff:192.0.2.1"), address(1));
    }

    #[tokio::test]
    async fn a_response_without_progress_ends_with_its_connection() {
        let connections = Arc::new(Shares::default());
        let connection = connections.claim(Some(address(1)), 9, None).unwrap();
        let requests = Arc::new(Shares::default());
        let request = requests
            .claim(Some(address(1)), 9, Some(connection.clone()))
            .unwrap();
        for _ in 0..20 {
            requests.sweep();
        }
        assert!(!connection.is_evicted(), "not sending yet");
        request.start_sending();
        for _ in 0..20 {
            request.progress(1);
            requests.sweep();
        }
        assert!(!connection.is_evicted(), "progress is progress");
        for _ in 0..=STALLED_SWEEPS {
            assert!(!connection.is_evicted());
            requests.sweep();
        }
        connection.evicted().await;
    }
}
