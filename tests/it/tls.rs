//! TLS on both sides, and proxies.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::pki::Authority;
use crate::scripted::{Answer, Scripted};
use crate::support::{Server, TestClock};

const NOW: i64 = 1_790_000_000_000;

/// Starts a Heliostat with a certificate of `authority` and `more` in its TLS section.
async fn secured(authority: &Authority, folder: &Path, more: &str) -> (Server, Arc<TestClock>) {
    let (cert, key) = authority.sign_to(folder, "server");
    let toml = format!("[server.tls]\ncert = {cert:?}\nkey = {key:?}\n{more}");
    let clock = TestClock::at(NOW);
    (Server::start_at(&toml, clock.clone()).await, clock)
}

async fn health(
    client: reqwest::ClientBuilder,
    server: &Server,
) -> Result<reqwest::Version, String> {
    let client = client.timeout(Duration::from_secs(10)).build().unwrap();
    let asked = client.get(format!("{}/healthz", server.url)).send().await;
    match asked {
        Ok(response) => {
            assert_eq!(response.status(), 200);
            Ok(response.version())
        }
        Err(e) => Err(format!("{e:?}")),
    }
}

#[tokio::test]
async fn tls_is_spoken_over_both_versions_of_http() {
    let (ours, other) = (Authority::new(), Authority::new());
    let folder = tempfile::tempdir().unwrap();
    let (server, _) = secured(&ours, folder.path(), "").await;
    // A client that sends nothing does not delay others.
    let address = server.url.strip_prefix("https://").unwrap();
    let _silent = TcpStream::connect(address).await.unwrap();
    let version = health(ours.client(), &server).await;
    assert_eq!(version, Ok(reqwest::Version::HTTP_2));
    let version = health(ours.client().http1_only(), &server).await;
    assert_eq!(version, Ok(reqwest::Version::HTTP_11));
    let error = health(other.client(), &server).await.unwrap_err();
    assert!(error.contains("UnknownIssuer"), "{error}");
    let plain = reqwest::get(format!("http://{address}/healthz")).await;
    assert!(plain.is_err(), "{plain:?}");
}

#[tokio::test]
async fn clients_need_a_certificate_of_the_right_authority() {
    let (ours, clients) = (Authority::new(), Authority::new());
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("clients.crt");
    clients.write(&ca);
    let (server, _) = secured(&ours, folder.path(), &format!("client_ca = {ca:?}")).await;
    let with = |authority: &Authority| {
        let (cert, key) = authority.sign();
        let identity = reqwest::Identity::from_pem((cert + &key).as_bytes()).unwrap();
        ours.client().identity(identity)
    };
    assert!(health(with(&clients), &server).await.is_ok());
    let none = health(ours.client(), &server).await.unwrap_err();
    assert!(none.contains("CertificateRequired"), "{none}");
    let foreign = health(with(&ours), &server).await;
    assert!(foreign.is_err());
}

#[tokio::test]
async fn a_new_certificate_is_used_and_a_broken_one_is_not() {
    let (old, new) = (Authority::new(), Authority::new());
    let folder = tempfile::tempdir().unwrap();
    let (server, clock) = secured(&old, folder.path(), "").await;
    let (cert, _) = new.sign_to(folder.path(), "server");
    assert!(health(old.client(), &server).await.is_ok(), "too soon");
    clock.pass(5000);
    assert!(health(new.client(), &server).await.is_ok());
    assert!(health(old.client(), &server).await.is_err());
    // A certificate without its key, and a file without a certificate.
    for broken in [old.sign().0, "nonsense".to_owned()] {
        std::fs::write(&cert, broken).unwrap();
        clock.pass(5000);
        assert!(health(new.client(), &server).await.is_ok());
    }
    old.sign_to(folder.path(), "server");
    clock.pass(5000);
    assert!(health(old.client(), &server).await.is_ok());
}

/// Starts a Heliostat with a mirror at `url` as its upstream.
async fn before(
    name: &str,
    url: &str,
    more: &str,
    env: &[(&str, &str)],
) -> (Server, Arc<TestClock>) {
    let toml = format!(
        "[[upstream]]\nname = {name:?}\nkind = \"mirror\"\nurls = [{url:?}]\nretries = 0\n{more}"
    );
    let clock = TestClock::at(NOW);
    let env = env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
    let env: BTreeMap<String, String> = env.collect();
    (Server::start_with(&toml, clock.clone(), env).await, clock)
}

/// Checks that `server` reaches its upstream; otherwise returns the reason.
async fn reaches(server: &Server) -> Result<(), String> {
    let body = json!({ "connectionDetails": {}, "_type": "TestConnectionRequest" });
    let answer: Value = server.post("/api/connection", &body).await.json();
    match answer["status"].as_str() {
        Some("OK") => Ok(()),
        _ => Err(answer.to_string()),
    }
}

