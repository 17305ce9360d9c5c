#!/bin/bash
# The whole pipeline on the small sample, on the CPU.  Run by `make demo`, which has fetched and built
# all that is needed.  Safe to repeat: what is done is not done again, unless the sample or the model changed.
#
#   scripts/demo.sh        MAKE= the make program, B= the build folder, DB= the run database (runs/runs.db)
set -eu
cd "$(dirname "$0")/.."
. scripts/common.sh
make=${MAKE:-make}
report=$(dirname "$db")/report.html
work=datasets/work/demo
adapter=runs/demo-adapter # (runs/demo is where make train MODEL=demo leaves one of yours)
longest=6000 # tokens: what the data may have at most (configs/demo.conf); a part that goes on will not end
start=$(date +%s)

took() { local s=$(($(date +%s) - $1)); printf '%d min %02d s' $((s / 60)) $((s % 60)); }
step() {
    [ -z "${began:-}" ] || printf '   (%s)\n' "$(took "$began")"
    began=$(date +%s)
    printf '\n== %s\n' "$*"
}
# The scores of every part go to a file; the tables follow at the end.
evaluate() { # model or adapter, row of the tables
    $make --no-print-directory eval CKPT="$1" DATA=$work LABEL="$2" MAX_NEW_TOKENS=$longest STAGES='generate score' >> runs/demo-scores.txt
}

step "1/4  Data: $(ls datasets/sample/steps | wc -l) parts and their captions become training records"
$make --no-print-directory data RAW=datasets/sample NAME=demo MODEL=demo

step "2/4  Training: a LoRA adapter for the small model in models/demo"
# An adapter of other records or of another model is no use: it would be refused; and parts of captions that are gone would be scored.
made_of=$(cat $work/*.json models/demo/* configs/demo.conf | sha256sum)
if [ -d $adapter ] && [ "$(cat $adapter/.made-of 2> /dev/null)" != "$made_of" ]; then
    echo "train: the sample, the model or its settings changed since $adapter was made: it is made anew" >&2
    rm -rf $adapter runs/eval/demo-base-model-demo runs/eval/demo-base-model---adapter-demo
fi
mkdir -p $adapter
echo "$made_of" > $adapter/.made-of
$make --no-print-directory train MODEL=demo DATA=$work OUT=$adapter

step "3/4  Generation and scores: every caption of the test split, with and without the adapter"
: > runs/demo-scores.txt
evaluate models/demo "demo base model"
evaluate $adapter "demo base model + adapter"

step "4/4  One sentence of our own"
"$b/generate" --db "$db" --model models/demo --adapter $adapter --caption "A round flange with six bolt holes." --out runs/demo-part -q

step "Result, after $(took "$start")"
"$b/report" --db "$db" --format html --out "$report"
"$b/report" --db "$db" --table scores
echo
echo "Pictures, curves and every part beside the truth:  $(realpath "$report")"
echo "The scores of each part:                           $PWD/runs/demo-scores.txt"
echo "The part from a sentence, and its picture:         $PWD/runs/demo-part"
