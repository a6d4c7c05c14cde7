//! Files of several documents (`mergekit-multi`): each but the last makes a model that later ones name.

use std::path::Path;

use serde_json::Value;

use super::config::{Config, read, refuse, syntax};
use super::read::Problems;
use crate::error::Result;

impl Config {
    /// Reads every document of a configuration, in order; the last makes the result. `name` is what messages call the file.
    ///
    /// # Errors
    /// As for [`Config::parse`]. Documents before the last that have no name, or one that is not used or not that of a file.
    pub fn parse_all(text: &str, name: &str) -> Result<Vec<Self>> {
        let mut documents: Vec<Value> =
            serde_saphyr::from_multiple(text).map_err(|e| refuse(name, vec![syntax(&e)]))?;
        // Documents without content, as after a last `---`, are not among them.
        if documents.len() < 2 {
            let document = documents.pop().unwrap_or_default();
            return Ok(vec![Self::parse_one(&document, text, name)?]);
        }
        let mut told = Vec::new();
        let mut configs = Vec::new();
        for (i, document) in documents.iter().enumerate() {
            let mut problems = Problems::default();
            let config = read(&mut problems, document, text);
            told.extend(problems.0.into_iter().map(|what| format!("document {}: {what}", i + 1)));
            configs.extend(config);
        }
        if told.is_empty() {
            told = check_names(&configs);
        }
        if told.is_empty() { Ok(configs) } else { Err(refuse(name, told)) }
    }

    /// Which of its models are made by documents before it.
    pub fn uses(&self, other: &Self) -> bool {
        let name = other.name.as_deref().map(Path::new);
        self.models().iter().any(|model| Some(model.path.as_path()) == name)
    }
}

fn check_names(configs: &[Config]) -> Vec<String> {
    let mut told = Vec::new();
    let Some((_, before)) = configs.split_last() else { return told };
    for (i, config) in before.iter().enumerate() {
        let at = format!("document {}", i + 1);
        let Some(name) = config.name.as_deref() else {
            told.push(format!("{at}: has no `name` that later documents could use"));
            continue;
        };
        let plain = !name.is_empty()
            && !name.starts_with('.')
            && !name.contains(['/', '\\', '\0', '+', '@']);
        if !plain {
            told.push(format!("{at}: name: `{name}` is no name of a directory"));
        } else if before[..i].iter().any(|other| other.name == config.name) {
            told.push(format!("{at}: name: `{name}` is the name of an earlier document"));
        } else if !configs[i + 1..].iter().any(|later| later.uses(config)) {
            told.push(format!("{at}: name: no later document uses `{name}`"));
        }
    }
    told
}
