//! Matrix products `c = scale a b (+ c)` in f32: the one place that calls the `gemm` crate.
//!
//! A product is cut into tiles of `c` by its shape alone and each tile is one single-threaded call, so the result does
//! not depend on how many threads share the tiles.

#![expect(unsafe_code, reason = "gemm takes pointers; see the SAFETY comments")]

use rayon::prelude::*;

/// Below this many multiplications a product is not worth sharing.
const SMALL: usize = 1 << 19;

/// A matrix in a slice, with any strides.
#[derive(Clone, Copy, Debug)]
pub(in crate::trainer) struct View<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_step: usize,
    col_step: usize,
}

impl<'a> View<'a> {
    /// A row-major `[rows, cols]` matrix that fills `data`.
    pub(in crate::trainer) fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        assert_eq!(data.len(), rows * cols, "matrix of {rows} x {cols}");
        Self { data, rows, cols, row_step: cols, col_step: 1 }
    }

    /// The same elements, rows and columns exchanged.
    pub(in crate::trainer) fn t(self) -> Self {
        let Self { data, rows, cols, row_step, col_step } = self;
        Self { data, rows: cols, cols: rows, row_step: col_step, col_step: row_step }
    }

    /// Whether the last element lies inside the slice; all others lie before it.
    fn fits(&self) -> bool {
        self.rows == 0
            || self.cols == 0
            || (self.rows - 1) * self.row_step + (self.cols - 1) * self.col_step < self.data.len()
    }
}

/// Raw destination that tiles share; they never overlap.
#[derive(Clone, Copy)]
struct Target(*mut f32);

// SAFETY: the pointer is only used through `tile`, whose callers give each thread other elements.
unsafe impl Send for Target {}
// SAFETY: as above.
unsafe impl Sync for Target {}

/// `c = scale a b`, or `c += scale a b` if `add`, on the calling thread. `c` is row-major and full.
pub(in crate::trainer) fn multiply(scale: f32, a: View, b: View, add: bool, c: &mut [f32]) {
    check(&a, &b, c);
    let (rows, cols) = (a.rows, b.cols);
    // SAFETY: `check` has compared the shapes with the lengths, and `c` is borrowed mutably here.
    unsafe { tile(scale, a, b, add, Target(c.as_mut_ptr()), (0, 0), (rows, cols)) }
}

/// [`multiply`], shared among the threads of the current pool.
pub(in crate::trainer) fn multiply_parallel(a: View, b: View, add: bool, c: &mut [f32]) {
    check(&a, &b, c);
    let (rows, cols) = (a.rows, b.cols);
    let (high, broad) = tile_shape(rows, cols, a.cols);
    let target = Target(c.as_mut_ptr());
    let across = cols.div_ceil(broad).max(1);
    (0..rows.div_ceil(high) * across).into_par_iter().for_each(|i| {
        let at = (i / across * high, i % across * broad);
        let size = (high.min(rows - at.0), broad.min(cols - at.1));
        // SAFETY: `check` has compared the shapes with the lengths; the tiles partition `c`, which is
        // borrowed mutably until all of them are done.
        unsafe { tile(1.0, a, b, add, target, at, size) }
    });
}

/// Height and breadth of the tiles of a product.
fn tile_shape(rows: usize, cols: usize, inner: usize) -> (usize, usize) {
    if rows * cols * inner <= SMALL {
        return (rows.max(1), cols.max(1));
    }
    let side = if rows * cols >= 1 << 20 { 512 } else { 256 };
    (side, side)
}

fn check(a: &View, b: &View, c: &[f32]) {
    assert_eq!(a.cols, b.rows, "inner dimensions of a product");
    assert_eq!(c.len(), a.rows * b.cols, "result of a product");
    assert!(a.fits() && b.fits(), "a matrix reaches beyond its slice");
}

/// One tile of `c`, whose rows have `b.cols` elements.
///
/// # Safety
///
/// `a` and `b` fit their slices and agree on the inner dimension; `c` points to `a.rows * b.cols` elements; the tile
/// lies inside; nobody else reads or writes its elements meanwhile.
unsafe fn tile(
    scale: f32,
    a: View,
    b: View,
    add: bool,
    c: Target,
    (row, col): (usize, usize),
    (rows, cols): (usize, usize),
) {
    if rows == 0 || cols == 0 {
        return;
    }
    let step = |n: usize| n.cast_signed();
    // SAFETY: the caller promises that all offsets stay inside the three buffers; with no inner dimension
    // gemm reads neither `a` nor `b`, hence `wrapping_add`.
    unsafe {
        gemm::gemm(
            rows,
            cols,
            a.cols,
            c.0.add(row * b.cols + col),
            1,
            step(b.cols),
            add,
            a.data.as_ptr().wrapping_add(row * a.row_step),
            step(a.col_step),
            step(a.row_step),
            b.data.as_ptr().wrapping_add(col * b.col_step),
            step(b.col_step),
            step(b.row_step),
            1.0,
            scale,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(count: usize, step: u32) -> Vec<f32> {
        (0..count as u32).map(|i| ((i * step) % 17) as f32 - 8.0).collect()
    }

    #[test]
    fn products_agree_with_the_definition() {
        let (m, n, k) = (70, 90, 110);
        let (a, b) = (numbers(m * k, 7), numbers(k * n, 5));
        let mut c = numbers(m * n, 3);
        let want: Vec<f32> = (0..m * n)
            .map(|i| c[i] + (0..k).map(|j| a[i / n * k + j] * b[j * n + i % n]).sum::<f32>())
            .collect();
        multiply_parallel(View::new(&a, m, k), View::new(&b, k, n), true, &mut c);
        assert_eq!(c, want);
        let mut transposed = vec![0.0; n * m];
        multiply(1.0, View::new(&b, k, n).t(), View::new(&a, m, k).t(), false, &mut transposed);
        let mut plain = vec![f32::NAN; m * n];
        multiply(1.0, View::new(&a, m, k), View::new(&b, k, n), false, &mut plain);
        assert!((0..m * n).all(|i| plain[i] == transposed[i % n * m + i / n]));
    }

    #[test]
    fn nothing_inside_leaves_zeros() {
        let mut c = vec![1.0; 6];
        multiply(1.0, View::new(&[], 2, 0), View::new(&[], 0, 3), false, &mut c);
        assert_eq!(c, [0.0; 6]);
    }
}
