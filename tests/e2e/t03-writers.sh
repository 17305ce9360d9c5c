#!/bin/bash
# One run database, many tools: eight start at once on a database that is not there yet, and all is recorded; the
# same command twice at once is refused; --status tells what ran, runs, failed and was killed, and why.
set -u
BIN=$(cd "${BIN:-build/bin}" && pwd)
root=$(cd "$(dirname "$0")/../.." && pwd)
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
fail() { echo "FAIL: $*"; exit 1; }
cd "$dir" || exit 1
mkdir in
for r in 1 2 3; do for f in "$root"/datasets/sample/steps/*.step; do cp "$f" "in/$r-${f##*/}"; done; done
n=$(ls in | wc -l)
pids=
for c in "step-round in --out a" "step-round in --out b --digits 4" "step-restructure in --out c" "step-restore in --out d" "complete-ratio in" "entity-stats in" \
    "complete-ratio in --mode reference" "entity-stats in --mode reference"; do
    # shellcheck disable=SC2086
    "$BIN"/$c --db r.db -q -j1 > /dev/null 2>> err & pids="$pids $!"
done
for p in $pids; do wait "$p" || fail "a writer: exit $?: $(cat err)"; done
[ "$(sqlite3 r.db "SELECT count(*), sum(state='done') FROM runs")" = "8|8" ] || fail "runs: $(sqlite3 r.db 'SELECT tool, state, error FROM runs')"
[ "$(sqlite3 r.db "SELECT min(k), max(k) FROM (SELECT count(*) k FROM items GROUP BY run_id)")" = "$n|$n" ] || fail "items are missing"
[ "$(sqlite3 r.db 'PRAGMA integrity_check')" = ok ] || fail "the database is damaged"
[ "$(sqlite3 r.db 'PRAGMA journal_mode')" = wal ] && [ "$(sqlite3 r.db 'PRAGMA user_version')" -ge 1 ] || fail "no WAL or no version"

# Two tools that write for a while, side by side with one that reads.
"$BIN/step-round" in --out e --digits 5 --db r.db -q -j1 & a=$!
"$BIN/step-restore" in --out f --db r.db -q --mode reference -j1 & b=$!
for i in 1 2 3 4 5; do "$BIN/report" --status --db r.db > status || fail "status while tools write: $?"; done
wait $a && wait $b || fail "two writers"

# States.
head -c 3000 in/1-00000003.step > cut.step
"$BIN/step-round" cut.step --out g --db r.db -q 2> /dev/null
"$BIN/step-round" absent.step --out g --db r.db -q 2> /dev/null
"$BIN/renderability" in --db r.db -q -j1 > /dev/null & pid=$!
for i in $(seq 100); do [ "$(sqlite3 r.db "SELECT count(*) FROM items WHERE run_id=(SELECT id FROM runs WHERE tool='renderability')")" -gt 0 ] && break; sleep 0.05; done
"$BIN/renderability" in --db r.db -q -j1 > /dev/null 2> err; rc=$?
[ $rc -eq 2 ] && grep -q 'running already (run [0-9]*, process '$pid err || fail "the same command twice at once: exit $rc, $(cat err)"
"$BIN/report" --status --db r.db > status || fail "status: $?"
grep -q 'renderability.*running' status || fail "status of a running tool: $(grep renderability status)"
kill -9 $pid; wait $pid 2> /dev/null
"$BIN/report" --status --db r.db > status || fail "status: $?"
grep -q 'renderability.*interrupted.*is gone' status || fail "status of a killed tool: $(grep renderability status)"
grep -q 'step-round.*failed.*absent.step' status || fail "status of a failed run: $(grep step-round status)"
grep -q 'step-round.*1 of 1 items failed' status || fail "status of failed items: $(grep step-round status)"
echo "ok: $n items from each of eight writers"
