//! Saved task vectors as inputs: differences that need not be taken.

use super::config::Config;
use super::methods::Kind;
use super::read::{Problems, below};
use super::reference::Reference;
use crate::checkpoint::Checkpoint;
use crate::ops::vector::is_saved_vector;

/// Whether the models besides the base are saved vectors. Problems where that cannot be merged.
pub(super) fn are_vectors(
    problems: &mut Problems,
    config: &Config,
    models: &[(&Reference, &Checkpoint)],
) -> bool {
    let vectors: Vec<_> = models.iter().filter(|(_, model)| is_saved_vector(model)).collect();
    if vectors.is_empty() {
        return false;
    }
    let kind = config.method.kind;
    if !kind.adds_vectors() && kind != Kind::Ram {
        let name = config.method.name;
        for (reference, _) in &vectors {
            let what = format!(
                "`{reference}` is a saved vector, not a model: {name} cannot add it to a base (task_arithmetic, ties, dare_linear, .. can)"
            );
            problems.add("", what);
        }
        return true;
    }
    for slice in &config.slices {
        let base = slice.base.as_ref().or(config.base.as_ref());
        for source in &slice.sources {
            let is_base = Some(&source.model) == base;
            let is_vector = vectors.iter().any(|(reference, _)| **reference == source.model);
            let at = if slice.whole { &source.at } else { &below(&source.at, "model") };
            if is_base && is_vector {
                let what =
                    format!("`{}` is a saved vector: the base must be a model", source.model);
                problems.add(at, what);
            } else if !is_base && !is_vector {
                let what = format!(
                    "`{}` is a model beside saved vectors: save its vector too, with `elo-surgery chat-vector --save-vector`",
                    source.model
                );
                problems.add(at, what);
            }
        }
    }
    true
}
