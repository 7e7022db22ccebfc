//! Cost of keeping points: packing, unpacking and rendering them, refreshing the tail of a full
//! chunk, a look-up, and compressing a block for clients, each compared with copying as many bytes.
//!
//! `cargo bench --bench cache`, or `-- --quick --noplot` for a run of some seconds. A criterion
//! filter picks a part, such as `-- pack`. It begins with how many bytes a point takes in each
//! form. A chunk has 8,192 points; longer columns are cut into chunks as the cache does.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::disallowed_methods
)]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{
    BatchSize, BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main,
};
use heliostat::adapters::Data;
use heliostat::app::App;
use heliostat::clock::SystemClock;
use heliostat::config;
use heliostat::engine::cache::ChunkCache;
use heliostat::engine::chunk::{Chunk, Frame, Piece};
use heliostat::engine::columns::Columns;
use heliostat::engine::lane::Lane;
use heliostat::engine::render::{BLOCK, Rendered};
use heliostat::model::{
    Details, Layout, MetricQuery, Points, Selector, Statistic, Step, TimeRange,
};
use heliostat::wire::encoding::{Encoding, Text};

const INTERVAL: i64 = 15_000;
/// Points per chunk.
const CHUNK: i64 = 8192;
/// The start of a chunk.
const START: i64 = 13_800 * CHUNK * INTERVAL;
const SIZES: [i64; 3] = [1_000, 30_000, 1_000_000];

/// The shape of values.
#[derive(Clone, Copy)]
enum Values {
    /// A gauge with two decimals that wanders.
    Gauge,
    /// Random doubles with all digits.
    Noise,
}

const VALUES: [(&str, Values); 2] = [
    ("two decimals", Values::Gauge),
    ("all digits", Values::Noise),
];

fn points(start: i64, n: i64, values: Values) -> Points {
    let mut state = 1u64;
    let mut level = 5000;
    let mut points = Points::with_capacity(n as usize);
    for i in 0..n {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        level = (level + (state >> 58) as i64 - 32).clamp(0, 10_000);
        let value = match values {
            Values::Gauge => level as f64 / 100.0,
            Values::Noise => (state >> 11) as f64 / (1u64 << 53) as f64 * 100.0,
        };
        points.push(start + i * INTERVAL, value);
    }
    points
}

/// Returns `n` points as columns of chunks.
fn chunks(n: i64, values: Values) -> Vec<Points> {
    let part = |at: i64| points(START + at * INTERVAL, (n - at).min(CHUNK), values);
    (0..n).step_by(CHUNK as usize).map(part).collect()
}

fn layout() -> Layout {
    Layout::Buckets {
        statistic: Statistic::Mean,
        size: Step::new(INTERVAL).unwrap(),
    }
}

fn frame() -> Frame {
    Frame {
        span: TimeRange::new(START, START + CHUNK * INTERVAL).unwrap(),
        layout: layout(),
        grain: Duration::from_secs(1),
    }
}

/// Returns `points` as the result of a fetch that was made at `fetched` after the start.
fn piece(points: Points, from: i64, to: i64, fetched: u64) -> Piece {
    let at = |i: i64| START + i * INTERVAL;
    Piece::fetched(
        Data::Points(points),
        TimeRange::new(at(from), at(to)).unwrap(),
        Duration::from_secs(fetched),
        at(to - 8),
        Step::new(INTERVAL).unwrap(),
    )
}

fn throughput(group: &mut BenchmarkGroup<'_, WallTime>, points: i64, bytes: i64) {
    group.throughput(Throughput::ElementsAndBytes {
        elements: points as u64,
        bytes: bytes as u64,
    });
}

