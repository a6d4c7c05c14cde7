//! Data preparation, the same for every backend: one file of JSON lines a stage, and what is held out.
//!
//! ```text
//! sources -> scan: 32 bytes a document -> choose: held out, align, pretrain -> write: lines in order -> rename
//! ```
//!
//! The corpus is read twice and never held; documents are told apart by a keyed digest of their text, which is also
//! the draw that decides where they go. `docs/data.md` has the rules.

mod chat;
mod choose;
mod inputs;
mod manifest;
mod plan;
mod read;
mod record;
mod scan;
mod sort;
#[cfg(test)]
mod tests;
mod write;

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::backend::protocol::DataFormat;
use crate::error::{Error, IoContext as _, Result};
use crate::pipeline::project::Loaded;

use choose::{Chosen, Part};
use inputs::{Family, Kind, families};
pub use manifest::MANIFEST_FILE;
pub use plan::{DataPlan, PlannedShare, PlannedStage, plan};
pub use record::Message;
use write::Written;

/// Where work happens before it counts.
const SCRATCH: &str = ".preparing";

/// Data, ready for training.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Prepared {
    /// Text for the detached layers.
    pub pretrain: Option<Dataset>,
    /// Text for the short fine-tune.
    pub align: Option<Dataset>,
    /// Chats.
    pub sft: Option<Dataset>,
    /// What no stage sees.
    pub held_out: Vec<HeldOutSlice>,
    /// blake3 over the settings and the content of the sources, in hex.
    pub key: String,
    /// Documents that were there more than once, beyond the first.
    pub duplicates: u64,
    /// Records without text.
    pub empty: u64,
    /// Records left out because they cannot be used.
    pub skipped: u64,
    /// What is worth knowing, one sentence each.
    pub notes: Vec<String>,
}

/// A file of records for a stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Dataset {
    /// Relative to the directory: `pretrain.jsonl`.
    pub file: String,
    /// What records are.
    pub format: DataFormat,
    /// Number of records.
    pub records: u64,
    /// UTF-8 bytes of text in them.
    pub bytes: u64,
    /// blake3 of the file, in hex.
    pub digest: String,
    /// By source, in the order of the project.
    pub shares: Vec<Share>,
}

/// What a source gave.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// Its language.
    pub language: String,
    /// Its path, as the project has it.
    pub source: String,
    /// Number of records.
    pub records: u64,
    /// UTF-8 bytes of text in them.
    pub bytes: u64,
}

/// Records that no stage sees.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldOutSlice {
    /// The language, or `chat/` and the language.
    pub name: String,
    /// Relative to the directory.
    pub file: String,
    /// What records are.
    pub format: DataFormat,
    /// Number of records.
    pub records: u64,
    /// UTF-8 bytes of text in them.
    pub bytes: u64,
    /// blake3 of the file, in hex.
    pub digest: String,
}

/// Who watches, and may stop it.
pub trait Watch {
    /// Bytes of a source that were read.
    fn reading(&self, file: &Path, done: u64, total: u64);
    /// Bytes of all prepared files that were written.
    fn writing(&self, file: &Path, done: u64, total: u64);
    /// Whether to stop.
    fn stop(&self) -> bool;
    /// Something worth knowing.
    fn note(&self, text: &str);
}

/// Prepares the data of a project in a directory; at once where nothing has changed since.
///
/// Files appear by renaming, the manifest last: what it names is whole. Stopped or killed, it begins anew.
pub fn prepare(loaded: &Loaded, dir: &Path, watch: &dyn Watch) -> Result<Prepared> {
    let families = families(loaded)?;
    let settings = manifest::settings(loaded);
    if let Some(prepared) = manifest::current(dir, &settings, &families)? {
        return Ok(prepared);
    }
    fs::create_dir_all(dir).at("create", dir)?;
    let scratch = dir.join(SCRATCH);
    remove(&scratch)?;
    fs::create_dir(&scratch).at("create", &scratch)?;
    let made = make(loaded, &families, &scratch, watch);
    let published = made.and_then(|made| publish(dir, &settings, &families, made, watch));
    let removed = remove(&scratch);
    let prepared = published?;
    removed?;
    Ok(prepared)
}

/// What is prepared, if it still holds. Writes nothing.
pub fn current(loaded: &Loaded, dir: &Path) -> Result<Option<Prepared>> {
    manifest::current(dir, &manifest::settings(loaded), &families(loaded)?)
}

fn remove(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e).at("remove", dir),
        _ => Ok(()),
    }
}

/// What was made and waits in the scratch directory.
struct Made {
    prepared: Prepared,
    /// File names and what they are.
    files: Vec<(String, Written)>,
    /// Digests of the inputs, by family.
    digests: Vec<Vec<String>>,
}

