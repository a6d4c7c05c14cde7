//! What the page's template is given: text, ready to be laid out.

use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use super::facts::{
    Kind, Model, base, change, control_of, control_title, is_control, languages, main_stages,
    models, perplexity, signed, slices, state_name, tasks,
};
use super::page::Extra;
use super::verdict::{Outcome, time_ratio, verdict};
use super::{chart, curve};
use crate::audit::{Bytes, Elements, Grouped, Seconds, Short};
use crate::pipeline::record::{DataFacts, Record, StageRecord, State};

/// Everything on the page.
#[derive(Serialize)]
pub(super) struct View {
    title: String,
    subtitle: Vec<String>,
    outcome: &'static str,
    verdict: String,
    remarks: Vec<String>,
    tiles: Vec<Tile>,
    slices: Vec<String>,
    chats: Vec<String>,
    held_out: Vec<Row>,
    chat_rows: Vec<Row>,
    plots: Vec<Plot>,
    stages: Vec<Stage>,
    curves: Vec<Plot>,
    times: Vec<Bar>,
    total_time: String,
    controls: Vec<Control>,
    benchmark_models: Vec<String>,
    benchmarks: Vec<Benchmark>,
    costs: Vec<Bar>,
    cost_line: Option<String>,
    languages: Vec<Language>,
    data: Vec<Data>,
    checks: Vec<Checks>,
    manifest: Vec<(String, String)>,
    versions: Vec<Versions>,
    tool: String,
}

/// A figure that stands out.
#[derive(Serialize)]
struct Tile {
    name: String,
    value: String,
    from: Option<String>,
    by: Option<Change>,
}

/// A change against the base.
#[derive(Serialize)]
struct Change {
    text: String,
    /// `better`, `worse`, `same`.
    class: &'static str,
}

impl Change {
    /// Where less is better.
    fn of(before: Option<f64>, now: Option<f64>) -> Option<Self> {
        let by = change(before?, now?)?;
        let text = signed(by);
        let class = match by {
            _ if text == "0.0 %" => "same",
            by if by < 0.0 => "better",
            _ => "worse",
        };
        Some(Self { text, class })
    }
}

/// A model's measurements.
#[derive(Serialize)]
struct Row {
    name: String,
    remark: Option<&'static str>,
    class: &'static str,
    cells: Vec<Option<Cell>>,
}

#[derive(Serialize)]
struct Cell {
    perplexity: String,
    by: Option<Change>,
    bits: String,
    tokens: String,
}

/// A drawing with its title.
#[derive(Serialize)]
struct Plot {
    title: String,
    aside: String,
    svg: minijinja::Value,
}

#[derive(Serialize)]
struct Stage {
    name: String,
    control: bool,
    state: &'static str,
    time: String,
    steps: String,
    tokens: String,
    rate: String,
    loss: String,
    trained: String,
    held: usize,
    checked: usize,
    output: String,
    error: Option<String>,
    notes: Vec<String>,
}

/// A bar of a length in percent.
#[derive(Serialize)]
struct Bar {
    name: String,
    value: String,
    width: f64,
    class: &'static str,
}

#[derive(Serialize)]
struct Control {
    name: String,
    remark: String,
    ours: bool,
    time: String,
    times: String,
    tokens: String,
    trained: String,
    cells: Vec<Option<Cell>>,
}

#[derive(Serialize)]
struct Benchmark {
    task: String,
    metric: String,
    shots: String,
    cells: Vec<Option<ScoreCell>>,
}

#[derive(Serialize)]
struct ScoreCell {
    value: String,
    error: Option<String>,
    by: Option<Change>,
}

#[derive(Serialize)]
struct Language {
    name: String,
    colour: usize,
}

#[derive(Serialize)]
struct Data {
    name: String,
    records: String,
    bytes: String,
    digest: String,
    shares: Vec<Share>,
}

#[derive(Serialize)]
struct Share {
    name: String,
    width: f64,
    colour: usize,
    text: String,
}

#[derive(Serialize)]
struct Checks {
    stage: String,
    items: Vec<CheckItem>,
}

#[derive(Serialize)]
struct CheckItem {
    what: String,
    ok: bool,
    detail: String,
}

