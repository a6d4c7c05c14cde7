#!/usr/bin/env bash
# Compiles the kernels. No GPU and no CUDA toolkit: NVRTC comes from PyPI into target/nvrtc (82 MB, once).
#
#   kernels/build.sh           writes kernels/elo_surgery.ptx
#   kernels/build.sh --check   fails if that file is not what the sources give, or if an architecture refuses them
#
# The PTX is made by NVRTC 12.0, because a driver refuses PTX newer than itself and this one's suits every driver from 525
# on. NVRTC 13 compiles for the architectures that came later.
set -euo pipefail
cd "$(dirname "$0")/.."

for_ptx=nvidia-cuda-nvrtc-cu12==12.0.140
for_cubins=nvidia-cuda-nvrtc==13.5.37
architectures=(sm_80 sm_89 sm_90 sm_100 sm_120)

place=$PWD/target/nvrtc
python=${PYTHON:-python3}

# Unpacks a wheel into a folder of its own; prints the folder with the library.
library() {
    local folder=$place/${1//==/-}
    if [ ! -e "$folder/done" ]; then
        rm -rf "$folder"
        mkdir -p "$folder"
        "$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --dest "$folder" "$1" >&2
        "$python" -m zipfile -e "$folder"/*.whl "$folder"
        rm "$folder"/*.whl
        touch "$folder/done"
    fi
    local found
    found=$(find "$folder" -name 'libnvrtc.so.*' | head -1)
    # The loader looks for the name without a version, and for those of the versions it knows.
    ln -sf "$(basename "$found")" "$(dirname "$found")/libnvrtc.so"
    dirname "$found"
}

compile() {
    LD_LIBRARY_PATH=$1 cargo run --quiet --locked --features cuda --example kernels -- "${@:2}"
}

old=$(library "$for_ptx")
if [ "${1:-}" != --check ]; then
    compile "$old" ptx kernels/elo_surgery.ptx
    exit
fi

compile "$old" ptx "$place/elo_surgery.ptx"
if ! diff -u kernels/elo_surgery.ptx "$place/elo_surgery.ptx"; then
    echo "kernels/elo_surgery.ptx is not what the sources give: run kernels/build.sh" >&2
    exit 1
fi
compile "$(library "$for_cubins")" cubin "${architectures[@]}"
