//! Rows of an embedding or head, read while planning: means and approximations of rows need them. Nothing else of a
//! checkpoint's data is read before a plan is carried out.

use crate::checkpoint::Stretch;
use crate::error::{Error, Result};
use crate::format::{Dtype, SourceFile};

/// Bytes that are read at once.
const CHUNK: u64 = 4 << 20;

/// A matrix in a file: one row a token.
pub(super) struct Matrix {
    source: SourceFile,
    start: u64,
    dtype: Dtype,
    width: u64,
    rows: u64,
    columns: usize,
}

impl Matrix {
    /// Opens the file of a stretch.
    ///
    /// # Errors
    /// A file that changed since, or a dtype that is not read here.
    pub(super) fn open(name: &str, stretch: &Stretch<'_>) -> Result<Self> {
        let width = match stretch.dtype {
            Dtype::F64 => 8,
            Dtype::F32 => 4,
            Dtype::F16 | Dtype::BF16 => 2,
            other => {
                return Err(Error::Unsupported {
                    what: format!("`{name}` ({other})"),
                    reason:
                        "means and approximations of rows are made of 16-, 32- and 64-bit floats"
                            .into(),
                    hint: "use the checkpoint in one of these".into(),
                });
            }
        };
        let rows = stretch.shape.rows();
        let elements = stretch.shape.elements().unwrap_or(0);
        let columns = usize::try_from(elements / rows.max(1)).unwrap_or(0);
        let (source, start) = (stretch.shard.source()?, stretch.bytes.start);
        Ok(Self { source, start, dtype: stretch.dtype.clone(), width, rows, columns })
    }

    /// Elements of a row.
    pub(super) fn columns(&self) -> usize {
        self.columns
    }

    /// Hands rows `first..first + count` to `take`, one after the other.
    pub(super) fn each(&self, first: u64, count: u64, mut take: impl FnMut(&[f64])) -> Result<()> {
        let row = self.columns as u64 * self.width;
        let at_once = (CHUNK / row.max(1)).max(1);
        let (mut bytes, mut values) = (Vec::new(), vec![0.0; self.columns]);
        let mut from = first;
        while from < first + count {
            let rows = at_once.min(first + count - from);
            bytes.resize(usize::try_from(rows * row).unwrap_or(usize::MAX), 0);
            self.source.read_exact_at(&mut bytes, self.start + from * row)?;
            for row in bytes.chunks_exact(usize::try_from(row).unwrap_or(usize::MAX).max(1)) {
                self.decode(row, &mut values);
                take(&values);
            }
            from += rows;
        }
        self.source.check_unchanged(None)
    }

    /// Chosen rows as f32, one after the other.
    #[expect(clippy::cast_possible_truncation, reason = "f64 matrices are approximated in f32")]
    pub(super) fn chosen(&self, rows: &[u64]) -> Result<Vec<f32>> {
        let mut values = Vec::with_capacity(rows.len() * self.columns);
        let mut at = 0;
        while at < rows.len() {
            let run =
                (at..rows.len()).take_while(|i| rows[*i] == rows[at] + (i - at) as u64).count();
            self.each(rows[at], run as u64, |row| values.extend(row.iter().map(|v| *v as f32)))?;
            at += run;
        }
        Ok(values)
    }

    /// The mean of all rows.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        reason = "rounded once to f32"
    )]
    pub(super) fn mean(&self) -> Result<Vec<f32>> {
        let mut sums = vec![0.0; self.columns];
        self.each(0, self.rows, |row| sums.iter_mut().zip(row).for_each(|(sum, v)| *sum += v))?;
        Ok(sums.into_iter().map(|sum| (sum / self.rows.max(1) as f64) as f32).collect())
    }

    fn decode(&self, bytes: &[u8], values: &mut [f64]) {
        match self.dtype {
            Dtype::F64 => {
                for (value, b) in values.iter_mut().zip(bytes.chunks_exact(8)) {
                    *value = f64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]);
                }
            }
            Dtype::F32 => {
                for (value, b) in values.iter_mut().zip(bytes.chunks_exact(4)) {
                    *value = f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
                }
            }
            Dtype::BF16 => {
                for (value, b) in values.iter_mut().zip(bytes.chunks_exact(2)) {
                    let bits = u32::from(u16::from_le_bytes([b[0], b[1]])) << 16;
                    *value = f64::from(f32::from_bits(bits));
                }
            }
            _ => {
                for (value, b) in values.iter_mut().zip(bytes.chunks_exact(2)) {
                    *value = half(u16::from_le_bytes([b[0], b[1]]));
                }
            }
        }
    }
}

/// The value of an IEEE half.
fn half(bits: u16) -> f64 {
    let (exponent, mantissa) = (i32::from(bits >> 10 & 0x1f), f64::from(bits & 0x3ff));
    let magnitude = match exponent {
        0 => mantissa * f64::from(-24).exp2(),
        31 if mantissa > 0.0 => f64::NAN,
        31 => f64::INFINITY,
        _ => (1024.0 + mantissa) * f64::from(exponent - 25).exp2(),
    };
    if bits >> 15 == 1 { -magnitude } else { magnitude }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_have_their_values() {
        for bits in 0..=u16::MAX {
            let expected = half::f16::from_bits(bits).to_f64();
            let found = half(bits);
            assert!(
                found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan(),
                "{bits}"
            );
        }
    }
}
