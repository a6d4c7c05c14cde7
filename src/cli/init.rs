//! `init`: start a project.

use std::fs::{OpenOptions, create_dir_all};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;

use super::failure::{Failure, Origins};
use super::session::Session;
use crate::checkpoint::{Checkpoint, LayerSelector};
use crate::error::{Error, IoContext as _};
use crate::pipeline::project::PROJECT_FILE;

/// Start a project: write a commented `elo.yaml`
///
/// Inside a project `extract`, `inject` and `chat-vector` know the model, the layers and where results go.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  elo-surgery init --model llama-8b --inst llama-8b-instruct --layers 1,32
  elo-surgery init korean --model /models/llama-8b")]
pub(super) struct Init {
    /// Directory of the project
    #[arg(default_value = ".")]
    dir: PathBuf,
    /// The base model
    #[arg(long, value_name = "MODEL")]
    model: Option<PathBuf>,
    /// Its instruction-tuned relative, for the chat vector
    #[arg(long, value_name = "MODEL")]
    inst: Option<PathBuf>,
    /// The layers to train, counting from 1
    #[arg(long, value_name = "LAYERS", allow_hyphen_values = true, default_value = "first,last")]
    layers: String,
}

/// Writes the file; an existing one is kept.
pub(super) fn run(arguments: &Init, session: &Session) -> Result<(), Failure> {
    let mut origins = Origins::default();
    origins.flag("--layers", &arguments.layers);
    check_layers(arguments, session).map_err(|error| origins.explain(error.into()))?;
    create_dir_all(&arguments.dir).at("create", &arguments.dir)?;
    let path = match arguments.dir.as_path() {
        dir if dir == Path::new(".") => PathBuf::from(PROJECT_FILE),
        dir => dir.join(PROJECT_FILE),
    };
    let text = content(arguments)?;
    match OpenOptions::new().write(true).create_new(true).open(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
            let problem = format!("`{}` already exists", path.display());
            return Err(Failure::usage(
                problem,
                "edit it, or start the project in another directory",
            ));
        }
        opened => opened.at("create", &path)?.write_all(text.as_bytes()).at("write", &path)?,
    }
    if session.json {
        return session.print_json(&json!({ "command": "init", "file": path.to_string_lossy() }));
    }
    session.say(&format!("wrote `{}`", path.display()));
    if arguments.model.is_none() {
        session.note("it names no model yet: set `model`");
    }
    Ok(())
}

/// Catches a slip in the layers while it is cheap. A model that is not there yet is no reason to wait.
fn check_layers(arguments: &Init, session: &Session) -> Result<(), Error> {
    let layers: LayerSelector = arguments.layers.parse()?;
    let Some(path) = &arguments.model else {
        return Ok(());
    };
    match Checkpoint::open(path) {
        Ok(model) => layers.resolve(model.layers(), model.name()).map(drop),
        Err(error) => {
            session.warn(&format!("the model cannot be read yet: {error}"));
            Ok(())
        }
    }
}

fn content(arguments: &Init) -> Result<String, Failure> {
    let line = |key: &str, path: Option<&PathBuf>, example: &str| match path {
        Some(path) => Ok(format!("{key}: {}", quoted(&from_project(path, &arguments.dir))?)),
        None => Ok::<_, Failure>(format!("# {key}: {example}")),
    };
    Ok(format!(
        "# A project of elo-surgery. Paths are relative to this file.

# The base model: a directory with safetensors, a config.json and a tokenizer.
{model}

# Its instruction-tuned relative. The chat vector is `instruct - model`.
{instruct}

# The decoder layers to extract, train and put back, counting from 1.
layers: {layers}

# Where results go:
#   01-extract/model       `elo-surgery extract`
#   02-pretrain/model      your training run saves the trained part here
#   03-inject/model        `elo-surgery inject`
#   05-chat-vector/model   `elo-surgery chat-vector`
out: work
",
        model = line("model", arguments.model.as_ref(), "../models/llama-8b")?,
        instruct = line("instruct", arguments.inst.as_ref(), "../models/llama-8b-instruct")?,
        layers = arguments.layers,
    ))
}

/// A path given from the working directory, as the project file has to say it.
fn from_project(path: &Path, dir: &Path) -> PathBuf {
    if path.is_absolute() || dir == Path::new(".") {
        return path.to_owned();
    }
    match (std::path::absolute(path), dir.is_absolute()) {
        // Inside the project the short form says the same.
        _ if path.starts_with(dir) => path.strip_prefix(dir).unwrap_or(path).to_owned(),
        (Ok(absolute), _) => absolute,
        (Err(_), _) => path.to_owned(),
    }
}

/// A YAML string: plain where that is safe, in double quotes elsewhere. JSON strings are YAML strings.
fn quoted(path: &Path) -> Result<String, Failure> {
    let text = path.to_str().ok_or_else(|| Error::Project {
        path: path.to_owned(),
        problem: "the path is not UTF-8, which a project file must be".into(),
        hint: "link to it under another name".into(),
    })?;
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
    let safe_start = text.starts_with(|c: char| c.is_ascii_alphabetic() || "/.".contains(c));
    let is_word = text.contains('/');
    if text.chars().all(plain) && safe_start && is_word {
        Ok(text.to_owned())
    } else {
        Ok(json!(text).to_string())
    }
}
