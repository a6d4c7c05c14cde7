//! Native files and commands against snapshots, and outcomes from what a Trainer leaves.
//!
//! `ELO_NATIVE=DIR` also writes the files, for `tests/peers/check_backends.py`.

#![allow(clippy::unwrap_used, reason = "a failing test should say where")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use super::protocol::*;
use super::*;

const TOPOLOGIES: [&str; 4] = ["one GPU", "eight GPUs", "fsdp2", "two nodes"];

/// A spec as the driver makes it for an 8 B Llama.
fn spec(stage: TrainingStage, method: Method) -> Spec {
    let (number, name) = match stage {
        TrainingStage::Pretrain => (2, "pretrain"),
        TrainingStage::Align => (4, "align"),
        TrainingStage::Sft => (6, "sft"),
    };
    let layers = if stage == TrainingStage::Pretrain { 2 } else { 32 };
    let trained = match method {
        Method::Layers => layers - 2..layers,
        Method::Full | Method::Lora => 0..layers,
    };
    let dir = PathBuf::from(format!("/project/{number:02}-{name}"));
    let chats = stage == TrainingStage::Sft;
    let mut tensors: Vec<String> = trained
        .flat_map(|layer| {
            ["self_attn.q_proj", "mlp.up_proj"].map(|m| format!("model.layers.{layer}.{m}.weight"))
        })
        .collect();
    if method == Method::Full {
        tensors.push("lm_head.weight".to_owned());
    }
    let model = PathBuf::from("/project/input/model");
    Spec {
        protocol: PROTOCOL,
        run: "ko-llama".to_owned(),
        stage,
        attempt: 1,
        model: ModelSpec {
            dir: model.clone(),
            family: "llama".to_owned(),
            layer_class: Some("LlamaDecoderLayer".to_owned()),
            layers,
            parameters: 8_030_261_248,
            dtype: "bf16".to_owned(),
            tied: false,
            digest: String::new(),
        },
        tokenizer: TokenizerSpec { dir: model, digest: String::new() },
        trainable: Trainable {
            method,
            regex: Vec::new(),
            tensors,
            lora: (method == Method::Lora).then(Lora::default),
        },
        data: vec![DataFile {
            path: format!("/project/data/{name}.jsonl").into(),
            format: if chats { DataFormat::Messages } else { DataFormat::Text },
            records: 1000,
            bytes: 1_000_000,
            digest: String::new(),
        }],
        train: Hyperparameters {
            epochs: if chats { 10 } else { 1 },
            max_steps: None,
            sequence_length: 8192,
            packing: Packing::DocMask,
            micro_batch: if stage == TrainingStage::Pretrain { 4 } else { 1 },
            accumulation: 1,
            optimizer: Optimizer::AdamW8Bit,
            learning_rate: 5e-6,
            schedule: Schedule::Cosine,
            warmup_ratio: 0.0,
            weight_decay: 0.0,
            max_grad_norm: 1.0,
            seed: 42,
            compute: Precision::Bf16,
            master: Precision::Fp32,
            loss_on: if chats { LossOn::Assistant } else { LossOn::All },
            checkpointing: true,
        },
        parallel: Parallel { gpus: 1, nodes: 1, sharding: Sharding::Auto },
        out: Destinations {
            model: dir.join("model"),
            work: dir.join("work"),
            events: dir.join("events.jsonl"),
            result: dir.join("result.json"),
        },
        save_every_steps: 500,
        resume: Resume::Auto,
        extra: BTreeMap::new(),
    }
}

fn over(mut spec: Spec, topology: &str) -> Spec {
    spec.parallel = match topology {
        "eight GPUs" => Parallel { gpus: 8, nodes: 1, sharding: Sharding::Auto },
        "fsdp2" => Parallel { gpus: 8, nodes: 1, sharding: Sharding::Fsdp2 },
        "two nodes" => Parallel { gpus: 8, nodes: 2, sharding: Sharding::Zero2 },
        _ => spec.parallel,
    };
    spec
}

fn settings(name: &str) -> BackendSettings {
    let env = [("MASTER_ADDR".to_owned(), "gpu01".to_owned())];
    BackendSettings { name: name.to_owned(), env: env.into(), ..BackendSettings::default() }
}

/// Files and command of a spec. Python and shell are shown by name only.
fn rendered(name: &str, spec: &Spec) -> String {
    let settings = settings(name);
    let backend = Backend::find(&settings).unwrap();
    let mut out = String::new();
    for note in backend.notes(spec, &settings).unwrap() {
        writeln!(out, "note: {note}").unwrap();
    }
    for file in backend.native(spec, &settings).unwrap() {
        writeln!(out, "--- {}", file.name).unwrap();
        let is_script = Path::new(&file.name).extension().is_some_and(|e| e == "py" || e == "sh");
        if !is_script {
            out.push_str(&file.content);
        }
    }
    let path = spec.out.result.with_file_name("spec.json");
    let launch = backend.launch(&path, spec, &settings).unwrap();
    let words: Vec<&str> = launch.program.iter().map(|word| word.to_str().unwrap()).collect();
    writeln!(out, "--- command\n{}", words.join(" ")).unwrap();
    out
}

