//! The model card of something published: written from the record of its origin.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use serde_json::Value;

use super::Folder;
use crate::checkpoint::{Metric, ModelCard, code_block, hub_id, inline, license_of};
use crate::format::{PROVENANCE_FILE, Parent, Provenance};

/// Longer chains of models made from models are cut.
const MOST_GENERATIONS: usize = 8;
/// Longer parameters are left to `elo-surgery.json`.
const MOST_PARAMETERS: usize = 6000;

const ELO: &str = "https://arxiv.org/abs/2601.03648";

/// What is known beyond the record of the output: of the run that trained it.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// The models the run began with, as they were named: role and name.
    pub began_with: Vec<(String, String)>,
    /// Languages of its data, the target first.
    pub languages: Vec<String>,
    /// Sections of the card: heading and Markdown.
    pub sections: Vec<(String, String)>,
    /// What was measured of the model.
    pub metrics: Vec<Metric>,
    /// The stage of a run of the ELO method that made it.
    pub stage: Option<String>,
}

/// A model that something descends from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// What it was used as.
    pub role: String,
    /// Its name, fit to be shown: never a path.
    pub name: String,
    /// Its id on the Hub.
    pub id: Option<String>,
    /// The licence that its card states.
    pub license: Option<String>,
}

/// The models at the beginning: parents, and parents of those that were made by this tool and are still here.
pub fn origins(provenance: Option<&Provenance>, facts: &Facts) -> Vec<Origin> {
    let mut found = Vec::new();
    let mut seen = BTreeSet::new();
    for (role, name) in &facts.began_with {
        found.push(origin(role, name));
    }
    if found.is_empty()
        && let Some(provenance) = provenance
    {
        collect(&provenance.parents, MOST_GENERATIONS, &mut found);
    }
    found.retain(|origin| seen.insert(origin.id.clone().unwrap_or_else(|| origin.name.clone())));
    found
}

fn collect(parents: &[Parent], generations: usize, found: &mut Vec<Origin>) {
    for parent in parents {
        let before = earlier(Path::new(&parent.model)).filter(|_| generations > 0);
        match before {
            Some(before) if !before.parents.is_empty() => {
                collect(&before.parents, generations - 1, found);
            }
            _ => found.push(origin(&parent.role, &parent.model)),
        }
    }
}

/// The record of a model that this tool made.
fn earlier(model: &Path) -> Option<Provenance> {
    serde_json::from_slice(&fs::read(model.join(PROVENANCE_FILE)).ok()?).ok()
}

fn origin(role: &str, model: &str) -> Origin {
    let path = Path::new(model);
    let id = hub_id(model, path);
    // Where a model lay says nothing to others.
    let name = id.clone().unwrap_or_else(|| {
        let whole = path.file_name().map(|name| name.to_string_lossy().into_owned());
        whole.unwrap_or_else(|| role.to_owned())
    });
    Origin { role: role.to_owned(), name, id, license: license_of(path) }
}

