"""The tools' reference mode against model.py, on made-up files: python3 compare.py BIN_DIR N [SEED [CASES_DIR]]

CASES_DIR (../shared/golden/prep/cases) gives texts to mutate, and the model itself is held to their outputs.
"""
import os, random, re, shutil, subprocess, sys, tempfile
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import model

HEAD = "ISO-10303-21;\nHEADER;\nFILE_DESCRIPTION((''),'2;1');\nENDSEC;\nDATA;\n"
TAIL = "ENDSEC;\nEND-ISO-10303-21;\n"
TYPES = (["PRODUCT_CATEGORY_RELATIONSHIP", "APPLICATION_PROTOCOL_DEFINITION", model.MDGPR, "SHAPE_DEFINITION_REPRESENTATION"] * 2 +
         ["STYLED_ITEM"] * 4 + ["COLOUR_RGB"] * 3 + list(model.PRUNED) + ["PRODUCT_DEFINITION_FORMATION", "OVER_RIDING_STYLED_ITEM"] +
         ["A", "B_1", "_C"] * 3)
NOISE = ["'#%d'", "'it''s'", "1.5", "$", "*", ".T.", "'a;b'", "/* #%d */", "'#%d=('", "\n  ", "#%dx", "\"0F\"", "'/*'", "*/", "é", " ", "\t"]


def statement(r, id, type, refs, exotic):
    kind = r.random()
    sep = r.choice([",", ", ", ",\n"] if exotic and r.random() < .2 else [","])
    params = sep.join("#%d" % x for x in refs)
    if exotic and r.random() < .15:
        noise = r.choice(NOISE)
        params += r.choice(["", ","]) + (noise % r.choice(refs or [id]) if "%d" in noise else noise)
    if type == model.MDGPR and r.random() < .5:
        params = "'',(%s),%s" % (params, "#%d" % r.choice(refs or [id]))
    eq = r.choice(["=", " = ", "=\n"]) if exotic else "="
    name = ("#%04d" if exotic and r.random() < .03 else "#%d") % id
    if kind < (.12 if type in "AB_1_C" else .04):
        inner = r.choice([" ", " ", "\n", ""])
        return "%s%s( X(%s)%sY() );" % (name, eq, params, inner)
    odd = r.random() if exotic else 1
    if odd < .02:
        return "%s%s%s(%s) /* c */;" % (name, eq, type, params)
    if odd < .03:
        return "%s%s%s(%s);" % (name, eq, type.lower(), params)
    if odd < .04:
        return "/* %s%s%s(%s); */" % (name, eq, type, params)
    if odd < .05:
        return "/* %s%sold */ %s=%s(%s);" % (name, eq, name, type, params)
    return "%s%s%s%s(%s)%s;" % (name, eq, type, " " if exotic and odd < .1 else "", params, "\n" if exotic and odd < .08 else "")


def graph(r):
    """A file of few entities that name each other at random, or of long chains with few branches."""
    exotic = r.random() < .5
    n = r.randint(1, 14)
    v = []
    if r.random() < .3:  # deep: depth 20 must be met, and shortcuts to it
        n = r.randint(18, 34)
        for i in range(1, n + 1):
            refs = [i + 1] if i < n else []
            if r.random() < .25:
                refs.insert(r.randint(0, len(refs)), r.randint(1, n))
            t = r.choice(TYPES) if i < 3 or r.random() < .15 else r.choice("AB")
            v.append((i, t, refs))
        top = r.choice([model.MDGPR, "SHAPE_DEFINITION_REPRESENTATION", "PRODUCT_CATEGORY_RELATIONSHIP"])
        v.append((n + 1, top, [r.randint(1, n) for _ in range(r.randint(1, 4))]))
        n += 1
    else:
        down = r.random() < .6
        for i in range(1, n + 1):
            lo = i + 1 if down else 1
            refs = [r.randint(lo, n + (r.random() < .05)) for _ in range(r.choice([0, 0, 1, 1, 2, 2, 3, 5]))] if lo <= n else []
            v.append((i, r.choice(TYPES), refs))
    ids = list(range(1, n + 2))
    if r.random() < .5:
        ids = r.sample(range(1, 3 * n + 5), n + 1)
    if r.random() < .03:  # beyond 64 bits
        ids = [10 ** r.randint(17, 25) + i for i in ids]
    v = [(ids[i - 1], t, [ids[min(x, n + 1) - 1] for x in refs]) for i, t, refs in v]
    if r.random() < .7:
        r.shuffle(v)
    if exotic and r.random() < .2:
        v.append(r.choice(v))
    if exotic and r.random() < .1:
        v.append((r.choice(v)[0], r.choice(TYPES), []))
    body = r.choice(["\n", "", "\r\n"] if exotic else ["\n"]).join(statement(r, *x, exotic) for x in v)
    head = HEAD if r.random() < .95 else r.choice(["DATA;", "junk " + HEAD, HEAD.replace("DATA;", "DATA ;"), HEAD + TAIL + HEAD, "\ufeff" + HEAD])
    s = (head + body + "\n" + TAIL).encode()
    if exotic and r.random() < .1:
        s = s.replace("é".encode(), b"\xe9")
    return s


