//! What a model card says of the run that made the model: method, data, hyperparameters, measurements.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use super::facts::{Kind, Model, base, languages, main_stages, models, perplexity, slices, tasks};
use crate::checkpoint::{Metric, inline};
use crate::error::Result;
use crate::pipeline::record::{RECORD_FILE, Record, StageRecord, State};
use crate::pipeline::store::Store;

/// A model's directory lies at most this far below its run's.
const MOST_ABOVE: usize = 4;

/// Hyperparameters that people compare, in this order.
const SETTINGS: [(&str, &str); 13] = [
    ("method", "trained"),
    ("train.learning_rate", "learning rate"),
    ("train.schedule", "schedule"),
    ("train.warmup_ratio", "warmup"),
    ("train.epochs", "epochs"),
    ("train.sequence_length", "sequence length"),
    ("train.micro_batch", "batch"),
    ("train.accumulation", "accumulation"),
    ("train.optimizer", "optimizer"),
    ("train.weight_decay", "weight decay"),
    ("train.max_grad_norm", "gradient clipping"),
    ("train.compute", "compute"),
    ("train.seed", "seed"),
];

/// What a card says of a run.
#[derive(Clone, Debug, Default)]
pub struct CardFacts {
    /// The stage that made the model.
    pub stage: String,
    /// The models the run began with: role and name.
    pub began_with: Vec<(String, String)>,
    /// Languages of the data, the target first.
    pub languages: Vec<String>,
    /// Heading and Markdown.
    pub sections: Vec<(String, String)>,
    /// What was measured of the model.
    pub metrics: Vec<Metric>,
}

/// What the run says of the model in `dir`, if a run made it: the record lies in a directory above.
///
/// # Errors
/// A record that cannot be read.
pub fn card_facts(dir: &Path) -> Result<Option<CardFacts>> {
    let Ok(dir) = fs::canonicalize(dir) else { return Ok(None) };
    for out in
        dir.ancestors().skip(1).take(MOST_ABOVE).filter(|out| out.join(RECORD_FILE).is_file())
    {
        let Some(record) = Store::read_only(out)?.record()? else { continue };
        let is_it = |stage: &&StageRecord| {
            let output =
                stage.output.as_ref().and_then(|output| fs::canonicalize(out.join(output)).ok());
            stage.state == State::Done && output.as_ref() == Some(&dir)
        };
        if let Some(stage) = main_stages(&record).find(is_it) {
            return Ok(Some(facts(&record, stage)));
        }
    }
    Ok(None)
}

/// What the record says of a stage's model.
fn facts(record: &Record, stage: &StageRecord) -> CardFacts {
    let end = main_stages(record).position(|other| other.name == stage.name).unwrap_or(0);
    let stages: Vec<&StageRecord> =
        main_stages(record).take(end + 1).filter(|stage| stage.state == State::Done).collect();
    let mut began_with =
        vec![("base".to_owned(), record.model.path.to_string_lossy().into_owned())];
    let instruct = record.project.get("instruct").and_then(serde_json::Value::as_str);
    if let Some(instruct) = instruct
        .filter(|_| stages.iter().any(|stage| stage.name == "chat-vector" || stage.name == "sft"))
    {
        began_with.push(("instruct".to_owned(), instruct.to_owned()));
    }
    let mut sections = vec![("Method".to_owned(), method(record, &stages))];
    sections.extend(data(record, &stages).map(|text| ("Data".to_owned(), text)));
    sections.extend(settings(&stages).map(|text| ("Hyperparameters".to_owned(), text)));
    let model = models(record)
        .into_iter()
        .find(|model| model.kind == Kind::Stage && model.name == stage.name);
    sections.extend(
        model
            .as_ref()
            .and_then(|model| evaluation(record, model))
            .map(|text| ("Evaluation".to_owned(), text)),
    );
    let metrics = model.map(|model| metrics(&model)).unwrap_or_default();
    CardFacts {
        stage: stage.name.clone(),
        began_with,
        languages: languages(record),
        sections,
        metrics,
    }
}

