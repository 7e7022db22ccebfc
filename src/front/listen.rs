//! Connections: HTTP/1.1 and HTTP/2 on one port, with or without TLS, and a graceful end.

use std::convert::Infallible;
use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tracing::{debug, warn};

use super::body::Body;
use super::stream::TimeoutStream;

/// How long a connection may take to send a request's head. It is also how long an unused one
/// is kept: longer than the minute between StackState's polls.
const HEAD_TIMEOUT: Duration = Duration::from_secs(75);

/// How long a connection may be silent, whatever is waited for, an answer included; and how long
/// a client may take none of what it is sent. Both bound what a client that does nothing holds.
const SILENCE: Duration = Duration::from_secs(600);
const NOT_READING: Duration = Duration::from_secs(20);

/// How long a client may take for the handshake of TLS.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Most connections at once; more wait until one ends.
const CONNECTIONS: usize = 8192;

/// Bounds of HTTP/2: requests at once on a connection, and bytes of a request's head.
const STREAMS: u32 = 256;
const HEAD_BYTES: u32 = 16 * 1024;

/// Serves each request, and the address it came from, with `handler`, and with the TLS
/// that `tls` gives for each connection, if any, until `stop` is over; then no connection is
/// accepted any more, and those that are open have the time that `stop` gave to finish what is in
/// hand.
pub async fn serve<H, F>(
    listener: TcpListener,
    tls: impl Fn() -> Option<Arc<ServerConfig>>,
    handler: H,
    stop: impl Future<Output = Duration>,
) where
    H: Fn(Request<Incoming>, IpAddr) -> F + Clone + Send + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let mut http = auto::Builder::new(TokioExecutor::new());
    http.http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT);
    http.http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(HEAD_BYTES)
        .keep_alive_interval(Some(Duration::from_secs(30)));
    let connections = GracefulShutdown::new();
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    tokio::pin!(stop);
    let drain = loop {
        let accept = async {
            let place = places.clone().acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            accepted = accept => accepted,
            drain = &mut stop => break drain,
        };
        let (stream, peer) = match accepted {
            Ok((stream, peer)) => (stream, peer.ip()),
            Err(e) => {
                // Out of file descriptors, as a rule: some will be given back.
                warn!("no connection could be accepted: {e}");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        // A small answer must not wait for the acknowledgement of the one before.
        if let Err(e) = stream.set_nodelay(true) {
            debug!("a connection cannot be set to send at once: {e}");
        }
        let handler = handler.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            let answer = handler(request, peer);
            async move { Ok::<_, Infallible>(answer.await) }
        });
        let stream = TimeoutStream::new(stream, SILENCE, NOT_READING);
        let (http, watcher) = (http.clone(), connections.watcher());
        let tls = tls();
        tokio::spawn(async move {
            let _place = place;
            let ended = match tls {
                None => {
                    let connection = http.serve_connection(TokioIo::new(stream), service);
                    watcher.watch(connection.into_owned()).await
                }
                Some(tls) => {
                    let accept = TlsAcceptor::from(tls).accept(stream);
                    let stream = match tokio::time::timeout(HANDSHAKE, accept).await {
                        Ok(Ok(stream)) => stream,
                        Ok(Err(e)) => return debug!("TLS with {peer} failed: {e}"),
                        Err(_) => return debug!("TLS with {peer} took too long"),
                    };
                    let connection = http.serve_connection(TokioIo::new(stream), service);
                    watcher.watch(connection.into_owned()).await
                }
            };
            if let Err(e) = ended {
                debug!("a connection ended: {e}");
            }
        });
    };
    drop(listener);
    let open = connections.count();
    if tokio::time::timeout(drain, connections.shutdown())
        .await
        .is_err()
    {
        warn!(
            open,
            "connections were still busy when the time to drain was over"
        );
    }
}
