//! Statistics of the values of one bucket. All values are finite, none of the slices is empty.
//!
//! A result depends on the values and their order alone. Loops that run over many values keep
//! several independent results, one a lane, which the compiler turns into vectors; which value
//! goes to which lane follows from its place in the bucket.

/// Number of results that are kept side by side: as many as fit into the registers of every x86-64.
const SUM_LANES: usize = 4;
const BEST_LANES: usize = 8;

/// Shorter buckets are summed one by one: lanes do not pay for them.
const SHORT: usize = 3 * SUM_LANES;

/// Sum with compensation (T. Ogita, S. M. Rump, S. Oishi, "Accurate sum and dot product", SIAM
/// J. Sci. Comput. 26, 2005, algorithm 4.4 `Sum2`; its error bound is that of Neumaier's, ZAMM
/// 54, 1974): the error of each addition is had exactly, without a branch, and the errors are
/// added to the result in the end. Infinite, or NaN, where the sum overflows.
pub(super) fn sum(values: &[f64]) -> f64 {
    let (total, lost) = if values.len() < SHORT {
        values.iter().fold((0.0, 0.0), add)
    } else {
        let (sums, losses, rest) = lanes(values);
        let rest = rest.iter().fold((0.0, 0.0), add);
        sums.into_iter().zip(losses).fold(rest, |all, (sum, lost)| {
            let (sum, more) = add(all, &sum);
            (sum, more + lost)
        })
    };
    let compensated = total + lost;
    // Next to the largest double the error of an addition may itself overflow.
    if compensated.is_finite() {
        compensated
    } else {
        total
    }
}

/// Adds `value` to a sum, and to what was lost in it what rounding takes: Knuth's `TwoSum`.
#[inline(always)]
fn add((sum, lost): (f64, f64), value: &f64) -> (f64, f64) {
    let next = sum + value;
    let of_value = next - sum;
    (
        next,
        lost + ((sum - (next - of_value)) + (value - of_value)),
    )
}

type Lanes = [f64; SUM_LANES];

/// Returns the sum of each lane, what was lost in it, and the values that do not fill the lanes.
/// Sums and losses are kept apart, and this is not inlined: else no vectors come of it, and it
/// takes twice as long.
#[inline(never)]
fn lanes(values: &[f64]) -> (Lanes, Lanes, &[f64]) {
    let (mut sums, mut losses) = ([0.0; SUM_LANES], [0.0; SUM_LANES]);
    let (chunks, rest) = values.as_chunks::<SUM_LANES>();
    for chunk in chunks {
        for ((sum, lost), value) in sums.iter_mut().zip(&mut losses).zip(chunk) {
            (*sum, *lost) = add((*sum, *lost), value);
        }
    }
    (sums, losses, rest)
}

/// Sum divided by count.
pub(super) fn mean(values: &[f64]) -> f64 {
    let count = values.len() as f64;
    let total = sum(values);
    if total.is_finite() {
        total / count
    } else {
        // The sum overflows where the mean does not.
        let parts: Vec<f64> = values.iter().map(|v| v / count).collect();
        sum(&parts)
    }
}

/// Returns the smallest value; a zero comes without a sign.
pub(super) fn min(values: &[f64]) -> f64 {
    best(values, f64::INFINITY, |a, b| if b < a { b } else { a })
}

/// Returns the largest value; a zero comes without a sign.
pub(super) fn max(values: &[f64]) -> f64 {
    best(values, f64::NEG_INFINITY, |a, b| if b > a { b } else { a })
}

#[inline(always)]
fn best(values: &[f64], worst: f64, better: impl Fn(f64, f64) -> f64) -> f64 {
    let mut lanes = [worst; BEST_LANES];
    let (chunks, rest) = values.as_chunks::<BEST_LANES>();
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane = better(*lane, value);
        }
    }
    let lanes = if chunks.is_empty() { &[][..] } else { &lanes };
    let best = rest.iter().chain(lanes).fold(worst, |a, &b| better(a, b));
    // 0.0 and -0.0 are equal, so which one wins would depend on their lanes.
    best + 0.0
}

/// Returns the quantile `q` in `0..=1` by linear interpolation between closest ranks: definition
/// R-7 of Hyndman and Fan (1996), which numpy and PromQL's `quantile` use, in PromQL's arithmetic.
/// `scratch` is reused from call to call.
pub(super) fn quantile(values: &[f64], q: f64, scratch: &mut Vec<i64>) -> f64 {
    let Some(last) = values.len().checked_sub(1) else {
        return f64::NAN;
    };
    let rank = q * last as f64;
    let lower = rank.floor() as usize;
    let weight = rank - rank.floor();
    scratch.clear();
    scratch.extend(values.iter().map(|v| ordered(v.to_bits() as i64)));
    let (_, low, above) = scratch.select_nth_unstable(lower.min(last));
    let low = *low;
    let high = above.iter().copied().min().unwrap_or(low);
    let value = |key| f64::from_bits(ordered(key) as u64);
    value(low) * (1.0 - weight) + value(high) * weight
}

