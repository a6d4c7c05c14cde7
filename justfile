# `just check` is what CI runs.
default: check

check:
    .ci/run

test:
    cargo test

demo:
    bash fixtures/demo.sh

# Kernels: GB/s for every kernel and instruction set of this CPU.
bench-kernels:
    cargo bench --bench kernels

# End to end against `cp` and `cat`, on generated 2.2 GB checkpoints; peers too where PEERS names their Python.
bench dir peers="":
    cargo build --release --bin elo-surgery --example make_checkpoint
    PEERS={{peers}} bash benches/end_to_end.sh {{dir}} target/release/elo-surgery

# The kill harness at release strength.
kill rounds="200":
    ELO_KILL_ROUNDS={{rounds}} cargo test --release --test it crash -- --nocapture

# Reference logits of extracted, injected and chat-vector models in transformers (needs torch and transformers 5).
logits python:
    {{python}} tests/peers/check_logits.py target/release/elo-surgery fixtures/golden
