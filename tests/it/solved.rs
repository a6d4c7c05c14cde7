//! Blends whose weights are found from whole tensors: what mergekit makes, what cannot depend on tiles and threads, and corners.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use elo_surgery::Error;
use elo_surgery::checkpoint::Checkpoint;
use elo_surgery::engine::{Execution, NoObserver, Observer, Simd, execute, inject_in_place, undo};
use elo_surgery::format::{Dtype, Operation, Reading, Shape};
use elo_surgery::ops::{Inject, inject};
use elo_surgery::plan::{
    Blend, Numerics, Output, PLAN_VERSION, Part, Plan, Shard, Slice, Solve, Source, SourceId, Term,
};
use tempfile::TempDir;

use crate::support::checkpoint::{Model, Raw, Tensor, read_raw, shard_bytes};
use crate::support::fixture;
use crate::support::tree::{assert_same, tree};

const MULTISLERP: Solve = Solve::Multislerp { normalize: true, eps: 1e-8 };
const KARCHER: Solve = Solve::Karcher { max_iter: 10, tol: 1e-5 };

/// A merge of whole models.
struct Merge<'a> {
    solve: Solve,
    base: Option<&'a Path>,
    terms: Vec<(&'a Path, f64)>,
    dtype: Option<Dtype>,
}

/// Sources of a plan, by path.
#[derive(Default)]
struct Sources(Vec<Source>);

impl Sources {
    fn slice(&mut self, model: &Checkpoint, name: &str) -> Slice {
        let (shard, entry) = model.tensor(name).unwrap();
        let at = self.0.iter().position(|source| source.path == shard.path).unwrap_or_else(|| {
            let (role, path) = ("model".to_owned(), shard.path.clone());
            self.0.push(Source { role, path, identity: shard.identity });
            self.0.len() - 1
        });
        let (dtype, shape) = (entry.dtype.clone(), entry.shape.clone());
        Slice {
            source: SourceId(u32::try_from(at).unwrap()),
            bytes: shard.bytes(entry),
            dtype,
            shape,
        }
    }
}

impl<'a> Merge<'a> {
    fn new(solve: Solve, base: Option<&'a Path>, terms: &[(&'a Path, f64)]) -> Self {
        Self { solve, base, terms: terms.to_vec(), dtype: None }
    }

    fn plan(&self) -> Plan {
        let open = |path: &Path| Checkpoint::open(path).unwrap_or_else(|e| panic!("{e}"));
        let base = self.base.map(open);
        let terms: Vec<_> = self.terms.iter().map(|(path, weight)| (open(path), *weight)).collect();
        let mut sources = Sources::default();
        let mut tensors = Vec::new();
        for (name, _) in terms[0].0.tensors() {
            let base = base.as_ref().map(|base| sources.slice(base, name).into());
            let term = |(model, weight): &(Checkpoint, f64)| {
                Term::new(sources.slice(model, name), *weight)
            };
            let terms: Vec<Term> = terms.iter().map(term).collect();
            let dtype = self.dtype.clone().unwrap_or_else(|| terms[0].operand.slice.dtype.clone());
            let shape = terms[0].operand.slice.shape.clone();
            let blend = Blend { solve: Some(self.solve), ..Blend::sum(base, terms, 1.0) };
            let parts = vec![Part::Blend(Box::new(blend))];
            tensors.push(Output { name: name.to_owned(), dtype, shape, parts });
        }
        whole(sources.0, tensors)
    }
}

/// A plan of one file.
fn whole(sources: Vec<Source>, tensors: Vec<Output>) -> Plan {
    let shard = Shard {
        file: "model.safetensors".into(),
        metadata: BTreeMap::new(),
        tensors: (0..tensors.len()).collect(),
        template: None,
        template_header: None,
    };
    Plan {
        version: PLAN_VERSION,
        operation: Operation { verb: "merge".into(), parameters: serde_json::Map::new() },
        sources,
        tensors,
        shards: vec![shard],
        sidecars: Vec::new(),
        numerics: Numerics::Precise,
        parents: Vec::new(),
        layer_map: None,
        notes: Vec::new(),
    }
}

fn try_made(plan: &Plan, change: impl FnOnce(&mut Execution)) -> Result<Raw, Error> {
    let temp = TempDir::new().unwrap();
    let mut options = Execution::to(temp.path().join("out"));
    options.sync = false;
    change(&mut options);
    execute(plan, &options, &NoObserver)?;
    Ok(read_raw(&options.out))
}

