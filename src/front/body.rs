//! Bodies: those of responses, slices of memory that are shared with the cache and never joined, and
//! the bounded reading of those of requests.

use std::convert::Infallible;
use std::io::IoSlice;
use std::iter::once;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes};
use futures_util::FutureExt;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::time::{Instant, timeout_at};

use super::admission::{Claim, Full};
use crate::model::{Error, Kind};
use crate::wire::encoding::BodyParts;

/// The least rate at which a request's body must arrive, in bytes a second, after a first while.
const LEAST_RATE: usize = 8 << 10;
const FIRST_WHILE: Duration = Duration::from_secs(5);

/// The first size of the buffer that a request's body is copied into.
const FIRST_BUFFER: usize = 4 << 10;

/// Requests and responses are charged in multiples of so many bytes. Most take no more for both, so their charge
/// is not changed in between.
const PAGE: usize = 4 << 10;

/// Shorter bodies are joined: their bytes are copied in less time than two more parts take.
const JOINED: usize = 4 << 10;

/// A body whose parts, and so its length, are known.
#[derive(Debug, Default)]
pub struct Body {
    /// All of it, until it goes into the connection: as one frame, since each costs the HTTP library some work.
    parts: BodyData,
    /// Bytes of memory that are held for it.
    weight: usize,
}

/// The parts of a body on their way into the connection. They hold the request's claim until they have been
/// sent or dropped, and tell it of each byte that the connection takes.
#[derive(Debug, Default)]
pub struct BodyData {
    /// The next part; empty at the end.
    next: Bytes,
    /// Those after it, none of which is empty.
    rest: std::vec::IntoIter<Bytes>,
    left: usize,
    claim: Option<Arc<Claim>>,
}

impl Body {
    /// Returns a body of `parts`, one after the other.
    pub fn of(parts: impl IntoIterator<Item = Bytes>) -> Self {
        let parts: BodyParts = parts.into_iter().collect();
        let length: usize = parts.iter().map(Bytes::len).sum();
        if parts.len() < 2 || length > JOINED {
            return Self::new(parts.into_vec());
        }
        Self::joined(length, parts.iter().map(Bytes::as_ref))
    }

    /// Returns a body of `texts` between a head and a tail.
    pub(super) fn around(
        (head, tail): (&'static [u8], &'static [u8]),
        texts: impl ExactSizeIterator<Item = Bytes>,
    ) -> Self {
        let mut parts = Vec::with_capacity(texts.len() + 2);
        parts.push(Bytes::from_static(head));
        parts.extend(texts);
        parts.push(Bytes::from_static(tail));
        Self::new(parts)
    }

    /// Returns the same, if it is short enough to be joined.
    pub(super) fn short<'a>(
        (head, tail): (&'a [u8], &'a [u8]),
        texts: impl Iterator<Item = &'a [u8]> + Clone,
    ) -> Option<Self> {
        let length = texts.clone().map(<[u8]>::len).sum::<usize>() + head.len() + tail.len();
        let parts = || once(head).chain(texts).chain(once(tail));
        (length <= JOINED).then(|| Self::joined(length, parts()))
    }

    fn joined<'a>(length: usize, parts: impl Iterator<Item = &'a [u8]>) -> Self {
        let mut all = Vec::with_capacity(length);
        parts.for_each(|part| all.extend_from_slice(part));
        Self {
            parts: BodyData {
                next: Bytes::from(all),
                left: length,
                ..BodyData::default()
            },
            weight: length,
        }
    }

    fn new(mut parts: Vec<Bytes>) -> Self {
        parts.retain(|part| !part.is_empty());
        let length = parts.iter().map(Bytes::len).sum();
        let mut rest = parts.into_iter();
        Self {
            parts: BodyData {
                next: rest.next().unwrap_or_default(),
                rest,
                left: length,
                claim: None,
            },
            weight: length,
        }
    }

    /// Returns a body of `text`, which all responses share.
    pub fn fixed(text: &'static str) -> Self {
        Self::shared([Bytes::from_static(text.as_bytes())])
    }

    /// Returns a body of `parts` that are kept in memory as long as the process runs.
    pub(super) fn shared(parts: impl IntoIterator<Item = Bytes>) -> Self {
        let mut body = Self::new(parts.into_iter().collect());
        body.weight = 0;
        body
    }

    /// Returns its parts, joined, for callers without a connection to write to.
    pub fn into_bytes(mut self) -> Bytes {
        let length = self.parts.left;
        self.parts.copy_to_bytes(length)
    }

    /// Returns the bytes of memory that it holds, in whole pages.
    pub(super) fn weight(&self) -> usize {
        self.weight.next_multiple_of(PAGE)
    }

    /// Makes it hold `claim` until all of it has been sent or dropped.
    pub(super) fn hold(&mut self, claim: Arc<Claim>) {
        self.parts.claim = Some(claim);
    }
}

