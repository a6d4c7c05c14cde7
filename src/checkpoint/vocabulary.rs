//! The tokens of a model: `tokenizer.json` read as the list of texts that it is, whatever its algorithm.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Map, Value};

use super::Checkpoint;
use crate::error::{Error, Result, printable};
use crate::format::SourceFile;

/// File of a fast tokenizer.
pub const TOKENIZER_FILE: &str = "tokenizer.json";
/// Settings beside it.
pub const TOKENIZER_CONFIG_FILE: &str = "tokenizer_config.json";

/// The tokens of a tokenizer by id and by text, as transformers sees them: those of its model, then added tokens.
#[derive(Clone, Debug)]
pub struct Vocabulary {
    by_id: BTreeMap<u64, String>,
    ids: HashMap<String, u64>,
    /// Added tokens as `tokenizer.json` describes them, by text.
    added: BTreeMap<u64, Map<String, Value>>,
    kind: String,
    json: Value,
}

impl Vocabulary {
    /// Reads the tokenizer of a checkpoint; none if it has none.
    ///
    /// # Errors
    /// A tokenizer that has no `tokenizer.json`, or one that is damaged.
    pub fn of(model: &Checkpoint) -> Result<Option<Self>> {
        let Some(json) = json_beside(model, TOKENIZER_FILE)? else {
            let slow = ["tokenizer.model", "vocab.json", "vocab.txt", "spiece.model"];
            return match model.sidecars().iter().find(|s| slow.contains(&s.file.as_str())) {
                Some(slow) => Err(Error::Unsupported {
                    what: format!("the tokenizer of `{}`", model.name()),
                    reason: format!("it has `{}`, but no `{TOKENIZER_FILE}`", slow.file),
                    hint: "load it with transformers and save it again: that writes tokenizer.json"
                        .into(),
                }),
                None => Ok(None),
            };
        };
        let settings = json_beside(model, TOKENIZER_CONFIG_FILE)?.unwrap_or_default();
        let path = model.root().join(TOKENIZER_FILE);
        match Self::parse(json, &settings) {
            Ok(vocabulary) => Ok(Some(vocabulary)),
            Err(message) => Err(Error::Json { path, message }),
        }
    }

    pub(crate) fn parse(json: Value, settings: &Value) -> std::result::Result<Self, String> {
        let algorithm = json.get("model").ok_or("it has no `model`")?;
        let kind = algorithm.get("type").and_then(Value::as_str).unwrap_or("unknown").to_owned();
        let mut ids: HashMap<String, u64> = HashMap::new();
        match algorithm.get("vocab") {
            Some(Value::Object(vocab)) => {
                for (token, id) in vocab {
                    let id = id.as_u64().filter(is_id).ok_or_else(|| odd(token, "has no id"))?;
                    ids.insert(token.clone(), id);
                }
            }
            Some(Value::Array(pieces)) => {
                for (id, piece) in (0..).zip(pieces) {
                    let token = piece.get(0).and_then(Value::as_str);
                    ids.insert(
                        token.ok_or("a piece of its vocabulary has no text")?.to_owned(),
                        id,
                    );
                }
            }
            _ => return Err("its `model` has no `vocab`".into()),
        }
        let mut by_id: BTreeMap<u64, String> = BTreeMap::new();
        for (token, id) in &ids {
            // Of several texts of one id any may stand for it, but always the same one.
            let first = by_id.entry(*id).or_insert_with(|| token.clone());
            if *token < *first {
                first.clone_from(token);
            }
        }
        let mut added = BTreeMap::new();
        let listed = json.get("added_tokens").and_then(Value::as_array).into_iter().flatten();
        let listed = listed.map(|token| (token.get("id").and_then(Value::as_u64), token));
        // transformers adds what only its own settings have.
        let decoder = settings.get("added_tokens_decoder").and_then(Value::as_object);
        let decoder = decoder.into_iter().flatten().map(|(id, token)| (id.parse().ok(), token));
        for (id, token) in listed.chain(decoder) {
            let content = token.get("content").and_then(Value::as_str);
            let (Some(id), Some(content)) = (id.filter(is_id), content) else {
                return Err("an added token has no id or no content".into());
            };
            let id = *ids.entry(content.to_owned()).or_insert(id);
            by_id.insert(id, content.to_owned());
            let token = token.as_object().cloned().unwrap_or_default();
            added.entry(id).or_insert(token);
        }
        Ok(Self { by_id, ids, added, kind, json })
    }

    /// Tokens by id.
    pub fn tokens(&self) -> impl Iterator<Item = (u64, &str)> {
        self.by_id.iter().map(|(id, token)| (*id, token.as_str()))
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Whether it has no tokens.
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// The id of a token.
    pub fn id(&self, token: &str) -> Option<u64> {
        self.ids.get(token).copied()
    }

    /// The token of an id.
    pub fn token(&self, id: u64) -> Option<&str> {
        self.by_id.get(&id).map(String::as_str)
    }

    /// How an added token is described, if the id is one's.
    pub fn added(&self, id: u64) -> Option<&Map<String, Value>> {
        self.added.get(&id)
    }

    /// One more than the largest id: the one that the next added token gets.
    pub fn end(&self) -> u64 {
        self.by_id.last_key_value().map_or(0, |(id, _)| id + 1)
    }

    /// Its algorithm: `BPE`, `Unigram`, `WordPiece`, `WordLevel`.
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// `tokenizer.json` as it was.
    pub fn json(&self) -> &Value {
        &self.json
    }
}

/// Whether a number can be a token's: vocabularies are a hundred times smaller.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "a filter")]
const fn is_id(id: &u64) -> bool {
    *id < 1 << 26
}

fn odd(token: &str, what: &str) -> String {
    format!("token `{}` {what}", printable(token))
}

/// A JSON file of a checkpoint; none if there is none.
pub fn json_beside(model: &Checkpoint, file: &str) -> Result<Option<Value>> {
    let Some(sidecar) = model.sidecars().iter().find(|sidecar| sidecar.file == file) else {
        return Ok(None);
    };
    let bytes = SourceFile::read_whole(&sidecar.path)?;
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|e| Error::Json { path: sidecar.path.clone(), message: printable(&e.to_string()) })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn both_forms_of_vocabularies_are_read() {
        let bpe = json!({"model": {"type": "BPE", "vocab": {"b": 1, "a": 0}},
            "added_tokens": [{"id": 4, "content": "<s>", "special": true}, {"id": 9, "content": "b"}]});
        let settings =
            json!({"added_tokens_decoder": {"7": {"content": "<x>"}, "4": {"content": "<s>"}}});
        let read = Vocabulary::parse(bpe, &settings).unwrap();
        let tokens: Vec<_> = read.tokens().collect();
        assert_eq!(tokens, [(0, "a"), (1, "b"), (4, "<s>"), (7, "<x>")]);
        assert_eq!((read.end(), read.id("b"), read.token(7)), (8, Some(1), Some("<x>")));
        assert_eq!(read.added(4).unwrap()["special"], true);
        assert!(read.added(1).is_some() && read.added(0).is_none());

        let unigram =
            json!({"model": {"type": "Unigram", "vocab": [["<unk>", 0.0], ["▁a", -1.5]]}});
        let read = Vocabulary::parse(unigram, &Value::Null).unwrap();
        assert_eq!((read.kind(), read.id("▁a"), read.end()), ("Unigram", Some(1), 2));
        for broken in [json!({}), json!({"model": {}}), json!({"model": {"vocab": {"a": "b"}}})] {
            assert!(Vocabulary::parse(broken, &Value::Null).is_err());
        }
    }
}
