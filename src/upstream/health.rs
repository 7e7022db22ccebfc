//! Trials of addresses that are not well, so that no client's request has to be one: with an open breaker, or
//! failing while another one is asked.

use std::sync::Weak;
use std::time::Duration;

use super::{CallContext, Forward, Upstream};
use crate::adapters::Forwarded;
use crate::telemetry::trace::Trace;

/// Time between trials that the limits refused.
const REFUSED: Duration = Duration::from_secs(1);

/// Watches the addresses of `upstream` as long as it exists: waits until one fails, then tests it each
/// time that a breaker stays open.
pub async fn watch(upstream: Weak<Upstream>) {
    while let Some(held) = upstream.upgrade() {
        let failing = held.client.failing();
        let trial = held.client.next_trial();
        // An upstream that nobody else holds must be able to end while this waits.
        drop(held);
        match trial {
            None => failing.notified().await,
            Some(wait) => {
                tokio::time::sleep(wait).await;
                let Some(held) = upstream.upgrade() else {
                    return;
                };
                held.try_again().await;
                let refused = held.client.next_trial() == Some(Duration::ZERO);
                drop(held);
                if refused {
                    // No call was made: the limits or the budget did not allow it.
                    tokio::time::sleep(REFUSED).await;
                }
            }
        }
    }
}

impl Upstream {
    async fn try_again(&self) {
        let details = match &self.forward {
            Forward::Fixed(details) => details.clone(),
            Forward::Nothing | Forward::Client => Forwarded::default(),
        };
        let exchange = self.adapter.health(&details);
        let call = CallContext::new(
            None,
            tokio::time::Instant::now() + self.client.timeout(),
            Trace::default(),
        );
        self.client.try_again(&exchange, &call).await;
    }
}
