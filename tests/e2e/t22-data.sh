#!/bin/bash
# scripts/data.sh from the archives on: fetched from a server on this machine, rounded, restructured, paired, filtered, split; each step
# recorded and reported; killed at any moment and started again, it makes the same files and does nothing twice.
set -u
BIN=${BIN:-build/bin}
BIN=$(cd "$BIN" && pwd) here=$(cd "$(dirname "$0")" && pwd) root=$(cd "$(dirname "$0")/../.." && pwd)
[ -x "$BIN/abc-fetch" ] || { echo "SKIP: abc-fetch is not built"; exit 77; }
encoder=${ENCODER:-$root/third_party/minilm} top_k=1
[ -x "$BIN/rag-pairs" ] && [ -f "$encoder/model.safetensors" ] || { echo "SKIP: no rag-pairs or no sentence encoder"; exit 77; }
dir=$(mktemp -d) server=
trap '[ -z "$server" ] || kill $server; rm -rf "$dir"' EXIT
fail() { echo "FAIL: $*"; [ ! -s err ] || tail -n 5 err; exit 1; }
cd "$dir" || exit 1
export no_proxy='*' NO_PROXY='*' OMP_NUM_THREADS=1
unset http_proxy https_proxy all_proxy

# two chunks of parts, one of them of many entities, one empty; captions of all but one, and of one that is not there
mkdir web
n=0
for f in "$root"/datasets/sample/steps/*.step; do
    id=$(basename "$f" .step) c=$((n++ / 12)); [ $c -lt 2 ] || break
    mkdir -p "in/$c/$id" && cp "$f" "in/$c/$id/${id}_0123abcd_step_000.step"
done
mkdir in/0/00009000 in/1/00009001; : > in/0/00009000/00009000_0123abcd_step_000.step
{ sed '/^DATA/q' "$f"; for i in $(seq 600); do echo "#$i=A('',$i.);"; done; echo "ENDSEC;"; echo "END-ISO-10303-21;"; } > in/1/00009001/00009001_0123abcd_step_000.step
for c in 0 1; do python3 "$here/make_7z.py" web/abc_000${c}_step_v00.7z in/$c || fail "cannot make a 7z"; done
{ head -n 24 "$root/datasets/sample/captions.csv"; echo '00009002,True,a part that is not there'; } > captions.csv
python3 "$here/loopback_server.py" web port log & server=$!
for i in $(seq 100); do [ -e port ] && break; sleep 0.05; done
[ -e port ] || fail "no server"
url=http://127.0.0.1:$(cat port)
printf '%s\n' "$url/!drop=9000/abc_0000_step_v00.7z abc_0000_step_v00.7z" "$url/abc_0001_step_v00.7z abc_0001_step_v00.7z" > web/list.txt

# place DIR: what the script needs of the repository
place() { mkdir "$1" && cp -r "$root/scripts" "$root/configs" "$1/" && mkdir -p "$1/build" "$1/models" && ln -s "$BIN" "$1/build/bin" && ln -s "$root/models/demo" "$1/models/demo"; }
data() { env CHUNKS=0-1 LIST="$url/list.txt" MODEL=demo CAPTIONS="$dir/captions.csv" ENCODER="$encoder" TOP_K=$top_k MAX_TOKENS=100000 "$1/scripts/data.sh"; }
made() { (cd "$1/datasets" && find . -type f ! -name '.*' | sort | xargs sha256sum); }

place whole
data whole > out 2> err || fail "data.sh: $?"
work=whole/datasets/work/abc
[ "$(find whole/datasets/abc/steps -name '*.step' | wc -l)" -eq 24 ] || fail "fetched: $(find whole/datasets/abc/steps | wc -l)"
[ "$(find $work/restructured -name '*.step' | wc -l)" -eq 24 ] || fail "restructured"
[ "$(cat $work/{train,val,test}.json | grep -c id_original)" -eq 23 ] || fail "records: $(grep -c id_original $work/*.json)"
sql() { sqlite3 "$1/runs/runs.db" "$2"; }
for t in abc-fetch step-round step-restructure rag-pairs token-filter split; do
    [ "$(sql whole "SELECT state FROM runs WHERE tool='$t'")" = done ] || fail "$t is not recorded: $(sql whole 'SELECT tool,state FROM runs')"
    [ "$(sql whole "SELECT count(*) FROM items i JOIN runs r ON r.id=i.run_id WHERE r.tool='$t'")" -ge 3 ] || [ $t = split ] || fail "$t: no items"
done
[ "$(sql whole "SELECT count(*) FROM items WHERE state='failed' AND reason LIKE 'no_%'")" -eq 2 ] || fail "a caption without a part and the reverse: $(sql whole "SELECT item,reason FROM items WHERE state='failed'")"
"$BIN/report" --status --db whole/runs/runs.db > report 2> err || fail "report: $?"
for t in abc-fetch step-round step-restructure rag-pairs token-filter split; do grep -q "$t" report || fail "the report has no $t: $(cat report)"; done
grep -q '2 of 25 items failed; such as .*no_caption' report || fail "the report does not name what failed: $(cat report)"

# again: no file is made anew but the pairs and sets, from kept embeddings
made whole > sums; : > log
data whole > out 2> err || fail "again: $?"
made whole | diff sums - > diff || fail "a second start changes files: $(cat diff)"
[ "$(grep -c 7z log)" = 0 ] && [ "$(sql whole "SELECT count(*) FROM runs WHERE tool NOT IN ('rag-pairs','split')")" = 4 ] ||
    fail "a second start works again: $(sql whole 'SELECT tool,state FROM runs')"
grep -q 'the index of an earlier run' err || fail "captions are embedded again"

# killed, whatever is running
place cut
RANDOM=${SEED:=$RANDOM}
for i in 1 2 3 4; do
    set -m; data cut > out 2> err & pid=$!; set +m
    sleep 0.$((RANDOM % 9 + 1)); kill -9 -- -$pid 2> /dev/null; wait $pid 2> /dev/null
done
data cut > out 2> err || fail "after kills (SEED=$SEED): $?"
made cut | diff sums - > diff || fail "after kills (SEED=$SEED) files differ: $(cat diff)"
[ "$(sql cut "SELECT count(*) FROM runs WHERE state<>'done'")" = 0 ] || fail "after kills (SEED=$SEED): $(sql cut 'SELECT tool,state FROM runs')"
echo ok
