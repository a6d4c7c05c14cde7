//! What users get wrong: said with the file and the line, before hours are spent, and nothing wrong is left behind.

use std::fs;
use std::process::{Command, Stdio};

use serde_json::Value;

use super::project::{MODELS, Project, demo, mischief};
use crate::support::fixture;
use crate::support::process::{PROGRAM, elo};
use crate::support::tree::tree;

/// The run is refused before a stage has begun.
#[track_caller]
fn refused(project: &Project, code: i32, words: &[&str]) {
    let outcome = project.run("");
    outcome.expect(code, words);
    assert!(
        outcome.stderr.starts_with("error: ") || outcome.stderr.contains("\nerror: "),
        "{outcome}"
    );
    for dir in MODELS {
        assert!(!project.path(&format!("work/{dir}")).exists(), "{dir} has begun: {outcome}");
    }
}

/// A copy of a model of the example without some of its files.
fn model_without(project: &Project, model: &str, name: &str, files: &[&str]) {
    let source = fixture("demo").join(model);
    for entry in fs::read_dir(source).unwrap().flatten() {
        let file = entry.file_name().to_string_lossy().into_owned();
        if !files.contains(&&*file) {
            project.write(&format!("{name}/{file}"), fs::read(entry.path()).unwrap());
        }
    }
}

fn base() -> String {
    fixture("demo/base").display().to_string()
}

#[test]
fn data_is_named_by_file_and_line() {
    let mut project = demo();
    project.change("data/ja.txt", "data/jp.txt");
    refused(&project, 3, &["data/jp.txt", "no such file"]);

    project.write("data/jp.txt", "");
    refused(&project, 3, &["data/jp.txt", "no text", "hint: "]);
    project.write("data/jp.txt", "\n \n\t\n");
    refused(&project, 3, &["data/jp.txt", "no text"]);

    project.change("data/jp.txt", "data/jp.jsonl");
    project.write("data/jp.jsonl", "{\"text\": \"one\"}\n{\"text\": \"two\"}\n{\"text\": three}\n");
    refused(&project, 3, &["data/jp.jsonl`, line 3", "not valid JSON"]);
    project.write("data/jp.jsonl", "{\"text\": \"one\"}\n{\"body\": \"two\"}\n");
    refused(&project, 3, &["data/jp.jsonl`, line 2", "text"]);
    project.write("data/jp.jsonl", b"{\"text\": \"one\"}\n{\"text\": \"caf\xe9\"}\n");
    refused(&project, 3, &["data/jp.jsonl`, line 2", "UTF-8"]);
    project.write("data/jp.jsonl", "{\"text\": \"one\"}\n");
    let outcome = project.run("");
    assert_ne!(outcome.code(), Some(101), "{outcome}");
    assert!(!outcome.panicked(), "{outcome}");
}

#[test]
fn models_that_are_not_there_or_not_so() {
    let mut project = demo();
    project.change("layers: first,last", "layers: 1,99");
    refused(&project, 2, &["layer 99 does not exist", "8 layers"]);
    project.change("layers: 1,99", "layers: first,last\ninstruct: nowhere");
    refused(&project, 3, &["`nowhere`", "no such file"]);
    project.change("instruct: nowhere", "# none");
    let model = project.yaml.lines().next().unwrap().to_owned();
    project.change(&model, "model: nobody/nothing");
    // Tests are offline: it could be a model of the Hub.
    refused(&project, 6, &["nobody/nothing", "offline"]);
    project.change("model: nobody/nothing", "# none");
    refused(&project, 3, &["it names no `model`"]);
}

