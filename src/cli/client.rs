//! Connections of the commands that query a server, and the wording of their failures.

use std::collections::BTreeMap;
use std::error::Error;
use std::io::{IsTerminal, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderValue, StatusCode};
use serde_json::Value;

use super::health::reached_at;
use crate::config;
use crate::model::TargetUrl;
use crate::upstream::{Http, Security};

/// The time after which a command shows that it is waiting.
const PATIENCE: Duration = Duration::from_secs(1);

/// The server to query, the authorities that vouch for it, and the credentials it gets.
#[derive(Debug, Args)]
pub(super) struct ServerConnection {
    /// The running server to query [default: the one of config.toml or the environment]
    #[arg(long, value_name = "URL")]
    server: Option<String>,

    /// A certificate authority to trust besides the system's, in PEM
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,

    /// A client certificate to present, in PEM
    #[arg(long, value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,

    /// The private key of the certificate, in PEM
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,

    /// A file with the bearer token to send
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
}

/// The server that a configuration describes, on this machine.
pub(super) struct ConfiguredServer {
    address: SocketAddr,
    /// The certificate that it presents, if it serves TLS.
    certificate: Option<PathBuf>,
}

/// A response of a server.
pub(super) struct Reply {
    pub(super) status: StatusCode,
    /// The header `Cache-Status`, if there was one.
    pub(super) cache: String,
    pub(super) body: Bytes,
}

impl ConfiguredServer {
    /// Returns the server that would be started with the file at `path` and `env`.
    pub(super) fn of(path: Option<&Path>, env: &BTreeMap<String, String>) -> Self {
        Self {
            address: reached_at(config::listens_at(path, env)),
            certificate: config::certificate_at(path, env),
        }
    }

    fn url(&self) -> String {
        let scheme = match self.certificate {
            Some(_) => "https",
            None => "http",
        };
        format!("{scheme}://{}", self.address)
    }
}

impl Reply {
    /// Returns the reply, or the server's error as a sentence.
    pub(super) fn accepted(self) -> Result<Self, String> {
        if self.status.is_success() {
            return Ok(self);
        }
        let said: Option<Value> = serde_json::from_slice(&self.body).ok();
        let text = |key: &str| said.as_ref()?.get(key)?.as_str();
        let said = match (text("summary"), text("details").or_else(|| text("error"))) {
            (Some(summary), Some(details)) => format!("{summary}: {details}"),
            (None, Some(details)) => details.to_owned(),
            _ => String::from_utf8_lossy(&self.body).trim().to_owned(),
        };
        let plain: String = said
            .chars()
            .filter(|c| !c.is_control())
            .take(2000)
            .collect();
        Err(format!("HTTP {}: {plain}", self.status.as_u16()))
    }
}

