//! Another server of the mirror API as a backend.

use std::sync::Arc;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, StatusCode};

use super::samples::Samples;
use super::{
    Adapter, Data, Exchange, Fetch, FetchResult, Forwarded, Next, Part, PartCall, Request,
    Response, SAID, busy, garbage, is_json, quoted,
};
use crate::aggregate::roll_up;
use crate::model::{
    Bucket, Error, Evidence, FieldNames, FieldNamesQuery, FieldValues, FieldValuesQuery, Kind,
    Layout, MetricQuery, Millis, Points, Statistic, Step, TimeRange,
};
use crate::reloadable::Reloadable;
use crate::wire::mirror::API_KEY_HEADER;
use crate::wire::mirror::points::{Telemetry, read_metric};
use crate::wire::mirror::request;
use crate::wire::mirror::response;

/// Most pages read for one range; the rest counts as unavailable.
const MAX_PAGES: u32 = 64;

/// Speaks the mirror API to a backend.
pub struct Mirror {
    /// The key that every answer must carry.
    pub api_key: Option<Arc<Reloadable<String>>>,
    /// Most points to ask for in one page.
    pub page: u32,
}

impl Adapter for Mirror {
    fn health(&self, details: &Forwarded) -> Exchange<()> {
        let checks = self.checks();
        let body = request::write_connection(&details.members());
        exchange("/api/connection", body, move |response| {
            checks.pass(response)?;
            match response::read_connection(&response.body) {
                Ok(Ok(())) => Ok(Next::Done(())),
                Ok(Err(details)) => {
                    let said = quoted(&details, SAID);
                    Err(Error::new(Kind::UpstreamFailed, said))
                }
                Err(e) => Err(garbage(response, &e.to_string())),
            }
        })
    }

    fn series(&self, fetch: &Fetch) -> Result<Vec<Part>, Error> {
        let pages = Pages {
            fetch: fetch.clone(),
            checks: self.checks(),
            limit: self.page,
        };
        let start = fetch.range.start();
        let exchange = pages.exchange(start, PageRead::default());
        let call = PartCall::Alone(exchange);
        Ok(vec![Part { start, call }])
    }

    fn field_names(
        &self,
        details: &Forwarded,
        query: &FieldNamesQuery,
    ) -> Result<Exchange<FieldNames>, Error> {
        let checks = self.checks();
        let body = request::write_field_names(&details.members(), query);
        Ok(exchange("/api/field/name", body, move |response| {
            checks.pass(response)?;
            response::read_field_names(&response.body)
                .map(Next::Done)
                .map_err(|e| garbage(response, &e.to_string()))
        }))
    }

    fn field_values(
        &self,
        details: &Forwarded,
        query: &FieldValuesQuery,
    ) -> Result<Exchange<FieldValues>, Error> {
        let checks = self.checks();
        let body = request::write_field_values(&details.members(), query);
        Ok(exchange("/api/field/value", body, move |response| {
            checks.pass(response)?;
            response::read_field_values(&response.body)
                .map(Next::Done)
                .map_err(|e| garbage(response, &e.to_string()))
        }))
    }

    fn lists_whole(&self) -> bool {
        false
    }
}

impl Mirror {
    fn checks(&self) -> Checks {
        Checks {
            api_key: self.api_key.clone(),
        }
    }
}

fn exchange<T>(
    path: &str,
    body: Vec<u8>,
    read: impl Fn(&Response) -> Result<Next<T>, Error> + Send + Sync + 'static,
) -> Exchange<T> {
    let json = HeaderValue::from_static("application/json");
    Exchange {
        request: Request {
            method: Method::POST,
            path: path.to_owned(),
            headers: vec![(CONTENT_TYPE, json)],
            body: Bytes::from(body),

            units: 0,
        },
        read: Arc::new(read),
        bill: None,
    }
}

/// Checks an answer of a mirror before it is read.
#[derive(Clone)]
struct Checks {
    api_key: Option<Arc<Reloadable<String>>>,
}

