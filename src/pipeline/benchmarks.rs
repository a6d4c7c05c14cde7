//! Benchmarks: the command of lm-evaluation-harness, and its result files.
//!
//! Its command line is that of version 0.4.9 and later (`lm-eval run`); results lie in
//! `OUT/MODEL/results_TIME.json`, one file for each call.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::project::{Evaluate, Task};
use super::record::Score;
use crate::error::{Error, IoContext as _, Result};

/// The harness's command where the project names none.
const COMMAND: [&str; 13] = [
    "lm-eval",
    "run",
    "--model",
    "hf",
    "--model_args",
    "pretrained={model},dtype=bfloat16",
    "--tasks",
    "{tasks}",
    "--batch_size",
    "auto",
    "--seed",
    "{seed}",
    "--output_path",
];
/// How deep below the output directory results lie: `OUT/MODEL/results_TIME.json`, and one to spare.
const DEPTH: usize = 3;
/// Largest result file that is read: they hold settings and scores, not samples.
const LARGEST: u64 = 64 << 20;

/// The commands that run the project's tasks on a model, one for each number of examples in the prompt, since that is
/// said once a call. Tasks without a number keep the harness's own and come first. `chat` puts prompts through
/// the chat template, as turns.
pub fn command(
    evaluate: &Evaluate,
    model: &Path,
    out: &Path,
    seed: u64,
    chat: bool,
) -> Vec<Vec<String>> {
    let mut by_shots: BTreeMap<Option<u32>, Vec<&str>> = BTreeMap::new();
    for task in &evaluate.tasks {
        let (name, shots) = match task {
            Task::Name(name) => (name, None),
            Task::Shots { name, shots } => (name, Some(*shots)),
        };
        let names = by_shots.entry(shots).or_default();
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    let calls = by_shots.into_iter();
    calls
        .map(|(shots, tasks)| {
            let place = out.join(shots.map_or_else(|| "default".into(), |n| format!("{n}-shot")));
            let values = Values {
                model: model.to_string_lossy().into_owned(),
                tasks: tasks.join(","),
                shots,
                out: place.to_string_lossy().into_owned(),
                seed: seed.to_string(),
            };
            if evaluate.command.is_empty() {
                values.default_command(chat)
            } else {
                evaluate.command.iter().map(|word| values.filled(word)).collect()
            }
        })
        .collect()
}

/// What goes into the placeholders of a command.
struct Values {
    model: String,
    tasks: String,
    shots: Option<u32>,
    out: String,
    seed: String,
}

impl Values {
    fn default_command(&self, chat: bool) -> Vec<String> {
        let mut words: Vec<String> = COMMAND.iter().map(|word| self.filled(word)).collect();
        words.push(self.out.clone());
        if let Some(shots) = self.shots {
            words.extend(["--num_fewshot".into(), shots.to_string()]);
        }
        if chat {
            words.extend(["--apply_chat_template".into(), "--fewshot_as_multiturn".into()]);
        }
        words
    }

    /// The word with its placeholders filled, in one pass: a value is never looked at again.
    fn filled(&self, word: &str) -> String {
        let shots = self.shots.map(|n| n.to_string()).unwrap_or_default();
        let known = [
            ("{model}", &self.model),
            ("{tasks}", &self.tasks),
            ("{shots}", &shots),
            ("{out}", &self.out),
            ("{seed}", &self.seed),
        ];
        let mut text = String::with_capacity(word.len());
        let mut rest = word;
        while let Some(at) = rest.find('{') {
            text.push_str(&rest[..at]);
            rest = &rest[at..];
            match known.iter().find(|(name, _)| rest.starts_with(name)) {
                Some((name, value)) => {
                    text.push_str(value);
                    rest = &rest[name.len()..];
                }
                None => {
                    text.push('{');
                    rest = &rest[1..];
                }
            }
        }
        text + rest
    }
}

/// The scores below a directory that [`command`] named: of every place the newest result file, a later one winning
/// where two hold the same task. An error where there is none, or where none holds a score.
pub fn read(out: &Path) -> Result<Vec<Score>> {
    let mut found: BTreeMap<PathBuf, PathBuf> = BTreeMap::new();
    results(out, DEPTH, &mut found)?;
    let mut files: Vec<PathBuf> = found.into_values().collect();
    if files.is_empty() {
        return Err(refused(out, "it holds no `results_*.json`"));
    }
    // Names hold the time they were written at.
    files.sort_by(|a, b| a.file_name().cmp(&b.file_name()).then_with(|| a.cmp(b)));
    let mut scores: BTreeMap<(String, String), Score> = BTreeMap::new();
    for file in files {
        for score in read_file(&file)? {
            scores.insert((score.task.clone(), score.metric.clone()), score);
        }
    }
    Ok(scores.into_values().collect())
}

/// The newest result file of each directory.
fn results(dir: &Path, depth: usize, found: &mut BTreeMap<PathBuf, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).at("read", dir)? {
        let entry = entry.at("read", dir)?;
        let (path, kind) = (entry.path(), entry.file_type().at("read", dir)?);
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_json = path.extension().is_some_and(|extension| extension == "json");
        if kind.is_dir() && depth > 1 {
            results(&path, depth - 1, found)?;
        } else if kind.is_file() && name.starts_with("results") && is_json {
            let newest = found.entry(dir.to_owned()).or_insert_with(|| path.clone());
            if *newest < path {
                *newest = path;
            }
        }
    }
    Ok(())
}

