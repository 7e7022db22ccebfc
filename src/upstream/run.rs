//! The exchanges that one answer takes: those that follow from one another, and those with further replicas.

use tokio::time::Instant;

use super::addresses::{Tried, Wish};
use super::answer_memory::Charges;
use super::attempt::{Tries, Turn};
use super::client::{Answered, CallContext, UpstreamClient};
use super::late::Late;
use crate::adapters::{Exchange, Next};
use crate::model::{Error, Kind};

/// One exchange, made with one replica or with several.
struct Asked {
    /// With which ones, whether they answered or not.
    addresses: Tried,
    /// Whether another may know more once it can be asked.
    provisional: bool,
    /// Whether a further one was asked, or could not be.
    compared: bool,
}

impl Asked {
    fn of<T>(first: &Answered<T>) -> Self {
        Self {
            addresses: Tried::default().with(first.address),
            provisional: first.provisional,
            compared: false,
        }
    }
}

impl UpstreamClient {
    /// Makes `exchange` and those that follow from it.
    pub async fn run<T: Send + 'static>(
        &self,
        exchange: Exchange<T>,
        call: &CallContext,
    ) -> Result<Answered<T>, Error> {
        self.run_when_admitted(Late::of(exchange), call).await
    }

    /// Makes the exchange that there is once its call has been admitted, and those that follow from it.
    pub(super) async fn run_when_admitted<T: Send + 'static>(
        &self,
        exchange: Late<T>,
        call: &CallContext,
    ) -> Result<Answered<T>, Error> {
        let first = self.call(&exchange, call, None).await?;
        let mut asked = Asked::of(&first);
        let (mut as_of, sent, mut any_provisional) = (first.as_of, first.sent, false);
        let (address, mut next, mut charge) = (first.address, first.value, first.charge);
        loop {
            let answered = match next {
                Next::Done(value) => {
                    return Ok(Answered {
                        value,
                        as_of,
                        sent,
                        address,
                        provisional: asked.provisional || any_provisional,
                        charge,
                    });
                }
                Next::More(exchange) => {
                    charge.goes_on();
                    let exchange = Late::of(exchange);
                    let answered = self.call(&exchange, call, Some(&charge)).await?;
                    any_provisional |= asked.provisional;
                    asked = Asked::of(&answered);
                    answered
                }
                Next::Compare(comparison) => {
                    charge.goes_on();
                    let other = self.ask_another(&comparison.ask, call, &mut asked, &charge);
                    let Some(answered) = other.await else {
                        next = comparison.known;
                        continue;
                    };
                    answered
                }
            };
            as_of = as_of.min(answered.as_of);
            (next, charge) = (answered.value, answered.charge);
        }
    }

    /// Makes `exchange` at each address, once, and returns the addresses and what came of it.
    pub async fn run_at_each<T: Send + 'static>(
        &self,
        exchange: &Exchange<T>,
        call: &CallContext,
    ) -> Vec<(String, Result<(), Error>)> {
        let mut all = Vec::new();
        for (index, url) in self.urls().enumerate() {
            let kept = Charges::default();
            let answered = self.ask_at(index, exchange, call, &kept).await;
            all.push((url.as_str().to_owned(), answered.map(|_| ())));
        }
        all
    }

    /// Makes `exchange` with a replica that has not been `asked`, if there is one that can be.
    async fn ask_another<T: Send + 'static>(
        &self,
        exchange: &Exchange<T>,
        call: &CallContext,
        asked: &mut Asked,
        kept: &Charges,
    ) -> Option<Answered<Next<T>>> {
        if !asked.compared {
            // From here on all that matters is whether all could be asked.
            asked.compared = true;
            asked.provisional = false;
        }
        for index in self.addresses.others(asked.addresses) {
            asked.addresses = asked.addresses.with(index);
            let answered = self.ask_at(index, exchange, call, kept).await;
            let outcome = if answered.is_ok() {
                "answered"
            } else {
                "unavailable"
            };
            self.metrics.compared(outcome);
            match answered {
                Ok(answered) => return Some(answered),
                // What went wrong shows in the breaker, the log of failures, and the metrics.
                Err(_) => asked.provisional = true,
            }
        }
        None
    }

    /// Makes `exchange` with the address `index`, once, if it can be expected to answer.
    async fn ask_at<T: Send + 'static>(
        &self,
        index: usize,
        exchange: &Exchange<T>,
        call: &CallContext,
        kept: &Charges,
    ) -> Result<Answered<Next<T>>, Error> {
        if !self
            .addresses
            .answers(index, Instant::now(), self.limiter.usual())
        {
            let message = "a replica of the upstream does not answer at present";
            return Err(Error::new(Kind::UpstreamUnreachable, message));
        }
        let wish = Wish {
            span: call.span,
            only: Some(index),
            ..Wish::default()
        };
        let turn = Turn {
            continues: true,
            ..Turn::FIRST
        };
        let permit = self.admit(call, turn.continues, wish).await?;
        let tries = Tries::after(Some(kept));
        self.made(permit, exchange, call, turn, wish, &tries).await
    }
}
