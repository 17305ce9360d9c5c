#!/bin/bash
# The whole pipeline on the small sample, on the CPU.  Run by `make demo`, which has fetched and built
# all that is needed.  Safe to repeat: what is done is not done again.
#
#   scripts/demo.sh        MAKE= the make program, B= the build folder
set -eu
cd "$(dirname "$0")/.."
make=${MAKE:-make}
b=${B:-build}
work=datasets/work/demo
adapter=runs/demo
longest=6000 # tokens: what the data may have at most (configs/demo.conf); a part that goes on will not end
start=$(date +%s)

step() { printf '\n== %s\n' "$*"; }
took() { local s=$(($(date +%s) - start)); printf '%d min %02d s' $((s / 60)) $((s % 60)); }

step "1/4  Data: $(ls datasets/sample/steps | wc -l) parts and their captions become training records"
$make --no-print-directory data RAW=datasets/sample NAME=demo MODEL=demo

step "2/4  Training: a LoRA adapter for the small model in models/demo"
$make --no-print-directory train MODEL=demo DATA=$work OUT=$adapter

step "3/4  Generation and scores: every caption of the test split, with and without the adapter"
$make --no-print-directory eval CKPT=models/demo DATA=$work LABEL="demo base model" MAX_NEW_TOKENS=$longest
$make --no-print-directory eval CKPT=$adapter DATA=$work LABEL="demo base model + adapter" MAX_NEW_TOKENS=$longest

step "4/4  One sentence of our own"
"$b/bin/generate" --model models/demo --adapter $adapter --caption "A round flange with six bolt holes." --out runs/demo-part -q
"$b/bin/step-render" runs/demo-part --out runs/demo-part --views 1 --size 600 -q || true

step "Result, after $(took)"
"$b/bin/report" --table scores
echo
echo "Pictures, curves and every part beside the truth:  $PWD/runs/report.html"
echo "The part from a sentence:                          $PWD/runs/demo-part"
