#!/bin/bash
# Every tool: --help, --version, misuse, unknown keys, a database from the future; and --help
# of the text tools starts in milliseconds without libtorch.
set -u
BIN=${BIN:-build/bin}
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
fail() { echo "FAIL: $*"; exit 1; }
# In parallel: what links libtorch takes a third of a second to start, seven times.
check() {
    local tool=$1 name dir=$dir/${1##*/}; name=${1##*/}
    mkdir "$dir"
    "$tool" --help > "$dir/help" 2> "$dir/err" || fail "$name --help: exit $?"
    [ -s "$dir/err" ] && fail "$name --help writes to stderr"
    grep -q "^usage: $name " "$dir/help" || fail "$name --help: no usage line"
    grep -q -- '--db FILE' "$dir/help" || fail "$name --help: no common options"
    "$tool" --version | grep -Eq "^$name [0-9]+\.[0-9]+\.[0-9]+ \(" || fail "$name --version"
    "$tool" --no-such-option > "$dir/out" 2> "$dir/err"; [ $? -eq 2 ] || fail "$name: misuse does not exit 2"
    [ -s "$dir/out" ] && fail "$name: misuse writes to stdout"
    grep -q "no-such-option" "$dir/err" || fail "$name: misuse is not named"
    "$tool" -o lables=x > "$dir/out" 2> "$dir/err"; [ $? -eq 2 ] || fail "$name: unknown key does not exit 2"
    grep -q "lables.*nearest: 'label'" "$dir/err" || fail "$name: nearest key not named: $(cat "$dir/err")"
    printf '[%s]\n\nquite = true\n' "$name" > "$dir/c.conf"
    "$tool" --config "$dir/c.conf" 2> "$dir/err"; [ $? -eq 2 ] || fail "$name: bad config does not exit 2"
    grep -q "c.conf:3: .*quite.*nearest: 'quiet'" "$dir/err" || fail "$name: config error: $(cat "$dir/err")"
    "$tool" --config "$dir/none.conf" 2> "$dir/err"; [ $? -eq 3 ] || fail "$name: missing config does not exit 3"
}
export -f check fail
export dir
n=$(ls "$BIN" | wc -l)
printf '%s\0' "$BIN"/* | xargs -0 -n 1 -P "$(nproc)" bash -c 'set -u; check "$1"' check || exit 1
[ $n -ge 10 ] || fail "only $n tools"
"$BIN/split" --help > /dev/full 2> "$dir/err"; [ $? -eq 3 ] || fail "--help on a full disk does not exit 3"
grep -q "^split: error: cannot write to standard output: No space" "$dir/err" || fail "--help on a full disk: $(cat "$dir/err")"
"$BIN/split" --in "$0" --out= --db none 2> "$dir/err"; [ $? -eq 2 ] || fail "an empty --out does not exit 2"
if [ -x "$BIN/step-round" ]; then
    ldd "$BIN/step-round" | grep -Eq 'libtorch|libTK|libfaiss|libcurl' && fail "step-round links what it does not use"
    start=$(date +%s%N); for i in 1 2 3 4 5 6 7 8 9 10; do "$BIN/step-round" --help > /dev/null; done
    ms=$((($(date +%s%N) - start) / 10000000))
    [ $ms -lt 200 ] || fail "step-round --help takes $ms ms"
fi
echo "ok: $n tools"
