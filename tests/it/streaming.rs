//! Finished shards that are taken away while later ones are made: order, room on the disk, and what a stop leaves.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use elo_surgery::checkpoint::Checkpoint;
use elo_surgery::engine::{Execution, NoObserver, Simd, Sink, execute, execute_into};
use elo_surgery::error::{HubFailure, Result};
use elo_surgery::format::{Digest, DigestAlgorithm, FileRecord, PROVENANCE_FILE};
use elo_surgery::ops::reshard;
use elo_surgery::{Error, plan::Plan};
use tempfile::TempDir;

use crate::support::checkpoint::Model;
use crate::support::disk::SmallDisk;
use crate::support::{fixture, skipped};

/// A place for shards that remembers what it was given.
#[derive(Default)]
struct Store {
    keeps: bool,
    /// Shards by name, as they are there.
    there: Mutex<BTreeMap<String, Vec<u8>>>,
    /// Names in the order in which they came.
    came: Mutex<Vec<String>>,
    /// The shard that is not taken.
    refuses: Mutex<Option<usize>>,
    /// The most shards that were in the staging directory when one was taken.
    most_here: Mutex<usize>,
    /// The files that a completed run left, besides the shards.
    others: Mutex<BTreeMap<String, Vec<u8>>>,
}

impl Sink for Store {
    fn take(&self, shard: &FileRecord, path: &Path) -> Result<FileRecord> {
        let here = fs::read_dir(path.parent().unwrap()).unwrap().count();
        let mut most = self.most_here.lock().unwrap();
        *most = here.max(*most);
        if *self.refuses.lock().unwrap() == Some(self.came.lock().unwrap().len()) {
            return Err(Error::Hub {
                what: shard.file.clone(),
                kind: HubFailure::Network,
                problem: "it broke off".into(),
                hint: String::new(),
            });
        }
        let bytes = fs::read(path).unwrap();
        assert_eq!(bytes.len() as u64, shard.size);
        self.there.lock().unwrap().insert(shard.file.clone(), bytes);
        self.came.lock().unwrap().push(shard.file.clone());
        let digest = Digest { algorithm: DigestAlgorithm::Sha256, hex: "0".repeat(64) };
        Ok(FileRecord { digest: Some(digest), ..shard.clone() })
    }

    fn has(&self, shard: &FileRecord) -> Result<bool> {
        assert_eq!(shard.digest.as_ref().unwrap().hex, "0".repeat(64));
        Ok(self.there.lock().unwrap().contains_key(&shard.file))
    }

    fn keeps(&self) -> bool {
        self.keeps
    }

    fn complete(&self, tree: &Path, files: &[FileRecord]) -> Result<()> {
        assert!(files.iter().any(|file| file.file == "config.json"));
        *self.others.lock().unwrap() = model_files(tree);
        Ok(())
    }
}

impl Store {
    fn everything(&self) -> BTreeMap<String, Vec<u8>> {
        let mut all = self.others.lock().unwrap().clone();
        all.extend(self.there.lock().unwrap().clone());
        all
    }
}

/// The files of a model, but for our own record.
fn model_files(root: &Path) -> BTreeMap<String, Vec<u8>> {
    let files = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path());
    let named = files.map(|path| {
        (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(path).unwrap())
    });
    named.filter(|(name, _)| name != PROVENANCE_FILE).collect()
}

/// A plan of many small shards.
fn plan() -> Plan {
    let model = Checkpoint::open(fixture("golden/models/llama31-base")).unwrap();
    reshard(&model, 40_000).unwrap()
}

fn scene() -> (TempDir, Plan, PathBuf, BTreeMap<String, Vec<u8>>) {
    let dir = tempfile::tempdir().unwrap();
    let plan = plan();
    assert!(plan.shards.len() > 5, "{} shards", plan.shards.len());
    let whole = dir.path().join("whole");
    execute(&plan, &Execution::to(&whole), &NoObserver).unwrap();
    let expected = model_files(&whole);
    let out = dir.path().join("out");
    (dir, plan, out, expected)
}

fn run(plan: &Plan, out: &Path, store: &Store) -> Result<()> {
    let options = Execution { threads: 2, ..Execution::to(out) };
    execute_into(&Simd::new(), plan, &options, &NoObserver, Some(store)).map(|_| ())
}

#[test]
fn shards_that_are_not_kept_never_pile_up() {
    let (dir, plan, out, expected) = scene();
    let store = Store::default();
    run(&plan, &out, &store).unwrap();
    assert_eq!(store.everything(), expected);
    // Two at work, one in the carrier's hands, one that waits, and one that a worker wants to hand on.
    assert!(*store.most_here.lock().unwrap() <= 5);
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["whole"], "no output, no staging directory");
}

/// A disk that holds half of the output is enough, and too small for shards that are kept.
#[test]
fn a_small_disk_is_enough_for_shards_that_go() {
    let temp = tempfile::tempdir().unwrap();
    let model = temp.path().join("model");
    Model::medium(3).write(&model);
    let plan = reshard(&Checkpoint::open(&model).unwrap(), 1_500_000).unwrap();
    let Some(_disk) = SmallDisk::mount(&temp.path().join("disk"), 20 << 20) else {
        return skipped("shards on a small disk", "tmpfs cannot be mounted here (needs root)");
    };
    let out = temp.path().join("disk/out");
    let kept = Store { keeps: true, ..Store::default() };
    let refused = run(&plan, &out, &kept).unwrap_err();
    assert!(matches!(refused, Error::NoSpace { .. }), "{refused}");
    assert!(kept.came.lock().unwrap().is_empty());
    let store = Store::default();
    run(&plan, &out, &store).unwrap();
    let bytes: usize = store.there.lock().unwrap().values().map(Vec::len).sum();
    assert!(bytes > 30 << 20, "{bytes} bytes");
    assert_eq!(store.came.lock().unwrap().len(), plan.shards.len());
}

#[test]
fn shards_that_are_kept_are_in_both_places() {
    let (_dir, plan, out, expected) = scene();
    let store = Store { keeps: true, ..Store::default() };
    run(&plan, &out, &store).unwrap();
    assert_eq!(model_files(&out), expected);
    assert_eq!(store.everything(), expected);
}

#[test]
fn what_was_taken_is_not_made_again() {
    for lost in [false, true] {
        let (_dir, plan, out, expected) = scene();
        let store = Store { refuses: Mutex::new(Some(3)), ..Store::default() };
        let error = run(&plan, &out, &store).unwrap_err();
        assert!(error.to_string().contains("it broke off"), "{error}");
        assert!(!out.exists());
        let before = store.came.lock().unwrap().clone();
        assert_eq!(before.len(), 3);
        if lost {
            store.there.lock().unwrap().remove(&before[1]);
        }
        *store.refuses.lock().unwrap() = None;
        run(&plan, &out, &store).unwrap();
        assert_eq!(store.everything(), expected);
        let came = store.came.lock().unwrap();
        let times = |name: &String| came.iter().filter(|other| *other == name).count();
        assert_eq!(times(&before[0]), 1);
        assert_eq!(times(&before[1]), 1 + usize::from(lost));
        assert_eq!(came.len(), plan.shards.len() + usize::from(lost));
    }
}

#[test]
fn without_the_sink_what_was_taken_is_made_again() {
    let (_dir, plan, out, expected) = scene();
    let store = Store { refuses: Mutex::new(Some(2)), ..Store::default() };
    run(&plan, &out, &store).unwrap_err();
    execute(&plan, &Execution::to(&out), &NoObserver).unwrap();
    assert_eq!(model_files(&out), expected);
}
