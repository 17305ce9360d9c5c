#!/bin/bash
# Texts written to keep a reader of Part 21 busy: see hostile.py.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
BIN=$(cd "${BIN:-build/bin}" && pwd)
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
cd "$dir"
case $BIN in */sanitize/*) mb=0.2 ;; *) mb=2 ;; esac
python3 "$root/tests/e2e/hostile.py" "$BIN" $mb
