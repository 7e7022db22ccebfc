//! HTTP itself.

use std::error::Error as _;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::header::{ACCEPT_ENCODING, LOCATION};
use http::{HeaderMap, HeaderValue, Method};

use super::answer_memory::AnswerShare;
use super::connections::{ClientRecipe, Connections, UrlOrigin};
use super::decode::{decoded, too_large};
use super::guard::{Guard, Lookups, Refused};
use crate::adapters::Response;
use crate::model::{Error, Evidence, Kind};
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
    /// All headers except those of HTTP itself.
    pub headers: HeaderMap,
    /// The body.
    pub body: bytes::Bytes,
    /// Set if it must use a connection that is made for it.
    pub new_connection: bool,
}

impl fmt::Debug for Outgoing {
    /// Omits headers and bodies, which may hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Outgoing({} …)", self.method)
    }
}

/// Sends requests. Tests have one without sockets.
pub trait Transport: Send + Sync {
    /// Sends `request` and reads the whole response, whose bytes take from `share`.
    fn send(
        &self,
        request: Outgoing,
        share: Arc<AnswerShare>,
    ) -> BoxFuture<'_, Result<Response, Error>>;
}

/// HTTP over TCP or TLS.
pub struct Http {
    connections: Connections,
    guard: Option<Guard>,
    /// The URL of the last call: many calls are POSTs to the same one, and parsing it takes longer than
    /// copying it.
    last: Mutex<Option<reqwest::Url>>,
}

/// TLS settings of connections to an upstream: contents of PEM files.
#[derive(Clone, Copy, Default)]
pub struct Security<'a> {
    /// Authorities that are trusted besides the system's.
    pub ca: Option<&'a [u8]>,
    /// The certificate and key that Heliostat authenticates itself with.
    pub identity: Option<(&'a [u8], &'a [u8])>,
    /// Set if any server is believed to be the upstream.
    pub insecure: bool,
}

/// The longest that sent data may go without being acknowledged by the other side's system.
#[cfg(target_os = "linux")]
const UNACKNOWLEDGED: Duration = Duration::from_secs(3);

/// Redirects followed on one host before the answer counts as an error.
const MAX_REDIRECTS: usize = 5;

impl Http {
    /// Returns a transport with clients of `recipe`, to addresses of the configuration.
    pub fn new(recipe: Reloadable<ClientRecipe>) -> Result<Self, String> {
        Ok(Self {
            connections: Connections::new(recipe)?,
            guard: None,
            last: Mutex::default(),
        })
    }

    /// Returns a transport to addresses that clients name, as far as `guard` lets them. It never
    /// uses a proxy, which would look up names where nobody checks the addresses.
    pub fn guarded(guard: Guard) -> Result<Self, String> {
        let resolver = Arc::new(guard.clone());
        let recipe: ClientRecipe = Arc::new(move || {
            let builder = Self::builder().dns_resolver(resolver.clone());
            Self::client(builder, &Security::default())
        });
        Ok(Self {
            connections: Connections::new(Reloadable::fixed(recipe))?,
            guard: Some(guard),
            last: Mutex::default(),
        })
    }

    /// Returns the transport of most upstreams.
    pub fn plain() -> Result<Self, String> {
        let recipe: ClientRecipe = Arc::new(|| Self::client(Self::named(), &Security::default()));
        Self::new(Reloadable::fixed(recipe))
    }

    /// Returns a client with a pool of connections.
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
        let builder = builder
            .tls_danger_accept_invalid_certs(security.insecure)
            // Followed by Heliostat: the client would make a GET without a body of a POST.
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(Duration::from_secs(5))
            .pool_idle_timeout(Duration::from_secs(60))
            .tcp_keepalive(Duration::from_secs(30));
        // Data that is sent to a peer that is gone is noticed before the attempt runs out of time.
        #[cfg(target_os = "linux")]
        let builder = builder.tcp_user_timeout(UNACKNOWLEDGED);
        let client = builder.build();
        client.map_err(|e| format!("no HTTP client: {}", deepest(&e)))
    }

    /// Returns a builder of clients that look up names, but not too many at once.
    pub fn named() -> reqwest::ClientBuilder {
        Self::builder().dns_resolver(Arc::new(Lookups))
    }

    /// Returns a builder with the settings that all our clients share. Certificates are checked
    /// against the system's roots.
    pub fn builder() -> reqwest::ClientBuilder {
        // An error means that the process has a crypto provider already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        reqwest::Client::builder()
            .user_agent(concat!("heliostat/", env!("CARGO_PKG_VERSION")))
            .no_proxy()
    }
}

