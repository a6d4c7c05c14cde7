//! What a blend is, by its definition: whole tensors in memory, sorted where something is to be the largest.

use elo_surgery::plan::{Blend, Keep, Solve, Span, Vote};

/// Philox4x32-10: the word of an element.
pub(super) fn draw(seed: u64, element: u64) -> u32 {
    let group = element / 4;
    let mut c = [group as u32, (group >> 32) as u32, 0, 0];
    let mut k = [seed as u32, (seed >> 32) as u32];
    for _ in 0..10 {
        let a = u64::from(c[0]) * 0xD251_1F53;
        let b = u64::from(c[2]) * 0xCD9E_8D57;
        c = [(b >> 32) as u32 ^ c[1] ^ k[0], b as u32, (a >> 32) as u32 ^ c[3] ^ k[1], a as u32];
        k = [k[0].wrapping_add(0x9E37_79B9), k[1].wrapping_add(0xBB67_AE85)];
    }
    c[(element % 4) as usize]
}

/// NaNs are larger than infinity.
fn size(value: f32) -> f64 {
    if value.is_nan() { f64::MAX } else { f64::from(value.abs()).min(f64::MAX / 2.0) }
}

/// Elements from the largest to the smallest; of equal ones the first is the largest.
fn order(sizes: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..sizes.len()).collect();
    order.sort_by(|a, b| sizes[*b].total_cmp(&sizes[*a]).then(a.cmp(b)));
    order
}

fn softmax(row: &[f32]) -> Vec<f64> {
    let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f64> = row.iter().map(|x| (f64::from(*x) - f64::from(largest)).exp()).collect();
    let sum: f64 = powers.iter().sum();
    powers.iter().map(|x| x / sum + 1e-8).collect()
}

fn important(base: &[f32], x: &[f32], v: &[f32], columns: usize) -> Vec<bool> {
    let mut importance = Vec::new();
    for ((b, x), v) in base.chunks(columns).zip(x.chunks(columns)).zip(v.chunks(columns)) {
        let (p, q) = (softmax(x), softmax(b));
        let divergence: f64 = p.iter().zip(&q).map(|(p, q)| p * (p / q).ln()).sum();
        importance.extend(v.iter().map(|v| (f64::from(v.abs()) * divergence) as f32));
    }
    let mut sorted = importance.clone();
    sorted.sort_by(f32::total_cmp);
    let at = |quarters: usize| f64::from(sorted[quarters * (sorted.len() - 1) / 4]);
    let least = at(2) + 1.5 * (at(3) - at(1));
    let less = |x: f32| f64::from(x).partial_cmp(&least) == Some(std::cmp::Ordering::Less);
    importance.iter().map(|x| !less(*x)).collect()
}

fn varied(values: &[Vec<f32>], share: f64) -> Vec<bool> {
    let count = values.len() as f64;
    let variance = |i: usize| {
        let mean = values.iter().map(|v| f64::from(v[i])).sum::<f64>() / count;
        (values.iter().map(|v| (f64::from(v[i]) - mean).powi(2)).sum::<f64>() / count) as f32
    };
    let sizes: Vec<f64> = (0..values[0].len()).map(|i| size(variance(i))).collect();
    let some = sizes.iter().filter(|x| **x > 0.0).count();
    let mut kept = vec![false; sizes.len()];
    for i in order(&sizes).into_iter().take((some as f64 * share) as usize) {
        kept[i] = true;
    }
    kept
}

