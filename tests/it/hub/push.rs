//! `push`: everything or nothing on the branch, once, whatever the Hub does.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use super::fake::Transfer;
use super::fake::faults::{ALL, Fault, Place, Rule};
use super::many::each;
use super::scene::{Scene, walk};
use crate::support::checkpoint::Model;
use crate::support::process::{Elo, Outcome};

const TO: &str = "acme/pushed";
/// Large enough for several parts: 2 MB a shard.
const MODEL: Model =
    Model { layers: 4, hidden: 192, intermediate: 384, vocabulary: 2048, shards: 2, seed: 21 };

struct Bench {
    scene: Scene,
}

impl Bench {
    fn new(transfer: Transfer) -> Self {
        let scene = Scene::empty();
        {
            let mut habits = scene.hub.habits();
            (habits.transfer, habits.part) = (transfer, 1 << 19);
        }
        MODEL.write(&scene.original());
        Self { scene }
    }

    fn push(&self, more: &str) -> Elo {
        let directory = self.scene.original();
        self.scene.elo("push").arg(directory).args([TO]).args(more.split_whitespace())
    }

    /// Commits of a branch, newest first.
    fn history(&self, branch: &str) -> Vec<String> {
        let repos = self.scene.hub.repos();
        let Some(repo) = repos.get(TO) else { return Vec::new() };
        let mut found = Vec::new();
        let mut next = repo.branches.get(branch).cloned();
        while let Some(commit) = next.take() {
            next.clone_from(&repo.commits[&commit].parent);
            found.push(commit);
        }
        found
    }

    fn files(&self, branch: &str) -> BTreeMap<String, Vec<u8>> {
        let repos = self.scene.hub.repos();
        let files = repos.get(TO).and_then(|repo| repo.files(branch)).cloned().unwrap_or_default();
        files.into_iter().map(|(path, blob)| (path, blob.content.bytes().unwrap())).collect()
    }

    /// Fails unless the branch has every file of the directory.
    #[track_caller]
    fn assert_published(&self, branch: &str, what: &str) {
        let there = self.files(branch);
        for (name, bytes) in local(&self.scene.original()) {
            assert!(
                there.get(&name) == Some(&bytes),
                "{what}: `{name}` is not on `{branch}`, or is wrong"
            );
        }
        assert!(there.contains_key("README.md"), "{what}: no model card: {:?}", there.keys());
    }

    /// No commit has a part of a model.
    #[track_caller]
    fn assert_whole_or_nothing(&self, what: &str) {
        let repos = self.scene.hub.repos();
        let right = local(&self.scene.original());
        for commit in repos.get(TO).into_iter().flat_map(|repo| repo.commits.values()) {
            let shards = |name: &&String| name.contains("safetensors");
            let has = commit.files.keys().filter(shards).count();
            let all = right.keys().filter(shards).count();
            assert!(
                has == 0 || has == all,
                "{what}: a commit has {has} of {all} files of the weights"
            );
        }
    }
}

fn local(root: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = Vec::new();
    walk(root, &mut files);
    let named = files
        .into_iter()
        .map(|path| (path.strip_prefix(root).unwrap().to_string_lossy().into_owned(), path));
    named.map(|(name, path)| (name, fs::read(path).unwrap())).collect()
}

/// Whether requests of this kind belong to writing alone.
fn is_writing(place: Place) -> bool {
    !matches!(place, Place::Tree | Place::Resolve | Place::Head | Place::Bytes | Place::Info)
}

fn code(outcome: &Outcome) -> i32 {
    outcome.code().unwrap_or(-1)
}

