//! LoRA adapters: what PEFT makes of them, products computed here, references in merges, refusals.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::checkpoint::{Model, Tensor, config, read_raw, write_sharded};
use crate::support::fixture;
use crate::support::process::{Outcome, elo};
use crate::support::random::Random;

fn lora(name: &str) -> PathBuf {
    fixture("lora").join(name)
}

fn apply(into: &Path, adapters: &[String], out: &Path, more: &str) -> Outcome {
    let mut run =
        elo(&format!("lora apply --no-sync {more}")).with("--into", into).with("--out", out);
    for adapter in adapters {
        run = run.with("--adapter", adapter);
    }
    run.run()
}

/// Elements as f64, by the formats' definitions.
pub(crate) fn values(dtype: &str, bytes: &[u8]) -> Vec<f64> {
    match dtype {
        "F32" => bytes
            .chunks_exact(4)
            .map(|b| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]])))
            .collect(),
        "BF16" => bytes
            .chunks_exact(2)
            .map(|b| f64::from(half::bf16::from_le_bytes([b[0], b[1]]).to_f32()))
            .collect(),
        "F16" => bytes
            .chunks_exact(2)
            .map(|b| f64::from(half::f16::from_le_bytes([b[0], b[1]]).to_f32()))
            .collect(),
        "F64" => bytes
            .chunks_exact(8)
            .map(|b| f64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]))
            .collect(),
        other => panic!("{other}"),
    }
}

/// The largest difference of a tensor, and where.
fn farthest(found: &Path, expected: &Path) -> (f64, String) {
    let (found, expected) = (read_raw(found), read_raw(expected));
    let names: Vec<&String> = found.keys().collect();
    assert_eq!(names, expected.keys().collect::<Vec<_>>());
    let mut worst = (0.0, String::new());
    for (name, a) in &found {
        let b = &expected[name];
        assert_eq!((&a.0, &a.1), (&b.0, &b.1), "{name}");
        for (x, y) in values(&a.0, &a.2).into_iter().zip(values(&b.0, &b.2)) {
            if (x - y).abs() > worst.0 {
                worst = ((x - y).abs(), name.clone());
            }
        }
    }
    worst
}

#[test]
fn adapters_give_what_peft_merges() {
    let dir = TempDir::new().unwrap();
    for (base, adapters, expected) in [
        ("base", vec!["plain"], "plain-merged"),
        ("base", vec!["stable"], "stable-merged"),
        ("gpt2", vec!["conv"], "conv-merged"),
        ("base", vec!["stable:0.5", "stable:0.25"], "stable-twice"),
    ] {
        let out = dir.path().join(expected);
        let adapters: Vec<String> =
            adapters.iter().map(|name| lora(name).display().to_string()).collect();
        apply(&lora(base), &adapters, &out, "").expect(0, &[]);
        let (distance, tensor) = farthest(&out, &lora(expected));
        // f32 products of PEFT, of numbers below 2: a few units in the last place.
        assert!(distance < 5e-7, "{expected}: {distance} in {tensor}");
        let (far, _) = farthest(&out, &lora(base));
        assert!(far > 0.01, "{expected}: the adapter changes something");
        assert_eq!(config(&out), config(&lora(base)));
    }
}

/// An adapter for [`Model::tiny`] whose products are known here.
pub(crate) struct Made {
    /// Module to down `[r, in]` and up `[out, r]`.
    pub(crate) matrices: BTreeMap<String, (u64, Vec<f64>, Vec<f64>)>,
    pub(crate) scale: f64,
}

