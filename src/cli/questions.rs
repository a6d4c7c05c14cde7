//! What `init` asks on a terminal, for what no flag said. An empty answer leaves a key for later.

use std::path::PathBuf;

use dialoguer::{Input, Select};

use super::failure::Failure;
use super::init::Init;
use crate::error::Error;

const BACKENDS: [&str; 4] = ["builtin", "axolotl", "llama-factory", "trl"];

/// Asks, in the order of the file.
pub(super) fn ask(init: &mut Init) -> Result<(), Failure> {
    path("Base model (directory)", &mut init.model)?;
    path("Its instruction-tuned relative (empty: none)", &mut init.inst)?;
    if init.layers.is_none() {
        init.layers = Some(text("Layers to train, counting from 1", "first,last")?);
    }
    let has_data = !init.pretrain.is_empty() || !init.chats.is_empty();
    if !has_data {
        language("Language to learn", &mut init.target_language, "ko")?;
        language("Language to keep", &mut init.source_language, "en")?;
        let languages = [init.source_language.clone(), init.target_language.clone()];
        for language in languages.into_iter().flatten() {
            data(
                &format!("Text in {language} (path or pattern; empty: later)"),
                &language,
                &mut init.pretrain,
            )?;
        }
        let languages = [init.source_language.clone(), init.target_language.clone()];
        for language in languages.into_iter().flatten() {
            data(&format!("Chats in {language} (empty: none)"), &language, &mut init.chats)?;
        }
    }
    if init.backend.is_none() {
        let prompt = Select::new().with_prompt("What trains").items(BACKENDS).default(0);
        let chosen = prompt.interact().map_err(unanswered)?;
        init.backend = BACKENDS.get(chosen).map(|&name| name.to_owned());
    }
    if init.gpus.is_none() && init.backend.as_deref() != Some("builtin") {
        let prompt = Input::<u32>::new().with_prompt("GPUs of a node").default(1);
        init.gpus = Some(prompt.interact_text().map_err(unanswered)?.max(1));
    }
    Ok(())
}

fn path(prompt: &str, answer: &mut Option<PathBuf>) -> Result<(), Failure> {
    if answer.is_none() {
        let said = text(prompt, "")?;
        *answer = (!said.is_empty()).then(|| said.into());
    }
    Ok(())
}

fn language(prompt: &str, answer: &mut Option<String>, default: &str) -> Result<(), Failure> {
    if answer.is_none() {
        *answer = Some(text(prompt, default)?);
    }
    Ok(())
}

fn data(prompt: &str, language: &str, paths: &mut Vec<PathBuf>) -> Result<(), Failure> {
    let said = text(prompt, "")?;
    if !said.is_empty() {
        paths.push(format!("{language}={said}").into());
    }
    Ok(())
}

fn text(prompt: &str, default: &str) -> Result<String, Failure> {
    let mut input = Input::<String>::new().with_prompt(prompt).allow_empty(true);
    if !default.is_empty() {
        input = input.default(default.to_owned());
    }
    Ok(input.interact_text().map_err(unanswered)?.trim().to_owned())
}

fn unanswered(error: dialoguer::Error) -> Failure {
    let dialoguer::Error::IO(source) = error;
    if source.kind() == std::io::ErrorKind::Interrupted {
        return Failure::from(Error::Interrupted { resumable: false });
    }
    Failure::from(Error::Io { action: "read", path: "the terminal".into(), source })
}
