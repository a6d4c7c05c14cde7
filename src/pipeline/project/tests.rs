//! Project files as people write them, right and wrong.

use std::path::Path;

use super::*;
use crate::backend::protocol::{LossOn, Method, Precision, TrainingStage};
use crate::error::Error;

fn parse(text: &str) -> Result<Loaded, Error> {
    Project::parse(text, Path::new("p/elo.yaml"))
}

fn told(text: &str) -> String {
    let error = parse(text).unwrap_err();
    assert_eq!(error.exit_code(), 3, "{error}");
    match error.hint() {
        Some(hint) => format!("{error} | {hint}"),
        None => error.to_string(),
    }
}

#[test]
fn the_smallest_files() {
    for text in ["", "# only a comment\n", "model:\nlayers:\nout:\ndata:\n"] {
        let loaded = parse(text).unwrap();
        assert_eq!(loaded.project, Project::default(), "{text}");
        assert_eq!(loaded.out(), Path::new("p/work"));
    }
    let loaded = parse("model: ../m\ninstruct: /abs/i\nlayers: 1,32\nout: o\n").unwrap();
    assert_eq!(loaded.path(&loaded.project.model.clone().unwrap()), Path::new("p/../m"));
    assert_eq!(loaded.path(&loaded.project.instruct.clone().unwrap()), Path::new("/abs/i"));
    assert_eq!(loaded.project.layers.to_string(), "1,32");
    assert_eq!(loaded.out(), Path::new("p/o"));
    assert_eq!((loaded.line_of("layers"), loaded.line_of("seed")), (Some(3), None));
}

#[test]
fn layers_have_several_spellings() {
    for (text, expected) in [
        ("layers: 1,32", "1,32"),
        ("layers: \"1,32\"", "1,32"),
        ("layers: [1, 32]", "1,32"),
        ("layers: [first, last]", "first,last"),
        ("layers: 7", "7"),
        ("layers: -1", "-1"),
        ("layers: 1-4", "1-4"),
    ] {
        assert_eq!(parse(text).unwrap().project.layers.to_string(), expected, "{text}");
    }
    for text in ["layers: {a: 1}", "layers: 1.5", "layers: [1.5]", "layers: 1,x"] {
        assert!(parse(text).is_err(), "{text}");
    }
}

