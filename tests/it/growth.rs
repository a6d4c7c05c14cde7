//! Growth and pruning: stacks of layers, blocks that change nothing, experts. `tests/peers/check_growth.py` compares what
//! the written models compute with transformers, for some sixty families.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::golden::golden;
use crate::support::checkpoint::{Raw, config, read, read_raw, sha256};
use crate::support::fixture;
use crate::support::process::{Outcome, elo};
use crate::support::tree::{assert_same, weights_and_config};

fn run(words: &str, model: &Path, out: &Path) -> Outcome {
    elo(words).arg(model).with("--out", out).arg("--no-sync").run()
}

/// A run that must succeed, in a directory of its own.
fn made(words: &str, model: &Path) -> (TempDir, PathBuf) {
    let temp = TempDir::new().unwrap();
    let out = temp.path().join("out");
    let outcome = run(words, model, &out);
    assert_eq!(outcome.code(), Some(0), "{outcome}");
    (temp, out)
}

#[track_caller]
fn refused(words: &str, model: &Path, code: i32, says: &[&str]) {
    let temp = TempDir::new().unwrap();
    let out = temp.path().join("out");
    run(words, model, &out).expect(code, says);
    assert!(!out.exists());
}

/// dtype, shape and bytes.
type Content = (String, Vec<u64>, Vec<u8>);

/// Tensors of layers by their layer and what follows it; the others under layer -1.
fn by_layer(raw: &Raw) -> BTreeMap<(i64, String), Content> {
    let place = |name: &str| match name.strip_prefix("model.layers.") {
        Some(rest) => {
            let (layer, suffix) = rest.split_once('.').unwrap();
            (layer.parse().unwrap(), suffix.to_owned())
        }
        None => (-1, name.to_owned()),
    };
    let mut found = BTreeMap::new();
    for (name, (dtype, shape, bytes, _)) in raw {
        found.insert(place(name), (dtype.clone(), shape.clone(), bytes.clone()));
    }
    found
}

/// What a stack must be, made anew; layers that are silent have zeros where `zero` says so.
fn assert_stack(out: &Path, model: &Path, stack: &[(i64, bool)], zero: impl Fn(&str) -> bool) {
    let (found, source) = (by_layer(&read_raw(out)), by_layer(&read_raw(model)));
    let mut expected = BTreeMap::new();
    for ((layer, suffix), tensor) in &source {
        if *layer < 0 {
            expected.insert((-1, suffix.clone()), tensor.clone());
        }
        for (place, _) in (0_i64..).zip(stack).filter(|(_, (from, _))| from == layer) {
            let mut tensor = tensor.clone();
            if stack[usize::try_from(place).unwrap()].1 && zero(suffix) {
                tensor.2.fill(0);
            }
            expected.insert((place, suffix.clone()), tensor);
        }
    }
    let names: Vec<_> = found.keys().collect();
    assert_eq!(names, expected.keys().collect::<Vec<_>>());
    for (name, tensor) in &expected {
        assert!(found[name] == *tensor, "{name:?}");
    }
    // And the index agrees with the shards.
    read(out);
}

fn loud(layers: impl IntoIterator<Item = i64>) -> Vec<(i64, bool)> {
    layers.into_iter().map(|layer| (layer, false)).collect()
}

#[test]
fn stacks_are_the_named_layers() {
    let model = golden("models/llama31-base");
    for (words, stack) in [
        ("layers --drop 2,-1", vec![0, 2, 3, 4]),
        ("layers --stack 1-4,3-6", vec![0, 1, 2, 3, 2, 3, 4, 5]),
        ("layers --stack 6,6,1", vec![5, 5, 0]),
        ("layers --repeat 2-3,5", vec![0, 1, 2, 1, 2, 3, 4, 4, 5]),
        ("layers --upscale 8", vec![0, 1, 2, 3, 2, 3, 4, 5]),
        ("layers --upscale 9", vec![0, 1, 2, 3, 4, 2, 3, 4, 5]),
        ("layers --upscale 12", vec![0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5]),
    ] {
        let (_temp, out) = made(words, &model);
        assert_stack(&out, &model, &loud(stack.clone()), |_| false);
        assert_eq!(config(&out)["num_hidden_layers"], stack.len(), "{words}");
    }
}

