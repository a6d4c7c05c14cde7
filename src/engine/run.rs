//! The work itself: tiles of all shards in order, taken by workers; reading, computing, hashing and writing overlap.

use std::collections::HashMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::chain::Chains;
use super::device::{Device, Health};
use super::digest::{TreeDigest, digest_file};
use super::extents::{Extent, Extents, total};
use super::journal::Finished;
use super::observer::{Observer, Progress};
use super::options::{Execution, Link};
use super::output::OutputFile;
use super::simd::Simd;
use super::solve::Sweeps;
use super::tile::{Filler, Healths, Scratch, Sources};
use crate::error::{Error, IoContext, Result};
use crate::format::{Digest, DigestAlgorithm, ShardLayout, SourceFile};
use crate::plan::{Plan, SourceId};

/// A shard to be made.
pub(super) struct Job<'a> {
    extents: Extents<'a>,
    sweeps: Sweeps,
    /// The source shard whose blocks it can share: its header is the same, byte for byte.
    template: Option<SourceId>,
    open: Mutex<State>,
    tiles: u64,
    /// First tile in the run's count of tiles.
    first: u64,
}

#[derive(Default)]
enum State {
    #[default]
    Waiting,
    Open(Arc<OpenShard>),
    Closed,
}

/// A shard at work.
struct OpenShard {
    output: Option<OutputFile>,
    sources: Sources,
    /// Where the file differs from the one whose blocks it shares; none if it shares none.
    changes: Option<Vec<Range<u64>>>,
    tree: Mutex<TreeDigest>,
    healths: Mutex<HashMap<usize, Health>>,
    left: AtomicU64,
}

/// A file that started with its template's blocks.
struct SharedFile {
    /// Where to write; none for a hard link, which must not change.
    output: Option<OutputFile>,
    /// Where it differs from the template.
    changes: Vec<Range<u64>>,
}

/// What a run needs from start to end.
pub(super) struct Run<'a> {
    pub(super) plan: &'a Plan,
    pub(super) tree: PathBuf,
    pub(super) options: &'a Execution,
    pub(super) device: &'a dyn Device,
    pub(super) observer: &'a dyn Observer,
    pub(super) jobs: Vec<Job<'a>>,
    pub(super) done: AtomicU64,
    pub(super) total: u64,
    sources: Mutex<HashMap<SourceId, std::sync::Weak<SourceFile>>>,
    no_reflink: AtomicBool,
    chains: Chains,
}

impl<'a> Run<'a> {
    pub(super) fn new(
        plan: &'a Plan,
        layouts: &'a [ShardLayout],
        pending: &[usize],
        tree: PathBuf,
        options: &'a Execution,
        device: &'a dyn Device,
        observer: &'a dyn Observer,
    ) -> Self {
        let mut first = 0;
        let mut jobs = Vec::with_capacity(pending.len());
        for &shard in pending {
            let layout = &layouts[shard];
            let tiles = layout.size.div_ceil(options.tile).max(1);
            let template = plan.shards[shard].template;
            let extents = Extents::new(plan, shard, layout);
            let sweeps = Sweeps::new(&extents, options.tile);
            jobs.push(Job { extents, sweeps, template, open: Mutex::default(), tiles, first });
            first += tiles;
        }
        let total = layouts.iter().map(|l| l.size).sum();
        let pending_bytes: u64 = pending.iter().map(|&i| layouts[i].size).sum();
        Self {
            plan,
            tree,
            options,
            device,
            observer,
            jobs,
            done: AtomicU64::new(total - pending_bytes),
            total,
            sources: Mutex::default(),
            no_reflink: AtomicBool::new(false),
            chains: Chains::default(),
        }
    }

    /// Makes every pending shard; `finished` is called as each becomes complete.
    pub(super) fn work(&self, finished: &(dyn Fn(Finished) -> Result<()> + Sync)) -> Result<()> {
        let tiles = self.jobs.last().map_or(0, |job| job.first + job.tiles);
        let next = AtomicU64::new(0);
        let failure: Mutex<Option<Error>> = Mutex::new(None);
        let stop = AtomicBool::new(false);
        let worker = || {
            let mut scratch = Scratch::default();
            while !stop.load(Ordering::Relaxed) {
                let tile = next.fetch_add(1, Ordering::Relaxed);
                if tile >= tiles {
                    break;
                }
                if let Err(error) = self.tile(tile, &mut scratch, finished) {
                    stop.store(true, Ordering::Relaxed);
                    let mut failure = locked(&failure);
                    // Those that waited for the one that failed were only interrupted.
                    if matches!(*failure, None | Some(Error::Interrupted { .. })) {
                        *failure = Some(error);
                    }
                }
            }
        };
        let threads = self.threads().min(usize::try_from(tiles).unwrap_or(usize::MAX));
        std::thread::scope(|scope| {
            for _ in 1..threads {
                scope.spawn(worker);
            }
            worker();
        });
        locked(&failure).take().map_or(Ok(()), Err)
    }

