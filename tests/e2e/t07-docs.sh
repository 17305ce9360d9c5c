#!/bin/bash
# README, HACKING and docs/: every link leads somewhere, every make target and variable, tool and option that is named
# exists, every tool is told of, and README's example command makes a part.
set -u
root=$(cd "$(dirname "$0")/../.." && pwd)
BIN=$(cd "${BIN:-$root/build/bin}" && pwd)
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
fail() { echo "FAIL: $*"; exit 1; }
cd "$root" || exit 1
BIN=$BIN MAKEFLAGS='' python3 - <<'P' || exit 1
import glob, os, re, shlex, subprocess, sys
bin_ = os.environ["BIN"]
tools = sorted(os.listdir(bin_))
docs = ["README.md", "HACKING.md", "runs/README.md", "models/demo/README.md"] + sorted(glob.glob("docs/**/*.md", recursive=True))
docs = [d for d in docs if os.path.exists(d)]
bad = []
targets = set()
db = subprocess.run(["make", "-pnRr", "help", "NVCC="], capture_output=True, text=True).stdout
for line in db.splitlines():
    m = re.match(r"([a-z][a-z0-9-]*):(?!=)", line)
    if m:
        targets.add(m.group(1))
scripts = "".join(open(f).read() for f in glob.glob("scripts/*") + glob.glob("mk/*.mk") + ["Makefile"])
help_ = {}


def anchors(path):
    out = set()
    for line in open(path):
        if line.startswith("#"):
            t = re.sub(r"[`*_]", "", line.lstrip("#").strip().lower())
            out.add(re.sub(r"[^\w\- ]", "", t).replace(" ", "-"))
    return out


def check_command(doc, text):
    try:
        words = shlex.split(text.split("   ")[0].split(" #")[0])
    except ValueError:
        return
    while words and re.match(r"[A-Z_]+=", words[0]):
        words = words[1:]
    if not words:
        return
    if words[0] == "make":
        for w in words[1:]:
            m = re.match(r"([A-Z_]+)=", w)
            if m:
                if m.group(1) not in scripts:
                    bad.append(f"{doc}: make variable {m.group(1)} is used nowhere")
            elif re.match(r"^[a-z][a-z-]*$", w):
                if w not in targets:
                    bad.append(f"{doc}: there is no target '{w}' ({text.strip()})")
            else:
                break
        return
    name = os.path.basename(words[0])
    if name not in tools or not (words[0] == name or words[0].endswith("bin/" + name)):
        return
    if name not in help_:
        help_[name] = subprocess.run([os.path.join(bin_, name), "--help"], capture_output=True, text=True).stdout
    for w in words[1:]:
        m = re.match(r"(--[a-z][a-z0-9.-]*)", w)
        if m:
            o = m.group(1)
            if o not in help_[name] and o.replace("--no-", "--", 1) not in help_[name]:
                bad.append(f"{doc}: {name} has no option {o}")


n_links = n_commands = 0
for doc in docs:
    text = open(doc).read()
    for label, target in re.findall(r"!?\[([^\]]*)\]\(([^)\s]+)\)", text):
        n_links += 1
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        path = os.path.normpath(os.path.join(os.path.dirname(doc), path)) if path else doc
        if not os.path.exists(path):
            bad.append(f"{doc}: {target} is not there")
        elif anchor and anchor not in anchors(path):
            bad.append(f"{doc}: {target}: no such heading")
    for line in text.splitlines():
        if line.startswith("    "):
            n_commands += 1
            check_command(doc, line)
    for code in re.findall(r"`([^`\n]+)`", text):
        n_commands += 1
        check_command(doc, code)
        m = re.match(r"((?:lib|model|shim|kernels|scripts|tests|mk|configs|docs|prep|eval|infer|train)/[A-Za-z0-9_./-]+)$", code)
        if m and "*" not in code and not os.path.exists(m.group(1)) and not code.startswith("docs/images"):
            bad.append(f"{doc}: {code} is not there")
readme = open("README.md").read()
for t in tools:
    if f"`{t}`" not in readme:
        bad.append(f"README.md does not tell of {t}")
for t in re.findall(r"\| `([a-z-]+)`", readme):
    if t not in tools and os.environ.get("ALL_BUILT", "1") == "1" and os.path.exists(os.path.join(bin_, "sft")):
        bad.append(f"README.md tells of {t}, which is not built")
for t in ("demo", "test", "data", "train", "eval"):
    if f"make {t}" not in readme:
        bad.append(f"README.md does not tell of make {t}")
for b in bad:
    print("FAIL:", b)
print(f"{len(docs)} documents, {n_links} links, {n_commands} pieces of code, {len(targets)} targets")
sys.exit(bool(bad) or n_links < 10 or n_commands < 20)
P
[ -x "$BIN/generate" ] || { echo "SKIP: generate is not built: README's example was not run"; exit 0; }
# The example as it stands in README, in a copy of what it needs.
example=$(grep -o 'build/bin/generate --model models/demo --caption ".*' README.md | head -n 1)
[ -n "$example" ] || fail "README has no example of generate"
mkdir -p "$dir/build" && ln -s "$BIN" "$dir/build/bin" && ln -s "$root/models" "$dir/models" && cd "$dir" || exit 1
[ -f models/demo/model.safetensors ] || { echo "SKIP: models/demo has no weights here"; exit 0; }
start=$(date +%s)
eval "$example" > out 2> err || fail "$example: exit $? $(tail -n 3 err)"
f=$(find parts -name '*.step' | head -n 1)
[ -n "$f" ] || fail "$example wrote no part: $(find parts)"
"$BIN/complete-ratio" "$f" --db none -q | grep -q 'CR: 1.0000' || fail "$f is not complete"
echo "ok: $example in $(($(date +%s) - start)) s"
