//! Requests to a backend, and the reading of their responses.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

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

/// A request and the reader of its response. Reading has no effects but on the bill, so that an
/// exchange can be made again.
pub struct Exchange<T> {
    /// The request to send.
    pub request: Request,
    /// The reader of its response.
    pub read: Read<T>,
    /// The bill of the call that it belongs to, where answers decide what is billed.
    pub bill: Option<Arc<Bill>>,
}

/// The units that the answers to one call are billed as, which all of its exchanges share.
#[derive(Debug, Default)]
pub struct Bill {
    /// Of the answers that have not been taken.
    open: AtomicU32,
    /// Of the last answer; 0 before the first.
    last: AtomicU32,
}

impl Bill {
    /// Adds an answer that is billed as `units`.
    pub fn add(&self, units: u32) {
        let add = |open: u32| Some(open.saturating_add(units));
        // It always succeeds, as there always is a sum.
        let _ = (self.open).fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
        self.last.store(units, Ordering::Relaxed);
    }

    /// Takes the units that were added since it was called last.
    pub fn take(&self) -> u32 {
        self.open.swap(0, Ordering::Relaxed)
    }

    /// Returns the units of the last answer, if there was one.
    pub fn last(&self) -> Option<u32> {
        Some(self.last.load(Ordering::Relaxed)).filter(|units| *units > 0)
    }
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
