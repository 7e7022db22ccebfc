//! Bodies: those of responses, slices of memory that are shared with the cache and never joined, and
//! the bounded reading of those of requests.

use std::convert::Infallible;
use std::io::IoSlice;
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

/// Shorter bodies are joined: their bytes are copied in less time than two more parts take.
const JOINED: usize = 4 << 10;

/// A body whose parts, and so its length, are known.
#[derive(Debug, Default)]
pub struct Body {
    /// The next part; empty at the end.
    next: Bytes,
    /// Those after it, none of which is empty.
    rest: std::vec::IntoIter<Bytes>,
    left: u64,
    /// Bytes of memory that are held for it.
    weight: usize,
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
        let mut all = Vec::with_capacity(length);
        parts.iter().for_each(|part| all.extend_from_slice(part));
        Self {
            next: Bytes::from(all),
            rest: Vec::new().into_iter(),
            left: length as u64,
            weight: length,
            claim: None,
        }
    }

    fn new(mut parts: Vec<Bytes>) -> Self {
        parts.retain(|part| !part.is_empty());
        let length = parts.iter().map(Bytes::len).sum();
        let mut rest = parts.into_iter();
        Self {
            next: rest.next().unwrap_or_default(),
            rest,
            left: length as u64,
            weight: length,
            claim: None,
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
    pub fn into_bytes(self) -> Bytes {
        let mut all = Vec::with_capacity(usize::try_from(self.left).unwrap_or(0));
        for part in std::iter::once(self.next).chain(self.rest) {
            all.extend_from_slice(&part);
        }
        Bytes::from(all)
    }

    /// Returns the bytes of memory that it holds.
    pub(super) fn weight(&self) -> usize {
        self.weight
    }

    /// Makes it hold `claim` until all of it has been sent or dropped.
    pub(super) fn hold(&mut self, claim: Arc<Claim>) {
        self.claim = Some(claim);
    }
}

impl<T: Into<Bytes>> From<T> for Body {
    fn from(bytes: T) -> Self {
        Self::of([bytes.into()])
    }
}

impl http_body::Body for Body {
    type Data = BodyPiece;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<BodyPiece>, Infallible>>> {
        let next = self.rest.next().unwrap_or_default();
        let bytes = std::mem::replace(&mut self.next, next);
        if bytes.is_empty() {
            return Poll::Ready(None);
        }
        self.left -= bytes.len() as u64;
        // The last part takes the claim along.
        let claim = match self.next.is_empty() {
            true => self.claim.take(),
            false => self.claim.clone(),
        };
        Poll::Ready(Some(Ok(Frame::data(BodyPiece { bytes, claim }))))
    }

    fn is_end_stream(&self) -> bool {
        self.next.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

/// A part of a body on its way into the connection. It holds the request's claim until it has been
/// sent or dropped, and tells it of each byte that the connection takes.
#[derive(Debug)]
pub struct BodyPiece {
    bytes: Bytes,
    claim: Option<Arc<Claim>>,
}

impl Buf for BodyPiece {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn chunks_vectored<'a>(&'a self, into: &mut [IoSlice<'a>]) -> usize {
        self.bytes.chunks_vectored(into)
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
        if let Some(claim) = &self.claim {
            claim.progress(count);
        }
    }

    fn copy_to_bytes(&mut self, count: usize) -> Bytes {
        if let Some(claim) = &self.claim {
            claim.progress(count);
        }
        self.bytes.copy_to_bytes(count)
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
pub async fn read_body(body: Incoming, limits: BodyLimits) -> Result<Bytes, Error> {
    read_charged(body, limits, None).await
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
    mut body: Incoming,
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
    let size = hyper::body::Body::size_hint(&body);
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
            hold(data.len())?;
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
