#!/usr/bin/env python3
"""Holds pulls, views, pushes and the cache to huggingface_hub's own, on a Hub on this machine. Not part of CI: needs
huggingface_hub (2.x; hf_xet for the xet rows).

    cargo build --bin elo-surgery --example fake_hub
    python tests/peers/check_hub.py target/debug/elo-surgery target/debug/examples/fake_hub

* what `pull` wrote, huggingface_hub finds offline, whole, and `scan_cache_dir` has nothing to complain of, partly fetched models
  in the cache included;
* what huggingface_hub wrote, `pull` and `extract --offline` take without a request for bytes;
* what `push` published, by each way of uploading, huggingface_hub downloads, and its own upload of the same directory gives
  files of the same names and hashes.
"""

import json
import os
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TOKEN = "hf_CanaryThatMustNeverBeSeenAnywhere1"
LAYERS, HIDDEN = 3, 64


def make_model(root):
    """A model of two shards, the form of Llama."""
    shapes = {"model.embed_tokens.weight": [256, HIDDEN], "model.norm.weight": [HIDDEN], "lm_head.weight": [256, HIDDEN]}
    for layer in range(LAYERS):
        at = f"model.layers.{layer}"
        for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"):
            shapes[f"{at}.{name}.weight"] = [HIDDEN, HIDDEN]
        for name, shape in (("gate", [128, HIDDEN]), ("up", [128, HIDDEN]), ("down", [HIDDEN, 128])):
            shapes[f"{at}.mlp.{name}_proj.weight"] = shape
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{at}.{name}.weight"] = [HIDDEN]
    root.mkdir(parents=True)
    names, weight_map, total = list(shapes), {}, 0
    for number, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), 1):
        file, header, data = f"model-{number:05}-of-00002.safetensors", {}, b""
        for name in part:
            count = 1
            for extent in shapes[name]:
                count *= extent
            header[name] = {"dtype": "BF16", "shape": shapes[name], "data_offsets": [len(data), len(data) + 2 * count]}
            data += os.urandom(2 * count)
            weight_map[name] = file
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        (root / file).write_bytes(struct.pack("<Q", len(text)) + text + data)
        total += len(data)
    (root / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map})
    )
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": 128,
        "num_attention_heads": 4, "num_key_value_heads": 4, "num_hidden_layers": LAYERS, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False, "torch_dtype": "bfloat16", "vocab_size": 256,
    }
    (root / "config.json").write_text(json.dumps(config))
    (root / "sub").mkdir()
    (root / "sub/notes.txt").write_text("kept\n")


class Hub:
    """The fake Hub as a program."""

    def __init__(self, program, temp, transfer):
        self.log = temp / f"log-{transfer}.jsonl"
        address = temp / f"address-{transfer}"
        address.unlink(missing_ok=True)
        self.process = subprocess.Popen(
            [program, "--root", temp / "root", "--log", self.log, "--address", address, "--transfer", transfer],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
        )
        for _ in range(200):
            if address.exists() and address.read_text():
                break
            time.sleep(0.05)
        self.endpoint = address.read_text()

    def requests(self):
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def end(self):
        self.process.kill()
        self.process.wait()


def files(root):
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def check(fact, what):
    print(("ok      " if fact else "FAILED  ") + what)
    check.failed |= not fact


check.failed = False


def python(endpoint, home, code, *arguments):
    """Runs huggingface_hub in a process of its own: it reads its environment once."""
    environment = dict(os.environ, HF_ENDPOINT=endpoint, HF_HOME=str(home), HF_TOKEN=TOKEN, HF_HUB_DISABLE_TELEMETRY="1")
    environment.pop("HF_HUB_OFFLINE", None)
    run = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], env=environment, capture_output=True, text=True, check=False
    )
    if run.returncode:
        print(run.stderr)
        check(False, f"python ended with {run.returncode}")
        return None
    return json.loads(run.stdout.splitlines()[-1])


