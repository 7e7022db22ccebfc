//! The series: hosts and their metrics.

use std::sync::LazyLock;

use super::signal::{Episodes, INTERVAL, Salt, Shape, SignalLevel, SignalPlace, seed, unit};
use crate::model::{Condition, Field, FieldType, Millis, Number, Scalar, TimeRange};

/// The longest delay of a point.
pub(super) const DELAY_MAX: Millis = 60_000;

/// Gaps of up to a quarter of an hour, about every other day.
const GAPS: Episodes = Episodes {
    salt: Salt::Gap,
    block: 5760,
    chance: 0.5,
    shortest: 8,
    longest: 60,
};

/// The share of series with gaps.
const GAPPY: f64 = 0.35;

struct Host {
    name: &'static str,
    service: &'static str,
    region: Region,
    port: u16,
    canary: bool,
    metrics: &'static [DemoMetric],
}

struct Region {
    name: &'static str,
    /// Hours by which its local time is ahead of UTC.
    ahead: i64,
}

#[derive(Clone, Copy)]
struct DemoMetric {
    name: &'static str,
    shape: Shape,
}

const EU: Region = Region {
    name: "eu-west-1",
    ahead: 1,
};
const US: Region = Region {
    name: "us-east-1",
    ahead: -5,
};

const ANY: (f64, f64) = (0.0, f64::MAX);
const PERCENT: (f64, f64) = (0.0, 100.0);
const GIB: f64 = 1_073_741_824.0;

/// Returns a metric that goes up and down. The numbers are base, swing, wander, noise, tail, burst.
const fn level(name: &'static str, n: [f64; 6], bounds: (f64, f64), parts: f64) -> DemoMetric {
    let [base, swing, wander, noise, tail, burst] = n;
    DemoMetric {
        name,
        shape: Shape::Level(SignalLevel {
            base,
            swing,
            wander,
            noise,
            tail,
            burst,
            bounds,
            parts,
        }),
    }
}

const fn counter(name: &'static str, per_day: f64) -> DemoMetric {
    DemoMetric {
        name,
        shape: Shape::Counter { per_day },
    }
}

const CPU: DemoMetric = level(
    "cpu.usage_percent",
    [9.0, 38.0, 5.0, 4.0, 12.0, 35.0],
    PERCENT,
    100.0,
);
const MEMORY: DemoMetric = level(
    "memory.used_bytes",
    [3.1 * GIB, 1.6 * GIB, 0.3 * GIB, 0.02 * GIB, 0.0, 0.4 * GIB],
    (0.0, 8.0 * GIB),
    1.0,
);
const ERRORS: DemoMetric = level("network.errors", [-1.0, 0.8, 0.5, 1.0, 4.0, 45.0], ANY, 1.0);

const WEB: &[DemoMetric] = &[
    CPU,
    MEMORY,
    ERRORS,
    counter("http.requests_total", 1_900_000.0),
    level(
        "http.latency_ms",
        [32.0, 41.0, 9.0, 8.0, 420.0, 260.0],
        (1.0, 5000.0),
        100.0,
    ),
];
const DB: &[DemoMetric] = &[
    CPU,
    MEMORY,
    ERRORS,
    DemoMetric {
        name: "disk.free_bytes",
        shape: Shape::Drain {
            full: 412.0 * GIB,
            low: 58.0 * GIB,
            days: 9,
        },
    },
    level(
        "db.connections",
        [14.0, 96.0, 6.0, 3.0, 0.0, 60.0],
        (0.0, 200.0),
        1.0,
    ),
    level(
        "db.query_time_ms",
        [2.1, 3.4, 0.6, 0.7, 85.0, 40.0],
        (0.05, 5000.0),
        100.0,
    ),
];
const CACHE: &[DemoMetric] = &[
    CPU,
    MEMORY,
    ERRORS,
    level(
        "cache.hit_percent",
        [90.0, 7.0, 2.0, 0.6, 0.0, -45.0],
        PERCENT,
        100.0,
    ),
    counter("cache.evictions_total", 240_000.0),
];
const QUEUE: &[DemoMetric] = &[
    CPU,
    MEMORY,
    level(
        "queue.depth",
        [4.0, 60.0, 12.0, 9.0, 30.0, 1800.0],
        ANY,
        1.0,
    ),
    counter("queue.messages_total", 760_000.0),
];
const SHOP: &[DemoMetric] = &[
    level(
        "orders.per_minute",
        [3.0, 140.0, 10.0, 6.0, 0.0, 55.0],
        ANY,
        10.0,
    ),
    level(
        "payments.declined_percent",
        [1.2, 0.9, 0.5, 0.4, 3.0, 11.0],
        PERCENT,
        100.0,
    ),
    counter("orders.total", 112_000.0),
];

const fn host(
    name: &'static str,
    service: &'static str,
    region: Region,
    port: u16,
    metrics: &'static [DemoMetric],
) -> Host {
    Host {
        name,
        service,
        region,
        port,
        canary: false,
        metrics,
    }
}

