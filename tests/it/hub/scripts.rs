//! The shell scripts of `fixtures/hub`, as a CI job runs them.

use std::fs;
use std::path::Path;

use super::fake::Transfer;
use super::fake::faults::{Fault, Rule};
use super::scene::Scene;
use crate::support::checkpoint::Model;
use crate::support::fixture;
use crate::support::process::{Elo, PROGRAM, other};

fn script(scene: &Scene, shell: &str, name: &str) -> Elo {
    let run = scene.elo("").onto(other(Path::new(shell)).arg(fixture("hub").join(name)));
    run.env("ELO_SURGERY", PROGRAM).within(&scene.work())
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(|entry| entry.unwrap().path()) {
        fs::copy(&entry, to.join(entry.file_name().unwrap())).unwrap();
    }
}

#[cfg(feature = "trainer")]
#[test]
fn an_elo_run_goes_from_the_hub_to_the_hub_stage_by_stage() {
    let scene = Scene::empty();
    scene.hub.habits().transfer = Transfer::Xet;
    let base = scene.original();
    copy(&fixture("demo/base"), &base);
    fs::write(base.join("README.md"), "---\nlicense: apache-2.0\n---\n# Base\n").unwrap();
    scene.hub.add_directory("acme/base", &base);
    let project = scene.work().join("project");
    copy(&fixture("demo/data"), &project.join("data"));
    fs::copy(fixture("hub/elo.yaml"), project.join("elo.yaml")).unwrap();
    let run = script(&scene, "bash", "publish-elo.sh")
        .arg(&project)
        .env("BASE", "acme/base")
        .env("TARGET", "acme/elo")
        .env("PRIVATE", "1");
    let outcome = run.ok();
    scene.check(&outcome, "the script");
    let file = |branch: &str, path: &str| {
        let repos = scene.hub.repos();
        let files =
            repos["acme/elo"].files(branch).unwrap_or_else(|| panic!("no `{branch}`: {outcome}"));
        files.get(path).map(|blob| blob.content.bytes().unwrap())
    };
    for (stage, dir) in [("extract", "01"), ("pretrain", "02"), ("inject", "03"), ("align", "04")] {
        let here = project.join(format!("work/{dir}-{stage}/model/model.safetensors"));
        assert_eq!(
            file(&format!("stage-{stage}"), "model.safetensors"),
            Some(fs::read(here).unwrap()),
            "{stage}"
        );
    }
    assert_eq!(file("main", "model.safetensors"), None, "main is changed by people");
    assert_eq!(file("refs/pr/1", "model.safetensors"), file("stage-align", "model.safetensors"));
    let card = String::from_utf8(file("refs/pr/1", "README.md").unwrap()).unwrap();
    for expected in [
        "base_model:\n- acme/base\nbase_model_relation: finetune\n",
        "license: apache-2.0\n",
        "language:\n- ja\n- en\n",
        "model-index:\n",
        "Layers 1, 8 of 8 were detached and trained",
        "| learning rate | 0.002 | 0.0005 |",
        "| text | base | this model |",
        "eprint    = \"2601.03648\"",
    ] {
        assert!(card.contains(expected), "{expected}\n{card}");
    }
    assert!(scene.hub.repos()["acme/elo"].private);
    // Run again, nothing is done again.
    let mark = scene.hub.requests().len();
    let again = run.ok();
    scene.check(&again, "the script, again");
    let sent: u64 = scene.since(mark).iter().map(|entry| entry.received).sum();
    assert!(sent < 200_000, "{sent} bytes: {again}");
}

#[test]
fn a_merge_is_made_and_published() {
    let scene = Scene::empty();
    for (name, seed) in [("a", 1), ("b", 2)] {
        Model::tiny(seed).write(&scene.work().join(name));
    }
    let config = "merge_method: linear\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 1}\ndtype: bfloat16\n";
    fs::write(scene.work().join("merge.yml"), config).unwrap();
    let run =
        script(&scene, "bash", "publish-merge.sh").args(["merge.yml", "acme/merged", "--private"]);
    let outcome = run.ok();
    scene.check(&outcome, "the script");
    assert!(outcome.stderr.contains("would be made, private"), "{outcome}");
    let card = |scene: &Scene| {
        let repos = scene.hub.repos();
        let files = repos["acme/merged"].files("main").unwrap();
        String::from_utf8(files["README.md"].content.bytes().unwrap()).unwrap()
    };
    assert!(
        card(&scene).contains("base_model_relation")
            || card(&scene).contains("# A merge by linear")
    );
    let commits = scene.hub.repos()["acme/merged"].commits.len();
    run.ok();
    assert_eq!(
        scene.hub.repos()["acme/merged"].commits.len(),
        commits,
        "nothing changed, and it committed"
    );
}

#[test]
fn a_nightly_job_publishes_when_something_changed() {
    let scene = Scene::empty();
    Model::tiny(1).write(&scene.original());
    let run =
        script(&scene, "sh", "publish-when-changed.sh").arg(scene.original()).arg("acme/nightly");
    let first = run.ok();
    scene.check(&first, "the script");
    let (word, commit) = first.stdout.trim().split_once(' ').unwrap();
    assert_eq!(word, "published", "{first}");
    assert_eq!(scene.hub.repos()["acme/nightly"].branches["main"], commit);
    assert_eq!(run.ok().stdout.trim(), format!("unchanged {commit}"));
    // A Hub that is down is worth another try; a directory that is damaged is not.
    fs::write(scene.original().join("tokenizer.json"), "{}").unwrap();
    scene.hub.fault(Rule::times(Fault::Preupload500, 7));
    let late = run.clone().env("PAUSE", "0").ok();
    assert!(late.stdout.starts_with("published "), "{late}");
    fs::write(scene.original().join("config.json"), "{").unwrap();
    let broken = run.env("PAUSE", "600").run();
    assert_eq!(broken.code(), Some(3), "{broken}");
}
