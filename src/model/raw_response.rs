//! An answer of an upstream that is passed on as it came.

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode};

use super::heap::{heap_block, heap_headers};

/// An answer of an upstream that is passed on as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawResponse {
    /// Its status.
    pub status: StatusCode,
    /// Those of its headers that belong to its body.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Its body.
    pub body: Bytes,
}

impl RawResponse {
    /// Bytes that it holds on the heap, about.
    pub fn heap_bytes(&self) -> usize {
        heap_headers(&self.headers) + heap_block(self.body.len())
    }
}
