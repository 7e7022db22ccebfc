//! The points of another mirror's answer, read straight into columns.

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, SeqAccess, Visitor};

use crate::model::{Error, Kind, Millis};

/// Another mirror's answer to `/api/metric`: its points in columns of one length, in the order
/// that they came in.
#[derive(Clone, Debug, PartialEq)]
pub struct Telemetry {
    /// The times of points, or the starts of buckets.
    pub times: Vec<Millis>,
    /// Of buckets, when they end, which is after they start.
    pub ends: Option<Vec<Millis>>,
    /// Values; NaN where the mirror sent null.
    pub values: Vec<f64>,
    /// Whether the answer is truncated.
    pub partial: bool,
}

/// Reads another mirror's answer to `/api/metric`. Positions are taken from its `dataFormat`;
/// without one, from the order that the protocol uses.
pub fn read_metric(body: &[u8]) -> Result<Telemetry, Error> {
    let answer: MetricAnswer = serde_json::from_slice(body)
        .map_err(|e| bad(format!("the answer is not metric telemetry: {e}")))?;
    let Inner {
        points: PointColumns(mut columns),
        data_format,
        is_partial,
        tag,
    } = answer.telemetry;
    let width = columns.len();
    let aggregated = match &data_format {
        Some(names) => names.iter().any(|n| n == "startTimestamp"),
        None => tag.as_deref() == Some("AggregatedMetricTelemetry") || width == 3,
    };
    let usual: &[&str] = if aggregated {
        &["value", "startTimestamp", "endTimestamp"]
    } else {
        &["value", "timestamp"]
    };
    let names: Vec<&str> = match &data_format {
        Some(names) => names.iter().map(String::as_str).collect(),
        None => usual.to_vec(),
    };
    if width != 0 && width != names.len() {
        return Err(bad(format!(
            "telemetry.points: expected {} numbers a point as in dataFormat, found {width}",
            names.len(),
        )));
    }
    let mut column = |name: &str| {
        let at = names.iter().position(|n| *n == name);
        let at = at.ok_or_else(|| bad(format!("telemetry.dataFormat: {name:?} is missing")))?;
        // No columns if there are no points.
        Ok(columns.get_mut(at).map(std::mem::take).unwrap_or_default())
    };
    let values = column("value")?;
    let (times, ends) = if aggregated {
        let starts = times(&column("startTimestamp")?)?;
        let ends = times(&column("endTimestamp")?)?;
        if starts.iter().zip(&ends).any(|(start, end)| start >= end) {
            return Err(bad(
                "telemetry.points: a bucket ends before it starts".into()
            ));
        }
        (starts, Some(ends))
    } else {
        (times(&column("timestamp")?)?, None)
    };
    Ok(Telemetry {
        times,
        ends,
        values,
        partial: is_partial.unwrap_or(false),
    })
}

fn bad(message: String) -> Error {
    Error::new(Kind::InvalidRequest, message)
}

/// Timestamps that were read as numbers.
fn times(numbers: &[f64]) -> Result<Vec<Millis>, Error> {
    let time = |&number: &f64| {
        crate::wire::number::whole(number)
            .ok_or_else(|| bad(format!("telemetry.points: {number} is not a timestamp")))
    };
    numbers.iter().map(time).collect()
}

#[derive(Deserialize)]
struct MetricAnswer {
    telemetry: Inner,
}

#[derive(Deserialize)]
struct Inner {
    points: PointColumns,
    #[serde(rename = "dataFormat")]
    data_format: Option<Vec<String>>,
    #[serde(rename = "isPartial", default)]
    is_partial: Option<bool>,
    #[serde(rename = "_type")]
    tag: Option<String>,
}

/// One column for each position of a point; NaN stands for null. None if there are no points.
struct PointColumns(Vec<Vec<f64>>);