fn read_file(file: &Path) -> Result<Vec<Score>> {
    if fs::metadata(file).at("read", file)?.len() > LARGEST {
        return Err(refused(file, "it is too large for a result file"));
    }
    let text = fs::read_to_string(file).at("read", file)?;
    let value: Value = serde_json::from_str(&text)
        .map_err(|e| Error::Json { path: file.to_owned(), message: e.to_string() })?;
    let results = value.get("results").and_then(Value::as_object);
    let results = results.ok_or_else(|| refused(file, "it has no `results`"))?;
    let shots = value.get("n-shot").and_then(Value::as_object);
    // A group's mean stands under `groups` too, and is the same there.
    let groups = value.get("groups").and_then(Value::as_object);
    let mut scores = Vec::new();
    for (task, metrics) in results.iter().chain(groups.into_iter().flatten()) {
        let Some(metrics) = metrics.as_object() else {
            continue;
        };
        let shots = shots.and_then(|shots| shots.get(task)?.as_u64());
        scores.extend(of_task(task, metrics, shots));
    }
    if scores.is_empty() {
        return Err(refused(file, "its `results` hold no score"));
    }
    Ok(scores)
}

/// `"acc,none": 0.61, "acc_stderr,none": 0.01`: the metric, the filter it was computed behind, the value. Version 0.3
/// wrote `"acc": 0.61`. Other filters than `none` are part of the metric's name.
fn of_task(task: &str, metrics: &Map<String, Value>, shots: Option<u64>) -> Vec<Score> {
    let mut scores = Vec::new();
    for (key, value) in metrics {
        let (metric, filter) = key.split_once(',').unwrap_or((key, "none"));
        let Some(value) = number(value) else {
            continue;
        };
        let is_figure = !matches!(metric, "alias" | "samples" | "sample_len" | "sample_count");
        if !is_figure || metric.ends_with("_stderr") {
            continue;
        }
        let error = [format!("{metric}_stderr,{filter}"), format!("{metric}_stderr")]
            .iter()
            .find_map(|key| number(metrics.get(key)?));
        let metric = match filter {
            "none" => metric.to_owned(),
            filter => format!("{metric}, {filter}"),
        };
        scores.push(Score { task: task.to_owned(), metric, value, error, shots });
    }
    scores
}

/// A finite number; `"N/A"` is what the harness writes for an error that it cannot tell.
fn number(value: &Value) -> Option<f64> {
    value.as_f64().filter(|number| number.is_finite())
}

