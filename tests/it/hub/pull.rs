//! `pull`: whole files, whatever the Hub does.

use std::fs;
use std::thread::sleep;
use std::time::Duration;

use super::expected::{Expected, of_reading};
use super::fake::TOKEN;
use super::fake::faults::{Fault, Place, Rule};
use super::many::each;
use super::scene::{REPO, SHARDS, Scene};
use crate::support::checkpoint::Model;
use crate::support::disk::SmallDisk;
use crate::support::process::Outcome;
use crate::support::skipped;

/// For ever, or once.
fn rule(expected: &Expected, once: bool) -> Rule {
    let rule = if once { Rule::once(expected.fault) } else { Rule::always(expected.fault) };
    // The other files are well, so that something is there that a run must not lose.
    if matches!(expected.fault.place(), Place::Bytes | Place::Resolve | Place::Head) {
        rule.on(SHARDS)
    } else {
        rule
    }
}

fn judge(scene: &Scene, outcome: &Outcome, expected: &Expected, once: bool, what: &str) {
    scene.check(outcome, what);
    let allowed = if once { expected.once } else { expected.ever };
    let code = outcome.code().unwrap_or(-1);
    assert!(allowed.contains(&code), "{what}: ended with {code}, not {allowed:?}: {outcome}");
    if code != 0 && !once && !expected.says.is_empty() {
        let text = outcome.stderr.to_lowercase();
        assert!(
            expected.says.iter().any(|word| text.contains(word)),
            "{what}: {:?} is not in {outcome}",
            expected.says
        );
    }
}

/// Each fault, once and for ever, into the cache and into a directory; then again without it, to the right bytes.
#[test]
fn every_fault_of_reading_leaves_right_bytes_or_none() {
    let cases = of_reading().into_iter().flat_map(|expected| {
        [(true, true), (true, false), (false, true), (false, false)]
            .map(|(once, cache)| (expected, once, cache))
    });
    each(cases, |(expected, once, cache)| {
        let scene = Scene::new();
        let commit = scene.head();
        scene.hub.fault(rule(&expected, once));
        // Bytes that cannot be told from right ones before the file is whole may be recorded until then.
        let unseen = matches!(expected.fault, Fault::WrongBytes | Fault::Changed);
        scene.distrust.set(unseen);
        let place = if cache { "the cache" } else { "a directory" };
        let what =
            format!("{}{} into {place}", expected.fault.name(), if once { ", once," } else { "" });
        let run = scene.elo(&format!("pull {REPO}"));
        let run = if cache { run } else { run.with("--out", scene.out()) };
        let outcome = run.run();
        judge(&scene, &outcome, &expected, once, &what);
        if !cache {
            scene.check_out(&commit, &what);
        }
        let directory = if cache { scene.snapshot(&commit) } else { scene.out() };
        if outcome.code() == Some(0) {
            scene.assert_pulled(&directory, &commit, &what);
        }
        scene.hub.no_faults();
        if expected.fault == Fault::RevisionMoves {
            return;
        }
        let again = run.run();
        scene.check(&again, &format!("{what}, again"));
        assert_eq!(again.code(), Some(0), "{what}, again without it: {again}");
        scene.assert_pulled(&directory, &commit, &format!("{what}, again"));
    });
}

/// A branch that moves between the listing and the files: all files are of the commit that was named first.
#[test]
fn a_revision_that_moves_is_never_mixed() {
    let scene = Scene::new();
    let before = scene.head();
    scene.hub.fault(Rule::once(Fault::RevisionMoves));
    let outcome = scene.elo(&format!("pull {REPO}")).with("--out", scene.out()).ok();
    scene.check(&outcome, "a revision that moves");
    assert_ne!(scene.head(), before);
    scene.assert_pulled(&scene.out(), &before, "a revision that moves");
    // The next pull has the new one, and says what is in its way.
    let refused = scene.elo(&format!("pull {REPO}")).with("--out", scene.out()).run();
    scene.check(&refused, "the moved revision");
    let new = scene.elo(&format!("pull {REPO}")).with("--out", scene.out()).arg("--overwrite").ok();
    scene.check(&new, "the moved revision, overwritten");
    scene.assert_pulled(&scene.out(), &scene.head(), "the moved revision");
}

