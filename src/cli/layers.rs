//! `layers`: a deeper or shallower model from the layers of one.

use std::path::PathBuf;

use clap::{ArgGroup, Args};

use super::arguments::{Opening, ShardSize};
use super::failure::{Failure, Origins};
use super::session::Session;
use super::surgery::{How, Surgical, origin_of};
use crate::ops::{self, Stack};
use crate::plan::Plan;

/// Drop, repeat or restack decoder layers
///
/// The layers are renumbered, and everything in `config.json` that counts or lists layers follows. What the result computes is
/// another function: it wants training. `expand` inserts layers that change nothing.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("what").required(true).args(["drop", "stack", "repeat", "upscale"]))]
#[command(after_help = "Examples:
  elo-surgery layers llama-8b --drop 21-28 --out llama-6b
  elo-surgery layers llama-8b --stack 1-24,9-32 --out llama-12b
  elo-surgery layers llama-8b --repeat 9-16 --out llama-10b
  elo-surgery layers llama-8b --upscale 48 --out llama-12b   # SOLAR: layers 1-24, then 9-32")]
pub(super) struct Layers {
    /// Model directory or `.safetensors` file
    model: PathBuf,
    /// Leave these layers out: `21-28`, `-1`, `2,4,6`
    #[arg(long, value_name = "LAYERS", allow_hyphen_values = true)]
    drop: Option<String>,
    /// These layers, in this order, as often as they are named: `1-24,9-32`
    #[arg(long, value_name = "LAYERS", allow_hyphen_values = true)]
    stack: Option<String>,
    /// All layers, and each run of these once more behind itself: `9-16`
    #[arg(long, value_name = "LAYERS", allow_hyphen_values = true)]
    repeat: Option<String>,
    /// Depth up-scaling to so many layers: the first half of them from the front, the second from the back
    #[arg(long, value_name = "N")]
    upscale: Option<u64>,
    #[command(flatten)]
    shard_size: ShardSize,
    #[command(flatten)]
    opening: Opening,
    #[command(flatten)]
    how: How,
}

impl Layers {
    fn stack(&self, origins: &mut Origins) -> Result<Stack, Failure> {
        let mut read = |flag: &'static str, text: &str| {
            origins.flag(flag, text);
            text.parse()
        };
        if let Some(depth) = self.upscale {
            return Ok(Stack::UpscaledTo(depth));
        }
        if let Some(text) = &self.drop {
            return Ok(Stack::Without(read("--drop", text)?));
        }
        if let Some(text) = &self.repeat {
            return Ok(Stack::Repeating(read("--repeat", text)?));
        }
        let text = self.stack.as_deref().unwrap_or("all");
        Ok(Stack::These(read("--stack", text)?))
    }
}

impl Surgical for Layers {
    const FULL_FORM: &'static str = "elo-surgery layers MODEL --drop 21-28 --out DIR";

    fn how(&self) -> &How {
        &self.how
    }

    fn draft(
        &self,
        session: &Session,
        origins: &mut Origins,
    ) -> Result<(Plan, Option<PathBuf>), Failure> {
        origin_of(origins, "--out", self.how.out.as_ref());
        let request =
            ops::Layers { stack: self.stack(origins)?, shard_size: self.shard_size.shard_size };
        let model = session.open(&self.model, &self.opening)?;
        Ok((ops::layers(&model, &request)?, self.how.out.clone()))
    }
}
