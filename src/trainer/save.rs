//! The trained model: shards as they were, with the trained tensors' new bytes.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use super::files::Draft;
use super::model::Weights;
use super::values;
use crate::checkpoint::{Checkpoint, ShardFile};
use crate::error::{Error, IoContext, Result};

/// Bytes copied at once.
const PIECE: u64 = 4 << 20;

/// Writes a model directory like `model`, in which trained tensors have the values of `weights`. It appears whole.
pub(super) fn save(model: &Checkpoint, weights: &Weights, out: &Path) -> Result<()> {
    let draft = Draft::begin(out)?;
    let trained: HashMap<&str, &[f32]> = weights
        .iter()
        .filter(|w| w.trainable)
        .map(|w| (w.name.as_str(), w.values.as_slice()))
        .collect();
    for shard in model.shards() {
        write_shard(model, shard, &trained, &draft)?;
    }
    let copy = |name: &str, from: &Path| {
        let bytes = fs::read(from).at("read", from)?;
        draft.write(name, |w| w.write_all(&bytes))
    };
    copy("config.json", &model.config_path())?;
    if let Some((path, _)) = model.index() {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        copy(&name, path)?;
    }
    for sidecar in model.sidecars() {
        copy(&sidecar.file, &sidecar.path)?;
    }
    draft.publish()
}

fn write_shard(
    model: &Checkpoint,
    shard: &ShardFile,
    trained: &HashMap<&str, &[f32]>,
    draft: &Draft,
) -> Result<()> {
    let source = shard.source()?;
    let mut failure = None;
    draft.write(&shard.file, |w| {
        w.write_all(&shard.raw_header)?;
        for entry in &shard.header.tensors {
            let here = model.tensor(&entry.name).is_some_and(|(s, _)| s.file == shard.file);
            let new = trained.get(entry.name.as_str()).filter(|_| here);
            if let Some(bytes) = new.and_then(|values| values::encode(&entry.dtype, values)) {
                w.write_all(&bytes)?;
                continue;
            }
            let range = shard.bytes(entry);
            let mut at = range.start;
            while at < range.end {
                let end = (at + PIECE).min(range.end);
                let mut scratch = Vec::new();
                match source.tile(at..end, &mut scratch) {
                    Ok(tile) => w.write_all(&tile)?,
                    Err(e) => failure = Some(e),
                }
                at = end;
            }
        }
        Ok(())
    })?;
    source.check_unchanged(None)?;
    failure.map_or(Ok(()), Err)
}

/// Refuses outputs that are there, or inside the model, or the model itself.
pub(super) fn check_out(model: &Checkpoint, out: &Path) -> Result<()> {
    if fs::symlink_metadata(out).is_ok() {
        return Err(Error::OutputExists { path: out.to_owned() });
    }
    let root = fs::canonicalize(model.root()).at("open", model.root())?;
    let parent = out.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match fs::canonicalize(parent) {
        Ok(parent) if parent.starts_with(&root) => Err(Error::OutputIsInput {
            output: out.to_owned(),
            input: model.root().to_owned(),
            relation: "lies inside",
        }),
        _ => Ok(()),
    }
}
