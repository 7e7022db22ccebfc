//! Leave to make a call, and what is learned from it.

use std::sync::Weak;
use std::time::Duration;

use super::SharedLimiter;
use crate::upstream::addresses::Chosen;

/// Leave to make one call, which is under way until this is dropped.
#[derive(Debug)]
pub(in crate::upstream) struct Permit {
    /// Where it goes. Taken out first when this is dropped: then others may go there.
    pub(super) chosen: Option<Chosen>,
    pub(super) limiter: Weak<SharedLimiter>,
}

/// The end of a call, as evidence of the load that the upstream can take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::upstream) enum Ended {
    /// It was answered.
    Answered,
    /// It ran out of time.
    TimedOut,
    /// It failed in another way, which says nothing of how long calls take.
    Failed,
    /// It failed, and it is not the upstream that failed.
    Unrelated,
}

impl Permit {
    /// Where the call goes.
    pub(in crate::upstream) fn chosen(&mut self) -> Option<&mut Chosen> {
        self.chosen.as_mut()
    }

    /// Returns the limit that allowed the call, if replicas keep limits together: `shared` or
    /// `share`.
    pub(in crate::upstream) fn source(&self) -> Option<&'static str> {
        self.limiter.upgrade()?.state().rate.source()
    }

    /// Takes in how the call ended, and how long it took.
    pub(in crate::upstream) fn report(&self, ended: Ended, took: Duration) {
        let Some(shared) = self.limiter.upgrade() else {
            return;
        };
        let mut state = shared.state();
        if matches!(ended, Ended::Answered | Ended::TimedOut) {
            state.latency.learn(took);
        }
        if let Some(adaptive) = &mut state.adaptive {
            adaptive.learn(matches!(ended, Ended::TimedOut | Ended::Failed), took);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        drop(self.chosen.take());
        if let Some(shared) = self.limiter.upgrade() {
            shared.state().running -= 1;
            shared.admit_next();
        }
    }
}
