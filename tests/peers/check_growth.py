"""Checks growth and pruning against transformers: what the written models compute, in float32 on one thread.

* expand: every family of `check_configs.py` (and some more), blocks spread and chosen: the logits must be equal to the last bit.
* layers: repeated, dropped, up-scaled: the logits of the full model whose layers are called in that order.
* experts: pruned, against the model that torch makes of the chosen rows; converted to the other layout and back: equal to the last
  bit.
* dense: one expert of each layer, against the full model with that expert in all places.
* moe: experts that are all the base must compute what the base does, up to rounding.

Not part of CI: needs torch and transformers 5.x.

    python tests/peers/check_growth.py target/debug/elo-surgery
"""

import argparse
import json
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import torch
import transformers
from check_configs import CASES, TINY, build, randomise, run
from transformers import AutoModelForCausalLM

IDS = torch.randint(2, 60, (2, 24), generator=torch.Generator().manual_seed(2))
OLD_STYLE = dict(vocab_size=64, hidden_size=32, bos_token_id=0, eos_token_id=1)
MORE = [
    ("mistral", "mistral", 4, dict(TINY, sliding_window=4)),
    ("qwen3", "qwen3", 4, TINY),
    ("qwen3 dense", "qwen3_moe", 4, dict(TINY, moe_intermediate_size=24, num_experts=4, num_experts_per_tok=2, norm_topk_prob=True)),
    ("olmo", "olmo", 4, TINY),
    ("olmoe", "olmoe", 4, dict(TINY, num_experts=4, num_experts_per_tok=2)),
    ("cohere", "cohere", 4, TINY),
    ("glm", "glm", 4, TINY),
    ("glm4", "glm4", 4, TINY),
    ("phi", "phi", 4, dict(TINY, intermediate_size=48)),
    ("phimoe", "phimoe", 4, dict(TINY, num_local_experts=4, num_experts_per_tok=2)),
    ("seed oss", "seed_oss", 4, TINY),
    ("ernie", "ernie4_5", 4, TINY),
    ("hunyuan", "hunyuan_v1_dense", 4, TINY),
    ("hunyuan moe", "hunyuan_v1_moe", 4, dict(TINY, num_experts=4, moe_topk=2)),
    ("granite moe", "granitemoe", 4, dict(TINY, num_local_experts=4, num_experts_per_tok=2)),
    ("granite hybrid", "granitemoehybrid", 4, dict(TINY, num_local_experts=4, num_experts_per_tok=2, shared_intermediate_size=48,
                                                 layer_types=["mamba", "attention"] * 2, mamba_n_heads=8, mamba_d_head=8, mamba_d_state=8)),
    ("bamba", "bamba", 4, dict(TINY, attn_layer_indices=[1, 3], mamba_n_heads=8, mamba_d_head=8, mamba_d_state=8)),
    ("gptj", "gptj", 4, dict(vocab_size=64, n_embd=32, n_head=4, n_positions=128, rotary_dim=4, bos_token_id=0, eos_token_id=1)),
    ("gpt bigcode", "gpt_bigcode", 4, dict(vocab_size=64, n_embd=32, n_head=4, n_positions=128, bos_token_id=0, eos_token_id=1)),
    ("bloom", "bloom", 4, dict(OLD_STYLE, n_head=4)),
    ("bloom, normed stream", "bloom", 4, dict(OLD_STYLE, n_head=4, apply_residual_connection_post_layernorm=True)),
    ("mpt", "mpt", 4, dict(vocab_size=64, d_model=32, n_heads=4, expansion_ratio=2, max_seq_len=128)),
    ("opt", "opt", 4, dict(OLD_STYLE, ffn_dim=48, num_attention_heads=4, word_embed_proj_dim=32, max_position_embeddings=128)),
    ("opt, normed stream", "opt", 4, dict(OLD_STYLE, ffn_dim=48, num_attention_heads=4, word_embed_proj_dim=32, do_layer_norm_before=False)),
    ("mamba", "mamba", 4, dict(OLD_STYLE, state_size=8)),
    ("mamba2", "mamba2", 4, dict(OLD_STYLE, num_heads=8, head_dim=8, state_size=8, n_groups=1)),
]


class Refused(Exception):
    """The program refused."""


def elo(program, *arguments):
    done = subprocess.run([program, *map(str, arguments), "--no-sync", "--json"], capture_output=True, text=True)
    if done.returncode:
        raise Refused(done.stderr.strip().splitlines()[-1][:220])


