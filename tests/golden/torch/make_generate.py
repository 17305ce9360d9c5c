#!/usr/bin/env python3
"""Greedy continuations of 200 tokens that test_model_engine compares with: Transformers and PEFT in float32, on the tiny
models that make.py made.

    python3 make_generate.py        (torch, transformers, peft, safetensors)

NAME/generate.safetensors: for each of the prompts, whose lengths are PROMPTS, "prompt.I" and "tokens.I" (without adapter) and
"lora.I" (with it).  Each is generated alone, then all together, padded on the left; that both give the same is checked here, and
that no choice was nearer than 1e-4 of the logits' spread, so that other orders of adding do not matter."""
import os, torch
from transformers import AutoModelForCausalLM
from peft import PeftModel
from safetensors.torch import save_file

here = os.path.dirname(os.path.abspath(__file__))
PROMPTS, NEW, PAD = (40, 13, 1, 27), 200, 0


def greedy(model, rows, mask):
    out = model.generate(input_ids=rows, attention_mask=mask, max_new_tokens=NEW, do_sample=False, eos_token_id=None, pad_token_id=PAD,
                         output_logits=True, return_dict_in_generate=True)
    logits = torch.stack(out.logits, 1)
    top = logits.topk(2, -1).values
    return out.sequences[:, rows.shape[1]:], ((top[..., 0] - top[..., 1]) / logits.std(-1)).min().item()


for n, name in enumerate(("qwen-tied", "qwen-untied", "llama-rope", "llama-untied")):
    folder, result = os.path.join(here, name), {}
    for prefix in ("tokens", "lora"):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        if prefix == "lora":
            model = PeftModel.from_pretrained(model, os.path.join(folder, "adapter")).eval()
        seed = 100 * n
        while True:  # prompts none of whose 200 choices is a near tie
            torch.manual_seed(seed)
            prompts = [torch.randint(1, 97, (k,)) for k in PROMPTS]
            alone = [greedy(model, p[None], torch.ones(1, len(p), dtype=torch.long)) for p in prompts]
            if min(m for _, m in alone) > 1e-4:
                break
            seed += 1
        width = max(PROMPTS)
        rows = torch.stack([torch.cat([torch.full((width - len(p),), PAD), p]) for p in prompts])
        mask = torch.stack([torch.cat([torch.zeros(width - len(p), dtype=torch.long), torch.ones(len(p), dtype=torch.long)]) for p in prompts])
        together, _ = greedy(model, rows, mask)
        for i, (tokens, _) in enumerate(alone):
            assert torch.equal(tokens[0], together[i]), (name, prefix, i)
            result[f"{prefix}.prompt.{i}"] = prompts[i].clone()
            result[f"{prefix}.{i}"] = tokens[0].clone()
        print(name, prefix, "seed", seed, "nearest", min(m for _, m in alone))
    save_file({k: v.contiguous() for k, v in result.items()}, os.path.join(folder, "generate.safetensors"))
