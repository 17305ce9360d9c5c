#!/bin/bash
# How the time of step-restructure grows with a file's size, up to a million entities: a table, and a plot as SVG.
#
#   scripts/bench-growth.sh [OUT.svg] [ROUNDS]
#
# One root, from which all is reached; each entity names the next one and three of the 64 after it.  CPU seconds of the whole process, the least of ROUNDS (3).
set -eu
cd "$(dirname "$0")/.."
svg=${1:-docs/images/growth.svg} rounds=${2:-3} bin=$PWD/${B:-build}/bin
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
TIMEFORMAT='%U %S'
printf '%10s %6s %10s %10s\n' entities MB strict reference
for n in 10000 50000 100000 200000 400000 600000 800000 1000000; do
    awk -v n=$n 'BEGIN {
        srand(1)
        print "ISO-10303-21;\nHEADER;\nFILE_DESCRIPTION((\x27\x27),\x272;1\x27);\nFILE_NAME(\x27\x27,\x27\x27,(\x27\x27),(\x27\x27),\x27\x27,\x27\x27,\x27\x27);\nFILE_SCHEMA((\x27AUTOMOTIVE_DESIGN\x27));\nENDSEC;\nDATA;"
        print "#1=SHAPE_DEFINITION_REPRESENTATION(#2,#3);"
        for (i = 2; i < n; i++) {
            printf "#%d=EDGE_LOOP(\x27\x27,(#%d", i, i + 1
            for (k = 0; k < 3; k++) { j = i + 1 + int(rand() * 64); printf ",#%d", j < n ? j : n }
            print "));"
        }
        printf "#%d=CARTESIAN_POINT(\x27\x27,(0.5,0.25,-1.125));\n", n
        print "ENDSEC;\nEND-ISO-10303-21;" }' > "$work/in.step"
    row="$n $(stat -c %s "$work/in.step")"
    for mode in strict reference; do
        row+=" $(for _ in $(seq "$rounds"); do
            { time "$bin/step-restructure" "$work/in.step" --out "$work/out.step" --mode $mode --db none -q -j1 --force > /dev/null 2>&1; } 2>&1
        done | awk '{t = $1 + $2} NR == 1 || t < least {least = t} END {printf "%.3f", least}')"
    done
    echo "$row" >> "$work/rows"
    awk '{printf "%10d %6.1f %10s %10s\n", $1, $2 / 1e6, $3, $4}' <<< "$row"
done
mkdir -p "$(dirname "$svg")"
awk '
    { x[NR] = $1; y[NR, 1] = $3; y[NR, 2] = $4; for (m = 3; m <= 4; m++) if ($m > top) top = $m }
    function px(v) { return 60 + 500 * v / 1e6 }
    function py(v) { return 300 - 260 * v / top }
    END {
        step = top > 1 ? 0.5 : top > 0.4 ? 0.2 : 0.1; top = int(top / step + 0.999) * step
        print "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"620\" height=\"350\" font-family=\"sans-serif\" font-size=\"12\">"
        print "<rect width=\"620\" height=\"350\" fill=\"white\"/>"
        for (v = 0; v <= top + 1e-9; v += step)
            printf "<path d=\"M60 %.1fH560\" stroke=\"#ddd\"/><text x=\"54\" y=\"%.1f\" text-anchor=\"end\">%g</text>\n", py(v), py(v) + 4, v
        for (v = 0; v <= 1e6; v += 2e5)
            printf "<text x=\"%.1f\" y=\"318\" text-anchor=\"middle\">%s</text>\n", px(v), v == 0 ? 0 : v == 1e6 ? "1,000,000" : v / 1000 ",000"
        print "<text x=\"310\" y=\"340\" text-anchor=\"middle\">entities</text><text x=\"60\" y=\"24\">CPU seconds of step-restructure</text>"
        split("#1f77b4 #d62728", colour, " "); split("strict reference", name, " ")
        for (m = 1; m <= 2; m++) {
            printf "<path fill=\"none\" stroke=\"%s\" stroke-width=\"2\" d=\"", colour[m]
            for (i = 1; i <= NR; i++) printf "%s%.1f %.1f", i == 1 ? "M" : "L", px(x[i]), py(y[i, m])
            print "\"/>"
            for (i = 1; i <= NR; i++) printf "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3\" fill=\"%s\"/>\n", px(x[i]), py(y[i, m]), colour[m]
            printf "<text x=\"80\" y=\"%d\" fill=\"%s\">%s</text>\n", 50 + 18 * m, colour[m], name[m]
        }
        print "</svg>"
    }' "$work/rows" > "$work/plot.svg"
mv "$work/plot.svg" "$svg"
echo "plot: $svg"
