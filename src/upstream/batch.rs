//! Calls that several fetches share. A batch is open from its first fetch until its call is admitted:
//! what waits for the limits gathers more.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::future::join;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::client::{Answered, CallContext};
use super::coalesce::Waiters;
use super::late::Late;
use super::refusal::{nobody_waits, units_overspent};
use super::transport::BoxFuture;
use super::{Upstream, UpstreamClient};
use crate::adapters::{FetchResult, PartCall, StatisticsQuery};
use crate::model::{Batching, Error, Evidence, Kind};

/// Open batches that a query is compared with, the newest first.
const COMPARED: usize = 16;

/// Queries that are known to be refused.
const MOST_REFUSED: usize = 1000;

type Members = Vec<BatchMember>;

/// The outcome of a call, and in it that of one of its queries.
type MemberOutcome = Result<Answered<Result<FetchResult, Error>>, Error>;

/// The batches of one upstream that are open.
pub(super) struct Batches {
    limits: Batching,
    // A plain mutex: it is held to change a batch and never across an await.
    state: Mutex<BatchTable>,
}

#[derive(Default)]
struct BatchTable {
    open: Vec<OpenBatch>,
    next: u64,
    /// Hashes of queries that were refused when they were asked alone. They would have a whole batch
    /// refused.
    refused: HashSet<u64>,
}

/// A call that has not been admitted.
struct OpenBatch {
    number: u64,
    /// Set for Heliostat's own work, which waits until no client does.
    own: bool,
    /// Set while it may take in more queries.
    shared: bool,
    waiters: Waiters,
    members: Members,
}

/// One fetch's part of a batch.
struct BatchMember {
    number: u64,
    query: StatisticsQuery,
    answer: oneshot::Sender<MemberOutcome>,
}

/// A fetch's place in a batch, which it leaves when this is dropped.
struct Membership<'a> {
    batches: &'a Batches,
    batch: u64,
    member: u64,
}

impl Membership<'_> {
    /// Leaves the batch, and returns whether it was still open.
    fn leave(&self) -> bool {
        let mut state = self.batches.state();
        let batch = state.open.iter_mut().find(|b| b.number == self.batch);
        let Some(batch) = batch else { return false };
        let before = batch.members.len();
        batch.members.retain(|m| m.number != self.member);
        if batch.members.len() < before {
            batch.waiters.leave();
        }
        true
    }
}

impl Drop for Membership<'_> {
    fn drop(&mut self) {
        self.leave();
    }
}

/// Closes a batch however its call ends.
struct Closing {
    upstream: Arc<Upstream>,
    number: u64,
}

impl Drop for Closing {
    fn drop(&mut self) {
        self.upstream.client.batches.close(self.number);
    }
}

/// The place that a query was given.
struct Placed {
    batch: u64,
    member: u64,
    /// Of a batch that it opened, those who wait for it.
    opened: Option<Waiters>,
    answer: oneshot::Receiver<MemberOutcome>,
}

