#!/usr/bin/env python3
"""Makes curve/: 200 steps of LoRA training by Transformers and PEFT in float32 on the CPU, which t32-train-guards.sh has sft repeat.

    python3 curve.py TOKENIZER        (torch, transformers, peft, safetensors; TOKENIZER: a folder that
                                       tokenizer-train made of datasets/sample with --vocab-size 600)

A Qwen2 model of 2 layers with random weights, an adapter of r 4, 40 records of the sample's parts (tests/e2e/tiny_model.py),
4 records a step in sft's order (SplitMix64, Fisher-Yates, seed 3407), AdamW with weight decay 0.01, clipping to norm 1, 20 steps of warm-up and
linear decay from 2e-3; the loss of a step is the mean over its response tokens.  expect.json holds the losses and norms."""
import json, math, os, shutil, subprocess, sys, torch
from tokenizers import Tokenizer
from transformers import Qwen2Config, Qwen2ForCausalLM
from peft import LoraConfig, get_peft_model

here = os.path.dirname(os.path.abspath(__file__))
root = os.path.dirname(os.path.dirname(os.path.dirname(here)))
out = here + "/curve"
STEPS, EACH, WARM, LR, SEED = 200, 4, 20, 2e-3, 3407

shutil.rmtree(out, ignore_errors=True)
subprocess.run([sys.executable, root + "/tests/e2e/tiny_model.py", root, out], check=True)
os.rename(out + "/data/train.json", out + "/train.json")
for d in ("data", "arch", "wide", "narrow"):
    shutil.rmtree(f"{out}/{d}", ignore_errors=True)
torch.manual_seed(7)
model = Qwen2ForCausalLM(Qwen2Config(vocab_size=600, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                                     max_position_embeddings=1024, rope_theta=1e6, tie_word_embeddings=True, initializer_range=0.1)).bfloat16()
model.save_pretrained(out)
model = Qwen2ForCausalLM.from_pretrained(out, dtype=torch.float32)  # not .float(): that keeps the rotary table's bfloat16 rounding
for f in ("tokenizer.json", "tokenizer_config.json"):
    shutil.copy(os.path.join(sys.argv[1], f), out)
targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
peft = get_peft_model(model, LoraConfig(r=4, lora_alpha=16, lora_dropout=0.0, target_modules=targets, task_type="CAUSAL_LM"))
peft.save_pretrained(out + "/adapter")
for f in ("generation_config.json", "adapter/README.md"):
    if os.path.exists(f"{out}/{f}"):
        os.remove(f"{out}/{f}")

tok = Tokenizer.from_file(out + "/tokenizer.json")
eos = tok.token_to_id(json.load(open(out + "/tokenizer_config.json"))["eos_token"])
head = ("You are a CAD model generation assistant trained to produce STEP (.step) files based on textual descriptions. Given the following object "
        "description and relevant retrieved CAD data, generate a STEP file that accurately represents the described object.\n\n\n### caption:\n")
data = []
for r in json.load(open(out + "/train.json")):
    prompt = f"{head}{r['caption']}\n\n### retrieved relevant step file:\n{r['relavant_step_file']}\n\n### output:\n"
    e = tok.encode(prompt + r["output"])
    data.append((e.ids + [eos], next(i for i, (a, b) in enumerate(e.offsets) if a >= len(prompt))))

M = 2 ** 64 - 1


def order(epoch):
    s, v = (SEED * 0x9e3779b97f4a7c15 + epoch) & M, list(range(len(data)))
    for i in range(len(data), 1, -1):
        s = (s + 0x9e3779b97f4a7c15) & M
        z = ((s ^ s >> 30) * 0xbf58476d1ce4e5b9) & M
        z = ((z ^ z >> 27) * 0x94d049bb133111eb) & M
        j = (z ^ z >> 31) % i
        v[j], v[i - 1] = v[i - 1], v[j]
    return v


opt = torch.optim.AdamW([p for p in peft.parameters() if p.requires_grad], lr=LR, weight_decay=0.01)
per_epoch, losses, norms = math.ceil(len(data) / EACH), [], []
for step in range(STEPS):
    for g in opt.param_groups:
        g["lr"] = LR * (step / WARM if step < WARM else (STEPS - step) / (STEPS - WARM))
    mine = [data[i] for i in order(step // per_epoch)[step % per_epoch * EACH:][:EACH]]
    n, total = sum(len(ids) - at for ids, at in mine), 0.0
    for ids, at in mine:
        x = torch.tensor([ids])
        logits = peft(input_ids=x).logits[0, at - 1:-1]
        loss = torch.nn.functional.cross_entropy(logits, x[0, at:], reduction="sum") / n
        loss.backward()
        total += loss.item()
    norms.append(torch.nn.utils.clip_grad_norm_([p for p in peft.parameters() if p.requires_grad], 1.0).item())
    opt.step()
    opt.zero_grad()
    losses.append(total)
json.dump({"loss": losses, "grad_norm": norms}, open(out + "/expect.json", "w"))
print(losses[0], losses[20], losses[100], losses[-1])
