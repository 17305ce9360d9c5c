#!/bin/bash
# make test-grammar: the grammar against files and against random choices, at length.
#   B build folder; TOKENIZERS folders; SHARED with the golden corpus; N random texts of each kind
set -u
B=${B:-build} N=${N:-500} SHARED=${SHARED:-../shared}
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
bad=0
mkdir "$dir/in" && cp datasets/sample/steps/*.step "$dir/in"
"$B/bin/synth" --count "${SYNTH:-300}" --seed 4711 --out "$dir/synth" --db none -q > /dev/null && cp "$dir"/synth/steps/*.step "$dir/in"
if [ -f "$SHARED/golden/prep/files.tar.xz" ]; then
    mkdir "$dir/golden" && tar -xJf "$SHARED/golden/prep/files.tar.xz" -C "$dir/golden" && cp "$dir"/golden/src/*.step "$dir/in"
else
    echo "SKIP: no golden corpus in $SHARED; the sample and made-up parts alone"
fi
restructure() { "$B/bin/step-restructure" "$dir/in" --out "$dir/$1" --db none -q "${@:2}" 2> /dev/null; }
restructure children; restructure compact --compact; restructure parent --order parent-first; restructure reference --mode reference
restructure original --order original
echo "$(ls "$dir/in" | wc -l) files"
for t in $TOKENIZERS tests/golden/tokenizer/small-qwen.json tests/golden/tokenizer/small-llama.json; do
    # In children-first order one golden file refers to itself, which is refused: see docs/generation.md.
    for f in children children-typed compact compact-typed parent; do
        "$B/tests/grammar-check" accept "$t" $f "$dir/${f%-typed}"/*.step > "$dir/log"
        tail -n 1 "$dir/log"
        grep -a refused, "$dir/log" | grep -av occtjs_dm1-oc-214 && bad=1
    done
    "$B/tests/grammar-check" accept "$t" parent "$dir/original"/*.step | tail -n 3 || bad=1
    # The original drops instances that others refer to: those files are refused at their end, and only there.
    "$B/tests/grammar-check" accept "$t" reference "$dir/reference"/*.step > "$dir/log"
    tail -n 1 "$dir/log"
    grep -a refused, "$dir/log" | grep -av "ENDSEC is awaited" | head -n 5
    for f in children children-typed compact-typed parent reference; do
        for budget in 60 150 400 1500; do
            "$B/tests/grammar-check" random "$t" $f $((budget > 1000 ? N / 5 : N)) $budget 7 > "$dir/log" || { bad=1; cat "$dir/log"; }
            tail -n 1 "$dir/log"
        done
    done
    "$B/tests/grammar-check" speed "$t" children-typed "$dir"/children/000000[0-3]*.step
done
exit $bad
