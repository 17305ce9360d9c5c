#!/bin/bash
# generate: the grammar makes valid parts of random weights, whatever the form and the budget; its share is recorded;
# checks and pictures; the prompt on a terminal; retrieval; the released adapters; bad input.
set -u
BIN=${BIN:-build/bin}
root=$(cd "$(dirname "$0")/../.." && pwd)
ENCODER=${ENCODER:-$root/third_party/minilm}
case $ENCODER in /*) ;; *) ENCODER=$root/$ENCODER ;; esac
needs="generate sft"
. "$root/tests/e2e/with_tiny_model.sh"
cp arch/tokenizer*.json wide/
train --model wide --out widened --method full --init random
train --model tiny --out adapter -o lora.r=2
rm -f adapter/prompt.json
python3 - <<'P'
import json
rows = [{"id_original": f"{i:04d}", "caption": f"Part {i}.", "output": "DATA;"} for i in range(12)]
json.dump(rows, open("captions.json", "w"))
P

# ---- random weights, every form and several budgets: all valid, nothing dangles, the share recorded
for kind in "children-first 90" "children-first 400" "parent-first 300" "reference 250" "typed 300" "compact 300"; do
    set -- $kind
    more="--order $1"; model=tiny
    [ "$1" = typed ] && more="--order children-first --typed-references"
    [ "$1" = compact ] && { more=; model=compact; cp -r tiny compact; echo '{"template": "plain", "form": "compact"}' > compact/prompt.json; }
    "$BIN/generate" --model $model --captions captions.json --no-retrieval --out "g-$1-$2" --grammar part21 $more --max-new-tokens "$2" --temperature 1 \
        --batch 4 -j2 --db g.db --json -q > g.jsonl 2> err.txt || fail "generate $kind: $? $(cat err.txt)"
    "$BIN/complete-ratio" "g-$1-$2" --db none -q --json | tail -n 1 > cr.json
    grep -q '"total":12,"complete":12,"ratio":1' cr.json || fail "$kind: $(cat cr.json)"
    python3 - "$1" "$2" <<'P' || fail "$kind"
import json, sys
rows = [json.loads(l) for l in open("g.jsonl")]
assert len(rows) == 12
for r in rows:
    assert r["valid"] and r["dangling"] == 0 and r["entities"] > 0 and r["tokens"] <= int(sys.argv[2]), r
    assert r["changed"] > 0 and 0 < r["changed_share"] <= 1 and abs(r["changed_share"] - r["changed"] / r["tokens"]) < 1e-9, r
    assert "no reference dangles" in r["checks"] and r["finish_reason"] == "stop", r
assert len({r["text"] for r in rows}) > 6, "all the same"
P
done
[ "$(sqlite3 g.db "SELECT count(*) FROM metrics WHERE name='grammar_changed_share' AND value > 0 AND value <= 1")" = 6 ] || fail "the share is not in runs.db"
# the same on the batch, with drafts or without
for b in 1 5; do
    "$BIN/generate" --model tiny --captions captions.json --no-retrieval --out b$b --grammar part21 --max-new-tokens 200 --temperature 1 --batch $b --draft $((b * 3 - 3)) -j2 --db none -q || fail "batch $b: $?"
done
diff -r b1 b5 > /dev/null || fail "the batch or drafts change the texts"

# ---- one caption: file, checks, picture; on a terminal it asks
"$BIN/generate" --model tiny --caption "A part." --grammar part21 --max-new-tokens 150 --db none -q > one.txt 2> err.txt || fail "--caption: $? $(cat err.txt)"
grep -q '^parts/part.step  (.* instances, valid Part 21, no reference dangles; ' one.txt || fail "--caption says $(cat one.txt)"
[ -s parts/part.step ] && [ -s parts/raw/part.txt ] || fail "no part"
cat > ask.py <<'P'
import os, pty, select, sys, time
pid, fd = pty.fork()
if pid == 0:
    os.execv(sys.argv[1], sys.argv[1:])
seen, sent, until = b"", 0, time.time() + 90
lines = [b"A part.\n", b"Another.\n", b"\n"]
while time.time() < until:
    if select.select([fd], [], [], 0.2)[0]:
        try:
            part = os.read(fd, 65536)
        except OSError:
            break
        if not part:
            break
        seen += part
    if sent < 3 and seen.count(b"caption (empty: end)> ") > sent:
        os.write(fd, lines[sent])
        sent += 1
sys.stdout.write(seen.decode(errors="replace"))
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
P
python3 ask.py "$BIN/generate" --model tiny --grammar part21 --max-new-tokens 150 --out asked --preview off --db none > asked.txt || fail "asking: $? $(cat asked.txt)"
[ -s asked/part-1.step ] && [ -s asked/part-2.step ] && [ ! -e asked/part-3.step ] || fail "asked twice: $(ls asked) $(cat asked.txt)"

# ---- retrieval: the nearest that has a part and is not the part itself; embeddings are kept, and noticed to be stale
if [ -f "$ENCODER/model.safetensors" ]; then
    python3 - <<'P'
import json
said = ["A round flange with six bolt holes.", "A flange, round, with six holes for bolts.", "A round flange.", "A gear wheel with twelve teeth.", "A long bracket."]
json.dump([{"id_original": f"{i:04d}", "caption": s, "output": "" if i == 1 else f"DATA;\n#1=A{i}();\nENDSEC;\nEND-ISO-10303-21;"} for i, s in enumerate(said)], open("lib.json", "w"))
json.dump([{"id_original": "0000", "caption": said[0], "output": "DATA;"}, {"id_original": "x", "caption": said[0], "output": "DATA;"}], open("q.json", "w"))
P
    r=("$BIN/generate" --rag lib.json --encoder "$ENCODER" --db none -q --json --retrieve-only)
    "${r[@]}" --captions q.json > r.jsonl || fail "--retrieve-only: $?"
    python3 - <<'P' || fail "retrieved: $(cat r.jsonl)"
import json
a, b = [json.loads(l) for l in open("r.jsonl")]
assert a["id_retrieve"] == "0002", a       # not itself, and 0001 has no part
assert b["id_retrieve"] == "0000" and b["cosine"] > 0.999, b
assert [n["id"] for n in b["nearest"]][:2] == ["0000", "0001"] and not b["nearest"][1]["has_part"] and len(b["nearest"]) == 5, b
P
    [ -f lib.json.embeddings.safetensors ] || fail "embeddings are not kept"
    stamp=$(stat -c %Y%s lib.json.embeddings.safetensors; sha256sum < lib.json.embeddings.safetensors)
    "${r[@]}" --caption "teeth" > r2.jsonl || fail "again: $?"
    [ "$stamp" = "$(stat -c %Y%s lib.json.embeddings.safetensors; sha256sum < lib.json.embeddings.safetensors)" ] || fail "embeddings were made again"
    grep -q '"id_retrieve":"0003"' r2.jsonl || fail "teeth: $(cat r2.jsonl)"
    sed -i 's/A long bracket/A spoon with teeth/' lib.json
    "${r[@]}" --caption "A spoon with teeth." > r3.jsonl || fail "changed: $?"
    grep -q '"id_retrieve":"0004"' r3.jsonl || fail "stale embeddings were used: $(cat r3.jsonl)"
    expect 2 "needs --encoder" "$BIN/generate" --model tiny --caption x --rag lib.json --db none -q
    "$BIN/generate" --model tiny --captions q.json --rag lib.json --encoder "$ENCODER" --out rag --max-new-tokens 20 --db none -q --json > rag.jsonl || fail "--rag: $?"
    [ "$(grep -c '"id_retrieve":"000[02]"' rag.jsonl)" = 2 ] || fail "--rag: $(cat rag.jsonl)"
    [ "$(head -n 1 rag.jsonl | sed 's/.*"prompt_tokens":\([0-9]*\).*/\1/')" -gt 80 ] || fail "the retrieved part is not in the prompt"
