//! The keys `tokenizer_source`, `tokenizer` and `chat_template`.

use serde_json::{Map, Value};

use super::super::read::{Problems, below, given, suggestion};
use super::super::reference::{Reference, model};
use super::template;

/// Which tokenizer the result has, and where rows of some tokens come from.
#[derive(Clone, Debug)]
pub(in crate::ops::merge) struct Wish {
    pub(super) source: Source,
    /// In the order of the document, each with its place in it.
    pub(super) tokens: Vec<(String, TokenWish, String)>,
    /// Rows are padded to a multiple of this.
    pub(super) multiple: Option<u64>,
    /// Its place in the document.
    pub(in crate::ops::merge) at: &'static str,
}

/// Whose tokens the result has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// Those of the base model, then what the others have besides.
    Union,
    /// The base model's.
    Base,
    /// Those of this model.
    Model(Reference),
}

/// Where a token's row comes from in models that lack it.
#[derive(Clone, Debug)]
pub(super) struct TokenWish {
    pub(super) from: TokenFrom,
    /// In models that have it, too.
    pub(super) force: bool,
}

/// A row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum TokenFrom {
    /// Zeros.
    Zero,
    /// The same token of this model.
    Same(Reference),
    /// Another token of this model.
    Token(Reference, String),
    /// The row of this number of this model.
    Row(Reference, u64),
}

impl Wish {
    /// The models it names.
    pub(in crate::ops::merge) fn models(&self) -> impl Iterator<Item = &Reference> {
        let source = match &self.source {
            Source::Model(path) => Some(path),
            Source::Union | Source::Base => None,
        };
        let tokens = self.tokens.iter().filter_map(|(_, wish, _)| match &wish.from {
            TokenFrom::Zero => None,
            TokenFrom::Same(path) | TokenFrom::Token(path, _) | TokenFrom::Row(path, _) => {
                Some(path)
            }
        });
        source.into_iter().chain(tokens)
    }
}

/// Reads `tokenizer_source` or `tokenizer`.
pub(in crate::ops::merge) fn read(
    problems: &mut Problems,
    map: &Map<String, Value>,
) -> Option<Wish> {
    let (legacy, block) = (given(map, "tokenizer_source"), given(map, "tokenizer"));
    if legacy.is_some() && block.is_some() {
        problems.add("tokenizer", "`tokenizer_source` is there too: give one of them");
    }
    let block = block.and_then(|block| read_block(problems, block));
    let Some(value) = legacy else { return block };
    let at = "tokenizer_source";
    let source = source(problems, at, value)?;
    Some(Wish { source, tokens: Vec::new(), multiple: None, at })
}

fn read_block(problems: &mut Problems, block: &Value) -> Option<Wish> {
    let at = "tokenizer";
    let map = problems.map(at, block, &["source", "tokens", "pad_to_multiple_of"])?;
    let whose = given(map, "source").map(|value| source(problems, "tokenizer.source", value));
    let multiple = given(map, "pad_to_multiple_of").and_then(|value| {
        let count = value.as_u64().filter(|count| (1..=1 << 20).contains(count));
        if count.is_none() {
            let at = "tokenizer.pad_to_multiple_of";
            problems.wrong(at, value, "a whole number from 1 to 1048576");
        }
        count
    });
    let mut tokens = Vec::new();
    if let Some(value) = given(map, "tokens") {
        let at = "tokenizer.tokens";
        let Value::Object(listed) = value else {
            problems.wrong(at, value, "a group of keys");
            return None;
        };
        for (token, value) in listed {
            let at = below(at, token);
            if let Some(wish) = token_wish(problems, &at, value) {
                tokens.push((token.clone(), wish, at));
            }
        }
    }
    Some(Wish { source: whose.unwrap_or(Some(Source::Union))?, tokens, multiple, at })
}

fn source(problems: &mut Problems, at: &str, value: &Value) -> Option<Source> {
    match value.as_str() {
        Some("union") => Some(Source::Union),
        Some("base") => Some(Source::Base),
        _ => model(problems, at, value).map(Source::Model),
    }
}

fn token_wish(problems: &mut Problems, at: &str, value: &Value) -> Option<TokenWish> {
    let map = problems.map(at, value, &["source", "force"])?;
    let force = match given(map, "force") {
        None => false,
        Some(Value::Bool(force)) => *force,
        Some(other) => {
            problems.wrong(&below(at, "force"), other, "true or false");
            false
        }
    };
    let Some(value) = given(map, "source") else {
        problems.add(at, "has no `source`: a model, `{kind: model_token, ...}` or `{kind: zero}`");
        return None;
    };
    let at = below(at, "source");
    let kind = value.as_object().and_then(|map| map.get("kind"));
    let Some(kind) = kind else {
        return Some(TokenWish { from: TokenFrom::Same(model(problems, &at, value)?), force });
    };
    match kind.as_str() {
        Some("zero") => {
            problems.map(&at, value, &["kind"])?;
            Some(TokenWish { from: TokenFrom::Zero, force })
        }
        Some("model_token") => {
            let map = problems.map(&at, value, &["kind", "model", "token", "token_id"])?;
            let Some(named) = given(map, "model") else {
                problems.add(&at, "has no `model`");
                return None;
            };
            let path = model(problems, &below(&at, "model"), named)?;
            let from = match (given(map, "token"), given(map, "token_id")) {
                (Some(token), None) => {
                    TokenFrom::Token(path, problems.text(&below(&at, "token"), token)?.to_owned())
                }
                (None, Some(id)) => match id.as_u64() {
                    Some(id) => TokenFrom::Row(path, id),
                    None => {
                        problems.wrong(&below(&at, "token_id"), id, "a whole number");
                        return None;
                    }
                },
                _ => {
                    problems.add(&at, "takes one of `token` and `token_id`");
                    return None;
                }
            };
            Some(TokenWish { from, force })
        }
        Some(other) => {
            let known = ["model_token", "zero"];
            let what = format!("`{other}` is not a known kind{}", suggestion(other, &known));
            problems.add(&below(&at, "kind"), what);
            None
        }
        None => {
            problems.wrong(&below(&at, "kind"), kind, "`model_token` or `zero`");
            None
        }
    }
}

/// Which chat template the result has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::ops::merge) enum Chat {
    /// That of most models.
    Auto,
    /// This one.
    Template(String),
}

/// Reads `chat_template`.
pub(in crate::ops::merge) fn chat(
    problems: &mut Problems,
    map: &Map<String, Value>,
) -> Option<Chat> {
    let at = "chat_template";
    let text = problems.text(at, given(map, at)?)?;
    if text == "auto" {
        return Some(Chat::Auto);
    }
    if let Some(template) = template::built_in(text) {
        return Some(Chat::Template(template.to_owned()));
    }
    if text.contains("{{") || text.contains("{%") {
        return Some(Chat::Template(text.to_owned()));
    }
    let names: Vec<&str> = std::iter::once("auto").chain(template::names()).collect();
    let near = suggestion(text, &names);
    problems.add(at, format!("`{text}` is neither a known template nor Jinja{near}"));
    None
}
