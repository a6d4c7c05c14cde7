//! Forty-one broken files of the kinds seen in the wild or in advisories, and three good ones.

use serde_json::{Value, json};

use super::corpus::{
    Case, Expected, HEAD, INDEX, Op, Q0, S2, SECRET, Sharded, St, config, data, file, replace, spec,
};

fn two() -> St {
    St::new(&[spec("model.a.weight", "F32", &[2, 3]), spec("model.b.weight", "BF16", &[4, 4])])
}

fn one(name: &str, dtype: &str, shape: &Value, offsets: &Value, body: u64) -> Vec<u8> {
    entries(&json!({name: {"dtype": dtype, "shape": shape, "data_offsets": offsets}}), body)
}

fn entries(header: &Value, body: u64) -> Vec<u8> {
    file(header.to_string().as_bytes(), &data(body, 1))
}

fn f32s(start: u64, end: u64) -> Value {
    json!({"dtype": "F32", "shape": [(end - start) / 4], "data_offsets": [start, end]})
}

fn single_files() -> Vec<Case> {
    let good = two();
    let mut trailing = good.bytes();
    trailing.extend([b'x'; 13]);
    let mut truncated = good.bytes();
    truncated.truncate(truncated.len() - 10);
    let mut mismatch = good.clone();
    mismatch.header["model.a.weight"] =
        json!({"dtype": "F32", "shape": [2, 4], "data_offsets": [0, 24]});
    let twice = br#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#;
    let big = json!([1_u64 << 32, 1_u64 << 32, 1_u64 << 32]);
    let pointer = format!(
        "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 4976698672\n",
        "ab".repeat(32)
    );
    let page = "<!DOCTYPE html><html><head><title>403 Forbidden</title></head><body>Access to this model is restricted</body></html>\n";
    let short = ["too small", "truncated", "too short"];
    vec![
        Case::file("empty_file", vec![])
            .mention(&["empty", "0 bytes", short[0], short[1], short[2]]),
        Case::file("seven_bytes", b"\x10\0\0\0\0\0\0".to_vec())
            .mention(&["8", short[0], short[1], short[2]]),
        Case::file("header_len_2p63", good.with_length(1 << 63)).mention(&["header"]).mention(&[
            "9223372036854775808",
            "too large",
            "100",
        ]),
        Case::file("header_len_past_eof", good.with_length(5000)).mention(&["header"]).mention(&[
            "5000",
            "end of file",
            "truncated",
            "past",
        ]),
        Case::file("header_len_over_100mb", good.with_length(100_000_001))
            .mention(&["header"])
            .mention(&["100000000", "100_000_000", "100 MB", "100MB", "too large", "100000001"]),
        Case::file(
            "header_not_utf8",
            file(b"{\"a\xff\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", &[0; 4]),
        )
        .mention(&["utf-8", "utf8"]),
        Case::file("header_not_json", file(b"this is not json", b"")).mention(&["json"]),
        Case::file("header_is_array", file(b"[]", b"")).mention(&["object", "map", "header"]),
        Case::file("dup_key_gap", file(twice, &data(8, 3))).mention(&["a"]).mention(&[
            "duplicate",
            "twice",
            "repeated",
        ]),
        Case::file("overlap", entries(&json!({"x.w": f32s(0, 16), "y.w": f32s(8, 24)}), 24))
            .mention(&["y.w"])
            .mention(&["overlap", "offset"]),
        Case::file("hole", entries(&json!({"x.w": f32s(0, 16), "y.w": f32s(24, 40)}), 40))
            .mention(&["y.w"])
            .mention(&["hole", "gap", "offset", "unused"]),
        Case::file("trailing_bytes", trailing).mention(&[
            "13",
            "trailing",
            "extra",
            "not covered",
            "unused",
        ]),
        Case::file("truncated_data", truncated).mention(&["model.b.weight"]).mention(&[
            "10",
            "truncated",
            "too short",
            "missing",
            "end of file",
        ]),
        Case::file("shape_size_mismatch", mismatch.bytes())
            .mention(&["model.a.weight"])
            .mention(&["32", "size", "shape"]),
        Case::file("shape_overflow", one("big.w", "F32", &big, &json!([0, 16]), 16))
            .mention(&["big.w"])
            .mention(&["overflow", "too large", "shape"]),
        Case::file("dtype_unknown", one("q.w", "F128", &json!([1]), &json!([0, 16]), 16))
            .mention(&["q.w"])
            .mention(&["F128"]),
        Case::file("offset_negative", one("q.w", "F32", &json!([2]), &json!([-4, 4]), 4))
            .mention(&["q.w"])
            .mention(&["offset", "-4"]),
        Case::file("offset_reversed", one("q.w", "F32", &json!([2]), &json!([8, 0]), 8))
            .mention(&["q.w"])
            .mention(&["offset"]),
        Case::file("shape_negative", one("q.w", "F32", &json!([-1, 4]), &json!([0, 16]), 16))
            .mention(&["q.w"])
            .mention(&["shape", "-1"]),
        Case::file("shape_float", one("q.w", "F32", &json!([2.5]), &json!([0, 10]), 10))
            .mention(&["q.w"])
            .mention(&["shape", "2.5"]),
        Case::file(
            "field_missing",
            entries(&json!({"q.w": {"shape": [1], "data_offsets": [0, 4]}}), 4),
        )
        .mention(&["q.w"])
        .mention(&["dtype"]),
        Case::file("f4_odd_count", one("q.w", "F4", &json!([3]), &json!([0, 2]), 2))
            .mention(&["q.w"])
            .mention(&["F4", "byte", "align"]),
        Case::file(
            "metadata_not_string",
            entries(&json!({"__metadata__": {"epoch": 1}, "q.w": f32s(0, 4)}), 4),
        )
        .mention(&["__metadata__"])
        .mention(&["epoch", "string"]),
        Case::file("lfs_pointer", pointer.into_bytes()).mention(&["lfs"]),
        Case::file("html_page", page.as_bytes().to_vec()).mention(&[
            "html",
            "not a safetensors",
            "header",
        ]),
    ]
}

