#!/bin/bash
# An example for Slurm: sft on all GPUs of two nodes, a process a GPU, taken up again by the same command after a time limit.
#
#   sbatch scripts/sbatch-train.sh          (from the repository's root, on a file system that all nodes see)
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
srun --kill-on-bad-exit=1 build/bin/sft --config configs/qwen.conf --model models/Qwen2.5-3B --data "${DATA:-datasets/work/abc}" --out "$out" \
    --batch-size 1 --global-batch 16 $resume
