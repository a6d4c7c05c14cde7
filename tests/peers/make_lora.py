#!/usr/bin/env python3
"""Makes fixtures/lora: a tiny model, adapters as PEFT saves them, and what PEFT's `merge_and_unload` makes of them.

    python tests/peers/make_lora.py fixtures/lora      # needs torch, transformers, peft

`plain`: rank and alpha patterns, an embedding, a head that is trained whole. `stable`: rank-stabilised, other modules.
`both`: two weighted adapters (PEFT adds up what it merges). `conv`: GPT-2, whose layers store their weights as `[in, out]`.
"""

import os
import shutil
import sys
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

out = Path(sys.argv[1])


def llama():
    config = LlamaConfig(
        vocab_size=48, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=False, bos_token_id=0, eos_token_id=1, attention_bias=True,
    )
    torch.manual_seed(7)
    return LlamaForCausalLM(config)


def gpt2():
    config = GPT2Config(vocab_size=48, n_embd=16, n_layer=1, n_head=2, n_positions=8, bos_token_id=0, eos_token_id=1)
    torch.manual_seed(8)
    return GPT2LMHeadModel(config)


def save_model(model, path):
    shutil.rmtree(path, ignore_errors=True)
    model.save_pretrained(path)
    (path / "generation_config.json").unlink(missing_ok=True)


def randomise(model, seed):
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name or "modules_to_save" in name or (parameter.requires_grad and name.endswith(".bias")):
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2


def adapter(make, path, seed, **settings):
    model = get_peft_model(make(), LoraConfig(task_type="CAUSAL_LM", **settings))
    randomise(model, seed)
    shutil.rmtree(path, ignore_errors=True)
    model.save_pretrained(path)
    (path / "README.md").unlink(missing_ok=True)


def merged(make, path, *adapters):
    total = None
    base = make().state_dict()
    for at, weight in adapters:
        state = PeftModel.from_pretrained(make(), at).merge_and_unload().state_dict()
        delta = {name: (state[name].double() - base[name].double()) * weight for name in base}
        total = delta if total is None else {name: total[name] + delta[name] for name in base}
    path.mkdir(exist_ok=True)
    # Keys of the saved model only: buffers and tied heads are not in it.
    known = load_file(path.parent / ("gpt2" if make is gpt2 else "base") / "model.safetensors")
    if len(adapters) == 1:
        state = PeftModel.from_pretrained(make(), adapters[0][0]).merge_and_unload().state_dict()
        tensors = {name: state[name if name in state else "transformer." + name].contiguous().clone() for name in known}
    else:
        tensors = {name: (base[name].double() + total[name]).float() for name in known}
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


out.mkdir(exist_ok=True)
save_model(llama(), out / "base")
save_model(gpt2(), out / "gpt2")
adapter(
    llama, out / "plain", 1, r=4, lora_alpha=6, target_modules=["q_proj", "v_proj", "down_proj", "embed_tokens"],
    rank_pattern={"v_proj": 3, "layers.1.mlp.down_proj": 2}, alpha_pattern={"layers.0.self_attn.q_proj": 5},
    modules_to_save=["lm_head"], bias="lora_only",
)
adapter(llama, out / "stable", 2, r=5, lora_alpha=7, use_rslora=True, target_modules=["q_proj", "gate_proj", "o_proj"])
adapter(gpt2, out / "conv", 3, r=3, lora_alpha=4, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)
merged(llama, out / "plain-merged", (out / "plain", 1.0))
merged(llama, out / "stable-merged", (out / "stable", 1.0))
merged(gpt2, out / "conv-merged", (out / "conv", 1.0))
merged(llama, out / "stable-twice", (out / "stable", 0.5), (out / "stable", 0.25))
