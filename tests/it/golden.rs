//! What other software made of the same models, bit for bit: `fixtures/golden`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;

use crate::support::checkpoint::{Content, Tensor, config, read, read_raw, write_sharded};
use crate::support::fixture;
use crate::support::process::{Elo, elo};
use crate::support::tree::{assert_same, model_files, tree, weights_and_config};

pub(crate) fn golden(relative: &str) -> PathBuf {
    fixture("golden").join(relative)
}

pub(crate) fn cases(kind: &str) -> Vec<Value> {
    let text = fs::read(golden("cases.json")).unwrap();
    let all: Value = serde_json::from_slice(&text).unwrap();
    let of_kind: Vec<Value> = all["cases"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|case| case["kind"] == kind)
        .cloned()
        .collect();
    assert!(!of_kind.is_empty(), "no golden cases of kind {kind}");
    of_kind
}

fn input(case: &Value, role: &str) -> PathBuf {
    golden(case["inputs"][role].as_str().unwrap())
}

pub(crate) fn manifest(case: &Value) -> BTreeMap<String, Content> {
    let text = fs::read(golden(case["manifest"].as_str().unwrap())).unwrap();
    let parsed: Value = serde_json::from_slice(&text).unwrap();
    let tensors = parsed.get("tensors").unwrap_or(&parsed);
    let content = |entry: &Value| Content {
        dtype: entry["dtype"].as_str().unwrap().to_owned(),
        shape: entry["shape"].as_array().unwrap().iter().map(|d| d.as_u64().unwrap()).collect(),
        sha256: entry["sha256"].as_str().unwrap().to_owned(),
    };
    tensors
        .as_object()
        .unwrap()
        .iter()
        .map(|(name, entry)| (name.clone(), content(entry)))
        .collect()
}

/// One line for every tensor that is not as it should be.
pub(crate) fn compare(
    found: &BTreeMap<String, Content>,
    expected: &BTreeMap<String, Content>,
) -> Vec<String> {
    let names: std::collections::BTreeSet<&String> = found.keys().chain(expected.keys()).collect();
    names
        .into_iter()
        .filter(|name| found.get(*name) != expected.get(*name))
        .map(|name| {
            let (got, want) = (found.get(name), expected.get(name));
            format!("{name}: {got:?} instead of {want:?}")
        })
        .collect()
}

/// The command line of a case, without its output.
fn command(case: &Value) -> Elo {
    let kind = case["kind"].as_str().unwrap();
    let run = match kind {
        "elo-extract" => elo("extract").arg(input(case, "model")),
        "elo-inject" => {
            elo("inject").arg(input(case, "trained")).with("--into", input(case, "full"))
        }
        _ => elo("chat-vector")
            .with("--inst", input(case, "inst"))
            .with("--base", input(case, "base"))
            .with("--into", input(case, "into")),
    };
    let run = match case["layers"].as_str() {
        Some(layers) => run.with("--layers", layers),
        None => run,
    };
    run.args(case["args"].as_array().unwrap().iter().map(|a| a.as_str().unwrap()))
}

fn source_root(case: &Value) -> PathBuf {
    match case["kind"].as_str().unwrap() {
        "elo-extract" => input(case, "model"),
        "elo-inject" => input(case, "full"),
        _ => input(case, "into"),
    }
}

fn check(case: &Value) -> Vec<String> {
    let temp = TempDir::new().unwrap();
    let out = temp.path().join("out");
    let outcome = command(case).with("--out", &out).arg("--no-sync").run();
    if outcome.code() != Some(0) {
        return vec![outcome.to_string()];
    }
    let mut problems = compare(&read(&out), &manifest(case));
    problems.extend(check_config(case, &config(&out)));
    let left: Vec<_> = fs::read_dir(temp.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    if left.len() != 1 {
        problems.push(format!("files besides the output were left: {left:?}"));
    }
    problems
}

fn run_all(kind: &str) {
    let mut failed = Vec::new();
    let cases = cases(kind);
    for case in &cases {
        let problems = check(case);
        if !problems.is_empty() {
            failed.push(format!("{}:\n  {}", case["name"], problems.join("\n  ")));
        }
    }
    assert!(failed.is_empty(), "{} of {} cases:\n{}", failed.len(), cases.len(), failed.join("\n"));
}

/// The name that a config of this family gives a setting.
fn spelled<'a>(key: &'a str, config: &Value) -> &'a str {
    match (key, config.get("n_layer").is_some()) {
        ("num_hidden_layers", true) => "n_layer",
        _ => key,
    }
}

