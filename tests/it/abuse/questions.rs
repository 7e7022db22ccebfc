//! Attacks by what is asked.

use std::time::Duration;

use futures_util::future::join_all;

use super::Target;
use super::raw::{ATTACKER, exchange, post};

/// A GET of `path` by the attacker, with `headers`.
async fn get(target: &Target, path: &str, headers: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}\r\n");
    exchange(target.address, ATTACKER, request.as_bytes())
        .await
        .unwrap()
}

/// A fine step first, and then windows of as many of its chunks as there can be.
pub(super) async fn fine_and_coarse_steps(target: &Target) {
    let ask = |times: &'static str| async move {
        let path = format!("/prometheus/prom/api/v1/query_range?query=SERIES1&{times}");
        get(target, &path, "").await
    };
    for times in [
        "start=1600000000&end=1600000000&step=0.001",
        "start=0&end=9000000000&step=9000000000",
        "start=1510000000&end=1600000000&step=45000000",
        "start=0&end=253402300799&step=100000000000",
    ] {
        for _ in 0..3 {
            let answer = ask(times).await;
            let status = answer.split(' ').nth(1).unwrap_or_default();
            assert!(
                ["200", "400", "422"].contains(&status),
                "{times}: {answer:.300}"
            );
        }
    }
}

/// Regular expressions that take seconds to compile.
pub(super) async fn costly_matchers(target: &Target) {
    let many: Vec<_> = (0..40).map(|n| format!(r#"l{n}=~"\\w{{100}}""#)).collect();
    let classes: Vec<_> = (0..20)
        .map(|n| format!(r#"l{n}=~"\\pL{{1,900}}a{n}|""#))
        .collect();
    let asked = (0..16).map(|n| {
        let matchers = if n % 2 == 0 { &many } else { &classes };
        let query = format!("up{{n=\"{n}\",{}}}", matchers.join(","));
        let form = [("query", query.as_str()), ("time", "1600000000")];
        let form = url::form_urlencoded::Serializer::new(String::new())
            .extend_pairs(form)
            .finish();
        async move {
            let path = format!("/prometheus/prom/api/v1/query?{form}");
            let answer = get(target, &path, "").await;
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer:.300}");
        }
    });
    join_all(asked).await;
}

/// Hosts that no name server knows, and that take long to compare with a pattern.
pub(super) async fn long_hosts(target: &Target) {
    for length in [100, 253, 254, 4_000, 8_000] {
        let host = "a.".repeat(length / 2);
        let body =
            format!(r#"{{"connectionDetails":{{"url":"http://{host}:9090"}},"query":{{}}}}"#);
        for _ in 0..20 {
            let answer = exchange(target.address, ATTACKER, &post("/api/field/name", &body)).await;
            let answer = answer.unwrap();
            assert!(answer.starts_with("HTTP/1.1 4"), "{length}: {answer:.300}");
        }
    }
}

/// Forms of a mebibyte in the worst shapes.
pub(super) async fn forms(target: &Target) {
    let filled = |head: &str, part: &str| {
        format!(
            "{head}{}",
            part.repeat(((1 << 20) - head.len()) / part.len())
        )
    };
    for (form, status) in [
        (filled("query=a&", "a&"), "200"),
        (filled("", "query=a&"), "400"),
        (filled("query=", "%ff"), "400"),
    ] {
        let request = format!(
            "POST /prometheus/prom/api/v1/query HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
             content-type: application/x-www-form-urlencoded\r\ncontent-length: {}\r\n\r\n{form}",
            form.len()
        );
        let asked = (0..4).map(|_| exchange(target.address, ATTACKER, request.as_bytes()));
        for answer in join_all(asked).await {
            let answer = answer.unwrap();
            let expected = format!("HTTP/1.1 {status}");
            // Not all of them find room at once.
            let refused = answer.starts_with("HTTP/1.1 503");
            assert!(
                answer.starts_with(&expected) || refused,
                "{form:.40}: {answer:.400}"
            );
        }
    }
}

/// A store that says once that it takes one more call until tomorrow.
pub(super) async fn limit_nearly_used_up(target: &Target) {
    let ask = |n: usize| async move {
        let path = format!("/prometheus/rated/api/v1/query?query=RATED{n}&time=1600000000");
        let begun = std::time::Instant::now();
        let answer = get(target, &path, "").await;
        (answer, begun.elapsed())
    };
    let (first, _) = ask(0).await;
    assert!(first.starts_with("HTTP/1.1 200"), "{first:.300}");
    for (answer, took) in join_all((1..30).map(ask)).await {
        if answer.starts_with("HTTP/1.1 200") {
            continue;
        }
        let wait = answer.lines().find_map(|l| l.strip_prefix("retry-after: "));
        let wait: u64 = wait.and_then(|w| w.trim().parse().ok()).unwrap_or(0);
        assert!((1..=300).contains(&wait), "{answer:.400}");
        assert!(
            took < Duration::from_secs(5),
            "it is known at once: {took:?}"
        );
    }
}

/// Trace headers that a store would refuse.
pub(super) async fn trace_headers(target: &Target) {
    let state = format!("tracestate: a={}\r\n", "b".repeat(9_000));
    let parents = [
        "traceparent: yyyy\r\n".to_owned(),
        format!("traceparent: {}\r\n", "0".repeat(30_000)),
        format!(
            "traceparent: 00-{}-{}-01\r\n",
            "a".repeat(32),
            "b".repeat(16)
        ),
    ];
    for (n, parent) in parents.iter().cycle().take(30).enumerate() {
        let path = format!("/prometheus/prom/api/v1/query?query=trace{n}&time=1600000000");
        let answer = get(target, &path, &format!("{parent}{state}")).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer:.300}");
    }
}

/// An error of 60 MB, one of several lines, and one that is the client's own.
pub(super) async fn errors(target: &Target) {
    for (error, status, times) in [
        // The last ones open the breaker.
        ("ERROR422", "422", 3),
        ("ERROR503", "50", 1),
        ("ERROR500", "50", 3),
    ] {
        for n in 0..times {
            let path = format!("/prometheus/prom/api/v1/query?query={error}x{n}&time=1600000000");
            let answer = get(target, &path, "").await;
            let expected = format!("HTTP/1.1 {status}");
            assert!(answer.starts_with(&expected), "{error}: {answer:.300}");
            assert!(answer.len() < 5_000, "{error}: {} bytes", answer.len());
        }
    }
    // The log is written by a thread of its own.
    let mut log = String::new();
    for _ in 0..100 {
        log = std::fs::read_to_string(&target.log).unwrap();
        if log.contains("upstream failure") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(log.contains("upstream failure"), "{log:.2000}");
    assert!(log.len() < 64_000, "{} bytes are logged", log.len());
    for line in log.lines() {
        assert!(line.len() < 2_000, "{line:.2000}");
        assert!(
            line.starts_with("20") && !line.starts_with("2026-01-01T"),
            "{line}"
        );
        assert!(!line.contains('\u{1b}'), "{line:?}");
        assert!(!line.contains("mistake"), "the client's own: {line}");
    }
}

/// A tenant that is read from a file: what was cached for the one before is not the other's.
pub(super) async fn changing_tenant(target: &Target) {
    let ask = || {
        get(
            target,
            "/prometheus/tenants/api/v1/query?query=TENANT&time=1600000000",
            "",
        )
    };
    for tenant in ["one", "two"] {
        std::fs::write(&target.tenant, tenant).unwrap();
        let expected = format!("\"{tenant}\"");
        let mut answer = String::new();
        // It is looked for every five seconds.
        for _ in 0..300 {
            answer = ask().await;
            if answer.contains(&expected) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert!(answer.contains(&expected), "{answer}");
        for _ in 0..10 {
            let again = ask().await;
            assert!(
                again.contains(&expected) && again.contains("heliostat; hit"),
                "{again}"
            );
        }
    }
}
