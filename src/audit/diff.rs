//! How two checkpoints differ, tensor by tensor: which are equal, and how far apart the others are.
//!
//! Numbers do not depend on the number of threads: tiles are fixed and merged in order.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;

use rayon::prelude::*;
use serde::{Serialize, Serializer};

use super::distance::{Distance, Pair, Side, Sources};
use super::grid::{Aggregate, Grid};
use super::inspect::GroupKind;
use super::scan::{ReadObserver, on_threads};
use crate::checkpoint::{Checkpoint, ShardFile};
use crate::error::Result;
use crate::format::{Dtype, Reading, Shape, TensorEntry};

/// How to compare.
#[derive(Clone, Copy, Debug, Default)]
pub struct DiffOptions {
    /// How many threads; `None` is one for each core.
    pub threads: Option<NonZeroUsize>,
    /// How bytes are brought in.
    pub reading: Reading,
}

/// The difference between checkpoints `a` and `b`.
#[derive(Clone, Debug, Serialize)]
pub struct Diff {
    /// How the user named the first.
    pub a: String,
    /// How the user named the second.
    pub b: String,
    /// All tensors together.
    pub total: Aggregate,
    /// Every tensor, in the file order of `a`, then those only `b` has.
    pub tensors: Vec<TensorDiff>,
    /// Every layer, and every module in each.
    pub grid: Grid,
}

/// One tensor name in both checkpoints.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TensorDiff {
    /// Its full name.
    pub name: String,
    /// What it serves.
    pub kind: GroupKind,
    /// The module within its layer, or its full name without `.weight`.
    pub module: String,
    /// The outcome.
    pub state: TensorState,
    /// What it is in `a`.
    pub a: Option<TensorForm>,
    /// What it is in `b`.
    pub b: Option<TensorForm>,
    /// The distance, where bytes were compared and differ.
    pub change: Option<Change>,
}

/// How a tensor of one checkpoint stands to the other's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TensorState {
    /// The same bytes of the same dtype and shape.
    Equal,
    /// Same dtype and shape, other bytes.
    Changed,
    /// Same shape, stored in another dtype. Floats are compared by value.
    DtypeDiffers,
    /// Another shape. Where only the first dimension differs, the rows both have are compared.
    ShapeDiffers,
    /// `b` lacks it.
    OnlyInA,
    /// `a` lacks it.
    OnlyInB,
}

impl TensorState {
    /// For people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Equal => "equal",
            Self::Changed => "changed",
            Self::DtypeDiffers => "other dtype",
            Self::ShapeDiffers => "other shape",
            Self::OnlyInA => "only in a",
            Self::OnlyInB => "only in b",
        }
    }
}

/// Dtype and shape of a tensor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TensorForm {
    /// Its element type.
    pub dtype: Dtype,
    /// Its dimensions.
    pub shape: Shape,
}

/// How far a tensor moved from `a` to `b`. Norms are Frobenius norms.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Change {
    /// Elements compared; bytes for dtypes narrower than a byte.
    pub elements: u64,
    /// How many of them are equal.
    pub equal: u64,
    /// `||b - a|| / ||a||`; not a number for dtypes that are not floats.
    #[serde(serialize_with = "number")]
    pub relative_norm: f64,
    /// Cosine of the angle between `a` and `b`.
    #[serde(serialize_with = "number")]
    pub cosine: f64,
    /// The largest `|b - a|` of one element.
    #[serde(serialize_with = "number")]
    pub largest: f64,
    /// Elements that are NaN or infinite in either; they take no part in the norms.
    pub non_finite: u64,
}

/// JSON has no NaN or infinities: the first becomes `null`, the others text.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes fields so")]
pub(super) fn number<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    if value.is_infinite() {
        return serializer.serialize_str(if *value > 0.0 { "inf" } else { "-inf" });
    }
    value.is_finite().then_some(value).serialize(serializer)
}

/// A tensor of either or both, before its data is read.
struct Matched<'a> {
    name: &'a str,
    a: Option<(&'a ShardFile, &'a TensorEntry)>,
    b: Option<(&'a ShardFile, &'a TensorEntry)>,
}

