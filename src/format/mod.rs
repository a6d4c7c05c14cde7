//! The safetensors format: bytes to named tensors and back.
//!
//! Owns dtypes, headers, indexes, guarded reading of source files and the layout of output shards.
//! Knows nothing of models: a tensor is a name, a dtype, a shape and a byte range.

mod coding;
mod dtype;
mod fetched;
mod guard;
mod header;
mod index;
mod layout;
mod provenance;
mod source;
mod space;

pub use coding::{Coding, MX_BLOCK};
pub use dtype::{Dtype, Shape};
pub use fetched::{Fetch, Fetched, Ranges, record_of, serve};
pub use header::{Header, HeaderProblem, MAX_HEADER_BYTES, TensorEntry, UnknownDtypes};
pub use index::{Index, IndexProblem};
pub use layout::{ALIGNMENT, Placement, ShardLayout, ShardSpec, shard_file_name, split_by_size};
pub use provenance::{
    Digest, DigestAlgorithm, FileRecord, LayerMap, Operation, PROVENANCE_FILE, Parent, Provenance,
    UNDO_FILE,
};
pub use source::{Identity, Reading, SourceFile, Tile};
pub(crate) use space::{free_bytes, unwritten};
