//! Against a real server, if there is one.

use std::process::{Child, Command, Stdio};

use super::*;
use crate::clock::SystemClock;
use crate::model::TimeRange;
use crate::store::Guarded;
use crate::store::joint::JointLimits;
use crate::store::key::{LaneName, UpstreamName};

/// A server of its own; it ends when dropped.
pub(super) struct Server {
    child: Child,
    port: u16,
    dir: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether the program is there; it must be where the environment says so.
#[allow(
    clippy::disallowed_methods,
    reason = "CI says that nothing may be skipped"
)]
pub(super) fn has_server() -> bool {
    let there = Command::new("redis-server")
        .arg("--version")
        .stdout(Stdio::null())
        .status()
        .is_ok();
    let required = std::env::var("HELIOSTAT_REQUIRE_REAL").is_ok_and(|v| v == "1");
    assert!(there || !required, "redis-server is required");
    if !there {
        println!("skipped: there is no redis-server");
    }
    there
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    listener.local_addr().unwrap().port()
}

impl Server {
    pub(super) async fn start(more: &[&str]) -> Self {
        Self::start_at(free_port(), more).await
    }

    async fn start_at(port: u16, more: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let child = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
            .args(["--save", "", "--appendonly", "no", "--dir"])
            .arg(dir.path())
            .args(more)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let server = Self { child, port, dir };
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        server
    }

    fn signal(&self, name: &str) {
        let mut kill = Command::new("kill");
        kill.args([name, &self.child.id().to_string()]);
        assert!(kill.status().unwrap().success());
    }

    pub(super) fn settings(&self) -> RedisSettings {
        settings(&format!("redis://127.0.0.1:{}", self.port))
    }

    /// Returns the server's reply to a command.
    fn cli(&self, arguments: &[&str]) -> String {
        let output = Command::new("redis-cli")
            .args(["-p", &self.port.to_string()])
            .args(arguments)
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }
}

fn settings(url: &str) -> RedisSettings {
    RedisSettings {
        urls: vec![url.to_owned()],
        mode: RedisMode::Single,
        username: None,
        password: None,
        sentinel_username: None,
        sentinel_password: None,
        ca: None,
        identity: None,
        prefix: "h1".into(),
        secret: "a secret of the test".into(),
        fetch_once: true,
        name: "test".into(),
    }
}

async fn start(settings: RedisSettings) -> Arc<RedisLevel> {
    let level = RedisLevel::start(settings, Arc::new(SystemClock::default()));
    there(&level).await;
    level
}

