//! `clean`: find and remove what interrupted runs left.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::failure::Failure;
use super::session::Session;
use super::units::size;
use crate::engine::{LeftOver, remove_staging, stagings};
use crate::lowrank::{remove_left_work, works};

/// List what interrupted runs left, and with --yes remove it
///
/// What is listed is not lost work: the interrupted command continues from it when it is run again.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  elo-surgery clean models
  elo-surgery clean models --yes")]
pub(super) struct Clean {
    /// Directory to look in [default: here, and in a project where its stages write]
    dir: Option<PathBuf>,
    /// Remove what is listed, except what a running command holds
    #[arg(short, long)]
    yes: bool,
}

/// Lists and removes.
pub(super) fn run(arguments: &Clean, session: &Session) -> Result<(), Failure> {
    let dirs = match &arguments.dir {
        Some(dir) => vec![dir.clone()],
        None => here(session)?,
    };
    let mut found = Vec::new();
    for dir in &dirs {
        found.extend(stagings(dir)?.into_iter().map(|left| (left, false)));
        found.extend(works(dir)?.into_iter().map(|left| (left, true)));
    }
    let mut removed = Vec::new();
    for (left, of_adapter) in found.iter().filter(|(left, _)| arguments.yes && !left.locked) {
        if *of_adapter {
            remove_left_work(left)?;
        } else {
            remove_staging(left)?;
        }
        removed.push(left.path.clone());
    }
    if session.json {
        let list: Vec<_> = found
            .iter()
            .map(|(left, _)| {
                json!({
                    "path": left.path.to_string_lossy(),
                    "out": left.out.to_string_lossy(),
                    "locked": left.locked,
                    "bytes": left.bytes,
                    "removed": removed.contains(&left.path),
                })
            })
            .collect();
        return session.print_json(&json!({ "command": "clean", "unfinished": list }));
    }
    for (left, _) in &found {
        session.print(&line(left, removed.contains(&left.path)))?;
    }
    match (found.len(), removed.len()) {
        (0, _) => session.say("nothing unfinished"),
        (_, 0) if !arguments.yes => session.say("`elo-surgery clean --yes` removes them"),
        _ => {}
    }
    Ok(())
}

fn line(left: &LeftOver, removed: bool) -> String {
    let state = match (removed, left.locked) {
        (true, _) => ", removed",
        (false, true) => ", held by a running command",
        (false, false) => "",
    };
    let (path, out) = (left.path.display(), left.out.display());
    format!("{path}: {} for `{out}`{state}\n", size(left.bytes))
}

/// The working directory, and where the stages of its project write.
fn here(session: &Session) -> Result<Vec<PathBuf>, Failure> {
    let mut dirs = vec![PathBuf::from(".")];
    if let Some(project) = session.project()? {
        dirs.extend(project.stage_directories());
    }
    Ok(dirs)
}
