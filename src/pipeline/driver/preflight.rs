//! What a run would fail at hours later, refused before anything is started.

use std::fs;
use std::path::Path;

use serde_json::Value;

use super::Driver;
use crate::backend::protocol::TrainingStage;
use crate::error::{Error, Result};
use crate::pipeline::graph::{Action, Node};

/// What the built-in backend reads a tokenizer from.
const TOKENIZER: &str = "tokenizer.json";

impl Driver<'_> {
    /// Checks every training stage of a run: that the backend can do it, the tokenizer, the chat template.
    pub(super) fn preflight(&mut self, selected: &[Node]) -> Result<()> {
        for node in selected {
            let Action::Train { input, training } = &node.action else { continue };
            let spec = self.foreseen(node, input, training)?;
            self.backend.native(&spec, &self.settings)?;
            let chats = training.stage == TrainingStage::Sft;
            let speaker = self.instruct.as_ref().filter(|_| chats).unwrap_or(&self.base).root();
            if self.backend.name() != "builtin" {
                // Others may have ways of their own, set by native keys.
                continue;
            }
            if !speaker.join(TOKENIZER).is_file() {
                return Err(Error::Unsupported {
                    what: format!("`{}` of `{}`", node.name, speaker.display()),
                    reason: format!("the model has no `{TOKENIZER}`"),
                    hint: "copy the tokenizer's files to the weights".into(),
                });
            }
            if chats && !has_chat_template(speaker) {
                return Err(Error::Unsupported {
                    what: format!("`{}` with the words of `{}`", node.name, speaker.display()),
                    reason: "the model has no chat template".into(),
                    hint: "name an `instruct` model that has one, or set `sft: {enabled: false}`"
                        .into(),
                });
            }
        }
        Ok(())
    }
}

fn has_chat_template(model: &Path) -> bool {
    let config = || {
        let text = fs::read(model.join("tokenizer_config.json")).ok()?;
        let config: Value = serde_json::from_slice(&text).ok()?;
        Some(config.get("chat_template").is_some_and(|template| !template.is_null()))
    };
    ["chat_template.jinja", "chat_template.json"].iter().any(|file| model.join(file).is_file())
        || config().unwrap_or(false)
}
