//! A publication in the making: files in any order, from several threads, then one commit.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::super::http::{Http, corrupt};
use super::super::listing::{Listing, is_safe};
use super::account::Account;
use super::commit::{Commit, Operation, is_same};
use super::hash::{Hashes, read};
use super::lfs::{self, Object, Way};
use super::modes::{Asked, Mode, SAMPLE, modes};
use super::survey::survey;
use super::xet::Xet;
use super::{How, LocalFile, Published, Stored, Target, Watch, Words};
use crate::error::{Error, HubFailure, IoContext as _, Result, printable};

/// How often addresses are asked for that turn out to be good no more.
const MOST_ADDRESSES: u32 = 3;

/// A publication in the making. Files can be given from several threads.
pub struct Publication<'h> {
    http: &'h Http,
    target: Target,
    user: String,
    head: Option<Listing>,
    files: Mutex<BTreeMap<String, Given>>,
    modes: Mutex<BTreeMap<String, Mode>>,
    xet: Xet,
}

/// A file that was given.
#[derive(Clone)]
struct Given {
    stored: Stored,
    /// What the commit must say; nothing of what the branch has.
    operation: Option<Operation>,
}

impl<'h> Publication<'h> {
    /// Asks whose token it is, makes the repository and the branch unless they are there, and looks at the branch's head, on
    /// which the commit will be made. Nothing else is written.
    ///
    /// # Errors
    /// [`Error::Hub`]: offline, nobody signed in, not allowed, or not reached.
    pub fn begin(http: &'h Http, target: Target) -> Result<Self> {
        let account = Account::of(http, &target.id)?;
        let mut found = survey(http, &target)?;
        let target = target.renamed(&found);
        if found.repository.is_none() {
            account.create_repository(&target.id, target.private)?;
            found = survey(http, &target)?;
        }
        if !found.branch
            && let Some(head) = &found.head
        {
            account.create_branch(&target.id, target.branch(), &head.commit)?;
            found = survey(http, &target)?;
        }
        if !found.branch && target.branch() != "main" {
            return Err(corrupt(&target.to_string(), "the Hub made no branch".into()));
        }
        Ok(Self {
            http,
            target,
            user: account.user,
            head: found.head,
            files: Mutex::default(),
            modes: Mutex::default(),
            xet: Xet::default(),
        })
    }

    /// Where it goes: a repository that was renamed under its new name.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// The name of the token's owner.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The files of the branch when the publication began; none of a repository without commits.
    pub fn head(&self) -> Option<&Listing> {
        self.head.as_ref()
    }

    /// Gives a file that is finished. When this returns, the Hub has it, or the commit will carry it: it may be removed here.
    ///
    /// Small files may be carried in memory: what must outlive this run is [stored](Self::store).
    ///
    /// `sha256` is its hash if it is known: if the bytes sent have another one, the upload fails. Giving the same file again does nothing.
    ///
    /// # Errors
    /// [`Error::SourceChanged`] if the file changes meanwhile; [`Error::Hub`]; [`Error::Unsupported`] of a large file that
    /// the Hub wants inside the commit.
    pub fn upload(
        &self,
        name: &str,
        path: &Path,
        sha256: Option<&str>,
        watch: &dyn Watch,
    ) -> Result<Stored> {
        let size = fs::metadata(path).at("examine", path)?.len();
        // Small files are read again anyway, and need git's hash too.
        match sha256 {
            Some(sha256) if size > super::modes::LARGEST_INLINE => {
                self.give(name, path, size, sha256, None, watch)
            }
            expected => {
                let found = read(path, None, &|_| self.http.check_cancelled())?.hashes;
                if expected.is_some_and(|expected| expected != found.sha256) {
                    return Err(lfs::changed(path));
                }
                self.give(name, path, found.size, &found.sha256, Some(&found), watch)
            }
        }
    }

