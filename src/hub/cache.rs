//! The cache on disk: huggingface_hub's layout, and what stands in it beside: partly fetched files and views.
//!
//! ```text
//! models--org--name/
//!   blobs/HASH                                    whole files, verified
//!   refs/REVISION                                 a commit's name
//!   snapshots/COMMIT/PATH -> ../../blobs/HASH     what huggingface_hub finds
//!   partial/                                      ours
//!     blobs/HASH, HASH.fetched, HASH.lock         a file of which some bytes are here, and which
//!     refs/REVISION
//!     COMMIT.json                                 the commit's files, as the Hub lists them
//!     COMMIT/PATH -> ../blobs/HASH                a view: partly here, or ../../blobs/HASH: whole
//! ```

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::path::{Component, Path, PathBuf};
use std::time::SystemTime;

use serde_json::{Value, json};

use super::id::{ModelId, is_commit};
use super::listing::{self, Hash, Listing, RemoteFile};
use crate::error::{IoContext, Result};
use crate::format::{record_of, unwritten};

/// Name of our folder in a model's.
const PARTIAL: &str = "partial";
/// A saved list of more bytes is none of ours.
const LARGEST_LIST: u64 = 256 << 20;

/// A model's folder in the cache.
#[derive(Clone, Debug)]
pub(super) struct Folder {
    root: PathBuf,
}

impl Folder {
    pub(super) fn of(cache: &Path, id: &ModelId) -> Self {
        Self { root: cache.join(id.folder()) }
    }

    /// Where a whole file is, or would be.
    pub(super) fn blob(&self, hash: &Hash) -> PathBuf {
        self.root.join("blobs").join(hash.hex())
    }

    /// Where a file is of which some bytes are here.
    pub(super) fn partial(&self, hash: &Hash) -> PathBuf {
        self.root.join(PARTIAL).join("blobs").join(hash.hex())
    }

    /// The folder that looks like a checkpoint.
    pub(super) fn view(&self, commit: &str) -> PathBuf {
        self.root.join(PARTIAL).join(commit)
    }

    /// huggingface_hub's folder of all commits.
    pub(super) fn snapshots(&self) -> PathBuf {
        self.root.join("snapshots")
    }

