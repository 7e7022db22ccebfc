//! Response bodies: slices of memory that are shared with the cache and never joined.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use http_body::{Frame, SizeHint};

/// A body whose parts, and so its length, are known.
#[derive(Debug, Default)]
pub struct Body {
    parts: VecDeque<Bytes>,
    left: u64,
}

impl Body {
    /// A body of `parts`, one after the other.
    pub fn of(parts: impl IntoIterator<Item = Bytes>) -> Self {
        let parts: VecDeque<Bytes> = parts.into_iter().filter(|p| !p.is_empty()).collect();
        let left = parts.iter().map(|p| p.len() as u64).sum();
        Self { parts, left }
    }

    /// Its parts, joined; for those who have no connection to write to.
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
