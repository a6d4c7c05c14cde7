//! stub
use super::{Execution, Observer, Report};
use crate::{Result, plan::Plan};
/// Carries out a plan.
pub fn execute(plan: &Plan, options: &Execution, observer: &dyn Observer) -> Result<Report> {
    let _ = (plan, options, observer);
    Ok(Report::default())
}
