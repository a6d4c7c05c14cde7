//! A spec in LLaMA-Factory's keys. It refuses unknown ones.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::super::launch::{stage_directory, word};
use super::super::native::Native;
use super::super::protocol::{
    DataFormat, Lora, LossOn, Method, Optimizer, Packing, Precision, Resume, Sharding, Spec,
    TrainingStage,
};
use super::super::refusal::{refused, text};
use super::super::{BackendSettings, layers, sharding};
use crate::error::Result;

/// The training configuration; files it names and notes go to `native`.
pub(super) fn training(
    spec: &Spec,
    settings: &BackendSettings,
    output: &Path,
    way: Sharding,
    native: &mut Native,
) -> Result<Map<String, Value>> {
    let train = &spec.train;
    let mut map = Map::new();
    put(&mut map, "model_name_or_path", json!(text(&spec.model.dir)?));
    if spec.tokenizer.dir != spec.model.dir {
        return Err(refused(
            "a tokenizer beside the model on llama-factory",
            "it takes model and tokenizer from one directory",
            "put the tokenizer's files into the model's directory",
        ));
    }
    let frozen = spec.trainable.method != Method::Full;
    if frozen && train.compute == Precision::Fp32 && spec.model.dtype != "f32" {
        return Err(refused(
            "`compute: fp32` on llama-factory",
            format!(
                "it loads {} weights as they are and widens only what trains",
                spec.model.dtype
            ),
            "choose `compute: bf16`, or another backend",
        ));
    }
    if settings.trust_remote_code {
        put(&mut map, "trust_remote_code", json!(true));
    }
    let chats = spec.stage == TrainingStage::Sft;
    put(&mut map, "stage", json!(if chats { "sft" } else { "pt" }));
    put(&mut map, "do_train", json!(true));
    trainable(&mut map, spec)?;
    data(&mut map, spec, native)?;
    put(&mut map, "output_dir", json!(text(output)?));
    put(&mut map, "overwrite_output_dir", json!(spec.resume == Resume::Never));

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
    put(&mut map, "optim", json!(optimizer));
    put(&mut map, "learning_rate", json!(train.learning_rate));
    put(&mut map, "lr_scheduler_type", json!(word(&train.schedule)));
    put(&mut map, "warmup_steps", json!(train.warmup_ratio));
    put(&mut map, "weight_decay", json!(train.weight_decay));
    put(&mut map, "max_grad_norm", json!(train.max_grad_norm));
    put(&mut map, "per_device_train_batch_size", json!(train.micro_batch));
    put(&mut map, "gradient_accumulation_steps", json!(train.accumulation));
    put(&mut map, "num_train_epochs", json!(f64::from(train.epochs)));
    if let Some(steps) = train.max_steps {
        put(&mut map, "max_steps", json!(steps));
    }
    put(&mut map, "seed", json!(train.seed));
    precision(&mut map, spec, way, native);
    put(&mut map, "disable_gradient_checkpointing", json!(!train.checkpointing));
    put(&mut map, "use_reentrant_gc", json!(false));
    put(&mut map, "enable_liger_kernel", json!(true));
    put(&mut map, "enable_jit_checkpoint", json!(true));
    put(&mut map, "include_num_input_tokens_seen", json!(true));
    put(&mut map, "logging_first_step", json!(true));
    put(&mut map, "logging_steps", json!(10));
    // Never `no`: the state that tells how a run ended lies in the checkpoints.
    put(&mut map, "save_strategy", json!("steps"));
    put(&mut map, "save_steps", json!(spec.save_every_steps.max(1)));
    put(&mut map, "save_total_limit", json!(2));
    put(&mut map, "report_to", json!("none"));
    put(&mut map, "ddp_timeout", json!(180_000_000));
    if let Some((name, content)) = sharding::deepspeed(way, spec) {
        put(&mut map, "deepspeed", json!(text(&stage_directory(&spec.out.result).join(name))?));
        native.add(name, content);
    }
    Ok(map)
}

fn put(map: &mut Map<String, Value>, key: &str, value: Value) {
    map.insert(key.to_owned(), value);
}

/// What trains. Freezing knows only the first or the last n layers.
fn trainable(map: &mut Map<String, Value>, spec: &Spec) -> Result<()> {
    match spec.trainable.method {
        Method::Full => put(map, "finetuning_type", json!("full")),
        Method::Layers => {
            put(map, "finetuning_type", json!("freeze"));
            put(map, "freeze_trainable_layers", json!(span(spec)?));
            put(map, "freeze_trainable_modules", json!("all"));
        }
        Method::Lora => {
            let Lora { rank, alpha, dropout } = spec.trainable.lora.clone().unwrap_or_default();
            put(map, "finetuning_type", json!("lora"));
            put(map, "lora_rank", json!(rank));
            put(map, "lora_alpha", json!(alpha));
            put(map, "lora_dropout", json!(dropout));
            let modules = layers::modules(spec);
            let target = if modules.is_empty() { "all".to_owned() } else { modules.join(",") };
            put(map, "lora_target", json!(target));
        }
    }
    Ok(())
}

