//! The text of `/metrics`: scrapes that come at the same time share one.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::OnceCell;
use tokio::task::{JoinError, spawn_blocking};
use tokio::time::{Instant, sleep_until};

/// The least time between the beginnings of two texts, however many scrapes there are.
const APART: Duration = Duration::from_millis(50);

/// Writes the texts of `/metrics`. None is older than the request that it answers.
#[derive(Debug, Default)]
pub(super) struct Scrapes {
    next: Mutex<NextScrape>,
}

#[derive(Debug, Default)]
struct NextScrape {
    /// When the last text was begun.
    begun: Option<Instant>,
    /// The text that is begun next.
    text: Arc<OnceCell<Bytes>>,
}

impl Scrapes {
    /// Returns a text that `write` writes, for this call or another of the same time.
    ///
    /// # Errors
    ///
    /// Fails if `write` panics.
    pub(super) async fn text(
        &self,
        write: impl FnOnce() -> String + Send + 'static,
    ) -> Result<Bytes, JoinError> {
        let text = self.next().text.clone();
        let make = || async {
            while let Some(due) = self.begin(&text) {
                sleep_until(due).await;
            }
            // Off the threads that serve connections: it takes time in proportion to what is configured.
            spawn_blocking(write).await.map(Bytes::from)
        };
        text.get_or_try_init(make).await.cloned()
    }

    /// Begins `text`, so that calls from here on get a later one; or returns when that is due.
    fn begin(&self, text: &Arc<OnceCell<Bytes>>) -> Option<Instant> {
        let now = Instant::now();
        let mut next = self.next();
        let due = next.begun.map_or(now, |begun| begun + APART);
        if due > now {
            return Some(due);
        }
        next.begun = Some(now);
        if Arc::ptr_eq(&next.text, text) {
            next.text = Arc::default();
        }
        None
    }

    fn next(&self) -> MutexGuard<'_, NextScrape> {
        // Its members are replaced whole, so it is sound even after a panic.
        self.next.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Context, Waker};

    use futures_util::future::join_all;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn scrapes_share_a_text_that_is_not_older_than_they_are() {
        let (scrapes, written) = (Scrapes::default(), Arc::new(AtomicUsize::new(0)));
        let scrape = || {
            let written = written.clone();
            scrapes.text(move || written.fetch_add(1, Ordering::SeqCst).to_string())
        };
        let start = Instant::now();
        assert_eq!(scrape().await.unwrap(), "0");
        assert_eq!(start.elapsed(), Duration::ZERO, "the first is prompt");
        let all = join_all((0..1000).map(|_| scrape())).await;
        assert!(all.iter().all(|text| text.as_ref().unwrap() == "1"));
        assert_eq!(start.elapsed(), APART);
        // One after the other each get their own.
        for expected in ["2", "3"] {
            assert_eq!(scrape().await.unwrap(), expected);
        }
        assert_eq!(start.elapsed(), 3 * APART);
        // Those that leave take nothing from those that stay.
        let mut left = Box::pin(scrape());
        let mut waker = Context::from_waker(Waker::noop());
        assert!(left.as_mut().poll(&mut waker).is_pending());
        let mut stays = Box::pin(scrape());
        assert!(stays.as_mut().poll(&mut waker).is_pending());
        drop(left);
        assert_eq!(stays.await.unwrap(), "4");
    }

    #[tokio::test]
    async fn a_text_that_cannot_be_written_is_an_error_and_the_next_can() {
        let scrapes = Scrapes::default();
        assert!(scrapes.text(|| panic!("on purpose")).await.is_err());
        assert_eq!(scrapes.text(|| "text".to_owned()).await.unwrap(), "text");
    }
}
