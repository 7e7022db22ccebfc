//! An answer of an upstream that is passed on unchanged.

use bytes::Bytes;
use http::header::CONTENT_TYPE;
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
    /// Returns whether it is an error of Prometheus' API about the query itself: that it is invalid
    /// (400), or cannot be evaluated (422, and 500 in some stores).
    pub fn is_about_query(&self) -> bool {
        let json = |(name, value): &(HeaderName, HeaderValue)| {
            name == CONTENT_TYPE && value.as_bytes().starts_with(b"application/json")
        };
        matches!(self.status.as_u16(), 400 | 422 | 500) && self.headers.iter().any(json)
    }

    /// Returns the bytes that it holds on the heap, about.
    pub fn heap_bytes(&self) -> usize {
        heap_headers(&self.headers) + heap_block(self.body.len())
    }
}
