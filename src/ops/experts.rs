//! Experts: a model with some of its experts, with one a layer as a dense model, or with the same in the other layout.

use std::collections::BTreeMap;

use serde_json::json;

use super::draft::{Derived, Draft, as_dtype};
use super::extract::check_layer_count;
use super::operand::rows_of;
use super::vector::refuse_vectors;
use crate::checkpoint::{
    Checkpoint, ExpertLayout, ExpertRole, Experts, LayerSelector, densified, expert_role, locate,
    set_experts,
};
use crate::error::{Error, Result};
use crate::format::{Shape, TensorEntry};
use crate::plan::{Part, Plan, Slice};

/// What becomes of the experts.
#[derive(Clone, Debug)]
pub struct SelectExperts {
    /// Which of them the output has.
    pub choice: Choice,
    /// How the output stores them; as the model does if not given.
    pub layout: Option<ExpertLayout>,
    /// Data bytes of a shard, to lay the output out anew; the source's layout otherwise.
    pub shard_size: Option<u64>,
}

/// Which experts are chosen.
#[derive(Clone, Debug)]
pub enum Choice {
    /// All of them.
    All,
    /// These, counted from 1 and in this order; later ones count where they name a layer again. A layer that none names is
    /// an error, and so are layers that keep different numbers of experts.
    Keep(Vec<OfLayers>),
    /// All but these.
    Drop(Vec<OfLayers>),
    /// One a layer, which becomes the layer's feed-forward part; the routers go.
    Dense(Vec<OfLayers>),
}

/// Experts of some layers.
#[derive(Clone, Debug)]
pub struct OfLayers {
    /// The layers; all with experts if none are given.
    pub layers: Option<LayerSelector>,
    /// The experts, by the grammar of layers.
    pub experts: LayerSelector,
}

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
struct Names {
    block: &'static str,
    gate: &'static str,
    up: &'static str,
    down: &'static str,
}

impl Names {
    fn of(model: &Checkpoint) -> Option<Self> {
        let family = model.anatomy().family.as_str();
        CONVERTIBLE.iter().find(|(families, _)| families.contains(&family)).map(|(_, names)| *names)
    }

    /// An expert's matrix, behind a layer's prefix.
    fn matrix(self, expert: u64, matrix: &str) -> String {
        format!("{}.experts.{expert}.{matrix}.weight", self.block)
    }
}

/// Plans a model with the chosen experts, renumbered from 0 on; the router's rows and everything in `config.json` that
/// counts experts follow.
///
/// # Errors
/// A model without experts, or with tensors that may depend on them in ways that are not known; experts or layers that do not
/// exist; layers with different numbers of experts; families whose layouts or whose dense form is not known.
pub fn experts(model: &Checkpoint, request: &SelectExperts) -> Result<Plan> {
    refuse_vectors(&[model])?;
    check_layer_count(model)?;
    let all = model.experts()?;
    let chosen = Chosen::resolve(model, &all, &request.choice)?;
    let numbers: BTreeMap<String, Vec<u64>> = chosen
        .by_layer
        .iter()
        .map(|(layer, kept)| ((layer + 1).to_string(), kept.iter().map(|e| e + 1).collect()))
        .collect();
    let dense = matches!(request.choice, Choice::Dense(_));
    let layout = request.layout.unwrap_or(all.layout);
    let parameters = json!({
        "experts": numbers,
        "dense": dense,
        "layout": if layout == ExpertLayout::Fused { "fused" } else { "per-expert" },
        "shard_size": request.shard_size,
    });
    let mut draft = Draft::new("experts", &parameters);
    draft.parent("model", model);
    let names = (dense || layout != all.layout).then(|| convertible(model)).transpose()?;
    if dense {
        check_dense(model, &all)?;
    }
    let mut work = Work { model, chosen: &chosen, names, dense, layout, fused: Vec::new(), draft };
    let mut problems = Vec::new();
    for (home, entry) in model.names_in_file_order() {
        problems.extend(work.add(home, entry).err());
    }
    if !problems.is_empty() {
        return Err(Error::Mismatch {
            what: format!("the experts of `{}` cannot be rearranged", model.name()),
            problems,
            hint: "without `--expert-layout` the layout is kept; quantised experts keep theirs"
                .into(),
        });
    }
    let mut draft = work.draft;
    let mut derived = Derived { shard_size: request.shard_size, ..Derived::from(model, "model") };
    if let Some(config) = model.config() {
        let refuse = |problem| Error::Config { path: model.config_path(), problem };
        if dense {
            derived.config = Some(densified(config).map_err(refuse)?);
        } else if chosen.count != all.count {
            let (config, notes) =
                set_experts(config, model.anatomy(), all.count, chosen.count).map_err(refuse)?;
            derived.config = Some(config);
            for note in notes {
                draft.note(note);
            }
        }
    }
    draft.finish(&derived)
}

