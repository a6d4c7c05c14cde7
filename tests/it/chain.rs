//! `merge --numerics mergekit`: the bits that mergekit itself makes of the same configurations (`tests/peers/make_chain.py`).

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use elo_surgery::Error;
use elo_surgery::engine::{Execution, Observer, execute};
use elo_surgery::plan::Plan;
use half::{bf16, f16};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::golden::{cases, golden};
use crate::support::checkpoint::{Tensor, read, read_raw, sha256, write_sharded};
use crate::support::fixture;
use crate::support::process::{Elo, elo};

const SHAPES: [(&str, &[u64]); 12] = [
    ("lm_head.weight", &[160, 64]),
    ("model.embed_tokens.weight", &[160, 64]),
    ("model.layers.0.input_layernorm.weight", &[64]),
    ("model.layers.0.mlp.down_proj.weight", &[64, 96]),
    ("model.layers.0.mlp.gate_proj.weight", &[96, 64]),
    ("model.layers.0.mlp.up_proj.weight", &[96, 64]),
    ("model.layers.0.post_attention_layernorm.weight", &[64]),
    ("model.layers.0.self_attn.k_proj.weight", &[32, 64]),
    ("model.layers.0.self_attn.o_proj.weight", &[64, 64]),
    ("model.layers.0.self_attn.q_proj.weight", &[64, 64]),
    ("model.layers.0.self_attn.v_proj.weight", &[32, 64]),
    ("model.norm.weight", &[64]),
];

/// A few different values: multiples of `scale` from `-steps` to `steps`.
#[expect(clippy::cast_precision_loss, reason = "small numbers")]
pub(crate) fn noise(i: u64, salt: u64, steps: u64, scale: f32) -> f32 {
    let mixed = ((i + salt * 1_000_003) * 2_654_435_761) & 0xffff_ffff;
    let mixed = ((mixed ^ (mixed >> 15)) * 2_246_822_519) & 0xffff_ffff;
    (((mixed >> 7) % (2 * steps + 1)) as f32 - steps as f32) * scale
}

/// The models that the script writes by the same formula.
fn write_wide(root: &Path, name: &str, salt: u64, kind: &str) {
    let tensor = |(at, (name, shape)): (usize, &(&str, &[u64]))| {
        let at = at as u64;
        let values = (0..shape.iter().product()).map(|i| {
            let base = noise(i, at, 2000, 1.0 / 32768.0);
            if salt == 0 { base } else { base + noise(i, 100 * salt + at, 200, 1.0 / 131_072.0) }
        });
        let (dtype, bytes) = match kind {
            "bf16" => ("BF16", values.flat_map(|v| bf16::from_f32(v).to_le_bytes()).collect()),
            "f16" => ("F16", values.flat_map(|v| f16::from_f32(v).to_le_bytes()).collect()),
            _ => ("F32", values.flat_map(f32::to_le_bytes).collect()),
        };
        Tensor::new(name, dtype, shape, bytes)
    };
    let tensors: Vec<Tensor> = SHAPES.iter().enumerate().map(tensor).collect();
    write_sharded(root, &tensors, 1);
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 160, "hidden_size": 64,
        "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 16, "tie_word_embeddings": false, "rms_norm_eps": 1e-5, "max_position_embeddings": 64,
    });
    fs::write(root.join("config.json"), config.to_string()).unwrap();
    assert!(root.join("model.safetensors").exists(), "{name}");
}

/// A directory with the models of all cases.
fn models() -> TempDir {
    let temp = TempDir::new().unwrap();
    for entry in fs::read_dir(golden("models")).unwrap() {
        let entry = entry.unwrap();
        std::os::unix::fs::symlink(entry.path(), temp.path().join(entry.file_name())).unwrap();
    }
    for kind in ["bf16", "f16", "f32"] {
        for (salt, name) in (0..).zip(["base", "a", "b", "c"]) {
            let name = format!("wide-{name}-{kind}");
            fs::create_dir(temp.path().join(&name)).unwrap();
            write_wide(&temp.path().join(&name), &name, salt, kind);
        }
    }
    temp
}

fn corpus() -> (u64, Vec<Value>) {
    let text = fs::read(fixture("chain/cases.json")).unwrap();
    let mut corpus: Value = serde_json::from_slice(&text).unwrap();
    let cases: Vec<Value> = serde_json::from_value(corpus["cases"].take()).unwrap();
    assert!(cases.len() > 50);
    (corpus["seed"].as_u64().unwrap(), cases)
}

