//! Seeing a quantised checkpoint as its values, where they are asked for.

use std::borrow::Cow;

use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};

/// A checkpoint as an operation sees it.
pub(super) struct Seen<'a> {
    pub(super) checkpoint: Cow<'a, Checkpoint>,
    /// Why its values cannot be had. It is as it lies on disk then, and arithmetic on codes is refused.
    refusal: Option<Error>,
}

impl<'a> Seen<'a> {
    /// As values if any of the quantised tensors is `asked` for, else as it lies on disk: codes stay with their scales.
    pub(super) fn new(
        checkpoint: &'a Checkpoint,
        asked: impl Fn(&Checkpoint, &str) -> bool,
    ) -> Self {
        let stays = Cow::Borrowed(checkpoint);
        match checkpoint.as_values() {
            Ok(values) if values.recipes().any(|(name, _)| asked(&values, name)) => {
                Self { checkpoint: values, refusal: None }
            }
            Ok(_) => Self { checkpoint: stays, refusal: None },
            Err(refusal) => Self { checkpoint: stays, refusal: Some(refusal) },
        }
    }
}

/// The error that says more: why codes could not be read, where that was the cause.
pub(super) fn explained<T>(
    result: Result<T>,
    seen: impl IntoIterator<Item = Option<Error>>,
) -> Result<T> {
    result.map_err(|error| match error {
        Error::Unsupported { .. } => seen.into_iter().flatten().next().unwrap_or(error),
        _ => error,
    })
}

impl Seen<'_> {
    /// Why its values cannot be had.
    pub(super) fn refusal(self) -> Option<Error> {
        self.refusal
    }
}
