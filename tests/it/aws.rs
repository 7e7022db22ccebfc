//! Signed requests, and the credentials that they are signed with.

use std::collections::BTreeMap;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use heliostat::clock::{Clock, SystemClock};
use serde_json::{Value, json};

use crate::prometheus::{Store, free_port, installed};
use crate::scripted::{Answer, Scripted, Seen};
use crate::sigv4::verify;
use crate::support::{Reply, Server, TestClock};

const NOW: i64 = 1_790_000_000_000;
const HOUR: u64 = 3_600_000;
const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
/// A token with characters that headers and forms encode differently.
const TOKEN: &str = "FwoGZX+Ivc/YXdzE=J";

fn vector() -> Answer {
    Answer::json(json!({
        "status": "success",
        "data": { "resultType": "vector", "result": [] },
    }))
}

fn refuse(code: &str, message: &str) -> Answer {
    Answer {
        status: 403,
        headers: [("x-amzn-errortype".to_owned(), format!("{code}:"))].into(),
        ..Answer::json(json!({ "message": message }))
    }
}

/// The configuration of an Amazon Managed Prometheus at `url`, with more keys in its `aws`.
fn amp(name: &str, url: &str, more: &str) -> String {
    format!(
        "[[upstream]]\nname = {name:?}\nkind = \"prometheus\"\nurls = [\"{url}/workspaces/ws-1\"]\nretries = 1\naws = {{ region = \"eu-west-1\", service = \"aps\"{more} }}\n"
    )
}

/// Sends a query that no other request has sent.
async fn ask(server: &Server) -> Reply {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let n = COUNT.fetch_add(1, Ordering::Relaxed);
    server.get(&format!("/api/v1/query?query=up%2D{n}")).await
}

/// Answers if `seen` is signed by `id` and `secret`, with `token`.
fn signed(seen: &Seen, id: &str, secret: &str, token: Option<&str>) -> Answer {
    let proved = verify(seen, secret, "eu-west-1", "aps");
    let sent = seen.headers.get("x-amz-security-token").map(String::as_str);
    match proved {
        Ok(by) if by == id && sent == token => vector(),
        other => refuse("AccessDenied", &format!("{other:?} with {sent:?}")),
    }
}

fn rfc3339(millis: i64) -> String {
    let time = std::time::UNIX_EPOCH + Duration::from_millis(millis as u64);
    humantime::format_rfc3339_seconds(time).to_string()
}

/// Credentials as ECS, EKS and IMDS write them.
fn issued(id: &str, secret: &str, ends: i64) -> Answer {
    Answer::json(json!({
        "Code": "Success", "AccessKeyId": id, "SecretAccessKey": secret, "Token": TOKEN,
        "Expiration": rfc3339(ends),
    }))
}

/// Credentials as STS writes them for `action`.
fn assumed(action: &str, id: &str, secret: &str, ends: i64) -> Answer {
    Answer {
        text: Some(format!(
            "<{action}Response xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><{action}Result><Credentials><AccessKeyId>{id}</AccessKeyId><SecretAccessKey>{secret}</SecretAccessKey><SessionToken>{TOKEN}</SessionToken><Expiration>{}</Expiration></Credentials></{action}Result></{action}Response>",
            rfc3339(ends)
        )),
        ..Answer::default()
    }
}

fn env(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs
        .iter()
        .map(|(k, v)| (k.to_string(), v.to_string()))
        .collect()
}

