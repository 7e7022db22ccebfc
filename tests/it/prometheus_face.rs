//! Prometheus' HTTP API as Heliostat serves it: in front of a script, and in front of a real
//! Prometheus.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use reqwest::Method;
use serde_json::{Value, json};

use crate::prometheus_api;
use crate::scripted::{Answer, Fault, Scripted, Seen};
use crate::support::{Reply, Server, TestClock};

const NOW: i64 = 1_700_000_000_000;

/// A Heliostat in front of a script.
struct Face {
    server: Server,
    upstream: Scripted,
    clock: Arc<TestClock>,
}

impl Face {
    async fn start(
        settings: &str,
        script: impl Fn(usize, &Seen) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let clock = TestClock::at(NOW);
        let upstream = Scripted::start(clock.clone(), script).await;
        let toml = format!(
            "[server]\ncompression = \"always\"\n[[upstream]]\nname = \"demo\"\nkind = \"demo\"\n\
             [[upstream]]\nname = \"face\"\nkind = \"prometheus\"\ndefault = true\nurls = [{:?}]\n\
             breaker = {{ failures = 1000, open = \"10s\" }}\n{settings}",
            upstream.url
        );
        let server = Server::start_at(&toml, clock.clone()).await;
        Self {
            server,
            upstream,
            clock,
        }
    }

    async fn get(&self, path: &str) -> Reply {
        self.server.get(&format!("/api/v1/{path}")).await
    }

    async fn ask(&self, method: Method, path: &str, headers: &[(&str, &str)]) -> Reply {
        let url = format!("{}{path}", self.server.url);
        let request = self.server.client().request(method, url);
        let request = headers.iter().fold(request, |r, (n, v)| r.header(*n, *v));
        self.server.reply(request).await
    }

    async fn form(&self, path: &str, form: &'static str) -> Reply {
        let url = format!("{}{path}", self.server.url);
        let request = self.server.client().post(url).body(form);
        let request = request.header("content-type", "application/x-www-form-urlencoded");
        self.server.reply(request).await
    }

    fn calls(&self) -> usize {
        self.upstream.seen().len()
    }
}

fn success(data: impl Into<Value>) -> Answer {
    Answer::json(json!({ "status": "success", "data": data.into() }))
}

fn failure(status: u16, kind: &str) -> Answer {
    Answer {
        status,
        ..Answer::json(json!({ "status": "error", "errorType": kind, "error": "as it is" }))
    }
}

/// Calls for an answer that is requested at 0 s, again at once, at 11 s and at 72 s.
const NEVER: usize = 4;
const REFRESH: usize = 3;
const METADATA: usize = 2;
const HISTORY: usize = 1;

#[tokio::test]
async fn each_endpoint_is_kept_as_long_as_it_may_be() {
    let face = Face::start("", |n, _| success(n)).await;
    for (path, calls) in [
        ("query?query=up", REFRESH),
        ("query?query=down&time=1700000000", REFRESH),
        ("query?query=up&time=1699999900", REFRESH),
        ("query?query=up&time=1600000000.5", HISTORY),
        ("query?query=up&time=2020-09-13T12:26:40Z", HISTORY),
        ("query?query=up+@+5&time=1600000000", HISTORY),
        ("query?query=up+@+1700000000&time=1600000000", REFRESH),
        ("query?query=up[1m]&time=1600000000", HISTORY),
        ("query?query=new(up)&time=1600000000", REFRESH),
        ("query_range?query=up+@+5&start=0&end=10&step=1", NEVER),
        ("labels", METADATA),
        ("labels?match[]=up&start=60&end=120", METADATA),
        ("label/job/values", METADATA),
        ("series?match[]=up", METADATA),
        ("metadata?metric=up", METADATA),
        ("targets/metadata", METADATA),
        ("status/buildinfo", METADATA),
        ("status/config", METADATA),
        ("rules", REFRESH),
        ("alerts", REFRESH),
        ("targets?state=active", REFRESH),
        ("query_exemplars?query=up&start=0&end=1", REFRESH),
        ("format_query?query=up", HISTORY),
        ("parse_query?query=up", HISTORY),
        ("something/new", NEVER),
    ] {
        let before = face.calls();
        let first = face.get(path).await;
        assert_eq!(first.status, 200, "{path}: {}", first.text);
        assert_eq!(first.json()["data"], before, "{path}");
        let expected = if calls == NEVER {
            "bypass"
        } else {
            "miss; stored"
        };
        let status = first.header("cache-status");
        assert!(status.contains(expected), "{path}: {status}");
        let second = face.get(path).await;
        let hit = second
            .header("cache-status")
            .starts_with("heliostat; hit; ttl=");
        assert_eq!(hit, calls != NEVER, "{path}");
        assert_eq!(second.text == first.text, hit, "{path}");
        face.clock.pass(11_000);
        face.get(path).await;
        face.clock.pass(61_000);
        face.get(path).await;
        assert_eq!(face.calls() - before, calls, "{path}");
        face.clock.step(-72_000);
        let seen = &face.upstream.seen()[before];
        assert_eq!(seen.method, "GET");
        let (own, query) = path.split_once('?').unwrap_or((path, ""));
        let (theirs, sent) = seen.path.split_once('?').unwrap_or((&seen.path, ""));
        assert_eq!(theirs, format!("/api/v1/{own}"));
        let pairs = |text: &str| {
            let mut pairs: Vec<_> = url::form_urlencoded::parse(text.as_bytes())
                .into_owned()
                .collect();
            pairs.sort();
            pairs
        };
        let mut sent = pairs(sent);
        let mut asked = pairs(query);
        if path.starts_with("query?") {
            // The evaluation time of instant queries is sent in one spelling.
            sent.retain(|(name, _)| name != "time");
            asked.retain(|(name, _)| name != "time");
        }
        assert_eq!(sent, asked, "{path}");
    }
}

