"""Checks cut configs against transformers: does the small model compute what the full one did?

For each family a tiny random model is built, `keep_layers` cuts its config, a model is built from the
new config with the kept layers' weights, and its logits are compared with those of the full model whose
other layers are skipped. Each family is tried as transformers writes its config (lists included) and as
older files read (rules hidden in the class). Not part of CI: needs torch and transformers (5.x, or 4.x
for what older readers make of the result).

    cargo build --example keep_layers
    python tests/peers/check_configs.py --bridge target/debug/examples/keep_layers
"""

import argparse
import json
import re
import subprocess
import sys
import warnings

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

TINY = dict(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_attention_heads=4, num_key_value_heads=2,
    head_dim=8, max_position_embeddings=128, bos_token_id=0, eos_token_id=1, pad_token_id=None,
)
WINDOW = dict(TINY, sliding_window=4)
MOE = dict(
    TINY, moe_intermediate_size=24, num_experts=4, num_experts_per_tok=2, n_routed_experts=4,
    shared_expert_intermediate_size=24, num_local_experts=4, n_shared_experts=1, n_group=1, topk_group=1,
)
MLA = dict(MOE, q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8)
LINEAR = dict(linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=8, linear_value_head_dim=8)

# Name of the case, model_type, layers, settings.
CASES = [
    ("llama", "llama", 6, TINY),
    ("gemma", "gemma", 4, TINY),
    ("gemma2", "gemma2", 7, WINDOW),
    ("vaultgemma", "vaultgemma", 5, WINDOW),
    ("gemma3", "gemma3_text", 13, WINDOW),
    ("gemma3 pattern 3", "gemma3_text", 8, dict(WINDOW, sliding_window_pattern=3)),
    ("gemma3n", "gemma3n_text", 6, dict(WINDOW, num_kv_shared_layers=0)),
    ("gemma4", "gemma4_text", 12, dict(WINDOW, hidden_size_per_layer_input=0, global_head_dim=8)),
    ("gemma4 sharing", "gemma4_text", 12, dict(WINDOW, hidden_size_per_layer_input=0, global_head_dim=8,
                                              num_kv_shared_layers=2, output_hidden_states=True)),
    ("cohere2", "cohere2", 9, WINDOW),
    ("cohere2 pattern 3", "cohere2", 8, dict(WINDOW, sliding_window_pattern=3)),
    ("cohere2 moe", "cohere2_moe", 9, dict(WINDOW, num_experts=4, num_experts_per_tok=2, first_k_dense_replace=2,
                                         prefix_dense_intermediate_size=48)),
    ("exaone4", "exaone4", 9, WINDOW),
    ("exaone moe", "exaone_moe", 6, dict(MOE, sliding_window=4)),
    ("olmo3", "olmo3", 9, WINDOW),
    ("ministral", "ministral", 4, WINDOW),
    ("gpt-oss", "gpt_oss", 6, dict(WINDOW, num_local_experts=4, num_experts_per_tok=2)),
    ("smollm3", "smollm3", 9, TINY),
    ("smollm3 window", "smollm3", 9, dict(WINDOW, use_sliding_window=True)),
    ("qwen2", "qwen2", 6, TINY),
    ("qwen2 window", "qwen2", 6, dict(WINDOW, use_sliding_window=True, max_window_layers=3)),
    ("qwen3 window", "qwen3", 6, dict(WINDOW, use_sliding_window=True, max_window_layers=2)),
    ("qwen2 moe", "qwen2_moe", 8, dict(MOE, decoder_sparse_step=2, mlp_only_layers=[1])),
    ("qwen3 moe", "qwen3_moe", 8, dict(MOE, decoder_sparse_step=1, mlp_only_layers=[0, 5])),
    ("qwen3 moe step", "qwen3_moe", 8, dict(MOE, decoder_sparse_step=3)),
    ("qwen3 next", "qwen3_next", 8, dict(MOE, **LINEAR)),
    ("qwen3.5", "qwen3_5_text", 8, dict(TINY, **LINEAR)),
    ("dots1", "dots1", 6, dict(MOE, sliding_window=4, max_window_layers=3, first_k_dense_replace=2)),
    ("deepseek v2", "deepseek_v2", 5, dict(MLA, num_key_value_heads=4, first_k_dense_replace=2,
                                        topk_method="greedy", routed_scaling_factor=1.0)),
    ("deepseek v3", "deepseek_v3", 6, dict(MLA, num_key_value_heads=4, first_k_dense_replace=3)),
    ("glm4 moe", "glm4_moe", 5, MOE),
    ("llama4", "llama4_text", 9, dict(TINY, intermediate_size_mlp=48, num_local_experts=4, attention_chunk_size=4,
                                     interleave_moe_layer_step=2)),
    ("afmoe", "afmoe", 8, dict(MOE, sliding_window=4, num_dense_layers=2)),
    ("lfm2", "lfm2", 6, dict(TINY, full_attn_idxs=[2, 5], block_auto_adjust_ff_dim=False)),
    ("lfm2 moe", "lfm2_moe", 6, dict(MOE, layer_types=["conv", "conv", "full_attention"] * 2)),
    ("ernie moe", "ernie4_5_moe", 6, dict(MOE, moe_num_experts=4, moe_k=2, moe_num_shared_experts=1,
                                       moe_layer_start_index=1, moe_layer_end_index=-1)),
    ("jamba", "jamba", 12, dict(TINY, num_experts=4, num_experts_per_tok=2, use_mamba_kernels=False,
                               attn_layer_period=4, attn_layer_offset=2, mamba_d_state=4, mamba_dt_rank=4)),
    ("recurrent gemma", "recurrent_gemma", 6, dict(TINY, attention_window_size=4, lru_width=32)),
    ("flint", "flint", 9, dict(MOE, sliding_window=4)),
    ("minicpm3", "minicpm3", 6, dict(MLA, num_key_value_heads=4, scale_depth=1.4)),
    ("minimax", "minimax", 4, dict(MOE, block_size=8)),
    ("gpt2", "gpt2", 6, dict(vocab_size=64, n_embd=32, n_head=4, n_positions=128)),
    ("gpt2 inverse", "gpt2", 6, dict(vocab_size=64, n_embd=32, n_head=4, scale_attn_by_inverse_layer_idx=True)),
    ("gpt-neo", "gpt_neo", 6, dict(vocab_size=64, hidden_size=32, num_heads=4, max_position_embeddings=128,
                                  window_size=4, attention_types=[[["global", "local"], 3]])),
    ("gpt-neox", "gpt_neox", 4, TINY),
    ("gpt-neox japanese", "gpt_neox_japanese", 4, dict(TINY, intermediate_multiple_size=2)),
    ("falcon", "falcon", 4, dict(vocab_size=64, hidden_size=32, num_attention_heads=4, bos_token_id=0, eos_token_id=1)),
    ("phi3", "phi3", 4, TINY),
    ("stablelm", "stablelm", 4, TINY),
    ("starcoder2", "starcoder2", 4, TINY),
    ("mixtral", "mixtral", 4, dict(TINY, num_local_experts=4, num_experts_per_tok=2)),
    ("granite", "granite", 4, dict(TINY, residual_multiplier=0.5)),
    ("olmo2", "olmo2", 4, TINY),
]

