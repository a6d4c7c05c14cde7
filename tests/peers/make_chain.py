"""Makes fixtures/chain/cases.json: what mergekit computes, tensor by tensor, for `--numerics mergekit` to equal.

Every case is a mergekit configuration with paths relative to a directory of models: those of fixtures/golden, and
`wide-*`, written here and by tests/it/chain.rs by the same formula. Its result is kept as a digest of each tensor.

    OMP_NUM_THREADS=1 python tests/peers/make_chain.py

Needs mergekit 0.1.5 and torch 2.15 (one thread: sums are made in another order on several).
"""

import hashlib
import json
import os
import pathlib
import tempfile

import torch
import yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
from safetensors import safe_open
from safetensors.torch import save_file

ROOT = pathlib.Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "fixtures/golden/models"
OUT = ROOT / "fixtures/chain"
DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}
SEED = 7

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 160, "hidden_size": 64,
    "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 16, "tie_word_embeddings": False, "rms_norm_eps": 1e-5, "max_position_embeddings": 64,
}
SHAPES = {
    "lm_head.weight": [160, 64],
    "model.embed_tokens.weight": [160, 64],
    "model.layers.0.input_layernorm.weight": [64],
    "model.layers.0.mlp.down_proj.weight": [64, 96],
    "model.layers.0.mlp.gate_proj.weight": [96, 64],
    "model.layers.0.mlp.up_proj.weight": [96, 64],
    "model.layers.0.post_attention_layernorm.weight": [64],
    "model.layers.0.self_attn.k_proj.weight": [32, 64],
    "model.layers.0.self_attn.o_proj.weight": [64, 64],
    "model.layers.0.self_attn.q_proj.weight": [64, 64],
    "model.layers.0.self_attn.v_proj.weight": [32, 64],
    "model.norm.weight": [64],
}


def noise(count, salt, steps, scale):
    """Few different values, so that many magnitudes are equal: multiples of `scale` from -steps to steps."""
    i = torch.arange(count, dtype=torch.int64) + salt * 1_000_003
    mixed = (i * 2_654_435_761) & 0xFFFF_FFFF
    mixed = (mixed ^ (mixed >> 15)) * 2_246_822_519 & 0xFFFF_FFFF
    return ((mixed >> 7) % (2 * steps + 1) - steps).float() * scale


def write_model(root, name, salt, dtype):
    tensors = {}
    for at, (tensor, shape) in enumerate(SHAPES.items()):
        count = torch.tensor(shape).prod().item()
        values = noise(count, at, 2000, 2.0**-15)
        if salt:
            values = values + noise(count, 100 * salt + at, 200, 2.0**-17)
        tensors[tensor] = values.reshape(shape).to(dtype)
    (root / name).mkdir()
    save_file(tensors, root / name / "model.safetensors", metadata={"format": "pt"})
    (root / name / "config.json").write_text(json.dumps(CONFIG))


def merge(method, family, own, shared=None, models="abc", base=True, **rest):
    config = {"merge_method": method}
    if base:
        config["base_model"] = f"{family[0]}-base{family[1]}"
    config["models"] = [
        {"model": f"{family[0]}-{model}{family[1]}", **({"parameters": own[model]} if own else {})}
        for model in models
    ]
    if shared:
        config["parameters"] = shared
    return config | rest


