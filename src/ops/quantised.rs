//! Quantised weights: codes that mean nothing without their scales. They are copied, never computed on.

use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};

/// The scale tensor that belongs to a weight, if the checkpoint stores one.
pub(super) fn scale_of(model: &Checkpoint, name: &str) -> Option<String> {
    let stem = name.strip_suffix(".weight").unwrap_or(name);
    [
        format!("{name}_scale_inv"),
        format!("{name}_scale"),
        format!("{stem}.scales"),
        format!("{stem}_scales"),
    ]
    .into_iter()
    .find(|scale| model.tensor(scale).is_some())
}

/// Refuses arithmetic on a tensor that any of the models stores as codes.
pub(super) fn refuse_quantised(models: &[&Checkpoint], name: &str) -> Result<()> {
    match models.iter().find_map(|model| scale_of(model, name)) {
        Some(scale) => Err(quantised(name, &scale)),
        None => Ok(()),
    }
}

fn quantised(name: &str, scale: &str) -> Error {
    Error::Unsupported {
        what: format!("tensor `{name}`"),
        reason: format!("it is quantised: its values are codes times `{scale}`"),
        hint: "use the unquantised checkpoint of the model".into(),
    }
}
