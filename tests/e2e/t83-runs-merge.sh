#!/bin/bash
# runs-merge: real shards as separate processes, each with a database of its own, joined into one that
# says the same as a single process would have written; merging again changes nothing.
set -u
BIN=${BIN:-build/bin}
BIN=$(cd "$BIN" && pwd)
for tool in runs-merge step-round; do [ -x "$BIN/$tool" ] || { echo "SKIP: $tool is not built"; exit 77; }; done
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
fail() { echo "FAIL: $*"; [ ! -s err ] || tail -5 err; exit 1; }
cd "$dir" || exit 1
mkdir in
for i in $(seq 20); do
    printf "ISO-10303-21;\nHEADER;\nENDSEC;\nDATA;\n#1=CARTESIAN_POINT('',(0.%d123456789,1.,2.));\nENDSEC;\nEND-ISO-10303-21;\n" $i > in/p$i.step
done
echo 'no STEP at all' > in/p21.step
query() { python3 -c 'import sqlite3,sys; print("\n".join("|".join(map(str, r)) for r in sqlite3.connect(sys.argv[1]).execute(sys.argv[2])))' "$@"; }

for i in 1 2 3; do "$BIN/step-round" in --out out --db s$i.db --shard $i/3 -q > res$i 2> err$i & done; wait
"$BIN/step-round" in --out whole --db whole.db -q > res 2> err
diff -r out whole || fail "shards and a single process differ"
"$BIN/runs-merge" s1.db s2.db s3.db --into all.db --db merges.db > res 2> err || fail "exit $?"
grep -q '^3 runs with 21 items from 3 databases' res || fail "summary: $(cat res)"
[ "$(query all.db 'select item,state from items order by item')" = "$(query whole.db 'select item,state from items order by item')" ] ||
    fail "items differ: $(query all.db 'select item,state from items order by item')"
before=$(query all.db 'select * from runs order by id'; query all.db 'select * from items order by run_id,item')
"$BIN/runs-merge" s1.db s2.db s3.db --into all.db --db merges.db > res 2> err || fail "again: exit $?"
[ "$before" = "$(query all.db 'select * from runs order by id'; query all.db 'select * from items order by run_id,item')" ] ||
    fail "merging again changes something"

# a shard that went on since
cp in/p1.step in/p22.step; for i in 1 2 3; do "$BIN/step-round" in --out out --db s$i.db --shard $i/3 -q > res 2> err; done
"$BIN/runs-merge" s1.db s2.db s3.db --into all.db --db merges.db --json > res 2> err || fail "went on: exit $?"
[ "$(query all.db 'select count(*) from runs')" = 3 ] && [ "$(query all.db 'select count(distinct item) from items')" = 22 ] ||
    fail "went on: $(query all.db 'select id,tool from runs')"

# sources that are none: the others are merged, whole
echo junk > junk.db
cp s1.db newer.db; query newer.db 'pragma user_version=99' > /dev/null
rm -f all.db*
"$BIN/runs-merge" junk.db newer.db none.db s2.db --into all.db --db merges.db > res 2> err; [ $? -eq 1 ] || fail "bad sources: exit $?"
for word in 'junk.db: .*not a' 'newer.db: .*newer' 'none.db: '; do grep -q "$word" err || fail "no word of $word"; done
[ "$(query all.db 'select count(*) from runs')" = 1 ] || fail "the good source beside bad ones"
[ ! -e none.db ] || fail "a missing source was made"
"$BIN/runs-merge" s1.db --into ./s1.db --db merges.db > res 2> err; [ $? -eq 2 ] || fail "source and destination the same"
"$BIN/runs-merge" s1.db --into junk.db --db merges.db > res 2> err; [ $? -eq 3 ] || fail "a bad destination"
echo ok
