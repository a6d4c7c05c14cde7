//! Opening a checkpoint: which files it has, whether they may be read, whether they agree.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde_json::{Map, Value};

use super::{Anatomy, Checkpoint, ShardFile, SidecarFile, TensorRef};
use crate::error::{Error, IoContext, Result, printable};
use crate::format::{
    Identity, Index, IndexProblem, PROVENANCE_FILE, Provenance, SourceFile, UNDO_FILE,
    UnknownDtypes,
};

const MAX_INDEX_BYTES: u64 = 1 << 30;
const MAX_CONFIG_BYTES: u64 = 16 << 20;
/// A larger file beside the shards is data of another kind, not a sidecar.
const MAX_SIDECAR_BYTES: u64 = 256 << 20;

/// How strictly to open.
#[derive(Clone, Copy, Debug, Default)]
pub struct OpenOptions {
    pub(super) follow_symlinks: bool,
    unknown: UnknownDtypes,
    allow_unfinished: bool,
}

impl OpenOptions {
    /// Allows shards that are links out of the checkpoint. Links into the `blobs` of a Hugging Face cache always are.
    #[must_use]
    pub fn follow_symlinks(mut self, yes: bool) -> Self {
        self.follow_symlinks = yes;
        self
    }

    /// Keeps tensors of unknown dtypes as opaque bytes instead of refusing the file.
    #[must_use]
    pub fn allow_unknown_dtypes(mut self, yes: bool) -> Self {
        self.unknown = if yes { UnknownDtypes::Opaque } else { UnknownDtypes::Refuse };
        self
    }

    /// Opens a model whose in-place change was interrupted, to finish or undo it.
    #[must_use]
    pub fn allow_unfinished(mut self, yes: bool) -> Self {
        self.allow_unfinished = yes;
        self
    }

    /// Opens a directory, a Hugging Face cache snapshot or a single `.safetensors` file.
    pub fn open(self, path: impl AsRef<Path>) -> Result<Checkpoint> {
        let path = path.as_ref();
        let meta = fs::metadata(path).at("open", path)?;
        if meta.is_dir() { self.open_directory(path) } else { self.open_file(path) }
    }

    fn open_file(self, path: &Path) -> Result<Checkpoint> {
        if is_pickle(path) {
            let file = file_name(path);
            return Err(Error::PickleOnly { path: path.to_owned(), file });
        }
        let shard = self.read_shard(path, file_name(path))?;
        let root = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut opened = Opened::new(path, root.to_owned());
        opened.single_file = true;
        opened.add_shard(shard, None)?;
        opened.finish()
    }

    fn open_directory(self, path: &Path) -> Result<Checkpoint> {
        if path.join(UNDO_FILE).exists() && !self.allow_unfinished {
            return Err(Error::UnfinishedInPlace { path: path.to_owned() });
        }
        let listing = Listing::read(path)?;
        let mut opened = Opened::new(path, path.to_owned());
        match listing.index()? {
            Some(index_path) => self.open_indexed(&index_path, &listing, &mut opened)?,
            None => self.open_unindexed(path, &listing, &mut opened)?,
        }
        opened.config = read_config(path, self.follow_symlinks)?;
        opened.provenance = read_provenance(path)?;
        opened.sidecars = listing.sidecars(self.follow_symlinks, &mut opened.warnings);
        opened.finish()
    }

