#!/bin/bash
# The paper's questions, asked of small models: what do retrieval, the order of the instances, annotations,
# rounding and a compact form change?  Every row gets the same parts, the same model of 7 M weights, the same
# number of steps and of tokens a step.  Stopped or killed, the same command goes on where it was.
#
#   W=runs/ablation    work folder; its runs.db holds the results, its report.html shows the parts
#   PARTS=13000        made by synth, less 200 for the test set and 100 for validation
#   STEPS=1600         TOKENS=32000 a step
#   ROWS='named ...'   only these (the table below)
#   STAGES='data train generate score'     train and generate want a GPU, score wants OpenCASCADE: they may run on different machines
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/common.sh
W=${W:-runs/ablation}
PARTS=${PARTS:-20000} STEPS=${STEPS:-1600} TOKENS=${TOKENS:-32000}
STAGES=${STAGES:-data train generate score}
db=${DB:-$W/runs.db}
encoder=${ENCODER:-third_party/minilm}

#    row              written by   rounding   restructured                          tokens  retrieval  label
table="named            lean         strict     --order=children-first                step    no         children first
retrieval        lean         strict     --order=children-first                step    yes        children first, with retrieval
parent           lean         strict     --order=parent-first                  step    no         parents first
bare             lean         strict     --no-annotations                      step    no         children first, no annotations
compact          lean         strict     --compact                             step    no         children first, compact
lean-tokens      lean         strict     --compact,--no-annotations            lean    no         compact, no annotations, lean tokens
geometry-first   lean         strict     --compact,--no-annotations,--geometry-first lean no      compact, no annotations, lean tokens, geometry first
shipped          lean         strict     --compact,--no-annotations,--geometry-first,--relative lean no compact, geometry first, points as differences
native           opencascade  strict     --order=original                      step    no         OpenCASCADE's file, its order
native-children  opencascade  strict     --order=children-first                step    no         OpenCASCADE's file, children first
native-reference opencascade  reference  --order=children-first                step    no         OpenCASCADE's file, children first, reference rounding"
ROWS=${ROWS:-$(awk '{print $1}' <<< "$table")}

columns() { # row: sets writer rounding how pattern rag label
    read -r _ writer rounding how pattern rag label <<< "$(awk -v r="$1" '$1 == r' <<< "$table")"
    [ -n "$label" ] || die "no row '$1'; there are: $(awk '{print $1}' <<< "$table" | tr '\n' ' ')"
}

parts() { # writer: the parts, made once
    [ -f "$W/$1.jsonl" ] && return
    mkdir -p "$W"
    tool synth --count "$PARTS" --seed 20260 --exclude-families pulley,u-bracket,stairs --captions varied --writer "$1" \
        --read-back 0 --out "$W/$1" --json > "$W/.$1.jsonl"
    mv "$W/.$1.jsonl" "$W/$1.jsonl"
}

data() { # row
    local d=$W/$1
    [ -f "$d/model/tokenizer.json" ] && return
    columns "$1"
    parts lean
    parts "$writer"
    tool step-round "$W/$writer/steps" --out "$d/rounded" --mode "$rounding"
    # shellcheck disable=SC2086
    tool step-restructure "$d/rounded" --out "$d/restructured" ${how//,/ }
    # The same seed and keys choose the same parts in every row.
    tool rag-pairs --captions "$W/lean/captions.csv" --steps "$d/restructured" --encoder "$encoder" --top-k "$([ "$rag" = yes ] && echo 1 || echo 0)" \
        --out "$d/pairs.json"
    tool split --in "$d/pairs.json" --out "$d/data" --test ${TEST:-200} --val ${VAL:-100} --unique --group-by sizes --parts "$W/lean.jsonl" --steps "$W/lean/steps"
    mkdir -p "$d/model"
    cp configs/ablation/config.json "$d/model"
    tool tokenizer-train "$d/data/train.json" --out "$d/model" --vocab-size 1024 --pattern "$pattern"
}

train() { # row
    local d=$W/$1 each resume=
    columns "$1"
    if [ ! -f "$d/out/model.safetensors" ]; then
        # as many records as make TOKENS on average
        each=$(tool token-filter --tokenizer "$d/model" --max-tokens 8000 "$([ "$rag" = yes ] && echo --rag || echo --no-rag)" \
            --in "$d/data/val.json" --out "$d/val-fit.json" --json | tail -n 1 | sed 's/.*"kept":\([0-9]*\),.*"kept_tokens":\([0-9]*\).*/\1 \2/' |
            awk -v t="$TOKENS" '{ n = t * $1 / $2; print n < 1 ? 1 : int(n + 0.5) }')
        ls -d "$d"/out/checkpoint-* > /dev/null 2>&1 && resume=--resume
        tool sft --config configs/ablation.conf --model "$d/model" --data "$d/data" --out "$d/out" $resume --label "$label" \
            "$([ "$rag" = yes ] && echo --rag || echo --no-rag)" --batch-size "$each" --max-steps "$STEPS" --eval-steps "$STEPS" ${SFT_ARGS:-}
    fi
}

generate() { # row
    local d=$W/$1
    columns "$1"
    tool generate --model "$d/out" --captions "$d/data/test.json" $([ "$rag" = yes ] || echo --no-retrieval) --out "$d/parts" --label "$label" \
        --batch 200 --max-new-tokens 5000 ${GENERATE_ARGS:-}
}

score() { # row
    local d=$W/$1
    columns "$1"
    tool complete-ratio --label "$label" "$d/parts"
    tool renderability --label "$label" "$d/parts"
    tool entity-stats --label "$label" "$d/parts"
    tool chamfer --label "$label" --pred "$d/parts" --truth "$d/data/truth"
}

for stage in $STAGES; do
    for row in $ROWS; do
        say "$stage: $row"
        $stage "$row"
    done
done
[[ " $STAGES " != *" score "* ]] || "$b/report" --db "$db"