impl<'de> Deserialize<'de> for PointColumns {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Points;
        impl<'de> Visitor<'de> for Points {
            type Value = PointColumns;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an array of points")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut points: A) -> Result<PointColumns, A::Error> {
                let mut columns = Vec::new();
                if points.next_element_seed(First(&mut columns))?.is_some() {
                    while points.next_element_seed(Further(&mut columns))?.is_some() {}
                }
                Ok(PointColumns(columns))
            }
        }
        deserializer.deserialize_seq(Points)
    }
}

/// Most numbers that a point may have.
const WIDEST: usize = 8;

/// The first point, which tells how many columns there are.
struct First<'a>(&'a mut Vec<Vec<f64>>);

impl<'de> DeserializeSeed<'de> for First<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for First<'_> {
    type Value = ();
    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a point: an array of two or three numbers")
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut point: A) -> Result<(), A::Error> {
        while self.0.len() < WIDEST
            && let Some(cell) = point.next_element::<Option<f64>>()?
        {
            self.0.push(vec![cell.unwrap_or(f64::NAN)]);
        }
        if self.0.is_empty() || point.next_element::<IgnoredAny>()?.is_some() {
            return Err(A::Error::invalid_length(self.0.len(), &self));
        }
        Ok(())
    }
}

/// A point after the first.
struct Further<'a>(&'a mut [Vec<f64>]);

impl<'de> DeserializeSeed<'de> for Further<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Further<'_> {
    type Value = ();
    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a point: an array of numbers")
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut point: A) -> Result<(), A::Error> {
        let differ = || A::Error::custom("points differ in length");
        for column in self.0 {
            let cell: Option<f64> = point.next_element()?.ok_or_else(differ)?;
            column.push(cell.unwrap_or(f64::NAN));
        }
        if point.next_element::<IgnoredAny>()?.is_some() {
            return Err(differ());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(points: &str, rest: &str) -> Result<Telemetry, String> {
        let body = format!(r#"{{"telemetry":{{"points":{points}{rest}}}}}"#);
        read_metric(body.as_bytes()).map_err(|e| e.to_string())
    }

    #[test]
    fn positions_come_from_the_data_format() {
        let format = r#","dataFormat":["timestamp","unit","value"]"#;
        let found = read("[[5, 1, 2.5], [3.6, 1, null]]", format).unwrap();
        assert_eq!((found.times, found.ends), (vec![5, 4], None));
        assert!(found.values[0] == 2.5 && found.values[1].is_nan());
        let found = read("[[1, 10, 20], [2, 20, 30]]", "").unwrap();
        assert_eq!(found.times, [10, 20]);
        assert_eq!(found.ends, Some(vec![20, 30]));
        let found = read("[]", r#","isPartial":true"#).unwrap();
        assert!(found.times.is_empty() && found.values.is_empty() && found.partial);
    }

    #[test]
    fn what_is_no_telemetry_is_told() {
        let aggregated = r#","_type":"AggregatedMetricTelemetry""#;
        for (points, rest, why) in [
            ("[[1, 2], [1]]", "", "points differ in length"),
            ("[[1, 2], [1, 2, 3]]", "", "points differ in length"),
            ("[[1, 2], []]", "", "points differ in length"),
            ("[[]]", "", "invalid length 0"),
            ("[[1,2,3,4,5,6,7,8,9]]", "", "invalid length 8"),
            ("[[1]]", "", "expected 2 numbers a point"),
            ("[[1, 2]]", aggregated, "expected 3 numbers a point"),
            ("[[1, 1e300]]", "", "is not a timestamp"),
            ("[[1, null]]", "", "is not a timestamp"),
            ("[[1, 20, 20]]", "", "ends before it starts"),
            (
                "[[1, 2]]",
                r#","dataFormat":["value","at"]"#,
                "\"timestamp\" is missing",
            ),
            ("[[1, \"2\"]]", "", "not metric telemetry"),
            ("[1, 2]", "", "not metric telemetry"),
        ] {
            let error = read(points, rest).unwrap_err();
            assert!(error.contains(why), "{points} {rest}: {error}");
        }
    }
}