fn method(record: &Record, stages: &[&StageRecord]) -> String {
    let model = &record.model;
    let chosen: Vec<String> = model.chosen.iter().map(u64::to_string).collect();
    let mut text = String::new();
    if !chosen.is_empty() {
        let _ = writeln!(
            text,
            "Layers {} of {} were detached and trained.\n",
            chosen.join(", "),
            model.layers
        );
    }
    text.push_str("| stage | what | tokens |\n|---|---|---|\n");
    for stage in stages {
        let what = match stage.name.as_str() {
            "extract" => "the layers, with embedding and head, become a model of their own",
            "pretrain" => "these layers are trained on the target language, all else frozen",
            "inject" => "the trained layers go back into the base model",
            "align" => "a short fine-tune, so that the layers fit",
            "chat-vector" => "the difference of the instruct model and the base is added",
            "sft" => "fine-tuning on chats",
            _ => continue,
        };
        let tokens = stage.tokens.map(|tokens| tokens.to_string()).unwrap_or_default();
        let _ = writeln!(text, "| {} | {what} | {tokens} |", inline(&stage.name));
    }
    text
}

fn data(record: &Record, stages: &[&StageRecord]) -> Option<String> {
    let used = |name: &str| stages.iter().any(|stage| stage.name == name);
    let facts: Vec<_> = record.data.iter().filter(|facts| used(&facts.name)).collect();
    if facts.is_empty() {
        return None;
    }
    let mut text =
        String::from("| used for | documents | bytes of text | languages |\n|---|---|---|---|\n");
    for facts in facts {
        let share = |(name, bytes): (&String, &u64)| {
            let tenths = bytes.saturating_mul(1000).checked_div(facts.bytes).unwrap_or(0);
            format!("{} {}.{} %", inline(name), tenths / 10, tenths % 10)
        };
        let shares: Vec<String> = facts.languages.iter().map(share).collect();
        let shares = shares.join(", ");
        let _ = writeln!(
            text,
            "| {} | {} | {} | {shares} |",
            inline(&facts.name),
            facts.records,
            facts.bytes
        );
    }
    Some(text)
}

fn settings(stages: &[&StageRecord]) -> Option<String> {
    let trained: Vec<&&StageRecord> =
        stages.iter().filter(|stage| stage.inputs.contains_key("train.learning_rate")).collect();
    if trained.is_empty() {
        return None;
    }
    let names: Vec<String> = trained.iter().map(|stage| inline(&stage.name)).collect();
    let mut text = format!("| | {} |\n|---|{}\n", names.join(" | "), "---|".repeat(names.len()));
    let value = |inputs: &BTreeMap<String, String>, key: &str| {
        inputs.get(key).map(|value| inline(value)).unwrap_or_default()
    };
    for (key, name) in SETTINGS {
        let values: Vec<String> = trained.iter().map(|stage| value(&stage.inputs, key)).collect();
        if values.iter().any(|value| !value.is_empty()) {
            let _ = writeln!(text, "| {name} | {} |", values.join(" | "));
        }
    }
    let steps: Vec<String> = trained
        .iter()
        .map(|stage| stage.steps.map(|s| s.to_string()).unwrap_or_default())
        .collect();
    let _ = writeln!(text, "| steps | {} |", steps.join(" | "));
    let backends: Vec<String> =
        trained.iter().map(|stage| inline(stage.backend.as_deref().unwrap_or_default())).collect();
    let _ = writeln!(text, "| trained by | {} |", backends.join(" | "));
    Some(text)
}

