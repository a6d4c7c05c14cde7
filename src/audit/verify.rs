//! Is a checkpoint sound? Structure, NaN and infinities, and the digests of `elo-surgery.json`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::num::NonZeroUsize;
use std::path::{Component, Path, PathBuf};

use rayon::prelude::*;

use super::scan::{Counted, FileScan, ReadObserver, on_threads};
use super::structure;
use super::units::Grouped;
use super::verdict::{FileCheck, FileState, NonFiniteTensor, Verification};
use crate::checkpoint::{Checkpoint, ShardFile};
use crate::error::{IoContext, Result, printable};
use crate::format::{Digest, DigestAlgorithm, FileRecord, Reading, SourceFile};

/// How thoroughly to look.
#[derive(Clone, Copy, Debug)]
pub struct VerifyOptions {
    /// Look at every value for NaN and infinities.
    pub read_data: bool,
    /// Compare files with the digests recorded in `elo-surgery.json`, or else with those that a Hugging Face cache calls them by.
    pub digests: bool,
    /// How many threads; `None` is one for each core.
    pub threads: Option<NonZeroUsize>,
    /// How bytes are brought in.
    pub reading: Reading,
}

impl Default for VerifyOptions {
    fn default() -> Self {
        Self { read_data: true, digests: true, threads: None, reading: Reading::default() }
    }
}

/// Examines a checkpoint; damage is an error of exit code 7 that lists the files.
pub fn verify(
    checkpoint: &Checkpoint,
    options: &VerifyOptions,
    observer: &dyn ReadObserver,
) -> Result<Verification> {
    examine(checkpoint, options, observer)?.into_result()
}

/// Examines a checkpoint and reports damage in [`Verification::problems`] beside everything else.
///
/// Reads each file at most once, in tiles: memory is a few MiB a thread. An error means that the
/// examination itself failed: a file could not be read, or changed meanwhile.
pub fn examine(
    checkpoint: &Checkpoint,
    options: &VerifyOptions,
    observer: &dyn ReadObserver,
) -> Result<Verification> {
    let mut files = file_states(checkpoint)?;
    let jobs = jobs(checkpoint, options, &files);
    observer.begin(jobs.iter().map(|job| job.size).sum());
    let found = on_threads(options.threads, || {
        let outcomes = jobs.par_iter().map(|job| job.run(options.reading, observer));
        outcomes.collect::<Result<Vec<_>>>()
    })?;
    let mut non_finite = Vec::new();
    for (job, outcome) in jobs.iter().zip(found) {
        non_finite.extend(outcome.non_finite);
        if let (Some(recorded), Some(found)) = (&job.digest, outcome.digest) {
            let state = if *recorded == found {
                FileState::Verified { digest: found }
            } else {
                let recorded = recorded.clone();
                FileState::Changed { recorded, found }
            };
            files.insert(job.file.clone(), (job.size, state));
        }
    }
    let mut warnings = structure::doubts(checkpoint);
    warnings.extend(non_finite.iter().map(describe));
    let files: Vec<FileCheck> =
        files.into_iter().map(|(file, (size, state))| FileCheck { file, size, state }).collect();
    Ok(Verification {
        name: checkpoint.name().to_owned(),
        root: checkpoint.root().to_owned(),
        problems: files
            .iter()
            .filter_map(|check| check.state.problem(&check.file, check.size))
            .collect(),
        warnings,
        non_finite,
        files,
        data_was_read: options.read_data,
    })
}

fn describe(found: &NonFiniteTensor) -> String {
    let values = match (found.nan, found.infinite) {
        (nan, 0) => format!("{} NaN", Grouped(nan)),
        (0, infinite) => format!("{} infinite", Grouped(infinite)),
        (nan, infinite) => format!("{} NaN and {} infinite", Grouped(nan), Grouped(infinite)),
    };
    format!(
        "tensor `{}` in `{}` holds {values} value(s)",
        printable(&found.tensor),
        printable(&found.shard)
    )
}

