//! Writes samples to a real Prometheus by remote write 1.0, with as much of protocol buffers and
//! snappy as that needs.

use crate::prometheus::{Store, free_port, installed};

/// The value that marks the end of a series (`value.StaleNaN` in Prometheus).
pub(crate) const STALE: u64 = 0x7ff0_0000_0000_0002;

/// The sample of a series at a time.
pub(crate) enum Sample {
    Float(f64),
    /// A native histogram with this many observations in each of two buckets.
    Histogram(u64),
}

pub(crate) struct Written {
    pub(crate) labels: Vec<(&'static str, String)>,
    pub(crate) samples: Vec<(i64, Sample)>,
}

/// Starts a Prometheus without samples, or returns `None` if it is not installed.
pub(crate) async fn fresh() -> Option<Store> {
    if !installed("prometheus") {
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(path("prometheus.yml"), "").unwrap();
    let port = free_port();
    let args = [
        format!("--config.file={}", path("prometheus.yml")),
        format!("--storage.tsdb.path={}", path("data")),
        "--storage.tsdb.retention.time=100y".to_owned(),
        "--web.enable-remote-write-receiver".to_owned(),
        "--enable-feature=native-histograms".to_owned(),
        format!("--web.listen-address=127.0.0.1:{port}"),
    ];
    Some(Store::start("prometheus", folder, &args, port, "/-/ready").await)
}

/// Sends the samples of `from..to` to `store`.
pub(crate) async fn write(store: &Store, all: &[Written], from: i64, to: i64) {
    let client = heliostat::upstream::Http::builder().build().unwrap();
    let sent = client
        .post(format!("{}/api/v1/write", store.url))
        .header("content-encoding", "snappy")
        .header("content-type", "application/x-protobuf")
        .header("x-prometheus-remote-write-version", "0.1.0")
        .body(request(all, from, to))
        .send()
        .await
        .unwrap();
    let status = sent.status();
    let said = sent.text().await.unwrap();
    assert!(status.is_success(), "{status}: {said}");
}

fn varint(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

fn number(out: &mut Vec<u8>, field: u64, n: u64) {
    varint(out, field << 3);
    varint(out, n);
}

fn double(out: &mut Vec<u8>, field: u64, value: f64) {
    varint(out, field << 3 | 1);
    out.extend_from_slice(&value.to_bits().to_le_bytes());
}

fn bytes(out: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    varint(out, field << 3 | 2);
    varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn zigzag(n: i64) -> u64 {
    ((n << 1) ^ (n >> 63)) as u64
}

fn sample(out: &mut Vec<u8>, time: i64, sample: &Sample) {
    let mut body = Vec::new();
    match sample {
        Sample::Float(value) => {
            double(&mut body, 1, *value);
            number(&mut body, 2, time as u64);
            bytes(out, 2, &body);
        }
        Sample::Histogram(n) => {
            number(&mut body, 1, 2 * n);
            double(&mut body, 3, *n as f64 * 1.5);
            number(&mut body, 4, zigzag(0));
            double(&mut body, 5, 0.001);
            let mut span = Vec::new();
            number(&mut span, 1, zigzag(0));
            number(&mut span, 2, 2);
            bytes(&mut body, 11, &span);
            let mut deltas = Vec::new();
            varint(&mut deltas, zigzag(*n as i64));
            varint(&mut deltas, zigzag(0));
            bytes(&mut body, 12, &deltas);
            number(&mut body, 15, time as u64);
            bytes(out, 4, &body);
        }
    }
}

/// Returns the samples of `from..to` as the body of a request.
fn request(all: &[Written], from: i64, to: i64) -> Vec<u8> {
    let mut plain = Vec::new();
    for series in all {
        let mut body = Vec::new();
        for (name, value) in &series.labels {
            let mut label = Vec::new();
            bytes(&mut label, 1, name.as_bytes());
            bytes(&mut label, 2, value.as_bytes());
            bytes(&mut body, 1, &label);
        }
        for (time, one) in series.samples.iter().filter(|s| (from..to).contains(&s.0)) {
            sample(&mut body, *time, one);
        }
        bytes(&mut plain, 1, &body);
    }
    // Literals alone are valid snappy.
    let mut packed = Vec::new();
    varint(&mut packed, plain.len() as u64);
    for part in plain.chunks(0x1_0000) {
        packed.push(61 << 2);
        packed.extend_from_slice(&((part.len() - 1) as u16).to_le_bytes());
        packed.extend_from_slice(part);
    }
    packed
}
