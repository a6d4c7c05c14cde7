//! Dense models as the experts of one: sparse upcycling (arXiv 2212.05055), by mergekit-moe's configuration.
//!
//! The feed-forward part of each model becomes an expert of every layer; everything else is the base model's. A router chooses
//! the experts for each token; its rows are random, or point where the embeddings of each expert's prompts do.

mod config;
mod family;
mod gates;

use std::collections::HashMap;
use std::path::Path;

use serde_json::json;

pub use config::MoeConfig;

use self::config::{ExpertOf, GateMode};
use self::family::{Family, PROJECTIONS};
use self::gates::{Embedding, Gate};
use super::super::draft::{Derived, Draft, as_dtype};
use super::super::extract::check_layer_count;
use super::super::operand::is_buffer;
use super::super::quantised::scale_of;
use super::super::vector::refuse_vectors;
use crate::checkpoint::{
    Checkpoint, ExpertLayout, Role, SidecarFile, locate, set_dtype, sparsified,
};
use crate::error::{Error, Result};
use crate::format::{Dtype, Shape, TensorEntry};
use crate::plan::{Blend, Part, Plan, Sidecar, SidecarContent, Slice, Term};

/// The configuration as it was given, beside the result.
const CONFIG_FILE: &str = "mergekit_moe_config.yml";

/// How the result is made.
#[derive(Clone, Debug, Default)]
pub struct Moe {
    /// The tokens of every text of [`MoeConfig::prompts`].
    pub tokens: HashMap<String, Vec<u32>>,
    /// The seed of random routers.
    pub seed: u64,
    /// How experts are stored: by default each has tensors of its own, as on the Hub.
    pub layout: Option<ExpertLayout>,
    /// Data bytes of a shard; the base model's layout otherwise.
    pub shard_size: Option<u64>,
}

/// Plans a model with experts from the models that [`MoeConfig::models`] names, in that order.
///
/// Of the base model's embedding the rows of the prompts' tokens are read, no other tensor data.
///
/// # Errors
/// Models of different families or shapes, or with tensors that have no place in the result; all problems at once.
pub fn moe(config: &MoeConfig, models: &[Checkpoint], request: &Moe) -> Result<Plan> {
    let named = config.models();
    let refuse = |problems: Vec<String>| Error::Mismatch {
        what: "the models cannot become experts of one".to_owned(),
        problems,
        hint: "docs/growth.md has the families, and what is supported".to_owned(),
    };
    let (Some(base), true) = (models.first(), models.len() == named.len()) else {
        return Err(refuse(vec![format!(
            "{} models are named, {} given",
            named.len(),
            models.len()
        )]));
    };
    refuse_vectors(&models.iter().collect::<Vec<_>>())?;
    models.iter().try_for_each(check_layer_count)?;
    let family = Family::choose(config, base).map_err(refuse)?;
    let layout = request.layout.unwrap_or(ExpertLayout::PerExpert);
    let mut problems = Vec::new();
    if layout == ExpertLayout::Fused && !family.fuses {
        problems.push(format!(
            "{} has no fused layout: its code reads one tensor an expert",
            family.name
        ));
    }
    for model in &models[1..] {
        let (own, other) = (&model.anatomy().family, &base.anatomy().family);
        if own != other || model.layers() != base.layers() {
            problems.push(format!(
                "`{}` is of the family {own} with {} layers, `{}` of {other} with {}",
                model.name(),
                model.layers(),
                base.name(),
                base.layers()
            ));
        }
    }
    if !problems.is_empty() {
        return Err(refuse(problems));
    }
    let parameters = json!({
        "architecture": family.name,
        "experts": config.experts.len(),
        "experts_per_token": config.experts_per_token,
        "seed": request.seed,
        "layout": if layout == ExpertLayout::Fused { "fused" } else { "per-expert" },
        "shard_size": request.shard_size,
    });
    let mut draft = Draft::new("moe", &parameters);
    for (i, model) in models.iter().enumerate() {
        draft.parent(if i == 0 { "base" } else { "expert" }, model);
    }
    let bound: Vec<(&Path, &Checkpoint)> = named.into_iter().zip(models).collect();
    let routers = Routers::new(config, base, request)?;
    if let Some(note) = gates::alike(&routers.experts) {
        draft.note(note);
    }
    let mut work = Work { config, family, layout, base, bound, routers, draft, problems };
    for (home, entry) in base.names_in_file_order() {
        work.add(home, entry);
    }
    let Work { mut draft, problems, .. } = work;
    if !problems.is_empty() {
        return Err(refuse(problems));
    }
    let own = |sidecar: &&SidecarFile| sidecar.file != CONFIG_FILE;
    let sidecars: Vec<SidecarFile> = base.sidecars().iter().filter(own).cloned().collect();
    let Some(old) = base.config() else {
        return Err(refuse(vec![format!("`{}` has no config.json", base.name())]));
    };
    let count = config.experts.len() as u64;
    let (mut new, notes) =
        sparsified(old, family.twin, count, config.experts_per_token, config.shared.len() as u64);
    if let Some(dtype) = &config.dtype {
        set_dtype(&mut new, dtype);
    }
    for note in notes {
        draft.note(note);
    }
    let content = SidecarContent::Text(config.text.clone());
    draft.plan().sidecars.push(Sidecar { file: CONFIG_FILE.to_owned(), content });
    let derived = Derived {
        shard_size: request.shard_size,
        config: Some(new),
        ..Derived::from(base, "base")
    };
    draft.finish(&Derived { sidecars: &sidecars, ..derived })
}

