//! An answer of an upstream that is passed on as it came.

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode};

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
        let header = size_of::<(HeaderName, HeaderValue)>();
        let values: usize = self.headers.iter().map(|(_, v)| header + v.len()).sum();
        values + self.body.len()
    }
}