#[tokio::test]
async fn every_request_is_signed_as_it_is_sent() {
    let clock = TestClock::at(NOW);
    let store = Scripted::start(clock.clone(), |_, seen| {
        signed(seen, "AKIDCONFIGURED", SECRET, Some(TOKEN))
    })
    .await;
    let keys = format!(
        ", access_key = \"AKIDCONFIGURED\", secret_key = \"{SECRET}\", session_token = \"{TOKEN}\""
    );
    let server = Server::start_at(&amp("signed", &store.url, &keys), clock).await;
    // Paths, queries and bodies with characters that encoders treat differently.
    for path in [
        "/api/v1/query?query=up%7Bjob%3D%22a+b%2Bc%22%7D",
        "/api/v1/query?query=%22h%C3%A9%20%2F~*'()!%22",
        "/api/v1/query_range?query=up&start=1789990000&end=1789990600&step=15",
        "/api/v1/labels?match%5B%5D=up&match%5B%5D=down%7Bx%3D%22%2B%22%7D",
        "/api/v1/label/U__a_2e_b/values",
        "/api/v1/label/a%20b:c/values",
        "/api/v1/series?match%5B%5D=up",
        "/api/v1/metadata",
    ] {
        // The answer does not matter; it is always the same.
        server.get(path).await;
    }
    let client = server.client();
    let form = client.post(format!("{}/api/v1/query", server.url));
    let form = form.header("content-type", "application/x-www-form-urlencoded");
    let reply = server
        .reply(form.body("query=a%2Bb+c&time=1789990000"))
        .await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    let seen = store.seen();
    assert!(seen.len() >= 8);
    for seen in seen {
        let proved = verify(&seen, SECRET, "eu-west-1", "aps");
        assert_eq!(proved, Ok("AKIDCONFIGURED".into()), "{}", seen.path);
    }
}

