#!/bin/bash
# Fine-tunes a model on prepared data.  Run by `make train`; stopped or killed, the same command goes on.
#
#   MODEL=qwen         configs/MODEL.conf, or a file
#   DATA=DIR           train.json and val.json (default: datasets/work/abc)
#   OUT=DIR            adapter and checkpoints (default: runs/MODEL)
#   ARGS='-o lr=1e-4'  more options for sft
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/common.sh

config=$(config_of "${MODEL:-qwen}")
data=${DATA:-datasets/work/abc}
out=${OUT:-runs/$(basename "${MODEL:-qwen}" .conf)}
[ -f "$data/train.json" ] || die "$data/train.json is not there: make data first (DATA=DIR names another folder)"
need_model "$config" whole
resume=
ls -d "$out"/checkpoint-* >/dev/null 2>&1 && resume=--resume
say "$(model_key "$config" dir) on $data -> $out"
# shellcheck disable=SC2086
tool sft --config "$config" --model "$(model_key "$config" dir)" --data "$data" --out "$out" $resume ${LABEL:+--label "$LABEL"} ${ARGS:-}
say "ready: make eval CKPT=$out DATA=$data LABEL='SFT with RAG'"
