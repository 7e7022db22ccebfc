//! Work of a millisecond and more, off the threads that serve connections.
//!
//! It has threads of its own, as many as there are processors: so serving threads get their share, and large
//! data is allocated on few threads. glibc's `malloc` keeps a heap for each thread, as a rule, and what was
//! freed in one is of no use to another.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::model::stop;

/// Most threads, however many processors there are.
const MOST: usize = 8;

type WorkItem = Box<dyn FnOnce() + Send>;

/// Where work waits for its turn. It is bounded by the requests and calls in flight.
static QUEUE: LazyLock<Sender<WorkItem>> = LazyLock::new(|| {
    let (sender, receiver) = channel();
    let receiver = Arc::new(Mutex::new(receiver));
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    for n in 0..processors.min(MOST) {
        let receiver = receiver.clone();
        let thread = std::thread::Builder::new().name(format!("work-{n}"));
        if let Err(error) = thread.spawn(move || serve(&receiver)) {
            tracing::error!("a thread cannot be started: {error}");
        }
    }
    sender
});

/// Does one job after the other as long as the process lives.
fn serve(jobs: &Mutex<Receiver<WorkItem>>) {
    loop {
        // The lock is free again before the job begins.
        let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = job else { return };
        job();
    }
}

/// The work ended without a result: it panicked, it was stopped at its deadline, or there is no thread for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unfinished;

impl fmt::Display for Unfinished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the work ended without a result")
    }
}

impl std::error::Error for Unfinished {}

/// Does `work`, which takes processor time only and waits for nothing, on another thread when its turn
/// comes; not at all if nobody waits for it any more by then. If the one who waits leaves later, it stops at its
/// next [checkpoint](stop). Within a runtime.
///
/// # Errors
///
/// [`Unfinished`] if it panicked.
pub async fn elsewhere<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Unfinished> {
    // Boxed, so that those who may have to wait for such work do not carry its state.
    Box::pin(until(None, work)).await
}

/// Does `work` [`elsewhere`]; if it has not ended at `deadline`, it stops at its next checkpoint, and if it has
/// not begun by then, it does not.
///
/// # Errors
///
/// [`Unfinished`] if it panicked or was stopped.
pub async fn elsewhere_until<T: Send + 'static>(
    deadline: Instant,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Unfinished> {
    Box::pin(until(Some(deadline), work)).await
}

async fn until<T: Send + 'static>(
    deadline: Option<Instant>,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Unfinished> {
    // It is dropped with this future.
    let waits = Arc::new(());
    let waiter = Arc::downgrade(&waits);
    let useless = move || {
        waiter.strong_count() == 0 || deadline.is_some_and(|deadline| Instant::now() >= deadline)
    };
    let work = move || match useless() {
        true => None,
        false => stop::unless(useless, work),
    };
    let done = in_turn(work).await?;
    drop(waits);
    done.ok_or(Unfinished)
}

async fn in_turn<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Unfinished> {
    if cfg!(test) {
        // Time that is paused stands still for threads of the runtime only.
        let done = tokio::task::spawn_blocking(work).await;
        return done.map_err(|_| Unfinished);
    }
    queued(work).await
}

/// Does `work` on one of the threads for it.
async fn queued<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Unfinished> {
    let runtime = Handle::current();
    let (sender, done) = oneshot::channel();
    let job = move || {
        if sender.is_closed() {
            return;
        }
        let _runtime = runtime.enter();
        // What it changes is behind locks that bear a panic, and is dropped with it otherwise.
        if let Ok(result) = catch_unwind(AssertUnwindSafe(work)) {
            // The one who waited may have left.
            let _ = sender.send(result);
        }
    };
    QUEUE.send(Box::new(job)).map_err(|_| Unfinished)?;
    done.await.map_err(|_| Unfinished)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_an_error_and_frees_its_place() {
        for _ in 0..2 * MOST {
            let done: Result<(), _> = queued(|| panic!("on purpose")).await;
            assert_eq!(done, Err(Unfinished));
        }
        assert_eq!(queued(|| 7).await, Ok(7));
    }

    #[tokio::test]
    async fn work_that_nobody_waits_for_is_not_done() {
        let (blocked, block) = channel::<()>();
        let block = Arc::new(Mutex::new(block));
        let busy = (0..MOST).map(|_| {
            let block = block.clone();
            tokio::spawn(queued(move || block.lock().unwrap().recv().is_ok()))
        });
        let busy: Vec<_> = busy.collect();
        tokio::task::yield_now().await;
        let done = Arc::new(Mutex::new(false));
        let of_job = done.clone();
        let job = tokio::spawn(queued(move || *of_job.lock().unwrap() = true));
        tokio::task::yield_now().await;
        job.abort();
        let _ = job.await;
        drop(blocked);
        for one in busy {
            one.await.unwrap().unwrap();
        }
        queued(|| ()).await.unwrap();
        assert!(!*done.lock().unwrap());
    }
}
