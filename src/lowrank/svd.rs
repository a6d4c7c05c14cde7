//! Small dense factorisations in f64: orthonormal columns, singular values.

use ndarray::{Array1, Array2, Axis, s};

/// Columns that lost all but this share of their length to the ones before them are nothing but rounding.
const LOST: f64 = 1e-7;
/// Off-diagonal products below this share of the lengths count as none.
const ORTHOGONAL: f64 = 1e-14;
/// Far more than any matrix has needed.
const MOST_SWEEPS: usize = 40;

/// Replaces the columns by orthonormal ones that span the same space (Gram and Schmidt, twice). A column that depends on those
/// before it becomes zero.
pub(super) fn orthonormalise(matrix: &mut Array2<f64>) {
    // Columns are worked on as rows, which lie together.
    let mut rows = matrix.t().as_standard_layout().into_owned();
    for i in 0..rows.nrows() {
        let (before, mut rest) = rows.view_mut().split_at(Axis(0), i);
        let mut row = rest.row_mut(0);
        let length = row.dot(&row).sqrt();
        for _ in 0..2 {
            let shares = before.dot(&row);
            row -= &before.t().dot(&shares);
        }
        let left = row.dot(&row).sqrt();
        if left > LOST * length && left > 0.0 {
            row /= left;
        } else {
            row.fill(0.0);
        }
    }
    matrix.assign(&rows.t());
}

/// `matrix = u * diag(values) * v^T` of a square matrix, values from the largest (one-sided Jacobi, Hestenes 1958).
pub(super) fn decompose(matrix: &Array2<f64>) -> (Array2<f64>, Array1<f64>, Array2<f64>) {
    let n = matrix.ncols();
    let mut columns = matrix.t().as_standard_layout().into_owned();
    let mut v = Array2::<f64>::eye(n);
    for _ in 0..MOST_SWEEPS {
        let mut turned = false;
        for i in 0..n {
            for j in i + 1..n {
                let (a, b) = (columns.row(i), columns.row(j));
                let (aa, bb, ab) = (a.dot(&a), b.dot(&b), a.dot(&b));
                if ab.abs() <= ORTHOGONAL * (aa * bb).sqrt() || ab == 0.0 {
                    continue;
                }
                turned = true;
                let zeta = (bb - aa) / (2.0 * ab);
                let tangent = zeta.signum() / (zeta.abs() + zeta.hypot(1.0));
                let cosine = 1.0 / tangent.hypot(1.0);
                rotate(&mut columns, i, j, cosine, cosine * tangent);
                rotate(&mut v, i, j, cosine, cosine * tangent);
            }
        }
        if !turned {
            break;
        }
    }
    let lengths: Vec<f64> = columns.rows().into_iter().map(|row| row.dot(&row).sqrt()).collect();
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|a, b| lengths[*b].total_cmp(&lengths[*a]));
    let (mut u, mut turned) = (Array2::zeros(matrix.dim()), Array2::zeros((n, n)));
    let mut values = Array1::zeros(n);
    for (to, from) in order.into_iter().enumerate() {
        let length = lengths[from];
        values[to] = length;
        if length > 0.0 {
            u.column_mut(to).assign(&(&columns.row(from) / length));
        }
        turned.column_mut(to).assign(&v.row(from));
    }
    (u, values, turned)
}

fn rotate(rows: &mut Array2<f64>, i: usize, j: usize, cosine: f64, sine: f64) {
    let (mut a, mut b) = rows.multi_slice_mut((s![i, ..], s![j, ..]));
    for (a, b) in a.iter_mut().zip(b.iter_mut()) {
        (*a, *b) = (cosine * *a - sine * *b, sine * *a + cosine * *b);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(rows: usize, columns: usize) -> Array2<f64> {
        Array2::from_shape_fn((rows, columns), |(i, j)| {
            let n = u32::try_from(i * 31 + j * 17 + i * j).unwrap_or(0);
            f64::from(n % 29) / 7.0 - 2.0
        })
    }

    fn far(a: &Array2<f64>, b: &Array2<f64>) -> f64 {
        (a - b).iter().fold(0.0_f64, |far, x| far.max(x.abs()))
    }

    #[test]
    fn columns_become_orthonormal_and_span_the_same() {
        let original = matrix(12, 5);
        let mut q = original.clone();
        orthonormalise(&mut q);
        assert!(far(&q.t().dot(&q), &Array2::eye(5)) < 1e-14);
        assert!(far(&q.dot(&q.t().dot(&original)), &original) < 1e-12);
        let mut twice = matrix(12, 5);
        let first = twice.column(0).to_owned();
        twice.column_mut(3).assign(&(&first * 2.0));
        orthonormalise(&mut twice);
        assert!(twice.column(3).iter().all(|x| *x == 0.0));
    }

    #[test]
    fn factors_multiply_to_the_matrix() {
        for n in [1, 2, 7] {
            let original = matrix(n, n);
            let (u, values, v) = decompose(&original);
            assert!(far(&(&u * &values).dot(&v.t()), &original) < 1e-12, "{n}");
            assert!(far(&v.t().dot(&v), &Array2::eye(n)) < 1e-13);
            assert!(values.windows(2).into_iter().all(|pair| pair[0] >= pair[1]));
        }
        let (_, values, _) = decompose(&Array2::zeros((3, 3)));
        assert!(values.iter().all(|value| *value == 0.0));
    }
}
