#!/bin/bash
# report: tables in every format from scores really made, failures counted, intervals that repeat; status; a
# loss curve; databases that are missing, empty, damaged or newer; and the page in a real browser.
set -u
cd "$(dirname "$0")/../.."
here=$PWD/tests/e2e
sample=$PWD/datasets/sample
BIN=$(cd "${BIN:-build/bin}" && pwd)
for tool in report complete-ratio renderability chamfer entity-stats; do [ -x "$BIN/$tool" ] || { echo "SKIP: $tool is not built"; exit 77; }; done
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
fail() { echo "FAIL: $*"; [ ! -s err ] || tail -5 err; exit 1; }
cd "$dir" || exit 1

# ---- nothing there ----
"$BIN/report" > out 2> err || fail "no database: exit $?"
grep -q '^STEP-LLM, SFT with RAG *reported in the paper *97.00 *95.18 *0.53' out || fail "no database: the paper's row"
grep -q "make eval CKPT=runs/qwen LABEL='SFT with RAG'" out || fail "no database: what to run"
[ ! -e runs ] || fail "looking made a database"
"$BIN/report" --status > out 2> err || fail "no database, --status: exit $?"
grep -q 'nothing has run yet' out || fail "no database, --status"
"$BIN/complete-ratio" /nonexistent > out 2> err
"$BIN/report" > out 2> err || fail "database without scores: exit $?"
grep -q 'no evaluation with a label' out || fail "database without scores"
"$BIN/report" --format html --out empty.html -q 2> err || fail "page without scores: exit $?"
python3 -c 'import sqlite3; d=sqlite3.connect("newer.db"); d.execute("create table t(x)"); d.execute("pragma user_version=99")'
"$BIN/report" --db newer.db > out 2> err; [ $? -eq 3 ] || fail "newer database"
grep -q 'newer.db.*newer version' err || fail "newer database is not named: $(cat err)"
echo junk > junk.db; "$BIN/report" --db junk.db > out 2> err; [ $? -eq 3 ] || fail "damaged database"
[ ! -s out ] || fail "damaged database: results"

# ---- scores really made: of six parts one is cut, one is another, one is missing ----
mkdir truth gen
for i in 0 1 2 3 4 5; do
    cp "$sample/steps/0000000$i.step" truth/
    cp "$sample/steps/0000000$i.step" gen/
done
head -c 3000 "$sample/steps/00000003.step" > gen/00000003.step
cp "$sample/steps/00000020.step" gen/00000004.step
rm gen/00000005.step
label='SFT with RAG, <b>tiny</b>'
"$BIN/complete-ratio" --label "$label" gen > out 2> err || fail "complete-ratio"
"$BIN/renderability" --label "$label" gen -q > out 2> err || fail "renderability"
"$BIN/chamfer" --label "$label" --pred gen --truth truth -q > out 2> err; [ $? -eq 1 ] || fail "chamfer"
python3 - "$sample/captions.csv" > told.json <<'PY'
import csv, json, sys # two captions tell a size, one of them of the part that is another
caption = {"00000000": "A disc, 30 mm wide.", "00000004": "A block 4mm long", "00000001": "A ring of common size."}
print(json.dumps([{"id_original": f"0000000{i}", "caption": caption.get(f"0000000{i}", "A part."), "output": "x"} for i in range(6)], indent=4))
PY
"$BIN/chamfer" --pred gen --truth truth --captions told.json --db none --json -q > out 2> err
tail -n 1 out | grep -q '"box_error":0.0,"box_error_told":0.*,"n_told":2,' || fail "box errors: $(tail -n 1 out)"
grep '00000000.step' out | grep -q '"box_error":0.0,"size_told":true' || fail "box error of the same part: $(head -n 1 out)"
grep '00000004.step' out | grep -q '"box_error":0.0,' && fail "another part has the same box"
"$BIN/entity-stats" --label "$label" gen -q > out 2> err; [ $? -eq 1 ] || fail "entity-stats"
"$BIN/entity-stats" --label "ground truth" truth -q > out 2> err || fail "entity-stats of the truth"
python3 - "$sample/captions.csv" <<'PY' || fail "cannot add runs"
import csv, json, math, os, sqlite3, sys, time
db = sqlite3.connect("runs/runs.db")
def run(tool, label, state, pid):
    now = time.time()
    return db.execute("insert into runs(tool,key,label,argv,config,version,git_rev,host,pid,cwd,started,ended,heartbeat,attempts,state)"
                      " values(?,?,?,?,'','0','x',?,?,?,?,?,?,1,?)",
                      (tool, tool + label + state, label, tool + " --of-old", os.uname().nodename, pid, os.getcwd(), now - 90,
                       now if state == "done" else None, now - 30, state)).lastrowid
