//! `inspect`: what a checkpoint holds.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::arguments::Opening;
use super::failure::{Failure, Origins};
use super::session::Session;
use super::units::{counted, size};

/// Show what a model is made of, from its headers and config
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  elo-surgery inspect llama-8b
  elo-surgery inspect llama-8b --tensors
  elo-surgery inspect llama-8b --json | jq .parameters.total")]
pub(super) struct Inspect {
    /// Model directory or `.safetensors` file
    model: PathBuf,
    /// One line a tensor: name, dtype, shape, size, shard
    #[arg(long)]
    tensors: bool,
    #[command(flatten)]
    opening: Opening,
}

/// Opens the model and shows it.
pub(super) fn run(arguments: &Inspect, session: &Session) -> Result<(), Failure> {
    let mut origins = Origins::default();
    origins.flag("", &arguments.model);
    let model = session
        .open(&arguments.model, &arguments.opening)
        .map_err(|failure| origins.explain(failure))?;
    if session.json {
        return session.print_json(&json!({ "name": model.name(), "layers": model.layers() }));
    }
    session.print(&format!(
        "{}: {}, {}, {}\n",
        model.name(),
        counted(model.layers(), "layer"),
        counted(model.tensors().len() as u64, "tensor"),
        size(model.data_bytes())
    ))
}
