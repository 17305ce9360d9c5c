#!/bin/bash
# An example for Slurm: sft on all GPUs of two nodes, a process a GPU, taken up again by the same command after a time limit.
#
#   sbatch scripts/sbatch-train.sh          (from the repository's root, on a file system that all nodes see)
#
# CONFIG, MODEL, DATA, OUT and ARGS (more options for sft) are other settings; sbatch's own options go before the script's
# name, such as --nodes=1 --ntasks-per-node=4 --gpus-per-node=4.
#
#SBATCH --job-name=step-llm
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
set -u
out=${OUT:-runs/qwen-slurm} resume=
ls -d "$out"/checkpoint-* > /dev/null 2>&1 && resume=--resume
# sft reads SLURM_PROCID, SLURM_STEP_NUM_TASKS, SLURM_LOCALID and SLURM_STEP_NODELIST; MASTER_PORT only where the port it
# derives from the job's id is taken.  TERM, two minutes ahead of the limit, lets it end its step and save.
export NCCL_NVLS_ENABLE=0
# shellcheck disable=SC2086
srun --kill-on-bad-exit=1 "${B:-build}/bin/sft" --config "${CONFIG:-configs/qwen.conf}" --model "${MODEL:-models/Qwen2.5-3B}" \
    --data "${DATA:-datasets/work/abc}" --out "$out" --batch-size 1 --global-batch 16 $resume ${ARGS:-}
