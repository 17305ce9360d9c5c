#!/bin/bash
# sft, merge-lora and eval-loss on a tiny model of our own: learning, exact resuming after SIGKILL and SIGTERM,
# PEFT's layout, merging, losses by checkpoint, bad input.
set -u
BIN=${BIN:-build/bin}
root=$(cd "$(dirname "$0")/../.." && pwd)
case $BIN in /*) ;; *) BIN=$PWD/$BIN ;; esac
for t in sft merge-lora eval-loss; do [ -x "$BIN/$t" ] || { echo "SKIP: $t is not built (no libtorch)"; exit 77; }; done
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
fail() { echo "FAIL: $*"; exit 1; }
# expect CODE TEXT command...: exit code, and one line on stderr holding TEXT
expect() {
    local code=$1 text=$2; shift 2
    "$@" > out.txt 2> err.txt; local rc=$?
    [ $rc = "$code" ] || fail "exit $rc, $code is due: $* ($(cat err.txt))"
    grep -qF -- "$text" err.txt || fail "no '$text' from $*: $(cat err.txt)"
    [ "$(grep -vc "warning: " err.txt)" = 1 ] || fail "more than one line from $*: $(cat err.txt)"
}
cd "$dir" || exit 1

python3 "$root/tests/e2e/tiny_model.py" "$root" . || fail "python3 is needed"
"$BIN/tokenizer-train" "$root/datasets/sample" --out arch --vocab-size 600 --db none -q > /dev/null || fail "tokenizer-train"
cp arch/tokenizer*.json wide/

# ---- all weights from scratch, then adapters
"$BIN/sft" --model arch --data data --out base --method full --init random --max-steps 10 --warmup-steps 2 -o lr=2e-3 \
    --batch-size 2 --accumulation 1 --db none -q || fail "sft --method full: $?"
for f in config.json tokenizer.json tokenizer_config.json model.safetensors prompt.json; do [ -f base/$f ] || fail "base lacks $f"; done
lora=("$BIN/sft" --model base --data data -o lora.r=4 --max-steps 24 --warmup-steps 2 -o lr=5e-3 --batch-size 2 --accumulation 2
    --save-steps 4 --eval-steps 12 --json -q -j2)
"${lora[@]}" --out whole --db whole.db > whole.jsonl || fail "sft: $?"
[ "$(sqlite3 whole.db "SELECT count(*) FROM metrics WHERE name='loss_val'")" = 2 ] || fail "no loss on val.json"
python3 - <<'P' || exit 1
import json, struct
lines = [json.loads(l) for l in open("whole.jsonl")]
assert [l["step"] for l in lines] == list(range(1, 25)), "a line a step"
for k in ("step", "epoch", "loss", "lr", "grad_norm", "tokens"):
    assert k in lines[0], k
assert lines[-1]["loss"] < lines[0]["loss"] - 0.3, f"it does not learn: {lines[0]['loss']} -> {lines[-1]['loss']}"
assert abs(lines[2]["lr"] - 5e-3) < 1e-12 and lines[0]["lr"] == 0, "warm-up"
c = json.load(open("whole/adapter_config.json"))
assert c["peft_type"] == "LORA" and c["r"] == 4 and c["lora_alpha"] == 16 and len(c["target_modules"]) == 7, c
b = open("whole/adapter_model.safetensors", "rb").read()
n, = struct.unpack("<Q", b[:8])
h = json.loads(b[8:8 + n]); h.pop("__metadata__", None)
assert len(h) == 2 * 7 * 2, len(h)
p = "base_model.model.model.layers.1.mlp.down_proj.lora_"
assert h[p + "A.weight"]["shape"] == [4, 128] and h[p + "B.weight"]["shape"] == [64, 4] and h[p + "A.weight"]["dtype"] == "F32"
P
[ $? = 0 ] || fail "the training run"
[ "$(cd whole && echo checkpoint-*)" = "checkpoint-16 checkpoint-20 checkpoint-24" ] || fail "the last three checkpoints are due: $(ls whole)"

# ---- killed and stopped on the way: the same bytes in the end, no step twice in the records
for signal in KILL TERM; do
    "${lora[@]}" --out $signal --db $signal.db > a.jsonl 2> err.txt & pid=$!
    for i in $(seq 1500); do [ -d $signal/checkpoint-8 ] && break; sleep 0.02; done
    kill -$signal $pid 2> /dev/null || fail "it ended before the signal"
    wait $pid 2> /dev/null; rc=$?
    [ ! -e $signal/adapter_model.safetensors ] || fail "SIG$signal came too late to test anything"
    if [ $signal = TERM ]; then
        [ $rc = 3 ] || fail "exit $rc after SIGTERM"
        grep -q 'stopped by a signal after step .*is saved' err.txt || fail "SIGTERM: $(cat err.txt)"
        step=$(sed -n 's/.*after step \([0-9]*\) of.*/\1/p' err.txt)
        [ -f TERM/checkpoint-$step/optimizer.safetensors ] || fail "no checkpoint of step $step"
        [ "$(sqlite3 TERM.db 'SELECT state FROM runs')" = cancelled ] || fail "the run is not cancelled"
        expect 2 "--resume goes on" "$BIN/sft" --model base --data data --out TERM --db none -q
    fi
    "${lora[@]}" --out $signal --db $signal.db --resume > b.jsonl || fail "--resume after SIG$signal: $?"
    cmp whole/adapter_model.safetensors $signal/adapter_model.safetensors || fail "resumed after SIG$signal, other weights come out"
    cmp whole/checkpoint-24/optimizer.safetensors $signal/checkpoint-24/optimizer.safetensors || fail "other optimiser state"
    sqlite3 whole.db "SELECT step, value FROM metrics WHERE name='loss' ORDER BY step" > want.txt
    sqlite3 $signal.db "SELECT step, value FROM metrics WHERE name='loss' ORDER BY step" > got.txt
    cmp want.txt got.txt || fail "the recorded curve differs after SIG$signal"
    ls -A $signal | grep -q part && fail "a part is left"
