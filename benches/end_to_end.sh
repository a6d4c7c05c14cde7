#!/usr/bin/env bash
# end_to_end.sh DIR BIN: wall time and memory of elo-surgery on generated checkpoints, beside cp and cat of the same bytes.
#
#   RUNS=5               rounds; each runs everything once, a floor right before what it is compared with
#   PARTS="pairs large"  pairs: three related 2.2 GB models in the page cache (10 GB of disk)
#                        merges: the pairs merged by every method (METHODS), beside mergekit with PEERS
#                        gpu: the pairs' chat vector on the CPU, on GPUs and with --device auto (needs a GPU)
#                        hub: a model on a Hub of this machine, pulled, cut and pushed, beside huggingface_hub with PEERS,
#                             and the bytes that a remote extract takes of 2.2 GB and of 141 GB (20 GB of disk)
#                        large: sparse checkpoints, 141 GB of 30 shards and one tensor of more than 2^32 elements (22 GB of disk)
#   PEERS=python         a Python with torch, safetensors and mergekit: measures those on the same inputs too
#   GENERATOR=...        make_checkpoint [default: examples/make_checkpoint beside BIN]
#   FAKE_HUB=...         fake_hub, for hub [default: examples/fake_hub beside BIN]
#
# Prints Markdown. Needs GNU time. What it generates stays in DIR for the next time.
set -euo pipefail
export LC_ALL=C HF_HUB_OFFLINE=1
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "${1:?directory for the checkpoints}"
dir=$(cd "$1" && pwd)
bin=$(realpath "${2:?path of elo-surgery}")
runs=${RUNS:-5}
parts=${PARTS:-pairs large}
peers=${PEERS:-}
generator=${GENERATOR:-$(dirname "$bin")/examples/make_checkpoint}
[[ -x $generator ]] || { echo "no $generator: cargo build --release --example make_checkpoint" >&2; exit 1; }
gnu_time=$(type -P time) || { echo "GNU time is not installed" >&2; exit 1; }

out=$dir/out
# 141 GB in 30 shards, as Llama 3.1 70B.
shape70=(--sparse --hidden 8192 --layers 80 --inter 28672 --vocab 128256 --heads 64 --kv-heads 8 --shard-mb 5000)
scratch=$(mktemp -d "$dir/bench.XXXXXX")
hub_process=''
trap 'kill $hub_process 2>/dev/null || true; rm -rf "$scratch" "$out"' EXIT
mkfifo "$scratch/never"
exec {never}<>"$scratch/never"

# generate NAME ARGUMENTS: a checkpoint, unless an earlier run finished it.
generate() {
    local name=$1; shift
    [[ -d $dir/$name ]] && return
    rm -rf "$dir/$name.partial"
    "$generator" "$dir/$name.partial" "$@"
    mv "$dir/$name.partial" "$dir/$name"
}

# watch_anonymous PID: highest RssAnon and RssShmem (page-locked memory) in kB of the child of PID, seen every 20 ms.
watch_anonymous() {
    local child='' peak=0 sum key kilobytes _
    until [[ -n $child || ! -d /proc/$1 ]]; do
        read -r child _ <"/proc/$1/task/$1/children" || true
    done 2>/dev/null
    while [[ -n $child && -e /proc/$child/status ]]; do
        sum=0
        while read -r key kilobytes _; do
            if [[ $key == RssAnon: || $key == RssShmem: ]]; then sum=$((sum + kilobytes)); fi
        done <"/proc/$child/status" || true
        if ((sum > peak)); then peak=$sum; fi
        read -rt 0.02 -u "$never" || true
    done 2>/dev/null
    echo "$peak"
}

# measure NAME FLOOR COMMAND: runs it once, with nothing at $out and nothing waiting to be written, and appends to $results.
measure() {
    local name=$1 floor=$2 start end process watcher; shift 2
    rm -rf "$out"
    sync -f "$dir"
    start=$EPOCHREALTIME
    "$gnu_time" -f '%U %S %M' -o "$scratch/usage" "$@" >"$scratch/log" 2>&1 &
    process=$!
    watch_anonymous "$process" >"$scratch/anonymous" &
    watcher=$!
    if ! wait "$process"; then
        printf '%s failed:\n%s\n' "$name" "$(tail -n 5 "$scratch/log")" >&2
        exit 1
    fi
    end=$EPOCHREALTIME
    wait "$watcher"
    awk -v OFS='\t' -v run="$run" -v name="$name" -v floor="$floor" -v start="$start" -v end="$end" \
        'FNR == NR { anonymous = $1; next } { print run, name, floor, end - start, $1 + $2, $3, anonymous }' \
        "$scratch/anonymous" "$scratch/usage" >>"$results"
}

