//! Merges beyond mergekit: the key `elo_surgery`, saved vectors as inputs, files of several documents.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;

use crate::golden::golden;
use crate::support::checkpoint::{Tensor, config, read_raw, write_sharded};
use crate::support::process::{Outcome, elo};
use crate::support::tree::{assert_same, weights_and_config};

/// Writes a configuration and merges.
fn merge(dir: &TempDir, name: &str, yaml: &str) -> (PathBuf, Outcome) {
    let (file, out) = (dir.path().join(format!("{name}.yml")), dir.path().join(name));
    fs::write(&file, yaml).unwrap();
    let run = elo("merge --no-sync").arg(&file).with("--out", &out);
    (out, run.within(&golden("")).run())
}

fn merged(dir: &TempDir, name: &str, yaml: &str) -> PathBuf {
    let (out, outcome) = merge(dir, name, yaml);
    assert_eq!(outcome.code(), Some(0), "{outcome}");
    out
}

fn bytes(root: &Path) -> BTreeMap<String, Vec<u8>> {
    read_raw(root).into_iter().map(|(name, (_, _, bytes, _))| (name, bytes)).collect()
}

const PAIR: &str = "merge_method: linear\nmodels:\n- {model: models/mrg32-a, parameters: {weight: 0.3}}\n- {model: models/mrg32-b, parameters: {weight: 0.7}}\n";

/// A golden model without some tensors.
fn without(dir: &TempDir, source: &str, drops: impl Fn(&str) -> bool) -> PathBuf {
    let source = golden("models").join(source);
    let root = dir.path().join("less");
    let kept = read_raw(&source).into_iter().filter(|(name, _)| !drops(name));
    let tensors: Vec<Tensor> = kept
        .map(|(name, (dtype, shape, bytes, _))| Tensor::new(&name, &dtype, &shape, bytes))
        .collect();
    write_sharded(&root, &tensors, 2);
    fs::write(root.join("config.json"), config(&source).to_string()).unwrap();
    root
}

#[test]
fn rules_choose_tensors_by_name_and_layer() {
    let dir = TempDir::new().unwrap();
    let plain = bytes(&merged(&dir, "plain", PAIR));
    let only_b = PAIR.replace("0.3", "0").replace("0.7", "1");
    let only_b = bytes(&merged(&dir, "only-b", &only_b));
    let rules = "elo_surgery:
  tensors:
  - {match: '*.mlp.*', layers: [1, 3], parameters: {weight: 1}, model: models/mrg32-b}
  - {match: '*.mlp.*', layers: [1, 3], parameters: {weight: 0}}
  - {regex: '(embed_tokens|lm_head)', copy: models/mrg32-a}\n";
    let found = bytes(&merged(&dir, "rules", &format!("{PAIR}{rules}")));
    let a = bytes(&golden("models/mrg32-a"));
    let mut kinds = [0; 3];
    for (name, bytes) in &found {
        let (kind, wanted) = if name.contains("embed_tokens") || name.contains("lm_head") {
            (0, &a[name])
        } else if name.contains(".mlp.") && (name.contains(".1.") || name.contains(".2.")) {
            (1, &only_b[name])
        } else {
            (2, &plain[name])
        };
        kinds[kind] += 1;
        assert!(bytes == wanted, "{name}");
    }
    assert_eq!(kinds, [2, 6, 31]);
}

#[test]
fn the_extension_is_strict() {
    let dir = TempDir::new().unwrap();
    let told = |extension: &str| {
        let (out, outcome) = merge(&dir, "refused", &format!("{PAIR}elo_surgery: {extension}\n"));
        assert!(!out.exists());
        format!("{extension}\n=> exit {}: {}", outcome.code().unwrap(), outcome.stderr)
            .replace(dir.path().to_str().unwrap(), "[DIR]")
    };
    let text: Vec<String> = [
        "{concensus: paper}",
        "{consensus: paper, rescale: papers, missing_tensors: drop, extra_tensors: base}",
        "{rescale: paper}",
        "{tensors: [{match: '*'}, {parameters: {weight: 1}}, {match: '[', copy: base}, {regex: '(', copy: c}]}",
        "{tensors: [{layers: [2, 1], copy: models/mrg32-a}, {match: [], parameters: {wait: 1}}]}",
        "{tensors: [{match: '*.mlq.*', copy: models/mrg32-a}]}",
        "{tensors: [{match: '*', model: models/mrg32-a, parameters: {normalize: true}}]}",
        "{tensors: [{match: '*', expressions: {weight: '1 +', wait: '1', normalize: '1'}}]}",
        "{tensors: [{match: '*', expressions: {weight: t}, parameters: {weight: 1}}]}",
        "{tensors: [{match: '*', expressions: {weight: '1 / layer'}}]}",
        "{tensors: [{match: '*', model: models/mrg32-a, copy: models/mrg32-a, parameters: {}}]}",
        "[]",
    ]
    .map(told)
    .to_vec();
    insta::assert_snapshot!("merge-extension", text.join("\n"));
}

