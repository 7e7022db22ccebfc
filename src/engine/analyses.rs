//! Cached analyses of expressions: reading an expression takes longer than answering a hit.

use std::sync::Arc;

use moka::sync::Cache;

use super::Engine;
use crate::promql::{self, ExpressionFacts};

/// Most bytes of expressions that are remembered.
const BYTES: u64 = 4 << 20;

/// Longer expressions may take a millisecond to read, and leave the threads that serve connections.
const BLOCKING: usize = 12 << 10;

/// Analyses of expressions, by their text.
pub(super) struct Analyses(Cache<Arc<str>, Arc<ExpressionFacts>>);

impl Default for Analyses {
    fn default() -> Self {
        let weigh = |text: &Arc<str>, facts: &Arc<ExpressionFacts>| {
            let normal = facts.normal.as_ref().map_or(0, String::len);
            u32::try_from(text.len() + normal + 300).unwrap_or(u32::MAX)
        };
        Self(Cache::builder().max_capacity(BYTES).weigher(weigh).build())
    }
}

/// Returns the result of `read` for an expression of `length` bytes.
async fn elsewhere_if_long<T: Send + 'static>(
    length: usize,
    read: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    match length > BLOCKING {
        true => crate::work::elsewhere(read).await.ok(),
        false => Some(read()),
    }
}

impl Engine {
    /// Returns the selectors of a request in their normal form, sorted. Never fails.
    pub async fn selectors(&self, written: Vec<String>) -> Vec<String> {
        let length = written.iter().map(String::len).sum();
        let read = move || promql::canonical_selectors(written);
        elsewhere_if_long(length, read).await.unwrap_or_default()
    }

    /// Returns the analysis of `expression`. Never fails.
    pub async fn expression(&self, expression: &str) -> Arc<ExpressionFacts> {
        let known = &self.memory.analyses.0;
        if let Some(facts) = known.get(expression) {
            return facts;
        }
        let text: Arc<str> = expression.into();
        let of_task = text.clone();
        let read = elsewhere_if_long(text.len(), move || promql::read(&of_task)).await;
        let facts = Arc::new(read.unwrap_or(promql::NOT_UNDERSTOOD));
        known.insert(text, facts.clone());
        facts
    }
}
