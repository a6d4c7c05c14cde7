//! Bytes from strangers: whatever a checkpoint holds, the answer is an error that names the file, or a right output.
//!
//! Never a panic, a signal, a hang, a file left behind, a source changed, or a byte from outside the checkpoint.

mod corpus;
mod own;
mod public;

use std::fs;

use serde_json::json;
use tempfile::TempDir;

use crate::support::checkpoint::{Model, Tensor, read_raw, write_sharded};
use crate::support::process::elo;
use crate::support::tree::tree;
use corpus::{Case, Expected, INDEX, Op, S2, Sharded, St, config, judge, llama};

#[test]
fn the_public_corpus_is_refused_or_read_rightly() {
    judge(&public::cases());
}

#[test]
fn our_own_corpus_is_refused_or_read_rightly() {
    judge(&own::cases());
}

/// The judge itself must fail cases that deserve it.
#[test]
fn the_judge_has_teeth() {
    let good = || Sharded::new(2, 12).files();
    let inspect = [Op::Inspect];
    let accepted = Case::new("accepted", good(), Expected::Error).only(&inspect).judge();
    assert!(accepted.len() == 1 && accepted[0].contains("ACCEPTED"), "{accepted:?}");
    let broken = || corpus::replace(good(), S2, Some(b"x".to_vec()));
    let rejected = Case::new("rejected", broken(), Expected::Ok).only(&inspect).judge();
    assert!(rejected.len() == 1 && rejected[0].contains("REJECTED GOOD"), "{rejected:?}");
    let unclear =
        Case::new("unclear", broken(), Expected::Error).mention(&["zebra"]).only(&inspect);
    let unclear = unclear.judge();
    assert!(unclear.len() == 1 && unclear[0].contains("UNCLEAR"), "{unclear:?}");
    let leaking =
        Case::new("leaking", broken(), Expected::Error).sentinel(S2).only(&inspect).judge();
    assert!(leaking.len() == 1 && leaking[0].contains("LEAK"), "{leaking:?}");
    let work = TempDir::new().unwrap();
    fs::write(work.path().join(".o.elo-staging"), "").unwrap();
    let outcome = elo("inspect").arg(work.path().join("nothing")).run();
    let case = Case::new("leftover", good(), Expected::Error);
    let verdict = case.verdict(Op::Inspect, &outcome, work.path(), work.path());
    assert!(verdict.clone().is_some_and(|v| v.contains("LEFTOVER")), "{verdict:?}");
}

/// Tensor bytes of a file, by a reader that knows no dtypes.
fn bytes_of(path: &std::path::Path) -> std::collections::BTreeMap<String, (String, Vec<u8>)> {
    let raw = fs::read(path).unwrap();
    let len = usize::try_from(u64::from_le_bytes(raw[..8].try_into().unwrap())).unwrap();
    let header: serde_json::Value = serde_json::from_slice(&raw[8..8 + len]).unwrap();
    let number = |v: &serde_json::Value| usize::try_from(v.as_u64().unwrap()).unwrap();
    header
        .as_object()
        .unwrap()
        .iter()
        .filter(|(name, _)| *name != "__metadata__")
        .map(|(name, e)| {
            let range = number(&e["data_offsets"][0])..number(&e["data_offsets"][1]);
            let dtype = e["dtype"].as_str().unwrap().to_owned();
            (name.clone(), (dtype, raw[8 + len..][range].to_vec()))
        })
        .collect()
}

/// A layer in every dtype, known or not, is copied without being looked at.
#[test]
fn every_dtype_is_copied_untouched() {
    let temp = TempDir::new().unwrap();
    let known = [
        "F4",
        "F6_E2M3",
        "F6_E3M2",
        "F8_E4M3",
        "F8_E5M2",
        "F8_E8M0",
        "F8_E4M3FNUZ",
        "F8_E5M2FNUZ",
        "U8",
        "I8",
        "BOOL",
        "I16",
        "U16",
        "F16",
        "BF16",
        "I32",
        "U32",
        "F32",
        "I64",
        "U64",
        "F64",
        "C64",
    ];
    for (folder, dtypes, flags) in [
        ("known", &known[..], &[][..]),
        ("unknown", &["F128", "INT3"], &["--allow-unknown-dtypes"]),
    ] {
        let mut specs = llama(2, "BF16", 12);
        for dtype in dtypes {
            for layer in 0..2 {
                let name = format!("model.layers.{layer}.extra.{dtype}");
                specs.push((name, dtype, vec![4, 4]));
            }
        }
        let model = temp.path().join(folder);
        fs::create_dir(&model).unwrap();
        fs::write(model.join("model.safetensors"), St::new(&specs).bytes()).unwrap();
        fs::write(model.join("config.json"), config(2, 12).to_string()).unwrap();
        let out = temp.path().join(format!("{folder}-out"));
        let extract = || elo("extract --layers 2 --no-sync").arg(&model).with("--out", &out);
        if !flags.is_empty() {
            extract().fails(3).expect(3, &["F128", "--allow-unknown-dtypes"]);
        }
        extract().args(flags).ok();
        let (from, to) =
            (bytes_of(&model.join("model.safetensors")), bytes_of(&out.join("model.safetensors")));
        for dtype in dtypes {
            let name = |layer| format!("model.layers.{layer}.extra.{dtype}");
            assert_eq!(to[&name(0)], from[&name(1)], "{dtype}");
            assert!(!to.contains_key(&name(1)), "{dtype}: layer 2 became layer 1");
        }
    }
}

