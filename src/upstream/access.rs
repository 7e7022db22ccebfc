//! The way of one call: queue, rate, concurrency, breaker, attempt, and perhaps another attempt.

use std::hash::{BuildHasher, RandomState};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::header::{DATE, HeaderName};
use http::{HeaderMap, HeaderValue};
use tokio::time::Instant;
use tracing::warn;

use super::advice::Advice;
use super::breaker::Breaker;
use super::budget::Budgets;
use super::limiter::{Caller, Limiter};
use super::retry::Budget;
use super::transport::{Outgoing, Transport};
use crate::adapters::{Exchange, Next, Request, Response};
use crate::clock::Clock;
use crate::model::{Error, Kind, Limits, Millis, Origin, TargetUrl};
use crate::telemetry::metrics::UpstreamMetrics;

/// The header of W3C's trace context that is passed on.
pub(crate) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// What a call has to know of the request that it is made for.
#[derive(Clone, Debug)]
pub struct Errand {
    /// Who asked.
    pub caller: Caller,
    /// When the answer is of no use any more.
    pub deadline: Instant,
    /// The trace that the request belongs to.
    pub trace: Option<HeaderValue>,
}

/// The longest that calls pause because the upstream asks for it, and the pause where it does
/// not say for how long.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
const USUAL_PAUSE: Duration = Duration::from_secs(1);

/// Waits between attempts: at most `BACKOFF · 2^n`, and never more than `LONGEST_BACKOFF`.
const BACKOFF: Duration = Duration::from_millis(100);
const LONGEST_BACKOFF: Duration = Duration::from_secs(2);

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
pub struct Access {
    transport: Arc<dyn Transport>,
    endpoints: Vec<Endpoint>,
    headers: HeaderMap,
    limiter: Limiter,
    budgets: Budgets,
    retries: Budget,
    limits: Limits,
    max_response: usize,
    metrics: UpstreamMetrics,
    clock: Arc<dyn Clock>,
}

struct Endpoint {
    url: TargetUrl,
    breaker: Breaker,
}

/// What an [`Access`] is made of.
pub struct Parts {
    /// Sends the requests.
    pub transport: Arc<dyn Transport>,
    /// The upstream's addresses, the preferred one first.
    pub urls: Vec<TargetUrl>,
    /// Headers sent with each request.
    pub headers: Vec<(HeaderName, HeaderValue)>,
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

impl Access {
    /// The way to the upstream that `parts` describe.
    pub fn new(parts: Parts) -> Self {
        let limits = parts.limits;
        let endpoint = |url| Endpoint {
            url,
            breaker: Breaker::new(limits.breaker_failures, limits.breaker_open),
        };
        Self {
            transport: parts.transport,
            endpoints: parts.urls.into_iter().map(endpoint).collect(),
            headers: parts.headers.into_iter().collect(),
            limiter: Limiter::new(&limits),
            budgets: Budgets::new(&limits, parts.budget_file),
            retries: Budget::default(),
            limits,
            max_response: parts.max_response,
            metrics: parts.metrics,
            clock: parts.clock,
        }
    }

    /// Its addresses, the preferred one first.
    pub fn urls(&self) -> impl Iterator<Item = &TargetUrl> {
        self.endpoints.iter().map(|e| &e.url)
    }

