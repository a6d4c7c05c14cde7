use super::*;
use crate::backend::protocol::{
    Hyperparameters, LossOn, Method, Optimizer, Packing, Precision, Schedule, Sharding,
    TrainingStage,
};

/// The paper's hyperparameters (Table 7) for a stage with this batch.
fn train(batch: u32) -> Hyperparameters {
    Hyperparameters {
        epochs: 1,
        max_steps: None,
        sequence_length: 8192,
        packing: Packing::DocMask,
        micro_batch: batch,
        accumulation: 1,
        optimizer: Optimizer::AdamW8Bit,
        learning_rate: 5e-6,
        schedule: Schedule::Cosine,
        warmup_ratio: 0.0,
        weight_decay: 0.0,
        max_grad_norm: 1.0,
        seed: 42,
        compute: Precision::Bf16,
        master: Precision::Fp32,
        loss_on: LossOn::All,
        checkpointing: true,
    }
}

/// Llama-3.1-8B: embedding and head 128256 x 4096; a layer: q and o 4096², k and v 4096 x 1024, gate, up and down
/// 4096 x 14336, two norms.
fn llama_8b() -> Shape {
    llama(32, 4096, 14336, 32)
}

/// Llama-3.1-70B.
fn llama_70b() -> Shape {
    llama(80, 8192, 28672, 64)
}

fn llama(layers: u64, hidden: u64, intermediate: u64, heads: u64) -> Shape {
    let (vocab, keys) = (128_256, 8 * 128);
    let layer = 2 * hidden * hidden + 2 * hidden * keys + 3 * hidden * intermediate + 2 * hidden;
    Shape {
        family: "llama".into(),
        layers,
        hidden,
        intermediate,
        heads,
        kv_heads: 8,
        head_dim: 128,
        vocab,
        tied: false,
        parameters: layers * layer + 2 * vocab * hidden + hidden,
        layer_parameters: layer,
        active_layer_parameters: layer,
        embedding_parameters: vocab * hidden,
    }
}

fn near(found: f64, expected: f64, tolerance: f64) {
    let off = (found / expected - 1.0).abs();
    assert!(off < tolerance, "{found} is not {expected}");
}

fn close(found: u64, expected: u64) {
    near(amount(found), amount(expected), 0.005);
}

#[test]
fn parameters_are_those_of_the_models() {
    assert_eq!(llama_8b().parameters, 8_030_261_248);
    assert_eq!(llama_8b().layer_parameters, 218_112_000);
    assert_eq!(llama_70b().parameters, 70_553_706_496);
    let detached = llama_8b().with_layers(2);
    assert_eq!(detached.parameters, 2 * 218_112_000 + 2 * 525_336_576 + 4096);
    assert_eq!(detached.weight_bytes(2), 2 * detached.parameters);
}

/// By hand: ELO `2 (436.2 + 525.3) + 2 525.3 + 4 436.2 = 4718 M`; full `6 (6979.6 + 525.3) = 45.03 G`, and 48.2 were
/// the embedding counted. Attention at 8192 tokens: `6 n s d = 6 x 2 x 8192 x 4096 = 0.403 G`, and 6.44 G for 32.
#[test]
fn arithmetic_of_elo_is_a_tenth_of_full_fine_tuning() {
    let (train, detached, whole) = (train(4), llama_8b().with_layers(2), llama_8b());
    let request = Request::new(&detached, TrainingStage::Pretrain, &train);
    let elo = Flops::of(&request);
    near(elo.forward + elo.activations + elo.weights, 4.718e9, 1e-3);
    near(elo.attention, 0.4027e9, 1e-3);
    near(elo.again, 2.0 * 436.224e6 + 0.1342e9, 1e-3);
    let full = Flops::of(&Request { shape: &whole, method: Method::Full, ..request.clone() });
    near(full.model() - full.attention, 45.03e9, 1e-3);
    near(full.attention, 6.442e9, 1e-3);
    near(full.model() / elo.model(), 10.05, 0.01);
    // Two layers trained within the whole model: only gradients of weights are saved.
    let layers = Request { shape: &whole, trained_layers: 2, ..request.clone() };
    near(Flops::of(&layers).weights, 2.0 * 436.224e6, 1e-6);
    near(Flops::of(&layers).activations, full.activations, 1e-9);
}

/// The paper: 2.5 B tokens in 1.5 h, full fine-tuning 2.8 B in 19.8 h; 8 H100 taken for granted.
#[test]
fn times_of_the_paper_are_in_range() {
    let (train, detached, whole) = (train(4), llama_8b().with_layers(2), llama_8b());
    let elo = Request {
        tokens: 2_500_000_000,
        gpus: 8,
        backend: "axolotl",
        ..Request::new(&detached, TrainingStage::Pretrain, &train)
    };
    let range = estimate(&elo).seconds.unwrap();
    assert!(range.contains(&(1.5 * 3600.0)), "{range:?}");
    let tokens = 2_800_000_000;
    let full = Request { shape: &whole, method: Method::Full, tokens, ..elo.clone() };
    let range = estimate(&full).seconds.unwrap();
    assert!(range.contains(&(19.8 * 3600.0)), "{range:?}");
    assert_eq!(estimate(&Request { tokens: 0, ..elo }).seconds, None);
}