#[test]
fn a_stack_of_single_layers_is_an_extract() {
    for model in ["gemma2-v4", "qwen2-swa-v4", "qwen3moe", "gpt2"] {
        let model = golden("models").join(model);
        let (_a, stack) = made("layers --stack 1,3,last", &model);
        let (_b, extract) = made("extract --layers 1,3,last", &model);
        assert_same(&weights_and_config(&stack), &weights_and_config(&extract), "layers");
    }
}

#[test]
fn per_layer_settings_are_repeated() {
    let (_temp, out) = made("layers --repeat 1-2", &golden("models/gemma2"));
    let (sliding, full) = ("sliding_attention", "full_attention");
    let types = [sliding, full, sliding, full, sliding, full, sliding, full, sliding];
    assert_eq!(config(&out)["layer_types"], json!(types));
    let (_temp, out) = made("layers --repeat 1", &golden("models/qwen3moe"));
    assert_eq!(config(&out)["mlp_only_layers"], json!([0, 1]));
    let provenance: Value =
        serde_json::from_slice(&fs::read(out.join("elo-surgery.json")).unwrap()).unwrap();
    assert_eq!(provenance["layer_map"], json!({"of": 6, "layers": [1, 1, 2, 3, 4, 5, 6]}));
}

#[test]
fn stacks_that_cannot_be() {
    let model = golden("models/llama31-base");
    refused("layers --upscale 6", &model, 2, &["cannot be up-scaled to 6", "7 to 12"]);
    refused("layers --upscale 13", &model, 2, &["cannot be up-scaled to 13"]);
    refused("layers --drop all", &model, 2, &["no layer would be left"]);
    refused("layers --drop 7", &model, 2, &["layer 7 does not exist", "--drop 7"]);
    refused("layers", &model, 2, &["--drop"]);
    refused("layers --drop 1 --repeat 2", &model, 2, &["cannot be used with"]);
}

/// Whether zeros belong there in a block that hands on its input.
fn ends_branch(suffix: &str) -> bool {
    suffix.ends_with("o_proj.weight")
        || suffix.ends_with("down_proj.weight")
        || suffix.contains("c_proj.")
}

#[test]
fn expanded_blocks_are_copies_with_zeros() {
    for (model, words, stack) in [
        (
            "llama31-base",
            "expand --blocks 3",
            vec![
                (0, false),
                (1, false),
                (1, true),
                (2, false),
                (3, false),
                (3, true),
                (4, false),
                (5, false),
                (5, true),
            ],
        ),
        (
            "qwen3moe",
            "expand --after 1,last",
            vec![
                (0, false),
                (0, true),
                (1, false),
                (2, false),
                (3, false),
                (4, false),
                (5, false),
                (5, true),
            ],
        ),
    ] {
        let model = golden("models").join(model);
        let (_temp, out) = made(words, &model);
        assert_stack(&out, &model, &stack, ends_branch);
        assert_eq!(config(&out)["num_hidden_layers"], stack.len());
    }
    let temp = TempDir::new().unwrap();
    let told = run("expand --blocks 3", &golden("models/llama31-base"), &temp.path().join("o"));
    told.expect(0, &["the new layers are 3,6,9"]);
}

/// The function is kept to the bit: the built-in trainer computes the same loss, and another one where blocks are loud.
#[cfg(feature = "trainer")]
#[test]
fn expanded_models_compute_what_they_did() {
    use elo_surgery::trainer::{Slice, Step, Watch, evaluate};
    struct Silence;
    impl Watch for Silence {
        fn step(&self, _: &Step) {}
        fn warn(&self, _: &str) {}
    }
    let trainer = fixture("trainer");
    let slice = Slice { name: "text".into(), path: trainer.join("text.jsonl") };
    let loss = |model: &Path| {
        let slices = std::slice::from_ref(&slice);
        let found = evaluate(model, &trainer.join("tokenizer"), slices, 64, 1, &Silence).unwrap();
        assert!(found[0].tokens > 500);
        found[0].loss.to_bits()
    };
    for family in ["llama", "mistral", "qwen2", "qwen3"] {
        let model = trainer.join(family);
        let before = loss(&model);
        for words in ["expand --blocks 1", "expand --after all"] {
            let (_temp, out) = made(words, &model);
            assert_eq!(loss(&out), before, "{family}: {words}");
        }
        let (_temp, out) = made("layers --repeat last", &model);
        assert_ne!(loss(&out), before, "{family}");
    }
}

