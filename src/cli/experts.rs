//! `experts`: some of the experts of a model, one of them as a dense model, or all in the other layout.

use std::path::PathBuf;

use clap::{ArgGroup, Args, ValueEnum};

use super::arguments::{Opening, ShardSize};
use super::failure::{Failure, Origins};
use super::session::Session;
use super::surgery::{How, Surgical, origin_of};
use crate::checkpoint::ExpertLayout;
use crate::ops::{self, Choice, OfLayers};
use crate::plan::Plan;

/// Keep or drop experts of a mixture of experts, take one out as a dense model, or change the layout
///
/// The router's rows and everything in `config.json` that counts experts follow; every layer must keep as many. Experts count
/// from 1, `LAYERS:EXPERTS` is for some layers only; given more than once, the last that names a layer counts.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("what").required(true).multiple(true).args(["keep", "drop", "dense", "expert_layout"]))]
#[command(after_help = "Examples:
  elo-surgery experts qwen3-30b --keep 1-64 --out qwen3-16b
  elo-surgery experts mixtral --drop 8 --out mixtral-7
  elo-surgery experts mixtral --keep 1-16:1,2,5,7 --keep 17-32:2,3,4,8 --out mixtral-4
  elo-surgery experts mixtral --dense 3 --out mistral   # the third expert of every layer
  elo-surgery experts qwen3-30b --expert-layout fused --out qwen3-30b-fused")]
pub(super) struct Experts {
    /// Model directory or `.safetensors` file
    model: PathBuf,
    /// Keep these experts, in this order: `1,3`, `1-64`, `1-16:2,4` (repeatable)
    #[arg(long, value_name = "[LAYERS:]EXPERTS", allow_hyphen_values = true, conflicts_with_all = ["drop", "dense"])]
    keep: Vec<String>,
    /// Leave these experts out (repeatable)
    #[arg(
        long,
        value_name = "[LAYERS:]EXPERTS",
        allow_hyphen_values = true,
        conflicts_with = "dense"
    )]
    drop: Vec<String>,
    /// One expert a layer as a dense model: Mixtral as Mistral, Qwen3-MoE as Qwen3 (repeatable)
    #[arg(
        long,
        value_name = "[LAYERS:]EXPERT",
        allow_hyphen_values = true,
        conflicts_with = "expert_layout"
    )]
    dense: Vec<String>,
    /// Store expert weights so [default: as the model does]
    #[arg(long, value_enum, value_name = "LAYOUT")]
    expert_layout: Option<LayoutChoice>,
    #[command(flatten)]
    shard_size: ShardSize,
    #[command(flatten)]
    opening: Opening,
    #[command(flatten)]
    how: How,
}

/// How expert weights are stored.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum LayoutChoice {
    /// One tensor a matrix and expert: what the Hub has, and other programs read
    PerExpert,
    /// One tensor for a matrix of all experts: what transformers 5 has in memory
    Fused,
}

impl From<LayoutChoice> for ExpertLayout {
    fn from(choice: LayoutChoice) -> Self {
        match choice {
            LayoutChoice::PerExpert => Self::PerExpert,
            LayoutChoice::Fused => Self::Fused,
        }
    }
}

fn rules(flag: &str, texts: &[String], origins: &mut Origins) -> Result<Vec<OfLayers>, Failure> {
    let mut rules = Vec::new();
    for text in texts {
        origins.flag(flag, text);
        let (layers, experts) = match text.split_once(':') {
            Some((layers, experts)) => (Some(layers.parse()?), experts),
            None => (None, text.as_str()),
        };
        rules.push(OfLayers { layers, experts: experts.parse()? });
    }
    Ok(rules)
}

impl Surgical for Experts {
    const FULL_FORM: &'static str = "elo-surgery experts MODEL --keep 1-4 --out DIR";

    fn how(&self) -> &How {
        &self.how
    }

    fn draft(
        &self,
        session: &Session,
        origins: &mut Origins,
    ) -> Result<(Plan, Option<PathBuf>), Failure> {
        origin_of(origins, "--out", self.how.out.as_ref());
        let choice = if !self.dense.is_empty() {
            Choice::Dense(rules("--dense", &self.dense, origins)?)
        } else if !self.drop.is_empty() {
            Choice::Drop(rules("--drop", &self.drop, origins)?)
        } else if !self.keep.is_empty() {
            Choice::Keep(rules("--keep", &self.keep, origins)?)
        } else {
            Choice::All
        };
        let request = ops::SelectExperts {
            choice,
            layout: self.expert_layout.map(Into::into),
            shard_size: self.shard_size.shard_size,
        };
        let model = session.open(&self.model, &self.opening)?;
        Ok((ops::experts(&model, &request)?, self.how.out.clone()))
    }
}
