//! What `push` refuses, keeps, leaves out and deletes, and what it writes into model cards.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::fake::store::{Blob, Content};
use super::many::each;
use super::scene::Scene;
use crate::support::checkpoint::Model;
use crate::support::process::{Elo, Outcome};

const TO: &str = "acme/made";

/// A Hub without models, and an output of this program with its record.
fn scene() -> Scene {
    let scene = Scene::empty();
    Model::tiny(1).write(&scene.original());
    scene.elo("reshard --shard-size 1GB").arg(scene.original()).with("--out", scene.out()).ok();
    assert!(scene.out().join("elo-surgery.json").is_file());
    scene
}

fn push(scene: &Scene, more: &str) -> Elo {
    scene.elo("push").arg(scene.out()).arg(TO).args(more.split_whitespace())
}

fn shard(scene: &Scene) -> PathBuf {
    let mut entries = fs::read_dir(scene.out()).unwrap().map(|entry| entry.unwrap().path());
    entries.find(|path| path.extension().is_some_and(|kind| kind == "safetensors")).unwrap()
}

/// A file of the repository, as text.
fn remote(scene: &Scene, path: &str) -> Option<String> {
    let repos = scene.hub.repos();
    let blob = repos.get(TO)?.files("main")?.get(path)?;
    Some(String::from_utf8_lossy(&blob.content.bytes().unwrap()).into_owned())
}

/// Somebody else commits a file.
fn commit(scene: &Scene, path: &str, text: &str) {
    let mut repos = scene.hub.repos();
    let repo = repos.get_mut(TO).unwrap();
    let mut files = repo.files("main").unwrap().clone();
    files.insert(path.to_owned(), Blob::new(path, Content::of(text)));
    repo.commit("main", "by hand", "", files);
}

#[track_caller]
fn refused(run: &Elo, code: i32, words: &[&str]) -> Outcome {
    let outcome = run.run();
    outcome.expect(code, words);
    outcome
}

#[track_caller]
fn nothing_was_written(scene: &Scene, outcome: &Outcome) {
    let wrote = scene
        .hub
        .requests()
        .into_iter()
        .find(|entry| !matches!(entry.method.as_str(), "GET" | "HEAD"));
    assert!(wrote.is_none(), "{wrote:?}\n{outcome}");
}

#[test]
fn what_is_damaged_or_unfinished_is_not_published() {
    let scene = scene();
    let shard = shard(&scene);
    let right = fs::read(&shard).unwrap();
    let mut wrong = right.clone();
    *wrong.last_mut().unwrap() ^= 1;
    fs::write(&shard, wrong).unwrap();
    let outcome = refused(&push(&scene, ""), 7, &["has changed", "failed verification"]);
    nothing_was_written(&scene, &outcome);
    fs::write(&shard, right).unwrap();
    fs::write(scene.out().join("stale.safetensors"), fs::read(&shard).unwrap()).unwrap();
    let outcome = refused(&push(&scene, ""), 7, &["`stale.safetensors` is an extra shard"]);
    nothing_was_written(&scene, &outcome);
    fs::remove_file(scene.out().join("stale.safetensors")).unwrap();
    fs::write(scene.out().join("elo-surgery.undo"), "x").unwrap();
    let outcome = refused(&push(&scene, ""), 1, &["interrupted in-place change", "hint"]);
    nothing_was_written(&scene, &outcome);
    fs::remove_file(scene.out().join("elo-surgery.undo")).unwrap();
    let config = scene.out().join("config.json");
    let text = fs::read_to_string(&config).unwrap().replacen('{', "{ ", 1);
    fs::write(&config, &text).unwrap();
    refused(&push(&scene, ""), 7, &["`config.json`"]);
    push(&scene, "--allow-changed").ok();
    assert_eq!(remote(&scene, "config.json").unwrap(), text);
}

