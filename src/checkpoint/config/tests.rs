use serde_json::{Map, Value, json};

use super::*;
use crate::format::Dtype;

/// A config of `fixtures/configs`.
macro_rules! fixture {
    ($name:literal) => {
        object(
            serde_json::from_str(include_str!(concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/fixtures/configs/",
                $name,
                ".json"
            )))
            .unwrap(),
        )
    };
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        other => panic!("not an object: {other}"),
    }
}

fn keep(config: &Map<String, Value>, kept: &[u64]) -> Result<Kept, ConfigProblem> {
    let anatomy = Anatomy::resolve(Some(config), std::iter::empty())?;
    keep_layers(config, &anatomy, kept)
}

/// The config with other layers, as an object; `kept` from 0.
fn cut(config: Value, kept: &[u64]) -> Value {
    Value::Object(keep(&object(config), kept).unwrap().config)
}

fn refusal(config: Value, kept: &[u64]) -> String {
    keep(&object(config), kept).unwrap_err().to_string()
}

#[test]
fn reference_extractions() {
    // Layers (from 0) and fields of configs that transformers wrote for the same extraction and
    // that were found to compute what the full model with skipped layers computes.
    let cases = [
        (fixture!("llama31-base"), [0, 5], json!({"num_hidden_layers": 2})),
        (fixture!("llama32-tied"), [0, 5], json!({"num_hidden_layers": 2})),
        (fixture!("mistral"), [0, 5], json!({"num_hidden_layers": 2})),
        (
            fixture!("qwen2-untied"),
            [0, 5],
            json!({"num_hidden_layers": 2, "max_window_layers": 4,
                   "layer_types": ["full_attention", "full_attention"]}),
        ),
        (
            fixture!("qwen2-tied-f32"),
            [0, 4],
            json!({"num_hidden_layers": 2, "max_window_layers": 1,
                   "layer_types": ["full_attention", "sliding_attention"]}),
        ),
        (
            fixture!("gemma2"),
            [0, 6],
            json!({"num_hidden_layers": 2,
                   "layer_types": ["sliding_attention", "sliding_attention"]}),
        ),
        (
            fixture!("gemma2"),
            [1, 2],
            json!({"num_hidden_layers": 2,
                   "layer_types": ["full_attention", "sliding_attention"]}),
        ),
        (fixture!("qwen3moe"), [0, 5], json!({"num_hidden_layers": 2})),
        (fixture!("gpt2"), [0, 5], json!({"n_layer": 2})),
        (fixture!("llama31-v4"), [0, 5], json!({"num_hidden_layers": 2})),
        (
            fixture!("gemma2-v4"),
            [0, 4],
            json!({"num_hidden_layers": 2,
                   "layer_types": ["sliding_attention", "sliding_attention"]}),
        ),
        (
            fixture!("qwen2-swa-v4"),
            [0, 4],
            json!({"num_hidden_layers": 2, "max_window_layers": 1,
                   "layer_types": ["full_attention", "sliding_attention"]}),
        ),
    ];
    for (config, kept, changes) in cases {
        let mut expected = config.clone();
        expected.extend(object(changes));
        assert_eq!(keep(&config, &kept).unwrap().config, expected);
    }
}

#[test]
fn keeping_every_layer_changes_no_byte() {
    let text = r#"{"model_type":"gemma2","num_hidden_layers":3,"rms_norm_eps":1e-06,"x":1.50,"num_nextn_predict_layers":1}"#;
    let config = object(serde_json::from_str(text).unwrap());
    let kept = keep(&config, &[0, 1, 2]).unwrap();
    assert_eq!(serde_json::to_string(&kept.config).unwrap(), text);
    assert!(kept.multi_token && kept.notes.is_empty());
}

#[test]
fn number_texts_and_key_order_survive() {
    let text = r#"{"rms_norm_eps":1e-06,"num_hidden_layers":3,"rope_theta":1.00e+5,"eps":1e-06}"#;
    let config = object(serde_json::from_str(text).unwrap());
    let new = keep(&config, &[1]).unwrap().config;
    let expected = text.replace(":3", ":1");
    assert_eq!(serde_json::to_string(&new).unwrap(), expected);
}