    /// Gives a finished file that will be gone even if this run ends before its commit: the storage keeps it, whether the
    /// repository wants it inside the commit or not.
    ///
    /// # Errors
    /// As [`Publication::upload`].
    pub fn store(
        &self,
        name: &str,
        path: &Path,
        sha256: Option<&str>,
        watch: &dyn Watch,
    ) -> Result<Stored> {
        let size = fs::metadata(path).at("examine", path)?.len();
        // The storage takes no empty objects.
        if size > 0 && self.mode(name, size, || sample(path))? == Mode::Inline {
            self.know(name, Mode::Large);
        }
        self.upload(name, path, sha256, watch)
    }

    /// Gives a file of a folder that was read.
    ///
    /// # Errors
    /// As [`Publication::upload`].
    pub fn upload_read(&self, file: &LocalFile, watch: &dyn Watch) -> Result<Stored> {
        let Hashes { size, sha256, .. } = &file.hashes;
        self.give(&file.name, &file.path, *size, sha256, Some(&file.hashes), watch)
    }

    fn give(
        &self,
        name: &str,
        path: &Path,
        size: u64,
        sha256: &str,
        hashes: Option<&Hashes>,
        watch: &dyn Watch,
    ) -> Result<Stored> {
        if let Some(stored) = self.before(name, sha256)? {
            watch.advance(size);
            return Ok(stored);
        }
        let there =
            self.head.as_ref().and_then(|head| head.file(name)).is_some_and(|found| match hashes {
                Some(hashes) => is_same(hashes, found.size, &found.hash),
                None => found.size == size && found.hash.hex() == sha256,
            });
        let stored = |how| Stored { size, sha256: sha256.to_owned(), how };
        if there {
            watch.advance(size);
            return Ok(self.keep(name, stored(How::Unchanged), None));
        }
        match self.mode(name, size, || sample(path))? {
            Mode::Ignored => Err(ignored(&self.target, name)),
            Mode::Inline => {
                let bytes = fs::read(path).at("read", path)?;
                let hashes = Hashes::of(&bytes);
                if hashes.sha256 != sha256 {
                    return Err(lfs::changed(path));
                }
                watch.advance(size);
                let operation = Operation::Inline { path: name.to_owned(), bytes, hashes };
                Ok(self.keep(name, stored(How::Inline), Some(operation)))
            }
            Mode::Large => {
                let told = AtomicU64::new(0);
                let sent = |bytes: u64| {
                    let before = told.fetch_max(bytes, Ordering::Relaxed);
                    watch.advance(bytes.saturating_sub(before));
                };
                let how = self.send(Object { name, sha256, size }, path, &sent)?;
                sent(size);
                Ok(self.keep(name, stored(how), Some(large(name, sha256, size))))
            }
        }
    }

    /// Sends a large file unless the storage has it.
    fn send(&self, object: Object<'_>, path: &Path, sent: &dyn Fn(u64)) -> Result<How> {
        let mut asked = 0;
        loop {
            let put = match lfs::way(self.http, &self.target, object)? {
                Way::There => return Ok(How::Known),
                Way::Xet => {
                    self.xet.upload(self.http, &self.target, object, path, sent)?;
                    return Ok(How::Xet);
                }
                Way::Put(put) => put,
            };
            asked += 1;
            match lfs::put(self.http, &self.target, object, path, &put, sent)? {
                Ok(how) => return Ok(how),
                Err(error) if asked >= MOST_ADDRESSES => return Err(error),
                Err(_) => self.http.wait(self.http.pause(asked))?,
            }
        }
    }