/// n for the last n layers, -n for the first n.
fn span(spec: &Spec) -> Result<i64> {
    let (trained, all_in_layers) = layers::of_trainable(spec);
    let (count, layers) = (trained.len() as u64, spec.model.layers);
    let is_last = trained.iter().copied().eq(layers.saturating_sub(count)..layers);
    let is_first = trained.iter().copied().eq(0..count);
    let refuse = |reason: String| {
        refused(
            "`method: layers` on llama-factory",
            reason,
            "choose the backend axolotl, trl or builtin, which freeze by name",
        )
    };
    if !all_in_layers {
        return Err(refuse("it freezes whole layers and nothing else".to_owned()));
    }
    // It looks for `.3.` anywhere in a name, and experts are numbered like layers.
    let experts = spec.trainable.tensors.iter().any(|name| name.contains(".experts."));
    if experts && count < layers {
        return Err(refuse("it takes numbered experts for layers".to_owned()));
    }
    let sign = if is_last {
        1
    } else if is_first {
        -1
    } else {
        return Err(refuse("it can train the first or the last layers, not these".to_owned()));
    };
    Ok(sign * i64::try_from(count).unwrap_or(i64::MAX))
}

fn data(map: &mut Map<String, Value>, spec: &Spec, native: &mut Native) -> Result<()> {
    let train = &spec.train;
    let names: Vec<String> = (0..spec.data.len()).map(dataset_name).collect();
    put(map, "dataset_dir", json!(text(stage_directory(&spec.out.result))?));
    put(map, "dataset", json!(names.join(",")));
    put(map, "tokenized_path", json!(text(&spec.out.work.join("tokenized"))?));
    let packed = train.packing != Packing::None;
    let chats = spec.stage == TrainingStage::Sft;
    // Packing takes one token off this; packed chats are padded by one again, packed text is not.
    put(map, "cutoff_len", json!(train.sequence_length + u32::from(packed && !chats)));
    put(map, "packing", json!(packed));
    put(map, "preprocessing_num_workers", json!(8));
    if chats {
        if packed && !train.sequence_length.is_multiple_of(8) {
            return Err(refused(
                format!("packed sequences of {} tokens on llama-factory", train.sequence_length),
                "it pads packed chats to a multiple of 8 and their positions not",
                "choose a `sequence_length` that is a multiple of 8",
            ));
        }
        put(map, "neat_packing", json!(train.packing == Packing::DocMask));
        put(map, "train_on_prompt", json!(train.loss_on == LossOn::All));
        return Ok(());
    }
    if !packed {
        return Err(refused(
            "`packing: none` for text on llama-factory",
            "it drops what a document has beyond one sequence",
            "choose `packing: plain`, or the backend axolotl or trl",
        ));
    }
    if train.packing == Packing::DocMask {
        native.notes.push(
            "LLaMA-Factory packs text without a document mask: attention runs over document borders".to_owned(),
        );
    }
    native.notes.push(
        "LLaMA-Factory drops the tail of every 10000 documents and puts the first token of each sequence in place of another where the tokenizer has one".to_owned(),
    );
    put(map, "preprocessing_batch_size", json!(10_000));
    Ok(())
}

fn dataset_name(index: usize) -> String {
    format!("elo_{index}")
}

/// `dataset_info.json`: what the records are.
pub(super) fn datasets(spec: &Spec) -> Result<String> {
    let mut map = Map::new();
    for (index, file) in spec.data.iter().enumerate() {
        let path = text(&file.path)?;
        let entry = match file.format {
            DataFormat::Text => json!({ "file_name": path, "columns": { "prompt": "text" } }),
            DataFormat::Messages => json!({
                "file_name": path,
                "formatting": "sharegpt",
                "columns": { "messages": "messages" },
                "tags": {
                    "role_tag": "role", "content_tag": "content", "user_tag": "user",
                    "assistant_tag": "assistant", "system_tag": "system"
                }
            }),
        };
        put(&mut map, &dataset_name(index), entry);
    }
    Ok(serde_json::to_string_pretty(&map).unwrap_or_default() + "\n")
}

/// Trained weights are widened to f32 unless `pure_bf16` is said, which mixed precision excludes.
fn precision(map: &mut Map<String, Value>, spec: &Spec, way: Sharding, native: &mut Native) {
    let train = &spec.train;
    let half = train.compute == Precision::Bf16;
    let deepspeed = matches!(way, Sharding::Zero1 | Sharding::Zero2 | Sharding::Zero3);
    let pure = half && train.master == Precision::Bf16 && !deepspeed;
    put(map, "bf16", json!(half && !pure));
    if pure {
        put(map, "pure_bf16", json!(true));
        if train.learning_rate < 2e-5 {
            native.notes.push(
                "`master: bf16` rounds most steps of a learning rate under 2e-5 to nothing"
                    .to_owned(),
            );
        }
    }
}

/// The configuration of `llamafactory-cli export`, which merges adapters.
pub(super) fn export(
    spec: &Spec,
    settings: &BackendSettings,
    adapters: &Path,
    merged: &Path,
    template: Option<Value>,
) -> Result<Map<String, Value>> {
    let mut map = Map::new();
    put(&mut map, "model_name_or_path", json!(text(&spec.model.dir)?));
    put(&mut map, "adapter_name_or_path", json!(text(adapters)?));
    put(&mut map, "finetuning_type", json!("lora"));
    put(&mut map, "template", template.unwrap_or_else(|| json!("empty")));
    if settings.trust_remote_code {
        put(&mut map, "trust_remote_code", json!(true));
    }
    put(&mut map, "export_dir", json!(text(merged)?));
    put(&mut map, "export_size", json!(5));
    put(&mut map, "export_device", json!("cpu"));
    Ok(map)
}
