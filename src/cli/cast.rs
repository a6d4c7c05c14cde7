//! `cast`: the same weights in another float dtype.

use std::path::PathBuf;

use clap::Args;

use super::arguments::{Filter, Opening, ShardSize, parse_dtype};
use super::failure::{Failure, Origins};
use super::session::Session;
use super::surgery::{How, Surgical, origin_of};
use crate::format::Dtype;
use crate::ops;
use crate::plan::Plan;

/// Write the same weights in another float dtype, rounded once to nearest even
///
/// Tensors that are not floats keep their dtype. A quantised model becomes its values.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  elo-surgery cast llama-8b --dtype bf16 --out llama-8b-bf16
  elo-surgery cast llama-8b --dtype f32 --include '*norm*' --out llama-8b-mixed")]
pub(super) struct Cast {
    /// Model directory or `.safetensors` file
    model: PathBuf,
    /// `bf16`, `f16`, `f32`, `f64`, `f8_e4m3` or `f8_e5m2`
    #[arg(long, value_name = "DTYPE", value_parser = parse_dtype)]
    dtype: Dtype,
    #[command(flatten)]
    filter: Filter,
    #[command(flatten)]
    shard_size: ShardSize,
    #[command(flatten)]
    opening: Opening,
    #[command(flatten)]
    how: How,
}

impl Surgical for Cast {
    const FULL_FORM: &'static str = "elo-surgery cast MODEL --dtype bf16 --out DIR";

    fn how(&self) -> &How {
        &self.how
    }

    fn draft(
        &self,
        session: &Session,
        origins: &mut Origins,
    ) -> Result<(Plan, Option<PathBuf>), Failure> {
        origin_of(origins, "--out", self.how.out.as_ref());
        let request = ops::Cast {
            dtype: self.dtype.clone(),
            filter: self.filter.compile(origins)?,
            shard_size: self.shard_size.shard_size,
        };
        let model = session.open(&self.model, &self.opening)?;
        Ok((ops::cast(&model, &request)?, self.how.out.clone()))
    }
}
