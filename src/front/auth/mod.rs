//! Access control: rules for each API, about the client's address and its credentials.

mod credentials;
mod forwarded;
mod password_hash_limiter;

use std::fmt;
use std::net::IpAddr;

use http::HeaderMap;
use ipnet::IpNet;
use tracing::debug;

pub use self::credentials::Credentials;
use self::credentials::Fault;
use self::password_hash_limiter::{HashLimiterBusy, PasswordHashLimiter};
use crate::model::{Error, Kind};
use crate::reloadable::Reloadable;
use crate::telemetry::metrics::AccessMetrics;

/// An API with access rules of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Api {
    /// The mirror API and the page at `/`.
    Mirror,
    /// Prometheus' HTTP API.
    Prometheus,
    /// `/metrics`.
    Metrics,
    /// `/admin/…`; closed to everybody unless tokens or users are set.
    Admin,
}

impl Api {
    /// Returns its name in the configuration and in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mirror => "mirror",
            Self::Prometheus => "prometheus",
            Self::Metrics => "metrics",
            Self::Admin => "admin",
        }
    }
}

/// The access rules of one API. The default admits everybody, except to [`Api::Admin`].
#[derive(Default)]
pub struct Rules {
    /// Networks that clients must come from; empty is anywhere.
    pub networks: Vec<IpNet>,
    /// Credentials, one of which is required if there are any.
    pub credentials: Option<Reloadable<Credentials>>,
    /// Whether [`Api::Admin`] is open to its networks without credentials: there is nothing to
    /// protect.
    pub demonstration: bool,
}

/// The access rules of every API.
pub struct AccessControl {
    /// Proxies whose `X-Forwarded-For` is believed.
    proxies: Vec<IpNet>,
    mirror: ProtectedApi,
    prometheus: ProtectedApi,
    metrics: ProtectedApi,
    admin: ProtectedApi,
    hash_limiter: PasswordHashLimiter,
}

/// An API and its rules.
struct ProtectedApi {
    api: Api,
    /// Set if everybody has access.
    open: bool,
    rules: Rules,
    denied: AccessMetrics,
}

/// The reason why a client is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Denied {
    Network,
    Closed,
    Credentials { fault: Fault, schemes: &'static str },
    HashLimiterBusy,
}

impl fmt::Debug for AccessControl {
    /// Omits the rules: they may hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AccessControl(…)")
    }
}

impl AccessControl {
    /// Returns access control by the rules that `rules` returns for each API. Behind `proxies` a client's
    /// address is the one in `X-Forwarded-For`.
    pub fn new<E>(
        proxies: Vec<IpNet>,
        mut rules: impl FnMut(Api) -> Result<Rules, E>,
    ) -> Result<Self, E> {
        let mut guarded = |api: Api| {
            let rules = rules(api)?;
            let free = rules.networks.is_empty() && rules.credentials.is_none();
            let open = free && api != Api::Admin;
            let denied = AccessMetrics::new(api.name());
            if !open {
                denied.show();
            }
            Ok(ProtectedApi {
                api,
                open,
                rules,
                denied,
            })
        };
        Ok(Self {
            proxies,
            mirror: guarded(Api::Mirror)?,
            prometheus: guarded(Api::Prometheus)?,
            metrics: guarded(Api::Metrics)?,
            admin: guarded(Api::Admin)?,
            hash_limiter: PasswordHashLimiter::default(),
        })
    }

    /// Returns the address of the client whose request came from `peer` with `headers`.
    pub fn client(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        forwarded::client(&self.proxies, peer, headers)
    }

    /// Returns whether `peer` is a trusted proxy.
    pub fn is_proxy(&self, peer: IpAddr) -> bool {
        let peer = peer.to_canonical();
        self.proxies.iter().any(|n| n.contains(&peer))
    }

    /// Checks that `client`, who sent `headers`, may use `api`. CORS preflight requests carry no
    /// credentials, so none are required (`preflight`).
    pub async fn check(
        &self,
        api: Api,
        client: IpAddr,
        headers: &HeaderMap,
        preflight: bool,
    ) -> Result<(), Error> {
        let guarded = match api {
            Api::Mirror => &self.mirror,
            Api::Prometheus => &self.prometheus,
            Api::Metrics => &self.metrics,
            Api::Admin => &self.admin,
        };
        if guarded.open {
            return Ok(());
        }
        let checked = guarded
            .check(&self.hash_limiter, client, headers, preflight)
            .await;
        checked.map_err(|denied| {
            guarded.denied.count(denied.reason());
            debug!(%client, api = api.name(), reason = denied.reason(), "access denied");
            denied.error(api)
        })
    }
}

impl ProtectedApi {
    async fn check(
        &self,
        hash_limiter: &PasswordHashLimiter,
        client: IpAddr,
        headers: &HeaderMap,
        preflight: bool,
    ) -> Result<(), Denied> {
        let networks = &self.rules.networks;
        if !networks.is_empty() && !networks.iter().any(|n| n.contains(&client)) {
            return Err(Denied::Network);
        }
        let Some(credentials) = &self.rules.credentials else {
            return match self.api {
                Api::Admin if !self.rules.demonstration => Err(Denied::Closed),
                _ => Ok(()),
            };
        };
        if preflight {
            return Ok(());
        }
        let credentials = credentials.get();
        let schemes = credentials.schemes();
        match credentials.check(hash_limiter, client, headers).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(fault)) => Err(Denied::Credentials { fault, schemes }),
            Err(HashLimiterBusy) => Err(Denied::HashLimiterBusy),
        }
    }
}

impl Denied {
    /// Returns its name in metrics and logs.
    fn reason(self) -> &'static str {
        match self {
            Self::Network => "network",
            Self::Closed => "closed",
            Self::Credentials { .. } => "credentials",
            Self::HashLimiterBusy => "busy",
        }
    }

    fn error(self, api: Api) -> Error {
        let api = api.name();
        match self {
            Self::Network => {
                let message = format!("this client address has no access (access.{api}.networks)");
                Error::new(Kind::ClientNotAllowed, message)
            }
            Self::Closed => {
                let message = format!("this API is closed: set tokens or users in [access.{api}]");
                Error::new(Kind::ClientNotAllowed, message)
            }
            Self::Credentials { fault, schemes } => {
                let fault = match fault {
                    Fault::Missing => "an Authorization header is required",
                    Fault::Unreadable => "the Authorization header is invalid",
                    Fault::Wrong => "unknown token, or unknown user and password",
                };
                let message = format!("{fault} (access.{api}; {})", schemes.replace(' ', " or "));
                Error::new(Kind::Unauthenticated, message).about(schemes)
            }
            Self::HashLimiterBusy => {
                let message = "too many passwords are being checked; try again later";
                Error::new(Kind::Overloaded, message)
            }
        }
    }
}

#[cfg(test)]
mod tests;
