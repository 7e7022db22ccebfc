//! Secrets never appear in anything that is printed, and are reloaded from their files.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::time::Duration;

use base64::Engine;
use heliostat::config;
use serde_json::json;

use crate::scripted::{Answer, Scripted};
use crate::support::{Server, TestClock, metric};

const NOW: i64 = 1_790_000_000_000;
/// Part of every secret.
const MARK: &str = "hunter2mark";

/// The hash of the token `hunter2mark`, and the hash of the same text as a password.
const TOKEN: &str = "sha256:7253d5553d4a28a5f910194b1d8b3f6c3b6270f7aad180ed69f7e6a4661f13d9";
const PASSWORD: &str = "$2b$04$abcdefghijklmnopqrstuugFgv7Nt9UUUQFT67LyuDtVIULBi6N56";

/// A configuration with a secret wherever one is possible. Its upstream and its proxy do not
/// answer.
fn everywhere(folder: &std::path::Path) -> (String, BTreeMap<String, String>) {
    let file = folder.join("secret");
    std::fs::write(&file, format!("{MARK}-file\n")).unwrap();
    let hashes = folder.join("hash");
    std::fs::write(&hashes, format!("{TOKEN}\n")).unwrap();
    let toml = format!(
        r#"
[server]
listen = "127.0.0.1:0"
api_key = "{MARK}-own"
[log]
level = "trace"
[access.prometheus]
tokens = ["{TOKEN}", {{ file = {hashes:?} }}, {{ env = "TOKEN" }}]
users = {{ ann = "{PASSWORD}", bob = {{ env = "PASSWORD" }} }}
[[upstream]]
name = "mirror-of-secrets"
kind = "mirror"
urls = ["http://127.0.0.1:1", "http://a.invalid"]
api_key = {{ env = "KEY" }}
headers = {{ Authorization = "Bearer {MARK}-inline", X-File = {{ file = {file:?} }}, X-Env = {{ env = "KEY" }} }}
connection_details = {{ password = "{MARK}-details" }}
proxy = "http://user:{MARK}-proxy@127.0.0.1:1"
timeout = "1s"
retries = 1
[[upstream]]
name = "prom-of-secrets"
kind = "prometheus"
urls = ["http://127.0.0.1:1", "http://b.invalid"]
headers = {{ Authorization = "Bearer {MARK}-inline" }}
timeout = "1s"
retries = 1
[[upstream]]
name = "keys-of-secrets"
kind = "prometheus"
urls = ["http://127.0.0.1:1"]
aws = {{ region = "eu-west-1", service = "aps", access_key = "{MARK}-id", secret_key = {{ file = {file:?} }}, session_token = {{ env = "KEY" }} }}
retries = 0
[[upstream]]
name = "role-of-secrets"
kind = "prometheus"
urls = ["http://127.0.0.1:1"]
aws = {{ region = "eu-west-1", service = "aps", role = "arn:aws:iam::123456789012:role/a", sts_url = "http://127.0.0.1:1" }}
retries = 0
"#
    );
    let env = [
        ("KEY", format!("{MARK}-env")),
        ("TOKEN", TOKEN.to_owned()),
        ("AWS_ACCESS_KEY_ID", format!("{MARK}-id")),
        ("AWS_SECRET_ACCESS_KEY", format!("{MARK}-key")),
        ("AWS_SESSION_TOKEN", format!("{MARK}-token")),
        ("PASSWORD", PASSWORD.to_owned()),
        (
            "HTTP_PROXY",
            format!("http://user:{MARK}-envproxy@127.0.0.1:1"),
        ),
        (
            "https_proxy",
            format!("http://user:{MARK}-envproxy@127.0.0.1:1"),
        ),
    ];
    let env = env.map(|(k, v)| (k.to_owned(), v)).into();
    (toml, env)
}

