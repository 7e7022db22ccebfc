//! The way of one call: queue, rate, concurrency, breaker, attempt, and perhaps another attempt.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::addresses::{Addresses, Wish};
use super::answer_memory::{AnswerMemory, Charges};
use super::attempt::{Tries, Turn};
use super::aws::AwsSigner;
use super::batch::Batches;
use super::budget::Budgets;
use super::budget_file::BudgetPath;
use super::clock_check::ClockCheck;
use super::coalesce::Waiters;
use super::failure_log::FailureLog;
use super::late::Late;
use super::ledger::Ledger;
use super::limiter::{Ask, Caller, Limiter, Permit};
use super::period::Period;
use super::refusal::nobody_waits;
use super::retry::{RetryBudget, backoff};
use super::state::{LimiterState, ProtectionState};
use super::tenant::tenant;
use super::transport::Transport;
use crate::adapters::Next;
use crate::clock::Clock;
use crate::model::{
    Batching, Error, Evidence, Kind, Limits, Millis, QueryMethod, TargetUrl, TimeRange, Units,
};
use crate::reloadable::Reloadable;
use crate::store::joint::{JointLimit, JointRests};
use crate::telemetry::metrics::UpstreamMetrics;
use crate::telemetry::trace::Trace;

/// The properties of the request that a call is made for.
#[derive(Clone, Debug)]
pub struct CallContext {
    /// The origin of the request.
    pub caller: Caller,
    /// The number of the lane that is fetched; 0 for no lane. Lanes of one caller take turns.
    pub lane: u64,
    /// The time after which the answer is of no use.
    pub deadline: Instant,
    /// The time that is asked about, with all that may be read for it.
    pub span: Option<TimeRange>,
    /// Set for a trial, which is made even if the breakers of all addresses are open.
    pub trial: bool,
    /// The requests that wait for it. A call that has not been sent is dropped with the last of
    /// them.
    pub waiters: Waiters,
    /// The trace that the request belongs to.
    pub trace: Trace,
}

impl CallContext {
    /// Returns the context of a call for `caller` that is made whoever waits for it, for no lane.
    pub fn new(caller: Caller, deadline: Instant, trace: Trace) -> Self {
        Self {
            caller,
            lane: 0,
            deadline,
            span: None,
            trial: false,
            waiters: Waiters::default(),
            trace,
        }
    }
}

/// An answer, and the upstream's time when it was given.
#[derive(Clone, Debug)]
pub struct Answered<T> {
    /// The answer.
    pub value: T,
    /// No later than the moment at which the upstream read its data, by our clock and, where it
    /// sent a `Date`, by its own.
    pub as_of: Millis,
    /// The time at which it was requested, by the monotonic clock: after its wait in the queue.
    pub sent: Duration,
    /// The position of the address that gave it.
    pub address: usize,
    /// Set if the address was away at the time that the call asks about, so that another one may
    /// know more once it can be reached.
    pub provisional: bool,
    /// The charge for its memory, to be kept until it has been stored.
    pub charge: Charges,
}

/// The client of one upstream.
pub struct UpstreamClient {
    pub(super) transport: Arc<dyn Transport>,
    pub(super) addresses: Arc<Addresses>,
    /// Tells other replicas for how long addresses rest, as long as it is kept.
    _rests: Option<Arc<JointRests>>,
    /// Notified when an address fails that Heliostat asks whether it is well.
    pub(super) failing: Arc<Notify>,
    pub(super) headers: Reloadable<HeaderMap>,
    pub(super) signer: Option<AwsSigner>,
    pub(super) limiter: Limiter,
    pub(super) budgets: Arc<Budgets>,
    pub(super) ledger: Option<Ledger>,
    pub(super) batches: Batches,
    pub(super) retries: RetryBudget,
    pub(super) limits: Limits,
    pub(super) method: QueryMethod,
    pub(super) max_response: usize,
    pub(super) answers: Arc<AnswerMemory>,
    pub(super) metrics: UpstreamMetrics,
    pub(super) failures: FailureLog,
    pub(super) clock_check: ClockCheck,
    pub(super) clock: Arc<dyn Clock>,
}