/// The lines of one text that another does not have, and the reverse.
fn difference(old: &str, new: &str) -> String {
    let lines = |text: &str, other: &str, mark: char| -> String {
        let lacks = |line: &&str| !other.lines().any(|old| old == *line);
        text.lines().filter(lacks).fold(String::new(), |all, line| format!("{all}{mark} {line}\n"))
    };
    lines(old, new, '-') + &lines(new, old, '+')
}

fn for_the_peers(name: &str, stage: &str, topology: &str, spec: &Spec) {
    let Some(root) = std::env::var_os("ELO_NATIVE") else { return };
    let directory =
        PathBuf::from(root).join(format!("{name}-{stage}-{topology}").replace(' ', "-"));
    fs::create_dir_all(&directory).unwrap();
    let settings = settings(name);
    let files = Backend::find(&settings).unwrap().native(spec, &settings).unwrap();
    native::write(&directory, &files).unwrap();
}

#[test]
fn native_files_and_commands() {
    let cases = [
        ("pretrain", TrainingStage::Pretrain, Method::Layers),
        ("align", TrainingStage::Align, Method::Full),
        ("align-layers", TrainingStage::Align, Method::Layers),
        ("align-lora", TrainingStage::Align, Method::Lora),
        ("sft", TrainingStage::Sft, Method::Full),
    ];
    for name in ["axolotl", "llama-factory", "trl"] {
        for (stage, kind, method) in cases {
            let mut text = String::new();
            let mut first = String::new();
            for topology in TOPOLOGIES {
                let mut spec = over(spec(kind, method), topology);
                if topology == "fsdp2" && name == "axolotl" {
                    spec.train.master = Precision::Bf16;
                }
                if topology == "fsdp2" && name == "trl" && method == Method::Lora {
                    continue;
                }
                for_the_peers(name, stage, topology, &spec);
                let rendered = rendered(name, &spec);
                writeln!(text, "===== {topology}").unwrap();
                if first.is_empty() {
                    text.push_str(&rendered);
                    first = rendered;
                } else {
                    text.push_str(&difference(&first, &rendered));
                }
            }
            insta::assert_snapshot!(format!("{name}-{stage}"), text);
        }
    }
}

fn refusal(name: &str, spec: &Spec) -> String {
    let settings = settings(name);
    let error = Backend::find(&settings).unwrap().native(spec, &settings).unwrap_err();
    format!("{error}; {}", error.hint().unwrap_or_default())
}

#[test]
fn what_a_backend_cannot_do_is_refused() {
    let mut sparse = spec(TrainingStage::Align, Method::Layers);
    sparse.trainable.tensors =
        vec!["model.layers.0.a.weight".into(), "model.layers.31.a.weight".into()];
    let mut single = sparse.clone();
    single.train.compute = Precision::Fp32;
    let mut none = sparse.clone();
    none.trainable.tensors.clear();
    let lora = spec(TrainingStage::Align, Method::Lora);
    let sharded = over(lora.clone(), "fsdp2");
    let mut unknown = over(spec(TrainingStage::Align, Method::Full), "fsdp2");
    unknown.model.layer_class = None;
    let mut family = spec(TrainingStage::Pretrain, Method::Layers);
    family.model.family = "gpt2".to_owned();
    let mut template = spec(TrainingStage::Sft, Method::Full);
    template.model.family = "gpt2".to_owned();
    let text = [
        refusal("llama-factory", &sparse),
        refusal("llama-factory", &template),
        refusal("llama-factory", &single),
        refusal("axolotl", &none),
        refusal("axolotl", &over(spec(TrainingStage::Align, Method::Full), "fsdp2")),
        refusal("trl", &unknown),
        refusal("trl", &sharded),
        refusal("builtin", &lora),
        refusal("builtin", &family),
        refusal("command", &family),
    ];
    insta::assert_snapshot!(text.join("\n"));
}

#[test]
fn patterns_name_layers_exactly() {
    let mut spec = spec(TrainingStage::Align, Method::Layers);
    spec.trainable.tensors = vec![
        "model.layers.1.a.weight".into(),
        "model.layers.1.b.weight".into(),
        "lm_head.weight".into(),
    ];
    let settings = settings("axolotl");
    let files = Backend::find(&settings).unwrap().native(&spec, &settings).unwrap();
    let main = files.iter().find(|file| file.name == "axolotl.yml").unwrap();
    let config: Value = serde_saphyr::from_str(&main.content).unwrap();
    assert_eq!(config["unfrozen_parameters"], json!(["^model.layers.1.", "^lm_head.weight$"]));
}

