//! Any bytes as a safetensors file: no panic, and the same verdict as the `safetensors` crate but for a written list.

#![no_main]

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{self, AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use elo_surgery::format::{Header, UnknownDtypes};
use libfuzzer_sys::{fuzz_target, Corpus};
use safetensors::SafeTensors;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

type Entries = BTreeMap<String, (String, Vec<u64>, u64, u64)>;

fn ours(file: &[u8], unknown: UnknownDtypes) -> Result<Header, String> {
    let size = file.len() as u64;
    let length = Header::length(file, size).map_err(|e| e.to_string())?;
    let end = 8 + length as usize;
    Header::parse(&file[8..end], size - 8 - length, unknown).map_err(|e| e.to_string())
}

thread_local!(static THEIRS: Cell<bool> = const { Cell::new(false) });

/// The fuzzer aborts in its panic hook. The crate may panic (with overflow checks some sizes make it), we may not.
fn forgive_the_crate() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let abort = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !THEIRS.get() {
                abort(info);
            }
        }));
    });
}

/// `None` if the crate refuses, or panics.
fn theirs(file: &[u8]) -> Option<Entries> {
    forgive_the_crate();
    let parse = || SafeTensors::read_metadata(file);
    THEIRS.set(true);
    let read = catch_unwind(AssertUnwindSafe(parse));
    THEIRS.set(false);
    let (_, metadata) = read.ok()?.ok()?;
    let entries = metadata.tensors().into_iter().map(|(name, info)| {
        let shape = info.shape.iter().map(|d| *d as u64).collect();
        let (start, end) = info.data_offsets;
        (name, (info.dtype.to_string(), shape, start as u64, end as u64))
    });
    Some(entries.collect())
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

/// As in `tests/it/props.rs`.
fn refused_on_purpose(problem: &str) -> bool {
    let reasons =
        ["duplicate", "it starts with", "dimensions, the limit is", "its entry is an array", "`dtype` is {"];
    reasons.iter().any(|reason| problem.contains(reason))
}

fuzz_target!(|data: &[u8]| -> Corpus {
    // The length field would keep the fuzzer busy for nothing: it is put right.
    let Some((kind, rest)) = data.split_first() else { return Corpus::Reject };
    let json_end = rest.iter().rposition(|b| *b == b'}').map_or(rest.len(), |at| at + 1);
    let mut file = (json_end as u64).to_le_bytes().to_vec();
    if *kind == 0 {
        file = Vec::new();
    }
    file.extend_from_slice(rest);
    let strict = ours(&file, UnknownDtypes::Refuse);
    let opaque = ours(&file, UnknownDtypes::Opaque);
    if let Ok(header) = &strict {
        assert_eq!(opaque.as_ref(), Ok(header), "unknown dtypes only add");
        let raw = header.to_bytes(8);
        let again = Header::parse(&raw[8..], header.data_len(), UnknownDtypes::Refuse);
        assert_eq!(again.as_ref(), Ok(header), "a written header reads back");
    }
    match (&strict, theirs(&file)) {
        (Err(_), None) => {}
        (Ok(header), Some(theirs)) => {
            let entries: Entries = header
                .tensors
                .iter()
                .map(|t| {
                    let place = (t.dtype.to_string(), t.shape.0.clone(), t.range.start, t.range.end);
                    (t.name.clone(), place)
                })
                .collect();
            assert_eq!(entries, theirs);
        }
        (Err(_), Some(_)) if names_a_tensor_twice(&file[8..]) => {}
        (Err(problem), Some(_)) => assert!(refused_on_purpose(problem), "only we refuse: {problem}"),
        (Ok(_), None) => panic!("only we accept"),
    }
    Corpus::Keep
});
