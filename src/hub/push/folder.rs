//! A directory to be published: which files, what they are called by their bytes, and whether they are what their record says.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use rayon::prelude::*;

use super::super::listing::is_safe;
use super::Watch;
use super::hash::{Hashes, Read, read};
use crate::checkpoint::{OpenOptions, check_link};
use crate::error::{Error, IoContext as _, Result, printable};
use crate::format::{FileRecord, Identity, PROVENANCE_FILE, Provenance, SourceFile, UNDO_FILE};

/// Deeper trees are no models.
const MOST_DEPTH: usize = 16;
/// What the record of an output may have.
const MOST_RECORD: u64 = 256 << 20;

/// How a directory is read.
#[derive(Clone, Debug, Default)]
pub struct FolderOptions {
    /// Patterns of paths to leave out; `*` also stands for `/`.
    pub exclude: Vec<String>,
    /// Publish although files are not what their record says.
    pub allow_changed: bool,
    /// Follow links that leave the directory.
    pub follow_symlinks: bool,
    /// Recorded files that the Hub has already and the directory has not: what is left of an output whose shards were taken
    /// away while it was made. Its structure is not looked at then.
    pub elsewhere: BTreeSet<String>,
}

/// A file of the directory.
#[derive(Clone, Debug)]
pub struct LocalFile {
    /// Its path in the repository.
    pub name: String,
    /// Where it lies.
    pub path: PathBuf,
    /// What its bytes are called.
    pub hashes: Hashes,
    identity: Identity,
}

/// A directory, read once.
#[derive(Clone, Debug)]
pub struct Folder {
    root: PathBuf,
    /// In the order of their names.
    pub files: Vec<LocalFile>,
    /// What is not published, and why.
    pub left_out: Vec<(String, String)>,
    /// What the directory says of its origin.
    pub provenance: Option<Provenance>,
    /// Doubts.
    pub warnings: Vec<String>,
    exclude: GlobSet,
    elsewhere: BTreeSet<String>,
}

