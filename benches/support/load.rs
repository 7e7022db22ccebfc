//! A load generator that takes as little CPU time as possible, since it shares the machine with
//! what it measures. Every answer is checked for its status, its length and its cache result.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use heliostat::wire::encoding::Encoding;

use super::asking::{Ask, Request, Shape};

/// The cache result that the `Cache-Status` of an answer reports.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Cache {
    /// The header is absent.
    Absent,
    Hit,
    /// The upstream was asked.
    Forwarded,
}

/// The head of an answer.
#[derive(Clone, Copy, Debug)]
struct Head {
    status: [u8; 3],
    /// The offset of the body.
    body: usize,
    length: usize,
    /// The length is not known before the end, as for answers of Prometheus.
    chunked: bool,
    cache: Cache,
    encoding: Encoding,
}

/// Parses the head at the start of `bytes`, if it is complete.
fn head(bytes: &[u8]) -> Option<Head> {
    let mut head = Head {
        status: bytes.get(9..12)?.try_into().ok()?,
        body: 0,
        length: 0,
        chunked: false,
        cache: Cache::Absent,
        encoding: Encoding::Identity,
    };
    loop {
        let rest = &bytes[head.body..];
        let line = &rest[..rest.iter().position(|b| *b == b'\n')?];
        head.body += line.len() + 1;
        if line.len() <= 1 {
            return Some(head);
        }
        if let Some(value) = value(line, b"content-length: ") {
            let digits = value.iter().take_while(|b| b.is_ascii_digit());
            head.length = digits.fold(0, |n, d| n * 10 + usize::from(d - b'0'));
        } else if value(line, b"transfer-encoding: chunked").is_some() {
            head.chunked = true;
        } else if let Some(value) = value(line, b"cache-status: ") {
            head.cache = if value.starts_with(b"heliostat; hit") {
                Cache::Hit
            } else {
                Cache::Forwarded
            };
        } else if let Some(value) = value(line, b"content-encoding: ") {
            head.encoding = match value.trim_ascii_end() {
                b"gzip" => Encoding::Gzip,
                b"zstd" => Encoding::Zstd,
                _ => Encoding::Identity,
            };
        }
    }
}

fn value<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let (start, value) = line.split_at_checked(name.len())?;
    start.eq_ignore_ascii_case(name).then_some(value)
}

/// Receives an answer piece by piece into a reused buffer.
struct Answer {
    buffer: Vec<u8>,
    filled: usize,
    head: Option<Head>,
    received: usize,
    /// The last bytes received.
    last: [u8; LAST_CHUNK.len()],
}

/// The end of an answer in chunks.
const LAST_CHUNK: [u8; 7] = *b"\r\n0\r\n\r\n";

impl Answer {
    fn new() -> Self {
        Self {
            buffer: vec![0; 256 << 10],
            filled: 0,
            head: None,
            received: 0,
            last: [0; LAST_CHUNK.len()],
        }
    }

    /// Returns the space for the next piece.
    fn space(&mut self) -> &mut [u8] {
        &mut self.buffer[self.filled..]
    }

    /// Accounts for `read` more bytes; returns the head when the answer is complete. Pieces of the
    /// body overwrite each other.
    fn take(&mut self, read: usize) -> Option<Head> {
        assert!(read > 0, "the server closed the connection");
        self.received += read;
        let new = &self.buffer[self.filled..][..read];
        let new = &new[read.saturating_sub(LAST_CHUNK.len())..];
        self.last.rotate_left(new.len());
        self.last[LAST_CHUNK.len() - new.len()..].copy_from_slice(new);
        if self.head.is_none() {
            self.filled += read;
            self.head = head(&self.buffer[..self.filled]);
        }
        let head = self.head?;
        self.filled = 0;
        if head.chunked {
            if self.last != LAST_CHUNK {
                return None;
            }
        } else {
            if self.received < head.body + head.length {
                return None;
            }
            assert_eq!(self.received, head.body + head.length);
        }
        self.head = None;
        self.received = 0;
        Some(head)
    }
}

