//! Further hostile and odd checkpoints: special files, links, deep and wide JSON, numbers at their limits.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde_json::{Value, json};

use super::corpus::{
    Case, Expected, HEAD, INDEX, Op, Q0, S1, S2, SECRET, Sharded, St, config, data, file, replace,
    spec,
};

const INSPECTS: [Op; 2] = [Op::Inspect, Op::InspectJson];

fn good() -> Sharded {
    Sharded::new(2, 12)
}

fn fifo(path: &Path) {
    mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o644), 0).unwrap();
}

fn text(value: &(impl ToString + ?Sized)) -> Vec<u8> {
    value.to_string().into_bytes()
}

fn with_config(config: &(impl ToString + ?Sized)) -> super::corpus::Files {
    replace(good().files(), "config.json", Some(text(config)))
}

/// A config with one setting changed.
fn setting(key: &str, value: Value) -> super::corpus::Files {
    let mut config = config(2, 12);
    config[key] = value;
    with_config(&config)
}

fn nested(depth: usize) -> String {
    format!("{}{}", "[".repeat(depth), "]".repeat(depth))
}

/// A file of one tensor `t.w`.
fn one(name: &str, entry: &str, body: u64) -> Case {
    let header = format!("{{\"t.w\":{entry}}}");
    Case::file(name, file(header.as_bytes(), &data(body, 1)))
}

fn special_files() -> Vec<Case> {
    let without = |name: &str| replace(good().files(), name, None);
    let snapshot = |root: &Path| {
        fs::create_dir_all(root.join("blobs")).unwrap();
        fs::create_dir_all(root.join("snapshots/abc")).unwrap();
        for (name, content) in good().files() {
            fs::write(root.join("blobs").join(format!("blob-{name}")), content).unwrap();
            let target = format!("../../blobs/blob-{name}");
            symlink(target, root.join("snapshots/abc").join(name)).unwrap();
        }
    };
    vec![
        Case::new("fifo_shard", without(S2), Expected::Error)
            .special(|root| fifo(&root.join(S2)))
            .mention(&[S2])
            .mention(&["fifo", "not a regular"]),
        Case::new("fifo_file", vec![], Expected::Error)
            .special(|root| fifo(&root.join("x.safetensors")))
            .path("x.safetensors")
            .mention(&["x.safetensors"]),
        Case::new("fifo_config", without("config.json"), Expected::Error)
            .special(|root| fifo(&root.join("config.json")))
            .mention(&["config.json"]),
        Case::new("fifo_index", without(INDEX), Expected::Error)
            .special(|root| fifo(&root.join(INDEX)))
            .mention(&[INDEX]),
        Case::new("fifo_sidecar", good().files(), Expected::Ok)
            .special(|root| fifo(&root.join("tokenizer.json"))),
        Case::new("folder_as_shard", without(S2), Expected::Error)
            .special(|root| fs::create_dir(root.join(S2)).unwrap())
            .mention(&[S2])
            .mention(&["directory"]),
        Case::new("shard_link_outside", without(S2), Expected::Error)
            .special(|root| {
                fs::write(root.join("../_outside/second.safetensors"), good().second.bytes())
                    .unwrap();
                symlink("../_outside/second.safetensors", root.join(S2)).unwrap();
            })
            .mention(&[S2])
            .mention(&["link"])
            .mention(&["follow-symlinks"]),
        Case::new("shard_link_outside_allowed", without(S2), Expected::Ok)
            .special(|root| {
                fs::write(root.join("../_outside/second.safetensors"), good().second.bytes())
                    .unwrap();
                symlink("../_outside/second.safetensors", root.join(S2)).unwrap();
            })
            .flag("--follow-symlinks"),
        Case::new("shard_link_inside", without(S2), Expected::Ok).special(|root| {
            fs::write(root.join("real.bytes"), good().second.bytes()).unwrap();
            symlink("real.bytes", root.join(S2)).unwrap();
        }),
        Case::new("shard_link_dangling", without(S2), Expected::Error)
            .special(|root| symlink("nowhere", root.join(S2)).unwrap())
            .mention(&[S2]),
        Case::new("shard_link_loop", without(S2), Expected::Error)
            .special(|root| symlink(S2, root.join(S2)).unwrap())
            .any_status()
            .mention(&[S2]),
        Case::new(
            "shard_in_linked_folder",
            good().map(HEAD, "sub/s.safetensors").files(),
            Expected::Error,
        )
        .special(|root| {
            let only_head = St::new(&[spec(HEAD, "BF16", &[12, 8])]).bytes();
            fs::create_dir(root.join("../_outside/sub")).unwrap();
            fs::write(root.join("../_outside/sub/s.safetensors"), only_head).unwrap();
            symlink("../_outside/sub", root.join("sub")).unwrap();
        })
        .mention(&["s.safetensors"])
        .mention(&["link", "outside"]),
        Case::new("config_link_outside", without("config.json"), Expected::Error)
            .special(|root| {
                fs::write(root.join("../_outside/c.json"), config(2, 12).to_string()).unwrap();
                symlink("../_outside/c.json", root.join("config.json")).unwrap();
            })
            .mention(&["config.json"])
            .mention(&["link"]),
        Case::new("sidecar_link_outside", good().files(), Expected::Any)
            .special(|root| symlink("../_outside/secret.txt", root.join("LICENSE")).unwrap())
            .sentinel(SECRET),
        Case::new("sidecar_link_absolute", good().files(), Expected::Any)
            .special(|root| symlink("/etc/passwd", root.join("merges.txt")).unwrap())
            .sentinel("root:x:0:0"),
        Case::new("cache_snapshot", vec![], Expected::Ok).special(snapshot).path("snapshots/abc"),
        Case::new("empty_folder", vec![("notes.txt".into(), vec![])], Expected::Error)
            .mention(&["safetensors"]),
        Case::new(
            "upper_case_extension",
            vec![("MODEL.SAFETENSORS".into(), good().first.bytes())],
            Expected::Error,
        )
        .mention(&["safetensors"]),
        Case::new("no_such_path", vec![], Expected::Error).path("not-here").mention(&["not-here"]),
        Case::new("sparse_terabyte", vec![], Expected::Ok)
            .special(|root| {
                let header = format!(
                    "{{\"t.w\":{{\"dtype\":\"U8\",\"shape\":[{0}],\"data_offsets\":[0,{0}]}}}}",
                    1_u64 << 40
                );
                let path = root.join("t.safetensors");
                let raw = file(header.as_bytes(), b"");
                fs::write(&path, &raw).unwrap();
                let size = raw.len() as u64 + (1 << 40);
                fs::File::options().write(true).open(&path).unwrap().set_len(size).unwrap();
            })
            .path("t.safetensors")
            .only(&INSPECTS),
    ]
}

