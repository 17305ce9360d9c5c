#!/usr/bin/env python3
"""compare_peft.py step SHAPE BIN WORK          one pass at full size against Transformers + PEFT
   compare_peft.py curve SHAPE BIN WORK TOKENIZER  200 steps on the sample's records against theirs

Needs a GPU, torch, transformers and peft.  SHAPE is a folder of configs/shapes, whose weights are then random, or a model with weights; adapters are random (A and B).
step: loss and the gradients of every adapter matrix, of ours and of PEFT's in bfloat16, and of PEFT's in float32 with the
same (bfloat16) weights.  Ours must be within twice the distance between PEFT's two.
curve: LoRA r 16, AdamW in float32, clipping, warmup and linear decay, the same records in the same order; a base that has weights also in
float32, and what PEFT's bfloat16 differs from its float32 by.  On a CPU float32 alone.  STEPS=, LR= other; RECORDS= pair records to take instead, whole, or a
folder as synth makes it."""
import csv, gc, glob, json, math, os, shutil, subprocess, sys

import torch
from safetensors.torch import load_file, save_file

mode, shape, binaries, work = sys.argv[1:5]
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
os.makedirs(work, exist_ok=True)
torch.backends.cuda.matmul.allow_tf32 = False
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # the CPU: to try the script on a tiny shape


def build(dtype=torch.bfloat16):
    from transformers import AutoConfig, AutoModelForCausalLM
    if os.path.exists(shape + "/model.safetensors"):
        return AutoModelForCausalLM.from_pretrained(shape, dtype=dtype, attn_implementation="sdpa").to(DEVICE)
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    with torch.device(DEVICE):
        m = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(shape), attn_implementation="sdpa")
        for n, p in m.named_parameters():  # biases and norms that matter, too
            if p.dim() == 1:
                p.data += 0.1 * torch.randn_like(p)
    torch.set_default_dtype(torch.float32)
    return m


def with_lora(m, b_std):
    from peft import LoraConfig, get_peft_model
    m = get_peft_model(m, LoraConfig(r=16, lora_alpha=16, lora_dropout=0, target_modules=TARGETS, task_type="CAUSAL_LM"), autocast_adapter_dtype=False)
    torch.manual_seed(1)
    for n, p in m.named_parameters():
        if "lora_B" in n and b_std:
            p.data.normal_(0, b_std)
    return m


def save_base(m, name="base"):
    path = os.path.join(work, name)
    if not os.path.exists(path + "/model.safetensors"):
        m.save_pretrained(path, max_shard_size="20GB")
    json.dump(json.load(open(shape + "/config.json")), open(path + "/config.json", "w"))
    return path


def gradients(m):
    return {n.replace(".default", ""): p.grad.float() for n, p in m.named_parameters() if p.grad is not None}