    pub(super) fn threads(&self) -> usize {
        match self.options.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            n => n,
        }
    }

    /// One tile of the run.
    fn tile(
        &self,
        tile: u64,
        scratch: &mut Scratch,
        finished: &(dyn Fn(Finished) -> Result<()> + Sync),
    ) -> Result<()> {
        if self.observer.cancelled() {
            return Err(Error::Interrupted { resumable: true });
        }
        let job = &self.jobs[self.jobs.partition_point(|job| job.first + job.tiles <= tile)];
        let layout = job.extents.layout;
        let shard = self.open(job)?;
        let start = (tile - job.first) * self.options.tile;
        let range = start..(start + self.options.tile).min(layout.size);
        if shard.output.is_some() {
            self.make(job, &shard, &range, scratch)?;
        }
        self.advance(range.end - range.start - job.told(&range), &layout.file);
        if shard.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            *locked(&job.open) = State::Closed;
            job.sweeps.forget();
            finished(self.close(job, &shard)?)?;
        }
        Ok(())
    }

    /// Tells the observer of bytes that are done.
    fn advance(&self, bytes: u64, shard: &str) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.observer.progress(Progress { done, total: self.total, shard });
    }

    /// Makes the bytes of a range of a shard.
    fn make(
        &self,
        job: &Job<'_>,
        shard: &OpenShard,
        range: &Range<u64>,
        scratch: &mut Scratch,
    ) -> Result<()> {
        let Some(output) = &shard.output else {
            return Ok(());
        };
        let filler = Filler {
            extents: &job.extents,
            sources: &shard.sources,
            device: self.device,
            host: Simd::new(),
            observer: self.observer,
            progress: &|bytes| self.advance(bytes, &job.extents.layout.file),
            sweeps: &job.sweeps,
            chains: &self.chains,
            allow_nonfinite: self.options.allow_nonfinite,
            tile: usize::try_from(self.options.tile).unwrap_or(usize::MAX),
        };
        if let Some(changes) = &shard.changes {
            for change in changes {
                let part = change.start.max(range.start)..change.end.min(range.end);
                if part.start < part.end {
                    let write = |bytes: &[u8]| output.write_at(bytes, part.start);
                    let ((), healths) = filler.fill(&part, scratch, write)?;
                    shard.count(healths);
                }
            }
            return Ok(());
        }
        let hashed = self.options.digest == Some(DigestAlgorithm::Blake3);
        if !hashed && copy_in_kernel(&filler, output, range)? {
            return Ok(());
        }
        let (value, healths) = filler.fill(range, scratch, |bytes| {
            output.write_at(bytes, range.start)?;
            Ok(hashed.then(|| TreeDigest::hash_tile(range.start, bytes, job.extents.layout.size)))
        })?;
        if let Some(value) = value {
            locked(&shard.tree).put(range.start, value);
        }
        shard.count(healths);
        Ok(())
    }

    /// The shard's files, opened by whichever worker comes first.
    fn open(&self, job: &Job<'_>) -> Result<Arc<OpenShard>> {
        let mut state = locked(&job.open);
        if let State::Open(shard) = &*state {
            return Ok(Arc::clone(shard));
        }
        let shard = Arc::new(self.create(job)?);
        *state = State::Open(Arc::clone(&shard));
        Ok(shard)
    }

    fn create(&self, job: &Job<'_>) -> Result<OpenShard> {
        let layout = job.extents.layout;
        let path = self.tree.join(&layout.file);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).at("create", parent)?;
        }
        let (output, changes) = match self.share(job, &path)? {
            Some(shared) => (shared.output, Some(shared.changes)),
            None => (Some(OutputFile::create(path, layout.size)?), None),
        };
        let mut sources = Sources::new();
        for id in job.extents.sources() {
            sources.insert(id, self.source(id)?);
        }
        Ok(OpenShard {
            output,
            sources,
            changes,
            tree: Mutex::new(TreeDigest::new(layout.size, self.options.tile)),
            healths: Mutex::default(),
            left: AtomicU64::new(job.tiles),
        })
    }

    /// Starts a shard as a hard link or a clone of its template, where that is possible and worth it.
    fn share(&self, job: &Job<'_>, path: &std::path::Path) -> Result<Option<SharedFile>> {
        let layout = job.extents.layout;
        let Some(template) = job.template else {
            return Ok(None);
        };
        if self.options.link == Link::Never {
            return Ok(None);
        }
        let source = self.source(template)?;
        if !source.is_whole()
            || source.identity().size != layout.size
            || !has_header(&source, &layout.header)?
        {
            return Ok(None);
        }
        let Some(changes) = job.extents.few_changes(template) else {
            return Ok(None);
        };
        if self.options.link == Link::Hard && changes.is_empty() {
            super::output::remove_if_there(path)?;
            // The link must be to the file itself: in a model cache the name is a symbolic link.
            let real = std::fs::canonicalize(source.path()).at("resolve", source.path())?;
            if std::fs::hard_link(&real, path).is_ok() {
                return Ok(Some(SharedFile { output: None, changes }));
            }
            self.observer.note("hard links are not possible here: copying");
        }
        if self.no_reflink.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let clone = OutputFile::reflink(path.to_owned(), source.file(), layout.size)?;
        source.check_unchanged(None)?;
        if clone.is_none() {
            self.no_reflink.store(true, Ordering::Relaxed);
        }
        Ok(clone.map(|output| SharedFile { output: Some(output), changes }))
    }

    /// An open source, shared between the shards that read it at the same time.
    fn source(&self, id: SourceId) -> Result<Arc<SourceFile>> {
        let mut open = locked(&self.sources);
        if let Some(source) = open.get(&id).and_then(std::sync::Weak::upgrade) {
            return Ok(source);
        }
        let described = &self.plan.sources[id.0 as usize];
        let source = SourceFile::open(&described.path)?;
        source.check_identity(&described.identity)?;
        let source = Arc::new(source.reading(self.options.reading));
        open.insert(id, Arc::downgrade(&source));
        Ok(source)
    }

    /// Completes a shard: flushed to the device, digested.
    fn close(&self, job: &Job<'_>, shard: &OpenShard) -> Result<Finished> {
        let layout = job.extents.layout;
        if let (Some(output), true) = (&shard.output, self.options.sync) {
            output.sync()?;
        }
        let digest = match (self.options.digest, &shard.output) {
            _ if shard.changes.is_some() => None,
            (Some(DigestAlgorithm::Blake3), _) => Some(locked(&shard.tree).finish()),
            (Some(algorithm), Some(output)) => Some(self.digest_again(output, algorithm)?),
            _ => None,
        };
        let mut non_finite: Vec<(String, u64, u64)> = locked(&shard.healths)
            .iter()
            .map(|(tensor, health)| {
                (self.plan.tensors[*tensor].name.clone(), health.nan, health.infinite)
            })
            .collect();
        non_finite.sort();
        let (file, size) = (layout.file.clone(), layout.size);
        let shared = shard.changes.as_ref().map_or(0, |changes| size - total(changes));
        Ok(Finished { file, size, digest, shared, non_finite })
    }

    /// SHA-256 has no tree: one pass over the file, still in the page cache.
    fn digest_again(&self, output: &OutputFile, algorithm: DigestAlgorithm) -> Result<Digest> {
        digest_file(output.path(), algorithm, &mut |_| !self.observer.cancelled())
    }
}

