//! The tensors of a model in f32, and their gradients.

use std::collections::HashMap;

/// One tensor: a matrix `[rows, cols]`, or a vector of `cols` with one row.
#[derive(Clone, Debug)]
pub(in crate::trainer) struct Weight {
    /// Its name in the checkpoint.
    pub(in crate::trainer) name: String,
    /// Rows: outputs of a linear map, entries of the vocabulary; 1 for a vector.
    pub(in crate::trainer) rows: usize,
    /// Elements of a row.
    pub(in crate::trainer) cols: usize,
    /// Whether it is a matrix in the checkpoint. Vectors (norms, biases) are not decayed.
    pub(in crate::trainer) is_matrix: bool,
    /// Whether it is trained.
    pub(in crate::trainer) trainable: bool,
    /// Its values, row-major.
    pub(in crate::trainer) values: Vec<f32>,
}

/// All tensors of a model.
#[derive(Clone, Debug, Default)]
pub(in crate::trainer) struct Weights {
    tensors: Vec<Weight>,
    by_name: HashMap<String, usize>,
}

impl Weights {
    /// Adds a tensor.
    pub(in crate::trainer) fn push(&mut self, weight: Weight) {
        self.by_name.insert(weight.name.clone(), self.tensors.len());
        self.tensors.push(weight);
    }

    /// The place of a tensor.
    pub(super) fn find(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    /// The tensor at a place.
    pub(super) fn at(&self, place: usize) -> &Weight {
        &self.tensors[place]
    }

    /// Its values.
    pub(super) fn values(&self, place: usize) -> &[f32] {
        &self.tensors[place].values
    }

    /// Every tensor.
    pub(in crate::trainer) fn iter(&self) -> impl Iterator<Item = &Weight> {
        self.tensors.iter()
    }

    /// Every tensor, to be changed.
    pub(in crate::trainer) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Weight> {
        self.tensors.iter_mut()
    }
}

/// Gradients of the trainable tensors, by place; empty for frozen ones.
#[derive(Clone, Debug)]
pub(in crate::trainer) struct Gradients(Vec<Vec<f32>>);

impl Gradients {
    /// Zeros for everything trainable.
    pub(in crate::trainer) fn zeros(weights: &Weights) -> Self {
        let zeros = |w: &Weight| if w.trainable { vec![0.0; w.values.len()] } else { Vec::new() };
        Self(weights.iter().map(zeros).collect())
    }

    /// The gradient of a tensor, if it is wanted.
    pub(super) fn get(&mut self, place: usize) -> Option<&mut [f32]> {
        Some(self.0[place].as_mut_slice()).filter(|g| !g.is_empty())
    }

    /// Whether the gradient of a tensor is wanted.
    pub(super) fn wants(&self, place: usize) -> bool {
        !self.0[place].is_empty()
    }

    /// All gradients, in the order of the tensors.
    pub(in crate::trainer) fn iter(&self) -> impl Iterator<Item = &[f32]> {
        self.0.iter().map(Vec::as_slice)
    }

    /// All gradients, to be changed.
    pub(in crate::trainer) fn iter_mut(&mut self) -> impl Iterator<Item = &mut [f32]> {
        self.0.iter_mut().map(Vec::as_mut_slice)
    }
}
