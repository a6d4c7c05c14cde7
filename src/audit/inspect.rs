//! What a checkpoint is made of, from its headers and config alone.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use super::structure;
use crate::checkpoint::{Checkpoint, Role, quantization, vocab_size};
use crate::format::{Dtype, LayerMap, Shape, TensorEntry};

/// The anatomy of a checkpoint.
#[derive(Clone, Debug, Serialize)]
pub struct Inspection {
    /// How the user named it.
    pub name: String,
    /// Architecture family.
    pub family: String,
    /// Decoder layers.
    pub layers: LayerCount,
    /// Elements of its tensors, which are its parameters unless it is quantised.
    pub parameters: Parameters,
    /// Bytes of tensor data.
    pub bytes: u64,
    /// What its tensors are stored as, the most bytes first.
    pub dtypes: Vec<DtypeUse>,
    /// Whether the head is the embedding.
    pub tied: bool,
    /// Vocabulary sizes.
    pub vocabulary: VocabularySize,
    /// Method of quantisation, if the config names one.
    pub quantization: Option<String>,
    /// Its safetensors files.
    pub shards: Vec<ShardSummary>,
    /// Its tensors, grouped: embeddings, each layer, norm, head, the rest.
    pub groups: Vec<Group>,
    /// What its `elo-surgery.json` says.
    pub provenance: Option<ProvenanceSummary>,
    /// Every tensor in file order.
    pub tensors: Vec<TensorSummary>,
    /// What is doubtful about it.
    pub warnings: Vec<String>,
}

/// Number of decoder layers, from both sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct LayerCount {
    /// As the tensor names show.
    pub tensors: u64,
    /// As the config says.
    pub config: Option<u64>,
}

/// Elements by what they serve.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Parameters {
    /// All of them.
    pub total: u64,
    /// Token and position embeddings.
    pub embedding: u64,
    /// All decoder layers together.
    pub layers: u64,
    /// The smallest layer.
    pub layer_min: u64,
    /// The largest layer.
    pub layer_max: u64,
    /// Final norm and head.
    pub norm_and_head: u64,
    /// The rest: multi-token heads, vision towers.
    pub other: u64,
}

/// Use of one dtype.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DtypeUse {
    /// The dtype.
    pub dtype: Dtype,
    /// How many tensors have it.
    pub tensors: u64,
    /// Their elements.
    pub elements: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Vocabulary sizes, from both sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct VocabularySize {
    /// Rows of the embedding.
    pub rows: Option<u64>,
    /// As the config says.
    pub config: Option<u64>,
}

/// One safetensors file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ShardSummary {
    /// File name.
    pub file: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// Tensors in its header.
    pub tensors: u64,
}

/// What a tensor serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum GroupKind {
    /// Token embedding.
    Embedding,
    /// Learned positions.
    PositionEmbedding,
    /// A decoder layer, counting from 1.
    Layer(u64),
    /// The norm after the last layer.
    FinalNorm,
    /// The head.
    Head,
    /// Extra layers that predict several tokens.
    MultiToken,
    /// Anything else.
    Other,
}

/// Tensors that serve one thing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Group {
    /// What they serve.
    pub kind: GroupKind,
    /// How many there are.
    pub tensors: u64,
    /// Their elements.
    pub elements: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// One tensor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TensorSummary {
    /// Its full name.
    pub name: String,
    /// Its name within its layer, or the full name.
    pub part: String,
    /// What it serves.
    pub kind: GroupKind,
    /// Its element type.
    pub dtype: Dtype,
    /// Its dimensions.
    pub shape: Shape,
    /// Its elements.
    pub elements: u64,
    /// Its bytes.
    pub bytes: u64,
    /// The file that holds it.
    pub shard: String,
}

/// Where an output of this tool came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ProvenanceSummary {
    /// Version of the tool that wrote it.
    pub version: String,
    /// The operation: `extract`, `chat-vector`.
    pub verb: String,
    /// Role and name of each parent.
    pub parents: Vec<(String, String)>,
    /// Which of the parent's layers it holds, if not all.
    pub layer_map: Option<LayerMap>,
    /// What was decided on the way.
    pub notes: Vec<String>,
    /// Digest of the plan.
    pub plan: String,
}

