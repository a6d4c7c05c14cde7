//! A model on a fake Hub, a home for a cache, and what must hold after every run whatever went wrong.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;

use super::fake::hashes::{contains, git_sha1, plain_sha1, sha256};
use super::fake::log::{Logged, Origin, Sent};
use super::fake::store::{Blob, Content};
use super::fake::{FakeHub, TOKEN};
use crate::support::checkpoint::Model;
use crate::support::process::{Elo, Outcome, elo};

/// The model that is there.
pub(super) const REPO: &str = "acme/model";
/// What the addresses of shards have, and no other file's.
pub(super) const SHARDS: &str = "/model-0";
/// No run may take longer, whatever goes wrong. One that is not answered takes about six times the silence of a second.
const MOST: Duration = Duration::from_mins(1);

/// A Hub and a machine.
pub(super) struct Scene {
    temp: TempDir,
    pub(super) hub: FakeHub,
    /// Whether unfinished files may hold bytes that nobody could check yet.
    pub(super) distrust: Cell<bool>,
}

impl Scene {
    /// A Hub with a model of 60 kB in two shards.
    pub(super) fn new() -> Self {
        Self::of(&Model::tiny(1))
    }

    /// A Hub with this model.
    pub(super) fn of(model: &Model) -> Self {
        let scene = Self::empty();
        let original = scene.temp.path().join("original");
        model.write(&original);
        fs::create_dir_all(original.join("extra")).unwrap();
        fs::write(original.join("extra/notes.txt"), "kept beside\n").unwrap();
        scene.hub.add_directory(REPO, &original);
        scene
    }

    /// A Hub without models.
    pub(super) fn empty() -> Self {
        let scene = Self {
            temp: TempDir::new().unwrap(),
            hub: FakeHub::start(),
            distrust: Cell::new(false),
        };
        fs::create_dir_all(scene.work()).unwrap();
        scene
    }

    /// The model as it was put onto the Hub.
    pub(super) fn original(&self) -> PathBuf {
        self.temp.path().join("original")
    }

    /// Deep enough that what climbs out of the cache or of a target is still found.
    pub(super) fn work(&self) -> PathBuf {
        self.temp.path().join("a/b/c/d/e/work")
    }

    pub(super) fn home(&self) -> PathBuf {
        self.work().join("home")
    }

    pub(super) fn cache(&self) -> PathBuf {
        self.home().join("hub")
    }

    pub(super) fn out(&self) -> PathBuf {
        self.work().join("out")
    }

    /// The model's folder in the cache.
    pub(super) fn folder(&self) -> PathBuf {
        self.cache().join(format!("models--{}", REPO.replace('/', "--")))
    }

    /// The commit of the model's `main`.
    pub(super) fn head(&self) -> String {
        self.hub.repos()[REPO].branches["main"].clone()
    }

    /// A run of the program, which knows the Hub, a token, and little patience.
    pub(super) fn elo(&self, words: &str) -> Elo {
        let quiet =
            ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"];
        let run = quiet.iter().fold(elo(words), |run, name| run.env(name, ""));
        run.env("HF_ENDPOINT", self.hub.endpoint())
            .env("HF_HOME", self.home())
            .env("HOME", self.work().join("nobody"))
            .env("HF_TOKEN", TOKEN)
            .env("HF_HUB_CACHE", "")
            .env("HF_HUB_OFFLINE", "")
            .env("TRANSFORMERS_OFFLINE", "")
            .env("HF_HUB_DOWNLOAD_TIMEOUT", "1")
            .env("HF_HUB_ETAG_TIMEOUT", "1")
            .env("ELO_SURGERY_HUB_FIRST_WAIT", "0.01")
            .within(&self.work())
            .patience(MOST)
    }

    /// What must hold whatever happened.
    #[track_caller]
    pub(super) fn check(&self, outcome: &Outcome, what: &str) {
        let problems = self.problems(outcome);
        assert!(problems.is_empty(), "{what}:\n  {}\n{outcome}", problems.join("\n  "));
    }