/// The card of a directory under the name that it gets on the Hub.
pub fn card(folder: &Folder, title: &str, origins: &[Origin], facts: &Facts) -> String {
    let provenance = folder.provenance.as_ref();
    let verb = provenance.map_or("", |provenance| provenance.operation.verb.as_str());
    let is_adapter = folder.file("adapter_config.json").is_some();
    let mut text = introduction(verb, facts);
    if !origins.is_empty() {
        text.push_str("\n## Models\n\n| model | used as | licence |\n|---|---|---|\n");
        for origin in origins {
            let shown = match &origin.id {
                Some(id) => format!("[{}](https://huggingface.co/{id})", inline(id)),
                None => inline(&origin.name),
            };
            let license = origin.license.as_deref().map_or_else(|| "not said".to_owned(), inline);
            let _ = writeln!(text, "| {shown} | {} | {license} |", inline(&origin.role));
        }
    }
    for (heading, section) in &facts.sections {
        let _ = write!(text, "\n## {}\n\n{}\n", inline(heading), section.trim_end());
    }
    if let Some(provenance) = provenance {
        text.push_str(&made(provenance));
    }
    if facts.stage.is_some() {
        text.push_str(CITATION);
    }
    let licenses = origins.iter().map(|origin| origin.license.as_ref());
    let agreed = origins.first().and_then(|first| first.license.as_ref());
    let relation = match verb {
        _ if is_adapter => Some("adapter"),
        _ if facts.stage.as_deref().is_some_and(|stage| stage != "extract") => Some("finetune"),
        "merge" | "chat-vector" | "moe" => Some("merge"),
        _ => None,
    };
    let mut base_models = Vec::new();
    base_models.extend(origins.iter().filter_map(|origin| origin.id.clone()));
    let card = ModelCard {
        title: inline(title),
        base_models,
        relation,
        languages: facts.languages.iter().filter(|language| is_code(language)).cloned().collect(),
        library: is_adapter.then_some("peft"),
        pipeline: generates(folder).then_some("text-generation"),
        metrics: facts.metrics.clone(),
        // Whether licences that differ go together is for people to decide.
        license: agreed.filter(|first| licenses.clone().all(|other| other == Some(first))).cloned(),
        tags: tags(provenance, facts, is_adapter),
        text,
    };
    card.to_text()
}

/// ISO 639: `ko`, `eng`; with a region, `pt-BR`.
fn is_code(language: &str) -> bool {
    let main = language.split('-').next().unwrap_or_default();
    matches!(main.len(), 2 | 3) && main.bytes().all(|b| b.is_ascii_lowercase())
}

fn introduction(verb: &str, facts: &Facts) -> String {
    if let Some(stage) = &facts.stage {
        return format!(
            "This model comes from a run of the ELO method ([arXiv 2601.03648]({ELO})) with elo-surgery, after its stage `{}`.\n",
            inline(stage)
        );
    }
    let what = match verb {
        "extract" => "some layers of a larger model, detached with elo-surgery",
        "inject" => "a model into which layers were put back with elo-surgery",
        "chat-vector" => {
            "a model to which the difference of two others was added with elo-surgery ([chat vector](https://arxiv.org/abs/2310.04799))"
        }
        "merge" => "a merge, made with elo-surgery",
        "moe" => "a mixture of experts made of dense models with elo-surgery",
        "expand" => "a model with added layers, made with elo-surgery",
        "layers" => "a model with another order or number of layers, made with elo-surgery",
        "" => return "This model was published with elo-surgery.\n".to_owned(),
        other => {
            return format!("This checkpoint was made with elo-surgery (`{}`).\n", inline(other));
        }
    };
    format!("This checkpoint is {what}.\n")
}

/// What was done, and how to check it.
fn made(provenance: &Provenance) -> String {
    let mut text = String::from("\n## How it was made\n\n");
    let Provenance { operation, version, plan, layer_map, notes, .. } = provenance;
    let _ = writeln!(
        text,
        "`{}` of elo-surgery {}, plan `{}`.",
        inline(&operation.verb),
        inline(version),
        plan.get(..16).unwrap_or(plan)
    );
    if let Some(map) = layer_map {
        let layers: Vec<String> = map.layers.iter().map(u64::to_string).collect();
        let _ = writeln!(text, "It holds the layers {} of {}.", layers.join(", "), map.of);
    }
    let parameters = Value::Object(operation.parameters.clone());
    let parameters = serde_json::to_string_pretty(&without_paths(&parameters)).unwrap_or_default();
    if !operation.parameters.is_empty() && parameters.len() <= MOST_PARAMETERS {
        let _ = write!(text, "\n{}\n", code_block("json", &parameters));
    }
    if !notes.is_empty() {
        text.push('\n');
        for note in notes.iter().take(20) {
            let _ = writeln!(text, "* {}", inline(&without_places(note)));
        }
    }
    text.push_str(
        "\n`elo-surgery.json` beside this file has the digests of all files and what they were made from; `elo-surgery verify` checks them.\n",
    );
    text
}

