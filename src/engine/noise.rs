//! Random elements from a counter: any element of any tile without the ones before it.

use super::float::Float;
use super::random::philox;
use crate::format::Dtype;
use crate::plan::{Distribution, Random};

/// Fills a piece of the output's bytes that starts `start` bytes into the part.
pub(super) fn fill(random: &Random, dtype: &Dtype, start: u64, piece: &mut [u8]) {
    // A valid plan has random elements of floats only.
    let Some(float) = Float::of(dtype) else {
        return;
    };
    let width = float.size() as u64;
    let mut at = start / width;
    let mut skip = usize::try_from(start % width).unwrap_or(0);
    let mut rest = piece;
    while !rest.is_empty() {
        // An element across the seam of two tiles is made whole in both.
        let mut element = [0; 8];
        float.write(value(random, at), &mut element[..float.size()]);
        let bytes = &element[skip..float.size()];
        let count = bytes.len().min(rest.len());
        let (head, tail) = rest.split_at_mut(count);
        head.copy_from_slice(&bytes[..count]);
        (rest, at, skip) = (tail, at + 1, 0);
    }
}

/// Element `at` of a part.
fn value(random: &Random, at: u64) -> f64 {
    let ([c0, c1], [c2, c3]) = (halves(at), halves(random.stream));
    let words = philox([c0, c1, c2, c3], halves(random.seed));
    let (u, v) = (unit(words[0], words[1]), unit(words[2], words[3]));
    match random.distribution {
        Distribution::Normal { deviation } => {
            let radius = (-2.0 * libm::log(u)).sqrt();
            deviation * (radius * libm::cos(2.0 * std::f64::consts::PI * v))
        }
        Distribution::Uniform { bound } => bound * (2.0 * u - 1.0),
    }
}

/// 53 of 64 bits as a number strictly between 0 and 1.
#[expect(clippy::cast_precision_loss, reason = "53 bits are exact")]
fn unit(low: u32, high: u32) -> f64 {
    let bits = (u64::from(high) << 32 | u64::from(low)) >> 11;
    (bits as f64 + 0.5) * (1.0 / 9_007_199_254_740_992.0)
}

/// The low and the high word.
#[expect(clippy::cast_possible_truncation, reason = "the words are what is wanted")]
const fn halves(number: u64) -> [u32; 2] {
    [number as u32, (number >> 32) as u32]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(distribution: Distribution) -> Random {
        Random { rows: 1, seed: 5, stream: 9, distribution }
    }

    #[test]
    fn tiles_may_cut_elements() {
        let random = random(Distribution::Normal { deviation: 1.0 });
        for dtype in [Dtype::BF16, Dtype::F32, Dtype::F64] {
            let mut whole = vec![0; 96];
            fill(&random, &dtype, 0, &mut whole);
            for cut in 0..96 {
                let mut pieces = vec![0; 96];
                let (head, tail) = pieces.split_at_mut(cut);
                fill(&random, &dtype, 0, head);
                fill(&random, &dtype, cut as u64, tail);
                assert_eq!(pieces, whole, "{dtype} {cut}");
            }
        }
    }

    #[test]
    #[expect(clippy::cast_precision_loss, reason = "a small count")]
    fn moments_are_those_of_the_distributions() {
        const COUNT: u64 = 100_000;
        let moments = |distribution| {
            let values = (0..COUNT).map(|at| value(&random(distribution), at));
            let (sum, squares) = values.fold((0.0, 0.0), |(a, b), x| (a + x, b + x * x));
            (sum / COUNT as f64, (squares / COUNT as f64).sqrt())
        };
        let (mean, deviation) = moments(Distribution::Normal { deviation: 2.0 });
        assert!(mean.abs() < 0.03 && (deviation - 2.0).abs() < 0.03, "{mean} {deviation}");
        let (mean, deviation) = moments(Distribution::Uniform { bound: 0.5 });
        assert!(mean.abs() < 0.005, "{mean}");
        assert!((deviation - 0.5 / 3.0_f64.sqrt()).abs() < 0.005, "{deviation}");
    }
}