#[test]
fn a_whole_file() {
    let text = "
model: llama
instruct: llama-it
seed: 7
backend: {name: axolotl, gpus: 8, gpu_memory: 80GB, sharding: zero3, extra: {wandb_project: x, y: null}}
data:
  pretrain:
    sources:
      - {path: en.jsonl, language: en, weight: 1}
      - path: ko/*.parquet
        language: ko
        weight: 9
        field: content
  sft: {sources: [{path: chats.json, language: ko}], bytes: 10MB}
  held_out: {bytes: 500000, fraction: 0.02}
  on_bad: skip
pretrain: {learning_rate: 5e-5, batch: 8}
align: {method: lora, lora: {rank: 8}, epochs: 2}
sft: {method: layers}
evaluate: {perplexity: never, tasks: [mmlu, {name: kobest, shots: 5}], after: {align: [[a, b]]}}
controls: [align-only, full-fine-tuning]
publish: {repo: org/name}
";
    let loaded = parse(text).unwrap();
    assert_eq!(loaded.project.data.on_bad, OnBad::Skip);
    assert_eq!(loaded.project.data.pretrain.sources[1].field.as_deref(), Some("content"));
    assert_eq!(loaded.line_of("data.pretrain.sources[1].weight"), Some(12));
    let stage = loaded.training(TrainingStage::Pretrain);
    assert_eq!((stage.train.micro_batch, stage.train.master), (8, Precision::Bf16));
    let stage = loaded.training(TrainingStage::Align);
    assert_eq!((stage.method, stage.lora.rank, stage.train.epochs), (Method::Lora, 8, 2));
    let stage = loaded.training(TrainingStage::Sft);
    assert_eq!(stage.layers, Some(Layers::default()));
    assert_eq!((stage.train.epochs, stage.train.loss_on), (10, LossOn::Assistant));
    assert_eq!((stage.train.seed, stage.train.master), (7, Precision::Fp32));
    let settings = loaded.project.backend.settings();
    assert_eq!(settings.gpu_memory.unwrap().bytes(), Ok(80_000_000_000));
    assert!(settings.extra["y"].is_null());
    assert_eq!(loaded.warnings, Vec::<String>::new());
}

#[test]
fn the_papers_hyperparameters() {
    let loaded = parse("").unwrap();
    for (stage, epochs, batch) in
        [(TrainingStage::Pretrain, 1, 4), (TrainingStage::Align, 1, 1), (TrainingStage::Sft, 10, 1)]
    {
        let StageTraining { train, save_every, .. } = loaded.training(stage);
        assert_eq!((train.epochs, train.micro_batch, train.accumulation), (epochs, batch, 1));
        assert_eq!((train.sequence_length, train.seed, save_every), (8192, 42, 500));
        assert!((train.learning_rate - 5e-6).abs() < 1e-12 && train.warmup_ratio == 0.0);
    }
}

#[test]
fn problems_name_line_and_key() {
    let expected = [
        ("model: m\nlayer: 1,2\n", "line 2: there is no key `layer` | did you mean `layers`?"),
        ("modle: m", "line 1: there is no key `modle` | did you mean `model`?"),
        ("instrcut: m", "line 1: there is no key `instrcut` | did you mean `instruct`?"),
        ("zzzzzzzz: 1", "line 1: there is no key `zzzzzzzz` | the keys are `model`, `instruct`"),
        (
            "align:\n  learnin_rate: 1",
            "line 2: there is no key `learnin_rate` in `align` | did you mean `learning_rate`?",
        ),
        (
            "learning_rate: 1",
            "line 1: there is no key `learning_rate` | there is `pretrain.learning_rate`, `align.learning_rate`, `sft.learning_rate`",
        ),
        (
            "data:\n  sft:\n    sources:\n      - path: x\n        language: en\n        wieght: 2",
            "line 6: there is no key `wieght` in `data.sft.sources[0]` | did you mean `weight`?",
        ),
        ("align:\n  learning_rate: -1", "line 2: `align.learning_rate: -1` is not positive"),
        ("align:\n  learning_rate: fast", "line 2: `align.learning_rate` is text, not a number"),
        ("pretrain: {epochs: 1.5}", "line 1: `pretrain.epochs` is not a whole number"),
        ("pretrain: {epochs: 0}", "line 1: `pretrain.epochs: 0` is not positive"),
        ("pretrain: {epochs: -3}", "line 1: `pretrain.epochs: -3` is negative"),
        ("pretrain: {batch: 99999999999}", "line 1: `pretrain.batch: 99999999999` is too large"),
        (
            "align: {method: lore}",
            "line 1: `align.method: lore` is not known | did you mean `lora`?",
        ),
        (
            "evaluate: {perplexity: true}",
            "line 1: `evaluate.perplexity` is true or false, not a word",
        ),
        ("model: [x]", "line 1: `model` is not a path | write `model: path/to/it`"),
        ("layers: {a: 1}", "line 1: `layers` is not a list of layers | write `layers: 1,32`"),
        (
            "data: {pretrain: {bytes: 5XB}}",
            "line 1: `data.pretrain.bytes: 5XB` is not a number of bytes | sizes look like",
        ),
        ("data: {pretrain: {bytes: []}}", "line 1: `data.pretrain.bytes` is not a number of bytes"),
        (
            "data: {sft: {sources: [{language: en}]}}",
            "line 1: `data.sft.sources[0]` has no `path` | add `path: ...`",
        ),
        (
            "data: {sft: {sources: [{path: x, language: ../en}]}}",
            "line 1: `data.sft.sources[0].language: ../en` is not a short name",
        ),
        ("data: {held_out: {fraction: 2}}", "line 1: `data.held_out.fraction: 2` is not between"),
        ("sft: {enabled: true}", "line 1: `sft.enabled` is true, and there are no chats | add"),
        ("chat_vector: {enabled: true}", "line 1: `chat_vector.enabled` is true, and there is no"),
        ("chat_vector: {vocab: overlp}", "line 1: `chat_vector.vocab: overlp` is not known"),
        ("backend: {gpus: 0}", "line 1: `backend.gpus: 0` is not positive"),
        ("backend: {name: command}", "line 1: the backend `command` has no `command`"),
        ("backend: 5", "line 1: `backend` is a number, not text"),
        ("controls: [align_only]", "line 1: `controls[0]: align_only` is not known | did you"),
        ("- a", "line 1: the file is a list, not a group of keys"),
    ];
    for (text, expected) in expected {
        let told = told(text);
        let (_, rest) = told.split_once("`p/elo.yaml`: ").unwrap();
        assert!(rest.starts_with(expected), "{text}\n  {rest}\n  {expected}");
    }
}

#[test]
fn all_problems_at_once() {
    let told = told("modle: m\nalign: {epochs: x}\nsft: {enabled: maybe}\n");
    assert_eq!(told.matches("line ").count(), 3, "{told}");
    assert!(told.starts_with("`p/elo.yaml`: 3 problems\n  line 1: "), "{told}");
}

#[test]
fn doubts_are_warnings() {
    let loaded =
        parse("align: {lora: {rank: 4}, layers: 1, master: bf16}\ndata: {sft: {sources: [{path: x, language: en}]}}").unwrap();
    assert_eq!(loaded.warnings.len(), 4, "{:?}", loaded.warnings);
}

#[test]
fn nonsense() {
    for text in ["[", "- a", "model: [x]", "model: m\nmodel: n", "model: &a m\nout: *a", "\u{1}"] {
        let error = parse(text).unwrap_err();
        assert_eq!(error.exit_code(), 3, "{text}");
        assert!(error.to_string().len() < 1000, "{error}");
    }
}

#[test]
fn a_written_project_reads_back() {
    let template = Template {
        model: Some("../m".into()),
        instruct: Some("../it: 1".into()),
        layers: Some("1,32".into()),
        pretrain: vec![
            TemplateSource { path: "en.jsonl".into(), language: "en".into(), weight: 1.0 },
            TemplateSource { path: "k o/*.txt".into(), language: "ko".into(), weight: 9.0 },
        ],
        chats: vec![TemplateSource { path: "c.json".into(), language: "ko".into(), weight: 1.0 }],
        backend: Some("axolotl".into()),
        gpus: Some(8),
    };
    let loaded = parse(&template.text()).unwrap();
    assert_eq!(loaded.project.instruct.as_deref(), Some(Path::new("../it: 1")));
    assert_eq!(loaded.project.data.pretrain.sources.len(), 2);
    assert_eq!(loaded.project.data.sft.sources[0].path, Path::new("c.json"));
    assert_eq!(loaded.project.backend.settings().gpus, 8);
    let empty = parse(&Template::default().text()).unwrap();
    assert_eq!(empty.project, Project::default());
    // What is commented out is right as well, and shows the defaults.
    let text = Template::default().text();
    let is_key = |line: &&str| {
        let key = line.trim_start().split(':').next().unwrap_or_default();
        let word = |c: char| c.is_ascii_lowercase() || c == '_';
        line.contains(':') && (key.starts_with("- {") || key.chars().all(word))
    };
    let yaml: Vec<&str> =
        text.lines().map(|line| line.strip_prefix("# ").unwrap_or(line)).filter(is_key).collect();
    let loaded = parse(&yaml.join("\n")).unwrap();
    assert!(loaded.line_of("sft.learning_rate").is_some());
    let defaults = parse("").unwrap();
    for stage in [TrainingStage::Pretrain, TrainingStage::Align, TrainingStage::Sft] {
        assert_eq!(loaded.training(stage), defaults.training(stage));
    }
}

/// `docs/elo.schema.json` is the schema. `UPDATE_DOCS=1` writes it.
#[test]
fn the_published_schema_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/elo.schema.json");
    let text = format!("{}\n", serde_json::to_string_pretty(&schema()).unwrap());
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, &text).unwrap();
    } else {
        let published = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(published == text, "run this test with UPDATE_DOCS=1 to write it");
    }
}
