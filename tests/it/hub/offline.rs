//! Without a network: no socket is opened, and what is in the cache is enough, whoever put it there.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};

use super::fake::log::Logged;
use super::scene::{REPO, Scene};
use crate::support::process::{Elo, other};
use crate::support::skipped;
use crate::support::tree::{assert_same, model_files};

/// A cache as `huggingface_hub` writes it: blobs by their tags, links to them, the branch's commit.
fn cache_of_python(scene: &Scene) {
    let (folder, commit) = (scene.folder(), scene.head());
    let snapshot = scene.snapshot(&commit);
    for directory in [folder.join("blobs"), folder.join("refs"), snapshot.clone()] {
        fs::create_dir_all(directory).unwrap();
    }
    fs::write(folder.join("refs/main"), &commit).unwrap();
    let repos = scene.hub.repos();
    for (path, blob) in repos[REPO].files(&commit).unwrap() {
        fs::write(folder.join("blobs").join(blob.etag()), blob.content.bytes().unwrap()).unwrap();
        let link = snapshot.join(path);
        fs::create_dir_all(link.parent().unwrap()).unwrap();
        let up = "../".repeat(2 + path.matches('/').count());
        symlink(format!("{up}blobs/{}", blob.etag()), link).unwrap();
    }
}

#[test]
fn a_cache_that_python_wrote_is_used() {
    let scene = Scene::new();
    cache_of_python(&scene);
    let commit = scene.head();
    let outcome =
        scene.elo(&format!("extract {REPO} --layers 1,3")).with("--out", scene.out()).ok();
    scene.check(&outcome, "an extract from python's cache");
    let shard = |entry: &Logged| entry.is_bytes() && entry.target.contains(".safetensors");
    assert!(
        !scene.hub.requests().iter().any(shard),
        "shards were fetched: {:?}",
        scene.hub.requests()
    );
    scene.elo(&format!("pull {REPO}")).ok();
    assert!(!scene.hub.requests().iter().any(shard), "a pull fetched shards again");
    scene.assert_pulled(&scene.snapshot(&commit), &commit, "python's cache after a pull");
}

/// Runs that must not open a connection.
fn offline(scene: &Scene, words: &str) -> [Elo; 2] {
    [scene.elo(&format!("{words} --offline")), scene.elo(words).env("HF_HUB_OFFLINE", "1")]
}

#[test]
fn offline_opens_no_connection() {
    let scene = Scene::new();
    let reference = scene.work().join("reference");
    scene.elo("extract --layers 1").arg(scene.original()).with("--out", &reference).ok();
    cache_of_python(&scene);
    let commit = scene.head();
    for (number, run) in
        offline(&scene, &format!("extract {REPO} --layers 1")).into_iter().enumerate()
    {
        let out = scene.work().join(format!("out-{number}"));
        let outcome = run.with("--out", &out).ok();
        scene.check(&outcome, "an extract, offline");
        let (mut found, mut right) = (model_files(&out), model_files(&reference));
        found.remove(Path::new("README.md"));
        right.remove(Path::new("README.md"));
        assert_same(&found, &right, "offline");
    }
    for words in [format!("inspect {REPO}"), format!("inspect {REPO}@{commit}")] {
        for run in offline(&scene, &words) {
            scene.check(&run.ok(), &words);
        }
    }
    // Whether a cache that python wrote is whole nobody knows without the Hub; what we pulled ourselves we know.
    for run in offline(&scene, &format!("pull {REPO}")) {
        let outcome = run.run();
        scene.check(&outcome, "a pull, offline");
        assert!(matches!(outcome.code(), Some(0 | 6)), "{outcome}");
    }
    for words in [
        "inspect acme/unknown",
        "pull acme/unknown",
        "extract acme/unknown --layers 1 --out nowhere",
    ] {
        for run in offline(&scene, words) {
            let outcome = run.run();
            scene.check(&outcome, words);
            outcome.expect(6, &["acme/unknown", "offline", "hint"]);
        }
    }
    for run in offline(&scene, &format!("push {} acme/new", reference.display())) {
        let outcome = run.run();
        scene.check(&outcome, "a push, offline");
        assert_eq!(outcome.code(), Some(6), "{outcome}");
    }
    assert_eq!(scene.hub.connections(), 0, "{:?}", scene.hub.requests());
    scene.elo(&format!("pull {REPO}")).ok();
    let connections = scene.hub.connections();
    for run in offline(&scene, &format!("pull {REPO}")) {
        scene.check(&run.ok(), "a pull, offline, of what was pulled");
    }
    assert_eq!(scene.hub.connections(), connections, "{:?}", scene.hub.requests());
}

/// The system's own word on it: no socket of the network is so much as made.
#[test]
fn offline_makes_no_socket() {
    let traced =
        Command::new("strace").args(["-o", "/dev/null", "true"]).stderr(Stdio::null()).status();
    if !traced.is_ok_and(|status| status.success()) {
        skipped("sockets under --offline", "strace does not work here");
        return;
    }
    let scene = Scene::new();
    cache_of_python(&scene);
    let trace = scene.work().join("trace");
    for words in [
        format!("inspect {REPO}"),
        format!("extract {REPO} --layers 1 --out {}", scene.out().display()),
        format!("pull {REPO}"),
        "inspect acme/unknown".to_owned(),
    ] {
        let program = scene.elo(&words).arg("--offline");
        let mut run = Command::new("strace");
        run.args(["-f", "-e", "trace=socket,connect,sendto,sendmsg", "-o"]).arg(&trace);
        run.arg(crate::support::process::PROGRAM).args(program.arguments());
        run.env("HF_ENDPOINT", scene.hub.endpoint())
            .env("HF_HOME", scene.home())
            .current_dir(scene.work());
        run.stdout(Stdio::null()).stderr(Stdio::null());
        let _ended = run.status().unwrap();
        let text = fs::read_to_string(&trace).unwrap();
        let network: Vec<&str> = text.lines().filter(|line| line.contains("AF_INET")).collect();
        assert!(network.is_empty(), "{words}: {network:?}");
        assert!(text.contains("exited with"), "{words}: strace saw nothing: {text}");
    }
    assert_eq!(scene.hub.connections(), 0);
}

/// Where there is no network at all, what is offline works as ever.
#[test]
fn without_a_network_the_cache_is_enough() {
    let alone = Command::new("unshare").args(["-rn", "true"]).stderr(Stdio::null()).status();
    if !alone.is_ok_and(|status| status.success()) {
        skipped("runs without a network", "unshare -rn is not permitted here");
        return;
    }
    let scene = Scene::new();
    cache_of_python(&scene);
    let program =
        scene.elo(&format!("extract {REPO} --layers 1 --offline")).with("--out", scene.out());
    let run = other(Path::new("unshare")).arg("-rn").arg(crate::support::process::PROGRAM);
    let run = run
        .args(program.arguments())
        .env("HF_HOME", scene.home())
        .env("HF_TOKEN", "")
        .within(&scene.work());
    scene.check(&run.ok(), "without a network");
    // And what is not offline says that there is none.
    let program = scene.elo(&format!("inspect {REPO}@other"));
    let run = other(Path::new("unshare"))
        .arg("-rn")
        .arg(crate::support::process::PROGRAM)
        .args(program.arguments());
    let run = run
        .env("HF_HOME", scene.home())
        .env("HF_ENDPOINT", scene.hub.endpoint())
        .within(&scene.work());
    let outcome = run.env("ELO_SURGERY_HUB_FIRST_WAIT", "0.01").run();
    outcome.expect(6, &[REPO, "hint"]);
}
