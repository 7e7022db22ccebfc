//! Requests of the benches and the expected answers: lanes whose values are easy to compute,
//! written so that the length of an answer follows from its number of points.

use heliostat::wire::mirror::response::{METRIC_HEAD, metric_tail};

pub(crate) const MINUTE: i64 = 60_000;
pub(crate) const DAY: i64 = 86_400_000;
/// The interval of raw points.
pub(crate) const INTERVAL: i64 = 15_000;

/// Lanes from this one on all have the same values, so that an upstream can prepare their answers.
pub(crate) const ALIKE: u32 = 5_000_000;

/// Buckets of a minute, or raw points.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Shape {
    Buckets,
    Raw,
}

impl Shape {
    /// The distance of neighbouring points.
    pub(crate) fn step(self) -> i64 {
        match self {
            Self::Buckets => MINUTE,
            Self::Raw => INTERVAL,
        }
    }

    /// Returns the time of the first point at or after `start`, or of the bucket that contains it.
    fn first(self, start: i64) -> i64 {
        let step = self.step();
        match self {
            Self::Buckets => start.div_euclid(step) * step,
            Self::Raw => -(-start).div_euclid(step) * step,
        }
    }

    /// Returns the number of points in an answer for `[start, end)`.
    pub(crate) fn points(self, start: i64, end: i64) -> i64 {
        -(self.first(start) - end).div_euclid(self.step())
    }

    /// Returns the length of an answer with `points` points, of which there is at least one.
    pub(crate) fn length(self, points: i64) -> usize {
        let point = match self {
            Self::Buckets => "[12.34,1234567890123,1234567890123]".len(),
            Self::Raw => "[12.34,1234567890123]".len(),
        };
        let tail = metric_tail(self == Self::Buckets, false);
        METRIC_HEAD.len() + points as usize * (point + 1) - 1 + tail.len()
    }
}

/// One request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ask {
    pub(crate) shape: Shape,
    pub(crate) lane: u32,
    pub(crate) start: i64,
    pub(crate) end: i64,
}

impl Ask {
    /// Returns the length of its answer's body.
    pub(crate) fn length(&self) -> usize {
        self.shape.length(self.shape.points(self.start, self.end))
    }

    /// Returns the body of its answer.
    pub(crate) fn answer(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.length());
        out.extend_from_slice(METRIC_HEAD);
        let mut number = itoa::Buffer::new();
        let mut time = self.shape.first(self.start);
        while time < self.end {
            let cents = cents(self.lane, time);
            out.push(b'[');
            out.extend_from_slice(number.format(cents / 100).as_bytes());
            out.extend_from_slice(&[b'.', b'0' + (cents / 10 % 10) as u8]);
            out.extend_from_slice(&[b'0' + (cents % 10) as u8, b',']);
            out.extend_from_slice(number.format(time).as_bytes());
            if self.shape == Shape::Buckets {
                out.push(b',');
                out.extend_from_slice(number.format(time + MINUTE).as_bytes());
            }
            out.extend_from_slice(b"],");
            time += self.shape.step();
        }
        if out.len() > METRIC_HEAD.len() {
            out.pop();
        }
        out.extend_from_slice(metric_tail(self.shape == Shape::Buckets, false));
        out
    }
}

/// Returns the value of `lane` at `time`, in hundredths: a slow wave of a few hours with some
/// noise, like that of a gauge. Always four digits, the last of which is not 0: five bytes of JSON.
pub(crate) fn cents(lane: u32, time: i64) -> i64 {
    let lane = lane.min(ALIKE);
    let period = (3 + i64::from(lane % 5)) * 60 * MINUTE;
    let phase = (time + i64::from(lane) * 977_000).rem_euclid(period);
    let wave = 6000 * (phase * 2 - period).abs() / period;
    let noise = (mixed(u64::from(lane) << 44 ^ time as u64) % 200) as i64;
    let cents = 2000 + wave + noise;
    if cents % 10 == 0 { cents + 1 } else { cents }
}

/// A number that depends on all bits of `n` (the finalizer of SplitMix64).
pub(crate) fn mixed(n: u64) -> u64 {
    let n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ (n >> 31)
}

/// A request as bytes, made once: variable parts have a fixed width and are overwritten.
#[derive(Clone)]
pub(crate) struct Request {
    bytes: Vec<u8>,
    lane: usize,
    start: usize,
    end: usize,
}

impl Request {
    pub(crate) fn new(path: &str, shape: Shape, encoding: Option<&str>) -> Self {
        let aggregation = match shape {
            Shape::Buckets => {
                r#","aggregation":{"method":"MEAN","bucketSizeMillis":60000,"_type":"Aggregation"}"#
            }
            Shape::Raw => "",
        };
        let condition = |key, value| {
            format!(
                r#"{{"key":"{key}","value":{{"value":"{value}","_type":"StringValue"}},"_type":"EqualityCondition"}}"#
            )
        };
        let body = format!(
            r#"{{"connectionDetails":{{}},"query":{{"conditions":[{},{}],"startTime":{},"endTime":{}{aggregation},"_type":"MetricsQuery"}},"_type":"MetricsRequest"}}"#,
            condition("name", "cpu.usage_percent"),
            condition("lane", "0000000"),
            "1111111111111",
            "2222222222222",
        );
        let accept = encoding.map_or_else(String::new, |e| format!("accept-encoding: {e}\r\n"));
        let text = format!(
            "POST {path} HTTP/1.1\r\nhost: bench\r\n{accept}content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let place = |mark: &str| text.find(mark).unwrap();
        Self {
            lane: place("\"0000000\"") + 1,
            start: place(":1111111111111") + 1,
            end: place(":2222222222222") + 1,
            bytes: text.into_bytes(),
        }
    }

    /// Returns the bytes that request `ask`.
    pub(crate) fn of(&mut self, ask: &Ask) -> &[u8] {
        digits(&mut self.bytes[self.lane..][..7], i64::from(ask.lane));
        digits(&mut self.bytes[self.start..][..13], ask.start);
        digits(&mut self.bytes[self.end..][..13], ask.end);
        &self.bytes
    }
}

/// Writes `number`, padded to the length of `place`.
pub(crate) fn digits(place: &mut [u8], mut number: i64) {
    for digit in place.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
    assert_eq!(number, 0, "a number is too long");
}
