//! Work that stops early, once its result is of no use to anyone.
//!
//! Large data is read, aggregated and written on threads for such work, one job after the other. A job whose
//! deadline passes, or whose last waiter leaves, would only keep the next one waiting. Its loops look for that
//! at [`Checkpoints`], so that those who start a job need not pass anything on to them.

use std::cell::{Cell, RefCell};

/// The elements between two looks: some ten microseconds of work.
const STRIDE: u32 = 1024;

/// The state of the job of this thread.
#[derive(Default)]
struct Job {
    /// Returns whether it is to stop; none if it always ends by itself.
    condition: RefCell<Option<Box<dyn Fn() -> bool>>>,
    /// Whether a checkpoint has told it to.
    stopped: Cell<bool>,
}

thread_local! {
    static JOB: Job = Job::default();
}

/// Does `work` in this thread, and stops at its next checkpoint once `condition` holds. Returns the result, or
/// `None` if it was stopped, as the result lacks something then.
pub fn unless<T>(condition: impl Fn() -> bool + 'static, work: impl FnOnce() -> T) -> Option<T> {
    /// Ends the job, however it ends.
    struct End;
    impl Drop for End {
        fn drop(&mut self) {
            JOB.with(|job| job.condition.take());
        }
    }
    JOB.with(|job| {
        job.stopped.set(false);
        job.condition.replace(Some(Box::new(condition)));
    });
    let end = End;
    let result = work();
    drop(end);
    JOB.with(|job| !job.stopped.take()).then_some(result)
}

/// Returns whether the work of this thread is to stop. It should end soon then; whatever it returns is not
/// used. Costs as much as the condition does.
pub fn is_due() -> bool {
    JOB.with(|job| {
        let condition = job.condition.borrow();
        let due = condition.as_ref().is_some_and(|condition| condition());
        if due {
            job.stopped.set(true);
        }
        due
    })
}

/// The checkpoints of a loop: one for each thousand elements, so that they cost next to nothing.
#[derive(Debug, Default)]
pub struct Checkpoints {
    passed: u32,
}

impl Checkpoints {
    /// Takes in that the loop comes to its next element. Returns whether it is to stop, as [`is_due`] does.
    #[inline]
    pub fn stop(&mut self) -> bool {
        self.passed = self.passed.wrapping_add(1);
        self.passed.is_multiple_of(STRIDE) && is_due()
    }
}

/// The text of errors with which stopped work ends; it is not shown to anyone.
pub const STOPPED: &str = "nobody waits for the result any more";

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;

    /// Counts up to `most`, unless it is stopped before.
    fn count(most: u32) -> u32 {
        let mut checkpoints = Checkpoints::default();
        (0..most)
            .find(|_| checkpoints.stop())
            .map_or(most, |n| n + 1)
    }

    #[test]
    fn work_stops_at_the_first_checkpoint_after_the_condition_holds() {
        let looks = Rc::new(Cell::new(0));
        let counted = looks.clone();
        let third = move || {
            counted.set(counted.get() + 1);
            counted.get() == 3
        };
        let mut reached = 0;
        assert_eq!(unless(third, || reached = count(u32::MAX)), None);
        assert_eq!((reached, looks.get()), (3 * STRIDE, 3));
    }

    #[test]
    fn a_job_that_is_not_stopped_has_its_result_and_leaves_nothing_behind() {
        assert_eq!(unless(|| true, || 7), Some(7));
        assert_eq!(unless(|| false, || count(5000)), Some(5000));
        assert_eq!(count(5000), 5000);
        let panicked = std::panic::catch_unwind(|| {
            unless(
                || true,
                || {
                    assert!(is_due());
                    panic!("on purpose")
                },
            )
        });
        assert!(panicked.is_err() && !is_due());
        assert_eq!(unless(|| false, || 7), Some(7), "another job");
    }
}
