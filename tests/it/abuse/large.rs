//! Attacks that make keys and answers expensive.

use std::time::Duration;

use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt};

use super::Target;
use super::raw::{ATTACKER, download, exchange, post};

/// As many keys of the largest size as possible: they evict others and are charged for their
/// memory.
pub(super) async fn keys(target: &Target) {
    let times = r#""startTime":1600000000000,"endTime":1600000600000"#;
    let field = r#""field":{"fieldName":"a","fieldType":"STRING"}"#;
    let request = |n: usize| {
        let (details, value) = (format!("{n:x>15000}"), format!("{n:x>8000}"));
        match n % 4 {
            0 => post(
                "/api/metric",
                &format!(r#"{{"connectionDetails":{{"x":"{details}"}},"query":{{{times}}}}}"#),
            ),
            1 => post(
                "/api/field/name",
                &format!(r#"{{"connectionDetails":{{"x":"{details}"}},"query":{{}}}}"#),
            ),
            2 => post(
                "/api/field/value",
                &format!(
                    r#"{{"connectionDetails":{{}},"query":{{{field},"fieldValuePrefix":"{value}"}}}}"#
                ),
            ),
            _ => {
                let (tenant, filler) = (format!("{n:x>256}"), "f".repeat(40_000));
                format!(
                    "GET /prometheus/prom/api/v1/query?query=a&time=1600000000 HTTP/1.1\r\nhost: x\r\n\
                     x-scope-orgid: {tenant}\r\nx-filler: {filler}\r\nconnection: close\r\n\r\n"
                )
                .into_bytes()
            }
        }
    };
    let asked = stream::iter(0..4_000).map(|n| async move {
        let answer = exchange(target.address, ATTACKER, &request(n))
            .await
            .unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{n}: {answer:.300}");
    });
    asked.buffer_unordered(16).collect::<Vec<()>>().await;
    let cached = target.metric("heliostat_cache_bytes").await;
    let memory = (target.memory << 20) as f64;
    assert!(
        cached > memory / 2.0 && cached <= memory,
        "{cached} bytes of keys"
    );
}

/// One bucket over all of time, computed from raw points by Heliostat.
pub(super) async fn all_of_time(target: &Target) {
    let calls = target.store.calls();
    for (start, end) in [
        (0, 253_402_300_799_999_i64),
        (-9_000_000_000_000, 9_000_000_000_000),
    ] {
        let size = end - start;
        let body = format!(
            r#"{{"connectionDetails":{{"upstream":"local"}},"query":{{"startTime":{start},"endTime":{end},"aggregation":{{"method":"MEAN","bucketSizeMillis":{size}}}}}}}"#
        );
        for _ in 0..20 {
            let answer = exchange(target.address, ATTACKER, &post("/api/metric", &body)).await;
            let answer = answer.unwrap();
            assert!(answer.starts_with("HTTP/1.1 4"), "{answer:.300}");
        }
    }
    assert_eq!(target.store.calls(), calls, "the store is not asked");
}

/// Answers of the store with very many small strings, to each API.
pub(super) async fn tiny_strings(target: &Target) {
    let field = r#""field":{"fieldName":"TINY","fieldType":"STRING"}"#;
    let times = r#""startTime":1600000000000,"endTime":1600000600000"#;
    let prom = r#"{"upstream":"prom"}"#;
    let requests = [
        post(
            "/api/metric",
            &format!(
                r#"{{"connectionDetails":{prom},"query":{{{times},"conditions":[{{"key":"__gauge__","value":"TINY"}}]}}}}"#
            ),
        ),
        post(
            "/api/field/value",
            &format!(r#"{{"connectionDetails":{prom},"query":{{{field}}}}}"#),
        ),
        post(
            "/api/field/value",
            &format!(r#"{{"connectionDetails":{{}},"query":{{{field}}}}}"#),
        ),
        post("/api/field/name", r#"{"connectionDetails":{"x":"TINY"},"query":{}}"#),
        b"GET /prometheus/prom/api/v1/query_range?query=TINY&start=1600000000&end=1600000600&step=60 HTTP/1.1\r\n\
          host: x\r\nconnection: close\r\n\r\n"
            .to_vec(),
    ];
    for request in &requests {
        let answer = exchange(target.address, ATTACKER, request).await.unwrap();
        let status = answer.split(' ').nth(1).unwrap_or_default().to_owned();
        assert!(
            ["422", "502"].contains(&&*status),
            "{}: {answer:.400}",
            String::from_utf8_lossy(request)
        );
    }
}

/// Hits of long lists and answers, which take almost no work.
pub(super) async fn large_hits(target: &Target) {
    const HITS: u32 = 20;
    let field = r#""field":{"fieldName":"MANY","fieldType":"STRING"}"#;
    let list = format!(r#"{{"connectionDetails":{{}},"query":{{{field}}}}}"#);
    let instant = "GET /prometheus/prom/api/v1/query?query=SIZE12&time=1600000000 HTTP/1.1\r\nhost: x\r\n\
                   accept-encoding: gzip\r\nconnection: close\r\n\r\n";
    for (what, request) in [
        ("250,000 values", post("/api/field/value", &list)),
        ("12 MB, gzip", instant.into()),
    ] {
        let (head, first) = download(target.address, ATTACKER, &request).await.unwrap();
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        let before = target.cpu();
        for _ in 0..HITS {
            let (head, length) = download(target.address, ATTACKER, &request).await.unwrap();
            assert!(head.contains("heliostat; hit"), "{head}");
            assert_eq!(length, first);
        }
        let each = (target.cpu() - before) / HITS;
        println!("D18: a hit of {what}, {first} bytes: {each:?} of CPU");
        assert!(each < Duration::from_millis(50), "{what}: {each:?}");
    }
}

/// The MiB that an answer of [`large_misses`] weighs in the cache.
const REPLACED: f64 = 31.7;

/// Sixteen concurrent range queries, of 3,000 series and 300 points each.
pub(super) async fn large_misses(target: &Target) {
    let request = |n: usize| {
        format!(
            "GET /prometheus/prom/api/v1/query_range?query=SERIES3000x{n}&start=1600000000&end=1600004485&step=15 \
             HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
        )
    };
    let asked = (0..16).map(|n| async move {
        download(target.address, ATTACKER, request(n).as_bytes())
            .await
            .unwrap()
    });
    let mut answered = 0;
    for (head, length) in join_all(asked).await {
        if head.starts_with("HTTP/1.1 200") {
            assert!(length > 15_000_000, "{length}");
            answered += 1;
        } else {
            // A busy machine may not read all of them in time.
            println!("E6: {head}");
            assert!(head.starts_with("HTTP/1.1 50"), "{head}");
        }
    }
    println!("E6: {answered} of 16 are answered");
    assert!(answered > 0);
    // Answers whose clients were refused are read to their end.
    let mut reading = f64::INFINITY;
    for _ in 0..300 {
        reading = target.metric("heliostat_upstream_answer_bytes").await;
        if reading < 1.0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(
        reading < 1.0,
        "{reading} bytes of answers of upstreams are never given back"
    );
    // Memory of requests in flight is released; only cached data stays, and what the last answer has replaced:
    // the allocator keeps that for the next one.
    let cached = target.metric("heliostat_cache_bytes").await / f64::from(1 << 20);
    let most = ((cached + REPLACED) * 1.3) as u64 + super::PROCESS;
    let mut resident = target.resident();
    for _ in 0..50 {
        if resident <= most {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        resident = target.resident();
    }
    println!("E6: {resident} MiB afterwards, of which {cached:.0} MiB are cached");
    assert!(resident <= most, "{resident} MiB stay, {most} are allowed");
}
