//! HTTP itself.

use std::error::Error as _;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use http::header::LOCATION;
use http::{HeaderMap, Method};

use super::guard::{Guard, Refused};
use crate::adapters::Response;
use crate::model::{Error, Kind};
use crate::reloadable::Reloadable;

/// A future on the heap.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A request with everything it needs.
#[derive(Clone)]
pub struct Outgoing {
    /// GET or POST.
    pub method: Method,
    /// The whole URL.
    pub url: String,
    /// All headers but those of HTTP itself.
    pub headers: HeaderMap,
    /// The body.
    pub body: bytes::Bytes,
}

impl fmt::Debug for Outgoing {
    /// Headers and bodies may hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Outgoing({} …)", self.method)
    }
}

/// Sends requests. Tests have one without sockets.
pub trait Transport: Send + Sync {
    /// Sends `request` and reads the whole response, of at most `max_bytes`.
    fn send(&self, request: Outgoing, max_bytes: usize) -> BoxFuture<'_, Result<Response, Error>>;
}

/// HTTP over TCP or TLS.
#[derive(Debug)]
pub struct Http {
    client: Reloadable<reqwest::Client>,
    guard: Option<Guard>,
}

/// How connections to an upstream are secured: contents of PEM files.
#[derive(Clone, Copy, Default)]
pub struct Security<'a> {
    /// Authorities that are trusted besides the system's.
    pub ca: Option<&'a [u8]>,
    /// The certificate that we prove ourselves with, and its key.
    pub identity: Option<(&'a [u8], &'a [u8])>,
    /// Whether whoever answers is believed to be the upstream.
    pub insecure: bool,
}

/// Redirects followed on one host before the answer counts as an error.
const MAX_REDIRECTS: usize = 5;

impl Http {
    /// Requests by `client`, which [`Http::client`] made, to where the configuration says.
    pub fn new(client: Reloadable<reqwest::Client>) -> Self {
        let guard = None;
        Self { client, guard }
    }

    /// Requests to where clients say, as far as `guard` lets them. They never go through a proxy,
    /// which would look up names where nobody checks the addresses.
    pub fn guarded(guard: Guard) -> Result<Self, String> {
        let builder = Self::builder().dns_resolver(Arc::new(guard.clone()));
        let client = Self::client(builder, &Security::default())?;
        Ok(Self {
            client: Reloadable::fixed(client),
            guard: Some(guard),
        })
    }

    /// A client with a pool of connections.
    pub fn client(
        builder: reqwest::ClientBuilder,
        security: &Security<'_>,
    ) -> Result<reqwest::Client, String> {
        let mut builder = builder;
        if let Some(ca) = security.ca {
            let ca = reqwest::Certificate::from_pem_bundle(ca).map_err(|e| deepest(&e))?;
            builder = builder.tls_certs_merge(ca);
        }
        if let Some((cert, key)) = security.identity {
            let both = [cert, b"\n", key].concat();
            let identity = reqwest::Identity::from_pem(&both).map_err(|e| deepest(&e))?;
            builder = builder.identity(identity);
        }
        let client = builder
            .tls_danger_accept_invalid_certs(security.insecure)
            // Followed by hand: the client would make a GET without a body of a POST.
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(Duration::from_secs(5))
            .pool_idle_timeout(Duration::from_secs(60))
            .tcp_keepalive(Duration::from_secs(30))
            .build();
        client.map_err(|e| format!("no HTTP client: {}", deepest(&e)))
    }

    /// What every client of ours has in common. Certificates are checked against the system's
    /// roots.
    pub fn builder() -> reqwest::ClientBuilder {
        // An error means that the process has a provider of cryptography already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        reqwest::Client::builder()
            .user_agent(concat!("heliostat/", env!("CARGO_PKG_VERSION")))
            .no_proxy()
    }
}

impl Transport for Http {
    fn send(&self, request: Outgoing, max_bytes: usize) -> BoxFuture<'_, Result<Response, Error>> {
        Box::pin(async move {
            let Outgoing {
                method,
                url,
                headers,
                body,
            } = request;
            let client = self.client.get();
            let mut url = url;
            let mut redirects = 0;
            let mut response = loop {
                if let Some(guard) = &self.guard {
                    guard.check(&url)?;
                }
                let asked = client.request(method.clone(), &url);
                let asked = asked.headers(headers.clone()).body(body.clone());
                let response = asked.send().await.map_err(|e| broken(&e))?;
                let status = response.status();
                if !status.is_redirection() {
                    break response;
                }
                match same_host(&response).filter(|_| redirects < MAX_REDIRECTS) {
                    Some(there) => url = there,
                    None => {
                        let message = format!(
                            "the upstream answered HTTP {}, a redirect that leads to another host or too far; it is not followed",
                            status.as_u16()
                        );
                        return Err(Error::new(Kind::UpstreamFailed, message));
                    }
                }
                redirects += 1;
            };
            let status = response.status();
            let headers = response.headers().clone();
            let mut body = BytesMut::new();
            while let Some(chunk) = response.chunk().await.map_err(|e| broken(&e))? {
                if body.len() + chunk.len() > max_bytes {
                    let message = format!(
                        "the upstream's answer is larger than {max_bytes} bytes (max_response)"
                    );
                    return Err(Error::new(Kind::AnswerTooLarge, message));
                }
                body.extend_from_slice(&chunk);
            }
            Ok(Response {
                status,
                headers,
                body: body.freeze(),
            })
        })
    }
}

/// Where `response` leads, if the same request may be made there. That is only on the same host
/// and port: another would get the request's headers, and may be one that is not allowed. A 303
/// leads to something to be read, which answers no query.
fn same_host(response: &reqwest::Response) -> Option<String> {
    if !matches!(response.status().as_u16(), 301 | 302 | 307 | 308) {
        return None;
    }
    let location = response.headers().get(LOCATION)?.to_str().ok()?;
    let from = response.url();
    let to = from.join(location).ok()?;
    let same = from.scheme() == to.scheme()
        && from.host_str() == to.host_str()
        && from.port_or_known_default() == to.port_or_known_default();
    same.then(|| to.into())
}

/// The error for an attempt that broke off, in the words of its deepest cause. The URL is left
/// out: it may not be for the client.
fn broken(error: &reqwest::Error) -> Error {
    let mut cause: &dyn std::error::Error = error;
    loop {
        if let Some(refused) = cause.downcast_ref::<Refused>() {
            return refused.error();
        }
        match cause.source() {
            Some(source) => cause = source,
            None => break,
        }
    }
    let what = if error.is_connect() {
        "cannot be reached"
    } else {
        "broke off"
    };
    let cause = if error.source().is_some() {
        cause.to_string()
    } else {
        "no further cause".to_owned()
    };
    Error::new(
        Kind::UpstreamUnreachable,
        format!("the upstream {what}: {cause}"),
    )
}

/// The deepest cause of `error`, which says most.
fn deepest(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