fn made(plan: &Plan) -> Raw {
    try_made(plan, |_| {}).unwrap_or_else(|e| panic!("{e}"))
}

/// Every method, with and without a base where it may have one.
fn methods() -> Vec<(Solve, bool, Vec<f64>)> {
    vec![
        (Solve::Slerp { t: 0.3 }, false, vec![1.0; 2]),
        (Solve::Nuslerp, false, vec![0.3, 0.9]),
        (Solve::Nuslerp, true, vec![0.3, 0.9]),
        (MULTISLERP, false, vec![0.5, 0.2, 0.4]),
        (MULTISLERP, true, vec![0.5, 0.2, 0.4]),
        (KARCHER, false, vec![1.0; 3]),
        (Solve::ModelStock, true, vec![1.0; 3]),
    ]
}

/// Models whose tensors have several leaves and tiles, and some that are small.
struct Models {
    temp: TempDir,
    paths: Vec<PathBuf>,
}

impl Models {
    fn new() -> Self {
        let temp = TempDir::new().unwrap();
        let model = |seed| Model {
            layers: 1,
            hidden: 82,
            intermediate: 131,
            vocabulary: 303,
            shards: 2,
            seed,
        };
        let paths = (0..4).map(|i| model(i + 1).at(temp.path(), &format!("m{i}"))).collect();
        Self { temp, paths }
    }

    fn merge(&self, solve: Solve, base: bool, weights: &[f64]) -> Merge<'_> {
        let (last, first) = self.paths.split_last().unwrap();
        let terms: Vec<_> =
            first.iter().map(PathBuf::as_path).zip(weights.iter().copied()).collect();
        Merge::new(solve, base.then_some(last.as_path()), &terms)
    }
}

#[test]
fn tiles_threads_and_reading_change_nothing() {
    let models = Models::new();
    for (solve, base, weights) in methods() {
        for dtype in [None, Some(Dtype::F32)] {
            let plan = Merge { dtype, ..models.merge(solve, base, &weights) }.plan();
            let expected = made(&plan);
            for (tile, threads) in [(4 << 10, 1), (4 << 10, 8), (32 << 10, 3), (1 << 20, 2)] {
                let found = try_made(&plan, |options| {
                    (options.tile, options.threads) = (tile, threads);
                    options.reading = [Reading::Mapped, Reading::Calls][threads % 2];
                });
                assert!(found.unwrap() == expected, "{solve:?}, {tile}, {threads} threads");
            }
        }
    }
}

/// Stops a run when it has been asked so many times.
struct Stop(AtomicU64);

impl Observer for Stop {
    fn cancelled(&self) -> bool {
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_err()
    }
}

#[test]
fn an_interrupted_sweep_changes_nothing() {
    let models = Models::new();
    let plan = models.merge(Solve::ModelStock, true, &[1.0; 3]).plan();
    let expected = made(&plan);
    let mut stops = 0;
    for threads in [1, 4] {
        for patience in 0_u64.. {
            let mut options =
                Execution::to(models.temp.path().join(format!("{threads}-{patience}")));
            (options.tile, options.threads, options.sync) = (4 << 10, threads, false);
            match execute(&plan, &options, &Stop(patience.into())) {
                Err(Error::Interrupted { .. }) => stops += 1,
                other => {
                    other.unwrap();
                    break;
                }
            }
            // The same again, to the end.
            if patience % 13 == 0 {
                execute(&plan, &options, &NoObserver).unwrap();
                assert!(read_raw(&options.out) == expected, "{threads} threads, {patience}");
            }
        }
    }
    assert!(stops > 40, "{stops}");
}

