#!/bin/bash
# rag-pairs: quoted captions, equal ones, duplicate ids, ids without a file, files without a caption; embeddings kept, and made
# anew for other captions; bad captions and encoders.
set -u
BIN=${BIN:-$PWD/build/bin}
BIN=$(cd "$BIN" && pwd)
ENCODER=${ENCODER:-$PWD/third_party/minilm}
[ -x "$BIN/rag-pairs" ] || { echo 'SKIP: rag-pairs is not built'; exit 77; }
[ -f "$ENCODER/model.safetensors" ] || { echo 'SKIP: no sentence encoder'; exit 77; }
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
fail() { echo "FAIL: $*"; tail -n 5 err; exit 1; }
cd "$dir" || exit 1
mkdir s
for i in 1 2 3 4 9; do printf "ISO-10303-21;\nHEADER;\nENDSEC;\nDATA;\n#1=A($i);\nENDSEC;\nEND-ISO-10303-21;\n" > s/0$i.step; done
printf '\xef\xbb\xbfmodel_id,isDescribable,description\r\n01,True,"a plate, flat"\r\n02,True,"a ""round""\nrod"\r\n03,True,"a plate, flat"\r\n04,False,none\r\n05,True,a ball\r\n01,True,again\r\n' > c.csv
pairs() { "$BIN"/rag-pairs --captions "${1:-c.csv}" --steps s --encoder "${2:-$ENCODER}" --out p.json --db t.db "${@:3}" > out 2> err; }
got() { python3 -c 'import json; print(" ".join(p["id_original"] + ":" + p["id_retrieve"] for p in json.load(open("p.json"))))'; }
items() { python3 -c 'import sqlite3; print("\n".join("%s %s %s" % r for r in sqlite3.connect("t.db").execute("select item,state,coalesce(reason,\"\") from items")))'; }
pairs; [ $? -eq 1 ] || fail "exit"
[ "$(got)" = "01:03 02:01 03:01" ] || fail "pairs: $(got)"
items > list
for want in '01 done' '01 (caption 2) failed duplicate_id' '04.step failed no_caption' '05 failed no_file' '09.step failed no_caption'; do
    grep -q "^$want" list || fail "no '$want' among the items: $(cat list)"
done
grep -q '2 STEP files without caption, 1 captions without STEP file' err || fail "counts: $(cat err)"
cp p.json.embeddings.safetensors first; cp p.json.faiss first.faiss; cp p.json first.json
inode() { stat -c %i p.json.faiss p.json.embeddings.safetensors | paste -s; }
# saved embeddings and index are used again; damaged, or of other captions, they are not
before=$(inode)
pairs c.csv "$ENCODER" --force; cmp -s first p.json.embeddings.safetensors || fail "embeddings of the same captions changed"
[ "$(inode)" = "$before" ] && grep -q 'p.json.faiss: the index of an earlier run' err || fail "the index was not used again"
for damage in 'truncate -s 100' 'truncate -s 0' 'cp c.csv'; do
    $damage p.json.faiss
    pairs c.csv "$ENCODER" --force; [ $? -eq 1 ] && cmp -s first.faiss p.json.faiss && cmp -s first.json p.json || fail "a damaged index ($damage)"
    grep -q 'p.json.faiss: is no whole flat index.* built anew' err || fail "a damaged index ($damage): $(cat err)"
    truncate -s 100 p.json.embeddings.safetensors
    pairs c.csv "$ENCODER" --force; cmp -s first p.json.embeddings.safetensors && cmp -s first.json p.json || fail "damaged embeddings"
done
sed 's/a ""round""/a square/' c.csv > d.csv
pairs d.csv; cmp -s first p.json.embeddings.safetensors && fail "stale embeddings were taken for other captions"
cmp -s first.faiss p.json.faiss && fail "a stale index was taken for other captions"
grep -q 'p.json.faiss: of other captions, or by another encoder' err || fail "no word of the stale index"
printf 'id,text\n1,a\n' > bad.csv; rm p.json
pairs bad.csv; [ $? -eq 3 ] || fail "missing columns: exit"
grep -q 'bad.csv: has no column model_id' err || fail "missing columns: $(cat err)"
# a row that is none costs itself alone; what is neither True nor False is told
printf 'model_id,isDescribable,description\n01,TRUE,"a plate, flat"\n02,True\n03,true,a rod\n04,maybe,a ball\n09,1,"a cone\n' > odd.csv
pairs odd.csv; [ $? -eq 1 ] && [ "$(got)" = "01:03 03:01" ] || fail "odd rows: $(got)"
grep -q 'odd.csv:3: bad_row: the row has 2 fields, the header 3' err && grep -q 'odd.csv:6: bad_row: a quote is not closed' err &&
    grep -q 'neither True nor False in 1 rows.* line 5' err || fail "odd rows: $(cat err)"
rm p.json
mkdir enc; echo '{"architectures":["RobertaModel"]}' > enc/config.json
pairs c.csv enc; [ $? -eq 3 ] || fail "another architecture: exit"
grep -q "architecture 'RobertaModel' is not supported" err || fail "another architecture: $(cat err)"
[ ! -e p.json ] || fail "something was written"
python3 - <<'P' || fail "reasons in the database"
import sqlite3
reasons = [r[0] for r in sqlite3.connect("t.db").execute("select error from runs where state='failed' order by id")]
assert any("has no column model_id" in r for r in reasons), reasons
assert any("architecture 'RobertaModel' is not supported" in r for r in reasons), reasons
P
echo ok
