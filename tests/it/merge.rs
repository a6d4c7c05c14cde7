//! Merging: what mergekit makes of the same configurations, within the tolerance of each case, and what is refused.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use elo_surgery::ops::merge::Config;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::golden::{cases, check_config, compare, golden, manifest};
use crate::support::checkpoint::{Tensor, config, read, read_raw, write_sharded};
use crate::support::process::{Outcome, elo};
use crate::support::tree::{assert_same, weights_and_config};

/// How far an output may be from the expected one.
#[derive(Debug, Default)]
struct Tolerance {
    atol: f64,
    rtol: f64,
    max_ulp: u64,
    /// Elements that may be beyond it.
    allow_elems: usize,
    /// Fraction of elements that may differ at all.
    max_diff_frac: f64,
    /// Tensors where f32 arithmetic itself decides.
    ignore: Vec<String>,
    /// Elements where mergekit chooses among equal magnitudes as its sort happens to: one byte each, not 0.
    ambiguous: Masks,
}

#[derive(Default)]
struct Masks(BTreeMap<String, Vec<u8>>);

impl std::fmt::Debug for Masks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "masks of {} tensors", self.0.len())
    }
}

impl Tolerance {
    fn of(case: &Value) -> Self {
        let number = |key: &str| case["tolerance"][key].as_f64();
        let count = |key: &str| case["tolerance"][key].as_u64().unwrap_or(0);
        let file = case["tolerance"]["mask"].as_str().map(golden);
        let masks = file.iter().flat_map(|file| raw(file.parent().unwrap()));
        Self {
            atol: number("atol").unwrap_or(0.0),
            rtol: number("rtol").unwrap_or(0.0),
            max_ulp: count("max_ulp"),
            allow_elems: usize::try_from(count("allow_elems")).unwrap(),
            max_diff_frac: number("max_diff_frac").unwrap_or(1.0),
            ignore: serde_json::from_value(case["tolerance"]["ignore"].clone()).unwrap_or_default(),
            ambiguous: Masks(masks.map(|(name, (_, _, bytes))| (name, bytes)).collect()),
        }
    }
}

/// Value and place in the order of all values of its format.
fn elements(dtype: &str, bytes: &[u8]) -> Vec<(f64, i64)> {
    let ordered = |bits: i64, sign: i64| if bits >= sign { sign - bits } else { bits };
    match dtype {
        "F32" => bytes
            .chunks_exact(4)
            .map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .map(|bits| (f64::from(f32::from_bits(bits)), ordered(bits.into(), 1 << 31)))
            .collect(),
        "BF16" => bytes
            .chunks_exact(2)
            .map(|b| u16::from_le_bytes([b[0], b[1]]))
            .map(|bits| {
                let value = f32::from_bits(u32::from(bits) << 16);
                (f64::from(value), ordered(bits.into(), 1 << 15))
            })
            .collect(),
        other => panic!("{other}"),
    }
}

type Raw = BTreeMap<String, (String, Vec<u64>, Vec<u8>)>;

fn raw(root: &Path) -> Raw {
    let tensors = read_raw(root).into_iter();
    tensors.map(|(name, (dtype, shape, bytes, _))| (name, (dtype, shape, bytes))).collect()
}

