//! What is known of expressions: reading one takes longer than answering a hit.

use std::sync::Arc;

use moka::sync::Cache;

use super::Engine;
use crate::promql::{self, ExpressionFacts};

/// Most bytes of expressions that are remembered.
const BYTES: u64 = 4 << 20;

/// Longer expressions may take a millisecond to read, and leave the threads that serve connections.
const BLOCKING: usize = 12 << 10;

/// What is known of expressions, by their text.
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

impl Engine {
    /// What is known of `expression`. Never fails.
    pub async fn expression(&self, expression: &str) -> Arc<ExpressionFacts> {
        let known = &self.memory.analyses.0;
        if let Some(facts) = known.get(expression) {
            return facts;
        }
        let text: Arc<str> = expression.into();
        let facts = if text.len() > BLOCKING {
            let text = text.clone();
            let read = tokio::task::spawn_blocking(move || promql::read(&text));
            read.await.unwrap_or(promql::NOT_UNDERSTOOD)
        } else {
            promql::read(&text)
        };
        let facts = Arc::new(facts);
        known.insert(text, facts.clone());
        facts
    }
}
