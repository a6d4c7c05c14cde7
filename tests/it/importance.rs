//! Importances of elements: Fisher-weighted averages (Matena and Raffel, arXiv 2111.09832) against sums written out here.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use elo_surgery::Error;
use elo_surgery::engine::{Execution, NoObserver, Observer, Reference, execute, execute_on};
use elo_surgery::plan::Plan;
use half::{bf16, f16};
use tempfile::TempDir;

use crate::golden::golden;
use crate::support::checkpoint::{Tensor, read_raw, write_sharded};
use crate::support::process::{Elo, elo};

type Values = BTreeMap<String, Vec<f32>>;

/// What becomes of a tensor's dimensions; none if it is left out.
type Change<'a> = dyn Fn(&str, &[u64]) -> Option<Vec<u64>> + 'a;

fn values(root: &Path) -> Values {
    let value = |dtype: &str, bytes: &[u8]| match dtype {
        "F32" => f32::from_le_bytes(bytes.try_into().unwrap()),
        "BF16" => bf16::from_le_bytes(bytes.try_into().unwrap()).to_f32(),
        other => panic!("{other}"),
    };
    let all = |dtype: &str, bytes: &[u8]| {
        let width = if dtype == "F32" { 4 } else { 2 };
        bytes.chunks_exact(width).map(|bytes| value(dtype, bytes)).collect()
    };
    let tensors = read_raw(root).into_iter();
    tensors.map(|(name, (dtype, _, bytes, _))| (name, all(&dtype, &bytes))).collect()
}

/// Numbers from 0, of which a third is 0, and every tenth whatever the salt.
fn number(i: usize, salt: usize) -> f32 {
    let mixed = (i + salt * 7919).wrapping_mul(2_654_435_761) >> 7;
    if mixed.is_multiple_of(3) || i.is_multiple_of(10) {
        0.0
    } else {
        f32::from(u16::try_from(mixed % 4093).unwrap()) / 64.0
    }
}

/// Importances for every tensor of a model, as they are read back.
fn importances(
    dir: &Path,
    name: &str,
    salt: usize,
    dtype: &str,
    shards: usize,
) -> (PathBuf, Values) {
    let root = dir.join(name);
    let (mut tensors, mut values) = (Vec::new(), Values::new());
    for (tensor, (_, shape, _, _)) in read_raw(&golden("models/mrg32-a")) {
        let count = usize::try_from(shape.iter().product::<u64>()).unwrap();
        let all: Vec<f32> = (0..count).map(|i| number(i, salt)).collect();
        let (bytes, read) = match dtype {
            "BF16" => {
                let all: Vec<bf16> = all.iter().map(|v| bf16::from_f32(*v)).collect();
                let bytes = all.iter().flat_map(|v| v.to_le_bytes()).collect();
                (bytes, all.iter().map(|v| v.to_f32()).collect())
            }
            "F16" => {
                let all: Vec<f16> = all.iter().map(|v| f16::from_f32(*v)).collect();
                let bytes = all.iter().flat_map(|v| v.to_le_bytes()).collect();
                (bytes, all.iter().map(|v| v.to_f32()).collect())
            }
            _ => (all.iter().flat_map(|v| v.to_le_bytes()).collect(), all),
        };
        tensors.push(Tensor::new(&tensor, dtype, &shape, bytes));
        values.insert(tensor, read);
    }
    write_sharded(&root, &tensors, shards);
    let path = if shards == 1 { root.join("model.safetensors") } else { root };
    (path, values)
}

/// `sum(w f x) / sum(w f)`, or `sum(w x) / sum(w)` where all are 0, rounded once to f32.
#[expect(clippy::cast_possible_truncation, reason = "the one rounding")]
fn mean(terms: &[(f64, f32, f32)]) -> f32 {
    let shares: f64 = terms.iter().map(|(w, f, _)| w * f64::from(*f)).sum();
    if shares == 0.0 {
        let all: f64 = terms.iter().map(|(w, ..)| w).sum();
        return (terms.iter().map(|(w, _, x)| w * f64::from(*x)).sum::<f64>() / all) as f32;
    }
    (terms.iter().map(|(w, f, x)| w * f64::from(*f) * f64::from(*x)).sum::<f64>() / shares) as f32
}