/// The model beside the base it began with.
fn evaluation(record: &Record, model: &Model<'_>) -> Option<String> {
    let base = base(record);
    let mut text = String::new();
    let slices: Vec<String> =
        slices(record).into_iter().filter(|slice| model.on(slice).is_some()).collect();
    if !slices.is_empty() {
        text.push_str("Perplexity on held-out text (lower is better):\n\n| text | base | this model |\n|---|---|---|\n");
        for slice in &slices {
            let shown = |model: Option<&Model<'_>>| {
                model.and_then(|model| model.perplexity(slice)).map(perplexity)
            };
            let (before, now) =
                (shown(base.as_ref()).unwrap_or_default(), shown(Some(model)).unwrap_or_default());
            let _ = writeln!(text, "| {} | {before} | {now} |", inline(slice));
        }
    }
    let scored: Vec<_> = tasks(record)
        .into_iter()
        .filter(|(task, metric)| model.score(task, metric).is_some())
        .collect();
    if !scored.is_empty() {
        text.push_str("\n| task | metric | shots | base | this model |\n|---|---|---|---|---|\n");
        let before = models(record)
            .into_iter()
            .find(|model| model.kind == Kind::Baseline && model.name == "base");
        for (task, metric) in scored {
            let shown = |model: Option<&Model<'_>>| {
                model
                    .and_then(|model| model.score(&task, &metric))
                    .map(|s| format!("{:.3}", s.value))
            };
            let shots = model.score(&task, &metric).and_then(|score| score.shots);
            let shots = shots.map(|shots| shots.to_string()).unwrap_or_default();
            let (was, now) = (
                shown(before.as_ref()).unwrap_or_default(),
                shown(Some(model)).unwrap_or_default(),
            );
            let _ = writeln!(
                text,
                "| {} | {} | {shots} | {was} | {now} |",
                inline(&task),
                inline(&metric)
            );
        }
    }
    (!text.is_empty()).then_some(text)
}

fn metrics(model: &Model<'_>) -> Vec<Metric> {
    let measured = model.measured.iter().map(|m| Metric {
        dataset: format!("held-out {}", m.slice),
        metric: "perplexity".to_owned(),
        value: m.perplexity,
    });
    let scores = model.scores.iter();
    let scores = scores.map(|s| Metric {
        dataset: s.task.clone(),
        metric: s.metric.clone(),
        value: s.value,
    });
    measured.chain(scores).collect()
}

#[cfg(test)]
mod tests {
    use super::super::fixture::record;
    use super::*;

    #[test]
    fn a_card_says_what_the_run_did() {
        let record = record();
        let stage = main_stages(&record).find(|stage| stage.name == "align").unwrap();
        let found = facts(&record, stage);
        assert_eq!(found.began_with, [("base".to_owned(), "models/tiny-llama".to_owned())]);
        assert_eq!(found.languages, ["ko", "en"]);
        let sections =
            found.sections.iter().map(|(heading, text)| [heading.as_str(), text.as_str()]);
        let text = sections.flatten().collect::<Vec<_>>().join("\n");
        for expected in [
            "Layers 1, 8 of 8 were detached",
            "| pretrain | 2210 | 1080000 | en 10.0 %, ko 90.0 % |",
            "| ko | 12.78 | 10.98 |",
            "| kobest\\_copa | f1 | 0 |",
        ] {
            assert!(text.contains(expected), "{expected}\n{text}");
        }
        assert!(!text.contains("sft"), "later stages are not of this model:\n{text}");
        let perplexity = found.metrics.iter().find(|m| m.dataset == "held-out ko").unwrap();
        assert_eq!((perplexity.metric.as_str(), perplexity.value), ("perplexity", 10.98));
    }

    #[test]
    fn the_record_is_found_from_the_model() {
        let dir = tempfile::tempdir().unwrap();
        let model = dir.path().join("align/model");
        fs::create_dir_all(&model).unwrap();
        assert!(card_facts(&model).unwrap().is_none());
        let json = serde_json::to_vec(&record()).unwrap();
        fs::write(dir.path().join(RECORD_FILE), json).unwrap();
        assert!(card_facts(&model).unwrap().is_some());
        let other = dir.path().join("other");
        fs::create_dir_all(&other).unwrap();
        assert!(card_facts(&other).unwrap().is_none());
    }
}
