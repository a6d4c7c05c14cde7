//! The journal of a staging directory: which shards are finished. One JSON line an entry, flushed before it is trusted.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{IoContext, Result};
use crate::format::{Digest, DigestAlgorithm, FileRecord, PROVENANCE_FILE, unwritten};
use crate::plan::{Plan, Source};

/// First line: what the run is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Begun {
    pub(super) version: String,
    pub(super) plan: String,
    pub(super) digest: Option<String>,
    pub(super) sources: Vec<Source>,
}

/// Later lines.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Entry {
    /// The first line.
    Begun(Begun),
    /// A shard is complete.
    Shard(Finished),
    /// A finished shard has been taken away: it is where the run's sink put it, under this digest, and not here.
    Taken(FileRecord),
    /// Everything is complete; the output is about to appear.
    Publishing(Mark),
}

/// What tells a tree from every other one, however alike: its provenance file on the filesystem.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mark {
    ino: u64,
    mtime_ns: i64,
}

impl Mark {
    /// The mark of the tree in `root`, which must be whole.
    pub(super) fn of(root: &Path) -> std::io::Result<Self> {
        let meta = fs::symlink_metadata(root.join(PROVENANCE_FILE))?;
        let seconds = meta.mtime().saturating_mul(1_000_000_000);
        Ok(Self { ino: meta.ino(), mtime_ns: seconds.saturating_add(meta.mtime_nsec()) })
    }

    /// Whether it is the same file, perhaps written again.
    pub(super) fn is_same_file(self, other: Self) -> bool {
        self.ino == other.ino
    }
}

/// A finished shard.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Finished {
    pub(super) file: String,
    pub(super) size: u64,
    pub(super) digest: Option<Digest>,
    /// Bytes of it whose blocks are the source's.
    pub(super) shared: u64,
    /// Tensors with NaNs or infinities: name and counts.
    pub(super) non_finite: Vec<(String, u64, u64)>,
}

impl Finished {
    /// What the provenance file says of it.
    pub(super) fn record(&self) -> FileRecord {
        FileRecord { file: self.file.clone(), size: self.size, digest: self.digest.clone() }
    }
}

impl Begun {
    pub(super) fn new(plan: &Plan, digest: Option<DigestAlgorithm>) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            plan: plan.digest(),
            digest: digest.map(|d| d.as_str().to_owned()),
            sources: plan.sources.clone(),
        }
    }

    /// What keeps a run begun as `self` from being continued as `now`.
    pub(super) fn difference(&self, now: &Self) -> Option<String> {
        if self.version != now.version {
            return Some(format!(
                "it was begun by version {}, this is {}",
                self.version, now.version
            ));
        }
        for (old, new) in self.sources.iter().zip(&now.sources) {
            let changed = old.identity.difference(&new.identity);
            if let Some(what) = changed.filter(|_| old.path == new.path) {
                return Some(format!("source `{}` changed: {what}", old.path.display()));
            }
        }
        if self.plan != now.plan {
            return Some("it makes something else (other models or parameters)".to_owned());
        }
        if self.digest != now.digest {
            let name = |d: &Option<String>| d.clone().unwrap_or("none".to_owned());
            return Some(format!(
                "it has `--digest {}`, this `{}`",
                name(&self.digest),
                name(&now.digest)
            ));
        }
        (self.sources != now.sources).then(|| "its sources lie elsewhere".to_owned())
    }
}

/// An open journal.
#[derive(Debug)]
pub(super) struct Journal {
    file: File,
    path: PathBuf,
    sync: bool,
}

impl Journal {
    /// Opens for appending; entries are flushed to the device if `sync`.
    pub(super) fn append_to(path: &Path, sync: bool) -> Result<Self> {
        let file = File::options().append(true).create(true).open(path).at("open", path)?;
        Ok(Self { file, path: path.to_owned(), sync })
    }

    /// Adds an entry, in one write.
    pub(super) fn add(&mut self, entry: &Entry) -> Result<()> {
        let mut line = serde_json::to_vec(entry).unwrap_or_default();
        line.push(b'\n');
        let written = self.file.write_all(&line);
        written.map_err(|e| unwritten(e, "write", &self.path, line.len() as u64))?;
        if self.sync {
            self.file.sync_data().at("flush", &self.path)?;
        }
        Ok(())
    }

    /// Reads the entries of a journal. A torn last line, and whatever follows it, counts as not written.
    pub(super) fn read(path: &Path) -> Vec<Entry> {
        let text = fs::read_to_string(path).unwrap_or_default();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map_while(|line| serde_json::from_str(line).ok()).collect()
    }
}
