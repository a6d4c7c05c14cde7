//! Drives a project from its base model to the adapted one: decides what is up to date, does the rest, keeps the record.
//!
//! A stage is up to date when its record is `done`, its fingerprint is the same and nobody has touched its model. Its
//! fingerprint covers the *content* of its inputs, so a stage that is done again with the same result ends the chain.

mod checks;
mod decide;
mod measure;
mod outlook;
mod preflight;
mod render;
mod spec;
mod surgery;
mod training;
mod witness;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

pub use decide::{Decision, Intent};
pub use render::Rendered;
pub use witness::{NoWitness, Witness};

use super::data::{self, Prepared};
use super::fingerprint;
use super::graph::{Action, Input, Node, model_of, stages};
use super::project::{Loaded, StageTraining};
use super::record::{DataFacts, ModelFacts, Record, StageRecord, State};
use super::store::Store;
use crate::backend::protocol::{DataFile, Description, Spec, TrainingStage};
use crate::backend::{Backend, BackendSettings};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::ops::{self, Extract, Inject};
use crate::plan::Plan;
use spec::Tensors;
use training::Training;
use witness::Eyes;

/// What of a project to do, and how.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The first stage; earlier ones are taken as they are.
    pub from: Option<String>,
    /// The last stage.
    pub until: Option<String>,
    /// Leave the controls out.
    pub skip_controls: bool,
    /// Do the stages again although they are up to date.
    pub force: bool,
    /// Leave out the checks that read every value of a trained model.
    pub trust_backend: bool,
    /// Whether files are flushed to the device before a model appears.
    pub sync: bool,
    /// The command that guards a backend: this program's.
    pub guard: Vec<OsString>,
}

/// A run of a project.
pub struct Driver<'a> {
    loaded: &'a Loaded,
    options: &'a Options,
    witness: &'a dyn Witness,
    store: Store,
    base: Checkpoint,
    instruct: Option<Checkpoint>,
    nodes: Vec<Node>,
    /// Of these, the ones between `from` and `until`.
    range: RangeInclusive<usize>,
    settings: BackendSettings,
    backend: Backend,
    description: Description,
    prepared: Option<Prepared>,
    record: Record,
    /// What has been said once and need not be said again.
    noted: RefCell<BTreeSet<String>>,
}

impl<'a> Driver<'a> {
    /// Opens a project for a run: one at a time.
    ///
    /// # Errors
    /// Models that cannot be opened, layers they do not have, a backend that is not there, a run already at work.
    pub fn open(
        loaded: &'a Loaded,
        options: &'a Options,
        witness: &'a dyn Witness,
    ) -> Result<Self> {
        let store = Store::open(&loaded.out())?;
        Self::with(loaded, options, witness, store)
    }

    /// Opens a project to look at it.
    ///
    /// # Errors
    /// As [`Driver::open`], but a run may be at work.
    pub fn look(
        loaded: &'a Loaded,
        options: &'a Options,
        witness: &'a dyn Witness,
    ) -> Result<Self> {
        let store = Store::read_only(&loaded.out())?;
        Self::with(loaded, options, witness, store)
    }

    fn with(
        loaded: &'a Loaded,
        options: &'a Options,
        witness: &'a dyn Witness,
        store: Store,
    ) -> Result<Self> {
        let project = &loaded.project;
        let model = project.model.as_ref().ok_or_else(|| Error::Project {
            path: loaded.file.clone(),
            problem: "it names no `model`".into(),
            hint: "add `model: path/to/the/base/model`".into(),
        })?;
        let base = Checkpoint::open(loaded.path(model))?;
        let instruct = match &project.instruct {
            Some(path) => Some(Checkpoint::open(loaded.path(path))?),
            None => None,
        };
        let nodes = stages(project, |stage| loaded.training(stage), base.layers())?;
        let range = range(&nodes, options)?;
        let settings = project.backend.settings();
        let backend = Backend::find(&settings)?;
        let description = backend.describe(&settings)?;
        let mut record = store.record()?.unwrap_or_default();
        record.format = 1;
        env!("CARGO_PKG_VERSION").clone_into(&mut record.tool);
        record.project = serde_json::to_value(project).unwrap_or_default();
        record.model = facts(&base, model, &project.layers.to_string().parse()?)?;
        Ok(Self {
            loaded,
            options,
            witness,
            store,
            base,
            instruct,
            nodes,
            range,
            settings,
            backend,
            description,
            prepared: None,
            record,
            noted: RefCell::default(),
        })
    }

