//! Lanes: what is cached under one identity.

use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::sync::{Arc, OnceLock};

use super::chunk::Frame;
use super::gathered::Gathered;
use crate::adapters::{Data, Forwarded, LabeledSeries, Route};
use crate::model::{
    Details, Expression, Freshness, Layout, MetricPace, MetricQuery, NanInterpretation, Points,
    Selector, Step, TimeRange, heap_block,
};
use crate::store::key::Canonical;
use crate::upstream::{Forward, Upstream};
use crate::wire::mirror::request::write_metric;

/// Number of buckets or native intervals in a chunk: enough that a long answer needs few chunks,
/// few enough that a chunk is rewritten within microseconds. Smaller in tests, so that they meet
/// many seams.
const CHUNK_CELLS: u32 = if cfg!(test) { 256 } else { 8192 };

/// The same for the series of an expression, of which there may be hundreds.
const MATRIX_CELLS: u32 = if cfg!(test) { 64 } else { 512 };

/// A lane: the series that one upstream has for one selector, in one layout.
#[derive(Clone)]
pub struct Lane {
    /// The upstream that its points come from.
    pub(crate) upstream: Arc<Upstream>,
    /// The identity that no other lane has.
    pub(crate) key: LaneKey,
    /// Its pace, where that is not the upstream's.
    pace: Option<MetricPace>,
}

/// The identity of a lane, cheap to clone, hashed once.
#[derive(Clone)]
pub(crate) struct LaneKey {
    hash: u64,
    identity: Arc<Identity>,
}

/// Everything that two queries must agree on to share cached data.
#[derive(PartialEq, Eq, Hash)]
pub(crate) struct Identity {
    upstream: u64,
    subject: Subject,
}

/// The data of an upstream that a lane holds. Details may hold secrets, so it cannot be printed.
#[derive(PartialEq, Eq, Hash)]
pub(crate) enum Subject {
    /// The points of a metric, as requested by the mirror API.
    Metric {
        selector: Selector,
        metric_field: Option<String>,
        layout: Layout,
        nan: NanInterpretation,
        details: Forwarded,
    },
    /// The summaries of a metric's samples, by periods: for each period four points of one time,
    /// sum, count, smallest and largest value; of several metrics one after the other.
    Summaries {
        selector: Selector,
        metric_field: Option<String>,
        period: Step,
        nan: NanInterpretation,
        details: Forwarded,
    },
    /// The series of a PromQL expression.
    Expression(Expression),
}

/// Returns the keys of all hashes, which nobody outside can know.
fn keys() -> &'static RandomState {
    static KEYS: OnceLock<RandomState> = OnceLock::new();
    KEYS.get_or_init(RandomState::new)
}

/// Returns the hash of `value` by keys that nobody outside can know.
pub(super) fn keyed_hash(value: &impl Hash) -> u64 {
    let mut gathered = Gathered::new(keys().build_hasher());
    value.hash(&mut gathered);
    gathered.finish()
}

impl LaneKey {
    fn new(identity: Identity) -> Self {
        Self {
            hash: keyed_hash(&identity),
            identity: Arc::new(identity),
        }
    }

    /// Returns whether it has buckets that are made of the raw points of `raw`.
    pub(crate) fn is_made_of(&self, raw: &Self) -> bool {
        let (Subject::Metric { layout, .. }, Subject::Metric { layout: of, .. }) =
            (self.subject(), raw.subject())
        else {
            return false;
        };
        *of == Layout::Raw && *layout != Layout::Raw && self.same_but_for_layout(raw)
    }

    fn same_but_for_layout(&self, other: &Self) -> bool {
        let (
            Subject::Metric {
                selector,
                metric_field,
                layout: _,
                nan,
                details,
            },
            Subject::Metric {
                selector: its_selector,
                metric_field: its_field,
                layout: _,
                nan: its_nan,
                details: its_details,
            },
        ) = (self.subject(), other.subject())
        else {
            return false;
        };
        self.upstream() == other.upstream()
            && selector == its_selector
            && (metric_field, nan, details) == (its_field, its_nan, its_details)
    }

    /// Returns a number that hardly any other lane has.
    pub(crate) fn number(&self) -> u64 {
        self.hash
    }

    /// Returns the identity of its upstream.
    pub(crate) fn upstream(&self) -> u64 {
        self.identity.upstream
    }

    /// Returns the subject of its identity.
    pub(crate) fn subject(&self) -> &Subject {
        &self.identity.subject
    }

