//! `manifest.json`: what prepared data was made of, and whether that still holds.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::Prepared;
use super::inputs::{Family, modified};
use super::write::Written;
use crate::error::{Error, IoContext as _, Result};
use crate::pipeline::project::Loaded;

/// Name of the manifest in the directory of prepared data.
pub const MANIFEST_FILE: &str = "manifest.json";
/// Version of what preparation does: another number, and data is made anew.
const FORMAT: u32 = 1;
/// Largest manifest that is read, in bytes.
const LARGEST: u64 = 64 << 20;

#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    format: u32,
    tool: String,
    settings: String,
    #[serde(flatten)]
    prepared: Prepared,
    inputs: Vec<Trace>,
    outputs: Vec<Trace>,
}

/// A file as it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Trace {
    file: String,
    size: u64,
    /// Nanoseconds since the epoch.
    modified: i64,
    digest: String,
}

impl Trace {
    /// Whether a file holds the same, by its identity, else by its content. Notes a new identity.
    fn holds(&mut self, path: &Path) -> Result<bool> {
        let meta = match fs::metadata(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            meta => meta.at("read", path)?,
        };
        if !meta.is_file() || meta.len() != self.size {
            return Ok(false);
        }
        let now = nanoseconds(modified(&meta));
        if now == self.modified {
            return Ok(true);
        }
        let mut hasher = blake3::Hasher::new();
        let mut file = File::open(path).at("open", path)?;
        io::copy(&mut file, &mut hasher).at("read", path)?;
        self.modified = now;
        Ok(hasher.finalize().to_hex().as_str() == self.digest)
    }
}

fn nanoseconds(time: i128) -> i64 {
    i64::try_from(time).unwrap_or(i64::MAX)
}

/// Digest of everything in a project that shapes its data.
pub(super) fn settings(loaded: &Loaded) -> String {
    let project = &loaded.project;
    let text = json!({
        "format": FORMAT,
        "seed": project.seed,
        "data": project.data,
        "sft": project.sft.enabled,
    });
    blake3::hash(text.to_string().as_bytes()).to_hex().to_string()
}

/// What is there, if it is what the project and its sources give today.
pub(super) fn current(dir: &Path, settings: &str, families: &[Family]) -> Result<Option<Prepared>> {
    let Some(mut manifest) = read(dir)? else {
        return Ok(None);
    };
    let inputs: Vec<_> = families.iter().flat_map(|family| &family.inputs).collect();
    if manifest.format != FORMAT
        || manifest.settings != settings
        || manifest.inputs.len() != inputs.len()
    {
        return Ok(None);
    }
    let before: Vec<i64> = manifest.traces().map(|trace| trace.modified).collect();
    for (trace, input) in manifest.inputs.iter_mut().zip(inputs) {
        if trace.file != input.label || !trace.holds(&input.path)? {
            return Ok(None);
        }
    }
    for trace in &mut manifest.outputs {
        if !trace.holds(&dir.join(&trace.file))? {
            return Ok(None);
        }
    }
    // Touched files need not be read again next time.
    if manifest.traces().map(|trace| trace.modified).ne(before) {
        save(dir, &manifest)?;
    }
    Ok(Some(manifest.prepared))
}

impl Manifest {
    fn traces(&self) -> impl Iterator<Item = &Trace> {
        self.inputs.iter().chain(&self.outputs)
    }
}

/// A manifest that cannot be read is one that is not there.
fn read(dir: &Path) -> Result<Option<Manifest>> {
    let path = dir.join(MANIFEST_FILE);
    let meta = match fs::metadata(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        meta => meta.at("read", &path)?,
    };
    if !meta.is_file() || meta.len() > LARGEST {
        return Ok(None);
    }
    let text = fs::read(&path).at("read", &path)?;
    Ok(serde_json::from_slice(&text).ok())
}

/// Takes the manifest away before the files it names are replaced, and gives their names.
pub(super) fn retire(dir: &Path) -> Result<Vec<String>> {
    let old = read(dir)?;
    let path = dir.join(MANIFEST_FILE);
    match fs::remove_file(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e).at("remove", &path),
        _ => {}
    }
    flush(dir)?;
    let names = old.into_iter().flat_map(|old| old.outputs).map(|trace| trace.file);
    // Names only: a manifest is a file like any other, and may say anything.
    Ok(names
        .filter(|name| {
            !name.contains('/') && Path::new(name).extension().is_some_and(|e| e == "jsonl")
        })
        .collect())
}

/// Writes the manifest of what now lies in the directory.
pub(super) fn write(
    dir: &Path,
    settings: &str,
    families: &[Family],
    digests: &[Vec<String>],
    files: &[(String, Written)],
    prepared: &mut Prepared,
) -> Result<()> {
    let mut key = blake3::Hasher::new();
    key.update(settings.as_bytes());
    let mut inputs = Vec::new();
    for (family, digests) in families.iter().zip(digests) {
        for (input, digest) in family.inputs.iter().zip(digests) {
            key.update(input.label.as_bytes()).update(b"\0").update(digest.as_bytes());
            inputs.push(Trace {
                file: input.label.clone(),
                size: input.size,
                modified: nanoseconds(input.modified),
                digest: digest.clone(),
            });
        }
    }
    prepared.key = key.finalize().to_hex().to_string();
    let mut outputs = Vec::new();
    for (name, written) in files {
        let path = dir.join(name);
        let meta = fs::metadata(&path).at("read", &path)?;
        outputs.push(Trace {
            file: name.clone(),
            size: written.size,
            modified: nanoseconds(modified(&meta)),
            digest: written.digest.clone(),
        });
    }
    let manifest = Manifest {
        format: FORMAT,
        tool: format!("{} {}", env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION")),
        settings: settings.to_owned(),
        prepared: prepared.clone(),
        inputs,
        outputs,
    };
    save(dir, &manifest)
}

fn save(dir: &Path, manifest: &Manifest) -> Result<()> {
    let path = dir.join(MANIFEST_FILE);
    let new = dir.join(format!("{MANIFEST_FILE}.new"));
    let text = serde_json::to_vec_pretty(manifest)
        .map_err(|e| Error::Json { path: path.clone(), message: e.to_string() })?;
    let mut file = File::create(&new).at("create", &new)?;
    file.write_all(&text).at("write", &new)?;
    file.sync_all().at("flush", &new)?;
    flush(dir)?;
    fs::rename(&new, &path).at("rename", &path)?;
    flush(dir)
}

/// Makes renames in a directory last.
fn flush(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|dir| dir.sync_all()).at("flush", dir)
}