    /// The record so far.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Does what is to be done.
    ///
    /// # Errors
    /// Whatever a stage fails at; what was done before is kept, and the next run goes on from there.
    pub fn run(&mut self) -> Result<()> {
        let selected = self.selected();
        let trains = selected.iter().any(|node| matches!(node.action, Action::Train { .. }));
        if trains && !self.description.problems.is_empty() {
            return Err(Error::Unsupported {
                what: format!("backend `{}`", self.backend.name()),
                reason: self.description.problems.join("; "),
                hint: "`elo-surgery backend list` shows what can be used here".into(),
            });
        }
        self.preflight(&selected)?;
        if trains || selected.iter().any(|node| node.action == Action::Evaluate) {
            self.prepare_data()?;
        }
        self.measure_baselines()?;
        let count = selected.len();
        for (index, node) in selected.iter().enumerate() {
            if self.witness.stop() {
                return Err(Error::Interrupted { resumable: true });
            }
            let outcome = self.stage(node, index + 1, count);
            self.gather()?;
            outcome?;
        }
        Ok(())
    }

    /// The stages between `from` and `until`. Controls come along when the whole run does.
    fn selected(&self) -> Vec<Node> {
        let asked = self.nodes[self.range.clone()].iter();
        asked.filter(|node| !(node.is_control() && self.options.skip_controls)).cloned().collect()
    }

    fn prepare_data(&mut self) -> Result<()> {
        let eyes = data_eyes::Eyes(self.witness);
        let prepared = data::prepare(self.loaded, &self.data_dir(), &eyes)?;
        self.record.data = data_facts(&prepared);
        self.prepared = Some(prepared);
        Ok(())
    }

    fn data_dir(&self) -> PathBuf {
        self.store.out().join("data")
    }

    /// Does one stage, if it must be done.
    fn stage(&mut self, node: &Node, index: usize, count: usize) -> Result<()> {
        let inputs = self.inputs(node)?;
        let key = fingerprint::key(&inputs);
        let old = self.store.stage(&node.dir)?;
        if let Some(old) = &old
            && old.key == key
            && old.state == State::Done
            && !self.options.force
            && self.is_intact(node, old)?
        {
            self.clean_up(node);
            self.witness.done(old, false);
            return Ok(());
        }
        self.witness.stage(&node.name, index, count);
        let by_hand = old.is_none() && !self.options.force && self.adoptable(node)?;
        let mut record = match old {
            Some(old) if old.key == key && old.state != State::Done => old,
            None if by_hand => StageRecord::default(),
            old => self.make_room(node, old.as_ref(), &key)?,
        };
        if record.key == key && record.state == State::Done && self.is_intact(node, &record)? {
            self.witness.done(&record, false);
            return Ok(());
        }
        record.name.clone_from(&node.name);
        (record.key, record.inputs) = (key, inputs);
        record.state = State::Running;
        record.error = None;
        record.attempts += 1;
        if record.started == 0 {
            record.started = now();
        }
        self.store.put_stage(&node.dir, &record)?;
        let started = Instant::now();
        let outcome = if by_hand { Ok(()) } else { self.work(node, &mut record) };
        record.seconds += started.elapsed().as_secs_f64();
        match outcome {
            Ok(()) => {
                self.finish(node, &mut record)?;
                self.witness.done(&record, true);
                Ok(())
            }
            Err(error) => {
                record.state = match error {
                    Error::Interrupted { .. } => State::Interrupted,
                    _ => State::Failed,
                };
                record.error = Some(error.to_string());
                self.store.put_stage(&node.dir, &record)?;
                Err(error)
            }
        }
    }

