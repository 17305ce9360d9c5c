#!/bin/bash
# How fast the engine decodes at Qwen2.5-3B's shape (random weights), beside Transformers on the same machine, as a table.
#
#   scripts/bench-generate.sh BUILD [RECORDS TOKENIZER_DIR]
#
# RECORDS: a folder of pair records (make bench-draft makes them); with it also what drafts and the grammar bring and cost.  CONFIG= another shape,
# SECONDS_A_DRAFT= (20) of decoding for each of DRAFTS= (7 15 31) tokens guessed at most, PYTHON= an interpreter with torch and transformers.  A part that fails or takes too long is left out.
# DEVICE=cpu: the script's own test, with models/demo.
set -u
cd "$(dirname "$0")/.."
b=${1:-build} records=${2:-} tokenizer=${3:-} config=${CONFIG:-tests/bench/qwen2.5-3b} device=${DEVICE:-cuda} seconds=${SECONDS_A_DRAFT:-20}
if [ "$device" = cuda ]; then
    command -v nvidia-smi > /dev/null || { echo "SKIP: no NVIDIA GPU here"; exit 0; }
    nvidia-smi --query-gpu=name --format=csv,noheader
    new=512 many=32:2000 first=8192
else
    new=60 many=4:40 first=600
fi
log=$(mktemp); trap 'rm -f "$log"' EXIT
part() { # LIMIT ARGUMENTS: a part of the log
    local limit=$1; shift
    timeout "$limit" "$b/tests/bench-decode" "$config" --device "$device" "$@" 2>&1 | grep -v '^a random model\|in [0-9.]* s$' | tee -a "$log"
}
[ "$device" != cuda ] || timeout 300 "${PYTHON:-python3}" tests/bench/peer_generate.py $config 1 32 2> /dev/null | tee -a "$log"
[ "$device" != cuda ] || part 60 check
part 120 one:$new first:$first batch:$many
part 60 --lora merged one:$new
part 60 --lora unmerged one:$((new / 4))
if [ -n "$records" ]; then
    modes=()
    for f in "$records"/golden.json "$records"/golden-long.json "$records"/synth.json; do
        [ ! -e "$f" ] || for k in ${DRAFTS:-7 15 31}; do modes+=("draft:$f:$tokenizer:$k:$seconds"); done
    done
    f=$records/synth.json
    part 300 "${modes[@]}"
    part 100 "grammar:$f:$tokenizer:1:$new" "grammar:$f:$tokenizer:${many%:*}:$new"
fi
[ "$device" != cuda ] || part 60 --fp8 check one:$new
[ "$device" != cuda ] || [ -z "$records" ] || part 60 --fp8 "draft:$records/golden.json:$tokenizer:31:$seconds"
echo
awk '
function row(a, b, c) { printf "| %s | %s | %s |\n", a, b, c }
function num(s, before) { match(s, before "[0-9.]+"); return substr(s, RSTART + length(before), RLENGTH - length(before)) }
BEGIN { print "| what | tokens/s | |"; print "|---|---|---|" }
/^Transformers/ { match($0, /batch [0-9]+/); n = substr($0, RSTART + 6, RLENGTH - 6); match($0, /: [0-9]+ tokens/); r = substr($0, RSTART + 2, RLENGTH - 9); peer[n] = r; row("Transformers, static cache, compiled, batch " n, r, ""); next }
/ batch [0-9]+, prompt / {
    who = /^adapter/ ? "ours, adapter " $2 : "ours"; sub(/;$/, "", who); match($0, /batch [0-9]+/); n = substr($0, RSTART + 6, RLENGTH - 6)
    if (/ fp8 /) who = who ", 8-bit weights"
    match($0, /prompts, [0-9]+ after/); r = substr($0, RSTART + 9, RLENGTH - 15)
    row(who ", batch " n, r, n in peer ? sprintf("%.2f times Transformers", r / peer[n]) : ""); next }
/ first token after / { match($0, /after [0-9]+: [0-9.]+/); split(substr($0, RSTART + 6, RLENGTH - 6), v, ": "); row("first token after a prompt of " v[1], "", v[2] " s"); next }
/ drafts of / {
    match($0, /drafts of [0-9]+/); k = substr($0, RSTART + 10, RLENGTH - 10); match($0, /, [0-9]+ tokens\/s/); r = substr($0, RSTART + 2, RLENGTH - 11)
    match($0, /records of [^ ]+/); corpus = substr($0, RSTART + 11, RLENGTH - 11); sub(/\.json$/, "", corpus)
    match($0, /context [0-9]+/); c = substr($0, RSTART + 8, RLENGTH - 8); match($0, /[0-9.]+ a step \(/); a = substr($0, RSTART, RLENGTH - 9); match($0, /[0-9.]+ ms a step/); ms = substr($0, RSTART, RLENGTH)
    row((/ fp8 / ? "8-bit weights, " : "") "drafts of at most " k ", " corpus " (context " c ")", r, a " tokens a step, " ms); next }
/ grammar, batch / { match($0, /batch [0-9]+/); n = substr($0, RSTART + 6, RLENGTH - 6); match($0, /each, .*: /); how = substr($0, RSTART + 6, RLENGTH - 8); match($0, /: [0-9]+ tokens/); r = substr($0, RSTART + 2, RLENGTH - 9)
    match($0, /\([-+0-9.]+ % time\), [0-9]+ of [0-9]+ tokens changed/); row("grammar, batch " n ": " how, r, substr($0, RSTART, RLENGTH)); next }
' "$log"
