//! Numbers about tensors in memory: what is not finite, and how far two tensors are apart.
//!
//! Sums are f64 in a fixed number of lanes, so the same tiles in the same order give the same bits on every CPU.

use std::ops::AddAssign;
use std::sync::OnceLock;

use super::device::{Operand, Values};
use super::simd::Simd;
use crate::format::Dtype;

/// How two runs of elements differ. Sums leave out the elements that [`Comparison::non_finite`] counts.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Comparison {
    /// Elements compared.
    pub elements: u64,
    /// Elements of equal value: zeros of either sign are equal, and so are NaNs.
    pub equal: u64,
    /// Sum of `a*a`.
    pub sum_squares_a: f64,
    /// Sum of `b*b`.
    pub sum_squares_b: f64,
    /// Sum of `a*b`.
    pub dot: f64,
    /// Sum of the squares of `b-a`.
    pub sum_squares_difference: f64,
    /// Largest magnitude of `b-a`.
    pub largest_difference: f64,
    /// Elements that are NaN or infinite on either side.
    pub non_finite: u64,
}

impl Comparison {
    /// The numbers of two runs together.
    #[must_use]
    pub fn merge(mut self, other: Self) -> Self {
        self += other;
        self
    }

    /// `||b-a|| / ||a||`; 0 if there is no difference at all, infinite if only `a` is zero.
    pub fn relative_norm(&self) -> f64 {
        if self.sum_squares_difference > 0.0 {
            (self.sum_squares_difference / self.sum_squares_a).sqrt()
        } else {
            0.0
        }
    }

    /// Cosine of the angle between `a` and `b`; exactly 1 if there is no difference at all, 0 if one is zero.
    pub fn cosine(&self) -> f64 {
        let norms = self.sum_squares_a.sqrt() * self.sum_squares_b.sqrt();
        if self.sum_squares_difference == 0.0 {
            1.0
        } else if norms > 0.0 {
            (self.dot / norms).clamp(-1.0, 1.0)
        } else {
            0.0
        }
    }

    /// Mean of the squares of `b-a` over the finite elements; 0 if there are none.
    #[expect(
        clippy::cast_precision_loss,
        reason = "a mean over 2^53 elements is no better known than this"
    )]
    pub fn mean_square_difference(&self) -> f64 {
        match self.elements - self.non_finite {
            0 => 0.0,
            finite => self.sum_squares_difference / finite as f64,
        }
    }
}

impl AddAssign for Comparison {
    fn add_assign(&mut self, other: Self) {
        self.elements += other.elements;
        self.equal += other.equal;
        self.sum_squares_a += other.sum_squares_a;
        self.sum_squares_b += other.sum_squares_b;
        self.dot += other.dot;
        self.sum_squares_difference += other.sum_squares_difference;
        self.largest_difference = self.largest_difference.max(other.largest_difference);
        self.non_finite += other.non_finite;
    }
}

/// Counts `(NaNs, infinities)`. Dtypes that are not floats have neither.
pub fn non_finite(operand: Operand<'_>) -> (u64, u64) {
    Values::new(&operand).map_or((0, 0), |values| simd().non_finite(&values))
}

/// Compares two runs element by element, as far as the shorter one goes. Dtypes may differ.
///
/// Floats give every number. Integers, booleans and opaque dtypes give `elements` and `equal` alone: integers by
/// value, others by their bits if the dtypes are the same (dtypes without whole bytes count bytes as elements).
/// An integer never equals a float.
pub fn compare(a: Operand<'_>, b: Operand<'_>) -> Comparison {
    match (Values::new(&a), Values::new(&b)) {
        (Ok(a), Ok(b)) => simd().compare(&a, &b),
        _ => compare_bits(a, b),
    }
}

fn simd() -> Simd {
    static SIMD: OnceLock<Simd> = OnceLock::new();
    *SIMD.get_or_init(Simd::new)
}

fn compare_bits(a: Operand<'_>, b: Operand<'_>) -> Comparison {
    let (size_a, size_b) = (element_size(a.dtype), element_size(b.dtype));
    let pairs = a.bytes.chunks_exact(size_a).zip(b.bytes.chunks_exact(size_b));
    let elements = pairs.len() as u64;
    let equal = if a.dtype == b.dtype {
        pairs.filter(|(a, b)| a == b).count()
    } else {
        pairs
            .filter(|(x, y)| {
                let value = integer(a.dtype, x);
                value.is_some() && value == integer(b.dtype, y)
            })
            .count()
    };
    Comparison { elements, equal: equal as u64, ..Comparison::default() }
}

