//! Adapters made from models and from one another: what they leave out, resuming, exact sums.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::Value;
use tempfile::TempDir;

use crate::lora::{make_adapter, values};
use crate::support::checkpoint::{Model, Raw, Tensor, config, read_raw, write_sharded};
use crate::support::process::elo;
use crate::support::random::Random;

const Q: &str = "model.layers.0.self_attn.q_proj";
const DOWN: &str = "model.layers.2.mlp.down_proj";

/// Squared differences by tensor, in f64.
fn squares(a: &Path, b: &Path) -> BTreeMap<String, f64> {
    let (a, b) = (read_raw(a), read_raw(b));
    assert!(a.keys().eq(b.keys()));
    a.into_iter()
        .map(|(name, (dtype, _, bytes, _))| {
            let (other, _, theirs, _) = &b[&name];
            let pairs = values(&dtype, &bytes).into_iter().zip(values(other, theirs));
            (name, pairs.map(|(x, y)| (x - y) * (x - y)).sum())
        })
        .collect()
}

/// An f32 model from a bf16 one, changed by `change`.
fn changed(base: &Path, root: &Path, change: impl Fn(&str, &mut Vec<f64>)) {
    let tensors: Vec<Tensor> = read_raw(base)
        .into_iter()
        .map(|(name, (dtype, shape, bytes, _))| {
            let mut numbers = values(&dtype, &bytes);
            change(&name, &mut numbers);
            #[expect(clippy::cast_possible_truncation, reason = "the rounding that is meant")]
            let bytes = numbers.iter().flat_map(|x| (*x as f32).to_le_bytes()).collect();
            Tensor::new(&name, "F32", &shape, bytes)
        })
        .collect();
    write_sharded(root, &tensors, 1);
    fs::write(root.join("config.json"), config(base).to_string()).unwrap();
}

fn noise(seed: u64, name: &str, numbers: &mut [f64], size: f64) {
    let mut random = Random::new(seed ^ name.len() as u64);
    for number in numbers {
        #[expect(clippy::cast_precision_loss, reason = "noise")]
        let uniform = random.below(1 << 20) as f64 / f64::from(1 << 19) - 1.0;
        *number += size * uniform;
    }
}

fn report(root: &Path) -> BTreeMap<String, (Option<u64>, f64)> {
    let text = fs::read_to_string(root.join("lora_extraction.json")).unwrap();
    let told: Value = serde_json::from_str(&text).unwrap();
    let of = |found: &Value| {
        let name = found["tensor"].as_str().unwrap().to_owned();
        (name, (found["rank"].as_u64(), found["error"].as_f64().unwrap()))
    };
    told["tensors"].as_array().unwrap().iter().map(of).collect()
}

#[test]
fn full_rank_gives_the_model_back_and_less_the_error_that_is_told() {
    let dir = TempDir::new().unwrap();
    let base = Model::tiny(1).at(dir.path(), "base");
    let tuned = dir.path().join("tuned");
    changed(&base, &tuned, |name, numbers| noise(7, name, numbers, 0.1));
    for (rank, power) in [("64", "1"), ("6", "4")] {
        let lora = dir.path().join(format!("lora{rank}"));
        let run = elo("lora extract --no-sync --save-whole --rank").arg(rank);
        let run = run.args(&["--power-iterations", power]);
        run.with("--model", &tuned).with("--base", &base).with("--out", &lora).ok();
        assert!(!dir.path().join(format!(".lora{rank}.elo-lora")).exists());
        let back = dir.path().join(format!("back{rank}"));
        let run = elo("lora apply --no-sync --dtype f32").with("--into", &base);
        run.with("--adapter", &lora).with("--out", &back).ok();
        let (left, all) = (squares(&back, &tuned), squares(&tuned, &base));
        let told = report(&lora);
        for (name, left) in left {
            let error = (left / all[&name]).sqrt();
            let matrix = name.contains("_proj");
            let (rank_found, expected) = told[&name];
            assert_eq!(rank_found.is_some(), matrix, "{name}");
            if !matrix || rank == "64" {
                // f32 products of a full rank, or the tensor itself.
                assert!(error < 1e-5, "{name}: {error}");
            } else {
                assert!(error > 0.5, "{name}: noise has no low rank, {error}");
                assert!((error - expected).abs() < 1e-4, "{name}: {error}, told {expected}");
            }
        }
    }
}

