//! How codes and scales of quantised weights make values.

use serde::{Deserialize, Serialize};

use super::{Dtype, Shape};

/// A way to store values as codes and scales. Values have the shape `[.., rows, columns]`; scales lie beside them in a
/// tensor of their own. A value is `(code - zero) * scale`: the difference is exact, the product is rounded once, to f32.
///
/// In JSON: `{"blocks": {"rows": 128, "columns": 128}}`, `{"packed": {"bits": 4, "columns": 128}}`, `"mxfp4"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Coding {
    /// One code a value, an 8-bit float or `I8`, of the values' shape. One scale for each block of `rows` times `columns`
    /// values; blocks at the ends may be smaller. Zero points, if any, have the shape of the scales and are `I8`.
    Blocks {
        /// Rows of a block.
        rows: u64,
        /// Columns of a block.
        columns: u64,
    },
    /// Integers in words of 32 bits (`I32`), `32 / bits` of them from the low bits up, plus `2^(bits-1)`; a row starts with
    /// a word of its own (compressed-tensors, `pack-quantized`). One scale for each `columns` values of a row. Zero points are
    /// packed likewise, but along the rows: `[ceil(rows * bits / 32), scales of a row]`.
    Packed {
        /// 4 or 8.
        bits: u64,
        /// Columns that have a scale in common.
        columns: u64,
    },
    /// Microscaling fp4 (OCP MX v1.0) as gpt-oss stores it: the values' last two dimensions are swapped. Codes are bytes
    /// `[.., columns, rows / 32, 16]` of two e2m1 each, the low half first; scales are bytes `[.., columns, rows / 32]`,
    /// powers of two with the bias 127.
    Mxfp4,
}

/// Values of one scale in microscaling formats.
pub const MX_BLOCK: u64 = 32;

impl Coding {
    /// The shapes of codes, scales and zero points for values of a shape.
    ///
    /// # Errors
    /// Why values of this shape are not stored so.
    pub fn shapes(&self, values: &Shape) -> Result<(Shape, Shape, Shape), String> {
        let [outer @ .., rows, columns] = values.0.as_slice() else {
            return Err(format!("values of shape {values} are no matrices"));
        };
        let shape = |last: &[u64]| Shape([outer, last].concat());
        match *self {
            Self::Blocks { rows: 0, .. }
            | Self::Blocks { columns: 0, .. }
            | Self::Packed { columns: 0, .. } => Err("blocks of no values".into()),
            Self::Blocks { rows: high, columns: wide } => {
                let scales = shape(&[rows.div_ceil(high), columns.div_ceil(wide)]);
                Ok((values.clone(), scales.clone(), scales))
            }
            Self::Packed { bits: bits @ (4 | 8), columns: wide } => {
                let (per_word, groups) = (32 / bits, columns.div_ceil(wide));
                let codes = shape(&[*rows, columns.div_ceil(per_word)]);
                Ok((codes, shape(&[*rows, groups]), shape(&[rows.div_ceil(per_word), groups])))
            }
            Self::Packed { bits, .. } => Err(format!("codes of {bits} bits are not 4 or 8")),
            Self::Mxfp4 => {
                if rows % MX_BLOCK != 0 {
                    return Err(format!("{rows} rows are not in blocks of {MX_BLOCK}"));
                }
                let blocks = rows / MX_BLOCK;
                let scales = shape(&[*columns, blocks]);
                Ok((shape(&[*columns, blocks, MX_BLOCK / 2]), scales.clone(), scales))
            }
        }
    }

    /// Whether codes, scales and zero points may have these dtypes.
    pub fn takes(&self, codes: &Dtype, scales: &Dtype, zeros: Option<&Dtype>) -> bool {
        let float = scales.is_float() && *scales != Dtype::F64 || *scales == Dtype::F8E8M0;
        match self {
            Self::Blocks { .. } => {
                let known = codes.is_f8() || *codes == Dtype::I8;
                known && float && zeros.is_none_or(|zeros| *zeros == Dtype::I8)
            }
            Self::Packed { .. } => {
                *codes == Dtype::I32 && float && zeros.is_none_or(|zeros| *zeros == Dtype::I32)
            }
            Self::Mxfp4 => *codes == Dtype::U8 && *scales == Dtype::U8 && zeros.is_none(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_of_codes_and_scales() {
        let of = |coding: Coding, dims: &[u64]| {
            coding.shapes(&Shape(dims.to_vec())).map(|(a, b, c)| (a.0, b.0, c.0))
        };
        let blocks = Coding::Blocks { rows: 128, columns: 128 };
        assert_eq!(of(blocks, &[300, 129]), Ok((vec![300, 129], vec![3, 2], vec![3, 2])));
        assert_eq!(
            of(blocks, &[2, 300, 129]),
            Ok((vec![2, 300, 129], vec![2, 3, 2], vec![2, 3, 2]))
        );
        let packed = Coding::Packed { bits: 4, columns: 32 };
        assert_eq!(of(packed, &[10, 100]), Ok((vec![10, 13], vec![10, 4], vec![2, 4])));
        assert_eq!(
            of(Coding::Mxfp4, &[2, 64, 5]),
            Ok((vec![2, 5, 2, 16], vec![2, 5, 2], vec![2, 5, 2]))
        );
        assert!(of(Coding::Mxfp4, &[2, 65, 5]).is_err());
        assert!(of(Coding::Blocks { rows: 0, columns: 1 }, &[2, 2]).is_err());
        assert!(of(Coding::Packed { bits: 3, columns: 1 }, &[2, 2]).is_err());
        assert!(of(blocks, &[4]).is_err());
    }
}