fn configs() -> Vec<Case> {
    let broken = |name: &str, config: &str| {
        Case::new(name, with_config(config), Expected::Error).mention(&["config.json"])
    };
    let graceful = |name: &str, files| Case::new(name, files, Expected::Any);
    vec![
        broken("config_is_array", "[1, 2]"),
        broken("config_is_string", "\"llama\""),
        broken("config_not_json", "{\"model_type\": \"llama\""),
        broken("config_empty", ""),
        broken("config_not_utf8", "{\"model_type\": \"\u{fffd}").only(&[Op::Extract]),
        broken("config_nan", "{\"model_type\": \"llama\", \"rope_theta\": NaN}"),
        broken("config_deep", &format!("{{\"a\": {}}}", nested(200_000))),
        graceful("config_layers_text", setting("num_hidden_layers", json!("two"))),
        graceful("config_layers_null", setting("num_hidden_layers", Value::Null)),
        graceful("config_layers_float", setting("num_hidden_layers", json!(2.0))),
        Case::new(
            "config_layers_negative",
            setting("num_hidden_layers", json!(-1)),
            Expected::Error,
        )
        .only(&[Op::Extract])
        .mention(&["config.json", "num_hidden_layers", "layers"]),
        Case::new(
            "config_layers_huge",
            setting("num_hidden_layers", json!(u64::MAX)),
            Expected::Error,
        )
        .only(&[Op::Extract])
        .mention(&["layers"]),
        graceful("config_model_type_number", setting("model_type", json!(7))),
        graceful("config_text_config_number", setting("text_config", json!(5))),
        graceful("config_architectures_text", setting("architectures", json!("Llama"))),
        Case::new(
            "config_layer_types_short",
            setting("layer_types", json!(["full_attention"])),
            Expected::Error,
        )
        .only(&[Op::Extract])
        .mention(&["layer_types"]),
        graceful("config_layer_types_number", setting("layer_types", json!(3))),
        graceful("config_vocab_text", setting("vocab_size", json!("many"))),
        Case::new("config_missing", replace(good().files(), "config.json", None), Expected::Ok)
            .except(Op::ChatVector, Expected::Any),
        Case::new(
            "undo_record_present",
            replace(good().files(), "elo-surgery.undo", Some(text("garbage"))),
            Expected::Error,
        )
        .only(&[Op::Extract, Op::ChatVector])
        .any_status()
        .mention(&["in-place"]),
        graceful(
            "provenance_garbage",
            replace(good().files(), "elo-surgery.json", Some(text("{]"))),
        ),
        graceful(
            "provenance_deep",
            replace(good().files(), "elo-surgery.json", Some(text(&nested(200_000)))),
        ),
    ]
}