#[test]
fn patterns_revisions_and_dry_runs() {
    let scene = Scene::new();
    let commit = scene.head();
    let dry = scene.elo(&format!("pull {REPO} --dry-run")).ok();
    scene.check(&dry, "a dry run");
    assert!(
        !scene.hub.requests().iter().any(|r| r.is_bytes() && r.target.contains("safetensors")),
        "a dry run fetched"
    );
    let out = scene.out();
    scene.elo(&format!("pull {REPO} *.json extra/*")).with("--out", &out).ok();
    assert!(out.join("config.json").is_file() && out.join("extra/notes.txt").is_file());
    assert!(!out.join("model-00001-of-00002.safetensors").exists());
    scene.hub.repos().get_mut(REPO).unwrap().tags.insert("v1".into(), commit.clone());
    for revision in ["v1", "main", commit.as_str()] {
        let target = scene.work().join(format!("at-{revision}"));
        let outcome = scene.elo(&format!("pull {REPO}@{revision}")).with("--out", &target).ok();
        scene.check(&outcome, revision);
        scene.assert_pulled(&target, &commit, revision);
    }
    for (missing, word) in [("@nowhere", "revision"), ("-of-nobody", "acme/model-of-nobody")] {
        let outcome = scene.elo(&format!("pull {REPO}{missing}")).run();
        scene.check(&outcome, missing);
        outcome.expect(3, &[word, "hint"]);
    }
}

/// What is whole is not fetched again; one damaged file of a pulled directory is not believed.
#[test]
fn what_is_here_is_not_fetched_again() {
    let scene = Scene::new();
    let commit = scene.head();
    scene.elo(&format!("pull {REPO}")).ok();
    scene.assert_pulled(&scene.snapshot(&commit), &commit, "the first pull");
    let mark = scene.hub.requests().len();
    let second = scene.elo(&format!("pull {REPO}")).ok();
    scene.check(&second, "the second pull");
    assert!(
        !scene.since(mark).iter().any(super::fake::log::Logged::is_bytes),
        "{:?}",
        scene.since(mark)
    );
}

/// Private and gated models: with the token, without it, with a wrong one.
#[test]
fn private_and_gated_models() {
    let scene = Scene::new();
    scene.hub.repos().get_mut(REPO).unwrap().private = true;
    let pull = format!("pull {REPO}");
    let mine = scene.elo(&pull).ok();
    scene.check(&mine, "private, with the token");
    fs::remove_dir_all(scene.home()).unwrap();
    let nobody = scene.elo(&pull).env("HF_TOKEN", "").run();
    scene.check(&nobody, "private, without a token");
    nobody.expect(3, &[REPO, "hint", "hf auth login"]);
    let stranger = scene.elo(&pull).env("HF_TOKEN", "hf_somebodyElse").run();
    scene.check(&stranger, "private, with a wrong token");
    assert!(!stranger.text().contains("somebodyElse"), "{stranger}");
    assert!(matches!(stranger.code(), Some(3 | 6)), "{stranger}");
    {
        let mut repos = scene.hub.repos();
        let repo = repos.get_mut(REPO).unwrap();
        (repo.private, repo.gated) = (false, true);
    }
    let gated = scene.elo(&pull).env("HF_TOKEN", "").run();
    scene.check(&gated, "gated, without a token");
    gated.expect(6, &[REPO, "hint"]);
    // The file of the login works as the variable does.
    fs::create_dir_all(scene.work().join("login")).unwrap();
    let file = scene.work().join("login/token");
    fs::write(&file, format!("{TOKEN}\n")).unwrap();
    let granted = scene.elo(&pull).env("HF_TOKEN", "").env("HF_TOKEN_PATH", &file).ok();
    fs::remove_file(&file).unwrap();
    scene.check(&granted, "gated, with the token's file");
}

