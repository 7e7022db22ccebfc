//! Expressions (`~`): `SEARCH`, Metrics Insights, and metric math over them.

use std::sync::Arc;

use serde_json::json;

use super::ages::is_period;
use super::answer::{Page, is_bad_token, page};
use super::call::{body, exchange, object};
use super::names::unknown;
use super::window;
use crate::adapters::{Bill, Data, Dropped, Exchange, FetchResult, Next};
use crate::model::{
    Condition, Error, Kind, Millis, NanInterpretation, Points, Scalar, Selector, Step, Test,
    TimeRange,
};

/// The key of the condition that holds an expression.
pub(super) const EXPRESSION: &str = "~";

/// Most characters of an expression.
const LONGEST: usize = 2048;

/// Most pages that are read for one call, of 100,800 points each. The points of earlier pages, 26 MB by this
/// bound, are not charged while the next is read: a call that kept its share of the memory for answers could
/// wait for itself.
const MOST_PAGES: u32 = 16;

/// Most series of an expression. CloudWatch returns 500 for each of its searches.
const MOST_SERIES: usize = 5_000;

/// An expression, which brings any number of series.
#[derive(Debug, PartialEq)]
pub(super) struct Expression {
    pub(super) text: String,
    /// The period that its `SEARCH` names.
    pub(super) period: Option<Step>,
}

impl Expression {
    /// Reads the expression of `selector`, if it has one, as an upstream in `region` understands it.
    pub(super) fn read(selector: &Selector, region: &str) -> Result<Option<Self>, Error> {
        let conditions = selector.conditions();
        let Some(condition) = conditions.iter().find(|c| c.key == EXPRESSION) else {
            return Ok(None);
        };
        let Test::Is(Scalar::String(text)) = &condition.test else {
            return Err(unknown(
                "the condition \"~\" must hold one expression of CloudWatch as a string",
            ));
        };
        let is_ours = |c: &Condition| {
            let values = c.test.values().iter();
            c.key == "Region" && values.map(Scalar::to_string).any(|v| v == region)
        };
        let mut others = conditions.iter().filter(|c| c.key != EXPRESSION);
        if let Some(other) = others.find(|c| !is_ours(c)) {
            return Err(unknown(format!(
                "with the condition \"~\" only Region can be named, as {region}, not {}: put namespace and dimensions into the expression",
                other.key
            )));
        }
        let text = text.trim();
        if text.is_empty() || text.chars().count() > LONGEST {
            return Err(unknown(format!(
                "the condition \"~\" must hold an expression of 1 to {LONGEST} characters"
            )));
        }
        let bare = without_texts(text).to_ascii_uppercase();
        window::check(&bare)?;
        Ok(Some(Self {
            period: period_of(&bare)?,
            text: text.to_owned(),
        }))
    }

    /// Returns the conditions in the spelling that all equivalent queries share.
    pub(super) fn canonical(self) -> Selector {
        Selector::new(vec![Condition {
            key: EXPRESSION.to_owned(),
            test: Test::Is(Scalar::String(self.text)),
        }])
    }
}

/// Returns the period that each `SEARCH` in `bare` names, as the third of its arguments: the expression
/// without quoted texts, in capital letters.
fn period_of(bare: &str) -> Result<Option<Step>, Error> {
    let mut named: Option<Step> = None;
    for after in bare.split("SEARCH").skip(1) {
        let arguments = after.trim_start().strip_prefix('(').unwrap_or_default();
        let arguments = arguments.split_once(')').map_or("", |(inside, _)| inside);
        let digits = arguments.split(',').nth(2).unwrap_or_default().trim();
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
            continue;
        }
        let millis = digits.parse::<Millis>().ok();
        let millis = millis.and_then(|seconds| seconds.checked_mul(1000));
        let period = millis.and_then(Step::new).filter(|p| is_period(*p));
        let period = period.ok_or_else(|| {
            unknown(format!(
                "the period of SEARCH must be 1, 5, 10, 20, 30 or a multiple of 60 seconds, not {digits}"
            ))
        })?;
        if named.is_some_and(|other| other != period) {
            return Err(unknown(
                "all SEARCHes of an expression need the same period",
            ));
        }
        named = Some(period);
    }
    Ok(named)
}

