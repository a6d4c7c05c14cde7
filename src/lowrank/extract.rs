//! An adapter from two models: what fine-tuning changed, as products of small matrices.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use serde::Serialize;
use serde_json::{Value, json};

use super::difference::{BLOCK, Difference, index};
use super::output::{Made, Piece, create_work, plan, read_work, work_folder, write_work};
use super::sketch::{OVERSAMPLING, approximate};
use crate::checkpoint::{Checkpoint, Role};
use crate::engine::{Observer, Progress};
use crate::error::{Error, Result};
use crate::format::Dtype;
use crate::plan::{Sidecar, SidecarContent};

/// Ranks and errors, beside the adapter.
const REPORT: &str = "lora_extraction.json";

/// Which rank a difference is approximated with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rank {
    /// This one, or less where a difference has less.
    Fixed(u64),
    /// The least that keeps this share of the squared length of each difference.
    Energy {
        /// From 0 to 1.
        share: f64,
        /// At most this.
        most: u64,
    },
}

/// How to extract.
#[derive(Clone, Debug)]
pub struct Extract {
    /// Ranks.
    pub rank: Rank,
    /// Dtype of the adapter's matrices.
    pub dtype: Dtype,
    /// Tensors that are no matrices of the layers but differ (embeddings, norms, head) are saved whole.
    pub save_whole: bool,
    /// Power iterations: each reads the models twice more and sharpens the result.
    pub power: u32,
    /// Of the random start.
    pub seed: u64,
    /// Worker threads; each works at one tensor.
    pub threads: usize,
}

/// What became of a tensor.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Found {
    /// Its name.
    pub tensor: String,
    /// The rank of its product; none if it has none.
    pub rank: Option<u64>,
    /// Length of what the adapter leaves out over the length of the difference.
    pub error: f64,
    /// Whether it is saved whole.
    pub whole: bool,
}

/// An adapter in the making, and what it holds.
#[derive(Debug)]
pub struct Extraction {
    /// How to make the adapter.
    pub made: Made,
    /// Every tensor that differs, by name.
    pub found: Vec<Found>,
    /// Tensors that are equal.
    pub equal: u64,
}

impl Rank {
    /// The largest that may come of it.
    pub(super) const fn most(self) -> u64 {
        match self {
            Self::Fixed(rank) | Self::Energy { most: rank, .. } => rank,
        }
    }

    /// The rank for squared singular values, from the largest, of a difference of squared length `all`.
    pub(super) fn of(self, energies: &[f64], all: f64) -> usize {
        let most = index(self.most()).min(energies.len());
        let Self::Energy { share, .. } = self else { return most };
        let mut sum = 0.0;
        for (i, energy) in energies.iter().take(most).enumerate() {
            sum += energy;
            if sum >= share * all {
                return i + 1;
            }
        }
        most
    }
}

/// A tensor to be worked on.
struct Task<'a> {
    name: &'a str,
    matrix: bool,
    work: PathBuf,
    seed: u64,
    difference: Difference,
}

/// Makes an adapter of what `tuned` has over `base`, to be written to `out`: `base + B A` is near `tuned`. Every matrix of a
/// layer gets a product; other tensors are reported, or saved whole.
///
/// # Errors
/// Models that do not fit together, all problems at once; values that are not finite; what the file system says.
pub fn extract(
    tuned: &Checkpoint,
    base: &Checkpoint,
    out: &Path,
    request: &Extract,
    observer: &dyn Observer,
) -> Result<Extraction> {
    let work = work_folder(out);
    let tasks = tasks(tuned, base, request, &work)?;
    let lock = create_work(&work, out)?;
    let total: u64 = tasks.iter().map(|task| task.bytes(request)).sum();
    let (next, done, stop) = (AtomicUsize::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let failure: Mutex<Option<Error>> = Mutex::new(None);
    let worker = || {
        while let Some(task) = tasks.get(next.fetch_add(1, Ordering::Relaxed)) {
            let stopped = || stop.load(Ordering::Relaxed) || observer.cancelled();
            if let Err(error) = task.work(request, &stopped) {
                stop.store(true, Ordering::Relaxed);
                let mut failure = failure.lock().unwrap_or_else(PoisonError::into_inner);
                if matches!(*failure, None | Some(Error::Interrupted { .. })) {
                    *failure = Some(error);
                }
                return;
            }
            let bytes = task.bytes(request);
            let done = done.fetch_add(bytes, Ordering::Relaxed) + bytes;
            observer.progress(Progress { done, total, shard: task.name });
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..request.threads.min(tasks.len()) {
            scope.spawn(worker);
        }
        worker();
    });
    if let Some(error) = failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }
    finish(tuned, base, &tasks, request, (work, lock))
}

