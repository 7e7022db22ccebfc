//! A Heliostat to test, and a client for it.

use std::collections::BTreeMap;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use heliostat::app::{ConfigSource, Service};
use heliostat::clock::{Clock, SystemClock};
use heliostat::config;
use heliostat::front::{Applied, Reloads};
use serde_json::Value;

/// A section that opens the admin API to clients with [`ADMIN_TOKEN`].
pub(crate) const ADMIN: &str = "[access.admin]\ntokens = [\"sha256:3c469e9d6c5875d37a43f353d4f88e61fcf812c66eee3457465a40b0da4153e0\"]\n";
pub(crate) const ADMIN_TOKEN: &str = "token";

/// A clock that stands still until it is moved. Wall time and monotonic time differ only if a test
/// asks for it.
#[derive(Debug)]
pub(crate) struct TestClock {
    wall: AtomicI64,
    monotonic: AtomicU64,
}

impl TestClock {
    pub(crate) fn at(wall: i64) -> Arc<Self> {
        Arc::new(Self {
            wall: AtomicI64::new(wall),
            monotonic: AtomicU64::new(1_000_000),
        })
    }

    /// Advances the time.
    pub(crate) fn pass(&self, millis: u64) {
        self.wall.fetch_add(millis as i64, Ordering::SeqCst);
        self.monotonic.fetch_add(millis, Ordering::SeqCst);
    }

    /// Sets the wall clock forwards or back.
    pub(crate) fn step(&self, millis: i64) {
        self.wall.fetch_add(millis, Ordering::SeqCst);
    }
}

impl Clock for TestClock {
    fn now(&self) -> i64 {
        self.wall.load(Ordering::SeqCst)
    }

    fn monotonic(&self) -> Duration {
        Duration::from_millis(self.monotonic.load(Ordering::SeqCst))
    }
}

/// A Heliostat with its own port; it stops when dropped.
pub(crate) struct Server {
    pub(crate) url: String,
    /// The configuration to read on the next reload.
    toml: Arc<Mutex<String>>,
    reloads: Reloads,
    client: reqwest::Client,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A complete answer.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: reqwest::header::HeaderMap,
    pub(crate) text: String,
}

impl Reply {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e}: {}", self.text))
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |v| v.to_str().unwrap())
    }

    /// Returns the points of a metric answer.
    pub(crate) fn points(&self) -> Vec<Vec<f64>> {
        assert_eq!(self.status, 200, "{}", self.text);
        serde_json::from_value(self.json()["telemetry"]["points"].clone()).unwrap()
    }
}

impl Server {
    /// Starts a Heliostat with the configuration `toml`, whose address is replaced.
    pub(crate) async fn start(toml: &str) -> Self {
        Self::start_at(toml, Arc::new(SystemClock::default())).await
    }

    /// Does the same with the test's own clock.
    pub(crate) async fn start_at(toml: &str, clock: Arc<dyn Clock>) -> Self {
        Self::start_with(toml, clock, BTreeMap::new()).await
    }

    /// Does the same with environment variables.
    pub(crate) async fn start_with(
        toml: &str,
        clock: Arc<dyn Clock>,
        mut env: BTreeMap<String, String>,
    ) -> Self {
        let address = "127.0.0.1:0".to_owned();
        env.insert("HELIOSTAT_SERVER__LISTEN".to_owned(), address);
        let config = config::parse(toml, "test.toml", &env).unwrap();
        let service = Service::bind(&config, clock).await.unwrap();
        let scheme = match config.server.tls {
            Some(_) => "https",
            None => "http",
        };
        let url = format!("{scheme}://{}", service.address().unwrap());
        let toml = Arc::new(Mutex::new(toml.to_owned()));
        let said = toml.clone();
        let reloads = service.follow(ConfigSource {
            load: Box::new(move || config::parse(&said.lock().unwrap(), "test.toml", &env)),
            file: None,
        });
        let task = tokio::spawn(service.run(std::future::pending()));
        let client = heliostat::upstream::Http::builder().build().unwrap();
        Self {
            url,
            toml,
            reloads,
            client,
            task,
        }
    }

    /// Reloads the configuration, which is now `toml`.
    pub(crate) async fn reload(&self, toml: &str) -> Result<Applied, String> {
        toml.clone_into(&mut self.toml.lock().unwrap());
        self.reloads.ask().await.unwrap()
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Reply {
        let request = self.client.post(format!("{}{path}", self.url));
        let request = request.header("content-type", "application/json");
        self.reply(request.body(body.to_string())).await
    }

    pub(crate) async fn get(&self, path: &str) -> Reply {
        self.reply(self.client.get(format!("{}{path}", self.url)))
            .await
    }

    /// Sends a request that was made with [`Server::client`].
    pub(crate) async fn reply(&self, request: reqwest::RequestBuilder) -> Reply {
        let response = request.send().await.unwrap();
        Reply {
            status: response.status().as_u16(),
            headers: response.headers().clone(),
            text: response.text().await.unwrap(),
        }
    }

    pub(crate) fn client(&self) -> &reqwest::Client {
        &self.client
    }

    /// Returns the value of a metric with exactly these labels, as `/metrics` writes them; 0 if
    /// absent. All servers of a process share their metrics: the names of upstreams distinguish
    /// them.
    pub(crate) async fn metric(&self, series: &str) -> f64 {
        metric(&self.get("/metrics").await.text, series)
    }
}

/// Sends the signal `name` to `process`.
pub(crate) fn signal(process: &Child, name: &str) {
    let process = process.id().to_string();
    let sent = Command::new("kill").args(["-s", name, &process]).status();
    assert!(sent.unwrap().success());
}

/// Returns the value of `series` in `text`, the contents of `/metrics`.
pub(crate) fn metric(text: &str, series: &str) -> f64 {
    let line = text
        .lines()
        .find_map(|l| l.strip_prefix(series)?.strip_prefix(' '));
    line.map_or(0.0, |v| v.parse().unwrap())
}
