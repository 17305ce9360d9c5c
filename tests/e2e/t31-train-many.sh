#!/bin/bash
# sft as several processes: the curve of one process with as many accumulated batches; stopping, killing, resuming with
# another number of processes; what does not fit is refused.
set -u
BIN=${BIN:-build/bin}
root=$(cd "$(dirname "$0")/../.." && pwd)
case $BIN in /*) ;; *) BIN=$PWD/$BIN ;; esac
for t in sft tokenizer-train; do [ -x "$BIN/$t" ] || { echo "SKIP: $t is not built (no libtorch)"; exit 77; }; done
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
fail() { echo "FAIL: $*"; exit 1; }
cd "$dir" || exit 1
unset RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT
export CUDA_VISIBLE_DEVICES=
launch=$root/scripts/launch.sh

python3 "$root/tests/e2e/tiny_model.py" "$root" . || fail "python3 is needed"
"$BIN/tokenizer-train" "$root/datasets/sample" --out arch --vocab-size 600 --db none -q > /dev/null || fail "tokenizer-train"
"$BIN/sft" --model arch --data data --out base --method full --init random --max-steps 6 --warmup-steps 2 -o lr=2e-3 --batch-size 2 \
    --accumulation 1 --db none -q || fail "sft --method full: $?"
sft=("$BIN/sft" --model base --data data -o lora.r=4 --warmup-steps 2 -o lr=5e-3 --max-steps 12 --batch-size 2 --global-batch 6 --eval-steps 6 --save-steps 2
    --json -q --device cpu --peer-timeout 60)
curve() { # a b tolerance: the same steps, tokens and, nearly, losses
    python3 - "$@" <<'P'
import json, sys
a, b = ({l["step"]: l for l in map(json.loads, open(f))} for f in sys.argv[1:3])
assert len(b) >= 1 and set(b) <= set(a) and max(a) == max(b), (sorted(a), sorted(b))
for s in b:
    assert a[s]["tokens"] == b[s]["tokens"], f"step {s}: {a[s]['tokens']} tokens, {b[s]['tokens']}"
    for k in ("loss", "grad_norm", "loss_val"):
        x, y = a[s].get(k, 0), b[s].get(k, 0)
        assert abs(x - y) <= float(sys.argv[3]) * abs(x), f"step {s}: {k} {x} {y}"
P
}

# ---- the same curve, adapters and all weights, with either optimiser
"${sft[@]}" --out one --db one.db > one.jsonl || fail "one process: $?"
"$launch" 3 "${sft[@]}" --out three --db three.db > three.jsonl || fail "three processes: $?"
[ "$(wc -l < three.jsonl)" = 12 ] || fail "one process writes: $(wc -l < three.jsonl) lines"
curve one.jsonl three.jsonl 2e-5 || fail "three processes have another curve"
[ "$(sqlite3 three.db "SELECT count(*) FROM runs")" = 1 ] || fail "one process records"
[ "$(cd three && echo checkpoint-*)" = "$(cd one && echo checkpoint-*)" ] || fail "checkpoints: $(ls three)"
"$launch" 3 "${sft[@]}" --out again --db none > again.jsonl || fail "three processes again: $?"
cmp three/adapter_model.safetensors again/adapter_model.safetensors || fail "another run of three processes has other bits"
full=("${sft[@]}" --method full --optimizer adamw8bit --max-steps 5 --eval-steps 0 -o lr=1e-3)
"${full[@]}" --out full1 --db none > full1.jsonl || fail "all weights, one process: $?"
"$launch" 3 "${full[@]}" --out full3 --db none > full3.jsonl || fail "all weights, three processes: $?"
curve full1.jsonl full3.jsonl 1e-3 || fail "all weights: another curve"

# ---- as MPI and Slurm start it, where they are; the example for Slurm, stopped by it and started again
mpi=$(mpirun --version 2> /dev/null | grep -q 'Open MPI' && echo mpirun --allow-run-as-root --oversubscribe -n 2)
slurm=$(sinfo -h -o %a 2> /dev/null | grep -q up && echo srun -n 2 --immediate=60)
two=("${sft[@]}" --global-batch 4)
[ -z "$mpi$slurm" ] || "$launch" 2 "${two[@]}" --out two --db none > two.jsonl || fail "two processes: $?"
for by in mpi slurm; do
    start=${!by}
    [ -n "$start" ] || continue
    timeout 120 $start "${two[@]}" --out $by --db none > $by.jsonl || fail "$start: $?"
    cmp two/adapter_model.safetensors $by/adapter_model.safetensors || fail "started by $by, other weights come out"
    echo "through $by, too"
done
if [ -n "$slurm" ]; then
    printf '[sft]\nlora.r = 4\nwarmup-steps = 2\nlr = 5e-3\nsave-steps = 2\n' > slurm.conf
    job=(sbatch --parsable --nodes=1 --ntasks-per-node=2 --gpus-per-node=0 --cpus-per-task=1 --mem=2G --time=5 --output=slurm-%j.log --export=ALL)
    export B=$(dirname "$BIN") CONFIG=slurm.conf MODEL=base DATA=data OUT=sb
    id=$(ARGS="--max-steps 400 --global-batch 4 --device cpu --db none -q" "${job[@]}" "$root/scripts/sbatch-train.sh") || fail "sbatch"
    for i in $(seq 600); do [ -e sb/checkpoint-4 ] && break; sleep 0.05; done
    scancel --signal=TERM "$id"
    for i in $(seq 600); do squeue -h -j "$id" 2> /dev/null | grep -q . || break; sleep 0.1; done
    step=$(sed -n "s/.*after step \([0-9]*\) of.*/\1/p" "slurm-$id.log" | head -n 1)
    [ -f "sb/checkpoint-$step/optimizer.safetensors" ] || fail "Slurm's TERM: $(cat "slurm-$id.log")"
    ARGS="--max-steps $((step + 2)) --global-batch 4 --device cpu --db none -q" timeout 120 "${job[@]}" --wait "$root/scripts/sbatch-train.sh" > /dev/null ||
        fail "sbatch again: $(cat slurm-*.log)"
    [ -f "sb/checkpoint-$((step + 2))/trainer_state.json" ] || fail "sbatch again does not go on: $(cat slurm-*.log)"
    unset B CONFIG MODEL DATA OUT
