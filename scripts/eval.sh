#!/bin/bash
# Generates a part for each caption of the test split and scores them.  Run by `make eval`; stopped or
# killed, the same command goes on.
#
#   make eval PARTS=DIR LABEL=Text2CAD DATA=DIR     parts from elsewhere as a row; also  scripts/eval.sh --label Text2CAD DIR
#                      (without DATA=, or TRUTH=DIR of parts of the same names, there is nothing to measure distances to)
#   CKPT=DIR           an adapter (its base model is named in it; BASE=DIR for another place), or a whole model
#   DATA=DIR           test.json and truth/ (default: datasets/work/abc)
#   LABEL='...'        the row of the tables (default: the folder's name)
#   LIMIT=0 BATCH=16 TEMPERATURE=0 MAX_NEW_TOKENS=14000 GRAMMAR=off      ARGS: more options for generate
#   GENERATE=no        the parts are in OUT/parts already, from a machine with a GPU (runs-merge brings its runs.db along)
#   CLOUDS=reference   also the original's alignment (slower): CLOUDS=none leaves it out
#   OUT=runs/eval/...  STAGES='generate score report'      only these
#
# On a cluster, by shards: every task of a job array runs one stage on its share, into a database of its own, OUT/shard-I-N.db,
#
#   SHARD=3/8 STAGES=generate make eval ...      then, when all have ended      SHARD=3/8 STAGES=score make eval ...
#
# and at the end, once, STAGES=report joins the databases into DB and makes the tables.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/common.sh

while [ $# -gt 0 ]; do
    case $1 in
    --label) LABEL=${2:?--label: a name is due}; shift ;;
    --truth) TRUTH=${2:?--truth: a folder is due}; shift ;;
    -*) die "$1: --label NAME, --truth DIR and a folder of parts are known; all else is said by variables (see the head of $0)" ;;
    *) PARTS=$1 ;;
    esac
    shift
done
data=${DATA:-datasets/work/abc}
if [ -n "${PARTS:-}" ]; then
    [ -d "$PARTS" ] || die "PARTS=$PARTS is no folder"
    label=${LABEL:?a LABEL for the row is due} parts=$PARTS GENERATE=no CKPT=$PARTS
    truth=${TRUTH:-$([ ! -d "$data/truth" ] || echo "$data/truth")}
else
    [ -n "${CKPT:-}" ] || die "CKPT=DIR is due: an adapter or a model, as make train leaves it; or PARTS=DIR and LABEL=: parts that are there"
    [ -d "$CKPT" ] || die "CKPT=$CKPT is no folder"
    [ -f "$data/test.json" ] || die "$data/test.json is not there: make data first (DATA=DIR names another folder)"
    label=${LABEL:-$(basename "$CKPT")} truth=${TRUTH:-$data/truth}
fi
out=${OUT:-runs/eval/$(printf %s "$label" | tr -c 'A-Za-z0-9._-' '-')-$(basename "$data")}
parts=${parts:-$out/parts}
weights=()
if [ -f "$CKPT/adapter_config.json" ]; then
    base=${BASE:-$(sed -n 's/.*"base_model_name_or_path": *"\([^"]*\)".*/\1/p' "$CKPT/adapter_config.json")}
    [ -d "$base" ] || [ "${GENERATE:-yes}" = no ] || die "$CKPT was trained on '$base', which is no folder here: BASE=DIR says where that model is"
    weights=(--model "$base" --adapter "$CKPT")
elif [ -f "$CKPT/config.json" ]; then
    weights=(--model "$CKPT")
elif [ "${GENERATE:-yes}" != no ]; then
    die "$CKPT holds neither adapter_config.json nor config.json"
fi
plain=()
grep -qs '"template": *"plain"' "$CKPT/prompt.json" && plain=(--no-retrieval)

test_of=" on $data/test.json"
[ -z "${PARTS:-}" ] || test_of=
stages=${STAGES:-generate score report} shard=()
[ "${GENERATE:-yes}" != no ] || stages=${stages/generate/}
for stage in $stages; do case $stage in generate | score | report) ;; *) die "STAGES: '$stage' is none of generate, score, report" ;; esac; done
all_db=$db
if [ -n "${SHARD:-}" ]; then
    # shellcheck disable=SC2086
    set -- $stages
    [ $# = 1 ] && [ "$1" != report ] || die "SHARD=$SHARD goes with one stage: STAGES=generate and, when all shards have ended, STAGES=score"
    shard=(--shard "$SHARD")
    mkdir -p "$out"
    db=$out/shard-${SHARD/\//-}.db
fi
stage() { case " $stages " in *" $1 "*) ;; *) false ;; esac; }

say "$CKPT${test_of} -> $out, '$label'${SHARD:+, shard $SHARD}"
# shellcheck disable=SC2086
! stage generate || tool generate "${weights[@]}" "${plain[@]}" --captions "$data/test.json" --out "$out/parts" --label "$label" --batch "${BATCH:-16}" \
    --limit "${LIMIT:-0}" --temperature "${TEMPERATURE:-0}" --max-new-tokens "${MAX_NEW_TOKENS:-14000}" --grammar "${GRAMMAR:-off}" "${shard[@]}" ${ARGS:-}
score() { # label folder
    local name mode
    for name in complete-ratio renderability entity-stats; do
        for mode in strict reference; do tool $name --label "$1" --mode $mode "${shard[@]}" "$2"; done
    done
}
if stage score; then
    [ -n "$(find "$parts" -iname '*.st*p' -print -quit 2>/dev/null)" ] || die "$parts holds no part to score: the stage generate comes first"
    scored_truth=$truth captions=()
    if [ "${LIMIT:-0}" != 0 ]; then # only the parts that were asked for
        scored_truth=$out/truth
        mkdir -p "$scored_truth"
        for f in "$parts"/*.step; do
            [ ! -f "$truth/${f##*/}" ] || cp -f "$truth/${f##*/}" "$scored_truth/"
        done
    fi
    [ ! -f "$data/test.json" ] || captions=(--captions "$data/test.json")
    score "$label" "$parts"
    if [ -n "$truth" ]; then
        tool chamfer --label "$label" "${shard[@]}" --pred "$parts" --truth "$scored_truth" "${captions[@]}"
        [ "${CLOUDS:-reference}" = none ] || tool chamfer --label "$label" "${shard[@]}" --align reference --pred "$parts" --truth "$scored_truth"
        score "ground truth" "$truth"
    else
        say "no true parts (TRUTH=DIR or DATA=DIR): no distances"
    fi
fi
if stage report; then
    for f in "$out"/shard-*.db; do # of SHARD=
        [ ! -f "$f" ] || "$b/runs-merge" "$f" --into "$all_db" --db none
    done
    "$b/report" --db "$all_db" --format html --out "$(dirname "$all_db")/report.html"
    "$b/report" --db "$all_db" --table scores
    say "page: $(dirname "$all_db")/report.html"
fi
