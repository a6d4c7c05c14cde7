//! The training loop.

#![allow(clippy::cast_possible_truncation, reason = "a share of a step is f32, as gradients are")]

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Instant;

use serde::Serialize;

use super::data::{Corpus, Packing, TextTokenizer};
use super::load::{Loaded, design, load};
use super::model::{Batch, Gradients, Network, Weights};
use super::optimizer::{AdamW, Moments, norm};
use super::save::{check_out, save};
use super::schedule::LearningRate;
use super::settings::Training;
use super::state::{self, Origin, Progress};
use super::watch::{Status, Step, Trained, Watch};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, IoContext, Result};

/// Trains a model. The output appears whole at the end; the same call continues what was interrupted, to the same bytes.
pub fn train(training: &Training, watch: &dyn Watch) -> Result<Trained> {
    training.check()?;
    threads(training.threads)?.install(|| match Run::prepare(training, watch) {
        Err(Error::Interrupted { .. }) => Ok(Trained {
            status: Status::Interrupted,
            steps: 0,
            steps_total: 0,
            tokens: 0,
            final_loss: None,
            resume: state::newest(&training.work)?,
        }),
        Err(e) => Err(e),
        Ok(run) => run.go(),
    })
}

/// What goes through the model at once, for peers that train on the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MicroBatch {
    /// Token ids of all documents, end to end.
    pub ids: Vec<u32>,
    /// What follows each token; `u32::MAX` where nothing is predicted.
    pub targets: Vec<u32>,
    /// Lengths of the documents; each sees itself alone.
    pub lengths: Vec<usize>,
}

/// The micro batches of the first `steps` steps of a run, as [`train`] would take them.
pub fn batches(training: &Training, steps: u64, watch: &dyn Watch) -> Result<Vec<Vec<MicroBatch>>> {
    training.check()?;
    let design = design(&Checkpoint::open(&training.model)?)?;
    let data = Data::prepare(training, design.vocabulary, watch)?;
    let micro = |batch: Batch| MicroBatch {
        lengths: batch.spans.iter().map(ExactSizeIterator::len).collect(),
        ids: batch.ids,
        targets: batch.targets,
    };
    Ok((0..steps).map(|step| data.batches(step).into_iter().map(micro).collect()).collect())
}

/// A pool of threads; 0 is one a core.
pub(super) fn threads(count: usize) -> Result<rayon::ThreadPool> {
    rayon::ThreadPoolBuilder::new().num_threads(count).build().map_err(|e| Error::Device {
        device: "cpu".to_owned(),
        reason: e.to_string(),
        hint: String::new(),
    })
}

/// Everything of a run.
struct Run<'a> {
    training: &'a Training,
    watch: &'a dyn Watch,
    model: Checkpoint,
    network: Network,
    weights: Weights,
    gradients: Gradients,
    moments: Moments,
    optimizer: AdamW,
    data: Data,
    rate: LearningRate,
    origin: Origin,
    progress: Progress,
    /// The last checkpoint that is complete.
    saved: Option<PathBuf>,
}

/// The packed data and how it makes steps.
struct Data {
    corpus: Corpus,
    packing: Packing,
    micro_batch: usize,
    accumulation: usize,
}

impl Data {
    /// Reads, tokenises and packs the data of a run.
    fn prepare(training: &Training, rows: usize, watch: &dyn Watch) -> Result<Self> {
        let tokenizer = TextTokenizer::open(&training.tokenizer, rows)?;
        if !tokenizer.has_end() {
            watch.warn("the tokenizer names no token that ends a text; documents are not ended");
        }
        let go_on = || !watch.stop();
        let corpus = Corpus::read(&training.data, &tokenizer, training.loss_on, &go_on)?;
        let packing = Packing::new(&corpus, training.sequence_length, training.seed);
        if packing.dropped > 0 {
            let (dropped, length) = (packing.dropped, training.sequence_length);
            watch.warn(&format!("{dropped} chat(s) longer than {length} tokens are left out"));
        }
        let Training { micro_batch, accumulation, .. } = *training;
        let data = Self { corpus, packing, micro_batch, accumulation };
        let all: Vec<usize> = (0..data.packing.sequences.len()).collect();
        if data.packing.batch(&data.corpus, &all).predicted() == 0 {
            let path = training.data.first().cloned().unwrap_or_default();
            let problem = "no token of the data is to be predicted".to_owned();
            return Err(Error::Data { path, line: None, problem, hint: String::new() });
        }
        Ok(data)
    }

    fn steps_an_epoch(&self) -> u64 {
        self.packing.sequences.len().div_ceil(self.micro_batch * self.accumulation) as u64
    }

    /// The micro batches of a step, from 0.
    fn batches(&self, step: u64) -> Vec<Batch> {
        let (epoch, at) = (step / self.steps_an_epoch(), step % self.steps_an_epoch());
        let order = self.packing.order(epoch);
        let size = self.micro_batch * self.accumulation;
        let own = order.chunks(size).nth(usize::try_from(at).unwrap_or(usize::MAX));
        let micro = own.unwrap_or_default().chunks(self.micro_batch);
        micro.map(|sequences| self.packing.batch(&self.corpus, sequences)).collect()
    }
}