#[test]
fn blocks_that_would_not_be_identities() {
    let model = golden("models/llama31-base");
    refused("expand --blocks 7", &model, 2, &["6 layers, 7 blocks"]);
    refused("expand --blocks 0", &model, 2, &["0 blocks"]);
    let temp = TempDir::new().unwrap();
    let copy = |name: &str, change: &dyn Fn(&mut Value)| {
        let to = temp.path().join(name);
        fs::create_dir_all(&to).unwrap();
        for entry in fs::read_dir(&model).unwrap() {
            let path = entry.unwrap().path();
            fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
        }
        let mut config = config(&to);
        change(&mut config);
        fs::write(to.join("config.json"), config.to_string()).unwrap();
        to
    };
    let strange = copy("strange", &|config| config["model_type"] = json!("llamoid"));
    refused("expand --blocks 1", &strange, 3, &["not known how layers of the family `llamoid`"]);
    let normed = copy("normed", &|config| config["do_layer_norm_before"] = json!(false));
    refused("expand --blocks 1", &normed, 3, &["the residual stream itself is normed"]);
    let other = copy("other", &|config| config["model_type"] = json!("phi"));
    refused("expand --after 2", &other, 3, &["layer 2", "self_attn.dense"]);
}

/// Expert matrices by layer, expert and projection, whatever the layout.
fn expert_matrices(raw: &Raw) -> BTreeMap<(String, usize, String), Vec<u8>> {
    let mut found = BTreeMap::new();
    for (name, (_, shape, bytes, _)) in raw {
        let Some((layer, rest)) = name.split_once(".experts.") else { continue };
        let layer = layer.rsplit_once('.').unwrap().0.to_owned();
        if let Some((expert, matrix)) = rest.split_once('.') {
            let matrix = match matrix.strip_suffix(".weight").unwrap() {
                "w1" => "gate_proj",
                "w2" => "down_proj",
                "w3" => "up_proj",
                other => other,
            };
            found.insert((layer, expert.parse().unwrap(), matrix.to_owned()), bytes.clone());
            continue;
        }
        let count = usize::try_from(shape[0]).unwrap();
        for (e, expert) in bytes.chunks(bytes.len() / count).enumerate() {
            let mut insert = |matrix: &str, bytes: &[u8]| {
                found.insert((layer.clone(), e, matrix.to_owned()), bytes.to_vec());
            };
            match rest {
                "gate_up_proj" => {
                    let (gate, up) = expert.split_at(expert.len() / 2);
                    insert("gate_proj", gate);
                    insert("up_proj", up);
                }
                _ => insert("down_proj", expert),
            }
        }
    }
    found
}

#[test]
fn chosen_experts_stay_with_their_rows_of_the_router() {
    let model = golden("models/qwen3moe");
    let before = read_raw(&model);
    for (words, chosen) in [
        ("experts --keep 4,2", [[3, 1]; 5]),
        ("experts --drop 1,3", [[1, 3]; 5]),
        ("experts --keep 1,2 --keep 2-3:3,4", [[2, 3], [2, 3], [0, 1], [0, 1], [0, 1]]),
    ] {
        for layout in ["", " --expert-layout fused"] {
            let (_temp, out) = made(&format!("{words}{layout}"), &model);
            let after = read_raw(&out);
            read(&out);
            let (old, new) = (expert_matrices(&before), expert_matrices(&after));
            assert_eq!(new.len(), 5 * 2 * 3);
            for ((layer, place, matrix), bytes) in &new {
                let number: usize = layer.rsplit('.').next().unwrap().parse().unwrap();
                let from = chosen[number - 1][*place];
                assert!(
                    old[&(layer.clone(), from, matrix.clone())] == *bytes,
                    "{layer} {place} {matrix}"
                );
            }
            for (number, chosen) in (1..).zip(chosen) {
                let router = format!("model.layers.{number}.mlp.gate.weight");
                let row = |e: usize| &before[&router].2[e * 64..][..64];
                assert_eq!(after[&router].2, [row(chosen[0]), row(chosen[1])].concat());
                assert_eq!(after[&router].1, [2, 32]);
            }
            let config = config(&out);
            assert_eq!(
                (&config["num_local_experts"], &config["num_experts_per_tok"]),
                (&json!(2), &json!(2))
            );
            assert!(after.len() < before.len());
        }
    }
    let (_temp, out) = made("experts --keep 2", &model);
    assert_eq!(config(&out)["num_experts_per_tok"], 1);
}