const MODELS: [&str; 3] = ["models/mrg32-a", "models/mrg32-b", "models/mrg32-c"];

fn yaml(head: &str, weights: &[f64], files: &[PathBuf]) -> String {
    let mut text = format!("{head}models:\n");
    for (model, weight) in MODELS.iter().zip(weights) {
        writeln!(text, "- {{model: {model}, parameters: {{weight: {weight}}}}}").unwrap();
    }
    text += "elo_surgery:\n  importance:\n";
    for (model, file) in MODELS.iter().zip(files) {
        writeln!(text, "  - {{model: {model}, file: '{}'}}", file.display()).unwrap();
    }
    text
}

fn run(dir: &Path, text: &str, name: &str, args: &str) -> (PathBuf, Elo) {
    let (file, out) = (dir.join(format!("{name}.yml")), dir.join(name));
    fs::write(&file, text).unwrap();
    let run = elo("merge --no-sync").arg(file).with("--out", &out);
    (out, run.args(args.split_whitespace()).within(&golden("")))
}

/// Three files of different dtype and layout, the values in them, and a folder for the results.
fn three() -> (TempDir, Vec<PathBuf>, Vec<Values>) {
    let dir = TempDir::new().unwrap();
    let kinds = [("F32", 1), ("BF16", 3), ("F16", 2)];
    let made = kinds.iter().enumerate().map(|(salt, (dtype, shards))| {
        importances(dir.path(), &format!("fisher-{salt}"), salt, dtype, *shards)
    });
    let (files, values) = made.unzip();
    (dir, files, values)
}

fn compare(found: &Values, wanted: impl Fn(&str, usize) -> f32) {
    let mut compared = 0;
    for (name, found) in found {
        for (i, found) in found.iter().enumerate() {
            let wanted = wanted(name, i);
            assert!(found.to_bits() == wanted.to_bits(), "{name}[{i}]: {found}, not {wanted}");
            compared += 1;
        }
    }
    assert!(compared > 8_000, "{compared}");
}

#[test]
fn every_element_is_the_mean_by_its_importances() {
    let (dir, files, fisher) = three();
    let models: Vec<Values> = MODELS.iter().map(|model| values(&golden(model))).collect();
    let base = values(&golden("models/mrg32-base"));
    let weights = [0.5, 0.25, 0.25];
    let at = |name: &str, i: usize| -> f32 {
        let of = |k: usize| (weights[k], fisher[k][name][i], models[k][name][i]);
        mean(&[of(0), of(1), of(2)])
    };
    let nobody = |name: &str, i: usize| (0..3).all(|k| fisher[k][name][i] == 0.0);
    let silent: usize =
        models[0].iter().map(|(n, v)| (0..v.len()).filter(|i| nobody(n, *i)).count()).sum();
    assert!(silent > 100, "{silent} elements that nobody has something to say about");

    let head = "merge_method: linear\n";
    let text = yaml(head, &weights, &files);
    let (out, merge) = run(dir.path(), &text, "linear", "");
    merge.ok();
    compare(&values(&out), at);

    let (out, merge) = run(
        dir.path(),
        &format!("{text}parameters: {{normalize: false}}\n").replace("0.5}", "1.5}"),
        "sums",
        "",
    );
    merge.ok();
    let sums = [1.5, 0.25, 0.25];
    compare(&values(&out), |name, i| {
        let of = |k: usize| (sums[k], fisher[k][name][i], models[k][name][i]);
        2.0 * mean(&[of(0), of(1), of(2)])
    });

    let head = "merge_method: task_arithmetic\nbase_model: models/mrg32-base\nparameters: {lambda: 0.75}\n";
    let text = yaml(head, &[1.0, 0.5, 0.5], &files);
    let (out, merge) = run(dir.path(), &text, "vectors", "");
    merge.ok();
    compare(&values(&out), |name, i| {
        let of = |k: usize| ([1.0, 0.5, 0.5][k], fisher[k][name][i], models[k][name][i]);
        let b = base[name][i];
        b + 0.75 * (2.0 * (mean(&[of(0), of(1), of(2)]) - b))
    });

    let text = yaml("merge_method: linear\nout_dtype: bfloat16\n", &weights, &files);
    let (out, merge) = run(dir.path(), &text, "bf16", "");
    merge.ok();
    compare(&values(&out), |name, i| bf16::from_f32(at(name, i)).to_f32());
}