#[derive(Serialize)]
struct Versions {
    stage: String,
    started: String,
    lines: Vec<(&'static str, String)>,
}

impl View {
    pub(super) fn of(record: &Record, out: &Path, extra: &Extra) -> Self {
        let verdict = verdict(record);
        let (chats, slices): (Vec<String>, Vec<String>) =
            slices(record).into_iter().partition(|slice| slice.contains('/'));
        let languages = languages(record);
        Self {
            title: extra.title.clone().unwrap_or_else(|| model_name(record)),
            subtitle: subtitle(record),
            outcome: match verdict.outcome {
                Outcome::Good => "good",
                Outcome::Mixed => "mixed",
                Outcome::Open => "open",
                Outcome::Failed => "failed",
            },
            verdict: verdict.line,
            remarks: verdict.remarks,
            tiles: tiles(record, &slices, extra),
            held_out: rows(record, &slices),
            chat_rows: rows(record, &chats),
            plots: slices.iter().filter_map(|slice| dots(record, slice)).collect(),
            slices,
            chats,
            stages: record.stages.iter().map(stage).collect(),
            curves: curves(record, out),
            times: times(record),
            total_time: Seconds(record.stages.iter().map(|s| s.seconds).sum()).to_string(),
            controls: controls(record),
            benchmark_models: scored(record).iter().map(|m| m.name.to_owned()).collect(),
            benchmarks: benchmarks(record),
            costs: costs(extra),
            cost_line: cost_line(extra),
            data: record.data.iter().map(|facts| data(facts, &languages)).collect(),
            languages: languages
                .into_iter()
                .enumerate()
                .map(|(i, name)| Language { name, colour: i % 6 })
                .collect(),
            checks: checks(record),
            manifest: manifest(record),
            versions: record.stages.iter().filter(|s| s.attempts > 0).map(versions).collect(),
            tool: record.tool.clone(),
        }
    }
}

fn model_name(record: &Record) -> String {
    let path = &record.model.path;
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
    if name.is_empty() { "A run that has not begun".into() } else { name.into_owned() }
}

fn subtitle(record: &Record) -> Vec<String> {
    let model = &record.model;
    let mut parts = Vec::new();
    if !model.family.is_empty() {
        parts.push(model.family.clone());
    }
    if model.parameters > 0 {
        parts.push(format!("{} parameters", Elements(model.parameters)));
    }
    if model.layers > 0 {
        parts.push(format!("{} layers", model.layers));
    }
    if !model.chosen.is_empty() {
        let chosen: Vec<String> = model.chosen.iter().map(u64::to_string).collect();
        parts.push(format!("trained: {}", chosen.join(", ")));
    }
    let languages = languages(record);
    if !languages.is_empty() {
        parts.push(languages.join(", "));
    }
    parts
}

fn tiles(record: &Record, slices: &[String], extra: &Extra) -> Vec<Tile> {
    let mut tiles = Vec::new();
    let (base, last) = (base(record), super::facts::last_measured(record));
    if let (Some(base), Some(last)) = (base, last) {
        for slice in slices.iter().take(3) {
            let (before, now) = (base.perplexity(slice), last.perplexity(slice));
            tiles.extend(now.map(|value| Tile {
                name: format!("perplexity, {slice}"),
                value: perplexity(value),
                from: before.map(perplexity),
                by: Change::of(before, now),
            }));
        }
    }
    let seconds: f64 = main_stages(record).map(|stage| stage.seconds).sum();
    if seconds > 0.0 {
        tiles.push(plain("time of all stages", Seconds(seconds).to_string()));
    }
    let pretrain = main_stages(record).find(|stage| stage.name == "pretrain");
    if let Some(trained) = pretrain.and_then(|stage| stage.trained_parameters) {
        tiles.push(plain("parameters pretrained", Elements(trained).to_string()));
    }
    if let Some(ratio) = extra.outlook.as_ref().and_then(|outlook| outlook.ratio) {
        tiles.push(plain("less arithmetic than full fine-tuning", format!("{ratio:.1} ×")));
    } else if let Some(ratio) = time_ratio(record, "full-fine-tuning") {
        tiles.push(plain("less time than full fine-tuning", format!("{ratio:.1} ×")));
    }
    tiles
}

fn plain(name: &str, value: String) -> Tile {
    Tile { name: name.into(), value, from: None, by: None }
}

fn rows(record: &Record, slices: &[String]) -> Vec<Row> {
    let base = base(record);
    let all = models(record).into_iter();
    let shown = all.filter(|model| model.kind != Kind::Control);
    shown
        .filter(|model| slices.iter().any(|slice| model.on(slice).is_some()))
        .map(|model| Row {
            name: model.name.to_owned(),
            remark: remark(&model, base.as_ref(), slices),
            class: if model.kind == Kind::Baseline { "baseline" } else { "stage" },
            cells: cells(&model, base.as_ref(), slices),
        })
        .collect()
}

/// What to expect of a model.
fn remark(model: &Model<'_>, base: Option<&Model<'_>>, slices: &[String]) -> Option<&'static str> {
    let slice = slices.first()?;
    let before = base.and_then(|base| base.perplexity(slice));
    let is_worse = || model.perplexity(slice).zip(before).is_some_and(|(now, then)| now > then);
    match (model.kind, model.name) {
        (Kind::Baseline, "base") => Some("where the run starts"),
        (Kind::Baseline, "instruct") => Some("its instruction-tuned relative"),
        (Kind::Stage, "extract") => Some("the chosen layers alone, untrained"),
        (Kind::Stage, "pretrain") => Some("the chosen layers alone, trained"),
        (Kind::Stage, "inject") if is_worse() => {
            Some("expected: injection alone is worse than base")
        }
        (Kind::Stage, "inject") => Some("the layers back, not aligned"),
        (Kind::Stage, "align") if is_worse() => Some("worse than base: not expected"),
        _ => None,
    }
}