impl<T: Into<Bytes>> From<T> for Body {
    fn from(bytes: T) -> Self {
        Self::of([bytes.into()])
    }
}

impl http_body::Body for Body {
    type Data = BodyData;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<BodyData>, Infallible>>> {
        let parts = std::mem::take(&mut self.parts);
        Poll::Ready(parts.has_remaining().then(|| Ok(Frame::data(parts))))
    }

    fn is_end_stream(&self) -> bool {
        !self.parts.has_remaining()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.parts.left as u64)
    }
}

impl Buf for BodyData {
    fn remaining(&self) -> usize {
        self.left
    }

    fn chunk(&self) -> &[u8] {
        &self.next
    }

    fn chunks_vectored<'a>(&'a self, into: &mut [IoSlice<'a>]) -> usize {
        let parts = once(&self.next).chain(self.rest.as_slice());
        let places = into.iter_mut().zip(parts.filter(|part| !part.is_empty()));
        let filled = places.map(|(place, part)| *place = IoSlice::new(part));
        filled.count()
    }

    fn advance(&mut self, count: usize) {
        assert!(count <= self.left, "no more than remains can be taken");
        self.left -= count;
        if let Some(claim) = &self.claim {
            claim.progress(count);
        }
        let mut more = count;
        while more >= self.next.len() && more > 0 {
            more -= self.next.len();
            // What has been sent is not held any more.
            self.next = self.rest.next().unwrap_or_default();
        }
        self.next.advance(more);
    }
}

/// The bounds within which the body of a request is read.
#[derive(Clone, Copy, Debug)]
pub struct BodyLimits {
    /// Most bytes of it.
    pub max: usize,
    /// The time by which it must have arrived.
    pub deadline: Instant,
    /// Most bytes of all requests and responses in flight.
    pub in_flight: usize,
}

/// Reads the body of a request into one buffer.
///
/// # Errors
///
/// [`Kind::BodyTooLarge`] beyond the largest size, [`Kind::RequestTimeout`] if it arrives too slowly,
/// [`Kind::InvalidRequest`] if the connection ends.
pub async fn read_body(mut body: Incoming, limits: BodyLimits) -> Result<Bytes, Error> {
    read_charged(&mut body, limits, None).await
}

