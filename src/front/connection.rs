//! One connection: HTTP/2 if it begins so, else HTTP/1, which holds its buffers only while requests come.
//!
//! The HTTP library keeps 16 KiB of buffers and its own state for a connection of HTTP/1. After a moment
//! without a request they are dropped, and made again for the next one.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Poll, Waker, ready};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::{HttpService, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::admission::Claim;
use super::body::Body;
use super::lenient::LenientStream;

/// The longest that a connection may take to send a request's head. It is also the time for which
/// an unused one is kept: longer than the minute between StackState's polls.
const HEAD_TIMEOUT: Duration = Duration::from_secs(75);

/// How often a connection that has buffers is looked at. One that nothing happens on from one look to the
/// next gives them up, so that few have some even if all ask within seconds: what was freed once is not
/// given back to the system.
const LOOK: Duration = Duration::from_millis(100);

/// The beginning of a connection of HTTP/2 (RFC 9113, section 3.4).
const HTTP2: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Bytes that are read at a time before the protocol is known, and after a pause.
const FIRST_BYTES: usize = 512;

/// The HTTP library's settings.
#[derive(Clone, Debug)]
pub(super) struct Protocols {
    pub(super) http1: http1::Builder,
    pub(super) http2: http2::Builder<TokioExecutor>,
}

/// A client's connection.
#[derive(Debug)]
pub struct Connection {
    peer: IpAddr,
    claim: Arc<Claim>,
    /// Set while a request is answered.
    answering: AtomicBool,
    /// Set when bytes are read or written.
    moved: AtomicBool,
    /// Set when bytes are written, or tried to be.
    wrote: AtomicBool,
    /// Set while the client does not take what is to be written.
    blocked: AtomicBool,
    /// Set while nothing of a request has been read, as far as that is followed.
    between: AtomicBool,
    /// Set when the HTTP library is to give the stream back, so that it does not shut it down.
    leaving: AtomicBool,
}

impl Connection {
    /// Returns a connection from `peer`, which `claim` stands for.
    pub(super) fn new(peer: IpAddr, claim: Arc<Claim>) -> Self {
        Self {
            peer,
            claim,
            answering: AtomicBool::new(false),
            moved: AtomicBool::new(false),
            wrote: AtomicBool::new(false),
            blocked: AtomicBool::new(false),
            between: AtomicBool::new(true),
            leaving: AtomicBool::new(false),
        }
    }

    /// The address of its other end.
    pub fn peer(&self) -> IpAddr {
        self.peer
    }

    /// The claim that ends the connection when it gives way.
    pub(super) fn claim(&self) -> &Arc<Claim> {
        &self.claim
    }

    /// Takes note that something was read, and whether the stream is between two requests now.
    pub(super) fn has_read(&self, between: bool) {
        self.moved.store(true, Ordering::Relaxed);
        self.between.store(between, Ordering::Relaxed);
    }

    /// Takes note that something was written, or is `blocked`.
    pub(super) fn has_written(&self, blocked: bool) {
        self.moved.store(true, Ordering::Relaxed);
        self.wrote.store(true, Ordering::Relaxed);
        self.blocked.store(blocked, Ordering::Relaxed);
    }

    /// Returns whether the HTTP library is to give the stream back.
    pub(super) fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Relaxed)
    }

    /// Returns what has happened since the last look; `waited` is the time for which a head has been
    /// awaited.
    fn look(&self, waited: &mut Duration) -> Seen {
        let moved = self.moved.swap(false, Ordering::Relaxed);
        let wrote = self.wrote.swap(false, Ordering::Relaxed);
        let busy = self.answering.load(Ordering::Relaxed) || self.blocked.load(Ordering::Relaxed);
        if busy || wrote {
            *waited = Duration::ZERO;
            return Seen::Active;
        }
        *waited += LOOK;
        if *waited >= HEAD_TIMEOUT {
            return Seen::TooSlow;
        }
        match moved || !self.between.load(Ordering::Relaxed) {
            true => Seen::Active,
            false => Seen::Idle,
        }
    }
}

/// What a look at a connection found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    Active,
    /// Nothing has happened, and nothing has begun.
    Idle,
    /// The head of a request takes too long.
    TooSlow,
}

