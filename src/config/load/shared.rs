//! `[cache.disk]`, `[cache.shared]` and `[replicas]`: the second levels of the cache.

use std::time::Duration;

use url::Url;

use super::{Checker, ConfigError, Place};
use crate::config::raw::{self, RawSharedMode};
use crate::config::values::{Secret, SecretSource};
use crate::config::{CacheDisk, CacheShared, Replicas, SharedMode};

/// The smallest size of a second level on disk.
const SMALLEST_DISK: u64 = 16 << 20;

/// The longest time that a request may wait for the shared level: most upstreams are faster than
/// that.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// The shortest secret; shorter ones can be guessed.
const SHORTEST_SECRET: usize = 16;

const DISK: Place = Place {
    section: "cache.disk",
    index: None,
};

const REPLICAS: Place = Place {
    section: "replicas",
    index: None,
};

/// The shortest and the longest time after which a silent replica is forgotten.
const FORGET: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(86_400));

const SHARED: Place = Place {
    section: "cache.shared",
    index: None,
};

impl Checker<'_> {
    /// Returns the second level on disk. Its folder is opened when the service starts.
    pub(super) fn cache_disk(
        &self,
        raw: &raw::RawCacheDisk,
    ) -> Result<Option<CacheDisk>, ConfigError> {
        let size = raw.size.as_ref().map_or(10 << 30, |s| s.0.0);
        if size < SMALLEST_DISK {
            return Err(self.error(DISK, "size", "must be at least \"16MiB\""));
        }
        let dir = raw.dir.as_deref().filter(|dir| !dir.is_empty());
        Ok(dir.map(|dir| CacheDisk {
            dir: dir.into(),
            size,
        }))
    }

    /// Returns the settings of replicas; `shared` says whether they share a second level.
    pub(super) fn replicas(
        &self,
        raw: &raw::RawReplicas,
        shared: bool,
    ) -> Result<Replicas, ConfigError> {
        let wrong = |key: &str, message: &str| Err(self.error(REPLICAS, key, message));
        let forget_after = raw
            .forget_after
            .as_ref()
            .map_or(Duration::from_secs(300), |t| t.0);
        if forget_after < FORGET.0 || forget_after > FORGET.1 {
            return wrong("forget_after", "must be from \"10s\" to \"1d\"");
        }
        let limits_without_redis = raw.limits_without_redis.unwrap_or(0.0);
        if !(0.0..=1e6).contains(&limits_without_redis) {
            return wrong(
                "limits_without_redis",
                "must be from 0 to 1000000 calls a second",
            );
        }
        if raw.share_limits && !shared {
            return wrong(
                "share_limits",
                "needs what replicas share: set urls in [cache.shared]",
            );
        }
        let name = raw.name.clone().filter(|name| !name.is_empty());
        if name
            .as_ref()
            .is_some_and(|name| name.len() > 200 || name.chars().any(char::is_control))
        {
            return wrong(
                "name",
                "must be at most 200 bytes, without control characters",
            );
        }
        Ok(Replicas {
            name,
            share_limits: raw.share_limits,
            fetch_once: raw.fetch_once.unwrap_or(true),
            forget_after,
            limits_without_redis,
        })
    }

    /// Returns the second level that replicas share.
    pub(super) fn cache_shared(
        &self,
        raw: &raw::RawCacheShared,
    ) -> Result<Option<CacheShared>, ConfigError> {
        let wrong = |key: &str, message: String| Err(self.error(SHARED, key, message));
        let timeout = raw
            .timeout
            .as_ref()
            .map_or(Duration::from_millis(50), |t| t.0);
        if timeout < Duration::from_millis(1) || timeout > LONGEST_WAIT {
            return wrong("timeout", "must be from \"1ms\" to \"1s\"".into());
        }
        let prefix = raw.prefix.as_deref().unwrap_or("h1");
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ':');
        if prefix.is_empty() || prefix.len() > 64 || !prefix.chars().all(plain) {
            return wrong(
                "prefix",
                format!(
                    "{prefix:?} is invalid; use 1 to 64 letters, digits, '-', '_', '.' and ':'"
                ),
            );
        }
        let secret_of = |key: &str, source: &Option<SecretSource>| {
            let secret = source.as_ref().map(|s| self.secret(SHARED, key, s));
            let secret = secret.transpose()?;
            Ok(secret.filter(|secret: &Secret| !secret.reveal().is_empty()))
        };
        let (password, sentinel_password) = (
            secret_of("password", &raw.password)?,
            secret_of("sentinel_password", &raw.sentinel_password)?,
        );
        let secret = secret_of("secret", &raw.secret)?;
        let tls = self.client_tls(SHARED, &raw.tls)?;
        if tls.insecure {
            return wrong(
                "tls.insecure",
                "is not known here; set tls.ca instead".into(),
            );
        }
        if raw.urls.is_empty() {
            return Ok(None);
        }
        if cfg!(not(feature = "shared")) {
            let message = "this build has no shared cache; build with: cargo build --release --features shared";
            return wrong("urls", message.into());
        }
        let mut schemes = Vec::new();
        for (at, text) in raw.urls.iter().enumerate() {
            let key = format!("urls[{at}]");
            // The problem is not repeated: the URL may contain a password.
            let Ok(url) = Url::parse(text) else {
                return wrong(
                    &key,
                    "is not a URL; write it as \"redis://host:6379\"".into(),
                );
            };
            if !matches!(url.scheme(), "redis" | "rediss") || url.host_str().is_none() {
                return wrong(
                    &key,
                    "must start with redis:// or, with TLS, rediss://, and name a host".into(),
                );
            }
            if !url.username().is_empty() || url.password().is_some() {
                return wrong(
                    &key,
                    "must not contain a user or a password; use username and password".into(),
                );
            }
            schemes.push(url.scheme().to_owned());
        }
        schemes.dedup();
        if schemes.len() > 1 {
            return wrong(
                "urls",
                "must all start with redis://, or all with rediss://".into(),
            );
        }
        let master = raw.master.clone().filter(|m| !m.is_empty());
        let mode = match (raw.mode.unwrap_or_default(), master) {
            (RawSharedMode::Single, _) if raw.urls.len() > 1 => {
                return wrong(
                    "urls",
                    "several are for mode = \"cluster\" and mode = \"sentinel\"".into(),
                );
            }
            (RawSharedMode::Single, _) => SharedMode::Single,
            (RawSharedMode::Cluster, _) => SharedMode::Cluster,
            (RawSharedMode::Sentinel, Some(master)) => SharedMode::Sentinel(master),
            (RawSharedMode::Sentinel, None) => {
                return wrong(
                    "master",
                    "is required with mode = \"sentinel\": the name of the master, such as \"mymaster\"".into(),
                );
            }
        };
        let Some(secret) = secret.filter(|s| s.reveal().len() >= SHORTEST_SECRET) else {
            return wrong(
                "secret",
                "is required: at least 16 characters, the same at all replicas; `openssl rand -hex 32` makes one".into(),
            );
        };
        let some = |text: &Option<String>| text.clone().filter(|t| !t.is_empty());
        Ok(Some(CacheShared {
            urls: raw.urls.clone(),
            mode,
            username: some(&raw.username),
            password,
            sentinel_username: some(&raw.sentinel_username),
            sentinel_password,
            tls,
            prefix: prefix.to_owned(),
            secret,
            timeout,
        }))
    }
}
