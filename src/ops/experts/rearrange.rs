//! What becomes of each tensor: experts renumbered, fused, taken apart, or put in the place of a dense part.

use super::super::draft::{Draft, as_dtype};
use super::super::operand::rows_of;
use super::choice::Chosen;
use crate::checkpoint::{Checkpoint, ExpertLayout, ExpertRole, expert_role, locate};
use crate::format::{Shape, TensorEntry};
use crate::plan::{Part, Slice};

/// Families whose two layouts are known to say the same, and where the expert block and its matrices are in the layout of the Hub.
const CONVERTIBLE: &[(&[&str], Names)] = &[
    (&["mixtral"], Names { block: "block_sparse_moe", gate: "w1", up: "w3", down: "w2" }),
    (
        &[
            "qwen2_moe",
            "qwen3_moe",
            "qwen3_next",
            "olmoe",
            "deepseek_v2",
            "deepseek_v3",
            "glm4_moe",
            "dots1",
        ],
        Names { block: "mlp", gate: "gate_proj", up: "up_proj", down: "down_proj" },
    ),
];

/// What a family calls its experts' parts where each expert has tensors of its own.
#[derive(Clone, Copy)]
pub(super) struct Names {
    block: &'static str,
    gate: &'static str,
    up: &'static str,
    down: &'static str,
}

impl Names {
    pub(super) fn of(model: &Checkpoint) -> Option<Self> {
        let family = model.anatomy().family.as_str();
        CONVERTIBLE.iter().find(|(families, _)| families.contains(&family)).map(|(_, names)| *names)
    }

    /// An expert's matrix, behind a layer's prefix.
    fn matrix(self, expert: u64, matrix: &str) -> String {
        format!("{}.experts.{expert}.{matrix}.weight", self.block)
    }
}

/// A plan at work.
pub(super) struct Work<'a> {
    pub(super) model: &'a Checkpoint,
    pub(super) chosen: &'a Chosen,
    /// Where the layout changes: the family's names.
    pub(super) names: Option<Names>,
    pub(super) dense: bool,
    pub(super) layout: ExpertLayout,
    /// The layers whose fused tensors have been made from single ones.
    pub(super) fused: Vec<u64>,
    pub(super) draft: Draft,
}

