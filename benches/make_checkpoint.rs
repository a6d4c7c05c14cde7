//! Writes a checkpoint of seeded random weights in bf16, shaped like Llama and sharded like those on the Hub.
//!
//! Weights are those of `--seed`; `--delta` adds noise of that size, drawn from `--noise-seed`, so that
//! models of one seed are relatives, as a base model and what was tuned from it are. `--sparse` leaves holes
//! in place of data except for the last bytes of each tensor: any size fits on any disk, and headers,
//! plans and offsets are real.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use clap::Parser;
use elo_surgery::format::{
    Dtype, Header, Index, Shape, TensorEntry, shard_file_name, split_by_size,
};
use half::bf16;
use rayon::prelude::*;
use serde_json::{Value, json};

/// Elements generated between two writes.
const BLOCK: u64 = 1 << 24;

/// Elements of a sparse tensor that are written, at its end.
const TAIL: u64 = 2048;

#[derive(Parser)]
struct Options {
    /// Directory to write.
    out: PathBuf,
    #[arg(long, default_value_t = 2048)]
    hidden: u64,
    #[arg(long, default_value_t = 16)]
    layers: u64,
    #[arg(long, default_value_t = 32_768)]
    vocab: u64,
    #[arg(long, default_value_t = 8192)]
    inter: u64,
    #[arg(long, default_value_t = 16)]
    heads: u64,
    #[arg(long, default_value_t = 4)]
    kv_heads: u64,
    /// Experts of a layer, fused into two tensors; 0 for a dense model.
    #[arg(long, default_value_t = 0)]
    experts: u64,
    /// Most data bytes of a shard, in MB.
    #[arg(long, default_value_t = 500)]
    shard_mb: u64,
    /// Seed of the weights.
    #[arg(long, default_value_t = 7)]
    seed: u64,
    /// Seed of the noise.
    #[arg(long, default_value_t = 0)]
    noise_seed: u64,
    /// Standard deviation of the noise; the weights' is 0.02.
    #[arg(long, default_value_t = 0.0)]
    delta: f32,
    /// Write holes instead of data.
    #[arg(long)]
    sparse: bool,
}

fn main() -> io::Result<()> {
    let options = Options::parse();
    fs::create_dir_all(&options.out)?;
    let tensors = tensors(&options);
    let sizes: Vec<u64> = tensors.iter().map(|(_, s)| 2 * elements(s)).collect();
    let shards = split_by_size(&sizes, options.shard_mb * 1_000_000);
    let mut index = Index {
        weight_map: BTreeMap::new(),
        total_size: Some(sizes.iter().sum()),
        total_parameters: None,
    };
    for (number, range) in shards.iter().enumerate() {
        let file = shard_file_name(number, shards.len());
        write_shard(&options, &file, range.start as u64, &tensors[range.clone()])?;
        for (name, _) in &tensors[range.clone()] {
            index.weight_map.insert(name.clone(), file.clone());
        }
    }
    let path = options.out.join("model.safetensors.index.json");
    fs::write(path, index.to_bytes())?;
    let config = serde_json::to_vec_pretty(&config(&options))?;
    fs::write(options.out.join("config.json"), config)
}

/// Names and shapes, in the order that files have them.
fn tensors(options: &Options) -> Vec<(String, Shape)> {
    let (hidden, inter, experts) = (options.hidden, options.inter, options.experts);
    let kv = hidden / options.heads * options.kv_heads;
    let dense = vec![
        ("mlp.down_proj.weight", vec![hidden, inter]),
        ("mlp.gate_proj.weight", vec![inter, hidden]),
        ("mlp.up_proj.weight", vec![inter, hidden]),
    ];
    let fused = vec![
        ("mlp.experts.down_proj", vec![experts, hidden, inter]),
        ("mlp.experts.gate_up_proj", vec![experts, 2 * inter, hidden]),
        ("mlp.gate.weight", vec![experts, hidden]),
    ];
    let mut layer = vec![("input_layernorm.weight", vec![hidden])];
    layer.extend(if experts > 0 { fused } else { dense });
    layer.extend([
        ("post_attention_layernorm.weight", vec![hidden]),
        ("self_attn.k_proj.weight", vec![kv, hidden]),
        ("self_attn.o_proj.weight", vec![hidden, hidden]),
        ("self_attn.q_proj.weight", vec![hidden, hidden]),
        ("self_attn.v_proj.weight", vec![kv, hidden]),
    ]);
    let named = |name: &str, shape: &[u64]| (name.to_owned(), Shape(shape.to_vec()));
    let mut all = vec![named("model.embed_tokens.weight", &[options.vocab, hidden])];
    for number in 0..options.layers {
        let in_layer = |(name, shape): &(&str, Vec<u64>)| {
            named(&format!("model.layers.{number}.{name}"), shape)
        };
        all.extend(layer.iter().map(in_layer));
    }
    all.push(named("model.norm.weight", &[hidden]));
    all.push(named("lm_head.weight", &[options.vocab, hidden]));
    all
}

