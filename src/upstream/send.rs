//! One call: sending it, its outcome, and the evidence in it.

use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use tokio::time::error::Elapsed;
use tokio::time::{Instant, timeout_at};

use super::addresses::{Chosen, SILENT, Taken, Wish};
use super::answer_memory::Charges;
use super::attempt::{Attempt, Tries, Turn, ended, verdict};
use super::aws::{AwsSigner, Signed};
use super::budget::LEASE_WAIT;
use super::client::{Answered, CallContext, UpstreamClient};
use super::limiter::Permit;
use super::rate_limit_headers::RateLimitHeaders;
use super::response::{as_of, read};
use super::transport::Outgoing;
use crate::adapters::{Exchange, Next, Request, Response};
use crate::model::{Error, Evidence, Kind, QueryMethod, TargetUrl};

/// The failure of a call that is made elsewhere because its address is silent.
const GIVEN_UP: &str = "the URL answers none of several calls, while another is well";

/// A call that may be made at once.
struct ReadyCall<'a> {
    permit: Permit,
    url: TargetUrl,
    /// Whether it is made by GET, where the method is found out.
    by_get: Option<bool>,
    outgoing: Outgoing,
    /// Its signer, and what that signed it with.
    signed: Option<(&'a AwsSigner, Signed)>,
}

impl ReadyCall<'_> {
    /// Returns the position of the address that it goes to.
    fn address(&mut self) -> Option<usize> {
        self.permit.chosen().map(|chosen| chosen.index)
    }
}

