//! `plan`: what a verb would do, as JSON for `apply`; without one, what a project's run would need.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use super::failure::Failure;
use super::session::Session;
use super::surgery::{Planned, Surgical};
use super::{
    cast, chat_vector, expand, experts, extract, inject, layers, lora, merge, moe, reshard,
    summary, transplant,
};
use crate::error::{Error, IoContext as _};

/// Print what a command would do as a plan, for `apply`; without a command, what the project's run will need
///
/// In a project, `plan` alone estimates memory, FLOPs and time of every training stage before it starts, and the other
/// ways to align. A plan of a command names every byte of the output and the files they come from. The flags of the command that shape the result
/// are the same; those that say where and how fast belong to `apply`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  elo-surgery plan
  elo-surgery plan extract llama-8b --layers 1,32 > plan.json
  elo-surgery plan --save plan.json chat-vector --inst A --base B --into C
  elo-surgery apply plan.json --out D")]
pub(super) struct Plan {
    /// Write the plan to this file instead of stdout
    #[arg(long, value_name = "FILE", global = true)]
    save: Option<PathBuf>,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Extract(Box<extract::Extract>),
    Inject(Box<inject::Inject>),
    ChatVector(Box<chat_vector::ChatVector>),
    Merge(Box<merge::Merge>),
    Layers(Box<layers::Layers>),
    Expand(Box<expand::Expand>),
    Experts(Box<experts::Experts>),
    Moe(Box<moe::Moe>),
    Transplant(Box<transplant::Transplant>),
    Reshard(Box<reshard::Reshard>),
    Cast(Box<cast::Cast>),
    Lora(lora::Lora),
}

/// Makes the plan and prints or saves it.
pub(super) fn run(arguments: &Plan, session: &Session) -> Result<(), Failure> {
    let Some(verb) = &arguments.verb else {
        return super::run::outlook(session);
    };
    let Planned { plan, .. } = match verb {
        Verb::Extract(verb) => verb.planned(session),
        Verb::Inject(verb) => verb.planned(session),
        Verb::ChatVector(verb) => verb.planned(session),
        Verb::Merge(verb) => verb.planned(session),
        Verb::Layers(verb) => verb.planned(session),
        Verb::Expand(verb) => verb.planned(session),
        Verb::Experts(verb) => verb.planned(session),
        Verb::Moe(verb) => verb.planned(session),
        Verb::Transplant(verb) => verb.planned(session),
        Verb::Reshard(verb) => verb.planned(session),
        Verb::Cast(verb) => verb.planned(session),
        Verb::Lora(lora) => lora.planned(session),
    }?;
    let json = serde_json::to_string_pretty(&plan)
        .map_err(|e| Error::Plan { problem: format!("it cannot be written as JSON: {e}") })?;
    for line in summary::lines(&plan) {
        session.say(&line);
    }
    summary::notes(&plan.notes, session);
    match &arguments.save {
        None => session.print(&format!("{json}\n")),
        Some(path) => {
            save(path, &json)?;
            session.say(&format!("saved `{}`", path.display()));
            Ok(())
        }
    }
}

/// A plan is small and made again in no time, so that it needs no staging; but an existing file is kept.
fn save(path: &Path, json: &str) -> Result<(), Failure> {
    let opened = OpenOptions::new().write(true).create_new(true).open(path);
    let mut file = match opened {
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
            let problem = format!("`{}` already exists", path.display());
            return Err(Failure::usage(problem, "choose another name for `--save`"));
        }
        opened => opened.at("create", path)?,
    };
    file.write_all(json.as_bytes()).and_then(|()| file.write_all(b"\n")).at("write", path)?;
    Ok(())
}
