//! The page at `/` in a real browser.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use heliostat::clock::{Clock, SystemClock};
use serde_json::{Value, json};

use crate::browser::Browser;
use crate::prometheus::{Store, free_port, installed};
use crate::scripted::{Answer, Fault, Scripted};
use crate::second_level::{self, Process};
use crate::support::{ADMIN, ADMIN_TOKEN, Server};

const MINUTE: i64 = 60_000;
const HOUR: i64 = 60 * MINUTE;

/// The parts of a coverage bar: kind, from, to.
type Parts = Vec<(String, i64, i64)>;

/// Returns the bars shown, one per row.
async fn bars(browser: &Browser) -> Vec<Parts> {
    let bars = browser
        .js("return [...document.querySelectorAll('.coverage .bar')].map((bar) => [...bar.children].map((i) => [i.dataset.kind, Number(i.dataset.from), Number(i.dataset.to)]))")
        .await;
    serde_json::from_value(bars).unwrap()
}

/// Returns the state that an explanation gives for the instant `t`, in the terms of the bar.
fn explained(range: &Value, t: i64) -> Option<&'static str> {
    let holds =
        |part: &&Value| (part["startTime"].as_i64()..part["endTime"].as_i64()).contains(&Some(t));
    let parts = |of: &Value, name: &str| of[name].as_array().cloned().unwrap_or_default();
    for missing in parts(range, "missing") {
        let why = parts(&missing, "why");
        if let Some(why) = why.iter().filter(|w| w["reason"] != "ahead").find(holds) {
            return Some(if why["reason"] == "expired" {
                "expired"
            } else {
                "fetched"
            });
        }
    }
    let cached = parts(range, "cached");
    let known = cached.iter().find(holds)?;
    Some(match known["settled"].as_bool() {
        _ if known["freshSeconds"].as_f64().unwrap() < 0.0 => "expired",
        Some(true) => "settled",
        _ => "tail",
    })
}