def ours(args):
    r = subprocess.run([binaries + "/" + args[0]] + args[1:], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if r.returncode:
        sys.exit(f"{args[0]}: exit {r.returncode}\n{r.stdout[-3000:]}")
    return r.stdout


def step():
    n, length = 2, 1536
    m = with_lora(build(), 0.02)
    m.save_pretrained(work + "/adapter")
    ids = torch.randint(0, m.config.vocab_size, (n, length), device=DEVICE)
    ids.cpu().to(torch.int32).numpy().tofile(work + "/ids")
    labels = ids.clone()
    labels[:, :length // 2] = -100

    def run():
        m.zero_grad()
        loss = m(input_ids=ids, labels=labels).loss
        loss.backward()
        return loss.item(), {k: v.cpu() for k, v in gradients(m).items()}
    loss16, g16 = run()
    # the base, as Transformers saves it, from under the adapters
    tensors = {k.replace("base_model.model.", "").replace(".base_layer", ""): v.contiguous() for k, v in m.state_dict().items()
               if "lora_" not in k and not (m.config.tie_word_embeddings and "lm_head" in k)}
    os.makedirs(work + "/base", exist_ok=True)
    save_file(tensors, work + "/base/model.safetensors", metadata={"format": "pt"})
    json.dump(json.load(open(shape + "/config.json")), open(work + "/base/config.json", "w"))
    del tensors
    m.float()
    loss32, g32 = run()
    del m
    gc.collect()
    torch.cuda.empty_cache()
    ok = True
    for memory in ("auto", "low"):
        ours(["train-bench", "--model", work + "/base", "--init", "pretrained", "--adapter", work + "/adapter", "--ids", work + "/ids", "--batch-size", str(n),
              "--length", str(length), "--memory", memory, "--dump", work + "/ours.safetensors", "-q"])
        mine = load_file(work + "/ours.safetensors")
        covered = n * (length - length // 2)
        loss = mine.pop("loss").item()
        assert set(mine) == set(g16), "other gradients"
        total = lambda a, b: math.sqrt(sum(((a[k] - b[k]).double() ** 2).sum().item() for k in a))
        mine = {k: v / covered for k, v in mine.items()}
        size = math.sqrt(sum((v.double() ** 2).sum().item() for v in g32.values()))
        d_ours, d_peft, d_ref = total(mine, g16), total(g16, g32), total(mine, g32)
        worst = max((((mine[k] - g16[k]).norm() / ((g16[k] - g32[k]).norm() + 1e-30)).item(), k) for k in g16)
        print(f"{os.path.basename(shape)}, memory {memory}: loss ours {loss:.6f}, PEFT {loss16:.6f}, PEFT in float32 {loss32:.6f}")
        print(f"  gradients, of size 1: ours - PEFT {d_ours / size:.2e}, PEFT - float32 {d_peft / size:.2e}, ours - float32 {d_ref / size:.2e}; "
              f"worst matrix {worst[0]:.2f} times ({worst[1]})")
        good = abs(loss - loss16) <= 2 * abs(loss16 - loss32) + 1e-4 and d_ours <= 2 * d_peft
        ok &= good
        print("  " + ("within" if good else "NOT within") + " twice PEFT's own distance")
    return ok


def curve():
    tokenizer, steps, batch, limit = sys.argv[5], int(os.environ.get("STEPS", 200)), 1, 2048
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    from tokenizers import Tokenizer
    tok = Tokenizer.from_file(tokenizer + "/tokenizer.json")
    eos = json.load(open(tokenizer + "/tokenizer_config.json"))["eos_token"]
    eos = tok.token_to_id(eos if isinstance(eos, str) else eos["content"])
    records, kept, whole_text = [], [], os.environ.get("RECORDS")
    if whole_text and os.path.isdir(whole_text):
        compact = os.path.exists(shape + "/prompt.json") and json.load(open(shape + "/prompt.json")).get("form") == "compact"
        ours(["step-restructure", whole_text + "/steps", "--out", work + "/steps", "--db", "none", "-q"] + (["--compact", "--no-annotations"] if compact else []))
        for r in csv.DictReader(open(whole_text + "/captions.csv")):
            text = open(f"{work}/steps/{r['model_id']}.step").read()
            records.append({"id_original": r["model_id"], "caption": r["description"], "output": text[text.index("DATA;"):]})
    elif whole_text:
        records = [{k: r[k] for k in ("id_original", "caption", "output")} for r in json.load(open(whole_text))]
    captions = {r["model_id"]: r["description"] for r in csv.DictReader(open(root + "/datasets/sample/captions.csv"))}
    for f in [] if whole_text else sorted(glob.glob(root + "/datasets/sample/steps/*.step")):
        name, text = os.path.basename(f)[:-5], open(f).read()
        records.append({"id_original": name, "caption": captions.get(name, "A part."), "output": text[text.index("DATA;"):][:3200]})
    os.makedirs(work + "/data", exist_ok=True)
    json.dump(records, open(work + "/data/train.json", "w"))
    for r in records:
        prompt = ("You are a CAD model generation assistant trained to produce STEP (.step) files based on textual descriptions. Given the following "
                  "object description, generate a STEP file that accurately represents the described object.\n\n### caption:\n" + r["caption"] + "\n\n### output:\n")
        e = tok.encode(prompt + r["output"])
        response = next(i for i, (a, b) in enumerate(e.offsets) if b > len(prompt))
        if len(e.ids) + 1 <= limit:
            kept.append((e.ids + [eos], response))
    lr, warm = float(os.environ.get("LR", 2e-4)), 10
    # theirs side by side with ours, each a process: small models keep a CPU core busy, not the GPU
    gpu, whole, base = DEVICE == "cuda", os.path.exists(shape + "/model.safetensors"), work + "/base"
    if not whole:
        save_base(build())
        gc.collect()
    else:
        os.makedirs(base, exist_ok=True)
        for f in ("model.safetensors", "config.json"):
            shutil.copy(shape + "/" + f, base)
    for f in ("tokenizer.json", "tokenizer_config.json"):
        open(base + "/" + f, "w").write(open(tokenizer + "/" + f).read())
    json.dump({"kept": kept, "steps": steps, "batch": batch, "lr": lr, "warm": warm}, open(work + "/peft.json", "w"))
    theirs = {d: subprocess.Popen([sys.executable, __file__, "peft", base, binaries, work, d])
              for d in (["bfloat16"] if gpu else []) + (["float32"] if whole or not gpu else [])}

    def ours_of(name, *how):
        shutil.rmtree(work + "/" + name, ignore_errors=True)
        out = ours(["sft", "--model", base, "--data", work + "/data", "--out", work + "/" + name, "--no-rag", "--batch-size", str(batch),
                    "--accumulation", "1", "-o", f"lr={lr}", "--warmup-steps", str(warm), "--max-steps", str(steps), "--max-tokens", str(limit), "--save-steps", "0",
                    "--weight-decay", "0.01", "--json", "-q", "--db", "none", *how])
        return [l["loss"] for l in map(json.loads, filter(lambda l: l.startswith("{"), out.splitlines())) if "loss" in l]

    c = {}
    if gpu:
        c["ours, bf16"] = ours_of("bf16")
        c["ours, fp8"] = ours_of("fp8", "--precision", "fp8")
    if whole or not gpu:
        c["ours, float32"] = ours_of("float32", "--dtype", "float32")
    json.dump(c, open(work + "/curve.json", "w"))
    for d, p in theirs.items():
        assert p.wait() == 0, "PEFT failed"
        c["PEFT, " + {"bfloat16": "bf16"}.get(d, d)] = json.load(open(f"{work}/peft-{d}.json"))
    json.dump(c, open(work + "/curve.json", "w"))
    print(f"{os.path.basename(shape.rstrip('/'))}: {len(kept)} records, {steps} steps; " + "; ".join(f"{k}: {v[0]:.4f} to {v[-1]:.4f}" for k, v in c.items()))
    print("  relative differences of the loss: of a step, largest and mean; of means over ten steps, largest; of the whole curve's mean")
    ok = all(len(v) == steps for v in c.values())
    for a, b, most in (("ours, float32", "PEFT, float32", 1e-3), ("ours, bf16", "PEFT, bf16", 0.01), ("PEFT, bf16", "PEFT, float32", None), ("ours, bf16", "PEFT, float32", None),
                       ("ours, fp8", "ours, bf16", None), ("ours, fp8", "PEFT, bf16", None)):
        if a in c and b in c:
            x, y = c[a], c[b]
            off = [abs(p - q) / q for p, q in zip(x, y)]
            print(f"  {a:13s} - {b:13s}  {max(off):.2e} {sum(off) / len(off):.2e}  {tens(x, y):.2e}  {sum(x) / sum(y) - 1:+.2e}")
            ok &= most is None or tens(x, y) < most
    return ok


def peft():
    """A curve of PEFT's, for curve()."""
    dtype = sys.argv[5]
    with open(work + "/peft.json") as f:
        globals().update(json.load(f))
    m = with_lora(build(getattr(torch, dtype)), 0)
    # the same adapter to start from: sft's own generator is not PEFT's, so A is drawn as sft draws it
    for name, p in draw_adapters(m, 3407):
        p.data.copy_(p.new_tensor(name))
    params = [p for p in m.parameters() if p.requires_grad]
    masters = [p.detach().float().clone() for p in params]
    opt = torch.optim.AdamW(masters, lr=lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
    m.train()
    losses = []
    per_epoch = (len(kept) + batch - 1) // batch
    for i in range(steps):
        order = shuffled(len(kept), 3407, i // per_epoch)
        chosen = [kept[k] for k in order[i % per_epoch * batch:][:batch]]
        covered = sum(len(ids) - r for ids, r in chosen)
        total = 0
        for ids, r in chosen:
            x = torch.tensor([ids], device=DEVICE)
            y = x.clone()
            y[:, :r] = -100
            loss = m(input_ids=x, labels=y).loss * ((len(ids) - r) / covered)
            loss.backward()
            total += loss.detach()
        for w, p in zip(masters, params):
            w.grad = p.grad.float()
        torch.nn.utils.clip_grad_norm_(masters, 1.0)
        factor = i / warm if i < warm else (steps - i) / (steps - warm)
        for g in opt.param_groups:
            g["lr"] = lr * factor
        opt.step()
        for w, p in zip(masters, params):
            p.data.copy_(w)
            p.grad = None
        losses.append(total.item())
    json.dump(losses, open(f"{work}/peft-{dtype}.json", "w"))
    return True


def tens(a, b):
    a, b = ([sum(v[i:i + 10]) for i in range(0, len(v), 10)] for v in (a, b))
    return max(abs(x - y) / y for x, y in zip(a, b))


MASK = (1 << 64) - 1


def splitmix(s):
    s[0] = (s[0] + 0x9e3779b97f4a7c15) & MASK
    z = s[0]
    z = ((z ^ (z >> 30)) * 0xbf58476d1ce4e5b9) & MASK
    z = ((z ^ (z >> 27)) * 0x94d049bb133111eb) & MASK
    return z ^ (z >> 31)


def shuffled(n, seed, epoch):
    s, order = [(seed * 0x9e3779b97f4a7c15 + epoch) & MASK], list(range(n))
    for i in range(n, 1, -1):
        j = splitmix(s) % i
        order[j], order[i - 1] = order[i - 1], order[j]
    return order


def draw_adapters(m, seed):
    """The A of each projection in the order in which lora_attach() draws them."""
    import numpy as np
    state = (seed * 0x2545f4914f6cdd1d + 1) & MASK
    by_name = dict(m.named_parameters())
    for i in range(m.config.num_hidden_layers):
        for t in TARGETS:
            block = "mlp" if t in ("gate_proj", "up_proj", "down_proj") else "self_attn"
            p = by_name[f"base_model.model.model.layers.{i}.{block}.{t}.lora_A.default.weight"]
            n, cols = p.numel(), p.shape[1]
            with np.errstate(over="ignore"):
                z = np.uint64(state) + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9e3779b97f4a7c15)
                state = int(z[-1])
                z = (z ^ (z >> np.uint64(30))) * np.uint64(0xbf58476d1ce4e5b9)
                z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94d049bb133111eb)
                z = z ^ (z >> np.uint64(31))
            a = (2.0 * ((z >> np.uint64(11)).astype(np.float64) * 2.0 ** -53) - 1) / math.sqrt(cols)
            yield a.astype(np.float32).reshape(p.shape), p


sys.exit(0 if {"step": step, "curve": curve, "peft": peft}[mode]() else 1)
