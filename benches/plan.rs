//! Cost of planning: telling that a range is a hit, and finding what is missing where it is not,
//! with one segment, with history and an expired tail, and with coverage in many pieces. Cost of reading
//! expressions of PromQL, which comes before it: usual ones, and 64 KiB of what is slow to read.
//!
//! `cargo bench --bench plan`, or `-- --quick --noplot` for a run of a few seconds. A criterion
//! filter picks a part, such as `-- fresh`.
#![allow(missing_docs, clippy::unwrap_used)]

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use heliostat::engine::Lookup;
use heliostat::engine::chunk::Segment;
use heliostat::engine::plan::{Now, Policy, fresh, plan};
use heliostat::model::{Freshness, RangeSet, Step, TimeRange};
use heliostat::promql::read;

const MINUTE: i64 = 60_000;
const NOW: i64 = 1_700_000_040_000;
/// A window of 1,440 minutes.
const START: i64 = NOW - 1440 * MINUTE;

/// A coverage of the window, and the expected result of its look-up.
struct Case {
    name: String,
    coverage: Vec<Segment>,
    lookup: Lookup,
}

fn segment(start: i64, end: i64, age: u64) -> Segment {
    Segment {
        range: TimeRange::new(start, end).unwrap(),
        fetched: moment().monotonic - Duration::from_secs(age),
        settled: end < NOW - 2 * MINUTE,
    }
}

fn moment() -> Now {
    Now {
        wall: NOW,
        monotonic: Duration::from_secs(1_000_000),
    }
}

fn policy() -> Policy {
    let minute = Step::new(MINUTE).unwrap();
    Policy {
        freshness: Freshness {
            settle: 2 * MINUTE,
            refresh: Duration::from_secs(10),
            recheck: Duration::ZERO,
            max_stale: Duration::from_secs(3600),
            stale_while_revalidate: Duration::ZERO,
            history_ttl: Duration::from_secs(7 * 86_400),
            metadata_ttl: Duration::from_secs(60),
        },
        ahead: Duration::from_secs(10),
        grid: minute,
        cell: minute,
        metered: false,
    }
}

/// A window with this many known segments and as many gaps between them.
fn fragments(n: i64) -> Case {
    let line = |i: i64| START + i * 1440 / (2 * n) * MINUTE;
    let known = (0..2 * n).step_by(2);
    Case {
        name: "in pieces, as many missing".to_owned(),
        coverage: known.map(|i| segment(line(i), line(i + 1), 1)).collect(),
        lookup: Lookup::Partial,
    }
}

fn cases() -> Vec<Case> {
    let history = segment(START - 1440 * MINUTE, NOW - 4 * MINUTE, 100);
    let tail = |age| segment(NOW - 4 * MINUTE, NOW + MINUTE, age);
    let hit = Case {
        name: "fresh hit".to_owned(),
        coverage: vec![history, tail(5)],
        lookup: Lookup::Hit,
    };
    let expired = Case {
        name: "expired tail".to_owned(),
        coverage: vec![history, tail(15)],
        lookup: Lookup::Stale,
    };
    let mut cases = vec![hit, expired];
    cases.extend([4, 40, 400].map(fragments));
    cases
}

fn planning(criterion: &mut Criterion) {
    let (window, policy, now) = (TimeRange::new(START, NOW).unwrap(), policy(), moment());
    let none = RangeSet::new();
    let cases = cases();
    let mut group = criterion.benchmark_group("fresh");
    for case in &cases {
        let coverage = &case.coverage;
        let found = fresh(&window, coverage.iter(), &policy, &now);
        assert_eq!(found.is_some(), case.lookup == Lookup::Hit);
        let id = BenchmarkId::new(&case.name, coverage.len());
        group.bench_function(id, |b| {
            b.iter(|| fresh(black_box(&window), coverage.iter(), &policy, &now));
        });
    }
    group.finish();
    let mut group = criterion.benchmark_group("plan");
    for case in &cases {
        let coverage = &case.coverage;
        let found = plan(&window, coverage, &none, &policy, &now);
        assert_eq!(found.lookup, case.lookup);
        let id = BenchmarkId::new(&case.name, coverage.len());
        group.bench_function(id, |b| {
            b.iter(|| plan(black_box(&window), coverage, &none, &policy, &now));
        });
    }
    group.finish();
}

/// Expressions of about 64 KiB that made readers slow, and some that people write.
fn expressions() -> Vec<(&'static str, String)> {
    const LENGTH: usize = 64 << 10;
    let hosts: Vec<_> = (0..20_000).map(|n| format!("h{n}")).collect();
    let usual = r#"sum by (job) (rate(http_requests_total{code=~"5..", job!=""}[5m])) / 2"#;
    vec![
        ("usual", usual.to_owned()),
        (
            "classes",
            vec![r#"up{l0=~"\\pL{1,900}a0|"}"#; 300].join(" or "),
        ),
        (
            "20,000 hosts",
            format!("up{{host=~\"{}\"}}", hosts.join("|")),
        ),
        ("sums", format!("a{}", "+a".repeat(LENGTH / 2))),
        ("signs", format!("{}a", "-".repeat(LENGTH))),
        ("parentheses", "(".repeat(LENGTH)),
        ("matchers", format!("a{{{}}}", "b=\"\",".repeat(LENGTH / 5))),
        (
            "groups",
            format!("a{{b=~\"{}\"}}", "(a|".repeat(LENGTH / 3)),
        ),
        ("comments", "#(\n".repeat(LENGTH / 3)),
        ("bytes", "\u{fffd}".repeat(LENGTH / 3)),
    ]
}

fn reading(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("expression");
    for (name, text) in &expressions() {
        group.throughput(criterion::Throughput::Bytes(text.len() as u64));
        group.bench_function(*name, |b| b.iter(|| read(black_box(text))));
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .without_plots()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1));
    targets = planning, reading
}
criterion_main!(benches);
