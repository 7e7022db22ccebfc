//! The second levels of the cache that a configuration describes.

use std::sync::Arc;
use std::time::Duration;

use super::StartError;
use crate::clock::Clock;
use crate::config::Config;
use crate::engine::LevelSetup;
use crate::store::disk::Disk;
use crate::store::joint::JointLimits;

/// Most time that a request waits for the disk before it asks the upstream.
const DISK_DEADLINE: Duration = Duration::from_millis(50);

/// Opens the levels of `config`, in the order in which they are asked, with the limits that replicas
/// keep together, if they do.
pub(super) async fn open(
    config: &Config,
    clock: &Arc<dyn Clock>,
) -> Result<(Vec<LevelSetup>, Option<Arc<JointLimits>>), StartError> {
    let mut levels = Vec::new();
    #[cfg_attr(not(feature = "shared"), allow(unused_mut))]
    let mut joint = None;
    if let Some(settings) = config.cache_disk.clone() {
        let clock = clock.clone();
        let open = move || Disk::open(&settings.dir, settings.size, clock);
        let opened = tokio::task::spawn_blocking(open).await;
        let opened = opened.map_err(|e| StartError(format!("cache.disk.dir: {e}")))?;
        let disk = opened.map_err(|e| StartError(format!("cache.disk.dir: {e}")))?;
        levels.push(LevelSetup {
            level: Arc::new(disk),
            deadline: DISK_DEADLINE,
        });
    }
    #[cfg(feature = "shared")]
    if let Some(settings) = &config.cache_shared {
        let shared = redis_settings(settings, config).map_err(StartError)?;
        let level = crate::store::redis::RedisLevel::start(shared, clock.clone());
        let replicas = &config.replicas;
        if replicas.share_limits {
            let (forget_after, without) = (replicas.forget_after, replicas.limits_without_redis);
            let (limits, asked) =
                JointLimits::new(level.instance(), forget_after, without, clock.clone());
            level.keep_limits(&limits, asked, forget_after);
            joint = Some(limits);
        }
        levels.push(LevelSetup {
            level,
            deadline: settings.timeout,
        });
    }
    Ok((levels, joint))
}

/// The settings of the shared level; reads the files of its certificates.
#[cfg(feature = "shared")]
pub(super) fn redis_settings(
    settings: &crate::config::CacheShared,
    config: &Config,
) -> Result<crate::store::redis::RedisSettings, String> {
    use crate::config::{Secret, SharedMode};
    use crate::store::redis::{RedisMode, RedisSettings};
    let read = |path: &std::path::PathBuf| {
        std::fs::read(path).map_err(|e| format!("cache.shared.tls: {}: {e}", path.display()))
    };
    let text = |secret: &Option<Secret>| secret.as_ref().map(|s| s.reveal().to_owned());
    let identity = settings.tls.identity.as_ref();
    let identity = identity.map(|(cert, key)| Ok::<_, String>((read(cert)?, read(key)?)));
    let name = config.replicas.name.clone().unwrap_or_else(|| {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        format!("{}:{}", host.trim(), config.server.listen.port())
    });
    Ok(RedisSettings {
        urls: settings.urls.clone(),
        mode: match &settings.mode {
            SharedMode::Single => RedisMode::Single,
            SharedMode::Cluster => RedisMode::Cluster,
            SharedMode::Sentinel(master) => RedisMode::Sentinel(master.clone()),
        },
        username: settings.username.clone(),
        password: text(&settings.password),
        sentinel_username: settings.sentinel_username.clone(),
        sentinel_password: text(&settings.sentinel_password),
        ca: settings.tls.ca.as_ref().map(read).transpose()?,
        identity: identity.transpose()?,
        prefix: settings.prefix.clone(),
        secret: settings.secret.reveal().to_owned(),
        fetch_once: config.replicas.fetch_once,
        name,
    })
}

/// Tries the shared level of `config`, if there is one: where it is, what it is, and what about it
/// will hurt.
pub async fn inspect(config: &Config) -> Option<(String, Result<(String, Vec<String>), String>)> {
    let settings = config.cache_shared.as_ref()?;
    let address = settings.urls.join(" ");
    #[cfg(feature = "shared")]
    let result = match redis_settings(settings, config) {
        Ok(settings) => {
            let inspected = crate::store::redis::inspect(&settings).await;
            inspected.map_err(|e| e.to_string())
        }
        Err(e) => Err(e),
    };
    #[cfg(not(feature = "shared"))]
    let result = Err("this build has no shared cache".to_owned());
    Some((address, result))
}
