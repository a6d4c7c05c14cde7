//! What is estimated: a model's shape, how it is trained, over which hardware.

use super::Shape;
use super::time::H100_PEAK;
use crate::backend::protocol::{
    Hyperparameters, Lora, Method, Optimizer, Precision, Sharding, TrainingStage,
};

/// Name of the backend that computes on this machine's CPU.
const BUILTIN: &str = "builtin";

/// A training stage to be estimated.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// The model that is trained: for `pretrain` the detached one ([`Shape::with_layers`]).
    pub shape: &'a Shape,
    /// Layers that are trained, for [`Method::Layers`].
    pub trained_layers: u64,
    /// What is trained.
    pub method: Method,
    /// The stage.
    pub stage: TrainingStage,
    /// Hyperparameters.
    pub train: &'a Hyperparameters,
    /// Adapters, for [`Method::Lora`].
    pub lora: Lora,
    /// Tokens that are trained on, over all epochs.
    pub tokens: u64,
    /// GPUs of a node.
    pub gpus: u32,
    /// Nodes.
    pub nodes: u32,
    /// How states are spread over GPUs.
    pub sharding: Sharding,
    /// Bytes of one GPU; for the built-in backend of RAM ([`super::Host`]).
    pub gpu_memory: Option<u64>,
    /// Name of the backend.
    pub backend: &'a str,
    /// Threads of the built-in backend.
    pub threads: u32,
    /// Dense bf16 FLOP/s of one GPU, as its maker states them.
    pub peak: f64,
    /// Whether the loss is computed without keeping all logits; as the backend's adapter has it where not told.
    pub fused_loss: Option<bool>,
}

/// How states are spread, decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharded {
    /// Every device holds everything.
    No,
    /// Optimizer states and masters.
    States,
    /// And gradients.
    Gradients,
    /// And parameters.
    Parameters,
    /// As [`Sharded::Parameters`], with f32 gradients.
    Fsdp,
}

impl<'a> Request<'a> {
    /// A stage on one H100 with the built-in backend's name left out: adjust with struct update.
    pub fn new(shape: &'a Shape, stage: TrainingStage, train: &'a Hyperparameters) -> Self {
        Self {
            shape,
            trained_layers: shape.layers,
            method: if stage == TrainingStage::Pretrain { Method::Layers } else { Method::Full },
            stage,
            train,
            lora: Lora::default(),
            tokens: 0,
            gpus: 1,
            nodes: 1,
            sharding: Sharding::Auto,
            gpu_memory: None,
            backend: BUILTIN,
            threads: 1,
            peak: H100_PEAK,
            fused_loss: None,
        }
    }

    /// Whether it runs on the CPU of this machine.
    pub fn is_builtin(&self) -> bool {
        self.backend == BUILTIN
    }

    /// GPUs of all nodes.
    pub fn devices(&self) -> u64 {
        u64::from(self.gpus.max(1)) * u64::from(self.nodes.max(1))
    }

    /// Parameters that are trained.
    ///
    /// `layers`: those of the chosen layers. `lora`: `r (in + out)` for each of the seven linear modules of every
    /// layer (Hu et al., arXiv 2106.09685).
    pub fn trained(&self) -> u64 {
        let shape = self.shape;
        match self.method {
            Method::Full => shape.parameters,
            Method::Layers => self.trained_layers.min(shape.layers) * shape.layer_parameters,
            Method::Lora => {
                let (queries, keys) =
                    (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
                let attention = 2 * (shape.hidden + queries) + 2 * (shape.hidden + keys);
                let mlp = 3 * (shape.hidden + shape.intermediate);
                shape.layers * u64::from(self.lora.rank) * (attention + mlp)
            }
        }
    }

    /// Tokens of one forward pass on one device.
    pub fn batch_tokens(&self) -> u64 {
        u64::from(self.train.sequence_length) * u64::from(self.train.micro_batch.max(1))
    }

    /// How states are spread: as asked for, or as the driver chooses.
    pub fn sharded(&self) -> Sharded {
        let alone = self.devices() == 1;
        match self.sharding {
            // DeepSpeed keeps the f32 masters that axolotl itself does not, on one GPU too.
            Sharding::Auto | Sharding::None if self.keeps_masters_in_deepspeed() && alone => {
                Sharded::States
            }
            Sharding::None => Sharded::No,
            Sharding::Auto if alone => Sharded::No,
            Sharding::Auto if self.stage == TrainingStage::Pretrain => Sharded::States,
            Sharding::Auto => Sharded::Parameters,
            Sharding::Zero1 => Sharded::States,
            Sharding::Zero2 => Sharded::Gradients,
            Sharding::Zero3 => Sharded::Parameters,
            Sharding::Fsdp2 => Sharded::Fsdp,
        }
    }

    fn keeps_masters_in_deepspeed(&self) -> bool {
        self.backend == "axolotl" && self.train.master == Precision::Fp32
    }

    /// Whether logits are never held all at once: cut cross-entropy, Liger, and the built-in backend's chunks.
    pub fn has_fused_loss(&self) -> bool {
        let known = matches!(self.backend, BUILTIN | "axolotl" | "llama-factory" | "trl");
        self.fused_loss.unwrap_or(known)
    }

    /// What was assumed.
    pub(super) fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if self.is_builtin() {
            notes
                .push("the built-in backend computes in f32 on the CPU; its states are f32".into());
            if self.train.optimizer == Optimizer::AdamW8Bit {
                notes.push("`adamw8bit` has f32 states in the built-in backend".into());
            }
        } else if !self.has_fused_loss() {
            notes.push("the logits of a whole batch are held: a fused loss would save them".into());
        }
        if self.shape.active_layer_parameters < self.shape.layer_parameters {
            notes.push("of a mixture of experts, a token's share of the experts is counted".into());
        }
        notes
    }
}