impl Folder {
    /// Reads every file once: structure, hashes, and whether it is what `elo-surgery.json` says.
    ///
    /// # Errors
    /// [`Error::Verification`] with everything that is missing, changed, or too much; [`Error::UnfinishedInPlace`];
    /// whatever makes the directory no model. `stop` ends it early by its error.
    pub fn read(
        root: &Path,
        options: &FolderOptions,
        watch: &dyn Watch,
        stop: &(dyn Fn() -> Result<()> + Sync),
    ) -> Result<Self> {
        if options.elsewhere.is_empty() {
            refuse_unfinished(root)?;
        }
        let exclude = patterns(&options.exclude)?;
        let opening = OpenOptions::default().follow_symlinks(options.follow_symlinks);
        let mut warnings = if !options.elsewhere.is_empty() {
            Vec::new()
        } else if root.join("adapter_config.json").exists() {
            opening.open_adapter(root)?;
            Vec::new()
        } else {
            opening.allow_unknown_dtypes(true).open(root)?.warnings().to_vec()
        };
        let mut walk =
            Walk { root, options, exclude: &exclude, found: BTreeMap::new(), left_out: Vec::new() };
        walk.enter(root, "", 0)?;
        let Walk { found, left_out, .. } = walk;
        let provenance = provenance(root, options.follow_symlinks)?;
        let records: BTreeMap<&str, &FileRecord> = provenance
            .iter()
            .flat_map(|provenance| &provenance.files)
            .map(|record| (record.file.as_str(), record))
            .collect();
        let sizes = found.values().map(|path| fs::metadata(path).map_or(0, |meta| meta.len()));
        watch.begin(sizes.sum());
        let found: Vec<(&String, &PathBuf)> = found.iter().collect();
        let step = |bytes| {
            watch.advance(bytes);
            stop()
        };
        let read_one = |(name, path): &(&String, &PathBuf)| {
            let digest = records.get(name.as_str()).and_then(|record| record.digest.as_ref());
            read(path, digest.map(|digest| digest.algorithm), &step)
        };
        let read: Vec<Read> = found.par_iter().map(read_one).collect::<Result<_>>()?;
        let mut problems = Vec::new();
        if provenance.is_some() {
            let excluded = |name: &str| exclude.is_match(name) || options.elsewhere.contains(name);
            problems = compare(&records, &found, &read, &excluded);
        }
        if !problems.is_empty() && !options.allow_changed {
            return Err(Error::Verification { path: root.to_owned(), problems });
        }
        warnings.extend(problems);
        let files = found.into_iter().zip(read);
        let files = files.map(|((name, path), read)| LocalFile {
            name: name.clone(),
            path: path.clone(),
            hashes: read.hashes,
            identity: read.identity,
        });
        let files = files.collect();
        let (root, elsewhere) = (root.to_owned(), options.elsewhere.clone());
        Ok(Self { root, files, left_out, provenance, warnings, exclude, elsewhere })
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A file by its path in the repository.
    pub fn file(&self, name: &str) -> Option<&LocalFile> {
        self.files.iter().find(|file| file.name == name)
    }

    /// Files that belong to it and that the Hub has already.
    pub fn elsewhere(&self) -> &BTreeSet<String> {
        &self.elsewhere
    }

    /// Whether a path was asked to be left out.
    pub fn is_excluded(&self, name: &str) -> bool {
        self.exclude.is_match(name)
    }

    /// Whether a file is one that the output's record names: no person has written it since.
    pub fn is_recorded(&self, name: &str) -> bool {
        let Some(record) =
            self.provenance.iter().flat_map(|p| &p.files).find(|record| record.file == name)
        else {
            return false;
        };
        let Some(file) = self.file(name) else { return false };
        match &record.digest {
            Some(digest) => read(&file.path, Some(digest.algorithm), &|_| Ok(()))
                .is_ok_and(|read| read.digest.as_ref() == Some(digest)),
            None => record.size == file.hashes.size,
        }
    }

    /// Fails if any file is not the one that was read.
    ///
    /// # Errors
    /// [`Error::SourceChanged`].
    pub fn check_unchanged(&self) -> Result<()> {
        self.files
            .iter()
            .try_for_each(|file| SourceFile::open(&file.path)?.check_identity(&file.identity))
            .map_err(|error| match error {
                Error::SourceChanged { path, tensor, what } => {
                    let what = what.replace(" since the plan was made", " since it was hashed");
                    Error::SourceChanged {
                        path,
                        tensor,
                        what: format!("{what}; nothing was committed"),
                    }
                }
                other => other,
            })
    }
}

/// A directory that a run is still writing, or was writing when it ended.
fn refuse_unfinished(root: &Path) -> Result<()> {
    let whole = fs::canonicalize(root).at("open", root)?;
    if !whole.is_dir() {
        return Err(Error::NotACheckpoint {
            path: root.to_owned(),
            reason: "it is no directory".into(),
        });
    }
    if root.join(UNDO_FILE).exists() {
        return Err(Error::UnfinishedInPlace { path: root.to_owned() });
    }
    let is_staging = |part: &std::ffi::OsStr| part.to_string_lossy().ends_with(".elo-staging");
    if whole.iter().any(is_staging) {
        return Err(Error::NotACheckpoint {
            path: root.to_owned(),
            reason: "it is the working directory of a run that is not finished".into(),
        });
    }
    Ok(())
}

fn patterns(texts: &[String]) -> Result<GlobSet> {
    let mut set = GlobSetBuilder::new();
    let refuse = |text: &str, error: &globset::Error| Error::Usage {
        problem: format!("`--exclude {text}` is no pattern: {}", error.kind()),
        hint: "`*` stands for anything, `?` for one character, as in `--exclude '*.bin'`".into(),
    };
    for text in texts {
        let glob = GlobBuilder::new(text).literal_separator(false).build();
        set.add(glob.map_err(|error| refuse(text, &error))?);
    }
    set.build().map_err(|error| refuse("", &error))
}

fn provenance(root: &Path, follow: bool) -> Result<Option<Provenance>> {
    let path = root.join(PROVENANCE_FILE);
    if !path.exists() {
        return Ok(None);
    }
    check_link(&path, root, follow)?;
    let refuse = |message: String| Error::Json { path: path.clone(), message };
    if fs::metadata(&path).at("examine", &path)?.len() > MOST_RECORD {
        return Err(refuse("it is too large for a record".into()));
    }
    let bytes = fs::read(&path).at("read", &path)?;
    serde_json::from_slice(&bytes).map(Some).map_err(|error| refuse(error.to_string()))
}

/// What differs from the record, all at once.
fn compare(
    records: &BTreeMap<&str, &FileRecord>,
    found: &[(&String, &PathBuf)],
    read: &[Read],
    excluded: &dyn Fn(&str) -> bool,
) -> Vec<String> {
    let mut problems = Vec::new();
    let here: BTreeSet<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
    for name in records.keys().filter(|name| !here.contains(*name) && !excluded(name)) {
        problems.push(format!("`{}` is missing", printable(name)));
    }
    for ((name, _), read) in found.iter().zip(read) {
        let shown = printable(name);
        match records.get(name.as_str()) {
            Some(record) if record.size != read.hashes.size => problems.push(format!(
                "`{shown}` has {} bytes, recorded were {}",
                read.hashes.size, record.size
            )),
            Some(record) if record.digest != read.digest => {
                problems.push(format!("`{shown}` has changed: its digest is not the recorded one"));
            }
            Some(_) => {}
            None if is_shard(name) => {
                problems.push(format!("`{shown}` is an extra shard that is not recorded"));
            }
            None => {}
        }
    }
    problems
}

fn is_shard(name: &str) -> bool {
    Path::new(name).extension().is_some_and(|kind| kind == "safetensors")
}

/// The files of a directory, those in it included.
struct Walk<'a> {
    root: &'a Path,
    options: &'a FolderOptions,
    exclude: &'a GlobSet,
    found: BTreeMap<String, PathBuf>,
    left_out: Vec<(String, String)>,
}

