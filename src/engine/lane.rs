//! Lanes: what is cached under one identity.

use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::sync::{Arc, OnceLock};

use super::chunk::Frame;
use crate::adapters::Forwarded;
use crate::model::{Details, Layout, MetricQuery, NanInterpretation, Selector, Step};
use crate::upstream::{Forward, Upstream};

/// How many buckets or native intervals a chunk spans: enough that a long answer is made of few,
/// few enough that one is written anew in some microseconds. In tests seams are many.
const CHUNK_CELLS: u32 = if cfg!(test) { 256 } else { 8192 };

/// A lane: the series that one upstream has for one selector, in one layout.
#[derive(Clone)]
pub(crate) struct Lane {
    /// Where its points come from.
    pub(crate) upstream: Arc<Upstream>,
    /// What sets it apart from every other lane.
    pub(crate) key: LaneKey,
}

/// The identity of a lane, cheap to clone, hashed once.
#[derive(Clone)]
pub(crate) struct LaneKey {
    hash: u64,
    identity: Arc<Identity>,
}

/// Everything that two queries must agree on to share cached data.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct Identity {
    upstream: u64,
    pub(crate) selector: Selector,
    pub(crate) metric_field: Option<String>,
    pub(crate) layout: Layout,
    pub(crate) nan: NanInterpretation,
    pub(crate) details: Forwarded,
}

impl LaneKey {
    fn new(identity: Identity) -> Self {
        static KEYS: OnceLock<RandomState> = OnceLock::new();
        Self {
            hash: KEYS.get_or_init(RandomState::new).hash_one(&identity),
            identity: Arc::new(identity),
        }
    }

    pub(crate) fn identity(&self) -> &Identity {
        &self.identity
    }

    /// A number that hardly any other lane has.
    pub(crate) fn number(&self) -> u64 {
        self.hash
    }

    /// Bytes that it holds on the heap, about.
    pub(crate) fn heap_bytes(&self) -> usize {
        let field = self.identity.metric_field.as_ref();
        size_of::<Identity>()
            + self.identity.selector.heap_bytes()
            + field.map_or(0, String::capacity)
    }
}

impl Hash for LaneKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

impl PartialEq for LaneKey {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.identity, &other.identity)
            || (self.hash == other.hash && self.identity == other.identity)
    }
}

impl Eq for LaneKey {}

impl Lane {
    /// The lane that answers `query`. Every field of the query and of the details is named here,
    /// so that a new one does not compile until somebody has decided whether it belongs to the
    /// identity.
    pub(crate) fn of(upstream: Arc<Upstream>, details: &Details, query: MetricQuery) -> Self {
        let MetricQuery {
            selector,
            metric_field,
            layout,
            range: _,
            limit: _,
        } = query;
        let identity = Identity {
            upstream: upstream.id,
            selector,
            metric_field,
            layout,
            nan: details.nan,
            details: forwarded(&upstream, details),
        };
        Self {
            upstream,
            key: LaneKey::new(identity),
        }
    }

    /// The lane of the raw points that this one's buckets are made of.
    pub(crate) fn raw(&self) -> Self {
        let identity = self.key.identity();
        let raw = Identity {
            upstream: identity.upstream,
            selector: identity.selector.clone(),
            metric_field: identity.metric_field.clone(),
            layout: Layout::Raw,
            nan: identity.nan,
            details: identity.details.clone(),
        };
        Self {
            upstream: self.upstream.clone(),
            key: LaneKey::new(raw),
        }
    }

    pub(crate) fn layout(&self) -> Layout {
        self.key.identity.layout
    }

    /// What lies between two neighbouring points: the bucket size or the native interval.
    pub(crate) fn cell(&self) -> Step {
        match self.layout() {
            Layout::Raw => self.upstream.reading.interval,
            Layout::Buckets { size, .. } => size,
        }
    }

    /// What chunk `index` is a part of.
    pub(crate) fn frame(&self, index: i64) -> Frame {
        Frame {
            span: self.chunk_span().cell(index),
            layout: self.layout(),
            grain: self.upstream.freshness.history_ttl / 8,
        }
    }

    /// The time that a chunk spans.
    pub(crate) fn chunk_span(&self) -> Step {
        self.cell().times(CHUNK_CELLS)
    }
}

/// The connection details that `upstream` is sent.
pub(crate) fn forwarded(upstream: &Upstream, details: &Details) -> Forwarded {
    let Details {
        upstream: _,
        url: _,
        timeout: _,
        nan: _,
        rest,
    } = details;
    match &upstream.forward {
        Forward::Nothing => Forwarded::new(),
        Forward::Client => rest.clone(),
        Forward::Fixed(fixed) => fixed.clone(),
    }
}
