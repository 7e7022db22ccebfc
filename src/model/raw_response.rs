//! An answer of an upstream that is passed on unchanged.

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode};

use super::heap::{heap_block, heap_headers};

/// An answer of an upstream that is passed on unchanged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawResponse {
    /// Its status.
    pub status: StatusCode,
    /// The headers that describe its body.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Its body.
    pub body: Bytes,
}

impl RawResponse {
    /// Returns the bytes that it holds on the heap, about.
    pub fn heap_bytes(&self) -> usize {
        heap_headers(&self.headers) + heap_block(self.body.len())
    }
}