done
[ "$(head -1 b.jsonl | sed 's/{"step":\([0-9]*\),.*/\1/')" -gt 8 ] || fail "--resume began again"

# ---- frozen weights in 8 bits: nearly the same curve; going on after a stop, the same bytes (the scales are not part of a checkpoint)
eight=("${lora[@]}" --precision fp8 --db none --eval-steps 0)
"${eight[@]}" --out eight > eight.jsonl || fail "--precision fp8: $?"
"${eight[@]}" --out eight2 --save-steps 10 > /dev/null && rm -r eight2/checkpoint-2? eight2/adapter_model.safetensors && "${eight[@]}" --out eight2 --resume > /dev/null ||
    fail "--precision fp8 --resume: $?"
cmp eight/adapter_model.safetensors eight2/adapter_model.safetensors || fail "resumed in 8 bits, other weights come out"
python3 - <<'P' || fail "the curve in 8 bits: $(tail -1 whole.jsonl) $(tail -1 eight.jsonl)"
import json
a, b = ([json.loads(l)["loss"] for l in open(f)] for f in ("whole.jsonl", "eight.jsonl"))
assert len(a) == len(b) and a != b and max(abs(x - y) / x for x, y in zip(a, b)) < 0.02, max(abs(x - y) / x for x, y in zip(a, b))
P
expect 2 "8-bit products are for frozen weights" "$BIN/sft" --model base --data data --method full --precision fp8 --out no --db none -q

