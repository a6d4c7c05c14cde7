//! TRL: a script of ours around `SFTTrainer`, its arguments as JSON, accelerate's file; checked against 1.16.0.
//!
//! The one backend with a trainer that we write: it freezes by exact names, keeps f32 masters under mixed precision,
//! saves in the model's dtype, and writes events and result itself.

use std::ffi::OsString;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::discovery::{search_path, which};
use super::interpreter::Installed;
use super::launch::{Launch, accelerate, stage_directory, torchrun, word};
use super::native::Native;
use super::protocol::{
    DataFormat, Description, Lora, LossOn, Method, Optimizer, Packing, Precision, Sharding, Spec,
    features,
};
use super::refusal::{refused, text};
use super::{Adapter, BackendSettings, sharding};
use crate::error::Result;

const SCRIPT: &str = "elo_trl.py";
const CONFIG: &str = "trl.json";
const ACCELERATE: &str = "accelerate.yaml";

pub(super) struct Trl;

impl Adapter for Trl {
    fn describe(&self, settings: &BackendSettings) -> Result<Description> {
        let mut description = Description::adapter(
            "trl",
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
        );
        let Some(python) = which("python3", &search_path(settings)) else {
            description.problems.push("python3 is not on PATH".to_owned());
            return Ok(description);
        };
        match Installed::ask(&python, &["trl", "torch", "accelerate", "deepspeed"], settings) {
            Ok(installed) => {
                if let Some(version) = installed.version("trl") {
                    version.clone_into(&mut description.version);
                } else {
                    description.problems.push(format!(
                        "trl is not installed for {}: pip install trl accelerate peft bitsandbytes liger-kernel",
                        python.display()
                    ));
                }
                let auto = settings.sharding == Sharding::Auto
                    && settings.gpus.saturating_mul(settings.nodes) > 1;
                let zero = matches!(
                    settings.sharding,
                    Sharding::Zero1 | Sharding::Zero2 | Sharding::Zero3
                );
                if (auto || zero) && !installed.has("deepspeed") {
                    description.problems.push(
                        "deepspeed is not installed beside trl: pip install deepspeed, or choose `sharding: fsdp2`".to_owned(),
                    );
                }
            }
            Err(problem) => description.problems.push(problem),
        }
        Ok(description)
    }

    fn native(&self, spec: &Spec, settings: &BackendSettings) -> Result<Native> {
        let mut native = Native::default();
        let way = way(spec)?;
        let mut sft = arguments(spec, way, &mut native)?;
        if let Some((name, content)) = sharding::deepspeed(way, spec) {
            sft.insert("deepspeed".to_owned(), json!(text(&stage(spec).join(name))?));
            native.add(name, content);
        }
        native.merge_extra("trl", &mut sft, spec, settings)?;
        let mut config = Map::new();
        config.insert("dtype".to_owned(), json!(dtype(spec, way)));
        config.insert("trust_remote_code".to_owned(), json!(settings.trust_remote_code));
        if spec.trainable.method == Method::Lora {
            let Lora { rank, alpha, dropout } = spec.trainable.lora.clone().unwrap_or_default();
            let lora = json!({ "r": rank, "lora_alpha": alpha, "lora_dropout": dropout });
            config.insert("lora".to_owned(), lora);
        }
        config.insert("sft".to_owned(), Value::Object(sft));
        let text = serde_json::to_string_pretty(&config).unwrap_or_default();
        native.add_main(CONFIG, text + "\n");
        native.add(SCRIPT, include_str!("elo_trl.py"));
        if sharding::devices(spec) > 1 || way == Sharding::Fsdp2 {
            native.add(ACCELERATE, sharding::accelerate(spec, way)?);
        }
        Ok(native)
    }

    fn launch(&self, path: &Path, spec: &Spec, settings: &BackendSettings) -> Result<Launch> {
        let stage = stage_directory(path);
        let way = way(spec)?;
        let several = sharding::devices(spec) > 1 || way != Sharding::None;
        let launcher = settings.launcher.as_deref();
        let mut program: Vec<OsString> = match launcher.unwrap_or(match way {
            Sharding::Fsdp2 => "accelerate",
            _ if several => "torchrun",
            _ => "python",
        }) {
            "python" => vec!["python3".into()],
            "torchrun" if way == Sharding::Fsdp2 => {
                return Err(refused(
                    "`launcher: torchrun` with `sharding: fsdp2` for trl",
                    "accelerate tells the processes of FSDP",
                    "leave `launcher` out",
                ));
            }
            "torchrun" => {
                let mut program = vec!["torchrun".into()];
                program.extend(torchrun(spec, settings)?);
                program
            }
            "accelerate" => {
                let mut program = vec!["accelerate".into(), "launch".into()];
                if several {
                    program.extend(accelerate(&stage.join(ACCELERATE), spec, settings)?);
                }
                program
            }
            other => {
                return Err(refused(
                    format!("`launcher: {other}` for trl"),
                    "it cannot start the script",
                    "choose torchrun, accelerate or python",
                ));
            }
        };
        program.push(stage.join(SCRIPT).into_os_string());
        program.extend(["--spec".into(), path.into()]);
        program.extend(["--config".into(), stage.join(CONFIG).into_os_string()]);
        Ok(Launch::new(path, program).with_env([
            ("HF_HUB_OFFLINE", "1"),
            ("HF_HUB_DISABLE_TELEMETRY", "1"),
            ("TOKENIZERS_PARALLELISM", "false"),
        ]))
    }
}

