//! External backends through the library: the example, and others that misbehave.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use elo_surgery::backend::protocol::{Event, Spec, Status};
use elo_surgery::backend::{Backend, BackendSettings, Launch, Origin, list, parse_event};
use serde_json::json;
use tempfile::TempDir;

fn example() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/backends/elo-backend-copy")
}

fn named(name: &str) -> BackendSettings {
    BackendSettings { name: name.to_owned(), ..BackendSettings::default() }
}

/// Settings that look for backends in one directory, and in /bin for what scripts need.
fn on_path(name: &str, directory: &Path) -> BackendSettings {
    let path = format!("{}:/usr/bin:/bin", directory.display());
    BackendSettings { env: [("PATH".to_owned(), path)].into(), ..named(name) }
}

fn script(directory: &Path, name: &str, body: &str) -> PathBuf {
    let path = directory.join(name);
    fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// A spec in a stage directory, with a model to copy.
fn stage() -> (TempDir, PathBuf, Spec) {
    let root = TempDir::new().unwrap();
    let model = root.path().join("input");
    fs::create_dir(&model).unwrap();
    fs::write(model.join("model.safetensors"), b"weights").unwrap();
    let out = |name: &str| root.path().join(name);
    let spec = json!({
        "protocol": 1, "run": "r", "stage": "align", "attempt": 1,
        "model": { "dir": model, "family": "llama", "layer_class": null, "layers": 2, "parameters": 10,
                   "dtype": "bf16", "tied": false, "digest": "" },
        "tokenizer": { "dir": model, "digest": "" },
        "trainable": { "method": "full", "regex": [], "tensors": ["lm_head.weight"] },
        "data": [],
        "train": { "epochs": 1, "max_steps": null, "sequence_length": 128, "packing": "doc-mask",
                   "micro_batch": 1, "accumulation": 1, "optimizer": "adamw", "learning_rate": 0.001,
                   "schedule": "cosine", "warmup_ratio": 0.0, "weight_decay": 0.0, "max_grad_norm": 1.0,
                   "seed": 1, "compute": "bf16", "master": "fp32", "loss_on": "all", "checkpointing": true },
        "parallel": { "gpus": 1, "nodes": 1, "sharding": "auto" },
        "out": { "model": out("model"), "work": out("work"), "events": out("events.jsonl"),
                 "result": out("result.json") },
        "save_every_steps": 10, "resume": "auto"
    });
    let path = root.path().join("spec.json");
    fs::write(&path, serde_json::to_string_pretty(&spec).unwrap()).unwrap();
    let spec = serde_json::from_value(spec).unwrap();
    (root, path, spec)
}

fn run(launch: &Launch) -> Option<i32> {
    let mut command = Command::new(&launch.program[0]);
    command.args(&launch.program[1..]).envs(&launch.env).current_dir(&launch.directory);
    command.status().unwrap().code()
}

#[test]
fn the_example_speaks_the_protocol() {
    let settings = named(example().to_str().unwrap());
    let backend = Backend::find(&settings).unwrap();
    assert_eq!((backend.name(), backend.origin()), ("copy", &Origin::Path(example())));
    let description = backend.describe(&settings).unwrap();
    assert_eq!((description.name.as_str(), description.problems.len()), ("copy", 0));

    let (_root, path, spec) = stage();
    backend.check(&path, &spec, &settings).unwrap();
    assert_eq!(backend.outcome(&spec).unwrap(), None);
    let launch = backend.launch(&path, &spec, &settings).unwrap();
    assert_eq!(run(&launch), Some(0));
    let outcome = backend.outcome(&spec).unwrap().unwrap();
    assert_eq!((outcome.status, outcome.final_loss), (Status::Complete, Some(2.5)));
    assert_eq!(fs::read(spec.out.model.join("model.safetensors")).unwrap(), b"weights");
    let events = fs::read_to_string(&spec.out.events).unwrap();
    let events: Vec<Event> = events.lines().map(|line| parse_event(line).unwrap()).collect();
    assert_eq!(events[0], Event::Start { steps_total: Some(1), resumed_at: None });
    assert!(matches!(&events[1], Event::Step(step) if step.loss == Some(2.5)));
    assert_eq!(events[2], Event::End { status: Status::Complete });

    fs::write(&path, "{}").unwrap();
    let error = backend.check(&path, &spec, &settings).unwrap_err().to_string();
    assert!(error.contains("not protocol 1"), "{error}");
}

#[test]
fn backends_on_path_are_found_listed_and_shadowed() {
    let (first, second) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let copy = first.path().join("elo-backend-copy");
    fs::copy(example(), &copy).unwrap();
    let hidden = script(second.path(), "elo-backend-copy", "exit 1");
    script(second.path(), "elo-backend-axolotl", "exit 1");
    fs::write(second.path().join("elo-backend-plain"), "").unwrap();
    let mut settings = on_path("copy", first.path());
    let path = format!("{}:{}", first.path().display(), second.path().display());
    settings.env.insert("PATH".into(), format!("{path}:/usr/bin:/bin"));

    assert_eq!(Backend::find(&settings).unwrap().origin(), &Origin::OnPath(copy));
    let listings = list(Some(&settings));
    let get = |name: &str| listings.iter().find(|listing| listing.name == name).unwrap();
    assert_eq!(get("copy").version.as_deref(), Some("1.0"));
    assert_eq!(get("copy").shadows, [hidden]);
    assert_eq!(get("axolotl").origin, Origin::BuiltIn);
    assert_eq!(get("axolotl").shadows.len(), 1);
    assert!(get("axolotl").problems[0].contains("pip install 'axolotl[deepspeed]'"));
    assert!(get("plain").problems[0].contains("not executable"));
    assert!(get("builtin").problems.is_empty() || !cfg!(feature = "trainer"));

    settings.name = "plain".into();
    let error = Backend::find(&settings).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("not executable"), "{error}");
    settings.name = "cpoy".into();
    let error = Backend::find(&settings).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("did you mean `copy`"), "{error}");
}

fn problem(body: &str) -> String {
    let root = TempDir::new().unwrap();
    script(root.path(), "elo-backend-odd", body);
    let settings = on_path("odd", root.path());
    Backend::find(&settings).unwrap().describe(&settings).unwrap().problems.join("; ")
}

#[test]
fn odd_descriptions_are_problems() {
    assert!(problem("echo hello").contains("no valid JSON description"));
    assert!(
        problem(r#"echo '{"protocol": [2, 3], "name": "odd", "version": "1"}'"#)
            .contains("speaks protocol 2, 3, this program speaks 1")
    );
    assert!(problem("echo 'no torch' >&2; exit 69").contains("no torch"));
    // Far more output than is read: the rest does not fill memory, and the writer is not waited for.
    assert!(!problem("yes | head -c 5000000").is_empty());
}

#[test]
fn a_backend_that_hangs_is_stopped() {
    let begun = Instant::now();
    assert!(problem("sleep 600 & wait").contains("took more than 10 s"));
    assert!(begun.elapsed() < Duration::from_secs(20));
}
