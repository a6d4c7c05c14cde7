//! `pull`: files of a model of the Hub, whole and verified.

use std::path::PathBuf;

use clap::Args;

use super::failure::Failure;
use super::session::Session;

/// Fetch a model of the Hub, or some files of it: in parallel, resumable, verified
///
/// Files go to the cache of Hugging Face's own programs, which find them there, or with `--out` to a directory of their own. A file
/// gets its name when its size and hash are those that the Hub lists. The directory is printed. Other commands take `org/name` as a model without a pull, and
/// fetch only what they read.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  elo-surgery pull org/name
  elo-surgery pull org/name@v1.0 --out name
  elo-surgery pull org/name '*.json' 'tokenizer*'
  elo-surgery pull org/name --exclude 'original/*' --exclude '*.bin'
  elo-surgery pull org/name --dry-run")]
pub(super) struct Pull {
    /// The model, with a branch, tag or commit behind `@` if it is not `main`
    #[arg(value_name = "ORG/NAME[@REVISION]")]
    model: String,
    /// Only files that match one of these; `*` also matches `/`
    #[arg(value_name = "PATTERN")]
    patterns: Vec<String>,
    /// Not the files that match (repeatable)
    #[arg(long, value_name = "PATTERN")]
    exclude: Vec<String>,
    /// Write the files to this directory instead of the cache
    #[arg(short, long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// With `--out`: replace files that differ
    #[arg(long, requires = "out")]
    overwrite: bool,
    /// Show what would be fetched and fetch nothing
    #[arg(short = 'n', long)]
    dry_run: bool,
}

/// Fetches.
#[cfg(feature = "hub")]
pub(super) fn run(arguments: &Pull, session: &Session) -> Result<(), Failure> {
    use std::fmt::Write as _;

    use serde_json::json;

    use super::hub::watched;
    use super::units::{counted, size};
    use crate::hub::{Into, ModelId, Selection};

    let Some(id) = ModelId::parse(&arguments.model) else {
        return Err(Failure::usage(
            format!("`{}` is no id of a model", crate::error::printable(&arguments.model)),
            "ids look like `org/name`, `org/name@branch` or `org/name@commit`",
        ));
    };
    let selection = Selection::new(&arguments.patterns, &arguments.exclude)?;
    let into = match &arguments.out {
        Some(out) => Into::Directory(out, arguments.overwrite),
        None => Into::Cache,
    };
    let hub = session.hub.hub()?;
    if arguments.dry_run {
        let pull = hub.pull(&id, &selection, into)?;
        let told = pull.outlook()?;
        if session.json {
            let files = pull.files().map(|(path, size)| json!({ "path": path, "size": size }));
            return session.print_json(&json!({
                "command": "pull",
                "dry_run": true,
                "model": told.id.to_string(),
                "directory": told.root.to_string_lossy(),
                "files": files.collect::<Vec<_>>(),
                "bytes": told.bytes,
                "to_fetch": { "files": told.missing_files, "bytes": told.missing },
            }));
        }
        let mut text = format!("pull of `{}` to `{}`\n", told.id, told.root.display());
        for (path, bytes) in pull.files() {
            let _ = writeln!(text, "  {:>10}  {path}", size(bytes));
        }
        session.print(&text)?;
        session.say(&format!(
            "{} of {} to fetch, {} of {}; nothing was fetched (dry run)",
            size(told.missing),
            size(told.bytes),
            told.missing_files,
            counted(told.files, "file")
        ));
        return Ok(());
    }
    let started = std::time::Instant::now();
    let pulled = watched(session, |watch| {
        hub.relying(|| hub.pull(&id, &selection, into)?.run(id.revision_or_main(), watch))
    })?;
    let traffic = hub.traffic();
    let seconds = started.elapsed().as_secs_f64();
    if session.json {
        return session.print_json(&json!({
            "command": "pull",
            "model": pulled.id.to_string(),
            "directory": pulled.root.to_string_lossy(),
            "files": pulled.files,
            "bytes": pulled.bytes,
            "fetched": traffic.bytes,
            "requests": traffic.requests,
            "seconds": seconds,
        }));
    }
    session.say(&format!(
        "{} in {}, {} fetched in {} and {seconds:.1} s",
        size(pulled.bytes),
        counted(pulled.files, "file"),
        size(traffic.bytes),
        counted(traffic.requests, "request"),
    ));
    session.print(&format!("{}\n", pulled.root.display()))
}

/// Refuses.
#[cfg(not(feature = "hub"))]
pub(super) fn run(_arguments: &Pull, _session: &Session) -> Result<(), Failure> {
    Err(Failure::usage(
        "this build of elo-surgery knows no Hub",
        "build it with the feature `hub`, or fetch the model with `hf download`, which prints its directory",
    ))
}
