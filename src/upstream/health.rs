//! Trials of addresses that are not well, so that no client's request has to be one: with an open breaker, or
//! failing while another one is asked.

use std::sync::Weak;
use std::time::Duration;

use futures_util::future::join_all;

use super::addresses::Wish;
use super::attempt::{Tries, Turn};
use super::limiter::TRIALS;
use super::{CallContext, Forward, Upstream, UpstreamClient};
use crate::adapters::{Exchange, Forwarded};
use crate::telemetry::trace::Trace;

/// Time between trials that the limits refused.
const REFUSED: Duration = Duration::from_secs(1);

/// Longest wait of a trial for its turn among the calls of clients.
const TURN: Duration = Duration::from_secs(60);

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
                // One that fails meanwhile may be due sooner.
                tokio::select! {
                    biased;
                    () = tokio::time::sleep(wait) => {}
                    () = failing.notified() => continue,
                }
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
            TRIALS,
            tokio::time::Instant::now() + TURN + self.client.timeout(),
            Trace::default(),
        );
        self.client.try_again(&exchange, &call).await;
    }
}

impl UpstreamClient {
    /// Makes `exchange` at each address that is not well and may be tried again. Its state takes in the
    /// result.
    async fn try_again<T: Send + 'static>(&self, exchange: &Exchange<T>, call: &CallContext) {
        // One that hangs must not delay the trial of another.
        let trials = self.addresses.to_try().into_iter();
        join_all(trials.map(|index| self.try_at(index, exchange, call))).await;
    }

    async fn try_at<T: Send + 'static>(
        &self,
        index: usize,
        exchange: &Exchange<T>,
        call: &CallContext,
    ) {
        let wish = Wish {
            trial: true,
            only: Some(index),
            ..Wish::default()
        };
        if let Ok(permit) = self.admit(call, false, wish).await {
            let tries = Tries::after(None);
            // An error shows in the breaker, the log of failures, and the metrics.
            let made = self.made(permit, exchange, call, Turn::FIRST, wish, &tries);
            let _ = made.await;
        }
    }
}