fn stage(spec: &Spec) -> &Path {
    stage_directory(&spec.out.result)
}

/// How states are spread. Adapters are merged in the processes that train, so the weights must be whole in each.
fn way(spec: &Spec) -> Result<Sharding> {
    let lora = spec.trainable.method == Method::Lora;
    match (lora, spec.parallel.sharding, sharding::resolve(spec)) {
        (true, Sharding::Auto, _) => Ok(Sharding::None),
        (true, Sharding::Zero3 | Sharding::Fsdp2, _) => Err(refused(
            "`method: lora` with sharded weights on trl",
            "the adapters are merged where they were trained, which needs whole weights",
            "choose `sharding: none`, `zero1` or `zero2`, or the backend axolotl, which merges afterwards",
        )),
        (_, _, way) => Ok(way),
    }
}

/// Dtype in which weights are loaded. `DeepSpeed` keeps f32 masters of its own; elsewhere the weights are the masters, and
/// products are in `compute` by autocast.
fn dtype(spec: &Spec, way: Sharding) -> String {
    let own_masters = matches!(way, Sharding::Zero1 | Sharding::Zero2 | Sharding::Zero3);
    let lora = spec.trainable.method == Method::Lora;
    word(if own_masters || lora { &spec.train.compute } else { &spec.train.master })
}

/// Arguments of `SFTConfig`.
fn arguments(spec: &Spec, way: Sharding, native: &mut Native) -> Result<Map<String, Value>> {
    let train = &spec.train;
    let mut map = Map::new();
    let mut put = |key: &str, value: Value| {
        map.insert(key.to_owned(), value);
    };
    let chats = spec.data.iter().any(|file| file.format == DataFormat::Messages);
    if chats && spec.data.iter().any(|file| file.format == DataFormat::Text) {
        return Err(refused(
            "text and chats in one stage on trl",
            "a stage has one kind of records",
            "give the kinds stages of their own",
        ));
    }
    if chats {
        put("assistant_only_loss", json!(train.loss_on == LossOn::Assistant));
    } else {
        put("dataset_text_field", json!("text"));
    }
    put("max_length", json!(train.sequence_length));
    put("packing", json!(train.packing != Packing::None));
    match train.packing {
        // TRL's default, `bfd`, cuts off what a document has beyond one sequence.
        Packing::DocMask => put("packing_strategy", json!("bfd_split")),
        Packing::Plain => put("packing_strategy", json!("wrapped")),
        Packing::None => native.notes.push(
            "without packing TRL cuts off what a document has beyond one sequence".to_owned(),
        ),
    }
    let optimizer = match (train.optimizer, way) {
        (Optimizer::AdamW8Bit, Sharding::Fsdp2) => {
            native.notes.push(
                "FSDP 2 takes no bitsandbytes optimizer: `adamw_torch_8bit` of torchao instead"
                    .to_owned(),
            );
            "adamw_torch_8bit"
        }
        (Optimizer::AdamW8Bit, _) => "adamw_bnb_8bit",
        (Optimizer::AdamW, _) => "adamw_torch",
    };
    put("optim", json!(optimizer));
    put("learning_rate", json!(train.learning_rate));
    put("lr_scheduler_type", json!(word(&train.schedule)));
    // Below 1 it is a part of the steps.
    put("warmup_steps", json!(train.warmup_ratio));
    put("weight_decay", json!(train.weight_decay));
    put("max_grad_norm", json!(train.max_grad_norm));
    put("per_device_train_batch_size", json!(train.micro_batch));
    put("gradient_accumulation_steps", json!(train.accumulation));
    put("num_train_epochs", json!(train.epochs));
    if let Some(steps) = train.max_steps {
        put("max_steps", json!(steps));
    }
    put("seed", json!(train.seed));
    put("data_seed", json!(train.seed));
    put("bf16", json!(train.compute == Precision::Bf16));
    put("tf32", json!(true));
    put("gradient_checkpointing", json!(train.checkpointing));
    if train.checkpointing {
        put("gradient_checkpointing_kwargs", json!({ "use_reentrant": false }));
    }
    put("use_liger_kernel", json!(true));
    put("logging_first_step", json!(true));
    put("logging_steps", json!(10));
    put("include_num_input_tokens_seen", json!(true));
    put("save_strategy", json!("steps"));
    put("save_steps", json!(spec.save_every_steps.max(1)));
    put("save_total_limit", json!(2));
    put("report_to", json!("none"));
    if train.master == Precision::Bf16 && train.learning_rate < 2e-5 {
        native.notes.push(
            "`master: bf16` rounds most steps of a learning rate under 2e-5 to nothing".to_owned(),
        );
    }
    Ok(map)
}
