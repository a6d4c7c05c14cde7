//! The output's layers and where they come from: a configuration bound to opened models.

use serde_json::{Map, Value};

use super::config::{Config, SliceOf, SourceOf};
use super::read::{Problems, below, suggestion};
use super::reference::Reference;
use crate::checkpoint::{Anatomy, Checkpoint, Module, Modules, keep_layers};

/// A run of output layers.
pub(super) struct Slice<'a> {
    pub(super) of: &'a SliceOf,
    pub(super) inputs: Vec<Input<'a>>,
    /// Which input is the base model.
    pub(super) base: Option<usize>,
    /// The module that it is of, by its number.
    pub(super) module: usize,
    /// Number of layers.
    pub(super) length: u64,
}

/// A model's part in a slice.
#[derive(Clone, Copy)]
pub(super) struct Input<'a> {
    pub(super) of: &'a SourceOf,
    pub(super) model: &'a Checkpoint,
    /// Its first layer, from 0.
    pub(super) first: u64,
}

impl<'a> Slice<'a> {
    /// The input whose tensors name the output's: `donor` if it is one of them.
    pub(super) fn template(&self, donor: &Checkpoint) -> Option<Input<'a>> {
        let own = self.inputs.iter().find(|input| std::ptr::eq(input.model, donor));
        own.or(self.inputs.first()).copied()
    }

    /// How far a layer is through the slice, from 0 to 1; a single layer is at its end.
    #[expect(clippy::cast_precision_loss, reason = "layer counts are small")]
    pub(super) fn progress(&self, layer: u64) -> f64 {
        match self.length {
            0 | 1 => 1.0,
            length => layer as f64 / (length - 1) as f64,
        }
    }
}

/// Binds every slice to its models; `donor` gives whole models their number of layers. Whole models are a slice for each of `modules`.
pub(super) fn bind<'a>(
    problems: &mut Problems,
    config: &'a Config,
    models: &[(&Reference, &'a Checkpoint)],
    donor: &Checkpoint,
    modules: &Modules,
) -> Vec<Slice<'a>> {
    let mut slices = Vec::new();
    for of in &config.slices {
        let Some(targets) = targets(problems, of, modules, donor) else { continue };
        for module in targets {
            let mut inputs = Vec::new();
            for source in &of.sources {
                let Some((_, model)) = models.iter().find(|(name, _)| **name == source.model)
                else {
                    continue;
                };
                if check(problems, source, model, donor, &modules.all()[module]) {
                    let first = source.layers.map_or(0, |(from, _)| from);
                    inputs.push(Input { of: source, model, first });
                }
            }
            let base = of.base.as_ref().or(config.base.as_ref());
            let base = inputs.iter().position(|input| Some(&input.of.model) == base);
            let range = of.sources.first().and_then(|source| source.layers);
            let length = range.map_or(modules.all()[module].count, |(from, to)| to - from);
            slices.push(Slice { of, inputs, base, module, length });
        }
    }
    slices
}

/// The modules that a slice of the document is of; none if there is a problem.
fn targets(
    problems: &mut Problems,
    of: &SliceOf,
    modules: &Modules,
    donor: &Checkpoint,
) -> Option<Vec<usize>> {
    let Some(name) = &of.module else { return Some((0..modules.all().len()).collect()) };
    let at = below("modules", name);
    let Some(found) = modules.find(name) else {
        let names: Vec<&str> = modules.all().iter().map(|module| module.name.as_str()).collect();
        let (model, near) = (donor.name(), suggestion(name, &names));
        problems.add(&at, format!("`{model}` has no such module{near}"));
        return None;
    };
    let module = &modules.all()[found];
    if !of.whole && !module.is_stack {
        let stack = modules.all().iter().find(|module| module.is_stack);
        let only =
            stack.map_or(String::new(), |s| format!(" (only of `{}`): give `models`", s.name));
        problems.unsupported(&of.at, format!("slices of `{}` are{only}", module.name));
        return None;
    }
    Some(vec![found])
}

/// Whether a model can be an input of slices of a module; problems if its layers are others.
fn check(
    problems: &mut Problems,
    source: &SourceOf,
    model: &Checkpoint,
    donor: &Checkpoint,
    module: &Module,
) -> bool {
    let (family, other) = (&model.anatomy().family, &donor.anatomy().family);
    if family != other && model.config().is_some() && donor.config().is_some() {
        let (name, donor) = (model.name(), donor.name());
        let what =
            format!("`{name}` is of the family {family}, `{donor}` of {other}: mixing them is");
        problems.unsupported(&source.at, what);
        return false;
    }
    let others = if module.is_stack { other_dimensions } else { other_sections };
    for what in others(model, donor) {
        problems.add(&source.at, what);
    }
    let layers = if module.is_stack {
        model.layers()
    } else {
        let modules = Modules::of(model);
        // What it lacks is told tensor by tensor.
        modules.find(&module.name).map_or(module.count, |at| modules.all()[at].count)
    };
    match source.layers {
        Some((_, to)) if to > layers => {
            let name = model.name();
            let what = format!("layer_range ends at {to}, `{name}` has {layers} layers");
            problems.add(&source.at, what);
        }
        None if layers != module.count => {
            let (name, other, count) = (model.name(), donor.name(), module.count);
            let of = if module.is_stack { String::new() } else { format!(" in `{}`", module.name) };
            let what = format!("`{name}` has {layers} layers{of}, `{other}` has {count}");
            problems.add(&source.at, what);
        }
        _ => {}
    }
    true
}

