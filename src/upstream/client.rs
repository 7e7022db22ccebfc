//! The way of one call: queue, rate, concurrency, breaker, attempt, and perhaps another attempt.

use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderValue};
use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::warn;

use super::attempt::{Attempt, Turn};
use super::aws::AwsSigner;
use super::budget::Budgets;
use super::coalesce::Waiters;
use super::endpoints::{Chosen, Endpoints, Tried};
use super::limiter::{Ask, Caller, Ended, Limiter, Permit};
use super::rate_limit_headers::RateLimitHeaders;
use super::refusal::{breaker_open, nobody_waits, overspent};
use super::response::{as_of, read};
use super::retry::{RetryBudget, backoff};
use super::state::ProtectionState;
use super::transport::{Outgoing, Transport};
use crate::adapters::{Exchange, Next, Request, Response};
use crate::clock::Clock;
use crate::model::{Error, Kind, Limits, Millis, Origin, TargetUrl};
use crate::reloadable::Reloadable;
use crate::telemetry::metrics::UpstreamMetrics;
use crate::telemetry::trace::Trace;

/// What a call has to know of the request that it is made for.
#[derive(Clone, Debug)]
pub struct CallContext {
    /// Who asked.
    pub caller: Caller,
    /// A number of the lane that is fetched; 0 for what is none. Lanes of one caller take turns.
    pub lane: u64,
    /// When the answer is of no use any more.
    pub deadline: Instant,
    /// Who waits for it. A call that has not been sent is dropped with the last of them.
    pub waiters: Waiters,
    /// The trace that the request belongs to.
    pub trace: Trace,
}

impl CallContext {
    /// A call for `caller` that is made whoever waits for it, for no lane.
    pub fn new(caller: Caller, deadline: Instant, trace: Trace) -> Self {
        Self {
            caller,
            lane: 0,
            deadline,
            waiters: Waiters::default(),
            trace,
        }
    }
}

/// The longest that calls pause because the upstream asks for it, and the pause where it does
/// not say for how long.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
const USUAL_PAUSE: Duration = Duration::from_secs(1);

/// Headers by which stores tell tenants apart.
const TENANT: [&str; 2] = ["x-scope-orgid", "thanos-tenant"];

/// An answer, and the upstream's time when it was given.
#[derive(Clone, Copy, Debug)]
pub struct Answered<T> {
    /// The answer.
    pub value: T,
    /// No later than the moment at which the upstream read its data, by our clock and, where it
    /// sent a `Date`, by its own.
    pub as_of: Millis,
}

/// The way to one upstream.
pub struct UpstreamClient {
    transport: Arc<dyn Transport>,
    endpoints: Endpoints,
    /// Told when a breaker opens.
    opened: Arc<Notify>,
    headers: Reloadable<HeaderMap>,
    signer: Option<AwsSigner>,
    limiter: Limiter,
    budgets: Budgets,
    retries: RetryBudget,
    limits: Limits,
    max_response: usize,
    metrics: UpstreamMetrics,
    clock: Arc<dyn Clock>,
}

/// What an [`UpstreamClient`] is made of.
pub struct ClientConfig {
    /// Sends the requests.
    pub transport: Arc<dyn Transport>,
    /// The upstream's addresses, the preferred one first.
    pub urls: Vec<TargetUrl>,
    /// Headers sent with each request.
    pub headers: Reloadable<HeaderMap>,
    /// Signs each request, where the upstream wants that.
    pub signer: Option<AwsSigner>,
    /// What the upstream may be burdened with.
    pub limits: Limits,
    /// Most bytes of a response.
    pub max_response: usize,
    /// Where what is used of budgets is kept, if anywhere.
    pub budget_file: Option<PathBuf>,
    /// Where calls are counted.
    pub metrics: UpstreamMetrics,
    /// Where the time comes from.
    pub clock: Arc<dyn Clock>,
}

impl UpstreamClient {
    /// The way to the upstream that `parts` describe.
    pub fn new(parts: ClientConfig) -> Self {
        let limits = parts.limits;
        Self {
            transport: parts.transport,
            endpoints: Endpoints::new(parts.urls, &limits),
            opened: Arc::default(),
            headers: parts.headers,
            signer: parts.signer,
            limiter: Limiter::new(&limits),
            budgets: Budgets::new(&limits, parts.budget_file),
            retries: RetryBudget::default(),
            limits,
            max_response: parts.max_response,
            metrics: parts.metrics,
            clock: parts.clock,
        }
    }

