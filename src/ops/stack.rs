//! A model whose decoder layers are those of another in some order: left out, repeated, or silenced.

use super::draft::{Derived, Draft};
use crate::checkpoint::{Checkpoint, Role, keep_layers, locate};
use crate::error::{Error, Result};
use crate::format::{LayerMap, TensorEntry};
use crate::plan::{Part, Plan};

/// A layer of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Placed {
    /// The layer of the model that it is, from 0.
    pub(super) layer: u64,
    /// Whether what it adds to the residual stream is zero, so that it hands on what it is given.
    pub(super) silent: bool,
}

impl Placed {
    /// The layer as it is.
    pub(super) fn whole(layer: u64) -> Self {
        Self { layer, silent: false }
    }

    /// A copy that hands on what it is given.
    pub(super) fn silent(layer: u64) -> Self {
        Self { layer, silent: true }
    }
}

impl Draft {
    /// Finishes the plan of `model` with this stack of layers, renumbered from 0 on, and a config that describes them.
    ///
    /// A layer that occurs more than once lies in the shard of the layer it is a copy of. Silent layers must have been
    /// checked with [`Checkpoint::check_silenceable`].
    pub(super) fn stack(
        mut self,
        model: &Checkpoint,
        stack: &[Placed],
        shard_size: Option<u64>,
    ) -> Result<Plan> {
        let layers: Vec<u64> = stack.iter().map(|placed| placed.layer).collect();
        let everything = layers.iter().copied().eq(0..model.layers());
        self.parent("model", model);
        let numbers = layers.iter().map(|layer| layer + 1).collect();
        self.plan().layer_map = Some(LayerMap { of: model.layers(), layers: numbers });

        let mut places = vec![Vec::new(); usize::try_from(model.layers()).unwrap_or(0)];
        for (place, placed) in (0_u64..).zip(stack) {
            if let Some(list) = usize::try_from(placed.layer).ok().and_then(|at| places.get_mut(at))
            {
                list.push((place, placed.silent));
            }
        }
        let mut dropped = 0_u64;
        for (home, entry) in model.names_in_file_order() {
            match model.anatomy().role(&entry.name) {
                Role::Layer(layer) => {
                    let places = usize::try_from(layer).ok().and_then(|at| places.get(at));
                    for (place, silent) in places.into_iter().flatten() {
                        let name = model.anatomy().renumbered(&entry.name, *place);
                        let zeroed = *silent && model.writes_residual(&entry.name);
                        self.push_copy(model, home, entry, &name, zeroed);
                    }
                }
                Role::MultiToken if !everything => dropped += 1,
                _ => self.push_copy(model, home, entry, &entry.name, false),
            }
        }
        if dropped > 0 {
            self.note(format!("{dropped} tensors of multi-token prediction layers were left out"));
        }
        let mut derived = Derived { shard_size, ..Derived::from(model, "model") };
        if let Some(config) = model.config() {
            let kept = keep_layers(config, model.anatomy(), &layers)
                .map_err(|problem| Error::Config { path: model.config_path(), problem })?;
            for note in kept.notes {
                self.note(note);
            }
            derived.config = Some(kept.config);
        }
        self.finish(&derived)
    }

    /// A tensor under a name of the output, or zeros in its place.
    fn push_copy(
        &mut self,
        model: &Checkpoint,
        home: usize,
        entry: &TensorEntry,
        name: &str,
        zeroed: bool,
    ) {
        let (dtype, shape) = (entry.dtype.clone(), entry.shape.clone());
        let parts = if zeroed {
            // Every dtype of whole bytes spells zero with zero bits.
            vec![Part::Fill { rows: shape.rows(), bits: 0 }]
        } else {
            let stretches = locate(model, &entry.name).map(|(_, s)| s).unwrap_or_default();
            self.slices("model", &stretches).into_iter().map(Part::Copy).collect()
        };
        self.push(home, name, dtype, shape, parts);
    }
}
