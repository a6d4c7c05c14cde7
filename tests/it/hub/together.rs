//! Several programs at one model at once: nobody waits for what is here, and everybody ends with right bytes.

use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::fake::faults::{Fault, Rule};
use super::many::each;
use super::scene::{REPO, SHARDS, Scene};
use crate::support::checkpoint::Model;
use crate::support::disk::SmallDisk;
use crate::support::process::{Elo, Running};
use crate::support::skipped;
use crate::support::tree::{assert_same, model_files};

/// 7 MB in 5 shards.
const MODEL: Model =
    Model { layers: 4, hidden: 256, intermediate: 512, vocabulary: 2048, shards: 5, seed: 21 };
/// 25 MB in 2 shards, each of several pieces.
const LARGE: Model =
    Model { layers: 2, hidden: 512, intermediate: 512, vocabulary: 10_000, shards: 2, seed: 22 };
const LONG: Duration = Duration::from_secs(100);

/// A run that bears any silence.
fn patient(run: Elo) -> Elo {
    run.env("HF_HUB_DOWNLOAD_TIMEOUT", "600")
}

/// A pull that waits for bytes of a shard that never come. The small files are here.
fn stalled(scene: &Scene, fault: Fault) -> Running {
    scene.hub.fault(Rule::always(fault).on(SHARDS));
    let pull = patient(scene.elo(&format!("pull {REPO}"))).start();
    let end = Instant::now() + LONG;
    let small = scene.folder().join("blobs");
    let asked = || scene.hub.requests().iter().any(|entry| entry.fault == Some(fault.name()));
    let whole = || fs::read_dir(&small).is_ok_and(|files| files.count() >= 3);
    while !(asked() && whole()) && Instant::now() < end {
        sleep(Duration::from_millis(10));
    }
    pull
}

#[test]
fn nobody_waits_for_what_is_here() {
    each([Fault::Hang, Fault::Stall], |fault| {
        let scene = Scene::of(&MODEL);
        let inspect = patient(scene.elo(&format!("inspect {REPO}")));
        let before = inspect.ok();
        let extract = scene.elo(&format!("extract {REPO} --layers 1")).with("--out", scene.out());
        extract.ok();
        fs::remove_dir_all(scene.out()).unwrap();
        let mut pull = stalled(&scene, fault);
        for run in [inspect.clone(), inspect.arg("--offline")] {
            let outcome = run.ok();
            scene.check(&outcome, fault.name());
            assert_eq!(outcome.stdout, before.stdout, "{}", fault.name());
            assert!(!outcome.stderr.contains("waiting"), "{outcome}");
        }
        // So do the bytes that an extract fetched before.
        for run in [patient(extract.clone()), extract.arg("--offline").arg("--overwrite")] {
            let outcome = run.ok();
            assert!(!outcome.stderr.contains("waiting"), "{outcome}");
        }
        assert!(!pull.is_over(), "{} did not stall the pull", fault.name());
        pull.kill();
    });
}

/// A shard of which somebody has what he wanted is free, while he waits for another.
#[test]
fn what_nobody_fetches_any_longer_is_free() {
    let scene = Scene::of(&MODEL);
    scene.elo(&format!("inspect {REPO}")).ok();
    scene.hub.fault(Rule::always(Fault::Hang).on("/model-00005"));
    let run = scene.elo(&format!("extract {REPO} --layers 4")).with("--out", scene.out());
    let mut extract = patient(run).start();
    let end = Instant::now() + LONG;
    while !scene.hub.requests().iter().any(|entry| entry.fault == Some("hang"))
        && Instant::now() < end
    {
        sleep(Duration::from_millis(10));
    }
    let first = scene.hub.repos()[REPO].files("main").unwrap()["model-00001-of-00005.safetensors"]
        .sha256
        .clone();
    assert!(!scene.folder().join("blobs").join(first).exists(), "it became whole: choose others");
    let outcome = patient(scene.elo(&format!("pull {REPO} model-00001*"))).ok();
    scene.check(&outcome, "a shard beside one that is waited for");
    assert!(!extract.is_over(), "it waited for nothing");
    extract.kill();
}

#[test]
fn offline_waits_for_nobody() {
    let scene = Scene::of(&MODEL);
    let mut pull = stalled(&scene, Fault::Hang);
    for words in [format!("inspect {REPO} --offline"), format!("pull {REPO} --offline")] {
        let outcome = patient(scene.elo(&words)).run();
        outcome.expect(6, &[REPO, "offline", "hint"]);
        assert!(!outcome.stderr.contains("waiting"), "{outcome}");
    }
    assert!(!pull.is_over());
    pull.kill();
}

