#!/bin/bash
# Parts that are none, or too much: points, curves, several solids, no volume, coordinates at 1e30, 200 MB, no text, a truth
# that cannot be read, names without a partner, empty folders: each is counted under its own name.
set -u
cd "$(dirname "$0")/../.."
BIN=$(cd "${BIN:-build/bin}" && pwd)
for tool in renderability chamfer complete-ratio entity-stats; do [ -x "$BIN/$tool" ] || { echo "SKIP: $tool is not built"; exit 77; }; done
sample=$PWD/tests/golden/parts/pointed-rod.step
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
cd "$dir" || exit 1
fail() { echo "FAIL: $*"; exit 1; }
mkdir pred truth empty
python3 - "$sample" <<'PY' || fail "cannot make the files"
import os, re, sys
s = open(sys.argv[1]).read()
rep = re.search(r"#(\d+)=ADVANCED_BREP_SHAPE_REPRESENTATION\('[^']*',\(([^)]*)\),#(\d+)\);", s)
solid = re.search(r"#(\d+)=MANIFOLD_SOLID_BREP\('',#(\d+)\);", s)
point, curve = re.search(r"#(\d+)=CARTESIAN_POINT", s), re.search(r"#(\d+)=(LINE|CIRCLE)\(", s)
def write(name, text, truth=s):
    open(f"pred/{name}.step", "w").write(text)
    open(f"truth/{name}.step", "w").write(truth)
def instead(what):
    return s.replace(rep[0], what).replace(solid[0], "")
write("same", s)
write("two_solids", s.replace(rep[0], rep[0].replace(rep[2], rep[2] + ",#900001") + f"#900001=MANIFOLD_SOLID_BREP('',#{solid[2]});"))
write("points", instead(f"#{rep[1]}=SHAPE_REPRESENTATION('',(#{point[1]}),#{rep[3]});"))
write("curves", instead(f"#{rep[1]}=GEOMETRICALLY_BOUNDED_WIREFRAME_SHAPE_REPRESENTATION('',(#900001),#{rep[3]});#900001=GEOMETRIC_CURVE_SET('',(#900002));"
                        f"#900002=TRIMMED_CURVE('',#{curve[1]},(PARAMETER_VALUE(0.)),(PARAMETER_VALUE(3.)),.T.,.PARAMETER.);"))
write("flat", re.sub(r"(CARTESIAN_POINT\('',\([^,]*,[^,]*,)[^)]*\)", r"\g<1>0.)", s))
write("far", re.sub(r"(CARTESIAN_POINT\('',\()[^,]*,", r"\g<1>1.E30,", s, count=1))
os.mkdir("big")
open("big/big.step", "w").write(s.replace("DATA;", "DATA;\n" + (" " * 999 + "\n") * 200000))
write("none", "")
write("bad_truth", s, s[:len(s) // 2])
write("alone", s)
os.rename("truth/alone.step", "truth/other.step")
PY
"$BIN/renderability" --db none --json -q pred > strict || fail "renderability: exit $?"
"$BIN/renderability" --db none --json -q --mode reference pred > reference || fail "renderability --mode reference: exit $?"
"$BIN/renderability" --db none --json -q big | grep -q '"renderable":true' || fail "200 MB"
case $BIN in *sanitize*) ;; # a limit on the address space is none where AddressSanitizer's shadow takes terabytes of it
*) "$BIN/renderability" --db none --json -q --memory 100000000 big | grep -q '"reason":"memory: over 100 MB' || fail "200 MB in 100" ;;
esac
"$BIN/chamfer" --db none --json -q --pred pred --truth truth > best 2> err; [ $? -eq 1 ] || fail "chamfer: exit $?"
"$BIN/chamfer" --db none --json -q --align reference --pred pred --truth truth > original 2> err; [ $? -eq 1 ] || fail "chamfer, reference: exit $?"
python3 - <<'PY' || fail "verdicts"
import json
def read(name, key):
    rows = [json.loads(l) for l in open(name)]
    return {r[key].split("/")[-1][:-5]: r for r in rows if r.get(key)}, rows[-1]
s, total = read("strict", "file")
def says(name, word):
    assert any(r.startswith(word) for r in s[name]["reasons"]), (name, s[name]["reasons"])
for name, word in (("points", "null_shape"), ("curves", "no_triangles"), ("curves", "no_solid"), ("flat", "invalid"), ("far", "coordinate"), ("none", "syntax")):
    says(name, word)
assert all(s[n]["renderable"] for n in ("same", "two_solids")) and s["two_solids"]["num_solids"] == 2, s
assert total["total"] == 9 and total["renderable"] + total["error"] + total["timeout"] == 9, total
o, _ = read("reference", "file")
assert [o[n]["renderable"] for n in ("same", "two_solids", "points", "curves", "none")] == [True, True, False, False, False]
due = {"same": "ok", "two_solids": "ok", "points": "pred_failed", "curves": "pred_failed", "flat": "ok", "far": "degenerate", "none": "pred_failed",
       "bad_truth": "truth_failed", "alone": "no_truth"}
for name in ("best", "original"):
    c, total = read(name, "pred")
    assert {k: v["status"] for k, v in c.items()} == due, {k: (v["status"], v["reason"]) for k, v in c.items()}
    assert [total[k] for k in ("n_total", "n_ok", "n_pred_failed", "n_truth_failed", "n_degenerate", "n_no_pred", "n_no_truth")] == [9, 3, 3, 1, 1, 1, 1], total
    assert c["flat"]["scd_two_sided"] > 100 * c["same"]["noise"] and c["two_solids"]["scd"] < 2 * c["same"]["noise"], c["flat"]
PY
# A link to nothing is a file, too, and none of the others' business.
mkdir links && cp "$sample" links/a.step && ln -s no/such links/b.step
for mode in strict reference; do
    "$BIN/renderability" --db none --json -q --mode $mode links > out 2> err; [ $? -eq 1 ] || fail "renderability of a link to nothing, $mode: exit $?"
    grep -q '"total":2,"renderable":1,"not_renderable":1.*"failure_reasons":{"\(cannot_read\|file_not_found\)":1}' out || fail "$mode: $(tail -n 1 out)"
done
"$BIN/chamfer" --db none --json -q --truth "$sample" --pred links > out 2> err; [ $? -eq 1 ] || fail "chamfer of a link to nothing: exit $?"
tail -n 1 out | grep -q '"n_total":2,"n_ok":1,"n_pred_failed":1' || fail "$(tail -n 1 out)"
for tool in renderability complete-ratio entity-stats; do
    "$BIN/$tool" --db none empty > out 2> err; [ $? -eq 3 ] && grep -q 'empty: holds no file' err || fail "$tool of an empty folder: $(cat err)"
done
for pair in "empty truth" "pred empty"; do
    "$BIN/chamfer" --db none --pred ${pair% *} --truth ${pair#* } > out 2> err; [ $? -eq 3 ] && grep -q 'empty: holds no file' err || fail "chamfer of an empty folder: $(cat err)"
done
echo ok
