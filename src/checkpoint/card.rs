//! A model card: the README.md of a checkpoint, with the metadata the Hugging Face Hub reads.
//!
//! <https://huggingface.co/docs/hub/model-cards>

use std::path::Path;

/// Name of the file.
pub const CARD_FILE: &str = "README.md";

/// What a card says. Lists are in the order they are shown.
#[derive(Clone, Debug, Default)]
pub struct ModelCard {
    /// The heading.
    pub title: String,
    /// Hub ids (`org/name`) of the models it descends from; what is no Hub id has no place in metadata.
    pub base_models: Vec<String>,
    /// How it descends from them: `merge`, `finetune`, `adapter`, `quantized`.
    pub relation: Option<&'static str>,
    /// The licence, by the Hub's identifier.
    pub license: Option<String>,
    /// Tags.
    pub tags: Vec<String>,
    /// The text under the heading, in Markdown.
    pub text: String,
}

impl ModelCard {
    /// The card as it is written: metadata between lines of dashes, then Markdown.
    pub fn to_text(&self) -> String {
        let mut lines = vec!["---".to_owned()];
        let list = |lines: &mut Vec<String>, key: &str, items: &[String]| {
            if !items.is_empty() {
                lines.push(format!("{key}:"));
                lines.extend(items.iter().map(|item| format!("- {}", scalar(item))));
            }
        };
        list(&mut lines, "base_model", &self.base_models);
        if let (Some(relation), false) = (self.relation, self.base_models.is_empty()) {
            lines.push(format!("base_model_relation: {relation}"));
        }
        lines.push("library_name: transformers".to_owned());
        if let Some(license) = &self.license {
            lines.push(format!("license: {}", scalar(license)));
        }
        list(&mut lines, "tags", &self.tags);
        lines.extend(["---".to_owned(), String::new(), format!("# {}", self.title)]);
        lines.extend([String::new(), self.text.trim_end().to_owned(), String::new()]);
        lines.join("\n")
    }
}

/// The Hub id of a checkpoint that lies in a Hugging Face cache (`models--org--name/snapshots/REVISION`), or was named by one.
pub fn hub_id(name: &str, root: &Path) -> Option<String> {
    let cached = root.ancestors().filter_map(|dir| dir.file_name()?.to_str()).find_map(|dir| {
        let (org, name) = dir.strip_prefix("models--")?.split_once("--")?;
        Some(format!("{org}/{}", name.replace("--", "/")))
    });
    let named = || (!root.exists()).then(|| name.split('@').next().map(str::to_owned)).flatten();
    cached.or_else(named).filter(|id| is_hub_id(id))
}

fn is_hub_id(id: &str) -> bool {
    let plain = |part: &str| {
        !part.is_empty()
            && part.len() <= 96
            && !part.starts_with(['.', '-'])
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
    };
    id.split_once('/').is_some_and(|(org, name)| plain(org) && plain(name))
}

/// A code block that its text cannot end.
pub fn code_block(language: &str, text: &str) -> String {
    let longest = text.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(longest.max(2) + 1);
    format!("{fence}{language}\n{}\n{fence}", text.trim_end())
}

/// Text inside a line of Markdown: nothing in it is markup.
pub fn inline(text: &str) -> String {
    let mut safe = String::new();
    for c in text.chars() {
        match c {
            c if c.is_control() => safe.push(' '),
            '\\' | '`' | '*' | '_' | '[' | ']' | '<' | '>' | '|' | '#' => safe.extend(['\\', c]),
            c => safe.push(c),
        }
    }
    safe
}

/// A YAML scalar: plain where that is safe, else quoted as JSON quotes, which YAML reads.
fn scalar(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"._/-".contains(&b);
    let named = text.starts_with(|c: char| c.is_ascii_alphabetic());
    let word = ["true", "false", "null", "yes", "no", "on", "off", "y", "n"];
    if named && text.bytes().all(plain) && !word.contains(&text.to_ascii_lowercase().as_str()) {
        text.to_owned()
    } else {
        serde_json::Value::from(text).to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_is_yaml_whatever_the_names() {
        let card = ModelCard {
            title: "A merge".into(),
            base_models: vec!["org/a".into(), "org/1b".into()],
            relation: Some("merge"),
            license: Some("no".into()),
            tags: vec!["merge".into(), "say: \"hi\"".into(), "- x".into()],
            text: "Text.\n".into(),
        };
        let expected = "---\nbase_model:\n- org/a\n- org/1b\nbase_model_relation: merge\nlibrary_name: transformers\n\
                        license: \"no\"\ntags:\n- merge\n- \"say: \\\"hi\\\"\"\n- \"- x\"\n---\n\n# A merge\n\nText.\n";
        assert_eq!(card.to_text(), expected);
        let none = ModelCard { relation: Some("merge"), ..ModelCard::default() };
        assert!(!none.to_text().contains("relation"), "of no model");
    }

    #[test]
    fn caches_know_hub_ids() {
        let of = |root: &str| hub_id("x", Path::new(root));
        let snapshot = "/c/hub/models--meta-llama--Llama-3.1-8B/snapshots/0e9e39f249a16976918f6564b8830bc894c89659";
        assert_eq!(of(snapshot).as_deref(), Some("meta-llama/Llama-3.1-8B"));
        assert_eq!(of("/models/llama"), None);
        assert_eq!(of("/c/models--gpt2/snapshots/1"), None);
        assert_eq!(
            hub_id("org/name@main", Path::new("org/name@main")).as_deref(),
            Some("org/name")
        );
    }

    #[test]
    fn code_ends_where_it_should() {
        assert_eq!(code_block("yaml", "a: 1\n"), "```yaml\na: 1\n```");
        assert_eq!(code_block("", "````\n"), "`````\n````\n`````");
        assert_eq!(inline("a|b\n<i>`"), "a\\|b \\<i\\>\\`");
    }
}