/// Returns `expression` without what lies between quotes, of which a backslash escapes one.
fn without_texts(expression: &str) -> String {
    let mut bare = String::with_capacity(expression.len());
    let mut characters = expression.chars();
    while let Some(quote) = characters.next() {
        if !matches!(quote, '\'' | '"') {
            bare.push(quote);
            continue;
        }
        while let Some(c) = characters.next() {
            match c {
                '\\' => drop(characters.next()),
                c if c == quote => break,
                _ => {}
            }
        }
    }
    bare
}

/// A call for the values of an expression.
pub(super) struct ExpressionCall {
    pub(super) text: String,
    pub(super) period: Step,
    /// The range of the wanted points.
    pub(super) range: TimeRange,
    pub(super) nan: NanInterpretation,
    /// Set if several series are an error.
    pub(super) single: bool,
    pub(super) bill: Arc<Bill>,
}

/// The series that the pages so far have.
#[derive(Clone, Default)]
struct Found {
    series: Vec<FoundSeries>,
    pages: u32,
    /// Set once they began again, as a token had expired.
    restarted: bool,
    /// The units of the pages before they began again.
    units_before: u32,
}

/// A series, which may have its label in common with others.
#[derive(Clone)]
struct FoundSeries {
    label: Arc<str>,
    /// Its points, page by page.
    pieces: Vec<Arc<[(Millis, f64)]>>,
    /// The time of its last point.
    last: Option<Millis>,
    partial: bool,
}

impl Found {
    /// Adds the series of `page`, and returns the error that it has beside them or in place of one.
    fn add(&mut self, page: Page) -> Result<(), Error> {
        self.pages += 1;
        let mut refused = None;
        let mut continued = vec![false; self.series.len()];
        for part in page.metric_data_results {
            refused = refused.or_else(|| part.refused());
            let partial = part.status_code == "PartialData";
            let piece: Arc<[(Millis, f64)]> = part.points().collect();
            let times = || piece.iter().map(|p| p.0);
            let (first, last) = (times().min(), times().max());
            // Pages name series in the same order, and each has points in order of time.
            let follows = |(series, continued): &(&mut FoundSeries, &mut bool)| {
                !**continued
                    && *series.label == *part.label
                    && first.is_none_or(|first| series.last < Some(first))
            };
            let full = self.series.len() >= MOST_SERIES;
            match self.series.iter_mut().zip(&mut continued).find(follows) {
                Some((series, continued)) => {
                    *continued = true;
                    series.pieces.push(piece);
                    series.last = series.last.max(last);
                    series.partial = partial;
                }
                None if full => {
                    let message = format!(
                        "the expression has more than {MOST_SERIES} series: narrow it down"
                    );
                    return Err(Error::new(Kind::TooManyPoints, message));
                }
                None => self.series.push(FoundSeries {
                    label: part.label.into(),
                    pieces: vec![piece],
                    last,
                    partial,
                }),
            }
        }
        if let Some(message) = page.messages.iter().find(|m| m.is_about_limits()) {
            let text = format!(
                "the expression finds more than CloudWatch returns ({message}): narrow it down"
            );
            return Err(Error::new(Kind::TooManyPoints, text));
        }
        refused.map_or(Ok(()), Err)
    }

    /// Returns the units that the last page is billed as. An expression that finds nothing is counted
    /// as one.
    fn units(&self) -> u32 {
        let series = u32::try_from(self.series.len()).unwrap_or(u32::MAX);
        series.max(self.units_before).max(1)
    }
}

impl ExpressionCall {
    /// Returns the exchange for all of its pages.
    pub(super) fn exchange(self) -> Exchange<FetchResult> {
        Arc::new(self).page(None, Found::default())
    }

    fn page(self: Arc<Self>, token: Option<&str>, before: Found) -> Exchange<FetchResult> {
        let query = object([
            ("Id", Some(json!("q0"))),
            ("Expression", Some(json!(self.text))),
            ("Period", Some(json!(self.period.millis() / 1000))),
            ("ReturnData", Some(json!(true))),
        ]);
        // Periods are counted from the start.
        let window = self.range.aligned(self.period);
        let body = body(&[query], &window, token);
        let later = token.is_some();
        let (units, bill) = (before.units(), self.bill.clone());
        let exchange = exchange("GetMetricData", &body, units, move |response| {
            if later && !before.restarted && is_bad_token(response) {
                let again = Found {
                    restarted: true,
                    units_before: units,
                    ..Found::default()
                };
                return Ok(Next::More(self.clone().page(None, again)));
            }
            let page = page(response)?;
            let next = page.next_token.clone();
            let mut found = before.clone();
            let added = found.add(page);
            self.bill.add(found.units());
            added?;
            match next {
                None => self.result(found).map(Next::Done),
                Some(token) if found.pages < MOST_PAGES => {
                    Ok(Next::More(self.clone().page(Some(&token), found)))
                }
                Some(_) => {
                    let message = format!(
                        "the expression has more points than {MOST_PAGES} pages hold: ask for a shorter range, or narrow it down"
                    );
                    Err(Error::new(Kind::TooManyPoints, message))
                }
            }
        });
        Exchange {
            bill: Some(bill),
            ..exchange
        }
    }