/// A note with places on this machine, which stand between backquotes, reduced to names.
fn without_places(note: &str) -> String {
    let name = |(at, part): (usize, &str)| {
        let is_place = at % 2 == 1 && ["/", "~/", "./", "../"].iter().any(|p| part.starts_with(p));
        let name = Path::new(part).file_name().filter(|_| is_place);
        name.map_or_else(|| part.to_owned(), |name| name.to_string_lossy().into_owned())
    };
    note.split('`').enumerate().map(name).collect::<Vec<_>>().join("`")
}

/// Parameters with places on this machine reduced to names.
fn without_paths(value: &Value) -> Value {
    match value {
        Value::String(text)
            if text.starts_with('/') || text.starts_with("~/") || text.contains("../") =>
        {
            let name = hub_id(text, Path::new(text));
            let name =
                name.or_else(|| Some(Path::new(text).file_name()?.to_string_lossy().into_owned()));
            // A longer text that begins with a slash is no path.
            if text.lines().nth(1).is_some() {
                value.clone()
            } else {
                Value::from(name.unwrap_or_default())
            }
        }
        Value::Array(items) => items.iter().map(without_paths).collect(),
        Value::Object(fields) => fields
            .iter()
            .map(|(key, value)| (key.clone(), without_paths(value)))
            .collect::<serde_json::Map<_, _>>()
            .into(),
        other => other.clone(),
    }
}

fn tags(provenance: Option<&Provenance>, facts: &Facts, is_adapter: bool) -> Vec<String> {
    let mut tags = vec!["elo-surgery".to_owned()];
    let mut add = |tag: &str| {
        if !tags.iter().any(|known| known == tag) {
            tags.push(tag.to_owned());
        }
    };
    if facts.stage.is_some() {
        ["elo", "continual-pretraining", "language-adaptation"].into_iter().for_each(&mut add);
    }
    if is_adapter {
        add("lora");
    }
    // What a run did is in its sections; the last step alone would mislead.
    if let Some(provenance) = provenance.filter(|_| facts.stage.is_none()) {
        match provenance.operation.verb.as_str() {
            "merge" => {
                add("merge");
                if let Some(method) =
                    provenance.operation.parameters.get("merge_method").and_then(Value::as_str)
                {
                    add(method);
                }
            }
            "chat-vector" => ["merge", "chat-vector"].into_iter().for_each(&mut add),
            "moe" => ["merge", "moe"].into_iter().for_each(&mut add),
            "" => {}
            verb => add(verb),
        }
    }
    tags
}

/// Whether it is a language model that continues text.
fn generates(folder: &Folder) -> bool {
    let Ok(bytes) = fs::read(folder.root().join("config.json")) else { return false };
    let Ok(config) = serde_json::from_slice::<Value>(&bytes) else { return false };
    let names = config.get("architectures").and_then(Value::as_array);
    names.into_iter().flatten().filter_map(Value::as_str).any(|name| name.ends_with("ForCausalLM"))
}

const CITATION: &str = r#"
## Citation

The method:

```bibtex
@inproceedings{yoo-etal-2026-elo,
  title     = "{ELO}: Efficient Layer-Specific Optimization for Continual Pretraining of Multilingual {LLM}s",
  author    = "Yoo, Hangyeol and Choi, ChangSu and Kim, Minjun and Song, Seohyun and Song, SeungWoo and Won, Inho and Park, Jongyoul and Park, Cheoneum and Lim, KyungTae",
  booktitle = "Proceedings of the 19th Conference of the {E}uropean Chapter of the {A}ssociation for {C}omputational {L}inguistics (Volume 5: Industry Track)",
  year      = "2026",
  url       = "https://arxiv.org/abs/2601.03648",
  eprint    = "2601.03648",
  archivePrefix = "arXiv"
}
```
"#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_name_no_places() {
        let note = "config and tokenizer are those of `/home/me/models/b`, `model.norm` of `../c`";
        let told = "config and tokenizer are those of `b`, `model.norm` of `c`";
        assert_eq!(without_places(note), told);
        assert_eq!(without_places("1/2 of `a/b`"), "1/2 of `a/b`");
    }
}
