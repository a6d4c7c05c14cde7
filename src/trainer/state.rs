//! Checkpoints of a run: `checkpoint-N/` with the masters and moments of what is trained, and what they belong to.
//!
//! The order of the data follows from the seed and the step, so the step says where in the data the run is.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::files::Draft;
use super::model::Weights;
use super::optimizer::Moments;
use super::values;
use crate::error::{Error, IoContext, Result};
use crate::format::{Dtype, Header, Shape, SourceFile, TensorEntry, UnknownDtypes};

const VERSION: u32 = 1;
const PREFIX: &str = "checkpoint-";
const RECORD: &str = "state.json";
const TENSORS: &str = "state.safetensors";
/// Checkpoints that stay.
const KEPT: usize = 2;
const ALIGNMENT: u64 = 64;

/// What a checkpoint belongs to; another run must not continue it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Origin {
    /// Digest of the settings that change the result.
    pub(super) settings: String,
    /// Digest of the tokens.
    pub(super) data: String,
    /// Digest of the model at the start.
    pub(super) model: String,
}

/// How far a run is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Progress {
    /// Optimizer steps done.
    pub(super) step: u64,
    /// Tokens that went through the model.
    pub(super) tokens: u64,
    /// Bits of the last step's loss, exact.
    loss_bits: Option<u64>,
}

impl Progress {
    /// Counts a step.
    pub(super) fn advance(&mut self, tokens: u64, loss: f64) {
        self.step += 1;
        self.tokens += tokens;
        self.loss_bits = Some(loss.to_bits());
    }

    /// The last step's loss.
    pub(super) fn loss(&self) -> Option<f64> {
        self.loss_bits.map(f64::from_bits)
    }
}

#[derive(Serialize, Deserialize)]
struct Record {
    version: u32,
    origin: Origin,
    progress: Progress,
    /// BLAKE3 of the tensor file.
    tensors: String,
}

/// Names and values in the file's order: masters, first and second moments of each trained tensor.
fn parts<'a>(weights: &'a Weights, moments: &'a Moments) -> Vec<(String, &'a [f32])> {
    let all = weights.iter().zip(moments.first.iter()).zip(moments.second.iter());
    all.filter(|((w, _), _)| w.trainable)
        .flat_map(|((w, m), v)| {
            let named = |suffix: &str, values| (format!("{}{suffix}", w.name), values);
            [named("", w.values.as_slice()), named("#first", m), named("#second", v)]
        })
        .collect()
}

fn header(parts: &[(String, &[f32])]) -> Header {
    let mut end = 0;
    let mut header = Header::default();
    for (name, values) in parts {
        let range = end..end + 4 * values.len() as u64;
        end = range.end;
        let shape = Shape(vec![values.len() as u64]);
        header.tensors.push(TensorEntry { name: name.clone(), dtype: Dtype::F32, shape, range });
    }
    header
}

/// Saves a checkpoint and removes those before the last two. Gives its directory.
pub(super) fn save(
    work: &Path,
    origin: &Origin,
    progress: &Progress,
    weights: &Weights,
    moments: &Moments,
) -> Result<PathBuf> {
    let dir = work.join(format!("{PREFIX}{}", progress.step));
    if dir.exists() {
        fs::remove_dir_all(&dir).at("remove", &dir)?;
    }
    let draft = Draft::begin(&dir)?;
    let parts = parts(weights, moments);
    let mut hasher = blake3::Hasher::new();
    draft.write(TENSORS, |w| {
        let mut put = |bytes: &[u8]| {
            hasher.update(bytes);
            w.write_all(bytes)
        };
        put(&header(&parts).to_bytes(ALIGNMENT))?;
        for block in parts.iter().flat_map(|(_, values)| values.chunks(1 << 16)) {
            put(&values::encode(&Dtype::F32, block).unwrap_or_default())?;
        }
        Ok(())
    })?;
    let record = Record {
        version: VERSION,
        origin: origin.clone(),
        progress: progress.clone(),
        tensors: hasher.finalize().to_hex().to_string(),
    };
    let text = serde_json::to_string_pretty(&record).unwrap_or_default();
    draft.write(RECORD, |w| w.write_all(text.as_bytes()))?;
    draft.publish()?;
    for (_, old) in found(work)?.iter().rev().skip(KEPT) {
        fs::remove_dir_all(old).at("remove", old)?;
    }
    Ok(dir)
}

