//! The tokenizer directory: `tokenizer.json`, special tokens, chat template. Documents are encoded whole.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tokenizers::Tokenizer;

use super::chat::ChatTemplate;
use super::record::{Message, Record};
use crate::error::{Error, IoContext, Result};
use crate::trainer::settings::LossOn;

/// A tokenizer with what surrounds it.
pub(in crate::trainer) struct TextTokenizer {
    tokenizer: Tokenizer,
    /// What ends a document, if there is such a token.
    end: Option<u32>,
    /// The text of what begins a sequence, if there is such a token.
    beginning: Option<String>,
    template: Option<ChatTemplate>,
    /// Rows of the model's embedding: ids must stay below.
    rows: usize,
    dir: PathBuf,
}

/// A record as tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Encoded {
    pub(super) ids: Vec<u32>,
    /// For each token whether it is to be predicted.
    pub(super) trained: Vec<bool>,
    /// UTF-8 bytes of the text behind the tokens that are to be predicted.
    pub(super) bytes: u64,
    pub(super) is_chat: bool,
}

impl TextTokenizer {
    /// Opens a tokenizer directory for a model with `rows` rows in its embedding.
    pub(in crate::trainer) fn open(dir: &Path, rows: usize) -> Result<Self> {
        let path = dir.join("tokenizer.json");
        let bytes = fs::read(&path).at("read", &path)?;
        let unusable = |what: String, reason: String| Error::Unsupported {
            what,
            reason,
            hint: "give a directory with the `tokenizer.json` of a fast tokenizer".to_owned(),
        };
        let mut tokenizer = Tokenizer::from_bytes(&bytes)
            .map_err(|e| unusable(format!("`{}`", path.display()), e.to_string()))?;
        // Documents are encoded whole, whatever the file says.
        tokenizer
            .with_truncation(None)
            .map_err(|e| unusable(format!("`{}`", path.display()), e.to_string()))?;
        tokenizer.with_padding(None);
        let config = read_json(&dir.join("tokenizer_config.json"))?;
        let specials = special_tokens(&config, &read_json(&dir.join("special_tokens_map.json"))?);
        let named = specials.iter().find(|(name, _)| name == "eos_token");
        let end = match named.and_then(|(_, text)| tokenizer.token_to_id(text)) {
            Some(id) => Some(id),
            None => end_of_config(&read_json(&dir.join("config.json"))?),
        };
        let beginning = specials.iter().find(|(name, _)| name == "bos_token");
        let beginning = beginning.map(|(_, text)| text.clone());
        let template = match template_source(dir, &config)? {
            Some(source) => Some(
                ChatTemplate::new(&source, specials)
                    .map_err(|e| unusable(format!("`{}`", dir.display()), e))?,
            ),
            None => None,
        };
        Ok(Self { tokenizer, end, beginning, template, rows, dir: dir.to_owned() })
    }

    /// Texts with the token that begins a sequence in front, and no other that they do not spell out.
    pub(in crate::trainer) fn prompts(&self, texts: &[&str]) -> Result<Vec<Vec<u32>>, String> {
        let beginning = self.beginning.as_deref().unwrap_or_default();
        let ids = |text: &&str| {
            let whole = format!("{beginning}{text}");
            self.tokenizer.encode_fast(whole, false).map(|encoding| encoding.get_ids().to_vec())
        };
        texts.iter().map(ids).collect::<Result<_, _>>().map_err(|e| e.to_string())
    }

    /// Whether documents get a token that ends them.
    pub(in crate::trainer) fn has_end(&self) -> bool {
        self.end.is_some()
    }

    /// A record as tokens, or what is wrong with it.
    pub(super) fn encode(&self, record: &Record, loss_on: LossOn) -> Result<Encoded, String> {
        let encoded = match record {
            Record::Text(text) => self.encode_text(text)?,
            Record::Chat(messages) => self.encode_chat(messages, loss_on)?,
        };
        match encoded.ids.iter().find(|id| **id as usize >= self.rows) {
            Some(id) => Err(format!(
                "the tokenizer gives token {id}, the model's vocabulary has {} rows",
                self.rows
            )),
            None => Ok(encoded),
        }
    }

    fn encode_text(&self, text: &str) -> Result<Encoded, String> {
        let encoding = self.tokenizer.encode_fast(text, true).map_err(|e| e.to_string())?;
        let mut ids = encoding.get_ids().to_vec();
        if let Some(end) = self.end.filter(|end| ids.last() != Some(end)) {
            ids.push(end);
        }
        let trained = vec![true; ids.len()];
        Ok(Encoded { ids, trained, bytes: text.len() as u64, is_chat: false })
    }

    fn encode_chat(&self, messages: &[Message], loss_on: LossOn) -> Result<Encoded, String> {
        let Some(template) = &self.template else {
            return Err(format!("a chat, but `{}` has no chat template", self.dir.display()));
        };
        let rendered = template.apply(messages)?;
        let text = rendered.text.as_str();
        // The template writes the special tokens itself.
        let encoding = self.tokenizer.encode(text, false).map_err(|e| e.to_string())?;
        let ids = encoding.get_ids().to_vec();
        let (trained, bytes) = match loss_on {
            LossOn::All => (vec![true; ids.len()], text.len()),
            LossOn::Assistant => {
                let said = &rendered.said;
                let offsets = encoding.get_offsets().iter();
                // A token belongs to the turn in which it begins.
                let trained = offsets
                    .map(|(from, to)| from < to && said.iter().any(|turn| turn.contains(from)))
                    .collect();
                (trained, said.iter().map(ExactSizeIterator::len).sum())
            }
        };
        Ok(Encoded { ids, trained, bytes: bytes as u64, is_chat: true })
    }
}

/// A JSON file that may be missing.
fn read_json(path: &Path) -> Result<Value> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Value::Null),
        Err(e) => return Err(e).at("read", path),
    };
    serde_json::from_str(&text)
        .map_err(|e| Error::Json { path: path.to_owned(), message: e.to_string() })
}

/// `bos_token`, `eos_token` and their kin, by name. The configuration goes before the older map.
fn special_tokens(config: &Value, map: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Object(token) => Some(token.get("content")?.as_str()?.to_owned()),
        _ => None,
    };
    ["bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token"]
        .iter()
        .filter_map(|name| {
            let found = [config, map].into_iter().find_map(|m| text(m.get(name)?))?;
            Some(((*name).to_owned(), found))
        })
        .collect()
}

/// `eos_token_id` of a model config: one id, or the first of several.
fn end_of_config(config: &Value) -> Option<u32> {
    let id = config.get("eos_token_id")?;
    let id = id.as_array().map_or(Some(id), |all| all.first())?;
    u32::try_from(id.as_u64()?).ok()
}

/// The chat template: a file of its own, or in the configuration, alone or as one of several.
fn template_source(dir: &Path, config: &Value) -> Result<Option<String>> {
    let path = dir.join("chat_template.jinja");
    match fs::read_to_string(&path) {
        Ok(text) => return Ok(Some(text)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(e).at("read", &path),
    }
    let named = |entry: &&Value| entry.get("name").and_then(Value::as_str) == Some("default");
    let source = match config.get("chat_template") {
        Some(Value::Array(all)) => all.iter().find(named).and_then(|entry| entry.get("template")),
        other => other,
    };
    Ok(source.and_then(Value::as_str).map(str::to_owned))
}
