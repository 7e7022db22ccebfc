//! Parts that the benches share.
//!
//! - `asking`: requests and the expected answers
//! - `upstream`: a mirror that answers them; `server`: the servers that are measured
//! - `prometheus`: the same for range queries of PromQL
//! - `redis`: a Redis, and faults on the way to it
//! - `load`: clients that cost next to nothing
//!
//! Here: a client that is simple.
#![allow(dead_code, reason = "each bench uses its part")]

pub(crate) mod asking;
pub(crate) mod load;
pub(crate) mod prometheus;
pub(crate) mod redis;
pub(crate) mod server;
pub(crate) mod upstream;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

/// Sends a signal to a process.
pub(crate) fn signal(process: u32, name: &str) {
    let mut kill = std::process::Command::new("kill");
    kill.args([name, &process.to_string()]);
    assert!(kill.status().unwrap().success());
}

/// A persistent connection.
pub(crate) struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
}

/// An answer; its head is in lower case.
pub(crate) struct Answer<'a> {
    head: String,
    pub(crate) body: &'a [u8],
}

impl Answer<'_> {
    pub(crate) fn status(&self) -> u16 {
        let status = self.head.split(' ').nth(1);
        status.and_then(|s| s.parse().ok()).unwrap()
    }

    /// Returns the value of the header `name`, which is in lower case; empty if absent.
    pub(crate) fn header(&self, name: &str) -> &str {
        let mut fields = self.head.lines().filter_map(|l| l.split_once(':'));
        fields
            .find(|(n, _)| *n == name)
            .map_or("", |(_, v)| v.trim())
    }
}

impl Client {
    /// Connects to `address` from `source`.
    pub(crate) async fn connect(address: SocketAddr, source: IpAddr) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((source, 0).into()).unwrap();
        let stream = socket.connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self {
            stream,
            buffer: vec![0; 64 << 10],
        }
    }

    /// Posts `body`, a query for metric values, and reads the answer.
    pub(crate) async fn post(&mut self, body: &str) -> Answer<'_> {
        let head = format!(
            "POST /api/metric HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        let request = [head.as_bytes(), body.as_bytes()].concat();
        self.stream.write_all(&request).await.unwrap();
        let mut filled = 0;
        let (head, body_start) = loop {
            filled += self.read(filled).await;
            let received = &self.buffer[..filled];
            if let Some(end) = received.windows(4).position(|w| w == b"\r\n\r\n") {
                let head = String::from_utf8_lossy(&received[..end]).to_ascii_lowercase();
                break (head, end + 4);
            }
        };
        let mut answer = Answer { head, body: &[] };
        let end = body_start + answer.header("content-length").parse::<usize>().unwrap();
        if self.buffer.len() < end {
            self.buffer.resize(end, 0);
        }
        while filled < end {
            filled += self.read(filled).await;
        }
        answer.body = &self.buffer[body_start..end];
        answer
    }

    async fn read(&mut self, filled: usize) -> usize {
        let read = self.stream.read(&mut self.buffer[filled..]).await.unwrap();
        assert!(read > 0, "the server closed the connection");
        read
    }
}

/// Returns a query for the mean in buckets of so many milliseconds from `start` to `end`, with `conditions` as
/// pairs of key and value.
pub(crate) fn query(
    details: &str,
    conditions: [(&str, &str); 2],
    (start, end): (i64, i64),
    bucket: i64,
) -> String {
    let condition = |(key, value): (&str, &str)| {
        format!(
            r#"{{"key":"{key}","value":{{"value":"{value}","_type":"StringValue"}},"_type":"EqualityCondition"}}"#
        )
    };
    let conditions = conditions.map(condition).join(",");
    format!(
        r#"{{"connectionDetails":{details},"query":{{"conditions":[{conditions}],"startTime":{start},"endTime":{end},"aggregation":{{"method":"MEAN","bucketSizeMillis":{bucket},"_type":"Aggregation"}}}}}}"#
    )
}

/// Returns the `q`-quantile of `times`, in milliseconds as text.
pub(crate) fn quantile(times: &mut [Duration], q: f64) -> String {
    times.sort_unstable();
    let at = (times.len().saturating_sub(1) as f64 * q) as usize;
    times.get(at).map_or_else(
        || "-".to_owned(),
        |t| format!("{:.3} ms", t.as_secs_f64() * 1000.0),
    )
}