/// What an extraction takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Foreseen {
    /// Matrices that get a product.
    pub matrices: u64,
    /// Bytes that are read.
    pub read: u64,
    /// Bytes of memory that one thread takes for the largest tensor.
    pub memory: u64,
}

/// What an extraction will take, from headers alone.
///
/// # Errors
/// As [`extract`], for models that do not fit together.
pub fn foresee(tuned: &Checkpoint, base: &Checkpoint, request: &Extract) -> Result<Foreseen> {
    let tasks = tasks(tuned, base, request, Path::new(""))?;
    let matrices = tasks.iter().filter(|task| task.matrix).count() as u64;
    let read = tasks.iter().map(|task| task.bytes(request)).sum();
    let memory = tasks.iter().map(|task| task.memory(request)).max().unwrap_or(0);
    Ok(Foreseen { matrices, read, memory })
}

/// What the results of tensors depend on besides their names.
fn key(tuned: &Checkpoint, base: &Checkpoint, request: &Extract) -> blake3::Hasher {
    let mut hasher = blake3::Hasher::new();
    let Extract { rank, power, seed, .. } = request;
    hasher.update(format!("{rank:?} {power} {seed}").as_bytes());
    for model in [tuned, base] {
        for shard in model.shards() {
            hasher.update(format!("{} {:?}", shard.path.display(), shard.identity).as_bytes());
        }
    }
    hasher
}

fn tasks<'a>(
    tuned: &'a Checkpoint,
    base: &Checkpoint,
    request: &Extract,
    work: &Path,
) -> Result<Vec<Task<'a>>> {
    let key = key(tuned, base, request);
    let mut problems = Vec::new();
    let mut tasks = Vec::new();
    for (name, _) in base.tensors() {
        if tuned.tensor(name).is_none() {
            problems.push(format!("tensor `{name}` is missing in `{}`", tuned.name()));
        }
    }
    for (_, entry) in tuned.names_in_file_order() {
        let name = entry.name.as_str();
        let difference = match Difference::open(name, tuned, base)? {
            Ok(difference) => difference,
            Err(why) => {
                problems.push(why);
                continue;
            }
        };
        let in_layer = matches!(tuned.anatomy().role(name), Role::Layer(_));
        // Routers of experts are no linear layers to PEFT.
        let router = name.ends_with("mlp.gate.weight") || name.ends_with("moe.gate.weight");
        let matrix = in_layer && entry.shape.0.len() == 2 && name.ends_with(".weight") && !router;
        let mut hasher = key.clone();
        hasher.update(name.as_bytes());
        let hash = hasher.finalize();
        let start = [&request.seed.to_le_bytes()[..], name.as_bytes()].concat();
        let mut seed = [0; 8];
        seed.copy_from_slice(&blake3::hash(&start).as_bytes()[..8]);
        let work = work.join(format!("{}.safetensors", &hash.to_hex()[..32]));
        tasks.push(Task { name, matrix, work, seed: u64::from_le_bytes(seed), difference });
    }
    if problems.is_empty() {
        return Ok(tasks);
    }
    Err(Error::Mismatch {
        what: "the models do not fit together".into(),
        problems,
        hint: "give a model and the one it was fine-tuned from; cast quantised models first (`elo-surgery cast`)".into(),
    })
}

impl Task<'_> {
    /// Bytes that it reads.
    fn bytes(&self, request: &Extract) -> u64 {
        // The sketch, its image, what is left; and two for each iteration.
        let passes = if self.matrix { 3 + 2 * u64::from(request.power) } else { 1 };
        self.difference.bytes() * passes
    }

    /// Bytes of memory that it takes: blocks of rows, and of each side two factors in f64 with copies in f32.
    fn memory(&self, request: &Extract) -> u64 {
        let Difference { rows, columns, .. } = self.difference;
        let width = (request.rank.most() + OVERSAMPLING).min(rows).min(columns);
        let factors = if self.matrix { (rows + columns) * width * 24 } else { 0 };
        factors + 4 * BLOCK.max(columns * 4)
    }

    /// Finds the product, unless an earlier run has.
    fn work(&self, request: &Extract, stop: &dyn Fn() -> bool) -> Result<()> {
        if read_work(&self.work)?.is_some() {
            return Ok(());
        }
        let mut metadata = BTreeMap::new();
        if !self.matrix {
            let mut squares = 0.0_f64;
            self.difference.each_block(|_, block| {
                squares += block.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>();
                if stop() { Err(Error::Interrupted { resumable: true }) } else { Ok(()) }
            })?;
            let error = if squares > 0.0 { "1" } else { "0" };
            metadata.insert("error".to_owned(), error.to_owned());
            return write_work(&self.work, metadata, &[]);
        }
        let found = approximate(&self.difference, request.rank, request.power, self.seed, stop)?;
        let Some(product) = found else {
            metadata.insert("error".to_owned(), "0".to_owned());
            return write_work(&self.work, metadata, &[]);
        };
        metadata.insert("error".to_owned(), product.error.to_string());
        let (down, up) = (product.down, product.up);
        let shape = |matrix: &ndarray::Array2<f32>| [matrix.nrows(), matrix.ncols()];
        let numbers = |matrix: &ndarray::Array2<f32>| matrix.iter().copied().collect::<Vec<f32>>();
        let matrices =
            [("down", shape(&down), &numbers(&down)[..]), ("up", shape(&up), &numbers(&up)[..])];
        write_work(&self.work, metadata, &matrices)
    }
}

