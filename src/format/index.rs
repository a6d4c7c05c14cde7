//! `model.safetensors.index.json`: which shard holds which tensor.
//!
//! Strict where a lie could lead a reader out of the directory or to the wrong bytes.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Component, Path};

use serde::de::{self, Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};

use crate::error::printable;

/// A parsed index.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Index {
    /// Tensor name to shard file name.
    pub weight_map: BTreeMap<String, String>,
    /// `metadata.total_size`, in bytes, if it is there and a whole number.
    pub total_size: Option<u64>,
    /// `metadata.total_parameters`, as transformers 5 writes it.
    pub total_parameters: Option<u64>,
}

/// Why an index is not usable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IndexProblem {
    /// Not JSON, or not of the right shape.
    #[error("not a valid JSON index: {message}")]
    NotJson {
        /// The parser's words.
        message: String,
    },
    /// There is no `weight_map`.
    #[error("`weight_map` is missing")]
    NoWeightMap,
    /// A shard path would leave the directory.
    #[error(
        "tensor `{}` is mapped to `{}`: {reason} paths outside the checkpoint are not allowed",
        printable(tensor),
        printable(path)
    )]
    Outside {
        /// The tensor.
        tensor: String,
        /// The path it is mapped to.
        path: String,
        /// `absolute`, or `..` for climbing ones.
        reason: &'static str,
    },
    /// A shard is not a safetensors file.
    #[error(
        "tensor `{}` is mapped to `{}`, which is not a `.safetensors` file",
        printable(tensor),
        printable(path)
    )]
    NotSafetensors {
        /// The tensor.
        tensor: String,
        /// The path it is mapped to.
        path: String,
    },
    /// A shard that the index names is missing.
    #[error(
        "shard `{}` is missing (no such file); the index maps {tensors} tensors to it",
        printable(shard)
    )]
    MissingShard {
        /// The file name.
        shard: String,
        /// How many tensors it should hold.
        tensors: usize,
    },
    /// A tensor is not in the shard that the index names.
    #[error(
        "tensor `{}` is not in `{}`, where the index places it",
        printable(tensor),
        printable(shard)
    )]
    MissingTensor {
        /// The tensor.
        tensor: String,
        /// The shard.
        shard: String,
    },
}

impl IndexProblem {
    pub(crate) fn hint(&self) -> String {
        match self {
            Self::Outside { .. } => {
                "the index is hostile or damaged: a shard must lie beside its index"
            }
            Self::MissingShard { .. } => {
                "download the missing shard; compare with the model's file list"
            }
            Self::NotSafetensors { .. } => "convert pickle shards to safetensors first",
            _ => "download the index again, or make a new one with `elo-surgery reshard`",
        }
        .to_owned()
    }
}

impl Index {
    /// Parses and checks an index.
    pub fn parse(json: &[u8]) -> Result<Self, IndexProblem> {
        let not_json =
            |e: serde_json::Error| IndexProblem::NotJson { message: printable(&e.to_string()) };
        let raw: RawIndex = serde_json::from_slice(json).map_err(not_json)?;
        let weight_map = raw.weight_map.ok_or(IndexProblem::NoWeightMap)?.0;
        for (tensor, path) in &weight_map {
            let (tensor, path) = (tensor.clone(), path.clone());
            if let Some(reason) = leaves_directory(&path) {
                return Err(IndexProblem::Outside { tensor, path, reason });
            }
            if Path::new(&path).extension().is_none_or(|e| e != "safetensors") {
                return Err(IndexProblem::NotSafetensors { tensor, path });
            }
        }
        let total = |key| raw.metadata.as_ref().and_then(|m| m.get(key).and_then(number));
        let (total_size, total_parameters) = (total("total_size"), total("total_parameters"));
        Ok(Self { weight_map, total_size, total_parameters })
    }

    /// The shard files it names, sorted.
    pub fn shards(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.weight_map.values().map(String::as_str).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// Serialises as the Hub's tools write it: two spaces, `metadata` first, sorted tensors.
    pub fn to_bytes(&self) -> Vec<u8> {
        #[derive(Serialize)]
        struct Metadata {
            #[serde(skip_serializing_if = "Option::is_none")]
            total_parameters: Option<u64>,
            total_size: u64,
        }
        #[derive(Serialize)]
        struct File<'a> {
            metadata: Metadata,
            weight_map: &'a BTreeMap<String, String>,
        }
        let total_size = self.total_size.unwrap_or_default();
        let metadata = Metadata { total_parameters: self.total_parameters, total_size };
        let file = File { metadata, weight_map: &self.weight_map };
        let mut bytes = serde_json::to_vec_pretty(&file).unwrap_or_default();
        bytes.push(b'\n');
        bytes
    }
}

/// Some tools write `total_size` as `1.6e10`.
fn number(value: &serde_json::Value) -> Option<u64> {
    value.as_u64().or_else(|| {
        let float = value.as_f64()?;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "checked to be whole and in range"
        )]
        ((0.0..1.8e19).contains(&float) && float.fract() == 0.0).then_some(float as u64)
    })
}

/// Why a relative path is refused as a shard: only plain names and subdirectories are allowed.
fn leaves_directory(path: &str) -> Option<&'static str> {
    if path.contains('\0') || path.is_empty() {
        return Some("empty or broken paths and");
    }
    if path.starts_with('/') || path.starts_with('\\') || path.get(1..2) == Some(":") {
        return Some("it is an absolute path;");
    }
    let climbs = |p: &str| Path::new(p).components().any(|c| !matches!(c, Component::Normal(_)));
    (climbs(path) || climbs(&path.replace('\\', "/"))).then_some("`..` and other")
}

#[derive(Deserialize)]
struct RawIndex {
    metadata: Option<serde_json::Map<String, serde_json::Value>>,
    weight_map: Option<WeightMap>,
}

/// A map of strings that refuses a key given twice.
struct WeightMap(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for WeightMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Unique;
        impl<'de> Visitor<'de> for Unique {
            type Value = WeightMap;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a `weight_map` of tensor names to file names")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<WeightMap, A::Error> {
                let mut unique = BTreeMap::new();
                while let Some((name, shard)) = map.next_entry::<String, String>()? {
                    if unique.contains_key(&name) {
                        let message = format!("tensor `{}` is a duplicate key", printable(&name));
                        return Err(de::Error::custom(message));
                    }
                    unique.insert(name, shard);
                }
                Ok(WeightMap(unique))
            }
        }
        deserializer.deserialize_map(Unique)
    }
}
