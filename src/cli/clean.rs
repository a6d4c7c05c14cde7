//! `clean`: find and remove what interrupted runs left.

use std::path::PathBuf;

use clap::Args;

use super::failure::Failure;
use super::session::Session;

/// List unfinished outputs, and with --yes remove them
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  elo-surgery clean models
  elo-surgery clean models --yes")]
pub(super) struct Clean {
    /// Directory to look in
    #[arg(default_value = ".")]
    dir: PathBuf,
    /// Remove what is listed, except what a running command holds
    #[arg(short, long)]
    yes: bool,
}

/// Lists and removes.
pub(super) fn run(arguments: &Clean, session: &Session) -> Result<(), Failure> {
    let _ = (arguments, session);
    Err(Failure::usage("`clean` is not there yet", ""))
}