    fn result(&self, found: Found) -> Result<FetchResult, Error> {
        let mut result = FetchResult::default();
        let mut all = Vec::with_capacity(found.series.len());
        for series in found.series {
            result.complete &= !series.partial;
            let points: Vec<_> = series
                .pieces
                .iter()
                .flat_map(|p| p.iter().copied())
                .collect();
            result.received += points.len() as u64;
            let points = self.read(points, &mut result.dropped)?;
            if !points.is_empty() {
                all.push(points);
            }
        }
        if self.single && all.len() > 1 {
            return Err(unknown(format!(
                "the expression has {} series; one is allowed (multi_series = \"error\"): put SUM(…), AVG(…), MAX(…) or MIN(…) around it",
                all.len()
            )));
        }
        result.data = Data::Points(Points::merged(all));
        Ok(result)
    }

    /// Returns those of `found` that lie in the range, in order of time, one per period.
    fn read(&self, mut found: Vec<(Millis, f64)>, dropped: &mut Dropped) -> Result<Points, Error> {
        let window = self.range.aligned(self.period);
        found.sort_by_key(|p| p.0);
        found.dedup_by_key(|p| p.0);
        let mut points = Points::with_capacity(found.len());
        for (time, value) in found {
            if self.period.floor(time) != time {
                let message = "CloudWatch answered at times that were not requested";
                return Err(Error::new(Kind::UpstreamFailed, message));
            }
            if !self.range.holds(time) {
                dropped.outside_range += u64::from(!window.holds(time));
            } else if let Some(value) = dropped.admit(value, self.nan) {
                points.push(time, value);
            }
        }
        Ok(points)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::{HeaderMap, StatusCode};
    use serde_json::Value;

    use super::*;
    use crate::adapters::Response;

    const HOUR: Millis = 3_600_000;
    /// A whole hour.
    const END: Millis = 497_222 * HOUR;

    fn read(pairs: &[(&str, &str)]) -> Result<Option<Expression>, String> {
        let is = |(key, value): &(&str, &str)| Condition {
            key: (*key).to_owned(),
            test: Test::Is(Scalar::String((*value).to_owned())),
        };
        let selector = Selector::new(pairs.iter().map(is).collect());
        Expression::read(&selector, "eu-west-1").map_err(|e| e.to_string())
    }

    #[test]
    fn the_period_of_a_search_is_found() {
        let seconds = |text: &str| {
            let read = read(&[("~", text)])?.map(|e| e.period.map(|p| p.millis() / 1000));
            Ok::<_, String>(read.flatten())
        };
        for (text, expected) in [
            ("SEARCH('{AWS/EC2,InstanceId} CPU', 'Average')", None),
            (
                "SEARCH('{AWS/EC2,InstanceId} CPU', 'Average', 300)",
                Some(300),
            ),
            (
                "sum(search(' {A,B} MetricName=\"x\" ' , 'p99' ,60 ) ) * 100",
                Some(60),
            ),
            (
                "SUM(SEARCH('a', 'Sum', 60)) / SUM(SEARCH('b', 'Sum', 60))",
                Some(60),
            ),
            ("FILL(SEARCH('a', 'Sum'), 0)", None),
            ("LAMBDA('search-x', 'a', 61)", None),
            ("IF(SEARCH('a, (b', 'Sum') > 0, 'c', 61)", None),
            (r"SEARCH('it\'s', 'Sum', 60)", Some(60)),
            (r"SEARCH('it\'s', 'Sum') + LAMBDA('a', 'b', 61)", None),
            (
                "SELECT AVG(x) FROM SCHEMA(\"N\", A) WHERE A IN ('1', 7)",
                None,
            ),
        ] {
            assert_eq!(seconds(text), Ok(expected), "{text}");
        }
        for (text, expected) in [
            ("SEARCH('a', 'Sum', 61)", "not 61"),
            ("SEARCH('a', 'Sum', 0)", "not 0"),
            ("SEARCH('a', 'Sum', 99999999999999999999)", "not 9999"),
            (
                "SEARCH('a', 'Sum', 60) + SEARCH('b', 'Sum', 300)",
                "the same period",
            ),
        ] {
            let error = seconds(text).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn an_expression_stands_alone() {
        assert_eq!(read(&[("Namespace", "AWS/EC2")]), Ok(None));
        let both = read(&[("~", " SELECT 1 "), ("Region", "eu-west-1")]);
        assert_eq!(both.unwrap().unwrap().text, "SELECT 1");
        for (pairs, expected) in [
            (vec![("~", "x"), ("Region", "us-east-1")], "not Region"),
            (vec![("~", "x"), ("Namespace", "AWS/EC2")], "not Namespace"),
            (vec![("~", "  ")], "1 to 2048"),
            (vec![("~", &*"x".repeat(2049))], "1 to 2048"),
        ] {
            let error = read(&pairs).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }

    fn call(single: bool) -> Exchange<FetchResult> {
        ExpressionCall {
            text: "SEARCH('a', 'Sum')".into(),
            period: Step::new(300_000).unwrap(),
            // Not on the grid of its period.
            range: TimeRange::clamped(END - HOUR + 1000, END - 1000),
            nan: NanInterpretation::Omit,
            single,
            bill: Arc::default(),
        }
        .exchange()
    }

    fn answered(call: &Exchange<FetchResult>, body: &Value) -> Result<Next<FetchResult>, Error> {
        (call.read)(&Response {
            status: StatusCode::OK,
            headers: HeaderMap::new(),
            body: Bytes::from(body.to_string()),
        })
    }

    fn part(label: &str, status: &str, points: &[(Millis, f64)]) -> Value {
        json!({
            "Id": "q0", "Label": label, "StatusCode": status,
            "Timestamps": points.iter().map(|p| p.0 / 1000).collect::<Vec<_>>(),
            "Values": points.iter().map(|p| p.1).collect::<Vec<_>>(),
        })
    }

    const M5: Millis = 300_000;

    #[test]
    fn series_of_one_label_stay_apart_over_pages() {
        let first = call(false);
        let asked: Value = serde_json::from_slice(&first.request.body).unwrap();
        assert_eq!(asked["StartTime"], (END - HOUR) / 1000);
        assert_eq!(asked["EndTime"], END / 1000);
        let query = json!([{
            "Id": "q0", "Expression": "SEARCH('a', 'Sum')", "Period": 300, "ReturnData": true,
        }]);
        assert_eq!(asked["MetricDataQueries"], query);
        assert_eq!(first.request.units, 1);
        let page = json!({
            "MetricDataResults": [
                part("x", "PartialData", &[(END - HOUR, 9.0), (END - HOUR + M5, 1.0)]),
                part("x", "PartialData", &[(END - HOUR + M5, 2.0)]),
                part("y", "Complete", &[]),
            ],
            "NextToken": "t",
        });
        let Ok(Next::More(second)) = answered(&first, &page) else {
            panic!("another page");
        };
        assert_eq!(second.request.units, 3);
        let page = json!({ "MetricDataResults": [
            part("x", "Complete", &[(END - M5, 3.0)]),
            part("x", "Complete", &[(END - M5, 4.0)]),
            part("z", "Complete", &[(END - M5, 5.0)]),
        ] });
        let Ok(Next::Done(result)) = answered(&second, &page) else {
            panic!("no other page");
        };
        assert!(result.complete);
        assert_eq!(result.received, 6);
        // Two pages, of 3 and of 4 series.
        let bill = second.bill.unwrap();
        assert_eq!((bill.take(), bill.last()), (7, Some(4)));
        let Data::Points(points) = result.data else {
            panic!("points");
        };
        let times = [
            END - HOUR + M5,
            END - HOUR + M5,
            END - M5,
            END - M5,
            END - M5,
        ];
        assert_eq!(points.times(), times);
        assert_eq!(points.values(), [1.0, 2.0, 3.0, 4.0, 5.0]);
    }

    #[test]
    fn a_page_may_omit_a_series_whose_label_another_has() {
        let first = call(false);
        let early = (END - HOUR + M5, 2.0);
        let page = json!({
            "MetricDataResults": [
                part("x", "Complete", &[(END - HOUR + M5, 1.0), (END - M5, 1.0)]),
                part("x", "PartialData", &[early]),
            ],
            "NextToken": "t",
        });
        let Ok(Next::More(second)) = answered(&first, &page) else {
            panic!("another page");
        };
        let page = json!({ "MetricDataResults": [part("x", "Complete", &[(END - M5, 2.0)])] });
        let Ok(Next::Done(result)) = answered(&second, &page) else {
            panic!("no other page");
        };
        assert!(result.complete);
        let Data::Points(points) = result.data else {
            panic!("points");
        };
        assert_eq!(points.values(), [1.0, 2.0, 1.0, 2.0]);
    }

    #[test]
    fn an_answer_of_series_without_end_is_refused() {
        let many = |n: usize| {
            let parts: Vec<Value> = (0..n)
                .map(|_| part("x", "Complete", &[(END - M5, 1.0)]))
                .collect();
            answered(&call(false), &json!({ "MetricDataResults": parts }))
        };
        assert!(many(MOST_SERIES).is_ok());
        let error = many(MOST_SERIES + 1).err().unwrap();
        assert_eq!(error.kind, Kind::TooManyPoints);
    }

    #[test]
    fn a_call_that_begins_again_counts_as_many_units_as_before() {
        let parts: Vec<Value> = (0..300)
            .map(|n| part(&format!("s{n}"), "PartialData", &[(END - HOUR + M5, 1.0)]))
            .collect();
        let page = json!({ "MetricDataResults": parts, "NextToken": "t" });
        let Ok(Next::More(second)) = answered(&call(false), &page) else {
            panic!("another page");
        };
        let bill = second.bill.clone().unwrap();
        assert_eq!((second.request.units, bill.take()), (300, 300));
        let expired = Response {
            status: StatusCode::BAD_REQUEST,
            headers: HeaderMap::new(),
            body: Bytes::from(r#"{"__type":"InvalidNextToken","message":"expired"}"#),
        };
        let Ok(Next::More(again)) = (second.read)(&expired) else {
            panic!("the first page again");
        };
        assert_eq!((again.request.units, bill.take()), (300, 0));
        let Ok(Next::More(_)) = answered(&again, &page) else {
            panic!("another page");
        };
        assert_eq!((bill.take(), bill.last()), (300, Some(300)));
    }

    #[test]
    fn what_an_answer_lacks_is_an_error_or_said() {
        let of = |single, parts: Value, messages: Value| {
            let body = json!({ "MetricDataResults": parts, "Messages": messages });
            let call = call(single);
            let outcome = answered(&call, &body);
            // Whatever is wrong with an answer, it is billed.
            let series = body["MetricDataResults"].as_array().unwrap().len() as u32;
            assert_eq!(call.bill.unwrap().last(), Some(series.max(1)));
            match outcome {
                Ok(Next::Done(result)) => Ok(result),
                Ok(_) => panic!("another call"),
                Err(error) => Err(error.to_string()),
            }
        };
        let one = part("x", "Complete", &[(END - M5, 1.0)]);
        let two = json!([one, part("y", "Complete", &[(END - M5, 1.0)])]);
        let error = |result: Result<FetchResult, String>| result.unwrap_err();
        assert!(error(of(true, two.clone(), json!([]))).contains("has 2 series"));
        assert_eq!(of(false, two, json!([])).unwrap().received, 2);
        assert!(of(true, json!([one, part("y", "Complete", &[])]), json!([])).is_ok());
        let many = json!([{
            "Code": "MaxMetricsExceeded", "Value": "The maximum number of allowed metrics, 500, was exceeded",
        }]);
        assert!(error(of(false, json!([one]), many)).contains("narrow it down"));
        let off = json!([part("x", "Complete", &[(END - M5 + 60_000, 1.0)])]);
        assert!(error(of(false, off, json!([]))).contains("not requested"));
        let failed = json!([part("x", "InternalError", &[])]);
        assert!(error(of(false, failed, json!([]))).contains("CloudWatch failed"));
        let cut = json!([part("x", "PartialData", &[(END - M5, 1.0)])]);
        assert!(!of(false, cut, json!([])).unwrap().complete);
        assert!(of(false, json!([]), json!([])).unwrap().data.is_empty());
    }
}