fn indexes() -> Vec<Case> {
    let with_index = |index: &dyn ToString| replace(good().files(), INDEX, Some(text(index)));
    let refused = |name: &str, index: &dyn ToString| {
        Case::new(name, with_index(index), Expected::Error).mention(&[INDEX])
    };
    let twice = good().index.to_string().replacen(
        &format!("\"{Q0}\""),
        &format!("\"{Q0}\":\"{S2}\",\"{Q0}\""),
        1,
    );
    let mut number = good();
    number.index["weight_map"][HEAD] = json!(5);
    let mut wrong_total = good();
    wrong_total.index["metadata"]["total_size"] = json!(7);
    let mut float_total = good();
    let total = float_total.index["metadata"]["total_size"].as_f64().unwrap();
    float_total.index["metadata"]["total_size"] = json!(total);
    let mut huge_total = good();
    huge_total.index["metadata"]["total_size"] = json!(1e300);
    let mut partial = good();
    partial.index["weight_map"].as_object_mut().unwrap().remove("model.norm.weight");
    let many: serde_json::Map<String, Value> =
        (0..5000).map(|i| (format!("t{i}"), json!(format!("missing-{i}.safetensors")))).collect();
    vec![
        refused("idx_key_twice", &twice).mention(&[Q0]).mention(&["duplicate", "twice"]),
        refused("idx_value_number", &number.index),
        refused("idx_is_array", &"[]"),
        refused("idx_map_is_array", &"{\"weight_map\": []}"),
        refused("idx_deep", &format!("{{\"weight_map\": {}}}", nested(200_000))),
        Case::new(
            "idx_ignored_deep",
            with_index(&good().index.to_string().replacen(
                '{',
                &format!("{{\"x\": {}, ", nested(200_000)),
                1,
            )),
            Expected::Any,
        ),
        refused("idx_pickle_shard", &good().map(HEAD, "pytorch_model.bin").index)
            .mention(&["pytorch_model.bin"]),
        refused("idx_backslashes", &good().map(HEAD, "..\\_outside\\secret.safetensors").index)
            .mention(&[HEAD])
            .sentinel(SECRET),
        refused("idx_drive", &good().map(HEAD, "C:\\secret.safetensors").index).mention(&[HEAD]),
        refused("idx_empty_path", &good().map(HEAD, "").index).mention(&[HEAD]),
        refused("idx_nul_path", &good().map(HEAD, "a\0b.safetensors").index).mention(&[HEAD]),
        refused(
            "idx_escape_inside",
            &good().map(HEAD, "x/../../_outside/secret.safetensors").index,
        )
        .mention(&[HEAD])
        .sentinel(SECRET),
        refused("idx_control_characters", &good().map(HEAD, "\u{1b}[2J\u{7}.safetensors").index),
        refused("idx_many_missing", &json!({"weight_map": many})),
        Case::new("idx_empty_map", with_index(&"{\"weight_map\": {}}"), Expected::Any)
            .except(Op::Extract, Expected::Error),
        Case::new("idx_wrong_total", wrong_total.files(), Expected::Warning)
            .only(&[Op::Inspect, Op::Verify])
            .mention(&["total_size"]),
        Case::new("idx_float_total", float_total.files(), Expected::Ok),
        Case::new("idx_absurd_total", huge_total.files(), Expected::Any),
        Case::new("idx_leaves_a_tensor_out", partial.files(), Expected::Warning)
            .mention(&["model.norm.weight"])
            .mention(&["not in the index"]),
        Case::new(
            "stale_shard",
            replace(good().files(), "model-00003-of-00003.safetensors", Some(good().first.bytes())),
            Expected::Warning,
        )
        .mention(&["model-00003-of-00003.safetensors"]),
        Case::new(
            "single_file_beside_index",
            replace(good().files(), "model.safetensors", Some(good().first.bytes())),
            Expected::Warning,
        )
        .mention(&["`model.safetensors`"]),
        Case::new("shard_of_no_bytes", replace(good().files(), S2, Some(vec![])), Expected::Error)
            .mention(&[S2])
            .mention(&["empty", "too short", "0 bytes"]),
        Case::new(
            "shards_swapped",
            {
                let g = good();
                replace(replace(g.files(), S1, Some(g.second.bytes())), S2, Some(g.first.bytes()))
            },
            Expected::Error,
        )
        .mention(&[INDEX, S1, S2]),
        Case::new("no_index_two_shards", replace(good().files(), INDEX, None), Expected::Ok),
        Case::new(
            "no_index_twice",
            replace(replace(good().files(), INDEX, None), S2, Some(good().first.bytes())),
            Expected::Error,
        )
        .mention(&[S2])
        .mention(&["both", "twice", "duplicate"]),
        Case::new(
            "two_indexes",
            replace(
                replace(good().files(), INDEX, None),
                "a.safetensors.index.json",
                Some(text(&good().index)),
            )
            .into_iter()
            .chain([("b.safetensors.index.json".to_owned(), good().index.to_string().into_bytes())])
            .collect(),
            Expected::Error,
        )
        .mention(&["several", "index"]),
    ]
}

