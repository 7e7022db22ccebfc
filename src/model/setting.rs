//! A setting in effect, for displays of the configuration.

use serde::Serialize;

/// One key of the configuration with the value that is in effect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Setting {
    /// The key, such as `upstream[0].rate_limit.per_second`.
    pub key: String,
    /// The value as TOML; `(secret)` in place of a secret.
    pub value: String,
    /// The origin of the value.
    pub origin: SettingOrigin,
    /// Where exactly: `FILE:LINE`, or the name of a variable.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
}

/// The origin of a value of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SettingOrigin {
    /// Nothing: it has its default.
    Default,
    /// The configuration file.
    File,
    /// A variable of the environment.
    Environment,
}
