//! Parses and formats times and durations. All times are UTC.

use std::time::{Duration, UNIX_EPOCH};

use crate::model::{MAX_TIME, Millis, Step};

/// Whole numbers from here on are milliseconds, smaller ones are seconds: this is 1973 in
/// milliseconds and the year 5138 in seconds.
const FIRST_MILLIS: Millis = 100_000_000_000;

const SECOND: Millis = 1000;
pub(super) const MINUTE: Millis = 60 * SECOND;
pub(super) const HOUR: Millis = 60 * MINUTE;
pub(super) const DAY: Millis = 24 * HOUR;
const YEAR: Millis = 365 * DAY;

/// Round distances between ticks of a time axis.
#[rustfmt::skip]
const TIME_STEPS: [Millis; 41] = [
    1, 2, 5, 10, 20, 50, 100, 200, 500,
    SECOND, 2 * SECOND, 5 * SECOND, 10 * SECOND, 15 * SECOND, 30 * SECOND,
    MINUTE, 2 * MINUTE, 5 * MINUTE, 10 * MINUTE, 15 * MINUTE, 30 * MINUTE,
    HOUR, 2 * HOUR, 3 * HOUR, 6 * HOUR, 12 * HOUR,
    DAY, 2 * DAY, 4 * DAY, 7 * DAY, 14 * DAY, 28 * DAY, 91 * DAY, 182 * DAY,
    YEAR, 2 * YEAR, 5 * YEAR, 10 * YEAR, 20 * YEAR, 50 * YEAR, 100 * YEAR,
];

/// Parses the instant `text`, relative to `now`.
///
/// It may be `now`, relative (`-6h`, `now-1d12h`), a date with or without a time of day, or a
/// number of seconds or milliseconds since the epoch.
pub(super) fn moment(text: &str, now: Millis) -> Result<Millis, String> {
    let trimmed = text.trim();
    let found = if let Some(offset) = offset(trimmed) {
        now.checked_add(offset?)
    } else if !trimmed.is_empty() && trimmed.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        since_epoch(trimmed)
    } else {
        calendar(trimmed)
    };
    found.filter(|t| (0..MAX_TIME).contains(t)).ok_or_else(|| {
        format!(
            "`{text}` is not a time from 1970 to 9999: write `now`, `-6h`, `now-1d12h`, \
             `2026-11-21`, `2026-11-21T12:34:56Z` (UTC), or seconds or milliseconds since the \
             epoch such as `1795264496` or `1795264496000`"
        )
    })
}

/// Parses a bucket size.
pub(super) fn duration(text: &str) -> Result<Step, String> {
    let step = span(text).ok().and_then(Step::new);
    step.ok_or_else(|| {
        format!(
            "`{text}` is not a duration: write whole milliseconds, at least one, with their \
             unit, such as `500ms`, `60s`, `5m`, `1h` or `1h30m`"
        )
    })
}

/// Formats `millis` as `2026-11-21 12:34:56`, with milliseconds only if there are any. A time
/// outside the calendar is shown as a number.
pub(super) fn show(millis: Millis) -> String {
    let since_epoch = u64::try_from(millis).ok().filter(|_| millis < MAX_TIME);
    let Some(since_epoch) = since_epoch else {
        return format!("{millis} ms");
    };
    let time = UNIX_EPOCH + Duration::from_millis(since_epoch);
    let text = if since_epoch % 1000 == 0 {
        humantime::format_rfc3339_seconds(time).to_string()
    } else {
        humantime::format_rfc3339_millis(time).to_string()
    };
    text.trim_end_matches('Z').replace('T', " ")
}

/// Formats a duration in its largest unit, and in the next smaller one if there is a remainder.
pub(super) fn span_text(millis: Millis) -> String {
    const UNITS: [(Millis, &str); 5] = [
        (DAY, "d"),
        (HOUR, "h"),
        (MINUTE, "min"),
        (SECOND, "s"),
        (1, "ms"),
    ];
    let at = UNITS.iter().position(|(unit, _)| millis >= *unit);
    let Some((unit, name)) = at.and_then(|at| UNITS.get(at)) else {
        return format!("{millis} ms");
    };
    let (whole, rest) = (millis / unit, millis % unit);
    match at.and_then(|at| UNITS.get(at + 1)) {
        Some((smaller, next)) if rest >= *smaller => {
            format!("{whole} {name} {} {next}", rest / smaller)
        }
        _ => format!("{whole} {name}"),
    }
}

