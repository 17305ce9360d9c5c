#!/bin/bash
# step-round, step-restructure, step-restore, complete-ratio and entity-stats as whole programs:
# own small files always, the real files and the original's outputs where SHARED is.
set -u
BIN=${BIN:-build/bin}
SHARED=${SHARED:-../shared}
[ -d "$SHARED" ] && SHARED=$(cd "$SHARED" && pwd)
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
fail() { echo "FAIL: $*"; exit 1; }
cd "$dir" || exit 1

header="ISO-10303-21;
HEADER;
FILE_DESCRIPTION(('1.23456789'),'2;1');
FILE_NAME('n','2020-01-01T00:00:00',(''),(''),'','','');
FILE_SCHEMA(('AUTOMOTIVE_DESIGN'));
ENDSEC;
DATA;"
mkdir -p in/sub
printf '%s\n' "$header" "#20 = SHAPE_DEFINITION_REPRESENTATION( #30," "  #40 );" "#30=A('#20 1.5000000',1.23456789);" \
    "#40=( X(#30)" " Y() );" "ENDSEC;" "END-ISO-10303-21;" > in/a.step
sed 's/#30/#77/g' in/a.step > in/sub/b.STP

# A tree is mirrored; strings and header stay.
"$BIN"/step-round in --out r -q || fail "step-round: $?"
grep -q "#30=A('#20 1.5000000',1.234568);" r/a.step || fail "rounded: $(cat r/a.step)"
grep -q "FILE_DESCRIPTION(('1.23456789')" r/a.step || fail "the header was rounded"
[ -f r/sub/b.STP ] || fail "the tree is not mirrored"
"$BIN"/step-restructure r --out d -q || fail "step-restructure: $?"
printf '%s\n' "/* SHAPE_DEFINITION_REPRESENTATION Section - 1 root */" "#1=A('#20 1.5000000',1.234568);" "#2=(X(#1)Y());" \
    "#3=SHAPE_DEFINITION_REPRESENTATION(#1,#2);" > want
grep -A3 '^/\*' d/a.step | diff - want || fail "restructured"
cmp -s <(sed 1,7d d/a.step) <(sed 1,7d d/sub/b.STP) || fail "numbers of the input show"
"$BIN"/step-restore d --out s -q || fail "step-restore: $?"
grep -v '^/\*' d/a.step | cmp - s/a.step || fail "restored"

# The compact form: no names, distances back; restored to the same file, with and without annotations, in any order.
"$BIN"/step-restructure r --out dc --compact --no-annotations -q || fail "step-restructure --compact: $?"
printf '%s\n' "DATA;" "A('#20 1.5000000',1.234568);" "(X(#1)Y());" "SHAPE_DEFINITION_REPRESENTATION(#2,#1);" "ENDSEC;" "END-ISO-10303-21;" > want
sed 1,6d dc/a.step | diff - want || fail "compact"
for o in children-first parent-first original; do
    "$BIN"/step-restructure r --out dn-$o --order $o -q && "$BIN"/step-restructure r --out dc-$o --order $o --compact -q || fail "step-restructure --order $o"
    "$BIN"/step-restore dn-$o --out sn-$o -q && "$BIN"/step-restore dc-$o --out sc-$o -q || fail "step-restore of --order $o"
    diff -r sn-$o sc-$o || fail "--compact --order $o is not undone"
done
grep -v '^#' sc-original/a.step | cmp - <(grep -v '^#' s/a.step) || fail "--order original"

# Done work is not repeated, and --force repeats it.
"$BIN"/step-round in --out r --json -q | grep -c '"state":"done"' | grep -qx 2 || fail "a second run reports other results"
touch -d '2001-01-01' r/a.step
"$BIN"/step-round in --out r -q; [ "$(stat -c %Y r/a.step)" = "$(date -d 2001-01-01 +%s)" ] || fail "done work was repeated"
"$BIN"/step-round in --out r -q --force; [ "$(stat -c %Y r/a.step)" != "$(date -d 2001-01-01 +%s)" ] || fail "--force"

# The input is never the output, by whatever name; outputs inside the input folder are no input the next time.
cp -r in own; ln -s own alias
for o in own ./own/ alias "$PWD/own"; do
    "$BIN"/step-round own --out "$o" -q 2> err; [ $? -eq 2 ] && grep -q 'is the input, which would be overwritten' err || fail "--out $o: $(cat err)"
done
for o in own own/a.step alias/a.step; do
    "$BIN"/step-round own/a.step --out "$o" -q 2> err; [ $? -eq 2 ] && grep -q 'is the input' err || fail "own/a.step --out $o: $(cat err)"