#[tokio::test]
async fn credentials_come_from_where_aws_tools_find_them() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let clock = TestClock::at(NOW);
    let ends = NOW + HOUR as i64;
    let peer = Scripted::start(clock.clone(), move |_, seen| {
        let body = String::from_utf8_lossy(&seen.body).into_owned();
        let header = |name: &str| seen.headers.get(name).map(String::as_str);
        match (&*seen.method, &*seen.path) {
            ("PUT", "/latest/api/token")
                if header("x-aws-ec2-metadata-token-ttl-seconds").is_some() =>
            {
                Answer {
                    text: Some("imds".into()),
                    ..Answer::default()
                }
            }
            (_, path)
                if path.starts_with("/latest/")
                    && header("x-aws-ec2-metadata-token") != Some("imds") =>
            {
                refuse("no", "token")
            }
            ("GET", "/latest/meta-data/iam/security-credentials/") => Answer {
                text: Some("a-role".into()),
                ..Answer::default()
            },
            ("GET", "/latest/meta-data/iam/security-credentials/a-role") => {
                issued("AKIDOFTHEINSTANCE", SECRET, ends)
            }
            ("GET", "/container") if header("authorization") == Some("Bearer t/k") => {
                issued("AKIDOFTHECONTAINER", SECRET, ends)
            }
            ("GET", path) if path.starts_with("/federation/credentials?") => {
                assert!(
                    path.ends_with("?role_name=Reader&account_id=123456789012"),
                    "{path}"
                );
                assert_eq!(header("x-amz-sso_bearer_token"), Some("of the portal"));
                Answer::json(json!({ "roleCredentials": {
                    "accessKeyId": "AKIDOFSSO", "secretAccessKey": SECRET, "sessionToken": TOKEN,
                    "expiration": ends,
                }}))
            }
            ("POST", "/") if body.contains("Action=AssumeRoleWithWebIdentity") => {
                assert!(body.contains("WebIdentityToken=ey.J%2B.x"), "{body}");
                assumed(
                    "AssumeRoleWithWebIdentity",
                    "AKIDOFWEBIDENTITY",
                    SECRET,
                    ends,
                )
            }
            _ => {
                let id = seen.headers.get("authorization").unwrap();
                let id = id.split(['=', '/']).nth(1).unwrap();
                let token = (!id.contains("STATIC")).then_some(TOKEN);
                signed(seen, id, SECRET, token)
            }
        }
    })
    .await;
    let url = &*peer.url;
    let credentials = file(
        "credentials",
        &format!(
            "[default]\naws_access_key_id = AKIDSTATICDEFAULT\naws_secret_access_key = {SECRET}\n[other]\naws_access_key_id = AKIDSTATICOTHER\naws_secret_access_key = {SECRET}\n"
        ),
    );
    let printed = file("printed", &json!({ "Version": 1, "AccessKeyId": "AKIDOFAPROCESS", "SecretAccessKey": SECRET, "SessionToken": TOKEN }).to_string());
    let process = file(
        "config",
        &format!("[default]\ncredential_process = cat {printed}\n"),
    );
    let (token, web) = (file("token", "Bearer t/k\n"), file("web", "ey.J+.x\n"));
    // What `aws sso login` leaves: a token, in a file named after the SHA-1 of the portal's address.
    let tokens = folder.path().join(".aws/sso/cache");
    std::fs::create_dir_all(&tokens).unwrap();
    std::fs::write(
        tokens.join("5863e3e4b5a9564b6e829cf4aa6724bdbf9788a5.json"),
        json!({ "accessToken": "of the portal", "expiresAt": "2999-01-01T00:00:00Z" }).to_string(),
    )
    .unwrap();
    let settings = "sso_start_url = https://portal.example/start\nsso_region = eu-west-1\nsso_account_id = 123456789012\nsso_role_name = Reader\n";
    let sso = file(
        "sso",
        &format!("[default]\n{settings}[profile work]\n{settings}"),
    );
    let (home, portal) = (
        folder.path().to_str().unwrap(),
        format!("{url}/federation/credentials"),
    );
    let signed_in = env(&[
        ("HOME", home),
        ("AWS_CONFIG_FILE", &sso),
        ("AWS_SSO_ENDPOINT", &portal),
    ]);
    let container = format!("{url}/container");
    let role = "arn:aws:iam::123456789012:role/a";
    let cases: [(&str, &str, BTreeMap<_, _>); 9] = [
        (
            "",
            "AKIDSTATICENV",
            env(&[
                ("AWS_ACCESS_KEY_ID", "AKIDSTATICENV"),
                ("AWS_SECRET_ACCESS_KEY", SECRET),
            ]),
        ),
        (
            "",
            "AKIDSTATICDEFAULT",
            env(&[("AWS_SHARED_CREDENTIALS_FILE", &credentials)]),
        ),
        (
            ", profile = \"other\"",
            "AKIDSTATICOTHER",
            env(&[("AWS_SHARED_CREDENTIALS_FILE", &credentials)]),
        ),
        ("", "AKIDOFSSO", signed_in.clone()),
        (", profile = \"work\"", "AKIDOFSSO", signed_in),
        ("", "AKIDOFAPROCESS", env(&[("AWS_CONFIG_FILE", &process)])),
        (
            &format!(", sts_url = \"{url}\""),
            "AKIDOFWEBIDENTITY",
            env(&[
                ("AWS_WEB_IDENTITY_TOKEN_FILE", &web),
                ("AWS_ROLE_ARN", role),
            ]),
        ),
        (
            "",
            "AKIDOFTHECONTAINER",
            env(&[
                ("AWS_CONTAINER_CREDENTIALS_FULL_URI", &container),
                ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", &token),
            ]),
        ),
        (
            "",
            "AKIDOFTHEINSTANCE",
            env(&[("AWS_EC2_METADATA_SERVICE_ENDPOINT", url)]),
        ),
    ];
    for (n, (more, id, env)) in cases.into_iter().enumerate() {
        let config = amp(&format!("from-{n}-{}", id.to_lowercase()), url, more);
        let server = Server::start_with(&config, clock.clone(), env).await;
        let reply = ask(&server).await;
        assert_eq!(reply.status, 200, "{id}: {}", reply.text);
        let seen = peer.seen();
        let last = &seen.last().unwrap().headers["authorization"];
        assert!(last.contains(&format!("Credential={id}/")), "{last}");
    }
    let expired = folder.path().join("expired");
    std::fs::create_dir_all(&expired).unwrap();
    // No credentials at all, none over plain HTTP from an arbitrary host, and not signed in.
    for (env, expected) in [
        (
            env(&[
                ("HOME", expired.to_str().unwrap()),
                ("AWS_CONFIG_FILE", &sso),
            ]),
            "SSO: No valid SSO token found. Please run 'aws sso login' first",
        ),
        (
            env(&[("AWS_EC2_METADATA_DISABLED", "true")]),
            "there are none in the environment, ",
        ),
        (
            env(&[("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://192.0.2.1/x")]),
            "the container: failed to fetch ECS credentials",
        ),
    ] {
        let server = Server::start_with(&amp("from-none", url, ""), clock.clone(), env).await;
        let reply = ask(&server).await;
        assert_eq!(reply.status, 502, "{}", reply.text);
        let said = "the upstream's credentials are not available: ";
        assert!(
            reply.text.contains(&format!("{said}{expected}")),
            "{}",
            reply.text
        );
    }
}

