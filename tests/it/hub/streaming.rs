//! Results that are published while they are made: one commit, right, whatever happens on the way; nothing stays here.

use std::collections::BTreeMap;
use std::fs;
use std::thread::sleep;
use std::time::Duration;

use serde_json::json;

use super::fake::Transfer;
use super::fake::faults::{Fault, Rule};
use super::many::each;
use super::scene::{REPO, Scene};
use crate::support::checkpoint::Model;
use crate::support::process::Elo;

const TO: &str = "acme/streamed";
/// 9 MB in 6 shards.
const MODEL: Model =
    Model { layers: 6, hidden: 256, intermediate: 512, vocabulary: 2048, shards: 6, seed: 31 };

const LARGE: &str = "extract --layers 1,2,3,5,6 --shard-size 1MB";
const SMALL: &str = "extract --layers 1,2,4 --shard-size 20kB";

/// A surgery that publishes as it goes, on a model of the Hub or of the disk.
fn run(scene: &Scene, remote: bool) -> Elo {
    surgery(scene, LARGE, remote)
}

fn surgery(scene: &Scene, words: &str, remote: bool) -> Elo {
    let run = scene.elo(words).arg("--no-keep");
    let run = if remote { run.arg(REPO) } else { run.arg(scene.original()) };
    run.with("--push", TO).with("--out", scene.out())
}

/// What the same surgery writes here.
fn reference(scene: &Scene) -> BTreeMap<String, Vec<u8>> {
    reference_of(scene, LARGE)
}

fn reference_of(scene: &Scene, words: &str) -> BTreeMap<String, Vec<u8>> {
    let out = scene.work().join("reference");
    let run = scene.elo(words).arg(scene.original());
    run.with("--out", &out).ok();
    let shards = fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().path());
    let named = shards.map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), path));
    let of_weights =
        named.filter(|(name, _)| name.contains(".safetensors") || name == "config.json");
    let right = of_weights.map(|(name, path)| (name, fs::read(path).unwrap())).collect();
    fs::remove_dir_all(out).unwrap();
    right
}

/// Commits of `main`, and what is wrong with them.
#[track_caller]
fn judge(scene: &Scene, right: &BTreeMap<String, Vec<u8>>, what: &str) -> usize {
    let repos = scene.hub.repos();
    let Some(repo) = repos.get(TO) else { return 0 };
    for commit in repo.commits.values() {
        let has_weights = commit.files.keys().any(|name| name.contains("safetensors"));
        for (name, bytes) in right.iter().filter(|_| has_weights) {
            let there = commit.files.get(name).and_then(|blob| blob.content.bytes().ok());
            assert!(
                there.as_ref() == Some(bytes),
                "{what}: a commit lacks `{name}`, or has it wrong"
            );
        }
    }
    repo.commits.len()
}

#[test]
fn a_surgery_publishes_as_it_goes() {
    each(
        [(Transfer::Basic, false), (Transfer::Multipart, true), (Transfer::Xet, true)],
        |(transfer, remote)| {
            let scene = Scene::of(&MODEL);
            let right = reference(&scene);
            scene.hub.habits().transfer = transfer;
            let what = format!("{transfer:?}, remote: {remote}");
            let outcome = run(&scene, remote).ok();
            scene.check(&outcome, &what);
            assert_eq!(judge(&scene, &right, &what), 2, "{what}: one commit on the first");
            assert!(!scene.out().exists(), "{what}: something was kept");
            // The same again finds everything there.
            let again = run(&scene, remote).run();
            scene.check(&again, &what);
            assert_eq!(judge(&scene, &right, &what), 2, "{what}: committed again: {again}");
        },
    );
}