# table: the Markdown table of $results. Ratios are taken within each round; `x floor` is their median.
table() {
    awk -F '\t' '
        function median(values, count,    i, j, v) {
            for (i = 2; i <= count; i++) {
                v = values[i]
                for (j = i - 1; j > 0 && values[j] > v; j--) values[j + 1] = values[j]
                values[j + 1] = v
            }
            return (values[int((count + 1) / 2)] + values[int(count / 2) + 1]) / 2
        }
        # Nothing where the process was gone before it was looked at.
        function highest(column, name,    i, peak) {
            for (i = 1; i <= runs; i++) if (column[i, name] > peak) peak = column[i, name]
            return peak > 0 ? sprintf("%.1f", peak / 1024) : ""
        }
        !($2 in floor) { names[++count] = $2; floor[$2] = $3 }
        { wall[$1, $2] = $4; cpu[$1, $2] = $5; resident[$1, $2] = $6; anonymous[$1, $2] = $7; if ($1 > runs) runs = $1 }
        END {
            print "| what | median s | min s | x floor | floor | CPU s | peak RSS MiB | peak anonymous MiB |"
            print "|---|---:|---:|---:|---|---:|---:|---:|"
            for (n = 1; n <= count; n++) {
                name = names[n]; ratio = ""
                for (i = 1; i <= runs; i++) { walls[i] = wall[i, name]; cpus[i] = cpu[i, name] }
                if (floor[name] != "") {
                    for (i = 1; i <= runs; i++) ratios[i] = wall[i, name] / wall[i, floor[name]]
                    ratio = sprintf("%.2f", median(ratios, runs))
                }
                middle = median(walls, runs)
                printf "| %s | %.3f | %.3f | %s | %s | %.2f | %s | %s |\n", name, middle, walls[1], ratio, \
                    floor[name], median(cpus, runs), highest(resident, name), highest(anonymous, name)
            }
        }' "$results"
}

conditions() {
    printf '%s, %s, %s cores, %s GB memory, Linux %s, %s; rounds: %s; load average before: %s\n\n' \
        "$("$bin" --version)" "$(sed -n 's/^model name.*: //p' /proc/cpuinfo | head -n 1)" "$(nproc)" \
        "$(awk '/MemTotal/ { printf "%.0f", $2 / 1e6 }' /proc/meminfo)" "$(uname -r)" \
        "$(stat -f -c %T "$dir")" "$1" "$(cut -d ' ' -f 1-3 /proc/loadavg)"
}

generate_pairs() {
    generate B
    generate A --noise-seed 1 --delta 0.002
    generate C --noise-seed 2 --delta 0.004
}

