//! Differences gathered by layer and by module.

use std::collections::{BTreeMap, BTreeSet};

use ndarray::Array2;
use serde::{Serialize, Serializer};

use super::diff::{TensorDiff, TensorState, number};
use super::distance::Distance;
use super::inspect::GroupKind;
use crate::engine::statistics::Comparison;

/// Several tensors taken as one.
///
/// Norms run over the float tensors that were compared and differ. Equal tensors take no part: they may be known to be
/// equal without having been read, and how they are stored must not change a number.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Aggregate {
    /// How many tensors there are.
    pub tensors: u64,
    /// How many of them are not equal.
    pub changed: u64,
    /// `||b - a|| / ||a||`: 0 if all are equal, not a number if none could be measured.
    #[serde(serialize_with = "number")]
    pub relative_norm: f64,
    /// Cosine of the angle between `a` and `b`, likewise; 1 if all are equal.
    #[serde(serialize_with = "number")]
    pub cosine: f64,
    /// The largest `|b - a|` of one element.
    #[serde(serialize_with = "number")]
    pub largest: f64,
}

/// A tensor's outcome and, where it was read, its distance.
pub(super) type Measured<'a> = (&'a TensorDiff, &'a Option<Distance>);

impl Aggregate {
    pub(super) fn of<'a>(tensors: impl Iterator<Item = Measured<'a>>) -> Self {
        let (mut count, mut changed) = (0, 0);
        let mut sums: Option<Comparison> = None;
        for (tensor, distance) in tensors {
            count += 1;
            changed += u64::from(tensor.state != TensorState::Equal);
            if let Some(Distance::Measured(found)) = distance {
                sums = Some(match sums {
                    Some(sums) => sums.merge(*found),
                    None => *found,
                });
            }
        }
        let (relative_norm, cosine, largest) = match (&sums, changed) {
            (Some(sums), _) => (sums.relative_norm(), sums.cosine(), sums.largest_difference),
            (None, 0) => (0.0, 1.0, 0.0),
            (None, _) => (f64::NAN, f64::NAN, f64::NAN),
        };
        Self { tensors: count, changed, relative_norm, cosine, largest }
    }
}

/// Tensors under one label.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Labelled<T> {
    /// The label: a layer's number, a module's name.
    pub label: T,
    /// Its tensors taken as one.
    #[serde(flatten)]
    pub aggregate: Aggregate,
}

/// Differences by layer and module.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Grid {
    /// Layers, counting from 1: the rows of `relative_norms`.
    pub layers: Vec<Labelled<u64>>,
    /// Modules within layers: the columns of `relative_norms`.
    pub modules: Vec<Labelled<String>>,
    /// `||b - a|| / ||a||` of each module of each layer; not a number where there is none to measure.
    #[serde(serialize_with = "rows")]
    pub relative_norms: Array2<f64>,
    /// What lies outside the layers: embeddings, norm, head, the rest.
    pub outside: Vec<Labelled<GroupKind>>,
}

