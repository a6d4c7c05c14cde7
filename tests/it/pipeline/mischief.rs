//! Backends that lie, break, hang and shout: what the driver believes, what it says, and that the same command finishes
//! once the backend behaves.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use super::project::{PATIENCE, Project, mischief};
use crate::support::process::{Outcome, elo};
use crate::support::tree::{Tree, assert_same, tree};

/// What a backend that behaves gives.
fn honest() -> &'static Tree {
    static MODELS: OnceLock<Tree> = OnceLock::new();
    MODELS.get_or_init(|| {
        let project = mischief("honest", "");
        project.run("").expect(0, &["[5/5]", "done", "report:"]);
        for dir in ["01-extract", "02-pretrain", "03-inject", "04-align", "07-evaluate"] {
            assert_eq!(project.state(dir), "done", "{dir}");
        }
        assert!(project.path("work/report.html").is_file());
        project.models()
    })
}

fn notes(project: &Project) -> Vec<String> {
    let text = fs::read_to_string(project.notes().join("notes")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

fn started(project: &Project, stage: &str) -> usize {
    notes(project).iter().filter(|line| **line == format!("run {stage}")).count()
}

/// The stage failed, nothing of it was taken over, and no later stage has begun.
#[track_caller]
fn assert_nothing_taken(project: &Project, outcome: &Outcome) {
    assert!(!project.model("02-pretrain").exists(), "a model was taken over: {outcome}");
    for later in ["03-inject", "04-align", "07-evaluate"] {
        assert!(!project.path("work").join(later).exists(), "{later} has begun: {outcome}");
    }
    assert_eq!(project.state("02-pretrain"), "failed", "{outcome}");
    assert_eq!(started(project, "align"), 0, "{outcome}");
}

/// A backend fails in this way, is mended, and the same command finishes with what an honest one gives.
#[track_caller]
fn fails_then_finishes(mode: &str, code: i32, words: &[&str]) -> Outcome {
    let mut project = mischief(mode, "");
    let outcome = project.run("");
    outcome.expect(code, words);
    assert!(outcome.stderr.contains("error: "), "{outcome}");
    assert_nothing_taken(&project, &outcome);
    let before = started(&project, "pretrain");
    project.change(&format!("MISCHIEF: {mode},"), "MISCHIEF: honest,");
    project.run("").expect(0, &["report:"]);
    assert_eq!(started(&project, "pretrain"), before + 1, "`{mode}` was believed the second time");
    assert_same(&project.models(), honest(), mode);
    assert!(!project.path("work/02-pretrain/trained").exists(), "the backend's copy stayed");
    assert!(!project.path("work/02-pretrain/candidate").exists(), "a refused candidate stayed");
    project.run("").expect(0, &[]);
    assert_eq!(started(&project, "pretrain"), before + 1, "it was up to date");
    outcome
}

/// A backend that does it so is accepted, and the models are those of an honest one.
#[track_caller]
fn is_accepted(mode: &str) -> Project {
    let project = mischief(mode, "");
    project.run("").expect(0, &["report:"]);
    assert_same(&project.models(), honest(), mode);
    project
}

#[test]
fn exit_status_0_is_not_success() {
    fails_then_finishes(
        "no-result",
        1,
        &[
            "in `pretrain`",
            "exit status 0 and no result",
            "Training finished!",
            "02-pretrain/log.txt",
        ],
    );
    fails_then_finishes("few-steps", 1, &["exit status 0 after step 2 of 4"]);
    fails_then_finishes("no-model", 1, &["says complete", "trained", "not there"]);
    fails_then_finishes("half-result", 1, &["result cannot be read", "not valid JSON"]);
}

#[test]
fn complete_with_another_status_is_no_success_now_or_later() {
    let mut project = mischief("complete-rc1", "");
    for attempt in 1..3 {
        let outcome = project.run("");
        outcome.expect(1, &["in `pretrain`", "exit status 1"]);
        assert_nothing_taken(&project, &outcome);
        assert_eq!(started(&project, "pretrain"), attempt);
    }
    project.change("MISCHIEF: complete-rc1,", "MISCHIEF: honest,");
    project.run("").expect(0, &["report:"]);
    assert_same(&project.models(), honest(), "complete-rc1");
}

#[test]
fn frozen_tensors_and_shapes_are_checked() {
    fails_then_finishes(
        "frozen",
        3,
        &[
            "not to be trusted",
            "frozen tensors are unchanged",
            "changed, `",
            "nothing was taken over",
        ],
    );
    fails_then_finishes("unchanged", 3, &["not to be trusted", "0 of 18 tensors changed"]);
    fails_then_finishes(
        "resized",
        3,
        &["not to be trusted", "[256, 64]", "[264, 64]", "vocab_size"],
    );
    fails_then_finishes(
        "missing",
        3,
        &["not to be trusted", "9 are missing", "`num_hidden_layers` was 2, is 1"],
    );
}

#[test]
fn damaged_values_and_files_are_refused() {
    fails_then_finishes("nonfinite", 3, &["every value is finite", "NaN or infinite"]);
    fails_then_finishes("truncated", 3, &["trained/model", "truncated"]);
}

#[test]
fn a_refused_model_is_refused_again_while_the_backend_makes_it() {
    let project = mischief("frozen", "");
    for _ in 0..2 {
        let outcome = project.run("");
        outcome.expect(3, &["frozen tensors are unchanged"]);
        assert_nothing_taken(&project, &outcome);
    }
}

#[test]
fn trust_is_said_and_written_down() {
    let project = mischief("frozen", "");
    project.run("--trust-backend").expect(0, &["report:"]);
    let notes = project.record("02-pretrain")["notes"].to_string();
    assert!(notes.contains("--trust-backend"), "{notes}");
    // Names and shapes are checked all the same.
    let project = mischief("resized", "");
    project.run("--trust-backend").expect(3, &["not to be trusted", "[264, 64]"]);
}

#[test]
fn dtypes_and_shards_are_the_inputs() {
    is_accepted("f32");
    is_accepted("sharded");
}

#[test]
fn results_elsewhere_are_copied() {
    let project = is_accepted("outside");
    let elsewhere = project.notes().join("elsewhere");
    let before = tree(&elsewhere);
    project.run("").expect(0, &[]);
    assert_same(&tree(&elsewhere), &before, "a model outside of the project");
    is_accepted("relative");
}

#[test]
fn rubbish_in_the_events_is_passed_over() {
    let project = is_accepted("noise");
    assert_eq!(project.record("02-pretrain")["steps"], 4);
    is_accepted("no-events");
}

#[test]
fn a_log_of_any_bytes_is_shown_without_harm() {
    let outcome = fails_then_finishes("latin", 1, &["exit status 3", "Erreur: m"]);
    assert!(!outcome.text().contains('\u{1b}'), "escape codes reach the terminal: {outcome}");
    fails_then_finishes("told", 1, &["exit status 3: CUDA out of memory"]);
}

#[test]
fn a_flood_of_output_stays_on_disk() {
    let project = mischief("flood", "");
    let mut running = project.start();
    let status = format!("/proc/{}/status", running.pid());
    let mut peak = 0;
    project.wait_for(&mut running, |_| {
        let text = fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
        let kib = line.trim().trim_end_matches(" kB").parse().unwrap_or(0_u64);
        peak = peak.max(kib);
        false
    });
    let outcome = running.finish(PATIENCE);
    outcome.expect(1, &["exit status 3", "last words 100", "last words 81"]);
    assert!(!outcome.text().contains("last words 80\n"), "{outcome}");
    assert!(outcome.text().len() < 10_000, "{outcome}");
    assert!(peak > 0 && peak < 100 << 10, "the driver took {peak} KiB");
    let log = fs::metadata(project.path("work/02-pretrain/log.txt")).unwrap().len();
    assert!(log > 100_000_000, "{log}");
}

#[test]
fn refusals_of_a_backend_are_not_retried() {
    for (mode, words) in [
        ("exit-64", ["refuses its configuration", "as it was told"]),
        ("exit-65", ["refuses the data", "as it was told"]),
        ("exit-69", ["dependency or a device is missing", "backend check"]),
    ] {
        let project = mischief(mode, "  retries: 3");
        let outcome = project.run("");
        outcome.expect(1, &words);
        assert_nothing_taken(&project, &outcome);
        assert_eq!(started(&project, "pretrain"), 1, "{mode} was retried");
    }
    fails_then_finishes("exit-64", 1, &["exit status 64"]);
    let outcome = mischief("check-refuses", "").run("");
    outcome.expect(3, &["`check` failed", "sequence_length must be a multiple of 8"]);
}

#[test]
fn an_interrupted_backend_goes_on_as_often_as_it_may() {
    let project = mischief("later", "  retries: 1");
    project.run("").expect(0, &["interrupted", "report:"]);
    assert_eq!(notes(&project)[..3], ["run pretrain", "run pretrain", "resumed at 2"]);
    assert_same(&project.models(), honest(), "resumed by a retry");

    let project = mischief("later", "");
    project.run("").expect(130, &["interrupted", "run the same command again"]);
    assert_eq!(project.state("02-pretrain"), "interrupted");
    project.elo("status").run().expect(0, &["interrupted"]);
    project.run("").expect(0, &["report:"]);
    assert_same(&project.models(), honest(), "resumed by hand");
}

#[test]
fn signals_are_told_from_exit_statuses() {
    fails_then_finishes("killed", 1, &["killed (signal 9)", "memory"]);
    fails_then_finishes("crashed", 1, &["signal 11"]);
}

#[test]
fn a_backend_that_does_not_listen_is_killed() {
    let mut project = mischief("deaf", "  grace_seconds: 1");
    let mut running = project.start();
    assert!(project.wait_for(&mut running, |p| {
        let events = fs::read_to_string(p.path("work/02-pretrain/events.jsonl"));
        events.is_ok_and(|events| events.contains("\"step\":1"))
    }));
    let asked = Instant::now();
    running.interrupt();
    let outcome = running.finish(PATIENCE);
    outcome.expect(130, &["stopping", "interrupted"]);
    let took = asked.elapsed();
    assert!(took > Duration::from_millis(900), "it got no grace: {took:?}");
    assert!(took < Duration::from_secs(8), "it took {took:?}");
    project.assert_no_process_left(Duration::from_secs(3));
    assert_eq!(project.state("02-pretrain"), "interrupted");
    project.change("MISCHIEF: deaf,", "MISCHIEF: honest,");
    project.run("").expect(0, &["report:"]);
    assert_same(&project.models(), honest(), "after a deaf backend");
}

#[test]
fn the_second_interrupt_ends_at_once() {
    let project = mischief("deaf", "  grace_seconds: 300");
    let mut running = project.start();
    assert!(project.wait_for(&mut running, |p| {
        let events = fs::read_to_string(p.path("work/02-pretrain/events.jsonl"));
        events.is_ok_and(|events| events.contains("\"step\":1"))
    }));
    running.interrupt();
    std::thread::sleep(Duration::from_millis(200));
    let asked = Instant::now();
    running.interrupt();
    let outcome = running.finish(PATIENCE);
    assert_eq!(outcome.code(), Some(130), "{outcome}");
    assert!(asked.elapsed() < Duration::from_secs(2), "{outcome}");
    project.assert_no_process_left(Duration::from_secs(10));
}

#[test]
fn a_killed_driver_takes_its_backend_along() {
    let mut project = mischief("deaf", "");
    let mut running = project.start();
    assert!(project.wait_for(&mut running, |p| {
        let events = fs::read_to_string(p.path("work/02-pretrain/events.jsonl"));
        events.is_ok_and(|events| events.contains("\"step\":1"))
    }));
    assert!(project.processes().len() > 1, "{:?}", project.processes());
    running.kill();
    running.finish(PATIENCE);
    // The next run does not wait for the last one's backend to die: it ends it.
    project.change("MISCHIEF: deaf,", "MISCHIEF: honest,");
    project.run("").expect(0, &["report:"]);
    assert_same(&project.models(), honest(), "after a killed driver");
    project.assert_no_process_left(Duration::from_secs(10));
}

#[test]
fn workers_do_not_outlive_their_backend() {
    let project = is_accepted("orphan");
    let notes = notes(&project);
    let pid = notes.iter().find_map(|line| line.strip_prefix("orphan ")).unwrap();
    let command = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    assert!(!command.starts_with("sleep"), "`{command}` lives on");
}

#[test]
fn descriptions_are_judged_before_anything_runs() {
    for (mode, words) in [
        ("describe-garbage", "printed no valid JSON description"),
        ("describe-fails", "no module named torch"),
        ("describe-protocol", "speaks protocol 2, this program speaks 1"),
        ("describe-hangs", "took more than"),
    ] {
        let mut project = mischief(mode, "");
        project.run("").expect(3, &["backend `mischief`", words]);
        assert!(!project.path("work/01-extract").exists(), "{mode}: something ran");
        assert_eq!(notes(&project), Vec::<String>::new(), "{mode}");
        if mode == "describe-hangs" {
            project.assert_no_process_left(Duration::from_secs(2));
            continue;
        }
        project.elo("backend check").run().expect(3, &[words]);
        project.change(&format!("MISCHIEF: {mode},"), "MISCHIEF: honest,");
        project.run("").expect(0, &["report:"]);
    }
}

#[test]
fn backends_that_cannot_be_started_are_named() {
    let mut project = mischief("honest", "");
    let line = project.yaml.lines().find(|line| line.starts_with("  name: ")).unwrap().to_owned();
    let script = Path::new(line.trim_start_matches("  name: ")).to_owned();

    let deaf = project.path("elo-backend-mine");
    fs::copy(&script, &deaf).unwrap();
    fs::set_permissions(&deaf, Permissions::from_mode(0o644)).unwrap();
    project.change(&line, "  name: ./elo-backend-mine");
    project.run("").expect(2, &["elo-backend-mine", "not executable", "chmod +x"]);

    project.change("  name: ./elo-backend-mine", "  name: ./nowhere");
    project.run("").expect(2, &["./nowhere", "no such file"]);

    project.change("  name: ./nowhere", "  name: mischeif");
    let path = format!("{}:/usr/bin:/bin", script.parent().unwrap().display());
    let outcome = project.elo("run").after(&format!("export PATH={path}")).run();
    outcome
        .expect(2, &["no backend `mischeif`", "did you mean `mischief`", "elo-backend-mischeif"]);
    project.change("  name: mischeif", "  name: axolotol");
    project.run("").expect(2, &["no backend `axolotol`", "did you mean `axolotl`"]);
    assert!(!project.path("work/01-extract").exists());

    project.change("  name: axolotol", "  name: mischief");
    project
        .elo("run --no-sync")
        .after(&format!("export PATH={path}"))
        .run()
        .expect(0, &["report:"]);
    let listed = elo("backend list").after(&format!("export PATH={path}")).run();
    listed.expect(0, &["mischief", "elo-backend-mischief", "usable"]);
    assert_same(&project.models(), honest(), "found on PATH");
}

#[test]
fn a_path_of_a_backend_is_the_projects() {
    let mut project = mischief("honest", "");
    let line = project.yaml.lines().find(|line| line.starts_with("  name: ")).unwrap().to_owned();
    let own = project.path("elo-backend-own");
    fs::copy(line.trim_start_matches("  name: "), &own).unwrap();
    project.change(&line, "  name: ./elo-backend-own");
    let below = project.path("data");
    elo("run --no-sync").within(&below).run().expect(0, &["report:"]);
    assert!(project.model("04-align").is_dir());
}
