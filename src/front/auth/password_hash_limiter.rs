//! Compares passwords with their hashes: slow by design, so off the threads that serve connections, and
//! few at once.

use std::net::IpAddr;
use std::thread::available_parallelism;
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::front::admission::share_of;
use crate::front::turns::Turns;

/// Most comparisons at once. On a machine with few processors it is one, so that guessing passwords
/// cannot take all of them.
const AT_ONCE: usize = 2;
/// Most comparisons that wait, and the longest wait.
const QUEUE: usize = 64;
const LONGEST_WAIT: Duration = Duration::from_secs(2);

/// The error where there is no room for another comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HashLimiterBusy;

/// Bounds the work of comparing passwords. Clients take turns: one that guesses passwords delays the others
/// by one comparison.
pub(super) struct PasswordHashLimiter {
    turns: Turns,
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
        Self {
            turns: Turns::new(places, most),
        }
    }

    /// Runs `work` for `client` once it is its turn, and returns its result.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        client: IpAddr,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, HashLimiterBusy> {
        let turn = timeout(LONGEST_WAIT, self.turns.take(Some(share_of(client))));
        let Ok(Ok(turn)) = turn.await else {
            return Err(HashLimiterBusy);
        };
        let work = spawn_blocking(move || {
            // Work goes on when its waiter has left; its place is taken until it ends.
            let _turn = turn;
            work()
        });
        work.await.map_err(|_| HashLimiterBusy)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use futures_util::future::{join_all, join4};

    use super::*;

    fn address(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_guesses_delays_others_by_one_comparison() {
        let limiter = PasswordHashLimiter::of(1, 8);
        let done = Arc::new(Mutex::new(Vec::new()));
        let (all_came, come) = std::sync::mpsc::channel();
        let first = limiter.run(address(1), {
            let done = done.clone();
            move || {
                come.recv().unwrap();
                done.lock().unwrap().push(1);
            }
        });
        let run = |client: u8| {
            let done = done.clone();
            limiter.run(address(client), move || done.lock().unwrap().push(client))
        };
        // One compares until all have come, and eight wait.
        let guesses = join_all((1..20).map(|_| run(1)));
        // They come when the queue is full.
        let others = join_all([run(2), run(3), run(2)]);
        let (first, guesses, others, ()) =
            join4(first, guesses, others, async { all_came.send(()).unwrap() }).await;
        assert_eq!((first, others), (Ok(()), vec![Ok(()); 3]));
        let refused = guesses.iter().filter(|one| one.is_err()).count();
        assert_eq!(refused, 20 - 9 + 3, "three gave way");
        assert_eq!(*done.lock().unwrap(), [1, 1, 2, 3, 1, 2, 1, 1, 1]);
        assert_eq!(limiter.turns.free(), 1);
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