#[tokio::test]
async fn a_role_is_assumed_with_them() {
    let clock = TestClock::at(NOW);
    let ends = NOW + HOUR as i64;
    let peer = Scripted::start(clock.clone(), move |_, seen| {
        let body = String::from_utf8_lossy(&seen.body).into_owned();
        if !body.contains("Action=AssumeRole&") {
            return signed(seen, "AKIDOFTHEROLE1234", "of the role", Some(TOKEN));
        }
        let proved = verify(seen, SECRET, "eu-west-1", "sts");
        assert_eq!(proved, Ok("AKIDBASE".into()));
        for part in [
            "RoleArn=arn%3Aaws%3Aiam%3A%3A123456789012%3Arole%2Fpath%2Freader",
            "RoleSessionName=heliostat",
            "ExternalId=stackstate%3Aa%2Fb",
            "DurationSeconds=3600",
        ] {
            assert!(body.contains(part), "{body}");
        }
        assumed("AssumeRole", "AKIDOFTHEROLE1234", "of the role", ends)
    })
    .await;
    let more = format!(
        ", access_key = \"AKIDBASE\", secret_key = \"{SECRET}\", role = \"arn:aws:iam::123456789012:role/path/reader\", external_id = \"stackstate:a/b\", sts_url = \"{}\"",
        peer.url
    );
    let server = Server::start_at(&amp("assumes", &peer.url, &more), clock).await;
    let reply = ask(&server).await;
    assert_eq!(reply.status, 200, "{}", reply.text);
}

/// A peer that issues credentials valid for an hour, and is both the container's service and the
/// store.
async fn container(
    clock: Arc<TestClock>,
    calls: Arc<AtomicUsize>,
    issue: impl Fn(usize) -> Option<Answer> + Send + Sync + 'static,
) -> Scripted {
    let now = clock.clone();
    Scripted::start(clock, move |_, seen| {
        if seen.path != "/container" {
            let latest = format!("AKIDNUMBER{}", calls.load(Ordering::SeqCst));
            return match verify(seen, SECRET, "eu-west-1", "aps") {
                Ok(id) if id == latest => vector(),
                Ok(id) => refuse("ExpiredTokenException", &format!("{id} has ended")),
                Err(e) => refuse("SignatureDoesNotMatch", &e),
            };
        }
        let n = calls.fetch_add(1, Ordering::SeqCst) + 1;
        let usual = || issued(&format!("AKIDNUMBER{n}"), SECRET, now.now() + HOUR as i64);
        issue(n).unwrap_or_else(usual)
    })
    .await
}

async fn in_container(name: &str, peer: &Scripted, clock: Arc<TestClock>) -> Server {
    let uri = format!("{}/container", peer.url);
    let env = env(&[("AWS_CONTAINER_CREDENTIALS_FULL_URI", &uri)]);
    let config = amp(name, &peer.url, "").replace("retries = 1", "retries = 1\nrefresh = \"0s\"");
    Server::start_with(&config, clock, env).await
}

#[tokio::test]
async fn credentials_are_renewed_once_for_all_who_ask() {
    let clock = TestClock::at(NOW);
    let calls = Arc::new(AtomicUsize::new(0));
    let slow = |_| None;
    let peer = container(clock.clone(), calls.clone(), slow).await;
    let server = in_container("renews", &peer, clock.clone()).await;
    let many = || {
        let asks = (0..50).map(|n| {
            let path = format!("/api/v1/query?query=up%2B{n}");
            let server = &server;
            async move { server.get(&path).await.status }
        });
        futures_util::future::join_all(asks)
    };
    assert!(many().await.iter().all(|s| *s == 200));
    assert_eq!(calls.load(Ordering::SeqCst), 1);
    // There is no renewal before it is due, 5 min before they expire; then one call, however many
    // requests wait.
    clock.pass(54 * 60_000);
    many().await;
    assert_eq!(calls.load(Ordering::SeqCst), 1);
    clock.pass(2 * 60_000);
    assert!(many().await.iter().all(|s| *s == 200));
    // The old ones serve meanwhile.
    while calls.load(Ordering::SeqCst) < 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(many().await.iter().all(|s| *s == 200));
    assert_eq!(calls.load(Ordering::SeqCst), 2);
    // Credentials that the store rejects early are renewed, and the call is repeated.
    calls.fetch_add(10, Ordering::SeqCst);
    let reply = ask(&server).await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    assert_eq!(calls.load(Ordering::SeqCst), 13);
}

