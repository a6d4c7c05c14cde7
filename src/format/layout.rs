//! Where every byte of an output shard lies: a pure function of names, dtypes and shapes.

use std::collections::BTreeMap;
use std::ops::Range;

use super::{Dtype, Header, Shape, TensorEntry};

/// Data of a new shard starts at a multiple of this, so that ranges can be reflinked.
pub const ALIGNMENT: u64 = 4096;

/// What goes into one shard, in order.
#[derive(Clone, Debug)]
pub struct ShardSpec {
    /// File name.
    pub file: String,
    /// The header's `__metadata__`.
    pub metadata: BTreeMap<String, String>,
    /// Name, dtype, shape and size in bytes of each tensor.
    pub tensors: Vec<(String, Dtype, Shape, u64)>,
    /// Raw header of the source shard this one is derived from. Used byte for byte where it says the
    /// same, so that an unchanged shard is an identical file.
    pub template: Option<Vec<u8>>,
}

/// One tensor's place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Index into [`ShardSpec::tensors`].
    pub tensor: usize,
    /// Its bytes in the file, counted from the start of the file.
    pub bytes: Range<u64>,
}

/// A shard whose every byte has its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardLayout {
    /// File name.
    pub file: String,
    /// The header as it will be written, length field included.
    pub header: Vec<u8>,
    /// Tensors by position; they tile the file from the end of the header to its end.
    pub placements: Vec<Placement>,
    /// Size of the file in bytes.
    pub size: u64,
}

impl ShardLayout {
    /// Lays a shard out.
    pub fn new(spec: &ShardSpec) -> Self {
        let mut order: Vec<usize> = (0..spec.tensors.len()).collect();
        if !is_aligned(spec, &order) {
            let width = |i: &usize| std::cmp::Reverse(spec.tensors[*i].1.bits().unwrap_or(8));
            order.sort_by_key(width);
        }
        let mut header = Header { metadata: spec.metadata.clone(), tensors: Vec::new() };
        let mut end = 0;
        for &i in &order {
            let (name, dtype, shape, len) = &spec.tensors[i];
            let range = end..end + len;
            end = range.end;
            let (name, dtype, shape) = (name.clone(), dtype.clone(), shape.clone());
            header.tensors.push(TensorEntry { name, dtype, shape, range });
        }
        let bytes = match &spec.template {
            Some(raw) if says_the_same(raw, &header) => raw.clone(),
            _ => header.to_bytes(ALIGNMENT),
        };
        let start = bytes.len() as u64;
        let place = |(&tensor, entry): (&usize, &TensorEntry)| Placement {
            tensor,
            bytes: start + entry.range.start..start + entry.range.end,
        };
        let placements = order.iter().zip(&header.tensors).map(place).collect();
        Self { file: spec.file.clone(), header: bytes, placements, size: start + end }
    }
}

/// Whether every tensor starts at a multiple of its element size in this order.
fn is_aligned(spec: &ShardSpec, order: &[usize]) -> bool {
    let mut offset = 0_u64;
    order.iter().all(|&i| {
        let (_, dtype, _, len) = &spec.tensors[i];
        let aligned = *len == 0 || offset.is_multiple_of(dtype.bytes().unwrap_or(1));
        offset += len;
        aligned
    })
}

fn says_the_same(raw: &[u8], header: &Header) -> bool {
    let parsed = raw
        .get(8..)
        .map(|json| Header::parse(json, header.data_len(), super::UnknownDtypes::Opaque));
    matches!(parsed, Some(Ok(parsed)) if parsed == *header)
}

/// The file name of shard `index` (from 0) of `count`, as the Hub's tools write it.
pub fn shard_file_name(index: usize, count: usize) -> String {
    if count == 1 {
        "model.safetensors".to_owned()
    } else {
        format!("model-{:05}-of-{count:05}.safetensors", index + 1)
    }
}

/// Cuts a sequence of tensor sizes into shards of at most `limit` data bytes, in order.
/// A tensor over the limit gets a shard of its own.
pub fn split_by_size(sizes: &[u64], limit: u64) -> Vec<Range<usize>> {
    let mut shards = Vec::new();
    let (mut start, mut filled) = (0, 0_u64);
    for (i, size) in sizes.iter().enumerate() {
        if i > start && filled.saturating_add(*size) > limit {
            shards.push(start..i);
            (start, filled) = (i, 0);
        }
        filled = filled.saturating_add(*size);
    }
    if start < sizes.len() || shards.is_empty() {
        shards.push(start..sizes.len());
    }
    shards
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn split_keeps_order_and_limit() {
        assert_eq!(split_by_size(&[3, 3, 3, 10, 1], 6), vec![0..2, 2..3, 3..4, 4..5]);
        assert_eq!(split_by_size(&[], 6), vec![0..0]);
        assert_eq!(split_by_size(&[0, 6, 0], 6), vec![0..3]);
    }

    #[test]
    fn a_layout_covers_each_byte_once_and_parses_back() {
        let tensors = vec![
            ("a".to_owned(), Dtype::U8, Shape(vec![3]), 3),
            ("b".to_owned(), Dtype::F32, Shape(vec![2]), 8),
            ("z".to_owned(), Dtype::F32, Shape(vec![0]), 0),
        ];
        let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        let spec = ShardSpec { file: "m".into(), metadata, tensors, template: None };
        let layout = ShardLayout::new(&spec);
        assert_eq!(layout.header.len() as u64 % ALIGNMENT, 0);
        assert_eq!(layout.size, layout.header.len() as u64 + 11);
        assert_eq!(layout.placements[0].tensor, 1, "wide elements first, to stay aligned");
        let header = Header::parse(&layout.header[8..], 11, super::super::UnknownDtypes::Refuse);
        assert_eq!(header.unwrap().tensors.len(), 3);
        let again = ShardSpec { template: Some(layout.header.clone()), ..spec };
        assert_eq!(ShardLayout::new(&again), layout);
    }
}
