#!/usr/bin/env python3
"""Trains one stage with TRL's SFTTrainer: elo_trl.py --spec spec.json --config trl.json

Reads the spec of the elo-surgery backend protocol (version 1) and the native arguments beside it, appends events to
out.events, writes the model to out.model by way of a temporary name and the result file last. Exit status: 0 complete,
64 bad spec or configuration, 65 bad data, 69 something is missing, 75 interrupted with a checkpoint.
"""

import argparse
import importlib.util
import json
import math
import os
import shutil
import signal
import sys
import time
from pathlib import Path

CONFIG, DATA, MISSING, INTERRUPTED = 64, 65, 69, 75
LEADER = int(os.environ.get("RANK", "0")) == 0
DTYPES = {"bf16": "bfloat16", "f16": "float16", "f32": "float32", "fp32": "float32"}


class Refused(Exception):
    """Ends the run with an exit status and an error event."""

    def __init__(self, status, kind, message):
        super().__init__(message)
        self.status, self.kind = status, kind


def finite(value):
    """A number, or None: transformers 5 logs numbers as strings, and JSON has no NaN."""
    try:
        value = float(value)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


class Events:
    """JSON lines, each appended with one write, by the leader only."""

    def __init__(self, path):
        self.path = path

    def emit(self, event, **fields):
        if not LEADER:
            return
        fields = {key: value for key, value in fields.items() if value is not None}
        line = json.dumps({"t": round(time.time(), 3), "event": event, **fields}) + "\n"
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(handle, line.encode())
        finally:
            os.close(handle)


def write_json(path, value):
    """Written whole or not at all."""
    partial = Path(f"{path}.tmp")
    with open(partial, "w", encoding="utf-8") as out:
        json.dump(value, out, indent=2)
        out.write("\n")
        out.flush()
        os.fsync(out.fileno())
    os.replace(partial, path)


def newest_checkpoint(work):
    """The newest checkpoint that was written to its end."""
    whole = []
    for directory in Path(work).glob("checkpoint-*"):
        number = directory.name.rpartition("-")[2]
        if (
            number.isdigit()
            and (directory / "trainer_state.json").is_file()
            and not (directory / "checkpoint-is-incomplete.txt").exists()
        ):
            whole.append((int(number), directory))
    return max(whole)[1] if whole else None


def freeze(model, spec):
    """Leaves exactly the listed tensors trainable. Returns how many parameters that is."""
    parameters = dict(model.named_parameters())
    wanted = {name for name in spec["trainable"]["tensors"] if not name.endswith("rotary_emb.inv_freq")}
    if spec["model"]["tied"] and "lm_head.weight" not in parameters:
        wanted.discard("lm_head.weight")
    missing = sorted(wanted - parameters.keys())
    if missing:
        raise Refused(
            CONFIG,
            "config",
            f"{len(missing)} of {len(wanted)} trainable tensors are no parameters of the model in transformers, "
            f"first `{missing[0]}`: its classes rename or fuse tensors; use another backend",
        )
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in wanted)
    count = sum(p.numel() for p in parameters.values() if p.requires_grad)
    if count == 0:
        raise Refused(CONFIG, "config", "nothing is trainable")
    return count


def adapters(spec, arguments):
    """Adapters on exactly the modules whose weights are listed."""
    from peft import LoraConfig

    modules = sorted(name[: -len(".weight")] for name in spec["trainable"]["tensors"] if name.endswith(".weight"))
    if not modules:
        raise Refused(CONFIG, "config", "no module is named for low-rank adapters")
    return LoraConfig(task_type="CAUSAL_LM", target_modules=modules, **arguments)


def records(spec, cache):
    """The data files as one dataset."""
    from datasets import load_dataset

    files = [file["path"] for file in spec["data"]]
    data = load_dataset("json", data_files=files, split="train", cache_dir=cache)
    column = "text" if spec["data"][0]["format"] == "text" else "messages"
    if len(data) == 0:
        raise Refused(DATA, "data", "the data has no records")
    if column not in data.column_names:
        raise Refused(DATA, "data", f"the data has no column `{column}`")
    return data.select_columns([column])