impl Http {
    /// Returns `url`, parsed.
    fn parsed(&self, url: &str) -> Result<reqwest::Url, Error> {
        // A URL is replaced whole.
        let last = || self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(last) = last().as_ref().filter(|last| last.as_str() == url) {
            return Ok(last.clone());
        }
        let invalid = |e| Error::new(Kind::Internal, format!("a call has an invalid URL: {e}"));
        let parsed = reqwest::Url::parse(url).map_err(invalid)?;
        *last() = Some(parsed.clone());
        Ok(parsed)
    }

    /// Sends `request` to `url`. If it uses a connection that was used before, and that is lost
    /// before any byte of an answer, the other side has closed it while it was idle, and so perhaps
    /// all others like it: it is sent again, over a new one, and the idle ones are dropped.
    async fn ask(&self, request: &Outgoing, url: &str) -> Result<reqwest::Response, Error> {
        let origin = UrlOrigin::of(url);
        let url = self.parsed(url)?;
        let mut generation = self
            .connections
            .current(&origin, request.new_connection)
            .await?;
        loop {
            let used = generation.has_answered(&origin);
            let asked = generation
                .client
                .request(request.method.clone(), url.clone());
            let asked = asked.headers(request.headers.clone());
            match asked.body(request.body.clone()).send().await {
                Ok(response) => {
                    generation.answered(&origin);
                    return Ok(response);
                }
                Err(error) if used && is_lost(&error) => {
                    generation = self.connections.after(&origin, &generation).await?;
                }
                Err(error) => return Err(broken(&error)),
            }
        }
    }
}

/// Returns whether an established connection was lost before any byte of an answer.
fn is_lost(error: &reqwest::Error) -> bool {
    let mut cause = error.source();
    let mut parsed = false;
    while let Some(error) = cause {
        let http = error.downcast_ref::<hyper::Error>();
        parsed |= http.is_some_and(hyper::Error::is_parse);
        cause = error.source();
    }
    error.is_request() && !error.is_connect() && !error.is_timeout() && !parsed
}

impl Transport for Http {
    fn send(
        &self,
        request: Outgoing,
        share: Arc<AnswerShare>,
    ) -> BoxFuture<'_, Result<Response, Error>> {
        Box::pin(async move {
            let mut request = request;
            let encodings = request.headers.entry(ACCEPT_ENCODING);
            encodings.or_insert(HeaderValue::from_static("gzip"));
            let mut url = request.url.clone();
            let mut redirects = 0;
            let mut response = loop {
                if let Some(guard) = &self.guard {
                    guard.check(&url)?;
                }
                let response = self.ask(&request, &url).await?;
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
                        // No store redirects: it is a gateway that wants a login, say.
                        let error = Error::new(Kind::UpstreamFailed, message);
                        return Err(error.shows(Evidence::Stranger));
                    }
                }
                redirects += 1;
            };
            let status = response.status();
            let mut headers = response.headers().clone();
            let mut body = share.buffer(response.content_length());
            while let Some(chunk) = response.chunk().await.map_err(|e| broken(&e))? {
                let length = body.len() + chunk.len();
                if length > share.max() {
                    return Err(too_large(share.max()));
                }
                share.reserve(&mut body, chunk.len(), 0).await?;
                body.extend_from_slice(&chunk);
            }
            let body = decoded(&mut headers, body, share).await?;
            Ok(Response {
                status,
                headers,
                body,
            })
        })
    }
}

/// Returns where `response` redirects to, if the same request may be made there. That is only on
/// the same host and port: another host would get the request's headers, and may be one that is not
/// allowed. A 303 leads to something to be read, which answers no query.
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

/// Returns whether `error` means that this process has no more files, ports or memory, and is not
/// the other side's.
fn is_ours(error: &(dyn std::error::Error + 'static)) -> bool {
    let error = error.downcast_ref::<std::io::Error>();
    // EMFILE, ENFILE, ENOMEM, ENOBUFS and EADDRNOTAVAIL of Linux.
    let code = error.and_then(std::io::Error::raw_os_error);
    code.is_some_and(|code| matches!(code, 24 | 23 | 12 | 105 | 99))
}

/// Returns the error for an attempt that broke off, in the words of its deepest cause. The URL is
/// left out: it may not be for the client.
fn broken(error: &reqwest::Error) -> Error {
    let mut cause: &dyn std::error::Error = error;
    loop {
        if let Some(refused) = cause.downcast_ref::<Refused>() {
            return refused.error();
        }
        if is_ours(cause) {
            let message = format!("no connection to the upstream could be made: {cause}");
            return Error::new(Kind::Overloaded, message);
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

/// Returns the deepest cause of `error`, which says most.
fn deepest(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
