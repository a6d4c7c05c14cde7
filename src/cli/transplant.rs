//! `transplant`: a model with another model's tokenizer.

use std::path::PathBuf;

use clap::Args;

use super::arguments::{Opening, ShardSize};
use super::failure::{Failure, Origins};
use super::session::Session;
use super::surgery::{How, Surgical, origin_of};
use crate::ops;
use crate::plan::Plan;

/// Put another model's tokenizer onto a model
///
/// Rows of tokens that both have are copied; rows of the donor's other tokens are approximated from the model's own. Every
/// such token is named in `vocabulary_audit.json` beside the result. Layers stay as they are: train the model, or at least
/// its embeddings, before you use it.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  elo-surgery transplant --model qwen-0.5b --tokenizer-from llama-8b --out qwen-llama
  elo-surgery transplant --model qwen-0.5b --tokenizer-from llama-8b --method subword --out qwen-llama --dry-run

docs/vocabulary.md tells what the methods do and cost.")]
pub(super) struct Transplant {
    /// Model that gets the tokenizer
    #[arg(long, value_name = "MODEL")]
    model: PathBuf,
    /// Model whose tokenizer it gets
    #[arg(long, value_name = "DONOR")]
    tokenizer_from: PathBuf,
    /// How missing rows are made: `mean` (of all rows), `subword` (of the token's pieces), `nearest` (token in the donor's
    /// space), `omp` (a sum of `k` tokens, by orthogonal matching pursuit there)
    #[arg(long, value_name = "METHOD", default_value = "omp")]
    method: ops::Approximation,
    /// Tokens of a sum, for `omp`
    #[arg(short, long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=1024))]
    k: u16,
    /// Pad the vocabulary with rows of means to a multiple of this
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pad_to_multiple_of: Option<u32>,
    #[command(flatten)]
    shard_size: ShardSize,
    #[command(flatten)]
    opening: Opening,
    #[command(flatten)]
    how: How,
}

impl Surgical for Transplant {
    const FULL_FORM: &'static str =
        "elo-surgery transplant --model MODEL --tokenizer-from DONOR --out DIR";

    fn how(&self) -> &How {
        &self.how
    }

    fn draft(
        &self,
        session: &Session,
        origins: &mut Origins,
    ) -> Result<(Plan, Option<PathBuf>), Failure> {
        origin_of(origins, "--model", Some(&self.model));
        origin_of(origins, "--tokenizer-from", Some(&self.tokenizer_from));
        origin_of(origins, "--out", self.how.out.as_ref());
        let model = session.open(&self.model, &self.opening)?;
        let donor = session.open(&self.tokenizer_from, &self.opening)?;
        let request = ops::Transplant {
            method: self.method,
            k: self.k.into(),
            multiple: self.pad_to_multiple_of.map(u64::from),
            shard_size: self.shard_size.shard_size,
        };
        Ok((ops::transplant(&model, &donor, &request)?, self.how.out.clone()))
    }
}
