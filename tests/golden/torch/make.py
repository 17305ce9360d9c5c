#!/usr/bin/env python3
"""Makes the stored vectors that test_model compares with: tiny random models of both architectures, with
adapters, and what Transformers and PEFT compute with them in float32.

    python3 make.py        (torch, transformers, peft, safetensors)

Each case NAME: NAME/ is a Hugging Face folder with PEFT's adapter in NAME/adapter, and NAME/expect.safetensors
holds ids [2, s], response (index of the first token of the loss), logits of the first sequence, the loss
(sum over the covered tokens of both), gradients of the adapter ("lora.NAME") and, without adapter, of all
weights ("full.NAME"; loss "full_loss").  Tolerance in the test: 1e-4 of each tensor's largest element."""
import os, shutil, torch
from transformers import Qwen2Config, Qwen2ForCausalLM, LlamaConfig, LlamaForCausalLM
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file

here = os.path.dirname(os.path.abspath(__file__))
base = dict(vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.2)
cases = {
    "qwen-tied": (Qwen2ForCausalLM, Qwen2Config(**base, tie_word_embeddings=True, rope_theta=1e6)),
    "qwen-untied": (Qwen2ForCausalLM, Qwen2Config(**base, tie_word_embeddings=False)),
    "llama-rope": (LlamaForCausalLM, LlamaConfig(**base, tie_word_embeddings=True, rope_theta=500.0, rope_scaling=dict(
        rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32))),
    "llama-untied": (LlamaForCausalLM, LlamaConfig(**base, tie_word_embeddings=False, head_dim=16)),
}
targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def loss_of(model, ids, response):
    logits = model(input_ids=ids).logits[:, response - 1:-1].float()
    return torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), ids[:, response:].reshape(-1), reduction="sum")


for n, (name, (cls, cfg)) in enumerate(cases.items()):
    torch.manual_seed(n)
    folder = os.path.join(here, name)
    shutil.rmtree(folder, ignore_errors=True)
    model = cls(cfg).float()
    with torch.no_grad():
        for k, p in model.named_parameters():
            if "norm" in k or "bias" in k:
                p.add_(torch.randn_like(p) * 0.2)
    model.save_pretrained(folder)
    ids, response = torch.randint(0, 97, (2, 40)), 11
    out = dict(ids=ids, response=torch.tensor([response]), logits=model(input_ids=ids[:1]).logits[0].detach().clone())
    loss = loss_of(model, ids, response)
    loss.backward()
    out["full_loss"] = loss.detach().reshape(1)
    for k, p in model.named_parameters():
        out["full." + k] = p.grad.clone()
    model.zero_grad()
    peft = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, target_modules=targets,
                                            use_rslora=n % 2 == 1, task_type="CAUSAL_LM"))
    with torch.no_grad():
        for k, p in peft.named_parameters():
            if "lora_" in k:
                p.copy_(torch.randn_like(p) * 0.1)
    peft.save_pretrained(os.path.join(folder, "adapter"))
    loss = loss_of(peft, ids, response)
    loss.backward()
    out["lora_loss"] = loss.detach().reshape(1)
    out["lora_logits"] = peft(input_ids=ids[:1]).logits[0].detach().clone()
    for k, p in peft.named_parameters():
        if "lora_" in k:
            out["lora." + k.replace(".default", "")] = p.grad.clone()
    model_ids = peft.generate(input_ids=ids[:1], attention_mask=torch.ones_like(ids[:1]), max_new_tokens=24, do_sample=False, eos_token_id=None, pad_token_id=0)
    out["generated"] = model_ids[0, ids.shape[1]:].clone()
    save_file({k: v.contiguous() for k, v in out.items()}, os.path.join(folder, "expect.safetensors"))
    for f in ("generation_config.json", "adapter/README.md"):
        if os.path.exists(os.path.join(folder, f)):
            os.remove(os.path.join(folder, f))
    print(name, float(loss))