fn elements(shape: &Shape) -> u64 {
    shape.0.iter().product()
}

/// Writes one shard; `first` is the number of its first tensor in the model.
fn write_shard(
    options: &Options,
    file: &str,
    first: u64,
    tensors: &[(String, Shape)],
) -> io::Result<()> {
    let mut header = Header {
        metadata: BTreeMap::from([("format".to_owned(), "pt".to_owned())]),
        tensors: Vec::new(),
    };
    let mut end = 0;
    for (name, shape) in tensors {
        let range = end..end + 2 * elements(shape);
        end = range.end;
        let (name, shape) = (name.clone(), shape.clone());
        header.tensors.push(TensorEntry { name, dtype: Dtype::BF16, shape, range });
    }
    // Eight, as the safetensors library pads: data of real checkpoints is not aligned to pages.
    let bytes = header.to_bytes(8);
    let data = bytes.len() as u64;
    let mut output = File::create(options.out.join(file))?;
    output.write_all(&bytes)?;
    output.set_len(data + end)?;
    for (tensor, entry) in (first..).zip(&header.tensors) {
        let count = elements(&entry.shape);
        let mean = if entry.shape.0.len() == 1 { 1.0 } else { 0.0 };
        let mut start = if options.sparse { count.saturating_sub(TAIL) } else { 0 };
        while start < count {
            let stop = count.min(start + BLOCK);
            let weights: Vec<[u8; 2]> = (start..stop)
                .into_par_iter()
                .map(|i| weight(options, tensor, i, mean).to_le_bytes())
                .collect();
            output.write_all_at(weights.as_flattened(), data + entry.range.start + 2 * start)?;
            start = stop;
        }
    }
    Ok(())
}

/// One weight of a tensor.
fn weight(options: &Options, tensor: u64, element: u64, mean: f32) -> bf16 {
    let place = tensor << 40 | element;
    let mut weight = mean + 0.02 * normal(options.seed, place);
    if options.delta > 0.0 {
        weight += options.delta * normal(!options.noise_seed, place);
    }
    bf16::from_f32(weight)
}

/// Nearly a standard normal deviate: the sum of four uniform ones, from a mix of seed and place (`SplitMix64`).
fn normal(seed: u64, place: u64) -> f32 {
    let mut mixed = seed
        .wrapping_mul(0xd134_2543_de82_ef95)
        .wrapping_add(place.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^= mixed >> 31;
    let part = |shift: u32| f32::from((mixed >> shift & 0xffff) as u16) / 65_536.0;
    (part(0) + part(16) + part(32) + part(48) - 2.0) * 3.0_f32.sqrt()
}

fn config(options: &Options) -> Value {
    let mut config = json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": options.hidden,
        "intermediate_size": options.inter,
        "num_hidden_layers": options.layers,
        "num_attention_heads": options.heads,
        "num_key_value_heads": options.kv_heads,
        "head_dim": options.hidden / options.heads,
        "vocab_size": options.vocab,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500_000.0,
        "hidden_act": "silu",
        "max_position_embeddings": 8192,
        "tie_word_embeddings": false,
        "torch_dtype": "bfloat16",
        "bos_token_id": 1,
        "eos_token_id": 2,
    });
    if options.experts > 0 {
        config["architectures"] = json!(["Qwen3MoeForCausalLM"]);
        config["model_type"] = json!("qwen3_moe");
        config["num_experts"] = json!(options.experts);
        config["num_experts_per_tok"] = json!(8);
        config["moe_intermediate_size"] = json!(options.inter);
    }
    config
}
