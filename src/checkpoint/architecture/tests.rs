use serde_json::{Map, Value, json};

use super::*;

fn config(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        other => panic!("not an object: {other}"),
    }
}

fn resolve(config_value: Value, names: &[&str]) -> Anatomy {
    let config_value = config(config_value);
    Anatomy::resolve(Some(&config_value), names.iter().copied()).unwrap()
}

fn bare(names: &[&str]) -> Anatomy {
    Anatomy::resolve(None, names.iter().copied()).unwrap()
}

/// Family, layer prefix, embedding, final norm, head.
const NAMES: &[[&str; 5]] = &[
    ["llama", "model.layers.", "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"],
    [
        "phi",
        "model.layers.",
        "model.embed_tokens.weight",
        "model.final_layernorm.bias",
        "lm_head.bias",
    ],
    ["gpt2", "transformer.h.", "transformer.wte.weight", "transformer.ln_f.bias", "lm_head.weight"],
    ["gpt2", "h.", "wte.weight", "ln_f.weight", "lm_head.weight"],
    ["gptj", "transformer.h.", "transformer.wte.weight", "transformer.ln_f.bias", "lm_head.bias"],
    [
        "exaone",
        "transformer.h.",
        "transformer.wte.weight",
        "transformer.ln_f.weight",
        "lm_head.weight",
    ],
    [
        "gpt_neox",
        "gpt_neox.layers.",
        "gpt_neox.embed_in.weight",
        "gpt_neox.final_layer_norm.bias",
        "embed_out.weight",
    ],
    [
        "falcon",
        "transformer.h.",
        "transformer.word_embeddings.weight",
        "transformer.ln_f.weight",
        "lm_head.weight",
    ],
    ["bloom", "h.", "word_embeddings.weight", "ln_f.weight", "lm_head.weight"],
    [
        "mpt",
        "transformer.blocks.",
        "transformer.wte.weight",
        "transformer.norm_f.weight",
        "lm_head.weight",
    ],
    [
        "opt",
        "model.decoder.layers.",
        "model.decoder.embed_tokens.weight",
        "model.decoder.final_layer_norm.bias",
        "lm_head.weight",
    ],
    [
        "internlm2",
        "model.layers.",
        "model.tok_embeddings.weight",
        "model.norm.weight",
        "output.weight",
    ],
    [
        "chatglm",
        "transformer.encoder.layers.",
        "transformer.embedding.word_embeddings.weight",
        "transformer.encoder.final_layernorm.weight",
        "transformer.output_layer.weight",
    ],
    [
        "nemotron_h",
        "backbone.layers.",
        "backbone.embeddings.weight",
        "backbone.norm_f.weight",
        "lm_head.weight",
    ],
    [
        "gemma3_text",
        "model.language_model.layers.",
        "model.language_model.embed_tokens.weight",
        "model.language_model.norm.weight",
        "lm_head.weight",
    ],
    [
        "llama",
        "language_model.model.layers.",
        "language_model.model.embed_tokens.weight",
        "language_model.model.norm.weight",
        "language_model.lm_head.weight",
    ],
    [
        "llama",
        "model.text_model.layers.",
        "model.text_model.embed_tokens.weight",
        "model.text_model.norm.weight",
        "lm_head.weight",
    ],
    [
        "qwen2_5_omni_text",
        "thinker.model.layers.",
        "thinker.model.embed_tokens.weight",
        "thinker.model.norm.weight",
        "thinker.lm_head.weight",
    ],
    ["llama", "layers.", "embed_tokens.weight", "norm.weight", "lm_head.weight"],
];

#[test]
fn families_and_their_names() {
    for [family, prefix, embedding, norm, head] in NAMES.iter().copied() {
        let layers = [format!("{prefix}0.a.weight"), format!("{prefix}1.a.weight")];
        let names =
            [&layers[0], &layers[1], "vision_tower.encoder.layers.9.a", embedding, norm, head];
        // With the family, and from the names alone.
        for anatomy in [resolve(json!({"model_type": family}), &names), bare(&names)] {
            assert_eq!(anatomy.layer_prefix, prefix, "{family}");
            assert_eq!(anatomy.layers, 2, "{family}");
            assert_eq!(anatomy.role(embedding), Role::Embedding, "{family} {embedding}");
            assert_eq!(anatomy.role(norm), Role::FinalNorm, "{family} {norm}");
            assert_eq!(anatomy.role(head), Role::Head, "{family} {head}");
            assert_eq!(anatomy.role(&layers[1]), Role::Layer(1), "{family}");
            assert_eq!(anatomy.role("vision_tower.encoder.layers.9.a"), Role::Other);
        }
    }
}

#[test]
fn positions_are_apart_and_lookalikes_are_other() {
    let anatomy = bare(&["h.0.attn.c_attn.weight", "wte.weight", "wpe.weight"]);
    assert_eq!(anatomy.role("wpe.weight"), Role::PositionEmbedding);
    assert!(
        !anatomy.role("wpe.weight").is_vocabulary() && anatomy.role("wte.weight").is_vocabulary()
    );
    let llama = bare(&["model.layers.0.a.weight"]);
    for name in [
        "model.embed_tokens_per_layer.weight",
        "model.normal.weight",
        "model.rotary_emb.inv_freq",
        "model.layers.00.a",
        "model.layers.x.a",
        "score.weight",
    ] {
        assert_eq!(llama.role(name), Role::Other, "{name}");
    }
}

