//! What a plan will do, and what a run did, in a few lines or one JSON object.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::failure::Failure;
use super::session::Session;
use super::surgery::Budget;
use super::units::{counted, size};
use crate::engine::Report;
use crate::error::printable;
use crate::plan::{Part, Plan, SidecarContent, Slice};

/// The plan in lines for people. Its notes are not among them.
pub(super) fn lines(plan: &Plan) -> Vec<String> {
    let cost = plan.cost();
    let mut made = Vec::new();
    let (mut copied, mut text) = (0_u64, Vec::new());
    for sidecar in &plan.sidecars {
        match &sidecar.content {
            SidecarContent::Copy { .. } => copied += 1,
            SidecarContent::Text(_) => text.push(printable(&sidecar.file)),
        }
    }
    if copied > 0 {
        made.push(format!("{copied} copied"));
    }
    if !text.is_empty() {
        made.push(format!("new: {}", text.join(", ")));
    }
    let sweeps = match cost.sweeps {
        0 | 1 => String::new(),
        sweeps => format!(" (inputs up to {sweeps} times)"),
    };
    let made = if made.is_empty() { "none".to_owned() } else { made.join("; ") };
    vec![
        format!("reads    {}{sweeps}", size(cost.read)),
        format!(
            "writes   {} ({} copied, {} computed)",
            size(cost.written),
            size(cost.copied),
            size(cost.computed)
        ),
        format!(
            "output   {} in {}",
            counted(cost.tensors, "tensor"),
            counted(cost.shards, "shard")
        ),
        format!("sidecars {made}"),
    ]
}

/// Shows what would be done.
pub(super) fn dry_run(
    plan: &Plan,
    out: &Path,
    replaces: bool,
    budget: Budget,
    device: &str,
    session: &Session,
) -> Result<(), Failure> {
    let exists = std::fs::symlink_metadata(out).is_ok();
    let from_hub = session.hub.outlook(plan)?;
    if session.json {
        let sidecars: Vec<&str> = plan.sidecars.iter().map(|s| s.file.as_str()).collect();
        let mut object = json!({
            "command": plan.operation.verb,
            "dry_run": true,
            "out": out.to_string_lossy(),
            "out_exists": exists,
            "cost": plan.cost(),
            "memory": budget,
            "device": device,
            "sidecars": sidecars,
            "notes": plan.notes,
            "plan": plan.digest(),
        });
        if let Some(from_hub) = from_hub {
            object["hub"] = from_hub.json();
        }
        return session.print_json(&object);
    }
    let mut text = format!("{} to `{}`\n", plan.operation.verb, out.display());
    for line in lines(plan) {
        let _ = writeln!(text, "  {line}");
    }
    if let Some(from_hub) = from_hub {
        let _ = writeln!(text, "  {}", from_hub.line());
    }
    let _ = writeln!(
        text,
        "  memory   {} ({} x {} tiles)",
        size(budget.bytes),
        counted(budget.threads as u64, "thread"),
        size(budget.tile)
    );
    let _ = writeln!(text, "  device   {device}");
    session.print(&text)?;
    notes(&plan.notes, session);
    if exists && !replaces {
        session.warn(&format!(
            "`{}` already exists: the run needs `--overwrite` or another `--out`",
            out.display()
        ));
    }
    session.say("nothing was written (dry run)");
    Ok(())
}

