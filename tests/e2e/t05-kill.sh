#!/bin/bash
# Every tool that does work, killed with SIGKILL at random moments and started again: the same files, the same
# results and the same records as of an undisturbed run, no finished item worked on twice, nothing left over.
#
#   KILLS=2      kills of each tool          SEED=N   of the moments       TOOLS="synth chamfer"  these only
#
# `make torture` runs it with KILLS=25.
set -u
BIN=${BIN:-build/bin}
root=$(cd "$(dirname "$0")/../.." && pwd)
case $BIN in /*) ;; *) BIN=$PWD/$BIN ;; esac
kills=${KILLS:-2} seed=${SEED:-$RANDOM} only=${TOOLS:-}
RANDOM=$seed
dir=$(mktemp -d) server=
trap '[ -z "$server" ] || kill $server; rm -rf "$dir"' EXIT
fail() { echo "FAIL: $* (SEED=$seed)"; [ ! -s "$dir/err" ] || tail -n 5 "$dir/err"; exit 1; }
cd "$dir" || exit 1
export PATH=$BIN:$PATH OMP_NUM_THREADS=1
total=0 tools=0

# Results as they must agree: without what differs from run to run.
# (In how many steps generate drafted a text depends on what it has drafted before since it was started.)
plain() { sed -E 's/"(steps|[a-z_]*seconds?|[a-z_]*_s|[a-z_]*_mb)":[-0-9.e+]+,?//g' "$1" | sort; }
now() { date +%s%N; }

# kill_it NAME COMMAND: NAME is the tool.  Runs it undisturbed in NAME/whole, with kills in NAME/cut.  The command writes below its
# folder, records in r.db, and reads ../../in.
kill_it() {
    local name=$1 t0 ms wait pid i n=0 rc before last again k runs killed done newest='run_id=(SELECT max(id) FROM runs)'
    [ -x "$BIN/$name" ] || { echo "$name is not built"; return; }
    [ -z "$only" ] || [[ " $only " = *" $name "* ]] || return 0
    mkdir -p "$name/whole" "$name/cut"
    t0=$(now)
    (cd "$name/whole" && eval "$2" > ../whole.out 2> "$dir/err"); rc=$?
    ms=$((($(now) - t0) / 1000000))
    [ $rc -le 1 ] || fail "$name: exit $rc undisturbed"
    for ((i = 0; i < kills; i++)); do
        # The command is one process, so that the signal meets the tool itself and no shell.
        (cd "$name/cut" && eval "exec $2" > ../cut.out 2> "$dir/err") & pid=$!
        wait=$((RANDOM * ms / 32768))
        sleep "$((wait / 1000)).$(printf %03d $((wait % 1000)))"
        kill -9 $pid 2> /dev/null && n=$((n + 1))
        wait $pid 2> /dev/null; k=$?
        [ $k -eq 137 ] || break # it came to its end
        [ "$(sqlite3 "$name/cut/r.db" "SELECT count(*) FROM runs WHERE state='done'" 2> /dev/null || echo 0)" = 0 ] || break
    done
    rc=$k runs=1 killed=$([ $k -eq 137 ] && echo yes || echo no)
    before=$(sqlite3 "$name/cut/r.db" "SELECT count(*) FROM items WHERE state='done'" 2> /dev/null || echo 0)
    # Met between its last record and its exit: what measures begins a second run then.
    if [ $k -eq 137 ] && [ "$(sqlite3 "$name/cut/r.db" "SELECT count(*) FROM runs WHERE state='done'" 2> /dev/null)" = 1 ]; then
        runs='[12]' before=0
    fi
    if [ $k -eq 137 ]; then
        (cd "$name/cut" && eval "exec $2" > ../cut.out 2> "$dir/err"); rc=$?
    fi
    [ $rc -le 1 ] || fail "$name: exit $rc when started again after $n kills"
    diff -rq -x 'r.db*' -x metrics.csv -x tensorboard "$name/whole" "$name/cut" > "$dir/diff" || fail "$name: after $n kills the outputs differ: $(head -n 3 "$dir/diff")"
    # (sft tells of the steps of this start alone; its curve is compared below, and holds times.)
    # (abc-fetch tells of the models of a chunk that was done before only in the chunk's line.)
    [ $name != abc-fetch ] || sed -i '/^{"model"/d' "$name/whole.out" "$name/cut.out"
    [ $name = sft ] || diff <(plain "$name/whole.out") <(plain "$name/cut.out") > "$dir/diff" || fail "$name: after $n kills the results differ: $(head -n 4 "$dir/diff")"
    [ -z "$(find "$name/cut" -name '.*.part')" ] || fail "$name: left over: $(find "$name/cut" -name '.*.part')"
    for i in whole cut; do
        sqlite3 "$name/$i/r.db" "SELECT item, state, reason FROM items WHERE $newest ORDER BY 1" > "$name/$i.items"
        sqlite3 "$name/$i/r.db" "SELECT step, name, value FROM metrics WHERE $newest AND name NOT LIKE '%second%' AND name NOT LIKE '%per_s%' ORDER BY 1, 2" > "$name/$i.metrics"
        k=$(sqlite3 "$name/$i/r.db" 'SELECT count(*), min(state), max(state) FROM runs')
        [[ "$k" = $runs"|done|done" ]] || fail "$name: runs of $i: $(sqlite3 "$name/$i/r.db" 'SELECT id, state, error FROM runs')"
    done
    cmp -s "$name/whole.items" "$name/cut.items" || fail "$name: other items are recorded: $(diff "$name/whole.items" "$name/cut.items" | head -n 4)"
    cmp -s "$name/whole.metrics" "$name/cut.metrics" || fail "$name: other metrics are recorded: $(diff "$name/whole.metrics" "$name/cut.metrics" | head -n 4)"
    last=$(sqlite3 "$name/cut/r.db" "SELECT attempts FROM runs WHERE id=(SELECT max(id) FROM runs)")
    again=$(sqlite3 "$name/cut/r.db" "SELECT count(*) FROM items WHERE $newest AND attempt=$last AND state='done'")
    i=$(wc -l < "$name/cut.items")
    done=$(grep -c '|done|' "$name/cut.items")
    [ $killed = no ] || [ "$again" -le $((done - before)) ] || fail "$name: $again items in the last start, $((done - before)) were left"
    [ "$(sqlite3 "$name/cut/r.db" 'PRAGMA integrity_check')" = ok ] || fail "$name: the database is damaged"
    total=$((total + n)) tools=$((tools + 1))
    printf '%-28s %5d ms  %2d kills, %d of %d items done before the last start\n' "$name" $ms $n "$before" "$i"
}

# ---- what they work on
mkdir -p in/steps in/few in/many
for f in "$root"/datasets/sample/steps/000000[0-5]*.step; do cp "$f" in/steps/; done
cp in/steps/0000000*.step in/few
for r in 1 2 3 4 5; do for f in in/steps/*.step; do cp "$f" "in/many/$r-${f##*/}"; done; done
cp "$root/datasets/sample/captions.csv" in/
head -c 2000 in/steps/00000003.step > in/many/cut.step # one that fails, each time
step-restructure in/steps --out in/dfs --db none -q || fail "step-restructure"
kill_it step-round "step-round ../../in/many --out out --db r.db -q -j2 --json"
kill_it step-restructure "step-restructure ../../in/many --out out --db r.db -q -j2 --json"
kill_it step-restore "step-restore ../../in/many --out out --db r.db -q -j2 --json"
kill_it complete-ratio "complete-ratio ../../in/many --db r.db -q --json -j1"
kill_it entity-stats "entity-stats ../../in/many --db r.db -q --json -j1"
kill_it synth "synth --count 16 --seed 7 --out out --db r.db -q --json -j2"
kill_it step-render "step-render ../../in/few --out out --views 2 --size 200 --db r.db -q --json -j2"
kill_it renderability "renderability ../../in/few --db r.db -q --json -j2"
kill_it chamfer "chamfer --pred ../../in/few --truth ../../in/few --points 500 --db r.db -q --json -j2"
kill_it geometry-reward "geometry-reward --truth ../../in/steps/00000000.step --candidates ../../in/few --db r.db -q --json -j2"
kill_it tokenizer-train "tokenizer-train ../../in/steps --captions ../../in/captions.csv --out out --vocab-size 400 --db r.db -q --json"