/// What is beyond the tolerance.
fn distance(found: &Raw, expected: &Raw, tolerance: &Tolerance) -> Vec<String> {
    let mut problems = Vec::new();
    let (mut total, mut differing, mut failing) = (0_usize, 0_usize, 0_usize);
    for name in found.keys().chain(expected.keys().filter(|name| !found.contains_key(*name))) {
        let (Some(a), Some(b)) = (found.get(name), expected.get(name)) else {
            problems.push(format!("{name} is in one of them only"));
            continue;
        };
        if (&a.0, &a.1) != (&b.0, &b.1) {
            problems.push(format!("{name}: {} {:?} instead of {} {:?}", a.0, a.1, b.0, b.1));
            continue;
        }
        if tolerance.ignore.contains(name) {
            continue;
        }
        let mask = tolerance.ambiguous.0.get(name);
        let pairs = elements(&a.0, &a.2).into_iter().zip(elements(&b.0, &b.2));
        for (i, ((a, at), (b, bt))) in pairs.enumerate() {
            total += 1;
            if mask.is_some_and(|mask| mask[i] != 0) {
                continue;
            }
            let near = (a - b).abs() <= tolerance.atol + tolerance.rtol * b.abs();
            differing += usize::from(at != bt);
            failing += usize::from(at != bt && !near && at.abs_diff(bt) > tolerance.max_ulp);
        }
    }
    #[expect(clippy::cast_precision_loss, reason = "a few thousand elements")]
    let too_many =
        differing as f64 > tolerance.max_diff_frac * total as f64 + tolerance.allow_elems as f64;
    if failing > tolerance.allow_elems || too_many {
        problems.push(format!("{differing} of {total} differ, {failing} beyond {tolerance:?}"));
    }
    problems
}

fn merge(config: &Path, out: &Path, args: &[&str]) -> Outcome {
    let run = elo("merge --no-sync").arg(config).with("--out", out).args(args);
    run.within(&golden("")).run()
}