pub(crate) fn make_adapter(
    root: &Path,
    modules: &[(&str, [u64; 2])],
    rank: u64,
    seed: u64,
) -> Made {
    let mut random = Random::new(seed);
    let mut tensors = Vec::new();
    let mut matrices = BTreeMap::new();
    for (module, [outer, inner]) in modules {
        let down = random.bf16_weights(usize::try_from(rank * inner).unwrap());
        let up = random.bf16_weights(usize::try_from(outer * rank).unwrap());
        matrices.insert((*module).to_owned(), (rank, values("BF16", &down), values("BF16", &up)));
        let name = |side: &str| format!("base_model.model.{module}.lora_{side}.weight");
        tensors.push(Tensor::new(&name("A"), "BF16", &[rank, *inner], down));
        tensors.push(Tensor::new(&name("B"), "BF16", &[*outer, rank], up));
    }
    write_adapter(root, &tensors, &json!({"peft_type": "LORA", "r": rank, "lora_alpha": 3}));
    #[expect(clippy::cast_precision_loss, reason = "a small rank")]
    Made { matrices, scale: 3.0 / rank as f64 }
}

pub(crate) fn write_adapter(root: &Path, tensors: &[Tensor], settings: &Value) {
    write_sharded(root, tensors, 1);
    fs::rename(root.join("model.safetensors"), root.join("adapter_model.safetensors")).unwrap();
    fs::write(root.join("adapter_config.json"), settings.to_string()).unwrap();
}

impl Made {
    /// What a module's weight becomes, in f64, row by row.
    pub(crate) fn on(&self, module: &str, weight: &[f64], factor: f64) -> Vec<f64> {
        let Some((rank, down, up)) = self.matrices.get(module) else { return weight.to_vec() };
        let rank = usize::try_from(*rank).unwrap();
        let inner = down.len() / rank;
        let at = |n: usize| {
            let (row, column) = (n / inner, n % inner);
            let sum: f64 = (0..rank).map(|k| up[row * rank + k] * down[k * inner + column]).sum();
            weight[n] + factor * self.scale * sum
        };
        (0..weight.len()).map(at).collect()
    }
}

fn to_bf16(values: &[f64]) -> Vec<u8> {
    #[expect(clippy::cast_possible_truncation, reason = "the rounding that is meant")]
    let round = |value: &f64| half::bf16::from_f32(*value as f32).to_le_bytes();
    values.iter().flat_map(round).collect()
}

const MODULES: &[(&str, [u64; 2])] = &[
    ("model.layers.0.self_attn.q_proj", [32, 32]),
    ("model.layers.1.mlp.down_proj", [32, 64]),
    ("model.layers.3.mlp.up_proj", [64, 32]),
];

#[test]
fn bytes_are_the_rounded_sums_for_any_tile_and_way_of_reading() {
    let dir = TempDir::new().unwrap();
    let base = Model::tiny(1).at(dir.path(), "base");
    let adapter = dir.path().join("adapter");
    let made = make_adapter(&adapter, MODULES, 5, 2);
    let mut first = None;
    for (i, more) in ["", "--tile 64KiB -j1", "--io read", "--device cpu -j3"].iter().enumerate() {
        let out = dir.path().join(format!("out{i}"));
        apply(&base, &[format!("{}:-0.5", adapter.display())], &out, more).expect(0, &[]);
        let (found, own) = (read_raw(&out), read_raw(&base));
        for (name, (dtype, _, bytes, file)) in &found {
            let (_, _, old, old_file) = &own[name];
            let module = name.strip_suffix(".weight").unwrap();
            let expected = to_bf16(&made.on(module, &values(dtype, old), -0.5));
            assert!(*bytes == expected, "{name} with `{more}`");
            assert_eq!(file, old_file);
        }
        let text = fs::read_to_string(out.join("elo-surgery.json")).unwrap();
        let record: Value = serde_json::from_str(&text).unwrap();
        let roles: Vec<&str> = record["parents"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|p| p["role"].as_str())
            .collect();
        assert_eq!(roles, ["model", "adapter"]);
        let bytes: BTreeMap<String, Vec<u8>> = found.into_iter().map(|(n, t)| (n, t.2)).collect();
        assert!(*first.get_or_insert_with(|| bytes.clone()) == bytes);
    }
}

