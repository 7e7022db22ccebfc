//! Reading of responses, and the time that they describe.

use std::time::Duration;

use tokio::time::Instant;

use crate::adapters::{Exchange, Next, Response, date};
use crate::model::{Error, Kind, Millis};

/// Longest body, in bytes, that is read on the thread that received it: reading holds a thread of
/// the runtime up, at 2 to 3 ns per byte for less than 1 ms.
const READ_INLINE: usize = 256 << 10;

/// Reads `response`; a large one on another thread, unless its turn comes after `deadline`, and until then at
/// most.
pub(super) async fn read<T: Send + 'static>(
    exchange: &Exchange<T>,
    response: Response,
    deadline: Instant,
) -> Result<Next<T>, Error> {
    if response.body.len() <= READ_INLINE {
        return (exchange.read)(&response);
    }
    let read = exchange.read.clone();
    let reading = crate::work::elsewhere_until(deadline, move || read(&response));
    reading.await.unwrap_or_else(|ended| {
        if Instant::now() >= deadline {
            let message = "the upstream's answer came too late to be read before the deadline";
            return Err(Error::new(Kind::DeadlineExceeded, message));
        }
        let message = format!("the upstream's answer could not be read: {ended}");
        Err(Error::new(Kind::Internal, message))
    })
}

/// Returns the upstream's time when it began to answer: its `Date`, which is in whole seconds,
/// rounded down, of a moment at most `took` later.
pub(super) fn as_of(response: &Response, took: Duration) -> Option<Millis> {
    Some(date(response)? - Millis::try_from(took.as_millis()).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::sync::Arc;
    use std::sync::mpsc::{Receiver, Sender, channel};

    use bytes::Bytes;
    use http::{HeaderMap, Method, StatusCode};

    use crate::adapters::Request;
    use crate::model::stop;

    /// Returns an exchange whose answer is read for ever unless that is stopped, and what tells of its beginning
    /// and its end.
    fn endless() -> (Exchange<()>, Receiver<&'static str>) {
        let (sender, told): (Sender<&str>, _) = channel();
        let sender = std::sync::Mutex::new(sender);
        let read = move |_: &Response| {
            let sender = sender.lock().unwrap().clone();
            sender.send("begun").unwrap();
            while !stop::is_due() {
                std::thread::yield_now();
            }
            let _ = sender.send("stopped");
            Err(Error::new(Kind::Internal, stop::STOPPED))
        };
        let exchange = Exchange {
            request: Request {
                method: Method::GET,
                path: String::new(),
                headers: Vec::new(),
                body: Bytes::new(),
                units: 0,
            },
            read: Arc::new(read),
            bill: None,
        };
        (exchange, told)
    }

    fn large() -> Response {
        Response {
            status: StatusCode::OK,
            headers: HeaderMap::new(),
            body: Bytes::from(vec![0; READ_INLINE + 1]),
        }
    }

    #[tokio::test]
    async fn reading_stops_at_the_deadline() {
        let (exchange, told) = endless();
        let deadline = Instant::now() + Duration::from_millis(20);
        let read = read(&exchange, large(), deadline).await;
        assert_eq!(read.err().map(|e| e.kind), Some(Kind::DeadlineExceeded));
        // On a busy machine its turn may come too late.
        let told: Vec<_> = told.try_iter().collect();
        assert!(told == ["begun", "stopped"] || told.is_empty(), "{told:?}");
    }

    #[tokio::test]
    async fn reading_stops_when_nobody_waits_for_it() {
        let (exchange, told) = endless();
        let deadline = Instant::now() + Duration::from_secs(3600);
        let reading = tokio::spawn(async move { read(&exchange, large(), deadline).await.err() });
        let told = tokio::task::spawn_blocking(move || {
            assert_eq!(told.recv(), Ok("begun"));
            told
        });
        let told = told.await.unwrap();
        reading.abort();
        let next = tokio::task::spawn_blocking(move || told.recv());
        assert_eq!(next.await.unwrap(), Ok("stopped"));
    }
}
