//! A connection that ends when its peer neither reads nor writes for too long, whatever the
//! protocol above it is waiting for.

use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use hyper::rt::{Sleep, Timer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::unconstrained;
use tokio::time::{Instant, sleep_until};

/// A stream with a limit for each direction: how long a read may wait for the first byte, and how
/// long a write may wait until the peer takes one.
#[derive(Debug)]
pub(super) struct TimeoutStream<S> {
    stream: S,
    reading: IdleTimer,
    writing: IdleTimer,
}

/// A limit for a wait.
#[derive(Debug)]
struct IdleTimer {
    limit: Duration,
    waiting_since: Option<Instant>,
    timer: LazyTimer,
}

/// A timer that is not reset with each wait but when it fires: most waits are short, and a connection has
/// one at every request.
#[derive(Debug, Default)]
struct LazyTimer {
    timer: Option<Pin<Box<tokio::time::Sleep>>>,
    /// The task that it will wake.
    wakes: Option<Waker>,
}

impl LazyTimer {
    /// Completes at `end`, which is never earlier than before.
    fn poll_until(&mut self, end: Instant, context: &mut Context<'_>) -> Poll<()> {
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(end)));
        let wakes = self.wakes.as_ref();
        if wakes.is_some_and(|wakes| wakes.will_wake(context.waker())) && !timer.is_elapsed() {
            return Poll::Pending;
        }
        self.wakes = Some(context.waker().clone());
        loop {
            // Without tokio's budget for a task: where that is used up, the poll would set no timer.
            ready!(pin!(unconstrained(timer.as_mut())).poll(context));
            if timer.deadline() >= end {
                return Poll::Ready(());
            }
            // It was set for an earlier wait, which ended in time.
            timer.as_mut().reset(end);
        }
    }
}

impl IdleTimer {
    fn new(limit: Duration) -> Self {
        Self {
            limit,
            waiting_since: None,
            timer: LazyTimer::default(),
        }
    }

    /// Passes on `result`; while that is pending, an error once the limit is over.
    fn watch<T>(
        &mut self,
        result: Poll<io::Result<T>>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        if result.is_ready() {
            self.waiting_since = None;
            return result;
        }
        let since = *self.waiting_since.get_or_insert_with(Instant::now);
        ready!(self.timer.poll_until(since + self.limit, context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

/// The HTTP library's timer of one connection, which it starts anew for the head of each request.
#[derive(Clone, Debug, Default)]
pub(super) struct HeadTimer(Arc<Mutex<LazyTimer>>);

impl Timer for HeadTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        self.sleep_until(self.now() + duration)
    }

    fn sleep_until(&self, deadline: std::time::Instant) -> Pin<Box<dyn Sleep>> {
        Box::pin(HeadWait {
            end: deadline.into(),
            timer: self.clone(),
        })
    }

    fn now(&self) -> std::time::Instant {
        Instant::now().into()
    }
}

/// A wait of the library.
struct HeadWait {
    end: Instant,
    timer: HeadTimer,
}

impl Future for HeadWait {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        // It is changed by nothing that panics.
        let timer = self.timer.0.lock();
        let mut timer = timer.unwrap_or_else(PoisonError::into_inner);
        timer.poll_until(self.end, context)
    }
}

impl Sleep for HeadWait {}

impl<S> TimeoutStream<S> {
    pub(super) fn new(stream: S, read: Duration, write: Duration) -> Self {
        Self {
            stream,
            reading: IdleTimer::new(read),
            writing: IdleTimer::new(write),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for TimeoutStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_read(context, buffer);
        self.reading.watch(result, context)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for TimeoutStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.writing.watch(result, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.writing.watch(result, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_flush(context);
        self.writing.watch(result, context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_shutdown(context);
        self.writing.watch(result, context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
    use tokio::task::consume_budget;

    const READ: Duration = Duration::from_secs(90);
    const WRITE: Duration = Duration::from_secs(20);

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_sends_nothing_is_given_up() {
        let (near, mut far) = duplex(16);
        let mut near = TimeoutStream::new(near, READ, WRITE);
        let begun = Instant::now();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(60)).await;
            far.write_all(b"x").await.unwrap();
            std::future::pending::<()>().await;
        });
        assert_eq!(near.read_u8().await.unwrap(), b'x');
        let error = near.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(begun.elapsed().as_secs(), 60 + 90);
    }

    #[tokio::test(start_paused = true)]
    async fn each_head_has_all_of_its_time() {
        let timer = HeadTimer::default();
        for _ in 0..5 {
            let head = timer.sleep(WRITE);
            let arrives = tokio::time::sleep(WRITE / 2);
            tokio::select! {
                () = head => panic!("it is over too early"),
                () = arrives => {}
            }
        }
        let begun = Instant::now();
        timer.sleep(WRITE).await;
        assert_eq!(begun.elapsed().as_secs(), WRITE.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_wakes_the_task_that_polled_it_last() {
        let timer = HeadTimer::default();
        let mut head = timer.sleep(WRITE);
        let mut other = Context::from_waker(Waker::noop());
        assert!(head.as_mut().poll(&mut other).is_pending());
        let begun = Instant::now();
        let ended = tokio::time::timeout(2 * WRITE, head).await;
        assert!(ended.is_ok(), "the other task was woken");
        assert_eq!(begun.elapsed().as_secs(), WRITE.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_that_begins_when_the_budget_of_its_task_is_used_up_ends_in_time() {
        let timer = HeadTimer::default();
        let mut head = timer.sleep(WRITE);
        let mut begins = true;
        let head = std::future::poll_fn(move |context| {
            // As after many reads at once.
            while begins && pin!(consume_budget()).poll(context).is_ready() {}
            begins = false;
            head.as_mut().poll(context)
        });
        let begun = Instant::now();
        let ended = tokio::spawn(tokio::time::timeout(2 * WRITE, head));
        assert!(ended.await.unwrap().is_ok(), "no timer was set");
        assert_eq!(begun.elapsed().as_secs(), WRITE.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_takes_nothing_is_given_up_and_a_slow_one_is_not() {
        let (near, mut far) = duplex(16);
        let mut near = TimeoutStream::new(near, READ, WRITE);
        let begun = Instant::now();
        tokio::spawn(async move {
            for _ in 0..4 {
                tokio::time::sleep(Duration::from_secs(15)).await;
                let mut some = [0; 16];
                far.read_exact(&mut some).await.unwrap();
            }
            std::future::pending::<()>().await;
        });
        let error = near.write_all(&[0; 1000]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(begun.elapsed().as_secs(), 60 + 20);
    }
}
