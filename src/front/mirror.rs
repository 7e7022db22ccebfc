//! The mirror API's four methods.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Response;

use super::body::Body;
use super::respond::{cached, json, points};
use super::service::Front;
use crate::engine::{Engine, Explanation, PreparedQuery, RequestContext};
use crate::model::{Error, Kind, Origin, TimeRange};
use crate::wire::mirror::request::{Request, RequestBounds};
use crate::wire::mirror::{request, response};

/// The HTTP methods it accepts.
pub(super) const METHODS: [http::Method; 1] = [http::Method::POST];

/// Bodies beyond this many bytes are read off the threads that serve connections.
const LARGE_BODY: usize = 64 << 10;

/// A method of the mirror API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// `/api/connection`
    Connection,
    /// `/api/field/name`
    FieldNames,
    /// `/api/field/value`
    FieldValues,
    /// `/api/metric`
    Metric,
}

impl Method {
    /// All methods, with their paths.
    pub(super) const ALL: [(&'static str, Self); 4] = [
        ("/api/metric", Self::Metric),
        ("/api/field/name", Self::FieldNames),
        ("/api/field/value", Self::FieldValues),
        ("/api/connection", Self::Connection),
    ];

    /// Returns the method at `path`, normalized; `None` if it is not of this API.
    pub(super) fn of(path: &str) -> Option<Self> {
        let found = Self::ALL.into_iter().find(|(known, _)| *known == path);
        found.map(|(_, method)| method)
    }

    /// Returns its path.
    pub fn path(self) -> &'static str {
        let found = Self::ALL.iter().find(|(_, method)| *method == self);
        found.map_or("/", |(path, _)| path)
    }

    /// Returns its name in metrics.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Connection => "connection",
            Self::FieldNames => "field_name",
            Self::FieldValues => "field_value",
            Self::Metric => "metric",
        }
    }
}

/// Answers a request with this `body`.
pub(super) async fn answer(
    front: &Front,
    method: Method,
    body: Bytes,
    context: &mut RequestContext,
) -> Result<Response<Body>, Error> {
    match method {
        Method::Metric => metric(front, body, context).await,
        // Boxed: a request for points, by far the most frequent, should not carry their state.
        _ => Box::pin(other(front, method, body, context)).await,
    }
}

async fn metric(
    front: &Front,
    body: Bytes,
    context: &mut RequestContext,
) -> Result<Response<Body>, Error> {
    let (query, range) = match front.engine.known_query(&body) {
        Some(known) => known,
        None => Box::pin(read_query(front, &body)).await?,
    };
    drop(body);
    shorten(context, query.timeout);
    let mut answer = front.engine.metric(&query, &range, context).await?;
    Ok(points(&mut answer))
}

/// Reads a query that is not known, and keeps it.
async fn read_query(front: &Front, body: &Bytes) -> Result<(Arc<PreparedQuery>, TimeRange), Error> {
    let bounds = front.settings.request_bounds;
    let asked = read(body.clone(), bounds, request::read_metric).await?;
    let range = asked.query.range;
    let query = Arc::new(front.engine.prepare(&asked.details, asked.query)?);
    front.engine.keep_query(body, &query);
    Ok((query, range))
}

async fn other(
    front: &Front,
    method: Method,
    body: Bytes,
    context: &mut RequestContext,
) -> Result<Response<Body>, Error> {
    let (engine, bounds) = (&front.engine, front.settings.request_bounds);
    match method {
        Method::Metric => metric(front, body, context).await,
        Method::Connection => {
            let asked = read(body, bounds, request::read_connection).await?;
            shorten(context, asked.details.timeout);
            let failure = match engine.test(&asked.details, context).await {
                Ok(()) => None,
                // A target that is not allowed or invalid is an error; one that fails is an answer.
                Err(e) if e.kind.origin() == Origin::Client && e.kind != Kind::MetricNotFound => {
                    return Err(e);
                }
                Err(e) => Some(e.to_string()),
            };
            Ok(json([Bytes::from(response::write_connection(
                failure.as_deref(),
            ))]))
        }
        Method::FieldNames => {
            let asked = read(body, bounds, request::read_field_names).await?;
            shorten(context, asked.details.timeout);
            let names = engine.field_names(&asked.details, &asked.query, context);
            Ok(cached(names.await?))
        }
        Method::FieldValues => {
            let asked = read(body, bounds, request::read_field_values).await?;
            shorten(context, asked.details.timeout);
            let values = engine.field_values(&asked.details, &asked.query, context);
            Ok(cached(values.await?))
        }
    }
}

/// Reads `body` with `reader`; a large one off the threads that serve connections, as that takes longer
/// than a millisecond.
async fn read<Q: Send + 'static>(
    body: Bytes,
    bounds: RequestBounds,
    reader: fn(&[u8], RequestBounds) -> Result<Request<Q>, Error>,
) -> Result<Request<Q>, Error> {
    if body.len() <= LARGE_BODY {
        return reader(&body, bounds);
    }
    let read = crate::work::elsewhere(move || reader(&body, bounds)).await;
    read.map_err(|e| Error::new(Kind::Internal, format!("reading the request failed: {e}")))?
}

/// Explains how a request with this `body` would be answered.
pub(super) async fn explain(
    engine: &Engine,
    method: Method,
    body: Bytes,
    bounds: RequestBounds,
    mut context: RequestContext,
) -> Result<Explanation, Error> {
    let context = &mut context;
    match method {
        Method::Connection => {
            let message = "a connection test always asks the upstream; there is nothing to explain";
            Err(Error::new(Kind::PathNotFound, message))
        }
        Method::FieldNames => {
            let asked = read(body, bounds, request::read_field_names).await?;
            shorten(context, asked.details.timeout);
            let explained = engine.explain_names(&asked.details, &asked.query, context);
            explained.await
        }
        Method::FieldValues => {
            let asked = read(body, bounds, request::read_field_values).await?;
            shorten(context, asked.details.timeout);
            let explained = engine.explain_values(&asked.details, &asked.query, context);
            explained.await
        }
        Method::Metric => {
            let asked = read(body, bounds, request::read_metric).await?;
            shorten(context, asked.details.timeout);
            let explained = engine.explain_metric(&asked.details, asked.query, context);
            explained.await
        }
    }
}

/// Shortens the deadline of `context` to the client's own `timeout`, if it has one.
fn shorten(context: &mut RequestContext, timeout: Option<Duration>) {
    if let Some(timeout) = timeout {
        let limit = tokio::time::Instant::now() + timeout;
        context.deadline = context.deadline.min(limit);
    }
}
