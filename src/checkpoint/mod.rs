//! A model directory: its shards, config, architecture and layers.
//!
//! Owns opening (directories, single files, Hugging Face cache snapshots) and every question about structure.
//! Reads headers and small files only; never tensor data.

mod adapter;
mod architecture;
mod card;
mod config;
mod experts;
mod modules;
mod moe;
mod open;
mod quantised;
mod recipe;
mod residual;
mod selector;
mod vocabulary;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

pub use adapter::{Adapter, AdapterSettings, ModuleFactors};
pub use architecture::{Anatomy, Role};
pub use card::{
    CARD_FILE, Metric, ModelCard, code_block, hub_id, inline, is_sealed, license_in, license_of,
};
pub use config::{
    ConfigProblem, Kept, MoeTwin, densified, is_tied, keep_layers, quantization, set_dtype,
    set_experts, set_tied, set_vocab_size, sparsified, vocab_size,
};
pub use experts::{Stretch, locate};
pub use modules::{Module, Modules};
pub use moe::{ExpertLayout, ExpertRole, Experts, expert_role};
pub use open::OpenOptions;
#[cfg(feature = "hub")]
pub(crate) use open::check_link;
pub use recipe::{CodesAt, Place, Product, Recipe};
pub use selector::{LayerSelector, SelectorProblem};
pub use vocabulary::{TOKENIZER_CONFIG_FILE, TOKENIZER_FILE, Vocabulary, json_beside};

use crate::format::{
    Dtype, Header, Identity, Index, Parent, Provenance, Shape, SourceFile, TensorEntry,
};
use crate::{Error, Result};

/// An opened checkpoint. Every header has been checked; no tensor data has been read.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    name: String,
    root: PathBuf,
    single_file: bool,
    shards: Vec<ShardFile>,
    tensors: BTreeMap<String, TensorRef>,
    config: Option<Map<String, Value>>,
    anatomy: Anatomy,
    index: Option<(PathBuf, Index)>,
    provenance: Option<Provenance>,
    sidecars: Vec<SidecarFile>,
    warnings: Vec<String>,
    /// Tensors whose values are not their bytes.
    recipes: BTreeMap<String, Recipe>,
    /// Models besides the files' own that the values come from.
    adapters: Vec<Parent>,
    /// The digest of the files' structure, where they are seen as something else.
    structure: Option<String>,
    /// Whether its config is another than the file's.
    changed_config: bool,
}

/// One safetensors file of a checkpoint.
#[derive(Clone, Debug)]
pub struct ShardFile {
    /// File name inside the checkpoint.
    pub file: String,
    /// Where it is.
    pub path: PathBuf,
    /// What it is.
    pub identity: Identity,
    /// Its parsed header.
    pub header: Header,
    /// Its header as it stands in the file, length field included.
    pub raw_header: Vec<u8>,
}

/// Where a tensor is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorRef {
    /// Index into [`Checkpoint::shards`].
    pub shard: usize,
    /// Index into that shard's header.
    pub entry: usize,
}

/// A file beside the shards that belongs to the model: tokenizer, generation config, licence, code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SidecarFile {
    /// File name.
    pub file: String,
    /// Where its bytes are (links resolved by the system when read).
    pub path: PathBuf,
    /// Size in bytes.
    pub size: u64,
}

impl ShardFile {
    /// Bytes of a tensor, counted from the start of the file.
    pub fn bytes(&self, entry: &TensorEntry) -> Range<u64> {
        let start = self.raw_header.len() as u64;
        start + entry.range.start..start + entry.range.end
    }

    /// Opens the file for reading and checks that it is still the one whose header was read.
    pub fn source(&self) -> Result<SourceFile> {
        let source = SourceFile::open(&self.path)?;
        source.check_identity(&self.identity)?;
        Ok(source)
    }
}