#[test]
fn layouts_there_and_back() {
    let model = golden("models/qwen3moe");
    let (_a, fused) = made("experts --expert-layout fused", &model);
    let names: Vec<String> = read_raw(&fused).into_keys().collect();
    assert!(names.contains(&"model.layers.1.mlp.experts.gate_up_proj".to_owned()), "{names:?}");
    assert!(!names.iter().any(|name| name.contains(".experts.0.")));
    let (_b, back) = made("experts --expert-layout per-expert", &fused);
    let values = |root: &Path| -> BTreeMap<String, Vec<u8>> {
        read_raw(root).into_iter().map(|(name, tensor)| (name, tensor.2)).collect()
    };
    assert!(values(&back) == values(&model));
    assert_eq!(config(&back), config(&model));
}

#[test]
fn experts_that_cannot_be() {
    let model = golden("models/qwen3moe");
    refused("experts", &model, 2, &["--keep"]);
    refused("experts --keep 5", &model, 2, &["4 experts"]);
    refused("experts --keep 1,1", &model, 2, &["named once"]);
    refused("experts --drop 1-4", &model, 2, &["no expert would be left"]);
    refused("experts --keep 1:1,2", &model, 2, &["layer 1", "has no experts"]);
    refused("experts --keep 2:1,2", &model, 2, &["nothing is said of the experts of layer 3"]);
    refused("experts --keep 1,2 --keep 2:1", &model, 2, &["choose as many in every layer"]);
    refused("experts --dense 1,2", &model, 2, &["one expert a layer"]);
    // Its first layer is dense and twice as wide.
    refused("experts --dense 1", &model, 3, &["48 wide", "24"]);
    refused("experts --keep 1", &golden("models/llama31-base"), 3, &["no layers with a router"]);
}

/// Models under the names that the configurations of `fixtures/moe` use, with the tokenizer they were made with.
fn moe_workplace() -> TempDir {
    let temp = TempDir::new().unwrap();
    for model in ["llama31-base", "llama31-inst", "llama31-target", "qwen2-untied"] {
        let to = temp.path().join(model);
        fs::create_dir(&to).unwrap();
        for entry in fs::read_dir(golden("models").join(model)).unwrap() {
            let path = entry.unwrap().path();
            fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
        }
        let tokenizer = fixture("trainer/tokenizer/tokenizer.json");
        fs::copy(tokenizer, to.join("tokenizer.json")).unwrap();
        let settings = json!({"bos_token": "<|im_start|>", "eos_token": "<|endoftext|>"});
        fs::write(to.join("tokenizer_config.json"), settings.to_string()).unwrap();
    }
    temp
}

fn moe(dir: &TempDir, yaml: &str, flags: &str) -> Outcome {
    fs::write(dir.path().join("config.yml"), yaml).unwrap();
    let run = elo("moe config.yml --overwrite --no-sync --out out").within(dir.path());
    run.args(flags.split_whitespace()).run()
}

fn torch_name(dtype: &str) -> &'static str {
    match dtype {
        "BF16" => "bfloat16",
        "F32" => "float32",
        other => panic!("{other}"),
    }
}

/// Elements as f32.
fn floats(dtype: &str, bytes: &[u8]) -> Vec<f32> {
    match dtype {
        "BF16" => bytes
            .chunks_exact(2)
            .map(|b| f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16))
            .collect(),
        _ => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
    }
}

