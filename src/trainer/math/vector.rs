//! Loops over slices of f32, compiled for the widest instruction set of the processor, with the same bits on all.
//!
//! Sums have [`LANES`] accumulators in a fixed order, and nothing is fused: the width of the registers shows nowhere.

/// Accumulators of a sum: one AVX-512 register, two of AVX2.
const LANES: usize = 16;

/// Runs a loop with the widest instructions that the processor has. What it calls must be inlined to profit.
#[inline(always)]
pub(in crate::trainer) fn wide<R>(work: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(work)
}

/// e^x within 2 units in the last place for x in [-87, 88]; beyond, the value at the end of the range.
///
/// Range reduction by `ln 2` in two parts and the polynomial of Cephes' `expf`.
#[inline(always)]
#[allow(clippy::excessive_precision, reason = "the coefficients as published")]
pub(in crate::trainer) fn exp(x: f32) -> f32 {
    /// Adding it rounds to an integer and leaves that in the low bits.
    const ANCHOR: f32 = 12_582_912.0;
    let x = x.clamp(-87.0, 88.0);
    let anchored = x * std::f32::consts::LOG2_E + ANCHOR;
    let n = anchored - ANCHOR;
    let r = x - n * 0.693_359_375 + n * 2.121_944_4e-4;
    let mut p = 1.987_569_15e-4;
    for c in [1.398_199_950_7e-3, 8.333_451_907_3e-3, 4.166_579_589_4e-2, 1.666_666_545_9e-1, 0.5] {
        p = p * r + c;
    }
    let power = f32::from_bits((anchored.to_bits() << 23).wrapping_add(127 << 23));
    (p * r * r + r + 1.0) * power
}

/// 1 / (1 + e^-x).
#[inline(always)]
pub(in crate::trainer) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// The accumulators in one fixed order.
#[inline(always)]
fn total(lanes: [f32; LANES]) -> f32 {
    let mut lanes = lanes;
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
        half /= 2;
    }
    lanes[0]
}

/// Sum of products.
#[inline(always)]
pub(in crate::trainer) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    let (a, b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest: f32 = a.remainder().iter().zip(b.remainder()).map(|(x, y)| x * y).sum();
    for (x, y) in a.zip(b) {
        for i in 0..LANES {
            lanes[i] += x[i] * y[i];
        }
    }
    total(lanes) + rest
}

/// Sum of squares.
#[inline(always)]
pub(in crate::trainer) fn square_sum(a: &[f32]) -> f32 {
    dot(a, a)
}

/// Largest element; the smallest number for an empty slice. A NaN does not count.
#[inline(always)]
pub(in crate::trainer) fn largest(a: &[f32]) -> f32 {
    let mut lanes = [f32::MIN; LANES];
    let chunks = a.chunks_exact(LANES);
    let rest = chunks.remainder().iter().copied().fold(f32::MIN, f32::max);
    for x in chunks {
        for i in 0..LANES {
            lanes[i] = if x[i] > lanes[i] { x[i] } else { lanes[i] };
        }
    }
    lanes.into_iter().fold(rest, f32::max)
}

/// `a += b`.
#[inline(always)]
pub(in crate::trainer) fn add(a: &mut [f32], b: &[f32]) {
    for (a, b) in a.iter_mut().zip(b) {
        *a += b;
    }
}

/// Replaces each x by `e^(x - shift)` and gives their sum.
#[inline(always)]
pub(in crate::trainer) fn exp_sum(a: &mut [f32], shift: f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let mut chunks = a.chunks_exact_mut(LANES);
    for x in &mut chunks {
        for i in 0..LANES {
            x[i] = exp(x[i] - shift);
            lanes[i] += x[i];
        }
    }
    let mut rest = 0.0;
    for x in chunks.into_remainder() {
        *x = exp(*x - shift);
        rest += *x;
    }
    total(lanes) + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        let mut worst = 0.0_f64;
        for i in -870_000..=880_000_i32 {
            let x = i as f32 * 1e-4;
            let want = f64::from(x).exp();
            let unit =
                f64::from(f32::from_bits((want as f32).to_bits() + 1)) - f64::from(want as f32);
            worst = worst.max((f64::from(exp(x)) - want).abs() / unit);
        }
        assert!(worst < 2.0, "{worst}");
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(-1e9) < 2e-38 && exp(f32::NAN).is_nan());
    }

    #[test]
    fn sums_cover_every_element_once() {
        for n in [0, 1, 15, 16, 17, 50] {
            let a: Vec<f32> = (0..n).map(|i| i as f32).collect();
            let want = (0..n).map(|i| (i * i) as f32).sum::<f32>();
            assert_eq!(wide(|| square_sum(&a)), want);
            let top = if n == 0 { f32::MIN } else { (n - 1) as f32 };
            assert_eq!(wide(|| largest(&a)), top);
            let mut zeros = vec![3.0; n];
            assert_eq!(wide(|| exp_sum(&mut zeros, 3.0)), n as f32);
        }
    }
}
