//! Requests to a backend, and the reading of their responses.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};

use crate::model::Error;

/// A request, relative to the backend's URL. Its body may hold secrets, so it cannot be printed.
#[derive(Clone)]
pub struct Request {
    /// GET or POST.
    pub method: Method,
    /// Path and query below the backend's URL.
    pub path: String,
    /// Headers on top of the configured ones.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// The body; empty for GET.
    pub body: Bytes,
    /// The units that the store bills for it; 0 if calls are free.
    pub units: u32,
}

/// A response, read whole.
#[derive(Clone, Debug)]
pub struct Response {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body, decompressed.
    pub body: Bytes,
}

/// A request and the reader of its response. Reading has no effects, so that an exchange can be
/// made again.
pub struct Exchange<T> {
    /// The request to send.
    pub request: Request,
    /// The reader of its response.
    pub read: Read<T>,
}

/// The reader of a response. It is shared with the thread that reads a large one.
pub type Read<T> = Arc<dyn Fn(&Response) -> Result<Next<T>, Error> + Send + Sync>;

/// The outcome of a response.
pub enum Next<T> {
    /// The answer.
    Done(T),
    /// Another request is needed.
    More(Exchange<T>),
    /// Another replica may know more.
    Compare(Box<Comparison<T>>),
}

/// An answer with gaps, and the request that may fill them from another replica.
pub struct Comparison<T> {
    /// The request to a replica that has not been asked yet.
    pub ask: Exchange<T>,
    /// The result if there is no other replica, or none can be asked.
    pub known: Next<T>,
}
