//! Cost of points as JSON: writing them as an answer has them, and reading them from the answers of
//! a mirror and of Prometheus into columns, compared with copying the same text and with
//! `serde_json` writing the same points.
//!
//! `cargo bench --bench wire`, or `-- --quick --noplot` for a run of a few seconds. A criterion
//! filter picks a part, such as `-- read/`. Bytes are those of the text.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::fmt::Write as _;
use std::hint::black_box;
use std::time::Duration;

use bytes::Bytes;
use criterion::measurement::WallTime;
use criterion::{
    BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main,
};
use heliostat::adapters::mirror::Mirror;
use heliostat::adapters::prometheus::Prometheus;
use heliostat::adapters::{Adapter, Data, Fetch, FetchResult, Forwarded, Next, PartCall, Response};
use heliostat::model::{
    Condition, Layout, NanInterpretation, Points, Scalar, Selector, Statistic, Step, Test,
    TimeRange,
};
use heliostat::wire::mirror::response::{METRIC_HEAD, metric_tail};
use heliostat::wire::number::{write_bucket, write_point};
use http::{HeaderMap, StatusCode};

const INTERVAL: i64 = 15_000;
const START: i64 = 1_700_000_040_000;
const SIZES: [usize; 3] = [1_000, 30_000, 1_000_000];

/// Values with two decimals, as most gauges have, or with all digits of a double.
#[derive(Clone, Copy)]
enum Digits {
    Few,
    All,
}

/// A gauge that goes up and down at random.
fn points(n: usize, digits: Digits) -> Points {
    let mut state = 1u64;
    let mut points = Points::with_capacity(n);
    for i in 0..n as i64 {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let value = match digits {
            Digits::Few => (state >> 48) as f64 / 100.0,
            Digits::All => (state >> 11) as f64 / (1u64 << 53) as f64 * 100.0,
        };
        points.push(START + i * INTERVAL, value);
    }
    points
}

fn range(points: &Points) -> TimeRange {
    TimeRange::new(START, START + points.len() as i64 * INTERVAL).unwrap()
}

fn step() -> Step {
    Step::new(INTERVAL).unwrap()
}

/// Appends the points as `write` writes each, separated by commas.
fn join(out: &mut Vec<u8>, points: &Points, write: impl Fn(&mut Vec<u8>, i64, f64)) {
    for (i, (time, value)) in points.iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        write(out, time, value);
    }
}