/// The per-layer settings must be there as transformers reads them. Three of them have several spellings of the same
/// meaning; `layer_types` is then what counts.
pub(crate) fn check_config(case: &Value, found: &Value) -> Vec<String> {
    let source = config(&source_root(case));
    let mut problems = Vec::new();
    let changed: Vec<&str> = case["expected_config"]
        .as_object()
        .map(|expected| expected.keys().map(String::as_str).collect())
        .unwrap_or_default();
    for (key, value) in case["expected_config"].as_object().into_iter().flatten() {
        if ["max_window_layers", "decoder_sparse_step", "mlp_only_layers"].contains(&key.as_str()) {
            continue;
        }
        let key = spelled(key, &source);
        // A setting left to the class default stays there: it does not depend on the layers.
        let by_default = source.get(key).is_none() && key != "layer_types";
        if found.get(key) != Some(value) && !(by_default && found.get(key).is_none()) {
            problems.push(format!("config.{key}: {:?} instead of {value}", found.get(key)));
        }
    }
    for (key, value) in source.as_object().unwrap() {
        let per_layer = changed.iter().any(|c| spelled(c, &source) == key);
        if !per_layer && found.get(key) != Some(value) {
            problems.push(format!("config.{key} changed from {value} to {:?}", found.get(key)));
        }
    }
    problems
}

#[test]
fn every_extract_is_what_transformers_makes() {
    run_all("elo-extract");
}

#[test]
fn every_injection_is_what_transformers_makes() {
    run_all("elo-inject");
}

#[test]
fn every_chat_vector_is_the_correctly_rounded_sum() {
    run_all("chat-vector");
}

#[test]
fn the_comparison_has_teeth() {
    let case = &cases("elo-extract")[0];
    let right = manifest(case);
    assert!(compare(&right, &right).is_empty());
    let name = right.keys().next().unwrap().clone();
    let spoilt = |change: fn(&mut Content)| {
        let mut wrong = right.clone();
        change(wrong.get_mut(&name).unwrap());
        compare(&wrong, &right).len()
    };
    assert_eq!(spoilt(|c| c.dtype = "F16".into()), 1);
    assert_eq!(spoilt(|c| c.shape.reverse()) + spoilt(|c| c.shape.push(1)), 2);
    assert_eq!(spoilt(|c| c.sha256.replace_range(..1, "x")), 1);
    let mut missing = right.clone();
    missing.remove(&name);
    assert_eq!(compare(&missing, &right).len(), 1);
    assert_eq!(compare(&right, &missing).len(), 1);
    let mut config = config(&source_root(case));
    assert_eq!(check_config(case, &config).len(), 1, "the source has too many layers");
    config["num_hidden_layers"] = 2.into();
    config["hidden_size"] = 7.into();
    assert_eq!(check_config(case, &config).len(), 1, "a foreign setting changed");
}

fn run_into(dir: &Path, name: &str, run: Elo) -> PathBuf {
    let out = dir.join(name);
    run.with("--out", &out).arg("--no-sync").ok();
    out
}

#[test]
fn inject_after_extract_gives_the_model_back() {
    for case in cases("elo-extract") {
        let temp = TempDir::new().unwrap();
        let model = input(&case, "model");
        let part = run_into(temp.path(), "part", command(&case));
        for all in [&[][..], &["--all"]] {
            let name = format!("back{}", all.len());
            let inject = elo("inject").arg(&part).with("--into", &model).args(all);
            let back = run_into(temp.path(), &name, inject);
            let what = format!("{} {all:?}", case["name"]);
            assert_same(&model_files(&back), &tree(&model), &what);
        }
    }
}

#[test]
fn extract_after_inject_gives_the_part_back() {
    for case in cases("elo-inject") {
        let temp = TempDir::new().unwrap();
        let (full, trained) = (input(&case, "full"), input(&case, "trained"));
        let extract = |model: &Path| {
            elo("extract").arg(model).with("--layers", case["layers"].as_str().unwrap())
        };
        let injected = run_into(temp.path(), "injected", command(&case));
        let part = run_into(temp.path(), "part", extract(&injected));
        let untrained = run_into(temp.path(), "untrained", extract(&full));
        let all = case["args"].as_array().unwrap().iter().any(|a| a == "--all");
        let (found, of_full, of_trained) = (read(&part), read(&untrained), read(&trained));
        for (name, content) in &found {
            let from_part = all || name.contains(".layers.");
            let expected = if from_part { &of_trained[name] } else { &of_full[name] };
            assert_eq!(content, expected, "{}: {name}", case["name"]);
        }
        assert_eq!(found.len(), of_full.len(), "{}", case["name"]);
        // Once more round: the same bytes, config and all.
        let again = elo("inject").arg(&part).with("--into", &injected).args(all.then_some("--all"));
        let again = run_into(temp.path(), "again", again);
        assert_same(&weights_and_config(&again), &weights_and_config(&injected), "injected twice");
        let part_again = run_into(temp.path(), "part-again", extract(&again));
        assert_same(&model_files(&part_again), &model_files(&part), "extracted twice");
    }
}