# ---- losses
"$BIN/eval-loss" --model base --checkpoints whole --data data/val.json --db e.db --json -q --csv curve.csv > c.jsonl || fail "eval-loss: $?"
"$BIN/eval-loss" --model base --adapter whole --data data/val.json --db e.db --json -q > a.json || fail "eval-loss --adapter: $?"
"$BIN/eval-loss" --model base --data data/val.json --db e.db --json -q > base.json || fail "eval-loss of the base: $?"
"$BIN/eval-loss" --model base --checkpoints base --data data/val.json --db none --json -q > full.json || fail "eval-loss of whole checkpoints: $?"
"$BIN/merge-lora" --model base --adapter whole --out merged --db e.db -q > m.txt || fail "merge-lora: $?"
grep -q '^merged: 14 of 26 tensors merged, scale 4$' m.txt || fail "merge-lora says $(cat m.txt)"
grep -q '^logits are within [0-9.e-]* of those of base and adapter$' m.txt || fail "merge-lora does not check: $(cat m.txt)"
grep -q '"template": "retrieval"' merged/prompt.json && ! grep -q base merged/prompt.json || fail "the merged model's prompt: $(cat merged/prompt.json)"
"$BIN/merge-lora" --model base --adapter whole --out shards --max-shard 100k --db none -q > /dev/null || fail "merge-lora in shards: $?"
[ -f shards/model.safetensors.index.json ] && [ ! -e shards/model.safetensors ] || fail "no shards"
for m in merged shards; do "$BIN/eval-loss" --model $m --data data/val.json --db none --json -q > $m.json || fail "eval-loss of $m: $?"; done
python3 - whole.db <<'P' || exit 1
import json, sqlite3, sys
one = lambda f: json.loads(open(f).read())
rows = [json.loads(l) for l in open("c.jsonl")]
assert [r["step"] for r in rows] == [16, 20, 24] and rows[0]["checkpoint"] == "whole/checkpoint-16", rows
assert rows[2]["loss"] < rows[0]["loss"] < one("base.json")["loss"], "it did not learn"
assert rows[2]["loss"] == one("a.json")["loss"], "the last checkpoint is the adapter"
assert one("full.json")["loss"] == one("base.json")["loss"], "checkpoint-10 is the base"
trained = sqlite3.connect(sys.argv[1]).execute("SELECT value FROM metrics WHERE name='loss_val' AND step=24").fetchone()[0]
assert abs(rows[2]["loss"] - trained) < 1e-6, "sft saw another loss on val.json"
for m in ("merged", "shards"):
    d = abs(one(m + ".json")["loss"] - one("a.json")["loss"])
    assert d < 1e-3, f"merging moves the loss by {d}"        # the base is bfloat16, and so is what is merged
assert one("merged.json")["loss"] == one("shards.json")["loss"]
assert one("a.json")["records"] == 12 and one("a.json")["tokens"] > 500
assert len(open("curve.csv").read().splitlines()) == 4
P
[ $? = 0 ] || fail "the losses"
[ "$(sqlite3 e.db "SELECT group_concat(step) FROM metrics JOIN runs ON id=run_id WHERE run_id=1 AND name='loss'")" = 16,20,24 ] || fail "no curve in the database"

if [ -x "$BIN/report" ]; then
    "$BIN/report" --db e.db --curve 1 --out curve.svg -q && grep -q '<svg' curve.svg && grep -q 'eval-loss, run 1' curve.svg || fail "no plot of eval-loss"
    "$BIN/report" --db e.db --format html --out e.html -q && grep -q 'Held-out loss by checkpoint, run 1' e.html || fail "no plot of eval-loss in the page"
fi

# eval-loss killed between checkpoints scores the rest only
"$BIN/eval-loss" --model base --checkpoints whole --data data/many.json --db k.db --json -q > /dev/null & pid=$!
for i in $(seq 300); do [ "$(sqlite3 k.db 'SELECT count(*) FROM items' 2> /dev/null || echo 0)" -ge 1 ] && break; sleep 0.02; done
kill -9 $pid 2> /dev/null || fail "eval-loss ended before it was killed"
wait $pid 2> /dev/null
before=$(sqlite3 k.db 'SELECT count(*) FROM items')
"$BIN/eval-loss" --model base --checkpoints whole --data data/many.json --db k.db --json -q > k.jsonl || fail "eval-loss again: $?"
[ "$(wc -l < k.jsonl)" = 3 ] || fail "a line for each checkpoint is due"
[ "$(sqlite3 k.db 'SELECT count(*) FROM runs')" = 1 ] && [ "$(sqlite3 k.db 'SELECT count(*) FROM items WHERE attempt=1')" = "$before" ] || fail "checkpoints were scored twice"

