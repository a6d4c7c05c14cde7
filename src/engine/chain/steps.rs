//! One element after the other, one rounding after the other.

use super::grid::Grid;
use super::keep::Kept;
use crate::engine::device::{Health, Values};
use crate::engine::float::Float;
use crate::plan::{Blend, Chain, Keep, Steps};

/// A run of elements of a part.
pub(super) struct Run<'a> {
    pub(super) chain: &'a Chain,
    pub(super) blend: &'a Blend,
    /// The dtype of the chain.
    pub(super) grid: Grid,
    /// What was found out about the terms, one for each, if that was needed.
    pub(super) kept: &'a [Kept],
    /// Number of the first element within the part.
    pub(super) first: usize,
    pub(super) base: Option<Values<'a>>,
    pub(super) terms: Vec<Values<'a>>,
    /// The output's format.
    pub(super) float: Float,
}

impl Run<'_> {
    /// Computes all elements of `out`.
    #[expect(clippy::cast_possible_truncation, reason = "PyTorch casts through f32 too")]
    pub(super) fn compute(&self, out: &mut [u8]) -> Health {
        let mut health = Health::default();
        let mut work = Work::of(self);
        for (i, bytes) in out.chunks_exact_mut(self.float.size()).enumerate() {
            let value = self.element(i, &mut work);
            let narrow = self.float.size() < 4;
            self.float.write(if narrow { f64::from(value as f32) } else { value }, bytes);
            let written = self.float.read(bytes);
            if !written.is_finite() {
                health.nan += u64::from(written.is_nan());
                health.infinite += u64::from(!written.is_nan());
                let mut inputs = self.base.iter().chain(&self.terms);
                health.broken += u64::from(inputs.all(|values| values.at(i).is_finite()));
            }
        }
        health
    }

    fn element(&self, i: usize, work: &mut Work) -> f64 {
        let grid = self.grid;
        match self.chain.steps {
            Steps::Scaled => grid.round(self.term(0, i) * work.weights[0]),
            Steps::Linear => self.linear(i, work),
            Steps::TaskVectors { .. } => self.task_vectors(i, work),
            Steps::Shares => self.shares(i, work, None),
            Steps::SharesTimes { .. } => {
                let wide = if grid == Grid::F64 { Grid::F64 } else { Grid::F32 };
                self.shares(i, work, Some(wide))
            }
            Steps::Near => self.near(i, work),
        }
    }

    fn term(&self, k: usize, i: usize) -> f64 {
        self.grid.round(self.terms[k].at(i))
    }

    fn base(&self, i: usize) -> f64 {
        self.base.map_or(0.0, |base| self.grid.round(base.at(i)))
    }

    fn linear(&self, i: usize, work: &Work) -> f64 {
        let wide = self.grid.wide();
        let mut sum = 0.0;
        for (k, weight) in work.weights.iter().enumerate() {
            sum = fused(wide, self.term(k, i), *weight, sum);
        }
        if self.blend.divide.is_some() {
            sum = wide.round(sum / work.weight_sum);
        }
        self.grid.round(sum)
    }

    fn task_vectors(&self, i: usize, work: &mut Work) -> f64 {
        let (grid, base) = (self.grid, self.base(i));
        for k in 0..self.terms.len() {
            let mut delta = grid.round(self.term(k, i) - base);
            if let Some(kept) = self.kept.get(k)
                && let Some(bits) = &kept.bits
            {
                let own = work.scaled[k];
                delta = own.round(delta);
                if !bits.get(self.first + i) {
                    delta *= 0.0;
                }
                delta = grid.round(own.round(delta * kept.scale.unwrap_or(1.0)));
            }
            work.values[k] = grid.round(delta * work.weights[k]);
        }
        let mut divisor = work.weight_sum;
        if self.blend.vote.is_some() {
            let plus = sum_of(grid, work.values.iter().copied()) >= 0.0;
            let agrees = |value: f64| if plus { value > 0.0 } else { value < 0.0 };
            let weights = work.values.iter().zip(&work.weights);
            let times = weights.map(|(v, w)| if agrees(*v) { *w } else { w * 0.0 });
            divisor = sum_of(grid, times);
            for value in work.values.iter_mut().filter(|value| !agrees(**value)) {
                *value *= 0.0;
            }
        }
        let mut mixed = sum_of(grid, work.values.iter().copied());
        if let Some(divide) = self.blend.divide {
            let divisor = if divisor.abs() < work.least_divisor { divide.instead } else { divisor };
            mixed = grid.round(mixed / divisor);
        }
        if self.blend.lambda.to_bits() != 1.0_f64.to_bits() {
            mixed = grid.round(mixed * grid.wide().round(self.blend.lambda));
        }
        grid.round(base + mixed)
    }

    /// Shares of kept terms; with `wide`, those that are alone are multiplied first, and all is in that.
    fn shares(&self, i: usize, work: &mut Work, wide: Option<Grid>) -> f64 {
        let (grid, base) = (self.grid, self.base(i));
        let mut count = 0.0;
        for k in 0..self.terms.len() {
            let delta = grid.round(self.term(k, i) - base);
            let kept = delta.abs() > work.least[k];
            count += f64::from(u8::from(kept));
            work.values[k] = if kept { delta } else { delta * 0.0 };
        }
        let (alone, count) = (count <= 1.0 && count > 0.0, grid.round(count.max(1.0)));
        for (k, value) in work.values.iter_mut().enumerate() {
            let mut own = if alone { *value } else { *value * 0.0 };
            let shared = if alone || count <= 1.0 { *value * 0.0 } else { *value };
            if let Some(wide) = wide {
                own = wide.round(own * self.kept.get(k).map_or(1.0, |kept| kept.alone));
            }
            *value = wide.unwrap_or(grid).round(own + grid.round(shared / count));
        }
        let grid = wide.unwrap_or(grid);
        grid.round(base + sum_of(grid, work.values.iter().copied()))
    }

    fn near(&self, i: usize, work: &Work) -> f64 {
        let (grid, base, x) = (self.grid, self.base(i), self.term(0, i));
        let distance = at_least(grid.round(base - x).abs(), grid.round(1e-6));
        // PyTorch divides a number by a tensor in two steps.
        let weight = grid.round(grid.round(1.0 / distance) * work.near);
        let weight = at_least(weight, 0.0);
        let weight = if weight > 1.0 { 1.0 } else { weight };
        let rest = grid.round(grid.round(1.0 - weight) * base);
        grid.round(grid.round(weight * x) + rest)
    }

    /// Adds up where terms are kept beside others, and alone.
    pub(super) fn count_shares(&self, elements: usize, counts: &mut [(u64, u64)]) {
        let work = Work::of(self);
        let mut kept = vec![false; self.terms.len()];
        for i in 0..elements {
            let base = self.base(i);
            for (k, kept) in kept.iter_mut().enumerate() {
                *kept = self.grid.round(self.term(k, i) - base).abs() > work.least[k];
            }
            let alone = kept.iter().filter(|kept| **kept).count() == 1;
            for ((shared, own), _) in counts.iter_mut().zip(&kept).filter(|(_, kept)| **kept) {
                *(if alone { own } else { shared }) += 1;
            }
        }
    }
}

