//! `verify`: whether a checkpoint is sound.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::Args;

use super::arguments::{IoChoice, Opening};
use super::failure::Failure;
use super::process;
use super::progress::Watcher;
use super::session::Session;
use crate::audit::{Verification, VerifyOptions, examine};

/// Check a model: structure, recorded digests, NaN and infinite values
///
/// Every file is read once. Damage is exit code 7; doubts, such as infinite values, are warnings.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  elo-surgery verify llama-8b-elo
  elo-surgery verify llama-8b --structure-only   # headers, config and sizes only
  elo-surgery verify llama-8b --json | jq .problems")]
pub(super) struct Verify {
    /// Model directory or `.safetensors` file
    model: PathBuf,
    /// Look at headers, config and sizes only; read no tensor data
    #[arg(long)]
    structure_only: bool,
    /// Threads [default: one a core]
    #[arg(short = 'j', long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// How files are read; `read` suits network filesystems
    #[arg(long, value_enum, value_name = "HOW", default_value_t)]
    io: IoChoice,
    #[command(flatten)]
    opening: Opening,
}

/// Examines the model and reports.
pub(super) fn run(arguments: &Verify, session: &Session) -> Result<(), Failure> {
    let found = examined(arguments, session)?;
    let damaged = !found.problems.is_empty();
    if session.json {
        session.print_json(&found)?;
    } else if !session.quiet {
        session.print(&found.render())?;
        if damaged {
            return Err(Failure::Told(7));
        }
    }
    found.into_result()?;
    Ok(())
}

fn examined(arguments: &Verify, session: &Session) -> Result<Verification, Failure> {
    let model = session.open(&arguments.model, &arguments.opening)?;
    let options = VerifyOptions {
        read_data: !arguments.structure_only,
        digests: !arguments.structure_only,
        threads: arguments.threads,
        reading: arguments.io.into(),
    };
    if !arguments.structure_only {
        session.hub.fetch_all_of(&[&model], session)?;
    }
    let watcher = Watcher::new(session, process::cancellation());
    let found = examine(&model, &options, &watcher);
    watcher.finish();
    Ok(found?)
}