fn cells(model: &Model<'_>, base: Option<&Model<'_>>, slices: &[String]) -> Vec<Option<Cell>> {
    let cell = |slice: &String| {
        let measured = model.on(slice)?;
        let before = base.and_then(|base| base.perplexity(slice));
        let is_base = model.kind == Kind::Baseline && model.name == "base";
        Some(Cell {
            perplexity: perplexity(measured.perplexity),
            by: Change::of(before, model.perplexity(slice)).filter(|_| !is_base),
            bits: format!("{:.3}", measured.bits_per_byte),
            tokens: Grouped(measured.tokens).to_string(),
        })
    };
    slices.iter().map(cell).collect()
}

/// The last measured stage of each control, with the control's name.
fn last_of_controls(record: &Record) -> Vec<(&str, &StageRecord)> {
    let mut last: Vec<(&str, &StageRecord)> = Vec::new();
    for stage in record.stages.iter().filter(|stage| !stage.measured.is_empty()) {
        let Some((control, _)) = control_of(stage) else {
            continue;
        };
        match last.iter_mut().find(|(name, _)| *name == control) {
            Some(entry) => entry.1 = stage,
            None => last.push((control, stage)),
        }
    }
    last
}

fn dots(record: &Record, slice: &str) -> Option<Plot> {
    let dot = |label: &str, class, value: Option<f64>| {
        value.map(|value| chart::Dot {
            label: shortened(label),
            value,
            class,
            shown: perplexity(value),
        })
    };
    let all = models(record).into_iter();
    let mut rows: Vec<chart::Dot> = all
        .filter(|model| model.kind != Kind::Control)
        .filter_map(|model| {
            let class = match (model.kind, model.name) {
                (Kind::Baseline, "base") => "base",
                (Kind::Baseline, _) => "other",
                _ => "stage",
            };
            dot(model.name, class, model.perplexity(slice))
        })
        .collect();
    let controls = last_of_controls(record).into_iter();
    rows.extend(controls.filter_map(|(name, stage)| {
        let measured = stage.measured.iter().find(|m| m.slice == slice)?;
        let value = Some(measured.perplexity).filter(|p| p.is_finite());
        dot(control_title(name), "control", value)
    }));
    let svg = chart::dots(&format!("perplexity on {slice}"), &rows);
    (!svg.is_empty()).then(|| Plot {
        title: slice.to_owned(),
        aside: "perplexity, less is better".into(),
        svg: minijinja::Value::from_safe_string(svg),
    })
}

fn shortened(label: &str) -> String {
    const KEEP: usize = 24;
    match label.chars().count() {
        n if n > KEEP => label.chars().take(KEEP - 1).chain(['…']).collect(),
        _ => label.to_owned(),
    }
}

