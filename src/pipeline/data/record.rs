//! A document or a chat: its identity, its size, its line.

use serde::{Deserialize, Serialize};

/// A turn of a chat.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user`, `assistant`, `tool`.
    pub role: String,
    /// What is said.
    pub content: String,
}

/// What a source holds.
#[derive(Clone, Copy, Debug)]
pub(super) enum Record<'a> {
    Text(&'a str),
    Chat(&'a [Message]),
}

impl Record<'_> {
    /// UTF-8 bytes of text.
    pub(super) fn bytes(&self) -> u64 {
        let bytes = match self {
            Self::Text(text) => text.len(),
            Self::Chat(messages) => messages.iter().map(|m| m.content.len()).sum(),
        };
        bytes as u64
    }

    /// Whether there is nothing to learn in it.
    pub(super) fn is_blank(&self) -> bool {
        match self {
            Self::Text(text) => text.trim().is_empty(),
            Self::Chat(messages) => messages.iter().all(|m| m.content.trim().is_empty()),
        }
    }

    /// Why it cannot be used.
    pub(super) fn problem(&self) -> Option<String> {
        let has_nul = match self {
            Self::Text(text) => text.contains('\0'),
            Self::Chat(messages) => messages.iter().any(|m| m.content.contains('\0')),
        };
        has_nul.then(|| "it holds a NUL character (UTF-16, or a binary file?)".to_owned())
    }

    /// The first 128 bits of keyed blake3 over the text, white space evened out: the same for the same document
    /// wherever it stands, and a uniform draw that decides where it goes.
    pub(super) fn identity(&self, key: &[u8; 32]) -> [u8; 16] {
        let mut hasher = blake3::Hasher::new_keyed(key);
        match self {
            Self::Text(text) => absorb(&mut hasher, text),
            Self::Chat(messages) => {
                for message in *messages {
                    hasher.update(message.role.as_bytes()).update(b"\0");
                    absorb(&mut hasher, &message.content);
                    hasher.update(b"\0");
                }
            }
        }
        let mut identity = [0; 16];
        identity.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        identity
    }

    /// Its line in a prepared file, with the newline.
    pub(super) fn line(&self) -> Vec<u8> {
        #[derive(Serialize)]
        #[serde(rename_all = "lowercase")]
        enum Line<'a> {
            Text(&'a str),
            Messages(&'a [Message]),
        }
        let line = match self {
            Self::Text(text) => Line::Text(text),
            Self::Chat(messages) => Line::Messages(messages),
        };
        // Text and lists of text: serialising to memory cannot fail.
        let mut bytes = serde_json::to_vec(&line).unwrap_or_default();
        bytes.push(b'\n');
        bytes
    }
}

/// Words with one space between them.
fn absorb(hasher: &mut blake3::Hasher, text: &str) {
    let mut buffer = String::with_capacity(4096);
    for word in text.split_whitespace() {
        if buffer.len() + word.len() > 4096 {
            hasher.update(buffer.as_bytes());
            buffer.clear();
        }
        buffer.push_str(word);
        buffer.push(' ');
    }
    hasher.update(buffer.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn white_space_does_not_make_another_document() {
        let key = [7; 32];
        let identity = |text| Record::Text(text).identity(&key);
        assert_eq!(identity("a b\nc"), identity("  a\tb  c\r\n"));
        assert_ne!(identity("a bc"), identity("ab c"));
        assert_ne!(identity("a"), Record::Text("a").identity(&[8; 32]));
        let long = "word ".repeat(5000);
        assert_eq!(identity(&long), identity(long.trim()));
    }

    #[test]
    fn lines_are_canonical() {
        assert_eq!(Record::Text("a\n\"").line(), b"{\"text\":\"a\\n\\\"\"}\n");
        let messages = [Message { role: "user".into(), content: "x".into() }];
        let line = Record::Chat(&messages).line();
        assert_eq!(line, b"{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]}\n");
    }
}
