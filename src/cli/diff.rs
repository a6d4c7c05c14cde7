//! `diff`: where and how far two checkpoints differ.

use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use clap::Args;

use super::arguments::{IoChoice, Opening};
use super::failure::Failure;
use super::process;
use super::progress::Watcher;
use super::session::Session;
use crate::audit::{self, DiffOptions, DiffView, Heatmap, TensorState, render_diff};
use crate::error::IoContext as _;

/// Compare two models: which tensors differ, and how far they moved
///
/// Each tensor is compared byte by byte, floats also by value. Shards that are the same file are not read.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  elo-surgery diff llama-8b llama-8b-instruct
  elo-surgery diff llama-8b llama-8b-ko --changed --top 20
  elo-surgery diff llama-8b llama-8b-ko --heatmap moved.svg
  elo-surgery diff llama-8b llama-8b-ko --json | jq .total")]
pub(super) struct Diff {
    /// The first model
    a: PathBuf,
    /// The second model
    b: PathBuf,
    /// Leave out equal tensors
    #[arg(long)]
    changed: bool,
    /// Only the N tensors that moved the most
    #[arg(long, value_name = "N")]
    top: Option<usize>,
    /// Also draw layers by modules as a heat map
    #[arg(long, value_name = "FILE.svg")]
    heatmap: Option<PathBuf>,
    /// Threads [default: one a core]
    #[arg(short = 'j', long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// How files are read; `read` suits network filesystems
    #[arg(long, value_enum, value_name = "HOW", default_value_t)]
    io: IoChoice,
    #[command(flatten)]
    opening: Opening,
}

/// Compares and reports.
pub(super) fn run(arguments: &Diff, session: &Session) -> Result<(), Failure> {
    if let Some(path) = &arguments.heatmap {
        check_drawing(path)?;
    }
    let mut diff = compared(arguments, session)?;
    if let Some(path) = &arguments.heatmap {
        fs::write(path, Heatmap::of(&diff).render()).at("write", path)?;
        session.say(&format!("wrote `{}`", path.display()));
    }
    if session.json {
        let wanted = |state| !arguments.changed || state != TensorState::Equal;
        diff.tensors.retain(|tensor| wanted(tensor.state));
        return session.print_json(&diff);
    }
    let view =
        DiffView { changed_only: arguments.changed, top: arguments.top, ..DiffView::default() };
    session.print(&render_diff(&diff, view))
}

fn compared(arguments: &Diff, session: &Session) -> Result<audit::Diff, Failure> {
    let a = session.open(&arguments.a, &arguments.opening)?;
    let b = session.open(&arguments.b, &arguments.opening)?;
    let options = DiffOptions { threads: arguments.threads, reading: arguments.io.into() };
    session.hub.fetch_all_of(&[&a, &b], session)?;
    let watcher = Watcher::new(session, process::cancellation());
    let diff = audit::diff(&a, &b, &options, &watcher);
    watcher.finish();
    Ok(diff?)
}

/// A drawing replaces an earlier one; a slip of the keyboard must not replace weights.
fn check_drawing(path: &Path) -> Result<(), Failure> {
    if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("svg")) {
        return Ok(());
    }
    let problem = format!("`--heatmap {}` is not the name of an SVG file", path.display());
    Err(Failure::usage(problem, "for example `--heatmap diff.svg`"))
}
