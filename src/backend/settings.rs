//! How a training backend is chosen and set: the `backend` key of `elo.yaml`.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::protocol::Sharding;
use super::size::Size;

/// What trains: a name, or a name with its settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum BackendChoice {
    /// `builtin`, `axolotl`, `llama-factory`, `trl`, the `NAME` of an `elo-backend-NAME` on PATH, or a path.
    Name(String),
    /// With settings.
    Settings(Box<BackendSettings>),
}

impl Default for BackendChoice {
    fn default() -> Self {
        Self::Name("builtin".into())
    }
}

/// Settings of a training backend.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct BackendSettings {
    /// `builtin`, `axolotl`, `llama-factory`, `trl`, `command`, the `NAME` of an `elo-backend-NAME` on PATH, or a path.
    pub name: String,
    /// GPUs of a node.
    pub gpus: u32,
    /// Nodes.
    pub nodes: u32,
    /// Memory of one GPU in bytes (`80GB`), for the estimates of `plan`.
    pub gpu_memory: Option<Size>,
    /// How states are spread over GPUs.
    pub sharding: Sharding,
    /// What starts its processes: `accelerate`, `torchrun`, `python`, `ray`. The backend's own choice without it.
    pub launcher: Option<String>,
    /// Arguments put before the backend's command: `[srun, --ntasks-per-node=1]`.
    pub prefix: Vec<String>,
    /// The command of `command`, or in place of a backend's own: an argument list, never a shell string. Placeholders: `{spec}` `{config}` `{model}` `{data}` `{out}` `{work}` `{events}` `{result}` `{stage}` `{seed}` `{gpus}` `{nodes}`.
    pub command: Vec<String>,
    /// Environment of its processes.
    pub env: BTreeMap<String, String>,
    /// Threads of the built-in backend; one a core without it.
    pub threads: Option<usize>,
    /// How long an interrupted backend gets to write a checkpoint.
    pub grace_seconds: u64,
    /// How often a backend that was interrupted from outside is started again.
    pub retries: u32,
    /// Allow model code from the checkpoint to run in the backend.
    pub trust_remote_code: bool,
    /// Native keys, merged last into its configuration, for every stage.
    pub extra: serde_json::Map<String, Value>,
}

impl Default for BackendSettings {
    fn default() -> Self {
        Self {
            name: "builtin".into(),
            gpus: 1,
            nodes: 1,
            gpu_memory: None,
            sharding: Sharding::default(),
            launcher: None,
            prefix: Vec::new(),
            command: Vec::new(),
            env: BTreeMap::new(),
            threads: None,
            grace_seconds: 300,
            retries: 0,
            trust_remote_code: false,
            extra: serde_json::Map::new(),
        }
    }
}

impl BackendChoice {
    /// Its settings, all told.
    pub fn settings(&self) -> BackendSettings {
        match self {
            Self::Name(name) => {
                BackendSettings { name: name.clone(), ..BackendSettings::default() }
            }
            Self::Settings(settings) => settings.as_ref().clone(),
        }
    }
}