impl Job<'_> {
    /// Bytes of a range that the observer was told of when their inputs had been looked at.
    fn told(&self, range: &Range<u64>) -> u64 {
        let told = |extent: &Extent| {
            let (start, end) = (extent.out.start.max(range.start), extent.out.end.min(range.end));
            self.sweeps.told(extent.what, &(start - extent.out.start..end - extent.out.start))
        };
        self.extents.within(range).map(told).sum()
    }
}

impl OpenShard {
    fn count(&self, healths: Healths) {
        if healths.is_empty() {
            return;
        }
        let mut counts = locked(&self.healths);
        for (tensor, health) in healths {
            let sum = counts.entry(tensor).or_default();
            *sum = sum.merge(health);
        }
    }
}

/// Lets the kernel copy a range that is one stretch of one source, where it can.
fn copy_in_kernel(filler: &Filler<'_>, output: &OutputFile, range: &Range<u64>) -> Result<bool> {
    let Some((source, from)) = filler.copied_from(range)? else {
        return Ok(false);
    };
    source.require(&(from..from + (range.end - range.start)))?;
    let copied = output.copy_from(source.file(), from, range.start, range.end - range.start)?;
    if copied {
        source.check_unchanged(None)?;
    }
    Ok(copied)
}

fn has_header(source: &SourceFile, header: &[u8]) -> Result<bool> {
    let mut found = vec![0; header.len()];
    source.read_exact_at(&mut found, 0)?;
    Ok(found == header)
}

/// A worker that panicked has ended the run; what it held is whole, because it is replaced, never edited.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