#[tokio::test]
async fn an_upstream_proves_itself() {
    let (ours, other) = (Authority::new(), Authority::new());
    let folder = tempfile::tempdir().unwrap();
    let (upstream, _) = secured(&ours, folder.path(), "").await;
    let ca = folder.path().join("ca.crt");
    other.write(&ca);
    let trusting = format!("tls = {{ ca = {ca:?} }}");
    let (server, clock) = before("proves", &upstream.url, &trusting, &[]).await;
    let error = reaches(&server).await.unwrap_err();
    assert!(error.contains("UnknownIssuer"), "{error}");
    ours.write(&ca);
    clock.pass(60_000);
    assert_eq!(reaches(&server).await, Ok(()));
    let (server, _) = before("unknown", &upstream.url, "", &[]).await;
    let error = reaches(&server).await.unwrap_err();
    assert!(error.contains("UnknownIssuer"), "{error}");
    let insecure = "tls = { insecure = true }";
    let (server, _) = before("insecure", &upstream.url, insecure, &[]).await;
    assert_eq!(reaches(&server).await, Ok(()));
}

#[tokio::test]
async fn we_prove_ourselves_to_an_upstream() {
    let ours = Authority::new();
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca.crt");
    ours.write(&ca);
    let (upstream, _) = secured(&ours, folder.path(), &format!("client_ca = {ca:?}")).await;
    let (cert, key) = ours.sign_to(folder.path(), "client");
    let tls = format!("tls = {{ ca = {ca:?}, cert = {cert:?}, key = {key:?} }}");
    let (server, _) = before("with", &upstream.url, &tls, &[]).await;
    assert_eq!(reaches(&server).await, Ok(()));
    let tls = format!("tls = {{ ca = {ca:?} }}");
    let (server, _) = before("without", &upstream.url, &tls, &[]).await;
    assert!(reaches(&server).await.is_err());
}

/// A proxy that leads every tunnel to `to` and counts them.
async fn tunnels(to: String) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    tokio::spawn(async move {
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(client.read_u8().await.unwrap());
            }
            assert!(head.starts_with(b"CONNECT localhost:"), "{head:?}");
            counted.fetch_add(1, Ordering::SeqCst);
            let mut there = TcpStream::connect(&to).await.unwrap();
            client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
            tokio::spawn(async move {
                let _ = tokio::io::copy_bidirectional(&mut client, &mut there).await;
            });
        }
    });
    (url, count)
}

#[tokio::test]
async fn tls_goes_through_a_tunnel_of_the_proxy() {
    let ours = Authority::new();
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca.crt");
    ours.write(&ca);
    let (upstream, _) = secured(&ours, folder.path(), "").await;
    let address = upstream.url.strip_prefix("https://").unwrap();
    let (proxy, count) = tunnels(address.to_owned()).await;
    let more = format!("tls = {{ ca = {ca:?} }}\nproxy = {proxy:?}");
    // Nothing listens on this port: only the proxy can reach anything.
    let (server, _) = before("tunnel", "https://localhost:1", &more, &[]).await;
    assert_eq!(reaches(&server).await, Ok(()));
    assert_eq!(count.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_proxy_is_named_by_the_file_or_the_environment() {
    let proxy = Scripted::start(TestClock::at(NOW), |_, _| {
        Answer::json(json!({ "_type": "TestConnectionResponse", "status": "OK" }))
    })
    .await;
    let with_user = proxy.url.replace("http://", "http://user:pass@");
    let url = "http://mirror.invalid:7";
    let file = format!("proxy = {with_user:?}");
    let (server, _) = before("by-file", url, &file, &[]).await;
    assert_eq!(reaches(&server).await, Ok(()));
    let seen = proxy.seen();
    assert_eq!(seen[0].path, "http://mirror.invalid:7/api/connection");
    let authorization = seen[0].headers.get("proxy-authorization");
    assert_eq!(authorization.unwrap(), "Basic dXNlcjpwYXNz");

    let env = [("http_proxy", with_user.as_str())];
    let (server, _) = before("by-env", url, "", &env).await;
    assert_eq!(reaches(&server).await, Ok(()));
    assert_eq!(proxy.seen().len(), 2);
    let except = [env[0], ("NO_PROXY", "elsewhere,.invalid")];
    for (name, more, env) in [
        ("excepted", "", &except[..]),
        ("switched-off", "proxy = \"none\"", &env[..]),
    ] {
        let (server, _) = before(name, url, more, env).await;
        assert!(reaches(&server).await.is_err(), "{name}");
        assert_eq!(proxy.seen().len(), 2, "{name}");
    }
    // This machine is reached without a proxy from the environment.
    let (server, _) = before("here", "http://127.0.0.1:1", "", &env).await;
    assert!(reaches(&server).await.is_err());
    assert_eq!(proxy.seen().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_handshake_has_its_time() {
    let folder = tempfile::tempdir().unwrap();
    let (server, _) = secured(&Authority::new(), folder.path(), "").await;
    let address = server.url.strip_prefix("https://").unwrap();
    let mut silent = TcpStream::connect(address).await.unwrap();
    let begun = tokio::time::Instant::now();
    assert_eq!(silent.read(&mut [0]).await.unwrap(), 0);
    let took = begun.elapsed().as_secs();
    assert!((9..=15).contains(&took), "{took} s");
}