/// Complete checkpoints by step, oldest first.
fn found(work: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let mut all = Vec::new();
    if !work.exists() {
        return Ok(all);
    }
    for entry in fs::read_dir(work).at("read", work)? {
        let path = entry.at("read", work)?.path();
        let name = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_prefix(PREFIX));
        if let Some(step) = name.and_then(|n| n.parse().ok()).filter(|_| path.join(RECORD).exists())
        {
            all.push((step, path));
        }
    }
    all.sort_unstable();
    Ok(all)
}

/// The newest checkpoint's directory.
pub(super) fn newest(work: &Path) -> Result<Option<PathBuf>> {
    Ok(found(work)?.pop().map(|(_, path)| path))
}

/// Continues from the newest checkpoint: fills masters and moments, and says how far it is. Nothing there: step 0.
pub(super) fn resume(
    work: &Path,
    origin: &Origin,
    weights: &mut Weights,
    moments: &mut Moments,
) -> Result<Progress> {
    let Some(dir) = newest(work)? else {
        return Ok(Progress::default());
    };
    let refuse = |difference: String| Error::CannotResume { path: dir.clone(), difference };
    let path = dir.join(RECORD);
    let text = fs::read_to_string(&path).at("read", &path)?;
    let record: Record =
        serde_json::from_str(&text).map_err(|e| refuse(format!("`{RECORD}` is damaged: {e}")))?;
    if record.version != VERSION {
        return Err(refuse(format!("it has version {}, not {VERSION}", record.version)));
    }
    let pairs = [
        ("settings", &record.origin.settings, &origin.settings),
        ("data", &record.origin.data, &origin.data),
        ("a model", &record.origin.model, &origin.model),
    ];
    let other: Vec<&str> =
        pairs.iter().filter(|(_, a, b)| a != b).map(|(what, ..)| *what).collect();
    if !other.is_empty() {
        return Err(refuse(format!("it was made with other {}", other.join(" and other "))));
    }
    fill(&dir.join(TENSORS), &record.tensors, weights, moments)
        .map_err(|e| refuse(e.to_string()))?;
    Ok(record.progress)
}

fn fill(path: &Path, digest: &str, weights: &mut Weights, moments: &mut Moments) -> Result<()> {
    let want = header(&parts(weights, moments));
    let damaged = |problem| Error::Header { path: path.to_owned(), problem };
    let raw = want.to_bytes(ALIGNMENT);
    let source = SourceFile::open(path)?;
    let mut hasher = blake3::Hasher::new();
    let mut start = vec![0; raw.len()];
    source.read_exact_at(&mut start, 0)?;
    hasher.update(&start);
    let found = Header::parse(&start[8..], want.data_len(), UnknownDtypes::Refuse);
    let same = found.map_err(damaged)? == want;
    let mut at = raw.len() as u64;
    let mut read = |values: &mut [f32]| -> Result<()> {
        for block in values.chunks_mut(1 << 16) {
            let mut bytes = vec![0; block.len() * 4];
            source.read_exact_at(&mut bytes, at)?;
            hasher.update(&bytes);
            at += bytes.len() as u64;
            block.copy_from_slice(&values::decode(&Dtype::F32, &bytes).unwrap_or_default());
        }
        Ok(())
    };
    let all = weights.iter_mut().zip(moments.first.iter_mut()).zip(moments.second.iter_mut());
    for ((w, m), v) in all.filter(|((w, _), _)| w.trainable) {
        read(&mut w.values)?;
        read(m)?;
        read(v)?;
    }
    if !same || hasher.finalize().to_hex().as_str() != digest {
        return Err(Error::Verification {
            path: path.to_owned(),
            problems: vec!["its bytes are not those that were written".to_owned()],
        });
    }
    Ok(())
}
