#!/bin/bash
# tokenizer-train, token-filter and split: counts, sizes, seeds, leaks, resuming, bad input.
set -u
BIN=${BIN:-build/bin}
root=$(cd "$(dirname "$0")/../.." && pwd)
case $BIN in /*) ;; *) BIN=$PWD/$BIN ;; esac
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
fail() { echo "FAIL: $*"; exit 1; }
# expect CODE TEXT command...: exit code, and one line on stderr holding TEXT
expect() {
    local code=$1 text=$2; shift 2
    "$@" > out.txt 2> err.txt; local rc=$?
    [ $rc = "$code" ] || fail "exit $rc, $code is due: $* ($(cat err.txt))"
    grep -qF -- "$text" err.txt || fail "no '$text' from $*: $(cat err.txt)"
    [ "$(wc -l < err.txt)" = 1 ] || fail "more than one line from $*: $(cat err.txt)"
}
cd "$dir" || exit 1

# 1,000 records; every fourth caption is one of ten, the others are unique
python3 - "$root" <<'P' || fail "python3 is needed"
import glob, json, os, sys
steps = [open(f).read() for f in sorted(glob.glob(sys.argv[1] + "/datasets/sample/steps/*.step"))[:40]] or ["DATA;\n#1=A();\n"]
rows = [{"id_original": f"{i:08d}", "caption": f"A plate with {i % 40 // 4} holes." if i % 4 == 0 else f"Part {i}, \u00f8{i} mm.",
         "id_retrieve": str(i + 1), "relavant_step_file": steps[i % len(steps)][:400], "output": steps[(i * 7) % len(steps)][:i]}
        for i in range(1000)]
json.dump(rows, open("pairs.json", "w"), indent=4)
os.mkdir("text")
open("text/a.step", "w").write("".join(steps))
P

"$BIN/tokenizer-train" text pairs.json --out tok --vocab-size 600 --db r.db -q > train.txt || fail "tokenizer-train: $?"
"$BIN/tokenizer-train" text pairs.json --out tok2 --vocab-size 600 --db r.db -q > /dev/null
cmp tok/tokenizer.json tok2/tokenizer.json || fail "training is not deterministic"
# lean: a number of one digit in a reference, and 0. and 1. alone, are no tokens of their own
printf 'DATA;\n%s\nENDSEC;\n' "$(for i in $(seq 50); do printf "EDGE_CURVE('',#12,#4,#1,.T.);\nDIRECTION('',(0.,0.,1.));\n"; done)" > lean.step
"$BIN/tokenizer-train" lean.step --out lean --pattern lean --vocab-size 400 --db none -q > /dev/null || fail "tokenizer-train --pattern lean: $?"
printf '[{"id_original":"1","caption":"x","output":"EDGE_CURVE(%s,#12,#4,#1,.T.);\\nDIRECTION(%s,(0.,0.,1.));\\n"}]' "''" "''" > lean.json
"$BIN/token-filter" --tokenizer lean --in lean.json --out lean-fit.json --db none --json -q | head -n 1 > two.txt
sed "s/EDGE_CURVE.*\"}/\"}/" lean.json > none.json
"$BIN/token-filter" --tokenizer lean --in none.json --out lean-fit.json --db none --json -q | head -n 1 > one.txt
n=$(( $(sed 's/.*"tokens":\([0-9]*\).*/\1/' two.txt) - $(sed 's/.*"tokens":\([0-9]*\).*/\1/' one.txt) ))
[ $n = 5 ] || fail "lean: $n tokens, five are due: EDGE_CURVE('',#  1  2  ,#4,#1,.T.);  DIRECTION('',(0.,0.,1.));"
grep -q '^600 tokens' train.txt || fail "not 600 tokens: $(cat train.txt)"