#[tokio::test]
async fn get_and_form_and_the_order_of_parameters_ask_the_same() {
    let face = Face::start("", |n, _| success(n)).await;
    let first = face.get("query?query=up&time=5&x=1").await;
    let again = face.get("query?x=1&time=5&query=up").await;
    let form = face
        .form("/prometheus/face//api/v1/query/?x=1", "query=up&time=5")
        .await;
    assert_eq!([&again.text, &form.text], [&first.text, &first.text]);
    assert_eq!(face.calls(), 1);
    let other = face.form("/api/v1/query", "query=up&time=6").await;
    assert_ne!(other.text, first.text);
    let seen = &face.upstream.seen()[1];
    assert_eq!(
        (seen.method.as_str(), seen.path.as_str()),
        ("POST", "/api/v1/query")
    );
    assert_eq!(seen.json(), json!({ "query": "up", "time": "6" }));
}

/// The answer of a store without series.
fn nothing(seen: &Seen) -> Answer {
    success(match seen.path.contains("query_range") {
        true => json!({"resultType": "matrix", "result": []}),
        false => json!([]),
    })
}

#[tokio::test]
async fn parameters_that_nobody_reads_are_in_no_key_and_go_nowhere() {
    let face = Face::start("parameters = [\"mine\"]", |_, seen| nothing(seen)).await;
    let last = || {
        let seen = face.upstream.seen();
        let seen = seen.last().unwrap();
        match seen.method.as_str() {
            "POST" => String::from_utf8(seen.body.to_vec()).unwrap(),
            _ => seen.path.clone(),
        }
    };
    for (path, known) in [
        ("query?query=up&time=5", "query=up&time=5"),
        ("query_range?query=up&start=0&end=10&step=5", "query=up"),
        ("labels?limit=5", "?limit=5"),
        ("alerts", "/api/v1/alerts"),
        ("status/tsdb?limit=5", "?limit=5"),
    ] {
        let glue = if path.contains('?') { "&" } else { "?" };
        let before = face.calls();
        for n in 0..3 {
            let reply = face
                .get(&format!("{path}{glue}_={n}&time_range={n}&x[]=1"))
                .await;
            assert_eq!(reply.status, 200, "{path}: {}", reply.text);
        }
        assert_eq!(face.calls() - before, 1, "{path}");
        let sent = last();
        assert!(sent.contains(known), "{path}: {sent}");
        let dropped = ["_=", "time_range", "x%5B"]
            .iter()
            .all(|p| !sent.contains(p));
        assert!(dropped, "{path}: {sent}");
        // Parameters that change the answer set requests apart and are passed on.
        for more in ["mine=1", "mine=2", "dedup=true", "extra_filters%5B%5D=a"] {
            let before = face.calls();
            for _ in 0..2 {
                face.get(&format!("{path}{glue}{more}")).await;
            }
            assert_eq!(face.calls() - before, 1, "{path} {more}");
            assert!(last().contains(more), "{path}: {}", last());
        }
        let traced = face.get(&format!("{path}{glue}trace=1")).await;
        let status = traced.header("cache-status");
        assert_eq!(status, "heliostat; fwd=bypass; detail=\"trace\"", "{path}");
        assert!(last().contains("trace=1"), "{path}");
    }
    face.get("something/new?x=1").await;
    assert!(last().ends_with("?x=1"), "{}", last());
}

