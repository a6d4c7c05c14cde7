//! The narrow waist: what every byte of an output checkpoint is made of, decided before the first is written.
//!
//! A [`Plan`] holds no names of models and no intents: sources are files, slices are byte ranges, so a plan can be
//! printed, costed, compared, saved as JSON and carried out later or elsewhere by any engine.
//!
//! * [`Part::Copy`] never decodes: any dtype passes through untouched.
//! * [`Part::Blend`] is a normal form, not an expression tree: a weighted sum of operands, times `lambda`, added to a
//!   base. A chat vector is `base = C`, terms `+1 A`, `-1 B`, `lambda` the scale. Where the weights depend on the
//!   tensors themselves (angles, norms), [`Solve`] says how; [`Keep`], [`Vote`] and [`Divide`] say which elements count.

mod blend;
mod chain;
mod cost;
mod digest;
mod gather;
mod keep;
mod mean;
mod operand;
mod path_text;
mod random;
mod solve;
mod validate;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use blend::{Blend, Divide, Keep, Span, Term, Vote};
pub use chain::{Chain, Steps};
pub use cost::Cost;
pub use gather::{Gather, Rows};
pub use mean::Mean;
pub use operand::{Codes, LowRank, Operand};
pub use random::{Distribution, Random};
pub use solve::Solve;

use crate::error::Result;
use crate::format::{Dtype, Identity, LayerMap, Operation, Parent, Shape, ShardLayout, ShardSpec};

/// Version of the plan's JSON form.
pub const PLAN_VERSION: u32 = 1;

/// What to make, from what.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// [`PLAN_VERSION`].
    pub version: u32,
    /// Which operation made it, for provenance.
    pub operation: Operation,
    /// The files that slices refer to, by index.
    pub sources: Vec<Source>,
    /// Every tensor of the output.
    pub tensors: Vec<Output>,
    /// Which tensors go into which file, in order. Every tensor is in exactly one.
    pub shards: Vec<Shard>,
    /// Files beside the shards.
    pub sidecars: Vec<Sidecar>,
    /// The rules of arithmetic.
    pub numerics: Numerics,
    /// Models this output descends from.
    pub parents: Vec<Parent>,
    /// Which layers of the parent the output holds, if not all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer_map: Option<LayerMap>,
    /// Decisions and doubts to tell the user: what was dropped, kept, invented.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// Index into [`Plan::sources`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SourceId(pub u32);

/// A file that bytes come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// Which model it belongs to: `model`, `inst`, `base`, `into`, `part`.
    pub role: String,
    /// Where it is.
    #[serde(with = "path_text")]
    pub path: PathBuf,
    /// What it was when the plan was made.
    pub identity: Identity,
}

/// A tensor of the output. Its parts follow one another in row-major order: rows of dimension 0, or experts of a
/// fused tensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Output {
    /// Name in the output.
    pub name: String,
    /// Element type in the output.
    pub dtype: Dtype,
    /// Dimensions in the output.
    pub shape: Shape,
    /// What it is made of.
    pub parts: Vec<Part>,
}

/// A run of elements of an output tensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Part {
    /// Bytes as they are. The slice's dtype is the output's.
    Copy(Slice),
    /// `rows` rows whose every element has this bit pattern (little endian).
    Fill {
        /// How many rows.
        rows: u64,
        /// The pattern, in the low bits.
        bits: u64,
    },
    /// Random elements.
    Random(Random),
    /// Computed elements.
    Blend(Box<Blend>),
}

/// A byte range of a source file that holds whole elements. No names below this line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Slice {
    /// The file.
    pub source: SourceId,
    /// The bytes, counted from the start of the file.
    pub bytes: Range<u64>,
    /// Element type in the file.
    pub dtype: Dtype,
    /// Dimensions of the slice.
    pub shape: Shape,
}

/// Which tensors one output file holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shard {
    /// File name.
    pub file: String,
    /// The header's `__metadata__`.
    pub metadata: BTreeMap<String, String>,
    /// Indices into [`Plan::tensors`], in file order.
    pub tensors: Vec<usize>,
    /// The source shard it is derived from: its header bytes are reused where they say the same, and its blocks are
    /// shared where the filesystem can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<SourceId>,
    /// Raw header of the template, as text (it is JSON), without the length field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template_header: Option<String>,
}

