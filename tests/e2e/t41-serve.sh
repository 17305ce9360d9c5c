#!/bin/bash
# serve: the API as OpenAI's, streaming, stop texts, limits, 1,000 requests at once, clients that go away, SIGTERM,
# nothing leaked, bad input, and the page in a real browser.
set -u
BIN=${BIN:-build/bin}
root=$(cd "$(dirname "$0")/../.." && pwd)
needs="serve sft"
. "$root/tests/e2e/with_tiny_model.sh"

mkdir tmp
# up ARGUMENTS: starts it and waits for its address
up() {
    : > out.txt # the last one's address
    TMPDIR=$PWD/tmp "$BIN/serve" --model "${model:-tiny}" --port 0 -j2 --db run.db "$@" > out.txt 2> err.txt & pid=$!
    for i in $(seq 200); do url=$(head -n 1 out.txt) A=${url}v1/completions; [ -n "$url" ] && return; kill -0 $pid 2> /dev/null || break; sleep 0.1; done
    fail "serve $* does not start: $(cat err.txt)"
}
# down [CODE]: SIGTERM, that exit code (0), and soon
down() {
    kill -TERM $pid
    for i in $(seq 150); do kill -0 $pid 2> /dev/null || break; sleep 0.1; done
    kill -0 $pid 2> /dev/null && fail "SIGTERM does not end it"
    wait $pid; local rc=$?; pid=
    [ $rc = "${1:-0}" ] || fail "exit $rc after SIGTERM: $(cat err.txt)"
}
load() { timeout 250 python3 "$root/tests/e2e/serve_load.py" "$url" "$@" || fail "$*"; }
post() { curl -s -m 60 -H 'Content-Type: application/json' -d "$1" "${url}v1/completions"; }
# code WANT TEXT curl-arguments: status, and a JSON error that says TEXT
code() {
    local want=$1 text=$2 got; shift 2
    got=$(curl -s -m 60 -w '\n%{http_code}' "$@") || fail "curl $*"
    [ "${got##*$'\n'}" = "$want" ] && grep -qF -- "$text" <<< "$got" || fail "$want with '$text' is due: $* gives $got"
}

up --batch 8 --max-waiting 2000 --keep 20
[ "$(curl -s "${url}health" | python3 -c 'import json, sys; print(json.load(sys.stdin)["status"])')" = ok ] || fail "health"
python3 - "$url" <<'P' || exit 1
import json, sys, urllib.request
url = sys.argv[1]
def post(**body):
    r = urllib.request.Request(url + "v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
    return json.load(urllib.request.urlopen(r, timeout=60))
models = json.load(urllib.request.urlopen(url + "v1/models"))
assert models["data"][0]["id"] == "tiny", models
raw = post(model="tiny", prompt="DATA;", max_tokens=12)
c = raw["choices"][0]
assert c["finish_reason"] == "length" and raw["usage"]["completion_tokens"] == 12 and raw["object"] == "text_completion", raw
assert raw["choices"][0]["text"] == post(prompt=["DATA;"], max_tokens=12)["choices"][0]["text"], "greedy differs"
warm = [post(prompt="x", max_tokens=30, temperature=1, seed=s)["choices"][0]["text"] for s in (1, 1, 2)]
assert warm[0] == warm[1] != warm[2], warm
whole = post(prompt="x", max_tokens=30)["choices"][0]["text"]
cut = whole[8:12]
stopped = post(prompt="x", max_tokens=30, stop=[cut])["choices"][0]
assert stopped["text"] == whole[:whole.index(cut)] and stopped["finish_reason"] == "stop", (stopped, whole, cut)
part = post(caption="A part.", max_tokens=100, temperature=1, seed=3)
assert part["part"]["valid"] and part["part"]["entities"] > 0 and part["choices"][0]["finish_reason"] == "stop", part
step = urllib.request.urlopen(f"{url}parts/{part['id']}.step").read().decode()
assert step.startswith("ISO-10303-21;") and step.endswith("END-ISO-10303-21;\n"), step
json.load(urllib.request.urlopen(f"{url}parts/{part['id']}.json"))
raw = post(prompt="x", max_tokens=90, grammar="part21", temperature=1)["choices"][0]["text"]
assert raw.startswith("DATA;\n") and raw.rstrip().endswith("END-ISO-10303-21;"), raw
P
[ $? = 0 ] || fail "the API"
J="Content-Type: application/json"
code 400 "not valid JSON" -H "$J" -d '{' "$A"
code 400 "not valid JSON" -H "$J" --data-binary $'{"caption":"\xff\xfe"}' "$A"
code 400 "either prompt or caption" -H "$J" -d '{}' "$A"
code 400 "the caption is empty" -H "$J" -d '{"caption":" \n"}' "$A"
code 400 "without NUL" -H "$J" -d '{"caption":"a\u0000b"}' "$A"
code 400 "max_tokens: a number" -H "$J" -d '{"prompt":"x","max_tokens":0}' "$A"
code 400 "temperature: a number" -H "$J" -d '{"prompt":"x","temperature":"hot"}' "$A"
code 400 "this server has 'tiny' alone" -H "$J" -d '{"prompt":"x","model":"gpt-9"}' "$A"
code 400 "tokens are too few" -H "$J" -d '{"caption":"x","max_tokens":3}' "$A"
code 415 "Content-Type" -d '{}' "$A"
code 405 "not understood" -X DELETE "$url"
code 404 "no such address" "${url}nothing"
code 404 "no such part" --path-as-is "${url}parts/../../etc/passwd.step"
code 403 "localhost alone" -H 'Host: elsewhere.example' "${url}health"
python3 -c 'import json; print(json.dumps({"caption": "long " * 20000}))' > long.json
code 400 "65536 are the most" -H "$J" -d @long.json "$A"
python3 -c 'import json; print(json.dumps({"prompt": "#12=A(" * 3000}))' > long.json
code 400 "fit together with the answer" -H "$J" -d @long.json "$A"
head -c 3000000 /dev/zero | tr '\0' x > big.json
code 413 "over 1000000 bytes" -H "$J" --data-binary @big.json "$A"
load bytes
load slow
load gone
load all 50
files=$(ls /proc/$pid/fd | wc -l) memory=$(awk '/VmRSS/ { print $2 }' /proc/$pid/status)
load all 1000
load gone
for i in $(seq 600); do [ "$(ls /proc/$pid/fd | wc -l)" -le $((files + 3)) ] && break; sleep 0.1; done
[ "$(ls /proc/$pid/fd | wc -l)" -le $((files + 3)) ] || fail "descriptors leak: $files, then $(ls /proc/$pid/fd | wc -l)"
grown=$(($(awk '/VmRSS/ { print $2 }' /proc/$pid/status) - memory))
case $BIN in *sanitize*) most=800000 ;; *) most=60000 ;; esac # AddressSanitizer keeps what was freed for a while
[ $grown -lt $most ] || fail "memory grew by $grown kB with 1,000 requests"
echo "1,000 requests at once: $grown kB, $(ls /proc/$pid/fd | wc -l) descriptors of $files"
expect 3 "cannot listen on 127.0.0.1" "$BIN/serve" --model tiny --port "$(sed 's|.*:\([0-9]*\)/|\1|' <<< "$url")" --db none -q
# stopping: who is being served is served to the end, who comes then gets 503
curl -sN -m 60 -H "$J" -d '{"caption":"Last.","max_tokens":300,"stream":true,"temperature":1}' "$A" > last.txt & last=$!
sleep 0.3
down
wait $last
grep -q 'data: \[DONE\]' last.txt || fail "a running request was cut: $(tail -c 300 last.txt)"
[ "$(sqlite3 run.db "SELECT state FROM runs WHERE tool='serve'")" = done ] || fail "the run is not recorded as done"
[ "$(sqlite3 run.db "SELECT count(*) FROM items WHERE state='done'")" -ge 1000 ] || fail "requests are not recorded"
[ -z "$(ls tmp)" ] || fail "left in TMPDIR: $(ls tmp)"

