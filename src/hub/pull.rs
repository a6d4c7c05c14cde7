//! Whole files of a model: into the cache, where every program of the Hub's finds them, or into a directory.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use globset::{Glob, GlobSet, GlobSetBuilder};

use super::Watch;
use super::cache::Folder;
use super::http::offline;
use super::id::ModelId;
use super::listing::{self, Listing, RemoteFile};
use super::lock::Lock;
use super::range::is_no_ranges;
use super::remote::Hub;
use super::target::{Target, check_space, digest};
use super::transfer::{Manner, Wanted, fetch};
use crate::error::{Error, IoContext, Result};
use crate::format::unwritten;

/// Folder of unfinished files in a directory that is pulled into.
const STAGING: &str = ".elo-pull";
/// What the lock of a pull into a directory is called there.
const PULL: &str = "pull";
/// Bytes that are copied from the cache in one go.
const COPIED: usize = 64 << 20;

/// Which files.
#[derive(Debug, Default)]
pub struct Selection {
    include: Option<GlobSet>,
    exclude: GlobSet,
}

impl Selection {
    /// Files that match any pattern of `include`, or all if there is none, but none of `exclude`. `*` also matches `/`; a
    /// pattern that ends with `/` means everything below.
    pub fn new(include: &[String], exclude: &[String]) -> Result<Self> {
        let set = |patterns: &[String]| -> Result<GlobSet> {
            let mut set = GlobSetBuilder::new();
            for pattern in patterns {
                let whole =
                    if pattern.ends_with('/') { format!("{pattern}*") } else { pattern.clone() };
                let glob = Glob::new(&whole).map_err(|error| Error::Usage {
                    problem: format!("`{pattern}` is no pattern: {}", error.kind()),
                    hint: "patterns look like `*.json` or `original/*`".into(),
                })?;
                set.add(glob);
            }
            set.build().map_err(|error| Error::Usage {
                problem: format!("the patterns cannot be used: {error}"),
                hint: "use fewer or simpler ones".into(),
            })
        };
        let include_set = if include.is_empty() { None } else { Some(set(include)?) };
        Ok(Self { include: include_set, exclude: set(exclude)? })
    }

    fn takes(&self, path: &str) -> bool {
        self.include.as_ref().is_none_or(|set| set.is_match(path)) && !self.exclude.is_match(path)
    }

    fn is_all(&self) -> bool {
        self.include.is_none() && self.exclude.is_empty()
    }
}

/// Where to.
#[derive(Clone, Copy, Debug)]
pub enum Into<'a> {
    /// The cache.
    Cache,
    /// This directory; whether files there that differ are replaced.
    Directory(&'a Path, bool),
}

/// A pull, looked at but not made.
pub struct Pull<'a> {
    hub: &'a Hub,
    id: ModelId,
    folder: Folder,
    listing: Listing,
    into: Into<'a>,
    /// Whether python finds the whole model when it is done.
    complete: bool,
}

/// What a pull does, or did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pulled {
    /// The model with its commit.
    pub id: ModelId,
    /// The directory of the files.
    pub root: PathBuf,
    /// Files selected.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Files that are not here yet, and what is missing of them in bytes.
    pub missing_files: u64,
    /// See there.
    pub missing: u64,
}

