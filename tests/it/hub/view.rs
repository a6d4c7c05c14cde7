//! Models that are not downloaded: headers by ranges, the bytes that a surgery needs, and no others.

use std::collections::BTreeMap;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use super::expected::{Expected, of_reading};
use super::fake::faults::{Fault, Place, Rule};
use super::fake::log::Logged;
use super::many::each;
use super::scene::{REPO, SHARDS, Scene};
use crate::support::checkpoint::Model;
use crate::support::tree::{Tree, assert_same, model_files};

/// Large enough that a header is a small part of a shard: 7 MB in 5 shards.
const MODEL: Model =
    Model { layers: 4, hidden: 256, intermediate: 512, vocabulary: 2048, shards: 5, seed: 11 };

/// Weights, config, sidecars. Cards and records name the model by the way it was named.
fn files(root: &Path) -> Tree {
    let mut files = model_files(root);
    files.remove(Path::new("README.md"));
    files.remove(Path::new("mergekit_config.yml"));
    files
}

/// What the same command makes of the model on the disk.
fn reference(scene: &Scene, layers: &str) -> Tree {
    let out = scene.work().join("reference");
    scene.elo(&format!("extract --layers {layers}")).arg(scene.original()).with("--out", &out).ok();
    let reference = files(&out);
    std::fs::remove_dir_all(&out).unwrap();
    reference
}

/// Faults that a reader of ranges can see. Other bytes of the right size in the right range are not among them: only a whole
/// file has a hash.
fn visible() -> Vec<Expected> {
    let invisible = [Fault::WrongBytes, Fault::Changed];
    of_reading().into_iter().filter(|expected| !invisible.contains(&expected.fault)).collect()
}

#[test]
fn every_fault_of_reading_leaves_a_right_extract_or_none() {
    let scene = Scene::of(&MODEL);
    let right = reference(&scene, "1,3");
    // While headers are read, and while the layers' bytes are.
    let cases = visible().into_iter().flat_map(|expected| {
        let late = if expected.fault.place() == Place::Bytes { 8 } else { 1 };
        [(true, 0), (true, late), (false, late)].map(|(once, skip)| (expected, once, skip))
    });
    each(cases, |(expected, once, skip)| {
        let scene = Scene::of(&MODEL);
        let rule = if once { Rule::once(expected.fault) } else { Rule::always(expected.fault) };
        let rule = rule.after(skip);
        let of_files =
            matches!(expected.fault.place(), Place::Bytes | Place::Resolve | Place::Head);
        scene.hub.fault(if of_files { rule.on(SHARDS) } else { rule });
        let what = format!(
            "extract, {}{}, after {skip}",
            expected.fault.name(),
            if once { ", once" } else { "" }
        );
        let run = scene.elo(&format!("extract {REPO} --layers 1,3")).with("--out", scene.out());
        let outcome = run.run();
        scene.check(&outcome, &what);
        let allowed = if once || skip > 0 {
            [expected.once, expected.ever].concat()
        } else {
            expected.ever.to_vec()
        };
        let code = outcome.code().unwrap_or(-1);
        // A fault that comes late may come too late.
        assert!(
            allowed.contains(&code) || (skip > 0 && code == 0),
            "{what}: ended with {code}, not {allowed:?}: {outcome}"
        );
        if code == 0 {
            assert_same(&files(&scene.out()), &right, &what);
        } else {
            assert!(!scene.out().exists(), "{what}: an output although it failed: {outcome}");
        }
        scene.hub.no_faults();
        if scene.hub.repos()[REPO].commits.len() > 1 {
            return;
        }
        let again = run.arg("--overwrite").run();
        scene.check(&again, &format!("{what}, again"));
        assert_eq!(again.code(), Some(0), "{what}, again without it: {again}");
        assert_same(&files(&scene.out()), &right, &what);
    });
}

#[test]
fn every_fault_of_reading_ends_an_inspection_in_good_order() {
    let cases = visible().into_iter().flat_map(|expected| [(expected, true), (expected, false)]);
    each(cases, |(expected, once)| {
        let scene = Scene::new();
        let rule = if once { Rule::once(expected.fault) } else { Rule::always(expected.fault) };
        let of_files =
            matches!(expected.fault.place(), Place::Bytes | Place::Resolve | Place::Head);
        scene.hub.fault(if of_files { rule.on(SHARDS) } else { rule });
        let what =
            format!("inspect, {}{}", expected.fault.name(), if once { ", once" } else { "" });
        let outcome = scene.elo(&format!("inspect {REPO}")).run();
        scene.check(&outcome, &what);
        let allowed = if once { expected.once } else { expected.ever };
        assert!(
            allowed.contains(&outcome.code().unwrap_or(-1)),
            "{what}: not {allowed:?}: {outcome}"
        );
        scene.hub.no_faults();
        let again = scene.elo(&format!("inspect {REPO}")).ok();
        scene.check(&again, &what);
    });
}

/// Requests that brought bytes, by shard.
fn by_shard(entries: &[Logged]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for entry in entries.iter().filter(|e| e.is_bytes() && matches!(e.status, 200 | 206)) {
        let path = entry.target.split('?').next().unwrap_or_default();
        let name = path.rsplit('/').next().unwrap_or_default();
        if name.ends_with(".safetensors") {
            *counts.entry(name.to_owned()).or_default() += 1;
        }
    }
    counts
}

