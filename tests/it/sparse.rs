//! Blends that keep some values, vote and divide, in whole plans: against an oracle that sorts, and the same bytes for any tiles,
//! threads and interruption.

#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    clippy::float_cmp,
    reason = "a test: it rounds where it says so"
)]

mod oracle;

use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};

use elo_surgery::Error;
use elo_surgery::engine::{
    Execution, NoObserver, Observer, Progress, Reference, execute, execute_on,
};
use elo_surgery::format::{Dtype, Operation, Shape, SourceFile};
use elo_surgery::plan::{
    Blend, Divide, Keep, Numerics, Output, PLAN_VERSION, Part, Plan, Shard, Slice, Solve, Source,
    SourceId, Span, Term, Vote,
};
use tempfile::TempDir;

use self::oracle::expected;
use crate::support::checkpoint::{Tensor, read_raw, shard_bytes};
use crate::support::random::Random;

/// Values of a base and of terms, and what is made of them.
struct Case {
    columns: u64,
    base: Vec<f32>,
    terms: Vec<Vec<f32>>,
    blend: Blend,
}

/// A term that keeps something; its operand is put in later.
fn term(weight: f64, keep: Keep) -> Term {
    let nothing =
        Slice { source: SourceId(0), bytes: 0..0, dtype: Dtype::F32, shape: Shape(vec![]) };
    Term { keep, ..Term::new(nothing, weight) }
}

/// A blend of deltas.
fn of_deltas(terms: Vec<Term>, lambda: f64) -> Blend {
    let base = Some(terms[0].operand.clone());
    Blend { deltas: true, ..Blend::sum(base, terms, lambda) }
}

impl Case {
    /// Values on a grid, so that many are equal, many are zero, and some are far out.
    fn new(rows: u64, columns: u64, blend: Blend) -> Self {
        let mut random = Random::new(rows * 7919 + columns);
        let mut draw = |below: u64| random.next() % below;
        let count = usize::try_from(rows * columns).unwrap();
        let grid = |draw: u64, half: f32| draw as f32 - half;
        let base: Vec<f32> = (0..count).map(|_| grid(draw(65), 32.0) / 64.0).collect();
        let mut delta = || match draw(16) {
            0..4 => 0.0,
            4 => grid(draw(2001), 1000.0) / 128.0,
            _ => grid(draw(41), 20.0) / 512.0,
        };
        let terms: Vec<Vec<f32>> =
            blend.terms.iter().map(|_| base.iter().map(|b| b + delta()).collect()).collect();
        Self { columns, base, terms, blend }
    }

