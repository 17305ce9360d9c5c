#!/bin/bash
# STEP files and captions become train.json, val.json and test.json.  Run by `make data`; stopped or
# killed, the same command goes on where it was.
#
#   RAW=DIR            parts: DIR/steps/ and DIR/captions.csv (or CAPTIONS=FILE)
#   CHUNKS=1-10        without RAW: these chunks of ABC are downloaded, and CAPTIONS=FILE is due
#   NAME=abc           the work folder is datasets/work/NAME
#   MODEL=qwen         whose tokenizer counts the tokens (configs/MODEL.conf)
#   MODE=strict        or reference: as the original prepares them, for its adapters and tables
#   ORDER=children-first|parent-first    MAX_TOKENS=16384    TOP_K=1 (0: without retrieval)    SEED=3407
#   FORM=named         or compact: without instance names and annotations (default: what MODEL writes, by its prompt.json)
#   MIN_ENTITIES=0 MAX_ENTITIES=500      what is unpacked of the chunks
#   LIST=FILE|URL MIRROR=URL|DIR         where the chunks are (datasets/abc-chunks.txt says what a list holds)
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/common.sh

config=$(config_of "${MODEL:-qwen}")
mode=${MODE:-strict}
top_k=${TOP_K:-1}
max_tokens=${MAX_TOKENS:-$(model_key "$config" max_tokens)}
if [ -n "${RAW:-}" ]; then
    [ -d "$RAW" ] || die "RAW=$RAW is no folder"
    steps=$([ -d "$RAW/steps" ] && echo "$RAW/steps" || echo "$RAW")
    captions=${CAPTIONS:-$RAW/captions.csv}
    name=${NAME:-$(basename "$RAW")}
else
    name=${NAME:-abc}
    steps=datasets/$name/steps
    captions=${CAPTIONS:-datasets/$name/captions.csv}
    [ -f "$captions" ] || die "CAPTIONS=FILE is due: a CSV of model_id, isDescribable, description (see docs/formats-data.md)," \
        "such as dataset/cad_captions_0-500.csv of the original's repository"
    tool abc-fetch --chunks "${CHUNKS:-1-10}" --min-entities "${MIN_ENTITIES:-0}" --max-entities "${MAX_ENTITIES:-500}" \
        ${LIST:+--list "$LIST"} ${MIRROR:+--mirror "$MIRROR"} --out "$steps"
fi
[ -f "$captions" ] || die "$captions: no captions there (CAPTIONS=FILE names another file)"
work=datasets/work/$name
encoder=${ENCODER:-third_party/minilm}
need_model "$config" tokenizer

say "$steps and $captions -> $work"
tool step-round "$steps" --out "$work/rounded" --mode "$mode"
if [ "$mode" = reference ]; then
    tool step-restructure "$work/rounded" --out "$work/restructured" --mode reference
else
    prompt_key() { sed -n "s/.*\"$1\": *\"\([^\"]*\)\".*/\1/p" "$(model_key "$config" dir)/prompt.json" 2> /dev/null || true; }
    form=${FORM:-$(prompt_key form)}
    how=$(prompt_key restructure) # what the weights know best: the options their texts were made with
    # shellcheck disable=SC2046,SC2086
    tool step-restructure "$work/rounded" --out "$work/restructured" --order "${ORDER:-children-first}" \
        $([ "$form" = compact ] && echo ${how:---compact --no-annotations})
fi
tool rag-pairs --captions "$captions" --steps "$work/restructured" --encoder "$encoder" --top-k "$top_k" --out "$work/pairs.json"
tool token-filter --tokenizer "$(model_key "$config" dir)" --max-tokens "${max_tokens:-16384}" \
    $([ "$top_k" = 0 ] && echo --no-rag) --in "$work/pairs.json" --out "$work/fit.json"
tool split --in "$work/fit.json" --out "$work" --seed "${SEED:-3407}" --mode "$mode" ${RATIOS:+--ratios "$RATIOS"} --steps "$steps"
grep -q id_original "$work/train.json" || say "warning: no record is left to train on: too little fits ${max_tokens:-16384} tokens (MAX_TOKENS=N)"
say "ready: make train MODEL=${MODEL:-qwen} DATA=$work"