/// 30 shards: at most two requests for the header of each, and then the bytes of the layers, within the promise.
#[test]
fn a_remote_extract_fetches_what_it_needs() {
    let model =
        Model { layers: 28, hidden: 256, intermediate: 512, vocabulary: 2048, shards: 30, seed: 4 };
    let scene = Scene::of(&model);
    let right = reference(&scene, "1,20");
    let run = scene.elo(&format!("extract {REPO} --layers 1,20")).with("--out", scene.out());
    let dry = run.clone().arg("--dry-run").ok();
    scene.check(&dry, "a dry run");
    let asked = scene.hub.requests();
    let counts = by_shard(&asked);
    assert_eq!(counts.len(), 30, "headers of all shards: {counts:?}");
    assert!(counts.values().all(|count| *count <= 2), "more than two requests a shard: {counts:?}");
    let led: BTreeMap<&str, usize> =
        asked.iter().filter(|e| e.status == 302).fold(BTreeMap::new(), |mut led, e| {
            *led.entry(e.target.as_str()).or_default() += 1;
            led
        });
    assert!(led.values().all(|count| *count <= 2), "more than two redirects a shard: {led:?}");
    let fetched = |entries: &[Logged]| entries.iter().map(|entry| entry.bytes).sum::<u64>();
    assert!(fetched(&asked) < 1 << 20, "{} bytes for a plan", fetched(&asked));
    let outcome = run.ok();
    scene.check(&outcome, "an extract");
    assert_same(&files(&scene.out()), &right, "an extract");
    let tensors = crate::support::checkpoint::read_raw(&scene.out());
    let needed: u64 = tensors.values().map(|tensor| tensor.2.len() as u64).sum();
    let all = fetched(&scene.hub.requests());
    println!("needed {needed} bytes, fetched {all}");
    assert!(all <= needed + needed / 50 + (1 << 20), "{all} bytes for tensors of {needed}");
    // Nothing of it comes again.
    let mark = scene.hub.requests().len();
    scene
        .elo(&format!("extract {REPO} --layers 1,20"))
        .with("--out", scene.work().join("second"))
        .ok();
    let again = fetched(&scene.since(mark));
    assert!(again < 200_000, "{again} bytes came again");
}

/// The headers of all shards are asked for at once: a Hub that is far away is waited for once, or twice.
#[test]
fn headers_come_in_one_round() {
    let model =
        Model { layers: 28, hidden: 64, intermediate: 128, vocabulary: 256, shards: 30, seed: 5 };
    let scene = Scene::of(&model);
    // Requests that wait for none of the others meet while they are not answered.
    scene.hub.habits().latency = Duration::from_millis(600);
    scene.elo(&format!("inspect {REPO}")).env("HF_HUB_DOWNLOAD_TIMEOUT", "30").ok();
    let asked = scene.hub.requests();
    let shards = asked.iter().filter(|entry| entry.target.contains(".safetensors"));
    let most = shards.map(|entry| entry.at_once).max();
    assert!(most > Some(20), "at most {most:?} of 30 headers were asked for at once");
}

/// Killed while bytes come, run again: right, and not from the start.
#[test]
fn a_killed_remote_extract_goes_on() {
    let scene = Scene::of(&MODEL);
    let right = reference(&scene, "2,4");
    each([0_u64, 60, 120, 200, 350, 500], |moment| {
        let scene = Scene::of(&MODEL);
        scene.hub.fault(Rule::times(Fault::Stall, 2).on(SHARDS).after(6));
        let run = scene.elo(&format!("extract {REPO} --layers 2,4")).with("--out", scene.out());
        let mut running = run.start();
        sleep(Duration::from_millis(moment));
        running.kill();
        let over = running.finish(Duration::from_mins(1));
        let what = format!("killed after {moment} ms");
        if over.code() == Some(0) {
            return;
        }
        scene.hub.no_faults();
        let again = run.run();
        scene.check(&again, &what);
        assert_eq!(again.code(), Some(0), "{what}: {again}");
        assert_same(&files(&scene.out()), &right, &what);
    });
}

/// A file that changes on its server while its pieces come is not put together from both.
#[test]
fn a_file_that_changes_on_the_way_is_not_mixed() {
    for skip in [6, 7, 8, 9] {
        let scene = Scene::of(&MODEL);
        scene.hub.fault(Rule::always(Fault::Changed).on(SHARDS).after(skip));
        let outcome =
            scene.elo(&format!("extract {REPO} --layers 1,3")).with("--out", scene.out()).run();
        // From the first request on nobody could tell; all shards' headers came well before.
        scene.check(&outcome, &format!("changed after {skip}"));
        assert!(matches!(outcome.code(), Some(6..=8)), "{outcome}");
        assert!(!scene.out().exists());
    }
}

/// Two models of the Hub merged are what the same models on the disk are merged.
#[test]
fn merges_name_models_of_the_hub() {
    let scene = Scene::of(&MODEL);
    let other = scene.work().join("other");
    Model { seed: 12, ..MODEL }.write(&other);
    scene.hub.add_directory("acme/other", &other);
    let config = |a: &str, b: &str| {
        format!(
            "merge_method: linear\ndtype: bfloat16\nmodels:\n  - model: {a}\n    parameters: {{weight: 0.3}}\n  - model: {b}\n    parameters: {{weight: 0.7}}\n"
        )
    };
    let (here, there) = (scene.work().join("here.yml"), scene.work().join("there.yml"));
    std::fs::write(&here, config(scene.original().to_str().unwrap(), other.to_str().unwrap()))
        .unwrap();
    std::fs::write(&there, config(REPO, "acme/other@main")).unwrap();
    let local = scene.work().join("local");
    scene.elo("merge").arg(&here).with("--out", &local).ok();
    let outcome = scene.elo("merge").arg(&there).with("--out", scene.out()).ok();
    scene.check(&outcome, "a merge");
    assert_same(&files(&scene.out()), &files(&local), "a merge of models of the Hub");
}
