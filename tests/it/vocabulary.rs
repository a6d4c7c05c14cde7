//! Vocabularies: merges and transplants as mergekit makes them (`fixtures/vocabulary/make.py`), what is kept beyond, what is refused.

#![expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "small numbers, and sums that are rounded on purpose"
)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use elo_surgery::checkpoint::Checkpoint;
use elo_surgery::engine::{Execution, NoObserver, execute};
use elo_surgery::format::{Dtype, Operation, Shape};
use elo_surgery::plan::{
    Blend, Gather, Numerics, Operand, Output, PLAN_VERSION, Part, Plan, Rows, Shard, Slice, Source,
    SourceId, Term,
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::checkpoint::{Tensor, config, read_raw, shard_bytes};
use crate::support::process::{Outcome, elo};
use crate::support::random::Random;

const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/vocabulary").join(path)
}

fn json_of(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
        .unwrap()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

/// The rows of an F32 tensor.
fn rows(root: &Path, name: &str) -> Vec<Vec<f32>> {
    let raw = read_raw(root);
    let (dtype, shape, bytes, _) = &raw[name];
    assert_eq!(dtype, "F32");
    let values = floats(bytes);
    values.chunks_exact(usize::try_from(shape[1]).unwrap()).map(<[f32]>::to_vec).collect()
}

/// Tokens of a checkpoint, by text.
fn tokens(root: &Path) -> BTreeMap<String, usize> {
    let json = json_of(&root.join("tokenizer.json"));
    let id = |id: &Value| usize::try_from(id.as_u64().unwrap()).unwrap();
    let model = json["model"]["vocab"].as_object().unwrap().iter();
    let added = json["added_tokens"].as_array().unwrap().iter();
    let added = added.map(|one| (one["content"].as_str().unwrap().to_owned(), id(&one["id"])));
    model.map(|(token, value)| (token.clone(), id(value))).chain(added).collect()
}

/// Tensors of a reference and its tokens in the order of its rows.
fn expected(name: &str) -> (BTreeMap<String, Vec<Vec<f32>>>, Vec<String>) {
    let bytes = fs::read(fixture(&format!("expected/{name}.safetensors"))).unwrap();
    let parsed = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let tensors =
        [EMBEDDING, HEAD].into_iter().filter_map(|name| Some((name, parsed.tensor(name).ok()?)));
    let tensors = tensors.map(|(name, view)| {
        let values = floats(view.data());
        (name.to_owned(), values.chunks_exact(view.shape()[1]).map(<[f32]>::to_vec).collect())
    });
    let order =
        serde_json::from_value(json_of(&fixture(&format!("expected/{name}.json")))).unwrap();
    (tensors.collect(), order)
}

/// Every token has the row that mergekit gives it, in the dtype's last bits.
fn assert_rows(out: &Path, name: &str, atol: f32) {
    let (tensors, order) = expected(name);
    let ids = tokens(out);
    assert_eq!(ids.len(), order.len(), "{name}: {ids:?} instead of {order:?}");
    let raw = read_raw(out);
    assert_eq!(raw.contains_key(HEAD), tensors.contains_key(HEAD), "{name}");
    for (tensor, expected) in &tensors {
        let found = rows(out, tensor);
        assert_eq!(config(out)["vocab_size"], found.len(), "{name}");
        for (token, expected) in order.iter().zip(expected) {
            let found = &found[ids[token]];
            let far = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(far <= atol, "{name}: `{token}` of {tensor} is {far} away");
        }
    }
}

fn merge(case: &str, out: &Path) -> Outcome {
    elo("merge --no-sync").arg(fixture(case)).with("--out", out).within(&fixture("")).run()
}

fn merge_text(dir: &TempDir, yaml: &str, out: &Path) -> Outcome {
    let path = dir.path().join("config.yml");
    fs::write(&path, yaml).unwrap();
    elo("merge --no-sync").arg(&path).with("--out", out).within(&fixture("")).run()
}

fn transplant(model: &Path, donor: &Path, out: &Path, args: &str) -> Outcome {
    let run = elo(&format!("transplant --no-sync {args}")).with("--model", model);
    run.with("--tokenizer-from", donor).with("--out", out).run()
}

#[test]
fn merges_are_mergekits() {
    let dir = TempDir::new().unwrap();
    for case in ["union", "padded", "tokens", "slerp", "average", "longer"] {
        let out = dir.path().join(case);
        let outcome = merge(&format!("{case}.yml"), &out);
        assert_eq!(outcome.code(), Some(0), "{case}: {outcome}");
        assert_rows(&out, case, 2e-8);
    }
    // Ids are those of mergekit, but for its random order among new ordinary tokens.
    let (ids, order) = (tokens(&dir.path().join("union")), expected("union").1);
    let new = ["fg", "fgh", "ij"];
    for (id, token) in order.iter().enumerate().filter(|(_, token)| !new.contains(&token.as_str()))
    {
        assert_eq!(ids[token], id, "{token}");
    }
    assert_eq!(new.map(|token| ids[token]), [19, 20, 21]);
    // Rows of padding are the mean of the others.
    let (padded, reference) = (rows(&dir.path().join("padded"), HEAD), expected("padded").0);
    assert_eq!((padded.len(), reference[HEAD].len()), (32, 32));
    for (a, b) in padded[19..].iter().zip(&reference[HEAD][19..]) {
        assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-8), "{a:?} {b:?}");
    }
}