pairs() {
    results=$scratch/pairs.tsv
    generate_pairs
    rm -rf "$dir/part"
    "$bin" extract "$dir/A" --layers first,last --out "$dir/part" --no-sync --quiet
    cat >"$scratch/linear.yml" <<YAML
models:
  - {model: $dir/C, parameters: {weight: 1}}
  - {model: $dir/A, parameters: {weight: 1}}
  - {model: $dir/B, parameters: {weight: -1}}
merge_method: linear
parameters: {normalize: false}
dtype: float32
out_dtype: bfloat16
YAML
    local vector=("$bin" chat-vector --inst "$dir/A" --base "$dir/B" --into "$dir/C" --out "$out" --quiet)
    local copy="cp -r --reflink=never"
    conditions "$runs"
    for run in $(seq "$runs"); do
        cat "$dir"/{A,B,C,part}/*.safetensors >/dev/null
        measure 'read A, B, C; cp C' '' sh -c "cat '$dir'/[ABC]/*.safetensors >/dev/null; $copy '$dir/C' '$out'"
        measure 'chat-vector --no-sync --threads 2' 'read A, B, C; cp C' "${vector[@]}" --no-sync --threads 2
        measure 'cp C; sync' '' sh -c "$copy '$dir/C' '$out'; sync '$out'/* '$out'"
        measure 'chat-vector' 'cp C; sync' "${vector[@]}"
        measure 'cp C' '' sh -c "$copy '$dir/C' '$out'"
        measure 'reshard --no-sync' 'cp C' "$bin" reshard "$dir/C" --shard-size 1GB --out "$out" --no-sync --quiet
        measure 'inject --no-sync' 'cp C' "$bin" inject "$dir/part" --into "$dir/C" --out "$out" --no-sync --quiet
        measure 'cp the extract' '' sh -c "$copy '$dir/part' '$out'"
        measure 'extract --no-sync' 'cp the extract' "$bin" extract "$dir/A" --layers first,last --out "$out" --no-sync --quiet
        measure 'true' '' true
        measure 'inspect' 'true' "$bin" inspect "$dir/C"
        measure '--help' 'true' "$bin" --help
        if [[ -n $peers ]]; then
            measure 'torch, shard by shard' 'read A, B, C; cp C' \
                "$peers" "$here/peer_chat_vector.py" "$dir/A" "$dir/B" "$dir/C" "$out"
            measure 'mergekit linear' 'read A, B, C; cp C' \
                "$peers" -m mergekit.scripts.run_yaml "$scratch/linear.yml" "$out" --lazy-unpickle --no-copy-tokenizer --no-write-model-card
        fi
    done
    table
}

# merge_config METHOD: a configuration of the pairs, B the base.
merge_config() {
    local method=$1 own='{weight: 0.6, density: 0.5}' shared=''
    case $method in
        linear) printf 'merge_method: linear\nmodels:\n' ;;
        passthrough) printf 'merge_method: passthrough\nmodels: [{model: %s}]\n' "$dir/A"; return ;;
        *) printf 'merge_method: %s\nbase_model: %s\nmodels:\n' "$method" "$dir/B" ;;
    esac
    case $method in
        linear | nuslerp | multislerp) own='{weight: 0.6}' ;;
        slerp | nearswap) own='' shared='parameters: {t: 0.4}' ;;
        task_arithmetic) own='{weight: 0.6}' ;;
        model_stock | karcher | ram | ramplus_tl | arcee_fusion) own='' ;;
        sce) own='' shared='parameters: {select_topk: 0.5}' ;;
        breadcrumbs | breadcrumbs_ties) own='{weight: 0.6, density: 0.5, gamma: 0.01}' ;;
    esac
    local model models=(A C)
    case $method in
        linear) models=(A B C) ;;
        slerp | nearswap | arcee_fusion) models=(A) ;;
    esac
    for model in "${models[@]}"; do printf '%s\n' "- {model: $dir/$model${own:+, parameters: $own}}"; done
    printf '%s\ndtype: bfloat16\n' "$shared"
}

merges() {
    results=$scratch/merges.tsv
    generate_pairs
    local methods=${METHODS:-linear task_arithmetic slerp model_stock ties}
    conditions "$runs"
    for run in $(seq "$runs"); do
        cat "$dir"/{A,B,C}/*.safetensors >/dev/null
        for method in $methods; do
            merge_config "$method" >"$scratch/$method.yml"
            if [[ -n $peers ]]; then
                measure "mergekit $method" '' "$peers" -m mergekit.scripts.run_yaml "$scratch/$method.yml" "$out" \
                    --lazy-unpickle --no-copy-tokenizer --no-write-model-card
                measure "$method" "mergekit $method" "$bin" merge "$scratch/$method.yml" --out "$out" --no-sync --quiet
            else
                measure "$method" '' "$bin" merge "$scratch/$method.yml" --out "$out" --no-sync --quiet
            fi
        done
    done
    table
}

gpu() {
    results=$scratch/gpu.tsv
    generate_pairs
    local vector=("$bin" chat-vector --inst "$dir/A" --base "$dir/B" --into "$dir/C" --out "$out" --quiet --no-sync)
    local floor='read A, B, C; cp C' tiny=$here/../fixtures/golden/models/llama31
    conditions "$runs"
    for run in $(seq "$runs"); do
        cat "$dir"/{A,B,C}/*.safetensors >/dev/null
        measure "$floor" '' sh -c "cat '$dir'/[ABC]/*.safetensors >/dev/null; cp -r --reflink=never '$dir/C' '$out'"
        measure 'chat-vector --device cpu' "$floor" "${vector[@]}" --device cpu
        # Too little for a GPU: this is the CPU, found without asking the driver.
        measure 'chat-vector --device auto' 'chat-vector --device cpu' "${vector[@]}" --device auto
        measure 'chat-vector --device cuda' 'chat-vector --device cpu' "${vector[@]}" --device cuda
        measure 'start of the GPUs (a tiny chat vector)' '' "$bin" chat-vector --inst "$tiny-inst" --base "$tiny-base" \
            --into "$tiny-target" --out "$out" --quiet --no-sync --device cuda
        measure 'chat-vector --device cuda, 256 MB each of host and GPU' 'chat-vector --device cpu' \
            "${vector[@]}" --device cuda --memory 256MB --device-memory 256MB
        if [[ -n $peers ]]; then
            measure 'torch on the GPU, shard by shard' 'chat-vector --device cpu' \
                "$peers" "$here/peer_chat_vector.py" "$dir/A" "$dir/B" "$dir/C" "$out" cuda
        fi
    done
    table
}

# start_hub TRANSFER ARGUMENTS: a Hub with the models of $scratch/root, a line of $scratch/requests for each request.
start_hub() {
    local transfer=$1; shift
    rm -f "$scratch/address"
    "$fake_hub" --root "$scratch/root" --address "$scratch/address" --log "$scratch/requests" --transfer "$transfer" "$@" \
        <"$scratch/never" >/dev/null &
    hub_process=$!
    until [[ -s $scratch/address ]]; do
        kill -0 "$hub_process" || exit 1
        read -rt 0.1 -u "$never" || true
    done
    HF_ENDPOINT=$(<"$scratch/address")
    export HF_ENDPOINT
}

stop_hub() {
    kill "$hub_process"
    wait "$hub_process" || true
    hub_process=''
}

# traffic NAME [DIRECTORY]: what went over the network since the last time, beside the bytes of the tensors in DIRECTORY.
traffic() {
    local needed=0 shard
    for shard in ${2:+"$2"/*.safetensors}; do
        needed=$((needed + $(stat -c %s "$shard") - 8 - $(od -An -t u8 -N 8 "$shard")))
    done
    awk -v name="$1" -v needed="$needed" -v skip="$seen" '
        function number(key) { return match($0, "\"" key "\":[0-9]+") ? substr($0, RSTART + length(key) + 3, RLENGTH - length(key) - 3) : 0 }
        FNR > skip { requests++; down += number("bytes"); up += number("received") }
        END {
            over = needed > 0 ? sprintf("%.4f", down / needed) : ""
            printf "| %s | %d | %.0f | %.0f | %s | %s |\n", name, requests, down, up, (needed > 0 ? needed : ""), over
        }' "$scratch/requests" >>"$scratch/traffic"
    seen=$(wc -l <"$scratch/requests")
}

hub() {
    results=$scratch/hub.tsv
    local fake_hub=${FAKE_HUB:-$(dirname "$bin")/examples/fake_hub} seen=0 run
    [[ -x $fake_hub ]] || { echo "no $fake_hub: cargo build --release --example fake_hub" >&2; exit 1; }
    generate B
    generate B70 "${shape70[@]}"
    # Each run starts with an empty cache: `measure` removes $out.
    export HF_HOME=$out/home HF_HUB_OFFLINE=0 HF_HUB_DISABLE_TELEMETRY=1
    export HF_TOKEN=hf_CanaryThatMustNeverBeSeenAnywhere1
    mkdir -p "$scratch/root/bench"
    ln -s "$dir/B" "$scratch/root/bench/model"
    conditions "$runs"
    for run in $(seq "$runs"); do
        cat "$dir"/B/*.safetensors >/dev/null
        : >"$scratch/traffic"
        start_hub basic
        seen=0
        measure 'cp' '' cp -r --reflink=never "$dir/B" "$out"
        measure 'pull --out' 'cp' "$bin" pull bench/model --out "$out/model" --quiet
        traffic 'pull --out' "$out/model"
        measure 'pull' 'cp' "$bin" pull bench/model --quiet
        if [[ -n $peers ]]; then
            measure 'snapshot_download' 'cp' "$peers" -c \
                'from huggingface_hub import snapshot_download; snapshot_download("bench/model")'
        fi
        measure 'extract --layers first,last' '' "$bin" extract "$dir/B" --layers first,last --out "$out/part" --quiet
        seen=$(wc -l <"$scratch/requests")
        measure 'remote extract --layers first,last' 'extract --layers first,last' \
            "$bin" extract bench/model --layers first,last --out "$out/part" --quiet
        traffic '2.2 GB, remote extract --layers first,last' "$out/part"
        for way in basic multipart xet; do
            stop_hub
            start_hub "$way"
            seen=0
            measure "push, $way" 'cp' "$bin" push "$dir/B" "bench/pushed-$way" --quiet
            traffic "push, $way"
            if [[ -n $peers ]]; then
                stop_hub
                start_hub "$way"
                measure "upload_folder, $way" 'cp' "$peers" -c 'import sys
from huggingface_hub import HfApi
HfApi().create_repo(sys.argv[2])
HfApi().upload_folder(folder_path=sys.argv[1], repo_id=sys.argv[2])' "$dir/B" "bench/peer-$way"
            fi
        done
        stop_hub
    done
    run=1
    rm "$scratch/root/bench/model"
    ln -s "$dir/B70" "$scratch/root/bench/large"
    start_hub basic --quick
    seen=0
    measure '141 GB, remote inspect' '' "$bin" inspect bench/large
    traffic '141 GB, remote inspect'
    if (($(df --output=avail "$dir" | tail -n 1) > 20000000)); then
        measure '141 GB, remote extract --layers 1,40' '' \
            "$bin" extract bench/large --layers 1,40 --out "$out/part" --quiet
        traffic '141 GB, remote extract --layers 1,40' "$out/part"
    else
        echo 'the remote extract of 141 GB is left out: too little space'
    fi
    stop_hub
    table
    printf '\n| what | requests | bytes received | bytes sent | bytes of tensors needed | received / needed |\n'
    printf '%s\n' '|---|---:|---:|---:|---:|---:|'
    cat "$scratch/traffic"
}

large() {
    results=$scratch/large.tsv
    local run=1
    generate B70 "${shape70[@]}"
    generate A70 "${shape70[@]}" --noise-seed 1 --delta 0.002
    generate C70 "${shape70[@]}" --noise-seed 2 --delta 0.004
    # One tensor of 4,311,744,512 elements.
    generate fused --sparse --hidden 4096 --layers 1 --inter 2048 --vocab 1024 --heads 32 --experts 257 --shard-mb 5000
    conditions 1
    local part=$dir/part70 free needed=17000000
    rm -rf "$part"
    free=$(df --output=avail "$dir" | tail -n 1)
    measure '141 GB, inspect' '' "$bin" inspect "$dir/C70"
    if ((free > needed)); then
        measure '141 GB, extract --layers 1,80' '' "$bin" extract "$dir/C70" --layers 1,80 --out "$part" --quiet
        measure 'cp the extract' '' sh -c "cp -r --reflink=never '$part' '$out'"
        measure '141 GB, inject --dry-run' '' "$bin" inject "$part" --into "$dir/A70" --out "$out" --dry-run
    else
        echo "extract as a dry run, inject left out: only $((free / 1000000)) GB are free"
        measure '141 GB, extract --layers 1,80 --dry-run' '' "$bin" extract "$dir/C70" --layers 1,80 --out "$part" --dry-run
    fi
    measure '141 GB, chat-vector --dry-run' '' \
        "$bin" chat-vector --inst "$dir/A70" --base "$dir/B70" --into "$dir/C70" --out "$out" --dry-run
    printf '%s\n' 'merge_method: ties' "base_model: $dir/B70" 'models:' "- {model: $dir/A70}" "- {model: $dir/C70}" \
        'parameters: {weight: 0.5, density: 0.3}' >"$scratch/ties70.yml"
    measure '141 GB, merge by ties, --dry-run' '' "$bin" merge "$scratch/ties70.yml" --out "$out" --dry-run
    rm -rf "$part" "$out"
    if (($(df --output=avail "$dir" | tail -n 1) > 15000000)); then
        # A vector of nothing: C + (A - A) is C, to the last byte of every shard.
        measure '2^32 elements, chat-vector --no-sync' '' \
            "$bin" chat-vector --inst "$dir/fused" --base "$dir/fused" --into "$dir/fused" --out "$out" --no-sync --quiet
        for shard in "$dir"/fused/*.safetensors; do
            tail_of() { tail -c +"$(($(od -An -t u8 -N 8 "$1") + 9))" "$1"; }
            cmp <(tail_of "$shard") <(tail_of "$out/$(basename "$shard")")
        done
    else
        echo "the tensor of more than 2^32 elements is left out: too little space"
    fi
    table
}

for part in $parts; do
    "$part"
    printf '\nload average after: %s\n\n' "$(cut -d ' ' -f 1-3 /proc/loadavg)"
done