/// Reads the body of a request. Its bytes are charged to `claim`, if there is one, as they arrive. A body
/// that arrived with its head is a part of the connection's buffer, so it should be dropped before
/// anything is waited for; others are copied into one buffer.
///
/// # Errors
///
/// [`Kind::BodyTooLarge`] beyond the largest size, [`Kind::RequestTimeout`] if it arrives too slowly,
/// [`Kind::Overloaded`] if there is no room for it, [`Kind::InvalidRequest`] if the connection ends.
pub(super) async fn read_charged(
    body: &mut Incoming,
    limits: BodyLimits,
    claim: Option<&Claim>,
) -> Result<Bytes, Error> {
    let max = limits.max;
    let too_large = || {
        let message = format!("the request body is larger than {max} bytes (server.max_body)");
        Error::new(Kind::BodyTooLarge, message)
    };
    let hold = |bytes| match claim {
        None => Ok(()),
        Some(claim) => claim
            .hold(bytes, limits.in_flight)
            .map_err(|full| full.of_bytes(limits.in_flight)),
    };
    let size = hyper::body::Body::size_hint(body);
    if size.lower() > max as u64 {
        return Err(too_large());
    }
    let mut begun = None;
    let mut buffer = Vec::new();
    loop {
        // As a rule it has arrived: then no timer is needed.
        let frame = match body.frame().now_or_never() {
            Some(frame) => Ok(frame),
            None => {
                let begun = *begun.get_or_insert_with(Instant::now);
                let earned = Duration::from_millis((buffer.len() * 1000 / LEAST_RATE) as u64);
                let due = limits.deadline.min(begun + FIRST_WHILE + earned);
                timeout_at(due, body.frame()).await
            }
        };
        let frame = match frame {
            Ok(None) => return Ok(Bytes::from(buffer)),
            Ok(Some(Ok(frame))) => frame,
            Ok(Some(Err(e))) => {
                let message = format!("the connection ended within the body: {e}");
                return Err(Error::invalid("$", message));
            }
            Err(_) => {
                let message = format!(
                    "the request body did not arrive in time: before the request's deadline \
                     (server.request_timeout), and after {FIRST_WHILE:?} with at least {LEAST_RATE} \
                     bytes a second"
                );
                return Err(Error::new(Kind::RequestTimeout, message));
            }
        };
        let Ok(data) = frame.into_data() else {
            continue;
        };
        if buffer.is_empty() && size.exact() == Some(data.len() as u64) {
            hold(data.len().next_multiple_of(PAGE))?;
            return Ok(data);
        }
        let length = buffer.len() + data.len();
        if length > max {
            return Err(too_large());
        }
        if length > buffer.capacity() {
            let capacity = (2 * buffer.capacity()).clamp(FIRST_BUFFER.min(max), max);
            let capacity = capacity.max(length);
            hold(capacity)?;
            buffer.reserve_exact(capacity - buffer.len());
        }
        buffer.extend_from_slice(&data);
    }
}

impl Full {
    /// Returns the error of a request for whose bytes there is no room among `most`.
    pub(super) fn of_bytes(self, most: usize) -> Error {
        let message = format!(
            "requests and responses of {most} bytes are already in flight, and no other client holds \
             more of them (half of server.max_in_flight_bytes)"
        );
        Error::new(Kind::Overloaded, message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// A connection takes a body in pieces of any size, and is shown as many parts as it has places for.
        #[test]
        fn the_parts_of_a_body_are_sent_one_after_the_other(
            parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..2_000), 0..9),
            taken in prop::collection::vec(1_usize..3_000, 1..9),
            places in 1_usize..5,
        ) {
            let all = parts.concat();
            let mut body = Body::of(parts.into_iter().map(Bytes::from));
            prop_assert_eq!(http_body::Body::size_hint(&body).exact(), Some(all.len() as u64));
            prop_assert_eq!(http_body::Body::is_end_stream(&body), all.is_empty());
            let frame = |body: &mut Body| {
                let mut context = Context::from_waker(std::task::Waker::noop());
                match http_body::Body::poll_frame(Pin::new(body), &mut context) {
                    Poll::Ready(frame) => frame.map(|frame| frame.unwrap().into_data().unwrap()),
                    Poll::Pending => panic!("a body is there at once"),
                }
            };
            let Some(mut sent) = frame(&mut body) else {
                prop_assert!(all.is_empty());
                return Ok(());
            };
            prop_assert!(http_body::Body::is_end_stream(&body) && frame(&mut body).is_none());
            let mut left = &all[..];
            for count in taken.iter().cycle() {
                prop_assert_eq!(sent.remaining(), left.len());
                if left.is_empty() {
                    break;
                }
                let mut shown = vec![IoSlice::new(&[]); places];
                let filled = sent.chunks_vectored(&mut shown);
                prop_assert!(filled > 0 && shown[..filled].iter().all(|part| !part.is_empty()));
                let shown: Vec<u8> = shown[..filled].iter().flat_map(|part| part.to_vec()).collect();
                prop_assert!(left.starts_with(&shown) && shown.starts_with(sent.chunk()));
                prop_assert!(filled == places || shown.len() == left.len());
                let count = left.len().min(*count);
                sent.advance(count);
                left = &left[count..];
            }
        }
    }
}