def stack(model):
    """The decoder's ModuleList and its name."""
    lists = [(n, m) for n, m in model.named_modules() if isinstance(m, torch.nn.ModuleList)]
    return next((n, m) for n, m in lists if n.split(".")[-1] in ("layers", "h", "blocks"))


def load(path, dtype=torch.float32):
    model, info = AutoModelForCausalLM.from_pretrained(
        path, attn_implementation="eager", output_loading_info=True, dtype=dtype
    )
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        assert not info.get(kind), f"{kind}: {sorted(map(str, info[kind]))[:3]}"
    # With it transformers goes past a short cut of its own that fails without per-layer inputs.
    model.config.output_hidden_states = model.config.model_type == "gemma4_text"
    return model.eval()


def restacked(model, order):
    """Logits of the model whose layers are called in this order."""
    name, layers = stack(model)
    parent = model.get_submodule(name.rpartition(".")[0])
    originals = list(layers)
    setattr(parent, name.rpartition(".")[2], torch.nn.ModuleList(originals[i] for i in order))
    counts = {key: getattr(model.config, key) for key in ("num_hidden_layers", "n_layer", "num_layers") if hasattr(model.config, key)}
    lists = {key: list(value) for key, value in vars(model.config).items() if isinstance(value, list) and len(value) == len(originals)}
    for key, value in lists.items():
        setattr(model.config, key, [value[i] for i in order])
    if getattr(model.config, "attn_layer_indices", None):
        model.config.attn_layer_indices = [place for place, i in enumerate(order) if i in model.config.attn_layer_indices]
    for key in counts:
        setattr(model.config, key, len(order))
    return run(model, IDS)


def difference(a, b):
    assert a.isfinite().all() and b.isfinite().all(), "logits that are not finite"
    return (a - b).abs().max().item()


def written(case, home):
    """A random model of the case on disk, and its directory."""
    _name, model_type, layers, settings = case
    key = {"gpt2": "n_layer", "gptj": "n_layer", "gpt_bigcode": "n_layer", "bloom": "n_layer", "mpt": "n_layers",
           "gpt_neo": "num_layers"}.get(model_type, "num_hidden_layers")
    torch.manual_seed(0)
    model = build({**settings, "model_type": model_type, key: layers})
    randomise(model)
    model.save_pretrained(home / "model")
    return home / "model"


def expand(program, case, home):
    full = written(case, home)
    before = run(load(full), IDS)
    worst = 0.0
    for i, flags in enumerate((["--blocks", "2"], ["--after", "1,last"], ["--after", "all"])):
        try:
            elo(program, "expand", full, *flags, "--out", home / f"out{i}")
        except Refused as refusal:
            return f"refused: {refusal}"
        after = load(home / f"out{i}")
        assert len(stack(after)[1]) > case[2]
        worst = max(worst, difference(run(after, IDS), before))
    # A check that cannot fail says nothing: as it is, a copy changes the logits.
    try:
        elo(program, "layers", full, "--repeat", "1", "--out", home / "loud")
        assert difference(run(load(home / "loud"), IDS), before) > 1e-4, "a loud copy changes nothing"
    except Refused:
        pass
    return worst


def layers(program, case, home):
    full = written(case, home)
    count, worst = case[2], 0.0
    half = (count + 2) // 2
    for i, (flags, order) in enumerate([
        (["--repeat", "2-3"], [0, 1, 2, 1, 2, *range(3, count)]),
        (["--drop", "2"], [0, *range(2, count)]),
        (["--upscale", str(2 * half)], [*range(half), *range(count - half, count)]),
    ]):
        try:
            elo(program, "layers", full, *flags, "--out", home / f"out{i}")
        except Refused as refusal:
            return f"refused: {refusal}"
        worst = max(worst, difference(run(load(home / f"out{i}"), IDS), restacked(load(full), order)))
    return worst


WITH_EXPERTS = ("qwen2 moe", "qwen3 moe", "qwen3 next", "deepseek v2", "deepseek v3", "glm4 moe", "dots1", "olmoe", "mixtral",
                "gpt-oss", "phimoe", "granite moe", "hunyuan moe", "ernie moe", "lfm2 moe", "llama4", "minimax", "afmoe")
DENSE = ("mixtral", "qwen3 dense")


