//! Certificates, keys and secrets as values that are reloaded when their files change.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue};
use ipnet::IpNet;
use rustls::ServerConfig;
use tracing::warn;

use crate::clock::Clock;
use crate::config::{self, Secret};
use crate::front::{AccessControl, Api, Credentials, Rules};
use crate::model::{PasswordHash, TokenHash};
use crate::reloadable::Reloadable;
use crate::telemetry::metrics;
use crate::tls;
use crate::upstream::{ClientRecipe, Http, Security};

/// Returns the TLS configuration towards clients.
pub(super) fn server(
    files: &config::ServerTls,
    clock: &Arc<dyn Clock>,
) -> Result<Reloadable<ServerConfig>, String> {
    let mut paths = vec![files.cert.clone(), files.key.clone()];
    paths.extend(files.client_ca.clone());
    Reloadable::new("server.tls".into(), paths, clock.clone(), |contents| {
        let [cert, key, client_ca @ ..] = contents else {
            return Err("cert and key are required".into());
        };
        let client_ca = client_ca.first().map(Vec::as_slice);
        let server = tls::server(cert, key, client_ca);
        let server = server.map_err(|e| format!("{}: {}", e.key, e.message))?;
        if let Some(expiry) = tls::expiry(cert) {
            metrics::certificate_expiry("server.tls", expiry);
        }
        Ok(server)
    })
}

/// Returns a secret as text.
pub(super) fn text(
    name: String,
    secret: &Secret,
    clock: &Arc<dyn Clock>,
) -> Result<Reloadable<String>, String> {
    let secret = secret.clone();
    Reloadable::new(name, files(&[&secret]), clock.clone(), move |contents| {
        secret.reread(&mut contents.iter())
    })
}

/// Returns a secret as the value of a header.
pub(super) fn header(
    name: String,
    secret: &Secret,
    clock: &Arc<dyn Clock>,
) -> Result<Reloadable<HeaderValue>, String> {
    let secret = secret.clone();
    Reloadable::new(name, files(&[&secret]), clock.clone(), move |contents| {
        value(&secret.reread(&mut contents.iter())?)
    })
}

/// Returns secrets as headers.
pub(super) fn headers(
    name: String,
    headers: &[(HeaderName, Secret)],
    clock: &Arc<dyn Clock>,
) -> Result<Reloadable<HeaderMap>, String> {
    let headers = headers.to_vec();
    let secrets: Vec<&Secret> = headers.iter().map(|(_, secret)| secret).collect();
    let paths = files(&secrets);
    Reloadable::new(name, paths, clock.clone(), move |contents| {
        let mut contents = contents.iter();
        let one = |(name, secret): &(_, Secret)| {
            Ok((
                HeaderName::clone(name),
                value(&secret.reread(&mut contents)?)?,
            ))
        };
        headers.iter().map(one).collect()
    })
}

/// Returns the access rules in `settings`.
pub(super) fn access(
    settings: &config::AccessSettings,
    demonstration: bool,
    clock: &Arc<dyn Clock>,
) -> Result<AccessControl, String> {
    let this_machine = || -> Vec<IpNet> {
        let loopback = [
            IpNet::new(Ipv4Addr::LOCALHOST.into(), 8),
            IpNet::new(Ipv6Addr::LOCALHOST.into(), 128),
        ];
        loopback.into_iter().flatten().collect()
    };
    AccessControl::new(settings.trusted_proxies.clone(), |api| {
        let settings = match api {
            Api::Mirror => &settings.mirror,
            Api::Prometheus => &settings.prometheus,
            Api::Metrics => &settings.metrics,
            Api::Admin => &settings.admin,
        };
        let credentials = settings
            .has_credentials()
            .then(|| credentials(api, settings, clock));
        let shown = demonstration && api == Api::Admin;
        Ok(Rules {
            networks: match shown {
                true => this_machine(),
                false => settings.networks.clone(),
            },
            credentials: credentials.transpose()?,
            demonstration: shown,
        })
    })
}

