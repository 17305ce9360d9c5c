"""What step-restructure --mode reference --json says it lost, against the counts taken of the original's outputs:
python3 results.py RESULTS.tsv < its lines"""
import csv, json, os, sys

rows = {r["name"]: r for r in csv.DictReader(open(sys.argv[1]), delimiter="\t")}
columns = {"entities": "true_in", "dropped": "dropped", "dangling": "dangling_refs", "aliased": "aliased_refs", "colours": "empty_param",
           "duplicates": "dup_defs", "unresolved": "unresolved_ID"}
n = bad = 0
for line in sys.stdin:
    got = json.loads(line)
    name = os.path.splitext(os.path.basename(got["file"]))[0]
    for ours, theirs in columns.items():
        if got["detail"][ours] != int(rows[name][theirs] or 0):
            bad += 1
            print(f"{name}: {ours} {got['detail'][ours]}, {theirs} {rows[name][theirs]}")
    n += 1
print(f"counts of {n} files, {bad} differ")
sys.exit(bad > 0 or n == 0)