const HOSTS: &[Host] = &[
    host("web-1", "webshop", EU, 8080, WEB),
    host("web-2", "webshop", EU, 8080, WEB),
    host("web-3", "webshop", US, 8080, WEB),
    Host {
        canary: true,
        ..host("web-4", "webshop", US, 8081, WEB)
    },
    host("db-1", "orders-db", EU, 5432, DB),
    host("db-2", "orders-db", US, 5432, DB),
    host("cache-1", "session-cache", EU, 6379, CACHE),
    host("queue-1", "order-queue", EU, 5672, QUEUE),
    host("shop-1", "checkout", EU, 8443, SHOP),
    host("shop-2", "checkout", US, 8443, SHOP),
];

/// A series: its fields and the parameters of its points.
#[derive(Debug)]
pub(super) struct DemoSeries {
    fields: [(&'static str, Scalar); 6],
    seed: u64,
    phase: Millis,
    shift: Millis,
    gappy: bool,
    shape: Shape,
}

/// Returns every series, in the order in which they were first seen.
pub(super) fn all() -> &'static [DemoSeries] {
    static ALL: LazyLock<Vec<DemoSeries>> = LazyLock::new(|| {
        let of_host = |host: &'static Host| host.metrics.iter().map(|m| DemoSeries::new(host, m));
        HOSTS.iter().flat_map(of_host).collect()
    });
    &ALL
}

/// Returns the fields of the series `among`, in order.
pub(super) fn fields(among: &[&DemoSeries]) -> Vec<Field> {
    let first = among.first().map(|s| s.fields.as_slice());
    let field = |(name, value): &(&str, Scalar)| Field {
        kind: match value {
            Scalar::String(_) => FieldType::String,
            Scalar::Number(_) => FieldType::Number,
            Scalar::Bool(_) => FieldType::Boolean,
        },
        ..Field::text(*name)
    };
    // All series have the same fields.
    first.unwrap_or_default().iter().map(field).collect()
}

impl DemoSeries {
    fn new(host: &Host, metric: &DemoMetric) -> Self {
        let text = |s: &str| Scalar::String(s.to_owned());
        // Seeds depend on names, so that a new series does not change the others.
        let seed = seed(&format!("{}@{}", metric.name, host.name));
        let port = Number::new(f64::from(host.port));
        Self {
            fields: [
                ("name", text(metric.name)),
                ("host", text(host.name)),
                ("service", text(host.service)),
                ("region", text(host.region.name)),
                ("port", port.map_or_else(|| text(""), Scalar::Number)),
                ("canary", Scalar::Bool(host.canary)),
            ],
            seed,
            phase: (unit(seed, Salt::Phase, 0) * INTERVAL as f64) as Millis,
            shift: host.region.ahead * 3_600_000,
            gappy: unit(seed, Salt::Gappy, 0) < GAPPY,
            shape: metric.shape,
        }
    }

    /// Returns the value of a field, if the series has it.
    pub(super) fn field(&self, name: &str) -> Option<&Scalar> {
        let found = self.fields.iter().find(|(n, _)| *n == name);
        found.map(|(_, value)| value)
    }

    /// Returns whether the series meets `condition`.
    pub(super) fn meets(&self, condition: &Condition) -> bool {
        self.field(&condition.key)
            .is_some_and(|own| condition.test.values().iter().any(|v| equal(own, v)))
    }

    /// Returns the offset of its points within an interval.
    pub(super) fn phase(&self) -> Millis {
        self.phase
    }

    /// Returns the number of its points in `range`, including missing ones.
    pub(super) fn points_in(&self, range: &TimeRange) -> u64 {
        let before = |t: Millis| (t - self.phase - 1).div_euclid(INTERVAL);
        (before(range.end()) - before(range.start())).unsigned_abs()
    }

    /// Returns point `k` as known at `now`, unless it is missing or has not arrived yet.
    pub(super) fn point(&self, k: i64, now: Millis) -> Option<(Millis, f64)> {
        let time = k * INTERVAL + self.phase;
        let missing = self.gappy && GAPS.progress(self.seed, k).is_some();
        if missing || !self.has_arrived(k, time, now) {
            return None;
        }
        let place = SignalPlace {
            k,
            time,
            shift: self.shift,
        };
        Some((time, self.shape.value(self.seed, place)))
    }

    fn has_arrived(&self, k: i64, time: Millis, now: Millis) -> bool {
        let age = now - time;
        if age >= DELAY_MAX {
            return true;
        }
        // Most delays are short: the square of a number below 1 is closer to 0.
        let slow = unit(self.seed, Salt::Delay, k);
        age >= (slow * slow * DELAY_MAX as f64) as Millis
    }
}

/// Returns whether a field of value `own` equals `asked`. Types must match, except that text also
/// equals the text of a number or a boolean.
fn equal(own: &Scalar, asked: &Scalar) -> bool {
    match (own, asked) {
        (Scalar::String(own), Scalar::Number(_) | Scalar::Bool(_)) => *own == asked.to_string(),
        _ => own == asked,
    }
}