#[tokio::test]
async fn spellings_of_one_expression_share_an_answer() {
    let face = Face::start("", |_, seen| nothing(seen)).await;
    let spellings = [
        "sum(rate(a{b='c',d=~\"e\"}[60s]))by(g,f)",
        "SUM BY (f, g) ((rate(a{d=~`e`, b=\"c\",}[1m])))",
        "sum by (f, g) (rate(a{b=\"c\",d=~\"e\"}[1m]))",
    ];
    let hosts: Vec<_> = (0..20_000)
        .map(|n| format!("host-{n}.example.org"))
        .collect();
    let many = format!("up{{host=~\"{}\"}}", hosts.join("|"));
    let broad = vec![r#"up{l0=~"\\pL{1,900}a0|"}"#; 300].join(" or ");
    let many = [many.as_str(), &format!(" {many}"), &format!("({many})")].map(str::to_owned);
    let broad = [
        broad.as_str(),
        &format!("{broad} "),
        &broad.replace('"', "`").replace("\\\\", "\\"),
    ]
    .map(str::to_owned);
    for texts in [spellings.map(str::to_owned), many, broad] {
        for (path, more) in [
            ("query", &[("time", "5")][..]),
            (
                "query_range",
                &[("start", "0"), ("end", "10"), ("step", "5")][..],
            ),
        ] {
            let before = face.calls();
            for (n, text) in texts.iter().enumerate() {
                let form = url::form_urlencoded::Serializer::new(String::new())
                    .append_pair("query", text)
                    .extend_pairs(more)
                    .finish();
                let url = format!("{}/api/v1/{path}", face.server.url);
                let request = face.server.client().post(url).body(form);
                let request = request.header("content-type", "application/x-www-form-urlencoded");
                let reply = face.server.reply(request).await;
                assert_eq!(reply.status, 200, "{}", reply.text);
                let status = reply.header("cache-status");
                assert_eq!(
                    status.starts_with("heliostat; hit"),
                    n > 0,
                    "{path} {text:.50}"
                );
            }
            assert_eq!(face.calls() - before, 1, "{path}");
            let sent = face.upstream.seen()[before].json()["query"].to_string();
            assert!(sent.len() < 70 || texts[0].len() > 100, "{sent}");
        }
    }
    let sent = face.upstream.seen()[0].json()["query"].clone();
    assert_eq!(sent, spellings[2]);
    // The same holds for selectors, in any order.
    let before = face.calls();
    for path in [
        "series?match[]=up%7Ba='b'%7D&match[]=down",
        "series?match[]=down&match[]=up%7Ba=%22b%22,%7D",
        "series?match[]=(&match[]=down",
        "series?match[]=down&match[]=(",
    ] {
        face.get(path).await;
    }
    assert_eq!(face.calls() - before, 3);
}

#[tokio::test]
async fn concurrent_requests_share_a_call() {
    let script = |_: usize, seen: &Seen| Answer {
        gate: true,
        ..success(match seen.path.contains("query_range") {
            true => json!({"resultType": "matrix", "result": []}),
            false => json!([]),
        })
    };
    let face = Face::start("", script).await;
    for path in ["labels", "query_range?query=up&start=0&end=1&step=1"] {
        let before = face.calls();
        let coalesced = "heliostat_coalesced_requests_total{upstream=\"face\"}";
        let shared = face.server.metric(coalesced).await;
        let asked = futures_util::future::join_all((0..20).map(|_| face.get(path)));
        let opened = async {
            while face.server.metric(coalesced).await < shared + 19.0 {
                tokio::task::yield_now().await;
            }
            face.upstream.open();
        };
        let (replies, ()) = tokio::join!(asked, opened);
        assert!(replies.iter().all(|r| r.status == 200));
        let collapsed = replies.iter().map(|r| r.header("cache-status"));
        assert_eq!(collapsed.filter(|c| c.contains("; collapsed")).count(), 19);
        assert_eq!(face.calls() - before, 1);
    }
}

#[tokio::test]
async fn errors_of_the_origin_are_its_own() {
    let query = |seen: &Seen| {
        let (_, query) = seen.path.split_once("query=").unwrap();
        query.split('&').next().unwrap().to_owned()
    };
    let script = move |_: usize, seen: &Seen| match Some(query(seen).as_str()) {
        Some("400") => failure(400, "bad_data"),
        Some("422") => failure(422, "execution"),
        Some("429") => failure(429, "too_many_requests"),
        Some("503") => failure(503, "timeout"),
        Some("500") => failure(500, "internal"),
        Some("404") => Answer {
            status: 404,
            headers: [("content-type".to_owned(), "text/plain".to_owned())].into(),
            text: Some("404 page not found\n".to_owned()),
            ..Answer::default()
        },
        Some("502") => Answer {
            status: 502,
            text: Some("<html>".to_owned()),
            ..Answer::default()
        },
        Some("200") => Answer {
            text: Some("{\"status\":\"success\",\"da".to_owned()),
            ..Answer::default()
        },
        _ => Answer {
            status: 503,
            headers: [("retry-after".to_owned(), "7".to_owned())].into(),
            text: Some("busy".to_owned()),
            ..Answer::default()
        },
    };
    let face = Face::start("retries = 0", script).await;
    for (status, kind) in [
        (400, "bad_data"),
        (422, "execution"),
        (429, "too_many_requests"),
        (503, "timeout"),
        (500, "internal"),
    ] {
        // A single failure is retried, unless the query causes it.
        face.get(&format!("query?query={status}")).await;
        // The limiter pauses after a 429.
        let reply = face.get(&format!("query?query={status}")).await;
        assert_eq!(reply.status, status, "{}", reply.text);
        assert_eq!(reply.text, failure(status, kind).body.to_string());
        assert_eq!(reply.header("content-type"), "application/json");
        assert_eq!(reply.header("x-mirror-api-key"), "api_key");
        assert_eq!(
            reply.header("retry-after"),
            if status == 429 { "1" } else { "" }
        );
    }
    assert_eq!(face.calls(), 7);
    let unknown = face.get("query?query=404").await;
    assert_eq!(
        (unknown.status, unknown.text.as_str()),
        (404, "404 page not found\n")
    );
    assert_eq!(unknown.header("content-type"), "text/plain");
    for path in ["query?query=502", "query?query=200"] {
        let garbage = face.get(path).await;
        assert_eq!(garbage.status, 502);
        assert_eq!(
            garbage.json()["errorType"],
            "unavailable",
            "{}",
            garbage.text
        );
    }
    let busy = face.get("query?query=busy").await;
    assert_eq!((busy.status, busy.header("retry-after")), (503, "7"));
    assert_eq!(busy.json()["status"], "error");
    assert_eq!(busy.json()["errorType"], "unavailable");
}

#[tokio::test]
async fn temporary_failures_are_retried() {
    let script = |n: usize, _: &Seen| match n {
        0 => Answer {
            text: Some("<p>a gateway</p>".into()),
            status: 502,
            ..Answer::default()
        },
        n => success(n),
    };
    let face = Face::start("retries = 1", script).await;
    let reply = face.get("labels").await;
    assert_eq!((reply.status, &reply.json()["data"]), (200, &json!(1)));
}

#[tokio::test]
async fn warnings_are_passed_on_and_not_kept() {
    let script = |n: usize, _: &Seen| {
        Answer::json(match n {
            0 => json!({ "status": "success", "data": 0, "warnings": ["a store is away"] }),
            1 => json!({ "status": "success", "data": 1, "isPartial": true }),
            n => json!({ "status": "success", "data": n, "warnings": ["PromQL info: x"] }),
        })
    };
    let face = Face::start("", script).await;
    for (data, said) in [
        (0, "heliostat; fwd=miss"),
        (1, "heliostat; fwd=miss"),
        (2, "heliostat; fwd=miss; stored"),
        (2, "heliostat; hit; ttl=60"),
    ] {
        let reply = face.get("labels").await;
        assert_eq!(reply.json()["data"], data);
        assert_eq!(reply.header("cache-status"), said);
    }
}

#[tokio::test]
async fn browsers_are_told_what_prometheus_tells_them() {
    let face = Face::start("", |_, _| success(json!([]))).await;
    let origin = [("origin", "http://grafana")];
    for (method, headers, status) in [
        (Method::OPTIONS, &origin[..], 204),
        (Method::GET, &origin[..], 200),
        (Method::GET, &[], 200),
        (Method::PUT, &origin[..], 405),
    ] {
        let reply = face.ask(method.clone(), "/api/v1/labels", headers).await;
        assert_eq!(reply.status, status, "{method}");
        let said = !headers.is_empty();
        for (name, value) in [
            ("access-control-allow-origin", "*"),
            ("access-control-allow-methods", "GET, POST, OPTIONS"),
            (
                "access-control-allow-headers",
                "Accept, Authorization, Cache-Control, Content-Type, Origin, X-Scope-OrgID, THANOS-TENANT",
            ),
            (
                "access-control-expose-headers",
                "Date, Cache-Status, Server-Timing, Retry-After, X-MIRROR-API-KEY",
            ),
        ] {
            assert_eq!(reply.header(name), if said { value } else { "" });
        }
        assert!(reply.header("vary").contains("origin"));
    }
    let head = face.ask(Method::HEAD, "/api/v1/labels", &[]).await;
    let get = face.get("labels").await;
    assert_eq!((head.status, head.text.as_str()), (200, ""));
    assert_eq!(head.header("content-length"), get.text.len().to_string());
    assert!(get.header("server-timing").starts_with("plan;dur="));
}

#[tokio::test]
async fn what_may_change_the_store_does_not_pass() {
    let face = Face::start("", |_, _| success(json!([]))).await;
    for (method, path, status) in [
        (Method::POST, "/api/v1/admin/tsdb/snapshot", 403),
        (Method::GET, "/api/v1/%61dmin/tsdb/snapshot", 403),
        (Method::POST, "/api/v1/write", 403),
        (Method::POST, "/api/v1/something", 405),
        (Method::DELETE, "/api/v1/series?match[]=up", 405),
        (Method::PUT, "/api/v1/query?query=up", 405),
        (Method::POST, "/api/v1/label/a/values", 405),
        (Method::GET, "/api/v1/read", 405),
        (Method::GET, "/prometheus/nobody/api/v1/query?query=up", 404),
        (Method::GET, "/prometheus/demo/api/v1/query?query=up", 400),
    ] {
        let reply = face.ask(method.clone(), path, &[]).await;
        assert_eq!(reply.status, status, "{method} {path}: {}", reply.text);
        assert_eq!(reply.json()["status"], "error");
        assert_eq!(!reply.header("allow").is_empty(), status == 405, "{path}");
    }
    assert_eq!(face.calls(), 0);
}

#[tokio::test]
async fn too_many_series_and_too_large_answers_are_said_so() {
    let script = |_: usize, seen: &Seen| {
        let value = "1".repeat(if seen.path.contains("query_range") {
            1
        } else {
            5000
        });
        let series = |n| json!({"metric": {"n": n}, "values": [[60, value]]});
        success(json!({"resultType": "matrix", "result": [series("1"), series("2")]}))
    };
    let face = Face::start("max_series = 1\nmax_response = \"4KiB\"", script).await;
    for (path, said) in [
        (
            "/api/v1/query_range?query=up&start=60&end=60&step=60",
            "max_series",
        ),
        ("/api/v1/query?query=up", "max_response"),
    ] {
        let reply = face.ask(Method::GET, path, &[]).await;
        assert_eq!(reply.status, 422, "{path}: {}", reply.text);
        assert_eq!(reply.json()["errorType"], "execution");
        assert!(reply.text.contains(said), "{}", reply.text);
    }
}

#[tokio::test]
async fn the_address_of_a_data_source_is_there() {
    let face = Face::start("", |_, _| success(json!([]))).await;
    for (path, status) in [
        ("/prometheus/face/", 200),
        ("/prometheus/face", 200),
        ("/prometheus/nobody/", 404),
        ("/prometheus/demo/", 404),
    ] {
        assert_eq!(
            face.ask(Method::GET, path, &[]).await.status,
            status,
            "{path}"
        );
    }
}

#[tokio::test]
async fn tenants_share_nothing_and_credentials_stay_here() {
    let script = |n: usize, _: &Seen| success(n);
    let face = Face::start("", script).await;
    let ask = |tenant: &'static str| {
        let headers = [
            ("x-scope-orgid", tenant),
            ("authorization", "Bearer secret"),
            ("cookie", "a=b"),
        ];
        let face = &face;
        async move { face.ask(Method::GET, "/api/v1/labels", &headers).await }
    };
    assert_eq!(ask("a").await.json()["data"], 0);
    assert_eq!(ask("b").await.json()["data"], 1);
    assert_eq!(ask("a").await.json()["data"], 0);
    assert_eq!(face.get("labels").await.json()["data"], 2);
    let seen = face.upstream.seen();
    let tenant = |n: usize| seen[n].headers.get("x-scope-orgid").map(String::as_str);
    assert_eq!(
        [tenant(0), tenant(1), tenant(2)],
        [Some("a"), Some("b"), None]
    );
    let secret =
        |s: &Seen| s.headers.contains_key("authorization") || s.headers.contains_key("cookie");
    assert!(!seen.iter().any(secret));

    let fixed = Face::start("headers = { X-Scope-OrgID = \"ours\" }", script).await;
    let headers = [("x-scope-orgid", "theirs")];
    fixed.ask(Method::GET, "/api/v1/labels", &headers).await;
    let sent = &fixed.upstream.seen()[0].headers;
    assert_eq!(
        sent["x-scope-orgid"], "ours",
        "what is configured is not for clients to change"
    );
}