done
diff -r in own || fail "inputs were changed"
for i in 1 2; do "$BIN"/step-round own --out own/rounded -q --force || fail "--out inside: $?"; done
diff -r r own/rounded || fail "--out inside the input: $(find own)"

# A full disk (a limit on the size of files is met as one) ends the run with one error, not one a file; without it the run goes on.
mkdir large
for i in 1 2 3 4 5 6; do cp in/a.step large/$i.step; done
{ head -n 7 in/a.step; for i in $(seq 500); do echo "#$i=A('a longer line',1.23456789);"; done; echo "ENDSEC;"; echo "END-ISO-10303-21;"; } > large/4.step
for i in 5 6; do cp large/4.step large/$i.step; done
for limit in 8 unlimited; do
    (ulimit -f $limit; exec "$BIN"/step-round large --out full --db none -q -j1) 2> err; rc=$?
    [ "$limit" = unlimited ] && break
    [ $rc -eq 3 ] && [ "$(cat err)" = "step-round: error: full/4.step: File too large" ] || fail "a full disk: exit $rc: $(cat err)"
    [ "$(cd full && find . -type f | sort | tr '\n' ' ')" = "./1.step ./2.step ./3.step " ] || fail "a full disk leaves $(find full)"
done
[ $rc -eq 0 ] && [ "$(ls full | wc -l)" -eq 6 ] || fail "after a full disk: exit $rc, $(ls full)"
"$BIN"/step-round large --out in/a.step/below --db none -q 2> err; [ $? -eq 3 ] && [ "$(wc -l < err)" -eq 1 ] || fail "--out below a file: $(cat err)"

# Bad input: one line with the place, exit code, nothing half-written.
mkdir bad; cp in/a.step bad/good.step
: > bad/empty.step; head -c 100 in/a.step > bad/cut.step; head -c 5000 /dev/urandom > bad/noise.step
sed 's/( #30,/( #ID_1,/' in/a.step > bad/key.step; printf '%s\n' "$header" "#1=A('x" > bad/quote.step
for tool in step-round step-restructure; do
    "$BIN"/$tool bad --out bad-$tool -q 2> err; [ $? -eq 1 ] || fail "$tool of bad files does not exit 1"
    [ "$(ls bad-$tool)" = good.step ] || fail "$tool wrote: $(ls -A bad-$tool)"
    grep -q "warning: bad/cut.step:4:" err || fail "$tool: no place: $(cat err)"
    [ "$(wc -l < err)" -eq 5 ] || fail "$tool: not a line a file: $(cat err)"
done
"$BIN"/step-restore bad --out bad-restore -q 2> err; [ $? -eq 1 ] || fail "step-restore of bad files does not exit 1"
[ "$(ls bad-restore | tr '\n' ' ')" = "good.step key.step " ] || fail "step-restore wrote: $(ls bad-restore)"
"$BIN"/step-round none.step --out x 2> err; [ $? -eq 3 ] || fail "a missing file does not exit 3"
"$BIN"/step-round bad/cut.step --out /dev/null/x.step 2> err; rc=$?; [ $rc -eq 1 ] || [ $rc -eq 3 ] || fail "unwritable: $rc"
[ "$(wc -l < err)" -le 2 ] || fail "more than a line: $(cat err)"

# Scores.
"$BIN"/complete-ratio bad --json -q > out || fail "complete-ratio: $?"
tail -n 1 out | grep -qx '{"total":6,"complete":1,"ratio":0.16666666666666666}' || fail "complete-ratio: $(tail -n 1 out)"
mkdir -p o/1/gen o/2/gen o/3/gen; cp in/a.step o/1/gen/x.step; { cat in/a.step; echo; } > o/2/gen/x.step; : > o/3/gen/x.step
"$BIN"/complete-ratio o --mode reference --csv cr.csv --label run -q > out; "$BIN"/complete-ratio o --mode reference --csv cr.csv --label run -q > out
printf 'ckpt_path,CR\nrun,0.5\nrun,0.5\n' | cmp - cr.csv || fail "CSV of complete-ratio: $(cat cr.csv)"
"$BIN"/entity-stats in --json -q > out || fail "entity-stats: $?"
head -n 1 out | grep -q '"entities":3,"max_id":40,"by_type":{"A":1,"SHAPE_DEFINITION_REPRESENTATION":1,"X+Y":1}}' || fail "entity-stats: $(cat out)"
"$BIN"/entity-stats o --subfolder gen --mode reference --csv es.csv -q > out || fail "entity-stats --subfolder: $?"
printf 'parent_dir,subfolder,filename,filepath,entity_count,category\r\n1,gen,x.step,o/1/gen/x.step,40,<100\r\n' | cmp - <(head -n 2 es.csv) || fail "CSV of entity-stats: $(cat es.csv)"