    fn plan(&self, temp: &TempDir, dtype: &Dtype) -> Plan {
        let shape = [self.base.len() as u64 / self.columns, self.columns];
        let mut sources = Vec::new();
        let mut write = |values: &[f32]| {
            let (name, bytes): (_, Vec<u8>) = match dtype {
                Dtype::F32 => ("F32", values.iter().flat_map(|v| v.to_le_bytes()).collect()),
                // Exact: the values have few bits.
                Dtype::BF16 => (
                    "BF16",
                    values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect(),
                ),
                _ => ("F64", values.iter().flat_map(|v| f64::from(*v).to_le_bytes()).collect()),
            };
            let path = temp.path().join(format!("{}.safetensors", sources.len()));
            let len = bytes.len() as u64;
            let file = shard_bytes(&[Tensor::new("x", name, &shape, bytes)]);
            fs::write(&path, &file).unwrap();
            let identity = SourceFile::open(&path).unwrap().identity();
            sources.push(Source { role: "model".into(), path, identity });
            let source = SourceId(u32::try_from(sources.len() - 1).unwrap());
            let end = file.len() as u64;
            Slice {
                source,
                bytes: end - len..end,
                dtype: dtype.clone(),
                shape: Shape(shape.to_vec()),
            }
        };
        let mut blend = self.blend.clone();
        if let Some(base) = &mut blend.base {
            *base = write(&self.base).into();
        }
        for (term, values) in blend.terms.iter_mut().zip(&self.terms) {
            term.operand = write(values).into();
        }
        let out = if *dtype == Dtype::BF16 { Dtype::F32 } else { dtype.clone() };
        let parts = vec![Part::Blend(Box::new(blend))];
        let shape = Shape(shape.to_vec());
        let tensors = vec![Output { name: "x".into(), dtype: out, shape, parts }];
        let shard = Shard {
            file: "model.safetensors".into(),
            metadata: BTreeMap::new(),
            tensors: vec![0],
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
}

fn made(plan: &Plan, temp: &TempDir, change: impl FnOnce(&mut Execution)) -> Vec<u8> {
    let mut options = Execution::to(temp.path().join("out"));
    (options.sync, options.overwrite) = (false, true);
    change(&mut options);
    execute(plan, &options, &NoObserver).unwrap_or_else(|e| panic!("{e}"));
    read_raw(&options.out)["x"].2.clone()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

/// Every keep, of a part of so many rows and columns.
fn keeps(rows: u64, columns: u64) -> Vec<Keep> {
    let n = rows * columns;
    vec![
        Keep::All,
        Keep::Largest { skip: 0, count: n / 2 },
        Keep::Largest { skip: 0, count: n / 5 + 1 },
        Keep::Largest { skip: n / 100 + 1, count: n / 3 },
        Keep::Largest { skip: 0, count: 0 },
        Keep::Largest { skip: n / 2, count: 0 },
        Keep::Largest { skip: 0, count: n },
        Keep::Largest { skip: n / 10, count: n - n / 10 },
        Keep::Above { magnitude: 3.0 / 512.0 },
        Keep::Above { magnitude: 0.0 },
        Keep::Random { probability: 0.3, seed: 0x0123_4567_89ab_cdef },
        Keep::Random { probability: 1.0, seed: 1 },
        Keep::Random { probability: 0.0, seed: 1 },
        Keep::Ranked { low: 0.2, high: 0.9, seed: 99, columns },
        Keep::Varied { share: 0.37 },
        Keep::Varied { share: 0.0 },
        Keep::Varied { share: 1.0 },
        Keep::Important { columns },
        Keep::Near { t: 0.01 },
        Keep::Near { t: -1.0 },
    ]
}

/// Rows and columns: within a leaf, of many leaves with a short one at the end, one long row.
const SHAPES: [(u64, u64); 4] = [(7, 5), (61, 401), (1, 9001), (300, 1)];

fn check(case: &Case, exact: bool) {
    let want = expected(&case.blend, Some(&case.base), &case.terms, case.columns);
    for dtype in [Dtype::F32, Dtype::BF16] {
        let temp = TempDir::new().unwrap();
        let plan = case.plan(&temp, &dtype);
        let first = made(&plan, &temp, |_| {});
        for (tile, threads) in [(4 << 10, 1), (4 << 10, 5), (32 << 10, 2)] {
            let found =
                made(&plan, &temp, |options| (options.tile, options.threads) = (tile, threads));
            assert!(found == first, "{tile} {threads}: {:?}", case.blend);
        }
        let same = |a: f32, b: f32| {
            if exact {
                a.to_bits() == b.to_bits()
            } else {
                (a - b).abs() <= 1e-5 * b.abs().max(0.05)
            }
        };
        // Terms were rounded to bf16 where they have more bits.
        if dtype == Dtype::F32 {
            let found = floats(&first);
            let at = found.iter().zip(&want).position(|(a, b)| !same(*a, *b));
            if let Some(at) = at {
                panic!("element {at} is {} not {}: {:?}", found[at], want[at], case.blend);
            }
        }
    }
}

#[test]
fn every_keep() {
    for (rows, columns) in SHAPES {
        for keep in keeps(rows, columns) {
            let terms = vec![term(0.7, keep), term(-0.4, Keep::All)];
            check(&Case::new(rows, columns, of_deltas(terms, 1.5)), true);
            let terms = vec![
                Term { gain: 2.5, alone: 1.25, ..term(0.7, keep) },
                term(0.4, keep),
                term(0.3, keep),
            ];
            let blend = Blend {
                vote: Some(Vote::Weighted),
                divide: Some(Divide { least: 1e-8, instead: 1.0 }),
                ..of_deltas(terms, 1.0)
            };
            check(&Case::new(rows, columns, blend), true);
        }
    }
}

/// Thresholds among magnitudes that differ in their last bits alone, each of which many elements have.
#[test]
fn many_that_are_near_each_other() {
    for steps in [3, 16] {
        let keep = Keep::Largest { skip: 1000, count: 9000 };
        let mut case = Case::new(61, 401, of_deltas(vec![term(0.7, keep)], 1.0));
        case.base.fill(0.0);
        for (i, x) in case.terms[0].iter_mut().enumerate() {
            let sign = if i % 3 == 0 { -1.0 } else { 1.0 };
            *x = sign * (1.0 + (i * 7 % steps) as f32 / 1_048_576.0);
        }
        check(&case, true);
    }
}

/// Parts that are larger than a sample: a look with brackets, and histograms where those are too wide. The reference has histograms alone.
#[test]
fn a_sample_changes_nothing() {
    let (rows, columns) = (173, 401);
    let n = rows * columns;
    let largest = |skip, count| Keep::Largest { skip, count };
    for keep in [
        largest(0, n / 2),
        largest(0, n / 5 + 1),
        largest(n / 100 + 1, n / 3),
        largest(0, 3),
        largest(1, n - 3),
        Keep::Varied { share: 0.37 },
        Keep::Important { columns },
    ] {
        for fine in [false, true] {
            let terms = vec![term(0.7, keep), term(0.4, keep)];
            let divide = Some(Divide { least: 1e-8, instead: 1.0 });
            let blend = Blend { vote: Some(Vote::Weighted), divide, ..of_deltas(terms, 1.0) };
            let mut case = Case::new(rows, columns, blend);
            if fine {
                // Nearly all different.
                let mut random = Random::new(n);
                for x in case.terms.iter_mut().flatten() {
                    *x += random.below(1 << 20) as f32 / 1e9;
                }
            }
            if !matches!(keep, Keep::Important { .. }) {
                check(&case, true);
            }
            for dtype in [Dtype::F32, Dtype::BF16, Dtype::F64] {
                let temp = TempDir::new().unwrap();
                let plan = case.plan(&temp, &dtype);
                let found = made(&plan, &temp, |_| {});
                let mut options = Execution::to(temp.path().join("reference"));
                options.sync = false;
                execute_on(&Reference, &plan, &options, &NoObserver).unwrap();
                assert!(found == read_raw(&options.out)["x"].2, "{dtype} {fine} {keep:?}");
            }
        }
    }
}

#[test]
fn values_without_a_base() {
    let (rows, columns) = (61, 401);
    for keep in [
        Keep::Largest { skip: 3, count: 9000 },
        Keep::Varied { share: 0.5 },
        Keep::Above { magnitude: 0.25 },
    ] {
        let terms = vec![term(0.7, keep), term(-0.4, keep)];
        check(&Case::new(rows, columns, Blend::sum(None, terms.clone(), 1.5)), true);
        // Added to a base that is not subtracted.
        let base = Some(terms[0].operand.clone());
        check(&Case::new(rows, columns, Blend::sum(base, terms, 1.5)), true);
    }
}

#[test]
fn votes_and_means() {
    for vote in [None, Some(Vote::Weighted), Some(Vote::Plain)] {
        for divide in [
            None,
            Some(Divide { least: 1e-6, instead: 2.0 }),
            Some(Divide { least: 0.5, instead: 1.0 }),
        ] {
            for weights in [[0.5, 0.3, 0.2], [1.0, -1.0, 0.5], [0.0, 1.0, 1.0]] {
                let keeps = [
                    Keep::Largest { skip: 0, count: 9000 },
                    Keep::All,
                    Keep::Random { probability: 0.5, seed: 3 },
                ];
                let terms = weights
                    .into_iter()
                    .zip(keeps)
                    .map(|(weight, keep)| Term { alone: 0.5, ..term(weight, keep) });
                check(
                    &Case::new(61, 401, Blend { vote, divide, ..of_deltas(terms.collect(), 0.8) }),
                    true,
                );
            }
        }
    }
}

#[test]
fn what_is_kept_weighs_as_much_as_the_whole() {
    for (rows, columns) in SHAPES {
        for keep in keeps(rows, columns) {
            let terms = vec![
                Term { rescale: true, ..term(0.7, keep) },
                Term { rescale: true, gain: 0.5, ..term(0.4, keep) },
            ];
            check(&Case::new(rows, columns, of_deltas(terms, 1.0)), false);
        }
    }
}

#[test]
fn energies_and_overlaps() {
    for (rows, columns) in SHAPES {
        for keep in keeps(rows, columns) {
            for solve in [
                Solve::Energy { least: 1e-6 },
                Solve::Energy { least: 1e6 },
                Solve::Overlap { r: 0.5, alpha: 0.7 },
            ] {
                let terms = vec![
                    term(1.0, keep),
                    term(1.0, keep),
                    term(1.0, Keep::Above { magnitude: 0.01 }),
                ];
                let divide = Some(Divide { least: 1e-6, instead: 1e-6 });
                let blend = Blend {
                    solve: Some(solve),
                    divide,
                    vote: Some(Vote::Plain),
                    ..of_deltas(terms, 1.0)
                };
                check(&Case::new(rows, columns, blend), false);
            }
        }
    }
}

#[test]
fn rows_and_columns_have_weights_of_their_own() {
    for (rows, columns) in SHAPES {
        for span in [Span::Rows { columns }, Span::Columns { columns }] {
            for (solve, base, weights) in [
                (Solve::Nuslerp, true, vec![0.3, 0.9]),
                (Solve::Nuslerp, false, vec![0.3, 0.9]),
                (Solve::ModelStock, true, vec![1.0; 3]),
            ] {
                let terms: Vec<Term> =
                    weights.into_iter().map(|weight| term(weight, Keep::All)).collect();
                let base = base.then(|| terms[0].operand.clone());
                let blend = Blend { solve: Some(solve), span, ..Blend::sum(base, terms, 1.0) };
                check(&Case::new(rows, columns, blend), false);
            }
        }
    }
}

/// f64 operands are computed in f64: what f32 says, to more digits.
#[test]
fn doubles() {
    let (rows, columns) = (61, 401);
    for keep in keeps(rows, columns) {
        let terms = vec![Term { rescale: true, ..term(0.7, keep) }, term(0.4, Keep::All)];
        let case =
            Case::new(rows, columns, Blend { vote: Some(Vote::Plain), ..of_deltas(terms, 1.0) });
        let want = expected(&case.blend, Some(&case.base), &case.terms, columns);
        let temp = TempDir::new().unwrap();
        let plan = case.plan(&temp, &Dtype::F64);
        let first = made(&plan, &temp, |_| {});
        let found = made(&plan, &temp, |options| (options.tile, options.threads) = (4 << 10, 3));
        assert!(found == first, "{keep:?}");
        let found: Vec<f64> = first.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)).collect();
        let far =
            found.iter().zip(&want).filter(|(a, b)| (**a - f64::from(**b)).abs() > 1e-5).count();
        assert!(far == 0, "{keep:?}: {far} of {}", want.len());
    }
}

#[test]
fn what_is_not_finite_is_kept_and_counted() {
    let mut case = Case::new(
        61,
        401,
        of_deltas(
            vec![term(0.7, Keep::Largest { skip: 2, count: 5000 }), term(0.5, Keep::All)],
            1.0,
        ),
    );
    case.blend.vote = Some(Vote::Weighted);
    for (i, x) in
        [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0, 1e-45, f32::MAX].into_iter().enumerate()
    {
        case.terms[0][i * 311] = x;
        case.terms[1][i * 177 + 5] = x;
    }
    case.terms[0][7 * 311] = -f32::NAN;
    let want = expected(&case.blend, Some(&case.base), &case.terms, 401);
    let temp = TempDir::new().unwrap();
    let plan = case.plan(&temp, &Dtype::F32);
    let first = made(&plan, &temp, |options| options.allow_nonfinite = true);
    for (i, (found, want)) in floats(&first).iter().zip(&want).enumerate() {
        let same = found.to_bits() == want.to_bits() || (found.is_nan() && want.is_nan());
        assert!(same, "{i}: {found} {want}");
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
fn an_interruption_changes_nothing() {
    // More than a sample holds, so that every look is taken.
    let keep = Keep::Largest { skip: 0, count: 12_000 };
    let terms =
        vec![Term { rescale: true, ..term(0.7, keep) }, Term { rescale: true, ..term(0.4, keep) }];
    let case = Case::new(181, 401, Blend { vote: Some(Vote::Weighted), ..of_deltas(terms, 1.0) });
    let temp = TempDir::new().unwrap();
    let plan = case.plan(&temp, &Dtype::F32);
    let expected = made(&plan, &temp, |_| {});
    for threads in [1, 4] {
        let mut stops = 0;
        for patience in 0_u64.. {
            let mut options = Execution::to(temp.path().join(format!("{threads}-{patience}")));
            (options.tile, options.threads, options.sync) = (4 << 10, threads, false);
            match execute(&plan, &options, &Stop(patience.into())) {
                Err(Error::Interrupted { .. }) => stops += 1,
                other => {
                    other.unwrap();
                    break;
                }
            }
            if patience % 13 == 0 {
                execute(&plan, &options, &NoObserver).unwrap();
                assert!(read_raw(&options.out)["x"].2 == expected, "{threads} threads, {patience}");
            }
        }
        assert!(stops > 40, "{stops}: every look asks");
    }
}

/// How far a run says it is.
#[derive(Default)]
struct Far {
    done: AtomicU64,
    total: AtomicU64,
    calls: AtomicU64,
}

impl Observer for Far {
    fn progress(&self, progress: Progress<'_>) {
        self.done.fetch_max(progress.done, Ordering::Relaxed);
        self.total.store(progress.total, Ordering::Relaxed);
        self.calls.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn progress_moves_while_a_part_is_looked_at() {
    for keep in [
        Keep::Largest { skip: 0, count: 1000 },
        Keep::Important { columns: 401 },
        Keep::Random { probability: 0.5, seed: 1 },
    ] {
        let terms = vec![Term { rescale: true, ..term(0.7, keep) }];
        let case = Case::new(61, 401, of_deltas(terms, 1.0));
        let temp = TempDir::new().unwrap();
        let plan = case.plan(&temp, &Dtype::F32);
        let far = Far::default();
        let mut options = Execution::to(temp.path().join("out"));
        (options.tile, options.sync) = (4 << 10, false);
        execute(&plan, &options, &far).unwrap();
        let [done, total, calls] = [far.done, far.total, far.calls].map(AtomicU64::into_inner);
        assert_eq!(done, total, "{keep:?}");
        assert!(calls > total.div_ceil(4 << 10) + 5, "{keep:?}: {calls}");
    }
}

#[test]
fn inputs_are_read_as_often_as_the_plan_says() {
    let largest = Keep::Largest { skip: 0, count: 9 };
    let rescaled = |keep| Term { rescale: true, ..term(1.0, keep) };
    let energy = Some(Solve::Energy { least: 0.0 });
    let random = Keep::Random { probability: 0.5, seed: 1 };
    for (sweeps, blend) in [
        (1, of_deltas(vec![term(1.0, Keep::All)], 1.0)),
        (1, of_deltas(vec![rescaled(Keep::All)], 1.0)),
        (1, of_deltas(vec![term(1.0, random), term(1.0, Keep::Above { magnitude: 1.0 })], 1.0)),
        (1, of_deltas(vec![term(1.0, Keep::Largest { skip: 0, count: 35 })], 1.0)),
        (2, of_deltas(vec![rescaled(random)], 1.0)),
        (4, of_deltas(vec![term(1.0, largest)], 1.0)),
        (5, of_deltas(vec![rescaled(largest)], 1.0)),
        (4, of_deltas(vec![term(1.0, Keep::Important { columns: 5 })], 1.0)),
        (
            5,
            Blend { solve: energy, ..of_deltas(vec![term(1.0, Keep::Varied { share: 0.5 })], 1.0) },
        ),
    ] {
        let case = Case::new(7, 5, blend);
        let temp = TempDir::new().unwrap();
        let plan = case.plan(&temp, &Dtype::F32);
        let Part::Blend(blend) = &plan.tensors[0].parts[0] else { panic!() };
        assert_eq!(blend.sweeps(), sweeps, "{blend:?}");
        assert_eq!(
            plan.cost().read,
            u64::from(sweeps) * 4 * 35 * 2.max(case.terms.len() as u64 + 1)
        );
    }
}

#[test]
fn wrong_blends_are_refused() {
    let one = |keep| of_deltas(vec![term(1.0, keep)], 1.0);
    let important = |columns| term(1.0, Keep::Important { columns });
    let varied = |share| term(1.0, Keep::Varied { share });
    let span = Span::Rows { columns: 5 };
    let divided =
        |least, instead| Blend { divide: Some(Divide { least, instead }), ..one(Keep::All) };
    let cases = [
        (Blend { base: None, ..one(Keep::All) }, "deltas without a base"),
        (one(Keep::Largest { skip: 30, count: 6 }), "cannot keep"),
        (one(Keep::Largest { skip: u64::MAX, count: 6 }), "cannot keep"),
        (one(Keep::Above { magnitude: -1.0 }), "cannot keep"),
        (one(Keep::Above { magnitude: f64::NAN }), "cannot keep"),
        (one(Keep::Random { probability: 1.5, seed: 0 }), "cannot keep"),
        (one(Keep::Ranked { low: 0.5, high: 0.4, seed: 0, columns: 5 }), "cannot keep"),
        (one(Keep::Ranked { low: 0.4, high: 0.5, seed: 0, columns: 6 }), "ranks of rows of 6"),
        (one(Keep::Ranked { low: 0.4, high: 0.5, seed: 0, columns: 0 }), "ranks of rows of 0"),
        (one(Keep::Varied { share: 2.0 }), "cannot keep"),
        (of_deltas(vec![varied(0.5), varied(0.6)], 1.0), "different shares"),
        (of_deltas(vec![important(5), important(7)], 1.0), "different lengths"),
        (Blend::sum(None, vec![important(5)], 1.0), "cannot keep"),
        (one(Keep::Near { t: f64::INFINITY }), "cannot keep"),
        (of_deltas(vec![term(1.0, Keep::All); 64], 1.0), "takes 63 terms at most"),
        (of_deltas(vec![term(f64::NAN, Keep::All)], 1.0), "a weight of NaN"),
        (of_deltas(vec![Term { gain: f64::INFINITY, ..term(1.0, Keep::All) }], 1.0), "factors"),
        (divided(f64::NAN, 1.0), "divided by"),
        (divided(1.0, 0.0), "divided by"),
        (Blend { span, ..one(Keep::All) }, "no weights to find"),
        (
            Blend { span, solve: Some(Solve::Energy { least: 1.0 }), ..one(Keep::All) },
            "energies or overlaps",
        ),
        (
            Blend {
                span,
                solve: Some(Solve::ModelStock),
                ..of_deltas(vec![varied(0.5), varied(0.5)], 1.0)
            },
            "not every value counts",
        ),
    ];
    for (blend, expected) in cases {
        let temp = TempDir::new().unwrap();
        let error =
            Case::new(7, 5, blend).plan(&temp, &Dtype::F32).validate().unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}