/// Serves `stream` with `handler` until it ends; once `stop` changes, no further request is accepted.
pub(super) async fn serve_requests<S, H, F>(
    mut stream: S,
    protocols: &Protocols,
    handler: H,
    connection: Arc<Connection>,
    mut stop: watch::Receiver<()>,
) -> Result<(), hyper::Error>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    H: Fn(Request<Incoming>, Arc<Connection>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let service = {
        let connection = connection.clone();
        service_fn(move |request: Request<Incoming>| {
            connection.answering.store(true, Ordering::Relaxed);
            let answer = handler(request, connection.clone());
            let connection = connection.clone();
            async move {
                let answer = answer.await;
                connection.answering.store(false, Ordering::Relaxed);
                Ok::<_, Infallible>(answer)
            }
        })
    };
    let mut first = Vec::new();
    while HTTP2.starts_with(&first) && first.len() < HTTP2.len() {
        if !more(&mut stream, &mut first, &mut stop).await {
            shut_down(&mut stream).await;
            return Ok(());
        }
    }
    if first.starts_with(HTTP2) {
        let stream = LenientStream::new(stream, first, None);
        let served = protocols
            .http2
            .serve_connection(TokioIo::new(stream), service);
        let mut served = Box::pin(served);
        tokio::select! {
            biased;
            ended = &mut served => return ended,
            _ = stop.changed() => served.as_mut().graceful_shutdown(),
        }
        return served.await;
    }
    loop {
        let io = LenientStream::new(stream, first, Some(connection.clone()));
        let served = protocols.http1.serve_connection(TokioIo::new(io), &service);
        let mut served = Box::new(served);
        if until_idle(&mut served, &connection, &mut stop).await? == Turn::Ended {
            return Ok(());
        }
        let parts = served.into_parts();
        connection.leaving.store(false, Ordering::Relaxed);
        // As a rule nothing: the client may have sent something just now.
        first = parts.read_buf.to_vec();
        stream = parts.io.into_inner().into_inner();
        if first.is_empty() && !more(&mut stream, &mut first, &mut stop).await {
            shut_down(&mut stream).await;
            return Ok(());
        }
    }
}

/// Reads some bytes into `bytes`, and returns whether there are any: not if the stream ends, takes too long
/// or fails, nor if `stop` changes.
async fn more<S: AsyncRead + Unpin>(
    stream: &mut S,
    bytes: &mut Vec<u8>,
    stop: &mut watch::Receiver<()>,
) -> bool {
    let read = std::future::poll_fn(|context| {
        let mut space = [0; FIRST_BYTES];
        let mut space = ReadBuf::new(&mut space);
        ready!(Pin::new(&mut *stream).poll_read(context, &mut space))?;
        bytes.extend_from_slice(space.filled());
        Poll::Ready(io::Result::Ok(!space.filled().is_empty()))
    });
    tokio::select! {
        biased;
        read = timeout(HEAD_TIMEOUT, read) => matches!(read, Ok(Ok(true))),
        _ = stop.changed() => false,
    }
}

/// Ends the stream in its own way, such as that of TLS.
async fn shut_down<S: AsyncWrite + Unpin>(stream: &mut S) {
    // It ends now in any case.
    let _ = std::future::poll_fn(|context| Pin::new(&mut *stream).poll_shutdown(context)).await;
}

/// The way in which the HTTP library is done with a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// The connection has ended.
    Ended,
    /// Nothing happens on it; the library has given the stream back.
    Idle,
}