fn indexes() -> Vec<Case> {
    let good = || Sharded::new(2, 12);
    let refused = ["outside", "..", "path", "not allowed", "refus"];
    let mut headless = good();
    headless.second = headless.second.without(HEAD);
    let mut both = good();
    let mut specs = both.second.specs();
    specs.push(spec(Q0, "BF16", &[8, 8]));
    both.second = St::new(&specs);
    let mut no_map = good();
    no_map.index.as_object_mut().unwrap().remove("weight_map");
    let cut = good().index.to_string().into_bytes()[..200].to_vec();
    let half = {
        let raw = good().second.bytes();
        raw[..raw.len() / 2 + 300].to_vec()
    };
    vec![
        Case::new(
            "idx_traversal",
            headless.clone().map(HEAD, "../_outside/secret.safetensors").files(),
            Expected::Error,
        )
        .mention(&[HEAD])
        .mention(&refused)
        .sentinel(SECRET),
        Case::new("idx_absolute", headless.map(HEAD, "/etc/passwd").files(), Expected::Error)
            .mention(&[HEAD])
            .mention(&["/etc/passwd"])
            .mention(&["absolute", "outside", "not allowed", "refus"])
            .sentinel("root:x:0:0"),
        Case::new("idx_missing_shard", replace(good().files(), S2, None), Expected::Error)
            .mention(&[S2])
            .mention(&["missing", "not found", "no such"]),
        Case::new(
            "idx_tensor_absent",
            good().map("model.ghost.weight", S2).files(),
            Expected::Error,
        )
        .mention(&["model.ghost.weight"])
        .mention(&[S2]),
        Case::new("dup_across_shards", both.files(), Expected::Warning)
            .mention(&[Q0])
            .mention(&[S2])
            .mention(&[
                "duplicate",
                "also",
                "both",
                "more than one",
                "not in the index",
                "unlisted",
            ]),
        Case::new("idx_truncated_json", replace(good().files(), INDEX, Some(cut)), Expected::Error)
            .mention(&[INDEX])
            .mention(&["json", "EOF", "truncated"]),
        Case::new("idx_no_weight_map", no_map.files(), Expected::Error)
            .mention(&[INDEX])
            .mention(&["weight_map"]),
        Case::new("shard_truncated_half", replace(good().files(), S2, Some(half)), Expected::Error)
            .mention(&[S2])
            .mention(&["truncated", "end of file", "too short", "missing", "incomplete"]),
    ]
}

fn models() -> Vec<Case> {
    let good = || Sharded::new(2, 12);
    let mut nan = good();
    nan.second = nan.second.put(HEAD, 0, b"\xc0\x7f");
    let mut three = good();
    three.config = config(3, 12);
    let pair = |b: &Sharded| {
        let under = |folder: &'static str, s: &Sharded| {
            s.files().into_iter().map(move |(n, c)| (format!("{folder}/{n}"), c))
        };
        under("a", &good()).chain(under("b", b)).collect()
    };
    let pickle = b"cos\nsystem\n(S'touch PWNED_PUBLIC'\ntR.".to_vec();
    let pickled = vec![
        ("pytorch_model.bin".to_owned(), pickle),
        ("config.json".to_owned(), config(2, 12).to_string().into_bytes()),
    ];
    let zero = St::new(&[spec("z.w", "F32", &[0, 4]), spec("s", "F32", &[])]).bytes();
    let without_layers = |case: Case| {
        case.expect(Expected::Ok).except(Op::Extract, Expected::Error).only(&[
            Op::Inspect,
            Op::InspectJson,
            Op::Verify,
            Op::Extract,
        ])
    };
    vec![
        Case::new("nan_bf16", nan.files(), Expected::Warning)
            .only(&[Op::Verify, Op::ChatVector])
            .mention(&[HEAD])
            .mention(&["nan"]),
        Case::new("config_layers_mismatch", three.files(), Expected::Warning)
            .only(&[Op::Verify])
            .mention(&["num_hidden_layers"])
            .mention(&["3"])
            .mention(&["2"]),
        Case::new("merge_vocab_mismatch", pair(&Sharded::new(2, 14)), Expected::Error)
            .only(&[Op::ChatVector])
            .path("a")
            .second("b")
            .mention(&["model.embed_tokens.weight"])
            .mention(&["12"])
            .mention(&["14"]),
        Case::new("merge_layer_missing", pair(&Sharded::new(1, 12)), Expected::Error)
            .only(&[Op::ChatVector])
            .path("a")
            .second("b")
            .mention(&["model.layers.1."]),
        Case::new("pickle_only", pickled, Expected::Error)
            .mention(&["safetensors"])
            .mention(&["pickle", "pytorch_model.bin", ".bin"])
            .forbid("PWNED_PUBLIC"),
        Case::new("ctl_good_sharded", good().files(), Expected::Ok),
        without_layers(Case::file("ctl_zero_and_scalar", zero)),
        without_layers(Case::file(
            "ctl_only_metadata",
            entries(&json!({"__metadata__": {"format": "pt"}}), 0),
        )),
    ]
}

/// All of them.
pub(super) fn cases() -> Vec<Case> {
    let mut all = single_files();
    all.extend(indexes());
    all.extend(models());
    assert_eq!(all.len(), 41, "the corpus is complete");
    all
}