fn kept(
    keep: Keep,
    term: usize,
    base: &[f32],
    terms: &[Vec<f32>],
    values: &[Vec<f32>],
) -> Vec<bool> {
    let v = &values[term];
    let sizes: Vec<f64> = v.iter().map(|v| size(*v)).collect();
    let mut kept = vec![false; v.len()];
    match keep {
        Keep::All | Keep::Near { .. } => kept.fill(true),
        Keep::Largest { skip, count } => {
            for i in order(&sizes).into_iter().skip(skip as usize).take(count as usize) {
                kept[i] = true;
            }
        }
        Keep::Above { magnitude } => {
            kept = sizes.iter().map(|x| *x > f64::from(magnitude as f32)).collect();
        }
        Keep::Random { probability, seed } => {
            let below = probability * 4_294_967_296.0;
            for (i, kept) in kept.iter_mut().enumerate() {
                *kept = f64::from(draw(seed, i as u64)) < below.round();
            }
        }
        Keep::Ranked { low, high, seed, columns } => {
            let columns = columns as usize;
            for (row, sizes) in sizes.chunks(columns).enumerate() {
                for (rank, at) in order(sizes).into_iter().rev().enumerate() {
                    let share = if columns == 1 { 0.5 } else { rank as f64 / (columns - 1) as f64 };
                    let below = ((low + (high - low) * share) * 4_294_967_296.0).round();
                    let i = row * columns + at;
                    kept[i] = f64::from(draw(seed, i as u64)) < below;
                }
            }
        }
        Keep::Varied { share } => kept = varied(values, share),
        Keep::Important { columns } => kept = important(base, &terms[term], v, columns as usize),
        _ => panic!("{keep:?}"),
    }
    kept
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The weights of vectors, by nuslerp or model stock.
fn solved(solve: Solve, vectors: &[Vec<f64>], given: &[f64]) -> Vec<f64> {
    let cosine = |a: &[f64], b: &[f64], least: f64| {
        dot(a, b) / (dot(a, a).sqrt() * dot(b, b).sqrt()).max(least)
    };
    match solve {
        Solve::Nuslerp => {
            let t = given[1] / (given[0] + given[1]);
            let cosine = cosine(&vectors[0], &vectors[1], 1e-14).clamp(-1.0, 1.0);
            if 1.0 - cosine.abs() < 3e-8 {
                return vec![1.0 - t, t];
            }
            let angle = cosine.acos();
            vec![((1.0 - t) * angle).sin() / angle.sin(), (t * angle).sin() / angle.sin()]
        }
        Solve::ModelStock => {
            let n = vectors.len() as f64;
            let mut sum = 0.0;
            for (i, a) in vectors.iter().enumerate() {
                for b in &vectors[i + 1..] {
                    sum += cosine(a, b, 1e-6);
                }
            }
            let mean = sum / (n * (n - 1.0) / 2.0);
            let t = n * mean / (1.0 + (n - 1.0) * mean);
            vec![if t.is_finite() { t / n } else { 0.0 }; vectors.len()]
        }
        _ => panic!("{solve:?}"),
    }
}

fn spanned(
    blend: &Blend,
    solve: Solve,
    base: &[f32],
    terms: &[Vec<f32>],
    columns: usize,
) -> Vec<f32> {
    let n = terms[0].len();
    let groups: Vec<Vec<usize>> = match blend.span {
        Span::Rows { .. } => {
            (0..n / columns).map(|row| (row * columns..(row + 1) * columns).collect()).collect()
        }
        _ => (0..columns).map(|column| (column..n).step_by(columns).collect()).collect(),
    };
    let given: Vec<f64> = blend.terms.iter().map(|term| term.weight).collect();
    let mut out = vec![0.0; n];
    for group in groups {
        let of = |i: usize| if blend.base.is_some() { base[i] } else { 0.0 };
        let vector = |x: &Vec<f32>| group.iter().map(|&i| f64::from(x[i] - of(i))).collect();
        let vectors: Vec<Vec<f64>> = terms.iter().map(vector).collect();
        let weights = solved(solve, &vectors, &given);
        for (at, &i) in group.iter().enumerate() {
            let zero = |k: usize| dot(&vectors[k], &vectors[k]) <= 0.0;
            let sum: f64 =
                (0..terms.len()).filter(|k| !zero(*k)).map(|k| weights[k] * vectors[k][at]).sum();
            out[i] = (f64::from(of(i)) + blend.lambda * sum) as f32;
        }
    }
    out
}

/// The result in f32.
pub(super) fn expected(
    blend: &Blend,
    base: Option<&[f32]>,
    terms: &[Vec<f32>],
    columns: u64,
) -> Vec<f32> {
    let base = base.unwrap_or_default();
    let n = terms[0].len();
    if let (Span::Rows { .. } | Span::Columns { .. }, Some(solve)) = (blend.span, blend.solve) {
        return spanned(blend, solve, base, terms, columns as usize);
    }
    let value = |x: f32, i: usize| if blend.deltas { x - base[i] } else { x };
    let mut values: Vec<Vec<f32>> =
        terms.iter().map(|x| x.iter().enumerate().map(|(i, x)| value(*x, i)).collect()).collect();
    let kept: Vec<Vec<bool>> =
        (0..terms.len()).map(|k| kept(blend.terms[k].keep, k, base, terms, &values)).collect();
    for (term, values) in blend.terms.iter().zip(&mut values) {
        if let Keep::Near { t } = term.keep {
            for v in values {
                *v *= (t as f32 / v.abs().max(1e-6)).clamp(0.0, 1.0);
            }
        }
    }
    let wide = |k: usize| (0..n).map(move |i| (i, k));
    let l1 = |k: usize, all: bool| -> f64 {
        wide(k)
            .filter(|(i, k)| all || kept[*k][*i])
            .map(|(i, k)| f64::from(values[k][i].abs()))
            .sum()
    };
    let mut weights: Vec<f64> = blend.terms.iter().map(|term| term.weight).collect();
    let mut alone: Vec<f64> = blend.terms.iter().map(|term| term.alone).collect();
    match blend.solve {
        Some(Solve::Energy { least }) => {
            let energy = |k: usize| {
                let squares = wide(k)
                    .filter(|(i, k)| kept[*k][*i])
                    .map(|(i, k)| f64::from(values[k][i]).powi(2));
                squares.sum::<f64>() / n as f64
            };
            let energies: Vec<f64> = (0..terms.len()).map(energy).collect();
            let sum: f64 = energies.iter().sum();
            let even = 1.0 / terms.len() as f64;
            weights = energies.iter().map(|x| if sum < least { even } else { x / sum }).collect();
        }
        Some(Solve::Overlap { r, alpha }) => {
            for (k, alone) in alone.iter_mut().enumerate() {
                let others = |i: usize| kept.iter().filter(|kept| kept[i]).count() - 1;
                let count = |shared: bool| {
                    (0..n).filter(|&i| kept[k][i] && (others(i) > 0) == shared).count()
                };
                let (own, shared) = (count(false), count(true));
                let ratio = if own == 0 { 0.0 } else { shared as f64 / own as f64 };
                *alone = 1.0 + r * ratio.min(alpha);
            }
        }
        _ => {}
    }
    let factor = |k: usize| {
        let term = &blend.terms[k];
        let mut factor = weights[k] * term.gain;
        let (all, some) = (l1(k, true), l1(k, false));
        // Limited values are all there are.
        if term.rescale && all >= 1e-7 && some >= 1e-7 && !matches!(term.keep, Keep::Near { .. }) {
            factor *= all / some;
        }
        factor as f32
    };
    let factors: Vec<f32> = (0..terms.len()).map(factor).collect();
    (0..n)
        .map(|i| {
            let p = |k: usize| factors[k] * values[k][i];
            let mut counting: Vec<usize> = (0..terms.len()).filter(|&k| kept[k][i]).collect();
            if let Some(vote) = blend.vote {
                let q = |k: usize| if vote == Vote::Weighted { p(k) } else { values[k][i] };
                let sum = counting.iter().fold(-0.0, |sum: f32, &k| sum + q(k));
                let plus = sum >= 0.0 || sum.is_nan();
                counting
                    .retain(|&k| q(k).is_nan() || (q(k) > 0.0 && plus) || (q(k) < 0.0 && !plus));
            }
            let mut sum = counting.iter().fold(-0.0, |sum: f32, &k| sum + p(k));
            if let [k] = counting[..]
                && alone[k] != 1.0
            {
                sum *= alone[k] as f32;
            }
            if let Some(divide) = blend.divide {
                let by = counting.iter().fold(0.0, |sum: f32, &k| sum + weights[k] as f32);
                sum /= if by.abs() >= divide.least as f32 { by } else { divide.instead as f32 };
            }
            let scaled = blend.lambda as f32 * sum;
            if blend.base.is_some() { base[i] + scaled } else { scaled }
        })
        .collect()
}
