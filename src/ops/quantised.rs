//! Quantised weights: codes that mean nothing without their scales. They are copied, never computed on.

use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};

/// The scale tensor that belongs to a weight, if the checkpoint stores one.
pub(super) fn scale_of(model: &Checkpoint, name: &str) -> Option<String> {
    let stem = name.strip_suffix(".weight").unwrap_or(name);
    let beside = ["_scale_inv", "_scale", "_scale_2"].map(|end| format!("{name}{end}"));
    let within = [".scale_weight", ".input_scale", ".scale_input", ".scale", ".scales", "_scales"]
        .map(|end| format!("{stem}{end}"));
    beside.into_iter().chain(within).find(|scale| model.tensor(scale).is_some())
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
