//! Access control of each API, over real sockets.

use std::io::Write;
use std::process::{Command, Stdio};

use futures_util::future::join_all;
use reqwest::Method;
use serde_json::json;

use crate::scripted::{Answer, Scripted};
use crate::support::{ADMIN, ADMIN_TOKEN, Reply, Server, TestClock};

const NOW: i64 = 1_790_000_000_000;

/// The hash of the token `mirror-token`, and so on.
fn hash_of(token: &str) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, token.as_bytes());
    let hex: String = digest.as_ref().iter().map(|b| format!("{b:02x}")).collect();
    format!("sha256:{hex}")
}

/// A cheap hash of `password`.
fn bcrypted(password: &str) -> String {
    let hash = bcrypt::hash_with_salt(password, 4, [1; 16]).unwrap();
    hash.to_string()
}

/// Sends a request: `METHOD /path`, and headers.
async fn ask(server: &Server, what: &str, headers: &[(&str, &str)]) -> Reply {
    ask_by(server.client(), server, what, headers).await
}

async fn ask_by(
    client: &reqwest::Client,
    server: &Server,
    what: &str,
    headers: &[(&str, &str)],
) -> Reply {
    let (method, path) = what.split_once(' ').unwrap();
    let method = Method::from_bytes(method.as_bytes()).unwrap();
    let request = client.request(method, format!("{}{path}", server.url));
    let request = headers.iter().fold(request, |r, (n, v)| r.header(*n, *v));
    let request = request.header("content-type", "application/json");
    let body = json!({ "connectionDetails": { "upstream": "demo" } });
    let request = match what.starts_with("POST") {
        true => request.body(body.to_string()),
        false => request,
    };
    server.reply(request).await
}

fn basic(pair: &str) -> String {
    use base64::Engine;
    let text = base64::engine::general_purpose::STANDARD.encode(pair);
    format!("Basic {text}")
}

/// Returns the challenges of an answer, in order.
fn challenges(reply: &Reply) -> Vec<&str> {
    let all = reply.headers.get_all("www-authenticate").iter();
    all.map(|v| v.to_str().unwrap()).collect()
}

const CONNECTION: &str = "POST /api/connection";
const QUERY: &str = "GET /api/v1/query?query=up";
const BEARER: &str = "Bearer realm=\"heliostat\"";
const BASIC: &str = "Basic realm=\"heliostat\", charset=\"UTF-8\"";

/// Starts a Heliostat with the demonstration source, and a script as the Prometheus upstream
/// `prom`.
async fn start(access: &str) -> (Server, Scripted) {
    let clock = TestClock::at(NOW);
    let upstream = Scripted::start(clock.clone(), |_, seen| {
        // Long enough to be compressed.
        let names: Vec<_> = (0..2000).map(|n| format!("label{n}")).collect();
        Answer::json(match seen.path.contains("/labels") {
            true => json!({ "status": "success", "data": names }),
            false => {
                json!({ "status": "success", "data": { "resultType": "vector", "result": [] } })
            }
        })
    })
    .await;
    let toml = format!(
        "{access}\n[[upstream]]\nname = \"prom\"\nkind = \"prometheus\"\nurls = [{:?}]\ndefault = true\n[[upstream]]\nname = \"demo\"\ndemo = {{ latency = \"1ms\" }}",
        upstream.url
    );
    (Server::start_at(&toml, clock).await, upstream)
}

