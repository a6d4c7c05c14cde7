"""Makes fixtures/modules/cases.json: what mergekit makes of models of several modules, tensor by tensor.

Models are described, not stored: a config, names and shapes; tests/it/modules.rs writes the same values by the same
formula. The result of every case is kept as a digest of each tensor, and the layer counts of its config.

    OMP_NUM_THREADS=1 python tests/peers/make_modules.py

Needs mergekit 0.1.5, torch and transformers 5.
"""

import json
import os
import pathlib
import tempfile

import torch
import yaml
from make_chain import digests, noise
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
from safetensors import safe_open
from safetensors.torch import save_file
import transformers as t

ROOT = pathlib.Path(__file__).resolve().parents[2]
OUT = ROOT / "fixtures/modules"
COUNTS = ["num_hidden_layers", "num_layers", "num_decoder_layers", "encoder_layers", "decoder_layers", "depth"]

TEXT = dict(
    vocab_size=24, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1,
    head_dim=8, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)
VISION = dict(
    hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2, image_size=8, patch_size=4
)


def families():
    yield "gemma3", t.Gemma3ForConditionalGeneration(
        t.Gemma3Config(text_config=TEXT | {"layer_types": ["full_attention"] * 3}, vision_config=VISION, mm_tokens_per_image=4)
    )
    yield "t5", t.T5ForConditionalGeneration(
        t.T5Config(
            vocab_size=24, d_model=16, d_kv=8, d_ff=24, num_layers=3, num_decoder_layers=2, num_heads=2,
            feed_forward_proj="gated-gelu", tie_word_embeddings=False,
        )
    )
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    yield "qwen2_5_vl", t.Qwen2_5_VLForConditionalGeneration(
        t.Qwen2_5_VLConfig(
            text_config=TEXT | {"rope_parameters": rope, "tie_word_embeddings": False},
            vision_config=dict(
                depth=2, hidden_size=16, intermediate_size=24, num_heads=2, patch_size=4, out_hidden_size=16,
                fullatt_block_indexes=[1],
            ),
            tie_word_embeddings=False,
        )
    )
    # No architecture of mergekit's: modules are inferred, and the text model is lost if the names are those of the Hub.
    yield "llava", t.LlavaForConditionalGeneration(
        t.LlavaConfig(
            text_config=TEXT | {"model_type": "llama"},
            vision_config=VISION | {"model_type": "clip_vision_model", "projection_dim": 16},
        )
    )


def describe(model, root):
    """Config and shapes of a model as it lies on disk."""
    model.save_pretrained(root, save_original_format=not isinstance(model, t.LlavaForConditionalGeneration))
    config = json.loads((root / "config.json").read_text())
    shapes = {}
    with safe_open(root / "model.safetensors", "pt") as file:
        for name in file.keys():
            # mergekit knows the names of the Hub, and none for the tower's pooling head.
            if config["model_type"] == "gemma3" and name.startswith("vision_tower."):
                if name.startswith("vision_tower.head."):
                    continue
                name, full = name.replace("vision_tower.", "vision_tower.vision_model."), name
            else:
                full = name
            shapes[name] = file.get_slice(full).get_shape()
    return config, dict(sorted(shapes.items()))


def write(root, config, shapes, salt):
    root.mkdir()
    tensors = {}
    for at, (name, shape) in enumerate(shapes.items()):
        count = torch.tensor(shape).prod().item()
        values = noise(count, at, 2000, 2.0**-15)
        if salt:
            values = values + noise(count, 100 * salt + at, 200, 2.0**-17)
        tensors[name] = values.reshape(shape)
    save_file(tensors, root / "model.safetensors", metadata={"format": "pt"})
    (root / "config.json").write_text(json.dumps(config))


def models(family, own):
    return [{"model": f"{family}-{m}", **({"parameters": p} if p else {})} for m, p in own.items()]


def part(family, name, layers, **parameters):
    return {"model": f"{family}-{name}", "layer_range": layers, **({"parameters": parameters} if parameters else {})}


