//! `expand`: new layers that change nothing until they are trained.

use std::path::PathBuf;

use clap::{ArgGroup, Args};

use super::arguments::{Opening, ShardSize};
use super::failure::{Failure, Origins};
use super::session::Session;
use super::surgery::{How, Surgical, origin_of};
use crate::ops::{self, Blocks};
use crate::plan::Plan;

/// Insert layers that change nothing until they are trained (LLaMA Pro)
///
/// Each new layer is a copy of the one before it, with zeros where attention and feed-forward end, so that it hands on its
/// input: the result computes what the model computed, bit for bit. Train the new layers, whose numbers are printed, and freeze
/// the others. A family whose layers are not known to end that way is refused.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("where").required(true).args(["blocks", "after"]))]
#[command(after_help = "Examples:
  elo-surgery expand llama-8b --blocks 8 --out llama-10b   # one new layer behind every fourth
  elo-surgery expand llama-8b --after 16,32 --out llama-8b-pro")]
pub(super) struct Expand {
    /// Model directory or `.safetensors` file
    model: PathBuf,
    /// So many new layers, spread evenly
    #[arg(long, value_name = "N")]
    blocks: Option<u64>,
    /// One new layer behind each of these, counting from 1: `8,16`, `last`, `17-32`
    #[arg(long, value_name = "LAYERS", allow_hyphen_values = true)]
    after: Option<String>,
    #[command(flatten)]
    shard_size: ShardSize,
    #[command(flatten)]
    opening: Opening,
    #[command(flatten)]
    how: How,
}

impl Surgical for Expand {
    const FULL_FORM: &'static str = "elo-surgery expand MODEL --blocks 8 --out DIR";

    fn how(&self) -> &How {
        &self.how
    }

    fn draft(
        &self,
        session: &Session,
        origins: &mut Origins,
    ) -> Result<(Plan, Option<PathBuf>), Failure> {
        origin_of(origins, "--out", self.how.out.as_ref());
        let blocks = match (&self.after, self.blocks) {
            (Some(after), _) => {
                origins.flag("--after", after);
                Blocks::After(after.parse()?)
            }
            (None, blocks) => Blocks::Spread(blocks.unwrap_or(0)),
        };
        let request = ops::Expand { blocks, shard_size: self.shard_size.shard_size };
        let model = session.open(&self.model, &self.opening)?;
        Ok((ops::expand(&model, &request)?, self.how.out.clone()))
    }
}
