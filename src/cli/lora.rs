//! `lora`: adapters and models.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::arguments::{Opening, ShardSize, parse_dtype};
use super::failure::{Failure, Origins};
use super::session::Session;
use super::surgery::{How, Planned, Surgical, origin_of};
use crate::checkpoint::Adapter;
use crate::format::Dtype;
use crate::ops;
use crate::plan::Plan;

/// Apply LoRA adapters to a model
#[derive(Debug, Args)]
pub(super) struct Lora {
    #[command(subcommand)]
    pub(super) verb: Verb,
}

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    Apply(Box<Apply>),
}

/// Write the model with adapters applied: `W + weight * scale * B A`
///
/// Adapters are directories as PEFT saves them. Every tensor of an adapter must find its place in the model. The model is
/// streamed: nothing but tiles and the adapters' matrices are in memory. A quantised model becomes its values.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  elo-surgery lora apply --into llama-8b --adapter my-lora --out llama-8b-mine
  elo-surgery lora apply --into llama-8b --adapter code:0.7 --adapter chat:0.3 --out both")]
pub(super) struct Apply {
    /// Model directory or `.safetensors` file
    #[arg(long, value_name = "MODEL")]
    into: PathBuf,
    /// Adapter directory, with a weight behind the last colon if it is not 1 (repeatable)
    #[arg(long = "adapter", value_name = "DIR[:WEIGHT]", required = true, value_parser = parse_weighted)]
    adapters: Vec<Weighted>,
    /// Float dtype of the result [default: the model's]
    #[arg(long, value_name = "DTYPE", value_parser = parse_dtype)]
    dtype: Option<Dtype>,
    #[command(flatten)]
    shard_size: ShardSize,
    #[command(flatten)]
    opening: Opening,
    #[command(flatten)]
    how: How,
}

/// An adapter and its weight.
#[derive(Clone, Debug)]
pub(super) struct Weighted {
    pub(super) path: PathBuf,
    pub(super) weight: f64,
}

/// `DIR` or `DIR:0.5`. What follows the last colon is a weight if it reads as a number.
pub(super) fn parse_weighted(text: &str) -> Result<Weighted, String> {
    if let Some((path, number)) = text.rsplit_once(':')
        && let Ok(weight) = number.parse::<f64>()
    {
        if !weight.is_finite() {
            return Err(format!("the weight {weight} is not finite"));
        }
        if path.is_empty() {
            return Err("there is no directory before the colon".into());
        }
        return Ok(Weighted { path: path.into(), weight });
    }
    Ok(Weighted { path: text.into(), weight: 1.0 })
}

impl Lora {
    pub(super) fn run(&self, session: &Session) -> Result<(), Failure> {
        match &self.verb {
            Verb::Apply(verb) => verb.run(session),
        }
    }

    /// The plan, for `plan`.
    pub(super) fn planned(&self, session: &Session) -> Result<Planned, Failure> {
        match &self.verb {
            Verb::Apply(verb) => verb.planned(session),
        }
    }
}

impl Surgical for Apply {
    const FULL_FORM: &'static str = "elo-surgery lora apply --into MODEL --adapter DIR --out DIR";

    fn how(&self) -> &How {
        &self.how
    }

    fn draft(
        &self,
        session: &Session,
        origins: &mut Origins,
    ) -> Result<(Plan, Option<PathBuf>), Failure> {
        origin_of(origins, "--out", self.how.out.as_ref());
        origin_of(origins, "--into", Some(&self.into));
        let model = session.open(&self.into, &self.opening)?;
        let mut adapters: Vec<(Adapter, f64)> = Vec::new();
        for Weighted { path, weight } in &self.adapters {
            adapters.push((session.open_adapter(path, &self.opening)?, *weight));
        }
        let adapters: Vec<(&Adapter, f64)> = adapters.iter().map(|(a, w)| (a, *w)).collect();
        let (dtype, shard_size) = (self.dtype.as_ref(), self.shard_size.shard_size);
        let plan = ops::apply_adapters(&model, &adapters, dtype, shard_size)?;
        Ok((plan, self.how.out.clone()))
    }
}
