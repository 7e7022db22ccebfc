//! The page at `/`, over HTTP: its files, who may load it, and what browsers may do.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{ADMIN, ADMIN_TOKEN, Reply, Server};

const DEMO: &str =
    "[[upstream]]\nname = \"page-demo\"\nkind = \"demo\"\ndemo = { latency = \"1ms\" }\n";

async fn ask(server: &Server, what: &str, headers: &[(&str, &str)]) -> Reply {
    let (method, path) = what.split_once(' ').unwrap();
    let url = format!("{}{path}", server.url);
    let request = server.client().request(method.parse().unwrap(), url);
    let request = headers.iter().fold(request, |r, (n, v)| r.header(*n, *v));
    server.reply(request).await
}

#[tokio::test]
async fn the_page_and_its_files_are_served_with_a_strict_policy() {
    let server = Server::start("").await;
    let page = ask(&server, "GET /", &[]).await;
    assert_eq!(page.status, 200);
    assert!(page.header("content-type").starts_with("text/html"));
    assert!(
        page.text.contains("name=\"upstreams\" content=\"demo\""),
        "{}",
        page.text
    );
    let again = [("if-none-match", page.header("etag"))];
    assert_eq!(ask(&server, "GET /", &again).await.status, 304);
    let policy = page.header("content-security-policy");
    for part in [
        "default-src 'none'",
        "script-src 'self'",
        "frame-ancestors 'none'",
    ] {
        assert!(policy.contains(part), "{policy}");
    }
    assert!(!policy.contains("unsafe"), "{policy}");
    let mut files = 0;
    for part in page.text.split("\"page/").skip(1) {
        let path = format!("GET /page/{}", part.split('"').next().unwrap());
        let file = ask(&server, &path, &[]).await;
        assert_eq!(file.status, 200, "{path}");
        assert_eq!(file.header("x-content-type-options"), "nosniff");
        let again = [("if-none-match", file.header("etag"))];
        let again = ask(&server, &path, &again).await;
        assert_eq!((again.status, again.text.as_str()), (304, ""), "{path}");
        files += 1;
    }
    assert!(files >= 3, "{files}");
    assert_eq!(ask(&server, "GET /page/nothing.js", &[]).await.status, 404);
    assert_eq!(ask(&server, "POST /", &[]).await.status, 405);
}

#[tokio::test]
async fn a_person_without_a_token_gets_the_page_that_asks_for_it() {
    let access = ADMIN.replace("admin", "mirror");
    let server = Server::start(&format!("{access}{DEMO}")).await;
    let machine = ask(&server, "GET /", &[]).await;
    assert_eq!((machine.status, &machine.text[..1]), (401, "{"));
    let person = ask(&server, "GET /", &[("accept", "text/html,*/*")]).await;
    assert_eq!(person.status, 401);
    assert_eq!(
        person.header("www-authenticate"),
        "Bearer realm=\"heliostat\""
    );
    assert!(
        !person.text.contains("page-demo"),
        "names are not for everybody"
    );
    assert!(
        person.text.starts_with("<!doctype html>"),
        "{}",
        person.text
    );
    assert_eq!(ask(&server, "GET /page/app.js", &[]).await.status, 200);
    let bearer = format!("Bearer {ADMIN_TOKEN}");
    let known = ask(&server, "GET /", &[("authorization", &bearer)]).await;
    assert_eq!(known.status, 200);
    // A client outside the networks gets nothing at all.
    let networks = "[access.mirror]\nnetworks = [\"192.0.2.0/24\"]\n";
    let closed = Server::start(&format!("{networks}{DEMO}")).await;
    for path in ["GET /", "GET /page/app.js"] {
        let refused = ask(&closed, path, &[("accept", "text/html")]).await;
        assert_eq!(refused.status, 403, "{path}");
    }
}

#[tokio::test]
async fn the_admin_api_is_open_to_this_machine_while_there_is_only_the_demonstration() {
    let config = "GET /admin/v1/config";
    for toml in ["", DEMO] {
        let server = Server::start(toml).await;
        assert_eq!(ask(&server, config, &[]).await.status, 200, "{toml}");
    }
    let real = "[[upstream]]\nname = \"page-real\"\nkind = \"prometheus\"\nurls = [\"http://127.0.0.1:9\"]\n";
    for more in [
        real,
        "[targets]\nallow = [\"prom:9090\"]\n",
        "[access.metrics]\nnetworks = [\"127.0.0.1\"]\n",
    ] {
        let server = Server::start(&format!("{more}{DEMO}")).await;
        assert_eq!(ask(&server, config, &[]).await.status, 403, "{more}");
    }
    // A store that is added later closes it.
    let server = Server::start(DEMO).await;
    server.reload(&format!("{DEMO}{real}")).await.unwrap();
    assert_eq!(ask(&server, config, &[]).await.status, 403);
    server.reload(DEMO).await.unwrap();
    assert_eq!(ask(&server, config, &[]).await.status, 200);
}

