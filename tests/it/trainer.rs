//! The built-in trainer against PyTorch's numbers (`fixtures/trainer`, made by `tests/peers/check_trainer.py`), against
//! itself (threads, interruption, memory saving) and against inputs it must refuse.

#![allow(clippy::cast_precision_loss, reason = "counts of tokens")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use elo_surgery::checkpoint::Checkpoint;
use elo_surgery::trainer::{
    LossOn, Schedule, Slice, Status, Step, Training, Watch, batches, evaluate, supports, train,
};
use elo_surgery::{Error, Result};
use serde_json::Value;
use tempfile::TempDir;

use super::support::checkpoint::{Raw, read_raw};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/trainer").join(name)
}

/// Remembers what it is told, and says stop after some steps.
#[derive(Default)]
struct Log {
    steps: Mutex<Vec<Step>>,
    warnings: Mutex<Vec<String>>,
    stop_after: Option<usize>,
}

impl Watch for Log {
    fn step(&self, step: &Step) {
        self.steps.lock().unwrap().push(step.clone());
    }

    fn warn(&self, message: &str) {
        self.warnings.lock().unwrap().push(message.to_owned());
    }

    fn stop(&self) -> bool {
        self.stop_after.is_some_and(|n| self.steps.lock().unwrap().len() >= n)
    }
}

fn names(model: &str, prefix: &str) -> Vec<String> {
    let model = Checkpoint::open(fixture(model)).unwrap();
    model.tensors().map(|(n, _)| n.to_owned()).filter(|n| n.starts_with(prefix)).collect()
}

/// A short run in a directory of its own.
fn training(model: &str, dir: &Path) -> Training {
    Training {
        model: fixture(model),
        tokenizer: fixture("tokenizer"),
        trainable: names(model, "model.layers.1."),
        data: vec![fixture("text.jsonl")],
        epochs: 2,
        max_steps: Some(6),
        sequence_length: 64,
        micro_batch: 2,
        accumulation: 2,
        learning_rate: 3e-3,
        out: dir.join("out"),
        work: dir.join("work"),
        threads: 1,
        ..Training::default()
    }
}

/// Trains and gives the bytes of every tensor.
fn trained(training: &Training) -> Raw {
    let done = train(training, &Log::default()).unwrap();
    assert_eq!((done.status, done.steps), (Status::Complete, done.steps_total));
    read_raw(&training.out)
}

#[test]
fn losses_and_gradient_norms_are_those_of_pytorch() {
    let golden: Value = serde_json::from_slice(&fs::read(fixture("golden.json")).unwrap()).unwrap();
    for variant in golden["variants"].as_array().unwrap() {
        let dir = TempDir::new().unwrap();
        let model = variant["model"].as_str().unwrap();
        let mut settings = golden["run"].clone();
        settings["schedule"] = variant["schedule"].clone();
        let read: Training = serde_json::from_value(settings).unwrap();
        let prefix = variant["trainable"].as_str().unwrap_or("");
        let run = Training {
            trainable: names(model, prefix),
            threads: 2,
            ..Training { out: dir.path().join("o"), work: dir.path().join("w"), ..read }
        };
        let Training { model: from, tokenizer, data, .. } = training(model, dir.path());
        let run = Training { model: from, tokenizer, data, ..run };
        let log = Log::default();
        train(&run, &log).unwrap();
        let steps = log.steps.lock().unwrap();
        let numbers = |key: &str| -> Vec<f64> {
            variant[key].as_array().unwrap().iter().map(|n| n.as_f64().unwrap()).collect()
        };
        let (losses, norms) = (numbers("loss"), numbers("grad_norm"));
        assert_eq!(steps.len(), losses.len());
        for (step, (loss, norm)) in steps.iter().zip(losses.iter().zip(&norms)) {
            let near = |a: f64, b: f64, bound: f64| (a - b).abs() <= bound * b;
            let what = format!("{model} {}: {step:?}, torch {loss} {norm}", variant["kind"]);
            assert!(near(step.loss, *loss, 1e-5) && near(step.grad_norm, *norm, 1e-4), "{what}");
        }
    }
}

