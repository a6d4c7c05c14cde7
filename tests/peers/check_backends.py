#!/usr/bin/env python3
"""Holds the native files of the training backends to the real schemas. Run by hand, no GPU needed.

    ELO_NATIVE=/tmp/native cargo test --lib backend::tests::native_files_and_commands
    PYTHON tests/peers/check_backends.py axolotl /tmp/native         # in an environment with axolotl
    PYTHON tests/peers/check_backends.py llama-factory /tmp/native   # with llamafactory
    PYTHON tests/peers/check_backends.py trl /tmp/native             # with trl

axolotl: `validate_config` with the capabilities of eight H100 pretended, and no key that its schema would drop; patterns
against its own `LayerNamePattern`. LLaMA-Factory: `get_train_args`, which refuses unknown keys. TRL: `SFTConfig`.
"""

import importlib.metadata
import json
import os
import sys
from pathlib import Path
from unittest import mock

os.environ.update(AXOLOTL_DO_NOT_TRACK="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")


def axolotl(directory):
    import yaml
    from axolotl.integrations.base import PluginManager
    from axolotl.utils.config import prepare_plugins, validate_config
    from axolotl.utils.dict import DictDefault
    from axolotl.utils.freeze import LayerNamePattern

    sys.path.insert(0, str(directory))
    sys.modules.pop("elo_axolotl", None)
    PluginManager._instance = None
    with open(directory / "axolotl.yml", encoding="utf-8") as file:
        given = yaml.safe_load(file)
    # The DeepSpeed file is read: it lies here and not where the run would be.
    if "deepspeed" in given:
        given["deepspeed"] = str(directory / Path(given["deepspeed"]).name)
    config = DictDefault(given)
    prepare_plugins(config)
    validated = validate_config(
        config,
        capabilities={"bf16": True, "tf32": True, "fp8": True, "n_gpu": 8, "compute_capability": "sm_90"},
        env_capabilities={"torch_version": "2.11.0"},
    )
    dropped = sorted(set(given) - set(validated.to_dict()))
    assert not dropped, f"the schema drops {dropped}"
    for pattern in given.get("unfrozen_parameters", []):
        compiled = LayerNamePattern(pattern)
        layer = int(pattern.split(".")[2])
        hit = [n for n in range(100) if compiled.match(f"model.layers.{n}.mlp.up_proj.weight")]
        assert hit == [layer], f"{pattern} matches layers {hit}"
        for other in ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"):
            assert not compiled.match(other), f"{pattern} matches {other}"
    sys.path.remove(str(directory))


def llama_factory(directory):
    import yaml
    from llamafactory.data.parser import get_dataset_list
    from llamafactory.hparams import get_infer_args, get_train_args
    from transformers import TrainingArguments
    from transformers.training_args import ParallelMode

    with open(directory / "llama-factory.yaml", encoding="utf-8") as file:
        given = yaml.safe_load(file)
    given["dataset_dir"] = str(directory)
    if "deepspeed" in given:
        given["deepspeed"] = str(directory / Path(given["deepspeed"]).name)
    # As under torchrun, which always starts it.
    mode = ParallelMode.DISTRIBUTED
    with mock.patch.object(TrainingArguments, "parallel_mode", new_callable=mock.PropertyMock, return_value=mode):
        model, data, training, finetuning, _ = get_train_args(given)
    # Packed chats are padded by one token, to a length that must be a multiple of 8; packed text is not.
    assert data.cutoff_len + (given["stage"] == "sft") == 8192, data.cutoff_len
    assert finetuning.stage == given["stage"] and model.model_name_or_path
    datasets = get_dataset_list(data.dataset, data.dataset_dir)
    assert [d.load_from for d in datasets] == ["file"] * len(datasets)
    if (directory / "export.yaml").exists():
        with open(directory / "export.yaml", encoding="utf-8") as file:
            get_infer_args(yaml.safe_load(file))


def trl(directory):
    import dataclasses

    from trl import SFTConfig
    from transformers.training_args import OptimizerNames

    with open(directory / "trl.json", encoding="utf-8") as file:
        native = json.load(file)
    known = {field.name for field in dataclasses.fields(SFTConfig)}
    unknown = sorted(set(native["sft"]) - known)
    assert not unknown, f"SFTConfig has no {unknown}"
    sft = {key: value for key, value in native["sft"].items() if key != "deepspeed"}
    assert sft["optim"] in {name.value for name in OptimizerNames}
    SFTConfig(output_dir="/tmp/elo-check", **{**sft, "use_cpu": True, "tf32": None})


def accelerate(directory):
    """accelerate's own reader, where there is a file for it."""
    file = directory / "accelerate.yaml"
    if file.exists():
        from accelerate.commands.config.config_args import load_config_from_file

        load_config_from_file(str(file))


def main():
    backend, root = sys.argv[1], Path(sys.argv[2])
    check = {"axolotl": axolotl, "llama-factory": llama_factory, "trl": trl}[backend]
    package = {"llama-factory": "llamafactory"}.get(backend, backend)
    failures = 0
    directories = sorted(root.glob(f"{backend}-*"))
    assert directories, f"nothing for {backend} in {root}"
    # Without a GPU the libraries refuse bf16 before they look at anything else.
    with (
        mock.patch("transformers.training_args.is_torch_bf16_gpu_available", return_value=True),
        mock.patch.dict(os.environ, {"LOCAL_RANK": "-1"}),
    ):
        for directory in directories:
            try:
                check(directory)
                accelerate(directory)
                print(f"ok    {directory.name}")
            except Exception as error:
                failures += 1
                print(f"FAIL  {directory.name}: {type(error).__name__}: {error}")
    print(f"{backend} {importlib.metadata.version(package)}: {len(directories) - failures} of {len(directories)} pass")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