# token-filter: the counts of its own lines decide; nothing dropped copies the file to the byte
"$BIN/token-filter" --tokenizer tok --in pairs.json --out all.json --max-tokens 1M --db r.db -q > /dev/null || fail "token-filter: $?"
cmp pairs.json all.json || fail "records changed on the way"
"$BIN/token-filter" --tokenizer tok --in pairs.json --out fit.json --max-tokens 500 --db r.db -q --json -j2 > fit.jsonl 2> /dev/null || fail "token-filter: $?"
python3 - <<'P' || exit 1
import json
rows, fit = json.load(open("pairs.json")), json.load(open("fit.json"))
lines = [json.loads(l) for l in open("fit.jsonl")]
assert len(lines) == 1001 and [l["id"] for l in lines[:-1]] == [r["id_original"] for r in rows], "a line a record, in order"
keep = [r for r, l in zip(rows, lines) if l["tokens"] <= 500]
assert fit == keep and 0 < len(keep) < 1000, "kept records"
assert lines[-1]["kept"] == len(keep) and lines[-1]["dropped"] == 1000 - len(keep), "summary"
P
[ $? = 0 ] || fail "token-filter's records"
[ "$(sqlite3 r.db "SELECT count(*) FROM items WHERE reason LIKE 'dropped: % tokens, 500 fit'")" -gt 0 ] || fail "no dropped record in the database"
"$BIN/token-filter" --tokenizer tok --in pairs.json --out fit.json --max-tokens 500 --no-rag --db r.db -q --json 2> /dev/null | tail -1 > norag.json
[ "$(sed 's/.*"kept":\([0-9]*\).*/\1/' norag.json)" -gt "$(tail -1 fit.jsonl | sed 's/.*"kept":\([0-9]*\).*/\1/')" ] || fail "--no-rag counts no less"

# killed and started again: same bytes
for i in $(seq 40); do sed '1d;$d' pairs.json; [ "$i" = 40 ] || echo ,; done | { echo '['; cat; echo ']'; } > big.json
"$BIN/token-filter" --tokenizer tok --in big.json --out whole.json --max-tokens 500 --db none -q > /dev/null 2>&1 || fail "big"
for wait in 0.2 0.4 0.6; do
    "$BIN/token-filter" --tokenizer tok --in big.json --out again.json --max-tokens 500 --db k.db -q > /dev/null 2>&1 & pid=$!
    sleep $wait; kill -9 $pid 2> /dev/null; wait $pid 2> /dev/null
    [ ! -e again.json ] || cmp again.json whole.json || fail "half-written"
done
"$BIN/token-filter" --tokenizer tok --in big.json --out again.json --max-tokens 500 --db k.db -q > /dev/null 2>&1 || fail "resumed: $?"
cmp again.json whole.json || fail "resumed output differs"
[ "$(sqlite3 k.db 'SELECT count(*) FROM runs')" = 1 ] || fail "resuming began a new run"

# split: sizes, no loss, no leak; the seed decides
"$BIN/split" --in pairs.json --out s --db r.db -q > split.txt || fail "split: $?"
grep -q '^700 train, 200 test, 100 val; 760 distinct captions, 0 of them' split.txt || fail "split says $(cat split.txt)"
"$BIN/split" --in pairs.json --out s2 --db r.db -q > /dev/null && diff -r s s2 || fail "split is not deterministic"
"$BIN/split" --in pairs.json --out s3 --seed 1 --db r.db -q > /dev/null
cmp -s s/train.json s3/train.json && fail "the seed does nothing"
"$BIN/split" --in pairs.json --out s4 --group-by none --db r.db -q --json > leak.json 2> /dev/null || fail "split none"
grep -q '"train":700,"test":200,"val":100,"captions":760,"shared_captions":10,' leak.json || fail "leak: $(cat leak.json)"
python3 - <<'P' || exit 1
import json
k = json.dumps
rows = json.load(open("pairs.json"))
for d in ("s", "s3", "s4"):
    sets = [json.load(open(f"{d}/{n}.json")) for n in ("train", "test", "val")]
    assert sorted(map(k, sum(sets, []))) == sorted(map(k, rows)), f"{d}: records lost or doubled"
    assert sum(sets, []) != rows and sets[0] != sorted(sets[0], key=k), f"{d}: not shuffled"
    caps = [{r["caption"] for r in s} for s in sets]
    assert d == "s4" or not (caps[0] & caps[1] or caps[0] & caps[2] or caps[1] & caps[2]), f"{d}: captions straddle"
json.dump(rows[:90], open("n90.json", "w"))
json.dump([], open("empty.json", "w"))
P
[ $? = 0 ] || fail "split's records"
# 90 * 0.7 is 62.99 in floating point: the original's sizes, and the right ones
"$BIN/split" --in n90.json --out r90 --mode reference --db none -q 2> /dev/null | grep -q '^62 train, 18 test, 10 val' || fail "reference sizes"
"$BIN/split" --in n90.json --out s90 --db none -q 2> /dev/null | grep -q '^63 train, 18 test, 9 val' || fail "strict sizes"
"$BIN/split" --in pairs.json --out s5 --ratios 50,25,25 --db none -q | grep -q '^500 train, 250 test, 250 val' || fail "ratios"
"$BIN/split" --in empty.json --out e --db none -q | grep -q '^0 train' || fail "empty"
[ "$(cat e/val.json)" = "[]" ] || fail "empty set"

