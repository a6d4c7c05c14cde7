//! How much a model counts for each tensor: one number, from a file.
//!
//! A file is either `{"model.norm.weight": 0.5, ..}`, such as the mean of a Fisher information (Matena and Raffel, arXiv 2111.09832)
//! over the tensor, or what `elo-surgery diff --json` prints, of which the relative change of each tensor is taken.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::config::Config;
use super::methods::Values;
use super::read::Problems;
use super::reference::Reference;
use super::slices::Slice;

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

/// Numbers by model and tensor.
#[derive(Debug, Default)]
pub(super) struct Importances(Vec<(Reference, BTreeMap<String, f64>)>);

impl Importances {
    /// Reads every file that the configuration names.
    pub(super) fn read(problems: &mut Problems, config: &Config) -> Self {
        let mut read = Vec::new();
        for source in &config.extension.importance {
            match numbers(&source.file) {
                Ok(numbers) => read.push((source.model.clone(), numbers)),
                Err(what) => {
                    problems.add(&source.at, format!("`{}` {what}", source.file.display()));
                }
            }
        }
        Self(read)
    }

    /// Multiplies weights with importances and keeps their sum. `names` has each input's name of the tensor.
    pub(super) fn weigh(
        &self,
        values: &mut Values,
        slice: &Slice<'_>,
        names: &[&str],
    ) -> Result<(), String> {
        if self.0.is_empty() {
            return Ok(());
        }
        let mut factors = Vec::new();
        for (input, (of, name)) in slice.inputs.iter().zip(names).enumerate() {
            let model = &of.of.model;
            // A base that is set apart has none.
            let Some((_, numbers)) = self.0.iter().find(|(of, _)| of == model) else { continue };
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

fn numbers(path: &Path) -> Result<BTreeMap<String, f64>, String> {
    if path.extension().is_some_and(|end| end.eq_ignore_ascii_case("safetensors")) {
        return Err("has numbers for elements, which is not supported yet: give a JSON file of one number a tensor, such as their mean".into());
    }
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
        let told = numbers(Path::new("fisher.safetensors")).unwrap_err();
        assert!(told.contains("not supported yet"), "{told}");
        assert!(numbers(Path::new("nowhere.json")).unwrap_err().contains("cannot be read"));
    }
}
