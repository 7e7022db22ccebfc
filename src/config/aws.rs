//! Settings for signing requests to AWS.

use std::collections::BTreeMap;

use super::Secret;
use crate::model::TargetUrl;

/// Settings for signing requests to an upstream.
#[derive(Clone, Debug, PartialEq)]
pub struct Aws {
    /// The region in the signature, such as `eu-west-1`.
    pub region: String,
    /// The service in the signature, such as `aps` or `monitoring`.
    pub service: String,
    /// The keys in the file.
    pub keys: Option<AwsKeys>,
    /// The profile in AWS' own files whose credentials are used.
    pub profile: Option<String>,
    /// The role to assume with the credentials.
    pub role: Option<AwsRole>,
    /// The address of STS, if not the default.
    pub sts_url: Option<TargetUrl>,
    /// `HOME` and the variables of the environment that start with `AWS_`.
    pub environment: BTreeMap<String, Secret>,
}

/// Keys of an AWS account.
#[derive(Clone, Debug, PartialEq)]
pub struct AwsKeys {
    /// The id of the access key.
    pub access_key: Secret,
    /// Its secret.
    pub secret_key: Secret,
    /// The token of temporary keys.
    pub session_token: Option<Secret>,
}

/// A role to assume.
#[derive(Clone, Debug, PartialEq)]
pub struct AwsRole {
    /// `arn:PARTITION:iam::ACCOUNT:role/NAME`.
    pub arn: String,
    /// The external ID that its trust policy requires, if it does.
    pub external_id: Option<String>,
    /// The name of the role's session.
    pub session: String,
}

impl Aws {
    /// Returns whether requests that are signed like `other` see the same data.
    pub(super) fn has_data_of(&self, other: &Self) -> bool {
        let key = |aws: &Self| aws.keys.as_ref().map(|k| k.access_key.clone());
        self.region == other.region
            && self.service == other.service
            && self.profile == other.profile
            && self.role == other.role
            && key(self) == key(other)
    }
}
