//! A scripted upstream: it records every request and answers from a script, or fails in one of the
//! ways in which real upstreams do.
//!
//! It implements HTTP/1.1 by hand, so that it can also violate it.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, UNIX_EPOCH};

use heliostat::clock::Clock;
use serde::Deserialize;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};

/// A request as received.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) method: String,
    /// The path with the query string.
    pub(crate) path: String,
    /// The headers; names are in lower case.
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Vec<u8>,
}

impl Seen {
    /// The body as JSON, or a form as an object of its fields, or the body as a string.
    pub(crate) fn json(&self) -> Value {
        let declared = self.headers.get("content-type");
        if declared.is_some_and(|c| c.starts_with("application/x-www-form-urlencoded")) {
            let pairs = url::form_urlencoded::parse(&self.body);
            return pairs
                .map(|(k, v)| (k.into_owned(), Value::from(v.into_owned())))
                .collect::<serde_json::Map<_, _>>()
                .into();
        }
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|_| String::from_utf8_lossy(&self.body).into())
    }
}

/// The way in which an answer is broken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Fault {
    /// The answer is valid.
    #[default]
    None,
    /// The connection is closed without an answer.
    Close,
    /// The connection is closed in the middle of the body.
    Cut,
    /// The connection is reset in the middle of the body.
    Reset,
    /// The answer comes one byte at a time, and is otherwise valid.
    Dribble,
    /// The same, with 20 ms after each byte of the body.
    Slow,
    /// No answer ever comes.
    Hang,
    /// Nothing comes after the first half of the body.
    Stall,
    /// The answer is not HTTP.
    Noise,
}

/// An answer of the script.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: BTreeMap<String, String>,
    /// The body, as JSON.
    pub(crate) body: Value,
    /// The body, if it is not JSON.
    pub(crate) text: Option<String>,
    /// The body, if it is not even text, in hexadecimal.
    pub(crate) hex: Option<String>,
    /// The delay of the answer, in milliseconds of wall time.
    pub(crate) delay: u64,
    /// Whether the answer waits until [`Scripted::open`].
    pub(crate) gate: bool,
    /// Milliseconds between the test's clock and the `Date`.
    pub(crate) skew: i64,
    pub(crate) fault: Fault,
}

impl Default for Answer {
    fn default() -> Self {
        Self {
            status: 200,
            headers: BTreeMap::new(),
            body: Value::Null,
            text: None,
            hex: None,
            delay: 0,
            gate: false,
            skew: 0,
            fault: Fault::None,
        }
    }
}

impl Answer {
    /// A valid answer with this body.
    pub(crate) fn json(body: Value) -> Self {
        Self {
            body,
            ..Self::default()
        }
    }

    /// Returns the answer to requests beyond the end of the script.
    pub(crate) fn beyond_the_script() -> Self {
        Self {
            status: 500,
            text: Some("the script has no further answer".into()),
            ..Self::default()
        }
    }

    fn bytes(&self, clock: &dyn Clock) -> (Vec<u8>, Vec<u8>) {
        let body = match (&self.text, &self.hex) {
            (Some(text), _) => text.clone().into_bytes(),
            (None, Some(hex)) => hex.as_bytes().chunks(2).map(byte).collect(),
            (None, None) => self.body.to_string().into_bytes(),
        };
        let millis = u64::try_from(clock.now() + self.skew).unwrap_or(0);
        let date = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_millis(millis));
        let mut headers = BTreeMap::from([
            ("content-type".to_owned(), "application/json".to_owned()),
            ("content-length".to_owned(), body.len().to_string()),
            ("date".to_owned(), date),
        ]);
        headers.extend(self.headers.clone());
        let mut head = format!("HTTP/1.1 {} Scripted\r\n", self.status);
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        (format!("{head}\r\n").into_bytes(), body)
    }
}

/// Returns the byte for two hexadecimal digits.
fn byte(digits: &[u8]) -> u8 {
    u8::from_str_radix(std::str::from_utf8(digits).unwrap(), 16).unwrap()
}

type Script = dyn Fn(usize, &Seen) -> Answer + Send + Sync;

struct Shared {
    script: Box<Script>,
    clock: Arc<dyn Clock>,
    seen: Mutex<Vec<Seen>>,
    gate: Semaphore,
    /// The number of requests whose sender left before the answer.
    left: watch::Sender<usize>,
    /// The number of answers that do not end: hanging, stalled or slow.
    stuck: watch::Sender<usize>,
}