#[test]
fn threads_and_recomputing_change_no_bit() {
    for model in ["llama", "qwen3"] {
        let dirs: Vec<TempDir> = (0..4).map(|_| TempDir::new().unwrap()).collect();
        let run = |dir: &TempDir, threads, recompute| {
            let mut run = Training { threads, recompute, ..training(model, dir.path()) };
            run.trainable = names(model, "");
            trained(&run)
        };
        let one = run(&dirs[0], 1, false);
        assert!(one == run(&dirs[1], 2, false) && one == run(&dirs[2], 3, false));
        assert!(one == run(&dirs[3], 1, true));
    }
}

#[test]
fn an_interrupted_run_ends_with_the_bytes_of_an_undisturbed_one() {
    let (calm, broken) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let whole = trained(&training("qwen2", calm.path()));
    let run = Training { save_every: 2, ..training("qwen2", broken.path()) };
    let log = Log { stop_after: Some(3), ..Log::default() };
    let done = train(&run, &log).unwrap();
    assert_eq!((done.status, done.steps, done.steps_total), (Status::Interrupted, 3, 6));
    assert_eq!(done.resume, Some(run.work.join("checkpoint-3")));
    assert!(!run.out.exists());

    // Neither a half-written checkpoint nor an empty directory is picked up.
    fs::create_dir(run.work.join(".checkpoint-5.unfinished")).unwrap();
    fs::create_dir(run.work.join("checkpoint-5")).unwrap();
    let other = Training { learning_rate: 1e-3, ..run.clone() };
    let refused = train(&other, &Log::default()).unwrap_err();
    assert!(
        matches!(&refused, Error::CannotResume { difference, .. } if difference.contains("settings"))
    );
    let log = Log::default();
    let done = train(&run, &log).unwrap();
    assert_eq!((done.status, done.steps), (Status::Complete, 6));
    assert_eq!(log.steps.lock().unwrap().first().unwrap().step, 4);
    assert!(read_raw(&run.out) == whole);
    let mut left: Vec<_> =
        fs::read_dir(&run.work).unwrap().map(|e| e.unwrap().file_name()).collect();
    left.sort();
    left.retain(|n| n != ".checkpoint-5.unfinished" && n != "checkpoint-5");
    assert_eq!(left, ["checkpoint-4", "checkpoint-6"]);
}

