//! Commands against a server that requires credentials.

use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::json;

use crate::pki::Authority;
use crate::support::{ADMIN, ADMIN_TOKEN, Server, TestClock};

/// Runs the binary in `folder`, for the server at `address`.
async fn run(folder: &Path, address: &str, words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_heliostat"));
    command
        .current_dir(folder)
        .env("HELIOSTAT_SERVER__LISTEN", address)
        .args(words);
    let run = tokio::task::spawn_blocking(move || command.output());
    run.await.unwrap().unwrap()
}

#[tokio::test]
async fn they_show_a_certificate_and_a_token_and_believe_an_authority() {
    let (ours, folder) = (Authority::new(), tempfile::tempdir().unwrap());
    let folder = folder.path();
    ours.write(&folder.join("ca.crt"));
    for name in ["server", "client"] {
        ours.sign_to(folder, name);
    }
    std::fs::write(folder.join("token"), format!("{ADMIN_TOKEN}\n")).unwrap();
    std::fs::write(folder.join("wrong"), "wrong").unwrap();
    let file = |name: &str| folder.join(name);
    let toml = format!(
        "[server.tls]\ncert = {:?}\nkey = {:?}\nclient_ca = {:?}\n{}[[upstream]]\nname = \"commands\"\nkind = \"demo\"\ndemo = {{ latency = \"1ms\" }}\n",
        file("server.crt"),
        file("server.key"),
        file("ca.crt"),
        ADMIN.replace("admin", "mirror"),
    );
    std::fs::write(file("config.toml"), &toml).unwrap();
    let server = Server::start_at(&toml, TestClock::at(1_790_000_000_000)).await;
    let address = server.url.strip_prefix("https://").unwrap();

    let query = "query --json --last 1h name=cpu.usage_percent host=web-1 --server";
    let query: Vec<&str> = query.split(' ').chain([server.url.as_str()]).collect();
    let identity = ["--cert", "client.crt", "--key", "client.key"];
    let asked = |more: &[&'static str]| {
        let words = [&query[..], &identity[..], more].concat();
        async move { run(folder, address, &words).await }
    };
    let good = asked(&["--ca", "ca.crt", "--token-file", "token"]).await;
    let said = String::from_utf8_lossy(&good.stderr);
    assert!(good.status.success(), "{said}");
    assert!(good.stdout.starts_with(b"{\"telemetry\""));
    for (more, expected) in [
        (&["--ca", "ca.crt"][..], "HTTP 401"),
        (&["--ca", "ca.crt", "--token-file", "wrong"], "HTTP 401"),
        (&["--ca", "ca.crt", "--token-file", "none"], "none"),
        (&["--token-file", "token"], "cannot query "),
    ] {
        let bad = asked(more).await;
        let said = String::from_utf8_lossy(&bad.stderr).into_owned();
        assert!(!bad.status.success() && said.contains(expected), "{said}");
    }

    let health = [&["health"][..], &identity[..]].concat();
    assert!(run(folder, address, &health).await.status.success());
    assert!(!run(folder, address, &["health"]).await.status.success());
}

#[tokio::test]
async fn they_ask_by_a_configuration_whose_second_level_the_server_holds() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let toml = format!(
        "[cache.disk]\ndir = {:?}\nsize = \"64MiB\"\n[[upstream]]\nname = \"beside\"\nkind = \"demo\"\ndemo = {{ latency = \"1ms\" }}\n",
        folder.join("level"),
    );
    std::fs::write(folder.join("config.toml"), &toml).unwrap();
    let server = Server::start_at(&toml, TestClock::at(1_790_000_000_000)).await;
    let address = server.url.strip_prefix("http://").unwrap();
    for words in [
        &["check", "--config", "config.toml"][..],
        &["values", "host", "--config", "config.toml"],
        &[
            "query",
            "--config",
            "config.toml",
            "--last",
            "1h",
            "name=cpu.usage_percent",
            "host=web-1",
        ],
    ] {
        let done = run(folder, address, words).await;
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{words:?}: {said}");
    }
}

#[tokio::test]
async fn they_do_not_write_the_budgets_of_the_service() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let state = folder.join("state");
    std::fs::create_dir(&state).unwrap();
    let toml = format!(
        "[state]\ndir = {state:?}\n[[upstream]]\nname = \"saved\"\nkind = \"demo\"\n\
         demo = {{ latency = \"1ms\" }}\nrate_limit = {{ per_second = 50, per_day = 1000 }}\n",
    );
    std::fs::write(folder.join("config.toml"), &toml).unwrap();
    let server = Server::start(&toml).await;
    let body = json!({ "connectionDetails": {} });
    assert_eq!(server.post("/api/connection", &body).await.status, 200);
    let file = state.join("saved.budget");
    for _ in 0..600 {
        if file.exists() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let said = std::fs::read_to_string(&file).unwrap();
    assert!(said.contains("\"used\":1"), "{said}");
    let address = server.url.strip_prefix("http://").unwrap();
    for words in [
        &["check", "--config", "config.toml"][..],
        &["fields", "--config", "config.toml"],
        &["values", "host", "--config", "config.toml"],
    ] {
        let done = run(folder, address, words).await;
        let error = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{words:?}: {error}");
        assert_eq!(std::fs::read_to_string(&file).unwrap(), said, "{words:?}");
    }
}

#[tokio::test]
async fn the_health_of_a_server_does_not_depend_on_its_current_file() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start("").await;
    let address = server.url.strip_prefix("http://").unwrap();
    let health = |toml: String| {
        std::fs::write(folder.path().join("config.toml"), toml).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_heliostat"));
        command.current_dir(folder.path()).arg("health");
        tokio::task::spawn_blocking(move || command.output().unwrap())
    };
    let listen = format!("[server]\nlisten = {address:?}\n");
    for more in [
        "",
        "nonsense = 5\n",
        "[server.tls]\ncert = \"/none\"\n",
        "bad =\n",
    ] {
        let run = health(listen.clone() + more).await.unwrap();
        let said = String::from_utf8_lossy(&run.stderr);
        assert!(run.status.success(), "{more}: {said}");
    }
    let nobody = health("[server]\nlisten = \"127.0.0.1:1\"".to_owned());
    assert_eq!(nobody.await.unwrap().status.code(), Some(1));
}
