//! Memory of a training stage on each device.

use serde::Serialize;

use super::{Request, Sharded};
use crate::backend::protocol::{Optimizer, Precision};

/// CUDA context, NCCL and kernels' workspaces: assumed.
const GPU_GROUND: u64 = 2_000_000_000;
/// What the built-in backend holds beside the model: assumed.
const CPU_GROUND: u64 = 100_000_000;
/// One part in so many is lost between blocks of the allocator: assumed.
const FRAGMENTS: u64 = 20;
/// Tokens whose logits a fused loss holds at once.
const CHUNK: u64 = 1024;
/// Bytes of the two `AdamW` states of a parameter, in 64ths. 8 bit: two bytes and two f32 scales a block of 256
/// (Dettmers et al., arXiv 2110.02861; bitsandbytes).
const STATES_8BIT: u64 = 130;
const STATES_F32: u64 = 512;

/// Bytes by what they serve.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// Weights that are computed with.
    pub weights: u64,
    /// f32 copies of the trained weights.
    pub master: u64,
    /// Gradients of the trained weights.
    pub gradients: u64,
    /// `AdamW` states.
    pub optimizer: u64,
    /// Activations kept for the backward pass.
    pub activations: u64,
    /// Logits and their gradients.
    pub logits: u64,
    /// Context, workspaces, fragments.
    pub overhead: u64,
    /// All of it.
    pub total: u64,
}

impl Memory {
    /// The sum of states, activations, logits and overhead.
    pub(super) fn of(request: &Request<'_>) -> Self {
        let mut it = if request.is_builtin() { on_cpu(request) } else { on_gpu(request) };
        it.activations = activations(request);
        it.logits = logits(request);
        let sum = it.weights + it.master + it.gradients + it.optimizer + it.activations + it.logits;
        it.overhead = if request.is_builtin() { CPU_GROUND } else { GPU_GROUND + sum / FRAGMENTS };
        it.total = sum + it.overhead;
        it
    }
}

/// f32 for everything: `4 N` weights, which are their own masters, `4 T` gradients, `8 T` states.
fn on_cpu(request: &Request<'_>) -> Memory {
    let trained = request.trained();
    Memory {
        weights: request.shape.weight_bytes(4) + adapters(request, 4),
        gradients: 4 * trained,
        optimizer: trained * STATES_F32 / 64,
        ..Memory::default()
    }
}

/// Mixed precision: `2 N` weights, `4 T` masters, gradients, states; divided over `D` devices as `ZeRO` does
/// (Rajbhandari et al., arXiv 1910.02054): states and masters, then gradients, then weights. Of divided weights
/// two units are whole at a time: the one at work and the next one.
///
/// Gradients are f32 where weights are f32 under autocast (no `DeepSpeed`) or FSDP reduces in f32, else bf16.
fn on_gpu(request: &Request<'_>) -> Memory {
    let (all, trained, devices) = (request.shape.parameters, request.trained(), request.devices());
    let (sharded, train) = (request.sharded(), request.train);
    let has_masters = train.master == Precision::Fp32;
    let states = match train.optimizer {
        Optimizer::AdamW8Bit => STATES_8BIT,
        Optimizer::AdamW => STATES_F32,
    };
    let share = |bytes: u64, divided: bool| if divided { bytes.div_ceil(devices) } else { bytes };
    let divides_states = sharded != Sharded::No;
    let divides_gradients = divides_states && sharded != Sharded::States;
    let divides_weights = matches!(sharded, Sharded::Parameters | Sharded::Fsdp);
    let wide = has_masters && matches!(sharded, Sharded::No | Sharded::Fsdp);
    let unit = request.shape.layer_parameters.max(request.shape.embedding_parameters);
    let whole = if divides_weights && devices > 1 { 2 * 2 * unit.min(all) } else { 0 };
    Memory {
        weights: share(2 * all, divides_weights) + whole + adapters(request, 2),
        master: if has_masters { share(4 * trained, divides_states) } else { 0 },
        gradients: share(if wide { 4 } else { 2 } * trained, divides_gradients),
        optimizer: share(trained * states / 64, divides_states),
        ..Memory::default()
    }
}

/// Adapters come on top of the model's weights.
fn adapters(request: &Request<'_>, each: u64) -> u64 {
    use crate::backend::protocol::Method;
    if request.method == Method::Lora { request.trained() * each } else { 0 }
}

/// After Korthikanti et al. (arXiv 2205.05198), section 4, for a gated MLP, grouped queries, no dropout, and attention
/// that keeps no scores: `2 (4 h + 2 q + 2 k + 4 i)` bytes a token and layer in 16 bit, with `q = heads x head_dim`,
/// `k = kv_heads x head_dim`, `i` the MLP's width. Inputs of both norms and of both blocks (`4 h`), queries and the
/// attention's result (`2 q`), keys and values (`2 k`), gate, its activation, up, their product (`4 i`).
///
/// With checkpointing the inputs of layers are kept, `2 h` a token and layer (their section 5), and one layer's
/// activations come and go. f32 doubles both. The built-in backend holds the scores of one head a thread: `4 s^2`.
fn activations(request: &Request<'_>) -> u64 {
    let shape = request.shape;
    let each = if request.is_builtin() || request.train.compute == Precision::Fp32 { 4 } else { 2 };
    let (queries, keys) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
    let layer = each * (4 * shape.hidden + 2 * queries + 2 * keys + 4 * shape.intermediate);
    let token = if request.train.checkpointing {
        shape.layers * each * shape.hidden + layer
    } else {
        shape.layers * layer
    };
    let sequence = u64::from(request.train.sequence_length);
    let scores = if request.is_builtin() {
        4 * sequence * sequence * u64::from(request.threads.max(1))
    } else {
        0
    };
    request.batch_tokens() * token + scores
}

/// A token's logits are held in 16 bit, in f32, and as f32 gradients: 10 bytes a word of the vocabulary. A fused loss
/// (cut cross-entropy, arXiv 2411.09009; Liger, arXiv 2410.10989) holds some tokens' at a time.
fn logits(request: &Request<'_>) -> u64 {
    let tokens = request.batch_tokens();
    let held = if request.has_fused_loss() { tokens.min(CHUNK) } else { tokens };
    let each = if request.is_builtin() { 8 } else { 10 };
    held * request.shape.vocab * each
}
