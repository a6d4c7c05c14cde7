//! Whole plans on every device, with every tile and number of threads: one output.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use elo_surgery::checkpoint::Checkpoint;
use elo_surgery::engine::{Device, Execution, NoObserver, Reference, Simd, execute_on};
use elo_surgery::format::{DigestAlgorithm, Reading};
use elo_surgery::ops::{ChatVector, LayerScale, chat_vector};
use elo_surgery::plan::{Blend, Divide, Keep, Part, Plan, Solve, Span, Vote};

fn model(name: &str) -> Checkpoint {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/golden/models");
    Checkpoint::open(root.join(name)).unwrap()
}

fn plan() -> Plan {
    let layer_scales = vec![LayerScale { layers: "2-3".parse().unwrap(), factor: -0.3 }];
    let request = ChatVector { scale: 0.7, layer_scales, ..ChatVector::default() };
    chat_vector(&model("llama31-inst"), &model("llama31-base"), &model("llama31-target"), &request)
        .unwrap()
}

/// The same models in every way that has to look at whole tensors first.
fn solved_plan() -> Plan {
    let mut plan = plan();
    let mut methods = [
        (Solve::Slerp { t: 0.3 }, false),
        (Solve::Nuslerp, true),
        (Solve::Multislerp { normalize: false, eps: 1e-8 }, true),
        (Solve::Karcher { max_iter: 10, tol: 1e-5 }, false),
        (Solve::ModelStock, true),
    ]
    .into_iter()
    .cycle();
    for part in plan.tensors.iter_mut().flat_map(|tensor| &mut tensor.parts) {
        let (Part::Blend(blend), Some((solve, has_base))) = (part, methods.next()) else {
            continue;
        };
        blend.lambda = 1.0;
        blend.solve = Some(solve);
        blend.terms.iter_mut().for_each(|term| term.weight = 1.0);
        if !has_base {
            blend.base = None;
        }
    }
    plan
}

/// The same models in every way that keeps some values, votes, divides, or has weights for rows and columns.
fn sparse_plan() -> Plan {
    let mut plan = plan();
    let mut turn = 0;
    for part in plan.tensors.iter_mut().flat_map(|tensor| &mut tensor.parts) {
        if let Part::Blend(blend) = part {
            **blend = sparse(blend, turn);
            turn += 1;
        }
    }
    plan
}

fn sparse(blend: &Blend, turn: u64) -> Blend {
    let shape = &blend.terms[0].operand.slice.shape;
    let (elements, columns) = (shape.elements().unwrap(), *shape.0.last().unwrap());
    let random = Keep::Random { probability: 0.6, seed: 0x0123_4567_89ab_cdef ^ turn };
    let (mean, one) = (Some(Divide { least: 1e-8, instead: 1.0 }), vec![1.0, 1.0]);
    let (weighted, plain) = (Some(Vote::Weighted), Some(Vote::Plain));
    let given: Vec<f64> = blend.terms.iter().map(|term| term.weight).collect();
    let few = Keep::Largest { skip: 0, count: elements / 5 + 1 };
    let most = Keep::Largest { skip: elements / 50, count: elements / 2 };
    let ranked = Keep::Ranked { low: 0.2, high: 0.9, seed: turn, columns };
    let energy = Some(Solve::Energy { least: 1e-6 });
    let overlap = Some(Solve::Overlap { r: 0.1, alpha: 0.2 });
    let above = Keep::Above { magnitude: 1e-3 };
    let (varied, important) = (Keep::Varied { share: 0.4 }, Keep::Important { columns });
    let (near, all) = (Keep::Near { t: 1e-3 }, Keep::All);
    let of_all = Keep::LargestOfAll { group: 0, share: 0.3 };
    let (rows, by_columns) = (Span::Rows { columns }, Span::Columns { columns });
    // Keep, rescaled, vote, divide, weights and how they are found, for what.
    let (keep, rescale, vote, divide, weights, solve, span) = match turn % 12 {
        0 => (few, false, weighted, mean, given, None, Span::Part),
        1 => (random, true, None, None, given, None, Span::Part),
        2 => (random, true, weighted, mean, given, None, Span::Part),
        3 => (most, true, None, None, given, None, Span::Part),
        4 => (ranked, true, weighted, mean, given, None, Span::Part),
        5 => (varied, false, plain, mean, one, energy, Span::Part),
        6 => (above, false, None, mean, one, overlap, Span::Part),
        7 => (near, false, None, None, given, None, Span::Part),
        8 => (important, false, None, None, given, None, Span::Part),
        9 => (all, false, None, None, one, Some(Solve::Nuslerp), rows),
        10 => (all, false, None, None, one, Some(Solve::ModelStock), by_columns),
        _ => (of_all, false, weighted, mean, given, None, Span::Part),
    };
    let mut made = Blend { deltas: true, vote, divide, solve, span, ..blend.clone() };
    for (term, weight) in made.terms.iter_mut().zip(weights) {
        (term.keep, term.rescale, term.weight) = (keep, rescale, weight);
    }
    made
}

