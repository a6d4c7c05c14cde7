//! What a backend is asked to do, made from a stage and its input.

use std::collections::BTreeMap;
use std::path::{Path, absolute};

use crate::backend::BackendSettings;
use crate::backend::protocol::{
    DataFile, Destinations, Method, ModelSpec, PROTOCOL, Parallel, Resume, Sharding, Spec,
    TokenizerSpec, Trainable, TrainingStage,
};
use crate::checkpoint::{Anatomy, Checkpoint, LayerSelector, Role};
use crate::error::{IoContext as _, Result};
use crate::format::{Dtype, Shape};
use crate::pipeline::project::{Layers, StageTraining};
use crate::plan::Plan;

/// Everything a [`Spec`] is made of.
pub(super) struct Parts<'a> {
    pub(super) run: String,
    pub(super) model: &'a Checkpoint,
    pub(super) model_digest: String,
    pub(super) tokenizer: &'a Path,
    pub(super) tokenizer_digest: String,
    pub(super) training: &'a StageTraining,
    pub(super) trainable: Trainable,
    pub(super) data: Vec<DataFile>,
    pub(super) settings: &'a BackendSettings,
    pub(super) dir: &'a Path,
    pub(super) attempt: u32,
}

/// The spec of a stage.
pub(super) fn spec(parts: Parts<'_>) -> Result<Spec> {
    let whole = |path: &Path| absolute(path).at("find", path);
    let dir = whole(parts.dir)?;
    let training = parts.training;
    let mut extra = BTreeMap::new();
    if !training.extra.is_empty() {
        extra.insert(parts.settings.name.clone(), training.extra.clone().into());
    }
    let mut data = parts.data;
    for file in &mut data {
        file.path = whole(&file.path)?;
    }
    Ok(Spec {
        protocol: PROTOCOL,
        run: parts.run,
        stage: training.stage,
        attempt: parts.attempt,
        model: model_spec(parts.model, parts.model_digest)?,
        tokenizer: TokenizerSpec { dir: whole(parts.tokenizer)?, digest: parts.tokenizer_digest },
        trainable: parts.trainable,
        data,
        train: training.train.clone(),
        parallel: Parallel {
            gpus: parts.settings.gpus,
            nodes: parts.settings.nodes,
            sharding: sharding(parts.settings, training.stage),
        },
        out: Destinations {
            model: dir.join("trained"),
            work: dir.join("work"),
            events: dir.join("events.jsonl"),
            result: dir.join("result.json"),
        },
        save_every_steps: training.save_every,
        resume: Resume::Auto,
        extra,
    })
}

/// Few states are worth spreading in `pretrain`, where two layers are trained; everything is where all are.
fn sharding(settings: &BackendSettings, stage: TrainingStage) -> Sharding {
    match settings.sharding {
        Sharding::Auto if settings.gpus * settings.nodes < 2 => Sharding::Auto,
        Sharding::Auto if stage == TrainingStage::Pretrain => Sharding::Zero1,
        Sharding::Auto => Sharding::Zero3,
        chosen => chosen,
    }
}

fn model_spec(model: &Checkpoint, digest: String) -> Result<ModelSpec> {
    let text = |key: &str| {
        let value = model.config().and_then(|config| config.get(key)?.as_str());
        value.unwrap_or_default().to_owned()
    };
    let class = model
        .config()
        .and_then(|config| config.get("architectures")?.get(0)?.as_str())
        .and_then(|name| name.strip_suffix("ForCausalLM"))
        .map(|name| format!("{name}DecoderLayer"));
    let mut bytes: BTreeMap<String, u64> = BTreeMap::new();
    for (_, entry) in model.names_in_file_order() {
        *bytes.entry(entry.dtype.to_string()).or_default() += entry.range.end - entry.range.start;
    }
    let dtype = bytes.into_iter().max_by_key(|(_, bytes)| *bytes).map(|(dtype, _)| dtype);
    Ok(ModelSpec {
        dir: absolute(model.root()).at("find", model.root())?,
        family: text("model_type"),
        layer_class: class,
        layers: model.layers(),
        parameters: Tensors::of(model).parameters(|_| true),
        dtype: dtype.unwrap_or_default().to_ascii_lowercase(),
        tied: model.is_tied(),
        digest,
    })
}