/// The properties that an answer must have.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Due {
    /// The length of the body before compression.
    pub(crate) length: usize,
    pub(crate) cache: Cache,
    pub(crate) encoding: Encoding,
}

fn check(head: &Head, due: Due) {
    let as_long = match due.encoding {
        // The length of a chunked answer is unknown; such a server is not what is tested.
        _ if head.chunked => true,
        Encoding::Identity => head.length == due.length,
        Encoding::Gzip | Encoding::Zstd => head.length < due.length,
    };
    let as_due = head.cache == due.cache && head.encoding == due.encoding;
    assert!(
        head.status == *b"200" && as_long && as_due,
        "expected {due:?}, got {head:?}",
    );
}

/// A connection whose calls block.
pub(crate) struct Client {
    stream: std::net::TcpStream,
    request: Request,
    answer: Answer,
    encoding: Encoding,
}

impl Client {
    pub(crate) fn connect(address: SocketAddr, path: &str, shape: Shape) -> Self {
        Self::of(&Target {
            address,
            path: path.to_owned(),
            shape,
            encoding: Encoding::Identity,
        })
    }

    fn of(target: &Target) -> Self {
        let stream = std::net::TcpStream::connect(target.address).unwrap();
        stream.set_nodelay(true).unwrap();
        Self {
            stream,
            request: target.request(),
            answer: Answer::new(),
            encoding: target.encoding,
        }
    }

    /// Sends a request and checks the answer.
    pub(crate) fn ask(&mut self, ask: &Ask, expected: Cache) {
        self.stream.write_all(self.request.of(ask)).unwrap();
        loop {
            let read = self.stream.read(self.answer.space()).unwrap();
            if let Some(head) = self.answer.take(read) {
                let due = Due {
                    length: ask.length(),
                    cache: expected,
                    encoding: self.encoding,
                };
                return check(&head, due);
            }
        }
    }
}

/// Compares every byte of the answer to `ask` with the expected one.
pub(crate) fn verify(address: SocketAddr, ask: &Ask) {
    let (got, due) = (
        body(&Target::heliostat(address, ask.shape), ask),
        ask.answer(),
    );
    assert!(
        got == due,
        "{ask:?}: got {} bytes, due are {}: {}",
        got.len(),
        due.len(),
        String::from_utf8_lossy(&got[..got.len().min(1000)])
    );
}

/// Returns the body of the answer to `ask`, as received.
pub(crate) fn body(target: &Target, ask: &Ask) -> Vec<u8> {
    let mut client = Client::of(target);
    client.stream.write_all(client.request.of(ask)).unwrap();
    let (mut received, mut piece) = (Vec::new(), vec![0; 64 << 10]);
    loop {
        let read = client.stream.read(&mut piece).unwrap();
        assert!(read > 0, "the server closed the connection");
        received.extend_from_slice(&piece[..read]);
        if let Some(head) = head(&received)
            && received.len() >= head.body + head.length
        {
            assert_eq!(head.encoding, target.encoding);
            return received.split_off(head.body);
        }
    }
}

/// The measurements of a run.
#[derive(Default)]
pub(crate) struct Sample {
    /// Nanoseconds of each answer.
    pub(crate) times: Vec<u32>,
    pub(crate) wall: Duration,
}

impl Sample {
    pub(crate) fn add(&mut self, other: Self) {
        self.times.extend(other.times);
        self.wall += other.wall;
    }

    pub(crate) fn per_second(&self) -> f64 {
        self.times.len() as f64 / self.wall.as_secs_f64()
    }

    /// Returns the `q`-quantile, in microseconds.
    pub(crate) fn quantile(&mut self, q: f64) -> f64 {
        let at = (self.times.len().saturating_sub(1) as f64 * q) as usize;
        if self.times.is_empty() {
            return f64::NAN;
        }
        f64::from(*self.times.select_nth_unstable(at).1) / 1000.0
    }
}

fn nanos(since: Instant) -> u32 {
    u32::try_from(since.elapsed().as_nanos()).unwrap_or(u32::MAX)
}

/// The server to query.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) address: SocketAddr,
    pub(crate) path: String,
    pub(crate) shape: Shape,
    /// The encoding that the client accepts and expects.
    pub(crate) encoding: Encoding,
}