#[tokio::test]
async fn secrets_are_printed_nowhere() {
    let folder = tempfile::tempdir().unwrap();
    let (toml, env) = everywhere(folder.path());
    let parsed = config::parse(&toml, "c.toml", &env).unwrap();
    let mut printed = format!("{parsed:?}\n{parsed:#?}");

    let path = folder.path().join("c.toml");
    std::fs::write(&path, &toml).unwrap();
    let heliostat = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_heliostat"));
        command.arg("--config").arg(&path).envs(&env);
        command
    };
    let check = heliostat().arg("check").output().unwrap();
    assert_eq!(check.status.code(), Some(1), "its upstreams do not answer");
    printed += &String::from_utf8_lossy(&[check.stdout, check.stderr].concat());

    // A separate process that logs every line of every crate.
    let log = folder.path().join("log");
    let stderr = std::fs::File::create(&log).unwrap();
    let mut serving = heliostat()
        .stdout(Stdio::null())
        .stderr(stderr)
        .spawn()
        .unwrap();
    let said = || std::fs::read_to_string(&log).unwrap();
    let url = loop {
        if let Some((_, rest)) = said().split_once("listening on ")
            && let Some((url, _)) = rest.split_once(char::is_whitespace)
        {
            break url.to_owned();
        }
        assert!(serving.try_wait().unwrap().is_none(), "{}", said());
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    let client = heliostat::upstream::Http::builder().build().unwrap();
    for name in [
        "mirror-of-secrets",
        "prom-of-secrets",
        "keys-of-secrets",
        "role-of-secrets",
    ] {
        let details = json!({ "upstream": name, "password": format!("{MARK}-client") });
        for path in ["connection", "field/name", "metric"] {
            let query = json!({
                "_type": "MetricsQuery", "startTime": NOW - 60_000, "endTime": NOW,
                "conditions": [{
                    "_type": "EqualityCondition", "key": "__gauge__",
                    "value": { "_type": "StringValue", "value": "cpu" },
                }],
            });
            let body = json!({ "connectionDetails": details, "query": query });
            let request = client.post(format!("{url}/api/{path}"));
            let request = request.header("content-type", "application/json");
            let answer = request.body(body.to_string()).send().await.unwrap();
            printed += &answer.text().await.unwrap();
        }
    }
    for path in [
        "",
        "metrics",
        "readyz",
        "prometheus/prom-of-secrets/api/v1/query?query=up",
    ] {
        let answer = client.get(format!("{url}/{path}")).send().await.unwrap();
        printed += &answer.text().await.unwrap();
    }
    // In the form in which it is sent, so that it would be found.
    let pair = base64::engine::general_purpose::STANDARD.encode(format!("ann:{MARK}"));
    let (other, basic) = (format!("Bearer {MARK}-other"), format!("Basic {pair}"));
    let sent = [
        (&[][..], 401),
        (&[&format!("Bearer {MARK}")], 502),
        (&[&basic], 502),
        (&[&other], 401),
        (&[&other, &basic], 401),
        (&[&format!("Digest {MARK}")], 401),
        (&[&format!("Basic {MARK}!")], 401),
    ];
    for (headers, status) in sent {
        let url = format!("{url}/prometheus/prom-of-secrets/api/v1/query?query=up");
        let request = headers.iter().fold(client.get(url), |request, value| {
            request.header("authorization", value.as_str())
        });
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), status, "{headers:?}");
        let headers = answer.headers().iter();
        // Every client receives this one.
        let headers = headers.filter(|(name, _)| *name != "x-mirror-api-key");
        printed += &format!("{:?}", headers.collect::<Vec<_>>());
        printed += &answer.text().await.unwrap();
    }
    let metrics = client.get(format!("{url}/metrics")).send().await.unwrap();
    let metrics = metrics.text().await.unwrap();
    // The five here, and one without credentials before.
    let denied = "heliostat_access_denied_total{api=\"prometheus\",reason=\"credentials\"}";
    assert_eq!(metric(&metrics, denied), 6.0);
    printed += &metrics;
    serving.kill().unwrap();
    serving.wait().unwrap();
    printed += &said();
    // Everything is there.
    for part in [
        "UPSTREAM",
        "DEBUG request",
        "heliostat_build_info",
        "cannot be reached",
    ] {
        assert!(printed.contains(part), "{part} is not in {printed}");
    }
    let secrets = [MARK, &TOKEN[7..], &PASSWORD[7..], &pair];
    let found = |line: &&str| secrets.iter().any(|secret| line.contains(secret));
    assert_eq!(printed.lines().find(found), None);
}