/// Scalars in the types in which they meet tensors, and room for one element of each term.
struct Work {
    weights: Vec<f64>,
    weight_sum: f64,
    values: Vec<f64>,
    least: Vec<f64>,
    /// What scaled values are rounded to first: what is kept at random is kept in a type of its own.
    scaled: Vec<Grid>,
    near: f64,
    least_divisor: f64,
}

impl Work {
    fn of(run: &Run<'_>) -> Self {
        let (grid, terms) = (run.grid, &run.blend.terms);
        let tensors = matches!(run.chain.steps, Steps::TaskVectors { .. });
        // Weights are a tensor of the dtype, or of f32, or a number.
        let of_weights = if tensors { grid } else { grid.wide() };
        let weights: Vec<f64> = terms.iter().map(|term| of_weights.round(term.weight)).collect();
        let weight_sum = if tensors {
            sum_of(grid, weights.iter().copied())
        } else {
            weights.iter().fold(0.0, |sum, weight| of_weights.round(sum + weight))
        };
        let least = terms.iter().map(|term| match term.keep {
            Keep::Above { magnitude } => grid.round(magnitude),
            _ => 0.0,
        });
        let scaled = terms.iter().map(|term| match term.keep {
            Keep::Random { .. } | Keep::Ranked { .. } => grid.of_draws(),
            _ => grid,
        });
        let near = terms.first().map_or(0.0, |term| match term.keep {
            Keep::Near { t } => grid.wide().round(t),
            _ => 0.0,
        });
        let least_divisor = run.blend.divide.map_or(0.0, |divide| {
            // Less than any number of the dtype tells zero from the rest.
            let rounded = grid.round(divide.least);
            if rounded > 0.0 { rounded } else { divide.least }
        });
        Self {
            values: vec![0.0; weights.len()],
            least: least.collect(),
            scaled: scaled.collect(),
            weights,
            weight_sum,
            near,
            least_divisor,
        }
    }
}

/// The sum over terms, as PyTorch makes it for up to four.
fn sum_of(grid: Grid, values: impl Iterator<Item = f64>) -> f64 {
    let wide = grid.wide();
    grid.round(values.fold(0.0, |sum, value| wide.round(sum + value)))
}

/// `x * w + sum`, rounded once.
#[expect(clippy::cast_possible_truncation, reason = "all three are f32, held as f64")]
fn fused(wide: Grid, x: f64, w: f64, sum: f64) -> f64 {
    match wide {
        Grid::F64 => x.mul_add(w, sum),
        _ => f64::from((x as f32).mul_add(w as f32, sum as f32)),
    }
}

/// The larger one; a NaN stays.
fn at_least(value: f64, least: f64) -> f64 {
    if value < least { least } else { value }
}