    /// Gives bytes that are in no file.
    ///
    /// # Errors
    /// [`Error::Hub`]; [`Error::Unsupported`] if they are too many to go inside the commit.
    pub fn put(&self, name: &str, bytes: Vec<u8>) -> Result<Stored> {
        let hashes = Hashes::of(&bytes);
        if let Some(stored) = self.before(name, &hashes.sha256)? {
            return Ok(stored);
        }
        let stored = |how| Stored { size: hashes.size, sha256: hashes.sha256.clone(), how };
        let found = self.head.as_ref().and_then(|head| head.file(name));
        if found.is_some_and(|found| is_same(&hashes, found.size, &found.hash)) {
            return Ok(self.keep(name, stored(How::Unchanged), None));
        }
        match self.mode(name, hashes.size, || Ok(bytes[..bytes.len().min(SAMPLE)].to_vec()))? {
            Mode::Inline => {
                let stored = stored(How::Inline);
                let operation = Operation::Inline { path: name.to_owned(), bytes, hashes };
                Ok(self.keep(name, stored, Some(operation)))
            }
            Mode::Ignored => Err(ignored(&self.target, name)),
            Mode::Large => Err(Error::Unsupported {
                what: format!("{}: {name}", self.target.id.repo()),
                reason: "the repository's `.gitattributes` sends files of this kind to the storage"
                    .into(),
                hint: "write it to a file of the directory, or change `.gitattributes` there"
                    .into(),
            }),
        }
    }

    /// A large file that an interrupted run uploaded and that is no longer here.
    ///
    /// # Errors
    /// [`Error::Hub`] of kind `Missing` if the storage says that it does not have it. The storage of xet does not say: there the
    /// commit fails if it is gone.
    pub fn adopt(&self, name: &str, size: u64, sha256: &str) -> Result<Stored> {
        if let Some(stored) = self.before(name, sha256)? {
            return Ok(stored);
        }
        let stored = |how| Stored { size, sha256: sha256.to_owned(), how };
        let found = self.head.as_ref().and_then(|head| head.file(name));
        if found.is_some_and(|found| found.size == size && found.hash.hex() == sha256) {
            return Ok(self.keep(name, stored(How::Unchanged), None));
        }
        match lfs::way(self.http, &self.target, Object { name, sha256, size })? {
            Way::There | Way::Xet => {
                Ok(self.keep(name, stored(How::Known), Some(large(name, sha256, size))))
            }
            Way::Put(_) => Err(Error::Hub {
                what: format!("{}: {name}", self.target.id.repo()),
                kind: HubFailure::Missing,
                problem: "it was uploaded by an earlier run, but the Hub does not have it any more"
                    .into(),
                hint: "make it again: run the command with `--restart`".into(),
            }),
        }
    }

    /// Commits everything that was given, and removes `delete`, on the head that the publication began with. What is there
    /// already needs no commit. Asking again does it again only if it was not done.
    ///
    /// # Errors
    /// [`Error::Hub`] of kind `Moved` if somebody else changed files of ours meanwhile.
    pub fn commit(&self, words: &Words, delete: &[String]) -> Result<Published> {
        let files = self.files();
        let given = files.values().filter_map(|given| given.operation.clone());
        let there =
            |path: &&String| self.head.as_ref().is_some_and(|head| head.file(path).is_some());
        let removed = delete.iter().filter(there).filter(|path| !files.contains_key(*path));
        let removed = removed.map(|path| Operation::Delete { path: path.clone() });
        let operations: Vec<Operation> = given.chain(removed).collect();
        let kept: BTreeSet<String> = files.keys().cloned().collect();
        drop(files);
        if operations.is_empty()
            && let Some(head) = &self.head
        {
            let commit = head.commit.clone();
            let repo = self.target.id.repo().split('/');
            let url = self.http.url(repo.chain(["commit", &commit])).to_string();
            return Ok(Published {
                parent: Some(commit.clone()),
                commit,
                changed: false,
                url,
                pull_request: None,
                shown: true,
            });
        }
        let commit = Commit {
            http: self.http,
            target: &self.target,
            words,
            operations: &operations,
            kept: &kept,
            parent: self.head.as_ref(),
        };
        commit.make()
    }

    /// Every file that was given, in the order of paths, and how it got to the Hub.
    pub fn given(&self) -> Vec<(String, Stored)> {
        let files = self.files();
        files.iter().map(|(path, given)| (path.clone(), given.stored.clone())).collect()
    }