#[test]
fn threads_tiles_and_devices_change_nothing() {
    let (dir, files, _) = three();
    let head = "merge_method: task_arithmetic\nbase_model: models/mrg32-base\n";
    let root = format!("{}/models/mrg32", golden("").display());
    let text = yaml(head, &[0.75, 0.5, 1.0], &files).replace("models/mrg32", &root);
    let (out, merge) = run(dir.path(), &text, "once", "");
    merge.ok();
    let wanted = read_raw(&out);
    for (i, args) in [
        "--tile 64KiB -j 1 --io mmap",
        "--tile 64KiB -j 5 --io read --shard-size 20KB",
        "--memory 64MiB -j 2",
    ]
    .into_iter()
    .enumerate()
    {
        let (out, merge) = run(dir.path(), &text, &format!("again-{i}"), args);
        merge.ok();
        let found = read_raw(&out);
        assert!(found.keys().eq(wanted.keys()));
        for (name, tensor) in &found {
            assert!(tensor.2 == wanted[name].2, "{args}: {name}");
        }
    }
    let plan = elo("plan merge").arg(dir.path().join("once.yml")).within(&golden("")).ok();
    let plan: Plan = serde_json::from_str(&plan.stdout).unwrap();
    let out = dir.path().join("reference");
    let how = Execution { sync: false, ..Execution::to(&out) };
    execute_on(&Reference, &plan, &how, &NoObserver).unwrap();
    assert!(values(&out) == values(&dir.path().join("once")));
}

/// The plan names every file, counts what is read of it, and its digest is another if the importances are.
#[test]
fn plans_know_the_importances() {
    let (dir, files, _) = three();
    let plan = |text: &str| -> Plan {
        let (_, _) = run(dir.path(), text, "planned", "");
        let plan = elo("plan merge").arg(dir.path().join("planned.yml")).within(&golden("")).ok();
        serde_json::from_str(&plan.stdout).unwrap()
    };
    let head = "merge_method: linear\n";
    let with = plan(&yaml(head, &[1.0; 3], &files));
    with.validate().unwrap();
    let swapped =
        plan(&yaml(head, &[1.0; 3], &[files[1].clone(), files[0].clone(), files[2].clone()]));
    assert_ne!(with.digest(), swapped.digest());
    let text = yaml(head, &[1.0; 3], &files);
    let without = plan(text.split("elo_surgery").next().unwrap());
    let (with, without) = (with.cost(), without.cost());
    // F32, BF16 and F16 beside three times F32.
    assert_eq!(with.read * 3, without.read * 5);
    assert_eq!((with.sweeps, with.written), (without.sweeps, without.written));
}

/// Lets a run ask so often whether to go on, and then ends it.
struct Patience(AtomicU64);

impl Observer for Patience {
    fn cancelled(&self) -> bool {
        let left = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
        left.is_err()
    }
}

