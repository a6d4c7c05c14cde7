//! axolotl: its YAML, `DeepSpeed` files and a plugin that tells events; checked against 0.19.0.
//!
//! It trains in `out.work/axolotl`; a complete model is moved from there to `out.model`. Told to stop it is asked for a
//! checkpoint by a file first: on SIGINT it would save the half-trained model and exit with 0.

mod config;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::discovery::{search_path, which};
use super::interpreter::{self, Installed};
use super::launch::{Launch, stage_directory, torchrun};
use super::native::Native;
use super::protocol::{Description, Method, Outcome, Resume, Sharding, Spec, features};
use super::refusal::{refused, text};
use super::{Adapter, BackendSettings, Stop, checkpoints, merge, sharding, yaml};
use crate::error::{IoContext as _, Result};

const CONFIG: &str = "axolotl.yml";

/// The file that asks for a checkpoint, in axolotl's output directory.
const TRIGGER: &str = "axolotl_checkpoint.save";

const INSTALL: &str = "pip install 'axolotl[deepspeed]' and put its environment's bin on PATH";

pub(super) struct Axolotl;

/// axolotl's own output directory: checkpoints, and the model at the end.
fn output(spec: &Spec) -> PathBuf {
    spec.out.work.join("axolotl")
}

impl Adapter for Axolotl {
    fn describe(&self, settings: &BackendSettings) -> Result<Description> {
        let mut description = Description {
            needs: vec!["cuda".to_owned()],
            ..Description::adapter(
                "axolotl",
                &[
                    features::FREEZE,
                    features::DOCUMENT_MASK,
                    features::RESUME,
                    features::SIGNAL_CHECKPOINT,
                    features::LORA,
                    features::MULTI_GPU,
                    features::MULTI_NODE,
                    features::ADAMW_8BIT,
                ],
            )
        };
        let Some(program) = which("axolotl", &search_path(settings)) else {
            if settings.command.is_empty() {
                description.problems.push(format!("axolotl is not on PATH: {INSTALL}"));
            }
            return Ok(description);
        };
        // A wrapper that is no Python script keeps its versions to itself.
        if let Some(python) = interpreter::of_script(&program, settings) {
            match Installed::ask(&python, &["axolotl", "deepspeed"], settings) {
                Ok(installed) => {
                    if let Some(version) = installed.version("axolotl") {
                        version.clone_into(&mut description.version);
                    }
                    let spared = matches!(settings.sharding, Sharding::None | Sharding::Fsdp2);
                    if !spared && !installed.has("deepspeed") {
                        description.problems.push(
                            "deepspeed is not installed beside axolotl: pip install 'axolotl[deepspeed]', or choose `sharding: fsdp2`".to_owned(),
                        );
                    }
                }
                Err(problem) => description.problems.push(problem),
            }
        }
        Ok(description)
    }

    fn native(&self, spec: &Spec, settings: &BackendSettings) -> Result<Native> {
        let mut native = Native::default();
        let mut config = config::build(spec, settings, &output(spec), &mut native)?;
        native.merge_extra("axolotl", &mut config, spec, settings)?;
        native.add_main(CONFIG, yaml::document(&config));
        native.add("elo_axolotl.py", include_str!("elo_axolotl.py"));
        if spec.trainable.method == Method::Lora {
            let config = stage_directory(&spec.out.result).join(CONFIG);
            let merge = ["axolotl", "merge-lora", text(&config)?];
            native.add(merge::SCRIPT, merge::script(&merge));
        }
        Ok(native)
    }

    fn wrapper(&self, spec: &Spec) -> usize {
        if spec.trainable.method == Method::Lora { 2 } else { 0 }
    }

    fn launch(&self, path: &Path, spec: &Spec, settings: &BackendSettings) -> Result<Launch> {
        let stage = stage_directory(path);
        let mut program: Vec<OsString> = Vec::new();
        if spec.trainable.method == Method::Lora {
            program.extend(merge::wrapper(stage));
        }
        program.extend(["axolotl".into(), "train".into(), stage.join(CONFIG).into_os_string()]);
        match settings.launcher.as_deref() {
            None | Some("torchrun") => {
                program.extend(["--launcher", "torchrun", "--"].map(OsString::from));
                program.extend(torchrun(spec, settings)?);
            }
            Some("accelerate") => {
                program.extend(["--launcher", "accelerate", "--"].map(OsString::from));
                let count = sharding::devices(spec).to_string();
                program.extend(["--num_processes".into(), count.into()]);
                if spec.parallel.nodes > 1 {
                    return Err(refused(
                        "`launcher: accelerate` for axolotl on several nodes",
                        "every node would have to know its rank",
                        "leave `launcher` out: torchrun lets the nodes find each other",
                    ));
                }
            }
            Some("python") => program.extend(["--launcher", "python"].map(OsString::from)),
            Some("ray") => {
                let count = sharding::devices(spec).to_string();
                program.extend(["--use-ray".into(), "--ray-num-workers".into(), count.into()]);
            }
            Some(other) => {
                return Err(refused(
                    format!("`launcher: {other}` for axolotl"),
                    "it is not one of axolotl's",
                    "choose torchrun, accelerate, python or ray",
                ));
            }
        }
        let output = output(spec);
        checkpoints::set_aside_incomplete(&output)?;
        // A request from an earlier attempt would be answered at once.
        let trigger = output.join(TRIGGER);
        if trigger.exists() {
            std::fs::remove_file(&trigger).at("remove", &trigger)?;
        }
        let mut launch = Launch::new(path, program).with_env([
            ("AXOLOTL_DO_NOT_TRACK", "1"),
            ("HF_HUB_OFFLINE", "1"),
            ("TOKENIZERS_PARALLELISM", "false"),
            ("PYTHONPATH", text(stage)?),
        ]);
        launch.stop = Stop::TouchThenTerminate { file: trigger };
        Ok(launch)
    }

    fn outcome(&self, spec: &Spec) -> Result<Option<Outcome>> {
        let output = output(spec);
        let trained = match spec.trainable.method {
            Method::Lora => output.join("merged"),
            Method::Full | Method::Layers => output.clone(),
        };
        checkpoints::outcome(spec, &output, &trained)
    }
}

/// Whether earlier checkpoints count.
fn resumes(spec: &Spec) -> bool {
    spec.resume == Resume::Auto
}
