//! Models of several modules: what mergekit makes of them (`tests/peers/make_modules.py`), and what is refused.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use serde_json::{Map, Value};
use tempfile::TempDir;

use crate::chain::{digests, noise};
use crate::support::checkpoint::{Tensor, config, read_raw, write_sharded};
use crate::support::fixture;
use crate::support::process::{Outcome, elo};

/// Names of tensors as they lie on disk, and their dimensions.
type Shapes = BTreeMap<String, Vec<u64>>;

fn corpus() -> Value {
    serde_json::from_slice(&fs::read(fixture("modules/cases.json")).unwrap()).unwrap()
}

fn shapes(corpus: &Value, family: &str) -> Shapes {
    serde_json::from_value(corpus["families"][family]["shapes"].clone()).unwrap()
}

/// A model by the formula of the script: 0 is the base.
fn write(dir: &Path, config: &Value, shapes: &Shapes, salt: u64) {
    let tensor = |(at, (name, shape)): (u64, (&String, &Vec<u64>))| {
        let value = |i| match salt {
            0 => noise(i, at, 2000, 1.0 / 32768.0),
            _ => {
                let own = noise(i, 100 * salt + at, 200, 1.0 / 131_072.0);
                noise(i, at, 2000, 1.0 / 32768.0) + own
            }
        };
        let bytes = (0..shape.iter().product()).map(value).flat_map(f32::to_le_bytes).collect();
        Tensor::new(name, "F32", shape, bytes)
    };
    let tensors: Vec<Tensor> = (0..).zip(shapes).map(tensor).collect();
    fs::create_dir(dir).unwrap();
    write_sharded(dir, &tensors, 1);
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
}

/// The four models of every family, `FAMILY-base`, `FAMILY-a`, ..
fn models(corpus: &Value, only: &[&str]) -> TempDir {
    let temp = TempDir::new().unwrap();
    for family in only {
        for (salt, name) in (0..).zip(["base", "a", "b", "c"]) {
            let dir = temp.path().join(format!("{family}-{name}"));
            let shapes = shapes(corpus, family);
            write(&dir, &corpus["families"][family]["config"], &shapes, salt);
        }
    }
    temp
}

fn merge(models: &TempDir, text: &str, name: &str, args: &str) -> Outcome {
    let file = models.path().join(format!("{name}.yml"));
    fs::write(&file, text).unwrap();
    let run = elo("merge --no-sync").arg(file).with("--out", models.path().join(name));
    run.args(args.split_whitespace()).within(models.path()).run()
}

/// Every key of a config that counts layers.
fn counts(config: &Map<String, Value>, at: &str, found: &mut BTreeMap<String, Value>) {
    const COUNTS: [&str; 6] = [
        "num_hidden_layers",
        "num_layers",
        "num_decoder_layers",
        "encoder_layers",
        "decoder_layers",
        "depth",
    ];
    for (key, value) in config {
        match value {
            Value::Object(map) => counts(map, &format!("{at}{key}."), found),
            _ if COUNTS.contains(&key.as_str()) => {
                found.insert(format!("{at}{key}"), value.clone());
            }
            _ => {}
        }
    }
}

#[test]
fn every_bit_is_mergekits() {
    let corpus = corpus();
    let models = models(&corpus, &["gemma3", "t5", "qwen2_5_vl", "llava"]);
    let mut failed = Vec::new();
    for case in corpus["cases"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let mut text = case["config"].as_str().unwrap().to_owned();
        if name == "gemma3-left-out" {
            let outcome = merge(&models, &text, "refused", "");
            outcome.expect(3, &["`vision_tower` of `gemma3-a`", "its 53 tensors would be lost"]);
            text += "elo_surgery: {extra_tensors: drop}\n";
        }
        let outcome = merge(&models, &text, name, "--numerics mergekit");
        if outcome.code() != Some(0) {
            failed.push(format!("{name}: {outcome}"));
            continue;
        }
        let out = models.path().join(name);
        let mut found = digests(&out);
        let mut wanted: BTreeMap<String, String> =
            serde_json::from_value(case["tensors"].clone()).unwrap();
        if name == "qwen2_5_vl-whole" {
            // mergekit makes the projector's tensors twice, as two layers, and which of them stays is chance.
            found.retain(|name, _| !name.starts_with("visual.merger.mlp."));
            wanted.retain(|name, _| !name.starts_with("visual.merger.mlp."));
        }
        let names: BTreeSet<&String> = found.keys().chain(wanted.keys()).collect();
        for tensor in names {
            let (found, wanted) = (found.get(tensor), wanted.get(tensor));
            if found != wanted {
                failed.push(format!("{name}: {tensor}: {found:?} instead of {wanted:?}"));
            }
        }
        let mut told = BTreeMap::new();
        counts(config(&out).as_object().unwrap(), "", &mut told);
        let mut wanted: BTreeMap<String, Value> =
            serde_json::from_value(case["counts"].clone()).unwrap();
        if name == "llava-inferred" {
            // mergekit leaves the count of a module that it has inferred.
            wanted.insert("text_config.num_hidden_layers".to_owned(), 2.into());
        }
        wanted.iter().filter(|(key, value)| told.get(*key) != Some(*value)).for_each(
            |(key, value)| {
                failed.push(format!("{name}: {key} is {:?}, not {value}", told.get(key)));
            },
        );
    }
    assert!(failed.is_empty(), "{} problems:\n{}", failed.len(), failed.join("\n"));
}

