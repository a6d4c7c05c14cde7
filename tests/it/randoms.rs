//! DARE and DELLA: what they keep, by statistics beside mergekit's, and that a seed says which.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::Value;
use tempfile::TempDir;

use crate::golden::golden;
use crate::support::checkpoint::read_raw;
use crate::support::process::elo;

type Values = BTreeMap<String, (Vec<u64>, Vec<f32>)>;

fn values(root: &Path) -> Values {
    let value = |b: &[u8]| f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
    let tensor =
        |(name, (dtype, shape, bytes, _)): (String, (String, Vec<u64>, Vec<u8>, String))| {
            assert_eq!(dtype, "F32");
            (name, (shape, bytes.chunks_exact(4).map(value).collect()))
        };
    read_raw(root).into_iter().map(tensor).collect()
}

/// Weights of `mrg32-a` and `mrg32-b`, and more parameters of both.
fn merged(method: &str, weights: [f64; 2], own: &str, shared: &str, seed: u64) -> Values {
    let dir = TempDir::new().unwrap();
    let model = |name: &str, weight: f64| {
        format!("- {{model: models/mrg32-{name}, parameters: {{weight: {weight}, {own}}}}}\n")
    };
    let models = model("a", weights[0]) + &model("b", weights[1]);
    let yaml = format!(
        "merge_method: {method}\nbase_model: models/mrg32-base\nmodels:\n{models}parameters: {{normalize: false, {shared}}}\n"
    );
    let (file, out) = (dir.path().join("config.yml"), dir.path().join("out"));
    fs::write(&file, yaml).unwrap();
    elo("merge --no-sync")
        .arg(&file)
        .with("--out", &out)
        .with("--random-seed", seed.to_string())
        .within(&golden(""))
        .ok();
    values(&out)
}

/// Where the result is not the base: by tensor.
fn kept(found: &Values, base: &Values) -> BTreeMap<String, Vec<bool>> {
    let differs = |(name, (_, found)): (&String, &(Vec<u64>, Vec<f32>))| {
        let pairs = found.iter().zip(&base[name].1);
        (name.clone(), pairs.map(|(a, b)| a.to_bits() != b.to_bits()).collect())
    };
    found.iter().map(differs).collect()
}

fn share<'a>(flags: impl IntoIterator<Item = &'a bool>) -> f64 {
    let (mut all, mut set) = (0_u32, 0_u32);
    for flag in flags {
        all += 1;
        set += u32::from(*flag);
    }
    f64::from(set) / f64::from(all)
}

#[test]
fn shares_are_those_of_mergekit() {
    let stats = fs::read_to_string(golden("cases/random-statistics/stats.json")).unwrap();
    let stats: Value = serde_json::from_str(&stats).unwrap();
    let (base, a) = (values(&golden("models/mrg32-base")), values(&golden("models/mrg32-a")));
    for (method, expected) in stats["methods"].as_object().unwrap() {
        let density = &expected["density"];
        let own = match expected["epsilon"].as_f64() {
            Some(epsilon) => format!("density: {density}, epsilon: {epsilon}"),
            None => format!("density: {density}"),
        };
        let runs = expected["runs"].as_array().unwrap();
        for seed in [0, 1, u64::MAX] {
            let found = merged(method, [1.0, 0.0], &own, "rescale: true", seed);
            let kept = kept(&found, &base);
            let mut large = Vec::new();
            for (name, (shape, found)) in &found {
                let delta = |x: &[f32]| -> Vec<f32> {
                    x.iter().zip(&base[name].1).map(|(x, b)| x - b).collect()
                };
                let (whole, found) = (delta(&a[name].1), delta(found));
                let norm = |x: &[f32]| x.iter().map(|x| f64::from(x.abs())).sum::<f64>();
                let ratio = norm(&found) / norm(&whole);
                assert!((ratio - 1.0).abs() < 1e-5, "{method} {seed} {name}: norm {ratio}");
                let columns = usize::try_from(*shape.last().unwrap()).unwrap();
                for (row, kept) in whole.chunks(columns).zip(kept[name].chunks(columns)) {
                    let mut order: Vec<f32> = row.iter().map(|x| x.abs()).collect();
                    order.sort_by(f32::total_cmp);
                    let larger = |x: &f32| x.abs() >= order[columns / 2];
                    let upper = row.iter().zip(kept).filter(|(x, _)| larger(x));
                    large.extend(upper.map(|(_, kept)| *kept));
                }
            }
            // Five standard deviations of 8336 and 4168 elements.
            for (what, found, near) in [
                ("kept_fraction", share(kept.values().flatten()), 0.027),
                ("kept_fraction_large_half", share(&large), 0.039),
            ] {
                let mean = runs.iter().map(|run| run[what].as_f64().unwrap()).sum::<f64>() / 3.0;
                assert!((found - mean).abs() < near, "{method} {seed}: {what} {found}, not {mean}");
            }
        }
    }
}