#[test]
fn a_dry_run_shows_everything_and_changes_nothing() {
    let scene = scene();
    let outcome = push(&scene, "--dry-run --private --message Words").ok();
    for expected in [
        TO,
        "would be made, private",
        "Words",
        "config.json",
        "large file",
        "--- README.md ---",
        "library_name: transformers",
    ] {
        assert!(outcome.stdout.contains(expected), "{expected}: {outcome}");
    }
    nothing_was_written(&scene, &outcome);
    let shown: Value = serde_json::from_str(&push(&scene, "--dry-run --json").ok().stdout).unwrap();
    assert_eq!((&shown["exists"], &shown["parent"]), (&Value::Bool(false), &Value::Null));
    assert!(
        shown["files"].as_array().unwrap().iter().all(|file| file["change"] == "new"),
        "{shown}"
    );
    push(&scene, "").ok();
    let shown: Value = serde_json::from_str(&push(&scene, "--dry-run --json").ok().stdout).unwrap();
    assert!(
        shown["files"].as_array().unwrap().iter().all(|file| file["change"] == "unchanged"),
        "{shown}"
    );
    assert_eq!(shown["bytes"], 0, "{shown}");
    // What is public is not published to as private.
    refused(&push(&scene, "--private"), 6, &["everybody can see it", "hint"]);
}

#[test]
fn cards_that_people_wrote_are_kept() {
    let scene = scene();
    push(&scene, "").ok();
    let made = remote(&scene, "README.md").unwrap();
    assert!(made.contains("reshard") && made.contains("Made by elo-surgery"), "{made}");
    assert!(!made.contains(scene.work().to_str().unwrap()), "a path of this machine: {made}");
    // Edited on the Hub.
    let edited = format!("{made}\nAnd more.\n");
    commit(&scene, "README.md", &edited);
    push(&scene, "").ok();
    assert_eq!(remote(&scene, "README.md").unwrap(), edited);
    push(&scene, "--card").ok();
    assert_eq!(remote(&scene, "README.md").unwrap(), made);
    // Ours is written anew when what it says changed.
    push(&scene, "--base-model acme/first").ok();
    let named = remote(&scene, "README.md").unwrap();
    assert!(named.contains("base_model:\n- acme/first\n"), "{named}");
    // Written here.
    fs::write(scene.out().join("README.md"), "# Mine\n").unwrap();
    push(&scene, "").ok();
    assert_eq!(remote(&scene, "README.md").unwrap(), "# Mine\n");
    assert_eq!(fs::read_to_string(scene.out().join("README.md")).unwrap(), "# Mine\n");
}

#[test]
fn files_are_left_out_and_deleted_as_asked() {
    let scene = scene();
    fs::create_dir_all(scene.out().join("extra/deep")).unwrap();
    fs::write(scene.out().join("extra/deep/notes.txt"), "notes").unwrap();
    fs::write(scene.out().join("scratch.tmp"), "x").unwrap();
    fs::write(scene.out().join(".hidden"), "x").unwrap();
    fs::write(scene.out().join("empty.txt"), "").unwrap();
    push(&scene, "--exclude *.tmp --no-model-card").ok();
    let there = |path: &str| remote(&scene, path).is_some();
    assert!(there("extra/deep/notes.txt") && there("empty.txt"));
    assert!(!there("scratch.tmp") && !there(".hidden") && !there("README.md"));
    commit(&scene, "old.bin", "old");
    commit(&scene, "kept.tmp", "old");
    push(&scene, "").ok();
    assert!(there("old.bin"), "deleted unasked");
    let shown = push(&scene, "--delete --exclude *.tmp --dry-run").ok();
    assert!(shown.stdout.contains("would be deleted") && there("old.bin"), "{shown}");
    push(&scene, "--delete --exclude *.tmp").ok();
    assert!(
        !there("old.bin") && there("kept.tmp") && there(".gitattributes") && there("README.md")
    );
}

