#!/bin/bash
# Fine-tunes a model on prepared data.  Run by `make train`; stopped or killed, the same command goes on.
#
#   MODEL=qwen         configs/MODEL.conf, or a file
#   DATA=DIR           train.json and val.json (default: datasets/work/abc)
#   OUT=DIR            adapter and checkpoints (default: runs/MODEL)
#   GPUS=n             as n processes, one a GPU (or share of the CPU), with the config's number of records a step
#   RESUME=1           go on from the last checkpoint, and fail where there is none (without it: go on if there is one)
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
if ls -d "$out"/checkpoint-* >/dev/null 2>&1; then resume=--resume
elif [ "${RESUME:-0}" = 1 ]; then die "RESUME=1, but $out holds no checkpoint"; fi
gpus=${GPUS:-1}
[[ $gpus =~ ^[1-9][0-9]*$ ]] || die "GPUS=$gpus: a number of processes is due"
# shellcheck disable=SC2206
args=(--config "$config" --model "$(model_key "$config" dir)" --data "$data" --out "$out" $resume ${LABEL:+--label "$LABEL"} ${ARGS:-})
say "$(model_key "$config" dir) on $data -> $out$([ "$gpus" = 1 ] || echo ", $gpus processes")"
if [ "$gpus" = 1 ]; then
    tool sft "${args[@]}"
else # the step stays what it is: each process does its part
    value() { "$b/sft" "${args[@]}" --print-config | sed -n "s/^$1 = //p"; }
    total=$(value global-batch)
    [ "$total" != 0 ] || total=$(($(value batch-size) * $(value accumulation)))
    scripts/launch.sh "$gpus" "$b/sft" --db "$db" ${JOBS:+-j "$JOBS"} "${args[@]}" --global-batch "$total"
fi
say "ready: make eval CKPT=$out DATA=$data LABEL='SFT with RAG'"
