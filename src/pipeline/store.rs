//! The files of a run's output directory: lock, records, digests that are known, earlier results.
//!
//! ```text
//! OUT/
//!   elo.lock.json        every stage's record, for people and programs
//!   NN-STAGE/stage.json  the record of a stage: what decides whether it is up to date
//!   .lock                held while a run is at work
//!   .known.json          digests and measurements of models, by what they are
//!   .earlier/            results of other settings; they come back when the settings do
//! ```

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::fingerprint;
use super::record::{Measured, RECORD_FILE, Record, StageRecord};
use crate::error::{Error, IoContext as _, Result};

const STAGE_FILE: &str = "stage.json";
const LOCK_FILE: &str = ".lock";
const KNOWN_FILE: &str = ".known.json";
const EARLIER: &str = ".earlier";

/// The output directory of a run.
#[derive(Debug)]
pub struct Store {
    out: PathBuf,
    known: Known,
    /// Held by a run; without it nothing is written.
    lock: Option<File>,
}

/// What has been found out about models and need not be found out again.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Known {
    /// Model path -> stamp and content digest.
    digests: BTreeMap<String, (String, String)>,
    /// Model digest and slices -> measurements.
    measured: BTreeMap<String, Vec<Measured>>,
}

impl Store {
    /// Opens it for a run; one run at a time.
    ///
    /// # Errors
    /// [`Error::Locked`] while another run is at work.
    pub fn open(out: &Path) -> Result<Self> {
        fs::create_dir_all(out).at("create", out)?;
        let path = out.join(LOCK_FILE);
        let mut file = OpenOptions::new()
            .create(true)
            .read(true)
            .write(true)
            .truncate(false)
            .open(&path)
            .at("open", &path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                let holder = fs::read_to_string(&path).unwrap_or_default();
                let holder = if holder.is_empty() { "another run".into() } else { holder };
                return Err(Error::Locked { path: out.to_owned(), holder });
            }
            Err(errno) => return Err(errno).at("lock", &path),
        }
        file.set_len(0).at("write", &path)?;
        write!(file, "process {}", std::process::id()).at("write", &path)?;
        Ok(Self { out: out.to_owned(), known: known(out)?, lock: Some(file) })
    }

    /// Opens it for reading.
    pub fn read_only(out: &Path) -> Result<Self> {
        Ok(Self { out: out.to_owned(), known: known(out)?, lock: None })
    }

    /// The output directory.
    pub fn out(&self) -> &Path {
        &self.out
    }

    /// The record of the stage in `dir`.
    pub fn stage(&self, dir: &Path) -> Result<Option<StageRecord>> {
        let path = self.out.join(dir).join(STAGE_FILE);
        if path.exists() { read(&path).map(Some) } else { Ok(None) }
    }

    /// Writes the record of the stage in `dir`.
    pub fn put_stage(&self, dir: &Path, record: &StageRecord) -> Result<()> {
        let dir = self.out.join(dir);
        fs::create_dir_all(&dir).at("create", &dir)?;
        write_json(&dir.join(STAGE_FILE), record)
    }

    /// The record of the run.
    pub fn record(&self) -> Result<Option<Record>> {
        let path = self.out.join(RECORD_FILE);
        if path.exists() { read(&path).map(Some) } else { Ok(None) }
    }

    /// Writes the record of the run.
    pub fn put_record(&self, record: &Record) -> Result<()> {
        write_json(&self.out.join(RECORD_FILE), record)
    }

    /// The content digest of a model, if it is known and nobody has touched the model since.
    pub fn known_digest(&self, model: &Path) -> Option<String> {
        let (stamp, digest) = self.known.digests.get(&*model.to_string_lossy())?;
        (fingerprint::stamp(model).ok()? == *stamp).then(|| digest.clone())
    }

    /// The content digest of a model; computed if it must be.
    pub fn digest(&mut self, model: &Path, stop: &(dyn Fn() -> bool + Sync)) -> Result<String> {
        if let Some(known) = self.known_digest(model) {
            return Ok(known);
        }
        let stamp = fingerprint::stamp(model)?;
        let digest = fingerprint::digest(model, stop)?;
        self.known.digests.insert(model.to_string_lossy().into_owned(), (stamp, digest.clone()));
        self.save_known()?;
        Ok(digest)
    }

    /// Measurements of a model on slices.
    pub fn measured(&self, key: &str) -> Option<&Vec<Measured>> {
        self.known.measured.get(key)
    }

    /// Keeps measurements.
    pub fn put_measured(&mut self, key: String, measured: Vec<Measured>) -> Result<()> {
        self.known.measured.insert(key, measured);
        self.save_known()
    }

    fn save_known(&self) -> Result<()> {
        if self.lock.is_none() {
            return Ok(());
        }
        write_json(&self.out.join(KNOWN_FILE), &self.known)
    }

    /// Makes room in `dir` for a result with another key: what is there is set aside, and a result that was made with
    /// this key earlier comes back. Says what it did.
    pub fn turn_to(&self, dir: &Path, old: Option<&str>, new: &str) -> Result<Vec<String>> {
        let place = self.out.join(dir);
        let aside = |key: &str| {
            let name = format!("{}-{}", dir.to_string_lossy().replace('/', "-"), short(key));
            self.out.join(EARLIER).join(name)
        };
        let mut notes = Vec::new();
        if is_occupied(&place) {
            let mut target = aside(old.unwrap_or("unrecorded"));
            let mut n = 1;
            while target.exists() {
                n += 1;
                target.set_extension(n.to_string());
            }
            let parent = self.out.join(EARLIER);
            fs::create_dir_all(&parent).at("create", &parent)?;
            fs::rename(&place, &target).at("rename", &place)?;
            notes.push(format!("the earlier result is kept in `{}`", target.display()));
        }
        let earlier = aside(new);
        if earlier.is_dir() {
            if place.is_dir() {
                fs::remove_dir(&place).at("remove", &place)?;
            }
            if let Some(parent) = place.parent() {
                fs::create_dir_all(parent).at("create", parent)?;
            }
            fs::rename(&earlier, &place).at("rename", &earlier)?;
            notes.push("the result that these settings gave earlier is back".to_owned());
        }
        Ok(notes)
    }
}

/// A cut cache is an empty one.
fn known(out: &Path) -> Result<Known> {
    match read(&out.join(KNOWN_FILE)) {
        Err(Error::Json { .. }) => Ok(Known::default()),
        known => known,
    }
}

fn is_occupied(dir: &Path) -> bool {
    fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some())
}

/// The start of a key, enough to tell it from others.
pub fn short(key: &str) -> &str {
    key.get(..12).unwrap_or(key)
}

/// Reads a JSON file of ours; one that is not there is empty.
fn read<T: DeserializeOwned + Default>(path: &Path) -> Result<T> {
    match fs::read(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(T::default()),
        bytes => serde_json::from_slice(&bytes.at("read", path)?)
            .map_err(|e| Error::Json { path: path.to_owned(), message: e.to_string() }),
    }
}

/// Writes a JSON file whole or not at all.
pub(super) fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut bytes = serde_json::to_vec_pretty(value)
        .map_err(|e| Error::Json { path: path.to_owned(), message: e.to_string() })?;
    bytes.push(b'\n');
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    let mut file = File::create(&temporary).at("create", &temporary)?;
    file.write_all(&bytes).at("write", &temporary)?;
    file.sync_data().at("write", &temporary)?;
    fs::rename(&temporary, path).at("rename", &temporary)
}
