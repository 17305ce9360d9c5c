#!/bin/bash
# Preparation of many STEP files as Slurm job arrays, a shard a task; the last job joins the shards' databases.
#
#   export RAW=DIR OUT=DIR        (from the repository's root, on a file system that all nodes see)
#   a=$(sbatch --parsable --array=1-32 scripts/sbatch-prep.sh round)
#   b=$(sbatch --parsable --array=1-32 --dependency=afterany:$a scripts/sbatch-prep.sh restructure)
#   sbatch --dependency=afterany:$b scripts/sbatch-prep.sh merge
#
#   RAW   a folder of STEP files (abc-fetch --out)      OUT   receives rounded/, restructured/ and the shards' databases
#   MODE=strict|reference   ORDER=children-first|parent-first   DB=OUT/runs.db (of the merge)   B=build
#
# Each task takes every 32nd file and writes a database of its own, so nothing is locked over the network.  A task that was
# killed or requeued does only what is not done.  A shard of which some files failed (exit 1) has done its work: afterany.
# Then, on one machine: rag-pairs, token-filter, split, as scripts/data.sh calls them.
#SBATCH --job-name=step-prep
#SBATCH --cpus-per-task=8
#SBATCH --mem=8G
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --output=%x-%A-%a.log
set -euo pipefail
: "${RAW:?a folder of STEP files}" "${OUT:?where to write}"
bin=${B:-build}/bin
mkdir -p "$OUT"
shard() { # tool, arguments...
    local i=${SLURM_ARRAY_TASK_ID:?this is for sbatch --array=1-N} n=${SLURM_ARRAY_TASK_COUNT:?}
    exec "$bin/$1" "${@:2}" --shard "$i/$n" --db "$OUT/shard-$i.db" -j "${SLURM_CPUS_PER_TASK:-0}"
}
case ${1:-} in
round) shard step-round "$RAW" --out "$OUT/rounded" --mode "${MODE:-strict}" ;;
restructure) shard step-restructure "$OUT/rounded" --out "$OUT/restructured" --mode "${MODE:-strict}" --order "${ORDER:-children-first}" ;;
merge) exec "$bin/runs-merge" "$OUT"/shard-*.db --into "${DB:-$OUT/runs.db}" --db none ;;
*) sed -n '2,17p' "$0" | cut -c3-; exit 2 ;;
esac
