#!/bin/bash
# make eval on parts that are there: strict and reference rows of every tool, by shards the same as by one process, parts from
# elsewhere under a label of their own; what is missing is named with the command that makes it.
set -u
cd "$(dirname "$0")/../.."
BIN=$(cd "${BIN:-build/bin}" && pwd)
for tool in report complete-ratio renderability chamfer entity-stats runs-merge; do [ -x "$BIN/$tool" ] || { echo "SKIP: $tool is not built"; exit 77; }; done
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
fail() { echo "FAIL: $*"; [ ! -s "$dir/err" ] || tail -5 "$dir/err"; exit 1; }
mkdir -p "$dir/data/truth" "$dir/one/parts" "$dir/two" "$dir/other"
for i in 0 1 2 3 4 5 6; do cp datasets/sample/steps/0000000$i.step "$dir/data/truth/"; cp datasets/sample/steps/0000000$i.step "$dir/one/parts/"; done
head -c 2500 datasets/sample/steps/00000001.step > "$dir/one/parts/00000001.step"
cp datasets/sample/steps/00000020.step "$dir/one/parts/00000002.step"
echo >> "$dir/one/parts/00000003.step" # a blank last line, which the original takes for an incomplete file
rm "$dir/one/parts/00000004.step"
python3 -c 'import json; print(json.dumps([{"id_original": "%08d" % i, "caption": "A part.", "output": "x"} for i in range(7)]))' > "$dir/data/test.json"
echo '{"architectures": ["Qwen2ForCausalLM"]}' > "$dir/one/config.json"
cp -r "$dir/one/parts" "$dir/two/parts"
run() { B=$(dirname "$BIN") DATA=$dir/data CKPT=$dir/one GENERATE=no LABEL='SFT with RAG, Qwen' "$@" scripts/eval.sh > "$dir/out" 2> "$dir/err"; }

run env DB="$dir/one.db" OUT="$dir/one" || fail "eval: exit $?"
"$BIN/report" --db "$dir/one.db" > "$dir/out" 2> "$dir/err" || fail "report"
grep -q "STEP-LLM on Llama-3.2-3B, SFT with RAG *all *make train MODEL=llama && make eval CKPT=runs/llama LABEL='SFT with RAG, Llama'" "$dir/out" || fail "missing rows: $(cat "$dir/out")"
grep -q "ablation: parents first *all *ROWS=parent" "$dir/out" || fail "missing ablations: $(cat "$dir/out")"
[ -s "$dir/report.html" ] || fail "no page"
# ---- by shards ----
run env DB="$dir/two.db" OUT="$dir/two" SHARD=1/2; [ $? -eq 3 ] && grep -q 'goes with one stage' "$dir/err" || fail "SHARD without a stage: $(cat "$dir/err")"
for i in 1 2; do run env DB="$dir/two.db" OUT="$dir/two" SHARD=$i/2 STAGES=score || fail "shard $i: exit $?"; done
[ ! -e "$dir/two.db" ] || fail "a shard wrote the common database"
run env DB="$dir/two.db" OUT="$dir/two" STAGES=report || fail "report of shards: exit $?"
for d in one two; do "$BIN/report" --db "$dir/$d.db" --format csv --table scores > "$dir/$d.csv" 2> "$dir/err" || fail "csv"; done
cmp -s "$dir/one.csv" "$dir/two.csv" || fail "shards give other numbers: $(diff "$dir/one.csv" "$dir/two.csv")"
# ---- a baseline ----
cp "$dir"/data/truth/0000000[0-3].step "$dir/other/"
B=$(dirname "$BIN") DB=$dir/one.db TRUTH=$dir/data/truth scripts/eval.sh --label Text2CAD "$dir/other" > "$dir/out" 2> "$dir/err" || fail "a baseline: exit $?"
"$BIN/report" --db "$dir/one.db" --format csv --table scores > "$dir/one.csv" 2> "$dir/err"
python3 - "$dir/one.csv" <<'PY' || fail "numbers: $(cat "$dir/one.csv")"
import csv, sys
rows = {(r["method"], r["scored"]): r for r in csv.DictReader(open(sys.argv[1]))}
s, o = rows["SFT with RAG, Qwen", "strict"], rows["SFT with RAG, Qwen", "reference"]
assert [s["cr_n"], s["rr_n"], s["mscd_n"], s["mscd_failed_worst_n"], s["aec_n"]] == ["6", "6", "5", "7", "5"], s
assert abs(float(s["cr"]) - 100 * 5 / 6) < 0.01 and abs(float(o["cr"]) - 100 * 4 / 6) < 0.01, (s["cr"], o["cr"])
assert o["aec"] and float(o["aec"]) > 0 and o["rr"] and o["mscd"], o
t = rows["Text2CAD", "strict"]
assert float(t["cr"]) == float(t["rr"]) == 100 and t["mscd_n"] == "4" and t["mscd_failed_worst_n"] == "7", t
names = [r["method"] for r in csv.DictReader(open(sys.argv[1]))]
assert names.index("STEP-LLM on Qwen2.5-3B, SFT with RAG") + 1 == names.index("SFT with RAG, Qwen"), names
for n in ("ground truth", "Text2CAD", "STEP-LLM, SFT with RAG", "STEP-LLM on Llama-3.2-3B, SFT with RAG", "STEP-LLM, SFT without RAG", "STEP-LLM, SFT without DFS", "STEP-LLM, GRPO"):
    assert n in names, n
PY
B=$(dirname "$BIN") scripts/eval.sh > "$dir/out" 2> "$dir/err"; [ $? -eq 3 ] && grep -q 'CKPT=DIR is due' "$dir/err" || fail "without anything"
B=$(dirname "$BIN") PARTS=$dir/other scripts/eval.sh > "$dir/out" 2> "$dir/err" && fail "parts without a label"
echo ok