def cases():
    half = {"a": {"weight": 0.5}, "b": {"weight": 0.25}}
    ramp = {"a": {"weight": [0.0, 1.0]}, "b": {"weight": [1.0, 0.25]}}
    for family in ["gemma3", "t5", "qwen2_5_vl", "llava"]:
        # Gradients run through the layers of every module.
        yield f"{family}-whole", family, {"merge_method": "linear", "models": models(family, ramp)}
    modules = lambda **m: {k: v for k, v in m.items()}
    yield "gemma3-parameters", "gemma3", {
        "merge_method": "ties", "base_model": "gemma3-base", "parameters": {"weight": 0.5, "density": 0.9},
        "modules": modules(
            text_decoder={"models": models("gemma3", {"a": {"density": 0.4}, "b": {}}), "parameters": {"density": 0.6}},
            vision_tower={"models": models("gemma3", {"a": {}, "b": {}, "c": {"weight": [0.1, 0.7]}})},
            multi_modal_projector={"models": models("gemma3", {"a": {}}), "parameters": {"weight": 1.5, "normalize": False}},
        ),
    }
    yield "gemma3-slices", "gemma3", {
        "merge_method": "linear",
        "parameters": {"weight": 0.5},
        "modules": modules(
            text_decoder={
                "slices": [
                    {"sources": [part("gemma3", "a", [0, 2], weight=[0.2, 0.9]), part("gemma3", "b", [1, 3])]},
                    {"sources": [part("gemma3", "b", [0, 2]), part("gemma3", "c", [1, 3])], "parameters": {"weight": [0.3, 0.6]}},
                ],
                "parameters": {"normalize": False},
            },
            vision_tower={"models": models("gemma3", half)},
            multi_modal_projector={"models": models("gemma3", {"b": None})},
        ),
    }
    yield "gemma3-left-out", "gemma3", {
        "merge_method": "linear", "parameters": {"weight": 0.5},
        "modules": modules(text_decoder={"models": models("gemma3", half)}),
    }
    yield "t5-parameters", "t5", {
        "merge_method": "task_arithmetic", "base_model": "t5-base", "parameters": {"weight": 0.5, "lambda": 0.7},
        "modules": modules(
            encoder={"models": models("t5", {"a": None, "b": None}), "parameters": {"lambda": [0.2, 1.0]}},
            decoder={"models": models("t5", {"c": {"weight": 1.25}})},
            shared={"models": models("t5", {"a": None})},
        ),
    }
    yield "qwen2_5_vl-modules", "qwen2_5_vl", {
        "merge_method": "passthrough",
        "modules": modules(
            text_decoder={"slices": [{"sources": [part("qwen2_5_vl", m, r)]} for m, r in [("a", [0, 3]), ("b", [1, 2])]]},
            vision_tower={"models": models("qwen2_5_vl", {"b": None})},
            multi_modal_projector={"models": models("qwen2_5_vl", {"c": None})},
        ),
    }
    yield "llava-inferred", "llava", {
        "merge_method": "linear", "parameters": {"weight": 0.5},
        "modules": {
            "model.language_model.layers": {
                "slices": [{"sources": [part("llava", "a", [0, 2], weight=0.8), part("llava", "b", [1, 3])]}]
            },
            "model.vision_tower.encoder.layers": {"models": models("llava", {"a": {"weight": [0.1, 0.5]}, "c": {"weight": 1}})},
            "default": {"models": models("llava", {"b": {"weight": [0.4, 5]}, "c": {}})},
        },
    }


def counts(config, at=""):
    """Every key that counts layers, with its path."""
    found = {}
    for key, value in config.items():
        if isinstance(value, dict):
            found |= counts(value, f"{at}{key}.")
        elif key in COUNTS:
            found[at + key] = value
    return found


def main():
    torch.set_num_threads(1)
    OUT.mkdir(exist_ok=True)
    made = []
    described = {}
    with tempfile.TemporaryDirectory() as temp:
        root = pathlib.Path(temp)
        for family, model in families():
            config, shapes = describe(model, root / family)
            described[family] = {"config": config, "shapes": shapes}
            for salt, name in enumerate(["base", "a", "b", "c"]):
                write(root / f"{family}-{name}", config, shapes, salt)
        os.chdir(root)
        for name, family, config in cases():
            text = yaml.safe_dump(config, sort_keys=False)
            parsed = MergeConfiguration.model_validate(yaml.safe_load(text))
            case = {"name": name, "family": family, "config": text}
            try:
                run_merge(parsed, f"out-{name}", MergeOptions(copy_tokenizer=False, write_model_card=False))
            except Exception as error:  # the tensors are written before a config that it cannot save
                print(f"{name}: {error!r:.300}")
            if (root / f"out-{name}/model.safetensors").exists():
                case["tensors"] = digests(root / f"out-{name}")
                missing = described[family]["shapes"].keys() - case["tensors"].keys()
                more = case["tensors"].keys() - described[family]["shapes"].keys()
                print(f"{name}: {len(case['tensors'])} tensors, {len(missing)} missing {sorted(missing)[:3]}, {len(more)} more {sorted(more)[:3]}")
            else:
                print(f"{name}: NO TENSORS")
            if (root / f"out-{name}/config.json").exists():
                written = json.loads((root / f"out-{name}/config.json").read_text())
                case["counts"] = counts(written)
                print("   ", case["counts"])
            made.append(case)
    (OUT / "cases.json").write_text(json.dumps({"families": described, "cases": made}, indent=1) + "\n")
    print(f"{len(made)} cases, torch {torch.__version__}, transformers {t.__version__}")


if __name__ == "__main__":
    main()