#[test]
fn links_that_leave_are_refused_unless_followed() {
    let scene = scene();
    let outside = scene.work().join("outside.txt");
    fs::write(&outside, "outside").unwrap();
    std::os::unix::fs::symlink(&outside, scene.out().join("linked.txt")).unwrap();
    let outcome = refused(&push(&scene, ""), 3, &["linked.txt", "hint"]);
    nothing_was_written(&scene, &outcome);
    push(&scene, "--follow-symlinks").ok();
    assert_eq!(remote(&scene, "linked.txt").unwrap(), "outside");
}

#[test]
fn names_and_branches_that_cannot_be_are_refused_at_once() {
    let scene = scene();
    for (words, expected) in [
        ("made", "no name of a repository"),
        ("a/b/c", "no name of a repository"),
        ("acme/made --branch ../x", "no name of a branch"),
        ("acme/made@x --branch y", "branch is given twice"),
        ("acme/made@x --pr", "pull request cannot be opened"),
        ("acme/made --exclude [", "no pattern"),
    ] {
        let run = scene.elo("push").arg(scene.out()).args(words.split_whitespace()).run();
        run.expect(2, &[expected]);
    }
    assert_eq!(scene.hub.connections(), 0);
}

/// How a merge gets onto the Hub.
#[derive(Clone, Copy, Debug)]
enum Way {
    Push,
    Streamed,
    NothingKept,
}

/// A repository with older weights in `before` files and in others, and a merge to be published there.
fn scene_of_merge(before: usize) -> Scene {
    let scene = Scene::empty();
    for (name, seed) in [("a", 1), ("b", 2)] {
        Model::tiny(seed).write(&scene.work().join(name));
    }
    let config = "merge_method: linear\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 1}\ndtype: bfloat16\n";
    fs::write(scene.work().join("merge.yml"), config).unwrap();
    let old = Model { shards: before, ..Model::tiny(9) }.at(&scene.work(), "old");
    fs::create_dir_all(old.join("onnx")).unwrap();
    for other in ["consolidated.safetensors", "onnx/model.safetensors", "pytorch_model.bin"] {
        fs::write(old.join(other), other).unwrap();
    }
    scene.hub.add_directory(TO, &old);
    scene
}

/// The merge in shards of a size, here.
fn merged(scene: &Scene, shards: &str) -> PathBuf {
    let out = scene.work().join("reference");
    scene.elo("merge merge.yml --shard-size").arg(shards).with("--out", &out).ok();
    out
}

/// Weights and index at the root of a directory.
fn weights_here(root: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path());
    let named = entries.map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), path));
    let of_weights = named.filter(|(name, _)| name.contains(".safetensors"));
    of_weights.map(|(name, path)| (name, fs::read(path).unwrap())).collect()
}

/// Weights and index at the root of the repository.
fn weights_there(scene: &Scene) -> BTreeMap<String, Vec<u8>> {
    let repos = scene.hub.repos();
    let files = repos[TO].files("main").unwrap().iter();
    let of_weights = files.filter(|(name, _)| name.contains(".safetensors") && !name.contains('/'));
    of_weights.map(|(name, blob)| (name.clone(), blob.content.bytes().unwrap())).collect()
}

