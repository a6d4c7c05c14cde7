//! `lora`: adapters applied to models, made from them, added up.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::json;

use super::arguments::{Opening, ShardSize, parse_dtype};
use super::failure::{Failure, Origins};
use super::process;
use super::progress::Watcher;
use super::session::Session;
use super::surgery::{How, Planned, Surgical, carry_out, origin_of};
use super::units::size;
use crate::checkpoint::Adapter;
use crate::error::Error;
use crate::format::Dtype;
use crate::lowrank::{self, Foreseen, Made, Rank, remove_work};
use crate::ops;
use crate::plan::Plan;

/// Apply LoRA adapters to a model, extract one from two models, add several up
#[derive(Debug, Args)]
pub(super) struct Lora {
    #[command(subcommand)]
    pub(super) verb: Verb,
}

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    Apply(Box<Apply>),
    Extract(Box<Extract>),
    Merge(Box<Merge>),
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

/// Make an adapter of what fine-tuning changed: `BASE + B A` is near `MODEL`
///
/// Every matrix of the layers gets a product of small ones, by a randomised singular value decomposition that reads the
/// models in blocks. Embeddings, norms and the head are reported, or saved whole. `lora_extraction.json` beside the adapter has the rank and the
/// relative error of every tensor. Run again after an interruption, it continues with the tensors that are missing.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  elo-surgery lora extract --model tuned --base llama-8b --rank 64 --out tuned-lora
  elo-surgery lora extract --model tuned --base llama-8b --energy 0.95 --max-rank 128 --out tuned-lora")]
pub(super) struct Extract {
    /// The fine-tuned model
    #[arg(long, value_name = "MODEL")]
    model: PathBuf,
    /// What it was fine-tuned from
    #[arg(long, value_name = "MODEL")]
    base: PathBuf,
    /// The rank of every product
    #[arg(long, value_name = "R", required_unless_present = "energy", conflicts_with = "energy", value_parser = clap::value_parser!(u64).range(1..=8192))]
    rank: Option<u64>,
    /// Of each tensor the least rank that keeps this share of the squared difference
    #[arg(long, value_name = "SHARE", value_parser = parse_share)]
    energy: Option<f64>,
    /// The largest rank that `--energy` may take
    #[arg(long, value_name = "R", default_value_t = 256, value_parser = clap::value_parser!(u64).range(1..=8192))]
    max_rank: u64,
    /// Save other tensors that differ whole (`modules_to_save`)
    #[arg(long)]
    save_whole: bool,
    /// Float dtype of the adapter
    #[arg(long, value_name = "DTYPE", default_value = "f32", value_parser = parse_dtype)]
    dtype: Dtype,
    /// How often the random start is sharpened; each time reads the models twice
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(0..=16))]
    power_iterations: u32,
    /// Of the random start; the same seed gives the same bytes on the same machine
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    opening: Opening,
    #[command(flatten)]
    how: How,
}

/// Add adapters up to one: its product is the weighted sum of theirs, and its rank the sum of theirs
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  elo-surgery lora merge --adapter code:0.7 --adapter chat:0.3 --out both-lora")]
pub(super) struct Merge {
    /// Adapter directory, with a weight behind the last colon if it is not 1 (repeatable)
    #[arg(long = "adapter", value_name = "DIR[:WEIGHT]", required = true, value_parser = parse_weighted)]
    adapters: Vec<Weighted>,
    /// Float dtype of the result
    #[arg(long, value_name = "DTYPE", default_value = "f32", value_parser = parse_dtype)]
    dtype: Dtype,
    #[command(flatten)]
    opening: Opening,
    #[command(flatten)]
    how: How,
}

fn parse_share(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(share) if share > 0.0 && share <= 1.0 => Ok(share),
        _ => Err("a share is a number above 0, at most 1".into()),
    }
}

/// The output, which must be given and must not be there yet.
fn output(how: &How, full_form: &str) -> Result<PathBuf, Failure> {
    let Some(out) = &how.out else {
        return Err(Failure::usage(
            "no `--out DIR` is given",
            format!("the full form: `{full_form}`"),
        ));
    };
    if std::fs::symlink_metadata(out).is_ok() && !how.overwrite && !how.dry_run {
        return Err(Error::OutputExists { path: out.clone() }.into());
    }
    Ok(out.clone())
}

/// Carries the plan of a made adapter out and removes what it was made from.
fn carry(
    made: Made,
    out: PathBuf,
    how: &How,
    form: &str,
    session: &Session,
) -> Result<(), Failure> {
    let planned = Planned { plan: made.plan, out: Some(out), origins: Origins::default() };
    carry_out(&planned, how, form, session)?;
    Ok(remove_work(&made.work)?)
}

