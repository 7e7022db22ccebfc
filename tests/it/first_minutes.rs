//! The first steps of somebody who tries Heliostat.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use heliostat::clock::SystemClock;
use serde_json::{Value, json};

use crate::pki::Authority;
use crate::prometheus::free_port;
use crate::scripted::{Answer, Scripted};
use crate::support::{ADMIN, ADMIN_TOKEN, Server, TestClock};

const NOW: i64 = 1_790_000_000_000;
const HOUR: i64 = 3_600_000;

/// Runs the binary in `folder`, with these environment variables.
async fn run(folder: &Path, env: &[(&str, &str)], words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_heliostat"));
    command.current_dir(folder).args(words).stdin(Stdio::null());
    for name in ["COLUMNS", "NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE"] {
        command.env_remove(name);
    }
    command.envs(env.iter().copied());
    tokio::task::spawn_blocking(move || command.output())
        .await
        .unwrap()
        .unwrap()
}

fn out(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}{text}");
    text
}

fn error(output: &Output) -> String {
    assert!(
        !output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
    String::from_utf8_lossy(&output.stderr).into_owned()
}

const DEMO: &str = "[[upstream]]\nname = \"demo\"\nkind = \"demo\"\ndemo = { latency = \"1ms\" }\n";

const CPU: [&str; 2] = ["name=cpu.usage_percent", "host=web-1"];

#[tokio::test]
async fn charts_are_as_wide_as_asked_and_in_colour_where_wanted() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(DEMO).await;
    let query = ["query", "--server", &server.url, "--last", "6h"];
    let query = [&query[..], &CPU].concat();
    for columns in [60, 80, 120, 200] {
        let width = columns.to_string();
        let by_option = [&query[..], &["--width", &width]].concat();
        let by_option = out(&run(folder.path(), &[], &by_option).await);
        let by_environment = out(&run(folder.path(), &[("COLUMNS", &width)], &query).await);
        for text in [by_option, by_environment] {
            let plot = text.lines().filter(|l| l.contains(['┤', '│', '└']));
            let widest = plot.map(|l| l.chars().count()).max().unwrap();
            assert!(
                (columns - 12..=columns).contains(&widest),
                "{columns}: {widest}\n{text}"
            );
            assert!(!text.contains('\u{1b}'), "{text:?}");
        }
    }
    let forced = out(&run(folder.path(), &[("CLICOLOR_FORCE", "1")], &query).await);
    assert!(forced.contains("\u{1b}[36m"), "{forced:?}");
    let always = [&query[..], &["--color", "always"]].concat();
    let always = out(&run(folder.path(), &[("NO_COLOR", "1")], &always).await);
    assert!(always.contains("\u{1b}[36m"));
    let table = [&query[..], &["--table", "--bucket", "6h"]].concat();
    let table = out(&run(folder.path(), &[], &table).await);
    let longest = table
        .lines()
        .skip(1)
        .filter_map(|l| l.split_whitespace().last())
        .map(str::len)
        .max();
    assert!(longest.unwrap() <= 14, "{table}");
    let title = out(&run(
        folder.path(),
        &[],
        &[&query[..], &["--bucket", "1h30m"]].concat(),
    )
    .await);
    assert!(
        title.starts_with("name=cpu.usage_percent host=web-1, MEAN of 1 h 30 min\n"),
        "{title}"
    );
    let csv = out(&run(
        folder.path(),
        &[],
        &[&query[..], &["--csv", "--bucket", "1h"]].concat(),
    )
    .await);
    assert!(csv.starts_with("start,end,value\n20"), "{csv}");
}