#[tokio::test]
async fn while_renewals_fail_the_old_ones_serve_to_their_end() {
    let clock = TestClock::at(NOW);
    let calls = Arc::new(AtomicUsize::new(0));
    let fails = |n| {
        let down = Answer {
            status: 500,
            text: Some("down".into()),
            ..Answer::default()
        };
        (n > 1).then_some(down)
    };
    let now = clock.clone();
    let peer = {
        let calls = calls.clone();
        Scripted::start(clock.clone(), move |_, seen| match &*seen.path {
            "/container" => {
                let n = calls.fetch_add(1, Ordering::SeqCst) + 1;
                fails(n).unwrap_or_else(|| issued("AKIDONLY", SECRET, now.now() + HOUR as i64))
            }
            _ => signed(seen, "AKIDONLY", SECRET, Some(TOKEN)),
        })
        .await
    };
    let server = in_container("ends", &peer, clock.clone()).await;
    assert_eq!(ask(&server).await.status, 200);
    clock.pass(56 * 60_000);
    for _ in 0..20 {
        assert_eq!(ask(&server).await.status, 200);
    }
    // The first attempt and, as the clock stands still, no other.
    while calls.load(Ordering::SeqCst) < 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(calls.load(Ordering::SeqCst), 2);
    clock.pass(5 * 60_000);
    let reply = ask(&server).await;
    assert_eq!(reply.status, 502, "{}", reply.text);
    let said = "the upstream's credentials are not available: the container: ECS metadata service error: down";
    assert!(reply.text.contains(said), "{}", reply.text);
    let before = calls.load(Ordering::SeqCst);
    for _ in 0..20 {
        assert_eq!(ask(&server).await.status, 502);
    }
    assert_eq!(calls.load(Ordering::SeqCst), before, "they fail at once");
    assert!(!reply.text.contains(SECRET));
}

#[tokio::test]
async fn a_clock_that_is_off_is_named() {
    let clock = TestClock::at(NOW);
    for (skew, expected) in [
        (-600_000, "this machine's clock is 600 s ahead of AWS'"),
        (700_000, "this machine's clock is 700 s behind AWS'"),
        (
            0,
            "refuses the signature (SignatureDoesNotMatch): The request signature",
        ),
    ] {
        let store = Scripted::start(clock.clone(), move |_, _| Answer {
            skew,
            ..refuse(
                "SignatureDoesNotMatch",
                &format!("The request signature does not match.\n\nThe Canonical String: x-amz-security-token:{TOKEN}"),
            )
        })
        .await;
        let keys = format!(", access_key = \"AKID\", secret_key = \"{SECRET}\"");
        let server = Server::start_at(&amp("skewed", &store.url, &keys), clock.clone()).await;
        let reply = ask(&server).await;
        assert_eq!(reply.status, 502);
        assert!(reply.text.contains(expected), "{}", reply.text);
        assert!(!reply.text.contains(TOKEN), "{}", reply.text);
        assert_eq!(store.seen().len(), 1, "not tried again");
    }
}

