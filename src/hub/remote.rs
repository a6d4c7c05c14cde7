//! Models that are not downloaded, seen as checkpoints: small files whole, shards as partly fetched files with their headers.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;

use super::cache::{Folder, in_view};
use super::http::{Http, offline};
use super::id::{ModelId, is_commit};
use super::listing::{self, Listing, RemoteFile};
use super::lock::Lock;
use super::settings::Settings;
use super::target::Target;
use super::transfer::{Manner, Wanted, fetch};
use super::{Quiet, Watch};
use crate::error::{Error, IoContext, Result};
use crate::format::{self, Fetch, Fetched, MAX_HEADER_BYTES, Ranges};

/// Files up to this size come whole with a view; larger ones when they are read.
const SMALL: u64 = 1 << 20;
/// Beside shards and indexes, larger files are no part of a checkpoint.
const LARGEST_SIDECAR: u64 = 256 << 20;
/// What is asked for of a file's header where nothing is known of it.
const FIRST_GUESS: u64 = 64 << 10;
/// What an entry of a header takes beside the tensor's name.
const ENTRY: u64 = 100;

/// Models of the Hub, for one run.
pub struct Hub {
    pub(super) http: Arc<Http>,
    targets: Mutex<HashMap<PathBuf, Arc<Target>>>,
    /// Lists of files that earlier runs kept and that are believed.
    kept: Mutex<Vec<PathBuf>>,
}

/// A model of the Hub as a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// Its name with its commit.
    pub id: ModelId,
    /// A directory that looks like a checkpoint.
    pub root: PathBuf,
}

/// Bytes of models of the Hub that a plan reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Need {
    /// Still to be fetched.
    pub missing: u64,
    /// Here already.
    pub here: u64,
}

/// What went over the network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes of files.
    pub bytes: u64,
    /// Requests.
    pub requests: u64,
}

/// Brings bytes of one file when somebody reads them.
struct Server {
    http: Arc<Http>,
    target: Arc<Target>,
}

impl Fetch for Server {
    fn fetch(&self, _file: &Path, missing: &[Range<u64>]) -> Result<()> {
        let wanted =
            Wanted { target: Arc::clone(&self.target), ranges: missing.iter().cloned().collect() };
        fetch(&self.http, vec![wanted], Manner { in_one: false, open: true }, &Quiet)
    }
}

impl Hub {
    /// The Hub as the settings say. No connection is opened before something is asked for.
    pub fn new(settings: Settings, cancelled: Arc<dyn Fn() -> bool + Send + Sync>) -> Result<Self> {
        let http = Arc::new(Http::new(settings, cancelled)?);
        Ok(Self { http, targets: Mutex::default(), kept: Mutex::default() })
    }

    /// The client that everything goes through.
    pub fn http(&self) -> &Http {
        &self.http
    }

    /// What went over the network so far.
    pub fn traffic(&self) -> Traffic {
        Traffic { bytes: self.http.received(), requests: self.http.requests() }
    }

    pub(super) fn cache(&self) -> &Path {
        &self.http.settings().cache
    }

    /// Does the work, and does it again if a list of files proved wrong on which it relied and which an earlier run kept: that is
    /// forgotten then, and the Hub is asked anew.
    ///
    /// # Errors
    /// Those of the work.
    pub fn relying<T>(&self, work: impl Fn() -> Result<T>) -> Result<T> {
        match work() {
            Err(_) if self.has_forgotten() => work(),
            outcome => outcome,
        }
    }

    /// Whether a list that was believed is gone. Says so once.
    fn has_forgotten(&self) -> bool {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let believed = kept.len();
        kept.retain(|list| list.exists());
        kept.len() < believed
    }

    /// A model as a directory: what a plan needs to know of it is here, everything else comes when it is read.
    ///
    /// # Errors
    /// Names that the Hub does not know, an unreachable Hub, files that are not what the Hub lists.
    pub fn view(&self, id: &ModelId, watch: &dyn Watch) -> Result<View> {
        self.relying(|| self.view_as_listed(id, watch))
    }