#[tokio::test]
async fn fields_values_and_explanations_are_shown() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("token"), ADMIN_TOKEN).unwrap();
    let server = Server::start(&format!("{ADMIN}{DEMO}")).await;
    let ask = async |words: &[&str]| {
        let words = [words, &["--server", &server.url]].concat();
        run(folder.path(), &[], &words).await
    };
    let fields = out(&ask(&["fields"]).await);
    assert!(
        fields.contains("name     text\n") && fields.contains("port     number\n"),
        "{fields}"
    );
    let values = out(&ask(&["values", "host", "--prefix", "web-"]).await);
    assert!(
        values.lines().count() >= 2 && values.lines().all(|v| v.starts_with("web-")),
        "{values}"
    );
    let unknown = error(&ask(&["values", "hots"]).await);
    assert!(
        unknown.contains("unknown field \"hots\"; there are: name, host"),
        "{unknown}"
    );
    let unknown = error(&ask(&["query", "nmae=cpu"]).await);
    assert!(
        unknown.contains("unknown field \"nmae\"; there are: name, host"),
        "{unknown}"
    );

    let explain = [&["explain", "--last", "6h"][..], &CPU].concat();
    let closed = error(&ask(&explain).await);
    assert!(closed.contains("HTTP 401"), "{closed}");
    let explain = [&explain[..], &["--token-file", "token", "--width", "60"]].concat();
    let before = out(&ask(&explain).await);
    assert!(
        before.starts_with("demo: fetches what is missing\n"),
        "{before}"
    );
    assert!(
        before.contains(&"░".repeat(30)) && before.contains("░ not known, fetched"),
        "{before}"
    );
    out(&ask(&[&["query", "--last", "6h"][..], &CPU].concat()).await);
    let after = out(&ask(&explain).await);
    assert!(
        after.contains(&"█".repeat(30)) && after.contains("█ settled"),
        "{after}"
    );

    let toml = folder.path().join("own.toml");
    std::fs::write(&toml, format!("{DEMO}[server]\napi_key = \"s3cret\"\n")).unwrap();
    let config = ["config", "--config", "own.toml"];
    let config = out(&run(folder.path(), &[("HELIOSTAT_LOG__LEVEL", "warn")], &config).await);
    assert!(
        config.contains("api_key = (secret)") && !config.contains("s3cret"),
        "{config}"
    );
    assert!(
        config.contains("# HELIOSTAT_LOG__LEVEL") && config.contains("# own.toml:"),
        "{config}"
    );
    for command in ["query", "fields", "values", "explain"] {
        let help = out(&run(folder.path(), &[], &[command, "--help"]).await);
        assert!(
            help.contains(&format!("Examples:\n  heliostat {command}")),
            "{help}"
        );
    }
}

#[tokio::test]
async fn several_series_of_an_expression_are_drawn_over_the_range_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let source = Scripted::start(std::sync::Arc::new(SystemClock::default()), |_, seen| {
        let asked = seen.json();
        let time = |name: &str| asked[name].as_str().unwrap().parse::<f64>().unwrap() as i64;
        let (start, end) = (time("start"), time("end"));
        // Both died in the first third.
        let times = (start..start + (end - start) / 3).step_by(60);
        let series = |job: &str, size: i64| {
            let values: Vec<Value> = times
                .clone()
                .map(|t| json!([t, (t / 60 % 7 * size).to_string()]))
                .collect();
            json!({ "metric": { "job": job }, "values": values })
        };
        let result = json!([series("a", 1), series("b", 3)]);
        Answer::json(
            json!({ "status": "success", "data": { "resultType": "matrix", "result": result } }),
        )
    })
    .await;
    let server = Server::start(&format!(
        "[[upstream]]\nname = \"prom\"\nkind = \"prometheus\"\nurls = [{:?}]\n",
        source.url
    ))
    .await;
    let words = [
        "query",
        "--server",
        &server.url,
        "--upstream",
        "prom",
        "--last",
        "6h",
        "--bucket",
        "1m",
    ];
    let words = [
        &words[..],
        &["--width", "100", "--color", "always", "--expr", "up"],
    ]
    .concat();
    let text = out(&run(folder.path(), &[], &words).await);
    assert!(text.starts_with("up, step 1 min\n"), "{text}");
    assert!(
        text.contains("\u{1b}[36m■\u{1b}[0m {job=\"a\"}"),
        "{text:?}"
    );
    assert!(
        text.contains("\u{1b}[33m■\u{1b}[0m {job=\"b\"}"),
        "{text:?}"
    );
    let bare = text
        .replace("\u{1b}[36m", "")
        .replace("\u{1b}[33m", "")
        .replace("\u{1b}[0m", "");
    let plot = bare.lines().filter(|l| l.contains(['┤', '│']));
    let reach = plot.map(|l| l.trim_end().chars().count()).max().unwrap();
    assert!(
        (25..50).contains(&reach),
        "a dead series ends where it died: {reach}\n{bare}"
    );
}