/// By hand, ELO on 8 x H100 with ZeRO-1, N = 1.48691 B, T = 436.224 M: weights 2 N; masters 4 T / 8; gradients 2 T;
/// states 130/64 T / 8; activations 32768 tokens x (2 x 2 x 4096 + one layer's 167936) bytes; logits 1024 x 128256 x 10.
#[test]
fn memory_of_elo() {
    let (train, detached) = (train(4), llama_8b().with_layers(2));
    let request = Request {
        gpus: 8,
        backend: "axolotl",
        gpu_memory: Some(80_000_000_000),
        ..Request::new(&detached, TrainingStage::Pretrain, &train)
    };
    assert_eq!(request.sharded(), Sharded::States);
    let found = estimate(&request);
    close(found.memory.weights, 2_973_802_496);
    close(found.memory.master, 218_112_000);
    close(found.memory.gradients, 872_448_000);
    close(found.memory.optimizer, 110_760_000);
    close(found.memory.activations, 32_768 * (16_384 + 167_936));
    close(found.memory.logits, 1024 * 128_256 * 10);
    let memory = found.memory;
    let sum = memory.weights + memory.master + memory.gradients + memory.optimizer;
    assert_eq!(memory.total, sum + memory.activations + memory.logits + memory.overhead);
    assert_eq!(found.fits, Some(true));
    assert_eq!(found.trained, 436_224_000);
    let unfused = estimate(&Request { fused_loss: Some(false), ..request });
    // 16.8 GB a copy in f32, held two and a half times.
    close(unfused.memory.logits, 32_768 * 128_256 * 10);
}

/// Full fine-tuning of 8 B with f32 masters on one GPU: 2 N + 4 N + 4 N + 2 N, as 12 bytes a parameter; with f32
/// `AdamW` 18. On 8 GPUs with ZeRO-3 an eighth, and two whole embeddings.
#[test]
fn memory_of_full_fine_tuning() {
    let (train, whole) = (train(1), llama_8b());
    let alone = Request {
        backend: "trl",
        gpu_memory: Some(80_000_000_000),
        ..Request::new(&whole, TrainingStage::Align, &train)
    };
    let states = |m: Memory| m.weights + m.master + m.gradients + m.optimizer;
    let found = estimate(&alone);
    near(amount(states(found.memory)), 12.03 * 8.030e9, 1e-3);
    assert_eq!(found.fits, Some(false));
    let f32_states = Hyperparameters { optimizer: Optimizer::AdamW, ..train.clone() };
    let found = estimate(&Request { train: &f32_states, ..alone.clone() });
    near(amount(states(found.memory)), 18.0 * 8.030e9, 1e-3);
    let eight = Request { gpus: 8, ..alone.clone() };
    assert_eq!(eight.sharded(), Sharded::Parameters);
    let found = estimate(&eight);
    near(amount(states(found.memory)), 10.031 / 8.0 * 8.030e9 + 4.0 * 525.3e6, 1e-3);
    assert_eq!(found.fits, Some(true));
    let pure = Hyperparameters { master: Precision::Bf16, ..train.clone() };
    let found = estimate(&Request { train: &pure, ..alone });
    assert_eq!(found.memory.master, 0);
    near(amount(states(found.memory)), 6.03 * 8.030e9, 1e-3);
}

/// 70 B: ELO on one node of 8 x 80 GB fits without sharding weights; full fine-tuning needs more than that node.
#[test]
fn seventy_billion() {
    let (train, whole) = (train(1), llama_70b());
    let detached = whole.with_layers(2);
    let elo = Request {
        gpus: 8,
        backend: "axolotl",
        gpu_memory: Some(80_000_000_000),
        ..Request::new(&detached, TrainingStage::Pretrain, &train)
    };
    let found = estimate(&elo);
    // 2 (2 x 855.65 + 1050.67) + 2 x 1050.67 + 4 x 2 x 855.65 M, attention 6 x 2 x 8192 x 8192.
    near(found.flops_per_token, 14.47e9 + 0.805e9, 2e-3);
    assert_eq!(found.fits, Some(true));
    let full =
        Request { shape: &whole, method: Method::Full, sharding: Sharding::Zero3, ..elo.clone() };
    let found = estimate(&full);
    near(found.flops_per_token, 6.0 * (80.0 * 855.65e6 + 1050.67e6) + 32.21e9, 2e-3);
    assert_eq!(found.fits, Some(false), "{:?}", found.memory);
    let lora = Request { method: Method::Lora, ..full };
    assert_eq!(lora.trained(), 80 * 64 * (2 * 16_384 + 2 * 9_216 + 3 * 36_864));
    assert_eq!(estimate(&lora).fits, Some(true));
}