    /// huggingface_hub's folder of a commit.
    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.snapshots().join(commit)
    }

    /// Whether a whole file is here. Its name is its hash and was given after a check of it; its size is looked at again.
    pub(super) fn has(&self, file: &RemoteFile) -> bool {
        fs::metadata(self.blob(&file.hash))
            .is_ok_and(|meta| meta.is_file() && meta.len() == file.size)
    }

    /// Puts a whole file into a view.
    pub(super) fn link_whole(&self, commit: &str, file: &RemoteFile) -> Result<()> {
        let up = 1 + file.path.split('/').count();
        let to = format!("{}blobs/{}", "../".repeat(up), file.hash.hex());
        link(&self.view(commit).join(&file.path), Path::new(&to))
    }

    /// Puts a partly fetched file into a view.
    pub(super) fn link_partial(&self, commit: &str, file: &RemoteFile) -> Result<()> {
        let up = file.path.split('/').count();
        let to = format!("{}blobs/{}", "../".repeat(up), file.hash.hex());
        link(&self.view(commit).join(&file.path), Path::new(&to))
    }

    /// Puts the name of a file into a view that is not to be read.
    pub(super) fn link_nowhere(&self, commit: &str, file: &RemoteFile) -> Result<()> {
        link(&self.view(commit).join(&file.path), Path::new(".not-fetched"))
    }

    /// Lets huggingface_hub find a whole file under its commit.
    pub(super) fn link_snapshot(&self, commit: &str, file: &RemoteFile) -> Result<()> {
        let up = 1 + file.path.split('/').count();
        let to = format!("{}blobs/{}", "../".repeat(up), file.hash.hex());
        link(&self.snapshot(commit).join(&file.path), Path::new(&to))
    }

    /// The commit that a revision named when it was last asked for, by us or by huggingface_hub.
    pub(super) fn commit_of(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.to_owned());
        }
        let read = |refs: PathBuf| -> Option<(SystemTime, String)> {
            let path = refs.join(revision);
            let written = fs::metadata(&path).ok()?.modified().ok()?;
            let commit = fs::read_to_string(path).ok()?.trim().to_owned();
            is_commit(&commit).then_some((written, commit))
        };
        let found = [self.root.join("refs"), self.root.join(PARTIAL).join("refs")];
        found.into_iter().filter_map(read).max().map(|(_, commit)| commit)
    }

    /// Notes which commit a revision names now.
    pub(super) fn note_revision(&self, revision: &str, commit: &str) -> Result<()> {
        self.write_revision(&self.root.join(PARTIAL).join("refs"), revision, commit)
    }

    /// Notes it for huggingface_hub too, which looks for every file of the model there.
    pub(super) fn publish_revision(&self, revision: &str, commit: &str) -> Result<()> {
        self.write_revision(&self.root.join("refs"), revision, commit)
    }

    fn write_revision(&self, refs: &Path, revision: &str, commit: &str) -> Result<()> {
        if is_commit(revision) {
            return Ok(());
        }
        self.write(&refs.join(revision), commit.as_bytes())
    }

    /// The files of a commit, if they were listed before.
    pub(super) fn listing(&self, commit: &str) -> Option<Listing> {
        let path = self.list_path(commit);
        if fs::metadata(&path).ok()?.len() > LARGEST_LIST {
            return None;
        }
        let entries: Vec<Value> = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
        let files = entries.iter().map(listing::file).collect::<Result<Vec<_>, _>>().ok()?;
        let mut files: Vec<RemoteFile> = files.into_iter().flatten().collect();
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Some(Listing { commit: commit.to_owned(), files })
    }

    /// Keeps what the Hub lists: a commit does not change.
    pub(super) fn save_listing(&self, listing: &Listing) -> Result<()> {
        let entries = listing.files.iter().map(|RemoteFile { path, size, hash }| match hash {
            Hash::Sha256(hex) => {
                json!({ "type": "file", "path": path, "size": size, "lfs": { "oid": hex, "size": size } })
            }
            Hash::Git(hex) => json!({ "type": "file", "path": path, "size": size, "oid": hex }),
        });
        let entries: Value = entries.collect();
        self.write(&self.list_path(&listing.commit), entries.to_string().as_bytes())
    }

    /// Whole files of a commit that huggingface_hub downloaded; whether they are all nobody knows.
    pub(super) fn downloaded(&self, commit: &str) -> Option<Listing> {
        let root = self.snapshot(commit);
        let (mut files, mut folders) = (Vec::new(), vec![String::new()]);
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(root.join(&folder)).ok()?.flatten() {
                let name = entry.file_name().into_string().ok()?;
                let path = if folder.is_empty() { name } else { format!("{folder}/{name}") };
                if entry.file_type().ok()?.is_dir() {
                    folders.push(path);
                    continue;
                }
                let Ok(to) = fs::read_link(entry.path()) else { continue };
                let hex = to.file_name()?.to_str()?.to_owned();
                let hash = if hex.len() == 64 { Hash::Sha256(hex) } else { Hash::Git(hex) };
                let size = fs::metadata(entry.path()).ok()?.len();
                files.push(RemoteFile { path, size, hash });
            }
        }
        files.sort_by(|a, b| a.path.cmp(&b.path));
        (!files.is_empty()).then(|| Listing { commit: commit.to_owned(), files })
    }

    pub(super) fn list_path(&self, commit: &str) -> PathBuf {
        self.root.join(PARTIAL).join(format!("{commit}.json"))
    }

    /// Writes a small file, whole or not at all. What a killed run leaves of it is in our own folder.
    fn write(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        if fs::read(path).is_ok_and(|now| now == bytes) {
            // The time says when it was asked for.
            let touched = File::options().append(true).open(path);
            let _ = touched.and_then(|file| file.set_modified(SystemTime::now()));
            return Ok(());
        }
        let ours = self.root.join(PARTIAL);
        for folder in [Some(ours.as_path()), path.parent()].into_iter().flatten() {
            fs::create_dir_all(folder).at("create", folder)?;
        }
        let new = beside(&ours.join(path.file_name().unwrap_or_default()));
        let written = fs::write(&new, bytes);
        written.map_err(|error| unwritten(error, "write", &new, bytes.len() as u64))?;
        fs::rename(&new, path).at("rename", path)
    }
}

/// Which file of which model a path in a view is.
pub(super) fn in_view(cache: &Path, path: &Path) -> Option<(ModelId, String, String)> {
    let inner = path.strip_prefix(cache).ok()?;
    let mut parts = inner.components().map(|part| match part {
        Component::Normal(part) => part.to_str(),
        _ => None,
    });
    let folder = parts.next()??.strip_prefix("models--")?;
    let id = ModelId::parse(&folder.replacen("--", "/", 1))?;
    if parts.next()?? != PARTIAL {
        return None;
    }
    let commit = parts.next()?.filter(|commit| is_commit(commit))?.to_owned();
    let file: Vec<&str> = parts.collect::<Option<_>>()?;
    Some((id, commit, file.join("/")))
}