g = run("generate", "", "done", 1)
for row in csv.DictReader(open(sys.argv[1])):
    f = "gen/%s.step" % row["model_id"]
    if os.path.exists(f):
        caption = row["description"] + (" </script><script>document.title='bad'</script>" if row["model_id"] == "00000001" else "")
        result = json.dumps({"id": row["model_id"], "caption": caption, "tokens": 1000, "file": f})
        db.execute("insert into items values(?,?,'done',NULL,1,1,NULL,NULL,?,1,?)", (g, row["model_id"], f, result))
s = run("sft", "tiny & small", "done", 1)
for k in range(1, 101):
    db.execute("insert into metrics values(?,?,'loss',?,0)", (s, k, 3 * math.exp(-k / 30) + 0.1 * (k % 3)))
    if k % 25 == 0:
        db.execute("insert into metrics values(?,?,'loss_val',?,0)", (s, k, 3 * math.exp(-k / 30) + 0.2))
e = run("eval-loss", "tiny & small", "done", 1)
for k in (50, 100, 1000):
    db.execute("insert into items values(?,?,'done',NULL,1,1,NULL,NULL,NULL,NULL,?)",
               (e, "c-%d" % k, json.dumps({"checkpoint": "c-%d" % k, "loss": 1 / k, "tokens": 77})))
run("sft", "killed", "running", 4194301)
db.commit()
PY

"$BIN/report" --format csv --table scores > a.csv 2> err || fail "csv: exit $?"
"$BIN/report" --format csv --table scores > b.csv 2> err
cmp -s a.csv b.csv || fail "the same seed gives other intervals"
python3 - <<'PY' || fail "numbers: $(cat a.csv)"
import csv
rows = list(csv.DictReader(open("a.csv")))
[r] = [r for r in rows if r["method"].startswith("SFT with RAG, <b>")]
assert r["scored"] == "strict" and float(r["cr"]) == 80 and float(r["rr"]) == 80, r
assert r["cr_n"] == "5" and r["mscd_n"] == "4" and r["mscd_failed_worst_n"] == "6" and r["aec_n"] == "4", r
assert float(r["cr_low"]) < 80 < float(r["cr_high"]) == 100, r
# distances 0, 0, 0, x and two failures: without them the median is 0, with them between 0 and x
assert float(r["mscd"]) < 1e-9 and 0 < float(r["mscd_failed_worst"]) < 10 and r["mscd_failed_worst_high"] == "inf", r
i = rows.index(r)
assert rows[i - 1]["scored"] == "reported in the paper" and float(rows[i - 1]["mscd"]) == 0.53, rows
[t] = [r for r in rows if r["method"] == "ground truth" and r["scored"] == "strict"]
assert t["aec_n"] == "6" and t["cr"] == "", t
PY
"$BIN/report" --seed 1 --format csv --table scores > b.csv 2> err; cmp -s a.csv b.csv && fail "the seed does nothing"
"$BIN/report" > out 2> err || fail "text: exit $?"
for word in '1 failed and 1 missing parts (worst)' 'the text ends where' 'pred_failed: ' 'no_pred: ' '5/5/4/4' "complete-ratio --label 'ground truth'" \
    'c-1000 *1000 *0.0010 *77' 'tiny & small *done *100'; do
    grep -q -- "$word" out || fail "text has no '$word': $(cat out)"
