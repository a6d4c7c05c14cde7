//! Every system call as the last one: strace kills the program at the k-th call of a kind, for k = 1, 2, ... until it is
//! no longer reached.

use std::process::{Command, Stdio};

use tempfile::TempDir;

use super::scene::{Place, Scene, State, Verb};
use crate::support::checkpoint::{Model, read};
use crate::support::process::{Elo, PROGRAM, elo};
use crate::support::skipped;
use crate::support::tree::{differences, tree};

/// Kinds of calls, each swept on its own.
const CALLS: [&str; 9] = [
    "rename,renameat,renameat2",
    "unlink,unlinkat,rmdir",
    "mkdir,mkdirat",
    "fsync,fdatasync",
    "fallocate,ftruncate",
    "pwrite64,pwritev",
    "write",
    "flock,fcntl",
    "openat",
];

/// A program that never ends a sweep would be a harness that proves nothing.
const MOST: u32 = 3000;

fn strace_works() -> bool {
    let run = Command::new("strace")
        .args(["-f", "-qq", "-o", "/dev/null", "-e", "inject=rename:signal=KILL:when=99", "true"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    run.is_ok_and(|status| status.success())
}

/// Runs a command that dies at the k-th of these calls. `true` if it did.
fn dies_at(command: &Elo, calls: &str, k: u32) -> bool {
    let status = Command::new("strace")
        .args(["-f", "-qq", "-o", "/dev/null", "-e"])
        .arg(format!("trace={calls}"))
        .arg("-e")
        .arg(format!("inject={calls}:signal=KILL:when={k}"))
        .arg(PROGRAM)
        .args(command.arguments())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    !status.success()
}

/// How far apart the swept calls are: all of those that change something, some of the others.
fn step(calls: &str, thorough: bool) -> usize {
    if thorough || !calls.contains("open") { 1 } else { 9 }
}

#[test]
fn no_call_is_a_bad_one_to_die_at() {
    if !strace_works() {
        skipped("the system call sweep", "strace is missing or may not trace");
        return;
    }
    let thorough = super::setting("ELO_KILL_ROUNDS", 24) >= 200;
    let scene = Scene::new(&Model::tiny(1));
    let mut points = 0;
    for overwrite in [true, false] {
        for calls in CALLS {
            for k in (1..MOST).step_by(step(calls, thorough)) {
                let place = scene.place(Verb::ChatVector, overwrite);
                // One thread: the k-th call is the same in every run.
                let command = place.command().with("--threads", "1").without("--no-sync");
                let died = dies_at(&command, calls, k);
                let what = format!("{calls} number {k}, overwrite {overwrite}");
                after(&place, &command, died, &what);
                points += 1;
                if !died {
                    break;
                }
                assert!(k + 10 < MOST, "{calls} never ends");
            }
        }
    }
    scene.assert_sources_unchanged("the sweep");
    println!("{points} points swept");
    assert!(points > 100, "only {points} points: the sweep did not reach the program");
}

fn after(place: &Place<'_>, command: &Elo, died: bool, what: &str) {
    let state = place.state().unwrap_or_else(|e| panic!("killed at {what}: {e}"));
    if !died {
        assert_eq!(state, State::New, "not killed by {what}");
        return;
    }
    let outcome = command.run();
    // Killed in its last calls, the run was complete already.
    let complete = state == State::New && outcome.code() == Some(2);
    assert!(
        complete || outcome.code() == Some(0),
        "rerun after {what} (found {state:?}): {outcome}"
    );
    let end = place.state();
    assert_eq!(end, Ok(State::New), "rerun after a kill at {what} (found {state:?}): {outcome}");
    place.assert_alone(&format!("rerun after a kill at {what}"));
}

#[test]
fn no_call_in_place_is_a_bad_one_to_die_at() {
    if !strace_works() {
        skipped("the in-place system call sweep", "strace is missing or may not trace");
        return;
    }
    let temp = TempDir::new().unwrap();
    let model = temp.path().join("model");
    let fresh = || {
        let _gone = std::fs::remove_dir_all(&model);
        Model::tiny(1).write(&model);
    };
    let donor = Model::tiny(2).at(temp.path(), "donor");
    let part = temp.path().join("part");
    elo("extract --layers 1,4 --no-sync").arg(&donor).with("--out", &part).ok();
    fresh();
    let before = tree(&model);
    let command = elo("inject --in-place --threads 1").arg(&part).with("--into", &model);
    command.ok();
    let wanted = read(&model);
    let mut points = 0;
    for calls in CALLS {
        for k in (1..MOST).step_by(step(calls, false)) {
            fresh();
            let died = dies_at(&command, calls, k);
            let what = format!("{calls} number {k}");
            points += 1;
            let unfinished = model.join("elo-surgery.undo").exists();
            if k % 2 == 0 {
                elo("inject --undo").arg(&model).ok();
                let undone = tree(&model) == before;
                let complete = !unfinished && read(&model) == wanted;
                let left = differences(&tree(&model), &before);
                assert!(
                    undone || complete,
                    "undone (record {unfinished}) after a kill at {what}: {left:?}"
                );
            } else {
                command.ok();
                assert_eq!(read(&model), wanted, "repeated after a kill at {what}");
            }
            let extra: Vec<_> = tree(&model)
                .into_keys()
                .filter(|f| !before.contains_key(f) && f.as_os_str() != "elo-surgery.json")
                .collect();
            assert!(extra.is_empty(), "after a kill at {what} and its mending: {extra:?}");
            if !died {
                break;
            }
        }
    }
    println!("{points} points swept in place");
    assert!(points > 40, "only {points} points: the sweep did not reach the program");
}
