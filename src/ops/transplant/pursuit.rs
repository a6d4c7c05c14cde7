//! Rows as sums of other rows: the nearest one, or a few by orthogonal matching pursuit (Pati et al. 1993).
//!
//! In the donor's space the row of a token that the model lacks is approximated by rows of tokens that both have; what is found
//! there is applied to the model's rows of the same tokens (arXiv 2506.06607, as mergekit-tokensurgeon does).

use rayon::prelude::*;

/// Targets that are worked on together: atoms are read from memory once for all of them.
const BATCH: usize = 32;
/// Atoms that a thread looks at in one go.
const SHARE: usize = 1024;

/// The atoms of one target with their weights, and how much of the target is left: `|residual| / |target|`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Found {
    pub(super) atoms: Vec<(usize, f64)>,
    pub(super) left: f64,
}

/// For each target the atom at the least Euclidean distance.
pub(super) fn nearest(atoms: &[f32], targets: &[f32], columns: usize) -> Vec<Found> {
    let halves: Vec<f32> = atoms.chunks_exact(columns).map(|atom| dot(atom, atom) / 2.0).collect();
    let score = |_: usize, atom: usize, product: f32| product - halves[atom];
    let mut found = Vec::new();
    for batch in targets.chunks(BATCH * columns) {
        let best = best(atoms, batch, columns, &score);
        for (target, (atom, _)) in batch.chunks_exact(columns).zip(best) {
            let row = &atoms[atom * columns..(atom + 1) * columns];
            let rest: f64 = row.iter().zip(target).map(|(a, t)| f64::from(a - t).powi(2)).sum();
            found.push(Found { atoms: vec![(atom, 1.0)], left: (rest / norm2(target)).sqrt() });
        }
    }
    found
}

/// For each target `k` atoms: again and again the one whose product with what is left is largest in magnitude, then the weights of all that
/// leave least. Fewer where nothing is left, or where an atom is a sum of those that were chosen.
pub(super) fn pursue(atoms: &[f32], targets: &[f32], columns: usize, k: usize) -> Vec<Found> {
    let k = k.min(atoms.len() / columns.max(1));
    let mut found = Vec::new();
    for batch in targets.chunks(BATCH * columns) {
        let mut states: Vec<State> = batch.chunks_exact(columns).map(State::new).collect();
        let mut residuals = batch.to_vec();
        for _ in 0..k {
            let chosen: Vec<Vec<usize>> = states.iter().map(|state| state.atoms.clone()).collect();
            let score = |target: usize, atom: usize, product: f32| {
                if chosen[target].contains(&atom) { f32::NEG_INFINITY } else { product.abs() }
            };
            let best = best(atoms, &residuals, columns, &score);
            let steps = states.par_iter_mut().zip(residuals.par_chunks_exact_mut(columns));
            steps.zip(best).for_each(|((state, residual), (atom, score))| {
                if score > 0.0 && !state.done {
                    state.add(atoms, columns, atom, residual);
                }
            });
        }
        found.extend(states.into_iter().map(State::found));
    }
    found
}

/// A target on its way.
struct State {
    target: Vec<f32>,
    atoms: Vec<usize>,
    /// Lower triangle of the Cholesky factor of the atoms' products, row by row.
    factor: Vec<Vec<f64>>,
    /// Products of the atoms with the target.
    products: Vec<f64>,
    weights: Vec<f64>,
    left: f64,
    done: bool,
}

impl State {
    fn new(target: &[f32]) -> Self {
        Self {
            target: target.to_vec(),
            atoms: Vec::new(),
            factor: Vec::new(),
            products: Vec::new(),
            weights: Vec::new(),
            left: 1.0,
            done: norm2(target) <= 0.0,
        }
    }

    /// Takes one more atom and weighs all anew.
    fn add(&mut self, all: &[f32], columns: usize, atom: usize, residual: &mut [f32]) {
        let row = |atom: usize| &all[atom * columns..(atom + 1) * columns];
        let new = row(atom);
        // One more row of the factor: forward substitution.
        let mut line: Vec<f64> = Vec::with_capacity(self.atoms.len() + 1);
        for (i, other) in self.atoms.iter().enumerate() {
            let known: f64 = line.iter().zip(&self.factor[i]).map(|(a, b)| a * b).sum();
            line.push((product(row(*other), new) - known) / self.factor[i][i]);
        }
        let own = norm2(new);
        let rest = own - line.iter().map(|x| x * x).sum::<f64>();
        if rest <= own * 1e-12 {
            self.done = true;
            return;
        }
        line.push(rest.sqrt());
        self.factor.push(line);
        self.atoms.push(atom);
        self.products.push(product(new, &self.target));
        self.weights = self.solve();
        let mut left = 0.0;
        let mut rests: Vec<f64> = self.target.iter().map(|value| f64::from(*value)).collect();
        for (atom, weight) in self.atoms.iter().zip(&self.weights) {
            for (rest, value) in rests.iter_mut().zip(row(*atom)) {
                *rest -= weight * f64::from(*value);
            }
        }
        for (residual, rest) in residual.iter_mut().zip(rests) {
            left += rest * rest;
            #[expect(
                clippy::cast_possible_truncation,
                reason = "rounded to what it is compared in"
            )]
            {
                *residual = rest as f32;
            }
        }
        self.left = (left / norm2(&self.target)).sqrt();
        self.done = self.left < 1e-7;
    }

    /// Forward and back substitution.
    fn solve(&self) -> Vec<f64> {
        let count = self.atoms.len();
        let mut x = self.products.clone();
        for i in 0..count {
            let known: f64 = (0..i).map(|j| self.factor[i][j] * x[j]).sum();
            x[i] = (x[i] - known) / self.factor[i][i];
        }
        for i in (0..count).rev() {
            let known: f64 = (i + 1..count).map(|j| self.factor[j][i] * x[j]).sum();
            x[i] = (x[i] - known) / self.factor[i][i];
        }
        x
    }

    fn found(self) -> Found {
        Found { atoms: self.atoms.into_iter().zip(self.weights).collect(), left: self.left }
    }
}