up --batch 2 --max-waiting 10 --grammar off
code 400 "this server has --grammar off" -H "$J" -d '{"prompt":"x","grammar":"part21"}' "$A"
down
up --batch 2 --max-waiting 10
load some 200
down
no_numbers nan
model=nan; up
code 500 "scores are NaN or infinite" -H "$J" -d '{"prompt":"DATA;","max_tokens":5}' "$A"
code 200 "scores are NaN or infinite" -H "$J" -d '{"prompt":"DATA;","max_tokens":5,"stream":true}' "$A"
code 500 "scores are NaN or infinite" -H "$J" -d '{"caption":"A part.","temperature":1}' "$A"
code 200 nan "${url}v1/models"
down 1

# what it does not start with
expect 2 "--model DIR is due" "$BIN/serve" --db none -q
expect 3 "no such folder" "$BIN/serve" --model absent --db none -q
expect 2 "an IP address is due" "$BIN/serve" --model tiny --host example.com --db none -q
cp -r tiny step-llm-qwen3b
expect 2 "was trained with the retrieval prompt, a caption would get the plain one: give --rag" "$BIN/serve" --model step-llm-qwen3b --db none -q

browser=$(command -v chromium || command -v chromium-browser || command -v google-chrome)
[ -n "$browser" ] || { echo "SKIP: no Chromium: the page was not visited (the rest passed)"; exit 77; }
[ -f "$root/models/demo/model.safetensors" ] && [ -x "$BIN/step-render" ] || { echo "SKIP: no models/demo or no step-render: the page was not visited (the rest passed)"; exit 77; }
cp -r "$root/models/demo" demo
"$BIN/serve" --model demo --port 0 -j2 --db none > out.txt 2> err.txt & pid=$!
for i in $(seq 300); do url=$(head -n 1 out.txt); [ -n "$url" ] && break; sleep 0.1; done
mkdir browser
timeout 400 python3 "$root/tests/e2e/serve_page.py" "$url" "$browser" "$dir/browser" 300 > visit.txt 2>&1 || fail "in the browser: $(tail -n 5 visit.txt)"
grep -q 'visit ended' visit.txt || fail "in the browser: $(cat visit.txt)"
down
echo ok
