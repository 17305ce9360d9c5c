#!/bin/bash
# models/demo, as shipped: it is small, says how it is prompted, and draws what its caption says.
set -u
BIN=${BIN:-build/bin}
for t in generate renderability complete-ratio; do [ -x "$BIN/$t" ] || { echo "SKIP: $t is not built"; exit 77; }; done
m=models/demo
[ -f $m/model.safetensors ] || { echo "SKIP: $m has no weights here"; exit 77; }
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
fail() { echo "FAIL: $*"; exit 1; }
[ "$(stat -c %s $m/model.safetensors)" -le 64000000 ] || fail "over 64 MB"
grep -q '"template": "plain"' $m/prompt.json && grep -q '"form": "compact"' $m/prompt.json || fail "prompt.json: $(cat $m/prompt.json)"
"$BIN/generate" --model $m --caption 'a round flange with six bolt holes' --out "$dir/one" --db none -q || fail "generate: $?"
head -c 200 "$dir/one/raw/part.txt" | grep -q '^#' && fail "the text has names"
grep -q '^#2=' "$dir/one/part.step" || fail "the part has no names"
"$BIN/renderability" "$dir/one" --db none --json -q > "$dir/r" || fail "not renderable: $(head -c 300 "$dir/r")"
grep -c 'CYLINDRICAL_SURFACE' "$dir/one/part.step" | grep -qx '[789]\|1[0-9]' || fail "six holes, a bore and a rim are due"
# sizes: a plate of 70 x 40 x 5 mm has that box
"$BIN/generate" --model $m --caption 'A flat rectangular plate with four corner holes. It is 70 mm long, 40 mm wide and 5 mm thick.' --out "$dir/two" --db none -q ||
    fail "generate: $?"
"$BIN/renderability" "$dir/two" --db none --json -q > "$dir/r" || fail "not renderable: $(head -c 300 "$dir/r")"
sed -n '1s/.*"bbox":\[\([^]]*\)\].*/\1/p' "$dir/r" | awk -F, '{ x = $4 - $1; y = $5 - $2; z = $6 - $3
    if (x < 69.9 || x > 70.1 || y < 39.9 || y > 40.1 || z < 4.9 || z > 5.1) { print x, y, z; exit 1 } }' || fail "another box than 70 x 40 x 5"
echo "ok"
