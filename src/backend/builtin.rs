//! The backend of this program: `trainer`, started as a hidden subcommand, so that it is a process like any other.

use std::env;
use std::path::Path;

use super::launch::Launch;
use super::native::Native;
use super::protocol::{Description, Method, Optimizer, Sharding, Spec, features};
use super::refusal::refused;
use super::{Adapter, BackendSettings};
use crate::error::{IoContext as _, Result};

/// Families whose forward and backward pass it has.
const FAMILIES: [&str; 4] = ["llama", "mistral", "qwen2", "qwen3"];

pub(super) struct Builtin;

impl Adapter for Builtin {
    fn describe(&self, _settings: &BackendSettings) -> Result<Description> {
        let mut problems = Vec::new();
        if !cfg!(feature = "trainer") {
            problems.push("this build has no trainer: build with `--features trainer`".to_owned());
        }
        Ok(Description {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            families: FAMILIES.map(str::to_owned).to_vec(),
            problems,
            ..Description::adapter(
                "builtin",
                &[
                    features::FREEZE,
                    features::DOCUMENT_MASK,
                    features::RESUME,
                    features::SIGNAL_CHECKPOINT,
                    features::DETERMINISTIC,
                    features::EVALUATE,
                ],
            )
        })
    }

    fn native(&self, spec: &Spec, _settings: &BackendSettings) -> Result<Native> {
        let family = spec.model.family.as_str();
        if !FAMILIES.contains(&family) {
            return Err(refused(
                format!("`{family}` on the built-in backend"),
                format!("it computes {}", FAMILIES.join(", ")),
                "choose `backend: trl`, `axolotl` or `llama-factory`",
            ));
        }
        if spec.trainable.method == Method::Lora {
            return Err(refused(
                "`method: lora` on the built-in backend",
                "it trains weights, not adapters",
                "choose `method: layers` or `full`, or another backend",
            ));
        }
        let mut native = Native::default();
        if spec.parallel.nodes > 1 || spec.parallel.gpus > 1 {
            native.notes.push("the built-in backend computes on one machine's CPU".to_owned());
        }
        if !matches!(spec.parallel.sharding, Sharding::Auto | Sharding::None) {
            native.notes.push("the built-in backend does not shard".to_owned());
        }
        if spec.train.optimizer == Optimizer::AdamW8Bit {
            native.notes.push("the built-in backend keeps the states of AdamW in f32".to_owned());
        }
        Ok(native)
    }

    fn launch(&self, path: &Path, spec: &Spec, settings: &BackendSettings) -> Result<Launch> {
        self.native(spec, settings)?;
        let program = env::current_exe().at("find", "/proc/self/exe")?;
        let mut program = vec![program.into_os_string()];
        program.extend(["__backend", "builtin", "run", "--spec"].map(Into::into));
        program.push(path.into());
        let mut launch = Launch::new(path, program);
        if let Some(threads) = settings.threads {
            launch.env.insert("ELO_THREADS".to_owned(), threads.to_string());
        }
        Ok(launch)
    }
}