python3 "$root/tests/e2e/tiny_model.py" "$root" in || fail "python3 is needed"
tokenizer-train in/steps --out in/arch --vocab-size 600 --db none -q > /dev/null || fail "tokenizer-train"
python3 - <<'P' || fail "python3 is needed"
import json
rows = json.load(open("in/data/many.json"))
json.dump([dict(r, id_original=f"{k:04d}-{r['id_original']}") for k in range(8) for r in rows], open("in/pairs.json", "w"), indent=4)
P
kill_it token-filter "token-filter --tokenizer ../../in/arch --in ../../in/pairs.json --out out.json --max-tokens 450 --db r.db -q --json -j2"
kill_it split "split --in ../../in/pairs.json --out out --steps ../../in/steps --db r.db -q --json"
if [ -f "${ENCODER:=$root/third_party/minilm}/model.safetensors" ]; then
    kill_it rag-pairs "rag-pairs --captions ../../in/captions.csv --steps ../../in/dfs --encoder '$ENCODER' --out out.json --db r.db -q --json"
fi
if [ -x "$BIN/sft" ]; then
    sft --model in/arch --data in/data --out in/base --method full --init random --max-steps 4 --warmup-steps 1 --batch-size 2 --accumulation 1 --db none -q || fail "sft"
    kill_it sft "sft --model ../../in/base --data ../../in/data --out out --resume --max-steps 12 --save-steps 3 --warmup-steps 1 --batch-size 2 --accumulation 1 --json --db r.db -q -j2 --deterministic"
    cp -r sft/whole/out in/adapter 2> /dev/null ||
        sft --model in/base --data in/data --out in/adapter --max-steps 4 --warmup-steps 1 --batch-size 2 --accumulation 1 --save-steps 2 --db none -q || fail "sft"
    kill_it merge-lora "merge-lora --model ../../in/base --adapter ../../in/adapter --out out --db r.db -q --json"
    kill_it eval-loss "eval-loss --model ../../in/base --checkpoints ../../in/adapter --data ../../in/data/val.json --db r.db -q --json -j2"
    kill_it generate "generate --model ../../in/base --adapter ../../in/adapter --captions ../../in/data/val.json --out out --max-new-tokens 40 --batch 4 --db r.db -q --json -j2"