fn convertible(model: &Checkpoint) -> Result<Names> {
    Names::of(model).ok_or_else(|| Error::Unsupported {
        what: format!("another layout of the experts of `{}`", model.name()),
        reason: format!(
            "it is not known how the family `{}` arranges gate and up projections when they are fused",
            model.anatomy().family
        ),
        hint: "keep the layout".into(),
    })
}

fn check_dense(model: &Checkpoint, all: &Experts) -> Result<()> {
    let refuse = |reason: &str| {
        Err(Error::Unsupported {
            what: format!("a dense model from `{}`", model.name()),
            reason: reason.to_owned(),
            hint: "keep one expert instead: `--keep 1`".into(),
        })
    };
    if all.layers.iter().any(|layer| model.has_shared_experts(*layer)) {
        return refuse("it has shared experts, whose output is added to that of the chosen ones");
    }
    match model.config() {
        Some(_) => Ok(()),
        None => refuse("it has no config.json that could describe the result"),
    }
}

/// The experts that stay, from 0.
struct Chosen {
    by_layer: BTreeMap<u64, Vec<u64>>,
    /// How many each layer keeps.
    count: u64,
}

impl Chosen {
    fn resolve(model: &Checkpoint, all: &Experts, choice: &Choice) -> Result<Self> {
        let every: Vec<u64> = (0..all.count).collect();
        let usage = |problem: String, hint: &str| Error::Usage { problem, hint: hint.to_owned() };
        let mut by_layer = BTreeMap::new();
        let (rules, drops) = match choice {
            Choice::All => {
                by_layer.extend(all.layers.iter().map(|layer| (*layer, every.clone())));
                return Ok(Self { by_layer, count: all.count });
            }
            Choice::Drop(rules) => (rules, true),
            Choice::Keep(rules) | Choice::Dense(rules) => (rules, false),
        };
        for rule in rules {
            let named = rule.experts.resolve(all.count, "").map_err(|_| {
                let (text, count) = (&rule.experts, all.count);
                let problem =
                    format!("`{text}` does not choose from the {count} experts of a layer");
                usage(problem, "experts count from 1, and each is named once")
            })?;
            let kept: Vec<u64> = match drops {
                true => every.iter().copied().filter(|expert| !named.contains(expert)).collect(),
                false => named,
            };
            let layers = match &rule.layers {
                None => all.layers.clone(),
                Some(layers) => layers.resolve(model.layers(), model.name())?,
            };
            if let Some(dense) = layers.iter().find(|layer| !all.layers.contains(layer)) {
                let problem = format!("layer {} of `{}` has no experts", dense + 1, model.name());
                return Err(usage(problem, "choose layers with experts, or name none for all"));
            }
            by_layer.extend(layers.into_iter().map(|layer| (layer, kept.clone())));
        }
        if let Some(missing) = all.layers.iter().find(|layer| !by_layer.contains_key(layer)) {
            if !drops {
                let problem = format!("nothing is said of the experts of layer {}", missing + 1);
                return Err(usage(
                    problem,
                    "name all layers, or give one choice without layers first",
                ));
            }
            for layer in &all.layers {
                by_layer.entry(*layer).or_insert_with(|| every.clone());
            }
        }
        let mut counts = by_layer.iter().map(|(layer, kept)| (layer, kept.len() as u64));
        let count = counts.next().map_or(0, |(_, count)| count);
        if let Some((layer, other)) = counts.find(|(_, other)| *other != count) {
            let problem = format!(
                "layer {} would have {other} experts and layer {} {count}",
                layer + 1,
                all.layers[0] + 1
            );
            return Err(usage(problem, "choose as many in every layer"));
        }
        if count == 0 {
            return Err(usage("no expert would be left".into(), "drop fewer"));
        }
        if matches!(choice, Choice::Dense(_)) && count != 1 {
            let problem = format!("a dense model has one expert a layer, {count} are chosen");
            return Err(usage(problem, "for example `--dense 1`"));
        }
        Ok(Self { by_layer, count })
    }
}

/// A plan at work.
struct Work<'a> {
    model: &'a Checkpoint,
    chosen: &'a Chosen,
    /// Where the layout changes: the family's names.
    names: Option<Names>,
    dense: bool,
    layout: ExpertLayout,
    /// The layers whose fused tensors have been made from single ones.
    fused: Vec<u64>,
    draft: Draft,
}

impl Work<'_> {
    /// Adds what becomes of a tensor.
    fn add(&mut self, home: usize, entry: &TensorEntry) -> Result<(), String> {
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