impl Extract {
    const FULL_FORM: &'static str =
        "elo-surgery lora extract --model MODEL --base MODEL --rank 64 --out DIR";

    fn run(&self, session: &Session) -> Result<(), Failure> {
        let out = output(&self.how, Self::FULL_FORM)?;
        let model = session.open(&self.model, &self.opening)?;
        let base = session.open(&self.base, &self.opening)?;
        let rank = match (self.rank, self.energy) {
            (Some(rank), _) => Rank::Fixed(rank),
            (None, share) => Rank::Energy { share: share.unwrap_or(1.0), most: self.max_rank },
        };
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let mut request = lowrank::Extract {
            rank,
            dtype: self.dtype.clone(),
            save_whole: self.save_whole,
            power: self.power_iterations,
            seed: self.seed,
            threads: if self.how.threads == 0 { cores } else { self.how.threads.into() },
        };
        let foreseen = lowrank::foresee(&model, &base, &request)?;
        if let Some(limit) = self.how.memory {
            if foreseen.memory > limit {
                return Err(Failure::usage(
                    format!("{} of memory are too little for one thread", size(limit)),
                    format!("use `--memory {}B` or more, or a lower rank", foreseen.memory),
                ));
            }
            let fitting = usize::try_from(limit / foreseen.memory.max(1)).unwrap_or(usize::MAX);
            request.threads = request.threads.min(fitting);
        }
        if self.how.dry_run {
            return self.tell(foreseen, request.threads, &out, session);
        }
        session.hub.fetch_all_of(&[&model, &base], session)?;
        let watcher = Watcher::new(session, process::cancellation());
        let extraction = lowrank::extract(&model, &base, &out, &request, &watcher);
        watcher.finish();
        let extraction = extraction?;
        let products = || extraction.found.iter().filter(|found| found.rank.is_some());
        for found in products() {
            let rank = found.rank.unwrap_or(0);
            session.detail(&format!(
                "{}: rank {rank}, relative error {:.2e}",
                found.tensor, found.error
            ));
        }
        if let Some(worst) = products().max_by(|a, b| a.error.total_cmp(&b.error)) {
            session.say(&format!(
                "{} products, relative error at most {:.2e} (`{}`); {} tensors are equal",
                products().count(),
                worst.error,
                worst.tensor,
                extraction.equal
            ));
        }
        carry(extraction.made, out, &self.how, Self::FULL_FORM, session)
    }
}

impl Extract {
    /// Shows what would be done.
    fn tell(
        &self,
        foreseen: Foreseen,
        threads: usize,
        out: &Path,
        session: &Session,
    ) -> Result<(), Failure> {
        let Foreseen { matrices, read, memory } = foreseen;
        let memory = memory.saturating_mul(threads as u64);
        if session.json {
            return session.print_json(&json!({
                "command": "lora-extract",
                "dry_run": true,
                "out": out.to_string_lossy(),
                "matrices": matrices,
                "read": read,
                "memory": { "threads": threads, "bytes": memory },
            }));
        }
        session.print(&format!(
            "lora-extract to `{}`\n  reads    {} for {matrices} matrices ({} power iterations)\n  memory   {} ({threads} threads)\n",
            out.display(),
            size(read),
            self.power_iterations,
            size(memory),
        ))?;
        session.say("nothing was written (dry run)");
        Ok(())
    }
}

impl Merge {
    const FULL_FORM: &'static str =
        "elo-surgery lora merge --adapter A:0.5 --adapter B:0.5 --out DIR";

    fn run(&self, session: &Session) -> Result<(), Failure> {
        let out = output(&self.how, Self::FULL_FORM)?;
        let mut adapters: Vec<(Adapter, f64)> = Vec::new();
        for Weighted { path, weight } in &self.adapters {
            adapters.push((session.open_adapter(path, &self.opening)?, *weight));
        }
        let adapters: Vec<(&Adapter, f64)> = adapters.iter().map(|(a, w)| (a, *w)).collect();
        let made = lowrank::join(&adapters, &out, &self.dtype)?;
        carry(made, out, &self.how, Self::FULL_FORM, session)
    }
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
            Verb::Extract(verb) => verb.run(session),
            Verb::Merge(verb) => verb.run(session),
        }
    }

    /// The plan, for `plan`.
    pub(super) fn planned(&self, session: &Session) -> Result<Planned, Failure> {
        match &self.verb {
            Verb::Apply(verb) => verb.planned(session),
            Verb::Extract(_) | Verb::Merge(_) => Err(Failure::usage(
                "an adapter is made while its matrices are computed: there is no plan before",
                "use `--dry-run` to see what would be read",
            )),
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
