//! A new project file: every key that people change, the defaults in comments.

use std::fmt::Write as _;

use serde_json::json;

/// What a new project file says; the rest stands in it as comments.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Template {
    /// The base model, as the file has to say it.
    pub model: Option<String>,
    /// Its instruction-tuned relative.
    pub instruct: Option<String>,
    /// The layers to train.
    pub layers: Option<String>,
    /// Text for pretraining.
    pub pretrain: Vec<TemplateSource>,
    /// Chats.
    pub chats: Vec<TemplateSource>,
    /// What trains.
    pub backend: Option<String>,
    /// GPUs of a node.
    pub gpus: Option<u32>,
}

/// A source of a [`Template`].
#[derive(Clone, Debug, PartialEq)]
pub struct TemplateSource {
    /// As the file has to say it.
    pub path: String,
    /// Its language.
    pub language: String,
    /// Its share.
    pub weight: f64,
}

impl Template {
    /// The file.
    pub fn text(&self) -> String {
        let line = |key: &str, value: Option<&String>, example: &str| match value {
            Some(value) => format!("{key}: {}", scalar(value)),
            None => format!("# {key}: {example}"),
        };
        let backend = match (&self.backend, self.gpus) {
            (None, None) => "# backend: builtin".to_owned(),
            (Some(name), None) => format!("backend: {}", scalar(name)),
            (name, Some(gpus)) => {
                let name = name.as_deref().unwrap_or("builtin");
                format!("backend:\n  name: {}\n  gpus: {gpus}", scalar(name))
            }
        };
        let mut text = format!(
            "# yaml-language-server: $schema=elo.schema.json
# (for editors: `elo-surgery init --schema > elo.schema.json`)
#
# A project of elo-surgery. Paths are relative to this file. Values in comments are the defaults,
# those of the ELO paper (arXiv 2601.03648) where it has them.

# The base model: a directory with safetensors, a config.json and a tokenizer.
{model}

# Its instruction-tuned relative. The chat vector is `instruct - model`.
{instruct}

# The decoder layers to extract, train and put back, counting from 1.
layers: {layers}

# Where results go:
#   01-extract/model       `elo-surgery extract`
#   02-pretrain/model      `elo-surgery pretrain`
#   03-inject/model        `elo-surgery inject`
#   04-align/model         `elo-surgery align`
#   05-chat-vector/model   `elo-surgery chat-vector`
#   06-sft/model           `elo-surgery sft`
out: work

# Seed of every shuffle and of training.
# seed: 42

# What trains: builtin (CPU, small models), axolotl, llama-factory, trl, or an elo-backend-NAME on PATH.
{backend}

# The text and chats: .txt, .md, .jsonl, .json, .parquet; files, directories or patterns.
# Weights are shares of bytes. Pretraining, alignment and what is held out never share a document.
",
            model = line("model", self.model.as_ref(), "../models/llama-8b"),
            instruct = line("instruct", self.instruct.as_ref(), "../models/llama-8b-instruct"),
            layers = self.layers.as_deref().map_or("first,last".into(), scalar),
        );
        self.data(&mut text);
        text.push_str(STAGES);
        text
    }

    fn data(&self, text: &mut String) {
        let has_text = !self.pretrain.is_empty();
        let has_chats = !self.chats.is_empty();
        let mut line = |active: bool, line: &str| {
            let _ = writeln!(text, "{}{line}", if active { "" } else { "# " });
        };
        line(has_text || has_chats, "data:");
        line(has_text, "  pretrain:");
        line(has_text, "    sources:");
        for source in &self.pretrain {
            line(true, &source.line());
        }
        if !has_text {
            line(false, "      - {path: data/en.jsonl, language: en, weight: 1}");
            line(false, "      - {path: data/ko, language: ko, weight: 9, field: text}");
        }
        line(false, "    bytes: 10GB       # without it: as much as the shares allow");
        line(
            false,
            "  align: {bytes: 1GB} # other documents of the same sources, unless it has its own",
        );
        line(has_chats, "  sft:");
        line(has_chats, "    sources:");
        for source in &self.chats {
            line(true, &source.line());
        }
        if !has_chats {
            line(false, "      - {path: data/chats-en.jsonl, language: en, weight: 1}");
            line(false, "      - {path: data/chats-ko.jsonl, language: ko, weight: 1}");
        }
        line(false, "  held_out: {bytes: 1MB, fraction: 0.05} # of every language, for evaluation");
        line(false, "  on_bad: error       # or skip: records that cannot be used");
    }
}

impl TemplateSource {
    fn line(&self) -> String {
        let Self { path, language, weight } = self;
        let (path, language) = (scalar(path), scalar(language));
        format!("      - {{path: {path}, language: {language}, weight: {weight}}}")
    }
}

/// A YAML string: plain where that is safe, in double quotes elsewhere. JSON strings are YAML strings.
fn scalar(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
    let safe_start = text.starts_with(|c: char| c.is_ascii_alphabetic() || "/.".contains(c));
    let reserved = ["true", "false", "null", "yes", "no", "on", "off", "y", "n", ".nan", ".inf"];
    let is_word = !reserved.contains(&text.to_ascii_lowercase().as_str());
    let is_layers = text.split(',').all(|part| {
        !part.is_empty()
            && (part.chars().all(|c| c.is_ascii_digit()) || matches!(part, "first" | "last"))
    });
    if is_layers || text.chars().all(plain) && safe_start && is_word {
        text.to_owned()
    } else {
        json!(text).to_string()
    }
}

const STAGES: &str = "
# Training, by stage. Native keys of the backend go under `extra`.
# pretrain:
#   epochs: 1
#   learning_rate: 5e-6
#   schedule: cosine      # linear, constant
#   warmup_ratio: 0
#   sequence_length: 8192
#   batch: 4              # sequences of one forward pass on one device
#   accumulation: 1
#   optimizer: adamw8bit  # adamw
#   save_every: 500
# align:
#   method: full          # layers: some decoder layers; lora: adapters, merged at the end
#   epochs: 1
#   learning_rate: 5e-6
#   batch: 1
# chat_vector:              # done when there is `instruct`
#   scale: 1.0
#   vocab: error          # overlap, extend, skip
# sft:                      # done when there are chats
#   method: full
#   epochs: 10
#   learning_rate: 5e-6
#   batch: 1

# Held-out perplexity after every stage, and benchmarks of lm-evaluation-harness.
# evaluate:
#   perplexity: auto      # always, never
#   tasks: []
# Comparisons: align-only, full-fine-tuning, middle-layers.
# controls: []
";