#[test]
fn keys_are_strict_and_suggested() {
    let mut project = demo();
    project.change("align: { max_steps: 6", "align: { max_stepps: 6");
    let line = project.yaml.lines().position(|line| line.contains("max_stepps")).unwrap() + 1;
    let line = format!("line {line}: ");
    refused(
        &project,
        3,
        &["elo.yaml", &line, "`max_stepps` in `align`", "did you mean `max_steps`"],
    );
    project.change("max_stepps: 6", "max_steps: -6");
    refused(&project, 3, &["elo.yaml", &line, "align.max_steps"]);
    project.change("max_steps: -6", "max_steps: 6");
    project.change("perplexity: never", "perplexity: newer");
    refused(&project, 3, &["elo.yaml", "perplexity", "never"]);
    project.write("elo.yaml", "model: [\n");
    refused(&project, 3, &["elo.yaml", "line "]);
    project.write("elo.yaml", b"model: \xff\n");
    refused(&project, 3, &["elo.yaml", "not UTF-8"]);
}

#[test]
fn stages_and_backends_by_wrong_names() {
    let project = demo();
    for words in ["--from pretrian", "--until sft", "--from control/align-only/align"] {
        project
            .run(words)
            .expect(2, &["no stage", "its stages are extract, pretrain, inject, align"]);
    }
    project.elo("render --stage sfft").run().expect(2, &["hint: ", "pretrain"]);
    project.run("--backend bultin").expect(2, &["no backend `bultin`", "did you mean `builtin`"]);
    project.elo("backend describe bultin").run().expect(2, &["did you mean `builtin`"]);
    project.elo("sft").run().expect(2, &["no stage `sft`"]);
    assert!(!project.path("work/01-extract").exists());
}

#[test]
fn a_model_without_tokenizer_is_refused_first() {
    let mut project = demo();
    model_without(&project, "base", "bare", &["tokenizer.json"]);
    project.change(&base(), "bare");
    refused(&project, 3, &["`pretrain`", "tokenizer.json", "hint: "]);
}

#[test]
fn chats_need_a_template_before_hours_are_spent() {
    let chats = fixture("demo/data/chats-en.jsonl");
    let sources = format!(
        "  sft: {{ sources: [{{ path: {}, language: en }}] }}\n  held_out",
        chats.display()
    );
    let mut project = demo();
    project.change("  held_out", &sources);
    refused(&project, 3, &["`sft`", "no chat template", "instruct"]);

    model_without(&project, "instruct", "mute", &["tokenizer_config.json"]);
    project.write("mute/tokenizer_config.json", "{\"eos_token\": \"<|im_end|>\"}");
    project.change("layers: first,last", "layers: first,last\ninstruct: mute");
    refused(&project, 3, &["`sft`", "mute", "no chat template"]);

    project.change("sft: {", "sft: { enabled: false }\n# {");
    let outcome = project.run("");
    assert!(outcome.code() == Some(3) && outcome.text().contains("elo.yaml"), "{outcome}");
}

#[test]
fn what_the_backend_cannot_train_is_refused_first() {
    for (family, layers) in [("gemma2", "first,last"), ("gpt2", "first,last"), ("qwen3moe", "1")] {
        let mut project = demo();
        let model = fixture("golden/models").join(family);
        project.change(&base(), &model.display().to_string());
        project.change("layers: first,last", &format!("layers: {layers}"));
        refused(&project, 3, &["built-in backend", "llama, mistral, qwen2, qwen3", "trl"]);
    }
    let mut project = demo();
    project.change("align: { max_steps", "align: { method: lora, max_steps");
    refused(&project, 3, &["method: lora", "built-in backend"]);
}