fi

# the last step of an epoch may leave a process without a record
short=("${sft[@]}" --batch-size 13 --global-batch 39 --max-steps 4 --eval-steps 0 --save-steps 0)
"${short[@]}" --out short1 --db none > short1.jsonl || fail "an epoch that does not divide, one process: $?"
"$launch" 3 "${short[@]}" --out short3 --db none > short3.jsonl || fail "an epoch that does not divide, three processes: $?"
curve short1.jsonl short3.jsonl 2e-5 || fail "an epoch that does not divide: another curve"

# ---- a signal to one ends all after the same step; another number goes on
port=$((20000 + $$ % 20000))
alone() { # rank size command...: a process as launch.sh starts it, in the background
    local r=$1 n=$2; shift 2
    RANK=$r LOCAL_RANK=$r WORLD_SIZE=$n LOCAL_WORLD_SIZE=$n MASTER_ADDR=127.0.0.1 MASTER_PORT=$port "$@" & pid[$r]=$!
}
until_there() { for i in $(seq 3000); do [ -e "$1" ] && return; sleep 0.02; done; fail "$1 does not come: $(cat err?.txt)"; }
pid=()
for r in 0 1 2; do alone $r 3 "${sft[@]}" --max-steps 400 --out stop --db none > out$r.txt 2> err$r.txt; done
until_there stop/checkpoint-4
kill -TERM ${pid[1]}
for r in 0 1 2; do wait ${pid[$r]}; rc=$?; [ $rc = 3 ] || fail "process $r ends with $rc after SIGTERM: $(cat err$r.txt)"; done
step=$(sed -n 's/.*after step \([0-9]*\) of.*/\1/p' err0.txt)
[ -f "stop/checkpoint-$step/optimizer.safetensors" ] || fail "no checkpoint of step $step: $(cat err0.txt)"
"$launch" 2 "${sft[@]}" --max-steps 400 --out stop --db none --resume --global-batch 8 > /dev/null 2> err.txt && fail "another number of records a step goes through"
grep -q "was made with 6 records a step, now they are 8 .*--global-batch 6 goes on" err.txt || fail "global batch: $(cat err.txt)"
cp -r three cut && rm -r cut/checkpoint-12 cut/checkpoint-10
"${sft[@]}" --out cut --db none --resume > cut1.jsonl || fail "one process goes on after three: $?"
curve one.jsonl cut1.jsonl 2e-5 || fail "three processes, then one: another curve"
rm -r cut && cp -r one cut && rm -r cut/checkpoint-12 cut/checkpoint-10
"$launch" 3 "${sft[@]}" --out cut --db none --resume > cut3.jsonl || fail "three processes go on after one: $?"
curve one.jsonl cut3.jsonl 2e-5 || fail "one process, then three: another curve"
python3 - <<'P' || fail "metrics.csv of a resumed run"
rows = [l.split(",") for l in open("cut/metrics.csv").read().splitlines()]
assert rows[0][:3] == ["step", "epoch", "loss"] and [int(r[0]) for r in rows[1:]] == list(range(1, 13)), rows
P