async fn there(level: &Arc<RedisLevel>) {
    let began = tokio::time::Instant::now();
    while level.state().is_none() {
        assert!(began.elapsed() < Duration::from_secs(30), "it never came");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn key(n: u8, slot: Slot) -> ValueKey {
    ValueKey::new(&LaneName([n; 32]), slot)
}

fn put(key: ValueKey, replaces: Option<Mark>, bytes: &[u8]) -> Put {
    Put {
        key,
        replaces,
        bytes: bytes.to_vec(),
        ttl: Duration::from_secs(60),
    }
}

#[test]
fn slots_are_those_of_the_specification() {
    assert_eq!(slot("123456789"), 0x31c3);
    assert_eq!(slot("foo"), 12_182);
}

#[tokio::test]
async fn values_are_written_where_nothing_else_was_and_read_back() {
    if !has_server() {
        return;
    }
    let server = Server::start(&[]).await;
    let level = start(server.settings()).await;
    let (page, tail) = (key(1, Slot::Page(7)), key(1, Slot::Tail));
    let other = key(2, Slot::Tail);
    let written = level.write(vec![
        put(page, None, b"page"),
        put(tail, None, b"tail"),
        put(other, None, b"other"),
    ]);
    assert_eq!(written.await, Ok(vec![true, true, true]));
    let found = level.read(vec![page, key(1, Slot::Page(8)), tail, other]);
    let found = found.await.unwrap();
    let bytes: Vec<_> = found.iter().map(|f| f.as_ref()?.bytes.clone()).collect();
    let expected = [Some("page"), None, Some("tail"), Some("other")];
    assert_eq!(bytes, expected.map(|t| t.map(|t| t.as_bytes().to_vec())));
    // Another replica's write is not overwritten unseen.
    let mark = found[0].as_ref().unwrap().mark;
    let twice = level.write(vec![put(page, None, b"mine")]).await;
    assert_eq!(twice, Ok(vec![false]));
    let right = level.write(vec![put(page, Some(mark), b"mine")]).await;
    assert_eq!(right, Ok(vec![true]));
    let late = level.write(vec![put(page, Some(mark), b"late")]).await;
    assert_eq!(late, Ok(vec![false]));
    let ttl: i64 = server.cli(&["PTTL", &level.key(&page)]).parse().unwrap();
    assert!((1..=60_000).contains(&ttl), "{ttl}");
    // Neither what is stored nor of what can be seen.
    let all = server.cli(&["--no-raw", "GET", &level.key(&page)]);
    assert!(!all.contains("mine"), "{all}");
    // Another secret finds nothing, whatever lies under its keys.
    let foreign = RedisSettings {
        secret: "another secret of the test".into(),
        ..server.settings()
    };
    let foreign = start(foreign).await;
    let found = foreign.read(vec![page]).await.unwrap();
    assert_eq!(found[0].as_ref().unwrap().bytes, None);
}

#[tokio::test]
async fn what_was_changed_in_the_server_is_not_read() {
    if !has_server() {
        return;
    }
    let server = Server::start(&[]).await;
    let level = start(server.settings()).await;
    let key = key(1, Slot::Page(7));
    level
        .write(vec![put(key, None, b"a value of some length")])
        .await
        .unwrap();
    let name = level.key(&key);
    let length: usize = server.cli(&["STRLEN", &name]).parse().unwrap();
    for at in 0..length {
        let before = server.cli(&[
            "--no-raw",
            "GETRANGE",
            &name,
            &at.to_string(),
            &at.to_string(),
        ]);
        for other in ["x", "y"] {
            server.cli(&["SETRANGE", &name, &at.to_string(), other]);
            let found = level.read(vec![key]).await.unwrap();
            let bytes = found[0].as_ref().unwrap().bytes.clone();
            assert!(
                bytes.is_none() || before == format!("{other:?}"),
                "byte {at} was {before}"
            );
        }
        server.cli(&["DEL", &name]);
        level
            .write(vec![put(key, None, b"a value of some length")])
            .await
            .unwrap();
    }
    // What is under the key of another is not taken for its own.
    server.cli(&["COPY", &name, &level.key(&self::key(1, Slot::Page(8)))]);
    let found = level.read(vec![self::key(1, Slot::Page(8))]).await.unwrap();
    assert_eq!(found[0].as_ref().unwrap().bytes, None);
    server.cli(&["SET", &name, "short"]);
    let found = level.read(vec![key]).await.unwrap();
    assert_eq!(found[0].as_ref().unwrap().bytes, None);
}

#[tokio::test]
async fn replicas_know_of_each_other_and_of_what_each_invalidates() {
    if !has_server() {
        return;
    }
    let server = Server::start(&[]).await;
    let one = start(server.settings()).await;
    let two = start(RedisSettings {
        name: "two".into(),
        ..server.settings()
    })
    .await;
    let before = one.state().unwrap().invalidations.stamp();
    let upstream = UpstreamName([9; 16]);
    let range = TimeRange::new(5, 9).unwrap();
    let place = one.invalidate(Invalidation { upstream, range });
    let place = place.await.unwrap();
    assert_eq!((place.epoch, place.number), (before.epoch, 1));
    assert_eq!(one.state().unwrap().invalidations.stamp(), place);
    let began = tokio::time::Instant::now();
    while two.state().unwrap().invalidations.stamp() != place {
        assert!(began.elapsed() < Duration::from_secs(20));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    two.applied(place);
    loop {
        let replicas = one.state().unwrap().replicas;
        let applied = replicas
            .iter()
            .any(|r| !r.this && r.applied == place && r.name == "two");
        if replicas.len() == 2 && applied {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(20), "{replicas:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // The list is longer than is kept: what is older is unknown.
    for _ in 0..super::super::Invalidations::MOST {
        one.invalidate(Invalidation { upstream, range })
            .await
            .unwrap();
    }
    let list = one.state().unwrap().invalidations;
    assert_eq!(list.stamp().number, 257);
    assert_eq!(list.unknown(before, upstream), None);
    assert!(list.unknown(place, upstream).is_some());
    // It is lost: everything is.
    server.cli(&["DEL", "h1:{all}:state"]);
    while two.state().unwrap().invalidations.stamp().epoch == place.epoch {
        assert!(began.elapsed() < Duration::from_secs(30));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(
        two.state().unwrap().invalidations.unknown(place, upstream),
        None
    );
    let clock = two.state().unwrap().clock;
    assert!(clock.trusted && clock.error < 5000, "{clock:?}");
}

#[tokio::test]
async fn a_server_that_is_stopped_or_killed_costs_its_deadline_and_is_found_again() {
    if !has_server() {
        return;
    }
    let server = Server::start(&[]).await;
    let level = start(server.settings()).await;
    // Ten times the usual deadline, for a busy machine.
    let guarded = Guarded::new(level.clone(), Duration::from_millis(500));
    let key = key(1, Slot::Tail);
    assert_eq!(guarded.read(vec![key]).await, Some(vec![None]));
    server.signal("-STOP");
    let (mut waited, stopped) = (0, tokio::time::Instant::now());
    while stopped.elapsed() < Duration::from_secs(6) {
        let began = tokio::time::Instant::now();
        guarded.read(vec![key]).await;
        assert!(began.elapsed() < Duration::from_secs(5));
        waited += u32::from(began.elapsed() > Duration::from_millis(400));
        tokio::time::sleep(Duration::from_millis(4)).await;
    }
    assert!(waited <= 12, "{waited} reads waited");
    assert!(level.state().is_none(), "it is known to be away");
    server.signal("-CONT");
    there(&level).await;
    let again = tokio::time::Instant::now();
    while guarded.read(vec![key]).await.is_none() {
        assert!(again.elapsed() < Duration::from_secs(20));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let port = server.port;
    drop(server);
    let gone = tokio::time::Instant::now();
    while level.state().is_some() {
        assert!(gone.elapsed() < Duration::from_secs(20));
        guarded.read(vec![key]).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let server = Server::start_at(port, &[]).await;
    there(&level).await;
    let again = tokio::time::Instant::now();
    while guarded.read(vec![key]).await.is_none() {
        assert!(again.elapsed() < Duration::from_secs(20));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    drop(server);
}

#[tokio::test]
async fn a_server_without_room_is_read_and_listened_to() {
    if !has_server() {
        return;
    }
    let server = Server::start(&["--maxmemory", "3mb", "--maxmemory-policy", "noeviction"]).await;
    let level = start(server.settings()).await;
    let first = key(1, Slot::Page(0));
    level
        .write(vec![put(first, None, &[7; 1000])])
        .await
        .unwrap();
    let mut full = None;
    for n in 1..200 {
        let put = put(key(1, Slot::Page(n)), None, &[7; 100_000]);
        if let Err(failure) = level.write(vec![put]).await {
            full = Some(failure);
            break;
        }
    }
    assert!(matches!(full, Some(LevelFailure::Full(_))), "{full:?}");
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(level.state().is_some(), "the heart beats on");
    let found = level.read(vec![first]).await.unwrap();
    assert_eq!(found[0].as_ref().unwrap().bytes, Some(vec![7; 1000]));
    let (version, warnings) = inspect(&server.settings()).await.unwrap();
    assert!(version.starts_with("Redis "), "{version}");
    assert!(
        warnings.iter().any(|w| w.contains("noeviction")),
        "{warnings:?}"
    );
    assert!(!warnings.iter().any(|w| w.contains("maxmemory is not set")));
}

#[tokio::test]
async fn a_user_of_an_acl_may_do_all_that_is_needed() {
    if !has_server() {
        return;
    }
    let server = Server::start(&[]).await;
    let made = server.cli(&[
        "ACL",
        "SETUSER",
        "heliostat",
        "on",
        ">word",
        "~h1:*",
        "-@all",
        "+mget",
        "+set",
        "+eval",
        "+getrange",
        "+hget",
        "+hset",
        "+hgetall",
        "+hdel",
        "+time",
        "+ping",
        "+info",
        "+hello",
        "+client|setname",
    ]);
    assert_eq!(made, "OK");
    server.cli(&["ACL", "SETUSER", "default", "off"]);
    let wrong = inspect(&server.settings()).await;
    assert!(wrong.is_err(), "{wrong:?}");
    let level = start(RedisSettings {
        username: Some("heliostat".into()),
        password: Some("word".into()),
        ..server.settings()
    })
    .await;
    let key = key(1, Slot::Tail);
    assert_eq!(
        level.write(vec![put(key, None, b"v")]).await,
        Ok(vec![true])
    );
    assert!(level.read(vec![key]).await.unwrap()[0].is_some());
    let (upstream, range) = (UpstreamName([9; 16]), TimeRange::new(5, 9).unwrap());
    level
        .invalidate(Invalidation { upstream, range })
        .await
        .unwrap();
    let (limits, asked) = JointLimits::new(7, Duration::from_secs(60), 0.0, level.clock.clone());
    level.keep_limits(&limits, asked, Duration::from_secs(60));
    let limit = limits.limit("x", 1000.0, 10);
    let began = tokio::time::Instant::now();
    while limit.permits(1).await.map_or(0, |p| p.granted) == 0 {
        assert!(began.elapsed() < Duration::from_secs(30), "no permit came");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_cluster_is_read_and_written_and_survives_a_master() {
    if !has_server() {
        return;
    }
    let more = [
        "--cluster-enabled",
        "yes",
        "--cluster-node-timeout",
        "2000",
        "--cluster-require-full-coverage",
        "no",
    ];
    let mut nodes = Vec::new();
    for _ in 0..6 {
        let port = 20_000 + free_port() % 20_000;
        nodes.push(Server::start_at(port, &more).await);
    }
    let addresses: Vec<String> = nodes
        .iter()
        .map(|n| format!("127.0.0.1:{}", n.port))
        .collect();
    let made = Command::new("redis-cli")
        .args(["--cluster", "create"])
        .args(&addresses)
        .args(["--cluster-replicas", "1", "--cluster-yes"])
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    // A replica that has nothing yet does not take its master's place.
    let ready = |node: &Server| {
        let said = node.cli(&["INFO", "replication"]);
        said.contains("role:master") || said.contains("master_link_status:up")
    };
    let began = tokio::time::Instant::now();
    while !nodes.iter().all(ready) {
        assert!(began.elapsed() < Duration::from_secs(60));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let cluster = RedisSettings {
        urls: addresses.iter().map(|a| format!("redis://{a}")).collect(),
        mode: RedisMode::Cluster,
        ..settings("")
    };
    let level = start(cluster.clone()).await;
    let keys: Vec<ValueKey> = (0..60).map(|n| key(n, Slot::Page(1))).collect();
    let puts = keys.iter().map(|key| put(*key, None, b"value")).collect();
    assert_eq!(level.write(puts).await, Ok(vec![true; 60]));
    let found = level.read(keys.clone()).await.unwrap();
    assert!(
        found
            .iter()
            .all(|f| f.as_ref().is_some_and(|f| f.bytes.is_some()))
    );
    let (_, warnings) = inspect(&cluster).await.unwrap();
    assert!(
        !warnings.iter().any(|w| w.contains("coverage")),
        "{warnings:?}"
    );
    let master = nodes
        .iter()
        .position(|n| n.cli(&["ROLE"]).starts_with("master"));
    drop(nodes.remove(master.unwrap()));
    // Read as misses do: a part of the slots is away, and the others are not.
    let guarded = Guarded::new(level.clone(), Duration::from_millis(50));
    let killed = tokio::time::Instant::now();
    let (mut longest, mut lost, mut most_open) = (Duration::ZERO, 0, 0);
    let (mut found_meanwhile, mut failed_over, mut well) = (0, None, None);
    while well.is_none() {
        assert!(
            killed.elapsed() < Duration::from_secs(60),
            "it never came back"
        );
        let mut all = true;
        for key in &keys {
            let began = tokio::time::Instant::now();
            let found = guarded.read(vec![*key]).await;
            longest = longest.max(began.elapsed());
            lost += u32::from(began.elapsed() >= Duration::from_millis(45));
            found_meanwhile += u32::from(found.is_some() && most_open > 0);
            all &= found.is_some();
            most_open = most_open.max(guarded.breakers()[0].open);
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let puts = keys.iter().map(|key| put(*key, None, b"value")).collect();
        let written = tokio::time::timeout(Duration::from_secs(1), level.write(puts));
        if failed_over.is_none() && matches!(written.await, Ok(Ok(_))) {
            failed_over = Some(killed.elapsed());
        }
        let is_well = all && most_open > 0 && failed_over.is_some() && level.state().is_some();
        well = is_well.then(|| killed.elapsed());
    }
    println!(
        "a master killed: {lost} reads waited for 45 ms or more, the longest {longest:?}; at most {most_open} of 16 \
         breakers open, {found_meanwhile} reads of other slots; written to all again after {:?}, all read after {:?}",
        failed_over.unwrap(),
        well.unwrap()
    );
    // A third of the slots, which meets at most half of the parts.
    assert!((1..=8).contains(&most_open), "{most_open}");
    assert!(found_meanwhile > 0);
    // On an idle machine 52 ms.
    assert!(longest < Duration::from_millis(500), "{longest:?}");
    // On an idle machine 2 s.
    assert!(well.unwrap() - failed_over.unwrap() < Duration::from_secs(20));
}

#[tokio::test]
async fn a_master_is_found_through_its_sentinels_again_and_again() {
    if !has_server() {
        return;
    }
    let master = Server::start(&[]).await;
    let replicaof = format!("127.0.0.1 {}", master.port);
    let replica = Server::start(&["--replicaof", &replicaof]).await;
    let mut sentinels = Vec::new();
    for _ in 0..3 {
        let (port, dir) = (free_port(), tempfile::tempdir().unwrap());
        let path = dir.path().join("sentinel.conf");
        std::fs::write(
            &path,
            format!(
                "port {port}\nbind 127.0.0.1\nsentinel monitor mymaster 127.0.0.1 {} 2\n\
                 sentinel down-after-milliseconds mymaster 2000\nsentinel failover-timeout mymaster 5000\n",
                master.port
            ),
        )
        .unwrap();
        let child = Command::new("redis-server")
            .arg(&path)
            .arg("--sentinel")
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        sentinels.push(Server { child, port, dir });
    }
    let began = tokio::time::Instant::now();
    let knows = |s: &Server| {
        s.cli(&["SENTINEL", "replicas", "mymaster"])
            .contains(&replica.port.to_string())
    };
    let peers = |s: &Server| {
        s.cli(&["SENTINEL", "ckquorum", "mymaster"])
            .starts_with("OK 3")
    };
    while !sentinels.iter().all(|s| knows(s) && peers(s)) {
        assert!(began.elapsed() < Duration::from_secs(60));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let level = start(RedisSettings {
        urls: sentinels
            .iter()
            .map(|s| format!("redis://127.0.0.1:{}", s.port))
            .collect(),
        mode: RedisMode::Sentinel("mymaster".into()),
        ..settings("")
    })
    .await;
    let key = key(1, Slot::Tail);
    assert_eq!(
        level.write(vec![put(key, None, b"v")]).await,
        Ok(vec![true])
    );
    drop(master);
    let killed = tokio::time::Instant::now();
    loop {
        assert!(
            killed.elapsed() < Duration::from_secs(60),
            "no new master was found"
        );
        let mark = level
            .read(vec![key])
            .await
            .ok()
            .and_then(|f| Some(f[0].as_ref()?.mark));
        if let Ok(written) = level.write(vec![put(key, mark, b"w")]).await
            && written == [true]
            && level.state().is_some()
        {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    drop(sentinels);
    let _ = replica.dir.path();
}

/// A certificate for this machine that `issuer` signs, and its key, in PEM.
fn signed(issuer: &rcgen::CertifiedIssuer<'static, rcgen::KeyPair>) -> (String, String) {
    let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
    let params = rcgen::CertificateParams::new(names).unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, issuer).unwrap();
    (certificate.pem(), key.serialize_pem())
}

fn authority(name: &str) -> rcgen::CertifiedIssuer<'static, rcgen::KeyPair> {
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, name.to_owned());
    let key = rcgen::KeyPair::generate().unwrap();
    rcgen::CertifiedIssuer::self_signed(params, key).unwrap()
}

#[tokio::test]
async fn a_server_with_tls_is_trusted_by_its_authority_and_trusts_ours() {
    if !has_server() {
        return;
    }
    let ours = authority("ours");
    let (certificate, key) = signed(&ours);
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, pem: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, pem).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let port = free_port();
    let server = Server::start_at(
        port,
        &[
            "--port",
            "0",
            "--tls-port",
            &port.to_string(),
            "--tls-cert-file",
            &write("server.crt", &certificate),
            "--tls-key-file",
            &write("server.key", &key),
            "--tls-ca-cert-file",
            &write("ca.crt", &ours.pem()),
        ],
    )
    .await;
    let pem = |(certificate, key): (String, String)| (certificate.into_bytes(), key.into_bytes());
    let right = RedisSettings {
        ca: Some(ours.pem().into_bytes()),
        identity: Some(pem(signed(&ours))),
        ..settings(&format!("rediss://127.0.0.1:{}", server.port))
    };
    let level = start(right.clone()).await;
    let tail = self::key(1, Slot::Tail);
    let written = level.write(vec![put(tail, None, b"v")]).await;
    assert_eq!(written, Ok(vec![true]));
    assert!(level.read(vec![tail]).await.unwrap()[0].is_some());
    let theirs = authority("theirs");
    for wrong in [
        RedisSettings {
            ca: Some(theirs.pem().into_bytes()),
            ..right.clone()
        },
        RedisSettings {
            identity: Some(pem(signed(&theirs))),
            ..right.clone()
        },
        RedisSettings {
            identity: None,
            ..right.clone()
        },
        RedisSettings {
            urls: vec![format!("redis://127.0.0.1:{}", server.port)],
            ..right
        },
    ] {
        assert!(inspect(&wrong).await.is_err());
    }
}
