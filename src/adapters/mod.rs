//! Adapters: one module per kind of backend. They do no I/O: an adapter turns a fetch into an HTTP
//! request, and the response into an answer or the next request.

mod annotations;
pub(crate) mod aws_error;
mod built;
pub mod cloudwatch;
mod exchange;
pub mod mirror;
mod part;
pub mod prometheus;
mod samples;

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use http::StatusCode;
use http::header::{CONTENT_ENCODING, DATE, RETRY_AFTER};
use serde_json::{Map, Value};

use crate::model::{
    Bucket, Error, Evidence, Expression, Field, FieldNames, FieldNamesQuery, FieldValues,
    FieldValuesQuery, Kind, Layout, MetricPace, MetricQuery, Millis, NanInterpretation, Points,
    RangeLimits, RawResponse, Scope, Selector, Statistic, Step, TimeRange, heap_block,
};
use crate::promql::Reads;
use crate::wire::prometheus::Series;

pub use self::annotations::Annotations;
pub use self::built::built_bytes;
pub use self::cloudwatch::{Catalogue, CatalogueScope, StatisticsQuery};
pub use self::exchange::{Bill, Comparison, Exchange, Next, Read, Request, Response};
pub use self::part::{Part, PartCall};

/// The protocol of one kind of backend.
pub trait Adapter: Send + Sync {
    /// Returns whether the backend can be reached and answers as it should.
    fn health(&self, details: &Forwarded) -> Exchange<()>;

    /// Returns the points of `fetch.range`, in one part or, in order of time, in several; in none,
    /// if there can be no points.
    fn series(&self, fetch: &Fetch) -> Result<Vec<Part>, Error>;

    /// Returns `query` in the one form in which all ways to say the same share their data, or why
    /// it has no answer.
    fn canonical(&self, query: MetricQuery) -> Result<MetricQuery, Error> {
        Ok(query)
    }

    /// Returns where points of `layout` come from; `None` leaves it to the upstream's settings.
    fn route(&self, selector: &Selector, layout: Layout) -> Option<Route> {
        let _ = (selector, layout);
        None
    }

    /// Returns the pace of a metric, where it is not the upstream's.
    fn pace(&self, selector: &Selector, metric_field: Option<&str>) -> Option<MetricPace> {
        let _ = (selector, metric_field);
        None
    }

    /// Returns what the newest samples are that a value of `selector` is computed from, where these are not
    /// those of its own time.
    fn reads(&self, selector: &Selector) -> Option<Reads> {
        let _ = selector;
        None
    }

    /// Returns the parts of `range`, on the grid of `layout`, in order of time, each with the period
    /// of the summaries that the backend keeps of it, of points that are `interval` apart. Asked for
    /// of a [`Route::Summaries`] only.
    fn kept(&self, range: &TimeRange, layout: Layout, interval: Step) -> Vec<Kept> {
        let _ = (range, layout, interval);
        Vec::new()
    }

    /// Returns the summaries by `period` of the samples in `fetch.range`, in parts as [`Adapter::series`]
    /// has them: of each period four points of one time, sum, count, smallest and largest value.
    fn summaries(&self, fetch: &Fetch, period: Step) -> Result<Vec<Part>, Error> {
        let _ = (fetch, period);
        let message = "an upstream without summaries was asked for some";
        Err(Error::new(Kind::Internal, message))
    }

    /// Returns whether calls are billed, whatever number of points they bring.
    fn is_metered(&self) -> bool {
        false
    }

    /// Returns whether the number of series in an answer to `selector`, which is canonical, is what is
    /// billed for it.
    fn bills_by_answer(&self, selector: &Selector) -> bool {
        let _ = selector;
        false
    }

    /// Returns what the backend would bill for `query`, which is canonical; where it
    /// [bills by the answer](Self::bills_by_answer), the least.
    fn units(&self, query: &MetricQuery) -> u32 {
        let _ = query;
        0
    }

