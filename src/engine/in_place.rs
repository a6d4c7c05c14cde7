//! In-place changes: only the changed bytes of a model are written, under an undo record.
//!
//! The record is complete and flushed before the first byte of the model changes, and is removed after the last. While it
//! is there every other command refuses the model; [`undo`] restores it, the same change again completes it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufReader, BufWriter, Read, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Device;
use super::chain::Chains;
use super::extents::Extents;
use super::observer::{Observer, Progress};
use super::options::{Execution, Report};
use super::output::{remove_if_there, sync_directory};
use super::sidecar::{provenance, write_whole};
use super::simd::Simd;
use super::solve::Sweeps;
use super::tile::{Filler, Scratch, Sources};
use super::whole;
use crate::error::{Error, IoContext, Result};
use crate::format::{
    FileRecord, PROVENANCE_FILE, Provenance, ShardLayout, SourceFile, UNDO_FILE, free_bytes,
    unwritten,
};
use crate::plan::{Plan, SourceId};

const RECORD_VERSION: u32 = 1;

/// First line of an undo record; the old bytes of all ranges follow, in order.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    version: u32,
    plan: String,
    files: Vec<Touched>,
    /// The model's `elo-surgery.json` before the change, if it had one.
    provenance: Option<String>,
    /// blake3 of the bytes that follow.
    digest: String,
}

/// The ranges of one file that change.
#[derive(Debug, Serialize, Deserialize)]
struct Touched {
    file: String,
    size: u64,
    ranges: Vec<Range<u64>>,
}

/// A shard of the model and what changes in it.
struct Change<'a> {
    extents: Extents<'a>,
    path: PathBuf,
    ranges: Vec<Range<u64>>,
}

/// Carries out a plan whose output is the model in `root` itself: only stretches that differ are written. `device` computes.
///
/// # Errors
/// The plan would move tensors (another layout, dtype or name); another change of the model was interrupted.
pub fn inject_in_place(
    device: &dyn Device,
    plan: &Plan,
    root: &Path,
    options: &Execution,
    observer: &dyn Observer,
) -> Result<Report> {
    plan.validate()?;
    let digest = plan.digest();
    let whole = whole::resolved(plan, device, options, observer)?;
    let plan = whole.as_ref();
    let _lock = lock(root)?;
    let layouts = plan.layout();
    let changes = changes(plan, &layouts, root)?;
    let total: u64 = changes.iter().flat_map(|c| &c.ranges).map(|r| r.end - r.start).sum();
    prepare(&changes, root, &digest, total)?;
    let mut done = 0;
    for change in &changes {
        apply(change, plan, options, (device, observer), &mut |bytes| {
            done += bytes;
            let shard = &change.extents.layout.file;
            observer.progress(Progress { done, total, shard });
            // Stopping here leaves the record: the model can be restored or completed.
            !observer.cancelled()
        })?;
    }
    update_provenance(plan, root, &digest, &changes)?;
    remove_if_there(&root.join(UNDO_FILE))?;
    sync_directory(root)?;
    Ok(Report {
        out: root.to_owned(),
        written: total,
        shards: layouts.len() as u64,
        plan: digest,
        device: device.name(),
        ..Report::default()
    })
}

/// Restores a model whose in-place change was interrupted. `false` if there is nothing to undo.
///
/// # Errors
/// The undo record is damaged.
pub fn undo(root: &Path, observer: &dyn Observer) -> Result<bool> {
    let _lock = lock(root)?;
    let record_path = root.join(UNDO_FILE);
    for name in [UNDO_FILE, PROVENANCE_FILE] {
        remove_if_there(&root.join(format!("{name}.tmp")))?;
    }
    if !record_path.exists() {
        return Ok(false);
    }
    let (record, mut old) = read_record(&record_path)?;
    let total: u64 = record.files.iter().flat_map(|f| &f.ranges).map(|r| r.end - r.start).sum();
    let mut done = 0;
    for touched in &record.files {
        let path = root.join(&touched.file);
        let file = File::options().write(true).open(&path).at("open", &path)?;
        for range in &touched.ranges {
            for_each_block(range, &mut |block| {
                let mut bytes = vec![0; length(&block)];
                old.read_exact(&mut bytes).at("read", &record_path)?;
                file.write_all_at(&bytes, block.start).at("write", &path)?;
                done += block.end - block.start;
                observer.progress(Progress { done, total, shard: &touched.file });
                Ok(())
            })?;
        }
        file.sync_all().at("flush", &path)?;
    }
    match &record.provenance {
        Some(text) => replace_provenance(root, text.as_bytes())?,
        None => remove_if_there(&root.join(PROVENANCE_FILE))?,
    }
    remove_if_there(&record_path)?;
    sync_directory(root)?;
    Ok(true)
}