/// What can be said of every file without reading it: there or not, size as recorded or not.
fn file_states(checkpoint: &Checkpoint) -> Result<BTreeMap<String, (u64, FileState)>> {
    let mut states = BTreeMap::new();
    for shard in checkpoint.shards() {
        let state = (shard.identity.size, FileState::NotHashed);
        states.insert(shard.file.clone(), state);
    }
    let Some(record) = checkpoint.provenance() else {
        return Ok(states);
    };
    let recorded: BTreeSet<&str> = record.files.iter().map(|f| f.file.as_str()).collect();
    for file in record.files.iter().map(|f| (f, is_inside(&f.file))) {
        let (record, inside) = file;
        let size = inside
            .then(|| fs::metadata(checkpoint.root().join(&record.file)).ok())
            .flatten()
            .map(|meta| meta.len());
        let state = match size {
            _ if !inside => FileState::Outside,
            None => FileState::Missing,
            Some(size) if size != record.size => FileState::Resized { recorded: record.size },
            Some(_) => FileState::NotHashed,
        };
        states.insert(record.file.clone(), (size.unwrap_or(0), state));
    }
    for (file, size) in shards_present(checkpoint.root())? {
        if !recorded.contains(file.as_str()) {
            states.insert(file, (size, FileState::Extra));
        }
    }
    Ok(states)
}

/// A record is data from elsewhere: only plain names below the checkpoint are followed.
fn is_inside(file: &str) -> bool {
    let plain = |component| matches!(component, Component::Normal(_));
    !file.is_empty() && Path::new(file).components().all(plain)
}

/// Every safetensors file of the directory, also those that no index names.
fn shards_present(root: &Path) -> Result<Vec<(String, u64)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root).at("list", root)? {
        let entry = entry.at("list", root)?;
        if let Ok(name) = entry.file_name().into_string()
            && Path::new(&name).extension().is_some_and(|e| e == "safetensors")
        {
            let size = fs::metadata(entry.path()).map_or(0, |meta| meta.len());
            found.push((name, size));
        }
    }
    Ok(found)
}

/// One file to read, and why.
struct Job<'a> {
    file: String,
    path: PathBuf,
    size: u64,
    /// Set where the values are to be looked at.
    shard: Option<(&'a Checkpoint, &'a ShardFile)>,
    /// The recorded digest, where it is to be compared.
    digest: Option<Digest>,
}

struct Outcome {
    non_finite: Vec<NonFiniteTensor>,
    digest: Option<Digest>,
}

fn jobs<'a>(
    checkpoint: &'a Checkpoint,
    options: &VerifyOptions,
    states: &BTreeMap<String, (u64, FileState)>,
) -> Vec<Job<'a>> {
    let records: &[FileRecord] = checkpoint.provenance().map_or(&[], |p| &p.files);
    let records: BTreeMap<&str, &FileRecord> =
        records.iter().map(|r| (r.file.as_str(), r)).collect();
    let wanted = |file: &str| {
        let digest = records.get(file).and_then(|r| r.digest.clone());
        let whole = matches!(states.get(file), Some((_, FileState::NotHashed)));
        digest.filter(|_| options.digests && whole)
    };
    let shards = checkpoint.shards();
    let mut jobs: Vec<Job> = shards
        .iter()
        .map(|shard| Job {
            file: shard.file.clone(),
            path: shard.path.clone(),
            size: shard.identity.size,
            shard: options.read_data.then_some((checkpoint, shard)),
            digest: wanted(&shard.file)
                .or_else(|| options.digests.then(|| name_in_cache(&shard.path)).flatten()),
        })
        .collect();
    let known: BTreeSet<&str> = shards.iter().map(|s| s.file.as_str()).collect();
    let others = records.values().filter(|r| !known.contains(r.file.as_str()));
    jobs.extend(others.map(|record| Job {
        file: record.file.clone(),
        path: checkpoint.root().join(&record.file),
        size: record.size,
        shard: None,
        digest: wanted(&record.file),
    }));
    jobs.retain(|job| job.shard.is_some() || job.digest.is_some());
    jobs
}

/// The digest that a file of a Hugging Face cache is called by: `blobs/SHA-256`.
fn name_in_cache(path: &Path) -> Option<Digest> {
    let real = fs::canonicalize(path).ok()?;
    let hex = real.file_name()?.to_str()?;
    let is_hash = hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let named = is_hash && real.parent()?.file_name()? == "blobs";
    named.then(|| Digest { algorithm: DigestAlgorithm::Sha256, hex: hex.to_owned() })
}