golden=$SHARED/golden/prep
if [ ! -f "$golden/files.tar.xz" ]; then
    echo "ok"; echo "SKIP: $golden absent: real files not checked"; exit 0
fi

# The original's bytes on every real file.
mkdir g && tar -xf "$golden/files.tar.xz" -C g || fail "tar"
while read -r tool from want; do
    "$BIN"/step-$tool g/$from --out ref-$tool --mode reference -q 2> err || fail "step-$tool --mode reference: $? $(tail -n 1 err)"
    diff -rq ref-$tool g/$want > out || fail "step-$tool --mode reference: $(wc -l < out) files differ: $(head -n 1 out)"
done <<< "round src rounded
restructure rounded restructured
restore restructured restored"
cases=0
for c in "$golden"/cases/*/*; do
    kind=$(basename "$(dirname "$c")")
    input=$(find "$c" -maxdepth 2 -type f ! -name rc ! -name stdout ! -path '*/out/*' ! -path '*/restored/*' | head -n 1)
    want=$(find "$c/out" -type f 2> /dev/null | head -n 1)
    cp "$input" case.step; rm -f case-out.step
    "$BIN"/step-$kind case.step --out case-out.step --mode reference -q --force 2> err; rc=$?
    [ $rc -eq "$(cat "$c/rc")" ] || fail "$kind $(basename "$c"): exit $rc"
    [ $rc -ne 0 ] || cmp case-out.step "$want" || fail "$kind $(basename "$c")"
    cases=$((cases + 1))
done

# Strict: every instance of every real file is kept, nothing points forward but cycles, all is idempotent.
"$BIN"/step-round g/src --out sr -q 2> err || fail "step-round: $(tail -n 1 err)"
"$BIN"/step-round sr --out sr2 -q 2> err; diff -rq sr sr2 || fail "rounding again changes"
"$BIN"/step-restructure sr --out sd -q --json > out 2> err || fail "step-restructure: $(tail -n 1 err)"
grep -v '"forward":0,' out | grep -v '"forward":\([0-9]*\),"cyclic":\1,' && fail "forward references outside cycles"
"$BIN"/step-restore sd --out ss -q || fail "step-restore"
"$BIN"/step-restore ss --out ss2 -q || fail "step-restore"; diff -rq ss ss2 || fail "restoring again changes"
for d in g/src ss; do "$BIN"/entity-stats $d --json -q | sed "s|\"$d/||; s/\"max_id\":[0-9]*,//" | grep by_type > stats-$(basename $d); done
[ "$(wc -l < stats-ss)" -ge 150 ] || fail "few files"
cmp stats-src stats-ss || fail "counts by type changed"
for o in "children-first --geometry-first" "parent-first" "original --relative" "children-first --geometry-first --relative"; do # compact and back: the same files
    # shellcheck disable=SC2086
    "$BIN"/step-restructure sr --out sc --order $o --compact -q --force 2> err || fail "step-restructure --compact: $(tail -n 1 err)"
    # shellcheck disable=SC2086
    "$BIN"/step-restructure sr --out sn --order ${o% --relative} --no-annotations -q --force 2> err || fail "step-restructure --order $o: $(tail -n 1 err)"
    "$BIN"/step-restore sc --out scr -q --force || fail "step-restore of compact files"
    "$BIN"/step-restore sn --out snr -q --force || fail "step-restore"; diff -rq scr snr || fail "--compact loses ($o)"
    [ "$(ls scr | wc -l)" -ge 150 ] || fail "compact: few files"
done
"$BIN"/step-restore g/restructured --out so -q 2> err || fail "step-restore of the original's output: $(tail -n 1 err)"
"$BIN"/complete-ratio g/src sr sd ss so --json -q | tail -n 1 | grep -q '"ratio":1.0' || fail "an output is no exchange structure"
for tool in round restructure restore; do
    for mode in strict reference; do
        timeout 60 "$BIN"/step-$tool "$SHARED"/golden/bad --out x-$tool-$mode --mode $mode -q 2> err; rc=$?
        [ $rc -le 1 ] || fail "step-$tool --mode $mode of golden/bad: exit $rc"
    done
done
echo "ok: $cases cases"