/// The upstream. It stops when dropped.
pub(crate) struct Scripted {
    pub(crate) url: String,
    pub(crate) port: u16,
    shared: Arc<Shared>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Scripted {
    /// Starts an upstream that answers its n-th request, counted from 0, with the result of
    /// `script`.
    pub(crate) async fn start(
        clock: Arc<dyn Clock>,
        script: impl Fn(usize, &Seen) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared {
            script: Box::new(script),
            clock,
            seen: Mutex::default(),
            gate: Semaphore::new(0),
            left: watch::Sender::new(0),
            stuck: watch::Sender::new(0),
        });
        let accepting = shared.clone();
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                connections.spawn(converse(stream, accepting.clone()));
            }
        });
        Self {
            url: format!("http://127.0.0.1:{port}"),
            port,
            shared,
            task,
        }
    }

    /// Returns every request so far, in the order of arrival.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().unwrap().clone()
    }

    /// Waits until this many requests have come.
    pub(crate) async fn asked(&self, times: usize) {
        while self.shared.seen.lock().unwrap().len() < times {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Returns the number of requests that their sender gave up before the answer.
    pub(crate) fn left(&self) -> usize {
        *self.shared.left.borrow()
    }

    /// Returns the number of answers that have begun to hang, stall or come slowly.
    pub(crate) fn stuck(&self) -> usize {
        *self.shared.stuck.borrow()
    }

    /// Waits until this many requests were given up.
    pub(crate) async fn given_up(&self, times: usize) {
        let mut left = self.shared.left.subscribe();
        left.wait_for(|n| *n >= times).await.unwrap();
    }

    /// Lets one answer pass the gate.
    pub(crate) fn open(&self) {
        self.shared.gate.add_permits(1);
    }
}

/// Answers the requests of one connection.
async fn converse(mut stream: TcpStream, shared: Arc<Shared>) {
    let mut buffer = Vec::new();
    // How the client leaves does not matter to the script.
    while let Ok(Some(seen)) = read(&mut stream, &mut buffer).await {
        let answer = {
            let mut all = shared.seen.lock().unwrap();
            let n = all.len();
            all.push(seen.clone());
            (shared.script)(n, &seen)
        };
        let wait = async {
            if answer.gate {
                shared.gate.acquire().await.unwrap().forget();
            }
            if answer.delay > 0 {
                tokio::time::sleep(Duration::from_millis(answer.delay)).await;
            }
            if answer.fault == Fault::Hang {
                shared.stuck.send_modify(|n| *n += 1);
                std::future::pending().await
            }
        };
        tokio::select! {
            () = wait => {}
            () = end(&mut stream, &mut buffer) => {
                shared.left.send_modify(|n| *n += 1);
                return;
            }
        }
        match write(&mut stream, &answer, &shared).await {
            Ok(true) => {}
            Ok(false) | Err(_) => return,
        }
    }
}

/// Waits until the other side closes the connection.
async fn end(stream: &mut (impl AsyncRead + Unpin), buffer: &mut Vec<u8>) {
    while stream.read_buf(buffer).await.is_ok_and(|n| n > 0) {}
}

/// Reads one request, or `None` at the end of the connection.
async fn read(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<Option<Seen>> {
    let end = loop {
        if let Some(at) = buffer.windows(4).position(|w| w == b"\r\n\r\n") {
            break at;
        }
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    };
    let head = String::from_utf8_lossy(&buffer[..end]).into_owned();
    let mut lines = head.split("\r\n");
    let mut first = lines.next().unwrap_or_default().split(' ');
    let (method, path) = (first.next().unwrap(), first.next().unwrap());
    let headers: BTreeMap<String, String> = lines
        .filter_map(|l| l.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let length = headers.get("content-length");
    let length: usize = length.map_or(0, |l| l.parse().unwrap());
    while buffer.len() < end + 4 + length {
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
    let rest = buffer.split_off(end + 4 + length);
    let body = std::mem::replace(buffer, rest).split_off(end + 4);
    Ok(Some(Seen {
        method: method.to_owned(),
        path: path.to_owned(),
        headers,
        body,
    }))
}

/// Writes `answer`, and returns whether the connection stays open.
async fn write(stream: &mut TcpStream, answer: &Answer, shared: &Shared) -> io::Result<bool> {
    let (head, body) = answer.bytes(shared.clock.as_ref());
    let half = body.len() / 2;
    match answer.fault {
        Fault::None => {
            stream.write_all(&[head, body].concat()).await?;
            return Ok(true);
        }
        Fault::Dribble => {
            stream.set_nodelay(true)?;
            for (i, byte) in [head, body].concat().into_iter().enumerate() {
                stream.write_all(&[byte]).await?;
                // The reader gets a turn now and then, so that it sees a part.
                if i % 16 == 0 {
                    tokio::task::yield_now().await;
                }
            }
            return Ok(true);
        }
        Fault::Slow => {
            stream.set_nodelay(true)?;
            stream.write_all(&head).await?;
            shared.stuck.send_modify(|n| *n += 1);
            for byte in body {
                stream.write_all(&[byte]).await?;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            return Ok(true);
        }
        Fault::Close => {}
        Fault::Cut => {
            stream
                .write_all(&[&head[..], &body[..half]].concat())
                .await?
        }
        Fault::Reset => {
            stream
                .write_all(&[&head[..], &body[..half]].concat())
                .await?;
            // Closing this way discards unsent bytes and sends a reset.
            stream.set_zero_linger()?;
        }
        Fault::Hang => {}
        Fault::Stall => {
            let start = [&head[..], &body[..half]].concat();
            stream.write_all(&start).await?;
            shared.stuck.send_modify(|n| *n += 1);
            end(stream, &mut Vec::new()).await;
        }
        Fault::Noise => {
            stream
                .write_all(b"\x16\x03\x01 this is not HTTP\r\n\r\n")
                .await?
        }
    }
    Ok(false)
}
