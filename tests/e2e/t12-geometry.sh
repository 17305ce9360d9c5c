#!/bin/bash
# A part stays the part: step-round moves no volume by more than 1e-6, step-restructure (either order) and step-restore nothing at
# all, to OpenCASCADE.  On the sample and small real files; GEOMETRY=all (make test-geometry): on every real file.
set -u
BIN=${BIN:-$PWD/build/bin}
SHARED=${SHARED:-../shared}
geometry=$(dirname "$BIN")/tests/geometry
[ -x "$geometry" ] || { echo 'SKIP: tests/geometry is not built (no OpenCASCADE)'; exit 77; }
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
fail() { echo "FAIL: $*"; exit 1; }

mkdir "$dir/src"
for f in $(ls datasets/sample/steps/*.step | head -n 10); do cp "$f" "$dir/src/"; done
golden=$SHARED/golden/prep/files.tar.xz
if [ -f "$golden" ]; then
    mkdir "$dir/g" && tar -xf "$golden" -C "$dir/g" src || fail tar
    if [ "${GEOMETRY:-}" = all ]; then cp "$dir"/g/src/* "$dir/src/"; else cp $(ls -Sr "$dir"/g/src/*.step | head -n 60) "$dir/src/"; fi
fi
"$BIN"/step-round "$dir/src" --out "$dir/rounded" --db none -q 2> /dev/null || fail "step-round"
"$geometry" "$dir/src" "$dir/rounded" 1e-6 || fail "step-round moves parts"
"$BIN"/step-restructure "$dir/rounded" --out "$dir/dfs" --db none -q 2> /dev/null || fail "step-restructure"
"$BIN"/step-restore "$dir/dfs" --out "$dir/plain" --db none -q 2> /dev/null || fail "step-restore"
"$geometry" "$dir/rounded" "$dir/plain" || fail "step-restructure, step-restore"
"$BIN"/step-restructure "$dir/src" --out "$dir/parent" --order parent-first --db none -q 2> /dev/null || fail "step-restructure --order parent-first"
"$geometry" "$dir/src" "$dir/parent" || fail "step-restructure --order parent-first"
echo ok
