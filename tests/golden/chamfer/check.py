#!/usr/bin/env python3
"""The metrics against the original's recorded figures and the golden files:

    check.py BIN GOLDEN fast|all

Clouds as given and after ICP, triangulations (mesh_stats.tsv), pairs of a part and itself and of different parts
(pairs.tsv, noise.tsv), moved and scaled copies, verdicts on damaged files.  `fast` takes every sixth of them."""
import array, collections, csv, json, os, statistics, subprocess, sys, tempfile

bin_, golden, how = sys.argv[1:4]
every = 6 if how == "fast" else 1
work = tempfile.TemporaryDirectory()
failures = []


def check(good, what):
    print(("ok    " if good else "FAIL  ") + what)
    if not good:
        failures.append(what)


def lines(tool, *args):
    r = subprocess.run([os.path.join(bin_, tool), "--db", "none", "--json", "-q", *args], capture_output=True, text=True)
    if r.returncode not in (0, 1):
        sys.exit(f"{tool} {args}: exit {r.returncode}: {r.stderr[-500:]}")
    return [json.loads(l) for l in r.stdout.splitlines()]


def pairs(files, *args):
    """chamfer of (truth, prediction) paths in one process, in their order."""
    d = tempfile.mkdtemp(dir=work.name)
    for side in ("t", "p"):
        os.mkdir(f"{d}/{side}")
    for i, (truth, pred) in enumerate(files):
        os.symlink(os.path.abspath(truth), f"{d}/t/{i:04}.step")
        os.symlink(os.path.abspath(pred), f"{d}/p/{i:04}.step")
    out = {int(j["pred"].split("/")[-1][:4]): j for j in lines("chamfer", "--truth", d + "/t", "--pred", d + "/p", *args) if "pred" in j}
    return [out[i] for i in range(len(files))]


def table(name):
    with open(f"{golden}/chamfer/{name}") as f:
        return list(csv.DictReader(f, delimiter="\t"))


def cloud(path):
    a = array.array("d")
    with open(path, "rb") as f:
        a.frombytes(f.read())
    return a


def clouds():
    dir_, cd, icp, n = f"{golden}/chamfer/fixtures", 0, 0, 0
    with open(dir_ + "/index.json") as f:
        index = [e for e in json.load(f) if os.path.exists(f"{dir_}/{e['i']:02}_p1.f64")]
    for e in index[::every]:
        p = f"{dir_}/{e['i']:02}_"
        j = lines("chamfer", "--clouds", p + "p1.f64", p + "p2_aligned.f64")[0]
        cd = max(cd, abs(j["cd"] / e["cd_raw"] - 1), abs(j["scd"] / e["cd_norm"] - 1))
        moved = work.name + "/moved.f64"
        lines("chamfer", "--clouds", "--icp-from", "--aligned", moved, p + "p1.f64", p + "p2_ransac.f64")
        icp = max(icp, max(abs(a - b) for a, b in zip(cloud(moved), cloud(p + "p2_aligned.f64"))) / e["scale1"])
        n += 1
    check(n and cd < 1e-6, f"distances of {n} aligned clouds within 1e-6: {cd:.2g}")
    check(n and icp < 1e-9, f"points after ICP within 1e-9 of RMS: {icp:.2g}")


def meshes():
    rows = [(r, p) for r in table("mesh_stats.tsv") for p in [f"{golden}/chamfer/{d}/{r['file']}" for d in ("steps", "moved")] if os.path.exists(p)][::every]
    worst, n = 0, 0
    for (r, _), j in zip(rows, pairs([(p, p) for _, p in rows], "--align", "reference")):
        t, box = j["truth_part"], [float(r[k]) for k in ("xmin", "ymin", "zmin", "xmax", "ymax", "zmax")]
        off = max(abs(t["mesh_area"] / float(r["area"]) - 1), abs(t["mesh_volume"] / float(r["volume"]) - 1) if float(r["volume"]) else 0,
                  max(abs(a - b) for a, b in zip(t["bbox"], box)) / max(box[k + 3] - box[k] for k in range(3)))
        worst, n = max(worst, off), n + 1
    check(n and worst < 1e-2, f"area, volume and box of {n} triangulations within 1 %: {worst:.2g}")