fn both(
    criterion: &mut Criterion,
    name: &str,
    bench: fn(&mut BenchmarkGroup<'_, WallTime>, &Points),
) {
    for (digits, label) in [(Digits::Few, "two decimals"), (Digits::All, "all digits")] {
        let mut group = criterion.benchmark_group(format!("{name}/{label}"));
        for n in SIZES {
            bench(&mut group, &points(n, digits));
        }
        group.finish();
    }
}

fn bench(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    points: usize,
    bytes: usize,
    mut run: impl FnMut(),
) {
    group.throughput(Throughput::ElementsAndBytes {
        elements: points as u64,
        bytes: bytes as u64,
    });
    group.bench_function(BenchmarkId::new(name, points), |b| b.iter(&mut run));
}

fn write(group: &mut BenchmarkGroup<'_, WallTime>, points: &Points) {
    let n = points.len();
    let mut text = Vec::new();
    join(&mut text, points, write_point);
    let raw = text.clone();
    bench(group, "points", n, raw.len(), || {
        text.clear();
        join(black_box(&mut text), black_box(points), write_point);
    });
    bench(group, "memcpy of points", n, raw.len(), || {
        black_box(&mut text[..raw.len()]).copy_from_slice(black_box(&raw));
    });
    let size = step();
    let bucket = |out: &mut Vec<u8>, time, value| write_bucket(out, time, size, value);
    text.clear();
    join(&mut text, points, bucket);
    bench(group, "buckets", n, text.len(), || {
        text.clear();
        join(black_box(&mut text), black_box(points), bucket);
    });
    let pairs: Vec<(f64, i64)> = points.iter().map(|(time, value)| (value, time)).collect();
    bench(group, "points by serde_json", n, raw.len(), || {
        text.clear();
        serde_json::to_writer(black_box(&mut text), black_box(&pairs)).unwrap();
    });
}

fn fetch(layout: Layout, range: TimeRange) -> Fetch {
    Fetch {
        selector: Selector::new(vec![Condition {
            key: "__gauge__".into(),
            test: Test::Is(Scalar::String("g".into())),
        }]),
        metric_field: None,
        layout,
        range,
        nan: NanInterpretation::Omit,
        details: Forwarded::default(),
    }
}

/// Reads `body` as the adapter that made the request of `fetch` does.
fn read(adapter: &dyn Adapter, fetch: &Fetch, body: Vec<u8>) -> impl Fn() -> FetchResult + use<> {
    let PartCall::Alone(exchange) = adapter.series(fetch).unwrap().remove(0).call else {
        panic!("a call that others may share");
    };
    let response = Response {
        status: StatusCode::OK,
        headers: HeaderMap::new(),
        body: Bytes::from(body),
    };
    move || match (exchange.read)(black_box(&response)) {
        Ok(Next::Done(series)) => series,
        Ok(Next::More(_) | Next::Compare(_)) => panic!("another request"),
        Err(error) => panic!("{error}"),
    }
}

fn mirror_body(points: &Points, layout: Layout) -> Vec<u8> {
    let mut body = METRIC_HEAD.to_vec();
    match layout {
        Layout::Raw => join(&mut body, points, write_point),
        Layout::Buckets { size, .. } => {
            join(&mut body, points, |out, t, v| write_bucket(out, t, size, v));
        }
    }
    body.extend_from_slice(metric_tail(layout != Layout::Raw, false));
    body
}

/// Returns `points` distributed over `series` series.
fn prometheus_body(points: &Points, series: usize) -> Vec<u8> {
    let mut lists = vec![String::new(); series];
    for (i, (t, v)) in points.iter().enumerate() {
        let list = &mut lists[i % series];
        let comma = if list.is_empty() { "" } else { "," };
        write!(list, "{comma}[{}.{:03},\"{v}\"]", t / 1000, t % 1000).unwrap();
    }
    let series: Vec<String> = lists
        .iter()
        .enumerate()
        .map(|(i, list)| {
            format!(r#"{{"metric":{{"__name__":"g","host":"h{i}"}},"values":[{list}]}}"#)
        })
        .collect();
    let result = series.join(",");
    format!(r#"{{"status":"success","data":{{"resultType":"matrix","result":[{result}]}}}}"#)
        .into_bytes()
}

fn reads(group: &mut BenchmarkGroup<'_, WallTime>, points: &Points) {
    let (n, range) = (points.len(), range(points));
    let mirror = Mirror {
        api_key: None,
        page: u32::MAX,
    };
    let prometheus = Prometheus::new(step(), false, 20_000);
    let buckets = Layout::Buckets {
        statistic: Statistic::Mean,
        size: step(),
    };
    let cases: [(&str, &dyn Adapter, Layout, Vec<u8>); 4] = [
        (
            "mirror, raw",
            &mirror,
            Layout::Raw,
            mirror_body(points, Layout::Raw),
        ),
        (
            "mirror, buckets",
            &mirror,
            buckets,
            mirror_body(points, buckets),
        ),
        (
            "prometheus, 1 series",
            &prometheus,
            Layout::Raw,
            prometheus_body(points, 1),
        ),
        (
            "prometheus, 4 series",
            &prometheus,
            Layout::Raw,
            prometheus_body(points, 4),
        ),
    ];
    for (name, adapter, layout, body) in cases {
        let bytes = body.len();
        let read = read(adapter, &fetch(layout, range), body);
        let Data::Points(got) = read().data else {
            panic!("points are expected")
        };
        assert_eq!(&got, points);
        bench(group, name, n, bytes, || {
            black_box(read());
        });
    }
}

fn writing(criterion: &mut Criterion) {
    both(criterion, "write", write);
}

fn reading(criterion: &mut Criterion) {
    both(criterion, "read", reads);
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .without_plots()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1));
    targets = writing, reading
}
criterion_main!(benches);