/// One that waits goes on where a killed one stopped.
#[test]
fn a_killed_one_is_waited_for_no_longer() {
    let scene = Scene::of(&MODEL);
    let commit = scene.head();
    let mut pull = stalled(&scene, Fault::Hang);
    let second = scene.elo(&format!("pull {REPO}")).start();
    sleep(Duration::from_millis(300));
    scene.hub.no_faults();
    pull.kill();
    let outcome = second.finish(LONG);
    scene.check(&outcome, "after a killed one");
    assert_eq!(outcome.code(), Some(0), "{outcome}");
    scene.assert_pulled(&scene.snapshot(&commit), &commit, "after a killed one");
}

#[test]
fn pulls_into_one_directory_go_one_after_the_other() {
    let cases = (0..8).flat_map(|round| [(round, 2), (round, 3)]);
    each(cases, |(round, many)| {
        let scene = Scene::new();
        let commit = scene.head();
        if round % 2 == 1 {
            scene.hub.fault(Rule::times(Fault::Stall, 2).on(SHARDS));
        }
        let pull = scene.elo(&format!("pull {REPO}")).with("--out", scene.out());
        let what = format!("{many} at once, round {round}");
        let start = |_| {
            // Some come when others are about to end.
            sleep(Duration::from_millis(round * 7 % 40));
            pull.start()
        };
        let running: Vec<Running> = (0..many).map(start).collect();
        for running in running {
            let outcome = running.finish(LONG);
            scene.check(&outcome, &what);
            assert_eq!(outcome.code(), Some(0), "{what}: {outcome}");
        }
        scene.assert_pulled(&scene.out(), &commit, &what);
    });
}

#[test]
fn an_extract_beside_a_pull_has_right_bytes() {
    let scene = Scene::of(&MODEL);
    let right = {
        let out = scene.work().join("reference");
        scene.elo("extract --layers 1,3").arg(scene.original()).with("--out", &out).ok();
        let mut right = model_files(&out);
        right.remove(std::path::Path::new("README.md"));
        right
    };
    each(0..6_u64, |round| {
        let scene = Scene::of(&MODEL);
        let commit = scene.head();
        scene.hub.fault(Rule::times(Fault::Stall, 3).on(SHARDS));
        let what = format!("round {round}");
        let pull = scene.elo(&format!("pull {REPO}")).start();
        sleep(Duration::from_millis(round * 23));
        let run = scene.elo(&format!("extract {REPO} --layers 1,3")).with("--out", scene.out());
        for running in [run.start(), pull] {
            let outcome = running.finish(LONG);
            scene.check(&outcome, &what);
            assert_eq!(outcome.code(), Some(0), "{what}: {outcome}");
        }
        let mut found = model_files(&scene.out());
        found.remove(std::path::Path::new("README.md"));
        assert_same(&found, &right, &what);
        scene.assert_pulled(&scene.snapshot(&commit), &commit, &what);
    });
}

/// A store whose addresses are good for one range: those that are refused are no failures.
#[test]
fn addresses_may_be_good_for_one_range() {
    let scene = Scene::of(&LARGE);
    let commit = scene.head();
    scene.hub.fault(Rule::always(Fault::LinkOnce));
    let refused = || scene.hub.requests().iter().filter(|entry| entry.status == 403).count();
    // A pause would last too long for any patience.
    let hasty = |run: Elo| run.env("ELO_SURGERY_HUB_FIRST_WAIT", "1000");
    let run = scene.elo(&format!("extract {REPO} --layers 1")).with("--out", scene.out());
    scene.check(&hasty(run).ok(), "an extract");
    assert!(refused() > 0, "no address was used twice");
    fs::remove_dir_all(scene.home()).unwrap();
    scene.check(&hasty(scene.elo(&format!("pull {REPO}"))).ok(), "a pull");
    scene.assert_pulled(&scene.snapshot(&commit), &commit, "a pull");
}

/// Room is looked for before anything is copied from the cache.
#[test]
fn a_directory_without_room_is_told_before_anything_is_copied() {
    let scene = Scene::of(&MODEL);
    scene.elo(&format!("pull {REPO}")).ok();
    let Some(_disk) = SmallDisk::mount(&scene.out(), 4 << 20) else {
        return skipped("a full directory", "tmpfs cannot be mounted here (needs root)");
    };
    let outcome = scene.elo(&format!("pull {REPO}")).with("--out", scene.out()).run();
    scene.check(&outcome, "a directory without room");
    outcome.expect(4, &["not enough space", "bytes needed", "bytes free"]);
    let staging = fs::read_dir(scene.out().join(".elo-pull")).unwrap();
    let copied: u64 = staging.map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
    assert_eq!(copied, 0, "it was begun with");
}
