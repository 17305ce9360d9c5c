#!/bin/bash
# Runs unit tests (cmocka programs) and end-to-end scripts, and ends with
# 'N passed, N failed, N skipped'.
#
#   tests/run.sh BUILD_DIR [name...]     names: test_json, t10-step-tools, ...
#
# A unit program counts by its tests, a script as one.  A script skips with exit
# code 77 after a 'SKIP: reason' line.  Logs stay in BUILD_DIR/test-logs.
set -u
cd "$(dirname "$0")/.."
build=$1; shift
export BIN=$PWD/$build/bin SHARED=${SHARED:-../shared}
[ "${build#/}" = "$build" ] || BIN=$build/bin
[ -d "$SHARED" ] && SHARED=$(cd "$SHARED" && pwd)
export ENCODER=${ENCODER:-$PWD/third_party/minilm}
export CMOCKA_MESSAGE_OUTPUT=STDOUT
logs=$build/test-logs
mkdir -p "$logs"
passed=0 failed=0 skipped=0 failures=

chosen() {
    [ ${#names[@]} -eq 0 ] && return 0
    local n
    for n in "${names[@]}"; do [ "$n" = "$1" ] && return 0; done
    return 1
}
names=("$@")
# begin, took: wall and processor time of a test (the latter tells what it costs, whatever else the machine does).
cpu() { # of all children so far, in ms, in cpu_ms; no subshell, which would tell of its own
    times > "$logs/.times"
    cpu_ms=$(awk 'NR == 2 { for (i = 1; i <= 2; i++) { split($i, t, /[ms]/); ms += t[1] * 60000 + t[2] * 1000 } printf "%d", ms }' "$logs/.times")
}
begin() {
    cpu
    start_cpu=$cpu_ms start=$(date +%s%N)
}
took() {
    local ms=$((($(date +%s%N) - start) / 1000000))
    cpu
    printf '(%d ms, processor %d ms)\n' $ms $((cpu_ms - start_cpu))
}

for t in "$build"/tests/test_*; do
    name=$(basename "$t")
    [ -x "$t" ] && [ -f "$t" ] || continue
    [ -f "tests/unit/$name.c" ] || continue
    chosen "$name" || continue
    log=$logs/$name.log
    begin
    timeout 600 "$t" > "$log" 2>&1
    rc=$?
    p=$(grep -c '^\[       OK \]' "$log")
    # cmocka repeats failures and skips in its summary: count the distinct names
    f=$(sed -n 's/^\[  FAILED  \] \([a-zA-Z_0-9]*\)$/\1/p' "$log" | sort -u | wc -l)
    s=$(sed -n 's/^\[  SKIPPED \] \([a-zA-Z_0-9]*\)$/\1/p' "$log" | sort -u | wc -l)
    if [ $rc -ne 0 ] && [ "$f" -eq 0 ]; then f=1; fi # crashed, hung or leaked
    passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
    printf '%-28s %3d passed' "$name" "$p"
    [ "$s" -gt 0 ] && printf ', %d skipped' "$s"
    [ "$f" -gt 0 ] && printf ', %d FAILED (exit %d)' "$f" $rc
    printf '  '
    took
    grep -h '^SKIP' "$log"
    if [ "$f" -gt 0 ]; then failures="$failures $name"; tail -n 40 "$log"; fi
done

for t in tests/e2e/t*.sh; do
    name=$(basename "$t" .sh)
    [ -f "$t" ] || continue
    chosen "$name" || continue
    log=$logs/$name.log
    begin
    timeout 900 bash "$t" > "$log" 2>&1 < /dev/null
    rc=$?
    case $rc in
    0) passed=$((passed + 1)); verdict=ok ;;
    77) skipped=$((skipped + 1)); verdict=skipped ;;
    *) failed=$((failed + 1)); verdict="FAILED (exit $rc)"; failures="$failures $name" ;;
    esac
    printf '%-28s %s  ' "$name" "$verdict"
    took
    grep -h '^SKIP' "$log"
    [ $rc -eq 0 ] || [ $rc -eq 77 ] || tail -n 40 "$log"
done

[ -z "$failures" ] || echo "failed:$failures (logs in $logs)"
echo "$passed passed, $failed failed, $skipped skipped"
[ $failed -eq 0 ] && [ $passed -gt 0 ]
