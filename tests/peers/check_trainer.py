#!/usr/bin/env python3
"""Compares the built-in trainer with PyTorch and transformers, step by step.

    cargo build --release --example train
    python tests/peers/check_trainer.py target/release/examples/train [--write]

Each model of a family is trained twice on the same batches: by the example, and by torch, where every document of a
packed sequence goes through transformers' model by itself (so the masks are checked too), with torch.optim.AdamW,
clip_grad_norm_ and transformers' schedule. Loss and gradient norm of every step must agree to 5 digits.
Chats: the predicted tokens must be those that `apply_chat_template(return_assistant_tokens_mask=True)` marks.
--write makes the models and golden numbers of fixtures/trainer anew.
Needs torch and transformers (written with 2.15 and 5.23). CPU only, about two minutes.
"""
import json, math, pathlib, shutil, subprocess, sys, tempfile
import torch
import transformers as tf
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

FIXTURES = pathlib.Path(__file__).resolve().parents[2] / "fixtures" / "trainer"
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}"
    "{% else %}{{ m['content'] + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SIZES = dict(vocab_size=104, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=256)
LLAMA3 = dict(rope_type="llama3", rope_theta=500.0, factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=16)
FAMILIES = {
    "llama": (tf.LlamaConfig(**SIZES, rope_parameters=LLAMA3, attention_bias=True, tie_word_embeddings=False), torch.bfloat16),
    "mistral": (tf.MistralConfig(**SIZES, sliding_window=64, tie_word_embeddings=False), torch.float16),
    "qwen2": (tf.Qwen2Config(**SIZES, tie_word_embeddings=True), torch.bfloat16),
    "qwen3": (tf.Qwen3Config(**SIZES, head_dim=16, tie_word_embeddings=False), torch.bfloat16),
}
RUN = dict(epochs=8, max_steps=50, sequence_length=64, micro_batch=2, accumulation=2, learning_rate=3e-3,
           warmup_ratio=0.1, weight_decay=0.05, max_grad_norm=1.0, seed=7)
SCHEDULES = {"llama": "cosine", "mistral": "linear", "qwen2": "constant", "qwen3": "cosine"}


