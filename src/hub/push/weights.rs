//! Which files at a repository's root are weights of one checkpoint, whatever its layout.
//!
//! Loaders look for one file first, then for an index: old weights beside new ones of another layout may be the ones that
//! are loaded. So the weights of a checkpoint are replaced as one unit.

use std::collections::BTreeSet;

/// The weights that are published, by what their files have in common.
pub(super) struct Weights<'a> {
    stems: BTreeSet<&'a str>,
}

impl<'a> Weights<'a> {
    /// The weights among these files; an index alone is none.
    pub(super) fn among(paths: impl IntoIterator<Item = &'a str>) -> Self {
        let of_weights: Vec<(&str, &str)> =
            paths.into_iter().filter_map(|path| Some((path, stem(path)?))).collect();
        let has_weights = of_weights.iter().any(|(path, _)| is_weights(path));
        let stems = of_weights.iter().filter(|_| has_weights).map(|(_, stem)| *stem).collect();
        Self { stems }
    }

    /// Whether a file is of the same checkpoint: one file, a shard of any number, or an index.
    pub(super) fn include(&self, path: &str) -> bool {
        stem(path).is_some_and(|stem| self.stems.contains(stem))
    }

    /// Whether a file has the same checkpoint's weights as a pickle, which nothing loads while there are safetensors.
    pub(super) fn outrank(&self, path: &str) -> bool {
        let Some(name) = path.strip_suffix(".index.json").unwrap_or(path).strip_suffix(".bin")
        else {
            return false;
        };
        match unnumbered(name) {
            "pytorch_model" => self.stems.contains("model"),
            name => name == "adapter_model" && self.stems.contains(name),
        }
    }
}

/// Whether a file holds weights.
fn is_weights(path: &str) -> bool {
    path.ends_with(".safetensors")
}

/// `model` of `model.safetensors`, `model-00001-of-00002.safetensors` and `model.safetensors.index.json`; nothing of what is
/// no such file, or not at the root.
fn stem(path: &str) -> Option<&str> {
    if path.contains('/') {
        return None;
    }
    let name = path.strip_suffix(".index.json").unwrap_or(path).strip_suffix(".safetensors")?;
    Some(unnumbered(name))
}

/// A name without its `-00001-of-00002`.
fn unnumbered(name: &str) -> &str {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let parts = name.rsplit_once("-of-").and_then(|(start, count)| {
        let (stem, number) = start.rsplit_once('-')?;
        (is_number(number) && is_number(count)).then_some(stem)
    });
    parts.unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_of_one_checkpoint_belong_together() {
        let layouts = [
            "model.safetensors",
            "model-00001-of-00002.safetensors",
            "model-00030-of-00030.safetensors",
            "model.safetensors.index.json",
        ];
        for published in [&layouts[..1], &layouts[1..2], &layouts[2..]] {
            let weights = Weights::among(published.iter().copied());
            assert!(layouts.iter().all(|path| weights.include(path)), "{published:?}");
            for other in [
                "consolidated.safetensors",
                "model.fp16.safetensors",
                "adapter_model.safetensors",
                "onnx/model.safetensors",
                "model.gguf",
                "config.json",
                "pytorch_model.bin",
            ] {
                assert!(!weights.include(other), "{other}");
            }
        }
        let adapter = Weights::among(["adapter_config.json", "adapter_model.safetensors"]);
        assert!(adapter.include("adapter_model-00001-of-00002.safetensors"));
        assert!(!adapter.include("model.safetensors"));
        assert!(adapter.outrank("adapter_model.bin") && !adapter.outrank("pytorch_model.bin"));
    }

    #[test]
    fn what_has_no_weights_replaces_none() {
        for published in ["config.json", "model.safetensors.index.json", "extra/model.safetensors"]
        {
            assert!(!Weights::among([published]).include("model.safetensors"), "{published}");
        }
        // The index counts where its shards are called otherwise.
        let named = Weights::among(["weights-1-of-1.safetensors", "model.safetensors.index.json"]);
        assert!(named.include("model.safetensors"));
        let weights = Weights::among(["model.safetensors"]);
        let pickles = [
            "pytorch_model.bin",
            "pytorch_model-00001-of-00002.bin",
            "pytorch_model.bin.index.json",
        ];
        assert!(pickles.iter().all(|path| weights.outrank(path)));
        assert!(!weights.outrank("training_args.bin") && !weights.outrank("old/pytorch_model.bin"));
    }
}
