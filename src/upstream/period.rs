//! The hours, days and months of UTC.

use crate::model::Millis;

pub(super) const HOUR: Millis = 3_600_000;
pub(super) const DAY: Millis = 24 * HOUR;

/// A period of the calendar of UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Period {
    Hour,
    Day,
    Month,
}

impl Period {
    /// Returns its name for clients.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Hour => "hour",
            Self::Day => "day",
            Self::Month => "month",
        }
    }

    /// Returns its greatest length, in milliseconds; its name in the file.
    pub(super) fn millis(self) -> Millis {
        match self {
            Self::Hour => HOUR,
            Self::Day => DAY,
            Self::Month => 31 * DAY,
        }
    }

    /// Returns its index at `now`, counted from the epoch.
    pub(super) fn index(self, now: Millis) -> i64 {
        match self {
            Self::Hour | Self::Day => now.div_euclid(self.millis()),
            Self::Month => month(now.div_euclid(DAY)),
        }
    }

    /// Returns the start of number `index`.
    pub(super) fn start(self, index: i64) -> Millis {
        self.end(index - 1)
    }

    /// Returns the end of number `index`.
    pub(super) fn end(self, index: i64) -> Millis {
        match self {
            Self::Hour | Self::Day => (index + 1) * self.millis(),
            Self::Month => first_day(index + 1) * DAY,
        }
    }
}

/// Returns the month of `day`, in months since January 1970 and days since the epoch; by the
/// proleptic Gregorian calendar (H. Hinnant, "chrono-Compatible Low-Level Date Algorithms",
/// `civil_from_days`).
fn month(day: i64) -> i64 {
    let day = day + 719_468;
    let era = day.div_euclid(146_097);
    let of_era = day.rem_euclid(146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    // Counted from March.
    let month = (5 * of_year + 2) / 153;
    (era * 400 + year) * 12 + month + 2 - 1970 * 12
}

/// Returns the first day, since the epoch, of month `index` since January 1970 (`days_from_civil`,
/// ibidem).
fn first_day(index: i64) -> i64 {
    let months = index + 1970 * 12 - 2;
    let (year, month) = (months.div_euclid(12), months.rem_euclid(12));
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let of_year = (153 * month + 2) / 5;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn months_are_those_of_the_calendar() {
        let day = |text: &str| {
            let time = humantime::parse_rfc3339(&format!("{text}T00:00:00Z")).unwrap();
            let since = time.duration_since(std::time::UNIX_EPOCH).unwrap();
            since.as_millis() as Millis
        };
        for (within, next, number) in [
            ("1970-01-31", "1970-02-01", 0),
            ("2024-02-29", "2024-03-01", 54 * 12 + 1),
            ("2026-11-26", "2026-12-01", 56 * 12 + 10),
            ("2026-12-31", "2027-01-01", 56 * 12 + 11),
            ("2100-02-28", "2100-03-01", 130 * 12 + 1),
        ] {
            let index = Period::Month.index(day(within));
            assert_eq!(index, number, "{within}");
            assert_eq!(Period::Month.end(index), day(next), "{within}");
            assert_eq!(Period::Month.index(day(next)), number + 1);
        }
    }
}