impl Hub {
    /// Looks a pull over: which files, and what of them is missing.
    ///
    /// # Errors
    /// Names that the Hub does not know, patterns that match nothing, files in the way.
    pub fn pull<'a>(
        &'a self,
        id: &ModelId,
        selection: &Selection,
        into: Into<'a>,
    ) -> Result<Pull<'a>> {
        let folder = Folder::of(self.cache(), id);
        let listing = match self.listing(id, &folder)? {
            Some(listing) => listing,
            // Offline, and only huggingface_hub was here: what it has is all that can be had.
            None => {
                let commit = folder.commit_of(id.revision_or_main());
                let found = commit.and_then(|commit| folder.downloaded(&commit));
                found.ok_or_else(|| offline(&id.to_string()))?
            }
        };
        let Listing { commit, files } = listing;
        let all = files.len();
        let files: Vec<RemoteFile> =
            files.into_iter().filter(|file| selection.takes(&file.path)).collect();
        if files.is_empty() {
            return Err(Error::Usage {
                problem: format!("no file of `{id}` matches: it has {all} files"),
                hint: "see them all with `elo-surgery pull ORG/NAME --dry-run --json`".into(),
            });
        }
        let id = id.at(&commit);
        let listing = Listing { commit, files };
        Ok(Pull { hub: self, id, folder, listing, into, complete: selection.is_all() })
    }

    /// Fetches a model whole into the cache, for what reads its files in other ways than by plans.
    pub fn whole(&self, id: &ModelId, watch: &dyn Watch) -> Result<Pulled> {
        let all = Selection::default();
        self.relying(|| self.pull(id, &all, Into::Cache)?.run(id.revision_or_main(), watch))
    }
}