done
[ "$(grep -n 'c-100 \|c-1000 ' out | head -1 | grep -c 'c-100 ')" = 1 ] || fail "checkpoints are not in their order"
"$BIN/report" --format markdown > out 2> err || fail "markdown"
grep -q '^| SFT with RAG, \\<b\\>tiny\\</b\\> | strict | 80.00 \\\[' out || fail "markdown: $(cat out)"
"$BIN/report" --format latex --table scores > out 2> err || fail "latex"
[ "$(grep -c '\\begin{tab' out)" = 2 ] && [ "$(grep -c '\\end{tab' out)" = 2 ] && grep -q 'CR \\%' out || fail "latex: $(cat out)"
"$BIN/report" --json 2> err | python3 -c 'import json,sys
rows = [json.loads(l) for l in sys.stdin]
assert {"scores", "missing", "distances", "failures", "entities", "loss", "training"} <= {r["table"] for r in rows}
assert any(r.get("cr", {}).get("n") == 5 for r in rows)' || fail "json"
"$BIN/report" --label 'ground truth' --table scores > out 2> err
grep -q tiny out && fail "--label does not choose"

# ---- status and curve ----
before=$(python3 -c 'import sqlite3; print(sqlite3.connect("runs/runs.db").execute("select count(*) from runs").fetchone()[0])')
"$BIN/report" --status > out 2> err || fail "--status: exit $?"
grep -q 'sft *killed *interrupted' out || fail "a killed run is not said to be: $(cat out)"
grep -q 'run .* goes on with:  sft --of-old' out || fail "how to go on"
grep -q 'chamfer .*done *4 *1 *1 .*1 of 5 items failed; such as 00000003.step: pred_failed' out || fail "status of chamfer: $(cat out)"
grep -q 'complete-ratio .*failed .*nonexistent' out || fail "why a run failed"
[ "$before" = "$(python3 -c 'import sqlite3; print(sqlite3.connect("runs/runs.db").execute("select count(*) from runs").fetchone()[0])')" ] ||
    fail "looking is recorded as a run"
run=$(grep -o '^ *[0-9]* *sft *tiny' out | tr -dc 0-9)
"$BIN/report" --curve "$run" --out curve.svg -q 2> err || fail "--curve: exit $?"
python3 - <<'PY' || fail "curve.svg"
import xml.etree.ElementTree as x
t = x.parse("curve.svg").getroot()
assert t.tag.endswith("svg") and "tiny & small" in "".join(t.itertext())
paths = [p.get("d") for p in t.iter("{http://www.w3.org/2000/svg}path")]
assert max(p.count("L") for p in paths) == 99 and len(list(t.iter("{http://www.w3.org/2000/svg}circle"))) == 4
PY
"$BIN/report" --curve 999 > out 2> err; [ $? -eq 3 ] && grep -q 'no run 999' err || fail "--curve of no run"

# ---- the page ----
"$BIN/report" --format html --out report.html 2> err || fail "html: exit $?"
grep -q '^report: 10 pictures, 10 meshes, 1 files that could not be drawn' err || fail "html: $(cat err)"
[ "$(stat -c %s report.html)" -lt 1000000 ] || fail "the page has $(stat -c %s report.html) bytes"
"$BIN/report" --format html --out small.html --max-mb 0.02 2> err || fail "a small page: exit $?"
[ "$(stat -c %s small.html)" -lt 80000 ] && grep -q 'are left out (--max-mb 0.02)' small.html || fail "a small page: $(stat -c %s small.html) bytes"
python3 - "$here/report_page.js" <<'PY' || fail "page"
import re, sys
page = open("report.html", encoding="utf-8").read()
assert not re.search(r"""(src|href)\s*=\s*["']?\s*(https?:)?//""", page), "the page fetches"
assert "<b>tiny" not in page and page.count("</script>") == 2, "markup of the data is in the page"
open("test.html", "w", encoding="utf-8").write(page.replace("<head>", "<head><script>" + open(sys.argv[1]).read() + "</script>", 1))
PY
browser=$(command -v chromium || command -v chromium-browser || command -v google-chrome)
[ -n "$browser" ] || { echo "SKIP: no Chromium: the page was not opened (the rest passed)"; exit 77; }
timeout 60 "$browser" --headless --no-sandbox --disable-gpu --user-data-dir="$dir/browser" --window-size=1300,1000 \
    --virtual-time-budget=20000 --dump-dom "file://$dir/test.html" > dom 2> err
sed -n 's/.*<pre id="test">\(ok\|FAIL\)/\1/; /^\(ok\|FAIL\) /p' dom > checks
grep -q '^FAIL' checks && fail "in the browser: $(grep ^FAIL checks)"
[ "$(grep -c '^ok ' checks)" = 11 ] && grep -q '^test ended' dom || fail "in the browser: $(cat checks)"
echo ok
