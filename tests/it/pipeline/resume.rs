//! Runs that are stopped, killed, changed and damaged: the models are those of a run that nobody disturbed, and only what
//! must be done again is.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::project::{MODELS, PATIENCE, Project, demo};
use crate::support::process::{Running, elo};
use crate::support::random::Random;
use crate::support::tree::{Tree, assert_same, differences, tree, weights_and_config};

/// What an undisturbed run gives, and how long it takes.
fn undisturbed() -> &'static (Tree, Duration) {
    static RUN: OnceLock<(Tree, Duration)> = OnceLock::new();
    RUN.get_or_init(|| {
        let project = demo();
        let outcome = project.run("");
        outcome.expect(0, &["report:"]);
        (project.models(), outcome.elapsed)
    })
}

/// A project that is done.
fn finished() -> Project {
    let project = demo();
    project.run("").expect(0, &["report:"]);
    assert_same(&project.models(), &undisturbed().0, "two undisturbed runs");
    project
}

/// Stages and how often each was started.
fn attempts(project: &Project) -> BTreeMap<&'static str, u64> {
    let count = |dir| project.record(dir)["attempts"].as_u64().unwrap();
    MODELS.into_iter().map(|dir| (dir, count(dir))).collect()
}

/// What `--dry-run` would do, by stage.
fn intents(project: &Project, words: &str) -> BTreeMap<String, (String, String)> {
    let before = project.everything();
    let outcome = project.elo(&format!("--json run --dry-run {words}")).run();
    outcome.expect(0, &[]);
    assert_same(&project.everything(), &before, "`--dry-run` wrote something");
    let said = outcome.json();
    let stages = said["stages"].as_array().unwrap().iter();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    stages
        .map(|s| {
            let why = if s["why"].is_string() { &s["why"] } else { &s["after"] };
            (text(&s["stage"]), (text(&s["decision"]), text(why)))
        })
        .collect()
}

fn flip_a_byte(file: &Path, from_end: usize) {
    let mut bytes = fs::read(file).unwrap();
    let at = bytes.len() - from_end;
    bytes[at] ^= 1;
    fs::write(file, bytes).unwrap();
}

fn weights(model: &Path) -> std::path::PathBuf {
    let mut files: Vec<_> = weights_and_config(model).into_keys().collect();
    files.retain(|file| file.extension().is_some_and(|e| e == "safetensors"));
    model.join(files.remove(0))
}

fn resumed_at(project: &Project, dir: &str) -> Vec<u64> {
    let text = fs::read_to_string(project.path(&format!("work/{dir}/events.jsonl"))).unwrap();
    let events = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    events.filter_map(|event| event["resumed_at"].as_u64()).collect()
}

/// Waits until a stage has made this step.
fn step_of(project: &Project, running: &mut Running, dir: &str, step: u64) -> bool {
    let wanted = format!("\"step\":{step}");
    project.wait_for(running, |p| {
        let events = fs::read_to_string(p.path(&format!("work/{dir}/events.jsonl")));
        events.is_ok_and(|events| events.contains(&wanted))
    })
}

#[test]
fn a_run_that_is_killed_at_any_time_ends_with_the_same_bytes() {
    let (models, took) = undisturbed();
    let mut random = Random::new(0xe10);
    let mut kills = BTreeMap::new();
    for round in 0..3 {
        let project = demo();
        for _ in 0..200 {
            let mut running = project.start();
            let wait = random.below(u64::try_from(took.as_micros()).unwrap() * 7 / 10);
            thread::sleep(Duration::from_micros(wait));
            let over = running.is_over();
            running.kill();
            let outcome = running.finish(PATIENCE);
            if over {
                outcome.expect(0, &["report:"]);
                break;
            }
            let at = MODELS.into_iter().rev().find(|dir| !project.state(dir).is_empty());
            *kills.entry(at.unwrap_or("data")).or_insert(0) += 1;
        }
        project.run("").expect(0, &["report:"]);
        assert_same(&project.models(), models, &format!("round {round}"));
        project.assert_no_process_left(Duration::from_secs(10));
    }
    println!("kills by stage: {kills:?}");
    assert!(kills.values().sum::<u64>() > 4, "{kills:?}");
}

