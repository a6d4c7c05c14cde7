//! `extract`: a model of some decoder layers.

use std::path::PathBuf;

use clap::Args;

use super::arguments::{Opening, ShardSize};
use super::failure::{Failure, Origins};
use super::project::{Stage, missing, model_or};
use super::session::Session;
use super::surgery::{How, Surgical};
use crate::ops;
use crate::plan::Plan;

/// Make a model of some decoder layers, with embedding, final norm and head
///
/// The layers are renumbered, and everything in `config.json` that counts or lists layers is cut with them. The result
/// is a model that loads and trains like any other; `inject` puts its layers back.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  elo-surgery extract llama-8b --layers 1,32 --out llama-8b-elo
  elo-surgery extract llama-8b --layers first,last --out llama-8b-elo
  elo-surgery extract llama-8b --layers 1-24 --out llama-6b --shard-size 5GB
  elo-surgery extract --layers 1,32   # in a project: model and output as elo.yaml says")]
pub(super) struct Extract {
    /// Model directory or `.safetensors` file [default: the project's model]
    model: Option<PathBuf>,
    /// Layers to keep, in this order, counting from 1: `1,32`, `first,last`, `-1`, `1-4`, `all`
    #[arg(long, value_name = "LAYERS", allow_hyphen_values = true)]
    layers: Option<String>,
    #[command(flatten)]
    shard_size: ShardSize,
    #[command(flatten)]
    opening: Opening,
    #[command(flatten)]
    how: How,
}

impl Surgical for Extract {
    const FULL_FORM: &'static str = "elo-surgery extract MODEL --layers 1,32 --out DIR";

    fn how(&self) -> &How {
        &self.how
    }

    fn draft(
        &self,
        session: &Session,
        origins: &mut Origins,
    ) -> Result<(Plan, Option<PathBuf>), Failure> {
        let project = session.project()?;
        let project = project.as_ref();
        let model = model_or(self.model.as_ref(), project, origins, Self::FULL_FORM)?;
        let out = Stage::Extract.output(self.how.out.as_ref(), project, origins);
        let layers = match &self.layers {
            Some(layers) => {
                origins.flag("--layers", layers);
                layers.clone()
            }
            None => project
                .and_then(|p| p.layers(origins))
                .ok_or_else(|| missing("layers", "--layers 1,32", project, Self::FULL_FORM))?,
        };
        let request =
            ops::Extract { layers: layers.parse()?, shard_size: self.shard_size.shard_size };
        let checkpoint = session.open(&model, &self.opening)?;
        Ok((ops::extract(&checkpoint, &request)?, out))
    }
}