#[tokio::test]
async fn each_api_has_rules_of_its_own() {
    let (server, upstream) = start(&format!(
        "[access.mirror]\ntokens = [{:?}]\n[access.prometheus]\ntokens = [{:?}]\nusers = {{ grafana = {:?} }}\n[access.metrics]\nusers = {{ prom = {:?} }}",
        hash_of("mirror-token"),
        hash_of("prom-token"),
        bcrypted("pass:word"),
        bcrypted("scrape"),
    ))
    .await;
    for open in ["/healthz", "/readyz", "/openapi.json"] {
        assert_eq!(ask(&server, &format!("GET {open}"), &[]).await.status, 200);
    }
    for unknown in ["GET /nothing", "POST /api/nothing", "GET /admin/v1/nothing"] {
        assert_eq!(ask(&server, unknown, &[]).await.status, 404, "{unknown}");
    }
    let (mirror, prom) = ("Bearer mirror-token", "bearer prom-token");
    let (grafana, scrape) = (basic("grafana:pass:word"), basic("prom:scrape"));
    let all = [mirror, prom, &grafana, &scrape];
    for (what, known, asked_with) in [
        (CONNECTION, &[mirror][..], &[BEARER][..]),
        ("POST //api/connection/", &[mirror], &[BEARER]),
        ("GET /api/connection", &[], &[BEARER]),
        ("GET /", &[mirror], &[BEARER]),
        (QUERY, &[prom, &grafana], &[BEARER, BASIC]),
        (
            "GET /prometheus/prom/api/v1/labels",
            &[prom, &grafana],
            &[BEARER, BASIC],
        ),
        ("GET /prometheus/prom", &[prom, &grafana], &[BEARER, BASIC]),
        ("GET /prometheus/prom/", &[prom, &grafana], &[BEARER, BASIC]),
        (
            "GET //prometheus//prom/",
            &[prom, &grafana],
            &[BEARER, BASIC],
        ),
        ("GET /metrics", &[&scrape], &[BASIC]),
        ("HEAD /metrics", &[&scrape], &[BASIC]),
    ] {
        for sent in all {
            let reply = ask(&server, what, &[("authorization", sent)]).await;
            let right = known.contains(&sent);
            let post_only = what == "GET /api/connection" && sent == mirror;
            let expected = match (right, post_only) {
                (_, true) => 405,
                (true, _) => 200,
                (false, _) => 401,
            };
            assert_eq!(reply.status, expected, "{what} {sent} {}", reply.text);
        }
        let none = ask(&server, what, &[]).await;
        assert_eq!(
            (none.status, challenges(&none)),
            (401, asked_with.to_vec()),
            "{what}"
        );
        assert_eq!(none.header("x-mirror-api-key"), "api_key");
    }
    // Denied clients do not learn the names of upstreams.
    for name in ["prom", "nothing"] {
        let reply = ask(&server, &format!("GET /prometheus/{name}"), &[]).await;
        assert_eq!(reply.status, 401, "{name}");
    }
    let known = ask(
        &server,
        "GET /prometheus/nothing",
        &[("authorization", prom)],
    )
    .await;
    assert_eq!(known.status, 404);
    // Credentials of accepted requests are not passed on.
    let seen = upstream.seen();
    assert!(!seen.is_empty());
    assert!(
        seen.iter()
            .all(|s| !s.headers.contains_key("authorization"))
    );
}

#[tokio::test]
async fn refusals_have_the_error_format_of_the_api() {
    let access = format!(
        "[access.mirror]\ntokens = [{0:?}]\n[access.prometheus]\nnetworks = [\"10.0.0.0/8\"]\n",
        hash_of("t")
    );
    let (server, _upstream) = start(&access).await;
    let mirror = ask(&server, CONNECTION, &[]).await;
    assert_eq!(mirror.header("content-type"), "application/json");
    assert_eq!(
        mirror.json(),
        json!({
            "_type": "RemoteMirrorError",
            "summary": "A valid token or password is required",
            "details": "an Authorization header is required (access.mirror; Bearer)",
        })
    );
    let origin = ("origin", "http://grafana");
    let prometheus = ask(&server, QUERY, &[origin]).await;
    assert_eq!((prometheus.status, challenges(&prometheus)), (403, vec![]));
    assert_eq!(
        prometheus.json(),
        json!({
            "status": "error", "errorType": "bad_data",
            "error": "this client address has no access (access.prometheus.networks)",
        })
    );
    assert_eq!(prometheus.header("access-control-allow-origin"), "*");
    assert!(prometheus.header("vary").contains("origin"));
    let plain = ask(&server, QUERY, &[]).await;
    assert_eq!(plain.header("access-control-allow-origin"), "");

    let old = format!(
        "[server]\nerror_status = \"always_500\"\n{access}[access.metrics]\nnetworks = [\"10.0.0.0/8\"]"
    );
    let (server, _upstream) = start(&old).await;
    let reply = ask(&server, CONNECTION, &[]).await;
    assert_eq!((reply.status, challenges(&reply)), (401, vec![BEARER]));
    assert_eq!(ask(&server, "GET /metrics", &[]).await.status, 500);
}

