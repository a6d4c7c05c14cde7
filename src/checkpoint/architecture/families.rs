//! The table of families: how each names its tensors and counts its layers.
//!
//! To teach a family, add a row to [`FAMILIES`], and a [`Scheme`] if its names are new.

/// How one lineage of models names its tensors. `layers`, `embedding`, `position` and `norm` follow
/// `root`; the root may be missing (files saved from the base model) and may stand behind one of
/// [`WRAPPERS`]. `head` stands beside the root.
pub(super) struct Scheme {
    pub(super) root: &'static str,
    pub(super) layers: &'static str,
    /// The config key that counts the layers, to write where a config leaves it out.
    pub(super) count: &'static str,
    pub(super) embedding: &'static [&'static str],
    pub(super) position: &'static [&'static str],
    pub(super) norm: &'static [&'static str],
    pub(super) head: &'static [&'static str],
}

/// Llama and nearly everything since.
pub(super) const LLAMA: Scheme = Scheme {
    root: "model.",
    layers: "layers.",
    count: "num_hidden_layers",
    embedding: &["embed_tokens"],
    position: &[],
    norm: &["norm", "final_layernorm"],
    head: &["lm_head"],
};
/// GPT-2 and its descendants.
const GPT2: Scheme = Scheme {
    root: "transformer.",
    layers: "h.",
    count: "n_layer",
    embedding: &["wte"],
    position: &["wpe"],
    norm: &["ln_f"],
    head: &["lm_head"],
};
/// GPT-Neo and Exaone 3.
const GPT_NEO: Scheme = Scheme { count: "num_layers", ..GPT2 };
/// GPT-NeoX and Pythia.
const NEOX: Scheme = Scheme {
    root: "gpt_neox.",
    layers: "layers.",
    count: "num_hidden_layers",
    embedding: &["embed_in"],
    position: &[],
    norm: &["final_layer_norm"],
    head: &["embed_out"],
};
/// Falcon.
const FALCON: Scheme = Scheme {
    root: "transformer.",
    layers: "h.",
    count: "num_hidden_layers",
    embedding: &["word_embeddings"],
    position: &[],
    norm: &["ln_f"],
    head: &["lm_head"],
};
/// BLOOM.
const BLOOM: Scheme = Scheme { count: "n_layer", ..FALCON };
/// MPT and DBRX.
const MPT: Scheme = Scheme {
    root: "transformer.",
    layers: "blocks.",
    count: "n_layers",
    embedding: &["wte"],
    position: &["wpe"],
    norm: &["norm_f"],
    head: &["lm_head"],
};
/// OPT.
const OPT: Scheme = Scheme {
    root: "model.decoder.",
    layers: "layers.",
    count: "num_hidden_layers",
    embedding: &["embed_tokens"],
    position: &["embed_positions"],
    norm: &["final_layer_norm"],
    head: &["lm_head"],
};
/// `InternLM2`.
const INTERNLM2: Scheme = Scheme {
    root: "model.",
    layers: "layers.",
    count: "num_hidden_layers",
    embedding: &["tok_embeddings"],
    position: &[],
    norm: &["norm"],
    head: &["output"],
};
/// `ChatGLM` 2 to 4 in their first layout.
const CHATGLM: Scheme = Scheme {
    root: "transformer.",
    layers: "encoder.layers.",
    count: "num_layers",
    embedding: &["embedding.word_embeddings"],
    position: &[],
    norm: &["encoder.final_layernorm"],
    head: &["output_layer", "transformer.output_layer"],
};
/// Mamba, Nemotron-H and other state-space hybrids.
const MAMBA: Scheme = Scheme {
    root: "backbone.",
    layers: "layers.",
    count: "num_hidden_layers",
    embedding: &["embeddings", "embedding"],
    position: &[],
    norm: &["norm_f"],
    head: &["lm_head"],
};

/// Every scheme, in the order in which a checkpoint without a known family tries them.
pub(super) const SCHEMES: &[&Scheme] =
    &[&LLAMA, &GPT2, &NEOX, &FALCON, &MPT, &OPT, &INTERNLM2, &CHATGLM, &MAMBA];

