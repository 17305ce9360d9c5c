#!/bin/bash
# Training on two GPUs: the curve of one, a killed process that ends the other, resuming on one, and how much faster a 3B
# model learns.  Run by scripts/test-gpu.sh where there are two GPUs:
#
#   tests/gpu/several_gpus.sh BUILD [SHAPE=configs/shapes/qwen2.5-3b [LENGTH=16384]]
set -u
cd "$(dirname "$0")/../.." || exit 3
b=$1 shape=${2:-configs/shapes/qwen2.5-3b} length=${3:-16384}
work=$(mktemp -d -p "${WORK:-/dev/shm}"); trap 'rm -rf "$work"' EXIT
case $b in /*) ;; *) b=$PWD/$b ;; esac
export NCCL_NVLS_ENABLE=0
failed=0 t0=$SECONDS
say() { printf '%3d s  %s\n' $((SECONDS - t0)) "$*"; }
bad() { say "FAILED: $*"; failed=1; }
compare() { # a b tolerance
    python3 - "$work/$1.jsonl" "$work/$2.jsonl" "$3" <<'P'
import json, sys
a, b = ([json.loads(l) for l in open(f)] for f in sys.argv[1:3])
worst = max(abs(x["loss"] - y["loss"]) / x["loss"] for x, y in zip(a, b))
print(f"       {len(b)} steps, largest relative difference of the loss {worst:.2g}")
sys.exit(not (len(a) == len(b) and worst < float(sys.argv[3]) and [x["tokens"] for x in a] == [y["tokens"] for y in b]))
P
}

# ---- a tiny model
python3 tests/e2e/tiny_model.py "$PWD" "$work" && "$b/bin/tokenizer-train" datasets/sample --out "$work/arch" --vocab-size 600 --db none -q > /dev/null || exit 3
timeout 30 "$b/bin/sft" --model "$work/arch" --data "$work/data" --out "$work/base" --method full --init random --max-steps 4 --warmup-steps 2 -o lr=2e-3 \
    --batch-size 2 --accumulation 1 --db none -q || bad "the base: $?"
tiny() { local out=$1; shift; "$@" "$b/bin/sft" --model "$work/base" --data "$work/data" -o lora.r=4 -o lr=5e-3 --warmup-steps 2 --batch-size 2 --global-batch 8 \
    --save-steps 4 --dtype float32 --device cuda --json -q --db none --out "$work/$out" $more > "$work/$out.jsonl" 2> "$work/$out.err"; }
more="--max-steps 12"
tiny one timeout 30 || bad "one GPU: $? $(tail -1 "$work/one.err")"
tiny two timeout 60 scripts/launch.sh 2 || bad "two GPUs: $? $(cat "$work/two.err")"
compare one two 1e-4 || bad "another curve on two GPUs"
cp -r "$work/two" "$work/cut" && rm -r "$work/cut/checkpoint-12"
more="--max-steps 12 --resume"
tiny cut timeout 30 || bad "resuming on one GPU: $? $(tail -1 "$work/cut.err")"
[ "$(head -1 "$work/cut.jsonl" | grep -c '"step":9,')" = 1 ] || bad "resuming on one GPU began elsewhere"
say "tiny model on one and two GPUs, resumed on one"
more="--max-steps 100000"
tiny kill timeout 60 scripts/launch.sh 2 & launcher=$!
for i in $(seq 200); do [ -d "$work/kill/checkpoint-4" ] && break; sleep 0.1; done
victim=$(pgrep -f -- "--out $work/kill" | while read -r p; do tr '\0' '\n' < "/proc/$p/environ" 2>/dev/null | grep -qx RANK=1 && echo "$p"; done | tail -1)
t1=$SECONDS; kill -KILL "$victim"; wait $launcher; rc=$?
grep -q "process 1 of 2.* ended without a word" "$work/kill.err" && [ $rc != 0 ] || bad "after a kill: exit $rc, $(cat "$work/kill.err")"
say "a killed process ended the other after $((SECONDS - t1)) s: $(grep -m1 -o 'process 1 of 2.*' "$work/kill.err")"

# ---- the speed of a large one
python3 tests/gpu/random_model.py "$shape" "$work/model" "$work/arch" "$work/long" "$length" 32 || exit 3
say "$shape with random weights"
large() { local out=$1; shift; "$@" "$b/bin/sft" --model "$work/model" --data "$work/long" --batch-size 2 --global-batch 4 --max-tokens "$length" --overlong truncate \
    --optimizer adamw8bit --warmup-steps 0 --max-steps ${STEPS:-6} --save-steps 0 --no-curves --json -q --db none --out "$work/$out" > "$work/$out.jsonl" 2> "$work/$out.err"; }
large large1 timeout 60 || bad "one GPU: $? $(tail -1 "$work/large1.err")"
say "one GPU"
large large2 timeout 60 scripts/launch.sh 2 || bad "two GPUs: $? $(cat "$work/large2.err")"
say "two GPUs"
compare large1 large2 2e-2 || bad "another curve on two GPUs"
python3 - "$work/large1.jsonl" "$work/large2.jsonl" <<'P' || bad "two GPUs are not 1.95 times as fast"
import json, statistics, sys
one, two = (statistics.median([json.loads(l)["tokens_per_s"] for l in open(f)][1:]) for f in sys.argv[1:3])
print(f"       one GPU {one:.0f} tokens/s, two {two:.0f}: {two / one:.3f} times (median of the steps after the first)")
sys.exit(not two / one >= 1.95)
P
exit $failed