/// Every file of a directory.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let entries = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path());
    entries.map(|p| (p.file_name().unwrap().into(), fs::read(&p).unwrap())).collect()
}

pub(crate) fn run(
    device: &dyn Device,
    change: impl FnOnce(&mut Execution),
) -> BTreeMap<PathBuf, Vec<u8>> {
    let dir = tempfile::tempdir().unwrap();
    let mut options = Execution::to(dir.path().join("out"));
    options.sync = false;
    change(&mut options);
    execute_on(device, &plan(), &options, &NoObserver).unwrap();
    let mut all = files(&options.out);
    for (name, plan) in [("solved", solved_plan()), ("sparse", sparse_plan())] {
        options.out = dir.path().join(name);
        execute_on(device, &plan, &options, &NoObserver).unwrap();
        let made = files(&options.out).into_iter();
        all.extend(made.map(|(file, bytes)| (Path::new(name).join(file), bytes)));
    }
    all
}

#[test]
fn every_device_gives_the_same_files() {
    let expected = run(&Reference, |_| {});
    assert!(expected.len() > 10, "shards, index, config, tokenizer, provenance");
    for device in Simd::levels() {
        assert!(run(&device, |_| {}) == expected, "{}", device.name());
    }
}

#[cfg(feature = "cuda")]
#[test]
#[ignore = "needs a GPU: `just gpu-check`; without one it runs inside `cuda::device`"]
fn cuda() {
    use elo_surgery::engine::cuda::{Cuda, CudaOptions};
    let expected = run(&Reference, |_| {});
    for memory in [None, Some(1 << 20)] {
        let device = Cuda::new(&CudaOptions { memory, ..CudaOptions::default() }).unwrap();
        for (tile, threads) in [(64 << 10, 1), (64 << 10, 8), (4 << 20, 4)] {
            let found = run(&device, |options| (options.tile, options.threads) = (tile, threads));
            assert!(found == expected, "tile {tile}, {threads} threads, {memory:?} bytes");
        }
    }
}

/// `auto` with a GPU beside the CPU, whatever it decides and whenever the GPU fails.
#[cfg(feature = "cuda")]
#[test]
#[ignore = "needs a GPU: `just gpu-check`; without one it runs inside `cuda::auto`"]
fn auto() {
    use elo_surgery::engine::Auto;
    use elo_surgery::engine::cuda::{Cuda, CudaOptions};
    let expected = run(&Reference, |_| {});
    for threads in [1, 3] {
        let device = Auto::new(threads, || Ok(Box::new(Cuda::new(&CudaOptions::default())?)));
        // Again and again, until there have been tiles enough to decide.
        while device.verdict().reason.is_none() {
            let found =
                run(&device, |options| (options.tile, options.threads) = (4 << 10, threads));
            assert!(found == expected, "{threads} threads, {:?}", device.verdict());
        }
        println!("{}: {:?}", device.name(), device.verdict());
        let found = run(&device, |options| options.threads = threads);
        assert!(found == expected, "{threads} threads, {:?}", device.verdict());
    }
}

#[test]
fn tiles_threads_and_reading_change_nothing() {
    let device = Simd::new();
    let expected = run(&device, |_| {});
    for tile in [4 << 10, 16 << 10, 64 << 10, 1 << 20] {
        for threads in [1, 2, 8] {
            for reading in [Reading::Mapped, Reading::Calls] {
                let found = run(&device, |options| {
                    (options.tile, options.threads, options.reading) = (tile, threads, reading);
                });
                assert!(found == expected, "tile {tile}, {threads} threads, {reading:?}");
            }
        }
    }
}

#[test]
fn digests_are_those_of_the_files() {
    for algorithm in [DigestAlgorithm::Blake3, DigestAlgorithm::Sha256] {
        let dir = tempfile::tempdir().unwrap();
        let mut options = Execution::to(dir.path().join("out"));
        options.digest = Some(algorithm);
        execute_on(&Simd::new(), &plan(), &options, &NoObserver).unwrap();
        let output = Checkpoint::open(&options.out).unwrap();
        let record = output.provenance().unwrap();
        assert_eq!(record.files.len(), files(&options.out).len() - 1, "all but itself");
        for file in &record.files {
            let path = options.out.join(&file.file);
            let digest = elo_surgery::engine::digest_file(&path, algorithm, &mut |_| true).unwrap();
            assert_eq!(file.digest.as_ref(), Some(&digest), "{}", file.file);
        }
    }
}
