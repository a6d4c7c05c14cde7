//! The tables of `status`, and of the end of a run.

use std::fmt::Write as _;

use super::facts::{
    Kind, Model, base, change, is_control, models, perplexity, signed, slices, state_name, tasks,
};
use super::verdict::verdict;
use crate::audit::table::{Align, Table};
use crate::audit::{Seconds, Short};
use crate::error::printable;
use crate::pipeline::record::{Record, StageRecord, State};

/// How tables are drawn.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Whether states are coloured.
    pub colour: bool,
}

/// The stages: where they stand, how long they took, what came of them.
pub fn table(record: &Record, options: &Options) -> String {
    let languages: Vec<String> =
        slices(record).into_iter().filter(|slice| !slice.contains('/')).collect();
    let mut columns = vec![Align::Left, Align::Left, Align::Right, Align::Right, Align::Left];
    columns.extend(languages.iter().map(|_| Align::Right));
    columns.push(Align::Left);
    let mut table = Table::new(&columns);
    let mut titles: Vec<String> =
        ["STAGE", "STATE", "TIME", "TOKENS/S", "LOSS"].map(str::to_owned).into();
    titles.extend(languages.iter().map(|language| format!("PPL {}", printable(language))));
    titles.push("OUTPUT".into());
    table.row(titles);
    if let Some(base) = base(record) {
        let mut cells = vec!["base".to_owned()];
        cells.resize(5, String::new());
        cells.extend(perplexities(&base, &languages));
        table.row(cells);
    }
    let all = models(record);
    for stage in &record.stages {
        let mut cells = vec![
            printable(&stage.name),
            state(stage, options.colour),
            if stage.seconds > 0.0 { Seconds(stage.seconds).to_string() } else { String::new() },
            stage.tokens_per_second.map(|rate| Short(rate).to_string()).unwrap_or_default(),
            loss(stage),
        ];
        let model = all.iter().find(|m| m.kind != Kind::Baseline && m.name == stage.name);
        match model {
            Some(model) => cells.extend(perplexities(model, &languages)),
            None => cells.extend(languages.iter().map(|_| String::new())),
        }
        let output = stage.output.as_ref().map(|path| printable(&path.to_string_lossy()));
        cells.push(output.unwrap_or_default());
        table.row(cells);
    }
    let mut text = table.render();
    for stage in &record.stages {
        if let Some(error) = stage.error.as_ref().filter(|_| stage.state == State::Failed) {
            let _ = writeln!(text, "{}: {}", printable(&stage.name), printable(error));
        }
        for check in stage.checks.iter().filter(|check| !check.ok) {
            let (what, detail) = (printable(&check.what), printable(&check.detail));
            let _ = writeln!(text, "{}: not so: {what} ({detail})", printable(&stage.name));
        }
    }
    text
}

fn perplexities(model: &Model<'_>, languages: &[String]) -> Vec<String> {
    let shown = |slice: &String| model.perplexity(slice).map(perplexity).unwrap_or_default();
    languages.iter().map(shown).collect()
}

fn loss(stage: &StageRecord) -> String {
    match (stage.first_loss, stage.final_loss) {
        (Some(first), Some(last)) => format!("{first:.3} → {last:.3}"),
        (_, Some(last)) => format!("{last:.3}"),
        (Some(first), None) => format!("{first:.3} →"),
        (None, None) => String::new(),
    }
}

/// `done`, `running 120/480`.
fn state(stage: &StageRecord, colour: bool) -> String {
    let name = state_name(stage.state);
    let text = match (stage.state, stage.steps, stage.steps_total) {
        (State::Running | State::Interrupted | State::Failed, Some(step), Some(total)) => {
            format!("{name} {step}/{total}")
        }
        _ => name.to_owned(),
    };
    let style = match stage.state {
        State::Done => "32",
        State::Running => "36",
        State::Interrupted => "33",
        State::Failed => "31",
        State::Waiting | State::Skipped => "2",
    };
    if colour { format!("\x1b[{style}m{text}\x1b[0m") } else { text }
}

/// What changed on held-out data and benchmarks, from the base on; empty where nothing was measured.
pub fn before_after(record: &Record) -> String {
    let mut text = held_out(record);
    let scores = benchmarks(record);
    if !text.is_empty() && !scores.is_empty() {
        text.push('\n');
    }
    text.push_str(&scores);
    if text.is_empty() {
        return text;
    }
    let verdict = verdict(record);
    let _ = write!(text, "\n{}\n", printable(&verdict.line));
    for remark in &verdict.remarks {
        let _ = writeln!(text, "{}", printable(remark));
    }
    text
}

fn held_out(record: &Record) -> String {
    let slices = slices(record);
    if slices.is_empty() {
        return String::new();
    }
    let mut columns = vec![Align::Left];
    columns.extend(slices.iter().flat_map(|_| [Align::Right, Align::Right]));
    let mut table = Table::new(&columns);
    let mut titles = vec!["PERPLEXITY".to_owned()];
    titles.extend(slices.iter().flat_map(|slice| [printable(slice), String::new()]));
    table.row(titles);
    let base = base(record);
    for model in models(record).iter().filter(|model| !model.measured.is_empty()) {
        let mut cells = vec![printable(model.name)];
        for slice in &slices {
            let now = model.perplexity(slice);
            let before = base.as_ref().and_then(|base| base.perplexity(slice));
            let by = before.zip(now).and_then(|(before, now)| change(before, now));
            let by = by.filter(|_| model.name != "base");
            cells.push(now.map(perplexity).unwrap_or_default());
            cells.push(by.map(signed).unwrap_or_default());
        }
        table.row(cells);
    }
    table.render()
}

