//! What the run that made a model says of it, for its model card.

use std::path::Path;

use crate::error::Result;
use crate::hub::push::Facts;
use crate::pipeline::report::{CardFacts, card_facts};

/// The facts of the run that made the model in `dir`; none of a model that no run made.
pub(super) fn of(dir: &Path) -> Result<Facts> {
    let Some(found) = card_facts(dir)? else { return Ok(Facts::default()) };
    let CardFacts { stage, began_with, languages, sections, metrics } = found;
    Ok(Facts { began_with, languages, sections, metrics, stage: Some(stage) })
}
