#!/usr/bin/env python3
"""Speed and memory of the built-in trainer against PyTorch on the same work: tokens per CPU-second, peak memory.

    cargo build --release --example train
    python benches/trainer.py target/release/examples/train [STEPS [ROUNDS [CASE..]]]   # cases: layers-1 layers-2 all-1 all-2

Llama of hidden size 512, 1408 inside, 2 layers, 8 heads (2 for keys), vocabulary 32000; f32; 8 documents of 256 tokens
a step, AdamW. CPU time (user and system, of the whole process) is compared, so a busy machine tells little; loading is
taken out by subtracting a run of one step. Both run in the same order in each round; the median is given.
"""
import json, os, pathlib, shutil, statistics, subprocess, sys, tempfile, time

TORCH = """
import json, sys, torch
from transformers import AutoModelForCausalLM
d, batches, steps, threads, only = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5] == "layers"
torch.set_num_threads(threads)
m = AutoModelForCausalLM.from_pretrained(d, dtype=torch.float32).train()
for n, p in m.named_parameters():
    p.requires_grad_(n.startswith("model.layers.") or not only)
ps = [p for p in m.parameters() if p.requires_grad]
opt = torch.optim.AdamW(ps, lr=1e-4, weight_decay=0.0)
for line in open(batches).read().splitlines()[:steps]:
    (batch,) = json.loads(line)["micro"]
    x = torch.tensor(batch["ids"]).view(len(batch["lengths"]), -1)
    loss = m(x, labels=x).loss
    opt.zero_grad(); loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(ps, 1.0)
    opt.step()
print(loss.item(), norm.item())
"""


def make(root):
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM
    torch.manual_seed(0)
    size = dict(vocab_size=32000, hidden_size=512, intermediate_size=1408, num_hidden_layers=2, num_attention_heads=8,
                num_key_value_heads=2, max_position_embeddings=2048)
    LlamaForCausalLM(LlamaConfig(**size, tie_word_embeddings=False)).save_pretrained(root)
    tok = Tokenizer(models.WordLevel({f"w{i}": i for i in range(32000)}, unk_token="w0"))
    tok.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tok.save(str(root / "tokenizer.json"))
    g = torch.Generator().manual_seed(1)
    with open(root / "data.jsonl", "w") as f:
        for _ in range(8 * 64):  # and the end of text makes 256
            ids = torch.randint(3, 32000, (255,), generator=g).tolist()
            f.write(json.dumps({"text": " ".join(f"w{i}" for i in ids)}) + "\n")


def measured(argv):
    """CPU seconds, peak MiB and output of a process."""
    start = time.time()
    with tempfile.TemporaryFile("w+") as out:
        child = subprocess.Popen(argv, stdout=out, stderr=subprocess.PIPE)
        _, status, usage = os.wait4(child.pid, 0)
        out.seek(0)
        text = out.read()
    if status:
        sys.exit(f"{argv[0]}: {child.stderr.read().decode()[-2000:]}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, time.time() - start, text


def main():
    binary = sys.argv[1]
    steps, rounds = int((sys.argv[2:] or ["16"])[0]), int((sys.argv[3:] or ["3"])[0])
    with tempfile.TemporaryDirectory() as tmp:
        tmp, made = f"{tmp}/model", tmp
        root = pathlib.Path(tmp)
        # In a process of its own: a child's peak memory begins with what its parent had.
        subprocess.run([sys.executable, __file__, "--make", tmp], check=True)
        model = json.loads((root / "config.json").read_text())
        names = [f"model.layers.{i}.{n}.weight" for i in range(model["num_hidden_layers"]) for n in
                 ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj",
                  "mlp.up_proj", "mlp.down_proj", "input_layernorm", "post_attention_layernorm"]]
        rest = ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]

        def spec(kind, count, threads, recompute):
            path = root / "spec.json"
            for place in ("out", "work"):
                shutil.rmtree(f"{made}/{place}", ignore_errors=True)
            path.write_text(json.dumps(dict(model=tmp, tokenizer=tmp, data=[f"{tmp}/data.jsonl"], epochs=1, max_steps=count,
                sequence_length=256, micro_batch=8, learning_rate=1e-4, schedule="constant", threads=threads,
                trainable=names + (rest if kind == "all" else []), recompute=recompute, out=f"{made}/out", work=f"{made}/work")))
            return str(path)

        dump = subprocess.run([binary, "--batches", spec("all", None, 1, False), str(steps)], capture_output=True, text=True, check=True)
        batches = root / "batches.jsonl"
        batches.write_text("".join(l + "\n" for l in dump.stdout.splitlines() if '"batches"' in l))
        for kind in ("layers", "all"):
            for threads in (1, 2):
                if sys.argv[4:] and f"{kind}-{threads}" not in sys.argv[4:]:
                    continue
                def run(who, count):
                    if who == "torch":
                        return measured([sys.executable, "-c", TORCH, tmp, str(batches), str(count), str(threads), kind])
                    return measured([binary, spec(kind, count, threads, who == "ours, recomputing")])
                results = {"ours": [], "torch": [], "ours, recomputing": []}
                peaks, last = {}, {}
                for _ in range(rounds):
                    for who in results:
                        one, all_ = run(who, 1), run(who, steps)
                        results[who].append((steps - 1) * 2048 / (all_[0] - one[0]))
                        peaks[who] = max(peaks.get(who, 0), all_[1])
                        last[who] = all_[3].strip().splitlines()
                mid = {who: statistics.median(r) for who, r in results.items()}
                for who in results:
                    print(f"{kind:6} {threads} thread(s) {who:18} {mid[who]:7.0f} tokens per CPU-second "
                          f"({mid[who] / mid['torch']:.2f} of torch), peak {peaks[who]:.0f} MiB", flush=True)
                step = json.loads(last["ours"][-2])
                print(f"       last step: ours {step['loss']:.6f} {step['grad_norm']:.6f}, torch {last['torch'][-1]}")


if sys.argv[1] == "--make":
    make(pathlib.Path(sys.argv[2]))
else:
    main()
