//! kill -9 at any instant: the output is absent, the complete old one or the complete new one, and the same command again
//! makes it the complete new one.
//!
//! `ELO_KILL_ROUNDS` sets the number of rounds of the random harness (24 by default, 200 before a merge),
//! `ELO_KILL_SEED` repeats one. The system call sweep needs strace.

mod scene;
mod sweep;

use std::fs;
use std::thread;
use std::time::Duration;

use tempfile::TempDir;

use crate::support::checkpoint::{Model, read};
use crate::support::process::elo;
use crate::support::random::Random;
use crate::support::tree::{assert_same, differences, model_files, tree};
use scene::{Scene, State, Verb, judge};

const PATIENCE: Duration = Duration::from_mins(2);

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

/// The judge must see every kind of mix.
#[test]
fn the_judge_has_teeth() {
    let temp = TempDir::new().unwrap();
    let old = Model::tiny(1).at(temp.path(), "old");
    let new = Model::tiny(2).at(temp.path(), "new");
    let (old_tree, new_tree) = (tree(&old), tree(&new));
    let verdict = |name: &str, spoil: &dyn Fn(&std::path::Path)| {
        let out = Model::tiny(2).at(temp.path(), name);
        spoil(&out);
        judge(&out, Some(&old_tree), &new_tree)
    };
    assert_eq!(judge(&temp.path().join("absent"), Some(&old_tree), &new_tree), Ok(State::Absent));
    assert_eq!(judge(&old, Some(&old_tree), &new_tree), Ok(State::Old));
    assert_eq!(verdict("whole", &|_| {}), Ok(State::New));
    let shard = "model-00002-of-00002.safetensors";
    let mixed = |out: &std::path::Path| {
        fs::copy(old.join(shard), out.join(shard)).unwrap();
    };
    assert!(verdict("mixed", &mixed).is_err());
    assert!(verdict("short", &|out| fs::remove_file(out.join(shard)).unwrap()).is_err());
    assert!(verdict("more", &|out| fs::write(out.join("x.tmp"), "").unwrap()).is_err());
    assert!(
        verdict("cut", &|out| {
            let file = fs::File::options().write(true).open(out.join(shard)).unwrap();
            file.set_len(100).unwrap();
        })
        .is_err()
    );
    let bare = temp.path().join("bare");
    fs::create_dir(&bare).unwrap();
    assert!(judge(&bare, Some(&old_tree), &new_tree).is_err(), "an empty directory is no state");
    assert!(judge(&old, None, &new_tree).is_err(), "an old output where there was none");
}

