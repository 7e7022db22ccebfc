//! Whole answers as texts: how long they may be cached, what they answer, and what that is.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode};
use serde::{Deserialize, Serialize};

use crate::engine::encoded::EncodedResponse;
use crate::engine::metadata::{List, MetadataQuery};
use crate::engine::whole::{Content, WholeQuery};
use crate::model::RawResponse;
use crate::wire::mirror::response;

/// The time for which an answer may be cached, as far as it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum StoredPolicy {
    Short,
    Metadata,
    Settled,
}

/// The head of a stored answer, as JSON after its length.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Head {
    pub(super) policy: StoredPolicy,
    /// The evaluation time, as it was asked for.
    pub(super) time: Option<String>,
    status: u16,
    headers: Vec<(String, String)>,
}

/// The text of an answer for the evaluation time `time`; `None` if it cannot be written as one.
pub(super) fn text(
    time: Option<String>,
    policy: StoredPolicy,
    content: &Content,
) -> Option<Vec<u8>> {
    let mut head = Head {
        policy,
        time,
        status: 200,
        headers: Vec::new(),
    };
    let body = match content {
        Content::List(List::Names(names)) => {
            Bytes::from(response::write_field_names(&names.fields, names.partial))
        }
        Content::List(List::Values(values)) => Bytes::from(response::write_field_values(values)),
        Content::Response(response) => {
            let raw = response.raw();
            head.status = raw.status.as_u16();
            let text = |(name, value): &(HeaderName, HeaderValue)| {
                Some((name.as_str().to_owned(), value.to_str().ok()?.to_owned()))
            };
            head.headers = raw.headers.iter().map(text).collect::<Option<_>>()?;
            raw.body.clone()
        }
        Content::List(List::Catalogue(_)) | Content::Error(_) | Content::Alias(_) => return None,
    };
    let head = serde_json::to_vec(&head).ok()?;
    let length = u32::try_from(head.len()).ok()?;
    Some([&length.to_le_bytes()[..], &head, &body].concat())
}

/// The answer to `query` that `text` is.
pub(super) fn read(text: &[u8], query: &WholeQuery) -> Option<(Head, Content)> {
    let (length, rest) = text.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
    let (head, body) = rest.split_at_checked(length)?;
    let head: Head = serde_json::from_slice(head).ok()?;
    let content = match query {
        WholeQuery::List(_, MetadataQuery::Names(_)) => {
            Content::List(List::Names(response::read_field_names(body).ok()?))
        }
        WholeQuery::List(_, MetadataQuery::Values(_)) => {
            Content::List(List::Values(response::read_field_values(body).ok()?))
        }
        WholeQuery::Page(..) | WholeQuery::Response(_) => {
            let header = |(name, value): &(String, String)| {
                let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
                Some((name, HeaderValue::from_str(value).ok()?))
            };
            Content::Response(EncodedResponse::new(Arc::new(RawResponse {
                status: StatusCode::from_u16(head.status).ok()?,
                headers: head.headers.iter().map(header).collect::<Option<_>>()?,
                body: Bytes::copy_from_slice(body),
            })))
        }
        WholeQuery::Catalogue(_) | WholeQuery::Newest(_) | WholeQuery::Range(..) => return None,
    };
    Some((head, content))
}
