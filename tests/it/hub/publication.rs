//! The library's publications: files one by one, then one commit.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use std::time::Duration;

use elo_surgery::error::{Error, HubFailure};
use elo_surgery::hub::push::{How, Publication, Target, Words};
use elo_surgery::hub::{Http, ModelId, Settings, Token};
use tempfile::TempDir;

use super::fake::faults::{Fault, Rule};
use super::fake::hashes::sha256;
use super::fake::log::Origin;
use super::fake::store::{Blob, Content, Files};
use super::fake::{FakeHub, TOKEN, Transfer};

const TO: &str = "acme/streamed";

struct Bench {
    hub: FakeHub,
    dir: TempDir,
    http: Http,
}

impl Bench {
    fn new(transfer: Transfer) -> Self {
        let hub = FakeHub::start();
        hub.habits().transfer = transfer;
        let dir = TempDir::new().unwrap();
        let settings = Settings {
            endpoint: hub.endpoint(),
            token: Token::new(TOKEN),
            cache: dir.path().join("hub"),
            offline: false,
            connect: Duration::from_secs(1),
            // Nothing here is to be given up, on however busy a machine.
            silence: Duration::from_secs(30),
            retries: 2,
            first_wait: Duration::from_millis(5),
            longest_wait: Duration::from_millis(50),
        };
        let http = Http::new(settings, Arc::new(|| false)).unwrap();
        Self { hub, dir, http }
    }

    fn begin(&self) -> Publication<'_> {
        let target = Target::new(ModelId::parse(TO).unwrap(), false, false).unwrap();
        Publication::begin(&self.http, target).unwrap()
    }

    fn file(&self, name: &str, bytes: &[u8]) -> std::path::PathBuf {
        let path = self.dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    }

    fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let repos = self.hub.repos();
        let files = repos[TO].files("main").unwrap();
        files.iter().map(|(path, blob)| (path.clone(), blob.content.bytes().unwrap())).collect()
    }

    /// Somebody else commits a file.
    fn commit(&self, path: &str, text: &str) -> String {
        let mut repos = self.hub.repos();
        let repo = repos.get_mut(TO).unwrap();
        let mut files: Files = repo.files("main").unwrap().clone();
        files.insert(path.to_owned(), Blob::new(path, Content::of(text)));
        repo.commit("main", "by hand", "", files)
    }
}

fn words() -> Words {
    Words { message: "Streamed".into(), description: String::new() }
}

fn bytes(seed: u8, len: usize) -> Vec<u8> {
    (0..len).map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()[2] ^ seed).collect()
}

#[test]
fn files_are_dropped_once_the_hub_has_them_and_committed_together() {
    for (transfer, how) in [
        (Transfer::Basic, How::Basic),
        (Transfer::Multipart, How::Multipart),
        (Transfer::Xet, How::Xet),
    ] {
        let bench = Bench::new(transfer);
        bench.hub.habits().part = 100_000;
        let publication = bench.begin();
        assert_eq!(publication.user(), "tester");
        let (one, two) = (bytes(1, 300_001), bytes(2, 200_000));
        for (name, content) in [("a.safetensors", &one), ("b.safetensors", &two)] {
            let path = bench.file(name, content);
            let stored = publication.upload(name, &path, None, &()).unwrap();
            assert_eq!((stored.how, stored.size), (how, content.len() as u64));
            assert_eq!(publication.upload(name, &path, None, &()).unwrap(), stored, "again");
            fs::remove_file(path).unwrap();
        }
        publication.put("config.json", b"{}".to_vec()).unwrap();
        assert_eq!(bench.files().len(), 1, "nothing shows before the commit");
        let published = publication.commit(&words(), &[]).unwrap();
        assert!(published.changed);
        let files = bench.files();
        assert_eq!((&files["a.safetensors"], &files["b.safetensors"]), (&one, &two));
        assert_eq!(bench.hub.repos()[TO].branches["main"], published.commit);
        // A run that was killed after the upload, and whose shards are gone, goes on.
        let again = bench.begin();
        let stored =
            again.adopt("a.safetensors", 300_001, &sha256(&Content::of(one)).unwrap()).unwrap();
        assert_eq!(stored.how, How::Unchanged);
        assert!(!again.commit(&words(), &[]).unwrap().changed);
    }
}

