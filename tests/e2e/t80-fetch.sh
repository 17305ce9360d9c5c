#!/bin/bash
# abc-fetch against a web server on this machine that drops, lies and misbehaves.
set -u
BIN=${BIN:-build/bin}
BIN=$(cd "$BIN" && pwd) here=$(cd "$(dirname "$0")" && pwd)
[ -x "$BIN/abc-fetch" ] || { echo "SKIP: abc-fetch is not built"; exit 77; }
dir=$(mktemp -d); server=
trap '[ -z "$server" ] || kill $server; rm -rf "$dir"' EXIT
fail() { echo "FAIL: $*"; [ ! -s err ] || tail -5 err; exit 1; }
cd "$dir" || exit 1
export no_proxy='*' NO_PROXY='*'
unset http_proxy https_proxy all_proxy
mkdir root in bad
echo '<!DOCTYPE html><html><body>Please log in</body></html>' > bad/page.html
head -c 5000 /dev/urandom > bad/noise; : > bad/empty; python3 -c 'import zipfile; zipfile.ZipFile("bad/zip", "w").writestr("a.step", "x")'

python3 - <<'PY'
import os, random
random.seed(1)
def step(n, k):
    s = "ISO-10303-21;\nHEADER;\nFILE_DESCRIPTION(('a;#1=x'),'2;1');\nENDSEC;\nDATA;\n/* ; #9=no */\n"
    for i in range(1, n + 1):
        s += "#%d=CARTESIAN_POINT('it''s;#7=',(%.6f,%.6f,%.6f));\n" % (i, random.random(), random.random(), k)
    return s + "ENDSEC;\nEND-ISO-10303-21;\n"
for chunk in range(3):
    for k, n in ((1, 100), (2, 700), (3, 1500), (4, 0)):
        d = "in/%d/%04d%04d" % (chunk, chunk, k)
        os.makedirs(d)
        with open("%s/%04d%04d_aaaa_step_000.step" % (d, chunk, k), "w") as f:
            if n:
                f.write(step(n, chunk))
PY
for c in 0 1 2; do python3 "$here/make_7z.py" root/abc_000${c}_step_v00.7z in/$c || fail "cannot make a 7z"; done
size=$(stat -c %s root/abc_0000_step_v00.7z) sum=$(sha256sum < root/abc_0000_step_v00.7z | cut -d' ' -f1)
[ "$size" -gt 10000 ] || fail "the archive is too small to test with"
wrong=$(printf '0%.0s' $(seq 64))

python3 "$here/loopback_server.py" root port log & server=$!
for i in $(seq 100); do [ -e port ] && break; sleep 0.05; done
[ -e port ] || fail "no server"
url=http://127.0.0.1:$(cat port)

