//! Properties over generated inputs: headers, layouts, resharding, tiles and threads.
//!
//! Case counts are small enough for every merge; `PROPTEST_CASES` raises them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use elo_surgery::checkpoint::{Checkpoint, LayerSelector};
use elo_surgery::engine::{Execution, NoObserver, execute};
use elo_surgery::format::{
    Dtype, Header, Shape, ShardLayout, ShardSpec, TensorEntry, UnknownDtypes, split_by_size,
};
use elo_surgery::ops::{ChatVector, Extract, chat_vector, extract, reshard};
use elo_surgery::plan::Plan;
use proptest::prelude::*;
use safetensors::SafeTensors;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use tempfile::TempDir;

use crate::support::checkpoint::{Model, read};
use crate::support::random::Random;
use crate::support::tree::{assert_same, tree};

fn cases(count: u32) -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok());
    ProptestConfig {
        cases: cases.unwrap_or(count),
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

fn dtype() -> impl Strategy<Value = Dtype> {
    prop::sample::select(Dtype::KNOWN.to_vec())
}

/// A dtype and a shape that fills whole bytes, of at most a few kilobytes.
fn tensor() -> impl Strategy<Value = (Dtype, Shape)> {
    (dtype(), prop::collection::vec(0_u64..6, 0..5)).prop_map(|(dtype, mut dims)| {
        // Sub-byte elements need a multiple of 8 of them.
        if dtype.bytes().is_none() {
            dims.push(8);
        }
        (dtype, Shape(dims))
    })
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-z]{1,8}(\\.[0-9]{1,3})?\\.weight",
        ".{0,12}".prop_filter("reserved", |n| n != "__metadata__"),
    ]
}

prop_compose! {
    fn header()(
        tensors in prop::collection::btree_map(name(), tensor(), 0..12),
        metadata in prop::collection::btree_map(".{0,8}", ".{0,8}", 0..4),
        order in any::<u64>(),
    ) -> Header {
        let mut tensors: Vec<(String, (Dtype, Shape))> = tensors.into_iter().collect();
        let mut random = Random::new(order);
        for i in (1..tensors.len()).rev() {
            let limit = i as u64 + 1;
            tensors.swap(i, usize::try_from(random.below(limit)).unwrap());
        }
        let mut end = 0;
        let mut entry = |(name, (dtype, shape)): (String, (Dtype, Shape))| {
            let start = end;
            end += shape.byte_len(&dtype).unwrap();
            TensorEntry { name, dtype, shape, range: start..end }
        };
        let tensors = tensors.drain(..).map(&mut entry).collect();
        Header { metadata, tensors }
    }
}

/// Name to dtype, shape and place.
type Entries = BTreeMap<String, (String, Vec<u64>, usize, usize)>;

/// What the crate makes of a file: `None` if it refuses it or panics (it does, with overflow checks, on some sizes).
fn crate_reads(file: &[u8]) -> Option<Entries> {
    let parse = || SafeTensors::read_metadata(file);
    let (_, metadata) = catch_unwind(AssertUnwindSafe(parse)).ok()?.ok()?;
    let entry = |(name, info): (String, &safetensors::tensor::TensorInfo)| {
        let shape = info.shape.iter().map(|d| *d as u64).collect();
        let (start, end) = info.data_offsets;
        (name, (info.dtype.to_string(), shape, start, end))
    };
    Some(metadata.tensors().into_iter().map(entry).collect())
}

fn we_read(file: &[u8]) -> Result<Header, String> {
    let size = file.len() as u64;
    let length = Header::length(file, size).map_err(|e| e.to_string())?;
    let end = 8 + usize::try_from(length).unwrap();
    Header::parse(&file[8..end], size - 8 - length, UnknownDtypes::Refuse)
        .map_err(|e| e.to_string())
}

