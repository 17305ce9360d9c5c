#!/usr/bin/env python3
"""Our token ids and decoded text against Hugging Face's `tokenizers`.

    compare.py DUMP TOKENIZER [FILE...]      (see dump.c; needs the package tokenizers)

Compares made-up texts (texts.py), and FILEs (.csv and .json by line, others whole, bytes that
are not UTF-8 replaced).  Exit 1 and the first differences if anything differs."""
import os
import struct
import subprocess
import sys
import time

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"
from tokenizers import Tokenizer  # noqa: E402

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import texts  # noqa: E402


def frames(batch):
    for s in batch:
        b = s.encode()
        yield struct.pack("<I", len(b)) + b


def ours(dump, tokenizer, batch):
    p = subprocess.run([dump, tokenizer], input=b"".join(frames(batch)), stdout=subprocess.PIPE, check=True)
    out, at, result = p.stdout, 0, []
    for _ in batch:
        n, = struct.unpack_from("<I", out, at)
        ids = list(struct.unpack_from(f"<{n}i", out, at + 4))
        at += 4 + 4 * n
        m, = struct.unpack_from("<I", out, at)
        result.append((ids, out[at + 4:at + 4 + m].decode()))
        at += 4 + m
    return result


def main():
    dump, tokenizer, files = sys.argv[1], sys.argv[2], sys.argv[3:]
    path = os.path.join(tokenizer, "tokenizer.json") if os.path.isdir(tokenizer) else tokenizer
    hf = Tokenizer.from_file(path)
    added = [t.content for t in hf.get_added_tokens_decoder().values()]
    sets = {"edges": list(texts.edges()), "normal forms": list(texts.normal_forms()),
            "mixed": list(texts.mixed(20000, added=added)), "every code point": list(texts.every_code_point())}
    real = []
    for f in files:
        s = open(f, "rb").read().decode("utf-8", "replace")
        real += s.splitlines(keepends=True) if f.endswith((".csv", ".json")) else [s]
    if real:
        sets["files"] = real
    failed = 0
    for name, batch in sets.items():
        got = ours(dump, tokenizer, batch)
        start, bad, size = time.time(), 0, sum(len(s.encode()) for s in batch)
        want = [hf.encode(s).ids for s in batch]
        seconds = time.time() - start
        for s, (ids, back), ref in zip(batch, got, want):
            if ids != ref:
                k = next((i for i, (a, b) in enumerate(zip(ids, ref)) if a != b), min(len(ids), len(ref)))
                around = hf.decode(ref[max(0, k - 3):k + 5], skip_special_tokens=False)
                what = f"ids from {k}: {ids[k:k + 6]}, tokenizers has {ref[k:k + 6]}"
            else:
                ref_back = hf.decode(ref, skip_special_tokens=False)
                if back == ref_back:
                    continue
                around, what = ref_back[:60], f"decoded {back[:60]!r}"
            bad += 1
            if bad <= int(os.environ.get("SHOW", 5)):
                print(f"  {name}: near {around!r}: {what}")
        failed += bad
        print(f"{name}: {len(batch)} texts, {size / 1e6:.2f} MB, {bad} differ ({size / 1e6 / seconds:.2f} MB/s there)")
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