    /// Sets aside what a stage's directory holds, and brings back what these settings gave earlier: its record.
    fn make_room(&self, node: &Node, old: Option<&StageRecord>, key: &str) -> Result<StageRecord> {
        let same = old.filter(|old| old.key == key);
        if let (Some(old), false) = (same, self.options.force) {
            // Its model is gone or was changed: it is made again in its place.
            return Ok(old.clone());
        }
        // What is done again under the same settings must not come straight back.
        let wanted = if same.is_some() { "" } else { key };
        for note in self.store.turn_to(&node.dir, old.map(|old| old.key.as_str()), wanted)? {
            self.witness.note(&format!("{}: {note}", node.name));
        }
        Ok(self.store.stage(&node.dir)?.unwrap_or_default())
    }

    fn work(&mut self, node: &Node, record: &mut StageRecord) -> Result<()> {
        match &node.action {
            Action::Extract { .. } | Action::Inject { .. } | Action::ChatVector { .. } => {
                let plan = self.plan(node)?;
                let eyes = Eyes::on(self.witness, &node.name);
                surgery::carry_out(&plan, &self.model(node), self.options.sync, &eyes)
            }
            Action::Train { input, training } => self.train(node, input, training, record),
            Action::Evaluate => self.evaluate(),
        }
    }

    /// The plan of a stage that is surgery.
    fn plan(&self, node: &Node) -> Result<Plan> {
        match &node.action {
            Action::Extract { layers } => {
                ops::extract(&self.base, &Extract { layers: layers.parse()?, shard_size: None })
            }
            Action::Inject { part, layers } => {
                let part = self.open_input(&Input::Stage(part.clone()))?;
                let request = Inject { layers: Some(layers.parse()?), ..Inject::default() };
                ops::inject(&part, &self.base, &request)
            }
            Action::ChatVector { into } => {
                let instruct = self.instruct.as_ref().ok_or_else(|| Error::Project {
                    path: self.loaded.file.clone(),
                    problem: "a chat vector needs an `instruct` model".into(),
                    hint: "add `instruct: path`, or `chat_vector: {enabled: false}`".into(),
                })?;
                let into = self.open_input(into)?;
                surgery::chat_vector(instruct, &self.base, &into, &self.loaded.project.chat_vector)
            }
            Action::Train { .. } | Action::Evaluate => Err(Error::Usage {
                problem: format!("`{}` is no surgery", node.name),
                hint: String::new(),
            }),
        }
    }

    fn train(
        &mut self,
        node: &Node,
        input: &Input,
        training: &StageTraining,
        record: &mut StageRecord,
    ) -> Result<()> {
        let model = self.open_input(input)?;
        let spec = self.spec(node, &model, input, training, record.attempts)?;
        record.backend = Some(format!("{} {}", self.description.name, self.description.version));
        let trained: BTreeSet<&str> = spec.trainable.tensors.iter().map(String::as_str).collect();
        record.trained_parameters =
            Some(Tensors::of(&model).parameters(|name| trained.contains(name)));
        let dir = self.store.out().join(&node.dir);
        record.events = Some(node.dir.join("events.jsonl"));
        record.log = Some(node.dir.join("log.txt"));
        let speech = self.instruct.as_ref().filter(|_| training.stage == TrainingStage::Sft);
        Training {
            backend: &self.backend,
            settings: &self.settings,
            guard: &self.options.guard,
            dir: &dir,
            spec: &spec,
            input: &model,
            speech,
            trust: self.options.trust_backend,
            sync: self.options.sync,
            witness: self.witness,
        }
        .run(record)
    }

