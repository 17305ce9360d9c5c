#!/usr/bin/env python3
"""bench_unsloth.py SHAPE WORK TOKENIZER [BATCHxLENGTH ...] [LENGTHS-FILE]
Training speed of Unsloth (what STEP-LLM's authors used) on random weights of a shape of configs/shapes, as train-bench
measures ours: LoRA r 16 on the seven projections, bfloat16, bitsandbytes' 8-bit AdamW, Unsloth's checkpointing, half of each
sequence masked, whole steps.  A lengths file: steps of 4 batches of 2, each padded to its longer one; useful tokens count.
Prints a JSON line each.  Needs a GPU, torch, transformers, unsloth, bitsandbytes."""
import gc, json, os, shutil, sys, time

shape, work, tokenizer = sys.argv[1:4]
runs = sys.argv[4:]


def save():
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    if os.path.exists(work + "/model.safetensors"):
        return
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        m = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(shape))
    m.save_pretrained(work, max_shard_size="20GB")
    for f in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer + "/" + f, work)


if os.environ.get("BENCH_SAVE"):
    save()
    sys.exit()
if os.system(f"BENCH_SAVE=1 {sys.executable} {' '.join(sys.argv)}"):
    sys.exit("the random model cannot be saved")

from unsloth import FastLanguageModel
import bitsandbytes as bnb
import torch

model, _ = FastLanguageModel.from_pretrained(model_name=work, max_seq_length=16384, dtype=None, load_in_4bit=False, local_files_only=True)
model = FastLanguageModel.get_peft_model(model, r=16, lora_alpha=16, lora_dropout=0, bias="none", random_state=3407, use_gradient_checkpointing="unsloth",
    target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"])
model.train()
vocab = model.config.vocab_size


def batch(lengths):
    longest = max(lengths)
    ids = torch.randint(0, vocab, (len(lengths), longest), device="cuda")
    labels, mask = ids.clone(), torch.zeros_like(ids)
    for i, n in enumerate(lengths):
        labels[i, :n // 2] = -100
        labels[i, n:] = -100
        mask[i, :n] = 1
    return ids, labels, mask


def timed(name, steps, warm):
    """steps: of each a list of batches of lengths"""
    opt = bnb.optim.AdamW8bit([p for p in model.parameters() if p.requires_grad], lr=5e-5, weight_decay=0.01)
    took, tokens = [], []
    torch.cuda.reset_peak_memory_stats()
    for k, batches in enumerate(steps):
        made = [batch(b) for b in batches]
        torch.cuda.synchronize()
        t0 = time.time()
        for ids, labels, mask in made:
            (model(input_ids=ids, labels=labels, attention_mask=mask).loss / len(made)).backward()
        opt.step()
        opt.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        if k >= warm:
            took.append(time.time() - t0)
            tokens.append(sum(sum(b) for b in batches))
    seconds = sorted(took)[len(took) // 2] if len(set(tokens)) == 1 else sum(took) / len(took)
    print(json.dumps({"peer": "unsloth", "run": name, "tokens_per_s": round(sum(tokens) / len(tokens) / seconds), "step_s": round(seconds, 4),
                      "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2)}), flush=True)
    del opt
    gc.collect()
    torch.cuda.empty_cache()


for r in runs:
    try:
        if os.path.exists(r):
            n = [int(x) for x in open(r).read().split()]
            timed(os.path.basename(r), [[n[k + i:k + i + 2] for i in range(0, 8, 2)] for k in range(0, len(n) - 7, 8)], 1)
        else:
            b, length = map(int, r.split("x"))
            timed(r, [[[length] * b]] * 7, 2)
    except Exception as e:
        print(json.dumps({"peer": "unsloth", "run": r, "error": str(e)[:300]}), flush=True)