#[test]
fn missing_tensors_have_a_policy() {
    let dir = TempDir::new().unwrap();
    let lacks = |name: &str| name.contains("layers.2.mlp");
    let less = without(&dir, "mrg32-b", lacks);
    let yaml = |policy: &str| {
        format!(
            "merge_method: task_arithmetic\nbase_model: models/mrg32-base\nmodels: [{{model: models/mrg32-a}}, {{model: '{}'}}]\nparameters: {{weight: 0.5}}\n{policy}",
            less.display()
        )
    };
    let (_, outcome) = merge(&dir, "refused", &yaml(""));
    outcome.expect(3, &["layers.2.mlp.up_proj", "is missing in", "missing_tensors"]);
    let base = merged(&dir, "base", &yaml("elo_surgery: {missing_tensors: base}\n"));
    let present = merged(&dir, "present", &yaml("elo_surgery: {missing_tensors: present}\n"));
    let alone = "merge_method: task_arithmetic\nbase_model: models/mrg32-base\nmodels: [{model: models/mrg32-a}]\nparameters: {weight: 0.5}\n";
    let alone = bytes(&merged(&dir, "alone", alone));
    let (base, present) = (bytes(&base), bytes(&present));
    let model = bytes(&golden("models/mrg32-base"));
    for name in model.keys() {
        if lacks(name) {
            assert!(base[name] == model[name], "{name} is the base's");
            assert!(present[name] == alone[name], "{name} has the difference of one model");
        } else {
            assert!(base[name] == present[name] && base[name] != alone[name], "{name}");
        }
    }
    // slerp needs both.
    let slerp = format!(
        "merge_method: slerp\nbase_model: models/mrg32-a\nmodels: [{{model: models/mrg32-a}}, {{model: '{}'}}]\nparameters: {{t: 0.5}}\nelo_surgery: {{missing_tensors: present}}\n",
        less.display()
    );
    let (_, outcome) = merge(&dir, "slerp", &slerp);
    outcome.expect(3, &["slerp cannot do without it"]);
}

#[test]
fn extra_tensors_are_dropped_where_asked() {
    let dir = TempDir::new().unwrap();
    let less = without(&dir, "mrg32-b", |name| name.contains("layers.2.mlp"));
    let yaml = |policy: &str| {
        format!(
            "merge_method: linear\nmodels: [{{model: '{}'}}, {{model: models/mrg32-a}}]\nparameters: {{weight: 0.5}}\n{policy}",
            less.display()
        )
    };
    let (_, outcome) = merge(&dir, "refused", &yaml(""));
    outcome.expect(3, &["layers.2.mlp.up_proj", "would be lost"]);
    let (out, outcome) = merge(&dir, "dropped", &yaml("elo_surgery: {extra_tensors: drop}\n"));
    outcome.expect(0, &["were left out"]);
    assert!(!bytes(&out).keys().any(|name| name.contains("layers.2.mlp")));
}

