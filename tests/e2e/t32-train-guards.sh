#!/bin/bash
# sft over 200 steps against PEFT, and what goes wrong in training: losses that are no numbers, spikes, a kill while saving, other
# prompts, bases and optimisers; the best checkpoint; embeddings; what TensorBoard reads; make train as several processes.
set -u
BIN=${BIN:-build/bin}
root=$(cd "$(dirname "$0")/../.." && pwd)
case $BIN in /*) ;; *) BIN=$PWD/$BIN ;; esac
for t in sft merge-lora eval-loss tokenizer-train; do [ -x "$BIN/$t" ] || { echo "SKIP: $t is not built (no libtorch)"; exit 77; }; done
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
fail() { echo "FAIL: $*"; exit 1; }
expect() { # CODE TEXT command...
    local code=$1 text=$2; shift 2
    "$@" > out.txt 2> err.txt; local rc=$?
    [ $rc = "$code" ] || fail "exit $rc, $code is due: $* ($(cat err.txt))"
    grep -qF -- "$text" err.txt || fail "no '$text' from $*: $(cat err.txt)"
}
cd "$dir" || exit 1
export CUDA_VISIBLE_DEVICES=
golden=$root/tests/golden/torch/curve

# ---- 200 steps as PEFT makes them (tests/golden/torch/curve.py): every loss within a percent, and far less
"$BIN/sft" --model "$golden" --adapter "$golden/adapter" --data "$golden" --out peft --max-steps 200 --warmup-steps 20 -o lr=2e-3 --batch-size 2 \
    --accumulation 2 --save-steps 0 --json -q --db none > peft.jsonl || fail "the 200 steps: $?"
python3 - "$golden/expect.json" <<'P' || fail "the curve is not PEFT's"
import json, sys
want, got = json.load(open(sys.argv[1])), [json.loads(l) for l in open("peft.jsonl")]
assert len(got) == len(want["loss"]) == 200
worst = max(abs(g["loss"] - w) / w for g, w in zip(got, want["loss"]))
print("largest relative difference of the loss from PEFT's:", worst)
assert worst < 0.01 and want["loss"][-1] < 0.7 * want["loss"][0]
P

python3 "$root/tests/e2e/tiny_model.py" "$root" . || fail "python3 is needed"
cp "$golden"/tokenizer*.json arch/
"$BIN/sft" --model arch --data data --out base --method full --init random --max-steps 4 --warmup-steps 2 -o lr=2e-3 --batch-size 2 \
    --accumulation 1 --db none -q || fail "sft --method full: $?"
lora=("$BIN/sft" --model base -o lora.r=4 --warmup-steps 2 -o lr=5e-3 --db none -q)

# ---- numbers that are none: the record is named, nothing is saved of it
"${lora[@]}" --data data --out two --max-steps 2 --batch-size 2 --accumulation 1 || fail "two steps: $?"
cp -r two huge && python3 - <<'P'
import struct
b = open("huge/adapter_model.safetensors", "rb").read(); n, = struct.unpack("<Q", b[:8])
open("huge/adapter_model.safetensors", "wb").write(b[:8 + n] + struct.pack("<f", 1e25) * ((len(b) - 8 - n) // 4))
P
expect 3 "no step was made of it" "${lora[@]}" --data data --out nan --adapter huge --batch-size 1 --accumulation 1 --max-steps 9 --save-steps 1
grep -Eq 'step [0-9]+: the loss is not finite for record 000000[0-9]{2} of train.json' err.txt || fail "NaN: $(cat err.txt)"
step=$(sed -n 's/.*step \([0-9]*\): the loss.*/\1/p' err.txt)
[ ! -e nan/checkpoint-$step ] && [ ! -e nan/adapter_model.safetensors ] || fail "the step of a NaN is saved"

# ---- spikes: record 60 of 80 is noise among copies
python3 - <<'P'
import json, random
rows = json.load(open("data/train.json"))
random.seed(1)
noise = {**rows[1], "id_original": "noise", "output": "".join(chr(random.randrange(33, 127)) for _ in range(250))}
out = [{**rows[0], "id_original": f"copy{i}"} for i in range(80)]
M, s, v = 2**64 - 1, (5 * 0x9e3779b97f4a7c15) & (2**64 - 1), list(range(80))   # sft's order of the first epoch, seed 5
for i in range(80, 1, -1):
    s = (s + 0x9e3779b97f4a7c15) & M
    z = ((s ^ s >> 30) * 0xbf58476d1ce4e5b9) & M
    z = ((z ^ z >> 27) * 0x94d049bb133111eb) & M
    j = (z ^ z >> 31) % i
    v[j], v[i - 1] = v[i - 1], v[j]