impl GroupKind {
    /// What a tensor of this name serves in this checkpoint.
    pub(super) fn of(checkpoint: &Checkpoint, name: &str) -> Self {
        match checkpoint.anatomy().role(name) {
            Role::Layer(index) => Self::Layer(index.saturating_add(1)),
            Role::Embedding => Self::Embedding,
            Role::PositionEmbedding => Self::PositionEmbedding,
            Role::FinalNorm => Self::FinalNorm,
            Role::Head => Self::Head,
            Role::MultiToken => Self::MultiToken,
            Role::Other => Self::Other,
        }
    }
}

impl GroupKind {
    /// A tensor's name within its layer; the full name of a tensor outside the layers.
    pub(super) fn part<'a>(self, checkpoint: &Checkpoint, name: &'a str) -> &'a str {
        match checkpoint.anatomy().layer_suffix(name) {
            Some((_, part)) if matches!(self, Self::Layer(_)) => part,
            _ => name,
        }
    }
}

impl fmt::Display for GroupKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Layer(layer) => return write!(f, "layer {layer}"),
            Self::Embedding => "embedding",
            Self::PositionEmbedding => "position embedding",
            Self::FinalNorm => "final norm",
            Self::Head => "head",
            Self::MultiToken => "multi-token prediction",
            Self::Other => "other",
        })
    }
}

/// Reads off everything that headers and config tell.
pub fn inspect(checkpoint: &Checkpoint) -> Inspection {
    let tensors: Vec<TensorSummary> = checkpoint
        .names_in_file_order()
        .map(|(shard, entry)| summary(checkpoint, shard, entry))
        .collect();
    let groups = groups(&tensors);
    let config = checkpoint.config();
    Inspection {
        name: checkpoint.name().to_owned(),
        family: checkpoint.anatomy().family.clone(),
        layers: LayerCount {
            tensors: checkpoint.layers(),
            config: checkpoint.anatomy().config_layers(),
        },
        parameters: parameters(&groups),
        bytes: tensors.iter().map(|t| t.bytes).sum(),
        dtypes: dtypes(&tensors),
        tied: checkpoint.is_tied(),
        vocabulary: VocabularySize {
            rows: checkpoint.vocabulary_rows(),
            config: config.and_then(vocab_size),
        },
        quantization: config.and_then(quantization),
        shards: shards(checkpoint),
        groups,
        provenance: provenance(checkpoint),
        tensors,
        warnings: structure::doubts(checkpoint),
    }
}

fn summary(checkpoint: &Checkpoint, shard: usize, entry: &TensorEntry) -> TensorSummary {
    let kind = GroupKind::of(checkpoint, &entry.name);
    let part = kind.part(checkpoint, &entry.name);
    TensorSummary {
        name: entry.name.clone(),
        part: part.to_owned(),
        kind,
        dtype: entry.dtype.clone(),
        shape: entry.shape.clone(),
        elements: entry.shape.elements().unwrap_or_default(),
        bytes: entry.range.end - entry.range.start,
        shard: checkpoint.shards()[shard].file.clone(),
    }
}

fn groups(tensors: &[TensorSummary]) -> Vec<Group> {
    let mut groups: BTreeMap<GroupKind, Group> = BTreeMap::new();
    for tensor in tensors {
        let group = groups.entry(tensor.kind).or_insert(Group {
            kind: tensor.kind,
            tensors: 0,
            elements: 0,
            bytes: 0,
        });
        group.tensors += 1;
        // An opaque dtype can claim any shape: its elements need not fit.
        group.elements = group.elements.saturating_add(tensor.elements);
        group.bytes += tensor.bytes;
    }
    groups.into_values().collect()
}