#[tokio::test]
async fn commands_follow_the_configuration_in_the_folder_and_the_environment() {
    let (ours, folder) = (Authority::new(), tempfile::tempdir().unwrap());
    let folder = folder.path();
    ours.sign_to(folder, "server");
    ours.write(&folder.join("ca.crt"));
    let server = Server::start(DEMO).await;
    let address = server.url.strip_prefix("http://").unwrap();
    let fields = async |env: &[(&str, &str)], more: &[&str]| {
        run(folder, env, &[&["fields"], more].concat()).await
    };
    std::fs::write(
        folder.join("config.toml"),
        format!("[server]\nlisten = {address:?}\n"),
    )
    .unwrap();
    assert!(out(&fields(&[], &[]).await).contains("name"));
    std::fs::remove_file(folder.join("config.toml")).unwrap();
    let listen = [("HELIOSTAT_SERVER__LISTEN", address)];
    assert!(out(&fields(&listen, &[]).await).contains("name"));

    let toml = format!(
        "[server.tls]\ncert = {:?}\nkey = {:?}\n{DEMO}",
        folder.join("server.crt"),
        folder.join("server.key")
    );
    let secure = Server::start(&toml).await;
    let at = secure.url.strip_prefix("https://").unwrap();
    std::fs::write(
        folder.join("config.toml"),
        format!("[server]\nlisten = {at:?}\n{toml}"),
    )
    .unwrap();
    assert!(out(&fields(&[], &["--ca", "ca.crt"]).await).contains("name"));

    // The error states the innermost cause.
    let untrusted = error(&fields(&[], &["--server", &secure.url]).await);
    assert!(
        untrusted.contains("UnknownIssuer; trust its authority with --ca FILE"),
        "{untrusted}"
    );
    let plain = format!("http://{at}");
    let plain = error(&fields(&[], &["--server", &plain]).await);
    assert!(plain.contains("try https://"), "{plain}");
    let nobody = format!("http://127.0.0.1:{}", free_port());
    let nobody = error(&fields(&[], &["--server", &nobody]).await);
    assert!(
        nobody.contains("onnection refused (os error 111); is `heliostat serve` running"),
        "{nobody}"
    );
    let wrong = error(&fields(&[], &["--server", &server.url, "--upstream", "nobody"]).await);
    assert!(
        wrong.contains("HTTP 403: The target is not allowed: ") && !wrong.contains('{'),
        "{wrong}"
    );
}

#[tokio::test]
async fn misspelled_connection_details_are_refused_with_a_suggestion() {
    let mirror = Scripted::start(TestClock::at(NOW), |_, _| {
        Answer::json(json!({ "status": "OK", "_type": "TestConnectionResponse" }))
    })
    .await;
    let server = Server::start(&format!(
        "{DEMO}default = true\n[[upstream]]\nname = \"forwarding\"\nkind = \"mirror\"\nurls = [{:?}]\n",
        mirror.url
    ))
    .await;
    for (details, says) in [
        (
            json!({ "upsteam": "forwarding" }),
            "did you mean \"upstream\"?",
        ),
        (
            json!({ "Upstream": "forwarding" }),
            "did you mean \"upstream\"?",
        ),
        (
            json!({ "aws": { "region": "eu-west-1" } }),
            "Known are upstream, url, host",
        ),
        (json!({ "upstream": null }), "connectionDetails.upstream"),
        (
            json!({ "upstream": "demo", "\u{1b}[2J": 1 }),
            "connectionDetails.[2J",
        ),
    ] {
        let body = json!({ "connectionDetails": details });
        let reply = server.post("/api/connection", &body).await;
        assert_eq!(reply.status, 400, "{details} {}", reply.text);
        assert!(
            reply.json()["details"].as_str().unwrap().contains(says),
            "{}",
            reply.text
        );
    }
    for details in [
        json!({}),
        json!({ "requestTimeout": 5000, "nan_interpretation": "ZERO" }),
        json!({ "upstream": "forwarding", "anything": { "of": "its own" } }),
    ] {
        let body = json!({ "connectionDetails": details });
        let reply = server.post("/api/connection", &body).await;
        assert_eq!(
            (reply.status, reply.json()["status"].as_str()),
            (200, Some("OK")),
            "{details}"
        );
    }
}

#[tokio::test]
async fn a_source_that_answers_other_buckets_is_named_in_cache_status() {
    let source = Scripted::start(TestClock::at(NOW), |_, seen| {
        let start = seen.json()["query"]["startTime"].as_i64().unwrap();
        // 14.4 minutes, whatever was requested.
        let points: Vec<Value> = (0..4)
            .map(|n| start + n * 864_000)
            .map(|t| json!([1.5, t, t + 864_000]))
            .collect();
        Answer::json(json!({
            "telemetry": {
                "points": points, "dataFormat": ["value", "startTimestamp", "endTimestamp"],
                "isPartial": false, "_type": "AggregatedMetricTelemetry",
            },
            "_type": "MetricsResponse",
        }))
    })
    .await;
    let server = Server::start_at(
        &format!("[[upstream]]\nname = \"coarse\"\nkind = \"mirror\"\nurls = [{:?}]\naggregate = \"upstream\"\n", source.url),
        TestClock::at(NOW),
    )
    .await;
    let query = json!({
        "connectionDetails": {},
        "query": {
            "conditions": [{ "key": "a", "value": "b" }], "startTime": NOW - HOUR, "endTime": NOW,
            "aggregation": { "method": "MEAN", "bucketSizeMillis": 600_000 },
        },
    });
    let reply = server.post("/api/metric", &query).await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    assert_eq!(
        reply.header("cache-status"),
        "heliostat; fwd=miss; detail=\"the source answered other buckets\""
    );
}