#[test]
fn only_text_configs_are_cut() {
    let new = cut(
        json!({
            "model_type": "gemma3",
            "text_config": {"model_type": "gemma3_text", "num_hidden_layers": 7, "sliding_window": 8},
            "vision_config": {"num_hidden_layers": 7, "layer_types": [1, 2, 3, 4, 5, 6, 7]},
        }),
        &[0, 5],
    );
    let text = &new["text_config"];
    assert_eq!(text["num_hidden_layers"], 2);
    assert_eq!(text["layer_types"], json!(["sliding_attention", "full_attention"]));
    assert_eq!(text["sliding_window_pattern"], 2);
    assert_eq!(new["vision_config"]["num_hidden_layers"], 7);
    assert_eq!(new.get("num_hidden_layers"), None);
    assert_eq!(new.get("layer_types"), None);
}

#[test]
fn a_missing_count_is_written_where_the_stack_is() {
    let config = object(json!({"model_type": "llava", "text_config": {"model_type": "llama"}}));
    let names =
        ["language_model.model.layers.0.a.weight", "language_model.model.layers.1.a.weight"];
    let anatomy = Anatomy::resolve(Some(&config), names.into_iter()).unwrap();
    let new = keep_layers(&config, &anatomy, &[1]).unwrap().config;
    assert_eq!(new["text_config"]["num_hidden_layers"], 1);
    assert_eq!(new.get("num_hidden_layers"), None);
}

#[test]
fn every_alias_of_the_count_is_set() {
    let new = cut(json!({"model_type": "falcon", "n_layer": 4, "num_hidden_layers": 4}), &[0, 3]);
    assert_eq!((&new["n_layer"], &new["num_hidden_layers"]), (&json!(2), &json!(2)));
}

/// Kept layers 1, 4 and 8 of 8 (0, 3, 7 from 0) under each kind of field.
#[test]
fn fields_with_entries_of_their_own() {
    let eight: Vec<u64> = (10..18).collect();
    let cases = [
        ("layer_types", json!(eight), json!([10, 13, 17])),
        ("no_rope_layers", json!([1, 1, 1, 0, 1, 1, 1, 0]), json!([1, 0, 0])),
        ("intermediate_size", json!(48), json!(48)),
        ("intermediate_size", json!(eight), json!([10, 13, 17])),
        ("hybrid_override_pattern", json!("M-M*|M-M*"), json!("M**")),
        ("mlp_only_layers", json!([7, 0, 2]), json!([0, 2])),
        ("mlp_only_layers", json!([]), json!([])),
        ("mlp_only_layers", Value::Null, Value::Null),
        ("ple_layer_ids", json!([1, 5, 8]), json!([1, 3])),
        ("moe_layers_enum", json!("3, 4,7"), json!("1,2")),
        (
            "linear_attn_config",
            json!({"kda_layers": [4, 5], "x": 1}),
            json!({"kda_layers": [2], "x": 1}),
        ),
        ("per_layer_config", json!({"3": "a", "4": "b"}), json!({"1": "a"})),
        ("per_layer_config", json!({"03": "a", "07": "b"}), json!({"01": "a", "02": "b"})),
        ("kv_source_layers", json!([0, 1, 2, 3, 4, 5, 6, 3]), json!([0, 1, 1])),
        (
            "attention_types",
            json!([[["global", "local"], 4]]),
            json!([[["global", "local", "local"], 1]]),
        ),
    ];
    for (key, old, new) in cases {
        let config = json!({"num_hidden_layers": 8, key: old});
        assert_eq!(cut(config, &[0, 3, 7])[key], new, "{key}");
    }
}

#[test]
fn lists_follow_any_order() {
    let config =
        json!({"num_hidden_layers": 3, "layer_types": ["a", "b", "c"], "mlp_only_layers": [2]});
    let new = cut(config, &[2, 0, 2]);
    assert_eq!(new["layer_types"], json!(["c", "a", "c"]));
    assert_eq!(new["mlp_only_layers"], json!([0, 2]));
    assert_eq!(new["num_hidden_layers"], 3);
}