#[test]
fn plans_with_adapters_are_saved_and_carried_out() {
    let dir = TempDir::new().unwrap();
    let base = Model::tiny(1).at(dir.path(), "base");
    let adapter = dir.path().join("adapter");
    make_adapter(&adapter, MODULES, 3, 2);
    let plan = dir.path().join("plan.json");
    let (direct, saved) = (dir.path().join("direct"), dir.path().join("saved"));
    apply(&base, &[adapter.display().to_string()], &direct, "").expect(0, &[]);
    let run = elo("plan --save").arg(&plan).args(&["lora", "apply"]);
    run.with("--into", &base).with("--adapter", &adapter).ok();
    elo("apply --no-sync").arg(&plan).with("--out", &saved).ok();
    assert_eq!(farthest(&direct, &saved).0.to_bits(), 0.0_f64.to_bits());
    // A hostile plan is told, not carried out.
    let text = fs::read_to_string(&plan).unwrap();
    for (from, to) in [("\"first\": 0", "\"first\": 1"), ("\"scale\": 1.0", "\"scale\": 1e400")] {
        let broken = dir.path().join("broken.json");
        assert!(text.contains(from), "{text}");
        fs::write(&broken, text.replacen(from, to, 1)).unwrap();
        elo("apply --no-sync").arg(&broken).with("--out", dir.path().join("no")).fails(3);
    }
}

#[test]
fn merges_take_adapters_by_reference() {
    let dir = TempDir::new().unwrap();
    let base = Model::tiny(1).at(dir.path(), "base");
    Model::tiny(4).at(dir.path(), "other");
    let adapter = dir.path().join("adapter");
    let made = make_adapter(&adapter, MODULES, 4, 2);
    let applied = dir.path().join("applied");
    // In f32 nothing is lost, so that merging the applied model is the same.
    apply(&base, &[adapter.display().to_string()], &applied, "--dtype f32").expect(0, &[]);
    let merge = |name: &str, yaml: &str| {
        let (file, out) = (dir.path().join(format!("{name}.yml")), dir.path().join(name));
        fs::write(&file, yaml).unwrap();
        elo("merge --no-sync").arg(&file).with("--out", &out).within(dir.path()).ok();
        out
    };
    let of = |first: &str, method: &str| {
        format!(
            "merge_method: {method}\nbase_model: {first}\nmodels:\n- model: other\n  parameters: {{weight: 0.25}}\n- model: {first}\n  parameters: {{weight: 0.75}}\nparameters: {{t: 0.3}}\nout_dtype: bfloat16\n"
        )
    };
    for method in ["linear", "task_arithmetic"] {
        let short = of("base+adapter", method).replace("parameters: {t: 0.3}\n", "");
        let long = short.replace("base+adapter", "{model: {path: base}, lora: {path: ./adapter}}");
        let whole = short.replace("base+adapter", "applied");
        let a = merge(&format!("{method}-short"), &short);
        let b = merge(&format!("{method}-long"), &long);
        let c = merge(&format!("{method}-whole"), &whole);
        for other in [&b, &c] {
            assert_eq!(farthest(&a, other).0.to_bits(), 0.0_f64.to_bits(), "{method}");
        }
    }
    // Weights and thresholds that are found from whole tensors see the same values.
    for (method, parameters) in [
        ("slerp", "t: 0.3"),
        ("nearswap", "t: 0.01"),
        ("ties", "weight: 0.5, density: 0.4"),
        ("dare_ties", "weight: 0.5, density: 0.4"),
        ("della", "weight: 0.5, density: 0.4"),
        ("breadcrumbs", "weight: 0.5, density: 0.4, gamma: 0.05"),
        ("sce", "select_topk: 0.5"),
        ("arcee_fusion", ""),
    ] {
        let of = |name: &str| {
            format!(
                "merge_method: {method}\nbase_model: other\nmodels: [{{model: {name}}}]\nparameters: {{{parameters}}}\nout_dtype: bfloat16\n"
            )
        };
        let a = merge(&format!("{method}-short"), &of("base+adapter"));
        let c = merge(&format!("{method}-whole"), &of("applied"));
        assert_eq!(farthest(&a, &c).0.to_bits(), 0.0_f64.to_bits(), "{method}");
    }
    // A model alone is applied, not copied.
    let alone = merge("alone", "merge_method: passthrough\nmodels: [{model: base+adapter}]\n");
    let (found, own) = (read_raw(&alone), read_raw(&base));
    let module = "model.layers.1.mlp.down_proj";
    let (dtype, _, old, _) = &own[&format!("{module}.weight")];
    let expected = to_bf16(&made.on(module, &values(dtype, old), 1.0));
    assert!(found[&format!("{module}.weight")].2 == expected);
    let card = fs::read_to_string(alone.join("README.md")).unwrap();
    assert!(card.contains("with the adapter"), "{card}");
}

