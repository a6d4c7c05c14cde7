//! The experts of a model: which layers have them, how many, in which layout, and what each tensor is to them.

use super::Checkpoint;
use crate::error::{Error, Result};

/// How expert weights are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpertLayout {
    /// One tensor a matrix and expert: what the Hub has of most families.
    PerExpert,
    /// One tensor for a matrix of all experts: what transformers 5 has in memory.
    Fused,
}

/// The experts of a model; every layer with experts has as many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Experts {
    /// How many a layer has.
    pub count: u64,
    /// The layers with experts, from 0; multi-token-prediction layers among them.
    pub layers: Vec<u64>,
    /// How their weights are stored.
    pub layout: ExpertLayout,
}

/// What a tensor of a layer is to the layer's experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpertRole<'a> {
    /// It belongs to one of them: `before`, its number, `after` make up the name behind the layer's prefix.
    One {
        /// `mlp.experts.`
        before: &'a str,
        /// The expert, from 0.
        expert: u64,
        /// `.up_proj.weight`
        after: &'a str,
    },
    /// Dimension 0 counts the experts: fused weights, the router's rows, biases.
    Rows,
}

/// Tensors outside `experts.` whose dimension 0 counts the experts.
const ROWS: &[&str] = &[
    "mlp.gate.weight",
    "mlp.gate.wg.weight",
    "mlp.gate.e_score_correction_bias",
    "mlp.router.weight",
    "mlp.router.bias",
    "mlp.router.gate.weight",
    "mlp.expert_bias",
    "block_sparse_moe.gate.weight",
    "block_sparse_moe.e_score_correction_bias",
    "block_sparse_moe.router.layer.weight",
    "block_sparse_moe.input_linear.weight",
    "block_sparse_moe.output_linear.weight",
    "feed_forward.gate.weight",
    "feed_forward.router.weight",
    "feed_forward.expert_bias",
];

/// Those of them that are the router's matrix.
const ROUTERS: &[&str] = &[
    "mlp.gate.weight",
    "mlp.gate.wg.weight",
    "mlp.router.weight",
    "mlp.router.gate.weight",
    "block_sparse_moe.gate.weight",
    "block_sparse_moe.router.layer.weight",
    "feed_forward.gate.weight",
    "feed_forward.router.weight",
];

/// What a tensor is to the experts of its layer, by its name behind the layer's prefix.
pub fn expert_role(suffix: &str) -> Option<ExpertRole<'_>> {
    if ROWS.contains(&suffix) {
        return Some(ExpertRole::Rows);
    }
    let at = suffix.find(".experts.")? + ".experts.".len();
    let (before, rest) = suffix.split_at(at);
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    let (number, after) = rest.split_at(digits);
    match number.parse() {
        Ok(expert) if after.starts_with('.') => Some(ExpertRole::One { before, expert, after }),
        _ => Some(ExpertRole::Rows),
    }
}

impl Checkpoint {
    /// The experts, if every tensor of their blocks is understood.
    ///
    /// # Errors
    /// A model without experts; layers that differ in their number; tensors beside the experts that may depend on them.
    pub fn experts(&self) -> Result<Experts> {
        let mut problems = Vec::new();
        let mut found: Option<Experts> = None;
        let mut layers: Vec<u64> = self
            .tensors()
            .filter_map(|(name, _)| self.anatomy().layer_suffix(name).map(|(layer, _)| layer))
            .collect();
        layers.sort_unstable();
        layers.dedup();
        for layer in layers {
            let Some((count, layout)) = self.layer_experts(layer, &mut problems) else {
                continue;
            };
            let all = found.get_or_insert(Experts { count, layers: Vec::new(), layout });
            if (all.count, all.layout) != (count, layout) {
                problems.push(format!(
                    "layer {} has {count} experts or another layout, layer {} has {}",
                    layer + 1,
                    all.layers[0] + 1,
                    all.count
                ));
            }
            all.layers.push(layer);
        }
        let outside =
            |name: &&str| self.anatomy().layer_suffix(name).is_none() && name.contains(".experts.");
        if let Some(name) = self.tensors().map(|(name, _)| name).find(outside) {
            problems.push(format!("tensor `{name}` belongs to experts outside the layers"));
        }
        if !problems.is_empty() {
            return Err(Error::Mismatch {
                what: format!("the experts of `{}` are not all understood", self.name()),
                problems,
                hint: "`elo-surgery inspect --tensors` lists the tensors".into(),
            });
        }
        found.ok_or_else(|| Error::Unsupported {
            what: format!("`{}`", self.name()),
            reason: "it has no layers with a router and experts".into(),
            hint: "`elo-surgery moe` makes a model with experts from dense ones".into(),
        })
    }

