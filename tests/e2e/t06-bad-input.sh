#!/bin/bash
# Every tool on every kind of bad input: see bad_input.py.  FULL=1 leaves nothing out.
set -u
root=$(cd "$(dirname "$0")/../.." && pwd)
BIN=$(cd "${BIN:-build/bin}" && pwd)
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 "$root/tests/e2e/bad_input.py" "$BIN" "$root" "$dir" || exit 1

# ---- what no tool may stumble over: damaged files, all at once (one of them keeps OpenCASCADE busy for good: hence the short time limit)
SHARED=${SHARED:-../shared}
[ -d "$SHARED/golden/bad" ] || { echo "SKIP: $SHARED/golden/bad absent: its files were not tried"; exit 0; }
bad=$(cd "$SHARED/golden/bad" && pwd)
fail() { echo "FAIL: $*"; exit 1; }
cd "$dir" || exit 1
for c in "step-round $bad --out r" "step-round $bad --out rr --mode reference" "step-restructure $bad --out d" "step-restructure $bad --out dr --mode reference" \
    "step-restore $bad --out s" "step-restore $bad --out sr --mode reference" "step-render $bad --out p --views 1 --size 64 --timeout 3" \
    "complete-ratio $bad" "complete-ratio $bad --mode reference" "entity-stats $bad" "entity-stats $bad --mode reference" \
    "renderability $bad --timeout 3" "renderability $bad --mode reference --timeout 3" "chamfer --pred $bad --truth $bad --points 200 --timeout 3" \
    "chamfer --pred $bad --truth $bad --points 200 --align reference --timeout 3" \
    "geometry-reward --truth good/part.step --candidates $bad --points 200 --timeout 3" "tokenizer-train $bad --out tok --vocab-size 300"; do
    [ -x "$BIN/${c%% *}" ] || continue
    # shellcheck disable=SC2086
    timeout 120 "$BIN"/$c --db bad.db --json -q > lines 2> err; rc=$?
    [ $rc -le 1 ] || fail "$c: exit $rc: $(tail -n 2 err)"
    python3 -c 'import json,sys; [json.loads(l) for l in open("lines")]' || fail "$c: results are no JSON lines"
    [ "$(sqlite3 bad.db "SELECT count(*) FROM items WHERE state='failed' AND coalesce(reason, '')=''")" = 0 ] || fail "$c: a failed item without a reason"
    [ -z "$(find . -name '.*.part')" ] || fail "$c: left $(find . -name '.*.part')"
done
echo ok
