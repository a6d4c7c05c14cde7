//! Low-rank products: rows of f64 sums, each over the rank in order, so that every instruction set gives the same bits.

use std::sync::OnceLock;

use super::format::Format;
use super::level::{Job, Level};

/// Adds `scale * sum(left[k] * right[k][..])` to `values`. `right` is row after row of `values.len()` elements; the sum starts
/// from zero and takes `k` in order, every product and sum rounded once.
pub(in crate::engine) fn add_product(
    values: &mut [f64],
    sums: &mut Vec<f64>,
    scale: f64,
    left: &[f64],
    right: &[f64],
) {
    static LEVEL: OnceLock<Level> = OnceLock::new();
    let level = *LEVEL.get_or_init(|| Level::present().pop().unwrap_or(Level::BASELINE));
    level.run(AddProduct { values, sums, scale, left, right });
}

struct AddProduct<'a> {
    values: &'a mut [f64],
    sums: &'a mut Vec<f64>,
    scale: f64,
    left: &'a [f64],
    right: &'a [f64],
}

impl Job for AddProduct<'_> {
    type Output = ();

    #[inline(always)]
    fn run<H: Format<Bits = [u8; 2]>>(self, _half: H) {
        let Self { values, sums, scale, left, right } = self;
        let width = values.len();
        if width == 0 {
            return;
        }
        sums.clear();
        sums.resize(width, 0.0);
        // Four at a time keep the sums in registers; their order stays.
        let mut fours = left.chunks_exact(4);
        let mut rows = right.chunks_exact(4 * width);
        for (left, right) in (&mut fours).zip(&mut rows) {
            let (a, rest) = right.split_at(width);
            let (b, rest) = rest.split_at(width);
            let (c, d) = rest.split_at(width);
            let d = &d[..width];
            for ((((sum, a), b), c), d) in sums.iter_mut().zip(a).zip(b).zip(c).zip(d) {
                *sum = (((*sum + left[0] * a) + left[1] * b) + left[2] * c) + left[3] * d;
            }
        }
        let done = left.len() / 4 * 4 * width;
        for (factor, row) in fours.remainder().iter().zip(right[done..].chunks_exact(width)) {
            for (sum, x) in sums.iter_mut().zip(row) {
                *sum += factor * x;
            }
        }
        for (value, sum) in values.iter_mut().zip(sums.iter()) {
            *value += scale * sum;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_instruction_set_sums_in_order() {
        for (rank, width) in [(1, 1), (4, 7), (5, 33), (11, 64)] {
            let number = |n: usize| 1.0 / (f64::from(u32::try_from(n).unwrap_or(0)) + 3.0) - 0.1;
            let left: Vec<f64> = (0..rank).map(number).collect();
            let right: Vec<f64> = (0..rank * width).map(|n| number(n * 7 + 1)).collect();
            let expected: Vec<f64> = (0..width)
                .map(|c| {
                    let sum = (0..rank).fold(0.0, |sum, k| sum + left[k] * right[k * width + c]);
                    number(c) + 0.3 * sum
                })
                .collect();
            for level in Level::present() {
                let mut values: Vec<f64> = (0..width).map(number).collect();
                let (sums, scale) = (&mut Vec::new(), 0.3);
                let (left, right) = (&left[..], &right[..]);
                level.run(AddProduct { values: &mut values, sums, scale, left, right });
                assert_eq!(values, expected, "{} {rank} {width}", level.name());
            }
        }
    }
}
