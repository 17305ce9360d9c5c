"""The tools' strict mode on made-up files of every odd spelling: python3 strict.py BIN_DIR N [SEED]

Rounding is compared with a model byte by byte; of restructuring and restoring the instances are compared as graphs, in every order and
form.  Nothing here is shared with the tools but the standard.
"""
import collections, decimal, hashlib, json, random, re, shutil, subprocess, sys, tempfile
from pathlib import Path

TOKEN = re.compile(r"""(?P<space>[\x00-\x20\x7f]+|/\*.*?\*/|\\[NF]\\) | (?P<string>'(?:[^']|'')*') | (?P<binary>"[^"]*") | (?P<enum>\.[A-Z_][A-Z_0-9]*\.) |
    (?P<real>[+-]?(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[Ee][+-]?[0-9]+)?|[+-]?[0-9]+[Ee][+-]?[0-9]+) | (?P<int>[+-]?[0-9]+) | (?P<ref>\#[0-9]+) |
    (?P<word>!?[A-Z_][A-Z_0-9]*) | (?P<mark>[(),;=$*])""", re.X | re.S)
decimal.getcontext().prec = 2000


def lex(s):
    at, out = 0, []
    while at < len(s):
        m = TOKEN.match(s, at)
        if not m:
            raise ValueError(f"no token at {at}: {s[at:at + 40]!r}")
        out.append((m.lastgroup, m.group()))
        at = m.end()
    return out


# ---- the files ----