fn check(case: &Value) -> Vec<String> {
    let temp = TempDir::new().unwrap();
    let out = temp.path().join("out");
    let args: Vec<&str> =
        case["args"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    let yaml = golden(case["config"].as_str().unwrap());
    let outcome = merge(&yaml, &out, &args);
    if let Some(words) = case["error"].as_array() {
        let words: Vec<&str> = words.iter().filter_map(Value::as_str).collect();
        outcome.expect(3, &words);
        assert!(!out.exists());
        return Vec::new();
    }
    if outcome.code() != Some(0) {
        return vec![outcome.to_string()];
    }
    assert_eq!(fs::read(out.join("mergekit_config.yml")).unwrap(), fs::read(yaml).unwrap());
    if case["manifest"].is_string() {
        let mut problems = compare(&read(&out), &manifest(case));
        let same = |other: &&Value| other["manifest"] == case["manifest"];
        if let Some(extract) = cases("elo-extract").iter().find(same) {
            problems.extend(check_config(extract, &config(&out)));
        }
        return problems;
    }
    let expected = golden(case["expected"].as_str().unwrap());
    let mut problems = distance(&raw(&out), &raw(&expected), &Tolerance::of(case));
    let (found, wanted) = (config(&out), config(&expected));
    for (key, value) in wanted.as_object().unwrap() {
        if found.get(key) != Some(value) {
            problems.push(format!("config.{key}: {:?} instead of {value}", found.get(key)));
        }
    }
    problems
}

#[test]
fn every_merge_is_what_mergekit_makes() {
    let cases = cases("merge");
    let mut failed = Vec::new();
    for case in &cases {
        let problems = check(case);
        if !problems.is_empty() {
            failed.push(format!("{}:\n  {}", case["name"], problems.join("\n  ")));
        }
    }
    assert!(failed.is_empty(), "{} of {} cases:\n{}", failed.len(), cases.len(), failed.join("\n"));
}

#[test]
fn the_comparison_has_teeth() {
    let right = raw(&golden("models/mrg32-a"));
    let exact = Tolerance { max_diff_frac: 1.0, ..Tolerance::default() };
    assert!(distance(&right, &right, &exact).is_empty());
    let mut wrong = right.clone();
    wrong.get_mut("lm_head.weight").unwrap().2[0] ^= 1;
    assert_eq!(distance(&wrong, &right, &exact).len(), 1);
    let one = Tolerance { max_ulp: 1, max_diff_frac: 1.0, ..Tolerance::default() };
    assert!(distance(&wrong, &right, &one).is_empty());
    let none = Tolerance { max_ulp: 1, ..Tolerance::default() };
    assert_eq!(distance(&wrong, &right, &none).len(), 1, "no element may differ");
    wrong.remove("lm_head.weight");
    assert_eq!(distance(&wrong, &right, &exact).len(), 1);
}

/// What a configuration is refused with.
fn refusal(yaml: &str) -> String {
    match Config::parse(yaml, "config.yml") {
        Ok(_) => "accepted".to_owned(),
        Err(error) => error.to_string(),
    }
}

#[test]
fn the_language_is_strict() {
    let mut told = String::new();
    for yaml in [
        "merge_method: linear\nmodules: {}\n",
        "merge_method: linear\nmodules: {text: [a], vision: {slices: [{sources: [{model: a, layer_range: [0, 2]}, {model: b, layer_range: [0, 3]}]}]}}\n",
        "merge_method: linaer\nmodels: [{model: a, parameters: {weight: 1}}]\n",
        "merge_method: linear\nmodel: [{model: a}]\n",
        "merge_method: linear\nmodels: [a, b]\n",
        "merge_method: linear\nmodels:\n- model: a\n  parameters: {weigth: 1, normalize: false}\n- model: b\n  parameters: {weight: heavy}\n",
        "merge_method: linear\nmodels: [{model: a}, {model: b}]\nparameters: {weight: true}\n",
        "merge_method: linear\nmodels: [{model: a}, {model: a}]\nparameters: {weight: 1}\n",
        "merge_method: linear\nbase_model: c\nmodels: [{model: a, parameters: {weight: 1}}]\n",
        "merge_method: linear\nmerge_method: ties\n",
        "merge_method: linear\nmodels: [{model: a+lora}, {model: b@main}, {model: {model: {path: c@d, revision: main}}}]\nparameters: {weight: 1}\n",
        "merge_method: linear\nmodels: [{model: a}]\nparameters: {weight: [{filter: mlp}, {value: 1}, {value: 2}, {vaule: 3}]}\n",
        "merge_method: linear\nmodels: [{model: a}]\nparameters: {weight: 1}\ndtype: bf16\nout_dtype: int64\n",
        "merge_method: linear\nmodels: [{model: a}]\nparameters: {weight: 1}\ntokenizer_source: union\ntokenizer: {sauce: base}\nchat_template: auto\n",
        "merge_method: task_arithmetic\nmodels: [{model: a}]\nparameters: {weight: 1}\n",
        "merge_method: task_arithmetic\nbase_model: b\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 1, densty: 0.5}\n",
        "merge_method: task_arithmetic\nbase_model: b\nmodels: [{model: b}]\nparameters: {weight: 1}\n",
        "merge_method: task_arithmetic\nbase_model: b\nslices: [{sources: [{model: a, layer_range: [0, 2]}]}]\nparameters: {weight: 1}\n",
        "merge_method: passthrough\nbase_model: b\nmodels: [{model: a}]\n",
        "merge_method: passthrough\nslices: [{sources: [{model: a, layer_range: [0, 2]}, {model: b, layer_range: [0, 3], residual_weight: 1}]}, {sources: [{model: a, layer_range: [2, 2]}, {model: a}]}, {source: []}]\n",
        "merge_method: ties\nbase_model: b\nmodels: [{model: a, parameters: {weight: 1, density: 0.5}}]\nparameters: {normalise: true}\n",
        "merge_method: slerp\nbase_model: a\nmodels: [{model: a}, {model: b}]\n",
        "merge_method: linear\nmodules: {text: {}}\n",
        "merge_method: linear\nmodules: {text: {models: [{model: a, parameters: {weight: x}}], parameters: {weihgt: 1}}}\n",
        "merge_method: linear\nmodels: []\nmodules: {text: {models: [{model: a}]}, vision: {models: [{model: a}]}}\n",
        "merge_method: breadcrumbs\nbase_model: b\nmodels: [{model: a, parameters: {weight: -1, density: [0, 1.5], gamma: -0.1}}]\n",
        "merge_method: della\nbase_model: b\nmodels: [{model: a, parameters: {weight: 1, density: 0.5, epsilon: 0.6}}]\nparameters: {gamma: 0.1}\n",
        "merge_method: sce\nbase_model: b\nmodels: [{model: a}]\nparameters: {select_topk: 2, density: 1}\n",
        "merge_method: ramplus_tl\nbase_model: b\nmodels: [{model: a}]\nparameters: {epsilon: -1, r: -1, alpha: -0.2}\n",
        "merge_method: nearswap\nbase_model: b\nmodels: [{model: a}, {model: c}]\nparameters: {t: [-1, 2]}\n",
        "merge_method: karcher\nmodels: [{model: a}]\nparameters: {max_iter: -1, tol: -1}\n",
        "base_model: a\ngate_mode: random\nexperts: [{source_model: a}]\n",
        "genome: {models: [a]}\ntasks: [{name: b}]\n",
        "- a\n",
        "a: b: c\n",
        "",
    ] {
        writeln!(told, "{yaml}=> {}\n", refusal(yaml)).unwrap();
    }
    insta::assert_snapshot!("merge-language", told);
    let every_form = "
merge_method: linear
base_model: {model: {path: 'a+b@c'}}
models:
- model: ./a+b@c/
  parameters: {weight: 1}
";
    assert!(refusal(every_form).contains("b@c/"), "text with a plus is an adapter");
    let every_form = every_form.replace("./a+b@c/", "{model: ./a+b@c/}");
    assert_eq!(refusal(&every_form), "accepted");
    let config = Config::parse(&every_form, "c").unwrap();
    let paths: Vec<_> = config.models().iter().map(|model| model.path.as_path()).collect();
    assert_eq!(paths, [Path::new("a+b@c")]);
}

#[test]
fn what_mergekit_takes_is_taken() {
    for yaml in [
        "merge_method: linear\nmodels: [{model: a}]\nparameters: {weight: '0.5', normalize: 'False', int8_mask: true}\ndtype: torch.bfloat16\n",
        "merge_method: passthrough\nslices: [{sources: [{model: a, layer_range: [0.0, 2.0], residual_weight: 1}]}, {sources: [{model: a, layer_range: ['2', '4']}]}]\n",
        "merge_method: model_stock\nbase_model: b\nmodels: [{model: a, parameters: {weight: 1}}, {model: c}]\nparameters: {normalize: true, rescale: true}\n",
        "merge_method: sce\nbase_model: b\nmodels: [{model: a}]\nparameters: {normalize: true}\n",
        "merge_method: task_arithmetic\nbase_model: b\nmodels: [{model: a}]\nparameters: {weight: 1, density: 0.5}\n",
        "merge_method: ties\nbase_model: b\nmodels: [{model: a, parameters: {weight: 1, normalize: 1, lambda: 1, int8_mask: true}}]\n",
        "merge_method: linear\nmodels: [{model: a}]\nparameters: {weight: 1}\n---\n",
    ] {
        assert_eq!(refusal(yaml), "accepted", "{yaml}");
    }
    for yaml in [
        "merge_method: linear\nmodels: [{model: a}]\nparameters: {weight: 1, int8_mask: 2}\n",
        "merge_method: passthrough\nslices: [{sources: [{model: a, layer_range: [0, 2.5]}]}]\n",
        "merge_method: linear\nmodels: [{model: a}]\nparameters: {weight: 'nan'}\n",
    ] {
        assert_ne!(refusal(yaml), "accepted", "{yaml}");
    }
}

#[test]
fn what_has_no_effect_is_told() {
    let dir = TempDir::new().unwrap();
    let yaml = "merge_method: slerp\nbase_model: models/mrg32-a\nmodels:\n- {model: models/mrg32-a, parameters: {weight: 1, t: 1}}\n- {model: models/mrg32-b, parameters: {weight: 1}}\nparameters: {t: 0.5}\n";
    let (_, outcome) = merged(&dir, "out", yaml, &["--dry-run"]);
    let told = outcome.to_string();
    for note in [
        "`weight` has no effect with slerp, as in mergekit (models[0].parameters.weight and 1 more)",
        "`t` has no effect under a model, as in mergekit: it is a parameter of the whole merge (models[0].parameters.t)",
    ] {
        assert!(told.contains(note), "{told}");
    }
}

/// Writes a configuration and merges.
fn merged(dir: &TempDir, name: &str, yaml: &str, args: &[&str]) -> (PathBuf, Outcome) {
    let (config, out) = (dir.path().join(format!("{name}.yml")), dir.path().join(name));
    fs::write(&config, yaml).unwrap();
    let outcome = merge(&config, &out, args);
    (out, outcome)
}

#[test]
fn models_that_do_not_fit_are_refused() {
    let dir = TempDir::new().unwrap();
    let mut told = String::new();
    for yaml in [
        "merge_method: linear\nmodels: [{model: models/mrg32-a}, {model: models/llama31-base}]\nparameters: {weight: 1}\n",
        "merge_method: linear\nmodels: [{model: models/mrg32-a}, {model: nowhere}]\nparameters: {weight: 1}\n",
        "merge_method: linear\nmodels: [{model: models/mrg32-a}, {model: org/name}]\nparameters: {weight: 1}\n",
        "merge_method: linear\nmodels: [{model: models/mrg32-a}, {model: models/mrg32-b}]\nparameters: {weight: [1, -1, 0]}\ndtype: bfloat16\n",
        "merge_method: linear\nmodels: [{model: models/mrg32-a, parameters: {weight: 1}}, {model: models/mrg32-b, parameters: {weight: -1}}]\n",
        "merge_method: linear\nmodels: [{model: models/gpt2}, {model: models/llama31-base}]\nparameters: {weight: 1}\n",
        "merge_method: linear\nmodels: [{model: models/mrg32-a}]\nparameters: {weight: [{filter: mlp, value: 1}]}\n",
        "merge_method: passthrough\nslices: [{sources: [{model: models/mrg32-a, layer_range: [2, 9]}]}]\n",
        "merge_method: passthrough\nslices: [{sources: [{model: models/llama31-base, layer_range: [0, 2]}]}, {sources: [{model: models/llama31-instbig, layer_range: [2, 4]}]}]\n",
        "merge_method: passthrough\nslices: [{sources: [{model: models/llama31-v4, layer_range: [0, 2]}]}, {sources: [{model: models/llama31-base, layer_range: [2, 4]}]}]\n",
        "merge_method: passthrough\nslices: [{sources: [{model: models/gemma2, layer_range: [0, 2]}]}, {sources: [{model: models/qwen2-untied, layer_range: [0, 1]}]}]\n",
        "merge_method: linear\nmodels: [{model: models/mrg32-a}, {model: models/mrg32-b}]\nparameters: {weight: 1}\ndtype: float64\nout_dtype: float32\n",
        "merge_method: della\nbase_model: models/mrg32-base\nmodels: [{model: models/mrg32-a}]\nparameters: {weight: 1, density: [0.5, 0.9]}\n",
        "merge_method: karcher\nmodels: [{model: models/mrg32-a}]\nparameters: {max_iter: 1.5}\n",
    ] {
        let (out, outcome) = merged(&dir, "refused", yaml, &[]);
        assert!(!out.exists());
        let text = outcome.stderr.replace(dir.path().to_str().unwrap(), "[DIR]");
        writeln!(told, "{yaml}=> exit {}: {text}", outcome.code().unwrap()).unwrap();
    }
    insta::assert_snapshot!("merge-misfits", told);
}

#[test]
fn slices_that_cover_all_layers_are_whole_models() {
    let dir = TempDir::new().unwrap();
    let of = |model: &str, weight: f64, range: &str| {
        format!("{{model: models/mrg32-{model}, {range}parameters: {{weight: {weight}}}}}")
    };
    let pair = |range: &str| format!("[{}, {}]", of("a", 0.3, range), of("b", 0.9, range));
    let whole = format!("merge_method: linear\nmodels: {}\n", pair(""));
    let slices = format!(
        "merge_method: linear\nslices:\n- sources: {}\n- sources: {}\n",
        pair("layer_range: [0, 1], "),
        pair("layer_range: [1, 4], ")
    );
    let (whole, _) = merged(&dir, "whole", &whole, &[]);
    let (slices, outcome) = merged(&dir, "slices", &slices, &[]);
    assert_eq!(outcome.code(), Some(0), "{outcome}");
    assert_same(&weights_and_config(&slices), &weights_and_config(&whole), "slices");
}

#[test]
fn repeated_layers_have_their_kind_in_the_config() {
    let dir = TempDir::new().unwrap();
    let yaml = "merge_method: passthrough\nslices:\n- sources: [{model: models/gemma2, layer_range: [0, 4]}]\n- sources: [{model: models/gemma2, layer_range: [1, 7]}]\n";
    let (out, outcome) = merged(&dir, "out", yaml, &[]);
    assert_eq!(outcome.code(), Some(0), "{outcome}");
    let (old, new) = (config(&golden("models/gemma2")), config(&out));
    let kinds = old["layer_types"].as_array().unwrap();
    let wanted: Vec<&Value> = kinds[0..4].iter().chain(&kinds[1..7]).collect();
    assert_eq!(new["layer_types"], json!(wanted));
    assert_eq!(new["num_hidden_layers"], 10);
    elo("verify").arg(&out).ok();
}

/// A part has a config of its own, with other numbers: its layers are told by their kind.
#[test]
fn layers_of_a_part_go_back_into_its_model() {
    let dir = TempDir::new().unwrap();
    for model in ["gemma2", "llama31-base", "qwen2-untied"] {
        let full = golden("models").join(model);
        let layers = config(&full)["num_hidden_layers"].as_u64().unwrap();
        let part = dir.path().join(format!("part-{model}"));
        elo("extract --no-sync --layers first,last").arg(&full).with("--out", &part).ok();
        let (full, part, last) = (full.display(), part.display(), layers - 1);
        let yaml = format!(
            "merge_method: passthrough\nbase_model: {{model: {{path: '{full}'}}}}\nslices:
- sources: [{{model: {{model: '{part}'}}, layer_range: [0, 1]}}]
- sources: [{{model: {{model: '{full}'}}, layer_range: [1, {last}]}}]
- sources: [{{model: {{model: '{part}'}}, layer_range: [1, 2]}}]\n"
        );
        let (out, outcome) = merged(&dir, model, &yaml, &[]);
        assert_eq!(outcome.code(), Some(0), "{outcome}");
        let back = weights_and_config(&golden("models").join(model));
        assert_same(&weights_and_config(&out), &back, model);
    }
}

#[test]
fn the_record_names_every_model() {
    let dir = TempDir::new().unwrap();
    let yaml = "merge_method: task_arithmetic\nbase_model: models/mrg16-base\nmodels:\n- {model: models/mrg16-a, parameters: {weight: 1}}\n- {model: models/mrg16-b, parameters: {weight: [0, 1]}}\n# kept\n";
    let (out, _) = merged(&dir, "out", yaml, &["--shard-size", "10kB"]);
    let record = fs::read_to_string(out.join("elo-surgery.json")).unwrap();
    let record: Value = serde_json::from_str(&record).unwrap();
    assert_eq!(record["operation"]["verb"], "merge");
    let parents = record["parents"].as_array().unwrap();
    let named: Vec<_> = parents.iter().map(|p| (&p["role"], &p["model"])).collect();
    let wanted = [("base", "base"), ("model", "a"), ("model", "b")]
        .map(|(role, model)| (json!(role), json!(format!("models/mrg16-{model}"))));
    assert_eq!(named, wanted.iter().map(|(role, model)| (role, model)).collect::<Vec<_>>());
    assert_eq!(fs::read_to_string(out.join("mergekit_config.yml")).unwrap(), yaml);
    elo("verify").arg(&out).ok();
    // A merge of merges: the older configuration makes place.
    let again = format!(
        "merge_method: linear\nmodels: [{{model: {{model: '{}'}}}}]\nparameters: {{weight: 3}}\n",
        out.display()
    );
    let (copy, outcome) = merged(&dir, "copy", &again, &[]);
    assert_eq!(outcome.code(), Some(0), "{outcome}");
    assert_eq!(fs::read_to_string(copy.join("mergekit_config.yml")).unwrap(), again);
    assert_same(&weights_and_config(&copy), &weights_and_config(&out), "one model, normalised");
}

/// A copy of a golden model whose tensors are changed.
fn changed(dir: &TempDir, name: &str, tied: bool, change: impl Fn(Raw) -> Raw) -> PathBuf {
    let root = dir.path().join(name);
    let source = golden("models/mrg16-b");
    let tensors = change(raw(&source)).into_iter();
    let tensors: Vec<Tensor> = tensors
        .map(|(name, (dtype, shape, bytes))| Tensor::new(&name, &dtype, &shape, bytes))
        .collect();
    write_sharded(&root, &tensors, 2);
    let mut config = config(&source);
    config["tie_word_embeddings"] = tied.into();
    fs::write(root.join("config.json"), config.to_string()).unwrap();
    root
}

#[test]
fn a_head_is_never_lost() {
    let dir = TempDir::new().unwrap();
    let tied = changed(&dir, "tied", true, |mut tensors| {
        tensors.remove("lm_head.weight");
        tensors
    });
    let untied = changed(&dir, "untied", false, |mut tensors| {
        let head = tensors["model.embed_tokens.weight"].clone();
        tensors.insert("lm_head.weight".to_owned(), head);
        tensors
    });
    let pair = |a: &str, b: &str| {
        let model = |path: &str| format!("{{model: {{model: {{path: '{path}'}}}}}}");
        let models = format!("[{}, {}]", model(a), model(b));
        format!("merge_method: linear\nmodels: {models}\nparameters: {{weight: 0.5}}\n")
    };
    let (tied, untied) = (tied.to_str().unwrap(), untied.to_str().unwrap());
    let (_, outcome) = merged(&dir, "lost", &pair(tied, "models/mrg16-a"), &[]);
    outcome.expect(3, &["lm_head.weight", "would be lost", "ties its head"]);
    // A tied model's head is its embedding.
    let (found, outcome) = merged(&dir, "found", &pair("models/mrg16-a", tied), &[]);
    assert_eq!(outcome.code(), Some(0), "{outcome}");
    let (wanted, _) = merged(&dir, "wanted", &pair("models/mrg16-a", untied), &[]);
    assert_same(&weights_and_config(&found), &weights_and_config(&wanted), "tied");
}

#[test]
fn extra_tensors_and_quantised_weights_are_refused() {
    let dir = TempDir::new().unwrap();
    let scale = "model.layers.1.mlp.up_proj.weight_scale_inv";
    let extra = changed(&dir, "extra", false, |mut tensors| {
        tensors.insert(scale.to_owned(), ("F32".to_owned(), vec![1], vec![0; 4]));
        tensors
    });
    let model = format!("{{model: {{model: {{path: '{}'}}}}}}", extra.display());
    let of = |models: &str| {
        format!("merge_method: linear\nmodels: [{models}]\nparameters: {{weight: 0.5}}\n")
    };
    let beside = of(&format!("{{model: models/mrg16-a}}, {model}"));
    let (_, outcome) = merged(&dir, "beside", &beside, &[]);
    outcome.expect(3, &["weight_scale_inv"]);
    let first = of(&format!("{model}, {{model: models/mrg16-a}}"));
    let (_, outcome) = merged(&dir, "first", &first, &[]);
    outcome.expect(3, &["weight_scale_inv"]);
    // Alone it is copied, scale and all.
    let (out, outcome) = merged(&dir, "alone", &of(&model), &[]);
    assert_eq!(outcome.code(), Some(0), "{outcome}");
    assert!(raw(&out) == raw(&extra), "a copy");
}

#[test]
fn the_model_card_says_where_it_comes_from() {
    let dir = TempDir::new().unwrap();
    let [a, b] = ["a", "b"].map(|model| {
        let name = format!("models--org--{model}");
        let to = dir.path().join(name).join("snapshots/0123456789abcdef");
        fs::create_dir_all(&to).unwrap();
        for file in fs::read_dir(golden(&format!("models/mrg32-{model}"))).unwrap() {
            let file = file.unwrap();
            fs::copy(file.path(), to.join(file.file_name())).unwrap();
        }
        fs::write(to.join("README.md"), "---\nlicense: llama3.1\n---\n# Mine\n").unwrap();
        to
    });
    let yaml = |a: &Path, b: &Path| {
        let [a, b] = [a, b].map(|path| path.display().to_string());
        format!(
            "merge_method: linear # ```\nmodels: [{{model: {a}}}, {{model: {b}}}]\nparameters: {{weight: 1}}\n"
        )
    };
    let (out, outcome) = merged(&dir, "m", &yaml(&a, &b), &[]);
    assert_eq!(outcome.code(), Some(0), "{}", outcome.stderr);
    let card = fs::read_to_string(out.join("README.md")).unwrap();
    assert!(elo_surgery::checkpoint::is_sealed(&card), "{card}");
    let (card, _seal) = card.rsplit_once("<!-- ").unwrap();
    insta::assert_snapshot!("merge-card", card.trim_end());

    // Licences that differ are people's to settle, and a local path is no Hub id.
    fs::write(b.join("README.md"), "---\nlicense: mit\n---\n").unwrap();
    let local = golden("models/mrg32-c");
    let (out, _) = merged(&dir, "n", &yaml(&b, &local), &[]);
    let card = fs::read_to_string(out.join("README.md")).unwrap();
    let (metadata, text) = card.split_once("\n---\n").unwrap();
    assert!(!metadata.contains("license"), "{metadata}");
    assert!(metadata.contains("- org/b") && !metadata.contains("mrg32-c"), "{metadata}");
    assert!(text.contains("| mrg32-c | merged | not said |"), "{text}");

    let (out, _) = merged(&dir, "o", &yaml(&a, &b), &["--no-model-card"]);
    assert!(!out.join("README.md").exists());
}

/// Models of another dtype than `dtype`: inputs are what they are, the result is rounded once.
#[test]
fn inputs_are_never_rounded_first() {
    let dir = TempDir::new().unwrap();
    let yaml = |dtypes: &str| {
        format!(
            "merge_method: task_arithmetic\nbase_model: models/mrg32-base\nmodels: [{{model: models/mrg32-a}}]\nparameters: {{weight: 0.5}}\n{dtypes}"
        )
    };
    let (lossy, outcome) = merged(&dir, "lossy", &yaml("dtype: bfloat16\n"), &[]);
    outcome.expect(0, &["inputs are not rounded to `dtype` BF16 first"]);
    let (exact, outcome) = merged(&dir, "exact", &yaml("out_dtype: bfloat16\n"), &[]);
    assert_eq!(outcome.code(), Some(0), "{outcome}");
    assert!(!outcome.stderr.contains("not rounded"), "{outcome}");
    assert_same(&weights_and_config(&lossy), &weights_and_config(&exact), "rounded once");
    assert!(raw(&lossy).values().all(|(dtype, _, _)| dtype == "BF16"));
}

/// A file for models of one module is that of the models.
#[test]
fn one_module_is_the_model() {
    let dir = TempDir::new().unwrap();
    let models = "[{model: models/mrg32-a}, {model: models/mrg32-b, parameters: {weight: 0.25}}]";
    let plain = format!("merge_method: linear\nmodels: {models}\nparameters: {{weight: 0.5}}\n");
    let module = format!(
        "merge_method: linear\nmodules:\n  default: {{models: {models}, parameters: {{weight: 0.5}}}}\nparameters: {{weight: 7}}\n"
    );
    let (plain, _) = merged(&dir, "plain", &plain, &[]);
    let (module, outcome) = merged(&dir, "module", &module, &[]);
    assert_eq!(outcome.code(), Some(0), "{outcome}");
    assert_same(&weights_and_config(&module), &weights_and_config(&plain), "one module");
}
