# Sourced by the tests of generate and serve, after BIN, root and needs="TOOL..." are known: a fresh folder, fail(), expect(), train(), and `tiny`,
# a model of random weights with a tokenizer, that knows any prompt.
case $BIN in /*) ;; *) BIN=$PWD/$BIN ;; esac
for t in $needs; do [ -x "$BIN/$t" ] || { echo "SKIP: $t is not built (no libtorch, or no libmicrohttpd)"; exit 77; }; done
dir=$(mktemp -d) pid=
trap '[ -z "$pid" ] || kill -9 $pid 2> /dev/null; rm -rf "$dir"' EXIT
fail() { echo "FAIL: $*"; [ ! -s err.txt ] || tail -n 5 err.txt; exit 1; }
# expect CODE TEXT COMMAND...: ends with CODE, and the only line that it says holds TEXT
expect() {
    local code=$1 text=$2; shift 2
    timeout 100 "$@" > out.txt 2> err.txt < /dev/null; local rc=$?
    [ $rc = "$code" ] || fail "exit $rc, $code is due: $*"
    grep -qF -- "$text" err.txt || fail "no '$text' from $*"
    [ "$(wc -l < err.txt)" = 1 ] || fail "more than one line from $*"
}
train() { "$BIN/sft" --data data --max-steps 1 -o lr=1e-5 --batch-size 1 --accumulation 1 --db none -q "$@" > sft.log 2>&1 || fail "sft $*: $(cat sft.log)"; }
# no_numbers DIR: tiny again, but all that it computes is NaN
no_numbers() {
    cp -r tiny "$1" && python3 - "$1/model.safetensors" <<'P'
import json, struct, sys
b = bytearray(open(sys.argv[1], "rb").read())
n = struct.unpack("<Q", b[:8])[0]
first, end = (8 + n + o for o in json.loads(b[8:8 + n])["model.norm.weight"]["data_offsets"])
b[first:end] = b"\xff" * (end - first)
open(sys.argv[1], "wb").write(b)
P
}
cd "$dir" || exit 1
python3 "$root/tests/e2e/tiny_model.py" "$root" . || fail "python3 is needed"
"$BIN/tokenizer-train" "$root/datasets/sample" --out arch --vocab-size 600 --db none -q > /dev/null || fail "tokenizer-train"
train --model arch --out tiny --method full --init random
rm -f tiny/prompt.json
