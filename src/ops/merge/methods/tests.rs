use super::formula::Weighted;
use super::*;
use crate::format::Shape;
use crate::plan::{Divide, Keep, Solve, Span, Vote};

const MATRIX: [u64; 2] = [10, 20];

fn method(name: &str) -> &'static Method {
    METHODS.iter().find(|method| method.name == name).unwrap()
}

/// Parameters with defaults where nothing is said: `weight=0.5 density=0.3` for each input but the first, the base.
fn formula_at(name: &str, shape: &[u64], shared: &str, own: &[&str]) -> Result<Formula, String> {
    let method = method(name);
    let read = |parameters: &'static [Parameter], text: &str| {
        let given: BTreeMap<&str, Scalar> = text
            .split_whitespace()
            .map(|pair| pair.split_once('=').unwrap())
            .map(|(key, value)| (key, Scalar::Number(value.parse().unwrap())))
            .collect();
        let value = |p: &Parameter| given.get(p.name).copied().or(p.default);
        parameters.iter().filter_map(|p| Some((p.name, value(p)?))).collect()
    };
    let mut values = Values { shared: read(method.shared, shared), own: vec![BTreeMap::new()] };
    values.own.extend(own.iter().map(|text| read(method.own, text)));
    let shape = Shape(shape.to_vec());
    let site = Site { name: "w", shape: &shape, part: 0, seed: 0, variant: Variant::default() };
    method.formula(&values, Some(0), &site)
}

fn formula(name: &str, shared: &str, own: &[&str]) -> Formula {
    formula_at(name, &MATRIX, shared, own).unwrap()
}

fn keeps(formula: &Formula) -> Vec<Keep> {
    formula.terms.iter().map(|term| term.keep).collect()
}

#[test]
fn task_arithmetic_adds_every_element() {
    let found = formula("task_arithmetic", "lambda=0.5", &["weight=0.5", "weight=-2"]);
    let terms = vec![Weighted::new(1, 0.5), Weighted::new(2, -2.0)];
    assert_eq!(found, Formula { lambda: 0.5, ..Formula::deltas(0, terms) });
    let found = formula("task_arithmetic", "normalize=1 rescale=1", &["weight=1", "weight=3"]);
    let terms = vec![Weighted::new(1, 0.25), Weighted::new(2, 0.75)];
    assert_eq!(found, Formula::deltas(0, terms), "nothing is left out, so nothing is rescaled");
    let found = formula("task_arithmetic", "normalize=1", &["weight=1", "weight=-1"]);
    let terms = vec![Weighted::new(1, 1.0), Weighted::new(2, -1.0)];
    assert_eq!(found, Formula::deltas(0, terms), "nothing is not divided by");
    assert!(!found.looks_around());
}

#[test]
fn ties_keeps_the_largest_and_votes() {
    let own = ["weight=1 density=0.333", "weight=1 density=1", "weight=1 density=0"];
    let found = formula("ties", "", &own);
    let some = |count| Keep::Largest { skip: 0, count };
    assert_eq!(keeps(&found), [some(66), Keep::All, some(0)]);
    assert_eq!(found.vote, Some(Vote::Weighted));
    let divide = Divide { least: f64::from(f32::MIN_POSITIVE), instead: 1.0 };
    assert_eq!(found.divide, Some(divide));
    assert!(found.terms.iter().all(|term| !term.rescale) && found.looks_around());
    assert_eq!(formula("ties", "normalize=0", &own).divide, None);
    let rescaled = formula("ties", "rescale=1", &own);
    let flags: Vec<bool> = rescaled.terms.iter().map(|term| term.rescale).collect();
    assert_eq!(flags, [true, false, true], "what is whole needs no norm");
    let one = formula_at("ties", &[5], "", &["weight=1 density=0.01"]).unwrap();
    assert_eq!(keeps(&one), [some(1)], "one at least");
    let one = formula_at("ties", &[], "", &["weight=1 density=0.01"]).unwrap();
    assert_eq!(keeps(&one), [Keep::All], "a scalar");
}

#[test]
fn breadcrumbs_leaves_outliers_out() {
    let of = |own: &str| keeps(&formula("breadcrumbs", "", &[own]))[0];
    // Of 200 elements: 20 outliers, 100 that count, 80 that are too small.
    assert_eq!(of("weight=1 density=0.5 gamma=0.1"), Keep::Largest { skip: 20, count: 100 });
    assert_eq!(of("weight=1 density=0.95 gamma=0.2"), Keep::Largest { skip: 10, count: 190 });
    assert_eq!(of("weight=1 density=0.5 gamma=1"), Keep::Largest { skip: 100, count: 100 });
    assert_eq!(of("weight=1 density=0.001"), Keep::Largest { skip: 2, count: 0 }, "none");
    assert_eq!(of("weight=1 gamma=0.5"), Keep::All, "mergekit: density 1 is everything");
    let found = formula("breadcrumbs", "normalize=1", &["weight=1 density=0.5", "weight=3"]);
    assert_eq!((found.vote, found.divide), (None, None));
    let weights: Vec<f64> = found.terms.iter().map(|term| term.weight).collect();
    assert_eq!(weights, [0.25, 0.75], "all weights, also of what is left out");
    let found = formula("breadcrumbs_ties", "", &["weight=1 density=0.5"]);
    assert_eq!((found.vote, found.divide), (Some(Vote::Weighted), None));
}

