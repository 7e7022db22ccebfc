//! Signers of requests to AWS.

use std::sync::Arc;

use crate::clock::Clock;
use crate::config::{self, Secret};
use crate::reloadable::Reloadable;
use crate::upstream::{AwsSettings, AwsSigner, Keys, Role, Transport};

/// Returns what signs the requests to the upstream that `settings` describe, if they are signed. It
/// reaches STS by `transport`, and sources of credentials on this machine by `plain`.
pub(super) fn signer(
    settings: &config::Upstream,
    transport: &Arc<dyn Transport>,
    plain: &Arc<dyn Transport>,
    clock: &Arc<dyn Clock>,
) -> Result<Option<AwsSigner>, String> {
    let Some(aws) = &settings.aws else {
        return Ok(None);
    };
    let name = format!("upstream {} aws", settings.name);
    let keys = aws.keys.as_ref();
    let keys = keys.map(|keys| follow(name, keys, clock)).transpose()?;
    let environment = aws.environment.iter();
    let environment = environment.map(|(name, value)| (name.clone(), value.reveal().to_owned()));
    Ok(Some(AwsSigner::new(AwsSettings {
        upstream: settings.name.clone(),
        region: aws.region.clone(),
        service: aws.service.clone(),
        keys,
        profile: aws.profile.clone(),
        role: aws.role.as_ref().map(|role| Role {
            arn: role.arn.clone(),
            external_id: role.external_id.clone(),
            session: role.session.clone(),
        }),
        sts_url: aws.sts_url.clone(),
        environment: environment.collect(),
        transport: transport.clone(),
        local: plain.clone(),
        clock: clock.clone(),
    })))
}

/// Returns `keys` as their files say them.
fn follow(
    name: String,
    keys: &config::AwsKeys,
    clock: &Arc<dyn Clock>,
) -> Result<Reloadable<Keys>, String> {
    let keys = keys.clone();
    let secrets = [
        Some(&keys.access_key),
        Some(&keys.secret_key),
        keys.session_token.as_ref(),
    ];
    let paths = secrets.into_iter().flatten().filter_map(Secret::file);
    let paths = paths.map(Into::into).collect();
    Reloadable::new(name, paths, clock.clone(), move |contents| {
        let mut contents = contents.iter();
        let mut text = |secret: &Secret| secret.reread(&mut contents);
        Ok(Keys {
            access_key: text(&keys.access_key)?,
            secret_key: text(&keys.secret_key)?,
            session_token: keys.session_token.as_ref().map(text).transpose()?,
        })
    })
}
