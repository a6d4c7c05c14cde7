//! What transformers' Trainer leaves on disk, and how its run ended by that.
//!
//! An exit status of 0 does not mean "trained": an interrupted Trainer saves a model that looks complete and exits with 0.
//! `trainer_state.json` tells (`global_step` of `max_steps`), so it alone is believed.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::Deserialize;
use serde_json::Value;

use super::protocol::{Outcome, PROTOCOL, Spec, Status};
use crate::error::{Error, IoContext as _, Result};

/// State of the Trainer, in every checkpoint.
pub(super) const STATE_FILE: &str = "trainer_state.json";

/// Present in a checkpoint while it is written.
const INCOMPLETE: &str = "checkpoint-is-incomplete.txt";

/// A whole checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Checkpoint {
    pub(super) step: u64,
    pub(super) directory: PathBuf,
}

/// `trainer_state.json`, as far as it matters.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct TrainerState {
    pub(super) global_step: u64,
    pub(super) max_steps: u64,
    pub(super) num_input_tokens_seen: Value,
    pub(super) log_history: Vec<BTreeMap<String, Value>>,
}

impl TrainerState {
    /// Reads it; `None` where there is none.
    pub(super) fn read(path: &Path) -> Result<Option<Self>> {
        let Some(text) = read_optional(path)? else { return Ok(None) };
        // Python writes what JSON does not have.
        let text = [": NaN", ": Infinity", ": -Infinity"]
            .iter()
            .fold(text, |text, number| text.replace(number, ": null"));
        let state = serde_json::from_str(&text)
            .map_err(|e| Error::Json { path: path.to_owned(), message: e.to_string() })?;
        Ok(Some(state))
    }

    /// Whether every step was made.
    pub(super) fn is_complete(&self) -> bool {
        self.max_steps > 0 && self.global_step >= self.max_steps
    }

    fn final_loss(&self) -> Option<f64> {
        self.log_history.iter().rev().find_map(|entry| number(entry.get("loss")?))
    }

    fn tokens(&self) -> Option<u64> {
        self.num_input_tokens_seen.as_u64().filter(|tokens| *tokens > 0)
    }
}

/// A number, or a number in quotes: the logs of transformers 5.
pub(super) fn number(value: &Value) -> Option<f64> {
    value.as_f64().or_else(|| value.as_str()?.parse().ok()).filter(|x| x.is_finite())
}

/// The newest whole checkpoint in an output directory of the Trainer.
pub(super) fn newest(output: &Path) -> Result<Option<Checkpoint>> {
    Ok(numbered(output)?
        .into_iter()
        .filter(|checkpoint| is_whole(&checkpoint.directory))
        .max_by_key(|checkpoint| checkpoint.step))
}

fn is_whole(checkpoint: &Path) -> bool {
    checkpoint.join(STATE_FILE).is_file() && !checkpoint.join(INCOMPLETE).exists()
}

fn numbered(output: &Path) -> Result<Vec<Checkpoint>> {
    let entries = match fs::read_dir(output) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).at("read", output),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.at("read", output)?;
        let name = entry.file_name();
        let step = name.to_str().and_then(|name| name.strip_prefix("checkpoint-")?.parse().ok());
        if let Some(step) = step {
            found.push(Checkpoint { step, directory: entry.path() });
        }
    }
    Ok(found)
}

/// Renames checkpoints that were being written when their writer died: the Trainer would continue from them.
pub(super) fn set_aside_incomplete(output: &Path) -> Result<()> {
    for checkpoint in numbered(output)? {
        if !is_whole(&checkpoint.directory) {
            let mut aside = output.join(format!("incomplete-{}", checkpoint.step));
            for count in 2.. {
                if !aside.exists() {
                    break;
                }
                aside = output.join(format!("incomplete-{}-{count}", checkpoint.step));
            }
            fs::rename(&checkpoint.directory, &aside).at("rename", &checkpoint.directory)?;
        }
    }
    Ok(())
}