#[test]
fn what_does_not_fit_is_told_at_once() {
    let corpus = corpus();
    let models = models(&corpus, &["gemma3"]);
    let text = "
merge_method: linear
parameters: {weight: 0.5}
modules:
  text_decodr: {models: [{model: gemma3-a}]}
  default: {models: [{model: gemma3-a}]}
  vision_tower:
    slices:
    - sources: [{model: gemma3-a, layer_range: [0, 1]}]
  multi_modal_projector: {models: [{model: gemma3-a}, {model: gemma3-b}]}
";
    let outcome = merge(&models, text, "odd", "");
    outcome.expect(
        3,
        &[
            "modules.text_decodr: `gemma3-a` has no such module, did you mean `text_decoder`?",
            "modules.default: `gemma3-a` has no such module (known: text_decoder, multi_modal_projector, vision_tower)",
            "modules.vision_tower.slices[0]: slices of `vision_tower` are (only of `text_decoder`): give `models` not supported yet",
        ],
    );
    assert!(!models.path().join("odd").exists());
    let slices = "merge_method: passthrough\nmodules:\n  text_decoder: {slices: [{sources: [{model: gemma3-a, layer_range: [2, 7]}]}]}\n";
    let outcome = merge(&models, slices, "far", "");
    outcome.expect(3, &["modules.text_decoder.slices[0].sources[0]: layer_range ends at 7"]);
}

/// Shapes alone do not tell how many heads a tower has.
#[test]
fn towers_of_other_dimensions_are_refused() {
    let corpus = corpus();
    let models = models(&corpus, &["gemma3"]);
    let mut odd = corpus["families"]["gemma3"]["config"].clone();
    odd["vision_config"]["num_attention_heads"] = 4.into();
    odd["text_config"]["num_attention_heads"] = 4.into();
    write(&models.path().join("odd"), &odd, &shapes(&corpus, "gemma3"), 5);
    let text = |tower: &str, decoder: &str| {
        format!(
            "merge_method: linear\nparameters: {{weight: 1}}\nmodules:\n  text_decoder: {{models: [{{model: gemma3-a}}, {{model: {decoder}}}]}}\n  vision_tower: {{models: [{{model: gemma3-b}}, {{model: {tower}}}]}}\n  multi_modal_projector: {{models: [{{model: gemma3-a}}]}}\n"
        )
    };
    let outcome = merge(&models, &text("odd", "gemma3-b"), "tower", "");
    outcome.expect(3, &["modules.vision_tower.models[1]: `odd` has `vision_config.num_attention_heads` 4, `gemma3-a` 2"]);
    assert!(!outcome.stderr.contains("text_config"), "{outcome}");
    let outcome = merge(&models, &text("gemma3-c", "odd"), "decoder", "");
    outcome.expect(3, &["modules.text_decoder.models[1]: `odd` has `num_attention_heads` 4"]);
    assert!(!outcome.stderr.contains("vision_config"), "{outcome}");
    merge(&models, &text("gemma3-c", "gemma3-b"), "fits", "").expect(0, &[]);
}

/// What a rule copies needs no module, and names count in the order of either version of transformers.
#[test]
fn rules_copy_what_no_module_names() {
    let corpus = corpus();
    let family = &corpus["families"]["llava"];
    let models = models(&corpus, &[]);
    // The names of the Hub.
    let on_hub = |name: &str| {
        let name = name.replace("model.language_model.", "language_model.model.");
        let name = name.replace("model.vision_tower.", "vision_tower.vision_model.");
        name.replace("model.multi_modal", "multi_modal")
            .replace("lm_head", "language_model.lm_head")
    };
    let shapes: Shapes =
        shapes(&corpus, "llava").iter().map(|(name, s)| (on_hub(name), s.clone())).collect();
    for (salt, name) in (1..).zip(["a", "b"]) {
        write(&models.path().join(name), &family["config"], &shapes, salt);
    }
    let text = "
merge_method: linear
parameters: {weight: 0.5}
modules:
  model.language_model.layers: {models: [{model: a}, {model: b}]}
  default: {models: [{model: b}]}
elo_surgery:
  tensors: [{match: 'vision_tower.*', copy: {model: a}}]
";
    let text = text.replace("{model: a}}]\n", "a}]\n");
    let outcome = merge(&models, &text, "out", "");
    assert_eq!(outcome.code(), Some(0), "{outcome}");
    let out = read_raw(&models.path().join("out"));
    let (a, b) = (read_raw(&models.path().join("a")), read_raw(&models.path().join("b")));
    assert_eq!(out.len(), a.len());
    for (name, tensor) in &out {
        let layers = name.starts_with("language_model.model.layers.");
        if name.starts_with("vision_tower.vision_model.encoder.")
            || name.starts_with("vision_tower")
        {
            assert_eq!(tensor.2, a[name].2, "{name}");
        } else if !layers {
            assert_eq!(tensor.2, b[name].2, "{name}");
        } else {
            let f32s = |bytes: &[u8]| -> Vec<f32> {
                bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
            };
            let halves = f32s(&a[name].2).into_iter().zip(f32s(&b[name].2));
            let halves: Vec<f32> = halves.map(|(a, b)| f32::midpoint(a, b)).collect();
            assert_eq!(f32s(&tensor.2), halves, "{name}");
        }
    }
}