/// `tests/peers/make_moe.py` made these with mergekit-moe: all weights bit for bit, routers by prompts up to the rounding of sums
/// in f32, and what the config says.
#[cfg(feature = "trainer")]
#[test]
fn mixtures_are_those_of_mergekit() {
    let dir = moe_workplace();
    for name in ["mixtral", "mixtral-f32", "deepseek", "qwen2", "qwen-from-llama"] {
        let yaml = fs::read_to_string(fixture("moe").join(format!("{name}.yml"))).unwrap();
        let expected: Value =
            serde_json::from_slice(&fs::read(fixture("moe").join(format!("{name}.json"))).unwrap())
                .unwrap();
        let fused =
            expected["tensors"].as_object().unwrap().keys().any(|n| n.ends_with("gate_up_proj"));
        let flags = if fused { "--expert-layout fused" } else { "" };
        let flags = format!("{flags} --identical-experts");
        let outcome = moe(&dir, &yaml, &flags);
        assert_eq!(outcome.code(), Some(0), "{name}: {outcome}");
        let out = dir.path().join("out");
        let mut found = read_raw(&out);
        let layers = expected["layers"].as_u64().unwrap();
        for (kind, router) in expected["routers"].as_object().unwrap() {
            let mut seen = Vec::new();
            for layer in 0..layers {
                let full = format!("model.layers.{layer}.mlp.{kind}");
                let (dtype, shape, bytes, _) =
                    found.remove(&full).unwrap_or_else(|| panic!("{name}: {full}"));
                assert_eq!(
                    json!([torch_name(&dtype), shape]),
                    json!([router["dtype"], router["shape"]]),
                    "{name}: {full}"
                );
                let values = floats(&dtype, &bytes);
                if let Some(wanted) = router["values"].as_array() {
                    for (value, wanted) in values.iter().zip(wanted) {
                        let wanted = wanted.as_f64().unwrap();
                        // One unit in the last place of bf16, where f32 sums fall on both sides of a seam.
                        let bound = wanted.abs() / 128.0 + 1e-6;
                        assert!(
                            (f64::from(*value) - wanted).abs() <= bound,
                            "{name}: {full}: {value} {wanted}"
                        );
                    }
                } else {
                    assert!(!seen.contains(&values), "{name}: routers must differ");
                    seen.push(values);
                }
            }
        }
        for (tensor, wanted) in expected["tensors"].as_object().unwrap() {
            let (dtype, shape, bytes, _) =
                found.remove(tensor).unwrap_or_else(|| panic!("{name}: {tensor} is missing"));
            let own =
                json!({"dtype": torch_name(&dtype), "shape": shape, "sha256": sha256(&bytes)});
            assert_eq!(own, *wanted, "{name}: {tensor}");
        }
        assert!(found.is_empty(), "{name}: {:?}", found.keys());
        let own = config(&out);
        for (key, value) in expected["config"].as_object().unwrap() {
            assert_eq!(own[key], *value, "{name}: {key}");
        }
    }
}

#[test]
fn layouts_of_a_mixture_say_the_same() {
    let dir = moe_workplace();
    let yaml = "base_model: llama31-base\ngate_mode: random\nexperts:\n- source_model: llama31-inst\n- source_model: llama31-target\n  residual_scale: 0.5\n";
    moe(&dir, yaml, "").expect(0, &[]);
    let single = read_raw(&dir.path().join("out"));
    assert!(single.contains_key("model.layers.5.block_sparse_moe.experts.1.w2.weight"));
    moe(&dir, yaml, "--expert-layout fused").expect(0, &[]);
    let fused = read_raw(&dir.path().join("out"));
    let matrices = expert_matrices(&single);
    assert_eq!(matrices.len(), 6 * 2 * 3);
    let unblocked = |found: BTreeMap<(String, usize, String), Vec<u8>>| -> Vec<Vec<u8>> {
        found.into_values().collect()
    };
    assert!(unblocked(matrices) == unblocked(expert_matrices(&fused)));
    // Expert layouts convert into each other afterwards, too.
    let out = dir.path().join("out");
    let (_temp, back) = made("experts --expert-layout per-expert", &out);
    let names: Vec<String> = read_raw(&back).into_keys().collect();
    assert_eq!(names, single.keys().cloned().collect::<Vec<_>>());
    // The experts come out as they went in.
    let (_temp, dense) = made("experts --dense 1", &back);
    let (dense, inst) = (read_raw(&dense), read_raw(&dir.path().join("llama31-inst")));
    for (name, tensor) in dense.iter().filter(|(name, _)| name.contains(".mlp.")) {
        assert!(tensor.2 == inst[name].2, "{name}");
    }
}