/// A pull into the cache or a directory that is killed while something goes wrong, and run again when all is well: right bytes.
#[track_caller]
fn killed_then_whole(scene: &Scene, cache: bool, moment: u64, fault: &str) {
    let commit = scene.head();
    let run = scene.elo(&format!("pull {REPO}"));
    let run = if cache { run } else { run.with("--out", scene.out()) };
    let mut running = run.start();
    sleep(Duration::from_millis(moment));
    running.kill();
    let _killed = running.finish(Duration::from_mins(1));
    let what = format!("{fault}, killed after {moment} ms, cache: {cache}");
    if !cache {
        scene.check_out(&commit, &what);
    }
    scene.hub.no_faults();
    // Some faults move the branch on.
    if scene.head() != commit {
        return;
    }
    let again = run.run();
    scene.check(&again, &what);
    assert_eq!(again.code(), Some(0), "{what}: {again}");
    let directory = if cache { scene.snapshot(&commit) } else { scene.out() };
    scene.assert_pulled(&directory, &commit, &what);
}

/// Killed at any moment, run again: right bytes, and what was there is not fetched twice.
#[test]
fn killed_at_any_moment_it_goes_on() {
    each([0_u64, 40, 90, 150, 250, 400, 600], |moment| {
        for cache in [true, false] {
            let scene = Scene::of(&Model {
                layers: 6,
                hidden: 192,
                intermediate: 384,
                vocabulary: 1024,
                shards: 4,
                seed: 3,
            });
            // Slow enough to be hit: some answers stop in the middle.
            scene.hub.fault(Rule::times(Fault::Stall, 3).on(SHARDS));
            killed_then_whole(&scene, cache, moment, "stalls");
        }
    });
}

/// Killed while something goes wrong, run again: right bytes.
#[test]
fn killed_in_every_fault_it_goes_on() {
    each(of_reading().into_iter().enumerate(), |(number, expected)| {
        let cache = number % 2 == 0;
        let moment = 15 + 61 * number as u64 % 240;
        let scene = Scene::new();
        let unseen = matches!(expected.fault, Fault::WrongBytes | Fault::Changed);
        scene.distrust.set(unseen);
        scene.hub.fault(rule(&expected, false));
        killed_then_whole(&scene, cache, moment, expected.fault.name());
    });
}

/// What arrived before a failure is not asked for again.
#[test]
fn a_broken_pull_goes_on_where_it_stopped() {
    let scene = Scene::of(&Model::medium(5));
    let commit = scene.head();
    let total: u64 = scene.files(&commit).values().map(|bytes| bytes.len() as u64).sum();
    let pull = format!("pull {REPO}");
    // Two shards come, then every answer breaks off in the middle.
    scene.hub.fault(Rule::always(Fault::Truncate).on(SHARDS).after(4));
    let broken = scene.elo(&pull).run();
    scene.check(&broken, "broken off");
    assert_eq!(broken.code(), Some(6), "{broken}");
    scene.hub.no_faults();
    let mark = scene.hub.requests().len();
    let first: u64 = scene.hub.requests().iter().map(|entry| entry.bytes).sum();
    scene.elo(&pull).ok();
    scene.assert_pulled(&scene.snapshot(&commit), &commit, "gone on");
    let second: u64 = scene.since(mark).iter().map(|entry| entry.bytes).sum();
    // Of what was on its way at the break, a piece of each connection may be lost.
    let (most, lost) = (total + total / 50, first.min(total) / 2);
    assert!(second < most - lost, "{first} bytes came before, {second} after, {total} in all");
}