#[test]
fn a_backend_is_asked_in_and_outside_of_a_project() {
    let project = mischief("honest", "");
    project
        .elo("backend list")
        .run()
        .expect(0, &["builtin", "built in", "usable", "axolotl", "trl"]);
    project.elo("backend check").run().expect(0, &["mischief 1.0 can be used"]);
    project.elo("backend check builtin").run().expect(0, &["builtin", "can be used"]);
    let told = project.elo("backend describe").run();
    assert_eq!(told.expect(0, &[]).json()["name"], "mischief");
    let rendered = project.elo("render --stage pretrain").run();
    rendered.expect(0, &["02-pretrain/spec.json"]);
    let spec = project.path("work/02-pretrain/spec.json");
    project.elo("backend check --spec").arg(&spec).run().expect(0, &["can be used"]);
    project.write("cut.json", "{\"protocol\": 1,");
    project.elo("backend check --spec cut.json").run().expect(3, &["cut.json", "not valid JSON"]);

    let outside = tempfile::TempDir::new().unwrap();
    let there = |words: &str| elo(words).within(outside.path()).run();
    there("backend list").expect(0, &["builtin", "usable"]);
    there("backend check builtin").expect(0, &["can be used"]);
    assert_eq!(there("backend describe builtin").expect(0, &[]).json()["name"], "builtin");
    for words in ["backend check", "run", "status", "report", "render", "pretrain", "align"] {
        there(words).expect(2, &["elo.yaml", "hint: "]);
    }
    assert!(tree(outside.path()).is_empty());
}

#[test]
fn rendering_writes_specs_and_starts_nothing() {
    let project = demo();
    let printed = project.elo("render --print").run();
    printed.expect(0, &["02-pretrain/spec.json", "04-align/spec.json", "\"learning_rate\": 0.002"]);
    assert!(tree(&project.path("work")).is_empty(), "--print wrote something");
    project.elo("render").run().expect(0, &["02-pretrain/spec.json", "04-align/spec.json"]);
    let written: Vec<_> = tree(&project.path("work")).into_keys().collect();
    let wanted = ["02-pretrain/spec.json", "04-align/spec.json"].map(std::path::PathBuf::from);
    assert_eq!(written, wanted);
    // A run takes no notice of what was rendered.
    project.run("").expect(0, &["report:"]);
    for name in ["axolotl", "trl", "llama-factory"] {
        let printed = project.elo("render --print --stage align --backend").arg(name).run();
        printed.expect(0, &["04-align/spec.json", "learning_rate"]);
    }
}

#[test]
fn json_answers_parse() {
    let mut project = demo();
    let dry = project.elo("--json run --dry-run").run();
    assert_eq!(dry.expect(0, &[]).json()["stages"][0]["stage"], "extract");
    let run = project.elo("--json run --no-sync").run();
    run.expect(0, &[]);
    let record: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(record["stages"][4]["state"], "done");
    for line in run.stderr.lines() {
        let parsed: Result<Value, _> = serde_json::from_str(line);
        assert!(parsed.is_ok(), "stderr of --json: {line}");
    }
    for words in ["status", "backend list", "backend describe", "backend check", "render"] {
        let outcome = project.elo("--json").args(words.split(' ')).run();
        outcome.expect(0, &[]);
        let parsed: Result<Value, _> = serde_json::from_str(&outcome.stdout);
        assert!(parsed.is_ok(), "{words}: {outcome}");
    }
    project.change("layers: first,last", "layers: 1,99");
    let outcome = project.elo("--json run").run();
    outcome.expect(2, &[]);
    let last = outcome.stderr.lines().last().unwrap();
    let error: Value = serde_json::from_str(last).unwrap();
    assert_eq!(error["error"]["code"], 2, "{last}");
}

#[test]
fn no_escape_codes_where_none_are_wanted() {
    let project = demo();
    let outcome = project.run("");
    let status = project.elo("status").run();
    for text in [outcome.expect(0, &[]).text(), status.expect(0, &[]).text()] {
        assert!(!text.contains('\u{1b}'), "{text}");
    }
    let coloured = |no_color: bool| {
        let mut command = Command::new(PROGRAM);
        command.args(["status", "--color", "always"]).current_dir(project.root());
        if no_color {
            command.env("NO_COLOR", "1");
        } else {
            command.env_remove("NO_COLOR");
        }
        let output = command.stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    };
    // The flag is nearer than the environment.
    assert_eq!(coloured(false), coloured(true));
}
