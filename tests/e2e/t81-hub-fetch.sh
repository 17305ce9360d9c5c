#!/bin/bash
# hub-fetch against a hub on this machine: revisions, redirects to a store, resume, tokens, gated and
# missing repositories, checksums, hostile listings.
set -u
BIN=${BIN:-build/bin}
BIN=$(cd "$BIN" && pwd) here=$(cd "$(dirname "$0")" && pwd)
[ -x "$BIN/hub-fetch" ] || { echo "SKIP: hub-fetch is not built"; exit 77; }
dir=$(mktemp -d); server=
trap '[ -z "$server" ] || kill $server; rm -rf "$dir"' EXIT
fail() { echo "FAIL: $*"; [ ! -s err ] || tail -5 err; exit 1; }
cd "$dir" || exit 1
export no_proxy='*' NO_PROXY='*'
unset http_proxy https_proxy all_proxy HF_TOKEN HF_ENDPOINT
for repo in own/model flaky/model gated/model rotten/model hostile/model own/data JasonShiii/step-llm-{qwen3b,llama3b,llama3b-no_rag} Qwen/Qwen2.5-3B mirror/Llama-3.2-3B-Instruct; do
    mkdir -p "root/hub/$repo/sub dir"
    echo '{"model_type":"x"}' > root/hub/$repo/config.json
    : > root/hub/$repo/empty.txt
    echo 'ä' > "root/hub/$repo/sub dir/a b#c?.json"
    head -c 40000 /dev/urandom > root/hub/$repo/model.safetensors
    echo old > root/hub/$repo/pytorch_model.bin
done
mkdir -p root/hub-extra/hostile
echo '[{"rfilename":"../../escaped.json","size":3,"blobId":"0000000000000000000000000000000000000000"}]' > root/hub-extra/hostile/model.json
python3 "$here/loopback_server.py" root port log & server=$!
for i in $(seq 100); do [ -e port ] && break; sleep 0.05; done
[ -e port ] || fail "no server"
export HF_ENDPOINT=http://127.0.0.1:$(cat port)

n_case=0
get() { # EXIT TEXT ARGS...
    local want=$1 text=$2 rc; shift 2
    "$BIN/hub-fetch" --db r.db --backoff 0.05 --out out "$@" > res 2> err
    rc=$?; n_case=$((n_case + 1))
    [ $rc -eq "$want" ] || fail "case $n_case ($*): exit $rc, not $want"
    [ -z "$text" ] || grep -q -- "$text" err res || fail "case $n_case ($*): no word of '$text'"
}
fresh() { rm -rf out r.db*; : > log; }
same() { diff -r -x .hub.json -x pytorch_model.bin "root/hub/$1" out > diffs || fail "case $n_case: $(head -3 diffs)"; }

fresh; get 0 '4 of 4 files' own/model; same own/model
[ ! -e out/pytorch_model.bin ] || fail "another format of the weights was fetched"
python3 - <<'PY' || fail ".hub.json"
import json, hashlib
o = json.load(open("out/.hub.json"))
assert o["repo"] == "own/model" and len(o["commit"]) == 40 and len(o["files"]) == 4
w = [f for f in o["files"] if f["path"] == "model.safetensors"][0]
assert w["sha256"] == hashlib.sha256(open("out/model.safetensors", "rb").read()).hexdigest()
PY
: > log; get 0 '' own/model
[ "$(grep -c resolve log)" = 0 ] || fail "a second start fetches again"
rm -f r.db*; : > log; get 0 '' own/model
[ "$(grep -c resolve log)" = 0 ] || fail "files that are right are fetched again"
echo changed >> root/hub/own/model/config.json; get 0 '' own/model; same own/model
echo broken > out/config.json; rm -f r.db*; get 0 '' own/model; same own/model
fresh; get 0 '' own/model --include '*.json' --include 'pytorch*'
[ "$(cd out && find . -type f | sort | tr '\n' ' ')" = './.hub.json ./config.json ./pytorch_model.bin ./sub dir/a b#c?.json ' ] || fail "--include: $(find out)"
fresh; get 0 '' own/model --exclude '*.safetensors'; [ ! -e out/model.safetensors ] || fail "--exclude"
get 2 'none of the 5 files' own/model --include '*.nothing'
fresh; get 0 '' datasets/own/data; same own/data
grep -q '"path": "/api/datasets/own/data/' log && grep -q '"path": "/datasets/own/data/resolve/' log || fail "addresses of a data set"
get 2 'no revision' own/model --revision v9
get 3 'no such repository' own/nothing
get 2 'OWNER/NAME' nothing
get 2 'OWNER/NAME' ../../etc

