//! Servers as separate processes: the bench's executable runs itself again as one.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use heliostat::app::Service;
use heliostat::clock::SystemClock;
use heliostat::config;
use heliostat::front::{Body, listen};
use heliostat::telemetry::logs;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};

/// The longest answer of the bare server.
const LONGEST: usize = 4 << 20;

/// The role of a server.
#[derive(Clone, Copy)]
pub(crate) enum Kind<'a> {
    /// Hyper as Heliostat uses it: a request for `/n` gets `n` bytes.
    Bare,
    /// Heliostat, with this configuration.
    Heliostat(&'a str),
}

/// A server. It ends when it is dropped, or when this process does.
pub(crate) struct Server {
    process: Child,
    pub(crate) address: SocketAddr,
}

impl Server {
    /// Starts a server with as many threads as `heliostat serve` has.
    pub(crate) fn start(kind: Kind<'_>) -> Self {
        let command = Command::new(std::env::current_exe().unwrap());
        Self::start_under(command, "multi", kind)
    }

    /// Starts a single-threaded server under valgrind, with these options.
    pub(crate) fn start_in_valgrind(options: &[&str], kind: Kind<'_>) -> Self {
        let mut command = Command::new("valgrind");
        command
            .arg("--quiet")
            .args(options)
            .arg(std::env::current_exe().unwrap());
        Self::start_under(command, "single", kind)
    }

    fn start_under(mut command: Command, threads: &str, kind: Kind<'_>) -> Self {
        let (name, config) = match kind {
            Kind::Bare => ("bare", ""),
            Kind::Heliostat(config) => ("heliostat", config),
        };
        let mut process = command
            .args(["--server", threads, name, config])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let output = process.stdout.take().unwrap();
        BufReader::new(output).read_line(&mut line).unwrap();
        let address = line.trim().parse().expect("the server's address");
        Self { process, address }
    }

    pub(crate) fn process_id(&self) -> u32 {
        self.process.id()
    }

    /// Returns the CPU time that it has used.
    pub(crate) fn cpu(&self) -> Duration {
        cpu(self.process.id())
    }

    /// Returns its resident memory in bytes.
    pub(crate) fn rss(&self) -> u64 {
        self.memory("VmRSS:")
    }

    /// Returns its peak resident memory in bytes.
    pub(crate) fn peak(&self) -> u64 {
        self.memory("VmHWM:")
    }

    fn memory(&self, name: &str) -> u64 {
        let path = format!("/proc/{}/status", self.process.id());
        let text = std::fs::read_to_string(path).unwrap();
        let line = text.lines().find_map(|l| l.strip_prefix(name)).unwrap();
        let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse().unwrap();
        kilobytes << 10
    }

    /// Returns the value of the metric `name`, which has no labels.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let mut stream = TcpStream::connect(self.address).unwrap();
        let request = "GET /metrics HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let mut values = text.lines().filter_map(|l| l.strip_prefix(name));
        let value = values.find_map(|v| v.trim().parse().ok());
        value.expect("the metric is there")
    }

    pub(crate) fn cache_bytes(&self) -> u64 {
        self.metric("heliostat_cache_bytes ") as u64
    }
}

/// Returns the CPU time of a process, user and kernel.
pub(crate) fn cpu(process: u32) -> Duration {
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).unwrap();
    let nanos = tasks.map(|task| {
        let path = task.unwrap().path().join("schedstat");
        // A thread may have ended meanwhile.
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let first = text.split(' ').next().and_then(|n| n.parse().ok());
        first.unwrap_or(0)
    });
    Duration::from_nanos(nanos.sum())
}

/// Returns the same as [`cpu`], including threads that have ended, in steps of 10 ms.
pub(crate) fn cpu_of_all(process: u32) -> Duration {
    let text = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    // The second field is a name in brackets; of those after it the 12th and the 13th are the
    // times in user and kernel, in hundredths of a second (proc(5)).
    let (_, fields) = text.rsplit_once(')').unwrap();
    let times = fields.split_ascii_whitespace().skip(11).take(2);
    let hundredths: u64 = times.map(|t| t.parse::<u64>().unwrap()).sum();
    Duration::from_millis(hundredths * 10)
}

/// The CPU time and memory that all threads of a process have used so far.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    /// CPU time outside the kernel and in it, in steps of 10 ms.
    pub(crate) user: Duration,
    pub(crate) kernel: Duration,
    /// Pages of memory that were touched for the first time.
    pub(crate) faults: u64,
}

/// Returns what a process has used.
pub(crate) fn usage(process: u32) -> Usage {
    let text = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    // As in `cpu_of_all`; the 8th field is the number of minor faults.
    let (_, fields) = text.rsplit_once(')').unwrap();
    let fields: Vec<u64> = fields
        .split_ascii_whitespace()
        .skip(1)
        .map(|f| f.parse().unwrap_or(0))
        .collect();
    let hundredths = |n: u64| Duration::from_millis(n * 10);
    Usage {
        user: hundredths(fields[10]),
        kernel: hundredths(fields[11]),
        faults: fields[6],
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        // Its exit status does not matter.
        let _ = self.process.wait();
    }
}

/// Runs a server if this process was started as one; returns whether it did.
pub(crate) fn was_server() -> bool {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, flag, threads, name, config] = &arguments[..] else {
        return false;
    };
    if flag != "--server" {
        return false;
    }
    std::thread::spawn(|| {
        let mut rest = Vec::new();
        let _ = std::io::stdin().read_to_end(&mut rest);
        std::process::exit(0);
    });
    runtime(threads == "multi").block_on(async {
        if name == "bare" {
            bare(announce).await;
        } else {
            heliostat(config, announce).await;
        }
    });
    true
}

fn announce(address: SocketAddr) {
    println!("{address}");
    std::io::stdout().flush().unwrap();
}

/// Returns a runtime like that of `heliostat serve`, or one with a single thread.
pub(crate) fn runtime(multi: bool) -> Runtime {
    let mut builder = if multi {
        Builder::new_multi_thread()
    } else {
        Builder::new_current_thread()
    };
    builder.enable_all().build().unwrap()
}

/// Serves Heliostat until the process ends; `started` gets the address.
pub(crate) async fn heliostat(config: &str, started: impl FnOnce(SocketAddr)) {
    logs::start(tracing::Level::INFO, logs::LogFormat::Human, false);
    let config = config::parse(config, "bench", &std::collections::BTreeMap::new()).unwrap();
    let clock = Arc::new(SystemClock::default());
    let service = Service::bind(&config, clock).await.unwrap();
    started(service.address().unwrap());
    service.run(std::future::pending()).await;
}

/// Serves bytes until the process ends; `started` gets the address.
pub(crate) async fn bare(started: impl FnOnce(SocketAddr)) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    started(listener.local_addr().unwrap());
    let bytes = Bytes::from(vec![b' '; LONGEST]);
    let handler = move |request: http::Request<hyper::body::Incoming>, _| {
        let length: usize = request.uri().path()[1..].parse().unwrap();
        let body = Body::from(bytes.slice(..length));
        async move { http::Response::new(body) }
    };
    listen::serve(
        listener,
        listen::Listening::default(),
        handler,
        std::future::pending(),
    )
    .await;
}