impl Work<'_> {
    /// Adds what becomes of a tensor.
    pub(super) fn add(&mut self, home: usize, entry: &TensorEntry) -> Result<(), String> {
        let model = self.model;
        let inside = model.anatomy().layer_suffix(&entry.name).and_then(|(layer, suffix)| {
            let kept = self.chosen.by_layer.get(&layer)?;
            Some((layer, suffix, kept.as_slice(), expert_role(suffix)?))
        });
        let Some((layer, suffix, kept, role)) = inside else {
            let parts = self.copied(&entry.name);
            self.draft.push(home, &entry.name, entry.dtype.clone(), entry.shape.clone(), parts);
            return Ok(());
        };
        let prefix = format!("{}{layer}.", model.anatomy().layer_prefix);
        let of_experts = suffix.contains(".experts.");
        if let (Some(names), true) = (self.names, of_experts) {
            return self.rearranged(home, layer, &prefix, suffix, kept, names);
        }
        match role {
            // The router of a dense model.
            ExpertRole::Rows if self.dense => Ok(()),
            ExpertRole::Rows => {
                let name = match self.names {
                    Some(names) => format!("{prefix}{}", self.router_name(names, suffix)),
                    None => entry.name.clone(),
                };
                self.rows(home, &entry.name, &name, kept)
            }
            ExpertRole::One { before, expert, after } => {
                let Some(place) = kept.iter().position(|own| *own == expert) else {
                    return Ok(());
                };
                let name = format!("{prefix}{before}{place}{after}");
                let parts = self.copied(&entry.name);
                self.draft.push(home, &name, entry.dtype.clone(), entry.shape.clone(), parts);
                Ok(())
            }
        }
    }

    fn copied(&mut self, name: &str) -> Vec<Part> {
        let stretches = locate(self.model, name).map(|(_, s)| s).unwrap_or_default();
        self.draft.slices("model", &stretches).into_iter().map(Part::Copy).collect()
    }

    /// Some rows of a tensor.
    fn rows(&mut self, home: usize, from: &str, name: &str, kept: &[u64]) -> Result<(), String> {
        let (shape, stretches) = locate(self.model, from).unwrap_or_default();
        let slices = self.draft.slices("model", &stretches);
        let [slice] = slices.as_slice() else {
            return Err(format!("tensor `{from}` is not in one piece"));
        };
        if slice.dtype.bytes().is_none() {
            return Err(format!("tensor `{from}` ({}) has no rows of whole bytes", slice.dtype));
        }
        let operand = slice.clone().into();
        let part = |(a, b)| as_dtype(rows_of(&operand, a, b), &slice.dtype);
        let parts = runs(kept).into_iter().map(part).collect();
        let shape = shape.with_rows(kept.len() as u64);
        self.draft.push(home, name, slice.dtype.clone(), shape, parts);
        Ok(())
    }

    /// The router moves with its block.
    fn router_name(&self, names: Names, suffix: &str) -> String {
        let rest = suffix.split_once('.').map_or(suffix, |(_, rest)| rest);
        match self.layout {
            ExpertLayout::Fused => format!("mlp.{rest}"),
            ExpertLayout::PerExpert => format!("{}.{rest}", names.block),
        }
    }

    /// A tensor of the experts in the other layout, or of the one that stays as the layer's own.
    fn rearranged(
        &mut self,
        home: usize,
        layer: u64,
        prefix: &str,
        suffix: &str,
        kept: &[u64],
        names: Names,
    ) -> Result<(), String> {
        let plain = ["gate", "up", "down"].map(|kind| match kind {
            "gate" => names.gate,
            "up" => names.up,
            _ => names.down,
        });
        let known = match expert_role(suffix) {
            Some(ExpertRole::One { after, .. }) => {
                plain.iter().any(|matrix| after == format!(".{matrix}.weight"))
            }
            _ => matches!(suffix, "mlp.experts.gate_up_proj" | "mlp.experts.down_proj"),
        };
        if !known {
            return Err(format!("tensor `{prefix}{suffix}` has no place in the other layout"));
        }
        if self.fused.contains(&layer) {
            return Ok(());
        }
        // All matrices of a layer are made where its first one was.
        self.fused.push(layer);
        let locate = |expert, matrix| names.matrix(expert, matrix);
        if self.dense {
            let dense =
                [("gate_proj", names.gate), ("up_proj", names.up), ("down_proj", names.down)];
            return dense.iter().try_for_each(|(own, matrix)| {
                let from = [locate(kept[0], matrix)];
                self.joined(home, prefix, &from, &format!("mlp.{own}.weight"), false)
            });
        }
        if self.layout == ExpertLayout::Fused {
            let both = kept.iter().flat_map(|e| [locate(*e, names.gate), locate(*e, names.up)]);
            let both: Vec<String> = both.collect();
            self.joined(home, prefix, &both, "mlp.experts.gate_up_proj", true)?;
            let down: Vec<String> = kept.iter().map(|e| locate(*e, names.down)).collect();
            return self.joined(home, prefix, &down, "mlp.experts.down_proj", true);
        }
        for (place, expert) in (0..).zip(kept) {
            for matrix in plain {
                let own = names.matrix(place, matrix);
                self.joined(home, prefix, &[locate(*expert, matrix)], &own, false)?;
            }
        }
        Ok(())
    }

    /// Matrices of experts one after the other, as one tensor.
    fn joined(
        &mut self,
        home: usize,
        prefix: &str,
        from: &[String],
        name: &str,
        fused: bool,
    ) -> Result<(), String> {
        let mut slices: Vec<Slice> = Vec::new();
        for matrix in from {
            let stretches = locate(self.model, &format!("{prefix}{matrix}"));
            let (_, stretches) =
                stretches.ok_or_else(|| format!("tensor `{prefix}{matrix}` is missing"))?;
            slices.extend(self.draft.slices("model", &stretches));
        }
        let Some(first) = slices.first().cloned() else {
            return Err(format!("tensor `{prefix}{name}` would be empty"));
        };
        if let Some(odd) = slices.iter().find(|s| s.shape != first.shape || s.dtype != first.dtype)
        {
            return Err(format!(
                "experts of `{prefix}{name}` are {} {} and {} {}",
                first.dtype, first.shape, odd.dtype, odd.shape
            ));
        }
        let shape = match (fused, first.shape.0.as_slice()) {
            (true, [rows, columns]) => {
                let experts = self.chosen.count;
                let rows = rows * slices.len() as u64 / experts;
                Shape(vec![experts, rows, *columns])
            }
            _ => first.shape.clone(),
        };
        let parts = slices.into_iter().map(Part::Copy).collect();
        self.draft.push(home, &format!("{prefix}{name}"), first.dtype, shape, parts);
        Ok(())
    }
}

/// Neighbouring numbers as ranges: `[1, 2, 5]` is `1..3`, `5..6`.
fn runs(numbers: &[u64]) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for &number in numbers {
        match runs.last_mut() {
            Some((_, end)) if *end == number => *end += 1,
            _ => runs.push((number, number + 1)),
        }
    }
    runs
}