fn benchmarks(record: &Record) -> String {
    let tasks = tasks(record);
    if tasks.is_empty() {
        return String::new();
    }
    let models: Vec<Model<'_>> =
        models(record).into_iter().filter(|model| !model.scores.is_empty()).collect();
    let mut columns = vec![Align::Left, Align::Left];
    columns.extend(models.iter().map(|_| Align::Right));
    let mut table = Table::new(&columns);
    let mut titles = vec!["BENCHMARK".to_owned(), String::new()];
    titles.extend(models.iter().map(|model| printable(model.name)));
    table.row(titles);
    for (task, metric) in &tasks {
        let mut cells = vec![printable(task), printable(metric)];
        cells.extend(models.iter().map(|model| {
            let shown = |score: &crate::pipeline::record::Score| match score.error {
                Some(error) => format!("{:.3} ±{error:.3}", score.value),
                None => format!("{:.3}", score.value),
            };
            model.score(task, metric).map(shown).unwrap_or_default()
        }));
        table.row(cells);
    }
    table.render()
}

/// One line on the whole run: how many stages are done, and in what time.
pub fn summary(record: &Record) -> String {
    let main: Vec<&StageRecord> = record.stages.iter().filter(|s| !is_control(s)).collect();
    let done = main.iter().filter(|s| matches!(s.state, State::Done | State::Skipped)).count();
    let seconds: f64 = record.stages.iter().map(|stage| stage.seconds).sum();
    format!("{done} of {} stages done in {}", main.len(), Seconds(seconds))
}

#[cfg(test)]
mod tests {
    use super::super::fixture::record;
    use super::*;
    use crate::pipeline::record::Check;

    #[test]
    fn the_table_of_stages() {
        insta::assert_snapshot!(table(&record(), &Options::default()), @"
        STAGE                              STATE         TIME  TOKENS/S  LOSS           PPL ko  PPL en  OUTPUT
        base                                                                             12.78    6.38
        extract                            done        0.12 s                            120.0   18.30  extract/model
        pretrain                           done    3 min 32 s    4.27 k  2.940 → 2.330   10.28   10.70  pretrain/model
        inject                             done        0.31 s                            13.06   10.20  inject/model
        align                              done          31 s    1.54 k  2.450 → 2.340   10.98    7.64  align/model
        chat-vector                        done        0.28 s                            11.44    8.26  chat-vector/model
        sft                                done          44 s    2.79 k  2.410 → 1.930   11.00    7.44  sft/model
        control/align-only/align           done          30 s    1.56 k  2.610 → 2.490   12.48    6.77  control/align-only/align/model
        control/full-fine-tuning/pretrain  done   10 min 49 s    1.39 k  2.710 → 2.060    8.34    6.89  control/full-fine-tuning/pretrain/model
        ");
    }

    #[test]
    fn the_change_against_the_base() {
        insta::assert_snapshot!(before_after(&record()), @"
        PERPLEXITY                            ko              en           chat/ko  chat/en
        base                               12.78            6.38
        instruct                           13.91   +8.8 %   6.77   +6.1 %
        extract                            120.0   +839 %  18.30   +187 %
        pretrain                           10.28  -19.6 %  10.70  +67.7 %
        inject                             13.06   +2.2 %  10.20  +59.9 %
        align                              10.98  -14.1 %   7.64  +19.7 %
        chat-vector                        11.44  -10.5 %   8.26  +29.5 %
        sft                                11.00  -13.9 %   7.44  +16.6 %    11.17     6.46
        control/align-only/align           12.48   -2.3 %   6.77   +6.1 %
        control/full-fine-tuning/pretrain   8.34  -34.7 %   6.89   +8.0 %

        BENCHMARK                 base         align           sft
        kobest_copa  f1   0.581 ±0.014  0.612 ±0.014  0.655 ±0.014
        mmlu         acc  0.461 ±0.014  0.447 ±0.014  0.452 ±0.014

        Held-out perplexity: ko fell from 12.78 to 11.00 (-13.9 %); en rose from 6.38 to 7.44 (+16.6 %).
        Injected and not aligned, the model is worse than the base on ko (+2.2 %). That is expected: alignment is what makes the layers fit.
        Against the control with alignment data only (12.48): 12.0 % better on ko.
        Against the control with full fine-tuning (8.34): 31.7 % worse on ko; the control took 2.7 times as long.
        ");
    }

    #[test]
    fn colours_do_not_shift_columns_and_failures_are_told() {
        let mut record = record();
        let plain = table(&record, &Options::default());
        let coloured = table(&record, &Options { colour: true });
        let mut bare = String::new();
        let mut parts = coloured.split("\x1b[");
        bare.push_str(parts.next().unwrap());
        parts.for_each(|part| bare.push_str(part.split_once('m').unwrap().1));
        assert_eq!(plain, bare);
        record.stages[1].state = State::Failed;
        record.stages[1].error = Some("killed\u{1b}[2J".into());
        record.stages[1].checks.push(Check {
            what: "no NaN".into(),
            ok: false,
            detail: "3".into(),
        });
        let text = table(&record, &Options::default());
        assert!(text.contains("failed 442/442") && !text.contains('\u{1b}'), "{text}");
        assert!(text.contains("pretrain: not so: no NaN (3)"), "{text}");
        assert_eq!(summary(&record), "5 of 6 stages done in 16 min 07 s");
    }

    #[test]
    fn an_empty_record_is_a_heading() {
        let record = Record::default();
        assert_eq!(
            table(&record, &Options::default()),
            "STAGE  STATE  TIME  TOKENS/S  LOSS  OUTPUT\n"
        );
        assert_eq!(before_after(&record), "");
    }
}