/// Family, extra fields, kept layers (from 0), what to find afterwards.
#[test]
fn rules_of_classes_become_lists() {
    let (full, slide, linear) = ("full_attention", "sliding_attention", "linear_attention");
    let cases = [
        ("gpt_oss", json!({}), vec![1, 3], json!({"layer_types": [full, full]})),
        ("gemma3_text", json!({}), vec![0, 5, 11], json!({"layer_types": [slide, full, full]})),
        (
            "gemma3_text",
            json!({"_sliding_window_pattern": 2}),
            vec![0, 2],
            json!({"layer_types": [slide, slide], "_sliding_window_pattern": 3}),
        ),
        (
            "cohere2",
            json!({"sliding_window_pattern": 4}),
            vec![0, 3],
            json!({"layer_types": [slide, full], "sliding_window_pattern": 2}),
        ),
        (
            "exaone4",
            json!({"sliding_window_pattern": "LLLG", "sliding_window": 4}),
            vec![0, 3, 8, 11],
            json!({"layer_types": [slide, full, slide, full], "sliding_window_pattern": 2}),
        ),
        (
            "exaone4",
            json!({"sliding_window": null}),
            vec![0, 1],
            json!({"layer_types": [full, full]}),
        ),
        ("olmo3", json!({}), vec![0, 3], json!({"layer_types": [slide, full]})),
        (
            "afmoe",
            json!({}),
            vec![0, 3],
            json!({"layer_types": [slide, full], "num_dense_layers": 1}),
        ),
        ("qwen3_next", json!({}), vec![0, 3], json!({"layer_types": [linear, full]})),
        ("smollm3", json!({}), vec![0, 3, 11], json!({"no_rope_layers": [1, 0, 0]})),
        (
            "llama4_text",
            json!({"interleave_moe_layer_step": 2, "no_rope_layers": []}),
            vec![0, 3],
            json!({"no_rope_layers": [1, 0], "moe_layers": [1], "no_rope_layer_interval": 2}),
        ),
        (
            "qwen3",
            json!({"use_sliding_window": true, "sliding_window": 4, "max_window_layers": 2}),
            vec![1, 2, 5],
            json!({"layer_types": [full, slide, slide], "max_window_layers": 1}),
        ),
        (
            "flint",
            json!({}),
            vec![0, 3, 11],
            json!({"layer_types": [full, slide, full], "mlp_only_layers": [0]}),
        ),
        (
            "recurrent_gemma",
            json!({"block_types": ["r", "r", "a"]}),
            vec![2, 3],
            json!({"block_types": ["a", "r"]}),
        ),
    ];
    for (family, fields, kept, expected) in cases {
        let mut config = object(json!({"model_type": family, "num_hidden_layers": 12}));
        config.extend(object(fields));
        let new = keep(&config, &kept).unwrap().config;
        for (key, value) in object(expected) {
            assert_eq!(new.get(&key), Some(&value), "{family}: {key}");
        }
    }
}

#[test]
fn experts_and_dense_layers() {
    let cases = [
        (
            json!({"decoder_sparse_step": 2, "mlp_only_layers": [3]}),
            json!({"decoder_sparse_step": 1, "mlp_only_layers": [0, 1]}),
        ),
        (
            json!({"decoder_sparse_step": 1, "mlp_only_layers": [7]}),
            json!({"mlp_only_layers": [2]}),
        ),
        (json!({"first_k_dense_replace": 1}), json!({"first_k_dense_replace": 1})),
        (json!({"first_k_dense_replace": 5}), json!({"first_k_dense_replace": 2})),
        (json!({"num_dense_layers": 0}), json!({"num_dense_layers": 0})),
        (json!({"model_type": "deepseek_v3"}), json!({"first_k_dense_replace": 1})),
        (json!({"model_type": "hy_v3"}), json!({"mlp_layer_types": ["dense", "sparse", "sparse"]})),
        (json!({"moe_layer_freq": [0, 1, 1, 1, 1, 1, 1, 1]}), json!({"moe_layer_freq": [0, 1, 1]})),
        (
            json!({"moe_layer_interval": 4, "moe_layer_start_index": 1, "moe_layer_end_index": -1}),
            json!({"moe_layer_interval": 1, "moe_layer_start_index": 1, "moe_layer_end_index": 2}),
        ),
    ];
    for (fields, expected) in cases {
        let mut config = object(json!({"num_hidden_layers": 8}));
        config.extend(object(fields.clone()));
        let new = keep(&config, &[0, 3, 7]).unwrap().config;
        for (key, value) in object(expected) {
            assert_eq!(new.get(&key), Some(&value), "{fields}: {key}");
        }
    }
}