/// Fails unless `bar` and `range` agree about every instant from `from` to `to`.
fn agree(bar: &Parts, range: &Value, from: i64, to: i64) {
    let mut edges: Vec<i64> = bar.iter().flat_map(|(_, a, b)| [*a, *b]).collect();
    for list in ["cached", "missing"] {
        for part in range[list].as_array().unwrap() {
            edges.extend([&part["startTime"], &part["endTime"]].map(|t| t.as_i64().unwrap()));
        }
    }
    let instants = edges.iter().flat_map(|t| [t - 1, *t]);
    for t in instants.filter(|t| (from..to).contains(t)) {
        let shown = bar.iter().find(|(_, a, b)| (*a..*b).contains(&t));
        assert_eq!(
            shown.map(|(kind, _, _)| kind.as_str()),
            explained(range, t),
            "{t}: {bar:?} {range:#}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_view_is_driven_with_the_demonstration() {
    let Some(browser) = Browser::start().await else {
        return;
    };
    // Fresh data stays fresh, however slow the machine.
    let server = Server::start(
        "[[upstream]]\nname = \"demo\"\nkind = \"demo\"\ndemo = { latency = \"20ms\" }\nrefresh = \"1h\"\n",
    )
    .await;
    let now = SystemClock::default().now() / MINUTE * MINUTE;
    let (from, to) = (now - 3 * HOUR, now);
    let query = |from: i64, aggregation: Value| {
        json!({
            "connectionDetails": { "upstream": "demo" },
            "query": {
                "conditions": [{ "key": "name", "value": "cpu.usage_percent" }, { "key": "host", "value": "web-1" }],
                "startTime": from, "endTime": to, "aggregation": aggregation,
            },
        })
    };
    let mean = json!({ "method": "MEAN", "bucketSizeMillis": 60_000 });
    let known = server
        .post("/api/metric", &query(now - HOUR, mean.clone()))
        .await;
    assert_eq!(known.status, 200, "{}", known.text);
    let before = server
        .post("/admin/v1/explain/api/metric", &query(from, mean.clone()))
        .await
        .json();

    // The bar matches the explanation from before the page was opened.
    browser.looks(1280, false).await;
    browser
        .open(&format!("{}/#/explore?upstream=demo&c=name%3Dcpu.usage_percent&c=host%3Dweb-1&bucket=60&from={from}&to={to}", server.url))
        .await;
    browser
        .until("document.querySelector('.coverage .bar i')")
        .await;
    let range = &before["stretches"][0];
    let shown = bars(&browser).await;
    assert_eq!(shown.len(), 2, "answer and raw points");
    agree(&shown[0], range, from, to);
    agree(&shown[1], &range["madeOf"], from, to);
    for kind in ["settled", "tail", "fetched"] {
        assert!(
            shown[0].iter().any(|part| part.0 == kind),
            "{kind}: {shown:?}"
        );
    }
    browser.reads("what was missing was fetched").await;
    browser.picture("explore.png").await;

    // Queried again, everything is cached.
    browser.click("#run").await;
    browser.reads("from memory, fresh for").await;
    let shown = bars(&browser).await;
    let before = server
        .post("/admin/v1/explain/api/metric", &query(from, mean))
        .await
        .json();
    agree(&shown[0], &before["stretches"][0], from, to);
    assert!(shown[0].iter().all(|part| part.0 != "fetched"), "{shown:?}");

    // Values can be read with the keyboard, and a part can be zoomed into.
    browser
        .js("document.querySelector('.chart canvas').focus()")
        .await;
    browser.press("\u{e014}\u{e014}").await;
    browser
        .until("document.querySelector('.tip:not([hidden])')?.textContent.includes('UTC')")
        .await;
    browser.press("\u{e00c}").await;
    browser.drag(".chart canvas", 0.4, 0.6).await;
    browser
        .until(&format!(
            "Number(new URLSearchParams(location.hash.split('?')[1]).get('to')) < {to}"
        ))
        .await;
    let zoomed = browser.js("const p = new URLSearchParams(location.hash.split('?')[1]); return [Number(p.get('from')), Number(p.get('to'))]").await;
    let zoomed: Vec<i64> = serde_json::from_value(zoomed).unwrap();
    let width = zoomed[1] - zoomed[0];
    assert!(
        zoomed[0] > from && (20 * MINUTE..50 * MINUTE).contains(&width),
        "{zoomed:?}"
    );
    browser.js("history.back()").await;
    browser
        .until(&format!("location.hash.includes('to={to}')"))
        .await;

    // Fields and values are offered as they are typed.
    browser
        .js("location.hash = '#/explore?upstream=demo&c=host%3Dweb-1'")
        .await;
    browser
        .until("document.querySelectorAll('.condition').length === 1")
        .await;
    browser.click("#add").await;
    browser
        .type_into(".condition:nth-child(2) input[data-part=field]", "na")
        .await;
    browser
        .until("document.querySelector('.options:not([hidden]) li')?.textContent.includes('name')")
        .await;
    browser.press("\u{e015}\u{e007}").await;
    browser
        .until("document.activeElement.dataset.part === 'value'")
        .await;
    browser.press("mem").await;
    // The list of all values stays until the server has answered for the prefix.
    let offered = "[...document.querySelectorAll('.options:not([hidden]) li span')].map((s) => s.textContent)";
    browser
        .until(&format!(
            "((all) => all.length > 0 && all.every((v) => v.startsWith('mem')))({offered})"
        ))
        .await;
    browser.press("\u{e015}\u{e007}").await;
    browser.until("location.hash.includes('name%3Dmem')").await;
    browser.until("document.querySelector('#outcome')").await;

    // Keys switch between the views.
    browser.press("\u{e00c}").await;
    browser.js("document.activeElement.blur()").await;
    browser.press("1").await;
    browser
        .until("document.querySelector('[data-upstream=demo] .mixbar')")
        .await;
    browser.reads("Points from memory").await;
    browser
        .until("document.querySelectorAll('.tile').length === 5")
        .await;
    for (width, dark, name) in [
        (1280, false, "overview.png"),
        (1280, true, "overview-dark.png"),
        (360, false, "overview-360.png"),
    ] {
        browser.looks(width, dark).await;
        let wide = browser
            .js("return document.documentElement.scrollWidth")
            .await;
        assert!(
            wide.as_u64().unwrap() <= u64::from(width),
            "{wide} at {width}"
        );
        browser.picture(name).await;
    }
    browser.press("3").await;
    browser.reads("cpu.usage_percent").await;
    browser.picture("cache-360.png").await;
    browser.looks(1280, true).await;
    browser.picture("cache-dark.png").await;

    // Invalidation asks for confirmation.
    browser
        .type_into("#forget input", "name=cpu.usage_percent")
        .await;
    browser.click("#forget button").await;
    browser.reads("Forget what is cached?").await;
    browser.click("dialog button[value='']").await;
    browser
        .until("!document.getElementById('dialog').open")
        .await;
    let left = server.get("/admin/v1/cache").await.json();
    assert!(left.to_string().contains("cpu.usage_percent"));
    browser.click("#forget button").await;
    browser.click("dialog button[value=forget]").await;
    browser.reads("Forgot ").await;
    let left = server.get("/admin/v1/cache").await.json();
    assert!(!left.to_string().contains("cpu.usage_percent"), "{left}");

    browser.js("document.activeElement.blur()").await;
    browser.press("4").await;
    browser
        .until("document.querySelector('[data-key=\"upstream[0].refresh\"]:not(.is-default)')")
        .await;
    browser
        .until("document.querySelector('[data-key=\"server.max_body\"].is-default')")
        .await;
    browser.picture("configuration-dark.png").await;
    browser.type_into("[data-search]", "max_stale").await;
    browser
        .until("document.querySelectorAll('tr[data-key]').length === 1")
        .await;
    browser.click("#reload").await;
    browser.click("dialog button[value=reload]").await;
    browser.reads("kept: demo").await;
    browser.looks(360, false).await;
    browser.picture("configuration-360.png").await;
    browser.stayed_at(&server.url, &[]).await;
}

/// A Prometheus with series of which one has a label that would be a script in HTML.
async fn prometheus() -> Option<Store> {
    if !(installed("prometheus") && installed("promtool")) {
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let now = SystemClock::default().now() / 1000;
    let mut text = "# TYPE page_gauge gauge\n".to_owned();
    for (host, size) in [
        ("a", 1),
        (
            "<script>window.hacked=1</script><img src=x onerror=window.hacked=2>",
            2,
        ),
    ] {
        for t in (now - 7200..now).step_by(15) {
            text += &format!(
                "page_gauge{{host=\"{host}\"}} {} {t}\n",
                (t / 15 % 40) * size
            );
        }
    }
    text += "# TYPE page_wide gauge\n";
    for n in 0..130 {
        text += &format!("page_wide{{host=\"node-{n:03}\"}} {n} {}\n", now - 60);
    }
    std::fs::write(path("samples"), text + "# EOF\n").unwrap();
    std::fs::write(path("prometheus.yml"), "").unwrap();
    let mut make = std::process::Command::new("promtool");
    make.args(["tsdb", "create-blocks-from", "openmetrics", "--quiet"]);
    let made = make.args([path("samples"), path("data")]).output().unwrap();
    assert!(
        made.status.success(),
        "{}",
        String::from_utf8_lossy(&made.stderr)
    );
    let port = free_port();
    let args = [
        format!("--config.file={}", path("prometheus.yml")),
        format!("--storage.tsdb.path={}", path("data")),
        format!("--web.listen-address=127.0.0.1:{port}"),
    ];
    Some(Store::start("prometheus", folder, &args, port, "/-/ready").await)
}

#[tokio::test(flavor = "multi_thread")]
async fn expressions_of_a_real_prometheus_are_completed_and_drawn_and_labels_are_text() {
    let Some(store) = prometheus().await else {
        return;
    };
    let Some(browser) = Browser::start().await else {
        return;
    };
    let server = Server::start(&format!(
        "{ADMIN}[[upstream]]\nname = \"prom\"\nkind = \"prometheus\"\nurls = [{:?}]\nrefresh = \"1h\"\n",
        store.url
    ))
    .await;
    browser.looks(1280, false).await;
    browser.open(&format!("{}/", server.url)).await;
    // The admin API requires its token; this tab keeps it.
    browser.reads("A token for the admin API").await;
    browser.type_into("dialog input", "wrong\u{e007}").await;
    browser.reads("That token is not one that is known").await;
    browser
        .type_into("dialog input", &format!("{ADMIN_TOKEN}\u{e007}"))
        .await;
    browser
        .until("document.querySelector('[data-upstream=prom]')")
        .await;
    browser
        .js("location.hash = '#/explore?upstream=prom&mode=promql'")
        .await;
    browser.type_into("textarea", "page_g").await;
    browser.until("document.querySelector('.options:not([hidden]) li')?.textContent.includes('page_gauge')").await;
    browser.press("\u{e015}\u{e007}{ho").await;
    browser
        .until("document.querySelector('.options:not([hidden]) li')?.textContent.includes('host')")
        .await;
    browser.press("\u{e015}\u{e007}").await;
    browser
        .until(
            "document.querySelector('.options:not([hidden]) li')?.textContent.includes('script')",
        )
        .await;
    browser.press("\u{e00c}").await;
    browser.type_into("textarea", "page_gauge").await;
    browser.press("\u{e00c}").await;
    browser
        .js("document.querySelector('textarea').focus()")
        .await;
    browser.press("\u{e009}\u{e007}").await;
    browser
        .until("document.querySelectorAll('.legend button').length === 2")
        .await;
    browser.reads("<script>window.hacked=1</script>").await;
    assert_eq!(
        browser.js("return window.hacked ?? null").await,
        Value::Null
    );
    browser
        .until("document.querySelector('.coverage .bar i.fetched')")
        .await;
    browser.picture("explore-promql.png").await;
    browser.click("#run").await;
    browser
        .until("document.querySelector('.coverage .bar i.settled')")
        .await;
    // The mirror API of the same store, with values offered.
    browser.js("location.hash = '#/explore?upstream=prom&c=__gauge__%3Dpage_gauge&c=host%3Da&method=MAX'").await;
    browser.reads("MAX of").await;
    // Values beyond those listed at once are folded; folded values can be drilled into.
    browser
        .js("location.hash = '#/explore?upstream=prom&c=__gauge__%3Dpage_wide&c=host%3D'")
        .await;
    browser
        .type_into(".condition:nth-child(2) input[data-part=value]", "n")
        .await;
    let offered = "[...document.querySelectorAll('.options:not([hidden]) li span')].map((s) => s.textContent).join()";
    browser
        .until(&format!("{offered}.endsWith('node-11*,node-12*')"))
        .await;
    browser.press("\u{e013}\u{e007}").await;
    browser
        .until(&format!("{offered}.startsWith('node-110,node-111,')"))
        .await;
    browser.press("5").await;
    browser.until(&format!("{offered} === 'node-115'")).await;
    browser.press("\u{e015}\u{e007}").await;
    browser
        .until("location.hash.includes('host%3Dnode-115')")
        .await;
    browser
        .js("location.hash = '#/explore?upstream=prom&mode=promql&kind=instant&query=page_gauge'")
        .await;
    browser
        .until("document.querySelectorAll('table tbody tr').length === 2")
        .await;
    assert_eq!(
        browser.js("return window.hacked ?? null").await,
        Value::Null
    );
    // A store's own error is shown unchanged.
    browser
        .js("location.hash = '#/explore?upstream=prom&mode=promql&query=rate('")
        .await;
    browser.reads("HTTP 400").await;
    browser
        .stayed_at(&server.url, &["status of 401", "status of 400"])
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_dies_and_comes_back_is_seen() {
    let Some(browser) = Browser::start().await else {
        return;
    };
    let dead = Arc::new(AtomicBool::new(true));
    let is_dead = dead.clone();
    let store = Scripted::start(Arc::new(SystemClock::default()), move |_, seen| {
        if is_dead.load(Ordering::SeqCst) {
            return Answer {
                fault: Fault::Close,
                ..Answer::default()
            };
        }
        if seen.path.contains("query_range") {
            let result = json!([{ "metric": { "job": "back" }, "values": [[1_790_000_000, "1"]] }]);
            return Answer::json(json!({ "status": "success", "data": { "resultType": "matrix", "result": result } }));
        }
        Answer::json(json!({ "status": "success", "data": { "resultType": "vector", "result": [] } }))
    })
    .await;
    let server = Server::start(&format!(
        "{ADMIN}[[upstream]]\nname = \"mortal\"\nkind = \"prometheus\"\nurls = [{:?}]\nretries = 0\nbreaker = {{ failures = 2, open = \"1s\" }}\n",
        store.url
    ))
    .await;
    browser.looks(1280, false).await;
    browser.open(&format!("{}/", server.url)).await;
    browser
        .type_into("dialog input", &format!("{ADMIN_TOKEN}\u{e007}"))
        .await;
    browser.reads("mortal").await;
    let look = "#/explore?upstream=mortal&mode=promql&query=up&from=1790000000000&to=1790000060000";
    browser.js(&format!("location.hash = '{look}'")).await;
    browser.reads("HTTP 50").await;
    for _ in 0..3 {
        browser.click("#run").await;
    }
    browser.js("location.hash = '#/overview'").await;
    browser.until("document.querySelector('[data-upstream=mortal] .badge.bad')?.textContent.includes('failing')").await;
    browser.picture("overview-dead.png").await;
    dead.store(false, Ordering::SeqCst);
    browser
        .until("document.querySelector('[data-upstream=mortal] .badge.bad') === null")
        .await;
    browser.js(&format!("location.hash = '{look}'")).await;
    browser.until("document.querySelector('#outcome')").await;
    browser.reads("1 point").await;
    browser
        .stayed_at(&server.url, &["status of 401", "status of 50"])
        .await;
}

/// nginx that serves Heliostat below a path, until dropped.
struct Nginx {
    child: std::process::Child,
    _folder: tempfile::TempDir,
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Nginx {
    /// nginx on `port` with Heliostat at `url` below `/below/heliostat/`.
    fn start(port: u16, url: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().display();
        let text = format!(
            "daemon off; master_process off; pid {at}/pid; error_log {at}/error;\nevents {{}}\nhttp {{\n access_log off;\n client_body_temp_path {at}/1; proxy_temp_path {at}/2; fastcgi_temp_path {at}/3; uwsgi_temp_path {at}/4; scgi_temp_path {at}/5;\n server {{\n  listen 127.0.0.1:{port};\n  location /below/heliostat/ {{ proxy_pass {url}/; proxy_set_header Host $http_host; }}\n }}\n}}\n"
        );
        std::fs::write(folder.path().join("conf"), text).unwrap();
        let mut run = std::process::Command::new("nginx");
        run.arg("-c").arg(folder.path().join("conf"));
        run.arg("-e").arg(folder.path().join("error"));
        let null = std::process::Stdio::null;
        run.stdin(null()).stdout(null()).stderr(null());
        let child = run.spawn().unwrap();
        Self {
            child,
            _folder: folder,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_works_below_a_path_and_with_a_token_for_everything() {
    if !installed("nginx") {
        return;
    }
    let Some(browser) = Browser::start().await else {
        return;
    };
    let tokens = ADMIN.replace("admin", "mirror") + ADMIN;
    let server = Server::start(&format!(
        "{tokens}[[upstream]]\nname = \"prefixed\"\nkind = \"demo\"\ndemo = {{ latency = \"1ms\" }}\n"
    ))
    .await;
    let port = free_port();
    let _proxy = Nginx::start(port, &server.url);
    let origin = format!("http://127.0.0.1:{port}/below/heliostat/");
    for _ in 0..600 {
        if tokio::net::TcpStream::connect(("127.0.0.1", port))
            .await
            .is_ok()
        {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    browser.looks(1280, false).await;
    browser.open(&origin).await;
    // The page itself came with a 401, so the browser asks for credentials.
    browser
        .type_into("dialog input", &format!("{ADMIN_TOKEN}\u{e007}"))
        .await;
    browser
        .until("document.querySelector('[data-upstream=prefixed]')")
        .await;
    browser.click("nav a[data-view=explore]").await;
    browser
        .until("document.querySelector('.coverage .bar i')")
        .await;
    browser.click("nav a[data-view=cache]").await;
    browser.reads("cpu.usage_percent").await;
    browser.click("#forget button").await;
    browser.click("dialog button[value=forget]").await;
    browser.reads("Forgot ").await;
    browser.stayed_at(&origin, &["status of 401"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bar_shows_what_is_read_from_a_second_level() {
    let Some(browser) = Browser::start().await else {
        return;
    };
    let (source, folder) = (second_level::source().await, tempfile::tempdir().unwrap());
    let toml = second_level::configuration(&source.url, &folder.path().join("disk"));
    let from = second_level::now() / HOUR * HOUR - 50 * HOUR;
    let to = from + HOUR;
    let mut process = Process::start(folder.path(), &toml);
    process
        .ask(&second_level::query(1, from, to))
        .await
        .unwrap();
    process.written("disk").await;
    process.signal("-KILL");
    let process = Process::start(folder.path(), &toml);
    browser.looks(1280, false).await;
    browser
        .open(&format!(
            "{}/#/explore?upstream=kept&c=name%3Ds1&bucket=60&from={from}&to={to}",
            process.url
        ))
        .await;
    browser.reads("A token for the admin API").await;
    browser
        .type_into("dialog input", &format!("{ADMIN_TOKEN}\u{e007}"))
        .await;
    // Buckets are made of the raw points that the disk has.
    browser
        .until("document.querySelector('.coverage .bar i[data-kind=second]')")
        .await;
    let shown = bars(&browser).await;
    let raw = shown.last().unwrap();
    assert!(raw.iter().all(|part| part.0 == "second"), "{shown:?}");
    browser.reads("second level").await;
    browser.picture("second-level.png").await;
}