#[test]
fn extra_comes_last_and_is_told() {
    let mut spec = spec(TrainingStage::Align, Method::Full);
    spec.extra.insert(
        "axolotl".into(),
        json!({ "sequence_len": 4096, "wandb_project": "x", "tf32": null }),
    );
    let mut settings = settings("axolotl");
    settings.extra.insert("sequence_len".into(), json!(2048));
    let backend = Backend::find(&settings).unwrap();
    let files = backend.native(&spec, &settings).unwrap();
    let content = files.iter().find(|file| file.name == "axolotl.yml").unwrap().content.clone();
    assert!(content.contains("sequence_len: 4096\n"), "{content}");
    assert!(content.contains("wandb_project: x\n") && !content.contains("tf32"), "{content}");
    let notes = backend.notes(&spec, &settings).unwrap();
    assert!(notes.iter().any(|note| note.contains("`sequence_len` to 4096")), "{notes:?}");
}

#[test]
fn commands_take_placeholders_prefix_and_environment() {
    let spec = spec(TrainingStage::Align, Method::Full);
    let path = Path::new("/project/04-align/spec.json");
    let mut settings = settings("command");
    settings.command =
        ["train", "--spec={spec}", "{\"a\": {gpus}}", "{stage}"].map(Into::into).into();
    settings.prefix = ["srun", "--nodes={nodes}"].map(Into::into).into();
    settings.env.insert("ELO_SEED".into(), "7".into());
    let backend = Backend::find(&settings).unwrap();
    let launch = backend.launch(path, &spec, &settings).unwrap();
    let expected =
        ["srun", "--nodes=1", "train", "--spec=/project/04-align/spec.json", "{\"a\": 1}", "align"];
    assert_eq!(launch.program, expected);
    assert_eq!(launch.env["ELO_SEED"], "7");
    assert_eq!(launch.env["ELO_DATA"], "/project/data/align.jsonl");
    assert_eq!(launch.directory, Path::new("/project/04-align"));
    for (bad, said) in [("{spce}", "no such placeholder"), ("{config}", "no configuration")] {
        settings.command = vec![bad.into()];
        let error = backend.launch(path, &spec, &settings).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
    settings.name = "axolotl".into();
    settings.command = vec!["axolotl".into(), "{config}".into()];
    let launch = Backend::find(&settings).unwrap().launch(path, &spec, &settings).unwrap();
    assert_eq!(launch.program[3], "/project/04-align/axolotl.yml");
    assert!(launch.env["PYTHONPATH"].starts_with("/project/04-align"));
}

#[test]
fn adapters_are_merged_by_a_script_outside_the_prefix() {
    let spec = spec(TrainingStage::Align, Method::Lora);
    let path = Path::new("/project/04-align/spec.json");
    let mut settings = settings("axolotl");
    settings.prefix = vec!["srun".into()];
    let backend = Backend::find(&settings).unwrap();
    let launch = backend.launch(path, &spec, &settings).unwrap();
    let script = "/project/04-align/train-and-merge.sh";
    assert_eq!(launch.program[..4], ["sh", script, "srun", "axolotl"]);
    let files = backend.native(&spec, &settings).unwrap();
    let script = files.iter().find(|file| file.name == "train-and-merge.sh").unwrap();
    assert!(script.content.ends_with("exec axolotl merge-lora /project/04-align/axolotl.yml\n"));
}

#[test]
fn unknown_backends_are_named_with_what_there_is() {
    let error = |name: &str| Backend::find(&settings(name)).map(|_| ()).unwrap_err();
    let text = error("axolot").to_string();
    assert!(text.contains("did you mean `axolotl`"), "{text}");
    assert!(error("axolot").hint().unwrap().contains("llama-factory"));
    assert!(error("./nowhere").to_string().contains("no such file"));
    assert!(error("/etc/passwd").to_string().contains("not executable"));
}

/// A Trainer's directory with a checkpoint at `step` of 20, its state, and a model at the top.
fn trained(step: u64, model_is_newer: bool) -> (tempfile::TempDir, Spec) {
    let root = tempfile::tempdir().unwrap();
    let mut spec = spec(TrainingStage::Align, Method::Full);
    spec.out = Destinations {
        model: root.path().join("model"),
        work: root.path().join("work"),
        events: root.path().join("events.jsonl"),
        result: root.path().join("result.json"),
    };
    let output = spec.out.work.join("axolotl");
    let checkpoint = output.join(format!("checkpoint-{step}"));
    fs::create_dir_all(&checkpoint).unwrap();
    let state = format!(
        r#"{{"global_step": {step}, "max_steps": 20, "num_input_tokens_seen": 0,
            "log_history": [{{"loss": 2.5, "step": 10}}, {{"loss": NaN, "step": {step}}}]}}"#
    );
    let write_model = || {
        fs::write(output.join("model.safetensors"), b"weights").unwrap();
        fs::write(output.join("config.json"), b"{}").unwrap();
    };
    if !model_is_newer {
        write_model();
        thread::sleep(Duration::from_millis(20));
    }
    fs::write(checkpoint.join("trainer_state.json"), state).unwrap();
    if model_is_newer {
        thread::sleep(Duration::from_millis(20));
        write_model();
    }
    (root, spec)
}