def pruned(model, keep, count):
    """The same model, built by torch with only these experts."""
    config = json.loads(model.config.to_json_string(use_diff=False))
    for key in ("num_experts", "num_local_experts", "n_routed_experts"):
        if config.get(key) == count:
            config[key] = len(keep)
    for key in ("num_experts_per_tok", "experts_per_token", "moe_topk"):
        if isinstance(config.get(key), int):
            config[key] = min(config[key], len(keep))
    small = build(config)
    weights = {}
    for name, value in model.state_dict().items():
        target = small.state_dict()[name].shape
        weights[name] = value if value.shape == target else value[keep]
    small.load_state_dict(weights)
    return small


def experts(program, case, home):
    if case[0] not in WITH_EXPERTS:
        return None
    full = written(case, home)
    model = load(full)
    try:
        elo(program, "experts", full, "--keep", "4,2", "--out", home / "two")
    except Refused as refusal:
        return f"refused: {refusal}"
    worst = difference(run(load(home / "two"), IDS), run(pruned(model, [3, 1], 4), IDS))
    assert difference(run(load(home / "two"), IDS), run(model, IDS)) > 1e-4, "pruning changes nothing"
    before = run(model, IDS)
    for first, second in (("fused", "per-expert"), ("per-expert", "fused")):
        try:
            elo(program, "experts", full, "--expert-layout", first, "--out", home / first)
            elo(program, "experts", home / first, "--expert-layout", second, "--out", home / f"{first}-{second}")
        except Refused:
            print(f"         {case[0]}: its layout is kept")
            break
        for out in (first, f"{first}-{second}"):
            worst = max(worst, difference(run(load(home / out), IDS), before))
    return worst


def dense(program, case, home):
    """One expert of every layer against the full model whose experts are all that one: routing weights sum up to 1."""
    if case[0] not in DENSE:
        return None
    full = written(case, home)
    model = load(full)
    elo(program, "experts", full, "--dense", "3", "--out", home / "dense")
    with torch.no_grad():
        for name, value in model.named_parameters():
            if ".experts." in name:
                value.copy_(value[2:3].expand_as(value))
    small = load(home / "dense")
    assert not any("expert" in key for key in small.config.to_dict()), "traces of experts"
    return difference(run(small, IDS), run(model, IDS))


def moe(program, case, home):
    """Experts that are all the base give what it gives, whatever the router says, where there is no shared expert."""
    if case[1] not in ("llama", "mistral", "qwen3") or "window" in case[0]:
        return None
    full = written((case[0], case[1], case[2], {k: v for k, v in case[3].items() if k != "sliding_window"}), home)
    (home / "moe.yml").write_text(json.dumps({
        "base_model": str(full), "gate_mode": "random", "experts": [{"source_model": str(full)}] * 4,
    }))
    before, worst = run(load(full), IDS), 0.0
    for layout in ("per-expert", "fused"):
        elo(program, "moe", home / "moe.yml", "--expert-layout", layout, "--out", home / layout)
        worst = max(worst, difference(run(load(home / layout), IDS), before))
    return worst


CHECKS = {"expand": expand, "layers": layers, "experts": experts, "dense": dense, "moe": moe}
EXACT = ("expand", "experts")


def main():
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program")
    parser.add_argument("--only", default="", help="only cases whose name contains this")
    parser.add_argument("--check", choices=CHECKS, help="only this one")
    options = parser.parse_args()
    program = str(Path(options.program).resolve())
    totals = dict(equal=0, refused=0, wrong=0)
    for name, check in CHECKS.items():
        if options.check not in (None, name):
            continue
        for case in [*CASES, *MORE]:
            if options.only not in case[0]:
                continue
            with tempfile.TemporaryDirectory() as home:
                try:
                    result = check(program, case, Path(home))
                except Exception as error:  # noqa: BLE001 - whatever it is, it is not equality
                    result = f"{type(error).__name__}: {str(error)[:160]}"
            if result is None:
                continue
            bound = 0.0 if name in EXACT else 1e-5
            good = isinstance(result, float) and result <= bound
            refused = isinstance(result, str) and result.startswith("refused")
            totals["equal" if good else "refused" if refused else "wrong"] += 1
            print(f"{name:8} {case[0]:22} {'equal' if good else 'WRONG' if not refused else ''} {result}", flush=True)
    print(f"transformers {transformers.__version__}: {totals}")
    return 1 if totals["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