# made parts: no output twice, and no sizes of a test part in train, told or not
python3 - <<'P'
import json
rows = [{"id_original": f"{i:08d}", "caption": f"A part {i}.", "output": f"DATA;\n#1=A({i % 90});\nENDSEC;\nEND-ISO-10303-21;\n"} for i in range(100)]
json.dump(rows, open("made.json", "w"), indent=4)
with open("made.jsonl", "w") as f:
    for i in range(100):
        f.write(json.dumps({"id": f"{i:08d}", "family": "disc" if i % 2 else "ring", "sizes": [f"{i % 60} mm wide"], "faces": 3}) + "\n")
P
"$BIN/split" --in made.json --out m --test 20 --val 7 --unique --group-by sizes --parts made.jsonl --db none -q > out.txt || fail "split --group-by sizes: $?"
grep -q '^63 train, 20 test, 7 val; 60 distinct sizes, 0 of them' out.txt && grep -q '^10 records repeated' out.txt || fail "split --group-by sizes: $(cat out.txt)"
python3 - <<'P' || fail "sizes or outputs of a set are in another"
import json
sets = {s: json.load(open(f"m/{s}.json")) for s in ("train", "test", "val")}
parts = {p["id"]: (p["family"], *p["sizes"]) for p in map(json.loads, open("made.jsonl"))}
for field in (lambda r: parts[r["id_original"]], lambda r: r["output"]):
    values = {s: {field(r) for r in rows} for s, rows in sets.items()}
    assert not values["train"] & values["test"] and not values["train"] & values["val"] and not values["test"] & values["val"]
outputs = [r["output"] for rows in sets.values() for r in rows]
assert len(outputs) == len(set(outputs)) == 90
P
expect 2 "go together" "$BIN/split" --in made.json --out no --group-by sizes --db none -q
expect 2 "--test 80" "$BIN/split" --in made.json --out no --test 80 --val 30 --db none -q
head -n 50 made.jsonl > half.jsonl; expect 3 "does not tell of part 00000050" "$BIN/split" --in made.json --out no --group-by sizes --parts half.jsonl --db none -q
echo '{"id":3}' > odd.jsonl; expect 3 "odd.jsonl:1:" "$BIN/split" --in made.json --out no --group-by sizes --parts odd.jsonl --db none -q

# bad input: one line, the documented code, nothing written
head -c 5000 pairs.json > cut.json
expect 3 "cut.json: record" "$BIN/split" --in cut.json --out no --db none -q
expect 3 "cut.json: record" "$BIN/token-filter" --tokenizer tok --in cut.json --out no.json --db none -q
expect 3 "absent.json" "$BIN/split" --in absent.json --out no --db none -q
expect 3 "text: is a directory" "$BIN/split" --in text --out no --db none -q
expect 2 "--ratios 70,20" "$BIN/split" --in pairs.json --out no --ratios 70,20 --db none -q
expect 2 "--ratios 70,20,20" "$BIN/split" --in pairs.json --out no --ratios 70,20,20 --db none -q
expect 3 "tokenizer.json" "$BIN/token-filter" --tokenizer text --in pairs.json --out no.json --db none -q
head -c 3000 tok/tokenizer.json > cut-tok.json
expect 3 "cut-tok.json" "$BIN/token-filter" --tokenizer cut-tok.json --in pairs.json --out no.json --db none -q
mkdir noeos; cp tok/tokenizer.json noeos/
expect 3 "names no EOS" "$BIN/token-filter" --tokenizer noeos --in pairs.json --out no.json --db none -q
expect 3 "holds no STEP file" "$BIN/tokenizer-train" s/../tok --out no --db none -q
[ ! -e no ] && [ ! -e no.json ] || fail "something was written"
if [ -w /dev/full ]; then
    "$BIN/split" --in pairs.json --out s6 --db none --json > /dev/full 2> err.txt; rc=$?
    [ $rc = 3 ] || fail "full disk: exit $rc"
fi
echo ok
