//! Requests that are passed on unchanged, and their answers.

use std::sync::Arc;

use bytes::Bytes;
use http::StatusCode;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderName, HeaderValue};

use super::replicas::{Asking, InstantSeries, Spacing, ask};
use super::{Prometheus, answer, exchange};
use crate::adapters::{Exchange, Next, Passed, Request, Response, busy, garbage};
use crate::model::{Error, Evidence, RawResponse, TimeRange};

/// Headers of an answer that belong to its body: remote read packs its own.
const OF_BODY: [HeaderName; 2] = [CONTENT_TYPE, CONTENT_ENCODING];

impl Prometheus {
    /// Returns the exchange of [`Adapter::pass`](crate::adapters::Adapter::pass). Other content than
    /// JSON in its place, such as the page of a gateway, is an error of ours.
    ///
    /// Where gaps are filled from replicas, so are those of the answer to an instant query.
    pub(super) fn passing(&self, request: Request, json: bool) -> Exchange<Passed> {
        let labels = self.fill.clone().filter(|_| {
            let path = request.path.split('?').next();
            path == Some("/api/v1/query")
        });
        let Some(labels) = labels else {
            return exchange(request, move |response| {
                passed(response, json).map(Next::Done)
            });
        };
        let most = self.max_series;
        ask(Asking {
            request,
            read: Box::new(move |response| Ok(InstantSeries::of(passed(response, json)?, most))),
            done: Box::new(|series| Ok(Next::Done(series.written()))),
            // All samples that a range selector returns count.
            spacing: Spacing::Samples {
                view: TimeRange::ALL,
                interval: self.interval,
            },
            labels: Some(labels),
        })
    }
}

/// The longest error that is passed on in the store's form, in bytes. Of a longer one the start is told.
const LONGEST_ERROR: usize = 64 << 10;

/// Reads an answer that is passed on.
fn passed(response: &Response, json: bool) -> Result<Passed, Error> {
    let status = response.status;
    if status == StatusCode::PARTIAL_CONTENT {
        return Err(garbage(response, "a part of an answer"));
    }
    let complete = if status.is_success() {
        match answer::envelope(response) {
            None if json => return Err(garbage(response, "not JSON")),
            envelope => envelope.unwrap_or(!json),
        }
    } else {
        let spoken = answer::spoken_error(response);
        // Most servers say so when they do not know a path or a method.
        let readable = spoken.is_some() || is_text(response) || !json;
        let busy = status == StatusCode::TOO_MANY_REQUESTS;
        if !status.is_client_error() || busy || !readable || is_long(response) {
            return Err(failure(response, spoken, json));
        }
        false
    };
    let answer = raw_response(response);
    Ok(Passed {
        answer,
        complete,
        filled: false,
    })
}

fn failure(response: &Response, spoken: Option<Error>, json: bool) -> Error {
    let passed_on = spoken.is_some() || (!json && is_text(response));
    let error = spoken.or_else(|| busy(response));
    let mut error = error.unwrap_or_else(|| {
        let error = garbage(response, "not an answer of Prometheus' API");
        match response.status.is_client_error() {
            // A gateway that lets some paths pass is not broken.
            true => error.shows(Evidence::Question),
            false => error,
        }
    });
    error.said = said(response).filter(|_| passed_on);
    error
}

/// Returns whether `response`, which is an error, is too long to be passed on as it is.
fn is_long(response: &Response) -> bool {
    response.body.len() > LONGEST_ERROR
}

/// Returns `response`, which is an error, to be passed on, unless it is too long.
pub(super) fn said(response: &Response) -> Option<Arc<RawResponse>> {
    (!is_long(response)).then(|| raw_response(response))
}

fn is_text(response: &Response) -> bool {
    let kind = response.headers.get(CONTENT_TYPE);
    kind.is_some_and(|kind| kind.as_bytes().starts_with(b"text/plain"))
}

