//! Work of clients that begins in turn: few at once, and those of a client that wait form a line.
//!
//! The lines take turns, so a client with a thousand waiting delays another by what was begun, and one more.

use std::collections::{HashMap, VecDeque};
use std::future::{Future, poll_fn};
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use foldhash::fast::RandomState;
use futures_util::task::AtomicWaker;
use tokio::sync::oneshot;
use tokio::task::yield_now;

/// The key of a client's share, or of all trusted proxies together.
type Client = Option<IpAddr>;

/// Places for so much work at once, and the lines of the clients that wait for one.
#[derive(Clone, Debug)]
pub(super) struct Turns(Arc<Mutex<Queue>>);

#[derive(Debug)]
struct Queue {
    /// Places that nobody has.
    free: usize,
    /// Most that wait.
    most: usize,
    /// Those in the lines, whether they wait still or have left.
    waiting: usize,
    /// The lines by client, each from the oldest to the newest. None is empty.
    lines: HashMap<Client, VecDeque<oneshot::Sender<TakenTurn>>, RandomState>,
    /// The clients of the lines; the first is next.
    order: VecDeque<Client>,
}

/// A place; the next in the queue gets it when it is dropped.
#[derive(Debug)]
pub(super) struct TakenTurn(Turns);

/// The error where there is no room to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NoRoom;

impl Drop for TakenTurn {
    fn drop(&mut self) {
        let next = self.0.queue().next();
        if let Some(next) = next {
            // One that leaves at this moment drops it again.
            let _ = next.send(Self(self.0.clone()));
        }
    }
}

impl Turns {
    /// Returns `places`, for which at most `most` wait. Those who left count until there is no room, or it would
    /// have been their turn.
    pub(super) fn new(places: usize, most: usize) -> Self {
        Self(Arc::new(Mutex::new(Queue {
            free: places,
            most,
            waiting: 0,
            lines: HashMap::default(),
            order: VecDeque::new(),
        })))
    }

    /// Returns a place once it is the turn of `client`; `None` are trusted proxies.
    ///
    /// # Errors
    ///
    /// [`NoRoom`] if as many wait as may, and no client has a longer line.
    pub(super) async fn take(&self, client: Client) -> Result<TakenTurn, NoRoom> {
        let turn = self.queue().enter(client)?;
        match turn {
            None => Ok(TakenTurn(self.clone())),
            Some(turn) => turn.await.map_err(|_| NoRoom),
        }
    }

    /// Polls `future` in turns of `client`: whenever it has been woken, once.
    pub(super) async fn poll_each<F: Future + Unpin>(
        &self,
        client: Client,
        mut future: F,
    ) -> F::Output {
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(woken.clone());
        loop {
            // Without room to wait it is not held up.
            let turn = self.take(client).await;
            let polled = Pin::new(&mut future).poll(&mut Context::from_waker(&waker));
            if let Poll::Ready(output) = polled {
                return output;
            }
            // The runtime does what came of it, and looks for what others have sent.
            yield_now().await;
            drop(turn);
            poll_fn(|context| woken.poll(context)).await;
        }
    }

    #[cfg(test)]
    pub(super) fn free(&self) -> usize {
        self.queue().free
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        // Each change leaves a sound queue, so it is sound even after a panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps a wake until it is asked for.
#[derive(Default)]
struct Woken {
    woken: AtomicBool,
    task: AtomicWaker,
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.woken.store(true, Ordering::Release);
        self.task.wake();
    }
}

impl Woken {
    fn poll(&self, context: &Context<'_>) -> Poll<()> {
        self.task.register(context.waker());
        match self.woken.swap(false, Ordering::AcqRel) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    }
}

impl Queue {
    /// Takes a free place for `client`, or lets it wait in its line. If as many wait as may, the newest of the
    /// longest line gives way to a client that has fewer.
    fn enter(&mut self, client: Client) -> Result<Option<oneshot::Receiver<TakenTurn>>, NoRoom> {
        if let Some(free) = self.free.checked_sub(1) {
            self.free = free;
            return Ok(None);
        }
        if self.waiting >= self.most {
            self.forget_those_who_left();
        }
        if self.waiting >= self.most {
            let own = 1 + self.lines.get(&client).map_or(0, VecDeque::len);
            let longest = self.lines.values_mut().max_by_key(|line| line.len());
            let longest = longest.filter(|line| line.len() > own).ok_or(NoRoom)?;
            longest.pop_back();
            self.waiting -= 1;
        }
        let (sender, turn) = oneshot::channel();
        let line = self.lines.entry(client).or_default();
        if line.is_empty() {
            self.order.push_back(client);
        }
        line.push_back(sender);
        self.waiting += 1;
        Ok(Some(turn))
    }

    /// Removes and returns the next that has not left; if none waits, there is a free place more.
    fn next(&mut self) -> Option<oneshot::Sender<TakenTurn>> {
        while let Some(client) = self.order.pop_front() {
            let Some(line) = self.lines.get_mut(&client) else {
                continue;
            };
            let mut next = None;
            while let Some(first) = line.pop_front() {
                self.waiting -= 1;
                if !first.is_closed() {
                    next = Some(first);
                    break;
                }
            }
            if line.is_empty() {
                self.lines.remove(&client);
            } else {
                self.order.push_back(client);
            }
            if next.is_some() {
                return next;
            }
        }
        self.free += 1;
        None
    }