/// A vector as input gives what the command for chat vectors gives.
#[test]
fn saved_vectors_are_inputs() {
    let dir = TempDir::new().unwrap();
    let (vector, wanted) = (dir.path().join("vector"), dir.path().join("wanted"));
    elo("chat-vector --no-sync --inst models/mrg16-a --base models/mrg16-b")
        .with("--save-vector", &vector)
        .within(&golden(""))
        .ok();
    elo("chat-vector --no-sync --scale 0.5 --into models/mrg16-base")
        .with("--vector", &vector)
        .with("--out", &wanted)
        .within(&golden(""))
        .ok();
    let yaml = |method: &str, more: &str| {
        format!(
            "merge_method: {method}\nbase_model: models/mrg16-base\nmodels: [{{model: {{model: '{}'}}, parameters: {{weight: 1}}}}{more}]\nparameters: {{lambda: 0.5}}\n",
            vector.display()
        )
    };
    let found = merged(&dir, "found", &yaml("task_arithmetic", ""));
    assert_same(&weights_and_config(&found), &weights_and_config(&wanted), "by merge");
    let beside = ", {model: models/mrg16-c, parameters: {weight: 1}}";
    let (_, outcome) = merge(&dir, "beside", &yaml("task_arithmetic", beside));
    outcome.expect(3, &["models/mrg16-c", "beside saved vectors", "--save-vector"]);
    let linear = format!(
        "merge_method: linear\nmodels: [{{model: {{model: '{}'}}}}]\nparameters: {{weight: 1}}\n",
        vector.display()
    );
    let (_, outcome) = merge(&dir, "linear", &linear);
    outcome.expect(3, &["is a saved vector, not a model", "task_arithmetic"]);
}

#[test]
fn documents_follow_one_another() {
    let dir = TempDir::new().unwrap();
    let first = "merge_method: linear\nmodels: [{model: models/mrg32-a}, {model: models/mrg32-b}]\nparameters: {weight: 0.5}\n";
    let then = |model: &str| {
        format!(
            "merge_method: slerp\nbase_model: {model}\nmodels: [{{model: {model}}}, {{model: models/mrg32-c}}]\nparameters: {{t: 0.25}}\n"
        )
    };
    let half = merged(&dir, "half", first);
    let wanted =
        merged(&dir, "wanted", &then(&format!("{{model: {{path: '{}'}}}}", half.display())));
    let both = format!("name: half\n{first}---\n{}", then("half"));
    let (found, outcome) = merge(&dir, "found", &both);
    outcome.expect(0, &["`half` is made"]);
    assert_same(&weights_and_config(&found), &weights_and_config(&wanted), "by stages");
    assert_eq!(fs::read_to_string(found.join("mergekit_config.yml")).unwrap(), both);
    assert!(!dir.path().join(".found.elo-stages").exists());
    let card = fs::read_to_string(found.join("README.md")).unwrap();
    for line in [
        "| mrg32-a | of `half`, an intermediate model | not said |",
        "| mrg32-b | of `half`, an intermediate model | not said |",
        "| mrg32-c | merged | not said |",
    ] {
        assert!(card.contains(line), "{line}: {card}");
    }
    assert!(!card.contains("elo-stages") && !card.contains("| half"), "{card}");
    let (_, outcome) = merge(&dir, "found", &both);
    outcome.expect(2, &["already exists"]);
    // A run that ends early keeps what is done.
    let (failed, outcome) =
        merge(&dir, "late", &both.replace("t: 0.25", "t: [{filter: mlp, value: 1}]"));
    assert_eq!(outcome.code(), Some(3), "{outcome}");
    assert!(!failed.exists());
    let (again, outcome) = merge(&dir, "late", &both);
    outcome.expect(0, &["`half` is made"]);
    assert_same(&weights_and_config(&again), &weights_and_config(&wanted), "after a failure");
    for (yaml, words) in [
        (both.replace("name: half\n", ""), "document 1: has no `name`"),
        (both.replace("name: half", "name: other"), "no later document uses `other`"),
        (both.replace("name: half", "name: ../half"), "is no name of a directory"),
        (both.replace("weight: 0.5", "wait: 0.5"), "document 1: parameters.wait"),
        (both.replace("mrg32-c", "nowhere"), "nowhere"),
    ] {
        let (out, outcome) = merge(&dir, "refused", &yaml);
        outcome.expect(3, &[words]);
        assert!(!out.exists() && !dir.path().join(".refused.elo-stages").exists());
    }
}

#[test]
fn the_record_has_the_seed() {
    let dir = TempDir::new().unwrap();
    let out = merged(&dir, "out", PAIR);
    let record: Value =
        serde_json::from_str(&fs::read_to_string(out.join("elo-surgery.json")).unwrap()).unwrap();
    assert_eq!(record["operation"]["parameters"]["random_seed"], 0);
}

