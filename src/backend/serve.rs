//! The built-in backend's side of the protocol: a spec in, events and a result out, around [`crate::trainer`].

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use super::protocol::{
    Event, LossOn, Outcome, PROTOCOL, Packing, Resume, Schedule, Spec, Status, StepEvent, exit,
};
use crate::error::{Error, IoContext as _, Result};
use crate::trainer::{self, Watch as _};

/// Trains what a spec asks for. The exit status.
///
/// # Errors
/// What [`trainer::train`] fails at; a spec that does not parse.
pub fn serve(spec: &Path, threads: usize, stop: &AtomicBool) -> Result<i32> {
    let text = std::fs::read(spec).at("read", spec)?;
    let spec: Spec = serde_json::from_slice(&text)
        .map_err(|e| Error::Json { path: spec.to_owned(), message: e.to_string() })?;
    let events = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&spec.out.events)
        .at("open", &spec.out.events)?;
    let events = Events { file: Mutex::new(events), stop };
    let training = training(&spec, threads)?;
    if spec.resume == Resume::Never && spec.out.work.exists() {
        events.warn("`resume: never`: earlier checkpoints are left alone and a new run begins");
    }
    let trained = match trainer::train(&training, &events) {
        Ok(trained) => trained,
        Err(error) => {
            events.send(&Event::Error { kind: None, msg: error.to_string() });
            return Err(error);
        }
    };
    let status = match trained.status {
        trainer::Status::Complete => Status::Complete,
        trainer::Status::Interrupted => Status::Interrupted,
    };
    events.send(&Event::End { status });
    let outcome = Outcome {
        protocol: PROTOCOL,
        status,
        model: (status == Status::Complete).then(|| spec.out.model.clone()),
        steps: trained.steps,
        steps_total: trained.steps_total,
        tokens: Some(trained.tokens),
        final_loss: trained.final_loss,
        resume: trained.resume,
        versions: BTreeMap::from([(
            env!("CARGO_PKG_NAME").to_owned(),
            env!("CARGO_PKG_VERSION").to_owned(),
        )]),
    };
    write_whole(&spec.out.result, &outcome)?;
    Ok(if status == Status::Complete { 0 } else { exit::INTERRUPTED })
}

fn training(spec: &Spec, threads: usize) -> Result<trainer::Training> {
    let train = &spec.train;
    if train.packing == Packing::Plain {
        return Err(Error::Unsupported {
            what: "`packing: plain`".into(),
            reason: "the built-in backend never lets a document see another".into(),
            hint: "use `packing: doc-mask`".into(),
        });
    }
    Ok(trainer::Training {
        model: spec.model.dir.clone(),
        tokenizer: spec.tokenizer.dir.clone(),
        trainable: spec.trainable.tensors.clone(),
        data: spec.data.iter().map(|file| file.path.clone()).collect(),
        epochs: train.epochs,
        max_steps: train.max_steps,
        sequence_length: train.sequence_length as usize,
        micro_batch: train.micro_batch as usize,
        accumulation: train.accumulation as usize,
        learning_rate: train.learning_rate,
        schedule: match train.schedule {
            Schedule::Cosine => trainer::Schedule::Cosine,
            Schedule::Linear => trainer::Schedule::Linear,
            Schedule::Constant => trainer::Schedule::Constant,
        },
        warmup_ratio: train.warmup_ratio,
        weight_decay: train.weight_decay,
        max_grad_norm: train.max_grad_norm,
        seed: train.seed,
        recompute: train.checkpointing,
        loss_on: match train.loss_on {
            LossOn::All => trainer::LossOn::All,
            LossOn::Assistant => trainer::LossOn::Assistant,
        },
        out: spec.out.model.clone(),
        work: spec.out.work.clone(),
        save_every: spec.save_every_steps,
        threads,
        ..trainer::Training::default()
    })
}

/// Writes events, one line with one write each.
struct Events<'a> {
    file: Mutex<File>,
    stop: &'a AtomicBool,
}

impl Events<'_> {
    fn send(&self, event: &Event) {
        let mut line = serde_json::to_vec(event).unwrap_or_default();
        line.push(b'\n');
        if let Ok(mut file) = self.file.lock() {
            // Events inform; training does not depend on them. The result does, and is checked.
            let _ = file.write_all(&line);
        }
    }
}

impl trainer::Watch for Events<'_> {
    fn started(&self, steps_total: u64, resumed_at: u64) {
        self.send(&Event::Start { steps_total: Some(steps_total), resumed_at: Some(resumed_at) });
    }

    fn step(&self, step: &trainer::Step) {
        self.send(&Event::Step(StepEvent {
            step: step.step,
            loss: Some(step.loss),
            lr: Some(step.learning_rate),
            tokens: Some(step.tokens),
            tok_s: Some(step.tokens_per_second),
            grad_norm: Some(step.grad_norm),
        }));
    }

    fn checkpoint(&self, step: u64, dir: &Path) {
        self.send(&Event::Checkpoint { step, dir: Some(dir.to_owned()) });
    }

    fn warn(&self, message: &str) {
        self.send(&Event::Warn { msg: message.to_owned() });
    }

    fn stop(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// Whole or not at all: a result file is believed.
fn write_whole(path: &Path, outcome: &Outcome) -> Result<()> {
    let temporary = path.with_extension("json.new");
    let mut file = File::create(&temporary).at("create", &temporary)?;
    let bytes = serde_json::to_vec_pretty(outcome).unwrap_or_default();
    file.write_all(&bytes).at("write", &temporary)?;
    file.sync_all().at("write", &temporary)?;
    std::fs::rename(&temporary, path).at("rename", &temporary)
}
