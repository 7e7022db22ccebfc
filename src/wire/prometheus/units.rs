//! Times and durations in the notation of Prometheus.

use std::fmt::Write as _;
use std::time::Duration;

use crate::model::{MAX_TIME, Millis, Step};

/// Nanoseconds, since the Unix epoch or as a duration.
pub(super) type Nanos = i128;

const SECOND: Nanos = 1_000_000_000;
const MILLI: Nanos = 1_000_000;

/// Parses a time in float seconds or RFC 3339; the error is in Prometheus' words. Times beyond the
/// year 9999 in either direction, infinity and NaN are refused.
/// past year 9999 on either side, infinity and the like, are refused.
///
/// The arithmetic is that of `parseTime` in `web/api/v1/api.go`, step by step: seconds are
/// rounded to the millisecond, RFC 3339 keeps its nanoseconds.
pub(super) fn read_time(text: &str) -> Result<Nanos, String> {
    let seconds = read_float(text).filter(|s| s.abs() <= (MAX_TIME / 1000) as f64);
    if let Some(seconds) = seconds {
        let rounded = (seconds.fract() * 1000.0).round() / 1000.0;
        return Ok(seconds.trunc() as Nanos * SECOND + (rounded * 1e9) as Nanos);
    }
    read_rfc3339(text)
        .ok_or_else(|| format!("cannot parse {} to a valid timestamp", go_quoted(text)))
}

/// Returns the millisecond of `time`; Prometheus evaluates in milliseconds.
pub(super) fn to_millis(time: Nanos) -> Millis {
    Millis::try_from(time.div_euclid(MILLI)).unwrap_or(MAX_TIME)
}

/// Parses a duration in float seconds or such as `1h30m` into nanoseconds; the error is in
/// Prometheus' words (`parseDuration` in `web/api/v1/api.go`).
pub(super) fn read_duration(text: &str) -> Result<Nanos, String> {
    if let Some(seconds) = read_float(text) {
        let nanos = seconds * 1e9;
        if nanos.abs() > i64::MAX as f64 {
            return Err(format!(
                "cannot parse {} to a valid duration. It overflows int64",
                go_quoted(text)
            ));
        }
        return Ok(nanos as Nanos);
    }
    read_units(text).ok_or_else(|| format!("cannot parse {} to a valid duration", go_quoted(text)))
}

/// Returns `nanos` as a duration; zero if it is negative.
pub(super) fn to_duration(nanos: Nanos) -> Duration {
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(0))
}

/// Returns `time` as seconds, exact to the millisecond.
pub fn write_time(time: Millis) -> String {
    let mut text = if time < 0 { "-" } else { "" }.to_owned();
    let (seconds, millis) = (time.unsigned_abs() / 1000, time.unsigned_abs() % 1000);
    // Writing to a string does not fail.
    let _ = match millis {
        0 => write!(text, "{seconds}"),
        _ => write!(text, "{seconds}.{millis:03}"),
    };
    text
}

/// Returns `step` in a form that Prometheus parses exactly. It does not parse float seconds
/// exactly: it truncates the product in nanoseconds, so `1.001` becomes slightly less.
pub(super) fn write_step(step: Step) -> String {
    match step.millis() % 1000 {
        0 => format!("{}", step.millis() / 1000),
        _ => format!("{}ms", step.millis()),
    }
}

/// Parses a finite decimal number.
fn read_float(text: &str) -> Option<f64> {
    let plain = |b: u8| b.is_ascii_digit() || b"+-.eE".contains(&b);
    text.bytes()
        .all(plain)
        .then(|| text.parse::<f64>().ok())
        .flatten()
        .filter(|f| f.is_finite() || text.bytes().any(|b| b == b'e' || b == b'E'))
}

/// Parses a time such as `2023-11-14T22:13:20.001+01:00`.
fn read_rfc3339(text: &str) -> Option<Nanos> {
    let (local, offset) = match text.strip_suffix('Z') {
        Some(local) => (local, 0),
        None => {
            let (local, zone) = text.split_at_checked(text.len().checked_sub(6)?)?;
            let (hours, minutes) = zone.get(1..)?.split_once(':')?;
            let two = |digits: &str| {
                let right = digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_digit());
                right.then(|| digits.parse::<Nanos>().ok()).flatten()
            };
            let minutes = two(hours)? * 60 + two(minutes)?;
            match zone.as_bytes().first()? {
                b'+' => (local, minutes * 60),
                b'-' => (local, -minutes * 60),
                _ => return None,
            }
        }
    };
    // Go accepts a comma before the fraction, but no leap second.
    let local = local.replacen(',', ".", 1);
    let leap = local.as_bytes().get(17..19) == Some(b"60");
    // humantime would accept a space for the T, and an empty fraction.
    if local.as_bytes().get(10) != Some(&b'T') || local.ends_with('.') || leap {
        return None;
    }
    // humantime has no times before 1970; the calendar repeats every 400 years.
    let (year, rest) = local.split_at_checked(4)?;
    let year = year.parse::<u16>().ok()?;
    let cycles = 1970_u16.saturating_sub(year).div_ceil(400);
    let later = format!("{:04}{rest}Z", year + cycles * 400);
    let time = humantime::parse_rfc3339(&later).ok()?;
    let since = time.duration_since(std::time::UNIX_EPOCH).ok()?;
    let since = Nanos::try_from(since.as_nanos()).ok()?;
    const CYCLE: Nanos = 146_097 * 86_400 * SECOND;
    Some(since - Nanos::from(cycles) * CYCLE - offset * SECOND)
}