/// In every stage, as soon as its record says that it is at work.
#[test]
fn a_kill_in_each_stage_is_survived() {
    let (models, _) = undisturbed();
    let project = demo();
    for dir in MODELS {
        let mut running = project.start();
        let caught = project.wait_for(&mut running, |p| p.state(dir) == "running");
        running.kill();
        let outcome = running.finish(PATIENCE);
        if !caught {
            // The shortest stages may be over between two looks.
            outcome.expect(0, &[]);
        }
        project.elo("status").run().expect(0, &["extract"]);
        project.assert_no_process_left(Duration::from_secs(10));
    }
    project.run("").expect(0, &["report:"]);
    assert_same(&project.models(), models, "killed in every stage");
}

#[test]
fn an_interrupted_run_keeps_its_checkpoint_and_goes_on() {
    for (signal, dir, stage) in
        [(Signal::INT, "02-pretrain", "pretrain"), (Signal::TERM, "04-align", "align")]
    {
        let mut project = demo();
        // Long enough to be caught in the middle.
        project.change("max_steps: 6, sequence_length: 64, batch: 2, learning_rate: 2.0e-3", SLOW);
        project.change("max_steps: 6, sequence_length: 64, batch: 2, learning_rate: 5.0e-4", SLOW);
        let whole = demo();
        whole.write("elo.yaml", &project.yaml);
        whole.run("").expect(0, &["report:"]);

        let mut running = project.start();
        assert!(step_of(&project, &mut running, dir, 2), "{dir} was over too soon");
        kill_process(Pid::from_raw(running.pid().cast_signed()).unwrap(), signal).unwrap();
        let outcome = running.finish(PATIENCE);
        outcome.expect(130, &["stopping", "interrupted", "run the same command again"]);
        project.assert_no_process_left(Duration::from_secs(1));
        assert_eq!(project.state(dir), "interrupted");
        let work = tree(&project.path(&format!("work/{dir}/work")));
        let is_checkpoint = |file: &Path| file.to_string_lossy().starts_with("checkpoint-");
        assert!(work.keys().any(|file| is_checkpoint(file)), "{work:?}");
        project.elo("status").run().expect(0, &[stage, "interrupted"]);
        let (decision, why) = intents(&project, "")[stage].clone();
        assert_eq!(decision, "resume");
        assert!(why.contains("it was interrupted at step"), "{why}");
        project.run("").expect(0, &["report:"]);
        let starts = resumed_at(&project, dir);
        assert_eq!(starts.len(), 2, "{starts:?}");
        assert!(starts[0] == 0 && starts[1] >= 2, "{starts:?}");
        assert_same(&project.models(), &whole.models(), "interrupted against undisturbed");
    }
}

const SLOW: &str =
    "max_steps: 30, epochs: 20, sequence_length: 256, batch: 4, learning_rate: 1.0e-3";

#[test]
fn one_run_at_a_time() {
    let mut project = demo();
    project.change("max_steps: 6, sequence_length: 64, batch: 2, learning_rate: 2.0e-3", SLOW);
    let mut first = project.start();
    assert!(step_of(&project, &mut first, "02-pretrain", 1));
    let second = project.run("");
    second.expect(5, &[&format!("process {}", first.pid()), "wait for it"]);
    // Looking is allowed.
    project.elo("status").run().expect(0, &["pretrain"]);
    project.elo("run --dry-run").run().expect(0, &["pretrain"]);
    assert!(!first.is_over(), "the second run disturbed the first");
    first.interrupt();
    first.finish(PATIENCE).expect(130, &[]);
}

