#!/bin/bash
# lib/schema.tsv, the table of entities that --grammar part21 allows, from STEP files:
#
#   scripts/schema-table.sh [IN...]     folders or files; without: the sample, made-up parts and SHARED's golden corpus
#
# What is in the table already stays; a table from nothing: `: > lib/schema.tsv` first.
set -eu
cd "$(dirname "$0")/.."
B=${B:-build} SHARED=${SHARED:-../shared}
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
if [ $# -eq 0 ]; then
    set -- datasets/sample/steps
    "$B/bin/synth" --count "${SYNTH:-2000}" --seed 21 --out "$dir/synth" --db none -q > /dev/null && set -- "$@" "$dir/synth"
    # every kind of thing that OpenCASCADE writes
    mkdir "$dir/kinds" && ${CXX:-g++} -std=c++17 -O1 -w -I/usr/include/opencascade tests/grammar/kinds.cc -o "$dir/make-kinds" \
        -lTKXDESTEP -lTKSTEP -lTKXCAF -lTKLCAF -lTKCAF -lTKCDF -lTKXSBase -lTKBool -lTKBO -lTKPrim -lTKShHealing -lTKTopAlgo -lTKGeomAlgo \
        -lTKBRep -lTKGeomBase -lTKG3d -lTKG2d -lTKMath -lTKernel && "$dir/make-kinds" "$dir/kinds" > /dev/null && set -- "$@" "$dir/kinds"
    if [ -f "$SHARED/golden/prep/files.tar.xz" ]; then
        mkdir "$dir/golden" && tar -xJf "$SHARED/golden/prep/files.tar.xz" -C "$dir/golden" && set -- "$@" "$dir/golden/src"
    fi
fi
"$B/bin/schema-table" "$@" --merge lib/schema.tsv --out "$dir/schema.tsv" --db none
cmp -s "$dir/schema.tsv" lib/schema.tsv || cp "$dir/schema.tsv" lib/schema.tsv
