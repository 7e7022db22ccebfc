//! Who may ask: rules for each face of the service, about the client's address and about what it
//! proves itself with.

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

/// A part of the service that has rules of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Api {
    /// The mirror API and the page at `/`.
    Mirror,
    /// Prometheus' HTTP API.
    Prometheus,
    /// `/metrics`.
    Metrics,
    /// `/admin/…`; closed to all without tokens and users.
    Admin,
}

impl Api {
    /// Its name in the configuration and in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mirror => "mirror",
            Self::Prometheus => "prometheus",
            Self::Metrics => "metrics",
            Self::Admin => "admin",
        }
    }
}

/// Who may ask one face. The default is everybody, but of [`Api::Admin`] nobody.
#[derive(Default)]
pub struct Rules {
    /// Clients may come from these only; none is anywhere.
    pub networks: Vec<IpNet>,
    /// One of these is needed, if there are any.
    pub credentials: Option<Reloadable<Credentials>>,
}

/// Who may ask, by face.
pub struct AccessControl {
    /// Whose `X-Forwarded-For` is believed.
    proxies: Vec<IpNet>,
    mirror: ProtectedApi,
    prometheus: ProtectedApi,
    metrics: ProtectedApi,
    admin: ProtectedApi,
    hash_limiter: PasswordHashLimiter,
}

/// A face and its rules.
struct ProtectedApi {
    api: Api,
    /// Whether anyone may ask.
    open: bool,
    rules: Rules,
    denied: AccessMetrics,
}

/// Why a client is turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Denied {
    Network,
    Closed,
    Credentials { fault: Fault, schemes: &'static str },
    HashLimiterBusy,
}

impl fmt::Debug for AccessControl {
    /// Rules are of no use in logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AccessControl(…)")
    }
}

impl AccessControl {
    /// AccessControl by `rules`, which is asked for those of each face. Clients are known by what
    /// `X-Forwarded-For` says where it comes from `proxies`.
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

    /// The address of the client whose request came from `peer` with `headers`.
    pub fn client(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        forwarded::client(&self.proxies, peer, headers)
    }

    /// Whether `client`, who sent `headers`, may ask `face`. The question before the question that
    /// browsers send without credentials (`preflight`) needs none.
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
            debug!(%client, api = api.name(), reason = denied.reason(), "turned away");
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
                Api::Admin => Err(Denied::Closed),
                _ => Ok(()),
            };
        };
        if preflight {
            return Ok(());
        }
        let credentials = credentials.get();
        let schemes = credentials.schemes();
        match credentials.check(hash_limiter, headers).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(fault)) => Err(Denied::Credentials { fault, schemes }),
            Err(HashLimiterBusy) => Err(Denied::HashLimiterBusy),
        }
    }
}

impl Denied {
    /// Its name in metrics and logs.
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
                let message = format!("not from this address (access.{api}.networks)");
                Error::new(Kind::ClientNotAllowed, message)
            }
            Self::Closed => {
                let message = format!("this API is closed: set tokens or users in [access.{api}]");
                Error::new(Kind::ClientNotAllowed, message)
            }
            Self::Credentials { fault, schemes } => {
                let fault = match fault {
                    Fault::Missing => "an Authorization header is needed",
                    Fault::Unreadable => "the Authorization header cannot be read",
                    Fault::Wrong => "the token, or the user and password, is not one that is known",
                };
                let message = format!("{fault} (access.{api}; {})", schemes.replace(' ', " or "));
                Error::new(Kind::Unauthenticated, message).about(schemes)
            }
            Self::HashLimiterBusy => {
                let message = "too many passwords are being checked; ask again later";
                Error::new(Kind::Overloaded, message)
            }
        }
    }
}

#[cfg(test)]
mod tests;
