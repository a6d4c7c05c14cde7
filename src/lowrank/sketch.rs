//! The randomised singular value decomposition of a difference that is never in memory.

use ndarray::linalg::general_mat_mul;
use ndarray::{Array2, s};

use super::difference::{Difference, index};
use super::extract::Rank;
use super::svd::{decompose, orthonormalise};
use crate::error::{Error, Result};

/// Columns of the sketch beyond the rank (Halko et al. advise 5 to 10).
pub(super) const OVERSAMPLING: u64 = 10;
/// Singular values below this share of the largest are rounding of f32 products.
const NOISE: f64 = 1e-6;

/// A difference as a product.
pub(super) struct Product {
    /// `[rank, columns]`.
    pub(super) down: Array2<f32>,
    /// `[rows, rank]`.
    pub(super) up: Array2<f32>,
    /// Length of what is left over the length of the difference (Frobenius).
    pub(super) error: f64,
}

/// Approximates a difference; `None` if it is zero throughout.
pub(super) fn approximate(
    difference: &Difference,
    rank: Rank,
    power: u32,
    seed: u64,
    stop: &dyn Fn() -> bool,
) -> Result<Option<Product>> {
    let (rows, columns) = (index(difference.rows), index(difference.columns));
    let most = rows.min(columns);
    let width = index(rank.most() + OVERSAMPLING).min(most);
    let mut omega = normal(columns, width, seed);
    let mut squares = 0.0_f64;
    let mut sketch = Array2::<f64>::zeros((rows, width));
    let check = || if stop() { Err(Error::Interrupted { resumable: true }) } else { Ok(()) };
    difference.each_block(|first, block| {
        check()?;
        squares += block.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>();
        let part = block.dot(&omega).mapv(f64::from);
        sketch.slice_mut(s![first..first + part.nrows(), ..]).assign(&part);
        Ok(())
    })?;
    if squares == 0.0 {
        return Ok(None);
    }
    for _ in 0..power {
        omega = onto_columns(difference, &mut sketch, &check)?;
        difference.each_block(|first, block| {
            check()?;
            let part = block.dot(&omega).mapv(f64::from);
            sketch.slice_mut(s![first..first + part.nrows(), ..]).assign(&part);
            Ok(())
        })?;
    }
    orthonormalise(&mut sketch);
    let across = transposed_times(difference, &sketch, &check)?.mapv(f64::from);
    let mut basis = across.clone();
    orthonormalise(&mut basis);
    // across = basis * small: the difference is nearly sketch * small^T * basis^T.
    let (left, values, right) = decompose(&basis.t().dot(&across));
    let energies: Vec<f64> = values.iter().map(|value| value * value).collect();
    let kept = rank.of(&energies, squares).min(most);
    let noise = NOISE * values[0];
    let kept = values.iter().take(kept).filter(|value| **value > noise).count().max(1);
    let roots = values.slice(s![..kept]).mapv(f64::sqrt);
    let up = sketch.dot(&right.slice(s![.., ..kept])) * &roots;
    let down = (basis.dot(&left.slice(s![.., ..kept])) * &roots).reversed_axes();
    let narrow = |matrix: Array2<f64>| {
        #[expect(clippy::cast_possible_truncation, reason = "the rounding that is meant")]
        let round = |x: f64| x as f32;
        matrix.as_standard_layout().mapv(round)
    };
    let (down, up) = (narrow(down), narrow(up));
    let mut left_over = 0.0_f64;
    difference.each_block(|first, mut block| {
        check()?;
        let rows = up.slice(s![first..first + block.nrows(), ..]);
        general_mat_mul(-1.0, &rows, &down, 1.0, &mut block);
        left_over += block.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>();
        Ok(())
    })?;
    Ok(Some(Product { down, up, error: (left_over / squares).sqrt() }))
}

/// One half of a power iteration: orthonormal columns of `difference^T * orthonormal(sketch)`.
fn onto_columns(
    difference: &Difference,
    sketch: &mut Array2<f64>,
    check: &dyn Fn() -> Result<()>,
) -> Result<Array2<f32>> {
    orthonormalise(sketch);
    let mut across = transposed_times(difference, sketch, check)?.mapv(f64::from);
    orthonormalise(&mut across);
    #[expect(clippy::cast_possible_truncation, reason = "factors of f32 products")]
    Ok(across.mapv(|x| x as f32))
}

/// `difference^T * matrix`.
fn transposed_times(
    difference: &Difference,
    matrix: &Array2<f64>,
    check: &dyn Fn() -> Result<()>,
) -> Result<Array2<f32>> {
    let mut sum = Array2::<f32>::zeros((index(difference.columns), matrix.ncols()));
    difference.each_block(|first, block| {
        check()?;
        let rows = matrix.slice(s![first..first + block.nrows(), ..]);
        #[expect(clippy::cast_possible_truncation, reason = "factors of f32 products")]
        let rows = rows.mapv(|x| x as f32);
        general_mat_mul(1.0, &block.t(), &rows, 1.0, &mut sum);
        Ok(())
    })?;
    Ok(sum)
}

/// Normally distributed numbers from a seed (`SplitMix64`, Box and Muller).
fn normal(rows: usize, columns: usize, seed: u64) -> Array2<f32> {
    let mut state = seed;
    let mut uniform = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        #[expect(clippy::cast_precision_loss, reason = "53 bits fit")]
        let fraction = (z >> 11) as f64;
        (fraction + 0.5) / 9_007_199_254_740_992.0
    };
    Array2::from_shape_simple_fn((rows, columns), || {
        let (a, b) = (uniform(), uniform());
        let value = (-2.0 * libm::log(a)).sqrt() * libm::cos(std::f64::consts::TAU * b);
        #[expect(clippy::cast_possible_truncation, reason = "random numbers of any precision")]
        let value = value as f32;
        value
    })
}
