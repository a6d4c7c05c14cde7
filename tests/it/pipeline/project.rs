//! A project in a temporary directory, and what came of it.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::support::fixture;
use crate::support::process::{Elo, Outcome, PROGRAM, Running, elo};
use crate::support::tree::{Tree, tree, weights_and_config};

/// The stages that make a model, in order, without chats.
pub(super) const MODELS: [&str; 4] = ["01-extract", "02-pretrain", "03-inject", "04-align"];
/// No run of these small projects takes this long.
pub(super) const PATIENCE: Duration = Duration::from_mins(2);

/// A project. Its directory goes with it.
pub(super) struct Project {
    temp: TempDir,
    pub(super) yaml: String,
}

impl Project {
    /// A project file and text to train on: `data/en.jsonl`, sixty short documents.
    pub(super) fn new(yaml: &str) -> Self {
        let temp = TempDir::new().unwrap();
        fs::create_dir_all(temp.path().join("p/data")).unwrap();
        fs::create_dir_all(temp.path().join("notes")).unwrap();
        let project = Self { temp, yaml: yaml.to_owned() };
        project.write("elo.yaml", yaml);
        project.write("data/en.jsonl", documents(60));
        project
    }

    /// The directory that is the project's alone.
    pub(super) fn root(&self) -> PathBuf {
        self.temp.path().join("p")
    }

    /// A directory beside it.
    pub(super) fn notes(&self) -> PathBuf {
        self.temp.path().join("notes")
    }

    pub(super) fn path(&self, relative: &str) -> PathBuf {
        self.root().join(relative)
    }

    pub(super) fn write(&self, relative: &str, text: impl AsRef<[u8]>) {
        let path = self.path(relative);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// The same project with one part of its file replaced.
    #[track_caller]
    pub(super) fn change(&mut self, from: &str, to: &str) {
        assert!(self.yaml.contains(from), "`{from}` is not in the project file");
        self.yaml = self.yaml.replace(from, to);
        self.write("elo.yaml", &self.yaml);
    }

    /// A command inside the project.
    pub(super) fn elo(&self, words: &str) -> Elo {
        elo(words).within(&self.root())
    }

    /// `run --no-sync` and more words.
    pub(super) fn run(&self, words: &str) -> Outcome {
        self.elo(&format!("run --no-sync {words}")).run()
    }

    /// A run that has begun.
    pub(super) fn start(&self) -> Running {
        self.elo("run --no-sync").start()
    }

    pub(super) fn json(&self, relative: &str) -> Value {
        let path = self.path(relative);
        let text = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        serde_json::from_slice(&text).unwrap()
    }

    /// The record of a stage, by its directory.
    pub(super) fn record(&self, dir: &str) -> Value {
        self.json(&format!("work/{dir}/stage.json"))
    }

    /// `done`, `failed`, ..; empty without a record.
    pub(super) fn state(&self, dir: &str) -> String {
        let path = self.path(&format!("work/{dir}/stage.json"));
        let Ok(text) = fs::read(path) else { return String::new() };
        let record: Value = serde_json::from_slice(&text).unwrap();
        record["state"].as_str().unwrap().to_owned()
    }

    pub(super) fn model(&self, dir: &str) -> PathBuf {
        self.path(&format!("work/{dir}/model"))
    }

    /// The weights of every stage.
    pub(super) fn models(&self) -> Tree {
        let mut all = Tree::new();
        for dir in MODELS {
            let files = weights_and_config(&self.model(dir));
            all.extend(files.into_iter().map(|(file, digest)| (Path::new(dir).join(file), digest)));
        }
        all
    }

    /// All of the output directory.
    pub(super) fn everything(&self) -> Tree {
        tree(&self.path("work"))
    }

    /// Waits until a file says something, or the run is over.
    pub(super) fn wait_for(
        &self,
        running: &mut Running,
        mut ready: impl FnMut(&Self) -> bool,
    ) -> bool {
        let started = Instant::now();
        while started.elapsed() < PATIENCE {
            if ready(self) {
                return true;
            }
            if running.is_over() {
                return ready(self);
            }
            thread::sleep(Duration::from_millis(2));
        }
        panic!("nothing happened for {PATIENCE:?}");
    }

    /// Processes whose command names this project's directory.
    pub(super) fn processes(&self) -> Vec<(u32, String)> {
        let root = self.temp.path().to_string_lossy().into_owned();
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            if command.contains(&root) {
                found.push((pid, command));
            }
        }
        found
    }

    /// Fails if a process of this project lives on.
    #[track_caller]
    pub(super) fn assert_no_process_left(&self, within: Duration) {
        let started = Instant::now();
        loop {
            let left = self.processes();
            if left.is_empty() {
                return;
            }
            assert!(started.elapsed() < within, "after {within:?} there is {left:?}");
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Short documents of plain words, one JSON object a line.
pub(super) fn documents(count: u32) -> String {
    let mut text = String::new();
    for i in 0..count {
        let number = i * 7919 % 1000;
        let _ = writeln!(
            text,
            r#"{{"text": "document {i} says that {number} is a number and that words follow words, as {i} follows {number}"}}"#
        );
    }
    text
}

/// The project of the mischievous backend: golden models, four stages, every stage in a fraction of a second.
pub(super) fn mischief(mode: &str, more: &str) -> Project {
    let golden = fixture("golden/models");
    let backend =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/pipeline/elo-backend-mischief");
    let mut project = Project::new("");
    let notes = project.notes();
    project.yaml = format!(
        "model: {base}
layers: first,last
backend:
  name: {backend}
  env: {{ MISCHIEF: {mode}, ELO_SURGERY: {PROGRAM}, GOLDEN: {golden}, MISCHIEF_DIR: {notes} }}
{more}
data:
  pretrain: {{ sources: [{{ path: data/en.jsonl, language: en }}], bytes: 3kB }}
  align: {{ bytes: 1kB }}
  held_out: {{ bytes: 500, fraction: 0.1 }}
pretrain: {{ sequence_length: 64, learning_rate: 1.0e-3 }}
align: {{ sequence_length: 64, learning_rate: 1.0e-3 }}
evaluate: {{ perplexity: never }}
",
        base = golden.join("llama31-base").display(),
        backend = backend.display(),
        golden = golden.display(),
        notes = notes.display(),
    );
    project.write("elo.yaml", &project.yaml);
    project
}

/// The bundled example with less of everything: the built-in backend, six steps a stage.
pub(super) fn demo() -> Project {
    let demo = fixture("demo");
    let mut project = Project::new("");
    for (source, bytes) in [("en.txt", 12_000), ("ja.txt", 40_000)] {
        let text = fs::read(demo.join("data").join(source)).unwrap();
        let end = text[..bytes].iter().rposition(|byte| *byte == b'\n').unwrap();
        project.write(&format!("data/{source}"), &text[..=end]);
    }
    project.yaml = format!(
        "model: {base}
layers: first,last
data:
  pretrain:
    sources:
      - {{ path: data/en.txt, language: en, weight: 1 }}
      - {{ path: data/ja.txt, language: ja, weight: 9 }}
    bytes: 10kB
  align: {{ bytes: 6kB }}
  held_out: {{ bytes: 1kB, fraction: 0.15 }}
pretrain: {{ max_steps: 6, sequence_length: 64, batch: 2, learning_rate: 2.0e-3, save_every: 2 }}
align: {{ max_steps: 6, sequence_length: 64, batch: 2, learning_rate: 5.0e-4, save_every: 2 }}
evaluate: {{ perplexity: never }}
",
        base = demo.join("base").display(),
    );
    project.write("elo.yaml", &project.yaml);
    project
}