#[tokio::test]
async fn expired_answers_are_served_marked_while_the_upstream_fails() {
    // All that the second one read had settled, at its time.
    expired_answers_of("query?query=up").await;
    expired_answers_of("query?query=up%20offset%205m").await;
}

async fn expired_answers_of(path: &str) {
    let failing = Arc::new(AtomicBool::new(false));
    let fails = failing.clone();
    let script = move |n: usize, _: &Seen| match fails.load(Ordering::SeqCst) {
        true => failure(500, "internal"),
        false => success(n),
    };
    let face = Face::start("max_stale = \"1h\"\nretries = 0", script).await;
    assert_eq!(face.get(path).await.json()["data"], 0);
    failing.store(true, Ordering::SeqCst);
    face.clock.pass(70_000);
    let stale = face.get(path).await;
    assert_eq!((stale.status, &stale.json()["data"]), (200, &json!(0)));
    let said = stale.header("cache-status");
    assert!(
        said.starts_with("heliostat; hit; ttl=-60; detail=\""),
        "{said}"
    );
    let fresh = [("cache-control", "no-cache")];
    let refused = face
        .ask(Method::GET, &format!("/api/v1/{path}"), &fresh)
        .await;
    assert_eq!(refused.status, 500);
    assert_eq!(refused.text, failure(500, "internal").body.to_string());
    face.clock.pass(3_600_000);
    assert_eq!(face.get(path).await.status, 500);
    failing.store(false, Ordering::SeqCst);
    face.clock.pass(10_000);
    let again = face.get(path).await;
    assert!(again.header("cache-status").contains("fwd=stale; stored"));
}

