//! Arithmetic on f32 slices: matrix products and vector loops that give the same bits for any number of threads.
//!
//! Work is cut into pieces whose size follows from shapes alone, and every sum has one fixed order.

mod product;
mod vector;

pub(super) use product::{View, multiply, multiply_parallel};
pub(super) use vector::{add, dot, exp_sum, largest, sigmoid, square_sum, wide};

/// Rows of a matrix that one task takes in loops over rows.
pub(super) const ROW_BLOCK: usize = 32;