    fn open_indexed(self, index_path: &Path, listing: &Listing, opened: &mut Opened) -> Result<()> {
        let refuse = |problem| Error::Index { path: index_path.to_owned(), problem };
        let json = read_small(index_path, MAX_INDEX_BYTES, self.follow_symlinks, &opened.root)?;
        let index = Index::parse(&json).map_err(refuse)?;
        let names = index.shards();
        for name in &names {
            if fs::symlink_metadata(opened.root.join(name)).is_err() {
                let tensors = index.weight_map.values().filter(|s| s == name).count();
                let shard = (*name).to_owned();
                return Err(refuse(IndexProblem::MissingShard { shard, tensors }));
            }
        }
        let stale = |file: &&String| !names.contains(&file.as_str());
        for file in listing.safetensors.iter().filter(stale) {
            opened.warnings.push(format!(
                "`{}` is not in the index `{}`: ignored",
                printable(file),
                file_name(index_path)
            ));
        }
        for shard in self.read_shards(&opened.root, &names)? {
            opened.add_shard(shard, Some(&index))?;
        }
        for (tensor, shard) in &index.weight_map {
            let found = opened.tensors.get(tensor);
            if found.is_none_or(|at| opened.shards[at.shard].file != *shard) {
                let (tensor, shard) = (tensor.clone(), shard.clone());
                return Err(refuse(IndexProblem::MissingTensor { tensor, shard }));
            }
        }
        opened.index = Some((index_path.to_owned(), index));
        Ok(())
    }

    fn open_unindexed(self, path: &Path, listing: &Listing, opened: &mut Opened) -> Result<()> {
        let files: Vec<&str> = if listing.safetensors.iter().any(|f| f == "model.safetensors") {
            vec!["model.safetensors"]
        } else {
            listing.safetensors.iter().map(String::as_str).collect()
        };
        if files.is_empty() {
            return Err(match listing.pickles.first() {
                Some(file) => Error::PickleOnly { path: path.to_owned(), file: file.clone() },
                None => Error::NotACheckpoint {
                    path: path.to_owned(),
                    reason: "it holds no `.safetensors` file".into(),
                },
            });
        }
        if files.len() > 1 {
            opened.warnings.push(format!(
                "no `model.safetensors.index.json` beside {} shards: their headers decide",
                files.len()
            ));
        }
        for other in listing.safetensors.iter().filter(|f| !files.contains(&f.as_str())) {
            opened
                .warnings
                .push(format!("`{}` stands beside `model.safetensors`: ignored", printable(other)));
        }
        for shard in self.read_shards(path, &files)? {
            opened.add_shard(shard, None)?;
        }
        Ok(())
    }

    fn read_shards(self, root: &Path, names: &[&str]) -> Result<Vec<ShardFile>> {
        names
            .par_iter()
            .map(|name| {
                let path = root.join(name);
                check_link(&path, root, self.follow_symlinks)?;
                self.read_shard(&path, (*name).to_owned())
            })
            .collect()
    }

    pub(super) fn read_shard(self, path: &Path, file: String) -> Result<ShardFile> {
        let source = SourceFile::open(path)?;
        let (header, raw_header) = source.header(self.unknown)?;
        Ok(ShardFile {
            file,
            path: path.to_owned(),
            identity: source.identity(),
            header,
            raw_header,
        })
    }
}

/// A checkpoint being put together.
struct Opened {
    name: String,
    root: PathBuf,
    single_file: bool,
    shards: Vec<ShardFile>,
    tensors: BTreeMap<String, TensorRef>,
    config: Option<Map<String, Value>>,
    index: Option<(PathBuf, Index)>,
    provenance: Option<Provenance>,
    sidecars: Vec<SidecarFile>,
    warnings: Vec<String>,
}

impl Opened {
    fn new(given: &Path, root: PathBuf) -> Self {
        Self {
            name: given.display().to_string(),
            root,
            single_file: false,
            shards: Vec::new(),
            tensors: BTreeMap::new(),
            config: None,
            index: None,
            provenance: None,
            sidecars: Vec::new(),
            warnings: Vec::new(),
        }
    }

