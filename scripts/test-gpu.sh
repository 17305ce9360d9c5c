#!/bin/bash
# What needs a GPU: the model's tests in float32 and bfloat16 on CUDA, and training there against training
# on the CPU.  Run by `make test-gpu`, or by itself from an unpacked `make gpu-bundle` on a machine that has a
# GPU and PyTorch but not this toolkit's other libraries:
#
#   scripts/test-gpu.sh [BUILD]       BUILD/bin, BUILD/tests and, in a bundle, BUILD/lib
#
# AT_SIZE=1: also one pass of the 3B shapes against Transformers and PEFT, which python3 must have (a minute each, 50 GB of the GPU's memory).
set -u
cd "$(dirname "$0")/.."
b=${1:-build}
command -v nvidia-smi >/dev/null || { echo "SKIP: no NVIDIA GPU here"; echo "0 passed, 0 failed, 1 skipped"; exit 0; }
if [ -d "$b/lib/bundled" ]; then
    site=$(python3 -c 'import torch, os; print(os.path.dirname(os.path.dirname(torch.__file__)))') || exit 3
    LD_LIBRARY_PATH=$PWD/$b/lib/bundled:$site/torch/lib:$(printf '%s:' "$site"/nvidia/*/lib)${LD_LIBRARY_PATH:-}
    export LD_LIBRARY_PATH
fi
pass=0 failed=
try() { # name command...
    local name=$1
    shift
    if "$@" > /tmp/test-gpu.log 2>&1; then
        echo "$name: ok"
        pass=$((pass + 1))
    else
        echo "$name: FAILED"
        tail -20 /tmp/test-gpu.log
        failed="$failed $name"
    fi
}
nvidia-smi --query-gpu=name,memory.total --format=csv,noheader
try kernels env TEST_DEVICE=cuda "$b/tests/test_model_kernels"
try model-float32 env TEST_DEVICE=cuda "$b/tests/test_model"
try engine env TEST_DEVICE=cuda "$b/tests/test_model_engine"
try model-bfloat16 env TEST_DEVICE=cuda TEST_DTYPE=bfloat16 "$b/tests/test_model"
try optim env TEST_DEVICE=cuda "$b/tests/test_model_optim"
if [ -n "${AT_SIZE:-}" ]; then
    for shape in qwen2.5-3b llama-3.2-3b; do
        work=$(mktemp -d)
        try at-size-$shape python3 tests/gpu/compare_peft.py step configs/shapes/$shape "$b/bin" "$work"
        rm -rf "$work"
    done
fi

# The same training on both: losses agree, and a GPU run resumed after a stop gives the same bytes.
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 tests/e2e/tiny_model.py "$PWD" "$dir" && "$b/bin/tokenizer-train" datasets/sample --out "$dir/arch" --vocab-size 600 --db none -q >/dev/null || exit 3
train() { # out, options...
    local out=$1
    shift
    "$b/bin/sft" --model "$dir/base" --data "$dir/data" -o lora.r=4 --warmup-steps 2 -o lr=5e-3 --batch-size 3 --accumulation 2 --json -q \
        --db none --max-steps 12 --save-steps 6 --out "$dir/$out" "$@" > "$dir/$out.jsonl"
}
base() { "$b/bin/sft" --model "$dir/arch" --data "$dir/data" --out "$dir/base" --method full --init random --max-steps 10 --warmup-steps 2 \
    -o lr=2e-3 --batch-size 2 --accumulation 1 --db none -q --device cuda --dtype float32; }
agree() { # a b tolerance
    python3 - "$dir/$1.jsonl" "$dir/$2.jsonl" "$3" <<'P'
import json, sys
a, b = ([json.loads(l)["loss"] for l in open(f)] for f in sys.argv[1:3])
worst = max(abs(x - y) / y for x, y in zip(a, b))
print("largest relative difference of the loss", worst)
sys.exit(len(a) != len(b) or not worst < float(sys.argv[3]))
P
}
try base base
try train-cpu train cpu --device cpu
try train-cuda train cuda --device cuda --dtype float32
try loss-cuda-cpu agree cuda cpu 1e-3
try train-bfloat16 train bf16 --device cuda
try loss-bfloat16 agree bf16 cpu 3e-2
again() { # two runs of bfloat16 training with --deterministic, one resumed half-way
    train one --device cuda --deterministic && train two --device cuda --deterministic && rm -r "$dir/two/checkpoint-12" &&
        train two --device cuda --deterministic --resume && cmp "$dir/one/adapter_model.safetensors" "$dir/two/adapter_model.safetensors"
}
try resume-exact again
again8() { # the same with 8-bit state of adapters that are large enough for it, embeddings with them
    local more=(--device cuda --deterministic --optimizer adamw8bit -o lora.r=64 --train-embeddings)
    train one8 "${more[@]}" && train two8 "${more[@]}" && rm -r "$dir/two8/checkpoint-12" &&
        train two8 "${more[@]}" --resume && cmp "$dir/one8/adapter_model.safetensors" "$dir/two8/adapter_model.safetensors" &&
        cmp "$dir/one8/checkpoint-12/optimizer.safetensors" "$dir/two8/checkpoint-12/optimizer.safetensors"
}
try resume-exact-8bit again8
fill() { # the GPU, but for so many MB
    : > "$dir/fill"
    python3 -c "import torch, time
free = torch.cuda.mem_get_info()[0]
held = torch.empty(free - ($1 << 20), dtype=torch.uint8, device='cuda')
print('full', flush=True); time.sleep(60)" > "$dir/fill" & filler=$!
    for i in $(seq 300); do grep -q full "$dir/fill" && break; sleep 0.1; done
}
unfill() { kill $filler; wait $filler 2> /dev/null; }
# A GPU that is all but full: one line that says what to lower, and nothing written.
full() {
    python3 tests/gpu/random_model.py configs/shapes/small "$dir/small" "$dir/arch" "$dir/long" 4000 16 || return 1
    fill 1536
    "$b/bin/sft" --model "$dir/small" --data "$dir/long" --out "$dir/oom" --batch-size 8 --max-tokens 4000 --overlong truncate --memory high --db none -q 2> "$dir/oom.err"
    local rc=$?
    unfill
    cat "$dir/oom.err"
    [ $rc = 3 ] && grep -q 'a pass of 8 records, 32000 tokens, finds no room.*--pass-tokens 16000 halves it.*, or --memory low' "$dir/oom.err" && [ ! -e "$dir/oom" ]
}
try out-of-memory full
# Likewise generate, with less and less room, until there is none for its keys and values, for the weights, for CUDA itself.
tight() {
    local room rc
    for room in 1100 800 600 400 60; do
        fill $room
        "$b/bin/generate" --model "$dir/small" --tokenizer "$dir/arch" --caption "A part." --out "$dir/tight" --max-new-tokens 40 --device cuda --db none -q 2> "$dir/tight.err" > /dev/null
        rc=$?
        unfill
        echo "room for $room MB: exit $rc"; cat "$dir/tight.err"
        [ $rc != 0 ] || { rm -rf "$dir/tight"; continue; }
        [ $rc = 3 ] && [ "$(wc -l < "$dir/tight.err")" = 1 ] && grep -qE 'lower --|--device cpu' "$dir/tight.err" && [ ! -e "$dir/tight" ] || return 1
    done
    [ $rc = 3 ]
}
try generate-out-of-memory tight
generate() { "$b/bin/generate" --model "$dir/base" --adapter "$dir/$1" --captions "$dir/data/val.json" --out "$dir/gen-$2" --max-new-tokens 60 \
    --batch 4 --db none -q --device "$2" --dtype float32; }
both() { generate cuda cuda && generate cuda cpu && diff -r "$dir/gen-cuda/raw" "$dir/gen-cpu/raw"; }
try generate-cuda-cpu both
[ "$(nvidia-smi -L | wc -l)" -lt 2 ] || try two-gpus tests/gpu/several_gpus.sh "$b"
set -- $failed
[ $# = 0 ] || echo "failed:$failed"
echo "$pass passed, $# failed, 0 skipped"
[ $# = 0 ]