#[tokio::test]
async fn a_browser_changes_nothing_for_other_pages() {
    let server = Server::start(DEMO).await;
    let host = server.url.strip_prefix("http://").unwrap();
    let own = format!("http://{host}");
    let own = ("origin", own.as_str());
    let evil = ("origin", "http://evil");
    let action = ("x-heliostat-action", "reload");
    let reload = "POST /admin/v1/reload";
    for (what, headers, status) in [
        (reload, &[][..], 200),
        (reload, &[own, action], 200),
        (reload, &[own], 403),
        (reload, &[evil, action], 403),
        (reload, &[("sec-fetch-site", "cross-site"), action], 403),
        (reload, &[("sec-fetch-site", "same-origin")], 403),
        (reload, &[("user-agent", "Mozilla/5.0")], 403),
        ("GET /admin/v1/cache", &[own], 200),
        ("GET /admin/v1/cache", &[evil], 403),
        ("GET /admin/v1/log", &[own], 200),
        ("PUT /admin/v1/log", &[own], 403),
        ("POST /admin/v1/invalidate", &[own], 403),
    ] {
        let reply = ask(&server, what, headers).await;
        assert_eq!(reply.status, status, "{what} {headers:?} {}", reply.text);
    }
}

#[tokio::test]
async fn the_configuration_in_use_is_told_with_its_reloads() {
    let toml = format!("{DEMO}[server]\napi_key = \"s3cret\"\n");
    let server = Server::start(&toml).await;
    let config = async || ask(&server, "GET /admin/v1/config", &[]).await.json();
    let first = config().await;
    assert_eq!(first["file"], "test.toml");
    assert_eq!(first["reload"], Value::Null);
    let value = |config: &Value, key: &str| {
        let settings = config["settings"].as_array().unwrap();
        let found = settings.iter().find(|s| s["key"] == key);
        found.unwrap_or_else(|| panic!("{key}")).clone()
    };
    assert_eq!(
        value(&first, "server.api_key"),
        json!({ "key": "server.api_key", "value": "(secret)", "origin": "file", "at": "test.toml:6" })
    );
    assert_eq!(
        value(&first, "server.listen")["at"],
        "HELIOSTAT_SERVER__LISTEN"
    );
    assert_eq!(value(&first, "cache.memory")["origin"], "default");
    assert!(!first.to_string().contains("s3cret"));

    let wrong = server.reload("nonsense = 1").await.unwrap_err();
    let failed = config().await;
    assert_eq!(failed["reload"]["error"], wrong.as_str());
    assert_eq!(failed["readTime"], first["readTime"]);
    server
        .reload(&format!("{toml}[cache]\nmemory = \"1MiB\"\n"))
        .await
        .unwrap();
    let again = config().await;
    assert_eq!(again["reload"]["error"], Value::Null);
    assert_eq!(again["restart"], json!(["cache.memory"]));
    assert_eq!(value(&again, "cache.memory")["value"], "\"1MiB\"");
}

#[tokio::test]
async fn the_traffic_of_the_last_minutes_is_told_by_api_and_upstream() {
    let server = Server::start(DEMO).await;
    let query = json!({
        "connectionDetails": {},
        "query": {
            "conditions": [{ "key": "name", "value": "cpu.usage_percent" }, { "key": "host", "value": "web-1" }],
            "startTime": 1_790_000_000_000_i64,
            "endTime": 1_790_000_600_000_i64,
        },
    });
    for _ in 0..3 {
        assert_eq!(server.post("/api/metric", &query).await.status, 200);
    }
    let mut said = Value::Null;
    // A step ends every five seconds.
    for _ in 0..600 {
        said = ask(&server, "GET /admin/v1/traffic", &[]).await.json();
        if said["apis"][0]["requests"].to_string().contains('3') {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(said["stepMillis"], 5000);
    let sum = |values: &Value| -> i64 {
        values
            .as_array()
            .unwrap()
            .iter()
            .map(|v| v.as_i64().unwrap())
            .sum()
    };
    assert_eq!(said["apis"][0]["api"], "mirror");
    assert_eq!(sum(&said["apis"][0]["requests"]), 3);
    assert_eq!(sum(&said["apis"][0]["errors"]), 0);
    let upstream = &said["upstreams"][0];
    assert_eq!(upstream["upstream"], "page-demo");
    assert_eq!((sum(&upstream["hit"]), sum(&upstream["miss"])), (2, 1));
    assert_eq!(sum(&upstream["calls"]), 1);
    let total = &upstream["total"];
    assert_eq!(
        (&total["hit"], &total["calls"], &total["failed"]),
        (&json!(2), &json!(1), &json!(0))
    );
    let points = total["pointsFromUpstream"].as_i64().unwrap();
    assert!(points > 30, "{points}");
    assert_eq!(total["pointsFromCache"], 2 * points);
    assert!(said["memory"]["bytes"].as_i64().unwrap() > 0);
}
