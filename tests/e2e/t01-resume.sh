#!/bin/bash
# A tool killed at any moment and started again ends with the outputs of an undisturbed run
# and repeats no finished item.
set -u
BIN=${BIN:-build/bin}
root=$(cd "$(dirname "$0")/../.." && pwd)
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
fail() { echo "FAIL: $*"; exit 1; }
case $BIN in /*) ;; *) BIN=$PWD/$BIN ;; esac
cd "$dir" || exit 1
mkdir in
i=0
for round in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do
    for f in "$root"/datasets/sample/steps/*.step; do i=$((i + 1)); cp "$f" in/$i.step; done
done
[ $i -ge 300 ] || fail "only $i files to work on"
"$BIN/step-round" in --out whole --db whole.db -q -j1 || fail "undisturbed run: exit $?"
kills=0
for wait in 0.02 0.05 0.08 0.11 0.15; do
    "$BIN/step-round" in --out out --db r.db -q -j1 & pid=$!
    sleep $wait
    kill -9 $pid 2>/dev/null && kills=$((kills + 1))
    wait $pid 2>/dev/null
    find out -name '*.step' ! -name '.*' 2>/dev/null | while read -r f; do
        cmp -s "$f" "whole/${f#out/}" || { echo "FAIL: $f is half-written"; kill $$; }
    done
done
done_before=$(sqlite3 r.db "SELECT count(*) FROM items WHERE state='done'")
attempts=$(sqlite3 r.db "SELECT max(attempt) FROM items")
"$BIN/step-round" in --out out --db r.db -q -j1 || fail "last start: exit $?"
diff -r whole out || fail "outputs differ"
[ "$(sqlite3 r.db "SELECT count(*) FROM items WHERE state='done'")" = "$i" ] || fail "items missing"
[ "$(sqlite3 r.db "SELECT count(*) FROM runs")" = 1 ] || fail "more than one run"
[ "$(sqlite3 r.db "SELECT state FROM runs")" = done ] || fail "run is not done"
last=$(sqlite3 r.db "SELECT attempts FROM runs")
again=$(sqlite3 r.db "SELECT count(*) FROM items WHERE attempt=$last")
[ "$again" -le $((i - done_before)) ] || fail "$again items were worked on in the last start, $((i - done_before)) were left"
echo "ok: $kills kills, $done_before of $i done before the last start, $again after"
