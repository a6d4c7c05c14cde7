//! Tokenizer files with more tokens, and with another chat template.

use serde_json::{Map, Value};

use crate::checkpoint::{
    Checkpoint, TOKENIZER_CONFIG_FILE, TOKENIZER_FILE, Vocabulary, json_beside,
};
use crate::error::{IoContext as _, Result};
use crate::format::SourceFile;
use crate::ops::tokenizer_files::{Beside, CHAT_FILE, CHAT_JSON_FILE, text};
use crate::plan::{Sidecar, SidecarContent};

impl Beside {
    fn has(&self, file: &str) -> bool {
        self.copied.iter().any(|copy| copy.file == file)
            || self.written.iter().any(|text| text.file == file)
    }

    /// The JSON of a file as it will be.
    fn json(&self, owner: &Checkpoint, file: &str) -> Result<Option<Value>> {
        match self.written.iter().find(|written| written.file == file) {
            Some(Sidecar { content: SidecarContent::Text(text), .. }) => {
                Ok(serde_json::from_str(text).ok())
            }
            _ => json_beside(owner, file),
        }
    }

    /// Adds tokens to the tokenizer of `owner`: id, text, and how it is described if it is an added token elsewhere.
    pub(super) fn add_tokens<'t>(
        &mut self,
        owner: &Checkpoint,
        vocabulary: &Vocabulary,
        tokens: impl Iterator<Item = (u64, &'t str, Option<&'t Map<String, Value>>)>,
    ) -> Result<()> {
        let mut json = vocabulary.json().clone();
        let mut settings = self.json(owner, TOKENIZER_CONFIG_FILE)?;
        let mut slow = self.json(owner, "added_tokens.json")?;
        if slow.is_none() && self.has("tokenizer.model") {
            slow = Some(Value::Object(Map::new()));
        }
        let Some(whole) = json.as_object_mut() else { return Ok(()) };
        let list = whole.entry("added_tokens").or_insert_with(|| Value::Array(Vec::new()));
        for (id, token, described) in tokens {
            let flag = |key: &str, or: bool| {
                described.and_then(|d| d.get(key)).and_then(Value::as_bool).unwrap_or(or)
            };
            let special = flag("special", false);
            let mut entry = Map::new();
            entry.insert("id".into(), id.into());
            entry.insert("content".into(), token.into());
            for key in ["single_word", "lstrip", "rstrip"] {
                entry.insert(key.into(), flag(key, false).into());
            }
            entry.insert("normalized".into(), flag("normalized", !special).into());
            entry.insert("special".into(), special.into());
            if let Some(decoder) = settings.as_mut().and_then(decoder_of) {
                let mut entry = entry.clone();
                entry.shift_remove("id");
                decoder.insert(id.to_string(), entry.into());
            }
            if let Some(slow) = slow.as_mut().and_then(Value::as_object_mut) {
                slow.insert(token.to_owned(), id.into());
            }
            if let Some(list) = list.as_array_mut() {
                list.push(entry.into());
            }
        }
        self.write(TOKENIZER_FILE, text(&json));
        if let Some(settings) =
            settings.filter(|settings| settings.get("added_tokens_decoder").is_some())
        {
            self.write(TOKENIZER_CONFIG_FILE, text(&settings));
        }
        if let Some(slow) = slow {
            self.write("added_tokens.json", text(&slow));
        }
        Ok(())
    }

    /// Writes the chat template wherever versions of transformers look for it.
    pub(super) fn set_chat_template(&mut self, owner: &Checkpoint, template: &str) -> Result<()> {
        if let Some(mut settings) = self.json(owner, TOKENIZER_CONFIG_FILE)?
            && let Some(map) = settings.as_object_mut()
        {
            map.insert("chat_template".into(), template.into());
            self.write(TOKENIZER_CONFIG_FILE, text(&settings));
        }
        if let Some(mut processor) = self.json(owner, CHAT_JSON_FILE)?
            && let Some(map) = processor.as_object_mut()
        {
            map.insert("chat_template".into(), template.into());
            self.write(CHAT_JSON_FILE, text(&processor));
        }
        self.write(CHAT_FILE, template.to_owned());
        Ok(())
    }
}

/// The chat template of a checkpoint, as transformers finds it.
pub(super) fn chat_template(model: &Checkpoint) -> Result<Option<String>> {
    if let Some(file) = model.sidecars().iter().find(|sidecar| sidecar.file == CHAT_FILE) {
        let text = String::from_utf8(SourceFile::read_whole(&file.path)?);
        return text.map(Some).map_err(std::io::Error::other).at("read", &file.path);
    }
    let settings = json_beside(model, TOKENIZER_CONFIG_FILE)?;
    let template = settings.as_ref().and_then(|settings| settings.get("chat_template"));
    Ok(match template {
        Some(Value::String(text)) => Some(text.clone()),
        Some(Value::Array(named)) => named
            .iter()
            .find(|one| one.get("name").and_then(Value::as_str) == Some("default"))
            .and_then(|one| one.get("template")?.as_str().map(str::to_owned)),
        _ => None,
    })
}

fn decoder_of(settings: &mut Value) -> Option<&mut Map<String, Value>> {
    settings.get_mut("added_tokens_decoder")?.as_object_mut()
}
