//! HTTP itself.

use std::error::Error as _;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use bytes::BytesMut;
use http::header::LOCATION;
use http::{HeaderMap, Method};

use crate::adapters::Response;
use crate::model::{Error, Kind};

/// A future on the heap.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A request with everything it needs.
#[derive(Clone, Debug)]
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

/// Sends requests. Tests have one without sockets.
pub trait Transport: Send + Sync {
    /// Sends `request` and reads the whole response, of at most `max_bytes`.
    fn send(&self, request: Outgoing, max_bytes: usize) -> BoxFuture<'_, Result<Response, Error>>;
}

/// HTTP over TCP.
#[derive(Clone, Debug)]
pub struct Http(reqwest::Client);

/// Redirects followed on one host before the answer counts as an error.
const MAX_REDIRECTS: usize = 5;

impl Http {
    /// A client with a pool of connections.
    pub fn new() -> Result<Self, Error> {
        let client = Self::builder()
            // Followed by hand: the client would make a GET without a body of a POST.
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(Duration::from_secs(5))
            .pool_idle_timeout(Duration::from_secs(60))
            .tcp_keepalive(Duration::from_secs(30))
            .build();
        client
            .map(Self)
            .map_err(|e| Error::new(Kind::Internal, format!("no HTTP client: {e}")))
    }
}

impl Http {
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
            let mut url = url;
            let mut redirects = 0;
            let mut response = loop {
                let asked = self.0.request(method.clone(), &url);
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
                    return Err(Error::new(Kind::UpstreamFailed, message));
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
    let mut deepest: &dyn std::error::Error = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    let what = if error.is_connect() {
        "cannot be reached"
    } else {
        "broke off"
    };
    let cause = if error.source().is_some() {
        deepest.to_string()
    } else {
        "no further cause".to_owned()
    };
    Error::new(
        Kind::UpstreamUnreachable,
        format!("the upstream {what}: {cause}"),
    )
}
