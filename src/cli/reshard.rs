//! `reshard`: the same tensors in files of another size.

use std::path::PathBuf;

use clap::Args;

use super::arguments::Opening;
use super::failure::{Failure, Origins};
use super::session::Session;
use super::surgery::{How, Surgical, origin_of};
use super::units::parse_size;
use crate::ops;
use crate::plan::Plan;

/// Write the same tensors in shards of another size
///
/// All bytes are copied; only the files and the index change.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  elo-surgery reshard llama-8b --shard-size 5GB --out llama-8b-5gb
  elo-surgery reshard llama-8b --shard-size 1TB --out llama-8b-one-file")]
pub(super) struct Reshard {
    /// Model directory or `.safetensors` file
    model: PathBuf,
    /// Most data bytes of a shard: `5GB`, `500MB`, `1GiB`
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    shard_size: u64,
    #[command(flatten)]
    opening: Opening,
    #[command(flatten)]
    how: How,
}

impl Surgical for Reshard {
    const FULL_FORM: &'static str = "elo-surgery reshard MODEL --shard-size 5GB --out DIR";

    fn how(&self) -> &How {
        &self.how
    }

    fn draft(
        &self,
        session: &Session,
        origins: &mut Origins,
    ) -> Result<(Plan, Option<PathBuf>), Failure> {
        origins.flag("", &self.model);
        origin_of(origins, "--out", self.how.out.as_ref());
        let model = session.open(&self.model, &self.opening)?;
        Ok((ops::reshard(&model, self.shard_size)?, self.how.out.clone()))
    }
}