/// One object, with every shard among what was published, whether it is here or not.
#[test]
fn programs_are_told_of_work_and_publication_in_one_object() {
    let bytes = |right: &BTreeMap<String, Vec<u8>>| right.values().map(Vec::len).sum::<usize>();
    each([false, true], |keeps| {
        let scene = Scene::of(&MODEL);
        let right = reference(&scene);
        let made = run(&scene, false).arg("--json");
        let made = if keeps { made.without("--no-keep") } else { made };
        let outcome = made.ok();
        scene.check(&outcome, "for programs");
        assert_eq!(outcome.stdout.lines().count(), 1, "{outcome}");
        let told = outcome.json();
        assert_eq!(
            (&told["command"], &told["push"]["command"]),
            (&json!("extract"), &json!("push"))
        );
        let files = told["push"]["files"].as_array().unwrap();
        for name in right.keys() {
            let file = files.iter().find(|file| file["path"] == *name);
            assert!(file.is_some_and(|file| file["how"] != "unchanged"), "{name}: {told}");
        }
        let sent = told["push"]["sent_bytes"].as_u64().unwrap();
        assert!(sent >= bytes(&right) as u64, "{sent} bytes: {told}");
        assert_eq!(told["push"]["commit"], json!(scene.hub.repos()[TO].branches["main"]));
        assert_eq!(scene.out().exists(), keeps);
    });
}

/// A repository that wants shards inside commits: what is removed here is in its storage, not in this program's memory.
#[test]
fn shards_that_belong_into_commits_are_stored_before_they_are_removed() {
    each([Transfer::Basic, Transfer::Xet], |transfer| {
        let scene = Scene::of(&Model::tiny(3));
        {
            let mut habits = scene.hub.habits();
            (habits.transfer, habits.inline) = (transfer, Some(".safetensors"));
        }
        let right = reference_of(&scene, SMALL);
        scene.hub.fault(Rule::always(Fault::Commit400));
        let run = surgery(&scene, SMALL, false);
        let stopped = run.run();
        scene.check(&stopped, "a commit that is refused");
        stopped.expect(6, &["400"]);
        let shards = right.keys().filter(|name| name.ends_with(".safetensors")).count();
        assert_eq!(scene.hub.repos()[TO].objects.len(), shards, "{transfer:?}: {stopped}");
        scene.hub.no_faults();
        let again = run.ok();
        scene.check(&again, "again");
        assert!(again.text().contains("continuing"), "{transfer:?}: made anew: {again}");
        assert_eq!(judge(&scene, &right, &format!("{transfer:?}")), 2);
    });
}

#[test]
fn broken_and_killed_publications_go_on() {
    let faults = [
        None,
        Some(Fault::Put500),
        Some(Fault::Put403),
        Some(Fault::PutBreak),
        Some(Fault::PutLost),
        Some(Fault::PutHang),
        Some(Fault::Batch500),
        Some(Fault::Commit500),
        Some(Fault::Commit500Done),
        Some(Fault::CommitCloseDone),
        Some(Fault::CommitHangDone),
    ];
    let cases = faults.into_iter().enumerate().flat_map(|(number, fault)| {
        let moment = 80 + 97 * number as u64 % 500;
        [(fault, None), (fault, Some(moment))]
    });
    each(cases, |(fault, moment)| {
        let scene = Scene::of(&MODEL);
        let right = reference(&scene);
        if let Some(fault) = fault {
            // Some shards go well before.
            let skip = if matches!(fault.place(), super::fake::faults::Place::Put) { 2 } else { 0 };
            scene.hub.fault(Rule::always(fault).after(skip));
        }
        let what = format!("{:?}, killed after {moment:?} ms", fault.map(Fault::name));
        let run = run(&scene, false);
        if let Some(moment) = moment {
            let mut running = run.start();
            sleep(Duration::from_millis(moment));
            running.kill();
            let _killed = running.finish(Duration::from_mins(1));
        } else {
            scene.check(&run.run(), &what);
        }
        assert!(judge(&scene, &right, &what) <= 2, "{what}: more than one commit");
        scene.hub.no_faults();
        let again = run.run();
        scene.check(&again, &what);
        assert_eq!(again.code(), Some(0), "{what}: {again}");
        assert_eq!(judge(&scene, &right, &what), 2, "{what}: not one commit: {again}");
        assert!(!scene.out().exists(), "{what}: something was kept");
    });
}