#[test]
fn a_directory_is_published_in_one_commit() {
    each([Transfer::Basic, Transfer::Multipart, Transfer::Xet], |transfer| {
        let bench = Bench::new(transfer);
        let what = format!("{transfer:?}");
        let dry = bench.push("--dry-run --private").ok();
        bench.scene.check(&dry, &what);
        assert!(!bench.scene.hub.repos().contains_key(TO), "{what}: a dry run made a repository");
        let outcome = bench.push("--private --message Merged").ok();
        bench.scene.check(&outcome, &what);
        bench.assert_published("main", &what);
        assert!(bench.scene.hub.repos()[TO].private, "{what}: it is public");
        let history = bench.history("main");
        assert_eq!(history.len(), 2, "{what}: one commit on the first");
        assert_eq!(bench.scene.hub.repos()[TO].commits[&history[0]].title, "Merged");
        let uploads = if transfer == Transfer::Xet { "/cas/v1/xorbs" } else { "/lfs/" };
        assert!(
            bench.scene.hub.requests().iter().any(|entry| entry.target.contains(uploads)),
            "{what}: another way"
        );
        assert!(
            !bench.scene.hub.requests().iter().any(|entry| entry.target.contains("telemetry")),
            "{what}: telemetry"
        );
        // The same again sends nothing and commits nothing.
        let mark = bench.scene.hub.requests().len();
        let again = bench.push("--private").ok();
        bench.scene.check(&again, &what);
        assert_eq!(bench.history("main"), history, "{what}: nothing changed, and it committed");
        let sent: u64 = bench.scene.since(mark).iter().map(|entry| entry.received).sum();
        assert!(sent < 100_000, "{what}: {sent} bytes were sent again");
    });
}

#[test]
fn branches_and_pull_requests() {
    let bench = Bench::new(Transfer::Basic);
    bench.push("").ok();
    let main = bench.history("main");
    fs::write(bench.scene.original().join("tokenizer.json"), "{\"new\": 1}").unwrap();
    let branch = bench.push("--branch next").ok();
    bench.scene.check(&branch, "a branch");
    bench.assert_published("next", "a branch");
    let pull = bench.push("--pr --message Better").ok();
    bench.scene.check(&pull, "a pull request");
    bench.assert_published("refs/pr/1", "a pull request");
    assert_eq!(bench.history("main"), main, "main moved");
    let refused = bench.scene.elo("push").arg(bench.scene.original()).arg("closed/name").run();
    bench.scene.check(&refused, "another's namespace");
    refused.expect(6, &["closed", "hint"]);
    let nobody = bench.push("").env("HF_TOKEN", "").run();
    bench.scene.check(&nobody, "without a token");
    assert!(matches!(code(&nobody), 3 | 6), "{nobody}");
}

/// Each fault of writing, once and for ever, by each way of uploading; then again without it: one commit, right.
#[test]
fn every_fault_of_writing_leaves_one_whole_commit_or_none() {
    // What a Hub says that lies about a commit has a test of its own.
    let faults = ALL.iter().filter(|entry| is_writing(entry.2) && entry.0 != Fault::CommitUnseen);
    let cases = faults.flat_map(|(fault, _, place, _)| {
        let transfers: &[Transfer] = match place {
            Place::Put => &[Transfer::Basic, Transfer::Multipart],
            Place::Complete => &[Transfer::Multipart],
            Place::XetToken | Place::Cas => &[Transfer::Xet],
            Place::Commit => &[Transfer::Basic, Transfer::Xet],
            _ => &[Transfer::Basic],
        };
        transfers
            .iter()
            .flat_map(|transfer| [(*fault, *transfer, true), (*fault, *transfer, false)])
    });
    each(cases, |(fault, transfer, once)| {
        let bench = Bench::new(transfer);
        bench.scene.hub.fault(if once { Rule::once(fault) } else { Rule::always(fault) });
        let what = format!("{}{} by {transfer:?}", fault.name(), if once { ", once" } else { "" });
        let outcome = bench.push("--private").run();
        bench.scene.check(&outcome, &what);
        bench.assert_whole_or_nothing(&what);
        let commits = bench.history("main").len();
        assert!(
            commits <= 2 || fault == Fault::CommitMoves,
            "{what}: {commits} commits: {outcome}"
        );
        if code(&outcome) == 0 {
            bench.assert_published("main", &what);
        } else {
            assert!(matches!(code(&outcome), 3 | 6 | 7), "{what}: {outcome}");
            assert!(
                outcome.stderr.contains("acme/pushed") || outcome.stderr.contains("safetensors"),
                "{what}: {outcome}"
            );
        }
        bench.scene.hub.no_faults();
        let again = bench.push("--private").run();
        bench.scene.check(&again, &format!("{what}, again"));
        assert_eq!(again.code(), Some(0), "{what}, again without it: {again}");
        bench.assert_published("main", &format!("{what}, again"));
        bench.assert_whole_or_nothing(&what);
        if fault != Fault::CommitMoves {
            assert_eq!(
                bench.history("main").len(),
                2,
                "{what}: it was committed more than once: {outcome}{again}"
            );
        }
    });
}