    /// What must hold and does not.
    pub(super) fn problems(&self, outcome: &Outcome) -> Vec<String> {
        let mut problems = Vec::new();
        match outcome.code() {
            None if outcome.signal().is_none() => problems.push("it did not end".into()),
            Some(0) => {}
            // The last resort of the system, and of Rust.
            None | Some(101) => problems.push("it crashed".into()),
            Some(_) => {
                let text = &outcome.stderr;
                problems
                    .extend((!text.contains("error")).then(|| "no word of an error".to_owned()));
                problems
                    .extend((!text.contains("hint")).then(|| "no word of a way out".to_owned()));
            }
        }
        if outcome.panicked() {
            problems.push("it panicked".into());
        }
        if outcome.text().contains(TOKEN) {
            problems.push("it said the token".into());
        }
        if outcome.text().contains('\u{1b}') || outcome.text().contains('\0') {
            problems.push("it printed control characters of the Hub's".into());
        }
        problems.extend(self.traffic_problems());
        problems.extend(self.disk_problems());
        problems
    }

    fn traffic_problems(&self) -> Vec<String> {
        let wrong = |entry: &Logged| {
            entry.leaked || (entry.origin == Origin::Other && entry.sent == Sent::Token)
        };
        let entries = self.hub.requests();
        entries
            .iter()
            .filter(|entry| wrong(entry))
            .map(|entry| format!("the token went out: {entry:?}"))
            .collect()
    }

