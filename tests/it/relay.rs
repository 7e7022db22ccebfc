//! A relay between Heliostat and a real Prometheus that injects faults as a test plans them.
//! Answers have the test's time as their `Date`.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex};

use heliostat::clock::Clock;

use crate::scripted::{Answer, Fault, Scripted, Seen};

/// A fault of a request or its answer.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Accident {
    /// The answer is broken.
    Fault(Fault),
    /// The answer is an error of this status, with a body that is not Prometheus'.
    Status(u16),
    /// The answer comes this many milliseconds later.
    Late(u64),
}

/// The relay. Heliostat's requests are recorded by `upstream`.
pub(crate) struct Relay {
    pub(crate) upstream: Scripted,
    planned: Arc<Mutex<VecDeque<Option<Accident>>>>,
}

impl Relay {
    /// Starts a relay to the server at `url`. Needs a multi-threaded runtime.
    pub(crate) async fn to(url: &str, clock: Arc<dyn Clock>) -> Self {
        let planned: Arc<Mutex<VecDeque<Option<Accident>>>> = Arc::default();
        let accidents = planned.clone();
        let address = url.trim_start_matches("http://").to_owned();
        let upstream = Scripted::start(clock, move |_, seen| {
            let accident = accidents.lock().unwrap().pop_front().flatten();
            let answer = || tokio::task::block_in_place(|| forward(&address, seen));
            match accident {
                None => answer(),
                Some(Accident::Fault(fault)) => Answer { fault, ..answer() },
                Some(Accident::Late(delay)) => Answer { delay, ..answer() },
                Some(Accident::Status(status)) => Answer {
                    status,
                    text: Some("out of order".to_owned()),
                    ..Answer::default()
                },
            }
        })
        .await;
        Self { upstream, planned }
    }

    /// Plans faults for the next requests, one each, replacing earlier plans.
    pub(crate) fn plan(&self, accidents: impl IntoIterator<Item = Option<Accident>>) {
        *self.planned.lock().unwrap() = accidents.into_iter().collect();
    }
}

/// Returns the answer of the server at `address`; HTTP/1.0, which has no chunks.
fn forward(address: &str, seen: &Seen) -> Answer {
    let mut stream = TcpStream::connect(address).unwrap();
    let mut head = format!("{} {} HTTP/1.0\r\nhost: origin\r\n", seen.method, seen.path);
    for (name, value) in &seen.headers {
        if !["connection", "host", "accept-encoding"].contains(&name.as_str()) {
            head += &format!("{name}: {value}\r\n");
        }
    }
    let request = [head.as_bytes(), b"\r\n", &seen.body].concat();
    stream.write_all(&request).unwrap();
    let mut reply = Vec::new();
    stream.read_to_end(&mut reply).unwrap();
    let end = reply.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
    let head = String::from_utf8_lossy(&reply[..end]).into_owned();
    let body = &reply[end + 4..];
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap().split(' ').nth(1).unwrap();
    let headers = lines.filter_map(|l| l.split_once(':'));
    let headers = headers.map(|(n, v)| (n.to_ascii_lowercase(), v.trim().to_owned()));
    let ours = ["connection", "content-length", "date"];
    Answer {
        status: status.parse().unwrap(),
        headers: headers
            .filter(|(n, _)| !ours.contains(&n.as_str()))
            .collect(),
        text: std::str::from_utf8(body).ok().map(str::to_owned),
        hex: Some(body.iter().map(|b| format!("{b:02x}")).collect()),
        ..Answer::default()
    }
}
