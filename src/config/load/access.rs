//! Access rules: networks, tokens, users.

use super::{Checker, ConfigError, Place};
use crate::config::raw;
use crate::config::{AccessSettings, ApiAccess};
use crate::model::{PasswordHash, TokenHash};

impl Checker<'_> {
    pub(super) fn access(&self, raw: &raw::RawAccess) -> Result<AccessSettings, ConfigError> {
        Ok(AccessSettings {
            trusted_proxies: raw.trusted_proxies.iter().map(|n| n.0).collect(),
            mirror: self.api("access.mirror", &raw.mirror)?,
            prometheus: self.api("access.prometheus", &raw.prometheus)?,
            metrics: self.api("access.metrics", &raw.metrics)?,
            admin: self.api("access.admin", &raw.admin)?,
        })
    }

    fn api(
        &self,
        section: &'static str,
        raw: &raw::RawApiAccess,
    ) -> Result<ApiAccess, ConfigError> {
        let place = Place {
            section,
            index: None,
        };
        let mut api = ApiAccess {
            networks: raw.networks.iter().map(|n| n.0).collect(),
            ..ApiAccess::default()
        };
        for (index, source) in raw.tokens.iter().enumerate() {
            let key = format!("tokens[{index}]");
            let secret = self.secret(place, &key, source)?;
            TokenHash::parse(secret.reveal()).map_err(|e| self.error(place, &key, e))?;
            api.tokens.push(secret);
        }
        for (name, source) in &raw.users {
            if name.is_empty() || name.contains(|c: char| c == ':' || c.is_control()) {
                // The name is not shown: the part after a colon may be a password.
                let message = "a user's name must not be empty and must not contain colons or control characters; write NAME = \"HASH\"";
                return Err(self.error(place, "users", message));
            }
            let key = format!("users.{name}");
            let secret = self.secret(place, &key, source)?;
            PasswordHash::parse(secret.reveal()).map_err(|e| self.error(place, &key, e))?;
            api.users.push((name.clone(), secret));
        }
        Ok(api)
    }
}
