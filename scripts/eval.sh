#!/bin/bash
# Generates a part for each caption of the test split and scores them.  Run by `make eval`; stopped or
# killed, the same command goes on.
#
#   CKPT=DIR           an adapter (its base model is named in it; BASE=DIR for another place), or a whole model
#   DATA=DIR           test.json and truth/ (default: datasets/work/abc)
#   LABEL='...'        the row of the tables (default: the folder's name)
#   LIMIT=0 BATCH=16 TEMPERATURE=0 MAX_NEW_TOKENS=14000 GRAMMAR=off      ARGS: more options for generate
#   GENERATE=no        the parts are in OUT/parts already, from a machine with a GPU (runs-merge brings its runs.db along)
#   CLOUDS=reference   also the original's alignment (slower): CLOUDS=none leaves it out
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/common.sh

[ -n "${CKPT:-}" ] || die "CKPT=DIR is due: an adapter or a model, as make train leaves it"
[ -d "$CKPT" ] || die "CKPT=$CKPT is no folder"
data=${DATA:-datasets/work/abc}
[ -f "$data/test.json" ] || die "$data/test.json is not there: make data first (DATA=DIR names another folder)"
label=${LABEL:-$(basename "$CKPT")}
out=${OUT:-runs/eval/$(printf %s "$label" | tr -c 'A-Za-z0-9._-' '-')-$(basename "$data")}
if [ -f "$CKPT/adapter_config.json" ]; then
    base=${BASE:-$(sed -n 's/.*"base_model_name_or_path": *"\([^"]*\)".*/\1/p' "$CKPT/adapter_config.json")}
    [ -d "$base" ] || die "$CKPT was trained on '$base', which is no folder here: BASE=DIR says where that model is"
    weights=(--model "$base" --adapter "$CKPT")
elif [ -f "$CKPT/config.json" ]; then
    weights=(--model "$CKPT")
else
    die "$CKPT holds neither adapter_config.json nor config.json"
fi
plain=()
grep -qs '"template": *"plain"' "$CKPT/prompt.json" && plain=(--no-retrieval)

say "$CKPT on $data/test.json -> $out, '$label'"
# shellcheck disable=SC2086
[ "${GENERATE:-yes}" = no ] || tool generate "${weights[@]}" "${plain[@]}" --captions "$data/test.json" --out "$out/parts" --label "$label" --batch "${BATCH:-16}" \
    --limit "${LIMIT:-0}" --temperature "${TEMPERATURE:-0}" --max-new-tokens "${MAX_NEW_TOKENS:-14000}" --grammar "${GRAMMAR:-off}" ${ARGS:-}
score() { # label folder
    tool complete-ratio --label "$1" "$2"
    tool renderability --label "$1" "$2"
    tool renderability --label "$1" --mode reference "$2"
    tool entity-stats --label "$1" "$2"
}
truth=$data/truth
if [ "${LIMIT:-0}" != 0 ]; then # only the parts that were asked for
    truth=$out/truth
    mkdir -p "$truth"
    for f in "$out/parts"/*.step; do
        [ -f "$data/truth/${f##*/}" ] && cp -f "$data/truth/${f##*/}" "$truth/"
    done
fi
score "$label" "$out/parts"
tool chamfer --label "$label" --pred "$out/parts" --truth "$truth" --captions "$data/test.json"
[ "${CLOUDS:-reference}" = none ] || tool chamfer --label "$label" --align reference --pred "$out/parts" --truth "$truth"
score "ground truth" "$data/truth"
"$b/report" --db "$db" --format html --out "$(dirname "$db")/report.html"
"$b/report" --db "$db" --table scores
say "page: $(dirname "$db")/report.html"
