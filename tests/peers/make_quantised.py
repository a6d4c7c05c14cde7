#!/usr/bin/env python3
"""Makes fixtures/quantised: tiny checkpoints in quantised formats, and what their own tools dequantise them to, in bfloat16.

    python tests/peers/make_quantised.py fixtures/quantised      # needs torch, transformers, compressed-tensors

`fp8-block` follows DeepSeek-V3's definition (weights times the scale of their 128 x 128 block, in f32); `mxfp4` is
transformers' conversion for gpt-oss; the others are decompressed by compressed-tensors.
"""

import json
import sys
from pathlib import Path

import torch
from compressed_tensors.compressors import NaiveQuantizationCompressor, PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from safetensors.torch import save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

out = Path(sys.argv[1])
generator = torch.Generator().manual_seed(11)


def random(*shape):
    return torch.randn(shape, generator=generator)


def config(quantization, **more):
    plain = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 160, "intermediate_size": 160,
        "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 12,
        "tie_word_embeddings": False, "torch_dtype": "bfloat16", **more,
    }
    return ({**plain, "quantization_config": quantization}, plain)


def write(name, tensors, settings):
    path = out / name
    path.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in tensors.items()}, path / "model.safetensors", metadata={"format": "pt"})
    (path / "config.json").write_text(json.dumps(settings, indent=2) + "\n")


def both(name, coded, values, quantization, **more):
    own, plain = config(quantization, **more)
    rest = {"model.embed_tokens.weight": random(12, 8).bfloat16(), "model.norm.weight": random(8).bfloat16()}
    write(name, {**coded, **rest}, own)
    write(name + "-values", {**values, **rest}, plain)


LAYER = "model.layers.0.mlp."


def fp8_block():
    # Blocks at the ends are smaller.
    codes = (random(150, 140) * 100).to(torch.float8_e4m3fn)
    scales = random(2, 2).abs() * 1e-3
    wide = scales.repeat_interleave(128, 0)[:150].repeat_interleave(128, 1)[:, :140]
    values = (codes.float() * wide).bfloat16()
    coded = {LAYER + "up_proj.weight": codes, LAYER + "up_proj.weight_scale_inv": scales}
    method = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
    both("fp8-block", coded, {LAYER + "up_proj.weight": values}, method)


def args(**settings):
    return QuantizationArgs(**settings)


def compressed(name, compressor, fmt, modules, more=None):
    coded, values, groups = {}, {}, {}
    for i, (module, weights, state) in enumerate(modules):
        scheme = QuantizationScheme(targets=["Linear"], weights=weights)
        plain = compressor.decompress(dict(state), scheme)["weight"]
        values[f"{LAYER}{module}.weight"] = plain.bfloat16()
        coded.update({f"{LAYER}{module}.{key}": value for key, value in state.items()})
        groups[f"group_{i}"] = {"targets": ["Linear"], "weights": json.loads(weights.model_dump_json())}
    coded.update(more or {})
    method = {"quant_method": "compressed-tensors", "format": fmt, "config_groups": groups, "quantization_status": "compressed"}
    both(name, coded, values, method)


def pack(weights, scale, zero, weight):
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    state = {"weight": weight, "weight_scale": scale}
    if zero is not None:
        state["weight_zero_point"] = zero
    return PackedQuantizationCompressor.compress(state, scheme)


def integers(low, high, *shape):
    return torch.randint(low, high, shape, generator=generator, dtype=torch.int32)


fp8_block()
fp8 = torch.float8_e4m3fn
compressed(
    "fp8-scales", NaiveQuantizationCompressor, "float-quantized",
    [
        ("up_proj", args(num_bits=8, type="float", strategy="channel"),
         {"weight": (random(20, 24) * 50).to(fp8), "weight_scale": (random(20, 1).abs() * 0.01).bfloat16()}),
        ("gate_proj", args(num_bits=8, type="float", strategy="tensor"),
         {"weight": (random(16, 24) * 50).to(fp8), "weight_scale": torch.tensor([0.0123])}),
    ],
    {LAYER + "up_proj.input_scale": torch.tensor([0.5])},
)
compressed(
    "int8", NaiveQuantizationCompressor, "int-quantized",
    [("up_proj", args(num_bits=8, type="int", strategy="channel"),
      {"weight": integers(-128, 128, 20, 24).to(torch.int8), "weight_scale": (random(20, 1).abs() * 0.01).bfloat16()})],
)
group = dict(num_bits=4, type="int", strategy="group", group_size=32)
compressed(
    "int4", PackedQuantizationCompressor, "pack-quantized",
    [("up_proj", args(**group), pack(args(**group), (random(20, 3).abs() * 0.01).bfloat16(), None, random(20, 96) * 0.05)),
     ("down_proj", args(**group), pack(args(**group), (random(7, 2).abs() * 0.01).bfloat16(), None, random(7, 64) * 0.05))],
)
uneven = dict(group, symmetric=False)
compressed(
    "int4-zero", PackedQuantizationCompressor, "pack-quantized",
    [("up_proj", args(**uneven), pack(args(**uneven), (random(20, 3).abs() * 0.01).bfloat16(),
                                      integers(-8, 8, 20, 3).to(torch.int8), random(20, 96) * 0.05))],
)
channel = dict(num_bits=8, type="int", strategy="channel")
compressed(
    "int8-packed", PackedQuantizationCompressor, "pack-quantized",
    [("up_proj", args(**channel), pack(args(**channel), (random(10, 1).abs() * 0.01).bfloat16(), None, random(10, 30) * 0.5))],
)
blocks = torch.randint(0, 256, (3, 10, 2, 16), generator=generator, dtype=torch.uint8)
scales = torch.randint(110, 135, (3, 10, 2), generator=generator, dtype=torch.uint8)
name = LAYER + "experts.gate_up_proj"
both(
    "mxfp4", {name + "_blocks": blocks, name + "_scales": scales, name + "_bias": random(3, 10).bfloat16()},
    {name: convert_moe_packed_tensors(blocks, scales), name + "_bias": torch.zeros(0)},
    {"quant_method": "mxfp4", "modules_to_not_convert": []},
)
# The bias is as it was.
from safetensors.torch import load_file
found = load_file(out / "mxfp4" / "model.safetensors")
fixed = load_file(out / "mxfp4-values" / "model.safetensors")
fixed[name + "_bias"] = found[name + "_bias"]
save_file(fixed, out / "mxfp4-values" / "model.safetensors", metadata={"format": "pt"})
