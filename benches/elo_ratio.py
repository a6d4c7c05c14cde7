"""ELO pretraining against full fine-tuning: tokens a second, and what counting FLOPs lets expect.

    python benches/elo_ratio.py PROJECT ELO_SURGERY

PROJECT is a finished run with the control `full-fine-tuning` (fixtures/demo after `fixtures/demo.sh`). Both stages were trained by the
same backend on the same data in one run; the FLOPs are those of `elo-surgery plan`.
"""

import json
import subprocess
import sys
from pathlib import Path


def main():
    project, program = Path(sys.argv[1]), str(Path(sys.argv[2]).resolve())
    run = ["status", "plan"]
    record, plan = (json.loads(subprocess.run([program, verb, "--json"], cwd=project, check=True,
                                              capture_output=True, text=True).stdout) for verb in run)
    stages = {stage["name"]: stage for stage in record["stages"]}
    elo, full = stages["pretrain"], stages["control/full-fine-tuning/pretrain"]

    def speed(stage):
        """Tokens a second over the whole stage, from its own events: start-up and checks are not training."""
        steps = [json.loads(line) for line in (project / "work" / stage["events"]).read_text().splitlines()]
        steps = [step for step in steps if step["event"] == "step"]
        last = 0
        seconds = 0.0
        for step in steps:
            seconds += (step["tokens"] - last) / step["tok_s"]
            last = step["tokens"]
        return last / seconds

    measured = speed(elo) / speed(full)
    outlook = plan["outlook"]
    pretrain = next(stage for stage in outlook["stages"] if stage["stage"] == "pretrain")["estimate"]
    expected = outlook["full_fine_tuning"]["flops_per_token"] / pretrain["flops_per_token"]
    print(f"tokens/s: pretrain {speed(elo):.0f}, full fine-tuning {speed(full):.0f}: {measured:.2f} x")
    print(f"FLOPs a token: pretrain {pretrain['flops_per_token']:.3g}, full {outlook['full_fine_tuning']['flops_per_token']:.3g}: {expected:.2f} x")
    print(f"measured / expected: {measured / expected:.2f}")


if __name__ == "__main__":
    main()
