//! `elo-surgery.json`: what an output says of its origin, and the digests that prove its bytes.
//!
//! Holds no times, host names or output paths: the same plan over the same sources writes the same file.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Name of the provenance file in an output directory.
pub const PROVENANCE_FILE: &str = "elo-surgery.json";

/// Name of the undo record of an in-place change; its presence means the change was interrupted.
pub const UNDO_FILE: &str = "elo-surgery.undo";

/// The content of `elo-surgery.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Provenance {
    /// `elo-surgery`.
    pub tool: String,
    /// Version of the tool.
    pub version: String,
    /// What was asked for.
    pub operation: Operation,
    /// Digest of the plan.
    pub plan: String,
    /// The models it descends from.
    pub parents: Vec<Parent>,
    /// Which of the parent's layers it holds, if not all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer_map: Option<LayerMap>,
    /// What was decided on the way.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// Every other file of the output.
    pub files: Vec<FileRecord>,
}

impl Provenance {
    /// A record by this version of the tool.
    pub fn of(
        operation: Operation,
        plan: &str,
        parents: Vec<Parent>,
        layer_map: Option<LayerMap>,
        notes: Vec<String>,
        files: Vec<FileRecord>,
    ) -> Self {
        let (tool, version) =
            (env!("CARGO_PKG_NAME").to_owned(), env!("CARGO_PKG_VERSION").to_owned());
        Self { tool, version, operation, plan: plan.to_owned(), parents, layer_map, notes, files }
    }

    /// As it is written: two spaces, a final newline.
    pub fn to_bytes(&self) -> Vec<u8> {
        // A tree of plain data: serialising it to memory cannot fail.
        let mut json = serde_json::to_vec_pretty(self).unwrap_or_default();
        json.push(b'\n');
        json
    }
}

/// The operation behind a plan: its verb and every parameter that shapes the result.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Operation {
    /// `extract`, `inject`, `chat-vector`, `merge`, `reshard`, `cast`.
    pub verb: String,
    /// Parameters by name.
    pub parameters: Map<String, Value>,
}

/// A model the output descends from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parent {
    /// `model`, `inst`, `base`, `into`, `part`.
    pub role: String,
    /// As the user named it.
    pub model: String,
    /// blake3 over config and shard headers: names, dtypes, shapes and places, not the weights.
    pub structure: String,
    /// Digest of the plan that made it, when it carries an `elo-surgery.json`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<String>,
}

/// Which layers of a parent an extract holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerMap {
    /// Number of decoder layers of the parent.
    pub of: u64,
    /// The parent's layers in the order of the output's, counting from 1.
    pub layers: Vec<u64>,
}

/// A file of the output and the digest of its bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// Path inside the output.
    pub file: String,
    /// Size in bytes.
    pub size: u64,
    /// Digest of its bytes. Absent when it was asked for none, or when the filesystem shared the source's blocks
    /// without reading them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
}

/// A digest, written `blake3:HEX` or `sha256:HEX`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Digest {
    /// The function.
    pub algorithm: DigestAlgorithm,
    /// Its value, lower-case hex.
    pub hex: String,
}

/// Digest functions for files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DigestAlgorithm {
    /// BLAKE3, a tree: computed tile by tile in any order.
    #[default]
    Blake3,
    /// SHA-256, the Hub's object id for large files.
    Sha256,
}

impl DigestAlgorithm {
    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Blake3 => "blake3",
            Self::Sha256 => "sha256",
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.as_str(), self.hex)
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

impl TryFrom<String> for Digest {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let (name, hex) =
            text.split_once(':').ok_or_else(|| format!("`{text}` is not a digest"))?;
        let algorithm = match name {
            "blake3" => DigestAlgorithm::Blake3,
            "sha256" => DigestAlgorithm::Sha256,
            _ => return Err(format!("`{name}` is not a known digest")),
        };
        if hex.len() != 64 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(format!("`{text}` is not 64 hex digits"));
        }
        Ok(Self { algorithm, hex: hex.to_ascii_lowercase() })
    }
}