    fn view_as_listed(&self, id: &ModelId, watch: &dyn Watch) -> Result<View> {
        let folder = Folder::of(self.cache(), id);
        let Some(listing) = self.listing(id, &folder)? else {
            return Self::as_downloaded(id, &folder);
        };
        let commit = &listing.commit;
        let root = folder.view(commit);
        fs::create_dir_all(&root).at("create", &root)?;
        // huggingface_hub takes a model's folder without it for a broken one.
        let snapshots = folder.snapshots();
        fs::create_dir_all(&snapshots).at("create", &snapshots)?;
        let (mut small, mut large) = (Vec::new(), Vec::new());
        for file in listing.files.iter().filter(|file| belongs(file)) {
            if folder.has(file) {
                folder.link_whole(commit, file)?;
            } else if is_pickle(&file.path) {
                folder.link_nowhere(commit, file)?;
            } else if is_index(&file.path) || (file.size <= SMALL && !is_shard(&file.path)) {
                small.push(file);
            } else {
                large.push(file);
            }
        }
        self.bring_small(id, &folder, commit, &small, watch)?;
        let shards = self.lay_out(id, &folder, commit, &large, watch)?;
        self.bring_headers(&root, &listing, &shards, watch)?;
        Ok(View { id: id.at(commit), root })
    }

    /// The files of the revision, which is looked up once; none if the run is offline and nobody has listed them.
    pub(super) fn listing(&self, id: &ModelId, folder: &Folder) -> Result<Option<Listing>> {
        let revision = id.revision_or_main();
        let commit = if self.http.settings().offline {
            folder.commit_of(revision).ok_or_else(|| offline(&id.to_string()))?
        } else if is_commit(revision) {
            revision.to_owned()
        } else {
            let commit = listing::commit_of(&self.http, id)?;
            folder.note_revision(revision, &commit)?;
            commit
        };
        if let Some(listing) = folder.listing(&commit) {
            let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            kept.push(folder.list_path(&commit));
            return Ok(Some(listing));
        }
        if self.http.settings().offline {
            return Ok(None);
        }
        let listing = listing::list(&self.http, id, &commit)?;
        folder.save_listing(&listing)?;
        Ok(Some(listing))
    }

    /// What huggingface_hub downloaded, where that is all there is.
    fn as_downloaded(id: &ModelId, folder: &Folder) -> Result<View> {
        let commit = folder.commit_of(id.revision_or_main());
        let found = commit.map(|commit| (folder.snapshot(&commit), commit));
        match found.filter(|(root, _)| root.is_dir()) {
            Some((root, commit)) => Ok(View { id: id.at(&commit), root }),
            None => Err(offline(&id.to_string())),
        }
    }

    /// Where a file of the cache comes from and goes.
    pub(super) fn target(
        &self,
        id: &ModelId,
        folder: &Folder,
        commit: &str,
        file: &RemoteFile,
    ) -> Arc<Target> {
        let partial = folder.partial(&file.hash);
        let mut targets = self.targets.lock().unwrap_or_else(PoisonError::into_inner);
        let known =
            targets.get(&partial).filter(|known| known.size == file.size && known.commit == commit);
        if let Some(known) = known {
            return Arc::clone(known);
        }
        let forward = Path::new("../../blobs").join(file.hash.hex());
        let made = Arc::new(Target::new(
            format!("{}: {}", id.repo(), file.path),
            listing::resolve(&self.http, id, commit, &file.path),
            commit,
            (file.size, file.hash.clone()),
            (partial.clone(), folder.blob(&file.hash), Some(forward)),
            folder.list_path(commit),
        ));
        targets.insert(partial, Arc::clone(&made));
        made
    }

    fn bring_small(
        &self,
        id: &ModelId,
        folder: &Folder,
        commit: &str,
        small: &[&RemoteFile],
        watch: &dyn Watch,
    ) -> Result<()> {
        let wanted = small.iter().map(|file| Wanted::whole(&self.target(id, folder, commit, file)));
        fetch(&self.http, wanted.collect(), Manner::default(), watch)?;
        small.iter().try_for_each(|file| folder.link_whole(commit, file))
    }

