//! Everything between the engine and a backend: a call passes the queue, the rate limit, the
//! concurrency cap and a breaker, and is made again where that is safe and worth it.

mod addresses;
mod answer_memory;
mod attempt;
#[cfg(feature = "aws")]
mod aws;
#[cfg(not(feature = "aws"))]
#[path = "aws_absent.rs"]
mod aws;
mod batch;
mod budget;
mod budget_file;
mod client;
mod clock_check;
mod coalesce;
mod connections;
mod decode;
mod failure_log;
mod guard;
mod health;
mod late;
mod ledger;
mod limiter;
mod period;
mod rate_limit_headers;
mod refusal;
mod registry;
mod response;
mod retry;
mod run;
mod searches;
mod send;
mod spend;
mod state;
mod tenant;
mod transport;

use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::adapters::Adapter;
use crate::model::{Freshness, Reading};
use crate::telemetry::metrics::UpstreamMetrics;

pub use answer_memory::{AnswerMemory, AnswerShare, Charges};
pub use aws::AwsSigner;
#[cfg(feature = "aws")]
pub use aws::{AwsSettings, Keys, Role};
pub use budget_file::BudgetPath;
pub use client::{Answered, CallContext, ClientConfig, SharedLimits, UpstreamClient};
pub use coalesce::{Flight, Flights, Joined, Waiters};
pub use connections::ClientRecipe;
pub use guard::Guard;
pub use health::watch;
pub use limiter::Caller;
pub use registry::{Registry, TargetFactory};
pub use state::{BudgetState, EndpointState, LimiterState, ProtectionState, UnitsState};
pub use transport::{BoxFuture, Http, Outgoing, Security, Transport};

/// One upstream: its protocol, its policies, and its client.
pub struct Upstream {
    /// Part of the identity of cached data. An upstream that replaces this one in a new
    /// configuration, with the same data, shares it.
    pub identity: Identity,
    /// The rules for fetching its data again.
    pub freshness: Freshness,
    /// Settings for reading its data.
    pub reading: Reading,
    /// The name of its data in a second level, in a form that outlives the process: all settings
    /// that decide what the data is. `None` if it is stored in none.
    pub stored_as: Option<std::sync::Arc<[u8]>>,
    /// The protocol that it speaks.
    pub adapter: Box<dyn Adapter>,
    /// The connection details that are sent to it.
    pub forward: Forward,
    /// The client that calls it.
    pub client: UpstreamClient,
    /// Its metrics.
    pub metrics: UpstreamMetrics,
}

/// The connection details that are sent to an upstream.
#[derive(Clone, PartialEq)]
pub enum Forward {
    /// None: its protocol has no place for them.
    Nothing,
    /// The details that the client sent, without those that picked the upstream.
    Client,
    /// These.
    Fixed(crate::adapters::Forwarded),
}

/// The identity of an upstream's data, shared by upstreams with the same data.
#[derive(Clone)]
pub struct Identity(Arc<AtomicU64>);

impl Identity {
    /// Returns an identity that no other data of this process has.
    pub fn new() -> Self {
        Self(Arc::new(AtomicU64::new(Self::next())))
    }

    /// Makes the data count as other data from now on: nothing that is cached of it is found any
    /// more.
    pub fn renew(&self) {
        self.0.store(Self::next(), Ordering::Release);
    }

    fn next() -> u64 {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        NEXT.fetch_add(1, Ordering::Relaxed)
    }
}

impl Default for Identity {
    fn default() -> Self {
        Self::new()
    }
}

impl Upstream {
    /// Returns the number by which the data is cached now: of its identity and of the tenant that
    /// its configured headers name, which may change with a secret's file.
    pub fn id(&self) -> u64 {
        let identity = self.identity.0.load(Ordering::Acquire);
        match self.client.tenant() {
            None => identity,
            Some(tenant) => {
                BuildHasherDefault::<DefaultHasher>::default().hash_one((identity, tenant))
            }
        }
    }

    /// Returns the name in a second level of the data with the number `id`; `None` if it is stored
    /// in none, or if the number has changed meanwhile.
    pub fn stored_as(&self, id: u64) -> Option<Vec<u8>> {
        let mut form = self.stored_as.as_deref()?.to_vec();
        if let Some(tenant) = self.client.tenant() {
            form.extend(tenant.to_le_bytes());
        }
        // Only now is it certain which tenant that was.
        (self.id() == id).then_some(form)
    }

    /// Returns its name, for clients and metrics.
    pub fn name(&self) -> &str {
        self.metrics.name()
    }
}

#[cfg(test)]
mod tests;