/// One change at a time: the lock is on the directory and goes with the process.
fn lock(root: &Path) -> Result<File> {
    let dir = File::open(root).at("open", root)?;
    match dir.try_lock() {
        Ok(()) => Ok(dir),
        Err(fs::TryLockError::WouldBlock) => {
            Err(Error::Locked { path: root.to_owned(), holder: "another in-place change".into() })
        }
        Err(fs::TryLockError::Error(e)) => Err(e).at("lock", root),
    }
}

fn changes<'a>(plan: &'a Plan, layouts: &'a [ShardLayout], root: &Path) -> Result<Vec<Change<'a>>> {
    let mut changes = Vec::new();
    for (shard, layout) in layouts.iter().enumerate() {
        let path = root.join(&layout.file);
        let extents = Extents::new(plan, shard, layout);
        let template = plan.shards[shard].template.filter(|id| is_file(plan, *id, &path));
        let Some(template) = template.filter(|_| same_header(&path, layout)) else {
            return Err(Error::Unsupported {
                what: format!("in-place change of `{}`", path.display()),
                reason: "the result has another layout than the file".into(),
                hint: "use `--out DIR`".into(),
            });
        };
        let ranges = extents.changes(template);
        if !ranges.is_empty() {
            changes.push(Change { extents, path, ranges });
        }
    }
    Ok(changes)
}

fn is_file(plan: &Plan, id: SourceId, path: &Path) -> bool {
    let real = |p: &Path| fs::canonicalize(p).ok();
    real(&plan.sources[id.0 as usize].path).is_some_and(|source| Some(source) == real(path))
}

fn same_header(path: &Path, layout: &ShardLayout) -> bool {
    let mut found = vec![0; layout.header.len()];
    let read = File::open(path).and_then(|file| {
        file.read_exact_at(&mut found, 0)?;
        file.metadata()
    });
    read.is_ok_and(|meta| meta.len() == layout.size) && found == layout.header
}