/// The tensors of a model that is there, or that a plan will make.
pub(super) struct Tensors<'a> {
    /// As errors name the model.
    pub(super) name: &'a str,
    /// Which tensors are layers.
    pub(super) anatomy: &'a Anatomy,
    /// Decoder layers.
    pub(super) layers: u64,
    /// Names, dtypes, shapes.
    pub(super) entries: Vec<(&'a str, &'a Dtype, &'a Shape)>,
}

impl<'a> Tensors<'a> {
    pub(super) fn of(model: &'a Checkpoint) -> Self {
        let entries = model.names_in_file_order();
        Self {
            name: model.name(),
            anatomy: model.anatomy(),
            layers: model.layers(),
            entries: entries.map(|(_, e)| (e.name.as_str(), &e.dtype, &e.shape)).collect(),
        }
    }

    /// Those of a model that `plan` will extract from `base`.
    pub(super) fn planned(plan: &'a Plan, base: &'a Checkpoint) -> Self {
        let outputs = plan.tensors.iter();
        Self {
            name: "the detached model",
            anatomy: base.anatomy(),
            layers: plan.layer_map.as_ref().map_or(base.layers(), |map| map.layers.len() as u64),
            entries: outputs.map(|o| (o.name.as_str(), &o.dtype, &o.shape)).collect(),
        }
    }

    /// Parameters of the tensors that `pick` names.
    pub(super) fn parameters(&self, pick: impl Fn(&str) -> bool) -> u64 {
        let picked = self.entries.iter().filter(|(name, _, _)| pick(name));
        picked.filter_map(|(_, _, shape)| shape.elements()).sum()
    }
}

/// What of a model a stage trains.
///
/// # Errors
/// A layer that the model does not have.
pub(super) fn trainable(
    model: &Tensors<'_>,
    training: &StageTraining,
    project: &Layers,
) -> Result<Trainable> {
    let layers: Option<Vec<u64>> = match training.method {
        Method::Full | Method::Lora => None,
        Method::Layers => {
            let chosen = training.layers.as_ref().unwrap_or(project);
            let selector: LayerSelector = chosen.to_string().parse()?;
            let mut layers = selector.resolve(model.layers, model.name)?;
            layers.sort_unstable();
            Some(layers)
        }
    };
    let mut prefix = None;
    let mut tensors = Vec::new();
    for &(name, dtype, shape) in &model.entries {
        let layer = match model.anatomy.role(name) {
            Role::Layer(layer) => Some(layer),
            _ => None,
        };
        if let (None, Some((layer, suffix))) = (&prefix, model.anatomy.layer_suffix(name)) {
            prefix = name.strip_suffix(&format!("{layer}.{suffix}"));
        }
        let picked = match (training.method, &layers) {
            (Method::Full, _) => dtype.is_float(),
            (Method::Lora, _) => layer.is_some() && shape.0.len() == 2,
            (Method::Layers, layers) => {
                layer.is_some_and(|l| layers.as_ref().is_some_and(|all| all.contains(&l)))
            }
        };
        if picked {
            tensors.push(name.to_owned());
        }
    }
    let prefix = escaped(prefix.unwrap_or_default());
    let regex = match &layers {
        None if training.method == Method::Full => ".+".to_owned(),
        None => format!(r"^{prefix}\d+\."),
        Some(all) if all.len() as u64 == model.layers => format!(r"^{prefix}\d+\."),
        Some(some) => {
            let numbers: Vec<String> = some.iter().map(u64::to_string).collect();
            format!(r"^{prefix}({})\.", numbers.join("|"))
        }
    };
    let lora = (training.method == Method::Lora).then(|| training.lora.clone());
    Ok(Trainable { method: training.method, regex: vec![regex], tensors, lora })
}

fn escaped(text: &str) -> String {
    text.replace('.', r"\.")
}