#[test]
fn what_the_storage_has_is_adopted_and_what_it_lost_is_told() {
    let bench = Bench::new(Transfer::Basic);
    let content = bytes(3, 50_000);
    let name = sha256(&Content::of(content.clone())).unwrap();
    let path = bench.file("a.safetensors", &content);
    bench.begin().upload("a.safetensors", &path, None, &()).unwrap();
    // The first publication died before its commit.
    let publication = bench.begin();
    assert_eq!(publication.adopt("a.safetensors", 50_000, &name).unwrap().how, How::Known);
    let lost = publication.adopt("b.safetensors", 9, &"0".repeat(64)).unwrap_err();
    assert!(matches!(lost, Error::Hub { kind: HubFailure::Missing, .. }), "{lost}");
    publication.commit(&words(), &[]).unwrap();
    assert_eq!(bench.files()["a.safetensors"], content);
}

#[test]
fn a_file_that_changes_while_it_is_sent_is_never_committed() {
    for transfer in [Transfer::Basic, Transfer::Multipart, Transfer::Xet] {
        // On a machine with other work hf-xet needs seconds to cut so much.
        let bench = Bench::new(transfer);
        // Large enough that its hash is taken from who made it.
        let content = bytes(4, 10_500_000);
        let name = sha256(&Content::of(content.clone())).unwrap();
        let mut other = content;
        other[7_000_000] ^= 1;
        let path = bench.file("a.safetensors", &other);
        let publication = bench.begin();
        let refused = publication.upload("a.safetensors", &path, Some(&name), &()).unwrap_err();
        assert_eq!(refused.exit_code(), 8, "{transfer:?}: {refused}");
        assert!(!publication.commit(&words(), &[]).unwrap().changed, "{transfer:?}");
        assert!(!bench.files().contains_key("a.safetensors"), "{transfer:?}");
    }
}

#[test]
fn somebody_elses_commit_is_built_upon_unless_it_is_about_our_files() {
    let bench = Bench::new(Transfer::Basic);
    let path = bench.file("a.safetensors", &bytes(5, 20_000));
    let publication = bench.begin();
    publication.upload("a.safetensors", &path, None, &()).unwrap();
    publication.put("config.json", b"{}".to_vec()).unwrap();
    let theirs = bench.commit("LICENSE", "theirs");
    let published = publication.commit(&words(), &[]).unwrap();
    assert_eq!(published.parent.as_deref(), Some(theirs.as_str()));
    assert!(bench.files().contains_key("LICENSE") && bench.files().contains_key("config.json"));
    // Files that are not changed by us belong to the model too.
    let publication = bench.begin();
    publication.put("config.json", b"{}".to_vec()).unwrap();
    publication.put("generation_config.json", b"{}".to_vec()).unwrap();
    let theirs = bench.commit("config.json", "{\"theirs\": 1}");
    let told = publication.commit(&words(), &[]).unwrap_err();
    assert!(matches!(told, Error::Hub { kind: HubFailure::Moved, .. }), "{told}");
    assert!(told.to_string().contains("`config.json`"), "{told}");
    assert_eq!(bench.hub.repos()[TO].branches["main"], theirs);
}

