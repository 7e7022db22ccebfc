//! Bodies: those of responses, slices of memory that are shared with the cache and never joined, and
//! the bounded reading of those of requests.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes};
use http_body::{Frame, SizeHint};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;

use crate::model::{Error, Kind};

/// A body whose parts, and so its length, are known.
#[derive(Debug, Default)]
pub struct Body {
    parts: VecDeque<Bytes>,
    left: u64,
}

impl Body {
    /// Returns a body of `parts`, one after the other.
    pub fn of(parts: impl IntoIterator<Item = Bytes>) -> Self {
        let parts: VecDeque<Bytes> = parts.into_iter().filter(|p| !p.is_empty()).collect();
        let left = parts.iter().map(|p| p.len() as u64).sum();
        Self { parts, left }
    }

    /// Returns its parts, joined, for callers without a connection to write to.
    pub fn into_bytes(self) -> Bytes {
        let mut all = bytes::BytesMut::with_capacity(usize::try_from(self.left).unwrap_or(0));
        for part in self.parts {
            all.extend_from_slice(&part);
        }
        all.freeze()
    }
}

impl<T: Into<Bytes>> From<T> for Body {
    fn from(bytes: T) -> Self {
        Self::of([bytes.into()])
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let part = self.parts.pop_front();
        if let Some(part) = &part {
            self.left -= part.remaining() as u64;
        }
        Poll::Ready(part.map(|p| Ok(Frame::data(p))))
    }

    fn is_end_stream(&self) -> bool {
        self.parts.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

/// Reads the body of a request, of at most `max` bytes, within `limit`.
pub async fn read_body(body: Incoming, max: usize, limit: Duration) -> Result<Bytes, Error> {
    let too_large = || {
        let message = format!("the request body is larger than {max} bytes (server.max_body)");
        Error::new(Kind::BodyTooLarge, message)
    };
    if hyper::body::Body::size_hint(&body).lower() > max as u64 {
        return Err(too_large());
    }
    match tokio::time::timeout(limit, Limited::new(body, max).collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(e)) if e.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(e)) => Err(Error::invalid(
            "$",
            format!("the connection ended within the body: {e}"),
        )),
        Err(_) => Err(Error::new(
            Kind::RequestTimeout,
            "the request body did not arrive in time",
        )),
    }
}