#[test]
fn an_interrupted_run_continues() {
    let (dir, files, _) = three();
    let root = golden("").display().to_string();
    let text = yaml("merge_method: linear\n", &[1.0, 2.0, 3.0], &files);
    let text =
        text.replace("models/mrg32", &format!("{}/models/mrg32", root.trim_end_matches('/')));
    let (once, merge) = run(dir.path(), &text, "once", "");
    merge.ok();
    let file = dir.path().join("once.yml");
    let plan = elo("plan merge --shard-size 4KB").arg(file).within(dir.path()).ok();
    let plan: Plan = serde_json::from_str(&plan.stdout).unwrap();
    let out = dir.path().join("resumed");
    let how = Execution { threads: 1, sync: false, tile: 4 << 10, ..Execution::to(&out) };
    let mut interrupted = 0;
    for patience in (3..).step_by(2) {
        match execute(&plan, &how, &Patience(AtomicU64::new(patience))) {
            Ok(report) => {
                assert!(report.resumed > 0);
                break;
            }
            Err(Error::Interrupted { .. }) => interrupted += 1,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(interrupted > 2, "{interrupted}");
    assert!(values(&out) == values(&once));
}

#[test]
fn what_cannot_be_weighed_is_refused() {
    let (dir, files, _) = three();
    let damaged = |value: f32| {
        let tensors: Vec<Tensor> = read_raw(files[0].parent().unwrap())
            .into_iter()
            .map(|(name, (dtype, shape, mut bytes, _))| {
                if name == "model.norm.weight" {
                    bytes[12..16].copy_from_slice(&value.to_le_bytes());
                }
                Tensor::new(&name, &dtype, &shape, bytes)
            })
            .collect();
        let root = dir.path().join(format!("odd-{value}"));
        write_sharded(&root, &tensors, 1);
        root.join("model.safetensors")
    };
    let pair = |file: PathBuf| [file, files[1].clone(), files[2].clone()];
    let linear = "merge_method: linear\n";
    for (value, said) in [(-1.0, "-1"), (f32::NAN, "NaN"), (f32::INFINITY, "inf")] {
        let text = yaml(linear, &[1.0; 3], &pair(damaged(value)));
        let (out, merge) = run(dir.path(), &text, "odd", "");
        let said = format!("importance {said} of element 3 of `model.norm.weight` in");
        merge.run().expect(3, &[&said]);
        assert!(!out.exists());
    }
    let refused = |text: &str, args: &str, words: &[&str]| {
        let (out, merge) = run(dir.path(), text, "refused", args);
        merge.run().expect(3, words);
        assert!(!out.exists());
    };
    let others = |change: &Change<'_>, name: &str| {
        let root = dir.path().join(name);
        let tensors: Vec<Tensor> = read_raw(&golden(MODELS[0]))
            .into_iter()
            .filter_map(|(name, (_, shape, _, _))| {
                let shape = change(&name, &shape)?;
                let bytes = vec![0; usize::try_from(shape.iter().product::<u64>()).unwrap() * 4];
                Some(Tensor::new(&name, "F32", &shape, bytes))
            })
            .collect();
        write_sharded(&root, &tensors, 1);
        root
    };
    let less = others(&|name, shape| (!name.contains("mlp")).then(|| shape.to_vec()), "less");
    let text = yaml(linear, &[1.0; 3], &pair(less));
    refused(&text, "", &["the importances of `models/mrg32-a` lack this tensor", "and 11 more"]);
    // As for tensors that a model lacks: those that have them.
    let (out, merge) =
        run(dir.path(), &format!("{text}  missing_tensors: present\n"), "present", "");
    merge.ok();
    assert_eq!(values(&out).len(), values(&golden(MODELS[0])).len());
    let flat = others(&|_, shape| Some(vec![shape.iter().product()]), "flat");
    refused(
        &yaml(linear, &[1.0; 3], &pair(flat)),
        "",
        &["differs in shape: the importances of `models/mrg32-a` have"],
    );
    refused(
        &yaml(linear, &[1.0, -0.5, 1.0], &files),
        "",
        &["weights that importances share out are from 0 and not all 0"],
    );
    let ties = "merge_method: ties\nbase_model: models/mrg32-base\n";
    refused(&yaml(ties, &[1.0; 3], &files), "", &["importances of elements for ties are"]);
    refused(
        &yaml(linear, &[1.0; 3], &files),
        "--numerics mergekit",
        &["mergekit has no importances"],
    );
    let numbers = dir.path().join("numbers.json");
    fs::write(&numbers, r#"{"lm_head.weight": 1}"#).unwrap();
    refused(&yaml(linear, &[1.0; 3], &pair(numbers)), "", &["others for elements: give either"]);
    let gone = dir.path().join("gone.safetensors");
    refused(&yaml(linear, &[1.0; 3], &pair(gone)), "", &["cannot be opened"]);
}
