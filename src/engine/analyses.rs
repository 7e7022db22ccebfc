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
        let written = Arc::new(written);
        let of_task = written.clone();
        let read = move || promql::canonical_selectors(&of_task);
        let normal = elsewhere_if_long(length, read).await.flatten();
        normal.unwrap_or_else(|| Arc::unwrap_or_clone(written))
    }

    /// Returns the analysis of `expression`, and puts it in its normal form. Never fails.
    pub async fn expression(&self, expression: &mut String) -> Arc<ExpressionFacts> {
        let known = &self.memory.analyses.0;
        let facts = match known.get(expression.as_str()) {
            Some(facts) => facts,
            None => self.analyze(expression).await,
        };
        if let Some(normal) = &facts.normal {
            expression.clone_from(normal);
        }
        facts
    }

    /// Reads `expression`, and remembers the analysis.
    async fn analyze(&self, expression: &mut String) -> Arc<ExpressionFacts> {
        // No copy is made beside the tree.
        let text = Arc::new(std::mem::take(expression));
        let of_task = text.clone();
        let read = elsewhere_if_long(text.len(), move || promql::read(&of_task)).await;
        *expression = Arc::unwrap_or_clone(text);
        let facts = Arc::new(read.unwrap_or(promql::NOT_UNDERSTOOD));
        let known = &self.memory.analyses.0;
        known.insert(expression.as_str().into(), facts.clone());
        facts
    }
}
