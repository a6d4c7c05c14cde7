# `just check` is what CI runs.
default: check

check:
    .ci/run

test:
    cargo test

demo:
    bash fixtures/demo.sh

# The surgery verbs on tiny models.
verbs:
    bash fixtures/verbs.sh

# Built-in trainer against torch: losses, gradient norms; then speed and memory.
trainer python:
    cargo build --release --example train
    {{python}} tests/peers/check_trainer.py target/release/examples/train
    {{python}} benches/trainer.py target/release/examples/train

# Native files against the schemas of the real trainers.
backends python backend:
    {{python}} tests/peers/check_backends.py {{backend}}

# Kernels: GB/s for every kernel and instruction set of this CPU.
bench-kernels:
    cargo bench --bench kernels

# End to end against `cp` and `cat`, on generated 2.2 GB checkpoints; peers too where PEERS names their Python.
bench dir peers="":
    cargo build --release --bin elo-surgery --example make_checkpoint --example fake_hub
    PEERS={{peers}} bash benches/end_to_end.sh {{dir}} target/release/elo-surgery

# Everything that needs a GPU: conformance, GB/s of each kernel against a copy, end to end against cp and torch.
gpu-check dir="target/gpu-check" peers="":
    PEERS={{peers}} bash benches/gpu_check.sh {{dir}}

# The CUDA kernels: PTX made anew; `just kernels --check` is what CI runs.
kernels *arguments:
    bash kernels/build.sh {{arguments}}

# The kill harness at release strength.
kill rounds="200":
    ELO_KILL_ROUNDS={{rounds}} cargo test --release --test it crash -- --nocapture

# Reference logits of extracted, injected and chat-vector models in transformers (needs torch and transformers 5).
logits python:
    {{python}} tests/peers/check_logits.py target/release/elo-surgery fixtures/golden

# What expanded, restacked, pruned and upcycled models compute, in transformers (needs torch and transformers 5).
growth python:
    {{python}} tests/peers/check_growth.py target/release/elo-surgery