/// Somebody else's commit is not overwritten unseen.
#[test]
fn a_branch_that_moves_is_told() {
    let bench = Bench::new(Transfer::Basic);
    bench.push("").ok();
    fs::write(bench.scene.original().join("tokenizer.json"), "{\"new\": 2}").unwrap();
    bench.scene.hub.fault(Rule::once(Fault::CommitMoves));
    let outcome = bench.push("").run();
    bench.scene.check(&outcome, "a branch that moves");
    assert_eq!(
        bench.history("main").len(),
        3,
        "the other's commit is there, ours is not: {outcome}"
    );
    outcome.expect(6, &[TO, "hint"]);
}

/// A Hub that takes a commit and shows none of it: it may be slow to, so that is a note. The same again sends everything.
#[test]
fn a_commit_that_is_not_shown_is_noted() {
    let bench = Bench::new(Transfer::Basic);
    bench.scene.hub.fault(Rule::once(Fault::CommitUnseen));
    let outcome = bench.push("").ok();
    bench.scene.check(&outcome, "an unseen commit");
    assert!(outcome.stderr.contains("does not show its files yet"), "{outcome}");
    let again = bench.push("").ok();
    bench.scene.check(&again, "an unseen commit, again");
    assert!(!again.stderr.contains("does not show"), "{again}");
    bench.assert_published("main", "an unseen commit, again");
}

/// What the Hub refuses to commit is told in its words, and not asked for again.
#[test]
fn a_commit_that_is_refused_is_not_repeated() {
    let bench = Bench::new(Transfer::Basic);
    bench.scene.hub.fault(Rule::always(Fault::Commit400));
    let outcome = bench.push("").run();
    bench.scene.check(&outcome, "a refused commit");
    outcome.expect(6, &["400", "Invalid metadata in README.md"]);
    let asked = bench.scene.hub.requests();
    assert_eq!(asked.iter().filter(|entry| entry.target.contains("/commit/")).count(), 1);
}

/// The Hub limits commits: the wait that it asks for is waited, or told at once if it is long.
#[test]
fn a_commit_waits_as_long_as_the_hub_asks() {
    let commits = |bench: &Bench| {
        let asked = bench.scene.hub.requests();
        asked.iter().filter(|entry| entry.target.contains("/commit/")).count()
    };
    let bench = Bench::new(Transfer::Basic);
    bench.scene.hub.fault(Rule::times(Fault::Commit429, 2));
    let outcome = bench.push("").ok();
    bench.scene.check(&outcome, "a commit that has to wait");
    bench.assert_published("main", "a commit that has to wait");
    assert_eq!((commits(&bench), bench.history("main").len()), (3, 2), "{outcome}");
    let bench = Bench::new(Transfer::Basic);
    bench.scene.hub.fault(Rule::always(Fault::Commit429Long));
    let outcome = bench.push("").run();
    bench.scene.check(&outcome, "a commit that has to wait for long");
    outcome.expect(6, &["429", "the Hub asks to wait 3600 seconds"]);
    assert_eq!((commits(&bench), bench.history("main").len()), (1, 1), "{outcome}");
}

/// The API answers requests under an old name with redirects, which only reading follows.
#[test]
fn a_renamed_repository_is_published_to_under_its_new_name() {
    const NEW: &str = "acme/renamed";
    let bench = Bench::new(Transfer::Basic);
    bench.push("").ok();
    bench.scene.hub.rename(TO, NEW);
    fs::write(bench.scene.original().join("tokenizer.json"), "{\"new\": 3}").unwrap();
    let dry = bench.push("--branch next --dry-run --json").ok().json();
    assert_eq!(dry["repository"], NEW, "{dry}");
    let mark = bench.scene.hub.requests().len();
    let outcome = bench.push("--branch next").ok();
    bench.scene.check(&outcome, "a renamed repository");
    assert!(outcome.stderr.contains("`acme/pushed` is called `acme/renamed` now"), "{outcome}");
    let repos = bench.scene.hub.repos();
    assert!(!repos.contains_key(TO), "the old name was made anew");
    let tokenizer = &repos[NEW].files("next").unwrap()["tokenizer.json"];
    assert_eq!(tokenizer.content.bytes().unwrap(), b"{\"new\": 3}");
    drop(repos);
    let old = bench.scene.since(mark).into_iter().filter(|entry| entry.target.contains(TO));
    assert!(old.clone().all(|entry| entry.method == "GET"), "{:?}", old.collect::<Vec<_>>());
}

