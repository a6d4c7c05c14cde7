//! The files of a tokenizer in an output, and the token ids in its configs.

use serde_json::{Map, Value};

use crate::checkpoint::{
    Checkpoint, SidecarFile, TOKENIZER_CONFIG_FILE, TOKENIZER_FILE, Vocabulary, json_beside,
};
use crate::error::Result;
use crate::plan::{Sidecar, SidecarContent};

/// Files that belong to the tokenizer: they are those of one model, all of them.
const FILES: [&str; 13] = [
    TOKENIZER_FILE,
    TOKENIZER_CONFIG_FILE,
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tekken.json",
    CHAT_FILE,
    CHAT_JSON_FILE,
];

pub(super) const CHAT_FILE: &str = "chat_template.jinja";
/// Where processors keep it.
pub(super) const CHAT_JSON_FILE: &str = "chat_template.json";
const GENERATION_FILE: &str = "generation_config.json";

/// The files beside an output's weights: copied ones, and those that are written anew.
pub(super) struct Beside {
    pub(super) copied: Vec<SidecarFile>,
    pub(super) written: Vec<Sidecar>,
}

impl Beside {
    /// The files of `donor`, but the tokenizer's of `owner`.
    pub(super) fn of(donor: &Checkpoint, owner: &Checkpoint) -> Self {
        let is_tokenizers = |file: &SidecarFile| FILES.contains(&file.file.as_str());
        let own = donor.sidecars().iter().filter(|file| !is_tokenizers(file));
        let theirs = owner.sidecars().iter().filter(|file| is_tokenizers(file));
        let mut copied: Vec<SidecarFile> = own.chain(theirs).cloned().collect();
        copied.sort_by(|a, b| a.file.cmp(&b.file));
        Self { copied, written: Vec::new() }
    }

    /// Writes a file instead of the copy.
    pub(super) fn write(&mut self, file: &str, text: String) {
        self.copied.retain(|copy| copy.file != file);
        self.written.retain(|old| old.file != file);
        self.written.push(Sidecar { file: file.into(), content: SidecarContent::Text(text) });
    }

    /// Gives `generation_config.json` of `donor` the ids of the tokens of `ids`.
    pub(super) fn set_generation_ids(
        &mut self,
        donor: &Checkpoint,
        owner: &Checkpoint,
        ids: &TokenIds<'_>,
    ) -> Result<Vec<String>> {
        let Some(Value::Object(mut own)) = json_beside(donor, GENERATION_FILE)? else {
            return Ok(Vec::new());
        };
        let theirs = json_beside(owner, GENERATION_FILE)?;
        let before = own.clone();
        let lost = ids.set(&mut own, theirs.as_ref().and_then(Value::as_object));
        if own != before {
            self.write(GENERATION_FILE, text(&Value::Object(own)));
        }
        Ok(lost.into_iter().map(|key| format!("{GENERATION_FILE}: `{key}`")).collect())
    }
}

/// Token ids in configs, when another tokenizer takes the place of the one they were written for.
pub(super) struct TokenIds<'a> {
    /// The tokenizer they were written for.
    pub(super) old: Option<&'a Vocabulary>,
    /// The tokenizer of the output.
    pub(super) new: &'a Vocabulary,
}

impl TokenIds<'_> {
    /// Sets every `.._token_id` of `map`, nested ones included: to the value that the new tokenizer's own model has there, else to the
    /// id of the same token. Returns the keys for which there is neither: they are taken out.
    pub(super) fn set(
        &self,
        map: &mut Map<String, Value>,
        theirs: Option<&Map<String, Value>>,
    ) -> Vec<String> {
        let mut lost = Vec::new();
        for (key, value) in map.iter_mut() {
            let own = theirs.and_then(|theirs| theirs.get(key));
            if let Value::Object(inner) = value {
                let inner = self.set(inner, own.and_then(Value::as_object));
                lost.extend(inner.into_iter().map(|name| format!("{key}.{name}")));
            } else if is_id(key) && !value.is_null() {
                match own.filter(|own| !own.is_null()).cloned().or_else(|| self.same(value)) {
                    Some(new) => *value = new,
                    None => {
                        *value = Value::Null;
                        lost.push(key.clone());
                    }
                }
            }
        }
        for (key, own) in
            theirs.into_iter().flatten().filter(|(key, own)| is_id(key) && !own.is_null())
        {
            if map.get(key).is_none_or(|value| value.is_null() && !lost.contains(key)) {
                map.insert(key.clone(), own.clone());
            }
        }
        lost
    }

    /// The same token's id in the new tokenizer.
    fn same(&self, value: &Value) -> Option<Value> {
        match value {
            Value::Array(list) => {
                let list: Option<Vec<Value>> = list.iter().map(|one| self.same(one)).collect();
                list.map(Value::Array)
            }
            value => {
                let token = self.old?.token(value.as_u64()?)?;
                self.new.id(token).map(Value::from)
            }
        }
    }
}

fn is_id(key: &str) -> bool {
    ["_token_id", "_token_ids", "_token_index"].iter().any(|end| key.ends_with(end))
}

/// JSON as the Hub's tools write it.
pub(super) fn text(value: &Value) -> String {
    let mut text = serde_json::to_string_pretty(value).unwrap_or_default();
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn vocabulary(tokens: &[&str]) -> Vocabulary {
        let ids: Map<String, Value> =
            tokens.iter().zip(0..).map(|(t, id)| ((*t).to_owned(), Value::from(id))).collect();
        Vocabulary::parse(json!({"model": {"type": "BPE", "vocab": ids}}), &Value::Null).unwrap()
    }

    #[test]
    fn ids_mean_the_same_tokens() {
        let (old, new) = (
            vocabulary(&["<s>", "</s>", "<img>", "x"]),
            vocabulary(&["</s>", "<img>", "<s>", "<eot>"]),
        );
        let ids = TokenIds { old: Some(&old), new: &new };
        let config = json!({"bos_token_id": 0, "eos_token_id": [1], "pad_token_id": null, "vocab_size": 4,
            "text_config": {"image_token_index": 2}, "x_token_id": 3});
        let mut map = config.as_object().unwrap().clone();
        let theirs = json!({"eos_token_id": [0, 3], "pad_token_id": 3});
        let lost = ids.set(&mut map, theirs.as_object());
        assert_eq!(lost, ["x_token_id"]);
        let expected = json!({"bos_token_id": 2, "eos_token_id": [0, 3], "pad_token_id": 3, "vocab_size": 4,
            "text_config": {"image_token_index": 1}, "x_token_id": null});
        assert_eq!(Value::Object(map), expected);
    }
}