#[test]
fn periods_that_still_fit_are_kept_or_refitted() {
    let jamba = json!({"model_type": "jamba", "num_hidden_layers": 16, "attn_layer_period": 8, "attn_layer_offset": 4,
                       "expert_layer_period": 2, "expert_layer_offset": 1});
    let new = cut(jamba, &[4, 5, 12, 13]);
    assert_eq!((&new["attn_layer_period"], &new["attn_layer_offset"]), (&json!(2), &json!(0)));
    assert_eq!((&new["expert_layer_period"], &new["expert_layer_offset"]), (&json!(2), &json!(1)));
    // [no, yes, yes]: the offset must lie below the period, and nothing else is read.
    let refused = json!({"num_hidden_layers": 8, "attn_layer_period": 4, "attn_layer_offset": 3});
    assert!(refusal(refused, &[0, 3, 7]).contains("no period and offset"));
    let bare = json!({"num_hidden_layers": 8, "dense_attention_every_n_layers": 2});
    assert_eq!(cut(bare.clone(), &[0, 1, 2, 3])["dense_attention_every_n_layers"], 2);
    assert_eq!(cut(bare.clone(), &[0, 2, 3])["dense_attention_every_n_layers"], 3);
    assert!(refusal(bare, &[0, 1, 3]).contains("`dense_attention_every_n_layers` is 2"));
    let unknown = json!({"num_hidden_layers": 8, "sliding_window_pattern": 4});
    assert_eq!(cut(unknown.clone(), &[0, 3])["sliding_window_pattern"], 2);
    assert!(refusal(unknown, &[0, 3, 4, 5]).contains("sliding_window_pattern"));
}

#[test]
fn orders_that_no_prefix_expresses_are_refused() {
    let deepseek =
        json!({"model_type": "deepseek_v3", "num_hidden_layers": 4, "first_k_dense_replace": 1});
    assert_eq!(
        refusal(deepseek, &[3, 0]),
        "layers 4, 1 cannot be expressed: `first_k_dense_replace` is 1, and dense layers must come \
         before those with experts"
    );
    let listed = json!({"num_hidden_layers": 2, "first_k_dense_replace": 1, "mlp_layer_types": ["dense", "sparse"]});
    assert_eq!(cut(listed, &[1, 0])["mlp_layer_types"], json!(["sparse", "dense"]));
    let sources = json!({"num_hidden_layers": 3, "kv_source_layers": [0, 1, 1]});
    assert!(refusal(sources, &[0, 2]).contains("layer 2 lends"));
}

#[test]
fn layers_that_borrow_keys_and_values_need_their_donors() {
    let config = json!({"num_hidden_layers": 6, "num_kv_shared_layers": 2,
                        "layer_types": ["s", "f", "s", "f", "s", "f"]});
    assert_eq!(cut(config.clone(), &[0, 3, 5])["num_kv_shared_layers"], 1);
    assert_eq!(cut(config.clone(), &[0, 1])["num_kv_shared_layers"], 0);
    assert!(refusal(config.clone(), &[0, 1, 5]).contains("loses its place"));
    assert!(refusal(config.clone(), &[3, 1, 5]).contains("loses its place"));
    assert!(refusal(config, &[5, 3]).contains("must come last"));
}

#[test]
fn mathematics_of_depth() {
    let gpt2 = json!({"model_type": "gpt2", "n_layer": 4, "scale_attn_by_inverse_layer_idx": true});
    assert!(refusal(gpt2.clone(), &[0, 2]).contains("divides attention"));
    assert_eq!(cut(gpt2, &[0, 1])["n_layer"], 2);
    let japanese = json!({"model_type": "gpt_neox_japanese", "num_hidden_layers": 4});
    assert!(refusal(japanese.clone(), &[0, 2]).contains("last layer"));
    assert_eq!(cut(japanese, &[0, 3])["num_hidden_layers"], 2);
    let minicpm = json!({"model_type": "minicpm3", "num_hidden_layers": 8, "scale_depth": 1.5});
    assert_eq!(cut(minicpm, &[0, 7])["scale_depth"], json!(0.75));
    let gemma = json!({"model_type": "gemma3n_text", "num_hidden_layers": 4});
    assert!(refusal(gemma, &[0]).contains("per_layer_model_projection"));
    let minimax = json!({"model_type": "minimax", "num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"]});
    assert!(refusal(minimax.clone(), &[0]).contains("decay"));
    assert_eq!(cut(minimax, &[1])["num_hidden_layers"], 1);
}