impl Checks {
    fn pass(&self, response: &Response) -> Result<(), Error> {
        let key = response.headers.get(&API_KEY_HEADER);
        if let Some(expected) = &self.api_key
            && key.is_none_or(|k| k.as_bytes() != expected.get().as_bytes())
        {
            // Something in front of a mirror answers with a page, or with an error of its own.
            let other_error =
                response.status != StatusCode::OK && response::read_error(&response.body).is_none();
            if other_error || !is_json(&response.body) {
                let error = not_a_mirror(response);
                return Err(match error.evidence {
                    Evidence::Question => error.shows(Evidence::Stranger),
                    _ => error,
                });
            }
            let what = if key.is_some() { "another" } else { "no" };
            let message = format!(
                "the upstream answered with {what} {API_KEY_HEADER}; it is not the mirror that `api_key` belongs to"
            );
            return Err(Error::new(Kind::UpstreamFailed, message));
        }
        if response.status == StatusCode::OK {
            return Ok(());
        }
        Err(failure(response))
    }
}

fn not_a_mirror(response: &Response) -> Error {
    let error = || garbage(response, "not an answer of the mirror API");
    busy(response).unwrap_or_else(error)
}

/// Returns the error in a response with an error status.
fn failure(response: &Response) -> Error {
    let Some(mut error) = response::read_error(&response.body) else {
        return not_a_mirror(response);
    };
    error.message = quoted(&error.message, SAID);
    if let Some(mut busy) = busy(response) {
        busy.message = format!("{}: {}", busy.message, error.message);
        return busy;
    }
    // A mirror that says whose fault it is is believed; old ones answer 500 to everything.
    match response.status {
        StatusCode::BAD_REQUEST => error.kind = Kind::InvalidRequest,
        StatusCode::FORBIDDEN => error.kind = Kind::TargetNotAllowed,
        StatusCode::UNPROCESSABLE_ENTITY if error.kind == Kind::UpstreamFailed => {
            error.kind = Kind::TooManyPoints;
        }
        _ => {}
    }
    // The mirror's own error is about the query.
    error.shows(Evidence::Question)
}

/// Reads a range page by page.
#[derive(Clone)]
struct Pages {
    fetch: Fetch,
    checks: Checks,
    limit: u32,
}

/// The contents of the pages so far.
#[derive(Clone, Default)]
struct PageRead {
    times: Vec<Millis>,
    /// Ends of buckets.
    ends: Vec<Millis>,
    values: Vec<f64>,
    received: u64,
    pages: u32,
}

impl PageRead {
    /// Adds a page that was asked for from `start` on, inclusive: what was there at that time
    /// comes again.
    fn add(&mut self, start: Millis, page: Telemetry) {
        self.received += page.times.len() as u64;
        self.pages += 1;
        let mut keep = self.times.iter().map(|t| *t < start);
        let mut kept = || keep.next().unwrap_or(false);
        self.values.retain(|_| kept());
        let mut keep = self.times.iter().map(|t| *t < start);
        let mut kept = || keep.next().unwrap_or(false);
        self.ends.retain(|_| kept());
        self.times.retain(|t| *t < start);
        append(&mut self.times, page.times);
        append(&mut self.ends, page.ends.unwrap_or_default());
        append(&mut self.values, page.values);
    }

    fn buckets(&self) -> impl Iterator<Item = Bucket> {
        let rows = self.times.iter().zip(&self.ends).zip(&self.values);
        rows.map(|((start, end), value)| Bucket {
            value: *value,
            range: TimeRange::clamped(*start, *end),
        })
    }
}

/// Appends `more` to `all`, without a copy where that is empty.
fn append<T>(all: &mut Vec<T>, mut more: Vec<T>) {
    if all.is_empty() {
        *all = more;
    } else {
        all.append(&mut more);
    }
}

impl Pages {
    /// Returns the request for the page that starts at `start`, after what `so_far` holds.
    fn exchange(&self, start: Millis, so_far: PageRead) -> Exchange<FetchResult> {
        let query = MetricQuery {
            selector: self.fetch.selector.clone(),
            metric_field: self.fetch.metric_field.clone(),
            range: TimeRange::clamped(start, self.fetch.range.end()),
            limit: Some(self.limit),
            layout: self.fetch.layout,
        };
        let body = request::write_metric(&self.fetch.details.members(), &query);
        let pages = self.clone();
        exchange("/api/metric", body, move |response| {
            pages.checks.pass(response)?;
            pages.page(response, start, so_far.clone())
        })
    }