class Maker:
    def __init__(self, r):
        self.r = r
        self.odd = r.random() < .7
        self.eol = r.choice(["\n", "\n", "\r\n", "\r", ""]) if self.odd else "\n"

    def space(self):
        r = self.r
        if not self.odd or r.random() < .8:
            return ""
        return r.choice([" ", "\t", "\n", "\r\n", "  ", "\x0b", "\x01", "/**/", "/* #1=X(); */", "/* ' */", "/* ; ENDSEC; */", "/*(*/", "/* \n * / */", "/***/",
                         "\\N\\", "\\F\\", "/* END-ISO-10303-21; */", "/* DATA; */"])

    def string(self, label=None):
        r = self.r
        pieces = ["a", "it''s", "''", "(", ")", ";", ",", "#1", "#1=A(#2);", "/*", "*/", "ENDSEC;", "DATA;", "\\\\", "\\X\\E9", "\\X2\\00E9\\X0\\", "\\S\\D", "\\PA\\",
                  "\\X4\\0001F600\\X0\\", "1.23456789", "-5.E-05", "$", "*", "é", "=", "\"", ".T.", "  ", "+", "-", "#ID_1", "/* ID_1 = 3 */", "END-ISO-10303-21;", "\\N\\"]
        body = "".join(r.choice(pieces) for _ in range(r.choice([0, 0, 1, 1, 2, 5]))) if self.odd else r.choice(["", "NONE"])
        if label is not None:
            body = f"u{label}" + body
        return "'" + body + "'"

    def real(self):
        r = self.r
        d = lambda a, b, z="0123456789": "".join(r.choice(z) for _ in range(r.randint(a, b)))
        k = r.random()
        if k < .3:
            return r.choice(["0.", "1.", "-1.", "10.", "-0.", "0.5", "2.5", "100."])
        if k < .6 or not self.odd:
            return r.choice(["", "-"]) + str(r.randint(0, 300)) + "." + d(1, 15)
        if k < .7:  # ends in what decides
            return r.choice(["", "-"]) + d(1, 2) + "." + d(5, 6) + r.choice(["5", "50", "500001", "49999", "95", "9999999", "0000001", "5000", "00"])
        if k < .8:
            return r.choice(["", "-", "+"]) + r.choice(["0", "00", "0000", "9", "99", "999999", "9" * 15, "9" * 16]) + "." + r.choice(["", "0", "9", "999999", "9999999", "9999995", "0000005", "00000051", "000000", "00000000123"])
        mantissa = r.choice([d(1, 3) + "." + d(0, 8), "." + d(1, 5), d(1, 4), d(18, 22) + "." + d(0, 3), "5.", "1.", "0."])
        if "." not in mantissa or r.random() < .8:
            mantissa += r.choice("EEEe") + r.choice(["", "+", "-"]) + r.choice(["0", "1", "05", "5", "7", "007", "12", "15", "16", "17", "300", "400", d(1, 2)])
        return r.choice(["", "", "-", "+"]) + mantissa

    def value(self, refs, depth=0):
        r = self.r
        k = r.random()
        if refs and k < .45:
            return "#" + self.name(refs.pop())
        if k < .6:
            return self.real()
        if k < .68:
            return self.string()
        if k < .74:
            return r.choice(["1", "-7", "0", "+3", "00012", "123456789012345678901"])
        if k < .80:
            return r.choice([".T.", ".F.", ".U.", ".UNSPECIFIED.", ".A_1."])
        if k < .85:
            return r.choice(["$", "*"])
        if k < .88:
            return r.choice(['"0"', '"0FF"', '"1A9"', '"3F"'])
        if k < .93 and depth < 4:
            return r.choice(["LENGTH_MEASURE", "PARAMETER_VALUE", "!USER", "X_1"]) + self.space() + "(" + self.value(refs, depth + 1) + ")"
        if depth < 4:
            return "(" + self.values(refs, r.choice([0, 1, 2, 3]), depth + 1) + ")"
        return "$"

    def values(self, refs, n, depth=0):
        return ("," + self.space() if self.r.random() < .9 else self.space() + ",").join(self.space() + self.value(refs, depth) + self.space() for _ in range(n)) or self.space()

    def name(self, id):
        z = "0" * self.r.choice([0, 0, 0, 0, 1, 3]) if self.odd and id < 10 ** 14 else ""
        return z + str(id)

    def params(self, refs, label):
        r = self.r
        refs = list(refs)
        out = [self.string(label)] if label is not None else []
        if r.random() < .6:
            out.append(self.values(refs, r.choice([1, 1, 2, 4])))
        while refs:
            x = "#" + self.name(refs.pop())
            out.append(x if r.random() < .6 else "(" + ",".join([x] + ["#" + self.name(refs.pop()) for _ in range(r.randint(0, len(refs)))]) + ")")
        return ",".join(out) or self.space()

    def types(self):
        return self.r.choice(["A", "B_1", "_C", "CARTESIAN_POINT", "VERTEX_POINT", "AXIS2_PLACEMENT_3D", "EDGE_CURVE", "ADVANCED_FACE", "LINE", "CIRCLE", "ORIENTED_EDGE", "EDGE_LOOP",
                              "STYLED_ITEM", "COLOUR_RGB", "PRODUCT_CATEGORY_RELATIONSHIP", "SHAPE_DEFINITION_REPRESENTATION", "APPLICATION_PROTOCOL_DEFINITION",
                              "MECHANICAL_DESIGN_GEOMETRIC_PRESENTATION_REPRESENTATION", "LENGTH_MEASURE_WITH_UNIT", "UNCERTAINTY_MEASURE_WITH_UNIT", "!MINE", "DATA", "ENDSEC_",
                              "A_KEYWORD_OF_MORE_THAN_THIRTY_TWO_LETTERS_IN_ALL"])

    def graph(self):
        """{node: children}, in the order of the file."""
        r = self.r
        n = r.choice([0, 1, 2, 3, 5, 8, 13, 21, 40])
        kind = r.choice(["down", "any", "layers", "chain", "forest"])
        nodes = list(range(n))
        refs = {}
        for i in nodes:
            if kind == "down":
                refs[i] = [r.randint(i + 1, n - 1) for _ in range(r.choice([0, 1, 2, 3]))] if i + 1 < n else []
            elif kind == "any":
                refs[i] = [r.choice(nodes) for _ in range(r.choice([0, 0, 1, 2, 4]))]
            elif kind == "layers":
                refs[i] = [x for x in nodes if x // 3 == i // 3 + 1]
            elif kind == "chain":
                refs[i] = [i + 1] * r.choice([1, 1, 2]) if i + 1 < n else ([0] if r.random() < .3 else [])
            else:
                refs[i] = [r.randint(i + 1, n - 1)] if i + 1 < n and r.random() < .5 else []
        if self.odd:
            for i in nodes:
                if r.random() < .03:
                    refs[i].append(n + r.randint(0, 3))  # to nothing
        return refs

    def file(self):
        r = self.r
        graph = self.graph()
        n = len(graph)
        all_nodes = list(range(n + 4))
        ids = [i + 1 for i in all_nodes]
        k = r.random()
        if k < .3:
            ids = r.sample(range(1, 5 * n + 20), n + 4)
        elif k < .4:
            ids = r.sample(range(10 ** 17, 10 ** 18 - 1), n + 4)
        elif k < .5:
            ids = [r.choice([2 ** 32, 2 ** 31, 10 ** 9]) - 5 + i for i in all_nodes]
        order = list(graph)
        k = r.random()
        if k < .4:
            r.shuffle(order)
        elif k < .6:
            order.reverse()
        labelled = r.random() < .6
        unit = r.choice([None, None, ".MILLI.", "$", ".KILO.", ".CENTI.", "inch"])
        statements = []
        for i in order:
            children = [ids[x] for x in graph[i]]
            label = i if labelled else None
            if r.random() < .15:
                parts = [f"{w}{self.space()}({self.params(c, label if w == 'P' else None)})" for w, c in
                         zip(r.choice([("P", "Q"), ("P",), ("A", "B_1", "P"), ("P", "MEASURE_WITH_UNIT")]), (children[:1], children[1:], []))]
                lost = children if len(parts) == 1 else []
                if lost:
                    parts[0] = f"P({self.params(children, label)})"
                body = "(" + self.space() + (self.space() or " ").join(parts) + self.space() + ")"
            else:
                body = f"{self.types()}{self.space()}({self.params(children, label)})"
            statements.append(f"#{self.name(ids[i])}{self.space()}={self.space()}{body}{self.space()};")
        if unit:
            top = max(ids) + 10 if max(ids) < 10 ** 17 else 7
            si = "(LENGTH_UNIT()NAMED_UNIT(*)SI_UNIT(%s,.METRE.))"
            more = [f"#{top}=" + (si % unit if unit != "inch" else f"(CONVERSION_BASED_UNIT('INCH',#{top + 1})LENGTH_UNIT()NAMED_UNIT(#{top + 5}))") + ";",
                    f"#{top + 2}=(GEOMETRIC_REPRESENTATION_CONTEXT(3)GLOBAL_UNIT_ASSIGNED_CONTEXT((#{top},#{top + 3}))REPRESENTATION_CONTEXT('',''));",
                    f"#{top + 3}=(NAMED_UNIT(*)PLANE_ANGLE_UNIT()SI_UNIT($,.RADIAN.));"]
            if unit == "inch":
                more += [f"#{top + 1}=LENGTH_MEASURE_WITH_UNIT(LENGTH_MEASURE(25.4000000001),#{top + 4});", f"#{top + 4}={si % '.MILLI.'};",
                         f"#{top + 5}=DIMENSIONAL_EXPONENTS(1.,0.,0.,0.,0.,0.,0.);"]
            for s in more:
                statements.insert(r.randint(0, len(statements)), s)
        cuts = sorted(r.randint(0, len(statements)) for _ in range(r.choice([0, 0, 0, 0, 1, 2, 5]) if self.odd else 0))
        sections = [statements[a:b] for a, b in zip([0] + cuts, cuts + [len(statements)])]
        several = len(sections) > 1 or (self.odd and r.random() < .1)
        e = self.eol
        s = r.choice(["", "", "", "\ufeff"]) if self.odd else ""
        s += self.space() + "ISO-10303-21" + self.space() + ";" + e + "HEADER;" + e
        s += f"FILE_DESCRIPTION(({self.string()}),'2;1');{e}FILE_NAME({self.string()},'2020-01-01T00:00:00',(''),(''),'1.234567890','',{self.space()}'');{e}"
        s += f"FILE_SCHEMA(('AUTOMOTIVE_DESIGN'));{e}" + (f"!MINE(1.23456789,#1,({self.string()}));{e}" if self.odd and r.random() < .1 else "") + "ENDSEC;" + e
        if self.odd and r.random() < .1:
            s += f"ANCHOR;{e}<a>=#{ids[0]};{e}<it's>=1.23456789;{e}ENDSEC;{e}"
        if self.odd and r.random() < .1:
            s += f"REFERENCE;{e}#{max(ids) + 7777}=<http://x/*y#z>;{e}ENDSEC;{e}"
        out = [("keep", s)]
        for i, section in enumerate(sections):
            out.append(("section", "DATA" + (f"{self.space()}('S{i}',('SCHEMA'))" if several else "") + self.space() + ";"))
            out += [("instance", (e if r.random() < .9 else self.space()) + x) for x in section]
            out.append(("keep", e + self.space() + "ENDSEC" + self.space() + ";" + e))
        out.append(("keep", "END-ISO-10303-21;" + r.choice(["\n", "", self.space(), e + e])))
        if self.odd and r.random() < .1:
            out.append(("keep", f"SIGNATURE{e or ' '}MIIBogYJKoZIhvcNAQcCoIIBkz+/==\nENDSEC;{e}"))
        self.unit = {None: 0, ".MILLI.": 0, "$": 3, ".KILO.": 6, ".CENTI.": 1, "inch": 2}[unit]  # decades over a millimetre
        self.chunks = out
        self.text = "".join(x for _, x in out)
        return self


# ---- what is read ----

Instance = collections.namedtuple("Instance", "section tokens")


def instance(section, text):
    """(id, Instance): the tokens without space, references as numbers."""
    st = [t for t in lex(text) if t[0] != "space"]
    if st[0][0] != "ref" or st[1][1] != "=" or st[-1][1] != ";":
        raise ValueError(f"no instance: {text}")
    return int(st[0][1][1:]), Instance(section, tuple(int(v[1:]) if k == "ref" else re.sub(r"[\r\n]", "", v) if k == "string" else v for k, v in st[2:-1]))


def collect(chunks):
    """{id: Instance}, the sections."""
    out, sections = {}, []
    for kind, text in chunks:
        if kind == "section":
            sections.append(tuple(v for k, v in lex(text) if k != "space"))
        elif kind == "instance":
            id, e = instance(len(sections) - 1, text)
            if id in out:
                raise ValueError(f"#{id} twice")
            out[id] = e
    return out, sections


def data(s):
    """The same of what a tool wrote: a statement a line."""
    lines = s.split("\n")
    start = lines.index("ENDSEC;") + 1
    while lines[start] in ("ANCHOR;", "REFERENCE;"):
        start = lines.index("ENDSEC;", start) + 1
    chunks = [("section" if re.match(r"DATA[(;]", x) else "instance", x) for x in lines[start:] if re.match(r"DATA[(;]|#", x)]
    if lines[-2:] != ["END-ISO-10303-21;", ""]:
        raise ValueError("it does not end")
    return collect(chunks)


def shape(parsed):
    """What does not depend on numbers: the colours of the instances, after each has met its neighbours some times over."""
    instances, sections = parsed
    h = lambda *x: hashlib.md5(repr(x).encode()).digest()
    users = collections.defaultdict(list)
    for id, e in instances.items():
        for k, t in enumerate(e.tokens):
            if isinstance(t, int):
                users[t].append((id, k))
    colour = {id: h(sections[e.section], [t if not isinstance(t, int) else 0 for t in e.tokens]) for id, e in instances.items()}
    for _ in range(6):
        missing = {t: h("none") for t in users if t not in instances}
        missing = {t: h(sorted((colour[i], k) for i, k in users[t])) for t in missing}
        get = lambda t: colour[t] if t in colour else missing[t]
        colour = {id: h(colour[id], [get(t) for t in e.tokens if isinstance(t, int)], sorted((colour[i], k) for i, k in users[id])) for id, e in instances.items()}
    return sorted((sections[e.section], colour[id]) for id, e in instances.items()), sorted(sections)


def rounded_real(t, decimals, significant):
    m = re.fullmatch(r"([+-]?)([0-9]*)\.?([0-9]*)(?:[Ee]([+-]?[0-9]+))?", t)
    sign, whole, frac, exp = m.group(1), m.group(2), m.group(3), int(m.group(4) or 0)
    v = decimal.Decimal((0, tuple(map(int, whole + frac)), exp - len(frac)))
    if not v:
        return "0."
    places = max(decimals, significant - 1 - v.adjusted())
    v = v.quantize(decimal.Decimal(1).scaleb(-places), rounding=decimal.ROUND_HALF_EVEN) if -v.as_tuple().exponent > places else v
    if not v:
        return "0."
    digits = "".join(map(str, v.as_tuple().digits)).rstrip("0") or "0"
    e = v.adjusted() + 1  # 0.digits * 10^e
    minus = "-" if sign == "-" else ""
    if e > 15 or e < -5:
        return f"{minus}{digits[0]}.{digits[1:]}E{e - 1}"
    if e <= 0:
        return minus + "0." + "0" * -e + digits
    return minus + digits[:e].ljust(e, "0") + "." + digits[e:]


def rounded(f, decimals=6, significant=1):
    def one(kind, text):
        if kind != "instance":
            return text
        tokens = lex(text)
        plain = [t for t in tokens if t[0] != "space"]
        depth, types, top = 0, [], 1 if plain[2][1] == "(" else 0
        for k, v in plain:
            if k == "word" and depth == top:
                types.append(v)
            depth += (v == "(") - (v == ")") if k == "mark" else 0
        if any("MEASURE_WITH_UNIT" in t for t in types):
            return text
        return "".join(rounded_real(v, decimals + f.unit, significant) if k == "real" else v for k, v in tokens)
    return "".join(one(*x) for x in f.chunks)


# ---- the tools ----

def run(tool, files, bin_dir, work, *args, stdin=None):
    src, dst = work / "in", work / "out"
    for d in (src, dst):
        shutil.rmtree(d, ignore_errors=True)
    src.mkdir(parents=True)
    for i, s in enumerate(files):
        if s is not None:
            (src / f"{i}.step").write_bytes(s.encode("utf-8", "surrogateescape"))
    p = subprocess.run([f"{bin_dir}/{tool}", src, "--out", dst, "--db", "none", "-q", "--json", *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=600)
    if p.returncode not in (0, 1):
        sys.exit(f"{tool} ends with {p.returncode}: {p.stderr[:300]!r}")
    lines = {}
    for line in p.stdout.decode().splitlines():
        j = json.loads(line)
        if "file" in j:
            lines[int(Path(j["file"]).stem)] = j
    return [(dst / f"{i}.step").read_bytes().decode("utf-8", "surrogateescape") if (dst / f"{i}.step").exists() else None for i in range(len(files))], lines


class Failed(Exception):
    pass


def components(instances):
    """Strongly connected components: {id: number}."""
    index, low, on, stack, comp, counter = {}, {}, set(), [], {}, [0]
    kids = {i: [t for t in e.tokens if isinstance(t, int) and t in instances] for i, e in instances.items()}
    for root in instances:
        if root in index:
            continue
        work = [(root, iter(kids[root]))]
        index[root] = low[root] = len(index)
        stack.append(root)
        on.add(root)
        while work:
            v, it = work[-1]
            for t in it:
                if t not in index:
                    index[t] = low[t] = len(index)
                    stack.append(t)
                    on.add(t)
                    work.append((t, iter(kids[t])))
                    break
                if t in on:
                    low[v] = min(low[v], index[t])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[v])
                if low[v] == index[v]:
                    while True:
                        t = stack.pop()
                        on.discard(t)
                        comp[t] = v
                        if t == v:
                            break
    return comp


def check_restructured(out, detail, order):
    instances, sections = data(out)
    seq = list(instances)
    if seq != list(range(1, len(seq) + 1)):
        raise Failed("not numbered from 1")
    place = {id: i for i, id in enumerate(seq)}
    forward = [(i, t) for i, e in instances.items() for t in e.tokens if isinstance(t, int) and t in instances and place[t] > place[i]]
    if detail["forward"] != len(forward):
        raise Failed(f"{detail['forward']} forward references told, {len(forward)} are there")
    if order == "children-first":
        comp = components(instances)
        if len(sections) == 1 and any(comp[a] != comp[b] for a, b in forward):
            raise Failed("a forward reference outside a cycle")
        if len(sections) == 1 and len(forward) != detail["cyclic"] - sum(e.tokens.count(i) for i, e in instances.items()):
            raise Failed("cyclic and forward differ")
    for line in out.split("\n"):
        m = re.match(r"/\* (\S+) Section - (\d+) roots? \*/$", line)
        if line.startswith("/*") and not m:
            raise Failed(f"an unknown comment: {line}")
    referenced = {t for i, e in instances.items() for t in e.tokens if isinstance(t, int) and t != i}
    if detail["roots"] != sum(i not in referenced for i in instances):
        raise Failed("the number of roots")


def main():
    bin_dir, n, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 1
    r = random.Random(seed)
    made = [Maker(r).file() for _ in range(n)]
    files = [f.text for f in made]
    work = Path(tempfile.mkdtemp())
    bad = 0

    def report(what, i, *more):
        nonlocal bad
        bad += 1
        if bad <= 3:
            keep = Path(tempfile.mkdtemp(prefix="differs-"))
            (keep / "in.step").write_bytes(files[i].encode("utf-8", "surrogateescape"))
            for k, m in enumerate(more):
                (keep / f"{k}.step").write_bytes((m or "no output").encode("utf-8", "surrogateescape"))
            print(f"{what}: file {i}, kept in {keep}")

    try:
        for args, kw in (((), {}), (("--digits", "2"), {"decimals": 2}), (("--significant", "5"), {"significant": 5}), (("--significant", "0", "--digits", "4"), {"significant": 0, "decimals": 4})):
            got, _ = run("step-round", files, bin_dir, work, *args)
            for i, f in enumerate(made):
                want = rounded(f, **kw)
                if got[i] != want:
                    report("step-round " + " ".join(args), i, want, got[i])
            if not args:
                again, _ = run("step-round", got, bin_dir, work)
                for i in range(n):
                    if again[i] != got[i]:
                        report("step-round twice", i, got[i], again[i])
        inside = [collect(f.chunks) for f in made]
        shapes = [shape(x) for x in inside]
        restored, _ = run("step-restore", files, bin_dir, work)
        for i in range(n):
            try:
                b = data(restored[i] or "")
                same = list(inside[i][0].items()) == list(b[0].items()) and inside[i][1] == b[1]
            except ValueError:
                same = False
            if not same:
                report("step-restore of a valid file", i, restored[i])
        for order in ("children-first", "parent-first", "original"):
            for extra in ((), ("--geometry-first",)) if order == "children-first" else ((),):
                plain, detail = run("step-restructure", files, bin_dir, work, "--order", order, *extra)
                back, _ = run("step-restore", plain, bin_dir, work)
                for i in range(n):
                    try:
                        if plain[i] is None:
                            raise Failed("no output")
                        check_restructured(plain[i], detail[i]["detail"], order)
                        if back[i] is None or shape(data(back[i])) != shapes[i]:
                            raise Failed("another graph")
                        if [x for x in plain[i].split("\n") if not re.match(r"/\* \S+ Section - ", x)] != back[i].split("\n"):
                            raise Failed("restored is not the same less its annotations")
                    except (Failed, ValueError, IndexError) as e:
                        report(f"step-restructure --order {order} {extra}: {e}", i, plain[i], back[i])
                for form in (("--compact",), ("--compact", "--relative"), ("--compact", "--no-annotations"), ("--no-annotations",)):
                    other, _ = run("step-restructure", files, bin_dir, work, "--order", order, *extra, *form)
                    same, _ = run("step-restore", other, bin_dir, work)
                    for i in range(n):
                        if same[i] != back[i]:
                            report(f"step-restructure --order {order} {' '.join(extra + form)}", i, other[i], back[i], same[i])
        twice, _ = run("step-restore", back, bin_dir, work)
        for i in range(n):
            if twice[i] != back[i]:
                report("step-restore twice", i, back[i], twice[i])
    finally:
        shutil.rmtree(work)
    print(f"strict: {n} files, {bad} findings")
    sys.exit(bad > 0)


if __name__ == "__main__":
    main()