/// Where the routers come from.
struct Routers<'a> {
    embedding: Option<Embedding<'a>>,
    experts: Vec<Gate>,
    shared: Vec<Gate>,
    seed: u64,
}

impl<'a> Routers<'a> {
    fn new(config: &MoeConfig, base: &'a Checkpoint, request: &'a Moe) -> Result<Self> {
        let seed = request.seed;
        if config.gates != GateMode::CheapEmbed {
            return Ok(Self { embedding: None, experts: Vec::new(), shared: Vec::new(), seed });
        }
        let embedding = Embedding::of(base, &request.tokens)?;
        let gates = |experts: &[ExpertOf]| {
            let routed = experts.iter().filter(|expert| !expert.positive.is_empty());
            routed.map(|expert| embedding.gate(expert)).collect::<Result<Vec<Gate>>>()
        };
        let (experts, shared) = (gates(&config.experts)?, gates(&config.shared)?);
        Ok(Self { embedding: Some(embedding), experts, shared, seed })
    }
}

/// A plan at work.
struct Work<'a> {
    config: &'a MoeConfig,
    family: Family,
    layout: ExpertLayout,
    base: &'a Checkpoint,
    bound: Vec<(&'a Path, &'a Checkpoint)>,
    routers: Routers<'a>,
    draft: Draft,
    problems: Vec<String>,
}