#[test]
fn random_routers_follow_their_seed() {
    let dir = moe_workplace();
    let yaml = |mode: &str| {
        format!(
            "base_model: llama31-base\ngate_mode: {mode}\ndtype: float32\nexperts:\n- source_model: llama31-inst\n- source_model: llama31-target\n"
        )
    };
    let routers = |mode: &str, flags: &str| -> Vec<f32> {
        moe(&dir, &yaml(mode), flags).expect(0, &[]);
        let raw = read_raw(&dir.path().join("out"));
        let routers = raw.iter().filter(|(name, _)| name.ends_with(".gate.weight"));
        routers.flat_map(|(_, tensor)| floats("F32", &tensor.2)).collect()
    };
    let first = routers("random", "");
    assert_eq!(first.len(), 6 * 2 * 64);
    assert_eq!(first, routers("random", "--seed 0 -j 3 --tile 64KiB"));
    assert_ne!(first, routers("random", "--seed 1"));
    #[expect(clippy::cast_precision_loss, reason = "a small count")]
    let deviation = |values: &[f32]| {
        (values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / values.len() as f64).sqrt()
    };
    assert!((deviation(&first) - 1.0).abs() < 0.1, "{}", deviation(&first));
    let uniform = routers("uniform_random", "");
    assert!(uniform.iter().all(|v| v.abs() <= 0.125));
    assert!((deviation(&uniform) - 0.125 / 3.0_f64.sqrt()).abs() < 0.01);
}

#[test]
fn configurations_that_cannot_be() {
    let dir = moe_workplace();
    let problems = "base_model: llama31-base
gate_mod: random
gate_mode: hidden
experts_per_token: 3
experts:
- source_model: llama31-inst
  positive_prompt: [a]
  noise_scale: 0.1
- residual_scale: x
";
    moe(&dir, problems, "").expect(
        3,
        &[
            "gate_mod: is not a known key, did you mean `gate_mode`?",
            "gate_mode: `hidden` wants the hidden states",
            "experts[0].positive_prompt: is not a known key, did you mean `positive_prompts`?",
            "experts[0].noise_scale: adding noise to weights is not supported yet",
            "experts[1]: has no `source_model`",
            "experts[1].residual_scale: is text",
            "experts_per_token: is 3, there are 1 experts",
        ],
    );
    let one = |more: &str| format!("base_model: llama31-base\nexperts_per_token: 1\n{more}");
    moe(&dir, &one("experts:\n- source_model: llama31-inst\n"), "")
        .expect(3, &["which is what is meant if it is not given"]);
    let experts = "gate_mode: cheap_embed\nexperts:\n- source_model: llama31-inst\n  positive_prompts: [a]\n- source_model: llama31-inst\n";
    moe(&dir, &one(experts), "")
        .expect(3, &["experts[1]: has no `positive_prompts`", "--identical-experts"]);
    let shared = "gate_mode: random\narchitecture: mixtral\nexperts:\n- source_model: llama31-inst\nshared_experts:\n- source_model: llama31-inst\n";
    moe(&dir, &one(shared), "").expect(3, &["Mixtral: has no shared experts"]);
    let other = "gate_mode: random\nexperts:\n- source_model: qwen2-untied\n";
    moe(&dir, &one(other), "").expect(3, &["is of the family qwen2"]);
    let unknown =
        "gate_mode: random\narchitecture: olmoe\nexperts:\n- source_model: llama31-inst\n";
    moe(&dir, &one(unknown), "").expect(3, &["there is no `olmoe`"]);
    assert!(!dir.path().join("out").exists());
}
