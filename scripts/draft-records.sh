#!/bin/bash
# Pair records for measuring drafts, in the training's format: real files and parts of synth, each with the most similar other one.
#
#   scripts/draft-records.sh BUILD OUT [TOKENIZER_DIR]
#
# OUT/golden.json     real files of up to 16,384 tokens with what is retrieved (GOLDEN= the folder with prep/files.tar.xz)
# OUT/golden-long.json  at most eighteen of the longer ones, which with what is retrieved fit 32,768 tokens
# OUT/synth.json      parts of `synth --seed 501` (PARTS=, 120)
# OUT/compact.json    the same in the compact form, without retrieval
# OUT/demo.json       forty others as models/demo knows them
set -eu
cd "$(dirname "$0")/.."
bin=$PWD/$1/bin out=$2 tokenizer=${3:-../shared/tokenizers/qwen2.5} golden=${GOLDEN:-../shared/golden} encoder=${ENCODER:-third_party/minilm}
mkdir -p "$out"
out=$(cd "$out" && pwd)
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
quiet=(--db none -q)
caption() { # a file's name is the best that is known of it
    echo model_id,isDescribable,description
    for f in "$1"/*.step; do n=$(basename "$f" .step); echo "$n,True,\"a part: ${n//[-_]/ }\""; done
}
pairs() { # FOLDER CAPTIONS OUT
    "$bin/rag-pairs" --captions "$2" --steps "$1" --encoder "$encoder" --out "$work/all.json" "${quiet[@]}" > /dev/null
    "$bin/token-filter" --tokenizer "$tokenizer" --in "$work/all.json" --out "$3" "${quiet[@]}" > /dev/null || [ $? = 1 ]
}
if [ -r "$golden/prep/files.tar.xz" ]; then
    mkdir "$work/files" "$work/steps"
    tar xJf "$golden/prep/files.tar.xz" -C "$work/files"
    # an id ends at the first '_' of a file's name
    find "$work/files" -path '*src/*' -type f | sort | while read -r f; do n=$(basename "${f%.*}"); cp "$f" "$work/steps/${n//[^A-Za-z0-9]/-}.step"; done
    "$bin/step-round" "$work/steps" --out "$work/rounded" "${quiet[@]}" > /dev/null || [ $? = 1 ]
    "$bin/step-restructure" "$work/rounded" --out "$work/re" "${quiet[@]}" > /dev/null || [ $? = 1 ]
    caption "$work/re" > "$work/captions.csv"
    pairs "$work/re" "$work/captions.csv" "$out/golden.json"
    "${PYTHON:-python3}" - "$work/all.json" "$out/golden.json" "$out/golden-long.json" << 'PY'
import json, sys
short = {r["id_original"] for r in json.load(open(sys.argv[2]))}
long = [r for r in json.load(open(sys.argv[1]))  # with what is retrieved within Qwen2.5's 32,768 tokens
        if r["id_original"] not in short and len(r["output"]) + len(r["relavant_step_file"]) < 70000]
json.dump(long[:: max(1, len(long) // 18)][:18], open(sys.argv[3], "w"), indent=4)
PY
fi
"$bin/synth" --count "${PARTS:-120}" --seed 501 --out "$work/synth" "${quiet[@]}" > /dev/null
"$bin/step-restructure" "$work/synth/steps" --out "$work/named" "${quiet[@]}" > /dev/null
pairs "$work/named" "$work/synth/captions.csv" "$out/synth.json"
"$bin/step-restructure" "$work/synth/steps" --compact --out "$work/compact" "${quiet[@]}" > /dev/null
"$bin/rag-pairs" --captions "$work/synth/captions.csv" --steps "$work/compact" --top-k 0 --out "$out/compact.json" "${quiet[@]}" > /dev/null
# The records of a trained model, for what 8-bit weights change in its loss: no part of models/demo's corpus has this seed.
"$bin/synth" --count 40 --seed 502 --captions varied --exclude-families pulley,u-bracket,stairs --out "$work/own" "${quiet[@]}" > /dev/null
"$bin/step-restructure" "$work/own/steps" --compact --no-annotations --out "$work/own/compact" "${quiet[@]}" > /dev/null
"$bin/rag-pairs" --captions "$work/own/captions.csv" --steps "$work/own/compact" --top-k 0 --out "$out/demo.json" "${quiet[@]}" > /dev/null
