#!/bin/bash
# synth and step-render: the same parts whatever -j and after a kill, true counts, pictures.
set -u
BIN=${BIN:-build/bin}
[ -x "$BIN/synth" ] || { echo "SKIP: synth is not built (OpenCASCADE)"; exit 77; }
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
fail() { echo "FAIL: $*"; exit 1; }
root=$PWD
case $BIN in /*) ;; *) BIN=$root/$BIN ;; esac
cd "$dir" || exit 1

"$BIN/synth" --count 40 --seed 5 --out one -j 1 --db none --json -q > one.jsonl || fail "synth -j 1: exit $?"
"$BIN/synth" --count 40 --seed 5 --out two -j 2 --db none -q > /dev/null || fail "synth -j 2: exit $?"
diff -r one two || fail "-j changes the parts"
[ "$(ls one/steps | wc -l)" -eq 40 ] || fail "not 40 parts"
[ "$(wc -l < one/captions.csv)" -eq 41 ] || fail "not 40 captions"
head -1 one/captions.csv | grep -qx 'model_id,isDescribable,description' || fail "columns"
families=$(grep -o '"family":"[a-z-]*"' one.jsonl | sort -u | wc -l)
[ "$families" -ge 12 ] || fail "only $families families in 40 parts"
grep -q PCURVE one/steps/* && fail "parametric curves are written"

# part i by itself is part i of the whole
"$BIN/synth" --count 3 --start 7 --seed 5 --out some --db none -q > /dev/null || fail "--start"
cmp some/steps/00000008.step one/steps/00000008.step || fail "a part depends on the others"
"$BIN/synth" --count 40 --seed 6 --out other --db none -q > /dev/null
cmp -s other/steps/00000000.step one/steps/00000000.step && cmp -s other/steps/00000001.step one/steps/00000001.step && fail "the seed changes nothing"

# killed and started again: the same as undisturbed, nothing made twice
"$BIN/synth" --count 40 --seed 5 --out three -j 1 --db runs.db -q > /dev/null & pid=$!
for _ in $(seq 100); do [ "$(ls three/steps 2> /dev/null | wc -l)" -ge 5 ] && break; sleep 0.05; done
kill -KILL $pid 2> /dev/null; wait $pid 2> /dev/null
"$BIN/synth" --count 40 --seed 5 --out three -j 1 --db runs.db -q > /dev/null || fail "second start: exit $?"
diff -r one three || fail "a killed run ends otherwise"
rm three/captions.csv
"$BIN/synth" --count 40 --seed 5 --out three -j 1 --db runs.db -q > /dev/null || fail "third start"
diff -r one three || fail "captions are lost when everything is current"

# options
"$BIN/synth" --count 6 --families washer,nut --captions dimensions --out w --db none --json -q > w.jsonl || fail "--families"
grep -v '"family":"\(washer\|nut\)"' w.jsonl && fail "another family came"
[ "$(grep -c ' mm ' w/captions.csv)" -eq 6 ] || fail "captions without sizes"
"$BIN/synth" --count 30 --max-entities 150 --captions plain --out small --db none --json -q > small.jsonl || fail "--max-entities"
grep -o '"entities":[0-9]*' small.jsonl | cut -d: -f2 | while read -r n; do [ "$n" -le 150 ] || exit 1; done || fail "a part is too big"
grep -q ' mm' small/captions.csv && fail "plain captions have sizes"
long() { grep -o '"[0-9.]* mm long"' "$1" | awk -F'[" ]' '$2 % 5 { n++ } END { print NR, n + 0 }'; }
for k in fine even; do "$BIN/synth" --count 12 --families shaft --sizes $k --out "s-$k" --db none --json -q > s-$k.jsonl || fail "--sizes $k"; done
[ "$(long s-even.jsonl)" = "12 0" ] && [ "$(long s-fine.jsonl)" != "12 0" ] || fail "shafts of even sizes are multiples of 5 mm long: $(long s-even.jsonl), $(long s-fine.jsonl)"
"$BIN/synth" --count 1 --families nutt --out x --db none 2> err; [ $? -eq 2 ] || fail "unknown family: exit code"
grep -q "no family 'nutt'" err || fail "unknown family: $(cat err)"
touch file; "$BIN/synth" --count 1 --out file --db none 2> err; [ $? -eq 3 ] || fail "--out is a file: exit code"

# the sample is what its README says made it, with the OpenCASCADE it was made with
sample=$root/datasets/sample
if [ "$(grep -ho 'OpenCASCADE [0-9.]*' one/steps/00000000.step)" = "$(grep -ho 'OpenCASCADE [0-9.]*' "$sample/steps/00000000.step")" ]; then
    "$BIN/synth" --count 100 --seed 2026 --max-entities 260 --out sample --db none -q > /dev/null || fail "the sample's command"
    diff -r -x README.md sample "$sample" || fail "datasets/sample is not what its command makes"
fi

# pictures
[ -x "$BIN/step-render" ] || { echo "ok (no step-render)"; exit 0; }
mkdir -p in/sub; cp one/steps/00000000.step in/; cp one/steps/00000001.step in/sub/b.STP; echo garbage > in/bad.step
"$BIN/step-render" in --out pics --size 96 --db none --json -q > r.jsonl 2> err; [ $? -eq 1 ] || fail "step-render with a bad file: exit code"
grep '"file":"in/bad.step"' r.jsonl | grep -q '"status":"failed"' || fail "the bad file is not reported"
for d in pics/00000000 pics/sub/b; do
    [ "$(ls $d/*.png | wc -l)" -eq 10 ] || fail "$d: not nine views and a sheet"
    for p in $d/*.png; do [ "$(head -c 8 $p | od -An -tx1 | tr -d ' \n')" = 89504e470d0a1a0a ] || fail "$p is no PNG"; done
    [ "$(head -c 4 $d/model.glb)" = glTF ] || fail "$d: no GLB"
done
[ "$(od -An -tu1 -j16 -N8 pics/sub/b/front.png | tr -s ' ')" = " 0 0 0 96 0 0 0 96" ] || fail "size of the picture"
[ -e pics/bad ] && fail "half-written output of a bad file"
"$BIN/step-render" none --out p --db none 2> err; [ $? -eq 3 ] || fail "missing input: exit code"
echo "ok"
