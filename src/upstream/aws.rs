//! Requests signed for AWS (Signature Version 4). reqsign signs them and finds the credentials in
//! the places of AWS' own tools; Heliostat provides HTTP, files and the environment.

mod credentials;
mod io;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use http::header::{CONTENT_TYPE, DATE};
use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqsign_aws_v4::{Credential, RequestSigner};
use reqsign_core::{Context, SignRequest};

use self::credentials::{Credentials, Issued};
use super::transport::{Outgoing, Transport};
use crate::adapters::Response;
use crate::adapters::aws_error::AwsError;
use crate::clock::Clock;
use crate::model::{Error, Evidence, Kind, Millis, TargetUrl};
use crate::reloadable::Reloadable;

const CONTENT_SHA256: HeaderName = HeaderName::from_static("x-amz-content-sha256");

/// The largest difference between this machine's clock and AWS' at which a refused signature is not
/// blamed on the clock, in milliseconds. AWS itself accepts requests that are at most 5 min off.
const SKEW: Millis = 60_000;

/// Codes of errors about credentials that have ended or are no longer known.
const ENDED: [&str; 5] = [
    "ExpiredToken",
    "ExpiredTokenException",
    "InvalidClientTokenId",
    "UnrecognizedClientException",
    "InvalidAccessKeyId",
];

/// Codes of errors about signatures and their time.
const UNSIGNED: [&str; 5] = [
    "RequestExpired",
    "RequestTimeTooSkewed",
    "SignatureDoesNotMatch",
    "InvalidSignatureException",
    "IncompleteSignature",
];

/// Keys of the configuration.
#[derive(Clone)]
pub struct Keys {
    /// The ID of the access key.
    pub access_key: String,
    /// The secret.
    pub secret_key: String,
    /// The token of temporary keys.
    pub session_token: Option<String>,
}

/// A role that is assumed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Role {
    /// `arn:PARTITION:iam::ACCOUNT:role/NAME`.
    pub arn: String,
    /// The external ID that the role's trust policy requires, if it does.
    pub external_id: Option<String>,
    /// The name of the session, for AWS' own logs.
    pub session: String,
}

/// Settings for signing requests to an upstream.
pub struct AwsSettings {
    /// The upstream's name, for logs.
    pub upstream: String,
    /// The region that requests are signed for.
    pub region: String,
    /// The service that they are signed for.
    pub service: String,
    /// Keys of the configuration.
    pub keys: Option<Reloadable<Keys>>,
    /// The profile whose credentials are used.
    pub profile: Option<String>,
    /// The role that is assumed with the credentials.
    pub role: Option<Role>,
    /// The URL of STS, if not the usual one.
    pub sts_url: Option<TargetUrl>,
    /// The variables of the environment that may matter.
    pub environment: BTreeMap<String, String>,
    /// The transport to STS, which is that to the upstream.
    pub transport: Arc<dyn Transport>,
    /// The transport to sources of credentials on this machine: without a proxy.
    pub local: Arc<dyn Transport>,
    /// The source of the time.
    pub clock: Arc<dyn Clock>,
}

/// Signs requests.
pub struct AwsSigner {
    signer: RequestSigner,
    credentials: Arc<Credentials>,
    clock: Arc<dyn Clock>,
}

impl AwsSigner {
    /// Returns a signer with credentials as `settings` say. They are looked up when the first
    /// request is signed.
    pub fn new(settings: AwsSettings) -> Self {
        Self {
            signer: RequestSigner::new(&settings.service, &settings.region),
            clock: settings.clock.clone(),
            credentials: Credentials::new(settings),
        }
    }

    /// Returns the source of the credentials in use, once there are some.
    pub fn source(&self) -> Option<String> {
        self.credentials.source()
    }

    /// Signs `outgoing`, and returns what it was signed with.
    pub(super) async fn sign(&self, outgoing: &mut Outgoing) -> Result<Signed, Error> {
        let issued = self.credentials.get().await?;
        if let Some((path, query)) = outgoing.url.split_once('?') {
            outgoing.url = format!("{path}?{}", strict(query));
        }
        let signed = signed_headers(&self.signer, outgoing, &issued.credential)
            .await
            .map_err(|e| {
                let message = format!("the request to the upstream cannot be signed: {e}");
                Error::new(Kind::Internal, message)
            })?;
        outgoing.headers.extend(signed);
        Ok(Signed(issued))
    }

