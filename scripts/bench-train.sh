#!/bin/bash
# Training speed on a GPU, ours and, where python3 has unsloth and TOKENIZER= names a folder with Qwen2.5's tokenizer, Unsloth's, in one
# run on the same random Qwen2.5-3B: LoRA r 16 on the seven projections, 8-bit AdamW, whole steps, half of each sequence masked.
# A table; the JSON lines of all runs go to OUT (build/bench-train).  Run by `make bench-train`.
set -u
cd "$(dirname "$0")/.."
b=${B:-build} out=${OUT:-build/bench-train} shape=configs/shapes/qwen2.5-3b
command -v nvidia-smi >/dev/null || { echo "SKIP: no NVIDIA GPU here"; exit 0; }
mkdir -p "$out"
if [ -d "$b/lib/bundled" ]; then # a bundle (make gpu-bundle)
    site=$(python3 -c 'import torch, os; print(os.path.dirname(os.path.dirname(torch.__file__)))') || exit 3
    bundled=$PWD/$b/lib/bundled:$site/torch/lib:$(printf '%s:' "$site"/nvidia/*/lib)
fi
ours() { # name, options...
    local name=$1
    shift
    LD_LIBRARY_PATH=${bundled:-}${LD_LIBRARY_PATH:-} "$b/bin/train-bench" --json -q "$@" > "$out/$name.jsonl" 2> "$out/$name.err" || { echo "$name: $(tail -1 "$out/$name.err")"; return; }
    python3 - "$out/$name.jsonl" "$name" <<'P'
import json, sys
r = json.loads(open(sys.argv[1]).readline())
print(f"{sys.argv[2]:24} {r['tokens_per_s']:12,.0f} {r['peak_gib']:10.1f} {r['tflops']:10.0f}", flush=True)
P
}
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
printf '%-24s %12s %10s %10s\n' "" tokens/s "peak GiB" TFLOP/s
head -48 configs/shapes/pairs.lengths > "$out/pairs.lengths"
big=(--model $shape --batch-size 2 --length 16384 --warm 2)
ours 2x4096 --model $shape --batch-size 2 --length 4096
ours 2x16384 "${big[@]}" --steps 5 --profile
if python3 -c 'import unsloth' 2>/dev/null && [ -n "${TOKENIZER:-}" ]; then
    python3 scripts/bench_unsloth.py $shape "$out/model" "$TOKENIZER" 2x4096 2x16384 "$out/pairs.lengths" 2> "$out/unsloth.err" | grep '"peer"' > "$out/unsloth.jsonl"
    python3 - "$out/unsloth.jsonl" <<'P'
import json, sys
for r in map(json.loads, open(sys.argv[1])):
    print(f"{'unsloth ' + r['run']:24} " + (r["error"] if "error" in r else f"{r['tokens_per_s']:12,} {r['peak_gib']:10.1f}"))
P
else
    echo "unsloth is not installed, or TOKENIZER= is not set: measured on one H200 2026-11 were 20,259, 16,376 and (pairs) 13,077 tokens/s"
fi
ours 2x16384-again "${big[@]}" --steps 5
ours 2x16384-fp8 "${big[@]}" --steps 5 --precision fp8 --profile
ours 2x4096-fp8 --model $shape --batch-size 2 --length 4096 --precision fp8
ours 2x16384-low "${big[@]}" --steps 3 --memory low
ours pairs --model $shape --batch-size 8 --lengths "$out/pairs.lengths" --steps 6 --warm 6
ours small-full --model configs/shapes/small --method full --optimizer adamw --batch-size 50 --length 2048
