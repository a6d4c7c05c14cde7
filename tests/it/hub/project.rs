//! `elo.yaml` may name models of the Hub: a run with them gives what a run with the same models on the disk gives.

use std::fs;
use std::path::{Path, PathBuf};

use super::scene::{Scene, walk};
use crate::support::fixture;
use crate::support::tree::{assert_same, weights_and_config};

const STAGES: [&str; 5] = ["01-extract", "02-pretrain", "03-inject", "04-align", "05-chat-vector"];

fn copy(from: &Path, to: &Path) {
    let mut files = Vec::new();
    walk(from, &mut files);
    for file in files {
        let to = to.join(file.strip_prefix(from).unwrap());
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(file, to).unwrap();
    }
}

/// A project with these names of models.
fn project(scene: &Scene, name: &str, model: &str, instruct: &str) -> PathBuf {
    let project = scene.work().join(name);
    copy(&fixture("demo/data"), &project.join("data"));
    let text = fs::read_to_string(fixture("hub/elo.yaml")).unwrap();
    let text = text.replace("model: base", &format!("model: {model}\ninstruct: {instruct}"));
    let text = text.replace("chat_vector: { enabled: false }", "chat_vector: { enabled: true }");
    fs::write(project.join("elo.yaml"), text).unwrap();
    project
}

#[test]
fn a_project_names_models_of_the_hub() {
    let scene = Scene::empty();
    for model in ["base", "instruct"] {
        copy(&fixture("demo").join(model), &scene.work().join("models").join(model));
        scene.hub.add_directory(&format!("acme/{model}"), &fixture("demo").join(model));
    }
    let run = |project: &Path| scene.elo("run").within(project);
    let here = project(&scene, "here", "../models/base", "../models/instruct");
    run(&here).ok();
    assert!(scene.hub.requests().is_empty(), "a project of files asked the Hub");

    let there = project(&scene, "there", "acme/base@main", "acme/instruct");
    let dry = run(&there).arg("--dry-run").ok();
    scene.check(&dry, "a dry run");
    let outcome = run(&there).ok();
    scene.check(&outcome, "a run");
    for stage in STAGES {
        let models =
            [&here, &there].map(|p| weights_and_config(&p.join("work").join(stage).join("model")));
        assert!(!models[0].is_empty(), "{stage}");
        assert_same(&models[1], &models[0], stage);
    }
    // Everything is here now: without a network nothing is done again.
    let connections = scene.hub.connections();
    let again = run(&there).arg("--offline").ok();
    scene.check(&again, "a run, offline");
    assert_eq!(scene.hub.connections(), connections, "{again}");
    let unknown = project(&scene, "unknown", "acme/nothing", "acme/instruct");
    let refused = run(&unknown).run();
    scene.check(&refused, "a model that is not there");
    refused.expect(3, &["acme/nothing"]);
}
