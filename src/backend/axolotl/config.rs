//! A spec in axolotl's keys. Its schema drops unknown keys in silence, so every one here is held to the real schema by
//! `tests/peers/check_backends.py`.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::super::launch::{stage_directory, word};
use super::super::native::Native;
use super::super::protocol::{
    DataFormat, Lora, LossOn, Method, Optimizer, Packing, Precision, Sharding, Spec, TrainingStage,
};
use super::super::refusal::{refused, text};
use super::super::{BackendSettings, layers, sharding};
use super::resumes;
use crate::error::Result;

/// Families whose loss Liger fuses with the head in axolotl, so that logits are never whole in memory.
const FUSED_LOSS: [&str; 8] =
    ["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3"];

/// axolotl's configuration; files it names and notes go to `native`.
pub(super) fn build(
    spec: &Spec,
    settings: &BackendSettings,
    output: &Path,
    native: &mut Native,
) -> Result<Map<String, Value>> {
    let train = &spec.train;
    let mut map = Map::new();
    put(&mut map, "base_model", json!(text(&spec.model.dir)?));
    if spec.tokenizer.dir != spec.model.dir {
        put(&mut map, "tokenizer_config", json!(text(&spec.tokenizer.dir)?));
    }
    if settings.trust_remote_code {
        put(&mut map, "trust_remote_code", json!(true));
    }
    put(&mut map, "output_dir", json!(text(output)?));
    data(&mut map, spec, native)?;
    trainable(&mut map, spec)?;

    put(&mut map, "sequence_len", json!(train.sequence_length));
    let packed = train.packing != Packing::None;
    if train.packing == Packing::Plain {
        native
            .notes
            .push("axolotl keeps packed documents apart whatever `packing` says".to_owned());
    }
    put(&mut map, "sample_packing", json!(packed));
    put(&mut map, "pad_to_sequence_len", json!(packed));
    let half = train.compute == Precision::Bf16;
    put(&mut map, "attn_implementation", json!(if half { "flash_attention_2" } else { "sdpa" }));

    let way = precision(&mut map, spec, native)?;
    let optimizer = match (train.optimizer, way) {
        (Optimizer::AdamW8Bit, Sharding::Fsdp2) => {
            native.notes.push(
                "FSDP 2 takes no bitsandbytes optimizer: `adamw_torch_8bit` of torchao instead"
                    .to_owned(),
            );
            "adamw_torch_8bit"
        }
        (Optimizer::AdamW8Bit, _) => "adamw_bnb_8bit",
        (Optimizer::AdamW, _) => "adamw_torch_fused",
    };
    put(&mut map, "optimizer", json!(optimizer));
    put(&mut map, "learning_rate", json!(train.learning_rate));
    put(&mut map, "lr_scheduler", json!(word(&train.schedule)));
    // axolotl's own default is 3 %, at most 100 steps.
    put(&mut map, "warmup_ratio", json!(train.warmup_ratio));
    put(&mut map, "weight_decay", json!(train.weight_decay));
    put(&mut map, "max_grad_norm", json!(train.max_grad_norm));
    put(&mut map, "micro_batch_size", json!(train.micro_batch));
    put(&mut map, "gradient_accumulation_steps", json!(train.accumulation));
    put(&mut map, "num_epochs", json!(train.epochs));
    if let Some(steps) = train.max_steps {
        put(&mut map, "max_steps", json!(steps));
    }
    put(&mut map, "seed", json!(train.seed));
    put(&mut map, "gradient_checkpointing", json!(train.checkpointing));
    if train.checkpointing {
        // The reentrant form finds no gradient behind a frozen embedding.
        put(&mut map, "gradient_checkpointing_kwargs", json!({ "use_reentrant": false }));
    }
    put(&mut map, "logging_steps", json!(10));
    // Else tokens are not counted.
    put(&mut map, "include_tokens_per_second", json!(true));
    // Never `no`: the state that tells how a run ended lies in the checkpoints.
    put(&mut map, "save_strategy", json!("steps"));
    put(&mut map, "save_steps", json!(spec.save_every_steps.max(1)));
    put(&mut map, "save_total_limit", json!(2));
    put(&mut map, "auto_resume_from_checkpoints", json!(resumes(spec)));
    put(&mut map, "dynamic_checkpoint", json!({ "enabled": true, "check_interval": 10 }));
    shard(&mut map, spec, way, native)?;

    let mut plugins = vec!["elo_axolotl.EloPlugin"];
    if half && FUSED_LOSS.contains(&spec.model.family.as_str()) {
        plugins.push("axolotl.integrations.liger.LigerPlugin");
        put(&mut map, "liger_fused_linear_cross_entropy", json!(true));
    }
    put(&mut map, "plugins", json!(plugins));
    Ok(map)
}

fn put(map: &mut Map<String, Value>, key: &str, value: Value) {
    map.insert(key.to_owned(), value);
}