#[test]
fn a_damaged_checkpoint_is_not_continued() {
    let dir = TempDir::new().unwrap();
    let run = training("mistral", dir.path());
    train(&run, &Log { stop_after: Some(2), ..Log::default() }).unwrap();
    let path = run.work.join("checkpoint-2/state.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&path, bytes).unwrap();
    assert!(matches!(train(&run, &Log::default()), Err(Error::CannotResume { .. })));
}

#[test]
fn frozen_tensors_keep_their_bytes_and_trained_ones_do_not() {
    let dir = TempDir::new().unwrap();
    let run = training("llama", dir.path());
    let (before, after) = (read_raw(&run.model), trained(&run));
    assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
    for (name, old) in &before {
        let new = &after[name];
        assert_eq!((&old.0, &old.1, &old.3), (&new.0, &new.1, &new.3), "{name}");
        assert_eq!(old.2 != new.2, run.trainable.contains(name), "{name}");
    }
    let config = |dir: &Path| fs::read(dir.join("config.json")).unwrap();
    assert_eq!(config(&run.model), config(&run.out));
    assert!(matches!(train(&run, &Log::default()), Err(Error::OutputExists { .. })));
}

/// A copy of a model with a changed config.
fn changed(model: &str, dir: &Path, change: impl FnOnce(&mut Value)) -> PathBuf {
    let copy = dir.join("model");
    fs::create_dir_all(&copy).unwrap();
    fs::copy(fixture(model).join("model.safetensors"), copy.join("model.safetensors")).unwrap();
    let mut config: Value =
        serde_json::from_slice(&fs::read(fixture(model).join("config.json")).unwrap()).unwrap();
    change(&mut config);
    fs::write(copy.join("config.json"), config.to_string()).unwrap();
    copy
}

#[test]
fn models_it_cannot_train_exactly_are_refused_with_all_reasons() {
    for model in ["llama", "mistral", "qwen2", "qwen3"] {
        supports(&Checkpoint::open(fixture(model)).unwrap()).unwrap();
    }
    let dir = TempDir::new().unwrap();
    let model = changed("llama", dir.path(), |config| {
        config["attention_bias"] = false.into();
        config["intermediate_size"] = 40.into();
    });
    let refused = supports(&Checkpoint::open(&model).unwrap()).unwrap_err().to_string();
    assert!(refused.contains("q_proj.bias") && refused.contains("[48, 32]"), "{refused}");

    let refusal = |run: &Training| train(run, &Log::default()).unwrap_err().to_string();
    let long = Training { sequence_length: 65, ..training("mistral", dir.path()) };
    assert!(refusal(&long).contains("sees 64 tokens"));
    let model = changed("qwen2", dir.path(), |c| c["attention_dropout"] = 0.1.into());
    let dropout = Training { model, ..training("qwen2", dir.path()) };
    assert!(refusal(&dropout).contains("attention_dropout"));
    let unknown = Training { trainable: vec!["lm_head".into()], ..training("llama", dir.path()) };
    assert!(refusal(&unknown).contains("`lm_head`"));
    assert!(!dir.path().join("out").exists());
}

#[test]
fn unusable_data_is_named_by_file_and_line() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("data.jsonl");
    let outcome = |content: &[u8]| -> Result<()> {
        fs::write(&path, content).unwrap();
        let run = Training { data: vec![path.clone()], ..training("llama", dir.path()) };
        train(&run, &Log::default()).map(drop)
    };
    for (content, line, word) in [
        (&b"{\"text\": \"a\"}\n\n{\"text\": 1}\n"[..], Some(3), "not a string"),
        (b"{\"text\": \"a\"}\n{\"text\"", Some(2), "EOF"),
        (b"{\"text\": \"a\"}\n\xff\n", Some(2), "UTF-8"),
        (b"", None, "no records"),
        (b"{\"text\": \"\"}", None, "no token"),
        (b"{\"messages\": [{\"role\": \"user\"}]}", Some(1), "`content`"),
    ] {
        match outcome(content).unwrap_err() {
            Error::Data { line: at, problem, .. } => {
                assert!(at == line && problem.contains(word), "{at:?} {problem}");
            }
            other => panic!("{other}"),
        }
    }
    let model = changed("llama", dir.path(), |_| {});
    let small = Training { tokenizer: model, ..training("llama", dir.path()) };
    assert!(matches!(train(&small, &Log::default()), Err(Error::Io { .. })), "no tokenizer.json");
}

#[test]
fn a_loss_that_is_no_number_ends_the_run() {
    let dir = TempDir::new().unwrap();
    let run = Training {
        learning_rate: 1e30,
        max_grad_norm: 0.0,
        schedule: Schedule::Constant,
        ..training("mistral", dir.path())
    };
    let error = train(&run, &Log::default()).unwrap_err().to_string();
    assert!(error.starts_with("step ") && error.contains("finite"), "{error}");
    assert!(!run.out.exists());
}

#[test]
fn chats_learn_what_the_assistant_says() {
    let dir = TempDir::new().unwrap();
    let run = Training {
        data: vec![fixture("chat.jsonl")],
        loss_on: LossOn::Assistant,
        max_steps: Some(30),
        epochs: 30,
        trainable: names("qwen2", ""),
        ..training("qwen2", dir.path())
    };
    let log = Log::default();
    train(&run, &log).unwrap();
    let warnings = log.warnings.lock().unwrap();
    assert!(warnings.iter().any(|w| w.contains("1 chat(s) longer than 64")), "{warnings:?}");
    let slices =
        |name: &str| Slice { name: name.to_owned(), path: fixture(&format!("{name}.jsonl")) };
    let of = |model: &Path| -> BTreeMap<String, f64> {
        let slices = [slices("text"), slices("chat")];
        let found = evaluate(model, &run.tokenizer, &slices, 64, 2, &Log::default()).unwrap();
        for p in &found {
            assert!((p.perplexity.ln() - p.loss).abs() < 1e-9);
            let bits = p.loss * p.tokens as f64 / std::f64::consts::LN_2;
            assert!((p.bits_per_byte - bits / p.bytes as f64).abs() < 1e-9);
        }
        found.into_iter().map(|p| (p.name, p.loss)).collect()
    };
    let (before, after) = (of(&run.model), of(&run.out));
    assert!(after["chat"] < before["chat"] - 1.0, "{before:?} {after:?}");
}

