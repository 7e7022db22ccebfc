//! Expressions of PromQL: their requests and answers.

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

use super::query::NamedSeries;
use super::view::PlotRow;
use crate::model::{Millis, Step, TimeRange};

/// Returns the path, with its query string, of a range query for `expression` to `upstream`. Start
/// and end are multiples of `step`, so that the answer can be shared.
pub(super) fn path(
    upstream: Option<&str>,
    expression: &str,
    range: &TimeRange,
    step: Step,
) -> String {
    let encoded = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    let seconds = |millis: Millis| millis as f64 / 1000.0;
    let on_grid = |t: Millis| seconds(t - t.rem_euclid(step.millis()));
    let below = match upstream {
        Some(name) => format!("/prometheus/{}", encoded(name)),
        None => String::new(),
    };
    format!(
        "{below}/api/v1/query_range?query={}&start={}&end={}&step={}",
        encoded(expression),
        on_grid(range.start()),
        on_grid(range.end()),
        seconds(step.millis()),
    )
}

/// Reads the series of the answer to a range query.
pub(super) fn read(body: &[u8]) -> Result<NamedSeries, String> {
    let unreadable = || "the answer is not one to a range query".to_owned();
    let answer: Value = serde_json::from_slice(body).map_err(|_| unreadable())?;
    let result = answer.pointer("/data/result").and_then(Value::as_array);
    let one = |series: &Value| -> Option<(String, Vec<PlotRow>)> {
        let values = series.get("values").and_then(Value::as_array);
        let row = |pair: &Value| {
            let time = pair.get(0)?.as_f64()?;
            Some(PlotRow {
                start: (time * 1000.0).round() as Millis,
                end: None,
                value: pair.get(1)?.as_str()?.parse().ok()?,
            })
        };
        let rows = values
            .into_iter()
            .flatten()
            .map(row)
            .collect::<Option<_>>()?;
        Some((name(series.get("metric")?), rows))
    };
    let series = result.ok_or_else(unreadable)?.iter().map(one);
    series.collect::<Option<_>>().ok_or_else(unreadable)
}

/// Returns labels as Prometheus writes them.
fn name(labels: &Value) -> String {
    let labels = labels.as_object().into_iter().flatten();
    let mut metric = "";
    let mut others = Vec::new();
    for (label, value) in labels {
        let value = value.as_str().unwrap_or_default();
        match label.as_str() {
            "__name__" => metric = value,
            _ => others.push(format!("{label}={value:?}")),
        }
    }
    match others.is_empty() && !metric.is_empty() {
        true => metric.to_owned(),
        false => format!("{metric}{{{}}}", others.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_query_is_on_the_grid_of_its_step() {
        let range = TimeRange::new(1_000_123, 1_600_123).unwrap();
        let step = Step::new(15_000).unwrap();
        assert_eq!(
            path(Some("p"), "up{a=\"b\"}", &range, step),
            "/prometheus/p/api/v1/query_range?query=up%7Ba%3D%22b%22%7D&start=990&end=1590&step=15"
        );
        assert!(path(None, "up", &range, step).starts_with("/api/v1/query_range?query=up&"));
    }

    #[test]
    fn series_are_named_by_their_labels() {
        let body = br#"{"status":"success","data":{"resultType":"matrix","result":[
            {"metric":{"__name__":"up","job":"a"},"values":[[1.5,"2"],[3,"+Inf"]]},
            {"metric":{},"values":[]}]}}"#;
        let series = read(body).unwrap();
        assert_eq!(series[0].0, "up{job=\"a\"}");
        assert_eq!(series[0].1[0].start, 1500);
        assert_eq!(series[0].1[1].value, f64::INFINITY);
        assert_eq!(series[1], ("{}".to_owned(), Vec::new()));
        for wrong in ["", "{}", r#"{"data":{"result":[{"values":[["x","1"]]}]}}"#] {
            assert!(read(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }
}
