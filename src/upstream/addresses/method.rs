//! The HTTP method of queries to an address, where that is found out.

use std::time::Duration;

use tokio::time::Instant;

/// The time for which an address that has refused both methods is asked by POST alone.
const REFUSES_BOTH: Duration = Duration::from_secs(60);

/// The method by which an address is asked.
#[derive(Clone, Copy, Debug, Default)]
pub(super) enum Method {
    /// POST, which it has not refused.
    #[default]
    Post,
    /// GET, as it has refused POST.
    TryGet,
    /// GET, which it has not refused.
    Get,
    /// POST: it has refused both, and GET is not tried again before the given time.
    Neither(Instant),
}

/// The answer to a query, as evidence of the method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::upstream) enum Taken {
    /// The method was not refused.
    Yes,
    /// It was refused.
    No,
    /// POST was refused, and GET may not be.
    ByGet,
}

impl Method {
    /// Returns whether it is GET.
    pub(super) fn is_get(self) -> bool {
        matches!(self, Self::TryGet | Self::Get)
    }

    /// Takes in whether the address `refused` a query at `now`, which was sent `by_get` or by POST.
    pub(super) fn learn(&mut self, by_get: bool, refused: bool, now: Instant) -> Taken {
        match (by_get, refused, *self) {
            (false, true, Self::Neither(until)) if now < until => Taken::No,
            (false, true, known) => {
                if !known.is_get() {
                    *self = Self::TryGet;
                }
                Taken::ByGet
            }
            (true, true, known) => {
                if let Self::TryGet = known {
                    *self = Self::Neither(now + REFUSES_BOTH);
                }
                Taken::No
            }
            (true, false, Self::TryGet) => {
                *self = Self::Get;
                Taken::Yes
            }
            (_, false, _) => Taken::Yes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_post_that_was_sent_before_get_was_found_does_not_bring_it_into_doubt() {
        let now = Instant::now();
        let mut method = Method::default();
        assert_eq!(method.learn(false, true, now), Taken::ByGet);
        assert_eq!(method.learn(true, false, now), Taken::Yes);
        assert_eq!(method.learn(false, true, now), Taken::ByGet);
        // It refuses this query, not the method.
        assert_eq!(method.learn(true, true, now), Taken::No);
        assert!(method.is_get());
    }
}