else
    echo "no encoder in $ENCODER: retrieval was not tested"
fi

# ---- the adapters that were released: by name; a retrieval one without --rag is refused with the reason
for name in step-llm-llama3b step-llm-qwen3b models--JasonShiii--step-llm-qwen3b/snapshots/1; do
    mkdir -p "$(dirname "$name")"; cp -r adapter "$name"
    expect 2 "$name was trained with the retrieval prompt, part would get the plain one: give --rag PAIRS --encoder DIR" \
        "$BIN/generate" --model tiny --adapter "$name" --caption "A part." --out no --db none -q
done
cp -r adapter step-llm-llama3b-no_rag
"$BIN/generate" --model tiny --adapter step-llm-llama3b-no_rag --caption "A part." --out released --grammar part21 --max-new-tokens 150 --preview off --db none -q > released.txt 2> err.txt || fail "no_rag: $(cat err.txt)"
expect 2 "was trained with the plain prompt" "$BIN/generate" --model tiny --adapter step-llm-llama3b-no_rag --captions data/val.json --out no --db none -q
"$BIN/merge-lora" --model tiny --adapter step-llm-qwen3b --out merged-release --db none -q > /dev/null 2> err.txt || fail "merge of a released adapter: $(cat err.txt)"
grep -q '"release": "JasonShiii/step-llm-qwen3b"' merged-release/prompt.json || fail "the merged model does not say what it is: $(cat merged-release/prompt.json)"
expect 2 "merged-release was trained with the retrieval prompt" "$BIN/generate" --model merged-release --caption "A part." --out no --db none -q
cp -r adapter told; echo '{"template": "retrieval"}' > told/prompt.json
expect 2 "give --rag" "$BIN/generate" --model tiny --adapter told --caption "A part." --out no --db none -q
echo '{"template": "haiku"}' > told/prompt.json
expect 3 "template 'haiku' is not known" "$BIN/generate" --model tiny --adapter told --caption "A part." --out no --db none -q

