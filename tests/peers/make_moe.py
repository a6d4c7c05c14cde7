"""Makes `fixtures/moe`: what mergekit-moe 0.1.5 makes of tiny models, to compare with.

Weights that are copied are kept as digests, routers by prompts as numbers; random routers cannot be compared and are only named.

    python tests/peers/make_moe.py .../bin/mergekit-moe
"""

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from safetensors import safe_open

FIXTURES = Path(__file__).parents[2] / "fixtures"
MODELS = FIXTURES / "golden/models"

# The tokenizer of all of them, with a token that begins a sequence.
TOKENIZER = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|im_start|>", "eos_token": "<|endoftext|>"}

CASES = {
    "mixtral": """base_model: llama31-base
gate_mode: cheap_embed
experts_per_token: 2
experts:
- source_model: llama31-base
  positive_prompts: ["what is the capital of France", "write a poem"]
- source_model: llama31-inst
  positive_prompts: ["solve the equation x + 1 = 2"]
  negative_prompts: ["write a poem"]
- source_model: llama31-target
  positive_prompts: ["fn main() { }", "def f(x): return x"]
  residual_scale: 0.5
""",
    "mixtral-f32": """base_model: llama31-base
gate_mode: uniform_random
dtype: float32
experts:
- source_model: llama31-base
  positive_prompts: ["a"]
- source_model: llama31-inst
  positive_prompts: ["b"]
""",
    "deepseek": """base_model: llama31-base
architecture: deepseek
gate_mode: cheap_embed
experts_per_token: 1
experts:
- source_model: llama31-inst
  positive_prompts: ["one"]
- source_model: llama31-target
  positive_prompts: ["two"]
shared_experts:
- source_model: llama31-base
  residual_scale: 0.25
""",
    "qwen2": """base_model: qwen2-untied
gate_mode: cheap_embed
experts:
- source_model: qwen2-untied
  positive_prompts: ["one"]
- source_model: qwen2-untied
  positive_prompts: ["two"]
  residual_scale: 2
shared_experts:
- source_model: qwen2-untied
  positive_prompts: ["three"]
""",
    "qwen-from-llama": """base_model: llama31-base
architecture: qwen
gate_mode: random
experts:
- source_model: llama31-base
- source_model: llama31-inst
shared_experts:
- source_model: llama31-inst
""",
}
KEYS = ["model_type", "architectures", "num_local_experts", "num_experts", "num_experts_per_tok", "n_routed_experts",
        "n_shared_experts", "moe_intermediate_size", "shared_expert_intermediate_size", "norm_topk_prob", "sliding_window",
        "decoder_sparse_step", "first_k_dense_replace", "moe_layer_freq", "num_hidden_layers", "hidden_size",
        "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim", "rms_norm_eps", "vocab_size",
        "max_position_embeddings", "tie_word_embeddings", "dtype"]


def is_router(name):
    return name.endswith((".gate.weight", "shared_expert_gate.weight"))


def main():
    for name, text in CASES.items():
        with tempfile.TemporaryDirectory() as home:
            home = Path(home)
            for model in MODELS.iterdir():
                if f" {model.name}" in text:
                    shutil.copytree(model, home / model.name)
                    shutil.copy(FIXTURES / "trainer/tokenizer/tokenizer.json", home / model.name)
                    (home / model.name / "tokenizer_config.json").write_text(json.dumps(TOKENIZER))
            (home / "config.yml").write_text(text)
            flags = ["--i-understand-this-is-not-useful-without-training"] if name == "qwen2" else []
            done = subprocess.run([sys.argv[1], "config.yml", "out", *flags], cwd=home, capture_output=True, text=True)
            assert not done.returncode, done.stderr
            tensors, routers = {}, {}
            for shard in sorted((home / "out").glob("*.safetensors")):
                with safe_open(shard, "pt") as file:
                    for key in file.keys():
                        value = file.get_tensor(key)
                        entry = {"dtype": str(value.dtype).removeprefix("torch."), "shape": list(value.shape)}
                        if is_router(key):
                            random = "random" in text
                            routers[key] = entry if random else {**entry, "values": value.float().flatten().tolist()}
                        else:
                            raw = value.contiguous().flatten().view(__import__("torch").uint8).numpy().tobytes()
                            tensors[key] = {**entry, "sha256": hashlib.sha256(raw).hexdigest()}
            config = json.loads((home / "out/config.json").read_text())
        config = {key: config[key] for key in KEYS if key in config}
        # The same in every layer: one is enough.
        alike = {}
        for key, router in routers.items():
            kind = key.rsplit(".mlp.", 1)[1]
            assert alike.setdefault(kind, router) == router or "random" in text
        golden = {"config": config, "layers": config["num_hidden_layers"], "routers": alike, "tensors": tensors}
        folder = FIXTURES / "moe"
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.yml").write_text(text)
        (folder / f"{name}.json").write_text(json.dumps(golden, indent=1, sort_keys=True) + "\n")
        print(name, len(tensors), list(alike))


if __name__ == "__main__":
    main()