    /// How many experts a layer has and in which layout; none if it is dense.
    fn layer_experts(&self, layer: u64, problems: &mut Vec<String>) -> Option<(u64, ExpertLayout)> {
        let prefix = format!("{}{layer}.", self.anatomy().layer_prefix);
        let router = ROUTERS.iter().find_map(|suffix| self.tensor(&format!("{prefix}{suffix}")));
        let names = self.tensors().map(|(name, _)| name);
        let own: Vec<&str> = names.filter_map(|name| name.strip_prefix(&prefix)).collect();
        let roles = || own.iter().filter_map(|suffix| Some((*suffix, expert_role(suffix)?)));
        let Some((_, router)) = router else {
            if let Some((suffix, _)) = roles().next() {
                problems
                    .push(format!("tensor `{prefix}{suffix}` belongs to experts without a router"));
            }
            return None;
        };
        let count = router.shape.rows();
        let mut seen = std::collections::BTreeSet::new();
        let mut layout = ExpertLayout::Fused;
        for (suffix, role) in roles() {
            match role {
                ExpertRole::One { expert, .. } => {
                    seen.insert(expert);
                    layout = ExpertLayout::PerExpert;
                }
                ExpertRole::Rows => {
                    let rows =
                        self.tensor(&format!("{prefix}{suffix}")).map(|(_, e)| e.shape.rows());
                    if rows != Some(count) {
                        problems.push(format!(
                            "tensor `{prefix}{suffix}` has {} rows, the router {count}",
                            rows.unwrap_or(0)
                        ));
                    }
                }
            }
        }
        if layout == ExpertLayout::PerExpert && !seen.iter().copied().eq(0..count) {
            let has = seen.len();
            problems.push(format!(
                "layer {} has a router of {count} rows and {has} experts",
                layer + 1
            ));
        }
        let block = router.name.strip_prefix(&prefix).and_then(|s| s.split_once('.'));
        let block = block.map_or("mlp", |(block, _)| block);
        let strange = own.iter().filter(|suffix| {
            let inner = suffix.strip_prefix(block).and_then(|rest| rest.strip_prefix('.'));
            inner
                .is_some_and(|inner| !inner.starts_with("shared_") && expert_role(suffix).is_none())
        });
        problems.extend(
            strange.map(|suffix| format!("tensor `{prefix}{suffix}` may depend on the experts")),
        );
        Some((count, layout))
    }

    /// Whether a layer has experts that every token passes through.
    pub fn has_shared_experts(&self, layer: u64) -> bool {
        let prefix = format!("{}{layer}.", self.anatomy().layer_prefix);
        let mut names = self.tensors().map(|(name, _)| name);
        names.any(|name| {
            name.strip_prefix(&prefix).is_some_and(|suffix| {
                suffix.split('.').nth(1).is_some_and(|part| part.starts_with("shared_"))
                    || suffix.starts_with("shared_")
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_by_name() {
        let one = ExpertRole::One { before: "mlp.experts.", expert: 12, after: ".up_proj.weight" };
        assert_eq!(expert_role("mlp.experts.12.up_proj.weight"), Some(one));
        assert_eq!(expert_role("mlp.experts.gate_up_proj"), Some(ExpertRole::Rows));
        assert_eq!(expert_role("mlp.gate.weight"), Some(ExpertRole::Rows));
        assert_eq!(expert_role("mlp.shared_experts.up_proj.weight"), None);
        assert_eq!(expert_role("mlp.up_proj.weight"), None);
    }
}
