//! An exchange that is made when its call has been admitted.

use std::sync::OnceLock;

use crate::adapters::Exchange;
use crate::model::{Error, Kind};

type MakeExchange<T> = Box<dyn Fn() -> Result<Exchange<T>, Error> + Send + Sync>;

/// An exchange that there is once its call has been admitted. All attempts make the same.
pub(super) struct Late<T> {
    made: OnceLock<Result<Exchange<T>, Error>>,
    make: MakeExchange<T>,
}

impl<T> Late<T> {
    /// Returns one that `make` makes, or says why there is none.
    pub(super) fn new(
        make: impl Fn() -> Result<Exchange<T>, Error> + Send + Sync + 'static,
    ) -> Self {
        Self {
            made: OnceLock::new(),
            make: Box::new(make),
        }
    }

    /// Returns `exchange`.
    pub(super) fn of(exchange: Exchange<T>) -> Self {
        let none = || Err(Error::new(Kind::Internal, "a call has no exchange"));
        Self {
            made: OnceLock::from(Ok(exchange)),
            make: Box::new(none),
        }
    }

    /// Returns the exchange.
    pub(super) fn get(&self) -> Result<&Exchange<T>, Error> {
        let made = self.made.get_or_init(&self.make);
        made.as_ref().map_err(Clone::clone)
    }
}
