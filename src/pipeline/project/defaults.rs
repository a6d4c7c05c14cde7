//! What a training stage does where the file is silent: Table 7 of the paper (arXiv 2601.03648).

use super::{Layers, Loaded, StageTraining, Training};
use crate::backend::protocol::{Hyperparameters, Lora, LossOn, Method, Precision, TrainingStage};

/// Under this learning rate bf16 weights round steps away, so that weights are kept in fp32.
const FP32_BELOW: f64 = 2e-5;

impl Loaded {
    /// Everything a training stage needs to know.
    ///
    /// Pretraining trains every decoder layer of the detached model: [`Method::Layers`] without a list.
    pub fn training(&self, stage: TrainingStage) -> StageTraining {
        let project = &self.project;
        let (method, layers, lora, training) = match stage {
            TrainingStage::Pretrain => {
                (Method::Layers, None, Lora::default(), &project.pretrain.training)
            }
            TrainingStage::Align => {
                let align = &project.align;
                (align.method, align.layers.clone(), align.lora.clone(), &align.training)
            }
            TrainingStage::Sft => {
                let sft = &project.sft;
                (sft.method, sft.layers.clone(), sft.lora.clone(), &sft.training)
            }
        };
        let own = |layers: Option<Layers>| layers.unwrap_or_else(|| project.layers.clone());
        let layers = match (stage, method) {
            (TrainingStage::Pretrain, _) => None,
            (_, Method::Layers) => Some(own(layers)),
            (_, Method::Full | Method::Lora) => None,
        };
        StageTraining {
            stage,
            method,
            layers,
            lora,
            train: hyperparameters(stage, training, project.seed),
            save_every: training.save_every.unwrap_or(500),
            extra: training.extra.clone(),
        }
    }
}

fn hyperparameters(stage: TrainingStage, given: &Training, seed: u64) -> Hyperparameters {
    let (epochs, batch, loss_on) = match stage {
        TrainingStage::Pretrain => (1, 4, LossOn::All),
        TrainingStage::Align => (1, 1, LossOn::All),
        TrainingStage::Sft => (10, 1, LossOn::Assistant),
    };
    let learning_rate = given.learning_rate.unwrap_or(5e-6);
    let master = if learning_rate < FP32_BELOW { Precision::Fp32 } else { Precision::Bf16 };
    Hyperparameters {
        epochs: given.epochs.unwrap_or(epochs),
        max_steps: given.max_steps,
        sequence_length: given.sequence_length.unwrap_or(8192),
        packing: given.packing.unwrap_or_default(),
        micro_batch: given.batch.unwrap_or(batch),
        accumulation: given.accumulation.unwrap_or(1),
        optimizer: given.optimizer.unwrap_or_default(),
        learning_rate,
        schedule: given.schedule.unwrap_or_default(),
        warmup_ratio: given.warmup_ratio.unwrap_or(0.0),
        weight_decay: given.weight_decay.unwrap_or(0.0),
        max_grad_norm: given.max_grad_norm.unwrap_or(1.0),
        seed,
        compute: given.compute.unwrap_or(Precision::Bf16),
        master: given.master.unwrap_or(master),
        loss_on,
        checkpointing: given.checkpointing.unwrap_or(true),
    }
}