impl Pull<'_> {
    /// The files, with their sizes.
    pub fn files(&self) -> impl Iterator<Item = (&str, u64)> {
        self.listing.files.iter().map(|file| (file.path.as_str(), file.size))
    }

    /// What it would do.
    pub fn outlook(&self) -> Result<Pulled> {
        self.told(&self.lacking()?)
    }

    fn told(&self, lacking: &[&RemoteFile]) -> Result<Pulled> {
        let mut told = Pulled {
            id: self.id.clone(),
            root: self.root(),
            files: self.listing.files.len() as u64,
            bytes: self.listing.files.iter().map(|file| file.size).sum(),
            missing_files: 0,
            missing: 0,
        };
        for file in lacking {
            let target = self.target(file);
            let here = if target.has_partial() { target.open()?.bytes() } else { 0 };
            told.missing_files += 1;
            told.missing += file.size.saturating_sub(here);
        }
        Ok(told)
    }

    /// Fetches what is missing. `revision` is what the commit was named by.
    ///
    /// # Errors
    /// Those of the network; a file that is not what the Hub lists; no room; files in the way.
    pub fn run(&self, revision: &str, watch: &dyn Watch) -> Result<Pulled> {
        // One pull at a time into a directory: the last step removes what is unfinished there.
        let _one = match self.into {
            Into::Cache => None,
            Into::Directory(root, _) => {
                let staging = root.join(STAGING);
                fs::create_dir_all(&staging).at("create", &staging)?;
                let what = root.display().to_string();
                let never = || Ok(false);
                Lock::of(&staging.join(PULL), &what, (&self.hub.http, watch), &never)?
            }
        };
        let lacking = self.lacking()?;
        let told = self.told(&lacking)?;
        if let Into::Directory(root, _) = self.into {
            check_space(root, told.missing)?;
            self.take_from_cache(root, &lacking)?;
        }
        let targets: Vec<_> = lacking.iter().map(|file| self.target(file)).collect();
        let made = |target: &Target| {
            target.has_partial() && target.open().is_ok_and(|here| here.bytes() == target.size)
        };
        let unmade = |target: &&Arc<Target>| !made(target);
        if let (true, Some(target)) =
            (self.hub.http.settings().offline, targets.iter().find(unmade))
        {
            return Err(offline(&target.what));
        }
        let wanted = || targets.iter().map(Wanted::whole).collect();
        match fetch(&self.hub.http, wanted(), Manner::default(), watch) {
            Err(error) if is_no_ranges(&error) => {
                watch.note("ranges are not served: whole files are fetched, each by one request");
                fetch(&self.hub.http, wanted(), Manner { in_one: true, open: false }, watch)?;
            }
            other => other?,
        }
        match self.into {
            Into::Cache => {
                let commit = &self.listing.commit;
                self.listing
                    .files
                    .iter()
                    .try_for_each(|file| self.folder.link_snapshot(commit, file))?;
                if self.complete {
                    self.folder.publish_revision(revision, commit)?;
                }
            }
            Into::Directory(root, _) => {
                let staging = root.join(STAGING);
                clear(&staging).at("remove", &staging)?;
            }
        }
        Ok(told)
    }

    fn root(&self) -> PathBuf {
        match self.into {
            Into::Cache => self.folder.snapshot(&self.listing.commit),
            Into::Directory(root, _) => root.to_owned(),
        }
    }

    /// The files that are not where they should be.
    fn lacking(&self) -> Result<Vec<&RemoteFile>> {
        let mut lacking = Vec::new();
        for file in &self.listing.files {
            if !self.is_here(file)? {
                lacking.push(file);
            }
        }
        Ok(lacking)
    }

    /// Whether a file is where it should be, and is what it should be.
    fn is_here(&self, file: &RemoteFile) -> Result<bool> {
        let Into::Directory(root, overwrite) = self.into else { return Ok(self.folder.has(file)) };
        let path = root.join(&file.path);
        let Ok(meta) = fs::symlink_metadata(&path) else { return Ok(false) };
        let same = meta.is_file()
            && meta.len() == file.size
            && digest(&path, file.size, &file.hash, &self.hub.http)? == file.hash.hex();
        if same || (overwrite && !meta.is_dir()) {
            return Ok(same);
        }
        Err(Error::OutputExists { path })
    }

    /// Where a file comes from and goes.
    fn target(&self, file: &RemoteFile) -> Arc<Target> {
        let Listing { commit, .. } = &self.listing;
        let Into::Directory(root, _) = self.into else {
            return self.hub.target(&self.id, &self.folder, commit, file);
        };
        // Two files of the same content are two files.
        let name =
            &blake3::hash(format!("{}\0{}", file.path, file.hash.hex()).as_bytes()).to_hex()[..32];
        Arc::new(Target::new(
            format!("{}: {}", self.id.repo(), file.path),
            listing::resolve(&self.hub.http, &self.id, commit, &file.path),
            commit,
            (file.size, file.hash.clone()),
            (root.join(STAGING).join(name), root.join(&file.path), None),
            self.folder.list_path(commit),
        ))
    }

    /// Takes into the directory what the cache has. It is verified there as what is fetched is.
    fn take_from_cache(&self, root: &Path, lacking: &[&RemoteFile]) -> Result<()> {
        for file in lacking.iter().filter(|file| self.folder.has(file)) {
            let target = self.target(file);
            let fetched = target.open()?;
            let path = self.folder.blob(&file.hash);
            let from = File::open(&path).at("open", &path)?;
            let to = File::options().write(true).open(&target.partial);
            let to = to.at("open", &target.partial)?;
            for missing in fetched.missing(&(0..file.size)) {
                for start in (missing.start..missing.end).step_by(COPIED) {
                    let piece = start..missing.end.min(start + COPIED as u64);
                    let copied = copy(&from, &to, &piece);
                    copied.map_err(|error| unwritten(error, "write", root, file.size))?;
                    fetched.record(&to, piece)?;
                    self.hub.http.check_cancelled()?;
                    self.hub.http.heart().beat();
                }
            }
        }
        Ok(())
    }
}

/// Copies a range of a file.
fn copy(mut from: &File, mut to: &File, range: &Range<u64>) -> io::Result<()> {
    from.seek(SeekFrom::Start(range.start))?;
    to.seek(SeekFrom::Start(range.start))?;
    let due = range.end - range.start;
    let copied = io::copy(&mut from.take(due), &mut to)?;
    if copied == due { Ok(()) } else { Err(ErrorKind::UnexpectedEof.into()) }
}

/// Removes the folder of unfinished files, the lock last: others wait before it, or make a folder of their own when it is gone.
fn clear(staging: &Path) -> io::Result<()> {
    let lock = format!("{PULL}.lock");
    for entry in fs::read_dir(staging)? {
        let entry = entry?;
        if entry.file_name() == *lock {
            continue;
        }
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    fs::remove_file(staging.join(lock))?;
    match fs::remove_dir(staging) {
        // Somebody made another, or is at work in this one.
        Err(error)
            if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::DirectoryNotEmpty) =>
        {
            Ok(())
        }
        outcome => outcome,
    }
}