fn data(map: &mut Map<String, Value>, spec: &Spec, native: &mut Native) -> Result<()> {
    let mut sets = Vec::new();
    for file in &spec.data {
        let path = text(&file.path)?;
        sets.push(match file.format {
            // Never `pretraining_dataset`: it reads only its first entry.
            DataFormat::Text => json!({
                "path": path, "ds_type": "json", "split": "train", "type": "completion", "field": "text"
            }),
            DataFormat::Messages => json!({
                "path": path, "ds_type": "json", "split": "train", "type": "chat_template",
                "field_messages": "messages",
                "message_property_mappings": { "role": "role", "content": "content" },
                "roles_to_train": roles(spec.train.loss_on), "train_on_eos": "turn"
            }),
        });
    }
    let text_length = spec.data.iter().filter(|file| file.records > 0);
    let longest = text_length.map(|file| file.bytes / file.records).max().unwrap_or_default();
    if spec.stage != TrainingStage::Sft && longest > 64 * u64::from(spec.train.sequence_length) {
        native.notes.push(
            "axolotl drops what a document has beyond 64 sequences, and these are long: split them"
                .to_owned(),
        );
    }
    if spec.data.iter().any(|file| file.format == DataFormat::Messages) {
        put(map, "chat_template", json!("tokenizer_default"));
        put(map, "excess_length_strategy", json!("drop"));
    }
    put(map, "datasets", Value::Array(sets));
    put(map, "dataset_prepared_path", json!(text(&spec.out.work.join("prepared"))?));
    put(map, "shuffle_merged_datasets", json!(true));
    put(map, "val_set_size", json!(0.0));
    Ok(())
}

fn roles(loss_on: LossOn) -> Vec<&'static str> {
    match loss_on {
        LossOn::Assistant => vec!["assistant"],
        LossOn::All => vec!["system", "user", "assistant"],
    }
}

/// What trains. axolotl's patterns escape dots themselves (a backslash would make them match nothing) and match from the
/// start of a name, so a layer's own prefix with its closing dot names that layer and no other.
fn trainable(map: &mut Map<String, Value>, spec: &Spec) -> Result<()> {
    match spec.trainable.method {
        Method::Full => {}
        Method::Layers => {
            let mut patterns: Vec<String> = Vec::new();
            for name in &spec.trainable.tensors {
                let pattern = match layers::split(name) {
                    Some((before, layer, _)) => format!("^{before}{layer}."),
                    None => format!("^{name}$"),
                };
                if !patterns.contains(&pattern) {
                    patterns.push(pattern);
                }
            }
            if patterns.is_empty() {
                return Err(refused(
                    "`method: layers`",
                    "no tensor is listed to train",
                    "an empty list would train everything: name at least one layer",
                ));
            }
            put(map, "unfrozen_parameters", json!(patterns));
        }
        Method::Lora => {
            let Lora { rank, alpha, dropout } = spec.trainable.lora.clone().unwrap_or_default();
            put(map, "adapter", json!("lora"));
            put(map, "lora_r", json!(rank));
            put(map, "lora_alpha", json!(alpha));
            put(map, "lora_dropout", json!(dropout));
            match layers::modules(spec) {
                modules if modules.is_empty() => put(map, "lora_target_linear", json!(true)),
                modules => put(map, "lora_target_modules", json!(modules)),
            }
        }
    }
    Ok(())
}

/// Dtypes. With `bf16` axolotl loads weights in bf16, and steps of 5e-6 round to nothing in it; only `DeepSpeed` keeps f32
/// masters then. Adapters are f32 anyway.
fn precision(map: &mut Map<String, Value>, spec: &Spec, native: &mut Native) -> Result<Sharding> {
    let train = &spec.train;
    let mut way = sharding::resolve(spec);
    let half = train.compute == Precision::Bf16;
    put(map, "bf16", json!(half));
    put(map, "fp16", json!(false));
    put(map, "tf32", json!(true));
    let masters = half && train.master == Precision::Fp32;
    if masters && spec.trainable.method != Method::Lora {
        match way {
            Sharding::Auto | Sharding::None => {
                native.notes.push(
                    "axolotl keeps f32 masters only under DeepSpeed: ZeRO-1, also on one GPU"
                        .to_owned(),
                );
                way = Sharding::Zero1;
            }
            Sharding::Fsdp2 => {
                return Err(refused(
                    "`sharding: fsdp2` with `master: fp32` on axolotl",
                    "axolotl loads bf16 weights and FSDP 2 trains them as they are",
                    "choose `sharding: zero3`, or `master: bf16` for learning rates that bf16 can follow, or the backend trl",
                ));
            }
            Sharding::Zero1 | Sharding::Zero2 | Sharding::Zero3 => {}
        }
    }
    if train.master == Precision::Bf16 && train.learning_rate < 2e-5 {
        native.notes.push(
            "`master: bf16` rounds most steps of a learning rate under 2e-5 to nothing".to_owned(),
        );
    }
    Ok(way)
}

fn shard(
    map: &mut Map<String, Value>,
    spec: &Spec,
    way: Sharding,
    native: &mut Native,
) -> Result<()> {
    if let Some((name, content)) = sharding::deepspeed(way, spec) {
        put(map, "deepspeed", json!(text(&stage_directory(&spec.out.result).join(name))?));
        native.add(name, content);
    }
    if way == Sharding::Fsdp2 {
        put(map, "fsdp_version", json!(2));
        put(map, "fsdp_config", Value::Object(sharding::fsdp2(spec, "")?));
    }
    Ok(())
}