    /// Returns the error of a `response` that refuses what the request was `signed` with. Credentials
    /// that have ended are renewed before the next attempt.
    pub(super) fn refused(&self, response: &Response, signed: &Signed) -> Option<Error> {
        if !matches!(response.status.as_u16(), 400 | 401 | 403) {
            return None;
        }
        let AwsError { code, message } = AwsError::read(response);
        let failed = |text: String| Error::new(Kind::UpstreamFailed, text);
        if ENDED.contains(&&*code) {
            let renewed = self.credentials.end(&signed.0);
            let text = format!("the upstream refuses the credentials ({code}): {message}");
            let evidence = match renewed {
                true => Evidence::Address,
                false => Evidence::Question,
            };
            return Some(failed(text).shows(evidence));
        }
        if !UNSIGNED.contains(&&*code) {
            return None;
        }
        let date = response.headers.get(DATE).and_then(|d| d.to_str().ok());
        let date = date.and_then(|d| httpdate::parse_http_date(d).ok());
        let theirs = date.and_then(|d| d.duration_since(UNIX_EPOCH).ok());
        let theirs = theirs.and_then(|d| Millis::try_from(d.as_millis()).ok());
        let off = theirs.map_or(0, |theirs| self.clock.now() - theirs);
        if off.abs() > SKEW {
            let way = if off > 0 { "ahead of" } else { "behind" };
            return Some(failed(format!(
                "the upstream refuses the signature ({code}): this machine's clock is {} s {way} AWS'",
                off.abs() / 1000
            )));
        }
        Some(failed(format!(
            "the upstream refuses the signature ({code}): {message}"
        )))
    }
}

/// Returns the headers that authenticate `outgoing`.
async fn signed_headers(
    signer: &RequestSigner,
    outgoing: &Outgoing,
    credential: &Credential,
) -> Result<HeaderMap, Box<dyn std::error::Error + Send + Sync>> {
    let (path, query) = match outgoing.url.split_once('?') {
        Some((path, query)) => (path, format!("?{query}")),
        None => (&*outgoing.url, String::new()),
    };
    // Every service except S3 signs the path encoded once more than it is sent.
    let uri: Uri = format!("{}{query}", path.replace('%', "%25")).parse()?;
    let mut request = http::Request::new(());
    *request.method_mut() = outgoing.method.clone();
    *request.uri_mut() = uri;
    let (mut parts, ()) = request.into_parts();
    // Headers that HTTP, proxies and traces add are not signed.
    let signed = |name: &HeaderName| *name == CONTENT_TYPE || name.as_str().starts_with("x-amz-");
    let headers = outgoing.headers.iter().filter(|(name, _)| signed(name));
    parts
        .headers
        .extend(headers.map(|(name, value)| (name.clone(), value.clone())));
    let hash = reqsign_core::hash::hex_sha256(&outgoing.body);
    parts
        .headers
        .insert(CONTENT_SHA256, HeaderValue::from_str(&hash)?);
    signer
        .sign_request(&Context::new(), &mut parts, Some(credential), None)
        .await?;
    parts.headers.remove(http::header::HOST);
    parts.headers.remove(CONTENT_TYPE);
    Ok(parts.headers)
}

/// All characters except those that RFC 3986 calls unreserved.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// Returns `query`, which is that of a form, in the spelling of the signature's rules, so that it
/// has only one reading: in a form a plus is a space, and `~` may be encoded and `*` not.
fn strict(query: &str) -> String {
    let pairs: Vec<String> = url::form_urlencoded::parse(query.as_bytes())
        .map(|(name, value)| {
            let encoded = |text| utf8_percent_encode(text, RESERVED);
            format!("{}={}", encoded(&name), encoded(&value))
        })
        .collect();
    pairs.join("&")
}

/// The credentials that a request was signed with.
pub(super) struct Signed(Arc<Issued>);
