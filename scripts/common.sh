# Shared by data.sh, train.sh and eval.sh: read with `.`, from the repository's root.
b=${B:-build}/bin
db=${DB:-runs/runs.db}

say() { printf '%s: %s\n' "${0##*/}" "$*" | sed 's/\.sh:/:/' >&2; }
die() { say "error: $*"; exit 3; }

# A tool that exits 1 has done its work, but for some items, which it has named.
tool() {
    local rc=0 name=$1
    shift
    "$b/$name" --db "$db" ${JOBS:+-j "$JOBS"} "$@" || rc=$?
    [ $rc -le 1 ] || exit $rc
    return 0
}

# A config's key in its [model] section, which is for these scripts.
model_key() { # config key
    awk -F ' *= *' -v k="$2" '/^ *\[/ { mine = $0 ~ /^ *\[model\]/ } mine && $1 == k { sub(/ *#.*/, "", $2); print $2; exit }' "$1"
}

config_of() { # MODEL: a name in configs/ or a file
    if [ -f "$1" ]; then echo "$1"; elif [ -f "configs/$1.conf" ]; then echo "configs/$1.conf"
    else die "no configs/$1.conf; there are: $(cd configs && echo *.conf | sed 's/\.conf//g')"; fi
}

# Brings a model (or only its tokenizer: what=tokenizer) into its folder, unless it is there.
need_model() { # config what
    local dir repo
    dir=$(model_key "$1" dir) repo=$(model_key "$1" repo)
    [ -n "$dir" ] || die "$1: no 'dir' in section [model]"
    [ -f "$dir/config.json" ] && [ -f "$dir/tokenizer.json" ] && { [ "$2" = tokenizer ] || ls "$dir"/*.safetensors >/dev/null 2>&1; } && return
    [ "$2" = tokenizer ] && [ -f "$dir/tokenizer.json" ] && return
    [ -n "$repo" ] || die "$dir is not there, and $1 names no 'repo' to get it from"
    say "getting $([ "$2" = tokenizer ] && echo "the tokenizer of ")$repo into $dir"
    if [ "$2" = tokenizer ]; then tool hub-fetch "$repo" --out "$dir" --include '*.json'; else tool hub-fetch "$repo" --out "$dir"; fi
}