impl ServerConnection {
    /// Posts the JSON `body` to `path` of the server, or gets `path` if there is no body.
    pub(super) async fn ask(
        &self,
        configured: &ConfiguredServer,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<Reply, String> {
        let (server, certificate) = match &self.server {
            Some(url) => (url.clone(), None),
            None => (configured.url(), configured.certificate.as_deref()),
        };
        let server = TargetUrl::parse(&server).map_err(|e| format!("--server: {e}"))?;
        let url = server.join(path);
        // The certificate of a server on this machine is known from its own configuration.
        let ca = self.ca.as_deref().or(certificate).map(read).transpose()?;
        let security = Security {
            ca: ca.as_deref(),
            ..Security::default()
        };
        let (cert, key) = (self.cert.as_deref(), self.key.as_deref());
        let mut builder = Http::builder();
        if self.server.is_none() {
            builder = builder.no_proxy();
        }
        let client = identified(builder, security, cert, key)?;
        let request = match body {
            Some(body) => client.post(&url).body(body),
            None => client.get(&url),
        };
        let request = request.header(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let request = self.shown(request)?;
        let asked = async {
            let response = request.send().await?;
            let cache = response.headers().get("cache-status");
            let cache = cache.and_then(|v| v.to_str().ok()).unwrap_or_default();
            Ok(Reply {
                status: response.status(),
                cache: cache.to_owned(),
                body: response.bytes().await?,
            })
        };
        let asked = visibly(server.as_str(), asked).await;
        asked.map_err(|e: reqwest::Error| unreachable(&url, &e))
    }

    /// Returns `request` with the token, if there is one.
    fn shown(&self, request: reqwest::RequestBuilder) -> Result<reqwest::RequestBuilder, String> {
        let Some(path) = &self.token_file else {
            return Ok(request);
        };
        let token = read(path)?;
        let value = [b"Bearer ", token.trim_ascii()].concat();
        let mut value = HeaderValue::from_bytes(&value).map_err(|_| {
            format!("--token-file {path:?} contains characters that a header cannot have")
        })?;
        value.set_sensitive(true);
        Ok(request.header(AUTHORIZATION, value))
    }
}

/// Returns why `url` gave no answer, by the innermost cause, and what to do.
fn unreachable(url: &str, error: &reqwest::Error) -> String {
    let mut innermost: &dyn Error = error;
    let mut refused = false;
    while let Some(source) = innermost.source() {
        innermost = source;
        let io = innermost.downcast_ref::<std::io::Error>();
        refused |= io.is_some_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused);
    }
    let cause = innermost.to_string();
    let advice = if refused {
        "is `heliostat serve` running there? With --config FILE no server is needed"
    } else if cause.contains("UnknownIssuer") || cause.contains("CaUsedAsEndEntity") {
        "trust its authority with --ca FILE"
    } else if cause.contains("NotValidForName") || cause.contains("not valid for") {
        "name it as its certificate does: --server https://NAME:PORT"
    } else if url.starts_with("https:")
        && (cause.contains("InvalidContentType") || cause.contains("corrupt message"))
    {
        "it does not seem to speak TLS: try http://"
    } else if url.starts_with("http:") && !error.is_timeout() && !error.is_connect() {
        "it does not seem to speak plain HTTP: try https://"
    } else {
        return format!("cannot query {url}: {cause}");
    };
    format!("cannot query {url}: {cause}; {advice}")
}

/// Waits for `work`, which queries `whom`, and shows on standard error that it does: after a
/// second, or at once if standard error is a terminal and standard output is not.
pub(super) async fn visibly<T>(whom: &str, work: impl Future<Output = T>) -> T {
    let terminal = std::io::stderr().is_terminal();
    let hidden = !std::io::stdout().is_terminal();
    tokio::pin!(work);
    let first = if terminal && hidden {
        Duration::from_millis(200)
    } else {
        PATIENCE
    };
    let begun = tokio::time::Instant::now();
    let say = |text: &str| {
        let _ = std::io::stderr().write_all(text.as_bytes());
        let _ = std::io::stderr().flush();
    };
    tokio::select! {
        done = &mut work => return done,
        () = tokio::time::sleep(first) => {}
    }
    if !terminal {
        say(&format!("asking {whom} …\n"));
        return work.await;
    }
    loop {
        say(&format!(
            "\rasking {whom} … {:.1} s",
            begun.elapsed().as_secs_f64()
        ));
        tokio::select! {
            done = &mut work => {
                // The line is removed when the answer arrives.
                say("\r\x1b[K");
                return done;
            }
            () = tokio::time::sleep(Duration::from_millis(200)) => {}
        }
    }
}

/// Creates a client from `builder` and `security` that presents the certificate in the file `cert`.
pub(super) fn identified(
    builder: reqwest::ClientBuilder,
    security: Security<'_>,
    cert: Option<&Path>,
    key: Option<&Path>,
) -> Result<reqwest::Client, String> {
    let cert = cert.map(read).transpose()?;
    let key = key.map(read).transpose()?;
    let security = Security {
        identity: cert.as_deref().zip(key.as_deref()),
        ..security
    };
    Http::client(builder, &security)
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|e| format!("the file {path:?} cannot be read: {e}"))
}
