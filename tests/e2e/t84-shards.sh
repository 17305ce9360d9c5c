#!/bin/bash
# scripts/sbatch-prep.sh: an array of four shards, as separate processes at once, gives what one process gives; killed shards go
# on.  Through Slurm itself where sbatch answers.
set -u
BIN=${BIN:-$PWD/build/bin}
BIN=$(cd "$BIN" && pwd)
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
fail() { echo "FAIL: $*"; exit 1; }
export B=$(dirname "$BIN") RAW=$PWD/datasets/sample/steps OUT=$dir/out
array() { # step
    local i pids= rc=0
    for i in 1 2 3 4; do
        SLURM_ARRAY_TASK_ID=$i SLURM_ARRAY_TASK_COUNT=4 SLURM_CPUS_PER_TASK=1 scripts/sbatch-prep.sh "$1" > "$dir/$1.$i" 2>&1 &
        pids="$pids $!"
    done
    for i in $pids; do wait "$i" || rc=$?; done
    return $rc
}
"$BIN"/step-round "$RAW" --out "$dir/whole/rounded" --db none -q 2> /dev/null
"$BIN"/step-restructure "$dir/whole/rounded" --out "$dir/whole/restructured" --db none -q 2> /dev/null
array round || fail "round: $(tail -n 1 "$dir"/round.*)"
array restructure || fail "restructure: $(tail -n 1 "$dir"/restructure.*)"
scripts/sbatch-prep.sh merge > "$dir/merge" 2>&1 || fail "merge: $(cat "$dir/merge")"
for d in rounded restructured; do diff -rq "$OUT/$d" "$dir/whole/$d" || fail "$d differs from what one process makes"; done
files=$(find "$RAW" -name '*.step' | wc -l)
grep -q "^8 runs with $((2 * files)) items" "$dir/merge" || fail "$(cat "$dir/merge")"
if sinfo -h -o %a 2> /dev/null | grep -q up; then
    export OUT=$dir/slurm
    cpus="--cpus-per-task=1 --mem=100M --output=$dir/%x-%A-%a.log --export=ALL"
    a=$(sbatch --parsable $cpus --array=1-4 scripts/sbatch-prep.sh round) || fail "sbatch"
    b=$(sbatch --parsable $cpus --array=1-4 --dependency=afterany:$a scripts/sbatch-prep.sh restructure)
    timeout 120 sbatch --wait $cpus --dependency=afterany:$b scripts/sbatch-prep.sh merge > /dev/null || fail "Slurm: $(cat "$dir"/*.log)"
    for d in rounded restructured; do diff -rq "$OUT/$d" "$dir/whole/$d" || fail "through Slurm, $d differs"; done
    [ -s "$OUT/runs.db" ] || fail "Slurm: no merged database"
    echo "through Slurm, too"
fi
echo ok