/// Drives `served` until it ends or nothing happens on `connection`.
async fn until_idle<I, S>(
    served: &mut http1::Connection<I, S>,
    connection: &Connection,
    stop: &mut watch::Receiver<()>,
) -> Result<Turn, hyper::Error>
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin,
    S: HttpService<Incoming, ResBody = Body, Error = Infallible>,
{
    let stop_seen = stop.clone();
    let mut stopping = pin!(stop.changed());
    let mut stopped = false;
    let mut look = pin!(sleep(LOOK));
    let mut waited = Duration::ZERO;
    // What has been polled with a waker once need not be polled again until it is due.
    let mut known: Option<Waker> = None;
    std::future::poll_fn(|context| {
        loop {
            if let Poll::Ready(ended) = Pin::new(&mut *served).poll(context) {
                let turn = match connection.leaving.load(Ordering::Relaxed) {
                    true => Turn::Idle,
                    false => Turn::Ended,
                };
                return Poll::Ready(ended.map(|()| turn));
            }
            let same = known
                .as_ref()
                .is_some_and(|known| known.will_wake(context.waker()));
            if !same {
                known = Some(context.waker().clone());
            }
            let changed = || stop_seen.has_changed().unwrap_or(true);
            if !stopped && (!same || changed()) && stopping.as_mut().poll(context).is_ready() {
                stopped = true;
                Pin::new(&mut *served).graceful_shutdown();
                continue;
            }
            if same && !look.is_elapsed() {
                return Poll::Pending;
            }
            ready!(look.as_mut().poll(context));
            look.as_mut().reset(Instant::now() + LOOK);
            match connection.look(&mut waited) {
                Seen::Active => {}
                Seen::Idle if stopped => {}
                Seen::Idle => {
                    connection.leaving.store(true, Ordering::Relaxed);
                    Pin::new(&mut *served).graceful_shutdown();
                }
                Seen::TooSlow => return Poll::Ready(Ok(Turn::Ended)),
            }
            // The timer has to be polled again to go on.
            known = None;
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::super::admission::Shares;
    use super::*;

    /// Sends a request, and waits for its answer.
    async fn ask(far: &mut DuplexStream) {
        let request = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";
        far.write_all(request).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\nwell") {
            assert_ne!(far.read_buf(&mut answer).await.unwrap(), 0, "it ends early");
        }
        assert!(answer.starts_with(b"HTTP/1.1 200"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_goes_on_after_a_pause_and_ends_after_a_long_one() {
        let (near, mut far) = duplex(4096);
        let protocols = Protocols {
            http1: http1::Builder::new(),
            http2: http2::Builder::new(TokioExecutor::new()),
        };
        let (_stopping, stop) = watch::channel(());
        let handler =
            |_: Request<Incoming>, _: Arc<Connection>| async { Response::new(Body::fixed("well")) };
        let connection = Arc::new(connection());
        let of = connection.clone();
        let served =
            tokio::spawn(async move { serve_requests(near, &protocols, handler, of, stop).await });
        for _ in 0..3 {
            ask(&mut far).await;
            let active = Arc::strong_count(&connection);
            sleep(LOOK * 3).await;
            // The stream in the HTTP library holds one.
            assert_eq!(Arc::strong_count(&connection), active - 1);
            sleep(HEAD_TIMEOUT / 2).await;
        }
        let begun = Instant::now();
        assert_eq!(far.read(&mut [0; 1]).await.unwrap(), 0);
        assert!(begun.elapsed() <= HEAD_TIMEOUT / 2);
        assert!(served.await.unwrap().is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_ends_when_no_more_are_served() {
        let protocols = Protocols {
            http1: http1::Builder::new(),
            http2: http2::Builder::new(TokioExecutor::new()),
        };
        for pause in [Duration::ZERO, LOOK * 3] {
            let (near, mut far) = duplex(4096);
            let (stopping, stop) = watch::channel(());
            let handler = |_: Request<Incoming>, _: Arc<Connection>| async {
                Response::new(Body::fixed("well"))
            };
            let (protocols, connection) = (protocols.clone(), Arc::new(connection()));
            let served = tokio::spawn(async move {
                serve_requests(near, &protocols, handler, connection, stop).await
            });
            ask(&mut far).await;
            sleep(pause).await;
            let begun = Instant::now();
            stopping.send(()).unwrap();
            assert_eq!(far.read(&mut [0; 1]).await.unwrap(), 0);
            assert!(served.await.unwrap().is_ok());
            assert!(begun.elapsed() < LOOK);
        }
    }

    fn connection() -> Connection {
        let shares = Arc::new(Shares::default());
        let peer = IpAddr::from([192, 0, 2, 1]);
        Connection::new(peer, shares.claim(Some(peer), 1, None).unwrap())
    }

    #[test]
    fn only_a_connection_between_requests_is_idle() {
        let connection = connection();
        let seen = || connection.look(&mut Duration::default());
        connection.has_read(true);
        assert_eq!(
            seen(),
            Seen::Active,
            "something was read since the last look"
        );
        assert_eq!(seen(), Seen::Idle);
        connection.has_read(false);
        assert_eq!(
            (seen(), seen()),
            (Seen::Active, Seen::Active),
            "a part of a head"
        );
        connection.has_read(true);
        connection.answering.store(true, Ordering::Relaxed);
        assert_eq!(
            (seen(), seen()),
            (Seen::Active, Seen::Active),
            "an answer is made"
        );
        connection.answering.store(false, Ordering::Relaxed);
        connection.has_written(true);
        assert_eq!(
            (seen(), seen()),
            (Seen::Active, Seen::Active),
            "an answer waits"
        );
        connection.has_written(false);
        assert_eq!((seen(), seen()), (Seen::Active, Seen::Idle));
    }

    #[test]
    fn a_head_has_to_come_in_time_however_many_bytes_of_it_come() {
        let connection = connection();
        let mut waited = Duration::ZERO;
        let mut looks = 0;
        loop {
            connection.has_read(false);
            looks += 1;
            match connection.look(&mut waited) {
                Seen::TooSlow => break,
                seen => assert_eq!(seen, Seen::Active),
            }
            if looks == 50 {
                // The answer to a request that was sent ahead.
                connection.has_written(false);
            }
        }
        assert_eq!(LOOK * looks, LOOK * 51 + HEAD_TIMEOUT);
    }
}