/// Makes a link that leads to `to`, in one step, if it does not already.
pub(super) fn link(at: &Path, to: &Path) -> Result<()> {
    if fs::read_link(at).is_ok_and(|now| now == to) {
        return Ok(());
    }
    if let Some(folder) = at.parent() {
        fs::create_dir_all(folder).at("create", folder)?;
    }
    match symlink(to, at) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        made => return made.at("create", at),
    }
    let new = beside(at);
    remove(&new)?;
    symlink(to, &new).at("create", &new)?;
    fs::rename(&new, at).at("rename", at)
}

/// A name beside a file's, of this process alone. It is hidden: checkpoints do not look at hidden files.
pub(super) fn beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{}.{:?}", std::process::id(), std::thread::current().id()))
}

/// Removes a file or link, if it is there.
pub(super) fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error).at("remove", path),
        _ => Ok(()),
    }
}

/// Clears what is left of a partly fetched file that does not fit together: a record without its file, a link to a
/// whole file that somebody removed, a file of another size.
pub(super) fn clear_remains(partial: &Path, size: u64) -> Result<()> {
    let sound =
        fs::symlink_metadata(partial).is_ok_and(|meta| meta.is_file() && meta.len() == size);
    if !sound {
        // The file first: it would be taken for whole without a record, and a record without a file is nothing.
        remove(partial)?;
        remove(&record_of(partial))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    fn folder(dir: &Path) -> Folder {
        Folder::of(dir, &ModelId::parse("org/a--model".replace("--", "-").as_str()).unwrap())
    }

    #[test]
    fn lists_and_revisions_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let folder = folder(dir.path());
        let files = vec![
            RemoteFile { path: "a/b.txt".into(), size: 3, hash: Hash::Git("a".repeat(40)) },
            RemoteFile {
                path: "m.safetensors".into(),
                size: 9,
                hash: Hash::Sha256("b".repeat(64)),
            },
        ];
        let listing = Listing { commit: COMMIT.into(), files };
        folder.save_listing(&listing).unwrap();
        assert_eq!(folder.listing(COMMIT), Some(listing));
        assert_eq!(folder.commit_of("main"), None);
        folder.note_revision("refs/pr/1", COMMIT).unwrap();
        assert_eq!(folder.commit_of("refs/pr/1").as_deref(), Some(COMMIT));
        fs::write(folder.root.join("partial/refs/main"), "../../x").unwrap();
        assert_eq!(folder.commit_of("main"), None, "no commit");
    }

    #[test]
    fn views_lead_to_files() {
        let dir = tempfile::tempdir().unwrap();
        let folder = folder(dir.path());
        let file =
            RemoteFile { path: "deep/x.json".into(), size: 2, hash: Hash::Git("c".repeat(40)) };
        fs::create_dir_all(dir.path().join("models--org--a-model/blobs")).unwrap();
        fs::write(folder.blob(&file.hash), "{}").unwrap();
        assert!(folder.has(&file));
        folder.link_whole(COMMIT, &file).unwrap();
        folder.link_whole(COMMIT, &file).unwrap();
        folder.link_snapshot(COMMIT, &file).unwrap();
        assert_eq!(fs::read(folder.view(COMMIT).join("deep/x.json")).unwrap(), b"{}");
        assert_eq!(fs::read(folder.snapshot(COMMIT).join("deep/x.json")).unwrap(), b"{}");
        fs::create_dir_all(dir.path().join("models--org--a-model/partial/blobs")).unwrap();
        fs::write(folder.partial(&file.hash), "??").unwrap();
        folder.link_partial(COMMIT, &file).unwrap();
        assert_eq!(fs::read(folder.view(COMMIT).join("deep/x.json")).unwrap(), b"??");
        let found = in_view(dir.path(), &folder.view(COMMIT).join("deep/x.json"));
        let (id, commit, path) = found.unwrap();
        assert_eq!(
            (id.repo(), commit.as_str(), path.as_str()),
            ("org/a-model", COMMIT, "deep/x.json")
        );
        assert!(in_view(dir.path(), &folder.snapshot(COMMIT).join("x")).is_none());
    }

    #[test]
    fn remains_are_no_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x");
        fs::write(record_of(&file), "0 8\n").unwrap();
        clear_remains(&file, 8).unwrap();
        assert!(!record_of(&file).exists(), "of a record without a file");
        symlink("../gone", &file).unwrap();
        fs::write(record_of(&file), "0 8\n").unwrap();
        clear_remains(&file, 8).unwrap();
        assert!(fs::symlink_metadata(&file).is_err() && !record_of(&file).exists());
    }
}