    /// Makes partly fetched files of those that are not here, and serves them.
    fn lay_out(
        &self,
        id: &ModelId,
        folder: &Folder,
        commit: &str,
        large: &[&RemoteFile],
        watch: &dyn Watch,
    ) -> Result<BTreeMap<String, Arc<Target>>> {
        let mut laid = BTreeMap::new();
        for file in large {
            let target = self.target(id, folder, commit, file);
            if self.serve(&target, watch)? {
                folder.link_partial(commit, file)?;
                laid.insert(file.path.clone(), target);
            } else {
                folder.link_whole(commit, file)?;
            }
        }
        Ok(laid)
    }

    /// Makes a file readable of which not all is here; `false` if all is.
    fn serve(&self, target: &Arc<Target>, watch: &dyn Watch) -> Result<bool> {
        let ready = || Ok(target.has_partial() || target.is_whole(&self.http)?);
        let lock = Lock::of(&target.partial, &target.what, (&self.http, watch), &ready)?;
        if lock.is_some() {
            target.open()?;
        }
        drop(lock);
        if !target.has_partial() && target.is_whole(&self.http)? {
            return Ok(false);
        }
        let Ok(file) = fs::canonicalize(&target.partial) else {
            return Ok(!target.is_whole(&self.http)?);
        };
        let server = Server { http: Arc::clone(&self.http), target: Arc::clone(target) };
        format::serve(file, Arc::new(server));
        Ok(true)
    }

    /// The headers of all shards: one round of requests, and a second one for those that are longer than expected.
    fn bring_headers(
        &self,
        root: &Path,
        listing: &Listing,
        shards: &BTreeMap<String, Arc<Target>>,
        watch: &dyn Watch,
    ) -> Result<()> {
        let guesses = guesses(root, listing);
        let known =
            guesses.into_iter().filter_map(|(path, guess)| Some((shards.get(&path)?, guess)));
        let first = known.map(|(target, guess)| (target, 0..guess.min(target.size)));
        let first: Vec<_> = first.collect();
        let wanted = |(target, range): &(&Arc<Target>, Range<u64>)| Wanted {
            target: Arc::clone(target),
            ranges: Ranges::of(range.clone()),
        };
        fetch(&self.http, first.iter().map(wanted).collect(), Manner::default(), watch)?;
        let mut second = Vec::new();
        for (target, _) in first {
            if target.size < 8 {
                continue;
            }
            let mut length = [0; 8];
            format::SourceFile::open(&target.partial)?.read_exact_at(&mut length, 0)?;
            let end = u64::from_le_bytes(length).saturating_add(8);
            // What is no header is told by whoever reads it.
            if end <= target.size && end <= MAX_HEADER_BYTES + 8 {
                second.push((target, 0..end));
            }
        }
        fetch(&self.http, second.iter().map(wanted).collect(), Manner::default(), watch)
    }

    /// What of the given ranges of files is still to be fetched. Files that are no models of the Hub do not count.
    pub fn need(&self, wants: &[(PathBuf, Ranges)]) -> Result<Need> {
        let mut need = Need::default();
        for (path, ranges) in wants {
            let missing = match Fetched::of(path)? {
                Some(fetched) => ranges
                    .iter()
                    .flat_map(|range| fetched.missing(range))
                    .map(|r| r.end - r.start)
                    .sum(),
                None if in_view(self.cache(), path).is_some() => 0,
                None => continue,
            };
            need.missing += missing;
            need.here += ranges.bytes() - missing;
        }
        Ok(need)
    }

