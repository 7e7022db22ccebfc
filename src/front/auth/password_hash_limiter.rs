//! Compares passwords with their hashes: slow by design, so off the threads that serve connections, and
//! few at once.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::available_parallelism;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::front::admission::share_of;

/// Most comparisons at once. On a machine with few processors it is one, so that guessing passwords
/// cannot take all of them.
const AT_ONCE: usize = 2;
/// Most comparisons that wait, and the longest wait.
const QUEUE: usize = 64;
const LONGEST_WAIT: Duration = Duration::from_secs(2);

/// The error where there is no room for another comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HashLimiterBusy;

/// Bounds the work of comparing passwords. Clients have a line each, and the lines take turns: one that
/// guesses passwords delays the others by one comparison.
pub(super) struct PasswordHashLimiter {
    queue: Arc<Mutex<HashQueue>>,
    /// Most comparisons that wait.
    most: usize,
}

struct HashQueue {
    /// Comparisons that may begin at once.
    free: usize,
    /// Those that wait, by client, each from the oldest to the newest; the first line is next. None is
    /// empty.
    lines: VecDeque<(IpAddr, VecDeque<oneshot::Sender<HashPlace>>)>,
}

/// A place among the comparisons; the next in the queue gets it when it is dropped.
struct HashPlace(Arc<Mutex<HashQueue>>);

impl Drop for HashPlace {
    fn drop(&mut self) {
        let next = locked(&self.0).next();
        if let Some(next) = next {
            // Where nobody waits any more, it is dropped there and passed on.
            let _ = next.send(Self(self.0.clone()));
        }
    }
}

impl Default for PasswordHashLimiter {
    fn default() -> Self {
        let processors = available_parallelism().map_or(1, usize::from);
        Self::of((processors / 2).clamp(1, AT_ONCE), QUEUE)
    }
}

impl PasswordHashLimiter {
    /// Returns a limiter of `places` comparisons at once, with `most` that wait.
    pub(super) fn of(places: usize, most: usize) -> Self {
        let queue = HashQueue {
            free: places,
            lines: VecDeque::new(),
        };
        Self {
            queue: Arc::new(Mutex::new(queue)),
            most,
        }
    }

    /// Runs `work` for `client` once it is its turn, and returns its result.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        client: IpAddr,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, HashLimiterBusy> {
        let (sender, turn) = oneshot::channel();
        let begins = locked(&self.queue).enter(share_of(client), sender, self.most)?;
        if let Some(sender) = begins {
            let _ = sender.send(HashPlace(self.queue.clone()));
        }
        let Ok(Ok(place)) = timeout(LONGEST_WAIT, turn).await else {
            return Err(HashLimiterBusy);
        };
        let work = spawn_blocking(move || {
            // Work goes on when its waiter has left; its place is taken until it ends.
            let _place = place;
            work()
        });
        work.await.map_err(|_| HashLimiterBusy)
    }
}

impl HashQueue {
    /// Lets `sender` wait in the line of `client`, or returns it if it may begin. If `most` wait already,
    /// the newest of the longest line gives way to a client that has fewer.
    fn enter(
        &mut self,
        client: IpAddr,
        sender: oneshot::Sender<HashPlace>,
        most: usize,
    ) -> Result<Option<oneshot::Sender<HashPlace>>, HashLimiterBusy> {
        if let Some(free) = self.free.checked_sub(1) {
            self.free = free;
            return Ok(Some(sender));
        }
        if self.waiting() >= most {
            self.forget_those_who_left();
        }
        let own = self.lines.iter().position(|(of, _)| *of == client);
        let own = own.and_then(|at| self.lines.get(at));
        let own = 1 + own.map_or(0, |(_, line)| line.len());
        if self.waiting() >= most {
            let lines = self.lines.iter_mut().map(|(_, line)| line);
            let longest = lines.max_by_key(|line| line.len());
            let longest = longest.filter(|line| line.len() > own);
            longest.ok_or(HashLimiterBusy)?.pop_back();
        }
        match self.lines.iter_mut().find(|(of, _)| *of == client) {
            Some((_, line)) => line.push_back(sender),
            None => self.lines.push_back((client, VecDeque::from([sender]))),
        }
        Ok(None)
    }

    /// Removes and returns the next; if none waits, there is a free place more.
    fn next(&mut self) -> Option<oneshot::Sender<HashPlace>> {
        let Some((client, mut line)) = self.lines.pop_front() else {
            self.free += 1;
            return None;
        };
        let next = line.pop_front();
        if !line.is_empty() {
            self.lines.push_back((client, line));
        }
        next
    }

    fn waiting(&self) -> usize {
        self.lines.iter().map(|(_, line)| line.len()).sum()
    }

    fn forget_those_who_left(&mut self) {
        for (_, line) in &mut self.lines {
            line.retain(|sender| !sender.is_closed());
        }
        self.lines.retain(|(_, line)| !line.is_empty());
    }
}

/// Each change leaves a sound queue, so it is sound even after a panic.
fn locked(queue: &Mutex<HashQueue>) -> MutexGuard<'_, HashQueue> {
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use futures_util::future::{join, join_all};

    use super::*;

    fn address(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_guesses_delays_others_by_one_comparison() {
        let limiter = PasswordHashLimiter::of(1, 8);
        let done = Arc::new(Mutex::new(Vec::new()));
        let run = |client: u8| {
            let done = done.clone();
            limiter.run(address(client), move || done.lock().unwrap().push(client))
        };
        // One compares, and eight wait.
        let guesses = join_all((0..20).map(|_| run(1)));
        // They come when the queue is full.
        let others = async { join_all([run(2), run(3), run(2)]).await };
        let (guesses, others) = join(guesses, others).await;
        assert_eq!(others, [Ok(()); 3]);
        let refused = guesses.iter().filter(|one| one.is_err()).count();
        assert_eq!(refused, 20 - 9 + 3, "three gave way");
        assert_eq!(*done.lock().unwrap(), [1, 1, 2, 3, 1, 2, 1, 1, 1]);
        assert_eq!(locked(&limiter.queue).free, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_line_that_fills_the_queue_alone_is_refused_more() {
        let limiter = PasswordHashLimiter::of(0, 2);
        let all = join_all((0..4).map(|n| {
            let limiter = &limiter;
            async move {
                tokio::time::sleep(Duration::from_millis(n)).await;
                let begun = tokio::time::Instant::now();
                assert_eq!(limiter.run(address(1), || ()).await, Err(HashLimiterBusy));
                begun.elapsed()
            }
        }));
        assert_eq!(
            all.await,
            [LONGEST_WAIT, LONGEST_WAIT, Duration::ZERO, Duration::ZERO]
        );
        // Those who left take no room.
        let late = tokio::time::Instant::now();
        assert_eq!(limiter.run(address(1), || ()).await, Err(HashLimiterBusy));
        assert_eq!(late.elapsed(), LONGEST_WAIT);
    }
}
