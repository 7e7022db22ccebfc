//! Signals computed from a seed and a position. Every value is a pure function, computed in O(1).
//!
//! Only basic arithmetic is used, no `sin` and the like: IEEE 754 defines its results to the last
//! bit, so a value is the same on every machine.

use crate::model::Millis;

/// The time between two points of a series.
pub(super) const INTERVAL: Millis = 15_000;

const HOUR: Millis = 3_600_000;
const DAY: Millis = 24 * HOUR;
const POINTS_A_DAY: f64 = (DAY / INTERVAL) as f64;

/// The purpose of a random draw. Draws for different purposes are independent.
#[derive(Clone, Copy, Debug)]
pub(super) enum Salt {
    /// The offset of a series' points within the interval.
    Phase = 1,
    /// The delay of a point.
    Delay,
    /// Whether a series has gaps at all.
    Gappy,
    /// The gaps themselves.
    Gap,
    /// Bursts.
    Burst,
    /// Noise between successive points.
    Noise,
    /// Noise over minutes.
    Wander,
    /// Rare high values.
    Tail,
    /// Restarts of counters, clean-ups of disks.
    Reset,
}

/// Applies the finalizer of splitmix64 (Steele, Lea and Flood, 2014).
fn mix(n: u64) -> u64 {
    let z = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Returns the seed that belongs to `text`.
pub(super) fn seed(text: &str) -> u64 {
    text.bytes().fold(0, |seed, b| mix(seed ^ u64::from(b)))
}

/// Returns a random number for position `n`.
fn draw(seed: u64, salt: Salt, n: i64) -> u64 {
    mix(mix(seed ^ salt as u64) ^ n.cast_unsigned())
}

/// Returns a random number for position `n`, from 0 (inclusive) to 1 (exclusive).
pub(super) fn unit(seed: u64, salt: Salt, n: i64) -> f64 {
    to_unit(draw(seed, salt, n))
}

fn to_unit(bits: u64) -> f64 {
    // A double holds exactly 53 bits.
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

/// An event that happens now and then: at most once in each block of points.
#[derive(Clone, Copy, Debug)]
pub(super) struct Episodes {
    /// The purpose of its draws.
    pub(super) salt: Salt,
    /// Points in a block.
    pub(super) block: u32,
    /// The probability per block.
    pub(super) chance: f64,
    /// Its shortest length, in points.
    pub(super) shortest: u32,
    /// Its longest length, in points; less than a block.
    pub(super) longest: u32,
}

impl Episodes {
    /// Returns how far point `k` is into an episode, between 0 and 1, if it lies in one.
    pub(super) fn progress(&self, seed: u64, k: i64) -> Option<f64> {
        let block = i64::from(self.block);
        let bits = draw(seed, self.salt, k.div_euclid(block));
        if to_unit(bits) >= self.chance {
            return None;
        }
        let (shortest, longest) = (f64::from(self.shortest), f64::from(self.longest));
        let length = (shortest + to_unit(mix(bits)) * (longest - shortest + 1.0)).floor();
        let room = f64::from(self.block) - length + 1.0;
        let start = (to_unit(mix(mix(bits))) * room).floor();
        let at = k.rem_euclid(block) as f64 - start;
        (0.0 <= at && at < length).then(|| (at + 0.5) / length)
    }
}

/// Five minutes of high values, about once a day.
const BURSTS: Episodes = Episodes {
    salt: Salt::Burst,
    block: 1920,
    chance: 0.4,
    shortest: 8,
    longest: 40,
};

/// The behaviour of a series' values.
#[derive(Clone, Copy, Debug)]
pub(super) enum Shape {
    /// They go up and down.
    Level(SignalLevel),
    /// They count up in whole numbers and restart at 0 once a day, as after a daily restart.
    Counter {
        /// The count of a typical day.
        per_day: f64,
    },
    /// They fall until a clean-up brings them up again.
    Drain {
        /// The value right after a clean-up.
        full: f64,
        /// The value right before one.
        low: f64,
        /// Days between two clean-ups.
        days: i64,
    },
}

/// A value that goes up and down: the sum of its parts, clamped to two bounds.
#[derive(Clone, Copy, Debug)]
pub(super) struct SignalLevel {
    /// The value on a quiet night.
    pub(super) base: f64,
    /// The increase in the busiest hour of a working day.
    pub(super) swing: f64,
    /// The drift over minutes.
    pub(super) wander: f64,
    /// The variation between successive points.
    pub(super) noise: f64,
    /// The increase of the rarest points.
    pub(super) tail: f64,
    /// The increase at the peak of a burst.
    pub(super) burst: f64,
    /// The lowest and the highest possible value.
    pub(super) bounds: (f64, f64),
    /// Parts of one that values are rounded to: 100 for two decimals.
    pub(super) parts: f64,
}

/// A position in a series.
#[derive(Clone, Copy, Debug)]
pub(super) struct SignalPlace {
    /// The number of the point.
    pub(super) k: i64,
    /// Its time.
    pub(super) time: Millis,
    /// The offset of local time.
    pub(super) shift: Millis,
}

impl Shape {
    /// Returns the value at `place` of the series with `seed`.
    pub(super) fn value(&self, seed: u64, place: SignalPlace) -> f64 {
        match self {
            Self::Level(level) => level.value(seed, place),
            Self::Counter { per_day } => counter(*per_day, seed, place),
            Self::Drain { full, low, days } => {
                let period = days * DAY;
                let progress = since_reset(seed, place.time, period) as f64 / period as f64;
                let jitter = 0.002 * unit(seed, Salt::Noise, place.k);
                (full - (full - low) * (progress + jitter)).round()
            }
        }
    }
}

impl SignalLevel {
    fn value(&self, seed: u64, place: SignalPlace) -> f64 {
        let k = place.k;
        let local = place.time + place.shift;
        let jump = unit(seed, Salt::Noise, k) * 2.0 - 1.0;
        let rare = {
            let u = unit(seed, Salt::Tail, k);
            let u4 = u * u * u * u;
            u4 * u4 * u4
        };
        let burst = BURSTS.progress(seed, k).map_or(0.0, rise_and_fall);
        let value = self.base
            + self.swing * activity(local) * weekly(local)
            + self.wander * wander(seed, k)
            + self.noise * jump
            + self.tail * rare
            + self.burst * burst;
        let (lowest, highest) = self.bounds;
        (value.clamp(lowest, highest) * self.parts).round() / self.parts
    }
}

/// Returns the count since the last restart. A steady part outweighs the jitter, so that the
/// counter never decreases.
fn counter(per_day: f64, seed: u64, place: SignalPlace) -> f64 {
    const STEADY: f64 = 0.3;
    let since = since_reset(seed, place.time, DAY);
    let local = place.time + place.shift;
    let steady = STEADY * since as f64 / DAY as f64;
    let busy = (1.0 - STEADY) * 2.0 * (activity_until(local) - activity_until(local - since));
    let jitter = 0.9 * STEADY / POINTS_A_DAY * unit(seed, Salt::Noise, place.k);
    // Days differ, but the scale must not change within a day, or the counter would jump.
    let restarted = place.time - since;
    let day = 0.85 + 0.3 * unit(seed, Salt::Reset, restarted);
    let scale = per_day * day * weekly(local - since);
    (scale * (steady + busy + jitter)).floor()
}

/// Returns the time since the last reset of a series that resets every `period`.
fn since_reset(seed: u64, time: Millis, period: Millis) -> Millis {
    let offset = (unit(seed, Salt::Reset, 0) * period as f64) as Millis;
    (time - offset).rem_euclid(period)
}

/// Returns a curve that rises from 0 to 1 and falls back as `progress` goes from 0 to 1.
fn rise_and_fall(progress: f64) -> f64 {
    1.0 - (2.0 * progress - 1.0).abs()
}

/// Returns a curve from 0 to 1, level at both ends.
fn smooth(x: f64) -> f64 {
    x * x * (3.0 - 2.0 * x)
}

/// Returns the day of `local`, which starts at 2 at night, and the part of it that has passed.
fn lived_day(local: Millis) -> (i64, f64) {
    let awake = local - 2 * HOUR;
    let passed = awake.rem_euclid(DAY) as f64 / DAY as f64;
    (awake.div_euclid(DAY), passed)
}

/// Returns the level of activity: 0 at 2 at night, 1 at 2 in the afternoon, nearly a sine in
/// between.
fn activity(local: Millis) -> f64 {
    smooth(rise_and_fall(lived_day(local).1))
}

/// Returns the integral of [`activity`] over days, from the epoch to `local`.
fn activity_until(local: Millis) -> f64 {
    // Up to noon this is the integral of smooth(2u); after noon, half a day's total minus the
    // remainder.
    let rising = |u: f64| {
        let x = 2.0 * u;
        (x * x * x - x * x * x * x / 2.0) / 2.0
    };
    let (day, passed) = lived_day(local);
    let today = if passed < 0.5 {
        rising(passed)
    } else {
        0.5 - rising(1.0 - passed)
    };
    day as f64 * 0.5 + today
}

/// Returns the activity on the day of the week, relative to a usual day. It changes at the quietest
/// hour.
fn weekly(local: Millis) -> f64 {
    let (day, _) = lived_day(local);
    // Day 0, 1 January 1970, was a Thursday.
    match day.rem_euclid(7) {
        1 => 0.95,
        2 => 0.6,
        3 => 0.5,
        4 => 0.9,
        _ => 1.0,
    }
}

/// Returns noise between -1 and 1 without jumps: random every ten minutes, smooth in between.
fn wander(seed: u64, k: i64) -> f64 {
    const KNOT: i64 = 40;
    let knot = k.div_euclid(KNOT);
    let from = unit(seed, Salt::Wander, knot);
    let to = unit(seed, Salt::Wander, knot + 1);
    let passed = k.rem_euclid(KNOT) as f64 / KNOT as f64;
    (from + (to - from) * smooth(passed)) * 2.0 - 1.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splitmix_is_the_published_one() {
        // The first output of splitmix64 seeded with 0, and the second.
        assert_eq!(mix(0), 0xe220_a839_7b1d_cdaf);
        assert_eq!(mix(0x9e37_79b9_7f4a_7c15), 0x6e78_9e6a_a1b9_65f4);
    }

    #[test]
    fn the_integral_of_the_activity_is_its_sum() {
        let mut sum = 0.0;
        let start = 5 * DAY + 7 * HOUR;
        for minute in 0..3 * 24 * 60 {
            let t = start + minute * 60_000;
            let exact = activity_until(t) - activity_until(start);
            assert!((sum - exact).abs() < 1e-5, "{sum} {exact}");
            sum += activity(t + 30_000) / (24.0 * 60.0);
        }
    }

    #[test]
    fn episodes_are_as_long_and_as_frequent_as_told() {
        let mut lengths = Vec::new();
        let mut length = 0;
        for k in 0..1000 * i64::from(BURSTS.block) {
            if BURSTS.progress(7, k).is_some() {
                length += 1;
            } else if length > 0 {
                lengths.push(std::mem::take(&mut length));
            }
        }
        assert!((330..470).contains(&lengths.len()), "{}", lengths.len());
        assert_eq!(lengths.iter().min(), Some(&BURSTS.shortest));
        assert!(lengths.iter().filter(|l| **l > BURSTS.longest).count() < 3);
    }
}
