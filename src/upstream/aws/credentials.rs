//! Where credentials come from, and when they are renewed.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use http::request::Parts;
use reqsign_aws_v4::{
    AssumeRoleCredentialProvider, AssumeRoleWithWebIdentityCredentialProvider, Credential,
    ECSCredentialProvider, EnvCredentialProvider, IMDSv2CredentialProvider,
    ProcessCredentialProvider, ProfileCredentialProvider, RequestSigner, SSOCredentialProvider,
    StaticCredentialProvider,
};
use reqsign_core::time::Timestamp;
use reqsign_core::{
    Context, ProvideCredential, ProvideCredentialDyn, SignRequest, Signer, StaticEnv,
};
use tracing::{debug, warn};

use super::io::{Commands, Files, Http, below};
use super::{AwsSettings, Keys, Role};
use crate::clock::Clock;
use crate::model::{Error, Kind, Millis, TargetUrl};
use crate::reloadable::Reloadable;

/// How long before their end credentials are renewed, and how soon those without an end are looked
/// up again, which may be in files that change.
const AHEAD: Duration = Duration::from_secs(300);
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// How long before their end credentials are no longer used: a request takes its time.
const LAST: Millis = 10_000;

/// Most time of one renewal.
const RENEWAL: Duration = Duration::from_secs(30);

/// The longest wait after a renewal that failed; the first is a second, each next twice as long.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// Credentials, and where they are from.
pub(super) struct Issued {
    /// Without its end, which is by our clock and not by reqsign's.
    pub(super) credential: Credential,
    expires: Option<Millis>,
    source: String,
}

type Renewal = Shared<BoxFuture<'static, Result<Arc<Issued>, String>>>;

/// The credentials of an upstream. They are renewed by a task of its own, one at a time; what it
/// brings is for all who wait.
pub(super) struct Credentials {
    upstream: String,
    provider: Provider,
    clock: Arc<dyn Clock>,
    // A plain mutex: it is held for a look and never across an await.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    current: Option<Arc<Issued>>,
    /// When they are to be renewed, by the monotonic clock.
    due: Duration,
    renewing: Option<Renewal>,
    /// Renewals that failed in a row, why the last one did, and when the next may be tried.
    failures: u32,
    reason: String,
    next: Duration,
}