#[test]
fn nothing_is_invented_or_dropped_in_silence() {
    let dir = TempDir::new().unwrap();
    let out = dir.path().join("union");
    let outcome = merge("union.yml", &out);
    outcome.expect(
        0,
        &[
            "25 tokens in 25 rows",
            "6 are appended",
            "rows of 11 tokens are invented",
            "literally: `fg`, `fgh`, `ij`",
        ],
    );
    let audit = json_of(&out.join("vocabulary_audit.json"));
    let own: Vec<BTreeMap<String, usize>> = ["f", "g", "h"].map(|m| tokens(&fixture(m))).to_vec();
    let mut lacking: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for token in tokens(&out).keys() {
        let lacks =
            ["f", "g", "h"].into_iter().zip(&own).filter(|(_, own)| !own.contains_key(token));
        let lacks: Vec<&str> = lacks.map(|(name, _)| name).collect();
        if !lacks.is_empty() {
            lacking.insert(token.clone(), lacks);
        }
    }
    let told: BTreeMap<String, Vec<&str>> = audit["invented"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| {
            let models = one["for"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
            (one["token"].as_str().unwrap().to_owned(), models)
        })
        .collect();
    assert_eq!(told, lacking);
    let of = |token: &str| {
        let list = audit["invented"].as_array().unwrap();
        list.iter().find(|one| one["token"] == token).unwrap()["from"].clone()
    };
    assert_eq!(of("hello"), json!({"model": "g", "row": 19}));
    assert_eq!(of("<|x|>"), json!({"model": "f", "row": 18}), "the base comes before a mean");

    // mergekit cuts rows beyond the tokenizer off.
    let out = dir.path().join("longer");
    let outcome = merge("longer.yml", &out);
    outcome.expect(0, &["23 tokens in 24 rows", "1 rows that belong to no token are kept"]);
    for tensor in [EMBEDDING, HEAD] {
        let (found, own) = (rows(&out, tensor), rows(&fixture("p"), tensor));
        assert_eq!(found.len(), 24);
        assert_eq!(found[23], own[23], "lent to the other model, so that it is what it was");
    }
    let added = json_of(&out.join("tokenizer.json"))["added_tokens"].clone();
    let described = added.as_array().unwrap().iter().find(|one| one["content"] == "<|y|>").unwrap();
    let like = json!({"id": 21, "content": "<|y|>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true});
    assert_eq!(*described, like);
}

#[test]
fn the_same_vocabulary_changes_nothing() {
    let dir = TempDir::new().unwrap();
    let yaml = |tokenizer: &str| {
        format!(
            "merge_method: linear\nmodels: [{{model: f, parameters: {{weight: 0.5}}}}, {{model: t2, parameters: {{weight: 0.5}}}}]\n{tokenizer}"
        )
    };
    let root = dir.path().join("models");
    for (name, from) in [("f", "f"), ("t2", "f")] {
        fs::create_dir_all(root.join(name)).unwrap();
        for file in fs::read_dir(fixture(from)).unwrap() {
            let file = file.unwrap();
            fs::copy(file.path(), root.join(name).join(file.file_name())).unwrap();
        }
    }
    let run = |text: String, out: &str| {
        let path = root.join("c.yml");
        fs::write(&path, text).unwrap();
        let out = root.join(out);
        elo("merge --no-sync").arg(&path).with("--out", &out).within(&root).ok();
        out
    };
    let plain = run(yaml(""), "plain");
    let aligned = run(yaml("tokenizer: {source: union}\n"), "aligned");
    assert_eq!(read_raw(&plain), read_raw(&aligned));
    assert_eq!(
        fs::read(fixture("f/tokenizer.json")).unwrap(),
        fs::read(aligned.join("tokenizer.json")).unwrap()
    );
    assert_eq!(json_of(&aligned.join("vocabulary_audit.json"))["invented"], json!([]));
}

/// Rows of other tokens are merged where nobody asks for one vocabulary, and that is told.
#[test]
fn tokens_that_differ_are_told() {
    let dir = TempDir::new().unwrap();
    for name in ["ours", "theirs"] {
        let to = dir.path().join(name);
        fs::create_dir(&to).unwrap();
        for file in fs::read_dir(fixture("f")).unwrap() {
            let file = file.unwrap();
            fs::copy(file.path(), to.join(file.file_name())).unwrap();
        }
    }
    let file = dir.path().join("theirs/tokenizer.json");
    let run = |out: &str| {
        let config = dir.path().join("c.yml");
        let text = "merge_method: linear\nmodels: [{model: ours}, {model: theirs}]\nparameters: {weight: 1}\n";
        fs::write(&config, text).unwrap();
        let out = dir.path().join(out);
        elo("merge --no-sync").arg(config).with("--out", out).within(dir.path()).ok()
    };
    // Another layout of the same says the same.
    let mut tokenizer = json_of(&file);
    fs::write(&file, tokenizer.to_string()).unwrap();
    assert!(!run("same").stderr.contains("belong to other tokens"));
    let vocab = tokenizer["model"]["vocab"].as_object_mut().unwrap();
    let mut names: Vec<(u64, String)> =
        vocab.iter().map(|(token, id)| (id.as_u64().unwrap(), token.clone())).collect();
    names.sort();
    let [.., (second, b), (first, a)] = names.as_slice() else { panic!() };
    vocab.insert(b.clone(), json!(first));
    vocab.insert(a.clone(), json!(second));
    fs::write(&file, tokenizer.to_string()).unwrap();
    let said = format!("row {second}: {a:?} and {b:?}");
    run("swapped").expect(0, &["2 rows belong to other tokens in `theirs` than in `ours`", &said]);
}

#[test]
fn ids_and_templates_follow_the_tokenizer() {
    let dir = TempDir::new().unwrap();
    let out = dir.path().join("out");
    let yaml = "merge_method: linear\nmodels: [{model: f, parameters: {weight: 1}}, {model: h, parameters: {weight: 1}}]\ntokenizer: {source: h}\nchat_template: chatml\n";
    merge_text(&dir, yaml, &out).expect(0, &["ordered as those of `h`"]);
    let made = config(&out);
    assert_eq!(
        (&made["bos_token_id"], &made["eos_token_id"], &made["vocab_size"]),
        (&json!(15), &json!(16), &json!(19))
    );
    let generation = json_of(&out.join("generation_config.json"));
    assert_eq!(
        (&generation["bos_token_id"], &generation["eos_token_id"]),
        (&json!(15), &json!(16))
    );
    let template = fs::read_to_string(out.join("chat_template.jinja")).unwrap();
    assert!(template.contains("<|im_start|>"));
    assert_eq!(json_of(&out.join("tokenizer_config.json"))["chat_template"], template);
    assert_eq!(
        fs::read(out.join("tokenizer.json")).unwrap(),
        fs::read(fixture("h/tokenizer.json")).unwrap()
    );

    let yaml = "merge_method: passthrough\nmodels: [{model: f}]\nchat_template: auto\n";
    merge_text(&dir, yaml, &dir.path().join("none")).expect(0, &["no model has a chat template"]);
    assert!(!dir.path().join("none/chat_template.jinja").exists());
}

#[test]
fn wishes_that_cannot_be_met_are_refused_together() {
    let dir = TempDir::new().unwrap();
    let out = dir.path().join("out");
    let yaml = "merge_method: linear\nmodels: [{model: f}, {model: g}]\nparameters: {weight: 1}\ntokenizer:\n  source: base\n  pad_to_multiple_of: 0\n  tokens:\n    a: {force: 1}\n    b: {source: {kind: zeroes}}\n    c: {source: {kind: model_token, model: f}}\nchat_template: chatmll\n";
    merge_text(&dir, yaml, &out).expect(
        3,
        &[
            "tokenizer.pad_to_multiple_of: is a number, expected a whole number from 1",
            "tokenizer.tokens.a.force: is a number, expected true or false",
            "tokenizer.tokens.a: has no `source`",
            "tokenizer.tokens.b.source.kind: `zeroes` is not a known kind, did you mean `zero`?",
            "tokenizer.tokens.c.source: takes one of `token` and `token_id`",
            "chat_template: `chatmll` is neither a known template nor Jinja, did you mean `chatml`?",
        ],
    );
    let yaml = "merge_method: linear\nmodels: [{model: f}, {model: g}]\nparameters: {weight: 1}\ntokenizer:\n  source: f\n  tokens:\n    nowhere: {source: g}\n    \"<|x|>\": {source: g}\n    ab: {source: {kind: model_token, model: g, token_id: 20}}\n";
    merge_text(&dir, yaml, &out).expect(
        3,
        &[
            "tokens.nowhere: is not a token of the result",
            "tokens.<|x|>: the model that it names has no such row",
            "tokens.ab: the model",
        ],
    );
    let yaml = "merge_method: linear\nmodels: [{model: f}]\nparameters: {weight: 1}\ntokenizer_source: base\n";
    merge_text(&dir, yaml, &out).expect(3, &["there is no `base_model`"]);
    assert!(!out.exists());
}

#[test]
fn transplants_are_tokensurgeons() {
    let dir = TempDir::new().unwrap();
    for (name, model, donor, args) in [
        ("mean", "f", "g", "--method mean"),
        ("subword", "f", "g", "--method subword"),
        ("nearest", "f", "g", "--method nearest"),
        ("omp", "f", "g", "-k 3"),
        ("omp-tied", "t", "g", "-k 3"),
        ("omp-narrow", "f", "u", "-k 3"),
    ] {
        // Where a token has no pieces mergekit makes zeros.
        if name == "subword" && !cfg!(feature = "trainer") {
            continue;
        }
        let out = dir.path().join(name);
        let outcome = transplant(&fixture(model), &fixture(donor), &out, args);
        assert_eq!(outcome.code(), Some(0), "{name}: {outcome}");
        if name == "subword" {
            let (found, ids) = (rows(&out, HEAD), tokens(&out));
            let (own, old) = (rows(&fixture("f"), HEAD), tokens(&fixture("f")));
            let mean = |of: &[&str], column: usize| {
                of.iter().map(|t| own[old[*t]][column]).sum::<f32>() / of.len() as f32
            };
            for (token, pieces) in [("fgh", ["f", "g", "h"].as_slice()), ("hello", &["h", "e"])] {
                for (column, found) in found[ids[token]].iter().enumerate() {
                    let far = (found - mean(pieces, column)).abs();
                    assert!(far < 1e-8, "{token}: {far}");
                }
            }
            let all: f32 = own.iter().map(|row| row[3]).sum::<f32>() / 19.0;
            assert!((found[ids["<|y|>"]][3] - all).abs() < 1e-8);
        } else {
            assert_rows(&out, &format!("transplant-{name}"), 1e-6);
        }
        assert_eq!(
            fs::read(out.join("tokenizer.json")).unwrap(),
            fs::read(fixture(donor).join("tokenizer.json")).unwrap()
        );
        let layer = "model.layers.0.mlp.up_proj.weight";
        assert_eq!(read_raw(&out)[layer].2, read_raw(&fixture(model))[layer].2);
        let audit = json_of(&out.join("vocabulary_audit.json"));
        let told: Vec<&str> = audit["invented"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|one| one["token"].as_str())
            .collect();
        assert_eq!(told, ["fg", "fgh", "<|y|>", "hello"]);
        assert_eq!(audit["tokens_left_out"], json!(["abc", "Ġdef", "<|x|>"]));
    }
}

#[test]
fn tokens_meet_across_spellings() {
    let dir = TempDir::new().unwrap();
    let donor = dir.path().join("pieces");
    fs::create_dir_all(&donor).unwrap();
    for (from, file) in
        [("g", "model.safetensors"), ("g", "config.json"), ("pieces", "tokenizer.json")]
    {
        fs::copy(fixture(from).join(file), donor.join(file)).unwrap();
    }
    let out = dir.path().join("out");
    transplant(&fixture("p"), &donor, &out, "--method mean --pad-to-multiple-of 8").expect(
        0,
        &[
            "18 tokens of",
            "in 24 rows, 16 of them",
            "rows of 2 tokens are invented",
            "`<0x6B>`, `é`",
            "5 rows of",
        ],
    );
    let (found, own) = (rows(&out, EMBEDDING), rows(&fixture("p"), EMBEDDING));
    let (new, old) = (tokens(&out), tokens(&fixture("p")));
    for (token, same) in [("a", "a"), ("▁", "Ġ"), ("▁de", "Ġde"), ("abc", "abc"), ("<0x61>", "a")]
    {
        assert_eq!(found[new[token]], own[old[same]], "{token}");
    }
    assert_eq!(found.len(), 24);
    assert_eq!(found[new["é"]], found[23], "means both");

    fs::remove_file(donor.join("tokenizer.json")).unwrap();
    transplant(&fixture("p"), &donor, &dir.path().join("no"), "")
        .expect(3, &["`tokenizer.json` is missing"]);
    fs::write(donor.join("tokenizer.model"), "x").unwrap();
    transplant(&fixture("p"), &donor, &dir.path().join("no"), "").expect(3, &["save it again"]);
}

/// Any runs of rows, whatever tiles they are cut into, against the plain way to compute them.
#[test]
#[expect(clippy::too_many_lines, reason = "one computation beside the other")]
fn gathered_rows_are_what_they_say() {
    let dir = TempDir::new().unwrap();
    let (rows, columns) = (300_u64, 77_u64);
    let mut random = Random::new(5);
    let count = usize::try_from(rows * columns).unwrap();
    let bf16 = random.bf16_weights(count);
    let wide: Vec<f32> = (0..count).map(|i| (i % 1013) as f32 / 7.0 - 70.0).collect();
    let bytes: Vec<u8> = wide.iter().flat_map(|v| v.to_le_bytes()).collect();
    let path = dir.path().join("model.safetensors");
    let tensors = [
        Tensor::new("a", "BF16", &[rows, columns], bf16.clone()),
        Tensor::new("b", "F32", &[rows, columns], bytes),
    ];
    fs::write(&path, shard_bytes(&tensors)).unwrap();
    let narrow: Vec<f32> = bf16
        .chunks_exact(2)
        .map(|b| f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16))
        .collect();
    let model = Checkpoint::open(&path).unwrap();
    let shard = &model.shards()[0];
    let slice = |name: &str| {
        let (_, entry) = model.tensor(name).unwrap();
        Slice {
            source: SourceId(0),
            bytes: shard.bytes(entry),
            dtype: entry.dtype.clone(),
            shape: entry.shape.clone(),
        }
    };
    let constant: Vec<f32> = (0..columns).map(|i| i as f32).collect();
    let mut runs =
        vec![Rows::Take(0, 10, 200), Rows::Zero(3), Rows::Constant(0, 5), Rows::Take(1, 299, 1)];
    runs.push(Rows::Mix(vec![(0, 7, 0.25), (1, 9, -2.0), (0, 0, 1.0)]));
    runs.extend((0..rows).rev().map(|row| Rows::Take(u32::try_from(row % 2).unwrap(), row, 1)));
    let total: u64 = runs.iter().map(Rows::count).sum();
    let value = |matrix: u32, row: u64, column: u64| {
        let at = usize::try_from(row * columns + column).unwrap();
        f64::from(if matrix == 0 { narrow[at] } else { wide[at] })
    };
    let mut expected = Vec::new();
    for run in &runs {
        for row in 0..run.count() {
            for column in 0..columns {
                expected.push(match run {
                    Rows::Take(matrix, first, _) => value(*matrix, first + row, column),
                    Rows::Constant(..) => column as f64,
                    Rows::Mix(of) => of.iter().map(|(m, r, w)| w * value(*m, *r, column)).sum(),
                    _ => 0.0,
                } as f32);
            }
        }
    }
    let shape = Shape(vec![total, columns]);
    let of = shape.clone();
    let gather = Gather { shape: of, further: vec![slice("b")], constants: vec![constant], runs };
    let operand = Operand { gather: Some(Box::new(gather)), ..slice("a").into() };
    assert_eq!(operand.dtype(), &Dtype::F32);
    let plan = |operand: Operand| Plan {
        version: PLAN_VERSION,
        operation: Operation { verb: "test".into(), parameters: serde_json::Map::new() },
        sources: vec![Source {
            role: "model".into(),
            path: path.clone(),
            identity: shard.identity,
        }],
        tensors: vec![Output {
            name: "x".into(),
            dtype: Dtype::F32,
            shape: shape.clone(),
            parts: vec![Part::Blend(Box::new(Blend::sum(
                None,
                vec![Term::new(operand, 1.0)],
                1.0,
            )))],
        }],
        shards: vec![Shard {
            file: "model.safetensors".into(),
            metadata: BTreeMap::new(),
            tensors: vec![0],
            template: None,
            template_header: None,
        }],
        sidecars: vec![],
        numerics: Numerics::Precise,
        parents: vec![],
        layer_map: None,
        notes: vec![],
    };
    let whole = plan(operand.clone());
    whole.validate().unwrap();
    let back: Plan = serde_json::from_str(&serde_json::to_string(&whole).unwrap()).unwrap();
    assert_eq!(back, whole);
    for (tile, threads) in [(4096, 1), (8192, 3), (1 << 20, 2)] {
        let out = dir.path().join(format!("out-{tile}"));
        let how = Execution { tile, threads, sync: false, ..Execution::to(&out) };
        execute(&whole, &how, &NoObserver).unwrap();
        let found = floats(&read_raw(&out)["x"].2);
        assert!(found == expected, "tiles of {tile}");
    }
    // What does not exist is refused before anything is read.
    for (bad, why) in [
        (Rows::Take(0, 299, 2), "2 rows from 299 of matrix 0 do not exist"),
        (Rows::Take(2, 0, 1), "1 rows from 0 of matrix 2 do not exist"),
        (Rows::Take(0, u64::MAX, 1), "do not exist"),
        (Rows::Constant(1, 1), "constant 1 is no row"),
        (Rows::Mix(vec![(0, 300, 1.0)]), "1 rows from 300 of matrix 0"),
        (Rows::Mix(vec![(0, 0, f64::NAN)]), "row 0 weighs NaN"),
        (Rows::Zero(u64::MAX), "do not make up"),
        (Rows::Zero(1), "do not make up"),
    ] {
        let mut operand = operand.clone();
        operand.gather.as_mut().unwrap().runs.push(bad.clone());
        let refused = plan(operand).validate().unwrap_err().to_string();
        assert!(refused.contains(why), "{bad:?}: {refused}");
    }
}

/// A matrix that was padded has the same rows at its beginning, and more than the result.
#[test]
fn padding_of_one_model_does_not_reach_the_result() {
    let dir = TempDir::new().unwrap();
    let out = dir.path().join("out");
    let yaml = "merge_method: linear\nmodels: [{model: f}, {model: p}]\nbase_model: f\nparameters: {weight: 0.5}\ntokenizer_source: union\n";
    let outcome = merge_text(&dir, yaml, &out);
    assert_eq!(outcome.code(), Some(0), "{outcome}");
    let (f, p, made) = (fixture("f"), fixture("p"), rows(&out, EMBEDDING));
    let (f, p) = (rows(&f, EMBEDDING), rows(&p, EMBEDDING));
    assert!(p.len() > f.len(), "{} rows, {}", p.len(), f.len());
    assert_eq!(made.len(), f.len());
    assert_eq!(config(&out)["vocab_size"], json!(f.len()));
    for (row, (a, b)) in made.iter().zip(f.iter().zip(&p)) {
        let mean: Vec<f32> = a.iter().zip(b).map(|(a, b)| 0.5 * a + 0.5 * b).collect();
        assert_eq!(*row, mean);
    }
}