def cases():
    weights = {"a": {"weight": 0.7}, "b": {"weight": 0.5}, "c": {"weight": -0.3}}
    dense = {m: dict(w, density=d) for (m, w), d in zip(weights.items(), (0.4, 0.6, 0.5))}
    crumbs = {m: dict(w, gamma=0.05) for m, w in dense.items()}
    ranked = {m: dict(w, epsilon=0.1) for m, w in dense.items()}
    scaled = {"a": {"scale": 0.3}}
    for kind in DTYPES:
        wide = ("wide", f"-{kind}")
        yield f"linear-{kind}", merge("linear", wide, weights, base=False)
        yield f"linear-one-{kind}", merge("linear", wide, {"a": {"weight": 1.0}}, {"normalize": False}, "a", False)
        yield f"passthrough-{kind}", merge("passthrough", wide, scaled, None, "a", False)
        yield f"task_arithmetic-{kind}", merge("task_arithmetic", wide, weights, {"normalize": True, "lambda": 0.8})
        yield f"ties-{kind}", merge("ties", wide, dense)
        yield f"ties-rescale-{kind}", merge("ties", wide, dense, {"rescale": True, "lambda": 0.9})
        yield f"breadcrumbs-{kind}", merge("breadcrumbs", wide, crumbs)
        yield f"breadcrumbs_ties-rescale-{kind}", merge("breadcrumbs_ties", wide, crumbs, {"rescale": True})
        yield f"dare_linear-{kind}", merge("dare_linear", wide, dense)
        yield f"dare_ties-plain-{kind}", merge("dare_ties", wide, dense, {"normalize": True, "rescale": False})
        yield f"della-{kind}", merge("della", wide, ranked)
        yield f"della_linear-plain-{kind}", merge("della_linear", wide, ranked, {"rescale": False})
        yield f"nearswap-{kind}", merge("nearswap", wide, None, {"t": 0.0007}, "a")
        yield f"ram-{kind}", merge("ram", wide, None, {"epsilon": 0.0006})
        yield f"ramplus_tl-{kind}", merge("ramplus_tl", wide, None, {"epsilon": 0.0006, "r": 0.3, "alpha": 0.5})
    f32 = ("wide", "-f32")
    yield "ties-cast-to-bf16", merge("ties", f32, dense, dtype="bfloat16")
    yield "ties-cast-to-f16-and-back", merge("ties", f32, dense, dtype="float16", out_dtype="float32")
    yield "passthrough-cast-twice", merge("passthrough", f32, None, None, "a", False, dtype="bfloat16", out_dtype="float16")
    yield "task_arithmetic-f64", merge("task_arithmetic", f32, weights, dtype="float64", out_dtype="bfloat16")
    yield "linear-f64", merge("linear", f32, weights, base=False, dtype="float64", out_dtype="float32")
    yield "dare_linear-f64", merge("dare_linear", f32, dense, dtype="float64")
    # Several layers: the order in which tensors draw their random numbers.
    mrg = ("mrg32", "")
    yield "dare_linear-layers", merge("dare_linear", mrg, dense)
    yield "dare_ties-gradient", merge(
        "dare_ties", mrg, {m: dict(w, density=[0.3, 1.0, 0.6]) for m, w in weights.items()}
    )
    # No two outputs have the same last name among their inputs: those have no order.
    sources = lambda *ranges: [
        {"model": f"mrg32-{m}", "layer_range": list(r), "parameters": dense.get(m, {})} for m, r in ranges
    ]
    yield "dare_linear-slices", {
        "merge_method": "dare_linear", "base_model": "mrg32-base",
        "slices": [
            {"sources": sources(("a", (2, 4)), ("b", (0, 2)), ("base", (2, 4)))},
            {"sources": sources(("a", (0, 1)), ("b", (1, 2)), ("base", (0, 1)))},
            {"sources": sources(("a", (0, 1)), ("b", (0, 1)), ("base", (0, 1)))},
        ],
    }


def digests(root):
    found = {}
    with safe_open(root / "model.safetensors", "pt") as file:
        for name in sorted(file.keys()):
            tensor = file.get_tensor(name).contiguous()
            kind = str(tensor.dtype).removeprefix("torch.")
            digest = hashlib.sha256(tensor.view(torch.uint8).numpy().tobytes()).hexdigest()[:16]
            found[name] = f"{kind} {digest}"
    return found


def main():
    torch.set_num_threads(1)
    OUT.mkdir(exist_ok=True)
    made = []
    with tempfile.TemporaryDirectory() as temp:
        root = pathlib.Path(temp)
        for model in GOLDEN.iterdir():
            (root / model.name).symlink_to(model)
        for kind, dtype in DTYPES.items():
            for salt, name in enumerate(["base", "a", "b", "c"]):
                write_model(root, f"wide-{name}-{kind}", salt, dtype)
        os.chdir(root)
        for name, config in cases():
            text = yaml.safe_dump(config, sort_keys=False)
            parsed = MergeConfiguration.model_validate(yaml.safe_load(text))
            try:
                run_merge(parsed, f"out-{name}", MergeOptions(random_seed=SEED, copy_tokenizer=False, write_model_card=False))
            except Exception as error:  # the tensors are written before a config that it cannot save
                print(f"{name}: {error}")
            made.append({"name": name, "config": text, "tensors": digests(root / f"out-{name}")})
    (OUT / "cases.json").write_text(json.dumps({"seed": SEED, "cases": made}, indent=1) + "\n")
    print(f"{len(made)} cases, torch {torch.__version__}")


if __name__ == "__main__":
    main()