out[v[60]] = noise
import os; os.makedirs("spike"); json.dump(out, open("spike/train.json", "w"))
P
spike=("${lora[@]}" --method full --train-embeddings --data spike --batch-size 1 --accumulation 1 --seed 5 --save-steps 0 -o lr=1e-2 --json --max-steps 62)
"${spike[@]}" --out s1 > s1.jsonl 2> err.txt || fail "spike: $? $(cat err.txt)"
grep -Eq 'step 61: loss [0-9.]+ after an average of [0-9.]+; most of it is record noise, with [0-9.]+$' err.txt || fail "the spike is not told: $(cat err.txt; tail -3 s1.jsonl)"
"${spike[@]}" --out s2 --on-spike skip > s2.jsonl 2> err.txt || fail "spike skipped: $?"
sed -n 61p s2.jsonl | grep -q '"grad_norm":0.0,.*"skipped":true' || fail "the spike is not skipped: $(sed -n 61p s2.jsonl)"
expect 3 "(--on-spike stop)" "${spike[@]}" --out s3 --on-spike stop

# ---- killed at any moment while it saves: what is there is whole, and it goes on
save=("${lora[@]}" --data data --out kill --max-steps 100000 --batch-size 1 --accumulation 1 --save-steps 1 --keep-checkpoints 2)
for delay in 0.31 0.05 0.13 0.22 0.4 0.09; do
    resume=; [ -e kill ] && resume=--resume
    "${save[@]}" $resume > /dev/null 2>&1 & pid=$!
    n=$(ls -d kill/checkpoint-* 2> /dev/null | wc -l)
    before=$(ls kill 2> /dev/null | sort -V | tail -1)
    for i in $(seq 1000); do [ "$(ls kill 2> /dev/null | grep '^checkpoint' | sort -V | tail -1)" != "$(echo "$before" | grep '^checkpoint')" ] && break; sleep 0.02; done
    sleep $delay
    kill -9 $pid 2> /dev/null || fail "it ended by itself"
    wait $pid 2> /dev/null
    [ "$(ls -d kill/checkpoint-* | wc -l)" -ge 1 ] || fail "no checkpoint is left"
    for c in kill/checkpoint-*; do
        for f in adapter_config.json adapter_model.safetensors optimizer.safetensors prompt.json trainer_state.json; do [ -s $c/$f ] || fail "$c lacks $f: $(ls $c)"; done
        python3 - $c <<'P' || fail "$c is not whole"
import json, os, struct, sys
for f in ("adapter_model", "optimizer"):
    p = f"{sys.argv[1]}/{f}.safetensors"
    with open(p, "rb") as s:
        n, = struct.unpack("<Q", s.read(8)); h = json.loads(s.read(n)); h.pop("__metadata__", None)
    assert os.path.getsize(p) == 8 + n + max(t["data_offsets"][1] for t in h.values())
assert json.load(open(f"{sys.argv[1]}/trainer_state.json"))["step"] == int(sys.argv[1].rsplit("-", 1)[1])
P
    done