    /// Returns the values of `field` where they are known without asking.
    fn known_values(&self, field: &Field) -> Option<Vec<String>> {
        let _ = field;
        None
    }

    /// Returns the catalogues that have the fields of `scope`, from the widest to its own; none, if the
    /// backend itself lists fields.
    fn catalogue_scopes(&self, scope: &Scope) -> Result<Vec<CatalogueScope>, Error> {
        let _ = scope;
        Ok(Vec::new())
    }

    /// Returns the catalogue of `scope`.
    fn catalogue(&self, scope: &CatalogueScope) -> Result<Exchange<Catalogue>, Error> {
        let _ = scope;
        Err(no_lists())
    }

    /// Returns the names of fields in `catalogue`.
    fn names_in(
        &self,
        catalogue: &Catalogue,
        query: &FieldNamesQuery,
    ) -> Result<FieldNames, Error> {
        let _ = (catalogue, query);
        Err(no_lists())
    }

    /// Returns the values of a field in `catalogue`.
    fn values_in(
        &self,
        catalogue: &Catalogue,
        query: &FieldValuesQuery,
    ) -> Result<FieldValues, Error> {
        let _ = (catalogue, query);
        Err(no_lists())
    }

    /// Returns the names of fields. Asked for where there is no catalogue.
    fn field_names(
        &self,
        details: &Forwarded,
        query: &FieldNamesQuery,
    ) -> Result<Exchange<FieldNames>, Error> {
        let _ = (details, query);
        Err(no_lists())
    }

    /// Returns the values of a field. Asked for where there is no catalogue.
    fn field_values(
        &self,
        details: &Forwarded,
        query: &FieldValuesQuery,
    ) -> Result<Exchange<FieldValues>, Error> {
        let _ = (details, query);
        Err(no_lists())
    }

    /// Returns whether lists of fields and values come whole, whatever prefix, offset and limit
    /// were asked for, and are to be cut to these here.
    fn lists_whole(&self) -> bool;

    /// Returns whether the backend speaks Prometheus' API: only then do [`Adapter::range`] and
    /// [`Adapter::pass`] have a result.
    fn speaks_promql(&self) -> bool {
        false
    }

    /// Returns the values of `expression` at its times in `range`, in parts that one call can carry
    /// each; in none, if there is no such time.
    fn range(
        &self,
        expression: &Expression,
        range: &TimeRange,
        limits: RangeLimits,
    ) -> Result<Vec<Part>, Error> {
        let _ = (expression, range, limits);
        Err(not_promql())
    }

    /// Returns an exchange whose answer is passed on. With `json` it must be JSON, as all answers of
    /// Prometheus' API are except those of remote read.
    ///
    /// An error that may pass is retried, and in the end holds what the upstream
    /// [`said`](Error::said). An error of the client is an answer.
    fn pass(&self, request: Request, json: bool) -> Result<Exchange<Passed>, Error> {
        let _ = (request, json);
        Err(not_promql())
    }
}

/// Returns the error for lists that a backend does not have in this way.
fn no_lists() -> Error {
    Error::new(
        Kind::Internal,
        "an upstream was asked for lists in another way than it has them",
    )
}

/// Returns the error of a backend that does not speak Prometheus' API.
pub(crate) fn not_promql() -> Error {
    let message = "the upstream does not speak the API of Prometheus";
    Error::new(Kind::PathNotFound, message)
}

/// An answer that is passed on.
#[derive(Clone, Debug)]
pub struct Passed {
    /// The answer.
    pub answer: Arc<RawResponse>,
    /// Set for a successful answer with nothing left out.
    pub complete: bool,
    /// Set if another replica filled a gap in it.
    pub filled: bool,
}

/// Where the points of a metric come from.
#[derive(Clone, Debug, PartialEq)]
pub enum Route {
    /// The backend is asked for them.
    Upstream,
    /// They are aggregated from raw points.
    RawPoints,
    /// They are made of summaries of samples.
    Summaries {
        /// The selector of the samples.
        selector: Selector,
        /// The treatment of a summary that is a point by itself.
        value: Statistic,
    },
}