/// Compares two checkpoints. Shards that are the same file on disk are equal without being read.
pub fn diff(
    a: &Checkpoint,
    b: &Checkpoint,
    options: &DiffOptions,
    observer: &dyn ReadObserver,
) -> Result<Diff> {
    let matched = matched(a, b);
    let mut sources = Sources::new(options.reading);
    for tensor in matched.iter().filter(|t| t.must_be_read()) {
        for (shard, _) in [tensor.a, tensor.b].into_iter().flatten() {
            sources.open(shard)?;
        }
    }
    let pairs: Vec<Option<Pair>> = matched.iter().map(|t| t.pair(&sources)).collect();
    observer.begin(pairs.iter().flatten().map(Pair::bytes).sum());
    let distances = on_threads(options.threads, || {
        let work = pairs.par_iter().map(|pair| match pair {
            Some(pair) => pair.measure(observer).map(Some),
            None => Ok(None),
        });
        work.collect::<Result<Vec<_>>>()
    })?;
    let tensors: Vec<TensorDiff> = matched
        .iter()
        .zip(&distances)
        .map(|(tensor, distance)| tensor.outcome(a, b, distance.as_ref()))
        .collect();
    let measured: Vec<_> = tensors.iter().zip(&distances).collect();
    Ok(Diff {
        a: a.name().to_owned(),
        b: b.name().to_owned(),
        total: Aggregate::of(measured.iter().copied()),
        grid: Grid::of(&measured),
        tensors,
    })
}

fn matched<'a>(a: &'a Checkpoint, b: &'a Checkpoint) -> Vec<Matched<'a>> {
    let mut matched: Vec<Matched> = a
        .names_in_file_order()
        .map(|(_, entry)| Matched {
            name: &entry.name,
            a: a.tensor(&entry.name),
            b: b.tensor(&entry.name),
        })
        .collect();
    let known: BTreeSet<&str> = matched.iter().map(|t| t.name).collect();
    let added = b.names_in_file_order().filter(|(_, entry)| !known.contains(entry.name.as_str()));
    matched.extend(added.map(|(_, entry)| Matched {
        name: &entry.name,
        a: None,
        b: b.tensor(&entry.name),
    }));
    matched
}

impl<'a> Matched<'a> {
    /// Whether both have data that can be compared and that is not the same file's.
    fn must_be_read(&self) -> bool {
        let (Some((a_shard, a)), Some((b_shard, b))) = (self.a, self.b) else {
            return false;
        };
        let same_file =
            a_shard.identity == b_shard.identity && a_shard.bytes(a) == b_shard.bytes(b);
        let same_rows = a.shape == b.shape || is_prefix(&a.shape, &b.shape);
        let comparable = a.dtype == b.dtype || (a.dtype.is_float() && b.dtype.is_float());
        // Rows of a packed dtype need not start at a byte.
        let whole = a.shape == b.shape || a.dtype.bytes().is_some();
        !same_file && same_rows && comparable && whole
    }

    fn pair<'s>(&self, sources: &'s Sources) -> Option<Pair<'s>>
    where
        'a: 's,
    {
        if !self.must_be_read() {
            return None;
        }
        let (a_shard, a) = self.a?;
        let (b_shard, b) = self.b?;
        let rows = a.shape.rows().min(b.shape.rows());
        let side = |shard: &ShardFile, entry: &'a TensorEntry| {
            let mut bytes = shard.bytes(entry);
            if a.shape != b.shape {
                let shared = entry.shape.with_rows(rows).byte_len(&entry.dtype)?;
                bytes.end = bytes.start + shared;
            }
            let dtype = &entry.dtype;
            Some(Side { source: sources.get(shard)?, dtype, bytes })
        };
        Some(Pair { name: self.name, a: side(a_shard, a)?, b: side(b_shard, b)? })
    }

    fn outcome(&self, a: &Checkpoint, b: &Checkpoint, distance: Option<&Distance>) -> TensorDiff {
        let form = |side: Option<(&ShardFile, &TensorEntry)>| {
            side.map(|(_, entry)| TensorForm {
                dtype: entry.dtype.clone(),
                shape: entry.shape.clone(),
            })
        };
        let owner = if self.a.is_some() { a } else { b };
        let (form_a, form_b) = (form(self.a), form(self.b));
        let state = match (&form_a, &form_b) {
            (Some(_), None) => TensorState::OnlyInA,
            (None, _) => TensorState::OnlyInB,
            (Some(a), Some(b)) if a.shape != b.shape => TensorState::ShapeDiffers,
            (Some(a), Some(b)) if a.dtype != b.dtype => TensorState::DtypeDiffers,
            _ if distance.is_none_or(Distance::is_same_bytes) => TensorState::Equal,
            _ => TensorState::Changed,
        };
        TensorDiff {
            name: self.name.to_owned(),
            kind: GroupKind::of(owner, self.name),
            module: module(owner, self.name),
            state,
            a: form_a,
            b: form_b,
            change: distance.and_then(Distance::change),
        }
    }
}