/// What of the donor's config is not true of a model's layers. Equal shapes alone do not tell: 8 heads of 64 are as large as 4 of 128.
fn other_dimensions(model: &Checkpoint, donor: &Checkpoint) -> Vec<String> {
    const KEYS: [&str; 12] = [
        "hidden_size",
        "n_embd",
        "intermediate_size",
        "num_attention_heads",
        "n_head",
        "num_key_value_heads",
        "head_dim",
        "num_local_experts",
        "num_heads",
        "d_kv",
        "encoder_attention_heads",
        "decoder_attention_heads",
    ];
    let number = |checkpoint: &Checkpoint, key: &str| {
        let config = checkpoint.config()?;
        let text = config.get("text_config").and_then(|text| text.as_object()).unwrap_or(config);
        text.get(key).filter(|value| value.is_number()).cloned()
    };
    let differs = |key: &&str| {
        let (own, donors) = (number(model, key)?, number(donor, key)?);
        let (name, other) = (model.name(), donor.name());
        (own != donors).then(|| format!("`{name}` has `{key}` {own}, `{other}` {donors}"))
    };
    KEYS.iter().filter_map(differs).collect()
}

/// What of the donor's config is not true of a model's towers, whose settings are in sections such as `vision_config`.
fn other_sections(model: &Checkpoint, donor: &Checkpoint) -> Vec<String> {
    const KEYS: [&str; 8] = [
        "hidden_size",
        "embed_dim",
        "intermediate_size",
        "num_attention_heads",
        "num_heads",
        "patch_size",
        "image_size",
        "spatial_merge_size",
    ];
    let (Some(theirs), Some(donors)) = (model.config(), donor.config()) else {
        return Vec::new();
    };
    let (name, other) = (model.name(), donor.name());
    let mut found = Vec::new();
    for (section, own) in donors {
        let Some(theirs) = theirs.get(section).filter(|theirs| theirs.is_object()) else {
            continue;
        };
        // Text models have a check of their own where they are merged.
        if !section.ends_with("_config")
            || model
                .anatomy()
                .count_key
                .as_ref()
                .is_some_and(|key| key.starts_with(section.as_str()))
        {
            continue;
        }
        for key in KEYS {
            let pair = (theirs.get(key), own.get(key));
            if let (Some(theirs), Some(own)) = pair
                && theirs.is_number()
                && theirs != own
            {
                found.push(format!("`{name}` has `{section}.{key}` {theirs}, `{other}` {own}"));
            }
        }
    }
    found
}

/// For every output layer the layer of `donor` that its config describes in the same words, so that cutting its
/// config to these describes the output. A problem for layers that it has no words for.
pub(super) fn described(
    problems: &mut Problems,
    slices: &[&Slice<'_>],
    donor: &Checkpoint,
) -> Vec<u64> {
    let own: Vec<_> = (0..donor.layers()).map(|layer| Description::of(donor, layer)).collect();
    let mut found = Vec::new();
    for slice in slices {
        let Some(input) = slice.template(donor) else { continue };
        for layer in input.first..input.first + slice.length {
            let here = found.len() as u64;
            if std::ptr::eq(input.model, donor) {
                found.push(layer);
                continue;
            }
            if donor.config().is_none() {
                found.push(here);
                continue;
            }
            let theirs = Description::of(input.model, layer);
            let alike = |layer: &u64| {
                let own = usize::try_from(*layer).ok().and_then(|at| own.get(at));
                matches!((own, &theirs), (Some(Some(own)), Some(theirs)) if own.is_like(theirs))
            };
            // The same place first, so that a stack in order stays one.
            let mut candidates = [here, layer].into_iter().chain(0..donor.layers());
            match candidates.find(alike) {
                Some(layer) => found.push(layer),
                None => {
                    let (name, donor) = (input.model.name(), donor.name());
                    problems.unsupported(
                        &input.of.at,
                        format!(
                            "layer {layer} of `{name}` is of a kind that the config of `{donor}` describes no layer as: joining such configs is"
                        ),
                    );
                    found.push(here);
                }
            }
        }
    }
    found
}

/// What a config says of one layer: the fields that a cut to that layer changes.
struct Description<'a> {
    whole: &'a Map<String, Value>,
    cut: Map<String, Value>,
}

impl<'a> Description<'a> {
    fn of(model: &'a Checkpoint, layer: u64) -> Option<Self> {
        let whole = model.config()?;
        let anatomy: &Anatomy = model.anatomy();
        Some(Self { whole, cut: keep_layers(whole, anatomy, &[layer]).ok()?.config })
    }

    fn is_like(&self, other: &Self) -> bool {
        let changed = |key: &&String| {
            self.whole.get(*key) != self.cut.get(*key)
                || other.whole.get(*key) != other.cut.get(*key)
        };
        let mut keys = self.cut.keys().chain(other.cut.keys()).filter(changed);
        keys.all(|key| self.cut.get(key) == other.cut.get(key))
    }
}
