//! The numbers of a dtype, and rounding to them after every operation.

use crate::engine::float::{bf16_from_f32, bf16_to_f32, f16_from_f32, f16_to_f32};
use crate::format::Dtype;

/// The dtype that every operation is rounded to.
///
/// Values are held as f64. A sum, product or quotient of two f32 that is rounded to f64 and then to f32 is that of f32
/// arithmetic, since f64 has more than twice its digits; f16 and bf16 results are those of f32 arithmetic, rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Grid {
    F64,
    F32,
    F16,
    BF16,
}

impl Grid {
    /// That of a dtype; none of those that nobody computes in.
    pub(super) fn of(dtype: &Dtype) -> Option<Self> {
        Some(match dtype {
            Dtype::F64 => Self::F64,
            Dtype::F32 => Self::F32,
            Dtype::F16 => Self::F16,
            Dtype::BF16 => Self::BF16,
            _ => return None,
        })
    }

    /// The nearest number.
    #[expect(clippy::cast_possible_truncation, reason = "that is the rounding")]
    pub(super) fn round(self, value: f64) -> f64 {
        match self {
            Self::F64 => value,
            Self::F32 => f64::from(value as f32),
            Self::F16 => f64::from(f16_to_f32(f16_from_f32(value as f32))),
            Self::BF16 => f64::from(bf16_to_f32(bf16_from_f32(value as f32))),
        }
    }

    /// The type that sums are made in, and that scalars are rounded to before they meet a tensor.
    pub(super) fn wide(self) -> Self {
        if self == Self::F64 { Self::F64 } else { Self::F32 }
    }

    /// What tensors are kept at random in: f32, except for bf16.
    pub(super) fn of_draws(self) -> Self {
        if self == Self::BF16 { Self::BF16 } else { Self::F32 }
    }
}
