//! Cached analyses of expressions: reading an expression takes longer than answering a hit.

use std::sync::Arc;

use moka::sync::Cache;

use super::Engine;
use crate::model::SharedText;
use crate::promql::{self, ExpressionFacts};

/// The share of the cache for analyses, one part in so many, and the most bytes.
const SHARE: u64 = 32;
const MOST: u64 = 4 << 20;

/// The bytes of an analysis besides its texts, and what the table has for it.
const ANALYSIS: usize = 400;

/// Analyses of expressions, by their text.
pub(super) struct Analyses(Cache<SharedText, Analysis>);

/// The analysis of an expression.
#[derive(Clone)]
struct Analysis {
    /// Without the normal form.
    facts: Arc<ExpressionFacts>,
    /// Its normal form, if that differs from the text itself.
    normal: Option<SharedText>,
}

impl Analyses {
    /// Returns a memory of `bytes`, of which a few are used.
    pub(super) fn new(bytes: u64) -> Self {
        let weigh = |text: &SharedText, analysis: &Analysis| {
            let normal = analysis.normal.as_ref().map_or(0, SharedText::heap_bytes);
            u32::try_from(text.heap_bytes() + normal + ANALYSIS).unwrap_or(u32::MAX)
        };
        let bytes = (bytes / SHARE).min(MOST);
        Self(Cache::builder().max_capacity(bytes).weigher(weigh).build())
    }

    /// Returns the most bytes that it holds.
    pub(super) fn most(&self) -> u64 {
        self.0.policy().max_capacity().unwrap_or(0)
    }

    /// Returns the bytes that it holds.
    pub(super) fn weight(&self) -> u64 {
        self.0.run_pending_tasks();
        self.0.weighted_size()
    }
}

impl Engine {
    /// Returns the selectors of a request in their normal form, sorted. Never fails.
    pub fn selectors(&self, written: Vec<String>) -> Vec<String> {
        promql::canonical_selectors(&written).unwrap_or(written)
    }

    /// Returns the analysis of `expression`, and puts it in its normal form. Never fails. An expression of a
    /// mebibyte takes a dozen milliseconds.
    pub fn expression(&self, expression: &mut SharedText) -> Arc<ExpressionFacts> {
        let known = &self.memory.analyses.0;
        let analysis = known.get(expression).unwrap_or_else(|| {
            let mut facts = promql::read(expression);
            let normal = facts.normal.take().map(SharedText::from);
            let analysis = Analysis {
                facts: Arc::new(facts),
                normal,
            };
            known.insert(expression.clone(), analysis.clone());
            analysis
        });
        if let Some(normal) = analysis.normal {
            *expression = normal;
        }
        analysis.facts
    }
}