    fn forget_those_who_left(&mut self) {
        self.lines.retain(|_, line| {
            line.retain(|sender| !sender.is_closed());
            !line.is_empty()
        });
        self.order.retain(|client| self.lines.contains_key(client));
        self.waiting = self.lines.values().map(VecDeque::len).sum();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::FutureExt;
    use futures_util::future::join_all;

    use super::*;

    fn client(last: u8) -> Client {
        Some([192, 0, 2, last].into())
    }

    #[tokio::test(start_paused = true)]
    async fn lines_take_turns() {
        let turns = Turns::new(2, usize::MAX);
        let begun = Mutex::new(Vec::new());
        let work = |of: u8| {
            let (turns, begun) = (&turns, &begun);
            async move {
                let _turn = turns.take(client(of)).await.unwrap();
                begun.lock().unwrap().push(of);
                tokio::task::yield_now().await;
            }
        };
        join_all([1, 1, 1, 1, 1, 1, 2, 3, 2].map(work)).await;
        assert_eq!(*begun.lock().unwrap(), [1, 1, 1, 2, 3, 1, 2, 1, 1]);
        assert_eq!((turns.free(), turns.queue().waiting), (2, 0));
        assert!(turns.queue().lines.is_empty() && turns.queue().order.is_empty());
    }

    /// Waits for each of `0..most` from a task that sends them, and returns their sum.
    async fn sum(most: u32) -> u32 {
        let (sender, mut numbers) = tokio::sync::mpsc::channel(1);
        tokio::spawn(async move {
            for n in 0..most {
                sender.send(n).await.unwrap();
            }
        });
        let mut sum = 0;
        while let Some(n) = numbers.recv().await {
            sum += n;
            // It may wake itself, too.
            tokio::task::yield_now().await;
        }
        sum
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_is_polled_in_turn_misses_no_wake() {
        let turns = Turns::new(2, usize::MAX);
        let all = (0..20).map(|n| {
            let turns = turns.clone();
            tokio::spawn(async move { turns.poll_each(client(n % 3), Box::pin(sum(500))).await })
        });
        for one in all.collect::<Vec<_>>() {
            // A second at most; for ever if a wake is missed.
            let sum = tokio::time::timeout(Duration::from_secs(60), one).await;
            assert_eq!(sum.expect("a wake was missed").unwrap(), 500 * 499 / 2);
        }
        assert_eq!((turns.free(), turns.queue().waiting), (2, 0));
    }

    #[tokio::test]
    async fn one_that_is_always_ready_does_not_hold_up_others() {
        let turns = Turns::new(1, usize::MAX);
        let polls = Mutex::new(Vec::new());
        let work = |of: u8| {
            let polls = &polls;
            let mut left = 10;
            Box::pin(poll_fn(move |context| {
                polls.lock().unwrap().push(of);
                left -= 1;
                context.waker().wake_by_ref();
                if left == 0 {
                    Poll::Ready(())
                } else {
                    Poll::Pending
                }
            }))
        };
        let many = join_all((0..5).map(|_| turns.poll_each(client(1), work(1))));
        let one = turns.poll_each(client(2), work(2));
        futures_util::future::join(many, one).await;
        let polls = polls.lock().unwrap();
        let last = polls.iter().rposition(|of| *of == 2).unwrap();
        // At most two of the other come in between, of its 50.
        assert!(last < 30, "{last}: {polls:?}");
    }

    #[tokio::test]
    async fn a_turn_of_one_who_left_is_passed_on() {
        let turns = Turns::new(1, usize::MAX);
        let first = turns.take(client(1)).await.unwrap();
        let mut left = Box::pin(turns.take(client(1)));
        let mut stays = Box::pin(turns.take(client(2)));
        assert!((&mut left).now_or_never().is_none() && (&mut stays).now_or_never().is_none());
        drop(left);
        drop(first);
        drop(stays.await.unwrap());
        assert_eq!(turns.free(), 1);
    }

    #[tokio::test]
    async fn any_number_may_leave() {
        let turns = Turns::new(1, 1000);
        let first = turns.take(client(1)).await.unwrap();
        for n in 0..100_000 {
            let left = Box::pin(turns.take(client((n / 100) as u8))).now_or_never();
            assert!(left.is_none());
            assert!(turns.queue().waiting <= 1000);
        }
        let mut stays = Box::pin(turns.take(client(2)));
        assert!((&mut stays).now_or_never().is_none());
        drop(first);
        drop(stays.await.unwrap());
        assert_eq!((turns.free(), turns.queue().waiting), (1, 0));
        // One after the other is passed over, and not one within the other.
        let turns = Turns::new(1, usize::MAX);
        let first = turns.take(client(1)).await.unwrap();
        for _ in 0..100_000 {
            assert!(turns.take(client(1)).now_or_never().is_none());
        }
        drop(first);
        assert_eq!((turns.free(), turns.queue().waiting), (1, 0));
    }
}
