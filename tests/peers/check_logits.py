"""Checks what surgery gives against transformers: does the written model compute what torch makes of the same models?

Runs every case of a golden corpus through the program and compares float32 logits (eager attention, one
thread) with an oracle computed here. They must be equal to the last bit.

* extract: the full model whose other layers hand their input on.
* inject: the full model into which torch copied the trained modules.
* chat-vector: `C + s (A - B)` by torch in float32, rounded once.

Each oracle must also differ from the model the surgery started from, so that equality says something.
Not part of CI: needs torch and transformers (5.x, or 4.x for what older readers make of the results).

    python tests/peers/check_logits.py target/release/elo-surgery fixtures/golden
"""

import argparse
import copy
import json
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path

import torch
import transformers
from check_configs import expected_logits, run, stack
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

OLD = transformers.__version__.startswith("4.")
IDS = (torch.arange(56)[None] * 37 + 11) % 256


class NotLoaded(Exception):
    """This version of transformers cannot make the checkpoint a model, or not all of it."""


def load(path):
    """The model of a directory, every tensor of it and nothing else, in the dtype it is stored in."""
    dtype = {"torch_dtype" if OLD else "dtype": "auto"}
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            path, attn_implementation="eager", output_loading_info=True, **dtype
        )
    except Exception as error:
        raise NotLoaded(f"{type(error).__name__}: {str(error).splitlines()[0][:100]}") from error
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        if info.get(kind):
            raise NotLoaded(f"{kind}: {sorted(map(str, info[kind]))[:3]}")
    window = getattr(model.config, "sliding_window", None) or 0
    assert IDS.shape[1] > 2 * window, f"a window of {window} is too long for the input"
    return model.eval()


def logits(model):
    values = run(model.float(), IDS)
    assert values.isfinite().all(), "logits that are not finite"
    return values


def tensors(path):
    return {name: value for shard in path.glob("*.safetensors") for name, value in load_file(shard).items()}


def misread(path):
    """Settings in the file that this version does not know and takes defaults for."""
    written = json.loads((path / "config.json").read_text())
    default = type(transformers.AutoConfig.from_pretrained(path))().to_dict()
    return [key for key in ("rope_parameters", "layer_types") if key in written and key not in default]


def oracle_extract(case, inputs):
    """Expected logits and those of the model as it was."""
    full = load(inputs["model"])
    before = logits(full)
    return expected_logits(full, layers(case), IDS), before


def oracle_inject(case, inputs):
    full, trained = load(inputs["full"]), load(inputs["trained"])
    before = logits(copy.deepcopy(full))
    prefix, targets = stack(full)
    for target, source in zip(layers(case), stack(trained)[1], strict=True):
        targets[target].load_state_dict(source.state_dict())
    if "--all" in case["args"]:
        rest = {k: v for k, v in trained.state_dict().items() if not k.startswith(f"{prefix}.")}
        assert full.load_state_dict(rest, strict=False).unexpected_keys == []
    return logits(full), before


def oracle_chat_vector(case, inputs):
    a, b, c = (tensors(inputs[key]) for key in ("inst", "base", "into"))
    model = load(inputs["into"])
    before = logits(copy.deepcopy(model))
    scale, vocabulary = (value(case, name) for name in ("--scale", "--vocab"))
    result = {name: blend(a[name], b[name], c[name], float(scale or 1), vocabulary) for name in c}
    if "--skip-embeddings" in case["args"]:
        result.update({name: c[name] for name in c if "embed_tokens" in name or "lm_head" in name})
    config = copy.deepcopy(model.config)
    config.vocab_size = next(v.shape[0] for name, v in result.items() if "embed_tokens" in name)
    config._attn_implementation = "eager"
    after = AutoModelForCausalLM.from_config(config).eval()
    after.load_state_dict(result)
    return logits(after), before


def blend(a, b, c, scale, vocabulary):
    if a.shape == c.shape:
        return (c.float() + scale * (a.float() - b.float())).to(c.dtype)
    if vocabulary == "skip":
        return c
    common = blend(a[: len(c)], b, c, scale, None)
    return torch.cat([common, a[len(c) :]]) if vocabulary == "extend" else common


ORACLES = {"elo-extract": oracle_extract, "elo-inject": oracle_inject, "chat-vector": oracle_chat_vector}


def layers(case):
    return [int(layer) - 1 for layer in case["layers"].split(",")]


def value(case, flag):
    return case["args"][case["args"].index(flag) + 1] if flag in case["args"] else None


def command(case, inputs):
    if case["kind"] == "elo-extract":
        arguments = ["extract", inputs["model"], "--layers", case["layers"]]
    elif case["kind"] == "elo-inject":
        arguments = ["inject", inputs["trained"], "--into", inputs["full"], "--layers", case["layers"]]
    else:
        arguments = ["chat-vector", *(part for key in inputs for part in (f"--{key}", inputs[key]))]
    return arguments + case["args"]


def check(program, case, inputs, out):
    """The verdict on a case and what there is to say."""
    done = subprocess.run(
        [program, *command(case, inputs), "--out", out, "--json"], capture_output=True, text=True
    )
    if done.returncode:
        return "FAILED", done.stderr.strip()[-200:]
    try:
        expected, before = ORACLES[case["kind"]](case, inputs)
    except NotLoaded as reason:
        return "source not loaded", str(reason)
    try:
        result = logits(load(out))
    except NotLoaded as reason:
        return "FAILED", f"the result does not load: {reason}"
    unread = sorted({key for path in inputs.values() for key in misread(path)})
    if result.shape != expected.shape:
        return "FAILED", f"logits {tuple(result.shape)} instead of {tuple(expected.shape)}"
    difference = (result - expected).abs().max().item()
    if difference:
        told = [note for note in json.loads(done.stdout)["notes"] if "do not read the list" in note]
        return ("foretold" if OLD and told else "FAILED"), f"logits differ by {difference:.3g} {told}"
    if expected.shape == before.shape and expected.equal(before):
        return "FAILED", "the oracle is the model as it was: this case proves nothing"
    if unread:
        return "equal, misread", f"both without {', '.join(unread)}, which this version does not know"
    return "equal", ""


def main():
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    transformers.logging.set_verbosity(transformers.logging.CRITICAL)
    transformers.logging.disable_progress_bar()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program", type=Path, help="elo-surgery")
    parser.add_argument("fixtures", type=Path, help="a golden corpus: `cases.json` and its models")
    parser.add_argument("--only", default="", help="only cases whose name contains this")
    options = parser.parse_args()
    cases = json.loads((options.fixtures / "cases.json").read_text())["cases"]
    verdicts = Counter()
    for case in cases:
        if case["kind"] not in ORACLES or options.only not in case["name"]:
            continue
        inputs = {key: options.fixtures / path for key, path in case["inputs"].items()}
        with tempfile.TemporaryDirectory() as directory:
            verdict, remark = check(options.program.resolve(), case, inputs, Path(directory) / "out")
        verdicts[verdict] += 1
        print(f"{case['name']:30} {verdict:18} {remark}".rstrip(), flush=True)
    print(f"transformers {transformers.__version__}, torch {torch.__version__}: {dict(verdicts)}")
    return 1 if verdicts["FAILED"] or not verdicts else 0


if __name__ == "__main__":
    sys.exit(main())