/// One tensor of each model, in files of their own.
fn blend(
    solve: Solve,
    base: Option<&[f32]>,
    terms: &[(&[f32], f64)],
    change: impl FnOnce(&mut Execution),
) -> Result<Vec<f32>, Error> {
    let temp = TempDir::new().unwrap();
    let write = |name: &str, values: &[f32]| {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let path = temp.path().join(name);
        let tensor = Tensor::new("x", "F32", &[values.len() as u64], bytes);
        fs::write(&path, shard_bytes(&[tensor])).unwrap();
        path
    };
    let base = base.map(|values| write("base.safetensors", values));
    let terms: Vec<_> = terms
        .iter()
        .enumerate()
        .map(|(i, (values, weight))| (write(&format!("{i}.safetensors"), values), *weight))
        .collect();
    let terms: Vec<_> = terms.iter().map(|(path, weight)| (path.as_path(), *weight)).collect();
    let found = try_made(&Merge::new(solve, base.as_deref(), &terms).plan(), change)?;
    Ok(found["x"].2.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
}

fn with(solve: Solve, base: Option<&[f32]>, terms: &[(&[f32], f64)]) -> Vec<f32> {
    blend(solve, base, terms, |_| {}).unwrap_or_else(|e| panic!("{e}"))
}

fn near(found: &[f32], expected: &[f32]) -> bool {
    found.len() == expected.len()
        && found.iter().zip(expected).all(|(a, b)| (a - b).abs() <= 4e-7 * b.abs() + 1e-12)
}

const A: [f32; 5] = [0.25, -1.5, 3.0, 0.0, -0.125];
const B: [f32; 5] = [1.0, 0.5, -0.75, 2.0, 0.25];
const ZERO: [f32; 5] = [0.0; 5];

fn negated(x: &[f32]) -> Vec<f32> {
    x.iter().map(|x| -x).collect()
}

fn times(factor: f32, x: &[f32]) -> Vec<f32> {
    x.iter().map(|x| x * factor).collect()
}

#[test]
fn a_with_a_is_a() {
    for (solve, base, weights) in methods() {
        let terms: Vec<_> = weights.iter().map(|weight| (A.as_slice(), *weight)).collect();
        let found = with(solve, base.then_some(&B), &terms);
        assert!(near(&found, &A), "{solve:?}: {found:?}");
    }
}

#[test]
fn what_equals_the_base_changes_nothing() {
    for (solve, base, weights) in methods() {
        if base {
            let terms: Vec<_> = weights.iter().map(|weight| (A.as_slice(), *weight)).collect();
            assert_eq!(with(solve, Some(&A), &terms), A, "{solve:?}");
        }
    }
}

#[test]
fn ends_of_an_arc_are_its_terms() {
    for (t, expected) in [(0.0, A), (1.0, B)] {
        assert_eq!(with(Solve::Slerp { t }, None, &[(&A, 1.0), (&B, 1.0)]), expected);
        assert_eq!(with(Solve::Nuslerp, None, &[(&A, 1.0 - t), (&B, t)]), expected);
    }
}

#[test]
fn zeros_have_no_direction() {
    let zero = ZERO.as_slice();
    let half = times(0.5, &B);
    // At a right angle to everything.
    let quarter = with(Solve::Slerp { t: 1.0 / 3.0 }, None, &[(zero, 1.0), (&B, 1.0)]);
    assert!(near(&quarter, &half), "{quarter:?}");
    assert!(near(&with(MULTISLERP, None, &[(zero, 0.5), (&B, 0.5)]), &half));
    assert!(near(&with(KARCHER, None, &[(zero, 1.0), (&B, 1.0)]), &half));
    for (solve, base, weights) in methods() {
        let terms: Vec<_> = weights.iter().map(|weight| (zero, *weight)).collect();
        assert_eq!(with(solve, base.then_some(zero), &terms), ZERO, "{solve:?}");
    }
}

#[test]
fn opposites_are_blended_straight() {
    let opposite = negated(&A);
    let half = times(0.5, &A);
    // The mean direction of what is not quite balanced is the heavier's.
    for (solve, expected) in [(Solve::Nuslerp, half.as_slice()), (MULTISLERP, &A)] {
        let found = with(solve, None, &[(&A, 0.75), (&opposite, 0.25)]);
        assert!(near(&found, expected), "{solve:?}: {found:?}");
        let none = with(solve, None, &[(&A, 0.5), (&opposite, 0.5)]);
        assert_eq!(none, ZERO, "{solve:?}");
    }
    let slerp = Solve::Slerp { t: 0.25 };
    assert!(near(&with(slerp, None, &[(&A, 1.0), (&opposite, 1.0)]), &half));
    // Stays with the first, at the mean length.
    assert!(near(&with(KARCHER, None, &[(&A, 1.0), (&opposite, 1.0)]), &A));
    // No agreement, no step; then away from each other.
    assert_eq!(with(Solve::ModelStock, Some(&ZERO), &[(&A, 1.0), (&opposite, 1.0)]), ZERO);
}

#[test]
fn directions_that_cancel_are_refused() {
    let opposite = negated(&A);
    let terms: [(&[f32], f64); 3] = [(&A, 0.5), (&opposite, 0.5), (&ZERO, 0.5)];
    for threads in [1, 4] {
        let error = blend(MULTISLERP, None, &terms, |options| options.threads = threads);
        let message = error.unwrap_err().to_string();
        assert!(message.contains("`x`") && message.contains("cancel"), "{message}");
    }
}

#[test]
fn what_is_not_finite_is_not_hidden() {
    let mut broken = A;
    broken[1] = f32::NAN;
    for (solve, base, weights) in methods() {
        let mut terms: Vec<_> = weights.iter().map(|weight| (B.as_slice(), *weight)).collect();
        terms[0].0 = &broken;
        let base = base.then_some(A.as_slice());
        let error = blend(solve, base, &terms, |_| {}).unwrap_err();
        assert!(matches!(error, Error::NonFinite { .. }), "{solve:?}: {error}");
        let found = blend(solve, base, &terms, |options| options.allow_nonfinite = true).unwrap();
        assert!(found.iter().all(|x| x.is_nan()), "{solve:?}: {found:?}");
    }
}

/// A part of a tensor is a whole of its own.
#[test]
fn parts_are_solved_on_their_own() {
    let models = Models::new();
    let plan = models.merge(KARCHER, false, &[1.0; 3]).plan();
    let (mut cut, mut apart) = (plan.clone(), plan);
    let name = "lm_head.weight";
    let at = cut.tensors.iter().position(|tensor| tensor.name == name).unwrap();
    let Part::Blend(both) = &cut.tensors[at].parts[0] else { panic!() };
    let rows = |rows: std::ops::Range<u64>| {
        let slice = |slice: &Slice| {
            let (row, start) = (slice.shape.0[1] * 2, slice.bytes.start);
            let bytes = start + rows.start * row..start + rows.end * row;
            Slice { bytes, shape: slice.shape.with_rows(rows.end - rows.start), ..slice.clone() }
        };
        let terms = both.terms.iter().map(|t| Term::new(slice(&t.operand.slice), t.weight));
        Part::Blend(Box::new(Blend { terms: terms.collect(), ..Blend::clone(both) }))
    };
    let parts = vec![rows(0..101), rows(101..303)];
    let names = ["lm_head.weight", "second"];
    apart.tensors[at].parts = vec![parts[0].clone()];
    apart.tensors[at].shape = Shape(vec![101, 82]);
    let mut second = apart.tensors[at].clone();
    (second.name, second.shape, second.parts) =
        ("second".into(), Shape(vec![202, 82]), vec![parts[1].clone()]);
    apart.shards[0].tensors.push(apart.tensors.len());
    apart.tensors.push(second);
    cut.tensors[at].parts = parts;
    let (cut, apart) = (made(&cut), made(&apart));
    assert_eq!(cut[name].2, names.map(|name| apart[name].2.clone()).concat());
}

#[test]
fn in_place_it_is_the_same() {
    let temp = TempDir::new().unwrap();
    let copy = |from: &Path| {
        let to = temp.path().join(from.file_name().unwrap());
        fs::create_dir_all(&to).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let path = entry.unwrap().path();
            fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
        }
        to
    };
    let into = copy(&fixture("golden/models/llama31-base"));
    let before = tree(&into);
    let open = |path: &Path| Checkpoint::open(path).unwrap();
    let part = open(&fixture("golden/cases/elo-llama31-base/trained"));
    let request = Inject { layers: Some("1,6".parse().unwrap()), ..Inject::default() };
    let mut plan = inject(&part, &open(&into), &request).unwrap();
    // A with A halfway is A: what would be copied from the part.
    let mut solved = 0;
    let own = plan.shards.iter().filter_map(|shard| shard.template).collect::<Vec<_>>();
    for part in plan.tensors.iter_mut().flat_map(|tensor| &mut tensor.parts) {
        if let Part::Copy(slice) = part
            && !own.contains(&slice.source)
        {
            let terms = vec![Term::new(slice.clone(), 1.0); 2];
            let solve = Some(Solve::Slerp { t: 0.5 });
            *part = Part::Blend(Box::new(Blend { solve, ..Blend::sum(None, terms, 1.0) }));
            solved += 1;
        }
    }
    assert!(solved > 10, "{solved}");
    let plain = inject(&part, &open(&into), &request).unwrap();
    let expected = made(&plain);
    let mut options = Execution::to(&into);
    (options.tile, options.sync) = (4 << 10, false);
    let stopped = inject_in_place(&Simd::new(), &plan, &into, &options, &Stop(7.into()));
    assert!(matches!(stopped, Err(Error::Interrupted { .. })), "{stopped:?}");
    assert!(undo(&into, &NoObserver).unwrap());
    assert_same(&tree(&into), &before, "undone");
    // Its files have other times now.
    let identity = |source: &mut Source| {
        source.identity = elo_surgery::format::SourceFile::open(&source.path).unwrap().identity();
    };
    plan.sources.iter_mut().for_each(identity);
    inject_in_place(&Simd::new(), &plan, &into, &options, &NoObserver).unwrap();
    assert!(read_raw(&into) == expected);
}