fn make(loaded: &Loaded, families: &[Family], scratch: &Path, watch: &dyn Watch) -> Result<Made> {
    let data = &loaded.project.data;
    let seed = loaded.project.seed;
    let key = blake3::derive_key("elo-surgery 2026 document identity", &seed.to_be_bytes());
    let bytes = data.held_out.bytes.bytes().unwrap_or(0);
    let mut made = Made { prepared: Prepared::default(), files: Vec::new(), digests: Vec::new() };
    for (number, family) in families.iter().enumerate() {
        let scratch = scratch.join(number.to_string());
        fs::create_dir(&scratch).at("create", &scratch)?;
        let scanned = scan::scan(family, &key, data.on_bad, &scratch, watch)?;
        let held_out = (bytes, data.held_out.fraction);
        let chosen = choose::choose(family, &scanned.entries, held_out, &scratch)?;
        if watch.stop() {
            return Err(Error::Interrupted { resumable: true });
        }
        let names: Vec<Option<String>> = chosen
            .destinations
            .iter()
            .map(|d| (d.records > 0).then(|| file_name(family, d.part)))
            .collect();
        let written = write::write(family, &chosen, &names, &scratch, watch)?;
        describe(&mut made.prepared, family, &chosen, &names, &written);
        for tally in &scanned.tallies {
            made.prepared.empty += tally.empty;
            made.prepared.skipped += tally.bad;
        }
        let files = names.into_iter().zip(written);
        made.files.extend(files.filter_map(|(name, written)| Some((name?, written?))));
        made.digests.push(scanned.tallies.into_iter().map(|tally| tally.digest).collect());
    }
    remarks(&mut made.prepared);
    Ok(made)
}

fn file_name(family: &Family, part: Part) -> String {
    match (part, family.kind) {
        (Part::Stage(stage), _) => format!("{}.jsonl", family.stages[stage].name),
        (Part::HeldOut(language), Kind::Text) => {
            format!("held-out-{}.jsonl", family.languages[language])
        }
        (Part::HeldOut(language), Kind::Chat) => {
            format!("held-out-chat-{}.jsonl", family.languages[language])
        }
    }
}

fn describe(
    prepared: &mut Prepared,
    family: &Family,
    chosen: &Chosen,
    names: &[Option<String>],
    written: &[Option<Written>],
) {
    let format = match family.kind {
        Kind::Text => DataFormat::Text,
        Kind::Chat => DataFormat::Messages,
    };
    prepared.duplicates += chosen.duplicates;
    prepared.notes.extend(chosen.notes.iter().cloned());
    for ((destination, name), written) in chosen.destinations.iter().zip(names).zip(written) {
        let (Some(file), Some(written)) = (name.clone(), written) else {
            continue;
        };
        let (records, bytes, digest) =
            (destination.records, destination.bytes, written.digest.clone());
        let stage = match destination.part {
            Part::Stage(stage) => &family.stages[stage],
            Part::HeldOut(language) => {
                let language = &family.languages[language];
                let name = match family.kind {
                    Kind::Text => language.clone(),
                    Kind::Chat => format!("chat/{language}"),
                };
                let slice = HeldOutSlice { name, file, format, records, bytes, digest };
                prepared.held_out.push(slice);
                continue;
            }
        };
        let shares = stage.shares.iter().zip(&destination.shares);
        let shares = shares.map(|(share, &(records, bytes))| Share {
            language: family.languages[usize::from(share.language)].clone(),
            source: share.label.clone(),
            records,
            bytes,
        });
        let dataset = Dataset { file, format, records, bytes, digest, shares: shares.collect() };
        match stage.name {
            "pretrain" => prepared.pretrain = Some(dataset),
            "align" => prepared.align = Some(dataset),
            _ => prepared.sft = Some(dataset),
        }
    }
}

fn remarks(prepared: &mut Prepared) {
    let Prepared { duplicates, empty, skipped, notes, .. } = prepared;
    if *duplicates > 0 {
        notes.push(format!("{duplicates} documents were there before and are left out"));
    }
    if *empty > 0 {
        notes.push(format!("{empty} records hold no text and are left out"));
    }
    if *skipped > 0 {
        notes.push(format!("{skipped} records cannot be used and are left out"));
    }
}

/// Puts everything in its place, the manifest last.
fn publish(
    dir: &Path,
    settings: &str,
    families: &[Family],
    made: Made,
    watch: &dyn Watch,
) -> Result<Prepared> {
    let Made { mut prepared, files, digests } = made;
    if watch.stop() {
        return Err(Error::Interrupted { resumable: true });
    }
    let old = manifest::retire(dir)?;
    for (name, written) in &files {
        let place = dir.join(name);
        fs::rename(&written.path, &place).at("rename", &place)?;
    }
    for stale in old.iter().filter(|old| files.iter().all(|(name, _)| name != *old)) {
        let stale: PathBuf = dir.join(stale);
        match fs::remove_file(&stale) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(e).at("remove", &stale);
            }
            _ => {}
        }
    }
    manifest::write(dir, settings, families, &digests, &files, &mut prepared)?;
    for note in &prepared.notes {
        watch.note(note);
    }
    Ok(prepared)
}