#[tokio::test]
async fn the_admin_api_is_closed_until_it_has_tokens_or_users() {
    let upstreams = "GET /admin/v1/upstreams";
    let token = ("authorization", "Bearer t");
    let networks = "[access.admin]\nnetworks = [\"127.0.0.0/8\"]";
    for access in ["", networks] {
        let (server, _upstream) = start(access).await;
        for headers in [&[][..], &[token]] {
            let closed = ask(&server, upstreams, headers).await;
            assert_eq!(closed.status, 403, "{access}");
            let message = "set tokens or users in [access.admin]";
            assert!(closed.text.contains(message), "{}", closed.text);
        }
    }
    let (server, _upstream) = start(&format!("{networks}\ntokens = [{:?}]", hash_of("t"))).await;
    assert_eq!(ask(&server, upstreams, &[]).await.status, 401);
    assert_eq!(ask(&server, upstreams, &[token]).await.status, 200);
    for what in [
        "POST /admin/v1/reload",
        "POST /admin/v1/invalidate",
        "GET /admin/v1/log",
    ] {
        assert_eq!(ask(&server, what, &[]).await.status, 401, "{what}");
    }
}

#[tokio::test]
async fn browsers_ask_first_without_credentials() {
    let access = format!("[access.prometheus]\ntokens = [{:?}]", hash_of("t"));
    let (server, _upstream) = start(&access).await;
    let origin = ("origin", "http://grafana");
    let first = ask(&server, "OPTIONS /api/v1/query", &[origin]).await;
    assert_eq!(first.status, 204);
    assert!(
        first
            .header("access-control-allow-headers")
            .contains("Authorization")
    );
    let refused = ask(&server, QUERY, &[origin]).await;
    assert_eq!(refused.status, 401);
    assert_eq!(refused.header("access-control-allow-origin"), "*");
    let token = ("authorization", "Bearer t");
    assert_eq!(ask(&server, QUERY, &[origin, token]).await.status, 200);
    // Denied clients do not learn which upstreams exist.
    for name in ["prom", "nobody"] {
        let asked = ask(&server, &format!("OPTIONS /prometheus/{name}"), &[origin]).await;
        assert_eq!(asked.status, 401, "{name}");
    }
    // Each API has its own rules.
    let access = format!("[access.mirror]\ntokens = [{:?}]", hash_of("t"));
    let (server, _upstream) = start(&access).await;
    assert_eq!(
        ask(&server, "OPTIONS /api/metric", &[origin]).await.status,
        401
    );
}

#[tokio::test]
async fn the_client_is_whom_a_trusted_proxy_says() {
    let rules = "[access.mirror]\nnetworks = [\"192.0.2.0/24\", \"2001:db8::/32\"]";
    let trusting = format!("[access]\ntrusted_proxies = [\"127.0.0.1\", \"10.0.0.0/8\"]\n{rules}");
    let (trusting, _upstream) = start(&trusting).await;
    let (wary, _) = start(rules).await;
    for (forwarded, expected) in [
        (&[][..], 403),
        (&["192.0.2.7"], 200),
        (&["192.0.2.7:4711"], 200),
        (&["[2001:db8::7]:4711"], 200),
        (&["198.51.100.1"], 403),
        (&["192.0.2.7, 198.51.100.1"], 403),
        (&["198.51.100.1, 192.0.2.7"], 200),
        (&["192.0.2.7, 10.1.1.1"], 200),
        (&["192.0.2.7", "198.51.100.1, 10.1.1.1"], 403),
        (&["198.51.100.1", "192.0.2.7, 10.1.1.1"], 200),
        (&["192.0.2.7, nonsense"], 403),
    ] {
        let headers: Vec<_> = forwarded.iter().map(|f| ("x-forwarded-for", *f)).collect();
        let reply = ask(&trusting, CONNECTION, &headers).await;
        assert_eq!(reply.status, expected, "{forwarded:?}");
        let reply = ask(&wary, CONNECTION, &headers).await;
        assert_eq!(reply.status, 403, "{forwarded:?}");
    }
    // The forwarded address also decides whether answers are compressed.
    let client = heliostat::upstream::Http::builder();
    let client = client.build().unwrap();
    let encoding = async |headers: &[(&str, &str)]| {
        let reply = ask_by(&client, &trusting, "GET /api/v1/labels", headers);
        reply.await.header("content-encoding").to_owned()
    };
    let packs = ("accept-encoding", "gzip");
    assert_eq!(encoding(&[packs]).await, "");
    assert_eq!(
        encoding(&[packs, ("x-forwarded-for", "192.0.2.7")]).await,
        "gzip"
    );
}