# ---- bad input: one line, the documented code, nothing half-written
cp -r base cut; head -c 100000 base/model.safetensors > cut/model.safetensors
cp -r base badtok; head -c 3000 base/tokenizer.json > badtok/tokenizer.json
cp -r base noconf; rm noconf/config.json
python3 - <<'P'
b = bytearray(open("base/model.safetensors", "rb").read()); b[-4000:-2000] = b"\xff" * 2000
import os; os.makedirs("nan"); open("nan/model.safetensors", "wb").write(b)
P
cp base/*.json nan/
sft() { "$BIN/sft" --data data --db none -q --max-steps 2 --out no "$@"; }
expect 3 "cut short" sft --model cut
expect 3 "badtok/tokenizer.json" sft --model badtok
expect 3 "noconf/config.json" sft --model noconf
expect 3 "nan/model.safetensors: not all numbers of model.layers.1.mlp.down_proj.weight are finite" sft --model nan
expect 3 "absent" sft --model absent
expect 3 "tokenizer and model do not fit" sft --model narrow --tokenizer base --method full --init random
expect 2 "needs --method full" sft --model base --init random
expect 2 "lora.target 'qproj'" sft --model base -o lora.target=qproj
expect 3 "data/absent/train.json" sft --model base --data data/absent
expect 3 "has no retrieved part" sft --model base --data data/plain
expect 3 "record 3" sft --model base --data data/broken
[ ! -e no ] || fail "something was written"
"$BIN/sft" --model base --data data/empties --out e --max-steps 1 --save-steps 0 --db none > /dev/null 2> err.txt || fail "empty outputs: $?"
grep -q '1 records without a token of output were dropped' err.txt || fail "an empty output is not told: $(cat err.txt)"
"$BIN/sft" --model wide --data data --out wider --method full --init random --max-steps 1 --db none -q || fail "another model: $?"
"${lora[@]}" --model wider --out KILL --db none --resume --max-steps 30 > /dev/null 2> err.txt && fail "--resume on another model goes through"
[ "$(grep -c error: err.txt)" = 1 ] || fail "--resume on another model: $(cat err.txt)"

expect 2 "is there already" "$BIN/merge-lora" --model base --adapter whole --out merged --db none -q
expect 2 "is not replaced" "$BIN/merge-lora" --model base --adapter whole --out data --force --db none -q
expect 2 "is not replaced" "$BIN/merge-lora" --model base --adapter whole --out base/ --force --db none -q
"$BIN/merge-lora" --model base --adapter whole --out merged/ --force --db none -q > /dev/null || fail "--force: $?"
expect 3 "was trained on other weights than those in wider/model.safetensors" "$BIN/merge-lora" --model wider --adapter whole --out no --db none -q
cp -r whole stray && rm stray/prompt.json
expect 3 "the adapter does not fit this model" "$BIN/merge-lora" --model wider --adapter stray --out no --db none -q
expect 3 "adapter_config.json" "$BIN/merge-lora" --model base --adapter merged --out no --db none -q
expect 3 "cut short" "$BIN/merge-lora" --model cut --adapter whole --out no --db none -q
expect 3 "not all numbers are finite" "$BIN/merge-lora" --model nan --adapter whole --out no --db none -q
cp -r whole extra
python3 - <<'P'
import json, struct
b = open("extra/adapter_model.safetensors", "rb").read(); n, = struct.unpack("<Q", b[:8])
h = json.loads(b[8:8 + n]); d = b[8 + n:]
h["base_model.model.model.embed_tokens.lora_embedding_A"] = {"dtype": "F32", "shape": [1], "data_offsets": [len(d), len(d) + 4]}
t = json.dumps(h).encode()
open("extra/adapter_model.safetensors", "wb").write(struct.pack("<Q", len(t)) + t + d + b"\0" * 4)
P
expect 3 "lora_embedding_A has no place" "$BIN/merge-lora" --model base --adapter extra --out no --db none -q
[ ! -e no ] && [ -z "$(ls -A | grep '^\.no')" ] || fail "merge-lora left something"
evaluate() { "$BIN/eval-loss" --model base --data data/val.json --db none -q "$@"; }
expect 2 "was trained with the retrieval prompt" evaluate --adapter whole --no-rag
expect 2 "exclude each other" evaluate --adapter whole --checkpoints whole
expect 3 "holds no checkpoint-STEP" evaluate --checkpoints data
expect 3 "no record is left" evaluate --max-tokens 20
expect 3 "not_finite" "$BIN/eval-loss" --model nan --data data/val.json --db none -q
echo ok
