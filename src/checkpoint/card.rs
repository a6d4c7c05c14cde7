//! A model card: the README.md of a checkpoint, with the metadata the Hugging Face Hub reads.
//!
//! <https://huggingface.co/docs/hub/model-cards>
//!
//! A card ends with a seal, a digest of its text in a comment: who edits the card breaks it, and a card whose seal is broken belongs
//! to a person and is never replaced.

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
    /// Languages, by their ISO codes.
    pub languages: Vec<String>,
    /// What loads it; `transformers` unless said otherwise.
    pub library: Option<&'static str>,
    /// What it is for: `text-generation`.
    pub pipeline: Option<&'static str>,
    /// What was measured of it.
    pub metrics: Vec<Metric>,
    /// The licence, by the Hub's identifier.
    pub license: Option<String>,
    /// Tags.
    pub tags: Vec<String>,
    /// The text under the heading, in Markdown.
    pub text: String,
}

/// A measurement, as the Hub shows them beside a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Metric {
    /// The task or the text: `mmlu`, `held-out ko`.
    pub dataset: String,
    /// What was measured: `acc`, `perplexity`.
    pub metric: String,
    /// Its value.
    pub value: f64,
}

/// Begins the line of the seal.
const SEAL: &str = "<!-- Made by elo-surgery; once edited it is never replaced. ";

/// Whether a card is one of ours that nobody has edited.
pub fn is_sealed(card: &str) -> bool {
    let Some((body, seal)) = card.trim_end().rsplit_once(SEAL) else { return false };
    seal == format!("{} -->", digest(body))
}

fn digest(body: &str) -> String {
    blake3::hash(body.as_bytes()).to_hex()[..16].to_owned()
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
        list(&mut lines, "language", &self.languages);
        lines.push(format!("library_name: {}", self.library.unwrap_or("transformers")));
        if let Some(license) = &self.license {
            lines.push(format!("license: {}", scalar(license)));
        }
        lines.extend(self.results());
        if let Some(pipeline) = self.pipeline {
            lines.push(format!("pipeline_tag: {pipeline}"));
        }
        list(&mut lines, "tags", &self.tags);
        lines.extend(["---".to_owned(), String::new(), format!("# {}", self.title)]);
        lines.extend([
            String::new(),
            self.text.trim_end().to_owned(),
            String::new(),
            String::new(),
        ]);
        let body = lines.join("\n");
        let digest = digest(&body);
        format!("{body}{SEAL}{digest} -->\n")
    }

    /// `model-index`: the measurements, by what they were taken on.
    fn results(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let mut before = None;
        for Metric { dataset, metric, value } in self.metrics.iter().filter(|m| m.value.is_finite())
        {
            if lines.is_empty() {
                let name = format!("- name: {}", scalar(&self.title));
                lines.extend(["model-index:".to_owned(), name, "  results:".to_owned()]);
            }
            if before != Some(dataset) {
                let name = scalar(dataset);
                lines.push("  - task:\n      type: text-generation\n    dataset:".to_owned());
                lines.push(format!("      type: {name}\n      name: {name}\n    metrics:"));
            }
            lines.push(format!("    - type: {}\n      value: {value}", scalar(metric)));
            before = Some(dataset);
        }
        lines
    }
}

/// The licence that a model's own card states, by the Hub's identifier.
pub fn license_of(root: &Path) -> Option<String> {
    license_in(&std::fs::read_to_string(root.join(CARD_FILE)).ok()?)
}

/// The licence in a card's metadata. `other` is explained by a name that only that card has, so it is none.
pub fn license_in(card: &str) -> Option<String> {
    let (metadata, _) = card.strip_prefix("---")?.split_once("\n---")?;
    let value = metadata.lines().find_map(|line| line.strip_prefix("license:"))?;
    let value = value.split(" #").next().unwrap_or_default().trim();
    let value = value.trim_matches(['"', '\'']);
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-+".contains(&b);
    (!value.is_empty() && value != "other" && value.len() <= 64 && value.bytes().all(plain))
        .then(|| value.to_owned())
}

