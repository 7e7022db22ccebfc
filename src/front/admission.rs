//! Admission: which requests get in, by how many are in flight and how much their bodies may weigh.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::model::{Error, Kind};

/// Bodies of the largest size that may be in flight together; of the usual sizes, many more.
const LARGE_BODIES: usize = 64;

/// Counts of what is in flight.
#[derive(Debug, Default)]
pub(super) struct Admission {
    requests: AtomicUsize,
    /// Bytes of bodies that have been received or announced.
    body_bytes: AtomicUsize,
}

/// An admitted request's place and the bytes of its body, given back when dropped.
pub(super) type Admitted<'a> = [Reservation<'a>; 2];

impl Admission {
    /// Admits a request that announces a body of `announced` bytes, or refuses it at once.
    ///
    /// # Errors
    ///
    /// [`Kind::Overloaded`] if `max_in_flight` requests or bodies of 64 times `max_body` bytes are in
    /// flight.
    pub(super) fn admit(
        &self,
        max_in_flight: usize,
        max_body: usize,
        announced: Option<u64>,
    ) -> Result<Admitted<'_>, Error> {
        let place = Reservation::take(&self.requests, 1, max_in_flight).ok_or_else(|| {
            let message =
                format!("{max_in_flight} requests are already in flight (server.max_in_flight)");
            Error::new(Kind::Overloaded, message)
        })?;
        // Without a length a body may be as long as is allowed.
        let bytes = announced.map_or(max_body, |n| usize::try_from(n).unwrap_or(max_body));
        let most = max_body.saturating_mul(LARGE_BODIES);
        let body = Reservation::take(&self.body_bytes, bytes.min(max_body), most);
        let body = body.ok_or_else(|| {
            let message = format!("request bodies of {most} bytes are already in flight");
            Error::new(Kind::Overloaded, message)
        })?;
        Ok([place, body])
    }
}

/// A part of a bounded amount, given back when dropped.
#[derive(Debug)]
pub(super) struct Reservation<'a> {
    of: &'a AtomicUsize,
    amount: usize,
}

impl<'a> Reservation<'a> {
    /// Takes `amount`, unless more than `most` would be taken then.
    fn take(of: &'a AtomicUsize, amount: usize, most: usize) -> Option<Self> {
        let before = of.fetch_add(amount, Ordering::Relaxed);
        let taken = Self { of, amount };
        (before.saturating_add(amount) <= most).then_some(taken)
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        self.of.fetch_sub(self.amount, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reservation_is_bounded_and_given_back() {
        let counter = AtomicUsize::new(0);
        let first = Reservation::take(&counter, 7, 10);
        assert!(first.is_some());
        assert!(Reservation::take(&counter, 4, 10).is_none());
        let second = Reservation::take(&counter, 3, 10);
        assert!(second.is_some());
        drop((first, second));
        assert_eq!(counter.load(Ordering::Relaxed), 0);
    }
}
