"""What the original's three scripts do with a file's bytes, as slowly and plainly as can be.

Written from the rules alone (regular expressions and full tree expansion), not from lib/step_reference.c,
which gives the same bytes in linear time; compare.py sets the two against each other.
"""
import re

MDGPR = "MECHANICAL_DESIGN_GEOMETRIC_PRESENTATION_REPRESENTATION"
PRUNED = ("PRODUCT_DEFINITION_FORMATION_WITH_SPECIFIED_SOURCE", "PRODUCT_DEFINITION_CONTEXT")
MAX_DEPTH = 20


class TooBig(Exception):
    """The tree has more nodes than a test should expand."""


class NoData(Exception):
    """No text between DATA; and ENDSEC;."""


def universal_newlines(text):
    return text.replace("\r\n", "\n").replace("\r", "\n")


# ---- round ----

def round_numbers(data, decimals=6):
    text = universal_newlines(data.decode("utf-8", "ignore"))

    def one(m):
        s = m.group(0)
        if m.start() and text[m.start() - 1] == "#":
            return s
        mantissa, e, exponent = s.partition("E")
        if not e and re.search(r"[+-]", mantissa[1:]):
            return s
        return "%.*f" % (decimals, float(mantissa)) + e + exponent

    return re.sub(r"\b-?\d+\.\d+E?[+-]?\d*\b", one, text).encode("utf-8")


# ---- restructure ----

class Entity:
    def __init__(self, id):
        self.id, self.text, self.type, self.refs = id, None, None, []
        self.is_simple = self.is_complex = False


def decode(data):
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def read(data_text):
    simple, complex_ = {}, {}
    for c in re.findall(r"#\d+\s*=\s*[^;]+;", data_text):
        if re.search(r"#\d+\s*=\s*\(", c):
            m = re.search(r"#(\d+)\s*=\s*(.*);", c)
            if m:
                complex_[int(m.group(1))] = c
            continue
        m = re.search(r"#(\d+)\s*=\s*([A-Z_][A-Z0-9_]*)\s*\((.*)\)\s*;", c, re.S)
        if m:
            simple[int(m.group(1))] = (c, m.group(2), m.group(3))
    entities = {}
    for id in list(simple) + list(complex_):
        e = entities.setdefault(id, Entity(id))
        e.is_complex = id in complex_
        e.is_simple = id in simple
        if e.is_simple:
            e.text, e.type, params = simple[id]
        else:
            e.text = params = complex_[id]
        e.refs = [r for r in map(int, re.findall(r"#(\d+)", params)) if r != id and (r in simple or r in complex_)]
    return entities


def expand(entities, root, prune=False, limit=200000):
    """Every entry of the tree, in pre-order: (entity, depth, cut)."""
    out, path = [], set()

    def visit(id, depth):
        e = entities[id]
        cut = depth > MAX_DEPTH or id in path
        out.append((e, depth, cut))
        if len(out) > limit:
            raise TooBig
        if cut or (prune and e.type in PRUNED):
            return
        path.add(id)
        for r in e.refs:
            visit(r, depth + 1)
        path.discard(id)

    visit(root, 0)
    return out


