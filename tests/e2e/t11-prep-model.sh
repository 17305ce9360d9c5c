#!/bin/bash
# The reference modes against an independent model of the original (tests/golden/prep/model.py) on made-up
# and mutated files; the strict modes against what must hold for them.  PREP_FILES=20000 PREP_SEED=2 for a longer look.
set -u
BIN=${BIN:-build/bin}
SHARED=${SHARED:-../shared}
cases=$SHARED/golden/prep/cases
command -v python3 > /dev/null || { echo 'SKIP: no python3'; exit 77; }
[ -d "$cases" ] || cases=
python3 tests/golden/prep/compare.py "$BIN" "${PREP_FILES:-600}" "${PREP_SEED:-1}" $cases || { echo FAIL; exit 1; }
# The strict modes, on made-up files of every odd spelling (tests/golden/prep/strict.py).
python3 tests/golden/prep/strict.py "$BIN" $((${PREP_FILES:-600} / 8)) "${PREP_SEED:-1}" || { echo FAIL; exit 1; }
if [ -n "$cases" ]; then
    dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
    tar -xf "$SHARED/golden/prep/files.tar.xz" -C "$dir" rounded &&
        "$BIN"/step-restructure "$dir/rounded" --out "$dir/out" --mode reference --db none -q --json 2> "$dir/err" |
        python3 tests/golden/prep/results.py "$SHARED/golden/prep/RESULTS.tsv" || { echo FAIL; exit 1; }
fi
echo ok
