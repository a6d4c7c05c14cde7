//! `apply`: carry out a saved plan.

use std::fs::File;
use std::io::{Read, stdin};
use std::path::{Path, PathBuf};

use clap::Args;

use super::failure::{Failure, Origins};
use super::session::Session;
use super::surgery::{How, Surgical, origin_of};
use crate::error::{Error, IoContext as _, printable};
use crate::plan::Plan;

/// More than a plan of a million tensors takes.
const MAX_BYTES: u64 = 1 << 30;

/// Carry out a plan made by `plan`
///
/// The plan is checked first, and so is that its sources are the files they were.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  elo-surgery apply plan.json --out llama-8b-elo
  elo-surgery plan extract llama-8b --layers 1,32 | elo-surgery apply - --out llama-8b-elo")]
pub(super) struct Apply {
    /// The plan file; `-` is stdin
    plan: PathBuf,
    #[command(flatten)]
    how: How,
}

impl Surgical for Apply {
    const FULL_FORM: &'static str = "elo-surgery apply PLAN.json --out DIR";

    fn how(&self) -> &How {
        &self.how
    }

    fn draft(
        &self,
        _session: &Session,
        origins: &mut Origins,
    ) -> Result<(Plan, Option<PathBuf>), Failure> {
        origin_of(origins, "--out", self.how.out.as_ref());
        let plan: Plan = serde_json::from_slice(&read(&self.plan)?).map_err(|e| Error::Json {
            path: self.plan.clone(),
            message: printable(&e.to_string()),
        })?;
        plan.validate()?;
        Ok((plan, self.how.out.clone()))
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    if path == Path::new("-") {
        stdin().lock().take(MAX_BYTES).read_to_end(&mut bytes).at("read", path)?;
    } else {
        let file = File::open(path).at("open", path)?;
        file.take(MAX_BYTES).read_to_end(&mut bytes).at("read", path)?;
    }
    Ok(bytes)
}
