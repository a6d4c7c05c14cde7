//! Low-rank adapters made from checkpoints and from one another.
//!
//! [`extract()`] approximates the difference of two models by a product of small matrices for each linear weight: a randomised
//! singular value decomposition (Halko, Martinsson and Tropp, SIAM Review 2011, algorithm 4.4 with `power` iterations). Matrices are read in
//! blocks of rows, as often as the algorithm has products with them, so nothing of their size is ever in memory: only their
//! factors are. [`join()`] is the weighted sum of adapters: ranks add up.
//!
//! Results of tensors go to a work folder beside the output; a run that was interrupted finds them there again. From there a
//! [`Plan`](crate::plan::Plan) makes the adapter, as everything is made: whole or not at all.

mod difference;
mod extract;
mod join;
mod output;
mod sketch;
mod svd;

pub use extract::{Extract, Extraction, Foreseen, Found, Rank, extract, foresee};
pub use join::join;
pub use output::{Made, remove_left_work, remove_work, works};