    /// Counts on from what was taken of the budgets of `before`, whose place this takes.
    pub fn continue_from(&self, before: &Self) {
        self.budgets.continue_from(&before.budgets);
    }

    /// Its addresses, the preferred one first.
    pub fn urls(&self) -> impl Iterator<Item = &TargetUrl> {
        self.endpoints.iter().map(|e| &e.url)
    }

    /// Signs its requests, if they are signed.
    pub fn signer(&self) -> Option<&AwsSigner> {
        self.signer.as_ref()
    }

    /// A number for the tenant that its configured headers name, if they come from files and so may
    /// change while it runs.
    pub(super) fn tenant(&self) -> Option<u64> {
        if self.headers.is_fixed() {
            return None;
        }
        let headers = self.headers.get();
        let named = TENANT.map(|name| headers.get(name).map(HeaderValue::as_bytes));
        let named = named.iter().any(Option::is_some).then_some(named)?;
        Some(BuildHasherDefault::<DefaultHasher>::default().hash_one(named))
    }

    /// Makes `exchange` and those that follow from it.
    pub async fn run<T: Send + 'static>(
        &self,
        exchange: Exchange<T>,
        call: &CallContext,
    ) -> Result<Answered<T>, Error> {
        let mut exchange = exchange;
        let mut earliest = Millis::MAX;
        let mut continues = false;
        loop {
            let Answered { value, as_of } = self.call(&exchange, call, continues).await?;
            continues = true;
            earliest = earliest.min(as_of);
            match value {
                Next::Done(value) => {
                    return Ok(Answered {
                        value,
                        as_of: earliest,
                    });
                }
                Next::More(next) => exchange = next,
            }
        }
    }

    /// Told when a breaker opens, and when this is dropped.
    pub(super) fn opened(&self) -> Arc<Notify> {
        self.opened.clone()
    }

    /// When the next address that is left alone may be tried again, if any is.
    pub(super) fn next_trial(&self) -> Option<Duration> {
        self.endpoints.next_trial()
    }

    /// Most time of one attempt.
    pub(super) fn timeout(&self) -> Duration {
        self.limits.timeout
    }

    /// Makes `exchange` at each address that is left alone and may be tried again. Its breaker
    /// learns the result.
    pub(super) async fn try_again<T: Send + 'static>(
        &self,
        exchange: &Exchange<T>,
        call: &CallContext,
    ) {
        let open = self.endpoints.iter().filter(|e| e.breaker.is_open());
        for endpoint in open {
            if endpoint.breaker.open_for().is_some() {
                continue;
            }
            let Ok(_permit) = self.admit(call, false).await else {
                return;
            };
            if let Ok(chosen) = endpoint.enter() {
                // An error shows in the breaker, the log of failures, and the metrics.
                let _ = self.attempt_at(chosen, exchange, call, Turn::FIRST).await;
            }
        }
    }

    /// Makes one exchange, again if that is worth it and the budget allows.
    async fn call<T: Send + 'static>(
        &self,
        exchange: &Exchange<T>,
        call: &CallContext,
        continues: bool,
    ) -> Result<Answered<Next<T>>, Error> {
        let tried = Tried::default();
        let mut turn = Turn {
            continues,
            ..Turn::FIRST
        };
        loop {
            let error = match self.hedged(exchange, call, &tried, turn).await {
                Ok(answered) => return Ok(answered),
                Err(error) => error,
            };
            // The limiter makes the wait that an upstream asks for; one that is too long for the
            // request is the client's to make.
            let wait = error.retry_after.unwrap_or_default();
            let again = error.retryable
                && Instant::now() + wait < call.deadline
                && turn.retry < self.limits.retries
                && !call.waiters.are_gone()
                && self.retries.take();
            if !again {
                return Err(error);
            }
            self.metrics.retries.increment(1);
            tokio::time::sleep(backoff(turn.retry)).await;
            turn.retry += 1;
            turn.continues = true;
        }
    }

    /// An attempt and, if it is slow and that is wanted, another one beside it. The first to
    /// succeed counts.
    async fn hedged<T: Send + 'static>(
        &self,
        exchange: &Exchange<T>,
        call: &CallContext,
        tried: &Tried,
        turn: Turn,
    ) -> Result<Answered<Next<T>>, Error> {
        let first = self.attempt(exchange, call, tried, turn);
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
        let second = self.attempt(exchange, call, tried, beside);
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

    /// The error with which a call of `caller` that must be answered by `deadline` would be refused
    /// now, if it would be.
    pub fn check(&self, caller: Caller, deadline: Instant) -> Result<(), Error> {
        let checked = self.limiter.check(&Ask::new(caller, deadline));
        checked.inspect_err(|_| self.metrics.rejected("limits"))
    }

    /// The error with which a call of `caller` would be refused now, if it would be, without a
    /// trace in metrics.
    pub fn refusal(&self, caller: Caller, deadline: Instant) -> Option<Error> {
        let shut = self.endpoints.all_open().map(breaker_open);
        let full = || self.limiter.check(&Ask::new(caller, deadline)).err();
        let spent = || self.budgets.spent(self.clock.now()).map(overspent);
        shut.or_else(full).or_else(spent)
    }

    /// The state of its protection, at the wall time `now`.
    pub fn state(&self, now: Millis) -> ProtectionState {
        ProtectionState {
            limiter: self.limiter.state(),
            budgets: self.budgets.state(now),
            endpoints: self.endpoints.state(),
        }
    }

    /// How many calls have been admitted so far.
    #[cfg(test)]
    pub(super) fn admitted(&self) -> u64 {
        self.limiter.entered()
    }

    /// Waits in line for leave to make a call, as long as anybody waits for its answer.
    async fn admit(&self, call: &CallContext, continues: bool) -> Result<Permit, Error> {
        let mut span = call.trace.span("queue");
        span.text("heliostat.upstream", &self.metrics.name());
        let queued = self.clock.monotonic();
        let ask = Ask {
            lane: call.lane,
            continues,
            ..Ask::new(call.caller, call.deadline)
        };
        let admitted = tokio::select! {
            biased;
            () = call.waiters.gone() => return Err(nobody_waits()),
            admitted = self.limiter.admit(ask) => admitted,
        };
        let permit = admitted.inspect_err(|e| {
            self.metrics.rejected("limits");
            span.fail(&e.kind);
        })?;
        let waited = self.clock.monotonic().saturating_sub(queued);
        self.metrics.queue_seconds.record(waited.as_secs_f64());
        Ok(permit)
    }

    async fn attempt<T: Send + 'static>(
        &self,
        exchange: &Exchange<T>,
        call: &CallContext,
        tried: &Tried,
        turn: Turn,
    ) -> Result<Answered<Next<T>>, Error> {
        // Nobody stands in line for an upstream that is left alone.
        if let Some(wait) = self.endpoints.all_open() {
            return Err(self.breaker_open(wait));
        }
        let permit = self.admit(call, turn.continues).await?;
        let first = tried.is_empty();
        let chosen = self
            .endpoints
            .choose(tried)
            .map_err(|wait| self.breaker_open(wait))?;
        if first {
            self.retries.called();
        }
        let begun = Instant::now();
        let result = self.attempt_at(chosen, exchange, call, turn).await;
        let ended = match &result {
            Ok(_) => Ended::Answered,
            Err(error) if error.kind == Kind::DeadlineExceeded => Ended::TimedOut,
            Err(error) if is_strain(error) => Ended::Failed,
            Err(_) => Ended::Unrelated,
        };
        permit.report(ended, begun.elapsed());
        result
    }

    fn breaker_open(&self, wait: Duration) -> Error {
        self.metrics.rejected("breaker_open");
        breaker_open(wait)
    }

    async fn attempt_at<T: Send + 'static>(
        &self,
        chosen: Chosen<'_>,
        exchange: &Exchange<T>,
        call: &CallContext,
        turn: Turn,
    ) -> Result<Answered<Next<T>>, Error> {
        let endpoint = chosen.endpoint;
        let mut outgoing = self.outgoing(&endpoint.url, &exchange.request);
        let signed = match &self.signer {
            Some(signer) => Some((signer, signer.sign(&mut outgoing).await?)),
            None => None,
        };
        let started = self.clock.monotonic();
        self.budgets.take(self.clock.now()).map_err(|wait| {
            self.metrics.rejected("budget");
            overspent(wait)
        })?;
        let mut counted = Attempt::begin(&self.metrics, &call.trace, turn);
        let trace = counted.to(&endpoint.url, &exchange.request.method, &call.trace);
        trace.send(&mut outgoing.headers);
        let wall = self.clock.now();
        let send = self.transport.send(outgoing, self.max_response);
        let sent = tokio::time::timeout(self.limits.timeout, send).await;
        let took = self.clock.monotonic().saturating_sub(started);
        self.metrics.seconds.record(took.as_secs_f64());

        if let Ok(Ok(response)) = &sent {
            counted.answered(response.status);
            self.apply_rate_limit_headers(response);
        }
        let response = sent.unwrap_or_else(|_| {
            let limit = humantime::format_duration(self.limits.timeout);
            let message = format!("the upstream did not answer within {limit} (timeout)");
            Err(Error::new(Kind::DeadlineExceeded, message).retryable(true))
        });
        let result = match response {
            Ok(response) => {
                // The earlier of both clocks: if one is fast, nothing is settled too soon by it.
                let as_of = as_of(&response, took).map_or(wall, |t| t.min(wall));
                let refused = signed.and_then(|(signer, by)| signer.refused(&response, &by));
                let read = match refused {
                    Some(error) => Err(error),
                    None => read(exchange, response).await,
                };
                read.map(|value| Answered { value, as_of })
            }
            Err(error) => Err(error),
        };
        counted.end(&result);
        if let Err(error) = &result
            && error.kind == Kind::UpstreamBusy
        {
            let pause = error.retry_after.unwrap_or(USUAL_PAUSE);
            self.limiter.pause(pause.min(LONGEST_PAUSE));
        }
        if let Err(error) = &result
            && error.kind.origin() == Origin::Upstream
        {
            let (upstream, kind) = (self.metrics.name(), error.kind);
            warn!(upstream, ?kind, "upstream failure: {error}");
        }
        let Chosen { pass, .. } = chosen;
        match &result {
            Err(error) if is_strain(error) && error.kind != Kind::UpstreamBusy => {
                pass.failed();
                if self.endpoints.open() > 0 {
                    self.opened.notify_one();
                }
            }
            _ => pass.succeeded(),
        }
        self.metrics.breaker_open.set(self.endpoints.open() as f64);
        result
    }

    /// Keeps to what the upstream says is left of its budget, where that is less than ours.
    fn apply_rate_limit_headers(&self, response: &Response) {
        let Some(advice) = RateLimitHeaders::of(&response.headers, self.clock.now()) else {
            return;
        };
        let ours = Duration::from_secs_f64(1.0 / self.limits.per_second);
        if advice.remaining == 0 {
            self.limiter.pause(advice.reset.min(LONGEST_PAUSE));
        } else if advice.remaining < u64::from(self.limits.burst) && advice.spacing() > ours {
            // As long as more is left than one burst of ours, the upstream takes bursts too.
            self.limiter.space_out(advice.spacing(), advice.reset);
        }
    }

    fn outgoing(&self, url: &TargetUrl, request: &Request) -> Outgoing {
        let ours = self.headers.get();
        let mut headers = HeaderMap::clone(&ours);
        // What is configured is not for a client to change, such as the tenant that is asked for.
        let theirs = request.headers.iter();
        let theirs = theirs.filter(|(name, _)| !ours.contains_key(name));
        headers.extend(theirs.cloned());
        Outgoing {
            method: request.method.clone(),
            url: url.join(&request.path),
            headers,
            body: request.body.clone(),
        }
    }
}

impl Drop for UpstreamClient {
    fn drop(&mut self) {
        // Whoever waits for a breaker to open waits in vain now.
        self.opened.notify_one();
    }
}

/// Whether the error shows that the address cannot cope, and not that this one call is one that
/// it cannot answer.
fn is_strain(error: &Error) -> bool {
    error.retryable && error.kind.origin() == Origin::Upstream
}