impl Checkpoint {
    /// Opens a checkpoint with the strict defaults.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        OpenOptions::default().open(path)
    }

    /// How the user named it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The same checkpoint under another name: that of a model whose directory is only where it is cached.
    #[must_use]
    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// The directory it lies in.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Whether it was given as one `.safetensors` file; then nothing beside it belongs to it.
    pub fn is_single_file(&self) -> bool {
        self.single_file
    }

    /// Its safetensors files, by name.
    pub fn shards(&self) -> &[ShardFile] {
        &self.shards
    }

    /// Its tensors, by name.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = (&str, &TensorRef)> {
        self.tensors.iter().map(|(name, at)| (name.as_str(), at))
    }

    /// Looks a tensor up: its shard and its header entry.
    pub fn tensor(&self, name: &str) -> Option<(&ShardFile, &TensorEntry)> {
        let at = self.tensors.get(name)?;
        let shard = &self.shards[at.shard];
        Some((shard, &shard.header.tensors[at.entry]))
    }

    /// A tensor's place, dtype and shape, or an error that names what is missing.
    pub fn require(&self, name: &str) -> Result<(&ShardFile, &TensorEntry)> {
        self.tensor(name).ok_or_else(|| Error::Mismatch {
            what: format!("`{}` is incomplete", self.name),
            problems: vec![format!("tensor `{name}` is missing")],
            hint: "compare with the model's tensor list: `elo-surgery inspect --tensors`".into(),
        })
    }

    /// Tensor names in file order: by shard, then by position.
    pub fn names_in_file_order(&self) -> impl Iterator<Item = (usize, &TensorEntry)> {
        self.shards.iter().enumerate().flat_map(move |(s, shard)| {
            shard.header.tensors.iter().enumerate().filter_map(move |(e, entry)| {
                let here = self.tensors.get(&entry.name)?;
                (here.shard == s && here.entry == e).then_some((s, entry))
            })
        })
    }

    /// The parsed `config.json`, key order and number spelling as in the file.
    pub fn config(&self) -> Option<&Map<String, Value>> {
        self.config.as_ref()
    }

    /// Whether [`Checkpoint::config`] is another than the file's, because the tensors are seen as something else.
    pub fn has_changed_config(&self) -> bool {
        self.changed_config
    }

    /// Where its `config.json` is, or would be.
    pub fn config_path(&self) -> PathBuf {
        self.root.join("config.json")
    }

    /// Which tensors are layers, embedding, norm and head.
    pub fn anatomy(&self) -> &Anatomy {
        &self.anatomy
    }

    /// Number of decoder layers.
    pub fn layers(&self) -> u64 {
        self.anatomy.layers
    }

    /// Its index: where it is and what it says.
    pub fn index(&self) -> Option<(&Path, &Index)> {
        self.index.as_ref().map(|(path, index)| (path.as_path(), index))
    }

    /// What its `elo-surgery.json` says.
    pub fn provenance(&self) -> Option<&Provenance> {
        self.provenance.as_ref()
    }

    /// The same without its record, for a model that was changed by others since.
    #[cfg(feature = "pipeline")]
    pub(crate) fn without_provenance(mut self) -> Self {
        self.provenance = None;
        self
    }

    /// Files that travel with the weights. `config.json`, indexes, model cards and our own records are not among them.
    pub fn sidecars(&self) -> &[SidecarFile] {
        &self.sidecars
    }

    /// Doubts found while opening: duplicates, stale shards, wrong totals.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Bytes of tensor data.
    pub fn data_bytes(&self) -> u64 {
        self.names_in_file_order().map(|(_, e)| e.range.end - e.range.start).sum()
    }

    /// The tensor with this role, if there is exactly one kind of it: embedding, head.
    pub fn names_with_role(&self, role: Role) -> Vec<&str> {
        self.tensors.keys().map(String::as_str).filter(|n| self.anatomy.role(n) == role).collect()
    }

    /// Rows of the embedding: the vocabulary the weights have.
    pub fn vocabulary_rows(&self) -> Option<u64> {
        let name = self.names_with_role(Role::Embedding).into_iter().next()?;
        self.tensor(name).map(|(_, entry)| entry.shape.rows())
    }

    /// Whether the head is the embedding: no head tensor is stored.
    pub fn is_tied(&self) -> bool {
        self.names_with_role(Role::Head).is_empty()
            && !self.names_with_role(Role::Embedding).is_empty()
    }

    /// The names of all tensors that belong to a layer (from 0).
    pub fn layer_tensors(&self, layer: u64) -> impl Iterator<Item = &str> {
        self.tensors
            .keys()
            .map(String::as_str)
            .filter(move |n| self.anatomy.role(n) == Role::Layer(layer))
    }

    /// Dtype and shape of every tensor, for comparisons of structure.
    pub fn signature(&self) -> BTreeMap<&str, (&Dtype, &Shape)> {
        self.tensors()
            .map(|(name, at)| {
                let entry = &self.shards[at.shard].header.tensors[at.entry];
                (name, (&entry.dtype, &entry.shape))
            })
            .collect()
    }

    /// The adapters that it is seen with, as parents of an output.
    pub fn adapters(&self) -> &[Parent] {
        &self.adapters
    }

    fn structure(&self) -> String {
        if let Some(structure) = &self.structure {
            return structure.clone();
        }
        let mut hasher = blake3::Hasher::new();
        if let Some(config) = &self.config {
            hasher.update(serde_json::to_string(config).unwrap_or_default().as_bytes());
        }
        for shard in &self.shards {
            hasher.update(shard.file.as_bytes());
            hasher.update(&shard.raw_header);
        }
        hasher.finalize().to_hex().to_string()
    }

    /// This checkpoint as a parent of an output.
    pub fn as_parent(&self, role: &str) -> Parent {
        Parent {
            role: role.to_owned(),
            model: self.name.clone(),
            structure: self.structure(),
            plan: self.provenance.as_ref().map(|p| p.plan.clone()),
        }
    }
}
