#!/bin/bash
# Every file in configs/: sft takes it, the pipeline's scripts find what they need in it, and the paper's
# settings are the paper's.
set -u
cd "$(dirname "$0")/../.."
BIN=${BIN:-build/bin}
[ -x "$BIN/sft" ] || { echo "SKIP: sft is not built (no libtorch)"; exit 77; }
fail() { echo "FAIL: $*"; exit 1; }
. scripts/common.sh
n=0
for c in configs/*.conf; do
    "$BIN/sft" --config "$c" --model m --data d --out o --print-config > /tmp/t04.$$ || fail "$c: exit $?"
    [ -n "$(model_key "$c" dir)" ] || fail "$c: no folder for the model"
    [ -n "$(model_key "$c" max_tokens)" ] || fail "$c: no max_tokens in [model]"
    grep -q "^max-tokens = $(model_key "$c" max_tokens)$" /tmp/t04.$$ || fail "$c: max_tokens differs between [model] and [sft]"
    n=$((n + 1))
    has() { grep -qx "$1" /tmp/t04.$$ || fail "$c: '$1' is due: $(grep "^${1%% *} " /tmp/t04.$$)"; }
    case $c in
    */qwen*|*/llama*) has 'lora.r = 16'; has 'lora.alpha = 16'; has 'seed = 3407'; has 'weight-decay = 0.01'; has 'batch-size = 2'; has 'save-steps = 300'; has 'optimizer = "adamw8bit"' ;;
    esac
    case $c in
    */qwen.conf|*/llama.conf) has 'lr = 5e-05'; has 'accumulation = 4'; has 'warmup-steps = 1200'; has 'schedule = "linear"' ;;
    *-paper.conf) has 'lr = 0.0002'; has 'accumulation = 8'; has 'epochs = 10'; has 'warmup-ratio = 0.05' ;;
    esac
done
rm -f /tmp/t04.$$
[ $n -ge 5 ] || fail "only $n configs"
[ "$(model_key configs/llama.conf repo)" = meta-llama/Llama-3.2-3B-Instruct ] || fail "a comment behind a value is part of it"
echo "ok: $n configs"
