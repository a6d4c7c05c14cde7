"""An axolotl plugin that appends elo-surgery's events to $ELO_EVENTS. It changes nothing about the training."""

import json
import math
import os
import time

from axolotl.integrations.base import BasePlugin
from transformers import TrainerCallback


def finite(value):
    """A number, or None: transformers 5 logs numbers as strings, and JSON has no NaN."""
    try:
        value = float(value)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


class Teller(TrainerCallback):
    """One JSON line an event, appended with one write, by the first process only."""

    def __init__(self, path):
        self.path = path

    def emit(self, state, event, **fields):
        if not state.is_world_process_zero:
            return
        fields = {key: value for key, value in fields.items() if value is not None}
        line = json.dumps({"t": round(time.time(), 3), "event": event, **fields}) + "\n"
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(handle, line.encode())
        finally:
            os.close(handle)

    def on_train_begin(self, args, state, control, **_):
        self.emit(state, "start", steps_total=state.max_steps, resumed_at=state.global_step or None)

    def on_log(self, args, state, control, logs=None, **_):
        if logs and "loss" in logs:
            self.emit(
                state,
                "step",
                step=state.global_step,
                loss=finite(logs["loss"]),
                lr=finite(logs.get("learning_rate")),
                grad_norm=finite(logs.get("grad_norm")),
                tokens=int(state.num_input_tokens_seen or 0) or None,
            )

    def on_save(self, args, state, control, **_):
        where = os.path.join(args.output_dir, f"checkpoint-{state.global_step}")
        self.emit(state, "checkpoint", step=state.global_step, dir=where)


class EloPlugin(BasePlugin):
    """Adds the callback where there is somewhere to tell."""

    def add_callbacks_post_trainer(self, cfg, trainer):
        path = os.environ.get("ELO_EVENTS")
        return [Teller(path)] if path else []