# Lists that older files lack and their class derives.
DERIVED = ["layer_types", "no_rope_layers", "moe_layers", "mlp_layer_types", "attention_layers",
           "layers_block_type", "_sliding_window_pattern"]


class Bridge:
    """`keep_layers` behind a pipe."""

    def __init__(self, command):
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def keep(self, config, keep, names):
        print(json.dumps(dict(config=config, keep=keep, names=names)), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())


def build(config):
    """A model from a config.json's content, as a reader of the file would build it."""
    config = AutoConfig.for_model(config["model_type"], **{k: v for k, v in config.items() if k != "model_type"})
    config._attn_implementation = "eager"
    return AutoModelForCausalLM.from_config(config).float().eval()


def randomise(model):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.25 if parameter.dim() > 1 else 0.05
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)


def stack(model):
    """The decoder's ModuleList and its name."""
    lists = [(n, m) for n, m in model.named_modules() if isinstance(m, torch.nn.ModuleList)]
    return next((n, m) for n, m in lists if n.split(".")[-1] in ("layers", "h") and len(m) > 1)


class Skipped(torch.nn.Module):
    """A layer's place with nothing in it; attributes that the model asks for are the layer's."""

    def __init__(self, layer):
        super().__init__()
        self.__dict__["layer"] = layer

    def __getattr__(self, name):
        return getattr(self.__dict__["layer"], name)

    def forward(self, *args, **kwargs):
        hidden = args[0] if args else kwargs["hidden_states"]
        return hidden if self.__dict__["plain"] else (hidden, None, None)


def returns_plain(model, ids):
    """Whether a layer returns a tensor instead of a tuple."""
    seen = []
    _, layers = stack(model)
    hook = layers[0].register_forward_hook(lambda _m, _a, output: seen.append(torch.is_tensor(output)))
    run(model, ids)
    hook.remove()
    return seen[0]


def run(model, ids):
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


def expected_logits(model, keep, ids):
    plain = returns_plain(model, ids)
    _, layers = stack(model)
    originals = list(layers)
    for index, layer in enumerate(originals):
        if index not in keep:
            layers[index] = Skipped(layer)
            layers[index].__dict__["plain"] = plain
    try:
        return run(model, ids)
    finally:
        for index, layer in enumerate(originals):
            layers[index] = layer