def save(trainer, model, spec):
    """The trained model under a temporary name, then in place. Every process takes part, the leader writes."""
    import torch

    out = Path(spec["out"]["model"])
    partial = Path(f"{out}.tmp")
    dtype = getattr(torch, DTYPES[spec["model"]["dtype"]])
    if spec["trainable"]["method"] == "lora":
        trained = trainer.accelerator.unwrap_model(trainer.model).merge_and_unload()
        state = trained.state_dict()
    else:
        trained = model
        state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if not LEADER:
        return
    shutil.rmtree(partial, ignore_errors=True)
    # Masters are wider than the model was: back to its dtype, so that frozen tensors come out as they went in.
    state = {name: t.to("cpu", dtype) if t.is_floating_point() else t.to("cpu") for name, t in state.items()}
    trained.save_pretrained(partial, state_dict=state)
    # Training changes no architecture: the config stays as it came in.
    shutil.copyfile(Path(spec["model"]["dir"]) / "config.json", partial / "config.json")
    prefixes = ("tokenizer", "special_tokens_map", "added_tokens", "vocab", "merges", "chat_template")
    for file in Path(spec["tokenizer"]["dir"]).iterdir():
        if file.is_file() and file.name.startswith(prefixes):
            shutil.copyfile(file, partial / file.name)
    generation = Path(spec["model"]["dir"]) / "generation_config.json"
    if generation.is_file():
        shutil.copyfile(generation, partial / generation.name)
    if out.is_dir():
        shutil.rmtree(out)
    os.replace(partial, out)


def arguments_for_this_machine(native, events):
    """The native arguments, less what needs a GPU where there is none."""
    import torch

    sft = dict(native["sft"])
    if sft.get("use_liger_kernel") and importlib.util.find_spec("liger_kernel") is None:
        sft["use_liger_kernel"] = False
        events.emit("warn", msg="liger-kernel is not installed: logits of whole sequences are kept in memory")
    if not torch.cuda.is_available():
        sft.update(use_cpu=True, bf16=False, tf32=None, use_liger_kernel=False)
        if "8bit" in sft.get("optim", ""):
            sft["optim"] = "adamw_torch"
            events.emit("warn", msg="no GPU: AdamW keeps its states in f32")
    return sft


def attention(spec):
    """Flash attention where it is installed; its documents are kept apart by position, as sdpa's are."""
    import torch

    if torch.cuda.is_available() and spec["train"]["compute"] == "bf16":
        if importlib.util.find_spec("flash_attn") is not None:
            return "flash_attention_2"
    return "sdpa"