fn stage(stage: &StageRecord) -> Stage {
    let some = |text: Option<String>| text.unwrap_or_default();
    let steps = match (stage.steps, stage.steps_total) {
        (Some(steps), Some(total)) if steps != total => {
            format!("{} of {}", Grouped(steps), Grouped(total))
        }
        (Some(steps), _) => Grouped(steps).to_string(),
        _ => String::new(),
    };
    Stage {
        name: stage.name.clone(),
        control: is_control(stage),
        state: state_name(stage.state),
        time: some((stage.seconds > 0.0).then(|| Seconds(stage.seconds).to_string())),
        steps,
        tokens: some(stage.tokens.map(|tokens| Short(amount(tokens)).to_string())),
        rate: some(stage.tokens_per_second.map(|rate| Short(rate).to_string())),
        loss: match (stage.first_loss, stage.final_loss) {
            (Some(first), Some(last)) => format!("{first:.3} → {last:.3}"),
            (None, Some(loss)) | (Some(loss), None) => format!("{loss:.3}"),
            (None, None) => String::new(),
        },
        trained: some(stage.trained_parameters.map(|n| Elements(n).to_string())),
        held: stage.checks.iter().filter(|check| check.ok).count(),
        checked: stage.checks.len(),
        output: some(stage.output.as_ref().map(|path| path.to_string_lossy().into_owned())),
        error: stage.error.clone().filter(|_| stage.state != State::Done),
        notes: stage.notes.clone(),
    }
}

fn curves(record: &Record, out: &Path) -> Vec<Plot> {
    let plot = |stage: &StageRecord| {
        let points = curve::read(&out.join(stage.events.as_ref()?))?;
        let (first, last) = (points.first()?, points.last()?);
        let svg = chart::loss(&stage.name, &points);
        Some(Plot {
            title: stage.name.clone(),
            aside: format!("loss {:.3} → {:.3}", first.loss, last.loss),
            svg: minijinja::Value::from_safe_string(svg),
        })
    };
    record.stages.iter().filter_map(plot).collect()
}

fn times(record: &Record) -> Vec<Bar> {
    let longest = record.stages.iter().map(|stage| stage.seconds).fold(0.0, f64::max);
    let timed = record.stages.iter().filter(|stage| stage.seconds > 0.0);
    timed
        .map(|stage| Bar {
            name: stage.name.clone(),
            value: Seconds(stage.seconds).to_string(),
            width: percent(stage.seconds, longest),
            class: if is_control(stage) { "control" } else { "stage" },
        })
        .collect()
}

/// The run up to `align`, then each control: the same data spent in different ways.
fn controls(record: &Record) -> Vec<Control> {
    let last = last_of_controls(record);
    if last.is_empty() {
        return Vec::new();
    }
    let languages: Vec<String> =
        slices(record).into_iter().filter(|slice| !slice.contains('/')).collect();
    let base = base(record);
    let sum = |stages: &[&StageRecord], figure: fn(&StageRecord) -> f64| -> f64 {
        stages.iter().map(|stage| figure(stage)).sum()
    };
    let ours: Vec<&StageRecord> = main_stages(record)
        .take_while(|stage| !matches!(stage.name.as_str(), "chat-vector" | "sft"))
        .collect();
    let our_time = sum(&ours, |stage| stage.seconds);
    let row = |name: String, remark: String, stages: &[&StageRecord], end: Option<&StageRecord>| {
        let seconds = sum(stages, |stage| stage.seconds);
        let tokens = sum(stages, |stage| stage.tokens.map_or(0.0, amount));
        let trained = stages.iter().filter_map(|stage| stage.trained_parameters).max();
        let all = models(record).into_iter();
        let is_end = |model: &Model<'_>| {
            model.kind != Kind::Baseline && end.is_some_and(|end| end.name == model.name)
        };
        let model = all.into_iter().find(is_end);
        Control {
            name,
            remark,
            ours: end.is_some_and(|end| !is_control(end)),
            time: Seconds(seconds).to_string(),
            times: if our_time > 0.0 {
                format!("{:.2} ×", seconds / our_time)
            } else {
                String::new()
            },
            tokens: if tokens > 0.0 { Short(tokens).to_string() } else { String::new() },
            trained: trained.map(|n| Elements(n).to_string()).unwrap_or_default(),
            cells: model.map_or_else(
                || languages.iter().map(|_| None).collect(),
                |model| cells(&model, base.as_ref(), &languages),
            ),
        }
    };
    let end = ours.iter().rev().find(|stage| !stage.measured.is_empty()).copied();
    let remark = end.map(|end| format!("this run, up to {}", end.name)).unwrap_or_default();
    let mut rows = vec![row("ELO".into(), remark, &ours, end)];
    for (name, end) in last {
        let stages: Vec<&StageRecord> = record
            .stages
            .iter()
            .filter(|stage| control_of(stage).is_some_and(|(control, _)| control == name))
            .collect();
        rows.push(row(
            control_title(name).to_owned(),
            format!("control/{name}"),
            &stages,
            Some(end),
        ));
    }
    rows
}

