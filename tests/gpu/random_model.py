#!/usr/bin/env python3
"""random_model.py CONFIG OUT TOKENIZER [DATA LENGTH N]: a model folder of the shape in CONFIG/config.json with random bfloat16 weights and the
tokenizer of folder TOKENIZER; and N pair records in DATA/train.json, made of the sample's parts, of over LENGTH tokens each
(sft --overlong truncate cuts them to it).  Needs torch; the numbers are drawn on a GPU where there is one."""
import glob, json, os, shutil, struct, sys
import torch

config, out, tokenizer = sys.argv[1:4]
c = json.load(open(config + "/config.json"))
d, f, kv = c["hidden_size"], c["intermediate_size"], c["num_key_value_heads"] * (c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"])
q = c["num_attention_heads"] * (c.get("head_dim") or d // c["num_attention_heads"])
shapes = {"model.embed_tokens.weight": (c["vocab_size"], d), "model.norm.weight": (d,)}
if not c.get("tie_word_embeddings"):
    shapes["lm_head.weight"] = (c["vocab_size"], d)
for i in range(c["num_hidden_layers"]):
    p = f"model.layers.{i}."
    shapes |= {p + "input_layernorm.weight": (d,), p + "post_attention_layernorm.weight": (d,), p + "self_attn.q_proj.weight": (q, d),
               p + "self_attn.k_proj.weight": (kv, d), p + "self_attn.v_proj.weight": (kv, d), p + "self_attn.o_proj.weight": (d, q),
               p + "mlp.gate_proj.weight": (f, d), p + "mlp.up_proj.weight": (f, d), p + "mlp.down_proj.weight": (d, f)}
    if c["architectures"][0].startswith("Qwen2"):
        shapes |= {p + f"self_attn.{k}_proj.bias": (n,) for k, n in (("q", q), ("k", kv), ("v", kv))}
os.makedirs(out, exist_ok=True)
header, at = {}, 0
for name, s in shapes.items():
    n = 2 * torch.Size(s).numel()
    header[name] = {"dtype": "BF16", "shape": list(s), "data_offsets": [at, at + n]}
    at += n
text = json.dumps(header).encode()
text += b" " * (-len(text) % 8)
torch.manual_seed(1)
device = "cuda" if torch.cuda.is_available() else "cpu"
with open(out + "/model.safetensors", "wb") as file:
    file.write(struct.pack("<Q", len(text)) + text)
    for name, s in shapes.items():
        w = torch.ones(s) if "norm" in name else torch.randn(s, device=device, dtype=torch.bfloat16) * 0.02
        file.write(w.to(torch.bfloat16).cpu().view(torch.int16).numpy().tobytes())
shutil.copy(config + "/config.json", out)
for name in os.listdir(tokenizer):
    if name.startswith("tokenizer"):
        shutil.copy(os.path.join(tokenizer, name), out)

if len(sys.argv) > 4:
    data, length, n = sys.argv[4], int(sys.argv[5]), int(sys.argv[6])
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    steps = [open(p).read() for p in sorted(glob.glob(root + "/datasets/sample/steps/*.step"))]
    parts = [s[s.index("DATA;"):] for s in steps]
    long = "".join(parts)
    while len(long) < 8 * length:
        long += long
    os.makedirs(data, exist_ok=True)
    rows = [{"id_original": f"{i:08d}", "caption": f"Part {i}.", "id_retrieve": "1", "relavant_step_file": long[7 * i:7 * i + length],
             "output": parts[i % len(parts)] + long[1000 * i:1000 * i + 6 * length]} for i in range(n)]
    json.dump(rows, open(data + "/train.json", "w"))