impl Target {
    pub(crate) fn heliostat(address: SocketAddr, shape: Shape) -> Self {
        Self {
            address,
            path: "/api/metric".to_owned(),
            shape,
            encoding: Encoding::Identity,
        }
    }

    fn request(&self) -> Request {
        Request::new(&self.path, self.shape, self.encoding.name())
    }
}

/// The end of a load.
#[derive(Clone, Copy)]
pub(crate) enum Until {
    Passed(Duration),
    /// A total number of requests.
    Asked(u64),
}

/// Runs a closed loop in one thread: each connection sends its next request as soon as it has an
/// answer. `next` gets the number of the request: connection `c` of `n` sends `c`, `c + n`, `c +
/// 2n` and so on.
pub(crate) fn closed(
    target: &Target,
    connections: u64,
    until: Until,
    next: impl Fn(u64) -> (Ask, Cache),
) -> Sample {
    closed_of(target.address, connections, until, || {
        let mut request = target.request();
        let next = &next;
        move |number, out| {
            let (ask, cache) = next(number);
            out.extend_from_slice(request.of(&ask));
            Due {
                length: ask.length(),
                cache,
                encoding: target.encoding,
            }
        }
    })
}

/// Does the same for any requests: the function that `writer` returns, once per connection, gets
/// the number of the request, writes its bytes and returns the expected answer.
pub(crate) fn closed_of<W: FnMut(u64, &mut Vec<u8>) -> Due>(
    address: SocketAddr,
    connections: u64,
    until: Until,
    writer: impl Fn() -> W,
) -> Sample {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut streams = Vec::new();
        for _ in 0..connections {
            let stream = tokio::net::TcpStream::connect(address).await.unwrap();
            stream.set_nodelay(true).unwrap();
            streams.push(stream);
        }
        let begun = Instant::now();
        let over = |number| match until {
            Until::Passed(duration) => begun.elapsed() >= duration,
            Until::Asked(all) => number >= all,
        };
        let converse = async |mut number: u64, mut stream: tokio::net::TcpStream| {
            let (mut write, mut request) = (writer(), Vec::new());
            let mut answer = Answer::new();
            let mut times = Vec::new();
            while !over(number) {
                request.clear();
                let due = write(number, &mut request);
                let sent = Instant::now();
                stream.write_all(&request).await.unwrap();
                let head = loop {
                    let read = stream.read(answer.space()).await.unwrap();
                    if let Some(head) = answer.take(read) {
                        break head;
                    }
                };
                times.push(nanos(sent));
                check(&head, due);
                number += connections;
            }
            times
        };
        let all = (0..).zip(streams).map(|(c, stream)| converse(c, stream));
        let times = futures_util::future::join_all(all).await.concat();
        Sample {
            times,
            wall: begun.elapsed(),
        }
    })
}

/// Runs an open loop: `per_second` requests are sent at even intervals, however fast the server is,
/// by connections with a thread each. Times count from the moment when a request was due. Each
/// connection sends one request, which does not count, before all that wait for `start` begin.
pub(crate) fn open(
    target: &Target,
    connections: u64,
    per_second: f64,
    duration: Duration,
    start: &Barrier,
    next: impl Fn(u64) -> (Ask, Cache) + Sync,
) -> Sample {
    let converse = |first: u64| {
        let mut client = Client::of(target);
        let (ask, expected) = next(first);
        client.ask(&ask, expected);
        start.wait();
        let begun = Instant::now();
        let mut times = Vec::new();
        for number in (first..).step_by(connections as usize) {
            let due = Duration::from_secs_f64(number as f64 / per_second);
            if due >= duration {
                break;
            }
            let due = begun + due;
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            let (ask, expected) = next(number);
            client.ask(&ask, expected);
            times.push(nanos(due));
        }
        times
    };
    let converse = &converse;
    let times = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..connections)
            .map(|first| scope.spawn(move || converse(first)))
            .collect();
        let times = threads.into_iter().map(|t| t.join().unwrap());
        times.collect::<Vec<_>>().concat()
    });
    Sample {
        times,
        wall: duration,
    }
}
