//! Connections: HTTP/1.1 and HTTP/2 on one port, with or without TLS, and a graceful end.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Poll, ready};
use std::thread::available_parallelism;
use std::time::Duration;

use futures_util::FutureExt;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ServerConfig;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::{unconstrained, yield_now};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tracing::{debug, info, warn};

use super::admission::{Claim, Full, Shares};
use super::body::Body;
use super::lenient::LenientStream;
use super::stream::{HeadTimer, TimeoutStream};
use super::turns::Turns;
use crate::telemetry::metrics;

/// The longest that a connection may take to send a request's head. It is also the time for which
/// an unused one is kept: longer than the minute between StackState's polls.
const HEAD_TIMEOUT: Duration = Duration::from_secs(75);

/// The longest that a connection may be silent, even while an answer is awaited, and that a client
/// may go without reading anything of its answer. Both bound what an inactive client holds.
const SILENCE: Duration = Duration::from_secs(600);
const NOT_READING: Duration = Duration::from_secs(20);

/// The longest that a client may take for the TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Most bytes that wait in the kernel to be sent on a connection. A client that reads slowly is seen
/// to make progress in pieces of this size.
const UNSENT: u32 = 64 << 10;

/// The most that an HTTP/1 connection buffers of what it receives, and so the longest head of a request:
/// beyond it the answer is 431.
const HEAD_BUFFER: usize = 64 << 10;

/// Most connections that wait in the kernel to be accepted, if the system allows as many
/// (`net.core.somaxconn`). What comes beyond them is dropped there, whoever sent it, and sent again after a second:
/// with the usual 128 a burst of one client kept others waiting.
const BACKLOG: u32 = 4096;

/// Most connections that begin at once, for each processor: that read what has come first, answer it, or agree
/// on keys; and those of HTTP/2 whenever they go on, as many requests may come at once. They do not stop before
/// they wait for something, so this is the work that is in front of others.
const BEGINNING: usize = 2;

/// Bounds of HTTP/2: requests at once on a connection, bytes of a request's head, and bytes of
/// bodies that a stream and a connection may send ahead.
const STREAMS: u32 = 256;
const HEAD_BYTES: u32 = 16 << 10;
const STREAM_WINDOW: u32 = 64 << 10;
const CONNECTION_WINDOW: u32 = 256 << 10;

/// The beginning of a connection of HTTP/2 (RFC 9113, section 3.4).
const HTTP2: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Bytes that are read at a time before the protocol is known.
const FIRST_BYTES: usize = 512;

/// The HTTP library's settings, and the turns of connections that begin.
struct Protocols {
    http1: http1::Builder,
    http2: http2::Builder<TokioExecutor>,
    turns: Turns,
}

/// The settings of a listener.
pub struct Listening {
    /// Most connections at once. Beyond it the newest of the client with most of them is closed.
    pub connections: usize,
    /// Returns whether an address is that of a proxy whose connections serve many clients.
    pub trusted: Box<dyn Fn(IpAddr) -> bool + Send + Sync>,
    /// The TLS that the next connection is served with, if any.
    pub tls: Box<dyn Fn() -> Option<Arc<ServerConfig>> + Send + Sync>,
}

impl Default for Listening {
    /// Serves without TLS, with no proxies, and at most 1,024 connections.
    fn default() -> Self {
        Self {
            connections: 1024,
            trusted: Box::new(|_| false),
            tls: Box::new(|| None),
        }
    }
}

/// A client's connection.
#[derive(Debug)]
pub struct Connection {
    peer: IpAddr,
    claim: Arc<Claim>,
}

impl Connection {
    /// The address of its other end.
    pub fn peer(&self) -> IpAddr {
        self.peer
    }

    /// The claim that ends the connection when it gives way.
    pub(super) fn claim(&self) -> &Arc<Claim> {
        &self.claim
    }
}

/// Listens on `address`. Within a runtime.
///
/// # Errors
///
/// Those of the system, such as for an address in use.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    // A restarted process need not wait until connections of the one before are forgotten.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Serves each request with `handler` until `stop` completes. Then no more connections are accepted,
/// and those that are open have the time that `stop` returned to finish their requests.
pub async fn serve<H, F>(
    listener: TcpListener,
    listening: Listening,
    handler: H,
    stop: impl Future<Output = Duration>,
) where
    H: Fn(Request<Incoming>, Arc<Connection>) -> F + Clone + Send + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let processors = available_parallelism().map_or(1, usize::from);
    // All connections may wait, besides as many that gave way meanwhile.
    let waiting = listening.connections.saturating_mul(2);
    let mut protocols = Protocols {
        http1: http1::Builder::new(),
        http2: http2::Builder::new(TokioExecutor::new()),
        turns: Turns::new(BEGINNING * processors, waiting),
    };
    protocols
        .http1
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BUFFER);
    protocols
        .http2
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(HEAD_BYTES)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .keep_alive_interval(Some(Duration::from_secs(30)));
    let protocols = Arc::new(protocols);
    let (stopping, stopped) = watch::channel(());
    let shares = Arc::new(Shares::default());
    tokio::pin!(stop);
    let drain = loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
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
        let client = (!(listening.trusted)(peer)).then_some(peer);
        let claim = match shares.claim(client, listening.connections, None) {
            Ok(claim) => claim,
            Err(Full) => {
                metrics::gave_way("connection");
                debug!(%peer, "connection refused: this address holds most of all connections");
                continue;
            }
        };
        configure(&stream);
        let connection = Arc::new(Connection { peer, claim });
        let served = serve_connection(
            stream,
            (listening.tls)(),
            protocols.clone(),
            handler.clone(),
            connection,
            stopped.clone(),
        );
        tokio::spawn(served);
    };
    drop((listener, stopped));
    let (open, _) = shares.totals();
    // Nobody hears of it if there is no connection.
    let _ = stopping.send(());
    if timeout(drain, stopping.closed()).await.is_err() {
        warn!(
            open,
            "some connections were still busy at the end of the drain"
        );
    }
}