/// Writes the undo record, unless it is there already from an interrupted run of the same change.
fn prepare(changes: &[Change<'_>], root: &Path, plan: &str, total: u64) -> Result<()> {
    let path = root.join(UNDO_FILE);
    if path.exists() {
        let (record, _) = read_record(&path)?;
        if record.plan == plan {
            return Ok(());
        }
        // The record of origin is written last: a change that has one is complete but for the removal of its undo record.
        let text = fs::read(root.join(PROVENANCE_FILE)).unwrap_or_default();
        let complete = serde_json::from_slice::<Provenance>(&text)
            .is_ok_and(|provenance| provenance.plan == record.plan);
        if !complete {
            return Err(Error::UnfinishedInPlace { path: root.to_owned() });
        }
        remove_if_there(&path)?;
    }
    let free = free_bytes(root);
    if total > free {
        return Err(Error::NoSpace { path, needed: total, free });
    }
    let mut hasher = blake3::Hasher::new();
    each_old_block(changes, &mut |bytes| {
        hasher.update(bytes);
        Ok(())
    })?;
    let files = changes.iter().map(|change| Touched {
        file: change.extents.layout.file.clone(),
        size: change.extents.layout.size,
        ranges: change.ranges.clone(),
    });
    let record = Record {
        version: RECORD_VERSION,
        plan: plan.to_owned(),
        files: files.collect(),
        provenance: fs::read_to_string(root.join(PROVENANCE_FILE)).ok(),
        digest: hasher.finalize().to_hex().to_string(),
    };
    let unfinished = root.join(format!("{UNDO_FILE}.tmp"));
    if let Err(error) = write_record(&record, changes, &unfinished) {
        remove_if_there(&unfinished)?;
        return Err(error);
    }
    fs::rename(&unfinished, &path).at("rename to", &path)?;
    sync_directory(root)
}

fn write_record(record: &Record, changes: &[Change<'_>], path: &Path) -> Result<()> {
    let failed = |e: std::io::Error| unwritten(e, "write", path, 0);
    let mut file = BufWriter::new(File::create(path).at("create", path)?);
    serde_json::to_writer(&mut file, record).map_err(|e| failed(e.into()))?;
    file.write_all(b"\n").map_err(failed)?;
    each_old_block(changes, &mut |bytes| file.write_all(bytes).map_err(failed))?;
    let file = file.into_inner().map_err(|e| failed(e.into_error()))?;
    file.sync_all().map_err(failed)
}

/// The bytes that will be overwritten, in the order of the record.
fn each_old_block(changes: &[Change<'_>], take: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
    for change in changes {
        let file = File::open(&change.path).at("open", &change.path)?;
        for range in &change.ranges {
            for_each_block(range, &mut |block| {
                let mut bytes = vec![0; length(&block)];
                file.read_exact_at(&mut bytes, block.start).at("read", &change.path)?;
                take(&bytes)
            })?;
        }
    }
    Ok(())
}

/// Reads and proves a record; the reader stands at the first old byte.
fn read_record(path: &Path) -> Result<(Record, BufReader<File>)> {
    let damaged = || Error::Project {
        path: path.to_owned(),
        problem: "the undo record is damaged".to_owned(),
        hint: "get the model again from its source".to_owned(),
    };
    let open = || -> Result<(Record, BufReader<File>)> {
        let mut reader = BufReader::new(File::open(path).at("open", path)?);
        let mut line = Vec::new();
        std::io::BufRead::read_until(&mut reader, b'\n', &mut line).at("read", path)?;
        Ok((serde_json::from_slice(&line).map_err(|_| damaged())?, reader))
    };
    let (record, mut reader) = open()?;
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(&mut reader).at("read", path)?;
    let plain = |file: &str| {
        Path::new(file).components().all(|c| matches!(c, std::path::Component::Normal(_)))
    };
    let whole = hasher.finalize().to_hex().as_str() == record.digest;
    if record.version != RECORD_VERSION || !whole || !record.files.iter().all(|f| plain(&f.file)) {
        return Err(damaged());
    }
    open()
}

fn apply(
    change: &Change<'_>,
    plan: &Plan,
    options: &Execution,
    (device, observer): (&dyn Device, &dyn Observer),
    step: &mut dyn FnMut(u64) -> bool,
) -> Result<()> {
    let target = File::options().write(true).open(&change.path).at("open", &change.path)?;
    let mut sources = Sources::new();
    // The model's own files change under us: they are not read, and not among the sources.
    let own = |id: &SourceId| is_file(plan, *id, &change.path);
    for id in change.extents.sources().into_iter().filter(|id| !own(id)) {
        let described = &plan.sources[id.0 as usize];
        let source = SourceFile::open(&described.path)?;
        source.check_identity(&described.identity)?;
        sources.insert(id, Arc::new(source.reading(options.reading)));
    }
    let filler = Filler {
        extents: &change.extents,
        sources: &sources,
        device,
        host: Simd::new(),
        observer,
        progress: &|_| {},
        sweeps: &Sweeps::new(&change.extents, options.tile),
        chains: &Chains::default(),
        allow_nonfinite: options.allow_nonfinite,
        tile: usize::try_from(options.tile).unwrap_or(usize::MAX),
    };
    let mut scratch = Scratch::default();
    for range in &change.ranges {
        for_each_block(range, &mut |block| {
            filler.fill(&block, &mut scratch, |bytes| {
                target.write_all_at(bytes, block.start).at("write", &change.path)
            })?;
            let go_on = step(block.end - block.start);
            if go_on { Ok(()) } else { Err(Error::Interrupted { resumable: true }) }
        })?;
    }
    target.sync_all().at("flush", &change.path)
}

/// Records the change. Digests of files that did not change stay.
fn update_provenance(plan: &Plan, root: &Path, digest: &str, changes: &[Change<'_>]) -> Result<()> {
    let path = root.join(PROVENANCE_FILE);
    let before =
        fs::read(&path).ok().and_then(|json| serde_json::from_slice::<Provenance>(&json).ok());
    let files = before.map(|p| p.files).unwrap_or_default();
    let mut files: BTreeMap<String, FileRecord> =
        files.into_iter().map(|f| (f.file.clone(), f)).collect();
    for layout in plan.layout() {
        let changed = changes.iter().any(|c| c.extents.layout.file == layout.file);
        let record = FileRecord { file: layout.file.clone(), size: layout.size, digest: None };
        if changed || !files.contains_key(&layout.file) {
            files.insert(layout.file, record);
        }
    }
    let provenance = provenance(plan, digest, files.into_values().collect());
    replace_provenance(root, &provenance.to_bytes())
}

fn replace_provenance(root: &Path, bytes: &[u8]) -> Result<()> {
    let path = root.join(PROVENANCE_FILE);
    let unfinished = root.join(format!("{PROVENANCE_FILE}.tmp"));
    write_whole(&unfinished, bytes, true)?;
    fs::rename(&unfinished, &path).at("rename to", &path)
}

/// Walks a range in blocks that fit memory.
fn for_each_block(
    range: &Range<u64>,
    take: &mut dyn FnMut(Range<u64>) -> Result<()>,
) -> Result<()> {
    const BLOCK: u64 = 1 << 20;
    let mut start = range.start;
    while start < range.end {
        let end = (start + BLOCK).min(range.end);
        take(start..end)?;
        start = end;
    }
    Ok(())
}

fn length(range: &Range<u64>) -> usize {
    usize::try_from(range.end - range.start).unwrap_or(usize::MAX)
}