/// Parses the distance from now, or returns `None` if `text` is not relative.
fn offset(text: &str) -> Option<Result<Millis, String>> {
    let after_now = text.strip_prefix("now").map(str::trim_start);
    if after_now == Some("") {
        return Some(Ok(0));
    }
    let signed = after_now.unwrap_or(text);
    if let Some(ago) = signed.strip_prefix('-') {
        Some(span(ago).map(|millis| -millis))
    } else {
        signed.strip_prefix('+').map(span)
    }
    .map(|offset| {
        offset.map_err(|why| {
            format!(
                "`{text}` is not a relative time such as `-6h`, `now-90s` or `now-1d12h`: {why}"
            )
        })
    })
}

/// Parses a duration in whole milliseconds.
fn span(text: &str) -> Result<Millis, String> {
    let duration = humantime::parse_duration(text).map_err(|e| e.to_string())?;
    if duration.subsec_nanos() % 1_000_000 != 0 {
        return Err("it is not a whole number of milliseconds".into());
    }
    Millis::try_from(duration.as_millis()).map_err(|_| "it is too long".into())
}

/// Parses seconds or milliseconds since the epoch.
fn since_epoch(text: &str) -> Option<Millis> {
    match text.parse::<Millis>() {
        Ok(millis) if millis >= FIRST_MILLIS => Some(millis),
        Ok(seconds) => seconds.checked_mul(1000),
        Err(_) => {
            // Below the limit a double has microsecond precision, so rounding is exact to the
            // millisecond.
            let seconds: f64 = text.parse().ok()?;
            (seconds < FIRST_MILLIS as f64).then_some((seconds * 1000.0).round() as Millis)
        }
    }
}

/// Parses a date, alone or with a time of day, in UTC.
fn calendar(text: &str) -> Option<Millis> {
    // After a fraction humantime accepts any offset and ignores it.
    if text.contains('+') && !text.ends_with("+00:00") {
        return None;
    }
    let full = match text.len() {
        10 => format!("{text}T00:00:00"),
        16 => format!("{text}:00"),
        _ => text.to_owned(),
    };
    let time = humantime::parse_rfc3339_weak(&full).ok()?;
    let since_epoch = time.duration_since(UNIX_EPOCH).ok()?;
    Millis::try_from(since_epoch.as_millis()).ok()
}

/// The horizontal axis of a chart.
pub(super) struct TimeAxis {
    pub(super) start: Millis,
    pub(super) end: Millis,
    pub(super) columns: usize,
}

impl TimeAxis {
    /// Returns the distance of `t` from the start, in dots.
    pub(super) fn dot(&self, t: Millis) -> usize {
        let dots = 2 * self.columns - 1;
        if self.start == self.end {
            return dots / 2;
        }
        let share = (t - self.start) as f64 / (self.end - self.start) as f64;
        (share * dots as f64).round() as usize
    }

    /// Formats `t` with the precision that distinguishes ticks a `step` apart.
    fn label(&self, t: Millis, step: Millis) -> String {
        let text = show(t);
        let span = self.end - self.start;
        let part = match step {
            DAY.. if span > YEAR => text.get(..10),
            DAY.. => text.get(5..10),
            MINUTE.. if span > DAY => text.get(5..16),
            MINUTE.. => text.get(11..16),
            SECOND.. => text.get(11..19),
            _ => text.get(11..),
        };
        part.unwrap_or(&text).to_owned()
    }