#[test]
fn multi_token_layers_go() {
    let config = json!({"model_type": "deepseek_v3", "num_hidden_layers": 3, "num_nextn_predict_layers": 1, "num_mtp_layers": null});
    let kept = keep(&object(config), &[0, 2]).unwrap();
    assert_eq!(kept.config["num_nextn_predict_layers"], 0);
    assert_eq!(kept.config["num_mtp_layers"], Value::Null);
    assert!(!kept.multi_token);
}

#[test]
fn module_names_of_quantisation_are_renumbered() {
    let config = object(json!({"num_hidden_layers": 3, "quantization_config": {
        "quant_method": "fp8",
        "modules_to_not_convert": ["lm_head", "model.layers.0.mlp", "model.layers.1.mlp", "model.layers.2"],
        "extra": {"model.layers.2.self_attn": {"bits": 8}, "model.layers.1.self_attn": {}},
        "sizes": [128, 128]}}));
    let names = (0..3).map(|i| format!("model.layers.{i}.mlp.weight")).collect::<Vec<_>>();
    let anatomy = Anatomy::resolve(Some(&config), names.iter().map(String::as_str)).unwrap();
    let new = keep_layers(&config, &anatomy, &[0, 2]).unwrap().config;
    let expected = json!({
        "quant_method": "fp8",
        "modules_to_not_convert": ["lm_head", "model.layers.0.mlp", "model.layers.1"],
        "extra": {"model.layers.1.self_attn": {"bits": 8}},
        "sizes": [128, 128]});
    assert_eq!(new["quantization_config"], expected);
    assert_eq!(quantization(&new).as_deref(), Some("fp8"));
}

#[test]
fn hostile_values_are_named_and_never_panic() {
    let keys = [
        "num_hidden_layers",
        "layer_types",
        "mlp_only_layers",
        "no_rope_layers",
        "per_layer_config",
        "max_window_layers",
        "first_k_dense_replace",
        "num_dense_layers",
        "num_kv_shared_layers",
        "decoder_sparse_step",
        "sliding_window_pattern",
        "interleave_moe_layer_step",
        "moe_layer_freq",
        "attention_types",
        "scale_depth",
        "hidden_size_per_layer_input",
        "attn_layer_period",
        "moe_layer_interval",
        "kv_source_layers",
        "intermediate_size",
        "hybrid_override_pattern",
        "moe_layers_enum",
        "num_nextn_predict_layers",
        "full_attention_interval",
        "use_sliding_window",
        "linear_attn_config",
        "block_types",
        "text_config",
        "quantization_config",
        "ple_layer_ids",
        "vocab_size",
        "model_type",
    ];
    let values = [
        json!("two"),
        json!(-1),
        json!(0),
        json!(1.5),
        json!(true),
        json!([]),
        json!({}),
        json!(["a"]),
        json!([-1, -2, -3]),
        json!([[["x"], u64::MAX]]),
        json!([[[], u64::MAX]]),
        json!(u64::MAX),
        json!({"5": 1, "x": 2}),
        json!({"kda_layers": "x"}),
        json!(vec![json!(0); 9]),
        json!("é|"),
        serde_json::from_str("1e999").unwrap_or(Value::Null),
    ];
    let families =
        ["qwen2", "gemma3_text", "exaone4", "llama4_text", "jamba", "recurrent_gemma", "minicpm3"];
    for family in families {
        for key in keys {
            for value in &values {
                let sound = object(json!({"model_type": family, "num_hidden_layers": 4,
                    "use_sliding_window": true, "sliding_window": 4}));
                let mut config = sound.clone();
                config.insert(key.to_owned(), value.clone());
                for kept in [&[0, 3][..], &[3, 1, 0], &[2]] {
                    // Some orders cannot be expressed, whatever the field.
                    if keep(&sound, kept).is_err() {
                        continue;
                    }
                    if let Err(problem) = keep(&config, kept) {
                        let named = problem.to_string().contains(key);
                        let counted = matches!(problem, ConfigProblem::NoSuchLayer { .. });
                        assert!(named || counted, "{key} {value}: {problem}");
                    }
                }
                set_vocab_size(&mut config, 7);
                set_dtype(&mut config, &Dtype::BF16);
                let _ = (is_tied(&config), quantization(&config));
            }
        }
    }
}