/// A part of a range, and the period of the summaries that a backend keeps of it; `None` where it
/// keeps nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept {
    /// The part.
    pub range: TimeRange,
    /// The period of its summaries.
    pub period: Option<Step>,
}

/// The connection details that are passed on to a backend, as JSON in one spelling. They may hold
/// secrets, so they cannot be printed.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Forwarded(Option<Arc<str>>);

impl Forwarded {
    /// Returns `details` in their one spelling: a `Map` has its members in order.
    pub fn of(details: &Map<String, Value>) -> Self {
        Self((!details.is_empty()).then(|| Value::Object(details.clone()).to_string().into()))
    }

    /// Returns the details as members of an object.
    pub fn members(&self) -> Map<String, Value> {
        let text = self.0.as_deref();
        // The text was written from such a map.
        text.map_or_else(Map::new, |text| {
            serde_json::from_str(text).unwrap_or_default()
        })
    }

    /// Returns the bytes that they hold on the heap, about.
    pub fn heap_bytes(&self) -> usize {
        // An `Arc` has two counters of a word before the text.
        let text = self.0.as_ref();
        text.map_or(0, |text| heap_block(text.len() + 2 * size_of::<usize>()))
    }
}

/// A range of one lane's points to fetch. Its details may hold secrets, so it cannot be printed.
#[derive(Clone)]
pub struct Fetch {
    /// The series.
    pub selector: Selector,
    /// The field that holds the value.
    pub metric_field: Option<String>,
    /// Raw points, or buckets.
    pub layout: Layout,
    /// The range; on the bucket grid for buckets.
    pub range: TimeRange,
    /// The treatment of NaN.
    pub nan: NanInterpretation,
    /// Connection details to pass on.
    pub details: Forwarded,
}

/// The result of a [`Fetch`].
#[derive(Clone, Debug)]
pub struct FetchResult {
    /// The data in the requested range.
    pub data: Data,
    /// Buckets that do not fit the requested grid, unchanged; then `data` is empty.
    pub off_grid: Option<Vec<Bucket>>,
    /// Whether the answer is complete.
    pub complete: bool,
    /// Samples that the response held.
    pub received: u64,
    /// Samples that another replica had in gaps of the first.
    pub filled: u64,
    /// Samples that were left out, by reason.
    pub dropped: Dropped,
}

impl Default for FetchResult {
    fn default() -> Self {
        Self {
            data: Data::default(),
            off_grid: None,
            complete: true,
            received: 0,
            filled: 0,
            dropped: Dropped::default(),
        }
    }
}

/// Points or whole series, in order of time.
#[derive(Clone, Debug)]
pub enum Data {
    /// Points; of several series, ties in their order. Of buckets, a point has the time of its
    /// bucket's start.
    Points(Points),
    /// Series with labels.
    Matrix(LabeledSeries),
}

impl Data {
    /// Returns how many points or samples it has.
    pub fn len(&self) -> usize {
        match self {
            Self::Points(points) => points.len(),
            Self::Matrix(matrix) => {
                let samples = |s: &Series| s.values.len() + s.histograms.len();
                matrix.series.iter().map(samples).sum()
            }
        }
    }

    /// Returns whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Default for Data {
    fn default() -> Self {
        Self::Points(Points::new())
    }
}

/// The values of an expression at many times: per series, one sample per time.
#[derive(Clone, Debug, Default)]
pub struct LabeledSeries {
    /// In the order of their labels.
    pub series: Vec<Series>,
    /// The backend's annotations.
    pub annotations: Annotations,
}

/// Samples that were left out, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dropped {
    /// Not a number.
    pub nan: u64,
    /// Infinite.
    pub inf: u64,
    /// Outside the requested range.
    pub outside_range: u64,
    /// Native histograms.
    pub histogram: u64,
}

