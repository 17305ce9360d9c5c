#!/bin/bash
# Starts a program as several processes of this host that know of each other (RANK, WORLD_SIZE, ... as torchrun sets
# them), one for each GPU where there are any.  A signal to this script goes to all; it ends with the
# first exit code that is not 0.
#
#   scripts/launch.sh N COMMAND...
set -u
n=${1:-}
[[ $n =~ ^[1-9][0-9]*$ ]] && [ $# -ge 2 ] || { sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 2; }
shift
gpus=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU')
if [ -n "${CUDA_VISIBLE_DEVICES+x}" ]; then gpus=$(tr , '\n' <<< "$CUDA_VISIBLE_DEVICES" | grep -c .); fi
if [ "$gpus" -gt 0 ] && [ "$n" -gt "$gpus" ]; then echo "launch: error: $n processes for $gpus GPUs: one a GPU is due" >&2; exit 2; fi
export WORLD_SIZE=$n LOCAL_WORLD_SIZE=$n MASTER_ADDR=127.0.0.1
unset TORCHELASTIC_RUN_ID
if [ -z "${MASTER_PORT:-}" ]; then # one that nobody listens on
    MASTER_PORT=$((20000 + $$ % 20000))
    while (exec 3<> "/dev/tcp/127.0.0.1/$MASTER_PORT") 2>/dev/null; do MASTER_PORT=$((MASTER_PORT + 1)); done
fi
export MASTER_PORT
pids=()
for ((i = 0; i < n; i++)); do
    RANK=$i LOCAL_RANK=$i "$@" &
    pids+=($!)
done
trap 'kill -TERM "${pids[@]}" 2>/dev/null' TERM INT HUP
code=0
for p in "${pids[@]}"; do
    wait "$p"; rc=$?
    while [ $rc -gt 128 ] && kill -0 "$p" 2>/dev/null; do wait "$p"; rc=$?; done # a signal came to us, not yet to it
    [ $code -ne 0 ] || code=$rc
done
exit $code
