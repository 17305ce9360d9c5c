#!/usr/bin/env python3
"""Makes adamw8bit.safetensors, what test_model_optim compares 8-bit AdamW with.

    python3 make.py        (torch, numpy, safetensors, bitsandbytes 0.50.2)

map1, map2: bitsandbytes' dynamic maps.  Two parameters, a [64, 130] (8-bit state, its last block not full) and b [40, 20] (under
4096 elements: float32 state), walk 20 steps of lr 1e-2, betas 0.9 0.999, eps 1e-8, weight decay 0.01 on made-up gradients:

exact.*   by the scheme of bitsandbytes' CUDA kernel written out in NumPy, each operation rounded to float32 (codes by its
          binary search, the first moment's sign kept; weight decay ahead of the step as in PyTorch and in its own CPU code):
          weights, codes and factors at steps 1, 5, 20.  Ours has the same bits.
package.* by the package itself on the CPU: the weights at step 20.  Its CPU code finds codes by a table of 65,536
          entries and lets signs go, so some codes are others; the walk stays close.
single.*  by PyTorch's AdamW in float32."""
import os, torch, numpy as np, bitsandbytes
from bitsandbytes.functional import create_dynamic_map
from safetensors.numpy import save_file

f = np.float32
LR, B1, B2, EPS, WD, STEPS = 1e-2, 0.9, 0.999, 1e-8, 0.01, 20
shapes = {"a": (64, 130), "b": (40, 20)}


def made_up(n, step):
    """Exact in float32, of either sign and magnitudes that vary from element to element and block to block."""
    i = np.arange(n, dtype=np.uint64)
    h = (i * np.uint64(2654435761) + np.uint64(step * 40503)) % np.uint64(2 ** 32) >> np.uint64(16)
    h = h.astype(np.int64)
    size = (16384 + h // 2 * 3 // 2) / 65536 * 2.0 ** -((i % 5).astype(np.int64) + (i // 256 % 3).astype(np.int64))
    return np.where(h % 2 == 1, size, -size).astype(f)


def nearest(code, x, lowest):
    pivot, above, below = (np.full(x.shape, k) for k in (127, 255, 0))
    upper, lower, val = np.full(x.shape, f(1)), np.full(x.shape, f(lowest)), np.full(x.shape, code[127])
    for i in (64, 32, 16, 8, 4, 2, 1):
        more = x > val
        below, lower = np.where(more, pivot, below), np.where(more, val, lower)
        above, upper = np.where(more, above, pivot), np.where(more, upper, val)
        pivot = np.where(more, pivot + i, pivot - i)
        val = code[pivot]
    up, down = x > (upper + val) * f(0.5), x < (lower + val) * f(0.5)
    return np.where(x > val, np.where(up, above, pivot), np.where(down, below, pivot))


def encode(code, x, signed):
    blocks = [x[k:k + 256] for k in range(0, len(x), 256)]
    top = np.array([np.abs(b).max() for b in blocks], dtype=f)
    out = []
    for b, t in zip(blocks, top):
        c = nearest(code, b / t, -1 if signed else 0) if t > 0 else np.zeros(len(b), int)
        if signed and t > 0:
            c = c + np.where(np.signbit(code[c]) != np.signbit(b), np.where(b > 0, 1, -1), 0)
        out.append(c)
    return np.concatenate(out).astype(np.uint8), top


def decode(code, c, top):
    return code[c] * np.repeat(top, 256)[:len(c)]


maps = [create_dynamic_map(s).numpy() for s in (True, False)]
out = {"map1": maps[0], "map2": maps[1]}
start = {k: made_up(s[0] * s[1], 99) for k, s in shapes.items()}
for k, s in shapes.items():
    n, w = s[0] * s[1], start[k].copy()
    blocks = (n + 255) // 256
    c1, c2 = np.zeros(n, np.uint8), np.zeros(n, np.uint8)
    t1, t2, m, v = np.zeros(blocks, f), np.zeros(blocks, f), np.zeros(n, f), np.zeros(n, f)
    for step in range(1, STEPS + 1):
        g = made_up(n, step)
        fix1, fix2 = 1 - B1 ** step, (1 - B2 ** step) ** 0.5
        if n >= 4096:
            m, v = decode(maps[0], c1, t1), decode(maps[1], c2, t2)
        m = m * f(B1) + f(1 - B1) * g
        v = v * f(B2) + f(1 - B2) * g * g
        w = w * f(1 - LR * WD) + f(-LR * fix2 / fix1) * (m / (np.sqrt(v) + f(EPS * fix2)))
        if n >= 4096:
            c1, t1 = encode(maps[0], m, True)
            c2, t2 = encode(maps[1], v, False)
        if step in (1, 5, STEPS):
            out[f"exact.{k}.{step}"] = w
            if n >= 4096:
                out |= {f"exact.{k}.{step}.code1": c1, f"exact.{k}.{step}.code2": c2, f"exact.{k}.{step}.max1": t1, f"exact.{k}.{step}.max2": t2}

for name, make in (("package", bitsandbytes.optim.AdamW8bit), ("single", torch.optim.AdamW)):
    p = {k: torch.nn.Parameter(torch.tensor(start[k]).reshape(s)) for k, s in shapes.items()}
    o = make(list(p.values()), lr=LR, betas=(B1, B2), eps=EPS, weight_decay=WD)
    for step in range(1, STEPS + 1):
        for k, s in shapes.items():
            p[k].grad = torch.tensor(made_up(s[0] * s[1], step)).reshape(s)
        o.step()
    for k in shapes:
        out[f"{name}.{k}"] = p[k].detach().numpy().reshape(-1).copy()
        d = np.abs(out[f"{name}.{k}"] - out[f"exact.{k}.{STEPS}"])
        print(name, k, "largest difference from exact", d.max(), "mean", d.mean(), "of a walk of", np.abs(out[f"{name}.{k}"] - start[k]).mean())
save_file(out, os.path.join(os.path.dirname(os.path.abspath(__file__)), "adamw8bit.safetensors"))