n_case=0
# get EXIT TEXT LIST_LINE... [-- options]: runs abc-fetch on a list of its own, into a fresh folder
get() {
    local want=$1 text=$2 rc; shift 2
    rm -rf out list r.db*; : > log
    while [ $# -gt 0 ] && [ "$1" != -- ]; do echo "$1" >> list; shift; done
    [ $# -eq 0 ] || shift
    "$BIN/abc-fetch" --chunks all --list list --out out --db r.db --backoff 0.05 "$@" > res 2> err
    rc=$?; n_case=$((n_case + 1))
    [ $rc -eq "$want" ] || fail "case $n_case ($text): exit $rc, not $want"
    [ -z "$text" ] || grep -q -- "$text" err res || fail "case $n_case: no word of '$text'"
}
same() { # the three models of a chunk, whole
    local c=$1 k
    for k in 1 2 3; do cmp -s in/$c/000${c}000$k/*.step out/000${c}000$k/*.step || fail "case $n_case: model $k of chunk $c differs"; done
    [ ! -e out/000${c}0004 ] || [ -z "$(find out/000${c}0004 -type f)" ] || fail "an empty model was written"
    [ ! -e out/.chunks ] || [ -z "$(ls -A out/.chunks)" ] || fail "case $n_case: left over: $(ls -A out/.chunks)"
}
requests() { grep -c . log; }
sql() { python3 -c 'import sqlite3,sys; print(*[x for r in sqlite3.connect(sys.argv[1]).execute(sys.argv[2]) for x in r])' r.db "$1"; }
n0=abc_0000_step_v00.7z

# plain, with size and checksum; in parallel
get 0 '9 models of 3 chunks' "$url/$n0 $n0 size=$size sha256=$sum" "$url/abc_0001_step_v00.7z abc_0001_step_v00.7z" \
    "$url/abc_0002_step_v00.7z abc_0002_step_v00.7z unverified" -- -j 3
same 0; same 1; same 2
[ "$(sql "select count(*) from items where state='done'")" = 12 ] || fail "items: $(sql 'select item,state from items')"
[ "$(sql "select count(*) from items where state='skipped' and reason like 'empty%'")" = 3 ] || fail "empty models not recorded"
: > log
"$BIN/abc-fetch" --chunks all --list list --out out --db r.db -j 3 > res 2> err || fail "second start"
[ "$(requests)" = 0 ] || fail "a finished fetch asks again"

# the line breaks again and again; broken once and for all, it goes on from there at the next start
get 0 '' "$url/!drop=9000/$n0 $n0 sha256=$sum"; same 0
[ "$(requests)" -ge 2 ] && grep -q '"range": "bytes=9000-"' log || fail "no resume by range"
get 0 '' "$url/!chunked/$n0 $n0"; same 0
get 0 '' "$url/!drop=9000/!noetag/$n0 $n0 sha256=$sum"; same 0
get 0 '' "$url/!drop1=9000/!norange/$n0 $n0"; same 0
get 0 '' "$url/!drop1=9000/!wrongrange/$n0 $n0"; same 0
python3 - root/$n0 <<'PY'
import os, sys
data = open(sys.argv[1], "rb").read()
os.makedirs("part", exist_ok=True)
open("part/good", "wb").write(data[:7000])
open("part/rotten", "wb").write(b"7z\xbc\xaf\x27\x1c" + bytes(6994))
open("part/whole", "wb").write(data)
open("part/long", "wb").write(data + b"more")
PY
for part in good rotten whole long; do # what an earlier start left
    rm -rf out list r.db*; : > log; mkdir -p out/.chunks
    cp part/$part out/.chunks/$n0.incomplete
    echo "$url/$n0 $n0 size=$size sha256=$sum" > list
    "$BIN/abc-fetch" --chunks 0 --list list --out out --db r.db --backoff 0.05 > res 2> err || fail "resume from a $part part"
    n_case="part $part"; same 0
done; n_case=7
# another content under the same name meanwhile: nothing of the two is mixed
rm -rf out list r.db*; mkdir -p out/.chunks; cp part/rotten out/.chunks/$n0.incomplete
printf '%s\n"old-tag"\n\n' "$url/$n0" > out/.chunks/$n0.incomplete.tag
echo "$url/$n0 $n0" > list
"$BIN/abc-fetch" --chunks 0 --list list --out out --db r.db > res 2> err || fail "a part of older content"
same 0

# statuses
get 0 '' "$url/!fail=503:2/$n0 $n0"; same 0
get 0 '' "$url/!fail=429:1/!retryafter=1/$n0 $n0"; same 0
get 1 'HTTP status 503' "$url/!fail=503/$n0 $n0"
[ "$(requests)" = 6 ] || fail "503: $(requests) tries"
get 1 'HTTP status 404' "$url/no-such-file $n0"
[ "$(requests)" = 1 ] || fail "404 is tried again"
get 0 '' "$url/!redirect/$n0 $n0"; same 0
get 0 '' "$url/!elsewhere/$n0 $n0"; same 0
get 1 'redirects' "$url/!loop/$n0 $n0"
get 1 '' "http://127.0.0.1:1/$n0 $n0"

# lengths and checksums that are wrong: refused, and the next mirror is asked
get 1 'and should be' "$url/$n0 $n0 size=$((size + 1))"
get 1 'SHA-256 is' "$url/$n0 $n0 sha256=$wrong"
get 1 'MD5 is' "$url/$n0 $n0 md5=${wrong:0:32}"
[ -z "$(find out -type f)" ] || fail "a refused download left: $(find out -type f)"
get 0 'trying the next' "$url/!flip/$n0 $n0 sha256=$sum" "$url/$n0 $n0"; same 0
get 0 'trying the next' "$url/!short=100/$n0 $n0 size=$size" "$url/$n0 $n0"; same 0
get 0 '' "$url/!fail=404/$n0 $n0" -- --mirror "$url/nowhere" --mirror "$url"; same 0
get 0 '' "$url/!fail=404/$n0 $n0" -- --mirror "$dir/root"; same 0
[ -e root/$n0 ] || fail "a mirror's file was removed"
get 1 'a web page came' "$url/!html/$n0 $n0"
get 1 '' "$url/!short=300/$n0 $n0"
[ -z "$(find out -name '*.7z*')" ] || fail "a damaged archive stays: $(find out -name '*.7z*')"

# by entities
get 0 '1 models' "$url/$n0 $n0" -- --max-entities 500
[ "$(find out -name '*.step' | wc -l)" = 1 ] && [ -e out/00000001 ] || fail "--max-entities"
get 0 '1 models' "$url/$n0 $n0" -- --min-entities 500 --max-entities 1000
[ -e out/00000002 ] && [ "$(find out -name '*.step' | wc -l)" = 1 ] || fail "--min-entities"

# killed in the middle, then started again
get 1 '' "$url/!drop=3000/!fail=500/$n0 $n0" # (a fresh folder)
rm -rf out r.db*; echo "$url/!stall/$n0 $n0 sha256=$sum" > list; : > log
"$BIN/abc-fetch" --chunks 0 --list list --out out --db r.db > res 2> err & pid=$!
for i in $(seq 100); do [ "$(stat -c %s out/.chunks/$n0.incomplete 2> /dev/null || echo 0)" -gt 100 ] && break; sleep 0.05; done
sleep 0.3; kill -9 $pid; wait $pid 2> /dev/null
"$BIN/abc-fetch" --chunks 0 --list list --out out --db r.db > res 2> err || fail "after SIGKILL"
same 0
grep -q '"range": "bytes=[1-9]' log || fail "after SIGKILL it starts over: $(cat log)"

# archives that nobody should unpack
hostile() { python3 "$here/make_7z.py" root/abc_0009_step_v00.7z in/0 "$@" || fail "make_7z $*"; }
h="$url/abc_0009_step_v00.7z abc_0009_step_v00.7z"
hostile '../escape.step=x' '/tmp/absolute-of-abc-fetch.step=x' 'a/../../b.step=x' 'link.step@/etc/passwd' '..\win.step=x' 'notes.txt=x' '.hidden.step=x'
get 1 'unsafe path' "$h"
[ "$(find out "$dir" -maxdepth 1 -name 'escape.step' | wc -l)" = 0 ] && [ ! -e /tmp/absolute-of-abc-fetch.step ] || fail "escaped"
[ "$(find out -type l | wc -l)" = 0 ] || fail "a link was made"
[ "$(find out -type f -name '*.step' | wc -l)" = 3 ] || fail "the good models of a bad archive: $(find out -type f)"
hostile 'bomb.step*200000000'
get 1 'times its size' "$h"
[ "$(du -sm out | cut -f1)" -lt 100 ] || fail "the bomb went off"
hostile 'large.step*3000000'
get 1 'too large' "$h" -- --max-file 1000000
[ -z "$(find out -name 'large*')" ] || fail "too large, but written"
for cut in 40 3000 9000; do
    head -c $cut part/whole > root/abc_0009_step_v00.7z
    get 1 'abc_0009' "$h"
done
python3 - <<'PY'
data = bytearray(open("part/whole", "rb").read())
for i in range(4000, 4016): data[i] ^= 0x55
open("root/abc_0009_step_v00.7z", "wb").write(data)
PY
get 1 'damaged' "$h"
[ -z "$(find out -name '.*.part')" ] || fail "half-written: $(find out -name '.*.part')"

# no archives at all: by URL and in a folder of archives, each with its reason in the database
while IFS=: read -r name by_url in_folder; do
    rm -rf mirror; mkdir mirror; cp bad/$name mirror/abc_0009_step_v00.7z; cp bad/$name root/abc_0009_step_v00.7z
    for how in url folder; do
        more=() l=$h text=$by_url
        [ $how = url ] || { more=(--mirror "$PWD/mirror") l="http://127.0.0.1:1/x abc_0009_step_v00.7z" text=$in_folder; }
        get 1 "$text" "$l" -- "${more[@]}"
        sql "select state||': '||reason from items" | grep -q "^failed: .*$text" || fail "$name by $how: no reason in the database: $(sql 'select * from items')"
        [ -z "$(find out -type f)" ] || fail "$name by $how: left $(find out -type f)"
    done
    cmp -s bad/$name mirror/abc_0009_step_v00.7z || fail "a mirror's file was touched"
done <<'L'
page.html:a web page came instead:no 7-Zip archive. it is a web page
noise:something else came instead:no 7-Zip archive. it is something else
empty:is only 0 bytes long:no 7-Zip archive. it is empty
zip:something else came instead:no 7-Zip archive. it is something else
L

# a member of 278 MB, the largest of the real chunks, beside an empty one: it goes through, not into, memory
python3 - <<'PY'
import os
os.makedirs("huge/0")
line = b"#%d=CARTESIAN_POINT('',(1.234567,2.5,3.25));\n"
with open("huge/0/0.step", "wb") as f:
    f.write(b"ISO-10303-21;\nHEADER;\nENDSEC;\nDATA;\n")
    for i in range(1, 5600001, 20000):
        f.write(b"".join(line % k for k in range(i, i + 20000)))
    f.write(b"ENDSEC;\nEND-ISO-10303-21;\n")
PY
OPTIONS=compression=deflate,compression-level=1 python3 "$here/make_7z.py" root/abc_0008_step_v00.7z huge 1/none.step= || fail "make_7z of 278 MB"
rm -rf out r.db*; echo "$url/abc_0008_step_v00.7z abc_0008_step_v00.7z" > list
python3 - "$BIN/abc-fetch" <<'PY' || fail "a member of 278 MB"
import resource, subprocess, sys
subprocess.run([sys.argv[1], *"--chunks 8 --list list --out out --db r.db -q".split()], check=True, stdout=open("res", "w"))
kb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
sys.exit(kb > 100000 and "%d kB of memory" % kb)
PY
cmp huge/0/0.step out/0/0.step && [ ! -e out/1/none.step ] || fail "a member of 278 MB differs"
[ "$(sql "select count(*) from items where result like '%\"entities\":5600000%'")" = 1 ] || fail "entities of 278 MB: $(sql 'select result from items')"
rm -rf huge out

# usage and lists
get 2 'no chunk 5' "$url/$n0 $n0" -- --chunks 5
get 2 "'x'" "$url/$n0 $n0" -- --chunks x
get 2 'below' "$url/$n0 $n0" -- --min-entities 5 --max-entities 4
get 3 'list:2: .*no name' "$url/$n0 $n0" "$url/$n0"
get 3 'list:1: ' "ftp://x/$n0 $n0"
get 3 'list:1: .*no name of a chunk' "$url/x ../../$n0"
get 3 'list:1: .*64 hex' "$url/$n0 $n0 sha256=abc"
get 3 'list:1: .*not known' "$url/$n0 $n0 sise=3"
get 0 '' "$(printf '\xef\xbb\xbf#')" $'\r' "$(printf '  %s\t%s  \r' "$url/$n0" "$n0")"; same 0
echo "$url/$n0 $n0" > root/list.txt
rm -rf out r.db*; "$BIN/abc-fetch" --chunks 0 --list "$url/list.txt" --out out --db r.db 2> err > res || fail "a list by URL"
same 0
get 3 'HTTP status 404' "$url/$n0 $n0" -- --list "$url/none.txt"
get 3 '' "$url/$n0 $n0" -- --list none.txt
touch file; get 3 'file' "$url/$n0 $n0" -- --out file/x
echo "ok: $n_case cases"