    /// Adds a shard's tensors. Of a name in several shards the index decides; without an index it is an error.
    fn add_shard(&mut self, shard: ShardFile, index: Option<&Index>) -> Result<()> {
        let number = self.shards.len();
        for (entry, tensor) in shard.header.tensors.iter().enumerate() {
            let named = index.and_then(|i| i.weight_map.get(&tensor.name));
            let name = printable(&tensor.name);
            match (named, self.tensors.get(&tensor.name)) {
                (Some(place), _) if *place != shard.file => {
                    self.warnings.push(format!(
                        "tensor `{name}` is also in `{}`: the index names `{}`, the duplicate is ignored",
                        shard.file,
                        printable(place)
                    ));
                    continue;
                }
                (None, Some(first)) => {
                    return Err(Error::Mismatch {
                        what: format!("`{}` is ambiguous", self.name),
                        problems: vec![format!(
                            "tensor `{name}` is in both `{}` and `{}`",
                            self.shards[first.shard].file, shard.file
                        )],
                        hint: "remove the stale shard, or add a `model.safetensors.index.json`"
                            .into(),
                    });
                }
                (None, None) if index.is_some() => self
                    .warnings
                    .push(format!("tensor `{name}` of `{}` is not in the index: kept", shard.file)),
                _ => {}
            }
            self.tensors.insert(tensor.name.clone(), TensorRef { shard: number, entry });
        }
        self.shards.push(shard);
        Ok(())
    }

    fn finish(mut self) -> Result<Checkpoint> {
        let names = self.tensors.keys().map(String::as_str);
        let anatomy = Anatomy::resolve(self.config.as_ref(), names)
            .map_err(|problem| Error::Config { path: self.root.join("config.json"), problem })?;
        let total: u64 = self.shards.iter().map(|s| s.header.data_len()).sum();
        let declared = self.index.as_ref().and_then(|(_, index)| index.total_size);
        if let Some(declared) = declared.filter(|declared| *declared != total) {
            self.warnings.push(format!(
                "the index says total_size {declared}, the shards hold {total} bytes of tensors"
            ));
        }
        Ok(Checkpoint {
            name: self.name,
            root: self.root,
            single_file: self.single_file,
            shards: self.shards,
            tensors: self.tensors,
            config: self.config,
            anatomy,
            index: self.index,
            provenance: self.provenance,
            sidecars: self.sidecars,
            warnings: self.warnings,
            recipes: BTreeMap::new(),
            adapters: Vec::new(),
            structure: None,
            changed_config: false,
        })
    }
}

/// The files of a checkpoint directory, by kind.
struct Listing {
    root: PathBuf,
    safetensors: Vec<String>,
    indexes: Vec<String>,
    pickles: Vec<String>,
    others: BTreeSet<String>,
}

impl Listing {
    fn read(root: &Path) -> Result<Self> {
        let mut names = Vec::new();
        for entry in fs::read_dir(root).at("list", root)? {
            // A name that is not UTF-8 cannot be part of a checkpoint: indexes are JSON.
            if let Ok(name) = entry.at("list", root)?.file_name().into_string() {
                names.push(name);
            }
        }
        names.sort();
        let root = root.to_owned();
        let mut listing = Self {
            root,
            safetensors: vec![],
            indexes: vec![],
            pickles: vec![],
            others: BTreeSet::new(),
        };
        for name in names {
            let path = Path::new(&name);
            if name.starts_with('.') {
                continue;
            }
            if name.ends_with(".safetensors") {
                listing.safetensors.push(name);
            } else if name.ends_with(".safetensors.index.json") {
                listing.indexes.push(name);
            } else if is_pickle(path) {
                listing.pickles.push(name);
            } else {
                listing.others.insert(name);
            }
        }
        Ok(listing)
    }

    fn index(&self) -> Result<Option<PathBuf>> {
        match self.indexes.as_slice() {
            [] => Ok(None),
            names if names.iter().any(|n| n == "model.safetensors.index.json") => {
                Ok(Some(self.root.join("model.safetensors.index.json")))
            }
            [one] => Ok(Some(self.root.join(one))),
            several => Err(Error::NotACheckpoint {
                path: self.root.clone(),
                reason: format!("it holds several indexes: {}", several.join(", ")),
            }),
        }
    }