/// A program that runs until dropped.
pub(crate) struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts `program`, and waits until `url` is answered.
pub(crate) async fn run(program: &mut Command, url: &str) -> Running {
    let child = program
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let running = Running(child);
    let client = heliostat::upstream::Http::builder().build().unwrap();
    for _ in 0..600 {
        if client.get(url).send().await.is_ok() {
            return running;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("{url} is not answered");
}

/// A proxy to the store behind it for requests whose signature botocore confirms.
const PROXY: &str = r#"
import sys, urllib.request, urllib.error
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
store, port, key, secret = sys.argv[1:]
class Proxy(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *args): pass
    def handle_all(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        status, answer = self.forward(body) if self.good(body) else (403, b'{"message":"another signature"}')
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)
    def good(self, body):
        said = self.headers.get("authorization", "")
        if "SignedHeaders=" not in said: return False
        names = said.split("SignedHeaders=")[1].split(",")[0].split(";")
        headers = {n: self.headers[n] for n in names if n in self.headers}
        request = AWSRequest(self.command, "http://%s%s" % (self.headers["host"], self.path), headers=headers, data=body)
        request.context["timestamp"] = self.headers["x-amz-date"]
        auth = SigV4Auth(Credentials(key, secret), "aps", "eu-west-1")
        signature = auth.signature(auth.string_to_sign(request, auth.canonical_request(request)), request)
        return said.endswith("Signature=" + signature)
    def forward(self, body):
        request = urllib.request.Request(store + self.path.removeprefix("/workspaces/ws-1"), body or None, method=self.command)
        if body: request.add_header("content-type", self.headers["content-type"])
        try:
            with urllib.request.urlopen(request) as answer: return answer.status, answer.read()
        except urllib.error.HTTPError as error: return error.code, error.read()
    do_GET = do_POST = handle_all
ThreadingHTTPServer(("127.0.0.1", int(port)), Proxy).serve_forever()
"#;

/// Returns the Python interpreter that has botocore, if there is one.
pub(crate) fn python() -> Option<&'static str> {
    let has = Command::new("python3")
        .args(["-c", "import botocore"])
        .output();
    if has.is_ok_and(|o| o.status.success()) {
        return Some("python3");
    }
    let required = std::env::var_os("HELIOSTAT_REQUIRE_REAL").is_some_and(|v| v == "1");
    assert!(
        !required,
        "python3 with botocore is not installed, and is required"
    );
    println!("SKIPPED: python3 with botocore is not installed");
    None
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_prometheus_behind_signatures_that_botocore_checks() {
    let (Some(python), true) = (python(), installed("prometheus")) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let port = free_port();
    std::fs::write(
        folder.path().join("prometheus.yml"),
        format!("global: {{ scrape_interval: 1s }}\nscrape_configs: [{{ job_name: self, static_configs: [{{ targets: ['127.0.0.1:{port}'] }}] }}]\n"),
    )
    .unwrap();
    let args = [
        format!("--web.listen-address=127.0.0.1:{port}"),
        "--config.file=prometheus.yml".into(),
    ];
    let store = Store::start("prometheus", folder, &args, port, "/-/ready").await;
    let port = free_port();
    let url = format!("http://127.0.0.1:{port}");
    let mut proxy = Command::new(python);
    proxy.args([
        "-c",
        PROXY,
        &store.url,
        &port.to_string(),
        "AKIDREAL",
        SECRET,
    ]);
    let _proxy = run(&mut proxy, &url).await;
    let keys = format!(", access_key = \"AKIDREAL\", secret_key = \"{SECRET}\"");
    let server = Server::start(&amp("real-signed", &url, &keys)).await;
    let up = "/api/v1/query?query=up%7Bjob%3D%22self%22%7D%20%2B%20on%20()%20vector(1)";
    let mut reply = server.get(up).await;
    for _ in 0..600 {
        if reply.status != 200 || reply.text.contains("\"value\"") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        reply = server.get(up).await;
    }
    assert!(reply.text.contains("\"2\""), "{}", reply.text);
    for path in [
        "/api/v1/labels?match%5B%5D=up",
        "/api/v1/label/job/values",
        "/api/v1/label/a%20b%3Ac/values",
        "/api/v1/series?match%5B%5D=up%7Bjob%3D~%22a%7Cself%2B%3F%22%7D",
        "/api/v1/metadata?metric=go_goroutines",
    ] {
        let reply = server.get(path).await;
        assert!(
            reply.status == 200 || reply.status == 400,
            "{path}: {}",
            reply.text
        );
    }
    let details = json!({ "connectionDetails": {} });
    let reply = server.post("/api/connection", &details).await;
    assert!(reply.text.contains("\"OK\""), "{}", reply.text);
    let other = keys.replace("EXAMPLEKEY", "ANOTHERKEY");
    let server = Server::start(&amp("real-signed-wrongly", &url, &other)).await;
    let reply = server.post("/api/connection", &details).await;
    let failed: Value = serde_json::from_str(&reply.text).unwrap();
    assert_eq!(failed["status"], "FAILURE", "{failed}");
}

/// The program, with its log.
struct Program {
    child: std::process::Child,
    url: String,
    log: std::thread::JoinHandle<Vec<String>>,
}

fn program(folder: &std::path::Path, toml: &str) -> Program {
    use std::io::BufRead;
    let path = folder.join("config.toml");
    std::fs::write(&path, toml).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_heliostat"))
        .args(["--config".as_ref(), path.as_os_str()])
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let lines = std::io::BufReader::new(child.stderr.take().unwrap()).lines();
    let (sender, url) = std::sync::mpsc::channel();
    let log = std::thread::spawn(move || {
        let mut all = Vec::new();
        for line in lines.map_while(Result::ok) {
            let mut words = line.split_whitespace();
            if let Some(url) = words.find(|w| w.starts_with("http://127.0.0.1:")) {
                let _ = sender.send(url.to_owned());
            }
            all.push(line);
        }
        all
    });
    let url = url.recv().unwrap();
    Program { child, url, log }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_secret_is_shown_anywhere() {
    let clock = Arc::new(SystemClock::default());
    // A store that refuses everything and repeats what it received; and a collector of traces.
    let peer = Scripted::start(clock, |_, seen| {
        if seen.path.starts_with("/v1/traces") {
            return Answer::json(json!({}));
        }
        let authorization = seen.headers.get("authorization").cloned().unwrap_or_default();
        let signature = authorization.rsplit("Signature=").next().unwrap_or_default();
        let message = format!(
            "The signature does not match.\n\nThe canonical request was\nx-amz-security-token:{}\n{signature}",
            seen.headers.get("x-amz-security-token").cloned().unwrap_or_default(),
        );
        refuse("SignatureDoesNotMatch", &message)
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("secret"), SECRET).unwrap();
    let url = &peer.url;
    let toml = format!(
        "[server]\nlisten = \"127.0.0.1:0\"\n[log]\nlevel = \"trace\"\n[traces]\nendpoint = \"{url}/v1/traces\"\n{}[[upstream]]\nname = \"secretive\"\nkind = \"cloudwatch\"\nurls = [{url:?}]\nretries = 0\naws = {{ region = \"eu-west-1\", access_key = \"AKIDSECRETIVE\", secret_key = {{ file = {:?} }}, session_token = {TOKEN:?} }}\n",
        crate::support::ADMIN,
        folder.path().join("secret"),
    );
    let Program {
        mut child,
        url,
        log,
    } = program(folder.path(), &toml);
    let client = heliostat::upstream::Http::builder().build().unwrap();
    let details = json!({ "connectionDetails": {} });
    let now = SystemClock::default().now();
    let query = crate::cloudwatch::query(
        &crate::cloudwatch::lambda("f"),
        (now - 3_600_000, now),
        Some(("MEAN", 60_000)),
    );
    let metric = json!({ "connectionDetails": {}, "query": query });
    let mut shown = Vec::new();
    for (path, body) in [
        ("/api/connection", Some(&details)),
        ("/api/metric", Some(&metric)),
        ("/admin/v1/explain/api/metric", Some(&metric)),
        ("/admin/v1/upstreams", None),
        ("/admin/v1/config", None),
        ("/admin/v1/traffic", None),
        ("/metrics", None),
    ] {
        let at = format!("{url}{path}");
        let request = match body {
            Some(body) => client.post(at).body(body.to_string()),
            None => client.get(at),
        };
        let request = request.header("content-type", "application/json");
        let request = request.bearer_auth(crate::support::ADMIN_TOKEN);
        let text = request.send().await.unwrap().text().await.unwrap();
        shown.push((path.to_owned(), text));
    }
    assert!(
        shown[1].1.contains("SignatureDoesNotMatch"),
        "{}",
        shown[1].1
    );
    let check = Command::new(env!("CARGO_BIN_EXE_heliostat"))
        .arg("check")
        .arg("--config")
        .arg(folder.path().join("config.toml"))
        .output()
        .unwrap();
    let said = [check.stdout, check.stderr].concat();
    shown.push(("check".into(), String::from_utf8_lossy(&said).into_owned()));
    // When told to stop, it sends its last traces and writes its last log lines.
    let stop = Command::new("kill").arg(child.id().to_string()).status();
    assert!(stop.unwrap().success());
    child.wait().unwrap();
    shown.push(("log".into(), log.join().unwrap().join("\n")));
    let mut traces = 0;
    for seen in peer.seen() {
        if seen.path.starts_with("/v1/traces") {
            traces += 1;
            let text = String::from_utf8_lossy(&seen.body).into_owned();
            shown.push(("a trace".into(), text));
        }
    }
    assert!(traces > 0 || !cfg!(feature = "otlp"), "traces were sent");
    for (place, text) in &shown {
        assert!(!text.is_empty(), "{place} is empty");
        for secret in [SECRET, TOKEN, "Signature="] {
            assert!(!text.contains(secret), "{place} shows {secret}: {text}");
        }
    }
}