impl<'a> Run<'a> {
    fn prepare(training: &'a Training, watch: &'a dyn Watch) -> Result<Self> {
        let model = Checkpoint::open(&training.model)?;
        check_out(&model, &training.out)?;
        std::fs::create_dir_all(&training.work).at("create", &training.work)?;
        let Loaded { design, mut weights, digest } = load(&model, &training.trainable)?;
        let mut problems = Vec::new();
        if let Some(window) = design.window.filter(|w| *w < training.sequence_length) {
            let length = training.sequence_length;
            problems.push(format!("its attention sees {window} tokens, sequences have {length}"));
        }
        if design.dropout > 0.0 {
            problems.push(format!("its config wants `attention_dropout` {}", design.dropout));
        }
        if !problems.is_empty() {
            return Err(Error::Mismatch {
                what: format!("`{}` cannot be trained exactly as told", model.name()),
                problems,
                hint: "shorten the sequences, set the dropout to 0, or use another backend".into(),
            });
        }
        let data = Data::prepare(training, design.vocabulary, watch)?;
        let all = data.steps_an_epoch() * u64::from(training.epochs);
        let total = training.max_steps.map_or(all, |max| max.min(all));
        let origin = Origin {
            settings: settings_digest(training),
            data: data.corpus.digest(),
            model: digest,
        };
        let mut moments = Moments::zeros(&weights);
        let progress = state::resume(&training.work, &origin, &mut weights, &mut moments)?;
        let saved = state::newest(&training.work)?;
        let missing = || Error::NotACheckpoint {
            path: training.model.clone(),
            reason: "a tensor is missing".to_owned(),
        };
        let network = Network::new(design, &weights, training.sequence_length, training.recompute)
            .ok_or_else(missing)?;
        let Training { betas, epsilon, weight_decay, .. } = *training;
        watch.started(total, progress.step);
        Ok(Self {
            training,
            watch,
            model,
            network,
            gradients: Gradients::zeros(&weights),
            weights,
            moments,
            optimizer: AdamW { betas, epsilon, weight_decay },
            data,
            rate: LearningRate::new(
                training.learning_rate,
                training.schedule,
                training.warmup_ratio,
                total,
            ),
            origin,
            progress,
            saved,
        })
    }

    fn go(mut self) -> Result<Trained> {
        while self.progress.step < self.rate.total {
            if self.step()?.is_break() {
                let name = format!("checkpoint-{}", self.progress.step);
                let is_saved = self.saved.as_ref().is_some_and(|dir| dir.ends_with(&name));
                if self.progress.step > 0 && !is_saved {
                    self.save_state()?;
                }
                return Ok(self.trained(Status::Interrupted));
            }
            let every = self.training.save_every;
            if every > 0 && self.progress.step.is_multiple_of(every) {
                self.save_state()?;
            }
        }
        save(&self.model, &self.weights, &self.training.out)?;
        Ok(self.trained(Status::Complete))
    }

    /// One optimizer step; breaks off without a trace when told to stop.
    fn step(&mut self) -> Result<ControlFlow<()>> {
        let begin = Instant::now();
        let batches = self.data.batches(self.progress.step);
        // The mean is over the predicted tokens of the whole step, as `num_items_in_batch` in transformers.
        let predicted: usize = batches.iter().map(Batch::predicted).sum();
        let tokens: usize = batches.iter().map(|b| b.ids.len()).sum();
        let mut sum = 0.0;
        for batch in &batches {
            if self.watch.stop() {
                return Ok(ControlFlow::Break(()));
            }
            if batch.predicted() > 0 {
                let share = 1.0 / predicted as f32;
                sum += self.network.step(&self.weights, batch, share, &mut self.gradients);
            }
        }
        let loss = sum / predicted.max(1) as f64;
        let norm = norm(&self.gradients);
        let number = self.progress.step + 1;
        if !loss.is_finite() || !norm.is_finite() {
            let what = if loss.is_finite() { "norm of the gradients" } else { "loss" };
            return Err(Error::Unsupported {
                what: format!("step {number}"),
                reason: format!("the {what} is not a finite number"),
                hint: "lower the learning rate, or look at the model and the data".to_owned(),
            });
        }
        let learning_rate = self.rate.at(self.progress.step);
        self.optimizer.step(
            &mut self.weights,
            &mut self.gradients,
            &mut self.moments,
            (number, learning_rate),
            (norm, self.training.max_grad_norm),
        );
        self.progress.advance(tokens as u64, loss);
        self.watch.step(&Step {
            step: number,
            loss,
            learning_rate,
            grad_norm: norm,
            tokens: self.progress.tokens,
            tokens_per_second: tokens as f64 / begin.elapsed().as_secs_f64().max(1e-9),
        });
        Ok(ControlFlow::Continue(()))
    }

    fn save_state(&mut self) -> Result<()> {
        let work = &self.training.work;
        let dir = state::save(work, &self.origin, &self.progress, &self.weights, &self.moments)?;
        self.watch.checkpoint(self.progress.step, &dir);
        self.saved = Some(dir);
        Ok(())
    }

    fn trained(self, status: Status) -> Trained {
        Trained {
            status,
            steps: self.progress.step,
            steps_total: self.rate.total,
            tokens: self.progress.tokens,
            final_loss: self.progress.loss(),
            resume: self.saved.filter(|_| status == Status::Interrupted),
        }
    }
}

/// A digest of the settings that change the result: not of places, threads or how memory is saved.
fn settings_digest(training: &Training) -> String {
    let mut trainable = training.trainable.clone();
    trainable.sort();
    let bare = Training {
        model: PathBuf::new(),
        tokenizer: PathBuf::new(),
        data: Vec::new(),
        out: PathBuf::new(),
        work: PathBuf::new(),
        save_every: 0,
        threads: 0,
        recompute: false,
        trainable,
        ..training.clone()
    };
    let text = serde_json::to_string(&bare).unwrap_or_default();
    blake3::hash(text.as_bytes()).to_hex().to_string()
}