/// Parses a duration such as `1y2w3d4h5m6s7ms`: units in that order, each at most once.
fn read_units(text: &str) -> Option<Nanos> {
    const UNITS: [(&str, Nanos); 7] = [
        ("y", 365 * 86_400 * SECOND),
        ("w", 7 * 86_400 * SECOND),
        ("d", 86_400 * SECOND),
        ("h", 3600 * SECOND),
        ("m", 60 * SECOND),
        ("s", SECOND),
        ("ms", MILLI),
    ];
    let (mut rest, mut total, mut units) = (text, 0_i128, UNITS.iter());
    if text.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, after) = rest.split_at_checked(digits)?;
        let letters = after.bytes().take_while(u8::is_ascii_alphabetic).count();
        let (name, after) = after.split_at_checked(letters)?;
        let (_, size) = units.find(|(unit, _)| *unit == name)?;
        let amount = number.parse::<i64>().ok()?;
        total = total.checked_add(Nanos::from(amount).checked_mul(*size)?)?;
        rest = after;
    }
    i64::try_from(total).ok().map(Nanos::from)
}

/// Returns `text` in quotes, as Go's `%q` writes it.
fn go_quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            '\x07' => quoted.push_str("\\a"),
            '\x08' => quoted.push_str("\\b"),
            '\x0c' => quoted.push_str("\\f"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            '\x0b' => quoted.push_str("\\v"),
            c if c.is_ascii_control() => {
                let _ = write!(quoted, "\\x{:02x}", u32::from(c));
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn millis(text: &str) -> Option<Millis> {
        read_time(text).ok().map(to_millis)
    }

    #[test]
    fn times_are_exact_to_the_millisecond() {
        let table = [
            ("1700000000", Some(1_700_000_000_000)),
            ("1700000000.001", Some(1_700_000_000_001)),
            ("1.7e9", Some(1_700_000_000_000)),
            ("1700000000.9996", Some(1_700_000_001_000)),
            ("1.0005", Some(1000)),
            ("1.0625", Some(1063)),
            ("-1.5", Some(-1500)),
            ("0", Some(0)),
            ("2023-11-14T22:13:20Z", Some(1_700_000_000_000)),
            ("1969-12-31T23:59:58.5Z", Some(-1500)),
            ("1600-02-29T00:00:00Z", Some(-11_670_998_400_000)),
            ("0001-01-01T00:00:00Z", Some(-62_135_596_800_000)),
            ("2023-11-14T22:13:20.0019Z", Some(1_700_000_000_001)),
            ("2023-11-14T23:13:20.25+01:00", Some(1_700_000_000_250)),
            ("2023-11-14T17:43:20-04:30", Some(1_700_000_000_000)),
            ("2023-11-14T22:13:20,25Z", Some(1_700_000_000_250)),
            ("2018-11-30T11:49:60Z", None),
            ("2018-11-30T11:49:60.5+01:00", None),
            ("2018-11-30T11:60:00Z", None),
            ("2018-11-30T24:00:00Z", None),
            ("2018-11-31T00:00:00Z", None),
            ("2018-02-29T00:00:00Z", None),
            ("2018-02-30T00:00:00Z", None),
            ("1500-02-29T00:00:00Z", None),
            ("2018-13-01T00:00:00Z", None),
            ("2018-01-00T00:00:00Z", None),
            ("2018-11-30T11:49:00z", None),
            ("2018-11-30T11:49Z", None),
            ("2018-11-30T11:49:00+0100", None),
            ("+2018-11-30T11:49:00Z", None),
            ("2023-11-14 22:13:20Z", None),
            ("2023-11-14T22:13:20", None),
            ("2023-11-14T22:13:20.Z", None),
            ("2023-11-14", None),
            ("éééééé", None),
            ("", None),
            ("-", None),
            ("NaN", None),
            ("inf", None),
            ("1e300", None),
        ];
        for (text, expected) in table {
            assert_eq!(millis(text), expected, "{text}");
        }
    }

    #[test]
    fn durations_are_read_as_by_the_origin() {
        let table = [
            ("15", Some(15 * SECOND)),
            ("0.5", Some(SECOND / 2)),
            // The result of the origin's multiplication.
            ("1.001", Some(SECOND + MILLI - 1)),
            ("1h30m", Some(5400 * SECOND)),
            ("1y2w3d4h5m6s7ms", Some(33_019_506_007 * MILLI)),
            ("500ms", Some(500 * MILLI)),
            ("-1", Some(-SECOND)),
            ("1s1h", None),
            ("1m1m", None),
            ("h", None),
            ("1", Some(SECOND)),
            ("1x", None),
            ("", None),
            ("300y", None),
            ("9223372036", Some(9_223_372_036 * SECOND)),
        ];
        for (text, expected) in table {
            assert_eq!(read_duration(text).ok(), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back_the_same(
            time in -10_000_000_000_000i64..10_000_000_000_000,
            step in 1i64..10_000_000_000,
        ) {
            prop_assert_eq!(millis(&write_time(time)), Some(time));
            let read = read_duration(&write_step(Step::new(step).unwrap()));
            prop_assert_eq!(read, Ok(Nanos::from(step) * MILLI));
        }

        #[test]
        fn any_text_is_read_without_a_panic(text in "[0-9a-zTZ:+.é-]{0,30}") {
            let _ = (read_time(&text), read_duration(&text));
        }
    }
}