    /// Returns the axis with its ticks, and the labels below it.
    pub(super) fn lines(&self) -> (String, String) {
        let span = self.end - self.start;
        let columns = self.columns as Millis;
        // Labels at the ends move inwards by half their length and still keep a distance. No label
        // is longer than that of an instant that is off all coarser ticks.
        let fits = |step: &Millis| {
            let length = self.label(1, *step).len() as Millis;
            step * columns >= span * (length + length / 2 + 2)
        };
        let step = TIME_STEPS.into_iter().find(fits).unwrap_or(span);
        let mut rule = vec!['─'; self.columns];
        let mut labels = String::new();
        // A single point in time is its own tick.
        let mut t = if span == 0 {
            self.start
        } else {
            self.start + (-self.start).rem_euclid(step)
        };
        while t <= self.end {
            let column = self.dot(t) / 2;
            let label = self.label(t, step);
            let at = column.saturating_sub(label.len() / 2);
            let at = at.min(self.columns.saturating_sub(label.len()));
            // If the labels do not fit even with the longest step, some are left out.
            if labels.is_empty() || at > labels.len() {
                labels += &" ".repeat(at - labels.len());
                labels += &label;
                if let Some(tick) = rule.get_mut(column) {
                    *tick = '┬';
                }
            }
            t += step;
        }
        (rule.into_iter().collect(), labels)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Millis = 1_795_264_496_789;

    #[test]
    fn durations_are_shown_in_their_largest_unit() {
        for (millis, text) in [
            (0, "0 ms"),
            (500, "500 ms"),
            (15_000, "15 s"),
            (90_000, "1 min 30 s"),
            (21_600_000, "6 h"),
            (100_000_000, "1 d 3 h"),
        ] {
            assert_eq!(span_text(millis), text);
        }
    }

    #[test]
    fn times_are_read_in_every_form() {
        for (text, expected) in [
            ("now", NOW),
            (" now ", NOW),
            ("-6h", NOW - 6 * 3_600_000),
            ("now-6h", NOW - 6 * 3_600_000),
            ("now - 1d12h", NOW - 36 * 3_600_000),
            ("now+250ms", NOW + 250),
            ("-5m", NOW - 300_000),
            ("2026-11-21T12:34:56Z", 1_795_264_496_000),
            ("2026-11-21T12:34:56.789Z", NOW),
            ("2026-11-21T12:34:56.789+00:00", NOW),
            ("2026-11-21 12:34:56", 1_795_264_496_000),
            ("2026-11-21 12:34", 1_795_264_440_000),
            ("2026-11-21", 1_795_219_200_000),
            ("1795264496789", NOW),
            ("100000000000", 100_000_000_000),
            ("99999999999", 99_999_999_999_000),
            ("1795264496", 1_795_264_496_000),
            ("1795264496.789", NOW),
            ("0", 0),
        ] {
            assert_eq!(moment(text, NOW), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_not_a_time_is_refused_with_examples() {
        for text in [
            "",
            ".",
            "6h",
            "yesterday",
            "-",
            "-6",
            "now6h",
            "now-6 parsecs",
            "-0.5us",
            "now-100years",
            "now+9000years",
            "-99999999999999999y",
            "2026-02-30",
            "2026-11-21T12:34:56+02:00",
            "2026-11-21T12:34:56.5+02:00",
            "2026-11-21T12:34:56-02:00",
            "1969-12-31",
            "1795264496789.5",
            "253402300800000",
            "99999999999999999999",
            "1.2.3",
            "1e12",
            "ééééé",
        ] {
            let error = moment(text, NOW).unwrap_err();
            assert!(error.contains("`-6h`"), "{text}: {error}");
        }
    }

    #[test]
    fn bucket_sizes_are_whole_milliseconds() {
        for (text, millis) in [
            ("1ms", 1),
            ("60s", 60_000),
            ("5m", 300_000),
            ("1h", 3_600_000),
            ("1h 30m", 5_400_000),
            ("1.5s", 1500),
        ] {
            assert_eq!(duration(text).map(|s| s.millis()), Ok(millis), "{text}");
        }
        for text in ["", "0", "0s", "60", "-1s", "1500us", "5 parsecs", "9000y"] {
            let error = duration(text).unwrap_err();
            assert!(error.contains("`5m`"), "{text}: {error}");
        }
    }

    #[test]
    fn times_are_shown_in_utc() {
        for (millis, text) in [
            (1_795_264_496_000, "2026-11-21 12:34:56"),
            (NOW, "2026-11-21 12:34:56.789"),
            (0, "1970-01-01 00:00:00"),
            (MAX_TIME - 1000, "9999-12-31 23:59:59"),
            (MAX_TIME, "253402300800000 ms"),
            (-1, "-1 ms"),
        ] {
            assert_eq!(show(millis), text);
        }
    }

    #[test]
    fn time_labels_keep_apart_and_every_tick_has_one() {
        for span in TIME_STEPS.into_iter().flat_map(|s| [3 * s, 7 * s, 11 * s]) {
            for start in [NOW, NOW + 1, NOW + 12_345_678] {
                let axis = TimeAxis {
                    start,
                    end: start + span,
                    columns: 60,
                };
                let (rule, labels) = axis.lines();
                let ticks = rule.chars().filter(|c| *c == '┬').count();
                let count = labels.split("  ").filter(|l| !l.trim().is_empty()).count();
                assert_eq!(ticks, count, "{span}: {labels}");
                assert!(ticks > 0 && labels.len() <= 60, "{span}: {labels}");
            }
        }
    }
}
