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

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use tempfile::TempDir;

    use super::*;

    /// A checkpoint of these names, each of one element.
    fn model(config: &Value, names: &[&str]) -> Checkpoint {
        let dir = TempDir::new().unwrap();
        let tensors: serde_json::Map<String, Value> = names
            .iter()
            .enumerate()
            .map(|(i, name)| {
                let at = i * 4;
                let entry = json!({"dtype": "F32", "shape": [1], "data_offsets": [at, at + 4]});
                ((*name).to_owned(), entry)
            })
            .collect();
        let header = Value::Object(tensors).to_string();
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.bytes());
        bytes.resize(bytes.len() + names.len() * 4, 0);
        std::fs::write(dir.path().join("model.safetensors"), bytes).unwrap();
        std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        Checkpoint::open(dir.path()).unwrap()
    }

    /// Name, layers and whether these are the stack of the anatomy.
    fn told(modules: &Modules) -> Vec<(&str, Option<&str>, u64, bool)> {
        let told = |m| {
            let Module { name, layers, count, is_stack, .. }: &Module = m;
            (name.as_str(), layers.as_deref(), *count, *is_stack)
        };
        modules.all().iter().map(told).collect()
    }

    #[test]
    fn families_have_their_modules() {
        let config = json!({"model_type": "qwen3_vl", "text_config": {"model_type": "qwen3_vl_text", "num_hidden_layers": 2}});
        let names = [
            "model.language_model.layers.0.a.weight",
            "model.language_model.layers.1.a.weight",
            "model.language_model.embed_tokens.weight",
            "lm_head.weight",
            "model.visual.blocks.0.b.weight",
            "model.visual.merger.norm.weight",
            "model.visual.deepstack_merger_list.0.norm.weight",
            "model.visual.deepstack_merger_list.1.norm.weight",
        ];
        let opened = model(&config, &names);
        let modules = Modules::of(&opened);
        let merger = "model.visual.deepstack_merger_list.";
        assert_eq!(
            told(&modules),
            [
                ("text_decoder", Some("model.language_model.layers."), 2, true),
                ("multi_modal_projector", Some(merger), 2, false),
                ("vision_tower", Some("model.visual.blocks."), 1, false),
            ]
        );
        let places: Vec<_> =
            names.iter().map(|name| (modules.at(name), modules.layer(name))).collect();
        let text = [(0, Some(0)), (0, Some(1)), (0, None), (0, None)];
        assert_eq!(places[..4], text);
        assert_eq!(places[4..], [(2, Some(0)), (1, None), (1, Some(0)), (1, Some(1))]);
        // Without a tower there is one module.
        assert_eq!(Modules::of(&model(&config, &names[..4])).all()[0].name, "default");
    }

    #[test]
    fn parts_with_gaps_in_their_numbers_are_no_layers() {
        let config = json!({"model_type": "qwen2_vl", "num_hidden_layers": 1});
        let names =
            ["model.layers.0.a.weight", "visual.merger.mlp.0.weight", "visual.merger.mlp.2.weight"];
        let modules = Modules::of(&model(&config, &names));
        assert_eq!(
            told(&modules),
            [
                ("text_decoder", Some("model.layers."), 1, true),
                ("multi_modal_projector", None, 0, false),
            ]
        );
    }

    #[test]
    fn encoders_and_decoders_count_apart() {
        let config = json!({"model_type": "t5", "is_encoder_decoder": true, "num_layers": 1, "num_decoder_layers": 2});
        let names = [
            "shared.weight",
            "encoder.block.0.layer.0.a.weight",
            "decoder.block.0.layer.0.a.weight",
            "decoder.block.1.layer.0.a.weight",
            "decoder.final_layer_norm.weight",
        ];
        let opened = model(&config, &names);
        assert_eq!((opened.layers(), opened.anatomy().config_layers()), (2, Some(2)));
        let modules = Modules::of(&opened);
        assert_eq!(
            told(&modules),
            [
                ("shared", None, 0, false),
                ("decoder", Some("decoder.block."), 2, true),
                ("encoder", Some("encoder.block."), 1, false),
            ]
        );
        assert_eq!((modules.at(names[4]), modules.layer(names[4])), (1, None));
    }

    #[test]
    fn modules_of_unknown_families_are_their_stacks() {
        let config = json!({"model_type": "newvl", "num_hidden_layers": 2});
        let names = [
            "language_model.model.layers.0.a.weight",
            "language_model.model.layers.1.a.weight",
            "vision_tower.vision_model.encoder.layers.0.b.weight",
            "projector.weight",
        ];
        let modules = Modules::of(&model(&config, &names));
        assert_eq!(
            told(&modules),
            [
                ("default", None, 0, false),
                ("language_model.model.layers", Some("language_model.model.layers."), 2, true),
                (
                    "vision_tower.vision_model.encoder.layers",
                    Some("vision_tower.vision_model.encoder.layers."),
                    1,
                    false
                ),
            ]
        );
        for (name, found) in [
            ("default", Some(0)),
            ("model.language_model.layers", Some(1)),
            ("model.vision_tower.encoder.layers", Some(2)),
            ("text_decoder", None),
        ] {
            assert_eq!(modules.find(name), found, "{name}");
        }
        let plain = model(
            &json!({"model_type": "llama", "num_hidden_layers": 1}),
            &["model.layers.0.a.weight"],
        );
        assert_eq!(told(&Modules::of(&plain)), [("default", Some("model.layers."), 1, true)]);
    }
}