fn scored(record: &Record) -> Vec<Model<'_>> {
    models(record).into_iter().filter(|model| !model.scores.is_empty()).collect()
}

fn benchmarks(record: &Record) -> Vec<Benchmark> {
    let models = scored(record);
    let first = models.first().filter(|model| model.kind == Kind::Baseline);
    let row = |(task, metric): (String, String)| {
        let before = first.and_then(|model| model.score(&task, &metric));
        let cell = |model: &Model<'_>| {
            let score = model.score(&task, &metric)?;
            let by = before.filter(|_| model.kind != Kind::Baseline).map(|before| {
                let points = (score.value - before.value) * 100.0;
                let class = match points {
                    p if p > 0.05 => "better",
                    p if p < -0.05 => "worse",
                    _ => "same",
                };
                Change { text: format!("{points:+.1}"), class }
            });
            Some(ScoreCell {
                value: format!("{:.1}", score.value * 100.0),
                error: score.error.map(|error| format!("± {:.1}", error * 100.0)),
                by,
            })
        };
        let shots = models.iter().find_map(|model| model.score(&task, &metric)?.shots);
        Benchmark {
            cells: models.iter().map(cell).collect(),
            shots: shots.map(|shots| shots.to_string()).unwrap_or_default(),
            task,
            metric,
        }
    };
    tasks(record).into_iter().map(row).collect()
}

/// FLOPs as estimated, of each stage and of full fine-tuning.
fn costs(extra: &Extra) -> Vec<Bar> {
    let Some((outlook, full)) =
        extra.outlook.as_ref().and_then(|o| Some((o, o.full_fine_tuning.as_ref()?)))
    else {
        return Vec::new();
    };
    let most = outlook.stages.iter().map(|s| s.estimate.flops).fold(full.flops, f64::max);
    let bar = |name: String, flops: f64, class| Bar {
        name,
        value: format!("{flops:.2e} FLOP"),
        width: percent(flops, most),
        class,
    };
    let stages = outlook.stages.iter().map(|stage| {
        let name = serde_json::to_value(stage.stage).ok();
        let name = name.as_ref().and_then(Value::as_str).unwrap_or_default().to_owned();
        bar(name, stage.estimate.flops, "stage")
    });
    stages.chain([bar("full fine-tuning".into(), full.flops, "control")]).collect()
}

fn cost_line(extra: &Extra) -> Option<String> {
    let ratio = extra.outlook.as_ref()?.ratio?;
    Some(format!(
        "Estimated: full fine-tuning on the data of pretrain takes {ratio:.1} times the arithmetic of pretrain and align together."
    ))
}

fn data(facts: &DataFacts, languages: &[String]) -> Data {
    let all: u64 = facts.languages.values().sum();
    let shares = languages.iter().enumerate().filter_map(|(i, name)| {
        let bytes = *facts.languages.get(name).filter(|bytes| **bytes > 0)?;
        let width = percent(amount(bytes), amount(all));
        let text = format!("{name}: {}, {width:.1} %", Bytes(bytes));
        Some(Share { name: name.clone(), width, colour: i % 6, text })
    });
    Data {
        name: facts.name.clone(),
        records: Grouped(facts.records).to_string(),
        bytes: Bytes(facts.bytes).to_string(),
        digest: shown_digest(&facts.digest),
        shares: shares.collect(),
    }
}