#[tokio::test]
async fn clients_say_how_old_answers_may_be() {
    let face = Face::start("", |n, _| success(n)).await;
    face.get("labels").await;
    face.clock.pass(5_000);
    for (control, data) in [
        ("max-age=6", 0),
        ("max-age=5", 1),
        ("no-cache", 2),
        ("x", 2),
    ] {
        let headers = [("cache-control", control)];
        let reply = face.ask(Method::GET, "/api/v1/labels", &headers).await;
        assert_eq!(reply.json()["data"], data, "{control}");
    }
}

#[tokio::test]
async fn range_queries_that_cannot_be_cached_pass_with_the_reason() {
    let face = Face::start("", |n, _| success(n)).await;
    let reply = face
        .form(
            "/api/v1/query_range",
            "query=up%20%40%20end()&start=1&end=2&step=1",
        )
        .await;
    assert_eq!(
        reply.header("cache-status"),
        "heliostat; fwd=bypass; detail=\"depends-on-window\""
    );
    let refused = face.get("query_range?query=up&start=2&end=1&step=1").await;
    assert_eq!(refused.status, 400);
    assert_eq!(
        refused.text,
        "{\"status\":\"error\",\"errorType\":\"bad_data\",\"error\":\"invalid parameter \
         \\\"end\\\": end timestamp must not be before start time\"}"
    );
    assert_eq!(face.calls(), 1);
}

