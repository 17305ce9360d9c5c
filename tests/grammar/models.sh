#!/bin/bash
# Models of random weights under --grammar part21, through generate as it is: every text is whole and nothing in it dangles, in every order,
# with every tokenizer given, at tight and wide token budgets, greedy and sampled hot.  A line for each kind; exit 1 if a text is not whole.
#
#   tests/grammar/models.sh BUILD TOKENIZER_DIR...      (N= captions for each kind, 120)
set -u
BIN=$PWD/$1/bin root=$(cd "$(dirname "$0")/../.." && pwd) needs="generate sft complete-ratio" n=${N:-120} bad=0 i=0
shift
tokenizers=()
for t; do tokenizers+=("$(cd "$t" && pwd)"); done
. "$root/tests/e2e/with_tiny_model.sh"
python3 - "$n" << 'P'
import json, sys
json.dump([{"id_original": f"{i:05d}", "caption": f"Part {i} of {i * 7919 % 101} and {i * 31 % 17}.", "output": "DATA;"} for i in range(int(sys.argv[1]))], open("captions.json", "w"))
P
for t in "${tokenizers[@]}"; do
    i=$((i + 1))
    mkdir "arch$i" && cp "$t"/tokenizer*.json "arch$i"
    python3 - "arch$i" << 'P'
import json, sys
a = sys.argv[1]
c, t = json.load(open("arch/config.json")), json.load(open(a + "/tokenizer.json"))
c |= {"vocab_size": max(list(t["model"]["vocab"].values()) + [k["id"] for k in t.get("added_tokens", [])]) + 1, "max_position_embeddings": 8192, "hidden_size": 32,
      "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 64}
json.dump(c, open(a + "/config.json", "w"))
P
    train --model "arch$i" --out model --method full --init random
    for kind in children-first parent-first reference typed compact; do
        more=(--order "$kind")
        rm -f model/prompt.json
        [ $kind != typed ] || more=(--order children-first --typed-references)
        [ $kind != compact ] || { more=(); echo '{"template": "plain", "form": "compact"}' > model/prompt.json; }
        for budget in 70 300 1500; do
            for heat in 0 1 3; do
                k=$n; [ $heat != 0 ] || k=$((n / 10 + 1)); [ $budget != 1500 ] || k=$((k / 3 + 1))
                rm -rf out
                "$BIN/generate" --model model --captions captions.json --limit "$k" --no-retrieval --out out --grammar part21 "${more[@]}" --max-new-tokens $budget \
                    --temperature $heat --seed $budget --batch 4 --db none --json -q > g.jsonl 2> err.txt || fail "$t, $kind, $budget tokens: $(cat err.txt)"
                "$BIN/complete-ratio" out --db none -q --json 2> err.txt | tail -n 1 > cr.json
                python3 - "$(basename "$t"), $kind, at most $budget tokens, temperature $heat" "$k" << 'P' || bad=1
import json, sys
r, cr = [json.loads(l) for l in open("g.jsonl")], json.load(open("cr.json"))
bad = [x["id"] for x in r if not x["valid"] or x["dangling"] or not x["entities"] or x["finish_reason"] != "stop"]
n = sum(x["tokens"] for x in r)
print(f"{sys.argv[1]}: {cr['complete']} of {sys.argv[2]} whole, {len(bad)} bad {bad[:3] or ''} {n} tokens, {100 * sum(x['changed'] for x in r) / n:.0f} % changed", flush=True)
sys.exit(bool(bad) or cr["complete"] != int(sys.argv[2]))
P
            done
        done
    done
    rm -rf model "arch$i"
done
exit $bad