#[test]
fn completion_is_read_from_the_trainer_state() {
    let backend = Backend::find(&settings("axolotl")).unwrap();
    let (_root, spec) = trained(20, true);
    let outcome = backend.outcome(&spec).unwrap().unwrap();
    assert_eq!((outcome.status, outcome.steps, outcome.steps_total), (Status::Complete, 20, 20));
    assert_eq!(outcome.final_loss, Some(2.5));
    assert!(spec.out.model.join("model.safetensors").is_file());
    assert!(!spec.out.work.join("axolotl/model.safetensors").exists());
    // Told again, the same.
    assert_eq!(backend.outcome(&spec).unwrap().unwrap(), outcome);
}

#[test]
fn a_half_trained_model_is_never_taken() {
    let backend = Backend::find(&settings("axolotl")).unwrap();
    // Stopped at step 10, and a model that looks complete; at step 20, but the model is older than the checkpoint.
    for (step, newer) in [(10, true), (20, false)] {
        let (_root, spec) = trained(step, newer);
        let outcome = backend.outcome(&spec).unwrap().unwrap();
        assert_eq!(outcome.status, Status::Interrupted);
        assert!(outcome.resume.unwrap().ends_with(format!("checkpoint-{step}")));
        assert!(!spec.out.model.exists());
    }
}

#[test]
fn checkpoints_that_were_being_written_are_set_aside() {
    let (_root, spec) = trained(10, true);
    let output = spec.out.work.join("axolotl");
    let broken = output.join("checkpoint-15");
    fs::create_dir_all(&broken).unwrap();
    fs::write(broken.join("trainer_state.json"), "{}").unwrap();
    fs::write(broken.join("checkpoint-is-incomplete.txt"), "").unwrap();
    let settings = settings("axolotl");
    let backend = Backend::find(&settings).unwrap();
    let path = spec.out.result.with_file_name("spec.json");
    let launch = backend.launch(&path, &spec, &settings).unwrap();
    assert!(output.join("incomplete-15").is_dir() && !broken.exists());
    assert!(output.join("checkpoint-10").is_dir());
    let file = output.join("axolotl_checkpoint.save");
    assert_eq!(launch.stop, Stop::TouchThenTerminate { file });
}

#[test]
fn llama_factory_progress_becomes_events() {
    let root = tempfile::tempdir().unwrap();
    let mut spec = spec(TrainingStage::Pretrain, Method::Layers);
    spec.out.work = root.path().to_owned();
    let output = root.path().join("llama-factory");
    fs::create_dir_all(&output).unwrap();
    let mut events = Backend::find(&settings("llama-factory")).unwrap().events(&spec).unwrap();
    assert_eq!(events.poll().unwrap(), []);
    let log = output.join("trainer_log.jsonl");
    let line = r#"{"current_steps": 10, "total_steps": 40, "loss": 2.25, "lr": 5e-06, "throughput": 12.5, "total_tokens": 800}"#;
    fs::write(&log, format!("{line}\n{{\"current_st")).unwrap();
    let start = Event::Start { steps_total: Some(40), resumed_at: None };
    let step = Event::Step(StepEvent {
        step: 10,
        loss: Some(2.25),
        lr: Some(5e-6),
        tokens: Some(800),
        tok_s: Some(12.5),
        grad_norm: None,
    });
    assert_eq!(events.poll().unwrap(), [start, step]);
    fs::write(&log, format!("{line}\n{{\"current_steps\": 20, \"loss\": NaN}}\n")).unwrap();
    let step = Event::Step(StepEvent { step: 20, ..StepEvent::default() });
    assert_eq!(events.poll().unwrap(), [step]);
    let checkpoint = output.join("checkpoint-20");
    fs::create_dir_all(&checkpoint).unwrap();
    fs::write(checkpoint.join("trainer_state.json"), "{}").unwrap();
    assert_eq!(events.poll().unwrap(), [Event::Checkpoint { step: 20, dir: Some(checkpoint) }]);
}
