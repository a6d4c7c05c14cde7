//! From sums over whole tensors to the weights of a blend: the arithmetic behind [`Solve`].
//!
//! Every vector is a combination of the values, held as its coefficients; lengths and products of such come from the [`Gram`]
//! matrix. Sines and arc cosines are computed in software, so that every machine finds the same bits.

use crate::engine::sweep::Gram;
use crate::plan::Solve;

/// Below this distance from 1 or -1 a cosine rounds to it in f32: an angle that f32 values do not tell from a straight one.
const STRAIGHT: f64 = 1.0 / (1 << 25) as f64;

/// A mean of unit vectors of f32 values that is shorter is made of rounding.
const CANCELLED: f64 = 1e-7;

/// The weights of the values, or why there are none. `given` are the weights of the terms.
pub(super) fn weights(solve: Solve, given: &[f64], gram: &Gram) -> Result<Vec<f64>, String> {
    let terms = gram.terms();
    let finite = (0..terms).all(|i| (i..terms).all(|j| gram.dot(i, j).is_finite()));
    if !finite {
        return Ok(vec![f64::NAN; terms]);
    }
    let mut weights = match (solve, given) {
        (Solve::Slerp { t }, _) => slerp(t, gram).to_vec(),
        (Solve::Nuslerp, &[first, second]) => nuslerp(first, second, gram).to_vec(),
        (Solve::Nuslerp, _) => return Err("nuslerp takes two terms".into()),
        (Solve::Multislerp { normalize, eps }, _) => multislerp(normalize, eps, given, gram)?,
        (Solve::Karcher { max_iter, tol }, _) => karcher(max_iter, tol, gram),
        (Solve::ModelStock, _) => model_stock(gram),
        (Solve::Energy { .. } | Solve::Overlap { .. }, _) => {
            return Err("energies and overlaps are not told from products".into());
        }
    };
    for (i, weight) in weights.iter_mut().enumerate() {
        // Says nothing, and would only add rounding.
        if gram.dot(i, i) <= 0.0 {
            *weight = 0.0;
        }
    }
    Ok(weights)
}

fn slerp(t: f64, gram: &Gram) -> [f64; 2] {
    let length = |i| Some(gram.norm(i)).filter(|norm| *norm > 1e-8);
    let product = match (length(0), length(1)) {
        (Some(_), Some(_)) => norms(gram, 0, 1),
        (a, b) => a.unwrap_or(1.0) * b.unwrap_or(1.0),
    };
    let cosine = (gram.dot(0, 1) / product).clamp(-1.0, 1.0);
    if cosine.abs() > 0.9995 { [1.0 - t, t] } else { arc(t, cosine) }
}

fn nuslerp(first: f64, second: f64, gram: &Gram) -> [f64; 2] {
    let sum = first + second;
    let t = if sum.abs() < 1e-6 { 0.5 } else { second / sum };
    let (a, b) = (gram.norm(0), gram.norm(1));
    let product = if a.min(b) < 1e-7 { a.max(1e-7) * b.max(1e-7) } else { norms(gram, 0, 1) };
    let cosine = (gram.dot(0, 1) / product).clamp(-1.0, 1.0);
    if 1.0 - cosine.abs() < STRAIGHT { [1.0 - t, t] } else { arc(t, cosine) }
}

/// The weights of the two ends of an arc.
fn arc(t: f64, cosine: f64) -> [f64; 2] {
    let angle = libm::acos(cosine);
    let sine = libm::sin(angle);
    [libm::sin((1.0 - t) * angle) / sine, libm::sin(t * angle) / sine]
}

fn multislerp(normalize: bool, eps: f64, given: &[f64], gram: &Gram) -> Result<Vec<f64>, String> {
    let sum = if normalize { given.iter().sum() } else { 1.0 };
    let weights: Vec<f64> = given.iter().map(|weight| weight / sum).collect();
    let lengths: Vec<f64> = (0..gram.terms()).map(|i| gram.norm(i)).collect();
    let mut mean: Vec<f64> =
        weights.iter().zip(&lengths).map(|(weight, length)| weight / (length + eps)).collect();
    let length = long(&mean, gram);
    let size: f64 = weights.iter().map(|weight| weight.abs()).sum();
    if length < eps || length <= CANCELLED * size {
        // Nothing to turn towards; nothing at all, if all are zero.
        if weights.len() == 2 || lengths.iter().all(|length| *length <= 0.0) {
            return Ok(weights);
        }
        return Err("the directions of the inputs cancel each other, so multislerp has none".into());
    }
    // The mean of the tangents at the mean direction is zero: what is left of the arc is eps long.
    let average: f64 = weights.iter().zip(&lengths).map(|(weight, length)| weight * length).sum();
    scale(&mut mean, average * libm::cos(eps) / length);
    Ok(mean)
}