/// The record of an extract's layers comes with the extract: it is as hostile as the rest.
#[test]
fn a_hostile_layer_record_is_refused() {
    let temp = TempDir::new().unwrap();
    let model = Model::tiny(1).at(temp.path(), "model");
    let part = temp.path().join("part");
    elo("extract --layers 1,4 --no-sync").arg(&model).with("--out", &part).ok();
    let record = part.join("elo-surgery.json");
    let honest: serde_json::Value = serde_json::from_slice(&fs::read(&record).unwrap()).unwrap();
    let before = tree(&model);
    for layer_map in [
        json!({"of": 4, "layers": [0, 1]}),
        json!({"of": 4, "layers": [1, 5]}),
        json!({"of": 4, "layers": [1, u64::MAX]}),
        json!({"of": 4, "layers": [1]}),
        json!({"of": 4, "layers": []}),
        json!({"of": 4, "layers": [1, 1]}),
        json!({"of": 4, "layers": [1, 2, 3]}),
        json!({"of": 40, "layers": [1, 4]}),
        json!({"of": u64::MAX, "layers": [1, 4]}),
        json!({"of": 4, "layers": [-1, 4]}),
        json!({"of": 4, "layers": "all"}),
        json!(7),
    ] {
        let mut hostile = honest.clone();
        hostile["layer_map"] = layer_map.clone();
        fs::write(&record, hostile.to_string()).unwrap();
        let out = temp.path().join("out");
        let outcome =
            elo("inject --no-sync").arg(&part).with("--into", &model).with("--out", &out).run();
        let code = outcome.code();
        assert!(code == Some(2) || code == Some(3), "layer_map {layer_map}: {outcome}");
        assert!(!outcome.panicked(), "layer_map {layer_map}: {outcome}");
        assert!(!out.exists(), "layer_map {layer_map} left an output");
        assert_eq!(tree(&model), before, "layer_map {layer_map} changed the model");
    }
}

/// A part of another shape, dtype or architecture never lands in a model.
#[test]
fn a_part_that_does_not_fit_is_refused_by_tensor() {
    let temp = TempDir::new().unwrap();
    let model = Model::tiny(1).at(temp.path(), "model");
    let wide = Model { hidden: 64, ..Model::tiny(2) }.at(temp.path(), "wide");
    let part = temp.path().join("part");
    elo("extract --layers 1,4 --no-sync").arg(&wide).with("--out", &part).ok();
    let out = temp.path().join("out");
    let inject = |part: &std::path::Path| {
        elo("inject --no-sync --layers 1,4").arg(part).with("--into", &model).with("--out", &out)
    };
    inject(&part).fails(3).expect(3, &["model.layers.0.", "64", "32"]);
    // A tensor too many, and one too few.
    let right = temp.path().join("right");
    elo("extract --layers 1,4 --no-sync").arg(&model).with("--out", &right).ok();
    let more = temp.path().join("more");
    fs::create_dir(&more).unwrap();
    for entry in fs::read_dir(&right).unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().unwrap() != INDEX {
            fs::copy(&path, more.join(path.file_name().unwrap())).unwrap();
        }
    }
    let bias = St::new(&[("model.layers.1.self_attn.q_proj.bias".into(), "BF16", vec![32])]);
    fs::write(more.join("zz.safetensors"), bias.bytes()).unwrap();
    inject(&more).fails(3).expect(3, &["model.layers.1.self_attn.q_proj.bias"]);
    let fewer = temp.path().join("fewer");
    let mut tensors = Vec::new();
    for (name, (dtype, shape, bytes, _)) in read_raw(&right) {
        if name != "model.layers.1.mlp.up_proj.weight" {
            tensors.push(Tensor::new(&name, &dtype, &shape, bytes));
        }
    }
    write_sharded(&fewer, &tensors, 1);
    inject(&fewer).fails(3).expect(3, &["layers.1.mlp.up_proj.weight", "missing"]);
    assert!(!out.exists());
}
