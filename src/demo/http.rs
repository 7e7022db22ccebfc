//! Serves the demonstration mirror over HTTP, slow and rate-limited on purpose.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use http::header::{CONTENT_TYPE, DATE};
use http::{HeaderValue, Request, Response};
use hyper::body::Incoming;

use crate::clock::Clock;
use crate::front::{Body, BodyLimits, error_response, read_body};
use crate::model::{Error, Kind};

/// The bounds of the requests that it reads.
const BODY_LIMITS: BodyLimits = BodyLimits {
    max: 1 << 20,
    time: Duration::from_secs(10),
    in_flight: usize::MAX,
};

/// The calls of how much time may come at once.
const BURST: Duration = Duration::from_secs(1);

/// A limit on calls per second, of which those of a second may come at once (the generic cell rate
/// algorithm).
#[derive(Debug)]
struct Rate {
    /// The time of one call.
    interval: Duration,
    /// The time up to which calls have been admitted.
    taken: Mutex<Duration>,
}

impl Rate {
    fn new(per_second: u32) -> Self {
        Self {
            interval: Duration::from_secs(1) / per_second.max(1),
            taken: Mutex::default(),
        }
    }

    /// Returns whether a call at `now` is within the limit, and counts it if so.
    fn admits(&self, now: Duration) -> bool {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let after = (*taken).max(now) + self.interval;
        let admitted = after <= now + BURST;
        if admitted {
            *taken = after;
        }
        admitted
    }
}

/// The demonstration mirror as a server.
pub struct DemoServer {
    latency: Duration,
    rate: Rate,
    clock: Arc<dyn Clock>,
}

impl DemoServer {
    /// Returns a server that takes `latency` for each answer and gives at most `per_second`.
    pub fn new(latency: Duration, per_second: u32, clock: Arc<dyn Clock>) -> Arc<Self> {
        Arc::new(Self {
            latency,
            rate: Rate::new(per_second),
            clock,
        })
    }

    /// Answers `request`.
    pub async fn handle(self: Arc<Self>, request: Request<Incoming>) -> Response<Body> {
        if !self.rate.admits(self.clock.monotonic()) {
            let error = Error::new(
                Kind::UpstreamBusy,
                "the demonstration source has a rate limit",
            );
            return error_response(&error.retry_after(Some(Duration::from_secs(1))), false);
        }
        tokio::time::sleep(self.latency).await;
        let path = request.uri().path().to_owned();
        let answer = match read_body(request.into_body(), BODY_LIMITS).await {
            Ok(body) => super::answer(&path, &body, self.clock.now()),
            Err(error) => Err(error),
        };
        let body = match answer {
            Ok(body) => body,
            Err(error) => return error_response(&error, false),
        };
        let mut response = Response::new(Body::from(body));
        if let Ok(date) = HeaderValue::from_str(&self.date()) {
            // Set here, so that its data and its date come from one clock.
            response.headers_mut().insert(DATE, date);
        }
        let json = HeaderValue::from_static("application/json");
        response.headers_mut().insert(CONTENT_TYPE, json);
        response
    }

    fn date(&self) -> String {
        let millis = u64::try_from(self.clock.now()).unwrap_or(0);
        httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_millis(millis))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_admits_a_second_s_calls_at_once_and_then_one_an_interval() {
        let rate = Rate::new(4);
        let at = |millis: u64| Duration::from_millis(1_000_000 + millis);
        let admitted =
            |millis, calls: usize| (0..calls).filter(|_| rate.admits(at(millis))).count();
        assert_eq!(admitted(0, 10), 4);
        assert_eq!(admitted(249, 10), 0);
        assert_eq!(admitted(250, 10), 1);
        assert_eq!(admitted(1000, 10), 3);
        assert_eq!(admitted(60_000, 10), 4, "what is not used does not add up");
        assert!(Rate::new(0).admits(at(0)), "0 is taken as 1");
    }
}
