#!/bin/bash
# Preparation tools against the original's scripts: whole processes, in turn, on the same files.
#
#   ORIGINAL=DIR scripts/bench-prep.sh STEP_DIR [ROUNDS]
#
# STEP_DIR: a folder of STEP files.  ORIGINAL: a checkout of the original (its data_preparation/ folder);
# without it only ours are timed.  PYTHON names the interpreter.  Prints the median and range of each
# and the ratio of the medians, both over all cores and on one.
#
# The original over 242 MFCAD files (18 MB), CPython 3.11, two cores, as once measured: round 163 files/s, restructure 8.5
# through its batch script, restore 532, all in order 7.9; without ORIGINAL the ratios are to these.
#
# TMPDIR says where outputs are written; ROUNDS of them stay there until the end.
set -eu
cd "$(dirname "$0")/.."
[ $# -ge 1 ] || { sed -n '2,14p' "$0" | cut -c3-; exit 2; }
steps=$(cd "$1" && pwd) rounds=${2:-5} bin=$PWD/${B:-build}/bin python=${PYTHON:-python3}
original=${ORIGINAL:+$(cd "$ORIGINAL" && pwd)/data_preparation}
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
cd "$work"
mkdir -p dataset/rounded_step
find "$steps" -name '*.step' ! -name '.*' | sort > list
files=$(wc -l < list) bytes=$(cat $(cat list) | wc -c)
echo "$files files, $((bytes / 1000)) kB, $rounds rounds, $(nproc) cores"
[ -n "$original" ] || echo "ours alone: ORIGINAL=DIR names a checkout of the original to time beside it"

# The original names its outputs by the parent folder: one folder a file, as ABC has them.
while read -r f; do
    d=dataset/rounded_step/$(basename "$f" .step); mkdir -p "$d"; cp "$f" "$d/"
done < list

n_aside=0
now() { date +%s%N; }
# Earlier outputs are put aside, not removed: ext4 looks through all inodes freed in the last minute whenever it makes a file, which
# made some thousand removed outputs cost more than the work.
timed() { # name, outputs to put aside first, command...: appends microseconds to name.us
    local name=$1 t0 o; n_aside=$((n_aside + 1))
    for o in $2; do [ ! -e "$o" ] || { mkdir -p aside; mv "$o" "aside/$n_aside-${o##*/}"; }; done
    shift 2
    t0=$(now); "$@" > "$name.log" 2>&1 || { echo "$name failed:"; tail -5 "$name.log"; exit 1; }
    echo $((($(now) - t0) / 1000)) >> "$name.us"
}
ours_round() { "$bin/step-round" "$steps" --out o1 --db none -q --mode ${2:-reference} $1; }
ours_restructure() { "$bin/step-restructure" o1 --out o2 --db none -q --mode $2 $1; }
ours_restore() { "$bin/step-restore" o2 --out o3 --db none -q --mode ${2:-reference} $1; }
ours_chain() { ours_round ""; ours_restructure "" strict; ours_restore ""; }
theirs_round() { "$python" "$original/round_step_numbers.py" "$steps" --output-dir p1; }
theirs_restructure() { (PATH="$(dirname "$(command -v "$python")"):$PATH"; sed "s|step_restructurer.py|$original/step_restructurer.py|" "$original/batch_restructure.sh" > batch.sh; bash batch.sh); }
theirs_restore() { "$python" "$original/restore_step_valid.py" "$work/dataset/dfs_step" -o p3; }

ours_round ""; ours_restructure "" strict
for i in $(seq "$rounds"); do
    timed round o1 ours_round ""; timed round-1 o1 ours_round -j1
    timed round-strict o1 ours_round "" strict
    timed restructure o2 ours_restructure "" strict; timed restructure-1 o2 ours_restructure -j1 strict
    timed restructure-reference o2 ours_restructure "" reference
    timed restore o3 ours_restore ""; timed restore-1 o3 ours_restore -j1
    timed restore-strict o3 ours_restore "" strict
    timed chain "o1 o2 o3" ours_chain
    if [ -n "$original" ]; then
        timed original-round p1 theirs_round; timed original-restructure dataset/dfs_step theirs_restructure; timed original-restore p3 theirs_restore
        paste -d+ original-round.us original-restructure.us original-restore.us | bc > original-chain.us
    fi
done

stat() { sort -n "$1.us" | awk '{v[NR]=$1} END {m=NR%2?v[(NR+1)/2]:(v[NR/2]+v[NR/2+1])/2; printf "%.1f %.1f %.1f", m/1000, v[1]/1000, v[NR]/1000}'; }
declare -A once=([round]=163 [restructure]=8.5 [restore]=532 [chain]=7.9) # files/s
printf '%-24s %12s %22s %10s %10s\n' tool 'median ms' '[min..max]' files/s 'x original'
for name in round round-strict round-1 restructure restructure-reference restructure-1 restore restore-strict restore-1 chain original-round original-restructure original-restore original-chain; do
    [ -f $name.us ] || continue
    read -r med lo hi <<< "$(stat $name)"
    ratio=
    base=original-${name%-1}; base=${base%-reference}; base=${base%-strict}
    [ -z "$original" ] && ratio=$(echo "scale=1; $files * 1000 / $med / ${once[${base#original-}]}" | bc)
    [ -f "$base.us" ] && { read -r theirs _ <<< "$(stat "$base")"; ratio=$(echo "scale=1; $theirs / $med" | bc); }
    printf '%-24s %12s %22s %10.0f %10s\n' "$name" "$med" "[$lo..$hi]" "$(echo "$files * 1000 / $med" | bc)" "$ratio"
done
