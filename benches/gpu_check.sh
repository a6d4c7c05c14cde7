#!/usr/bin/env bash
# gpu_check.sh DIR: everything that needs a GPU, in one go: conformance of the kernels, their speed, the way end to end.
#
#   PEERS=python      a Python with torch and safetensors: measures it on the GPU too
#   SECONDS_EACH=0.5  time of each measurement of the kernels
#   RUNS=3            rounds of the end-to-end table
#   SANITIZE=1        0 leaves compute-sanitizer out
#
# Prints Markdown and fails if any part fails. Needs 10 GB in DIR and an NVIDIA driver; compute-sanitizer (CUDA toolkit) where there
# is one.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
dir=${1:?directory for the checkpoints}
cd "$here/.."
failed=()

section() { printf '\n## %s\n\n' "$*"; }
# part NAME COMMAND: a line that says whether it passed; the rest goes on if it did not.
part() {
    local name=$1; shift
    if "$@"; then printf '\n%s: passed\n' "$name"; else printf '\n%s: FAILED\n' "$name"; failed+=("$name"); fi
}

cargo build --release --bin elo-surgery --example make_checkpoint --example gpu
cargo test --release --test it --no-run
tests=$(cargo test --release --test it --no-run --message-format json |
    sed -n '/"name":"it"/ s/.*"executable":"\([^"]*\)".*/\1/p')

section "Machine"
date -u +%F
nvidia-smi --query-gpu=name,driver_version,pcie.link.gen.current,pcie.link.width.current --format=csv || true

section "Conformance: the bytes of the reference"
part "conformance on the GPU" "$tests" --exact conformance::cuda --ignored
part "large tiles and tensors in GPU memory" "$tests" --exact conformance::cuda_large --ignored
part "whole plans on the GPU" "$tests" --exact devices::cuda --ignored
part "auto: CPU and GPU side by side" "$tests" --exact devices::auto --ignored --nocapture

section "compute-sanitizer"
if [[ ${SANITIZE:-1} == 0 ]]; then
    echo "left out (SANITIZE=0)"
elif sanitizer=$(type -P compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null); then
    part memcheck "$sanitizer" --tool memcheck --error-exitcode 9 "$tests" --exact devices::cuda --ignored
    # The kernels with barriers are those of the sweeps, which the suite runs.
    for tool in racecheck synccheck; do
        part "$tool" "$sanitizer" --tool "$tool" --error-exitcode 9 "$tests" --exact conformance::cuda --ignored
    done
else
    echo "not installed (it comes with the CUDA toolkit): left out"
fi

section "Kernels, and the way to the GPU and back"
part "kernels" target/release/examples/gpu "${SECONDS_EACH:-0.5}"

section "End to end"
part "end to end" env RUNS="${RUNS:-3}" PARTS=gpu PEERS="${PEERS:-}" bash benches/end_to_end.sh "$dir" target/release/elo-surgery

section "Result"
if ((${#failed[@]})); then
    printf 'failed: %s\n' "${failed[@]}"
    exit 1
fi
echo "everything passed"
