//! The memory of refreshes that are planned: each is a task that sleeps until it is due.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The bytes of a task besides those of its future: what the runtime has for it, and the timer.
const TASK: usize = 256;

/// The bytes of all that are planned.
pub(super) struct Planned {
    most: u64,
    held: AtomicU64,
}

/// The bytes of one, given back when this is dropped.
pub(super) struct Held {
    of: Arc<Planned>,
    bytes: u64,
}

impl Planned {
    /// Returns room for `most` bytes.
    pub(super) fn new(most: u64) -> Arc<Self> {
        Arc::new(Self {
            most,
            held: AtomicU64::new(0),
        })
    }

    /// Returns the bytes of all that are planned.
    pub(super) fn bytes(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }

    /// Takes room for one with a future of `bytes` and what that holds, if there is any.
    pub(super) fn hold(self: &Arc<Self>, bytes: usize) -> Option<Held> {
        let bytes = (bytes + TASK) as u64;
        let add = |held: u64| Some(held + bytes).filter(|held| *held <= self.most);
        let added = (self.held).fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
        added.ok().map(|_| Held {
            of: self.clone(),
            bytes,
        })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.of.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_planned_than_there_is_room_for() {
        let planned = Planned::new(10_000);
        let mut held: Vec<Held> = std::iter::from_fn(|| planned.hold(1000)).collect();
        assert_eq!(held.len(), 10_000 / (1000 + TASK));
        assert!(planned.bytes() <= 10_000 && planned.hold(1000).is_none());
        held.pop();
        assert!(planned.hold(1000).is_some());
        drop(held);
        assert_eq!(planned.bytes(), 0);
    }
}
