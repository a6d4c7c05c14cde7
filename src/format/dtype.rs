//! Element types and shapes. Every dtype of safetensors 0.8, and unknown ones as opaque names.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A safetensors element type.
///
/// [`Dtype::Other`] is a name this version does not know: such tensors can be copied, never computed on.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", from = "String")]
#[non_exhaustive]
pub enum Dtype {
    /// Boolean, one byte.
    Bool,
    /// 4-bit float (MXFP4 element), two to a byte.
    F4,
    /// 6-bit float, 2 exponent and 3 mantissa bits.
    F6E2M3,
    /// 6-bit float, 3 exponent and 2 mantissa bits.
    F6E3M2,
    /// Unsigned byte.
    U8,
    /// Signed byte.
    I8,
    /// 8-bit float, 5 exponent and 2 mantissa bits, with infinities (OCP).
    F8E5M2,
    /// 8-bit float, 4 exponent and 3 mantissa bits, no infinities (OCP `e4m3fn`).
    F8E4M3,
    /// 8-bit power-of-two scale, no sign, no mantissa.
    F8E8M0,
    /// `e4m3` with a single zero and no infinities, bias 8 (AMD, Graphcore).
    F8E4M3Fnuz,
    /// `e5m2` with a single zero and no infinities, bias 16 (AMD, Graphcore).
    F8E5M2Fnuz,
    /// Signed 16-bit integer.
    I16,
    /// Unsigned 16-bit integer.
    U16,
    /// IEEE 754 half precision.
    F16,
    /// bfloat16.
    BF16,
    /// Signed 32-bit integer.
    I32,
    /// Unsigned 32-bit integer.
    U32,
    /// IEEE 754 single precision.
    F32,
    /// Complex of two `F32`.
    C64,
    /// IEEE 754 double precision.
    F64,
    /// Signed 64-bit integer.
    I64,
    /// Unsigned 64-bit integer.
    U64,
    /// A dtype this version does not know, by its name in the file.
    Other(Box<str>),
}

impl Dtype {
    /// Every known dtype.
    pub const KNOWN: [Self; 22] = [
        Self::Bool,
        Self::F4,
        Self::F6E2M3,
        Self::F6E3M2,
        Self::U8,
        Self::I8,
        Self::F8E5M2,
        Self::F8E4M3,
        Self::F8E8M0,
        Self::F8E4M3Fnuz,
        Self::F8E5M2Fnuz,
        Self::I16,
        Self::U16,
        Self::F16,
        Self::BF16,
        Self::I32,
        Self::U32,
        Self::F32,
        Self::C64,
        Self::F64,
        Self::I64,
        Self::U64,
    ];