fn parameters(groups: &[Group]) -> Parameters {
    let sum = |wanted: fn(GroupKind) -> bool| {
        let chosen = groups.iter().filter(|g| wanted(g.kind));
        chosen.fold(0_u64, |sum, group| sum.saturating_add(group.elements))
    };
    let layers = || {
        let is_layer = |g: &&Group| matches!(g.kind, GroupKind::Layer(_));
        groups.iter().filter(is_layer).map(|g| g.elements)
    };
    Parameters {
        total: sum(|_| true),
        embedding: sum(|k| matches!(k, GroupKind::Embedding | GroupKind::PositionEmbedding)),
        layers: sum(|k| matches!(k, GroupKind::Layer(_))),
        layer_min: layers().min().unwrap_or_default(),
        layer_max: layers().max().unwrap_or_default(),
        norm_and_head: sum(|k| matches!(k, GroupKind::FinalNorm | GroupKind::Head)),
        other: sum(|k| matches!(k, GroupKind::MultiToken | GroupKind::Other)),
    }
}

fn dtypes(tensors: &[TensorSummary]) -> Vec<DtypeUse> {
    let mut uses: BTreeMap<&Dtype, DtypeUse> = BTreeMap::new();
    for tensor in tensors {
        let entry = uses.entry(&tensor.dtype).or_insert_with(|| DtypeUse {
            dtype: tensor.dtype.clone(),
            tensors: 0,
            elements: 0,
            bytes: 0,
        });
        entry.tensors += 1;
        entry.elements = entry.elements.saturating_add(tensor.elements);
        entry.bytes += tensor.bytes;
    }
    let mut uses: Vec<DtypeUse> = uses.into_values().collect();
    uses.sort_by_key(|u| std::cmp::Reverse(u.bytes));
    uses
}

fn shards(checkpoint: &Checkpoint) -> Vec<ShardSummary> {
    let shards = checkpoint.shards().iter();
    shards
        .map(|shard| ShardSummary {
            file: shard.file.clone(),
            bytes: shard.identity.size,
            tensors: shard.header.tensors.len() as u64,
        })
        .collect()
}

fn provenance(checkpoint: &Checkpoint) -> Option<ProvenanceSummary> {
    let record = checkpoint.provenance()?;
    let parents = record.parents.iter();
    Some(ProvenanceSummary {
        version: record.version.clone(),
        verb: record.operation.verb.clone(),
        parents: parents.map(|p| (p.role.clone(), p.model.clone())).collect(),
        layer_map: record.layer_map.clone(),
        notes: record.notes.clone(),
        plan: record.plan.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::fixture::Fixture;

    #[test]
    fn parameters_are_split_by_what_they_serve() {
        let found = inspect(&Fixture::llama(3, |_, _| 0.5).open());
        let layer = 4 + 24 + 16;
        let expected = Parameters {
            total: 32 + 3 * layer + 4 + 32,
            embedding: 32,
            layers: 3 * layer,
            layer_min: layer,
            layer_max: layer,
            norm_and_head: 36,
            other: 0,
        };
        assert_eq!(found.parameters, expected);
        assert_eq!(found.bytes, 4 * expected.total);
        assert_eq!(found.layers.tensors, 3);
        assert_eq!(found.vocabulary.rows, Some(8));
        assert!(!found.tied);
        assert_eq!(found.groups.len(), 3 + 3);
        assert_eq!(found.groups[1].kind, GroupKind::Layer(1));
    }

    #[test]
    fn dtypes_and_shards_are_counted() {
        let fixture = Fixture::llama(1, |_, _| 0.5).next_shard().tensor(
            "extra.scale",
            Dtype::F16,
            &[2],
            &[0; 4],
        );
        let found = inspect(&fixture.open());
        let dtypes: Vec<(String, u64)> =
            found.dtypes.iter().map(|d| (d.dtype.to_string(), d.tensors)).collect();
        assert_eq!(dtypes, [("F32".to_owned(), 6), ("F16".to_owned(), 1)]);
        assert_eq!(found.shards.len(), 2);
        assert_eq!(found.shards[1].tensors, 1);
        assert_eq!(found.parameters.other, 2);
        assert!(serde_json::to_string(&found).unwrap().contains("{\"layer\":1}"));
    }
}
