//! The only maps from errors to HTTP statuses, one for each API.

use std::time::Duration;

use http::header::{ALLOW, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderValue, Response, StatusCode};

use super::body::Body;
use crate::model::{Error, Kind};
use crate::wire::mirror::response::write_error;

/// Returns the status of `kind` in the mirror API and in all but Prometheus' API.
pub(super) fn mirror_status(kind: Kind) -> StatusCode {
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
        Kind::UpstreamUnreachable
        | Kind::UpstreamFailed
        | Kind::TimesAligned
        | Kind::AnswerTooLarge => StatusCode::BAD_GATEWAY,
        Kind::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        Kind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// Returns the status of `kind` in Prometheus' API: that of `respondError` in its `web/api/v1/api.go`;
/// for what Prometheus does not know, that of Mimir.
pub fn prometheus_status(kind: Kind) -> StatusCode {
    match kind {
        Kind::UnsupportedFieldType => StatusCode::BAD_REQUEST,
        Kind::AnswerTooLarge => StatusCode::UNPROCESSABLE_ENTITY,
        Kind::DeadlineExceeded => StatusCode::SERVICE_UNAVAILABLE,
        kind => mirror_status(kind),
    }
}

/// Returns the mirror API's response for `error`. With `always_500` its status is 500 for every error
/// but 401, without which no client would log in.
pub fn error_response(error: &Error, always_500: bool) -> Response<Body> {
    let mut response = Response::new(Body::from(write_error(error)));
    let status = mirror_status(error.kind);
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

/// Adds the headers that tell a client what to do about `error`: which methods are allowed, how to log
/// in, when to retry.
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
        // Rounded up: a retry before that would be in vain.
        let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds.max(1)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prometheus_clients_get_the_statuses_of_prometheus() {
        for (kind, mirror, prometheus) in [
            (Kind::InvalidRequest, 400, 400),
            (Kind::Unauthenticated, 401, 401),
            (Kind::ClientNotAllowed, 403, 403),
            (Kind::PathNotFound, 404, 404),
            (Kind::MethodNotAllowed, 405, 405),
            (Kind::RequestTimeout, 408, 408),
            (Kind::BodyTooLarge, 413, 413),
            (Kind::UnsupportedMediaType, 415, 415),
            (Kind::UnsupportedFieldType, 422, 400),
            (Kind::TooManyPoints, 422, 422),
            (Kind::AnswerTooLarge, 502, 422),
            (Kind::UpstreamBudget, 429, 429),
            (Kind::Overloaded, 503, 503),
            (Kind::UpstreamUnreachable, 502, 502),
            (Kind::DeadlineExceeded, 504, 503),
            (Kind::Internal, 500, 500),
        ] {
            assert_eq!(mirror_status(kind).as_u16(), mirror, "{kind:?}");
            assert_eq!(prometheus_status(kind).as_u16(), prometheus, "{kind:?}");
        }
    }
}
