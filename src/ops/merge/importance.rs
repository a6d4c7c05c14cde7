//! How much a model counts: for each tensor one number, or one for each of its elements, from a file.
//!
//! A checkpoint has a tensor of the name and shape of each of the model's, of which every element is an importance
//! ([`Mean`](crate::plan::Mean)). A file of numbers is either `{"model.norm.weight": 0.5, ..}`, such as the mean of a Fisher information (Matena and Raffel, arXiv 2111.09832)
//! over the tensor, or what `elo-surgery diff --json` prints, of which the relative change of each tensor is taken.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::config::Config;
use super::methods::{Kind, Values};
use super::read::Problems;
use super::reference::Reference;
use super::slices::Slice;
use crate::checkpoint::Checkpoint;
use crate::plan::Numerics;

/// Much more than names and numbers of any model take.
const MOST_BYTES: u64 = 256 << 20;

/// A model and the file of its importances.
#[derive(Clone, Debug)]
pub(super) struct Source {
    pub(super) model: Reference,
    pub(super) file: PathBuf,
    /// Its place in the document.
    pub(super) at: String,
}

/// Importances by model.
#[derive(Debug, Default)]
pub(super) enum Importances {
    #[default]
    None,
    /// Of each tensor.
    Numbers(Vec<(Reference, BTreeMap<String, f64>)>),
    /// Of each element.
    Elements(Vec<(Reference, Checkpoint)>),
}

impl Importances {
    /// Reads every file that the configuration names, of checkpoints the headers.
    pub(super) fn read(problems: &mut Problems, config: &Config, numerics: Numerics) -> Self {
        let (mut tensors, mut elements) = (Vec::new(), Vec::new());
        for source in &config.extension.importance {
            let (model, file) = (source.model.clone(), &source.file);
            let read = if is_checkpoint(file) {
                let opened = Checkpoint::open(file).map(|opened| elements.push((model, opened)));
                opened.map_err(|error| format!("cannot be opened: {error}"))
            } else {
                numbers(file).map(|numbers| tensors.push((model, numbers)))
            };
            if let Err(what) = read {
                problems.add(&source.at, format!("`{}` {what}", file.display()));
            }
        }
        let at = "elo_surgery.importance";
        if elements.is_empty() {
            return if tensors.is_empty() { Self::None } else { Self::Numbers(tensors) };
        }
        if !tensors.is_empty() {
            problems
                .add(at, "some files have numbers for tensors, others for elements: give either");
        }
        let method = config.method;
        if !matches!(method.kind, Kind::Linear | Kind::TaskArithmetic) {
            let what = format!("importances of elements for {} are", method.name);
            problems.unsupported(at, format!("{what} (only for linear and task_arithmetic)"));
        }
        if numerics == Numerics::Mergekit {
            problems.add(
                at,
                "mergekit has no importances of elements: leave out `--numerics mergekit`",
            );
        }
        Self::Elements(elements)
    }

    /// The checkpoint with the importances of a model's elements.
    pub(super) fn elements_of(&self, model: &Reference) -> Option<&Checkpoint> {
        let Self::Elements(all) = self else { return None };
        all.iter().find(|(of, _)| of == model).map(|(_, checkpoint)| checkpoint)
    }

    /// Multiplies weights with importances and keeps their sum. `names` has each input's name of the tensor.
    pub(super) fn weigh(
        &self,
        values: &mut Values,
        slice: &Slice<'_>,
        names: &[&str],
    ) -> Result<(), String> {
        let Self::Numbers(all) = self else { return Ok(()) };
        let mut factors = Vec::new();
        for (input, (of, name)) in slice.inputs.iter().zip(names).enumerate() {
            let model = &of.of.model;
            // A base that is set apart has none.
            let Some((_, numbers)) = all.iter().find(|(of, _)| of == model) else { continue };
            let number = numbers.get(*name).ok_or_else(|| {
                format!("the importances of `{model}` have no number for this tensor")
            })?;
            factors.push((input, *number));
        }
        values.weigh(&factors).ok_or_else(|| {
            "weights times importances add up to 0, so there is nothing to share out".to_owned()
        })
    }
}

/// Whether a path has importances of elements: it is one, or a folder of several.
fn is_checkpoint(path: &Path) -> bool {
    path.is_dir() || path.extension().is_some_and(|end| end.eq_ignore_ascii_case("safetensors"))
}

fn numbers(path: &Path) -> Result<BTreeMap<String, f64>, String> {
    let size = std::fs::metadata(path).map_err(|e| format!("cannot be read: {e}"))?.len();
    if size > MOST_BYTES {
        return Err(format!("has {size} bytes: it should have one number a tensor"));
    }
    let text = std::fs::read_to_string(path).map_err(|e| format!("cannot be read: {e}"))?;
    let value: Value = serde_json::from_str(&text).map_err(|e| format!("is not JSON: {e}"))?;
    let pairs: Vec<(&str, Option<f64>)> = match value.get("tensors").and_then(Value::as_array) {
        Some(tensors) => tensors
            .iter()
            .map(|tensor| {
                let change = &tensor["change"]["relative_norm"];
                let equal = tensor["state"] == "equal";
                (
                    tensor["name"].as_str().unwrap_or_default(),
                    if equal { Some(0.0) } else { change.as_f64() },
                )
            })
            .collect(),
        None => {
            let map =
                value.as_object().ok_or("is neither a group of numbers nor a `diff --json`")?;
            map.iter().map(|(name, number)| (name.as_str(), number.as_f64())).collect()
        }
    };
    let mut numbers = BTreeMap::new();
    for (name, number) in pairs {
        match number {
            Some(number) if number.is_finite() && number >= 0.0 => {
                numbers.insert(name.to_owned(), number);
            }
            _ => return Err(format!("has no number from 0 for `{name}`")),
        }
    }
    if numbers.is_empty() { Err("has no numbers".into()) } else { Ok(numbers) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<BTreeMap<String, f64>, String> {
        let dir = tempfile::TempDir::new().unwrap();
        let file = dir.path().join("importance.json");
        std::fs::write(&file, text).unwrap();
        numbers(&file)
    }

    #[test]
    fn files_are_numbers_or_differences() {
        let wanted = BTreeMap::from([("a".to_owned(), 0.5), ("b".to_owned(), 0.0)]);
        assert_eq!(of(r#"{"a": 0.5, "b": 0}"#), Ok(wanted.clone()));
        let diff = r#"{"tensors": [
            {"name": "a", "state": "changed", "change": {"relative_norm": 0.5}},
            {"name": "b", "state": "equal"}
        ]}"#;
        assert_eq!(of(diff), Ok(wanted));
        for (text, words) in [
            ("{", "not JSON"),
            ("[]", "neither"),
            ("{}", "no numbers"),
            (r#"{"a": -1}"#, "`a`"),
            (r#"{"a": "much"}"#, "`a`"),
            (r#"{"tensors": [{"name": "a", "state": "only in a"}]}"#, "`a`"),
        ] {
            let told = of(text).unwrap_err();
            assert!(told.contains(words), "{text}: {told}");
        }
        assert!(numbers(Path::new("nowhere.json")).unwrap_err().contains("cannot be read"));
    }
}