    fn page(
        &self,
        response: &Response,
        start: Millis,
        mut read: PageRead,
    ) -> Result<Next<FetchResult>, Error> {
        let telemetry =
            read_metric(&response.body).map_err(|e| garbage(response, &e.to_string()))?;
        let wrong = match (&telemetry.ends, self.fetch.layout) {
            (None, Layout::Raw) | (Some(_), Layout::Buckets { .. }) => None,
            (None, _) => Some("raw points instead of buckets"),
            (Some(_), _) => Some("buckets instead of raw points"),
        };
        if let Some(wrong) = wrong {
            return Err(garbage(response, wrong));
        }
        let partial = telemetry.partial;
        let last = partial.then(|| telemetry.times.iter().copied().max());
        read.add(start, telemetry);
        match last.flatten() {
            Some(last) if last > start && read.pages < MAX_PAGES => {
                Ok(Next::More(self.exchange(last, read)))
            }
            // A mirror that says "partial" and returns nothing new cannot be read further.
            _ => Ok(Next::Done(self.series(read, !partial))),
        }
    }

    fn series(&self, read: PageRead, complete: bool) -> FetchResult {
        let mut series = FetchResult {
            complete,
            received: read.received,
            ..FetchResult::default()
        };
        let range = match self.fetch.layout {
            Layout::Raw => self.fetch.range,
            Layout::Buckets { size, .. } if all_on_grid(&read.times, &read.ends, size) => {
                self.fetch.range.aligned(size)
            }
            Layout::Buckets { statistic, size } => {
                self.fit(&read, statistic, size, &mut series);
                return series;
            }
        };
        let mut samples = Samples::new(read.times, read.values);
        samples.sort();
        series.dropped.outside_range = (samples.len() - samples.within(&range).len()) as u64;
        series.data = Data::Points(samples.points(&range, self.fetch.nan, &mut series.dropped));
        series
    }

    /// Puts buckets that do not all lie on the grid of `size` into `series`: rolled up to it where
    /// that is exact, else unchanged.
    fn fit(&self, read: &PageRead, statistic: Statistic, size: Step, series: &mut FetchResult) {
        let dropped = &mut series.dropped;
        let mut buckets = Vec::with_capacity(read.times.len());
        for bucket in read.buckets() {
            if bucket.range.intersection(&self.fetch.range).is_none() {
                dropped.outside_range += 1;
            } else if let Some(value) = dropped.admit(bucket.value, self.fetch.nan) {
                buckets.push(Bucket { value, ..bucket });
            }
        }
        buckets.sort_by_key(|b| b.range.start());
        if buckets.iter().all(|b| on_grid(b, size)) {
            let pairs = buckets.iter().map(|b| (b.range.start(), b.value)).collect();
            series.data = Data::Points(Points::from_unsorted(pairs));
        } else if let Some(points) = roll_up(&buckets, statistic, size) {
            series.data = Data::Points(points);
        } else {
            series.off_grid = Some(buckets);
        }
    }
}

/// Returns whether all buckets with these `starts` and `ends` lie on the grid of `size`.
fn all_on_grid(starts: &[Millis], ends: &[Millis], size: Step) -> bool {
    let mut before = None;
    let mut buckets = starts.iter().zip(ends);
    buckets.all(|(start, end)| {
        // Most buckets begin where one on the grid ended.
        let starts_well = before == Some(start) || size.floor(*start) == *start;
        before = Some(end);
        starts_well && start.saturating_add(size.millis()) == *end
    })
}

fn on_grid(bucket: &Bucket, size: Step) -> bool {
    let start = size.floor(bucket.range.start());
    bucket.range == TimeRange::clamped(start, start.saturating_add(size.millis()))
}

#[cfg(test)]
mod tests;