#[test]
fn tensors_models_and_seeds_are_independent() {
    let base = values(&golden("models/mrg32-base"));
    let of = |weights, seed| {
        kept(&merged("dare_linear", weights, "density: 0.4", "rescale: false", seed), &base)
    };
    let (a, b, other) = (of([1.0, 0.0], 7), of([0.0, 1.0], 7), of([1.0, 0.0], 8));
    // Two independent sets of 0.4 have 0.16 in common.
    let both = |x: &BTreeMap<String, Vec<bool>>, y: &BTreeMap<String, Vec<bool>>| {
        let pairs = x.iter().flat_map(|(name, x)| x.iter().zip(&y[name]));
        let both: Vec<bool> = pairs.map(|(x, y)| *x && *y).collect();
        share(&both)
    };
    for (what, found) in [("models", both(&a, &b)), ("seeds", both(&a, &other))] {
        assert!((found - 0.16).abs() < 0.02, "{what}: {found}");
    }
    let mut layers = Vec::new();
    for (name, first) in a.iter().filter(|(name, _)| name.contains("layers.0.")) {
        for layer in 1..4 {
            let second = &a[&name.replace("layers.0.", &format!("layers.{layer}."))];
            layers.extend(first.iter().zip(second).map(|(x, y)| *x && *y));
        }
    }
    let found = share(&layers);
    assert!((found - 0.16).abs() < 0.025, "layers: {found}");
}

#[test]
fn a_seed_says_which_bytes() {
    for method in ["dare_ties", "della_linear"] {
        let of = |seed| merged(method, [0.5, 0.5], "density: 0.5", "lambda: 1", seed);
        let first = of(3);
        assert!(first == of(3), "{method}: the same seed");
        assert!(first != of(4), "{method}: another seed");
    }
}

#[test]
fn the_paper_divides_by_the_density() {
    let dir = TempDir::new().unwrap();
    let (base, a) = (values(&golden("models/mrg32-base")), values(&golden("models/mrg32-a")));
    let yaml = "merge_method: dare_linear\nbase_model: models/mrg32-base\nmodels:\n- {model: models/mrg32-a, parameters: {weight: 1, density: 0.25}}\nelo_surgery: {rescale: paper}\n";
    let (file, out) = (dir.path().join("config.yml"), dir.path().join("out"));
    fs::write(&file, yaml).unwrap();
    elo("merge --no-sync").arg(&file).with("--out", &out).within(&golden("")).ok();
    let mut kept = 0;
    for (name, (_, found)) in values(&out) {
        for ((found, base), a) in found.iter().zip(&base[&name].1).zip(&a[&name].1) {
            if found.to_bits() != base.to_bits() {
                kept += 1;
                let wanted = base + 4.0 * (a - base);
                assert_eq!(found.to_bits(), wanted.to_bits(), "{name}");
            }
        }
    }
    assert!((1900..2270).contains(&kept), "{kept} of 8336");
}