/// Whether shapes differ in the first dimension only.
fn is_prefix(a: &Shape, b: &Shape) -> bool {
    match (a.0.split_first(), b.0.split_first()) {
        (Some((_, a)), Some((_, b))) => a == b,
        _ => false,
    }
}

/// Name of a tensor's module: within its layer, numbers such as an expert's as `*`, without `weight` or `bias`.
fn module(checkpoint: &Checkpoint, name: &str) -> String {
    let part = GroupKind::of(checkpoint, name).part(checkpoint, name);
    let is_number = |piece: &str| !piece.is_empty() && piece.bytes().all(|b| b.is_ascii_digit());
    let mut pieces: Vec<&str> =
        part.split('.').map(|piece| if is_number(piece) { "*" } else { piece }).collect();
    let is_value = |piece: &str| {
        ["weight", "bias", "scale", "qzeros", "g_idx"].iter().any(|word| piece.contains(word))
    };
    if pieces.len() > 1 && pieces.last().is_some_and(|last| is_value(last)) {
        pieces.pop();
    }
    pieces.join(".")
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::audit::fixture::Fixture;

    fn compare(a: &Fixture, b: &Fixture) -> Diff {
        diff(&a.open(), &b.open(), &DiffOptions::default(), &|_: u64| {}).unwrap()
    }

    fn find<'a>(diff: &'a Diff, name: &str) -> &'a TensorDiff {
        diff.tensors.iter().find(|t| t.name == name).unwrap()
    }

    #[test]
    fn one_changed_tensor_is_measured() {
        let plain = || Fixture::llama(2, |_, _| 2.0);
        let name = "model.layers.1.self_attn.q_proj.weight";
        let b = plain().edit(name, |bytes| {
            bytes[..4].copy_from_slice(&5.0_f32.to_le_bytes());
        });
        let found = compare(&plain(), &b);
        let states = found.tensors.iter().filter(|t| t.state == TensorState::Changed);
        assert_eq!(states.count(), 1);
        let changed = find(&found, name);
        let change = changed.change.unwrap();
        assert_eq!((change.elements, change.equal), (16, 15));
        assert!((change.relative_norm - 3.0 / 8.0).abs() < 1e-12);
        assert!((change.largest - 3.0).abs() < 1e-12);
        let cosine = (15.0 * 4.0 + 10.0) / (8.0 * (60.0_f64 + 25.0).sqrt());
        assert!((change.cosine - cosine).abs() < 1e-12);
        assert_eq!(changed.module, "self_attn.q_proj");
        assert_eq!(changed.kind, GroupKind::Layer(2));
        assert_eq!((found.total.changed, found.total.tensors), (1, 9));
    }

    #[test]
    fn missing_reshaped_and_recast_tensors_are_told_apart() {
        let half = |v: f32| half::bf16::from_f32(v).to_le_bytes();
        let a = Fixture::new()
            .f32("gone", &[1], &[1.0])
            .f32("rows", &[2, 2], &[1.0; 4])
            .f32("turned", &[2, 3], &[1.0; 6])
            .f32("cast", &[2], &[1.0, 3.0])
            .tensor("ids", Dtype::I64, &[2], &[7; 16])
            .tensor("packed", Dtype::U8, &[2], &[1, 2]);
        let b = Fixture::new()
            .f32("rows", &[3, 2], &[1.0, 1.0, 1.0, 2.0, 9.0, 9.0])
            .f32("turned", &[3, 2], &[1.0; 6])
            .tensor("cast", Dtype::BF16, &[2], &[half(1.0), half(3.0)].concat())
            .tensor("ids", Dtype::I64, &[2], &[[7_u8; 8], [8; 8]].concat())
            .tensor("packed", Dtype::I8, &[2], &[1, 2])
            .f32("new", &[1], &[1.0]);
        let found = compare(&a, &b);
        let state = |name| find(&found, name).state;
        assert_eq!(state("gone"), TensorState::OnlyInA);
        assert_eq!(state("new"), TensorState::OnlyInB);
        assert_eq!(state("turned"), TensorState::ShapeDiffers);
        assert_eq!(find(&found, "turned").change, None);
        let rows = find(&found, "rows");
        assert_eq!(rows.state, TensorState::ShapeDiffers);
        let shared = rows.change.unwrap();
        assert_eq!((shared.elements, shared.equal), (4, 3));
        let cast = find(&found, "cast");
        assert_eq!(cast.state, TensorState::DtypeDiffers);
        assert_eq!(cast.change.unwrap().equal, 2);
        let ids = find(&found, "ids").change.unwrap();
        assert_eq!((ids.elements, ids.equal), (2, 1));
        assert!(ids.relative_norm.is_nan());
        assert_eq!(find(&found, "packed").change, None);
        let json = serde_json::to_value(&found).unwrap();
        assert!(json["tensors"][4]["change"]["cosine"].is_null());
    }

    #[test]
    fn the_same_file_is_not_read() {
        let fixture = Fixture::llama(1, |_, _| 1.0).next_shard().f32("x", &[1], &[1.0]);
        fixture.write(0);
        let linked = tempfile::tempdir().unwrap();
        for file in std::fs::read_dir(fixture.dir.path()).unwrap() {
            let file = file.unwrap();
            std::fs::hard_link(file.path(), linked.path().join(file.file_name())).unwrap();
        }
        let (a, b) = (
            Checkpoint::open(fixture.dir.path()).unwrap(),
            Checkpoint::open(linked.path()).unwrap(),
        );
        let nothing = |_: u64| panic!("data was read");
        let found = diff(&a, &b, &DiffOptions::default(), &nothing).unwrap();
        assert!(found.tensors.iter().all(|t| t.state == TensorState::Equal));
    }

    #[test]
    fn numbers_do_not_depend_on_threads_or_reading() {
        // Two and a bit tiles, of which the first is equal.
        let len = 2 * 1024 * 1024 + 77;
        let wave = |scale: f32| -> Vec<f32> {
            (0..len)
                .map(|i: u32| {
                    let x = (f32::from((i % 50_021) as u16) * 0.37).sin();
                    if i < 1 << 20 { x } else { x * scale }
                })
                .collect()
        };
        let name = "model.layers.0.mlp.up_proj.weight";
        let a = Fixture::new().f32(name, &[u64::from(len)], &wave(1.0)).open_kept();
        let b = Fixture::new().f32(name, &[u64::from(len)], &wave(1.01)).open_kept();
        let mut results = Vec::new();
        for threads in [1, 2, 5] {
            for reading in [Reading::Mapped, Reading::Calls] {
                let options = DiffOptions { threads: NonZeroUsize::new(threads), reading };
                let read = AtomicU64::new(0);
                let observer = |bytes: u64| {
                    read.fetch_add(bytes, Ordering::Relaxed);
                };
                let found = diff(&a.1, &b.1, &options, &observer).unwrap();
                assert_eq!(read.into_inner(), 2 * 4 * u64::from(len));
                results.push(found.tensors);
            }
        }
        let change = results[0][0].change.unwrap();
        assert_eq!(change.elements, u64::from(len));
        assert!((1 << 20..(1 << 20) + 100).contains(&change.equal));
        assert!(results.iter().all(|r| *r == results[0]));
    }
}