    /// The files that travel along. A link may not carry a file from outside into an output that will be published.
    fn sidecars(&self, follow_symlinks: bool, warnings: &mut Vec<String>) -> Vec<SidecarFile> {
        let ours = ["config.json", "README.md", PROVENANCE_FILE, UNDO_FILE, "elo.yaml"];
        let mut found = Vec::new();
        for name in self.others.iter().filter(|n| !ours.contains(&n.as_str())) {
            let path = self.root.join(name);
            // `elo-surgery.*.tmp`: what a killed change in place may leave.
            let unfinished = name.starts_with("elo-surgery.") && extension(&path) == "tmp";
            if unfinished || name.ends_with(".index.json") || is_other_weights(&path) {
                continue;
            }
            // A dangling link is no reason to refuse the weights.
            let Ok(meta) = fs::metadata(&path) else {
                continue;
            };
            if !meta.is_file() {
                continue;
            }
            let shown = printable(name);
            if check_link(&path, &self.root, follow_symlinks).is_err() {
                warnings
                    .push(format!("`{shown}` is a link that leaves the checkpoint: not copied"));
            } else if meta.len() > MAX_SIDECAR_BYTES {
                warnings.push(format!("`{shown}` has {} bytes: not copied", meta.len()));
            } else {
                found.push(SidecarFile { file: name.clone(), path, size: meta.len() });
            }
        }
        found
    }
}

fn extension(path: &Path) -> &str {
    path.extension().and_then(OsStr::to_str).unwrap_or_default()
}

fn is_pickle(path: &Path) -> bool {
    matches!(extension(path), "bin" | "pt" | "pth" | "ckpt" | "pkl" | "pickle")
}

/// Weights of other frameworks and archives: not part of a safetensors checkpoint.
fn is_other_weights(path: &Path) -> bool {
    matches!(
        extension(path),
        "gguf"
            | "h5"
            | "msgpack"
            | "onnx"
            | "tflite"
            | "ot"
            | "npz"
            | "zip"
            | "gz"
            | "tar"
            | "undo"
    )
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// A file of a checkpoint must be regular and lie in it. Links may lead into the `blobs` folder of a Hugging Face cache.
pub(crate) fn check_link(path: &Path, root: &Path, follow: bool) -> Result<()> {
    let meta = fs::symlink_metadata(path).at("open", path)?;
    let inside_by_name = path.parent() == Some(root);
    if follow || (!meta.is_symlink() && inside_by_name) {
        return Ok(());
    }
    let target = fs::canonicalize(path).at("resolve", path)?;
    let root = fs::canonicalize(root).at("resolve", root)?;
    let in_cache = root.ancestors().skip(1).take(2).any(|up| target.starts_with(up.join("blobs")));
    if target.starts_with(&root) || in_cache {
        return Ok(());
    }
    let kind = format!("a link that leaves the checkpoint (to `{}`)", target.display());
    Err(Error::NotRegular { path: path.to_owned(), kind })
}

pub(super) fn read_small(path: &Path, limit: u64, follow: bool, root: &Path) -> Result<Vec<u8>> {
    check_link(path, root, follow)?;
    let source = SourceFile::open(path)?;
    let Identity { size, .. } = source.identity();
    if size > limit {
        return Err(Error::NotACheckpoint {
            path: path.to_owned(),
            reason: format!("it has {size} bytes, more than the {limit} such a file can have"),
        });
    }
    let mut bytes = vec![0; usize::try_from(size).unwrap_or(usize::MAX)];
    source.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

fn read_config(root: &Path, follow: bool) -> Result<Option<Map<String, Value>>> {
    let path = root.join("config.json");
    if fs::symlink_metadata(&path).is_err() {
        return Ok(None);
    }
    let bytes = read_small(&path, MAX_CONFIG_BYTES, follow, root)?;
    match serde_json::from_slice(&bytes) {
        Ok(Value::Object(config)) => Ok(Some(config)),
        Ok(_) => Err(Error::Json { path, message: "it is not an object".into() }),
        Err(e) => Err(Error::Json { path, message: printable(&e.to_string()) }),
    }
}

fn read_provenance(root: &Path) -> Result<Option<Provenance>> {
    let path = root.join(PROVENANCE_FILE);
    if fs::symlink_metadata(&path).is_err() {
        return Ok(None);
    }
    let bytes = read_small(&path, MAX_INDEX_BYTES, false, root)?;
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|e| Error::Json { path, message: printable(&e.to_string()) })
}
