//! Reading of responses, and the time that they describe.

use std::time::Duration;

use tokio::time::Instant;

use crate::adapters::{Exchange, Next, Response, date};
use crate::model::{Error, Kind, Millis};

/// Longest body, in bytes, that is read on the thread that received it: reading holds a thread of
/// the runtime up, at 2 to 3 ns per byte for less than 1 ms.
const READ_INLINE: usize = 256 << 10;

/// Reads `response`; a large one on a thread of its own, unless its turn comes after `deadline`.
pub(super) async fn read<T: Send + 'static>(
    exchange: &Exchange<T>,
    response: Response,
    deadline: Instant,
) -> Result<Next<T>, Error> {
    if response.body.len() <= READ_INLINE {
        return (exchange.read)(&response);
    }
    let read = exchange.read.clone();
    let reading = crate::work::elsewhere(move || match Instant::now() < deadline {
        true => read(&response),
        false => {
            let message = "the upstream's answer came too late to be read before the deadline";
            Err(Error::new(Kind::DeadlineExceeded, message))
        }
    });
    reading.await.unwrap_or_else(|ended| {
        let message = format!("the upstream's answer could not be read: {ended}");
        Err(Error::new(Kind::Internal, message))
    })
}

/// Returns the upstream's time when it began to answer: its `Date`, which is in whole seconds,
/// rounded down, of a moment at most `took` later.
pub(super) fn as_of(response: &Response, took: Duration) -> Option<Millis> {
    Some(date(response)? - Millis::try_from(took.as_millis()).ok()?)
}