/// Returns a double's bits as an integer of the same order, as [`f64::total_cmp`] makes it, and
/// back: whole numbers are selected several times as fast.
fn ordered(bits: i64) -> i64 {
    bits ^ (((bits >> 63) as u64) >> 1) as i64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Returns the sum rounded once: J. R. Shewchuk's expansions, as Python's `math.fsum` has them.
    fn exact(values: &[f64]) -> f64 {
        let mut partials: Vec<f64> = Vec::new();
        for &value in values {
            let mut x = value;
            let mut kept = Vec::new();
            for &y in &partials {
                let (large, small) = if x.abs() < y.abs() { (y, x) } else { (x, y) };
                let sum = large + small;
                let error = small - (sum - large);
                if error != 0.0 {
                    kept.push(error);
                }
                x = sum;
            }
            kept.push(x);
            partials = kept;
        }
        partials.iter().sum()
    }

    /// Returns whether they are equal or neighbours.
    fn close(a: f64, b: f64) -> bool {
        a == b || a.next_up() == b || a.next_down() == b
    }

    proptest! {
        #[test]
        fn a_sum_is_exact_to_the_last_bit(
            values in prop::collection::vec(-1e6f64..1e6, 1..600),
            large in prop::collection::vec(1e6f64..1e15, 0..40),
        ) {
            let all: Vec<f64> = values.iter().chain(&large).copied().collect();
            for values in [&values, &all] {
                prop_assert!(close(sum(values), exact(values)), "{} {}", sum(values), exact(values));
            }
        }

        #[test]
        fn cancelling_terms_leave_the_exact_rest(
            values in prop::collection::vec(-1000i32..1000, 1..200),
            at in 0usize..200,
        ) {
            let mut all: Vec<f64> = values.iter().map(|v| f64::from(*v)).collect();
            let expected: f64 = all.iter().sum();
            all.insert(at.min(all.len()), 1e100);
            all.push(-1e100);
            prop_assert_eq!(sum(&all), expected);
        }

        #[test]
        fn extremes_are_values_of_the_bucket(values in prop::collection::vec(any::<i8>(), 1..200)) {
            let all: Vec<f64> = values.iter().map(|v| f64::from(*v)).collect();
            prop_assert_eq!(min(&all), f64::from(*values.iter().min().unwrap()));
            prop_assert_eq!(max(&all), f64::from(*values.iter().max().unwrap()));
        }

        #[test]
        fn a_quantile_is_that_of_the_sorted_values(
            values in prop::collection::vec(-1e3f64..1e3, 1..400), q in 0.0f64..=1.0,
        ) {
            let mut sorted = values.clone();
            sorted.sort_by(f64::total_cmp);
            let rank = q * (sorted.len() - 1) as f64;
            let low = sorted[rank as usize];
            let high = sorted[(rank as usize + 1).min(sorted.len() - 1)];
            let expected = low * (1.0 - rank.fract()) + high * rank.fract();
            prop_assert_eq!(quantile(&values, q, &mut Vec::new()), expected);
        }
    }

    #[test]
    fn a_zero_has_no_sign_wherever_it_stands() {
        for n in [2, 7, 8, 9, 31, 32, 33, 100] {
            for at in 0..n {
                let mut values = vec![0.0; n];
                values[at] = -0.0;
                let negative: Vec<f64> = values.iter().map(|v| -v).collect();
                for values in [values, negative, vec![-0.0; n]] {
                    for result in [min(&values), max(&values), sum(&values), mean(&values)] {
                        assert_eq!(result.to_bits(), 0, "{values:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn extremes_reach_the_ends_of_doubles() {
        for n in [1, 8, 50] {
            assert_eq!(min(&vec![f64::MAX; n]), f64::MAX);
            assert_eq!(max(&vec![f64::MIN; n]), f64::MIN);
            assert_eq!(mean(&vec![f64::MAX; n]), f64::MAX);
        }
        assert_eq!(sum(&[f64::MAX, -1.0]), f64::MAX);
        assert_eq!(sum(&[f64::MAX, f64::MIN, 1.0]), 1.0);
    }
}
