#!/bin/bash
# caption against a chat API on this machine: grouping of views, answers of several kinds, retries,
# resume, rate, keys, shards, CSV quoting.
set -u
BIN=${BIN:-build/bin}
BIN=$(cd "$BIN" && pwd) here=$(cd "$(dirname "$0")" && pwd)
[ -x "$BIN/caption" ] || { echo "SKIP: caption is not built"; exit 77; }
dir=$(mktemp -d); server=
trap '[ -z "$server" ] || kill $server; rm -rf "$dir"' EXIT
fail() { echo "FAIL: $*"; [ ! -s err ] || tail -5 err; exit 1; }
cd "$dir" || exit 1
export no_proxy='*' NO_PROXY='*'
unset http_proxy https_proxy all_proxy OPENAI_API_KEY
mkdir root
python3 - <<'PY'
import os, struct, zlib
def png(path, shade):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    def chunk(t, d): return struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d))
    with open(path, "wb") as f:
        f.write(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)) +
                chunk(b"IDAT", zlib.compress(bytes([0, shade]))) + chunk(b"IEND", b""))
views = ["oblique", "front", "back", "left", "right", "top", "bottom", "behind", "below"]
for k in range(4):                                      # MODEL_view.png beside each other, with a sheet
    for i, v in enumerate(views + ["sheet"]):
        png("in/0000100%d_ab12_step_000_%s.png" % (k, v), 10 * k + i)
for i, v in enumerate(views):                           # a folder of views
    png("in/deep/wheel-2/view_%d.png" % i, 100 + i)
png("in/lone.png", 200)
png("sheets/box_sheet.png", 7)
PY
python3 "$here/loopback_server.py" root port log & server=$!
for i in $(seq 100); do [ -e port ] && break; sleep 0.05; done
[ -e port ] || fail "no server"
url=http://127.0.0.1:$(cat port)/v1

n_case=0
ask() { # EXIT TEXT MODEL options...
    local want=$1 text=$2 model=$3 rc; shift 3
    : > log
    "$BIN/caption" --images in --out out.csv --endpoint "$url" --db r.db --backoff 0.02 --model "$model" "$@" > res 2> err
    rc=$?; n_case=$((n_case + 1))
    [ $rc -eq "$want" ] || fail "case $n_case ($model): exit $rc, not $want"
    [ -z "$text" ] || grep -q -- "$text" err res || fail "case $n_case ($model): no word of '$text'"
}
posts() { grep -c '"POST"' log; }

ask 0 '6 captions of 6 parts' good -j 4
python3 - <<'PY' || fail "the CSV: $(cat out.csv)"
import csv
rows = list(csv.reader(open("out.csv", newline="", encoding="utf-8")))
assert rows[0] == ["model_id", "isDescribable", "description"]
assert [r[0] for r in rows[1:]] == ["00001000", "00001001", "00001002", "00001003", "wheel-2", "lone"], rows
assert all(r[1] == "True" for r in rows[1:])
assert len({r[2] for r in rows[1:]}) == 6 and all("," in r[2] for r in rows[1:])
assert all("in 9 views" in r[2] for r in rows[1:6]) and "in 1 views" in rows[6][2]
PY
[ "$(posts)" = 6 ] && [ "$(grep -c '"png": true' log)" = 6 ] || fail "requests: $(cat log)"
cp out.csv first.csv
ask 0 '6 captions' good; [ "$(posts)" = 0 ] && cmp -s out.csv first.csv || fail "a second start asks again"
touch in/lone.png; ask 0 '' good; [ "$(posts)" = 1 ] && cmp -s out.csv first.csv || fail "a picture that changed"
ask 0 '6 captions' flaky -j 2; [ "$(posts)" -gt 6 ] || fail "429 was not answered by another try"
ask 0 '' prose; grep -q '^lone,True,"A plate, with ""two"" holes"$' out.csv || fail "quoting: $(cat out.csv)"
ask 0 '' refuses; grep -q '^lone,False,$' out.csv || fail "not describable: $(cat out.csv)"
rm out.csv; ask 1 'not valid JSON' garbage; [ "$(posts)" = 12 ] || fail "garbage: $(posts) requests"
[ "$(cat out.csv)" = model_id,isDescribable,description ] || fail "garbage in the CSV"
ask 3 'no API key in OPENAI_API_KEY' locked -j 1; [ "$(posts)" -lt 6 ] || fail "goes on after 401"
OPENAI_API_KEY=secret-key ask 0 '' locked
KEY=secret-key ask 0 '6 captions' locked --key-env KEY --max-views 2 -o temperature=0.5
grep -q 'in 2 views' out.csv && [ "$(grep -c '"images": 2' log)" = 5 ] || fail "--max-views"
python3 -c 'import sys; sys.exit(b"secret-key" in b"".join(open(f, "rb").read() for f in sys.argv[1:]))' r.db* err res || fail "the key was recorded"
start=$(date +%s%N); ask 0 '' fast --rate 600 -j 4; [ $((($(date +%s%N) - start) / 1000000)) -ge 480 ] || fail "--rate"
ask 0 '2 captions of 2 parts' shards --shard 2/3; ask 0 '' shards --shard 1/3
echo 'Say {} in "few" words' > p.txt; ask 0 '' worded --prompt p.txt
sheets() { "$BIN/caption" --images sheets --out s.csv --endpoint "$url/chat/completions" --model m --db none > res 2> err; }
sheets && grep -q '^box,True' s.csv || fail "a contact sheet alone: $(cat s.csv)"

# stopped in the middle: what was answered is not asked again
: > log; "$BIN/caption" --images in --out k.csv --endpoint "$url" --db k.db --model slow -j 1 > res 2> err & pid=$!
for i in $(seq 100); do [ "$(posts)" -ge 4 ] && break; sleep 0.05; done
kill -9 $pid; wait $pid 2> /dev/null; [ ! -e k.csv ] || fail "half a CSV"
: > log; "$BIN/caption" --images in --out k.csv --endpoint "$url" --db k.db --model slow -j 4 > res 2> err || fail "after SIGKILL"
[ "$(posts)" -lt 6 ] && [ "$(wc -l < k.csv)" = 7 ] || fail "after SIGKILL: $(posts) requests"

echo text > in/fake.png; ask 1 'neither PNG' good; [ "$(grep -c . out.csv)" = 7 ] || fail "the rest beside a bad picture"
rm in/fake.png
ask 3 'none: does not exist' good --images none
ask 3 'no pictures' good --images root
ask 3 'is no folder' good --images p.txt
ask 2 'no http' good --endpoint ftp://x
echo "ok: $n_case cases"
