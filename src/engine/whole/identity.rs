//! The identities of whole answers.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use crate::adapters::{CatalogueScope, Forwarded};
use crate::engine::lane::{LaneKey, keyed_hash};
use crate::engine::metadata::MetadataQuery;
use crate::engine::passthrough::PassthroughRequest;
use crate::model::{TimeRange, heap_block};
use crate::upstream::Upstream;

/// A query whose answer is cached whole. Details may hold secrets, so it cannot be printed.
#[derive(PartialEq, Eq, Hash)]
pub(in crate::engine) enum WholeQuery {
    /// The whole list of an upstream, before prefix, offset and limit of a query are applied.
    List(Forwarded, MetadataQuery),
    /// The metrics of an upstream that lists are cut from.
    Catalogue(CatalogueScope),
    /// A query for names or values.
    Page(Forwarded, MetadataQuery),
    /// A request to Prometheus' API.
    Response(PassthroughRequest),
    /// A request without its evaluation time, of which the newest answer is known.
    Newest(PassthroughRequest),
    /// A range query of PromQL, of which only errors are cached whole.
    Range(LaneKey, TimeRange),
}

/// The identity that no other whole answer has, hashed once.
pub(in crate::engine) struct WholeIdentity {
    hash: u64,
    pub(in crate::engine) upstream: u64,
    pub(in crate::engine) query: WholeQuery,
}

impl Hash for WholeIdentity {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

impl PartialEq for WholeIdentity {
    fn eq(&self, other: &Self) -> bool {
        (self.hash, self.upstream) == (other.hash, other.upstream) && self.query == other.query
    }
}

impl Eq for WholeIdentity {}

/// An identity that is cheap to clone.
pub(in crate::engine) type WholeKey = Arc<WholeIdentity>;

impl WholeIdentity {
    /// Returns the identity of the answer of `upstream` to `query`.
    pub(in crate::engine) fn new(upstream: &Upstream, query: WholeQuery) -> WholeKey {
        Self::of(upstream.id(), query)
    }

    /// Returns that of the upstream whose identity is `upstream`.
    pub(super) fn of(upstream: u64, query: WholeQuery) -> WholeKey {
        Arc::new(Self {
            hash: keyed_hash(&(upstream, &query)),
            upstream,
            query,
        })
    }

    /// Returns a number that hardly any other identity has.
    pub(super) fn number(&self) -> u64 {
        self.hash
    }

    /// Returns the bytes that it holds on the heap, about.
    pub(in crate::engine) fn heap_bytes(&self) -> usize {
        let query = match &self.query {
            WholeQuery::List(details, query) | WholeQuery::Page(details, query) => {
                details.heap_bytes() + query.heap_bytes()
            }
            WholeQuery::Catalogue(scope) => scope.heap_bytes(),
            WholeQuery::Response(request) | WholeQuery::Newest(request) => request.heap_bytes(),
            WholeQuery::Range(lane, _) => lane.heap_bytes(),
        };
        heap_block(size_of::<Self>()) + query
    }
}