#[test]
fn weights_of_another_layout_are_replaced_as_one() {
    // Files of weights before, and the size of shards that gives so many after.
    let layouts = [(1, "40kB", 3), (3, "1GB", 1), (3, "50kB", 2), (2, "40kB", 3)];
    let ways = [Way::Push, Way::Streamed, Way::NothingKept];
    let cases = layouts.into_iter().flat_map(|layout| ways.map(|way| (layout, way)));
    each(cases, |((before, size, after), way)| {
        let what = format!("{before} -> {after} by {way:?}");
        let scene = scene_of_merge(before);
        let right = merged(&scene, size);
        let streamed = || {
            scene
                .elo("merge merge.yml --push")
                .args([TO, "--shard-size", size])
                .with("--out", scene.out())
        };
        let run = match way {
            Way::Push => scene.elo("push").arg(&right).arg(TO),
            Way::Streamed => streamed(),
            Way::NothingKept => streamed().arg("--no-keep"),
        };
        let outcome = run.ok();
        scene.check(&outcome, &what);
        let (here, mut there) = (weights_here(&right), weights_there(&scene));
        assert_eq!(here.len(), if after == 1 { 1 } else { after + 1 }, "{what}: {:?}", here.keys());
        assert!(there.remove("consolidated.safetensors").is_some(), "{what}: others' weights went");
        assert!(there.keys().eq(here.keys()), "{what}: {:?} for {:?}", there.keys(), here.keys());
        assert!(there == here, "{what}: other bytes");
        assert_eq!(scene.hub.repos()[TO].commits.len(), 2, "{what}: not one commit");
        for other in ["onnx/model.safetensors", "pytorch_model.bin"] {
            assert!(remote(&scene, other).is_some(), "{what}: `{other}` went");
        }
        for note in ["replaced by the new weights", "older weights stay", "`pytorch_model.bin`"] {
            assert!(outcome.stderr.contains(note), "{what}: {outcome}");
        }
        let shown = |model: &Path| scene.elo("inspect --tensors").arg(model).ok().stdout;
        assert_eq!(shown(Path::new(TO)), shown(&right), "{what}: it does not load as it should");
        // The same again finds nothing to replace.
        let again = if scene.out().exists() { run.arg("--overwrite").ok() } else { run.ok() };
        assert_eq!(scene.hub.repos()[TO].commits.len(), 2, "{what}: {again}");
    });
}

#[test]
fn a_dry_run_shows_which_weights_are_replaced() {
    let scene = scene_of_merge(3);
    let right = merged(&scene, "1GB");
    let push = |more: &str| {
        let run = scene.elo("push").arg(&right).arg(TO).args(more.split_whitespace());
        let outcome = run.ok();
        scene.check(&outcome, more);
        outcome
    };
    let shown = push("--dry-run");
    nothing_was_written(&scene, &shown);
    let line = |file: &str| {
        let lines = || shown.stdout.lines();
        lines().find(|line| line.trim_start().starts_with(file)).unwrap_or_default().to_owned()
    };
    for file in ["model-00001-of-00003.safetensors", "model.safetensors.index.json"] {
        let line = line(file);
        assert!(line.ends_with("would be deleted  replaced by the new weights"), "{line}: {shown}");
    }
    assert_eq!(line("consolidated.safetensors"), "", "{shown}");
    assert!(shown.stderr.contains("note: weights of the branch are replaced"), "{shown}");
    let told = push("--dry-run --json").json();
    let deleted = |told: &Value| {
        let files = told["files"].as_array().unwrap().iter();
        let deleted = files.filter(|file| file["change"] == "deleted");
        let reason = |file: &Value| (file["path"].clone(), file["reason"].clone());
        deleted.map(reason).collect::<Vec<_>>()
    };
    assert_eq!(deleted(&told).len(), 4, "{told}");
    assert!(deleted(&told).iter().all(|(_, why)| why == "replaced by the new weights"), "{told}");
    assert_eq!(told["notes"].as_array().unwrap().len(), 2, "{told}");
    // What was asked for needs no reason, and no file is deleted for two.
    let told = push("--dry-run --json --delete").json();
    let unasked = deleted(&told).iter().filter(|(_, why)| why.is_null()).count();
    assert_eq!((deleted(&told).len(), unasked), (7, 3), "{told}");
    // What is left out stays, and so does all that is not replaced by anything.
    let told = push("--dry-run --json --exclude *.safetensors --allow-changed").json();
    assert!(deleted(&told).is_empty(), "{told}");
    let told = push("--json").json();
    assert_eq!(told["deleted"].as_array().unwrap().len(), 4, "{told}");
}
