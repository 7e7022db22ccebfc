//! The configuration in use, as the admin API shows it.

use serde::Serialize;

use crate::model::{Millis, Setting};

/// The configuration in use, and how it came to be.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ConfigReport {
    /// Heliostat's version.
    pub version: &'static str,
    /// The file that it was read from; `None` for the built-in defaults.
    pub file: Option<String>,
    /// When it was read, in milliseconds of Unix time.
    pub read_time: Millis,
    /// The last reload, if there was one.
    pub reload: Option<ReloadReport>,
    /// Keys that differ from those at the start and take effect with the next.
    pub restart: Vec<&'static str>,
    /// Unsafe or surprising settings, and what to set instead.
    pub warnings: Vec<String>,
    /// Every key that has a value.
    pub settings: Vec<Setting>,
    /// The upstreams, in the order of the file.
    #[serde(skip)]
    pub upstreams: Vec<UpstreamEntry>,
}

/// A reading of the configuration after the first.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ReloadReport {
    /// The time, in milliseconds of Unix time.
    pub time: Millis,
    /// The reason why it changed nothing, if it failed.
    pub error: Option<String>,
}

/// An upstream as it is configured.
#[derive(Clone, Debug)]
pub struct UpstreamEntry {
    /// Its name.
    pub name: String,
    /// Its kind, as in the file.
    pub kind: &'static str,
    /// Set if it serves requests that name no upstream.
    pub default: bool,
}