impl Dropped {
    /// Returns what a sample's value becomes: itself, 0 for a NaN that counts as 0, or nothing,
    /// counted.
    fn admit(&mut self, value: f64, nan: NanInterpretation) -> Option<f64> {
        if value.is_finite() {
            return Some(value);
        }
        if value.is_nan() {
            if nan == NanInterpretation::Zero {
                return Some(0.0);
            }
            self.nan += 1;
        } else {
            self.inf += 1;
        }
        None
    }
}

/// Returns the error for a response that is not what the protocol says: what is not JSON, or has a
/// server's error status, is from a gateway.
fn garbage(response: &Response, why: &str) -> Error {
    let status = response.status.as_u16();
    // A character has four bytes at most.
    let start = response.body.get(..480).unwrap_or(&response.body);
    let start = quoted(&String::from_utf8_lossy(start), 120);
    let why = quoted(why, SAID);
    let coding = response.headers.get(CONTENT_ENCODING);
    let coding = coding.map(|coding| quoted(&String::from_utf8_lossy(coding.as_bytes()), 50));
    let coded = coding.map_or_else(String::new, |coding| {
        format!(" with the Content-Encoding {coding}, which was not requested")
    });
    let message =
        format!("the upstream answered HTTP {status}{coded}: {why}; it starts \"{start}\"");
    let evidence = match response.status.is_server_error() {
        true => Evidence::Address,
        false if is_json(&response.body) => Evidence::Question,
        false => Evidence::Stranger,
    };
    Error::new(Kind::UpstreamFailed, message).shows(evidence)
}

/// Returns whether `body` is JSON.
fn is_json(body: &[u8]) -> bool {
    serde_json::from_slice::<serde::de::IgnoredAny>(body).is_ok()
}

/// Returns at most `longest` characters of `text`, on one line, with control characters escaped: it comes from a stranger.
pub(crate) fn quoted(text: &str, longest: usize) -> String {
    let mut quoted = String::with_capacity(text.len().min(longest));
    for (at, c) in text.chars().enumerate() {
        if at == longest {
            quoted.push('…');
            break;
        }
        match c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') {
            true => quoted.extend(c.escape_default()),
            false => quoted.push(c),
        }
    }
    quoted
}

/// Most characters of an upstream's text in an error.
const SAID: usize = 500;

/// Returns the error for a status that means "not now", if `response` has one.
fn busy(response: &Response) -> Option<Error> {
    let status = response.status;
    if status != StatusCode::TOO_MANY_REQUESTS && status != StatusCode::SERVICE_UNAVAILABLE {
        return None;
    }
    let message = format!("the upstream is at capacity (HTTP {})", status.as_u16());
    Some(Error::new(Kind::UpstreamBusy, message).retry_after(retry_after(response)))
}

/// Longest wait that is believed.
const LONGEST_WAIT: f64 = 86_400.0;

/// Returns the wait that `response` asks for: in seconds, or up to a date, which is by the clock
/// that the response's own `Date` is of.
fn retry_after(response: &Response) -> Option<Duration> {
    let asked = response.headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = asked.parse::<f64>() {
        return (seconds >= 0.0).then(|| Duration::from_secs_f64(seconds.min(LONGEST_WAIT)));
    }
    let until = httpdate::parse_http_date(asked).ok()?;
    let now = UNIX_EPOCH + Duration::from_millis(u64::try_from(date(response)?).ok()?);
    until.duration_since(now).ok()
}

/// Returns the time that `response` was given at, by its `Date`: whole seconds, rounded down.
pub(crate) fn date(response: &Response) -> Option<Millis> {
    let text = response.headers.get(DATE)?.to_str().ok()?;
    let date = httpdate::parse_http_date(text.trim()).ok()?;
    let since = date.duration_since(UNIX_EPOCH).ok()?;
    Millis::try_from(since.as_millis()).ok()
}