def make_tokenizer(root):
    """One token a character, and the marks of ChatML."""
    chars = ["\n"] + [chr(c) for c in range(32, 127)]
    special = ["<unk>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tok = Tokenizer(models.WordLevel({t: i for i, t in enumerate(special + chars)}, unk_token="<unk>"))
    tok.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), "isolated")
    tok.decoder = decoders.Fuse()
    tok.add_special_tokens(special)
    root.mkdir(parents=True, exist_ok=True)
    tok.save(str(root / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>", "unk_token": "<unk>"}
    (root / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")
    (root / "chat_template.jinja").write_text(CHATML)


def make_data(root):
    """Paragraphs of the licence, from a few characters to several sequences, and three chats."""
    text = (FIXTURES.parents[1] / "LICENSE").read_text()
    paragraphs = [" ".join(p.split()) for p in text.split("\n\n")]
    texts = [p[: 20 + 37 * (i % 9)] for i, p in enumerate(p for p in paragraphs if len(p) > 60)][:40]
    (root / "text.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    turns = [["Hi", "Hello."], ["2+2?", "4", "Sure?", "Yes."], ["a\nb", " c "], ["x" * 80, "too long"]]
    chats = [[{"role": ["user", "assistant"][i % 2], "content": c} for i, c in enumerate(t)] for t in turns]
    (root / "chat.jsonl").write_text("".join(json.dumps({"messages": c}) + "\n" for c in chats))


def make_models(root):
    for name, (config, dtype) in FAMILIES.items():
        torch.manual_seed(1)
        model = tf.AutoModelForCausalLM.from_config(config)
        for p in model.parameters():
            p.data += 0.1 * torch.randn_like(p) if p.dim() == 1 else 0.05 * torch.randn_like(p)
        model.to(dtype).save_pretrained(root / name)
        (root / name / "generation_config.json").unlink(missing_ok=True)


def ours(binary, *arguments):
    done = subprocess.run([binary, *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{binary} {arguments}: {done.stderr}")
    return [json.loads(line) for line in done.stdout.splitlines()]


def decayed(name):
    return not (name.endswith(".bias") or "norm" in name)


def theirs(directory, trainable, schedule, steps):
    model = tf.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").train()
    for name, p in model.named_parameters():
        p.requires_grad_(name in trainable)
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    groups = [{"params": [p for n, p in named if decayed(n)], "weight_decay": RUN["weight_decay"]},
              {"params": [p for n, p in named if not decayed(n)], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=RUN["learning_rate"])
    warmup = math.ceil(RUN["warmup_ratio"] * RUN["max_steps"])
    rate = tf.get_scheduler({"constant": "constant_with_warmup"}.get(schedule, schedule), optimizer, warmup, RUN["max_steps"])
    out = []
    for micro in steps:
        count = sum(t != 2**32 - 1 for b in micro for t in b["targets"])
        total = 0.0
        for batch in micro:
            at = 0
            for n in batch["lengths"]:
                ids = torch.tensor(batch["ids"][at : at + n])
                want = torch.tensor([t if t != 2**32 - 1 else -100 for t in batch["targets"][at : at + n]])
                at += n
                if (want == -100).all():
                    continue
                logits = model(ids[None]).logits[0].float()
                loss = torch.nn.functional.cross_entropy(logits, want, reduction="sum", ignore_index=-100) / count
                loss.backward()
                total += loss.item()
        norm = torch.nn.utils.clip_grad_norm_([p for _, p in named], RUN["max_grad_norm"])
        optimizer.step(), rate.step(), optimizer.zero_grad()
        out.append((total, norm.item()))
    return out


def check_chats(binary, tmp):
    """The predicted tokens of each chat, against the mask of transformers."""
    spec = tmp / "chat.json"
    spec.write_text(json.dumps(dict(model=str(FIXTURES / "llama"), tokenizer=str(FIXTURES / "tokenizer"), trainable=["x"],
        data=[str(FIXTURES / "chat.jsonl")], sequence_length=64, micro_batch=8, loss_on="assistant", out="x", work="x")))
    lines = ours(binary, "--batches", spec, 1)
    found = set()
    for batch in lines[-1]["micro"]:
        at = 0
        for n in batch["lengths"]:
            ids, targets = batch["ids"][at : at + n], batch["targets"][at : at + n]
            at += n
            found.add((tuple(ids), tuple([0] + [int(t != 2**32 - 1) for t in targets[:-1]])))
    tok = tf.AutoTokenizer.from_pretrained(FIXTURES / "tokenizer")
    want = set()
    for line in (FIXTURES / "chat.jsonl").read_text().splitlines():
        got = tok.apply_chat_template(json.loads(line)["messages"], return_dict=True, return_assistant_tokens_mask=True)
        if len(got["input_ids"]) <= 64:
            want.add((tuple(got["input_ids"]), tuple(got["assistant_masks"])))
    assert found == want, "predicted tokens of chats differ"
    assert any("left out" in line.get("msg", "") for line in lines), "the long chat is reported"
    print(f"chats: {len(want)} agree")


def main():
    binary, write = sys.argv[1], "--write" in sys.argv
    torch.set_num_threads(1)
    if write:
        shutil.rmtree(FIXTURES, ignore_errors=True)
        make_tokenizer(FIXTURES / "tokenizer")
        make_data(FIXTURES)
        make_models(FIXTURES)
    golden, failed = {"run": RUN, "variants": []}, False
    with tempfile.TemporaryDirectory() as tmp:
        tmp = pathlib.Path(tmp)
        for name in FAMILIES:
            model = tf.AutoModelForCausalLM.from_pretrained(FIXTURES / name)
            names = [n for n, _ in model.named_parameters()]
            layers = [n for n in names if n.startswith("model.layers.1.")]
            for kind, trainable in (("all", names), ("last layer", layers)):
                spec = tmp / "spec.json"
                run = dict(RUN, schedule=SCHEDULES[name], model=str(FIXTURES / name), tokenizer=str(FIXTURES / "tokenizer"),
                           trainable=trainable, data=[str(FIXTURES / "text.jsonl")], threads=1,
                           out=str(tmp / f"{name}-{kind[:4]}"), work=str(tmp / f"{name}-{kind[:4]}-work"))
                spec.write_text(json.dumps(run))
                steps = [l["micro"] for l in ours(binary, "--batches", spec, RUN["max_steps"]) if l["event"] == "batches"]
                mine = [(l["loss"], l["grad_norm"]) for l in ours(binary, spec) if l["event"] == "step"]
                torchs = theirs(FIXTURES / name, set(trainable), SCHEDULES[name], steps)
                assert len(mine) == len(torchs) == RUN["max_steps"]
                worst = [max(abs(a[i] - b[i]) / b[i] for a, b in zip(mine, torchs)) for i in (0, 1)]
                failed |= worst[0] > 1e-5 or worst[1] > 1e-4
                print(f"{name:8} {kind:10} loss {torchs[0][0]:.4f} -> {torchs[-1][0]:.4f}; worst relative difference: "
                      f"loss {worst[0]:.1e}, gradient norm {worst[1]:.1e}")
                golden["variants"].append({"model": name, "kind": kind, "schedule": SCHEDULES[name],
                    "trainable": None if kind == "all" else "model.layers.1.",
                    "loss": [float(f"{x[0]:.7g}") for x in torchs], "grad_norm": [float(f"{x[1]:.7g}") for x in torchs]})
        check_chats(binary, tmp)
    if write:
        (FIXTURES / "golden.json").write_text(json.dumps(golden) + "\n")
    sys.exit(failed)


main()
