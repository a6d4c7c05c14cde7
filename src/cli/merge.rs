//! `merge`: models merged as mergekit's configuration says.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use clap::Args;

use super::arguments::{Opening, ShardSize};
use super::failure::{Failure, Origins};
use super::session::Session;
use super::surgery::{How, Surgical, origin_of};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, IoContext as _};
use crate::ops;
use crate::plan::Plan;

/// Much more than any configuration has.
const MOST_BYTES: u64 = 1 << 20;

/// Merge models by a mergekit configuration
///
/// The configuration is mergekit's YAML, read strictly: a key that is not known, or not supported yet, is an error. Paths of
/// models are relative to the working directory, as for mergekit. The result's config and tokenizer are the base
/// model's, else the first model's.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  elo-surgery merge config.yml --out merged
  elo-surgery merge config.yml --out merged --dry-run
  elo-surgery plan merge config.yml > plan.json

Methods: linear, task_arithmetic, passthrough, slerp, nuslerp, multislerp, karcher, model_stock.
docs/merge.md has the language and what is supported.")]
pub(super) struct Merge {
    /// The configuration
    config: PathBuf,
    /// Rules of arithmetic: `precise` is f32 with one rounding
    #[arg(long, value_name = "RULES", default_value = "precise", value_parser = parse_numerics)]
    numerics: Precise,
    /// Where vocabularies differ in size, keep the rows that all models have
    #[arg(long)]
    truncate_embeddings: bool,
    /// Write no model card (`README.md`)
    #[arg(long)]
    no_model_card: bool,
    #[command(flatten)]
    shard_size: ShardSize,
    #[command(flatten)]
    opening: Opening,
    #[command(flatten)]
    how: How,
}

/// The only rules of arithmetic so far.
#[derive(Clone, Copy, Debug)]
struct Precise;

fn parse_numerics(text: &str) -> Result<Precise, String> {
    match text {
        "precise" => Ok(Precise),
        "mergekit" => Err("mergekit's chain of roundings is not supported yet".into()),
        _ => Err("the rules are called `precise`".into()),
    }
}

impl Surgical for Merge {
    const FULL_FORM: &'static str = "elo-surgery merge CONFIG.yml --out DIR";

    fn how(&self) -> &How {
        &self.how
    }

    fn draft(
        &self,
        session: &Session,
        origins: &mut Origins,
    ) -> Result<(Plan, Option<PathBuf>), Failure> {
        let Precise = self.numerics;
        origin_of(origins, "--out", self.how.out.as_ref());
        let config =
            ops::merge::Config::parse(&read(&self.config)?, &self.config.to_string_lossy())?;
        let open = |path: &Path| session.open(path, &self.opening);
        let models = config.models().into_iter().map(open);
        let models = models.collect::<Result<Vec<Checkpoint>, Failure>>()?;
        let request = ops::merge::Merge {
            shard_size: self.shard_size.shard_size,
            truncate_embeddings: self.truncate_embeddings,
            no_model_card: self.no_model_card,
        };
        Ok((ops::merge::merge(&config, &models, &request)?, self.how.out.clone()))
    }
}

/// The text of a configuration.
pub(super) fn read(path: &Path) -> Result<String, Failure> {
    let file = std::fs::File::open(path).at("open", path)?;
    let mut text = String::new();
    let read = file.take(MOST_BYTES + 1).read_to_string(&mut text).at("read", path)?;
    if read as u64 > MOST_BYTES {
        return Err(Failure::from(Error::Mismatch {
            what: format!("`{}` is no configuration", path.display()),
            problems: vec![format!("it has more than {MOST_BYTES} bytes")],
            hint: "give the YAML file; models are named in it".into(),
        }));
    }
    Ok(text)
}