/// Sets the options of an accepted connection.
fn configure(stream: &TcpStream) {
    // A small answer must not wait for the acknowledgement of the one before.
    let prompt = stream.set_nodelay(true);
    let little_unsent = SockRef::from(stream).set_tcp_notsent_lowat(UNSENT);
    if let Err(e) = prompt.and(little_unsent) {
        debug!("an option of a connection cannot be set: {e}");
    }
}

/// Serves one connection until it ends, or gives way to another.
async fn serve_connection<H, F>(
    stream: TcpStream,
    tls: Option<Arc<ServerConfig>>,
    protocols: Arc<Protocols>,
    handler: H,
    connection: Arc<Connection>,
    mut stop: watch::Receiver<()>,
) where
    H: Fn(Request<Incoming>, Arc<Connection>) -> F + Clone + Send + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let peer = connection.peer;
    let claim = connection.claim.clone();
    let served = async {
        // Until something comes, it has nothing to begin with. `readable` may say so of a new stream too soon.
        let mut byte = [0];
        let silence = tls.as_ref().map_or(HEAD_TIMEOUT, |_| HANDSHAKE);
        let arrived = tokio::select! {
            biased;
            arrived = timeout(silence, stream.peek(&mut byte)) => matches!(arrived, Ok(Ok(_))),
            _ = stop.changed() => false,
        };
        if !arrived {
            debug!(%peer, "a connection ended: nothing came on it");
            return;
        }
        let Ok(turn) = protocols.turns.take(claim.client()).await else {
            return;
        };
        let stream = TimeoutStream::new(stream, SILENCE, NOT_READING);
        // Boxed, so that a connection on which nothing has come takes little; and by a thread that serves: among
        // the small blocks of the one that accepts it would leave holes that nothing else fits in.
        let mut served = Box::pin(async {
            match tls {
                None => serve_requests(stream, &protocols, handler, connection, stop).await,
                Some(tls) => {
                    let accept = Box::pin(TlsAcceptor::from(tls).accept(stream));
                    match timeout(HANDSHAKE, accept).await {
                        Ok(Ok(stream)) => {
                            let stream = Box::new(stream);
                            serve_requests(stream, &protocols, handler, connection, stop).await;
                        }
                        Ok(Err(e)) => debug!(%peer, "TLS handshake failed: {e}"),
                        Err(_) => debug!(%peer, "TLS handshake took too long"),
                    }
                }
            }
        });
        let begun = poll_fn(|context| Poll::Ready(served.as_mut().poll(context))).await;
        // The runtime looks for what others have sent before the next one begins.
        yield_now().await;
        drop(turn);
        if begun.is_pending() {
            served.await;
        }
    };
    tokio::select! {
        biased;
        () = served => {}
        () = claim.evicted() => {
            metrics::gave_way("connection");
            debug!(%peer, "connection closed: it made no progress, or gave way to other clients");
        }
    }
}

/// Serves the requests on `stream` until it ends; once `stop` changes, no further one is accepted.
async fn serve_requests<S, H, F>(
    mut stream: S,
    protocols: &Protocols,
    handler: H,
    connection: Arc<Connection>,
    mut stop: watch::Receiver<()>,
) where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    H: Fn(Request<Incoming>, Arc<Connection>) -> F + Clone + Send + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let Some(first) = first_bytes(&mut stream, &mut stop).await else {
        // It ends now in any case.
        let _ = poll_fn(|context| Pin::new(&mut stream).poll_shutdown(context)).await;
        return;
    };
    let peer = connection.peer;
    let is_http2 = first.starts_with(HTTP2);
    let client = connection.claim.client();
    let claim = (!is_http2).then(|| connection.claim.clone());
    let io = TokioIo::new(LenientStream::new(stream, first, claim));
    let service = service_fn(move |request: Request<Incoming>| {
        handler(request, connection.clone()).map(Ok::<_, Infallible>)
    });
    let ended = if is_http2 {
        let mut served = Box::pin(protocols.http2.serve_connection(io, service));
        // Each poll may begin as many requests as there are streams.
        let turns = &protocols.turns;
        tokio::select! {
            biased;
            ended = turns.poll_each(client, &mut served) => ended,
            _ = stop.changed() => {
                served.as_mut().graceful_shutdown();
                turns.poll_each(client, served).await
            }
        }
    } else {
        let mut http1 = protocols.http1.clone();
        http1.timer(HeadTimer::default());
        let mut served = pin!(http1.serve_connection(io, service));
        match unless_stopped(&mut stop, served.as_mut()).await {
            Some(ended) => ended,
            None => {
                served.as_mut().graceful_shutdown();
                served.await
            }
        }
    };
    match ended {
        Ok(()) => {}
        Err(e) if e.is_parse() => {
            metrics::not_http();
            info!(%peer, "a request could not be read: {e}");
        }
        Err(e) => debug!(%peer, "a connection ended: {e}"),
    }
}