/// Shows what a change in place would do.
pub(super) fn dry_run_in_place(
    plan: &Plan,
    root: &Path,
    budget: Budget,
    session: &Session,
) -> Result<(), Failure> {
    let own = |slice: &Slice| {
        let source = usize::try_from(slice.source.0).ok();
        let source = source.and_then(|id| plan.sources.get(id));
        source.is_some_and(|source| source.role == "into")
    };
    let parts = plan.tensors.iter().flat_map(|tensor| {
        let foreign = |part: &&Part| !part.slices().into_iter().all(own);
        let parts = tensor.parts.iter().filter(foreign);
        parts.map(|part| tensor.part_len(part))
    });
    let rewritten: u64 = parts.sum();
    if session.json {
        return session.print_json(&json!({
            "command": plan.operation.verb,
            "dry_run": true,
            "in_place": root.to_string_lossy(),
            "rewritten": rewritten,
            "memory": budget,
            "notes": plan.notes,
            "plan": plan.digest(),
        }));
    }
    let (root, bytes) = (root.display(), size(rewritten));
    session.print(&format!(
        "{} into `{root}` in place\n  rewrites {bytes}\n  undo     {bytes} while it runs\n",
        plan.operation.verb
    ))?;
    notes(&plan.notes, session);
    session.say("nothing was written (dry run)");
    Ok(())
}

/// Tells people what a run did; what programs are told is handed back, to be printed when everything is done.
pub(super) fn done(
    plan: &Plan,
    report: &Report,
    device_reason: &str,
    time: Duration,
    session: &Session,
) -> Option<Value> {
    if session.json {
        let mut object = result(plan, report, device_reason, time);
        if let Some(traffic) = session.hub.traffic() {
            object["hub"] = traffic.json();
        }
        return Some(object);
    }
    let seconds = time.as_secs_f64();
    let bytes = report.written + report.shared;
    if bytes == 0 && report.resumed > 0 {
        let out = report.out.display();
        session.say(&format!("{}: `{out}` is complete already", plan.operation.verb));
        return None;
    }
    let mut line = format!(
        "{}: `{}`, {} in {seconds:.1} s",
        plan.operation.verb,
        report.out.display(),
        size(bytes),
    );
    if let Some(rate) = rate(bytes, seconds) {
        let _ = write!(line, " ({}/s)", size(rate));
    }
    if report.shared > 0 {
        let _ = write!(line, ", {} of it shared with the source", size(report.shared));
    }
    if report.resumed > 0 {
        let _ = write!(
            line,
            ", {} of {} from the interrupted run",
            report.resumed,
            counted(report.shards, "shard")
        );
    }
    session.say(&line);
    if let Some(traffic) = session.hub.traffic() {
        session.say(&traffic.line());
    }
    notes(&plan.notes, session);
    for (tensor, nans, infinities) in &report.non_finite {
        session.warn(&format!(
            "`{}` holds {} and {}",
            printable(tensor),
            counted(*nans, "NaN"),
            counted(*infinities, "infinite value")
        ));
    }
    None
}

/// The result for programs.
fn result(plan: &Plan, report: &Report, device_reason: &str, time: Duration) -> Value {
    let seconds = time.as_secs_f64();
    json!({
        "command": plan.operation.verb,
        "out": report.out.to_string_lossy(),
        "written": report.written,
        "shared": report.shared,
        "seconds": seconds,
        "bytes_per_second": rate(report.written + report.shared, seconds),
        "shards": report.shards,
        "resumed": report.resumed,
        "tensors": plan.tensors.len(),
        "device": report.device,
        "device_reason": device_reason,
        "plan": report.plan,
        "non_finite": report.non_finite.iter().map(|(tensor, nans, infinities)| {
            json!({ "tensor": tensor, "nan": nans, "infinite": infinities })
        }).collect::<Vec<_>>(),
        "notes": plan.notes,
    })
}

/// Bytes a second, where the time is long enough to mean something.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a rate is shown with three digits"
)]
fn rate(bytes: u64, seconds: f64) -> Option<u64> {
    (seconds > 1e-6 && bytes > 0).then(|| (bytes as f64 / seconds) as u64)
}

/// Most notes shown; the rest is in `elo-surgery.json`.
const NOTES: usize = 10;

/// Decisions and doubts of a plan.
pub(super) fn notes(notes: &[String], session: &Session) {
    let shown = if session.verbose { notes.len() } else { NOTES };
    for note in notes.iter().take(shown) {
        session.note(&printable(note));
    }
    if notes.len() > shown {
        session.note(&format!("... and {} more (`-v` shows them)", notes.len() - shown));
    }
}