fn headers() -> Vec<Case> {
    let max = u64::MAX;
    let legal =
        |case: Case| case.expect(Expected::Ok).only(&[Op::Inspect, Op::InspectJson, Op::Verify]);
    let long = "n".repeat(65_536);
    let st = |specs: &[super::corpus::Spec]| St::new(specs).bytes();
    let ones = |count: usize| vec![1_u64; count];
    let zeros = json!({
        "a": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]},
        "b": {"dtype": "F32", "shape": [0, 7], "data_offsets": [0, 0]},
        "c": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
        "d": {"dtype": "F32", "shape": [3, 0], "data_offsets": [16, 16]},
    });
    let inside = json!({
        "a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
        "z": {"dtype": "F32", "shape": [0], "data_offsets": [8, 8]},
    });
    let bom = [&b"\xef\xbb\xbf"[..], b"{}"].concat();
    vec![
        Case::file("header_of_spaces", file(&[b' '; 64], b"")).mention(&["json", "object"]),
        Case::file("header_of_nothing", file(b"", b"")).mention(&["json", "object", "header"]),
        Case::file("header_length_max", St::new(&[]).with_length(max)).mention(&["too large"]),
        Case::file("header_length_max_less_8", St::new(&[]).with_length(max - 7)).mention(&["too large"]),
        Case::file("header_leading_space", file(b" {}", b"")).mention(&["json", "object"]),
        Case::file("header_bom", file(&bom, b"")).mention(&["json", "object"]),
        Case::file("header_garbage_after", file(b"{} x", b"")).mention(&["json"]),
        Case::file("header_two_objects", file(b"{}{}", b"")).mention(&["json"]),
        Case::file("header_deep", file(format!("{{\"a\":{}}}", nested(300_000)).as_bytes(), b"")).mention(&["json", "tensor"]),
        Case::file("header_deep_metadata", file(format!("{{\"__metadata__\":{}}}", nested(300_000)).as_bytes(), b"")).mention(&["json", "metadata"]),
        one("header_deep_unknown_field", &format!("{{\"x\":{},\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", nested(300_000)), 1),
        one("shape_nan", r#"{"dtype":"U8","shape":[NaN],"data_offsets":[0,1]}"#, 1).mention(&["json"]),
        one("offset_infinity", r#"{"dtype":"U8","shape":[1],"data_offsets":[0,Infinity]}"#, 1).mention(&["json"]),
        one("offset_max", &format!(r#"{{"dtype":"U8","shape":[{max}],"data_offsets":[0,{max}]}}"#), 1).mention(&["t.w"]),
        one("offset_over_64_bits", r#"{"dtype":"U8","shape":[1],"data_offsets":[0,18446744073709551616]}"#, 1).mention(&["t.w"]).mention(&["18446744073709551616"]),
        one("offset_exponent", r#"{"dtype":"U8","shape":[1],"data_offsets":[0,1e0]}"#, 1).mention(&["t.w"]).mention(&["1e0", "1e+0"]),
        one("offset_million_digits", &format!(r#"{{"dtype":"U8","shape":[1],"data_offsets":[0,{}]}}"#, "9".repeat(1_000_000)), 1).mention(&["t.w"]),
        one("offsets_three", r#"{"dtype":"U8","shape":[1],"data_offsets":[0,1,2]}"#, 1).mention(&["t.w"]).mention(&["3"]),
        one("offsets_object", r#"{"dtype":"U8","shape":[1],"data_offsets":{"0":1}}"#, 1).mention(&["t.w"]),
        one("shape_times_bits_overflow", &format!(r#"{{"dtype":"F64","shape":[{}],"data_offsets":[0,8]}}"#, 1_u64 << 62), 8).mention(&["t.w"]).mention(&["large", "overflow"]),
        one("dimensions_100", &format!(r#"{{"dtype":"U8","shape":{:?},"data_offsets":[0,1]}}"#, ones(100)), 1).mention(&["t.w"]).mention(&["100", "dimensions"]),
        legal(one("dimensions_64", &format!(r#"{{"dtype":"U8","shape":{:?},"data_offsets":[0,1]}}"#, ones(64)), 1)),
        one("dtype_number", r#"{"dtype":7,"shape":[1],"data_offsets":[0,1]}"#, 1).mention(&["t.w"]).mention(&["dtype"]),
        one("dtype_lower_case", r#"{"dtype":"f32","shape":[1],"data_offsets":[0,4]}"#, 4).mention(&["t.w"]).mention(&["f32"]),
        one("dtype_control_characters", r#"{"dtype":"\u001b[31m\u0007","shape":[1],"data_offsets":[0,4]}"#, 4).mention(&["t.w"]),
        one("dtype_million", &format!(r#"{{"dtype":"{}","shape":[1],"data_offsets":[0,4]}}"#, "D".repeat(1_000_000)), 4).mention(&["t.w"]),
        one("entry_number", "5", 0).mention(&["t.w"]),
        one("entry_float", "5.5", 0).mention(&["t.w"]),
        one("entry_null", "null", 0).mention(&["t.w"]),
        one("entry_array", r#"["U8",[1],[0,1]]"#, 1).mention(&["t.w"]),
        one("field_twice", r#"{"dtype":"U8","dtype":"I8","shape":[1],"data_offsets":[0,1]}"#, 1).mention(&["t.w"]).mention(&["twice", "duplicate"]),
        Case::file("metadata_array", file(br#"{"__metadata__":[]}"#, b"")).mention(&["__metadata__"]),
        Case::file("metadata_twice", file(br#"{"__metadata__":{},"__metadata__":{}}"#, b"")).mention(&["__metadata__"]).mention(&["twice", "duplicate"]),
        Case::file("name_twice_by_escape", file(br#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"\u0061":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#, b"xy")).mention(&["twice", "duplicate"]),
        Case::file("zero_size_inside_another", file(inside.to_string().as_bytes(), &data(16, 1))).mention(&["z", "a"]).mention(&["overlap", "offset"]),
        legal(Case::file("zero_sizes_at_the_seams", file(zeros.to_string().as_bytes(), &data(16, 1)))),
        legal(Case::file("metadata_null", file(br#"{"__metadata__":null}"#, b""))),
        legal(Case::file("name_of_65536_characters", st(&[spec(&long, "U8", &[1])]))),
        legal(Case::file("name_control_characters", st(&[spec("a\u{1b}[2J\u{7}\r\nb\u{202e}c\u{9b}31m", "U8", &[1]), spec("\u{0}", "U8", &[2])]))),
        legal(Case::file("name_empty", st(&[spec("", "U8", &[1])]))),
        legal(Case::file("name_like_a_path", st(&[spec("../../etc/passwd", "U8", &[1])]))),
        legal(Case::file("integers_of_64_bits", st(&[spec("i", "I64", &[3]), spec("u", "U64", &[2])]))),
        Case::file("layer_number_max", st(&[spec(&format!("model.layers.{max}.x.weight"), "BF16", &[4])])).expect(Expected::Any),
        Case::file("layer_number_huge", st(&[spec("model.layers.99999999999.x.weight", "BF16", &[4])])).expect(Expected::Any),
        Case::file("layer_number_odd", st(&[spec("model.layers.+1.x.weight", "BF16", &[4]), spec("model.layers.00.x.weight", "BF16", &[4]), spec("model.layers.-1.x.weight", "BF16", &[4])])).expect(Expected::Any),
        Case::new("layer_gap", Sharded::of(&[
            spec("model.embed_tokens.weight", "BF16", &[12, 8]),
            spec("model.layers.0.mlp.up_proj.weight", "BF16", &[8, 8]),
            spec("model.layers.2.mlp.up_proj.weight", "BF16", &[8, 8]),
            spec("model.norm.weight", "BF16", &[8]),
        ], config(3, 12)).files(), Expected::Warning)
            .only(&[Op::Verify])
            .mention(&["layer", "gap", "missing"]),
    ]
}

/// All of them.
pub(super) fn cases() -> Vec<Case> {
    let mut all = special_files();
    all.extend(configs());
    all.extend(indexes());
    all.extend(headers());
    assert!(all.len() > 100, "{} cases", all.len());
    all
}