def train(spec, native, events):
    import torch
    import transformers
    import trl
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback, set_seed

    set_seed(spec["train"]["seed"])
    work = Path(spec["out"]["work"])
    work.mkdir(parents=True, exist_ok=True)
    trust = bool(native.get("trust_remote_code", False))
    dtype = getattr(torch, DTYPES[native["dtype"]]) if torch.cuda.is_available() else torch.float32
    tokenizer = AutoTokenizer.from_pretrained(spec["tokenizer"]["dir"], trust_remote_code=trust)
    # Built before the model: ZeRO-3 wants to know of the arguments when weights are loaded.
    arguments = trl.SFTConfig(output_dir=str(work), **arguments_for_this_machine(native, events))
    model = AutoModelForCausalLM.from_pretrained(
        spec["model"]["dir"], dtype=dtype, attn_implementation=attention(spec), trust_remote_code=trust
    )
    model.config.use_cache = False
    lora = None
    if spec["trainable"]["method"] == "lora":
        lora = adapters(spec, native["lora"])
    else:
        freeze(model, spec)

    class Stopper(TrainerCallback):
        """On SIGTERM, a checkpoint and an end after the step, on which all processes agree."""

        def __init__(self):
            self.told = False
            signal.signal(signal.SIGTERM, self.tell)

        def tell(self, *_):
            self.told = True

        def on_step_end(self, args, state, control, **_):
            told = self.told
            if torch.distributed.is_available() and torch.distributed.is_initialized():
                flag = torch.tensor([int(told)], device=args.device)
                torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
                told = bool(flag.item())
            if told:
                control.should_save = control.should_training_stop = True

    class Teller(TrainerCallback):
        """Tells what the Trainer does."""

        def on_train_begin(self, args, state, control, **_):
            resumed = state.global_step or None
            events.emit("start", steps_total=state.max_steps, resumed_at=resumed)
            self.begun, self.tokens = time.monotonic(), state.num_input_tokens_seen

        def on_log(self, args, state, control, logs=None, **_):
            if not logs or "loss" not in logs:
                return
            seen = state.num_input_tokens_seen
            rate = (seen - self.tokens) / max(time.monotonic() - self.begun, 1e-9)
            events.emit(
                "step",
                step=state.global_step,
                loss=finite(logs["loss"]),
                lr=finite(logs.get("learning_rate")),
                grad_norm=finite(logs.get("grad_norm")),
                tokens=int(seen) or None,
                tok_s=round(rate, 1) if seen else None,
            )
            if finite(logs["loss"]) is None:
                events.emit("error", kind="nan", msg=f"the loss of step {state.global_step} is not a number")

        def on_save(self, args, state, control, **_):
            where = work / f"checkpoint-{state.global_step}"
            events.emit("checkpoint", step=state.global_step, dir=str(where))

    trainer = trl.SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=records(spec, str(work / "cache")),
        processing_class=tokenizer,
        peft_config=lora,
        callbacks=[Stopper(), Teller()],
    )
    if not any(p.requires_grad for p in trainer.model.parameters()):
        raise Refused(CONFIG, "config", "nothing is trainable")
    resume = newest_checkpoint(work) if spec["resume"] == "auto" else None
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)

    state = trainer.state
    complete = state.max_steps > 0 and state.global_step >= state.max_steps
    losses = [finite(entry["loss"]) for entry in state.log_history if "loss" in entry]
    result = {
        "protocol": 1,
        "status": "complete" if complete else "interrupted",
        "steps": state.global_step,
        "steps_total": state.max_steps,
        "tokens": int(state.num_input_tokens_seen) or None,
        "final_loss": losses[-1] if losses else None,
        "versions": {"trl": trl.__version__, "transformers": transformers.__version__, "torch": torch.__version__},
    }
    if complete:
        save(trainer, model, spec)
        result["model"] = spec["out"]["model"]
    checkpoint = newest_checkpoint(work)
    if checkpoint:
        result["resume"] = str(checkpoint)
    if LEADER:
        write_json(spec["out"]["result"], result)
    events.emit("end", status=result["status"])
    if complete:
        return 0
    return INTERRUPTED if checkpoint else 1


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spec", required=True)
    parser.add_argument("--config", required=True)
    options = parser.parse_args()
    with open(options.spec, encoding="utf-8") as file:
        spec = json.load(file)
    with open(options.config, encoding="utf-8") as file:
        native = json.load(file)
    if spec.get("protocol") != 1:
        print(f"protocol {spec.get('protocol')} is not 1", file=sys.stderr)
        return CONFIG
    events = Events(spec["out"]["events"])
    try:
        return train(spec, native, events)
    except Refused as refused:
        events.emit("error", kind=refused.kind, msg=str(refused))
        print(f"error: {refused}", file=sys.stderr)
        return refused.status
    except ImportError as missing:
        events.emit("error", kind="config", msg=f"missing: {missing}")
        print(f"error: {missing}", file=sys.stderr)
        return MISSING
    except RuntimeError as error:
        kind = "oom" if "out of memory" in str(error).lower() else "config"
        events.emit("error", kind=kind, msg=str(error)[:1000])
        raise


if __name__ == "__main__":
    sys.exit(main())