fi

# ---- those that ask over the network: a server on this machine
unset http_proxy https_proxy all_proxy HF_TOKEN OPENAI_API_KEY
export no_proxy='*' NO_PROXY='*'
for c in 0 1 2; do
    for i in $(seq -w 12); do
        mkdir -p "in/chunk/$c/000${c}00$i"
        cat in/steps/*.step > "in/chunk/$c/000${c}00$i/x_step_000.step"
    done
    mkdir -p in/web
    python3 "$root/tests/e2e/make_7z.py" in/web/abc_000${c}_step_v00.7z in/chunk/$c || fail "make_7z"
done
mkdir -p in/web/hub/own/slow
for i in 1 2 3 4 5 6; do head -c 600000 /dev/urandom > in/web/hub/own/slow/$i.safetensors; echo "$i" > in/web/hub/own/slow/$i.json; done
python3 "$root/tests/e2e/loopback_server.py" in/web in/port in/log & server=$!
for i in $(seq 100); do [ -e in/port ] && break; sleep 0.05; done
url=http://127.0.0.1:$(cat in/port) || fail "no server"
speed=$(stat -c %s in/web/abc_0000_step_v00.7z) # a second for an archive
for c in 0 1 2; do echo "$url/!slow=$speed/abc_000${c}_step_v00.7z abc_000${c}_step_v00.7z"; done > in/list
kill_it abc-fetch "abc-fetch --chunks all --list ../../in/list --out out --db r.db -q --json -j2"
kill_it hub-fetch "hub-fetch own/slow --endpoint $url --out out --db r.db -q --json -j2"
if [ -x "$BIN/step-render" ]; then
    step-render in/few --out in/images --views 1 --size 64 --no-glb --db none -q > /dev/null || fail "step-render"
    kill_it caption "caption --images ../../in/images --out out.csv --endpoint $url/v1 --model slow --db r.db -q --json -j2"
fi
# A killed tool takes its worker processes with it.
for i in 1 2 3 4 5 6 7 8 9 10; do
    left=$(for p in /proc/[0-9]*; do [[ "$(readlink "$p/cwd" 2> /dev/null)" = "$dir"/*/cut ]] && tr '\0' ' ' < "$p/cmdline"; done)
    [ -n "$left" ] || break
    sleep 0.3
done
[ -z "$left" ] || fail "processes of killed tools live on: $left"
[ $tools -gt 0 ] || fail "no tool was killed"
echo "ok: $tools tools, $total kills, SEED=$seed"