/// Returns `response` to be passed on, in memory of its own: its body takes from the memory for answers
/// that are being read, and the value of a header would keep the buffer of the connection, of 8 KiB and more.
fn raw_response(response: &Response) -> Arc<RawResponse> {
    let headers = OF_BODY.iter().filter_map(|name| {
        let value = response.headers.get(name)?;
        Some((
            name.clone(),
            HeaderValue::from_bytes(value.as_bytes()).ok()?,
        ))
    });
    let mut headers: Vec<_> = headers.collect();
    headers.shrink_to_fit();
    Arc::new(RawResponse {
        status: response.status,
        headers,
        body: Bytes::copy_from_slice(&response.body),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderMap, Method};

    use crate::model::{Kind, Step};

    fn read(
        status: u16,
        kind: &'static str,
        body: &'static str,
        json: bool,
    ) -> Result<Passed, Error> {
        let request = Request {
            method: Method::GET,
            path: String::new(),
            headers: Vec::new(),
            body: Bytes::new(),
            units: 0,
        };
        let response = Response {
            status: StatusCode::from_u16(status).unwrap(),
            headers: HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(kind))]),
            body: body.into(),
        };
        let prometheus = Prometheus::new(Step::SECOND, false, 10);
        match (prometheus.passing(request, json).read)(&response)? {
            Next::Done(passed) => Ok(passed),
            Next::More(_) | Next::Compare(_) => panic!("nothing follows"),
        }
    }

    const JSON: &str = "application/json";

    #[test]
    fn what_is_passed_on_holds_no_memory_of_the_response() {
        let buffer = Bytes::from([b"application/json".to_vec(), vec![b' '; 8192]].concat());
        let kind = HeaderValue::from_maybe_shared(buffer.slice(..16)).unwrap();
        let response = Response {
            status: StatusCode::OK,
            headers: HeaderMap::from_iter([(CONTENT_TYPE, kind)]),
            body: buffer.slice(16..17),
        };
        assert!(!buffer.is_unique());
        let raw = raw_response(&response);
        drop(response);
        assert!(buffer.is_unique());
        assert_eq!(
            raw.headers,
            [(CONTENT_TYPE, HeaderValue::from_static(JSON))]
        );
    }

    #[test]
    fn answers_are_complete_without_warnings() {
        let complete = |body| read(200, JSON, body, true).map(|p| p.complete);
        assert_eq!(complete(r#"{"status":"success","data":[]}"#), Ok(true));
        assert_eq!(
            complete(r#"{"status":"success","warnings":["PromQL info: x"]}"#),
            Ok(true)
        );
        for body in [
            r#"{"status":"success","warnings":["a store is away"]}"#,
            r#"{"status":"success","isPartial":true}"#,
            r#"{"status":"ok"}"#,
        ] {
            assert_eq!(complete(body), Ok(false), "{body}");
        }
        assert!(complete(r#"{"status":"success","data":["#).is_err());
        assert!(read(200, "text/html", "<p>", true).is_err());
        let request = Request {
            method: Method::GET,
            path: String::new(),
            headers: Vec::new(),
            body: Bytes::new(),
            units: 0,
        };
        let response = Response {
            status: StatusCode::OK,
            headers: HeaderMap::new(),
            body: Bytes::from_static(b"{\"status\":\"success\",\"data\":[\"\xff\"]}"),
        };
        let prometheus = Prometheus::new(Step::SECOND, false, 10);
        assert!(
            (prometheus.passing(request, true).read)(&response).is_err(),
            "no UTF-8"
        );
        assert!(read(200, "x/y", "\u{1}", false).unwrap().complete);
    }

    #[test]
    fn errors_of_the_client_are_answers_and_others_say_what_was_said() {
        const BODY: &str = r#"{"status":"error","errorType":"x","error":"y"}"#;
        for status in [400, 404, 422] {
            let passed = read(status, JSON, BODY, true).unwrap();
            assert_eq!(passed.answer.status.as_u16(), status);
            assert_eq!(passed.answer.body, BODY);
            assert!(!passed.complete);
        }
        for (status, evidence) in [
            (429, Evidence::Load),
            (500, Evidence::Question),
            (503, Evidence::Load),
        ] {
            let error = read(status, JSON, BODY, true).unwrap_err();
            assert_eq!(error.evidence, evidence, "{status}");
            assert_eq!(error.said.unwrap().body, BODY);
        }
        let html = read(502, "text/html", "<p>", true).unwrap_err();
        assert_eq!((html.kind, html.said), (Kind::UpstreamFailed, None));
        let html = read(403, "text/html", "<p>", true).unwrap_err();
        assert_eq!((html.kind, html.said), (Kind::UpstreamFailed, None));
        assert!(read(404, "text/plain; charset=utf-8", "no", true).is_ok());
        let text = read(503, "text/plain", "not ready", true).unwrap_err();
        assert_eq!((text.kind, text.said), (Kind::UpstreamBusy, None));
        let text = read(500, "text/plain", "no", false).unwrap_err();
        assert_eq!(text.said.unwrap().body, "no");
    }
}