fn case<'a>(cases: &'a [Value], name: &str) -> &'a Value {
    cases.iter().find(|case| case["name"] == name).unwrap()
}

fn merge(models: &Path, case: &Value, out: &Path, args: &str) -> Elo {
    let config = models.join("config.yml");
    fs::write(&config, case["config"].as_str().unwrap()).unwrap();
    let run = elo("merge --numerics mergekit --random-seed 7 --no-sync").arg(config);
    run.with("--out", out).args(args.split_whitespace()).within(models)
}

/// dtype and digest of each tensor, as in the corpus.
pub(crate) fn digests(out: &Path) -> BTreeMap<String, String> {
    let long = |short: &str| match short {
        "BF16" => "bfloat16",
        "F16" => "float16",
        "F32" => "float32",
        "F64" => "float64",
        other => panic!("{other}"),
    };
    let tensors = read_raw(out).into_iter();
    tensors
        .map(|(name, (dtype, _, bytes, _))| {
            (name, format!("{} {}", long(&dtype), &sha256(&bytes)[..16]))
        })
        .collect()
}

fn expected(case: &Value) -> BTreeMap<String, String> {
    serde_json::from_value(case["tensors"].clone()).unwrap()
}

#[test]
fn every_bit_is_mergekits() {
    let (models, (seed, cases)) = (models(), corpus());
    assert_eq!(seed, 7);
    let mut failed = Vec::new();
    for case in &cases {
        let name = case["name"].as_str().unwrap();
        let out = models.path().join(format!("out-{name}"));
        let outcome = merge(models.path(), case, &out, "").run();
        if outcome.code() != Some(0) {
            failed.push(format!("{name}: {outcome}"));
            continue;
        }
        let (found, wanted) = (digests(&out), expected(case));
        assert_eq!(found.keys().collect::<Vec<_>>(), wanted.keys().collect::<Vec<_>>(), "{name}");
        let odd: Vec<&String> = found.keys().filter(|name| found[*name] != wanted[*name]).collect();
        if !odd.is_empty() {
            failed.push(format!("{name}: {odd:?}"));
        }
    }
    assert!(failed.is_empty(), "{} of {} cases:\n{}", failed.len(), cases.len(), failed.join("\n"));
}

/// The golden corpus has tolerances; of these methods nothing is tolerated here.
#[test]
fn golden_merges_are_equal_in_every_bit() {
    let temp = TempDir::new().unwrap();
    let exact =
        ["linear", "task_arithmetic", "passthrough", "ties", "breadcrumbs", "ram", "nearswap"];
    let mut compared = 0;
    for case in cases("merge") {
        let name = case["name"].as_str().unwrap();
        let Some(expected) = case["expected"].as_str() else { continue };
        if !exact.iter().any(|method| name.starts_with(method)) {
            continue;
        }
        let out = temp.path().join(name);
        let run = elo("merge --numerics mergekit --no-sync").with("--out", &out);
        run.arg(golden(case["config"].as_str().unwrap())).within(&golden("")).ok();
        assert_eq!(read(&out), read(&golden(expected)), "{name}");
        compared += 1;
    }
    assert!(compared >= 5, "{compared} cases");
}

#[test]
fn threads_and_tiles_change_nothing() {
    let (models, (_, cases)) = (models(), corpus());
    for name in ["dare_ties-gradient", "della-bf16", "ties-rescale-f32", "ramplus_tl-bf16"] {
        let case = case(&cases, name);
        for (i, args) in
            ["--tile 64KiB -j 1", "--tile 64KiB -j 5 --io read", "-j 3 --shard-size 20KB"]
                .into_iter()
                .enumerate()
        {
            let out = models.path().join(format!("out-{name}-{i}"));
            merge(models.path(), case, &out, args).ok();
            assert_eq!(digests(&out), expected(case), "{name} {args}");
        }
    }
}