/// Limits that several upstreams share.
#[derive(Clone)]
pub struct SharedLimits {
    limiter: Limiter,
    budgets: Arc<Budgets>,
}

impl SharedLimits {
    /// Returns whether these are `other`.
    pub(super) fn are(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.budgets, &other.budgets)
    }

    /// Returns whether no upstream has these, and others made now would allow no more calls. For
    /// limits without budgets.
    pub(super) fn are_as_new(&self) -> bool {
        Arc::strong_count(&self.budgets) == 1 && self.limiter.has_whole_burst()
    }
}

/// The parts of an [`UpstreamClient`].
pub struct ClientConfig {
    /// Sends the requests.
    pub transport: Arc<dyn Transport>,
    /// The upstream's addresses, the preferred one first.
    pub urls: Vec<TargetUrl>,
    /// Headers sent with each request.
    pub headers: Reloadable<HeaderMap>,
    /// Signs each request, where the upstream requires that.
    pub signer: Option<AwsSigner>,
    /// The limits on calls to the upstream.
    pub limits: Limits,
    /// The limits of another upstream, if this one shares them.
    pub shared: Option<SharedLimits>,
    /// The rate and budgets that replicas keep together, if they do.
    pub joint: Option<Arc<JointLimit>>,
    /// The HTTP method of queries.
    pub method: QueryMethod,
    /// Most bytes of a response.
    pub max_response: usize,
    /// The units that it bills, if it does.
    pub units: Option<Units>,
    /// The sharing of calls by several fetches.
    pub batch: Batching,
    /// The memory that answers are read into.
    pub answers: Arc<AnswerMemory>,
    /// The file in which the usage of budgets is kept, if there is one.
    pub budget_file: Option<BudgetPath>,
    /// Counters of calls.
    pub metrics: UpstreamMetrics,
    /// The source of the time.
    pub clock: Arc<dyn Clock>,
}

impl UpstreamClient {
    /// Returns the client of the upstream that `parts` describe.
    pub fn new(parts: ClientConfig) -> Self {
        let limits = parts.limits;
        let (joint, clock) = (parts.joint.as_ref(), &parts.clock);
        let ledger = parts.units.map(|units| {
            let file = parts.budget_file.as_ref().map(BudgetPath::of_units);
            Ledger::new(parts.metrics.name(), units, file, joint, clock)
        });
        let shared = parts.shared.unwrap_or_else(|| {
            let windows = [
                (Period::Hour, limits.per_hour),
                (Period::Day, limits.per_day),
            ];
            let budgets = Budgets::new(&windows, "calls", parts.budget_file, joint, clock);
            SharedLimits {
                limiter: Limiter::new(&limits, parts.joint.clone()),
                budgets: Arc::new(budgets),
            }
        });
        let addresses = Addresses::new(parts.urls, &limits);
        Self {
            transport: parts.transport,
            _rests: joint.map(|limit| addresses.tell(limit)),
            addresses,
            failing: Arc::default(),
            headers: parts.headers,
            signer: parts.signer,
            limiter: shared.limiter,
            budgets: shared.budgets,
            ledger,
            batches: Batches::new(parts.batch),
            retries: RetryBudget::default(),
            limits,
            method: parts.method,
            max_response: parts.max_response,
            answers: parts.answers,
            metrics: parts.metrics,
            failures: FailureLog::default(),
            clock_check: ClockCheck::default(),
            clock: parts.clock,
        }
    }

    /// Returns its limits, for another upstream that leads to the same host.
    pub fn shared_limits(&self) -> SharedLimits {
        SharedLimits {
            limiter: self.limiter.clone(),
            budgets: self.budgets.clone(),
        }
    }

    /// Returns its addresses, the preferred one first.
    pub fn urls(&self) -> impl Iterator<Item = &TargetUrl> {
        self.addresses.urls()
    }

    /// Returns the signer of its requests, if they are signed.
    pub fn signer(&self) -> Option<&AwsSigner> {
        self.signer.as_ref()
    }