def recorded():
    steps, rows, seeds = f"{golden}/chamfer/steps/", table("pairs.tsv"), collections.defaultdict(list)
    for r in table("noise.tsv"):
        if r["vary"] == "seed":
            seeds[r["kind"], r["f1"], r["f2"]].append(float(r["cd_norm"]))
    for kind in ("self", "next"):
        some = [r for r in rows if r["kind"] == kind][::every]
        out = pairs([(steps + r["f1"], steps + r["f2"]) for r in some], "--align", "reference")
        check(all(abs(j["scale"] / float(r["scale1"]) - 1) < 1e-6 and j["seed"] == int(r["seed"]) for r, j in zip(some, out)),
              f"{kind}: seeds and scales of {len(some)} pairs")
        if kind == "self":
            off = [j["scd"] / j["noise"] - 1 for j in out]
            check(all(abs(x) < 0.15 for x in off), f"self: within 15 % of A/(pi N rms^2): {min(off):+.3f} to {max(off):+.3f}")
        else:
            ratio = [j["scd"] / statistics.median(seeds.get((kind, r["f1"], r["f2"])) or [float(r["cd_norm"])]) for r, j in zip(some, out)]
            good = sum(x <= 1.25 for x in ratio)
            check(good >= 0.9 * len(ratio) - (how == "fast"), f"next: at most 1.25 of the original's median on {good} of {len(ratio)}; the worst {max(ratio):.2f}")


def moved():
    with open(f"{golden}/chamfer/moved/manifest.json") as f:
        copies = json.load(f)[::every]
    out = pairs([(f"{golden}/chamfer/steps/" + os.path.basename(m["src"]), f"{golden}/chamfer/moved/" + os.path.basename(m["dst"])) for m in copies])
    large = [m["dst"] for m, j in zip(copies, out) if j["status"] != "ok" or j["shape_scd_two_sided"] > 4 * j["noise"]]
    check(not large, f"best alignment: none of {len(copies)} moved and scaled copies taken for another part {large}")
    check(all(abs(j["size_ratio"] / m["scale"] - 1) < 0.02 for m, j in zip(copies, out) if j["status"] == "ok"), "their size")


def verdicts():
    recorded = {r["file"]: r for r in csv.DictReader(open(f"{golden}/bad/reference_verdicts.tsv"), delimiter="\t") if r["mode"] == "single"}
    # OpenCASCADE 7.6.3 itself hangs or crashes on these, where the recorded 8.0 returns (docs/tables.md).
    other = {"12_nan_text.step", "17_wrong_arg_count.step", "18_cycle_two_entities.step"}
    wrong, n, fields = [], 0, set("renderable status reason num_roots_expected num_roots_found roots has_mixed_geometry wireframe_representations "
                                  "surface_representations stl_ok trimesh_verified trimesh_faces duration_seconds reader_errors_present".split())
    for j in lines("renderability", "--mode", "reference", "--timeout", "5" if how != "fast" else "1.5", golden + "/bad"):
        if "file" not in j:
            continue
        name, n = os.path.basename(j["file"]), n + 1
        r = recorded[name]
        if name not in other and (str(j["renderable"]), j["status"], str(j["reason"])) != (r["renderable"], r["status"], r["reason"]):
            wrong.append((name, j["status"], j["reason"]))
        if not fields <= set(j):
            wrong.append((name, fields - set(j)))
    check(n == len(recorded) and not wrong, f"verdicts on {n} damaged files, reference {wrong}")
    lax = {"09_self_reference.step", "11_huge_number.step", "12_nan_text.step", "21_all_coords_zero.step", "29_points_only.step", "30_single_face_shell.step", "32_coord_1e30.step"}
    strict = {os.path.basename(j["file"]): j for j in lines("renderability", "--timeout", "5", golden + "/bad") if "file" in j}
    bad = [n for n in lax if strict[n]["renderable"] or not strict[n]["reason"]]
    check(not bad, f"strict: what is no sane solid is not renderable, each with its reason {bad}")


for part in (clouds, meshes, recorded, moved, verdicts):
    part()
print(f"{len(failures)} failed")
sys.exit(bool(failures))