#[tokio::test]
async fn a_network_and_a_token_must_both_hold() {
    let (server, _upstream) = start(&format!(
        "[access]\ntrusted_proxies = [\"127.0.0.0/8\"]\n[access.metrics]\nnetworks = [\"192.0.2.0/24\"]\ntokens = [{:?}]",
        hash_of("t")
    ))
    .await;
    let (token, wrong) = (("authorization", "Bearer t"), ("authorization", "Bearer u"));
    let (near, far) = (
        ("x-forwarded-for", "192.0.2.1"),
        ("x-forwarded-for", "10.0.0.1"),
    );
    for (headers, expected) in [
        (&[near, token][..], 200),
        (&[near, wrong], 401),
        (&[near], 401),
        (&[near, token, token], 401),
        (&[near, token, wrong], 401),
        (&[near, wrong, token], 401),
        (&[far, token], 403),
        (&[token], 403),
    ] {
        let reply = ask(&server, "GET /metrics", headers).await;
        assert_eq!(reply.status, expected, "{headers:?}");
    }
    // Over HTTP/2 as well.
    let client = heliostat::upstream::Http::builder();
    let client = client.http2_prior_knowledge().build().unwrap();
    for (headers, expected) in [
        (&[near, token][..], 200),
        (&[near, token, wrong], 401),
        (&[near], 401),
        (&[far, token], 403),
    ] {
        let reply = ask_by(&client, &server, "GET /metrics", headers).await;
        assert_eq!(reply.status, expected, "{headers:?}");
    }
}

#[tokio::test]
async fn users_come_in_with_their_password_also_many_at_once() {
    let (server, _upstream) = start(&format!(
        "[access.prometheus]\nusers = {{ ann = {:?}, bob = {:?} }}",
        bcrypted("one"),
        bcrypted("two"),
    ))
    .await;
    let pairs = [
        ("ann:one", 200),
        ("bob:two", 200),
        ("ann:two", 401),
        ("carl:one", 401),
        ("ann", 401),
        (":", 401),
    ];
    let asked = (0..200).map(|n| {
        let (pair, expected) = pairs[n % pairs.len()];
        let server = &server;
        async move {
            let reply = ask(server, QUERY, &[("authorization", &basic(pair))]).await;
            (reply.status == expected)
                .then_some(())
                .ok_or((pair, reply.status))
        }
    });
    let all: Vec<_> = join_all(asked).await;
    assert!(all.iter().all(Result::is_ok), "{all:?}");
}

#[tokio::test]
async fn tokens_and_users_follow_their_files() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let write = |name: &str, text: &str| std::fs::write(path(name), text).unwrap();
    write("token", &(hash_of("one") + "\n"));
    write("user", &(bcrypted("one") + "\n"));
    let clock = TestClock::at(NOW);
    let toml = format!(
        "[access.mirror]\ntokens = [{{ file = {:?} }}]\nusers = {{ ann = {{ file = {:?} }}, fix = {:?} }}",
        path("token"),
        path("user"),
        bcrypted("fixed"),
    );
    let server = Server::start_at(&toml, clock.clone()).await;
    let status = async |authorization: &str| {
        let headers = [("authorization", authorization)];
        ask(&server, "GET /", &headers).await.status
    };
    let both = async |secret: &str| {
        let token = status(&format!("Bearer {secret}")).await;
        (token, status(&basic(&format!("ann:{secret}"))).await)
    };
    assert_eq!(both("one").await, (200, 200));
    write("token", &hash_of("two"));
    write("user", &bcrypted("two"));
    assert_eq!(both("two").await, (401, 401), "looked at too soon");
    clock.pass(5000);
    assert_eq!(both("two").await, (200, 200));
    assert_eq!(both("one").await, (401, 401));
    // Invalid contents change nothing, and a metric shows the error.
    let errors = "heliostat_file_errors{what=\"access.mirror\"}";
    assert_eq!(server.metric(errors).await, 0.0);
    write("user", "two");
    clock.pass(5000);
    assert_eq!(both("two").await, (200, 200));
    assert_eq!(server.metric(errors).await, 1.0);
    write("user", &bcrypted("three"));
    clock.pass(5000);
    assert_eq!(both("three").await, (401, 200));
    assert_eq!(status(&basic("fix:fixed")).await, 200);
}

