//! Serves the demonstration mirror over HTTP, deliberately slow and rate-limited.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use http::header::{CONTENT_TYPE, DATE};
use http::{HeaderValue, Request, Response};
use hyper::body::Incoming;
use tokio::time::Instant;

use crate::clock::Clock;
use crate::front::{Body, BodyLimits, error_response, read_body};
use crate::model::{Error, Kind};

/// Most bytes of a request's body, and the longest time until it has arrived.
const MOST_BODY: usize = 1 << 20;
const BODY_TIME: Duration = Duration::from_secs(10);

/// The demonstration mirror as a server.
pub struct DemoServer {
    latency: Duration,
    limiter: DefaultDirectRateLimiter,
    clock: Arc<dyn Clock>,
}

impl DemoServer {
    /// Returns a server that takes `latency` for each answer and accepts at most `per_second`
    /// requests per second.
    pub fn new(latency: Duration, per_second: u32, clock: Arc<dyn Clock>) -> Arc<Self> {
        let per_second = NonZeroU32::new(per_second).unwrap_or(NonZeroU32::MIN);
        Arc::new(Self {
            latency,
            limiter: RateLimiter::direct(Quota::per_second(per_second)),
            clock,
        })
    }

    /// Answers `request`.
    pub async fn handle(self: Arc<Self>, request: Request<Incoming>) -> Response<Body> {
        if self.limiter.check().is_err() {
            let error = Error::new(
                Kind::UpstreamBusy,
                "the demonstration source has a rate limit",
            );
            return error_response(&error.retry_after(Some(Duration::from_secs(1))), false);
        }
        tokio::time::sleep(self.latency).await;
        let path = request.uri().path().to_owned();
        let limits = BodyLimits {
            max: MOST_BODY,
            deadline: Instant::now() + BODY_TIME,
            in_flight: usize::MAX,
        };
        let answer = match read_body(request.into_body(), limits).await {
            Ok(body) => super::answer(&path, &body, self.clock.now()),
            Err(error) => Err(error),
        };
        let body = match answer {
            Ok(body) => body,
            Err(error) => return error_response(&error, false),
        };
        let mut response = Response::new(Body::from(body));
        if let Ok(date) = HeaderValue::from_str(&self.date()) {
            // Set here, so that its data and its date come from the same clock.
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