impl Job<'_> {
    fn run(&self, reading: Reading, observer: &dyn ReadObserver) -> Result<Outcome> {
        let source = match self.shard {
            Some((_, shard)) => shard.source()?,
            None => SourceFile::open(&self.path)?,
        };
        let scan = FileScan {
            source: source.reading(reading),
            tensors: self.shard.map_or_else(Vec::new, floats),
            digest: self.digest.as_ref().map(|d| d.algorithm),
        };
        let found = scan.run(observer)?;
        let tensors = scan.tensors.iter().zip(&found.non_finite);
        let non_finite = tensors
            .filter(|(_, (nan, infinite))| nan + infinite > 0)
            .map(|(tensor, &(nan, infinite))| NonFiniteTensor {
                tensor: tensor.name.to_owned(),
                shard: self.file.clone(),
                nan,
                infinite,
            })
            .collect();
        Ok(Outcome { non_finite, digest: found.digest })
    }
}

/// The float tensors that the checkpoint takes from a shard. Duplicates that it ignores are left out.
fn floats<'a>((checkpoint, shard): (&'a Checkpoint, &'a ShardFile)) -> Vec<Counted<'a>> {
    let entries = shard.header.tensors.iter();
    entries
        .filter(|entry| entry.dtype.is_float() && entry.range.start < entry.range.end)
        .filter(|entry| {
            let owner = checkpoint.tensor(&entry.name);
            owner.is_some_and(|(owner, _)| owner.file == shard.file)
        })
        .map(|entry| Counted { name: &entry.name, dtype: &entry.dtype, bytes: shard.bytes(entry) })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use sha2::{Digest as _, Sha256};

    use super::*;
    use crate::audit::fixture::Fixture;

    fn options() -> VerifyOptions {
        VerifyOptions::default()
    }

    fn check(fixture: &Fixture) -> Verification {
        let opened = Checkpoint::open(fixture.dir.path()).unwrap();
        examine(&opened, &options(), &|_: u64| {}).unwrap()
    }

    fn sha256(bytes: &[u8]) -> String {
        let hex: Vec<String> = Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect();
        hex.concat()
    }

    /// Writes the fixture and an `elo-surgery.json` that records all of it.
    fn recorded(fixture: &Fixture) {
        fixture.write(3);
        fs::write(fixture.path("tokenizer.json"), "{}").unwrap();
        let file = |name: &str, digest: Option<&str>| {
            let bytes = fs::read(fixture.path(name)).unwrap();
            let digest = digest.map(|algorithm| {
                if algorithm == "blake3" {
                    return format!("blake3:{}", blake3::hash(&bytes).to_hex());
                }
                format!("sha256:{}", sha256(&bytes))
            });
            match digest {
                Some(digest) => json!({"file": name, "size": bytes.len(), "digest": digest}),
                None => json!({"file": name, "size": bytes.len()}),
            }
        };
        let files = [
            file(&fixture.shard_name(0), Some("blake3")),
            file("tokenizer.json", Some("sha256")),
            file("config.json", None),
        ];
        write_record(fixture, &json!(files));
    }

    fn write_record(fixture: &Fixture, files: &serde_json::Value) {
        let record = json!({
            "tool": "elo-surgery", "version": "0.1.0",
            "operation": {"verb": "extract", "parameters": {}},
            "plan": "0", "parents": [], "files": files,
        });
        fs::write(fixture.path("elo-surgery.json"), record.to_string()).unwrap();
    }

    #[test]
    fn a_sound_output_verifies() {
        let fixture = Fixture::llama(2, |_, _| 0.5);
        recorded(&fixture);
        let found = check(&fixture);
        assert_eq!(found.problems, Vec::<String>::new());
        let states: Vec<(&str, bool)> = found
            .files
            .iter()
            .map(|f| (f.file.as_str(), f.state == FileState::NotHashed))
            .collect();
        let expected =
            [("config.json", true), ("model.safetensors", false), ("tokenizer.json", false)];
        assert_eq!(states, expected);
        let text = found.render();
        assert!(text.contains("no damage found · 2 of 3 files verified by digest"), "{text}");
        assert!(text.contains("config.json"), "{text}");
        assert!(text.contains("not hashed"), "{text}");
    }

    #[test]
    fn a_file_of_a_cache_is_what_its_name_says() {
        let fixture = Fixture::llama(2, |_, _| 0.5);
        fixture.write(3);
        let shard = fixture.path("model.safetensors");
        let mut bytes = fs::read(&shard).unwrap();
        let blob = fixture.path("blobs").join(sha256(&bytes));
        fs::create_dir(fixture.path("blobs")).unwrap();
        fs::rename(&shard, &blob).unwrap();
        std::os::unix::fs::symlink(&blob, &shard).unwrap();
        let opened = || {
            let options = crate::checkpoint::OpenOptions::default().follow_symlinks(true);
            options.open(fixture.dir.path()).unwrap()
        };
        let found = examine(&opened(), &options(), &|_: u64| {}).unwrap();
        assert!(matches!(found.files[0].state, FileState::Verified { .. }), "{:?}", found.files);
        bytes[900] ^= 1;
        fs::write(&blob, bytes).unwrap();
        let found = examine(&opened(), &options(), &|_: u64| {}).unwrap();
        assert!(matches!(found.files[0].state, FileState::Changed { .. }), "{:?}", found.files);
    }

    #[test]
    fn one_flipped_bit_is_found_in_every_file() {
        for (file, at) in [("model.safetensors", 700), ("tokenizer.json", 0)] {
            let fixture = Fixture::llama(2, |_, _| 0.5);
            recorded(&fixture);
            let mut bytes = fs::read(fixture.path(file)).unwrap();
            let at = if at == 0 { 0 } else { bytes.len() - 1 };
            bytes[at] ^= 1;
            fs::write(fixture.path(file), bytes).unwrap();
            let opened = Checkpoint::open(fixture.dir.path()).unwrap();
            let refused = verify(&opened, &options(), &|_: u64| {}).unwrap_err();
            assert_eq!(refused.exit_code(), 7);
            assert!(refused.to_string().contains(&format!("`{file}` has changed")), "{refused}");
        }
    }

    #[test]
    fn missing_extra_resized_and_outside_files_are_all_listed() {
        let fixture = Fixture::llama(1, |_, _| 0.5);
        recorded(&fixture);
        fs::copy(fixture.path("model.safetensors"), fixture.path("stale.safetensors")).unwrap();
        let files = json!([
            {"file": "model.safetensors", "size": 1},
            {"file": "gone.json", "size": 2},
            {"file": "../outside", "size": 2, "digest": format!("blake3:{}", "0".repeat(64))},
        ]);
        write_record(&fixture, &files);
        let problems = check(&fixture).problems.join("\n");
        for expected in [
            "`gone.json` is missing",
            "bytes, recorded were 1",
            "`stale.safetensors` is an extra shard",
            "`../outside` is recorded but leads out",
        ] {
            assert!(problems.contains(expected), "{expected}: {problems}");
        }
    }

    #[test]
    fn values_that_are_not_finite_are_counted_by_tensor() {
        let fixture = Fixture::llama(2, |t, e| match (t, e) {
            (2, 1 | 3) => f32::NAN,
            (2, 5) | (6, 0) => f32::INFINITY,
            _ => 1.0,
        });
        // Odd headers move the data off every alignment.
        for padding in 0..9 {
            fixture.write(padding);
            let found = check(&fixture);
            let warnings = found.warnings.join("\n");
            assert!(
                warnings.contains("`model.layers.0.mlp.down_proj.weight` in `model.safetensors` holds 2 NaN and 1 infinite"),
                "{warnings}"
            );
            assert_eq!(found.non_finite.len(), 2);
            assert_eq!(found.problems, Vec::<String>::new());
        }
    }

    #[test]
    fn structure_alone_reads_no_data() {
        let fixture = Fixture::llama(2, |_, _| f32::NAN);
        recorded(&fixture);
        let opened = Checkpoint::open(fixture.dir.path()).unwrap();
        let options = VerifyOptions { read_data: false, digests: false, ..options() };
        let nothing = |_: u64| panic!("data was read");
        let found = examine(&opened, &options, &nothing).unwrap();
        assert!(found.non_finite.is_empty());
        assert!(found.files.iter().all(|f| f.state == FileState::NotHashed));
    }
}