/// One row a family: the `model_type` of its text model, and its scheme.
pub(super) const FAMILIES: &[(&str, &Scheme)] = &[
    ("llama", &LLAMA),
    ("mistral", &LLAMA),
    ("mixtral", &LLAMA),
    ("ministral", &LLAMA),
    ("qwen2", &LLAMA),
    ("qwen2_moe", &LLAMA),
    ("qwen2_vl", &LLAMA),
    ("qwen2_vl_text", &LLAMA),
    ("qwen2_5_vl", &LLAMA),
    ("qwen2_5_vl_text", &LLAMA),
    ("qwen2_5_omni_text", &LLAMA),
    ("qwen3", &LLAMA),
    ("qwen3_moe", &LLAMA),
    ("qwen3_next", &LLAMA),
    ("qwen3_vl_text", &LLAMA),
    ("qwen3_vl_moe_text", &LLAMA),
    ("qwen3_5_text", &LLAMA),
    ("qwen3_5_moe_text", &LLAMA),
    ("gemma", &LLAMA),
    ("gemma2", &LLAMA),
    ("gemma3", &LLAMA),
    ("gemma3_text", &LLAMA),
    ("gemma3n_text", &LLAMA),
    ("gemma4_text", &LLAMA),
    ("vaultgemma", &LLAMA),
    ("phi", &LLAMA),
    ("phi3", &LLAMA),
    ("phimoe", &LLAMA),
    ("cohere", &LLAMA),
    ("cohere2", &LLAMA),
    ("cohere2_moe", &LLAMA),
    ("olmo", &LLAMA),
    ("olmo2", &LLAMA),
    ("olmo3", &LLAMA),
    ("olmoe", &LLAMA),
    ("stablelm", &LLAMA),
    ("starcoder2", &LLAMA),
    ("smollm3", &LLAMA),
    ("deepseek_v2", &LLAMA),
    ("deepseek_v3", &LLAMA),
    ("deepseek_v32", &LLAMA),
    ("kimi_k2", &LLAMA),
    ("kimi_linear", &LLAMA),
    ("gpt_oss", &LLAMA),
    ("glm", &LLAMA),
    ("glm4", &LLAMA),
    ("glm4_moe", &LLAMA),
    ("glm4_moe_lite", &LLAMA),
    ("glm4v_text", &LLAMA),
    ("glm4v_moe_text", &LLAMA),
    ("granite", &LLAMA),
    ("granitemoe", &LLAMA),
    ("granitemoehybrid", &LLAMA),
    ("exaone4", &LLAMA),
    ("exaone_moe", &LLAMA),
    ("llama4_text", &LLAMA),
    ("mllama_text_model", &LLAMA),
    ("minicpm", &LLAMA),
    ("minicpm3", &LLAMA),
    ("minimax", &LLAMA),
    ("seed_oss", &LLAMA),
    ("ernie4_5", &LLAMA),
    ("ernie4_5_moe", &LLAMA),
    ("afmoe", &LLAMA),
    ("dots1", &LLAMA),
    ("hunyuan_v1_dense", &LLAMA),
    ("hunyuan_v1_moe", &LLAMA),
    ("lfm2", &LLAMA),
    ("lfm2_moe", &LLAMA),
    ("jamba", &LLAMA),
    ("bamba", &LLAMA),
    ("recurrent_gemma", &LLAMA),
    ("gpt2", &GPT2),
    ("gptj", &GPT2),
    ("gpt_bigcode", &GPT2),
    ("gpt_neo", &GPT_NEO),
    ("exaone", &GPT_NEO),
    ("gpt_neox", &NEOX),
    ("gpt_neox_japanese", &NEOX),
    ("falcon", &FALCON),
    ("RefinedWeb", &FALCON),
    ("RefinedWebModel", &FALCON),
    ("bloom", &BLOOM),
    ("mpt", &MPT),
    ("dbrx", &MPT),
    ("opt", &OPT),
    ("internlm2", &INTERNLM2),
    ("chatglm", &CHATGLM),
    ("mamba", &MAMBA),
    ("mamba2", &MAMBA),
    ("nemotron_h", &MAMBA),
];

/// What multimodal and other compound models put before the text model's names.
pub(super) const WRAPPERS: &[&str] = &[
    "",
    "model.language_model.",
    "language_model.",
    "model.text_model.",
    "text_model.",
    "thinker.",
    "model.llm.",
    "llm.",
    "model.",
];

/// Components that mark a group of layers as something other than the decoder.
pub(super) const TOWERS: &[&str] = &[
    "vision",
    "visual",
    "audio",
    "vit",
    "image",
    "speech",
    "encoder",
    "projector",
    "talker",
    "token2wav",
    "code2wav",
    "resampler",
    "connector",
    "experts",
    "mtp",
];

/// Last components of a layer prefix that decoders use.
pub(super) const LAYER_WORDS: &[&str] = &["layers", "h", "blocks", "block", "layer"];

/// Names that mark multi-token-prediction layers kept at the end of the decoder's numbering.
pub(super) const MULTI_TOKEN_SUFFIXES: &[&str] =
    &["eh_proj.", "enorm.", "hnorm.", "shared_head.", "embed_tokens."];

/// Components that hold multi-token-prediction layers of their own.
pub(super) const MULTI_TOKEN_GROUPS: &[&str] = &["mtp", "mtp_layers", "mtp_block"];

/// The config keys that count multi-token-prediction layers.
pub(in crate::checkpoint) const MULTI_TOKEN_KEYS: &[&str] =
    &["num_nextn_predict_layers", "num_mtp_layers", "mtp_num_hidden_layers"];

/// The config keys that count decoder layers.
pub(in crate::checkpoint) const COUNT_KEYS: &[&str] =
    &["num_hidden_layers", "n_layer", "num_layers", "n_layers", "num_transformer_layers"];

/// Those of models that have an encoder too, whose layers the others count.
pub(super) const DECODER_COUNT_KEYS: &[&str] = &["num_decoder_layers", "decoder_layers"];
