//! What a record tells, put in order: models with their measurements, languages, changes against the base.

use std::cmp::Reverse;

use crate::pipeline::record::{Measured, Record, Score, StageRecord, State};

/// Prefix of the stages of controls.
const CONTROL: &str = "control/";

/// A model with what was measured of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Model<'a> {
    /// `base`, `inject`, `control/align-only/align`.
    pub(super) name: &'a str,
    pub(super) measured: &'a [Measured],
    pub(super) scores: &'a [Score],
    pub(super) kind: Kind,
}

/// Where a model comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Baseline,
    Stage,
    Control,
}

impl<'a> Model<'a> {
    fn of(stage: &'a StageRecord) -> Self {
        Self {
            name: &stage.name,
            measured: &stage.measured,
            scores: &stage.scores,
            kind: if is_control(stage) { Kind::Control } else { Kind::Stage },
        }
    }

    /// Its measurement on a slice.
    pub(super) fn on(&self, slice: &str) -> Option<&'a Measured> {
        self.measured.iter().find(|m| m.slice == slice)
    }

    /// Its perplexity on a slice, where that is a number.
    pub(super) fn perplexity(&self, slice: &str) -> Option<f64> {
        self.on(slice).map(|m| m.perplexity).filter(|p| p.is_finite())
    }

    /// Its score in a task.
    pub(super) fn score(&self, task: &str, metric: &str) -> Option<&'a Score> {
        self.scores.iter().find(|s| s.task == task && s.metric == metric)
    }
}

/// Whether a stage belongs to a control.
pub(super) fn is_control(stage: &StageRecord) -> bool {
    stage.name.starts_with(CONTROL)
}

/// `align-only` and `align` of `control/align-only/align`.
pub(super) fn control_of(stage: &StageRecord) -> Option<(&str, &str)> {
    stage.name.strip_prefix(CONTROL)?.split_once('/')
}

/// The stages of the run itself.
pub(super) fn main_stages(record: &Record) -> impl Iterator<Item = &StageRecord> {
    record.stages.iter().filter(|stage| !is_control(stage))
}

/// Every model that was measured or scored: the starting points, the stages, the last stage of each control.
pub(super) fn models(record: &Record) -> Vec<Model<'_>> {
    let scored = record.baseline_scores.keys();
    let mut names: Vec<&String> = record.baselines.keys().chain(scored).collect();
    names.sort_by_key(|name| (*name != "base", *name));
    names.dedup();
    let starts = names.into_iter().map(|name| Model {
        name,
        measured: record.baselines.get(name).map_or(&[], Vec::as_slice),
        scores: record.baseline_scores.get(name).map_or(&[], Vec::as_slice),
        kind: Kind::Baseline,
    });
    let stages = record.stages.iter().map(Model::of);
    starts.chain(stages).filter(|m| !m.measured.is_empty() || !m.scores.is_empty()).collect()
}

/// The measured model that everything is compared with.
pub(super) fn base(record: &Record) -> Option<Model<'_>> {
    let mut starts = models(record).into_iter().filter(|model| model.kind == Kind::Baseline);
    starts.find(|model| model.name == "base" && !model.measured.is_empty())
}

/// The last model of the run that was measured.
pub(super) fn last_measured(record: &Record) -> Option<Model<'_>> {
    let mut all = models(record).into_iter();
    all.rfind(|model| model.kind == Kind::Stage && !model.measured.is_empty())
}

/// The measured model of a stage of the run itself.
pub(super) fn measured_stage<'a>(record: &'a Record, name: &str) -> Option<Model<'a>> {
    let mut of_stages = models(record).into_iter();
    of_stages.find(|model| model.kind == Kind::Stage && model.name == name)
}

/// Slices of held-out data: the target language, the other languages, then chats.
pub(super) fn slices(record: &Record) -> Vec<String> {
    let mut slices: Vec<String> = Vec::new();
    for measured in models(record).iter().flat_map(|model| model.measured) {
        if !slices.contains(&measured.slice) {
            slices.push(measured.slice.clone());
        }
    }
    let target = target(record);
    slices.sort_by_key(|slice| (slice.contains('/'), Some(slice) != target.as_ref()));
    slices
}

