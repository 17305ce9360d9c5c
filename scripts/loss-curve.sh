#!/bin/bash
# The loss of a training as a table and a plot, from what `sft --json` printed (several files: one run, resumed).
#
#   scripts/loss-curve.sh models/demo/loss.csv docs/images/demo-loss.svg RUN.jsonl...
set -euo pipefail
cd "$(dirname "$0")/.."
csv=${1:?CSV, SVG and RUN.jsonl are due} svg=${2:?} && shift 2
[ $# -gt 0 ] || { echo "loss-curve: what sft --json printed is due" >&2; exit 2; }
mkdir -p "$(dirname "$csv")" "$(dirname "$svg")"
awk 'BEGIN { print "step,tokens,loss,lr,grad_norm" }
    function field(name) { return match($0, "\"" name "\":[-+0-9.e]*") ? substr($0, RSTART + length(name) + 3, RLENGTH - length(name) - 3) : "" }
    /"step":/ && /"loss":/ && /"lr":/ {
        step = field("step")
        if (step in row) next
        row[step] = 1
        printf "%d,%d,%.5g,%.4g,%.4g\n", step, field("tokens"), field("loss"), field("lr"), field("grad_norm")
    }' "$@" > "$csv.new"
[ "$(wc -l < "$csv.new")" -gt 1 ] || { rm "$csv.new"; echo "loss-curve: no steps in $*" >&2; exit 1; }
mv "$csv.new" "$csv"
awk -F, '
    NR > 1 { x[++n] = $2 / 1e6; y[n] = log($3) / log(10); if (n == 1 || y[n] > top) top = y[n]; if (n == 1 || y[n] < low) low = y[n] }
    function px(v) { return 60 + 500 * v / x[n] }
    function py(v) { return 300 - 260 * (v - bottom) / (ceiling - bottom) }
    END {
        bottom = int(low - 0.9999); ceiling = int(top + 0.9999)
        print "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"620\" height=\"350\" font-family=\"sans-serif\" font-size=\"12\">"
        print "<rect width=\"620\" height=\"350\" fill=\"white\"/>"
        for (v = bottom; v <= ceiling; v++)
            printf "<path d=\"M60 %.1fH560\" stroke=\"#ddd\"/><text x=\"54\" y=\"%.1f\" text-anchor=\"end\">%g</text>\n", py(v), py(v) + 4, 10 ^ v
        each = x[n] > 250 ? 100 : x[n] > 100 ? 50 : x[n] > 20 ? 10 : x[n] / 5
        for (v = 0; v <= x[n] + 1e-9; v += each)
            printf "<text x=\"%.1f\" y=\"318\" text-anchor=\"middle\">%g</text>\n", px(v), v
        print "<text x=\"310\" y=\"340\" text-anchor=\"middle\">million tokens</text><text x=\"60\" y=\"24\">loss, nats a token</text>"
        printf "<path fill=\"none\" stroke=\"#1f77b4\" d=\""
        for (i = 1; i <= n; i++) printf "%s%.1f %.1f", i == 1 ? "M" : "L", px(x[i]), py(y[i])
        print "\"/></svg>"
    }' "$csv" > "$svg.new"
mv "$svg.new" "$svg"
echo "$csv: $(($(wc -l < "$csv") - 1)) points; plot: $svg"
