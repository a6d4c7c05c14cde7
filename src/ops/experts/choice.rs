//! Which experts a user means, layer by layer.

use std::collections::BTreeMap;

use crate::checkpoint::{Checkpoint, Experts, LayerSelector};
use crate::error::{Error, Result};

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

/// The experts that stay, from 0.
pub(super) struct Chosen {
    pub(super) by_layer: BTreeMap<u64, Vec<u64>>,
    /// How many each layer keeps.
    pub(super) count: u64,
}

impl Chosen {
    pub(super) fn resolve(model: &Checkpoint, all: &Experts, choice: &Choice) -> Result<Self> {
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
            let kept: Vec<u64> = if drops {
                every.iter().copied().filter(|expert| !named.contains(expert)).collect()
            } else {
                named
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
