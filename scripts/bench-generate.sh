#!/bin/bash
# How fast the engine decodes at Qwen2.5-3B's shape (random weights), beside Transformers on the same machine, as a table.
#
#   scripts/bench-generate.sh BUILD [RECORDS TOKENIZER_DIR]
#
# RECORDS: a folder of pair records (make bench-draft makes them); with it also what drafts and the grammar bring and cost.
# ROWS= which parts, each with the seconds it may take (default: all that are below); a part that fails or takes longer is named at the end.
#   ROWS="peer:100 one batch:40" scripts/bench-generate.sh build
# CONFIG= another shape, SECONDS_A_DRAFT= (20) of decoding for each of DRAFTS= (15 31) tokens guessed at most, PYTHON= an interpreter
# with torch and transformers.  DEVICE=cpu: the script's own test, with models/demo.
set -u
cd "$(dirname "$0")/.." || exit
b=${1:-build} records=${2:-} tokenizer=${3:-} config=${CONFIG:-tests/bench/qwen2.5-3b} device=${DEVICE:-cuda} seconds=${SECONDS_A_DRAFT:-20} failed=()
if [ "$device" = cuda ]; then
    command -v nvidia-smi > /dev/null || { echo "SKIP: no NVIDIA GPU here"; exit 0; }
    nvidia-smi --query-gpu=name --format=csv,noheader
    new=512 many=32:2000 first=8192 grammar=512 all="check one first batch lora draft grammar fp8 memory loss peer:240"
else
    new=60 many=4:40 first=600 grammar=40 all="one first batch lora draft grammar loss"
fi
log=$(mktemp); trap 'rm -f "$log"' EXIT
run() { # LIMIT COMMAND...: lines for the log
    timeout "$@" 2>&1 | grep -v '^a random model in\|in [0-9.]* s$' | tee -a "$log"
    [ "${PIPESTATUS[0]}" = 0 ] || failed+=("$row")
}
ours() { local limit=$1; shift; run "$limit" "$b/tests/bench-decode" "$config" --device "$device" "$@"; } # LIMIT MODE...
drafts() { # FILE...: the modes that measure drafts on it
    local f k; for f; do [ ! -e "$records/$f.json" ] || for k in ${DRAFTS:-15 31}; do echo "draft:$records/$f.json:$tokenizer:$k:$seconds"; done; done
}
memory() { # the GPU's memory at its fullest, while one sequence of the paper's length is begun
    nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits -lms 100 > "$log.memory" & local watch=$!
    ours "$1" first:16384
    kill "$watch"; wait "$watch" 2> /dev/null
    echo "memory: $(sort -n "$log.memory" | tail -1) MiB at most, one sequence of 16,384 tokens, weights drawn on the device" | tee -a "$log"
    rm -f "$log.memory"
}
loss() { # 8 bits against the weights as they are, a trained model
    for w in native fp8; do
        run "$1" "$b/bin/eval-loss" --model models/demo --data "$records/demo.json" --weights $w --device "$device" --json --db none -q > "$log.loss"
        sed -n "s/.*\"loss\": *\([0-9.]*\).*/eval loss of models\/demo, $w, \1/p" "$log.loss" | tee -a "$log"
        rm -f "$log.loss"
    done
}
for row in ${ROWS:-$all}; do
    [[ " $all " = *" ${row%%:*}"[\ :]* ]] || { echo "${row%%:*}: no such row; there are $all" >&2; exit 2; }
done
for row in ${ROWS:-$all}; do
    limit=${row#*:} row=${row%%:*}
    [ "$limit" != "$row" ] || limit=${LIMIT:-120}
    case $row in peer|check|one|first|batch|lora|memory) ;; *) [ -n "$records" ] || { echo "$row: needs records"; continue; } ;; esac
    # shellcheck disable=SC2046 # the modes are words
    case $row in
    peer) run "$limit" "${PYTHON:-python3}" tests/bench/peer_generate.py "$config" 1 32 2> /dev/null ;;
    check) ours "$limit" check ;;
    one) ours "$limit" one:$new ;;
    first) ours "$limit" first:$first ;;
    batch) ours "$limit" batch:$many ;;
    lora) ours "$limit" --lora merged one:$new; ours "$limit" --lora unmerged one:$((new / 4)) ;;
    draft) ours "$limit" $(drafts golden golden-long synth) ;;
    grammar) ours "$limit" "grammar:$records/synth.json:$tokenizer:1:$grammar" "grammar:$records/synth.json:$tokenizer:${many%:*}:$grammar" ;;
    fp8) ours "$limit" --fp8 check one:$new $(DRAFTS=31 drafts golden synth) ;;
    loss) loss "$limit" ;;
    memory) memory "$limit" ;;
    esac
done
echo
awk '
function add(a, b, c) { line[n_lines++] = "| " a " | " b " | " c " |" }
function cut(pattern, left, right) { match($0, pattern); return substr($0, RSTART + left, RLENGTH - left - right) }
/^Transformers/ { n = cut("batch [0-9]+", 6, 0); peer[n] = cut(": [0-9]+ tokens", 2, 7); add("Transformers, static cache, compiled, batch " n, peer[n], ""); next }
/ batch [0-9]+, prompt / {
    who = /^adapter/ ? "ours, adapter " $2 : "ours"; sub(/;$/, "", who); n = cut("batch [0-9]+", 6, 0)
    if (/ fp8 /) who = who ", 8-bit weights"
    new = cut("[0-9]+ new", 0, 4)
    add(who ", batch " n ", " new " new each", r = cut("prompts, [0-9]+ after", 9, 6), "with the prompts " cut("[0-9]+ tokens/s with", 0, 14)); rate[n_lines - 1] = r; of[n_lines - 1] = n; next }
/ first token after / { n = cut("after [0-9]+:", 6, 1); add("first token after a prompt of " n, "", cut(": [0-9.]+ s", 2, 2) " s"); next }
/ drafts of .*none of / { add("drafts, " cut("records of [^ ]+", 11, 0), "", "no record is short enough"); next }
/ drafts of / {
    corpus = cut("records of [^ ]+", 11, 0); sub(/\.json$/, "", corpus)
    add((/ fp8 / ? "8-bit weights, " : "") "drafts of at most " cut("drafts of [0-9]+", 10, 0) ", " cut("on [0-9]+ records", 3, 8) " records of " corpus " (context " cut("context [0-9]+", 8, 0) ")",
        cut(", [0-9]+ tokens/s", 2, 9), cut("[0-9.]+ a step \\(", 0, 9) " tokens a step, " cut("[0-9.]+ ms a step", 0, 0)); next }
/ grammar, batch / { add("grammar, batch " cut("batch [0-9]+", 6, 0) ": " cut("each, .*: ", 6, 2), cut(": [0-9]+ tokens", 2, 7), cut("\\([-+0-9.]+ % time\\), [0-9]+ of [0-9]+ tokens changed", 0, 0)); next }
/^eval loss of / { add("eval loss of models/demo, weights " cut(", [a-z0-9]+,", 2, 1), "", $NF); next }
/^memory: / { sub(/^memory: /, ""); add("GPU memory", "", $0); next }
END {
    print "| what | tokens/s | |"; print "|---|---|---|"
    for (i = 0; i < n_lines; i++) { # Transformers may come last
        s = line[i]
        if (i in of && of[i] in peer) sub(/ \|$/, sprintf("; %.2f times Transformers |", rate[i] / peer[of[i]]), s)
        print s
    } }' "$log"
[ ${#failed[@]} = 0 ] || { echo "not done, or not within their time: ${failed[*]}"; exit 1; }
