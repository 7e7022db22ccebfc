//! The calls that a fetch is made of.

use std::sync::Arc;

use super::{Bill, Exchange, FetchResult, Request, StatisticsQuery};
use crate::model::Millis;

/// A call for the points from `start` on, up to the next part or the end of the fetch.
pub struct Part {
    /// The time at which it starts.
    pub start: Millis,
    /// The call.
    pub call: PartCall,
}

/// The call for a part.
pub enum PartCall {
    /// One of its own.
    Alone(Exchange<FetchResult>),
    /// One that it may share with parts of other fetches.
    Shared(StatisticsQuery),
}

impl PartCall {
    /// Returns the exchange of one that shares its call with nothing.
    #[cfg(test)]
    pub(crate) fn alone(self) -> Exchange<FetchResult> {
        match self {
            Self::Alone(exchange) => exchange,
            Self::Shared(_) => panic!("a call that others may share"),
        }
    }

    /// Counts it as `units`, where it is billed by its answer.
    pub fn count_as(&mut self, units: u32) {
        if let Self::Alone(exchange) = self {
            exchange.request.units = units;
        }
    }

    /// Returns its bill, where its answers decide what is billed.
    pub fn bill(&self) -> Option<Arc<Bill>> {
        match self {
            Self::Alone(exchange) => exchange.bill.clone(),
            Self::Shared(_) => None,
        }
    }

    /// Returns its method and path, and the units that are billed for it if it is made alone.
    pub fn described(&self) -> (String, u32) {
        let of = |request: &Request| {
            let call = format!("{} {}", request.method, request.path);
            (call, request.units)
        };
        match self {
            Self::Alone(exchange) => of(&exchange.request),
            Self::Shared(query) => of(&StatisticsQuery::call(vec![query.clone()]).request),
        }
    }
}