fn entries(header: &Header) -> Entries {
    let place = |n: u64| usize::try_from(n).unwrap();
    let entry = |t: &TensorEntry| {
        let range = (place(t.range.start), place(t.range.end));
        (t.name.clone(), (t.dtype.to_string(), t.shape.0.clone(), range.0, range.1))
    };
    header.tensors.iter().map(entry).collect()
}

/// Files we refuse on purpose although the crate reads them. Each line is a decision, not an accident.
fn refused_on_purpose(problem: &str) -> bool {
    [
        "duplicate",      // a name, or a field of an entry, twice: the crate lets the last win
        "it starts with", // white space before the `{`
        "dimensions, the limit is", // more than 64 dimensions
        "its entry is an array", // serde also reads structs from arrays
        "`dtype` is {",   // and unit variants from `{\"F32\": null}`
    ]
    .iter()
    .any(|reason| problem.contains(reason))
}

/// Whether a tensor name occurs twice: the crate forgets the first, whatever is wrong with it.
fn names_a_tensor_twice(json: &[u8]) -> bool {
    struct Names;
    impl<'de> Visitor<'de> for Names {
        type Value = bool;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an object")
        }
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<bool, A::Error> {
            let (mut seen, mut twice) = (BTreeSet::new(), false);
            while let Some((name, _)) = map.next_entry::<String, IgnoredAny>()? {
                twice |= !seen.insert(name);
            }
            Ok(twice)
        }
    }
    serde_json::Deserializer::from_slice(json).deserialize_map(Names).unwrap_or(false)
}

/// Both readers agree: the same tensors, or both refuse, or the refusal is on the list.
fn agree(file: &[u8]) -> Result<(), String> {
    let text = || String::from_utf8_lossy(&file[8.min(file.len())..]).into_owned();
    match (we_read(file), crate_reads(file)) {
        (Err(_), None) => Ok(()),
        (Ok(ours), Some(theirs)) if entries(&ours) == theirs => Ok(()),
        (Err(problem), Some(_)) if refused_on_purpose(&problem) => Ok(()),
        (Err(_), Some(_)) if names_a_tensor_twice(&file[8..]) => Ok(()),
        (ours, theirs) => Err(format!("ours {ours:?}\ntheirs {theirs:?}\nheader {}", text())),
    }
}