fn refused(path: &Path, why: &str) -> Error {
    Error::Unsupported {
        what: format!("benchmark results in `{}`", path.display()),
        reason: why.to_owned(),
        hint: "look at the harness's output: it may have failed before it wrote results".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evaluate(tasks: Vec<Task>) -> Evaluate {
        Evaluate { tasks, ..Evaluate::default() }
    }

    fn shots(name: &str, shots: u32) -> Task {
        Task::Shots { name: name.into(), shots }
    }

    #[test]
    fn tasks_share_a_call_where_their_shots_agree() {
        let tasks = vec![shots("mmlu", 5), Task::Name("kobest".into()), shots("arc_easy", 5)];
        let calls =
            command(&evaluate(tasks), Path::new("work/align"), Path::new("eval/align"), 42, false);
        assert_eq!(calls.len(), 2);
        assert_eq!(
            calls[1].join(" "),
            "lm-eval run --model hf --model_args pretrained=work/align,dtype=bfloat16 --tasks mmlu,arc_easy \
             --batch_size auto --seed 42 --output_path eval/align/5-shot --num_fewshot 5"
        );
        assert!(calls[0].ends_with(&["--output_path".into(), "eval/align/default".into()]));
    }

    #[test]
    fn chats_and_own_commands() {
        let mut settings = evaluate(vec![shots("mmlu", 0)]);
        let (model, out) = (Path::new("{out}/m"), Path::new("o"));
        let call = &command(&settings, model, out, 1, true)[0];
        assert!(call.ends_with(&["--apply_chat_template".into(), "--fewshot_as_multiturn".into()]));
        settings.command =
            ["run", "{model}", "{tasks}:{shots}", "{out}{", "{x}{seed}"].map(str::to_owned).into();
        // A value that looks like a placeholder stays as it is.
        let call = &command(&settings, model, out, 1, true)[0];
        assert_eq!(*call, ["run", "{out}/m", "mmlu:0", "o/0-shot{", "{x}1"]);
        assert!(command(&evaluate(Vec::new()), model, out, 1, true).is_empty());
    }

    fn write(dir: &Path, name: &str, text: &str) {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn the_newest_results_of_each_call_are_read() {
        let dir = tempfile::tempdir().unwrap();
        write(
            dir.path(),
            "5-shot/m__x/results_2026-01-02T00-00-00.1.json",
            r#"{"results": {
                "mmlu": {"acc,none": 0.4521, "acc_stderr,none": 0.0041, "alias": "mmlu"},
                "gsm8k": {"exact_match,strict-match": 0.1, "exact_match_stderr,strict-match": 0.01,
                          "exact_match,flexible-extract": 0.2, "exact_match_stderr,flexible-extract": "N/A"}},
              "groups": {"mmlu": {"acc,none": 0.4521, "acc_stderr,none": 0.0041, "alias": "mmlu"}},
              "n-shot": {"mmlu": 5, "gsm8k": 8}, "config": {"model": "hf"}}"#,
        );
        write(
            dir.path(),
            "5-shot/m__x/results_2026-01-01T00-00-00.1.json",
            r#"{"results": {"mmlu": {"acc,none": 0.1}}}"#,
        );
        write(
            dir.path(),
            "default/results_2025-01-01.json",
            r#"{"results": {"kobest": {"f1,none": 0.6, "f1_stderr,none": "N/A", "acc,none": NaN_}}}"#
                .replace("NaN_", "null")
                .as_str(),
        );
        write(dir.path(), "default/samples_kobest.jsonl", "x");
        let scores = read(dir.path()).unwrap();
        let shown: Vec<String> = scores
            .iter()
            .map(|s| format!("{} {} {} {:?} {:?}", s.task, s.metric, s.value, s.error, s.shots))
            .collect();
        assert_eq!(
            shown,
            [
                "gsm8k exact_match, flexible-extract 0.2 None Some(8)",
                "gsm8k exact_match, strict-match 0.1 Some(0.01) Some(8)",
                "kobest f1 0.6 None None",
                "mmlu acc 0.4521 Some(0.0041) Some(5)",
            ]
        );
    }

    #[test]
    fn the_form_of_version_0_3_is_read() {
        let dir = tempfile::tempdir().unwrap();
        write(
            dir.path(),
            "results.json",
            r#"{"results": {"piqa": {"acc": 0.7, "acc_stderr": 0.02}}, "versions": {"piqa": 0}}"#,
        );
        let scores = read(dir.path()).unwrap();
        assert_eq!((scores.len(), scores[0].error), (1, Some(0.02)));
    }

    #[test]
    fn missing_and_malformed_results_say_so() {
        let dir = tempfile::tempdir().unwrap();
        let told = |dir: &Path| read(dir).unwrap_err().to_string();
        assert!(told(dir.path()).contains("no `results_*.json`"));
        assert!(told(&dir.path().join("none")).contains("could not read"));
        for (text, expected) in [
            ("{\"results\": {\"mmlu\"", "is not valid JSON"),
            ("[]", "it has no `results`"),
            (r#"{"results": {"mmlu": {"alias": "x"}}}"#, "hold no score"),
        ] {
            write(dir.path(), "results_1.json", text);
            assert!(told(dir.path()).contains(expected), "{text}: {}", told(dir.path()));
        }
    }
}