# a line that breaks; a store whose content is not what the hub says
fresh; get 0 '' flaky/model; same flaky/model
grep -q '"range": "bytes=5000-"' log || fail "no resume: $(cat log)"
fresh; get 1 'SHA-256 is' rotten/model
[ ! -e out/model.safetensors ] && [ -e out/config.json ] && [ ! -e out/.hub.json ] || fail "rotten: $(find out)"

# tokens: none, wrong, right; it goes to the hub and not to the store
fresh; get 3 'accept its licence on .*gated/model.*HF_TOKEN' gated/model
HF_TOKEN=bad-token get 3 'this HF_TOKEN has no access' gated/model
grep -q 'bad-token' err res && fail "a token was shown"
: > log; HF_TOKEN=$'good-token\n' get 0 '' gated/model; same gated/model
[ "$(grep -c '"auth": "Bearer good-token"' log)" -ge 5 ] || fail "the hub got no token"
grep '"host": "localhost' log | grep -q '"auth": "Bearer' && fail "the store got the token"
[ "$(grep -c '"host": "localhost' log)" -ge 1 ] || fail "no redirect to the store"
python3 -c 'import sys; sys.exit(b"good-token" in b"".join(open(f, "rb").read() for f in sys.argv[1:]))' r.db* out/.hub.json || fail "a token was recorded"
HF_TOKEN=x get 2 'unencrypted' own/model --endpoint http://hub.example

fresh; get 3 "unsafe" hostile/model; [ ! -e escaped.json ] && [ ! -e ../escaped.json ] || fail "escaped"
get 3 'not valid JSON' own/model --endpoint "$HF_ENDPOINT/!fail=200"
# The released adapters are bound to a prompt and a base model, whatever the folder is called: hub-fetch notes it, generate checks.
for b in Qwen/Qwen2.5-3B mirror/Llama-3.2-3B-Instruct own/model; do
    fresh; get 0 '' $b; rm -rf "base-${b##*/}"; cp -r out "base-${b##*/}"
done
echo '[{"id_original":"1","caption":"A part.","id_retrieve":"2","relavant_step_file":"DATA;","output":"DATA;"}]' > pairs.json
while read -r name base prompt; do
    fresh; get 0 "was trained on .*$base, with the prompt $([ $prompt = plain ] && echo without || echo with) retrieval" JasonShiii/$name
    python3 - $prompt <<'PY' || fail "$name: .hub.json"
import json, sys
o = json.load(open("out/.hub.json"))
assert o["prompt"] == sys.argv[1] and o["base_model"] in ("Qwen/Qwen2.5-3B", "meta-llama/Llama-3.2-3B-Instruct")
PY
    [ -x "$BIN/generate" ] || continue
    generate() { "$BIN/generate" --model "$1" --adapter out --out g "${@:2}" --db none -q > res 2> err; echo $?; }
    wrong=(--caption x) right=(--captions pairs.json)
    [ $prompt != plain ] || { wrong=(--captions pairs.json) right=(--caption x); }
    [ "$(generate base-$base "${wrong[@]}")" = 2 ] && grep -q "out was trained with the $prompt prompt" err || fail "$name with the other prompt: $(cat err)"
    [ "$(generate base-$base "${right[@]}")" = 3 ] && ! grep -q 'prompt' err || fail "$name with its prompt: $(cat err)" # (the base's files are made up)
    [ "$(generate base-model "${right[@]}")" = 2 ] && grep -q "out was trained on .*$base, and base-model is own/model" err || fail "$name on another base: $(cat err)"
done <<'E'
step-llm-qwen3b Qwen2.5-3B retrieval
step-llm-llama3b Llama-3.2-3B-Instruct retrieval
step-llm-llama3b-no_rag Llama-3.2-3B-Instruct plain
E
echo "ok: $n_case cases"