impl Credentials {
    pub(super) fn new(settings: AwsSettings) -> Arc<Self> {
        Arc::new(Self {
            upstream: settings.upstream.clone(),
            clock: settings.clock.clone(),
            provider: Provider::new(settings),
            state: Mutex::default(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Its parts are set one by one, and any mixture of them is sound.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where those in use come from.
    pub(super) fn source(&self) -> Option<String> {
        self.state().current.as_ref().map(|c| c.source.clone())
    }

    /// Returns credentials that are valid now. Where a renewal is due, those in use serve up to
    /// their end; without any, this waits for it.
    pub(super) async fn get(self: &Arc<Self>) -> Result<Arc<Issued>, Error> {
        let renewal = {
            let mut state = self.state();
            let (now, wall) = (self.clock.monotonic(), self.clock.now());
            let valid = |c: &&Arc<Issued>| c.expires.is_none_or(|e| e > wall.saturating_add(LAST));
            let usable = state.current.as_ref().filter(valid).cloned();
            if let Some(usable) = &usable
                && now < state.due
            {
                return Ok(usable.clone());
            }
            if state.renewing.is_none() && now >= state.next {
                let this = self.clone();
                let task = tokio::spawn(async move { this.renew().await });
                let ended = |e| Err(format!("the renewal broke off: {e}"));
                let renewal = async move { task.await.unwrap_or_else(ended) };
                state.renewing = Some(renewal.boxed().shared());
            }
            if let Some(usable) = usable {
                return Ok(usable);
            }
            let wait = state.next.saturating_sub(now);
            let waiting = state.renewing.clone();
            waiting.ok_or_else(|| unavailable(&state.reason).retry_after(Some(wait)))?
        };
        renewal.await.map_err(|reason| unavailable(&reason))
    }

    /// Takes `issued`, which were refused, out of use. Returns whether others may be had: a renewal
    /// that brings the same again changes nothing.
    pub(super) fn end(&self, issued: &Arc<Issued>) -> bool {
        let mut state = self.state();
        match &state.current {
            Some(current) if Arc::ptr_eq(current, issued) => {
                state.current = None;
                true
            }
            Some(current) => current.credential.access_key_id != issued.credential.access_key_id,
            None => true,
        }
    }

    async fn renew(&self) -> Result<Arc<Issued>, String> {
        let outcome = tokio::time::timeout(RENEWAL, self.provider.provide()).await;
        let outcome = outcome.unwrap_or_else(|_| {
            let limit = humantime::format_duration(RENEWAL);
            Err(format!("they did not come within {limit}"))
        });
        let (now, wall) = (self.clock.monotonic(), self.clock.now());
        let mut state = self.state();
        state.renewing = None;
        match outcome {
            Ok((credential, source)) => {
                let expires = credential
                    .expires_in
                    .map(|t| t.as_second().saturating_mul(1000));
                let credential = Credential {
                    expires_in: None,
                    ..credential
                };
                let issued = Arc::new(Issued {
                    credential,
                    expires,
                    source,
                });
                state.due = now.saturating_add(lifetime(expires, wall));
                state.failures = 0;
                state.next = Duration::ZERO;
                state.current = Some(issued.clone());
                debug!(
                    upstream = self.upstream,
                    source = issued.source,
                    "credentials renewed"
                );
                Ok(issued)
            }
            Err(reason) => {
                let wait = Duration::from_secs(1 << state.failures.min(5)).min(LONGEST_WAIT);
                state.failures = state.failures.saturating_add(1);
                state.next = now.saturating_add(wait);
                state.reason.clone_from(&reason);
                warn!(upstream = self.upstream, "no new credentials: {reason}");
                Err(reason)
            }
        }
    }
}

/// For how long credentials that end at `expires` are used before they are renewed.
fn lifetime(expires: Option<Millis>, now: Millis) -> Duration {
    let Some(expires) = expires else {
        return LOOK_AGAIN;
    };
    let life = u64::try_from(expires.saturating_sub(now)).unwrap_or(0);
    let life = Duration::from_millis(life);
    life.saturating_sub(AHEAD).max(life / 2)
}

fn unavailable(reason: &str) -> Error {
    let message = format!("the upstream's credentials cannot be had: {reason}");
    Error::new(Kind::UpstreamFailed, message)
}

type Source = Box<dyn ProvideCredentialDyn<Credential = Credential>>;

/// Looks credentials up.
struct Provider {
    context: Context,
    base: Arc<Chain>,
    role: Option<Role>,
    region: String,
    sts_url: Option<TargetUrl>,
}

impl Provider {
    fn new(settings: AwsSettings) -> Self {
        let home = settings.environment.get("HOME").map(Into::into);
        let envs: HashMap<String, String> = settings.environment.into_iter().collect();
        let context = Context::new()
            .with_env(StaticEnv {
                home_dir: home,
                envs,
            })
            .with_file_read(Files)
            .with_command_execute(Commands)
            .with_http_send(Http {
                transport: settings.transport,
                local: settings.local,
                sts_url: settings.sts_url.clone(),
            });
        Self {
            context,
            base: Arc::new(Chain::new(
                settings.keys,
                settings.profile,
                &settings.region,
            )),
            role: settings.role,
            region: settings.region,
            sts_url: settings.sts_url,
        }
    }

    /// Returns credentials and their source, or why there are none.
    async fn provide(&self) -> Result<(Credential, String), String> {
        let (base, source) = self.base.provide(&self.context).await?;
        let Some(role) = &self.role else {
            return Ok((base, source));
        };
        let sts = StsSigner {
            signer: RequestSigner::new("sts", &self.region),
            url: self.sts_url.clone(),
        };
        let token = base.session_token.as_deref();
        let (id, secret) = (&base.access_key_id, &base.secret_access_key);
        let known = match token {
            Some(token) => StaticCredentialProvider::new(id, secret).with_session_token(token),
            None => StaticCredentialProvider::new(id, secret),
        };
        let signer = Signer::new(self.context.clone(), known, sts);
        let mut assume = AssumeRoleCredentialProvider::new(role.arn.clone(), signer)
            .with_region(self.region.clone())
            .with_regional_sts_endpoint()
            .with_role_session_name(role.session.clone());
        if let Some(id) = &role.external_id {
            assume = assume.with_external_id(id.clone());
        }
        match assume.provide_credential(&self.context).await {
            Ok(Some(credential)) => {
                let source = format!("role {}, from {source}", role.arn);
                Ok((credential, source))
            }
            Ok(None) => Err(format!("the role {} was not given", role.arn)),
            Err(e) => Err(format!("role {}: {}", role.arn, line(&e))),
        }
    }
}

/// Signs calls to STS for where it is.
#[derive(Debug)]
struct StsSigner {
    signer: RequestSigner,
    url: Option<TargetUrl>,
}

impl SignRequest for StsSigner {
    type Credential = Credential;

    fn required_valid_until(
        &self,
        credential: &Credential,
        expires_in: Option<Duration>,
    ) -> Timestamp {
        self.signer.required_valid_until(credential, expires_in)
    }

    async fn sign_request(
        &self,
        context: &Context,
        request: &mut Parts,
        credential: Option<&Credential>,
        expires_in: Option<Duration>,
    ) -> reqsign_core::Result<()> {
        if let Some(url) = &self.url {
            let there = below(url, &request.uri).parse();
            request.uri =
                there.map_err(|_| reqsign_core::Error::config_invalid("sts_url makes no URL"))?;
        }
        self.signer
            .sign_request(context, request, credential, expires_in)
            .await
    }
}

/// Sources of credentials in the order in which they are asked.
struct Chain(Vec<(String, Source)>);

impl Chain {
    /// The keys of the configuration, or those of the `profile`, or whatever AWS' tools would find,
    /// in reqsign's order.
    fn new(keys: Option<Reloadable<Keys>>, profile: Option<String>, region: &str) -> Self {
        fn of(
            name: &str,
            source: impl ProvideCredential<Credential = Credential>,
        ) -> (String, Source) {
            (name.to_owned(), Box::new(source))
        }
        if let Some(keys) = keys {
            return Self(vec![of("the configuration", FromConfiguration(keys))]);
        }
        if let Some(profile) = profile {
            let name = format!("profile {profile}");
            return Self(vec![
                of(
                    &name,
                    ProfileCredentialProvider::new().with_profile(&profile),
                ),
                of(
                    &format!("{name}, SSO"),
                    SSOCredentialProvider::new().with_profile(&profile),
                ),
                of(
                    &format!("{name}, credential_process"),
                    ProcessCredentialProvider::new().with_profile(&profile),
                ),
            ]);
        }
        let web_identity = AssumeRoleWithWebIdentityCredentialProvider::new()
            .with_region(region.to_owned())
            .with_regional_sts_endpoint();
        Self(vec![
            of("the environment", EnvCredentialProvider::new()),
            of("the default profile", ProfileCredentialProvider::new()),
            of("SSO", SSOCredentialProvider::new()),
            of("web identity", web_identity),
            of("credential_process", ProcessCredentialProvider::new()),
            of("the container", ECSCredentialProvider::new()),
            of("the instance (IMDSv2)", IMDSv2CredentialProvider::new()),
        ])
    }

    /// Returns the credentials of the first source that has some. One that should have some and fails
    /// ends the search: what the next has may be those of somebody else.
    async fn provide(&self, context: &Context) -> Result<(Credential, String), String> {
        for (name, source) in &self.0 {
            match source.provide_credential_dyn(context).await {
                Ok(Some(credential)) => return Ok((credential, name.clone())),
                Ok(None) => {}
                Err(e) => return Err(format!("{name}: {}", line(&e))),
            }
        }
        let names: Vec<_> = self.0.iter().map(|(name, _)| name.as_str()).collect();
        Err(format!("there are none in {}", names.join(", ")))
    }
}

/// The first line of what `error` says: AWS' errors about signatures go on with the request, and
/// in it the session token.
fn line(error: &reqsign_core::Error) -> String {
    let text = error.to_string();
    text.lines()
        .next()
        .unwrap_or_default()
        .chars()
        .take(300)
        .collect()
}

/// Keys that the configuration says, as they are now.
struct FromConfiguration(Reloadable<Keys>);

impl fmt::Debug for FromConfiguration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FromConfiguration")
    }
}

impl ProvideCredential for FromConfiguration {
    type Credential = Credential;

    async fn provide_credential(&self, _: &Context) -> reqsign_core::Result<Option<Credential>> {
        let keys = self.0.get();
        Ok(Some(Credential {
            access_key_id: keys.access_key.clone(),
            secret_access_key: keys.secret_key.clone(),
            session_token: keys.session_token.clone(),
            expires_in: None,
        }))
    }
}
