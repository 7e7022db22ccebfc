//! Compares passwords with their hashes: slow by design, so off the threads that serve connections, and
//! few at once.

use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

/// Most comparisons at once. On a machine with few processors it is one, so that guessing passwords
/// cannot take all of them.
const AT_ONCE: usize = 2;
/// Most comparisons that wait, and the longest wait.
const QUEUE: usize = 64;
const LONGEST_WAIT: Duration = Duration::from_secs(2);

/// The error where there is no room for another comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HashLimiterBusy;

/// Bounds the work of comparing passwords.
pub(super) struct PasswordHashLimiter {
    places: Arc<Semaphore>,
    queue: Semaphore,
}

impl Default for PasswordHashLimiter {
    fn default() -> Self {
        let processors = available_parallelism().map_or(1, usize::from);
        Self::of((processors / 2).clamp(1, AT_ONCE), QUEUE)
    }
}

impl PasswordHashLimiter {
    /// Returns a limiter of `places` comparisons at once, with `queue` that wait.
    pub(super) fn of(places: usize, queue: usize) -> Self {
        Self {
            places: Arc::new(Semaphore::new(places)),
            queue: Semaphore::new(queue),
        }
    }

    /// Runs `work` once there is room for it, and returns its result.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, HashLimiterBusy> {
        let waiting = self.queue.try_acquire().map_err(|_| HashLimiterBusy)?;
        let place = timeout(LONGEST_WAIT, self.places.clone().acquire_owned()).await;
        drop(waiting);
        let Ok(Ok(place)) = place else {
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