/// Returns the tokens and users accepted by one API.
fn credentials(
    api: Api,
    settings: &config::ApiAccess,
    clock: &Arc<dyn Clock>,
) -> Result<Reloadable<Credentials>, String> {
    let (tokens, users) = (settings.tokens.clone(), settings.users.clone());
    let secrets = tokens.iter().chain(users.iter().map(|(_, secret)| secret));
    let paths = files(&secrets.collect::<Vec<_>>());
    let name = format!("access.{}", api.name());
    Reloadable::new(name, paths, clock.clone(), move |contents| {
        let mut contents = contents.iter();
        let tokens = tokens.iter().zip(1..).map(|(secret, number)| {
            let text = secret.reread(&mut contents)?;
            TokenHash::parse(&text).map_err(|e| format!("tokens: number {number} {e}"))
        });
        let tokens = tokens.collect::<Result<_, String>>()?;
        let users = users.iter().map(|(name, secret)| {
            let text = secret.reread(&mut contents)?;
            let hash =
                PasswordHash::parse(&text).map_err(|e| format!("users: of {name:?}: {e}"))?;
            Ok((name.clone(), hash))
        });
        Credentials::new(tokens, users.collect::<Result<Vec<_>, String>>()?)
    })
}

/// Returns the HTTP client for the upstream that `settings` describes.
pub(super) fn http(settings: &config::Upstream, clock: &Arc<dyn Clock>) -> Result<Http, String> {
    let (tls, proxy) = (settings.tls.clone(), settings.proxy.clone());
    let mut paths: Vec<PathBuf> = tls.ca.iter().cloned().collect();
    if let Some((cert, key)) = &tls.identity {
        paths.extend([cert.clone(), key.clone()]);
    }
    let secrets: Vec<&Secret> = proxy.http.iter().chain(&proxy.https).collect();
    paths.extend(files(&secrets));
    let upstream = settings.name.clone();
    let name = format!("upstream {upstream} tls and proxy");
    let make = move |contents: &[Vec<u8>]| {
        let mut contents = contents.iter();
        let mut next = |wanted: bool| wanted.then(|| contents.next().map(Vec::as_slice)).flatten();
        let ca = next(tls.ca.is_some());
        let cert = next(tls.identity.is_some());
        let identity = cert.zip(next(tls.identity.is_some()));
        let described = |e: tls::PemError| format!("{}: {}", e.key, e.message);
        ca.map_or(Ok(()), tls::check_ca).map_err(described)?;
        identity
            .map_or(Ok(()), |(cert, key)| tls::check_client(cert, key))
            .map_err(described)?;
        if let Some(expiry) = identity.and_then(|(cert, _)| tls::expiry(cert)) {
            metrics::certificate_expiry(&format!("upstream {upstream} tls"), expiry);
        }
        if tls.insecure {
            warn!(
                upstream,
                "INSECURE: any certificate is accepted for this upstream, so any server that answers receives its headers (tls.insecure); trust its authority with tls.ca instead"
            );
        }
        let except = reqwest::NoProxy::from_string(&proxy.except);
        // The URL of a proxy is not repeated in errors: it may contain a password.
        let wrong = |_| "proxy: not the URL of a proxy".to_owned();
        let mut proxies = Vec::new();
        if let Some(secret) = &proxy.http {
            let url = secret.reread(&mut contents)?;
            let proxy = reqwest::Proxy::http(url).map_err(wrong)?;
            proxies.push(proxy.no_proxy(except.clone()));
        }
        if let Some(secret) = &proxy.https {
            let url = secret.reread(&mut contents)?;
            let proxy = reqwest::Proxy::https(url).map_err(wrong)?;
            proxies.push(proxy.no_proxy(except));
        }
        let ca = ca.map(<[u8]>::to_vec);
        let identity = identity.map(|(cert, key)| (cert.to_vec(), key.to_vec()));
        let insecure = tls.insecure;
        let recipe: ClientRecipe = Arc::new(move || {
            let with_proxy = |b: reqwest::ClientBuilder, p: &reqwest::Proxy| b.proxy(p.clone());
            let builder = proxies.iter().fold(Http::named(), with_proxy);
            let security = Security {
                ca: ca.as_deref(),
                identity: identity.as_ref().map(|(cert, key)| (&cert[..], &key[..])),
                insecure,
            };
            Http::client(builder, &security)
        });
        // What is wrong shows now.
        recipe()?;
        Ok(recipe)
    };
    Http::new(Reloadable::new(name, paths, clock.clone(), make)?)
}

fn value(text: &str) -> Result<HeaderValue, String> {
    let mut value = HeaderValue::from_str(text)
        .map_err(|_| "contains characters that a header cannot have".to_owned())?;
    value.set_sensitive(true);
    Ok(value)
}

/// Returns the files of `secrets`, in their order.
fn files(secrets: &[&Secret]) -> Vec<PathBuf> {
    let file = |secret: &&Secret| secret.file().map(PathBuf::from);
    secrets.iter().filter_map(file).collect()
}
