//! Held-out loss of a model on slices of text or chats.

use std::path::{Path, PathBuf};

use super::data::{Corpus, Packing, TextTokenizer};
use super::load::{Loaded, load};
use super::model::Network;
use super::run::threads;
use super::settings::LossOn;
use super::watch::Watch;
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};

/// Tokens that go through the model at once, about.
const TOKENS: usize = 4096;

/// A named file of records to evaluate on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// What to call it.
    pub name: String,
    /// A JSONL file, each line `{"text": ..}` or `{"messages": ..}`.
    pub path: PathBuf,
}

/// How well a model predicts a slice. Of chats only what the assistant says counts.
#[derive(Clone, Debug, PartialEq)]
pub struct Perplexity {
    /// Name of the slice.
    pub name: String,
    /// Its records.
    pub documents: u64,
    /// Tokens that were predicted: all but the first of each record.
    pub tokens: u64,
    /// UTF-8 bytes of the text behind them.
    pub bytes: u64,
    /// Mean loss, in nats a token.
    pub loss: f64,
    /// e to the loss.
    pub perplexity: f64,
    /// Bits for each byte of text: comparable between tokenizers.
    pub bits_per_byte: f64,
}

/// Evaluates a model on slices. Records longer than `sequence_length` tokens are cut into pieces that overlap by one
/// token; each piece sees itself alone.
pub fn evaluate(
    model: &Path,
    tokenizer: &Path,
    slices: &[Slice],
    sequence_length: usize,
    thread_count: usize,
    watch: &dyn Watch,
) -> Result<Vec<Perplexity>> {
    if sequence_length < 2 {
        let problem = "cannot evaluate on sequences of fewer than 2 tokens".to_owned();
        return Err(Error::Usage { problem, hint: "give a longer `sequence_length`".to_owned() });
    }
    threads(thread_count)?.install(|| {
        let model = Checkpoint::open(model)?;
        let loaded = load(&model, &[])?;
        if let Some(window) = loaded.design.window.filter(|w| *w < sequence_length) {
            return Err(Error::Mismatch {
                what: format!("`{}` cannot be evaluated exactly as told", model.name()),
                problems: vec![format!(
                    "its attention sees {window} tokens, sequences have {sequence_length}"
                )],
                hint: "shorten the sequences".to_owned(),
            });
        }
        let tokenizer = TextTokenizer::open(tokenizer, loaded.design.vocabulary)?;
        let Loaded { design, weights, .. } = loaded;
        let network = Network::new(design, &weights, sequence_length, false);
        let mut network = network.ok_or_else(|| Error::NotACheckpoint {
            path: model.root().to_owned(),
            reason: "a tensor is missing".to_owned(),
        })?;
        let go_on = || !watch.stop();
        let mut results = Vec::new();
        for slice in slices {
            let paths = [slice.path.clone()];
            let corpus = Corpus::read(&paths, &tokenizer, LossOn::Assistant, &go_on)?;
            let packing = Packing::in_order(&corpus, sequence_length);
            let all: Vec<usize> = (0..packing.sequences.len()).collect();
            let (mut sum, mut tokens) = (0.0, 0);
            for sequences in all.chunks((TOKENS / sequence_length).max(1)) {
                if watch.stop() {
                    return Err(Error::Interrupted { resumable: false });
                }
                let batch = packing.batch(&corpus, sequences);
                sum += network.loss(&weights, &batch);
                tokens += batch.predicted() as u64;
            }
            results.push(perplexity(slice, &corpus, sum, tokens)?);
        }
        Ok(results)
    })
}

fn perplexity(slice: &Slice, corpus: &Corpus, sum: f64, tokens: u64) -> Result<Perplexity> {
    if tokens == 0 {
        let problem = "no token of it is to be predicted".to_owned();
        return Err(Error::Data {
            path: slice.path.clone(),
            line: None,
            problem,
            hint: String::new(),
        });
    }
    let loss = sum / tokens as f64;
    Ok(Perplexity {
        name: slice.name.clone(),
        documents: corpus.documents.len() as u64,
        tokens,
        bytes: corpus.bytes,
        loss,
        perplexity: loss.exp(),
        bits_per_byte: sum / std::f64::consts::LN_2 / corpus.bytes.max(1) as f64,
    })
}
