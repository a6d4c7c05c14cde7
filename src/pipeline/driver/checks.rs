//! What the driver checks of a trained model before it believes in it.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::audit::{Diff, DiffOptions, ReadObserver, diff};
use crate::checkpoint::{Checkpoint, Role, is_tied};
use crate::error::Result;
use crate::pipeline::record::Check;

/// Under this part of changed values, rounding has likely swallowed the training.
const FEW: f64 = 0.1;

/// Keys of `config.json` that say what the tensors mean: training must not change them.
const STRUCTURE: [&str; 11] = [
    "architectures",
    "model_type",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "tie_word_embeddings",
    "hidden_act",
];

/// Checks, and which of them are fatal.
#[derive(Debug, Default)]
pub(super) struct Verdict {
    pub(super) checks: Vec<Check>,
    pub(super) problems: Vec<String>,
}

impl Verdict {
    fn hold(&mut self, what: &str, detail: String) {
        self.checks.push(Check { what: what.to_owned(), ok: true, detail });
    }

    fn doubt(&mut self, what: &str, detail: String) {
        self.checks.push(Check { what: what.to_owned(), ok: false, detail });
    }

    fn fail(&mut self, what: &str, detail: String) {
        self.problems.push(format!("{what}: {detail}"));
        self.doubt(what, detail);
    }
}

/// Names, shapes and configuration of what the backend wrote, against what it was given.
pub(super) fn structure(input: &Checkpoint, trained: &Checkpoint) -> Verdict {
    let mut verdict = Verdict::default();
    let (was, is) = (input.signature(), trained.signature());
    // A tied head that was stored is the embedding: trainers leave it out.
    let tied = input.config().and_then(is_tied) == Some(true) && trained.is_tied();
    let implied = |name: &str| tied && input.anatomy().role(name) == Role::Head;
    let gone = was.keys().filter(|name| !is.contains_key(*name) && !implied(name));
    let missing: Vec<&str> = gone.copied().collect();
    let added: Vec<&str> = is.keys().filter(|name| !was.contains_key(*name)).copied().collect();
    let reshaped: Vec<String> = was
        .iter()
        .filter_map(|(name, (_, shape))| {
            let (_, now) = is.get(name)?;
            (now != shape).then(|| format!("`{name}` was {shape}, is {now}"))
        })
        .collect();
    match (missing.first(), added.first(), reshaped.first()) {
        (Some(name), _, _) => verdict.fail(
            "the tensors are those of the input",
            format!("{} are missing, `{name}` for one", missing.len()),
        ),
        (_, Some(name), _) => verdict.fail(
            "the tensors are those of the input",
            format!("{} were added, `{name}` for one", added.len()),
        ),
        (_, _, Some(which)) => verdict.fail("the shapes are those of the input", which.clone()),
        _ => verdict
            .hold("names and shapes are those of the input", format!("{} tensors", was.len())),
    }
    if let (Some(was), Some(is)) = (input.config(), trained.config()) {
        let changed: Vec<String> = STRUCTURE
            .iter()
            .filter(
                |key| matches!((was.get(**key), is.get(**key)), (Some(a), Some(b)) if !same(a, b)),
            )
            .map(|key| format!("`{key}` was {}, is {}", was[*key], is[*key]))
            .collect();
        match changed.first() {
            Some(_) => verdict.fail("config.json says the same structure", changed.join("; ")),
            None => verdict.hold("config.json says the same structure", String::new()),
        }
    }
    verdict
}

fn same(a: &Value, b: &Value) -> bool {
    a == b || a.as_f64().is_some_and(|a| b.as_f64() == Some(a))
}

/// Values of the adopted model against the input: what was frozen is unchanged, what was trained has changed, nothing is
/// NaN or infinite.
pub(super) fn values(
    input: &Checkpoint,
    model: &Checkpoint,
    trainable: &[String],
    observer: &dyn ReadObserver,
) -> Result<Verdict> {
    let report = diff(input, model, &DiffOptions::default(), observer)?;
    Ok(judge(&report, &trainable.iter().map(String::as_str).collect()))
}

#[expect(clippy::cast_precision_loss, reason = "a share is told in percent")]
fn judge(report: &Diff, trainable: &BTreeSet<&str>) -> Verdict {
    let mut verdict = Verdict::default();
    let mut touched = Vec::new();
    let (mut frozen, mut trained, mut changed) = (0_u64, 0_u64, 0_u64);
    let (mut elements, mut equal, mut non_finite) = (0_u64, 0_u64, 0_u64);
    for tensor in &report.tensors {
        let is_trained = trainable.contains(tensor.name.as_str());
        trained += u64::from(is_trained);
        frozen += u64::from(!is_trained);
        let size = tensor.a.as_ref().and_then(|form| form.shape.elements()).unwrap_or(0);
        elements += if is_trained { size } else { 0 };
        let Some(change) = &tensor.change else {
            equal += if is_trained { size } else { 0 };
            continue;
        };
        non_finite += change.non_finite;
        if change.equal < change.elements || change.non_finite > 0 {
            if is_trained {
                changed += 1;
            } else {
                touched.push(tensor.name.as_str());
            }
        }
        equal += if is_trained { change.equal } else { 0 };
    }
    match touched.first() {
        Some(name) => verdict.fail(
            "frozen tensors are unchanged",
            format!("{} of {frozen} changed, `{name}` for one", touched.len()),
        ),
        None => verdict.hold("frozen tensors are unchanged", format!("{frozen} tensors")),
    }
    let part = if elements == 0 { 0.0 } else { 1.0 - equal as f64 / elements as f64 };
    let what = "trained tensors have changed";
    let detail = format!("{changed} of {trained} tensors, {:.1} % of their values", part * 100.0);
    if changed == 0 {
        verdict.fail(what, format!("0 of {trained} tensors changed"));
    } else if part < FEW {
        verdict.doubt(what, format!("{detail}: has the dtype rounded the steps away?"));
    } else {
        verdict.hold(what, detail);
    }
    match non_finite {
        0 => verdict.hold("every value is finite", String::new()),
        n => verdict.fail("every value is finite", format!("{n} are NaN or infinite")),
    }
    verdict
}
