//! The modules that a model is built of, by the names that mergekit's configurations call them: text decoder, vision
//! tower and projector, or encoder and decoder.
//!
//! Families of [`KNOWN`] have names of their own. Of all others every numbered stack of layers is a module, called what stands before
//! the number (`model.vision_tower.encoder.layers`), and what is in none is `default`. A model of one stack is one module, `default`.

use std::collections::BTreeMap;

use super::Checkpoint;
use super::architecture::{Role, first_number};

/// A module and what its tensors' names begin with.
type Named = (&'static str, &'static [&'static str]);

/// Families by the `model_type` of the whole model. The longest beginning that fits counts; what none fits belongs to the first module.
const KNOWN: &[(&[&str], &[Named])] = &[
    (
        &["gemma3", "mistral3"],
        &[
            ("text_decoder", &["language_model.", "model.language_model.", "lm_head."]),
            ("multi_modal_projector", &["multi_modal_projector.", "model.multi_modal_projector."]),
            ("vision_tower", &["vision_tower.", "model.vision_tower."]),
        ],
    ),
    (
        &["llama4"],
        &[
            ("text_decoder", &["language_model.", "model.language_model.", "lm_head."]),
            ("multi_modal_projector", &["multi_modal_projector.", "model.multi_modal_projector."]),
            ("vision_model", &["vision_model.", "model.vision_model."]),
        ],
    ),
    (
        &["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"],
        &[
            ("text_decoder", &[]),
            (
                "multi_modal_projector",
                &[
                    "visual.merger.",
                    "model.visual.merger.",
                    "visual.deepstack_merger_list.",
                    "model.visual.deepstack_merger_list.",
                ],
            ),
            ("vision_tower", &["visual.", "model.visual."]),
        ],
    ),
    (
        &["t5"],
        &[
            ("shared", &["shared.", "lm_head."]),
            ("decoder", &["decoder."]),
            ("encoder", &["encoder."]),
        ],
    ),
    (
        &["whisper"],
        &[
            ("decoder", &["model.decoder.", "decoder.", "proj_out."]),
            ("encoder", &["model.encoder.", "encoder."]),
        ],
    ),
];

/// What is in no module of its own.
const DEFAULT: &str = "default";

/// A part of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// What configurations call it.
    pub name: String,
    /// What stands before the number of its layers, if it has some.
    pub layers: Option<String>,
    /// How many layers it has.
    pub count: u64,
    /// Whether its layers are those of the [`Anatomy`](super::Anatomy).
    pub is_stack: bool,
    begins: Vec<String>,
}

/// All modules of a model, of which each tensor belongs to one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Modules(Vec<Module>);

/// Numbers and tensors of the names that begin alike.
#[derive(Default)]
struct Stack {
    tensors: u64,
    indices: std::collections::BTreeSet<u64>,
}

impl Module {
    fn new(name: &str, begins: Vec<String>) -> Self {
        Self { name: name.to_owned(), layers: None, count: 0, is_stack: false, begins }
    }

    fn take(&mut self, layers: &str, count: u64, model: &Checkpoint) {
        self.is_stack = layers == model.anatomy().layer_prefix;
        self.count = if self.is_stack { model.layers() } else { count };
        self.layers = Some(layers.to_owned());
    }
}

impl Modules {
    /// The modules of a model that have tensors.
    pub fn of(model: &Checkpoint) -> Self {
        let stacks = stacks(model);
        let family = model.config().and_then(|config| config.get("model_type")?.as_str());
        let known = KNOWN.iter().find(|(names, _)| family.is_some_and(|own| names.contains(&own)));
        let modules = match known {
            Some((_, named)) => Self::known(model, named, &stacks),
            None => Self::inferred(model, &stacks),
        };
        if modules.0.len() > 1 { modules } else { Self::one(model) }
    }

    /// A model that is taken for one module, whatever it has.
    pub fn one(model: &Checkpoint) -> Self {
        let mut module = Module::new(DEFAULT, Vec::new());
        if !model.anatomy().layer_prefix.is_empty() {
            module.take(&model.anatomy().layer_prefix, model.layers(), model);
        }
        Self(vec![module])
    }

    fn known(model: &Checkpoint, named: &[Named], stacks: &BTreeMap<String, Stack>) -> Self {
        let module = |(name, begins): &Named| {
            Module::new(name, begins.iter().map(|begin| (*begin).to_owned()).collect())
        };
        let mut modules = Self(named.iter().map(module).collect());
        for at in 0..modules.0.len() {
            let own = |(prefix, _): &(&String, &Stack)| modules.at(prefix) == at;
            // What is numbered with gaps are parts of one thing, no layers.
            let whole = |(_, s): &(&String, &Stack)| {
                s.indices.last().map(|last| last + 1) == Some(s.indices.len() as u64)
            };
            let stack = |(prefix, _): &(&String, &Stack)| **prefix == model.anatomy().layer_prefix;
            let mine = || stacks.iter().filter(own);
            let largest = mine().filter(whole).max_by_key(|(_, stack)| stack.tensors);
            if let Some((prefix, found)) = mine().find(stack).or(largest) {
                let (prefix, count) = (prefix.clone(), found.indices.len() as u64);
                modules.0[at].take(&prefix, count, model);
            }
        }
        let mut used = vec![false; modules.0.len()];
        model.tensors().for_each(|(name, _)| used[modules.at(name)] = true);
        let mut used = used.into_iter();
        modules.0.retain(|_| used.next().unwrap_or(true));
        modules
    }

    fn inferred(model: &Checkpoint, stacks: &BTreeMap<String, Stack>) -> Self {
        let mut modules = vec![Module::new(DEFAULT, Vec::new())];
        if stacks.len() > 1 {
            for (prefix, stack) in stacks {
                let mut module = Module::new(prefix.trim_end_matches('.'), vec![prefix.clone()]);
                let count = stack.indices.last().map_or(0, |last| last + 1);
                module.take(prefix, count, model);
                modules.push(module);
            }
        }
        Self(modules)
    }

    /// All of them.
    pub fn all(&self) -> &[Module] {
        &self.0
    }

    /// The module of a name. Names of wrapped models count as well with their wrappers in another order:
    /// `model.language_model.layers` is `language_model.model.layers`.
    pub fn find(&self, name: &str) -> Option<usize> {
        let exact = self.0.iter().position(|module| module.name == name);
        exact.or_else(|| self.0.iter().position(|module| plain(&module.name) == plain(name)))
    }

    /// The module that a tensor belongs to.
    pub fn at(&self, tensor: &str) -> usize {
        let begins = self.0.iter().enumerate();
        let begins = begins.flat_map(|(at, m)| m.begins.iter().map(move |begin| (at, begin)));
        let fits = begins.filter(|(_, begin)| tensor.starts_with(begin.as_str()));
        fits.max_by_key(|(_, begin)| begin.len()).map_or(0, |(at, _)| at)
    }

    /// The layer within its module that a tensor belongs to, from 0.
    pub fn layer(&self, tensor: &str) -> Option<u64> {
        let prefix = self.0[self.at(tensor)].layers.as_deref()?;
        first_number(tensor).filter(|(before, ..)| *before == prefix).map(|(_, layer, _)| layer)
    }
}

/// Numbered stacks by what stands before the number.
fn stacks(model: &Checkpoint) -> BTreeMap<String, Stack> {
    let mut stacks: BTreeMap<String, Stack> = BTreeMap::new();
    let names = model.tensors().map(|(name, _)| name);
    for name in names.filter(|name| model.anatomy().role(name) != Role::MultiToken) {
        if let Some((prefix, index, _)) = first_number(name) {
            let stack = stacks.entry(prefix.to_owned()).or_default();
            stack.tensors += 1;
            stack.indices.insert(index);
        }
    }
    stacks
}

/// A name without the wrappers whose order differs between versions of transformers.
fn plain(name: &str) -> String {
    let name = name.trim_end_matches('.');
    let name = name.strip_prefix("model.").unwrap_or(name);
    let name = name.replacen("language_model.model.", "language_model.", 1);
    name.replacen("vision_tower.vision_model.", "vision_tower.", 1)
}