# ---- an adapter beside the weights says what it says merged
train --model tiny --out strong -o lora.r=4 -o lr=3e-2 --max-steps 12; rm -f strong/prompt.json
for how in "none" "merged --adapter strong" "beside --adapter strong --unmerged"; do
    set -- $how
    "$BIN/generate" --model tiny --captions captions.json --no-retrieval --out "w-$1" --limit 4 --max-new-tokens 120 --db none -q ${2:+"${@:2}"} > /dev/null 2> err.txt || fail "$how: $?"
done
diff -r w-merged w-beside > /dev/null || fail "an adapter says something else when it is not merged"
! diff -r w-none w-beside > /dev/null || fail "the adapter changes nothing"

# ---- again: what was made stays, but for another caption or other weights it is made anew
again() { # how many are made
    "$BIN/generate" --model renewed --captions renewed.json --no-retrieval --out renewed-parts --max-new-tokens 30 --batch 2 --db renewed.db --json -q > /dev/null 2> err.txt || fail "again: $? $(cat err.txt)"
    made=$(find renewed-parts -name '*.step' -newer mark | wc -l); touch mark
    [ "$made" = "$1" ] || fail "again: $made parts made, not $1"
}
cp -r tiny renewed; python3 -c 'import json; print(json.dumps(json.load(open("captions.json"))[:3]))' > renewed.json
touch -d '1 minute ago' mark
again 3; again 0
sed -i 's/Part 1\./A plate./' renewed.json
again 1; again 0
"$BIN/merge-lora" --model tiny --adapter strong --out merged-strong --db none -q > /dev/null && cp merged-strong/model.safetensors renewed/ || fail "merge-lora"
again 3; again 0