/// The result file; `None` where there is none.
pub(super) fn read_result(path: &Path) -> Result<Option<Outcome>> {
    let Some(text) = read_optional(path)? else { return Ok(None) };
    serde_json::from_str(&text)
        .map(Some)
        .map_err(|e| Error::Json { path: path.to_owned(), message: e.to_string() })
}

/// How a Trainer's run in `output` ended. A complete model at the top of `trained` is moved to `out.model`, and the result
/// file is written.
pub(super) fn outcome(spec: &Spec, output: &Path, trained: &Path) -> Result<Option<Outcome>> {
    if let Some(told) = read_result(&spec.out.result)?
        && told.status == Status::Complete
        && spec.out.model.is_dir()
    {
        return Ok(Some(told));
    }
    let Some(checkpoint) = newest(output)? else { return Ok(None) };
    let state_file = checkpoint.directory.join(STATE_FILE);
    let Some(state) = TrainerState::read(&state_file)? else { return Ok(None) };
    let complete = state.is_complete() && publish(spec, trained, &state_file)?;
    let outcome = Outcome {
        protocol: PROTOCOL,
        status: if complete { Status::Complete } else { Status::Interrupted },
        model: complete.then(|| spec.out.model.clone()),
        steps: state.global_step,
        steps_total: state.max_steps,
        tokens: state.tokens(),
        final_loss: state.final_loss(),
        resume: Some(checkpoint.directory),
        versions: BTreeMap::new(),
    };
    write_result(&spec.out.result, &outcome)?;
    Ok(Some(outcome))
}

fn write_result(path: &Path, outcome: &Outcome) -> Result<()> {
    let text = serde_json::to_string_pretty(outcome)
        .map_err(|e| Error::Json { path: path.to_owned(), message: e.to_string() })?;
    let partial = path.with_extension("tmp");
    fs::write(&partial, text + "\n").at("write", &partial)?;
    fs::rename(&partial, path).at("rename", path)
}

/// Moves a trained model out of the Trainer's directory, in one step as seen from outside. `false` where it was not saved
/// after the last checkpoint: a model from an earlier interruption does not count.
fn publish(spec: &Spec, trained: &Path, state_file: &Path) -> Result<bool> {
    if spec.out.model.is_dir() {
        return Ok(true);
    }
    let mut partial = spec.out.model.clone().into_os_string();
    partial.push(".tmp");
    let partial = PathBuf::from(partial);
    let begun = partial.is_dir();
    let saved = modified(state_file)?;
    let files = model_files(trained)?;
    let mut weights = files.iter().filter(|file| is_weights(file)).peekable();
    if !begun {
        if weights.peek().is_none() {
            return Ok(false);
        }
        for file in weights {
            if modified(file)? < saved {
                return Ok(false);
            }
        }
    }
    fs::create_dir_all(&partial).at("create", &partial)?;
    for file in &files {
        let Some(name) = file.file_name() else { continue };
        fs::rename(file, partial.join(name)).at("rename", file)?;
    }
    fs::rename(&partial, &spec.out.model).at("rename", &partial)?;
    Ok(true)
}

fn modified(path: &Path) -> Result<SystemTime> {
    fs::metadata(path).and_then(|metadata| metadata.modified()).at("read", path)
}

fn is_weights(file: &Path) -> bool {
    file.extension().is_some_and(|extension| extension == "safetensors")
}

/// The files of a model at the top of a directory, without a Trainer's own.
fn model_files(directory: &Path) -> Result<Vec<PathBuf>> {
    const NAMES: [&str; 9] = [
        "config.json",
        "generation_config.json",
        "model.safetensors.index.json",
        "added_tokens.json",
        "special_tokens_map.json",
        "vocab.json",
        "merges.txt",
        "vocab.txt",
        "chat_template.json",
    ];
    let mut files = Vec::new();
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(files),
        Err(error) => return Err(error).at("read", directory),
    };
    for entry in entries {
        let path = entry.at("read", directory)?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        let wanted = (is_weights(&path) && !name.starts_with("adapter_"))
            || NAMES.contains(&name)
            || name.starts_with("tokenizer")
            || name.starts_with("chat_template");
        if wanted && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn read_optional(path: &Path) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).at("read", path),
    }
}
