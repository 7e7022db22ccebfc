//! Cost of aggregation per point: each statistic over points 15 s apart, in buckets of 4 points, of
//! 240, and in one bucket, compared with copying the values.
//!
//! `cargo bench --bench aggregate`, or `-- --quick --noplot` for a run of a few seconds. A
//! criterion filter picks a part, such as `-- sum/`. Bytes are those of the values.
#![allow(missing_docs, clippy::unwrap_used)]

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use heliostat::aggregate::aggregate;
use heliostat::model::{MAX_TIME, Points, Statistic, Step, TimeRange};

const INTERVAL: i64 = 15_000;
const SIZES: [usize; 3] = [1_000, 30_000, 1_000_000];

/// A gauge with two decimals that goes up and down at random.
fn points(n: usize) -> Points {
    let mut state = 1u64;
    let mut points = Points::with_capacity(n);
    for i in 0..n as i64 {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        points.push(i * INTERVAL, (state >> 48) as f64 / 100.0);
    }
    points
}

fn statistics(criterion: &mut Criterion) {
    let buckets = [
        ("4", 4 * INTERVAL),
        ("240", 240 * INTERVAL),
        ("all", MAX_TIME),
    ];
    for (name, statistic) in [
        ("mean", Statistic::Mean),
        ("sum", Statistic::Sum),
        ("min", Statistic::Min),
        ("max", Statistic::Max),
        ("count", Statistic::Count),
        ("p95", Statistic::P95),
    ] {
        let mut group = criterion.benchmark_group(name);
        for n in SIZES {
            let points = points(n);
            group.throughput(throughput(n));
            for (label, millis) in buckets {
                let size = Step::new(millis).unwrap();
                let id = BenchmarkId::new(format!("bucket of {label}"), n);
                group.bench_function(id, |b| {
                    b.iter(|| aggregate(black_box(&points), statistic, size, &TimeRange::ALL));
                });
            }
        }
        group.finish();
    }
}

fn memcpy(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("memcpy");
    for n in SIZES {
        let points = points(n);
        let mut copy = vec![0.0; n];
        group.throughput(throughput(n));
        group.bench_function(BenchmarkId::from_parameter(n), |b| {
            b.iter(|| black_box(&mut copy).copy_from_slice(black_box(points.values())));
        });
    }
    group.finish();
}

fn throughput(n: usize) -> Throughput {
    Throughput::ElementsAndBytes {
        elements: n as u64,
        bytes: (n * size_of::<f64>()) as u64,
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .without_plots()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1));
    targets = memcpy, statistics
}
criterion_main!(benches);
