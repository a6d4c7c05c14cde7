//! Random elements that are a function of a seed: the same on every machine, in any order of tiles.

use serde::{Deserialize, Serialize};

use super::Output;

/// `rows` rows of random elements.
///
/// Element `i` of the part, counted in row-major order, comes from one block of Philox4x32-10 (Salmon et al., SC 2011)
/// with key `seed` and counter `(i, stream)`, low words first. Its first two words make `u`, its last two `v`: the upper 53 bits of
/// 64, plus one half, by 2^53, so that both lie strictly between 0 and 1. The value is computed in f64 (`libm`'s functions)
/// and rounded once, to nearest even, into the output dtype, which is a float of 16 bits or more.
///
/// In JSON: `{"rows": 8, "seed": 0, "stream": 7, "distribution": {"normal": {"deviation": 1.0}}}`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Random {
    /// How many rows.
    pub rows: u64,
    /// What all random parts of a plan may share.
    pub seed: u64,
    /// What tells parts with one seed apart.
    pub stream: u64,
    /// How the elements are distributed.
    pub distribution: Distribution,
}

/// How random elements are distributed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Distribution {
    /// Normal with mean 0: `deviation * sqrt(-2 ln u) * cos(2 pi v)`.
    Normal {
        /// Standard deviation.
        deviation: f64,
    },
    /// Uniform: `bound * (2 u - 1)`.
    Uniform {
        /// The largest magnitude.
        bound: f64,
    },
}

impl Random {
    /// Whether it makes elements of the output.
    pub(super) fn check(&self, output: &Output) -> Result<(), String> {
        if !output.dtype.is_float() || output.dtype.is_f8() {
            return Err(format!("random elements of {}", output.dtype));
        }
        let scale = match self.distribution {
            Distribution::Normal { deviation } => deviation,
            Distribution::Uniform { bound } => bound,
        };
        // A normal value is at most 8.7 deviations from 0.
        if scale.is_finite() && (0.0..=1e3).contains(&scale) {
            return Ok(());
        }
        Err(format!("random elements of scale {scale}; it must lie between 0 and 1000"))
    }
}