# ---- a signal to one of two while they evaluate, which would take minutes
port=$((port + 1))
mkdir long-val && cp data/train.json long-val && python3 -c 'import json; json.dump(json.load(open("data/val.json")) * 1000, open("long-val/val.json", "w"))'
for r in 0 1; do alone $r 2 timeout 60 "${sft[@]}" --data long-val --global-batch 4 --out due --eval-steps 1 --save-steps 0 --db none > out$r.txt 2> err$r.txt; done
until_there due/metrics.csv
sleep 0.5; pkill -TERM -P ${pid[1]} # timeout's child
for r in 0 1; do wait ${pid[$r]}; rc=$?; [ $rc = 3 ] || fail "process $r ends with $rc after SIGTERM in an evaluation: $(cat err$r.txt)"; done
grep -q '"evaluation_due": true' due/checkpoint-1/trainer_state.json || fail "the evaluation is not owed: $(cat due/checkpoint-1/trainer_state.json)"

# ---- one that is killed ends all, and says who it was; nothing half is left
port=$((port + 1))
for r in 0 1 2; do alone $r 3 "${sft[@]}" --max-steps 4000 --out kill --db none > out$r.txt 2> err$r.txt; done
until_there kill/checkpoint-4
kill -KILL ${pid[2]}
for r in 0 1; do wait ${pid[$r]}; rc=$?; [ $rc = 3 ] || fail "process $r ends with $rc after another was killed: $(cat err$r.txt)"; done
wait ${pid[2]} 2> /dev/null
grep -q "process 2 of 3.* ended without a word" err0.txt || fail "who was killed is not told: $(cat err0.txt)"
for c in kill/checkpoint-*; do for f in adapter_model.safetensors optimizer.safetensors trainer_state.json prompt.json; do
    [ -f $c/$f ] || fail "$c lacks $f"; done; done

# ---- what does not fit
port=$((port + 1))
sed 's/Part/Port/' data/train.json > other.json; mkdir -p other && cp other.json other/train.json && cp data/val.json other/
alone 0 2 "${sft[@]}" --global-batch 4 --out no --db none > out0.txt 2> err0.txt
alone 1 2 "${sft[@]}" --global-batch 4 --data other --out no --db none > out1.txt 2> err1.txt
for r in 0 1; do wait ${pid[$r]}; rc=$?; [ $rc = 2 ] || fail "other data: process $r ends with $rc ($(cat err$r.txt))"; done
grep -q "of process 1 is not that of process 0" err0.txt || fail "other data: $(cat err0.txt)"
RANK=0 WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=$((port + 1)) "${sft[@]}" --out no --db none --peer-timeout 1 --batch-size 1 > /dev/null 2> err.txt
[ $? = 3 ] && grep -q "after 1 s only 1 of 2 processes are here, without 1" err.txt || fail "one that does not come: $(cat err.txt)"
"$launch" 2 "${sft[@]}" --out no --db none --batch-size 4 > /dev/null 2> err.txt
[ $? = 2 ] && grep -q "global-batch 6 is no multiple of batch-size 4 x 2 processes" err.txt || fail "global batch: $(cat err.txt)"
CUDA_VISIBLE_DEVICES=0 "$launch" 2 true 2> err.txt
[ $? = 2 ] && grep -q "2 processes for 1 GPUs" err.txt || fail "more processes than GPUs: $(cat err.txt)"
RANK=2 WORLD_SIZE=2 "${sft[@]}" --out no --db none > /dev/null 2> err.txt
[ $? = 2 ] && grep -q "RANK=2 of WORLD_SIZE=2" err.txt || fail "a bad environment: $(cat err.txt)"
[ ! -e no ] || fail "something was written"
echo ok