done
last=$(ls -d kill/checkpoint-* | sort -V | tail -1); last=${last##*-}
"${save[@]}" --resume --max-steps $((last + 2)) > /dev/null 2>&1 || fail "it does not go on after the kills: $?"
ls -A kill | grep -q '^\.' && fail "leftovers: $(ls -A kill)"

# ---- the best by val.json stays, and can be what comes out
best=("${lora[@]}" --data data --batch-size 2 --accumulation 1 --max-steps 30 --eval-steps 3 --save-steps 3 --keep-checkpoints 2 --schedule constant -o lr=0.08 --json)
"${best[@]}" --out best --final best > best.jsonl || fail "--final best: $?"
python3 - <<'P' || fail "the best checkpoint"
import json, os
val = {l["step"]: l["loss_val"] for l in map(json.loads, open("best.jsonl")) if "loss_val" in l}
best = min(val, key=val.get)
there = sorted(int(d[11:]) for d in os.listdir("best") if d.startswith("checkpoint-"))
assert there == sorted({best, 27, 30}), (best, there, val)
assert open("best/adapter_model.safetensors", "rb").read() == open(f"best/checkpoint-{best}/adapter_model.safetensors", "rb").read()
assert json.load(open("best/checkpoint-30/trainer_state.json"))["best_step"] == best
rows = [l.split(",") for l in open("best/metrics.csv").read().splitlines()]
assert len(rows) == 31 and rows[0][-1] == "loss_val" and [r[-1] != "" for r in rows[1:]] == [s % 3 == 0 for s in range(1, 31)]
P
if python3 -c 'import tensorboard' 2> /dev/null; then
    python3 - <<'P' || fail "TensorBoard reads otherwise"
import json
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
a = EventAccumulator("best/tensorboard"); a.Reload()
lines = [json.loads(l) for l in open("best.jsonl")]
assert [(e.step, round(e.value, 4)) for e in a.Scalars("train/loss")] == [(l["step"], round(l["loss"], 4)) for l in lines]
assert [e.step for e in a.Scalars("eval/loss_val")] == list(range(3, 31, 3))
P
    echo "TensorBoard reads the events"
fi

# ---- embeddings and head with the adapter
"${lora[@]}" --data data --out emb --max-steps 6 --batch-size 2 --train-embeddings --optimizer adamw8bit || fail "--train-embeddings: $?"
"$BIN/merge-lora" --model base --adapter emb --out embm --db none -q --json > m.json || fail "merging embeddings: $?"
grep -q '"merged":14,"replaced":1,' m.json || fail "embeddings are not merged: $(cat m.json)"
for m in "base --adapter emb" embm; do "$BIN/eval-loss" --model $m --data data/val.json --db none -q --json; done > l.jsonl || fail "eval-loss: $?"
python3 -c 'import json; a, b = (json.loads(l)["loss"] for l in open("l.jsonl")); assert abs(a - b) < 2e-3, (a, b)' || fail "merged embeddings have another loss"

# ---- what does not fit
expect 2 "was trained with the retrieval prompt: leave out --no-rag" "${lora[@]}" --data data --out no --adapter best --no-rag
cp -r base sister && python3 - <<'P'
b = bytearray(open("sister/model.safetensors", "rb").read()); b[-2000:] = bytes(2000); open("sister/model.safetensors", "wb").write(b)
P
expect 3 "was trained on other weights than those in sister/model.safetensors" "$BIN/eval-loss" --model sister --adapter best --data data/val.json --db none -q
expect 2 "is the state of --optimizer adamw8bit, not of adamw" "${lora[@]}" --data data --out emb --max-steps 9 --batch-size 2 --train-embeddings --resume
mkdir changed && sed 's/holes/slots/' data/train.json > changed/train.json
expect 2 "the training data, tokenizer or prompt changed since this checkpoint" "${lora[@]}" --data changed --out best --batch-size 2 --accumulation 1 --max-steps 40 --resume
on() { "${lora[@]}" --data data --out again --max-steps 4 --save-steps 2 --batch-size 2 --accumulation 1 "$@"; }
on || fail "two steps: $?"
expect 2 "checkpoint-4: lora.alpha was 16, now it is 64; start anew" on --resume --max-steps 6 -o lora.alpha=64
expect 2 "lora.target was all, now it is q_proj v_proj; start anew" on --resume --max-steps 6 -o lora.target=q_proj -o lora.target=v_proj
expect 2 "method was lora, now it is full; train-embeddings was false, now it is true; start anew" on --resume --max-steps 6 --method full
expect 3 "checkpoint-4: it was trained on other weights than those in sister/model.safetensors" on --resume --max-steps 6 --model sister
on --resume --max-steps 6 -o lr=1e-4 --seed 7 2> err.txt || fail "another learning rate: $?"
grep -Eq 'other settings than again/checkpoint-4 has: seed was [0-9]+, now it is 7; lr was [0-9.e-]+, now it is 0.0001$' err.txt || fail "changed settings are not told: $(cat err.txt)"
expect 2 "--out ./base: is an input" "${lora[@]}" --data data --out ./base --method full
expect 2 "--out data: is an input" "${lora[@]}" --data data --out data
expect 2 "--out again/metrics.csv: is no folder" "${lora[@]}" --data data --out again/metrics.csv

# ---- two at work in one folder: the second one does not begin.  A signal while val.json is evaluated does not wait for its end: what is resumed measures first
mkdir long-val && cp data/train.json long-val && python3 -c 'import json; json.dump(json.load(open("data/val.json")) * 300, open("long-val/val.json", "w"))'
eval=("${lora[@]}" --out stopped --max-steps 4 --eval-steps 2 --save-steps 0 --batch-size 2 --accumulation 1 --device cpu)
"${eval[@]}" --data long-val 2> stopped.txt & pid=$!
for i in $(seq 3000); do grep -q '^1,' stopped/metrics.csv 2> /dev/null && break; sleep 0.02; done
expect 2 "--out stopped: another sft is at work there" "${eval[@]}" --data data
sleep 0.3; kill -TERM $pid; wait $pid; rc=$?
[ $rc = 3 ] && grep -q 'stopped by a signal after step 2 of 4, which is saved' stopped.txt || fail "a signal during the evaluation: $rc $(cat stopped.txt)"
grep -q '"evaluation_due": true' stopped/checkpoint-2/trainer_state.json || fail "the evaluation is not owed: $(cat stopped/checkpoint-2/trainer_state.json)"
"${eval[@]}" --data data --resume --db v.db || fail "after a stopped evaluation: $?"
"${eval[@]}" --data data --out through --db v.db || fail "the same without a stop: $?"
[ "$(sqlite3 v.db "SELECT group_concat(step || ' ' || value) FROM metrics WHERE name='loss_val' GROUP BY run_id" | sort -u | wc -l)" = 1 ] &&
    [ "$(sqlite3 v.db "SELECT count(*) FROM metrics WHERE name='loss_val'")" = 4 ] || fail "loss on val.json: $(sqlite3 v.db "SELECT run_id, step, value FROM metrics WHERE name='loss_val'")"
cmp stopped/adapter_model.safetensors through/adapter_model.safetensors || fail "after a stopped evaluation other weights come out"
expect 2 "--final best needs --eval-steps" "${lora[@]}" --data data --out no --final best
"${lora[@]}" --data data --out long --max-tokens 390 --overlong truncate --max-steps 1 --save-steps 0 2> err.txt || fail "--overlong truncate: $?"
grep -Eq 'train.json: [0-9]+ records of more than 390 tokens were cut' err.txt || fail "cut records are not counted: $(cat err.txt)"
"${lora[@]}" --data data --out long2 --max-tokens 390 --max-steps 1 --save-steps 0 2> err.txt || fail "--overlong drop: $?"
grep -Eq 'train.json: [0-9]+ records of more than 390 tokens were dropped' err.txt || fail "dropped records are not counted: $(cat err.txt)"
[ ! -e no ] || fail "something was written"

# ---- make train's script, as two processes, with the config's records a step
printf '[model]\ndir = %s/base\nmax_tokens = 1000\n[sft]\nlora.r = 4\nbatch-size = 1\naccumulation = 4\nmax-steps = 4\nsave-steps = 2\nmax-tokens = 1000\n' "$dir" > tiny.conf
train() { (cd "$root" && env B="$(dirname "$BIN")" MODEL="$dir/tiny.conf" DATA="$dir/data" OUT="$dir/made" DB="$dir/made.db" ARGS=-q "$@" scripts/train.sh); }
train GPUS=2 2> err.txt || fail "GPUS=2: $? $(cat err.txt)"
grep -q '"global_batch": 4' made/checkpoint-4/trainer_state.json || fail "GPUS=2 has another step: $(cat made/checkpoint-4/trainer_state.json)"
train ARGS='-q --max-steps 6' RESUME=1 2> err.txt || fail "RESUME=1: $? $(cat err.txt)"
[ -d made/checkpoint-6 ] || fail "RESUME=1 did not go on"
rm -r made
train RESUME=1 2> err.txt && fail "RESUME=1 without a checkpoint goes through"
grep -q "holds no checkpoint" err.txt || fail "RESUME=1: $(cat err.txt)"
echo ok
