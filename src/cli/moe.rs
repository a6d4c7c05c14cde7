//! `moe`: dense models as the experts of one.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use clap::Args;

use super::arguments::Opening;
use super::experts::LayoutChoice;
use super::failure::{Failure, Origins};
use super::merge::read;
use super::session::Session;
use super::surgery::{How, Surgical, origin_of};
use super::units::parse_size;
use crate::checkpoint::Checkpoint;
use crate::ops::merge::moe::{self, MoeConfig};
use crate::plan::Plan;

/// Make dense models the experts of one, by a mergekit-moe configuration
///
/// The feed-forward part of each model becomes an expert of every layer; everything else is the base model's. The configuration
/// is mergekit-moe's YAML, read strictly. Routers are random (`random`, `uniform_random`) or made from the embeddings of each
/// expert's prompts (`cheap_embed`).
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  elo-surgery moe experts.yml --out mixture
  elo-surgery moe experts.yml --out mixture --expert-layout fused --dry-run

Results: Mixtral, DeepSeek MoE, Qwen2-MoE, Qwen3-MoE. docs/growth.md has the language.")]
pub(super) struct Moe {
    /// The configuration
    config: PathBuf,
    /// How experts are stored
    #[arg(long, value_enum, value_name = "LAYOUT", default_value = "per-expert")]
    expert_layout: LayoutChoice,
    /// Seed of random routers
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Allow experts that are all the same model, to be trained apart
    #[arg(long)]
    identical_experts: bool,
    /// Lay the output out in shards of at most this size
    #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value = "5GB")]
    shard_size: u64,
    #[command(flatten)]
    opening: Opening,
    #[command(flatten)]
    how: How,
}

impl Surgical for Moe {
    const FULL_FORM: &'static str = "elo-surgery moe CONFIG.yml --out DIR";

    fn how(&self) -> &How {
        &self.how
    }

    fn draft(
        &self,
        session: &Session,
        origins: &mut Origins,
    ) -> Result<(Plan, Option<PathBuf>), Failure> {
        origin_of(origins, "--out", self.how.out.as_ref());
        let name = self.config.to_string_lossy();
        let config = MoeConfig::parse(&read(&self.config)?, &name, self.identical_experts)?;
        let open = |path: &Path| session.open(path, &self.opening);
        let models = config.models().into_iter().map(open);
        let models = models.collect::<Result<Vec<Checkpoint>, Failure>>()?;
        let request = moe::Moe {
            tokens: tokens(&config, &models[0])?,
            seed: self.seed,
            layout: Some(self.expert_layout.into()),
            shard_size: Some(self.shard_size),
        };
        Ok((moe::moe(&config, &models, &request)?, self.how.out.clone()))
    }
}

/// The tokens of the prompts, by the tokenizer of the base model.
#[cfg(feature = "trainer")]
fn tokens(config: &MoeConfig, base: &Checkpoint) -> Result<HashMap<String, Vec<u32>>, Failure> {
    let prompts = config.prompts();
    if prompts.is_empty() {
        return Ok(HashMap::new());
    }
    let ids = crate::trainer::prompt_tokens(base.root(), &prompts)?;
    Ok(prompts.into_iter().map(str::to_owned).zip(ids).collect())
}

/// Prompts are of no use without a tokenizer.
#[cfg(not(feature = "trainer"))]
fn tokens(config: &MoeConfig, base: &Checkpoint) -> Result<HashMap<String, Vec<u32>>, Failure> {
    if config.prompts().is_empty() {
        return Ok(HashMap::new());
    }
    Err(Failure::from(crate::error::Error::Unsupported {
        what: format!("`cheap_embed` with `{}`", base.name()),
        reason: "this program was built without the feature `trainer`, which has the tokenizer"
            .into(),
        hint: "build it with the default features, or use `gate_mode: random`".into(),
    }))
}