/// The vote of the TIES paper, element by element.
#[test]
fn the_papers_vote_has_no_weights() {
    let dir = TempDir::new().unwrap();
    let yaml = |more: &str| {
        format!(
            "merge_method: ties\nbase_model: models/mrg32-base\nmodels: [{{model: models/mrg32-a, parameters: {{weight: 0.9}}}}, {{model: models/mrg32-b, parameters: {{weight: 0.25}}}}]\n{more}"
        )
    };
    let values = |bytes: &[u8]| -> Vec<f32> {
        let value = |b: &[u8]| f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
        bytes.chunks_exact(4).map(value).collect()
    };
    let paper = bytes(&merged(&dir, "paper", &yaml("elo_surgery: {consensus: paper}\n")));
    let weighted = bytes(&merged(&dir, "weighted", &yaml("")));
    let [base, a, b] = ["base", "a", "b"]
        .map(|name| bytes(&golden("models/mrg32-").with_file_name(format!("mrg32-{name}"))));
    let mut differing = 0;
    for (name, found) in &paper {
        let of = |model: &BTreeMap<String, Vec<u8>>| values(&model[name]);
        let (found, other) = (values(found), of(&weighted));
        let (base, a, b) = (of(&base), of(&a), of(&b));
        for (i, found) in found.iter().enumerate() {
            let deltas = [(0.9_f32, a[i] - base[i]), (0.25, b[i] - base[i])];
            let negative = deltas[0].1 + deltas[1].1 < 0.0;
            let (mut sum, mut weights) = (-0.0_f32, 0.0_f32);
            for (weight, delta) in deltas {
                if if negative { delta < 0.0 } else { delta > 0.0 } {
                    sum += weight * delta;
                    weights += weight;
                }
            }
            let wanted = base[i] + sum / if weights == 0.0 { 1.0 } else { weights };
            assert_eq!(found.to_bits(), wanted.to_bits(), "{name} {i}");
            differing += usize::from(found.to_bits() != other[i].to_bits());
        }
    }
    assert!(differing > 500, "the weighted vote is another: {differing}");
}