#[test]
fn weights_that_others_commit_meanwhile_are_not_left_beside_ours() {
    let bench = Bench::new(Transfer::Basic);
    let given = |seed| {
        let path = bench.file("shard", &bytes(seed, 20_000));
        let publication = bench.begin();
        publication.upload("model-00001-of-00001.safetensors", &path, None, &()).unwrap();
        publication
    };
    let publication = given(1);
    let theirs = bench.commit("model.safetensors", "theirs");
    let told = publication.commit(&words(), &[]).unwrap_err();
    assert!(matches!(told, Error::Hub { kind: HubFailure::Moved, .. }), "{told}");
    assert!(told.to_string().contains("`model.safetensors`"), "{told}");
    // Who deletes has seen everything.
    let publication = given(2);
    let newer = bench.commit("LICENSE", "theirs");
    let told = publication.commit(&words(), &["model.safetensors".to_owned()]).unwrap_err();
    assert!(matches!(told, Error::Hub { kind: HubFailure::Moved, .. }), "{told}");
    assert!(theirs != newer && bench.hub.repos()[TO].branches["main"] == newer);
    // Other weights have nothing to do with it.
    let publication = given(3);
    bench.commit("consolidated.safetensors", "theirs");
    publication.commit(&words(), &[]).unwrap();
}

#[test]
fn what_is_gone_here_is_never_carried_in_memory() {
    for transfer in [Transfer::Basic, Transfer::Xet] {
        let bench = Bench::new(transfer);
        bench.hub.habits().inline = Some(".safetensors");
        let content = bytes(6, 5000);
        let name = sha256(&Content::of(content.clone())).unwrap();
        let path = bench.file("a.safetensors", &content);
        let inside = bench.begin().upload("a.safetensors", &path, None, &()).unwrap();
        assert_eq!(inside.how, How::Inline, "{transfer:?}: the repository wants it so");
        let stored = bench.begin().store("a.safetensors", &path, Some(&name), &()).unwrap();
        assert!(matches!(stored.how, How::Basic | How::Xet), "{transfer:?}: {:?}", stored.how);
        fs::remove_file(path).unwrap();
        // The publication that sent it is gone too.
        let publication = bench.begin();
        assert_eq!(publication.adopt("a.safetensors", 5000, &name).unwrap().how, How::Known);
        publication.commit(&words(), &[]).unwrap();
        assert_eq!(bench.files()["a.safetensors"], content, "{transfer:?}");
    }
}

#[test]
fn a_lost_answer_to_a_pull_request_opens_no_second_one() {
    let bench = Bench::new(Transfer::Basic);
    bench.begin();
    let target = Target::new(ModelId::parse(TO).unwrap(), false, true).unwrap();
    let publication = Publication::begin(&bench.http, target).unwrap();
    publication.put("config.json", b"{}".to_vec()).unwrap();
    bench.hub.fault(Rule::once(Fault::Commit500Done));
    let published = publication.commit(&words(), &[]).unwrap();
    assert!(published.pull_request.unwrap().ends_with("/discussions/1"));
    let pulls =
        bench.hub.repos()[TO].branches.keys().filter(|name| name.starts_with("refs/pr/")).count();
    assert_eq!(pulls, 1);
}

#[test]
fn large_files_never_go_inside_a_commit() {
    let bench = Bench::new(Transfer::Basic);
    let most = 10 << 20;
    let path = bench.file("tokenizer.json", &vec![b'x'; most]);
    let stored = bench.begin().upload("tokenizer.json", &path, None, &()).unwrap();
    assert_eq!(stored.how, How::Inline, "the Hub's limit is 10 MiB");
    bench.hub.habits().inline = Some(".json");
    let path = bench.file("vocabulary.json", &vec![b'x'; most + 1]);
    let refused = bench.begin().upload("vocabulary.json", &path, None, &()).unwrap_err();
    assert!(refused.to_string().contains("inside the commit"), "{refused}");
    assert!(refused.hint().unwrap().contains(".gitattributes"));
    let largest = bench.hub.requests().into_iter().map(|entry| entry.received).max().unwrap();
    assert!(largest < 10_000, "{largest} bytes were sent");
    assert!(bench.hub.requests().iter().all(|entry| entry.origin == Origin::Hub && !entry.leaked));
}
