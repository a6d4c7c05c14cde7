//! TIES trimmed over the whole model: the threshold is the one that sorting all differences gives.

use std::path::Path;

use elo_surgery::Error;
use elo_surgery::checkpoint::Checkpoint;
use elo_surgery::engine::{Execution, NoObserver, execute};
use elo_surgery::ops::merge::{Config, Merge, merge};
use elo_surgery::plan::{Keep, Numerics, Part, Plan};

use crate::support::checkpoint::{Raw, read_raw};
use crate::support::fixture;
use crate::support::tree::weights_and_config;

fn model(name: &str) -> std::path::PathBuf {
    fixture(&format!("golden/models/mrg16-{name}"))
}

fn config(densities: [f64; 2], extra: &str) -> Config {
    let text = format!(
        "merge_method: ties\nbase_model: {}\nmodels:\n- {{model: {}, parameters: {{weight: 0.7, density: {}}}}}\n\
         - {{model: {}, parameters: {{weight: 0.4, density: {}}}}}\nelo_surgery: {{trim: model{extra}}}\ndtype: bfloat16\n",
        model("base").display(),
        model("a").display(),
        densities[0],
        model("b").display(),
        densities[1]
    );
    Config::parse(&text, "config.yml").unwrap()
}

fn planned(config: &Config) -> Result<Plan, Error> {
    let models: Vec<_> =
        config.models().into_iter().map(|m| Checkpoint::open(&m.path).unwrap()).collect();
    let request = Merge {
        shard_size: None,
        truncate_embeddings: false,
        numerics: Numerics::Precise,
        random_seed: 0,
        no_model_card: true,
        made: Vec::new(),
    };
    merge(config, &models, &request)
}

fn values(raw: &Raw, name: &str) -> Vec<f32> {
    let (dtype, _, bytes, _) = &raw[name];
    assert_eq!(dtype, "BF16");
    let halves = bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
    halves.map(|bits| f32::from_bits(u32::from(bits) << 16)).collect()
}

/// Everything that a model changes, by magnitude, the smallest first.
fn magnitudes(of: &str) -> Vec<f32> {
    let (base, changed) = (read_raw(&model("base")), read_raw(&model(of)));
    let mut all = Vec::new();
    for name in base.keys() {
        let pairs = values(&changed, name).into_iter().zip(values(&base, name));
        all.extend(pairs.map(|(x, base)| (x - base).abs()));
    }
    all.sort_by(f32::total_cmp);
    all
}

/// The authors' code: `kthvalue(n - int(n * density))`, and what is not smaller stays.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "the authors' arithmetic"
)]
fn threshold(sorted: &[f32], density: f64) -> Option<f32> {
    let kept = (density * sorted.len() as f64) as usize;
    (kept < sorted.len()).then(|| sorted[sorted.len() - kept - 1])
}

#[test]
fn the_threshold_is_that_of_all_values_sorted() {
    let dir = tempfile::tempdir().unwrap();
    let sorted = [magnitudes("a"), magnitudes("b")];
    for (i, densities) in [[0.2, 0.5], [0.0, 0.001], [1.0, 0.93]].into_iter().enumerate() {
        let plan = planned(&config(densities, "")).unwrap();
        let mut expected = plan.clone();
        let mut found = 0;
        for part in expected.tensors.iter_mut().flat_map(|tensor| &mut tensor.parts) {
            let Part::Blend(blend) = part else { continue };
            for (term, (sorted, density)) in
                blend.terms.iter_mut().zip(sorted.iter().zip(densities))
            {
                assert!(matches!(term.keep, Keep::LargestOfAll { .. }));
                found += 1;
                term.keep = match threshold(sorted, density) {
                    None => Keep::All,
                    // Above the next smaller number is from this one on.
                    Some(least) if least > 0.0 => {
                        Keep::Above { magnitude: f64::from(f32::from_bits(least.to_bits() - 1)) }
                    }
                    Some(_) => Keep::All,
                };
            }
        }
        assert!(found > 10);
        let run = |plan: &Plan, name: String, threads: usize| {
            let out = dir.path().join(name);
            let options = Execution { threads, ..Execution::to(&out) };
            execute(plan, &options, &NoObserver).unwrap();
            weights_and_config(&out)
        };
        let want = run(&expected, format!("want-{i}"), 1);
        for threads in [1, 3] {
            assert_eq!(run(&plan, format!("whole-{i}-{threads}"), threads), want);
        }
        assert_eq!(plan.cost().sweeps, 3);
    }
}

#[test]
fn what_cannot_be_trimmed_as_a_whole_is_refused() {
    let rule = ", tensors: [{match: '*norm*', parameters: {density: 0.9}}]";
    let error = planned(&config([0.2, 0.5], rule)).unwrap_err().to_string();
    assert!(error.contains("elo_surgery.trim") && error.contains("one `density`"), "{error}");
    let slices = |path: &Path| {
        format!(
            "merge_method: ties\nbase_model: {0}\nslices: [{{sources: [{{model: {0}, layer_range: [0, 1]}}, {{model: {1}, layer_range: [0, 1], parameters: {{weight: 1}}}}]}}]\n\
             elo_surgery: {{trim: model}}\n",
            path.display(),
            model("a").display()
        )
    };
    let error = Config::parse(&slices(&model("base")), "c").unwrap_err().to_string();
    assert!(error.contains("whole models"), "{error}");
    let linear = "merge_method: linear\nmodels: [{model: x, parameters: {weight: 1}}]\nelo_surgery: {trim: model}\n";
    let error = Config::parse(linear, "c").unwrap_err().to_string();
    assert!(error.contains("it is for ties"), "{error}");
}