/// Prints how many bytes a point takes.
fn sizes() {
    println!("bytes a point of a full chunk, 15 s apart");
    for (name, values) in VALUES {
        let points = points(START, CHUNK, values);
        let each = |bytes: usize| bytes as f64 / CHUNK as f64;
        let packed = |level| packed(&points, level);
        let text = Rendered::of(&points, layout());
        let all = text.slice(0..CHUNK as usize, false);
        let compressed = |encoding: Encoding| {
            let blocks = (0..CHUNK as usize).step_by(BLOCK);
            let block = |at| encoding.pack(&text.slice(at..at + BLOCK, false)).unwrap();
            blocks.map(|at| block(at).heap_bytes()).sum()
        };
        println!(
            "  {name}: new {:.2}, packed {:.2} (values by pco at level 1 {:.3}, 2 {:.3}, 4 {:.3}, 8 {:.3}), text {:.1} and its offsets 4, gzip {:.1}, zstd {:.1}",
            each(Columns::of(points.clone(), false).heap_bytes()),
            each(Columns::of(points.clone(), true).heap_bytes()),
            each(packed(1).len()),
            each(packed(2).len()),
            each(packed(4).len()),
            each(packed(8).len()),
            each(all.len()),
            each(compressed(Encoding::Gzip)),
            each(compressed(Encoding::Zstd)),
        );
    }
}

/// Returns the values packed by pco at a level.
fn packed(points: &Points, level: usize) -> Vec<u8> {
    let config = pco::ChunkConfig::default().with_compression_level(level);
    pco::standalone::simple_compress(points.values(), &config).unwrap()
}

fn copying(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("memcpy");
    for n in SIZES {
        let points = points(START, n, Values::Gauge);
        let (mut times, mut values) = (points.times().to_vec(), points.values().to_vec());
        throughput(&mut group, n, n * 16);
        group.bench_function(BenchmarkId::new("columns", n), |b| {
            b.iter(|| {
                black_box(&mut times).copy_from_slice(black_box(points.times()));
                black_box(&mut values).copy_from_slice(black_box(points.values()));
            });
        });
    }
    group.finish();
}

/// Packs a cold chunk into history, and reads history.
fn packing(criterion: &mut Criterion) {
    for (name, values) in VALUES {
        let mut group = criterion.benchmark_group(format!("pack/{name}"));
        for n in SIZES {
            let chunks = chunks(n, values);
            throughput(&mut group, n, n * 16);
            group.bench_function(BenchmarkId::new("pack and check", n), |b| {
                b.iter_batched(
                    || chunks.clone(),
                    |chunks| -> Vec<Columns> {
                        chunks.into_iter().map(|c| Columns::of(c, true)).collect()
                    },
                    BatchSize::LargeInput,
                );
            });
            let packed: Vec<Columns> = chunks.into_iter().map(|c| Columns::of(c, true)).collect();
            group.bench_function(BenchmarkId::new("unpack", n), |b| {
                b.iter(|| {
                    for chunk in &packed {
                        black_box(chunk.points());
                    }
                });
            });
        }
        let full = points(START, CHUNK, values);
        for level in [1, 2, 4, 8] {
            throughput(&mut group, CHUNK, CHUNK * 8);
            group.bench_function(BenchmarkId::new("values by pco at level", level), |b| {
                b.iter(|| packed(black_box(&full), level));
            });
        }
        group.finish();
    }
}

fn rendering(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("render");
    for n in SIZES {
        let chunks = chunks(n, Values::Gauge);
        let bytes = |c: &Points| Rendered::of(c, layout()).slice(0..c.len(), false).len() as i64;
        throughput(&mut group, n, chunks.iter().map(bytes).sum());
        group.bench_function(BenchmarkId::new("buckets", n), |b| {
            b.iter(|| {
                for chunk in &chunks {
                    black_box(Rendered::of(chunk, layout()));
                }
            });
        });
    }
    group.finish();
}