/// Killed at any moment, run again: one commit, and what is there is not sent again.
#[test]
fn killed_at_any_moment_it_commits_once() {
    let moments = [0_u64, 50, 100, 150, 220, 300, 450, 700];
    let cases = moments
        .into_iter()
        .flat_map(|moment| [Transfer::Basic, Transfer::Xet].map(|way| (moment, way)));
    each(cases, |(moment, transfer)| {
        let bench = Bench::new(transfer);
        let run = bench.push("--private");
        let mut running = run.start();
        sleep(Duration::from_millis(moment));
        running.kill();
        let _killed = running.finish(Duration::from_mins(1));
        let what = format!("{transfer:?}, killed after {moment} ms");
        bench.assert_whole_or_nothing(&what);
        let again = run.run();
        bench.scene.check(&again, &what);
        assert_eq!(again.code(), Some(0), "{what}: {again}");
        bench.assert_published("main", &what);
        assert_eq!(bench.history("main").len(), 2, "{what}: not one commit");
    });
}

/// Killed while something goes wrong, run again: one commit.
#[test]
fn killed_in_every_fault_it_commits_once() {
    let others = [Fault::CommitMoves, Fault::CommitUnseen];
    let written = ALL.iter().filter(|entry| is_writing(entry.2) && !others.contains(&entry.0));
    each(written.enumerate(), |(number, (fault, name, place, _))| {
        let moment = 60 + 83 * number as u64 % 400;
        let transfer = match place {
            Place::Complete => Transfer::Multipart,
            Place::XetToken | Place::Cas => Transfer::Xet,
            _ => [Transfer::Basic, Transfer::Multipart][number % 2],
        };
        let bench = Bench::new(transfer);
        bench.scene.hub.fault(Rule::always(*fault));
        let run = bench.push("--private");
        let mut running = run.start();
        sleep(Duration::from_millis(moment));
        running.kill();
        let _killed = running.finish(Duration::from_mins(1));
        let what = format!("{name} by {transfer:?}, killed after {moment} ms");
        bench.assert_whole_or_nothing(&what);
        bench.scene.hub.no_faults();
        let again = run.run();
        bench.scene.check(&again, &what);
        assert_eq!(again.code(), Some(0), "{what}: {again}");
        bench.assert_published("main", &what);
        assert_eq!(bench.history("main").len(), 2, "{what}: not one commit: {again}");
    });
}

/// What the Hub has is not sent: after one file changed, one file goes.
#[test]
fn only_what_the_hub_lacks_is_sent() {
    each([Transfer::Basic, Transfer::Multipart, Transfer::Xet], |transfer| {
        let bench = Bench::new(transfer);
        bench.push("").ok();
        let shard = bench.scene.original().join("model-00002-of-00002.safetensors");
        let mut bytes = fs::read(&shard).unwrap();
        let size = bytes.len() as u64;
        bytes.iter_mut().rev().take(2000).for_each(|byte| *byte ^= 0x01);
        fs::write(&shard, bytes).unwrap();
        let mark = bench.scene.hub.requests().len();
        let outcome = bench.push("").ok();
        bench.scene.check(&outcome, "one changed file");
        bench.assert_published("main", "one changed file");
        let sent: u64 = bench.scene.since(mark).iter().map(|entry| entry.received).sum();
        assert!(sent < size + 200_000, "{transfer:?}: {sent} bytes were sent for a file of {size}");
        // Half of an upload that broke off before its commit is there for the next run.
        assert_eq!(bench.history("main").len(), 3);
    });
}

/// An upload that failed after its files went keeps what went.
#[test]
fn a_failed_push_does_not_send_twice() {
    each([Transfer::Basic, Transfer::Multipart, Transfer::Xet], |transfer| {
        let bench = Bench::new(transfer);
        bench.scene.hub.fault(Rule::always(Fault::Commit500));
        let failed = bench.push("").run();
        bench.scene.check(&failed, "a commit that fails");
        assert_eq!(code(&failed), 6, "{failed}");
        bench.scene.hub.no_faults();
        let mark = bench.scene.hub.requests().len();
        bench.push("").ok();
        bench.assert_published("main", "after a commit that failed");
        let sent: u64 = bench.scene.since(mark).iter().map(|entry| entry.received).sum();
        assert!(sent < 200_000, "{transfer:?}: {sent} bytes were sent again");
    });
}
