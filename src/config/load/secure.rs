//! Secrets, certificates, and the proxies of the environment.

use std::path::PathBuf;

use url::Url;

use super::{Checker, ConfigError, Place};
use crate::config::raw;
use crate::config::values::{Secret, SecretSource};
use crate::config::{ClientTls, Proxy, ServerTls};
use crate::files;
use crate::tls::{self, PemError};

const SERVER_TLS: Place = Place {
    section: "server.tls",
    index: None,
};

/// Hosts for which proxies from the environment are not used.
const LOOPBACK: &str = "localhost,127.0.0.0/8,::1";

impl Checker<'_> {
    pub(super) fn secret(
        &self,
        place: Place,
        key: &str,
        source: &SecretSource,
    ) -> Result<Secret, ConfigError> {
        match source {
            SecretSource::Inline(text) => Ok(Secret::new(text.clone())),
            SecretSource::Env(name) => {
                let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
                let message = match self.env.get(name) {
                    Some(text) if !text.is_empty() => return Ok(Secret::new(text.clone())),
                    Some(_) => format!("the environment variable {name} is empty"),
                    None if name.chars().all(plain) && !name.is_empty() => {
                        format!("the environment variable {name} is not set")
                    }
                    // The name may be the secret itself, so it is not shown.
                    None => {
                        "env must be the name of an environment variable: letters, digits and '_'"
                            .into()
                    }
                };
                Err(self.error(place, key, message))
            }
            SecretSource::File(path) => {
                Secret::in_file(path.into()).map_err(|e| self.error(place, key, e))
            }
        }
    }

    pub(super) fn server_tls(
        &self,
        raw: &raw::RawServerTls,
    ) -> Result<Option<ServerTls>, ConfigError> {
        let path = |text: &Option<String>| named(text.as_deref());
        let (cert, key, client_ca) = (path(&raw.cert), path(&raw.key), path(&raw.client_ca));
        let (cert, key) = match (cert, key) {
            (Some(cert), Some(key)) => (cert, key),
            (None, None) if client_ca.is_none() => return Ok(None),
            (None, _) => {
                let message = "is required for TLS: a PEM file with the server's certificate";
                return Err(self.error(SERVER_TLS, "cert", message));
            }
            (_, None) => {
                let message = "is required with cert: a PEM file with its private key";
                return Err(self.error(SERVER_TLS, "key", message));
            }
        };
        let read = |name, path: &PathBuf| {
            files::read(path).map_err(|e| self.unreadable(SERVER_TLS, name, path, &e))
        };
        let contents = (read("cert", &cert)?, read("key", &key)?);
        let ca = client_ca.as_ref().map(|path| read("client_ca", path));
        let ca = ca.transpose()?;
        let checked = tls::server(&contents.0, &contents.1, ca.as_deref());
        checked.map_err(|e| {
            let path = match (e.key, &client_ca) {
                ("cert", _) => &cert,
                ("client_ca", Some(ca)) => ca,
                _ => &key,
            };
            let message = format!("the file {path:?} {}", e.message);
            self.error(SERVER_TLS, e.key, message)
        })?;
        Ok(Some(ServerTls {
            cert,
            key,
            client_ca,
        }))
    }

    pub(super) fn client_tls(
        &self,
        place: Place,
        raw: &raw::RawClientTls,
    ) -> Result<ClientTls, ConfigError> {
        let path = |text: &Option<String>| named(text.as_deref());
        let ca = path(&raw.ca);
        let identity = match (path(&raw.cert), path(&raw.key)) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            (Some(_), None) => {
                let message = "is required with cert: a PEM file with its private key";
                return Err(self.error(place, "tls.key", message));
            }
            (None, Some(_)) => {
                let message = "is required with key: a PEM file with the certificate";
                return Err(self.error(place, "tls.cert", message));
            }
        };
        let read = |key, path: &PathBuf| {
            files::read(path).map_err(|e| self.unreadable(place, key, path, &e))
        };
        let wrong = |path: &PathBuf, e: PemError| {
            let message = format!("the file {path:?} {}", e.message);
            self.error(place, &format!("tls.{}", e.key), message)
        };
        if let Some(path) = &ca {
            tls::check_ca(&read("tls.ca", path)?).map_err(|e| wrong(path, e))?;
        }
        if let Some((cert, key)) = &identity {
            tls::check_client(&read("tls.cert", cert)?, &read("tls.key", key)?)
                .map_err(|e| wrong(if e.key == "cert" { cert } else { key }, e))?;
        }
        Ok(ClientTls {
            ca,
            identity,
            insecure: raw.insecure,
        })
    }

    fn unreadable(
        &self,
        place: Place,
        key: &str,
        path: &std::path::Path,
        error: &std::io::Error,
    ) -> ConfigError {
        let message = format!("the file {path:?} cannot be read: {error}");
        self.error(place, key, message)
    }

    /// Returns the proxy set in the file, or else in the environment.
    pub(super) fn proxy(
        &self,
        place: Place,
        raw: Option<&SecretSource>,
    ) -> Result<Proxy, ConfigError> {
        if let Some(source) = raw {
            let secret = self.secret(place, "proxy", source)?;
            if secret.reveal() == "none" {
                return Ok(Proxy::default());
            }
            check_proxy(&secret).map_err(|e| self.error(place, "proxy", e))?;
            return Ok(Proxy {
                http: Some(secret.clone()),
                https: Some(secret),
                except: String::new(),
            });
        }
        let of = |name: &str| {
            let found = [name.to_owned(), name.to_ascii_lowercase()];
            let mut found = found.iter().filter_map(|n| self.env.get(n));
            found.find(|text| !text.is_empty())
        };
        let proxy = |name: &str| {
            let secret = of(name).map(Secret::new);
            let checked = secret.as_ref().map_or(Ok(()), check_proxy);
            checked.map(|()| secret).map_err(|message| ConfigError {
                source: format!("environment variable {name}"),
                position: None,
                key: String::new(),
                message,
            })
        };
        let (http, https) = (proxy("HTTP_PROXY")?, proxy("HTTPS_PROXY")?);
        if http.is_none() && https.is_none() {
            return Ok(Proxy::default());
        }
        let except = of("NO_PROXY").map_or("", String::as_str);
        Ok(Proxy {
            http,
            https,
            except: format!("{LOOPBACK},{except}"),
        })
    }
}

/// Returns the path, unless it is empty.
fn named(text: Option<&str>) -> Option<PathBuf> {
    text.filter(|t| !t.is_empty()).map(PathBuf::from)
}

/// Parses the URL of a proxy. The error does not repeat the URL, which may contain a password.
fn check_proxy(secret: &Secret) -> Result<(), String> {
    let text = secret.reveal();
    let whole = match text.contains("://") {
        true => text.to_owned(),
        false => format!("http://{text}"),
    };
    let url = Url::parse(&whole).ok();
    let good = url.is_some_and(|u| matches!(u.scheme(), "http" | "https") && u.has_host());
    good.then_some(()).ok_or_else(|| {
        "is not the URL of a proxy; write it as \"http://proxy:3128\", or \"none\" in the file"
            .into()
    })
}