#[tokio::test]
async fn the_timeout_of_a_query_is_kept_to() {
    let script = |_: usize, _: &Seen| Answer {
        fault: Fault::Hang,
        ..Answer::default()
    };
    let face = Face::start("", script).await;
    let late = face.get("query?query=up&timeout=50ms").await;
    assert_eq!(late.status, 503);
    assert_eq!(late.json()["errorType"], "timeout");
    face.upstream.given_up(1).await;
}

#[tokio::test]
async fn long_answers_are_packed_for_those_who_ask() {
    let names: Vec<String> = (0..5000).map(|n| format!("label_{n}")).collect();
    let face = Face::start("", move |_, _| success(names.clone())).await;
    let plain = face.get("labels").await;
    let client = reqwest::Client::builder().build();
    let request = client
        .unwrap()
        .get(format!("{}/api/v1/labels", face.server.url));
    let reply = request
        .header("accept-encoding", "gzip")
        .send()
        .await
        .unwrap();
    assert_eq!(reply.headers()["content-encoding"], "gzip");
    let packed = reply.bytes().await.unwrap();
    assert!(packed.len() < plain.text.len() / 2);
    let mut unpacked = String::new();
    let mut reader = flate2::bufread::GzDecoder::new(&packed[..]);
    std::io::Read::read_to_string(&mut reader, &mut unpacked).unwrap();
    assert_eq!(unpacked, plain.text);
    assert_eq!(face.calls(), 1);
}