    /// Returns a number for the tenant that its configured headers name, if that may change at run
    /// time.
    pub(super) fn tenant(&self) -> Option<u64> {
        tenant(&self.headers)
    }

    /// Notified when an address fails, and when this is dropped.
    pub(super) fn failing(&self) -> Arc<Notify> {
        self.failing.clone()
    }

    /// Returns the time until the next trial of an address that is not well, if there is one.
    pub(super) fn next_trial(&self) -> Option<Duration> {
        self.addresses.next_trial()
    }

    /// Returns the longest time of one attempt.
    pub(super) fn timeout(&self) -> Duration {
        self.limits.timeout
    }

    /// Makes one exchange: again at another address, if it is the address that failed or cannot take more calls and
    /// there is another; else again if that is worth it and the budget allows it. `kept` is what has been built of
    /// earlier answers, if it continues a call.
    pub(super) async fn call<T: Send + 'static>(
        &self,
        exchange: &Late<T>,
        call: &CallContext,
        kept: Option<&Charges>,
    ) -> Result<Answered<Next<T>>, Error> {
        let tries = Tries::after(kept);
        let mut turn = Turn {
            continues: kept.is_some(),
            ..Turn::FIRST
        };
        let mut retries = 0;
        let mut before: Option<Error> = None;
        loop {
            let begun = Instant::now();
            let error = match self.hedged(exchange, call, &tries, turn).await {
                Ok(answered) => return Ok(answered),
                Err(error) => error,
            };
            if let (Evidence::Nothing, Some(mut before)) = (error.evidence, before.take()) {
                // The reason why it has to be tried again says more than that it cannot be.
                before.retry_after = before.retry_after.or(error.retry_after);
                return Err(before);
            }
            let elsewhere = self.addresses.has_other(tries.so_far());
            let worth_it = match error.evidence {
                Evidence::Address | Evidence::Load => true,
                Evidence::Stranger => elsewhere,
                Evidence::Question | Evidence::Nothing => false,
            };
            if !worth_it || call.waiters.are_gone() {
                return Err(error);
            }
            let now = Instant::now();
            if elsewhere {
                if now + self.limiter.usual() > call.deadline {
                    return Err(error);
                }
            } else {
                // The limiter makes the wait that an upstream asks for; one that is too long for
                // the request is the client's to make. A slow attempt is expected to be as slow
                // again.
                let wait = match error.evidence {
                    Evidence::Load => error.retry_after.unwrap_or_default(),
                    _ => begun.elapsed().max(self.limiter.usual()),
                };
                let again = now + wait < call.deadline
                    && retries < self.limits.retries
                    && self.retries.take();
                if !again {
                    return Err(error);
                }
                tokio::time::sleep(backoff(retries)).await;
                retries += 1;
            }
            self.metrics.retries.increment(1);
            turn.retry += 1;
            turn.continues = true;
            before = Some(error);
        }
    }

    /// Makes an attempt and, if it is slow and hedging is on, another one beside it. The first to
    /// succeed counts.
    async fn hedged<T: Send + 'static>(
        &self,
        exchange: &Late<T>,
        call: &CallContext,
        tries: &Tries,
        turn: Turn,
    ) -> Result<Answered<Next<T>>, Error> {
        // One that waits for its turn is not slow.
        let (permit, wish) = self.turn_of(call, tries, turn).await?;
        let exchange = exchange.get()?;
        if turn.retry == 0 {
            self.retries.called();
        }
        let first = self.made(permit, exchange, call, turn, wish, tries);
        let Some(after) = self.limits.hedge_after else {
            return first.await;
        };
        tokio::pin!(first);
        tokio::select! {
            result = &mut first => return result,
            () = tokio::time::sleep(after) => {}
        }
        if !self.retries.take() {
            return first.await;
        }
        self.metrics.retries.increment(1);
        let beside = Turn {
            hedge: true,
            ..turn
        };
        let second = async {
            let (permit, wish) = self.turn_of(call, tries, beside).await?;
            self.made(permit, exchange, call, beside, wish, tries).await
        };
        tokio::pin!(second);
        tokio::select! {
            result = &mut first => match result {
                Ok(answered) => Ok(answered),
                Err(_) => second.await,
            },
            result = &mut second => match result {
                Ok(answered) => Ok(answered),
                Err(_) => first.await,
            },
        }
    }

    /// Waits for the turn of an attempt, and adds the address that it goes to to `tries`. Returns its
    /// permit and its requirements.
    async fn turn_of(
        &self,
        call: &CallContext,
        tries: &Tries,
        turn: Turn,
    ) -> Result<(Permit, Wish), Error> {
        let wish = Wish {
            tried: tries.so_far(),
            span: call.span,
            trial: call.trial,
            only: None,
        };
        let mut permit = self.admit(call, turn.continues, wish).await?;
        if let Some(chosen) = permit.chosen() {
            tries.add(chosen.index);
        }
        Ok((permit, wish))
    }

    /// Returns the error with which a call of `caller` that must be answered by `deadline` would be
    /// refused now, if it would be.
    pub fn check(&self, caller: Caller, deadline: Instant) -> Result<(), Error> {
        let ask = Ask::new(caller, deadline, &self.addresses);
        self.limiter.check(&ask).inspect_err(|e| self.refused(e))
    }

    /// Returns the error with which a call of `caller` would be refused now, if it would be,
    /// without a trace in metrics.
    pub fn refusal(&self, caller: Caller, deadline: Instant) -> Option<Error> {
        let ask = Ask::new(caller, deadline, &self.addresses);
        self.limiter.check(&ask).err().or_else(|| self.spent())
    }

    /// Counts a call that was refused with `error`.
    fn refused(&self, error: &Error) {
        self.metrics.rejected(match error.kind {
            Kind::UpstreamUnreachable => "breaker_open",
            _ => "limits",
        });
    }

    /// Returns the usual latency of calls.
    pub fn usual(&self) -> Duration {
        self.limiter.usual()
    }

    /// Returns the time that a call of `caller` for `lane` would wait for its turn.
    pub fn wait(&self, caller: Caller, lane: u64) -> Duration {
        self.limiter.wait(caller, lane)
    }

    /// Returns the state of its protection, at the wall time `now`.
    pub fn state(&self, now: Millis) -> ProtectionState {
        let (paused, spacing) = self.addresses.resting();
        ProtectionState {
            limiter: LimiterState {
                paused_seconds: paused.map(|d| d.as_secs_f64()),
                spacing_seconds: spacing.map(|d| d.as_secs_f64()),
                ..self.limiter.state()
            },
            budgets: self.budgets_at(now),
            units: (self.ledger.as_ref()).map(|ledger| ledger.state(self.batches.waiting())),
            endpoints: self.addresses.state(),
        }
    }

    /// Returns the number of calls that have been admitted so far.
    #[cfg(test)]
    pub(super) fn admitted(&self) -> u64 {
        self.limiter.entered()
    }

    /// Waits in the queue until the call may be made, as long as anybody waits for its answer.
    pub(super) async fn admit(
        &self,
        call: &CallContext,
        continues: bool,
        wish: Wish,
    ) -> Result<Permit, Error> {
        let mut span = call.trace.span("queue");
        span.text("heliostat.upstream", &self.metrics.name());
        let queued = self.clock.monotonic();
        let ask = Ask {
            lane: call.lane,
            continues,
            wish,
            ..Ask::new(call.caller, call.deadline, &self.addresses)
        };
        let admitted = tokio::select! {
            biased;
            () = call.waiters.gone() => return Err(nobody_waits()),
            admitted = self.limiter.admit(ask) => admitted,
        };
        let permit = admitted.inspect_err(|e| {
            self.refused(e);
            span.fail(&e.kind);
        })?;
        let waited = self.clock.monotonic().saturating_sub(queued);
        self.metrics.queue_seconds.record(waited.as_secs_f64());
        Ok(permit)
    }
}

impl Drop for UpstreamClient {
    fn drop(&mut self) {
        // Who waits for an address to fail waits in vain now.
        self.failing.notify_one();
    }
}
