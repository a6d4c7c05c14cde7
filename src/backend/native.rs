//! Native configuration: what an adapter makes of a spec.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value};

use super::BackendSettings;
use super::protocol::Spec;
use super::refusal::refused;
use crate::error::{IoContext as _, Result};

/// A file that belongs beside the spec.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NativeFile {
    /// Its name.
    pub name: String,
    /// Its text.
    pub content: String,
}

/// What an adapter makes of a spec.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Native {
    /// The files.
    pub(super) files: Vec<NativeFile>,
    /// Name of the one that stands for `{config}` in commands.
    pub(super) main: Option<String>,
    /// What is worth knowing, one sentence each.
    pub(super) notes: Vec<String>,
}

impl Native {
    /// Adds a file.
    pub(super) fn add(&mut self, name: &str, content: impl Into<String>) {
        self.files.push(NativeFile { name: name.to_owned(), content: content.into() });
    }

    /// Adds the file that stands for `{config}`.
    pub(super) fn add_main(&mut self, name: &str, content: impl Into<String>) {
        self.add(name, content);
        self.main = Some(name.to_owned());
    }

    /// Merges the native keys of the settings, then those of the stage, into a configuration. What replaces a key that
    /// follows from the project is noted.
    pub(super) fn merge_extra(
        &mut self,
        backend: &str,
        config: &mut Map<String, Value>,
        spec: &Spec,
        settings: &BackendSettings,
    ) -> Result<()> {
        let stage = match spec.extra.get(backend) {
            None | Some(Value::Null) => Map::new(),
            Some(Value::Object(keys)) => keys.clone(),
            Some(_) => {
                return Err(refused(
                    format!("`extra` for `{backend}`"),
                    "it is no mapping of native keys",
                    format!("write `extra: {{key: value}}` with keys of {backend}"),
                ));
            }
        };
        for (key, value) in settings.extra.iter().chain(&stage) {
            if let Some(old) = config.get(key)
                && old != value
            {
                self.notes.push(format!(
                    "`extra` sets `{key}` to {value}, which the project would have set to {old}"
                ));
            }
            if value.is_null() {
                config.shift_remove(key);
            } else {
                config.insert(key.clone(), value.clone());
            }
        }
        Ok(())
    }
}

/// Writes native files into a directory, each by way of a temporary name.
pub(super) fn write(directory: &Path, files: &[NativeFile]) -> Result<()> {
    for file in files {
        let path = directory.join(&file.name);
        let partial = directory.join(format!(".{}.tmp", file.name));
        fs::write(&partial, &file.content).at("write", &partial)?;
        fs::rename(&partial, &path).at("rename", &path)?;
    }
    Ok(())
}