impl UpstreamClient {
    /// Makes `exchange` with the address that `permit` is for, which `tries` takes in. If that turns out to
    /// refuse POST, it is made again by GET: a further call, with a permit of its own.
    pub(super) async fn made<T: Send + 'static>(
        &self,
        permit: Permit,
        exchange: &Exchange<T>,
        call: &CallContext,
        turn: Turn,
        wish: Wish,
        tries: &Tries,
    ) -> Result<Answered<Next<T>>, Error> {
        let request = &exchange.request;
        let mut ready = self.ready(permit, request, call, turn, wish).await?;
        let address = ready.address();
        if let Some(address) = address {
            tries.add(address);
        }
        let (result, taken) =
            Box::pin(self.attempt_at(ready, exchange, call, turn, &tries.kept)).await;
        if taken != Taken::ByGet {
            return result;
        }
        let turn = Turn {
            retry: turn.retry.saturating_add(1),
            continues: true,
            ..turn
        };
        let wish = Wish {
            only: address,
            ..wish
        };
        self.metrics.retries.increment(1);
        let permit = self.admit(call, turn.continues, wish).await?;
        let ready = self.ready(permit, request, call, turn, wish).await?;
        match Box::pin(self.attempt_at(ready, exchange, call, turn, &tries.kept)).await {
            (_, Taken::No) => result,
            (by_get, _) => by_get,
        }
    }

    /// Readies the call of `request` that `permit` is for, and takes it out of the budgets. If other
    /// replicas hold what it lacks, it waits for that, [`LEASE_WAIT`] and until its deadline at most, and
    /// is then admitted anew, as `wish` says: permits do not last, and others may use the place
    /// meanwhile.
    async fn ready(
        &self,
        mut permit: Permit,
        request: &Request,
        call: &CallContext,
        turn: Turn,
        wish: Wish,
    ) -> Result<ReadyCall<'_>, Error> {
        let until = call.deadline.min(Instant::now() + LEASE_WAIT);
        loop {
            let ready = self.prepared(permit, request).await?;
            if self.spend(request.units)? {
                // Only now: what lacks a lease is admitted again.
                if let Some(source) = ready.permit.source() {
                    self.metrics.limit_call(source);
                }
                return Ok(ready);
            }
            drop(ready);
            self.leased(request.units, until).await?;
            permit = self.admit(call, turn.continues, wish).await?;
        }
    }

    async fn prepared(
        &self,
        mut permit: Permit,
        request: &Request,
    ) -> Result<ReadyCall<'_>, Error> {
        let Some(chosen) = permit.chosen() else {
            return Err(no_address());
        };
        let url = chosen.url().clone();
        let by_get = match self.method {
            QueryMethod::Post => false,
            QueryMethod::Get => true,
            QueryMethod::Auto => chosen.is_asked_by_get(),
        };
        let get = by_get.then(|| as_get(request)).flatten();
        let found_out = self.method == QueryMethod::Auto && is_form(request);
        let mut outgoing = self.outgoing(&url, get.as_ref().unwrap_or(request));
        outgoing.new_connection = chosen.trial;
        let signed = match &self.signer {
            Some(signer) => Some((signer, signer.sign(&mut outgoing).await?)),
            None => None,
        };
        Ok(ReadyCall {
            permit,
            url,
            by_get: found_out.then_some(get.is_some()),
            outgoing,
            signed,
        })
    }

    /// Makes the call that is `ready`, beside what has been `kept` of those that it continues. Returns
    /// whether its method was taken, too.
    async fn attempt_at<T: Send + 'static>(
        &self,
        ready: ReadyCall<'_>,
        exchange: &Exchange<T>,
        call: &CallContext,
        turn: Turn,
        kept: &Charges,
    ) -> (Result<Answered<Next<T>>, Error>, Taken) {
        let ReadyCall {
            mut permit,
            url,
            by_get,
            mut outgoing,
            signed,
        } = ready;
        let Some(chosen) = permit.chosen() else {
            return (Err(no_address()), Taken::Yes);
        };
        let (address, provisional) = (chosen.index, chosen.provisional);
        let (started, begun) = (self.clock.monotonic(), Instant::now());
        let mut counted = Attempt::begin(&self.metrics, &call.trace, turn);
        let trace = counted.to(&url, &outgoing.method, &call.trace);
        trace.send(&mut outgoing.headers);
        let wall = self.clock.now();
        let share = self
            .answers
            .share_after(kept, self.max_response, call.deadline);
        let send = self.transport.send(outgoing, share.clone());
        let waited = || share.waited();
        let mut given_up = false;
        let sent = tokio::select! {
            sent = within(self.limits.timeout, send, waited) => sent.map_err(|_| {
                let limit = humantime::format_duration(self.limits.timeout);
                format!("the upstream did not answer within {limit} (timeout)")
            }),
            () = self.given_up(chosen, waited) => {
                given_up = true;
                Err(GIVEN_UP.to_owned())
            }
        };
        let took = self.clock.monotonic().saturating_sub(started);
        self.metrics.seconds.record(took.as_secs_f64());

        let mut taken = Taken::Yes;
        if let Ok(Ok(response)) = &sent {
            counted.answered(response.status);
            let (name, received) = (self.metrics.name(), self.clock.now());
            self.clock_check.look(name, response, wall, received);
            self.apply_rate_limit_headers(response, chosen);
            if let Some(by_get) = by_get {
                taken = chosen.learn_method(by_get, refuses_method(response));
            }
        }
        let timed_out = sent.is_err();
        let response =
            sent.unwrap_or_else(|message| Err(Error::new(Kind::DeadlineExceeded, message)));
        let mut result = match response {
            Ok(response) => {
                let charge = kept.and(share);
                // The earlier of both clocks: if one is fast, nothing counts as settled too soon.
                let as_of = as_of(&response, took).map_or(wall, |t| t.min(wall));
                let refused = signed.and_then(|(signer, by)| signer.refused(&response, &by));
                let read = match refused {
                    Some(error) => Err(error),
                    None => read(exchange, response, call.deadline).await,
                };
                self.settle(exchange);
                read.map(|value| Answered {
                    value,
                    as_of,
                    sent: started,
                    address,
                    provisional,
                    charge,
                })
            }
            Err(error) => Err(error),
        };
        if taken == Taken::ByGet {
            // It shows the method that the address takes, and nothing else.
            counted.refused();
            return (result, taken);
        }
        if let Some(verdict) = verdict(&result, timed_out) {
            let failed = chosen.end(verdict, self.clock.now());
            if let Err(error) = &mut result
                && timed_out
                && (failed || given_up)
            {
                error.evidence = Evidence::Address;
            }
        }
        if self.addresses.next_trial().is_some() {
            self.failing.notify_one();
        }
        // How long it would have taken is not known.
        let slow = timed_out && !given_up;
        permit.report(ended(&result, slow), begun.elapsed());
        if let Err(error) = &result {
            self.failures.log(self.metrics.name(), error);
        }
        counted.end(&result, self.clock.now());
        (result, taken)
    }

    /// Waits until the call to `chosen` is better made elsewhere: its address answers none of several calls,
    /// while another is well. That is a retry, so few are given up where it is the questions that are slow.
    async fn given_up(&self, chosen: &Chosen, waited: impl Fn() -> Duration) {
        if chosen.is_alone() {
            return std::future::pending().await;
        }
        loop {
            let (now, usual) = (Instant::now(), self.limiter.usual());
            match chosen.given_up_at(now, usual) {
                Some(at) if at > now => tokio::time::sleep_until(at).await,
                // It may have been answered already, and wait for memory.
                Some(_) if !waited().is_zero() => tokio::time::sleep(SILENT).await,
                Some(_) if self.retries.take() => return,
                _ => tokio::time::sleep(SILENT).await,
            }
        }
    }

    /// Keeps to what an address says is left of its budget, where that is less than ours.
    fn apply_rate_limit_headers(&self, response: &Response, chosen: &Chosen) {
        let Some(advice) = RateLimitHeaders::of(&response.headers, self.clock.now()) else {
            return;
        };
        let ours = Duration::from_secs_f64(1.0 / self.limits.per_second);
        // As long as more is left than one burst of ours, the upstream takes bursts too.
        let few = advice.remaining < u64::from(self.limits.burst) && advice.spacing() > ours;
        if advice.remaining == 0 || few {
            chosen.advised(advice.remaining, advice.spacing(), advice.reset);
        }
    }

    fn outgoing(&self, url: &TargetUrl, request: &Request) -> Outgoing {
        let ours = self.headers.get();
        let mut headers = HeaderMap::clone(&ours);
        // Configured headers, such as the tenant, cannot be changed by a client.
        let theirs = request.headers.iter();
        let theirs = theirs.filter(|(name, _)| !ours.contains_key(name));
        headers.extend(theirs.cloned());
        Outgoing {
            method: request.method.clone(),
            url: url.join(&request.path),
            headers,
            body: request.body.clone(),
            new_connection: false,
        }
    }
}

