//! Held-out loss after every stage, benchmarks, and commands of the user's.

use std::fs::{self, OpenOptions};
use std::path::Path;
use std::process::{Command, Stdio};

use super::Driver;
use crate::audit::{DiffOptions, Heatmap, diff};
use crate::backend::{MeasureRequest, MeasureSlice, measure};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, IoContext as _, Result};
use crate::pipeline::benchmarks;
use crate::pipeline::graph::{Input, Node};
use crate::pipeline::project::{Evaluate, Perplexity};
use crate::pipeline::record::Measured;
use crate::pipeline::report;

use super::witness::Eyes;

/// Multiplications and additions that a measurement may take unless it is asked for: some minutes on a few cores.
const AFFORDABLE: u64 = 20_000_000_000_000;

/// The base model, among the names of stages.
const BASE: &str = "base";

impl Driver<'_> {
    /// Held-out loss of the models that the run starts from.
    pub(super) fn measure_baselines(&mut self) -> Result<()> {
        let mut models = vec![(BASE, self.base.root().to_owned())];
        models.extend(self.instruct.as_ref().map(|model| ("instruct", model.root().to_owned())));
        for (name, path) in models {
            let measured = self.measure(&path, name)?;
            if !measured.is_empty() {
                self.record.baselines.insert(name.to_owned(), measured);
            }
        }
        Ok(())
    }

    /// Held-out loss of a model, if it is wanted and affordable. Known figures are not computed again.
    pub(super) fn measure(&mut self, model: &Path, name: &str) -> Result<Vec<Measured>> {
        let evaluate = &self.loaded.project.evaluate;
        let Some(prepared) = &self.prepared else { return Ok(Vec::new()) };
        if evaluate.perplexity == Perplexity::Never || prepared.held_out.is_empty() {
            return Ok(Vec::new());
        }
        let checkpoint = Checkpoint::open(model)?;
        let bytes: u64 = prepared.held_out.iter().map(|slice| slice.bytes).sum();
        let cost = 2 * super::spec::Tensors::of(&checkpoint)
            .parameters(|_| true)
            .saturating_mul(bytes / 3);
        if evaluate.perplexity == Perplexity::Auto && cost > AFFORDABLE {
            self.note_once(
                "held-out perplexity is not computed: the CPU would take long; `evaluate.perplexity: always` does it",
            );
            return Ok(Vec::new());
        }
        let chats = self.instruct.as_ref().map(|instruct| instruct.root().to_owned());
        let request = MeasureRequest {
            model: model.to_owned(),
            chat_tokenizer: chats,
            slices: prepared
                .held_out
                .iter()
                .map(|slice| MeasureSlice {
                    name: slice.name.clone(),
                    path: self.data_dir().join(&slice.file),
                    format: slice.format,
                })
                .collect(),
            sequence_length: evaluate.sequence_length,
            threads: self.settings.threads.unwrap_or(0),
        };
        let digests: Vec<&str> = prepared.held_out.iter().map(|s| s.digest.as_str()).collect();
        let digests = digests.join(" ");
        let stop = || self.witness.stop();
        let digest = self.store.digest(model, &stop)?;
        let key = format!("{digest} {} {digests}", evaluate.sequence_length);
        let key = blake3::hash(key.as_bytes()).to_hex().to_string();
        if let Some(known) = self.store.measured(&key) {
            return Ok(known.clone());
        }
        self.witness.progress(&format!("measuring {name}"), 0, 0);
        match measure(&request, &|| self.witness.stop()) {
            Ok(losses) => {
                let measured: Vec<Measured> = losses
                    .into_iter()
                    .map(|loss| Measured {
                        slice: loss.slice,
                        loss: loss.loss,
                        perplexity: loss.loss.exp(),
                        bits_per_byte: loss.bits_per_byte,
                        tokens: loss.tokens,
                    })
                    .collect();
                self.store.put_measured(key, measured.clone())?;
                Ok(measured)
            }
            Err(error @ Error::Interrupted { .. }) => Err(error),
            Err(error) if evaluate.perplexity == Perplexity::Auto => {
                self.note_once(&format!("held-out perplexity is not computed: {error}"));
                Ok(Vec::new())
            }
            Err(error) => Err(error),
        }
    }

    fn note_once(&self, note: &str) {
        if self.noted.borrow_mut().insert(note.to_owned()) {
            self.witness.note(note);
        }
    }

    /// The user's commands after a stage. They serve the user, not the run: failing is a warning.
    pub(super) fn hooks(&self, node: &Node) -> Result<()> {
        let Some(commands) = self.loaded.project.evaluate.after.get(&node.name) else {
            return Ok(());
        };
        let model = std::path::absolute(self.model(node)).at("find", self.model(node))?;
        let model = model.to_string_lossy();
        for command in commands {
            let filled: Vec<String> =
                command.iter().map(|part| part.replace("{model}", &model)).collect();
            let log = self.store.out().join(&node.dir).join("hooks.txt");
            if let Err(error) = run_logged(&filled, &log) {
                self.witness.note(&format!("after {}: {error}", node.name));
            }
        }
        Ok(())
    }

    /// Benchmarks on the models that are asked for, then pictures.
    pub(super) fn evaluate(&mut self) -> Result<()> {
        let evaluate = self.loaded.project.evaluate.clone();
        let dir = self.store.out().join(self.node("evaluate")?.dir.clone());
        fs::create_dir_all(&dir).at("create", &dir)?;
        if !evaluate.tasks.is_empty() {
            for name in self.benchmarked() {
                if self.witness.stop() {
                    return Err(Error::Interrupted { resumable: true });
                }
                self.benchmark(&name, &evaluate, &dir)?;
            }
        }
        self.draw(&dir)
    }

    /// Scores of a model, kept with the stage that made it. What is measured already is not measured again.
    fn benchmark(&mut self, name: &str, evaluate: &Evaluate, dir: &Path) -> Result<()> {
        let node = if name == BASE { None } else { Some(self.node(name)?.clone()) };
        let model = node.as_ref().map_or_else(|| self.base.root().to_owned(), |n| self.model(n));
        let model = std::path::absolute(&model).at("find", &model)?;
        let out = dir.join(name);
        let out = std::path::absolute(&out).at("find", &out)?;
        if !out.is_dir() {
            // The directory gets its name when every call has ended well.
            let unfinished = out.with_extension("unfinished");
            if unfinished.exists() {
                fs::remove_dir_all(&unfinished).at("remove", &unfinished)?;
            }
            fs::create_dir_all(&unfinished).at("create", &unfinished)?;
            let seed = self.loaded.project.seed;
            for command in benchmarks::command(evaluate, &model, &unfinished, seed, name == "sft") {
                self.witness.note(&format!("{name}: {}", command.join(" ")));
                run_logged(&command, &dir.join(format!("{name}.txt")))?;
            }
            fs::rename(&unfinished, &out).at("rename", &unfinished)?;
        }
        let scores = benchmarks::read(&out)?;
        match node {
            None => _ = self.record.baseline_scores.insert(name.to_owned(), scores),
            Some(node) => {
                let mut record = self.store.stage(&node.dir)?.unwrap_or_default();
                record.scores = scores;
                self.store.put_stage(&node.dir, &record)?;
            }
        }
        Ok(())
    }

    /// `base` and the last stage, unless the project says otherwise.
    fn benchmarked(&self) -> Vec<String> {
        let asked = &self.loaded.project.evaluate.task_stages;
        if !asked.is_empty() {
            return asked.clone();
        }
        let last = self.last_model().map(|node| node.name.clone());
        std::iter::once(BASE.to_owned()).chain(last).collect()
    }

    /// The last stage of the main run that has a model.
    pub(super) fn last_model(&self) -> Option<&Node> {
        let has_model = |node: &&Node| !node.is_control() && self.model(node).is_dir();
        self.nodes.iter().rev().find(has_model)
    }

    /// What changed, layer by module: after the layers went back, and in the end.
    fn draw(&self, dir: &Path) -> Result<()> {
        let base = self.open_input(&Input::Base)?;
        let last = self.last_model().map(|node| node.name.clone());
        let mut stages = vec!["inject".to_owned()];
        stages.extend(last.filter(|name| name != "inject"));
        for name in stages {
            let input = Input::Stage(name.clone());
            let Ok(model) = self.open_input(&input) else { continue };
            let eyes = Eyes::on(self.witness, "comparing");
            let report = diff(&base, &model, &DiffOptions::default(), &eyes)?;
            let path = dir.join(format!("{name}.svg"));
            fs::write(&path, Heatmap::of(&report).render()).at("write", &path)?;
        }
        Ok(())
    }

    /// Writes the report of what the record holds.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn report(&self) -> Result<std::path::PathBuf> {
        let out = self.store.out();
        let dir = out.join("07-evaluate");
        let maps = self.nodes.iter().filter_map(|node| {
            let svg = fs::read_to_string(dir.join(format!("{}.svg", node.name))).ok()?;
            Some(format!("<figure>{svg}</figure>"))
        });
        let maps = maps.collect::<String>();
        let heatmap = (!maps.is_empty()).then_some(maps);
        let extra = report::Extra { title: None, outlook: self.outlook().ok() };
        let html = report::render(&self.record, out, heatmap, &extra)?;
        let path = out.join("report.html");
        fs::write(&path, html).at("write", &path)?;
        Ok(path)
    }
}

fn run_logged(command: &[String], log: &Path) -> Result<()> {
    let Some((program, arguments)) = command.split_first() else { return Ok(()) };
    let file = OpenOptions::new().create(true).append(true).open(log).at("open", log)?;
    let errors = file.try_clone().at("open", log)?;
    let status = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(file)
        .stderr(errors)
        .status()
        .at("start", Path::new(program))?;
    if status.success() {
        return Ok(());
    }
    Err(Error::Backend {
        stage: "evaluate",
        problem: format!("`{program}` ended with {status}"),
        log: log.to_owned(),
        tail: crate::backend::log_tail(log, 20),
        hint: "correct it and run again; models are not made anew".into(),
    })
}
