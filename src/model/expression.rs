//! Expressions of PromQL whose values are cached by evaluation time.

use http::{HeaderName, HeaderValue};

use super::heap::{heap_block, heap_headers};
use super::shared_text::SharedText;
use super::time::{Millis, Step};

/// An expression that is evaluated at `phase + k * step`, and all else that its values depend on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Expression {
    /// The expression in PromQL.
    pub query: SharedText,
    /// The distance of evaluation times.
    pub step: Step,
    /// The evaluation times modulo `step`, in `0..step`.
    pub phase: Millis,
    /// Milliseconds between an evaluation time and the newest sample that its value may depend on.
    pub lag: Millis,
    /// Further parameters, by name; those of one name in their order.
    pub parameters: Vec<(String, String)>,
    /// Headers of the client that the backend is sent, such as `X-Scope-OrgID`.
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

impl Expression {
    /// Returns the bytes that it holds on the heap, about.
    pub fn heap_bytes(&self) -> usize {
        let Self {
            query,
            step: _,
            phase: _,
            lag: _,
            parameters,
            headers,
        } = self;
        let pair = |(n, v): &(String, String)| heap_block(n.capacity()) + heap_block(v.capacity());
        let pairs: usize = parameters.iter().map(pair).sum();
        query.heap_bytes()
            + heap_block(parameters.capacity() * size_of::<(String, String)>())
            + pairs
            + heap_headers(headers)
    }
}
