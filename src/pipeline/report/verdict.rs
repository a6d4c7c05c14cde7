//! What came of a run, in sentences that the figures bear out.

use std::fmt::Write as _;

use super::facts::{
    Kind, Model, base, change, control_of, control_title, last_measured, main_stages,
    measured_stage, models, perplexity, signed, slices, state_name, target,
};
use crate::audit::Seconds;
use crate::pipeline::record::{Record, StageRecord, State};

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Good,
    Mixed,
    Open,
    Failed,
}

/// A verdict: how it ended, in one line, and what is worth knowing.
pub(super) struct Verdict {
    pub(super) outcome: Outcome,
    pub(super) line: String,
    pub(super) remarks: Vec<String>,
}

/// Judges a run by its record.
pub(super) fn verdict(record: &Record) -> Verdict {
    let (outcome, line) = unfinished(record).unwrap_or_else(|| finished(record));
    Verdict { outcome, line, remarks: remarks(record) }
}

/// A stage that failed, or that there still is to do.
fn unfinished(record: &Record) -> Option<(Outcome, String)> {
    let needed: Vec<&StageRecord> =
        main_stages(record).filter(|stage| stage.state != State::Skipped).collect();
    if needed.is_empty() {
        return Some((Outcome::Open, "No stage has been started.".into()));
    }
    if let Some(stage) = needed.iter().find(|stage| stage.state == State::Failed) {
        let why = stage.error.as_deref().unwrap_or("no reason was told");
        return Some((Outcome::Failed, format!("{} failed: {why}.", stage.name)));
    }
    let next = needed.iter().find(|stage| stage.state != State::Done)?;
    let done = needed.iter().filter(|stage| stage.state == State::Done).count();
    let (all, name, state) = (needed.len(), &next.name, state_name(next.state));
    Some((Outcome::Open, format!("{done} of {all} stages are done; {name} is {state}.")))
}

/// The change on each language.
fn finished(record: &Record) -> (Outcome, String) {
    let (Some(base), Some(last)) = (base(record), last_measured(record)) else {
        let seconds: f64 = main_stages(record).map(|stage| stage.seconds).sum();
        let time = Seconds(seconds);
        let line =
            format!("All stages are done, in {time}. Nothing was measured on held-out data.");
        return (Outcome::Open, line);
    };
    let target = target(record);
    let mut outcome = Outcome::Mixed;
    let mut parts = Vec::new();
    for slice in slices(record).iter().filter(|slice| !slice.contains('/')) {
        let (Some(before), Some(now)) = (base.perplexity(slice), last.perplexity(slice)) else {
            continue;
        };
        let Some(change) = change(before, now) else {
            continue;
        };
        if Some(slice) == target.as_ref() && change < 0.0 {
            outcome = Outcome::Good;
        }
        let (from, to, by) = (perplexity(before), perplexity(now), signed(change));
        parts.push(format!("{slice} {} from {from} to {to} ({by})", went(change)));
    }
    if parts.is_empty() {
        return (Outcome::Open, "All stages are done.".into());
    }
    (outcome, format!("Held-out perplexity: {}.", parts.join("; ")))
}

fn went(change: f64) -> &'static str {
    match change {
        c if c < 0.0 => "fell",
        c if c > 0.0 => "rose",
        _ => "stayed",
    }
}

/// What the figures show, good or bad.
fn remarks(record: &Record) -> Vec<String> {
    let mut remarks: Vec<String> = record
        .stages
        .iter()
        .flat_map(|stage| stage.checks.iter().map(move |check| (&stage.name, check)))
        .filter(|(_, check)| !check.ok)
        .map(|(stage, check)| format!("Not so, after {stage}: {} ({}).", check.what, check.detail))
        .collect();
    let (Some(base), Some(target)) = (base(record), target(record)) else {
        return remarks;
    };
    let of = |model: &Option<Model<'_>>| model.as_ref()?.perplexity(&target);
    let before = base.perplexity(&target);
    let injected = of(&measured_stage(record, "inject"));
    let aligned = of(&measured_stage(record, "align"));
    if let (Some(before), Some(injected)) = (before, injected)
        && injected > before
    {
        let by = change(before, injected).map(signed).unwrap_or_default();
        remarks.push(format!(
            "Injected and not aligned, the model is worse than the base on {target} ({by}). That is expected: alignment is what makes the layers fit."
        ));
    }
    if let (Some(injected), Some(aligned)) = (injected, aligned)
        && aligned >= injected
    {
        remarks.push(format!(
            "Alignment did not improve {target} ({} to {}): look at its learning rate and data.",
            perplexity(injected),
            perplexity(aligned)
        ));
    }
    if let (Some(before), Some(aligned)) = (before, aligned)
        && aligned >= before
    {
        remarks.push(format!("The aligned model is no better than the base on {target}."));
    }
    remarks.extend(against_controls(record, &target));
    remarks
}