/// Gathers the results of all tensors into a plan.
fn finish(
    tuned: &Checkpoint,
    base: &Checkpoint,
    tasks: &[Task<'_>],
    request: &Extract,
    (work, lock): (PathBuf, File),
) -> Result<Extraction> {
    let (mut found, mut equal, mut pieces) = (Vec::new(), 0, Vec::new());
    let mut ranks = BTreeMap::new();
    let mut whole = Vec::new();
    for task in tasks {
        let Some((metadata, matrices)) = read_work(&task.work)? else { continue };
        let error = metadata.get("error").and_then(|error| error.parse().ok()).unwrap_or(0.0);
        let module = task.name.strip_suffix(".weight").unwrap_or(task.name);
        let tensor = task.name.to_owned();
        if let Some(rank) = matrices.first().map(|down| down.shape.rows()) {
            ranks.insert(module.to_owned(), rank);
            for (piece, side) in matrices.into_iter().zip(["A", "B"]) {
                let name = format!("base_model.model.{module}.lora_{side}.weight");
                pieces.push(Piece { name, ..piece });
            }
            found.push(Found { tensor, rank: Some(rank), error, whole: false });
        } else if error > 0.0 {
            if request.save_whole
                && let Some((shard, entry)) = tuned.tensor(task.name)
            {
                whole.push(module.rsplit_once(".bias").map_or(module, |(m, _)| m).to_owned());
                pieces.push(Piece {
                    name: format!("base_model.model.{}", task.name),
                    path: shard.path.clone(),
                    identity: shard.identity,
                    bytes: shard.bytes(entry),
                    dtype: entry.dtype.clone(),
                    shape: entry.shape.clone(),
                });
            }
            let saved = request.save_whole;
            let error = if saved { 0.0 } else { 1.0 };
            found.push(Found { tensor, rank: None, error, whole: saved });
        } else {
            equal += 1;
        }
    }
    whole.dedup();
    let settings = settings(base, &ranks, &whole, request.rank);
    let described = match request.rank {
        Rank::Fixed(rank) => json!({ "rank": rank }),
        Rank::Energy { share, most } => json!({ "energy": share, "max_rank": most }),
    };
    let parameters = json!({
        "rank": described, "dtype": request.dtype, "save_whole": request.save_whole,
        "power": request.power, "seed": request.seed,
    });
    let parameters = parameters.as_object().cloned().unwrap_or_default();
    let parents = vec![tuned.as_parent("model"), base.as_parent("base")];
    if pieces.is_empty() {
        return Err(Error::Mismatch {
            what: "there is nothing to extract".into(),
            problems: vec![format!(
                "no matrix of `{}` differs from `{}`",
                tuned.name(),
                base.name()
            )],
            hint: "give a model and the one it was fine-tuned from".into(),
        });
    }
    let mut plan = plan(("lora-extract", parameters), pieces, &request.dtype, &settings, parents)?;
    let left = found.iter().filter(|found| found.rank.is_none() && !found.whole);
    let left: Vec<&str> = left.map(|found| found.tensor.as_str()).collect();
    if let Some(first) = left.first() {
        let count = left.len();
        plan.notes.push(format!("{count} tensors differ and are not part of the adapter (first: `{first}`): `--save-whole` saves them"));
    }
    let report = json!({ "tensors": found, "equal": equal });
    let mut text = serde_json::to_string_pretty(&report).unwrap_or_default();
    text.push('\n');
    let content = SidecarContent::Text(text);
    plan.sidecars.push(Sidecar { file: REPORT.to_owned(), content });
    Ok(Extraction { made: Made { plan, work, _lock: lock }, found, equal })
}

/// `adapter_config.json`: every product has the scale 1.
fn settings(
    base: &Checkpoint,
    ranks: &BTreeMap<String, u64>,
    whole: &[String],
    rank: Rank,
) -> Value {
    let largest = ranks.values().copied().max().unwrap_or(1);
    let common = match rank {
        Rank::Fixed(rank) => rank,
        Rank::Energy { .. } => largest,
    };
    super::join::settings(base.name(), common, ranks, whole)
}