    /// What the backend is asked to do in a stage.
    fn spec(
        &mut self,
        node: &Node,
        model: &Checkpoint,
        input: &Input,
        training: &StageTraining,
        attempt: u32,
    ) -> Result<Spec> {
        let tokenizer = self.tokenizer(model, training.stage);
        let model_digest = self.digest_of(input)?;
        let tokenizer_digest = fingerprint::digest_of_files(&tokenizer, &surgery::SPEECH)?;
        let data = self.dataset(training.stage)?;
        let trainable =
            spec::trainable(&Tensors::of(model), training, &self.loaded.project.layers)?;
        let dir = self.store.out().join(&node.dir);
        spec::spec(spec::Parts {
            run: self.run_name(),
            model,
            model_digest,
            tokenizer: &tokenizer,
            tokenizer_digest,
            training,
            trainable,
            data: vec![data],
            settings: &self.settings,
            dir: &dir,
            attempt,
        })
    }

    /// The name of the project's directory.
    fn run_name(&self) -> String {
        let root = std::path::absolute(&self.loaded.root).ok();
        let name = root.as_ref().and_then(|root| root.file_name()).unwrap_or_default();
        name.to_string_lossy().into_owned()
    }

    /// Chats are written in the instruct model's form; the base has none.
    fn tokenizer(&self, model: &Checkpoint, stage: TrainingStage) -> PathBuf {
        match &self.instruct {
            Some(instruct) if stage == TrainingStage::Sft => instruct.root().to_owned(),
            _ => model.root().to_owned(),
        }
    }

    fn dataset(&self, stage: TrainingStage) -> Result<DataFile> {
        let prepared = self.prepared.as_ref();
        let dataset = prepared.and_then(|prepared| match stage {
            TrainingStage::Pretrain => prepared.pretrain.as_ref(),
            TrainingStage::Align => prepared.align.as_ref(),
            TrainingStage::Sft => prepared.sft.as_ref(),
        });
        let dataset = dataset.ok_or_else(|| Error::Project {
            path: self.loaded.file.clone(),
            problem: format!("there is no data for `{}`", stage.as_str()),
            hint: format!("add `data.{}.sources`", stage.as_str()),
        })?;
        Ok(DataFile {
            path: self.data_dir().join(&dataset.file),
            format: dataset.format,
            records: dataset.records,
            bytes: dataset.bytes,
            digest: dataset.digest.clone(),
        })
    }

    fn model(&self, node: &Node) -> PathBuf {
        self.store.out().join(model_of(&node.dir))
    }

    fn node(&self, name: &str) -> Result<&Node> {
        self.nodes.iter().find(|node| node.name == name).ok_or_else(|| Error::Usage {
            problem: format!("this project has no stage `{name}`"),
            hint: String::new(),
        })
    }

    fn open_input(&self, input: &Input) -> Result<Checkpoint> {
        match input {
            Input::Base => Checkpoint::open(self.base.root()),
            Input::Stage(name) => {
                let model = self.model(self.node(name)?);
                if !model.exists() {
                    return Err(Error::Usage {
                        problem: format!(
                            "`{name}` has not been done: `{}` is not there",
                            model.display()
                        ),
                        hint: format!("`elo-surgery run --until {name}` does it"),
                    });
                }
                Checkpoint::open(model)
            }
        }
    }

    fn finish(&mut self, node: &Node, record: &mut StageRecord) -> Result<()> {
        if node.action != Action::Evaluate {
            let model = self.model(node);
            let stop = || self.witness.stop();
            record.digest = Some(self.store.digest(&model, &stop)?);
            record.stamp = Some(fingerprint::stamp(&model)?);
            record.output = Some(model_of(&node.dir));
            record.measured = self.measure(&model, &node.name)?;
            self.hooks(node)?;
        }
        record.state = State::Done;
        self.store.put_stage(&node.dir, record)?;
        self.clean_up(node);
        Ok(())
    }

    /// The backend's own copy of the model is not needed once the stage is done.
    fn clean_up(&self, node: &Node) {
        let trained = self.store.out().join(&node.dir).join("trained");
        if trained.is_dir()
            && let Err(error) = std::fs::remove_dir_all(&trained)
        {
            self.witness.note(&format!("could not remove `{}`: {error}", trained.display()));
        }
    }