def small_weights(model, keep):
    name, _ = stack(model)
    pattern = re.compile(rf"^({re.escape(name)}\.)(\d+)(\..*)$")
    weights = {}
    for key, value in model.state_dict().items():
        match = pattern.match(key)
        if match is None:
            weights[key] = value
        elif int(match[2]) in keep:
            weights[f"{match[1]}{keep.index(int(match[2]))}{match[3]}"] = value
    return weights


def compare(model, config, keep, ids):
    """Largest difference of the logits, or why there is none."""
    try:
        small = build(config)
        small.load_state_dict(small_weights(model, keep))
        if len(stack_or_single(small)) != len(keep):
            return "wrong number of layers"
        difference = (run(small, ids) - expected_logits(model, keep, ids)).abs().max().item()
        return difference
    except Exception as error:  # noqa: BLE001 - every refusal of a reader counts
        return f"{type(error).__name__}: {str(error).splitlines()[0][:110]}"


def stack_or_single(model):
    lists = [m for n, m in model.named_modules() if isinstance(m, torch.nn.ModuleList) and n.split(".")[-1] in ("layers", "h")]
    return lists[0]


def forms(model_type, layers, settings):
    """The config as transformers writes it, and as older files read."""
    key = {"gpt2": "n_layer", "gpt_neo": "num_layers"}.get(model_type, "num_hidden_layers")
    bare = dict(settings, model_type=model_type)
    bare[key] = layers
    full = json.loads(build(bare).config.to_json_string(use_diff=False))
    yield "bare", bare
    yield "written", full
    yield "no lists", {k: v for k, v in full.items() if k not in DERIVED or k in settings}


def selections(layers):
    last = layers - 1
    chosen = [[0, last], [1, 2], [0, 1], [last], [1, 3], list(range(layers - 1)), list(range(1, layers))]
    chosen += [[i for i in range(layers) if i % 6 > 2]]
    chosen += [list(range(0, layers, 2)), list(range(1, layers, 2)), [0, 2, 3]]
    return [list(keep) for keep in dict.fromkeys(map(tuple, chosen)) if keep]


def main():
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bridge", default="cargo run --quiet --example keep_layers", help="the bridge's command")
    parser.add_argument("--only", help="only cases whose name contains this")
    parser.add_argument("-v", action="store_true", help="show every selection and the notes")
    options = parser.parse_args()
    bridge = Bridge(options.bridge.split())
    ids = torch.randint(2, 64, (1, 24), generator=torch.Generator().manual_seed(2))
    totals = dict(equal=0, refused=0, foretold=0, wrong=0, naive=0)
    for name, model_type, layers, settings in CASES:
        if options.only and options.only not in name:
            continue
        try:
            variants = list(forms(model_type, layers, settings))
        except Exception as error:  # noqa: BLE001 - a family this version does not know
            print(f"{name:20} not here: {str(error).splitlines()[0][:90]}")
            continue
        for form, config in variants:
            check(bridge, f"{name}, {form}", config, layers, ids, totals, options.v)
    print(f"transformers {transformers.__version__}: {totals}")
    return 1 if totals["wrong"] else 0


def check(bridge, name, config, layers, ids, totals, verbose):
    try:
        torch.manual_seed(0)
        model = build(config)
    except Exception as error:  # noqa: BLE001
        print(f"{name:30} cannot be built: {str(error).splitlines()[0][:90]}")
        return
    randomise(model)
    counts = dict.fromkeys(totals, 0)
    reasons = set()
    for keep in selections(layers):
        if keep == list(range(layers)):
            continue
        answer = bridge.keep(config, keep, list(model.state_dict()))
        if "error" in answer:
            counts["refused"] += 1
            reasons.add(answer["error"])
            continue
        result = compare(model, answer["config"], keep, ids)
        equal = isinstance(result, float) and result < 1e-4
        # Older versions that ignore lists may go wrong, if the user was told.
        foretold = any("do not read the list" in note or "go wrong" in note for note in answer["notes"])
        old = transformers.__version__.startswith("4.")
        verdict = "equal" if equal else "foretold" if foretold and old else "wrong"
        counts[verdict] += 1
        naive = dict(config)
        for key in ("num_hidden_layers", "n_layer", "num_layers"):
            if key in naive:
                naive[key] = len(keep)
        plain = compare(model, naive, keep, ids)
        counts["naive"] += not (isinstance(plain, float) and plain < 1e-4)
        if verdict == "wrong" or verbose:
            print(f"{name:30} {keep}: {verdict} {result} {answer['notes']}")
    for key, count in counts.items():
        totals[key] += count
    shown = ", ".join(f"{count} {key}" for key, count in counts.items() if count and key != "naive")
    print(f"{name:30} {shown} (only the count patched: {counts['naive']} wrong)", *sorted(reasons)[:1], sep="  ")


if __name__ == "__main__":
    sys.exit(main())