/// The language the model is adapted to: the one with the most text for pretraining.
pub(super) fn target(record: &Record) -> Option<String> {
    let facts = record.data.iter().find(|facts| facts.name == "pretrain")?;
    let largest = facts.languages.iter().min_by_key(|(name, bytes)| (Reverse(**bytes), *name));
    largest.map(|(name, _)| name.clone())
}

/// Languages of the data, the target first.
pub(super) fn languages(record: &Record) -> Vec<String> {
    let target = target(record);
    let all = record.data.iter().flat_map(|facts| facts.languages.keys());
    let mut names: Vec<String> = all.cloned().collect();
    names.sort_by_key(|name| (Some(name) != target.as_ref(), name.clone()));
    names.dedup();
    names
}

/// Tasks with their metrics, as they first appear.
pub(super) fn tasks(record: &Record) -> Vec<(String, String)> {
    let mut tasks: Vec<(String, String)> = Vec::new();
    for score in models(record).iter().flat_map(|model| model.scores) {
        let task = (score.task.clone(), score.metric.clone());
        if !tasks.contains(&task) {
            tasks.push(task);
        }
    }
    tasks
}

/// `now / before - 1`.
pub(super) fn change(before: f64, now: f64) -> Option<f64> {
    let change = now / before - 1.0;
    change.is_finite().then_some(change)
}

/// A change in percent with its sign: `-14.1 %`, `+2.2 %`, `0.0 %`.
pub(super) fn signed(change: f64) -> String {
    let percent = change * 100.0;
    let digits = usize::from(percent.abs() < 99.95);
    let text = format!("{percent:+.digits$} %");
    match text.as_str() {
        "+0.0 %" | "-0.0 %" => "0.0 %".into(),
        _ => text,
    }
}

/// A perplexity with about four digits: `10.98`, `120.3`, `1204`.
pub(super) fn perplexity(value: f64) -> String {
    match value {
        v if !v.is_finite() => "-".into(),
        v if v >= 10_000.0 => format!("{v:.1e}"),
        v if v >= 999.95 => format!("{v:.0}"),
        v if v >= 99.995 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}

/// What a state is called.
pub(super) fn state_name(state: State) -> &'static str {
    match state {
        State::Waiting => "waiting",
        State::Running => "running",
        State::Interrupted => "interrupted",
        State::Failed => "failed",
        State::Done => "done",
        State::Skipped => "skipped",
    }
}

/// What a control is, in words.
pub(super) fn control_title(name: &str) -> &str {
    match name {
        "align-only" => "alignment data only",
        "full-fine-tuning" => "full fine-tuning",
        "middle-layers" => "ELO with the middle layers",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::record;
    use super::*;

    #[test]
    fn the_target_language_comes_first_and_chats_last() {
        let record = record();
        assert_eq!(target(&record).as_deref(), Some("ko"));
        assert_eq!(slices(&record), ["ko", "en", "chat/ko", "chat/en"]);
        assert_eq!(models(&record)[0].name, "base");
        assert_eq!(last_measured(&record).unwrap().name, "sft");
    }

    #[test]
    fn figures_keep_their_signs() {
        assert_eq!(signed(10.98 / 12.78 - 1.0), "-14.1 %");
        assert_eq!(signed(0.0219), "+2.2 %");
        assert_eq!([signed(0.000_01), signed(-0.000_01)], ["0.0 %", "0.0 %"]);
        assert_eq!(signed(8.4), "+840 %");
        assert_eq!([perplexity(10.978), perplexity(120.31)], ["10.98", "120.3"]);
        assert_eq!([perplexity(f64::NAN), perplexity(123_456.0)], ["-", "1.2e5"]);
        assert_eq!(change(0.0, 1.0), None);
    }
}