fn karcher(max_iter: u32, tol: f64, gram: &Gram) -> Vec<f64> {
    let terms = gram.terms();
    let lengths: Vec<f64> = (0..terms).map(|i| gram.norm(i)).collect();
    let pulling: Vec<usize> = (0..terms).filter(|&i| lengths[i] > tol).collect();
    let Some(&first) = pulling.first() else {
        return vec![0.0; terms];
    };
    let share = 1.0 / number(pulling.len());
    let mut at = vec![0.0; terms];
    for &i in &pulling {
        at[i] = share / lengths[i];
    }
    let length = long(&at, gram);
    if length < tol {
        at.fill(0.0);
        at[first] = 1.0 / lengths[first];
    } else {
        scale(&mut at, 1.0 / length);
    }
    for _ in 0..max_iter {
        let mut step = vec![0.0; terms];
        for &i in &pulling {
            let product: f64 = (0..terms).map(|k| at[k] * gram.dot(k, i)).sum();
            let cosine = (product / lengths[i]).clamp(-1.0, 1.0);
            let angle = libm::acos(cosine);
            // From the opposite point every way is as short as any other.
            if angle < tol || 1.0 + cosine < STRAIGHT {
                continue;
            }
            let pull = share * angle / libm::sin(angle);
            for (step, at) in step.iter_mut().zip(&at) {
                *step -= pull * cosine * at;
            }
            step[i] += pull / lengths[i];
        }
        let length = long(&step, gram);
        if length < tol {
            break;
        }
        let (sine, cosine) = (libm::sin(length), libm::cos(length));
        for (at, step) in at.iter_mut().zip(&step) {
            *at = *at * cosine + step * (sine / length);
        }
        let length = long(&at, gram);
        if length > tol {
            scale(&mut at, 1.0 / length);
        }
    }
    scale(&mut at, lengths.iter().sum::<f64>() / number(terms));
    at
}

fn model_stock(gram: &Gram) -> Vec<f64> {
    let terms = gram.terms();
    let mut cosines = 0.0;
    for i in 0..terms {
        for j in i + 1..terms {
            cosines += gram.dot(i, j) / norms(gram, i, j).max(1e-6);
        }
    }
    let count = number(terms);
    let cosine = cosines / (count * (count - 1.0) / 2.0);
    let divisor = 1.0 + (count - 1.0) * cosine;
    let t = if divisor.abs() < 1e-6 { 0.0 } else { count * cosine / divisor };
    vec![t / count; terms]
}

/// Weights by the mean squares of so many values, zeros included.
#[expect(clippy::cast_precision_loss, reason = "a mean")]
pub(super) fn energies(least: f64, gram: &Gram, elements: u64) -> Vec<f64> {
    let terms = gram.terms();
    let means: Vec<f64> = (0..terms).map(|i| gram.dot(i, i) / elements as f64).collect();
    let sum: f64 = means.iter().sum();
    if sum < least {
        return vec![1.0 / number(terms); terms];
    }
    means.iter().map(|mean| mean / sum).collect()
}

/// What a term counts where it is alone, by the numbers of elements where it is, and where it is not.
#[expect(clippy::cast_precision_loss, reason = "a ratio")]
pub(super) fn overlaps(r: f64, alpha: f64, kept: &[[u64; 2]]) -> Vec<f64> {
    let factor = |[own, shared]: &[u64; 2]| {
        let ratio = if *own == 0 { 0.0 } else { *shared as f64 / *own as f64 };
        1.0 + r * ratio.min(alpha)
    };
    kept.iter().map(factor).collect()
}

/// The product of two norms. The root of a square is exact: vectors that are equal or opposite have a cosine of exactly 1 or -1.
fn norms(gram: &Gram, i: usize, j: usize) -> f64 {
    let squares = gram.dot(i, i) * gram.dot(j, j);
    if squares.is_normal() { squares.sqrt() } else { gram.norm(i) * gram.norm(j) }
}

/// The length of a combination of the values.
fn long(vector: &[f64], gram: &Gram) -> f64 {
    let mut square = 0.0;
    for (i, x) in vector.iter().enumerate() {
        let row: f64 = vector.iter().enumerate().map(|(j, y)| y * gram.dot(i, j)).sum();
        square += x * row;
    }
    // Rounding can make nothing less than nothing.
    square.max(0.0).sqrt()
}

fn scale(vector: &mut [f64], factor: f64) {
    for x in vector {
        *x *= factor;
    }
}

#[expect(clippy::cast_precision_loss, reason = "at most as many as a plan allows")]
fn number(count: usize) -> f64 {
    count as f64
}