#[tokio::test]
async fn requests_are_counted_by_endpoint() {
    let face = Face::start("", |_, _| success(json!([]))).await;
    let series = |method: &str, status: u16| {
        format!(
            "heliostat_requests_total{{api=\"prometheus\",method=\"{method}\",status=\"{status}\"}}"
        )
    };
    for (path, method, status) in [
        ("label/x/values", "label_values", 200),
        ("admin/tsdb/snapshot", "refused", 403),
        ("unheard/of", "other", 200),
    ] {
        let before = face.server.metric(&series(method, status)).await;
        face.get(path).await;
        let after = face.server.metric(&series(method, status)).await;
        assert!(after > before, "{method} {status}");
    }
}

/// A remote read of the samples of `g` in the first hour of the data.
fn remote_read() -> Vec<u8> {
    let mut plain = vec![0x0a, 29, 0x08];
    let varint = |out: &mut Vec<u8>, mut n: u64| {
        while n >= 0x80 {
            out.push(n as u8 | 0x80);
            n >>= 7;
        }
        out.push(n as u8);
    };
    varint(&mut plain, NOW as u64);
    plain.push(0x10);
    varint(&mut plain, NOW as u64 + 3_600_000);
    plain.extend_from_slice(b"\x1a\x0d\x12\x08__name__\x1a\x01g");
    assert_eq!(plain.len(), 31);
    // A single literal of snappy.
    [&[31, 30 << 2], &plain[..]].concat()
}

