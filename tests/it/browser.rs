//! A headless Chromium, driven by WebDriver, that records its requests and its console errors.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use base64::Engine;
use fantoccini::wd::WebDriverCompatibleCommand;
use fantoccini::{Client, ClientBuilder, Locator};
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{Value, json};
use tokio::sync::{Mutex, MutexGuard};

use crate::prometheus::installed;

/// Only one browser at a time runs on the machine.
static TURN: Mutex<()> = Mutex::const_new(());

/// The longest that anything may take on a very busy machine.
const PATIENCE: Duration = Duration::from_secs(90);

/// A browser with one tab. It ends when dropped.
pub(crate) struct Browser {
    client: Client,
    driver: Child,
    profile: tempfile::TempDir,
    _turn: MutexGuard<'static, ()>,
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Killing the driver leaves the browser running. The process with our profile is ours.
        let _ = self.driver.kill();
        let _ = self.driver.wait();
        let profile = self.profile.path().to_str().unwrap().to_owned();
        for process in std::fs::read_dir("/proc").unwrap().flatten() {
            let words = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
            if String::from_utf8_lossy(&words).contains(&profile) {
                let _ = Command::new("kill")
                    .arg("-9")
                    .arg(process.file_name())
                    .status();
            }
        }
    }
}

/// A command that is Chromium's own.
#[derive(Debug)]
struct Extension {
    path: &'static str,
    body: Value,
}

impl WebDriverCompatibleCommand for Extension {
    fn endpoint(
        &self,
        base: &url::Url,
        session: Option<&str>,
    ) -> Result<url::Url, url::ParseError> {
        base.join(&format!(
            "session/{}/{}",
            session.unwrap_or_default(),
            self.path
        ))
    }

    fn method_and_body(&self, _: &url::Url) -> (http::Method, Option<String>) {
        (http::Method::POST, Some(self.body.to_string()))
    }
}

impl Browser {
    /// Starts a browser; prints a message and returns `None` if it is not installed.
    pub(crate) async fn start() -> Option<Self> {
        if !(installed("chromium") && installed("chromedriver")) {
            return None;
        }
        let turn = TURN.lock().await;
        let profile = tempfile::tempdir().unwrap();
        let mut driver = Command::new("chromedriver")
            .arg("--port=0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let said = BufReader::new(driver.stdout.take().unwrap());
        let port = tokio::task::spawn_blocking(move || {
            let mut lines = said.lines().map_while(Result::ok);
            let line = lines.find(|line| line.contains("started successfully on port"));
            let port = line
                .unwrap()
                .rsplit(' ')
                .next()
                .unwrap()
                .trim_end_matches('.')
                .to_owned();
            // Its later output must not block it.
            std::thread::spawn(move || lines.for_each(drop));
            port
        });
        let port = port.await.unwrap();
        let folder = format!("--user-data-dir={}", profile.path().display());
        let args = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--force-color-profile=srgb",
            &folder,
        ];
        let capabilities = json!({
            "goog:chromeOptions": { "args": args },
            "goog:loggingPrefs": { "browser": "ALL", "performance": "ALL" },
        });
        let client = ClientBuilder::new(HttpConnector::new())
            .capabilities(capabilities.as_object().unwrap().clone())
            .connect(&format!("http://127.0.0.1:{port}"))
            .await
            .unwrap();
        Some(Self {
            client,
            driver,
            profile,
            _turn: turn,
        })
    }

    async fn extension(&self, path: &'static str, body: Value) -> Value {
        let command = Extension { path, body };
        self.client.issue_cmd(command).await.unwrap()
    }

    /// Sends a command of Chromium's DevTools protocol.
    pub(crate) async fn cdp(&self, command: &str, params: Value) -> Value {
        let body = json!({ "cmd": command, "params": params });
        self.extension("goog/cdp/execute", body).await
    }

    /// Sets the width of the tab, and whether the system prefers a dark theme.
    pub(crate) async fn looks(&self, width: u32, dark: bool) {
        let size =
            json!({ "width": width, "height": 900, "deviceScaleFactor": 1, "mobile": false });
        self.cdp("Emulation.setDeviceMetricsOverride", size).await;
        let scheme = if dark { "dark" } else { "light" };
        let media = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.cdp("Emulation.setEmulatedMedia", media).await;
    }

    pub(crate) async fn open(&self, url: &str) {
        self.client.goto(url).await.unwrap();
    }

    /// Returns the result of `script`, the body of a function.
    pub(crate) async fn js(&self, script: &str) -> Value {
        self.client.execute(script, Vec::new()).await.unwrap()
    }