#[test]
fn nothing_of_an_adapter_is_dropped_in_silence() {
    let dir = TempDir::new().unwrap();
    let base = Model::tiny(1).at(dir.path(), "base");
    let adapter = dir.path().join("adapter");
    let out = dir.path().join("out");
    let settings = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 4});
    let tensor = |name: &str, shape: &[u64]| {
        let count: u64 = shape.iter().product();
        Tensor::new(name, "BF16", shape, vec![0; usize::try_from(count * 2).unwrap()])
    };
    let q = "base_model.model.model.layers.0.self_attn.q_proj";
    let (a, b) = (
        tensor(&format!("{q}.lora_A.weight"), &[2, 32]),
        tensor(&format!("{q}.lora_B.weight"), &[32, 2]),
    );
    let refused = |more: &[Tensor], settings: &Value, words: &[&str]| {
        write_adapter(&adapter, &[&[a.clone(), b.clone()], more].concat(), settings);
        apply(&base, &[adapter.display().to_string()], &out, "").expect(3, words);
        assert!(!out.exists());
    };
    let far = "base_model.model.model.layers.9.self_attn.q_proj";
    refused(
        &[tensor(&format!("{far}.lora_A.weight"), &[2, 32])],
        &settings,
        &["layers.9", "lora_B", "missing"],
    );
    let pair = |module: &str, down: [u64; 2], up: [u64; 2]| {
        [
            tensor(&format!("{module}.lora_A.weight"), &down),
            tensor(&format!("{module}.lora_B.weight"), &up),
        ]
    };
    refused(
        &pair(far, [2, 32], [32, 2]),
        &settings,
        &["no tensor `model.layers.9.self_attn.q_proj.weight`"],
    );
    let k = "base_model.model.model.layers.0.self_attn.k_proj";
    refused(
        &pair(k, [2, 32], [32, 2]),
        &settings,
        &["its product is [32, 32], the model's", "is [16, 32]"],
    );
    refused(&pair(k, [3, 32], [16, 3]), &settings, &["its rank is 3, the settings say 2"]);
    refused(
        &[tensor("base_model.model.new_head.weight", &[4])],
        &settings,
        &["no tensor `new_head.weight`"],
    );
    refused(
        &[tensor("base_model.model.lm_head.weight", &[100, 32])],
        &settings,
        &["[96, 32] instead of [100, 32]"],
    );
    refused(&[tensor(&format!("{k}.lora_magnitude_vector"), &[16])], &settings, &["DoRA"]);
    refused(
        &[],
        &json!({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "use_dora": true}),
        &["use_dora"],
    );
    refused(&[], &json!({"peft_type": "IA3"}), &["IA3"]);
    // All problems at once.
    let both =
        [tensor("base_model.model.x.weight", &[4]), tensor("base_model.model.y.weight", &[4])];
    refused(&both, &settings, &["`x.weight`", "`y.weight`"]);
    // A replaced tensor has no half.
    write_adapter(&adapter, &[tensor("base_model.model.lm_head.weight", &[96, 32])], &settings);
    apply(&base, &[format!("{}:0.5", adapter.display())], &out, "").expect(3, &["replaces", "0.5"]);
    // Pickles are not read.
    fs::remove_file(adapter.join("adapter_model.safetensors")).unwrap();
    fs::write(adapter.join("adapter_model.bin"), "pickle").unwrap();
    apply(&base, &[adapter.display().to_string()], &out, "")
        .expect(3, &["adapter_model.bin", "save_file"]);
    fs::remove_file(adapter.join("adapter_model.bin")).unwrap();
    apply(&base, &[adapter.display().to_string()], &out, "").expect(3, &["no LoRA adapter"]);
}