# ---- bad input: one line, the documented code, nothing written
g=("$BIN/generate" --model tiny --out no --db none -q)
expect 2 "--caption or --captions is due" "${g[@]}"
expect 2 "not both" "${g[@]}" --caption x --captions captions.json
expect 2 "the caption is empty" "${g[@]}" --caption ""
expect 2 "the caption is empty" "${g[@]}" --caption $' \n\t'
expect 2 "the caption has 100000 bytes, 65536 are the most" "${g[@]}" --caption "$(printf '%0100000d' 7)"
expect 2 "is not UTF-8" "${g[@]}" --caption $'a \xff\xfe part'
expect 3 "absent: no such folder" "$BIN/generate" --model absent --caption x --out no --db none -q
expect 3 "absent: no such folder" "${g[@]}" --adapter absent --caption x
expect 3 "absent.tsv" "${g[@]}" --caption x --grammar part21 --schema absent.tsv
echo "s	A	1" > bad.tsv
expect 3 "bad.tsv" "${g[@]}" --caption x --grammar part21 --schema bad.tsv
expect 1 "tokens are too few for any text: the grammar needs" "${g[@]}" --caption x --grammar part21 --max-new-tokens 3
[ ! -e no ] || fail "something was written: $(ls -R no)"
train --model widened --out wideadapter -o lora.r=2; rm -f wideadapter/prompt.json
"$BIN/generate" --model tiny --adapter wideadapter --caption x --out no --db none -q > out.txt 2> err.txt; rc=$?
[ $rc = 3 ] && [ "$(wc -l < err.txt)" = 1 ] && grep -q wideadapter err.txt || fail "an adapter for another base: exit $rc, $(cat err.txt)"
"$BIN/tokenizer-train" "$root/datasets/sample" --out large --vocab-size 700 --db none -q > /dev/null || fail "tokenizer-train"
expect 3 "tokenizer and model do not fit: 700 ids, 600 rows" "${g[@]}" --tokenizer large --caption x
"$BIN/merge-lora" --model tiny --adapter adapter --out shards --max-shard 100k --db none -q > /dev/null || fail "merge-lora"
rm -f shards/prompt.json; missing=$(cd shards && ls model-*.safetensors | head -n 1); rm "shards/$missing"
expect 3 "$missing" "$BIN/generate" --model shards --caption x --out no --db none -q
head -c 1000 tiny/model.safetensors > cut; cp -r tiny half; cp cut half/model.safetensors
expect 3 "half/model.safetensors" "$BIN/generate" --model half --caption x --out no --db none -q
python3 -c "import torch, sys; sys.exit(not torch.cuda.is_available())" 2> /dev/null || \
    { [ -e /dev/nvidia0 ] || expect 3 "take --device cpu" "${g[@]}" --caption x --device cuda; }
# a bad record is an item's failure; the others are made
python3 - <<'P'
import json
json.dump([{"id_original": "good", "caption": "Part.", "output": "DATA;"}, {"id_original": "lengthy", "caption": "word " * 2000, "output": "DATA;"},
           {"id_original": "vast", "caption": "x" * 100000, "output": "DATA;"}, {"id_original": "last", "caption": "Part.", "output": "DATA;"},
           {"id_original": "good", "caption": "Another.", "output": "DATA;"}, {"id_original": "none", "caption": " ", "output": "DATA;"}], open("mixed.json", "w"))
P
"$BIN/generate" --model tiny --captions mixed.json --out mixed --max-new-tokens 20 --db m.db -q > /dev/null 2> err.txt; rc=$?
[ $rc = 1 ] || fail "mixed: exit $rc ($(cat err.txt))"
[ "$(cd mixed && echo *.step)" = "good.step last.step" ] || fail "mixed: $(ls mixed)"
grep -q "lengthy: too_long: the prompt has" err.txt && grep -q "vast: too_long: the caption has 100000 bytes" err.txt || fail "mixed: $(cat err.txt)"
grep -q "good (caption 5): twice: an earlier caption has the id good" err.txt && grep -q "none: empty: the caption is empty" err.txt || fail "mixed: $(cat err.txt)"
[ "$(sqlite3 m.db "SELECT group_concat(item || ' ' || state, ', ') FROM (SELECT * FROM items ORDER BY item)")" = "good done, good (caption 5) failed, last done, lengthy failed, none failed, vast failed" ] || fail "runs.db of mixed"
# weights that are no numbers: an error of the item, no text
no_numbers nan
for how in "" "--grammar part21" "--temperature 1"; do
    expect 1 "part: not_finite: the model's scores are NaN or infinite" "$BIN/generate" --model nan --caption "A part." --out no --db none -q $how
done
[ ! -e no ] || fail "NaN made something: $(ls -R no)"
echo ok