#[tokio::test]
async fn pages_of_values_name_each_once() {
    let server = Server::start(DEMO).await;
    let page = async |offset: usize, limit: usize| -> Vec<String> {
        let field = json!({ "fieldName": "host", "fieldType": "STRING", "classified": false });
        let query = json!({ "conditions": [], "field": field, "offset": offset, "limit": limit });
        let body = json!({ "connectionDetails": {}, "query": query });
        let reply = server.post("/api/field/value", &body).await;
        assert_eq!(reply.status, 200, "{}", reply.text);
        let values = reply.json()["values"].as_array().unwrap().clone();
        values
            .iter()
            .map(|v| v["value"].as_str().unwrap().to_owned())
            .collect()
    };
    let all = page(0, 1000).await;
    assert!(all.len() > 3, "{all:?}");
    for limit in 1..all.len() {
        let mut named: Vec<String> = Vec::new();
        for offset in (0..all.len() * 2).step_by(limit) {
            named.extend(page(offset, limit).await);
        }
        for value in &all {
            let covers = |n: &&String| {
                n.strip_suffix('*')
                    .map_or(*n == value, |start| value.starts_with(start))
            };
            assert_eq!(
                named.iter().filter(covers).count(),
                1,
                "{value} by {limit}: {named:?}"
            );
        }
    }
}

#[tokio::test]
async fn metrics_are_there_from_the_start() {
    let (ours, folder) = (Authority::new(), tempfile::tempdir().unwrap());
    ours.sign_to(folder.path(), "server");
    let toml = format!(
        "[server.tls]\ncert = {:?}\nkey = {:?}\n[[upstream]]\nname = \"from-the-start\"\nkind = \"demo\"\n[cache]\nmemory = \"3MiB\"\n",
        folder.path().join("server.crt"),
        folder.path().join("server.key"),
    );
    let server = Server::start(&toml).await;
    let client = heliostat::upstream::Http::builder();
    let client = client
        .tls_danger_accept_invalid_certs(true)
        .build()
        .unwrap();
    let text = client
        .get(format!("{}/metrics", server.url))
        .send()
        .await
        .unwrap()
        .text()
        .await
        .unwrap();
    for series in [
        "heliostat_upstream_requests_total{upstream=\"from-the-start\",outcome=\"timeout\"} 0",
        "heliostat_file_errors{what=\"server.tls\"} 0",
        "heliostat_cache_limit_bytes ",
        "heliostat_certificate_expiry_timestamp_seconds{what=\"server.tls\"} ",
        "process_resident_memory_bytes ",
        "process_open_fds ",
        "process_cpu_seconds_total ",
        "process_start_time_seconds ",
    ] {
        assert!(text.contains(series), "{series}: {text}");
    }
    assert!(
        text.contains("heliostat_requests_total{api=\"mirror\",method=\"metric\",status=\"200\"}")
    );
    assert!(
        text.lines()
            .any(|l| l.starts_with("heliostat_build_info{version=") && l.contains("commit="))
    );
    let expiry = crate::support::metric(
        &text,
        "heliostat_certificate_expiry_timestamp_seconds{what=\"server.tls\"}",
    );
    assert!(expiry > 1.7e9, "{expiry}");
}

#[test]
fn the_log_says_at_the_start_what_serves_and_that_numbers_are_invented() {
    let folder = tempfile::tempdir().unwrap();
    let started = |toml: Option<&str>| {
        if let Some(toml) = toml {
            std::fs::write(folder.path().join("config.toml"), toml).unwrap();
        }
        let mut child = Command::new(env!("CARGO_BIN_EXE_heliostat"))
            .current_dir(folder.path())
            .env("HELIOSTAT_SERVER__LISTEN", "127.0.0.1:0")
            .env("HELIOSTAT_LOG__FORMAT", "json")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = std::io::BufRead::lines(std::io::BufReader::new(child.stderr.take().unwrap()));
        let mut said = Vec::new();
        for line in lines.map_while(Result::ok) {
            said.push(line);
            if said.iter().any(|l| l.contains("listening")) && (toml.is_none() || said.len() > 1) {
                break;
            }
        }
        let _ = child.kill();
        let _ = child.wait();
        said.join("\n")
    };
    let bare = started(None);
    assert!(
        bare.contains(concat!("\"version\":\"", env!("CARGO_PKG_VERSION"), "\"")),
        "{bare}"
    );
    assert!(
        bare.contains("none, the built-in demonstration is served"),
        "{bare}"
    );
    let beside = format!(
        "{DEMO}[[upstream]]\nname = \"real\"\nkind = \"prometheus\"\nurls = [\"http://127.0.0.1:9\"]\n"
    );
    let said = started(Some(&beside));
    assert!(said.contains("\"config\":\"config.toml\""), "{said}");
    assert!(
        said.contains("\"level\":\"WARN\"")
            && said.contains(
                "whose numbers are invented: set default = true in the section of \\\"real\\\""
            ),
        "{said}"
    );
}
