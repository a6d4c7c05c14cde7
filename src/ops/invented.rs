//! What is told of a vocabulary that was brought into another order: every token whose row is not its own.

use serde_json::{Value, json};

use crate::plan::{Sidecar, SidecarContent};

/// The file beside the result that names every such token.
pub(super) const AUDIT_FILE: &str = "vocabulary_audit.json";

/// How many tokens a note names.
const SHOWN: usize = 8;

/// A token whose row some model lends another, or that is computed.
#[derive(Clone, Debug)]
pub(super) struct Invented {
    /// Its id in the output.
    pub(super) id: u64,
    /// Its text as the tokenizer spells it.
    pub(super) token: String,
    /// For which models, by name.
    pub(super) models: Vec<String>,
    /// What the row is made of, as JSON.
    pub(super) from: Value,
}

/// The whole audit.
pub(super) fn audit(head: Value, invented: &[Invented]) -> Sidecar {
    let mut audit = head;
    let list: Vec<Value> = invented
        .iter()
        .map(|one| json!({"id": one.id, "token": one.token, "for": one.models, "from": one.from}))
        .collect();
    if let Some(map) = audit.as_object_mut() {
        map.insert("invented".into(), list.into());
    }
    let mut text = serde_json::to_string_pretty(&audit).unwrap_or_default();
    text.push('\n');
    Sidecar { file: AUDIT_FILE.into(), content: SidecarContent::Text(text) }
}

/// Some tokens, for a note: `a`, `b` and 3 more.
pub(super) fn some<'a>(tokens: impl ExactSizeIterator<Item = &'a str>) -> String {
    let count = tokens.len();
    let shown: Vec<String> =
        tokens.take(SHOWN).map(|token| format!("`{}`", crate::error::printable(token))).collect();
    let more = count - shown.len();
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{more}", shown.join(", "))
}