#[test]
fn seeds_change_masks_and_are_told() {
    let (models, (_, cases)) = (models(), corpus());
    let case = case(&cases, "dare_linear-f32");
    let out = models.path().join("out");
    let config = models.path().join("seeded.yml");
    fs::write(&config, case["config"].as_str().unwrap()).unwrap();
    let run = |seed: &str| {
        let run = elo("merge --numerics mergekit --no-sync --overwrite").arg(&config);
        run.with("--out", &out).with("--random-seed", seed).within(models.path())
    };
    run("8").ok();
    assert_ne!(digests(&out), expected(case));
    let record: Value =
        serde_json::from_slice(&fs::read(out.join("elo-surgery.json")).unwrap()).unwrap();
    assert_eq!(record["operation"]["parameters"]["numerics"], "mergekit");
    assert_eq!(record["operation"]["parameters"]["random_seed"], 8);
    run("4294967296").run().expect(2, &["32 bits", "--random-seed"]);
}

#[test]
fn what_it_cannot_do_is_refused() {
    let models = models();
    let out = models.path().join("out");
    let refused = |rest: &str, words: &[&str]| {
        let models_of = "base_model: wide-base-f32\nmodels:\n- model: wide-a-f32\n  parameters: ";
        let case = json!({"config": format!("{models_of}{rest}\n")});
        merge(models.path(), &case, &out, "").run().expect(3, words);
        assert!(!out.exists());
    };
    refused(
        "{weight: 1, density: 0.9, epsilon: 0.2}\nmerge_method: della",
        &["epsilon", "between 0 and 1"],
    );
    refused(
        "{weight: 1, density: 0.5}\nmerge_method: ties\nelo_surgery: {consensus: paper}",
        &["papers' variants", "--numerics precise"],
    );
    refused(
        "{weight: 1, density: 0.5}\nmerge_method: ties\ndtype: float64\nparameters: {rescale: true}",
        &["float64", "--numerics precise"],
    );
}

/// Methods whose result depends on the order of long sums are those of precise arithmetic, and the plan says so.
#[test]
fn a_method_without_a_chain_is_precise_and_says_so() {
    let models = models();
    let config = models.path().join("slerp.yml");
    let text = "merge_method: slerp\nbase_model: wide-base-bf16\nmodels: [{model: wide-a-bf16}]\nparameters: {t: 0.3}\n";
    fs::write(&config, text).unwrap();
    let run = |numerics: &str| {
        let out = models.path().join(format!("out-{numerics}"));
        let run = elo("merge --no-sync").with("--numerics", numerics).arg(&config);
        (run.with("--out", &out).within(models.path()).ok(), digests(&out))
    };
    let ((outcome, chained), (_, precise)) = (run("mergekit"), run("precise"));
    assert_eq!(chained, precise);
    outcome.expect(0, &["slerp is computed in precise arithmetic"]);
}

/// Lets a run ask so often whether to go on, and then ends it.
struct Patience(AtomicU64);

impl Observer for Patience {
    fn cancelled(&self) -> bool {
        let left =
            self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        left.is_err()
    }
}

#[test]
fn an_interrupted_run_continues_with_the_same_random_numbers() {
    let (models, (_, cases)) = (models(), corpus());
    for name in ["dare_ties-gradient", "ties-rescale-bf16"] {
        let case = case(&cases, name);
        let root = models.path().to_str().unwrap();
        let text = case["config"].as_str().unwrap();
        let text = text.replace("mrg32-", &format!("{root}/mrg32-"));
        let config = models.path().join("whole.yml");
        fs::write(&config, text.replace("wide-", &format!("{root}/wide-"))).unwrap();
        let words = "plan merge --numerics mergekit --random-seed 7 --shard-size 16KB";
        let plan = elo(words).arg(&config).within(models.path()).ok();
        let plan: Plan = serde_json::from_str(&plan.stdout).unwrap();
        plan.validate().unwrap();
        assert!(plan.shards.len() > 1);
        let out = models.path().join(format!("out-{name}"));
        let how = Execution { threads: 1, sync: false, tile: 4 << 10, ..Execution::to(&out) };
        let mut interrupted = 0;
        for patience in (3..).step_by(7) {
            match execute(&plan, &how, &Patience(AtomicU64::new(patience))) {
                Ok(report) => {
                    assert!(report.resumed > 0);
                    break;
                }
                Err(Error::Interrupted { .. }) => {}
                Err(error) => panic!("{error}"),
            }
            assert!(!out.exists());
            interrupted += 1;
        }
        assert!(interrupted > 2, "{interrupted}");
        assert_eq!(digests(&out), expected(case), "{name}");
    }
}