    /// Makes `exchange` and those that follow from it.
    pub async fn run<T>(
        &self,
        exchange: Exchange<T>,
        errand: &Errand,
    ) -> Result<Answered<T>, Error> {
        let mut exchange = exchange;
        let mut earliest = Millis::MAX;
        loop {
            let Answered { value, as_of } = self.call(&exchange, errand).await?;
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

    /// Makes one exchange, again if that is worth it and the budget allows.
    async fn call<T>(
        &self,
        exchange: &Exchange<T>,
        errand: &Errand,
    ) -> Result<Answered<Next<T>>, Error> {
        self.retries.called();
        let mut attempt: u32 = 0;
        loop {
            let error = match self.attempt(exchange, errand, attempt).await {
                Ok(answered) => return Ok(answered),
                Err(error) => error,
            };
            if error.kind.origin() == Origin::Upstream {
                let kind = error.kind;
                warn!(
                    upstream = self.metrics.name(),
                    ?kind,
                    attempt,
                    "upstream failure: {error}"
                );
            }
            // A wait that the upstream asked for is the client's to make.
            let again = error.retryable
                && error.retry_after.is_none()
                && attempt < self.limits.retries
                && self.retries.take();
            if !again {
                return Err(error);
            }
            self.metrics.retries.increment(1);
            tokio::time::sleep(backoff(attempt)).await;
            attempt += 1;
        }
    }

    async fn attempt<T>(
        &self,
        exchange: &Exchange<T>,
        errand: &Errand,
        attempt: u32,
    ) -> Result<Answered<Next<T>>, Error> {
        let queued = self.clock.monotonic();
        let admitted = self.limiter.admit(errand.caller, errand.deadline).await;
        let _permit = admitted.inspect_err(|_| self.metrics.rejected("limits"))?;
        let started = self.clock.monotonic();
        let waited = started.saturating_sub(queued);
        self.metrics.queue_seconds.record(waited.as_secs_f64());

        let (endpoint, pass) = self.endpoint(attempt)?;
        self.budgets.take(self.clock.now()).map_err(|wait| {
            self.metrics.rejected("budget");
            let message = "the upstream's budget of calls is spent (rate_limit)";
            Error::new(Kind::UpstreamBudget, message).retry_after(Some(wait))
        })?;
        let outgoing = self.outgoing(&endpoint.url, &exchange.request, errand);
        let wall = self.clock.now();
        let sent = {
            let _in_flight = InFlight::new(&self.metrics);
            let send = self.transport.send(outgoing, self.max_response);
            tokio::time::timeout(self.limits.timeout, send).await
        };
        let took = self.clock.monotonic().saturating_sub(started);
        self.metrics.seconds.record(took.as_secs_f64());

        if let Ok(Ok(response)) = &sent {
            self.heed(response);
        }
        let response = sent.unwrap_or_else(|_| {
            let limit = humantime::format_duration(self.limits.timeout);
            let message = format!("the upstream did not answer within {limit} (timeout)");
            Err(Error::new(Kind::DeadlineExceeded, message).retryable(true))
        });
        let result = response.and_then(|response| {
            // The earlier of both clocks: if one is fast, nothing is settled too soon by it.
            let as_of = as_of(&response, took).map_or(wall, |t| t.min(wall));
            (exchange.read)(&response).map(|value| Answered { value, as_of })
        });
        self.metrics.attempt(outcome(&result));
        if let Err(error) = &result
            && error.kind == Kind::UpstreamBusy
        {
            let pause = error.retry_after.unwrap_or(USUAL_PAUSE);
            self.limiter.pause(pause.min(LONGEST_PAUSE));
        }
        match &result {
            Err(e) if e.kind.origin() == Origin::Upstream && e.kind != Kind::UpstreamBusy => {
                pass.failed();
            }
            _ => pass.succeeded(),
        }
        let open = self.endpoints.iter().filter(|e| e.breaker.is_open());
        self.metrics.breaker_open.set(open.count() as f64);
        result
    }

    /// Keeps to what the upstream says is left of its budget, where that is less than ours.
    fn heed(&self, response: &Response) {
        let Some(advice) = Advice::of(&response.headers, self.clock.now()) else {
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

    /// The address for this attempt: the first that its breaker lets through, a later one for
    /// another attempt.
    fn endpoint(&self, attempt: u32) -> Result<(&Endpoint, super::breaker::Pass<'_>), Error> {
        let mut soonest: Option<Duration> = None;
        let skip = attempt as usize % self.endpoints.len().max(1);
        let turned = self.endpoints.iter().cycle().skip(skip);
        for endpoint in turned.take(self.endpoints.len()) {
            match endpoint.breaker.pass() {
                Ok(pass) => return Ok((endpoint, pass)),
                Err(wait) => soonest = Some(soonest.map_or(wait, |s| s.min(wait))),
            }
        }
        self.metrics.rejected("breaker_open");
        let message = "the upstream failed again and again and is left alone for a while (breaker)";
        let error = Error::new(Kind::UpstreamUnreachable, message).retryable(false);
        Err(error.retry_after(soonest))
    }

    fn outgoing(&self, url: &TargetUrl, request: &Request, errand: &Errand) -> Outgoing {
        let mut headers = self.headers.clone();
        headers.extend(request.headers.iter().cloned());
        if let Some(trace) = &errand.trace {
            headers.insert(TRACEPARENT, trace.clone());
        }
        Outgoing {
            method: request.method.clone(),
            url: url.join(&request.path),
            headers,
            body: request.body.clone(),
        }
    }
}

/// Counts an attempt as under way until dropped.
struct InFlight<'a>(&'a UpstreamMetrics);

impl<'a> InFlight<'a> {
    fn new(metrics: &'a UpstreamMetrics) -> Self {
        metrics.in_flight.increment(1.0);
        Self(metrics)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.in_flight.decrement(1.0);
    }
}

/// The upstream's time when it began to answer: its `Date`, which is whole seconds, rounded
/// down, of a moment at most `took` later.
fn as_of(response: &Response, took: Duration) -> Option<Millis> {
    let date = response.headers.get(DATE)?.to_str().ok()?;
    let date = httpdate::parse_http_date(date).ok()?;
    let since = date.duration_since(std::time::UNIX_EPOCH).ok()?;
    let millis = Millis::try_from(since.as_millis()).ok()?;
    Some(millis - Millis::try_from(took.as_millis()).ok()?)
}

/// The metric label of an attempt's result.
fn outcome<T>(result: &Result<T, Error>) -> &'static str {
    match result {
        Ok(_) => "ok",
        Err(e) => match e.kind {
            Kind::DeadlineExceeded => "timeout",
            Kind::UpstreamUnreachable => "unreachable",
            Kind::UpstreamBusy => "busy",
            Kind::UpstreamFailed => "error",
            _ => "refused",
        },
    }
}

/// A random wait before another attempt: full jitter over an exponential bound.
fn backoff(attempt: u32) -> Duration {
    let bound = BACKOFF
        .saturating_mul(2u32.saturating_pow(attempt))
        .min(LONGEST_BACKOFF);
    // A new hasher is randomly keyed, which is random enough to spread retries.
    let random = RandomState::new().hash_one(attempt);
    bound.mul_f64((random % 1024) as f64 / 1024.0)
}