#[test]
fn a_changed_setting_is_named_and_only_what_depends_on_it_is_done_again() {
    let mut project = finished();
    let before = project.models();
    project.change("learning_rate: 2.0e-3", "learning_rate: 1.0e-3");
    let plan = intents(&project, "");
    assert_eq!(plan["extract"].0, "up-to-date");
    assert_eq!(plan["pretrain"].0, "run");
    assert!(plan["pretrain"].1.contains("train.learning_rate: 0.002 -> 0.001"), "{plan:?}");
    for later in ["inject", "align", "evaluate"] {
        assert_eq!(plan[later].0, "after", "{plan:?}");
    }
    project.elo("run -n").run().expect(
        0,
        &["would run: train.learning_rate: 0.002 -> 0.001", "extract   up to date", "depends on"],
    );
    project.run("").expect(0, &["the earlier result is kept", "report:"]);
    let changed = project.models();
    for dir in ["02-pretrain", "03-inject", "04-align"] {
        let of = |models: &Tree| -> Tree {
            models
                .iter()
                .filter(|(p, _)| p.starts_with(dir))
                .map(|(p, d)| (p.clone(), d.clone()))
                .collect()
        };
        assert!(!differences(&of(&before), &of(&changed)).is_empty(), "{dir} was not done again");
    }
    let kept: Vec<_> = fs::read_dir(project.path("work/.earlier")).unwrap().flatten().collect();
    assert_eq!(kept.len(), 4, "{kept:?}");

    // Back: the earlier results return, nothing is trained.
    let started = Instant::now();
    project.change("learning_rate: 1.0e-3", "learning_rate: 2.0e-3");
    let outcome = project.run("");
    outcome.expect(0, &["gave earlier is back", "report:"]);
    assert!(
        !outcome.text().contains("loss "),
        "it was trained again in {:?}: {outcome}",
        started.elapsed()
    );
    assert_same(&project.models(), &before, "set back");
    assert_eq!(attempts(&project).into_values().collect::<Vec<_>>(), [1, 1, 1, 1]);
    assert!(intents(&project, "").values().all(|(decision, _)| decision == "up-to-date"));
}

#[test]
fn times_of_files_do_not_count_but_their_bytes_do() {
    let project = finished();
    let before = attempts(&project);
    let data = project.path("data/ja.txt");
    let touch = |path: &Path| {
        let file = fs::File::options().write(true).open(path).unwrap();
        file.set_modified(SystemTime::now() + Duration::from_secs(5)).unwrap();
    };
    touch(&data);
    touch(&project.path("data/en.txt"));
    touch(&weights(&project.model("02-pretrain")));
    let outcome = project.run("");
    outcome.expect(0, &["report:"]);
    assert_eq!(attempts(&project), before, "touched files: {outcome}");
    assert!(!project.path("work/.earlier").exists());

    let text = fs::read_to_string(&data).unwrap();
    let at = text.char_indices().nth(text.chars().count() / 2).unwrap().0;
    let changed = format!("{}。{}", &text[..at], &text[at..]);
    fs::write(&data, changed).unwrap();
    let plan = intents(&project, "");
    assert_eq!(plan["extract"].0, "up-to-date", "{plan:?}");
    assert_eq!(plan["pretrain"].0, "run", "{plan:?}");
    assert!(plan["pretrain"].1.contains("data"), "{plan:?}");
    project.run("").expect(0, &["report:"]);
    assert_eq!(project.record("01-extract")["attempts"], 1);
}

#[test]
fn a_deleted_model_is_made_again_and_nothing_else() {
    let project = finished();
    let before = project.models();
    for dir in ["03-inject", "01-extract"] {
        fs::remove_dir_all(project.model(dir)).unwrap();
        let plan = intents(&project, "");
        let stage = &dir[3..];
        assert_eq!(plan[stage].0, "run", "{plan:?}");
        assert!(plan[stage].1.contains("gone"), "{plan:?}");
        project.run("").expect(0, &["report:"]);
        assert_same(&project.models(), &before, dir);
        assert_eq!(project.record(dir)["attempts"], 2);
        for other in ["02-pretrain", "04-align"] {
            assert_eq!(project.record(other)["attempts"], 1, "{other} was done again after {dir}");
        }
    }
}

