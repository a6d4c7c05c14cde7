//! What a token's spelling means: tokenizers write spaces and bytes in different ways.

use std::collections::HashMap;
use std::sync::OnceLock;

use serde_json::Value;

use crate::checkpoint::Vocabulary;

/// How a tokenizer spells text in its tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spelling {
    /// Every byte is a character; a space is `Ġ` (GPT-2).
    Bytes,
    /// A space is `▁`; bytes without a token are `<0x0A>` (`SentencePiece`).
    Metaspace,
    /// Tokens begin a word unless they begin with `##` (`WordPiece`).
    Hashes,
    /// As it is.
    Plain,
}

impl Spelling {
    /// That of a tokenizer.
    pub(super) fn of(vocabulary: &Vocabulary) -> Self {
        let json = vocabulary.json();
        let uses = |kind: &str| {
            let parts = ["pre_tokenizer", "decoder"].map(|part| json.get(part));
            parts.into_iter().flatten().any(|part| has_type(part, kind))
        };
        if vocabulary.kind() == "WordPiece" {
            Self::Hashes
        } else if uses("ByteLevel") {
            Self::Bytes
        } else if uses("Metaspace") || vocabulary.tokens().any(|(_, token)| token.starts_with('▁'))
        {
            Self::Metaspace
        } else {
            Self::Plain
        }
    }

    /// The bytes of text that an ordinary token stands for.
    pub(super) fn meaning(self, token: &str) -> Vec<u8> {
        match self {
            Self::Bytes => match token.chars().map(byte_of).collect() {
                Some(bytes) => bytes,
                None => token.as_bytes().to_vec(),
            },
            Self::Metaspace => match single_byte(token) {
                Some(byte) => vec![byte],
                None => token.replace('▁', " ").into_bytes(),
            },
            Self::Hashes => match token.strip_prefix("##") {
                Some(rest) => rest.as_bytes().to_vec(),
                None => format!(" {token}").into_bytes(),
            },
            Self::Plain => token.as_bytes().to_vec(),
        }
    }

    /// How text is spelled for the tokenizer's algorithm; `None` if it is no text that could be.
    #[cfg_attr(
        not(feature = "trainer"),
        expect(dead_code, reason = "pieces need the tokenizers library")
    )]
    pub(super) fn spell(self, meaning: &[u8]) -> Option<String> {
        if self == Self::Bytes {
            return Some(meaning.iter().map(|byte| characters()[usize::from(*byte)]).collect());
        }
        let text = std::str::from_utf8(meaning).ok()?;
        Some(match self {
            Self::Metaspace => text.replace(' ', "▁"),
            Self::Hashes => text.trim_start().to_owned(),
            _ => text.to_owned(),
        })
    }
}

/// Tokens by what they mean. Special and added tokens mean their text; a token that spells a byte out comes after one of that text.
pub(super) fn by_meaning(vocabulary: &Vocabulary) -> HashMap<(bool, Vec<u8>), u64> {
    let mut found = HashMap::new();
    let spelling = Spelling::of(vocabulary);
    for spelled_out in [false, true] {
        for (id, token) in vocabulary.tokens() {
            if single_byte(token).is_some() == spelled_out {
                found.entry(meaning_of(vocabulary, spelling, id, token)).or_insert(id);
            }
        }
    }
    found
}

/// What a token means, and whether it is a special one.
pub(super) fn meaning_of(
    vocabulary: &Vocabulary,
    spelling: Spelling,
    id: u64,
    token: &str,
) -> (bool, Vec<u8>) {
    match vocabulary.added(id) {
        Some(added) => {
            let special = added.get("special").and_then(Value::as_bool).unwrap_or(false);
            (special, token.as_bytes().to_vec())
        }
        None => (false, spelling.meaning(token)),
    }
}

/// Whether a component, or one inside it, is of a type.
fn has_type(value: &Value, kind: &str) -> bool {
    match value {
        Value::Object(map) => {
            map.get("type").and_then(Value::as_str) == Some(kind)
                || map.values().any(|inner| has_type(inner, kind))
        }
        Value::Array(list) => list.iter().any(|inner| has_type(inner, kind)),
        _ => false,
    }
}

/// `<0x0A>`.
fn single_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}

/// The characters of GPT-2's bytes: printable Latin-1 as it is, the others from U+0100 on.
fn characters() -> &'static [char; 256] {
    static CHARACTERS: OnceLock<[char; 256]> = OnceLock::new();
    CHARACTERS.get_or_init(|| {
        let mut characters = ['\0'; 256];
        let mut next = 0x100;
        for byte in 0..=u8::MAX {
            let printable = matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
            let code = if printable { u32::from(byte) } else { next };
            next += u32::from(!printable);
            characters[usize::from(byte)] = char::from_u32(code).unwrap_or('\0');
        }
        characters
    })
}

fn byte_of(c: char) -> Option<u8> {
    static BYTES: OnceLock<HashMap<char, u8>> = OnceLock::new();
    let bytes = BYTES.get_or_init(|| characters().iter().copied().zip(0..=u8::MAX).collect());
    bytes.get(&c).copied()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn vocabulary(kind: &str, decoder: &str, tokens: &[&str]) -> Vocabulary {
        let vocab: serde_json::Map<String, Value> =
            tokens.iter().zip(0..).map(|(t, id)| ((*t).to_owned(), Value::from(id))).collect();
        let json = json!({"model": {"type": kind, "vocab": vocab}, "decoder": {"type": "Sequence", "decoders": [{"type": decoder}]},
            "added_tokens": [{"id": 99, "content": "<s>", "special": true}]});
        Vocabulary::parse(json, &Value::Null).unwrap()
    }

    #[test]
    fn spellings_of_the_same_text_meet() {
        let bytes = vocabulary("BPE", "ByteLevel", &["Ġhi", "Ċ", "Ã©", "a"]);
        let pieces = vocabulary("BPE", "Fuse", &["▁hi", "<0x0A>", "é", "a", "<0x61>"]);
        let words = vocabulary("WordPiece", "WordPiece", &["hi", "##a"]);
        assert_eq!(
            [&bytes, &pieces, &words].map(Spelling::of),
            [Spelling::Bytes, Spelling::Metaspace, Spelling::Hashes]
        );
        let (b, p, w) = (by_meaning(&bytes), by_meaning(&pieces), by_meaning(&words));
        let id = |map: &HashMap<(bool, Vec<u8>), u64>, text: &str| {
            map.get(&(false, text.into())).copied()
        };
        for (text, ids) in [
            (" hi", [Some(0), Some(0), Some(0)]),
            ("\n", [Some(1), Some(1), None]),
            ("é", [Some(2), Some(2), None]),
            ("a", [Some(3), Some(3), Some(1)]),
        ] {
            assert_eq!([id(&b, text), id(&p, text), id(&w, text)], ids, "{text:?}");
        }
        assert_eq!(b.get(&(true, b"<s>".to_vec())), Some(&99));
        assert_eq!(Spelling::Bytes.spell(" \né".as_bytes()).unwrap(), "ĠĊÃ©");
        assert_eq!(Spelling::Metaspace.spell(b" a b").unwrap(), "▁a▁b");
        assert_eq!(Spelling::Metaspace.spell(&[0xff]), None);
    }
}