fn element_size(dtype: &Dtype) -> usize {
    let bytes = dtype.bytes().and_then(|bytes| usize::try_from(bytes).ok());
    bytes.unwrap_or(1)
}

/// The value of an integer element; `None` for other dtypes.
fn integer(dtype: &Dtype, bytes: &[u8]) -> Option<i128> {
    let mut wide = [0; 8];
    wide[..bytes.len()].copy_from_slice(bytes);
    let unsigned = u64::from_le_bytes(wide);
    let unused = 64 - 8 * u32::try_from(bytes.len()).ok()?;
    let signed = (unsigned << unused).cast_signed() >> unused;
    Some(match dtype {
        Dtype::I8 | Dtype::I16 | Dtype::I32 | Dtype::I64 => signed.into(),
        Dtype::Bool | Dtype::U8 | Dtype::U16 | Dtype::U32 | Dtype::U64 => unsigned.into(),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::cmp::Ordering;

    use super::*;
    use crate::engine::float::Float;
    use crate::engine::simd::BLOCK;

    fn encode(dtype: &Dtype, values: &[f64]) -> Vec<u8> {
        let float = Float::of(dtype).unwrap();
        let mut out = vec![0; values.len() * float.size()];
        for (value, out) in values.iter().zip(out.chunks_mut(float.size())) {
            float.write(*value, out);
        }
        out
    }

    fn floats() -> impl Iterator<Item = Dtype> {
        Dtype::KNOWN.into_iter().filter(Dtype::is_float)
    }

    #[test]
    fn counts_every_pattern_like_the_definition() {
        for dtype in floats() {
            let float = Float::of(&dtype).unwrap();
            let shift = 8 * float.size() - if float.size() == 1 { 8 } else { 16 };
            // The top bits decide; one low bit makes NaNs of what would be infinities.
            let patterns =
                (0..=u64::from(u16::MAX)).flat_map(|top| [top << shift, top << shift | 1]);
            let data: Vec<u8> =
                patterns.flat_map(|bits| bits.to_le_bytes()[..float.size()].to_vec()).collect();
            let values: Vec<f64> = data.chunks(float.size()).map(|b| float.read(b)).collect();
            let nan = values.iter().filter(|v| v.is_nan()).count() as u64;
            let infinite = values.iter().filter(|v| v.is_infinite()).count() as u64;
            assert!(nan > 0);
            for simd in Simd::levels() {
                let values = Values { float, bytes: &data };
                assert_eq!(simd.non_finite(&values), (nan, infinite), "{dtype}");
            }
        }
        let operand = |dtype, bytes| Operand { dtype, bytes };
        assert_eq!(non_finite(operand(&Dtype::I16, &[0xff; 8])), (0, 0));
    }

    #[test]
    fn comparisons_are_the_formulas_on_every_instruction_set() {
        let wave = |i: usize, step: f64| (f64::from(u16::try_from(i).unwrap()) * step).sin();
        for a_dtype in floats() {
            for b_dtype in floats() {
                for count in [0, 1, 7, 8, 67, BLOCK, 2 * BLOCK + 13] {
                    let mut a: Vec<f64> = (0..count).map(|i| wave(i, 0.37)).collect();
                    let mut b: Vec<f64> = (0..count).map(|i| wave(i, 0.41)).collect();
                    for i in (0..count).step_by(5) {
                        b[i] = a[i];
                    }
                    for i in (3..count).step_by(97) {
                        (a[i], b[i]) = match i % 4 {
                            0 => (f64::NAN, f64::NAN),
                            1 => (f64::INFINITY, 1.0),
                            2 => (0.0, f64::NAN),
                            _ => (-0.0, 0.0),
                        };
                    }
                    let (a, b) = (encode(&a_dtype, &a), encode(&b_dtype, &b));
                    check(&a_dtype, &a, &b_dtype, &b);
                }
            }
        }
    }

    fn check(a_dtype: &Dtype, a: &[u8], b_dtype: &Dtype, b: &[u8]) {
        let values = |dtype, bytes| Values { float: Float::of(dtype).unwrap(), bytes };
        let (a, b) = (values(a_dtype, a), values(b_dtype, b));
        let mut expected = Comparison::default();
        for i in 0..a.bytes.len() / a.float.size() {
            let (x, y) = (a.at(i), b.at(i));
            expected.elements += 1;
            let same = x.partial_cmp(&y) == Some(Ordering::Equal);
            expected.equal += u64::from(same || x.is_nan() && y.is_nan());
            if !x.is_finite() || !y.is_finite() {
                expected.non_finite += 1;
                continue;
            }
            expected.sum_squares_a += x * x;
            expected.sum_squares_b += y * y;
            expected.dot += x * y;
            expected.sum_squares_difference += (y - x) * (y - x);
            expected.largest_difference = expected.largest_difference.max((y - x).abs());
        }
        let found: Vec<_> = Simd::levels().iter().map(|s| s.compare(&a, &b)).collect();
        assert!(found.windows(2).all(|w| w[0] == w[1]), "{found:?}");
        let close = |a: f64, b: f64| (a - b).abs() <= 1e-12 * (a.abs() + b.abs()).max(1.0);
        let sums = |c: &Comparison| {
            let Comparison { dot, .. } = *c;
            [c.sum_squares_a, c.sum_squares_b, dot, c.sum_squares_difference]
        };
        let found = found[0];
        for (a, b) in sums(&found).into_iter().zip(sums(&expected)) {
            assert!(close(a, b), "{found:?} for {expected:?}");
        }
        let exact =
            |c: &Comparison| (c.elements, c.equal, c.non_finite, c.largest_difference.to_bits());
        assert_eq!(exact(&found), exact(&expected), "{a_dtype} {b_dtype}");
    }

    #[test]
    fn measures_of_distance() {
        let a = encode(&Dtype::F32, &[3.0, 0.0, 1.0]);
        let b = encode(&Dtype::F64, &[3.0, 4.0, f64::INFINITY]);
        let (f32, f64) = (&Dtype::F32, &Dtype::F64);
        let operand = |dtype, bytes| Operand { dtype, bytes };
        let found = compare(operand(f32, &a), operand(f64, &b));
        assert_eq!((found.elements, found.equal, found.non_finite), (3, 1, 1));
        assert!((found.relative_norm() - 4.0 / 3.0).abs() < 1e-15);
        assert!((found.cosine() - 0.6).abs() < 1e-15);
        assert!((found.mean_square_difference() - 8.0).abs() < 1e-15);
        let same = compare(operand(f32, &a), operand(f32, &a));
        assert_eq!((same.relative_norm(), same.cosine()), (0.0, 1.0));
        assert_eq!(found.merge(same).elements, 6);
        let zero = compare(operand(f32, &[0; 4]), operand(f32, &a[..4]));
        assert_eq!((zero.relative_norm(), zero.cosine()), (f64::INFINITY, 0.0));
        assert_eq!(Comparison::default().cosine().to_bits(), 1.0_f64.to_bits());
    }

    #[test]
    fn integers_are_compared_by_value() {
        use Dtype::{Bool, C64, F4, F32, I8, I16, U8, U64};
        let count = |a: &Dtype, x: &[u8], b: &Dtype, y: &[u8]| {
            let (a, b) = (Operand { dtype: a, bytes: x }, Operand { dtype: b, bytes: y });
            let found = compare(a, b);
            (found.elements, found.equal)
        };
        assert_eq!(count(&U8, &[1, 2, 3], &U8, &[1, 9, 3]), (3, 2));
        assert_eq!(count(&I8, &[0xff, 2], &I16, &[0xff, 0xff, 2, 0]), (2, 2));
        assert_eq!(count(&U8, &[0xff], &I8, &[0xff]), (1, 0));
        assert_eq!(count(&U64, &[0xff; 8], &U64, &[0xff; 8]), (1, 1));
        assert_eq!(count(&Bool, &[1], &U8, &[1]), (1, 1));
        assert_eq!(count(&F32, &[0; 4], &U8, &[0]), (1, 0));
        assert_eq!(count(&C64, &[0; 16], &C64, &[0; 16]), (2, 2));
        assert_eq!(count(&F4, &[1, 2], &F4, &[1, 3]), (2, 1));
    }
}