#[tokio::test]
async fn a_real_prometheus_is_not_told_apart() {
    let Some(rig) = prometheus_api::Rig::new().await else {
        return;
    };
    let toml = format!(
        "[[upstream]]\nname = \"real-face\"\nkind = \"prometheus\"\nurls = [{:?}]",
        rig.store.url
    );
    let server = Server::start(&toml).await;
    let origin = &rig.store.url;
    let ours = format!("{}/prometheus/real-face", server.url);
    let ask = |base: &str, path: &str, form: Option<&str>| {
        let url = format!("{base}/api/v1/{path}");
        let client = server.client();
        let request = match form {
            None => client.get(url),
            Some(form) => client
                .post(url)
                .header("content-type", "application/x-www-form-urlencoded")
                .body(form.to_owned()),
        };
        server.reply(request.header("origin", "http://grafana"))
    };
    const KEPT: bool = true;
    for (path, form, kept) in [
        ("query?query=g&time=1700003600", None, KEPT),
        ("query?query=g&time=2023-11-14T23:13:20.5Z", None, KEPT),
        (
            "query",
            Some("query=sum(rate(c_total[5m]))&time=1700003600"),
            KEPT,
        ),
        ("query?query=g[2m]&time=1700003600", None, KEPT),
        ("query?query=\"text\"&time=1700003600", None, KEPT),
        ("query?query=nh&time=1700003600", None, KEPT),
        ("query?query=odd&time=1700003600", None, KEPT),
        ("query?query=wild&time=1700003600&stats=", None, KEPT),
        ("query?query=none_at_all", None, KEPT),
        ("query", None, false),
        ("query?query=g{", None, false),
        ("query?query=g&time=then", None, false),
        ("query?query=g&timeout=x", None, false),
        (
            "query?query=g+%2B+on(host)+c_total&time=1700003600",
            None,
            false,
        ),
        (
            "query_range?query=g&start=1700000040&end=1700003640&step=60",
            None,
            KEPT,
        ),
        (
            "query_range",
            Some("query=g @ end()&start=1700000040&end=1700003640&step=1m"),
            false,
        ),
        (
            "query_range?query=g&start=1700000040&end=1700003640&step=0",
            None,
            false,
        ),
        (
            "query_range?query=g&start=1700000000&end=1800003600&step=1",
            None,
            false,
        ),
        (
            "query_range?query=g&start=x&end=1800003600&step=1",
            None,
            false,
        ),
        ("query_range?query=g[1m]&start=1&end=2&step=1", None, false),
        ("query_range?query=g{&start=1&end=2&step=1", None, false),
        ("query_range?start=1&end=2&step=1", None, false),
        (
            "query_range?query=-time()&start=1969-12-31T23:00:00Z&end=0&step=1m",
            None,
            KEPT,
        ),
        (
            "query_range?query=vector(1)&start=9999999999&end=10000000900&step=15",
            None,
            false,
        ),
        ("labels?start=1700000040&end=1700003640", None, KEPT),
        (
            "labels",
            Some("match[]=g&start=1700000040&end=1700003640"),
            KEPT,
        ),
        ("labels?match[]=", None, false),
        (
            "label/host/values?start=1700000040&end=1700003640",
            None,
            KEPT,
        ),
        (
            "label/odd/values?start=1700000040&end=1700003640",
            None,
            KEPT,
        ),
        ("label/a-b/values", None, false),
        (
            "series?match[]=g&match[]=c_total&start=1700000040&end=1700003640",
            None,
            KEPT,
        ),
        ("series", None, false),
        ("metadata", None, KEPT),
        ("metadata?limit=x", None, false),
        (
            "query_exemplars?query=g&start=1700000040&end=1700003640",
            None,
            KEPT,
        ),
        ("format_query?query=sum(g)by(host)", None, KEPT),
        ("format_query", Some("query=g{"), false),
        ("parse_query?query=g", None, false),
        ("rules", None, KEPT),
        ("alerts", None, KEPT),
        ("targets", None, KEPT),
        ("alertmanagers", None, false),
        ("status/buildinfo", None, KEPT),
        ("status/flags", None, KEPT),
        ("nothing/at/all", None, false),
    ] {
        let expected = ask(origin, path, form).await;
        // The store's errors about a query are cached for a while.
        let remembered = !kept && matches!(expected.status, 400 | 422);
        for hit in [false, kept || remembered] {
            let reply = ask(&ours, path, form).await;
            assert_eq!(
                reply.status, expected.status,
                "{path} {form:?}: {}",
                reply.text
            );
            assert_eq!(reply.text, expected.text, "{path} {form:?}");
            for name in [
                "content-type",
                "access-control-allow-origin",
                "access-control-allow-headers",
                "access-control-allow-methods",
                "access-control-expose-headers",
            ] {
                // Prometheus' router does not set it for unknown paths.
                if expected.status == 404 && name.starts_with("access") {
                    continue;
                }
                // Heliostat also allows the headers of tenants, and exposes where an answer came
                // from.
                let ours: Vec<_> = reply.header(name).split(", ").collect();
                let mut theirs = expected.header(name).split(", ");
                assert!(
                    theirs.all(|t| t.is_empty() || ours.contains(&t)),
                    "{path}: {name}: {ours:?}"
                );
            }
            let said = reply.header("cache-status");
            // What is refused here is not sent to the store.
            let refused = remembered && said.is_empty();
            assert!(
                refused || said.contains("; hit") == hit,
                "{path} {form:?}: {said}"
            );
        }
    }
    let read = |base: &str| {
        let request = server.client().post(format!("{base}/api/v1/read"));
        let request = request
            .header("content-type", "application/x-protobuf")
            .header("content-encoding", "snappy")
            .header("x-prometheus-remote-read-version", "0.1.0")
            .body(remote_read());
        async {
            let reply = request.send().await.unwrap();
            let header = |name: &str| reply.headers()[name].to_str().unwrap().to_owned();
            let said = (
                reply.status().as_u16(),
                header("content-type"),
                header("content-encoding"),
            );
            (said, reply.bytes().await.unwrap())
        }
    };
    let (expected, answered) = (read(origin).await, read(&ours).await);
    assert_eq!(expected.0.0, 200);
    assert!(expected.1.len() > 1000, "{}", expected.1.len());
    assert_eq!(answered, expected);
}
