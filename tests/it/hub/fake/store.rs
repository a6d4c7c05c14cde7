//! Repositories: commits, branches, files.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::hashes::{git_sha1, sha1_of, sha256};

/// Bytes in memory, or in a file that does not change.
#[derive(Clone, Debug)]
pub(crate) enum Content {
    Memory(Arc<[u8]>),
    File(PathBuf, u64),
}

impl Content {
    pub(crate) fn of(bytes: impl Into<Vec<u8>>) -> Self {
        Self::Memory(bytes.into().into())
    }

    pub(crate) fn len(&self) -> u64 {
        match self {
            Self::Memory(bytes) => bytes.len() as u64,
            Self::File(_, size) => *size,
        }
    }

    pub(crate) fn read(&self, range: Range<u64>) -> io::Result<Vec<u8>> {
        let place = |at: u64| usize::try_from(at).map_err(io::Error::other);
        match self {
            Self::Memory(bytes) => Ok(bytes[place(range.start)?..place(range.end)?].to_vec()),
            Self::File(path, _) => {
                let mut bytes = vec![0; place(range.end - range.start)?];
                File::open(path)?.read_exact_at(&mut bytes, range.start)?;
                Ok(bytes)
            }
        }
    }

    pub(crate) fn bytes(&self) -> io::Result<Vec<u8>> {
        self.read(0..self.len())
    }

    /// All bytes in pieces that fit into memory.
    pub(crate) fn pieces(&self, mut take: impl FnMut(&[u8])) -> io::Result<()> {
        let mut at = 0;
        while at < self.len() {
            let end = self.len().min(at + (1 << 20));
            take(&self.read(at..end)?);
            at = end;
        }
        Ok(())
    }
}

/// A file of a commit.
#[derive(Clone, Debug)]
pub(crate) struct Blob {
    pub(crate) content: Content,
    /// Whether git has a pointer in its place.
    pub(crate) lfs: bool,
    /// Git's name of it, or of the pointer.
    pub(crate) oid: String,
    pub(crate) sha256: String,
}

impl Blob {
    /// A file as git or LFS keep it.
    pub(crate) fn new(path: &str, content: Content) -> Self {
        let lfs = is_lfs(path, content.len());
        let sha256 = sha256(&content).unwrap();
        Self::hashed(lfs, content, sha256)
    }

    pub(crate) fn hashed(lfs: bool, content: Content, sha256: String) -> Self {
        let oid = if lfs { git_sha1(&pointer(&sha256, content.len())) } else { git_sha1(&content) };
        Self { content, lfs, oid: oid.unwrap(), sha256 }
    }

    /// What `ETag` and the cache's blob are called.
    pub(crate) fn etag(&self) -> &str {
        if self.lfs { &self.sha256 } else { &self.oid }
    }

    pub(crate) fn pointer_size(&self) -> u64 {
        pointer(&self.sha256, self.content.len()).len()
    }
}

fn pointer(sha256: &str, size: u64) -> Content {
    Content::of(format!(
        "version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
    ))
}

/// What a new repository's `.gitattributes` sends to LFS, and what is too large for git.
pub(crate) fn is_lfs(path: &str, size: u64) -> bool {
    const KINDS: [&str; 10] =
        ["safetensors", "bin", "pt", "pth", "gguf", "h5", "onnx", "msgpack", "parquet", "model"];
    let kind = path.rsplit_once('.').map_or("", |(_, kind)| kind);
    KINDS.contains(&kind) || size > 10 << 20
}

pub(crate) type Files = BTreeMap<String, Blob>;

#[derive(Clone, Debug)]
pub(crate) struct Commit {
    pub(crate) parent: Option<String>,
    pub(crate) title: String,
    pub(crate) description: String,
    pub(crate) files: Files,
}

/// A model's repository.
#[derive(Clone, Debug, Default)]
pub(crate) struct Repo {
    pub(crate) private: bool,
    pub(crate) gated: bool,
    pub(crate) commits: BTreeMap<String, Commit>,
    /// Branches, and `refs/pr/N`.
    pub(crate) branches: BTreeMap<String, String>,
    pub(crate) tags: BTreeMap<String, String>,
    /// LFS objects that were uploaded, by SHA-256.
    pub(crate) objects: BTreeMap<String, Content>,
}

impl Repo {
    /// The commit behind a branch, tag or commit's name.
    pub(crate) fn resolve(&self, revision: &str) -> Option<&str> {
        let named = self.branches.get(revision).or_else(|| self.tags.get(revision));
        let commit = self.commits.get_key_value(revision).map(|(name, _)| name);
        named.or(commit).map(String::as_str)
    }

    pub(crate) fn files(&self, revision: &str) -> Option<&Files> {
        self.commits.get(self.resolve(revision)?).map(|commit| &commit.files)
    }

    /// Puts a commit onto a branch.
    pub(crate) fn commit(
        &mut self,
        branch: &str,
        title: &str,
        description: &str,
        files: Files,
    ) -> String {
        let parent = self.branches.get(branch).cloned();
        let name = self.add(parent, title, description, files);
        self.branches.insert(branch.to_owned(), name.clone());
        name
    }

    /// Adds a commit that no branch has yet.
    pub(crate) fn add(
        &mut self,
        parent: Option<String>,
        title: &str,
        description: &str,
        files: Files,
    ) -> String {
        let listed: Vec<String> =
            files.iter().map(|(path, blob)| format!("{path} {}", blob.oid)).collect();
        let name =
            sha1_of(&format!("{} {parent:?} {title}\n{}", self.commits.len(), listed.join("\n")));
        for blob in files.values().filter(|blob| blob.lfs) {
            self.objects.insert(blob.sha256.clone(), blob.content.clone());
        }
        let (title, description) = (title.to_owned(), description.to_owned());
        self.commits.insert(name.clone(), Commit { parent, title, description, files });
        name
    }
}

/// A directory's files, without what starts with a dot. `quick` hashes only name and size of LFS files: enough for
/// files of which nobody ever has all bytes.
pub(crate) fn from_directory(root: &Path, quick: bool) -> io::Result<Files> {
    let mut files = Files::new();
    let mut open = vec![root.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(&directory)? {
            let path = entry?.path();
            if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.')) {
                continue;
            }
            let meta = fs::metadata(&path)?;
            if meta.is_dir() {
                open.push(path);
                continue;
            }
            let name =
                path.strip_prefix(root).map_err(io::Error::other)?.to_string_lossy().into_owned();
            let content = Content::File(path, meta.len());
            let lfs = is_lfs(&name, meta.len());
            let sha256 = if quick && lfs {
                sha256(&Content::of(format!("{name} {}", meta.len())))?
            } else {
                sha256(&content)?
            };
            files.insert(name, Blob::hashed(lfs, content, sha256));
        }
    }
    Ok(files)
}