#[test]
fn random_keeps_have_streams_of_their_own() {
    let own = ["weight=1 density=0.4", "weight=1 density=0.4", "weight=1"];
    let found = formula("dare_linear", "", &own);
    let [Keep::Random { probability, seed }, Keep::Random { seed: other, .. }, Keep::All] =
        keeps(&found)[..]
    else {
        panic!("{found:?}")
    };
    assert_eq!(probability.to_bits(), 0.4_f64.to_bits());
    assert_ne!(seed, other);
    assert!(found.terms[0].rescale && !found.terms[2].rescale);
    let stream = |name: &str, seed, part, term| {
        let shape = Shape(Vec::new());
        Site { name, shape: &shape, part, seed, variant: Variant::default() }.stream(term)
    };
    assert_eq!(seed, stream("w", 0, 0, 0));
    assert_eq!(other, stream("w", 0, 0, 1));
    let others = [("v", 0, 0, 0), ("w", 1, 0, 0), ("w", 0, 1, 0), ("w", 1 << 32, 0, 0)];
    for (name, user, part, term) in others {
        assert_ne!(seed, stream(name, user, part, term));
    }
    // Streams are part of what a seed means: they never change.
    assert_eq!(seed, 4_906_231_300_886_094_722);
}

#[test]
fn della_ranks_within_rows() {
    let found = formula("della", "", &["weight=1 density=0.5 epsilon=0.2"]);
    let [Keep::Ranked { low, high, columns: 20, .. }] = keeps(&found)[..] else {
        panic!("{found:?}")
    };
    assert_eq!((low, high), (0.3, 0.7));
    assert!(found.vote.is_some() && found.divide.is_some() && found.terms[0].rescale);
    let vector = formula_at("della_linear", &[7], "", &["weight=1 density=0.5"]).unwrap();
    assert!(matches!(keeps(&vector)[..], [Keep::Ranked { columns: 7, .. }]), "one row");
    assert_eq!((vector.vote, vector.divide), (None, None));
    for own in ["weight=1 density=0.9", "weight=1 density=0.15", "weight=1 density=0.1"] {
        let refused = formula_at("della", &MATRIX, "", &[own]).unwrap_err();
        assert!(refused.contains("epsilon") && refused.contains("0.15"), "{refused}");
    }
    assert_eq!(keeps(&formula("della", "", &["weight=1"])), [Keep::All]);
}

#[test]
fn papers_are_followed_where_asked() {
    let method = method("dare_ties");
    let parameter = |name, value| (name, Scalar::Number(value));
    let values = Values {
        shared: [parameter("rescale", 1.0), parameter("lambda", 1.0)].into(),
        own: vec![BTreeMap::new(), [parameter("weight", 2.0), parameter("density", 0.25)].into()],
    };
    let shape = Shape(MATRIX.to_vec());
    let variant = Variant { consensus: true, trim: false, rescale: true };
    let site = Site { name: "w", shape: &shape, part: 0, seed: 0, variant };
    let found = method.formula(&values, Some(0), &site).unwrap();
    assert_eq!(found.vote, Some(Vote::Plain));
    let Weighted { weight, gain, rescale, .. } = found.terms[0];
    assert_eq!((weight, gain, rescale), (2.0, 4.0, false), "1/p, of which no divisor knows");
}

#[test]
fn the_others_are_points_of_the_same_form() {
    let found = formula("sce", "select_topk=0.3", &["", ""]);
    assert_eq!(keeps(&found), [Keep::Varied { share: 0.3 }; 2]);
    assert_eq!(found.solve, Some(Solve::Energy { least: 1e-6 }));
    assert_eq!(found.vote, Some(Vote::Plain));
    assert_eq!(keeps(&formula("sce", "", &["", ""])), [Keep::All; 2]);

    let found = formula("ram", "epsilon=0.01", &["", ""]);
    assert_eq!(keeps(&found), [Keep::Above { magnitude: 0.01 }; 2]);
    assert_eq!(found.divide, Some(Divide { least: 0.5, instead: 1.0 }));
    assert!(found.solve.is_none() && !found.looks_around());
    let found = formula("ramplus_tl", "", &["", ""]);
    assert_eq!(found.solve, Some(Solve::Overlap { r: 0.1, alpha: 0.2 }));

    let found = formula("nearswap", "t=0.01", &[""]);
    assert_eq!(keeps(&found), [Keep::Near { t: 0.01 }]);
    let found = formula("arcee_fusion", "", &[""]);
    assert_eq!(keeps(&found), [Keep::Important { columns: 20 }]);
    assert!(found.looks_around() && found.deltas);
}

#[test]
fn spans_are_runs_along_an_axis() {
    let own = ["weight=1", "weight=2"];
    let of = |shape: &[u64], shared: &str| formula_at("nuslerp", shape, shared, &own).unwrap().span;
    assert_eq!(of(&MATRIX, ""), Span::Part);
    assert_eq!(of(&MATRIX, "nuslerp_row_wise=1"), Span::Part, "flattened all the same");
    assert_eq!(of(&MATRIX, "nuslerp_flatten=0"), Span::Rows { columns: 20 });
    let both = "nuslerp_flatten=0 nuslerp_row_wise=1";
    assert_eq!(of(&MATRIX, both), Span::Columns { columns: 20 });
    assert_eq!(of(&[4, 5, 6], both), Span::Columns { columns: 30 });
    assert_eq!(of(&[4, 5, 6], "nuslerp_flatten=0"), Span::Rows { columns: 6 });
    for shared in ["nuslerp_flatten=0", both] {
        assert_eq!(of(&[9], shared), Span::Part);
    }
    let rows = formula("model_stock", "filter_wise=1", &["", ""]).span;
    assert_eq!(rows, Span::Rows { columns: 20 });
}