/// Weights times importances, with the sum that the weights had.
#[test]
fn importances_share_weights_out() {
    let dir = TempDir::new().unwrap();
    let file = |name: &str, of: &dyn Fn(&str) -> f64| {
        let names = bytes(&golden("models/mrg32-a")).into_keys();
        let numbers: BTreeMap<String, f64> = names
            .map(|name| {
                let number = of(&name);
                (name, number)
            })
            .collect();
        let path = dir.path().join(name);
        fs::write(&path, serde_json::to_string(&numbers).unwrap()).unwrap();
        path
    };
    let is_mlp = |name: &str| name.contains(".mlp.");
    let of_a = file("a.json", &|name| if is_mlp(name) { 3.0 } else { 2.0 });
    let of_b = file("b.json", &|name| if is_mlp(name) { 1.0 } else { 2.0 });
    let yaml = |a: f64, b: f64, importance: &str| {
        format!(
            "merge_method: task_arithmetic\nbase_model: models/mrg32-base\nmodels: [{{model: models/mrg32-a, parameters: {{weight: {a}}}}}, {{model: models/mrg32-b, parameters: {{weight: {b}}}}}]\n{importance}"
        )
    };
    let key = |a: &Path, b: &Path| {
        format!(
            "elo_surgery: {{importance: [{{model: models/mrg32-a, file: '{}'}}, {{model: models/mrg32-b, file: '{}'}}]}}\n",
            a.display(),
            b.display()
        )
    };
    let found = bytes(&merged(&dir, "found", &yaml(0.5, 0.5, &key(&of_a, &of_b))));
    let shared = bytes(&merged(&dir, "shared", &yaml(0.75, 0.25, "")));
    let alike = bytes(&merged(&dir, "alike", &yaml(0.5, 0.5, "")));
    for (name, found) in &found {
        let wanted = if is_mlp(name) { &shared[name] } else { &alike[name] };
        assert!(found == wanted, "{name}");
    }
    // What `diff` prints is such a file.
    let diff = |model: &str| {
        let text = elo("diff --json models/mrg32-base").arg(model).within(&golden("")).ok().stdout;
        let path = dir.path().join("diff.json");
        fs::write(&path, text).unwrap();
        path
    };
    let by_diff = key(&diff("models/mrg32-a"), &of_b);
    let by_diff = bytes(&merged(&dir, "diff", &yaml(0.5, 0.5, &by_diff)));
    assert!(by_diff.keys().eq(found.keys()) && by_diff != found);
    let missing = dir.path().join("less.json");
    fs::write(&missing, r#"{"lm_head.weight": 1}"#).unwrap();
    for (importance, words) in [
        (
            key(&of_a, &missing),
            "have no number for this tensor (`model.embed_tokens.weight` and 37 more)",
        ),
        (key(&of_a, Path::new("fisher.safetensors")), "cannot be opened"),
        (key(&of_a, Path::new("nowhere.json")), "cannot be read"),
        (
            "elo_surgery: {importance: [{model: models/mrg32-a, file: a.json}]}\n".into(),
            "`models/mrg32-b` has none",
        ),
        (
            "elo_surgery: {importance: [{model: models/mrg32-base, file: a.json}]}\n".into(),
            "is the base",
        ),
        (
            "elo_surgery: {importance: [{modl: models/mrg32-a, file: a.json}]}\n".into(),
            "did you mean `model`?",
        ),
    ] {
        let (_, outcome) = merge(&dir, "refused", &yaml(0.5, 0.5, &importance));
        outcome.expect(3, &[words]);
    }
}

/// An expression of `t` is a gradient, one of `layer` a value for each.
#[test]
fn expressions_are_values_by_layer() {
    let dir = TempDir::new().unwrap();
    let yaml = |rules: &str| {
        format!(
            "merge_method: task_arithmetic\nbase_model: models/mrg32-base\nmodels: [{{model: models/mrg32-a}}]\nparameters: {{weight: 0.25}}\n{rules}"
        )
    };
    let rules =
        |weight: &str| format!("elo_surgery: {{tensors: [{{layers: [0, 4], {weight}}}]}}\n");
    let found = merged(&dir, "found", &yaml(&rules("expressions: {weight: '0.5 * t'}")));
    let wanted = merged(&dir, "wanted", &yaml(&rules("parameters: {weight: [0, 0.5]}")));
    assert!(bytes(&found) == bytes(&wanted));
    let found =
        merged(&dir, "by-layer", &yaml(&rules("expressions: {weight: '(layer + 1) / layers'}")));
    let wanted =
        merged(&dir, "quarters", &yaml(&rules("parameters: {weight: [0.25, 0.5, 0.75, 1]}")));
    assert!(bytes(&found) == bytes(&wanted));
    let ties = "merge_method: ties\nbase_model: models/mrg32-base\nmodels: [{model: models/mrg32-a}]\nparameters: {weight: 1}\nelo_surgery: {tensors: [{match: '*', expressions: {density: '0.5 * layer'}}]}\n";
    let (_, outcome) = merge(&dir, "refused", ties);
    outcome.expect(
        3,
        &["elo_surgery.tensors[0]: `density` is 1.5, expected 0 to 1 (`model.layers.3."],
    );
}

/// Differences that were saved are those that are taken: the same bytes by every method that adds them.
#[test]
fn vectors_of_the_base_are_its_differences() {
    let dir = TempDir::new().unwrap();
    let vector = |model: &str| {
        let out = dir.path().join(format!("vector-{model}"));
        elo("chat-vector --no-sync --base models/mrg16-base")
            .with("--inst", format!("models/mrg16-{model}"))
            .with("--save-vector", &out)
            .within(&golden(""))
            .ok();
        format!("{{model: {{path: '{}'}}}}", out.display())
    };
    let (a, b) = (vector("a"), vector("b"));
    for (method, more) in [
        ("ties", "density: 0.5"),
        ("dare_ties", "density: 0.5"),
        ("della_linear", "density: 0.5"),
        ("breadcrumbs", "density: 0.5, gamma: 0.1"),
        ("ram", ""),
    ] {
        let yaml = |a: &str, b: &str| {
            let weight =
                if method == "ram" { String::new() } else { format!("weight: 0.5, {more}") };
            format!(
                "merge_method: {method}\nbase_model: models/mrg16-base\nmodels: [{{model: {a}, parameters: {{{weight}}}}}, {{model: {b}, parameters: {{{weight}}}}}]\n"
            )
        };
        let found = merged(&dir, &format!("{method}-vectors"), &yaml(&a, &b));
        let wanted = merged(&dir, method, &yaml("models/mrg16-a", "models/mrg16-b"));
        assert_same(&weights_and_config(&found), &weights_and_config(&wanted), method);
    }
}