/// The Hub id of a checkpoint that lies in a Hugging Face cache (`models--org--name/snapshots/REVISION`), or that a record names as
/// `org/name@COMMIT`. A name without a commit may be a path of wherever the record was made.
pub fn hub_id(name: &str, root: &Path) -> Option<String> {
    let cached = root.ancestors().filter_map(|dir| dir.file_name()?.to_str()).find_map(|dir| {
        let (org, name) = dir.strip_prefix("models--")?.split_once("--")?;
        Some(format!("{org}/{}", name.replace("--", "/")))
    });
    let named = || {
        let (id, commit) = name.split_once('@')?;
        let is_commit = commit.len() == 40 && commit.bytes().all(|b| b.is_ascii_hexdigit());
        is_commit.then(|| id.to_owned())
    };
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
            ..ModelCard::default()
        };
        let expected = "---\nbase_model:\n- org/a\n- org/1b\nbase_model_relation: merge\nlibrary_name: transformers\n\
                        license: \"no\"\ntags:\n- merge\n- \"say: \\\"hi\\\"\"\n- \"- x\"\n---\n\n# A merge\n\nText.\n";
        let text = card.to_text();
        assert_eq!(text.split(SEAL).next().unwrap().trim_end(), expected.trim_end());
        let none = ModelCard { relation: Some("merge"), ..ModelCard::default() };
        assert!(!none.to_text().contains("relation"), "of no model");
    }

    #[test]
    fn measurements_are_a_model_index() {
        let metric = |dataset: &str, metric: &str, value| Metric {
            dataset: dataset.into(),
            metric: metric.into(),
            value,
        };
        let card = ModelCard {
            title: "T".into(),
            metrics: vec![
                metric("mmlu", "acc", 0.5),
                metric("mmlu", "f1", f64::NAN),
                metric("held-out ko", "perplexity", 9.25),
            ],
            languages: vec!["ko".into(), "no".into()],
            ..ModelCard::default()
        };
        let expected = "language:\n- ko\n- \"no\"\nlibrary_name: transformers\nmodel-index:\n- name: T\n  results:\n  - task:\n      type: text-generation\n    \
                        dataset:\n      type: mmlu\n      name: mmlu\n    metrics:\n    - type: acc\n      value: 0.5\n  - task:\n";
        let text = card.to_text();
        assert!(text.contains(expected), "{text}");
        assert!(!text.contains("NaN"), "{text}");
    }

    #[test]
    fn who_edits_a_card_breaks_its_seal() {
        let card =
            ModelCard { title: "A".into(), text: "B".into(), ..ModelCard::default() }.to_text();
        assert!(is_sealed(&card) && is_sealed(card.trim_end()), "{card}");
        assert!(!is_sealed(&card.replace("# A", "# Mine")));
        assert!(!is_sealed(&format!("{card}More.\n")));
        assert!(!is_sealed("# Mine\n"));
    }

    #[test]
    fn licences_are_read_from_cards() {
        let of =
            |line: &str| license_in(&format!("---\ntags: [x]\n{line}\n---\n# M\nlicense: mit\n"));
        assert_eq!(of("license: apache-2.0").as_deref(), Some("apache-2.0"));
        assert_eq!(of("license: \"llama3.1\" # theirs").as_deref(), Some("llama3.1"));
        assert_eq!(of("license: other"), None);
        assert_eq!(of("license: [a, b]"), None);
        assert_eq!(of("licence: mit"), None);
        assert_eq!(license_in("# no metadata\nlicense: mit"), None);
    }

    #[test]
    fn caches_know_hub_ids() {
        let of = |root: &str| hub_id("x", Path::new(root));
        let snapshot = "/c/hub/models--meta-llama--Llama-3.1-8B/snapshots/0e9e39f249a16976918f6564b8830bc894c89659";
        assert_eq!(of(snapshot).as_deref(), Some("meta-llama/Llama-3.1-8B"));
        assert_eq!(of("/models/llama"), None);
        assert_eq!(of("/c/models--gpt2/snapshots/1"), None);
        let named = |name: &str| hub_id(name, Path::new(name));
        let commit = "0e9e39f249a16976918f6564b8830bc894c89659";
        assert_eq!(named(&format!("org/name@{commit}")).as_deref(), Some("org/name"));
        // It may be a folder `name` in a folder `org` of another machine.
        assert_eq!((named("org/name"), named("models/a@main")), (None, None));
    }

    #[test]
    fn code_ends_where_it_should() {
        assert_eq!(code_block("yaml", "a: 1\n"), "```yaml\na: 1\n```");
        assert_eq!(code_block("", "````\n"), "`````\n````\n`````");
        assert_eq!(inline("a|b\n<i>`"), "a\\|b \\<i\\>\\`");
    }
}
