#!/bin/bash
# How fast the metrics are, beside the original's figures.  Run by `make bench-eval`, on a machine with nothing else to do.
#
#   PARTS=DIR     STEP files to score (default: the MFCAD files of the golden cases, else 121 of the sample)
#   PAIRS=500     fresh pairs: as many truths and as many predictions, each read and meshed once
#   TRIES=3       the best of so many
# The original's figures were measured once, on such a machine: 0.8 to 1 s a pair once loaded, 8 to 12 s as a command; 0.58 files/s.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=$(cd "${B:-build}/bin" && pwd)
parts=${PARTS:-${SHARED:-../shared}/golden/chamfer/steps}
[ -d "$parts" ] || parts=datasets/sample/steps
pairs=${PAIRS:-500} tries=${TRIES:-3}
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
mkdir "$dir/truth" "$dir/pred" "$dir/files" "$dir/candidates"
mapfile -t files < <(find "$(cd "$parts" && pwd)" -iname '*.st*p' | sort)
n=${#files[@]}
[ "$n" -gt 1 ] || { echo "bench-eval: $parts holds no STEP files" >&2; exit 3; }
for ((i = 0; i < pairs; i++)); do # copies, so that each is a file of its own; a part against itself or one of the next seven
    cp "${files[i % n]}" "$dir/truth/$i.step"
    cp "${files[(i + i / n % 8) % n]}" "$dir/pred/$i.step"
done
for ((i = 0; i < (n < 300 ? 300 : n); i++)); do cp "${files[i % n]}" "$dir/files/$i.step"; done
for ((i = 0; i < 300; i++)); do cp "${files[i % n]}" "$dir/candidates/$i.step"; done

# The best of TRIES: seconds, and user and system seconds of all its processes.
best() {
    local k
    for ((k = 0; k < tries; k++)); do
        TIMEFORMAT='%R %U %S'
        { time "$@" > "$dir/out" 2> "$dir/err" || [ $? = 1 ]; } 2>> "$dir/times"
    done
    sort -n "$dir/times" | head -1
    rm "$dir/times"
}
row() { # name, items, original, goal, command...
    local name=$1 items=$2 original=$3 goal=$4 t
    shift 4
    t=$(best "$@")
    awk -v name="$name" -v n="$items" -v o="$original" -v g="$goal" -v t="$t" 'BEGIN { split(t, s, " ");
        printf "%-52s %8.1f/s %9.1f ms %12s %10s\n", name, n / s[1], 1000 * (s[2] + s[3]) / n, o, g }'
}
align() { # how, original, goal: registration and distance alone, mean over the pairs, one thread, the least of TRIES a pair
    local k
    for ((k = 0; k < tries; k++)); do "$bin/chamfer" --db none --json -q -j1 --align "$1" --truth "$dir/truth" --pred "$dir/pred" > "$dir/align.$k" 2> "$dir/err" || [ $? = 1 ]; done
    cat "$dir"/align.* | grep -o '"pred":"[^"]*".*"status":"ok".*"seconds":[0-9.e-]*' | sed 's/"pred":"\([^"]*\)".*"seconds":/\1 /' |
        awk -v how="$1" -v o="$2" -v g="$3" '!($1 in s) || $2 < s[$1] { s[$1] = $2 } END { for (k in s) { sum += s[k]; n++ }
            printf "%-52s %10s %9.1f ms %12s %10s\n", "align " how " and distance, a pair, one core", "", 1000 * sum / n, o, g }'
    rm "$dir"/align.*
}
echo "$(nproc) cores, $n different parts of $parts, OpenCASCADE and all; the best of $tries"
printf '%-52s %10s %12s %12s %10s\n' '' rate 'CPU each' original goal
align reference '720-900 ms' '15 ms'
align best - '20 ms'
row "chamfer --align reference, $pairs fresh pairs" "$pairs" '0.1/s' '20/s' "$bin/chamfer" --db none --json -q --align reference --truth "$dir/truth" --pred "$dir/pred"
row "chamfer --align best, $pairs fresh pairs" "$pairs" - '20/s' "$bin/chamfer" --db none --json -q --truth "$dir/truth" --pred "$dir/pred"
row "chamfer, $pairs against one truth" "$pairs" - - "$bin/chamfer" --db none --json -q --truth "${files[0]}" --pred "$dir/pred"
nf=$(find "$dir/files" -name '*.step' | wc -l)
row 'renderability --mode reference' "$nf" '0.58/s' '40/s' "$bin/renderability" --db none --json -q --mode reference "$dir/files"
row 'renderability --mode strict' "$nf" '0.58/s' '40/s' "$bin/renderability" --db none --json -q "$dir/files"
row 'geometry-reward --kind paper, 300 candidates' 300 '1/s' '9.4/s a core' "$bin/geometry-reward" --db none --json -q --kind paper --truth "${files[0]}" --candidates "$dir/candidates"
row 'geometry-reward --kind hardened' 300 - '9.4/s a core' "$bin/geometry-reward" --db none --json -q --truth "${files[0]}" --candidates "$dir/candidates"
