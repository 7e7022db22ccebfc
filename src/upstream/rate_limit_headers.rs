//! Rate limits that an upstream announces in the headers of an answer.
//!
//! Read are `X-RateLimit-Remaining` and `X-RateLimit-Reset` (also without `X-`, and `-Reset-After`), and
//! `RateLimit` of the IETF's drafts (`"policy";r=50;t=30`, before that `limit=100, remaining=50, reset=30`). A
//! reset is in seconds from now or, as some write it, a time in epoch seconds or milliseconds.

use std::time::Duration;

use http::HeaderMap;

use crate::model::Millis;

/// The remainder of a budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RateLimitHeaders {
    /// Calls that may still be made.
    pub(super) remaining: u64,
    /// Time until the reset.
    pub(super) reset: Duration,
}

/// Seconds beyond this are a point in time, not a wait: the year 2001.
const EPOCH_SECONDS: f64 = 1e9;

/// Beyond this it is in milliseconds: the year 5138 in seconds.
const EPOCH_MILLIS: f64 = 1e11;

/// The longest reset that is believed.
const LONGEST: Duration = Duration::from_secs(86_400);

/// The headers for what remains, and for the time until the reset.
const FAMILIES: [[&str; 3]; 3] = [
    [
        "x-ratelimit-remaining",
        "x-ratelimit-reset-after",
        "x-ratelimit-reset",
    ],
    [
        "x-rate-limit-remaining",
        "x-rate-limit-reset-after",
        "x-rate-limit-reset",
    ],
    [
        "ratelimit-remaining",
        "ratelimit-reset-after",
        "ratelimit-reset",
    ],
];

impl RateLimitHeaders {
    /// Returns the limits in `headers`, at the wall time `now`.
    pub(super) fn of(headers: &HeaderMap, now: Millis) -> Option<Self> {
        let (remaining, reset) = structured(headers).or_else(|| {
            FAMILIES.iter().find_map(|[remaining, reset_after, reset]| {
                let remaining = number(headers, remaining)?;
                let reset = number(headers, reset_after).or_else(|| number(headers, reset))?;
                Some((remaining, reset))
            })
        })?;
        let now = now as f64 / 1000.0;
        let reset = match reset {
            millis if millis > EPOCH_MILLIS => millis / 1000.0 - now,
            seconds if seconds > EPOCH_SECONDS => seconds - now,
            seconds => seconds,
        };
        (remaining >= 0.0 && reset >= 0.0).then(|| Self {
            remaining: remaining as u64,
            reset: Duration::try_from_secs_f64(reset)
                .unwrap_or(LONGEST)
                .min(LONGEST),
        })
    }

    /// Returns the distance that calls must keep for the remainder to last until the reset.
    pub(super) fn spacing(&self) -> Duration {
        let calls = u32::try_from(self.remaining).unwrap_or(u32::MAX);
        self.reset.checked_div(calls).unwrap_or(self.reset)
    }
}

fn number(headers: &HeaderMap, name: &str) -> Option<f64> {
    let text = headers.get(name)?.to_str().ok()?;
    // Some list several windows; the first is the nearest.
    let first = text.split([',', ';']).next()?.trim();
    first.parse().ok().filter(|n: &f64| n.is_finite())
}

/// Returns what `RateLimit` says to be left, and the time until the reset: the parameters `r` and `t` of its
/// first item, or its members `remaining` and `reset`.
fn structured(headers: &HeaderMap) -> Option<(f64, f64)> {
    let text = headers.get("ratelimit")?.to_str().ok()?;
    let value = |text: &str, name: &str| {
        let parts = text.split([',', ';']);
        let value = parts
            .filter_map(|p| p.trim().split_once('='))
            .find(|p| p.0.trim() == name)?
            .1;
        value.trim().parse().ok().filter(|n: &f64| n.is_finite())
    };
    let first = text.split(',').next()?;
    let parameters = value(first, "r").zip(value(first, "t"));
    parameters.or_else(|| value(text, "remaining").zip(value(text, "reset")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderName, HeaderValue};

    const NOW: Millis = 1_795_000_000_000;

    fn read(pairs: &[(&'static str, &'static str)]) -> Option<(u64, u64)> {
        let header = |(k, v): &(&'static str, &'static str)| {
            (HeaderName::from_static(k), HeaderValue::from_static(v))
        };
        let advice = RateLimitHeaders::of(&pairs.iter().map(header).collect(), NOW)?;
        Some((advice.remaining, advice.reset.as_secs()))
    }

    #[test]
    fn the_usual_families_are_read() {
        for (pairs, expected) in [
            (
                &[("x-ratelimit-remaining", "5"), ("x-ratelimit-reset", "30")][..],
                Some((5, 30)),
            ),
            (
                &[
                    ("x-ratelimit-remaining", "0"),
                    ("x-ratelimit-reset", "1795000012"),
                ],
                Some((0, 12)),
            ),
            (
                &[
                    ("x-rate-limit-remaining", "7"),
                    ("x-rate-limit-reset", "2.5"),
                ],
                Some((7, 2)),
            ),
            (
                &[
                    ("ratelimit-remaining", "9, 100"),
                    ("ratelimit-reset", "4, 3600"),
                ],
                Some((9, 4)),
            ),
            (&[("ratelimit", "\"hour\";r=50;t=30")], Some((50, 30))),
            (&[("ratelimit", "\"hour\";r=50")], None),
            (&[("ratelimit", "\"a\";r=5, \"b\";r=50;t=30")], None),
            (
                &[("ratelimit", "limit=10, remaining=0, reset=3")],
                Some((0, 3)),
            ),
            (
                &[
                    ("x-ratelimit-remaining", "0"),
                    ("x-ratelimit-reset", "1795000012000"),
                ],
                Some((0, 12)),
            ),
            (
                &[
                    ("x-ratelimit-remaining", "0"),
                    ("x-ratelimit-reset", "1795000012"),
                    ("x-ratelimit-reset-after", "3.5"),
                ],
                Some((0, 3)),
            ),
            (&[("x-ratelimit-remaining", "5")], None),
            (
                &[
                    ("x-ratelimit-remaining", "many"),
                    ("x-ratelimit-reset", "30"),
                ],
                None,
            ),
            (
                &[("x-ratelimit-remaining", "-1"), ("x-ratelimit-reset", "30")],
                None,
            ),
            (
                &[
                    ("x-ratelimit-remaining", "1"),
                    ("x-ratelimit-reset", "1790000000"),
                ],
                None,
            ),
            (
                &[("x-ratelimit-remaining", "1"), ("x-ratelimit-reset", "inf")],
                None,
            ),
        ] {
            assert_eq!(read(pairs), expected, "{pairs:?}");
        }
    }

    #[test]
    fn remaining_calls_are_spread_over_the_remaining_time() {
        let advice = |remaining, reset| RateLimitHeaders {
            remaining,
            reset: Duration::from_secs(reset),
        };
        assert_eq!(advice(5, 30).spacing(), Duration::from_secs(6));
        assert_eq!(advice(0, 30).spacing(), Duration::from_secs(30));
    }
}