    /// The name used in safetensors headers.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Bool => "BOOL",
            Self::F4 => "F4",
            Self::F6E2M3 => "F6_E2M3",
            Self::F6E3M2 => "F6_E3M2",
            Self::U8 => "U8",
            Self::I8 => "I8",
            Self::F8E5M2 => "F8_E5M2",
            Self::F8E4M3 => "F8_E4M3",
            Self::F8E8M0 => "F8_E8M0",
            Self::F8E4M3Fnuz => "F8_E4M3FNUZ",
            Self::F8E5M2Fnuz => "F8_E5M2FNUZ",
            Self::I16 => "I16",
            Self::U16 => "U16",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::I32 => "I32",
            Self::U32 => "U32",
            Self::F32 => "F32",
            Self::C64 => "C64",
            Self::F64 => "F64",
            Self::I64 => "I64",
            Self::U64 => "U64",
            Self::Other(name) => name,
        }
    }

    /// Bits of one element; `None` for unknown dtypes.
    pub fn bits(&self) -> Option<u64> {
        Some(match self {
            Self::F4 => 4,
            Self::F6E2M3 | Self::F6E3M2 => 6,
            Self::Bool | Self::U8 | Self::I8 => 8,
            Self::F8E5M2 | Self::F8E4M3 | Self::F8E8M0 => 8,
            Self::F8E4M3Fnuz | Self::F8E5M2Fnuz => 8,
            Self::I16 | Self::U16 | Self::F16 | Self::BF16 => 16,
            Self::I32 | Self::U32 | Self::F32 => 32,
            Self::C64 | Self::F64 | Self::I64 | Self::U64 => 64,
            Self::Other(_) => return None,
        })
    }

    /// Whole bytes of one element; `None` for sub-byte and unknown dtypes.
    pub fn bytes(&self) -> Option<u64> {
        self.bits().filter(|bits| bits % 8 == 0).map(|bits| bits / 8)
    }

    /// Whether the engine can compute on it: a real float of at least one byte with a sign.
    pub fn is_float(&self) -> bool {
        matches!(self, Self::F64 | Self::F32 | Self::F16 | Self::BF16 | Self::F8E4M3 | Self::F8E5M2)
            || matches!(self, Self::F8E4M3Fnuz | Self::F8E5M2Fnuz)
    }

    /// Whether it is one of the 8-bit floats.
    pub fn is_f8(&self) -> bool {
        self.is_float() && self.bits() == Some(8)
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl From<String> for Dtype {
    fn from(name: String) -> Self {
        Self::from(name.as_str())
    }
}

impl From<&str> for Dtype {
    fn from(name: &str) -> Self {
        Self::KNOWN
            .into_iter()
            .find(|dtype| dtype.as_str() == name)
            .unwrap_or_else(|| Self::Other(name.into()))
    }
}

impl From<Dtype> for String {
    fn from(dtype: Dtype) -> Self {
        dtype.as_str().to_owned()
    }
}

/// Not the name of a dtype the engine computes in.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not one of bf16, f16, f32, f64, f8_e4m3, f8_e5m2")]
pub struct UnknownFloat(String);

impl FromStr for Dtype {
    type Err = UnknownFloat;

    /// Reads people's spellings of float dtypes: `bf16`, `bfloat16`, `float32`, `F8_E4M3`, `float8_e4m3fn`.
    fn from_str(text: &str) -> Result<Self, UnknownFloat> {
        let lower = text.to_ascii_lowercase().replace('-', "_");
        Ok(match lower.as_str() {
            "bf16" | "bfloat16" => Self::BF16,
            "f16" | "fp16" | "float16" | "half" => Self::F16,
            "f32" | "fp32" | "float32" | "float" => Self::F32,
            "f64" | "fp64" | "float64" | "double" => Self::F64,
            "f8_e4m3" | "fp8" | "fp8_e4m3" | "float8_e4m3fn" => Self::F8E4M3,
            "f8_e5m2" | "fp8_e5m2" | "float8_e5m2" => Self::F8E5M2,
            _ => return Err(UnknownFloat(text.to_owned())),
        })
    }
}

/// A tensor's dimensions, outermost first. Element counts are `u64`: fused-expert tensors have more than 2^32.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Shape(pub Vec<u64>);

impl Shape {
    /// Number of elements; `None` if it does not fit 64 bits. A scalar (no dimensions) has one.
    pub fn elements(&self) -> Option<u64> {
        self.0.iter().try_fold(1_u64, |count, dim| count.checked_mul(*dim))
    }

    /// Size in bytes for a dtype; `None` on overflow, for unknown dtypes and for counts that do not fill whole bytes.
    pub fn byte_len(&self, dtype: &Dtype) -> Option<u64> {
        let bits = self.elements()?.checked_mul(dtype.bits()?)?;
        (bits % 8 == 0).then_some(bits / 8)
    }

    /// Length of dimension 0; 1 for a scalar.
    pub fn rows(&self) -> u64 {
        self.0.first().copied().unwrap_or(1)
    }

    /// The same shape with another dimension 0. A scalar stays as it is.
    #[must_use]
    pub fn with_rows(&self, rows: u64) -> Self {
        let mut dims = self.0.clone();
        if let Some(first) = dims.first_mut() {
            *first = rows;
        }
        Self(dims)
    }
}

impl From<&[u64]> for Shape {
    fn from(dims: &[u64]) -> Self {
        Self(dims.to_vec())
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (i, dim) in self.0.iter().enumerate() {
            write!(f, "{}{dim}", if i == 0 { "" } else { ", " })?;
        }
        f.write_str("]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_unknown_ones_stay() {
        for dtype in Dtype::KNOWN {
            assert_eq!(Dtype::from(dtype.as_str()), dtype);
        }
        assert_eq!(Dtype::from("F128").as_str(), "F128");
        assert_eq!(Dtype::from("F128").bits(), None);
    }

    #[test]
    fn sizes_are_checked() {
        assert_eq!(Shape(vec![1 << 32, 1 << 32]).elements(), None);
        assert_eq!(Shape(vec![]).byte_len(&Dtype::F32), Some(4));
        assert_eq!(Shape(vec![0, 4]).byte_len(&Dtype::F32), Some(0));
        assert_eq!(Shape(vec![3]).byte_len(&Dtype::F4), None);
        assert_eq!(Shape(vec![4]).byte_len(&Dtype::F6E2M3), Some(3));
        assert_eq!(Shape(vec![1 << 31, 3]).byte_len(&Dtype::BF16), Some(3 << 32));
    }
}