    /// Collects the stages' records into the run's.
    fn gather(&mut self) -> Result<()> {
        self.record = self.current()?;
        self.store.put_record(&self.record)
    }

    /// The record as the stages' records have it now.
    ///
    /// # Errors
    /// Records that cannot be read.
    pub fn current(&self) -> Result<Record> {
        let mut stages = Vec::new();
        for node in &self.nodes {
            let waiting = || StageRecord { name: node.name.clone(), ..StageRecord::default() };
            stages.push(self.store.stage(&node.dir)?.unwrap_or_else(waiting));
        }
        Ok(Record { stages, ..self.record.clone() })
    }
}

/// The stages that `from` and `until` name, by position.
fn range(nodes: &[Node], options: &Options) -> Result<RangeInclusive<usize>> {
    let at = |name: &String| {
        nodes.iter().position(|node| node.name == *name).ok_or_else(|| {
            let names: Vec<&str> = nodes.iter().map(|node| node.name.as_str()).collect();
            Error::Usage {
                problem: format!("this project has no stage `{}`", crate::error::printable(name)),
                hint: format!("its stages are {}", names.join(", ")),
            }
        })
    };
    let first = options.from.as_ref().map(at).transpose()?;
    let last = options.until.as_ref().map(at).transpose()?;
    if let (Some(first), Some(last)) = (first, last)
        && first > last
    {
        let (from, until) = (&nodes[first].name, &nodes[last].name);
        return Err(Error::Usage {
            problem: format!("`{from}` comes after `{until}`: no stage is left"),
            hint: format!("`--from {until} --until {from}`"),
        });
    }
    Ok(first.unwrap_or(0)..=last.unwrap_or(nodes.len() - 1))
}

fn facts(
    base: &Checkpoint,
    path: &Path,
    layers: &crate::checkpoint::LayerSelector,
) -> Result<ModelFacts> {
    let chosen = layers.resolve(base.layers(), base.name())?;
    let family = base.config().and_then(|config| config.get("model_type")?.as_str());
    Ok(ModelFacts {
        path: path.to_owned(),
        family: family.unwrap_or_default().to_owned(),
        layers: base.layers(),
        parameters: Tensors::of(base).parameters(|_| true),
        chosen: chosen.into_iter().map(|layer| layer + 1).collect(),
    })
}

fn data_facts(prepared: &Prepared) -> Vec<DataFacts> {
    let sets =
        [("pretrain", &prepared.pretrain), ("align", &prepared.align), ("sft", &prepared.sft)];
    let mut facts = Vec::new();
    for (name, set) in sets {
        let Some(set) = set else { continue };
        let mut languages = std::collections::BTreeMap::new();
        for share in &set.shares {
            *languages.entry(share.language.clone()).or_default() += share.bytes;
        }
        facts.push(DataFacts {
            name: name.to_owned(),
            records: set.records,
            bytes: set.bytes,
            digest: set.digest.clone(),
            languages,
        });
    }
    for slice in &prepared.held_out {
        facts.push(DataFacts {
            name: format!("held-out/{}", slice.name),
            records: slice.records,
            bytes: slice.bytes,
            digest: slice.digest.clone(),
            languages: [(slice.name.clone(), slice.bytes)].into(),
        });
    }
    facts
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}

mod data_eyes {
    //! Data preparation under a witness's eyes.

    use std::path::Path;

    use super::Witness;
    use crate::pipeline::data::Watch;

    pub(super) struct Eyes<'a>(pub(super) &'a dyn Witness);

    impl Watch for Eyes<'_> {
        fn reading(&self, _file: &Path, done: u64, total: u64) {
            self.0.progress("reading the data", done, total);
        }

        fn writing(&self, _file: &Path, done: u64, total: u64) {
            self.0.progress("writing the data", done, total);
        }

        fn note(&self, note: &str) {
            self.0.note(note);
        }

        fn stop(&self) -> bool {
            self.0.stop()
        }
    }
}
