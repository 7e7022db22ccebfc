//! Expressions (`~`): `SEARCH`, Metrics Insights, and metric math over them.

use std::sync::Arc;

use serde_json::json;

use super::ages::is_period;
use super::answer::{Page, is_bad_token, page};
use super::call::{body, exchange, object};
use super::names::unknown;
use crate::adapters::{Data, Dropped, Exchange, FetchResult, Next};
use crate::model::{
    Condition, Error, Kind, Millis, NanInterpretation, Points, Scalar, Selector, Step, Test,
    TimeRange,
};

/// The key of the condition that holds an expression.
pub(super) const EXPRESSION: &str = "~";

/// Most characters of an expression.
const LONGEST: usize = 2048;

/// Most pages that are read for one call, of 100,800 points each.
const MOST_PAGES: u32 = 16;

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
        Ok(Some(Self {
            period: period_of(text)?,
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

/// Returns the period that each `SEARCH` in `text` names, as the number after its last text.
fn period_of(text: &str) -> Result<Option<Step>, Error> {
    if !text.to_ascii_uppercase().contains("SEARCH") {
        return Ok(None);
    }
    let mut named: Option<Step> = None;
    // Every second piece lies between quotes.
    for after in text.split('\'').skip(2).step_by(2) {
        let number = after.trim_start().strip_prefix(',').map(str::trim_start);
        let digits = number.unwrap_or_default();
        let end = digits.bytes().take_while(u8::is_ascii_digit).count();
        let (digits, rest) = digits.split_at(end);
        if digits.is_empty() || !rest.trim_start().starts_with(')') {
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

/// A call for the values of an expression.
pub(super) struct ExpressionCall {
    pub(super) text: String,
    pub(super) period: Step,
    /// The range of the wanted points.
    pub(super) range: TimeRange,
    pub(super) nan: NanInterpretation,
    /// Set if several series are an error.
    pub(super) single: bool,
}

/// The series that the pages so far have.
#[derive(Clone, Default)]
struct Found {
    series: Vec<FoundSeries>,
    pages: u32,
    /// Set once they began again, as a token had expired.
    restarted: bool,
}

/// A series, which has its label in common with those that CloudWatch calls the same.
#[derive(Clone)]
struct FoundSeries {
    label: String,
    /// Its number among those of its label.
    number: usize,
    points: Vec<(Millis, f64)>,
    partial: bool,
}

impl Found {
    fn add(&mut self, page: Page) -> Result<(), Error> {
        if let Some(message) = page.messages.iter().find(|m| m.is_about_limits()) {
            let text = format!(
                "the expression finds more than CloudWatch returns ({message}): narrow it down"
            );
            return Err(Error::new(Kind::TooManyPoints, text));
        }
        self.pages += 1;
        let known = self.series.len();
        let mut labels: Vec<String> = Vec::new();
        for part in page.metric_data_results {
            if let Some(error) = part.refused() {
                return Err(error);
            }
            let number = labels.iter().filter(|label| **label == part.label).count();
            labels.push(part.label.clone());
            let partial = part.status_code == "PartialData";
            let points = part.points();
            // Pages name series in the same order.
            let same = |s: &&mut FoundSeries| s.number == number && s.label == part.label;
            match self.series.iter_mut().take(known).find(same) {
                Some(series) => {
                    series.points.extend(points);
                    series.partial = partial;
                }
                None => self.series.push(FoundSeries {
                    number,
                    points: points.collect(),
                    partial,
                    label: part.label,
                }),
            }
        }
        Ok(())
    }

    fn units(&self) -> u32 {
        u32::try_from(self.series.len()).unwrap_or(u32::MAX)
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
        // An expression that finds nothing is counted as one.
        let units = before.units().max(1);
        exchange("GetMetricData", &body, units, move |response| {
            if later && !before.restarted && is_bad_token(response) {
                let again = Found {
                    restarted: true,
                    ..Found::default()
                };
                return Ok(Next::More(self.clone().page(None, again)));
            }
            let page = page(response)?;
            let next = page.next_token.clone();
            let mut found = before.clone();
            found.add(page)?;
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
        })
    }

    fn result(&self, found: Found) -> Result<FetchResult, Error> {
        let mut result = FetchResult {
            series: found.units(),
            ..FetchResult::default()
        };
        let mut all = Vec::with_capacity(found.series.len());
        for series in found.series {
            result.received += series.points.len() as u64;
            result.complete &= !series.partial;
            let points = self.read(series, &mut result.dropped)?;
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

    /// Returns the points of `series` in the range, in order of time, one per period.
    fn read(&self, mut series: FoundSeries, dropped: &mut Dropped) -> Result<Points, Error> {
        let window = self.range.aligned(self.period);
        series.points.sort_by_key(|p| p.0);
        series.points.dedup_by_key(|p| p.0);
        let mut points = Points::with_capacity(series.points.len());
        for (time, value) in series.points {
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
        assert_eq!((result.series, result.received), (4, 6));
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
    fn what_an_answer_lacks_is_an_error_or_said() {
        let of = |single, parts: Value, messages: Value| {
            let body = json!({ "MetricDataResults": parts, "Messages": messages });
            match answered(&call(single), &body) {
                Ok(Next::Done(result)) => Ok(result),
                Ok(_) => panic!("another call"),
                Err(error) => Err(error.to_string()),
            }
        };
        let one = part("x", "Complete", &[(END - M5, 1.0)]);
        let two = json!([one, part("y", "Complete", &[(END - M5, 1.0)])]);
        let error = |result: Result<FetchResult, String>| result.unwrap_err();
        assert!(error(of(true, two.clone(), json!([]))).contains("has 2 series"));
        assert_eq!(of(false, two, json!([])).unwrap().series, 2);
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
        assert_eq!(of(false, json!([]), json!([])).unwrap().series, 0);
    }
}