def restructure(data):
    text = universal_newlines(decode(data))
    m = re.search(r"ISO-10303-21;.*?DATA;", text, re.S)
    header = m.group(0) if m else ""
    m = re.search(r"DATA;(.*?)ENDSEC;", text, re.S)
    if not m:
        raise NoData
    entities = read(m.group(1))
    named = {r for e in entities.values() for r in e.refs}
    roots = sorted(e.id for e in entities.values() if e.is_simple and e.id not in named)
    of_type = lambda t: [r for r in roots if entities[r].type == t]
    items, printed = [], set()

    def put(e, text=None):
        items.append(text or e.text)
        printed.add(e.id)

    def put_tree(entries):
        for e, _, cut in entries:
            if not cut and e.id not in printed:
                put(e)

    group = of_type("PRODUCT_CATEGORY_RELATIONSHIP")
    if group:
        items.append("/* PRODUCT_CATEGORY_RELATIONSHIP Section - %d root entities */" % len(group))
        trees = [expand(entities, r) for r in group]
        for level in range(MAX_DEPTH + 1):
            for tree in trees:
                put_tree(x for x in tree if x[1] == level)
    for r in of_type("APPLICATION_PROTOCOL_DEFINITION"):
        tree = expand(entities, r)
        if max(depth for _, depth, _ in tree) != 1:
            items.append("/* APPLICATION_PROTOCOL_DEFINITION Section - Unusual depth */")
        put_tree(tree)
    presentations = of_type(MDGPR)
    for r in presentations:
        root = entities[r]
        styled = [entities[x] for x in root.refs if entities[x].type == "STYLED_ITEM"]
        complexes = [entities[x] for x in root.refs if entities[x].is_complex]
        items.append("/* %s Section - %d STYLED_ITEM, %d COMPLEX_ENTITY */" % (MDGPR, len(styled), len(complexes)))
        put(root)
        colours = []
        for e, _, cut in expand(entities, r):
            if not cut and e.type == "COLOUR_RGB" and e.id not in colours:
                colours.append(e.id)
        replaced = set(colours[1:])
        if colours:
            items.append("#%d=COLOUR_RGB( , 0.5, 0.5, 0.5 );" % colours[0])
            printed.add(colours[0])
        recolour = lambda s: re.sub(r"#(\d+)\b", lambda t: "#%d" % colours[0] if int(t.group(1)) in replaced else t.group(0), s)
        for i, s in enumerate(styled, 1):
            items.append("/* BEGIN STYLED_ITEM %d */" % i)
            for e, _, cut in expand(entities, s.id):
                if not cut and e.id not in printed and e.id not in replaced:
                    put(e, recolour(e.text))
            items.append("/* END STYLED_ITEM %d */" % i)
        for i, c in enumerate(complexes, 1):
            items.append("/* BEGIN COMPLEX_ENTITY %d */" % i)
            seen = set()
            for e, _, cut in expand(entities, c.id):
                if not cut and e.id not in seen and e.id not in printed:
                    put(e)
                seen.add(e.id)
            items.append("/* END COMPLEX_ENTITY %d */" % i)
    group = of_type("SHAPE_DEFINITION_REPRESENTATION")
    if group:
        items.append("/* SHAPE_DEFINITION_REPRESENTATION Section - %d subtrees */" % len(group))
    for i, r in enumerate(group, 1):
        items.append("/* BEGIN SHAPE_DEFINITION_REPRESENTATION %d */" % i)
        put_tree(expand(entities, r, prune=True))
        items.append("/* END SHAPE_DEFINITION_REPRESENTATION %d */" % i)

    new_id = {}
    for item in items:
        m = re.match(r"#(\d+)\s*=", item)
        if m:
            new_id.setdefault(int(m.group(1)), len(new_id) + 1)
    renumber = lambda s, of, key: re.sub(r"#(\d+)\b", lambda t: key % of[int(t.group(1))] if int(t.group(1)) in of else t.group(0), s)
    lists = [[new_id[x] for x in entities[r].refs if x in new_id] for r in presentations]
    is_root_line = lambda s: re.match(r"#\d+\s*=\s*" + MDGPR + r"\s*\(", s)
    out, nth, current, used = [], 0, -1, [0] * len(lists)
    for item in items:
        item = renumber(item, new_id, "#%d")
        if is_root_line(item):
            if nth < len(lists):
                item = renumber(item, {id: k for k, id in enumerate(lists[nth], 1)}, "#ID_%d")
            nth += 1
            if is_root_line(item):
                current += 1
        out.append(item)
        if re.match(r"/\* BEGIN (STYLED_ITEM|COMPLEX_ENTITY) ", item) and 0 <= current < len(lists):
            k = used[current]
            if k < len(lists[current]):
                out.append("/* ID_%d = %d */" % (k + 1, lists[current][k]))
                used[current] += 1
    return (header + "\n" + "".join(i + "\n" for i in out) + "ENDSEC;\nEND-ISO-10303-21;\n").encode("utf-8")


# ---- restore ----

def restore(data):
    lines = decode(data).splitlines()
    is_root = [bool(re.match(r"\s*#\d+\s*=\s*" + MDGPR + r"\s*\(", s)) for s in lines]
    out = []
    for i, line in enumerate(lines):
        if is_root[i]:
            keys = {}
            for j in range(i + 1, len(lines)):
                if is_root[j]:
                    break
                m = re.fullmatch(r"\s*/\*\s*ID_(\d+)\s*=\s*(\d+)\s*\*/\s*", lines[j])
                if m:
                    keys[m.group(1)] = int(m.group(2))
            line = re.sub(r"#ID_(\d+)\b", lambda t: "#%d" % keys[t.group(1)] if t.group(1) in keys else t.group(0), line)
        line = re.sub(r"/\*.*?\*/", "", line)
        if line.strip():
            out.append(line)
    return ("\n".join(out) + "\n").encode("utf-8")
