#!/bin/bash
# Damaged files through the scoring tools (make fuzz-occt at length): those that OpenCASCADE 7.6.3 crashes on, hangs on
# or is wrong about, kept in tests/fuzz/corpus-occt, and some made anew; each is accounted for, and no process is left.
set -u
cd "$(dirname "$0")/../.."
BIN=$(cd "${BIN:-build/bin}" && pwd)
fuzz=$BIN/../tests/fuzz-occt corpus=$PWD/tests/fuzz/corpus-occt
for tool in "$BIN/renderability" "$BIN/chamfer" "$fuzz"; do [ -x "$tool" ] || { echo "SKIP: $(basename "$tool") is not built"; exit 77; }; done
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
fail() { echo "FAIL: $*"; exit 1; }
n=$(find "$corpus" -name '*.step' | wc -l)
for mode in strict reference; do
    "$BIN/renderability" --db none --json -q --timeout 3 --mode $mode "$corpus" > "$dir/$mode" 2> "$dir/err" || fail "$mode: exit $?: $(tail -2 "$dir/err")"
    [ "$(grep -c '"file":' "$dir/$mode")" = "$n" ] || fail "$mode: $(grep -c '"file":' "$dir/$mode") of $n files have a line"
done
# What the text itself says does not depend on OpenCASCADE's version.
for word in syntax unresolved-reference coordinate; do
    for f in "$corpus/strict-$word"-*.step; do
        grep -F "${f##*/}" "$dir/strict" | grep -q "\"reason\":\"${word//-/_}: " || fail "$f: $(grep -F "${f##*/}" "$dir/strict")"
    done
done
grep -q '"status":"timeout"' "$dir/reference" || echo "note: this OpenCASCADE hangs on none of them"
# The reward of reinforcement learning waits for no hung worker, and has a number for each.
"$BIN/geometry-reward" --db none --json -q --timeout 2 --kind paper --truth datasets/sample/steps/00000002.step --candidates "$corpus" > "$dir/reward" 2> "$dir/err" ||
    fail "geometry-reward: exit $?: $(tail -2 "$dir/err")"
[ "$(grep -c '"candidate":.*"reward":[01]' "$dir/reward")" = "$n" ] || fail "geometry-reward: $(grep -c '"reward":' "$dir/reward") of $n have a reward"
"$fuzz" "$BIN" "$dir/made" 60 16 7 "$corpus" datasets/sample/steps > "$dir/out" 2>&1 || fail "$(cat "$dir/out")"
[ "$(grep -c 'every file accounted for, no process left' "$dir/out")" = 4 ] || fail "$(cat "$dir/out")"
echo ok