/// For each target the atom of the best score, the first of several.
fn best(
    atoms: &[f32],
    targets: &[f32],
    columns: usize,
    score: &(impl Fn(usize, usize, f32) -> f32 + Sync),
) -> Vec<(usize, f32)> {
    let count = targets.len() / columns;
    let none = || vec![(0, f32::NEG_INFINITY); count];
    let better = |a: (usize, f32), b: (usize, f32)| if b.1 > a.1 { b } else { a };
    let shares: Vec<Vec<(usize, f32)>> = atoms
        .par_chunks(SHARE * columns)
        .enumerate()
        .map(|(share, rows)| {
            let mut best = none();
            for (atom, row) in (share * SHARE..).zip(rows.chunks_exact(columns)) {
                for (target, (known, values)) in
                    best.iter_mut().zip(targets.chunks_exact(columns)).enumerate()
                {
                    *known = better(*known, (atom, score(target, atom, dot(row, values))));
                }
            }
            best
        })
        .collect();
    shares
        .into_iter()
        .fold(none(), |all, share| all.into_iter().zip(share).map(|(a, b)| better(a, b)).collect())
}

/// Sixteen sums side by side, so that they are computed in vectors.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    const LANES: usize = 16;
    let mut sums = [0.0_f32; LANES];
    let (a, b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest: f32 = a.remainder().iter().zip(b.remainder()).map(|(x, y)| x * y).sum();
    for (x, y) in a.zip(b) {
        for ((sum, x), y) in sums.iter_mut().zip(x).zip(y) {
            *sum += x * y;
        }
    }
    sums.iter().sum::<f32>() + rest
}

fn product(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
}

fn norm2(a: &[f32]) -> f64 {
    product(a, a)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_a_sum_of_few_atoms_is_found() {
        // Atoms: unit vectors of unequal length and one along the diagonal.
        let atoms =
            [2.0, 0.0, 0.0, 0.0, 0.0, 3.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.1, 0.1, 0.1, 0.1];
        let targets = [4.0, -3.0, 0.0, 0.0, 0.0, 0.0, 0.9, 0.0, 0.0, 0.0, 0.0, 0.0];
        let found = pursue(&atoms, &targets, 4, 2);
        assert_eq!(found[0].atoms, [(1, -1.0), (0, 2.0)], "the largest product comes first");
        assert!(found[0].left < 1e-7);
        assert_eq!(found[1].atoms.len(), 1, "nothing is left");
        assert!((found[1].atoms[0].1 - f64::from(0.9_f32)).abs() < 1e-12);
        assert!(found[2].atoms.is_empty(), "zeros are made of nothing");
        let near = nearest(&atoms, &targets, 4);
        assert_eq!(
            [near[0].atoms[0], near[1].atoms[0], near[2].atoms[0]],
            [(0, 1.0), (2, 1.0), (3, 1.0)]
        );
    }

    #[test]
    fn no_weights_leave_less() {
        let noise = |seed: usize| {
            let bits = (seed as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            f32::from((bits >> 48) as u16) / 65_536.0 - 0.5
        };
        let columns = 20;
        let atoms: Vec<f32> = (0..3000 * columns).map(noise).collect();
        let targets: Vec<f32> = (0..40 * columns).map(|i| noise(i + 1_000_000)).collect();
        for (target, found) in
            targets.chunks_exact(columns).zip(pursue(&atoms, &targets, columns, 6))
        {
            assert_eq!(found.atoms.len(), 6);
            // At the least squares the residual is orthogonal to every atom that was chosen.
            let mut rest: Vec<f64> = target.iter().map(|v| f64::from(*v)).collect();
            for (atom, weight) in &found.atoms {
                for (rest, value) in rest.iter_mut().zip(&atoms[atom * columns..]) {
                    *rest -= weight * f64::from(*value);
                }
            }
            for (atom, _) in &found.atoms {
                let along: f64 =
                    rest.iter().zip(&atoms[atom * columns..]).map(|(r, v)| r * f64::from(*v)).sum();
                assert!(along.abs() < 1e-9, "{along}");
            }
            assert!(found.left < 0.7, "{}", found.left);
        }
    }
}