#[test]
fn damage_is_noticed_and_repaired() {
    let project = finished();
    let before = project.models();
    for dir in MODELS {
        flip_a_byte(&weights(&project.model(dir)), 9);
        assert_ne!(differences(&project.models(), &before), Vec::<String>::new());
        let plan = intents(&project, "");
        assert_eq!(plan[&dir[3..]].0, "run", "{dir}: {plan:?}");
        assert!(plan[&dir[3..]].1.contains("gone or was changed"), "{dir}: {plan:?}");
        project.run("").expect(0, &["report:"]);
        assert_same(&project.models(), &before, &format!("{dir} was damaged"));
    }
}

#[test]
fn a_record_or_a_result_that_was_cut_is_no_dead_end() {
    let project = finished();
    let cut = |file: &str| {
        let text = fs::read(project.path(file)).unwrap();
        fs::write(project.path(file), &text[..text.len() / 2]).unwrap();
        text
    };
    cut("work/.known.json");
    project.run("").expect(0, &["report:"]);
    for file in ["work/elo.lock.json", "work/02-pretrain/stage.json"] {
        let whole = cut(file);
        project.run("").expect(3, &[file, "not valid JSON"]);
        fs::write(project.path(file), whole).unwrap();
        project.run("").expect(0, &["report:"]);
    }
    assert_eq!(attempts(&project).into_values().collect::<Vec<_>>(), [1, 1, 1, 1]);
    assert_same(&project.models(), &undisturbed().0, "after cut records");
}

/// Killed after the backend's model was in place and before its result told of it.
#[test]
fn a_model_without_its_result_is_no_dead_end() {
    let project = finished();
    for dir in ["02-pretrain", "04-align"] {
        let stage = project.path(&format!("work/{dir}"));
        fs::rename(stage.join("model"), stage.join("trained")).unwrap();
        fs::remove_file(stage.join("result.json")).unwrap();
        let record = fs::read_to_string(stage.join("stage.json")).unwrap();
        fs::write(stage.join("stage.json"), record.replace("\"done\"", "\"running\"")).unwrap();
        project.run("").expect(0, &["report:"]);
        assert_same(&project.models(), &undisturbed().0, dir);
        assert!(!stage.join("trained").exists());
    }
}

#[test]
fn parts_of_a_run() {
    let project = demo();
    project.run("--from align").expect(2, &["`inject` has not been done", "--until inject"]);
    project.run("--until inject").expect(0, &[]);
    assert!(project.model("03-inject").is_dir());
    assert!(!project.path("work/04-align/model").exists());
    project.run("--from align").expect(0, &["align", "report:"]);
    assert_same(&project.models(), &undisturbed().0, "in two parts");
    let counts = attempts(&project);
    assert!(counts.values().all(|n| *n == 1), "{counts:?}");
    project.run("--until nowhere").expect(2, &["no stage `nowhere`", "extract, pretrain, inject"]);
    project.run("--from align --until extract").expect(2, &["align", "extract"]);
    project.run("--force --from inject --until inject").expect(0, &[]);
    assert_eq!(project.record("03-inject")["attempts"], 1);
    assert_same(&project.models(), &undisturbed().0, "forced");
    assert_eq!(project.record("04-align")["attempts"], 1);
}

