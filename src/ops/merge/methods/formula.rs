//! A tensor's formula: a [`Blend`] of inputs that are meant by their position.

use crate::format::Shape;
use crate::plan::{Blend, Divide, Keep, Mean, Operand, Solve, Span, Term, Vote};

/// The tensor that a formula is for.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Site<'a> {
    /// Its name in the output.
    pub(in super::super) name: &'a str,
    pub(in super::super) shape: &'a Shape,
    /// Which of its parts; a tensor has several where expert layouts differ.
    pub(in super::super) part: u32,
    /// The user's seed.
    pub(in super::super) seed: u64,
    pub(in super::super) variant: Variant,
}

/// Where a method follows its paper instead of mergekit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in super::super) struct Variant {
    /// Signs are elected by the values alone, without weights.
    pub(in super::super) consensus: bool,
    /// What is largest is largest of the whole model, not of a tensor.
    pub(in super::super) trim: bool,
    /// What random keeps leave is divided by the probability, not scaled to the norm before.
    pub(in super::super) rescale: bool,
}

impl Site<'_> {
    /// Number of elements; shapes that overflow are refused when models are opened.
    pub(super) fn elements(&self) -> u64 {
        self.shape.elements().unwrap_or(u64::MAX)
    }

    /// Elements of a row along the last axis; a vector is one row.
    pub(super) fn columns(&self) -> u64 {
        self.shape.0.last().copied().unwrap_or(1)
    }

    /// Elements that one index of the first axis has; a vector is one column.
    pub(super) fn inner(&self) -> u64 {
        self.shape.0.iter().skip(1).product()
    }

    /// The random stream of a term. Tensors, terms and parts have streams of their own.
    pub(super) fn stream(&self, term: usize) -> u64 {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.seed.to_le_bytes());
        hasher.update(self.name.as_bytes());
        hasher.update(&[0]);
        // A blend has a few dozen terms at most.
        hasher.update(&u32::try_from(term).unwrap_or(u32::MAX).to_le_bytes());
        hasher.update(&self.part.to_le_bytes());
        let digest = *hasher.finalize().as_bytes();
        let mut first = [0; 8];
        first.copy_from_slice(&digest[..8]);
        u64::from_le_bytes(first)
    }
}

/// How a tensor comes from its inputs: a blend whose operands are positions.
#[derive(Clone, Debug, PartialEq)]
pub(in super::super) struct Formula {
    pub(super) base: Option<usize>,
    pub(super) deltas: bool,
    pub(super) terms: Vec<Weighted>,
    pub(super) lambda: f64,
    pub(super) solve: Option<Solve>,
    pub(super) span: Span,
    pub(super) vote: Option<Vote>,
    pub(super) divide: Option<Divide>,
    /// The terms become one, their mean by importances that are meant by their position too.
    pub(super) mean: Option<Vec<(Weighted, usize)>>,
}

/// An input as a term.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Weighted {
    pub(super) input: usize,
    pub(super) weight: f64,
    pub(super) keep: Keep,
    pub(super) gain: f64,
    pub(super) rescale: bool,
}

impl Weighted {
    /// An input that counts everywhere.
    pub(super) const fn new(input: usize, weight: f64) -> Self {
        Self { input, weight, keep: Keep::All, gain: 1.0, rescale: false }
    }
}

impl Formula {
    /// `base + w0*x0 + w1*x1 + ...`
    pub(super) const fn sum(base: Option<usize>, terms: Vec<Weighted>) -> Self {
        Self {
            base,
            deltas: false,
            terms,
            lambda: 1.0,
            solve: None,
            span: Span::Part,
            vote: None,
            divide: None,
            mean: None,
        }
    }

    /// `base + w0*(x0 - base) + w1*(x1 - base) + ...`
    pub(super) fn deltas(base: usize, terms: Vec<Weighted>) -> Self {
        Self { deltas: true, ..Self::sum(Some(base), terms) }
    }

    /// The input itself.
    pub(in super::super) fn copy(input: usize) -> Self {
        Self::sum(None, vec![Weighted::new(input, 1.0)])
    }

    /// The same where inputs besides the base are differences from it already.
    pub(in super::super) fn of_differences(self) -> Self {
        Self { deltas: false, ..self }
    }

    /// The same with weights that elements share by their importances, of which every term has one, and whose sum stays what it is.
    /// None if there is none: weights are from 0 and not all 0.
    pub(in super::super) fn shared(mut self, importances: &[usize]) -> Option<Self> {
        let total: f64 = self.terms.iter().map(|term| term.weight).sum();
        let negative = self.terms.iter().any(|term| term.weight < 0.0);
        if negative || total <= 0.0 || !total.is_finite() {
            return None;
        }
        let first = self.terms.first()?.input;
        let terms = std::mem::replace(&mut self.terms, vec![Weighted::new(first, total)]);
        self.mean = Some(terms.into_iter().zip(importances.iter().copied()).collect());
        Some(self)
    }

    /// The inputs that have a weight.
    pub(in super::super) fn weighed(&self) -> Vec<usize> {
        self.terms.iter().map(|term| term.input).collect()
    }

    /// The one input that the result is equal to.
    pub(in super::super) fn copied(&self) -> Option<usize> {
        match self.terms.as_slice() {
            [term] if *self == Self::copy(term.input) => Some(term.input),
            _ => None,
        }
    }

    /// Whether an element depends on others of its tensor.
    pub(in super::super) fn looks_around(&self) -> bool {
        let around = |term: &Weighted| {
            term.rescale
                || !matches!(
                    term.keep,
                    Keep::All | Keep::Above { .. } | Keep::Random { .. } | Keep::Near { .. }
                )
        };
        self.solve.is_some() || self.terms.iter().any(around)
    }

    /// The blend of these operands, one an input.
    pub(in super::super) fn blend(&self, operands: &[Operand]) -> Blend {
        let operand = |input: usize| match &self.mean {
            None => operands[input].clone(),
            Some(of) => {
                let slice = |at: usize| operands[at].slice.clone();
                let mean = Mean {
                    weights: of.iter().map(|(term, _)| term.weight).collect(),
                    importances: of.iter().map(|(_, importance)| slice(*importance)).collect(),
                    further: of.iter().skip(1).map(|(term, _)| slice(term.input)).collect(),
                };
                Operand { mean: Some(Box::new(mean)), ..operands[input].clone() }
            }
        };
        let term = |term: &Weighted| Term {
            keep: term.keep,
            gain: term.gain,
            rescale: term.rescale,
            ..Term::new(operand(term.input), term.weight)
        };
        let base = self.base.map(|base| operands[base].clone());
        Blend {
            deltas: self.deltas,
            solve: self.solve,
            span: self.span,
            vote: self.vote,
            divide: self.divide,
            ..Blend::sum(base, self.terms.iter().map(term).collect(), self.lambda)
        }
    }
}
