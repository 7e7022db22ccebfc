//! The addresses that clients may lead Heliostat to, checked where connections are really made.
//!
//! A name is checked by the addresses it resolves to when a connection is made, and that very
//! address is connected to. So a name that resolves to something else the second time (DNS
//! rebinding) gains nothing.

use std::fmt;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};

use ipnet::IpNet;
use reqwest::dns::{Name, Resolve, Resolving};
use tokio::sync::Semaphore;
use tracing::warn;
use url::Url;

use crate::model::address::refused;
use crate::model::{Error, Kind, Pattern, TargetUrl};

/// The addresses that targets of clients may have.
#[derive(Clone, Debug)]
pub struct Guard {
    /// Patterns of targets. An address that one of them names by itself is allowed.
    pub named: Vec<Pattern>,
    /// Networks that are allowed although they are not public.
    pub networks: Vec<IpNet>,
}

impl Guard {
    /// Checks the host of `url` where that is an address; names are checked as they are resolved.
    pub(super) fn check(&self, url: &str) -> Result<(), Error> {
        let unreadable = |e: String| Error::new(Kind::TargetNotAllowed, e);
        let mut url = Url::parse(url).map_err(|e| unreadable(e.to_string()))?;
        url.set_query(None);
        let url = TargetUrl::parse(url.as_str()).map_err(unreadable)?;
        match url.address().and_then(|ip| refused(ip, &self.networks)) {
            Some(what) if !self.named.iter().any(|p| p.names(&url)) => Err(Refused(what).error()),
            _ => Ok(()),
        }
    }
}

/// Concurrent look-ups of the names of configured upstreams, and of those that clients name. They take threads,
/// and names that do not resolve take them for long: so clients do not hold up configured upstreams.
static LOOKUPS: Semaphore = Semaphore::const_new(32);
static CLIENTS_LOOKUPS: Semaphore = Semaphore::const_new(32);

/// Resolves names without a guard.
pub(super) struct Lookups;

impl Resolve for Lookups {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found = look_up(name.as_str().to_owned(), &LOOKUPS).await?;
            Ok(Box::new(found.into_iter()) as reqwest::dns::Addrs)
        })
    }
}

/// Returns the addresses of `name`, with the port 0, when there is a place among `lookups`.
async fn look_up(name: String, lookups: &'static Semaphore) -> io::Result<Vec<SocketAddr>> {
    let permit = lookups.acquire().await.map_err(io::Error::other)?;
    // A look-up goes on even if nobody waits for it any more, and counts for as long.
    let found = tokio::task::spawn_blocking(move || {
        let _permit = permit;
        (name.as_str(), 0).to_socket_addrs().map(Iterator::collect)
    });
    found.await.map_err(io::Error::other)?
}

impl Resolve for Guard {
    fn resolve(&self, name: Name) -> Resolving {
        let networks = self.networks.clone();
        Box::pin(async move {
            let found = look_up(name.as_str().to_owned(), &CLIENTS_LOOKUPS).await?;
            let mut refusal = None;
            let mut allowed = Vec::new();
            for address in found {
                match refused(address.ip(), &networks) {
                    None => allowed.push(address),
                    Some(what) => {
                        let (name, ip) = (name.as_str(), address.ip());
                        warn!(name, %ip, "a client's target has an address that is {what}; it is not connected to ([targets] networks)");
                        refusal = Some(Refused(what));
                    }
                }
            }
            match refusal {
                Some(refused) if allowed.is_empty() => Err(refused.into()),
                _ => Ok(Box::new(allowed.into_iter()) as reqwest::dns::Addrs),
            }
        })
    }
}

/// The kind of an address that clients may not lead Heliostat to.
#[derive(Debug)]
pub(super) struct Refused(&'static str);

impl fmt::Display for Refused {
    /// The address itself is left out: otherwise clients could look up names of the internal
    /// network.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the target's address is {}, which clients may not reach: add its network to `networks` in the section [targets], name the address itself in `allow`, or configure an [[upstream]] with this target",
            self.0
        )
    }
}

impl std::error::Error for Refused {}

impl Refused {
    /// Returns the error for clients.
    pub(super) fn error(&self) -> Error {
        let mut error = Error::new(Kind::TargetNotAllowed, self.to_string());
        error.field = Some("connectionDetails".to_owned());
        error
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn names_of_clients_do_not_hold_up_configured_upstreams() {
        let _all = CLIENTS_LOOKUPS.acquire_many(32).await.unwrap();
        let guard = Guard {
            named: Vec::new(),
            networks: vec!["127.0.0.0/8".parse().unwrap()],
        };
        let name = || "localhost".parse().unwrap();
        let mut waits = guard.resolve(name());
        let found = tokio::select! {
            found = Lookups.resolve(name()) => found,
            _ = &mut waits => unreachable!(),
        };
        assert!(found.unwrap().count() > 0);
    }
}
