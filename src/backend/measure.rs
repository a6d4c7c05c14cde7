//! Held-out loss, measured by the built-in trainer.

use std::path::PathBuf;

use super::protocol::DataFormat;
use crate::error::Result;

/// What to measure.
#[derive(Clone, Debug)]
pub struct MeasureRequest {
    /// The model.
    pub model: PathBuf,
    /// Whose tokenizer and chat template chats are written with; the model's own without it.
    pub chat_tokenizer: Option<PathBuf>,
    /// On what.
    pub slices: Vec<MeasureSlice>,
    /// Tokens of a sequence.
    pub sequence_length: u32,
    /// Threads; 0 is one a core.
    pub threads: usize,
}

/// A file of held-out records.
#[derive(Clone, Debug)]
pub struct MeasureSlice {
    /// As reports name it.
    pub name: String,
    /// The file.
    pub path: PathBuf,
    /// What its records are.
    pub format: DataFormat,
}

/// The loss of a model on a slice.
#[derive(Clone, Debug, PartialEq)]
pub struct Loss {
    /// The slice.
    pub slice: String,
    /// Nats a token; of chats, over what the assistant says.
    pub loss: f64,
    /// Bits a byte of UTF-8.
    pub bits_per_byte: f64,
    /// Tokens it is a mean of.
    pub tokens: u64,
}

/// Measures a model on slices.
///
/// # Errors
/// A model that the trainer cannot compute exactly; [`Error::Interrupted`](crate::Error::Interrupted) when told to stop.
#[cfg(feature = "trainer")]
pub fn measure(request: &MeasureRequest, stop: &(dyn Fn() -> bool + Sync)) -> Result<Vec<Loss>> {
    use crate::trainer::{Slice, Step, Watch, evaluate};

    struct Eyes<'a>(&'a (dyn Fn() -> bool + Sync));
    impl Watch for Eyes<'_> {
        fn step(&self, _step: &Step) {}
        fn warn(&self, _message: &str) {}
        fn stop(&self) -> bool {
            (self.0)()
        }
    }

    let mut losses = Vec::new();
    for (format, tokenizer) in [
        (DataFormat::Text, &request.model),
        (DataFormat::Messages, request.chat_tokenizer.as_ref().unwrap_or(&request.model)),
    ] {
        let slices: Vec<Slice> = request
            .slices
            .iter()
            .filter(|slice| slice.format == format)
            .map(|slice| Slice { name: slice.name.clone(), path: slice.path.clone() })
            .collect();
        if slices.is_empty() {
            continue;
        }
        let length = request.sequence_length as usize;
        let measured =
            evaluate(&request.model, tokenizer, &slices, length, request.threads, &Eyes(stop))?;
        losses.extend(measured.into_iter().map(|slice| Loss {
            slice: slice.name,
            loss: slice.loss,
            bits_per_byte: slice.bits_per_byte,
            tokens: slice.tokens,
        }));
    }
    Ok(losses)
}

/// This build has no trainer.
///
/// # Errors
/// Always.
#[cfg(not(feature = "trainer"))]
pub fn measure(_request: &MeasureRequest, _stop: &(dyn Fn() -> bool + Sync)) -> Result<Vec<Loss>> {
    Err(crate::Error::Unsupported {
        what: "held-out perplexity".into(),
        reason: "this build has no trainer".into(),
        hint: "build with the feature `trainer`".into(),
    })
}