#[test]
fn killed_at_random_times_nothing_is_mixed_and_little_is_lost() {
    let rounds = setting("ELO_KILL_ROUNDS", 24);
    let seed = setting("ELO_KILL_SEED", 0xe10);
    let scene = Scene::new(&Model::medium(1));
    let mut states = [0_u64; 3];
    let (mut killed, mut resumed) = (0_u64, 0_u64);
    for round in 0..rounds {
        let mut random = Random::new(seed.wrapping_add(round));
        let verb = Verb::ALL[usize::try_from(round % Verb::ALL.len() as u64).unwrap()];
        let overwrite = random.below(2) == 0;
        let threads = 1 + random.below(2);
        let what = format!(
            "ELO_KILL_SEED={} (round {round}: {verb:?}, overwrite {overwrite}, threads {threads})",
            seed + round
        );
        let place = scene.place(verb, overwrite);
        let command = place.command().with("--threads", threads.to_string());
        let kills = if round % 3 == 2 { 1 + random.below(5) } else { 1 };
        for _ in 0..kills {
            let mut running = command.start();
            let span = place.duration().as_micros();
            let wait = random.below(u64::try_from(span).unwrap() * 11 / 10);
            thread::sleep(Duration::from_micros(wait));
            let finished = running.is_over();
            running.kill();
            let outcome = running.finish(PATIENCE);
            if finished {
                let code = outcome.code();
                // Done before the kill; a next round finds the complete output of its own command.
                assert!(
                    code == Some(0) || (code == Some(2) && place.state() == Ok(State::New)),
                    "{what} {outcome}"
                );
            } else {
                killed += 1;
            }
            let state = place.state().unwrap_or_else(|e| panic!("{what} after a kill: {e}"));
            states[state as usize] += 1;
            let journal = place.journal();
            assert!(
                journal.started <= journal.finished + threads,
                "{what}: {journal:?} shards were at work"
            );
            if state == State::New && !place.staging().exists() {
                break;
            }
        }
        let journal = place.journal();
        let was = place.state();
        let outcome = command.clone().arg("--json").run();
        if was == Ok(State::New) && !place.staging().exists() && !overwrite {
            outcome.expect(2, &["exists"]);
        } else {
            assert_eq!(outcome.code(), Some(0), "{what} {outcome}");
            let said = outcome.json()["resumed"].as_u64().unwrap();
            assert!(
                said >= journal.finished,
                "{what}: {journal:?} but only {said} shards were taken over"
            );
            resumed += said;
        }
        let end = place.state();
        assert_eq!(end, Ok(State::New), "{what}: after the last run");
        assert!(!place.staging().exists(), "{what}: the staging directory stayed");
        place.assert_alone(&what);
        scene.assert_sources_unchanged(&what);
    }
    println!(
        "{rounds} rounds, {killed} kills: found absent {}, old {}, new {}; {resumed} shards taken over",
        states[0], states[1], states[2]
    );
    assert!(killed * 2 > rounds, "most runs were over before they could be killed");
}

/// Work of another run must not end up in this one's output: same structure, same file names, other weights.
#[test]
fn an_interrupted_run_is_not_continued_with_other_weights() {
    let temp = TempDir::new().unwrap();
    let model = Model::medium(1).at(temp.path(), "model");
    let part = |seed: u64| {
        let whole = Model::medium(seed).at(temp.path(), &format!("whole{seed}"));
        let part = temp.path().join(format!("part{seed}"));
        elo("extract --layers 1-12 --no-sync").arg(&whole).with("--out", &part).ok();
        part
    };
    let (first, second) = (part(2), part(3));
    let out = temp.path().join("out");
    let inject = |part: &std::path::Path, out: &std::path::Path| {
        elo("inject --all --no-sync --threads 1 --link never")
            .arg(part)
            .with("--into", &model)
            .with("--out", out)
    };
    let undisturbed = temp.path().join("undisturbed");
    inject(&second, &undisturbed).ok();
    let staging = temp.path().join(".out.elo-staging");
    let mut random = Random::new(5);
    for _ in 0..200 {
        let mut running = inject(&first, &out).start();
        thread::sleep(Duration::from_millis(10 + random.below(400)));
        running.kill();
        running.finish(PATIENCE);
        let done = scene::journal(&staging).finished;
        if (1..12).contains(&done) && !out.exists() {
            break;
        }
        let _gone = fs::remove_dir_all(&out);
        let _gone = fs::remove_dir_all(&staging);
    }
    let before = scene::journal(&staging);
    assert!(before.finished > 0, "no run was caught in the middle");
    let outcome = inject(&second, &out).run();
    if outcome.code() == Some(0) {
        assert_same(
            &model_files(&out),
            &model_files(&undisturbed),
            "an unfinished run was taken over",
        );
    } else {
        outcome.expect(1, &["cannot be resumed", "--restart"]);
        assert!(!out.exists());
        inject(&second, &out).arg("--restart").ok();
        assert_same(&tree(&out), &tree(&undisturbed), "after --restart");
    }
}

