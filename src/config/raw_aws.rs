//! The keys of the file for AWS, and for the units that an upstream bills.

use std::time::Duration;

use serde::Deserialize;

use super::values::{SecretSource, Text};
use crate::model::TargetUrl;

/// The units that an upstream bills.
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawUnits {
    pub(super) per_hour: Option<u32>,
    pub(super) per_day: Option<u32>,
    pub(super) per_month: Option<u32>,
    pub(super) price: Option<f64>,
    pub(super) currency: Option<String>,
    pub(super) statistics: Option<u32>,
}

/// A rule for the metrics of a namespace.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawNamespace {
    pub(super) name: Option<String>,
    pub(super) metrics: Vec<String>,
    pub(super) interval: Option<Text<Duration>>,
    pub(super) settle: Option<Text<Duration>>,
    pub(super) refresh: Option<Text<Duration>>,
}

/// Rules for sharing one call between fetches.
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawBatch {
    pub(super) window: Option<Text<Duration>>,
    pub(super) queries: Option<u32>,
}

/// Settings for signing requests to AWS.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawAws {
    pub(super) region: Option<String>,
    pub(super) service: Option<String>,
    pub(super) access_key: Option<SecretSource>,
    pub(super) secret_key: Option<SecretSource>,
    pub(super) session_token: Option<SecretSource>,
    pub(super) profile: Option<String>,
    pub(super) role: Option<String>,
    pub(super) external_id: Option<String>,
    pub(super) session: Option<String>,
    pub(super) sts_url: Option<Text<TargetUrl>>,
}

impl RawAws {
    /// Returns whether any key is set.
    pub(super) fn is_set(&self) -> bool {
        let Self {
            region,
            service,
            access_key,
            secret_key,
            session_token,
            profile,
            role,
            external_id,
            session,
            sts_url,
        } = self;
        let texts = [region, service, profile, role, external_id, session];
        let secrets = [access_key, secret_key, session_token];
        texts.iter().any(|t| t.is_some())
            || secrets.iter().any(|s| s.is_some())
            || sts_url.is_some()
    }
}
