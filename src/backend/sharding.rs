//! How states are spread over devices: the automatic choice, `DeepSpeed`'s files, accelerate's file, FSDP 2.

use serde_json::{Map, Value, json};

use super::protocol::{Method, Precision, Sharding, Spec, TrainingStage};
use super::refusal::refused;
use super::yaml;
use crate::error::Result;

/// The choice for `auto`: `zero1` for `pretrain`, whose trained part is small, `zero3` otherwise; none on one device.
pub(super) fn resolve(spec: &Spec) -> Sharding {
    match spec.parallel.sharding {
        Sharding::Auto if devices(spec) <= 1 => Sharding::None,
        Sharding::Auto if spec.stage == TrainingStage::Pretrain => Sharding::Zero1,
        Sharding::Auto if spec.trainable.method == Method::Layers => Sharding::Zero1,
        Sharding::Auto => Sharding::Zero3,
        chosen => chosen,
    }
}

/// GPUs over all nodes.
pub(super) fn devices(spec: &Spec) -> u32 {
    spec.parallel.gpus.max(1).saturating_mul(spec.parallel.nodes.max(1))
}

/// Name and text of the `DeepSpeed` file for a way of sharding; `None` where it is not `DeepSpeed`'s.
///
/// `auto` is filled in by transformers from the training arguments. With `bf16` enabled the optimizer works on f32 masters.
pub(super) fn deepspeed(sharding: Sharding, spec: &Spec) -> Option<(&'static str, String)> {
    let (name, zero) = match sharding {
        Sharding::Zero1 => ("zero1.json", json!({ "stage": 1, "overlap_comm": true })),
        Sharding::Zero2 => (
            "zero2.json",
            json!({ "stage": 2, "overlap_comm": true, "contiguous_gradients": true }),
        ),
        Sharding::Zero3 => (
            "zero3.json",
            json!({
                "stage": 3,
                "overlap_comm": true,
                "contiguous_gradients": true,
                "sub_group_size": 0,
                "reduce_bucket_size": "auto",
                "stage3_prefetch_bucket_size": "auto",
                "stage3_param_persistence_threshold": "auto",
                "stage3_max_live_parameters": 0,
                "stage3_max_reuse_distance": 0,
                "stage3_gather_16bit_weights_on_model_save": true
            }),
        ),
        Sharding::Auto | Sharding::None | Sharding::Fsdp2 => return None,
    };
    let file = json!({
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": true,
        "bf16": { "enabled": spec.train.compute == Precision::Bf16 },
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "wall_clock_breakdown": false
    });
    let text = serde_json::to_string_pretty(&file).unwrap_or_default();
    Some((name, text + "\n"))
}

/// FSDP 2 as axolotl and accelerate spell it, with the given prefix for the keys.
pub(super) fn fsdp2(spec: &Spec, prefix: &str) -> Result<Map<String, Value>> {
    let Some(class) = &spec.model.layer_class else {
        return Err(refused(
            format!("`sharding: fsdp2` for `{}`", spec.model.family),
            "the class of its decoder layers is not known",
            "choose `sharding: zero3`",
        ));
    };
    let mut map = Map::new();
    let mut put = |key: &str, value: Value| map.insert(format!("{prefix}{key}"), value);
    put("offload_params", json!(false));
    put("cpu_ram_efficient_loading", json!(true));
    put("auto_wrap_policy", json!("TRANSFORMER_BASED_WRAP"));
    put("transformer_layer_cls_to_wrap", json!(class));
    put("state_dict_type", json!("FULL_STATE_DICT"));
    put("reshard_after_forward", json!(true));
    Ok(map)
}

/// accelerate's configuration for several processes, without `DeepSpeed`, which the training arguments name.
pub(super) fn accelerate(spec: &Spec, sharding: Sharding) -> Result<String> {
    let mut map = Map::new();
    let mut put = |key: &str, value: Value| map.insert(key.to_owned(), value);
    put("compute_environment", json!("LOCAL_MACHINE"));
    let kind = match sharding {
        Sharding::Fsdp2 => "FSDP",
        _ if devices(spec) > 1 => "MULTI_GPU",
        _ => "NO",
    };
    put("distributed_type", json!(kind));
    if sharding == Sharding::Fsdp2 {
        let mut fsdp = Map::from_iter([("fsdp_version".to_owned(), json!(2))]);
        fsdp.extend(fsdp2(spec, "fsdp_")?);
        put("fsdp_config", Value::Object(fsdp));
    }
    let mixed = if spec.train.compute == Precision::Bf16 { "bf16" } else { "no" };
    put("mixed_precision", json!(mixed));
    put("num_machines", json!(spec.parallel.nodes.max(1)));
    put("num_processes", json!(devices(spec)));
    put("machine_rank", json!(0));
    put("rdzv_backend", json!(if spec.parallel.nodes > 1 { "c10d" } else { "static" }));
    put("same_network", json!(true));
    put("main_training_function", json!("main"));
    Ok(yaml::document(&map))
}
