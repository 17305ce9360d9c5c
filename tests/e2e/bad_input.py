#!/usr/bin/env python3
"""bad_input.py BIN ROOT DIR: every tool on every kind of bad input.

For each input of each tool (a file or a folder; the others are good) and each way it can be bad, the tool must end
with the documented exit code, in time, with one line that names what is wrong, and leave nothing half-written.
The same for databases and configurations that are bad, and for outputs on a full disk or in a wrong place.

TOOLS="split sft": these alone.  FULL=1: every combination; else the tools that take half a second to start, for
libtorch's sake, get a part of them.
"""
import concurrent.futures as futures, json, os, random, resource, shutil, signal, sqlite3, struct, subprocess, sys, threading

bin_, root, base = (os.path.abspath(a) for a in sys.argv[1:4])
os.chdir(base)
for k in list(os.environ):
    if k.lower().endswith("_proxy"):
        del os.environ[k]
os.environ["OMP_NUM_THREADS"] = "1"
encoder = os.environ.get("ENCODER") or os.path.join(root, "third_party/minilm")
have = set(os.listdir(bin_))
only = os.environ.get("TOOLS", "").split()
slow = set() if os.environ.get("FULL") else {"sft", "generate", "eval-loss", "merge-lora", "rag-pairs", "serve"}
good = os.path.join(base, "good")
problems, lock = [], threading.Lock()
counts = {}