#[test]
fn hostile_counts_cost_nothing() {
    let config = json!({"num_hidden_layers": u64::MAX, "attention_types": [[[], u64::MAX], [["g", "l"], u64::MAX]]});
    assert_eq!(cut(config, &[0, 3])["attention_types"], json!([[["g", "l"], 1]]));
    for key in [
        "num_kv_shared_layers",
        "first_k_dense_replace",
        "moe_layer_end_index",
        "num_nextn_predict_layers",
    ] {
        let _ = keep(&object(json!({"num_hidden_layers": u64::MAX, key: u64::MAX})), &[0, 3]);
    }
}

#[test]
fn problems_read_well() {
    let config = json!({"num_hidden_layers": 4, "layer_types": "full"});
    assert_eq!(
        refusal(config, &[0]),
        "`layer_types` is \"full\", expected a list with one entry a layer"
    );
    let config = json!({"text_config": {"num_hidden_layers": 4, "layer_types": ["a", "b"]}});
    assert_eq!(refusal(config, &[0]), "`text_config.layer_types` has 2 entries for 4 layers");
    assert_eq!(
        refusal(json!({"num_hidden_layers": 2}), &[2]),
        "layer 3 does not exist, the model has 2"
    );
    assert_eq!(refusal(json!({"num_hidden_layers": 2}), &[]), "no layer would be left");
    let t5 = json!({"model_type": "t5", "num_layers": 2, "is_encoder_decoder": true});
    assert_eq!(refusal(t5, &[1]), "`t5` is an encoder-decoder model, only decoders are supported");
    for problem in [
        ConfigProblem::NoLayersKept,
        ConfigProblem::NoSuchLayer { layer: 3, layers: 2 },
        ConfigProblem::TooShort { key: "k".into(), entries: 1, layers: 2 },
        ConfigProblem::WrongType { key: "k".into(), expected: "a list", found: "1".into() },
        ConfigProblem::DependsOnDepth { family: "rwkv".into(), reason: "of this".into() },
        ConfigProblem::NotExpressible {
            key: "k".into(),
            value: "1".into(),
            layers: vec![1],
            reason: "x".into(),
        },
    ] {
        assert!(problem.hint().is_some_and(|hint| !hint.ends_with('.')), "{problem}");
        assert!(!problem.to_string().ends_with('.'));
    }
}

#[test]
fn single_values() {
    let mut config = object(
        json!({"model_type": "gemma3", "torch_dtype": "float32", "vocab_size": 5,
        "tie_word_embeddings": true,
        "text_config": {"vocab_size": 6, "dtype": "float32"}, "vision_config": {"vocab_size": 1, "dtype": "float32"}}),
    );
    assert_eq!((vocab_size(&config), is_tied(&config)), (Some(6), Some(true)));
    set_vocab_size(&mut config, 8);
    set_dtype(&mut config, &Dtype::BF16);
    let expected = json!({"model_type": "gemma3", "torch_dtype": "bfloat16", "vocab_size": 8,
        "tie_word_embeddings": true,
        "text_config": {"vocab_size": 8, "dtype": "bfloat16"}, "vision_config": {"vocab_size": 1, "dtype": "float32"}});
    assert_eq!(Value::Object(config), expected);
    let mut empty = Map::new();
    assert_eq!((vocab_size(&empty), is_tied(&empty), quantization(&empty)), (None, None, None));
    set_vocab_size(&mut empty, 8);
    assert_eq!(empty["vocab_size"], 8);
}

#[test]
fn lists_nobody_knows_are_pointed_out() {
    let config = object(json!({"num_hidden_layers": 3, "mystery": [1, 2, 3]}));
    let notes = keep(&config, &[0]).unwrap().notes;
    assert!(notes.iter().any(|note| note.starts_with("`mystery`")), "{notes:?}");
}
