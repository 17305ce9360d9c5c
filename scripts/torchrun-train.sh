#!/bin/bash
# An example for torchrun: sft on all GPUs of one host (or of several, with torchrun's own --nnodes, --rdzv-* options in TORCHRUN).
# scripts/launch.sh does the same on one host without PyTorch's Python.
#
#   DATA=datasets/work/abc scripts/torchrun-train.sh [more options for sft]
set -u
cd "$(dirname "$0")/.." || exit 3
gpus=${GPUS:-$(nvidia-smi -L | wc -l)}
export NCCL_NVLS_ENABLE=0
# shellcheck disable=SC2086
exec torchrun ${TORCHRUN:---standalone} --nproc_per_node "$gpus" --no-python build/bin/sft --config configs/qwen.conf --model models/Qwen2.5-3B \
    --data "${DATA:-datasets/work/abc}" --out "${OUT:-runs/qwen}" --batch-size 1 --global-batch 8 "$@"