/// Eigenvalues of `D^T D` by Jacobi rotations, written out; the largest first.
fn squared_singular_values(matrix: &[f64], n: usize) -> Vec<f64> {
    let column = |j: usize| matrix.iter().skip(j).step_by(n);
    let product = |i, j| column(i).zip(column(j)).map(|(x, y)| x * y).sum();
    let mut gram: Vec<Vec<f64>> = (0..n).map(|i| (0..n).map(|j| product(i, j)).collect()).collect();
    let turn = |x: &mut f64, y: &mut f64, (sin, cos): (f64, f64)| {
        (*x, *y) = (cos * *x - sin * *y, sin * *x + cos * *y);
    };
    for _ in 0..60 {
        for p in 0..n {
            for q in p + 1..n {
                let angle = 0.5 * (2.0 * gram[p][q]).atan2(gram[q][q] - gram[p][p]);
                for row in &mut gram {
                    let (head, tail) = row.split_at_mut(q);
                    turn(&mut head[p], &mut tail[0], angle.sin_cos());
                }
                let (head, tail) = gram.split_at_mut(q);
                for (x, y) in head[p].iter_mut().zip(tail[0].iter_mut()) {
                    turn(x, y, angle.sin_cos());
                }
            }
        }
    }
    let mut found: Vec<f64> = gram.iter().enumerate().map(|(i, row)| row[i]).collect();
    found.sort_by(|a, b| b.total_cmp(a));
    found
}

/// Singular values of a random 32 x 32 matrix decay slowly; the best approximation is that of a plain eigenvalue solver.
#[test]
fn the_error_is_near_the_best_there_is() {
    let dir = TempDir::new().unwrap();
    let base = Model::tiny(1).at(dir.path(), "base");
    let tuned = dir.path().join("tuned");
    changed(&base, &tuned, |name, numbers| {
        if name == format!("{Q}.weight") {
            noise(3, name, numbers, 0.1);
        }
    });
    let lora = dir.path().join("lora");
    let run = elo("lora extract --no-sync --rank 8 --power-iterations 6");
    run.with("--model", &tuned).with("--base", &base).with("--out", &lora).ok();
    let (ours, theirs) = (read_raw(&tuned), read_raw(&base));
    let name = format!("{Q}.weight");
    let numbers = |raw: &Raw| values(&raw[&name].0, &raw[&name].2);
    let pairs = numbers(&ours).into_iter().zip(numbers(&theirs));
    let eigenvalues = squared_singular_values(&pairs.map(|(x, y)| x - y).collect::<Vec<f64>>(), 32);
    let all: f64 = eigenvalues.iter().sum();
    let best = (eigenvalues[8..].iter().sum::<f64>() / all).sqrt();
    let told = report(&lora)[&name].1;
    assert!(told >= best - 1e-6 && told < best * 1.01, "{told}, the best is {best}");
    assert_eq!(report(&lora).len(), 1, "all else is equal");
}

#[test]
fn ranks_follow_the_energy_and_peft_reads_the_settings() {
    let dir = TempDir::new().unwrap();
    let base = Model::tiny(1).at(dir.path(), "base");
    let adapter = dir.path().join("adapter");
    let made = make_adapter(&adapter, &[(Q, [32, 32]), (DOWN, [32, 64])], 3, 5);
    let tuned = dir.path().join("tuned");
    changed(&base, &tuned, |name, numbers| {
        *numbers = made.on(name.strip_suffix(".weight").unwrap(), numbers, 1.0);
        if name == "model.norm.weight" {
            numbers[0] += 1.0;
        }
    });
    let lora = dir.path().join("lora");
    let run = elo("lora extract --no-sync --energy 0.9999999 --max-rank 16");
    let outcome = run.with("--model", &tuned).with("--base", &base).with("--out", &lora).ok();
    outcome.expect(0, &["1 tensors differ", "model.norm.weight", "--save-whole"]);
    let told = report(&lora);
    for module in [Q, DOWN] {
        let (rank, error) = told[&format!("{module}.weight")];
        assert!(rank.is_some_and(|rank| rank <= 3), "{module}: {rank:?}");
        assert!(error < 1e-5, "{module}: {error}");
    }
    let settings: Value =
        serde_json::from_slice(&fs::read(lora.join("adapter_config.json")).unwrap()).unwrap();
    assert_eq!(settings["peft_type"], "LORA");
    assert_eq!(settings["target_modules"], serde_json::json!([Q, DOWN]));
    assert_eq!(settings["lora_alpha"], settings["r"]);
    assert_eq!(settings["alpha_pattern"], settings["rank_pattern"]);
    // The same seed, the same bytes; another thread count too.
    let again = dir.path().join("again");
    let run = elo("lora extract --no-sync --energy 0.9999999 --max-rank 16 -j1");
    run.with("--model", &tuned).with("--base", &base).with("--out", &again).ok();
    assert!(read_raw(&again) == read_raw(&lora));
}

