//! Where the tensors of an adapter belong in a model: each finds its place, or is a problem.

use std::collections::{BTreeMap, BTreeSet};

use super::super::recipe::{Place, Product, Recipe};
use super::super::{Checkpoint, Role};
use super::Adapter;
use crate::error::{Error, Result};
use crate::format::{Shape, TensorEntry};

/// What PEFT's wrappers put before the names of the model's modules.
const WRAPPERS: &[&str] = &["base_model.model.", "base_model."];
/// What it puts between a module and its tensors for modules that are trained whole.
const SAVED: &[&str] = &[".modules_to_save.default.", ".modules_to_save.", BASE_LAYER];
/// The module beneath a product, saved where it may have changed: embeddings always are.
const BASE_LAYER: &str = ".base_layer.";

/// The two matrices of a module.
#[derive(Default)]
struct Pair<'a> {
    down: Option<&'a TensorEntry>,
    up: Option<&'a TensorEntry>,
    embedding: bool,
}

/// What a tensor of an adapter is.
enum Kind<'a> {
    Down { module: &'a str, embedding: bool },
    Up { module: &'a str, embedding: bool },
    Whole(String),
    Unknown(&'static str),
}

/// The product of one module.
#[derive(Clone, Debug)]
pub struct ModuleFactors {
    /// Name of the module in the model.
    pub module: String,
    /// `[rank, in]`.
    pub down: TensorEntry,
    /// `[out, rank]`.
    pub up: TensorEntry,
    /// `alpha / r`, or what the settings make of it.
    pub scale: f64,
}

impl Adapter {
    /// All of its products.
    ///
    /// # Errors
    /// Every tensor that is no part of a product on a matrix.
    pub fn factors(&self) -> Result<Vec<ModuleFactors>, Vec<String>> {
        let mut problems = Vec::new();
        let mut pairs: BTreeMap<&str, Pair<'_>> = BTreeMap::new();
        for entry in &self.shard().header.tensors {
            match kind(&entry.name) {
                Kind::Down { module, embedding: false } => {
                    pairs.entry(module).or_default().down = Some(entry);
                }
                Kind::Up { module, embedding: false } => {
                    pairs.entry(module).or_default().up = Some(entry);
                }
                Kind::Unknown(why) => problems.push(format!("`{}`: {why}", entry.name)),
                _ => problems.push(format!("`{}` is no product on a matrix", entry.name)),
            }
        }
        let mut found = Vec::new();
        for (module, pair) in pairs {
            let (Some(down), Some(up)) = (pair.down, pair.up) else {
                problems.push(format!("`{module}` has one matrix instead of two"));
                continue;
            };
            let fits =
                matches!((&down.shape.0[..], &up.shape.0[..]), ([r, _], [_, same]) if r == same);
            match self.settings().scale(module, down.shape.rows()) {
                Ok(scale) if fits && down.dtype.is_float() && up.dtype.is_float() => {
                    let (module, down, up) = (module.to_owned(), down.clone(), up.clone());
                    found.push(ModuleFactors { module, down, up, scale });
                }
                Ok(_) => problems.push(format!("`{module}`: its matrices do not fit together")),
                Err(why) => problems.push(format!("`{module}`: {why}")),
            }
        }
        if problems.is_empty() { Ok(found) } else { Err(problems) }
    }
}

impl Checkpoint {
    /// The checkpoint as its values with adapters applied, each with a weight: `W + weight * scale * B A`, one after the other.
    ///
    /// # Errors
    /// Tensors of an adapter that have no place in the model, all at once.
    pub fn with_adapters(&self, adapters: &[(&Adapter, f64)]) -> Result<Self> {
        let mut view = self.as_values()?.into_owned();
        let mut problems = Vec::new();
        let mut replaced = BTreeSet::new();
        let structure = view.structure();
        view.structure = Some(structure);
        for (adapter, weight) in adapters {
            let mut told = view.adapt(adapter, *weight, &mut replaced);
            problems.append(&mut told);
            view.adapters.push(adapter.as_parent());
            view.name = format!("{}+{}", view.name, adapter.name());
        }
        if problems.is_empty() {
            return Ok(view);
        }
        Err(Error::Mismatch {
            what: format!("the adapter does not fit `{}`", self.name()),
            problems,
            hint: "give the model that the adapter was trained on (`base_model_name_or_path` in its adapter_config.json)".into(),
        })
    }

    fn adapt(
        &mut self,
        adapter: &Adapter,
        weight: f64,
        replaced: &mut BTreeSet<String>,
    ) -> Vec<String> {
        let mut problems = Vec::new();
        let mut pairs: BTreeMap<&str, Pair<'_>> = BTreeMap::new();
        let shard = adapter.shard();
        for entry in &shard.header.tensors {
            match kind(&entry.name) {
                Kind::Down { module, embedding } => {
                    let pair = pairs.entry(module).or_default();
                    (pair.down, pair.embedding) = (Some(entry), embedding);
                }
                Kind::Up { module, embedding } => {
                    let pair = pairs.entry(module).or_default();
                    (pair.up, pair.embedding) = (Some(entry), embedding);
                }
                Kind::Whole(name) => {
                    if let Err(why) = self.replace(adapter, entry, &name, weight, replaced) {
                        problems.push(format!("`{}`: {why}", entry.name));
                    }
                }
                Kind::Unknown(why) => problems.push(format!("`{}`: {why}", entry.name)),
            }
        }
        for (module, pair) in pairs {
            if let Err(why) = self.add(adapter, module, &pair, weight) {
                problems.push(format!("`{module}` of `{}`: {why}", adapter.name()));
            }
        }
        problems
    }

    /// A product on a module's weight.
    fn add(
        &mut self,
        adapter: &Adapter,
        module: &str,
        pair: &Pair<'_>,
        weight: f64,
    ) -> Result<(), String> {
        let (Some(down), Some(up)) = (pair.down, pair.up) else {
            let missing = if pair.down.is_none() { "lora_A" } else { "lora_B" };
            return Err(format!("its `{missing}` is missing"));
        };
        let (&[rank, inner], &[outer, same]) = (&down.shape.0[..], &up.shape.0[..]) else {
            return Err(format!(
                "products of shapes {} and {} are no matrices",
                up.shape, down.shape
            ));
        };
        if rank != same || rank == 0 {
            return Err(format!("shapes {} and {} are of different ranks", up.shape, down.shape));
        }
        if let Some(odd) = [down, up].into_iter().find(|entry| !entry.dtype.is_float()) {
            return Err(format!("it is {}, not a float", odd.dtype));
        }
        let scale = adapter.settings().scale(module, rank)? * weight;
        let name = self.find_place(&format!("{module}.weight"))?;
        let (home, entry) = self.tensor(&name).ok_or("it has no place")?;
        if !entry.dtype.is_float() {
            return Err(format!("the model's `{name}` is {}, not a float", entry.dtype));
        }
        let (normal, swapped) = (Shape(vec![outer, inner]), Shape(vec![inner, outer]));
        let prefers = pair.embedding || adapter.settings().fan_in_fan_out;
        let transposed = if prefers && entry.shape == swapped {
            true
        } else if entry.shape == normal && !pair.embedding {
            false
        } else {
            let made = if pair.embedding { swapped } else { normal };
            return Err(format!("its product is {made}, the model's `{name}` is {}", entry.shape));
        };
        let plain = Recipe::plain(Place::of(home, entry));
        let shard = adapter.shard();
        let (down, up) = (Place::of(shard, down), Place::of(shard, up));
        let recipe = self.recipes.entry(name).or_insert(plain);
        recipe.products.push(Product { down, up, scale, transposed });
        Ok(())
    }

    /// A tensor that stands in for the model's.
    fn replace(
        &mut self,
        adapter: &Adapter,
        entry: &TensorEntry,
        name: &str,
        weight: f64,
        replaced: &mut BTreeSet<String>,
    ) -> Result<(), String> {
        let name = self.find_place(name)?;
        let (_, old) = self.tensor(&name).ok_or("it has no place")?;
        if old.shape != entry.shape {
            return Err(format!(
                "it replaces the model's `{name}`, which is {} instead of {}",
                old.shape, entry.shape
            ));
        }
        if !old.dtype.is_float() || !entry.dtype.is_float() {
            return Err(format!("{} cannot replace {}", entry.dtype, old.dtype));
        }
        #[expect(clippy::float_cmp, reason = "only an exact 1 leaves no doubt")]
        if weight != 1.0 && !entry.name.contains(&format!("{BASE_LAYER}weight")) {
            return Err(format!(
                "it replaces the model's `{name}` whole, which a weight of {weight} does not say how to"
            ));
        }
        let touched = self.recipes.get(&name).is_some_and(|recipe| !recipe.products.is_empty());
        if touched || !replaced.insert(name.clone()) {
            return Err(format!(
                "it replaces the model's `{name}`, which another adapter changes too"
            ));
        }
        self.recipes.insert(name, Recipe::plain(Place::of(adapter.shard(), entry)));
        Ok(())
    }

    /// The model's tensor of a name, or the only one whose name ends so: adapters of bare models lack a prefix.
    fn find_place(&self, name: &str) -> Result<String, String> {
        if self.tensor(name).is_some() {
            return Ok(name.to_owned());
        }
        let end = format!(".{name}");
        let mut matching = self.tensors().map(|(name, _)| name).filter(|own| own.ends_with(&end));
        match (matching.next(), matching.next()) {
            (Some(own), None) => Ok(own.to_owned()),
            (Some(_), Some(_)) => Err(format!("the model has several tensors `*.{name}`")),
            _ if self.anatomy().role(name) == Role::Head && self.is_tied() => {
                Err("the model ties its head to the embedding, so it has no place of its own"
                    .into())
            }
            _ => Err(format!("the model has no tensor `{name}`")),
        }
    }
}

/// What a tensor of a module is.
type Make = fn(&str) -> Kind<'_>;

fn kind(name: &str) -> Kind<'_> {
    let inner = WRAPPERS.iter().find_map(|wrapper| name.strip_prefix(wrapper)).unwrap_or(name);
    let ends: [(&str, Make); 4] = [
        (".lora_A.weight", |module| Kind::Down { module, embedding: false }),
        (".lora_B.weight", |module| Kind::Up { module, embedding: false }),
        (".lora_embedding_A", |module| Kind::Down { module, embedding: true }),
        (".lora_embedding_B", |module| Kind::Up { module, embedding: true }),
    ];
    for (end, make) in ends {
        if let Some(module) = inner.strip_suffix(end) {
            return make(module);
        }
    }
    if inner.contains("lora_magnitude_vector") {
        return Kind::Unknown(
            "DoRA scales whole columns by a magnitude vector, which is not supported yet",
        );
    }
    if inner.contains(".lora_") {
        return Kind::Unknown("it is no part of a plain product of two matrices");
    }
    let saved = SAVED.iter().find_map(|mark| inner.split_once(mark));
    Kind::Whole(match saved {
        Some((module, tensor)) => format!("{module}.{tensor}"),
        None => inner.to_owned(),
    })
}
