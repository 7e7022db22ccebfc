//! The only map from errors to HTTP statuses, and the bounded reading of request bodies.

use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderValue, Response, StatusCode};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;

use super::body::Body;
use crate::model::{Error, Kind};
use crate::wire::mirror::response::write_error;

/// The status that says `kind`.
pub(super) fn status(kind: Kind) -> StatusCode {
    match kind {
        Kind::InvalidRequest => StatusCode::BAD_REQUEST,
        Kind::Unauthenticated => StatusCode::UNAUTHORIZED,
        Kind::ClientNotAllowed | Kind::TargetNotAllowed => StatusCode::FORBIDDEN,
        Kind::MetricNotFound | Kind::PathNotFound => StatusCode::NOT_FOUND,
        Kind::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
        Kind::RequestTimeout => StatusCode::REQUEST_TIMEOUT,
        Kind::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        Kind::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
        Kind::UnsupportedFieldType | Kind::TooManyPoints => StatusCode::UNPROCESSABLE_ENTITY,
        Kind::UpstreamBudget => StatusCode::TOO_MANY_REQUESTS,
        Kind::Overloaded | Kind::UpstreamBusy => StatusCode::SERVICE_UNAVAILABLE,
        Kind::UpstreamUnreachable | Kind::UpstreamFailed | Kind::AnswerTooLarge => {
            StatusCode::BAD_GATEWAY
        }
        Kind::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        Kind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// The response that says `error`. With `always_500` its status is 500, whatever it is but 401:
/// without that no client would log in.
pub fn error_response(error: &Error, always_500: bool) -> Response<Body> {
    let mut response = Response::new(Body::from(write_error(error)));
    let status = status(error.kind);
    *response.status_mut() = if always_500 && status != StatusCode::UNAUTHORIZED {
        StatusCode::INTERNAL_SERVER_ERROR
    } else {
        status
    };
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    add_advice(&mut response, error);
    response
}

/// Says what the client may do about `error`: which methods are allowed, how to log in, when to ask
/// again.
pub(super) fn add_advice(response: &mut Response<Body>, error: &Error) {
    let headers = response.headers_mut();
    if error.kind == Kind::MethodNotAllowed
        && let Some(allowed) = &error.subject
        && let Ok(allowed) = HeaderValue::from_str(allowed)
    {
        headers.insert(ALLOW, allowed);
    }
    if error.kind == Kind::Unauthenticated {
        let schemes = error.subject.as_deref().unwrap_or_default();
        for scheme in schemes.split(' ') {
            let challenge = match scheme {
                "Bearer" => "Bearer realm=\"heliostat\"",
                "Basic" => "Basic realm=\"heliostat\", charset=\"UTF-8\"",
                _ => continue,
            };
            headers.append(WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
        }
    }
    let later = matches!(
        error.kind,
        Kind::Overloaded | Kind::UpstreamBudget | Kind::UpstreamBusy
    );
    let after = error
        .retry_after
        .or(later.then_some(Duration::from_secs(1)));
    if let Some(after) = after {
        // Rounded up: asking again earlier would be in vain.
        let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds.max(1)));
    }
}

/// The body of a request, of at most `max` bytes, within `limit`.
pub async fn read_body(body: Incoming, max: usize, limit: Duration) -> Result<Bytes, Error> {
    let too_large = || {
        let message = format!("the request body is larger than {max} bytes (server.max_body)");
        Error::new(Kind::BodyTooLarge, message)
    };
    if hyper::body::Body::size_hint(&body).lower() > max as u64 {
        return Err(too_large());
    }
    match tokio::time::timeout(limit, Limited::new(body, max).collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(e)) if e.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(e)) => Err(Error::invalid("$", format!("the body broke off: {e}"))),
        Err(_) => Err(Error::new(
            Kind::RequestTimeout,
            "the request body did not come in time",
        )),
    }
}