def mutate(r, s):
    b = bytearray(s)
    pieces = [b"#", b"=", b"(", b")", b";", b"'", b"/*", b"*/", b"\n", b" ", b"\r", b"#1", b"#2", b"ENDSEC;", b"DATA;", b",", b"\x85",
              b"\xc2\x85", b"\x0b", b"\xd9\xa3", b"#ID_1", b"/* ID_1 = 2 */\n", b"\xe2\x80\xa8", b"_", b"E-5", b"."]
    for _ in range(r.randint(1, 5)):
        at = r.randint(0, len(b))
        k = r.random()
        if k < .4:
            b[at:at] = r.choice(pieces)
        elif k < .7:
            del b[at:at + r.randint(1, 12)]
        else:
            src = r.randint(0, len(b))
            b[at:at] = b[src:src + r.randint(1, 30)]
    return bytes(b)


def numbers(r):
    alphabet = "0123456789" * 3 + "....EE++--##x_e \n\r'(),;é\u0663\u00a0"
    s = "".join(r.choice(alphabet) for _ in range(r.randint(1, 60)))
    for _ in range(r.randint(0, 6)):
        digits = lambda a, b: "".join(r.choice("0123456789") for _ in range(r.randint(a, b)))
        s += r.choice([",", "(", "-", "#", " ", "a", "+"]) + digits(1, r.choice([2, 6, 22])) + "." + digits(0, r.choice([2, 7, 12, 24]))
        s += r.choice(["", "", "", "E", "E-", "E+05", "E-7", "e3", "5", "0000005", "E5x", "-3", "+", "49999999999", "mm"])
    b = s.encode()
    return b if r.random() < .9 else mutate(r, b.replace(b"\xa0", b""))


def keyed(r):
    """What step-restore reads: a restructured file, mutated."""
    while True:
        try:
            s = model.restructure(graph(r))
            return mutate(r, s) if r.random() < .7 else s
        except (model.TooBig, model.NoData, RecursionError):
            continue


def run(tool, files, bin_dir, work):
    shutil.rmtree(work, ignore_errors=True)
    (work / "in").mkdir(parents=True)
    for i, s in enumerate(files):
        (work / "in" / f"{i}.step").write_bytes(s)
    p = subprocess.run([f"{bin_dir}/step-{tool}", work / "in", "--out", work / "out", "--mode", "reference", "--db", "none", "-q", "--json"],
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=600)
    if p.returncode not in (0, 1):
        sys.exit(f"step-{tool} ends with {p.returncode}")
    return [(work / "out" / f"{i}.step").read_bytes() if (work / "out" / f"{i}.step").exists() else None for i in range(len(files))]


def check(tool, want_of, files, bin_dir, work):
    keep, want = [], []
    for s in files:
        try:
            want.append(want_of(s))
            keep.append(s)
        except model.NoData:
            want.append(None)
            keep.append(s)
        except (model.TooBig, RecursionError, OverflowError):
            pass
    got = run(tool, keep, bin_dir, work)
    bad = [i for i in range(len(keep)) if got[i] != want[i]]
    print(f"{tool}: {len(keep)} files, {len(bad)} differ")
    for i in bad[:1]:
        print(keep[i].decode("utf-8", "replace"), "---- the model:", (want[i] or b"no output").decode("utf-8", "replace"), "---- the tool:",
              (got[i] or b"no output").decode("utf-8", "replace"), sep="\n")
        keepdir = Path(tempfile.mkdtemp(prefix="differs-"))
        (keepdir / "in.step").write_bytes(keep[i])
        print("kept as", keepdir / "in.step")
    return len(bad)


def golden(cases):
    """The model itself, against the original's recorded outputs."""
    bad = n = 0
    for kind, f in (("round", model.round_numbers), ("restructure", model.restructure), ("restore", model.restore)):
        for c in sorted((cases / kind).iterdir()):
            ins = [p for p in c.rglob("*") if p.is_file() and p.name not in ("rc", "stdout") and "out" not in p.parts[len(c.parts):-1] and "restored" not in p.parts]
            outs = [p for p in (c / "out").rglob("*") if p.is_file()] if (c / "out").is_dir() else []
            try:
                got = f(ins[0].read_bytes())
            except model.NoData:
                got = None
            except model.TooBig:
                continue
            n += 1
            if got != (outs[0].read_bytes() if outs else None):
                bad += 1
                print("the model differs from the original:", c)
    print(f"model: {n} cases, {bad} differ")
    return bad


def main():
    bin_dir, n, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 1
    r = random.Random(seed)
    sys.setrecursionlimit(10000)
    bad, texts = 0, {"round": [], "restructure": [], "restore": []}
    if len(sys.argv) > 4:
        cases = Path(sys.argv[4])
        bad += golden(cases)
        for kind in texts:
            for p in sorted((cases / kind).rglob("*")):
                if p.is_file() and p.name not in ("rc", "stdout") and p.stat().st_size < 20000:
                    texts[kind].append(p.read_bytes())
    work = Path(tempfile.mkdtemp())
    try:
        for tool, f, make in (("round", model.round_numbers, numbers), ("restructure", model.restructure, graph), ("restore", model.restore, keyed)):
            files = [make(r) for _ in range(n)]
            files += [mutate(r, r.choice(texts[tool]) if texts[tool] and r.random() < .5 else make(r)) for _ in range(n // 2)]
            bad += check(tool, f, files, bin_dir, work)
    finally:
        shutil.rmtree(work)
    sys.exit(1 if bad else 0)


main()