    /// Asks for the modes of many files at once, so that giving them need not.
    ///
    /// # Errors
    /// As [`Publication::upload`], before anything is sent.
    pub fn ask(&self, files: &[&LocalFile]) -> Result<()> {
        let changed = |file: &&&LocalFile| {
            let found = self.head.as_ref().and_then(|head| head.file(&file.name));
            !found.is_some_and(|found| is_same(&file.hashes, found.size, &found.hash))
        };
        let files: Vec<&&LocalFile> = files.iter().filter(changed).collect();
        let samples = files.iter().map(|file| sample(&file.path)).collect::<Result<Vec<_>>>()?;
        let asked: Vec<Asked<'_>> = files
            .iter()
            .zip(&samples)
            .map(|(file, sample)| Asked { path: &file.name, size: file.hashes.size, sample })
            .collect();
        let found = modes(self.http, &self.target, &asked)?;
        let mut known = self.modes.lock().unwrap_or_else(PoisonError::into_inner);
        known.extend(files.iter().map(|file| file.name.clone()).zip(found));
        Ok(())
    }

    /// Whether the repository's `.gitignore` leaves a file out, of those that were [asked](Self::ask) about.
    pub fn is_ignored(&self, name: &str) -> bool {
        let known = self.modes.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(name) == Some(&Mode::Ignored)
    }

    fn mode(
        &self,
        name: &str,
        size: u64,
        sample: impl FnOnce() -> Result<Vec<u8>>,
    ) -> Result<Mode> {
        let known = self.modes.lock().unwrap_or_else(PoisonError::into_inner).get(name).copied();
        if let Some(mode) = known {
            return Ok(mode);
        }
        let sample = sample()?;
        let found = modes(self.http, &self.target, &[Asked { path: name, size, sample: &sample }])?;
        let mode = found.first().copied().ok_or_else(|| {
            corrupt(self.target.id.repo(), "the Hub does not say how it wants a file".into())
        })?;
        self.know(name, mode);
        Ok(mode)
    }

    fn know(&self, name: &str, mode: Mode) {
        self.modes.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), mode);
    }

    /// What became of the same file when it was given before.
    fn before(&self, name: &str, sha256: &str) -> Result<Option<Stored>> {
        if !is_safe(name) {
            return Err(Error::Usage {
                problem: format!("`{}` is no name of a file in a repository", printable(name)),
                hint: "give relative paths with plain parts".into(),
            });
        }
        let files = self.files();
        Ok(files
            .get(name)
            .filter(|given| given.stored.sha256 == sha256)
            .map(|given| given.stored.clone()))
    }

    fn keep(&self, name: &str, stored: Stored, operation: Option<Operation>) -> Stored {
        self.files().insert(name.to_owned(), Given { stored: stored.clone(), operation });
        stored
    }

    fn files(&self) -> MutexGuard<'_, BTreeMap<String, Given>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn large(name: &str, sha256: &str, size: u64) -> Operation {
    Operation::Large { path: name.to_owned(), sha256: sha256.to_owned(), size }
}

fn ignored(target: &Target, name: &str) -> Error {
    Error::Hub {
        what: format!("{}: {name}", target.id.repo()),
        kind: HubFailure::Refused,
        problem: "the repository's `.gitignore` leaves it out".into(),
        hint: "change `.gitignore` there, or leave the file out with `--exclude`".into(),
    }
}

/// The first bytes of a file.
fn sample(path: &Path) -> Result<Vec<u8>> {
    let file = File::open(path).at("open", path)?;
    let mut sample = vec![0; SAMPLE];
    let mut len = 0;
    while len < SAMPLE {
        match file.read_at(&mut sample[len..], len as u64).at("read", path)? {
            0 => break,
            n => len += n,
        }
    }
    sample.truncate(len);
    Ok(sample)
}