    /// Returns the bytes that it holds on the heap, about.
    pub(crate) fn heap_bytes(&self) -> usize {
        let subject = match &self.identity.subject {
            Subject::Metric {
                selector,
                metric_field,
                layout: _,
                nan: _,
                details,
            }
            | Subject::Summaries {
                selector,
                metric_field,
                period: _,
                nan: _,
                details,
            } => {
                let field = metric_field.as_ref().map_or(0, String::capacity);
                selector.heap_bytes() + heap_block(field) + details.heap_bytes()
            }
            Subject::Expression(expression) => expression.heap_bytes(),
        };
        // An `Arc` has two counters of a word.
        heap_block(size_of::<Identity>() + 2 * size_of::<usize>()) + subject
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
    /// Returns the lane that answers `query`. Every field of the query and of the details is named
    /// here, so that a new one does not compile until its author has decided whether it belongs to
    /// the identity.
    pub fn of(upstream: Arc<Upstream>, details: &Details, query: MetricQuery) -> Self {
        let MetricQuery {
            selector,
            metric_field,
            layout,
            range: _,
            limit: _,
        } = query;
        let subject = Subject::Metric {
            selector,
            metric_field,
            layout,
            nan: details.nan,
            details: forwarded(&upstream, details),
        };
        Self::new(upstream, subject)
    }

    /// Returns the lane of `expression`.
    pub(crate) fn of_expression(upstream: Arc<Upstream>, expression: Expression) -> Self {
        Self::new(upstream, Subject::Expression(expression))
    }

    fn new(upstream: Arc<Upstream>, subject: Subject) -> Self {
        let identity = Identity {
            upstream: upstream.id(),
            subject,
        };
        Self::with_key(upstream, LaneKey::new(identity))
    }

    /// Returns the lane of `upstream` that has the identity `key`.
    pub(super) fn with_key(upstream: Arc<Upstream>, key: LaneKey) -> Self {
        let pace = match key.subject() {
            Subject::Metric {
                selector,
                metric_field,
                ..
            }
            | Subject::Summaries {
                selector,
                metric_field,
                ..
            } => upstream.adapter.pace(selector, metric_field.as_deref()),
            Subject::Expression(_) => None,
        };
        Self {
            upstream,
            key,
            pace,
        }
    }

    /// Returns when its data is fetched again.
    pub(crate) fn freshness(&self) -> Freshness {
        let usual = self.upstream.freshness;
        self.pace.map_or(usual, |pace| Freshness {
            settle: pace.settle,
            refresh: pace.refresh,
            ..usual
        })
    }

    /// Returns the native distance of its points.
    pub(crate) fn interval(&self) -> Step {
        let usual = self.upstream.reading.interval;
        self.pace.map_or(usual, |pace| pace.interval)
    }

    /// Returns the lane of the raw points that this one's buckets are made of; an expression has
    /// none.
    pub(crate) fn raw(&self) -> Option<Self> {
        let Subject::Metric {
            selector,
            metric_field,
            layout: _,
            nan,
            details,
        } = &self.key.identity.subject
        else {
            return None;
        };
        let raw = Subject::Metric {
            selector: selector.clone(),
            metric_field: metric_field.clone(),
            layout: Layout::Raw,
            nan: *nan,
            details: details.clone(),
        };
        Some(Self::new(self.upstream.clone(), raw))
    }

    /// Returns the lane of the summaries by `period` of the samples that `selector` means, which this
    /// one's points are made of; only a metric has one.
    pub(crate) fn summaries(&self, selector: &Selector, period: Step) -> Option<Self> {
        let Subject::Metric {
            selector: _,
            metric_field,
            layout: _,
            nan,
            details,
        } = self.subject()
        else {
            return None;
        };
        let summaries = Subject::Summaries {
            selector: selector.clone(),
            metric_field: metric_field.clone(),
            period,
            nan: *nan,
            details: details.clone(),
        };
        Some(Self::new(self.upstream.clone(), summaries))
    }

    /// Returns whether each fetch of it is billed by the call.
    pub(crate) fn is_metered(&self) -> bool {
        self.upstream.adapter.is_metered()
            && match self.subject() {
                Subject::Summaries { .. } => true,
                Subject::Metric {
                    selector, layout, ..
                } => {
                    let route = self.upstream.adapter.route(selector, *layout);
                    matches!(route, None | Some(Route::Upstream))
                }
                Subject::Expression(_) => false,
            }
    }

    /// Returns its selector, if answers to it are billed by the series that they have.
    pub(crate) fn billed_by_answer(&self) -> Option<&Selector> {
        match self.subject() {
            Subject::Metric { selector, .. } => {
                let by_answer = self.upstream.adapter.bills_by_answer(selector);
                by_answer.then_some(selector)
            }
            Subject::Summaries { .. } | Subject::Expression(_) => None,
        }
    }

    pub(crate) fn subject(&self) -> &Subject {
        &self.key.identity.subject
    }

    /// Returns the identity within its upstream, in a form that outlives the process. A new part of
    /// the identity does not compile until its author has decided whether it belongs here.
    pub(crate) fn canonical(&self) -> Canonical {
        let Identity {
            // Replaced by the form of the upstream's settings.
            upstream: _,
            subject,
        } = &*self.key.identity;
        let (selector, metric_field, layout, period, nan, details) = match subject {
            Subject::Metric {
                selector,
                metric_field,
                layout,
                nan,
                details,
            } => (selector, metric_field, *layout, None, nan, details),
            Subject::Summaries {
                selector,
                metric_field,
                period,
                nan,
                details,
            } => (
                selector,
                metric_field,
                Layout::Raw,
                Some(*period),
                nan,
                details,
            ),
            Subject::Expression(expression) => return canonical(expression),
        };
        let query = MetricQuery {
            selector: selector.clone(),
            metric_field: metric_field.clone(),
            range: TimeRange::clamped(0, 0),
            limit: None,
            layout,
        };
        let mut form = Canonical::default();
        match period {
            None => form.part("metric"),
            Some(period) => form.part("summaries").number(period.millis()),
        };
        // The text can be read back as the same query, so no two queries have the same text.
        form.part(write_metric(&details.members(), &query));
        form.part(match nan {
            NanInterpretation::Omit => "omit",
            NanInterpretation::Zero => "zero",
        });
        form
    }

    /// Returns the layout of its points. Samples of an expression have their own times, as raw
    /// points do.
    pub(crate) fn layout(&self) -> Layout {
        match self.subject() {
            Subject::Metric { layout, .. } => *layout,
            Subject::Summaries { .. } | Subject::Expression(_) => Layout::Raw,
        }
    }

    /// Returns the contents of a range that is known to be empty.
    pub(crate) fn nothing(&self) -> Data {
        match self.subject() {
            Subject::Metric { .. } | Subject::Summaries { .. } => Data::Points(Points::new()),
            Subject::Expression(_) => Data::Matrix(LabeledSeries::default()),
        }
    }

    /// Returns the distance between two neighbouring points: the bucket size, the step, or the
    /// native interval.
    pub(crate) fn cell(&self) -> Step {
        match (self.subject(), self.layout()) {
            (Subject::Expression(expression), _) => expression.step,
            (Subject::Summaries { period, .. }, _) => *period,
            (_, Layout::Raw) => self.interval(),
            (_, Layout::Buckets { size, .. }) => size,
        }
    }

    /// Returns a number that hardly any other expression of any upstream has, the same for all
    /// steps.
    pub(crate) fn hash_without_step(&self) -> u64 {
        let Subject::Expression(expression) = self.subject() else {
            return self.key.number();
        };
        let Expression {
            query,
            step: _,
            phase: _,
            lag: _,
            parameters,
            headers,
        } = expression;
        keys().hash_one((self.key.upstream(), query, parameters, headers))
    }

    /// Returns the grid on which its ranges are fetched and known.
    pub(crate) fn grid(&self) -> Step {
        match (self.subject(), self.layout()) {
            (Subject::Summaries { period, .. }, _) => *period,
            (_, Layout::Raw) => Step::MILLI,
            (_, Layout::Buckets { size, .. }) => size,
        }
    }

    /// Returns the frame of chunk `index`.
    pub fn frame(&self, index: i64) -> Frame {
        Frame {
            span: self.chunk_span().cell(index),
            layout: self.layout(),
            grain: self.upstream.freshness.history_ttl / 8,
        }
    }

    /// Returns the time that a chunk spans.
    pub(crate) fn chunk_span(&self) -> Step {
        self.cell().times(match self.subject() {
            Subject::Metric { .. } | Subject::Summaries { .. } => CHUNK_CELLS,
            Subject::Expression(_) => MATRIX_CELLS,
        })
    }
}

/// Returns the identity of `expression`, in a form that outlives the process.
fn canonical(expression: &Expression) -> Canonical {
    let Expression {
        query,
        step,
        phase,
        lag,
        parameters,
        headers,
    } = expression;
    let mut form = Canonical::default();
    form.part("expression").part(query);
    form.number(step.millis()).number(*phase).number(*lag);
    form.pairs(parameters.iter()).pairs(headers.iter());
    form
}

/// Returns the connection details that are sent to `upstream`.
pub(crate) fn forwarded(upstream: &Upstream, details: &Details) -> Forwarded {
    let Details {
        upstream: _,
        url: _,
        timeout: _,
        nan: _,
        rest,
    } = details;
    match &upstream.forward {
        Forward::Nothing => Forwarded::default(),
        Forward::Client => Forwarded::of(rest),
        Forward::Fixed(fixed) => fixed.clone(),
    }
}
