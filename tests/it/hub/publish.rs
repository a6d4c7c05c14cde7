//! What `push` refuses, keeps, leaves out and deletes, and what it writes into model cards.

use std::fs;
use std::path::PathBuf;

use serde_json::Value;

use super::fake::store::{Blob, Content};
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
