//! `merge`: models merged as mergekit's configuration says.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use super::arguments::{Opening, ShardSize};
use super::failure::{Failure, Origins};
use super::merge_stages::{self, Stages};
use super::session::Session;
use super::surgery::{How, Surgical, carry_out, origin_of};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, IoContext as _};
use crate::ops::{
    self,
    merge::{Config, Reference},
};
use crate::plan::{Numerics, Plan};

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

Methods: all of mergekit 0.1.5: linear, slerp, nuslerp, multislerp, karcher, task_arithmetic, ties,
dare_linear, dare_ties, breadcrumbs, breadcrumbs_ties, della, della_linear, sce, ram, ramplus_tl,
model_stock, nearswap, arcee_fusion, passthrough. docs/merge.md has their formulas and the language.")]
pub(super) struct Merge {
    /// The configuration
    config: PathBuf,
    /// Rules of arithmetic: f32 with one rounding, or mergekit's operation by operation
    #[arg(long, value_enum, value_name = "RULES", default_value_t)]
    numerics: Rules,
    /// Where vocabularies differ in size, keep the rows that all models have
    #[arg(long)]
    truncate_embeddings: bool,
    /// Where the random numbers of dare_* and della* start; the same seed gives the same bytes
    #[arg(long, value_name = "N", default_value_t = 0)]
    random_seed: u64,
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

/// Rules of arithmetic.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum Rules {
    /// Exact inputs, f32 sums, one rounding
    #[default]
    Precise,
    /// The operations and roundings of mergekit 0.1.5 in `dtype`, and its random numbers; slow, on the CPU
    Mergekit,
}

impl Rules {
    fn numerics(self) -> Numerics {
        match self {
            Self::Precise => Numerics::Precise,
            Self::Mergekit => Numerics::Mergekit,
        }
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
        origin_of(origins, "--out", self.how.out.as_ref());
        let mut documents = self.documents()?;
        match (documents.pop(), documents.len()) {
            (Some(config), 0) => {
                Ok((self.plan(&config, &Stages::default(), session)?.0, self.how.out.clone()))
            }
            (_, more) => Err(Failure::usage(
                format!(
                    "`{}` has {} documents, each of which is a plan",
                    self.config.display(),
                    more + 1
                ),
                "give one of them, or carry out all: `elo-surgery merge CONFIG.yml --out DIR`",
            )),
        }
    }

    fn run(&self, session: &Session) -> Result<(), Failure> {
        self.how.device.check(self.how.device_memory)?;
        let documents = self.documents()?;
        if documents.len() > 1 {
            return merge_stages::run(self, &documents, session);
        }
        let planned = self.planned(session)?;
        carry_out(&planned, &self.how, Self::FULL_FORM, session)
    }
}

impl Merge {
    fn documents(&self) -> Result<Vec<Config>, Failure> {
        Ok(Config::parse_all(&read(&self.config)?, &self.config.to_string_lossy())?)
    }

    pub(super) fn open(&self, named: &Reference, session: &Session) -> Result<Checkpoint, Failure> {
        session.open_adapted(named, &self.opening)
    }

    /// The plan of one document, and where its models lie. `stages` has what earlier documents made.
    pub(super) fn plan(
        &self,
        config: &Config,
        stages: &Stages,
        session: &Session,
    ) -> Result<(Plan, Vec<(Reference, PathBuf)>), Failure> {
        let open = |named: &Reference| match stages.at(&named.path) {
            Some(made) => {
                let named = Reference { path: made.to_owned(), lora: named.lora.clone() };
                self.open(&named, session)
            }
            None => self.open(named, session),
        };
        let models = config.models().into_iter().map(open);
        let models = models.collect::<Result<Vec<Checkpoint>, Failure>>()?;
        let request = ops::merge::Merge {
            shard_size: self.shard_size.shard_size,
            truncate_embeddings: self.truncate_embeddings,
            numerics: self.numerics.numerics(),
            random_seed: self.random_seed,
            no_model_card: self.no_model_card,
            made: stages.made().to_vec(),
        };
        let plan = ops::merge::merge(config, &models, &request)?;
        let roots = models.iter().map(|model| model.root().to_owned());
        Ok((plan, config.models().into_iter().cloned().zip(roots).collect()))
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
