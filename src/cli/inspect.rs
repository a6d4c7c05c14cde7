//! `inspect`: what a checkpoint holds.

use std::path::PathBuf;

use clap::Args;

use super::arguments::Opening;
use super::failure::Failure;
use super::session::Session;
use crate::audit::{TreeOptions, inspect, render_tensors, render_tree};
use crate::error::Error;

/// Show what a model is made of, from its headers and config
///
/// Equal layers are folded. No tensor data is read.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  elo-surgery inspect llama-8b
  elo-surgery inspect llama-8b --tensors | grep mlp
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
    let model = session.open(&arguments.model, &arguments.opening)?;
    let inspection = inspect(&model);
    if session.json {
        let mut object = serde_json::to_value(&inspection)
            .map_err(|e| Error::Json { path: arguments.model.clone(), message: e.to_string() })?;
        if let (false, Some(fields)) = (arguments.tensors, object.as_object_mut()) {
            fields.remove("tensors");
        }
        return session.print_json(&object);
    }
    if arguments.tensors {
        return session.print(&render_tensors(&inspection));
    }
    session.print(&render_tree(&inspection, TreeOptions::default()))
}