def run(tool, *args, **kw):
    return subprocess.run([os.path.join(bin_, tool), *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, **kw)


def must(tool, *args):
    r = run(tool, *args, "--db", "none", "-q")
    if r.returncode:
        sys.exit(f"FAIL: {tool} {' '.join(args)}: exit {r.returncode}: {r.stderr.decode(errors='replace')}")


# ---- good inputs
os.makedirs("good/steps")
for i in range(3):
    shutil.copy(f"{root}/datasets/sample/steps/{i:08d}.step", "good/steps")
shutil.copy("good/steps/00000000.step", "good/part.step")
open("good/captions.csv", "w").write("model_id,isDescribable,description\n" + "".join(f'{i:08d},True,"A part, number {i}."\n' for i in range(3)))
open("good/list.txt", "w").write("http://127.0.0.1:9/none abc_0000_step_v00.7z\n")
random.seed(5)
open("good/cloud.f64", "wb").write(struct.pack("<600d", *(random.random() for _ in range(600))))
text = open("good/part.step").read()
body = text[text.index("DATA;"):][:150]
rows = [{"id_original": f"{i:08d}", "caption": f"A part, number {i}.", "id_retrieve": f"{(i + 1) % 3:08d}", "relavant_step_file": body, "output": body} for i in range(3)]
os.makedirs("good/data")
for name in ("good/pairs.json", "good/data/train.json", "good/data/val.json"):
    json.dump(rows, open(name, "w"), indent=4)
os.makedirs("good/images/00000000")
open("good/images/00000000/front.png", "wb").write(b"\x89PNG\r\n\x1a\n" + bytes(60))
open("good/prompt.txt", "w").write("Describe the part.\n")
if "tokenizer-train" in have:
    must("tokenizer-train", "good/steps", "--out", "good/tok", "--vocab-size", "300")
if "sft" in have:
    shutil.copytree("good/tok", "good/arch")
    json.dump({"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
               "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 300, "max_position_embeddings": 1024, "rms_norm_eps": 1e-6,
               "rope_theta": 1e6, "tie_word_embeddings": True, "hidden_act": "silu"}, open("good/arch/config.json", "w"))
    must("sft", "--model", "good/arch", "--data", "good/data", "--out", "good/model", "--method", "full", "--init", "random", "--max-steps", "1", "--save-steps", "0", "--no-rag")
    must("sft", "--model", "good/model", "--data", "good/data", "--out", "good/adapter", "-o", "lora.r=2", "--no-rag", "--max-steps", "1", "--save-steps", "1")

# ---- tools: (tool, kind of the input, arguments).  @ is the input, % where output goes.
COMMANDS = [
    ("step-round", "step", "@ --out %.step"), ("step-round", "step", "@ --out %.step --mode reference"),
    ("step-restructure", "step", "@ --out %.step"), ("step-restructure", "step", "@ --out %.step --mode reference"),
    ("step-restore", "step", "@ --out %.step"), ("step-restore", "step", "@ --out %.step --mode reference"),
    ("step-render", "step", "@ --out % --views 1 --size 64 --timeout 4"),
    ("complete-ratio", "step", "@"), ("entity-stats", "step", "@"), ("renderability", "step", "@ --timeout 4"), ("renderability", "step", "@ --mode reference --timeout 4"),
    ("chamfer", "step", "good/part.step @ --timeout 4"), ("chamfer", "step", "@ good/part.step --timeout 4"),
    ("chamfer", "cloud", "--clouds good/cloud.f64 @"),
    ("geometry-reward", "step", "--truth @ --candidates good/steps --timeout 4"), ("geometry-reward", "step", "--truth good/part.step --candidates @ --timeout 4"),
    ("tokenizer-train", "step", "@ --out % --vocab-size 300"), ("tokenizer-train", "csv", "good/steps --captions @ --out % --vocab-size 300"),
    ("rag-pairs", "csv", f"--captions @ --steps good/steps --encoder {encoder} --out %.json"),
    ("rag-pairs", "folder", f"--captions good/captions.csv --steps @ --encoder {encoder} --out %.json"),
    ("rag-pairs", "encoder", "--captions good/captions.csv --steps good/steps --encoder @ --out %.json"),
    ("token-filter", "json", "--tokenizer good/tok --in @ --out %.json"), ("token-filter", "tokenizer", "--tokenizer @ --in good/pairs.json --out %.json"),
    ("split", "json", "--in @ --out %"), ("split", "folder", "--in good/pairs.json --steps @ --out %"),
    ("sft", "model", "--model @ --data good/data --no-rag --out % --max-steps 1"), ("sft", "tokenizer", "--model good/model --tokenizer @ --data good/data --no-rag --out % --max-steps 1"),
    ("sft", "data", "--model good/model --data @ --no-rag --out % --max-steps 1"), ("sft", "adapter", "--model good/model --data good/data --adapter @ --no-rag --out % --max-steps 1"),
    ("merge-lora", "model", "--model @ --adapter good/adapter --out %"), ("merge-lora", "adapter", "--model good/model --adapter @ --out %"),
    ("eval-loss", "model", "--model @ --data good/data/val.json"), ("eval-loss", "adapter", "--model good/model --adapter @ --data good/data/val.json"),
    ("eval-loss", "folder", "--model good/model --checkpoints @ --data good/data/val.json"), ("eval-loss", "json", "--model good/model --data @"),
    ("generate", "model", "--model @ --caption x --out % --max-new-tokens 4"),
    ("generate", "adapter", "--model good/model --adapter @ --caption x --out % --max-new-tokens 4"),
    ("generate", "json", "--model good/model --no-retrieval --captions @ --out % --max-new-tokens 4"), ("generate", "csv", "--model good/model --captions @ --out % --max-new-tokens 4"),
    ("generate", "json", f"--caption x --rag @ --encoder {encoder} --retrieve-only --out %"),
    ("generate", "encoder", "--caption x --rag good/pairs.json --encoder @ --retrieve-only --out %"),
    ("runs-merge", "database", "@ --into %.db"),
    ("caption", "folder", "--images @ --out %.csv --endpoint http://127.0.0.1:9/v1 --model m --backoff 0.01"),
    ("caption", "text", "--images good/images --prompt @ --out %.csv --endpoint http://127.0.0.1:9/v1 --model m --backoff 0.01"),
    ("abc-fetch", "list", "--chunks 0 --list @ --out % --backoff 0.01"),
    ("synth", None, "--count 2 --out %"), ("hub-fetch", None, "a/b --out % --endpoint http://127.0.0.1:9 --backoff 0.01"),
]
SOURCE = {"step": "part.step", "csv": "captions.csv", "json": "pairs.json", "cloud": "cloud.f64", "list": "list.txt", "text": "prompt.txt", "folder": "steps",
          "model": "model", "adapter": "adapter", "tokenizer": "tok", "data": "data", "database": "r.db"}
NAMELESS = {"rag-pairs", "abc-fetch"}  # they name rows, files and URLs
PARTS = {"model": ["config.json", "model.safetensors", "tokenizer.json"], "adapter": ["adapter_config.json", "adapter_model.safetensors"],
         "tokenizer": ["tokenizer.json"], "data": ["train.json"], "encoder": ["config.json", "model.safetensors", "vocab.txt"]}
# What is no error: a measure of a bad file is its result, an empty folder of files to look at is not, ...
RESULT = {"complete-ratio", "renderability", "chamfer", "geometry-reward", "entity-stats"}


def ways_file(src):
    """(name, how to make it at path) of every bad stand-in for the file src."""
    data = open(src, "rb").read()
    def put(b):
        def make(path):
            with open(path, "wb") as f:
                f.write(b)
        return make
    def sparse(path):
        with open(path, "wb") as f:
            f.truncate(5 << 30)
    rnd = random.Random(len(data)).randbytes(4096)
    yield "missing", lambda path: None
    yield "empty", put(b"")
    yield "cut", put(data[:len(data) // 2])
    yield "binary", put(rnd)
    yield "not UTF-8", put(data[:len(data) // 3] + b"\xff\xfe\xc3(" + data[len(data) // 3:])
    yield "NUL bytes", put(data[:40] + bytes(20) + data[40:])
    yield "huge", sparse
    yield "a folder", os.mkdir
    yield "unreadable", lambda path: os.symlink(os.path.basename(path), path)  # a loop of links: not even root reads it


jobs, skipped = [], {}


def job(tool, what, command, bad=None, name=None, **kw):
    if tool not in have or (only and tool not in only):
        return
    if tool in slow:  # one after the other of the many: together they see every kind
        skipped[tool] = skipped.get(tool, -1) + 1
        if skipped[tool] % 3:
            return
    jobs.append((tool, what, command, bad, name, kw))


n_dir = 0
for tool, kind, command in COMMANDS:
    if kind is None:
        continue
    if kind == "encoder" and not os.path.exists(encoder + "/model.safetensors") or kind in ("model", "adapter") and "sft" not in have:
        continue
    if encoder in command and not os.path.exists(encoder + "/model.safetensors"):
        continue
    n_dir += 1
    d = f"bad/{n_dir}"
    os.makedirs(d)
    src = encoder if kind == "encoder" else f"good/{SOURCE[kind]}"
    if kind == "database":
        con = sqlite3.connect("good/r.db")
        con.execute("create table t(x)")
        con.commit()
        con.close()
    if os.path.isdir(src):
        job(tool, "missing", command, f"{d}/absent", "absent")
        open(f"{d}/file", "w").write("no folder\n")
        # A file where a folder is due (a tokenizer or a checkpoint may be named as a file, which must then be one).
        job(tool, "a file", command, f"{d}/file", "file")
        os.mkdir(f"{d}/hollow")
        job(tool, "an empty folder", command, f"{d}/hollow", "hollow")
        for part in PARTS.get(kind, []):
            if kind == "encoder" and not os.path.exists(f"{src}/{part}"):
                continue
            for way, make in ways_file(f"{src}/{part}"):
                if part in ("vocab.txt",) and way in ("not UTF-8", "NUL bytes", "cut"):
                    continue  # text is text
                if part.endswith(".safetensors") and way in ("not UTF-8",):
                    continue  # its bytes are numbers
                if part.endswith(".safetensors") and kind == "encoder" and way not in ("missing", "cut"):
                    continue  # 90 MB each
                c = f"{d}/{part}-{way.replace(' ', '-')}"
                os.mkdir(c)
                for f in os.listdir(src):
                    if f != part and os.path.isfile(f"{src}/{f}"):
                        os.symlink(os.path.abspath(f"{src}/{f}"), f"{c}/{f}")
                if tool == "merge-lora" and part == "tokenizer.json":
                    continue  # goes along as it is
                make(f"{c}/{part}")
                job(tool, f"{part}: {way}", command, c, part)
    else:
        suffix = os.path.splitext(src)[1]
        for way, make in ways_file(src):
            path = f"{d}/{way.replace(' ', '-')}{suffix}"
            make(path)
            if kind == "text" and way == "cut":
                continue
            job(tool, way, command, path, os.path.basename(path))

PARALLEL = os.cpu_count() or 2
serial = [0]


def check(j):
    tool, what, command, bad, name, kw = j
    with lock:
        serial[0] += 1
        out = f"out/{serial[0]}"
    os.makedirs(out)
    place = kw.get("place", f"{out}/o")
    db = kw.get("db", f"{out}/r.db")
    args = [a.replace("@", bad or "").replace("%", place) for a in command.split()]
    def fail(why, r=None):
        err = r.stderr.decode(errors="replace").strip().splitlines()[:4] if r else []
        with lock:
            problems.append(f"{tool} [{what}] {' '.join(args)}: {why}" + "".join(f"\n      {e[:300]}" for e in err))
            print("FAIL:", problems[-1], flush=True)
    try:
        r = run(tool, *args, "--db", db, "-q", "-j2", timeout=60, **kw.get("run", {}))
    except subprocess.TimeoutExpired:
        return fail("does not end")
    rc = r.returncode
    lines = [l for l in r.stderr.decode(errors="replace").splitlines() if l]
    said = [l for l in lines if l.startswith(f"{tool}: error: ") or l.startswith(f"{tool}: warning: ")]
    results = r.stdout.decode(errors="replace")
    with lock:
        counts[rc] = counts.get(rc, 0) + 1
    if rc < 0 or rc > 3:
        return fail(f"exit {rc}", r)
    codes = kw.get("codes")
    if codes is None:
        codes = {1, 3}
        step = ".step" in (bad or "")
        if tool in RESULT and step:
            codes = {0, 1, 3}
        if what in ("not UTF-8", "NUL bytes", "empty", "cut", "binary") and (bad or "").endswith((".txt", ".csv", ".f64", ".step", ".json")):
            codes = {0, 1, 3}
        if what in ("an empty folder", "missing", "a folder") or what.endswith(("missing", "a folder", "unreadable", "huge")):
            codes = {1, 3}
        if what in ("unreadable", "huge") and tool in RESULT and step:
            codes = {0, 1, 3}
    if rc not in codes:
        return fail(f"exit {rc}, not in {sorted(codes)}", r)
    if rc == 0:
        return None
    if not said:
        return fail("exit without a word", r)
    if len(said) > kw.get("lines", 8 if tool == "rag-pairs" else 2) or len(lines) > len(said):
        return fail(f"{len(lines)} lines", r)
    if rc == 3 and sum("error: " in l for l in said) != 1:
        return fail("one error is due", r)
    if name and tool not in NAMELESS and name not in " ".join(said) and os.path.basename(os.path.dirname(f"{bad}/x")) not in " ".join(said):
        return fail(f"does not name {name}", r)
    # Nothing half-written: no part, and no result of a failed whole.
    for folder, folders, files in os.walk(out):
        for f in files:
            if f.endswith(".part") or (f.startswith(".") and "chunks" not in folder):
                return fail(f"left over: {folder}/{f}", r)
            if rc == 3 and not f.startswith("r.db") and not kw.get("may_write"):
                return fail(f"wrote {folder}/{f}", r)
    return None


def everything():
    with futures.ThreadPoolExecutor(PARALLEL) as ex:
        list(ex.map(check, jobs))
    jobs.clear()


everything()

# ---- a whole command that is good, for what follows
GOOD = {}
for tool, kind, command in COMMANDS:
    if tool in GOOD or tool in ("abc-fetch", "hub-fetch", "caption") or tool not in have:
        continue
    if kind == "encoder" or encoder in command and not os.path.exists(encoder + "/model.safetensors"):
        continue
    if kind == "database":
        continue
    GOOD[tool] = (command, f"good/{SOURCE[kind]}" if kind else None)

# ---- databases
os.mkdir("db")
con = sqlite3.connect("db/newer.db")
con.executescript("create table runs(x); pragma user_version=99")
con.close()
open("db/junk.db", "w").write("no database\n" * 400)
os.mkdir("db/folder.db")
must_db = run("complete-ratio", "good/part.step", "--db", "db/whole.db", "-q")
sqlite3.connect("db/whole.db").execute("pragma wal_checkpoint(truncate)").close()
whole = open("db/whole.db", "rb").read()
open("db/cut.db", "wb").write(whole[:len(whole) // 2])
open("db/mangled.db", "wb").write(whole[:4096] + bytes(len(whole) - 4096))
newer_before = open("db/newer.db", "rb").read()
for tool, (command, src) in GOOD.items():
    for db, why in (("newer.db", "newer version"), ("junk.db", "junk.db"), ("folder.db", "folder.db"), ("cut.db", "cut.db"), ("mangled.db", "mangled.db"), ("../good/part.step/r.db", "part.step")):
        job(tool, f"database {db}", command, src, None, db=f"db/{db}", codes={3}, expect=why)
everything()
if open("db/newer.db", "rb").read() != newer_before:
    problems.append("a newer database was written to")

# ---- configurations
os.mkdir("conf")
open("conf/binary.conf", "wb").write(random.Random(3).randbytes(4096))
open("conf/unknown.conf", "w").write("# x\n\nquite = true\n")
open("conf/noval.conf", "w").write("label\n")
with open("conf/huge.conf", "wb") as f:
    f.truncate(5 << 30)
os.mkdir("conf/folder.conf")
os.symlink("loop.conf", "conf/loop.conf")
for tool, (command, src) in GOOD.items():
    for c, codes in (("binary", {2, 3}), ("noval", {2}), ("huge", {2, 3}), ("folder", {3}), ("loop", {3}), ("absent", {3})):
        job(tool, f"config {c}", command + f" --config conf/{c}.conf", src, f"{c}.conf", codes=codes, lines=1)
# (Misuse shows the usage line below the error.)


def config_check(j):
    tool, what, command, bad, name, kw = j
    args = [a.replace("@", bad or "").replace("%", f"out/{what.split()[-1]}") for a in command.split()]
    r = run(tool, *args, "--db", "none", "-q", timeout=60)
    err = r.stderr.decode(errors="replace").splitlines()
    if r.returncode not in kw["codes"] or not err or name not in err[0] or len(err) > 1 + (r.returncode == 2):
        with lock:
            problems.append(f"{tool} [{what}] exit {r.returncode}: {err[:3]}")
    with lock:
        counts[r.returncode] = counts.get(r.returncode, 0) + 1


with futures.ThreadPoolExecutor(PARALLEL) as ex:
    list(ex.map(config_check, jobs))
jobs.clear()

# ---- outputs: a file where a folder is due, a folder where a file is due, a full disk
os.mkdir("place")
open("place/file", "w").write("x")
for tool, (command, src) in GOOD.items():
    if "%" not in command:
        continue
    if "%.step" in command or "%.json" in command or "%.db" in command:
        suffix = "." + command.split("%.")[1].split()[0]
        os.makedirs(f"place/{tool}{suffix}")
        if suffix != ".step":  # --out FOLDER is right for these
            job(tool, "output is a folder", command, src, None, place=f"place/{tool}", codes={1, 3})
    job(tool, "output below a file", command, src, None, place="place/file/x", codes={1, 3})


def limit(n):
    def f():
        resource.setrlimit(resource.RLIMIT_FSIZE, (n, n))
    return f


# A limit on the size of files is met as a full disk is: a write fails half-way.
for tool, (command, src) in GOOD.items():
    if "%" in command:
        job(tool, "disk full", command, src, None, codes={1, 3}, run={"preexec_fn": limit(100)}, db="none", lines=4, may_write=tool == "step-render")
    job(tool, "disk full for the database", command, src, None, codes={1, 3}, run={"preexec_fn": limit(8192)}, lines=4, may_write=True)
everything()

n = sum(counts.values())
for p in problems[-3:]:
    print("FAIL:", p)
print(f"{len(problems)} problems; {n} commands, by exit code: {dict(sorted(counts.items()))}")
sys.exit(bool(problems))
