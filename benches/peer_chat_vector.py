"""C + (A - B) as a user writes it today: shard by shard, float32 arithmetic, with torch and safetensors.

    python benches/peer_chat_vector.py A B C OUT [DEVICE]

DEVICE (`cuda`) is where the arithmetic is done [default: cpu].
"""

import json
import shutil
import sys
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

INDEX = "model.safetensors.index.json"


def main(a, b, c, out, device):
    out.mkdir()
    maps = {model: json.loads((model / INDEX).read_text())["weight_map"] for model in (a, b, c)}
    shards = {model / name: safe_open(model / name, "pt") for model in maps for name in maps[model].values()}
    for shard in sorted(set(maps[c].values())):
        result = {}
        for name in (name for name in maps[c] if maps[c][name] == shard):
            x, y, z = (shards[model / maps[model][name]].get_tensor(name).to(device) for model in (a, b, c))
            result[name] = (z.float() + (x.float() - y.float())).to(z.dtype).cpu()
        save_file(result, out / shard, metadata={"format": "pt"})
    for name in ("config.json", INDEX):
        shutil.copy(c / name, out)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:5]), *(sys.argv[5:] or ["cpu"]))