fn no_address() -> Error {
    Error::new(Kind::Internal, "a call has no address")
}

/// Returns what `send` brings within `limit`; `waited` says how much of the time so far does not count.
async fn within<T>(
    limit: Duration,
    send: impl Future<Output = T>,
    waited: impl Fn() -> Duration,
) -> Result<T, Elapsed> {
    tokio::pin!(send);
    let begun = Instant::now();
    let mut end = begun + limit;
    loop {
        match timeout_at(end, &mut send).await {
            Ok(sent) => return Ok(sent),
            Err(elapsed) => {
                let later = begun + limit + waited();
                if later <= end {
                    return Err(elapsed);
                }
                end = later;
            }
        }
    }
}

/// Returns whether `response` is the usual answer of servers and gateways to a method that they do not
/// let pass.
fn refuses_method(response: &Response) -> bool {
    matches!(
        response.status,
        StatusCode::FORBIDDEN | StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED
    )
}

/// Returns whether `request` is a form that is sent by POST.
fn is_form(request: &Request) -> bool {
    request.method == Method::POST && request.headers.iter().any(says_form)
}

fn says_form((name, value): &(HeaderName, HeaderValue)) -> bool {
    name == CONTENT_TYPE && value == "application/x-www-form-urlencoded"
}

/// Returns the same request by GET, if `request` is a form that is sent by POST.
fn as_get(request: &Request) -> Option<Request> {
    if !is_form(request) {
        return None;
    }
    let form = std::str::from_utf8(&request.body).ok()?;
    let separator = if request.path.contains('?') { '&' } else { '?' };
    let headers = request.headers.iter().filter(|header| !says_form(header));
    Some(Request {
        method: Method::GET,
        path: format!("{}{separator}{form}", request.path),
        units: request.units,
        headers: headers.cloned().collect(),
        body: Bytes::new(),
    })
}