    /// Brings what is missing of the given ranges of files, in parallel.
    ///
    /// # Errors
    /// As [`view`](Self::view). What has arrived stays: the same call goes on where it stopped.
    pub fn ensure(&self, wants: &[(PathBuf, Ranges)], watch: &dyn Watch) -> Result<()> {
        let mut wanted = Vec::new();
        for (path, ranges) in wants {
            let Some(fetched) = Fetched::of(path)? else { continue };
            if ranges.iter().all(|range| fetched.missing(range).is_empty()) {
                continue;
            }
            let target = self.of_path(path, fetched.file())?;
            wanted.push(Wanted { target, ranges: ranges.clone() });
        }
        // Plans know files by what they are: another one in their place would not do.
        fetch(&self.http, wanted, Manner { open: true, in_one: false }, watch)
    }

    /// The file behind a path in a view, of this run or of an earlier one.
    fn of_path(&self, path: &Path, real: &Path) -> Result<Arc<Target>> {
        let known = self.targets.lock().unwrap_or_else(PoisonError::into_inner);
        let of_real =
            |target: &&Arc<Target>| fs::canonicalize(&target.partial).is_ok_and(|p| p == real);
        let by_name = real
            .file_name()
            .and_then(|name| known.values().find(|t| t.partial.file_name() == Some(name)));
        if let Some(target) = by_name.filter(of_real) {
            return Ok(Arc::clone(target));
        }
        drop(known);
        let lost = || Error::NotFetched { path: path.to_owned(), hole: 0..0 };
        let (id, commit, file) = in_view(self.cache(), path).ok_or_else(lost)?;
        let folder = Folder::of(self.cache(), &id);
        let listing = folder.listing(&commit).ok_or_else(lost)?;
        let file = listing.file(&file).ok_or_else(lost)?;
        let target = self.target(&id, &folder, &commit, file);
        self.serve(&target, &Quiet)?;
        Ok(target)
    }
}

/// The headers' sizes as the index lets expect them.
fn guesses(root: &Path, listing: &Listing) -> BTreeMap<String, u64> {
    let mut guesses = BTreeMap::new();
    let index =
        listing.files.iter().filter(|file| is_index(&file.path) && !file.path.contains('/'));
    let index: Vec<_> = index.collect();
    let index =
        index.iter().find(|file| file.path == "model.safetensors.index.json").or(index.first());
    let parsed = index.and_then(|file| {
        let text = fs::read(root.join(&file.path)).ok()?;
        serde_json::from_slice::<Value>(&text).ok()
    });
    if let Some(Value::Object(map)) = parsed.as_ref().and_then(|index| index.get("weight_map")) {
        for (tensor, shard) in map {
            let entry = guesses.entry(shard.as_str().unwrap_or_default().to_owned()).or_insert(200);
            *entry += tensor.len() as u64 + ENTRY;
        }
        for guess in guesses.values_mut() {
            *guess = guess.next_multiple_of(4096);
        }
        return guesses;
    }
    let single = listing.file("model.safetensors");
    let tensors = |file: &&RemoteFile| !file.path.contains('/') && is_shard(&file.path);
    let files = listing.files.iter().filter(tensors);
    let files = files.filter(|file| {
        single.is_none_or(|single| *file == single) || file.path.starts_with("adapter")
    });
    guesses.extend(files.map(|file| (file.path.clone(), FIRST_GUESS)));
    guesses
}

/// Whether a file is part of a checkpoint, or says why the model is none.
fn belongs(file: &RemoteFile) -> bool {
    let path = file.path.as_str();
    if is_shard(path) {
        return true;
    }
    let hidden = path.contains('/') || path.starts_with('.');
    let other =
        [".gguf", ".h5", ".msgpack", ".onnx", ".tflite", ".ot", ".npz", ".zip", ".gz", ".tar"];
    !hidden
        && !other.iter().any(|end| path.ends_with(end))
        && (file.size <= LARGEST_SIDECAR || is_index(path) || is_pickle(path))
}

fn is_shard(path: &str) -> bool {
    path.ends_with(".safetensors")
}

fn is_index(path: &str) -> bool {
    path.ends_with(".safetensors.index.json")
}

fn is_pickle(path: &str) -> bool {
    [".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"].iter().any(|end| path.ends_with(end))
}
