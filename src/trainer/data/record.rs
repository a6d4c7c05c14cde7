//! Records of training data: one JSON object a line, a text or a chat.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::error::{Error, IoContext, Result, printable};

/// One record.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Record {
    /// A document.
    Text(String),
    /// A conversation.
    Chat(Vec<Message>),
}

/// One turn of a chat.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Message {
    pub(super) role: String,
    pub(super) content: String,
    /// All fields, these two included, for templates that read more.
    pub(super) fields: Map<String, Value>,
}

/// A line as it may stand in a file. Other fields are metadata and ignored.
#[derive(Deserialize)]
struct Line {
    text: Option<Value>,
    messages: Option<Vec<Map<String, Value>>>,
}

/// Reads one line; the error says what is wrong with it.
pub(super) fn parse(line: &str) -> Result<Record, String> {
    let parsed: Line = serde_json::from_str(line).map_err(|e| printable(&e.to_string()))?;
    match (parsed.text, parsed.messages) {
        (Some(Value::String(text)), None) => Ok(Record::Text(text)),
        (Some(_), None) => Err("`text` is not a string".to_owned()),
        (None, Some(messages)) => {
            messages.into_iter().map(message).collect::<Result<_, _>>().map(Record::Chat)
        }
        (Some(_), Some(_)) => Err("has both `text` and `messages`".to_owned()),
        (None, None) => Err("has neither `text` nor `messages`".to_owned()),
    }
}

fn message(fields: Map<String, Value>) -> Result<Message, String> {
    let field = |name: &str| match fields.get(name) {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(_) => Err(format!("`{name}` of a message is not a string")),
        None => Err(format!("a message has no `{name}`")),
    };
    Ok(Message { role: field("role")?, content: field("content")?, fields })
}

/// The lines of a JSONL file that are not blank, with their numbers from 1.
pub(super) struct Lines {
    path: PathBuf,
    reader: BufReader<File>,
    number: u64,
}

impl Lines {
    /// Opens a file.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).at("open", path)?;
        Ok(Self {
            path: path.to_owned(),
            reader: BufReader::with_capacity(1 << 20, file),
            number: 0,
        })
    }

    /// Up to `count` lines, or as many as fill `bytes`; none at the end of the file.
    pub(super) fn take(&mut self, count: usize, bytes: usize) -> Result<Vec<(u64, String)>> {
        let (mut lines, mut filled) = (Vec::new(), 0);
        while lines.len() < count && filled < bytes {
            let mut line = Vec::new();
            if self.reader.read_until(b'\n', &mut line).at("read", &self.path)? == 0 {
                break;
            }
            self.number += 1;
            if line.trim_ascii().is_empty() {
                continue;
            }
            filled += line.len();
            let text = String::from_utf8(line).map_err(|e| Error::Data {
                path: self.path.clone(),
                line: Some(self.number),
                problem: format!("not UTF-8 from byte {}", e.utf8_error().valid_up_to()),
                hint: String::new(),
            })?;
            lines.push((self.number, text));
        }
        Ok(lines)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_are_read_and_others_named() {
        assert_eq!(parse(r#"{"text": "a", "url": 1}"#), Ok(Record::Text("a".into())));
        let chat =
            parse(r#"{"messages": [{"role": "user", "content": "hi", "name": "n"}]}"#).unwrap();
        let Record::Chat(messages) = chat else { panic!("not a chat") };
        assert_eq!((messages[0].role.as_str(), messages[0].fields.len()), ("user", 3));
        for (line, word) in [
            ("{", "EOF"),
            ("[1]", "expected"),
            (r#"{"text": 1}"#, "not a string"),
            (r#"{"content": ""}"#, "neither"),
            (r#"{"messages": [{"role": "user"}]}"#, "`content`"),
            (r#"{"text": "", "messages": []}"#, "both"),
        ] {
            let problem = parse(line).unwrap_err();
            assert!(problem.contains(word), "{line}: {problem}");
        }
    }
}
