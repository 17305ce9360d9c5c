#!/bin/bash
# How fast the engine decodes at Qwen2.5-3B's shape (random weights), beside Transformers on the same machine.
#
#   scripts/bench-generate.sh BUILD [PAIRS.json TOKENIZER_DIR]    with records also what drafts from the prompt bring
set -u
cd "$(dirname "$0")/.."
b=${1:-build} pairs=${2:-} tokenizer=${3:-} config=tests/bench/qwen2.5-3b
command -v nvidia-smi >/dev/null || { echo "SKIP: no NVIDIA GPU here"; exit 0; }
nvidia-smi --query-gpu=name --format=csv,noheader
"$b/tests/bench-decode" $config check one:512 first:512 first:8192 batch:32:2000 || exit 1
[ -z "$pairs" ] || "$b/tests/bench-decode" $config "draft:$pairs:$tokenizer:7" "draft:$pairs:$tokenizer:15" || exit 1
"$b/tests/bench-decode" $config --fp8 check one:512 || exit 1
"${PYTHON:-python3}" -c 'import transformers' 2>/dev/null && "${PYTHON:-python3}" tests/bench/peer_generate.py $config 2>/dev/null