fn checks(record: &Record) -> Vec<Checks> {
    let checked = record.stages.iter().filter(|stage| !stage.checks.is_empty());
    checked
        .map(|stage| Checks {
            stage: stage.name.clone(),
            items: stage
                .checks
                .iter()
                .map(|check| CheckItem {
                    what: check.what.clone(),
                    ok: check.ok,
                    detail: check.detail.clone(),
                })
                .collect(),
        })
        .collect()
}

fn manifest(record: &Record) -> Vec<(String, String)> {
    let mut lines: Vec<(String, String)> = Vec::new();
    let mut line = |name: &str, value: String| {
        if !value.is_empty() {
            lines.push((name.to_owned(), value));
        }
    };
    line("elo-surgery", record.tool.clone());
    line("model", record.model.path.to_string_lossy().into_owned());
    if let Some(seed) = record.project.get("seed") {
        line("seed", seed.to_string());
    }
    if !record.project.is_null() {
        line("project", serde_json::to_string_pretty(&record.project).unwrap_or_default());
    }
    lines
}

fn versions(stage: &StageRecord) -> Versions {
    let mut lines: Vec<(&'static str, String)> = Vec::new();
    let mut line = |name: &'static str, value: Option<String>| {
        lines.extend(value.filter(|value| !value.is_empty()).map(|value| (name, value)));
    };
    let versions: Vec<String> =
        stage.versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
    line("fingerprint", Some(stage.key.clone()));
    line("digest", stage.digest.clone());
    line("backend", stage.backend.clone());
    line("versions", Some(versions.join(", ")));
    line("attempts", (stage.attempts > 1).then(|| stage.attempts.to_string()));
    line("command", Some(stage.command.join(" ")));
    line("log", stage.log.as_ref().map(|path| path.to_string_lossy().into_owned()));
    Versions { stage: stage.name.clone(), started: time_of(stage.started), lines }
}

/// The first digits of a digest; the record has them all.
fn shown_digest(digest: &str) -> String {
    digest.chars().take(12).collect()
}

/// `2026-09-21 14:13 UTC`, by the proleptic Gregorian calendar (Howard Hinnant, `civil_from_days`).
fn time_of(seconds: u64) -> String {
    if seconds == 0 {
        return String::new();
    }
    let (days, rest) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let of_year = day - (365 * year + year / 4 - year / 100);
    let shifted = (5 * of_year + 2) / 153;
    let date = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year + era * 400 + u64::from(month <= 2);
    format!("{year}-{month:02}-{date:02} {:02}:{:02} UTC", rest / 3600, rest % 3600 / 60)
}

/// A share in percent, never so small that a bar could not be seen.
fn percent(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { (part / whole * 100.0).clamp(0.0, 100.0) } else { 0.0 }
}

#[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
fn amount(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::super::fixture::record;
    use super::*;

    #[test]
    fn times_are_dates() {
        assert_eq!(time_of(0), "");
        assert_eq!(time_of(951_782_400), "2000-02-29 00:00 UTC");
        assert_eq!(time_of(1_790_000_000), "2026-09-21 14:13 UTC");
    }

    #[test]
    fn controls_stand_beside_the_aligned_model() {
        let rows = controls(&record());
        let shown: Vec<(&str, &str)> =
            rows.iter().map(|row| (row.name.as_str(), row.times.as_str())).collect();
        assert_eq!(
            shown,
            [("ELO", "1.00 ×"), ("alignment data only", "0.12 ×"), ("full fine-tuning", "2.67 ×")]
        );
        assert_eq!(rows[0].remark, "this run, up to align");
        assert_eq!(rows[2].cells[0].as_ref().unwrap().by.as_ref().unwrap().text, "-34.7 %");
    }

    #[test]
    fn injection_is_judged_by_the_figures() {
        let mut record = record();
        let remark = |record: &Record| {
            let rows = rows(record, &["ko".to_owned()]);
            rows.into_iter().find(|row| row.name == "inject").unwrap().remark.unwrap()
        };
        assert_eq!(remark(&record), "expected: injection alone is worse than base");
        for measured in &mut record.stages[2].measured {
            measured.perplexity = 5.0;
        }
        assert_eq!(remark(&record), "the layers back, not aligned");
    }
}
