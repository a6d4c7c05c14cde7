//! LoRA adapters as PEFT saves them, and models seen with adapters applied (Hu et al., arXiv 2106.09685).
//!
//! `adapter_config.json` gives the factors, `adapter_model.safetensors` the matrices: `base_model.model.MODULE.lora_A.weight`
//! `[r, in]` and `lora_B.weight` `[out, r]`; of embeddings `lora_embedding_A` `[r, rows]` and `lora_embedding_B` `[width, r]`.
//! Any other tensor replaces the model's of its name (`modules_to_save`, biases). `W + scale * B A`, with the scale
//! `alpha / r`, or `alpha / sqrt(r)` (rank-stabilised, arXiv 2312.03732).

mod place;
mod settings;

use std::path::{Path, PathBuf};

pub use self::place::ModuleFactors;
pub use self::settings::AdapterSettings;
use super::open::read_small;
use super::{OpenOptions, ShardFile};
use crate::error::{Error, Result};
use crate::format::Parent;

/// The weights of an adapter.
const WEIGHTS: &str = "adapter_model.safetensors";
/// How it was trained.
const SETTINGS: &str = "adapter_config.json";
/// Much more than any adapter's settings have.
const MOST_BYTES: u64 = 16 << 20;

/// An opened adapter. Its header has been checked; no tensor data has been read.
#[derive(Clone, Debug)]
pub struct Adapter {
    name: String,
    shard: ShardFile,
    settings: AdapterSettings,
    structure: String,
}

impl OpenOptions {
    /// Opens the directory of a LoRA adapter.
    ///
    /// # Errors
    /// Files that are missing, pickles, kinds of adapters that are not sums of `W` and a product.
    pub fn open_adapter(self, path: impl AsRef<Path>) -> Result<Adapter> {
        let root = path.as_ref();
        let (weights, settings) = (root.join(WEIGHTS), root.join(SETTINGS));
        check_there(root, &weights, &settings)?;
        let json = read_small(&settings, MOST_BYTES, self.follow_symlinks, root)?;
        let parsed = AdapterSettings::parse(&json, &settings)?;
        super::open::check_link(&weights, root, self.follow_symlinks)?;
        let shard = self.read_shard(&weights, WEIGHTS.to_owned())?;
        let mut hasher = blake3::Hasher::new();
        hasher.update(&json);
        hasher.update(&shard.raw_header);
        let structure = hasher.finalize().to_hex().to_string();
        Ok(Adapter { name: root.display().to_string(), shard, settings: parsed, structure })
    }
}

fn check_there(root: &Path, weights: &Path, settings: &Path) -> Result<()> {
    let there = |path: &PathBuf| std::fs::symlink_metadata(path).is_ok();
    let missing = |file: &str, hint: &str| Error::Unsupported {
        what: format!("`{}`", root.display()),
        reason: format!("it is no LoRA adapter: it has no `{file}`"),
        hint: hint.to_owned(),
    };
    if there(&root.join("adapter_model.bin")) && !there(&weights.to_owned()) {
        return Err(Error::Unsupported {
            what: format!("`{}`", root.display()),
            reason: "its weights are the pickle `adapter_model.bin`, which is never read: unpickling can run code".into(),
            hint: "convert it where you trust the file: python -c \"import torch, safetensors.torch as s; s.save_file({k: v.contiguous() for k, v in torch.load('adapter_model.bin', weights_only=True).items()}, 'adapter_model.safetensors')\"".into(),
        });
    }
    if !there(&settings.to_owned()) {
        return Err(missing(SETTINGS, "give the directory that PEFT's `save_pretrained` wrote"));
    }
    if !there(&weights.to_owned()) {
        return Err(missing(WEIGHTS, "give the directory that PEFT's `save_pretrained` wrote"));
    }
    Ok(())
}

impl Adapter {
    /// How the user named it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The same adapter under another name, as [`Checkpoint::named`](super::Checkpoint::named).
    #[must_use]
    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Its settings.
    pub fn settings(&self) -> &AdapterSettings {
        &self.settings
    }

    /// Its weights.
    pub fn shard(&self) -> &ShardFile {
        &self.shard
    }

    /// This adapter as a parent of an output.
    pub fn as_parent(&self) -> Parent {
        Parent {
            role: "adapter".to_owned(),
            model: self.name.clone(),
            structure: self.structure.clone(),
            plan: None,
        }
    }
}