#[test]
fn a_plan_says_how_its_weights_are_found() {
    let models = Models::new();
    for (solve, base, weights) in methods() {
        let plan = models.merge(solve, base, &weights).plan();
        plan.validate().unwrap();
        let json = serde_json::to_string(&plan).unwrap();
        assert_eq!(serde_json::from_str::<Plan>(&json).unwrap(), plan);
        let mut plain = plan.clone();
        let blends = plain.tensors.iter_mut().flat_map(|tensor| &mut tensor.parts);
        for part in blends {
            let Part::Blend(blend) = part else { panic!() };
            blend.solve = None;
        }
        assert_ne!(plain.digest(), plan.digest());
        assert!(!serde_json::to_string(&plain).unwrap().contains("solve"));
        assert_eq!(plan.cost().read, 2 * plain.cost().read, "every input twice");
    }
    let json = |solve: Solve| serde_json::to_string(&solve).unwrap();
    assert_eq!(json(Solve::Slerp { t: 0.5 }), r#"{"slerp":{"t":0.5}}"#);
    assert_eq!(json(Solve::Nuslerp), r#""nuslerp""#);
    assert_eq!(json(MULTISLERP), r#"{"multislerp":{"normalize":true,"eps":1e-8}}"#);
    assert_eq!(json(KARCHER), r#"{"karcher":{"max_iter":10,"tol":0.00001}}"#);
    assert_eq!(json(Solve::ModelStock), r#""model_stock""#);
    assert!(serde_json::from_str::<Solve>(r#"{"slerp":{"t":0.5,"u":1}}"#).is_err());
}

#[test]
fn wrong_blends_are_refused() {
    let models = Models::new();
    let (slerp, eps) = (Solve::Slerp { t: 0.5 }, 1e-8);
    let cases: [(Solve, bool, &[f64], &str); 14] = [
        (slerp, false, &[1.0], "slerp of 1 terms"),
        (slerp, false, &[1.0; 3], "slerp of 3 terms"),
        (slerp, true, &[1.0; 2], "slerp with a base"),
        (slerp, false, &[1.0, 0.5], "slerp has no weights"),
        (Solve::Slerp { t: f64::NAN }, false, &[1.0; 2], "cannot work with"),
        (Solve::Nuslerp, false, &[1.0; 3], "nuslerp of 3 terms"),
        (Solve::Nuslerp, false, &[1.0, f64::INFINITY], "not finite"),
        (MULTISLERP, false, &[1.0], "multislerp of 1 terms"),
        (MULTISLERP, false, &[1.0, -1.0], "cannot work with"),
        (Solve::Multislerp { normalize: false, eps: -eps }, false, &[1.0; 2], "cannot work with"),
        (Solve::Karcher { max_iter: 10_001, tol: 1e-5 }, false, &[1.0; 2], "cannot work with"),
        (Solve::Karcher { max_iter: 10, tol: 0.0 }, false, &[1.0; 2], "cannot work with"),
        (KARCHER, true, &[1.0; 2], "karcher with a base"),
        (Solve::ModelStock, false, &[1.0; 2], "model_stock without a base"),
    ];
    for (solve, base, weights, expected) in cases {
        let error = models.merge(solve, base, weights).plan().validate().unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}