DOWNLOAD = """
import json, sys
from huggingface_hub import snapshot_download
print(json.dumps(snapshot_download(sys.argv[1], local_files_only=sys.argv[2] == "offline")))
"""
SCAN = """
import json
from huggingface_hub import scan_cache_dir
found = scan_cache_dir()
print(json.dumps([[str(w) for w in found.warnings], sorted(r.repo_id for r in found.repos)]))
"""
UPLOAD = """
import json, sys
from huggingface_hub import HfApi
api = HfApi()
api.create_repo(sys.argv[2], exist_ok=True)
api.upload_folder(repo_id=sys.argv[2], folder_path=sys.argv[1])
print(json.dumps(True))
"""
TREE = """
import json, sys
from huggingface_hub import HfApi
entries = HfApi().list_repo_tree(sys.argv[1], recursive=True)
print(json.dumps({e.path: (e.lfs.sha256 if e.lfs else e.blob_id) for e in entries if hasattr(e, "blob_id")}))
"""


def main():
    program, fake = (Path(argument).resolve() for argument in sys.argv[1:3])
    with tempfile.TemporaryDirectory() as temp:
        temp = Path(temp)
        model = temp / "root/acme/model"
        make_model(model)
        right = files(model)
        hub = Hub(fake, temp, "basic")

        def elo(home, *arguments, endpoint=None):
            environment = dict(os.environ, HF_ENDPOINT=endpoint or hub.endpoint, HF_HOME=str(home), HF_TOKEN=TOKEN)
            run = subprocess.run([program, *arguments], env=environment, capture_output=True, text=True, check=False)
            check(run.returncode == 0, f"elo-surgery {' '.join(map(str, arguments))}")
            if run.returncode:
                print(run.stdout, run.stderr)

        ours, theirs = temp / "ours", temp / "theirs"
        elo(ours, "pull", "acme/model")
        found = python(hub.endpoint, ours, DOWNLOAD, "acme/model", "offline")
        check(found and files(Path(found)) == right, "huggingface_hub finds what was pulled, offline")
        check(python(hub.endpoint, ours, SCAN) == [[], ["acme/model"]], "scan_cache_dir of what was pulled")

        part = temp / "part"
        elo(part, "extract", "acme/model", "--layers", "1", "--out", temp / "one")
        scanned = python(hub.endpoint, part, SCAN)
        check(scanned is not None and not scanned[0], f"scan_cache_dir of a partly fetched model: {scanned}")
        found = python(hub.endpoint, part, DOWNLOAD, "acme/model", "online")
        check(found and files(Path(found)) == right, "huggingface_hub completes a partly fetched model")
        elo(part, "extract", "acme/model", "--layers", "1", "--out", temp / "two", "--offline")
        same = {k: v for k, v in files(temp / "one").items() if k.endswith((".safetensors", "config.json"))}
        again = {k: v for k, v in files(temp / "two").items() if k.endswith((".safetensors", "config.json"))}
        check(same == again, "an extract before and after that")

        python(hub.endpoint, theirs, DOWNLOAD, "acme/model", "online")
        before = len(hub.requests())
        elo(theirs, "pull", "acme/model")
        elo(theirs, "extract", "acme/model", "--layers", "2", "--out", temp / "three", "--offline")
        taken = [r for r in hub.requests()[before:] if "/cdn/" in r["target"] or "resolve-cache" in r["target"]]
        check(not taken, f"nothing of python's cache is fetched again: {taken}")
        hub.end()

        for transfer in ("basic", "multipart", "xet"):
            hub = Hub(fake, temp, transfer)
            elo(temp / "push", "push", model, "acme/pushed", "--no-model-card")
            python(hub.endpoint, temp / "push", UPLOAD, model, "acme/theirs")
            trees = [python(hub.endpoint, temp / "push", TREE, name) for name in ("acme/pushed", "acme/theirs")]
            mine, other = ({k: v for k, v in (tree or {}).items() if k != "README.md"} for tree in trees)
            check(mine and mine == other, f"{transfer}: push and upload_folder publish the same")
            found = python(hub.endpoint, temp / f"fresh-{transfer}", DOWNLOAD, "acme/pushed", "online")
            there = files(Path(found)) if found else {}
            check(all(there.get(k) == v for k, v in right.items()), f"{transfer}: huggingface_hub downloads what was pushed")
            hub.end()
    sys.exit(1 if check.failed else 0)


main()