/// Fetches the newest 12 points of a full chunk again.
fn refreshing(criterion: &mut Criterion) {
    const TAIL: i64 = 12;
    let mut group = criterion.benchmark_group("refresh of the tail");
    for n in [1_000, CHUNK] {
        let old = piece(points(START, n, Values::Gauge), 0, n, 100);
        let from = START + (n - TAIL) * INTERVAL;
        let new = piece(points(from, TAIL, Values::Noise), n - TAIL, n, 110);
        let frame = frame();
        throughput(&mut group, n, n * 16);
        let chunk = Chunk::merged(None, &old, &frame);
        group.bench_function(BenchmarkId::new("not rendered", n), |b| {
            b.iter(|| Chunk::merged(Some(&chunk), black_box(&new), &frame));
        });
        chunk.rendered(layout());
        group.bench_function(BenchmarkId::new("rendered", n), |b| {
            b.iter(|| Chunk::merged(Some(&chunk), black_box(&new), &frame));
        });
    }
    group.finish();
}

/// A lane of buckets of some upstream.
fn lane() -> Lane {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let text =
        "[[upstream]]\nname = \"source\"\nkind = \"mirror\"\nurls = [\"http://127.0.0.1:1\"]";
    let config = config::parse(text, "bench", &std::collections::BTreeMap::new()).unwrap();
    let app = runtime.block_on(App::build(&config, Arc::new(SystemClock::default())));
    let app = app.unwrap();
    let upstream = app.engine.upstreams().first().unwrap().clone();
    let query = MetricQuery {
        selector: Selector::new(Vec::new()),
        metric_field: None,
        range: TimeRange::ALL,
        limit: None,
        layout: layout(),
    };
    Lane::of(upstream, &Details::default(), query)
}

fn looking_up(criterion: &mut Criterion) {
    let (lane, cache) = (lane(), ChunkCache::new(64 << 20));
    let n = 5 * CHUNK;
    let piece = piece(points(START, n, Values::Gauge), 0, n, 100);
    cache.store(&lane, &piece);
    let mut group = criterion.benchmark_group("look-up");
    for chunks in [1, 5] {
        let range = TimeRange::new(START, START + chunks * CHUNK * INTERVAL).unwrap();
        // The newest chunk has a tail, too.
        assert!(cache.look_up(&lane, &range).segments().count() >= chunks as usize);
        group.bench_function(BenchmarkId::new("chunks", chunks), |b| {
            b.iter(|| cache.look_up(black_box(&lane), &range));
        });
    }
    group.finish();
}

/// Compresses blocks for clients that accept compression.
fn compressing(criterion: &mut Criterion) {
    for (name, values) in VALUES {
        let mut group = criterion.benchmark_group(format!("compress a block/{name}"));
        let points = points(START, BLOCK as i64, values);
        let text = Rendered::of(&points, layout()).slice(0..BLOCK, false);
        throughput(&mut group, BLOCK as i64, text.len() as i64);
        for encoding in [Encoding::Gzip, Encoding::Zstd] {
            group.bench_function(encoding.name().unwrap(), |b| {
                b.iter(|| encoding.pack(black_box(&text)));
            });
        }
        group.finish();
    }
}

/// Joins compressed blocks into an answer.
fn joining(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("join an answer");
    for blocks in [11, 236] {
        let points = points(START, (blocks * BLOCK) as i64, Values::Gauge);
        let text = Rendered::of(&points, layout());
        for encoding in [Encoding::Gzip, Encoding::Zstd] {
            let block = |i: usize| text.slice(i * BLOCK..(i + 1) * BLOCK, false);
            let packed = |i| Text::Packed(encoding.pack(&block(i)).unwrap());
            let parts: Vec<Text> = (0..blocks).map(packed).collect();
            let id = BenchmarkId::new(format!("{}, blocks", encoding.name().unwrap()), blocks);
            group.bench_function(id, |b| {
                b.iter(|| encoding.join(black_box(&parts).iter().cloned()));
            });
        }
    }
    group.finish();
}

fn benches(criterion: &mut Criterion) {
    sizes();
    copying(criterion);
    packing(criterion);
    rendering(criterion);
    refreshing(criterion);
    looking_up(criterion);
    compressing(criterion);
    joining(criterion);
}

criterion_group! {
    name = all;
    config = Criterion::default()
        .without_plots()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1));
    targets = benches
}
criterion_main!(all);