impl Batches {
    pub(super) fn new(limits: Batching) -> Self {
        Self {
            limits,
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, BatchTable> {
        // Batches and members are added and removed whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives `query` a place in an open batch that it fits, or in one that it opens.
    fn place(&self, query: StatisticsQuery, own: bool) -> Placed {
        let mut state = self.state();
        state.next += 1;
        let member = state.next;
        let (sender, answer) = oneshot::channel();
        let shared = !state.refused.contains(&query.subject());
        let most = self.limits.queries;
        let fits = |batch: &&mut OpenBatch| {
            let members = batch.members.iter().map(|m| &m.query);
            batch.shared && batch.own == own && query.fits(members, most) && batch.waiters.join()
        };
        let open = state.open.iter_mut().rev().take(COMPARED);
        let batch = open.filter(|_| shared).find(fits);
        let (batch, opened) = match batch {
            Some(batch) => (batch, None),
            None => {
                let waiters = Waiters::one();
                state.open.push(OpenBatch {
                    number: member,
                    own,
                    shared,
                    waiters: waiters.clone(),
                    members: Vec::new(),
                });
                let Some(batch) = state.open.last_mut() else {
                    unreachable!("one was pushed")
                };
                (batch, Some(waiters))
            }
        };
        batch.members.push(BatchMember {
            number: member,
            query,
            answer: sender,
        });
        Placed {
            batch: batch.number,
            member,
            opened,
            answer,
        }
    }

    /// Returns the number of queries whose calls have not been made.
    pub(super) fn waiting(&self) -> usize {
        self.state().open.iter().map(|b| b.members.len()).sum()
    }

    /// Closes batch `number`, and returns its members; none, if it is closed already.
    fn close(&self, number: u64) -> Members {
        let mut state = self.state();
        let at = state.open.iter().position(|b| b.number == number);
        at.map_or_else(Vec::new, |at| state.open.remove(at).members)
    }

    /// Remembers whether `query` was refused when it was asked alone.
    fn remember(&self, query: &StatisticsQuery, refused: bool) {
        let mut state = self.state();
        if !refused {
            state.refused.remove(&query.subject());
            return;
        }
        if state.refused.len() >= MOST_REFUSED {
            state.refused.clear();
        }
        state.refused.insert(query.subject());
    }
}

/// Returns whether so many more units fit into those that are `left`; if they do not, they leave them to
/// those that come next.
pub(super) fn within(mut left: u32) -> impl FnMut(u32) -> bool {
    move |units| {
        let rest = left.checked_sub(units);
        left = rest.unwrap_or(left);
        rest.is_some()
    }
}

impl UpstreamClient {
    /// Closes batch `number`, and returns those of its members that the budgets of units leave room for.
    fn closed(&self, number: u64) -> Result<Members, Error> {
        let members = self.batches.close(number);
        let Some((left, renewed)) = self.units_left() else {
            return Ok(members);
        };
        let mut fits = within(left);
        let fits = |member: &BatchMember| fits(member.query.units());
        let (fitting, others): (Members, Members) = members.into_iter().partition(fits);
        let refused = !others.is_empty();
        for member in others {
            self.metrics.rejected("units");
            // One that has left wants no answer.
            let _ = member.answer.send(Err(units_overspent(renewed)));
        }
        match fitting.is_empty() && refused {
            true => Err(units_overspent(renewed)),
            false => Ok(fitting),
        }
    }

    /// Returns whether `call` leaves time for another attempt after `error`, and retries are left.
    fn again(&self, error: &Error, call: &CallContext) -> bool {
        matches!(error.evidence, Evidence::Address | Evidence::Load)
            && Instant::now() + self.usual() < call.deadline
            && self.limits.retries > 0
            && self.retries.take()
    }
}

impl Upstream {
    /// Makes `call`, alone or together with those of other fetches.
    pub async fn fetch(
        self: &Arc<Self>,
        call: PartCall,
        context: &CallContext,
    ) -> Result<Answered<FetchResult>, Error> {
        let query = match call {
            PartCall::Alone(exchange) => return self.client.run(exchange, context).await,
            PartCall::Shared(query) => query,
        };
        let mut answered = self.shared(query.clone(), context).await?;
        if let Err(error) = &answered.value
            && self.client.again(error, context)
        {
            self.client.metrics.retries.increment(1);
            answered = self.shared(query, context).await?;
        }
        Ok(Answered {
            value: answered.value?,
            as_of: answered.as_of,
            sent: answered.sent,
            address: answered.address,
            provisional: answered.provisional,
            charge: answered.charge,
        })
    }

    /// Asks for `query` in a batch.
    async fn shared(
        self: &Arc<Self>,
        query: StatisticsQuery,
        context: &CallContext,
    ) -> MemberOutcome {
        let batches = &self.client.batches;
        let placed = batches.place(query, context.caller.is_none());
        let membership = Membership {
            batches,
            batch: placed.batch,
            member: placed.member,
        };
        if let Some(waiters) = placed.opened {
            let call = CallContext {
                waiters,
                ..context.clone()
            };
            tokio::spawn(self.clone().gather(placed.batch, call));
        }
        let mut answer = placed.answer;
        let left = tokio::select! {
            biased;
            answered = &mut answer => Some(answered),
            () = context.waiters.gone() => None,
        };
        let answered = match left {
            Some(answered) => answered,
            None if membership.leave() => return Err(nobody_waits()),
            // It has been sent, and what it brings is stored.
            None => answer.await,
        };
        let lost = |_| {
            Error::new(
                Kind::Internal,
                "a call that several fetches shared was lost",
            )
        };
        answered.map_err(lost)?
    }

    /// Gathers what fits batch `number`, makes its call, and tells its members what came of it.
    async fn gather(self: Arc<Self>, number: u64, call: CallContext) {
        let closing = Closing {
            upstream: self.clone(),
            number,
        };
        tokio::time::sleep(self.client.batches.limits.window).await;
        let closed: Arc<Mutex<Members>> = Arc::default();
        let (upstream, members) = (self.clone(), closed.clone());
        let exchange = Late::new(move || {
            let fitting = upstream.client.closed(number)?;
            if fitting.is_empty() {
                return Err(nobody_waits());
            }
            let queries = fitting.iter().map(|m| m.query.clone()).collect();
            *lock(&members) = fitting;
            Ok(StatisticsQuery::call(queries))
        });
        let outcome = self.client.run_when_admitted(exchange, &call).await;
        // It was never admitted, if it is still open.
        let mut members = self.client.batches.close(number);
        drop(closing);
        members.append(&mut lock(&closed));
        self.tell(outcome, members, call).await;
    }

    /// Sends the outcome of their call to `members`. A refused call is repeated in two halves: the
    /// store does not say which of its queries is invalid.
    fn tell(
        self: Arc<Self>,
        outcome: Result<Answered<Vec<Result<FetchResult, Error>>>, Error>,
        mut members: Members,
        call: CallContext,
    ) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let refused = matches!(&outcome, Err(e) if e.kind == Kind::InvalidRequest);
            if refused && members.len() > 1 {
                let later = members.split_off(members.len() / 2);
                let half = |members| Box::pin(self.clone().half(members, call.clone()));
                join(half(members), half(later)).await;
                return;
            }
            if let [only] = &members[..] {
                self.client.batches.remember(&only.query, refused);
            }
            match outcome {
                Ok(answered) => {
                    for (member, value) in members.into_iter().zip(answered.value) {
                        // One that has left wants no answer.
                        let _ = member.answer.send(Ok(Answered {
                            value,
                            as_of: answered.as_of,
                            sent: answered.sent,
                            address: answered.address,
                            provisional: answered.provisional,
                            charge: answered.charge.clone(),
                        }));
                    }
                }
                Err(error) => {
                    for member in members {
                        let _ = member.answer.send(Err(error.clone()));
                    }
                }
            }
        })
    }

    /// Makes a call of its own for `members`.
    async fn half(self: Arc<Self>, members: Members, call: CallContext) {
        let queries = members.iter().map(|m| m.query.clone()).collect();
        let exchange = StatisticsQuery::call(queries);
        let outcome = self.client.run(exchange, &call).await;
        self.tell(outcome, members, call).await;
    }
}

fn lock(members: &Mutex<Members>) -> MutexGuard<'_, Members> {
    members.lock().unwrap_or_else(PoisonError::into_inner)
}
