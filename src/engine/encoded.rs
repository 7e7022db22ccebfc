//! Responses of whole answers, encoded once for all clients.

use std::sync::{Arc, OnceLock};

use http::header::CONTENT_ENCODING;
use http::{HeaderName, HeaderValue, StatusCode};

use super::outcome::{CacheOutcome, Timing};
use super::whole::{Content, WholeAnswer, WholeKey};
use super::{Engine, RequestContext};
use crate::model::{Error, Kind, RawResponse, heap_block};
use crate::wire::encoding::{Encoding, PackedText, Text};

/// Shorter bodies are not encoded.
const WORTH_ENCODING: usize = 8 << 10;

/// Longer bodies take more than a millisecond to encode and leave the threads that serve
/// connections.
const BLOCKING: usize = 64 << 10;

/// A response and, once a client has asked for them, its encoded forms.
pub(super) struct EncodedResponse {
    raw: Arc<RawResponse>,
    gzip: OnceLock<Option<PackedText>>,
    zstd: OnceLock<Option<PackedText>>,
}

impl EncodedResponse {
    /// Returns a response without encoded forms.
    pub(super) fn new(raw: Arc<RawResponse>) -> Self {
        Self {
            raw,
            gzip: OnceLock::new(),
            zstd: OnceLock::new(),
        }
    }

    /// Returns the response as it came.
    pub(super) fn raw(&self) -> &RawResponse {
        &self.raw
    }

    /// Returns whether it is an error.
    pub(super) fn is_error(&self) -> bool {
        !self.raw.status.is_success()
    }

    /// Returns the place of its form in `encoding`; none where it is sent as it is: where it is
    /// short, or came encoded.
    fn form(&self, encoding: Encoding) -> Option<&OnceLock<Option<PackedText>>> {
        let encoded = |(name, _): &(HeaderName, HeaderValue)| name == CONTENT_ENCODING;
        if self.raw.body.len() < WORTH_ENCODING || self.raw.headers.iter().any(encoded) {
            return None;
        }
        match encoding {
            Encoding::Identity => None,
            Encoding::Gzip => Some(&self.gzip),
            Encoding::Zstd => Some(&self.zstd),
        }
    }

    /// Returns its form in `encoding`, made if there is none yet; `None` where that is no smaller.
    fn packed(&self, encoding: Encoding) -> Option<PackedText> {
        let form = self.form(encoding)?;
        form.get_or_init(|| encoding.pack(&self.raw.body)).clone()
    }

    /// Returns the bytes that it holds on the heap, about.
    pub(super) fn heap_bytes(&self) -> usize {
        let forms = [&self.gzip, &self.zstd].into_iter();
        let forms = forms.filter_map(|form| form.get()?.as_ref());
        let bytes: usize = forms.map(|form| heap_block(form.heap_bytes())).sum();
        self.raw.heap_bytes() + bytes
    }
}

/// A response and the part that the cache had in it.
#[derive(Debug)]
pub struct CachedResponse {
    /// Its status.
    pub status: StatusCode,
    /// The headers that belong to its body.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Its body in parts that follow one another.
    pub body: Vec<Text>,
    /// The encoding of the body: the one the client asked for, or none where compression is not
    /// worth it.
    pub encoding: Encoding,
    /// The part that the cache had in the answer.
    pub cache: CacheOutcome,
    /// The phases of its time.
    pub timing: Timing,
}

impl Engine {
    /// Returns the response with `answer`, which is cached under `key`, encoded as the client
    /// asked. A long body is encoded once, off the threads that serve connections, and cached in
    /// that form.
    pub(super) async fn cached_response(
        &self,
        key: &WholeKey,
        answer: WholeAnswer,
        context: &RequestContext,
    ) -> Result<CachedResponse, Error> {
        let WholeAnswer {
            entry,
            cache,
            timing,
        } = answer;
        let Content::Response(response) = &entry.content else {
            return Err(Error::new(Kind::Internal, "a list is no response"));
        };
        let packed = match response.form(context.encoding).map(OnceLock::get) {
            None => None,
            Some(Some(packed)) => packed.clone(),
            Some(None) => {
                if response.raw.body.len() < BLOCKING {
                    response.packed(context.encoding);
                } else {
                    let (entry, encoding) = (entry.clone(), context.encoding);
                    let pack = move || {
                        if let Content::Response(response) = &entry.content {
                            response.packed(encoding);
                        }
                    };
                    let packed = crate::work::elsewhere(pack).await;
                    packed.map_err(|e| {
                        Error::new(Kind::Internal, format!("encoding an answer failed: {e}"))
                    })?;
                }
                self.memory.whole.weigh_again(key, &entry);
                response.packed(context.encoding)
            }
        };
        let raw = &response.raw;
        let (body, encoding) = match packed {
            Some(packed) => (Text::Packed(packed), context.encoding),
            None => (Text::Plain(raw.body.clone()), Encoding::Identity),
        };
        Ok(CachedResponse {
            status: raw.status,
            headers: raw.headers.clone(),
            body: vec![body],
            encoding,
            cache,
            timing,
        })
    }
}
