//! Range queries passed on series by series, for the cached range queries of the Prometheus API.

use http::StatusCode;

use super::pass::said;
use super::replicas::{Asking, Spacing, TextSeries, ask};
use super::{MAX_STEPS, Prometheus, Steps, answer, check_calls, form, seconds, step_width, steps};
use crate::adapters::{
    Annotations, Data, FetchResult, LabeledSeries, Next, Part, PartCall, Response, garbage,
};
use crate::model::{Error, Expression, Kind, Millis, RangeLimits, Step, TimeRange};
use crate::wire::json::FirstStrings;
use crate::wire::prometheus::{Extras, Unread, most_labels, read_matrix};

impl Prometheus {
    /// Returns the values of `expression` at its times in `range`, in parts that one call can carry
    /// each; in none, if there is no such time.
    pub(super) fn query_range(
        &self,
        expression: &Expression,
        range: &TimeRange,
        limits: RangeLimits,
    ) -> Result<Vec<Part>, Error> {
        let (step, phase) = (expression.step, expression.phase);
        let per_call = match limits.span / step.millis() {
            _ if limits.span == 0 => MAX_STEPS,
            span => u32::try_from(span).map_or(MAX_STEPS, |n| n.clamp(1, MAX_STEPS)),
        };
        let lines = TimeRange::clamped(range.start() - phase, range.end() - phase);
        check_calls(&lines, step, per_call, expression.query.len(), "end")?;
        let parts = steps(&lines, step, phase, per_call).map(|steps| {
            let asked = TimeRange::clamped(steps.first, steps.last + 1);
            let mut request = request(expression, &steps);
            request.headers.extend(expression.headers.iter().cloned());
            Part {
                start: steps.first,
                call: PartCall::Alone(ask(Asking {
                    request,
                    read: Box::new(move |response| read(response, limits.series, &asked, step)),
                    done: Box::new(|series| Ok(Next::Done(result(series)))),
                    spacing: Spacing::steps(steps.first, steps.last, step),
                    labels: self.fill.clone(),
                })),
            }
        });
        Ok(parts.collect())
    }
}

fn request(expression: &Expression, steps: &Steps) -> crate::adapters::Request {
    let (first, last) = (seconds(steps.first), seconds(steps.last));
    let step = step_width(expression.step);
    let times = [
        ("query", &*expression.query),
        ("start", &first),
        ("end", &last),
        ("step", &step),
    ];
    let further = expression
        .parameters
        .iter()
        .map(|(n, v)| (n.as_str(), v.as_str()));
    form("/api/v1/query_range", times.into_iter().chain(further))
}

/// Reads the values at the times of `asked`.
fn read(
    response: &Response,
    most: usize,
    asked: &TimeRange,
    step: Step,
) -> Result<TextSeries, Error> {
    if response.status == StatusCode::PARTIAL_CONTENT {
        return Err(garbage(response, "a part of an answer"));
    }
    if !response.status.is_success() {
        let Some(mut error) = answer::spoken_error(response) else {
            answer::check(response)?;
            return Err(garbage(response, "neither an answer nor an error"));
        };
        error.said = said(response);
        return Err(error);
    }
    // Its text is passed on unchanged.
    if std::str::from_utf8(&response.body).is_err() {
        return Err(garbage(response, "not UTF-8"));
    }
    let matrix = read_matrix(&response.body, most).map_err(|unread| match unread {
        Unread::TooManySeries => {
            let message = format!("the answer has more than {most} series (max_series)");
            Error::new(Kind::TooManyPoints, message)
        }
        Unread::TooManyLabels => {
            let labels = most_labels(most);
            let message = format!("the answer has more than {labels} labels (max_series)");
            Error::new(Kind::TooManyPoints, message)
        }
        // An error with a status of success has a message that is better than ours.
        Unread::NotAMatrix => match answer::check(response) {
            Ok(()) => garbage(response, "not a matrix"),
            Err(said) => said,
        },
        other => garbage(response, &other.to_string()),
    })?;
    let tracks = || {
        let tracks = matrix.series.iter();
        tracks.flat_map(|s| [&s.values, &s.histograms])
    };
    let on_grid_of = |range: &TimeRange| {
        let on_grid = |t: &Millis| range.holds(*t) && (t - range.start()) % step.millis() == 0;
        tracks().all(|track| track.times().iter().all(on_grid))
    };
    if !on_grid_of(asked) {
        let last = step.floor(asked.end() - 1);
        let aligned = TimeRange::clamped(step.floor(asked.start()), last + 1);
        let kind = match on_grid_of(&aligned) {
            true => Kind::TimesAligned,
            false => Kind::UpstreamFailed,
        };
        let message = "the upstream answered at times that were not requested";
        return Err(Error::new(kind, message));
    }
    let annotations = Annotations::of(&matrix.extras);
    Ok(TextSeries {
        complete: is_complete(&matrix.extras),
        series: matrix.series,
        annotations,
        filled: 0,
    })
}

/// Returns the result that `answer` is.
fn result(answer: TextSeries) -> FetchResult {
    let data = Data::Matrix(LabeledSeries {
        series: answer.series,
        annotations: answer.annotations,
    });
    FetchResult {
        received: data.len() as u64,
        data,
        complete: answer.complete,
        filled: answer.filled,
        ..FetchResult::default()
    }
}

impl Annotations {
    /// Returns the remarks of an answer with these further members.
    pub(crate) fn of(extras: &Extras) -> Self {
        let list = |name| {
            let mut list = listed(extras, name).unwrap_or_default().strings;
            list.sort();
            list.dedup();
            list
        };
        Self {
            warnings: list("warnings"),
            infos: list("infos"),
            partial: says_partial(extras),
        }
    }
}

/// Returns the list `name` of an answer, or nothing if it cannot be read.
fn listed(extras: &Extras, name: &str) -> Option<FirstStrings<1000>> {
    let Some(json) = extras.get(name) else {
        return Some(FirstStrings::default());
    };
    let list: Option<_> = serde_json::from_slice(json).ok()?;
    Some(list.unwrap_or_default())
}

/// Returns whether nothing is missing: remarks on the style of a query, which Prometheus 2.4x to
/// 2.5x sends among its warnings, say nothing about its data. What cannot be read may say that something is.
fn is_complete(extras: &Extras) -> bool {
    let remark = |warning: &String| warning.starts_with("PromQL info");
    let harmless = |list: FirstStrings<1000>| !list.more && list.strings.iter().all(remark);
    !says_partial(extras) && listed(extras, "warnings").is_some_and(harmless)
}

fn says_partial(extras: &Extras) -> bool {
    let said = extras.get("isPartial");
    said.is_some_and(|json| !matches!(&json[..], b"false" | b"null"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_that_cannot_be_read_make_an_answer_incomplete() {
        let complete = |name: &str, json: &str| {
            let top = vec![(name.to_owned(), json.to_owned().into())];
            let extras = Extras {
                data: Vec::new(),
                top,
            };
            is_complete(&extras)
        };
        let many = format!("[{}\"store away\"]", "\"PromQL info\",".repeat(1000));
        for json in ["[null]", "\"store away\"", "{}", "1", "[\"a\",1]", &many] {
            assert!(!complete("warnings", json), "{json}");
        }
        for json in ["null", "[]", "[\"PromQL info: x\"]"] {
            assert!(complete("warnings", json), "{json}");
        }
        assert!(complete("infos", "[null]"));
        for (json, expected) in [
            ("true", false),
            ("\"true\"", false),
            ("1", false),
            ("false", true),
            ("null", true),
        ] {
            assert_eq!(complete("isPartial", json), expected, "{json}");
        }
    }
}