/// A cache without room is told in bytes, a limit on files is no signal, and the same command goes on when there is room.
#[test]
fn a_full_disk_is_told_and_gone_on_from() {
    let scene = Scene::of(&Model::medium(6));
    let commit = scene.head();
    let total: u64 = scene.files(&commit).values().map(|bytes| bytes.len() as u64).sum();
    let runs = [
        scene.elo(&format!("pull {REPO}")),
        scene.elo(&format!("extract {REPO} --layers 1-12")).with("--out", scene.out()),
    ];
    for blocks in [0, 1, 64, 2000] {
        for run in &runs {
            let outcome = run.clone().after(&format!("ulimit -f {blocks}")).run();
            scene.check(&outcome, &format!("ulimit -f {blocks}"));
            assert_eq!(outcome.code(), Some(4), "ulimit -f {blocks}: {outcome}");
        }
    }
    fs::remove_dir_all(scene.home()).unwrap();
    let Some(disk) = SmallDisk::mount(&scene.home(), 1 << 20) else {
        return skipped("a full cache", "tmpfs cannot be mounted here (needs root)");
    };
    for percent in [10, 50, 90] {
        disk.grow(total * percent / 100);
        for run in &runs {
            let outcome = run.run();
            scene.check(&outcome, &format!("{percent} % of the room"));
            outcome.expect(4, &["not enough space", "bytes needed", "bytes free", "hint"]);
        }
        assert!(!scene.out().exists());
    }
    disk.grow(total * 2);
    let [pull, extract] = &runs;
    extract.ok();
    pull.ok();
    scene.assert_pulled(&scene.snapshot(&commit), &commit, "with room again");
}

/// Ctrl-C is an end in good order, at once.
#[test]
fn an_interrupted_pull_ends_at_once_and_goes_on() {
    let scene = Scene::new();
    let commit = scene.head();
    scene.hub.fault(Rule::always(Fault::Hang).on(SHARDS));
    let run = scene.elo(&format!("pull {REPO}")).env("HF_HUB_DOWNLOAD_TIMEOUT", "20");
    let running = run.start();
    let end = std::time::Instant::now() + Duration::from_secs(30);
    while !scene.hub.requests().iter().any(|r| r.fault == Some("hang"))
        && std::time::Instant::now() < end
    {
        sleep(Duration::from_millis(10));
    }
    running.interrupt();
    let outcome = running.finish(Duration::from_mins(1));
    scene.check(&outcome, "interrupted");
    assert_eq!(outcome.code(), Some(130), "{outcome}");
    assert!(outcome.elapsed < Duration::from_secs(15), "it took its time: {outcome}");
    scene.hub.no_faults();
    scene.elo(&format!("pull {REPO}")).ok();
    scene.assert_pulled(&scene.snapshot(&commit), &commit, "after an interruption");
}

/// Two pulls of one model: both have it, and its bytes came about once.
#[test]
fn two_pulls_at_once() {
    let scene = Scene::of(&Model::medium(2));
    let commit = scene.head();
    let total: u64 = scene.files(&commit).values().map(|bytes| bytes.len() as u64).sum();
    let run = scene.elo(&format!("pull {REPO}"));
    let (one, two) = (run.start(), run.start());
    for running in [one, two] {
        let outcome = running.finish(Duration::from_secs(100));
        scene.check(&outcome, "two at once");
        assert_eq!(outcome.code(), Some(0), "{outcome}");
    }
    scene.assert_pulled(&scene.snapshot(&commit), &commit, "two at once");
    let fetched: u64 = scene.hub.requests().iter().map(|entry| entry.bytes).sum();
    assert!(fetched < total + total / 4, "{fetched} bytes were fetched for a model of {total}");
}

/// Content of a repository that is hostile by itself: an index that leads out of it.
#[test]
fn an_index_that_leads_out_is_not_followed() {
    for target in ["../../../../../secret.safetensors", "/etc/passwd", "model\0.safetensors"] {
        let scene = Scene::new();
        let index = serde_json::json!({"metadata": {}, "weight_map": {"model.embed_tokens.weight": target}});
        let index = super::fake::store::Content::of(index.to_string());
        let mut files = scene.hub.repos()[REPO].files("main").unwrap().clone();
        let name = "model.safetensors.index.json";
        files.insert(name.into(), super::fake::store::Blob::new(name, index));
        scene.hub.repos().get_mut(REPO).unwrap().commit("main", "hostile", "", files);
        let outcome = scene.elo(&format!("inspect {REPO}")).run();
        scene.check(&outcome, target);
        assert!(outcome.code().is_some_and(|code| code != 0), "{target}: {outcome}");
    }
}
