#!/bin/bash
# Makes models/demo from nothing: corpus, tokenizer, training, and an adapter for parts that it has never seen.
# Stopped or killed, the same command goes on where it was.
#
#   W=runs/demo-base   work folder
#   PARTS=144000       made; repeated ones are dropped, 1,000 are for the test and 300 for validation
#   REAL_STEPS=DIR REAL_CAPTIONS=CSV    real files (compact) and captions, which the tokenizer is made from as well
#   STAGES='corpus train new adapt'      corpus wants OpenCASCADE, train a GPU (an hour of one at most)
#
#   corpus   W/data: train.json, val.json, test.json, truth/; no size of a test part is in train (split says so)
#   train    W/model: weights from scratch by configs/demo-base.conf
#   new      W/new: 500 parts for training and 200 for the test of three families that the corpus lacks
#   adapt    W/adapter: LoRA on those 500, and parts for the 200 captions without and with it
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/common.sh
W=${W:-runs/demo-base}
PARTS=${PARTS:-144000} NEW=${NEW:-1500}
STAGES=${STAGES:-corpus train new adapt}
db=${DB:-$W/runs.db}
lacks=pulley,u-bracket,stairs # families that the corpus lacks

prepare() { # folder seed count test val options of synth...
    local d=$1 seed=$2 count=$3 test=$4 val=$5
    shift 5
    [ -f "$d/data/test.json" ] && return
    mkdir -p "$d"
    if [ ! -f "$d/parts.jsonl" ]; then
        tool synth --count "$count" --seed "$seed" --captions varied --sizes even --read-back 10 --out "$d/parts" --json "$@" > "$d/.parts.jsonl"
        mv "$d/.parts.jsonl" "$d/parts.jsonl"
    fi
    tool step-restructure "$d/parts/steps" --out "$d/compact" --compact --no-annotations --geometry-first --relative
    tool rag-pairs --captions "$d/parts/captions.csv" --steps "$d/compact" --top-k 0 --out "$d/pairs.json"
    tool split --in "$d/pairs.json" --out "$d/data" --test "$test" --val "$val" --unique --group-by sizes --parts "$d/parts.jsonl" \
        --steps "$d/parts/steps"
}

corpus() {
    prepare "$W" 20262 "$PARTS" "${TEST:-1000}" "${VAL:-300}" --exclude-families $lacks
    [ -f "$W/base/tokenizer.json" ] && return
    # shellcheck disable=SC2086
    tool tokenizer-train "$W/data/train.json" ${REAL_STEPS:+"$REAL_STEPS"} ${REAL_CAPTIONS:+--captions "$REAL_CAPTIONS"} --out "$W/base" --vocab-size 2048 --pattern lean
    cp configs/demo-base/config.json "$W/base"
}

train() {
    local resume=
    ls -d "$W"/model/checkpoint-* > /dev/null 2>&1 && resume=--resume
    [ -f "$W/model/model.safetensors" ] ||
        tool sft --config configs/demo-base.conf --model "$W/base" --data "$W/data" --out "$W/model" $resume --label "demo model" ${SFT_ARGS:-}
}

new() {
    prepare "$W/new" 20261 "$NEW" 200 50 --families $lacks
    # The first 500 of what is left, each family in its share.
    [ -f "$W/new/500/train.json" ] || { mkdir -p "$W/new/500" && head_records 500 "$W/new/data/train.json" > "$W/new/500/train.json"; }
}

head_records() { # N FILE: pair records are an array, a line a field, four spaces and a brace a record
    awk -v n="$1" 'NR == 1 { print; next } { if ($0 ~ /^    }/ && ++k == n) { print "    }\n]"; exit } print }' "$2"
}

adapt() {
    local m=${MODEL:-$W/model}
    tool generate --model "$m" --captions "$W/new/data/test.json" --out "$W/new/before" --batch 200 --max-new-tokens 6000 --label "new families, as shipped" ${GENERATE_ARGS:-}
    [ -f "$W/adapter/adapter_model.safetensors" ] ||
        tool sft --config configs/demo-lora.conf --model "$m" --data "$W/new/500" --out "$W/adapter" --label "new families, adapted" ${LORA_ARGS:-}
    tool generate --model "$m" --adapter "$W/adapter" --captions "$W/new/data/test.json" --out "$W/new/after" --batch 200 --max-new-tokens 6000 --label "new families, adapted" ${GENERATE_ARGS:-}
}

for stage in $STAGES; do
    say "$stage"
    $stage
done