    /// Waits until `expression` is true, and returns its value.
    pub(crate) async fn until(&self, expression: &str) -> Value {
        let script = format!("return ({expression}) ?? null");
        let begun = tokio::time::Instant::now();
        loop {
            let value = self.js(&script).await;
            if !matches!(value, Value::Null | Value::Bool(false)) {
                return value;
            }
            if begun.elapsed() > PATIENCE {
                let text = self.js("return document.body.innerText").await;
                panic!("never true: {expression}; the page says {text}");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until the page contains `text`.
    pub(crate) async fn reads(&self, text: &str) {
        self.until(&format!(
            "document.body.innerText.includes({})",
            json!(text)
        ))
        .await;
    }

    pub(crate) async fn click(&self, css: &str) {
        self.until(&format!("document.querySelector({})", json!(css)))
            .await;
        let element = self.client.find(Locator::Css(css)).await.unwrap();
        element.click().await.unwrap();
    }

    /// Types `text`, where `\u{e007}` is Enter, into the element that `css` selects, replacing its
    /// contents.
    pub(crate) async fn type_into(&self, css: &str, text: &str) {
        self.until(&format!("document.querySelector({})", json!(css)))
            .await;
        let element = self.client.find(Locator::Css(css)).await.unwrap();
        element.clear().await.unwrap();
        element.send_keys(text).await.unwrap();
    }

    /// Presses keys in the focused element.
    pub(crate) async fn press(&self, keys: &str) {
        self.client
            .active_element()
            .await
            .unwrap()
            .send_keys(keys)
            .await
            .unwrap();
    }

    /// Drags the pointer over the element, from one share of its width to another.
    pub(crate) async fn drag(&self, css: &str, from: f64, to: f64) {
        let script = format!(
            "const b = document.querySelector({}).getBoundingClientRect(); return [b.left, b.top, b.width, b.height]",
            json!(css)
        );
        let found: Vec<f64> = serde_json::from_value(self.js(&script).await).unwrap();
        let at = |share: f64| (found[0] + found[2] * share, found[1] + found[3] / 2.0);
        let between = (from + to) / 2.0;
        for (kind, share, buttons) in [
            ("mouseMoved", from, 0),
            ("mousePressed", from, 1),
            ("mouseMoved", between, 1),
            ("mouseMoved", to, 1),
            ("mouseReleased", to, 1),
        ] {
            let (x, y) = at(share);
            let event = json!({ "type": kind, "x": x, "y": y, "button": "left", "buttons": buttons, "clickCount": 1 });
            self.cdp("Input.dispatchMouseEvent", event).await;
        }
    }

    /// Saves a picture of the whole page as `name` in the folder `HELIOSTAT_SCREENSHOTS`, if that
    /// is set.
    pub(crate) async fn picture(&self, name: &str) {
        let Some(folder) = std::env::var_os("HELIOSTAT_SCREENSHOTS").map(PathBuf::from) else {
            return;
        };
        let size = "const ends = [...document.querySelectorAll('main section, main .tiles')].map((e) => e.getBoundingClientRect().bottom + scrollY); return [innerWidth, Math.min(Math.ceil(Math.max(...ends)) + 20, 3000)]";
        let size: Vec<f64> = serde_json::from_value(self.js(size).await).unwrap();
        let clip = json!({ "x": 0, "y": 0, "width": size[0], "height": size[1], "scale": 1 });
        let shot = json!({ "captureBeyondViewport": true, "clip": clip });
        let shot = self.cdp("Page.captureScreenshot", shot).await;
        let bytes =
            base64::engine::general_purpose::STANDARD.decode(shot["data"].as_str().unwrap());
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(name), bytes.unwrap()).unwrap();
    }

    /// Fails if anything was requested from elsewhere than `origin`, or if the console has an error
    /// that contains none of `expected`.
    pub(crate) async fn stayed_at(&self, origin: &str, expected: &[&str]) {
        let entries = |kind: &str| self.extension("se/log", json!({ "type": kind }));
        let mut asked = BTreeSet::new();
        for entry in entries("performance").await.as_array().unwrap() {
            let event: Value = serde_json::from_str(entry["message"].as_str().unwrap()).unwrap();
            let event = &event["message"];
            if event["method"] == "Network.requestWillBeSent" {
                asked.insert(
                    event["params"]["request"]["url"]
                        .as_str()
                        .unwrap()
                        .to_owned(),
                );
            }
        }
        // A new tab of Chromium requests chrome: URLs.
        let of_the_net = |url: &str| !(url.starts_with("chrome:") || url.starts_with("data:"));
        let foreign = asked
            .iter()
            .find(|url| of_the_net(url) && !url.starts_with(origin));
        assert!(asked.iter().any(|url| url.starts_with(origin)), "{asked:?}");
        assert_eq!(foreign, None);
        for entry in entries("browser").await.as_array().unwrap() {
            let text = entry["message"].as_str().unwrap();
            let known = expected.iter().any(|part| text.contains(part));
            assert!(known || entry["level"] != "SEVERE", "{entry}");
        }
    }
}