/// A journal that was cut anywhere is continued or begun anew, never believed too much.
#[test]
fn a_torn_journal_is_survived() {
    let scene = Scene::new(&Model::medium(1));
    let place = scene.place(Verb::ChatVector, false);
    let mut random = Random::new(9);
    let staging = place.staging();
    for _ in 0..100 {
        let mut running = place.command().with("--threads", "1").start();
        thread::sleep(place.duration() / 2 + Duration::from_millis(random.below(30)));
        running.kill();
        running.finish(PATIENCE);
        if place.journal().finished > 2 && place.state() == Ok(State::Absent) {
            break;
        }
        let _gone = fs::remove_dir_all(&staging);
        let _gone = fs::remove_dir_all(place.out());
    }
    let kept = place.journal();
    assert!(kept.finished > 2, "no run was caught in the middle: {kept:?}");
    let saved = place.out().with_file_name("saved");
    copy_tree(&staging, &saved);
    let journal = fs::read(saved.join("journal.jsonl")).unwrap();
    for round in 0..6 {
        let _gone = fs::remove_dir_all(&staging);
        let _gone = fs::remove_dir_all(place.out());
        copy_tree(&saved, &staging);
        let cut = usize::try_from(random.below(journal.len() as u64 + 1)).unwrap();
        let mut torn = journal[..cut].to_vec();
        if round % 2 == 1 {
            torn.extend(random.bytes(7));
        }
        fs::write(staging.join("journal.jsonl"), torn).unwrap();
        let outcome = place.command().run();
        assert_eq!(outcome.code(), Some(0), "journal cut at {cut}: {outcome}");
        assert_eq!(place.state(), Ok(State::New), "journal cut at {cut}");
    }
    fs::remove_dir_all(&saved).unwrap();
}

fn copy_tree(from: &std::path::Path, to: &std::path::Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// An in-place injection that was killed is finished by the same command or taken back, and nothing else touches the model.
#[test]
fn an_in_place_injection_is_finished_or_undone() {
    let rounds = setting("ELO_KILL_ROUNDS", 24).div_ceil(3);
    let temp = TempDir::new().unwrap();
    let model = Model::medium(1).at(temp.path(), "model");
    let donor = Model::medium(2).at(temp.path(), "donor");
    let part = temp.path().join("part");
    elo("extract --layers 1,5-9,12 --no-sync").arg(&donor).with("--out", &part).ok();
    let before = tree(&model);
    let command = elo("inject --in-place").arg(&part).with("--into", &model);
    let new = temp.path().join("new");
    elo("inject").arg(&part).with("--into", &model).with("--out", &new).ok();
    let wanted = read(&new);
    let undo = elo("inject --undo").arg(&model);
    let started = std::time::Instant::now();
    command.ok();
    let span = u64::try_from(started.elapsed().as_micros()).unwrap();
    assert_eq!(read(&model), wanted, "in place gives what a new output gives");
    assert!(!model.join("elo-surgery.undo").exists(), "the undo record is gone");
    let (mut unfinished, mut repeated) = (0, 0);
    for round in 0..rounds {
        let mut random = Random::new(setting("ELO_KILL_SEED", 0xe11) + round);
        fs::remove_dir_all(&model).unwrap();
        Model::medium(1).write(&model);
        let mut running = command.start();
        thread::sleep(Duration::from_micros(random.below(span * 11 / 10)));
        running.kill();
        running.finish(PATIENCE);
        if model.join("elo-surgery.undo").exists() {
            unfinished += 1;
            let refused =
                elo("extract --layers 1").arg(&model).with("--out", temp.path().join("x")).run();
            refused.expect(1, &["interrupted", "--undo"]);
        }
        if round % 2 == 0 {
            command.ok();
            repeated += 1;
            assert_eq!(read(&model), wanted, "round {round}: finished");
        } else {
            let had_record = model.join("elo-surgery.undo").exists();
            undo.ok();
            let left = differences(&tree(&model), &before);
            let finished = !had_record && read(&model) == wanted;
            assert!(
                left.is_empty() || finished,
                "round {round}: undone (record {had_record}), but {left:?}"
            );
        }
        let left: Vec<_> = tree(&model)
            .into_keys()
            .filter(|f| !before.contains_key(f) && f.as_os_str() != "elo-surgery.json")
            .collect();
        assert!(left.is_empty(), "round {round}: left {left:?}");
    }
    println!("{rounds} kills in place: {unfinished} unfinished, {repeated} finished by repeating");
    assert!(unfinished > 0, "no run was caught in the middle");
}