impl Walk<'_> {
    fn enter(&mut self, dir: &Path, prefix: &str, depth: usize) -> Result<()> {
        for entry in fs::read_dir(dir).at("list", dir)? {
            let entry = entry.at("list", dir)?;
            let path = entry.path();
            let Ok(name) = entry.file_name().into_string() else {
                return Err(Error::NotRegular {
                    path,
                    kind: "a file whose name is not UTF-8".into(),
                });
            };
            let whole = format!("{prefix}{name}");
            if let Some(why) = self.unwanted(&name, &whole) {
                self.left_out.push((whole, why.to_owned()));
                continue;
            }
            if !is_safe(&whole) {
                return Err(Error::NotRegular {
                    path,
                    kind: "a file whose name no repository takes".into(),
                });
            }
            let is_link = fs::symlink_metadata(&path).at("examine", &path)?.is_symlink();
            if is_link {
                check_link(&path, self.root, self.options.follow_symlinks)?;
            }
            let meta = fs::metadata(&path).at("examine", &path)?;
            if meta.is_dir() {
                if is_link || depth >= MOST_DEPTH {
                    let why = if is_link { "a link to a directory" } else { "too deep" };
                    self.left_out.push((whole, why.to_owned()));
                } else {
                    self.enter(&path, &format!("{whole}/"), depth + 1)?;
                }
            } else if meta.is_file() {
                self.found.insert(whole, path);
            } else {
                return Err(Error::NotRegular { path, kind: "a FIFO, socket or device".into() });
            }
        }
        self.left_out.sort();
        Ok(())
    }

    fn unwanted(&self, name: &str, whole: &str) -> Option<&'static str> {
        if self.exclude.is_match(whole) {
            return Some("excluded");
        }
        if name.starts_with('.') && name != ".gitattributes" {
            return Some("hidden");
        }
        let is_tmp = Path::new(name).extension().is_some_and(|kind| kind == "tmp");
        let is_rest = name.starts_with("elo-surgery.") && is_tmp;
        (is_rest || name == "__pycache__").then_some("temporary")
    }
}
