//! LLaMA-Factory: its YAML, `dataset_info.json`, `DeepSpeed` files; checked against 0.9.5.
//!
//! It trains in `out.work/llama-factory`; a complete model is moved from there to `out.model`. torchrun is started
//! directly: under `llamafactory-cli` it would be a child that SIGTERM does not reach.

mod config;
mod progress;
mod template;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use super::discovery::{search_path, which};
use super::interpreter::{self, Installed};
use super::launch::{Launch, accelerate, stage_directory, torchrun};
use super::native::Native;
use super::protocol::{Description, Method, Outcome, Sharding, Spec, TrainingStage, features};
use super::refusal::{refused, text};
use super::{Adapter, BackendSettings, NativeEvents, checkpoints, merge, sharding, yaml};
use crate::error::{IoContext as _, Result};
use progress::Progress;

const NAME: &str = "llama-factory";
const CONFIG: &str = "llama-factory.yaml";
const EXPORT: &str = "export.yaml";
const ACCELERATE: &str = "accelerate.yaml";

pub(super) struct LlamaFactory;

/// LLaMA-Factory's own output directory: checkpoints, progress, and the model at the end.
fn output(spec: &Spec) -> PathBuf {
    spec.out.work.join(NAME)
}

/// Where adapters are merged.
fn merged(spec: &Spec) -> PathBuf {
    spec.out.work.join("merged")
}

impl Adapter for LlamaFactory {
    fn describe(&self, settings: &BackendSettings) -> Result<Description> {
        let mut description = Description {
            needs: vec!["cuda".to_owned()],
            ..Description::adapter(
                NAME,
                &[
                    // No document mask for text, only for chats.
                    features::FREEZE,
                    features::RESUME,
                    features::SIGNAL_CHECKPOINT,
                    features::LORA,
                    features::MULTI_GPU,
                    features::MULTI_NODE,
                    features::ADAMW_8BIT,
                ],
            )
        };
        let Some(program) = which("llamafactory-cli", &search_path(settings)) else {
            if settings.command.is_empty() {
                description.problems.push(
                    "llamafactory-cli is not on PATH: pip install llamafactory liger-kernel bitsandbytes deepspeed, in an environment of its own (it pins transformers), and put its bin on PATH".to_owned(),
                );
            }
            return Ok(description);
        };
        if let Some(python) = interpreter::of_script(&program, settings) {
            match Installed::ask(&python, &["llamafactory", "liger-kernel", "deepspeed"], settings)
            {
                Ok(installed) => describe_installed(&installed, settings, &mut description),
                Err(problem) => description.problems.push(problem),
            }
        }
        Ok(description)
    }

    fn native(&self, spec: &Spec, settings: &BackendSettings) -> Result<Native> {
        let mut native = Native::default();
        let way = sharding::resolve(spec);
        let mut config = config::training(spec, settings, &output(spec), way, &mut native)?;
        native.merge_extra(NAME, &mut config, spec, settings)?;
        if spec.stage == TrainingStage::Sft && !config.contains_key("template") {
            let template = template::choose(spec)?;
            config.insert("template".to_owned(), template.into());
        }
        let chosen = config.get("template").cloned();
        native.add_main(CONFIG, yaml::document(&config));
        native.add("dataset_info.json", config::datasets(spec)?);
        if way == Sharding::Fsdp2 {
            native.add(ACCELERATE, sharding::accelerate(spec, way)?);
        }
        if spec.trainable.method == Method::Lora {
            let export = config::export(spec, settings, &output(spec), &merged(spec), chosen)?;
            native.add(EXPORT, yaml::document(&export));
            let export = stage_directory(&spec.out.result).join(EXPORT);
            let merge = ["llamafactory-cli", "export", text(&export)?];
            native.add(merge::SCRIPT, merge::script(&merge));
        }
        Ok(native)
    }

    fn wrapper(&self, spec: &Spec) -> usize {
        if spec.trainable.method == Method::Lora { 2 } else { 0 }
    }

    fn launch(&self, path: &Path, spec: &Spec, settings: &BackendSettings) -> Result<Launch> {
        let stage = stage_directory(path);
        let way = sharding::resolve(spec);
        let mut program: Vec<OsString> = Vec::new();
        if spec.trainable.method == Method::Lora {
            program.extend(merge::wrapper(stage));
        }
        let usual = if way == Sharding::Fsdp2 { "accelerate" } else { "torchrun" };
        let module = ["-m", "llamafactory.launcher"].map(OsString::from);
        match settings.launcher.as_deref().unwrap_or(usual) {
            "torchrun" if way != Sharding::Fsdp2 => {
                program.push("torchrun".into());
                program.extend(torchrun(spec, settings)?);
                program.extend(module);
            }
            "accelerate" if way == Sharding::Fsdp2 => {
                program.extend(["accelerate".into(), "launch".into()]);
                program.extend(accelerate(&stage.join(ACCELERATE), spec, settings)?);
                program.extend(module);
            }
            "python" if sharding::devices(spec) == 1 && way == Sharding::None => {
                program.extend(["llamafactory-cli".into(), "train".into()]);
            }
            other => {
                return Err(refused(
                    format!("`launcher: {other}` for llama-factory"),
                    "it is started by torchrun, under FSDP 2 by accelerate, or on one GPU without sharding by python",
                    "leave `launcher` out",
                ));
            }
        }
        program.push(stage.join(CONFIG).into_os_string());
        clear_leftovers(&output(spec))?;
        Ok(Launch::new(path, program).with_env([
            ("HF_HUB_OFFLINE", "1"),
            ("HF_HUB_DISABLE_TELEMETRY", "1"),
            ("TOKENIZERS_PARALLELISM", "false"),
        ]))
    }

    fn events(&self, spec: &Spec) -> Option<Box<dyn NativeEvents>> {
        Some(Box::new(Progress::follow(&output(spec))))
    }

    fn outcome(&self, spec: &Spec) -> Result<Option<Outcome>> {
        let output = output(spec);
        let trained = match spec.trainable.method {
            Method::Lora => merged(spec),
            Method::Full | Method::Layers => output.clone(),
        };
        checkpoints::outcome(spec, &output, &trained)
    }
}

fn describe_installed(
    installed: &Installed,
    settings: &BackendSettings,
    description: &mut Description,
) {
    if let Some(version) = installed.version("llamafactory") {
        version.clone_into(&mut description.version);
    }
    let wants_liger = settings.extra.get("enable_liger_kernel") != Some(&false.into());
    if wants_liger && !installed.has("liger-kernel") {
        description.problems.push(
            "liger-kernel is not installed beside LLaMA-Factory: pip install liger-kernel, or `extra: {enable_liger_kernel: false}`".to_owned(),
        );
    }
    let auto =
        settings.sharding == Sharding::Auto && settings.gpus.saturating_mul(settings.nodes) > 1;
    let zero = matches!(settings.sharding, Sharding::Zero1 | Sharding::Zero2 | Sharding::Zero3);
    if (auto || zero) && !installed.has("deepspeed") {
        description.problems.push(
            "deepspeed is not installed beside LLaMA-Factory: pip install deepspeed, or choose `sharding: fsdp2`".to_owned(),
        );
    }
}

/// LLaMA-Factory refuses a directory that holds something but no checkpoint; what an early failure left there goes.
fn clear_leftovers(output: &Path) -> Result<()> {
    checkpoints::set_aside_incomplete(output)?;
    if output.is_dir() && checkpoints::newest(output)?.is_none() {
        fs::remove_dir_all(output).at("remove", output)?;
    }
    Ok(())
}