#[test]
fn an_interrupted_extraction_keeps_what_it_has() {
    let dir = TempDir::new().unwrap();
    let base = Model::tiny(1).at(dir.path(), "base");
    let tuned = dir.path().join("tuned");
    changed(&base, &tuned, |name, numbers| noise(7, name, numbers, 0.1));
    let extract = |out: &Path| {
        let run = elo("lora extract --no-sync --rank 4");
        run.with("--model", &tuned).with("--base", &base).with("--out", out)
    };
    let whole = dir.path().join("whole");
    extract(&whole).ok();
    // The state that a kill leaves: results of some tensors, half of another, no output.
    let out = dir.path().join("out");
    let work = dir.path().join(".out.elo-lora");
    fs::create_dir(&out).unwrap();
    fs::write(out.join("file"), "").unwrap();
    extract(&out).fails(2).expect(2, &["already exists"]);
    assert!(!work.exists());
    fs::remove_dir_all(&out).unwrap();
    fs::create_dir(&work).unwrap();
    fs::write(work.join("0123.part"), "half").unwrap();
    // It is listed, and no other command touches it while one is at it.
    let clean = |words: &str| elo(&format!("clean {words}")).arg(dir.path()).ok();
    let lock = fs::File::create(work.join("lock")).unwrap();
    lock.try_lock().unwrap();
    clean("--yes").expect(0, &["held by a running command"]);
    extract(&out).fails(5).expect(5, &["another `elo-surgery lora`"]);
    drop(lock);
    assert!(work.exists());
    clean("").expect(0, &[".out.elo-lora", "4 B for"]);
    extract(&out).ok();
    assert!(read_raw(&out) == read_raw(&whole));
    assert!(!work.exists());
    fs::create_dir(&work).unwrap();
    fs::write(work.join("0123.part"), "half").unwrap();
    clean("--yes").expect(0, &[".out.elo-lora", "removed"]);
    assert!(!work.exists());
}

#[test]
fn a_dry_run_says_what_it_takes_and_bounds_are_kept() {
    let dir = TempDir::new().unwrap();
    let base = Model::tiny(1).at(dir.path(), "base");
    let tuned = Model::tiny(2).at(dir.path(), "tuned");
    let out = dir.path().join("out");
    let extract = |words: &str| {
        let run = elo(&format!("lora extract --no-sync --rank 4 {words}"));
        run.with("--model", &tuned).with("--base", &base).with("--out", &out)
    };
    let told = extract("--dry-run --json -j3").ok().json();
    // Four layers of seven matrices; 119.. kB of bf16 in both models, read seven times.
    assert_eq!(told["matrices"], 28);
    let weights: u64 = read_raw(&base)
        .iter()
        .map(|(n, t)| {
            let passes = if n.contains("_proj") { 7 } else { 1 };
            2 * passes * t.2.len() as u64
        })
        .sum();
    assert_eq!(told["read"], weights);
    assert_eq!(told["memory"]["threads"], 3);
    extract("--memory 1MB").fails(2).expect(2, &["too little for one thread"]);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "nothing is left behind");
    // Models that do not fit together.
    let other = Model { layers: 3, ..Model::tiny(3) }.at(dir.path(), "other");
    let run = elo("lora extract --no-sync --rank 4").with("--model", &other);
    run.with("--base", &base).with("--out", &out).run().expect(3, &["layers.3", "is missing"]);
    let run = elo("lora extract --no-sync --rank 4").with("--model", &base);
    run.with("--base", &base).with("--out", &out).run().expect(3, &["nothing to extract"]);
}

#[test]
fn adapters_add_up_exactly() {
    let dir = TempDir::new().unwrap();
    let base = Model::tiny(1).at(dir.path(), "base");
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    let first = make_adapter(&a, &[(Q, [32, 32]), (DOWN, [32, 64])], 3, 5);
    let second = make_adapter(&b, &[(Q, [32, 32])], 2, 6);
    let both = dir.path().join("both");
    let weights = [format!("{}:0.75", a.display()), format!("{}:-2", b.display())];
    let run = elo("lora merge --no-sync").with("--adapter", &weights[0]);
    run.with("--adapter", &weights[1]).with("--out", &both).ok();
    assert!(!dir.path().join(".both.elo-lora").exists());
    let out = dir.path().join("out");
    let run = elo("lora apply --no-sync --dtype f32").with("--into", &base);
    run.with("--adapter", &both).with("--out", &out).ok();
    let (found, own) = (read_raw(&out), read_raw(&base));
    for (name, (dtype, _, bytes, _)) in &own {
        let module = name.strip_suffix(".weight").unwrap();
        let once = first.on(module, &values(dtype, bytes), 0.75);
        let wanted = second.on(module, &once, -2.0);
        for (found, wanted) in values("F32", &found[name].2).into_iter().zip(wanted) {
            // Factors are rounded once to f32.
            assert!((found - wanted).abs() < 1e-5 * wanted.abs().max(1.0), "{name}");
        }
    }
    let settings: Value =
        serde_json::from_slice(&fs::read(both.join("adapter_config.json")).unwrap()).unwrap();
    assert_eq!((settings["r"].as_u64(), &settings["rank_pattern"][DOWN]), (Some(5), &3.into()));
}