/// bf16 as f32.
fn widen(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

fn halves(bytes: &[u8]) -> impl Iterator<Item = u16> + '_ {
    bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]))
}

/// `C + 0 (A - B)` is C, but for the sign of zeros: `-0 + 0` is `+0`, and `-0 + -0` stays `-0`.
#[test]
#[expect(clippy::float_cmp, reason = "zeros of either sign are equal, everything else is exact")]
fn scale_zero_gives_the_target() {
    let temp = TempDir::new().unwrap();
    let model = |role: &str| golden(&format!("models/llama31-{role}"));
    let (a, b) = (read_raw(&model("inst")), read_raw(&model("base")));
    let target = temp.path().join("target");
    let (mut wanted, mut tensors) = (BTreeMap::new(), Vec::new());
    let mut zeros = [0_u32; 2];
    for (name, (dtype, shape, bytes, _)) in read_raw(&model("target")) {
        assert_eq!(dtype, "BF16");
        // Every fifth weight becomes a negative zero.
        let spoilt: Vec<u16> = halves(&bytes)
            .enumerate()
            .map(|(i, bits)| if i % 5 == 0 { 0x8000 } else { bits })
            .collect();
        let sums: Vec<u16> = spoilt
            .iter()
            .zip(halves(&a[&name].2).zip(halves(&b[&name].2)))
            .map(|(c, (a, b))| {
                let delta = (widen(a) - widen(b)) * 0.0;
                let sum = widen(*c) + delta;
                if *c == 0x8000 {
                    zeros[usize::from(sum.is_sign_negative())] += 1;
                }
                assert_eq!(sum.to_bits() & 0xffff, 0, "the sum is a bf16");
                (sum.to_bits() >> 16) as u16
            })
            .collect();
        let bytes =
            |values: &[u16]| -> Vec<u8> { values.iter().flat_map(|v| v.to_le_bytes()).collect() };
        wanted.insert(name.clone(), (bytes(&sums), bytes(&spoilt)));
        tensors.push(Tensor::new(&name, "BF16", &shape, bytes(&spoilt)));
    }
    assert!(zeros.iter().all(|n| *n > 100), "both kinds of zero occur: {zeros:?}");
    write_sharded(&target, &tensors, 3);
    fs::copy(model("target").join("config.json"), target.join("config.json")).unwrap();
    let run = elo("chat-vector --scale 0")
        .with("--inst", model("inst"))
        .with("--base", model("base"))
        .with("--into", &target);
    let out = run_into(temp.path(), "out", run);
    for (name, (_, _, bytes, _)) in read_raw(&out) {
        let (sum, source) = &wanted[&name];
        assert!(bytes == *sum, "{name} is not C + 0 (A - B)");
        let equal = halves(&bytes).zip(halves(source)).all(|(x, y)| widen(x) == widen(y));
        assert!(equal, "{name} does not equal the target's values");
    }
}

#[test]
fn a_saved_vector_gives_the_bytes_of_the_direct_form() {
    let model = |role: &str| golden(&format!("models/llama31-{role}"));
    for (inst, policies) in
        [("inst", &["error", "overlap"][..]), ("instbig", &["overlap", "extend", "skip"])]
    {
        let temp = TempDir::new().unwrap();
        let vector = temp.path().join("vector");
        elo("chat-vector --no-sync")
            .with("--inst", model(inst))
            .with("--base", model("base"))
            .with("--save-vector", &vector)
            .ok();
        for policy in policies {
            for extra in [&[][..], &["--scale", "0.37"], &["--skip-embeddings"]] {
                let common = |run: Elo| {
                    run.with("--into", model("target")).with("--vocab", policy).args(extra)
                };
                let direct = elo("chat-vector").with("--inst", model(inst));
                let direct = common(direct.with("--base", model("base")));
                let saved = common(elo("chat-vector").with("--vector", &vector));
                let name = format!("{policy}{}", extra.join(""));
                let direct = run_into(temp.path(), &format!("direct-{name}"), direct);
                let saved = run_into(temp.path(), &format!("saved-{name}"), saved);
                let what = format!("{inst} --vocab {policy} {extra:?}");
                assert_same(&model_files(&saved), &model_files(&direct), &what);
            }
        }
    }
}

#[test]
fn different_vocabularies_are_refused_with_the_four_choices() {
    let temp = TempDir::new().unwrap();
    let model = |role: &str| golden(&format!("models/llama31-{role}"));
    let out = temp.path().join("out");
    elo("chat-vector")
        .with("--inst", model("instbig"))
        .with("--base", model("base"))
        .with("--into", model("target"))
        .with("--out", &out)
        .fails(3)
        .expect(3, &["264", "256", "overlap", "extend", "skip", "embed_tokens"]);
    assert!(tree(temp.path()).is_empty(), "nothing was written");
}
