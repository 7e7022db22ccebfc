//! Sources of credentials, and their renewal.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use reqsign_aws_v4::{
    AssumeRoleWithWebIdentityCredentialProvider, Credential, ECSCredentialProvider,
    EnvCredentialProvider, IMDSv2CredentialProvider, ProcessCredentialProvider,
    ProfileCredentialProvider, RequestSigner, SSOCredentialProvider,
};
use reqsign_core::time::Timestamp;
use reqsign_core::{Context, ProvideCredential, ProvideCredentialDyn, StaticEnv};
use tracing::{debug, warn};

use super::io::{Commands, Files, Http, MAX_BYTES};
use super::{AwsSettings, Keys, Role, signed_headers};
use crate::adapters::aws_error::{AwsError, element};
use crate::clock::Clock;
use crate::model::{Error, Kind, Millis, TargetUrl, partition};
use crate::reloadable::Reloadable;
use crate::upstream::answer_memory::AnswerMemory;
use crate::upstream::transport::{Outgoing, Transport};

/// The time before their end at which credentials are renewed, and the interval at which
/// credentials without an end are looked up again, as they may come from files that change.
const AHEAD: Duration = Duration::from_secs(300);
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// The time before their end at which credentials are no longer used, because a request takes its
/// time.
const LAST: Millis = 10_000;

/// Most time of one renewal.
const RENEWAL: Duration = Duration::from_secs(30);

/// The longest wait after a renewal that failed; the first is a second, each next twice as long.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// Credentials, and their source.
pub(super) struct Issued {
    /// Without its end, which is by our clock and not by reqsign's.
    pub(super) credential: Credential,
    expires: Option<Millis>,
    source: String,
}

type Renewal = Shared<BoxFuture<'static, Result<Arc<Issued>, String>>>;

/// The credentials of an upstream. They are renewed by a task of their own, one at a time, for all
/// requests that wait.
pub(super) struct Credentials {
    upstream: String,
    provider: Provider,
    clock: Arc<dyn Clock>,
    // A plain mutex: it is held for a look-up and never across an await.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    current: Option<Arc<Issued>>,
    /// The time of their renewal, by the monotonic clock.
    due: Duration,
    renewing: Option<Renewal>,
    /// Number of renewals that failed in a row, the reason of the last failure, and the time of the
    /// next attempt.
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

    /// Returns the source of those in use.
    pub(super) fn source(&self) -> Option<String> {
        self.state().current.as_ref().map(|c| c.source.clone())
    }

    /// Returns credentials that are valid now. While a renewal is due, those in use serve up to
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

    /// Takes `issued`, which were refused, out of use. Returns whether a renewal may bring others:
    /// one that brings the same again changes nothing.
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

/// Returns the time for which credentials that end at `expires` are used before they are renewed.
fn lifetime(expires: Option<Millis>, now: Millis) -> Duration {
    let Some(expires) = expires else {
        return LOOK_AGAIN;
    };
    let life = u64::try_from(expires.saturating_sub(now)).unwrap_or(0);
    let life = Duration::from_millis(life);
    life.saturating_sub(AHEAD).max(life / 2)
}

fn unavailable(reason: &str) -> Error {
    let message = format!("the upstream's credentials are not available: {reason}");
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
    transport: Arc<dyn Transport>,
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
                transport: settings.transport.clone(),
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
            transport: settings.transport,
        }
    }

    /// Returns credentials and their source, or the reason why there are none.
    async fn provide(&self) -> Result<(Credential, String), String> {
        let (base, source) = self.base.provide(&self.context).await?;
        let Some(role) = &self.role else {
            return Ok((base, source));
        };
        let assumed = self.assume(role, &base).await;
        let credential = assumed.map_err(|e| format!("role {}: {e}", role.arn))?;
        Ok((credential, format!("role {}, from {source}", role.arn)))
    }

    /// Returns the credentials of `role`, assumed with `base`.
    async fn assume(&self, role: &Role, base: &Credential) -> Result<Credential, String> {
        let mut request = Outgoing {
            method: Method::POST,
            url: match &self.sts_url {
                Some(url) => url.join("/"),
                None => format!("https://sts.{}.{}/", self.region, partition(&self.region).1),
            },
            headers: HeaderMap::from_iter([(
                CONTENT_TYPE,
                HeaderValue::from_static("application/x-www-form-urlencoded"),
            )]),
            body: form(role).into(),
            new_connection: false,
        };
        let signer = RequestSigner::new("sts", &self.region);
        let signed = signed_headers(&signer, &request, base).await;
        request.headers.extend(signed.map_err(|e| e.to_string())?);
        let sent = tokio::time::timeout(
            RENEWAL,
            self.transport.send(request, AnswerMemory::apart(MAX_BYTES)),
        )
        .await;
        let response = sent.map_err(|_| "STS did not answer in time".to_owned())?;
        let response = response.map_err(|e| e.to_string())?;
        if response.status != StatusCode::OK {
            let AwsError { code, message } = AwsError::read(&response);
            let status = response.status.as_u16();
            return Err(format!("STS answered HTTP {status}, {code}: {message}"));
        }
        let text = String::from_utf8_lossy(&response.body);
        // None of the four needs an entity in XML.
        let part = |name| {
            let found = element(&text, name).map(str::trim);
            let found = found.filter(|t| !t.is_empty() && !t.contains('&'));
            found.ok_or_else(|| format!("STS answered without a readable {name}"))
        };
        let expires = part("Expiration")?.parse::<Timestamp>();
        Ok(Credential {
            access_key_id: part("AccessKeyId")?.to_owned(),
            secret_access_key: part("SecretAccessKey")?.to_owned(),
            session_token: Some(part("SessionToken")?.to_owned()),
            expires_in: Some(
                expires.map_err(|_| "STS answered with an Expiration that is not a time")?,
            ),
        })
    }
}

/// Returns the form that asks STS for `role`.
fn form(role: &Role) -> String {
    let mut form = url::form_urlencoded::Serializer::new(String::new());
    form.append_pair("Action", "AssumeRole")
        .append_pair("Version", "2011-06-15")
        .append_pair("RoleArn", &role.arn)
        .append_pair("RoleSessionName", &role.session)
        .append_pair("DurationSeconds", "3600");
    if let Some(id) = &role.external_id {
        form.append_pair("ExternalId", id);
    }
    form.finish()
}

/// Sources of credentials in the order in which they are asked.
struct Chain(Vec<(String, Source)>);

impl Chain {
    /// Returns the keys of the configuration, or the `profile`, or the sources of AWS' tools in
    /// reqsign's order.
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

    /// Returns the credentials of the first source that has some. A source that should have some
    /// and fails ends the search: the next may have credentials of somebody else.
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

/// Returns the message of `error` on one line: AWS' errors about signatures go on to repeat the
/// request with its session token. XML is parsed.
fn line(error: &reqsign_core::Error) -> String {
    let text = error.to_string();
    let AwsError { code, message } = AwsError::in_xml(&text);
    if !code.is_empty() {
        return format!("{code}: {message}");
    }
    let line = text.lines().next().unwrap_or_default();
    line.chars().take(300).collect()
}

/// The current keys of the configuration.
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