impl Work<'_> {
    /// Adds what becomes of a tensor of the base model.
    fn add(&mut self, home: usize, entry: &TensorEntry) {
        let name = entry.name.as_str();
        if is_buffer(name) {
            return;
        }
        if scale_of(self.base, name).is_some() {
            self.problems.push(format!("tensor `{name}` is quantised"));
            return;
        }
        let Role::Layer(layer) = self.base.anatomy().role(name) else {
            match self.base.anatomy().role(name) {
                Role::Embedding | Role::FinalNorm | Role::Head => self.kept(home, entry),
                _ => self.stranger(name),
            }
            return;
        };
        let Some((_, suffix)) = self.base.anatomy().layer_suffix(name) else {
            return;
        };
        let prefix = format!("{}{layer}.", self.base.anatomy().layer_prefix);
        match suffix.strip_prefix("mlp.").and_then(|rest| rest.strip_suffix(".weight")) {
            // The first of the three makes the whole block.
            Some("gate_proj") => self.block(home, &prefix, entry),
            Some("up_proj" | "down_proj") => {}
            _ if self.family.takes(suffix) => {
                self.kept(home, entry);
                self.zero_bias(home, entry, suffix);
            }
            _ => self.stranger(name),
        }
    }

    fn stranger(&mut self, name: &str) {
        let family = self.family.name;
        self.problems.push(format!("tensor `{name}` has no place in a {family} model"));
    }

    fn dtype(&self, stored: &Dtype) -> Dtype {
        self.config.dtype.clone().unwrap_or_else(|| stored.clone())
    }

    /// A tensor as it is, in the dtype of the result.
    fn kept(&mut self, home: usize, entry: &TensorEntry) {
        let dtype = self.dtype(&entry.dtype);
        if dtype != entry.dtype && !entry.dtype.is_float() {
            self.problems
                .push(format!("tensor `{}` ({}) cannot become {dtype}", entry.name, entry.dtype));
            return;
        }
        let stretches = locate(self.base, &entry.name).map(|(_, s)| s).unwrap_or_default();
        let slices = self.draft.slices("base", &stretches);
        let parts = slices.into_iter().map(|slice| as_dtype(slice, &dtype)).collect();
        self.draft.push(home, &entry.name, dtype, entry.shape.clone(), parts);
    }

    /// Qwen2's attention wants biases of query, key and value; others have none, which is zero.
    fn zero_bias(&mut self, home: usize, entry: &TensorEntry, suffix: &str) {
        let Some(stem) = entry.name.strip_suffix(".weight") else {
            return;
        };
        let projects = ["q_proj", "k_proj", "v_proj"]
            .iter()
            .any(|p| suffix == format!("self_attn.{p}.weight"));
        let bias = format!("{stem}.bias");
        if !self.family.wants_bias || !projects || self.base.tensor(&bias).is_some() {
            return;
        }
        let rows = entry.shape.rows();
        let dtype = self.dtype(&entry.dtype);
        self.draft.push(home, &bias, dtype, Shape(vec![rows]), vec![Part::Fill { rows, bits: 0 }]);
    }

    /// The experts of a layer, its shared expert, and its routers.
    fn block(&mut self, home: usize, prefix: &str, gate_proj: &TensorEntry) {
        let dtype = self.dtype(&gate_proj.dtype);
        let Some(width) = gate_proj.shape.0.get(1).copied() else {
            self.problems.push(format!("tensor `{}` is no matrix", gate_proj.name));
            return;
        };
        let config = self.config;
        let mut made: Vec<[Option<(Shape, Part)>; 3]> = Vec::new();
        for expert in &config.experts {
            made.push([0, 1, 2].map(|i| self.projection(prefix, expert, i, &dtype)));
        }
        match self.layout {
            ExpertLayout::PerExpert => {
                for (e, projections) in made.into_iter().enumerate() {
                    for (i, projection) in projections.into_iter().enumerate() {
                        let Some((shape, part)) = projection else { continue };
                        let name = format!("{prefix}{}", self.family.expert(e, i));
                        self.draft.push(home, &name, dtype.clone(), shape, vec![part]);
                    }
                }
            }
            ExpertLayout::Fused => self.fused(home, prefix, made, &dtype),
        }
        for expert in &config.shared {
            for (i, projection) in PROJECTIONS.iter().enumerate() {
                let Some((shape, part)) = self.projection(prefix, expert, i, &dtype) else {
                    continue;
                };
                let name = format!("{prefix}{}.{projection}.weight", self.family.shared_prefix);
                self.draft.push(home, &name, dtype.clone(), shape, vec![part]);
            }
        }
        let router = format!("{prefix}{}", self.family.router(self.layout));
        self.router(home, &router, width, &dtype, false);
        if self.family.gated {
            let gate = format!("{prefix}{}_gate.weight", self.family.shared_prefix);
            self.router(home, &gate, width, &dtype, true);
        }
    }

    fn fused(
        &mut self,
        home: usize,
        prefix: &str,
        made: Vec<[Option<(Shape, Part)>; 3]>,
        dtype: &Dtype,
    ) {
        let experts = made.len() as u64;
        let (mut both, mut down) = (Vec::new(), Vec::new());
        let mut shapes = None;
        for projections in made {
            let [Some((rows, gate)), Some((_, up)), Some((down_shape, last))] = projections else {
                return;
            };
            both.extend([gate, up]);
            down.push(last);
            shapes = Some((rows, down_shape));
        }
        let Some((Shape(rows), Shape(columns))) = shapes else {
            return;
        };
        if let ([inner, width], [out, _]) = (rows.as_slice(), columns.as_slice()) {
            let name = format!("{prefix}mlp.experts.gate_up_proj");
            let shape = Shape(vec![experts, 2 * inner, *width]);
            self.draft.push(home, &name, dtype.clone(), shape, both);
            let name = format!("{prefix}mlp.experts.down_proj");
            let shape = Shape(vec![experts, *out, *inner]);
            self.draft.push(home, &name, dtype.clone(), shape, down);
        }
    }

    /// A projection of an expert's model; a problem if it is not like the base model's.
    fn projection(
        &mut self,
        prefix: &str,
        expert: &ExpertOf,
        projection: usize,
        dtype: &Dtype,
    ) -> Option<(Shape, Part)> {
        let name = format!("{prefix}mlp.{}.weight", PROJECTIONS[projection]);
        let (_, model) = self.bound.iter().find(|(path, _)| *path == expert.model)?;
        let (model, at) = (*model, &expert.at);
        let Some((shape, stretches)) = locate(model, &name) else {
            self.problems.push(format!("{at}: tensor `{name}` is missing in `{}`", model.name()));
            return None;
        };
        let wanted = locate(self.base, &name).map(|(shape, _)| shape);
        if wanted.as_ref() != Some(&shape) {
            let wanted = wanted.map_or("nothing".to_owned(), |shape| shape.to_string());
            self.problems
                .push(format!("{at}: tensor `{name}` is {shape}, in the base model {wanted}"));
            return None;
        }
        if scale_of(model, &name).is_some() {
            self.problems.push(format!("{at}: tensor `{name}` is quantised"));
            return None;
        }
        let role = if std::ptr::eq(model, self.base) { "base" } else { "expert" };
        let slice = self.draft.slices(role, &stretches).pop()?;
        let scale = expert.residual_scale.filter(|_| projection == 2);
        if (slice.dtype != *dtype || scale.is_some()) && !slice.dtype.is_float() {
            self.problems
                .push(format!("{at}: tensor `{name}` ({}) cannot be computed on", slice.dtype));
            return None;
        }
        Some((shape, scaled(slice, dtype, scale)))
    }

    /// A router, or the gate of the shared expert.
    fn router(&mut self, home: usize, name: &str, width: u64, dtype: &Dtype, shared: bool) {
        let count =
            if shared { self.config.shared.len() } else { self.config.experts.len() } as u64;
        let parts = match &self.routers.embedding {
            None => {
                let uniform = self.config.gates == GateMode::UniformRandom;
                vec![gates::random(name, count, width, self.routers.seed, uniform)]
            }
            Some(embedding) => {
                let gates = if shared { &self.routers.shared } else { &self.routers.experts };
                gates.iter().map(|gate| embedding.part(&mut self.draft, "base", gate)).collect()
            }
        };
        self.draft.push(home, name, dtype.clone(), Shape(vec![count, width]), parts);
    }
}

/// A slice times a factor, in a dtype.
fn scaled(slice: Slice, dtype: &Dtype, factor: Option<f64>) -> Part {
    match factor {
        None => as_dtype(slice, dtype),
        Some(factor) => {
            Part::Blend(Box::new(Blend::sum(None, vec![Term::new(slice, factor)], 1.0)))
        }
    }
}