/// A file beside the shards.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sidecar {
    /// Path inside the output, relative.
    pub file: String,
    /// What it holds.
    pub content: SidecarContent,
}

/// Where a sidecar's bytes come from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum SidecarContent {
    /// A byte copy of a file.
    Copy {
        /// The file.
        #[serde(with = "path_text")]
        path: PathBuf,
        /// Its size in bytes when the plan was made.
        size: u64,
    },
    /// Text made by the operation: `config.json`, the index.
    Text(String),
}

/// Which arithmetic the plan asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Numerics {
    /// f32 arithmetic and one rounding, as [`Blend`] says.
    #[default]
    Precise,
    /// mergekit's: computed blends have a [`Chain`] of roundings.
    Mergekit,
}

impl Part {
    /// The chain of roundings of a computed part that has one, and what it joins.
    pub fn chain(&self) -> Option<(&Chain, &Blend)> {
        match self {
            Self::Blend(blend) => Some((blend.chain.as_ref()?, blend)),
            _ => None,
        }
    }

    /// The slices it reads, base first.
    pub fn slices(&self) -> Vec<&Slice> {
        match self {
            Self::Copy(slice) => vec![slice],
            Self::Fill { .. } | Self::Random(_) => Vec::new(),
            Self::Blend(blend) => blend.slices().collect(),
        }
    }
}

impl Output {
    /// Its size in bytes; parts agree with it in a valid plan.
    pub fn byte_len(&self) -> u64 {
        match (self.shape.byte_len(&self.dtype), self.parts.as_slice()) {
            (Some(len), _) => len,
            // Opaque dtypes are only ever copied whole.
            (None, [Part::Copy(slice)]) => slice.bytes.end - slice.bytes.start,
            (None, _) => 0,
        }
    }

    /// Elements one part contributes; `None` if that does not fit 64 bits.
    pub fn part_elements(&self, part: &Part) -> Option<u64> {
        match part {
            Part::Copy(slice) => slice.shape.elements(),
            Part::Fill { rows, .. } | Part::Random(Random { rows, .. }) => {
                self.shape.with_rows(*rows).elements()
            }
            Part::Blend(blend) => blend.terms.first()?.operand.elements(),
        }
    }

    /// Bytes one part takes in the output.
    pub fn part_len(&self, part: &Part) -> u64 {
        match part {
            Part::Copy(slice) => slice.bytes.end - slice.bytes.start,
            _ => {
                let elements = Shape(vec![self.part_elements(part).unwrap_or(0)]);
                elements.byte_len(&self.dtype).unwrap_or(0)
            }
        }
    }
}

impl Plan {
    /// Where every byte lies. Pure: the same plan gives the same layout.
    pub fn layout(&self) -> Vec<ShardLayout> {
        self.shards.iter().map(|shard| ShardLayout::new(&self.shard_spec(shard))).collect()
    }

    fn shard_spec(&self, shard: &Shard) -> ShardSpec {
        let tensors = shard
            .tensors
            .iter()
            .map(|&i| &self.tensors[i])
            .map(|t| (t.name.clone(), t.dtype.clone(), t.shape.clone(), t.byte_len()))
            .collect();
        let template = shard.template_header.as_ref().map(|json| {
            let mut raw = (json.len() as u64).to_le_bytes().to_vec();
            raw.extend_from_slice(json.as_bytes());
            raw
        });
        let (file, metadata) = (shard.file.clone(), shard.metadata.clone());
        ShardSpec { file, metadata, tensors, template }
    }

    /// Checks everything an engine relies on; all arithmetic is checked. Plans from files must pass this first.
    pub fn validate(&self) -> Result<()> {
        validate::validate(self)
    }

    /// Most memory that it takes to find out what is kept of a part, where that takes more than tiles: see
    /// [`Chain::memory`].
    pub fn held(&self) -> u64 {
        let parts = self.tensors.iter().flat_map(|tensor| &tensor.parts);
        parts.filter_map(Part::chain).map(|(chain, blend)| chain.memory(blend)).max().unwrap_or(0)
    }

    /// Bytes to read, write and compute.
    pub fn cost(&self) -> Cost {
        cost::cost(self)
    }

    /// blake3 of what the plan makes from what, as hex. Independent of where the sources lie and when they were written.
    pub fn digest(&self) -> String {
        digest::digest(self)
    }
}
