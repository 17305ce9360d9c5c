#!/usr/bin/env python3
"""Transformers' generate() with a static cache, compiled and warm, on random weights by a config, to stand beside bench-decode's
figures of the same machine and minute.

    peer_generate.py CONFIG_DIR [BATCH...]      (torch, transformers, a GPU)"""
import sys, time
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

config = AutoConfig.from_pretrained(sys.argv[1])
torch.set_default_dtype(torch.bfloat16)
with torch.device("cuda"):
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
torch.set_default_dtype(torch.float32)
PROMPT, NEW = 512, 512
for batch in [int(a) for a in sys.argv[2:]] or [1, 32]:
    ids = torch.randint(0, config.vocab_size - 1, (batch, PROMPT), device="cuda")
    how = GenerationConfig(max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, pad_token_id=0, eos_token_id=config.vocab_size - 1,
                           cache_implementation="static")
    with torch.inference_mode():
        for i in range(3):  # the first two compile and warm up
            torch.cuda.synchronize()
            t = time.time()
            model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=how)
            torch.cuda.synchronize()
            t = time.time() - t
    print(f"Transformers, static cache, compiled: batch {batch}, prompt {PROMPT}, {NEW} new: {batch * NEW / t:.0f} tokens/s", flush=True)