/// How the run compares with each control on the target language.
fn against_controls(record: &Record, target: &str) -> Vec<String> {
    let Some(aligned) = measured_stage(record, "align").and_then(|m| m.perplexity(target)) else {
        return Vec::new();
    };
    let controls = models(record).into_iter().filter(|model| model.kind == Kind::Control);
    controls
        .filter_map(|model| {
            let stage = record.stages.iter().find(|stage| stage.name == model.name)?;
            let (control, last) = control_of(stage)?;
            // Within a control, what corresponds to the aligned model.
            if !matches!((control, last), ("full-fine-tuning", _) | (_, "align")) {
                return None;
            }
            let theirs = model.perplexity(target)?;
            let by = change(theirs, aligned)?;
            let better = if by < 0.0 { "better" } else { "worse" };
            let mut line = format!(
                "Against the control with {} ({}): {} % {better} on {target}",
                control_title(control),
                perplexity(theirs),
                signed(by.abs()).trim_start_matches('+').trim_end_matches(" %"),
            );
            if let Some(times) =
                time_ratio(record, control).filter(|_| control == "full-fine-tuning")
            {
                let _ = write!(line, "; the control took {times:.1} times as long");
            }
            Some(line + ".")
        })
        .collect()
}

/// Time of a control against pretraining and alignment together.
pub(super) fn time_ratio(record: &Record, control: &str) -> Option<f64> {
    let of = |name: &str| {
        let found = main_stages(record).find(|stage| stage.name == name && stage.seconds > 0.0);
        found.map(|stage| stage.seconds)
    };
    let ours = of("pretrain")? + of("align").unwrap_or(0.0);
    let theirs: f64 = record
        .stages
        .iter()
        .filter(|stage| control_of(stage).is_some_and(|(name, _)| name == control))
        .map(|stage| stage.seconds)
        .sum();
    (theirs > 0.0).then(|| theirs / ours)
}

#[cfg(test)]
mod tests {
    use super::super::fixture::record;
    use super::*;

    #[test]
    fn a_good_run_is_told_with_its_price() {
        let found = verdict(&record());
        assert_eq!(found.outcome, Outcome::Good);
        assert_eq!(
            found.line,
            "Held-out perplexity: ko fell from 12.78 to 11.00 (-13.9 %); en rose from 6.38 to 7.44 (+16.6 %)."
        );
        let remarks = found.remarks.join("\n");
        assert!(
            remarks.contains("worse than the base on ko (+2.2 %). That is expected"),
            "{remarks}"
        );
        assert!(remarks.contains("alignment data only (12.48): 12.0 % better on ko"), "{remarks}");
        assert!(
            remarks.contains(
                "full fine-tuning (8.34): 31.7 % worse on ko; the control took 2.7 times"
            ),
            "{remarks}"
        );
    }

    #[test]
    fn failures_and_open_runs_come_first() {
        let mut record = record();
        record.stages[3].state = State::Failed;
        record.stages[3].error = Some("out of memory".into());
        let found = verdict(&record);
        assert_eq!(
            (found.outcome, found.line.as_str()),
            (Outcome::Failed, "align failed: out of memory.")
        );
        record.stages[3].state = State::Running;
        let found = verdict(&record);
        assert_eq!(found.line, "5 of 6 stages are done; align is running.");
        assert_eq!(verdict(&Record::default()).line, "No stage has been started.");
    }

    #[test]
    fn nothing_measured_is_said() {
        let mut record = record();
        record.baselines.clear();
        let found = verdict(&record);
        assert!(found.line.contains("Nothing was measured"), "{}", found.line);
        assert!(found.remarks.is_empty());
    }

    #[test]
    fn a_check_that_does_not_hold_is_said_first() {
        let mut record = record();
        record.baselines.clear();
        record.stages[1].checks[1].ok = false;
        let remarks = verdict(&record).remarks;
        assert_eq!(remarks, ["Not so, after pretrain: frozen tensors are unchanged (12 tensors)."]);
    }

    #[test]
    fn a_run_that_gained_nothing_is_not_called_good() {
        let mut record = record();
        for stage in &mut record.stages {
            for measured in &mut stage.measured {
                measured.perplexity = 20.0;
            }
        }
        let found = verdict(&record);
        assert_eq!(found.outcome, Outcome::Mixed);
        assert!(found.remarks.iter().any(|r| r.contains("did not improve")), "{:?}", found.remarks);
        assert!(found.remarks.iter().any(|r| r.contains("no better than the base")));
    }
}
