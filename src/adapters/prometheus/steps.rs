//! The calls that a range query is made in.

use crate::model::{Error, Kind, Millis, Step, TimeRange};

/// The most steps per series that Prometheus answers a range query with.
pub(super) const MAX_STEPS: u32 = 11_000;

/// Most calls that are built for one fetch, and the most bytes that they may hold together.
const MOST_CALLS: usize = 1000;
const MOST_CALL_BYTES: usize = 8 << 20;

/// The bytes of a call besides its query, about.
const PART_BYTES: usize = 4 << 10;

/// Steps of a range query that one call can carry.
pub(super) struct Steps {
    /// Time of the first step.
    pub(super) first: Millis,
    /// Time of the last step.
    pub(super) last: Millis,
    /// The meaning of the steps.
    pub(super) range: TimeRange,
}

/// Checks that the calls for `range`, each of at most `per_call` steps and with a query of `length` bytes, are
/// few enough to be built at once.
///
/// # Errors
///
/// Names `field`, the end of the range.
pub(super) fn check_calls(
    range: &TimeRange,
    step: Step,
    per_call: u32,
    length: usize,
    field: &str,
) -> Result<(), Error> {
    let window = step.times(per_call).millis();
    let calls =
        (range.millis() / window + Millis::from(range.millis() % window > 0)).unsigned_abs();
    // In a form each byte becomes three at most.
    let each = length.saturating_mul(3).saturating_add(PART_BYTES);
    let most = (MOST_CALL_BYTES / each).clamp(1, MOST_CALLS) as u64;
    if calls <= most {
        return Ok(());
    }
    let message = format!(
        "the range takes {calls} calls of the upstream with this query; at most {most} are allowed at once; ask for a shorter range"
    );
    let mut error = Error::new(Kind::TooManyPoints, message);
    error.field = Some(field.to_owned());
    Err(error)
}

/// Returns the steps at `k·step + shift` for the grid lines `k·step` in `range`, at most `per_call`
/// in one call.
pub(super) fn steps(
    range: &TimeRange,
    step: Step,
    shift: Millis,
    per_call: u32,
) -> impl Iterator<Item = Steps> + use<> {
    let (begin, end) = (step.ceil(range.start()), range.end());
    let window = step.times(per_call).millis();
    let next = move |at: &Millis| Some(at.saturating_add(window)).filter(|at| *at < end);
    std::iter::successors((begin < end).then_some(begin), next).map(move |from| {
        let range = TimeRange::clamped(from, end.min(from.saturating_add(window)));
        Steps {
            first: from + shift,
            last: step.floor(range.end() - 1) + shift,
            range,
        }
    })
}
