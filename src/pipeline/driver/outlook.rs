//! What a run will need: estimates of its training stages.

use super::Driver;
use crate::backend::protocol::TrainingStage;
use crate::error::{Error, Result};
use crate::pipeline::data;
use crate::pipeline::estimate::{Host, Outlook, Request, Shape, outlook};
use crate::pipeline::graph::Action;

/// UTF-8 bytes of a token, where nothing is known: between English with a large vocabulary and Hangul or kana.
const BYTES_A_TOKEN: u64 = 4;

impl Driver<'_> {
    /// Parameters, memory, FLOPs and time of every training stage, before it starts.
    ///
    /// # Errors
    /// A model whose shape the config does not tell.
    pub fn outlook(&self) -> Result<Outlook> {
        let whole = Shape::of(&self.base).ok_or_else(|| Error::Unsupported {
            what: "an estimate".into(),
            reason: "config.json does not say the model's shape".into(),
            hint: "estimates know decoders of the Llama kind".into(),
        })?;
        let chosen = self.record.model.chosen.len() as u64;
        let detached = whole.with_layers(chosen);
        let host = Host::read();
        let settings = &self.settings;
        let memory = settings.gpu_memory.as_ref().and_then(|size| size.bytes().ok());
        let builtin = self.backend.name() == "builtin";
        let requests: Vec<Request<'_>> = self
            .nodes
            .iter()
            .filter(|node| !node.is_control())
            .filter_map(|node| match &node.action {
                Action::Train { training, .. } => Some(training),
                _ => None,
            })
            .map(|training| {
                let pretrain = training.stage == TrainingStage::Pretrain;
                let shape = if pretrain { &detached } else { &whole };
                Request {
                    method: training.method,
                    trained_layers: chosen,
                    lora: training.lora.clone(),
                    tokens: self.expected_tokens(training.stage, training.train.epochs),
                    gpus: settings.gpus,
                    nodes: settings.nodes,
                    sharding: settings.sharding,
                    gpu_memory: if builtin { host.memory } else { memory },
                    backend: self.backend.name(),
                    threads: threads(settings.threads, &host),
                    ..Request::new(shape, training.stage, &training.train)
                }
            })
            .collect();
        Ok(outlook(&whole, &requests))
    }

    /// Tokens of a stage: as it was done, else by the bytes of its data.
    fn expected_tokens(&self, stage: TrainingStage, epochs: u32) -> u64 {
        let done = self.record.stages.iter().find(|record| record.name == stage.as_str());
        if let Some(tokens) = done.and_then(|record| record.tokens) {
            return tokens;
        }
        let known = self.record.data.iter().find(|facts| facts.name == stage.as_str());
        let planned = || {
            let plan = data::plan(self.loaded).ok()?;
            let stage = plan.stages.iter().find(|planned| planned.name == stage.as_str())?;
            Some(stage.bytes)
        };
        let bytes = known.map(|facts| facts.bytes).or_else(planned).unwrap_or(0);
        bytes / BYTES_A_TOKEN * u64::from(epochs)
    }
}

fn threads(asked: Option<usize>, host: &Host) -> u32 {
    asked.and_then(|threads| u32::try_from(threads).ok()).filter(|n| *n > 0).unwrap_or(host.cores)
}