#[test]
fn errors_of_the_configuration_do_not_repeat_secrets() {
    let upstream = "[[upstream]]\nkind = \"mirror\"\nurls = [\"http://a\"]";
    for (toml, key) in [
        (format!("[server]\napi_key = \"{MARK}\\u0001\""), "api_key"),
        ("[server]\napi_key = 4815162342".to_owned(), "api_key"),
        ("[server]\napi_key = 4815162342.5".to_owned(), "api_key"),
        (format!("[server]\napi_key = {MARK}"), "api_key"),
        (format!("[server]\napi_key = \"{MARK}"), "server"),
        (
            format!("[server]\napi_key = {{ file = \"/none\", env = \"{MARK}\" }}"),
            "api_key",
        ),
        (format!("[server]\napi_key = [\"{MARK}\"]"), "api_key"),
        (
            format!("{upstream}\nheaders = {{ X = \"{MARK}\\n\" }}"),
            "headers",
        ),
        (format!("[access.mirror]\ntokens = [\"{MARK}\"]"), "tokens"),
        (format!("[access.mirror]\ntokens = \"{MARK}\""), "tokens"),
        (
            format!("[access.mirror]\ntokens = [\"sha256:{MARK}\"]"),
            "tokens",
        ),
        (
            format!("[access.mirror]\nusers = {{ ann = \"{MARK}\" }}"),
            "users",
        ),
        (
            format!("[access.mirror.users]\nann = \"$2b$99${MARK}\""),
            "users",
        ),
        (
            format!("[access.mirror.users]\n\"ann:{MARK}\" = \"x\""),
            "users",
        ),
        (
            format!("[access.mirror]\nusers = [\"ann:{MARK}\"]"),
            "users",
        ),
        (format!("[access.mirror]\nusers = \"ann:{MARK}\""), "users"),
        (format!("{upstream}\nheaders = [\"{MARK}\"]"), "headers"),
        (format!("{upstream}\nheaders = \"{MARK}\""), "headers"),
        (format!("{upstream}\nproxy = \"ftp://u:{MARK}@h\""), "proxy"),
        (format!("{upstream}\nproxy = \"http://u:{MARK}@\""), "proxy"),
        (
            format!("{upstream}\nconnection_details = \"{MARK}\""),
            "connection_details",
        ),
        (
            format!("[[upstream]]\nkind = \"mirror\"\nurls = [\"http://u:{MARK}@h\"]"),
            "urls",
        ),
    ] {
        let error = config::parse(&toml, "c.toml", &BTreeMap::new()).unwrap_err();
        let shown = format!("{error} {error:?}");
        assert!(shown.contains(key), "{shown}");
        let leak = shown.contains(MARK) || shown.contains("4815162342");
        assert!(!leak, "{toml}: {shown}");
    }
    let env = [("HTTP_PROXY".to_owned(), format!("socks5://u:{MARK}@h"))].into();
    let error = config::parse(upstream, "c.toml", &env).unwrap_err();
    assert!(error.to_string().contains("HTTP_PROXY"), "{error}");
    assert!(!error.to_string().contains(MARK), "{error}");
}

#[tokio::test]
async fn secrets_follow_their_files() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    for name in ["own", "header", "theirs"] {
        std::fs::write(path(name), format!("{name}-1\n")).unwrap();
    }
    let clock = TestClock::at(NOW);
    let upstream = Scripted::start(clock.clone(), |n, _| Answer {
        headers: [("x-mirror-api-key".to_owned(), format!("theirs-{}", n + 1))].into(),
        ..Answer::json(json!({ "status": "OK" }))
    })
    .await;
    let toml = format!(
        "[server]\napi_key = {{ file = {:?} }}\n[[upstream]]\nname = \"follows\"\nkind = \"mirror\"\nurls = [{:?}]\nretries = 0\napi_key = {{ file = {:?} }}\nheaders = {{ X-Secret = {{ file = {:?} }} }}",
        path("own"),
        upstream.url,
        path("theirs"),
        path("header"),
    );
    let server = Server::start_at(&toml, clock.clone()).await;
    let body = json!({ "connectionDetails": {} });
    for n in ["1", "2"] {
        for name in ["own", "header", "theirs"] {
            std::fs::write(path(name), format!("{name}-{n}\n")).unwrap();
        }
        clock.pass(5000);
        let reply = server.post("/api/connection", &body).await;
        assert!(reply.text.contains("\"OK\""), "{}", reply.text);
        assert_eq!(reply.header("x-mirror-api-key"), format!("own-{n}"));
        let seen = upstream.seen();
        let sent = seen.last().unwrap().headers.get("x-secret");
        assert_eq!(sent.unwrap(), &format!("header-{n}"));
    }
    // A value that no header can carry has no effect, and a metric shows the error.
    let errors = "heliostat_file_errors{what=\"upstream follows headers\"}";
    assert_eq!(server.metric(errors).await, 0.0);
    std::fs::write(path("header"), "a\u{1}b").unwrap();
    clock.pass(5000);
    server.post("/api/connection", &body).await;
    let seen = upstream.seen();
    assert_eq!(
        seen.last().unwrap().headers.get("x-secret").unwrap(),
        "header-2"
    );
    assert_eq!(server.metric(errors).await, 1.0);
}