/// Returns what `heliostat hash` prints for `password`, or for a new token.
fn hashed(arguments: &[&str], password: &str) -> String {
    let mut child = Command::new(env!("CARGO_BIN_EXE_heliostat"))
        .arg("hash")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(password.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn what_the_command_line_hashes_lets_in() {
    let hash = hashed(&[], "correct horse\n");
    let made = hashed(&["--token"], "");
    let lines: Vec<_> = made.lines().map(|l| l.split_once(": ").unwrap()).collect();
    let [("token", token), ("hash", token_hash)] = lines[..] else {
        panic!("{made}");
    };
    let toml = format!(
        "[access.metrics]\ntokens = [{:?}]\nusers = {{ ann = {:?} }}",
        token_hash.trim(),
        hash.trim_end()
    );
    let server = Server::start(&toml).await;
    for (authorization, expected) in [
        (format!("Bearer {token}"), 200),
        (basic("ann:correct horse"), 200),
        (basic("ann:correct horse\n"), 401),
        (format!("Bearer {token_hash}"), 401),
    ] {
        let reply = ask(
            &server,
            "GET /metrics",
            &[("authorization", &authorization)],
        )
        .await;
        assert_eq!(reply.status, expected, "{authorization}");
    }
}

#[tokio::test]
async fn clients_behind_a_trusted_proxy_take_turns() {
    let clock = TestClock::at(NOW);
    let upstream = Scripted::start(clock.clone(), |_, _| Answer {
        gate: true,
        ..Answer::json(json!({ "fields": [], "isPartial": false, "_type": "FieldNamesResponse" }))
    })
    .await;
    let toml = format!(
        "[access]\ntrusted_proxies = [\"127.0.0.1\"]\n{ADMIN}[[upstream]]\nname = \"turns\"\nkind = \"mirror\"\nurls = [{:?}]\nmax_concurrency = 1",
        upstream.url
    );
    let server = &Server::start_at(&toml, clock).await;
    // Different queries, so that none shares another's answer.
    let ask = async |client: &str, key: &str| {
        let conditions = [json!({ "key": key, "value": "v" })];
        let body = json!({ "connectionDetails": {}, "query": { "conditions": conditions } });
        let request = server.client().post(server.url.clone() + "/api/field/name");
        let request = request
            .header("content-type", "application/json")
            .header("x-forwarded-for", client);
        server.reply(request.body(body.to_string())).await.status
    };
    let waiting = async |wanted: u64| {
        loop {
            let state = server
                .client()
                .get(server.url.clone() + "/admin/v1/upstreams");
            let state = server.reply(state.bearer_auth(ADMIN_TOKEN)).await.json();
            if state["upstreams"][0]["state"]["limiter"]["waiting"] == wanted {
                return;
            }
        }
    };
    let many = "192.0.2.1";
    let few = async {
        waiting(3).await;
        let few = ask("192.0.2.2", "few");
        let open = async {
            waiting(4).await;
            (0..5).for_each(|_| upstream.open());
        };
        tokio::join!(few, open).0
    };
    let all = tokio::join!(
        ask(many, "a"),
        ask(many, "b"),
        ask(many, "c"),
        ask(many, "d"),
        few
    );
    assert_eq!(all, (200, 200, 200, 200, 200));
    let seen = upstream.seen();
    let asked = seen
        .iter()
        .map(|seen| seen.json()["query"]["conditions"][0]["key"].clone());
    let place = asked.into_iter().position(|key| key == "few");
    assert_eq!(
        place,
        Some(2),
        "behind one that waited before it, not three"
    );
}

#[tokio::test]
async fn requests_take_a_place_before_their_password_is_checked() {
    let hash = bcrypt::hash_with_salt("secret", 10, [1; 16]).unwrap();
    let server = Server::start(&format!(
        "[server]\nmax_in_flight = 2\n[access.mirror]\nusers = {{ ann = {:?} }}\n\
         [[upstream]]\nname = \"demo\"\nkind = \"demo\"",
        hash.to_string()
    ))
    .await;
    let wrong = basic("ann:wrong");
    let asked = (0..12).map(|_| {
        let server = &server;
        let wrong = &wrong;
        async move { ask(server, "POST /api/connection", &[("authorization", wrong)]).await }
    });
    let replies = join_all(asked).await;
    let refused: Vec<_> = replies.iter().filter(|r| r.status == 503).collect();
    // All would share one check.
    assert!(!refused.is_empty(), "all have waited for the check");
    for reply in refused {
        assert_eq!(reply.json()["summary"], "Heliostat is at capacity");
        assert!(
            reply.text.contains("server.max_in_flight"),
            "{}",
            reply.text
        );
    }
    assert!(replies.iter().any(|r| r.status == 401));
}
