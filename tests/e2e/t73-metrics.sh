#!/bin/bash
# The metrics: variants of parts in their order (make test-ordering at length), and the original's recorded figures where the
# golden files are (make test-metrics at length).
set -u
cd "$(dirname "$0")/../.."
BIN=$(cd "${BIN:-build/bin}" && pwd)
for tool in "$BIN/synth" "$BIN/chamfer" "$BIN/../tests/ordering"; do [ -x "$tool" ] || { echo "SKIP: $(basename "$tool") is not built"; exit 77; }; done
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
"$BIN/synth" --count 6 --seed 11 --out "$dir" --db none -q > /dev/null || { echo "FAIL: synth"; exit 1; }
"$BIN/../tests/ordering" "$dir/steps" -v || { echo "FAIL: variants are not in their order"; exit 1; }
[ -d "${SHARED:-}/golden/chamfer" ] || { echo "SKIP: no golden files: the original's figures were not compared (the rest passed)"; exit 77; }
python3 tests/golden/chamfer/check.py "$BIN" "$SHARED/golden" fast || { echo "FAIL: figures"; exit 1; }
echo ok
