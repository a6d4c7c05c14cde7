//! What a stage's result depends on, in a form that can be compared and explained.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde_json::Value;

use crate::engine::digest_file;
use crate::error::{IoContext as _, Result};
use crate::format::{DigestAlgorithm, PROVENANCE_FILE};

/// Inputs of a stage by name: `train.learning_rate` -> `0.000005`.
pub type Inputs = BTreeMap<String, String>;

/// Adds every leaf of a JSON value under a dotted name.
pub fn flatten(prefix: &str, value: &Value, into: &mut Inputs) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                flatten(&format!("{prefix}.{key}"), value, into);
            }
        }
        Value::String(text) => _ = into.insert(prefix.to_owned(), text.clone()),
        Value::Null => {}
        other => _ = into.insert(prefix.to_owned(), other.to_string()),
    }
}

/// blake3 over the inputs.
pub fn key(inputs: &Inputs) -> String {
    let mut hasher = blake3::Hasher::new();
    for (name, value) in inputs {
        for text in [name, value] {
            hasher.update(&(text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        }
    }
    hasher.finalize().to_hex().to_string()
}

/// What changed between two sets of inputs, for people: `train.learning_rate: 0.001 -> 0.0005`.
pub fn changes(old: &Inputs, new: &Inputs) -> Vec<String> {
    let names: std::collections::BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let show = |value: Option<&String>| match value {
        None => "none".to_owned(),
        Some(value) if value.len() == 64 && value.bytes().all(|b| b.is_ascii_hexdigit()) => {
            value[..12].to_owned()
        }
        Some(value) => crate::error::printable(value),
    };
    let differ = names.into_iter().filter(|name| old.get(*name) != new.get(*name));
    differ
        .map(|name| format!("{name}: {} -> {}", show(old.get(name)), show(new.get(name))))
        .collect()
}

/// The files of a model directory that make it what it is, sorted: not our record, nothing hidden, no subdirectories.
fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).at("read", dir)? {
        let entry = entry.at("read", dir)?;
        let name = entry.file_name();
        let hidden = name.to_string_lossy().starts_with('.');
        let is_file = fs::metadata(entry.path()).is_ok_and(|meta| meta.is_file());
        if is_file && !hidden && name != PROVENANCE_FILE {
            files.push(entry.path());
        }
    }
    files.sort();
    Ok(files)
}

/// Names, sizes and modification times of a model's files: equal stamps mean that nobody touched it.
pub fn stamp(model: &Path) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    for path in listed(model)? {
        let meta = fs::metadata(&path).at("examine", &path)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let line = format!("{name} {} {} {}\n", meta.size(), meta.mtime(), meta.mtime_nsec());
        hasher.update(line.as_bytes());
    }
    Ok(hasher.finalize().to_hex().to_string())
}

fn listed(model: &Path) -> Result<Vec<PathBuf>> {
    if fs::metadata(model).at("examine", model)?.is_file() {
        return Ok(vec![model.to_owned()]);
    }
    files(model)
}

/// blake3 over the contents of a model's files.
///
/// Files of the Hugging Face cache are named by their SHA-256, which stands for their content.
pub fn digest(model: &Path, stop: &(dyn Fn() -> bool + Sync)) -> Result<String> {
    let paths = listed(model)?;
    let digests: Vec<String> = paths
        .par_iter()
        .map(|path| match blob_name(path) {
            Some(name) => Ok(name),
            None => {
                let mut go_on = |_| !stop();
                let digest = digest_file(path, DigestAlgorithm::Blake3, &mut go_on)?;
                Ok(digest.hex)
            }
        })
        .collect::<Result<_>>()?;
    let mut hasher = blake3::Hasher::new();
    for (path, digest) in paths.iter().zip(digests) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        hasher.update(format!("{name} {digest}\n").as_bytes());
    }
    Ok(hasher.finalize().to_hex().to_string())
}

/// blake3 over those of the named files that a directory has.
pub fn digest_of_files(dir: &Path, names: &[&str]) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    for name in names {
        let path = dir.join(name);
        if path.is_file() {
            let digest = digest_file(&path, DigestAlgorithm::Blake3, &mut |_| true)?;
            hasher.update(format!("{name} {}\n", digest.hex).as_bytes());
        }
    }
    Ok(hasher.finalize().to_hex().to_string())
}

fn blob_name(path: &Path) -> Option<String> {
    let target = fs::read_link(path).ok()?;
    let name = target.file_name()?.to_str()?;
    let in_blobs = target.parent()?.file_name()? == "blobs";
    let is_digest = name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit());
    (in_blobs && is_digest).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn inputs(value: &Value) -> Inputs {
        let mut inputs = Inputs::new();
        flatten("train", value, &mut inputs);
        inputs
    }

    #[test]
    fn changes_are_named() {
        let old = inputs(&json!({"lr": 0.001, "seed": 42, "extra": {}}));
        let new = inputs(&json!({"lr": 0.0005, "seed": 42, "extra": {"a": true}}));
        assert_eq!(
            changes(&old, &new),
            ["train.extra.a: none -> true", "train.lr: 0.001 -> 0.0005"]
        );
        assert_ne!(key(&old), key(&new));
        assert_eq!(key(&old), key(&old.clone()));
    }

    #[test]
    fn names_and_values_do_not_run_together() {
        let one = Inputs::from([("a".into(), "bc".into())]);
        let other = Inputs::from([("ab".into(), "c".into())]);
        assert_ne!(key(&one), key(&other));
    }
}