/// Returns what `served` becomes, or `None` once `stop` changes.
///
/// The task is registered with `stop` once; later polls only compare versions, which takes no lock. So all polls
/// have to be of one task.
async fn unless_stopped<F: Future>(
    stop: &mut watch::Receiver<()>,
    mut served: Pin<&mut F>,
) -> Option<F::Output> {
    let seen = stop.clone();
    // Without tokio's budget for a task: where that is used up, the poll that registers would do nothing.
    let mut changed = pin!(unconstrained(stop.changed()));
    let mut waits = false;
    poll_fn(|context| {
        if let Poll::Ready(ended) = served.as_mut().poll(context) {
            return Poll::Ready(Some(ended));
        }
        let look = !waits || seen.has_changed().unwrap_or(true);
        waits = true;
        match look && changed.as_mut().poll(context).is_ready() {
            true => Poll::Ready(None),
            false => Poll::Pending,
        }
    })
    .await
}

/// Returns the first bytes of `stream`, enough to tell its protocol; `None` if it ends, takes too long or
/// fails, or if `stop` changes.
async fn first_bytes<S: AsyncRead + Unpin>(
    stream: &mut S,
    stop: &mut watch::Receiver<()>,
) -> Option<Vec<u8>> {
    let mut first = Vec::new();
    let read = poll_fn(|context| {
        while HTTP2.starts_with(&first) && first.len() < HTTP2.len() {
            let mut space = [0; FIRST_BYTES];
            let mut space = ReadBuf::new(&mut space);
            let read = ready!(Pin::new(&mut *stream).poll_read(context, &mut space));
            if read.is_err() || space.filled().is_empty() {
                return Poll::Ready(false);
            }
            first.extend_from_slice(space.filled());
        }
        Poll::Ready(true)
    });
    let told = tokio::select! {
        biased;
        told = timeout(HEAD_TIMEOUT, read) => told.unwrap_or(false),
        _ = stop.changed() => false,
    };
    told.then_some(first)
}

#[cfg(test)]
mod tests {
    use tokio::task::consume_budget;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_waits_is_told_to_stop_however_often_it_was_woken() {
        let (stopping, mut stop) = watch::channel(());
        let woken = Arc::new(tokio::sync::Notify::new());
        let waits = woken.clone();
        let task = tokio::spawn(async move {
            let mut served = pin!(async {
                loop {
                    waits.notified().await;
                }
            });
            let ended: Option<()> = unless_stopped(&mut stop, served.as_mut()).await;
            ended
        });
        for _ in 0..3 {
            yield_now().await;
            woken.notify_one();
        }
        yield_now().await;
        stopping.send(()).unwrap();
        let ended = timeout(Duration::from_secs(1), task).await;
        assert!(ended.unwrap().unwrap().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn what_has_used_up_its_budget_is_told_to_stop() {
        let (stopping, mut stop) = watch::channel(());
        let task = tokio::spawn(async move {
            let mut served = pin!(async {
                // More than a task may do at a time.
                for _ in 0..1000 {
                    consume_budget().await;
                }
                std::future::pending::<()>().await;
            });
            unless_stopped(&mut stop, served.as_mut()).await
        });
        for _ in 0..100 {
            yield_now().await;
        }
        stopping.send(()).unwrap();
        let ended = timeout(Duration::from_secs(1), task).await;
        assert!(ended.unwrap().unwrap().is_none());
    }

    /// Connections that wait for a next request end at once, those of a client that sends none as well.
    #[tokio::test]
    async fn idle_connections_end_when_the_service_stops() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let listener = bind(([127, 0, 0, 1], 0).into()).unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let handler = |_, _| async { Response::new(Body::fixed("ok")) };
        let stopping = async {
            stopped.await.unwrap();
            Duration::from_secs(600)
        };
        let served = tokio::spawn(serve(listener, Listening::default(), handler, stopping));
        let mut silent = TcpStream::connect(address).await.unwrap();
        let mut idle = TcpStream::connect(address).await.unwrap();
        let mut answer = [0; 1024];
        for _ in 0..2 {
            idle.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
                .await
                .unwrap();
            assert!(idle.read(&mut answer).await.unwrap() > 2);
        }
        stop.send(()).unwrap();
        let ended = timeout(Duration::from_secs(60), served).await;
        ended.expect("connections are still open").unwrap();
        assert_eq!(idle.read(&mut answer).await.unwrap(), 0);
        assert_eq!(silent.read(&mut answer).await.unwrap(), 0);
    }
}