#[test]
fn the_built_in_backend_counts_ram_and_cores() {
    let (train, whole) = (train(1), llama_8b());
    let request = Request {
        tokens: 1_000_000,
        threads: 4,
        ..Request::new(&whole, TrainingStage::Align, &train)
    };
    let found = estimate(&request);
    assert_eq!(found.memory.weights, 4 * whole.parameters);
    assert_eq!(found.memory.optimizer, 8 * whole.parameters);
    assert_eq!(found.memory.master, 0);
    assert_eq!(found.fits, None);
    let seconds = found.seconds.unwrap();
    near(seconds.start, Flops::of(&request).hardware() * 1e6 / 440e9, 1e-9);
    near(seconds.end / seconds.start, 2.2, 1e-9);
    assert!(found.notes.iter().any(|note| note.contains("adamw8bit")), "{:?}", found.notes);
}

#[test]
fn an_outlook_compares_and_renders() {
    let (pretrain, align, whole) = (train(4), train(1), llama_8b());
    let detached = whole.with_layers(2);
    let first = Request {
        gpus: 8,
        backend: "axolotl",
        gpu_memory: Some(40_000_000_000),
        tokens: 2_500_000_000,
        ..Request::new(&detached, TrainingStage::Pretrain, &pretrain)
    };
    let second = Request {
        shape: &whole,
        stage: TrainingStage::Align,
        method: Method::Full,
        train: &align,
        tokens: 280_000_000,
        trained_layers: 2,
        ..first.clone()
    };
    let found = outlook(&whole, &[first, second]);
    let ratio = found.ratio.unwrap();
    assert!((3.0..15.0).contains(&ratio), "{ratio}");
    let methods: Vec<Method> = found.alternatives.iter().map(|a| a.method).collect();
    assert_eq!(methods, [Method::Full, Method::Layers, Method::Lora]);
    let memory: Vec<u64> = found.alternatives.iter().map(|a| a.estimate.memory.total).collect();
    assert!(memory[0] > memory[1] && memory[0] > memory[2], "{memory:?}");
    let text = found.render();
    assert!(text.contains("IN 40.0 GB"), "{text}");
    assert!(text.contains("full fine-tuning on the data of pretrain"), "{text}");
    assert!(text.lines().next().unwrap().starts_with("STAGE"), "{text}");
    let json = serde_json::to_value(&found).unwrap();
    assert_eq!(json["stages"][0]["stage"], "pretrain");
    assert_eq!(found.fits(), Some(true));
}

#[test]
fn shapes_are_read_from_checkpoints() {
    let dir = tempfile::tempdir().unwrap();
    let tensors: Vec<(String, Vec<u64>)> = [
        ("model.embed_tokens.weight", vec![16, 8]),
        ("model.layers.0.self_attn.q_proj.weight", vec![8, 8]),
        ("model.layers.0.mlp.experts.0.up_proj.weight", vec![12, 8]),
        ("model.layers.0.mlp.experts.1.up_proj.weight", vec![12, 8]),
        ("model.norm.weight", vec![8]),
    ]
    .map(|(name, shape)| (name.to_owned(), shape))
    .into();
    let mut offset = 0;
    let mut header = serde_json::Map::new();
    for (name, shape) in tensors {
        let end = offset + 4 * shape.iter().product::<u64>();
        header.insert(
            name,
            serde_json::json!({ "dtype": "F32", "shape": shape, "data_offsets": [offset, end] }),
        );
        offset = end;
    }
    let header = serde_json::to_vec(&header).unwrap();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header);
    file.resize(file.len() + usize::try_from(offset).unwrap(), 0);
    std::fs::write(dir.path().join("model.safetensors"), file).unwrap();
    let config = r#"{"model_type": "mixtral", "num_hidden_layers": 1, "hidden_size": 8,
        "intermediate_size": 12, "num_attention_heads": 2, "num_key_value_heads": 1,
        "num_local_experts": 2, "num_experts_per_tok": 1, "tie_word_embeddings": true}"#;
    std::fs::write(dir.path().join("config.json"), config).unwrap();
    let shape = Shape::of(&crate::checkpoint::Checkpoint::open(dir.path()).unwrap()).unwrap();
    assert_eq!((shape.layers, shape.hidden, shape.vocab, shape.head_dim), (1, 8, 16, 4));
    assert_eq!((shape.kv_heads, shape.intermediate, shape.tied), (1, 12, true));
    assert_eq!(shape.parameters, 128 + 64 + 192 + 8);
    assert_eq!((shape.layer_parameters, shape.active_layer_parameters), (256, 160));
}