#[test]
fn single_stages_and_work_by_hand() {
    let project = demo();
    // The verbs take their arguments from the project, and the run takes their results.
    project.elo("extract --no-sync").run().expect(0, &[]);
    let made = fs::metadata(weights(&project.model("01-extract"))).unwrap().modified().unwrap();
    project.elo("pretrain --no-sync").run().expect(0, &["pretrain"]);
    project.elo("inject --no-sync").run().expect(0, &[]);
    project.elo("align --no-sync").run().expect(0, &["align"]);
    let outcome = project.run("");
    outcome.expect(0, &["report:"]);
    assert_same(&project.models(), &undisturbed().0, "stage by stage");
    assert!(!project.path("work/.earlier").exists(), "set aside instead of adopted: {outcome}");
    let now = fs::metadata(weights(&project.model("01-extract"))).unwrap().modified().unwrap();
    assert_eq!(now, made, "the extract made by hand was made again");
    let counts = attempts(&project);
    assert!(counts.values().all(|n| *n == 1), "{counts:?}");
}

#[test]
fn what_was_made_by_hand_and_damaged_is_not_adopted() {
    let project = demo();
    project.elo("extract --no-sync").run().expect(0, &[]);
    flip_a_byte(&weights(&project.model("01-extract")), 9);
    project.run("").expect(0, &["report:"]);
    assert_same(&project.models(), &undisturbed().0, "a damaged extract");
}

#[test]
fn a_full_disk_is_told_and_survived() {
    let project = demo();
    let run = project.elo("run --no-sync");
    // Blocks of 1 KiB: less than a model of 960 kB, then less than a checkpoint of the alignment.
    for limit in [150, 300, 1500] {
        let outcome = run.clone().after(&format!("ulimit -f {limit}")).run();
        assert!(matches!(outcome.code(), Some(1 | 4)), "{limit}: {outcome}");
        let text = outcome.text().to_lowercase();
        assert!(text.contains("space") || text.contains("too large"), "{limit}: {outcome}");
        assert!(text.contains("hint: "), "{limit}: {outcome}");
        assert!(!outcome.panicked(), "{outcome}");
        project.assert_no_process_left(Duration::from_secs(5));
    }
    project.run("").expect(0, &["report:"]);
    assert_same(&project.models(), &undisturbed().0, "after a full disk");
}

#[test]
fn held_out_perplexity_is_measured_once() {
    let mut project = demo();
    project.change("perplexity: never", "perplexity: always, sequence_length: 64");
    let outcome = project.run("");
    outcome.expect(0, &["ppl", "report:"]);
    assert_same(&project.models(), &undisturbed().0, "measuring changes nothing");
    let record = project.json("work/elo.lock.json");
    let slices = |of: &Value| -> Vec<String> {
        of.as_array().unwrap().iter().map(|m| m["slice"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(slices(&record["baselines"]["base"]), ["en", "ja"]);
    let again = project.run("");
    again.expect(0, &["report:"]);
    assert!(again.elapsed < outcome.elapsed, "{again}");
    let after = project.json("work/elo.lock.json");
    assert_eq!(after["stages"], record["stages"]);
    elo("status").within(&project.root()).run().expect(0, &["base", "ja"]);
}

#[test]
fn benchmark_scores_stand_with_the_models_they_belong_to() {
    let mut project = demo();
    project.write(
        "harness.sh",
        "mkdir -p \"$2/m\"\n\
         case $1 in *04-align*) acc=0.75;; *) acc=0.5;; esac\n\
         echo \"{\\\"results\\\": {\\\"toy\\\": {\\\"acc,none\\\": $acc}}}\" >\"$2/m/results_2026.json\"\n",
    );
    let command = "evaluate: { perplexity: never, tasks: [toy], command: [sh, harness.sh, \"{model}\", \"{out}\"] }";
    project.change("evaluate: { perplexity: never }", command);
    project.run("").expect(0, &["toy", "report:"]);
    let record: Value =
        serde_json::from_slice(&fs::read(project.path("work/elo.lock.json")).unwrap()).unwrap();
    assert_eq!(record["baseline_scores"]["base"][0]["value"], 0.5, "{record}");
    assert_eq!(project.record("04-align")["scores"][0]["value"], 0.75);
    let again = project.run("");
    again.expect(0, &["toy"]);
    assert_eq!(project.record("07-evaluate")["attempts"], 1);
}
