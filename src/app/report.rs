//! The report of the admin API about the configuration in use.

use super::{App, exposure};
use crate::config::Config;
use crate::front::{ConfigReport, ReloadReport, UpstreamEntry};

/// Returns what to say of the configuration of `app`, of a service that started with `first`.
pub(super) fn report(app: &App, first: &Config, reload: Option<ReloadReport>) -> ConfigReport {
    let config = &app.config;
    let upstream = |upstream: &crate::config::Upstream| UpstreamEntry {
        name: upstream.name.clone(),
        kind: upstream.kind.name(),
        default: upstream.name == config.default_upstream,
    };
    ConfigReport {
        version: env!("CARGO_PKG_VERSION"),
        file: config.file().map(str::to_owned),
        read_time: app.since,
        reload,
        restart: super::reload::only_at_start(first, config),
        warnings: exposure::warnings(config, first.server.listen),
        settings: config.settings(),
        upstreams: config.upstreams.iter().map(upstream).collect(),
    }
}