fn file_of(json: &[u8], data: u64) -> Vec<u8> {
    let mut file = (json.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(json);
    file.resize(file.len() + usize::try_from(data).unwrap(), 7);
    file
}

/// Damage that keeps most of the structure, so that the depths of the parsers are reached.
fn mutate(json: &[u8], random: &mut Random) -> Vec<u8> {
    const PIECES: [&str; 30] = [
        "0",
        "1",
        "9",
        "-",
        "+",
        ".",
        "e",
        "\"",
        ",",
        ":",
        "{",
        "}",
        "[",
        "]",
        " ",
        "\n",
        "\\",
        "null",
        "true",
        "1.0",
        "18446744073709551615",
        "18446744073709551616",
        "-0",
        "1e2",
        "\\u0061",
        "\"F32\"",
        "\"F4\"",
        "\"shape\":[]",
        "\"x\":{\"y\":[1]}",
        "{\"F32\":null}",
    ];
    let mut bytes = json.to_vec();
    for _ in 0..=random.below(3) {
        let place = |random: &mut Random, len: usize| {
            usize::try_from(random.below(len as u64 + 1)).unwrap()
        };
        let at = place(random, bytes.len());
        match random.below(6) {
            0 if at < bytes.len() => bytes[at] = random.bytes(1)[0],
            1 if at < bytes.len() => {
                bytes.remove(at);
            }
            2 => {
                let to = place(random, bytes.len());
                let piece = bytes[at.min(to)..at.max(to)].to_vec();
                bytes.splice(at..at, piece);
            }
            3 if at < bytes.len() && bytes[at].is_ascii_digit() => {
                bytes[at] = b'0' + random.bytes(1)[0] % 10;
            }
            _ => {
                let piece = PIECES[usize::try_from(random.below(30)).unwrap()];
                bytes.splice(at..at, piece.bytes());
            }
        }
    }
    bytes
}

proptest! {
    #![proptest_config(cases(400))]

    #[test]
    fn a_written_header_reads_back(header in header(), align in prop::sample::select(vec![8_u64, 64, 4096])) {
        let raw = header.to_bytes(align);
        prop_assert_eq!(raw.len() as u64 % align, 0);
        let parsed = Header::parse(&raw[8..], header.data_len(), UnknownDtypes::Refuse).unwrap();
        let names = |h: &Header| h.tensors.iter().map(|t| (t.range.clone(), t.clone())).collect::<Vec<_>>();
        let by_place = |mut v: Vec<_>| { v.sort_by_key(|(r, t): &(std::ops::Range<u64>, TensorEntry)| (r.start, r.end, t.name.clone())); v };
        prop_assert_eq!(&parsed.metadata, &header.metadata);
        prop_assert_eq!(by_place(names(&parsed)), by_place(names(&header)));
        let file = file_of(&raw[8..], header.data_len());
        prop_assert_eq!(crate_reads(&file), Some(entries(&header)));
    }

    #[test]
    fn a_damaged_header_is_read_as_the_crate_reads_it(header in header(), seed in any::<u64>()) {
        let json = header.to_bytes(8)[8..].to_vec();
        let mut random = Random::new(seed);
        for _ in 0..12 {
            let file = file_of(&mutate(&json, &mut random), header.data_len());
            if let Err(difference) = agree(&file) {
                prop_assert!(false, "{}", difference);
            }
        }
    }

    #[test]
    fn a_layout_covers_each_byte_once(header in header(), with_template in any::<bool>()) {
        let tensors: Vec<_> = header.tensors.iter()
            .map(|t| (t.name.clone(), t.dtype.clone(), t.shape.clone(), t.range.end - t.range.start))
            .collect();
        let template = with_template.then(|| header.to_bytes(8));
        let spec = ShardSpec { file: "m.safetensors".into(), metadata: header.metadata.clone(), tensors, template };
        let layout = ShardLayout::new(&spec);
        let mut end = layout.header.len() as u64;
        let mut seen = vec![false; spec.tensors.len()];
        for placement in &layout.placements {
            prop_assert_eq!(placement.bytes.start, end);
            prop_assert_eq!(placement.bytes.end - end, spec.tensors[placement.tensor].3);
            end = placement.bytes.end;
            prop_assert!(!std::mem::replace(&mut seen[placement.tensor], true));
        }
        prop_assert_eq!(end, layout.size);
        prop_assert!(seen.into_iter().all(|s| s));
        let file = file_of(&layout.header[8..], layout.size - layout.header.len() as u64);
        prop_assert_eq!(file.len() as u64, layout.size);
        prop_assert!(crate_reads(&file).is_some(), "the crate refuses the layout");
    }

    #[test]
    fn shards_are_cut_in_order_and_to_size(sizes in prop::collection::vec(0_u64..50, 0..40), limit in 0_u64..120) {
        let cuts = split_by_size(&sizes, limit);
        let mut next = 0;
        for cut in &cuts {
            prop_assert_eq!(cut.start, next);
            next = cut.end;
            let filled: u64 = sizes[cut.clone()].iter().sum();
            prop_assert!(filled <= limit || cut.len() == 1 || filled - sizes[cut.end - 1] == 0, "{:?}", cut);
        }
        prop_assert_eq!(next, sizes.len());
    }
}

/// The list of differences is used: each reason occurs.
#[test]
fn every_difference_from_the_crate_is_real() {
    let u8s = r#"{"dtype":"U8","shape":[1],"data_offsets":[0,1]}"#;
    let ones = format!("{:?}", vec![1; 65]);
    let files = [
        format!(r#"{{"a":{u8s},"a":{u8s}}}"#),
        format!(r#" {{"a":{u8s}}}"#),
        format!(r#"{{"a":{{"dtype":"U8","shape":{ones},"data_offsets":[0,1]}}}}"#),
        r#"{"a":["U8",[1],[0,1]]}"#.to_owned(),
        r#"{"a":{"dtype":{"U8":null},"shape":[1],"data_offsets":[0,1]}}"#.to_owned(),
        r#"{"a":{"x":1,"x":2,"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#.to_owned(),
    ];
    for json in files {
        let file = file_of(json.as_bytes(), 1);
        assert!(crate_reads(&file).is_some(), "the crate refuses {json}");
        let problem = we_read(&file).expect_err(&json);
        assert!(refused_on_purpose(&problem), "{json}: {problem}");
    }
    let differs = file_of(br#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,1]}}"#, 1);
    assert!(agree(&differs).is_ok() && we_read(&differs).is_err());
}

fn run(plan: &Plan, out: &Path, change: impl FnOnce(&mut Execution)) {
    let mut options = Execution::to(out);
    options.sync = false;
    change(&mut options);
    execute(plan, &options, &NoObserver).unwrap_or_else(|e| panic!("{e}"));
}

/// Models whose tensors do not end at tile borders.
fn odd(seed: u64) -> Model {
    let mut random = Random::new(seed);
    Model {
        layers: 1 + random.below(4),
        hidden: 2 * (7 + random.below(60)),
        intermediate: 1 + random.below(200),
        vocabulary: 1 + random.below(700),
        shards: usize::try_from(1 + random.below(5)).unwrap(),
        seed,
    }
}

fn open(path: &PathBuf) -> Checkpoint {
    Checkpoint::open(path).unwrap_or_else(|e| panic!("{e}"))
}

proptest! {
    #![proptest_config(cases(24))]

    #[test]
    fn resharding_keeps_every_tensor(seed in any::<u64>(), size in 1_u64..400_000) {
        let temp = TempDir::new().unwrap();
        let model = odd(seed).at(temp.path(), "model");
        let out = temp.path().join("out");
        run(&reshard(&open(&model), size).unwrap(), &out, |_| {});
        prop_assert_eq!(read(&out), read(&model));
        for entry in fs::read_dir(&out).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|e| e == "safetensors") {
                let parsed = we_read(&fs::read(&path).unwrap()).unwrap();
                prop_assert!(parsed.data_len() <= size || parsed.tensors.len() == 1, "{}", path.display());
            }
        }
        // And back to one file, by way of the many.
        let one = temp.path().join("one");
        run(&reshard(&open(&out), u64::MAX).unwrap(), &one, |_| {});
        prop_assert_eq!(read(&one), read(&model));
        prop_assert!(one.join("model.safetensors").exists());
    }

    #[test]
    fn tiles_threads_and_reading_do_not_change_a_byte(seed in any::<u64>(), scale in prop::sample::select(vec![1.0, 0.5, -0.3, 1e-3])) {
        let temp = TempDir::new().unwrap();
        let at = |offset: u64| Model { seed: seed ^ offset, ..odd(seed) }.at(temp.path(), &format!("m{offset}"));
        let (a, b, c) = (at(1), at(2), at(3));
        let request = ChatVector { scale, ..ChatVector::default() };
        let sum = chat_vector(&open(&a), &open(&b), &open(&c), &request).unwrap();
        let part = Extract { layers: "first".parse::<LayerSelector>().unwrap(), shard_size: None };
        let part = extract(&open(&a), &part).unwrap();
        for (name, plan) in [("sum", sum), ("part", part)] {
            let first = temp.path().join(format!("{name}-first"));
            run(&plan, &first, |_| {});
            let mut random = Random::new(seed);
            for round in 0..4 {
                let out = temp.path().join(format!("{name}-{round}"));
                run(&plan, &out, |options| {
                    options.threads = [1, 2, 3, 8][round];
                    options.tile = 4096 << random.below(9);
                    if random.below(2) == 0 {
                        options.reading = elo_surgery::format::Reading::Calls;
                    }
                });
                assert_same(&tree(&out), &tree(&first), name);
            }
        }
    }
}