/// The predicted tokens of each document of the first step that takes everything.
fn predicted(training: &Training) -> Result<Vec<String>> {
    let run = Training { micro_batch: 1000, ..training.clone() };
    let tokenizer: Value =
        serde_json::from_slice(&fs::read(fixture("tokenizer/tokenizer.json")).unwrap()).unwrap();
    let words: BTreeMap<u64, &str> = tokenizer["model"]["vocab"]
        .as_object()
        .unwrap()
        .iter()
        .map(|(word, id)| (id.as_u64().unwrap(), word.as_str()))
        .collect();
    let mut texts = Vec::new();
    for micro in batches(&run, 1, &Log::default())?.concat() {
        let mut targets = micro.targets.iter();
        for length in micro.lengths {
            let own = targets.by_ref().take(length).filter(|t| **t != u32::MAX);
            texts.push(own.map(|t| words[&u64::from(*t)]).collect());
        }
    }
    texts.sort();
    Ok(texts)
}

#[test]
fn of_chats_the_assistants_words_and_ends_of_turns_are_predicted() {
    let dir = TempDir::new().unwrap();
    let run = Training {
        data: vec![fixture("chat.jsonl")],
        loss_on: LossOn::Assistant,
        ..training("llama", dir.path())
    };
    let want = [" c <|im_end|>", "4<|im_end|>Yes.<|im_end|>", "Hello.<|im_end|>"];
    assert_eq!(predicted(&run).unwrap(), want);
    let all = predicted(&Training { loss_on: LossOn::All, ..run }).unwrap();
    assert!(
        all.iter().any(|t| t == "user\nHi<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n")
    );
}

/// A copy of the tokenizer with a changed `tokenizer.json`.
fn changed_tokenizer(dir: &Path, change: impl FnOnce(&mut Value)) -> PathBuf {
    let copy = dir.join("tokenizer");
    fs::create_dir_all(&copy).unwrap();
    let from = fixture("tokenizer");
    let mut json: Value =
        serde_json::from_slice(&fs::read(from.join("tokenizer.json")).unwrap()).unwrap();
    change(&mut json);
    fs::write(copy.join("tokenizer.json"), json.to_string()).unwrap();
    fs::copy(from.join("tokenizer_config.json"), copy.join("tokenizer_config.json")).unwrap();
    copy
}

#[test]
fn documents_are_encoded_whole_whatever_the_tokenizer_says() {
    let dir = TempDir::new().unwrap();
    let run = training("llama", dir.path());
    let tokenizer = changed_tokenizer(dir.path(), |json| {
        json["truncation"] = serde_json::json!({
            "direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0
        });
    });
    let whole = predicted(&run).unwrap();
    assert_eq!(whole, predicted(&Training { tokenizer, ..run.clone() }).unwrap());
    // Every character but the first of each record, and an end for each.
    let lines = fs::read_to_string(&run.data[0]).unwrap();
    let texts = lines.lines().map(|l| serde_json::from_str::<Value>(l).unwrap());
    let characters: usize = texts.map(|t| t["text"].as_str().unwrap().len() - 1).sum();
    let (end, all) = ("<|endoftext|>", whole.concat());
    assert_eq!(all.matches(end).count(), lines.lines().count());
    assert_eq!(all.replace(end, "").len(), characters);
}

#[test]
fn tokens_beyond_the_vocabulary_are_named() {
    let dir = TempDir::new().unwrap();
    let tokenizer = changed_tokenizer(dir.path(), |json| json["model"]["vocab"]["e"] = 200.into());
    let run = Training { tokenizer, ..training("llama", dir.path()) };
    match predicted(&run).unwrap_err() {
        Error::Data { line: Some(1), problem, .. } => assert!(problem.contains("200"), "{problem}"),
        other => panic!("{other}"),
    }
    // Nor is there a chat template here.
    let tokenizer = changed_tokenizer(dir.path(), |_| {});
    let chats = Training { tokenizer, data: vec![fixture("chat.jsonl")], ..run };
    let problem = predicted(&chats).unwrap_err().to_string();
    assert!(problem.contains("no chat template"), "{problem}");
}
