//! Tensors whose values are not their bytes: codes with scales, low-rank products, replacements.
//!
//! A checkpoint with recipes looks like a plain one: names, shapes and dtypes are those of the values. Only who reads values
//! must ask for them ([`Stretch::recipe`](super::Stretch)); byte ranges of such tensors mean nothing.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;

use super::{Anatomy, Checkpoint, ShardFile, TensorRef};
use crate::error::{Error, Result};
use crate::format::{Coding, Dtype, Identity, Shape, TensorEntry};

/// Bytes of a file that hold a tensor.
#[derive(Clone, Debug)]
pub struct Place {
    /// The file.
    pub path: PathBuf,
    /// What it was when its header was read.
    pub identity: Identity,
    /// Bytes, counted from the start of the file.
    pub bytes: Range<u64>,
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions.
    pub shape: Shape,
}

/// How the values of a tensor come about.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// The elements, or the codes.
    pub stored: Place,
    /// What makes values of codes.
    pub codes: Option<CodesAt>,
    /// What is added to the values, in order.
    pub products: Vec<Product>,
}

/// What belongs to the codes of a tensor.
#[derive(Clone, Debug)]
pub struct CodesAt {
    /// How codes and scales lie.
    pub coding: Coding,
    /// Dimensions of the values.
    pub whole: Shape,
    /// The scales.
    pub scales: Place,
    /// The zero points.
    pub zeros: Option<Place>,
}

/// A low-rank product, `scale * up * down`.
#[derive(Clone, Debug)]
pub struct Product {
    /// `[rank, in]`.
    pub down: Place,
    /// `[out, rank]`.
    pub up: Place,
    /// Its factor.
    pub scale: f64,
    /// Whether the tensor is the product's transpose.
    pub transposed: bool,
}

impl Place {
    pub(super) fn of(shard: &ShardFile, entry: &TensorEntry) -> Self {
        Self {
            path: shard.path.clone(),
            identity: shard.identity,
            bytes: shard.bytes(entry),
            dtype: entry.dtype.clone(),
            shape: entry.shape.clone(),
        }
    }
}

impl Recipe {
    /// A tensor as it is.
    pub(super) const fn plain(stored: Place) -> Self {
        Self { stored, codes: None, products: Vec::new() }
    }
}

impl Checkpoint {
    /// How the values of a tensor come about, if they are not its bytes.
    pub fn recipe(&self, name: &str) -> Option<&Recipe> {
        self.recipes.get(name)
    }

    /// Tensors whose values are not their bytes.
    pub fn recipes(&self) -> impl Iterator<Item = (&str, &Recipe)> {
        self.recipes.iter().map(|(name, recipe)| (name.as_str(), recipe))
    }

    /// The same files with other tensors: `view` gives what each is seen as, or none if it is part of another.
    pub(super) fn seen_as(
        &self,
        mut view: impl FnMut(&ShardFile, &TensorEntry) -> Option<TensorEntry>,
    ) -> Result<Self> {
        let mut shards = self.shards.clone();
        let mut tensors = BTreeMap::new();
        for (number, (shard, new)) in self.shards.iter().zip(&mut shards).enumerate() {
            new.header.tensors.clear();
            for (old, entry) in shard.header.tensors.iter().enumerate() {
                let here = TensorRef { shard: number, entry: old };
                if self.tensors.get(&entry.name) != Some(&here) {
                    continue;
                }
                if let Some(seen) = view(shard, entry) {
                    let entry = new.header.tensors.len();
                    tensors.insert(seen.name.clone(), TensorRef { shard: number, entry });
                    new.header.tensors.push(seen);
                }
            }
        }
        let names = tensors.keys().map(String::as_str);
        let anatomy = Anatomy::resolve(self.config.as_ref(), names)
            .map_err(|problem| Error::Config { path: self.config_path(), problem })?;
        Ok(Self { shards, tensors, anatomy, ..self.clone() })
    }
}