#[test]
fn suffixes_and_renumbering() {
    let anatomy = bare(&["model.layers.0.mlp.experts.7.w1.weight"]);
    let name = "model.layers.12.mlp.experts.7.w1.weight";
    assert_eq!(anatomy.layer_suffix(name), Some((12, "mlp.experts.7.w1.weight")));
    assert_eq!(anatomy.renumbered(name, 3), "model.layers.3.mlp.experts.7.w1.weight");
    assert_eq!(anatomy.renumbered("lm_head.weight", 3), "lm_head.weight");
    assert_eq!(anatomy.layer_suffix("model.layers.99999999999999999999.a"), None);
}

#[test]
fn config_and_tensors_may_disagree() {
    let names = ["model.layers.0.a", "model.layers.1.a"];
    let anatomy = resolve(json!({"model_type": "llama", "num_hidden_layers": 3}), &names);
    assert_eq!((anatomy.config_layers(), anatomy.layers), (Some(3), 2));
    assert_eq!(anatomy.count_key.as_deref(), Some("num_hidden_layers"));
    let nested = resolve(
        json!({"model_type": "gemma3", "text_config": {"model_type": "gemma3_text", "num_hidden_layers": 2}}),
        &names,
    );
    assert_eq!(nested.count_key.as_deref(), Some("text_config.num_hidden_layers"));
    assert_eq!(nested.family, "gemma3_text");
    let gap = bare(&["model.layers.0.a", "model.layers.400000.a", "model.layers.4000000000.a"]);
    assert_eq!((gap.layers, gap.missing_layers()), (400_001, 399_999));
    assert_eq!(
        gap.present_layers().collect::<Vec<_>>(),
        [0, 400_000],
        "no model has 4 billion layers"
    );
}

#[test]
fn no_layers_is_an_answer() {
    let anatomy = bare(&["model.embed_tokens.weight", "lm_head.weight"]);
    assert_eq!((anatomy.layers, anatomy.layer_prefix.as_str()), (0, ""));
    assert_eq!(anatomy.role("model.embed_tokens.weight"), Role::Embedding);
    assert_eq!(anatomy.role("lm_head.weight"), Role::Head);
    assert_eq!(anatomy.layer_suffix("0.a"), None);
    assert_eq!(bare(&[]).layers, 0);
}

#[test]
fn multi_token_layers_are_not_decoder_layers() {
    let names = [
        "model.layers.0.a",
        "model.layers.1.a",
        "model.layers.2.a",
        "model.layers.2.eh_proj.weight",
    ];
    let deepseek =
        json!({"model_type": "deepseek_v3", "num_hidden_layers": 2, "num_nextn_predict_layers": 1});
    for anatomy in [resolve(deepseek, &names), bare(&names)] {
        assert_eq!(anatomy.layers, 2);
        assert_eq!(anatomy.role("model.layers.2.a"), Role::MultiToken);
        assert_eq!(anatomy.role("model.layers.1.a"), Role::Layer(1));
        assert!(anatomy.has_multi_token());
    }
    let apart = bare(&["model.layers.0.a", "mtp.layers.0.mlp.weight", "mtp.fc.weight"]);
    assert_eq!(apart.layer_prefix, "model.layers.");
    assert_eq!(apart.role("mtp.layers.0.mlp.weight"), Role::MultiToken);
    assert!(apart.has_multi_token());
    // One layer too many without the marks of multi-token prediction is a disagreement, no more.
    let plain = resolve(json!({"model_type": "llama", "num_hidden_layers": 1}), &names[..2]);
    assert_eq!((plain.layers, plain.has_multi_token()), (2, false));
}

#[test]
fn unknown_families_are_inferred() {
    let names = [
        "audio_tower.layers.0.a",
        "audio_tower.layers.1.a",
        "audio_tower.layers.2.a",
        "brain.cortex.block.0.a",
        "brain.cortex.block.1.a",
        "brain.cortex.wte.weight",
        "brain.lm_head.weight",
        "brain.adapters.0.a",
        "brain.adapters.1.a",
        "brain.adapters.2.a",
    ];
    let anatomy = resolve(json!({"model_type": "brainiac"}), &names);
    assert_eq!((anatomy.layer_prefix.as_str(), anatomy.layers), ("brain.cortex.block.", 2));
    assert_eq!(anatomy.role("brain.cortex.wte.weight"), Role::Embedding);
    assert_eq!(anatomy.role("brain.lm_head.weight"), Role::Head);
}

#[test]
fn counts_of_the_wrong_type_are_named() {
    for value in [json!("6"), json!(-1), json!(1.5), json!([6])] {
        let config = config(json!({"model_type": "llama", "num_hidden_layers": value}));
        let problem = Anatomy::resolve(Some(&config), std::iter::empty()).unwrap_err();
        assert!(problem.to_string().starts_with("`num_hidden_layers` is "), "{problem}");
    }
}
