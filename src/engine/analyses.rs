//! What is known of expressions: parsing one takes longer than answering a hit.

use std::sync::Arc;

use moka::sync::Cache;

use super::Engine;
use crate::promql::{Analysis, classify};

/// Most bytes of expressions that are remembered.
const BYTES: u64 = 4 << 20;

/// Analyses of expressions, by their text.
pub(super) struct Analyses(Cache<Arc<str>, Analysis>);

impl Default for Analyses {
    fn default() -> Self {
        let weigh =
            |text: &Arc<str>, _: &Analysis| u32::try_from(text.len() + 200).unwrap_or(u32::MAX);
        Self(Cache::builder().max_capacity(BYTES).weigher(weigh).build())
    }
}

impl Engine {
    /// Whether the values of a range query over `expression` may be kept by evaluation time.
    pub fn analysis(&self, expression: &str) -> Analysis {
        if let Some(known) = self.memory.analyses.0.get(expression) {
            return known;
        }
        let analysis = classify(expression);
        self.memory.analyses.0.insert(expression.into(), analysis);
        analysis
    }
}