    /// Files that are where none may be, or are not what they are called.
    fn disk_problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut files = Vec::new();
        walk(self.temp.path(), &mut files);
        files.push(PathBuf::from("/tmp/ESCAPED.json"));
        for path in &files {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.contains("ESCAPED") && fs::symlink_metadata(path).is_ok() {
                problems.push(format!("a hostile name became a file: {}", path.display()));
            }
            let inside = path.starts_with(self.work()) || path.starts_with(self.original());
            if !inside && path.starts_with(self.temp.path()) {
                problems.push(format!("outside of everything: {}", path.display()));
            }
            if fs::read(path).is_ok_and(|bytes| contains(&bytes, TOKEN)) {
                problems.push(format!("the token is in {}", path.display()));
            }
        }
        let cache = self.cache();
        let cached = files.iter().filter(|path| path.starts_with(&cache));
        problems.extend(cached.filter_map(|path| self.cache_problem(path)));
        problems
    }

    /// What is wrong with a file of the cache.
    fn cache_problem(&self, path: &Path) -> Option<String> {
        let shown = path.display();
        let inside = path.strip_prefix(self.cache()).ok()?.to_string_lossy().into_owned();
        let parts: Vec<&str> = inside.split('/').collect();
        if fs::symlink_metadata(path).ok()?.is_symlink() {
            let to = fs::canonicalize(path).ok()?;
            let home = fs::canonicalize(self.cache()).ok()?;
            if !to.starts_with(home) {
                return Some(format!("a link leads out of the cache: {shown}"));
            }
        }
        match parts.as_slice() {
            [_, "blobs", name] if is_hash(name) => {
                let hash = hash_like(name, &Content::of(fs::read(path).ok()?));
                (hash != *name).then(|| format!("not what it is called: {shown} is {hash}"))
            }
            [_, "blobs", name] => {
                let kind = name.rsplit_once('.').map(|(_, kind)| kind);
                let unfinished = matches!(kind, Some("incomplete" | "lock"));
                (!unfinished).then(|| format!("a blob's name is no hash: {shown}"))
            }
            [_, "snapshots", commit, file @ ..] => {
                // Links to blobs that are not there are nobody's problem but ours.
                let bytes = fs::read(path).ok();
                let right = self.file_of(commit, &file.join("/"));
                match (bytes, right) {
                    (Some(bytes), Some(right)) if bytes == right => None,
                    _ => Some(format!("a snapshot has what its commit has not: {shown}")),
                }
            }
            [_, "refs", ..] => {
                let text = fs::read_to_string(path).ok()?;
                let fits = text.len() == 40 && text.bytes().all(|b| b.is_ascii_hexdigit());
                (!fits).then(|| format!("a reference is no commit: {shown} says {text:?}"))
            }
            [_, "partial", "blobs", name] if is_hash(name) => self.partial_problem(path, name),
            _ => None,
        }
    }

    /// What is wrong with the bytes that a partly fetched file claims to have.
    fn partial_problem(&self, path: &Path, name: &str) -> Option<String> {
        if fs::symlink_metadata(path).ok()?.is_symlink() {
            return None;
        }
        let right = self.content_of(name).filter(|_| !self.distrust.get())?;
        let bytes = fs::read(path).ok()?;
        let record = fs::read_to_string(path.with_file_name(format!("{name}.fetched")));
        let Ok(record) = record else {
            return (bytes != right)
                .then(|| format!("without a record, and not whole: {}", path.display()));
        };
        let whole = record.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let wrong = whole.lines().filter(|line| {
            let mut ends = line.split(' ').filter_map(|end| end.parse::<usize>().ok());
            let (Some(start), Some(end)) = (ends.next(), ends.next()) else { return false };
            bytes.get(start..end) != right.get(start..end)
        });
        let wrong: Vec<&str> = wrong.collect();
        (!wrong.is_empty())
            .then(|| format!("wrong bytes are recorded as here: {wrong:?} of {}", path.display()))
    }

    /// A file of any commit.
    fn file_of(&self, commit: &str, path: &str) -> Option<Vec<u8>> {
        let repos = self.hub.repos();
        let mut found = repos.values().filter_map(|repo| repo.commits.get(commit)?.files.get(path));
        found.next()?.content.bytes().ok()
    }

    /// The bytes behind an entity tag.
    fn content_of(&self, tag: &str) -> Option<Vec<u8>> {
        let repos = self.hub.repos();
        let blobs = repos
            .values()
            .flat_map(|repo| repo.commits.values())
            .flat_map(|commit| commit.files.values());
        let called = |blob: &&Blob| {
            blob.etag() == tag || plain_sha1(&blob.content).is_ok_and(|plain| plain == tag)
        };
        blobs.filter(called).find_map(|blob| blob.content.bytes().ok())
    }

    /// Names and bytes of a commit's files.
    pub(super) fn files(&self, commit: &str) -> BTreeMap<String, Vec<u8>> {
        let repos = self.hub.repos();
        let files = repos.values().find_map(|repo| repo.files(commit)).unwrap();
        files.iter().map(|(path, blob)| (path.clone(), blob.content.bytes().unwrap())).collect()
    }

    /// Fails if a directory that was pulled into has anything under a final name that the commit has not.
    #[track_caller]
    pub(super) fn check_out(&self, commit: &str, what: &str) {
        let (right, out) = (self.files(commit), self.out());
        let mut files = Vec::new();
        walk(&out, &mut files);
        for path in files {
            let name = path.strip_prefix(&out).unwrap().to_string_lossy().into_owned();
            if name.starts_with(".elo-") {
                continue;
            }
            let bytes = fs::read(&path).unwrap();
            assert!(right.get(&name) == Some(&bytes), "{what}: `{name}` is not the commit's");
        }
    }

    /// Fails unless a directory has all files of a commit, and no other.
    #[track_caller]
    pub(super) fn assert_pulled(&self, directory: &Path, commit: &str, what: &str) {
        let right = self.files(commit);
        for (name, bytes) in &right {
            let found = fs::read(directory.join(name));
            assert!(
                found.is_ok_and(|found| found == *bytes),
                "{what}: `{name}` is not there, or is wrong"
            );
        }
        let mut files = Vec::new();
        walk(directory, &mut files);
        assert_eq!(files.len(), right.len(), "{what}: other files are there: {files:?}");
    }

    /// Where the snapshot of a commit is.
    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder().join("snapshots").join(commit)
    }

    /// Requests from here on.
    pub(super) fn since(&self, mark: usize) -> Vec<Logged> {
        self.hub.requests().split_off(mark)
    }
}

fn is_hash(name: &str) -> bool {
    matches!(name.len(), 40 | 64) && name.bytes().all(|b| b.is_ascii_hexdigit())
}

/// The hash that a name of this length is of.
fn hash_like(name: &str, content: &Content) -> String {
    if name.len() == 64 {
        return sha256(content).unwrap();
    }
    let plain = plain_sha1(content).unwrap();
    if plain == name { plain } else { git_sha1(content).unwrap() }
}

/// Files and links below a directory; links are not followed.
pub(super) fn walk(directory: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for path in entries.filter_map(Result::ok).map(|entry| entry.path()) {
        match fs::symlink_metadata(&path) {
            Ok(meta) if meta.is_dir() => walk(&path, found),
            _ => found.push(path),
        }
    }
}