fn rows<S: Serializer>(values: &Array2<f64>, serializer: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    #[serde(transparent)]
    struct Value(#[serde(serialize_with = "number")] f64);
    let rows = values.rows().into_iter();
    serializer.collect_seq(rows.map(|row| row.iter().copied().map(Value).collect::<Vec<_>>()))
}

impl Grid {
    pub(super) fn of(tensors: &[Measured]) -> Self {
        let mut cells: BTreeMap<(u64, &str), Vec<Measured>> = BTreeMap::new();
        let mut layers: BTreeMap<u64, Vec<Measured>> = BTreeMap::new();
        let mut modules: BTreeMap<(usize, &str), Vec<Measured>> = BTreeMap::new();
        let mut outside: BTreeMap<GroupKind, Vec<Measured>> = BTreeMap::new();
        for &found in tensors {
            let module = found.0.module.as_str();
            if let GroupKind::Layer(layer) = found.0.kind {
                cells.entry((layer, module)).or_default().push(found);
                layers.entry(layer).or_default().push(found);
                modules.entry((place(module), module)).or_default().push(found);
            } else {
                outside.entry(found.0.kind).or_default().push(found);
            }
        }
        let mut relative_norms = Array2::from_elem((layers.len(), modules.len()), f64::NAN);
        for (row, layer) in layers.keys().enumerate() {
            for (column, (_, module)) in modules.keys().enumerate() {
                if let Some(tensors) = cells.get(&(*layer, *module)) {
                    let cell = Aggregate::of(tensors.iter().copied());
                    relative_norms[[row, column]] = cell.relative_norm;
                }
            }
        }
        Self {
            layers: labelled(layers, |layer| layer),
            modules: labelled(modules, |(_, module)| module.to_owned()),
            relative_norms,
            outside: labelled(outside, |kind| kind),
        }
    }

    /// Layers that hold something that differs, counting from 1.
    pub fn changed_layers(&self) -> BTreeSet<u64> {
        let changed = self.layers.iter().filter(|l| l.aggregate.changed > 0);
        changed.map(|l| l.label).collect()
    }
}

fn labelled<K, T>(groups: BTreeMap<K, Vec<Measured>>, label: impl Fn(K) -> T) -> Vec<Labelled<T>> {
    let groups = groups.into_iter();
    groups
        .map(|(key, tensors)| Labelled {
            label: label(key),
            aggregate: Aggregate::of(tensors.into_iter()),
        })
        .collect()
}

/// Modules in the order data flows through a layer; unknown ones after the known, by name.
fn place(module: &str) -> usize {
    const FLOW: [&str; 24] = [
        "input_layernorm",
        "ln_1",
        "q_proj",
        "q_a",
        "q_b",
        "qkv",
        "query",
        "k_proj",
        "kv_",
        "v_proj",
        "q_norm",
        "k_norm",
        "o_proj",
        "dense",
        "attn",
        "post_attention",
        "pre_feedforward",
        "ln_2",
        "mlp.gate",
        "gate_proj",
        "up_proj",
        "down_proj",
        "experts",
        "post_feedforward",
    ];
    FLOW.iter().position(|word| module.contains(word)).unwrap_or(FLOW.len())
}

#[cfg(test)]
mod tests {
    use crate::audit::fixture::Fixture;
    use crate::audit::{DiffOptions, diff};

    #[test]
    fn cells_hold_their_modules_distance() {
        let plain = || Fixture::llama(3, |_, _| 2.0);
        let b = plain()
            .edit("model.layers.2.mlp.down_proj.weight", |bytes| {
                for value in bytes.chunks_exact_mut(4) {
                    value.copy_from_slice(&3.0_f32.to_le_bytes());
                }
            })
            .f32("model.layers.0.self_attn.q_norm.weight", &[1], &[1.0]);
        let found = diff(&plain().open_kept().1, &b.open(), &DiffOptions::default(), &|_: u64| {});
        let grid = found.unwrap().grid;
        let modules: Vec<&str> = grid.modules.iter().map(|m| m.label.as_str()).collect();
        let expected = ["input_layernorm", "self_attn.q_proj", "self_attn.q_norm", "mlp.down_proj"];
        assert_eq!(modules, expected);
        assert_eq!(grid.relative_norms.dim(), (3, 4));
        assert!((grid.relative_norms[[2, 3]] - 0.5).abs() < 1e-12);
        assert!(grid.relative_norms[[0, 0]].abs() < 1e-12);
        assert!(grid.relative_norms[[1, 2]].is_nan());
        assert!((grid.layers[2].aggregate.relative_norm - 0.5).abs() < 1e-12);
        assert_eq!(grid.changed_layers().into_iter().collect::<Vec<_>>(), [1, 3]);
        let json = serde_json::to_value(&grid).unwrap();
        assert!(json["relative_norms"][1][2].is_null());
    }
}
